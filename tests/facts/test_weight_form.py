"""Forms of weights by name, what contradicts, and what a matrix weighs."""

from __future__ import annotations

import pytest

from twinline.facts.weight_form import PLAIN, WeightForm, Weights, read_weight_form, read_weights


@pytest.mark.parametrize(
    ("name", "form", "dtype"),
    [
        ("auto", PLAIN, None),
        ("plain", PLAIN, None),
        ("bfloat16", PLAIN, "bfloat16"),
        ("FP32", PLAIN, "float32"),
        ("int8", WeightForm("int8"), None),
        ("int8:64", WeightForm("int8", 64), None),
        ("int4", WeightForm("int4", 32), None),
        (" int4:128 ", WeightForm("int4", 128), None),
        ("fp8", WeightForm("fp8"), None),
    ],
)
def test_names(name: str, form: WeightForm, dtype: str | None) -> None:
    assert read_weight_form(name) == (form, dtype)


@pytest.mark.parametrize(
    "form", [WeightForm("int8"), WeightForm("int8", 32), WeightForm("int4", 64), WeightForm("fp8")]
)
def test_a_form_is_written_as_it_is_read(form: WeightForm) -> None:
    assert read_weight_form(str(form)) == (form, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("int5", "'int5' is not a form of weights; use one of auto, plain"),
        ("", "is not a form of weights"),
        ("plain:32", "is not a form of weights"),
        ("int4:", "groups of '' values are not supported; use int4:32 or int4:64 or int4:128"),
        ("int4:48", "groups of '48'"),
        ("int4:0", "groups of '0'"),
        ("int4:٣٢", "groups of '٣٢'"),
        ("int8:x", "use int8:32 or int8:64 or int8:128"),
    ],
)
def test_what_is_no_form_is_refused_with_what_is(name: str, words: str) -> None:
    with pytest.raises(ValueError, match="head_weights") as caught:
        read_weight_form(name, "head_weights")
    assert words in str(caught.value)


def test_the_head_is_as_the_layers_unless_it_is_asked_for() -> None:
    int8, int4 = WeightForm("int8"), WeightForm("int4", 64)
    assert read_weights() == Weights(PLAIN, PLAIN, "auto", as_stored=True, head_as_stored=True)
    assert read_weights(head_weights="int8") == Weights(PLAIN, WeightForm("int8"), "auto", as_stored=True)
    assert not read_weights(weights="plain").as_stored
    assert read_weights(weights="int4:64") == Weights(int4, int4, "auto")
    assert read_weights("bfloat16", "int4:64", "int8") == Weights(int4, int8, "bfloat16")
    assert read_weights(weights="int8", head_weights="plain") == Weights(int8, PLAIN, "auto")


def test_a_dtype_may_be_said_as_the_form_of_weights_once() -> None:
    assert read_weights(weights="bf16").dtype == "bfloat16"
    assert read_weights("bfloat16", "bf16", "bfloat16").dtype == "bfloat16"
    with pytest.raises(ValueError, match="weights says float32 and dtype bfloat16"):
        read_weights("bfloat16", "float32")
    with pytest.raises(ValueError, match="head_weights says float32 and dtype bfloat16"):
        read_weights(weights="bfloat16", head_weights="float32")


@pytest.mark.parametrize(
    ("form", "size"),
    [
        (PLAIN, 3 * 100 * 2),
        (WeightForm("int8"), 3 * 100 + 3 * 4),
        (WeightForm("int8", 64), 3 * 100 + 3 * 2 * 4),
        (WeightForm("int4", 32), 3 * 50 + 3 * 4 * 2),
        (WeightForm("int4", 128), 3 * 50 + 3 * 2),
        (WeightForm("fp8"), 3 * 100 + 4),
    ],
)
def test_bytes_count_the_scales_of_short_groups_too(form: WeightForm, size: int) -> None:
    assert form.bytes(3, 100, 2) == size
