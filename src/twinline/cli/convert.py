"""`twinline convert`: a model folder written once more in another precision, with a report of what that cost.

Owns the verb's options and what is printed. Must not know how weights are stored (`engine/quant`) nor how quality is
measured (`verify/quality.py`).
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from twinline.cli.parser import CliError, integer
from twinline.cli.table import aligned
from twinline.facts.models import UnsupportedModel, spec_from_config

GB = 10**9
TOKENS = 2048
PROBLEMS = 200


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="DIR", help="a model folder: plain, FP8, compressed-tensors, GPTQ, AWQ"
    )
    parser.add_argument("target", type=Path, metavar="NEW", help="the folder to write; it must not exist")
    parser.add_argument(
        "--to",
        required=True,
        metavar="V",
        help="bfloat16, float16, float32, fp8 (blocks of 128 x 128, as DeepSeek's), int8 (W8A8, a scale for each row), "
        "int4:32, int4:64, int4:128 (W4A16; a number is how many values share a scale); the last two kinds in "
        "compressed-tensors' layout",
    )
    parser.add_argument(
        "--shard-gb", type=integer(1, 10**6), default=5, metavar="GB", help="largest file; default: %(default)s"
    )
    parser.add_argument(
        "--quality", choices=("on", "off"), default="on", help="whether both are run and compared; default: %(default)s"
    )
    parser.add_argument("--texts", type=Path, metavar="FILE", help="what to compare them on: UTF-8, a text to a line")
    parser.add_argument(
        "--tokens", type=integer(2, 10**7), default=TOKENS, metavar="N", help="of those texts; default: %(default)s"
    )
    parser.add_argument(
        "--problems",
        type=integer(0, 10**5),
        default=PROBLEMS,
        metavar="N",
        help="that tiny-r1 solves in both variants; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="the report for machines")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when the folder is written and, where it was asked for, its quality measured."""
    if args.texts is not None and args.quality == "off":
        raise CliError("--texts says what to measure quality on, and --quality is off", code=2)
    if args.texts is not None and not args.texts.is_file():
        raise CliError(f"no file at {args.texts}")
    from twinline.engine.quant.convert import convert
    from twinline.engine.quant.variants import read_variant
    from twinline.facts.models import read_config

    try:
        variant = read_variant(args.to)
    except ValueError as error:
        raise CliError(str(error), code=2) from None
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")
    source, target = args.source.resolve(), args.target.resolve()
    try:
        done = convert(source, target, variant, args.shard_gb * GB, _progress if _watched(args) else lambda d, t: None)
    except UnsupportedModel as error:
        raise CliError(str(error)) from None
    finally:
        if _watched(args):
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    report: dict[str, Any] = {
        "source": str(source), "target": str(target), "variant": done.variant, "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after, "files": done.files, "tensors": done.tensors, "matrices": done.matrices,
        "copied_exactly": done.copied, "kept_plain": list(done.kept), "quality": None, "quality_missing": None,
    }  # fmt: skip
    if args.quality == "on":
        try:
            spec_from_config(read_config(target))
            report["quality"] = _quality(args, source, target)
        except (ValueError, OSError, RuntimeError) as error:
            report["quality_missing"] = " ".join(str(error).split())
    else:
        report["quality_missing"] = "not asked for"
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else _text(report))
    return 0 if report["quality"] is not None or args.quality == "off" else 1


def _watched(args: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not args.json


def _progress(done: int, total: int) -> None:
    width = max(10, shutil.get_terminal_size().columns - 40)
    full = width * done // max(total, 1)
    text = f"\r{'#' * full}{'.' * (width - full)} {done / GB:.2f} of {total / GB:.2f} GB"
    print(text, end="", file=sys.stderr, flush=True)


def _quality(args: argparse.Namespace, source: Path, target: Path) -> dict[str, Any]:
    from twinline.engine.quant.vector_quality import VectorDistance
    from twinline.verify.quality import quality

    found = quality(source, target, args.texts, args.tokens, args.problems)
    d, t = found.distance, found.tasks
    if isinstance(d, VectorDistance):
        return {"texts": found.texts, "positions": d.positions, "vectors": d.count, "cosine": d.cosine,
                "cosine_least": d.cosine_least}  # fmt: skip
    return {
        "texts": found.texts, "positions": d.positions, "kl_nats": d.kl, "kl_nats_99": d.kl_99,
        "kl_nats_most": d.kl_most, "top1_agreement": d.top1, "perplexity_source": d.perplexity_source,
        "perplexity_target": d.perplexity_target,
        "tasks": None if t is None else {"problems": t.problems, "source_right": t.source_right,
                                         "target_right": t.target_right, "lost": t.lost, "won": t.won},
    }  # fmt: skip


def _text(report: dict[str, Any]) -> str:
    before, after = report["bytes_before"], report["bytes_after"]
    files = f"{report['files']} file{'s' if report['files'] != 1 else ''}"
    size = f"{after / GB:.3f} GB in {files}, {after / before:.0%} of {before / GB:.3f} GB"
    matrices = ", ".join(f"{count} in {kind}" for kind, count in report["matrices"].items())
    lines = [
        f"{report['target']}: {report['variant']}, {size}",
        f"  matrices: {matrices}",
    ]
    if report["copied_exactly"]:
        lines.append(f"  {report['copied_exactly']} of them have the source's own numbers")
    kept = report["kept_plain"]
    if kept:
        lines.append(
            f"  {len(kept)} linear layers stay plain: their inputs are no whole number of groups, first {kept[0]}"
        )
    q = report["quality"]
    if q is None:
        return "\n".join([*lines, f"  quality: not measured ({report['quality_missing']})"])
    if "cosine" in q:
        cosines = [
            ("cosine of a text's two vectors, mean", f"{q['cosine']:.6f}"),
            ("  least", f"{q['cosine_least']:.6f}"),
        ]
        where = f"  quality on {q['vectors']} texts ({q['texts']}), in float32:"
        return "\n".join([*lines, where, aligned(cosines, "    ")])
    rows = [
        ("KL(source || new), mean", f"{q['kl_nats']:.3g} nats"),
        ("  99th percentile", f"{q['kl_nats_99']:.3g} nats"),
        ("  greatest", f"{q['kl_nats_most']:.3g} nats"),
        ("same likeliest token", f"{q['top1_agreement']:.2%}"),
        ("perplexity, source", f"{q['perplexity_source']:.4f}"),
        ("perplexity, new", f"{q['perplexity_target']:.4f}"),
    ]
    if t := q["tasks"]:
        rows += [
            ("problems solved, source", f"{t['source_right']} of {t['problems']}"),
            ("problems solved, new", f"{t['target_right']} of {t['problems']}"),
            ("  only by one of them", f"{t['lost']} lost, {t['won']} won"),
        ]
    return "\n".join(
        [*lines, f"  quality on {q['positions']} tokens of {q['texts']}, in float32:", aligned(rows, "    ")]
    )
