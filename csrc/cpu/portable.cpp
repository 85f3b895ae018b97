// Plain C++: every machine, vectorised as far as the compiler can.
#define TWINLINE_VARIANT portable
#define TWINLINE_NAMESPACE in_portable
#define TWINLINE_HAS_AVX2 0
#define TWINLINE_HAS_AVX512 0
#define TWINLINE_HAS_BF16 0
#define TWINLINE_HAS_VNNI 0

#define TWINLINE_RUNS_HERE true
#include "variant.h"
