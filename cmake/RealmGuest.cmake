# realm_guest(NAME <name> SOURCES <files...> [WASM64] [INCLUDES <folders...>] [OPTIONS <flags...>])
#
# Compiles C to a WebAssembly module <build>/guest/<name>.wasm with clang, whatever compiles the host.
# Makes the target guest_<name>; its property REALM_GUEST_FILE is the module's path. guest/include is
# always searched. The flags are those a tenant is told to use, so that what is tested is what they get.

find_program(REALM_CLANG NAMES clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14)
mark_as_advanced(REALM_CLANG)

function(realm_guest)
    cmake_parse_arguments(PARSE_ARGV 0 guest "WASM64" "NAME" "SOURCES;INCLUDES;OPTIONS")
    if(guest_UNPARSED_ARGUMENTS OR NOT guest_NAME OR NOT guest_SOURCES)
        message(FATAL_ERROR "realm_guest(NAME <name> SOURCES <files...> [WASM64] [INCLUDES ...] [OPTIONS ...])")
    endif()
    if(NOT REALM_CLANG)
        message(FATAL_ERROR "guest ${guest_NAME} needs clang and lld; on Debian: apt-get install clang lld")
    endif()

    # clang 14 fails to select instructions for vectors of a 64-bit memory's programs: no SIMD there.
    set(arch wasm32)
    set(simd -msimd128)
    if(guest_WASM64)
        set(arch wasm64)
        set(simd)
    endif()

    set(sources)
    foreach(source IN LISTS guest_SOURCES)
        get_filename_component(source ${source} ABSOLUTE)
        list(APPEND sources ${source})
    endforeach()
    set(includes)
    foreach(folder IN LISTS guest_INCLUDES)
        get_filename_component(folder ${folder} ABSOLUTE)
        list(APPEND includes -I${folder})
    endforeach()

    set(output ${PROJECT_BINARY_DIR}/guest/${guest_NAME}.wasm)
    file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/guest)
    file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/guest/*.h)

    # --stack-first: a stack that runs over traps at address zero instead of writing over the data.
    # -mbulk-memory: memcpy and memset are instructions, so that no libc is needed for them.
    add_custom_command(OUTPUT ${output}
        COMMAND ${REALM_CLANG} --target=${arch} -std=c17 -O2 -Wall -Wextra -Werror
                -ffreestanding -nostdlib -fvisibility=hidden
                -mbulk-memory -msign-ext -mnontrapping-fptoint ${simd}
                -Wl,--no-entry -Wl,--stack-first -Wl,-z,stack-size=65536 -Wl,--strip-all
                -I${PROJECT_SOURCE_DIR}/guest/include ${includes} ${guest_OPTIONS}
                -o ${output} ${sources}
        DEPENDS ${sources} ${headers}
        COMMENT "Compiling guest ${guest_NAME}.wasm (${arch})" VERBATIM COMMAND_EXPAND_LISTS)

    add_custom_target(guest_${guest_NAME} ALL DEPENDS ${output})
    set_target_properties(guest_${guest_NAME} PROPERTIES REALM_GUEST_FILE ${output})
endfunction()
