// Packed nibbles and fp8 as what products take: once for all rows of a group. Included inside a variant's namespace.

namespace weights {

#if !TWINLINE_EIGHT_LANES
inline void unpack_nibbles(const void* from, int64_t steps, uint8_t* to) {
  const uint8_t* at = static_cast<const uint8_t*>(from);
  for (int64_t s = 0; s < steps; ++s, at += kStepBytes, to += 2 * kStepBytes)
    for (int v = 0; v < 4; ++v) {
      const Bytes both = load_bytes(at + 64 * v);
      store_bytes(to + 64 * v, low_nibbles(both));
      store_bytes(to + kStepBytes + 64 * v, high_nibbles(both));
    }
}
#endif

// The value of an e4m3 byte: exact, as every one of them is a bfloat16.
inline float from_fp8(uint8_t byte) {
  const uint32_t rest = byte & 127u, normal = (rest << 20) + (120u << 23);
  float value;
  std::memcpy(&value, &normal, sizeof value);
  value = rest < 8 ? float(int32_t(rest)) * 0.001953125f : rest == 127 ? std::nanf("") : value;
  return byte & 128 ? -value : value;
}

inline void unpack_fp8(const void* from, int64_t steps, float* to) {
  const uint8_t* at = static_cast<const uint8_t*>(from);
  for (int64_t s = 0; s < steps; ++s, at += kStepBytes)
    for (int j = 0; j < 4; ++j, to += kPartOutputs)
      for (int64_t o = 0; o < kPartOutputs; ++o) to[o] = from_fp8(at[4 * o + j]);
}

#if TWINLINE_HAS_AVX512
// Words that hold an e4m3 byte each become bfloat16.
inline __m512i fp8_words(__m512i bytes) {
  alignas(64) static const uint16_t kSmall[32] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};  // m / 512
  const __m512i rest = _mm512_and_si512(bytes, _mm512_set1_epi16(127));
  __m512i value = _mm512_add_epi16(_mm512_slli_epi16(rest, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 small = _mm512_cmplt_epu16_mask(rest, _mm512_set1_epi16(8));
  value = _mm512_mask_permutexvar_epi16(value, small, rest, _mm512_load_si512(kSmall));
  const __mmask32 none = _mm512_cmpeq_epi16_mask(rest, _mm512_set1_epi16(127));
  value = _mm512_mask_mov_epi16(value, none, _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(value, _mm512_slli_epi16(_mm512_srli_epi16(bytes, 7), 15));
}
inline void unpack_fp8(const void* from, int64_t steps, bf16* to) {
  const uint8_t* at = static_cast<const uint8_t*>(from);
  const __m512i low = _mm512_set1_epi32(255), high = _mm512_set1_epi32(255 << 8);
  for (int64_t i = 0; i < 4 * steps; ++i, at += 64) {
    bf16* place = to + (i / 4 * 8 + i % 4) * 32;
    for (int half = 0; half < 2; ++half) {
      const __m512i four = _mm512_srli_epi32(_mm512_loadu_si512(at), unsigned(16 * half));
      const __m512i pair = _mm512_or_si512(_mm512_and_si512(four, low), _mm512_slli_epi32(_mm512_and_si512(four, high), 8));
      _mm512_storeu_si512(place + half * 128, fp8_words(pair));
    }
  }
}
#elif TWINLINE_HAS_AVX2
// The same for sixteen words.
inline __m256i fp8_words(__m256i bytes) {
  // m / 512 for m below 8: low bytes, then high ones.
  const __m256i small = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0, -128, -64, 0, 32, 64, 96, 0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c));
  const __m256i rest = _mm256_and_si256(bytes, _mm256_set1_epi16(127));
  __m256i value = _mm256_add_epi16(_mm256_slli_epi16(rest, 4), _mm256_set1_epi16(120 << 7));
  const __m256i both = _mm256_add_epi16(_mm256_or_si256(rest, _mm256_slli_epi16(rest, 8)), _mm256_set1_epi16(8 << 8));
  const __m256i normal = _mm256_cmpgt_epi16(rest, _mm256_set1_epi16(7));
  value = _mm256_blendv_epi8(_mm256_shuffle_epi8(small, both), value, normal);
  const __m256i none = _mm256_cmpeq_epi16(rest, _mm256_set1_epi16(127));
  value = _mm256_blendv_epi8(value, _mm256_set1_epi16(0x7fc0), none);
  return _mm256_or_si256(value, _mm256_slli_epi16(_mm256_srli_epi16(bytes, 7), 15));
}
inline void unpack_fp8(const void* from, int64_t steps, bf16* to) {
  const char* at = static_cast<const char*>(from);
  const __m256i low = _mm256_set1_epi32(255), high = _mm256_set1_epi32(255 << 8);
  for (int64_t s = 0; s < steps; ++s, to += 4 * kPartOutputs)
    for (int v = 0; v < kVectors; ++v, at += kVectorBytes)
      for (int half = 0; half < 2; ++half) {
        const __m256i four = _mm256_srli_epi32(load_bytes(at), 16 * half);
        const __m256i pair = _mm256_or_si256(_mm256_and_si256(four, low), _mm256_slli_epi32(_mm256_and_si256(four, high), 8));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half * 2 * kPartOutputs + v * 2 * kLanes), fp8_words(pair));
      }
}
#else
inline void unpack_fp8(const void* from, int64_t steps, bf16* to) {
  const uint8_t* at = static_cast<const uint8_t*>(from);
  for (int64_t s = 0; s < steps; ++s, at += kStepBytes)
    for (int half = 0; half < 2; ++half, to += 2 * kBlock)
      for (int64_t o = 0; o < kBlock; ++o)
        for (int j = 0; j < 2; ++j) to[2 * o + j] = to_bf16(from_fp8(at[4 * o + 2 * half + j]));
}
#endif

}  // namespace weights
