"""How a request goes on where another line stopped, on an engine that knows no `output_prefix_ids`.

Owns what is carried over and how: the tokens generated so far become prompt, and what the engine would have counted
over them is asked for in other words. Must not know any engine's field names.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import msgspec

from twinline.lines.protocol import Grammar, TokenRequest

SEED_BITS = 31  # the narrowest seed field among the engines: llama.cpp's is 32 bits, all ones meaning "any"


def resumed(request: TokenRequest, *, penalties: bool = True, same_noise: bool = False) -> TokenRequest:
    """`request` without `output_prefix_ids`; the same object if it has none. Raises ValueError if nothing is left.

    For k tokens generated elsewhere: prompt + prefix, max_tokens - k, min_tokens - k, and a seed that depends on k,
    since an engine whose generator starts over would repeat its first draws. `same_noise`: the engine's noise is a
    function of seed and position, so the seed stays.

    `penalties`: the engine counts frequency and presence over its own output only. The frequency of the prefix is then
    carried as a bias of -frequency_penalty x count per token, which is exact. So is presence_penalty, until a
    token of the prefix comes again: then the engine takes it off a second time (`approximated` says so).
    """
    prefix = request.output_prefix_ids
    k = len(prefix)
    if not k:
        return request
    if request.max_tokens <= k:
        raise ValueError(f"max_tokens is {request.max_tokens} and {k} tokens are generated: nothing is left to do")
    biases = request.logit_bias
    if penalties and (request.frequency_penalty or request.presence_penalty):
        biases = dict(biases)
        for token, count in Counter(prefix).items():
            penalty = request.frequency_penalty * count + request.presence_penalty
            biases[str(token)] = biases.get(str(token), 0.0) - penalty
    return msgspec.structs.replace(
        request,
        prompt=request.prompt + prefix,
        output_prefix_ids=[],
        max_tokens=request.max_tokens - k,
        min_tokens=max(0, request.min_tokens - k),
        seed=request.seed if same_noise else continued_seed(request.seed, k),
        logit_bias=biases,
        prompt_logprobs=None,  # the first line has sent them
    )


def refuse_grammar(grammar: Grammar, goes_on: bool, *, reasoning: bool) -> None:
    """Raises ValueError for a grammar that the engine would not keep to: it begins with an answer, not in the middle.

    `goes_on`: the answer was begun elsewhere. `reasoning`: the engine lets a model's reasoning pass first.
    """
    if goes_on:
        raise ValueError("grammar: the engine would begin it anew in the middle of an answer")
    if grammar.after and not grammar.opener and not reasoning:
        raise ValueError(
            "grammar: the engine would hold the model's reasoning to it, unless it is vLLM started with "
            "options: {reasoning_parser: ...}"
        )


def continued_seed(seed: int, k: int) -> int:
    """A seed for the draws after k tokens: a hash of both, so that every line derives the same one."""
    digest = hashlib.blake2b(f"{seed}/{k}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - SEED_BITS)


def approximated(request: TokenRequest) -> str | None:
    """What of `request` a continuation by `resumed` meets only nearly, or None."""
    if request.presence_penalty:
        return "presence_penalty: a token from before the move that comes again is penalised twice"
    if request.frequency_penalty and request.repetition_penalty != 1.0:
        return "frequency_penalty: the part carried as a bias is scaled by repetition_penalty"
    return None
