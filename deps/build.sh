#!/usr/bin/env bash
# Builds deps/ into a cache outside the checkout and prints the folder with the result.
#
#   deps/build.sh                          build if needed
#   deps/build.sh --target TRIPLE          for another machine (needs that Rust target and a linker)
#   deps/build.sh --where                  only print where it is or would be
#
# The folder holds lib/librealm_deps.a and include/. Its name is a hash of everything that can change
# the result, so clones and branches share one build and a checkout never has a stale one. What the
# build says goes to stderr; stdout has the one line that CMake reads.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf '%s\n' "$*" >&2; }
die() { say "deps/build.sh: $*"; exit 1; }

where_only=
target=
while [ $# -gt 0 ]; do
    case $1 in
        --where) where_only=yes ;;
        --target) target=${2:?--target needs a triple}; shift ;;
        *) die "unknown argument '$1'; see the top of the file" ;;
    esac
    shift
done

# The first compiler that is new enough: rustup's folder may be missing from PATH, or stand behind a
# distribution's older compiler there.
need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/Cargo.toml")
have=
found=
for folder in "$(dirname "$(command -v rustc || echo /nowhere/rustc)")" "${CARGO_HOME:-$HOME/.cargo}/bin"; do
    [ -x "$folder/rustc" ] && [ -x "$folder/cargo" ] || continue
    have=$(cd "$here" && "$folder/rustc" --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$need" "${have%%-*}" | sort -V | head -1)" = "$need" ]; then
        found=$folder
        break
    fi
done
[ -n "$have" ] ||
    die "no Rust compiler was found, and Wasmtime is written in Rust: install rustup, which brings rustc and cargo $need or newer."
[ -n "$found" ] || die "rustc is $have, but Wasmtime needs $need or newer: run 'rustup update stable'."
PATH=$found:$PATH

target=${target:-$(cd "$here" && rustc -vV | sed -n 's/^host: //p')}

hash=$(cd "$here" && {
    rustc -vV
    echo "$target"
    find Cargo.toml Cargo.lock build.sh src include -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
} | sha256sum | cut -c1-16)

cache=${REALM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/realm}/deps
result=$cache/$hash

if [ -n "$where_only" ] || [ -f "$result/lib/librealm_deps.a" ]; then
    if [ -d "$result" ]; then touch "$result"; fi
    echo "$result"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/lock"
if command -v flock >/dev/null && ! flock -n 9; then
    say "deps/build.sh: another build of deps/ is running; waiting for it."
    flock 9
fi
if [ -f "$result/lib/librealm_deps.a" ]; then
    echo "$result"
    exit 0
fi

cores=$(getconf _NPROCESSORS_ONLN)
say "Building Wasmtime, llguidance and MiniJinja into $result"
say "(once for this version of deps/; about six minutes on two cores, here $cores; a change in deps/src alone takes seconds)."

# One target folder for all hashes: a change in our own few files does not compile the crates again.
messages=$(mktemp)
staging=
trap 'rm -rf "$messages" ${staging:+"$staging"}' EXIT
started=$(date +%s)
(cd "$here" && cargo build --release --locked --target "$target" --target-dir "$cache/target" \
    --message-format=json-render-diagnostics >"$messages")

# Wasmtime's own build script has written its headers, wasmtime/conf.h among them, for our features.
headers=$(grep '"reason":"build-script-executed"' "$messages" | grep 'wasmtime-c-api-impl' |
    sed -n 's/.*"out_dir":"\([^"]*\)".*/\1/p' | tail -1)/include
[ -f "$headers/wasmtime/conf.h" ] || die "Wasmtime's headers were not found in '$headers'."

staging=$(mktemp -d "$cache/.staging.XXXXXX")
mkdir "$staging/lib"
cp -R "$headers" "$staging/include"
cp "$here"/include/*.h "$staging/include/"
cp "$cache/target/$target/release/librealm_deps.a" "$staging/lib/"

# The standard library comes with debug information, two thirds of the archive.
for strip in "$target-strip" "${target/-unknown/}-strip" llvm-strip strip; do
    if command -v "$strip" >/dev/null && "$strip" --strip-debug "$staging/lib/librealm_deps.a" 2>/dev/null; then
        break
    fi
done

# Each use touches its folder; what no checkout has asked for in a month goes.
find "$cache" -mindepth 1 -maxdepth 1 -type d -name '[0-9a-f]*' ! -name "$hash" -mtime +30 -exec rm -rf {} +
chmod 755 "$staging"
rm -rf "$result"
mv "$staging" "$result"
staging=
say "Built in $(($(date +%s) - started)) s: $(du -h "$result/lib/librealm_deps.a" | cut -f1) in $result"
echo "$result"
