// AVX2 with FMA: x86-64 servers since 2013.
#if defined(__x86_64__) && defined(__GNUC__)
#define TWINLINE_VARIANT avx2
#define TWINLINE_NAMESPACE in_avx2
#define TWINLINE_HAS_AVX2 1
#define TWINLINE_HAS_AVX512 0
#define TWINLINE_HAS_BF16 0
#define TWINLINE_HAS_VNNI 0
#define TWINLINE_TARGET "avx2,fma,f16c"
#define TWINLINE_RUNS_HERE __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
#include "variant.h"
#endif
