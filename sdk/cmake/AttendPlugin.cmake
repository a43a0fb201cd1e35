# SPDX-License-Identifier: Apache-2.0
# attend_add_plugin(<name> SOURCES ... [KERNELS ...] [OUTPUT_DIRECTORY <dir>])
#   One plugin as a loadable module lib<prefix><name>: SOURCES are compiled once without instruction-set flags, KERNELS
#   once per entry of ATTEND_ISA_ENTRIES, with ATTEND_ISA set to the entry. Hidden visibility, one exported symbol, and
#   the checks: before the link no symbol of a kernel object is shared between entries, after it the exports and the
#   note are as they must be.
# attend_add_kernels(<target> <source>...)    compiles sources once per entry into <target>
# attend_test_plugin(<name>)                  registers `attend plugins verify` as a test when the tool offers it
include_guard(GLOBAL)

# In the cache, so that every folder of a project sees them, whichever one included this file.
set(ATTEND_CMAKE_DIR "${CMAKE_CURRENT_LIST_DIR}" CACHE INTERNAL "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(ATTEND_ISA_ENTRIES baseline avx2 avx512 CACHE INTERNAL "")
  set(ATTEND_FLAGS_baseline -march=x86-64-v2 CACHE INTERNAL "")
  set(ATTEND_FLAGS_avx2 -march=x86-64-v3 CACHE INTERNAL "")
  set(ATTEND_FLAGS_avx512 -march=x86-64-v4 -mprefer-vector-width=512 CACHE INTERNAL "")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(ATTEND_ISA_ENTRIES neon CACHE INTERNAL "")
  set(ATTEND_FLAGS_neon "" CACHE INTERNAL "")
else()
  message(FATAL_ERROR "attend: no instruction-set entries for processor ${CMAKE_SYSTEM_PROCESSOR}; accepted: x86_64, aarch64")
endif()

# What expands in sources that are compiled once: X(baseline) X(avx2) ...
string(REGEX REPLACE "([^;]+);?" "X(\\1)" ATTEND_FOR_EACH_ISA_DEFINITION "${ATTEND_ISA_ENTRIES}")
set(ATTEND_FOR_EACH_ISA_DEFINITION "${ATTEND_FOR_EACH_ISA_DEFINITION}" CACHE INTERNAL "")

function(attend_plugin_compile_options TARGET)
  set_target_properties(${TARGET} PROPERTIES C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF)
  target_compile_options(${TARGET} PRIVATE -fno-math-errno -fno-trapping-math -ffp-contract=fast
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-gnu-unique>)
  # An option, not a definition: CMake does not carry function-like macros as definitions.
  target_compile_options(${TARGET} PRIVATE "-DATTEND_FOR_EACH_ISA(X)=${ATTEND_FOR_EACH_ISA_DEFINITION}")
endfunction()

# What kernels of an entry are compiled with.
function(attend_kernel_options TARGET ENTRY)
  attend_plugin_compile_options(${TARGET})
  target_compile_definitions(${TARGET} PRIVATE ATTEND_ISA=${ENTRY} ATTEND_ISA_${ENTRY}=1)
  # Kernels are optimised in every build type: xsimd does not compile for AVX-512 at -O0 with gcc. The narrowest entry is
  # for processors that others left behind: a shorter build is worth more there.
  set(level -O3)
  if(ENTRY STREQUAL "baseline")
    set(level -O2)
  endif()
  target_compile_options(${TARGET} PRIVATE ${ATTEND_FLAGS_${ENTRY}}
    $<IF:$<CONFIG:Debug>,-O1,${level}> $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions$<SEMICOLON>-fno-rtti>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND ENTRY STREQUAL "avx512")
    target_compile_options(${TARGET} PRIVATE -mprefer-vector-width=512)
  endif()
  # The same source as its neighbours: under sanitizers the narrowest and the widest entry are enough, and a build is
  # a quarter shorter.
  if(ATTEND_SANITIZE AND ENTRY STREQUAL "avx2")
    target_compile_options(${TARGET} PRIVATE -fno-sanitize=all)
  endif()
endfunction()

# One object library per entry, so that each source keeps its own flags.
function(attend_add_kernels TARGET)
  cmake_parse_arguments(arg "" "" "SOURCES;INCLUDES;LINK" ${ARGN})
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "attend_add_kernels(${TARGET}): SOURCES is empty; it takes the files to compile per instruction set")
  endif()
  foreach(entry IN LISTS ATTEND_ISA_ENTRIES)
    set(objects ${TARGET}_${entry})
    add_library(${objects} OBJECT ${arg_SOURCES})
    attend_kernel_options(${objects} ${entry})
    target_include_directories(${objects} PRIVATE ${arg_INCLUDES})
    target_link_libraries(${objects} PRIVATE ${arg_LINK})
    target_sources(${TARGET} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
  attend_check_kernel_symbols(${TARGET})
endfunction()

# nm over the very objects that are linked; runs before the link, after every change of an object. Sanitizers add
# constructors and shared type names, so their builds skip it.
function(attend_check_kernel_symbols TARGET)
  if(ATTEND_SANITIZE OR CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    return()
  endif()
  foreach(entry IN LISTS ATTEND_ISA_ENTRIES)
    set(objects ${TARGET}_${entry})
    set(stamp "${CMAKE_CURRENT_BINARY_DIR}/${objects}.symbols-checked")
    add_custom_command(OUTPUT "${stamp}"
      COMMAND "${CMAKE_COMMAND}" "-DOBJECTS=$<JOIN:$<TARGET_OBJECTS:${objects}>,|>" -DENTRY=${entry} "-DNM=${CMAKE_NM}"
              "-DREADELF=${CMAKE_READELF}" "-DSTAMP=${stamp}" -P "${ATTEND_CMAKE_DIR}/CheckIsaSymbols.cmake"
      DEPENDS ${objects} $<TARGET_OBJECTS:${objects}> "${ATTEND_CMAKE_DIR}/CheckIsaSymbols.cmake"
      COMMENT "Checking symbols of ${objects}" VERBATIM)
    set_property(SOURCE "${stamp}" PROPERTY HEADER_FILE_ONLY ON)
    target_sources(${TARGET} PRIVATE "${stamp}")
  endforeach()
endfunction()

function(attend_add_plugin NAME)
  cmake_parse_arguments(arg "" "OUTPUT_DIRECTORY" "SOURCES;KERNELS" ${ARGN})
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "attend_add_plugin(${NAME}): SOURCES is empty; it takes the files that are compiled once, plugin.c or plugin.cpp among them")
  endif()
  add_library(${NAME} MODULE ${arg_SOURCES})
  attend_plugin_compile_options(${NAME})
  set_target_properties(${NAME} PROPERTIES PREFIX "libattend_")
  if(arg_OUTPUT_DIRECTORY)
    set_target_properties(${NAME} PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${arg_OUTPUT_DIRECTORY}")
  endif()
  target_link_libraries(${NAME} PRIVATE Attend::plugin)
  set(is_cpp FALSE)
  foreach(source IN LISTS arg_SOURCES arg_KERNELS)
    if(source MATCHES "\\.(cpp|cc|cxx)$")
      set(is_cpp TRUE)
    endif()
  endforeach()
  if(is_cpp)
    target_link_libraries(${NAME} PRIVATE Attend::plugin_cpp)
  endif()
  if(arg_KERNELS)
    attend_add_kernels(${NAME} SOURCES ${arg_KERNELS} LINK Attend::plugin Attend::plugin_cpp Attend::toolkit_headers)
    target_link_libraries(${NAME} PRIVATE Attend::toolkit)
    # C plugins link with the C++ compiler only where the engines need it; nothing of the C++ runtime is used by them.
  endif()
  target_link_options(${NAME} PRIVATE "LINKER:--version-script=${ATTEND_EXPORTS_SCRIPT}" LINKER:-z,defs LINKER:-z,now
    LINKER:-z,relro LINKER:-z,noexecstack LINKER:--exclude-libs,ALL LINKER:--build-id LINKER:--gc-sections)
  if(ATTEND_SANITIZE OR CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    # The sanitizer's runtime is resolved in the program that loads the plugin.
    target_link_options(${NAME} PRIVATE LINKER:-z,undefs)
  endif()
  set_target_properties(${NAME} PROPERTIES LINK_DEPENDS "${ATTEND_EXPORTS_SCRIPT}" BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "")
  add_custom_command(TARGET ${NAME} POST_BUILD
    COMMAND "${CMAKE_COMMAND}" "-DPLUGIN=$<TARGET_FILE:${NAME}>" "-DNM=${CMAKE_NM}" "-DREADELF=${CMAKE_READELF}"
            -P "${ATTEND_CMAKE_DIR}/CheckPlugin.cmake" VERBATIM)
endfunction()

function(attend_test_plugin NAME)
  find_program(ATTEND_TOOL attend)
  if(ATTEND_TOOL)
    add_test(NAME "attend_${NAME}" COMMAND "${ATTEND_TOOL}" --plugin "$<TARGET_FILE:${NAME}>" plugins why "$<TARGET_FILE_NAME:${NAME}>")
  endif()
endfunction()
