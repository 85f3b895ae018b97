// Products of packed weights (layout.h) with rows of inputs, group by group. Included inside a variant's namespace.

namespace weights {

// A group of plain weights: the sums go on.
template <typename Form>
struct Plain {
  using Of = Form;
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
  template <int Rows, int Vectors, int Lines>
  static TWINLINE_ALWAYS_INLINE void run(const Inputs& x, const Group& group, float* totals) {
    I sums[Rows][Vectors];
#pragma GCC unroll 8  // or sums stay in memory
    for (int r = 0; r < Rows; ++r) {
      const I start = all_of(Form::kOffset ? x.starts[r * x.groups + group.index] : 0);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = start;
    }
    multiply<Form, Rows, Vectors, Lines>(static_cast<const int8_t*>(x.values), x.stride, group, sums);
    Lanes scales[Vectors];
    for (int v = 0; v < Vectors; ++v) scales[v] = load_scales<Scale>(group, v);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Lanes scale = all_lanes(x.scales[r * x.groups + group.index]);
      for (int v = 0; v < Vectors; ++v) {
        float* total = totals + r * kBlock + kLanes * v;
        store_lanes(total, fma(mul(to_float(sums[r][v]), scale), scales[v], load_lanes(total)));
      }
    }
  }
};

// The groups of one block in turn; where it has several parts, of the first of them.
struct Walk {
  Layout l;
  const Weight& w;
  const char *begin, *following;  // `following`: the block that comes next, as far as is known
  int64_t value_bytes;            // of the rows

#if TWINLINE_EIGHT_LANES

  Walk part(int64_t index) const {
    Walk other = *this;
    other.begin += index * l.part_bytes;
    return other;
  }
  Group group(const char* at, const char* scales, int64_t steps, int64_t index) const {
    return {at, scales, steps, index, l.part_bytes, l.part_bytes};
  }

#else

  int64_t distance = kAheadBytes;

  // With a group gone through more than once, the next one comes meanwhile.
  Walk by_group() const {
    Walk other = *this;
    other.distance = distance > l.group_bytes ? distance : l.group_bytes;
    return other;
  }
  Group group(const char* at, const char* scales, int64_t steps, int64_t index) const {
    const char *ahead = at + distance, *end = begin + l.block_bytes;
    if (ahead >= end) ahead = following + (ahead - end);
    return {at, scales, steps, l.scale_bytes, index, ahead, ahead + l.group_bytes};
  }

#endif

  template <typename Body>
  void each(const Inputs& x, const Body& body) const {
    const char *at = begin, *lone_scales = begin + l.part_bytes - kPartOutputs * 4;
    Inputs some = x;
    for (int64_t g = 0, left = w.inputs; g < l.groups; ++g, left -= l.group_inputs, at += l.group_bytes) {
      const int64_t steps = left < l.group_inputs ? (left + l.step_inputs - 1) / l.step_inputs : l.group_inputs / l.step_inputs;
      body(some, group(at, w.form == kInt8 && w.group == 0 ? lone_scales : at + steps * kStepBytes, steps, g));
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

#else

// Few rows through a group of several parts at once, which come as streams of their own: faster than one, and more sums under way. A
// function of its own, as the next: inlined, GCC finds too few registers.
template <typename Kind, int Rows, int Vectors>
__attribute__((noinline)) void run_few(const Inputs& x, const Group& group, float* totals) {
  Kind::template run<Rows, Vectors, 0>(x, group, totals);
}
template <typename Kind, int Rows, int Vectors>
inline void walk_few(const Walk& walk, const Inputs& x, float* totals) {
  for (int64_t p = 0; p < kParts; p += Vectors / kVectors)
    walk.part(p).each(x, [&](const Inputs& some, const Group& group) {
      run_few<Kind, Rows, Vectors>(some, group, totals + p * kPartOutputs);
    });
}

// Tiles of Rows rows, one after the other, through some parts of a group.
template <typename Kind, int Rows>
__attribute__((noinline)) void run_tiles(Inputs x, int64_t tiles, const Group& group, int64_t parts, float* totals) {
  for (; tiles > 0; --tiles, x = x.from<typename Kind::Of::Value>(Rows, x.rows), totals += Rows * kBlock) {
    Group part = group;
    for (int64_t p = 0; p < parts; ++p) {
      Kind::template run<Rows, kVectors, 0>(x, part, totals + p * kPartOutputs);
      part.data = static_cast<const char*>(part.data) + group.part_bytes;
      part.scales = static_cast<const char*>(part.scales) + group.scales_bytes;
    }
  }
}

template <typename Kind, int Rows>
inline void run_rows(int64_t rows, const Inputs& x, int64_t tiles, const Group& group, int64_t parts, float* totals) {
  if (rows == Rows) return run_tiles<Kind, Rows>(x, tiles, group, parts, totals);
  if constexpr (Rows > 1) run_rows<Kind, Rows - 1>(rows, x, tiles, group, parts, totals);
}

// All rows through some parts of a group, by tiles alike in size.
template <typename Kind, int Tile>
inline void run_group(const Inputs& x, const Group& group, int64_t parts, float* totals) {
  const int64_t tiles = (x.rows + Tile - 1) / Tile, rows = x.rows / tiles, larger = x.rows % tiles, first = larger * (rows + 1);
  if (larger) run_rows<Kind, Tile>(rows + 1, x, larger, group, parts, totals);
  const Inputs others = x.from<typename Kind::Of::Value>(first, x.rows - first);
  run_rows<Kind, Tile>(rows, others, tiles - larger, group, parts, totals + first * kBlock);
}

// body(rows, group, parts, totals) for all groups. Few rows go through a part to its end, as it lies in memory, before the next; many
// rows, which take longer to read than weights, and short groups through all parts of a group.
template <typename Body>
inline void walk_parts(const Walk& walk, const Inputs& x, float* totals, const Body& body) {
  const int64_t parts = x.rows > kFewRows || walk.l.group_inputs < 16 * walk.l.step_inputs ? kParts : 1;
  for (int64_t p = 0; p < kParts; p += parts, totals += parts * kPartOutputs)
    walk.part(p).each(x, [&](const Inputs& some, const Group& group) { body(some, group, parts, totals); });
}

template <typename Kind, int Tile>
inline void walk_rows(const Walk& walk, const Inputs& x, float* totals) {
  if (x.rows == 1) return walk_few<Kind, 1, kBlockVectors>(walk, x, totals);
  if constexpr (Kind::Of::kInputs < 8) {  // nibbles take more registers
    if (x.rows == 2) return walk_few<Kind, 2, 2 * kVectors>(walk, x, totals);
    if (x.rows == 3) return walk_few<Kind, 3, 2 * kVectors>(walk, x, totals);
  }
  walk_parts(walk, x, totals, [](const Inputs& some, const Group& group, int64_t parts, float* to) {
    run_group<Kind, Tile>(some, group, parts, to);
  });
}

template <typename T>
inline void walk_fp8(const Walk& walk, const Inputs& x, float* totals) {
  using Form = typename FormOf<T>::type;
  constexpr int64_t kMost = 128 * kPartOutputs;
  alignas(64) T unpacked[kMost * kParts];
  const auto unpack = [&](Group group, int64_t parts) {
    const char* from = static_cast<const char*>(group.data);
    for (int64_t p = 0; p < parts; ++p) unpack_fp8(from + p * group.part_bytes, group.steps, unpacked + p * kMost);
    group.data = unpacked;
    group.steps *= 4 / Form::kInputs;
    group.part_bytes = kMost * int64_t(sizeof(T));
    group.scales_bytes = 0;  // all parts have the same
    return group;
  };
  if (x.rows == 1)
    return walk.each(x, [&](const Inputs& some, const Group& group) {
      run_few<Scaled<Form>, 1, kBlockVectors>(some, unpack(group, kParts), totals);
    });
  walk_parts(walk, x, totals, [&](const Inputs& some, const Group& group, int64_t parts, float* to) {
    run_group<Scaled<Form>, kTile>(some, unpack(group, parts), parts, to);
  });
}

inline void walk_int4(const Walk& walk, const Inputs& x, float* totals) { walk_rows<Integer<Int4>, kNibblesTile>(walk, x, totals); }

#endif

// Sums of one block of a matrix for every row: sums[row * 64 + output], outputs behind the last being 0. T is the model's type.
//
// `next` is the block that the calling thread takes up next, if known: its first weights will be on their way, but on AVX2, where the
// processor reads ahead better by itself.
template <typename T>
inline void products(const Weight& w, int64_t block, const Inputs& x, float* sums, int64_t next = -1) {
  const Layout l = layout(w);
  const char* data = static_cast<const char*>(w.data);
  const char* begin = data + block * l.block_bytes;
  const char* following = data + (next < 0 || next >= blocks(w) ? block : next) * l.block_bytes;
  const Walk walk{l, w, begin, following, value_bytes<T>(w)};
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
