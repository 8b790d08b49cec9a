# realm_proto(<target> SOURCE <folder> FILES <files...>)
#
# Makes the static library <target> of protobuf-c's C code for .proto files, whose names are relative to the
# folder, as their imports are. C code includes "realm/v1/inference.pb-c.h"; nothing generated is committed.
# The target's property REALM_DESCRIPTORS is a file with the set of descriptors of all of them, for
# reflection.
#
# What protobuf-c 1.4 compiles is a version with the same bytes on the wire, for two reasons. It knows nothing
# of proto3's `optional`, which is a oneof of one field and a mark: `optional T x = 1;` becomes that oneof,
# named has_x. And its strings end at a NUL, which a text may hold: they become `bytes`.

find_program(REALM_PROTOC_C protoc-c)
mark_as_advanced(REALM_PROTOC_C)

function(realm_proto target)
    cmake_parse_arguments(PARSE_ARGV 1 proto "" "SOURCE" "FILES")
    if(proto_UNPARSED_ARGUMENTS OR NOT proto_SOURCE OR NOT proto_FILES)
        message(FATAL_ERROR "realm_proto(<target> SOURCE <folder> FILES <files...>)")
    endif()
    if(NOT REALM_PROTOC_C)
        message(FATAL_ERROR "${target} needs protoc-c; on Debian: apt-get install protobuf-c-compiler")
    endif()
    get_filename_component(source ${proto_SOURCE} ABSOLUTE)
    set(plain ${CMAKE_CURRENT_BINARY_DIR}/${target}.plain)
    set(output ${CMAKE_CURRENT_BINARY_DIR}/${target}.code)
    set(descriptors ${CMAKE_CURRENT_BINARY_DIR}/${target}.descriptors)
    file(MAKE_DIRECTORY ${output})

    set(inputs)
    set(sources)
    foreach(file IN LISTS proto_FILES)
        string(REGEX REPLACE "\\.proto$" "" name ${file})
        get_filename_component(folder ${plain}/${file} DIRECTORY)
        list(APPEND inputs ${source}/${file})
        add_custom_command(OUTPUT ${output}/${name}.pb-c.c ${output}/${name}.pb-c.h
            COMMAND ${CMAKE_COMMAND} -E make_directory ${folder}
            COMMAND sed -E -e "s/^( *)optional +([A-Za-z0-9_.]+) +([a-z0-9_]+) *=([^;]*);/\\1oneof has_\\3 { \\2 \\3 =\\4; }/"
                    -e "s/^( *|.*[ {])string +([a-z0-9_]+ *=)/\\1bytes \\2/" ${source}/${file} > ${plain}/${file}
            COMMAND ${REALM_PROTOC_C} --proto_path=${plain} --c_out=${output} ${file}
            DEPENDS ${source}/${file} COMMENT "Compiling ${file}" VERBATIM)
        list(APPEND sources ${output}/${name}.pb-c.c)
    endforeach()
    add_custom_command(OUTPUT ${descriptors}
        COMMAND ${REALM_PROTOC_C} --proto_path=${source} --include_imports
                --descriptor_set_out=${descriptors} ${proto_FILES}
        DEPENDS ${inputs} COMMENT "Describing ${target}" VERBATIM)

    add_library(${target} STATIC EXCLUDE_FROM_ALL ${sources} ${descriptors})
    target_include_directories(${target} SYSTEM PUBLIC ${output})
    target_compile_options(${target} PRIVATE -w)
    realm_link(${target} PUBLIC realm::protobuf_c)
    set_target_properties(${target} PROPERTIES REALM_DESCRIPTORS ${descriptors})
endfunction()
