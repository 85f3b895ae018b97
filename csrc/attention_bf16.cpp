// Grouped-query attention of one new token per sequence over a paged cache, in bfloat16 on CPUs with AVX512-BF16.
//
// Owns the decode kernel. A cache is [kv heads][pages][page size][head size]; a sequence's past is a list of pages.
// One task is one sequence and one KV head: its query heads share every key and value that is read. Scores, softmax and
// sums are float32. Plain C interface, no Python, no PyTorch.

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define TWINLINE_X86 1
#endif

namespace {

#ifdef TWINLINE_X86
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

constexpr int64_t kPiece = 64;  // values of a head worked on at once: four vectors
constexpr int kHeadsAtOnce = 6;

// The pages of one sequence, read place by place.
struct Past {
  const int64_t* pages;
  int64_t page_size, length;
  const uint16_t* rows;  // of one KV head, from its page 0
  int64_t size;          // of a head
  const uint16_t* page(int64_t i) const { return rows + pages[i] * page_size * size; }
};

// e^x for x <= 0, relative error below 2e-7: 2^n times a polynomial in the remainder (Cephes' coefficients).
TARGET __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// scores[h][place] = q[h] . k[place], for `heads` query heads.
TARGET void score(const uint16_t* q, int heads, const Past& past, float* scores, int64_t width) {
  for (int64_t begin = 0, i = 0; begin < past.length; begin += past.page_size, ++i) {
    const uint16_t* key = past.page(i);
    const int64_t places = past.length - begin < past.page_size ? past.length - begin : past.page_size;
    for (int64_t t = 0; t < places; ++t, key += past.size)
      for (int h = 0; h < heads; ++h) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        const uint16_t* query = q + h * past.size;
        for (int64_t d = 0; d < past.size; d += kPiece) {
          even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(query + d), (__m512bh)_mm512_loadu_si512(key + d));
          odd = _mm512_dpbf16_ps(odd, (__m512bh)_mm512_loadu_si512(query + d + 32),
                                 (__m512bh)_mm512_loadu_si512(key + d + 32));
        }
        scores[h * width + begin + t] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
      }
  }
}

// Softmax of scale * scores in place; what lies between `length` and `width` becomes 0.
TARGET void softmax(float* scores, int64_t length, int64_t width, float scale) {
  for (int64_t i = length; i < width; ++i) scores[i] = -__builtin_huge_valf();
  __m512 top = _mm512_set1_ps(-__builtin_huge_valf());
  for (int64_t i = 0; i < width; i += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + i));
  const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top)), factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 16) {
    __m512 e = exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + i), most), factor));
    if (i + 16 > length) e = _mm512_maskz_mov_ps(__mmask16((1u << (length - i)) - 1), e);
    _mm512_storeu_ps(scores + i, e);
    sum = _mm512_add_ps(sum, e);
  }
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
  for (int64_t i = 0; i < width; i += 16)
    _mm512_storeu_ps(scores + i, _mm512_mul_ps(_mm512_loadu_ps(scores + i), share));
}

// out[h][d .. d + 64] = sum over places of weight[h][place] * v[place][d .. d + 64].
template <int Heads>
TARGET void weigh(const float* weights, int64_t width, const Past& past, int64_t d, uint16_t* out) {
  __m512 acc[Heads][4];
  for (int h = 0; h < Heads; ++h)
    for (int v = 0; v < 4; ++v) acc[h][v] = _mm512_setzero_ps();
  for (int64_t begin = 0, i = 0; begin < past.length; begin += past.page_size, ++i) {
    const uint16_t* value = past.page(i) + d;
    const int64_t places = past.length - begin < past.page_size ? past.length - begin : past.page_size;
    for (int64_t t = 0; t < places; ++t, value += past.size)
      for (int v = 0; v < 4; ++v) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(value + v * 16));
        const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        for (int h = 0; h < Heads; ++h)
          acc[h][v] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h * width + begin + t]), wide, acc[h][v]);
      }
  }
  for (int h = 0; h < Heads; ++h)
    for (int v = 0; v < 4; ++v)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + h * past.size + d + v * 16),
                          (__m256i)_mm512_cvtneps_pbh(acc[h][v]));
}

TARGET void attend(const uint16_t* q, int64_t heads, const Past& keys, const Past& values, float scale, uint16_t* out) {
  static thread_local std::vector<float> scores;
  const int64_t width = (keys.length + 15) / 16 * 16;
  scores.resize(kHeadsAtOnce * width);
  for (int64_t h = 0; h < heads; h += kHeadsAtOnce) {
    const int some = int(heads - h < kHeadsAtOnce ? heads - h : kHeadsAtOnce);
    score(q + h * keys.size, some, keys, scores.data(), width);
    for (int i = 0; i < some; ++i) softmax(scores.data() + i * width, keys.length, width, scale);
    uint16_t* to = out + h * keys.size;
    for (int64_t d = 0; d < keys.size; d += kPiece) switch (some) {
        case 1: weigh<1>(scores.data(), width, values, d, to); break;
        case 2: weigh<2>(scores.data(), width, values, d, to); break;
        case 3: weigh<3>(scores.data(), width, values, d, to); break;
        case 4: weigh<4>(scores.data(), width, values, d, to); break;
        case 5: weigh<5>(scores.data(), width, values, d, to); break;
        case 6: weigh<6>(scores.data(), width, values, d, to); break;
      }
  }
}
#endif

}  // namespace

extern "C" {

// q and out [sequences, heads, size]; caches [kv heads, total pages, page size, size]; pages [sequences, width];
// lengths [sequences], at least 1. Values are bfloat16, indices 64-bit; size is a multiple of 64; scale is positive.
void twinline_attention_decode_bf16(const uint16_t* q, const uint16_t* k_cache, const uint16_t* v_cache,
                                    const int64_t* pages, const int64_t* lengths, uint16_t* out, int64_t sequences,
                                    int64_t heads, int64_t kv_heads, int64_t total_pages, int64_t page_size,
                                    int64_t size, int64_t width, float scale, int threads) {
#ifdef TWINLINE_X86
  const int64_t shared = heads / kv_heads, per_head = total_pages * page_size * size;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < sequences * kv_heads; ++task) {
    const int64_t s = task / kv_heads, g = task % kv_heads, first = (s * heads + g * shared) * size;
    const Past keys{pages + s * width, page_size, lengths[s], k_cache + g * per_head, size};
    const Past values{pages + s * width, page_size, lengths[s], v_cache + g * per_head, size};
    attend(q + first, shared, keys, values, scale, out + first);
  }
#endif
}

}  // extern "C"
