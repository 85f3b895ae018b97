"""From a client's fields to what a line is asked for: defaults, limits, and the rules that join several fields.

Owns the meaning of sampling fields. Must not know text beyond stop strings, nor how an answer is shaped.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from operator import attrgetter
from typing import Any

from twinline.gateway.api_types import IGNORED, MAX_STOPS, NOT_SUPPORTED, Common
from twinline.gateway.errors import ApiError, bad_request, beyond, over_context
from twinline.gateway.grammar import grammar_of
from twinline.gateway.served import ServedModel
from twinline.gateway.transcript import TextRules
from twinline.lines.protocol import Grammar, TokenRequest

TIMEOUT_HEADER = "x-request-timeout-s"
NOTHING: frozenset[str] = frozenset()
NOTHING_KEPT: frozenset[int] = frozenset()
_SEEDS = 2**63
_prefix = secrets.token_hex(4)
_numbers = count(1)
_PLAIN = TextRules()
_random = random.Random(secrets.randbits(128))  # seeds need to differ, not to be secret
# Of a prompt, for each token of the context. Text has 1 to 6, deep indentation 10; only blanks and rulers, of which
# a token holds up to 128, have more. Tokenizing takes 330 bytes a character: what cannot be served must not get them.
MOST_CHARACTERS = 32


class Plan:
    """What every choice of a request shares; `for_choice` makes the line's request from it.

    `fields` are TokenRequest's but for the prompt. `needs`: features that a line must have.
    """

    __slots__ = ("fields", "max_tokens", "min_tokens", "needs", "request_id", "rules", "seed")

    def __init__(self, fields: dict[str, Any], request_id: str, seed: int, rules: TextRules, needs: frozenset[str]):
        self.fields = fields
        self.request_id = request_id
        self.seed = seed
        self.rules = rules
        self.needs = needs
        self.max_tokens: int = fields["max_tokens"]
        self.min_tokens: int = fields["min_tokens"]

    def for_choice(self, prompt: list[int], index: int, seed_step: int) -> TokenRequest:
        return TokenRequest(
            prompt=prompt,
            request_id=f"{self.request_id}-{index}",
            seed=(self.seed + seed_step) % _SEEDS,
            **self.fields,
        )


def plan(
    request: Common,
    served: ServedModel,
    *,
    request_id: str,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    timeout_header: str | None = None,
    keep: frozenset[int] = NOTHING_KEPT,
    around_answer: tuple[str, str] = ("", ""),
    calls: Callable[[str | None], str | None] | None = None,
) -> Plan:
    """`keep`: special tokens that are shown. `around_answer`: as `text.reasoning` has it. `calls`: the
    structural tag that an answer with tools is held to, if any, by the JSON schema of what is no call. Raises ApiError
    400 for fields that do not fit the model or each other.
    """
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise bad_request(f"min_tokens {min_tokens} is more than max_tokens {max_tokens}.", "min_tokens")
    if request.prompt_logprobs is not None and request.stream:
        raise bad_request("prompt_logprobs are not streamed; ask with stream false.", "prompt_logprobs")
    defaults = served.defaults
    ignore_eos = bool(request.ignore_eos)
    stop_ids = [] if ignore_eos else served.tokenizer.eos_list
    if request.stop_token_ids:
        stop_ids = sorted({*_token_ids(request.stop_token_ids, served.vocab_size, "stop_token_ids"), *stop_ids})
    grammar, features = grammar_of(request, around_answer)
    if calls is not None:
        form = grammar.text if grammar is not None and grammar.kind == "json_schema" else None
        if (tag := calls(form)) is not None:
            if grammar is not None and form is None:
                raise bad_request("tool_choice and a form of the answer exclude each other.", "tool_choice")
            grammar = Grammar("structural_tag", tag, *around_answer)
    fields: dict[str, Any] = {
        "model": served.name,  # each line is asked under the name that it knows
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": defaults.temperature if request.temperature is None else request.temperature,
        "top_p": defaults.top_p if request.top_p is None else request.top_p,
        "top_k": defaults.top_k if request.top_k is None else max(0, request.top_k),
        "min_p": defaults.min_p if request.min_p is None else request.min_p,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "repetition_penalty": (
            defaults.repetition_penalty if request.repetition_penalty is None else request.repetition_penalty
        ),
        "logit_bias": _logit_bias(request.logit_bias, served.vocab_size) if request.logit_bias else {},
        "stop_token_ids": stop_ids,
        "ignore_eos": ignore_eos,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "grammar": grammar,
        "priority": request.priority or 0,
        "timeout_s": timeout_of(request.timeout_s, timeout_header),
    }
    rules = _PLAIN
    include_stop, skip_special = bool(request.include_stop_str_in_output), request.skip_special_tokens is not False
    if request.stop is not None or include_stop or not skip_special or keep:
        rules = TextRules(stop_strings(request.stop), include_stop, skip_special, keep)
    # Always keyed: a stream that moves to another line must draw the same noise there.
    needs = needs_of(fields) | _passed_on(request) | features
    return Plan(fields, request_name(request_id), _seed(request), rules, needs)


def again(plan: Plan, request: Common, max_tokens: int, request_id: str) -> Plan:
    """The plan of another request with the same fields."""
    fields = plan.fields if plan.max_tokens == max_tokens else plan.fields | {"max_tokens": max_tokens}
    return Plan(fields, request_name(request_id), _seed(request), plan.rules, plan.needs)


def _seed(request: Common) -> int:
    return _random.getrandbits(63) if request.seed is None else request.seed % _SEEDS


def request_name(request_id: str) -> str:
    """A name for the lines: clients reuse theirs, a line refuses two of one name."""
    return f"{request_id}-{_prefix}{next(_numbers):x}"


def needs_of(fields: Mapping[str, Any]) -> frozenset[str]:
    """Features (`lines/drivers/driver.py`) that a line must have for a request with these fields."""
    logprobs, prompt_logprobs = fields["logprobs"], fields["prompt_logprobs"]
    if logprobs is None and prompt_logprobs is None and not fields["logit_bias"]:
        return NOTHING
    asked = {
        "logprobs": logprobs is not None,
        "prompt_logprobs": prompt_logprobs is not None,
        "logit_bias": bool(fields["logit_bias"]),
    }
    return frozenset(feature for feature, is_asked in asked.items() if is_asked)


def _passed_on(request: Common) -> frozenset[str]:
    """What the client's own words ask for. A model folder's defaults ask for nothing: a remote has its own."""
    features = set()
    if request.truncate_prompt_tokens is not None or getattr(request, "add_special_tokens", None) is False:
        features.add("token_ids")  # a line that takes text would be given all of it
    if request.top_k or request.min_p or request.min_tokens or request.repetition_penalty not in (None, 1):
        features.add("sampling")
    choice = getattr(request, "tool_choice", None)
    if getattr(request, "tools", None) and choice != "none":
        features.add("tools")
        if choice not in (None, "auto"):
            features.add("tool_choice")
    return frozenset(features) if features else NOTHING


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise bad_request(f"stop has {len(stops)} strings, at most {MAX_STOPS} are allowed.", "stop")
    if not all(stops):
        raise bad_request("A stop string must not be empty.", "stop")
    return stops


def check_text(characters: int, served: ServedModel, param: str) -> None:
    """Refuses a text that is too long before minutes and gigabytes are spent on tokenizing it. Raises ApiError 400."""
    if characters > MOST_CHARACTERS * served.max_model_len:
        told = f"the prompt is too long: its {characters} characters are more than {MOST_CHARACTERS} for each of them"
        raise over_context(served.max_model_len, told, param)


def readable(text: str, served: ServedModel, param: str, cut: int | None) -> str:
    """What of a text is tokenized: all of it or, where its prompt will be `cut`, an end that has all that can be left.
    Raises ApiError 400."""
    if cut is not None:
        return text[-MOST_CHARACTERS * served.max_model_len :]
    check_text(len(text), served, param)
    return text


def check_given(ids: list[int], served: ServedModel, param: str) -> None:
    """Of a client's own token ids. Raises ApiError 400 if there are none, or one that the model does not have."""
    check_some(ids, param)
    _token_ids(ids, served.vocab_size, param)


def check_some(ids: list[int], param: str) -> None:
    """Of a prompt that the model's tokenizer made, whose ids are the model's. Raises ApiError 400 if it is empty."""
    if not ids:
        raise bad_request("The prompt has no tokens, at least one is needed.", param)


def room(prompt_tokens: int, wanted: int | None, served: ServedModel, param: str) -> int:
    """Output tokens that `wanted` (None: all that fit) allows. Raises ApiError 400 when the context is too short."""
    limit = served.max_model_len
    left = limit - prompt_tokens
    if left < (1 if wanted is None else wanted):
        if left >= 1:
            change = f"lower max_tokens to {left} or shorten the prompt by {(wanted or 1) - left} tokens"
        else:
            change = f"shorten the prompt by at least {1 - left} tokens"
        raise over_context(limit, f"{beyond(prompt_tokens, wanted or 1, limit)}; {change}", param)
    return left if wanted is None else wanted


def _token_ids(ids: list[int], vocab_size: int, param: str) -> list[int]:
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise bad_request(f"Token id {wrong} is outside the model's vocabulary of {vocab_size} tokens.", param)
    return ids


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[str, float]:
    if len(given) > vocab_size:
        raise bad_request(f"logit_bias has {len(given)} entries, more than the model has tokens.", "logit_bias")
    bias = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 12):
            raise bad_request(f"logit_bias has the key {name!r}, which is not a token id.", "logit_bias")
        _token_ids([int(name)], vocab_size, "logit_bias")
        bias[str(int(name))] = value
    return bias


def timeout_of(field: float | None, header: str | None) -> float | None:
    """Seconds that a request may take, by its field or else its header. Raises ApiError 400."""
    if header is None or field is not None:
        return field
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise bad_request(
            f"The header {TIMEOUT_HEADER} must be seconds between 0 and 86400, not {header!r}.", "timeout_s"
        )
    return seconds


_unsupported, _ignored = attrgetter(*NOT_SUPPORTED), attrgetter(*IGNORED)
_UNSET, _NONE_IGNORED = (None,) * len(NOT_SUPPORTED), (None,) * len(IGNORED)


def asked_of(fields: Mapping[str, tuple[object, ...]], values: Iterable[object]) -> list[str]:
    """Names of the fields whose values ask for something."""
    pairs = zip(fields.items(), values, strict=True)
    return [name for (name, harmless), value in pairs if value not in (None, [], *(harmless or (False,)))]


def ignored(request: Common) -> list[str]:
    """Names of the fields that the client set and nothing here acts upon."""
    values = _ignored(request)
    return [] if values == _NONE_IGNORED else asked_of(IGNORED, values)


def truncated(ids: list[int], asked: int | None, wanted: int | None, served: ServedModel) -> list[int]:
    """The last `asked` token ids of a prompt; -1 asks for as many as leave room for the `wanted` output tokens."""
    if asked is None:
        return ids
    most = max(1, served.max_model_len - (wanted or 1)) if asked < 0 else asked
    if most == 0:
        raise bad_request("truncate_prompt_tokens 0 leaves no prompt.", "truncate_prompt_tokens")
    return ids[-most:]


def refuse_unsupported(request: Common, fields: dict[str, bool]) -> None:
    """Raises ApiError 400 for the first field that is set: of `fields`, or of those that no endpoint has yet."""
    named = [name for name, is_set in fields.items() if is_set]
    values = _unsupported(request)
    if values != _UNSET:
        named += asked_of(NOT_SUPPORTED, values)
    if named:
        raise ApiError(400, f"{named[0]} is not supported yet.", param=named[0], code="unsupported_parameter")
