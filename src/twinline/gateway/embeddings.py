"""`POST /v1/embeddings`: texts, or token ids, and the vectors that a model makes of them.

Owns that shape and the shares that a request is cut into. Must not know how a text becomes a vector. All vectors of a
model come from lines of one weights class: those of others would look the same to a client and compare with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import accumulate
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from twinline.gateway.access import Visit
from twinline.gateway.answer import Answer
from twinline.gateway.aside import made
from twinline.gateway.choice import Choice
from twinline.gateway.door import Door, Target
from twinline.gateway.errors import ApiError, bad_request, over_context
from twinline.gateway.exchange import Exchange
from twinline.gateway.judging import named
from twinline.gateway.routing import Ask
from twinline.gateway.sampling import TIMEOUT_HEADER, check_given, check_text, request_name, timeout_of
from twinline.gateway.served import ServedModel
from twinline.gateway.transcript import Piece, TextRules, Transcript
from twinline.gateway.vectors import VectorChoice, VectorPiece, too_many, written
from twinline.lines.protocol import TextSource, VectorRequest

MAX_INPUTS = 2048  # OpenAI's limit
# Of one line at once: enough that an engine has full steps, few enough that several lines share a request.
SHARE_INPUTS, SHARE_TOKENS = 32, 8192
UNSEEN_TOKENS = 2048  # where an engine may show nothing before a share is whole: each that comes says that it lives
WEIGHTS_HEADER = "x-twinline-weights"
NEEDS = frozenset({"embeddings"})
_NO_TEXT = TextSource({}, chat=False)


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """OpenAI's fields, and `priority` and `timeout_s` as in completions."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: Any = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=86400)] | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One text: its token ids, and the text if the client gave that."""

    ids: list[int]
    text: str | None


class Embeddings:
    """Answers such requests; one for all."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def answer(
        self, exchange: Exchange, visit: Visit, request: EmbeddingsRequest, target: Target, body: bytes
    ) -> None:
        """Raises ApiError."""
        served, supply = target.served, target.served.supply
        if not served.embeds:
            raise self._generates(served, visit)
        exchange.warn(["user"] if request.user not in (None, "") else [])
        cut, passed_on = _dimensions(request.dimensions, target)
        given, as_base64 = _given(request.input, served), request.encoding_format == "base64"
        size = cut or passed_on or served.text.vector_size
        if size is not None and (excess := too_many(len(given), size, as_base64=as_base64)):
            raise excess
        inputs = await made(lambda: [_encoded(item, served) for item in given], exchange.body_bytes)
        _check_lengths(inputs, served)
        # A line that cannot shorten vectors may have just this size: what it gives is checked.
        needs = NEEDS if passed_on in (None, served.text.vector_size) else NEEDS | {"dimensions"}
        if inputs[0].text is None:
            needs |= {"token_ids"}
        claim = visit.claim(request.priority)
        timeout = timeout_of(request.timeout_s, exchange.header(TIMEOUT_HEADER))
        tokens = sum(len(item.ids) for item in inputs)
        await self._door.access.admit(visit, tokens, supply.expected_cost(tokens, 0))
        weights = weights_class(target)
        if weights is not None:
            exchange.tell(WEIGHTS_HEADER, sha256(f"{served.name}\0{weights}".encode()).hexdigest()[:16])
        parts = list(shares(inputs, _share_tokens(target, weights)))
        shape = _Whole(request.model, parts, cut, as_base64=as_base64)
        answer = Answer(exchange, self._door.access, visit, served.name, shape, streamed=False)
        name, choices = request_name(exchange.request_id), list[Choice]()
        for index, share in enumerate(parts):
            asked = VectorRequest(
                model=served.name,
                prompt=[token for item in share for token in item.ids],
                request_id=f"{name}-{index}",
                inputs=[item.ids for item in share],
                texts=[item.text for item in share if item.text is not None] or None,
                dimensions=passed_on,
                priority=request.priority or 0,
                timeout_s=timeout,
            )
            ask = Ask(
                prompt_tokens=len(asked.prompt),
                keys=(),
                output_tokens=1,
                needs=needs,
                context=max(len(ids) for ids in asked.inputs),
                key=claim.key,
                named=target.line is not None,
            )
            transcript = Transcript(served.tokenizer, _NO_RULES, None, index)
            choice = VectorChoice(supply, asked, transcript, ask, answer, index, claim, _no_text, target.line)
            choice.kept_to, choice.cut = weights, cut
            choice.texts, choice.as_base64 = len(inputs), as_base64
            if visit.trace is not None:
                choice.trace = visit.trace.of_choice(index, "embeddings")
            choices.append(choice)
        await answer.run(choices)

    def _generates(self, served: ServedModel, visit: Visit) -> ApiError:
        """Why a model gives no vectors, and which do."""
        key = visit.key
        others = [f"`{m.name}`" for m in self._door.models if m.embeds and (key is None or key.allows(m.name))]
        return bad_request(
            f"`{served.name}` generates text and gives no vectors: its lines are not of a model that pools. "
            + (f"Ask {' or '.join(others[:4])}." if others else
               "Serve an embedding model beside it, such as a Qwen3-Embedding folder, under a name of its own."),
            "model",
            "model_generates",
        )  # fmt: skip


_NO_RULES = TextRules()


def _no_text() -> TextSource:
    return _NO_TEXT


def weights_class(target: Target) -> str | None:
    """The class that all vectors come from: of the line that the client named, else of the first by name, whether it is
    up or not, so that every gateway and every moment agree."""
    lines = target.served.supply.lines.values()
    pinned = target.line
    meant = [line for line in lines if line.vectors is not None and (pinned is None or named(line.name, pinned))]
    return min(meant, key=lambda line: line.name).spec.weights_class if meant else None


def _share_tokens(target: Target, weights: str | None) -> int:
    """How many of them a line gets at once, whichever of the class it is."""
    lines = [line for line in target.served.supply.lines.values() if line.spec.weights_class == weights]
    unseen = any(line.vectors is not None and not line.vectors.counted for line in lines)
    return UNSEEN_TOKENS if unseen else SHARE_TOKENS


def shares(inputs: Sequence[Input], most: int = SHARE_TOKENS) -> Iterator[list[Input]]:
    """The inputs in order, in lists that one line gets at once, of `most` tokens or one input."""
    share: list[Input] = []
    tokens = 0
    for item in inputs:
        if share and (len(share) == SHARE_INPUTS or tokens + len(item.ids) > most):
            yield share
            share, tokens = [], 0
        share.append(item)
        tokens += len(item.ids)
    yield share


def _dimensions(asked: int | None, target: Target) -> tuple[int | None, int | None]:
    """To what size vectors are cut here, and what lines are asked to do. Raises ApiError 400 where neither can be."""
    if asked is None:
        return None, None
    served = target.served
    if asked == served.text.vector_size:  # many clients always say it; a remote's own default may be another
        return None, asked
    may = served.text.shorter
    if may is None:
        if any("dimensions" in line.features for line in served.supply.lines.values()):
            return None, asked
        raise bad_request(
            f"`{served.name}` is not known to allow shorter vectors: leave dimensions out, or, if it was trained for "
            'them (Matryoshka), write "is_matryoshka": true or "matryoshka_dimensions": [...] into its config.json.',
            "dimensions",
            "unsupported_parameter",
        )
    if may.sizes and asked not in may.sizes:
        sizes = ", ".join(map(str, may.sizes))
        raise bad_request(f"dimensions {asked} is not one of this model's sizes: {sizes}.", "dimensions")
    return asked, None


def _given(given: str | list[str | int | list[int]], served: ServedModel) -> list[str | list[int]]:
    """The inputs as they were given, each of a length that may fit. Raises ApiError 400."""
    if isinstance(given, str):
        items: list[str | list[int]] = [given]
    elif not given:
        raise bad_request("input is an empty list; at least one text is needed.", "input")
    elif (kinds := set(map(type, given))) == {int}:
        items = [cast(list[int], given)]
    elif kinds in ({str}, {list}):
        items = cast(list[str | list[int]], given)
    else:
        raise bad_request(
            "input is a string, a list of strings, a list of token ids, or a list of such lists.", "input"
        )
    if len(items) > MAX_INPUTS:
        raise bad_request(f"input has {len(items)} texts, at most {MAX_INPUTS} are allowed in one request.", "input")
    for number, item in enumerate(items):
        if not item:
            where = f"input[{number}]" if len(items) > 1 else "input"
            raise bad_request(f"{where} is empty; a text of at least one token is needed.", "input")
        if isinstance(item, str):
            check_text(len(item), served, "input")
        else:
            check_given(item, served, "input")
    return items


def _encoded(item: str | list[int], served: ServedModel) -> Input:
    return Input(served.tokenizer.encode_whole(item), item) if isinstance(item, str) else Input(item, None)


def _check_lengths(inputs: Iterable[Input], served: ServedModel) -> None:
    limit = served.max_model_len
    for number, item in enumerate(inputs):
        count = len(item.ids)
        if not count:
            raise bad_request(f"input[{number}] has no tokens, at least one is needed.", "input")
        if count > limit:
            change = f"shorten it by {count - limit}"
            raise over_context(limit, f"input[{number}] has {count}; {change}", "input")


class _Whole:
    """Gathers the shares. Each is written as it comes, so that no answer's writing keeps others waiting."""

    def __init__(self, model: str, parts: Sequence[Sequence[Input]], cut: int | None, *, as_base64: bool) -> None:
        self._model = model
        self._firsts = list(accumulate(map(len, parts), initial=0))  # of each share, the number of its first text
        self._cut, self._as_base64 = cut, as_base64
        self._size: int | None = None
        self._shares: dict[int, bytes] = {}

    def news(self, piece: Piece) -> bytes:
        """Raises ValueError for vectors that cannot be of this answer: the line's fault, so another is asked."""
        assert isinstance(piece, VectorPiece)
        size = len(piece.vectors[0])
        if self._size not in (None, size):
            raise ValueError(f"vectors of {size // 4} values after others of {(self._size or 0) // 4}")
        self._size = size
        self._shares[piece.index] = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}'
            % (number, written(vector, self._cut, as_base64=self._as_base64))
            for number, vector in enumerate(piece.vectors, self._firsts[piece.index])
        )
        return b""

    def end(self, choices: Sequence[Choice]) -> bytes:
        tokens = sum(choice.prompt_tokens for choice in choices)
        body = BytesIO()  # its value is no copy; and a share is freed when it is in it
        body.write(b'{"object":"list","data":[')
        for index in range(len(choices)):
            body.write(b"," if index else b"")
            body.write(self._shares.pop(index))
        usage = b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        body.write(usage % (msgspec.json.encode(self._model), tokens, tokens))
        return body.getvalue()
