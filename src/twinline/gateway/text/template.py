"""Chat messages to a prompt, by the template that the model folder brings.

Owns choosing the template, OpenAI's message shapes, and the one begin token of a rendered prompt. Must not know what
the template says (that is found out in `calls/`), nor read anything from the model's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError

from twinline.gateway.text.calls.formats import CallFormat, detect
from twinline.gateway.text.calls.history import HistoryStyle, with_one_system, with_tools_inside, with_tools_told
from twinline.gateway.text.folder import ModelFolder, read_text
from twinline.gateway.text.sandbox import compile_template
from twinline.gateway.text.tokenizer import Tokenizer

# Marks where the last message ends in the rendered prompt; its last character shows whether the template trims.
_END_MARK = "END_OF_THE_MESSAGE_TO_CONTINUE "

# What an expression in a template raises when the messages do not fit it, beside Jinja's own errors.
_MISFITS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


class NoChatTemplate(ValueError):
    """The model folder has no chat template: the model completes text but does not chat."""


class ChatTemplate:
    """One model's chat template, compiled. `calls` is the format in which its model calls tools, if one is known."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources`: Jinja text by name, `default` and perhaps `tool_use`. `special_tokens`: `bos_token`, ... to text.

        Raises ValueError for a template that is not valid Jinja.
        """
        self._templates = {name: compile_template(source) for name, source in sources.items()}
        self._special = dict(special_tokens)
        self.calls: CallFormat | None = detect(sources.values())
        self._history = HistoryStyle.of(self._rendered)

    @classmethod
    def load(cls, directory: str | Path) -> ChatTemplate:
        """Raises NoChatTemplate (a ValueError) if the folder has none, ValueError if a file is missing or corrupt."""
        folder = ModelFolder.read(Path(directory))
        sources = _sources(folder)
        if not sources:
            raise NoChatTemplate(
                f"{folder.path} has no chat template, and chat needs one: use /v1/completions, "
                "or add chat_template.jinja to the model folder"
            )
        return cls(sources, folder.named_tokens())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt's text. `kwargs` are the template's own switches, such as `thinking`.

        Tools that the template does not list are told behind the system prompt, in the words of `calls`.
        `continue_final_message`: the prompt ends with the last message, left open, in place of a generation prompt.
        Raises ValueError with the template's message for messages that it refuses.
        """
        try:
            chat = self._history.rewritten([_plain(message) for message in messages])
            if self._history.one_system:
                chat = with_one_system(chat)
            if tools and self._history.tools_inside:
                chat = with_tools_inside(chat, tools)
            elif tools and self.calls is not None and not self._history.lists_tools:
                chat = with_tools_told(chat, self.calls.describe(tools))
        except RecursionError as error:
            raise ValueError("tools or arguments of calls are nested too deeply") from error
        text = _mark_end(chat) if continue_final_message else ""
        opening = add_generation_prompt and not continue_final_message
        rendered = self._rendered(chat, tools, opening, kwargs)
        return _cut_at_mark(rendered, text) if continue_final_message else rendered

    def _rendered(
        self,
        chat: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        opening: bool = False,
        switches: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        values = {
            "documents": None,
            **self._special,
            **switches,
            "messages": chat,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": opening,
        }
        try:
            return self._choose(bool(tools)).render(values)
        except TemplateError as error:
            raise ValueError(str(error) or "the chat template refuses these messages") from error
        except _MISFITS as error:
            raise ValueError(f"the chat template does not fit these messages: {error}") from error

    def _choose(self, with_tools: bool) -> Template:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            names = ", ".join(sorted(self._templates))
            raise ValueError(f"the model has no default chat template, only: {names}")
        return self._templates[name]


def encode_prompt(tokenizer: Tokenizer, rendered: str) -> list[int]:
    """Token ids of a rendered prompt; nothing is added, for the template writes its special tokens itself.

    Raises ValueError if the prompt begins with two begin tokens (deepseek-ai/DeepSeek-R1#151).
    """
    ids = tokenizer.encode(rendered, special=False)
    if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id, tokenizer.bos_id]:
        raise ValueError(
            f"the prompt begins with {tokenizer.token(tokenizer.bos_id)} twice: the chat template writes it already, "
            "so leave it out of the first message"
        )
    return ids


def _sources(folder: ModelFolder) -> dict[str, str]:
    """Templates by name. As in transformers, chat_template.jinja goes before tokenizer_config.json."""
    file = folder.path / "chat_template.jinja"
    if file.exists():
        return {"default": read_text(file)}
    match folder.tokenizer_config.get("chat_template"):
        case None | "" | []:
            return {}
        case str(source):
            return {"default": source}
        case [*entries] if all(_is_named(entry) for entry in entries):
            return {entry["name"]: entry["template"] for entry in entries}
    raise ValueError(f"{folder.path}: chat_template must be a string or a list of objects with name and template")


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose content is a string, or None beside calls (templates ask `is none`); and no list of no calls: a
    template may take it for calls, or None for a text."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a message must be an object, not {type(message).__name__}")
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = text_of(content)
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"a message's content must be a string or a list of parts, not {type(content).__name__}")
    plain = {**message, "content": content}
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
        plain["content"] = content or ""
    return plain


def text_of(parts: Iterable[object]) -> str:
    """The text of a message that has it in parts, each from a line of its own, as vLLM and llama.cpp put them. Raises
    ValueError for parts that are no text."""
    return "\n".join(map(_part_text, parts))


def _part_text(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text":
        raise ValueError(f"content parts of type {kind} are not supported, only text")
    if not isinstance(text, str):
        raise ValueError("a content part of type text must have a text")
    return text


def _mark_end(chat: list[dict[str, Any]]) -> str:
    """Marks the end of the last message, in place; returns its text."""
    text: str | None = chat[-1]["content"] if chat else None
    if text is None:
        raise ValueError("continue_final_message needs a last message with content")
    chat[-1]["content"] = text + _END_MARK
    return text


def _cut_at_mark(rendered: str, text: str) -> str:
    at = rendered.rfind(_END_MARK.strip())
    if at < 0 or text.strip() not in rendered:
        raise ValueError("continue_final_message is not possible: the chat template alters the last message")
    kept = rendered[:at]
    return kept if rendered.startswith(_END_MARK, at) else kept.rstrip()
