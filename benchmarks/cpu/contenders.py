"""Who is measured: Twinline and its peers, which models and widths each runs, and how each is asked for a scenario.

Owns the table of contenders. Knows neither rounds nor bars.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu.checkpoint import make
from benchmarks.cpu.peers import ROOT, Peers
from benchmarks.cpu.session import Sessions, Wanted
from benchmarks.cpu.shapes import SHAPES, parameters, read_config

from benchmarks.cpu import tools
from twinline.facts.weight_form import read_weight_form

OURS = ("native", "serve")
PEERS = ("llama.cpp", "llama-server", "openvino", "vllm")
CONTENDERS = OURS + PEERS
EMBEDDED = "tiny-r1"
MODELS = (EMBEDDED, *SHAPES)
PRECISIONS = ("bfloat16", "int8", "int4", "float32")
BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.5}
# of matrices' values in bits, scales included, where they are not those above
PEER_BITS = {("llama", "int8"): 8.5, ("llama", "int4"): 4.5, ("openvino", "int4"): 4.71}  # its head is in int8
HUGE_PAGES = (("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"), ("THP_MEM_ALLOC_ENABLE", "1"))  # as `twinline serve` does
GIB = 2**30


def runs(contender: str, model: str, precision: str) -> bool:
    """Whether a contender takes part: tiny-r1 is ours alone, and float32; vLLM computes no such latent heads on a CPU
    and is compared in bfloat16, OpenVINO on the Qwen shapes."""
    if (model == EMBEDDED) != (precision == "float32"):
        return False
    if model == EMBEDDED:
        return contender in OURS
    if contender == "vllm":
        return precision == "bfloat16" and model.startswith("qwen")
    if contender == "openvino":
        return model.startswith("qwen")
    return True


@dataclass
class Bench:
    """Everything that is made or started on the way, under one folder."""

    peers: Peers
    sessions: Sessions
    forms: dict[str, str] = field(default_factory=dict)  # what `--weights` is given for a precision
    priority: bool = False

    @property
    def folder(self) -> Path:
        return self.peers.folder

    def checkpoint(self, model: str) -> Path:
        if model == EMBEDDED:
            return ROOT / "src" / "twinline" / "models" / EMBEDDED
        return make(model, self.folder / "checkpoints" / model)

    def prepare(self, contender: str, model: str, precision: str) -> None:
        """Builds and converts what is missing, so that no measurement waits for it."""
        if contender == "llama.cpp":
            self.peers.llama_tool("llama-batched-bench")
            self.peers.gguf(self.checkpoint(model), precision)
        else:
            self.wanted(contender, model, precision, 1)

    def wanted(self, contender: str, model: str, precision: str, threads: int, options: tuple[str, ...] = ()) -> Wanted:
        checkpoint = self.checkpoint(model)
        need = _need(model, contender, precision)
        if contender in OURS:
            form = self.forms.get(precision, precision)
            python = Path(sys.executable)
            return Wanted(contender, python, contender, checkpoint, form, threads, need, options, HUGE_PAGES)
        if contender == "llama-server":
            program = ("LLAMA_SERVER", str(self.peers.llama_tool("llama-server")))
            file = self.peers.gguf(checkpoint, precision)
            return Wanted(
                contender, Path(sys.executable), "llamaserver", file, precision, threads, need, (), (program,)
            )
        if contender == "openvino":
            folder = self.peers.openvino_model(checkpoint, precision)
            python = self.peers.openvino_python()
            return Wanted(contender, python, "openvino", folder, precision, threads, need)
        python = self.peers.vllm_python()
        return Wanted(contender, python, "vllm", checkpoint, precision, threads, need)

    def measure(
        self, contender: str, model: str, precision: str, threads: int, scenario: str, arguments: dict[str, Any],
        options: tuple[str, ...] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Figures of one run. Raises Failed or RuntimeError."""
        if contender == "llama.cpp":
            return self._by_tool(model, precision, threads, scenario, arguments)
        wanted = self.wanted(contender, model, precision, threads, options)
        wanted = dataclasses.replace(wanted, priority=self.priority)
        vocab = _vocab(self.checkpoint(model))
        if scenario == "start":
            self.sessions.drop(wanted)
            session = self.sessions.get(wanted)
            found = session.ask("start", tokens=16, vocab=vocab)
            return found | {"seconds": time.perf_counter() - session.began, "facts": session.ask("facts")}
        try:
            return self.sessions.get(wanted).ask(scenario, vocab=vocab, **arguments)
        except Exception:
            self.sessions.drop(wanted)
            raise

    def _by_tool(
        self, model: str, precision: str, threads: int, scenario: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        program = self.peers.llama_tool("llama-batched-bench")
        file = self.peers.gguf(self.checkpoint(model), precision)
        if scenario == "prefill":
            return tools.measure(program, file, threads, 1, arguments["tokens"], 1)
        return tools.measure(program, file, threads, arguments["users"], arguments["prompt"], arguments["new"])


def bits(contender: str, precision: str, form: str = "") -> float:
    """Bits that a value of a matrix takes in memory, its share of a scale included: our own by the form that was asked
    for, whole rows taken as long."""
    if contender in OURS and precision.startswith("int"):
        long = 4096
        return read_weight_form(form or precision)[0].bytes(1, long, 2) * 8 / long
    return PEER_BITS.get((contender.split(".")[0].split("-")[0], precision), BITS[precision])


def _need(model: str, contender: str, precision: str) -> int:
    """Bytes that must be free before an engine is loaded: its weights, its cache, and room for loading."""
    if model == EMBEDDED:
        return GIB
    weights = parameters(SHAPES[model]) * BITS[precision] / 8
    spare = 6 * GIB if contender == "vllm" else 2 * GIB
    return int(1.2 * weights) + spare


def _vocab(checkpoint: Path) -> int:
    return int(read_config(checkpoint)["vocab_size"])
