// What products of packed weights are made of, a register at a time: `kLanes` int32 sums of products of unsigned by signed bytes, and
// float sums of products of bfloat16. Included inside a variant's namespace.
//
// Bytes holds four unsigned bytes for each of the sums; Four holds four signed bytes, the same for all of them. Products and
// sums are exact on every instruction set: an instruction that saturates between (maddubs) is only given what it cannot saturate
// with.

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

using I = __m256i;
using Bytes = __m256i;
using Four = __m256i;

inline I all_of(int32_t x) { return _mm256_set1_epi32(x); }
inline Lanes to_float(I a) { return _mm256_cvtepi32_ps(a); }
inline Bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_signed(int8_t* p, F a) {  // packs by halves of registers
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
  const __m256i bytes = _mm256_packs_epi16(words, words);
  const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
}
inline Four four(const int8_t* p) { return spread(reinterpret_cast<const int32_t*>(p)); }
// Not by the intrinsics, whose sums have another type within GCC: it moves each of them twice, half of them through memory.
inline void add_to(I& sum, I more) { asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(more)); }
inline void add_words_to(I& sum, I more) { asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(more)); }
// Words of sums of two products each, two of them added up.
inline I widened(I pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Bytes + 128 as signs and sizes: no two products of sizes below 129 and signed bytes below 128 are more than a word holds.
struct SignedBytes {
  __m256i value, size;
};
inline SignedBytes load_signed(const void* p) {
  const __m256i value = _mm256_xor_si256(load_bytes(p), _mm256_set1_epi8(-128));
  return {value, _mm256_abs_epi8(value)};
}
inline I dot4(I sum, const SignedBytes& weights, Four x) {
  add_to(sum, widened(_mm256_maddubs_epi16(weights.size, _mm256_sign_epi8(x, weights.value))));
  return sum;
}

// A step of nibbles: products of eight inputs as words, two to each sum, none of them more than 4 * 15 * 127.
struct Nibbles {
  __m256i low, high;
};
inline Nibbles load_nibbles(const void* p) {
  const __m256i both = load_bytes(p), mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}
inline I dot8(const Nibbles& weights, Four low, Four high) {
  return _mm256_add_epi16(_mm256_maddubs_epi16(weights.low, low), _mm256_maddubs_epi16(weights.high, high));
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

#if !TWINLINE_EIGHT_LANES  // there rows are widened before they are met (layout.h)

// Pairs of bfloat16 as floats, exactly.
struct Both {
  Lanes even, odd;
};
#if TWINLINE_HAS_AVX512
inline Both load_both(const bf16* p) {
  const __m512i words = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))))};
}
#else
inline Both load_both(const bf16* p) {
  Both r;
  for (int i = 0; i < 16; ++i) {
    r.even.at[i] = as_float(p[2 * i]);
    r.odd.at[i] = as_float(p[2 * i + 1]);
  }
  return r;
}
#endif

// Sums of products of two pairs of bfloat16 each; a Pair is the same for all of them.
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
inline Pair pair(const bf16* p) { return {all_lanes(as_float(p[0])), all_lanes(as_float(p[1]))}; }
inline Lanes dot2(Lanes sum, const Pairs& weights, const Pair& x) { return fma(weights.odd, x.odd, fma(weights.even, x.even, sum)); }

#endif

#endif

}  // namespace weights
