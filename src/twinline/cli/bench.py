"""`twinline bench`: measures, and prints what was measured for people or machines.

`bench serve` puts load on any OpenAI endpoint, `bench compare` (`bench_compare.py`) sets two runs side by side. Owns
the options and the run's record; the measuring is `verify/load.py`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinline import __version__
from twinline.cli import bench_compare
from twinline.cli.client import NoServer, Server, base_url
from twinline.cli.parser import DEFAULT_URL, CliError, add_server, integer, positive

if TYPE_CHECKING:
    from twinline.cli.bench_requests import Body
    from twinline.verify.load import Target

REQUESTS, CONCURRENCY, PROMPT_TOKENS = 64, 4, 128
NOT_RECORDED = ("run", "verb", "kind", "api_key", "json", "output", "price")


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)
    text = "time to first token, inter-token latency, throughput and goodput of an OpenAI endpoint"
    serve = kinds.add_parser("serve", help=text, description=text[0].upper() + text[1:] + ".")
    add_server(serve)
    serve.add_argument("--model", metavar="M", help="default: the one that is served")
    serve.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="default: %(default)s"
    )
    _configure_load(serve.add_argument_group("load"))
    _configure_prompts(serve.add_argument_group("prompts"))
    report = serve.add_argument_group("report")
    report.add_argument("--ttft-limit-ms", type=positive, metavar="X", help="goodput: latest first token")
    report.add_argument("--itl-limit-ms", type=positive, metavar="Y", help="goodput: highest mean time per later token")
    report.add_argument(
        "--price", type=_price, metavar="P", help="of all that serves, an hour, as '9.5 CNY': what a token costs"
    )
    report.add_argument("--json", action="store_true", help="print JSON instead of the table")
    report.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON here")
    text = "two runs of one load side by side, and what a token costs at each"
    bench_compare.configure(kinds.add_parser("compare", help=text, description=text[0].upper() + text[1:] + "."))


def _price(text: str) -> tuple[float, str]:
    from twinline.lines.fleet import kinds

    try:
        amount, currency = kinds.price(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if currency is None:
        raise argparse.ArgumentTypeError(f"in which currency? for example '{text} USD'")
    return amount, currency


def _configure_load(group: Any) -> None:
    group.add_argument(
        "--requests", type=integer(1), metavar="N", help=f"default: {REQUESTS}, or one for each line of --prompts"
    )
    shape = group.add_mutually_exclusive_group()
    shape.add_argument(
        "--concurrency", type=integer(1), metavar="C", help=f"closed loop: clients at once (default: {CONCURRENCY})"
    )
    shape.add_argument("--rate", type=positive, metavar="R", help="open loop: Poisson arrivals, R requests a second")
    group.add_argument(
        "--warmup", type=integer(0), default=1, metavar="N", help="requests before (default: %(default)s)"
    )
    group.add_argument(
        "--timeout", type=positive, default=600.0, metavar="S", help="longest run, in seconds (default: %(default)g)"
    )
    group.add_argument(
        "--wait", type=positive, default=0.0, metavar="S", help="wait for a server that is still starting"
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of prompts and arrivals (default: %(default)s)"
    )


def _configure_prompts(group: Any) -> None:
    group.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help='lines of {"prompt": ...} or {"messages": ...}'
    )
    group.add_argument(
        "--prompt-tokens",
        type=integer(1),
        metavar="N",
        help=f"words or ids in each made-up prompt (default: {PROMPT_TOKENS})",
    )
    group.add_argument(
        "--output-tokens", type=integer(1), default=64, metavar="N", help="asked of each request (default: %(default)s)"
    )
    group.add_argument("--token-ids", action="store_true", help="made-up prompts are token ids (completions only)")
    group.add_argument("--vocab", type=integer(1), metavar="V", help="--token-ids draws ids below V")
    group.add_argument("--respect-eos", action="store_true", help="let answers end early: do not send ignore_eos")


def check(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other or would be ignored."""
    if args.token_ids and args.endpoint == "chat":
        raise CliError("--token-ids needs --endpoint completions: the chat endpoint takes text", code=2)
    if args.token_ids != (args.vocab is not None):
        raise CliError("--token-ids and --vocab V go together: ids are drawn below V", code=2)
    if args.prompts and (args.token_ids or args.prompt_tokens):
        raise CliError("--prompts brings its own prompts: leave out --token-ids and --prompt-tokens", code=2)
    if args.wait and not args.warmup:
        raise CliError("--wait waits for the first warm-up request: it needs --warmup 1 or more", code=2)
    if args.output and not args.output.parent.is_dir():
        raise CliError(f"--output: there is no folder {args.output.parent}", code=2)
    if args.output and args.output.is_dir():
        raise CliError(f"--output: {args.output} is a folder: name a file in it", code=2)


def run(args: argparse.Namespace) -> int:
    """0 when every request was answered whole. Interrupted, it reports what was answered until then."""
    if args.kind == "compare":
        return bench_compare.run(args)
    check(args)
    from twinline.cli.bench_report import render
    from twinline.verify.load import INTERRUPTED, Closed, Open, Target, offer
    from twinline.verify.load_report import Limits, cost, summarise

    base = base_url(args.url or DEFAULT_URL)
    model = args.model or _only_model(Server(base, args.api_key), args.wait)
    warm, bodies = _bodies(args, model)
    target = Target(base, args.endpoint, args.api_key)
    _warm_up(target, warm, args)
    shape = Open(args.rate, args.seed) if args.rate else Closed(args.concurrency or CONCURRENCY)
    began = time.time()
    answers = asyncio.run(offer(target, bodies, shape, args.timeout))
    report = summarise(answers, Limits(args.ttft_limit_ms, args.itl_limit_ms))

    given = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items() if name not in NOT_RECORDED}
    made = None if args.prompts else args.prompt_tokens or PROMPT_TOKENS
    settings = {**given, "url": base, "model": model, "requests": len(bodies), "prompt_tokens": made, **asdict(shape)}
    document = {"twinline": __version__, "began_unix_s": began, "settings": settings, "report": asdict(report)}
    costs = None if args.price is None else cost(report, *args.price)
    if costs is not None:
        document["cost"] = asdict(costs)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    print(text if args.json else render(report, settings, costs))
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    if any(answer.error == INTERRUPTED for answer in answers):
        return 130
    return 0 if report.completed == report.requests else 1


def _only_model(server: Server, wait: float) -> str:
    end = time.monotonic() + wait
    while True:
        try:
            return server.only_model()
        except NoServer:
            if time.monotonic() >= end:
                raise
        time.sleep(0.5)


def _bodies(args: argparse.Namespace, model: str) -> tuple[list[Body], list[Body]]:
    """Requests to warm up with, and to measure: other ones while there are enough, so that no prefix is cached yet."""
    from twinline.cli.bench_requests import Wanted, from_file, synthetic

    wanted = Wanted(
        model=model,
        endpoint=args.endpoint,
        output_tokens=args.output_tokens,
        prompt_tokens=args.prompt_tokens or PROMPT_TOKENS,
        vocab=args.vocab,
        ignore_eos=not args.respect_eos,
        seed=args.seed,
    )
    if args.prompts:
        bodies = from_file(wanted, args.prompts, args.requests)
        return [bodies[-1 - i % len(bodies)] for i in range(args.warmup)], bodies
    count = args.requests or REQUESTS
    bodies = synthetic(wanted, count + args.warmup)
    return bodies[count:], bodies[:count]


def _warm_up(target: Target, bodies: list[Body], args: argparse.Namespace) -> None:
    from twinline.verify.load import warm_up

    failed = asyncio.run(warm_up(target, bodies, args.timeout, args.wait))
    if failed:
        raise CliError(f"the warm-up request to {target.url} failed: {failed.error}: {failed.detail}")
