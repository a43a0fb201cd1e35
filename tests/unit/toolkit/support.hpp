// SPDX-License-Identifier: Apache-2.0
// The engines of the toolkit, and what their tests share.
#pragma once

#include "unit/memory.hpp"
#include "unit/toolkit/entries.hpp"
