"""`twinline keys`: made, listed, changed and revoked; the secret is shown once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from twinline.cli import main
from twinline.store import database as database_module
from twinline.store.database import Database
from twinline.store.keys import Keys
from twinline.store.ring import KeyRing


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINLINE_HOME", str(tmp_path))
    monkeypatch.delenv("TWINLINE_DATABASE_URL", raising=False)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["keys", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_database_that_another_keeps_locked_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(capsys, "create", "alice")
    monkeypatch.setattr(database_module, "LOCK_SECONDS", 0)
    other = Database()
    with other.writing():
        assert main(["keys", "revoke", "alice"]) == 1
    other.close()
    assert capsys.readouterr().err == f"twinline: error: sqlite:///{home}/twinline.db: database is locked\n"


def test_a_key_from_its_making_to_its_end(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    made = told(
        capsys, "create", "alice", "--models", "r1, v3", "--rpm", "60", "--tpm", "1000", "--tokens-budget", "5000",
        "--money-budget", "12.5cny", "--period", "total", "--weight", "2", "--priority", "-1",
        "--expires", "30d", "--admin",
    )  # fmt: skip
    database = Database(f"sqlite:///{home}/twinline.db")
    ring = KeyRing(Keys(database))
    ring.refresh()
    key = ring.find(made.pop("secret"))
    assert key is not None
    assert key.models == {"r1", "v3"} and key.admin and key.priority_cap == -1 and key.weight == 2
    assert (key.requests_per_minute, key.tokens_per_minute, key.token_budget) == (60, 1000, 5000)
    assert (key.money_budget, key.currency, key.budget_period) == (12.5, "CNY", "total")
    assert abs((key.expires or 0) - time.time() - 30 * 86400) < 600
    assert told(capsys, "list") == {"keys": [made]}

    changed = told(capsys, "set", "alice", "--rpm", "none", "--money-budget", "none", "--models", "none", "--no-admin")
    assert [changed[name] for name in ("requests_per_minute", "money_budget", "currency", "models")] == [None] * 4
    assert changed["admin"] is False and changed["tokens_per_minute"] == 1000
    assert told(capsys, "set", made["id"], "--name", "bob")["name"] == "bob"
    assert told(capsys, "revoke", "bob")["state"] == "revoked"
    assert "secret" not in json.dumps(told(capsys, "list"))
    database.close()


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list"]) == 0
    assert "no keys" in capsys.readouterr().out
    assert main(["keys", "create", "alice", "--rpm", "1200", "--money-budget", "3 USD"]) == 0
    out = capsys.readouterr().out
    assert "1,200 requests/min, 3 USD/month" in out
    assert out.count("tl-") == 1
    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    assert "alice" in out and "3 USD/month" in out and "valid" in out and "tl-" not in out
    assert main(["keys", "revoke", "alice"]) == 0
    assert main(["keys", "list"]) == 0
    assert "revoked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["create", "a", "--rpm", "-1"], 2, "between 0 and"),
        (["create", "a", "--money-budget", "5"], 2, "100CNY"),
        (["create", "a", "--expires", "soon"], 2, "date such as"),
        (["create", "a", "--expires", "2020-01-01"], 2, "'2020-01-01' is over already"),
        (["create", "a", "--models", ","], 2, "no model"),
        (["create", "a", "--rpm", "none"], 2, "whole number"),
        (["create", ""], 1, "printable"),
        (["set", "nobody", "--rpm", "5"], 1, "no key 'nobody'"),
        (["set", "nobody"], 2, "nothing to change"),
        (["revoke", "nobody"], 1, "no key 'nobody'"),
        ([], 2, "ACTION"),
    ],
)
def test_mistakes_are_named(words: list[str], code: int, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *words]) == code
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_a_database_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TWINLINE_DATABASE_URL", "mysql://somewhere/x")
    assert main(["keys", "list"]) == 1
    assert "use sqlite or postgresql" in capsys.readouterr().err
