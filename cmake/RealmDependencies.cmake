# The libraries Realm stands on, as targets named realm::<library>. Each is defined once, here; a room
# names it in DEPENDS. One that is missing is a clear error at the room that first needs it, not here,
# so that a checkout with only some rooms builds with only some libraries.

find_package(PkgConfig REQUIRED)
find_package(Python3 COMPONENTS Interpreter REQUIRED)
find_package(Threads REQUIRED)

# realm_library(<name> <pkg-config module> <Debian package>)
function(realm_library name module package)
    pkg_check_modules(REALM_${name} QUIET IMPORTED_TARGET GLOBAL ${module})
    if(REALM_${name}_FOUND)
        add_library(realm::${name} ALIAS PkgConfig::REALM_${name})
    else()
        set_property(GLOBAL PROPERTY REALM_MISSING_realm::${name}
                     "${name} is missing; on Debian: apt-get install ${package}")
    endif()
endfunction()

realm_library(jansson jansson libjansson-dev)
realm_library(pcre2 libpcre2-8 libpcre2-dev)
realm_library(utf8proc libutf8proc libutf8proc-dev)
realm_library(xxhash libxxhash libxxhash-dev)
realm_library(yaml yaml-0.1 libyaml-dev)
realm_library(cmocka cmocka libcmocka-dev)
realm_library(uv libuv libuv1-dev)
realm_library(nghttp2 libnghttp2 libnghttp2-dev)
realm_library(openssl openssl libssl-dev)
realm_library(curl libcurl libcurl4-openssl-dev)
realm_library(sqlite3 sqlite3 libsqlite3-dev)
realm_library(protobuf_c libprotobuf-c libprotobuf-c-dev)
realm_library(zlib zlib zlib1g-dev)

# llhttp comes as C sources in Debian, in a package that is named after its other users. They are compiled as
# they are, under the parser's strict rules and without our warnings.
find_path(REALM_LLHTTP_INCLUDE llhttp.h HINTS /usr/share/include/llhttp)
find_path(REALM_LLHTTP_SOURCE llhttp.c HINTS /usr/share/llhttp)
mark_as_advanced(REALM_LLHTTP_INCLUDE REALM_LLHTTP_SOURCE)
if(REALM_LLHTTP_INCLUDE AND REALM_LLHTTP_SOURCE)
    add_library(realm_llhttp STATIC EXCLUDE_FROM_ALL ${REALM_LLHTTP_SOURCE}/llhttp.c
                ${REALM_LLHTTP_SOURCE}/api.c ${REALM_LLHTTP_SOURCE}/http.c)
    target_include_directories(realm_llhttp SYSTEM PUBLIC ${REALM_LLHTTP_INCLUDE})
    target_compile_definitions(realm_llhttp PUBLIC LLHTTP_STRICT_MODE=1)
    target_compile_options(realm_llhttp PRIVATE -w)
    add_library(realm::llhttp ALIAS realm_llhttp)
else()
    set_property(GLOBAL PROPERTY REALM_MISSING_realm::llhttp
                 "llhttp is missing; on Debian: apt-get install node-llhttp")
endif()

# Debian's mimalloc has a CMake package and no pkg-config file.
find_package(mimalloc QUIET)
if(TARGET mimalloc)
    add_library(realm::mimalloc ALIAS mimalloc)
else()
    set_property(GLOBAL PROPERTY REALM_MISSING_realm::mimalloc
                 "mimalloc is missing; on Debian: apt-get install libmimalloc-dev")
endif()

# Nor has wslay a pkg-config file.
find_package(wslay QUIET)
if(TARGET wslay)
    add_library(realm::wslay ALIAS wslay)
else()
    set_property(GLOBAL PROPERTY REALM_MISSING_realm::wslay
                 "wslay is missing; on Debian: apt-get install libwslay-dev")
endif()

# realm::threads, realm::math for what uses <math.h>, realm::dl for what loads plug-ins.
add_library(realm_dl INTERFACE)
target_link_libraries(realm_dl INTERFACE ${CMAKE_DL_LIBS})
add_library(realm::dl ALIAS realm_dl)
add_library(realm_threads INTERFACE)
target_link_libraries(realm_threads INTERFACE Threads::Threads)
add_library(realm::threads ALIAS realm_threads)
add_library(realm_math INTERFACE)
target_link_libraries(realm_math INTERFACE m)
add_library(realm::math ALIAS realm_math)

# realm::deps: Wasmtime, llguidance and MiniJinja, packaged by deps/. Built here, at configure time,
# so that its headers are there before anything compiles; it is in the cache after the first time.
option(REALM_WITHOUT_DEPS
       "Build the rooms below the sandbox alone, without grammars and chat templates, where deps/ cannot be built" OFF)
if(REALM_WITHOUT_DEPS)
    message(STATUS "deps: left out, and with it sandbox, library, the realm program, guests and examples")
    set_property(GLOBAL PROPERTY REALM_MISSING_realm::deps "this build leaves it out (REALM_WITHOUT_DEPS)")
    return()
endif()
set(REALM_DEPS_DIR "" CACHE PATH "A finished build of deps/ to use instead of building it")
set(realm_deps_dir "${REALM_DEPS_DIR}")
if(NOT realm_deps_dir)
    file(GLOB_RECURSE realm_deps_inputs CONFIGURE_DEPENDS
         ${CMAKE_CURRENT_SOURCE_DIR}/deps/src/*.rs ${CMAKE_CURRENT_SOURCE_DIR}/deps/include/*.h)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
                 ${realm_deps_inputs} ${CMAKE_CURRENT_SOURCE_DIR}/deps/Cargo.lock
                 ${CMAKE_CURRENT_SOURCE_DIR}/deps/Cargo.toml)
    execute_process(COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/deps/build.sh
                    OUTPUT_VARIABLE realm_deps_dir OUTPUT_STRIP_TRAILING_WHITESPACE
                    RESULT_VARIABLE realm_deps_result)
    if(NOT realm_deps_result EQUAL 0)
        message(FATAL_ERROR "deps/ could not be built; its reason is above.")
    endif()
endif()
message(STATUS "deps: ${realm_deps_dir}")

add_library(realm_deps STATIC IMPORTED GLOBAL)
set_target_properties(realm_deps PROPERTIES
    IMPORTED_LOCATION ${realm_deps_dir}/lib/librealm_deps.a
    INTERFACE_INCLUDE_DIRECTORIES ${realm_deps_dir}/include
    INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};m;$<$<PLATFORM_ID:Linux>:rt>;$<$<PLATFORM_ID:Linux>:gcc_s>")
add_library(realm::deps ALIAS realm_deps)
