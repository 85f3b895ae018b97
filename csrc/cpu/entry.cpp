// What Python sees: variants, threads, one kernel, or a recorded list of them. Plain C; no Python, no PyTorch.

#include <cstring>

#include "table.h"
#include "threads.h"

namespace twinline {
namespace {

const Variant* const kVariants[] = {  // best first
#if defined(__x86_64__) && defined(__GNUC__)
    &avx512_bf16, &avx512, &avx2,
#endif
    &portable};

const char* const kNames[] = {
#define TWINLINE_NAME(name, Arguments) #name,
    TWINLINE_KERNELS(TWINLINE_NAME)};

const int64_t kWords[] = {
#define TWINLINE_WORDS(name, Arguments) sizeof(Arguments) / 8,
    TWINLINE_KERNELS(TWINLINE_WORDS)};

const Variant* used = nullptr;

}  // namespace
}  // namespace twinline

using namespace twinline;

extern "C" {

// Changes with any argument struct or weight layout in csrc/cpu: the Python side refuses another.
int twinline_kernels_version() { return 5; }

// The names of the variants that this CPU runs, best first: null after the last.
const char* twinline_variant(int index) {
  for (const Variant* variant : kVariants)
    if (variant->runs_here() && index-- == 0) return variant->name;
  return nullptr;
}

// From now on kernels are this variant's. 0 if there is none of that name that this CPU runs.
int twinline_use(const char* name) {
  for (const Variant* variant : kVariants)
    if (std::strcmp(variant->name, name) == 0 && variant->runs_here()) {
      used = variant;
      return 1;
    }
  return 0;
}

const char* twinline_kernel(int index) {
  return index < int(sizeof kNames / sizeof *kNames) ? kNames[index] : nullptr;
}

// How many values of eight bytes the kernel's arguments are.
int64_t twinline_kernel_words(int index) { return kWords[index]; }

// How many there are then: fewer than asked for where the system gives no more.
int twinline_set_threads(int count, int pin) {
  set_threads(count, pin != 0);
  return threads();
}

void twinline_run(int kernel, const void* arguments) {
  const NoDenormals none;
  used->kernels[kernel](arguments);
}

// Runs `count` kernels in order; workers stay awake between them.
void twinline_replay(const int32_t* kernels, const void* const* arguments, int64_t count) {
  const NoDenormals none;
  const Live live;
  for (int64_t i = 0; i < count; ++i) used->kernels[kernels[i]](arguments[i]);
}

}  // extern "C"
