# The CUDA plug-in's compiler and how its kernels are compiled.
#
#   REALM_CUDA=AUTO   built if a toolkit of CUDA 13 is there: the system's, or the one that
#                     scripts/cuda_toolkit.sh keeps in REALM_CACHE
#   REALM_CUDA=ON     the toolkit is fetched if it is not there; an error if that fails
#   REALM_CUDA=OFF    not built
#
# nvcc is called directly: CMake's own CUDA language wants a whole installation, which the vendor's
# wheels are not. Neither a device nor a driver is needed to build, and the driver's library is not
# linked: the static run time looks for it when the plug-in is opened.

set(REALM_CUDA AUTO CACHE STRING "Build the CUDA plug-in: AUTO, ON or OFF")
set_property(CACHE REALM_CUDA PROPERTY STRINGS AUTO ON OFF)
# Code for 8.0 is what 8.6 and 8.9 run: the kernels use nothing newer of theirs. 9.0 has its own, for
# launches that overlap and, with the a, for its matrix instructions (stream.cu), which no other device has.
# What comes after compiles 9.0's intermediate code without them when it is first used.
set(REALM_CUDA_ARCHITECTURES "80;90a" CACHE STRING "Compute capabilities to compile for, the newest also as PTX")
set(REALM_CUDA_COMPILER "")

if(NOT REALM_CUDA STREQUAL OFF AND NOT CMAKE_CROSSCOMPILING AND NOT REALM_SANITIZE AND NOT APPLE)
    set(realm_cuda_how --where)
    if(REALM_CUDA STREQUAL ON)
        set(realm_cuda_how)
    endif()
    execute_process(COMMAND ${PROJECT_SOURCE_DIR}/scripts/cuda_toolkit.sh ${realm_cuda_how}
                    OUTPUT_VARIABLE realm_cuda_root OUTPUT_STRIP_TRAILING_WHITESPACE
                    RESULT_VARIABLE realm_cuda_result)
    if(realm_cuda_result EQUAL 0)
        set(REALM_CUDA_COMPILER ${realm_cuda_root}/bin/nvcc)
        message(STATUS "CUDA: ${realm_cuda_root}")
    elseif(REALM_CUDA STREQUAL ON)
        message(FATAL_ERROR "REALM_CUDA is ON and there is no CUDA toolkit; the reason is above.")
    else()
        message(STATUS "CUDA: no toolkit, the plug-in is left out (scripts/cuda_toolkit.sh fetches one)")
    endif()
endif()

if(REALM_CUDA_COMPILER)
    find_library(REALM_CUDA_RUNTIME cudart_static NO_DEFAULT_PATH
                 PATHS ${realm_cuda_root}/lib64 ${realm_cuda_root}/lib ${realm_cuda_root}/targets/x86_64-linux/lib)
    set(realm_cuda_flags -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-fno-exceptions,-fno-threadsafe-statics,-Wall -I${PROJECT_SOURCE_DIR}/src
        -I${PROJECT_SOURCE_DIR}/include)
    if(REALM_WERROR)
        list(APPEND realm_cuda_flags -Werror all-warnings)
    endif()
    foreach(architecture IN LISTS REALM_CUDA_ARCHITECTURES)
        list(APPEND realm_cuda_flags -gencode arch=compute_${architecture},code=sm_${architecture})
        set(realm_cuda_newest ${architecture})
    endforeach()
    string(REPLACE "a" "" realm_cuda_newest ${realm_cuda_newest})
    list(APPEND realm_cuda_flags
         -gencode arch=compute_${realm_cuda_newest},code=compute_${realm_cuda_newest})
endif()

# realm_cuda_object(<variable> <source> <object's name> [flags...]): compiles, appends to the variable.
function(realm_cuda_object variable source name)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
    add_custom_command(OUTPUT ${object}
        COMMAND ${CMAKE_C_COMPILER_LAUNCHER} ${REALM_CUDA_COMPILER} ${realm_cuda_flags} ${ARGN}
                -MD -MF ${object}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
        DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source} DEPFILE ${object}.d
        COMMENT "CUDA ${name}" VERBATIM)
    set(${variable} ${${variable}} ${object} PARENT_SCOPE)
endfunction()
