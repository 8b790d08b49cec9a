# Toolchain file: 64-bit ARM Linux from another Debian machine, tests run by qemu's user emulation.
#
#   scripts/test.sh does: cmake --preset arm64 && cmake --build --preset arm64 && ctest --preset arm64
#
# The compiler is Debian's gcc-aarch64-linux-gnu, the libraries its :arm64 packages beside the machine's own
# (multiarch); need_arm64_packages in scripts/lib.sh installs all of it. There is no Rust standard library for
# a second architecture among Debian's packages, so the preset builds without deps/ (REALM_WITHOUT_DEPS).

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)

# `max` has the dot and matrix products that kernels ask for, so tests run those of every processor. Its pointer authentication is
# only a matter of time here: the cheap algorithm in place of the architecture's.
#
# No -L: libraries and their loader come from / (libc6:arm64). /usr/aarch64-linux-gnu has a C library too,
# the cross compiler's, of another revision; its loader with the libc.so.6 of / hangs in pthread_create.
#
# -R bounds the address space: the emulator has a table entry for every page, so a mapping of terabytes
# that nothing touches would take all memory there is. Here the system refuses it.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max,pauth-impdef=on -R 64G)

# pkg-config must not answer with the machine's own libraries.
set(ENV{PKG_CONFIG_LIBDIR} /usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig)
unset(ENV{PKG_CONFIG_PATH})
