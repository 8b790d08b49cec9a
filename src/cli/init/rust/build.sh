#!/bin/sh
# Compiles the crate to program.wasm. Needs a Rust compiler with the target wasm32-unknown-unknown
# (rustup target add wasm32-unknown-unknown; on Debian: apt-get install cargo rustc libstd-rust-dev-wasm32).
set -eu
cd "$(dirname "$0")"
target=wasm32-unknown-unknown
for folder in "" /usr/bin/ /usr/local/bin/; do
    libraries=$("${folder}rustc" --print target-libdir --target $target 2>/dev/null) || continue
    [ -d "$libraries" ] || continue
    command -v "${folder}cargo" >/dev/null 2>&1 || continue
    if [ -n "$folder" ]; then
        export PATH="$folder:$PATH" RUSTC="${folder}rustc"
    fi
    "${folder}cargo" build --release --target $target
    cp target/$target/release/program.wasm program.wasm
    echo "built program.wasm"
    exit 0
done
echo "build.sh: no cargo and rustc with the target $target are here;" >&2
echo "  rustup target add $target, or on Debian: apt-get install cargo rustc libstd-rust-dev-wasm32" >&2
exit 1
