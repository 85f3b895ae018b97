"""In which form weights are stored: bits per value, and the scales that come with them.

Owns the forms that a checkpoint can have, published or converted, and which tensors a form changes. Must not know how
a model is spread over devices (`weights.py`) nor which chip computes in what (`suits.py`).
"""

from __future__ import annotations

import math
import re

import msgspec

from twinline.facts.chips import Precision
from twinline.facts.models import UnsupportedModel
from twinline.facts.quantization import pair, quantization
from twinline.facts.tensors import Anatomy, Tensor

TYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "I8": 8, "I32": 32, "I64": 64, "I4": 4, "F4": 4}


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """How a quantized matrix is stored: its values' type, and a scale for each block of `block`, [rows, columns].

    A block side of 0 means all of that side. `zero_bits`: bits of a zero point or offset beside each scale.
    `order`: 32 bits for each input feature (GPTQ's `g_idx`). `constant`: scalars per matrix, 32 bits each.
    """

    type: str
    block: tuple[int, int]
    scale: str = "F32"
    zero_bits: int = 0
    order: bool = False
    constant: int = 0

    def scales(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Blocks along rows and along columns; the last of either may be cut short."""
        rows, columns = shape
        high, wide = self.block
        return (math.ceil(rows / high) if high else 1, math.ceil(columns / wide) if wide else 1)

    def bytes(self, shape: tuple[int, ...]) -> int:
        high, wide = self.scales(shape)
        bits = math.prod(shape) * TYPE_BITS[self.type]
        bits += high * wide * (TYPE_BITS[self.scale] + self.zero_bits)
        bits += 32 * shape[1] if self.order else 0
        return math.ceil(bits / 8) + 4 * self.constant


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """`plain`: the type of what is not quantized. `matrices`: of linear layers; `experts`: of routed experts' layers.

    `keep_absorbed`: whether the latent's up-projection stays plain. `keep`: modules that stay plain, by their names'
    ends, every layer and expert as 0, or as `re:` and a regular expression.
    `computes`: the precision of the matrix products that the form is meant for.
    """

    name: str
    says: str
    plain: str
    computes: Precision
    matrices: Values | None = None
    experts: Values | None = None
    keep_absorbed: bool = False
    keep: tuple[str, ...] = ()
    source: str = ""

    @property
    def short(self) -> str:
        """Without what is said of scales."""
        return self.says.partition(",")[0]

    def values(self, tensor: Tensor) -> Values | None:
        """How this tensor is quantized; None if it is not."""
        if not tensor.linear or (tensor.absorbed and self.keep_absorbed) or self._kept(tensor.name):
            return None
        return self.experts if "{expert}" in tensor.name and self.experts else self.matrices

    def _kept(self, name: str) -> bool:
        module = re.sub(r"\{\w+\}", "0", name.removesuffix(".weight"))
        for kept in self.keep:
            if kept.startswith("re:"):
                if re.match(kept[3:], module):
                    return True
            elif module == kept or module.endswith("." + kept):
                return True
        return False

    def type_of(self, tensor: Tensor) -> str:
        values = self.values(tensor)
        return values.type if values else (tensor.dtype or self.plain)

    def bytes(self, tensor: Tensor, shape: tuple[int, ...]) -> int:
        """Bytes of one copy of this tensor cut down to `shape`, scales included."""
        values = self.values(tensor)
        if values:
            return values.bytes(shape)
        return math.ceil(math.prod(shape) * TYPE_BITS[tensor.dtype or self.plain] / 8)


BLOCKS = Values(type="F8_E4M3", block=(128, 128))
CHANNELS = Values(type="I8", block=(1, 0), zero_bits=32)
GROUPS = Values(type="I4", block=(1, 128), scale="F16", zero_bits=4)

# What a model can be converted to. The scales: DeepSeek-V3's README_WEIGHTS.md; vllm-ascend's W8A8 checkpoints (32-bit
# scale and offset for each output feature); AWQ with groups of 128; NVFP4 with groups of 16.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(name="fp32", says="FP32", plain="F32", computes="fp32"),
        Form(name="bf16", says="BF16", plain="BF16", computes="bf16"),
        Form(name="fp16", says="FP16", plain="F16", computes="fp16"),
        Form(name="fp8", says="FP8, a scale for 128 x 128 values", plain="BF16", computes="fp8-e4m3", matrices=BLOCKS,
             source="DeepSeek-V3, README_WEIGHTS.md"),
        Form(name="int8", says="INT8 (W8A8), a scale for each output feature", plain="BF16", computes="int8",
             matrices=CHANNELS, keep_absorbed=True, source="vllm-ascend, W8A8 checkpoints"),
        Form(name="w4a8", says="W4A8, experts in 4 bits and the rest in 8", plain="BF16", computes="int8",
             matrices=CHANNELS, experts=Values(type="I4", block=(1, 0), zero_bits=32), keep_absorbed=True,
             source="vllm-ascend, W4A8 checkpoints: channel scales assumed"),
        Form(name="int4", says="INT4 (W4A16), a scale for 128 values", plain="F16", computes="int4", matrices=GROUPS,
             keep_absorbed=True, source="AWQ, groups of 128"),
        Form(name="fp4", says="FP4, a scale for 16 values", plain="BF16", computes="fp4",
             matrices=Values(type="F4", block=(1, 16), scale="F8_E4M3", constant=2), keep_absorbed=True,
             source="NVFP4 of ModelOpt"),
    )
}  # fmt: skip
ALIASES = {"w8a8": "int8", "w4a16": "int4", "awq": "int4", "gptq": "int4", "nvfp4": "fp4", "float16": "fp16",
           "bfloat16": "bf16", "float32": "fp32", "fp8-e4m3": "fp8"}  # fmt: skip
PLAIN: dict[str, tuple[str, Precision]] = {
    "bfloat16": ("BF16", "bf16"), "float16": ("F16", "fp16"), "float32": ("F32", "fp32"),
}  # fmt: skip


def find_form(name: str) -> Form:
    """A form by its name or another name of it. Raises UnsupportedModel."""
    spelt = name.strip().lower()
    form = FORMS.get(ALIASES.get(spelt, spelt))
    if form is None:
        raise UnsupportedModel(f"no precision is called {name!r}; known are {', '.join([*FORMS, *ALIASES])}")
    return form


def published(anatomy: Anatomy) -> Form:
    """The form that `config.json` declares. Raises UnsupportedModel for quantization that is not understood."""
    if anatomy.dtype not in PLAIN:
        raise UnsupportedModel(f"config.json: dtype {anatomy.dtype!r:.40} is not one of {', '.join(PLAIN)}")
    plain, computes = PLAIN[anatomy.dtype]
    declared = anatomy.quantization
    if declared is None:
        return FORMS[computes]
    method = declared.get("quant_method")
    keep = _kept_kinds(declared.get("ignore" if method == "compressed-tensors" else "modules_to_not_convert"))
    if method == "fp8":
        block = declared.get("weight_block_size")
        if block is None:
            static = declared.get("activation_scheme") == "static"
            values = Values(type="F8_E4M3", block=(0, 0), constant=int(static))
            return Form(name="fp8", says="FP8, a scale for each matrix", plain=plain, computes="fp8-e4m3",
                        matrices=values, keep=keep, source="config.json")  # fmt: skip
        sides = pair(block, "weight_block_size")
        # DeepSeek's scales are FP32; those of Qwen3's FP8 checkpoints are BF16.
        scale = "F32" if anatomy.architecture.startswith("Deepseek") else "BF16"
        return Form(name="fp8", says=f"FP8, a scale for {sides[0]} x {sides[1]} values", plain=plain,
                    computes="fp8-e4m3", matrices=Values(type="F8_E4M3", block=sides, scale=scale), keep=keep,
                    source="config.json")  # fmt: skip
    if method in ("awq", "gptq"):
        bits, group = declared.get("bits", 4), declared.get("group_size", 128)
        if bits not in (4, 8) or not isinstance(group, int) or group < -1 or group == 0:
            raise UnsupportedModel(
                f"config.json: {method} with {bits!r:.20} bits in groups of {group!r:.20} is not known"
            )
        values = Values(type=f"I{bits}", block=(1, max(group, 0)), scale="F16", zero_bits=bits, order=method == "gptq")
        says = f"{method.upper()}, {bits} bits, a scale for {group} values"
        return Form(name=f"int{bits}", says=says, plain="F16", computes="int4" if bits == 4 else "int8",
                    matrices=values, keep=keep, source="config.json")  # fmt: skip
    if method == "compressed-tensors":
        return _compressed(declared, plain, keep)
    raise UnsupportedModel(
        f"config.json: how {method!r:.40} stores weights is not known (known: fp8, compressed-tensors, awq, gptq); "
        f"--precision says what it would weigh in {', '.join(FORMS)}"
    )


def _kept_kinds(kept: object) -> tuple[str, ...]:
    """Entries name modules of one layer; what matters here is the kind of module, in any layer."""
    if not isinstance(kept, list | None):
        raise UnsupportedModel(f"config.json: modules that stay plain should be a list, not {kept!r:.40}")
    kinds = set()
    for name in kept or []:
        if not isinstance(name, str) or not name:
            continue
        if name.startswith("re:"):
            try:
                re.compile(name[3:])
            except (re.error, RecursionError, OverflowError):
                raise UnsupportedModel(f"config.json: {name!r:.40} is no regular expression") from None
        kinds.add(name if name.startswith("re:") else re.sub(r"(?<=\.)\d+(?=\.|$)", "0", name))
    return tuple(sorted(kinds))


def _compressed(declared: dict[str, object], plain: str, keep: tuple[str, ...]) -> Form:
    """compressed-tensors: scales in the model's type; packed matrices say their shape in two 64-bit numbers."""
    read = quantization({"quantization_config": declared})
    assert read is not None
    if len(read.schemes) > 1:
        raise UnsupportedModel(
            f"config.json: weights of several kinds ({', '.join(map(str, read.schemes))}) are not counted yet"
        )
    scheme = read.scheme
    block = {"block": scheme.block, "row": (1, 0), "group": (1, scheme.group), "matrix": (0, 0)}[scheme.along]
    packed = not scheme.floats and declared.get("format") == "pack-quantized"
    values = Values(
        type="F8_E4M3" if scheme.floats else f"I{scheme.bits}", block=block, scale=plain,
        zero_bits=(scheme.bits if packed else 8) if scheme.zeros else 0, order=read.ordered,
        constant=4 if packed else 0,
    )  # fmt: skip
    name = "fp8" if scheme.floats else f"int{scheme.bits}"
    inputs = any(isinstance(g, dict) and g.get("input_activations") for g in _values(declared.get("config_groups")))
    computes: Precision = "fp8-e4m3" if scheme.floats else "int4" if scheme.bits == 4 else "int8"
    says = f"{scheme}{'' if inputs or scheme.floats else ', activations plain'}"
    return Form(name=name, says=says, plain=plain, computes=computes, matrices=values, keep=keep, source="config.json")


def _values(groups: object) -> list[object]:
    return list(groups.values()) if isinstance(groups, dict) else []
