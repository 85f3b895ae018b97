"""Random checkpoints that give vectors, in the layouts of Qwen3-Embedding and its like, and their references.

Owns the folders and the pooling done by hand, in float64, over the states of the `transformers` backbone that a folder
was saved from. Knows no engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tests.engine import checkpoints
from torch import Tensor

FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
END = "<|endoftext|>"
MODULES = "sentence_transformers.models"
Config = dict[str, Any]


@dataclass(frozen=True)
class Embedder:
    """A folder and the backbone that it was saved from, in float32."""

    folder: Path
    backbone: Any
    mode: str
    normalize: bool

    @property
    def vocab(self) -> int:
        return int(self.backbone.config.vocab_size)

    @torch.no_grad()
    def vector(self, ids: list[int]) -> Tensor:
        """`[X]` in float64, of one text alone."""
        states_TX = self.backbone(torch.tensor([ids])).last_hidden_state[0].double()
        count = len(states_TX)
        numbers_T1 = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
        vector: Tensor = {
            "cls_token": lambda: states_TX[0],
            "mean_tokens": lambda: states_TX.mean(0),
            "max_tokens": lambda: states_TX.max(0).values,
            "mean_sqrt_len_tokens": lambda: states_TX.sum(0) / count**0.5,
            "weightedmean_tokens": lambda: (states_TX * numbers_T1).sum(0) / numbers_T1.sum(),
            "lasttoken": lambda: states_TX[-1],
        }[self.mode]()
        return vector / vector.norm() if self.normalize else vector


def modules(folder: Path, mode: str = "lasttoken", *, normalize: bool = True, size: int = 0, **more: Any) -> None:
    """The files of sentence-transformers beside a checkpoint; `more` goes into the pooling's."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Transformer"},
              {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODULES}.Pooling"}]  # fmt: skip
    if normalize:  # its folder has no files, so that it is not there after a clone
        listed.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{MODULES}.Normalize"})
    (folder / "modules.json").write_text(json.dumps(listed), "utf-8")
    flags = {f"pooling_mode_{flag}": flag == mode for flag in FLAGS}
    pooling = {"word_embedding_dimension": size or None, **flags, "include_prompt": True, **more}
    if not size:
        del pooling["word_embedding_dimension"]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")


def tokenizer(folder: Path) -> None:
    """The files of a byte-level tokenizer that ends a text with `<|endoftext|>`, as Qwen3-Embedding's does."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([END, "<|im_end|>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, made.token_to_id(END))]
    )
    made.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")


def save(
    folder: Path, family: str = "qwen3", mode: str = "lasttoken", *, normalize: bool = True,
    architecture: str | None = None, bare: bool = True, **config: Any,
) -> Embedder:  # fmt: skip
    """A random model of `checkpoints.FAMILIES`. `bare`: names without `model.` and no head, as the backbone saves
    itself; `architecture` is what its `config.json` says (Qwen3-Embedding says Qwen3ForCausalLM all the same)."""
    whole = checkpoints.save(family, folder)
    backbone = whole.reference.model
    if bare:
        (folder / "model.safetensors").unlink()
        backbone.save_pretrained(folder)
    found = json.loads((folder / "config.json").read_text("utf-8"))
    found["architectures"] = [architecture or type(whole.reference).__name__]
    (folder / "config.json").write_text(json.dumps(found | config), "utf-8")
    modules(folder, mode, normalize=normalize, size=found["hidden_size"])
    return Embedder(folder, backbone, mode, normalize)
