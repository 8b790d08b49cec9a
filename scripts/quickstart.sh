#!/usr/bin/env bash
# From a fresh clone to a first answer: installs what is missing, builds, downloads a small model and
# asks it for the capital of France. Run again, it goes straight to the question.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REALM_ROOT"

need_build_packages
need_wasm_rust

[ -f build/release/build.ninja ] || { say "Configuring build/release"; cmake --preset release >/dev/null; }
say "Building build/release"
cmake --build --preset release -- --quiet

model=$(scripts/fetch_models.sh smollm2)

say
exec examples/paris-generation/run.sh "$model"
