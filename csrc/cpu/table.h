// A variant as the loader sees it: its name, whether this CPU runs it, and its kernels in the order of `kernels.h`.

#pragma once

#include "kernels.h"

namespace twinline {

using Enter = void (*)(const void* arguments);

struct Variant {
  const char* name;
  bool (*runs_here)();
  const Enter* kernels;
};

extern const Variant avx512_bf16, avx512, avx2, portable;

template <typename Arguments, void (*Kernel)(const Arguments&)>
void enter(const void* arguments) {
  Kernel(*static_cast<const Arguments*>(arguments));
}

#define TWINLINE_KERNELS(X) TWINLINE_SMALL_KERNELS(X) TWINLINE_EXPERT_KERNELS(X) TWINLINE_ATTENTION_KERNELS(X) TWINLINE_LINEAR_KERNELS(X) TWINLINE_SAMPLING_KERNELS(X)

}  // namespace twinline
