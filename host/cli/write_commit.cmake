# SPDX-License-Identifier: Apache-2.0
# Writes HEADER with the commit of the tree SOURCE, only if that changes it, so that nothing is rebuilt for nothing.
# cmake -DGIT=... -DSOURCE=... -DHEADER=... -P write_commit.cmake
set(commit "unknown")
if(GIT AND EXISTS "${GIT}")
  execute_process(COMMAND "${GIT}" -C "${SOURCE}" rev-parse --short=12 HEAD OUTPUT_VARIABLE found
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
  if(status EQUAL 0 AND found)
    set(commit "${found}")
  endif()
endif()
set(text "// Written by the build.\n#define ATTEND_COMMIT \"${commit}\"\n")
set(before "")
if(EXISTS "${HEADER}")
  file(READ "${HEADER}" before)
endif()
if(NOT before STREQUAL text)
  file(WRITE "${HEADER}" "${text}")
endif()
