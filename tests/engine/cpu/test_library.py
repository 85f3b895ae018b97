"""Calling kernels, recording them, and the threads that they share."""

import subprocess
import sys
import threading

import pytest
import torch

from twinline.engine.devices.device import NotCaptured
from twinline.engine.ops.cpu import library, small
from twinline.engine.ops.cpu.arena import Arena

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


@pytest.fixture
def four_threads():
    library.set_threads(4)
    yield
    library.set_threads(torch.get_num_threads())


def test_a_recorded_step_reads_its_inputs_anew_and_writes_the_same_result():
    x, weight, bias = torch.randn(3, 40), torch.rand(40), torch.zeros(3, 40)
    recording = library.Recording(Arena())

    def step() -> torch.Tensor:
        normed = small.rms_norm(x, weight, 1e-6)
        for _ in range(5):  # results that die on the way and share places
            normed, total = small.add_rms_norm(normed, bias, weight, 1e-6)
        return small.add_rms_norm(total, normed, weight, 1e-6)[1]

    result = recording.run(step)
    assert torch.equal(result, step())
    assert recording.arena.bytes < 2**25
    for _ in range(3):
        x.normal_()
        recording.replay()
        assert torch.equal(result, step())


def test_a_step_that_computes_otherwise_is_not_recorded():
    x, weight = torch.randn(3, 40), torch.rand(40)
    with pytest.raises(NotCaptured, match=r"aten.add.Tensor is no kernel of ours"):
        library.Recording(Arena()).run(lambda: small.rms_norm(x, weight, 1e-6) + 1)
    assert small.rms_norm(x, weight, 1e-6).shape == (3, 40)  # and nothing is recorded any more


def test_a_wrong_count_of_arguments_is_refused():
    with pytest.raises(TypeError, match="rms_norm takes 8 arguments, not 1"):
        library.call("rms_norm", 1)


@pytest.mark.usefixtures("four_threads")
def test_many_regions_on_many_threads_give_what_one_thread_gives():
    x, weight = torch.randn(64, 2048), torch.rand(2048)
    expected = torch.nn.functional.rms_norm(x, (2048,), weight, 1e-6)
    for _ in range(300):
        torch.testing.assert_close(small.rms_norm(x, weight, 1e-6), expected)


@pytest.mark.usefixtures("four_threads")
def test_two_callers_at_once_do_not_mix():
    weight, wrong = torch.rand(2048), []

    def call(seed: int) -> None:
        x = torch.randn(48, 2048, generator=torch.Generator().manual_seed(seed))
        expected = small.rms_norm(x, weight, 1e-6)
        for _ in range(100):
            if not torch.equal(small.rms_norm(x, weight, 1e-6), expected):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


SHORT_OF_MEMORY = """
import logging, resource, torch
from pathlib import Path
from twinline.engine.ops.cpu import library, small
logging.basicConfig()
library.set_threads(2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
library.set_threads(4096)
resource.setrlimit(resource.RLIMIT_AS, before)
x, weight = torch.randn(64, 256), torch.rand(256)
torch.testing.assert_close(small.rms_norm(x, weight, 1e-6), torch.nn.functional.rms_norm(x, (256,), weight, 1e-6))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_that_the_system_does_not_give_are_told_of_and_missed_by_nothing():
    ran = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "of 4096 threads compute: the system gives no more" in ran.stderr
