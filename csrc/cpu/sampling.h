// What a sampler must look at: each row's maximum, the tokens that may win a race, the likeliest tokens. Included inside a
// variant's namespace.
//
// Chooses no token. It leaves candidates, a few of a whole vocabulary and surely all that count; engine/draw.py decides among
// them with the arithmetic that every device shares, so the token is the same with these kernels and without them.

// The bits of a float as an integer in the same order; -0 is 0.
inline int32_t ordered(float x) {
  x += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float from_ordered(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float one(float x) { return x; }
inline float one(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Values i to i + n of a row; where a ragged end has fewer than 16 the others are impossible.
template <typename T>
inline F load_or_impossible(const T* row, int64_t i, int64_t size) {
  if (i + 16 <= size) return load(row + i);
  float values[16];
  for (int j = 0; j < 16; ++j) values[j] = i + j < size ? one(row[i + j]) : -INFINITY;
  return load(values);
}

// The first of a row's largest values, or its first NaN.
template <typename T>
inline void first_largest(const T* row, int64_t size, float& best, int64_t& at) {
  constexpr int64_t kRun = 512;
  const int64_t whole = size / 16 * 16;
  int64_t run = 0;
  bool odd = false;
  best = -INFINITY;
  for (int64_t begin = 0; begin < size; begin += kRun) {
    F largest = all(-INFINITY), zeros = zero();
    for (int64_t i = begin; i < begin + kRun && i < size; i += 16) {
      largest = max(largest, load_or_impossible(row, i, size));
      if (i < whole) zeros = fma(load(row + i), zero(), zeros);
    }
    if (most(largest) > best) best = most(largest), run = begin;
    odd = odd || sum(zeros) != 0.0f;  // something is NaN or infinite
  }
  for (int64_t i = odd ? 0 : whole; i < size; ++i)
    if (const float x = one(row[i]); x != x) {
      best = x, at = i;
      return;
    }
  for (at = run; one(row[at]) != best;) ++at;
}

inline void row_maxima(const RowMaxima& a) {
  with_type(a.kind, [&](auto type) {
    const auto* logits = static_cast<const decltype(type)*>(a.logits);
    parallel(a.rows, [&](int64_t r) { first_largest(logits + r * a.stride, a.size, a.best[r], a.at[r]); });
  });
}

// The two-round hash of engine/noise.py for sixteen tokens from `first` on, as uniform values.
inline F uniform16(int64_t first, uint32_t key, uint32_t second_key) {
  uint32_t x[16];
  float u[16];
  for (int j = 0; j < 16; ++j) {
    uint32_t v = uint32_t(first + j) ^ key;
    v ^= v >> 16;
    v *= 0x21f0aaadu;
    v ^= v >> 15;
    v *= 0x735a2d97u;
    v ^= v >> 15;
    v ^= second_key;
    v *= 0x21f0aaadu;
    x[j] = v ^ (v >> 16);
  }
  for (int j = 0; j < 16; ++j) u[j] = float(x[j]);
  return min(fma(load(u), all(0x1p-32f), all(0x1p-33f)), all(1 - 0x1p-24f));
}

// Calls with the tokens that may be the argmax of (logit - best) / temperature + noise, in order of id, and how long each waits.
//
// Token i waits -log(1 - u_i) / w_i with w_i = exp((logit_i - best) / temperature), and the shortest wait wins. A wait is at least
// u_i / w_i, which needs no logarithm: only tokens that pass with that are looked at closer. `kSlack` is room for the rounding
// of both sides; a token that is let in needlessly does no harm.
template <typename T, typename Seen>
inline void race(const T* row, int64_t size, float best, float temperature, const int64_t* key, const Seen& seen) {
  constexpr float kSlack = 1.001f, kLongest = 16.7f;  // -log(2^-24), the longest wait of the likeliest token
  constexpr int kRun = 64;
  const F middle = all(best), sharpness = all(1.0f / temperature), last = all(-80.0f);
  float limit = kLongest * kSlack;
  for (int64_t begin = 0; begin < size; begin += kRun) {
    float u[kRun], w[kRun];
    F early = all(-1.0f);
    const int64_t end = begin + kRun < size ? begin + kRun : size;
    for (int64_t i = begin; i < end; i += 16) {
      const F noise = uniform16(i, uint32_t(key[0]), uint32_t(key[1]));
      const F weight = exponential(max(mul(sub(load_or_impossible(row, i, size), middle), sharpness), last));
      early = max(early, sub(mul(weight, all(limit)), noise));
      store(u + (i - begin), noise);
      store(w + (i - begin), weight);
    }
    if (most(early) < 0.0f) continue;
    for (int64_t i = begin; i < end; ++i) {
      const float noise = u[i - begin], weight = w[i - begin];
      if (noise > weight * limit) continue;
      const float wait = -std::log1p(-noise) / weight;
      seen(i, wait);
      if (wait * kSlack < limit) limit = wait * kSlack;
    }
  }
}

inline void race_candidates(const RaceCandidates& a) {
  with_type(a.kind, [&](auto type) {
    const auto* logits = static_cast<const decltype(type)*>(a.logits);
    parallel(a.rows, [&](int64_t n) {
      const int64_t r = a.whole[4 * n];
      int64_t found = 0;
      race(logits + r * a.stride, a.size, a.best[r], a.real[3 * n], a.whole + 4 * n + 1, [&](int64_t token, float) {
        if (found < a.room) a.ids[n * a.room + found] = token;
        ++found;
      });
      a.counts[n] = found;
    });
  });
}

inline void race_winners(const RaceWinners& a) {
  with_type(a.kind, [&](auto type) {
    const auto* logits = static_cast<const decltype(type)*>(a.logits);
    parallel(a.rows, [&](int64_t r) {
      const auto* row = logits + r * a.stride;
      first_largest(row, a.size, a.best[r], a.at[r]);
      float shortest = INFINITY;
      if (a.temperatures[r] > 0.0f)
        race(row, a.size, a.best[r], a.temperatures[r], a.keys + 2 * r, [&](int64_t token, float wait) {
          if (wait < shortest) shortest = wait, a.at[r] = token;
        });
    });
  });
}

// The largest key that at least `wanted` of the keys reach.
inline int32_t reached_by(const int32_t* keys, int64_t count, int64_t wanted) {
  int64_t low = INT32_MIN, high = INT32_MAX;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    int32_t reach = 0;
    for (int64_t i = 0; i < count; ++i) reach += keys[i] >= int32_t(middle);
    if (reach >= wanted) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return int32_t(low);
}

// Sorts ascending by merging runs; `spare` is as large. Returns where the result is.
inline uint64_t* merge_sort(uint64_t* values, uint64_t* spare, int64_t count) {
  for (int64_t width = 1; width < count; width *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * width) {
      const int64_t middle = begin + width < count ? begin + width : count;
      const int64_t end = begin + 2 * width < count ? begin + 2 * width : count;
      int64_t left = begin, right = middle;
      for (int64_t i = begin; i < end; ++i)
        spare[i] = left < middle && (right == end || values[left] <= values[right]) ? values[left++] : values[right++];
    }
    uint64_t* const sorted = spare;
    spare = values;
    values = sorted;
  }
  return values;
}

// The `wanted` likeliest tokens of a row, likeliest first and lowest id first in a tie; false if ties leave too many to sort.
//
// `mass`, where it is not null: the sum of exp((logit - best) / temperature) over the row, to about 1e-6 of it.
template <typename T>
inline bool likeliest(const T* row, int64_t size, int64_t wanted, float best, float temperature, float* values, int64_t* ids,
                      double* mass) {
  constexpr int64_t kChunk = 256;  // of which each of sixteen groups takes every sixteenth value
  const int64_t chunks = (size + kChunk - 1) / kChunk, groups = 16 * chunks, room = 4 * wanted + 256;
  auto* const pairs = static_cast<uint64_t*>(scratch(kTask, 16 * room + 4 * groups));
  auto* const maxima = reinterpret_cast<int32_t*>(pairs + 2 * room);
  const F middle = all(best), sharpness = all(1.0f / temperature);
  double total = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    F largest = all(-INFINITY), weights = zero();
    for (int64_t i = c * kChunk; i < (c + 1) * kChunk && i < size; i += 16) {
      const F x = load_or_impossible(row, i, size);
      largest = max(largest, x);
      if (mass) weights = add(weights, exponential(mul(sub(x, middle), sharpness)));
    }
    total += double(sum(weights));
    float each[16];
    store(each, largest);
    for (int j = 0; j < 16; ++j) maxima[16 * c + j] = ordered(each[j]);
  }
  if (mass) *mass = total;
  // As many groups hold a value that reaches `least`, so at least as many values do, and few more.
  const int32_t least = groups < wanted ? INT32_MIN : reached_by(maxima, groups, wanted);
  int64_t found = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    bool any = false;
    for (int j = 0; j < 16; ++j) any |= maxima[16 * c + j] >= least;
    if (!any) continue;
    for (int64_t i = c * kChunk; i < (c + 1) * kChunk && i < size; ++i) {
      const int32_t key = ordered(one(row[i]));
      if (key < least) continue;
      if (found == room) return false;
      pairs[found++] = uint64_t(~(uint32_t(key) ^ 0x80000000u)) << 32 | uint64_t(i);
    }
  }
  const uint64_t* const sorted = merge_sort(pairs, pairs + room, found);
  for (int64_t i = 0; i < wanted; ++i) {
    values[i] = from_ordered(int32_t(~uint32_t(sorted[i] >> 32) ^ 0x80000000u));
    ids[i] = int64_t(sorted[i] & 0xffffffff);
  }
  return true;
}

inline void leading_candidates(const LeadingCandidates& a) {
  with_type(a.kind, [&](auto type) {
    const auto* logits = static_cast<const decltype(type)*>(a.logits);
    parallel(a.rows, [&](int64_t n) {
      const int64_t r = a.whole[4 * n];
      double* const mass = a.masses ? a.masses + n : nullptr;
      a.complete[n] = likeliest(logits + r * a.stride, a.size, a.wanted, a.best[r], a.real[3 * n], a.values + n * a.wanted,
                                a.ids + n * a.wanted, mass);
    });
  });
}
