// Products of packed weights (layout.h) with rows of inputs, group by group. Included inside a variant's namespace.

namespace weights {

// A group of plain weights: the sums go on.
template <typename Form>
struct Plain {
  using Of = Form;
  static constexpr int kScaleBytes = 0;  // of an output
  template <int Rows, int Vectors, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    Lanes sums[Rows][Vectors];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) sums[r][v] = load_lanes(totals + r * kBlock + kLanes * v);
    multiply<Form, Rows, Vectors, Lines>(static_cast<const typename Form::Value*>(x.values), x.stride, group, sums);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) store_lanes(totals + r * kBlock + kLanes * v, sums[r][v]);
  }
};

// A group of floats that share one scale.
template <typename Form>
struct Scaled {
  using Of = Form;
  static constexpr int kScaleBytes = 0;
  template <int Rows, int Vectors, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    Lanes sums[Rows][Vectors];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) sums[r][v] = all_lanes(0.0f);
    multiply<Form, Rows, Vectors, Lines>(static_cast<const typename Form::Value*>(x.values), x.stride, group, sums);
    const Lanes scale = all_lanes(*static_cast<const float*>(group.scales));
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) {
        float* total = totals + r * kBlock + kLanes * v;
        store_lanes(total, fma(sums[r][v], scale, load_lanes(total)));
      }
  }
};

// A group of integers, with a scale to each output.
template <typename Form, typename Scale = typename Form::Scale>
struct Integer {
  using Of = Form;
  static constexpr int kScaleBytes = sizeof(Scale);
  template <int Rows, int Vectors, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    I sums[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
      const I start = all_of(Form::kOffset ? x.starts[r * x.groups + group.index] : 0);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = start;
    }
    multiply<Form, Rows, Vectors, Lines>(static_cast<const int8_t*>(x.values), x.stride, group, sums);
    Lanes scales[Vectors];
    for (int v = 0; v < Vectors; ++v) scales[v] = load_lanes(static_cast<const Scale*>(group.scales) + kLanes * v);
    for (int r = 0; r < Rows; ++r) {
      const Lanes scale = all_lanes(x.scales[r * x.groups + group.index]);
      for (int v = 0; v < Vectors; ++v) {
        float* total = totals + r * kBlock + kLanes * v;
        store_lanes(total, fma(mul(to_float(sums[r][v]), scale), scales[v], load_lanes(total)));
      }
    }
  }
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

#if !TWINLINE_EIGHT_LANES

template <typename Kind, int Lines, int Rows>
inline void run_rows(int64_t rows, const Inputs& x, const Group& group, float* totals) {
  if (rows == Rows) return Kind::template run<Rows, kVectors, Lines>(x, group, totals);
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

// One tile of rows, through all groups.
template <typename Kind, int Rows>
inline void walk_tile(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows < Rows) {
    if constexpr (Rows > 1) walk_tile<Kind, Rows - 1>(walk, x, totals);
    return;
  }
  walk.each(x, [&](const Inputs& some, const Group& group) {
    for (const char* p = group.ahead_end - group.scale_bytes; p < group.ahead_end; p += 64) call_for(p);
    Kind::template run<Rows, kVectors, 4>(some, group, totals);
  });
}

// Rows of any number: one tile at once, more of them group by group.
template <typename Kind, int Tile>
inline void walk_rows(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows <= Tile) return walk_tile<Kind, Tile>(walk, x, totals);
  walk.by_group().each(x, [&](const Inputs& some, const Group& group) { run_group<Kind, Tile>(some, group, totals); });
}

#else

// A group's steps by parts of kAtOnce vectors. To go through memory in its order, once, and then through what lies together is much
// faster than to take a quarter of every step four times: two rows would take twice as long as one.
inline void part(const void* from, int64_t steps, char* to) {
  const char* at = static_cast<const char*>(from);
  for (int64_t step = 0; step < steps; ++step, to += kPartBytes)
    for (int64_t p = 0; p < kStepBytes / kPartBytes; ++p)
      for (int v = 0; v < kAtOnce; ++v, at += kVectorBytes) store_bytes(to + p * steps * kPartBytes + v * kVectorBytes, load_bytes(at));
}

template <typename Kind, int Rows>
inline void run_rows(int64_t rows, const Inputs& x, Group group, float* totals) {
  if (rows < Rows) {
    if constexpr (Rows > 2) run_rows<Kind, Rows - 1>(rows, x, group, totals);
    return;
  }
  const int64_t bytes = group.steps * kPartBytes;
  for (int p = 0; p < kVectors / kAtOnce; ++p) {
    Kind::template run<Rows, kAtOnce, 0>(x, group, totals);
    group.data = static_cast<const char*>(group.data) + bytes;
    group.scales = static_cast<const char*>(group.scales) + Kind::kScaleBytes * kLanes * kAtOnce;
    totals += kLanes * kAtOnce;
  }
}

// All rows through a group, by tiles alike in size.
template <typename Kind, int Tile>
inline void run_group(const Inputs& x, Group group, float* totals) {
  using Value = typename Kind::Of::Value;
  for (const char* p = group.ahead_end - group.scale_bytes; p < group.ahead_end; p += 64) call_for(p);
  if (x.rows == 1) return Kind::template run<1, kVectors, 4>(x, group, totals);
  alignas(64) char parts[kPlainSteps * kStepBytes];
  part(group.data, group.steps, parts);
  group.data = parts;
  const int64_t tiles = (x.rows + Tile - 1) / Tile;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t rows = x.rows / tiles + (t < x.rows % tiles);
    run_rows<Kind, Tile>(rows, x.from<Value>(row, rows), group, totals + row * kBlock);
    row += rows;
  }
}

template <typename Kind, int Tile>
inline void walk_rows(const Walk& walk, const Inputs& x, float* totals) {
  walk.each(x, [&](const Inputs& some, const Group& group) { run_group<Kind, Tile>(some, group, totals); });
}

#endif

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

#if TWINLINE_EIGHT_LANES
inline void walk_int4(const Walk& walk, const Inputs& x, float* totals) { walk_rows<Integer<Int4>, kNibblesTile>(walk, x, totals); }
#else
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
#endif

// Sums of one block of a matrix for every row: sums[row * 64 + output], outputs behind the last being 0. T is the model's type.
//
// `next` is the block that the calling thread takes up next, if known: its first weights will be on their way.
template <typename T>
inline void products(const Weight& w, int64_t block, const Inputs& x, float* sums, int64_t next = -1) {
  const Layout l = layout(w);
  const char* data = static_cast<const char*>(w.data);
  const char* begin = data + block * l.block_bytes;
  const char* following = data + (next < 0 || next >= blocks(w) ? block : next) * l.block_bytes;
  const Walk walk{l, w, begin, begin + l.block_bytes, following, value_bytes<T>(w)};
  std::memset(sums, 0, size_t(x.rows * kBlock) * sizeof(float));
  switch (w.form) {
    case kInt8: return walk_rows<Integer<Int8>, kInt8Tile>(walk, x, sums);
    case kInt4: return walk_int4(walk, x, sums);
    case kFp8: return walk_fp8<T>(walk, x, sums);
    case kWidened: return walk_rows<Plain<Widened>, kWidenedTile>(walk, x, sums);
    default: return walk_rows<Plain<typename FormOf<T>::type>, kTile>(walk, x, sums);
  }
}

}  // namespace weights
