#!/usr/bin/env bash
# Prints the folder of a CUDA 13 toolkit that can compile Realm's plug-in (bin/nvcc and what it needs).
#
#   scripts/cuda_toolkit.sh            fetches the vendor's wheels into REALM_CACHE if there is none
#   scripts/cuda_toolkit.sh --where    only says where one is, and fails if nowhere
#
# A system toolkit comes first: CUDA_HOME's, /usr/local/cuda, or the one of the nvcc on the PATH. The
# wheels (105 MB) need neither root nor a device. The toolkit's licence is NVIDIA's; nothing of it but
# the static run time becomes part of the plug-in, which that licence allows.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version=13.0
wheels=(nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl)
cache=$REALM_CACHE/cuda/$version-$(uname -m)

is_toolkit() {
    [ -x "$1/bin/nvcc" ] && "$1/bin/nvcc" --version 2>/dev/null | grep -q 'release 13\.'
}

for root in "${CUDA_HOME:-}" /usr/local/cuda "$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /)")")")"; do
    if [ -n "$root" ] && is_toolkit "$root"; then
        printf '%s\n' "$root"
        exit 0
    fi
done
if [ -f "$cache/ready" ]; then
    printf '%s\n' "$cache/nvidia/cu13"
    exit 0
fi
[ "${1:-}" != --where ] || exit 1

say "Fetching the CUDA $version compiler into $cache (105 MB)"
mkdir -p "$cache"
python=$(python_tools /dev/null)
exec 9>"$cache/lock"
flock 9
if [ ! -f "$cache/ready" ]; then
    "$python" -m pip install -q --disable-pip-version-check --no-deps --upgrade --target "$cache" \
        "${wheels[@]/%/==$version.*}" >&2 || die "pip could not install the CUDA compiler's wheels."
    # Packers drop what makes a file a program; nvcc looks for its libraries under their other name.
    chmod +x "$cache"/nvidia/cu13/bin/* "$cache"/nvidia/cu13/nvvm/bin/*
    ln -sfn lib "$cache/nvidia/cu13/lib64"
    is_toolkit "$cache/nvidia/cu13" || die "the compiler in $cache does not run"
    touch "$cache/ready"
fi
printf '%s\n' "$cache/nvidia/cu13"
