"""`twinline usage`: journals are folded first, and every shape shows the same sums."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from twinline.cli import main
from twinline.store.database import Database
from twinline.store.journal import Journal
from twinline.store.keys import Keys
from twinline.store.usage import Segment, Usage

NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINLINE_HOME", str(tmp_path))
    monkeypatch.delenv("TWINLINE_DATABASE_URL", raising=False)
    database = Database()
    alice = Keys(database).create("alice")[0].id
    database.close()
    journal = Journal(tmp_path / "journal")
    segments = [
        Segment("fast", "chip-a", 1, 1000, 0, 20, 1.0, 0.25),
        Segment("slow", "chip-b", 2, 0, 0, 5, 1.0, 0.5, 1020),
    ]
    journal.write(Usage(journal.next_uid(), "r1", alice, "m1", NOON, 2.0, "finished", segments, 1, "CNY"))
    journal.write(Usage(journal.next_uid(), "r2", None, "m2", NOON + 86_400, 2.0, "aborted", segments[:1], 1, "CNY"))
    journal.close()
    return tmp_path


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["by"] == ["key", "model"]
    assert [(row["key"], row["model"], row["requests"]) for row in data["usage"]] == [("", "m2", 1), ("alice", "m1", 1)]
    (total,) = data["totals"]
    assert (total["prompt_tokens"], total["completion_tokens"], total["waste_tokens"]) == (2000, 45, 1020)
    assert (total["cost"], total["currency"], total["unfinished"]) == (1.0, "CNY", 1)
    assert main(["usage", "--json"]) == 0  # folded again
    assert json.loads(capsys.readouterr().out) == data


def test_what_a_million_tokens_cost_by_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(home / "journal")
    cheap = [Segment("cheap", "chip-c", 1, 1000, 0, 20, 1.0, 0.00002), Segment("none", "chip-c", 2, 0, 0, 0, 1.0, 0.5)]
    journal.write(Usage(journal.next_uid(), "r3", None, "m2", NOON, 2.0, "finished", cheap, 1, "CNY"))
    journal.close()
    assert main(["usage", "--by", "line"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("a million out")
    told = {row.split()[0]: row.split()[-3:] for row in rows}
    assert told["cheap"] == ["<0.0001", "CNY", "1.0000"] and told["none"] == ["0.5000", "CNY", "-"]
    assert told["fast"] == ["0.5000", "CNY", "12,500.0000"] and told["slow"] == ["0.5000", "CNY", "100,000.0000"]


def test_records_are_left_to_the_database_that_their_gateways_have(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In life it is PostgreSQL, known to the service alone: folded here, they would be seen by nobody."""
    theirs = Database(f"sqlite:///{home / 'theirs.db'}")
    (kept,) = (home / "journal").glob("*.jsonl")
    theirs.journals.mkdir()
    moved = kept.rename(theirs.journals / kept.name)
    assert main(["usage", "--by", "total", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["totals"] == [] and moved.exists()
    assert f"1 journals in {theirs.journals} go into another database" in said.err
    monkeypatch.setenv("TWINLINE_DATABASE_URL", theirs.shown)
    theirs.close()
    assert main(["usage", "--by", "total", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["totals"][0]["requests"] == 2 and not said.err
    assert not moved.exists()


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--by", "line,chip,day", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["line"], row["chip"], row["day"]) for row in rows] == [
        ("fast", "chip-a", "2027-01-15"), ("fast", "chip-a", "2027-01-16"), ("slow", "chip-b", "2027-01-15"),
    ]  # fmt: skip
    assert [row["cost"] for row in rows] == ["0.250000000", "0.250000000", "0.500000000"]
    assert rows[2]["waste_tokens"] == "1020"


def test_the_table_has_totals_waste_and_currency(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["key", "model"] and "waste" in lines[0]
    assert lines[-1].split()[0] == "total" and "2,000" in lines[-1] and "1.0000 CNY" in lines[-1]
    assert main(["usage", "--by", "total"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_spans_and_one_key(capsys: pytest.CaptureFixture[str]) -> None:
    def requests(*words: str) -> int:
        assert main(["usage", "--by", "total", "--json", *words]) == 0
        return sum(row["requests"] for row in json.loads(capsys.readouterr().out)["totals"])

    assert requests("--since", "2027-01-16") == 1
    assert requests("--until", "2027-01-15") == 1  # to the end of that day
    assert requests("--until", "2027-01-15T12:00") == 0
    assert requests("--since", "2027-01-15", "--until", "2027-01-16") == 2
    assert requests("--key", "alice") == 1


def test_what_is_damaged_is_told_on_stderr(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (home / "journal").glob("*-000001.jsonl")
    file.write_bytes(file.read_bytes() + b"00000000 {}\n")
    assert main(["usage", "--json"]) == 0
    told = capsys.readouterr()
    assert "1 damaged lines" in told.err and len(json.loads(told.out)["usage"]) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--by", "colour"], "colour"), (["--since", "yesterday"], "date such as"), (["--csv", "--json"], "not allowed")],
)
def test_mistakes_are_named(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", *words]) == 2
    assert reason in capsys.readouterr().err


def test_nothing_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TWINLINE_HOME", str(tmp_path / "empty"))
    assert main(["usage"]) == 0
    assert "no usage recorded" in capsys.readouterr().out
