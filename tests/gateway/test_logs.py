"""The gateway's log as machines read it: every line JSON, one line per request, ids to follow, no prompts, no keys."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.gateway.processes import MODEL, Doubles, Fleet, Gateway, entry, fleet, until
from tests.lines.line_double import Script

from twinline.gateway.logs import _Json
from twinline.store.database import Database
from twinline.store.keys import Keys

PROMPT = "Xylophones in the attic"
ADMIN = "the-management-key-of-this-fleet"
TOKENS = list(range(10, 22))
FIELDS = {
    "time", "level", "logger", "message", "request_id", "key", "model", "lines", "status", "outcome", "reason", "moves",
    "stream", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds", "queue_seconds", "ttft_seconds",
}  # fmt: skip


# The form.


def said(log: logging.Logger) -> io.StringIO:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json())
    log.handlers, log.propagate = [handler], False
    log.setLevel("DEBUG")
    return stream


def test_whatever_is_logged_is_one_line_of_json() -> None:
    log = logging.getLogger("tests.json")
    stream = said(log)
    log.info("two\nlines and a \x00 and half a \ud83d")
    log.info("%d %s", "does not fit")
    log.warning("plain", extra={"fields": {"path": Path("/x"), "broken": "\udcff", "number": float("nan")}})
    try:
        raise ValueError("the \n reason \ud800")
    except ValueError:
        log.exception("it failed")
    log.info("here", stack_info=True)
    lines = stream.getvalue().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 5
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert records[0]["message"].startswith("two\nlines and a \x00")
    assert "does not fit" in records[1]["message"]
    assert "/x" in records[2]["path"] and records[2]["number"] in (None, "nan")
    assert records[3]["exception"].startswith("Traceback") and "the \n reason" in records[3]["exception"]
    assert "test_whatever" in records[4]["stack"]


FULL = """
import logging, os
from twinline.gateway.logs import set_up_logs

set_up_logs("json", "info")
write, room = os.write, [10_000, 25, 0, 0, 10_000, 10_000]

def full(file, data):
    most = room.pop(0)
    if not most:
        raise OSError(28, "No space left on device")
    return write(file, data[:most])

os.write = full
for number in range(6):
    logging.error("the disk is full, %d", number)
"""


def test_a_disk_that_was_full_costs_lines_and_no_others() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and len(lines[1]) == 25
    assert [json.loads(lines[at])["message"][-1] for at in (0, 2, 3)] == ["0", "4", "5"]


def test_what_ends_a_thread_or_the_process_is_json_too() -> None:
    code = """
import threading, warnings
from twinline.gateway.logs import set_up_logs
set_up_logs("json", "info")
warnings.warn("an old way")
thread = threading.Thread(target=lambda: 1 / 0, name="worker-7")
thread.start(); thread.join()
raise KeyError("at the end")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    records = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == 1 and len(records) == 3
    assert "an old way" in records[0]["message"]
    assert records[1]["message"] == "worker-7 ends" and "ZeroDivisionError" in records[1]["exception"]
    assert records[2]["level"] == "critical" and "at the end" in records[2]["exception"]


# What a gateway process writes.


@dataclass
class Place:
    fleet: Fleet
    gateway: Gateway
    doubles: Doubles
    keys: dict[str, str]


@pytest.fixture(scope="module")
def place(tiny_folder: Path) -> Iterator[Place]:
    settings = {"keys": "required", "access_log": True, "admin_key_env": "TEST_ADMIN", "queue_requests": 1}
    with Doubles(2) as doubles, fleet(tiny_folder, {"TEST_ADMIN": ADMIN}, **settings) as made:
        database = Database(f"sqlite:///{made.directory / 'twinline.db'}")
        store = Keys(database)
        keys = {
            "alice": store.create("alice")[1],
            "narrow": store.create("narrow", models=["another"])[1],
            "slow": store.create("slow", requests_per_minute=1)[1],
        }
        database.close()
        made.entries = [entry("first", doubles.urls[0]), entry("second", doubles.urls[1])]
        made.write()
        yield Place(made, made.start(0, "--log-level", "debug"), doubles, keys)


@pytest.fixture(autouse=True)
def _plain(request: pytest.FixtureRequest) -> None:
    if "place" in request.fixturenames:
        made: Place = request.getfixturevalue("place")
        for double in made.doubles.lines:
            double.script = lambda request: Script(TOKENS)
            double.requests.clear()


def test_a_request_is_one_line_with_what_it_was(place: Place) -> None:
    with place.fleet.client(place.keys["alice"]) as client:
        answer = place.fleet.complete(client, prompt=PROMPT, max_tokens=8, request_id="whole-1", stream=True)
    assert answer.status_code == 200
    told = place.gateway.access("whole-1")
    assert told.keys() == FIELDS
    (asked,) = [request for double in place.doubles.lines for request in double.requests]
    expected = {"key": "alice", "model": MODEL, "status": 200, "outcome": "finished", "reason": None, "stream": True,
                "prompt_tokens": len(asked["prompt"]), "cached_tokens": 3, "completion_tokens": 8,
                "moves": 0, "queue_seconds": 0.0, "level": "info"}  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert told["lines"] in ("first", "second")
    assert 0 < told["ttft_seconds"] <= told["seconds"]
    assert "request_id='whole-1'" in told["message"] and "status=200" in told["message"]


@pytest.mark.parametrize(
    ("name", "key", "fields", "status", "reason"),
    [
        ("no-key", None, {}, 401, "invalid_api_key"),
        ("bad-key", "tw-this-is-not-a-key", {}, 401, "invalid_api_key"),
        ("narrow", "narrow", {}, 403, "model_not_allowed"),
        ("no-model", "alice", {"model": "gpt\n9" + "x" * 1000}, 404, "model_not_found"),
        ("bad", "alice", {"temperature": -1}, 400, "bad_request"),
        ("no-line", "alice", {"model": f"{MODEL}@nowhere"}, 404, "line_not_found"),
    ],
)
def test_a_refused_request_is_one_line_too(
    place: Place, name: str, key: str | None, fields: dict[str, object], status: int, reason: str
) -> None:
    with place.fleet.client(place.keys.get(key or "", key)) as client:
        assert place.fleet.complete(client, prompt=PROMPT, request_id=name, **fields).status_code == status
    told = place.gateway.access(name)
    assert told.keys() == FIELDS
    assert (told["status"], told["outcome"], told["reason"]) == (status, "refused", reason)
    assert told["key"] == (key if key in place.keys else "-")
    assert told["completion_tokens"] == 0 and told["ttft_seconds"] is None and len(told["model"]) <= 200


def test_a_key_over_its_limit(place: Place) -> None:
    with place.fleet.client(place.keys["slow"]) as client:
        statuses = [place.fleet.complete(client, request_id=f"slow-{n}").status_code for n in range(3)]
    assert 429 in statuses
    told = place.gateway.access(f"slow-{statuses.index(429)}")
    assert (told["status"], told["outcome"], told["reason"], told["key"]) == (
        429, "refused", "rate_limit_exceeded", "slow",
    )  # fmt: skip


def test_an_answer_that_moved(place: Place) -> None:
    for double in place.doubles.lines:
        double.script = lambda request: (
            Script(TOKENS) if request["output_prefix_ids"] else Script(TOKENS, fault="reset", fault_after=4)
        )
    with place.fleet.client(place.keys["alice"]) as client:
        assert place.fleet.complete(client, request_id="moved-1", max_tokens=12, stream=True).status_code == 200
    told = place.gateway.access("moved-1")
    assert told["moves"] == 1 and set(told["lines"].split(",")) == {"first", "second"}
    assert told["completion_tokens"] == 12
    moves = [
        line["message"]
        for line in place.gateway.records()
        if "moved-1" in line["message"] and "leaves" in line["message"]
    ]
    assert len(moves) == 1 and "after 4 tokens: the connection" in moves[0]


def test_an_answer_that_breaks_for_good(place: Place) -> None:
    for double in place.doubles.lines:
        double.script = lambda request: Script(TOKENS, fault="in_band", fault_after=2)
    with place.fleet.client(place.keys["alice"]) as client:
        place.fleet.complete(client, request_id="broken-1", max_tokens=12, stream=True)
    told = place.gateway.access("broken-1")
    assert (told["status"], told["outcome"], told["reason"]) == (502, "failed", "cannot_continue")
    assert told["moves"] == 3 and 0 < told["completion_tokens"] < 12


def test_a_client_that_leaves(place: Place) -> None:
    for double in place.doubles.lines:
        double.script = lambda request: Script(TOKENS, delay=0.2)
    body = {"model": MODEL, "prompt": PROMPT, "stream": True, "max_tokens": 12}
    headers = {"x-request-id": "left-1"}
    with (
        place.fleet.client(place.keys["alice"]) as client,
        client.stream("POST", "/v1/completions", json=body, headers=headers) as answer,
    ):
        next(answer.iter_bytes())
    told = place.gateway.access("left-1")
    assert (told["status"], told["outcome"], told["reason"]) == (499, "aborted", "client_left")


def test_one_id_can_be_followed_through_every_hop(place: Place) -> None:
    with place.fleet.client(place.keys["alice"]) as client:
        answer = place.fleet.complete(client, prompt=PROMPT, request_id="follow-me/7")
    assert answer.headers["x-request-id"] == "follow-me/7"
    assert "follow-me/7" in answer.json()["id"]
    told = place.gateway.access("follow-me/7")
    (asked,) = [request for double in place.doubles.lines for request in double.requests]
    assert asked["request_id"].startswith("follow-me/7")
    journals = (place.fleet.directory / "journal").rglob("*")
    texts = [path.read_text("utf-8") for path in journals if path.is_file()]
    (line,) = [line for text in texts for line in text.splitlines() if "follow-me/7" in line]
    record = json.loads(line.partition(" ")[2])
    assert record["request_id"] == "follow-me/7" and record["segments"][0]["line"] == told["lines"]
    assert record["segments"][0]["completion_tokens"] == told["completion_tokens"]


def test_no_prompt_and_no_secret_is_in_any_log(place: Place) -> None:
    """The last of this place: whatever the others made it write is looked at."""
    with place.fleet.client(ADMIN) as client:
        assert client.get("/api/lines").status_code == 200
        client.post("/v1/completions", content=b"{" + PROMPT.encode(), headers={"x-request-id": "no-json"})
    place.gateway.access("no-json")
    text = "\n".join(place.gateway.log())
    assert len(place.gateway.records()) > 10  # all of it is JSON
    for secret in (*place.keys.values(), ADMIN, "this-is-not-a-key", PROMPT, "Xylophones"):
        assert secret not in text
    files = [path for path in place.fleet.directory.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert files
    for path in files:
        assert place.keys["alice"].encode() not in path.read_bytes(), path


def test_prompts_are_there_when_they_are_asked_for_and_short(tiny_folder: Path) -> None:
    tokens = list(range(10, 60)) * 4
    with Doubles(1) as doubles, fleet(tiny_folder, access_log=True, log_prompts=True) as made:
        doubles.lines[0].script = lambda request: Script(tokens, per_chunk=50)
        made.entries = [entry("only", doubles.urls[0], facts={"max_model_len": 8192})]
        made.write()
        gateway = made.start(0, "--log-level", "warning")  # the access log was asked for by itself
        with made.client() as client:
            short = made.complete(client, prompt=PROMPT, request_id="short", max_tokens=5)
            made.complete(client, prompt="long " * 1000, request_id="long", max_tokens=200)
        told = gateway.access("short")
        assert PROMPT in told["prompt"] and told["answer"] == short.json()["choices"][0]["text"]
        told = gateway.access("long")
        assert len(told["prompt"]) == 2000 and len(told["answer"]) <= 2000


def test_a_gateway_that_stops_says_so_of_what_it_cuts_off(tiny_folder: Path) -> None:
    with Doubles(1) as doubles, fleet(tiny_folder, access_log=True) as made, ThreadPoolExecutor(2) as pool:
        doubles.lines[0].script = lambda request: Script(TOKENS, fault="hang", fault_after=2)
        made.entries = [entry("only", doubles.urls[0])]
        made.write()
        gateway = made.start()
        with made.client() as client:
            asked = {
                name: pool.submit(made.complete, client, request_id=name, stream=stream)
                for name, stream in (("whole", False), ("stream", True))
            }
            until(lambda: len(doubles.lines[0].requests) == 2)
            for _ in range(2):  # the second signal means now
                gateway.process.terminate()
                time.sleep(0.3)
            for name, answer in asked.items():
                assert "server_stopping" in answer.result(20).text
                told = gateway.access(name)
                assert (told["status"], told["reason"]) == (503, "server_stopping")


def test_text_logs_stay_one_line_a_request(tiny_folder: Path) -> None:
    with fleet(tiny_folder, access_log=True, log_format="text") as made:
        made.write()
        gateway = made.start()
        with made.client() as client:
            made.complete(client, model="two\nlines", request_id="text-1")
        until(lambda: [line for line in gateway.log() if "text-1" in line and "twinline.access" in line])
        (line,) = [line for line in gateway.log() if "text-1" in line and "twinline.access" in line]
        assert "status=404" in line and "model='two\\nlines'" in line
        assert gateway.stop() == 0
