// Norms, activations, rotation, and the moves around them. Included inside a variant's namespace.

// The row's norm: `at(i, n)` gives its values. Rounded to T before the weight, as the reference does.
template <typename T, typename At>
inline void norm_row(const At& at, const T* weight, T* out, int64_t size, double eps) {
  F squares = zero();
  each16(size, [&](int64_t i, int n) { const F x = at(i, n); squares = fma(x, x, squares); });
  const F factor = all(float(1.0 / std::sqrt(double(sum(squares)) / double(size) + eps)));
  each16(size, [&](int64_t i, int n) {
    T rounded[16];
    store_n(rounded, mul(at(i, n), factor), n);
    store_n(out + i, mul(load_n(rounded, n), load_n(weight + i, n)), n);
  });
}

// Rows in runs, so that few or short rows stay on one thread.
template <typename Body>
inline void by_rows(int64_t rows, int64_t values, const Body& body) {
  const int64_t least = values > 0 ? 16384 / values + 1 : 1;  // rows that are worth a task
  const int64_t tasks = (rows + least - 1) / least;
  parallel(tasks, [&](int64_t task) {
    for (int64_t r = task * least; r < (task + 1) * least && r < rows; ++r) body(r);
  });
}

inline void rms_norm(const RmsNorm& a) {
  with_type(a.kind, [&](auto type) {
    using T = decltype(type);
    const T *x = static_cast<const T*>(a.x), *weight = static_cast<const T*>(a.weight);
    T* out = static_cast<T*>(a.out);
    by_rows(a.rows, a.size, [&](int64_t r) {
      const T* row = x + r * a.stride;
      norm_row([&](int64_t i, int n) { return load_n(row + i, n); }, weight, out + r * a.size, a.size, a.eps);
    });
  });
}

inline void add_rms_norm(const AddRmsNorm& a) {
  with_type(a.kind, [&](auto type) {
    using T = decltype(type);
    const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
    const T* weight = static_cast<const T*>(a.weight);
    T *out = static_cast<T*>(a.out), *total = static_cast<T*>(a.total);
    by_rows(a.rows, a.size, [&](int64_t r) {
      const T *added = x + r * a.stride, *before = residual + r * a.size;
      T* after = total + r * a.size;
      each16(a.size, [&](int64_t i, int n) { store_n(after + i, add(load_n(before + i, n), load_n(added + i, n)), n); });
      norm_row([&](int64_t i, int n) { return load_n(after + i, n); }, weight, out + r * a.size, a.size, a.eps);
    });
  });
}

inline int64_t bytes_of(int64_t kind) { return kind == kBfloat16 ? 2 : 4; }

// A row of an id that the table does not have is all ones, which is NaN in either type: seen, where reading would be a crash.
inline void embedding(const Embedding& a) {
  const char* table = static_cast<const char*>(a.table);
  char* out = static_cast<char*>(a.out);
  const int64_t bytes = a.size * bytes_of(a.kind);
  by_rows(a.rows, a.size, [&](int64_t r) {
    const bool known = a.ids[r] >= 0 && a.ids[r] < a.count;
    known ? std::memcpy(out + r * bytes, table + a.ids[r] * bytes, size_t(bytes)) : std::memset(out + r * bytes, 255, size_t(bytes));
  });
}

inline void kv_write(const KvWrite& a) {
  const int64_t value = bytes_of(a.kind), bytes = a.size * value;
  const char* x = static_cast<const char*>(a.x);
  char* cache = static_cast<char*>(a.cache) + a.at * value;
  by_rows(a.rows, a.heads * a.size, [&](int64_t r) {
    for (int64_t h = 0; h < a.heads; ++h)
      std::memcpy(cache + (h * a.places + a.slots[r]) * a.width * value,
                  x + (r * a.row_stride + h * a.head_stride) * value, size_t(bytes));
  });
}

// gate * sigmoid(gate) * up
inline F gated(F gate, F up) { return mul(div(gate, add(all(1.0f), exponential(sub(zero(), gate)))), up); }

inline void silu_mul(const SiluMul& a) {
  with_type(a.kind, [&](auto type) {
    using T = decltype(type);
    by_rows(a.rows, 4 * a.size, [&](int64_t r) {
      const T *gate = static_cast<const T*>(a.x) + r * a.stride, *up = gate + a.size;
      T* out = static_cast<T*>(a.out) + r * a.size;
      each16(a.size, [&](int64_t i, int n) { store_n(out + i, gated(load_n(gate + i, n), load_n(up + i, n)), n); });
    });
  });
}

// n pairs of neighbours, 0 < n <= 16, and back.
struct Neighbours {
  F first, second;
};
template <typename T>
inline Neighbours load_neighbours(const T* x, int n) {
  float both[32], first[16], second[16];
  store(both, load_n(x, n < 8 ? 2 * n : 16));
  store(both + 16, n > 8 ? load_n(x + 16, 2 * n - 16) : zero());
  for (int i = 0; i < 16; ++i) {
    first[i] = both[2 * i];
    second[i] = both[2 * i + 1];
  }
  return {load(first), load(second)};
}
template <typename T>
inline void store_neighbours(T* out, const Neighbours& pairs, int n) {
  float both[32], first[16], second[16];
  store(first, pairs.first);
  store(second, pairs.second);
  for (int i = 0; i < 16; ++i) {
    both[2 * i] = first[i];
    both[2 * i + 1] = second[i];
  }
  store_n(out, load(both), n < 8 ? 2 * n : 16);
  if (n > 8) store_n(out + 16, load(both + 16), 2 * n - 16);
}

// One head turned by its position's angles. Pairs are neighbours, or lie half a head apart.
template <typename T, bool Interleaved>
inline void turn_head(const T* x, const float* cos, const float* sin, T* out, int64_t half) {
  each16(half, [&](int64_t i, int n) {
    const Neighbours x2 = Interleaved ? load_neighbours(x + 2 * i, n) : Neighbours{load_n(x + i, n), load_n(x + half + i, n)};
    const F c = load_n(cos + i, n), s = load_n(sin + i, n);
    const Neighbours turned{sub(mul(x2.first, c), mul(x2.second, s)), add(mul(x2.second, c), mul(x2.first, s))};
    if (Interleaved) return store_neighbours(out + 2 * i, turned, n);
    store_n(out + i, turned.first, n);
    store_n(out + half + i, turned.second, n);
  });
}

inline void rope(const Rope& a) {
  with_type(a.kind, [&](auto type) {
    using T = decltype(type);
    const int64_t half = a.size / 2;
    by_rows(a.rows, a.heads * a.size, [&](int64_t r) {
      const float *cos = a.cos + r * half, *sin = a.sin + r * half;
      for (int64_t h = 0; h < a.heads; ++h) {
        const T* x = static_cast<const T*>(a.x) + r * a.row_stride + h * a.head_stride;
        T* out = static_cast<T*>(a.out) + (r * a.heads + h) * a.size;
        a.interleaved ? turn_head<T, true>(x, cos, sin, out, half) : turn_head<T, false>(x, cos, sin, out, half);
      }
    });
  });
}
