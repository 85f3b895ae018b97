"""The kernels' pool of threads under ThreadSanitizer: every task is run once, and no two threads race."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "csrc" / "cpu"
COMPILER = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or "g++"]


def compiled(program: Path, *sources: Path) -> subprocess.CompletedProcess[str]:
    command = [*COMPILER, "-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{SOURCES}", "-pthread", "-o", program]
    return subprocess.run([*command, *sources], capture_output=True, text=True)


def built(folder: Path) -> Path:
    (folder / "nothing.cpp").write_text("int main() {}")
    if compiled(folder / "nothing", folder / "nothing.cpp").returncode:
        pytest.skip("no ThreadSanitizer here")
    program = folder / "threads"
    made = compiled(program, HERE / "threads.cpp", SOURCES / "threads.cpp")
    assert made.returncode == 0, made.stderr[-3000:]
    return program


@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")
def test_callers_workers_and_a_changing_pool_never_race(tmp_path):
    program = built(tmp_path)
    # It cannot place its shadow where a kernel scatters mappings widely.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    run = subprocess.run([*fixed, program], capture_output=True, text=True, timeout=150)
    if "unexpected memory mapping" in run.stderr or "failed to set personality" in run.stderr:
        pytest.skip("ThreadSanitizer cannot run here")
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
