"Which samples make a step, and which rank computes which."

import pytest

from simpsons_llm.data.batches import RankBatches, global_batches, share_loader
from simpsons_llm.data.packing import EndToEnd, best_fit

LENGTHS = [3 + (i * 7) % 11 for i in range(23)]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("micro, world_size", [(1, 1), (1, 4), (2, 2), (1, 8), (4, 2)])
def test_ranks_share_each_step_of_one_rank(micro, world_size, grouped):
    "Each sample is computed once, in the step in which one rank alone computes it; all make as many micro-batches."
    steps = global_batches(LENGTHS, 8, 3, 1, grouped)
    assert sorted(i for step in steps for i in step) == list(range(23))
    ranks = [RankBatches(LENGTHS, 8, micro, r, world_size, 3, grouped) for r in range(world_size)]
    for r in ranks:
        r.set_epoch(1)
    shares = [list(r.steps()) for r in ranks]
    for number, step in enumerate(steps):
        mine = [s[number] for s in shares]
        assert sorted(i for parts in mine for part in parts for i in part if i >= 0) == sorted(step)
        assert len({len(parts) for parts in mine}) == 1
    assert all(len(s) == len(steps) and len(r) == sum(map(len, s)) for r, s in zip(ranks, shares))


@pytest.mark.parametrize("grouped", [False, True])
def test_order_is_that_of_seed_and_epoch(grouped):
    orders = [global_batches(LENGTHS, 4, seed, epoch, grouped) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert orders[3] == global_batches(LENGTHS, 4, 1, 1, grouped)


def test_a_filler_learns_nothing():
    "A rank without a share of a step computes a sample that another learns from."
    items = [{"input_ids": [5] * n, "loss_weights": [1.0] * n} for n in LENGTHS]
    loaders = [share_loader(items, EndToEnd(0), RankBatches(LENGTHS, 8, 1, rank, 4)) for rank in range(4)]
    learned, fillers = 0, 0
    for batch in (batch for loader in loaders for batch in loader):
        count = int((batch["loss_weights"] > 0).sum())
        learned, fillers = learned + count, fillers + (count == 0)
        assert count == int((batch["labels"] != -100).sum())
    assert learned == sum(n - 1 for n in LENGTHS) and fillers == 1


def test_the_longest_samples_are_put_into_rows_first():
    "Else they find no room beside each other, and more rows are needed."
    assert len(best_fit([4] * 5 + [6] * 5, 10)) == 5 and len(best_fit([2, 7, 3, 8, 5, 5], 10)) == 3
