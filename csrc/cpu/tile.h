// Products of small tiles, and the packing that makes them fast. Included inside a variant's namespace.
//
// A word is four bytes: one float, or the pair of bfloat16 values that one instruction multiplies and adds up. A product is
// c[r][n] = sum over k of a[r][k] * b[k][n], in words: `a` is rows as they lie in memory, `b` is packed by one of the two
// functions below. Every c[r][n] is one chain of sums in the order of k, whatever tile it is in.

namespace tile {

#if defined(__GNUC__)
#define TWINLINE_INLINE inline __attribute__((always_inline))  // a call would put sixteen vectors into memory and back
#else
#define TWINLINE_INLINE inline
#endif

// What a word holds: pairs of bfloat16 where the instruction set multiplies them, floats everywhere else.
template <typename T>
struct Word {
  using type = float;
};
#if TWINLINE_HAS_BF16
template <>
struct Word<bf16> {
  using type = bf16;
};
#endif

template <typename W>
inline int64_t words(int64_t values) { return (values * int64_t(sizeof(W)) + 3) / 4; }
inline int64_t up16(int64_t count) { return (count + 15) / 16 * 16; }

// A block of a product fills the registers: rows x vectors of sums, the vectors of b and one value of a.
#if TWINLINE_HAS_AVX512
constexpr int kRows = 6, kVectors = 4;
#elif TWINLINE_HAS_AVX2
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 2, kVectors = 2;
#endif

TWINLINE_INLINE Lanes times(Lanes sum, Lanes a, Lanes b, float) { return fma(a, b, sum); }
#if TWINLINE_HAS_BF16
TWINLINE_INLINE F times(F sum, F a, F b, bf16) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}
#endif

// What a product does beside each step of its depth: fetch something that is wanted later, or nothing.
struct Nothing {
  void step(int) {}
};

template <typename W, int Rows, int Vectors, typename Beside>
inline void product_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
                          int64_t c_stride, Beside& beside) {
  Lanes sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sums[r][v] = all_lanes(0.0f);
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    beside.step(Vectors);
    Lanes columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = load_lanes(b + kLanes * v);
    for (int r = 0; r < Rows; ++r) {
      const Lanes value = spread(a + r * a_stride + k);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = times(sums[r][v], value, columns[v], W{});
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) store_lanes(c + r * c_stride + kLanes * v, sums[r][v]);
}

template <typename W, int Vectors, typename Beside>
inline void product_rows(int rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
                         int64_t c_stride, Beside& beside) {
  for (; rows >= kRows; rows -= kRows, a += kRows * a_stride, c += kRows * c_stride)
    product_block<W, kRows, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride, beside);
  switch (rows) {
    case 1: product_block<W, 1, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride, beside); break;
#if TWINLINE_HAS_AVX2
    case 2: product_block<W, 2, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride, beside); break;
    case 3: product_block<W, 3, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride, beside); break;
    case 4: product_block<W, 4, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride, beside); break;
    case 5: product_block<W, 5, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride, beside); break;
#endif
  }
}

// Strides and depth in words; `columns` is a multiple of 16.
template <typename W, typename Beside>
inline void product(int rows, int64_t columns, int64_t depth, const float* a, int64_t a_stride, const float* b,
                    int64_t b_stride, float* c, int64_t c_stride, Beside& beside) {
  int64_t n = 0;
  for (; n + kLanes * kVectors <= columns; n += kLanes * kVectors)
    product_rows<W, kVectors>(rows, a, a_stride, b + n, b_stride, depth, c + n, c_stride, beside);
  for (; n < columns; n += kLanes) product_rows<W, 1>(rows, a, a_stride, b + n, b_stride, depth, c + n, c_stride, beside);
}

// Sixteen words of a row of `size` values, from value `at` on; zeros behind its end.
TWINLINE_INLINE F row_words(const float* row, int64_t at, int64_t size, float) {
  return load_n(row + at, int(size - at < 16 ? size - at : 16));
}
TWINLINE_INLINE F row_words(const bf16* row, int64_t at, int64_t size, float) {
  return load_n(row + at, int(size - at < 16 ? size - at : 16));
}
#if TWINLINE_HAS_BF16
TWINLINE_INLINE __m512i pairs(const bf16* row, int64_t at, int64_t size) {
  if (size - at >= 32) return _mm512_loadu_si512(row + at);
  return _mm512_maskz_loadu_epi16(__mmask32((1u << (size - at)) - 1), row + at);
}
TWINLINE_INLINE F row_words(const bf16* row, int64_t at, int64_t size, bf16) { return _mm512_castsi512_ps(pairs(row, at, size)); }
#endif

#if TWINLINE_HAS_AVX512
TWINLINE_INLINE void transpose(F* x) {
  F pair[16], four[16];
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    pair[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(pair[i + j]), high = _mm512_castps_pd(pair[i + j + 2]);
      four[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      four[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int j = 0; j < 4; ++j) {  // column 4 * quarter + j lies in quarter `quarter` of four[j], [4 + j], [8 + j], [12 + j]
    const F a = _mm512_shuffle_f32x4(four[j], four[4 + j], 0x88), b = _mm512_shuffle_f32x4(four[8 + j], four[12 + j], 0x88);
    const F c = _mm512_shuffle_f32x4(four[j], four[4 + j], 0xdd), d = _mm512_shuffle_f32x4(four[8 + j], four[12 + j], 0xdd);
    x[j] = _mm512_shuffle_f32x4(a, b, 0x88);
    x[8 + j] = _mm512_shuffle_f32x4(a, b, 0xdd);
    x[4 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
    x[12 + j] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}
#elif TWINLINE_HAS_AVX2
TWINLINE_INLINE void transpose_eight(__m256 (&x)[8]) {
  __m256 pair[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      four[i + 2 * j] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0x44);
      four[i + 2 * j + 1] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0xee);
    }
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm256_permute2f128_ps(four[j], four[4 + j], 0x20);
    x[4 + j] = _mm256_permute2f128_ps(four[j], four[4 + j], 0x31);
  }
}
TWINLINE_INLINE void transpose(F* x) {
  __m256 quarter[4][8];  // of the first eight rows low and high, then of the last eight
  for (int i = 0; i < 8; ++i) {
    quarter[0][i] = x[i].low, quarter[1][i] = x[i].high;
    quarter[2][i] = x[8 + i].low, quarter[3][i] = x[8 + i].high;
  }
  for (auto& some : quarter) transpose_eight(some);
  for (int i = 0; i < 8; ++i) {
    x[i] = {quarter[0][i], quarter[2][i]};
    x[8 + i] = {quarter[1][i], quarter[3][i]};
  }
}
#else
TWINLINE_INLINE void transpose(F* x) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = x[i].at[j];
      x[i].at[j] = x[j].at[i];
      x[j].at[i] = kept;
    }
}
#endif

// b for products with rows: out[k][i] = word k of row(i). `count` rows of `size` values each; zeros up to a multiple of 16.
template <typename W, typename Row>
inline void pack_across(const Row& row, int64_t count, int64_t size, float* out, int64_t stride) {
  constexpr int64_t kValues = 64 / sizeof(W);  // of sixteen words
  for (int64_t i = 0; i < count; i += 16)
    for (int64_t at = 0; at < size; at += kValues) {
      F x[16];
      for (int j = 0; j < 16; ++j) x[j] = i + j < count ? row_words(row(i + j), at, size, W{}) : zero();
      transpose(x);
      float* to = out + at * int64_t(sizeof(W)) / 4 * stride + i;
      const int64_t left = words<W>(size - at);
      for (int j = 0; j < 16 && j < left; ++j) store(to + j * stride, x[j]);
    }
}

// b for products with columns: out[k][n] = value n of row(k), or of the pair of rows(2 k, 2 k + 1); zeros up to a multiple
// of 16.
template <typename Row>
inline void pack_along(const Row& row, int64_t count, int64_t size, float* out, int64_t stride, float) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t at = 0; at < size; at += 16) store(out + i * stride + at, row_words(row(i), at, size, 0.0f));
}
#if TWINLINE_HAS_BF16
// Thirty-two values of two rows as pairs, in their order.
TWINLINE_INLINE void interleave(__m512i a, __m512i b, F* out) {
  alignas(64) static const uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  out[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
  out[1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
}

template <typename Row>
inline void pack_along(const Row& row, int64_t count, int64_t size, float* out, int64_t stride, bf16) {
  for (int64_t i = 0; i < count; i += 2, out += stride) {
    const bf16 *first = row(i), *second = i + 1 < count ? row(i + 1) : nullptr;
    for (int64_t at = 0; at < size; at += 32) {
      const __m512i a = pairs(first, at, size), b = second ? pairs(second, at, size) : _mm512_setzero_si512();
      F words_of_pair[2];
      interleave(a, b, words_of_pair);
      store(out + at, words_of_pair[0]);
      if (size - at > 16) store(out + at + 16, words_of_pair[1]);
    }
  }
}
#endif

// Rows of `a` as words: one after another, `size` values each, zeros behind in the last word.
template <typename W, typename T>
inline void copy_row(const T* row, int64_t size, float* out) {
  constexpr int64_t kValues = 64 / sizeof(W);
  for (int64_t at = 0; at < size; at += kValues, out += 16) {
    const int64_t left = words<W>(size - at);
    const F x = row_words(row, at, size, W{});
    left < 16 ? store_some(out, x, int(left)) : store(out, x);
  }
}

#undef TWINLINE_INLINE

}  // namespace tile
