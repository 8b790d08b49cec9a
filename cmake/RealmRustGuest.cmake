# realm_rust_guest(NAME <name> SOURCE <file.rs>)
#
# Compiles a Rust program against guest/rust to <build>/guest/<name>.wasm, with rustc alone: the guest crate
# has no dependencies. The compiler is any that has the wasm32-unknown-unknown target; the one first in PATH
# often lacks it while the system's has it (Debian: rustc and libstd-rust-dev-wasm32).

function(realm_find_wasm_rustc)
    if(DEFINED CACHE{REALM_WASM_RUSTC})
        return()
    endif()
    foreach(candidate IN ITEMS "$ENV{REALM_WASM_RUSTC}" rustc /usr/bin/rustc /usr/local/bin/rustc)
        if(candidate STREQUAL "")
            continue()
        endif()
        execute_process(COMMAND ${candidate} --print target-libdir --target wasm32-unknown-unknown
            OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
        if(NOT failed AND EXISTS "${folder}")
            set(REALM_WASM_RUSTC ${candidate} CACHE FILEPATH "rustc with the wasm32-unknown-unknown target")
            return()
        endif()
    endforeach()
    message(FATAL_ERROR "no rustc has the target wasm32-unknown-unknown; on Debian: "
                        "apt-get install rustc libstd-rust-dev-wasm32")
endfunction()

function(realm_rust_guest)
    cmake_parse_arguments(PARSE_ARGV 0 guest "" "NAME;SOURCE" "")
    realm_find_wasm_rustc()
    get_filename_component(source ${guest_SOURCE} ABSOLUTE)
    set(folder ${PROJECT_BINARY_DIR}/guest)
    set(crate ${folder}/librealm_guest.rlib)
    set(flags --edition 2021 --target wasm32-unknown-unknown -C opt-level=2 -C panic=abort -C strip=symbols)
    if(NOT TARGET guest_rust_crate)
        file(GLOB crate_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/guest/rust/src/*.rs)
        file(MAKE_DIRECTORY ${folder})
        add_custom_command(OUTPUT ${crate}
            COMMAND ${REALM_WASM_RUSTC} ${flags} --crate-type rlib --crate-name realm_guest
                    -o ${crate} ${PROJECT_SOURCE_DIR}/guest/rust/src/lib.rs
            DEPENDS ${crate_sources} COMMENT "Compiling the guest crate for Rust" VERBATIM)
        add_custom_target(guest_rust_crate DEPENDS ${crate})
    endif()
    set(output ${folder}/${guest_NAME}.wasm)
    add_custom_command(OUTPUT ${output}
        COMMAND ${REALM_WASM_RUSTC} ${flags} --crate-type cdylib --crate-name ${guest_NAME}
                --extern realm_guest=${crate} -o ${output} ${source}
        DEPENDS ${source} ${crate} COMMENT "Compiling guest ${guest_NAME}.wasm (Rust)" VERBATIM)
    add_custom_target(guest_${guest_NAME} ALL DEPENDS ${output})
    add_dependencies(guest_${guest_NAME} guest_rust_crate)
    set_target_properties(guest_${guest_NAME} PROPERTIES REALM_GUEST_FILE ${output})
endfunction()
