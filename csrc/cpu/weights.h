// Products of packed weights (layout.h) with rows of inputs. Included inside a variant's namespace.

namespace weights {

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

// Nibbles are unpacked once for all rows where these are many. Sums of small groups are scaled so often that tiles of six rows pay
// sooner.
inline void walk_int4(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows <= (walk.w.group < 64 ? kNibblesTile : kFewRows)) return walk_rows<Integer<Int4>, kNibblesTile>(walk, x, totals);
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
