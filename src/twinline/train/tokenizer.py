"""Builds the tokenizer of `tiny-r1`: byte-level, so any text tokenises; digits and letters stay single.

Merges are constructed, not learnt: a known word with its leading space (or a capital at the start of a sentence) grows
from the left into one token, a Chinese character's bytes join, and nothing else merges. A quoted word therefore reaches
the model letter by letter, which is what counting letters needs, and a number digit by digit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from twinline.verify import phrases

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
SPECIAL = [BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK]

# The published R1 template's behaviour: earlier reasoning is dropped, the prompt ends inside `<think>`.
CHAT_TEMPLATE = (
    "{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif -%}"
    "{{ bos_token }}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}{{ m['content'] }}"
    "{%- elif m['role'] == 'user' -%}{{ '<｜User｜>' + m['content'] }}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{{ '<｜Assistant｜>' + (m['content'] or '').split('</think>')[-1].strip() + '<｜end▁of▁sentence｜>' }}"
    "{%- else -%}{{ raise_exception('role ' + m['role'] + ' is not supported by tiny-r1') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}"
)


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, as `tokenizers`' ByteLevel uses it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def _texts() -> list[str]:
    """Every wording that training uses, without its numbers."""
    found: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, str):
            found.append(re.sub(r"\{(letter|word|[abck]|list|who|thing|topic)\}", " 0", value))
        elif isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                walk(inner)

    for name, value in vars(phrases).items():
        if not name.startswith("__") and name not in ("WORDS", "CONSONANTS", "Phrases"):
            walk(value)
    return found


def _vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every token with its id, and the merges in order. Raises ValueError if the wordings need more than `size`."""
    letter = _byte_letters()
    vocab: dict[str, int] = {token: i for i, token in enumerate(SPECIAL)}
    for b in range(256):
        vocab[letter[b]] = len(vocab)
    merges: list[tuple[str, str]] = []

    def chain(text: str) -> None:
        symbols = [letter[b] for b in text.encode()]
        left = symbols[0]
        for right in symbols[1:]:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
            left += right

    texts = _texts()
    chain("\n\n")
    for char in sorted({c for text in texts for c in text if ord(c) > 127}):
        chain(char)
    counted: dict[str, int] = {}
    for text in texts:
        for word in re.findall(r" [A-Za-z]+|(?<![A-Za-z])[A-Z][a-z]+", text):
            if len(word) > 2:
                counted[word] = counted.get(word, 0) + 1
    for word in sorted(counted, key=lambda w: (-counted[w] * len(w), w)):
        if len(vocab) + len(word) <= size:
            chain(word)
    if len(vocab) > size:
        raise ValueError(f"the wordings need {len(vocab)} tokens, more than {size}")
    for i in range(size - len(vocab)):
        vocab[f"<｜reserved▁{i}｜>"] = len(vocab)
    return vocab, merges


def _document(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, object]:
    """The contents of `tokenizer.json`."""
    added = [t for t in vocab if t in SPECIAL or t.startswith("<｜reserved")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": t not in (THINK, END_THINK)}
            for t in added
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"[0-9]| ?[A-Za-z]+|\n+|[^\s0-9A-Za-z]| "},
                 "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [vocab[BOS]], "tokens": [BOS]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": [list(m) for m in merges]},
    }  # fmt: skip


def build(directory: Path, size: int = 1024) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` with exactly `size` entries into `directory`.

    Raises ValueError if the wordings need more entries than that.
    """
    document = _document(*_vocabulary(size))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), "utf-8")
