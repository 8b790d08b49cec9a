# lib.sh: what the scripts here share. Sourced, never run.
#
# Everything that is downloaded or built once for all checkouts lives in $REALM_CACHE. Each function
# says what it does before it takes time, and does nothing, silently, when there is nothing to do.

REALM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REALM_CACHE=${REALM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/realm}
export REALM_CACHE

say() { printf '%s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# The second number is the lower one.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -1)" = "$2" ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        say "(with sudo) $*"
        sudo "$@"
    else
        die "this needs root, and there is no sudo. Run as root: $*"
    fi
}

# need_packages PACKAGE=WHY...: installs those of Debian's packages that are missing.
need_packages() {
    local missing=() entry
    if ! command -v dpkg-query >/dev/null; then
        for entry in "$@"; do missing+=("${entry%%=*}"); done
        say "This is not Debian or Ubuntu: nothing is installed for you. Realm uses, by Debian's names: ${missing[*]}"
        return 0
    fi
    for entry in "$@"; do
        if ! dpkg-query -W -f '${db:Status-Status}' "${entry%%=*}" 2>/dev/null | grep -qx installed; then
            say "missing: ${entry%%=*} (${entry#*=})"
            missing+=("${entry%%=*}")
        fi
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${#missing[@]} packages; takes about a minute."
    as_root apt-get -o DPkg::Lock::Timeout=300 -q update >/dev/null ||
        die "apt-get update failed; is this machine on a network?"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

need_build_packages() {
    need_packages \
        "build-essential=C compiler, linker and headers" \
        "cmake=says how to build; also makes Wasmtime's headers" \
        "ninja-build=builds" \
        "pkg-config=finds libraries" \
        "python3=runs checks of the build" \
        "clang=compiles programs for the sandbox" \
        "lld=links them, and links Realm itself faster" \
        "libjansson-dev=JSON" \
        "libpcre2-dev=the regular expressions of tokenizers" \
        "libutf8proc-dev=Unicode" \
        "libxxhash-dev=checksums of packed weights" \
        "libyaml-dev=YAML" \
        "libssl-dev=SHA-256, signatures of bearer tokens, and TLS" \
        "libsqlite3-dev=tenants, keys, programs and usage on disk" \
        "libcurl4-openssl-dev=keys of bearer tokens from a URL, spans to a collector" \
        "libuv1-dev=the server's event loop" \
        "libnghttp2-dev=HTTP/2" \
        "libprotobuf-c-dev=the messages of gRPC" \
        "protobuf-c-compiler=makes C of their .proto files" \
        "zlib1g-dev=compressed messages of gRPC and WebSockets" \
        "libwslay-dev=the frames of WebSockets" \
        "node-llhttp=the parser of HTTP/1, as C sources" \
        "libcmocka-dev=unit tests in C" \
        "git=versions"
    need_rust
    check_tools
}

# What builds and runs the tests for 64-bit ARM on another Debian machine. The libraries are Debian's own for
# that architecture, beside the machine's (multiarch), so dpkg must be told of it first. Where a library is
# installed for both, both are of one version: apt may upgrade the machine's own. libc6 comes as a dependency
# and is what the emulated programs run on.
need_arm64_packages() {
    if command -v dpkg >/dev/null && ! dpkg --print-foreign-architectures | grep -qx arm64; then
        say "Telling dpkg of a second architecture, arm64"
        as_root dpkg --add-architecture arm64
    fi
    need_packages \
        "gcc-aarch64-linux-gnu=compiles for 64-bit ARM" \
        "qemu-user=runs what it compiled" \
        "libcmocka-dev:arm64=unit tests, for 64-bit ARM" \
        "libjansson-dev:arm64=JSON, for 64-bit ARM" \
        "libyaml-dev:arm64=YAML, for 64-bit ARM" \
        "libpcre2-dev:arm64=the regular expressions of tokenizers, for 64-bit ARM" \
        "libutf8proc-dev:arm64=Unicode, for 64-bit ARM" \
        "libxxhash-dev:arm64=checksums, for 64-bit ARM"
}

# Tenants' programs in Rust. Debian's compiler is old and beside the point for deps/, but unlike
# rustup's it comes with the target for WebAssembly as a package.
need_wasm_rust() {
    realm_find_wasm_rustc >/dev/null && return 0
    need_packages \
        "rustc=compiles programs in Rust" \
        "cargo=builds them" \
        "libstd-rust-dev-wasm32=for the sandbox"
    realm_find_wasm_rustc >/dev/null ||
        say "No Rust compiler with the target wasm32-unknown-unknown was found: programs in Rust are left out."
}

# Prints a rustc that can compile for the sandbox. The newest comes first.
realm_find_wasm_rustc() {
    local rustc root
    for rustc in "${REALM_WASM_RUSTC:-}" "$HOME/.cargo/bin/rustc" "$(command -v rustc || true)" /usr/bin/rustc; do
        [ -n "$rustc" ] && [ -x "$rustc" ] || continue
        root=$("$rustc" --print sysroot 2>/dev/null) || continue
        if compgen -G "$root/lib/rustlib/wasm32-unknown-unknown/lib/libcore-*.rlib" >/dev/null; then
            printf '%s\n' "$rustc"
            return 0
        fi
    done
    return 1
}

# The Rust compiler for deps/. Debian's is too old for Wasmtime, so it is not worth installing.
need_rust() {
    local need
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REALM_ROOT/deps/Cargo.toml")
    [ -f "$("$REALM_ROOT/deps/build.sh" --where 2>/dev/null)/lib/librealm_deps.a" ] && return 0
    if "$REALM_ROOT/deps/build.sh" --where >/dev/null; then
        return 0
    fi
    die "Wasmtime needs Rust $need or newer (see above). With rustup: 'rustup update stable', or install rustup first."
}

check_tools() {
    local have
    have=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
    version_at_least "$have" 3.25 || die "cmake is $have; 3.25 or newer is needed (Debian 12 has it)."
    have=$(${CC:-cc} -dumpfullversion 2>/dev/null || ${CC:-cc} -dumpversion)
    if ${CC:-cc} --version | grep -qi clang; then
        version_at_least "$have" 14 || die "clang is $have; 14 or newer is needed."
    else
        version_at_least "$have" 12 || die "gcc is $have; 12 or newer is needed (Debian 12 has it)."
    fi
    have=$(python3 -c 'import platform; print(platform.python_version())')
    version_at_least "$have" 3.9 || die "python3 is $have; 3.9 or newer is needed."
}

# python_tools REQUIREMENTS_FILE...: prints the python of an environment with what those files ask for,
# made once for each content of theirs.
python_tools() {
    local hash venv
    hash=$({ python3 --version; cat "$@"; } | sha256sum | cut -c1-16)
    venv=$REALM_CACHE/python/$hash
    if [ ! -f "$venv/ready" ]; then
        need_packages "python3-venv=Python tools apart from the system's" >&2
        say "Making a Python environment in $venv"
        rm -rf "$venv"
        mkdir -p "$(dirname "$venv")"
        python3 -m venv "$venv" >&2 || die "python3 cannot make an environment; its reason is above."
        local file
        for file in "$@"; do
            "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$file" >&2 ||
                die "pip could not install what $file asks for."
        done
        touch "$venv/ready"
    fi
    printf '%s\n' "$venv/bin/python"
}

# deb_tool PACKAGE PATH: prints where a program of a Debian package is: where it is installed, or taken out of the
# package into the cache. The package itself is not installed: no service is started for a test's sake. Or says why it
# cannot be had, and fails.
deb_tool() {
    local package=$1 path=$2 folder=$REALM_CACHE/deb/$1 work
    if [ -x "/$path" ]; then
        printf '%s\n' "/$path"
        return 0
    fi
    if [ ! -x "$folder/$path" ]; then
        command -v apt-get >/dev/null || { say "$(basename "$path") is left out: there is no apt-get"; return 1; }
        say "Fetching $package for $(basename "$path")"
        mkdir -p "$folder"
        work=$(mktemp -d "$folder.XXXXXX")
        if (cd "$work" && timeout 180 apt-get download -q "$package" >log 2>&1 &&
            dpkg-deb --fsys-tarfile ./*.deb | tar -x -C "$folder" "./$path"); then
            rm -rf "$work"
        else
            say "$(basename "$path") is left out: $(tail -1 "$work/log")"
            rm -rf "$work"
            return 1
        fi
    fi
    printf '%s\n' "$folder/$path"
}

# go_tool NAME PACKAGE VERSION: prints the path of a tool written in Go, built once into the cache; or says why it
# cannot be had, and fails. Tests that need it are then skipped.
go_tool() {
    local name=$1 package=$2 version=$3 go folder
    folder=$REALM_CACHE/go/$name-$version
    if [ ! -x "$folder/$name" ]; then
        go=$(PATH=$PATH:/usr/local/go/bin command -v go || true)
        if [ -z "$go" ] && (need_packages "golang-go=builds $name, which tests the server") >&2; then
            go=$(command -v go || true)
        fi
        [ -n "$go" ] || { say "$name is left out: there is no Go to build it with"; return 1; }
        say "Building $name $version"
        GOBIN=$folder GOFLAGS=-modcacherw timeout 180 "$go" install "$package@$version" >"$REALM_CACHE/go-$name.log" 2>&1 || {
            say "$name is left out: $(tail -1 "$REALM_CACHE/go-$name.log")"
            return 1
        }
    fi
    printf '%s\n' "$folder/$name"
}
