// Linear layers in every form of weights, from one row to a chunk of prefill. Included inside a variant's namespace.

constexpr int64_t kLinearRows = 192;  // at once: their sums of a block take 48 KB of the second-level cache

// Blocks that make a task: many tasks, so that a thread that is held up holds up no other, but none below some microseconds.
inline int64_t blocks_to_a_task(int64_t blocks) {
  const int64_t many = blocks / (32 * threads());
  return many < 1 ? 1 : many;
}

// out = the sums rounded, of `width` outputs from `first` on.
template <typename T>
inline void finish_block(const float* sums, const T* bias, T* out, int64_t rows, int64_t stride, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    each16(width, [&](int64_t i, int n) {
      const F total = load_n(sums + r * weights::kBlock + i, n);
      store_n(out + r * stride + i, bias ? add(total, load_n(bias + i, n)) : total, n);
    });
}

template <typename T>
inline weights::Inputs prepare_rows(const Weight& w, const T* x, int64_t rows, int64_t stride) {
  if (weights::as_they_lie<T>(w)) return weights::view(x, rows, stride);
  const weights::Inputs placed = weights::place<T>(w, rows, scratch(kCall, weights::prepared_bytes<T>(w, rows)));
  by_rows(rows, w.inputs, [&](int64_t r) { weights::prepare_row(w, placed, r, x + r * stride); });
  return placed;
}

template <typename T>
inline void linear_of(const Linear& a) {
  const Weight& w = a.weight;
  const weights::Inputs x = prepare_rows(w, static_cast<const T*>(a.x), a.rows, a.stride);
  const int64_t blocks = weights::blocks(w), run = blocks_to_a_task(blocks), runs = (blocks + run - 1) / run;
  const int64_t parts = (a.rows + kLinearRows - 1) / kLinearRows, rows = parts ? (a.rows + parts - 1) / parts : 0;
  parallel(runs * parts, [&](int64_t task) {
    float* sums = static_cast<float*>(scratch(kTask, rows * weights::kBlock * int64_t(sizeof(float))));
    const int64_t row = task / runs * rows, count = a.rows - row < rows ? a.rows - row : rows;
    const weights::Inputs some = weights::some_rows<T>(w, x, row, count);
    for (int64_t b = task % runs * run; b < (task % runs + 1) * run && b < blocks; ++b) {
      const int64_t first = b * weights::kBlock, left = w.outputs - first;
      const bool last = (b + 1) % run == 0;
      weights::products<T>(w, b, some, sums, last ? b + 1 + (threads() - 1) * run : b + 1);
      finish_block(sums, a.bias ? static_cast<const T*>(a.bias) + first : nullptr,
                   static_cast<T*>(a.out) + row * w.outputs + first, count, w.outputs,
                   left < weights::kBlock ? left : weights::kBlock);
    }
  });
}

inline void linear(const Linear& a) {
  with_type(a.kind, [&](auto type) { linear_of<decltype(type)>(a); });
}
