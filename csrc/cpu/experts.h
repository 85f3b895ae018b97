// A mixture of experts as one op: rows sorted by expert, two products with silu_mul between, a weighted sum. Included inside a
// variant's namespace.
//
// A row's products are those of `weights.h`, one chain each; its experts are added up in the order of their numbers, in float32,
// what is given beside them last. So a row's result does not depend on the rows that are beside it.

namespace moe {

using weights::kBlock;

// Each pair of a row and one of its experts, by expert and then by row.
struct Lists {
  int64_t active;           // experts that have rows
  int64_t *expert, *first;  // [active], [active + 1]: its number, and where its pairs begin
  int64_t* row;             // [pairs]
  float* share;             // [pairs]

  int64_t rows_of(int64_t i) const { return first[i + 1] - first[i]; }
};

// Pieces of one run of memory, 64 bytes apart; without memory, only their sum.
struct Carving {
  char* memory;
  int64_t used = 0;

  void* take(int64_t bytes) {
    void* piece = memory ? memory + used : nullptr;
    used += weights::up(bytes, 64);
    return piece;
  }
};

struct Workspace {
  Lists lists;
  weights::Inputs given, inner;  // rows of both products, by pair
  float* hidden;                 // [pairs, 2 inner]
};

template <typename T>
inline Workspace workspace(const Experts& a, Carving& from) {
  const int64_t pairs = a.rows * a.per_token, count = a.gate_up.count;
  Workspace w;
  w.lists.active = 0;
  w.lists.expert = static_cast<int64_t*>(from.take(count * 8));
  w.lists.first = static_cast<int64_t*>(from.take((count + 1) * 8));
  w.lists.row = static_cast<int64_t*>(from.take(pairs * 8));
  w.lists.share = static_cast<float*>(from.take(pairs * 4));
  w.hidden = static_cast<float*>(from.take(pairs * a.gate_up.outputs * 4));
  w.given = weights::place<T>(a.gate_up, pairs, from.take(weights::prepared_bytes<T>(a.gate_up, pairs)));
  w.inner = weights::place<T>(a.down, pairs, from.take(weights::prepared_bytes<T>(a.down, pairs)));
  return w;
}

// The k-th expert of a row and its share: that of an expert that is not there is NaN, which is seen.
struct Chosen {
  int64_t expert;
  float share;
};
inline Chosen chosen(const Experts& a, int64_t row, int64_t k) {
  const int64_t expert = a.chosen[row * a.chosen_stride + k];
  if (expert < 0 || expert >= a.gate_up.count) return {0, std::nanf("")};
  return {expert, a.shares[row * a.shares_stride + k]};
}

inline void sort_pairs(const Experts& a, Lists& lists) {
  const int64_t pairs = a.rows * a.per_token, count = a.gate_up.count;
  int64_t* next = lists.first;  // of every expert, at first
  for (int64_t e = 0; e <= count; ++e) next[e] = 0;
  for (int64_t p = 0; p < pairs; ++p) ++next[chosen(a, p / a.per_token, p % a.per_token).expert + 1];
  for (int64_t e = 0; e < count; ++e) next[e + 1] += next[e];
  for (int64_t p = 0; p < pairs; ++p) {
    const Chosen one = chosen(a, p / a.per_token, p % a.per_token);
    const int64_t at = next[one.expert]++;
    lists.row[at] = p / a.per_token;
    lists.share[at] = one.share;
  }
  // Now `next` holds where each expert's pairs end: only those that have some are kept, with where they begin.
  int64_t begin = 0;
  for (int64_t e = 0; e < count; ++e) {
    const int64_t end = next[e];
    if (end == begin) continue;
    lists.expert[lists.active] = e;
    lists.first[lists.active++] = begin;
    begin = end;
  }
  lists.first[lists.active] = pairs;
}

// The whole stack as one matrix, so that a block's weights can be called for while another expert's are read.
inline Weight tall(const Weight& stack) {
  Weight one = stack;
  one.count = 1;
  one.outputs = stack.count * weights::blocks(stack) * kBlock;
  return one;
}

// The sums of one block for all rows of the i-th expert, some rows at a time: use(first pair, rows, sums).
template <typename T, typename Use>
inline void block_of_expert(const Weight& w, const Weight& stack, const Lists& lists, const weights::Inputs& x, int64_t i,
                            int64_t block, int64_t next, float* sums, const Use& use) {
  const int64_t begin = lists.first[i], end = lists.first[i + 1];
  for (int64_t p = begin; p < end; p += kLinearRows) {
    const int64_t rows = end - p < kLinearRows ? end - p : kLinearRows;
    const weights::Inputs some = weights::some_rows<T>(w, x, p, rows);
    weights::products<T>(stack, lists.expert[i] * weights::blocks(w) + block, some, sums, next);
    use(p, rows, sums);
  }
}

// hidden = gate and up of every pair. A task is a run of one expert's blocks.
template <typename T>
inline void gates_and_ups(const Weight& w, const Workspace& at) {
  const Lists& lists = at.lists;
  const Weight stack = tall(w);
  const int64_t blocks = weights::blocks(w), many = blocks_to_a_task(lists.active * blocks);
  const int64_t run = many < blocks ? many : blocks, runs = (blocks + run - 1) / run, tasks = lists.active * runs;
  const auto first_of = [&](int64_t task) { return lists.expert[task / runs] * blocks + task % runs * run; };
  parallel(tasks, [&](int64_t task) {
    float* sums = static_cast<float*>(scratch(kTask, kLinearRows * kBlock * 4));
    const int64_t i = task / runs, begin = task % runs * run, end = begin + run < blocks ? begin + run : blocks;
    const int64_t later = task + threads() < tasks ? first_of(task + threads()) : -1;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t left = w.outputs - b * kBlock, width = left < kBlock ? left : kBlock;
      const int64_t next = b + 1 < end ? lists.expert[i] * blocks + b + 1 : later;
      block_of_expert<T>(w, stack, lists, at.given, i, b, next, sums, [&](int64_t p, int64_t rows, const float* from) {
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(at.hidden + (p + r) * w.outputs + b * kBlock, from + r * kBlock, size_t(width) * 4);
      });
    }
  });
}

// silu(gate) * up of a pair in T, as `down` takes it.
template <typename T>
inline void activate(const Weight& down, const Workspace& at, int64_t p) {
  const int64_t size = down.inputs;
  const float *gate = at.hidden + p * 2 * size, *up = gate + size;
  T* row = static_cast<T*>(scratch(kTask, size * int64_t(sizeof(T))));
  each16(size, [&](int64_t i, int n) { store_n(row + i, gated(load_n(gate + i, n), load_n(up + i, n)), n); });
  weights::prepare_row(down, at.inner, p, row);
}

// total [rows, 64] of one block of outputs: every expert's, each times its row's share.
template <typename T>
inline void add_up(const Experts& a, const Weight& stack, const Workspace& at, int64_t block, int64_t later, float* total,
                   float* sums) {
  const Lists& lists = at.lists;
  const int64_t blocks = weights::blocks(a.down);
  std::memset(total, 0, size_t(a.rows * kBlock) * 4);
  for (int64_t i = 0; i < lists.active; ++i) {
    const int64_t next = i + 1 < lists.active ? lists.expert[i + 1] * blocks + block : later;
    block_of_expert<T>(a.down, stack, lists, at.inner, i, block, next, sums, [&](int64_t p, int64_t rows, const float* from) {
      for (int64_t r = 0; r < rows; ++r) {
        float* to = total + lists.row[p + r] * kBlock;
        const F share = all(lists.share[p + r]);
        for (int64_t v = 0; v < kBlock; v += 16) store(to + v, fma(share, load(from + r * kBlock + v), load(to + v)));
      }
    });
  }
}

// out = the sums over experts, and the base, rounded. A task is a block of outputs, of every expert that has rows.
template <typename T>
inline void downs(const Experts& a, const Workspace& at) {
  const Weight& w = a.down;
  const Weight stack = tall(w);
  const int64_t blocks = weights::blocks(w);
  parallel(blocks, [&](int64_t b) {
    float* total = static_cast<float*>(scratch(kTask, (a.rows + kLinearRows) * kBlock * 4));
    const int64_t later = at.lists.active && b + threads() < blocks ? at.lists.expert[0] * blocks + b + threads() : -1;
    add_up<T>(a, stack, at, b, later, total, total + a.rows * kBlock);
    const int64_t first = b * kBlock, left = w.outputs - first, width = left < kBlock ? left : kBlock;
    for (int64_t r = 0; r < a.rows; ++r) {
      const T* base = a.base ? static_cast<const T*>(a.base) + r * a.base_stride + first : nullptr;
      finish_block(total + r * kBlock, base, static_cast<T*>(a.out) + r * w.outputs + first, 1, w.outputs, width);
    }
  });
}

template <typename T>
inline void run(const Experts& a) {
  Carving none{nullptr};
  workspace<T>(a, none);
  Carving memory{static_cast<char*>(scratch(kCall, none.used))};
  Workspace at = workspace<T>(a, memory);
  const int64_t pairs = a.rows * a.per_token;
  sort_pairs(a, at.lists);
  by_rows(pairs, a.gate_up.inputs, [&](int64_t p) {
    weights::prepare_row(a.gate_up, at.given, p, static_cast<const T*>(a.x) + at.lists.row[p] * a.stride);
  });
  gates_and_ups<T>(a.gate_up, at);
  by_rows(pairs, 4 * a.down.inputs, [&](int64_t p) {
    weights::is_integer(a.down) ? activate<float>(a.down, at, p) : activate<T>(a.down, at, p);  // not rounded twice
  });
  downs<T>(a, at);
}

}  // namespace moe

inline void experts(const Experts& a) {
  with_type(a.kind, [&](auto type) { moe::run<decltype(type)>(a); });
}
