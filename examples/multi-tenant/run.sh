#!/usr/bin/env bash
# Three tenants, three programs in C and Rust, one model:  examples/multi-tenant/run.sh [MODEL.gguf]
. "$(dirname "$0")/../lib.sh"
guests=$example_build/guest
exec "$example_build/examples/multi-tenant" "$example_model" \
    "$guests/poet.wasm" "$guests/clerk.wasm" "$guests/concierge.wasm"
