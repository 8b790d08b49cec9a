# Tests in CTest.
#
# realm_test(NAME <name> SOURCES <files...> [DEPENDS <rooms and libraries...>] [LABELS <labels...>]
#            [ARGS <arguments...>] [TIMEOUT <seconds>])
#   A cmocka program test_<name>, the CTest test unit/<name>, labelled `unit`. Label `tsan` as well what
#   has threads: scripts/test.sh runs those under ThreadSanitizer. C code finds the checkout's root in
#   REALM_SOURCE_DIR (a string).
#
# realm_fuzz(NAME <name> SOURCES <files...> [DEPENDS ...] [CORPUS <folder>] [SECONDS <n, default 5>])
#   A program fuzz_<name> around LLVMFuzzerTestOneInput, the CTest test fuzz/<name>, labelled `fuzz`.
#   With -DREALM_LIBFUZZER=ON and clang it is a libFuzzer target to leave running; otherwise a driver
#   (fuzz_driver.c) replays the corpus and then mutates it for a bounded time with a fixed seed.

#
# realm_test_on_cuda(<name>)
#   Runs the unit test <name> a second time, on a CUDA device if there is one.
#
# realm_test_on_split(<name>)
#   Runs it again with the layers of the model divided between two backends (tests/support/test_device.h).
#
# Building the target realm_tests_unit, realm_tests_fuzz or realm_tests_tsan builds the tests of that
# label and no more.

foreach(label IN ITEMS unit fuzz tsan)
    add_custom_target(realm_tests_${label})
endforeach()

set(REALM_TEST_ENVIRONMENT
    "ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=0"
    "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1"
    "TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=${PROJECT_SOURCE_DIR}/cmake/tsan.supp"
    "LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/cmake/lsan.supp:print_suppressions=0"
    "REALM_SOURCE_DIR=${PROJECT_SOURCE_DIR}"
    "REALM_BUILD_DIR=${PROJECT_BINARY_DIR}"
    "REALM_CUDA_PLUGIN=${PROJECT_BINARY_DIR}/librealm_cuda.so")
if(CMAKE_CROSSCOMPILING_EMULATOR)
    list(APPEND REALM_TEST_ENVIRONMENT "REALM_TEST_EMULATED=1")
endif()

function(realm_test)
    cmake_parse_arguments(PARSE_ARGV 0 test "" "NAME;TIMEOUT" "SOURCES;DEPENDS;LABELS;ARGS")
    if(test_UNPARSED_ARGUMENTS OR NOT test_NAME OR NOT test_SOURCES)
        message(FATAL_ERROR "realm_test(NAME <name> SOURCES <files...> [DEPENDS ...] [LABELS ...])")
    endif()
    if(NOT BUILD_TESTING)
        return()
    endif()
    if(NOT test_TIMEOUT) # for what hangs: a slow machine, and what waits a minute and says why, come to their ends
        set(test_TIMEOUT 600)
    endif()
    if(CMAKE_CROSSCOMPILING_EMULATOR)
        math(EXPR test_TIMEOUT "${test_TIMEOUT} * 5")
    endif()

    add_executable(test_${test_NAME} ${test_SOURCES})
    target_include_directories(test_${test_NAME} PRIVATE
        ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/tests)
    target_compile_definitions(test_${test_NAME} PRIVATE REALM_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    # cmocka's macros cast everything to one integer type.
    target_compile_options(test_${test_NAME} PRIVATE -Wno-conversion)
    realm_link(test_${test_NAME} PRIVATE ${test_DEPENDS} realm::cmocka)

    add_dependencies(realm_tests_unit test_${test_NAME})
    if("tsan" IN_LIST test_LABELS)
        add_dependencies(realm_tests_tsan test_${test_NAME})
    endif()
    add_test(NAME unit/${test_NAME} COMMAND test_${test_NAME} ${test_ARGS})
    set_tests_properties(unit/${test_NAME} PROPERTIES
        LABELS "unit;${test_LABELS}" TIMEOUT ${test_TIMEOUT} ENVIRONMENT "${REALM_TEST_ENVIRONMENT}"
        SKIP_RETURN_CODE 77)
endfunction()

# The unit test <name> once more on a CUDA device, as unit/<name>_cuda: skipped where there is none.
function(realm_test_on_cuda name)
    if(NOT BUILD_TESTING OR NOT TARGET realm_cuda)
        return()
    endif()
    add_dependencies(test_${name} realm_cuda)
    add_test(NAME unit/${name}_cuda COMMAND test_${name})
    set_tests_properties(unit/${name}_cuda PROPERTIES
        LABELS unit TIMEOUT 600 ENVIRONMENT "${REALM_TEST_ENVIRONMENT};REALM_TEST_DEVICE=cuda"
        SKIP_RETURN_CODE 77)
endfunction()

# The unit test <name> once more on a model divided between two backends, as unit/<name>_split.
function(realm_test_on_split name)
    if(NOT BUILD_TESTING)
        return()
    endif()
    add_test(NAME unit/${name}_split COMMAND test_${name})
    set_tests_properties(unit/${name}_split PROPERTIES
        LABELS unit TIMEOUT 600 ENVIRONMENT "${REALM_TEST_ENVIRONMENT};REALM_TEST_DEVICE=split")
endfunction()

function(realm_fuzz)
    cmake_parse_arguments(PARSE_ARGV 0 fuzz "" "NAME;CORPUS;SECONDS" "SOURCES;DEPENDS")
    if(fuzz_UNPARSED_ARGUMENTS OR NOT fuzz_NAME OR NOT fuzz_SOURCES)
        message(FATAL_ERROR "realm_fuzz(NAME <name> SOURCES <files...> [DEPENDS ...] [CORPUS <folder>])")
    endif()
    if(NOT BUILD_TESTING)
        return()
    endif()
    if(NOT fuzz_SECONDS)
        set(fuzz_SECONDS 5)
    endif()
    set(corpus)
    if(fuzz_CORPUS)
        get_filename_component(corpus ${fuzz_CORPUS} ABSOLUTE)
    endif()
    math(EXPR timeout "${fuzz_SECONDS} * 10 + 60")

    add_executable(fuzz_${fuzz_NAME} ${fuzz_SOURCES})
    target_include_directories(fuzz_${fuzz_NAME} PRIVATE
        ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/tests)
    # The entry point's name is libFuzzer's and has no header.
    target_compile_options(fuzz_${fuzz_NAME} PRIVATE -Wno-missing-prototypes)
    realm_link(fuzz_${fuzz_NAME} PRIVATE ${fuzz_DEPENDS})

    add_dependencies(realm_tests_fuzz fuzz_${fuzz_NAME})
    if(REALM_LIBFUZZER)
        if(NOT CMAKE_C_COMPILER_ID MATCHES Clang)
            message(FATAL_ERROR "REALM_LIBFUZZER needs clang: configure with -DCMAKE_C_COMPILER=clang")
        endif()
        target_link_options(fuzz_${fuzz_NAME} PRIVATE -fsanitize=fuzzer)
        # New inputs go to a folder of the build; the committed corpus is only read.
        set(found ${CMAKE_CURRENT_BINARY_DIR}/fuzz_${fuzz_NAME}.found)
        file(MAKE_DIRECTORY ${found})
        add_test(NAME fuzz/${fuzz_NAME}
                 COMMAND fuzz_${fuzz_NAME} -max_total_time=${fuzz_SECONDS} -timeout=10 ${found} ${corpus})
    else()
        target_sources(fuzz_${fuzz_NAME} PRIVATE ${PROJECT_SOURCE_DIR}/cmake/fuzz_driver.c)
        add_test(NAME fuzz/${fuzz_NAME} COMMAND fuzz_${fuzz_NAME} ${fuzz_SECONDS} ${corpus})
    endif()
    set_tests_properties(fuzz/${fuzz_NAME} PROPERTIES
        LABELS fuzz TIMEOUT ${timeout} ENVIRONMENT "${REALM_TEST_ENVIRONMENT}")
endfunction()
