// AVX-512 with bfloat16 and int8 dot products: Zen 4, Cooper Lake, Sapphire Rapids.
#if defined(__x86_64__) && defined(__GNUC__)
#define TWINLINE_VARIANT avx512_bf16
#define TWINLINE_NAMESPACE in_avx512_bf16
#define TWINLINE_HAS_AVX2 1
#define TWINLINE_HAS_AVX512 1
#define TWINLINE_HAS_BF16 1
#define TWINLINE_HAS_VNNI 1
#define TWINLINE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512bf16,avx512vnni"
#define TWINLINE_RUNS_HERE __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")
#include "variant.h"
#endif
