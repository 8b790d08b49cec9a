# How every C file here is compiled. Set on the folder, not on targets, so that a target added by
# hand cannot forget it; a target that must differ appends to it with target_compile_options.

if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
# Rooms are archived for the `realm` binary and linked again into librealm.so.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# Optimized enough that a real model answers within a test's patience, readable enough in a report.
# (Not CMAKE_C_FLAGS_SANITIZE: project() has already put an empty one into the cache.)
# Instrumented code confuses gcc's search for uninitialized variables; the other builds keep it.
add_compile_options("$<$<CONFIG:Sanitize>:-O1;-g;-fno-omit-frame-pointer>")
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    add_compile_options("$<$<CONFIG:Sanitize>:-Wno-maybe-uninitialized>")
endif()

set(REALM_SANITIZE "" CACHE STRING "Sanitizers to build with: 'address,undefined' or 'thread'")
option(REALM_PLAIN_KERNELS "Leave the sanitizers out of the CPU's kernels: what a server with a real model is tried with" OFF)
option(REALM_LIBFUZZER "Link fuzz targets with libFuzzer (needs clang) instead of the built-in driver" OFF)
option(REALM_WERROR "Stop at the first compiler warning" ON)

add_compile_options(-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
                    -Wstrict-prototypes -Wmissing-prototypes -Wvla
                    # Leaving the rest of a struct zero is how C says "as usual".
                    -Wno-missing-field-initializers)
if(REALM_WERROR)
    add_compile_options(-Werror)
endif()

# The C library's Linux interfaces. Empty, as `#define _GNU_SOURCE` in a file makes it, so that a file
# which also has that line does not redefine it.
add_compile_options(-D_GNU_SOURCE=)

# A multiplication and an addition are never fused behind our back: kernels that want FMA say so, and
# the scalar reference gives the same bits with every compiler and instruction set.
add_compile_options(-ffp-contract=off)

# gcc 12 for 64-bit ARM crashes on loops that look for the largest double with fmax; as a plain call it is
# not made a vector. No kernel uses these functions.
if(CMAKE_C_COMPILER_ID STREQUAL GNU AND CMAKE_C_COMPILER_VERSION VERSION_LESS 13 AND
   CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    add_compile_options(-fno-builtin-fmax -fno-builtin-fmaxf -fno-builtin-fmin -fno-builtin-fminf)
endif()

# What is not used of the Rust archive, most of it, is left out at link time.
add_compile_options(-ffunction-sections -fdata-sections)
if(APPLE)
    add_link_options(-Wl,-dead_strip)
else()
    add_link_options(-Wl,--gc-sections)
endif()

# The archive is 60 MB: lld links in a third of the time of the default linker. (A compiler for another
# machine looks for one with that machine's name, and has no archive to link.)
find_program(REALM_LLD NAMES ld.lld)
mark_as_advanced(REALM_LLD)
if(REALM_LLD AND NOT APPLE AND NOT CMAKE_CROSSCOMPILING)
    add_link_options(-fuse-ld=lld)
endif()

if(REALM_SANITIZE)
    add_compile_options(-fsanitize=${REALM_SANITIZE} -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${REALM_SANITIZE})
endif()

# libFuzzer is led by what code it reaches, so all of it reports that; only fuzz targets get its main.
if(REALM_LIBFUZZER)
    add_compile_options(-fsanitize=fuzzer-no-link)
    add_link_options(-fsanitize=fuzzer-no-link)
endif()
