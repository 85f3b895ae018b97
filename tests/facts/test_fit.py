"""What fits: documented deployments come out as documented, every offered change was put through the same sum."""

from __future__ import annotations

import msgspec
import pytest

from twinline.facts.chips import Chip, load
from twinline.facts.engine_rules import RULES
from twinline.facts.evidence import NO_EVIDENCE, unknown
from twinline.facts.families import read_anatomy
from twinline.facts.fit import Fit, Want, fit, pages
from twinline.facts.fit_changes import changes, counts, least_cards
from twinline.facts.forms import FORMS, find_form, published
from twinline.facts.layouts import parse_layout
from twinline.facts.model_files import bundled
from twinline.facts.tensors import Anatomy

MODELS: dict[str, Anatomy] = {}


def known(name: str) -> Anatomy:
    return MODELS.setdefault(name, read_anatomy(bundled()[name].config))


def chip(name: str) -> Chip:
    return load().find(name)


def asked(model: str, precision: str = "", context: int = 8192, concurrency: int = 1) -> Want:
    anatomy = known(model)
    form = find_form(precision) if precision else published(anatomy)
    return Want(form=form, context=min(context, anatomy.context), concurrency=concurrency)


def on(model: str, name: str, cards: int, precision: str = "", **more: int) -> Fit:
    return fit(known(model), chip(name), cards, asked(model, precision, **more))


# The three of the issue, and what goes with them.


@pytest.mark.parametrize("name", ["h800", "h100", "a100-sxm-80", "a800"])
def test_r1_in_fp8_does_not_fit_on_8_x_80_gb(name: str) -> None:
    one = on("deepseek-r1", name, 8)
    assert one.answer == "no" and one.users == 0 and one.left_bytes is not None and one.left_bytes < -5e9
    assert "too much for each device" in one.why
    if name.startswith("a"):
        assert "no FP8 arithmetic" in one.why and one.suits.answer == "no"
    else:
        assert one.suits.answer == "yes"


def test_r1_in_fp8_fits_on_8_x_h20_96() -> None:
    one = on("deepseek-r1", "h20-96", 8)
    assert one.answer == "yes" and str(one.layout) == "tp8" and one.token_bytes == 70_272
    assert 30_000 < one.tokens < 127_000  # 127,000 without activations


def test_r1_as_w8a8_fits_on_16_x_64_gb_and_not_on_8() -> None:
    for name in ("ascend-910b1", "ascend-910b3", "910b"):
        assert on("deepseek-r1", name, 16, "w8a8").answer == "yes"
        assert on("deepseek-r1", name, 8, "w8a8").answer == "no"
        fp8 = on("deepseek-r1", name, 16)
        assert fp8.answer == "no" and "fp8 is not for this chip" in fp8.why


# (model, chip, cards, precision, answer, where it is documented)
DOCUMENTED = [
    ("deepseek-r1", "ascend-910c", 8, "int8", "yes", "vllm-ascend: R1 W8A8 on one A3 node of 16 dies"),
    ("deepseek-r1", "ascend-910c", 4, "int8", "no", "the same: half of it is not offered"),
    ("deepseek-r1", "a800", 16, "int8", "yes", "two nodes of A800 with INT8"),
    ("deepseek-r1", "a800", 8, "int8", "no", "the same"),
    ("deepseek-r1", "h100", 16, "", "yes", "DeepSeek-V3, README: two nodes of 8 x 80 GB"),
    ("deepseek-r1", "h200", 8, "", "yes", "SGLang: one node of 8 x H200"),
    ("deepseek-r1", "mi300x", 8, "", "yes", "SGLang and AMD: one node of 8 x MI300X"),
    ("deepseek-r1", "mi300x", 8, "bf16", "yes", "1.34 TB of 1.5 TB"),
    ("deepseek-r1", "h200", 8, "bf16", "no", "1.34 TB of 1.1 TB"),
    ("deepseek-r1", "a100-sxm-80", 16, "bf16", "no", "SGLang: BF16 wants four nodes of 8 x 80 GB"),
    ("deepseek-r1", "a100-sxm-80", 32, "bf16", "yes", "the same"),
    ("deepseek-r1", "910b3", 8, "w4a8", "yes", "4-bit experts: one node of 8 x 64 GB"),
    ("deepseek-r1-distill-llama-70b", "h100", 2, "", "yes", "common: 2 x 80 GB"),
    ("deepseek-r1-distill-llama-70b", "h100", 1, "", "no", "141 GB of 80"),
    ("deepseek-r1-distill-qwen-32b", "h100", 1, "", "yes", "66 GB of 80"),
    ("deepseek-r1-distill-qwen-32b", "l20", 1, "", "no", "66 GB of 48"),
    ("deepseek-r1-distill-qwen-7b", "rtx4090", 1, "", "yes", "15 GB of 24"),
    ("deepseek-r1-distill-qwen-14b", "rtx4090", 1, "", "no", "30 GB of 24"),
    ("qwen3-235b-a22b", "h100", 8, "", "yes", "Qwen3, README: 8 x 80 GB in BF16"),
    ("qwen3-235b-a22b", "h100", 4, "", "no", "470 GB of 320"),
    ("qwen3-235b-a22b-fp8", "h100", 4, "", "yes", "Qwen3, README: 4 x 80 GB in FP8"),
    ("qwen3-30b-a3b", "h100", 1, "", "yes", "61 GB of 80"),
]


@pytest.mark.parametrize(("model", "name", "cards", "precision", "answer", "where"), DOCUMENTED)
def test_documented_deployments(model: str, name: str, cards: int, precision: str, answer: str, where: str) -> None:
    one = on(model, name, cards, precision)
    assert one.answer == answer, f"{where}: {one.why}"


def test_unknown_memory_stays_unknown() -> None:
    hidden = msgspec.structs.replace(chip("h20"), memory_gb=unknown(), measured={})
    want = asked("qwen3-8b")
    one = fit(known("qwen3-8b"), hidden, 8, want)
    assert one.answer == "unknown" and one.left_bytes is None and one.lines == () and one.tokens == one.users == 0
    assert "memory of h20 is not known" in one.why
    assert least_cards(known("qwen3-8b"), hidden, want) is None
    assert changes(known("qwen3-8b"), hidden, one, want) == []


def test_what_no_source_says_of_a_precision_is_no_yes() -> None:
    silent = msgspec.structs.replace(
        chip("h20"), weights=(), precisions={p: msgspec.structs.replace(s, answer="unknown", evidence="unknown")
                                             for p, s in chip("h20").precisions.items()},
    )  # fmt: skip
    one = fit(known("qwen3-8b"), silent, 1, asked("qwen3-8b"))
    assert one.answer == "unknown" and "no source read says" in one.why and one.users > 0


def test_the_sum_adds_up() -> None:
    for rule in RULES.values():
        want = msgspec.structs.replace(asked("deepseek-r1"), rule=rule)
        one = fit(known("deepseek-r1"), chip("h200"), 8, want)
        memory, *needs = one.lines
        total = memory.bytes
        inside = sum(line.bytes for line in needs if line.need in rule.inside)
        everything = sum(line.bytes for line in needs)
        share = rule.share * (total - inside) if rule.of == "free" else rule.share * total - inside
        assert one.left_bytes == min(share, total - everything)
        assert one.tokens * one.token_bytes <= (one.left_bytes or 0) < (one.tokens + 64) * one.token_bytes
        assert all(line.how != "unknown" and line.source for line in one.lines)


def test_more_is_never_less() -> None:
    """Users grow with cards, and shrink with the context."""
    anatomy, name = known("deepseek-r1"), chip("h20")
    users = [max(fit(anatomy, name, n, asked("deepseek-r1")).users, 0) for n in (8, 16, 32)]
    assert users == sorted(users) and users[0] > 0
    shorter = [on("deepseek-r1", "h200", 8, context=c).users for c in (1024, 4096, 16384, 65536)]
    assert shorter == sorted(shorter, reverse=True)


def test_a_pipeline_is_as_roomy_as_its_tightest_stage() -> None:
    want = msgspec.structs.replace(asked("deepseek-r1"), layout=parse_layout("tp1,pp8"))
    one = fit(known("deepseek-r1"), chip("h200"), 8, want)
    assert one.answer == "yes" and one.token_bytes in (7 * 1152, 8 * 1152)
    cut = msgspec.structs.replace(asked("deepseek-r1"), layout=parse_layout("tp8"))
    assert one.tokens > fit(known("deepseek-r1"), chip("h200"), 8, cut).tokens


def test_layouts_asked_for_are_taken_or_refused() -> None:
    fixed = msgspec.structs.replace(asked("qwen3-235b-a22b-fp8"), layout=parse_layout("tp8"))
    one = fit(known("qwen3-235b-a22b-fp8"), chip("h100"), 8, fixed)
    assert one.answer == "no" and "no multiple of the block" in one.why
    first = changes(known("qwen3-235b-a22b-fp8"), chip("h100"), one, fixed)[0]
    assert first.options == "--layout tp8,ep8" and first.fit.answer == "yes"
    wrong = msgspec.structs.replace(fixed, layout=parse_layout("tp4"))
    assert "for 4 devices, and there are 8" in fit(known("qwen3-235b-a22b-fp8"), chip("h100"), 8, wrong).why


NOES = [
    ("deepseek-r1", "h800", 8, "", 8192, 1),
    ("deepseek-r1", "a100-sxm-80", 8, "", 8192, 1),
    ("deepseek-r1", "910b3", 16, "", 8192, 1),
    ("deepseek-r1", "h20", 8, "", 32768, 64),
    ("deepseek-r1-distill-llama-70b", "l40s", 4, "", 32768, 16),
    ("qwen3-235b-a22b", "h100", 4, "", 8192, 1),
    ("glm-4-9b-0414", "rtx4090", 1, "", 8192, 400),
    ("deepseek-r1-distill-qwen-7b", "v100-32", 1, "", 8192, 1),
]


@pytest.mark.parametrize(("model", "name", "cards", "precision", "context", "concurrency"), NOES)
def test_every_change_is_a_yes_by_the_same_sum(
    model: str, name: str, cards: int, precision: str, context: int, concurrency: int
) -> None:
    want = asked(model, precision, context, concurrency)
    one = fit(known(model), chip(name), cards, want)
    assert one.answer == "no" and one.why
    found = changes(known(model), chip(name), one, want)
    assert found
    for change in found:
        options = change.options.split()
        value = {options[i].removeprefix("--"): options[i + 1] for i in range(0, len(options), 2)}
        again = fit(
            known(model), chip(name), int(value.get("cards", cards)),
            Want(form=FORMS[value["precision"]] if "precision" in value else want.form,
                 context=int(value.get("context", want.context)),
                 concurrency=int(value.get("concurrency", want.concurrency))),
        )  # fmt: skip
        assert again.answer == "yes" and again.users == change.fit.users
        assert again.suits.answer == "yes"
    for change in found:  # one request more, or a page more, would not fit
        if change.options.startswith("--concurrency"):
            more = msgspec.structs.replace(want, concurrency=change.fit.concurrency + 1)
            assert fit(known(model), chip(name), cards, more).answer == "no"
        if change.options.startswith("--context") and change.fit.context < known(model).context:
            more = msgspec.structs.replace(want, context=change.fit.context + 1)
            assert fit(known(model), chip(name), cards, more).answer == "no"
    grown = [c for c in found if c.options.startswith("--cards") and "--precision" not in c.options]
    for change in grown:  # no smaller number of those that are tried does
        between = [n for n in counts(chip(name)) if cards < n < change.fit.cards]
        assert all(fit(known(model), chip(name), n, want).answer == "no" for n in between)


def test_a_yes_needs_no_change() -> None:
    want = asked("qwen3-8b")
    assert changes(known("qwen3-8b"), chip("h100"), fit(known("qwen3-8b"), chip("h100"), 1, want), want) == []


def test_longer_than_the_model_sees_is_a_no() -> None:
    want = Want(form=FORMS["bf16"], context=100_000)
    one = fit(known("qwen3-8b"), chip("h100"), 1, want)
    assert one.answer == "no" and "the model sees 40,960 tokens" in one.why
    assert [c.options for c in changes(known("qwen3-8b"), chip("h100"), one, want)] == ["--context 40960"]


def test_pages_are_whole() -> None:
    assert [pages(n) for n in (1, 64, 65)] == [64, 64, 128]


def test_numbers_of_cards_go_up_by_machines() -> None:
    assert counts(chip("h20"))[:6] == [1, 2, 4, 8, 16, 24]
    assert counts(chip("ppu-zw810e"))[:6] == [1, 2, 4, 8, 16, 32]


def test_an_assumed_machine_is_said() -> None:
    one = on("qwen3-8b", "l20", 2)
    assert any("cards per machine: not found" in note for note in one.notes)


def test_fewer_tokens_at_once_are_offered_before_anything_that_costs_more() -> None:
    # 61 GB of weights on an 80 GB card, and one request more than there is room for.
    roomy = on("qwen3-30b-a3b", "h100", 1, context=4096)
    want = asked("qwen3-30b-a3b", context=4096, concurrency=roomy.users + 1)
    now = fit(known("qwen3-30b-a3b"), chip("h100"), 1, want)
    assert now.answer == "no" and now.left_bytes is not None and now.left_bytes > 0
    offered = changes(known("qwen3-30b-a3b"), chip("h100"), now, want)
    first = offered[0]
    assert first.options.startswith("--chunk ") and first.fit.answer == "yes" and first.fit.form == now.form
    chunk = int(first.options.split()[1])
    assert 1024 <= chunk < 8192
    # The largest half that does: twice as many tokens do not fit.
    twice = msgspec.structs.replace(want, chunk=2 * chunk)
    assert fit(known("qwen3-30b-a3b"), chip("h100"), 1, twice).answer == "no"
    assert fit(known("qwen3-30b-a3b"), chip("h100"), 1, msgspec.structs.replace(want, chunk=chunk)).answer == "yes"


@pytest.mark.parametrize(("name", "offered"), [("rtx4090", "--cache fp8"), ("a100", "--cache int8")])
def test_an_8_bit_cache_is_offered_where_the_chip_computes_in_it(name: str, offered: str) -> None:
    model = "deepseek-r1-distill-llama-8b" if name == "rtx4090" else "deepseek-r1-distill-qwen-32b"
    roomy = fit(known(model), chip(name), 1, asked(model, context=4096))
    assert roomy.answer == "yes"
    want = asked(model, context=4096, concurrency=roomy.users + max(roomy.users // 2, 1))
    now = fit(known(model), chip(name), 1, want)
    assert now.answer == "no"
    made = {change.options: change.fit for change in changes(known(model), chip(name), now, want)}
    assert offered in made and made[offered].answer == "yes"
    assert 2 * made[offered].token_bytes == now.token_bytes
    unlike = msgspec.structs.replace(chip(name), precisions={
        **chip(name).precisions, "fp8-e4m3": NO_EVIDENCE, "int8": NO_EVIDENCE,
    })  # fmt: skip
    assert not any("--cache" in change.options for change in changes(known(model), unlike, now, want))
