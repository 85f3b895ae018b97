"""Memory for packed weights: apart, aligned, given back, and reported."""

import gc

import torch

from twinline.engine.ops.cpu.memory import ALIGNMENT, REGION, Regions


def test_places_are_apart_and_aligned():
    regions = Regions()
    places = [regions.empty(size) for size in (1, 63, 64, 65, 4096, 0, 3 * 2**20)]
    for number, place in enumerate(places):
        place.fill_(number)
        assert place.data_ptr() % ALIGNMENT == 0
    for number, place in enumerate(places):
        assert (place == number).all()


def test_one_larger_than_a_region_has_its_own():
    place = Regions().empty(REGION + 5)
    assert place.nbytes == REGION + 5
    place[-1] = 1
    assert int(place.sum(dtype=torch.int64)) == 1


def test_the_report_counts_what_is_in_use_and_there():
    regions = Regions()
    assert regions.report().used == 0
    kept, dropped = regions.empty(8 * 2**20), regions.empty(REGION)
    before = regions.report().mapped  # not ours: the system counts a mapping beside it, of other tests, as one with it
    kept.fill_(1)
    report = regions.report()
    assert report.used == kept.nbytes + dropped.nbytes
    assert kept.nbytes <= report.mapped - before < report.used  # what was never written takes nothing
    assert 0 <= report.huge <= report.mapped
    del dropped
    gc.collect()
    assert regions.report().used == kept.nbytes
    assert str(report).startswith("packed weights: 72 MiB, ")
