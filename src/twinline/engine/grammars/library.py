"""xgrammar: grammars compiled for a vocabulary, and matchers over them.

Owns the only door to that library, and which tokens it is told of. Must not know requests or how long a call may take:
`compiling` runs the compiler in a process of its own, for it may take for ever, or all the memory, or crash.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import torch  # noqa: F401  (xgrammar's import of it must find `transformers` as it is)

from twinline.engine.grammars.automaton import Automaton
from twinline.engine.grammars.characters import as_rule
from twinline.engine.grammars.grammar import BadGrammar, Compiled, Grammar, Matcher, words_of
from twinline.engine.grammars.pattern import regex_rule, repeats_much, text_pattern
from twinline.engine.grammars.schema import strict_schema
from twinline.engine.grammars.stand_ins import StandIns
from twinline.engine.grammars.tag import tag_with
from twinline.engine.grammars.vocabulary import Vocabulary

MOST_WHITESPACE = 20  # between two parts of JSON: else a small model may go on with spaces until it has no tokens left


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("xgrammar", "tvm_ffi"))


def _empty_class(name: str) -> type:
    if name.startswith("__"):  # who asks for these looks at modules, not for classes
        raise AttributeError(name)
    return type(name, (), {})


@functools.cache
def _xgrammar() -> Any:
    """The library. It imports `transformers` for nothing but the names of its classes, which takes seconds and is not
    needed to run this engine: an empty module stands in for the length of the import."""
    missing = "transformers" not in sys.modules
    if missing:
        stand_in = types.ModuleType("transformers")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("transformers", None)
        stand_in.__getattr__ = _empty_class  # type: ignore[method-assign]
        sys.modules["transformers"] = stand_in
    try:
        import xgrammar
    finally:
        if missing:
            del sys.modules["transformers"]
    return xgrammar


class Library:
    """Compiles grammars for one vocabulary, and reads compiled ones from another process with the same vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        xgrammar = _xgrammar()
        size = len(vocabulary.pieces)
        # Without stop tokens of its own: each request has its own, and a guess by a token's name would add to them.
        self._info = xgrammar.TokenizerInfo(list(vocabulary.pieces), vocab_size=size, stop_token_ids=[])
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=1, cache_enabled=False)
        self._text = words_of(size, [i for i in range(size) if i not in vocabulary.marks])
        # A raw control character is never valid in a JSON string, and xgrammar lets one into a string of given length.
        plain = [i for i, piece in enumerate(vocabulary.pieces)
                 if i not in vocabulary.marks and not any(b < 32 and b not in b"\n\r" for b in piece)]  # fmt: skip
        self._json = words_of(size, plain)
        self._all = words_of(size, range(size))

    def compile(self, grammar: Grammar) -> str:
        """The compiled grammar as text, for `read`. Raises BadGrammar, or MemoryError where a limit is set."""
        compiler = self._compiler
        try:
            match grammar.kind:
                case "json_schema":
                    stand_ins = StandIns(grammar.text)
                    made = _xgrammar().Grammar.from_json_schema(
                        strict_schema(grammar.text, stand_ins), strict_mode=False, max_whitespace_cnt=MOST_WHITESPACE
                    )
                    compiled = compiler.compile_grammar(stand_ins.put_into(str(made)))
                case "regex":
                    pattern = text_pattern(grammar.text, "the regular expression")
                    if isinstance(pattern, Automaton):
                        compiled = compiler.compile_grammar(f"root ::= p0\n{pattern.rules('p', as_rule)}")
                    elif repeats_much(grammar.text):
                        compiled = compiler.compile_regex(pattern)
                    else:
                        compiled = compiler.compile_grammar(f"root ::= {regex_rule(pattern)}")
                case "ebnf":
                    compiled = compiler.compile_grammar(grammar.text)
                case _:
                    stand_ins = StandIns(grammar.text)
                    made = _xgrammar().Grammar.from_structural_tag(tag_with(grammar.text, stand_ins))
                    compiled = compiler.compile_grammar(stand_ins.put_into(str(made)))
            first = np.empty_like(self._all)
            if not _Matcher(_xgrammar().GrammarMatcher(compiled), self._all).allow(first) and not first.any():
                raise BadGrammar("no text of this vocabulary fits the grammar")
            text: str = compiled.serialize_json()
        except BadGrammar:
            raise
        except Exception as error:  # RuntimeError, ValueError, and classes that the binding makes up
            if "bad_alloc" in str(error):
                raise MemoryError from None
            raise BadGrammar(_reason(error)) from None
        return text

    def read(self, text: str, kind: str) -> Compiled:
        """What `compile` gave. Raises ValueError for text of another vocabulary."""
        xgrammar = _xgrammar()
        try:
            compiled = xgrammar.CompiledGrammar.deserialize_json(text, self._info)
        except Exception as error:
            raise ValueError(f"a compiled grammar cannot be read: {_reason(error)}") from None
        allowed = {"json_schema": self._json, "structural_tag": self._all}.get(kind, self._text)
        return _Compiled(compiled, allowed)


def _reason(error: Exception) -> str:
    """`[time] file.cc:12: Check failed: (x) is false: what is wrong` without what tells a client nothing."""
    text = " ".join(str(error).split())
    if text.startswith("["):
        text = text.partition("] ")[2].partition(": ")[2]
    if text.startswith("Check failed"):
        text = text.partition(" is false: ")[2] or text
    if text.startswith("Failed to build the automaton"):  # and then the pattern, as it was rewritten
        text = text.rpartition(": ")[2]
    return text[:500] or type(error).__name__


class _Compiled:
    def __init__(self, compiled: Any, allowed: np.ndarray) -> None:
        self._compiled, self._allowed = compiled, allowed

    def matcher(self, stops: frozenset[int]) -> Matcher:
        allowed = self._allowed
        if stops:
            allowed = allowed & ~words_of(len(allowed) * 32, stops)
        return _Matcher(_xgrammar().GrammarMatcher(self._compiled), allowed)


class _Matcher:
    """Stop tokens are not xgrammar's affair: it would end the answer at one, and refuse to go on or back."""

    def __init__(self, matcher: Any, allowed: np.ndarray) -> None:
        self._matcher, self._allowed = matcher, allowed

    def accept(self, token: int) -> bool:
        words = self._allowed
        return bool(words[token // 32] >> token % 32 & 1) and bool(self._matcher.accept_token(token))

    def accept_bytes(self, data: bytes) -> bool:
        return bool(self._matcher.accept_string(data))

    def take_back(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)

    def allow(self, words: np.ndarray) -> bool:
        self._matcher.fill_next_token_bitmask(words.reshape(1, -1), 0)
        words &= self._allowed
        return bool(self._matcher.is_completed())
