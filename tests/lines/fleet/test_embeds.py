"""Lines that give vectors, in a fleet file: which do where nobody says so, and what may not stand under one name."""

from __future__ import annotations

import json
import struct
import textwrap
from pathlib import Path

import pytest

from twinline.lines.drivers import driver
from twinline.lines.fleet.file import Fleet, load
from twinline.lines.fleet.marked import FileFaults

MODULES = [{"idx": 0, "path": "", "type": "st.Transformer"}, {"idx": 1, "path": "1_Pooling", "type": "st.Pooling"}]


def embedder(at: Path, **config: object) -> Path:
    (at / "1_Pooling").mkdir(parents=True)
    (at / "modules.json").write_text(json.dumps(MODULES))
    (at / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (at / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], **config}))
    (at / "tokenizer.json").write_text("{}")
    return at


def gguf(at: Path, pooling: int | None) -> None:
    """A file of metadata alone, as llama.cpp's converter writes it."""

    def text(said: str) -> bytes:
        return struct.pack("<Q", len(said)) + said.encode()

    values = [text("general.architecture") + struct.pack("<I", 8) + text("qwen3")]
    if pooling is not None:
        values.append(text("qwen3.pooling_type") + struct.pack("<II", 4, pooling))
    at.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + b"".join(values))


def read(tmp_path: Path, text: str) -> Fleet:
    (tmp_path / "fleet.yaml").write_text(textwrap.dedent(text).lstrip("\n"))
    return load(tmp_path / "fleet.yaml", {"KEY": "secret"})


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(FileFaults) as caught:
        read(tmp_path, text)
    return [fault.text for fault in caught.value.faults]


def test_what_is_loaded_says_whether_it_gives_vectors(tmp_path: Path) -> None:
    embedder(tmp_path / "qwen")
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    for name, pooling in (("pools.gguf", 3), ("none.gguf", 0), ("plain.gguf", None)):
        gguf(tmp_path / name, pooling)
    fleet = read(
        tmp_path,
        """
        models: {e: {}, g: {text: ./qwen}, h: {text: ./qwen}, r: {text: ./qwen}}
        lines:
          native: {engine: native, model: e, weights: ./qwen}
          vllm: {engine: vllm, model: e, weights: ./qwen, options: {executable: ./program}}
          pools: {engine: llamacpp, model: g, weights: ./pools.gguf, options: {executable: ./program}}
          none: {engine: llamacpp, model: h, weights: ./none.gguf, options: {executable: ./program}}
          plain: {engine: llamacpp, model: h, weights: ./plain.gguf, options: {executable: ./program}}
          far: {engine: openai, model: r, url: "https://host/v1", upstream: text-embedding-3-small, embeds: true}
        """,
    )
    assert {spec.name for spec in fleet.lines if spec.embeds} == {"native", "vllm", "pools", "far"}


def test_a_name_gives_texts_or_vectors(tmp_path: Path) -> None:
    embedder(tmp_path / "qwen")
    found = faults(
        tmp_path,
        """
        models: {e: {text: ./qwen}}
        lines:
          a: {engine: native, model: e, weights: ./qwen}
          b: {engine: openai, model: e, url: "https://host/v1", weights_class: x}
        """,
    )
    assert found == ["lines.b.embeds: it generates, and line a of the same model gives vectors: give it another model"]


def test_a_name_gives_vectors_that_compare(tmp_path: Path) -> None:
    embedder(tmp_path / "qwen")
    text = """
        models: {e: {text: ./qwen}}
        lines:
          a: {engine: native, model: e, weights: ./qwen, precision: bf16}
          b: {engine: native, model: e, weights: ./qwen, precision: int8}
    """
    (found,) = faults(tmp_path, text)
    assert found.startswith("lines.b.weights_class: ") and "vectors do not compare" in found
    same = text.replace("bf16}", "bf16, weights_class: same}").replace("int8}", "int8, weights_class: same}")
    assert {spec.weights_class for spec in read(tmp_path, same).lines} == {"same"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("engine: native, weights: ./plain, embeds: true", "so nothing says how its model's vectors are made"),
        ("engine: native, weights: ./qwen, embeds: false", "gives its vectors and generates nothing"),
        ("engine: native, weights: ./both", "is_causal false: this model attends in both directions"),
        ("engine: simulated, embeds: true", "embeds: the simulated engine gives no vectors"),
        ("engine: native, weights: ./qwen, embeds: 1", "expected true or false, not 1"),
    ],
)
def test_what_cannot_be(line: str, why: str, tmp_path: Path) -> None:
    embedder(tmp_path / "qwen")
    embedder(tmp_path / "both", is_causal=False)
    embedder(tmp_path / "plain")
    (tmp_path / "plain/modules.json").unlink()
    found = faults(tmp_path, f"models: {{e: {{text: ./qwen}}}}\nlines:\n  a: {{model: e, {line}}}\n")
    assert any(why in fault for fault in found), found


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ("vllm", ["--runner", "pooling"]),
        ("sglang", ["--is-embedding"]),
        ("llamacpp", ["--embeddings", "--batch-size", "700", "--ubatch-size", "700"]),
    ],
)
def test_an_engine_is_started_for_vectors(engine: str, flags: list[str], tmp_path: Path) -> None:
    embedder(tmp_path / "qwen")
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    gguf(tmp_path / "model.gguf", 3)
    weights = "./model.gguf" if engine == "llamacpp" else "./qwen"
    text = f"""
        models: {{e: {{text: ./qwen}}}}
        lines: {{a: {{engine: {engine}, weights: {weights}, context: 700, options: {{executable: ./program}}}}}}
    """
    (spec,) = read(tmp_path, text).lines
    argv = list(driver(engine).command(spec, 1).argv)
    assert spec.embeds and all(flag in argv for flag in flags)
    for flag, value in zip(flags[::2], flags[1::2]) if engine == "vllm" else ():
        assert argv[argv.index(flag) + 1] == value
    (without,) = read(tmp_path, text.replace("context", "embeds: false, context")).lines
    assert not set(flags) & set(driver(engine).command(without, 1).argv) - {"700"}
