"""The embedded model's problems are right, varied, and kept apart from what is examined."""

import random
import re

import pytest

from twinline.verify.problems import KINDS, Problem, draw, examination, work_add, work_multiply, work_subtract


def problems(kind: str, count: int = 300, *, held_out: bool = False) -> list[Problem]:
    rng = random.Random(kind)
    return [draw(rng, kind, held_out=held_out) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_both_languages_and_no_empty_text(kind):
    drawn = problems(kind)
    assert {p.lang for p in drawn} == {"en", "zh"}
    assert all(p.question and p.thought and p.answer and p.kind == kind for p in drawn)
    assert not any("{" in p.question or "{" in p.answer for p in drawn)


@pytest.mark.parametrize(("kind", "sign"), [("add", "+"), ("subtract", "-"), ("multiply", "*")])
def test_sums_are_right(kind, sign):
    for p in problems(kind):
        a, b = map(int, re.findall(r"\d+", p.question)[:2])
        if "from" in p.question:
            a, b = b, a
        assert int(p.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign]
        assert p.thought.endswith(f"={p.answer}")


def test_comparisons_know_that_9_8_is_more_than_9_11():
    for p in problems("compare", 600):
        a, b = re.findall(r"\d+(?:\.\d+)?", p.question)[:2]
        larger = any(w in p.question.lower() for w in ("larger", "bigger", "greater", "大"))
        if float(a) == float(b):
            assert p.answer in ("equal", "一样大")
        else:
            assert p.answer == (a if (float(a) > float(b)) == larger else b)


def test_orders_are_sorted_and_complete():
    for p in problems("order"):
        asked = [int(n) for n in re.findall(r"\d+", p.question)]
        given = [int(n) for n in p.answer.split(", ")]
        assert given in (sorted(asked), sorted(asked, reverse=True))


def test_letters_are_counted():
    for p in problems("letters"):
        word = re.search(r"[\"“](\w+)[\"”]", p.question)
        assert word is not None
        letter = p.thought.split(" ")[0]
        assert int(p.answer) == word[1].count(letter)
        assert p.thought.split("\n")[0].split(" ")[1:] == [
            f"{c}{word[1][: i + 1].count(letter)}" for i, c in enumerate(word[1])
        ]


def test_stories_never_end_below_nothing():
    assert all(int(p.answer) >= 0 for p in problems("story"))


def test_worked_columns():
    assert work_add(123, 989) == "123+989\n3+9+0=12\n2+8+1=11\n1+9+1=11\n=1112"
    assert work_subtract(5, 12) == "05-12\n0<1\n-(12-05)\n2-5-0=b7\n1-0-1=00\n=-7"
    assert work_multiply(47, 6) == "47*6\n7*6+0=42\n4*6+4=28\n=282"


def test_the_held_out_tenth_is_never_trained_on():
    assert all(p.held_out for p in problems("add", held_out=True))
    assert not any(p.held_out for p in problems("add", held_out=False))


def test_an_examination_is_fixed_by_its_seed_and_repeats_nothing():
    first, again, other = examination(140, 1), examination(140, 1), examination(140, 2)
    assert first == again != other
    assert len({p.question for p in first}) == 140
    assert {p.kind for p in first} == KINDS.keys() - {"talk"}


def test_an_answer_is_the_answer_and_nothing_else():
    p = Problem("add", "en", "1+1", "", "2")
    assert p.solved_by(" 2\n")
    assert not p.solved_by("12")
    assert not p.solved_by("2 apples")
