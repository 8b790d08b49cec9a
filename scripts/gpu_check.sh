#!/usr/bin/env bash
# Checks and measures the CUDA backend on a machine that has a device, in one go; ends with a short table.
#
#   scripts/gpu_check.sh [--build DIR] [--quick] [--sanitize] [--products] [--engine] [--logits FILE.gguf]...
#                        [--model SHAPE:TYPE]...
#
# Every operation is compared with the scalar reference, then models of real shapes with random weights are
# timed (bench/device.c). --sanitize runs the comparison again under compute-sanitizer's memcheck and
# racecheck; --quick leaves the timing out; --products times single products as well; --engine goes on to what
# the engine makes of it: a prompt beside 15 streams and guests beside native sessions with a random 7B, the
# device memory of sixteen sessions with a random 13B; --logits measures the distance of a real model's
# log-probabilities from the truth of tests/golden. DIR is a finished build (default build/release), made here if
# it is not there; a machine without the packages or the network for that can be brought one: the plug-in needs
# nothing there but the driver, the rest the libraries of `ldd`, which are looked for in DIR too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release quick= sanitize= engine= options=() models=() logits=()
while [ $# -gt 0 ]; do
    case $1 in
        --build) build=$2; shift ;;
        --quick) quick=yes ;;
        --sanitize) sanitize=yes ;;
        --products) options+=(--products) ;;
        --engine) engine=yes ;;
        --logits) logits+=("$2"); shift ;;
        --model) models+=(--model "$2"); shift ;;
        *) echo "gpu_check.sh: unknown argument '$1'; see the top of the file" >&2; exit 2 ;;
    esac
    shift
done
[ ${#models[@]} -gt 0 ] || models=(--model llama-2-7b:q4_k_m --model llama-2-7b:f16 --model llama-2-13b:q4_k_m)

if [ ! -f "$build/librealm_cuda.so" ]; then
    cmake --preset release -DREALM_CUDA=ON
    cmake --build --preset release --target realm_cuda test_compute_cuda test_model test_model_adapter \
        test_engine_model bench_device bench_scheduling logits_tool realm -- --quiet
fi
find_program() { find "$build" -name "$1" -type f -perm -u+x | head -1; }
test=$(find_program test_compute_cuda) bench=$(find_program bench_device)
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} REALM_CUDA_PLUGIN=$PWD/$build/librealm_cuda.so
case $build in /*) REALM_CUDA_PLUGIN=$build/librealm_cuda.so ;; esac

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
failed=0
"$test" 2>&1 || failed=1
for name in test_model test_model_adapter test_engine_model; do
    program=$(find_program $name)
    if [ -z "$program" ]; then echo "$name is not in $build: not run"; continue; fi
    REALM_TEST_DEVICE=cuda "$program" 2>&1 | grep -vE '^\[ +(OK|RUN) ' || failed=1
done
if [ -n "$sanitize" ]; then
    for tool in memcheck racecheck; do
        echo "compute-sanitizer $tool"
        compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9 "$test" 2>&1 | tail -8 || failed=1
    done
fi
if [ ${#logits[@]} -gt 0 ]; then
    LOGITS_TOOL=$(find_program logits_tool) python3 tests/golden/logits/measure_device.py "${logits[@]}" || failed=1
fi
[ -n "$quick" ] || "$bench" --device cuda ${options[@]+"${options[@]}"} "${models[@]}" || failed=1

# Runs a command and says how much of the device's memory was in use at most.
watch_memory() {
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$made/memory" &
    local watcher=$!
    "$@" >/dev/null || failed=1
    kill $watcher
    wait $watcher 2>/dev/null || true
    echo "$(sort -n "$made/memory" | tail -1) MiB of the device in use"
}
if [ -n "$engine" ]; then
    realm=$(find_program realm) made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    export REALM_CACHE=$made
    "$realm" bench --synthetic llama-2-7b:q4_k_m --synthetic-out "$made/7b.gguf" --device cuda --pp 512 --tg 0 || failed=1
    # Its bounds are goals, which not every device meets: 1 says that one was not.
    "$(find_program bench_scheduling)" "$made/7b.gguf" --device cuda --only crowd || [ $? = 1 ] || failed=1
    for how in "" --generate "--candidates 64" "--temperature 1"; do
        echo "guests${how:+, $how}"
        # shellcheck disable=SC2086 # words of their own
        "$realm" bench --model "$made/7b.gguf" --device cuda --batch 1,8,16 --pp 0 --tg 128 --sandbox $how | tail -6 || failed=1
    done
    echo "sixteen sessions of 13B with 2 GiB of pages"
    watch_memory "$realm" bench --synthetic llama-2-13b:q4_k_m --device cuda --batch 16 --pp 512 --tg 64 --repeat 1 --kv-memory 2g
fi
if [ $failed = 0 ]; then echo "the CUDA backend is as the reference"; else echo "FAILED"; fi
exit $failed
