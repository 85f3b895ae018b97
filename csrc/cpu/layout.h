// The layout of packed weights, and rows of inputs prepared for them. Included inside a variant's namespace.
//
// A matrix is packed by blocks of 64 outputs (zeros behind the last), and these by parts, one after the other, of as many outputs as a
// tile of rows has registers for. A part is one stream, which several rows go through in its order: of steps, 4 bytes for each output,
// which are one float, two bfloat16, four bytes or eight nibbles along the inputs. Bytes are unsigned, int8 + 128. A step of nibbles,
// int4 + 8, has its first four inputs in the low halves and the other four in the high ones. Inputs come in groups; behind each group
// lie its scales, where they disturb no reading ahead: a bfloat16 to an output for int4, a float for int8, one float and what fills a
// line for fp8 (e4m3). int8 with one scale to an output has its scales once, behind the last group.
//
// Integers meet rows that are themselves rounded to int8, by groups of inputs: sum (w + offset) x - offset sum x is exact, then scaled
// and added up in float. So products of a row are one chain in the order of its inputs, whatever rows are beside it.

namespace weights {

constexpr int64_t kBlock = 64;
#if TWINLINE_EIGHT_LANES
constexpr int64_t kPartOutputs = 16, kPlainSteps = 64;  // of plain weights at once: 4 KB, beside rows in the first-level cache
#else
constexpr int64_t kPartOutputs = kBlock, kPlainSteps = 256;  // 64 KB
#endif
constexpr int64_t kParts = kBlock / kPartOutputs, kStepBytes = 4 * kPartOutputs;
constexpr int kVectors = kPartOutputs / kLanes, kVectorBytes = 4 * kLanes;  // of a step
constexpr int64_t kFewRows = 12;  // of nibbles, read as they are for every tile
constexpr int64_t kFp8ScaleBytes = kParts > 1 ? 32 : 64;  // of a group: a float, and nothing that leaves later steps across lines
constexpr int64_t kLoneGroup = 512;  // inputs that share a scale of the row, for int8 with one scale to an output

inline int64_t up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Where things lie in a block: groups and their scales are those of a part.
struct Layout {
  int64_t step_inputs, group_inputs, groups, group_bytes, scale_bytes, part_bytes, block_bytes;
};

inline Layout layout(const Weight& w) {
  const int64_t form = w.form;
  Layout l;
  l.step_inputs = form == kPlainFloat ? 1 : form == kPlainBfloat16 || form == kWidened ? 2 : form == kInt4 ? 8 : 4;
  l.group_inputs = form == kFp8 ? 128 : w.group ? w.group : form == kInt8 ? kLoneGroup : kPlainSteps * l.step_inputs;
  l.groups = (w.inputs + l.group_inputs - 1) / l.group_inputs;
  l.scale_bytes = form == kInt4 ? kPartOutputs * 2 : form == kInt8 ? (w.group ? kPartOutputs * 4 : 0) : form == kFp8 ? kFp8ScaleBytes : 0;
  l.group_bytes = l.group_inputs / l.step_inputs * kStepBytes + l.scale_bytes;
  l.part_bytes = up(w.inputs, l.step_inputs) / l.step_inputs * kStepBytes + l.groups * l.scale_bytes;
  if (form == kInt8 && w.group == 0) l.part_bytes += kPartOutputs * 4;
  l.block_bytes = kParts * l.part_bytes;
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

// What plain and fp8 weights meet of rows of T: these, or floats where the instruction set multiplies no bfloat16 and the rows are
// better widened once than by every tile.
template <typename T>
struct MetOf {
  using type = T;
};
#if TWINLINE_EIGHT_LANES
template <>
struct MetOf<bf16> {
  using type = float;
};
#endif
template <typename T>
using Met = typename MetOf<T>::type;

template <typename T>
inline int64_t value_bytes(const Weight& w) { return is_integer(w) ? 1 : int64_t(sizeof(Met<T>)); }

// Some of the rows that were prepared from rows of T.
template <typename T>
inline Inputs some_rows(const Weight& w, const Inputs& x, int64_t row, int64_t count) {
  return is_integer(w) ? x.from<int8_t>(row, count) : x.from<Met<T>>(row, count);
}

// Whether rows of T can be used as they lie.
template <typename T>
inline bool as_they_lie(const Weight& w) {
  return sizeof(T) == sizeof(Met<T>) && !is_integer(w) && w.inputs % layout(w).step_inputs == 0;
}

template <typename T>
inline Inputs view(const T* x, int64_t rows, int64_t stride) {
  return {x, rows, stride, nullptr, nullptr, 0};
}

// The places of `rows` prepared rows of T in memory of `prepared_bytes`, 64-byte aligned.
template <typename T>
inline Inputs place(const Weight& w, int64_t rows, void* memory) {
  const int64_t groups = is_integer(w) ? layout(w).groups : 0, stride = up(w.inputs, 64);
  char* at = static_cast<char*>(memory);
  float* scales = reinterpret_cast<float*>(at + up(rows * stride * value_bytes<T>(w), 64));
  return {memory, rows, stride, scales, reinterpret_cast<int32_t*>(scales + rows * groups), groups};
}

template <typename T>
inline int64_t prepared_bytes(const Weight& w, int64_t rows) {
  const int64_t groups = is_integer(w) ? layout(w).groups : 0;
  return up(rows * up(w.inputs, 64) * value_bytes<T>(w), 64) + rows * groups * 8;
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
    Met<T>* row = static_cast<Met<T>*>(const_cast<void*>(to.values)) + r * to.stride;
    if constexpr (sizeof(T) == sizeof(Met<T>)) std::memcpy(row, x, size_t(w.inputs) * sizeof(T));
    else each16(w.inputs, [&](int64_t i, int n) { store_n(row + i, load_n(x + i, n), n); });
    std::memset(row + w.inputs, 0, size_t(to.stride - w.inputs) * sizeof *row);
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

}  // namespace weights
