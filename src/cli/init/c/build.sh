#!/bin/sh
# Compiles program.c to program.wasm. Needs clang and lld (Debian: apt-get install clang lld).
set -eu
cd "$(dirname "$0")"
for clang in "${CC_WASM:-clang}" clang-19 clang-18 clang-17 clang-16 clang-15 clang-14; do
    if command -v "$clang" >/dev/null 2>&1; then
        "$clang" --target=wasm32 -std=c17 -O2 -Wall -Wextra -ffreestanding -nostdlib \
            -fvisibility=hidden -mbulk-memory -Wl,--no-entry -Wl,--stack-first \
            -Wl,-z,stack-size=65536 -Wl,--strip-all -o program.wasm program.c
        echo "built program.wasm"
        exit 0
    fi
done
echo "build.sh: clang is missing; on Debian: apt-get install clang lld" >&2
exit 1
