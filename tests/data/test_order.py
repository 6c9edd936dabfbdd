from __future__ import annotations

import pickle
import time
import tracemalloc

import pytest
import torch

from vtp.data.order import Order

LENGTHS = [5, 3, 0, 7, 1, 4, 6]
TOTAL = sum(LENGTHS)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
def test_each_epoch_visits_each_index_once(window: int) -> None:
    order = Order(LENGTHS, seed=3, window=window)
    epochs = order.positions(0, 4 * TOTAL).view(4, TOTAL)
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(TOTAL))
    assert not torch.equal(epochs[0], epochs[1])


def test_any_range_equals_the_same_place_of_the_stream() -> None:
    stream = Order(LENGTHS, seed=3, window=2).positions(0, 5 * TOTAL)
    for start in range(0, 4 * TOTAL, 5):
        for length in (0, 1, 9, TOTAL + 3):
            assert torch.equal(Order(LENGTHS, seed=3, window=2).positions(start, start + length), stream[start : start + length])


def test_one_window_of_shards_is_finished_before_the_next() -> None:
    shards = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    order = Order(LENGTHS, seed=0, window=2)
    seen = shards[order.positions(0, TOTAL)].tolist()
    runs = [shard for i, shard in enumerate(seen) if shard not in seen[:i]]
    for number, first in enumerate(range(0, len(runs), 2)):
        window = set(runs[first : first + 2])
        start = sum(LENGTHS[shard] for shard in runs[:first])
        assert set(seen[start : start + sum(LENGTHS[shard] for shard in window)]) == window, number


def test_the_shards_that_come_next_are_known() -> None:
    shards = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    order = Order(LENGTHS, seed=0, window=2)
    seen = shards[order.positions(0, 3 * TOTAL)].tolist()
    for position in range(2 * TOTAL):
        coming = order.coming(position)
        assert seen[position] in coming[:2]
        later = next(shard for shard in seen[position:] if shard not in coming[:2])
        assert position >= TOTAL - 10 or later in coming[2:]


def test_samples_mix_within_a_window_and_depend_on_the_seed() -> None:
    one, other = (Order([100, 100], seed=seed, window=2).positions(0, 200) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert 30 < int((one[:100] < 100).sum()) < 70


def test_order_pickles_and_refuses_nothing_to_order() -> None:
    order = pickle.loads(pickle.dumps(Order(LENGTHS, seed=9, window=2)))
    assert torch.equal(order.positions(4, 40), Order(LENGTHS, seed=9, window=2).positions(4, 40))
    with pytest.raises(ValueError, match="no samples"):
        Order([0, 0], seed=0, window=1)


def test_a_fraction_visits_an_evenly_spread_share_of_every_shard_again_and_again() -> None:
    order = Order([100, 10, 0, 2], seed=1, window=2, fraction=0.2)
    epochs = order.positions(0, 2 * 23).view(2, 23)
    for epoch in epochs:
        assert epoch.sort().values.tolist() == [*range(0, 100, 5), 100, 105, 110]
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(pickle.loads(pickle.dumps(order)).positions(0, 50), order.positions(0, 50))


def test_the_whole_is_the_fraction_one() -> None:
    assert torch.equal(Order(LENGTHS, 3, 2, 1.0).positions(0, 60), Order(LENGTHS, 3, 2).positions(0, 60))


def test_a_step_of_a_hundred_million_samples_is_addressed_at_once_and_in_little_memory() -> None:
    order = Order([10_000] * 10_000, seed=0, window=8)
    tracemalloc.start()
    begun = time.perf_counter()
    for step in (0, 431_007, 48_828_125):  # the last lies in the 2,000th epoch
        assert len(order.positions(4096 * step, 4096 * (step + 1))) == 4096
    took, (_, peak) = time.perf_counter() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 3  # some hundredths; a list of all samples would take tens of seconds
    assert peak < 2**24
