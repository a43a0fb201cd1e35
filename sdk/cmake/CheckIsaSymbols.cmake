# SPDX-License-Identifier: Apache-2.0
# Fails if an object compiled for one instruction set defines an external symbol that another set's object could
# define too: the linker keeps any one copy, and an old CPU would run wide code. Accepted are symbols that carry the
# entry: namespace attend::<entry> (6attend<n><entry>), the renamed xsimd (<n>xsimd_<entry>), or the suffix _<entry>.
# Usage: cmake -DOBJECTS=a.o|b.o -DENTRY=avx2 -DNM=nm -DREADELF=readelf [-DSTAMP=file] -P CheckIsaSymbols.cmake
string(REPLACE "|" ";" objects "${OBJECTS}")
string(LENGTH "${ENTRY}" entry_length)
string(LENGTH "xsimd_${ENTRY}" xsimd_length)
set(accepted "6attend${entry_length}${ENTRY}|${xsimd_length}xsimd_${ENTRY}|_${ENTRY}$")
set(problems "")
foreach(object IN LISTS objects)
  execute_process(COMMAND "${NM}" --defined-only --extern-only --format=posix "${object}"
    OUTPUT_VARIABLE listing RESULT_VARIABLE status ERROR_VARIABLE text)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${NM} ${object}: ${text}")
  endif()
  string(REPLACE "\n" ";" lines "${listing}")
  foreach(line IN LISTS lines)
    if(line MATCHES "^([^ ]+) ([A-Za-z]) ")
      set(symbol "${CMAKE_MATCH_1}")
      if(NOT symbol MATCHES "${accepted}" AND NOT symbol MATCHES "^DW\\.ref\\.")
        string(APPEND problems "  ${object}: ${symbol} (${CMAKE_MATCH_2}) does not carry the entry ${ENTRY}\n")
      endif()
    endif()
  endforeach()
  execute_process(COMMAND "${READELF}" -SW "${object}" OUTPUT_VARIABLE sections RESULT_VARIABLE status)
  foreach(section .init_array .ctors .tbss .tdata)
    if(sections MATCHES " \\${section}[ .]")
      string(APPEND problems "  ${object}: section ${section} (a global with a run-time initialiser, or thread_local)\n")
    endif()
  endforeach()
endforeach()
if(problems)
  message(FATAL_ERROR "symbols shared between instruction sets, entry ${ENTRY}:\n${problems}"
    "Put the code into namespace attend::ATTEND_ISA, or name C functions with ATTEND_KERNEL().")
endif()
if(STAMP)
  file(WRITE "${STAMP}" "")
endif()
