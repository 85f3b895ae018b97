// The forms of packed weights (layout.h): what a step holds, how it meets rows, and the products of a group with a tile of rows.
// Included inside a variant's namespace.
//
// A form's Value is of the row, Weights of as many outputs as there are lanes, Seen the row's part of a step. `kOffset`: integer
// weights are met as they are stored, larger than they mean; the row's `starts` make up for it.

namespace weights {

#if TWINLINE_EIGHT_LANES

// A group of a part. Where rows meet several parts, these lie `part_bytes` from one another, and their scales `scales_bytes`.
struct Group {
  const void *data, *scales;
  int64_t steps, index, part_bytes, scales_bytes;
};

// Vector `v` of what lies at `p` in as many parts as it takes.
inline const char* vector_at(const void* p, int64_t part_bytes, int v, int vector_bytes) {
  return static_cast<const char*>(p) + v / kVectors * part_bytes + v % kVectors * vector_bytes;
}
template <typename Scale>
inline Lanes load_scales(const Group& group, int v) {
  return load_lanes(reinterpret_cast<const Scale*>(vector_at(group.scales, group.scales_bytes, v, kLanes * int(sizeof(Scale)))));
}

#else

// A group of a block, and what of later weights to call for meanwhile.
struct Group {
  const void *data, *scales;
  int64_t steps, scale_bytes, index;
  const char *ahead, *ahead_end;
};

template <typename Scale>
inline Lanes load_scales(const Group& group, int v) {
  return load_lanes(static_cast<const Scale*>(group.scales) + kLanes * v);
}

constexpr int64_t kAheadBytes = 3072;  // between the weights in use and those called for
inline void call_for(const char* p) {
#ifdef TWINLINE_X86
  _mm_prefetch(p, _MM_HINT_T1);
#else
  __builtin_prefetch(p);
#endif
}

#endif

#define TWINLINE_ALWAYS_INLINE inline __attribute__((always_inline))

#if !TWINLINE_EIGHT_LANES

struct Floats {
  using Value = float;
  using Weights = Lanes;
  using Seen = Lanes;
  using Sum = Lanes;
  static constexpr int kInputs = 1;
  static Weights load_weights(const void* p) { return load_lanes(static_cast<const float*>(p)); }
  static Seen see(const float* x) { return all_lanes(*x); }
  static Sum meet(Sum sum, Weights w, Seen x) { return fma(w, x, sum); }
};
struct Brains {
  using Value = bf16;
  using Weights = Pairs;
  using Seen = Pair;
  using Sum = Lanes;
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
    Lanes even, odd;
  };
  using Sum = Lanes;
  static constexpr int kInputs = 2;
  static Weights load_weights(const void* p) { return load_both(static_cast<const bf16*>(p)); }
  static Seen see(const float* x) { return {all_lanes(x[0]), all_lanes(x[1])}; }
  static Sum meet(Sum sum, const Weights& w, const Seen& x) { return fma(w.odd, x.odd, fma(w.even, x.even, sum)); }
};
struct Int8 {
  using Value = int8_t;
  using Weights = Bytes;
  using Seen = Four;
  using Sum = I;
  using Scale = float;
  static constexpr int kInputs = 4;
  static constexpr bool kOffset = true;
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
  static constexpr bool kOffset = true;
  static Weights load_weights(const void* p) {
    const Bytes both = load_bytes(p);
    return {low_nibbles(both), high_nibbles(both)};
  }
  static Seen see(const int8_t* x) { return {four(x), four(x + 4)}; }
  static Sum meet(Sum sum, const Weights& w, const Seen& x) { return dot4(dot4(sum, w.low, x.low), w.high, x.high); }
};

// Rows at once, with all of a step's vectors: as many sums as the registers hold beside weights and a row.
#if TWINLINE_HAS_AVX512
constexpr int kTile = 6, kInt8Tile = 6;            // 24 sums, 4 vectors of weights and 1 of the row
constexpr int kWidenedTile = 5, kNibblesTile = 4;  // 20 or 16 sums and 8 vectors of weights
#else
constexpr int kTile = 2, kInt8Tile = 2, kWidenedTile = 1, kNibblesTile = 1;
#endif

// Adds the products of a group to the sums of Rows rows. `Lines` cache lines of later weights are called for in each step.
template <typename Form, int Rows, int Vectors, int Lines>
TWINLINE_ALWAYS_INLINE void multiply(const typename Form::Value* x, int64_t stride, const Group& group,
                                     typename Form::Sum (&sums)[Rows][Vectors]) {
  const char* at = static_cast<const char*>(group.data);
  const char* ahead = group.ahead;
  for (int64_t step = 0; step < group.steps; ++step, at += kStepBytes, x += Form::kInputs, ahead += 64 * Lines) {
    for (int line = 0; line < Lines; ++line) call_for(ahead + 64 * line);
    typename Form::Weights weights[Vectors];
    for (int v = 0; v < Vectors; ++v) weights[v] = Form::load_weights(at + kVectorBytes * v);
    for (int r = 0; r < Rows; ++r) {
      const typename Form::Seen seen = Form::see(x + r * stride);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Form::meet(sums[r][v], weights[v], seen);
    }
  }
}

#else  // AVX2: sixteen registers of eight lanes

// A step comes in halves, one after the other, so that the weights of one are all that is held.
struct Floats {
  using Value = float;
  using Weights = Lanes;
  using Sum = Lanes;
  static constexpr int kInputs = 1, kHalves = 1;
  template <int Half>
  static Weights load_weights(const char* p) { return load_lanes(reinterpret_cast<const float*>(p)); }
  template <int Half>
  static Lanes see(const float* x) { return spread(x); }
  static Sum meet(Sum sum, Weights w, Lanes x) { return fma(w, x, sum); }
};
// Of bfloat16: the same products to the bit as of floats with their values.
struct Widened {
  using Value = float;
  using Weights = Lanes;
  using Sum = Lanes;
  static constexpr int kInputs = 2, kHalves = 2;
  template <int Half>
  static Weights load_weights(const char* p) { return Half ? high_words(load_bytes(p)) : low_words(load_bytes(p)); }
  template <int Half>
  static Lanes see(const float* x) { return spread(x + Half); }
  static Sum meet(Sum sum, Weights w, Lanes x) { return fma(w, x, sum); }
};
struct Int8 {
  using Value = int8_t;
  using Weights = SignedBytes;
  using Sum = I;
  using Scale = float;
  static constexpr int kInputs = 4, kHalves = 1;
  static constexpr bool kOffset = false;
  template <int Half>
  static Weights load_weights(const char* p) { return load_signed(p); }
  template <int Half>
  static Four see(const int8_t* x) { return four(x); }
  static Sum meet(Sum sum, const Weights& w, Four x) { return dot4(sum, w, x); }
};
struct Int4 {
  using Value = int8_t;
  using Sum = I;
  using Scale = bf16;
  static constexpr int kInputs = 8;
  static constexpr bool kOffset = true;
};

// Rows at once, with two of a step's vectors: as many sums as the registers hold beside weights and a row.
constexpr int kTile = 6, kInt8Tile = 4, kWidenedTile = 6, kNibblesTile = 4;
constexpr int kBlockVectors = kBlock / kLanes;  // which one row meets at once

template <typename Form, int Rows, int Vectors, int Half>
TWINLINE_ALWAYS_INLINE void multiply_half(const typename Form::Value* x, int64_t stride, const char* at, int64_t part_bytes,
                                          typename Form::Sum (&sums)[Rows][Vectors]) {
  if constexpr (Rows < Vectors) {  // what there is less of is held
    decltype(Form::template see<Half>(x)) seen[Rows];
    for (int r = 0; r < Rows; ++r) seen[r] = Form::template see<Half>(x + r * stride);
    for (int v = 0; v < Vectors; ++v) {
      const typename Form::Weights weights = Form::template load_weights<Half>(vector_at(at, part_bytes, v, kVectorBytes));
      for (int r = 0; r < Rows; ++r) sums[r][v] = Form::meet(sums[r][v], weights, seen[r]);
    }
  } else {
    typename Form::Weights weights[Vectors];
    for (int v = 0; v < Vectors; ++v) weights[v] = Form::template load_weights<Half>(vector_at(at, part_bytes, v, kVectorBytes));
    for (int r = 0; r < Rows; ++r) {
      const auto seen = Form::template see<Half>(x + r * stride);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Form::meet(sums[r][v], weights[v], seen);
    }
  }
  if constexpr (Half + 1 < Form::kHalves) multiply_half<Form, Rows, Vectors, Half + 1>(x, stride, at, part_bytes, sums);
}

// Steps of nibbles, their products added up as words before they are widened: four steps' are below 4 * 4 * 15 * 127.
template <int Steps, int Rows, int Vectors>
TWINLINE_ALWAYS_INLINE void multiply_nibbles(const int8_t* x, int64_t stride, const char* at, int64_t part_bytes,
                                             I (&sums)[Rows][Vectors]) {
  I pairs[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) pairs[r][v] = _mm256_setzero_si256();
#pragma GCC unroll 1  // unrolled it needs more registers than there are
  for (int s = 0; s < Steps; ++s, at += kStepBytes, x += Int4::kInputs) {
    if constexpr (Rows == 1) {
      const Four low = four(x), high = four(x + 4);
      for (int v = 0; v < Vectors; ++v)
        add_words_to(pairs[0][v], dot8(load_nibbles(vector_at(at, part_bytes, v, kVectorBytes)), low, high));
    } else {
      Nibbles weights[Vectors];
      for (int v = 0; v < Vectors; ++v) weights[v] = load_nibbles(vector_at(at, part_bytes, v, kVectorBytes));
      for (int r = 0; r < Rows; ++r) {
        const Four low = four(x + r * stride), high = four(x + r * stride + 4);
        for (int v = 0; v < Vectors; ++v) add_words_to(pairs[r][v], dot8(weights[v], low, high));
      }
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) add_to(sums[r][v], widened(pairs[r][v]));
}

// Adds the products of a group, of one part or of several at once, to the sums of Rows rows.
template <typename Form, int Rows, int Vectors, int Lines>
TWINLINE_ALWAYS_INLINE void multiply(const typename Form::Value* x, int64_t stride, const Group& group,
                                     typename Form::Sum (&sums)[Rows][Vectors]) {
  constexpr int kSteps = Form::kInputs == 8 ? 4 : 1;
  const char* at = static_cast<const char*>(group.data);
  const int64_t part_bytes = group.part_bytes;
  int64_t step = 0;
  for (; step + kSteps <= group.steps; step += kSteps, at += kSteps * kStepBytes, x += kSteps * Form::kInputs) {
    if constexpr (Form::kInputs == 8) multiply_nibbles<kSteps>(x, stride, at, part_bytes, sums);
    else multiply_half<Form, Rows, Vectors, 0>(x, stride, at, part_bytes, sums);
  }
  if constexpr (Form::kInputs == 8)
    for (; step < group.steps; ++step, at += kStepBytes, x += Form::kInputs)
      multiply_nibbles<1>(x, stride, at, part_bytes, sums);
}

#endif

// What rows of T meet of plain weights in T.
template <typename T>
struct FormOf {
  using type = Floats;
};
template <>
struct FormOf<bf16> {
#if TWINLINE_EIGHT_LANES
  using type = Widened;
#else
  using type = Brains;
#endif
};

}  // namespace weights
