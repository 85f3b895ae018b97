// What multi-head latent attention (DeepSeek-V2, equations 9-19) needs beside attention: each head's own matrix, and prefill with
// keys and values made from the latents. Included inside a variant's namespace.

namespace latent {

constexpr int64_t kOutputs = 64;  // of a head's matrix, in one task
constexpr int64_t kRowsAtOnce = 72;

template <typename T>
inline void absorb_task(const Absorb& a, int64_t head, int64_t first) {
  using W = typename tile::Word<T>::type;
  const int64_t some = attend::least(kOutputs, a.size_out - first), depth = tile::words<W>(a.size_in);
  attend::Carver memory{0};
  float *packed, *x, *sums;
  const auto take = [&] {
    packed = memory.take<float>(depth * kOutputs);
    x = memory.take<float>(kRowsAtOnce * depth);
    sums = memory.take<float>(kRowsAtOnce * kOutputs);
  };
  take();
  memory.at = reinterpret_cast<uintptr_t>(scratch(kTask, int64_t(memory.at)));
  take();
  tile::Nothing nothing;
  const T* const weight = static_cast<const T*>(a.weight) + head * a.weight_head + first * a.weight_out;
  if (a.weight_in == 1)
    tile::pack_across<W>([&](int64_t n) { return weight + n * a.weight_out; }, some, a.size_in, packed, kOutputs);
  else
    tile::pack_along([&](int64_t k) { return weight + k * a.weight_in; }, a.size_in, some, packed, kOutputs, W{});
  for (int64_t row = 0; row < a.rows; row += kRowsAtOnce) {
    const int rows = int(attend::least(kRowsAtOnce, a.rows - row));
    for (int r = 0; r < rows; ++r)
      tile::copy_row<W>(static_cast<const T*>(a.x) + (row + r) * a.x_row + head * a.x_head, a.size_in, x + r * depth);
    tile::product<W>(rows, tile::up16(some), depth, x, depth, packed, kOutputs, sums, kOutputs, nothing);
    for (int r = 0; r < rows; ++r) {
      T* const out = static_cast<T*>(a.out) + ((row + r) * a.heads + head) * a.size_out + first;
      each16(some, [&](int64_t i, int n) { store_n(out + i, load_n(sums + r * kOutputs + i, n), n); });
    }
  }
}

// Prefill of one head and some of the rows: each run's keys and values are made once, for all of these rows.
template <typename T>
struct Expanding {
  using W = typename tile::Word<T>::type;
  const LatentPrefill& a;
  const int64_t head, first_row, rows;
  const int64_t rank_words = tile::words<W>(a.rank), key_words = tile::words<W>(a.q_size);
  const int64_t depth = key_words + tile::words<W>(a.tail_size), width = tile::up16(a.value_size);
  const int64_t end = a.length - a.rows + first_row + rows;  // places that the last row sees
  int64_t *slots = nullptr, *ends = nullptr;
  float *up_key = nullptr, *up_value = nullptr, *latents = nullptr, *made = nullptr, *keys = nullptr, *values = nullptr;
  float *queries = nullptr, *scores = nullptr, *next = nullptr, *sums = nullptr;

  static int64_t tiles(int64_t rows) { return (rows + attend::kTile - 1) / attend::kTile; }

  void take() {
    attend::Carver memory{0};
    for (int pass = 0; pass < 2; ++pass) {
      if (pass) memory.at = reinterpret_cast<uintptr_t>(scratch(kTask, int64_t(memory.at)));
      slots = memory.take<int64_t>(attend::kRun);
      ends = memory.take<int64_t>(attend::kTile);
      up_key = memory.take<float>(a.q_size * rank_words);
      up_value = memory.take<float>(a.value_size * rank_words);
      latents = memory.take<float>(rank_words * attend::kGroup);
      made = memory.take<float>((a.q_size > a.value_size ? a.q_size : a.value_size) * attend::kGroup);
      keys = memory.take<float>(depth * attend::kRun);
      values = memory.take<float>(tile::words<W>(attend::kRun) * width);
      queries = memory.take<float>(attend::kTile * depth);
      scores = memory.take<float>(attend::kTile * attend::kRun);
      next = memory.take<float>(attend::Sums::floats(attend::kTile, width));
      sums = memory.take<float>(tiles(rows) * attend::Sums::floats(attend::kTile, width));
    }
  }

  // made[n][place] = row n of `up` times the latent of the place, rounded to W.
  void make(const float* up, int64_t count, int64_t places) const {
    tile::Nothing nothing;
    tile::product<W>(int(count), tile::up16(places), rank_words, up, rank_words, latents, attend::kGroup, made,
                     attend::kGroup, nothing);
    for (int64_t n = 0; n < count; ++n) {
      float* const row = made + n * attend::kGroup;
      for (int64_t i = 0; i < places; i += 16) store(reinterpret_cast<W*>(row) + i, load(row + i));
    }
  }
  const W* made_row(int64_t n) const { return reinterpret_cast<const W*>(made + n * attend::kGroup); }

  // The packed keys and values of the group of places that starts `at` places into the run.
  void expand(int64_t at, int64_t places) const {
    const int64_t row_size = a.rank + a.tail_size;
    const auto row = [&](int64_t i) { return static_cast<const T*>(a.cache) + slots[at + i] * row_size; };
    const auto made_at = [&](int64_t n) { return made_row(n); };
    tile::pack_across<W>(row, places, a.rank, latents, attend::kGroup);
    make(up_key, a.q_size, places);
    float* const to = keys + at * depth;
    tile::pack_along(made_at, a.q_size, places, to, attend::kGroup, W{});
    tile::pack_across<W>([&](int64_t i) { return row(i) + a.rank; }, places, a.tail_size, to + key_words * attend::kGroup,
                         attend::kGroup);
    make(up_value, a.value_size, places);
    tile::pack_across<W>(made_at, a.value_size, places, values + tile::words<W>(at) * width, width);
  }

  attend::Queries tile_queries(int64_t row, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      float* const to = queries + i * depth;
      ends[i] = a.length - a.rows + row + i + 1;
      tile::copy_row<W>(static_cast<const T*>(a.q) + (row + i) * a.q_row + head * a.q_head, a.q_size, to);
      tile::copy_row<W>(static_cast<const T*>(a.tail) + (row + i) * a.tail_row + head * a.tail_head, a.tail_size,
                        to + key_words);
    }
    return {int(count), depth, queries, ends, float(a.scale)};
  }

  void run(int64_t begin, int64_t places) const {
    for (int64_t at = 0; at < places; at += attend::kGroup) expand(at, attend::least(attend::kGroup, places - at));
    tile::Nothing nothing;
    for (int64_t t = 0; t < tiles(rows); ++t) {
      const int64_t row = first_row + t * attend::kTile, count = attend::least(attend::kTile, first_row + rows - row);
      const int64_t seen = attend::least(places, a.length - a.rows + row + count - begin);
      if (seen <= 0) continue;
      const auto all = attend::Sums::at(sums + t * attend::Sums::floats(attend::kTile, width), attend::kTile);
      const auto fresh = begin == 0 ? all : attend::Sums::at(next, attend::kTile);
      const attend::Queries q = tile_queries(row, count);
      const auto score = [&](int64_t at, int64_t some) {
        tile::product<W>(q.rows, tile::up16(some), depth, q.words, depth, keys + at * depth, attend::kGroup, scores + at,
                         attend::kRun, nothing);
      };
      const auto add_up = [&] {
        tile::product<W>(q.rows, width, tile::words<W>(seen), scores, attend::kRun, values, width, fresh.values, width, nothing);
      };
      attend::attend_run<W>(q, begin, seen, score, add_up, scores, fresh);
      if (begin > 0) attend::fold(all, fresh, int(count), width);
    }
  }

  void operator()() {
    take();
    for (int64_t n = 0; n < a.q_size; ++n)
      tile::copy_row<W>(static_cast<const T*>(a.up_key) + head * a.up_key_head + n * a.rank, a.rank, up_key + n * rank_words);
    for (int64_t n = 0; n < a.value_size; ++n)
      tile::copy_row<W>(static_cast<const T*>(a.up_value) + head * a.up_value_head + n * a.rank, a.rank,
                        up_value + n * rank_words);
    for (int64_t begin = 0; begin < end; begin += attend::kRun) {
      const int64_t places = attend::least(attend::kRun, end - begin);
      attend::find(a.pages, a.page_size, begin, places, slots);
      run(begin, places);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float* const tile_sums = sums + r / attend::kTile * attend::Sums::floats(attend::kTile, width);
      const auto all = attend::Sums::at(const_cast<float*>(tile_sums), attend::kTile);
      const int64_t i = r % attend::kTile;
      attend::divide(all.values + i * width, all.total[i], a.value_size,
                     static_cast<T*>(a.out) + ((first_row + r) * a.heads + head) * a.value_size);
    }
  }
};

}  // namespace latent

inline void absorb(const Absorb& a) {
  const int64_t each = (a.size_out + latent::kOutputs - 1) / latent::kOutputs;
  with_type(a.kind, [&](auto type) {
    parallel(a.rows ? a.heads * each : 0, [&](int64_t i) {
      latent::absorb_task<decltype(type)>(a, i / each, i % each * latent::kOutputs);
    });
  });
}

inline void latent_prefill(const LatentPrefill& a) {
  // Rows are cut where heads are few for the threads, and where their sums would not stay in the cache.
  const int64_t wanted = (2 * threads() + a.heads - 1) / a.heads, most = (a.rows + wanted - 1) / wanted;
  const int64_t tiles = (attend::least(most, 1024) + attend::kTile - 1) / attend::kTile, rows = tiles * attend::kTile;
  const int64_t parts = (a.rows + rows - 1) / rows;
  with_type(a.kind, [&](auto type) {
    parallel(parts * a.heads, [&](int64_t i) {
      const int64_t part = parts - 1 - i / a.heads;  // the last rows see most
      latent::Expanding<decltype(type)>{a, i % a.heads, part * rows, attend::least(rows, a.rows - part * rows)}();
    });
  });
}
