"""Log-probabilities in the shapes clients know: chat's list of tokens, the legacy completions' four lists, and vLLM's
of a prompt.

Owns how a token is written there. Must not know requests or streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinline.gateway.api_types import (
    ChatLogprob,
    ChatLogprobs,
    LegacyLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from twinline.gateway.errors import ApiError
from twinline.gateway.text.detokenize import Detokenizer
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines.wire import TokenLogprob


def shown(data: bytes) -> str:
    """A token's text; one that is only part of a character is written by its bytes, as OpenAI does."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], alternatives: int) -> ChatLogprobs:
    content = []
    for entry in entries:
        data = tokenizer.token_bytes(entry.token)
        tops = []
        for token, logprob in entry.top[:alternatives]:
            top = tokenizer.token_bytes(token)
            tops.append(TopLogprob(shown(top), logprob, list(top)))
        content.append(ChatLogprob(shown(data), entry.logprob, list(data), tops))
    return ChatLogprobs(content)


def checked(entries: Sequence[TokenLogprob | None] | None, prompt_tokens: int) -> Sequence[TokenLogprob | None]:
    """A line's log-probabilities of a prompt. Raises ApiError 502 if they are not there or not the prompt's."""
    if entries is None or len(entries) != prompt_tokens:
        raise ApiError(502, "The line sent no log-probabilities of the prompt.", code="line_broken")
    return entries


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None], alternatives: int) -> PromptLogprobs:
    """Each token of a prompt and the likeliest alternatives at its place, by token id."""
    written: PromptLogprobs = []
    for entry in entries:
        if entry is None:
            written.append(None)
            continue
        row = {
            str(token): PromptLogprob(logprob, rank, shown(tokenizer.token_bytes(token)))
            for rank, (token, logprob) in enumerate(entry.top[:alternatives], 1)
        }
        own = row.pop(str(entry.token), None)
        rank = entry.rank if entry.rank is not None else None if own is None else own.rank
        row[str(entry.token)] = PromptLogprob(entry.logprob, rank, shown(tokenizer.token_bytes(entry.token)))
        written.append(row)
    return written


class LegacyWriter:
    """Writes `tokens`, `token_logprobs`, `top_logprobs` and `text_offset`; offsets go on from call to call."""

    def __init__(self, tokenizer: Tokenizer, alternatives: int, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._text = Detokenizer(tokenizer, skip_special, opening=False)
        self._offset = 0

    def write(self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None]) -> LegacyLogprobs:
        """Of generated tokens; special ones have no text when they are skipped."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._text.push((token,)))
        return self._lists(tokens, entries, offsets)

    def write_prompt(
        self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None], text: str, hidden: int
    ) -> LegacyLogprobs:
        """Of a prompt echoed as `text`, which does not show its first `hidden` tokens; generated tokens follow it."""
        seen = Detokenizer(self._tokenizer, skip_special=False)
        offsets = [0] * hidden
        offset = 0
        for token in tokens[hidden:]:
            offsets.append(offset)
            offset += len(seen.push((token,)))
        self._offset = len(text)
        return self._lists(tokens, entries, offsets)

    def _lists(
        self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None], offsets: list[int]
    ) -> LegacyLogprobs:
        return LegacyLogprobs(
            [shown(self._tokenizer.token_bytes(token)) for token in tokens],
            [None if entry is None else entry.logprob for entry in entries],
            [None if entry is None else self._top(entry) for entry in entries],
            offsets,
        )

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The alternatives and the token itself, likeliest first.

        Two ids may share a text; the likelier keeps it, so that a token that was not the likeliest never seems to be.
        """
        top: dict[str, float] = {}
        own = (entry.token, entry.logprob)
        for token, logprob in sorted({*entry.top[: self._alternatives], own}, key=lambda pair: -pair[1]):
            top.setdefault(shown(self._tokenizer.token_bytes(token)), logprob)
        return top


def joined(parts: Sequence[LegacyLogprobs]) -> LegacyLogprobs:
    """Several stretches as one."""
    return LegacyLogprobs(
        [token for part in parts for token in part.tokens],
        [logprob for part in parts for logprob in part.token_logprobs],
        [top for part in parts for top in part.top_logprobs],
        [offset for part in parts for offset in part.text_offset],
    )
