"""Tensors on a healthy simulated chip: the CPU's numbers, memory of their own, and the manners of an accelerator."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.engine.devices.chips import opened, wrong
from torch import Tensor, nn

from twinline.engine.devices.simulated.chip import CHIPS
from twinline.engine.devices.simulated.tensor import SimTensor


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with opened() as one:
        yield one


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_every_op_of_the_engine_gives_the_cpus_bits(device: Any) -> None:
    assert wrong(device) == {}


ATEN: dict[str, Callable[[Tensor, str], Any]] = {
    "arange": lambda x, d: torch.arange(2, 9, 3, device=d),
    "full": lambda x, d: torch.full((2, 3), 7.0, device=d),
    "eye": lambda x, d: torch.eye(3, device=d),
    "linspace": lambda x, d: torch.linspace(0, 1, 5, device=d),
    "triangle": lambda x, d: torch.ones(4, 6, dtype=torch.bool, device=d).triu(1),
    "tril_indices": lambda x, d: torch.tril_indices(3, 3, device=d),
    "product": lambda x, d: x @ x.T,
    "einsum": lambda x, d: torch.einsum("ab,cb->ac", x, x),
    "softmax": lambda x, d: (x.softmax(-1), x.log_softmax(0), x.logsumexp(-1)),
    "norm": lambda x, d: F.layer_norm(x, (8,)),
    "sort": lambda x, d: x.sort(dim=-1, descending=True, stable=True),
    "argsort": lambda x, d: x.argsort(),
    "topk": lambda x, d: x.topk(3),
    "max": lambda x, d: (*x.max(-1), x.argmax(0)),
    "gather": lambda x, d: x.gather(1, torch.tensor([[0, 2]] * 6, device=d)),
    "index": lambda x, d: (x[torch.tensor([3, 1], device=d)], x[x > 0], x[[0, 2]]),
    "index on the host": lambda x, d: x[torch.tensor([3, 1])],
    "index_select": lambda x, d: x.index_select(1, torch.tensor([7, 0], device=d)),
    "scatter": lambda x, d: x.scatter(1, torch.tensor([[0, 2]] * 6, device=d), 9.0),
    "index_add": lambda x, d: x.index_add(0, torch.tensor([0, 0, 1], device=d), x[:3]),
    "nonzero": lambda x, d: (x > 0).nonzero(as_tuple=True),
    "unique": lambda x, d: (x > 0).long().sum(-1).unique(),
    "bincount": lambda x, d: torch.tensor([1, 1, 4], device=d).bincount(minlength=7),
    "cumsum": lambda x, d: x.cumsum(-1),
    "cat": lambda x, d: (torch.cat((x, x), -1), torch.stack((x, x))),
    "where": lambda x, d: torch.where(x > 0, x, -x),
    "casts": lambda x, d: (x.half(), x.bfloat16().float(), x.to(torch.int64), x > 0),
    "shapes": lambda x, d: (x.reshape(4, 12), x.T.contiguous(), x.expand(2, 6, 8), x.chunk(2, -1), x[1:, ::3]),
    "flags": lambda x, d: (x.isnan(), x.isfinite()),
    "special": lambda x, d: (x / torch.zeros((), device=d), x * float("nan"), (x - x) / (x - x)),
    "empty": lambda x, d: (x[:0] @ x.T, x[:0].sum(), torch.cat((x[:0], x))),
    "a scalar of the host": lambda x, d: x + torch.tensor(2.0),
    "out=": lambda x, d: torch.cat((x, x), out=torch.empty(0, device=d)),
    "turned in place": lambda x, d: x.clone().t_(),
    "values": lambda x, d: torch.tensor([x.sum().item(), *x[0].tolist(), len(x), float(x[1, 1])]),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(5), b.cpu().nan_to_num(5))
    return len(a) == len(b) and all(map(same, a, b))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ATEN)
def test_aten_gives_the_cpus_bits(name: str, mode: Any) -> None:
    with mode():
        x = draw(6, 8)
        assert same(ATEN[name](x, "cpu"), ATEN[name](x.to("simchip"), "simchip"))


def test_a_result_is_on_the_chip_and_what_is_fetched_is_not() -> None:
    x = draw(3, 3).to("simchip")
    assert type(x + 1) is SimTensor and (x + 1).device == torch.device("simchip", 0)
    assert type(x.cpu()) is Tensor and x.cpu().device.type == "cpu"
    assert repr(x.cpu() * 0)[:-1] + ", device='simchip:0')" == repr(x * 0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_views_share_and_copies_do_not(mode: Any) -> None:
    with mode():
        host = torch.zeros(4, 4)
        x, peer = host.to("simchip"), host.to("simchip:1")
        back, beside = x.cpu(), x.to("simchip:1")
        x[1].add_(1)
        x.T[0, 0] = 5
        x.view(-1)[torch.tensor([2, 3], device="simchip")] = 2.0
        assert x.sum().item() == 13
        assert [one.sum().item() for one in (host, back, beside, peer)] == [0.0] * 4
        peer.copy_(x)
        x.zero_()
        assert peer.sum().item() == 13


def test_weights_made_outside_inference_mode_are_viewed_and_written_within_it() -> None:
    x = torch.zeros(4, 6, device="simchip")
    with torch.inference_mode():
        x[:, 1:3].fill_(2)
        x.T[5] = 1.0
        assert x.chunk(2, -1)[0].sum().item() == 16
    assert x.sum().item() == 20


def test_what_accelerators_refuse_is_refused() -> None:
    x = draw(2, 2).to("simchip")
    with pytest.raises(RuntimeError, match=r"at least two devices, simchip:0 and cpu, in aten::add"):
        x + torch.ones(2)
    with pytest.raises(RuntimeError, match=r"at least two devices, simchip:0 and simchip:1"):
        x @ x.to("simchip:1")
    with pytest.raises(TypeError, match=r"use Tensor\.cpu"):
        x.numpy()
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        pickle.dumps(x)


def test_pytorchs_own_words_for_accelerators() -> None:
    assert torch.accelerator.current_accelerator() == torch.device("simchip")
    assert (torch.accelerator.device_count(), torch.simchip.device_count()) == (4, 4)  # type: ignore[attr-defined]
    assert "(simulated)" in torch.simchip.get_device_name()  # type: ignore[attr-defined]
    torch.simchip.synchronize()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="there are 4"):
        torch.simchip.set_device(4)  # type: ignore[attr-defined]


def test_random_numbers_are_the_chips_own() -> None:
    before = torch.get_rng_state()
    torch.simchip.manual_seed_all(3)  # type: ignore[attr-defined]
    first, second = torch.rand(5, device="simchip"), torch.rand(5, device="simchip")
    torch.simchip.manual_seed_all(3)  # type: ignore[attr-defined]
    assert torch.equal(first.cpu(), torch.rand(5, device="simchip").cpu()) and not torch.equal(
        first.cpu(), second.cpu()
    )
    assert torch.equal(before, torch.get_rng_state())


# Training.


def test_training_steps_equal_the_cpus() -> None:
    torch.manual_seed(1)
    here = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 4))
    there = copy.deepcopy(here).to("simchip")
    x, y = draw(6, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    for model, device in ((here, "cpu"), (there, "simchip")):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(3):
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(here.parameters(), copy.deepcopy(there).parameters(), strict=True):
        assert b.device.type == "simchip"
        torch.testing.assert_close(a, b.detach().cpu(), rtol=0, atol=5e-7)


def test_autocast_computes_products_in_16_bits() -> None:
    layer = nn.Linear(8, 8).to("simchip")
    with torch.autocast("simchip", torch.bfloat16):
        assert layer(draw(2, 8).to("simchip")).dtype == torch.bfloat16
    assert layer(draw(2, 8).to("simchip")).dtype == torch.float32


def test_ops_are_counted_where_they_run() -> None:
    x, peer = draw(4).to("simchip"), draw(4).to("simchip:2")
    first, third = CHIPS[0].ops, CHIPS[2].ops
    assert len((x + x, x[:2], peer * 2)) == 3
    assert (CHIPS[0].ops - first, CHIPS[2].ops - third) == (1, 1)  # a view runs nothing
