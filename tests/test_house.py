"""The rules of the house, read from the source: vendor names stay home, imports point down, files are small and say
what they own.

Sources are parsed, never imported, so that a rule is checked for what needs a device or a package that is not here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "twinline"
BENCHMARKS = SRC.parents[1] / "benchmarks"
FILES = sorted(SRC.rglob("*.py"))

# Vendor names.

VENDORS = frozenset(
    "nvidia cuda cudnn cublas nccl nvml hopper blackwell triton flashmla deepgemm tensorrt cutlass "
    "ascend huawei npu cann hccl mindie aclnn davinci metax maca mccl mxgpu mthreads moore musa mccl biren supa "
    "kunlun kunlunxin baidu xpu xccl hygon dcu cambricon mlu cncl cnnl bang iluvatar corex ixccl enflame gcu eccl "
    "topsrider amd rocm hip rccl cdna instinct intel habana gaudi onednn mkldnn mkl openvino ipex zendnn mps".split()
)
HOME = ("engine/devices/", "engine/ops/", "cards/")
BELOW = ("facts/",)  # facts about chips are the chips' own names; the rule is for what stands above

# file -> word -> why it may be said there.
ALLOWED: dict[str, dict[str, str]] = {
    "cli/serve.py": {"cuda": "the help of --device shows a value as it is typed: a PyTorch device type"},
}


def words(text: str) -> set[str]:
    """`torch.cuda.isAvailable` -> torch, cuda, is, available."""
    apart = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    return set(re.findall(r"[a-z]+", apart.lower()))


def said(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every identifier and string of a module, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.alias(name=text):
                yield line, text
            case ast.FunctionDef(name=text) | ast.AsyncFunctionDef(name=text) | ast.ClassDef(name=text):
                yield line, text
            case ast.Constant(value=str(text)):
                yield line, text
            case ast.keyword(arg=str(text)):
                yield line, text
            case ast.ImportFrom(module=str(text)):
                yield line, text
            case _:
                pass


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def name(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


def vendor_names(file: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for line, text in said(parsed(file)):
        for word in words(text) & VENDORS:
            found.setdefault(word, []).append(line)
    return found


def test_the_house_is_there() -> None:
    assert len(FILES) > 50


def test_vendor_names_stay_home() -> None:
    faults = {}
    for file in FILES:
        if not name(file).startswith(HOME + BELOW):
            allowed = ALLOWED.get(name(file), {})
            faults[name(file)] = {word: lines for word, lines in vendor_names(file).items() if word not in allowed}
    assert not {file: found for file, found in faults.items() if found}


def test_every_allowance_is_needed_and_has_a_reason() -> None:
    for file, reasons in ALLOWED.items():
        for word, reason in reasons.items():
            assert word in vendor_names(SRC / file), f"{file} does not say {word} any more"
            assert len(reason) > 10


def test_a_vendor_name_would_be_found() -> None:
    seen = {w for _, text in said(ast.parse("import torch\nx = torch.cuda.is_available()\ny = f'use {z}NpuGraph'"))
            for w in words(text)}  # fmt: skip
    assert {"cuda", "npu"} <= seen & VENDORS
    assert words("HIPGraph on_npu0 useMUSA") & VENDORS >= {"npu", "musa"}


# Imports.

# DESIGN.md: `cli, console -> gateway, train, simulate -> lines, verify, plan, doctor -> cards, engine -> facts`.
RANKS = (
    ("cli", "console"),
    ("gateway", "train", "simulate"),
    ("lines", "verify", "plan", "doctor"),
    ("cards", "engine"),
    ("facts",),
)
STORE = "store"  # what survives a restart: beside the order, seen from `lines` upwards; it imports facts alone
RANK = {package: depth for depth, packages in enumerate(RANKS) for package in packages}
TORCH = frozenset({"engine", "train"})
TORCH_TOO = ("verify/ladder/",)  # the ladder tries an engine's ops and models with tensors of its own


def package(file: Path) -> str:
    """The room of a file; a file directly under twinline belongs to none."""
    parts = file.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else ""


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it, and lazy ones named as `twinline.x.y:Name` in a string."""
    for node in ast.walk(parsed(file)):
        match node:
            case ast.Import(names=aliases):
                yield from ((node.lineno, alias.name) for alias in aliases)
            case ast.ImportFrom(module=module, level=0, names=aliases):
                assert module is not None
                yield node.lineno, module
                if module == "twinline":
                    yield from ((node.lineno, f"twinline.{alias.name}") for alias in aliases)
            case ast.Constant(value=str(text)) if re.fullmatch(r"twinline(\.\w+)+(:\w+)?", text):
                yield node.lineno, text.partition(":")[0]
            case _:
                pass


def rooms(file: Path) -> Iterator[tuple[int, str]]:
    for line, module in imports(file):
        parts = module.split(".")
        if parts[0] == "twinline" and len(parts) > 1 and (SRC / parts[1]).is_dir():
            yield line, parts[1]


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or importer == "":
        return True
    if importer == STORE:
        return imported == "facts"
    if imported == STORE:
        return importer not in ("facts", "cards", "engine")
    if importer == "gateway" and imported == "engine":
        return False
    return RANK[imported] > RANK[importer]


def test_no_relative_imports() -> None:
    for file in FILES:
        assert not [n for n in ast.walk(parsed(file)) if isinstance(n, ast.ImportFrom) and n.level], name(file)


def test_imports_point_down() -> None:
    wrong = [f"{name(file)}:{line} imports {room}" for file in FILES for line, room in rooms(file)
             if not may_import(package(file), room)]  # fmt: skip
    assert not wrong


def test_torch_stays_in_engine_and_train() -> None:
    free = [f for f in FILES if package(f) not in TORCH and not name(f).startswith(TORCH_TOO)]
    wrong = [f"{name(file)}:{line} imports {module}" for file in free for line, module in imports(file)
             if module.split(".")[0] in ("torch", "triton")]  # fmt: skip
    assert not wrong


def test_facts_import_nothing_of_ours_but_facts() -> None:
    for file in FILES:
        if package(file) == "facts":
            assert {room for _, room in rooms(file)} <= {"facts"}, name(file)


def test_every_room_is_in_the_order() -> None:
    assert {package(f) for f in FILES} - {""} <= RANK.keys() | {STORE}


def test_the_order_is_enforced() -> None:
    for importer, imported, allowed in (
        ("cli", "gateway", True), ("gateway", "lines", True), ("gateway", "engine", False), ("lines", "gateway", False),
        ("engine", "facts", True), ("facts", "engine", False), ("verify", "engine", True), ("lines", "verify", False),
        ("train", "engine", True), ("simulate", "gateway", False), ("store", "facts", True), ("gateway", "store", True),
        ("engine", "store", False),
    ):  # fmt: skip
        assert may_import(importer, imported) is allowed, (importer, imported)


# Files.

CEILING = 400


def test_every_file_opens_with_what_it_owns() -> None:
    """A file with nothing in it (a package's mark) owns nothing."""
    assert not [name(f) for f in FILES if parsed(f).body and not ast.get_docstring(parsed(f))]


def test_no_file_over_the_ceiling() -> None:
    """The benchmarks' too: they are read by whoever doubts a figure."""
    lengths = {f: len(f.read_text("utf-8").splitlines()) for f in [*FILES, *BENCHMARKS.rglob("*.py")]}
    assert not {str(f): length for f, length in lengths.items() if length > CEILING}
