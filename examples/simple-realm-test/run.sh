#!/usr/bin/env bash
# librealm from a C program:  examples/simple-realm-test/run.sh [MODEL.gguf]
. "$(dirname "$0")/../lib.sh"
exec "$example_build/examples/simple-realm-test" "$example_model"
