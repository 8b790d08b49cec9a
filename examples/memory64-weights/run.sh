#!/usr/bin/env bash
# A 64-bit guest holds the model's layers in its own memory:
#   examples/memory64-weights/run.sh [MODEL.gguf]
. "$(dirname "$0")/../lib.sh"
exec "$example_realm" run --model "$example_model" --program "$example_build/guest/weights64.wasm" \
    --prompt "" </dev/null
