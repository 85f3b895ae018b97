"""The kernels' pool of threads under ThreadSanitizer: every task is run once, and no two threads race."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "csrc" / "cpu"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def built(folder: Path) -> Path:
    program = folder / "threads"
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{SOURCES}", "-pthread"]
    made = subprocess.run([*command, "-o", program, HERE / "threads.cpp", SOURCES / "threads.cpp"], capture_output=True)
    if made.returncode:
        pytest.skip(f"no ThreadSanitizer here: {made.stderr.decode()[-200:]}")
    return program


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_callers_workers_and_a_changing_pool_never_race(tmp_path):
    program = built(tmp_path)
    # It cannot place its shadow where a kernel scatters mappings widely.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    run = subprocess.run([*fixed, program], capture_output=True, text=True, timeout=150)
    if "unexpected memory mapping" in run.stderr or "failed to set personality" in run.stderr:
        pytest.skip("ThreadSanitizer cannot run here")
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
