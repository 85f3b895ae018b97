// Sixteen floats at once, on every instruction set. Included inside a variant's namespace.
//
// F is a value; names say what they do. `some` versions touch only the first n values, 0 < n < 16, and read the others as 0.
// bfloat16 is rounded to nearest, ties to even. Lanes are what one register holds of floats, `kLanes` of them: where registers
// are few, products are made of these, since a compiler keeps no F in two of them.

#if TWINLINE_HAS_AVX512

using F = __m512;

inline F zero() { return _mm512_setzero_ps(); }
inline F all(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_some(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
inline F widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
inline F load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load_some(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F absolute(F a) { return _mm512_abs_ps(a); }
inline F nearest(F a) { return _mm512_roundscale_ps(a, 0); }
inline F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n for whole n
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float most(F a) { return _mm512_reduce_max_ps(a); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline void store_some(float* p, F a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a); }

inline __m256i narrow(F a) {
#if TWINLINE_HAS_BF16
  return (__m256i)_mm512_cvtneps_pbh(a);
#else
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
#endif
}
inline void store(bf16* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
inline void store_some(bf16* p, F a, int n) { _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), narrow(a)); }

// acc + the products of 32 pairs, two to each of the sixteen sums.
inline F dot(F acc, const bf16* a, const bf16* b) {
#if TWINLINE_HAS_BF16
  return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
#else
  const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b), high = _mm512_set1_epi32(int(0xffff0000));
  acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), acc);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)), _mm512_castsi512_ps(_mm512_and_si512(y, high)), acc);
#endif
}

#elif TWINLINE_HAS_AVX2

struct F {
  __m256 low, high;
};

// The first n of eight lanes.
inline __m256i first_lanes(int n) {
  alignas(32) static const int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 8 - (n < 0 ? 0 : n > 8 ? 8 : n)));
}
inline __m256 widen(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }

inline F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F zero() { return all(0.0f); }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F load_some(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
inline F load(const bf16* p) {
  const __m128i* at = reinterpret_cast<const __m128i*>(p);
  return {widen(_mm_loadu_si128(at)), widen(_mm_loadu_si128(at + 1))};
}
inline F load_some(const bf16* p, int n) {
  bf16 some[16] = {};
  std::memcpy(some, p, size_t(n) * sizeof *p);
  return load(some);
}
inline F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline F absolute(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline F nearest(F a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F scale2(F a, F n) { return mul(a, {power_of_two(n.low), power_of_two(n.high)}); }
inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float most(F a) {
  const __m256 eight = _mm256_max_ps(a.high, a.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(_mm_movehl_ps(four, four), four);
  return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(two), two));
}
inline void store(float* p, F a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline void store_some(float* p, F a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.low);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.high);
}
inline __m256i narrowed(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan)), 16);
}
inline void store(bf16* p, F a) {
  const __m256i words = _mm256_packus_epi32(narrowed(a.low), narrowed(a.high));  // by halves of registers
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
inline void store_some(bf16* p, F a, int n) {
  bf16 some[16];
  store(some, a);
  std::memcpy(p, some, size_t(n) * sizeof *p);
}
inline __m256 low_words(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline __m256 high_words(__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000)))); }
inline __m256 dot_eight(__m256 acc, const bf16* a, const bf16* b) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  return _mm256_fmadd_ps(high_words(x), high_words(y), _mm256_fmadd_ps(low_words(x), low_words(y), acc));
}
inline F dot(F acc, const bf16* a, const bf16* b) { return {dot_eight(acc.low, a, b), dot_eight(acc.high, a + 16, b + 16)}; }

#else  // portable: the compiler makes vectors of these loops

struct F {
  alignas(32) float at[16];
};

// Said, not left to the compiler, which fuses in one place and not in another: a row's result must not depend on its place.
#if defined(__FP_FAST_FMAF)
#define TWINLINE_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define TWINLINE_FMA(a, b, c) ((a) * (b) + (c))
#endif

#define TWINLINE_EACH for (int i = 0; i < 16; ++i)

inline float from_bf16(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? bf16(bits >> 16 | 0x40) : bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline F all(float x) { F r; TWINLINE_EACH r.at[i] = x; return r; }
inline F zero() { return all(0.0f); }
inline F load(const float* p) { F r; TWINLINE_EACH r.at[i] = p[i]; return r; }
inline F load_some(const float* p, int n) { F r = zero(); for (int i = 0; i < n; ++i) r.at[i] = p[i]; return r; }
inline F load(const bf16* p) { F r; TWINLINE_EACH r.at[i] = from_bf16(p[i]); return r; }
inline F load_some(const bf16* p, int n) { F r = zero(); for (int i = 0; i < n; ++i) r.at[i] = from_bf16(p[i]); return r; }
inline F add(F a, F b) { TWINLINE_EACH a.at[i] += b.at[i]; return a; }
inline F sub(F a, F b) { TWINLINE_EACH a.at[i] -= b.at[i]; return a; }
inline F mul(F a, F b) { TWINLINE_EACH a.at[i] *= b.at[i]; return a; }
inline F div(F a, F b) { TWINLINE_EACH a.at[i] /= b.at[i]; return a; }
inline F fma(F a, F b, F c) { TWINLINE_EACH c.at[i] = TWINLINE_FMA(a.at[i], b.at[i], c.at[i]); return c; }
inline F max(F a, F b) { TWINLINE_EACH a.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i]; return a; }
inline F min(F a, F b) { TWINLINE_EACH a.at[i] = a.at[i] < b.at[i] ? a.at[i] : b.at[i]; return a; }
inline F absolute(F a) { TWINLINE_EACH a.at[i] = a.at[i] < 0 ? -a.at[i] : a.at[i]; return a; }
inline F nearest(F a) { TWINLINE_EACH a.at[i] = __builtin_nearbyintf(a.at[i]); return a; }
inline F scale2(F a, F n) {
  TWINLINE_EACH {
    const int32_t bits = (int32_t(n.at[i]) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    a.at[i] *= power;
  }
  return a;
}
inline float sum(F a) {
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) a.at[i] += a.at[i + width];
  return a.at[0];
}
inline float most(F a) {
  for (int i = 1; i < 16; ++i) a.at[0] = a.at[i] > a.at[0] ? a.at[i] : a.at[0];
  return a.at[0];
}
inline void store(float* p, F a) { TWINLINE_EACH p[i] = a.at[i]; }
inline void store_some(float* p, F a, int n) { for (int i = 0; i < n; ++i) p[i] = a.at[i]; }
inline void store(bf16* p, F a) { TWINLINE_EACH p[i] = to_bf16(a.at[i]); }
inline void store_some(bf16* p, F a, int n) { for (int i = 0; i < n; ++i) p[i] = to_bf16(a.at[i]); }
inline F dot(F acc, const bf16* a, const bf16* b) {
  TWINLINE_EACH acc.at[i] += from_bf16(a[2 * i]) * from_bf16(b[2 * i]) + from_bf16(a[2 * i + 1]) * from_bf16(b[2 * i + 1]);
  return acc;
}
#undef TWINLINE_EACH

#endif

#if TWINLINE_EIGHT_LANES
using Lanes = __m256;
inline Lanes load_lanes(const float* p) { return _mm256_loadu_ps(p); }
inline Lanes load_lanes(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Lanes all_lanes(float x) { return _mm256_set1_ps(x); }
// What lies at `p` in all lanes, read wherever that is called: GCC would rather keep it in a register that is not there, in memory.
inline Lanes spread(const float* p) {
  Lanes all;
  asm volatile("vbroadcastss %1, %0" : "=x"(all) : "m"(*p));
  return all;
}
inline __m256i spread(const int32_t* p) {
  __m256i all;
  asm volatile("vpbroadcastd %1, %0" : "=x"(all) : "m"(*p));
  return all;
}
inline void store_lanes(float* p, Lanes a) { _mm256_storeu_ps(p, a); }
inline Lanes mul(Lanes a, Lanes b) { return _mm256_mul_ps(a, b); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
#else
using Lanes = F;
inline Lanes load_lanes(const float* p) { return load(p); }
inline Lanes load_lanes(const bf16* p) { return load(p); }
inline Lanes all_lanes(float x) { return all(x); }
inline Lanes spread(const float* p) { return all(*p); }
inline void store_lanes(float* p, Lanes a) { store(p, a); }
#endif
constexpr int kLanes = sizeof(Lanes) / sizeof(float);

// e^x, relative error below 2e-7 for x in [-87, 88]: 2^n times a polynomial in the remainder (Cephes' coefficients).
inline F exponential(F x) {
  x = min(max(x, all(-87.0f)), all(88.0f));
  const F n = nearest(mul(x, all(1.44269504f)));
  F r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  F p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  return scale2(add(fma(p, mul(r, r), r), all(1.0f)), n);
}

// f(i, n) for every run of values of a row: n is 16, and less at a ragged end.
template <typename Body>
inline void each16(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) body(i, 16);
  if (i < size) body(i, int(size - i));
}
template <typename T>
inline F load_n(const T* p, int n) { return n == 16 ? load(p) : load_some(p, n); }
template <typename T>
inline void store_n(T* p, F a, int n) { n == 16 ? store(p, a) : store_some(p, a, n); }

// Calls body(T{}) with the type that `kind` names.
template <typename Body>
inline void with_type(int64_t kind, const Body& body) {
  kind == kBfloat16 ? body(bf16{}) : body(float{});
}
