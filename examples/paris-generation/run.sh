#!/usr/bin/env bash
# The Paris test: a real model answers through a tenant's sandboxed program.
#   examples/paris-generation/run.sh [MODEL.gguf]
# Prints the response and SUCCESS; exits with 1 if the model did not say Paris.
. "$(dirname "$0")/../lib.sh"

question="What is the capital of France?"
response=$("$example_realm" run --model "$example_model" --program "$example_build/guest/paris.wasm" \
    --prompt "$question" </dev/null)
printf 'Question: %s\nResponse: %s\n' "$question" "$response"
case $response in
*Paris*) echo SUCCESS ;;
*)
    echo "FAILURE: the response does not name Paris" >&2
    exit 1
    ;;
esac
