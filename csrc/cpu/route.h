// Which experts each row goes to. Included inside a variant's namespace.
//
// Everything is float32. Of experts, or groups, that score alike the one of the lower number is taken; a NaN stands above all
// numbers, so that a row of them still names experts that are there.

namespace routing {

constexpr int64_t kNone = INT64_MIN;

// Numbers as whole numbers of the same order, and of equal ones the earlier the greater.
inline int64_t ordered(float value, int64_t index) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) bits = INT32_MAX;
  if (bits < 0) bits ^= INT32_MAX;
  return int64_t(uint64_t(int64_t(bits)) << 32 | uint32_t(~uint32_t(index)));
}
inline int64_t index_of(int64_t key) { return int64_t(~uint32_t(uint64_t(key))); }

inline int64_t greatest(const int64_t* keys, int64_t count) {
  int64_t best = kNone;
  for (int64_t i = 0; i < count; ++i) best = keys[i] > best ? keys[i] : best;
  return best;
}

// The products of up to four rows with up to four experts. Each is one chain along the inputs.
template <typename T, int Rows, int Experts>
inline void products(const T* x, int64_t stride, const float* gate, int64_t size, float* logits, int64_t experts) {
  F sums[Rows][Experts];
  for (auto& row : sums)
    for (F& one : row) one = zero();
  each16(size, [&](int64_t i, int n) {
    F weights[Experts];
    for (int e = 0; e < Experts; ++e) weights[e] = load_n(gate + e * size + i, n);
    for (int r = 0; r < Rows; ++r) {
      const F values = load_n(x + r * stride + i, n);
      for (int e = 0; e < Experts; ++e) sums[r][e] = fma(values, weights[e], sums[r][e]);
    }
  });
  for (int r = 0; r < Rows; ++r)
    for (int e = 0; e < Experts; ++e) logits[r * experts + e] = sum(sums[r][e]);
}

template <typename T, int Rows>
inline void rows_of_products(const Route& a, int64_t row, int64_t first, int64_t last, float* logits) {
  const T* x = static_cast<const T*>(a.x) + row * a.stride;
  float* to = logits + row * a.experts;
  int64_t e = first;
  for (; e + 4 <= last; e += 4) products<T, Rows, 4>(x, a.stride, a.gate + e * a.size, a.size, to + e, a.experts);
  for (; e < last; ++e) products<T, Rows, 1>(x, a.stride, a.gate + e * a.size, a.size, to + e, a.experts);
}

// logits [rows, experts]. A task is some rows times a run of experts, whose gates stay in the cache.
template <typename T>
inline void all_products(const Route& a, float* logits) {
  const int64_t run = (131072 / a.size + 4) / 4 * 4, runs = (a.experts + run - 1) / run;
  const int64_t some = 64, parts = (a.rows + some - 1) / some;
  parallel(runs * parts, [&](int64_t task) {
    const int64_t first = task % runs * run, last = first + run < a.experts ? first + run : a.experts;
    int64_t row = task / runs * some;
    const int64_t end = row + some < a.rows ? row + some : a.rows;
    for (; row + 4 <= end; row += 4) rows_of_products<T, 4>(a, row, first, last, logits);
    for (; row < end; ++row) rows_of_products<T, 1>(a, row, first, last, logits);
  });
}

// Makes scores of a row's logits, in place.
inline void sigmoids(float* scores, int64_t count) {
  each16(count, [&](int64_t i, int n) {
    const F x = load_n(scores + i, n);
    // What `exponential` cuts off is nothing beside 1; a NaN must come through.
    const F score = div(all(1.0f), add(all(1.0f), exponential(sub(zero(), x))));
    store_n(scores + i, add(score, sub(x, x)), n);
  });
}
inline void softmax(float* scores, int64_t count) {
  float highest = scores[0];
  for (int64_t i = 1; i < count; ++i) highest = scores[i] > highest || scores[i] != scores[i] ? scores[i] : highest;
  F total = zero();
  each16(count, [&](int64_t i, int n) {
    const F below = sub(load_n(scores + i, n), all(highest));
    float some[16];
    store(some, add(exponential(below), sub(below, below)));
    total = add(total, load_n(some, n));
    store_n(scores + i, load(some), n);
  });
  const F whole = all(sum(total));
  each16(count, [&](int64_t i, int n) { store_n(scores + i, div(load_n(scores + i, n), whole), n); });
}

// The sum of a group's two best, or its best.
inline float worth(const float* choice, int64_t count, int64_t best_of_group) {
  float first = choice[0], second = -INFINITY;
  for (int64_t i = 1; i < count; ++i) {
    if (choice[i] != choice[i]) return choice[i];
    second = choice[i] > first ? first : choice[i] > second ? choice[i] : second;
    first = choice[i] > first ? choice[i] : first;
  }
  return best_of_group == 2 && count > 1 ? first + second : first;
}

// -inf to the experts of all groups but the best.
inline void keep_groups(const Route& a, float* choice, int64_t* keys) {
  const int64_t size = a.experts / a.groups;
  for (int64_t g = 0; g < a.groups; ++g) keys[g] = ordered(worth(choice + g * size, size, a.best_of_group), g);
  for (int64_t k = 0; k < a.groups_kept; ++k) keys[index_of(greatest(keys, a.groups))] = kNone;
  for (int64_t g = 0; g < a.groups; ++g)
    if (keys[g] != kNone)
      for (int64_t i = 0; i < size; ++i) choice[g * size + i] = -INFINITY;
}

inline void choose(const Route& a, float* scores, int64_t* chosen, float* weights) {
  const int64_t even = (a.experts + 1) / 2 * 2;  // so that the keys lie on a multiple of eight bytes
  float* choice = static_cast<float*>(scratch(kTask, even * 4 + a.experts * 8));
  int64_t* keys = reinterpret_cast<int64_t*>(choice + even);
  a.softmax ? softmax(scores, a.experts) : sigmoids(scores, a.experts);
  for (int64_t e = 0; e < a.experts; ++e) choice[e] = a.bias ? scores[e] + a.bias[e] : scores[e];
  if (a.best_of_group) keep_groups(a, choice, keys);
  for (int64_t e = 0; e < a.experts; ++e) keys[e] = ordered(choice[e], e);
  float total = 0;
  for (int64_t k = 0; k < a.per_token; ++k) {
    chosen[k] = index_of(greatest(keys, a.experts));
    keys[chosen[k]] = kNone;
    weights[k] = scores[chosen[k]];
    total += weights[k];
  }
  for (int64_t k = 0; k < a.per_token; ++k)
    weights[k] = (a.normalise ? weights[k] / (total + 1e-20f) : weights[k]) * float(a.scale);
}

}  // namespace routing

inline void route(const Route& a) {
  float* logits = static_cast<float*>(scratch(kCall, a.rows * a.experts * int64_t(sizeof(float))));
  with_type(a.kind, [&](auto type) { routing::all_products<decltype(type)>(a, logits); });
  by_rows(a.rows, 16 * a.experts, [&](int64_t r) {
    routing::choose(a, logits + r * a.experts, a.chosen + r * a.per_token, a.weights + r * a.per_token);
  });
}
