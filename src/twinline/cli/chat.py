"""`twinline chat`: a conversation in the terminal, or one question and its answer.

Owns the conversation and its display. Speaks to any OpenAI endpoint; must not know what runs behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from twinline.cli.client import Server, base_url
from twinline.cli.parser import DEFAULT_URL, CliError, add_server, integer
from twinline.cli.terminal import harmless

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="ask this, print the answer and exit")
    add_server(parser)
    parser.add_argument("--model", metavar="M", help="default: the one that is served")
    parser.add_argument("--system", metavar="S", help="a system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the server's")
    parser.add_argument("--max-tokens", type=integer(1), metavar="N", help="limit of an answer, reasoning included")
    parser.add_argument("--no-thinking-display", action="store_true", help="do not show the reasoning")


class Display:
    """Shows reasoning and answer as they come. Piped output is the answer alone, as it is: reasoning then goes to
    stderr."""

    def __init__(self, show_thinking: bool):
        self.tty = sys.stdout.isatty()
        self.show_thinking = show_thinking
        self.thinking_to: TextIO = sys.stdout if self.tty else sys.stderr
        self.dim = (DIM, PLAIN) if self.thinking_to.isatty() and "NO_COLOR" not in os.environ else ("", "")
        self.thinking = False

    def think(self, text: str) -> None:
        if not self.show_thinking:
            return
        if not self.thinking:
            self.thinking = True
            print(self.dim[0], end="", file=self.thinking_to)
            text = text.lstrip("\n")
        print(harmless(text), end="", file=self.thinking_to, flush=True)

    def answer(self, text: str) -> None:
        self.end_thinking()
        print(harmless(text) if self.tty else text, end="", flush=True)

    def end_thinking(self) -> None:
        if self.thinking:
            self.thinking = False
            print(self.dim[1], file=self.thinking_to, flush=True)

    def close(self) -> None:
        self.end_thinking()
        print(flush=True)


class Conversation:
    """What was said, reasoning left out: models of this family are not shown their earlier reasoning again."""

    def __init__(self, server: Server, args: argparse.Namespace):
        self.server = server
        self.options: dict[str, Any] = {"model": args.model or server.only_model(), "stream": True}
        for name in ("temperature", "max_tokens"):
            if getattr(args, name) is not None:
                self.options[name] = getattr(args, name)
        self.system = [{"role": "system", "content": args.system}] if args.system else []
        self.show_thinking = not args.no_thinking_display
        self.messages: list[dict[str, str]] = []

    def clear(self) -> None:
        self.messages = []

    def ask(self, question: str) -> None:
        """Shows the answer as it comes. What was said of it stays in the conversation, however it ended."""
        display, said, cut = Display(self.show_thinking), "", False
        asked = [*self.messages, {"role": "user", "content": question}]
        body = {**self.options, "messages": [*self.system, *asked]}
        events = self.server.stream("/chat/completions", body)
        try:
            for kind, text in pieces(events):
                if kind == "answer":
                    text = text if said else text.lstrip("\n")
                    said += text
                    display.answer(text)
                elif kind == "cut":
                    cut = True
                else:
                    display.think(text)
        finally:
            display.close()
            if cut:
                print("(cut off: the answer has all the tokens that it may have)", file=sys.stderr)
            if said:
                self.messages = [*asked, {"role": "assistant", "content": said}]


def pieces(events: Iterator[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """`("thinking" | "answer", text)` of a streamed chat completion, and `("cut", "")` if it has come to its limit."""
    with contextlib.closing(events):  # type: ignore[type-var]
        for event in events:
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                    yield "thinking", thought
                if text := delta.get("content"):
                    yield "answer", text
                if choice.get("finish_reason") == "length":
                    yield "cut", ""


def run(args: argparse.Namespace) -> int:
    conversation = Conversation(Server(base_url(args.url or DEFAULT_URL), args.api_key), args)
    if args.prompt:
        conversation.ask(" ".join(args.prompt))
        return 0
    return converse(conversation)


def converse(conversation: Conversation) -> int:
    """Reads questions until the input ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # gives input() editing and history

            readline.parse_and_bind("set enable-bracketed-paste on")  # off, each line pasted would be a question
        print(harmless(f"{conversation.options['model']} at {conversation.server.base}. {HELP}."))
    while True:
        try:
            question = input("> " if interactive else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if question == "/exit":
            return 0
        if question == "/clear":
            conversation.clear()
        elif question.startswith("/") and " " not in question:
            print(HELP)
        elif question:
            try:
                conversation.ask(question)
            except KeyboardInterrupt:
                print("(stopped)", file=sys.stderr)
            except CliError as exc:
                if not interactive:
                    raise
                print(f"twinline: error: {exc}", file=sys.stderr)
