"""Draws that follow from seed and place: the same after a resume, others for every seed."""

import itertools
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from codmoe.datasets import TolerantDataset
from codmoe.datasets.streams import DrawSampler, drawn_from, seed_streams


class Drawn(Dataset):
    """Each sample is its index and a draw of every kind."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), float(torch.rand(()))


def loader(seed=0, workers=0, shuffle=True, kind=DefaultSampler):
    data = TolerantDataset(Drawn())
    sampler = DrawSampler(dict(type=kind.__name__, shuffle=shuffle), data, seed)
    return DataLoader(data, 4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def epoch(data, number):
    data.sampler.set_epoch(number)
    return torch.stack([torch.stack(b, 1) for b in data if len(b[0]) == 4]).tolist()


def draws(epochs):
    return {row[1] for batches in epochs for batch in batches for row in batch}


def test_an_epoch_draws_the_same_in_any_process_and_with_any_workers():
    plain = loader()
    whole = [epoch(plain, number) for number in range(3)]
    assert len(draws(whole)) == 3 * 8
    workers = loader(workers=2)  # which outlive an epoch
    assert [epoch(workers, number) for number in range(3)] == whole
    # A process that begins at epoch 2 has drawn nothing before, and anything.
    torch.manual_seed(3)
    assert epoch(loader(workers=1), 2) == whole[2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_seeds_and_epochs_share_nothing(shuffle):
    found = [draws([epoch(loader(seed, shuffle=shuffle), n)]) for seed in (0, 1) for n in range(3)]
    assert len(set().union(*found)) == 6 * 8


def test_one_seed_does_not_shuffle_an_epoch_as_another_seed_another():
    orders = []
    for seed, number in itertools.product(range(2), range(4)):
        sampler = DrawSampler(dict(type="DefaultSampler"), range(50), seed)
        sampler.set_epoch(number)
        orders.append(tuple(draw.sample for draw in sampler))
    assert len(set(orders)) == 8  # mmengine's: 5
    own = DrawSampler(dict(type="DefaultSampler", seed=7), range(50), 0)
    other = DrawSampler(dict(type="DefaultSampler", seed=7), range(50), 1)
    assert [d.sample for d in own] == [d.sample for d in other]  # the config gave the order its own
    other.reseed(0)
    assert list(own) == list(other)


def test_processes_of_one_run_share_the_order_and_no_draws(monkeypatch):
    sampler = DrawSampler(dict(type="DefaultSampler"), range(6), 0)
    first = list(sampler)
    monkeypatch.setattr("codmoe.datasets.streams.get_rank", lambda: 1)
    second = list(sampler)
    assert [d.sample for d in first] == [d.sample for d in second]
    assert not {d.place for d in first} & {d.place for d in second}


def test_a_pass_goes_on_in_the_middle():
    sampler = DrawSampler(dict(type="DefaultSampler"), range(10), 0)
    whole = list(sampler)
    sampler.start_at(4)
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole  # once
    endless = DrawSampler(dict(type="InfiniteSampler"), range(10), 0)
    long = list(itertools.islice(endless, 25))
    resumed = DrawSampler(dict(type="InfiniteSampler"), range(10), 0)
    resumed.skip(13)  # as mmengine's loop by iterations does
    assert list(itertools.islice(resumed, 12)) == long[13:]
    assert not hasattr(sampler, "skip") and isinstance(endless.sampler, InfiniteSampler)


def test_afterwards_all_draw_on_as_before():
    seed_streams(1)
    expected = [random.random(), np.random.rand(), torch.rand(())]
    seed_streams(1)
    with drawn_from(0, 5):
        inside = [random.random(), np.random.rand(), torch.rand(())]
    assert [random.random(), np.random.rand(), torch.rand(())] == expected != inside


def test_a_part_with_its_own_generator_follows():
    part = torch.nn.Module()
    part.generator, part.seed = torch.Generator(), 5
    model = torch.nn.Sequential(part)

    def drawn(*place):
        seed_streams(0, *place, model=model)
        return torch.rand((), generator=part.generator)

    assert drawn(1, 2) == drawn(1, 2) != drawn(1, 3)
