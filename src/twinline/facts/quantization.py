"""What `config.json` says of weights that are quantized already: by whom, how many bits, which values share a scale.

Owns the reading of `quantization_config`. Must not know the tensors that a quantiser writes (the engine's `quant/`),
nor what a form weighs (`forms.py`). Sources: DeepSeek-V3's README_WEIGHTS.md (fp8), the configurations that
compressed-tensors, AutoGPTQ, GPTQModel and AutoAWQ write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twinline.facts.models import Config, UnsupportedModel, read_config

Method = Literal["fp8", "compressed-tensors", "gptq", "awq"]
Axis = Literal["block", "row", "group", "matrix"]


@dataclass(frozen=True)
class Scheme:
    """How the matrices of some modules are stored. `along`: what shares a scale: a block of `block` [rows, columns], a
    row, `group` inputs of a row, or the whole matrix. `zeros`: each scale comes with a zero point of its own."""

    floats: bool
    bits: int
    along: Axis
    group: int = 0
    block: tuple[int, int] = (0, 0)
    zeros: bool = False

    def __str__(self) -> str:
        where = {"block": f"blocks of {self.block[0]} x {self.block[1]}", "row": "rows",
                 "group": f"groups of {self.group}", "matrix": "whole matrices"}[self.along]  # fmt: skip
        return f"{'FP' if self.floats else 'INT'}{self.bits} by {where}{', with zero points' if self.zeros else ''}"


@dataclass(frozen=True)
class Quantization:
    """`schemes` are more than one where modules differ. `kept`: names of modules that stay plain, as they are listed.

    `zero_offset`: what has to be added to a stored zero point: GPTQ's first format stores it less one. `power_of_two`:
    scales are declared to be powers of two (`ue8m0`). `ordered`: inputs may name their group one by one (GPTQ's act
    order). `static_inputs`: scales of activations are stored too.
    """

    method: Method
    schemes: tuple[Scheme, ...]
    kept: tuple[str, ...] = ()
    zero_offset: int = 0
    power_of_two: bool = False
    ordered: bool = False
    static_inputs: bool = False

    @property
    def scheme(self) -> Scheme:
        return self.schemes[0]


def quantization(config: Config) -> Quantization | None:
    """What a parsed `config.json` declares, None for plain weights. Raises UnsupportedModel."""
    declared = config.get("quantization_config") or config.get("compression_config")
    if not declared:
        return None
    if not isinstance(declared, dict):
        raise UnsupportedModel(f"config.json: quantization_config should be an object, not {declared!r:.60}")
    method = declared.get("quant_method")
    readers = {"fp8": _fp8, "compressed-tensors": _compressed, "gptq": _gptq, "awq": _awq}
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModel(
            f"config.json: {method!r:.40} weights cannot be read (known: {', '.join(readers)}); use one of "
            "them, or bfloat16"
        )
    try:
        return readers[method](declared)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UnsupportedModel):
            raise
        raise UnsupportedModel(
            f"config.json: quantization_config cannot be read as {method}'s: {error!r:.80}"
        ) from None


def read_quantization(directory: Path) -> Quantization | None:
    """The same, of a checkpoint folder."""
    return quantization(read_config(directory))


def _fp8(declared: dict[str, Any]) -> Quantization:
    kept = _names(declared.get("modules_to_not_convert"), "modules_to_not_convert")
    fmt = declared.get("fmt", "e4m3")
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise UnsupportedModel(f"config.json: fp8 weights of format {fmt!r:.30} are not known (known: e4m3)")
    block = declared.get("weight_block_size")
    if block is None:
        scheme = Scheme(True, 8, "matrix")
    else:
        scheme = Scheme(True, 8, "block", block=pair(block, "weight_block_size"))
    static = declared.get("activation_scheme") == "static"
    return Quantization("fp8", (scheme,), kept, power_of_two=declared.get("scale_fmt") == "ue8m0", static_inputs=static)


def _compressed(declared: dict[str, Any]) -> Quantization:
    groups = declared.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise UnsupportedModel("config.json: quantization_config has no config_groups")
    if declared.get("sparsity_config", {}).get("format") not in (None, "dense"):
        raise UnsupportedModel("config.json: sparse weights of compressed-tensors cannot be read")
    schemes, ordered, static = [], False, False
    for group in groups.values():
        weights, inputs = group["weights"], group.get("input_activations") or {}
        floats, bits = weights.get("type", "int") == "float", weights["num_bits"]
        if bits not in ((8,) if floats else (4, 8)):
            raise UnsupportedModel(f"config.json: {'float' if floats else 'int'}{bits!r:.10} weights cannot be read")
        along = {"channel": "row", "group": "group", "block": "block", "tensor": "matrix"}[weights["strategy"]]
        schemes.append(
            Scheme(
                floats,
                bits,
                along,  # type: ignore[arg-type]
                group=_count(weights.get("group_size"), "group_size") if along == "group" else 0,
                block=pair(weights.get("block_structure"), "block_structure") if along == "block" else (0, 0),
                zeros=not weights.get("symmetric", True),
            )
        )
        ordered |= weights.get("actorder") in ("group", True)
        static |= inputs.get("dynamic") is False
    return Quantization(
        "compressed-tensors", tuple(dict.fromkeys(schemes)), _names(declared.get("ignore"), "ignore"), ordered=ordered,
        static_inputs=static,
    )  # fmt: skip


def _gptq(declared: dict[str, Any]) -> Quantization:
    scheme = _groups(declared, "bits", "group_size", "gptq")
    dynamic = declared.get("dynamic") or {}
    if not all(rule.startswith("-:") for rule in dynamic):  # those are of modules that stay plain, which tensors show
        raise UnsupportedModel("config.json: gptq weights that differ by module (dynamic) cannot be read")
    second = declared.get("checkpoint_format", "gptq") == "gptq_v2"
    return Quantization("gptq", (scheme,), zero_offset=0 if second else 1, ordered=bool(declared.get("desc_act", True)))


def _awq(declared: dict[str, Any]) -> Quantization:
    scheme = _groups(declared, "bits" if "bits" in declared else "w_bit",
                     "group_size" if "group_size" in declared else "q_group_size", "awq")  # fmt: skip
    version = str(declared.get("version", "gemm")).lower()
    if version != "gemm" or scheme.bits != 4:
        raise UnsupportedModel(
            f"config.json: awq weights of {scheme.bits} bits, packed as {version!r:.20}, cannot be read (4, gemm)"
        )
    kept = _names(declared.get("modules_to_not_convert"), "modules_to_not_convert")
    return Quantization("awq", (scheme,), kept)


def _groups(declared: dict[str, Any], bits: str, group: str, method: str) -> Scheme:
    width, size = declared.get(bits, 4), declared.get(group, 128)
    if width not in (4, 8) or not isinstance(size, int) or size < -1 or size == 0:
        raise UnsupportedModel(
            f"config.json: {method} with {width!r:.20} bits in groups of {size!r:.20} is not known (known: 4 or 8)"
        )
    # Whether or not they are said to be symmetric: their zero points are stored in any case.
    return Scheme(False, width, "row" if size == -1 else "group", group=max(size, 0), zeros=True)


def pair(block: object, name: str) -> tuple[int, int]:
    """Two positive integers. Raises UnsupportedModel."""
    sides = block if isinstance(block, list) else []
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UnsupportedModel(f"config.json: {name} should be two positive integers, not {block!r:.40}")
    return sides[0], sides[1]


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModel(f"config.json: {name} should be a positive integer, not {value!r:.40}")
    return value


def _names(value: object, name: str) -> tuple[str, ...]:
    if value is not None and not isinstance(value, list):
        raise UnsupportedModel(f"config.json: {name} should be a list, not {value!r:.40}")
    return tuple(text for text in value or [] if isinstance(text, str))
