// AVX-512 as of Skylake-SP.
#if defined(__x86_64__) && defined(__GNUC__)
#define TWINLINE_VARIANT avx512
#define TWINLINE_NAMESPACE in_avx512
#define TWINLINE_HAS_AVX2 1
#define TWINLINE_HAS_AVX512 1
#define TWINLINE_HAS_BF16 0
#define TWINLINE_HAS_VNNI 0
#define TWINLINE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#define TWINLINE_RUNS_HERE __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
#include "variant.h"
#endif
