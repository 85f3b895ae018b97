"""Traps 21 to 26: FP8 checkpoints."""

from __future__ import annotations

from benchmarks.traps.trap import Mutation, Trap

MATRICES, DECODED = "src/twinline/engine/quant/matrices.py", "src/twinline/engine/quant/decoded.py"
QUANTIZED, REFERENCE = "src/twinline/engine/ops/quantized.py", "src/twinline/engine/ops/reference.py"
FORMS, MOE = "src/twinline/engine/models/forms.py", "src/twinline/engine/models/moe.py"
SPEC, PARTS = "src/twinline/facts/families/deepseek.py", "src/twinline/facts/families/parts.py"
WEIGHTS, UNPACK, PACKING = (f"csrc/cpu/{name}.h" for name in ("weights", "unpack", "packing"))
TESTS, TRAP = "tests/engine/test_traps_fp8.py::test_trap_", "tests/engine/test_traps.py::test_trap_"
KEPT = (f"{TRAP}22_what_keeps_its_precision",
        "tests/engine/test_traps_families.py::test_trap_09_and_22_gate_and_bias_keep_float32")  # fmt: skip
LEFT = ("tests/engine/quant/test_convert.py::test_trap_22_what_conversion_leaves_plain",)
BESIDE = (f"{TESTS}22_what_is_not_quantized",)
CODES, VARIANTS = (f"{TESTS}26_subnormals_are_values",), (f"{TESTS}26_in_every_instruction_set",)
READ = "numbers, read = checkpoint.read(name), _scales(checkpoint, scales)\n        if by_row:"
SUM = "fma(sums[r][v], scale, load_lanes(total))"
MULTIPLIED = "    return F.linear(x, packed, bias)"
ROUNDED = "F.linear((x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale, packed, bias)"

TRAPS = (
    Trap(21, "weight_scale_inv multiplies; the last blocks are ragged",
         (f"{TESTS}21_the_scale_multiplies_and_the_last_block_is_ragged",), (
        Mutation("divided by the scale", MATRICES, READ, READ.replace("_scales(checkpoint, scales)",
                                                                      "1 / _scales(checkpoint, scales)")),
        Mutation("only whole blocks of rows", MATRICES, "blocks = (math.ceil(rows / block[0]),",
                 "blocks = (rows // block[0],"),
        Mutation("only whole blocks of columns", MATRICES, "math.ceil(columns / block[1]))\n    shapes",
                 "columns // block[1])\n    shapes"),
        Mutation("scales along the wrong side", QUANTIZED, "product(values, scales[..., None, :, None], dtype)",
                 "product(values, scales[..., :1, None, :1, None].flatten(-4, -3), dtype)"),
        Mutation("the first row of scales for all (C++)", PACKING,
                 "(matrix * squares_down + block * kBlock / kSquare)", "(matrix * squares_down)"),
        Mutation("only whole blocks of each expert (C++)", PACKING,
                 "squares_down = (w.outputs + kSquare - 1) / kSquare;", "squares_down = w.outputs / kSquare;"),
    )),
    Trap(22, "embeddings, head, norms, gate, its bias and eh_proj are not quantized", (*KEPT, *BESIDE, *LEFT), (
        Mutation("the gate in the model's dtype", MOE,
                 "self.weight = parameter(e.count, hidden, dtype=torch.float32)",
                 "self.weight = parameter(e.count, hidden, dtype=ops.facts.dtype)", KEPT),
        Mutation("its bias in the model's dtype", MOE, "self.bias = parameter(e.count, dtype=torch.float32)",
                 "self.bias = parameter(e.count, dtype=ops.facts.dtype)", KEPT),
        Mutation("what has no form gets the layers'", FORMS, 'self.of.get(f"{path}.{names[0]}", PLAIN)',
                 'self.of.get(f"{path}.{names[0]}", self.layers)', BESIDE),
        Mutation("conversion rounds eh_proj", SPEC,
                 'name=f"{AT}.eh_proj.weight", shape=(hidden, 2 * hidden), part="predictor",',
                 'name=f"{AT}.eh_proj.weight", shape=(hidden, 2 * hidden), part="predictor", linear=True,', LEFT),
        Mutation("conversion rounds the gate", PARTS,
                 "shape=(experts, hidden), part=part, layers=layers)",
                 "shape=(experts, hidden), part=part, linear=True, layers=layers)", LEFT),
        Mutation("conversion rounds the head", PARTS,
                 'shape=(vocab, hidden), part="head", split="vocabulary")',
                 'shape=(vocab, hidden), part="head", split="vocabulary", linear=True)', LEFT),
        Mutation("conversion rounds the correction bias", "src/twinline/engine/quant/convert.py",
                 'dtype = torch.float32 if own.get(found.name) == "F32" else plain', "dtype = plain", LEFT),
        Mutation("what stays plain is not named", "src/twinline/engine/quant/convert.py",
                 'kept = sorted({"lm_head", *(c.matrix.name.removesuffix(".weight") for c in changes if _stays(c))})',
                 'kept = ["lm_head"]', LEFT),
    )),
    Trap(23, "activations by token and block of 128 at most, amax clamped, sums in float32",
         (f"{TESTS}23_activations_and_sums_by_blocks",), (
        Mutation("one scale to a token's whole row (reference)", REFERENCE, MULTIPLIED,
                 "    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448\n"
                 f"        return {ROUNDED}".replace("    scale", "    scale", 1)),
        Mutation("by blocks, without the clamp (reference)", REFERENCE, MULTIPLIED,
                 "    blocks = x.unflatten(1, (-1, 128))\n"
                 "        scale = (blocks.abs().amax(-1, keepdim=True) / 448).expand_as(blocks).flatten(1)\n"
                 f"        return {ROUNDED}"),
        Mutation("sums kept in bfloat16 (C++)", WEIGHTS, f"store_lanes(total, {SUM});",
                 f"float now[kLanes]; store_lanes(now, {SUM}); "
                 "for (float& x : now) { uint32_t bits; std::memcpy(&bits, &x, 4); x = as_float(bf16(bits >> 16)); } "
                 "store_lanes(total, load_lanes(now));"),
        Mutation("one scale for all blocks of a row (C++)", PACKING, "floats[0] = s.scales[group];",
                 "floats[0] = s.scales[0];"),
    )),
    Trap(24, "scales are what is stored: powers of two only where they are",
         (f"{TESTS}24_scales_are_what_is_stored",), (
        Mutation("every scale made a power of two", MATRICES, "    scales = scales.float()\n",
                 "    scales = scales.float().log2().ceil().exp2()\n"),
        Mutation("made powers of two where that is declared", MATRICES, READ,
                 READ.replace("        if by_row:", "        read = read.log2().ceil().exp2() "
                              "if declared.power_of_two else read\n        if by_row:")),
        Mutation("bytes of e8m0 off by one power", MATRICES, "bits = scales.int() << 23",
                 "bits = (scales.int() + 1) << 23"),
        Mutation("bytes of e8m0 as whole numbers", MATRICES, "torch.where(scales == 255, 0x7FC00000, bits)).view("
                 "torch.float32)", "torch.where(scales == 255, 0x7FC00000, scales.int())).float()"),
    )),
    Trap(25, "a cut inside a block is refused; e4m3fnuz is another code",
         (f"{TESTS}25_what_a_cut_would_break_and_the_other_code",), (
        Mutation("tensor parallelism 32 is possible", "src/twinline/facts/layouts.py",
                 "if ranks > 1 and width // ranks % block:", "if ranks > 1 and width // ranks % block and False:"),
        Mutation("e4m3fnuz read as e4m3fn", MATRICES, READ,
                 READ.replace("checkpoint.read(name)", "checkpoint.read(name).view(torch.float8_e4m3fn)")),
        Mutation("e4m3fnuz is kept as it is", MATRICES, "FP8 if fits and normal else None", "FP8 if fits else None"),
        Mutation("bits of e4m3fnuz are handed on", DECODED,
                 '(form.kind != "fp8" or self.numbers.dtype == torch.float8_e4m3fn)', "True"),
    )),
    Trap(26, "subnormals are values", (*CODES, *VARIANTS), (
        Mutation("dropped when decoded", QUANTIZED, "values = _grouped(numbers.float(), form)\n",
                 "values = numbers.float()\n"
                 "    values = _grouped(torch.where(values.abs() < 2**-6, 0.0, values), form)\n", CODES),
        Mutation("dropped (C++)", UNPACK, "float(int32_t(rest)) * 0.001953125f", "0.0f", VARIANTS, every_variant=True),
        Mutation("dropped (C++, AVX-512)", UNPACK,
                 "{0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60}", "{0, 0, 0, 0, 0, 0, 0, 0}", VARIANTS,
                 needs="avx512bw", every_variant=True),
        Mutation("dropped when rounded to fp8 (C++)", PACKING,
                 "if (size < 0.015625f) return sign | uint8_t(int32_t(__builtin_nearbyintf(size * 512.0f)));",
                 "if (size < 0.015625f) return sign;", CODES),
    )),
)  # fmt: skip
