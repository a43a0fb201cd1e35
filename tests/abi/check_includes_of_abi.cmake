# SPDX-License-Identifier: Apache-2.0
# Fails if HEADER includes anything but <stddef.h> and <stdint.h>.
file(STRINGS "${HEADER}" lines REGEX "^[ \t]*#[ \t]*include")
foreach(line IN LISTS lines)
  if(NOT line MATCHES "<(stddef|stdint)\\.h>")
    message(FATAL_ERROR "${HEADER}: ${line}; accepted: <stddef.h> and <stdint.h>")
  endif()
endforeach()
