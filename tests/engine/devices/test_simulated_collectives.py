"""torch.distributed over simulated chips, one process each: right sums, and planted ones that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NAMES = {
    "right": "simchip:clean",
    "rank": "simchip:clean+all-reduce-loses-a-rank",
    "bits": "simchip:clean+all-reduce-in-16-bits",
    "swap": "simchip:clean+all-gather-swapped",
}

RANK = """
import json, sys, torch
from torch import distributed
from twinline.engine.devices.device import open_device
rank, store, names = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
open_device("simchip")  # PyTorch knows the name from here on
distributed.init_process_group("cpu:gloo,simchip:gloo", init_method=f"file://{store}", rank=rank, world_size=2)
found = {}
for name, device in names.items():
    where = open_device(device).torch_device
    total = torch.tensor([1.001, 2.0, 3.0], device=where) * (rank + 1)
    distributed.all_reduce(total)
    parts = [torch.zeros(2, device=where) for _ in range(2)]
    distributed.all_gather(parts, torch.arange(2.0, device=where) + 10 * rank)
    sent = torch.full((2,), 7.0 + rank, device=where)
    distributed.broadcast(sent, 1)
    assert total.device == sent.device == where
    found[name] = [total.tolist(), torch.cat(parts).tolist(), sent.tolist()]
distributed.barrier()
distributed.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has, by name."""
    store: Path = tmp_path_factory.mktemp("ranks") / "store"
    command = [sys.executable, "-c", RANK]
    environment = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(store), json.dumps(NAMES)], stdout=subprocess.PIPE, env=environment)
        for rank in range(2)
    ]
    try:
        return [json.loads(rank.communicate(timeout=90)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_sums_parts_and_broadcasts(found: list[dict[str, Any]]) -> None:
    for rank in found:
        total, parts, sent = rank["right"]
        assert total == pytest.approx([3.003, 6.0, 9.0], rel=1e-6)
        assert (parts, sent) == ([0.0, 1.0, 10.0, 11.0], [8.0, 8.0])


def test_planted_wrong_ones(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["rank"][0] == pytest.approx([1.001, 2.0, 3.0], rel=1e-6)
        assert rank["bits"][0] == [3.0, 6.0, 9.0]
        assert rank["swap"][1] == [0.0, 1.0, 11.0, 10.0]
        assert rank["swap"][0] == rank["right"][0]
