# realm_room(NAME <name> SOURCES <files...> [DEPENDS <rooms and libraries...>] [PROGRAM_ONLY])
#
# Makes the static library realm_<name> of src/<name>. DEPENDS takes rooms by their short name ("base")
# and libraries as targets ("realm::jansson"); both are passed on to whoever depends on the room. Code
# includes "base/arena.h" from src/ and "realm/status.h" from include/.
#
# Every room is also part of librealm, see RealmInstall.cmake, unless it is of use to the realm program alone
# (PROGRAM_ONLY).

set_property(GLOBAL PROPERTY REALM_ROOMS "")
set_property(GLOBAL PROPERTY REALM_PROGRAM_ROOMS "")
set_property(GLOBAL PROPERTY REALM_LIBRARIES "")

# Links target with rooms by short name and with libraries by target name.
function(realm_link target scope)
    foreach(item IN LISTS ARGN)
        if(TARGET realm_${item})
            target_link_libraries(${target} ${scope} realm_${item})
            continue()
        endif()
        get_property(missing GLOBAL PROPERTY REALM_MISSING_${item})
        if(missing)
            message(FATAL_ERROR "${target} needs ${item}: ${missing}")
        endif()
        target_link_libraries(${target} ${scope} ${item})
    endforeach()
endfunction()

function(realm_room)
    cmake_parse_arguments(PARSE_ARGV 0 room "PROGRAM_ONLY" "NAME" "SOURCES;DEPENDS")
    if(room_UNPARSED_ARGUMENTS OR NOT room_NAME OR NOT room_SOURCES)
        message(FATAL_ERROR "realm_room(NAME <name> SOURCES <files...> [DEPENDS <rooms and libraries...>])")
    endif()

    add_library(realm_${room_NAME} STATIC ${room_SOURCES})
    target_include_directories(realm_${room_NAME} PUBLIC
        ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
    realm_link(realm_${room_NAME} PUBLIC ${room_DEPENDS})

    if(room_PROGRAM_ONLY)
        set_property(GLOBAL APPEND PROPERTY REALM_PROGRAM_ROOMS ${room_NAME})
        return()
    endif()
    set_property(GLOBAL APPEND PROPERTY REALM_ROOMS ${room_NAME})
    foreach(item IN LISTS room_DEPENDS)
        if(NOT TARGET realm_${item})
            set_property(GLOBAL APPEND PROPERTY REALM_LIBRARIES ${item})
        endif()
    endforeach()
endfunction()
