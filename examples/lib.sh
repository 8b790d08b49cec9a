# What the examples share. Sourced, not run.
set -eu
example_root=$(cd "$(dirname "$0")/../.." && pwd)
example_build=${REALM_BUILD:-$example_root/build/release}
example_realm=$example_build/realm

if [ ! -x "$example_realm" ]; then
    echo "there is no $example_realm yet: run ./scripts/quickstart.sh first" >&2
    exit 1
fi

# The model: the first argument, or the one that quickstart fetched.
example_model=${1:-}
if [ -z "$example_model" ]; then
    example_model=$("$example_root/scripts/fetch_models.sh" --path smollm2) || exit 1
fi
