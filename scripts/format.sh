#!/usr/bin/env bash
# Formats all C here as .clang-format says.
#
#   scripts/format.sh            rewrites files
#   scripts/format.sh --check    only names those that would change, and fails if any would
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REALM_ROOT"

# Other versions lay out some code differently, so the one of Debian 12 decides.
formatter=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$formatter" ]; then
    need_packages "clang-format=formats C"
    formatter=$(command -v clang-format-14 || command -v clang-format)
fi

files=$(git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' | sort -u |
    while read -r file; do if [ -f "$file" ]; then echo "$file"; fi; done)
[ -n "$files" ] || exit 0

if [ "${1:-}" = --check ]; then
    wrong=$({ xargs "$formatter" --style=file --dry-run --Werror <<<"$files" 2>&1 || true; } |
        sed -nE 's/^([^:]+):[0-9]+:[0-9]+: error: .*/\1/p' | sort -u)
    [ -z "$wrong" ] && { echo "$(wc -l <<<"$files") files are formatted"; exit 0; }
    echo "not as .clang-format says (run scripts/format.sh):"
    echo "$wrong"
    exit 1
fi
xargs "$formatter" --style=file -i <<<"$files"
