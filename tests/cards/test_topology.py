"""The matrix of links: what it gives, and what a damaged one does not."""

from __future__ import annotations

from tests.cards.recordings import read, recordings

from twinline.cards.card import NEARNESS
from twinline.cards.matrix import kind, matrix


def test_two_quads_and_what_lies_between() -> None:
    found = read("mx-smi-topo-n").topology
    assert found is not None
    link = found.between("GPU0", "GPU3")
    assert link is not None and (link.kind, link.printed) == ("direct", "MX")
    assert found.groups() == (("GPU0", "GPU1", "GPU2", "GPU3"), ("GPU4", "GPU5", "GPU6", "GPU7"))
    assert found.groups("switch")[0][-2:] == ("NIC0", "NIC1")
    assert len(found.groups("system")) == 1
    far = found.between("GPU0", "GPU4")
    assert far is not None and far.kind == "node"


def test_words_and_their_nearness() -> None:
    words = ("NV18", "HCCS", "MX", "XGMI", "MTLINK", "PIX", "PXB", "PHB", "NODE", "SYS", "ETH", "NA", "PSB")
    assert [kind(word) for word in words] == ["direct"] * 5 + [
        "switch", "bridges", "host-bridge", "node", "system", "network", "unknown", "unknown",
    ]  # fmt: skip
    assert [NEARNESS.index(kind(word)) for word in ("NV1", "PIX", "SYS")] == [0, 1, 5]
    assert kind("PHB", {"PHB": "node"}) == "node"


def test_a_shifted_row_gives_nothing() -> None:
    text = recordings()["npu-smi-topo"].text.replace("NPU2     HCCS   HCCS    X ", "NPU2     HCCS    X ")
    found = matrix("huawei", "npu-smi", text)
    assert found.topology is not None
    assert not [link for link in found.topology.links if link.start == "NPU2"]
    assert "NPU2" in found.findings[0].text


def test_ends_that_contradict_one_another_give_nothing() -> None:
    text = "      GPU0  GPU1  GPU2\nGPU0  X  NV4  PIX\nGPU1  SYS  X  PIX\nGPU2  PIX  PIX  X\n"
    found = matrix("nvidia", "nvidia-smi", text)
    assert found.topology is not None
    assert found.topology.between("GPU0", "GPU1") is found.topology.between("GPU1", "GPU0") is None
    assert len(found.topology.links) == 4
    assert found.findings[0].kind == "doubtful"


def test_a_header_with_one_name_twice_is_no_header() -> None:
    found = matrix("nvidia", "nvidia-smi", "     GPU0  GPU0\nGPU0  X  NV4\nGPU0  NV4  X\n")
    assert found.topology is None
    assert found.findings
