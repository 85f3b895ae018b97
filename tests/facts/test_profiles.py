"""A profile's file: whole, read back as it was, and refused in a line where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinline.facts.profiles import BadProfile, Choice, Efficiency, Profile, Refused, read_profile, write_profile

PROFILE = Profile(
    device="chip:1", device_name="chip", simulated=False, model="m", architecture="A", dtype="float32",
    dtypes=("float32", "bfloat16"), seed=3, date="2026-01-01T00:00:00+00:00", grade="limited", rule="limited: x",
    choices=(Choice(op="linear", dtype="float32", provider="reference", passed_over=(("fast", "wrong"),)),),
    refused=(Refused(op="linear", provider="fast", dtype="float32", reason="wrong"),),
    efficiencies=(Efficiency(op="linear", provider="reference", dtype="float32", phase="decode", shape="8x4",
                             share_of_roofline=0.5, seconds=1e-5, bytes=100, flops=200),),
    measured={"peak_flops": 1e12},
)  # fmt: skip


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_profile(PROFILE, tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == PROFILE
    assert [f.name for f in tmp_path.iterdir()] == ["p.json"]


def test_what_is_asked_of_it() -> None:
    assert PROFILE.refusals("float32") == {("linear", "fast"): "wrong"} and PROFILE.refusals("bfloat16") == {}
    assert PROFILE.provider("linear", "float32") == "reference" and PROFILE.provider("rope", "float32") is None
    found = PROFILE.efficiency("linear", "decode")
    assert found is not None and found.share_of_roofline == 0.5 and PROFILE.efficiency("linear", "prefill") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is no profile"), ('{"device": 1}', "is no profile"), ("[]", "is no profile")],
)
def test_what_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(BadProfile, match=said):
        read_profile(tmp_path / "p.json")


def test_a_missing_one_and_one_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(BadProfile, match=r"no profile at .*twinline adapt"):
        read_profile(tmp_path / "p.json")
    write_profile(PROFILE, tmp_path / "p.json")
    later = (tmp_path / "p.json").read_text().replace('"version": 1', '"version": 9')
    (tmp_path / "p.json").write_text(later if '"version"' in later else later.replace("{", '{"version": 9,', 1))
    with pytest.raises(BadProfile, match="version 9"):
        read_profile(tmp_path / "p.json")
