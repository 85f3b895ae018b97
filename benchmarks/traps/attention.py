"""Traps 1 to 8: latent attention, its rotation and its scale."""

from __future__ import annotations

from benchmarks.traps.trap import Mutation, Trap

AT = "src/twinline/engine/models/attention.py"
REFERENCE, BATCHED = "src/twinline/engine/ops/reference.py", "src/twinline/engine/ops/batched.py"
PARTS, SPEC = "src/twinline/engine/models/parts.py", "src/twinline/facts/families/deepseek.py"
TESTS = "tests/engine/test_traps.py::test_trap_"
CACHED = "self.kv_norm(latent)[:, None], k_pe)"
SPLIT = "per_head[:, : a.nope], per_head[:, a.nope :]"
ALL_QUERIES = "q_nope, q_pe = q.view(rows_all, a.heads, -1).split([a.nope, a.rope], -1)"

TRAPS = (
    Trap(1, "the norm is over the latent only; the cache holds it normed, and the shared key rotated",
         (f"{TESTS}01_latent_norm_and_what_the_cache_stores",), (
        Mutation("the latent's norm counts the rotated key too", AT, CACHED,
                 "(latent * (torch.cat((latent, k_pe[:, 0]), -1).pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() "
                 "* self.kv_norm.weight)[:, None], k_pe)"),
        Mutation("the cache holds the latent before its norm", AT, CACHED, "latent[:, None], k_pe)"),
        Mutation("the shared key is not rotated", AT, "k_pe = ops.rope(k_pe[:, None], *rope, self.interleaved)",
                 "k_pe = k_pe[:, None]"),
        Mutation("no norm between q_a and q_b", AT, "q = self.q_up(self.q_norm(q))", "q = self.q_up(q)"),
        Mutation("the latent's norm with rms_norm_eps", AT, "Norm(ops, a.kv_rank, LATENT_NORM_EPS)",
                 "Norm(ops, a.kv_rank, spec.norm_eps)"),
        Mutation("the query's norm with rms_norm_eps", AT, "Norm(ops, a.q_rank, LATENT_NORM_EPS)",
                 "Norm(ops, a.q_rank, spec.norm_eps)"),
    )),
    Trap(2, "rows of q_b are [nope | rope] and rows of kv_b [k_nope | v], head by head",
         (f"{TESTS}02_rows_are_split_head_by_head",), (
        Mutation("kv_b is split globally", AT, SPLIT,
                 "self.kv_up.data[: a.heads * a.nope].view(a.heads, a.nope, -1), "
                 "self.kv_up.data[a.heads * a.nope :].view(a.heads, a.value, -1)"),
        Mutation("values before keys in a head", AT, SPLIT, "per_head[:, a.value :], per_head[:, : a.value]"),
        Mutation("q_b is split globally", AT, ALL_QUERIES,
                 "q_nope, q_pe = (part.reshape(rows_all, a.heads, -1) for part in "
                 "q.split([a.heads * a.nope, a.heads * a.rope], -1))"),
        Mutation("rope before nope in a head", AT, ALL_QUERIES,
                 "q_pe, q_nope = q.view(rows_all, a.heads, -1).split([a.rope, a.nope], -1)"),
    )),
    Trap(3, "prefill expands, decode absorbs, and a long past is merged by log-sum-exp",
         (f"{TESTS}03_expanded_prefill_and_absorbed_decode_are_one_attention", f"{TESTS}03_a_long_past_is_merged"), (
        Mutation("decode without the rotated part", AT, "ops.mla_decode(q_latent, q_pe[rows],",
                 "ops.mla_decode(q_latent, torch.zeros_like(q_pe[rows]),"),
        Mutation("W_UV of another head", AT, "self.uv_HvC.transpose(1, 2))",
                 "self.uv_HvC.roll(1, 0).transpose(1, 2))"),
        Mutation("a chunk's mask counts from place 0", REFERENCE, ".triu(length - rows + 1)", ".triu(1)"),
        Mutation("a chunk's mask counts from place 0 (batched)", BATCHED, ".tril(past)", ".tril()"),
        Mutation("PyTorch's own causal flag with a past (batched)", BATCHED, "    if past == 0:", "    if past >= 0:"),
        Mutation("runs are added without their maxima (C++)", "csrc/cpu/attention.h",
                 "const F before = exponential(all(into.most[r] - top))", "const F before = all(1.0f)"),
        Mutation("the last run alone (C++, prefill)", "csrc/cpu/latent.h",
                 "const auto fresh = begin == 0 ? all : attend::Sums::at(next, attend::kTile);",
                 "const auto fresh = all;"),
    )),
    Trap(4, "W_UK and W_UV are kv_b_proj dequantized, once, and not rounded again",
         ("tests/engine/test_traps_fp8.py::test_trap_04_the_up_projection_is_dequantized_once",), (
        Mutation("rounded again to the layers' form", AT, "per_head = self.kv_up.data.view(",
                 "from twinline.engine.ops.quantized import stored\n        "
                 "per_head = stored(self.kv_up.data, self.ops.facts.weights).view("),
        Mutation("split before its scales are applied", "src/twinline/engine/models/loader.py",
                 "target.copy_(decoded.values(target.dtype))", "target.copy_(decoded.numbers.to(target.dtype))"),
    )),
    Trap(5, "PyTorch's fast attention on CPUs wants values as wide as keys", (
        f"{TESTS}05_fast_attention_wants_heads_of_one_size",), (
        Mutation("values as they are", BATCHED, "wide = F.pad(v_HLv, (0, max(0, q.shape[-1] - v_HLv.shape[-1])))",
                 "wide = v_HLv"),
        Mutation("what pads is not cut off", BATCHED, "return out[0, ..., : v_HLv.shape[-1]].transpose(0, 1)",
                 "return out[0, ..., -v_HLv.shape[-1] :].transpose(0, 1)"),
    )),
    Trap(6, "pairs are neighbours in the checkpoint", (f"{TESTS}06_rope_pairs_are_interleaved",), (
        Mutation("halves where the configuration says nothing", SPEC, 'config.get("rope_interleave", True)',
                 'config.get("rope_interleave", False)'),
        Mutation("halves in the reference", REFERENCE, "    if interleaved:", "    if not interleaved:"),
        Mutation("halves in batched", BATCHED, "    if interleaved:", "    if not interleaved:"),
        Mutation("halves in C++", "csrc/cpu/small.h", "a.interleaved ? turn_head<T, true>",
                 "!a.interleaved ? turn_head<T, true>"),
        Mutation("keys alone in halves", AT, "k_pe = ops.rope(k_pe[:, None], *rope, self.interleaved)",
                 "k_pe = ops.rope(k_pe[:, None], *rope, False)"),
    )),
    Trap(7, "YaRN: slowed frequencies, mscale on cosines and sines, its square on the softmax scale, at every length",
         (f"{TESTS}07_yarn", f"{TESTS}07_the_scale_of_r1", f"{TESTS}07_either_spelling"), (
        Mutation("the plain softmax scale", SPEC,
                 'if fields["kind"] == "yarn" and fields.get("mscale_all_dim"):', "if False:"),
        Mutation("the temperature, not its square", SPEC, 'float(fields["mscale_all_dim"])) ** 2',
                 'float(fields["mscale_all_dim"]))'),
        Mutation("only beyond 4096 positions", SPEC,
                 'if fields["kind"] == "yarn" and fields.get("mscale_all_dim"):',
                 'if fields["kind"] == "yarn" and fields.get("mscale_all_dim") and '
                 'models.need(config, "max_position_embeddings") > 4096:'),
        Mutation("mscale where mscale / mscale_all_dim belongs", PARTS,
                 'return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])', 'return mscale(rope["mscale"])'),
        Mutation("no factor on cosines and sines", PARTS,
                 'return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])', "return 1.0"),
        Mutation("fast pairs slowed in place of slow ones", PARTS,
                 "return plain / factor * ramp + plain * (1 - ramp), ",
                 "return plain / factor * (1 - ramp) + plain * ramp, "),
        Mutation("every pair slowed", PARTS, "return plain / factor * ramp + plain * (1 - ramp), ",
                 "return plain / factor, "),
        Mutation("rope_parameters, the newer spelling, is not read", "src/twinline/facts/models.py",
                 'for name in ("rope_scaling", "rope_parameters"):', 'for name in ("rope_scaling",):'),
    )),
    Trap(8, "scaled once, and the scale is given to every provider", (f"{TESTS}08_scaled_once_and_explicitly",), (
        Mutation("the query is scaled as well", AT, "q_latent = ops.mla_absorb(q_nope[rows], self.uk_HdC)",
                 "q_latent = ops.mla_absorb(q_nope[rows] * a.scale, self.uk_HdC)"),
        Mutation("decode by its own width (reference)", REFERENCE, "k_1LC, k_1LC[..., :rank], scale))",
                 "k_1LC, k_1LC[..., :rank], q.shape[-1] ** -0.5))"),
        Mutation("prefill by its own width (reference)", REFERENCE,
                 "return _attend(torch.cat((q_nope_THd, q_pe_THR), -1), k, v, scale)",
                 "return _attend(torch.cat((q_nope_THd, q_pe_THR), -1), k, v, k.shape[-1] ** -0.5)"),
        Mutation("decode scaled twice (batched)", BATCHED, "torch.cat((q_latent_DHC, q_pe_DHR), -1) * scale",
                 "torch.cat((q_latent_DHC, q_pe_DHR), -1) * scale * scale"),
        Mutation("PyTorch's default scale (batched)", BATCHED,
                 "wide[None], mask, is_causal=mask is None, scale=scale)",
                 "wide[None], mask, is_causal=mask is None)"),
        Mutation("by its own width (C++, latent space)", "csrc/cpu/attention.h",
                 "return {u.queries(), depth, w.queries, w.ends, float(a.scale)};",
                 "return {u.queries(), depth, w.queries, w.ends, 1.0f / std::sqrt(float(a.q_size + a.tail_size))};"),
        Mutation("by its own width (C++, expanded)", "csrc/cpu/latent.h",
                 "return {int(count), depth, queries, ends, float(a.scale)};",
                 "return {int(count), depth, queries, ends, 1.0f / std::sqrt(float(a.q_size + a.tail_size))};"),
    )),
)  # fmt: skip
