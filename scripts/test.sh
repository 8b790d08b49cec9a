#!/usr/bin/env bash
# Builds everything and runs every test; ends with "N passed, N failed". This is what CI runs.
#
#   scripts/test.sh              all of it
#   scripts/test.sh --quick      the release build and its tests only
#
# Phases, each timed: what is missing; the release build and its tests; the tests in Python; the Rust
# code of deps/; unit tests and fuzz targets under AddressSanitizer and
# UndefinedBehaviorSanitizer; those with threads under ThreadSanitizer; unit tests of the rooms below the
# sandbox for 64-bit ARM, in qemu. A failing test does not stop the rest; a failing build does.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REALM_ROOT"

quick=
case ${1:-} in
    '') ;;
    --quick) quick=yes ;;
    *) die "unknown argument '$1'; see the top of the file" ;;
esac

passed=0 failed=0 skipped=0
# What fails beside other tests is run once more, alone: on two cores that others share, a process may stand still
# for longer than any test's patience. What fails twice has failed; what passes then is counted as passed and
# named at the end, because it may also be a race.
unsteady=() broken=()
started=$SECONDS phase_started=$SECONDS phase_name=
cores=$(getconf _NPROCESSORS_ONLN)
logs=build/test-logs
mkdir -p "$logs"

phase() {
    [ -z "$phase_name" ] || echo "---- $phase_name: $((SECONDS - phase_started)) s"
    phase_name=$1 phase_started=$SECONDS
    [ -z "$1" ] || echo "==== $1"
}

# Whatever goes wrong outside a test is one failure, and the last line still says so.
finish() {
    local code=$?
    trap - EXIT
    if [ $code -ne 0 ] && [ "$failed" = 0 ]; then
        echo "stopped in: ${phase_name:-the beginning}"
        failed=1
    fi
    phase ''
    echo "---- all: $((SECONDS - started)) s"
    if [ ${#unsteady[@]} -gt 0 ]; then
        echo "${#unsteady[@]} passed only when run once more, alone:"
        printf '    %s\n' "${unsteady[@]}"
    fi
    if [ ${#broken[@]} -gt 0 ]; then
        echo "failed:"
        printf '    %s\n' "${broken[@]}"
    fi
    if [ "$skipped" -gt 0 ]; then echo "$skipped tests were skipped"; fi
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] || exit 1
    exit 0
}
trap finish EXIT

# run_ctest PRESET LABELS_PATTERN: runs what matches, adds to the counts.
run_ctest() {
    local preset=$1 labels=$2 log=$logs/ctest-$1.log arguments=()
    [ -z "$labels" ] || arguments=(-L "$labels")
    ctest --test-dir "build/$preset" --output-on-failure --no-tests=ignore -j "$cores" \
        ${arguments[@]+"${arguments[@]}"} 2>&1 | tee "$log" | grep -v '^ *Start ' || true
    local line total wrong missing
    line=$(ctest_summary "$log")
    if [ -z "$line" ]; then # it did not come to its end, or found no test where there are some
        failed=$((failed + 1))
        return 0
    fi
    total=$(sed -E 's/.* out of ([0-9]+).*/\1/' <<<"$line")
    wrong=$(wrong_of "$line")
    missing=$(grep -cE '\(Skipped\)$' "$log" || true)
    if [ "$wrong" != 0 ]; then
        echo "---- once more, alone: the $wrong that failed"
        local before=$wrong
        ctest --test-dir "build/$preset" --output-on-failure --rerun-failed 2>&1 | tee "$log.again" | grep -v '^ *Start ' || true
        line=$(ctest_summary "$log.again")
        # Only a run of just those tests says something about them.
        if [ -n "$line" ] && [[ $line == *" out of $before" ]]; then
            wrong=$(wrong_of "$line")
            while read -r name; do unsteady+=("$preset: $name"); done \
                < <(sed -nE 's/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: ([^ ]+) \.+ +Passed .*/\1/p' "$log.again")
        fi
        [ "$wrong" = 0 ] || while read -r name; do broken+=("$preset: $name"); done \
            < <(sed -nE 's/^[[:blank:]]+[0-9]+ - ([^ ]+) \((Failed|Timeout|SEGFAULT|Subprocess|ILLEGAL|OTHER|Not Run).*/\1/p' "$log.again")
    fi
    passed=$((passed + total - wrong - missing)) failed=$((failed + wrong)) skipped=$((skipped + missing))
}
ctest_summary() { grep -E 'tests? passed, [0-9]+ tests? failed out of' "$1" || true; }
wrong_of() { sed -E 's/.* passed, ([0-9]+) tests? failed.*/\1/' <<<"$1"; }

# build PRESET [TARGETS...]
build() {
    local preset=$1
    shift
    local options=()
    [ "$preset" != release ] || options=(-DREALM_CUDA=ON)
    if [ ! -f "build/$preset/build.ninja" ]; then
        cmake --preset "$preset" ${options[@]+"${options[@]}"} >"$logs/configure-$preset.log" || {
            cat "$logs/configure-$preset.log"
            die "could not configure build/$preset"
        }
    fi
    cmake --build --preset "$preset" ${1:+--target "$@"} -- --quiet
}

phase "what is missing"
need_build_packages
need_wasm_rust
need_packages "clang-format=checks how the code is laid out"
REALM_SMOLLM2=$(scripts/fetch_models.sh smollm2)
REALM_GEMMA3=$(scripts/fetch_models.sh gemma3)
REALM=$REALM_ROOT/build/release/realm
export REALM REALM_SMOLLM2 REALM_GEMMA3

phase "tools of other projects that test the server"
REALM_H2SPEC=$(go_tool h2spec github.com/summerwind/h2spec/cmd/h2spec v2.2.1+incompatible || true)
REALM_GRPCURL=$(go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl v1.9.4 || true)
REALM_PROMTOOL=$(deb_tool prometheus usr/bin/promtool || true)
export REALM_H2SPEC REALM_GRPCURL REALM_PROMTOOL

phase "layout of the code"
if scripts/format.sh --check; then passed=$((passed + 1)); else failed=$((failed + 1)); fi

phase "release: build"
# The CUDA plug-in is compiled here too; its tests need a device, and without one count as skipped.
scripts/cuda_toolkit.sh >/dev/null
build release
phase "release: tests"
run_ctest release ''

phase "tests in Python"
if [ -f tests/requirements.txt ]; then
    python=$(python_tools tests/requirements.txt)
else
    echo pytest >"$logs/requirements.txt"
    python=$(python_tools "$logs/requirements.txt")
fi
# run_pytest LOG ARGUMENTS...: sets ok, wrong and left; wrong is 1 if it did not come to its end.
run_pytest() {
    local log=$1 line
    shift
    "$python" -m pytest -q -ra "$@" tests 2>&1 | tee "$log" || true
    line=$(grep -E '(passed|failed|errors?|skipped)( in |,)|no tests ran' "$log" | tail -1 || true)
    ok=$(count passed) wrong=$(($(count failed) + $(count errors?))) left=$(count skipped)
    [ -n "$line" ] || wrong=1
}
count() {
    local number
    number=$(sed -nE "s/.*[^0-9]([0-9]+) $1.*/\1/p" <<<" $line")
    echo "${number:-0}"
}
run_pytest "$logs/pytest.log"
passed=$((passed + ok)) skipped=$((skipped + left))
if [ "$wrong" != 0 ]; then
    first=$wrong
    echo "---- once more, alone: the $wrong that failed"
    run_pytest "$logs/pytest-again.log" -vv --last-failed --last-failed-no-failures none
    while read -r name; do broken+=("$name"); done < <(sed -nE 's/^(FAILED|ERROR) (tests.*)/\2/p' "$logs/pytest-again.log")
    if [ $((ok + wrong)) = "$first" ]; then
        passed=$((passed + ok)) failed=$((failed + wrong))
        while read -r name; do unsteady+=("$name"); done < <(sed -nE 's/^(tests.*) PASSED.*/\1/p' "$logs/pytest-again.log")
    else
        failed=$((failed + first))
    fi
fi

if [ -z "$quick" ]; then
    phase "deps: tests in Rust"
    PATH=$HOME/.cargo/bin:$PATH cargo test --manifest-path deps/Cargo.toml --release --locked \
        --target "$(PATH=$HOME/.cargo/bin:$PATH rustc -vV | sed -n 's/^host: //p')" \
        --target-dir "$REALM_CACHE/deps/target" -q 2>&1 | tee "$logs/cargo.log" | grep -E 'test result|FAILED|panicked|^error' || true
    grep -q '^test result' "$logs/cargo.log" || { cat "$logs/cargo.log"; failed=$((failed + 1)); }
    while read -r ok wrong; do
        passed=$((passed + ok)) failed=$((failed + wrong))
    done < <(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed.*/\1 \2/p' "$logs/cargo.log")

    phase "AddressSanitizer and UndefinedBehaviorSanitizer"
    build asan realm_tests_unit realm_tests_fuzz
    run_ctest asan 'unit|fuzz'

    phase "ThreadSanitizer"
    build tsan realm_tests_tsan
    run_ctest tsan tsan

    # On such a machine the release build was this, without emulation.
    if [ "$(uname -m)" = x86_64 ]; then
        phase "ARM64 under emulation"
        need_arm64_packages
        build arm64 realm_tests_unit
        run_ctest arm64 unit
    fi
fi
