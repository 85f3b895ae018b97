// Packed weights, rows of inputs prepared for them, and the products of the two. Included inside a variant's namespace.
//
// A matrix is packed by blocks of 64 outputs (zeros behind the last), so that four vectors hold what one input meets. A block is one
// stream of steps of 256 bytes: 4 bytes for each output, which are one float, two bfloat16, four bytes or eight nibbles along the
// inputs. Bytes are unsigned, int8 + 128. A step of nibbles, int4 + 8, has its first four inputs in the low halves and the other
// four in the high ones. Inputs come in groups; behind each group lie its scales: bfloat16 [64] for int4, float [64] for int8,
// one float in 64 bytes for fp8 (e4m3). int8 with one scale to an output has its scales once, behind the last group.
//
// Integers meet rows that are themselves rounded to int8, by groups of inputs: sum (w + offset) x - offset sum x is exact, then scaled
// and added up in float. So products of a row are one chain in the order of its inputs, whatever rows are beside it.

namespace weights {

constexpr int64_t kBlock = 64, kStepBytes = 256;
constexpr int64_t kPlainSteps = 256;  // of plain weights at once: 64 KB
constexpr int64_t kLoneGroup = 512;  // inputs that share a scale of the row, for int8 with one scale to an output

inline int64_t up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Where things lie in a block.
struct Layout {
  int64_t step_inputs, group_inputs, groups, group_bytes, scale_bytes, block_bytes;
};

inline Layout layout(const Weight& w) {
  const int64_t form = w.form;
  Layout l;
  l.step_inputs = form == kPlainFloat ? 1 : form == kPlainBfloat16 || form == kWidened ? 2 : form == kInt4 ? 8 : 4;
  l.group_inputs = form == kFp8 ? 128 : w.group ? w.group : form == kInt8 ? kLoneGroup : kPlainSteps * l.step_inputs;
  l.groups = (w.inputs + l.group_inputs - 1) / l.group_inputs;
  l.scale_bytes = form == kInt4 ? kBlock * 2 : form == kInt8 ? (w.group ? kBlock * 4 : 0) : form == kFp8 ? 64 : 0;
  l.group_bytes = l.group_inputs / l.step_inputs * kStepBytes + l.scale_bytes;
  l.block_bytes = up(w.inputs, l.step_inputs) / l.step_inputs * kStepBytes + l.groups * l.scale_bytes;
  if (form == kInt8 && w.group == 0) l.block_bytes += kBlock * 4;
  return l;
}

inline int64_t blocks(const Weight& w) { return (w.outputs + kBlock - 1) / kBlock; }
inline bool is_integer(const Weight& w) { return w.form == kInt8 || w.form == kInt4; }

// One matrix of a stack.
inline Weight matrix(const Weight& stack, int64_t index) {
  Weight one = stack;
  one.data = static_cast<const uint8_t*>(stack.data) + index * blocks(stack) * layout(stack).block_bytes;
  one.count = 1;
  return one;
}

// Rows of inputs as a matrix takes them: float or bfloat16 for plain and fp8 weights, int8 with scales for integer ones.
struct Inputs {
  const void* values;     // [rows, stride], zeros behind the last input up to a whole step
  int64_t rows, stride;   // in values
  const float* scales;    // [rows, groups]
  const int32_t* starts;  // [rows, groups]: -offset times the group's sum
  int64_t groups;

  template <typename V>
  Inputs from(int64_t row, int64_t count) const {
    Inputs some = *this;
    some.values = static_cast<const V*>(values) + row * stride;
    some.rows = count;
    some.scales += row * groups;
    some.starts += row * groups;
    return some;
  }
};

// Whether rows of T can be used as they lie.
inline bool as_they_lie(const Weight& w) { return !is_integer(w) && w.inputs % layout(w).step_inputs == 0; }

template <typename T>
inline Inputs view(const T* x, int64_t rows, int64_t stride) {
  return {x, rows, stride, nullptr, nullptr, 0};
}

// The places of `rows` prepared rows of T in memory of `prepared_bytes`, 64-byte aligned.
template <typename T>
inline Inputs place(const Weight& w, int64_t rows, void* memory) {
  const int64_t groups = is_integer(w) ? layout(w).groups : 0, stride = up(w.inputs, 64);
  char* at = static_cast<char*>(memory);
  float* scales = reinterpret_cast<float*>(at + up(rows * stride * int64_t(is_integer(w) ? 1 : sizeof(T)), 64));
  return {memory, rows, stride, scales, reinterpret_cast<int32_t*>(scales + rows * groups), groups};
}

template <typename T>
inline int64_t prepared_bytes(const Weight& w, int64_t rows) {
  const int64_t groups = is_integer(w) ? layout(w).groups : 0;
  return up(rows * up(w.inputs, 64) * int64_t(is_integer(w) ? 1 : sizeof(T)), 64) + rows * groups * 8;
}

// A group of a row as int8, its greatest value 127. What is not finite makes the scale so.
template <typename T>
inline void round_group(const T* x, int64_t size, int64_t padded, int32_t offset, int8_t* values, float* scale, int32_t* start) {
  F top = zero(), total = zero();
  each16(size, [&](int64_t i, int n) { top = max(top, absolute(load_n(x + i, n))); });
  const float greatest = most(top);
  const F inverse = all(greatest > 1e-30f ? 127.0f / greatest : 0.0f);
  each16(size, [&](int64_t i, int n) {
    const F rounded = nearest(mul(load_n(x + i, n), inverse));
    total = add(total, rounded);
    store_signed(values + i, rounded);
  });
  for (int64_t i = up(size, 16); i < padded; ++i) values[i] = 0;
  const float whole = sum(total);
  const bool finite = whole - whole == 0;
  *scale = finite ? greatest / 127.0f : std::nanf("");
  *start = finite ? -offset * int32_t(whole) : 0;
}

// Makes row `r` of placed inputs from a row of T.
template <typename T>
inline void prepare_row(const Weight& w, const Inputs& to, int64_t r, const T* x) {
  if (!is_integer(w)) {
    T* row = static_cast<T*>(const_cast<void*>(to.values)) + r * to.stride;
    std::memcpy(row, x, size_t(w.inputs) * sizeof(T));
    std::memset(row + w.inputs, 0, size_t(to.stride - w.inputs) * sizeof(T));
    return;
  }
  const Layout l = layout(w);
  int8_t* row = static_cast<int8_t*>(const_cast<void*>(to.values)) + r * to.stride;
  for (int64_t g = 0; g < l.groups; ++g) {
    const int64_t begin = g * l.group_inputs, left = w.inputs - begin;
    const int64_t size = left < l.group_inputs ? left : l.group_inputs;
    const int64_t padded = left <= l.group_inputs ? to.stride - begin : l.group_inputs;
    round_group(x + begin, size, padded, w.form == kInt4 ? 8 : 128, row + begin,
                const_cast<float*>(to.scales) + r * to.groups + g, const_cast<int32_t*>(to.starts) + r * to.groups + g);
  }
}

// What a step holds, and how it meets a row: Value is of the row, Weights of sixteen outputs, Seen the row's part of a step.
struct Floats {
  using Value = float;
  using Weights = F;
  using Seen = F;
  using Sum = F;
  static constexpr int kInputs = 1;
  static Weights load_weights(const void* p) { return load(static_cast<const float*>(p)); }
  static Seen see(const float* x) { return all(*x); }
  static Sum meet(Sum sum, Weights w, Seen x) { return fma(w, x, sum); }
};
struct Brains {
  using Value = bf16;
  using Weights = Pairs;
  using Seen = Pair;
  using Sum = F;
  static constexpr int kInputs = 2;
  static Weights load_weights(const void* p) { return load_pairs(static_cast<const bf16*>(p)); }
  static Seen see(const bf16* x) { return pair(x); }
  static Sum meet(Sum sum, const Weights& w, const Seen& x) { return dot2(sum, w, x); }
};
// As `Floats` with the same values, to the bit: half the memory to read.
struct Widened {
  using Value = float;
  using Weights = Both;
  struct Seen {
    F even, odd;
  };
  using Sum = F;
  static constexpr int kInputs = 2;
  static Weights load_weights(const void* p) { return load_both(static_cast<const bf16*>(p)); }
  static Seen see(const float* x) { return {all(x[0]), all(x[1])}; }
  static Sum meet(Sum sum, const Weights& w, const Seen& x) { return fma(w.odd, x.odd, fma(w.even, x.even, sum)); }
};
struct Int8 {
  using Value = int8_t;
  using Weights = Bytes;
  using Seen = Four;
  using Sum = I;
  using Scale = float;
  static constexpr int kInputs = 4;
  static Weights load_weights(const void* p) { return load_bytes(p); }
  static Seen see(const int8_t* x) { return four(x); }
  static Sum meet(Sum sum, const Weights& w, const Seen& x) { return dot4(sum, w, x); }
};
struct Int4 {
  using Value = int8_t;
  struct Weights {
    Bytes low, high;
  };
  struct Seen {
    Four low, high;
  };
  using Sum = I;
  using Scale = bf16;
  static constexpr int kInputs = 8;
  static Weights load_weights(const void* p) {
    const Bytes both = load_bytes(p);
    return {low_nibbles(both), high_nibbles(both)};
  }
  static Seen see(const int8_t* x) { return {four(x), four(x + 4)}; }
  static Sum meet(Sum sum, const Weights& w, const Seen& x) { return dot4(dot4(sum, w.low, x.low), w.high, x.high); }
};

#if TWINLINE_HAS_AVX512
constexpr int kTile = 6;         // rows at once: 24 sums, 4 vectors of weights and 1 of the row
constexpr int kWidenedTile = 5, kNibblesTile = 4;  // 20 or 16 sums and 8 vectors of weights
#else
constexpr int kTile = 2, kWidenedTile = 1, kNibblesTile = 1;
#endif

// A group of a block, and what of later weights to call for meanwhile.
struct Group {
  const void *data, *scales;
  int64_t steps, scale_bytes, index;
  const char *ahead, *ahead_end;
};


inline void call_for(const char* p) {
#ifdef TWINLINE_X86
  _mm_prefetch(p, _MM_HINT_T1);
#else
  __builtin_prefetch(p);
#endif
}

#define TWINLINE_ALWAYS_INLINE inline __attribute__((always_inline))

// Adds the products of a group to the sums of Rows rows. `Lines` cache lines of later weights are called for in each step.
template <typename Form, int Rows, int Lines>
TWINLINE_ALWAYS_INLINE void multiply(const typename Form::Value* x, int64_t stride, const Group& group, typename Form::Sum (&sums)[Rows][4]) {
  const char* at = static_cast<const char*>(group.data);
  const char* ahead = group.ahead;
  for (int64_t step = 0; step < group.steps; ++step, at += kStepBytes, x += Form::kInputs, ahead += 64 * Lines) {
    for (int line = 0; line < Lines; ++line) call_for(ahead + 64 * line);
    typename Form::Weights weights[4];
    for (int v = 0; v < 4; ++v) weights[v] = Form::load_weights(at + 64 * v);
    for (int r = 0; r < Rows; ++r) {
      const typename Form::Seen seen = Form::see(x + r * stride);
      for (int v = 0; v < 4; ++v) sums[r][v] = Form::meet(sums[r][v], weights[v], seen);
    }
  }
}

// A group of plain weights: the sums go on.
template <typename Form>
struct Plain {
  using Of = Form;
  template <int Rows, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    F sums[Rows][4];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < 4; ++v) sums[r][v] = load(totals + r * kBlock + 16 * v);
    multiply<Form, Rows, Lines>(static_cast<const typename Form::Value*>(x.values), x.stride, group, sums);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < 4; ++v) store(totals + r * kBlock + 16 * v, sums[r][v]);
  }
};

// A group of floats that share one scale.
template <typename Form>
struct Scaled {
  using Of = Form;
  template <int Rows, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    F sums[Rows][4];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < 4; ++v) sums[r][v] = zero();
    multiply<Form, Rows, Lines>(static_cast<const typename Form::Value*>(x.values), x.stride, group, sums);
    const F scale = all(*static_cast<const float*>(group.scales));
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < 4; ++v) {
        float* total = totals + r * kBlock + 16 * v;
        store(total, fma(sums[r][v], scale, load(total)));
      }
  }
};

// A group of integers, with a scale to each output.
template <typename Form, typename Scale = typename Form::Scale>
struct Integer {
  using Of = Form;
  template <int Rows, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    I sums[Rows][4];
    for (int r = 0; r < Rows; ++r) {
      const I start = all_of(x.starts[r * x.groups + group.index]);
      for (int v = 0; v < 4; ++v) sums[r][v] = start;
    }
    multiply<Form, Rows, Lines>(static_cast<const int8_t*>(x.values), x.stride, group, sums);
    F scales[4];
    for (int v = 0; v < 4; ++v) scales[v] = load(static_cast<const Scale*>(group.scales) + 16 * v);
    for (int r = 0; r < Rows; ++r) {
      const F scale = all(x.scales[r * x.groups + group.index]);
      for (int v = 0; v < 4; ++v) {
        float* total = totals + r * kBlock + 16 * v;
        store(total, fma(mul(to_float(sums[r][v]), scale), scales[v], load(total)));
      }
    }
  }
};

template <typename Kind, int Lines, int Rows>
inline void run_rows(int64_t rows, const Inputs& x, const Group& group, float* totals) {
  if (rows == Rows) return Kind::template run<Rows, Lines>(x, group, totals);
  if constexpr (Rows > 1) run_rows<Kind, Lines, Rows - 1>(rows, x, group, totals);
}

// All rows through a group, by tiles alike in size, which share in calling for later weights.
template <typename Kind, int Tile>
inline void run_group(const Inputs& x, Group group, float* totals) {
  using Value = typename Kind::Of::Value;
  for (const char* p = group.ahead_end - group.scale_bytes; p < group.ahead_end; p += 64) call_for(p);
  const int64_t tiles = (x.rows + Tile - 1) / Tile;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t rows = x.rows / tiles + (t < x.rows % tiles);
    const Inputs some = x.from<Value>(row, rows);
    float* to = totals + row * kBlock;
    if (group.ahead >= group.ahead_end) {
      run_rows<Kind, 0, Tile>(rows, some, group, to);
    } else if (tiles < 4) {
      run_rows<Kind, 2, Tile>(rows, some, group, to);
      group.ahead += group.steps * 128;
    } else {
      run_rows<Kind, 1, Tile>(rows, some, group, to);
      group.ahead += group.steps * 64;
    }
    row += rows;
  }
}

inline void unpack_nibbles(const void* from, int64_t steps, uint8_t* to) {
  const uint8_t* at = static_cast<const uint8_t*>(from);
  for (int64_t s = 0; s < steps; ++s, at += kStepBytes, to += 2 * kStepBytes)
    for (int v = 0; v < 4; ++v) {
      const Bytes both = load_bytes(at + 64 * v);
      store_bytes(to + 64 * v, low_nibbles(both));
      store_bytes(to + kStepBytes + 64 * v, high_nibbles(both));
    }
}

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
    for (int j = 0; j < 4; ++j, to += kBlock)
      for (int64_t o = 0; o < kBlock; ++o) to[o] = from_fp8(at[4 * o + j]);
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
#else
inline void unpack_fp8(const void* from, int64_t steps, bf16* to) {
  const uint8_t* at = static_cast<const uint8_t*>(from);
  for (int64_t s = 0; s < steps; ++s, at += kStepBytes)
    for (int half = 0; half < 2; ++half, to += 2 * kBlock)
      for (int64_t o = 0; o < kBlock; ++o)
        for (int j = 0; j < 2; ++j) to[2 * o + j] = to_bf16(from_fp8(at[4 * o + 2 * half + j]));
}
#endif

template <typename T>
struct FormOf {
  using type = Floats;
};
template <>
struct FormOf<bf16> {
  using type = Brains;
};

// The groups of one block in turn.
struct Walk {
  Layout l;
  const Weight& w;
  const char *begin, *end, *following;  // `following`: the block that comes next, as far as is known
  int64_t value_bytes;                  // of the rows
  int64_t distance = 3072;              // bytes between the weights in use and those called for

  // With a group gone through more than once, the next one comes meanwhile.
  Walk by_group() const {
    Walk other = *this;
    other.distance = distance > l.group_bytes ? distance : l.group_bytes;
    return other;
  }

  template <typename Body>
  void each(const Inputs& x, const Body& body) const {
    const char *at = begin, *lone_scales = end - kBlock * 4;
    Inputs some = x;
    for (int64_t g = 0, left = w.inputs; g < l.groups; ++g, left -= l.group_inputs, at += l.group_bytes) {
      const int64_t steps = left < l.group_inputs ? (left + l.step_inputs - 1) / l.step_inputs : l.group_inputs / l.step_inputs;
      const char* ahead = at + distance;
      if (ahead >= end) ahead = following + (ahead - end);
      const char* scales = w.form == kInt8 && w.group == 0 ? lone_scales : at + steps * kStepBytes;
      body(some, Group{at, scales, steps, l.scale_bytes, g, ahead, ahead + l.group_bytes});
      some.values = static_cast<const char*>(some.values) + l.group_inputs * value_bytes;
    }
  }
};

// One tile of rows, through all groups.
template <typename Kind, int Rows>
inline void walk_tile(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows < Rows) {
    if constexpr (Rows > 1) walk_tile<Kind, Rows - 1>(walk, x, totals);
    return;
  }
  walk.each(x, [&](const Inputs& some, const Group& group) {
    for (const char* p = group.ahead_end - group.scale_bytes; p < group.ahead_end; p += 64) call_for(p);
    Kind::template run<Rows, 4>(some, group, totals);
  });
}

// Rows of any number: one tile at once, more of them group by group.
template <typename Kind, int Tile>
inline void walk_rows(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows <= Tile) return walk_tile<Kind, Tile>(walk, x, totals);
  walk.by_group().each(x, [&](const Inputs& some, const Group& group) { run_group<Kind, Tile>(some, group, totals); });
}

template <typename T>
inline void walk_fp8(const Walk& walk, const Inputs& x, float* totals) {
  using Form = typename FormOf<T>::type;
  alignas(64) T unpacked[128 * kBlock];
  walk.by_group().each(x, [&](const Inputs& some, Group group) {
    unpack_fp8(group.data, group.steps, unpacked);
    group.data = unpacked;
    group.steps *= 4 / Form::kInputs;
    run_group<Scaled<Form>, kTile>(some, group, totals);
  });
}

// Nibbles are unpacked once for all rows where these are more than a tile.
inline void walk_int4(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows <= kNibblesTile) return walk_tile<Integer<Int4>, kNibblesTile>(walk, x, totals);
  alignas(64) uint8_t unpacked[128 * kBlock];
  walk.by_group().each(x, [&](const Inputs& some, Group group) {
    unpack_nibbles(group.data, group.steps, unpacked);
    group.data = unpacked;
    group.steps *= 2;
    run_group<Integer<Int8, bf16>, kTile>(some, group, totals);
  });
}

// Sums of one block of a matrix for every row: sums[row * 64 + output], outputs behind the last being 0. T is the model's type.
//
// `next` is the block that the calling thread takes up next, if known: its first weights will be on their way.
template <typename T>
inline void products(const Weight& w, int64_t block, const Inputs& x, float* sums, int64_t next = -1) {
  const Layout l = layout(w);
  const char* data = static_cast<const char*>(w.data);
  const char* begin = data + block * l.block_bytes;
  const char* following = data + (next < 0 || next >= blocks(w) ? block : next) * l.block_bytes;
  const Walk walk{l, w, begin, begin + l.block_bytes, following, int64_t(is_integer(w) ? 1 : sizeof(T))};
  std::memset(sums, 0, size_t(x.rows * kBlock) * sizeof(float));
  switch (w.form) {
    case kInt8: return walk_rows<Integer<Int8>, kTile>(walk, x, sums);
    case kInt4: return walk_int4(walk, x, sums);
    case kFp8: return walk_fp8<T>(walk, x, sums);
    case kWidened: return walk_rows<Plain<Widened>, kWidenedTile>(walk, x, sums);
    default: return walk_rows<Plain<typename FormOf<T>::type>, kTile>(walk, x, sums);
  }
}

}  // namespace weights
