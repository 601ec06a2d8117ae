# %%
#| default_exp data.packing

# %% [markdown]
# # Packing
#
# > Sequences end to end instead of side by side: no token is spent on filling up, and no sequence sees another.
#
# A batch is a rectangle, and scenes have all lengths. Filled up to the longest, a good part of a batch is padding (the book's script is measured below): computed, paid for, and thrown away. Packing lays sequences end to end in one row. What must not happen is that a scene reads the end of the one before it; so attention is kept inside each sequence, and positions begin at 0 in each. Then the loss of the packed row *is* the loss of the sequences by themselves, to the last digits. This chapter packs, isolates, and checks that equality for losses and gradients.

# %%
#| export
import inspect
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from simpsons_llm.machine.job import require

# %%
#| hide
import random

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prompt import TextMaker, small_tokenizer
from simpsons_llm.data.samples import row_samples, scene_samples
from simpsons_llm.machine.job import chapters_dir, read_jsonl

pd.set_option("display.max_colwidth", 300)
logging.set_verbosity_error()
everything, bpe = read_script("springfield").scenes, small_tokenizer()
maker = TextMaker(bpe)


# %% [markdown]
# ## How full is a batch?
#
# Samples of both views in batches of eight, as they come, and sorted by length first. The share of real tokens:

# %% tags=["example"]
def padded_fill(lengths, batch):
    return sum(lengths) / sum(len(b) * max(b) for b in (lengths[i : i + batch] for i in range(0, len(lengths), batch)))


views = {
    "rows, 128 tokens": row_samples(everything, maker, [], 128)[0],
    "rows, 256": row_samples(everything, maker, [], 256)[0],
    "scenes, 512": scene_samples(everything, maker, [], 512)[0],
}
fills = {}
for name, samples in views.items():
    lengths = [len(x.input_ids) for x in samples]
    shuffled = random.Random(0).sample(lengths, len(lengths))
    fills[name] = {"as they come": padded_fill(shuffled, 8), "sorted by length": padded_fill(sorted(lengths), 8)}
pd.DataFrame(fills).T.round(3)


# %% [markdown]
# ## Best fit
#
# Rows of a fixed length keep memory and shapes constant. Which samples go into which row? Finding the best answer is a famous hard problem (bin packing); a simple rule comes close. Take the longest sample first, and put it into the row where it leaves the least room (*best fit decreasing*; it needs at most 11/9 of the rows of the best answer, and some rows more, [Johnson 1973](https://dspace.mit.edu/handle/1721.1/57819)).
#
# To find that row at once, a number remembers in its bits which amounts of room exist: bit 300 is set if some row has room for exactly 300 tokens. The lowest bit at or above a sample's length is its row.

# %%
#| export
def best_fit(
    lengths: list,  # tokens of each sample
    row_len: int,  # tokens of a row; ValueError if a sample is longer
) -> list:  # rows: for each, the indices of its samples
    "Put samples into as few rows as a simple rule can."
    require(
        not lengths or max(lengths) <= row_len,
        f"a sample has {max(lengths, default=0)} tokens, more than a row of {row_len}; "
        "raise the row's length or lower max_seq_len",
    )
    rows: list[list] = []
    with_room: dict[int, list] = {}  # room -> rows
    bits = 0  # bit r: there is a row with room r
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        n = lengths[i]
        fitting = bits >> n
        if fitting:
            room = n + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                bits &= ~(1 << room)
        else:
            row, room = len(rows), row_len
            rows.append([])
        rows[row].append(i)
        with_room.setdefault(room - n, []).append(row)
        bits |= 1 << (room - n)
    return rows


def filling(
    lengths: list,  # tokens of each sample
    rows: list,  # what `best_fit` gave
    row_len: int,  # tokens of a row
) -> float:  # share of real tokens, 0..1
    "How full the rows are."
    return sum(lengths) / max(len(rows) * row_len, 1)


# %% tags=["example"]
for name, samples in views.items():
    lengths = [len(x.input_ids) for x in samples]
    for row_len in (512, 1024, 2048):
        fills[name][f"packed, {row_len}"] = filling(lengths, best_fit(lengths, row_len), row_len)
pd.DataFrame(fills).T.round(3)

# %% tags=["check"]
rng = random.Random(1)
for n in (0, 1, 7, 500):
    lengths = [rng.randint(1, 300) for _ in range(n)]
    rows = best_fit(lengths, 300)
    # all, once, none too full
    assert sorted(i for r in rows for i in r) == list(range(n)) and all(sum(lengths[i] for i in r) <= 300 for r in rows)
    least = -(-sum(lengths) // 300)
    assert least <= len(rows) <= 11 / 9 * least + 4
assert best_fit([3, 3, 2, 2, 2], 6) == [[0, 1], [2, 3, 4]]
try:
    best_fit([10], 9)
    raise AssertionError
except ValueError as e:
    assert "10 tokens" in str(e)

# %% [markdown]
# What the numbers look like: forty scenes in batches of eight, filled up to the longest, and the same scenes packed into rows of 1,024. Colour is a token, grey is filling.

# %% tags=["example"]
lengths = [len(x.input_ids) for x in views["scenes, 512"]][:40]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for i in range(0, 40, 8):
    most = max(lengths[i : i + 8])
    for j, n in enumerate(lengths[i : i + 8]):
        axes[0].barh(i + j, n, color="#4f86c6", height=0.8)
        axes[0].barh(i + j, most - n, left=n, color="#d9d9d9", height=0.8)
packed = best_fit(lengths, 1024)
for y, row in enumerate(packed):
    left = 0
    for k, i in enumerate(row):
        axes[1].barh(y, lengths[i], left=left, color=("#4f86c6", "#f2c500", "#c0504d", "#7fb069")[k % 4], height=0.8)
        left += lengths[i]
    axes[1].barh(y, 1024 - left, left=left, color="#d9d9d9", height=0.8)
for ax, title in zip(
    axes,
    (
        f"filled up: {padded_fill(lengths, 8):.0%} real tokens",
        f"packed: {filling(lengths, packed, 1024):.0%} real tokens",
    ),
):
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("tokens")
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
plt.show()


# %% [markdown]
# ## End to end
#
# `EndToEnd` is a collator: it lays the samples of a batch into one row. With a row come the lengths of its sequences, their boundaries (`cu_seqlens`: 0, then the running sum of lengths) and positions that begin at 0 in each sequence. The first token of a sequence is predicted from nothing, so it is never learned.
#
# A batch in which nothing is learned is refused: its loss would be 0 divided by 0.

# %%
#| export
def require_learning(
    weights,  # loss weights of a batch (any shape), those of first tokens left out or 0
):
    "ValueError if a batch learns nothing."
    require(
        bool((weights > 0).any()),
        "a batch learns nothing: none of its tokens has a loss weight; check the speakers and max_seq_len",
    )


class EndToEnd:
    "Collator: samples end to end in one row; with `row_len`, filled up to a fixed length by a sequence of padding."

    def __init__(
        self,
        pad_id: int,  # the padding token
        row_len: int | None = None,  # tokens of the row; None: as many as there are
    ):
        self.pad_id, self.row_len = pad_id, row_len

    def __call__(
        self,
        samples: list,  # dicts with input_ids, loss_weights and perhaps lengths: from `Sample.features` or `PackedRows`
    ) -> dict:  # 1 x T: input_ids, loss_weights, labels, position_ids; cu_seqlens (S + 1), lengths (S), tuple seq_lens
        import torch

        lengths = [n for s in samples for n in s.get("lengths", [len(s["input_ids"])])]
        ids = [t for s in samples for t in s["input_ids"]]
        weights = [w for s in samples for w in s["loss_weights"]]
        real, room = list(lengths), (self.row_len or 0) * len(samples) - len(ids)
        if room > 0:
            ids += [self.pad_id] * room
            weights += [0.0] * room
            lengths.append(room)
        lens = torch.tensor(lengths)
        begins = lens.cumsum(0) - lens
        row, row_weights = torch.tensor([ids]), torch.tensor([weights])
        row_weights[0, begins] = 0.0
        require_learning(row_weights)
        return {
            "input_ids": row,
            "loss_weights": row_weights,
            "labels": row.masked_fill(row_weights == 0, -100),
            "position_ids": (torch.arange(len(row[0])) - begins.repeat_interleave(lens))[None],
            "cu_seqlens": torch.cat([begins, lens.sum()[None]]).int(),
            "lengths": torch.tensor(real),
            "seq_lens": tuple(lengths),
        }


# %% tags=["example"]
two = [
    {"input_ids": [5, 6, 7, 8], "loss_weights": [0, 0, 1, 1]},
    {"input_ids": [9, 10, 11], "loss_weights": [0.5, 1, 1]},
]
row = EndToEnd(0, row_len=5)(two)
for name, values in row.items():
    print(f"{name:13}", values.tolist() if hasattr(values, "tolist") else values)

# %% tags=["check"]
assert row["seq_lens"] == (4, 3, 3) and row["loss_weights"][0, 4] == 0 and row["input_ids"].shape == (1, 10)
try:
    EndToEnd(0)([{"input_ids": [5, 6], "loss_weights": [1.0, 0.0]}])
    raise AssertionError
except ValueError as e:
    assert "learns nothing" in str(e)


# %% [markdown]
# ## Attention that stays inside
#
# Three ways to keep sequences apart, one result.
#
# **A block-diagonal mask.** Each token may look at earlier tokens of its own sequence. transformers builds this mask itself when positions begin anew in the middle of a row. It works everywhere, but computes all scores and discards most; and on many devices a mask means the slow path of scaled dot-product attention: on XPU it costs [seven times the memory](https://github.com/intel/torch-xpu-ops/issues/2390), on CUDA at head size 100 it rules out every fast kernel.
#
# **Sequence by sequence.** The row is cut at the boundaries, and each piece is plain causal attention without any mask. Nothing is wasted, and the fast kernels apply. Many short sequences mean many small calls.
#
# **Variable length.** A kernel that takes the boundaries and does all sequences at once: `torch.nn.attention.varlen`, on CUDA in half precision.
#
# `isolated_attention` takes the third where there is one, and else the second. It is registered with transformers under the name `isolated`, so any model that asks for its attention by name can use it. Without boundaries (plain batches, generating) it is the usual one.

# %%
#| export
@lru_cache(1)
def varlen_call() -> tuple:  # (`varlen_attn` or None, its arguments for causal attention, whether it takes a scale)
    "The variable-length attention of this PyTorch, whose arguments have changed their names."
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, {}, False
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn, {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}, "scale" in known


VARLEN: dict = {}  # what `varlen_call` gave, where a compiler finds it without a call


def varlen_kernel(
    query,  # a tensor
):  # torch's variable-length attention if it can take tensors like this one; else None
    "The kernel that does all sequences at once."
    if query.device.type != "cuda" or str(query.dtype) not in ("torch.float16", "torch.bfloat16"):
        return None
    if not VARLEN:
        VARLEN["call"] = varlen_call()
    return VARLEN["call"][0]


def run_varlen(
    kernel,  # `varlen_attn`
    query,
    key,
    value,  # each 1 x heads x T x D, the same number of heads
    cu_seqlens,  # S + 1 boundaries, int32
    longest: int,  # tokens of the longest sequence
    scaling: float,  # factor of the scores
):  # 1 x heads x T x D
    "All sequences in one call; head sizes that the kernel does not like are filled up with zeros."
    import torch

    size, (_, causal, scales) = query.shape[-1], VARLEN["call"]
    # T x heads x D
    q, k, v = (torch.nn.functional.pad(x[0].transpose(0, 1), (0, -size % 8)).contiguous() for x in (query, key, value))
    scale = {"scale": scaling} if scales else {}
    # an older kernel divides by the root of the filled-up size
    if not scales:
        q = q * (scaling * q.shape[-1] ** 0.5)
    out = kernel(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **causal, **scale)
    return out[..., :size].transpose(0, 1)[None]


# %%
#| export
def isolated_attention(
    module,  # a model's attention layer
    query,
    key,
    value,  # B x heads x T x D
    attention_mask,  # None where sequences are laid end to end
    dropout: float = 0.0,  # share of scores that are dropped
    scaling: float | None = None,  # factor of the scores; None: 1/sqrt(D)
    cu_seq_lens_q=None,  # S + 1 boundaries of the sequences of a row; None: a plain batch
    seq_lens: tuple = (),  # the same as S lengths
    **kwargs,  # what transformers passes to every attention
) -> tuple:  # (B x T x heads x D, None)
    "Attention in which sequences of a row do not see each other."
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # rotary positions make fp32 of queries and keys, which the kernel for all sequences would not take
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    kernel = varlen_kernel(query) if not dropout else None
    if kernel:
        out = run_varlen(kernel, query, key, value, cu_seq_lens_q, max(seq_lens), scaling or query.shape[-1] ** -0.5)
    else:
        parts = zip(*(x.split(seq_lens, dim=2) for x in (query, key, value)))
        out = torch.cat(
            [
                torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, dropout_p=dropout, scale=scaling, is_causal=True
                )
                for q, k, v in parts
            ],
            dim=2,
        )
    return out.transpose(1, 2).contiguous(), None


def isolated_mask(
    *args,  # what transformers passes to every maker of masks
    attention_mask=None,  # B x T, 0 where a batch is filled up; None: nowhere
    **kwargs,  # the same
):  # None, or the usual mask
    "No mask where causal attention needs none: whole sequences, from their beginning."
    from transformers.masking_utils import sdpa_mask

    q = kwargs.get("q_length", kwargs.get("cache_position", args[1] if len(args) > 1 else None))
    q = q if isinstance(q, int) or q is None else len(q) if getattr(q, "ndim", 0) else int(q)
    kv = kwargs.get("kv_length", args[2] if len(args) > 2 else None)
    if attention_mask is None and q == kv:
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def use_isolated(
    model,  # a transformers model
):
    "Let a model use `isolated_attention`."
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("isolated", isolated_attention)
    AttentionMaskInterface.register("isolated", isolated_mask)
    model.set_attn_implementation("isolated")


# %% [markdown]
# ## Which models can be packed?
#
# Not every model can be packed this way. Layers that look back only a window, that bend their scores, or that are no attention at all would be wrong or unknown; so a model is asked first. Where it cannot, batches are grouped by length instead, which leaves little padding. The same is done on accelerators without the variable-length kernel (XPU, or CUDA in fp32): there many small calls cost more than padding, as the measurement at the end of this chapter shows.
#
# The first question is quick, and needs no numbers: what does the model say of itself?

# %%
#| export
def base_of(
    model,  # a transformers model, perhaps with an adapter
):  # the model under the adapter
    "The base model."
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_isolate(
    model,  # a transformers model, perhaps with an adapter
) -> str:  # "" if nothing it says of itself speaks against keeping sequences apart in a row; else the reason
    "Whether `isolated_attention` may be right for a model."
    base = base_of(model)
    config = base.config
    if not (getattr(base, "_supports_attention_backend", False) and getattr(base, "_supports_sdpa", False)):
        return f"{type(base).__name__} has attention of its own"
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if window or "sliding_attention" in kinds:
        return "its layers look back over a window only"
    if kinds:
        return f"it has layers of other kinds than full attention ({', '.join(sorted(map(str, kinds)))})"
    if getattr(config, "attn_logit_softcapping", None):
        return "it bends its attention scores"
    return ""


def packs_well(
    device,  # the `Device`
) -> bool:  # False where batches grouped by length are the faster choice
    "Whether packed rows are fast on a device: on a CPU, and on CUDA where the variable-length kernel applies."
    import torch

    if device.type == "cpu":
        return True
    return (
        device.type == "cuda"
        and varlen_kernel(torch.empty(0, device=device.torch, dtype=getattr(torch, device.dtype))) is not None
    )


def to_device(
    batch: dict,  # what a collator made
    device,  # a torch.device
) -> dict:  # the same with its tensors there
    "A batch where the model is."
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}


def packed_inputs(
    batch: dict,  # what `EndToEnd` made, on the model's device; other batches need nothing
) -> dict:  # arguments for the model, besides input_ids
    "Positions and boundaries of a packed row, in the words of transformers."
    if "cu_seqlens" not in batch:
        return {}
    longest = max(batch["seq_lens"])
    return {
        "position_ids": batch["position_ids"],
        "cu_seq_lens_q": batch["cu_seqlens"],
        "cu_seq_lens_k": batch["cu_seqlens"],
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_lens": batch["seq_lens"],
    }


# %% [markdown]
# ## Rows of one length
#
# Some ways to be fast want every batch to have the same shape: a compiler makes a program for a shape, and a recorded graph of a device *is* one shape. So a packed row can be filled up, with padding that is cut into sequences of its own, to a fixed number of tokens, of sequences and of learned places. What is filled up has no weight, so the loss is the same, to the last bit where the device adds in the same order.

# %%
#| export
@dataclass(frozen=True)
class RowShape:
    "What every row of a run is filled up to."

    tokens: int  # of a row
    sequences: int  # of a row, those of the padding among them
    longest: int  # tokens of the longest sequence
    learned: int  # places of a row at which something is learned


def row_shape(
    batches: list,  # for each micro-batch of a run, the indices of its samples
    lengths: list,  # tokens of each sample
    learned: list,  # tokens of each sample that have a loss weight
    step: int = 64,  # sizes are multiples of this
) -> RowShape:  # the smallest that all micro-batches fit into
    "How long rows must be."

    def most(sizes):
        return -(-max(sum(sizes[i] for i in b) for b in batches) // step) * step

    longest, tokens = max(lengths), most(lengths)
    shortest = min(sum(lengths[i] for i in b) for b in batches)
    padding = -(-(tokens - shortest) // longest)
    return RowShape(tokens, max(map(len, batches)) + padding + 1, longest, most(learned))


LEAST_TOKENS = 4096  # of the longest row; shorter rows are padded for next to nothing
LEAST_SAVED = 0.02  # of all tokens; another shape that saves less is not worth its recording


def row_shapes(
    batches: list,  # for each micro-batch of a run, the indices of its samples
    lengths: list,  # tokens of each sample
    learned: list,  # tokens of each sample that have a loss weight
    most: int | None = 3,  # shapes, 1 or more; None: one for each size that there is
    step: int = 64,  # sizes are multiples of this
) -> list:  # of `RowShape`, the shortest first; a micro-batch goes into the first that has room for its tokens
    "A few lengths of rows, so that little is filled up: the last micro-batch of an epoch may be a short one."
    sizes = [-(-sum(lengths[i] for i in b) // step) * step for b in batches]
    ordered, counts, best, chosen = sorted(sizes), Counter(sizes), len(sizes) * max(sizes), (max(sizes),)
    if most is None:
        chosen = tuple(sorted(counts))
    elif max(sizes) >= LEAST_TOKENS:
        # some forty sizes to choose from
        some = sorted({ordered[k * (len(ordered) - 1) // 40] for k in range(41)} - {max(sizes)})
        for count in range(1, most):
            for ends in combinations(some, count):
                filled = sum(c * next((e for e in ends if e >= n), ordered[-1]) for n, c in counts.items())
                if filled < best - LEAST_SAVED * sum(sizes) * (count + 1 - len(chosen)):
                    best, chosen = filled, (*ends, max(sizes))
    groups: dict = {end: [] for end in chosen}
    for n, b in zip(sizes, batches):
        groups[next(end for end in chosen if end >= n)].append(b)
    return [row_shape(group, lengths, learned, step) for group in groups.values()]


def fixed_row(
    batch: dict,  # what `EndToEnd` made, on the CPU
    shape: RowShape,  # what to fill up to
    pad_id: int,  # the padding token
) -> dict:  # the same row, and keep, targets, weights (each K): where something is learned, what, and how much
    "A packed row in a fixed shape."
    import torch

    lens, ids, weights = list(batch["seq_lens"]), batch["input_ids"][0], batch["loss_weights"][0]
    room = shape.tokens - len(ids)
    require(room >= 0, f"a row of {len(ids)} tokens was given; expected at most {shape.tokens}, the run's longest")
    while room > 0:
        lens.append(min(room, shape.longest))
        room -= lens[-1]
    ends = torch.tensor(lens).cumsum(0)
    cu_seqlens = torch.full((shape.sequences + 1,), shape.tokens, dtype=torch.int32)
    cu_seqlens[0], cu_seqlens[1 : len(lens) + 1] = 0, ends
    begins = torch.tensor([0, *ends[:-1]])
    at = (weights[1:] > 0).nonzero().squeeze(1)  # place t predicts token t + 1
    keep, targets, kept = (torch.zeros(shape.learned, dtype=d) for d in (torch.long, torch.long, torch.float32))
    keep[: len(at)], targets[: len(at)], kept[: len(at)] = at, ids[at + 1], weights[at + 1]
    return {
        "input_ids": torch.nn.functional.pad(ids, (0, shape.tokens - len(ids)), value=pad_id)[None],
        "position_ids": (torch.arange(shape.tokens) - begins.repeat_interleave(torch.tensor(lens)))[None],
        "cu_seqlens": cu_seqlens,
        "seq_lens": tuple(lens),
        "keep": keep,
        "targets": targets,
        "weights": kept,
    }


# %% [markdown]
# Five micro-batches of about 8,000 tokens and a sixth, the rest of the epoch, of 500. With one shape for all, a sixth of the work is padding; with two it is nearly none:

# %% tags=["example"]
epoch = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
tokens = [4000, 3900, 4100, 3800, 4000, 4000, 3900, 4050, 3950, 4000, 500]
for most in (1, 2):
    shapes = row_shapes(epoch, tokens, [n // 2 for n in tokens], most)
    print(f"{most} at most:", [(s.tokens, s.learned) for s in shapes])

# %% tags=["check"]
assert [s.tokens for s in row_shapes(epoch, tokens, tokens, 3)] == [512, 8000]
assert len(row_shapes(epoch, [n // 10 for n in tokens], tokens, 3)) == 1  # short rows are left alone
assert [s.tokens for s in row_shapes(epoch, tokens, tokens, None)] == [512, 7936, 8000]

# %% [markdown]
# Two samples of five and three tokens in a row of eight, filled up to sixteen:

# %% tags=["example"]
pair = [
    {"input_ids": [5, 6, 7, 8, 9], "loss_weights": [1.0] * 5},
    {"input_ids": [3, 4, 5], "loss_weights": [0, 0, 0.5]},
]
shape = row_shape([[0, 1]], [5, 3], [4, 1], step=16)
filled = fixed_row(EndToEnd(0)(pair), shape, 0)
print(shape)
{name: filled[name].tolist() for name in ("input_ids", "position_ids", "cu_seqlens")}


# %% [markdown]
# ### Asked by doing
#
# What a model says of itself is not enough. The boundaries travel as arguments from the model down to each attention layer, and an architecture that drops them on the way says nothing wrong: its attention never hears of them, and every sequence reads those before it. So the second question is answered by doing. Two short sequences go through the model by themselves, in the library's own attention, and then end to end. Three things must hold:
#
# - They answer end to end as they do by themselves.
# - Another first sequence changes nothing in the second.
# - Without boundaries it would: a model that does not care what came before could not tell us anything.
#
# Answers are rows of logits; distances are relative to their length. In fp32 only the order of additions differs, and nothing above 1e-4 is let through. In 16 bits every number is rounded to 8 or 11 binary digits, and that may send a token to another expert; there the limit is an eighth, where a leak moves answers by about their own size.

# %%
#| export
def answers(
    model,  # a transformers model
    batch: dict,  # input_ids, and of a packed row what `EndToEnd` adds
):  # B x T x V logits, fp32, each row centred, since only differences within a row count
    "What a model says at each place."
    import torch

    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], use_cache=False, **packed_inputs(batch))
    logits = out.logits.float()
    return logits - logits.mean(-1, keepdim=True)


def moved(
    logits,  # of `answers`
    wanted,  # the same, to compare with
) -> float:  # length of the difference, in lengths of `wanted`; inf where one is not a number
    "How far two answers are apart."
    far = ((logits - wanted).norm() / wanted.norm()).item()
    return far if far == far else float("inf")


def close_enough(
    model,  # a transformers model
) -> float:  # greatest distance of answers that are the same but for rounding
    "How far rounding may move answers, in the number format that is computed in."
    import torch

    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return 1e-4 if torch.finfo(dtype).bits >= 32 else 1 / 8


# %%
#| export
def probe_sequences(
    model,  # a transformers model
) -> list:  # three lists of tokens, none of them special: a first sequence of 9, another one, and a second of 14
    "Short sequences to ask a model with."
    import torch

    config, some = base_of(model).config, torch.Generator().manual_seed(0)
    special = {i for n in ("pad", "bos", "eos") for i in [getattr(config, f"{n}_token_id", None)] if isinstance(i, int)}
    usable = [i for i in range(model.get_input_embeddings().weight.shape[0]) if i not in special]
    return [[usable[i] for i in torch.randint(len(usable), (n,), generator=some)] for n in (9, 9, 14)]


def probe_packing(
    model,  # a transformers model in evaluation mode; from now on with isolated attention
) -> dict:  # distances: apart, leak, seen
    """Two sequences alone and end to end, through the whole model.

    apart: end to end from alone; leak: in the second, by another first one; seen: in it, without boundaries."""
    import torch

    first, other, second = probe_sequences(model)
    alone = [
        answers(model, {"input_ids": torch.tensor([x], device=model.device)}) for x in (first, second, first + second)
    ]
    use_isolated(base_of(model))

    def packed(*parts):
        row = EndToEnd(0)([{"input_ids": x, "loss_weights": [1.0] * len(x)} for x in parts])
        return answers(model, to_device(row, model.device)).split([len(x) for x in parts], dim=1)

    together, changed = packed(first, second), packed(other, second)
    return {
        "apart": max(moved(x, y) for x, y in zip(together, alone)),
        "leak": moved(changed[1], together[1]),
        "seen": moved(alone[2][:, len(first) :], alone[1]),
    }


# %%
#| export
def leaks_between(
    model,  # a transformers model with numbers; from now on with isolated attention
) -> str:  # "" if sequences of a packed row stay apart; else what goes wrong
    "Ask a model, by doing, whether its packed sequences stay apart."
    limit, was_training = close_enough(model), model.training
    try:
        far = probe_packing(model.eval())
    except Exception as e:
        return f"a packed row does not go through it ({type(e).__name__}: {' '.join(str(e).split())[:120]})"
    finally:
        model.train(was_training)

    def size(what):
        return f"by {far[what]:.2g} of their size"

    if far["leak"] > limit:
        return f"sequences of a row read each other (another first one moves the answers of the second {size('leak')})"
    if far["apart"] > limit:
        return f"sequences answer differently end to end than by themselves ({size('apart')})"
    if far["seen"] > 2 * limit:
        return ""
    return f"its answers hardly depend on what came before ({size('seen')}), so that packed rows cannot be judged"


def reads_ahead(
    model,  # a transformers model with numbers
) -> bool:  # True for a model that cannot be taught to go on with a text
    "Does a model see tokens that it should guess? Asked by doing: another last token must change nothing before it."
    import torch

    was_training, tokens = model.training, probe_sequences(model)[2]
    another = [*tokens[:-1], next(t for t in tokens if t != tokens[-1])]

    def before(ids):
        return answers(model, {"input_ids": torch.tensor([ids], device=model.device)})[:, :-1]

    model.eval()
    try:
        return moved(before(another), before(tokens)) > close_enough(model)
    finally:
        model.train(was_training)


# %% [markdown]
# ## The same loss
#
# A tiny Llama with grouped heads, in fp32. Six samples, one by one; then end to end, with a block-diagonal mask and with isolated attention. Losses and all gradients must agree within 1e-5. As a control, the last row packs without isolating: there the loss *does* change, so the check can fail.

# %% tags=["example"]
def tiny_llama(seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(bpe),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            attn_implementation="sdpa",
        )
    )


def loss_and_gradients(model, batches):
    "Weighted loss over all batches, and the gradients, as a dict."
    model.zero_grad()
    total = 0.0
    for b in batches:
        logits = model(input_ids=b["input_ids"], use_cache=False, **b.get("extra", {})).logits
        total = (
            total
            + (
                torch.nn.functional.cross_entropy(logits[0, :-1], b["input_ids"][0, 1:], reduction="none")
                * b["loss_weights"][0, 1:]
            ).sum()
        )
    (total / 100).backward()
    return total.item() / 100, {n: p.grad.clone() for n, p in model.named_parameters()}


some = [x.features() for x in scene_samples(everything[:6], maker, ["Homer Simpson"], 200, 0.3)[0][:6]]
one_by_one = [EndToEnd(0)([s]) for s in some]
packed = EndToEnd(0)(some)
rows = {}
model = tiny_llama()
want_loss, want = loss_and_gradients(model, one_by_one)
for name, extra, isolate in (
    ("block-diagonal mask", {"position_ids": packed["position_ids"]}, False),
    ("sequence by sequence", packed_inputs(packed), True),
    ("not isolated", {}, False),
):
    model = tiny_llama()
    if isolate:
        use_isolated(model)
    loss, grads = loss_and_gradients(model, [{**packed, "extra": extra}])
    rows[name] = {
        "difference of the loss": abs(loss - want_loss),
        "largest difference of a gradient": max((grads[n] - want[n]).abs().max().item() for n in want),
    }
pd.DataFrame(rows).T

# %% tags=["check"]
assert all(v < 1e-5 for name, r in rows.items() if name != "not isolated" for v in r.values())
assert rows["not isolated"]["difference of the loss"] > 1e-3 and max(g.abs().max() for g in want.values()) > 1e-3

# %% [markdown]
# Filling a row up to a fixed length changes nothing, and outside of packed rows `isolated` is ordinary attention: with padding on the left and a mask, as in generating, and with a cache.

# %% tags=["check"]
plain, isolated = tiny_llama(), tiny_llama()
use_isolated(isolated)
longer = EndToEnd(0, row_len=2048 // len(some))(some)
assert longer["input_ids"].shape[1] > packed["input_ids"].shape[1]
assert abs(loss_and_gradients(isolated, [{**longer, "extra": packed_inputs(longer)}])[0] - want_loss) < 1e-5
ids = torch.tensor([[0] * 5 + some[0]["input_ids"][:20], some[1]["input_ids"][:25]])
mask = torch.tensor([[0] * 5 + [1] * 20, [1] * 25])
with torch.no_grad():
    assert (plain(ids, attention_mask=mask).logits - isolated(ids, attention_mask=mask).logits)[
        mask.bool()
    ].abs().max() < 1e-5
    assert (plain(ids).logits - isolated(ids).logits).abs().max() < 1e-5
    assert (
        plain.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
        == isolated.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
    )

# %% [markdown]
# ## Some models, asked both ways
#
# Five small models with random numbers (larger than models start with, so that every layer has its say). What comes out may change with the version of transformers: in the first of its versions 5, GPT-2 dropped the boundaries as well. Here, Nemotron's class says nothing that speaks against packing, and its layers never hear of the boundaries. BERT is an encoder: it sees the token that it should guess, so packed or not, it cannot learn to go on with a text.

# %% tags=["example"]
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
)


def stirred(model):
    "The same with larger random numbers."
    torch.manual_seed(0)
    with torch.no_grad():
        [p.add_(0.3 * torch.randn_like(p)) for p in model.parameters()]
    return model


small = dict(vocab_size=90, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
models = {
    "Llama": tiny_llama(),
    "GPT-2": GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)),
    "Mistral with a window": MistralForCausalLM(MistralConfig(**small, num_key_value_heads=2, sliding_window=8)),
    "Nemotron": NemotronForCausalLM(NemotronConfig(**small, num_key_value_heads=2)),
    "BERT": BertLMHeadModel(BertConfig(**small)),
}


def ask(m):
    return {
        "says": can_isolate(m) or "can be packed",
        "reads ahead": reads_ahead(stirred(m)),
        "does": leaks_between(m) or "stays apart",
    }


asked = pd.DataFrame({name: ask(m) for name, m in models.items()}).T
asked

# %% tags=["check"]
assert asked.loc["Llama", "does"] == "stays apart" and "window" in asked.loc["Mistral with a window", "says"]
assert "read each other" in asked.loc["Nemotron", "does"] and list(asked["reads ahead"]) == [False] * 4 + [True]

# %% [markdown]
# And all others? `tests/packing_survey.py` makes a small model of every kind of causal language model that transformers knows, and asks it as a run does: the class by what it says of itself, and a sketch of it ([the chapter on base models](../3_model/30_base.ipynb) makes these) by doing. Those that are admitted are measured once more, with other numbers, seven sequences of up to 61 tokens, and each compared with itself alone.

# %% tags=["example"]
kept = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "packing_models.jsonl"))
kept["kind"] = kept["model_type"] + kept["is_decoder"].map(lambda d: " (as a decoder)" if d == 1 else "")
display(
    kept.groupby("verdict", sort=False)["kind"].agg(
        kinds="count", **{"the first of them": lambda names: ", ".join(names[:7])}
    )
)
admitted = kept[kept["verdict"] == "packed"]
print(
    f"transformers {kept['transformers'][0]}, torch {kept['torch'][0]}, {kept['date'][0]}. "
    f"Admitted kinds differ from themselves alone by {admitted['off'].max():.1e} of the logits' spread at most."
)

# %% [markdown]
# "Not asked" are kinds of which no small model could be made in this way, most of them made of parts, for pictures or sound; a run of a kind that cannot be asked fills up. And which would have been packed on the word of their class alone, and should not have been? Those that read ahead, those whose attention never hears of the boundaries, and those that count positions in their own way.

# %% tags=["example"]
wrong = kept[(kept["verdict"] != "not asked") & (kept["says"] == "") & (kept["does"] != "")]
why = ["reads ahead" if ahead else does.split(" (")[0] for ahead, does in zip(wrong["reads_ahead"], wrong["does"])]
wrong.groupby(why, sort=False)["kind"].agg(kinds="count", **{"which": ", ".join})

# %% tags=["check"]
assert (admitted["off"] < 1e-3).all() and (admitted["does"] == "").all() and not admitted["reads_ahead"].any()
assert {"nemotron", "bert"} <= set(wrong["model_type"]) and "llama" in set(admitted["model_type"])
assert not {"mamba", "rwkv", "bloom", "mistral"} & set(admitted["model_type"])
# each kind, saved and loaded again, is whole
assert (kept.loc[kept["verdict"] != "not asked", "loads"] == "").all()


# %% [markdown]
# ## Rows of a fixed length
#
# `PackedRows` is a dataset for training: rows that `best_fit` has filled. Their shapes are constant, which compilers like. A batch then counts rows, not samples; the plain way (`EndToEnd` over the samples of a batch) leaves all batches as they are and only drops the padding.

# %%
#| export
@dataclass
class PackedRows:
    "Rows of samples, each at most `row_len` tokens; an item is a dict for `EndToEnd`."

    samples: list  # `Sample`s
    row_len: int  # most tokens of a row

    def __post_init__(self):
        self.rows = best_fit([len(x.input_ids) for x in self.samples], self.row_len)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if i >= len(self.rows):
            raise IndexError(i)
        xs = [self.samples[k] for k in self.rows[i]]
        return {
            "input_ids": [t for x in xs for t in x.input_ids],
            "loss_weights": [w for x in xs for w in x.loss_weights],
            "lengths": [len(x.input_ids) for x in xs],
        }

    @property
    def filling(self) -> float:
        "Share of real tokens, 0..1."
        return filling([len(x.input_ids) for x in self.samples], self.rows, self.row_len)

    def arrays(
        self,
        pad_id: int,  # the padding token
    ) -> dict:  # numpy, N x row_len: int32 input_ids, position_ids, float32 loss_weights; cu_seqlens (N int32 arrays)
        "All rows as arrays, for other programs."
        import numpy as np

        shape = (len(self.rows), self.row_len)
        out: dict = {
            "input_ids": np.full(shape, pad_id, np.int32),
            "position_ids": np.zeros(shape, np.int32),
            "loss_weights": np.zeros(shape, np.float32),
            "cu_seqlens": [],
        }
        for r, row in enumerate(self.rows):
            begin, ends = 0, [0]
            for k in row:
                x, n = self.samples[k], len(self.samples[k].input_ids)
                # three times as fast as numpy's own way from a list
                out["input_ids"][r, begin : begin + n] = array("l", x.input_ids)
                out["loss_weights"][r, begin : begin + n] = array("d", x.loss_weights)
                out["loss_weights"][r, begin] = 0
                out["position_ids"][r, begin : begin + n] = np.arange(n)
                begin += n
                ends.append(begin)
            out["position_ids"][r, begin:] = np.arange(self.row_len - begin)
            out["cu_seqlens"].append(np.array(ends + [self.row_len] * (begin < self.row_len), np.int32))
        return out


# %% tags=["example"]
packed_rows = PackedRows(views["scenes, 512"], 1024)
print(
    f"{len(packed_rows.samples)} samples in {len(packed_rows)} rows of 1,024 tokens, {packed_rows.filling:.1%} full; "
    f"samples of the rows view: {PackedRows(views['rows, 256'], 1024).filling:.1%}"
)

# %% tags=["check"]
whole, arrays = EndToEnd(0, 1024)(list(packed_rows)), packed_rows.arrays(0)
assert whole["lengths"].sum() == sum(len(x.input_ids) for x in packed_rows.samples) and packed_rows.filling > 0.9
# short samples fill better; the book's own scenes are long and all alike
assert PackedRows(views["rows, 256"], 1024).filling > 0.95
for i in range(len(packed_rows)):
    one = EndToEnd(0, 1024)([packed_rows[i]])
    for name in ("input_ids", "position_ids", "loss_weights"):
        assert np.array_equal(one[name][0].numpy(), arrays[name][i]), name
    assert one["cu_seqlens"].tolist() == arrays["cu_seqlens"][i].tolist()

# %% [markdown]
# ## On a GPU
#
# The same equalities and the speed on one H100, from `tests/gpu_packing.py` (torch 2.11). Training steps of a random Llama (12 layers, width 1,600, head size 100) in bf16, 64 samples of 24 to 256 tokens at once, real tokens per second as ratios to filled-up batches:

# %%
#| eval: false

found = pd.read_json(chapters_dir() / "_results" / "gpu_packing.jsonl", lines=True)
found.dropna(subset=["ratio_to_filled_up"])[["device", "dtype", "way", "ratio_to_filled_up"]].reset_index(drop=True)

# %%
#| eval: false
found.dropna(subset=["loss_difference"])[
    ["dtype", "way", "loss_difference", "gradient_difference_relative"]
].reset_index(drop=True)

# %% [markdown]
# The kernel doubles the speed of filled-up batches; a block-diagonal mask and many small calls halve it or worse, because at this head size a mask leaves only the slow path, and because a GPU waits for each call. In fp32 all ways agree to seven digits; in bf16 they differ by the rounding of that format, filled-up batches as much as packed ones.
