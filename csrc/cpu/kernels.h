// Every kernel that Python may call, by name, with the one struct that holds its arguments.
//
// Owns the list and the argument structs: fields of eight bytes each, so that Python fills one as an array. Knows no instruction set.
// `kind` fields are of `Kind`. Tensors are dense but where a stride (in values) is given. Indices are int64.

#pragma once

#include <cstdint>

namespace twinline {

using bf16 = uint16_t;  // the upper half of a float32

enum Kind : int64_t { kFloat = 0, kBfloat16 = 1 };

// out = x / sqrt(mean(x^2) + eps) * weight, rounded before the weight. x [rows, size].
struct RmsNorm {
  const void *x, *weight;
  void* out;
  int64_t kind, rows, size, stride;
  double eps;
};

// total = residual + x; out = its norm. All [rows, size], x with a stride.
struct AddRmsNorm {
  const void *x, *residual, *weight;
  void *out, *total;
  int64_t kind, rows, size, stride;
  double eps;
};

#define TWINLINE_SMALL_KERNELS(X) X(rms_norm, RmsNorm) X(add_rms_norm, AddRmsNorm)

}  // namespace twinline
