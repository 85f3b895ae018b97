"""Fleet files: what is read, and that every mistake is told at once, at its line, with what would be right."""

from __future__ import annotations

import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest

from twinline.lines.fleet.file import Fleet, embedded, load
from twinline.lines.fleet.lines import surges
from twinline.lines.fleet.marked import FileFaults


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    def read(text: str, **environ: str) -> Fleet:
        path = tmp_path / "fleet.yaml"
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return load(path, environ)

    return read


@pytest.fixture
def faults(read, tmp_path: Path):  # type: ignore[no-untyped-def]
    def faults(text: str, **environ: str) -> list[tuple[int, str]]:
        with pytest.raises(FileFaults) as caught:
            read(text, **environ)
        assert all(line.startswith(f"{tmp_path}/fleet.yaml:") for line in caught.value.lines())
        return [(fault.line, fault.text) for fault in caught.value.faults]

    return faults


def test_the_smallest_fleet(read) -> None:  # type: ignore[no-untyped-def]
    fleet = read("lines: {cpu: {engine: native}}")
    assert (fleet.name, [m.name for m in fleet.models], [s.name for s in fleet.lines]) == (
        "fleet",
        ["tiny-r1"],
        ["cpu"],
    )
    assert fleet.models[0].text == fleet.lines[0].weights == str(embedded())
    assert fleet.models[0].label == "demonstration model"
    assert (fleet.gateway.host, fleet.gateway.keys, fleet.gateway.currency) == ("127.0.0.1", "off", "USD")
    assert fleet.surge == {"cpu"}


def test_everything_that_can_be_said(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1/tokenizer.json").write_text("{}")
    (tmp_path / "r1/config.json").write_text("{}")
    fleet = read(
        """
        name: house
        drain_seconds: 5
        models:
          r1: {policy: prefer, order: [far, near], goals: {ttft_seconds: 1.5, inter_token_seconds: 0.05}}
          other: {text: embedded, policy: weighted, label: a toy}
        lines:
          near:
            engine: native
            model: r1
            weights: r1
            precision: bfloat16
            replicas: 2
            price: 3.50 CNY/h
            weight: 3
            lacks: [tools, grammar]
            options: {threads: 1, kv_tokens: 1024}
            env: {SIZE: 3, SECRET_KEY: "${MINE}"}
            start_seconds: 30
            surge: false
          far:
            engine: simulated
            model: r1
            url: http://${FAR}:8000
            upstream: deepseek
            chip: some-chip
            price_per_million_input: 0.5
            price_per_million_output: 2 CNY
          toy: {engine: native, model: other, weights: embedded, weights_class: mine, context: 512, slots: 4}
        gateway: {host: 0.0.0.0, port: 9000, workers: 2, access_log: true, log_format: json, queue_seconds: 3}
        """,
        FAR="far.example",
        MINE="s3cret",
    )
    near, far, toy = fleet.lines
    assert (fleet.name, fleet.drain_seconds, fleet.gateway.currency) == ("house", 5.0, "CNY")
    assert near.weights == str(tmp_path / "r1") == fleet.models[0].text
    assert (near.price_per_hour, near.replicas, near.weight, near.start_seconds) == (3.5, 2, 3.0, 30.0)
    assert near.lacks == {"tools", "grammar"} and near.options == {"threads": 1, "kv_tokens": 1024}
    assert near.env == {"SIZE": "3", "SECRET_KEY": "${MINE}"}  # looked up when the engine starts, written nowhere
    assert near.weights_class == f"{tmp_path / 'r1'}@bfloat16"
    assert (far.url, far.known_as, far.price_per_million_output) == ("http://far.example:8000", "deepseek", 2.0)
    assert (toy.weights_class, toy.context, toy.slots) == ("mine", 512, 4)
    assert (fleet.models[0].order, fleet.models[0].goals.ttft_seconds) == (("far", "near"), 1.5)
    assert fleet.models[1].label == "a toy"
    assert (fleet.gateway.keys, fleet.gateway.workers, fleet.gateway.log_format) == ("required", 2, "json")
    assert fleet.surge == {"far", "toy"}


def test_same_weights_and_precision_are_one_class_but_a_simulated_line_is_its_own(read) -> None:  # type: ignore[no-untyped-def]
    fleet = read(
        """
        lines:
          a: {engine: native, price: 1}
          b: {engine: native, options: {threads: 1}}
          c: {engine: native, precision: float32}
          d: {engine: simulated, weights: embedded}
        """
    )
    a, b, c, d = (spec.weights_class for spec in fleet.lines)
    assert a == b and len({a, c, d}) == 3 and d.startswith("simulated:")


def test_all_mistakes_are_told_at_once_each_at_its_line(faults) -> None:  # type: ignore[no-untyped-def]
    told = faults(
        """
        models:
          tiny-r1:
            polcy: fastest
            goals: {ttft_seconds: -1}
            order: [cpu]
        lines:
          cpu:
            engine: nativ
            price: -2
            replicas: 0
          two:
            engine: native
            weights: embedded
            model: tiny-r2
            lacks: [tool]
            options:
              threads: 1
              thread: 2
          three:
            engine: native
            replicas: many
            price: 2 EUR
          three:
            engine: native
            price: 2 USD
        gateway:
          host: 0.0.0.0
          keys: off
          port: 70000
        """
    )
    assert [line for line, _ in told] == sorted(line for line, _ in told)
    said = dict(told)
    assert said[3] == "models.tiny-r1.polcy: there is no such field; did you mean 'policy'?"
    assert said[4] == "models.tiny-r1.goals.ttft_seconds: expected a number above 0, not -1"
    assert said[5].startswith("models.tiny-r1.order: an order is for the policy prefer")
    assert said[8].startswith("lines.cpu.engine: expected one of native, vllm") and "mean 'native'?" in said[8]
    assert said[9] == "lines.cpu.price: expected a number of at least 0, not -2"
    assert said[10] == "lines.cpu.replicas: expected a whole number from 1 to 1024, not 0"
    assert said[14] == "lines.two.model: there is no model 'tiny-r2'; did you mean 'tiny-r1'?"
    assert said[15] == "lines.two.lacks: there is no feature 'tool'; did you mean 'tools'?"
    assert "the native engine has no option 'thread'" in said[16]
    assert said[23] == "lines.three: given twice, first at line 19"
    assert said[28].startswith("gateway.keys: keys cannot be off at 0.0.0.0")
    assert said[29] == "gateway.port: expected a whole number from 1 to 65535, not 70000"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("lines:\n  a: {engine: native, options: {thread: 1}}", 2, "lines.a.options: the native engine has no option"),
        ("lines:\n  a:\n    engine: simulated\n    options:\n      fault: {mode: sleep}", 5, "lines.a.options.fault"),
        (
            "lines:\n  a:\n    engine: native\n    price: 1 USD\n  b:\n    engine: native\n    price: 1 EUR",
            7,
            "EUR beside",
        ),
        ("currency: CNY\nlines:\n  a:\n    engine: native\n    price: 1 USD", 5, "USD beside CNY"),
        ("lines:\n  a:\n    engine: native\n    weights: ./nowhere", 4, "there is nothing at"),
        ("lines:\n  a:\n    engine: native\n    url: http://${NO}", 4, "the environment variable NO is not set"),
        ("lines:\n  a:\n    engine: native\n    url: ftp://x", 4, "must be http://host:port"),
        ("lines:\n  a:\n    engine: native\n    url: http://u:p@x:1", 4, "is a secret in a file"),
        ("lines:\n  a:\n    engine: native\n    url: http://x:1\n    cards: [0]", 5, "would be ignored"),
        ("lines:\n  a:\n    engine: native\n    env: {API_KEY: abc}", 4, "looks like a secret"),
        ("lines:\n  a:\n    engine: native\n    cards: [0, 0]", 4, "each once"),
        ("lines:\n  a:\n    engine: native\n    cards: [0]\n    replicas: 2", 5, "the same cards"),
        ("lines:\n  a b:\n    engine: native", 2, "as a line's name"),
        (
            "lines:\n  a:\n    engine: native\n  gateway-0:\n    engine: native",
            4,
            "is what a process of the fleet itself is",
        ),
        ("lines:\n  control:\n    engine: native", 2, "'control' is what a process of the fleet itself is called"),
        ("lines:\n  a:\n    precision: float32", 2, "engine: needed, one of"),
        ("lines:\n  a:\n    engine: native\n    precision: 16", 4, "put it in quotes"),
        ("models:\n  x:\n  y:\nlines:\n  a: {engine: native}", 5, "model: needed, one of x, y"),
        ("models:\n  x:\nlines:\n  a: {engine: simulated}", 2, "needs the folder of its tokenizer"),
        ("models:\n  x: {text: gone}\nlines:\n  a: {engine: simulated}", 2, "no tokenizer in"),
        (
            "models:\n  tiny-r1:\n  y: {text: embedded}\nlines:\n  a: {engine: native, model: tiny-r1}",
            3,
            "no line serves",
        ),
        ("lines: {}", 1, "at least one line"),
        ("lines: [a]", 1, "expected fields, one a line"),
        ("- a", 1, "this is no mapping"),
        ("name: x\0y", 1, "not YAML"),
        ("lines:\n  a: {engine: openai, url: http://h, options: {continuation: {b: c}}}", 2, "is not one of"),
        ("name: " + "[" * 5000, 1, "nested too deeply"),
        ("lines: &a\n  a: *a", 1, "in itself"),
        ("lines: &a\n  <<: *a", 1, "in itself"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"{then}: &{then} [{', '.join([f'*{each}'] * 10)}]\n" for each, then in pairwise("abcdefghij")),
            1,
            "its aliases make",
        ),
        ("lines:\n  a: {engine: native}\nname: 2026-13-01", 3, "month must be in 1..12"),
        ("lines:\n  a: {engine: native}\nname: !!bool maybe", 3, "cannot be read"),
        ("lines:\n  a: {engine: native}\n  ? [b]\n  : {engine: native}", 3, "expected a name"),
        ("lines:\n  a: {engine: native}\ndrain_seconds: 1" + "0" * 400, 3, "drain_seconds: expected a number"),
        ("lines:\n  a: {engine: native, price: 1" + "0" * 400 + " USD}", 2, "price: expected a number"),
        ("lines:\n  a: {engine: native, weights: ~nobody-of-this-name/r1}", 2, "cannot be a path"),
        ('lines:\n  a: {engine: native, weights: "/a\\0/b"}', 2, "cannot be a path"),
        ('lines:\n  a: {engine: native, weights: "/\\ud800/b"}', 2, "cannot be a path"),
        ("lines:\n  a: {engine: native, options: {tokenizer: " + "a" * 300 + "}}", 2, "cannot be a path"),
        ("models:\n  tiny-r1: {text: ~nobody-of-this-name}\nlines:\n  a: {engine: native}", 2, "cannot be a path"),
        ("lines:\n  a: {engine: native}\ngateway:\n  tls_key: ~nobody-of-this-name", 4, "cannot be a path"),
        ("lines:\n  a: {engine: native\n", 3, "not YAML"),
        ("lines:\n  a:\n\tengine: native", 3, "not YAML"),
        ("lines:\n  a: {engine: native}\ngateway:\n  tls_certificate: c.pem", 4, "TLS needs tls_key too"),
        ("lines:\n  a: {engine: native}\ngateway:\n  admin_key_env: GONE", 4, "GONE is not set"),
        ("name: a/b\nlines:\n  a: {engine: native}", 1, "names a folder"),
        ("lines:\n  a: {engine: native}\nline:\n  b: {}", 3, "line: there is no such field; did you mean 'lines'?"),
    ],
)
def test_mistakes(faults, text: str, line: int, words: str) -> None:  # type: ignore[no-untyped-def]
    told = faults(text)
    assert any(at == line and words in said for at, said in told), told


def test_an_optional_line_that_cannot_run_is_left_out_with_the_reason(read, faults) -> None:  # type: ignore[no-untyped-def]
    text = """
        lines:
          a: {engine: native}
          b:
            engine: native
            weights: gone
            %s
        """
    fleet = read(text % "optional: true")
    assert [spec.name for spec in fleet.lines] == ["a"]
    assert "there is nothing at" in fleet.notes["b"]
    assert faults(text % "optional: false")
    assert faults(text % "optional: true\n            price: -1")  # what is written wrongly stays wrong


def test_a_native_line_needs_a_model_folder(faults, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    told = faults(
        """
        models: {m: {text: embedded}}
        lines:
          a: {engine: native, weights: empty}
          b: {engine: native, weights: m.gguf}
        """
    )
    assert [line for line, _ in told] == [3, 4]
    assert "has no config.json" in told[0][1] and "llamacpp" in told[1][1]


def test_a_chip_that_the_catalog_does_not_know_is_doubted_and_taken(read) -> None:  # type: ignore[no-untyped-def]
    fleet = read(
        """
        models: {m: {text: embedded}}
        lines:
          a: {engine: simulated, weights: embedded, chip: nvidia-h80}
          b: {engine: simulated, weights: embedded, chip: H800}
          c: {engine: simulated, weights: embedded}
        """
    )
    (doubt,) = fleet.doubts
    assert doubt.line == 3 and doubt.text.startswith("lines.a.chip: ") and "did you mean h800-sxm" in doubt.text
    assert [spec.chip for spec in fleet.lines] == ["nvidia-h80", "H800", "cpu"]


def test_nobody_knows_what_a_remote_computes_on(read) -> None:  # type: ignore[no-untyped-def]
    fleet = read("lines: {a: {engine: native, url: http://x:1}, b: {engine: native, url: http://x:2, chip: h20}}")
    assert [spec.chip for spec in fleet.lines] == ["unknown", "h20"] and not fleet.doubts


def test_names_are_what_is_written(read) -> None:  # type: ignore[no-untyped-def]
    """YAML takes some of them for numbers, dates or truth."""
    fleet = read("lines: {no: {engine: native}, 3.10: {engine: native}, 0x10: {engine: native}}")
    assert [spec.name for spec in fleet.lines] == ["no", "3.10", "0x10"]


def test_a_name_that_is_the_files_is_told_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "my fleet.yaml"
    path.write_text("lines: {a: {engine: native}}")
    with pytest.raises(FileFaults, match=r"not 'my fleet' \(it is the file's, as the file gives none\)"):
        load(path, {})
    path.write_text("name: my-fleet\nlines: {a: {engine: native}}")
    assert load(path, {}).name == "my-fleet"


def test_anchors_and_merges(read) -> None:  # type: ignore[no-untyped-def]
    fleet = read(
        """
        lines:
          a: &a {engine: native, price: 1, options: {threads: 1}}
          b: {<<: *a, price: 2}
        """
    )
    assert [(spec.price_per_hour, spec.options) for spec in fleet.lines] == [
        (1.0, {"threads": 1}),
        (2.0, {"threads": 1}),
    ]


def test_what_may_run_twice_at_once(read) -> None:  # type: ignore[no-untyped-def]
    fleet = read(
        """
        lines:
          a: {engine: native, chip: nvidia-h800, cards: [0]}
          b: {engine: native, chip: other}
          c: {engine: native}
        """
    )
    assert [surges(spec) for spec in fleet.lines] == [False, False, True]


def test_the_example_of_the_documentation_is_right_but_for_what_is_not_here(read) -> None:  # type: ignore[no-untyped-def]
    page = (Path(__file__).parents[3] / "docs/fleets.md").read_text("utf-8")
    example = page.split("```yaml\n")[1].split("```")[0].replace("container: IMAGE", "")
    example = example.replace("/models/r1-int8", "embedded").replace("/models/r1", "embedded")
    example = example.replace("options: {...}", f"options: {{executable: {sys.executable}}}")
    with pytest.raises(FileFaults) as refused:
        read(example)
    here = ("EXAMPLE_KEY", "admin_key_env", "cert.pem", "key.pem")
    assert [str(fault) for fault in refused.value.faults if not any(word in str(fault) for word in here)] == []
    with pytest.raises(FileFaults, match="no dtype"):  # it comes so far that its engine's driver is asked
        read(example.replace("precision: auto", "precision: int8"))


@pytest.mark.parametrize("given", [b"a: 1\npassword: xyzzy\n", b"models" * 200_000, b"password: xyzzy \xff"])
def test_of_a_file_that_is_no_fleets_nothing_is_quoted(tmp_path: Path, given: bytes) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_bytes(given)
    with pytest.raises(FileFaults) as refused:
        load(path, {})
    (line,) = refused.value.lines()
    assert "xyzzy" not in line and len(line) < 300


def test_a_file_without_end_is_not_read_for_ever() -> None:
    with pytest.raises(FileFaults, match="longer than"):
        load(Path("/dev/zero"), {})
