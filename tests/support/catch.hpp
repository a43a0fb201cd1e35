// SPDX-License-Identifier: Apache-2.0
// The one header through which tests see Catch2, so that version 2 (Debian 12) and version 3 both work.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
// What throws ends its test case, not the assertion alone: a seventh less to compile.
#define CATCH_CONFIG_FAST_COMPILE
#include <catch2/catch.hpp>
#endif
