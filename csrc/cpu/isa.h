// One body, many instruction sets: what a variant's file includes around the kernels.
//
// Each variant is one small .cpp that names its namespace, features and target, and includes `variant.h`. Bodies use the
// vectors of `vector.h`, and intrinsics only under `#if TWINLINE_HAS_...`. They use no standard containers or algorithms: a
// template compiled for one instruction set must not be linked into another's path.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define TWINLINE_X86 1
#include <immintrin.h>
#endif

#if defined(__clang__)
#define TWINLINE_PRAGMA(x) _Pragma(#x)
#define TWINLINE_BEGIN_TARGET(features) \
  TWINLINE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TWINLINE_END_TARGET TWINLINE_PRAGMA(clang attribute pop)
#else
#define TWINLINE_PRAGMA(x) _Pragma(#x)
#define TWINLINE_BEGIN_TARGET(features) TWINLINE_PRAGMA(GCC push_options) TWINLINE_PRAGMA(GCC target(features))
#define TWINLINE_END_TARGET TWINLINE_PRAGMA(GCC pop_options)
#endif
