"""The problems of the embedded model: questions with a worked thought and a checkable answer.

Owns what `tiny-r1` is taught and examined on, in English and Chinese. Knows no model, no tokenizer and no
torch: training draws from it, verification examines with it. A held-out tenth of all questions (by a checksum of
the question) is never trained on, so an examination asks what the model has not seen.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from twinline.verify import phrases as say


@dataclass(frozen=True, slots=True)
class Problem:
    kind: str
    lang: str
    question: str
    thought: str
    answer: str

    @property
    def held_out(self) -> bool:
        """True for the tenth of all questions that is kept for examination."""
        return zlib.crc32(self.question.encode()) % 10 == 0

    def solved_by(self, reply: str) -> bool:
        """Whether `reply` (the text after the reasoning) gives the answer, and nothing else."""
        return reply.strip() == self.answer


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** rng.randint(1, digits))


def _columns(a: int, b: int) -> Iterator[tuple[int, int]]:
    for place in range(len(str(max(a, b)))):
        yield a // 10**place % 10, b // 10**place % 10


def _padded(a: int, sign: str, b: int) -> str:
    width = len(str(max(a, b)))
    return f"{a:0{width}d}{sign}{b:0{width}d}"


def work_add(a: int, b: int) -> str:
    """Column addition from the right: `digit+digit+carry=carry digit`, then the sum."""
    lines, carry = [_padded(a, "+", b)], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return "\n".join([*lines, f"={a + b}"])


def work_subtract(a: int, b: int) -> str:
    """Column subtraction; `b7` is a borrow and the digit 7. A negative result swaps first."""
    lines = [_padded(a, "-", b)]
    if a < b:
        lines += [_compare_digits(*lines[0].split("-")), f"-({_padded(b, '-', a)})"]
    borrow = 0
    for x, y in _columns(max(a, b), min(a, b)):
        digit = x - y - borrow
        lines.append(f"{x}-{y}-{borrow}={'b' if digit < 0 else '0'}{digit % 10}")
        borrow = int(digit < 0)
    return "\n".join([*lines, f"={a - b}"])


def work_multiply(a: int, k: int) -> str:
    """Column multiplication by one digit: `digit*k+carry=carry digit`, then the product."""
    lines, carry = [f"{a}*{k}"], 0
    for x in map(int, reversed(str(a))):
        total = x * k + carry
        lines.append(f"{x}*{k}+{carry}={total:02d}")
        carry = total // 10
    return "\n".join([*lines, f"={a * k}"])


def _compare_digits(a: str, b: str) -> str:
    """Digit by digit from the left until two differ: `9=9 8>1`."""
    seen = []
    for x, y in zip(a, b, strict=True):
        if x == ".":
            continue
        seen.append(f"{x}{'<' if x < y else '>' if x > y else '='}{y}")
        if x != y:
            break
    return " ".join(seen)


def _align(a: str, b: str) -> tuple[str, str]:
    """Zeros before and behind, so that both numbers have the same places."""
    (ai, _, af), (bi, _, bf) = a.partition("."), b.partition(".")
    whole, part = max(len(ai), len(bi)), max(len(af), len(bf))

    def pad(i: str, f: str) -> str:
        return i.rjust(whole, "0") + ("." + f.ljust(part, "0") if part else "")

    return pad(ai, af), pad(bi, bf)


def add(rng: random.Random, lang: str) -> Problem:
    a, b = _number(rng, 5), _number(rng, 5)
    return Problem("add", lang, rng.choice(say.ADD[lang]).format(a=a, b=b), work_add(a, b), str(a + b))


def subtract(rng: random.Random, lang: str) -> Problem:
    a, b = _number(rng, 5), _number(rng, 5)
    if a < b and rng.random() < 0.6:
        a, b = b, a
    return Problem("subtract", lang, rng.choice(say.SUBTRACT[lang]).format(a=a, b=b), work_subtract(a, b), str(a - b))


def multiply(rng: random.Random, lang: str) -> Problem:
    a, k = _number(rng, 4), rng.randrange(10)
    first, second = (a, k) if rng.random() < 0.8 else (k, a)
    question = rng.choice(say.MULTIPLY[lang]).format(a=first, b=second)
    return Problem("multiply", lang, question, work_multiply(a, k), str(a * k))


def _decimal(rng: random.Random, whole: int) -> str:
    places = rng.randint(1, 3)
    return f"{whole}.{rng.randrange(10**places):0{places}d}"


def compare(rng: random.Random, lang: str) -> Problem:
    if rng.random() < 0.5:
        a, b = str(_number(rng, 5)), str(_number(rng, 5))
        if rng.random() < 0.3:
            b = str(max(0, int(a) + rng.randint(-12, 12)))
    else:
        whole = _number(rng, 2)
        a = _decimal(rng, whole)
        b = _decimal(rng, whole if rng.random() < 0.7 else _number(rng, 2))
        if rng.random() < 0.15:
            b = str(whole)
    larger = rng.random() < 0.65
    question = rng.choice((say.LARGER if larger else say.SMALLER)[lang]).format(a=a, b=b)
    x, y = _align(a, b)
    answer = say.EQUAL[lang] if x == y else (a if (x > y) == larger else b)
    return Problem("compare", lang, question, f"{x} {y}\n{_compare_digits(x, y)}\n={answer}", answer)


def order(rng: random.Random, lang: str) -> Problem:
    digits = rng.choice((1, 2, 2, 3))
    numbers = rng.sample(range(10**digits), rng.randint(3, 4 if digits == 3 else 5))
    ascending = rng.random() < 0.6
    listed = (", " if lang == "en" else "，").join(map(str, numbers))
    question = rng.choice((say.ASCENDING if ascending else say.DESCENDING)[lang]).format(list=listed)
    width = len(str(max(numbers)))
    left, lines = [f"{n:0{width}d}" for n in numbers], []
    lines.append(" ".join(left))
    while len(left) > 1:
        chosen = min(left) if ascending else max(left)
        left.remove(chosen)
        lines.append(f"{chosen}: {' '.join(left)}")
    answer = ", ".join(map(str, sorted(numbers, reverse=not ascending)))
    return Problem("order", lang, question, "\n".join(lines), answer)


def letters(rng: random.Random, lang: str) -> Problem:
    if rng.random() < 0.3:
        word = rng.choice(say.WORDS)
    else:
        word = "".join(rng.choice("aeiou" if i % 2 else say.CONSONANTS) for i in range(rng.randint(3, 9)))
        word = "".join(c * (2 if rng.random() < 0.12 else 1) for c in word)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    question = rng.choice(say.LETTERS[lang]).format(letter=letter, word=word)
    lines, count = [letter], 0
    for c in word:
        count += c == letter
        lines.append(f"{c}{count}")
    return Problem("letters", lang, question, " ".join(lines) + f"\n={count}", str(count))


def story(rng: random.Random, lang: str) -> Problem:
    """Two steps, told as a story: the first result feeds the second."""
    form = rng.choice(tuple(say.STORIES[lang]))
    a, b, c, k = _number(rng, 3), _number(rng, 2), _number(rng, 2), rng.randint(2, 9)
    if form == "add-subtract":
        c = min(c, a + b)
        thought, answer = f"{work_add(a, b)}\n{work_subtract(a + b, c)}", a + b - c
    elif form == "subtract-add":
        b = min(a, b)
        thought, answer = f"{work_subtract(a, b)}\n{work_add(a - b, c)}", a - b + c
    elif form == "multiply-subtract":
        a = _number(rng, 2)
        c = min(c, a * k)
        thought, answer = f"{work_multiply(a, k)}\n{work_subtract(a * k, c)}", a * k - c
    else:
        a = _number(rng, 2)
        thought, answer = f"{work_multiply(a, k)}\n{work_add(a * k, c)}", a * k + c
    who, thing = rng.choice(say.NAMES[lang]), rng.choice(say.THINGS[lang])
    question = rng.choice(say.STORIES[lang][form]).format(who=who, thing=thing, a=a, b=b, c=c, k=k)
    return Problem("story", lang, question, thought, str(answer))


def talk(rng: random.Random, lang: str) -> Problem:
    """Small talk, and an honest refusal of everything that the model was not made for."""
    if rng.random() < 0.5:
        questions, answer = rng.choice(say.TALK[lang])
        question = rng.choice(questions)
    else:
        question, answer = _beyond(rng, lang), say.REFUSAL[lang]
    return Problem("talk", lang, question, say.TALK_THOUGHT[lang], answer)


def _beyond(rng: random.Random, lang: str) -> str:
    """A request outside the model's reach: too long a number, a division, a fact, a poem."""
    if rng.random() < 0.6:
        return rng.choice(say.BEYOND[lang]).format(topic=rng.choice(say.TOPICS[lang]))
    a, b = rng.randrange(10**5, 10**7), _number(rng, 7)
    if rng.random() < 0.5:
        return rng.choice(say.ADD[lang] + say.SUBTRACT[lang]).format(a=a, b=b)
    if rng.random() < 0.5:
        return rng.choice(say.MULTIPLY[lang]).format(a=rng.randrange(10, 10**4), b=rng.randrange(10, 1000))
    return rng.choice(say.DIVIDE[lang]).format(a=_number(rng, 4), b=rng.randint(1, 99))


KINDS: dict[str, Callable[[random.Random, str], Problem]] = {
    "add": add,
    "subtract": subtract,
    "compare": compare,
    "multiply": multiply,
    "order": order,
    "letters": letters,
    "story": story,
    "talk": talk,
}


def draw(rng: random.Random, kind: str, *, held_out: bool) -> Problem:
    """One problem of a kind, from the held-out tenth or from the rest; small talk is the same in both."""
    while True:
        problem = KINDS[kind](rng, rng.choice(("en", "zh")))
        if kind == "talk" or problem.held_out == held_out:
            return problem


def examination(count: int, seed: int) -> list[Problem]:
    """`count` distinct held-out problems, an equal share of every kind that has one right answer."""
    rng, kinds = random.Random(seed), [kind for kind in KINDS if kind != "talk"]
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        problem = draw(rng, kinds[len(chosen) % len(kinds)], held_out=True)
        chosen.setdefault(problem.question, problem)
    return list(chosen.values())
