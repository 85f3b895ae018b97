"""Places are given back when the last tensor on them dies, and never to two at once."""

import random
from itertools import pairwise

import torch

from twinline.engine.ops.cpu.arena import ALIGNMENT, CHUNK, Arena


def test_a_place_returns_with_the_last_view_of_it():
    arena = Arena()
    first = arena.empty((4, 6), torch.float32)
    at, view = first.data_ptr(), first[1:].view(-1)
    del first
    other = arena.empty((4, 6), torch.float32)
    assert other.data_ptr() != at  # the view still reads it
    del view
    assert arena.empty((4, 6), torch.float32).data_ptr() == at


def test_tensors_are_aligned_typed_and_apart():
    arena, rng, held = Arena(), random.Random(3), []
    for _ in range(400):
        if held and rng.random() < 0.45:
            held.pop(rng.randrange(len(held)))
        dtype = rng.choice((torch.float32, torch.bfloat16, torch.int64))
        t = arena.empty((rng.randrange(0, 9), rng.randrange(1, 500)), dtype)
        assert t.dtype == dtype and t.is_contiguous() and t.data_ptr() % ALIGNMENT == 0
        held.append(t)
        spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in held if t.nbytes)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    taken = arena.bytes
    held.clear()
    del t
    whole = arena.empty((taken,), torch.uint8)  # all of it is one free run again
    assert arena.bytes == taken and whole.nbytes == taken


def test_a_result_larger_than_a_chunk_gets_one_of_its_own():
    arena = Arena()
    big = arena.empty((CHUNK + 1,), torch.uint8)
    small = arena.empty((8,), torch.uint8)
    big.fill_(7)
    small.fill_(1)
    assert int(big.max()) == int(big.min()) == 7
