# %%
#| default_exp data.batches

# %% [markdown]
# # Batches and ranks
#
# > Which samples meet in one optimizer step, and which rank computes which of them.
#
# A step should learn the same whether one rank computes it in eight pieces, two in four each, or four in two. Libraries that share out data do not promise this: they shuffle by what each rank holds, and fill up the end of an epoch by showing samples twice. Here the *global* batch comes first, made from the seed alone, and ranks only divide the work.

# %%
#| export
from collections.abc import Iterator
from typing import Any

from simpsons_llm.data.packing import PackedRows
from simpsons_llm.machine.job import require

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd


# %% [markdown]
# ## The sizes
#
# `global_batch_size` samples make one step. A rank can hold `micro_batch_size` of them at once. So each rank adds up the gradients of several micro-batches, and the step is made from the sum over all ranks.

# %%
#| export
def accumulation_steps(
    global_batch_size: int,  # samples for one optimizer step
    micro_batch_size: int,  # samples at once on one rank
    world_size: int = 1,  # ranks
) -> int:  # micro-batches for one optimizer step, on each rank
    "How many micro-batches make a batch; ValueError if they cannot."
    at_once = micro_batch_size * world_size
    require(
        global_batch_size % at_once == 0,
        f"global_batch_size={global_batch_size} is not a multiple of "
        f"micro_batch_size x ranks = {micro_batch_size} x {world_size}; "
        f"use {at_once * max(1, round(global_batch_size / at_once))}, or another micro_batch_size",
    )
    return global_batch_size // at_once


# %% [markdown]
# A recipe's sizes were chosen for one rank, and should do for any number. What was not asked for gives way: smaller micro-batches first, since they change nothing but speed, and only where no size fits a larger batch, which is told. What was asked for stays.

# %%
#| export
def fit_batches(
    global_batch_size: int,  # samples for one optimizer step
    micro_batch_size: int,  # samples at once on one rank, at most
    world_size: int = 1,  # ranks
    keep_global: bool = False,  # True: the global size was asked for
    keep_micro: bool = False,  # True: the other was
) -> tuple:  # (global size, micro size); ValueError where no size that may be chosen fits
    "Sizes that so many ranks can share."
    sizes = [micro_batch_size] if keep_micro else range(micro_batch_size, 0, -1)
    fits = next((m for m in sizes if global_batch_size % (m * world_size) == 0), None)
    if fits:
        return global_batch_size, fits
    require(
        not keep_global,
        f"global_batch_size={global_batch_size} was given with {world_size} ranks"
        f"{f' and micro_batch_size={micro_batch_size}' if keep_micro else ''}, which cannot share it; "
        f"use a multiple of {world_size * (micro_batch_size if keep_micro else 1)}",
    )
    micro = micro_batch_size if keep_micro else min(micro_batch_size, -(-global_batch_size // world_size))
    at_once = micro * world_size
    return -(-global_batch_size // at_once) * at_once, micro


# %%
pd.DataFrame(
    {
        f"{n} ranks": {f"{g} by {m}": "{} by {}".format(*fit_batches(g, m, n)) for g, m in ((2, 2), (128, 16))}
        for n in (1, 2, 3, 4, 8, 64)
    }
)

# %% tags=["check"]
for world in range(1, 70):
    for wanted, most in ((2, 2), (6, 4), (128, 16), (100, 7)):
        whole, micro = fit_batches(wanted, most, world)
        assert accumulation_steps(whole, micro, world) >= 1 and 1 <= micro <= most and whole >= wanted
        # as much is kept as can be
        assert whole == wanted or wanted % world
        assert fit_batches(wanted, most, world, keep_micro=True)[1] == most
try:
    fit_batches(6, 2, 4, keep_global=True)
    raise AssertionError
except ValueError as e:
    print(e)

# %% tags=["check"]
assert accumulation_steps(120, 12) == 10 and accumulation_steps(120, 12, 2) == 5
try:
    accumulation_steps(128, 12)
    raise AssertionError
except ValueError as e:
    print(e)


# %% [markdown]
# ## The order of an epoch
#
# Each epoch has an order of its own, drawn from seed and epoch. Samples that lie side by side in a batch are filled up to the longest, so it pays to let samples of similar length meet: within stretches of up to 50 batches they are sorted by length, and the batches are shuffled again afterwards. Otherwise each stretch would begin with long scenes and end with one-liners. The batch with the longest sample comes first of all: if memory does not suffice, the run fails in its first step and not at night.

# %%
#| export
def global_batches(
    lengths: list,  # tokens of each sample
    global_batch_size: int,  # samples for one optimizer step
    seed: int = 0,  # of the run
    epoch: int = 0,  # 0, 1, 2, ...
    grouped: bool = False,  # samples of similar length into one batch
) -> list:  # of lists of sample numbers; every sample once, the last batch may be shorter
    "The batches of one epoch, the same on every rank."
    import random

    draw, n = random.Random(f"{seed} {epoch}"), len(lengths)
    order = list(range(n))
    draw.shuffle(order)
    if grouped:
        stretch = global_batch_size * max(1, min(n // (4 * global_batch_size), 50))
        order = [i for at in range(0, n, stretch) for i in sorted(order[at : at + stretch], key=lambda i: -lengths[i])]
    batches = [order[at : at + global_batch_size] for at in range(0, n, global_batch_size)]
    if grouped:
        whole, rest = (batches[:-1], batches[-1:]) if len(batches[-1]) < global_batch_size else (batches, [])
        draw.shuffle(whole)
        longest = max(range(len(whole)), key=lambda b: max(lengths[i] for i in whole[b]), default=0)
        batches = whole[longest : longest + 1] + whole[:longest] + whole[longest + 1 :] + rest
    return batches


# %% tags=["example"]
lengths = [5 * k % 97 + 3 for k in range(50)]


def filled(grouped):
    return (
        sum(max(lengths[i] for i in b) * len(b) for b in global_batches(lengths, 4, grouped=grouped)) / sum(lengths) - 1
    )


pd.Series({"any order": filled(False), "similar lengths": filled(True)}, name="filling for each real token").round(
    3
).to_frame()

# %% tags=["check"]
for grouped in (False, True):
    for epoch in range(2):
        batches = global_batches(lengths, 8, 7, epoch, grouped)
        assert sorted(i for b in batches for i in b) == list(range(50)) and [len(b) for b in batches] == [8] * 6 + [2]
        assert batches == global_batches(lengths, 8, 7, epoch, grouped)
    assert (
        global_batches(lengths, 8, 7, 0, grouped)
        != global_batches(lengths, 8, 7, 1, grouped)
        != global_batches(lengths, 8, 8, 1, grouped)
    )
assert filled(True) < filled(False) / 2 and max(lengths) in [
    lengths[i] for i in global_batches(lengths, 8, 7, 0, True)[0]
]


# %% [markdown]
# ## Sharing out
#
# The micro-batches of a global batch are dealt to the ranks like cards. At the end of an epoch there may be too few for all. A rank without cards must still take part, because adding up gradients is something all ranks do together. It gets a *filler*: any sample, with all loss weights 0. Its gradient is zero, and nothing is learned twice.

# %%
#| export
class RankBatches:
    """A batch sampler for `torch.utils.data.DataLoader`: the micro-batches of one rank.

    A filler is written as -1 - i for sample i."""

    def __init__(
        self,
        lengths: list,  # tokens of each sample
        global_batch_size: int,  # samples for one optimizer step
        micro_batch_size: int,  # samples at once on one rank
        rank: int = 0,  # this rank
        world_size: int = 1,  # ranks
        seed: int = 0,  # of the run
        grouped: bool = False,  # samples of similar length into one batch
    ):
        require(lengths, "no sample was given; expected one or more to learn from")
        self.accumulation = accumulation_steps(global_batch_size, micro_batch_size, world_size)
        self.lengths, self.sizes, self.rank, self.world_size, self.seed, self.grouped, self.epoch = (
            lengths,
            (global_batch_size, micro_batch_size),
            rank,
            world_size,
            seed,
            grouped,
            0,
        )

    def set_epoch(
        self,
        epoch: int,  # 0, 1, 2, ...
    ):
        "Take the order of this epoch from now on."
        self.epoch = epoch

    def steps(self) -> Iterator:  # for each optimizer step, this rank's micro-batches
        "The epoch, step by step."
        whole, micro = self.sizes
        for batch in global_batches(self.lengths, whole, self.seed, self.epoch, self.grouped):
            cards = [batch[at : at + micro] for at in range(0, len(batch), micro)]
            rounds = -(-len(cards) // self.world_size)
            yield [
                cards[k] if (k := turn * self.world_size + self.rank) < len(cards) else [-1 - batch[0]]
                for turn in range(rounds)
            ]

    def __iter__(self):
        return (micro for step in self.steps() for micro in step)

    def __len__(self):
        (whole, micro), n = self.sizes, len(self.lengths)
        left = -(-(n % whole) // micro)  # micro-batches of the last, shorter step, over all ranks
        return n // whole * self.accumulation + -(-left // self.world_size)


# %% [markdown]
# Ten samples, batches of eight, one, two and four ranks. In each picture a row is a rank, a square a sample; a colour is an optimizer step. The same eight samples make the first step each time, and the fillers are white.

# %%
#| export
def plot_shares(
    n: int,  # samples
    global_batch_size: int,  # samples for one optimizer step
    micro_batch_size: int,  # samples at once on one rank
    world_size: int,  # ranks
    ax=None,  # matplotlib axes; None: make some
):  # the axes
    "Which rank computes which sample in which step."
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6.4, 0.6 + 0.5 * world_size))[1]
    colors = ("#b9a100", "#1f5fa8", "#c0504d", "#5b9c5b")
    for rank in range(world_size):
        at = 0.0
        for s, step in enumerate(RankBatches([1] * n, global_batch_size, micro_batch_size, rank, world_size).steps()):
            for micro in step:
                for i in micro:
                    ax.add_patch(
                        plt.Rectangle(
                            (at, world_size - 1 - rank),
                            0.92,
                            0.8,
                            fc="white" if i < 0 else colors[s % 4],
                            ec="#666",
                            lw=0.8,
                        )
                    )
                    ax.text(
                        at + 0.46,
                        world_size - 0.6 - rank,
                        "-" if i < 0 else str(i),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="#666" if i < 0 else "white",
                    )
                    at += 1
                at += 0.25
            at += 0.5
    ax.set_xlim(-0.2, n + 5)
    ax.set_ylim(-0.1, world_size)
    ax.set_yticks([world_size - 0.6 - r for r in range(world_size)], [f"rank {r}" for r in range(world_size)])
    ax.set_xticks([])
    ax.set_title(
        f"{world_size} x {accumulation_steps(global_batch_size, micro_batch_size, world_size)} "
        f"(ranks x micro-batches of {micro_batch_size})",
        fontsize=9,
        loc="left",
    )
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


# %% tags=["example"]
figure, axes = plt.subplots(3, 1, figsize=(6.4, 4.6), height_ratios=[1, 2, 4], layout="constrained")
for ax, world_size in zip(axes, (1, 2, 4)):
    plot_shares(10, 8, 2, world_size, ax)
plt.show()

# %% tags=["check"]
for n, whole, micro, worlds in (
    (10, 8, 2, (1, 2, 4)),
    (50, 12, 3, (1, 2, 4)),
    (7, 16, 2, (1, 2, 4, 8)),
    (16, 8, 1, (1, 8)),
):
    want = [sorted(b) for b in global_batches([1] * n, whole, 5, 1)]
    for world_size in worlds:
        ranks = [RankBatches([1] * n, whole, micro, r, world_size, 5) for r in range(world_size)]
        for r in ranks:
            r.set_epoch(1)
        # all ranks take as many turns
        assert len({len(r) for r in ranks}) == 1 and all(len(list(r)) == len(r) for r in ranks)
        together = [
            sorted(i for part in step for share in part for i in share if i >= 0)
            for step in zip(*(r.steps() for r in ranks))
        ]
        # disjoint, complete, step by step
        assert together == want
try:
    RankBatches([], 8, 2)
    raise AssertionError
except ValueError as e:
    assert "no sample" in str(e)


# %% [markdown]
# ## Loading
#
# The loader joins samples, sampler and collator. It stays a plain `DataLoader`: every rank has its own sampler, so nothing has to divide it further.

# %%
#| export
def as_features(
    train,  # `Sample`s, or `PackedRows` of them
) -> tuple:  # (what a collator takes, one for each sample or row; their lengths; rows are all as long)
    "Training samples as batches are made of them."
    if isinstance(train, PackedRows):
        return train, [1] * len(train)
    return [s.features() for s in train], [len(s.input_ids) for s in train]


# %%
#| export
class _WithFillers:
    "Items, and below zero the same as fillers."

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return {**self.items[-1 - i], "filler": True} if i < 0 else self.items[i]


def share_loader(
    items,  # samples as dicts of features, or `PackedRows`
    collate,  # what makes a batch of them, with `loss_weights` and `labels` in it
    sampler: RankBatches,  # this rank's micro-batches
    pin_memory: bool = False,  # keep batches where a GPU can fetch them
):  # a torch DataLoader with set_epoch
    "Batches of one rank."
    import torch
    from torch.utils.data import DataLoader

    def together(features):
        batch = collate([{k: v for k, v in f.items() if k != "filler"} for f in features])
        if "filler" in features[0]:
            batch["loss_weights"].zero_()
            batch["labels"].fill_(-100)
        return batch

    # one of its own: dropout's numbers stay as they are
    loader: Any = DataLoader(
        _WithFillers(items),  # type: ignore[arg-type]  # a Dataset in all but name: torch is not imported for it
        batch_sampler=sampler,
        collate_fn=together,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    loader.set_epoch = sampler.set_epoch
    return loader


# %% tags=["check"]
import torch


def together(features):
    return {
        "loss_weights": torch.tensor([[float(f["x"])] for f in features]),
        "labels": torch.tensor([[f["x"]] for f in features]),
    }


loaders = [share_loader([{"x": i + 1} for i in range(5)], together, RankBatches([1] * 5, 4, 1, r, 4)) for r in range(4)]
seen = [[b["loss_weights"].sum().item() for b in loader] for loader in loaders]
# the fifth sample is learned once, three ranks had a filler
assert sum(map(sum, seen)) == 15 and sum(row[1] == 0 for row in seen) == 3
seen
