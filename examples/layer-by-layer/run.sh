#!/usr/bin/env bash
# A guest runs the transformer itself:  examples/layer-by-layer/run.sh [MODEL.gguf]
# Prints its text and SUCCESS if every token is the one that generate writes.
. "$(dirname "$0")/../lib.sh"
said=$("$example_realm" run --model "$example_model" --program "$example_build/guest/layers.wasm" \
    --prompt "The capital of France is" </dev/null)
printf '%s\n' "$said"
case $said in
*"SAME TOKENS AS GENERATE"*) echo SUCCESS ;;
*) exit 1 ;;
esac
