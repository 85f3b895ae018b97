// Sixteen int32 sums at once, each of products of unsigned by signed bytes. Included inside a variant's namespace.
//
// Bytes holds four unsigned bytes for each of the sixteen sums; Four holds four signed bytes, the same for all of them. Products and
// sums are exact on every instruction set: instructions that saturate between (maddubs) are not used.

namespace weights {

#if TWINLINE_HAS_AVX512

using I = __m512i;
using Bytes = __m512i;

inline I all_of(int32_t x) { return _mm512_set1_epi32(x); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(void* p, Bytes a) { _mm512_storeu_si512(p, a); }
inline Bytes low_nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
// Whole numbers from -128 to 127.
inline void store_signed(int8_t* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

#if TWINLINE_HAS_VNNI
using Four = __m512i;
inline Four four(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}
// Not by the intrinsic: its sums have another type within GCC, which then moves each of them twice, half of them through memory.
inline I dot4(I sum, Bytes weights, Four x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
  return sum;
}
#else
struct Four {
  __m512i even, odd;  // widened to 16 bits
};
inline Four four(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  const __m512i bytes = _mm512_set1_epi32(word);
  return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
}
inline I dot4(I sum, Bytes weights, Four x) {
  const __m512i even = _mm512_and_si512(weights, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(weights, 8);
  return _mm512_add_epi32(sum, _mm512_add_epi32(_mm512_madd_epi16(even, x.even), _mm512_madd_epi16(odd, x.odd)));
}
#endif

#elif TWINLINE_HAS_AVX2

struct I {
  __m256i half[2];
};
using Bytes = I;
struct Four {
  __m256i even, odd;
};

inline I all_of(int32_t x) { return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
inline F to_float(I a) {
  F r;
  for (int h = 0; h < 2; ++h) _mm256_store_ps(r.at + 8 * h, _mm256_cvtepi32_ps(a.half[h]));
  return r;
}
inline Bytes load_bytes(const void* p) {
  const __m256i* at = static_cast<const __m256i*>(p);
  return {{_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)}};
}
inline void store_bytes(void* p, Bytes a) {
  for (int h = 0; h < 2; ++h) _mm256_storeu_si256(static_cast<__m256i*>(p) + h, a.half[h]);
}
inline Bytes low_nibbles(Bytes a) {
  for (auto& half : a.half) half = _mm256_and_si256(half, _mm256_set1_epi8(15));
  return a;
}
inline Bytes high_nibbles(Bytes a) {
  for (auto& half : a.half) half = _mm256_and_si256(_mm256_srli_epi16(half, 4), _mm256_set1_epi8(15));
  return a;
}
inline void store_signed(int8_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = int8_t(int32_t(a.at[i]));
}
inline Four four(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  const __m256i bytes = _mm256_set1_epi32(word);
  return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
inline I dot4(I sum, Bytes weights, Four x) {
  for (int h = 0; h < 2; ++h) {
    const __m256i even = _mm256_and_si256(weights.half[h], _mm256_set1_epi16(255));
    const __m256i odd = _mm256_srli_epi16(weights.half[h], 8);
    const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(even, x.even), _mm256_madd_epi16(odd, x.odd));
    sum.half[h] = _mm256_add_epi32(sum.half[h], products);
  }
  return sum;
}

#else

struct I {
  int32_t at[16];
};
struct Bytes {
  uint8_t at[64];
};
struct Four {
  int32_t at[4];
};

inline I all_of(int32_t x) {
  I r;
  for (int i = 0; i < 16; ++i) r.at[i] = x;
  return r;
}
inline F to_float(I a) {
  F r;
  for (int i = 0; i < 16; ++i) r.at[i] = float(a.at[i]);
  return r;
}
inline Bytes load_bytes(const void* p) {
  Bytes r;
  std::memcpy(r.at, p, 64);
  return r;
}
inline void store_bytes(void* p, Bytes a) { std::memcpy(p, a.at, 64); }
inline Bytes low_nibbles(Bytes a) {
  for (int i = 0; i < 64; ++i) a.at[i] &= 15;
  return a;
}
inline Bytes high_nibbles(Bytes a) {
  for (int i = 0; i < 64; ++i) a.at[i] >>= 4;
  return a;
}
inline void store_signed(int8_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = int8_t(int32_t(a.at[i]));
}
inline Four four(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline I dot4(I sum, const Bytes& weights, Four x) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) sum.at[i] += int32_t(weights.at[4 * i + j]) * x.at[j];
  return sum;
}

#endif

inline float as_float(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Sixteen pairs of bfloat16 as floats, exactly.
struct Both {
  F even, odd;
};
inline Both load_both(const bf16* p) {
#if TWINLINE_HAS_AVX512
  const __m512i words = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))))};
#else
  Both r;
  for (int i = 0; i < 16; ++i) {
    r.even.at[i] = as_float(p[2 * i]);
    r.odd.at[i] = as_float(p[2 * i + 1]);
  }
  return r;
#endif
}

// Sixteen sums of products of two pairs of bfloat16 each; a Pair is the same for all sixteen.
#if TWINLINE_HAS_BF16

using Pairs = __m512bh;
using Pair = __m512bh;
inline Pairs load_pairs(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline Pair pair(const bf16* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return (__m512bh)_mm512_set1_epi32(word);
}
inline F dot2(F sum, Pairs weights, Pair x) { return _mm512_dpbf16_ps(sum, weights, x); }

#else

using Pairs = Both;
using Pair = Both;
inline Pairs load_pairs(const bf16* p) { return load_both(p); }
inline Pair pair(const bf16* p) { return {all(as_float(p[0])), all(as_float(p[1]))}; }
inline F dot2(F sum, const Pairs& weights, const Pair& x) { return fma(weights.odd, x.odd, fma(weights.even, x.even, sum)); }

#endif

}  // namespace weights
