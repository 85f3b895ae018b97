// The kernels once more, for the instruction set that the including file names: TWINLINE_VARIANT, TWINLINE_TARGET,
// TWINLINE_RUNS_HERE, and TWINLINE_HAS_AVX2, _AVX512, _BF16, _VNNI as 0 or 1.

#include "isa.h"
#include "table.h"
#include "threads.h"

// Registers of eight floats, and only sixteen of them.
#define TWINLINE_EIGHT_LANES (TWINLINE_HAS_AVX2 && !TWINLINE_HAS_AVX512)

#ifdef TWINLINE_TARGET
TWINLINE_BEGIN_TARGET(TWINLINE_TARGET)
#endif
namespace twinline::TWINLINE_NAMESPACE {
#include "vector.h"
#include "small.h"
#include "route.h"
#include "tile.h"
#include "attention.h"
#include "latent.h"
#include "lanes.h"
#include "layout.h"
#include "unpack.h"
#include "forms.h"
#include "weights.h"
#include "packing.h"
#include "linear.h"
#include "experts.h"
#include "sampling.h"
}  // namespace twinline::TWINLINE_NAMESPACE
#ifdef TWINLINE_TARGET
TWINLINE_END_TARGET
#endif

namespace twinline {
#define TWINLINE_ENTRY(name, Arguments) enter<Arguments, TWINLINE_NAMESPACE::name>,
static const Enter kernels[] = {TWINLINE_KERNELS(TWINLINE_ENTRY)};
static bool runs_here() { return TWINLINE_RUNS_HERE; }
#define TWINLINE_QUOTE(name) #name
#define TWINLINE_NAME(name) TWINLINE_QUOTE(name)
extern const Variant TWINLINE_VARIANT = {TWINLINE_NAME(TWINLINE_VARIANT), runs_here, kernels};
}  // namespace twinline
