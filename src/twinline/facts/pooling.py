"""Whether a model folder gives vectors of texts, and how: the module files of sentence-transformers.

Owns the reading of `modules.json`, of the pooling's own `config.json`, and of what the model's `config.json` says of
attention and of shorter vectors. No torch. The files are those of Qwen3-Embedding, gte-Qwen2 and e5-mistral: a list of
modules (Transformer, Pooling, and Normalize or none), and the mode of pooling as one true flag among several, or by
name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from twinline.facts.models import Config, UnsupportedModel, need, read_config

Mode = Literal["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]
MODES: tuple[Mode, ...] = get_args(Mode)
# The flags of `1_Pooling/config.json`, one for each mode.
FLAGS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
MODULES = "modules.json"
LENGTHS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Pooling:
    """How the last hidden states of a text become its vector. `longest`: tokens that a text may have, where the folder
    says less than the model's context. `prompt`: what sentence-transformers puts before each text for which
    nobody names a prompt; nobody does that here, so whoever asks has to write it.
    """

    mode: Mode
    normalize: bool
    longest: int | None = None
    prompt: str | None = None

    @property
    def every_position(self) -> bool:
        """Whether it takes more than the last token's state."""
        return self.mode != "lasttoken"


@dataclass(frozen=True)
class Shorter:
    """A model whose vectors may be cut and normalized again (Matryoshka). `sizes` are those that it was trained for;
    empty: the folder names none, so any up to its own."""

    sizes: tuple[int, ...]


def read_pooling(directory: Path) -> Pooling | None:
    """How the folder's model pools; None for a folder without `modules.json`, which is a model that generates.

    Raises UnsupportedModel, in one line that names the file, for modules, modes, an attention or a prompt that would
    give other vectors here than the model's own for whatever a client writes. A prompt that it can write is no such
    thing: `Pooling.prompt` says it.
    """
    if not (directory / MODULES).is_file():
        return None
    pooling, normalize = _modules(directory)
    config = read_config(directory)
    _refuse_both_ways(config)
    file = directory / pooling / "config.json"
    mode = _mode(_read(file), file)
    size = _read(file).get("word_embedding_dimension", config.get("hidden_size"))
    if size != config.get("hidden_size"):
        raise UnsupportedModel(f"{file}: word_embedding_dimension {size!r:.40} is not the model's hidden_size "
                               f"{config.get('hidden_size')!r:.40}")  # fmt: skip
    prompt = _prompt(directory)
    if prompt and mode != "lasttoken" and _read(file).get("include_prompt") is False:
        raise UnsupportedModel(
            f"{file}: include_prompt false leaves the prompt before each text (default_prompt_name in {PROMPTS}) out "
            f"of the pooling ({mode}); that is not supported"
        )
    return Pooling(mode, normalize, _longest(directory), prompt)


def pooling_folder(directory: Path) -> str | None:
    """Where in a model folder the pooling's own `config.json` lies; None for a model that generates. Raises
    UnsupportedModel for modules that cannot be read."""
    if not (directory / MODULES).is_file():
        return None
    return _modules(directory)[0]


def shorter(config: Mapping[str, Any]) -> Shorter | None:
    """Whether a `config.json` says that vectors may be cut, in vLLM's fields: `is_matryoshka`, or
    `matryoshka_dimensions` with the sizes."""
    sizes = config.get("matryoshka_dimensions")
    if isinstance(sizes, list) and sizes and all(type(size) is int and size > 0 for size in sizes):
        return Shorter(tuple(sorted(sizes)))
    return Shorter(()) if config.get("is_matryoshka") is True else None


def _read(file: Path) -> dict[str, Any]:
    found = _json(file)
    if not isinstance(found, dict):
        raise UnsupportedModel(f"{file} should hold one JSON object")
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UnsupportedModel(f"{file} is missing, and {MODULES} names it") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UnsupportedModel(f"{file} cannot be read: {error}") from None


def _modules(directory: Path) -> tuple[str, bool]:
    """The pooling's folder, and whether vectors are normalized after it."""
    file = directory / MODULES
    listed = _json(file)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise UnsupportedModel(f"{file} should hold a list of modules")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in listed]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModel(
            f"{file}: modules {', '.join(kinds)[:200] or '(none)'} are not supported (supported: Transformer, Pooling, "
            "and Normalize or nothing after it)"
        )
    if listed[0].get("path") not in ("", None):
        raise UnsupportedModel(f"{file}: the model lies in {listed[0]['path']!r:.80}, not beside the file: serve that "
                               f"folder, with {MODULES} and the pooling's folder copied there")  # fmt: skip
    path = listed[1].get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        raise UnsupportedModel(f"{file}: the pooling's path should be a folder's name, not {path!r:.80}")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UnsupportedModel(f"{file}: the pooling's path {path!r:.80} leads out of the folder")
    return path, len(kinds) == 3


def _mode(config: dict[str, Any], file: Path) -> Mode:
    named = config.get("pooling_mode")
    if isinstance(named, str | list):
        asked = [named] if isinstance(named, str) else named
        modes = [mode for mode in MODES for each in asked if mode == each] if all(e in MODES for e in asked) else []
        said = repr(named)[:80]
    else:
        flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
        modes = [FLAGS[name] for name in flags if name in FLAGS] if all(name in FLAGS for name in flags) else []
        said = ", ".join(flags)[:200] or "no mode"
    if len(modes) != 1:
        raise UnsupportedModel(f"{file}: {said} is not one mode of pooling (supported, one at a time: "
                               f"{', '.join(MODES)})")  # fmt: skip
    return modes[0]


def _refuse_both_ways(config: Config) -> None:
    """Attention here is causal. A model trained to see what follows, too, would give vectors that mean nothing."""
    for name in ("is_causal", "use_bidirectional_attention"):
        if config.get(name) is (name != "is_causal"):
            raise UnsupportedModel(
                f"config.json: {name} {str(config[name]).lower()}: this model attends in both directions, which the "
                "native engine does not; serve it by an engine that does, as a line with `embeds: true`"
            )
    code = config.get("auto_map")
    if isinstance(code, dict) and code.get("AutoModel") and config.get("is_causal") is not True:
        raise UnsupportedModel(
            f"config.json: auto_map has code of the folder's own for the model ({code['AutoModel']!r:.80}), which may "
            'attend in both directions; if it does not, write "is_causal": true into config.json'
        )


def _prompt(directory: Path) -> str | None:
    """What `default_prompt_name` puts before each text; None for nothing."""
    file = directory / PROMPTS
    if not file.is_file():
        return None
    found = _read(file)
    name, prompts = found.get("default_prompt_name"), found.get("prompts")
    if name is None:
        return None
    prompt = prompts.get(name) if isinstance(name, str) and isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise UnsupportedModel(
            f"{file}: default_prompt_name {name!r:.80} is none of its prompts; write null, or a name"
        )
    return prompt or None


def _longest(directory: Path) -> int | None:
    file = directory / LENGTHS
    if not file.is_file():
        return None
    found = _read(file)
    if found.get("do_lower_case") is True:
        raise UnsupportedModel(f"{file}: do_lower_case is not supported")
    try:
        return None if found.get("max_seq_length") is None else need(found, "max_seq_length")
    except UnsupportedModel as error:
        raise UnsupportedModel(str(error).replace("config.json", str(file), 1)) from None
