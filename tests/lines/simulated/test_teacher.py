"""A teacher's text is a function of the tokens before it, whole characters of real text, and ends where it may."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tokenizers

from twinline.lines.simulated import texts
from twinline.lines.simulated.teacher import Teacher
from twinline.train.tokenizer import build

USER, ASSISTANT, THINK, NEWLINE = 3, 4, 5, 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vocabulary")
    build(made)
    return made


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return texts.recited(folder)[0]


def said(teacher: Teacher, prompt: list[int], output: list[int] = [], most: int = 2000, seed: int = 0) -> list[int]:  # noqa: B006
    """The whole answer after `output`, its end token included."""
    answer = teacher.answer(prompt, seed, output)
    tokens: list[int] = []
    while len(output) + len(tokens) < most:
        token = answer.next(teacher.end)
        answer.take(token)
        tokens.append(token)
        if token in teacher.end:
            break
    return tokens


def test_it_goes_on_from_every_cut(teacher: Teacher) -> None:
    for prompt in ([0, USER, 90, ASSISTANT, THINK, NEWLINE], [0, 80, 81]):
        whole = said(teacher, prompt)
        assert whole[-1] in teacher.end
        for cut in range(len(whole)):
            assert said(teacher, prompt, whole[:cut]) == whole[cut:]


def test_a_lost_doubled_or_foreign_token_changes_what_follows(teacher: Teacher) -> None:
    prompt = [0, 80, 81]
    whole = said(teacher, prompt)
    for cut in range(2, len(whole) - 1):
        lost, doubled = whole[: cut - 1], [*whole[:cut], whole[cut - 1]]
        foreign = [*whole[: cut - 1], (whole[cut - 1] + 1) % 1000 + 7]
        for wrong in (doubled, foreign):
            if wrong != whole[: len(wrong)]:
                assert said(teacher, prompt, wrong) != whole[len(wrong) :]
        assert lost + said(teacher, prompt, lost) == whole


def test_another_prompt_or_seed_gives_another_answer(teacher: Teacher) -> None:
    answers = {tuple(said(teacher, [0, 80, 81 + i])) for i in range(50)}
    assert len(answers) > 40
    assert len({tuple(said(teacher, [0, 80], seed=seed)) for seed in range(50)}) > 40


def test_every_answer_is_whole_text_that_spans_tokens(teacher: Teacher, folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    split = 0
    for i in range(40):
        tokens = said(teacher, [0, 80, 81 + i])
        text = backend.decode(tokens, skip_special_tokens=True)
        assert text.startswith(texts.PREFACE.strip()[:20]) and "�" not in text
        split += sum("�" in backend.decode(tokens[:cut]) for cut in range(len(tokens)))
    assert split > 100


def test_reasoning_comes_first_and_is_closed_once(teacher: Teacher, folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = backend.decode(said(teacher, [0, USER, 90, ASSISTANT, THINK, NEWLINE]), skip_special_tokens=True)
    reasoning, closing, content = text.partition("</think>")
    assert reasoning and closing and content.strip() and "</think>" not in content
    assert "</think>" not in backend.decode(said(teacher, [0, 80]), skip_special_tokens=True)


def test_without_leave_to_end_it_goes_on(teacher: Teacher) -> None:
    answer = teacher.answer([0, 80])
    tokens = []
    for _ in range(1500):
        tokens.append(answer.next())
        answer.take(tokens[-1])
    assert not teacher.end & set(tokens)
    resumed = teacher.answer([0, 80], 0, tokens[:1000])
    for token in tokens[1000:]:
        assert resumed.next() == token
        resumed.take(token)


def test_murmured_is_the_same_in_every_process() -> None:
    first, again = texts.murmured(1000), texts.murmured(1000)
    assert said(first, [1, 2], most=200) == said(again, [1, 2], most=200)
    assert max(said(first, [1, 2], most=200)) < 1000


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        texts.recited(tmp_path)
    with pytest.raises(ValueError, match="passage"):
        Teacher([])


def test_trap_31_every_end_token_of_a_list(folder: Path, tmp_path: Path) -> None:
    """generation_config.json goes before config.json, and all of its end tokens end an answer."""
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [7, 11, 2]}')
    (tmp_path / "m" / "config.json").write_text('{"eos_token_id": 3}')
    assert texts.recited(tmp_path / "m")[0].end == {2, 7, 11}
