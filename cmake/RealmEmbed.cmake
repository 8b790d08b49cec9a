# realm_embed(<target> NAME <symbol> FILE <path>)
#
# Puts a file's bytes into <target> as
#     extern const unsigned char <symbol>[];      16-byte aligned, followed by a zero byte
#     extern const size_t <symbol>_size;          without that zero
# The file may be the output of a custom command of the same folder, or of a realm_guest anywhere. The
# assembler reads it (.incbin), which takes no time at any size and works with gcc and clang on ELF and
# Mach-O.

function(realm_embed target)
    cmake_parse_arguments(PARSE_ARGV 1 embed "" "NAME;FILE" "")
    if(embed_UNPARSED_ARGUMENTS OR NOT embed_NAME OR NOT embed_FILE)
        message(FATAL_ERROR "realm_embed(<target> NAME <symbol> FILE <path>)")
    endif()
    get_filename_component(file ${embed_FILE} ABSOLUTE)
    set(stub ${CMAKE_CURRENT_BINARY_DIR}/embed_${embed_NAME}.c)
    set(name ${embed_NAME})
    configure_file(${PROJECT_SOURCE_DIR}/cmake/embed.c.in ${stub} @ONLY)
    set_source_files_properties(${stub} PROPERTIES OBJECT_DEPENDS ${file})
    target_sources(${target} PRIVATE ${stub})

    # A guest made in another folder is known to this one only by its target.
    get_filename_component(guest ${file} NAME_WE)
    if(file STREQUAL ${PROJECT_BINARY_DIR}/guest/${guest}.wasm)
        set_source_files_properties(${file} PROPERTIES GENERATED TRUE)
        if(TARGET guest_${guest})
            add_dependencies(${target} guest_${guest})
        else()
            cmake_language(EVAL CODE
                "cmake_language(DEFER DIRECTORY [[${PROJECT_SOURCE_DIR}]] CALL add_dependencies ${target} guest_${guest})")
        endif()
    endif()
endfunction()
