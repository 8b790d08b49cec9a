# What a build hands on: the `realm` binary at the build's root, librealm.so, and the install target.
#
# librealm is every room but the command line, linked once more as a shared library that exports what
# include/realm marks REALM_API and nothing else, neither ours nor the Rust archive's.

include(CMakePackageConfigHelpers)

# The command line may come as a room of sources or as a finished executable.
if(TARGET realm_cli AND NOT TARGET realm)
    add_executable(realm $<TARGET_OBJECTS:realm_cli>)
    get_target_property(libraries realm_cli INTERFACE_LINK_LIBRARIES)
    if(libraries)
        target_link_libraries(realm PRIVATE ${libraries})
    endif()
    set_target_properties(realm PROPERTIES LINKER_LANGUAGE C)
endif()
if(TARGET realm)
    set_target_properties(realm PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
    if(NOT APPLE)
        # The CUDA plug-in, loaded at run time, finds what it calls back in the program itself.
        set_target_properties(realm PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
    endif()
    install(TARGETS realm RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

get_property(rooms GLOBAL PROPERTY REALM_ROOMS)
get_property(libraries GLOBAL PROPERTY REALM_LIBRARIES)
list(REMOVE_ITEM rooms cli)
list(REMOVE_DUPLICATES libraries)

# A sanitizer's run time and libFuzzer's belong to the program: such builds have no shared library.
if(rooms AND NOT REALM_SANITIZE AND NOT REALM_LIBFUZZER)
    set(objects)
    foreach(room IN LISTS rooms)
        list(APPEND objects $<TARGET_OBJECTS:realm_${room}>)
    endforeach()
    add_library(realm_shared SHARED ${objects})
    set_target_properties(realm_shared PROPERTIES
        OUTPUT_NAME realm LINKER_LANGUAGE C
        VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
        EXPORT_NAME realm)
    target_include_directories(realm_shared INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    target_link_libraries(realm_shared PRIVATE ${libraries})
    if(APPLE)
        target_link_options(realm_shared PRIVATE -Wl,-exported_symbol,_realm_*)
    else()
        target_link_options(realm_shared PRIVATE
            -Wl,--exclude-libs,ALL -Wl,--no-undefined
            -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/librealm.map)
        set_target_properties(realm_shared PROPERTIES LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/librealm.map)
    endif()
    install(TARGETS realm_shared EXPORT RealmTargets
            LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
    install(EXPORT RealmTargets NAMESPACE Realm:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Realm)
    configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/RealmConfig.cmake.in
        ${PROJECT_BINARY_DIR}/RealmConfig.cmake
        INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Realm)
    write_basic_package_version_file(${PROJECT_BINARY_DIR}/RealmConfigVersion.cmake
        COMPATIBILITY SameMinorVersion)
    install(FILES ${PROJECT_BINARY_DIR}/RealmConfig.cmake ${PROJECT_BINARY_DIR}/RealmConfigVersion.cmake
            DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Realm)
    # Relative, so that the installed tree may be moved (or put elsewhere by --prefix).
    file(RELATIVE_PATH REALM_PC_PREFIX
         /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
    configure_file(${PROJECT_SOURCE_DIR}/cmake/realm.pc.in ${PROJECT_BINARY_DIR}/realm.pc @ONLY)
    install(FILES ${PROJECT_BINARY_DIR}/realm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

install(DIRECTORY include/realm DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
# What a tenant's program compiles against, as it stands in guest/.
install(DIRECTORY guest/ DESTINATION ${CMAKE_INSTALL_DATADIR}/realm/guest
        FILES_MATCHING PATTERN "*.h" PATTERN "*.rs" PATTERN "Cargo.toml" PATTERN "target" EXCLUDE)
