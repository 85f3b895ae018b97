"""Traps 9 to 16: the router, and what its experts are added up to."""

from __future__ import annotations

from benchmarks.traps.trap import Mutation, Trap

REFERENCE, BATCHED = "src/twinline/engine/ops/reference.py", "src/twinline/engine/ops/batched.py"
GROUPED, MOE = "src/twinline/engine/ops/grouped.py", "src/twinline/engine/models/moe.py"
SPEC, HALF = "src/twinline/facts/families/deepseek.py", "src/twinline/engine/models/half_range.py"
ROUTE, EXPERTS = "csrc/cpu/route.h", "csrc/cpu/experts.h"
ROUTING, TESTS = "tests/engine/test_traps_routing.py::test_trap_", "tests/engine/test_traps.py::test_trap_"
FAMILIES = "tests/engine/test_traps_families.py::test_trap_"
CHOICE = "choice[e] = a.bias ? scores[e] + a.bias[e] : scores[e];"
WEIGHED = "weights[k] = scores[chosen[k]];"
HELD_BIAS = "self.bias = parameter(e.count, dtype=torch.float32)"
ADDED = "store(to + v, fma(share, load(from + r * kBlock + v), load(to + v)));"
LAYERS = "sparse = tuple(i for i in layers if i >= first and i % every == 0)"
MLPS, OTHERS = (f"{TESTS}16_dense_layers_and_the_shared_expert",), (f"{FAMILIES}16_which_layers_have_experts",)

TRAPS = (
    Trap(9, "the gate is float32, in a bfloat16 model too",
         (f"{ROUTING}09_the_gate_is_float32", f"{FAMILIES}09_and_22_gate_and_bias_keep_float32"), (
        Mutation("logits in the model's dtype (reference)", REFERENCE,
                 "logits = F.linear(x_NX.float(), gate_EX.float())",
                 "logits = F.linear(x_NX, gate_EX.to(x_NX.dtype)).float()", (f"{ROUTING}09_the_gate_is_float32",)),
        Mutation("logits in the model's dtype (C++)", ROUTE, "logits[r * experts + e] = sum(sums[r][e]);",
                 "{ T some[16]; float back[16]; store_n(some, all(sum(sums[r][e])), 1); "
                 "store(back, load_n(some, 1)); logits[r * experts + e] = back[0]; }",
                 (f"{ROUTING}09_the_gate_is_float32",)),
        Mutation("its weight is kept in the model's dtype", MOE,
                 "self.weight = parameter(e.count, hidden, dtype=torch.float32)",
                 "self.weight = parameter(e.count, hidden, dtype=ops.facts.dtype)"),
    )),
    Trap(10, "the bias chooses, in float32, and never weighs",
         (f"{ROUTING}10_the_bias_chooses_and_never_weighs", f"{FAMILIES}10_ernies_bias_chooses_and_never_weighs"), (
        Mutation("weights of the biased scores (reference)", REFERENCE,
                 "weights_NK = scores.gather(1, chosen_NK)", "weights_NK = choice.gather(1, chosen_NK)"),
        Mutation("weights of the biased scores (C++)", ROUTE, WEIGHED, "weights[k] = choice[chosen[k]];"),
        Mutation("no bias in the choice (reference)", REFERENCE,
                 "choice = scores if bias_E is None else scores + bias_E", "choice = scores"),
        Mutation("no bias in the choice (C++)", ROUTE, CHOICE, "choice[e] = scores[e];"),
        Mutation("the bias rounded to bfloat16 (reference)", REFERENCE, "else scores + bias_E",
                 "else scores + bias_E.bfloat16().float()", (f"{ROUTING}10_the_bias_chooses_and_never_weighs",)),
        Mutation("the bias rounded to bfloat16 (C++)", ROUTE, CHOICE,
                 "{ bf16 some[16]; float back[16]; store_some(some, all(a.bias ? a.bias[e] : 0.0f), 1); "
                 "store(back, load_some(some, 1)); choice[e] = scores[e] + back[0]; }",
                 (f"{ROUTING}10_the_bias_chooses_and_never_weighs",)),
        Mutation("the bias is kept in the model's dtype", MOE, HELD_BIAS,
                 "self.bias = parameter(e.count, dtype=ops.facts.dtype)",
                 (f"{ROUTING}10_the_bias_is_kept_in_float32",)),
    )),
    Trap(11, "the unbiased score is not recovered by subtraction",
         (f"{ROUTING}11_the_unbiased_score_is_not_recovered_by_subtraction",), (
        Mutation("biased less bias (reference)", REFERENCE, "weights_NK = scores.gather(1, chosen_NK)",
                 "weights_NK = (scores if bias_E is None else (scores + bias_E) - bias_E).gather(1, chosen_NK)"),
        Mutation("biased less bias (C++)", ROUTE, WEIGHED,
                 "weights[k] = a.bias ? choice[chosen[k]] - a.bias[chosen[k]] : scores[chosen[k]];"),
    )),
    Trap(12, "a group's worth is the sum of its two best (V2: its best); the others are masked with -inf",
         (f"{ROUTING}12_groups",), (
        Mutation("the best alone (reference)", REFERENCE,
                 'best = min(2, grouped.shape[-1]) if e.limit == "top2" else 1', "best = 1"),
        Mutation("always the two best (reference)", REFERENCE,
                 'best = min(2, grouped.shape[-1]) if e.limit == "top2" else 1', "best = min(2, grouped.shape[-1])"),
        Mutation("masked with 0 (reference)", REFERENCE, "grouped.masked_fill(blocked[..., None], -math.inf)",
                 "grouped.masked_fill(blocked[..., None], 0.0)"),
        Mutation("no groups (reference)", REFERENCE, 'if e.limit != "none" and e.groups > 1:', "if False:"),
        Mutation("the best alone (C++)", ROUTE,
                 "return best_of_group == 2 && count > 1 ? first + second : first;", "return first;"),
        Mutation("always the two best (C++)", ROUTE,
                 "return best_of_group == 2 && count > 1 ? first + second : first;",
                 "return count > 1 ? first + second : first;"),
        Mutation("masked with 0 (C++)", ROUTE, "choice[g * size + i] = -INFINITY;", "choice[g * size + i] = 0.0f;"),
        Mutation("no groups (C++)", ROUTE, "if (a.best_of_group) keep_groups(a, choice, keys);", ""),
        Mutation("V3 read as V2's kind", SPEC, '"noaux_tc": "top2",', '"noaux_tc": "max",'),
    )),
    Trap(13, "V3 normalises (with 1e-20) and then scales; V2-Lite does neither",
         (f"{ROUTING}13_normalise_then_scale",
          f"{FAMILIES}13_weights_are_normalised_where_the_model_says_so"), (
        Mutation("never normalised (reference)", REFERENCE, "    if e.normalise:", "    if False:"),
        Mutation("always normalised (reference)", REFERENCE, "    if e.normalise:", "    if True:"),
        Mutation("not scaled (reference)", REFERENCE, "return chosen_NK, weights_NK * e.scale",
                 "return chosen_NK, weights_NK", (f"{ROUTING}13_normalise_then_scale",)),
        Mutation("scaled, then normalised (reference)", REFERENCE,
                 "weights_NK = scores.gather(1, chosen_NK)\n    if e.normalise:\n"
                 "        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)\n"
                 "    return chosen_NK, weights_NK * e.scale",
                 "weights_NK = scores.gather(1, chosen_NK) * e.scale\n    if e.normalise:\n"
                 "        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)\n"
                 "    return chosen_NK, weights_NK", (f"{ROUTING}13_normalise_then_scale",)),
        Mutation("no 1e-20 (reference)", REFERENCE, "(weights_NK.sum(-1, keepdim=True) + 1e-20)",
                 "weights_NK.sum(-1, keepdim=True)", (f"{ROUTING}13_normalise_then_scale",)),
        Mutation("always normalised (C++)", ROUTE, "(a.normalise ? weights[k] / (total + 1e-20f) : weights[k])",
                 "(weights[k] / (total + 1e-20f))"),
        Mutation("never normalised (C++)", ROUTE, "(a.normalise ? weights[k] / (total + 1e-20f) : weights[k])",
                 "weights[k]"),
        Mutation("not scaled (C++)", ROUTE, "* float(a.scale);", ";", (f"{ROUTING}13_normalise_then_scale",)),
        Mutation("no 1e-20 (C++)", ROUTE, "(total + 1e-20f)", "total", (f"{ROUTING}13_normalise_then_scale",)),
        Mutation("V2-Lite's norm_topk_prob is not read", SPEC, 'bool(config.get("norm_topk_prob", third))', "True",
                 (f"{ROUTING}13_normalise_then_scale",)),
        Mutation("routed_scaling_factor is not read", SPEC, 'models.real(config, "routed_scaling_factor", 1.0)',
                 "1.0", (f"{ROUTING}13_normalise_then_scale",)),
    )),
    Trap(14, "scores are compared in float32; equal ones choose no expert twice", (f"{ROUTING}14_ties",), (
        Mutation("the choice in bfloat16 (reference)", REFERENCE, "chosen_NK = choice.topk(",
                 "chosen_NK = choice.bfloat16().topk("),
        Mutation("groups compared in bfloat16 (reference)", REFERENCE,
                 "kept = grouped.topk(best, -1).values.sum(-1).topk(e.groups_kept, -1).indices",
                 "kept = grouped.topk(best, -1).values.sum(-1).bfloat16().topk(e.groups_kept, -1).indices"),
        Mutation("the choice in bfloat16 (C++)", ROUTE, "keys[e] = ordered(choice[e], e);",
                 "{ bf16 some[16]; float back[16]; store_some(some, all(choice[e]), 1); "
                 "store(back, load_some(some, 1)); keys[e] = ordered(back[0], e); }"),
        Mutation("of equal scores one is chosen again (C++)", ROUTE, "    keys[chosen[k]] = kNone;\n",
                 "    for (int64_t i = 0; i < chosen[k]; ++i) keys[i] = kNone;\n"
                 "    if (chosen[k] + 1 < a.experts && choice[chosen[k] + 1] != choice[chosen[k]]) "
                 "keys[chosen[k]] = kNone;\n"),
    )),
    Trap(15, "experts are added up in float32; float16 has no room for the stream",
         (f"{TESTS}15_experts_are_added_up_in_float32",), (
        Mutation("added up in the model's dtype (reference)", REFERENCE,
                 "out.index_add_(0, row, y.float() * weights_NK[row, place, None])",
                 "out = out.index_add_(0, row, y.float() * weights_NK[row, place, None]).to(x_NX.dtype).float()"),
        Mutation("added up in the model's dtype (batched)", BATCHED,
                 "torch.zeros(x_NX.shape, dtype=torch.float32, device=x_NX.device).index_add_(0, row, scaled)",
                 "torch.zeros_like(x_NX)\n"  # one by one: PyTorch's own index_add_ of bfloat16 sums in float32 on CPUs
                 "        for at, some in zip(row.tolist(), scaled.to(x_NX.dtype)):\n            out[at] += some"),
        Mutation("added up in the model's dtype (grouped)", GROUPED,
                 "(out_AX.view(rows, per_row, -1).float() * weights_NK[..., None]).sum(1)[:, :size]",
                 "sum((out_AX.view(rows, per_row, -1) * weights_NK[..., None].to(x_NX.dtype)).unbind(1))[:, :size]",
                 (f"{TESTS}15_grouped_products_are_added_up_in_float32",)),
        Mutation("added up in the model's dtype (C++)", EXPERTS, ADDED,
                 "{ T some[16]; store_n(some, fma(share, load(from + r * kBlock + v), load(to + v)), 16); "
                 "store(to + v, load_n(some, 16)); }"),
        Mutation("float16 as if it were bfloat16", HALF,
                 'return EXPONENT if dtype == torch.float16 and spec.dtype != "float16" else 0', "return 0",
                 ("tests/engine/test_half_range.py::test_trap_15_a_stream_beyond_float16",)),
        Mutation("float16: attention's output is not made smaller", HALF, r'r"attention\.out\.(weight|bias)|',
                 r'r"attention\.out\.(bias)|',
                 ("tests/engine/test_half_range.py::test_trap_15_a_stream_beyond_float16",)),
        Mutation("float16: experts are not made smaller", HALF, r"(weight|bias)|mlp\.experts\.gate_up",
                 "(weight|bias)",
                 ("tests/engine/test_half_range.py::test_trap_15_a_stream_beyond_float16",)),
    )),
    Trap(16, "which layers have experts; the shared expert's width, added once and unweighted", MLPS, (
        Mutation("one dense layer too many", SPEC, LAYERS,
                 "sparse = tuple(i for i in layers if i > first and i % every == 0)"),
        Mutation("intervals counted from the first sparse layer", SPEC, LAYERS,
                 "sparse = tuple(i for i in layers if i >= first and (i - first) % every == 0)"),
        Mutation("the shared expert is as wide as a routed one", SPEC,
                 'inner * models.count(config, "n_shared_experts", 0, least=0)',
                 'inner * min(1, models.count(config, "n_shared_experts", 0, least=0))'),
        Mutation("the shared expert times the routed scale", MOE, "else self.shared(x_NX)",
                 "else self.shared(x_NX) * self.gate.e.scale"),
        Mutation("no shared expert (reference)", REFERENCE,
                 "return (out if base_NX is None else out + base_NX.float()).to(x_NX.dtype)",
                 "return out.to(x_NX.dtype)"),
        Mutation("intervals counted from 0 (Qwen3)", "src/twinline/facts/families/qwen3_moe.py",
                 "(i + 1) % step == 0 and i not in plain", "i % step == 0 and i not in plain", OTHERS),
        Mutation("the last layer of a range left out (ERNIE)", "src/twinline/facts/families/ernie.py",
                 "if start <= i <= end and", "if start <= i < end and", OTHERS),
        Mutation("no shared expert (batched)", BATCHED,
                 "return (out if base_NX is None else out + base_NX.float()).to(x_NX.dtype)",
                 "return out.to(x_NX.dtype)"),
        Mutation("no shared expert (C++)", EXPERTS,
                 "const T* base = a.base ? static_cast<const T*>(a.base) + r * a.base_stride + first : nullptr;",
                 "const T* base = nullptr;"),
    )),
)  # fmt: skip
