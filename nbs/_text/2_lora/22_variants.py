# %%
#| default_exp lora.variants

# %% [markdown]
# # Variants, merging, and adapters on disk
#
# > What rsLoRA, DoRA, PiSSA, LoRA+, LoftQ and QLoRA change, in one line each and in small numbers; merging a whole model; and adapters in PEFT's own files.
#
# [The chapter on LoRA](20_layer.ipynb) built the layer. Many papers have changed one thing in it since. This chapter puts six of them side by side, shows what each does to the numbers, and holds those that
# our layer has to the same measure as before: equal to `peft`. Then it writes adapters to disk in the format of `peft`, and reads them. Which variant makes the better character is *not* answered here;
# that takes training and an evaluation.

# %%
#| export
from pathlib import Path

import torch

from simpsons_llm.lora.layer import LoRALinear, LoRASettings, _require_own_weights, add_lora, find_targets, peft_config
from simpsons_llm.machine.job import open_folder, read_json, require

# %%
#| hide
import copy
import json
import tempfile

import pandas as pd
from IPython.display import Markdown
from peft import PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from simpsons_llm.lora.layer import lora_parameter_count

# %% [markdown]
# ## Variants in one table
#
# | variant | what it changes | source | in this book | in `peft` |
# |---|---|---|---|---|
# | LoRA | $W = W_0 + \frac{\alpha}{r} BA$ | Hu et al. 2021 | `LoRASettings()` | `LoraConfig()` |
# | rsLoRA | the factor: $\alpha/\sqrt r$ instead of $\alpha/r$ | Kalajdzievski 2023 | `use_rslora=True` | `use_rslora=True` |
# | DoRA | the length of each row of $W$ is learned apart from its direction | Liu et al. 2024 | `use_dora=True` | `use_dora=True` |
# | PiSSA | the start: $B$, $A$ are the largest $r$ tables of $W_0$'s SVD, the frozen base is the rest | Meng et al. 2024 | `init_lora_weights="pissa"` | the same |
# | LoRA+ | the optimizer: $B$ learns faster than $A$ | Hayou et al. 2024 | `lora_plus_ratio` of the finetune chapter | `create_loraplus_optimizer` |
# | LoftQ | the base is rounded to 4 bits; $BA$ starts as the best repair of the rounding | Li et al. 2023 | `init_lora_weights="loftq"` of the finetune chapter | the same |
# | QLoRA | the base lies in memory in 4 bits and is unpacked for each product; plain LoRA beside it | Dettmers et al. 2023 | `quantization="nf4"` of the finetune chapter | a base loaded with bitsandbytes |
#
# Training goes through `peft`, so the last three need no code of ours. For QLoRA `peft` has also `prepare_model_for_kbit_training`; this book does not use it.
#
# The first four answer different questions (how large is the factor, what is learned, where does it start), so they can be combined. Where they begin, on a tiny random Llama:

# %% tags=["example"]
torch.manual_seed(0)
tiny = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=256,
        tie_word_embeddings=True,
    )
)
input_ids = torch.randint(0, 256, (2, 12))
variants = {
    "LoRA": {},
    "rsLoRA": dict(use_rslora=True),
    "DoRA": dict(use_dora=True),
    "PiSSA": dict(init_lora_weights="pissa"),
    "DoRA + rsLoRA": dict(use_dora=True, use_rslora=True),
    "DoRA + PiSSA": dict(use_dora=True, init_lora_weights="pissa"),
}
settings = {name: LoRASettings(r=4, lora_alpha=8, **kw) for name, kw in variants.items()}


def difference(a, b):
    return (a - b).abs().max().item()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def start(s):
    "The numbers of one variant before its first step."
    model = add_lora(copy.deepcopy(tiny), s)
    output = model(input_ids, labels=input_ids)
    output.loss.backward()

    def size(part, of):
        return max(of(p).abs().max().item() for name, p in trained(model).items() if name.endswith(part))

    return dict(
        trained=lora_parameter_count(tiny, s)["trainable"],
        scaling=s.scaling,
        logits_off=difference(output.logits, tiny(input_ids).logits),
        A=size("lora_A", torch.Tensor.detach),
        B=size("lora_B", torch.Tensor.detach),
        gradient_A=size("lora_A", lambda p: p.grad),
        gradient_B=size("lora_B", lambda p: p.grad),
    )


starts = pd.DataFrame({name: start(s) for name, s in settings.items()}).T
starts.assign(
    trained=starts.trained.map("{:,.0f}".format),
    **{column: starts[column].map("{:.1e}".format) for column in starts.columns[2:]},
)

# %% [markdown]
# `logits_off` is the largest difference to the base's logits; the last four columns are the largest numbers of their kind. Every variant starts as the base model, to rounding. With PiSSA neither $A$ nor $B$ is zero, and both have a gradient from the first step; with all others $A$ has to wait for $B$.
# DoRA trains one number more for each row.

# %% tags=["check"]
assert starts.logits_off.max() < 1e-6
for name, row in starts.iterrows():
    assert row.trained == sum(p.numel() for p in trained(add_lora(copy.deepcopy(tiny), settings[name])).values())
    assert ("PiSSA" in name) == (row.B > 0) == (row.gradient_A > 0) and row.A > 0 and row.gradient_B > 0
rows_of_weights = sum(D_out for D_out, _ in find_targets(tiny, "all-linear").values())
assert starts.trained["DoRA"] - starts.trained["LoRA"] == rows_of_weights


# %% [markdown]
# ## rsLoRA: the factor and the rank
#
# [The chapter on LoRA](20_layer.ipynb) let Adam take one first step and found that $\alpha/r$ makes it the same for every rank. Why then another factor? Because that first step is a special case: all $r$ moves point the same way, and
# $r$ equal moves add up to $r$. Kalajdzievski (2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA") looks at numbers that are *independent*: they partly cancel, and $r$ of them add up to $\sqrt r$. Three measurements, each over ranks, with both factors ($\alpha = 32$):
#
# - the gradient of $B$ before the first step, as one length;
# - the change of the output when the numbers of $B$ are independent;
# - the change of the output by Adam's first step, as in [the chapter on LoRA](20_layer.ipynb).

# %% tags=["example"]
def sizes(r, use_rslora, draws=40, D=576):
    "Means over draws of A, input and output gradient: (gradient of B, output of an independent B, Adam's first step)."
    found = torch.zeros(3)
    for seed in range(draws):
        torch.manual_seed(seed)
        layer = LoRALinear(torch.nn.Linear(D, D, bias=False), LoRASettings(r=r, lora_alpha=32, use_rslora=use_rslora))
        x, g = torch.randn(1, D), torch.randn(1, D)
        before = layer(x)
        (before * g).sum().backward()
        torch.optim.Adam([layer.lora_A, layer.lora_B], lr=1e-3).step()
        with torch.no_grad():
            moved = (layer(x) - before).square().mean().sqrt()
            layer.lora_B.normal_(std=0.01)
            found += torch.stack([layer.lora_B.grad.norm(), (layer(x) - before).square().mean().sqrt(), moved])
    return (found / draws).tolist()


ranks, columns = (4, 16, 64, 256), ("gradient of B", "independent B", "Adam's first step")
measured = pd.DataFrame(
    {(column, factor): [] for column in columns for factor in ("alpha/r", "alpha/sqrt(r)")},
    index=pd.Index([], name="rank"),
)
for r in ranks:
    for factor in ("alpha/r", "alpha/sqrt(r)"):
        measured.loc[r, [(column, factor) for column in columns]] = sizes(r, "sqrt" in factor)
growth = measured.loc[ranks[-1]] / measured.loc[ranks[0]]
display((measured / measured.loc[ranks[0]]).round(2))
Markdown(f"""Each column relative to rank {ranks[0]}. With alpha/r, a {ranks[-1] // ranks[0]}-fold rank
has {growth["gradient of B", "alpha/r"]:.2f} times the gradient
and {growth["independent B", "alpha/r"]:.2f} times the output; with alpha/sqrt(r),
{growth["gradient of B", "alpha/sqrt(r)"]:.2f} and {growth["independent B", "alpha/sqrt(r)"]:.2f} times.
For Adam's first step it is the other way round:
{growth["Adam's first step", "alpha/r"]:.2f} times against {growth["Adam's first step", "alpha/sqrt(r)"]:.2f} times.""")

# %% [markdown]
# So neither factor is right for all ranks at all times. With plain gradient descent, or once the columns of $B$ have gone separate ways, $\alpha/\sqrt r$ keeps the sizes. In Adam's first step $\alpha/r$ does. In practice: rsLoRA
# makes a high rank count for more, and is *also* a larger factor ($\sqrt r$ times), so who switches it on should look at the learning rate again. The factor changes nothing but the size; a higher rank gives room for more directions, too. Of the sizes, theory says:

# %% tags=["check"]
ratio = (ranks[-1] / ranks[0]) ** 0.5  # 8
for column, (plain, stable) in {
    "gradient of B": (1 / ratio, 1),
    "independent B": (1 / ratio, 1),
    "Adam's first step": (1, ratio),
}.items():
    assert abs(growth[column, "alpha/r"] / plain - 1) < 0.2 and abs(growth[column, "alpha/sqrt(r)"] / stable - 1) < 0.2
# rsLoRA is plain LoRA with another alpha
assert LoRASettings(16, 32, use_rslora=True).scaling == LoRASettings(16, 32 * 4).scaling


# %% [markdown]
# ## DoRA: how long, and which way
#
# A row of the weight is an arrow: it has a length and a direction. Liu et al. (2024, "DoRA: Weight-Decomposed Low-Rank Adaptation") measured how fine-tuning changes the two. With LoRA they changed together,
# more of one with more of the other; in full fine-tuning they did not. DoRA takes them apart: $BA$ turns the rows, and a learned vector $m$, one number for each row, says how long they are:
#
# $$W = m \; \frac{W_0 + s\,BA}{\lVert W_0 + s\,BA \rVert} \qquad \text{(row by row)} .$$
#
# $m$ starts as the lengths of the rows of $W_0$, so that the first output is the base's. By hand, with two rows of three numbers and a change of rank 1. Both rows of $W_0$ have length 5:

# %% tags=["example"]
def digits(t):
    return " ".join(map("{:g}".format, t.tolist()))


W2 = torch.tensor([[3.0, 4.0, 0.0], [3.0, 0.0, 4.0]])
change = torch.tensor([[1.0], [1.0]]) @ torch.tensor([[-1.0, -3.0, 2.0]])
turned, m = W2 + change, W2.norm(dim=1)
result = (m / turned.norm(dim=1))[:, None] * turned
pd.DataFrame(
    {
        f"row {i + 1}": {
            "W0": digits(W2[i]),
            "its length, m": f"{m[i]:g}",
            "change B A": digits(change[i]),
            "W0 + B A": digits(turned[i]),
            "its length": f"{turned[i].norm():g}",
            "m / that length": f"{m[i]:g}/{turned[i].norm():g}",
            "W": "  ".join(f"{v:.2f}" for v in result[i]),
            "length of W": f"{result[i].norm():g}",
        }
        for i in range(2)
    }
)

# %% [markdown]
# The change made one row shorter and the other longer; DoRA takes both back to 5. From here on only the learning of $m$ makes a row longer or shorter.
#
# In the layer nothing of this is built for each input, but the length of each row (`_row_lengths` and `_dora_change` in [the chapter on LoRA](20_layer.ipynb)). With $c = m / \lVert W_0 + s BA \rVert$, the output is $c\,(W_0 x + s BA x)$. For the gradient the length counts
# as a constant (section 4.3 of the paper; it saves memory). And as in `peft`, dropout hides an input from both terms here, so in training the base's product is computed once more.
#
# The layer with the numbers of the table: its output, its gradients (the length counts as a constant), merged and back:

# %% tags=["check"]
x1 = torch.tensor([1.0, 2.0, 1.0])
dora = LoRALinear(torch.nn.Linear(3, 2, bias=False), LoRASettings(r=1, lora_alpha=1, use_dora=True))
with torch.no_grad():
    dora.base.weight.copy_(W2)
    dora.lora_magnitude_vector.copy_(m)
    dora.lora_A.copy_(torch.tensor([[-1.0, -3.0, 2.0]]))
    dora.lora_B.fill_(1)
assert torch.allclose(dora(x1), result @ x1, atol=1e-6) and torch.allclose(turned.norm(dim=1), torch.tensor([3.0, 7.0]))
dora(x1).sum().backward()
assert torch.allclose(dora.lora_magnitude_vector.grad, (turned @ x1) / turned.norm(dim=1), atol=1e-6)
# the length is a constant
assert torch.allclose(dora.lora_B.grad[:, 0], (m / turned.norm(dim=1)) * (dora.lora_A @ x1), atol=1e-6)
assert torch.allclose(dora.merge().base.weight, result, atol=1e-6) and torch.allclose(
    dora.unmerge().base.weight, W2, atol=1e-5
)

# %% [markdown]
# ## PiSSA: start with what matters most
#
# The default start learns beside the weight. PiSSA (Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation") starts *inside* it. The SVD, as in the pictures of [the chapter on LoRA](20_layer.ipynb), splits $W_0$ into its $r$ largest tables
# and the rest. The tables become $B$ and $A$, with the root of each singular value in either (divided by the factor that the layer will multiply by), and are trained; the rest becomes the frozen base. The sum is $W_0$ as before, so nothing changes at the start, but neither matrix is zero.
#
# What does PiSSA hand over to training, and what does it freeze? The singular values say it. One layer of the tiny model:

# %% tags=["example"]
name = "model.layers.0.mlp.up_proj"
original = tiny.get_submodule(name).weight.detach()
layer = add_lora(copy.deepcopy(tiny), settings["PiSSA"]).get_submodule(name)
with torch.no_grad():
    values = {
        "weight": original,
        "trained, s B A": layer.delta(),
        "frozen base": layer.base.weight,
        "sum - weight": layer.base.weight + layer.delta() - original,
    }
pd.DataFrame(
    {
        what: {f"singular value {i + 1}": torch.linalg.svdvals(w)[i].item() for i in (0, 1, 3, 4, 5)}
        for what, w in values.items()
    }
).map("{:.4f}".format)

# %% [markdown]
# What the base loses, $B$ and $A$ have, and the sum is the weight as before. One price: the adapter means nothing without *its* rest. To load a PiSSA adapter, ours or `peft`'s, the same SVD of the same base is made again; so the base must be the same numbers in the same precision. And the adapter cannot simply be taken off: the base
# under it is no model (`remove_lora(model, keep_change=False)` refuses). A rank that the layer does not have is refused, too.

# %% tags=["check"]
singular = {what: torch.linalg.svdvals(w) for what, w in values.items()}
assert (
    torch.allclose(singular["trained, s B A"][:4], singular["weight"][:4], atol=1e-6)
    and singular["trained, s B A"][4:].max() < 1e-6
)
assert (
    torch.allclose(singular["frozen base"][:-4], singular["weight"][4:], atol=1e-6)
    and difference(values["frozen base"] + values["trained, s B A"], original) < 1e-6
)
# each value is split evenly
assert torch.allclose(layer.lora_B.norm(dim=0), layer.lora_A.norm(dim=1), atol=1e-6)


def message(call, *args, **kwargs):
    "The text of the ValueError that this call must raise."
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("no ValueError was raised")


assert "rank 2 at most" in message(LoRALinear, torch.nn.Linear(3, 2), LoRASettings(r=4, init_lora_weights="pissa"))

# %% [markdown]
# ## LoRA+: two learning rates
#
# $A$ and $B$ are not alike: $A$ starts at full size and has long rows, $B$ starts at zero. Hayou et al. (2024, "LoRA+: Efficient Low Rank Adaptation of Large Models") argue that for wide models $B$ should learn faster, and propose a ratio of 16.
# Nothing in the model changes; the optimizer gets one more group of parameters. `peft` makes such an optimizer; DoRA's lengths go with $B$ there. Two steps of it, on an adapter of `peft` with a rate of 0.0001 for $A$:

# %% tags=["example"]
plus_model = get_peft_model(copy.deepcopy(tiny), peft_config(settings["DoRA"]))
optimizer = create_loraplus_optimizer(plus_model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
before = {name: p.detach().clone() for name, p in trained(plus_model).items()}
for _ in range(2):  # the first step leaves A where it is: B is zero
    plus_model(input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
steps = pd.DataFrame(
    [
        dict(part=name.split(".")[-3], rate=rates[id(p)], largest_move=difference(p.detach(), before[name]))
        for name, p in trained(plus_model).items()
    ]
)
steps.groupby("part").max().map("{:.1e}".format)

# %% [markdown]
# $B$ and the lengths moved by two steps of their rate; $A$, which has no gradient in the first step, by less than one of its own.

# %% tags=["check"]
moved = steps.groupby("part").largest_move.max()
# every parameter is in the optimizer, once
assert len(rates) == len(steps) == len(trained(plus_model))
assert all(rate == (1e-4 if part == "lora_A" else 16e-4) for part, rate in zip(steps.part, steps.rate))
assert moved["lora_A"] < 1e-4 < 16e-4 < moved.drop("lora_A").min() and moved.max() < 2.01 * 16e-4


# %% [markdown]
# ## LoftQ and QLoRA: when the base is rounded
#
# A base in 4 bits has 16 values for each weight and a scale for a block of them. QLoRA rounds, and lets training make up for the error. LoftQ starts with a repair: with $Q$ for the rounded weight, $BA$ is the best
# approximation of rank $r$ to what rounding took, $W_0 - Q$. The paper goes on in turns, rounding what the repair leaves and repairing what the rounding took; here, and in `peft` unless told otherwise, it is one step. Below, a plain rounding to 16 even steps stands for the 4 bits (the real one, NF4, has uneven steps and needs bitsandbytes). How much is still missing?
#
# The last column shows why `LoRASettings` refuses LoftQ with another factor than 1. `peft` 0.21 starts with the $B$ and $A$ of the repair, and then multiplies by the factor as always.

# %% tags=["example"]
def rounded(w, levels=16, block=32):
    "Each block of numbers, rounded to evenly spaced levels between its least and greatest."
    blocks = w.reshape(-1, block)
    low, high = blocks.min(1, keepdim=True).values, blocks.max(1, keepdim=True).values
    return (((blocks - low) / (high - low) * (levels - 1)).round() / (levels - 1) * (high - low) + low).reshape(w.shape)


rest = original - rounded(original)
U, S, V = torch.linalg.svd(rest, full_matrices=False)
missing = []
for r in (4, 16, 32):
    repair = U[:, :r] * S[:r] @ V[:r]
    missing.append(
        {
            "rank": r,
            **{
                label: ((rest - s * repair).norm() / original.norm()).item()
                for label, s in (("rounded", 0), ("repaired, scaling 1", 1), ("repaired, scaling 2", 2))
            },
        }
    )
missing = pd.DataFrame(missing).set_index("rank")
missing.map("{:.2%}".format)

# %% [markdown]
# Length of what is missing over length of the weight. With factor 1 the repair helps, more with more rank. With factor 2 it is exactly as if there were none: twice the repair overshoots by as much as it should have closed.

# %% tags=["check"]
assert (missing["repaired, scaling 1"] < missing["rounded"]).all() and missing[
    "repaired, scaling 1"
].is_monotonic_decreasing
assert ((missing["repaired, scaling 2"] / missing["rounded"] - 1).abs() < 1e-4).all()
assert "train with peft" in message(
    LoRALinear, torch.nn.Linear(3, 2), LoRASettings(r=1, lora_alpha=1, init_lora_weights="loftq")
)
assert "scaling 1" in message(LoRASettings, r=16, lora_alpha=32, init_lora_weights="loftq")
assert (
    LoRASettings(r=16, lora_alpha=16, init_lora_weights="loftq").scaling
    == LoRASettings(r=16, lora_alpha=4, use_rslora=True, init_lora_weights="loftq").scaling
    == 1
)


# %% [markdown]
# ## Merging a whole model
#
# Three functions for the whole model, each in place. `merge` and `unmerge` do what the layer's methods of [the chapter on LoRA](20_layer.ipynb) do. `remove_lora` takes the adapters away and leaves the plain layers, with the change in their weights or without.
# All look before they write: a model that is half merged, or has nothing to merge, is refused untouched.

# %%
#| export
def lora_layers(
    model: torch.nn.Module,  # a model after `add_lora`
) -> dict:  # full name -> LoRALinear; ValueError if there is none
    "The adapted layers of a model."
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    require(layers, "the model has no LoRALinear; put some in with add_lora (a model of peft has its own methods)")
    return layers


def merge(
    model: torch.nn.Module,  # a model after `add_lora`; it is changed in place
) -> torch.nn.Module:  # the same model: its base weights hold the change; ValueError if any do already
    "Write all changes into the base weights."
    layers = lora_layers(model)
    done = [name for name, layer in layers.items() if layer.merged]
    require(
        not done,
        f"{len(done)} of {len(layers)} layers are merged already, such as {next(iter(done), '')!r}; unmerge them first",
    )
    _require_own_weights(model, [f"{name}.base" for name in layers], "merging")
    for layer in layers.values():
        layer.merge()
    return model


def unmerge(
    model: torch.nn.Module,  # a model after `merge`; it is changed in place
) -> torch.nn.Module:  # the same model with its adapters beside the base again; ValueError if any are not merged
    "Take all changes off the base weights."
    layers = lora_layers(model)
    apart = [name for name, layer in layers.items() if not layer.merged]
    require(
        not apart,
        f"{len(apart)} of {len(layers)} layers are not merged, such as {next(iter(apart), '')!r}; merge them first",
    )
    for layer in layers.values():
        layer.unmerge()
    return model


def remove_lora(
    model: torch.nn.Module,  # a model after `add_lora`, merged or not; it is changed in place
    keep_change: bool = True,  # True: the change stays in the weights; False: the base as it was (PiSSA: ValueError)
) -> torch.nn.Module:  # the same model with plain, still frozen, Linear layers
    "Take the adapters away; with keep_change=False, a merged base comes back only up to rounding."
    layers = lora_layers(model)
    merged = [layer.merged for layer in layers.values()]
    require(
        keep_change or all(layer.settings.init_lora_weights != "pissa" for layer in layers.values()),
        "keep_change=False was given, but PiSSA took part of the weights into A and B, "
        "and training changed it; load the base model again",
    )
    if keep_change and not all(merged):
        merge(model)
    if not keep_change and any(merged):
        unmerge(model)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model


# %% [markdown]
# With random numbers in all adapters, as if they had been trained. The control comes first: the adapters do change the logits.

# %% tags=["example"]
@torch.no_grad()
def there_and_back(s):
    "Largest differences after each step, for one kind of adapter."
    model = add_lora(copy.deepcopy(tiny), s)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(0.1 * torch.randn_like(p))
    before, base_logits, logits = (
        [layer.base.weight.clone() for layer in lora_layers(model).values()],
        tiny(input_ids).logits,
        model(input_ids).logits,
    )
    return {
        "adapter - base": difference(logits, base_logits),
        "merged - adapter": difference(merge(model)(input_ids).logits, logits),
        "unmerged - adapter": difference(unmerge(model)(input_ids).logits, logits),
        "weights, back - before": max(
            difference(layer.base.weight, w) for layer, w in zip(lora_layers(model).values(), before)
        ),
        "removed, without - base": difference(
            remove_lora(copy.deepcopy(model), keep_change=False)(input_ids).logits, base_logits
        ),
        "removed, with change - adapter": difference(remove_lora(model)(input_ids).logits, logits),
    }


trips = pd.DataFrame({"plain": there_and_back(settings["LoRA"]), "DoRA": there_and_back(settings["DoRA"])})
trips.map("{:.1e}".format)

# %% [markdown]
# Largest differences of logits, and of weights. All but the first row is rounding. After `remove_lora` the model has the layers it began with:

# %% tags=["check"]
assert trips.loc["adapter - base"].min() > 1e-2 and trips.drop("adapter - base").max().max() < 1e-5
assert [name for name, _ in remove_lora(add_lora(copy.deepcopy(tiny), settings["LoRA"])).named_parameters()] == [
    name for name, _ in tiny.named_parameters()
]
half = add_lora(copy.deepcopy(tiny), settings["LoRA"])
half.model.layers[1].mlp.up_proj.merge()
assert "1 of 14 layers are merged" in message(merge, half) and "13 of 14 layers are not merged" in message(
    unmerge, half
)
assert "no LoRALinear" in message(merge, copy.deepcopy(tiny))
# its weight is the embedding
tied = add_lora(copy.deepcopy(tiny), LoRASettings(r=4, target_modules="lm_head"))
assert "'lm_head.base'" in message(merge, tied)
assert "load the base model again" in message(
    remove_lora, add_lora(copy.deepcopy(tiny), LoRASettings(r=4, init_lora_weights="pissa")), keep_change=False
)


# %% [markdown]
# ## Equal to PEFT, each of them
#
# As in [the chapter on LoRA](20_layer.ipynb): the same numbers in both adapters, none of them zero, then logits, loss, the gradient of every adapter parameter, and the merged weights. Dropout is on in two of the cases; both models are in training mode and get the same seed before the pass, so that the same inputs are hidden.
# `tests/` does this over more layers and targets.

# %% tags=["example"]
def peft_name(name):
    "The name that peft gives to a parameter of ours."
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        name = name.replace(part, f"{part}.default.weight")
    return f"base_model.model.{name}"


def pair(s):
    "The same adapter in ours and in peft's model, with the same random numbers."
    ours, theirs = add_lora(copy.deepcopy(tiny), s).train(), get_peft_model(copy.deepcopy(tiny), peft_config(s)).train()
    with torch.no_grad():
        for name, p in trained(ours).items():
            if "magnitude" in name:
                p.mul_(torch.empty_like(p).uniform_(0.5, 1.5))
            else:
                p.normal_(std=0.1)
            theirs.get_parameter(peft_name(name)).copy_(p)
    return ours, theirs


def gaps(s):
    "Largest differences between ours and peft's."
    ours, theirs = pair(s)
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(model(input_ids, labels=input_ids))
        outputs[-1].loss.backward()
    a, b = outputs
    moved = difference(a.logits, tiny(input_ids).logits)
    gradients = max(difference(p.grad, theirs.get_parameter(peft_name(name)).grad) for name, p in trained(ours).items())
    remove_lora(ours)
    theirs = theirs.merge_and_unload()
    weights = max(difference(p, theirs.get_parameter(name)) for name, p in ours.named_parameters())
    return {
        "adapter - base": moved,
        "logits": difference(a.logits, b.logits),
        "loss": difference(a.loss, b.loss),
        "gradients": gradients,
        "merged weights": weights,
    }


dropped = {
    "LoRA, dropout": LoRASettings(r=4, lora_alpha=8, lora_dropout=0.3),
    "DoRA, dropout": LoRASettings(r=4, lora_alpha=8, lora_dropout=0.3, use_dora=True),
}
equal = pd.DataFrame({name: gaps(s) for name, s in {**settings, **dropped}.items()}).T
equal.map("{:.0e}".format)

# %% tags=["check"]
assert equal["adapter - base"].min() > 1e-2  # every adapter does something
assert equal.drop(columns="adapter - base").max().max() < 1e-6  # and does the same in both

# %% [markdown]
# ## On disk
#
# An adapter of `peft` is a folder with two files. `adapter_model.safetensors` holds the trained numbers, each under the name of its layer; `adapter_config.json` says what to build before they are read. Writing the same two files from our layers takes a few lines. The weights are written beside and moved into place, so that a broken
# file never has the right name; the configuration comes first, so that complete weights are never without it.

# %%
#| export
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def _file_key(name, part):
    return f"{PREFIX}{name}.{part}" + ("" if part == "lora_magnitude_vector" else ".weight")


def save_lora(
    model: torch.nn.Module,  # a model after `add_lora`, merged or not
    folder,  # where to; it is made if need be
    settings: LoRASettings
    | None = None,  # what the adapters were made with, checked against them; None: the layers say
) -> Path:  # the folder; ValueError if there are no adapters, or others
    "Write the adapters as peft would."
    from safetensors.torch import save_file

    layers = lora_layers(model)
    made = {layer.settings for layer in layers.values()}
    require(len(made) == 1, f"the layers were made with {len(made)} different settings; one file can hold one")
    settings = settings or next(iter(made))
    require(
        settings in made, f"the adapters were made with {next(iter(made))}, not with {settings}; give those, or None"
    )
    config = peft_config(settings)
    config.inference_mode, config.base_model_name_or_path = True, getattr(model, "name_or_path", None) or None
    folder = open_folder(folder)
    config.save_pretrained(str(folder))
    weights = {
        _file_key(name, part): p.detach().cpu().contiguous()
        for name, layer in layers.items()
        for part, p in layer.named_parameters(recurse=False)
    }
    save_file(weights, folder / f"{WEIGHTS}.part", metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.part").replace(folder / WEIGHTS)
    return folder


# %% tags=["example"]
dora_model, _ = pair(settings["DoRA"])
with tempfile.TemporaryDirectory() as folder:
    save_lora(dora_model, folder, settings["DoRA"])
    written, config = load_file(Path(folder) / WEIGHTS), read_json(Path(folder) / CONFIG)
display(
    {key: config[key] for key in ("peft_type", "r", "lora_alpha", "target_modules", "use_dora", "init_lora_weights")}
)
{key: tuple(w.shape) for key, w in list(written.items())[:3]}

# %% [markdown]
# Reading is the part that can go wrong quietly. `peft` has many features that our layer does not have; an adapter that uses one would load, and compute something else. So the configuration is read with suspicion: whatever is switched on and not known here is refused by name. That holds
# for features that `peft` does not have yet, too. Of the starts, those that leave the base as it is need no work, since $A$ and $B$ come from the file; `"pissa"` is made again; the others are refused.

# %%
#| export
_OURS = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "init_lora_weights",
    "peft_type",
}
_NOTES = {
    # of no effect on the numbers
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    # of none without a switch beside them
    "qalora_group_size",
    "megatron_core",
    "loftq_config",
    "eva_config",
}


def read_lora_settings(
    folder,  # an adapter in peft's format
) -> LoRASettings:  # FileNotFoundError if a file is missing; ValueError for a feature that LoRALinear does not have
    "The settings in an adapter's configuration."
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(
                f"no adapter in {folder} ({name} is missing); give a folder that peft or save_lora wrote"
            )
    config = read_json(Path(folder) / CONFIG)

    def refuse(name):
        return (
            f"the adapter in {folder} has {name}={config.get(name)!r}, which LoRALinear does not do; load it with peft"
        )

    require(config.get("peft_type") == "LORA", refuse("peft_type"))
    for name, value in config.items():
        require(name in _OURS | _NOTES or not value or (name, value) == ("bias", "none"), refuse(name))
    targets, start = config.get("target_modules"), config.get("init_lora_weights", True)
    # another string is a regular expression
    require(targets == "all-linear" or (targets and isinstance(targets, list)), refuse("target_modules"))
    require(start in (True, False, "gaussian", "orthogonal", "eva", "pissa"), refuse("init_lora_weights"))
    return LoRASettings(
        config.get("r"),
        config.get("lora_alpha"),
        config.get("lora_dropout", 0.0),
        targets if isinstance(targets, str) else ",".join(sorted(targets)),
        config.get("use_rslora", False),
        config.get("use_dora", False),
        "pissa" if start == "pissa" else "default",
    )


# %% [markdown]
# Then the keys: each must find a place and each place a key, and the shapes must agree. All of this is known from shapes alone, so the model is untouched until everything fits.

# %%
#| export
def load_lora(
    model: torch.nn.Module,  # a model without adapters; it is changed in place
    folder,  # an adapter in peft's format, from `save_lora` or from peft
) -> torch.nn.Module:  # the same model, frozen, with the adapters as LoRALinear; ValueError if they do not fit
    "Put a saved adapter on a model."
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = read_lora_settings(folder)
    try:
        weights = load_file(Path(folder) / WEIGHTS)
    except SafetensorError as e:
        raise ValueError(f"{WEIGHTS} in {folder} cannot be read ({e}); copy or make it again") from None
    places: dict[str, tuple] = {}
    r = settings.r
    for name, (D_out, D_in) in find_targets(model, settings.target_modules).items():
        parts = {
            "lora_A": (r, D_in),
            "lora_B": (D_out, r),
            **({"lora_magnitude_vector": (D_out,)} if settings.use_dora else {}),
        }
        places |= {_file_key(name, part): (name, part, shape) for part, shape in parts.items()}
    lost, empty = weights.keys() - places.keys(), places.keys() - weights.keys()
    misfit = f"the adapter in {folder} does not fit the model:"
    require(
        not lost and not empty,
        f"{misfit} {len(lost)} of its keys have no place and {len(empty)} places have no key, "
        f"such as {min(lost | empty, default='')}",
    )
    wrong = {key: shape for key, (_, _, shape) in places.items() if tuple(weights[key].shape) != shape}
    key = next(iter(wrong), "")
    require(
        not wrong,
        f"{misfit} {len(wrong)} of its tensors have another shape, such as {key}: "
        f"{tuple(weights[key].shape) if wrong else ''} in the file, {wrong.get(key)} in the model",
    )
    add_lora(model, settings)
    with torch.no_grad():
        for key, (name, part, _) in places.items():
            getattr(model.get_submodule(name), part).copy_(weights[key])
    return model


# %% [markdown]
# Both ways, for every variant: what we save is loaded by `peft`, and what `peft` saves is loaded here. The last column says that there was something to lose:

# %% tags=["example"]
@torch.no_grad()
def exchange(s):
    "Largest differences of logits after a trip over the disk."
    ours, theirs = [model.eval() for model in pair(s)]
    logits = ours(input_ids).logits
    with tempfile.TemporaryDirectory() as mine, tempfile.TemporaryDirectory() as peft_made:
        save_lora(ours, mine)
        theirs.save_pretrained(peft_made)
        read = {
            "ours, by peft": PeftModel.from_pretrained(copy.deepcopy(tiny), mine),
            "peft's, by ours": load_lora(copy.deepcopy(tiny), peft_made),
            "ours, by ours": load_lora(copy.deepcopy(tiny), mine),
        }
    return {
        **{label: difference(model.eval()(input_ids).logits, logits) for label, model in read.items()},
        "adapter - base": difference(logits, tiny(input_ids).logits),
    }


exchanged = pd.DataFrame({name: exchange(s) for name, s in settings.items()}).T
exchanged.map("{:.0e}".format)

# %% tags=["check"]
assert exchanged.drop(columns="adapter - base").max().max() < 1e-6 and exchanged["adapter - base"].min() > 1e-2


# %% [markdown]
# What must not load, and what it says. The adapter is saved by `peft`; one thing in it is changed each time:

# %% tags=["check"]
def refused(config=None, weights=lambda w: w, to=tiny):
    "What load_lora says to an adapter with these changes."
    with tempfile.TemporaryDirectory() as folder:
        get_peft_model(copy.deepcopy(tiny), peft_config(settings["DoRA"])).save_pretrained(folder)
        path = Path(folder)
        (path / CONFIG).write_text(json.dumps({**read_json(path / CONFIG), **(config or {})}))
        save_file(weights(load_file(path / WEIGHTS)), path / WEIGHTS)
        target = copy.deepcopy(to)
        said = message(load_lora, target, folder).replace(folder, "adapter")
        # the model was not touched
        assert not any(hasattr(m, "lora_A") for m in target.modules())
    return said


features = [
    dict(peft_type="IA3"),
    dict(bias="all"),
    dict(rank_pattern={"q_proj": 8}),
    dict(modules_to_save=["lm_head"]),
    dict(layers_to_transform=[0]),
    dict(fan_in_fan_out=True),
    dict(target_modules=".*_proj"),
    dict(init_lora_weights="olora"),
    dict(feature_of_next_year=True),
]
said = [refused(config) for config in features]
assert all(f"{next(iter(config))}={next(iter(config.values()))!r}" in text for config, text in zip(features, said))
short = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
said += [
    refused(weights=lambda w: {key.replace("layers.1", "layers.7"): value for key, value in w.items()}),
    refused(weights=lambda w: {key: value for key, value in w.items() if key != short}),
    refused(weights=lambda w: {**w, short: torch.zeros(128, 3)}),
    refused(dict(use_dora=False)),
]
for text, part in zip(
    said[-4:],
    (
        "21 of its keys have no place and 21 places have no key",
        f"1 places have no key, such as {short}",
        "(128, 3) in the file, (128, 4) in the model",
        "14 of its keys have no place",
    ),
):
    assert part in text, text
Markdown("\n".join(f"- `{text}`" for text in said))

# %% [markdown]
# And of course: an adapter goes on a model that has none yet, and a folder without one is said to be such.

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    save_lora(dora_model, folder)
    assert "has LoRA already" in message(load_lora, dora_model, folder)
    assert "not with LoRASettings(r=8" in message(save_lora, dora_model, folder, LoRASettings(r=8))
    assert "no LoRALinear" in message(save_lora, tiny, folder)
    (Path(folder) / WEIGHTS).unlink()
    try:
        load_lora(copy.deepcopy(tiny), folder)
        raise AssertionError("nothing was raised")
    except FileNotFoundError as error:
        assert f"{WEIGHTS} is missing" in str(error)

# %% [markdown]
# ## A variant of one's own
#
# A variant touches few places, and each of them refuses what it does not know:
#
# 1. [The LoRA layer](20_layer.ipynb): a field of `LoRASettings` (or a word in `INITS`, for another start), what it does in `LoRALinear`, and its name in `peft_config`, which is what a run trains with.
# 2. This chapter: a row in the table at the top with its source, a measurement beside the others, and `_OURS`, by which an adapter's file says that it has the variant.
# 3. [The settings](../4_train/40_config.ipynb): a field of `TrainConfig`, by which the command line knows it, and the same line in the cells tagged `parameters` of [the loop](../4_train/45_loop.ipynb) and [fine-tuning](../4_train/47_finetune.ipynb); a test says if they differ.
# 4. `tests/test_lora.py` holds our layer equal to PEFT's for every combination, and `tests/test_finetune.py` resumes a run of each kind; the new one belongs into both lists.
