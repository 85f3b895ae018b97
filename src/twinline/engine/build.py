"""Puts an engine together from a checkpoint folder: device, dtype, ops, model, cache, scheduler.

Owns the sizes that are derived when nobody gave them. The only place that knows all the parts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from twinline.engine.devices.device import Device, dtype_name, open_device
from twinline.engine.loop import Engine
from twinline.engine.models import loader
from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.models.forms import Forms, as_stored, says
from twinline.engine.models.half_range import exponent_for
from twinline.engine.models.loader import load
from twinline.engine.models.transformer import Transformer
from twinline.engine.ngram import Lookup
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.engine.pages import PagePool
from twinline.engine.payoff import Payoff
from twinline.engine.prediction import Prediction
from twinline.engine.request import Output, Request
from twinline.engine.runner import Runner
from twinline.engine.sampler import Sampler
from twinline.engine.scheduler import Scheduler
from twinline.engine.sizes import cache_tokens, weight_bytes
from twinline.engine.speculation import Speculation
from twinline.facts.models import GroupedQuery, ModelSpec, UnsupportedModel, read_spec
from twinline.facts.pooling import MODULES, PROMPTS, Pooling, read_pooling
from twinline.facts.profiles import Profile, read_profile
from twinline.facts.quantization import read_quantization
from twinline.facts.weight_form import PLAIN_WEIGHTS, Weights, read_weights

log = logging.getLogger(__name__)

# Below this a second thread costs more than it computes, and it takes the core that the gateway needs: measured on two
# cores, tiny-r1 over HTTP gives 1.4 to 1.6 times the tokens with one thread, for 1 user and for 32.
SMALL_WEIGHTS = 64 * 2**20
SPECULATIONS: dict[str, tuple[str, ...]] = {
    "off": (), "ngram": ("ngram",), "mtp": ("mtp",), "ngram+mtp": ("ngram", "mtp"),
}  # fmt: skip
MOST_THREADS = 1024  # a number beyond is a slip, and the system would end the process that asks for so many
DRAFT_ROWS = 8  # of a step that guesses; beyond, rows cost what tokens that are not guessed would
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """How to run a model. 0 and "auto" mean: derived from the model and the device. `profile` is a file that
    `twinline adapt` wrote: providers that it refuses are passed over; a device of "auto" is then the profile's.

    `weights` and `head_weights` are forms by name (facts/weight_form.py); "auto" keeps weights as the checkpoint has
    them, and the output head as `weights` says. `speculation` is one of SPECULATIONS: where guesses come
    from, and who is asked first. `draft_depth`: tokens that the prediction layer guesses at once."""

    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    head_weights: str = "auto"
    max_tokens_per_step: int = 0
    max_running: int = 64
    max_waiting: int = 1024
    max_model_len: int = 0
    kv_tokens: int = 0
    page_size: int = 0
    threads: int = 0
    strict_ops: bool = False
    prefix_cache: bool = True
    profile: str = ""
    speculation: str = "off"
    draft_depth: int = 1


@dataclass(frozen=True)
class Built:
    engine: Engine
    spec: ModelSpec
    device: Device
    dtype: torch.dtype
    ops: Ops
    max_model_len: int
    kv_tokens: int
    pooling: Pooling | None = None


def build(
    directory: Path,
    options: Options,
    deliver: Callable[[Sequence[Output]], None],
    observe: Callable[[Request, float], None] = lambda request, now: None,
) -> Built:
    """An engine ready to start.

    Raises UnsupportedModel for a checkpoint that cannot be served, ValueError for options that cannot hold.
    """
    spec, pooling = read_model(directory)
    if pooling is not None and options.speculation != "off":
        raise ValueError("speculation: this model gives vectors, and generates nothing that could be guessed")
    profile = read_profile(Path(options.profile)) if options.profile else None
    device = open_device(profile.device if profile and options.device == "auto" else options.device)
    wanted = read_weights(options.dtype, options.weights, options.head_weights)
    dtype = _dtype(wanted.dtype, spec, device)
    refused = _refused(profile, device, dtype)
    predictor = _predicts(options, spec)
    forms = kept_forms(directory, device, dtype, spec, refused, wanted, predictor=predictor)
    if forms is not None:
        wanted = dataclasses.replace(wanted, layers=forms.layers, head=forms.head)
    ops = ops_for(device, dtype, spec, refused, wanted)
    context, budget, page_size = _sizes(options, spec, pooling, device)
    shape = Transformer(ops, spec, predictor=predictor)
    if forms is not None:
        forms.give(shape)
    ops.refuse_broken(shape.uses())
    if profile is not None:
        _refuse_untried(profile, shape.uses(), dtype_name(dtype), directory, wanted)
    weights = weight_bytes(shape)
    if threads := options.threads or (1 if weights < SMALL_WEIGHTS else 0):
        device.set_threads(threads)
    if options.strict_ops:
        ops.refuse_reference(shape.uses())
    tokens = cache_tokens(
        spec,
        dtype,
        device,
        weights,
        wanted=options.kv_tokens,
        useful=options.max_running * context,
        least=2 * page_size,
        predictors=int(predictor),
    )
    pages = -(-tokens // page_size)
    model = load(directory, spec, ops, device.torch_device, context, forms, predictor=predictor).eval()
    if exponent := exponent_for(dtype, spec):
        log.info(
            "float16: the residual stream is kept at 1/%d of its size, its weights and norms to match", 2**exponent
        )
    pool = PagePool(pages, page_size, prefix_cache=options.prefix_cache)
    scheduler = Scheduler(
        pool,
        max_tokens_per_step=budget,
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        max_model_len=min(context, pages * page_size + (0 if pooling else 1)),
        ahead=int(predictor),
    )
    runner = Runner(model, device, pages=pages, page_size=page_size, dtype=dtype)
    sampler = Sampler(spec.vocab)
    guesses = _speculation(options, runner, sampler, scheduler)
    engine = Engine(runner, pool, scheduler, sampler, deliver, observe, guesses)
    log.info("ops:\n%s", ops.explain(model.uses()))
    log.info("decode graphs: %s", runner.graphs.why_not or "recorded as they are needed")
    return Built(engine, spec, device, dtype, ops, scheduler.max_model_len, pages * page_size, pooling)


def _sizes(options: Options, spec: ModelSpec, pooling: Pooling | None, device: Device) -> tuple[int, int, int]:
    """Tokens of the longest request, of a step, and of a page. Raises ValueError for options that cannot hold."""
    longest = min(spec.context, (pooling and pooling.longest) or spec.context)
    context = options.max_model_len or longest
    if context < 2:
        raise ValueError(f"max_model_len must be at least 2 (one token in, one out), not {context}")
    if context > spec.context:
        raise ValueError(f"max_model_len {context} is beyond the model's context of {spec.context} tokens")
    if options.max_running < 1:
        raise ValueError(f"max_running must be at least 1, not {options.max_running}")
    if not 0 <= options.threads <= MOST_THREADS:
        raise ValueError(f"threads must be between 0 (derived) and {MOST_THREADS}, not {options.threads}")
    if options.page_size < 0:
        raise ValueError(f"page_size must be at least 1, or 0 (derived), not {options.page_size}")
    budget = options.max_tokens_per_step or device.step_tokens
    if budget <= options.max_running:
        raise ValueError(f"max_tokens_per_step {budget} must exceed max_running {options.max_running}")
    return context, budget, options.page_size or device.page_size


def read_model(directory: Path) -> tuple[ModelSpec, Pooling | None]:
    """What a folder holds: a model that generates, or one that gives vectors, whose head is not loaded. A head beside
    the embedding that it should be tied to is taken for what the weights say, if it is another (as `transformers` 5
    and vLLM do).

    Raises UnsupportedModel, also for a backbone of which nothing says how its vectors are made.
    """
    spec, pooling = read_spec(directory), read_pooling(directory)
    if pooling is not None:
        if pooling.prompt is not None:
            log.warning(
                "%s: sentence-transformers puts %r before each text of this model by itself; here texts are taken as "
                "they come, so clients must write it to have the same vectors", directory / PROMPTS, pooling.prompt,
            )  # fmt: skip
        return dataclasses.replace(spec, headless=True, tied=False), pooling
    if spec.headless:
        raise UnsupportedModel(
            f"{directory} holds a backbone without an output head and has no {MODULES}: it can neither generate nor be "
            f"pooled; add {MODULES} and 1_Pooling/config.json as sentence-transformers writes them"
        )
    if spec.tied and loader.has_other_head(directory, spec):
        log.warning("%s: config.json ties the output head to the embedding, and the weights hold another head: it is "
                    "used; \"tie_word_embeddings\": false would say so", directory)  # fmt: skip
        spec = dataclasses.replace(spec, tied=False)
    return spec, None


def _predicts(options: Options, spec: ModelSpec) -> bool:
    """Whether the model is to be loaded with its prediction layer. Raises ValueError where guesses cannot be had."""
    if options.speculation not in SPECULATIONS:
        raise ValueError(f"speculation {options.speculation!r:.40} is not known: use {' or '.join(SPECULATIONS)}")
    if not 1 <= options.draft_depth < DRAFT_ROWS:
        raise ValueError(f"draft_depth must be between 1 and {DRAFT_ROWS - 1}, not {options.draft_depth}")
    if "mtp" not in SPECULATIONS[options.speculation]:
        return False
    if spec.family != "deepseek" or not spec.predictor_layers:
        raise ValueError(
            f"{spec.architecture} here has no prediction layer that can be loaded (num_nextn_predict_layers is "
            f"{spec.predictor_layers}): use --speculation ngram"
        )
    return True


def _speculation(options: Options, runner: Runner, sampler: Sampler, scheduler: Scheduler) -> Speculation | None:
    names = SPECULATIONS[options.speculation]
    if not names:
        return None
    prediction = None
    if "mtp" in names:
        prediction = Prediction(runner, sampler, scheduler.reserve, DRAFT_ROWS, options.draft_depth)
    return Speculation(DRAFT_ROWS, Lookup() if "ngram" in names else None, prediction, payoff=Payoff())


def ops_for(
    device: Device,
    dtype: torch.dtype,
    spec: ModelSpec,
    refused: Mapping[tuple[str, str], str] = MappingProxyType({}),
    stored: Weights = PLAIN_WEIGHTS,
) -> Ops:
    """The ops that serve a model on a device. `refused` is (op, provider) to reason."""
    head_size = spec.attention.head_size if isinstance(spec.attention, GroupedQuery) else 0
    facts = StaticFacts(device.torch_device.type, dtype, head_size, stored.layers, stored.head)
    return Ops(device.providers, facts, refused)


def kept_forms(
    directory: Path,
    device: Device,
    dtype: torch.dtype,
    spec: ModelSpec,
    refused: Mapping[tuple[str, str], str],
    wanted: Weights,
    *,
    predictor: bool = False,
) -> Forms | None:
    """What the parts of a model are kept in whose checkpoint is quantized, said in one line of the log; None if a form
    was asked for, or if weights are plain. Where the device would have to do with the reference, they are dequantized.
    """
    declared = read_quantization(directory)
    if declared is None:
        return None
    plain = ops_for(device, dtype, spec, refused)
    model = Transformer(plain, spec, predictor=predictor)
    places = loader.places(spec, (name for name, _ in model.named_parameters()))
    with Checkpoint(directory) as checkpoint:
        pieces = loader.made_of(places, loader.matrices(checkpoint, places, spec, declared))
    name = dtype_name(dtype)
    if not wanted.as_stored:
        asked = f"dequantized to {name}" if wanted.layers.kind == "plain" else f"made {wanted.layers}"
        log.info("%s", says(declared, pieces, None, name, f"{asked}, as asked"))
        return None
    forms = as_stored(model, pieces)
    if not wanted.head_as_stored:
        forms = forms.with_head(wanted.head)
    if lost := _lost(device, dtype, spec, refused, forms, model.uses()):
        why = f"no provider of {device.name} computes {' and '.join(lost)} with {forms.layers} weights"
        keeps = [n for n, d in DTYPES.items() if d.itemsize == dtype.itemsize and d != dtype and device.supports(d)
                 and not _lost(device, d, spec, {}, forms, model.uses())]  # fmt: skip  # refusals are of one dtype
        why += f" in {name}; --dtype {keeps[0]} keeps them" if keeps else ""
        log.info("%s", says(declared, pieces, None, name, f"dequantized to {name}: {why}"))
        return None
    log.info("%s", says(declared, pieces, forms, name, ""))
    return forms


def _lost(
    device: Device,
    dtype: torch.dtype,
    spec: ModelSpec,
    refused: Mapping[tuple[str, str], str],
    forms: Forms,
    used: Set[str],
) -> list[str]:
    """The ops that would fall to the reference if weights were kept in these forms."""
    plain = {c.op: c.provider for c in ops_for(device, dtype, spec, refused).choices}
    kept = ops_for(device, dtype, spec, refused, Weights(forms.layers, forms.head))
    return [c.op for c in kept.choices if c.op in ("linear", "experts") and c.op in used
            and c.provider == "reference" != plain[c.op]]  # fmt: skip


def _refused(profile: Profile | None, device: Device, dtype: torch.dtype) -> dict[tuple[str, str], str]:
    """What the profile refuses here. Raises ValueError for one of another device, or one that allows no serving."""
    if profile is None:
        return {}
    if profile.device_name != device.name:
        raise ValueError(f"the profile is of {profile.device_name}, and the device is {device.name}: adapt this one")
    if profile.grade == "unfit":
        raise ValueError(f"{device.name} is unfit by its profile of {profile.date}: {profile.rule}")
    if not profile.complete:
        raise ValueError(f"the profile of {profile.date} is not of the whole ladder: adapt without --only")
    name = dtype_name(dtype)
    if name != profile.dtype:  # ops were tried in others too, but no model
        raise ValueError(f"the profile says nothing of models in {name} on {device.name} (one was tried in "
                         f"{profile.dtype}): adapt with --dtype {name}")  # fmt: skip
    if profile.versions.get("torch", torch.__version__) != torch.__version__:
        log.warning("the profile was made with torch %s, and this is %s: adapt again", profile.versions["torch"],
                    torch.__version__)  # fmt: skip
    return profile.refusals(name)


def _refuse_untried(profile: Profile, uses: frozenset[str], dtype: str, directory: Path, weights: Weights) -> None:
    """Raises ValueError for a model with ops that the profile's had not: nothing is known of them on this device.
    Warns of what was tried in another shape or form."""
    untried = sorted(op for op in uses if profile.provider(op, dtype) is None)
    if untried:
        raise ValueError(f"the profile says nothing of {', '.join(untried)} (it was made with {profile.model}, "
                         f"{profile.architecture}): adapt with --model {directory}")  # fmt: skip
    if profile.model != directory.resolve().name:
        log.warning("the profile was made with %s: its ops were tried in that model's shapes (adapt with --model %s)",
                    profile.model, directory)  # fmt: skip
    if weights.layers.kind != "plain":
        log.warning("the profile was made with plain weights: products with %s weights were not tried on %s",
                    weights.layers, profile.device_name)  # fmt: skip


def _dtype(name: str, spec: ModelSpec, device: Device) -> torch.dtype:
    wanted = spec.dtype if name == "auto" else name
    if wanted not in DTYPES:
        raise ValueError(f"dtype {wanted!r} is not supported (supported: {', '.join(DTYPES)})")
    if device.supports(DTYPES[wanted]):
        return DTYPES[wanted]
    usable = [n for n, d in DTYPES.items() if device.supports(d)]
    raise ValueError(
        f"device {device.name} does not compute in {wanted}: use --dtype {' or '.join(usable) or '(none)'}"
    )
