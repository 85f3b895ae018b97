// Every kernel that Python may call, by name, with the one struct that holds its arguments.
//
// Owns the list and the argument structs: fields of eight bytes each, so that Python fills one as an array. Knows no instruction set.
// `kind` fields are of `Kind`. Tensors are dense but where a stride (in values) is given. Indices are int64.

#pragma once

#include <cstdint>

namespace twinline {

using bf16 = uint16_t;  // the upper half of a float32

enum Kind : int64_t { kFloat = 0, kBfloat16 = 1 };

// kWidened: bfloat16 for float rows, where every float is one.
enum Form : int64_t { kPlainFloat = 0, kPlainBfloat16 = 1, kInt8 = 2, kInt4 = 3, kFp8 = 4, kWidened = 5 };

// `count` matrices [outputs, inputs], packed as layout.h says. `group`: inputs that share scales; 0 for a whole row.
struct Weight {
  const void* data;
  int64_t form, group, count, outputs, inputs;
};

// How many bytes `of` takes; its data is not looked at.
struct WeightBytes {
  Weight of;
  int64_t* bytes;
};

enum Source : int64_t { kFromFloat = 0, kFromBfloat16 = 1, kFromHalf = 2, kFromQuantized = 3 };

// Fills `to`. source [count, outputs, inputs]: values to be rounded to the form, or bytes of the form (int8, int4 in a byte
// each, e4m3) with float scales [count, outputs, groups], of fp8 [count, outputs / 128, inputs / 128].
struct PackWeight {
  Weight to;
  const void *source, *scales;
  int64_t from;
};

// out [rows, outputs] = x [rows, inputs] times the transposed matrix, + bias [outputs] or null.
struct Linear {
  Weight weight;
  const void *x, *bias;
  void* out;
  int64_t kind, rows, stride;
};

#define TWINLINE_LINEAR_KERNELS(X) X(weight_bytes, WeightBytes) X(pack_weight, PackWeight) X(linear, Linear)

// out = x / sqrt(mean(x^2) + eps) * weight, rounded before the weight. x [rows, size].
struct RmsNorm {
  const void *x, *weight;
  void* out;
  int64_t kind, rows, size, stride;
  double eps;
};

// total = residual + x; out = its norm. All [rows, size], x with a stride.
struct AddRmsNorm {
  const void *x, *residual, *weight;
  void *out, *total;
  int64_t kind, rows, size, stride;
  double eps;
};

// Sampling. `whole` [N, 4] says for each drawn row: its row of logits, the two words of its noise key, top_k; `real` [N, 3]: its
// temperature, top_p, min_p. `best` holds every row's largest logit.

// best [rows] and at [rows]: the first of a row's largest values and where; NaN and where if there is one.
struct RowMaxima {
  const void* logits;
  float* best;
  int64_t* at;
  int64_t kind, rows, size, stride;
};

// ids [N, room]: the tokens that may win, counts [N] of them; a count above `room` means that not all are there.
struct RaceCandidates {
  const void* logits;
  const int64_t* whole;
  const float *real, *best;
  int64_t *ids, *counts;
  int64_t kind, rows, size, stride, room;
};

// values and ids [N, wanted]: the likeliest tokens in order; complete [N] is 0 where they could not be told apart; masses [N],
// where it is not null, sums exp((logit - best) / temperature) over the whole vocabulary.
struct LeadingCandidates {
  const void* logits;
  const int64_t* whole;
  const float *real, *best;
  float* values;
  int64_t *ids, *complete;
  double* masses;
  int64_t kind, rows, size, stride, wanted;
};

// best [rows] as `RowMaxima`; at [rows]: who wins the race with the noise of keys [rows, 2] at a temperature of its own each, nearly
// always, and the likeliest where that is 0. For guesses, which need not be right.
struct RaceWinners {
  const void* logits;
  const int64_t* keys;
  const float* temperatures;
  float* best;
  int64_t* at;
  int64_t kind, rows, size, stride;
};

#define TWINLINE_SAMPLING_KERNELS(X)                                                                            \
  X(row_maxima, RowMaxima) X(race_candidates, RaceCandidates) X(leading_candidates, LeadingCandidates)          \
  X(race_winners, RaceWinners)

// out [rows, size] = rows of a table [count, size].
struct Embedding {
  const void* table;
  const int64_t* ids;
  void* out;
  int64_t kind, rows, size, count;
};

// out [rows, size] = silu(gate) * up, where a row of x is [gate | up].
struct SiluMul {
  const void* x;
  void* out;
  int64_t kind, rows, size, stride;
};

// x [rows, heads, size] with strides, turned by cos and sin [rows, size / 2]; out is dense.
struct Rope {
  const void* x;
  const float *cos, *sin;
  void* out;
  int64_t kind, interleaved, rows, heads, size, row_stride, head_stride;
};

// x [rows, heads, size] with strides, to the slots of a cache [heads, places, width], from column `at` on.
struct KvWrite {
  void* cache;
  const int64_t* slots;
  const void* x;
  int64_t kind, rows, heads, size, row_stride, head_stride, places, width, at;
};

#define TWINLINE_SMALL_KERNELS(X) \
  X(rms_norm, RmsNorm)            \
  X(add_rms_norm, AddRmsNorm)     \
  X(embedding, Embedding)         \
  X(silu_mul, SiluMul)            \
  X(rope, Rope)                   \
  X(kv_write, KvWrite)

// chosen and weights [rows, per_token] of x [rows, size] times gate [experts, size]. bias [experts] or null. `best_of_group`: how
// many of a group's best make its worth, 0 where there are no groups. `softmax` and `normalise` are 0 or 1.
struct Route {
  const void* x;
  const float *gate, *bias;
  int64_t* chosen;
  float* weights;
  int64_t kind, rows, size, stride, experts, per_token, groups, groups_kept, best_of_group, softmax, normalise;
  double scale;
};

// out = sum over each row's experts of share * down(silu(gate) * up), + base or null. gate_up [experts, 2 inner, size] has a gate's
// rows before an up's, down [experts, size, inner]; x and base [rows, size], chosen and shares [rows, per_token], with strides.
struct Experts {
  Weight gate_up, down;
  const void *x, *base;
  const int64_t* chosen;
  const float* shares;
  void* out;
  int64_t kind, rows, per_token, stride, base_stride, chosen_stride, shares_stride;
};

#define TWINLINE_EXPERT_KERNELS(X) X(route, Route) X(experts, Experts)

// Attention of `rows` new tokens of each sequence over its past and themselves, causal. q [sequences, rows, heads, q_size], `tail` beside
// it [.., tail_size] (null and 0 for none), with strides of a row and a head; out dense [sequences, rows, heads, value_size].
// A place's key is q_size + tail_size values; keys and values have strides of a place and of a head. `pages` [sequences,
// pages_each]; a sequence's length counts its new rows: lengths[sequence], or `length` where that is null.
struct Attention {
  const void *q, *tail, *keys, *values;
  const int64_t *pages, *lengths;
  void* out;
  int64_t kind, sequences, rows, heads, kv_heads, length, pages_each, page_size, q_size, tail_size, value_size;
  int64_t q_row, q_head, tail_row, tail_head, key_row, key_head, value_row, value_head;
  double scale;
};

// out[r][h] = x[r][h] @ weight[h], rounded once. x with strides of a row and a head; weight [heads, size_in, size_out] with three
// strides, the second or the third of them 1; out dense [rows, heads, size_out].
struct Absorb {
  const void *x, *weight;
  void* out;
  int64_t kind, rows, heads, size_in, size_out, x_row, x_head, weight_head, weight_in, weight_out;
};

// Latent attention of one sequence's last `rows` tokens with keys [up_key latent | rotated key] and values up_value latent, made
// run by run. cache [places, rank + tail_size]; up_key [heads, q_size, rank], up_value [heads, value_size, rank], each with a
// stride of a head, rows dense; q, tail and out as in `Attention`; `length` counts the rows.
struct LatentPrefill {
  const void *q, *tail, *cache, *up_key, *up_value;
  const int64_t* pages;
  void* out;
  int64_t kind, rows, heads, length, page_size, rank, q_size, tail_size, value_size;
  int64_t q_row, q_head, tail_row, tail_head, up_key_head, up_value_head;
  double scale;
};

#define TWINLINE_ATTENTION_KERNELS(X) X(attention, Attention) X(absorb, Absorb) X(latent_prefill, LatentPrefill)

}  // namespace twinline
