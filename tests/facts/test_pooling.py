"""Which folders give vectors, and what is said of those that would give wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinline.facts.models import UnsupportedModel
from twinline.facts.pooling import Pooling, Shorter, read_pooling, shorter

TYPES = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling",
         "sentence_transformers.models.Normalize")  # fmt: skip
PATHS = ("", "1_Pooling", "2_Normalize", "3_Dense")
# 1_Pooling/config.json of Qwen3-Embedding-0.6B, but for the size
LAST: dict[str, Any] = {
    "word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True,
}  # fmt: skip
CONFIG: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64}


def folder(at: Path, pooling: Any = LAST, types: tuple[str, ...] = TYPES, config: dict[str, Any] | None = None) -> Path:
    modules = [{"idx": i, "name": str(i), "path": PATHS[i], "type": kind} for i, kind in enumerate(types)]
    (at / "modules.json").write_text(json.dumps(modules))
    (at / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (at / "1_Pooling").mkdir()
    (at / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return at


def test_qwen3_embedding(tmp_path: Path) -> None:
    assert read_pooling(folder(tmp_path)) == Pooling("lasttoken", normalize=True)


def test_a_folder_without_modules_generates(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None


def test_without_normalize_and_with_a_length(tmp_path: Path) -> None:
    pooling = LAST | {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    found = folder(tmp_path, pooling, TYPES[:2])
    (found / "sentence_bert_config.json").write_text('{"max_seq_length": 8192, "do_lower_case": false}')
    assert read_pooling(found) == Pooling("mean", normalize=False, longest=8192)


PROMPT = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}


@pytest.mark.parametrize(("change", "prompt"), [
    ({}, "query: "), ({"default_prompt_name": None}, None), ({"default_prompt_name": "document"}, None),
])  # fmt: skip
def test_the_prompt_that_sentence_transformers_puts_before_a_text(
    change: dict[str, Any], prompt: str | None, tmp_path: Path
) -> None:
    found = folder(tmp_path, LAST | {"include_prompt": False})
    (found / "config_sentence_transformers.json").write_text(json.dumps(PROMPT | change))
    assert read_pooling(found) == Pooling("lasttoken", normalize=True, prompt=prompt)


@pytest.mark.parametrize(("include", "change", "why"), [
    (True, {"default_prompt_name": "question"}, "default_prompt_name 'question' is none of its prompts"),
    (True, {"default_prompt_name": ["query"]}, "is none of its prompts"),
    (True, {"prompts": None}, "is none of its prompts"),
    (True, {"prompts": {"query": 1}}, "is none of its prompts"),
    (False, {}, "include_prompt false leaves the prompt"),
])  # fmt: skip
def test_prompts_that_are_refused(include: bool, change: dict[str, Any], why: str, tmp_path: Path) -> None:
    pooling = LAST | {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True, "include_prompt": include}
    found = folder(tmp_path, pooling)
    (found / "config_sentence_transformers.json").write_text(json.dumps(PROMPT | change))
    with pytest.raises(UnsupportedModel, match=why):
        read_pooling(found)


@pytest.mark.parametrize("named", ["cls", ["cls"]])
def test_the_mode_by_name_and_types_of_other_versions(named: Any, tmp_path: Path) -> None:
    types = tuple(f"sentence_transformers.base.modules.{kind.rpartition('.')[2]}" for kind in TYPES)
    found = folder(tmp_path, {"word_embedding_dimension": 64, "pooling_mode": named}, types)
    assert read_pooling(found) == Pooling("cls", normalize=True)


@pytest.mark.parametrize(
    ("pooling", "why"),
    [
        (LAST | {"pooling_mode_lasttoken": False}, "no mode is not one mode of pooling"),
        (LAST | {"pooling_mode_mean_tokens": True}, "pooling_mode_mean_tokens, pooling_mode_lasttoken is not one mode"),
        (LAST | {"pooling_mode_lasttoken": False, "pooling_mode_of_tomorrow": True}, "pooling_mode_of_tomorrow is not"),
        ({"pooling_mode": "attention"}, "'attention' is not one mode of pooling"),
        ({"pooling_mode": ["cls", "mean"]}, "is not one mode of pooling"),
        ({"pooling_mode": [["cls"], {}]}, "is not one mode of pooling"),
        (LAST | {"word_embedding_dimension": 32}, "word_embedding_dimension 32 is not the model's hidden_size 64"),
        ([], "should hold one JSON object"),
    ],
)
def test_poolings_that_are_refused(pooling: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=why) as found:
        read_pooling(folder(tmp_path, pooling))
    assert "1_Pooling/config.json" in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "types", [TYPES[:1], (), (*TYPES[:2], "sentence_transformers.models.Dense"), (TYPES[1], TYPES[0])]
)
def test_modules_that_are_refused(types: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"modules\.json: modules .* are not supported"):
        read_pooling(folder(tmp_path, types=types))


MODEL = '{"type": "a.Transformer", "path": "%s"}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '["Transformer"]',
        "[" * 100_000,
        f'[{MODEL % "x"}, {{"type": "a.Pooling", "path": "1"}}]',
        f'[{MODEL % ""}, {{"type": "a.Pooling", "path": "\\u0000"}}]',
        f'[{MODEL % ""}, {{"type": "a.Pooling", "path": "nowhere"}}]',
    ],
)
def test_files_that_are_no_modules(text: str, tmp_path: Path) -> None:
    found = folder(tmp_path)
    (found / "modules.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"modules\.json"):
        read_pooling(found)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"is_causal": False}, "is_causal false: this model attends in both directions"),  # gte-Qwen2
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention true: this model attends in both"),
        ({"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}, "write \"is_causal\": true into config.json"),
    ],
)  # fmt: skip
def test_attention_in_both_directions_is_refused(config: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=why):
        read_pooling(folder(tmp_path, config=config))


def test_what_says_that_attention_is_causal_is_believed(tmp_path: Path) -> None:
    code = {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}
    assert read_pooling(folder(tmp_path, config={"auto_map": code, "is_causal": True})) is not None


@pytest.mark.parametrize("text", ['{"max_seq_length": 0}', '{"max_seq_length": "8k"}', '{"do_lower_case": true}', "[]"])
def test_lengths_that_are_refused(text: str, tmp_path: Path) -> None:
    found = folder(tmp_path)
    (found / "sentence_bert_config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"sentence_bert_config\.json"):
        read_pooling(found)


def test_whether_vectors_may_be_cut() -> None:
    assert shorter({}) is None and shorter({"is_matryoshka": False, "matryoshka_dimensions": None}) is None
    assert shorter({"is_matryoshka": True}) == Shorter(())
    assert shorter({"matryoshka_dimensions": [256, 64]}) == Shorter((64, 256))
    assert shorter({"matryoshka_dimensions": ["64"]}) is None
