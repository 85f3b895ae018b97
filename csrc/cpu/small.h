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
