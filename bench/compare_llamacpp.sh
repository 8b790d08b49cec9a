#!/usr/bin/env bash
# Realm beside llama.cpp, on one or several models: ratios with their spread.
#
#   bench/compare_llamacpp.sh MODEL.gguf... [--append] [options of compare_llamacpp.py]
#
# Makes or reuses an environment with llama-cpp-python (bench/requirements.txt) in $REALM_CACHE; its first
# build takes about ten minutes on two cores. COMPARE_PYTHON names a Python that has it already. Without
# options: --pp 512 --tg 64 --batch 1,4,8,16, as many threads as there are cores, five repetitions, and at
# most five minutes a model. --append adds each row to bench/history.csv once it is measured; the same
# command, run again after an interruption, goes on with what that commit lacks there.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

[ $# -gt 0 ] || die "name one or several GGUF files; see the top of the file"
if [ -z "${COMPARE_PYTHON:-}" ]; then
    need_packages "python3-venv=an environment for llama-cpp-python" "python3-dev=its headers" \
        "cmake=builds llama.cpp" "ninja-build=builds llama.cpp"
    COMPARE_PYTHON=$(python_tools "$REALM_ROOT/bench/requirements.txt")
fi
exec "$COMPARE_PYTHON" "$REALM_ROOT/bench/compare_llamacpp.py" "$@"
