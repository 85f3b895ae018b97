// Linear layers in bfloat16 on CPUs with AVX512-BF16: out[M, N] = x[M, K] * w[N, K]^T + bias.
//
// Owns one kernel for every M: one row (memory-bound) to a prefill chunk (compute-bound). Weights come packed as
// [N/64][K/2][64][2]: for a pair of inputs, the 64 output rows of a block lie together, so that one vector holds 16 rows
// and a block is read as one stream. Sums are float32 and rounded once. Plain C interface, no Python, no PyTorch.

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define TWINLINE_X86 1
#endif

namespace {

constexpr int64_t kBlock = 64;   // output rows in a block: four vectors
constexpr int64_t kDepth = 1024;  // input pairs between two visits of the accumulators: 256 KB of weights, inside L2
constexpr int64_t kRowsAtOnce = 256;  // rows of x whose accumulators stay in L2

#ifdef TWINLINE_X86
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

// Adds `pairs` input pairs to the accumulators of Rows rows by one block. `stride` is between rows of x, in values.
template <int Rows>
TARGET void tile(const uint16_t* x, int64_t stride, const uint16_t* w, int64_t pairs, float* sums) {
  __m512 acc[Rows][4];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_loadu_ps(sums + r * kBlock + v * 16);
  for (int64_t p = 0; p < pairs; ++p) {
    const uint16_t* at = w + p * kBlock * 2;
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096 + 32), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096 + 64), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096 + 96), _MM_HINT_T0);
    __m512bh weights[4];
    for (int v = 0; v < 4; ++v) weights[v] = (__m512bh)_mm512_loadu_si512(at + v * 32);
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      std::memcpy(&pair, x + r * stride + p * 2, sizeof pair);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], value, weights[v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(sums + r * kBlock + v * 16, acc[r][v]);
}

TARGET void tiles(const uint16_t* x, int64_t stride, const uint16_t* w, int64_t rows, int64_t pairs, float* sums) {
  int64_t r = 0;
  for (; rows - r >= 6; r += 6) tile<6>(x + r * stride, stride, w, pairs, sums + r * kBlock);
  x += r * stride;
  sums += r * kBlock;
  switch (rows - r) {
    case 1: return tile<1>(x, stride, w, pairs, sums);
    case 2: return tile<2>(x, stride, w, pairs, sums);
    case 3: return tile<3>(x, stride, w, pairs, sums);
    case 4: return tile<4>(x, stride, w, pairs, sums);
    case 5: return tile<5>(x, stride, w, pairs, sums);
  }
}

// One block of output rows for `rows` rows of x, from first pair to rounded result.
TARGET void block(const uint16_t* x, int64_t stride, const uint16_t* w, const uint16_t* bias, uint16_t* out, int64_t rows,
                  int64_t pairs, int64_t n, int64_t first) {
  alignas(64) static thread_local float sums[kRowsAtOnce * kBlock];
  const int64_t width = n - first < kBlock ? n - first : kBlock;
  alignas(64) float start[kBlock] = {};
  for (int64_t i = 0; bias && i < width; ++i) {
    const uint32_t bits = uint32_t(bias[first + i]) << 16;
    std::memcpy(&start[i], &bits, sizeof bits);
  }
  for (int64_t r = 0; r < rows; ++r) std::memcpy(sums + r * kBlock, start, sizeof start);
  for (int64_t p = 0; p < pairs; p += kDepth) {
    const int64_t some = pairs - p < kDepth ? pairs - p : kDepth;
    tiles(x + p * 2, stride, w + p * kBlock * 2, rows, some, sums);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v * 16 < width; ++v) {
      const int left = int(width - v * 16);
      const __mmask16 mask = left >= 16 ? 0xffff : __mmask16((1u << left) - 1);
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(sums + r * kBlock + v * 16));
      _mm256_mask_storeu_epi16(out + r * n + first + v * 16, mask, (__m256i)rounded);
    }
}
#endif

}  // namespace

extern "C" {

// 1 if this CPU can run the kernels of this file.
int twinline_bf16_supported() {
#ifdef TWINLINE_X86
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return 0;
#endif
}

// x [m, k] with rows `stride` values apart, packed weights, bias [n] or null, out [m, n]; all bfloat16; k is even.
void twinline_linear_bf16(const uint16_t* x, int64_t stride, const uint16_t* packed, const uint16_t* bias, uint16_t* out,
                          int64_t m, int64_t n, int64_t k, int threads) {
#ifdef TWINLINE_X86
  const int64_t blocks = (n + kBlock - 1) / kBlock, pairs = k / 2;
  for (int64_t r = 0; r < m; r += kRowsAtOnce) {
    const int64_t rows = m - r < kRowsAtOnce ? m - r : kRowsAtOnce;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b)
      block(x + r * stride, stride, packed + b * pairs * kBlock * 2, bias, out + r * n, rows, pairs, n, b * kBlock);
  }
#endif
}

}  // extern "C"
