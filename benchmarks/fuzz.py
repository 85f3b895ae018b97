"""Every parser under a fuzzer that is led by coverage (atheris): no crash, no hang, and what a parser promises holds.

    .venv/bin/python -m pip install "atheris>=3,<4"
    .venv/bin/python benchmarks/fuzz.py                                  # a minute for each target
    .venv/bin/python benchmarks/fuzz.py --seconds 600 --targets calls fleets
    .venv/bin/python benchmarks/fuzz.py --targets calls --input build/fuzz/calls/AssertionError-1a2b3c4d

Owns what each parser is fed, which errors may come out of it, and what must hold of what it gives. Each target runs in
a process of its own; seeds are real: recordings, the tests' own texts, tiny-r1, the configurations that are known. An
error that is not among the documented ones is a finding, and so are 5 seconds over one input: by the clock at first,
and then, as a busy machine stops the clock for nobody, of processor time when it is tried alone. Inputs that gave one
are kept in build/fuzz/TARGET, each kind once, beside what was said. Exit code 0 only if there were none.

Chat templates are programs: sources that multiply, count or write numbers of four digits are passed over, for such a
program may work as long as it likes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import itertools
import json
import logging
import math
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # seeds and judges are the tests' own
BUILD, TINY = ROOT / "build" / "fuzz", ROOT / "src" / "twinline" / "models" / "tiny-r1"
SCRATCH = BUILD / ".scratch"
HANG_SECONDS, MOST_MEMORY_MB, LONGEST = 5, 4096, 1 << 15
DEEP = "[" * 3000 + "]" * 3000
SPICE = (None, True, 0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, 1e308, math.inf, math.nan, "", "a", "\0", "\ud800",
         "~nobody/a", "a" * 300, "DEEP", [], {}, [[]], {"": {}}, ["a"], {"a": 1}, '{"a": "\\ud800"}')  # fmt: skip
WORDS = (
    *'{ } [ ] : , "name" "arguments" \\u d800 null 1e999 -1 <think> </think> <tool_call> </tool_call> ```json'.split(),
    *"{{ }} {% %} {%- for if endfor endif set in not is namespace( cycler( |tojson ~ & * << !! data: ? | GGUF".split(),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "\n\n", "\r\n"),
    *"<function=weather> <function= </function> <parameter=city> <parameter= </parameter> weather".split(),
    *"<arg_key> </arg_key> <arg_value> </arg_value> <｜DSML｜invoke </｜DSML｜invoke> </｜DSML｜parameter>".split(),
)
WORK = re.compile(r"\*|range|lipsum|\d[\d_]{3}|0[xob]|recursive|indent|center|wordwrap|%\s*\d|format")


class Given:
    """One input. Numbers are taken from its end and the material is what is left, so that a seed is what it is of."""

    def __init__(self, data: bytes) -> None:
        self._provider = fuzzer().FuzzedDataProvider(data)

    def number(self, most: int) -> int:
        return self._provider.ConsumeIntInRange(0, most)

    def one_of(self, things: Sequence[Any]) -> Any:
        return things[self.number(len(things) - 1)]

    def marks(self) -> list[int]:
        return [self.number(65535) for _ in range(self.number(7))]

    def word(self) -> str:
        return self._provider.ConsumeBytes(self.number(12)).decode("utf-8", "replace")

    def rest(self) -> bytes:
        return self._provider.ConsumeBytes(self._provider.remaining_bytes())

    def text(self) -> str:
        return self.rest().rstrip(b"\0").decode("utf-8", "replace")

    def altered(self, bases: Sequence[Any]) -> bytes:
        """JSON: the material as it is, or one of the bases with some of its values changed, renamed or moved."""
        if not self.number(3):
            return self.rest().rstrip(b"\0")
        value = copy.deepcopy(self.one_of(bases))
        for _ in range(1 + self.number(3)):
            holder, key = self.one_of(places := list(inside(value)) or [([0], 0)])
            what = self.number(len(SPICE) + 3)
            if what < len(SPICE):
                holder[key] = copy.deepcopy(SPICE[what])
            elif what == len(SPICE):
                holder[key] = self.word()
            elif what == len(SPICE) + 1 and isinstance(holder, dict):
                holder[self.word()] = holder.pop(key)
            else:
                other, at = self.one_of(places)
                holder[key] = copy.deepcopy(other[at])
        return json.dumps(value).replace('"DEEP"', DEEP).encode()


def inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value, as its holder and the key there."""
    for key, held in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(held, dict | list):
            yield from inside(held)


def cut(whole: Any, marks: Sequence[int]) -> list[Any]:
    edges = [0, *sorted(mark % (len(whole) + 1) for mark in marks), len(whole)]
    return [whole[begin:end] for begin, end in itertools.pairwise(edges)]


Made = tuple[Iterable[Any], Callable[[Given], None]]
TARGETS: dict[str, Callable[[], Made]] = {}


def target(make: Callable[[], Made]) -> Callable[[], Made]:
    """What imports a parser and gives its seeds, and the function that feeds it one input."""
    TARGETS[make.__name__] = make
    return make


@target
def templates() -> Made:
    from tests.gateway.text.calls.templates import TEMPLATES

    from twinline.gateway.text.template import ChatTemplate

    call = {"function": {"name": "weather", "arguments": '{"city": "東京"}'}}
    said = {"role": "assistant", "content": "Hello."}
    chat = [{"role": "user", "content": "Hi"}, {**said, "tool_calls": [call]}, {"role": "tool", "content": "1"}, said]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]

    def one(given: Given) -> None:
        turns, listed, left_open = 1 + given.number(3), given.number(1), given.number(1)
        if not WORK.search(source := given.text()):
            with contextlib.suppress(ValueError):
                made = ChatTemplate({"default": source}, {"bos_token": "<s>"})
                made.render(chat[:turns], tools if listed else None, continue_final_message=bool(left_open))

    tiny = json.loads((TINY / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    nested = "{% for a in [1] %}" * 25 + "{% endfor %}" * 25
    return [tiny, *TEMPLATES.values(), nested, "{{ " + "not " * 900 + "a }}"], one


@target
def reasoning() -> Made:
    """And stop strings."""
    from twinline.gateway.text.reasoning import ReasoningParser
    from twinline.gateway.text.stops import StopMatcher

    def read(chunks: list[str], opened: bool, stops: list[str]) -> Any:
        parser, matcher = ReasoningParser(opened, bool(stops)), StopMatcher([stop for stop in stops if stop], opened)
        found, sent = {"reasoning": "", "content": ""}, [matcher.push(chunk) for chunk in chunks]
        for kind, text in itertools.chain(*map(parser.push, chunks), parser.finish()):
            found[kind] += text
        return found, "".join(text for text, _ in sent) + matcher.finish(), sent[-1][1]

    def one(given: Given) -> None:
        opened, marks, stops = bool(given.number(1)), given.marks(), [given.word() for _ in range(given.number(3))]
        text = given.text()
        assert read(cut(text, marks), opened, stops) == read([text], opened, stops) == read([*text, ""], opened, stops)

    return ["<think>\nhm\n</think>\n\n4", "hm</think>4", " \n<think>a</thin</think>\n", "4 <think>",
            "hm\n</think>\n\n<response>\n4\n</response>\n"], one  # fmt: skip


@target
def calls() -> Made:
    from tests.gateway.text.calls.test_parser import FORMATS, read

    def one(given: Given) -> None:
        format_, alone, marks = given.one_of([one for one, _ in FORMATS.values()]), bool(given.number(1)), given.marks()
        text = given.text()
        assert read(format_, cut(text, marks), alone) == read(format_, [text], alone) == read(format_, [*text], alone)

    return [text for _, cases in FORMATS.values() for _, text, _ in cases], one


@target
def events() -> Made:
    """Streams and counters of every engine, in pieces."""
    import msgspec
    from tests.lines.drivers import replay

    from twinline.lines.drivers import DRIVERS, driver, llamacpp, native, ollama, openai, sglang, vllm
    from twinline.lines.drivers.pieces import pieces
    from twinline.lines.protocol import LineBroken
    from twinline.lines.wire import EventLines

    request, table = replay.ask(logprobs=1, prompt_logprobs=1, stop_token_ids=[2]), pieces(TINY)
    readers = (lambda: native.read_chunk, lambda: openai.read_text, vllm.Answer, ollama.Answer,
               lambda: sglang.Answer(request), lambda: llamacpp.Answer(request, table))  # fmt: skip
    known = [driver(name) for name in DRIVERS]

    def one(given: Given) -> None:
        sse, read, marks = bool(given.number(3)), given.one_of(readers)(), given.marks()
        whole, apart, data = EventLines(sse), EventLines(sse), given.rest()
        payloads = whole.feed(data)
        assert [payload for part in cut(data, marks) for payload in apart.feed(part)] == payloads
        assert apart.pending == whole.pending
        with contextlib.suppress(ValueError, RecursionError, msgspec.DecodeError, LineBroken):  # as the client does
            for payload in payloads:
                read(payload)
        for engine in known:
            engine.metrics(data)

    files = [path for path in replay.RECORDED.rglob("*.*") if path.suffix in (".http", ".sse", ".ndjson", ".txt")]
    return [replay.body(str(path.relative_to(replay.RECORDED))) for path in files], one


@target
def answers() -> Made:
    """Answers of a line over HTTP: the compiled reader and Python's give the same, and nothing of ours fails."""
    from tests.lines import test_events
    from tests.lines.drivers import replay

    def one(given: Given) -> None:
        marks = given.marks()
        test_events.same([part for part in cut(given.rest(), marks) if part])

    deep = b'{"a": %b}' % DEEP.encode()
    many = test_events.answer([b"data: {}\n\n" * 40 + b"data: " + deep + b"\n\n"])
    refused = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(deep), deep)
    recorded = [path.read_bytes() for path in replay.RECORDED.rglob("*.http")]
    return [test_events.answer(test_events.WHOLE), many, refused, *recorded], one


@target
def shards() -> Made:
    import torch

    from twinline.cli.folder import read_folder
    from twinline.cli.parser import CliError
    from twinline.engine.models import shards as module
    from twinline.facts.models import UnsupportedModel

    tensors = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
               "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}  # fmt: skip
    base, path = {"__metadata__": {"format": "pt"}, **tensors}, scratch() / "model.safetensors"
    shutil.copy(TINY / "config.json", path.parent)

    def one(given: Given) -> None:
        data, off = 22 + given.one_of((0, 0, 0, -1, 1, 40)), given.one_of((0, 0, 0, 1, 2**40))
        header = given.altered([base])
        path.write_bytes(struct.pack("<Q", len(header) + off) + header + bytes(data))
        with contextlib.suppress(CliError):
            read_folder(path.parent)
        with contextlib.suppress(UnsupportedModel), module.Shard(path) as shard:
            for name, stored in shard.tensors.items():
                begin, end = stored.data_offsets
                assert 0 <= begin <= end <= data
                if dtype := module.DTYPES.get(stored.dtype):
                    assert math.prod(stored.shape) * dtype.itemsize == end - begin
                    shard.read(name, torch.empty(stored.shape, dtype=dtype))

    return [base], one


@target
def configs() -> Made:
    """config.json and the index of a checkpoint, as the engine reads them and as `twinline fit` does."""
    from twinline.cli import fit
    from twinline.cli.parser import CliError
    from twinline.engine.models.shards import shards
    from twinline.facts.model_files import bundled
    from twinline.facts.models import UnsupportedModel, read_spec
    from twinline.facts.quantization import read_quantization

    tiny, folder, parser = json.loads((TINY / "config.json").read_text("utf-8")), scratch(), argparse.ArgumentParser()
    fit.configure(parser)
    group = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 128}, "input_activations": None}
    stored = (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "compressed-tensors", "config_groups": {"g": group}, "ignore": ["re:.*head"]},
    )
    bases = [tiny, *(model.config for model in bundled().values())]
    bases += [{**tiny, "quantization_config": each} for each in stored]
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}

    def one(given: Given) -> None:
        words, indexed = ["--json"] * given.number(1), given.number(2) == 1
        (folder / "config.json").write_bytes(json.dumps(tiny).encode() if indexed else given.altered(bases))
        (folder / "model.safetensors.index.json").write_bytes(given.altered([index]) if indexed else b"{}")
        for read in (read_spec, read_quantization, shards):
            with contextlib.suppress(UnsupportedModel):
                read(folder)
        with contextlib.suppress(CliError), contextlib.redirect_stdout(io.StringIO()):
            fit.run(parser.parse_args([str(folder), "--chip", "h20x8", *words]))

    return bases, one


@target
def requests() -> Made:
    """Bodies at five doors, as far as what a line is asked for. What is refused can be told, what is taken sent on."""
    import msgspec
    from tests.gateway.text.calls.templates import TEMPLATES

    from twinline.gateway import chat, completions, embeddings, exchange, order
    from twinline.gateway.api_types import ChatRequest, CompletionRequest
    from twinline.gateway.dialects import messages_in, responses_in
    from twinline.gateway.dialects.body import body_of
    from twinline.gateway.dialects.messages_types import MessagesRequest
    from twinline.gateway.dialects.responses_types import ResponsesRequest
    from twinline.gateway.errors import ApiError
    from twinline.gateway.sampling import ignored, plan, room
    from twinline.gateway.served import ModelText
    from twinline.gateway.text.reasoning import around_answer
    from twinline.gateway.text.template import ChatTemplate
    from twinline.gateway.tools import tool_use

    text = ModelText.load(TINY)
    spoken = [text.template, *(ChatTemplate({"default": each}, {"bos_token": ""}) for each in TEMPLATES.values())]
    models = [
        SimpleNamespace(
            name="m", tokenizer=text.tokenizer, template=template, calls=template and template.calls,
            max_model_len=1024, defaults=text.defaults, vocab_size=512,
        )
        for template in spoken
    ]  # fmt: skip

    def asked(request: Any, served: Any, rendered: str, prompt: list[int], calls: str | None = None) -> None:
        most, about = room(len(prompt), request.max_tokens, served, "messages"), around_answer(rendered)
        plan(request, served, request_id="r", max_tokens=max(1, most), logprobs=None, around_answer=about, calls=calls)
        ignored(request)

    def chats(request: Any, served: Any) -> None:
        chat.check(request, served)
        forced = tool_use(request, served.calls).forced(served.calls)
        asked(request, served, *at_once(chat.prompt_of(request, served, 0)), forced)
        msgspec.json.decode(body_of(request))

    def completes(request: Any, served: Any) -> None:
        completions._check(request)
        for prompt in completions._encode(completions._given(request, served), served, request):
            asked(request, served, "", prompt.ids)

    def embeds(request: Any, served: Any) -> None:
        inputs = [embeddings._encoded(item, served) for item in embeddings._given(request.input, served)]
        embeddings._check_lengths(inputs, served)
        assert [item for share in embeddings.shares(inputs) for item in share] == inputs

    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": "\\u6771"}'}}
    said = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "1", "tool_call_id": "1"}]  # fmt: skip
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    shared = {"model": "m", "max_tokens": 2, "stop": ["a"], "logit_bias": {"5": 1}, "stop_token_ids": [3]}
    used = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [
        {"type": "tool_use", "id": "1", "name": "weather", "input": {"a": 1}}]}]  # fmt: skip
    called = {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"}
    items = [{"role": "user", "content": "Hi"}, called]
    doors: list[tuple[Any, Callable[[Any, Any], None], Any]] = [
        (ChatRequest, chats, {**shared, "messages": said, "tools": [{"type": "function", "function": function}],
                              "chat_template_kwargs": {"thinking": True}}),
        (CompletionRequest, completes, {**shared, "prompt": ["a"], "echo": True, "response_format": schema}),
        (MessagesRequest, lambda request, served: chats(messages_in.to_chat(request), served),
         {"model": "m", "max_tokens": 2, "messages": used, "tools": [{"name": "weather", "input_schema": {}}],
          "tool_choice": {"type": "any"}, "thinking": {"type": "disabled"}}),
        (ResponsesRequest, lambda request, served: chats(responses_in.to_chat(request), served),
         {"model": "m", "input": items, "tools": [{"type": "function", **function}], "reasoning": {"effort": "low"}}),
        (embeddings.EmbeddingsRequest, embeds, {"model": "m", "input": ["a", "b"], "dimensions": 2, "user": "u"}),
    ]  # fmt: skip
    decoders = [msgspec.json.Decoder(shape) for shape, _, _ in doors]

    def one(given: Given) -> None:
        which, served = given.number(len(doors) - 1), given.one_of(models)
        body = given.altered([doors[which][2]])
        status = 400
        try:
            request = exchange.decode(decoders[which], body)
            if which < 2:
                with contextlib.suppress(ValueError):
                    order.text_source(body, which == 0)
            doors[which][1](request, served)
        except ApiError as error:
            status = error.status if error.body() else 500
        assert 400 <= status < 500

    return [body for _, _, body in doors], one


@target
def fleets() -> Made:
    from twinline.lines.fleet.file import load
    from twinline.lines.fleet.marked import FileFaults

    laptop, path = (ROOT / "examples" / "laptop.yaml").read_text("utf-8"), scratch() / "fleet.yaml"
    lines = {
        "a": {"engine": "openai", "url": "http://h/v1", "options": {"continuation": "prefix"}, "lacks": ["tools"]},
        "b": {"engine": "native", "cards": [0], "price": "1 USD", "options": {"threads": 1}, "env": {"A": "b"}},
    }
    wide = {"lines": lines, "models": {"m": {"text": "embedded", "goals": {"ttft_seconds": 1}}}, "gateway": {"port": 1}}
    bases = [wide, {"lines": {"c": {"engine": "simulated", "weights": "embedded", "slots": 2}}}]

    def one(given: Given) -> None:
        path.write_bytes(given.altered(bases))
        with contextlib.suppress(FileFaults, OSError):
            load(path, {})

    written = (ROOT / "tests/lines/fleet/test_file.py").read_text("utf-8")
    fields = re.findall(r'"""\n(.*?)"""', written, re.DOTALL)
    return [laptop, *fields, *bases, "a: &a {b: *a}", "? [a]\n: 1", "a: 2026-99-99", f"a: {DEEP}"], one


@target
def folders() -> Made:
    """The small files of a model folder, its tokenizer among them."""
    from twinline.gateway.served import ModelText
    from twinline.lines.drivers import pieces

    folder, names = scratch(), ("tokenizer_config", "generation_config", "config", "tokenizer")
    files = {name: json.loads((TINY / f"{name}.json").read_text("utf-8")) for name in names}
    more = {"additional_special_tokens": ["<a>"], "added_tokens_decoder": {"3": {"content": "<b>", "special": True}}}
    files["special_tokens_map"] = {"pad_token": {"content": "!"}, **more}
    files["tokenizer_config"] |= more
    files["config"]["text_config"] = {"eos_token_id": [1]}
    good = {name: json.dumps(said) for name, said in files.items()}
    for name, said in good.items():
        (folder / f"{name}.json").write_text(said)

    def one(given: Given) -> None:
        name = given.one_of(list(files))
        (folder / f"{name}.json").write_bytes(given.altered([files[name]]))
        with contextlib.suppress(ValueError):
            text = ModelText.load(folder)
            text.tokenizer.decode(text.tokenizer.encode("<think>Hi 東</think>", special=True))
        with contextlib.suppress(ValueError, OSError):
            if name == "tokenizer":
                pieces._read.__wrapped__(folder / "tokenizer.json", 0)
        (folder / f"{name}.json").write_text(good[name])

    return [files["tokenizer_config"], DEEP], one


@target
def poolings() -> Made:
    """The files that say how a folder's vectors are made."""
    from twinline.facts.models import UnsupportedModel, read_config
    from twinline.facts.pooling import FLAGS, MODES, pooling_folder, read_pooling, shorter

    folder = scratch()
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = ("Transformer", "Pooling", "Normalize")
    files: dict[str, Any] = {
        "modules.json": [{"idx": i, "path": f"{i}_{n}" if i else "", "type": f"st.{n}"} for i, n in enumerate(names)],
        "1_Pooling/config.json": {flag: mode == "mean" for flag, mode in FLAGS.items()} | {"pooling_mode": None},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config.json": {"hidden_size": 8, "is_causal": True, "auto_map": {}, "matryoshka_dimensions": [4, 2]},
    }
    good = {name: json.dumps(said).encode() for name, said in files.items()}
    for name, said in good.items():
        (folder / name).write_bytes(said)

    def one(given: Given) -> None:
        name = given.one_of(list(files))
        (folder / name).write_bytes(given.altered([files[name]]))
        with contextlib.suppress(UnsupportedModel):
            found = read_pooling(folder)
            assert found is not None and found.mode in MODES and (found.longest or 1) > 0
        with contextlib.suppress(UnsupportedModel):
            assert ".." not in Path(pooling_folder(folder) or "").parts
        with contextlib.suppress(UnsupportedModel):
            may = shorter(read_config(folder))
            assert may is None or all(size > 0 for size in may.sizes)
        (folder / name).write_bytes(good[name])

    return list(files.values()), one


@target
def vectors() -> Made:
    """Answers with vectors: what is taken are so many float32 vectors of one size, all of them numbers."""
    import msgspec
    import numpy as np

    from twinline.lines.drivers.vectors import IdVectors, OllamaVectors

    packed = "AACAPwAAAEA="
    entries = [{"index": 1, "embedding": [1.0, -2.5]}, {"index": 0, "embedding": packed}]
    bases = [{"data": entries, "usage": {"prompt_tokens": 3}}, {"embeddings": [[1, 2], [0.5, 1e30]]}]
    dialects = (IdVectors(), OllamaVectors("m", None, None))

    def one(given: Given) -> None:
        dialect = given.one_of(dialects)
        try:
            delta = dialect.read(given.altered(bases), 2)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):  # as `lines/vectors.py` expects
            return
        assert len({len(vector) for vector in delta.vectors}) == 1 and len(delta.vectors) == 2
        assert all(np.isfinite(np.frombuffer(vector, "<f4")).all() for vector in delta.vectors)

    return bases, one


@target
def gguf() -> Made:
    from tests.lines.drivers import test_pieces

    from twinline.lines.drivers import llamacpp, pieces
    from twinline.lines.drivers.gguf import metadata

    path = scratch() / "m.gguf"

    def one(given: Given) -> None:
        path.write_bytes(given.rest())
        llamacpp.default_context(path)
        for read in (lambda: metadata(path, lambda name: True), lambda: pieces._read.__wrapped__(path, 0)):
            with contextlib.suppress(ValueError, OSError):
                read()

    whole = test_pieces.gguf(path, ["a", "<0xE6>", "Ġ"], "gpt2", [1, 6, 1]).read_bytes()
    nested = whole[:24] + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000
    return [whole, nested], one


@target
def chips() -> Made:
    """What the vendors' tools print: readers never raise."""
    from tests.cards.recordings import reader, recordings

    known = list(recordings().values())
    reads = [(reader(one), one.command) for one in known]

    def one(given: Given) -> None:
        read, command = given.one_of(reads)
        read(given.text(), command)

    return [one.text.encode() + bytes([number]) for number, one in enumerate(known)], one


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits")


def scratch() -> Path:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=SCRATCH))


def fuzzer() -> Any:
    try:
        import atheris
    except ImportError:
        sys.exit('atheris is not installed: .venv/bin/python -m pip install "atheris>=3,<4"')
    return atheris


def spoken(seed: Any) -> bytes:
    return seed if isinstance(seed, bytes) else (seed if isinstance(seed, str) else json.dumps(seed)).encode()


class Watched:
    """One target. What comes out of it that should not is kept, each kind once, and the work goes on."""

    def __init__(self, name: str) -> None:
        self._folder = BUILD / name
        with fuzzer().instrument_imports(include=["twinline"]):
            seeds, self._one = TARGETS[name]()
            lot = random.Random(name)
            # Numbers for what a seed is the material of: none, that cut it nowhere, and some.
            ends = (b"", bytes(1), bytes(3), bytes(16), lot.randbytes(24))
            self._seeds = [spoken(seed) + end for seed in seeds for end in ends]
            self._seeds += [lot.randbytes(64) for _ in range(32)]
            for seed in self._seeds:  # what is imported late is imported here
                self(seed)

    def __call__(self, data: bytes) -> None:
        try:
            self._one(Given(data))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library is no Exception
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
            frame = frames[min(2, len(frames) - 1) if isinstance(error, RecursionError) else -1]
            place = f"{frame.filename}:{frame.lineno}"
            kept = self._folder / f"{type(error).__name__}-{hashlib.sha1(place.encode()).hexdigest()[:8]}"
            if not kept.exists():
                kept.write_bytes(data)
                kept.with_suffix(".txt").write_text(
                    "".join(traceback.format_exception(error, limit=-25)), "utf-8", "replace"
                )

    def fuzz(self, seconds: int) -> None:
        """Does not return."""
        seeds, words = self._folder / "seeds", self._folder / "words"
        seeds.mkdir(exist_ok=True)
        for number, seed in enumerate(self._seeds):
            (seeds / str(number)).write_bytes(seed)
        lines = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS)
        words.write_text("".join(f'"{line}"\n' for line in lines))
        limits = [f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MOST_MEMORY_MB}", f"-max_len={LONGEST}"]
        more = [f"-max_total_time={seconds}", f"-artifact_prefix={self._folder}/", "-print_final_stats=1"]
        fuzzer().Setup([sys.argv[0], *limits, *more, f"-dict={words}", str(seeds)], self)
        fuzzer().Fuzz()


def hangs(name: str, kept: Path) -> bool:
    """Whether an input takes HANG_SECONDS of processor time, the process's start left out."""
    argv = [sys.executable, __file__, "--targets", name, "--input", str(kept)]
    limit = resource.RLIMIT_CPU, (60 + HANG_SECONDS,) * 2
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(*limit))
    took = re.search(r"^([0-9.]+) s of processor time$", done.stdout, re.MULTILINE)
    return took is None or float(took[1]) >= HANG_SECONDS


def run(name: str, seconds: int) -> tuple[int, list[Path]]:
    """Executions and findings. A hang ends the target's process: what is left of the time is another's."""
    folder, executions, end = BUILD / name, 0, time.monotonic() + seconds
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    while (left := round(end - time.monotonic())) > 0:
        argv = [sys.executable, __file__, "--child", "--targets", name, "--seconds", str(left)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=left + 120)
        (folder / "log.txt").write_bytes(done.stdout)
        told = re.search(rb"number_of_executed_units:\s*(\d+)", done.stdout)
        if told is None:
            raise RuntimeError(f"{name} did not run:\n{done.stdout[-2000:].decode('utf-8', 'replace')}")
        executions += int(told[1])
        if done.returncode == 0:
            break
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for slow in folder.glob("timeout-*"):
        if not hangs(name, slow):
            slow.unlink()
    return executions, sorted(path for path in folder.iterdir() if "-" in path.name and path.suffix != ".txt")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    names = list(TARGETS)
    parser.add_argument("--targets", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--input", type=Path, help="one input for one target, in this process: shows what comes of it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    fuzzer()
    BUILD.mkdir(parents=True, exist_ok=True)
    if given.input:
        one, data = TARGETS[given.targets[0]]()[1], Given(given.input.read_bytes())
        began = time.process_time()
        one(data)
        print(f"{time.process_time() - began:.3f} s of processor time")
        return 0
    if given.child:
        logging.disable(logging.CRITICAL)
        Watched(given.targets[0]).fuzz(given.seconds)
    total = 0
    for name in given.targets:
        executions, findings = run(name, given.seconds)
        total += len(findings)
        print(f"{name:10} {executions:>10,} executions, {len(findings)} findings", flush=True)
        for finding in findings:
            said = finding.with_suffix(".txt")
            last = said.read_text("utf-8").strip().splitlines()[-1] if said.exists() else "see log.txt"
            print(f"  {finding.relative_to(ROOT)}: {last[:160]}")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
