// Attention over a paged cache, of any number of query rows: decodes, chunks of prefill, grouped queries, and latents in
// their own space. Included inside a variant's namespace.
//
// The context is worked through in runs of `kRun` places, from place 0 on. Each run gives every query its greatest score, the
// sum of its weights and its weighted values; the runs are folded together in their order. So a query's result depends on
// its own row and its past alone: the same bits whether it comes as a decode or within a chunk, in whatever batch, on however
// many threads, each of which may work on other runs of one sequence.

namespace attend {

constexpr int64_t kRun = 256, kGroup = 64;  // places; keys are packed by groups
constexpr int64_t kTile = 72;               // queries that share packed keys and values, at most
constexpr float kNothing = -3e38f;          // the greatest score of no place

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Takes memory piece by piece, each on a cache line of its own; from address 0 it only counts.
struct Carver {
  uintptr_t at;
  template <typename T>
  T* take(int64_t count) {
    const uintptr_t taken = at;
    at += uintptr_t(count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(taken);
  }
};

// What some places give to a tile of queries: greatest score (scaled), sum of weights, and weighted values [rows, width].
struct Sums {
  float *most, *total, *values;
  static int64_t floats(int64_t rows, int64_t width) { return 2 * tile::up16(rows) + rows * width; }
  static Sums at(float* memory, int64_t rows) {
    return {memory, memory + tile::up16(rows), memory + 2 * tile::up16(rows)};
  }
};

// A tile of queries: words [rows, depth], and how many places each of them sees.
struct Queries {
  int rows;
  int64_t depth;
  const float* words;
  const int64_t* ends;
  float scale;
};

// Scores become weights e^(scale * score - most) of type W in the same memory; those from `count` to `padded` are 0.
template <typename W>
inline void weigh(float* scores, int64_t count, int64_t padded, float scale, float* most_of, float* total_of) {
  const int ragged = int(count % 16);
  F top = all(kNothing), broken = zero(), total = zero();
  if (ragged)
    for (int64_t j = count; j % 16; ++j) scores[j] = kNothing;
  for (int64_t i = 0; i < count; i += 16) {
    const F score = load(scores + i);
    top = max(top, score);
    broken = fma(score, zero(), broken);  // NaN if a score is no number: the result will say so
  }
  const float peak = count > 0 ? most(top) * scale : kNothing;
  W* weights = reinterpret_cast<W*>(scores);
  int64_t i = 0;
  for (; i < count; i += 16) {
    F weight = exponential(fma(load(scores + i), all(scale), all(-peak)));
    if (i + 16 > count) {
      float some[16];
      store(some, weight);
      weight = load_some(some, ragged);
    }
    store(weights + i, weight);
    total = add(total, load(weights + i));  // as rounded, so that weights of equal values give that value
  }
  for (; i < padded; i += 16) store(weights + i, zero());
  *most_of = peak;
  *total_of = sum(add(total, broken));
}

// What the places from `begin` on give to the queries. `score(at, some)` writes the scores of `some` places behind the first
// `at`; `add_up()` writes the weighted values. `scores` holds [rows, kRun].
template <typename W, typename Score, typename AddUp>
inline void attend_run(const Queries& q, int64_t begin, int64_t count, const Score& score, const AddUp& add_up, float* scores,
                       const Sums& out) {
  for (int64_t at = 0; at < count; at += kGroup) score(at, least(kGroup, count - at));
  for (int r = 0; r < q.rows; ++r) {
    const int64_t seen = q.ends[r] < begin ? 0 : least(q.ends[r] - begin, count);
    weigh<W>(scores + r * kRun, seen, tile::up16(count), q.scale, out.most + r, out.total + r);
  }
  add_up();
}

// Adds the next run to those before it.
inline void fold(const Sums& into, const Sums& next, int rows, int64_t width) {
  for (int r = 0; r < rows; ++r) {
    const float top = into.most[r] > next.most[r] ? into.most[r] : next.most[r];
    const F before = exponential(all(into.most[r] - top)), after = exponential(all(next.most[r] - top));
    float total[16];
    store(total, fma(all(next.total[r]), after, mul(all(into.total[r]), before)));
    into.most[r] = top;
    into.total[r] = total[0];
    float *const sums = into.values + r * width, *const more = next.values + r * width;
    for (int64_t n = 0; n < width; n += 16) store(sums + n, fma(load(more + n), after, mul(load(sums + n), before)));
  }
}

template <typename T>
inline void divide(const float* values, float total, int64_t size, T* out) {
  const F share = all(1.0f / total);
  each16(size, [&](int64_t i, int n) { store_n(out + i, mul(load_n(values + i, n), share), n); });
}

// The slots of the places from `begin` on: page * page size + offset.
inline void find(const int64_t* pages, int64_t page_size, int64_t begin, int64_t count, int64_t* slots) {
  int64_t page = begin / page_size, offset = begin % page_size;
  for (int64_t i = 0; i < count; ++i) {
    slots[i] = pages[page] * page_size + offset;
    if (++offset == page_size) ++page, offset = 0;
  }
}

// Brings the keys and values of some places into the cache, a few lines beside each step of a product.
struct Ahead {
  const int64_t *slot, *end;
  const char *keys, *values;  // of slot 0
  int64_t key_row, value_row, key_lines, lines;  // bytes from row to row; lines of a key, and of a place in all
  int64_t each, line;
  void step(int64_t size) {
    for (int64_t n = 0; n < each * size; ++n) {
      __builtin_prefetch(line < key_lines ? keys + *slot * key_row + line * 64
                                          : values + *slot * value_row + (line - key_lines) * 64, 0, 2);
      if (++line < lines) continue;
      line = 0;
      if (++slot == end) each = 0;
    }
  }
};

// A tile of one sequence's queries over one head of keys: query rows x query heads.
struct Unit {
  int64_t sequence, kv_head, head, heads, row, rows, end, runs;  // `end`: places that the last row sees
  float* partial;                                                // sums of each run, where several jobs do them
  int32_t jobs;                                                  // that are not done
  int queries() const { return int(rows * heads); }
};

// Runs of a unit that one thread works through.
struct Job {
  int64_t unit, first, last;
};

template <typename T>
struct Attending {
  using W = typename tile::Word<T>::type;
  const Attention& a;
  const int64_t depth = tile::words<W>(a.q_size) + tile::words<W>(a.tail_size), width = tile::up16(a.value_size);

  // The memory of one task.
  struct Work {
    int64_t *slots, *next_slots, *ends;
    float *queries, *keys, *values, *scores;
    Sums sums, next;
  };
  Work work() const {
    Work w;
    Carver memory{0};
    for (int pass = 0; pass < 2; ++pass) {
      if (pass) memory.at = reinterpret_cast<uintptr_t>(scratch(kTask, int64_t(memory.at)));
      w.slots = memory.take<int64_t>(kRun);
      w.next_slots = memory.take<int64_t>(kRun);
      w.ends = memory.take<int64_t>(kTile);
      w.queries = memory.take<float>(kTile * depth);
      w.keys = memory.take<float>(depth * kGroup);
      w.values = memory.take<float>(tile::words<W>(kRun) * width);
      w.scores = memory.take<float>(kTile * kRun);
      w.sums = Sums::at(memory.take<float>(Sums::floats(kTile, width)), kTile);
      w.next = Sums::at(memory.take<float>(Sums::floats(kTile, width)), kTile);
    }
    return w;
  }

  int64_t length(int64_t sequence) const { return a.lengths ? a.lengths[sequence] : a.length; }

  Queries queries(const Unit& u, const Work& w) const {
    float* to = w.queries;
    for (int64_t i = 0; i < u.queries(); ++i, to += depth) {
      const int64_t row = u.row + i / u.heads, head = u.head + i % u.heads, n = u.sequence * a.rows + row;
      w.ends[i] = length(u.sequence) - a.rows + row + 1;
      tile::copy_row<W>(static_cast<const T*>(a.q) + n * a.q_row + head * a.q_head, a.q_size, to);
      if (a.tail_size)
        tile::copy_row<W>(static_cast<const T*>(a.tail) + n * a.tail_row + head * a.tail_head, a.tail_size,
                          to + tile::words<W>(a.q_size));
    }
    return {u.queries(), depth, w.queries, w.ends, float(a.scale)};
  }

  const T* keys(const Unit& u) const { return static_cast<const T*>(a.keys) + u.kv_head * a.key_head; }
  const T* values(const Unit& u) const { return static_cast<const T*>(a.values) + u.kv_head * a.value_head; }
  static int64_t places(const Unit& u, int64_t run) { return least(kRun, u.end - run * kRun); }
  void find_run(const Unit& u, int64_t run, int64_t* slots) const {
    find(a.pages + u.sequence * a.pages_each, a.page_size, run * kRun, places(u, run), slots);
  }

  // What fetches a run during another of `rows` queries.
  Ahead ahead(const Unit& u, int64_t run, const int64_t* slots, int rows) const {
    constexpr int64_t kSize = sizeof(T);
    const int64_t count = places(u, run), key_lines = ((a.q_size + a.tail_size) * kSize + 63) / 64;
    const int64_t lines = key_lines + (a.values == a.keys ? 0 : (a.value_size * kSize + 63) / 64);
    const int64_t steps = (rows + tile::kRows - 1) / tile::kRows *
                          (kRun / 16 * depth + width / 16 * tile::words<W>(kRun));
    return {slots, slots + count, reinterpret_cast<const char*>(keys(u)), reinterpret_cast<const char*>(values(u)),
            a.key_row * kSize, a.value_row * kSize, key_lines, lines, (lines * count + steps - 1) / steps, 0};
  }

  // `w.slots` are the run's.
  void run(const Unit& u, int64_t run, const Queries& q, const Work& w, const Sums& out, Ahead next) const {
    const int64_t begin = run * kRun, count = places(u, run);
    const T *const keys = this->keys(u), *const values = this->values(u);
    const auto key = [&](int64_t i) { return keys + w.slots[i] * a.key_row; };
    const auto value = [&](int64_t i) { return values + w.slots[i] * a.value_row; };
    float* const tail_keys = w.keys + tile::words<W>(a.q_size) * kGroup;
    const auto score = [&](int64_t at, int64_t some) {
      tile::pack_across<W>([&](int64_t i) { return key(at + i); }, some, a.q_size, w.keys, kGroup);
      tile::pack_across<W>([&](int64_t i) { return key(at + i) + a.q_size; }, some, a.tail_size, tail_keys, kGroup);
      tile::product<W>(q.rows, tile::up16(some), depth, q.words, depth, w.keys, kGroup, w.scores + at, kRun, next);
    };
    const auto add_up = [&] {
      tile::pack_along(value, count, a.value_size, w.values, width, W{});
      tile::product<W>(q.rows, width, tile::words<W>(count), w.scores, kRun, w.values, width, out.values, width, next);
    };
    attend_run<W>(q, begin, count, score, add_up, w.scores, out);
  }

  T* out(const Unit& u, int64_t query) const {
    const int64_t row = u.sequence * a.rows + u.row + query / u.heads;
    return static_cast<T*>(a.out) + (row * a.heads + u.head + query % u.heads) * a.value_size;
  }

  void finish(const Unit& u, const Sums& sums) const {
    for (int64_t i = 0; i < u.queries(); ++i) divide(sums.values + i * width, sums.total[i], a.value_size, out(u, i));
  }

  // A sequence without a place, which fills up a batch of fixed size: zeros.
  void clear(const Unit& u) const {
    for (int64_t i = 0; i < u.queries(); ++i) std::memset(out(u, i), 0, size_t(a.value_size) * sizeof(T));
  }

  Sums partial(const Unit& u, int64_t run) const {
    return Sums::at(u.partial + run * Sums::floats(u.queries(), width), u.queries());
  }

  // Works through a job, while what comes then, another of its runs or `later`, is fetched. Whoever does a unit's last job
  // folds all runs together.
  void work_on(const Job& job, const Job* later, Unit* units, Work& w) const {
    Unit& u = units[job.unit];
    const Queries q = queries(u, w);
    if (u.runs == 0) return clear(u);
    find_run(u, job.first, w.slots);
    for (int64_t r = job.first; r < job.last; ++r) {
      const Sums sums = u.partial ? partial(u, r) : r == 0 ? w.sums : w.next;
      Ahead next{};
      if (r + 1 < job.last || (later && units[later->unit].runs)) {
        const Unit& v = r + 1 < job.last ? u : units[later->unit];
        const int64_t then = r + 1 < job.last ? r + 1 : later->first;
        find_run(v, then, w.next_slots);
        next = ahead(v, then, w.next_slots, q.rows);
      }
      run(u, r, q, w, sums, next);
      if (!u.partial && r > 0) fold(w.sums, w.next, q.rows, width);
      int64_t* const slots = w.slots;
      w.slots = w.next_slots, w.next_slots = slots;
    }
    if (!u.partial) return finish(u, w.sums);
    if (__atomic_sub_fetch(&u.jobs, 1, __ATOMIC_ACQ_REL) > 0) return;
    for (int64_t r = 1; r < u.runs; ++r) fold(partial(u, 0), partial(u, r), u.queries(), width);
    finish(u, partial(u, 0));
  }

  // How many decodes from `s` on, `most` at most, are of one sequence, each a place further: those of a guess. They share the
  // packed keys and values as the rows of a chunk do.
  int64_t joined(int64_t s, int64_t most) const {
    if (!a.lengths || a.rows != 1) return 1;
    const int64_t* const pages = a.pages + s * a.pages_each;
    int64_t n = 1;
    while (n < most && s + n < a.sequences && a.lengths[s + n] == a.lengths[s] + n &&
           std::memcmp(pages, pages + n * a.pages_each, size_t(a.pages_each) * sizeof(int64_t)) == 0)
      ++n;
    return n;
  }

  // Calls with every unit, the last rows of a sequence, which see most, first.
  template <typename With>
  void each_unit(const With& with) const {
    const int64_t shared = a.heads / a.kv_heads, groups = (shared + kTile - 1) / kTile;
    const int64_t together = (shared + groups - 1) / groups, most = kTile / together, rows = least(a.rows, most);
    for (int64_t row = (a.rows - 1) / rows * rows; row >= 0; row -= rows)
      for (int64_t s = 0, decodes = 1; s < a.sequences; s += decodes) {
        decodes = joined(s, most);
        const int64_t some = decodes > 1 ? decodes : least(rows, a.rows - row), end = length(s) - a.rows + row + some;
        for (int64_t g = 0; g < a.kv_heads; ++g)
          for (int64_t h = 0; h < shared; h += together)
            with(Unit{s, g, g * shared + h, least(together, shared - h), row, some, end, (end + kRun - 1) / kRun, nullptr, 0});
      }
  }

  void operator()() const {
    if (a.sequences == 0 || a.rows == 0) return;
    int64_t count = 0, runs = 0, jobs_count = 0, partial_floats = 0;
    each_unit([&](const Unit& u) { ++count, runs += u.runs; });
    // A unit is cut into jobs where it would otherwise keep one thread busy at the end.
    const int64_t most_runs = threads() > 1 ? runs / (4 * threads()) + 1 : runs;
    const auto jobs_of = [&](const Unit& u) { return u.runs ? (u.runs + most_runs - 1) / most_runs : 1; };
    const auto partial_of = [&](const Unit& u) {
      return jobs_of(u) > 1 ? u.runs * Sums::floats(u.queries(), width) : 0;
    };
    each_unit([&](const Unit& u) { jobs_count += jobs_of(u), partial_floats += partial_of(u); });
    Unit* units = nullptr;
    Job* jobs = nullptr;
    float* partial = nullptr;
    Carver memory{0};
    for (int pass = 0; pass < 2; ++pass) {
      if (pass) memory.at = reinterpret_cast<uintptr_t>(scratch(kCall, int64_t(memory.at)));
      units = memory.take<Unit>(count);
      jobs = memory.take<Job>(jobs_count);
      partial = memory.take<float>(partial_floats);
    }
    int64_t unit = 0, job = 0;
    each_unit([&](Unit u) {
      u.jobs = int32_t(jobs_of(u));
      u.partial = u.jobs > 1 ? partial : nullptr;
      partial += partial_of(u);
      for (int64_t i = 0; i < u.jobs; ++i) jobs[job++] = {unit, i * most_runs, least((i + 1) * most_runs, u.runs)};
      units[unit++] = u;
    });
    parallel(job, [&](int64_t i) {
      Work w = work();
      // The threads go on in step: what this one gets next is likely to be that many jobs further on.
      const int64_t later = i + threads();
      work_on(jobs[i], later < job ? jobs + later : nullptr, units, w);
    });
  }
};

}  // namespace attend

inline void attention(const Attention& a) {
  with_type(a.kind, [&](auto type) { attend::Attending<decltype(type)>{a}(); });
}
