"""How a model is spread over devices: the degrees of parallelism, and which of them are possible.

Owns the rules of divisibility. Must not know bytes, chips or engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from twinline.facts.forms import Form
from twinline.facts.models import UnsupportedModel
from twinline.facts.tensors import Anatomy


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """`tensor` x `pipeline` x `data` devices. `data`: groups that attend to different requests and share the experts,
    which are then spread whole over all devices of a stage (`expert_parallel`)."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert_parallel: bool = False

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def experts(self) -> int:
        """Over how many devices experts are spread whole."""
        return self.tensor * self.data if self.expert_parallel else 1

    def __str__(self) -> str:
        words = [f"tp{self.tensor}"]
        words += [f"pp{self.pipeline}"] if self.pipeline > 1 else []
        words += [f"dp{self.data}"] if self.data > 1 else []
        words += [f"ep{self.experts}"] if self.expert_parallel else []
        return " ".join(words)


def stages(layers: int, pipeline: int) -> list[int]:
    """Layers of each pipeline stage, as even as can be, the later ones larger: the first holds the embedding."""
    each, more = divmod(layers, pipeline)
    return [each + (at >= pipeline - more) for at in range(pipeline)]


def impossible(anatomy: Anatomy, form: Form, layout: Layout) -> str:
    """Why this layout cannot be, in one line; empty if it can."""
    ranks = layout.tensor
    if anatomy.heads % ranks:
        return f"{anatomy.heads} heads do not divide by tensor parallelism {ranks}"
    if anatomy.latent is None and ranks % anatomy.kv_heads and anatomy.kv_heads % ranks:
        return f"{anatomy.kv_heads} KV heads can be neither divided nor copied evenly over {ranks} ranks"
    if layout.pipeline > anatomy.layers:
        return f"{anatomy.layers} layers are too few for {layout.pipeline} pipeline stages"
    if layout.expert_parallel and anatomy.mixture is None:
        return "the model has no experts to spread"
    if layout.data > 1 and not layout.expert_parallel:
        return "groups of data-parallel attention share their experts: that needs expert parallelism"
    if anatomy.mixture and layout.expert_parallel and layout.experts > anatomy.mixture.count:
        return f"{anatomy.mixture.count} experts are too few for {layout.experts} devices"
    widths = {"MLP": anatomy.inner, "shared expert": anatomy.shared_inner}
    if anatomy.mixture and not layout.expert_parallel:
        widths["expert"] = anatomy.mixture.inner
    for name, width in widths.items():
        values = form.experts or form.matrices if name == "expert" else form.matrices
        block = max(1, *values.block) if values else 1  # also a group along the columns: ranks share no scale
        if width % ranks:
            return f"an {name} of {width} does not divide by tensor parallelism {ranks}"
        if ranks > 1 and width // ranks % block:
            return (
                f"an {name} of {width} over {ranks} ranks is {width // ranks} each, no multiple of the block of {block}"
            )
    return ""


def possible(anatomy: Anatomy, form: Form, devices: int, node: int) -> Iterator[Layout]:
    """Layouts that use all of `devices`, tensor parallelism within a node of `node` devices."""
    for tensor in range(min(devices, node), 0, -1):
        if devices % tensor:
            continue
        rest = devices // tensor
        for pipeline in range(1, rest + 1):
            if rest % pipeline:
                continue
            data = rest // pipeline
            for spread in (False, True):
                layout = Layout(tensor=tensor, pipeline=pipeline, data=data, expert_parallel=spread)
                if not impossible(anatomy, form, layout):
                    yield layout


def parse_layout(text: str) -> Layout:
    """`tp8`, `tp8,pp2`, `tp4,dp4,ep`: degrees by name. Raises UnsupportedModel."""
    degrees: dict[str, int] = {}
    spread = False
    for word in text.replace(",", " ").split():
        name, number = word[:2].lower(), word[2:].lstrip("=")
        degree = int(number) if re.fullmatch("[0-9]{1,4}", number) else 0
        if name == "ep" and not number:
            spread = True
        elif name in ("tp", "pp", "dp", "ep") and 0 < degree <= 4096 and name not in degrees:
            degrees[name] = degree
        else:
            raise UnsupportedModel(f"--layout: {word!r} is not one of tpN, ppN, dpN, epN, ep (such as tp8,pp2)")
    if not degrees and not spread:
        raise UnsupportedModel("--layout names no degree: tpN, ppN, dpN, epN, ep (such as tp8,pp2)")
    layout = Layout(
        tensor=degrees.get("tp", 1),
        pipeline=degrees.get("pp", 1),
        data=degrees.get("dp", 1),
        expert_parallel=spread or degrees.get("ep", 1) > 1,
    )
    if degrees.get("ep", layout.experts) not in (layout.experts, 1):
        raise UnsupportedModel(f"--layout: ep{degrees['ep']} should be tp x dp, which is {layout.tensor * layout.data}")
    return layout
