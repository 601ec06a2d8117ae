# %%
#| default_exp lora.spectra

# %% [markdown]
# # What fine-tuning changes
#
# > Fine-tune all weights, look at the change of each layer, and measure whether it is low in rank.
#
# LoRA rests on a hypothesis: the change that fine-tuning makes to a weight matrix needs few of its directions. [The chapter on LoRA](20_layer.ipynb) stated it, and this one measures it. We train
# one tiny model in full and with LoRA, from the same start on the same batches, and take the changes apart. Three questions:
# How fast do the singular values of the full change fall? How much of *what was learned* is left when the change is cut to rank $r$? And does LoRA find the same change?
#
# The model is small enough to train while the chapter runs, so the answers are about a small model after a few steps. The tools work for any two sets of weights.

# %%
#| export
import copy
from collections.abc import Mapping

import torch

from simpsons_llm.lora.layer import LoRALinear, best_of_rank, find_targets
from simpsons_llm.machine.job import require

# %%
#| hide
import math
import random

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from transformers import LlamaConfig, LlamaForCausalLM

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.prompt import TextMaker, byte_tokenizer
from simpsons_llm.data.samples import scene_samples
from simpsons_llm.lora.layer import LoRASettings, add_lora
from simpsons_llm.machine.job import chapters_dir

# matrices this small gain nothing from more threads, and the order of sums stays the same
torch.set_num_threads(1)

# %% [markdown]
# ## A model that knows something, and something new
#
# Fine-tuning needs a model that already knows something. A random one will not do: nearly all of its change would be learning to spell. So a tiny Llama that
# reads bytes is trained first on what everybody *but* Homer says. His lines are in the text that it reads, but none of them counts. Then comes the fine-tuning: only
# his lines count. What is new is how one character speaks.
#
# The held-out loss is measured on scenes of other episodes, the split `valid`. No test scene is read in this chapter.

# %% tags=["example"]
script = read_script("springfield")
scenes, tokenizer = split_scenes(script.scenes), byte_tokenizer()
maker, homer = TextMaker(tokenizer), ["Homer Simpson"]
others = [name for name in script.speakers if name not in homer]


def samples_of(split, targets):
    return scene_samples(scenes[split], maker, targets, max_seq_len=128)[0]


samples = {
    (split, who): samples_of(split, names)
    for split in ("train", "valid")
    for who, names in (("others", others), ("homer", homer))
}
pd.DataFrame(
    [
        dict(
            split=split,
            learned=who,
            samples=len(s),
            bytes_read=sum(len(x.input_ids) for x in s),
            bytes_learned=sum(x.learned for x in s),
        )
        for (split, who), s in samples.items()
    ]
)


# %% [markdown]
# A batch is a few samples, filled up with padding at the end. A token sees only what stands before it, so padding behind the text changes nothing and needs no mask. The
# label `-100` tells the loss to leave a token out.

# %% tags=["example"]
def batch(chosen):
    "input_ids and labels of some samples, B x T each."
    T = max(len(x.input_ids) for x in chosen)

    def rows(lists, fill):
        return torch.tensor([values + [fill] * (T - len(values)) for values in lists])

    return rows([x.input_ids for x in chosen], tokenizer.pad_token_id), rows(
        [[t if w else -100 for t, w in zip(x.input_ids, x.loss_weights)] for x in chosen], -100
    )


def batches(chosen, steps, size):
    "So many batches, the samples shuffled anew in each pass, always in the same way."
    rng, order = random.Random(0), []
    while len(order) < steps * size:
        order += rng.sample(chosen, len(chosen))
    return [batch(order[i * size : (i + 1) * size]) for i in range(steps)]


held_out_batch = {who: batch(samples["valid", who]) for who in ("homer", "others")}


@torch.no_grad()
def held_out(model, who="homer"):
    "Mean loss of a learned byte in the valid scenes, in nats."
    input_ids, labels = held_out_batch[who]
    return model.eval()(input_ids=input_ids, labels=labels).loss.item()


# %% [markdown]
# The training loop is the plainest one that works: Adam, a learning rate that rises over the first tenth of the steps and then falls to zero along a cosine, long gradients cut. A
# real one is [the loop by hand](../4_train/45_loop.ipynb).

# %% tags=["example"]
def train(model, batches, lr):
    "Train what wants a gradient, in place; gives the model."
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for i, (input_ids, labels) in enumerate(batches, 1):
        done = i / (len(batches) + 1)
        optimizer.param_groups[0]["lr"] = lr * min(1, 10 * done) * (1 + math.cos(math.pi * done)) / 2
        model(input_ids=input_ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


torch.manual_seed(0)
base = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.06,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
)
untrained = held_out(base)
train(base, batches(samples["train", "others"], 320, 8), lr=5e-3)
Markdown(
    f"{base.num_parameters():,} weights. Homer's held-out lines cost {untrained:.2f} nats a byte "
    f"before any training, and {held_out(base):.2f} now that the model knows the others."
)

# %% [markdown]
# It cannot hold a conversation, but it knows letters, words and names. This is the start of everything that follows.
#
# ## The same lessons, two ways
#
# All weights, and LoRA on all linear layers with $r = 4$ and $r = 16$. Each run begins with a copy of the same model and sees the same batches in the same order. LoRA gets ten times the learning
# rate of full fine-tuning, as [the chapter on LoRA](20_layer.ipynb) explains.

# %% tags=["example"]
lessons = batches(samples["train", "homer"], 100, 8)


def fine_tune(settings, lr):
    "A fine-tuned copy of the base; settings None trains all weights."
    torch.manual_seed(0)
    model = copy.deepcopy(base)
    return train(add_lora(model, settings) if settings else model, lessons, lr)


models = {
    "base": base,
    "all weights": fine_tune(None, 1e-3),
    **{f"LoRA, r = {r}": fine_tune(LoRASettings(r=r, lora_alpha=2 * r), 1e-2) for r in (4, 16)},
}
losses = pd.DataFrame(
    [
        dict(
            model=way,
            trained_weights=sum(p.numel() for p in model.parameters() if p.requires_grad) if model is not base else 0,
            loss_homer=held_out(model),
            loss_others=held_out(model, "others"),
        )
        for way, model in models.items()
    ]
).set_index("model")
losses.round(3)

# %% [markdown]
# All three learned: Homer's held-out lines cost less than before. What was learned is his alone, or nearly so: what the others say got cheaper by less than that, or dearer.

# %% tags=["check"]
gain = losses.loss_homer["base"] - losses.loss_homer.drop("base")  # nats a byte
other_gain = losses.loss_others["base"] - losses.loss_others.drop("base")
assert (gain > 0.01).all() and (other_gain < gain / 2).all()
pd.DataFrame(dict(gain_homer=gain, gain_others=other_gain)).round(3)


# %% [markdown]
# ## The change of each layer
#
# The change is a subtraction: the weight after, less the weight before. Two points need care. A model with LoRA has its change at hand, as $\frac{\alpha}{r} BA$, and taking that one loses nothing
# to rounding. And two models can only be compared layer by layer if they have the same layers.
#
# `layer_weights` names the matrices that are compared. In a model these are the layers that LoRA could adapt, `"all-linear"` of [the chapter on LoRA](20_layer.ipynb). A state dict, as one reads it from a file,
# does not say which of its matrices belong to linear layers, so all of them count, the embedding table too.

# %%
#| export
def layer_weights(
    model,  # a model without adapters, or a state dict (name -> tensor)
) -> dict:  # layer name -> weight, D_out x D_in; ValueError for a model with adapters
    "The matrices to compare: Linear layers without the output layer, or all matrices of a state dict."
    if isinstance(model, Mapping):
        return {name.removesuffix(".weight"): t.detach() for name, t in model.items() if t.ndim == 2}
    return {name: model.get_submodule(name).weight.detach() for name in find_targets(model, "all-linear")}


# %% [markdown]
# `weight_changes` refuses what cannot be compared, and also two models that are equal: a spectrum of nothing is a sign that something went wrong before.

# %%
#| export
def weight_changes(
    before,  # a model without adapters, or its state dict
    after,  # the same, fine-tuned: a model (with `LoRALinear`s too), or a state dict (a merged PEFT model's too)
) -> dict:  # layer name -> change, D_out x D_in, 32 bits or more; layers that did not change are left out
    "What fine-tuning added to each layer; ValueError if the layers differ or nothing changed."
    require(
        isinstance(before, Mapping) == isinstance(after, Mapping),
        "one model and one state dict were given; give two models or two state dicts",
    )
    adapters = (
        {}
        if isinstance(after, Mapping)
        else {name: m for name, m in after.named_modules() if isinstance(m, LoRALinear)}
    )
    old, new, changes = (
        layer_weights(before),
        {name: m.base.weight.detach() for name, m in adapters.items()} or layer_weights(after),
        {},
    )
    alone = sorted(new.keys() - old.keys() if adapters else new.keys() ^ old.keys())
    require(
        not alone, f"only one side has {alone[:1]}; give two states of the same model, with adapters merged and removed"
    )
    for name, w in new.items():
        require(
            w.shape == old[name].shape,
            f"{name} is {tuple(old[name].shape)} before and {tuple(w.shape)} after; give two states of the same model",
        )
        m = adapters.get(name)
        require(
            m is None or torch.equal(w, old[name].to(w.device)) and getattr(m, "lora_magnitude_vector", None) is None,
            f"the change of {name} is more than B A (another base, a merged adapter, PiSSA or DoRA); "
            "give the model it was trained on, or merge it and remove the adapters",
        )
        d = m.delta().detach() if m else w.to(torch.promote_types(w.dtype, torch.float32)) - old[name].to(w.device)
        if d.any():
            changes[name] = d
    require(changes, f"none of {len(new)} layers changed; give the model before and after training")
    return changes


# %% [markdown]
# The changes of our three models, and how long the change is beside the weight itself (the root of the summed squares of each):

# %% tags=["example"]
changes = {way: weight_changes(base, model) for way, model in models.items() if model is not base}
weights = layer_weights(base)


def short(name):
    return name.removeprefix("model.layers.").replace("self_attn.", "").replace("mlp.", "")


pd.DataFrame(
    {
        way: {short(name): (d.norm() / weights[name].norm()).item() for name, d in ds.items()}
        for way, ds in changes.items()
    }
).map("{:.1%}".format)


# %% [markdown]
# These are large changes, as is to be expected of a small model and a high learning rate; LoRA's are the longest, though fewer numbers made them. Three paths lead to the same numbers: the adapter's own change, the merged model less the base, and their two state dicts. And what must be refused is refused:

# %% tags=["check"]
def message(call, *args, **kwargs):
    "The text of the ValueError that this call must raise."
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("no ValueError was raised")


adapted, merged = models["LoRA, r = 4"], copy.deepcopy(base)
with torch.no_grad():
    for name, d in changes["LoRA, r = 4"].items():
        merged.get_submodule(name).weight += d
for found in (weight_changes(base, merged), weight_changes(base.state_dict(), merged.state_dict())):
    assert found.keys() == changes["LoRA, r = 4"].keys() == weights.keys()
    assert all(torch.allclose(found[name], d, atol=1e-6) for name, d in changes["LoRA, r = 4"].items())
assert {"lm_head", "model.embed_tokens"} < weight_changes(base.state_dict(), models["all weights"].state_dict()).keys()

# B is zero: no change yet
untouched = add_lora(copy.deepcopy(base), LoRASettings(r=4))
said = [
    message(weight_changes, *pair) for pair in ((base, untouched), (models["all weights"], adapted), (adapted, base))
]
assert all(word in text for word, text in zip(("none of 14 layers changed", "more than B A", "has LoRA already"), said))
said


# %% [markdown]
# ## Measures of rank
#
# [The chapter on LoRA](20_layer.ipynb) took a picture apart: any matrix is a sum of multiplication tables (matrices of rank 1), and the singular values are the lengths of these tables, the largest first. Their squares add
# up to the squared length of the whole. So three measures:
#
# - the *share held* by rank $r$: the squares of the $r$ largest over the sum of all;
# - the *rank for* a share, such as 90 %: the smallest $r$ that holds it;
# - the *effective rank* (Roy and Vetterli 2007, "The effective rank: A measure of effective dimensionality"): $e^{H}$, where $H$ is the entropy of the singular values divided by their sum. It needs no threshold.
#   $k$ equal values have effective rank $k$.

# %%
#| export
def singular_values(
    matrix: torch.Tensor,  # D_out x D_in, finite
) -> torch.Tensor:  # min(D_out, D_in) values, largest first, 64 bits, on the CPU
    "The singular values of one change."
    require(
        matrix.ndim == 2 and bool(matrix.isfinite().all()),
        f"a tensor of shape {tuple(matrix.shape)} with {int((~matrix.isfinite()).sum())} values "
        "that are not finite was given; give a finite matrix",
    )
    return torch.linalg.svdvals(matrix.detach().double()).cpu()


def shares_held(
    values: torch.Tensor,  # singular values, largest first
) -> torch.Tensor:  # entry r: share of the squared length in the r largest, r = 0..len(values)
    "How much of a matrix each rank holds at best."
    require(
        values.ndim == 1 and bool((values >= 0).all() & (values.diff() <= 0).all()) and bool(values.any()),
        "these are no singular values of a change; give what singular_values gives, not all of it zero",
    )
    return torch.cat(
        [torch.zeros(1, dtype=torch.double), (values.double() ** 2).cumsum(0) / (values.double() ** 2).sum()]
    )


def rank_for(
    values: torch.Tensor,  # singular values, largest first
    share: float = 0.9,  # of the squared length, 0 < share <= 1; 1 means all but rounding
) -> int:  # 1..len(values)
    "The smallest rank that holds this share of the squared length."
    require(0 < share <= 1, f"share={share!r} is outside 0 < share <= 1; give e.g. 0.9")
    return max(1, int((shares_held(values) < share - 1e-12).sum()))


def effective_rank(
    values: torch.Tensor,  # singular values, largest first
) -> float:  # 1..len(values)
    "exp of the entropy of the singular values over their sum (Roy and Vetterli 2007)."
    p = shares_held(values).diff().sqrt()  # the values over the length of the whole
    p /= p.sum()
    return torch.special.entr(p).sum().exp().item()


# %% [markdown]
# By hand: a matrix with 4 and 3 on its diagonal has squared length $16 + 9 = 25$. The first table holds $16/25 = 64$ % of it. So rank 1 is enough for 64 %, and 65 % need rank 2.

# %% tags=["check"]
values = singular_values(torch.diag(torch.tensor([3.0, 4.0])))
assert values.tolist() == [4, 3] and torch.allclose(shares_held(values), torch.tensor([0, 0.64, 1], dtype=torch.double))
assert [rank_for(values, share) for share in (0.64, 0.65, 1)] == [1, 2, 2]
assert abs(effective_rank(torch.ones(7)) - 7) < 1e-9 and abs(effective_rank(torch.tensor([5.0, 0.0, 0.0])) - 1) < 1e-9
[
    message(rank_for, values, 1.01),
    message(effective_rank, torch.zeros(3)),
    message(singular_values, torch.tensor([[1.0, float("inf")]])),
]


# %% [markdown]
# ### A control
#
# "Rank 20 for 90 %" means nothing by itself. What would a matrix need that has no structure at all? `noise_like` makes one: independent normal numbers, with the shape and the length of the change.

# %%
#| export
def noise_like(
    matrix: torch.Tensor,  # D_out x D_in
    seed: int = 0,  # the same seed gives the same noise
) -> torch.Tensor:  # independent normal numbers of the same shape and length, 32 bits, on the CPU
    "A control without structure."
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed))
    return noise * (matrix.detach().float().norm().cpu() / noise.norm())


# %% [markdown]
# ### The table
#
# One row for each layer: how long the change is, how much rank it needs, and what it could have at most.

# %%
#| export
def spectra_table(
    changes: dict,  # what `weight_changes` gave
    before=None,  # the model before, or its state dict; None leaves out the column `relative`
    shares: tuple = (0.5, 0.9, 0.99),  # shares of the squared length, each 0 < share <= 1
):  # a DataFrame, a row for each layer
    "Length and rank of each layer's change."
    import pandas as pd

    old, rows = layer_weights(before) if before is not None else {}, []
    require(
        not old or changes.keys() <= old.keys(),
        f"the model before has no layer {min(changes.keys() - old.keys(), default='')!r}; "
        "give the one that the changes were taken from",
    )
    for name, d in changes.items():
        values = singular_values(d)
        rows.append(
            dict(
                layer=name,
                shape=f"{d.shape[0]} x {d.shape[1]}",
                norm=values.norm().item(),
                **({"relative": values.norm().item() / old[name].double().norm().item()} if old else {}),
                **{f"rank_{100 * share:g}": rank_for(values, share) for share in shares},
                effective_rank=effective_rank(values),
                full_rank=len(values),
            )
        )
    return pd.DataFrame(rows).set_index("layer")


# %% [markdown]
# The full change of our model, and in the last column the control:

# %% tags=["example"]
tables = {way: spectra_table(ds, base) for way, ds in changes.items()}
noises = {name: noise_like(d, seed) for seed, (name, d) in enumerate(changes["all weights"].items())}
tables["noise"], full = spectra_table(noises), tables["all weights"]
display(full.assign(noise_rank_90=tables["noise"].rank_90).rename(index=short).round(2))
part = {
    label: f"{(ranks / full.full_rank).min():.0%} to {(ranks / full.full_rank).max():.0%}"
    for label, ranks in (("90", full.rank_90), ("99", full.rank_99), ("noise", tables["noise"].rank_90))
}
times = tables["noise"].rank_90 / full.rank_90
Markdown(f"""To hold half of its squared length the full change needs rank {full.rank_50.min()} to {full.rank_50.max()};
to hold 90 %, rank {full.rank_90.min()} to {full.rank_90.max()}, which is {part["90"]} of what the layer has;
to hold 99 %, {part["99"]}. Noise of the same length needs {part["noise"]} for 90 %:
{times.min():.1f} to {times.max():.1f} times as much as the change.""")

# %% [markdown]
# So there is structure, in every layer. But the full change is *not* a matrix of rank 4 with a little dust on it. Every one of its singular values is above rounding, and the tail is long.

# %% tags=["check"]
# structure in every layer
assert (tables["noise"].rank_90 > 1.5 * full.rank_90).all()
# and full rank
assert all(rank_for(singular_values(d), 1) == min(d.shape) for d in changes["all weights"].values())
for way, r in (("LoRA, r = 4", 4), ("LoRA, r = 16", 16)):
    # what LoRA must have
    assert all((s := singular_values(d))[r] < 1e-6 * s[0] < s[r - 1] for d in changes[way].values())
assert (tables["LoRA, r = 16"].relative > tables["LoRA, r = 4"].relative).all() and (
    tables["LoRA, r = 4"].relative > full.relative
).all()
assert all(abs(noises[name].norm() / d.norm() - 1) < 1e-5 for name, d in changes["all weights"].items())


# %% [markdown]
# ## The spectrum of one layer
#
# How do the values fall? Dividing by the largest lets all of them share one axis, and a logarithm shows the tail.

# %%
#| export
def plot_spectra(
    spectra: dict,  # label -> singular values, largest first
    r: tuple = (),  # ranks to mark with a vertical line
    ax=None,  # matplotlib axes to draw on; None makes new ones
    floor: float = 1e-6,  # values below this share of the largest are rounding and not drawn
):  # the axes
    "Singular values over the largest one, on a logarithmic axis."
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for label, values in spectra.items():
        require(
            len(values) and values[0] > 0,
            f"the spectrum of {label!r} has no value above 0; give what singular_values gives",
        )
        kept = (values / values[0])[values > floor * values[0]]
        ax.plot(range(1, len(kept) + 1), kept, marker=".", markersize=4, linewidth=1, label=label)
    for rank in r:
        ax.axvline(rank, color="grey", linestyle=":", linewidth=1)
        ax.annotate(f"r = {rank}", (rank, 1), xytext=(3, 0), textcoords="offset points", fontsize=8)
    ax.set(xlabel="number of the singular value", ylabel="value / largest", yscale="log")
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


# %% [markdown]
# The query layer of the first block:

# %% tags=["example"]
name = "model.layers.0.self_attn.q_proj"
spectra = {way: singular_values(ds[name]) for way, ds in changes.items()}
plot_spectra({**spectra, "noise": singular_values(noises[name])}, r=(4, 16))
s, n = spectra["all weights"] / spectra["all weights"][0], singular_values(noises[name])
Markdown(f"""The full change falls to a tenth of its largest value by number {int((s > 0.1).sum()) + 1},
and to a hundredth by number {int((s > 0.01).sum()) + 1} of {len(s)};
noise reaches the tenth only at number {int((n > 0.1 * n[0]).sum()) + 1}.
LoRA stops at its rank: the line ends there because the next value is zero.
No cliff of that kind is in the full change, neither at 4 nor at 16.""")

# %% [markdown]
# ## All layers
#
# Is that layer special? The rank for 90 % of the squared length, for every layer, with the weights before fine-tuning as one more comparison:

# %% tags=["example"]
ranks = {
    "noise": tables["noise"].rank_90,
    "the weight itself": spectra_table(weights).rank_90,
    "full change": full.rank_90,
    "LoRA change, r = 16": tables["LoRA, r = 16"].rank_90,
    "LoRA change, r = 4": tables["LoRA, r = 4"].rank_90,
}
fig, ax = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
for (label, values), marker in zip(ranks.items(), "xs.^v"):
    ax.plot(
        [short(x) for x in values.index],
        values,
        marker=marker,
        linestyle="none",
        label=label,
        markersize=9 if marker == "." else 6,
    )
ax.set(ylabel="rank for 90 %", xlabel="layer", ylim=(0, None))
ax.tick_params(axis="x", rotation=60)
ax.grid(alpha=0.3)
fig.legend(fontsize=8, ncols=5, loc="outside upper center")
middle = {label: values.median() for label, values in ranks.items()}
Markdown(
    "In the middle of the layers: "
    + ", ".join(f"{label} {value:g}" for label, value in middle.items())
    + (
        ". The weight itself needs "
        f"{middle['the weight itself'] / middle['full change']:.1f} times the rank of its change."
    )
)

# %% [markdown]
# ## Where the tail comes from
#
# One reason for the long tail has little to do with Homer. The gradient of a layer in one batch is a sum of tables, one for each token, and tokens resemble each other: its rank is low. But Adam does
# not add gradients. It divides each number by a running average of its own size, and in the very first step that leaves nothing but the *sign*: every number moves by the learning rate, up or down.
# To take signs, number by number, knows nothing of tables. What does it do to the rank?

# %% tags=["example"]
probe, (input_ids, labels) = copy.deepcopy(base), lessons[0]
probe(input_ids=input_ids, labels=labels).loss.backward()
gradients = {name: probe.get_submodule(name).weight.grad for name in weights}
tail = pd.DataFrame(
    {
        "gradient": spectra_table(gradients).rank_90,
        "its sign": spectra_table({name: g.sign() for name, g in gradients.items()}).rank_90,
        "change after all steps": full.rank_90,
        "noise": tables["noise"].rank_90,
    }
)
display(tail.median().rename("rank for 90 %, middle of the layers").to_frame().T)
Markdown(
    f"The sign of the same gradient needs {(tail.iloc[:, 1] / tail.gradient).median():.1f} times its rank. "
    f"After {len(lessons)} steps the change lies between the two."
)

# %% tags=["check"]
assert (tail["its sign"] > 1.5 * tail.gradient).all() and tail.gradient.median() < full.rank_90.median() < tail[
    "its sign"
].median()


# %% [markdown]
# ## How much of what was learned fits into rank r?
#
# So a part of the tail may be the optimizer's mark. Is anything in the tail that Homer needs? Length is not learning. A large part of a change may do nothing, and a small one may be what counts. So the test is to *use* the cut change: take the base, add the best approximation of rank $r$
# of each layer's full change, and measure the held-out loss. Rank 0 is the base.

# %%
#| export
@torch.no_grad()
def add_changes(
    model: torch.nn.Module,  # the model before; it stays as it is
    changes: dict,  # what `weight_changes` gave
    r: int | None = None,  # cut each change to this rank first, >= 0; None: the whole change
) -> torch.nn.Module:  # a copy with the changes added
    "The model, plus its layers' changes or the best part of rank r of each."
    model = copy.deepcopy(model)
    for name, d in changes.items():
        weight: torch.Tensor = model.get_parameter(f"{name}.weight")
        require(
            weight.shape == d.shape,
            f"{name} is {tuple(weight.shape)}, its change {tuple(d.shape)}; "
            "give the model that the changes were taken from",
        )
        weight += (d if r is None else best_of_rank(d, r)).to(weight)
    return model


# %% [markdown]
# The change is taken from the linear layers only. Embeddings, norms and the output layer stay those of the base, so that the highest rank is below what "all weights" reached. The difference is shown. Beside it stands the
# control: noise of the same length in each layer.

# %% tags=["example"]
cuts, kept = [0, 1, 2, 4, 8, 16, 32, 96], changes["all weights"]
# of the squared length
held = pd.DataFrame(
    {name: shares_held(singular_values(d))[[min(r, min(d.shape)) for r in cuts]].numpy() for name, d in kept.items()},
    index=cuts,
)
curve = pd.DataFrame(
    dict(loss_homer=[held_out(add_changes(base, kept, r)) for r in cuts], length_held=held.mean(axis=1)),
    index=pd.Index(cuts, name="r"),
)
start, whole, everything, noisy = (
    curve.loss_homer[0],
    curve.loss_homer[96],
    losses.loss_homer["all weights"],
    held_out(add_changes(base, noises)),
)
curve["gain_held"] = (start - curve.loss_homer) / (start - whole)
curve.round(3)

# %% tags=["example"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
stars = {4: "LoRA, r = 4", 16: "LoRA, r = 16"}
left.plot(range(len(cuts)), curve.loss_homer, marker="o", label="base + cut change")
left.plot(
    [cuts.index(r) for r in stars],
    losses.loss_homer[stars.values()],
    marker="*",
    markersize=12,
    linestyle="none",
    label="trained as LoRA of rank r",
)
for loss, label, style in ((everything, "all weights, as trained", "--"), (noisy, "base + noise", ":")):
    left.axhline(loss, color="grey", linestyle=style, linewidth=1, label=label)
for column, label in (("gain_held", "gain in held-out loss"), ("length_held", "squared length, mean of the layers")):
    right.plot(range(len(cuts)), 100 * curve[column], marker="o", label=label)
left.set(ylabel="held-out loss, nats a byte")
right.set(ylabel="% of the full change in the linear layers")
for ax in (left, right):
    ax.set(xlabel="rank r of the change")
    ax.set_xticks(range(len(cuts)), [*cuts[:-1], "full"])
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)

enough = next(r for r in cuts if curve.gain_held[r] >= 0.9)
Markdown(f"""Rank 4 holds {curve.gain_held[4]:.0%} of the gain and {curve.length_held[4]:.0%} of the squared length;
rank 16 holds {curve.gain_held[16]:.0%} and {curve.length_held[16]:.0%}.
The first rank tried that holds nine tenths of the gain is {enough}.
The linear layers alone make {(start - whole) / (start - everything):.0%} of the gain of all weights.
Noise of the same length changes the loss by {noisy - start:+.4f} nats: the direction helps, not the length.

*Trained* at rank 4, LoRA reaches {losses.loss_homer["LoRA, r = 4"]:.3f}, where the full change *cut* to rank 4
reaches {curve.loss_homer[4]:.3f}; at rank 16 it is {losses.loss_homer["LoRA, r = 16"]:.3f}
against {curve.loss_homer[16]:.3f}. All weights, as trained: {everything:.3f}.""")

# %% [markdown]
# Two things to see. Gain and length rise together: this change has no small core that does all the work. And the stars lie below the line: a change that had
# only rank $r$ from the first step on makes more of it than one that is cut afterwards. So LoRA does not need the full change to be low in rank. It needs *some* change of low rank that does the job, and that is a weaker demand.

# %% tags=["check"]
# rank 0 is the base
assert torch.equal(add_changes(base, kept, 0).get_submodule(name).weight, base.get_submodule(name).weight)
assert all(
    torch.allclose(
        add_changes(base, kept, 96).get_submodule(n).weight, models["all weights"].get_submodule(n).weight, atol=1e-6
    )
    for n in kept
)
# LoRA's change is all of LoRA
assert all(abs(held_out(add_changes(base, changes[way])) - losses.loss_homer[way]) < 1e-4 for way in stars.values())
assert whole < curve.loss_homer[4] < start and start - noisy < (start - whole) / 4
assert (curve.gain_held - curve.length_held).abs().max() < 0.3 and all(
    losses.loss_homer[way] < curve.loss_homer[r] for r, way in stars.items()
)
message(best_of_rank, kept[name], -1)


# %% [markdown]
# ## Is it the same change?
#
# If LoRA found the best low-rank part of the full change, the two would point the same way. The cosine between two matrices, taken as long vectors, says how far they do: 1 is the same direction, 0 is
# none in common. A matrix of rank $r$ can reach at most the root of the share held by rank $r$, by the theorem of Eckart and Young.

# %% tags=["example"]
def cosine(a, b):
    return (a.double().flatten() @ b.double().flatten() / (a.double().norm() * b.double().norm())).item()


def spread(cosines):
    return {"least": min(cosines), "median": pd.Series(cosines).median(), "most": max(cosines)}


cosines = pd.DataFrame(
    {
        **{
            way: {
                **spread([cosine(d, kept[n]) for n, d in changes[way].items()]),
                "possible, median": (held.loc[r] ** 0.5).median(),
            }
            for r, way in stars.items()
        },
        "noise, without its sign": spread([abs(cosine(noises[n], d)) for n, d in kept.items()]),
    }
).T
cosines.round(3)

# %% [markdown]
# LoRA's change is no accident: it points partly where the full change points, far more than noise does. But only partly. Many changes teach nearly the same thing, and each way of training finds its own.

# %% tags=["check"]
near, noise = cosines.loc[list(stars.values())], cosines.loc["noise, without its sign"]
assert (near["median"] > 5 * noise["median"]).all() and (near["least"] > 0.05).all() and (near["most"] < 0.9).all()

# %% [markdown]
# ## A real model
#
# The tiny model learned in seconds and had little to know. SmolLM2-135M has read two trillion tokens (its model card). It was trained in full and with LoRA (r 16, all linear layers) on the same script, every character's lines, one pass of 41 steps,
# on one H100 in 32 bits. `tests/gpu_lora.py` did it with this chapter's functions and [the trainer of the book](../4_train/47_finetune.ipynb); learning rates were chosen on the validation scenes, on which everything below is measured too. Its findings are kept beside the book and read here.

# %% tags=["example"]
found = pd.read_json(chapters_dir() / "_results" / "gpu_lora.jsonl", lines=True)
spectra = found[found.kind == "spectrum"].assign(
    part=lambda d: d.layer.str.rpartition(".")[2], full_rank=lambda d: d["shape"].map(min)
)
kept_columns = ["relative", "rank_50", "rank_90", "noise_rank_90", "effective_rank", "full_rank"]
of_full = spectra[spectra.way == "full"].groupby("part", sort=False)[kept_columns].median()
of_full.round(4)

# %% [markdown]
# Each row is the median over 30 layers. The change is tiny: `relative` is its length over that of the weight. As in the tiny model it is far from noise, and far from low in rank: nine tenths of its squared length need many times the rank 16 that LoRA was given.
#
# But length is not learning. How much of what was learned is in the first few tables?

# %% tags=["example"]
cut = found[found.kind == "cut"]
ways = cut.dropna(subset=["way"]).set_index("way").valid_loss_nats
curve = (
    cut[cut.way.isna()]
    .assign(r=lambda d: d.r.map("{:.0f}".format).replace("nan", "all"))
    .set_index("r")
    .valid_loss_nats
)
gain = (curve["0"] - curve) / (curve["0"] - curve["all"])

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
middle = spectra[spectra.layer == "model.layers.15.mlp.up_proj"].set_index("way")["values"]
plot_spectra({f"{way}": torch.tensor(v) for way, v in middle.items()}, r=(16,), ax=left)
left.set_title("singular values, layer 15, up_proj (first 128)", fontsize=9)
right.plot(range(len(curve)), curve.values, marker="o", label="base + change of the linear layers, cut")
right.plot(
    list(curve.index).index("16"),
    ways["LoRA, r 16"],
    marker="*",
    markersize=12,
    linestyle="none",
    label="trained as LoRA, r 16",
)
right.axhline(ways["full"], color="grey", linestyle="--", linewidth=1, label="all weights, as trained")
right.set(xlabel="rank r of the change", ylabel="held-out loss, nats a token")
right.set_xticks(range(len(curve)), curve.index)
right.grid(alpha=0.3)
right.legend(fontsize=8)
Markdown(f"""Of what the change of the linear layers brings, rank 1 holds {gain["1"]:.0%}, rank 4 {gain["4"]:.0%},
rank 16 {gain["16"]:.0%}. The base has {curve["0"]:.3f} nats, all weights {ways["full"]:.3f},
their linear layers alone {curve["all"]:.3f}. LoRA of rank 16 reaches {ways["LoRA, r 16"]:.3f}:
better than the full change cut to its rank ({curve["16"]:.3f}), and close to full fine-tuning.""")

# %% [markdown]
# So the larger model bears out the hypothesis, in the sense that counts: the change as a matrix has a long tail, yet most of what it *teaches* lies in a few directions.

# %% tags=["check"]
assert (of_full.rank_90 > 64).all() and (of_full.rank_90 < 0.75 * of_full.noise_rank_90).all()
assert list(curve.values) == sorted(curve.values, reverse=True) and gain["1"] > 0.3 and gain["4"] > 0.7
assert ways["full"] < ways["LoRA, r 16"] < curve["16"]
assert (spectra[spectra.way != "full"].held_16 > 0.9999).all()  # a change of rank 16 is all in rank 16

# %% [markdown]
# ## Where to put the adapter
#
# The query and the key, as the seed did? Query and value, as the paper did? All of attention? The MLP? Everything? The same model and data, five places, and learning rates that go on until each place has its best one *inside* the rates that were tried; the best with three seeds. Once with the same rank everywhere, and once with the ranks chosen so that each place has about as many parameters as rank 16 on all linear layers has: is it the place, or the number of parameters? Beside them the seed's own recipe, whose prompts have another form and therefore another base.

# %% tags=["example"]
runs = found[found.kind == "ablation"].fillna({"r": 0}).astype({"r": int, "trainable_parameters": int})
row = ["group", "place", "r"]
first = runs[runs.seed == 42]
best = first.loc[first.groupby(row).valid_loss_nats_best.idxmin()]
chosen = runs.merge(best[[*row, "learning_rate"]])
table = chosen.groupby([*row, "trainable_parameters", "learning_rate"]).agg(
    base=("valid_loss_nats_base", "first"),
    loss=("valid_loss_nats_best", "mean"),
    least=("valid_loss_nats_best", "min"),
    most=("valid_loss_nats_best", "max"),
    seeds=("seed", "count"),
)
table = table.sort_values("loss", ascending=False).reset_index()
table.round(4)

# %% [markdown]
# A row's place among the others depends on the rate at which it is asked, so each is drawn over all of its rates:

# %% tags=["example"]
places = ["q, k", "q, v", "attention", "MLP", "all linear"]
colors = dict(zip(places, ("#c0504d", "#e69f00", "#8064a2", "#4f86c6", "#2e7d32")))
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), sharey=True, layout="constrained")
for ax, group, title in ((axes[0], "same rank", "rank 16 everywhere"), (axes[1], "same size", "as many parameters")):
    for place in places:
        rows = first[
            (first.place == place) & first.group.isin([group, "same rank"] if place == places[-1] else [group])
        ]
        rows = rows.sort_values("learning_rate")
        label = f"{place}, r {rows.r.iloc[0]}"
        ax.plot(rows.learning_rate, rows.valid_loss_nats_best, marker=".", color=colors[place], label=label)
    ax.set_title(title, fontsize=9)
for r, color in ((1, "#c7e9c0"), (4, "#74c476"), (16, "#2e7d32"), (64, "#00441b")):
    rows = first[(first.place == "all linear") & (first.r == r)].sort_values("learning_rate")
    axes[2].plot(rows.learning_rate, rows.valid_loss_nats_best, marker=".", color=color, label=f"all linear, r {r}")
axes[2].set_title("ranks", fontsize=9)
rows = first[first.group == "full"].sort_values("learning_rate")
for ax in axes:
    ax.plot(rows.learning_rate, rows.valid_loss_nats_best, marker=".", color="black", label="all weights")
    ax.set(xscale="log", xlabel="learning rate", ylim=(3.5, 3.9))
    ax.legend(fontsize=7)
    ax.grid(alpha=0.3)
axes[0].set_ylabel("held-out loss, nats a token")


def at(group, place, r, column="loss"):
    return table[(table.group == group) & (table.place == place) & (table.r == r)].iloc[0][column]


everything = table[table.group == "full"].iloc[0]
seed, own = table[table.group == "seed's recipe"].iloc[0], first[first.group == "seed's recipe"]
own = own[(own.learning_rate - 3e-4).abs() < 1e-9].valid_loss_nats_best.iloc[0]
bound = at("same rank", "all linear", 16, "learning_rate")
Markdown(f"""Each at its best rate, from {everything.base:.3f} nats: at rank 16, query and key reach
{at("same rank", "q, k", 16):.3f}, query and value {at("same rank", "q, v", 16):.3f}, attention
{at("same rank", "attention", 16):.3f}, the MLP {at("same rank", "MLP", 16):.3f}, all linear layers
{at("same rank", "all linear", 16):.3f}, and training all weights {everything.loss:.3f}.
With as many parameters as all linear layers have, query and key reach {at("same size", "q, k", 85):.3f},
query and value {at("same size", "q, v", 85):.3f}, attention {at("same size", "attention", 42):.3f},
the MLP {at("same size", "MLP", 26):.3f}.

On all linear layers, rank 1 reaches {at("rank", "all linear", 1):.3f} (at a rate of
{at("rank", "all linear", 1, "learning_rate"):g}), rank 4 {at("rank", "all linear", 4):.3f}
({at("rank", "all linear", 4, "learning_rate"):g}), rank 16 {at("same rank", "all linear", 16):.3f} ({bound:g}) and
rank 64 {at("rank", "all linear", 64):.3f} ({at("rank", "all linear", 64, "learning_rate"):g}).
All weights want {everything.learning_rate:g}, {bound / everything.learning_rate:.0f} times less than rank 16.

The seed's recipe comes from {seed.base:.3f} to {own:.3f} at its own rate of 0.0003, and to {seed.loss:.3f} at
{seed.learning_rate:g}.""")

# %% [markdown]
# What to see:
#
# - **The learning rate comes first.** A bad rate costs more than any place or rank, and trying rates costs nothing in memory. At one common rate, places and ranks differ by much more than at the best rate of each: most of what such a comparison shows is the rate.
# - **Query and key alone learn least** at any rate, and more parameters there help little. The value is worth far more than the key: it says what is passed on, where query and key only say from where.
# - **The MLP alone does as well as everything,** to within what seeds differ by. It holds most of a block's weights.
# - **Rank matters little here.** One direction in each layer comes within two hundredths of a nat of sixteen, if it may take larger steps: the smaller the rank, the higher the best rate.
# - **Full fine-tuning is ahead by little,** with many times the trained parameters and a far smaller rate.
#
# The limits of this table: one script, one model, one pass. Over several passes the highest rates learn the script by heart, which is why the recipe of this book is more careful than the best row.

# %% tags=["check"]
assert (table.seeds == 3).all()
# each best rate lies inside the rates that were tried
inside = first.groupby(row).learning_rate.agg(["min", "max"]).join(best.set_index(row).learning_rate)
assert ((inside["min"] < inside.learning_rate) & (inside.learning_rate < inside["max"])).all()
spread_of_seeds = (table.most - table.least).max()
worst = at("same rank", "q, k", 16)
rest = [at("same rank", p, 16) for p in places[1:]]
# query and key are behind by more than seeds differ; the MLP and everything are not
assert worst - max(rest) > 2 * spread_of_seeds > spread_of_seeds > abs(rest[-1] - rest[-2])
assert at("same size", "q, k", 85) - at("same rank", "all linear", 16) > 0.1
# at a common rate of 5e-4 the places lie further apart than at the best rate of each
common = first[(first.learning_rate == 5e-4) & (first.group == "same rank")].valid_loss_nats_best
assert common.max() - common.min() > (worst - min(rest)) * 1.2
assert 0 < at("rank", "all linear", 1) - at("same rank", "all linear", 16) < 0.025
rates = [at("rank" if r != 16 else "same rank", "all linear", r, "learning_rate") for r in (1, 4, 16, 64)]
assert rates == sorted(rates, reverse=True) and everything.learning_rate < rates[-1]
assert everything.loss < at("same rank", "all linear", 16) and everything.trainable_parameters > 20 * 4_884_480

# %% [markdown]
# ## What to take from here
#
# - The full change has structure: every layer needs far less rank than noise of the same length.
# - It is not low in rank in the strict sense. It has full rank, its values fall slowly, and cutting it to rank 4 or 8 loses some of what was learned.
# - LoRA works nevertheless, for it is not an approximation of the full change. It searches among the changes of rank $r$ for a good one, which points only partly the same way.
# - Length is not learning: judge an approximation by the held-out loss, not by the singular values alone.
# - Put adapters on all linear layers or on the MLP, and try learning rates before ranks.
#
# The tiny model is one character, one seed and a few steps, from a start that was itself trained for a short time; SmolLM2 is one script and one pass. On other data the same functions measure it anew.
