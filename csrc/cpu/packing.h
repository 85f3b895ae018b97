// Putting weights into the layout of layout.h, rounding them to their form on the way. Included inside a variant's namespace.
//
// The roundings are those of `quantize` in engine/ops/quantized.py, which defines them, to the bit.

namespace packing {

constexpr int64_t kBlock = weights::kBlock, kSquare = 128;  // side of the square that shares a scale in fp8

inline float half_to_float(uint16_t half) {
  const uint32_t rest = half & 0x7fffu, sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t bits = rest >= 0x7c00 ? rest << 13 | 0x7f800000u : (rest << 13) + (112u << 23);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  if (rest < 0x400) value = float(int32_t(rest)) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -value : value;
}

// A row of the source in float, from input `begin` on.
inline void read_values(const PackWeight& a, int64_t row, int64_t begin, int64_t size, float* to) {
  const int64_t at = row * a.to.inputs + begin;
  switch (a.from) {
    case kFromFloat: std::memcpy(to, static_cast<const float*>(a.source) + at, size_t(size) * sizeof(float)); return;
    case kFromBfloat16: {
      const bf16* from = static_cast<const bf16*>(a.source) + at;
      return each16(size, [&](int64_t i, int n) { store_n(to + i, load_n(from + i, n), n); });
    }
    case kFromHalf: {
      const uint16_t* from = static_cast<const uint16_t*>(a.source) + at;
      for (int64_t i = 0; i < size; ++i) to[i] = half_to_float(from[i]);
    }
  }
}

// Of a group, its greatest magnitude; for int4 with the sign of the first value that has it.
inline float greatest(const float* x, int64_t size) {
  F top = zero();
  each16(size, [&](int64_t i, int n) { top = max(top, absolute(load_n(x + i, n))); });
  return most(top);
}
inline float greatest_with_sign(const float* x, int64_t size) {
  const float top = greatest(x, size);
  for (int64_t i = 0; i < size; ++i)
    if (x[i] == top || x[i] == -top) return x[i];
  return top;
}

inline void read_row(const PackWeight& a, int64_t row, float* to) { read_values(a, row, 0, a.to.inputs, to); }

// A scale too small to divide by becomes 1, so that the group's values are 0.
inline float usable(float scale) { return scale < 1.17549435e-38f && scale > -1.17549435e-38f ? 1.0f : scale; }

inline void round_to(const float* x, int64_t size, float scale, float low, float high, int8_t* to) {
  each16(size, [&](int64_t i, int n) {
    const F whole = nearest(div(load_n(x + i, n), all(scale)));
    int8_t some[16];
    weights::store_signed(some, min(max(whole, all(low)), all(high)));
    std::memcpy(to + i, some, size_t(n));
  });
}

inline uint8_t to_fp8(float x) {
  uint32_t bits;
  x = x > 448.0f ? 448.0f : x < -448.0f ? -448.0f : x;
  std::memcpy(&bits, &x, sizeof bits);
  const uint8_t sign = uint8_t(bits >> 24 & 128);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 127;
  const float size = x < 0 ? -x : x;
  if (size < 0.015625f) return sign | uint8_t(int32_t(__builtin_nearbyintf(size * 512.0f)));
  return sign | uint8_t(((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120u << 3));
}

// What a block's 64 rows are before they are interleaved: float values of one row, bytes [64, inputs] and scales [64, groups] of
// all, and the steps of one group [64, steps], 256 of them or fewer.
struct Staging {
  float *values, *scales;
  int8_t* bytes;
  uint32_t* steps;
  int64_t size, groups;  // of a scale: inputs, and how many of them to a row

  static Staging take(const Weight& w) {
    const int64_t inputs = weights::up(w.inputs, 64);
    const int64_t size = w.form == kFp8 ? kSquare : w.group ? w.group : w.inputs, groups = (w.inputs + size - 1) / size;
    const int64_t floats = inputs + weights::up(kBlock * groups, 16), most_steps = 256;
    char* at = static_cast<char*>(scratch(kTask, floats * 4 + kBlock * (inputs + most_steps * 4)));
    float* values = reinterpret_cast<float*>(at);
    int8_t* bytes = reinterpret_cast<int8_t*>(at + floats * 4);
    return {values, values + inputs, bytes, reinterpret_cast<uint32_t*>(bytes + kBlock * inputs), size, groups};
  }
};

inline float round_int8(const float* x, int64_t size, int8_t* to) {
  const float scale = usable(greatest(x, size) / 127.0f);
  round_to(x, size, scale, -127.0f, 127.0f, to);
  return scale;
}

// The value of greatest magnitude becomes -8, as llama.cpp's q4_0 has it: all sixteen levels are used.
inline float round_int4(const float* x, int64_t size, int8_t* to) {
  bf16 stored[16];
  store_some(stored, all(greatest_with_sign(x, size) / -8.0f), 1);
  const float scale = usable(sum(load_some(stored, 1)));
  round_to(x, size, scale, -8.0f, 7.0f, to);
  return scale;
}

// The scales of the squares of fp8 values that a block's rows lie in.
inline void scales_of_squares(const PackWeight& a, int64_t matrix, int64_t block, const Staging& s) {
  const int64_t first = block * kBlock / kSquare * kSquare;
  for (int64_t g = 0; g < s.groups; ++g) s.scales[g] = 0;
  for (int64_t r = first; r < first + kSquare && r < a.to.outputs; ++r) {
    read_row(a, matrix * a.to.outputs + r, s.values);
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t left = a.to.inputs - g * kSquare;
      const float some = greatest(s.values + g * kSquare, left < kSquare ? left : kSquare);
      s.scales[g] = some > s.scales[g] ? some : s.scales[g];
    }
  }
  for (int64_t g = 0; g < s.groups; ++g) s.scales[g] = usable(s.scales[g] / 448.0f);
}

// One row's values as bytes, and its scales.
inline void quantize_row(const PackWeight& a, int64_t row, int8_t* bytes, float* scales, const Staging& s) {
  read_row(a, row, s.values);
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t begin = g * s.size, left = a.to.inputs - begin, size = left < s.size ? left : s.size;
    const float* x = s.values + begin;
    if (a.to.form == kInt8) scales[g] = round_int8(x, size, bytes + begin);
    else if (a.to.form == kInt4) scales[g] = round_int4(x, size, bytes + begin);
    else
      for (int64_t i = 0; i < size; ++i) bytes[begin + i] = int8_t(to_fp8(x[i] / s.scales[g]));
  }
}

inline void quantize_block(const PackWeight& a, int64_t matrix, int64_t block, const Staging& s) {
  const Weight& w = a.to;
  const int64_t squares_down = (w.outputs + kSquare - 1) / kSquare;
  const float* given = static_cast<const float*>(a.scales);
  if (w.form == kFp8 && a.from != kFromQuantized) scales_of_squares(a, matrix, block, s);
  if (w.form == kFp8 && a.from == kFromQuantized)
    std::memcpy(s.scales, given + (matrix * squares_down + block * kBlock / kSquare) * s.groups, size_t(s.groups) * 4);
  for (int64_t o = 0; o < kBlock; ++o) {
    const int64_t row = block * kBlock + o, at = matrix * w.outputs + row;
    int8_t* bytes = s.bytes + o * w.inputs;
    float* scales = s.scales + o * s.groups;
    if (row >= w.outputs) {
      std::memset(bytes, 0, size_t(w.inputs));
      if (w.form != kFp8) std::memset(scales, 0, size_t(s.groups) * sizeof(float));
    } else if (a.from == kFromQuantized) {
      std::memcpy(bytes, static_cast<const int8_t*>(a.source) + at * w.inputs, size_t(w.inputs));
      if (w.form != kFp8) std::memcpy(scales, given + at * s.groups, size_t(s.groups) * sizeof(float));
    } else {
      quantize_row(a, at, bytes, scales, s);
    }
  }
}

// Bytes of a group as steps: unsigned for integers, two nibbles to a byte for int4. Zeros fill the last step.
inline void byte_steps(int64_t form, const int8_t* x, int64_t size, uint8_t* to) {
  for (; form != kFp8 && size >= 8; x += 8, size -= 8) {
    uint64_t eight;
    std::memcpy(&eight, x, 8);
    // x + 128 is x with its sign turned round, and so is a nibble + 8.
    if (form == kInt8) {
      eight ^= 0x8080808080808080u;
      std::memcpy(to, &eight, 8);
      to += 8;
    } else {
      eight = (eight & 0x0f0f0f0f0f0f0f0fu) ^ 0x0808080808080808u;
      const uint32_t four = uint32_t(eight) | uint32_t(eight >> 32) << 4;
      std::memcpy(to, &four, 4);
      to += 4;
    }
  }
  if (form == kFp8)
    for (int64_t i = 0; i < weights::up(size, 4); ++i) to[i] = i < size ? uint8_t(x[i]) : 0;
  else if (form == kInt8)
    for (int64_t i = 0; i < weights::up(size, 4); ++i) to[i] = uint8_t((i < size ? x[i] : 0) + 128);
  else
    for (int64_t i = 0; i < weights::up(size, 8); i += 8)
      for (int64_t j = i; j < i + 4; ++j)
        *to++ = uint8_t(((j < size ? x[j] : 0) + 8) | ((j + 4 < size ? x[j + 4] : 0) + 8) << 4);
}

// Values of a group as steps.
inline void plain_steps(const PackWeight& a, int64_t row, int64_t begin, int64_t size, void* to) {
  if (a.to.form == kPlainFloat) return read_values(a, row, begin, size, static_cast<float*>(to));
  float x[weights::kPlainSteps * 2];
  bf16* values = static_cast<bf16*>(to);
  read_values(a, row, begin, size, x);
  each16(size, [&](int64_t i, int n) { store_n(values + i, load_n(x + i, n), n); });
  if (size % 2) values[size] = 0;
}

// Steps of four bytes, [kPartOutputs, steps], become steps of all outputs.
inline void interleave(const uint32_t* from, int64_t steps, uint32_t* to) {
  for (int64_t begin = 0; begin < steps; begin += 16) {
    const int64_t end = begin + 16 < steps ? begin + 16 : steps;
    for (int64_t o = 0; o < weights::kPartOutputs; ++o)
      for (int64_t s = begin; s < end; ++s) to[s * weights::kPartOutputs + o] = from[o * steps + s];
  }
}

// Scales of the outputs from `first` on to their place behind the group.
inline void write_scales(const Weight& w, const Staging& s, int64_t group, int64_t first, void* to) {
  float* floats = static_cast<float*>(to);
  if (w.form == kFp8) {
    std::memset(to, 0, weights::kFp8ScaleBytes);
    floats[0] = s.scales[group];
    return;
  }
  for (int64_t o = 0; o < weights::kPartOutputs; o += 16) {
    float some[16];
    for (int64_t i = 0; i < 16; ++i) some[i] = s.scales[(first + o + i) * s.groups + group];
    w.form == kInt4 ? store(static_cast<bf16*>(to) + o, load(some)) : store(floats + o, load(some));
  }
}

inline void pack_block(const PackWeight& a, int64_t matrix, int64_t block) {
  const Weight& w = a.to;
  const weights::Layout l = weights::layout(w);
  const Staging s = Staging::take(w);
  const bool plain = w.form == kPlainFloat || w.form == kPlainBfloat16 || w.form == kWidened;
  char* to = static_cast<char*>(const_cast<void*>(w.data)) + (matrix * weights::blocks(w) + block) * l.block_bytes;
  if (!plain) quantize_block(a, matrix, block, s);
  for (int64_t g = 0; g < l.groups; ++g, to += l.group_bytes) {
    const int64_t begin = g * l.group_inputs, left = w.inputs - begin, size = left < l.group_inputs ? left : l.group_inputs;
    const int64_t steps = (size + l.step_inputs - 1) / l.step_inputs;
    for (int64_t o = 0; o < kBlock; ++o) {
      const int64_t row = block * kBlock + o;
      uint32_t* row_steps = s.steps + o * steps;
      if (!plain) byte_steps(w.form, s.bytes + o * w.inputs + begin, size, reinterpret_cast<uint8_t*>(row_steps));
      else if (row < w.outputs) plain_steps(a, matrix * w.outputs + row, begin, size, row_steps);
      else std::memset(row_steps, 0, size_t(steps) * 4);
    }
    for (int64_t first = 0; first < kBlock; first += weights::kPartOutputs) {
      char* part = to + first / weights::kPartOutputs * l.part_bytes;
      interleave(s.steps + first * steps, steps, reinterpret_cast<uint32_t*>(part));
      part += steps * weights::kStepBytes;
      if (l.scale_bytes || (w.form == kInt8 && g + 1 == l.groups)) write_scales(w, s, l.scale_bytes ? g : 0, first, part);
    }
  }
}

}  // namespace packing

inline void weight_bytes(const WeightBytes& a) {
  *a.bytes = a.of.count * weights::blocks(a.of) * weights::layout(a.of).block_bytes;
}

inline void pack_weight(const PackWeight& a) {
  const int64_t blocks = weights::blocks(a.to);
  parallel(a.to.count * blocks, [&](int64_t task) { packing::pack_block(a, task / blocks, task % blocks); });
}
