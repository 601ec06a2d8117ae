# %%
#| default_exp lora.layer

# %% [markdown]
# # LoRA
#
# > Teach a large model something new by learning two thin matrices beside each frozen one.
#
# Fine-tuning all weights of a language model needs four numbers in memory for each weight, and yields a full copy
# of the model for each character. LoRA (low-rank adaptation; Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
# Models") leaves the weights as they are and learns only a small *change* to them. This chapter builds
# the idea by hand: the arithmetic, the layer and its gradients, where it goes, how many parameters it has, and how it is merged. At the end it shows
# that our layer and Hugging Face's `peft` compute the same numbers. [Variants](22_variants.ipynb) have a chapter of their own, with LoRA's files; [training](../4_train/47_finetune.ipynb) uses `peft`.

# %%
#| export
import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from simpsons_llm.machine.job import require

# %%
#| hide
import copy

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)


# %% [markdown]
# ## What full fine-tuning costs
#
# To train one weight, the usual optimizer (Adam) keeps four numbers: the weight itself, its gradient, and two running averages, one of
# the gradient and one of its square. In 32-bit floats that is 16 bytes for each weight, before a single activation is stored.
#
# To count, we need the *shape* of a model and not its numbers. PyTorch's `meta` device gives just that: tensors with a shape and no memory.
# Two shapes go through this chapter: SmolLM2-135M, small enough for a laptop, and open_llama_3b, a good fit for a large card.

# %% tags=["example"]
def llama_on_meta(**shape):
    "A Llama of this shape whose tensors hold no numbers."
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**shape))


models = {
    "SmolLM2-135M": llama_on_meta(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "open_llama_3b": llama_on_meta(
        hidden_size=3200,
        num_hidden_layers=26,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=8640,
        vocab_size=32000,
        tie_word_embeddings=False,
    ),
}


def gib(numbers):
    return numbers * 4 / 2**30  # 32-bit floats


sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
pd.DataFrame(
    [
        dict(
            model=name,
            weights=f"{n:,}",
            weights_gib=gib(n),
            gradients_gib=gib(n),
            adam_gib=gib(2 * n),
            sum_gib=gib(4 * n),
        )
        for name, n in sizes.items()
    ]
).round(2)

# %% [markdown]
# The last column is what must fit on the device for full fine-tuning in 32-bit floats. Only the first quarter of it
# is the model; the other three quarters exist because *every* weight is being trained.
#
# LoRA removes those three quarters for nearly all weights. What it does not remove are the *activations*: intermediate results that the backward pass needs, which are as many as before. In a step of a small model they are the largest part of all, so its peak falls by something like a third and not to a thousandth; [the chapter on costs](../4_train/41_cost.ipynb) counts them.
#
# Write the fine-tuned matrix as the old one plus a change:
#
# $$W = W_0 + \Delta W .$$
#
# Nothing is lost so far. Now the bet: $\Delta W$ does not need all its freedom. Keep $W_0$ frozen, and let the change be a product of
# two thin matrices, $\Delta W = B A$, where $B$ has $r$ columns and $A$ has $r$ rows. The number $r$ is the *rank*.

# %% [markdown]
# ## A change of rank 1, by hand
#
# Take a change with 4 rows and 6 columns: 24 numbers. Now choose one column of 4 numbers and one row of 6, and multiply each with each,
# as in a multiplication table. The column is $B$, the row is $A$, and the table is $\Delta W$.

# %% tags=["example"]
B1 = torch.tensor([[1.0], [2.0], [0.0], [-1.0]])
A1 = torch.tensor([[2.0, 0.0, 1.0, 3.0, 0.0, 1.0]])


def table(B, A):
    "The product B A, with the row of A above it and the rows of B beside it."

    def text(t):
        return [" ".join(f"{v:.0f}" for v in row) for row in t]

    return pd.DataFrame((B @ A).int().numpy(), index=pd.Index(text(B), name="B \\ A"), columns=text(A.T))


table(B1, A1)

# %% [markdown]
# Each row is the row of $A$, times one number of $B$. Ten numbers (4 + 6) made all 24. A second column in $B$ and a second row in $A$ add a second
# such table to the first. Here the headings show two numbers each, one for each of the two tables:

# %% tags=["example"]
B2 = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 2.0]])
A2 = torch.tensor([[2.0, 0.0, 1.0, 3.0, 0.0, 1.0], [0.0, 1.0, -1.0, 0.0, 2.0, 1.0]])
table(B2, A2)

# %% [markdown]
# The rank of a matrix is the smallest number of such tables that add up to it. In general a change of rank $r$
# costs $r\,(D_\text{in} + D_\text{out})$ numbers instead of $D_\text{in} \times D_\text{out}$.
#
# Two things to keep. The change has the *shape* of the full matrix whatever its rank. And at this size there is little to gain:
# 20 numbers instead of 24 for rank 2. For a square matrix of width $D$, rank $r$ needs $2 r D$ numbers instead of $D^2$, so thin pays off when $r$ is far below $D/2$.

# %% tags=["check"]
for B, A in ((B1, A1), (B2, A2)):
    assert torch.linalg.matrix_rank(B @ A) == B.shape[1]
    assert B.numel() + A.numel() == B.shape[1] * (B.shape[0] + A.shape[1])

pd.DataFrame(
    [
        dict(
            rank=B.shape[1],
            shape=tuple((B @ A).shape),
            numbers_in_B_and_A=B.numel() + A.numel(),
            numbers_in_change=(B @ A).numel(),
        )
        for B, A in ((B1, A1), (B2, A2))
    ]
)

# %% [markdown]
# ## When is a low rank enough?
#
# That depends on what has to be drawn. The singular value decomposition (SVD) answers it for any matrix: it sorts a matrix into
# tables like those above, the largest first. Stopping after $r$ tables gives the best possible approximation of rank $r$ (Eckart and Young, 1936).
#
# A picture is a matrix that one can look at. This one is a donut, with one bite gone.

# %% tags=["example"]
n = 96  # pixels along each side
y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
radius = (x**2 + y**2).sqrt()
bite = (x - 0.75) ** 2 + (y + 0.55) ** 2 < 0.35**2
donut = ((radius < 0.9) & (radius > 0.3) & ~bite).float()


# %% [markdown]
# `best_of_rank` keeps the first $r$ tables of the decomposition:

# %%
#| export
def best_of_rank(
    matrix: torch.Tensor,  # D_out x D_in
    r: int,  # rank to cut to, >= 0; more than the matrix has leaves it as it is
) -> torch.Tensor:  # D_out x D_in, the dtype of `matrix`
    "The closest matrix of rank r (Eckart and Young 1936)."
    require(type(r) is int and r >= 0, f"r={r!r} is not a rank to cut to; give a whole number from 0")
    if r >= min(matrix.shape):
        return matrix
    U, S, V = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (U[:, :r] * S[:r] @ V[:r]).to(matrix.dtype)


# %% tags=["example"]
fig, axes = plt.subplots(1, 4, figsize=(8, 2.6), layout="constrained")
for ax, r in zip(axes, (1, 4, 12, n)):
    ax.imshow(best_of_rank(donut, r), cmap="YlOrBr", vmin=0, vmax=1.3)
    ax.set_title(f"rank {r}\n{r * 2 * n:,} numbers" if r < n else f"as drawn\n{n * n:,} numbers", fontsize=10)
    ax.set_xlabel("pixels")
    ax.set_xticks([0, n])
    ax.set_yticks([0, n])
axes[0].set_ylabel("pixels");


# %% [markdown]
# At rank 1 it is hardly a donut. At rank 4 it has its hole and its bite; at rank 12 only a faint ripple
# is left to tell it from the original, with a quarter of the numbers.
#
# How fast does the error fall with the rank? We measure the length
# (the root of the summed squares) of what is missing, relative to the length of the whole. Beside the donut stands a matrix of pure noise of the same size.

# %% tags=["example"]
def relative_error(matrix):
    "What is missing at rank 0, 1, 2, ...: length of the rest over length of the whole."
    energy = torch.linalg.svdvals(matrix.double()) ** 2
    rest = energy.sum() - torch.cat([torch.zeros(1), energy.cumsum(0)])
    return (rest.clamp(min=0) / energy.sum()).sqrt()


noise = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
errors = pd.DataFrame({"donut": relative_error(donut), "noise": relative_error(noise)})
limit = 0.10
enough = {name: int((errors[name] < limit).idxmax()) for name in errors}

ax = (100 * errors).plot(figsize=(6.4, 3.6), xlabel="rank", ylabel="missing, % of the whole", grid=True)
ax.axhline(100 * limit, color="grey", linestyle=":")
for r in enough.values():
    ax.annotate(f"r = {r}", (r, 100 * limit), xytext=(4, 6), textcoords="offset points")
ax.figure.tight_layout()
Markdown(f"""The donut needs rank {enough["donut"]} of {n} to have less than {limit:.0%} missing,
with {enough["donut"] * 2 * n:,} numbers in place of {n * n:,}. Noise of the same size needs rank {enough["noise"]}:
{enough["noise"] * 2 * n:,} numbers, more than the matrix itself has.""")

# %% [markdown]
# So low rank is no law of nature. It is a property of things with structure. That the change in fine-tuning has such structure
# is a *hypothesis* of the paper, and its experiments support it: on the tasks there, small ranks did as well as training everything.
# A pretrained model already knows the language; the new part, how one character speaks, is small beside it.
# LoRA does not compute any SVD. It fixes the rank before training and lets the gradient find the tables.
#
# And the theorem promises more than a trend: what the singular values say is missing is exactly what is missing in the pictures above.

# %% tags=["check"]
assert enough["donut"] < n / 4 < n / 2 < enough["noise"]
# the error read off from the singular values is the error of the picture itself
for r in (1, 4, 12):
    missing = (donut - best_of_rank(donut, r)).norm() / donut.norm()
    assert abs(missing - errors["donut"][r]) < 1e-5


# %% [markdown]
# ## The classic picture
#
# How thin is thin? A drawing to scale says more than a formula, so this function draws one for any layer. Below it, a square layer of SmolLM2-135M (width 576) with rank 16.

# %%
#| export
def plot_low_rank(
    D_out: int,  # rows of W: numbers that leave the layer, >= 1
    D_in: int,  # columns of W: numbers that enter the layer, >= 1
    r: int,  # rank: columns of B and rows of A, >= 1
    ax=None,  # matplotlib axes to draw on; None makes new ones
):  # the axes
    "Draw the frozen W and the product B A beside it, all to the same scale."
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    gap, x = 0.2 * max(D_out, D_in), 0.0
    parts = (
        ("W, frozen", D_out, D_in, "lightsteelblue", "+"),
        ("B", D_out, r, "tab:orange", "×"),
        ("A", r, D_in, "tab:orange", ""),
    )
    for name, rows, columns, color, sign in parts:
        ax.add_patch(plt.Rectangle((x, -rows), columns, rows, facecolor=color, edgecolor="black", linewidth=0.5))
        ax.text(x + columns / 2, -rows - gap / 4, f"{name}\n{rows:,} × {columns:,}", ha="center", va="top")
        ax.text(x + columns + gap, -D_out / 2, sign, ha="center", va="center", fontsize=20)
        x += columns + 2 * gap
    ax.set(xlim=(-gap / 2, x - 2 * gap + gap / 2), ylim=(-D_out - 1.5 * gap, gap / 2), aspect="equal")
    ax.axis("off")
    return ax


# %% tags=["example"]
plot_low_rank(576, 576, 16)
Markdown(
    f"Grey-blue stays as it is, {576 * 576:,} numbers; orange is learned, {16 * (576 + 576):,} numbers, "
    f"{16 * (576 + 576) / 576**2:.1%} of the former."
)

# %% [markdown]
# ## The settings
#
# Four say what the adapter looks like and where it goes:
#
# - `r`, the rank. More rank, more room for the change, and more parameters.
# - `lora_alpha`, usually written $\alpha$. The change is multiplied by $\alpha / r$; what that is for comes below.
# - `lora_dropout`, the share of a layer's inputs that is hidden from the adapter at random during training, against learning by heart.
# - `target_modules`, which layers get an adapter: `"all-linear"`, or names separated by commas.
#
# Three more choose a variant, which a chapter of its own explains; all are off unless asked for. `use_rslora` multiplies by $\alpha / \sqrt r$ instead of $\alpha / r$ (Kalajdzievski 2023).
# `use_dora` learns the length of each row of the weight apart from its direction (Liu et al. 2024).
# `init_lora_weights` says where $A$ and $B$ start: `"default"`, `"pissa"` (the largest part of the weight itself; Meng et al. 2024), or `"loftq"` (what rounding
# the base to 4 bits took away; Li et al. 2023). LoftQ is in `peft` only, and `peft` computes its start as if the factor of the change were 1; so another factor is refused here.
#
# All values are checked here, before any model is loaded. The class is frozen: settings that were checked stay as they were.

# %%
#| export
INITS = ("default", "pissa", "loftq")


@dataclass(frozen=True)
class LoRASettings:
    "What a LoRA adapter looks like and where it goes."

    r: int = 16  # rank, >= 1
    lora_alpha: int = 32  # the change is multiplied by lora_alpha / r; > 0
    lora_dropout: float = 0.0  # share of the adapter's inputs dropped in training, 0 <= p < 1
    target_modules: str = "all-linear"  # "all-linear", or names separated by commas: "q_proj,k_proj"
    use_rslora: bool = False  # multiply by lora_alpha / sqrt(r) instead
    use_dora: bool = False  # learn the length of each row of the weight, too
    init_lora_weights: str = "default"  # start of A and B: "default", "pissa" or "loftq" (peft only; needs scaling 1)

    def __post_init__(self):
        def number(v):
            return isinstance(v, (int, float)) and not isinstance(v, bool)

        require(type(self.r) is int and self.r >= 1, f"r={self.r!r} is not a rank; give a whole number from 1, e.g. 16")
        require(
            number(self.lora_alpha) and 0 < self.lora_alpha < math.inf,
            f"lora_alpha={self.lora_alpha!r} is not a number above 0; give e.g. {2 * self.r}",
        )
        require(
            number(self.lora_dropout) and 0 <= self.lora_dropout < 1,
            f"lora_dropout={self.lora_dropout!r} is outside 0 <= p < 1; give a share, e.g. 0.05",
        )
        require(
            isinstance(self.target_modules, str) and all(_names(self.target_modules)),
            f"target_modules={self.target_modules!r} is not one string of names; "
            'give "all-linear" or e.g. "q_proj,k_proj"',
        )
        for name in ("use_rslora", "use_dora"):
            require(
                type(getattr(self, name)) is bool, f"{name}={getattr(self, name)!r} is not a switch; give True or False"
            )
        require(
            self.init_lora_weights in INITS,
            f"init_lora_weights={self.init_lora_weights!r} is not known; give one of {', '.join(INITS)}",
        )
        require(
            self.init_lora_weights != "loftq" or self.scaling == 1,
            f'init_lora_weights="loftq" was given with a scaling of {self.scaling:g}, '
            "but its start is exact at scaling 1 only; "
            f"give lora_alpha={math.sqrt(self.r) if self.use_rslora else self.r:g}",
        )

    @property
    def scaling(self) -> float:
        "The factor of the change: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA."
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def _names(target_modules):
    return [name.strip() for name in target_modules.split(",")]


# %% [markdown]
# The project that this book grew out of used a small adapter on two layers of each block. We keep its settings by name, to compare with. Side by side with the book's own:

# %%
#| export
SEED_LORA = LoRASettings(8, 16, 0.05, "q_proj,k_proj")

# %% tags=["example"]
pd.DataFrame({name: dict(**vars(s), scaling=s.scaling) for name, s in (("seed", SEED_LORA), ("book", LoRASettings()))})


# %% [markdown]
# A wrong value is refused with the value in the message:

# %% tags=["check"]
def message(call, *args, **kwargs):
    "The text of the ValueError that this call must raise."
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("no ValueError was raised")


wrong = [
    dict(r=0),
    dict(r=2.5),
    dict(lora_alpha=-1),
    dict(lora_alpha="32"),
    dict(lora_dropout=1.0),
    dict(target_modules=""),
    dict(target_modules="q_proj,,k_proj"),
    dict(use_dora="yes"),
    dict(init_lora_weights="svd"),
]
said = [message(LoRASettings, **w) for w in wrong]
assert all(f"{name}={value!r}" in text for w, text in zip(wrong, said) for name, value in w.items())
assert "lora_alpha=16" in message(LoRASettings, init_lora_weights="loftq")  # 32 / 16 is not 1
assert LoRASettings(16, 32).scaling == 2 and LoRASettings(16, 32, use_rslora=True).scaling == 8
said


# %% [markdown]
# ## The layer
#
# For an input $x$ the layer computes
#
# $$h = W_0\,x + \frac{\alpha}{r}\, B\,A\,x .$$
#
# Read the second term from right to left. $A$ squeezes $D_\text{in}$ numbers into $r$, $B$ spreads them to $D_\text{out}$. The matrix $BA$ itself is never built
# in training; two thin products are cheaper. `delta` builds it on demand.
#
# Two variants need a few lines of their own, kept apart from the layer. DoRA multiplies each row of the sum by a factor; PiSSA takes the start of $A$ and $B$ out of the weight.
# Both are off here; [the chapter on variants](22_variants.ipynb) works them out. What the layer cannot do is refused before anything is changed.

# %%
#| export
def _row_lengths(layer):
    "Length of each row of base weight + change, without gradient."
    with torch.no_grad():
        return (layer.base.weight + layer.delta()).norm(dim=1)


def _dora_stretch(layer):
    return layer.lora_magnitude_vector / _row_lengths(layer)


def _dora_change(layer, x, h, change):
    "What DoRA adds to the base's output h: c (W0 x + change) - W0 x."
    stretch = _dora_stretch(layer)
    if layer.training and layer.settings.lora_dropout:
        h = F.linear(x, layer.base.weight.to(x.dtype))
    elif layer.base.bias is not None:
        h = h - layer.base.bias
    return (stretch - 1) * h + stretch * change


@torch.no_grad()
def _pissa_start(layer):
    "Move the r largest tables of the base weight into B and A; the base keeps the rest."
    U, S, V = torch.linalg.svd(layer.base.weight.to(layer.lora_A.dtype), full_matrices=False)
    r = layer.settings.r
    root = (S[:r] / layer.scaling).sqrt()
    layer.lora_B.copy_(U[:, :r] * root)
    layer.lora_A.copy_(root[:, None] * V[:r])
    layer.base.weight.copy_(layer.base.weight - layer.delta())


def _check_start(settings, shapes):
    require(
        settings.init_lora_weights != "loftq",
        'init_lora_weights="loftq" is not in LoRALinear; '
        'train with peft (get_peft_model and peft_config), or give "default" or "pissa"',
    )
    small = {name: min(shape) for name, shape in shapes.items() if min(shape) < settings.r}
    require(
        settings.init_lora_weights != "pissa" or not small,
        f"r={settings.r} is more than a PiSSA start has: "
        f"{next(iter(small), '')} has rank {min(small.values(), default=0)} at most; give a smaller r",
    )


# %% [markdown]
# Now the layer. As in `peft`, a base in 16 bits gets an adapter in 32 bits, because small updates to small numbers get lost in 16.

# %%
#| export
class LoRALinear(torch.nn.Module):
    "A frozen Linear plus a learned change of rank r."

    def __init__(
        self,
        base: torch.nn.Linear,  # the layer to adapt; it is frozen here, and with PiSSA its weight becomes the rest
        settings: LoRASettings,  # all but target_modules is used; ValueError for what only peft can do
    ):
        super().__init__()
        D_out, D_in, r = base.out_features, base.in_features, settings.r
        _check_start(settings, {"the layer": (D_out, D_in)})
        kind: dict = dict(device=base.weight.device, dtype=torch.promote_types(base.weight.dtype, torch.float32))
        self.base, self.settings, self.scaling, self.merged = (
            base.requires_grad_(False),
            settings,
            settings.scaling,
            False,
        )
        self.dropout = torch.nn.Dropout(settings.lora_dropout) if settings.lora_dropout else torch.nn.Identity()
        self.lora_A = torch.nn.Parameter(torch.empty(r, D_in, **kind))
        self.lora_B = torch.nn.Parameter(torch.zeros(D_out, r, **kind))
        torch.nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft does
        if settings.init_lora_weights == "pissa":
            _pissa_start(self)
        self.register_parameter(
            "lora_magnitude_vector", torch.nn.Parameter(_row_lengths(self)) if settings.use_dora else None
        )
        self.register_buffer("stretch", None, persistent=False)  # DoRA's factors while merged
        self.train(base.training)

    def forward(self, x):
        "base(x) + scaling * B A dropout(x); DoRA scales each row of that. Merged: base(x)."
        h = self.base(x)
        if self.merged:
            return h
        x = self.dropout(x.to(self.lora_A.dtype))
        change = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling
        if self.lora_magnitude_vector is not None:
            change = _dora_change(self, x, h, change)
        return (h + change).to(h.dtype)

    def delta(self) -> torch.Tensor:
        "The change of the weight before DoRA: scaling * B A, D_out x D_in."
        return self.scaling * (self.lora_B @ self.lora_A)


# %% [markdown]
# ### The gradients, by hand
#
# Training needs to know how the loss $L$ answers to each number in $A$ and $B$. Let $g$ be the gradient that arrives at the output, one number for
# each output: $g = \partial L / \partial h$. Write $s = \alpha / r$. If $A$ and $B$ move a little, the output moves by
#
# $$dh = s\; dB\,(A x) + s\; B\,(dA\, x) .$$
#
# and the loss by $dL = g^\top dh$. Now read off what stands beside $dB$ and beside $dA$:
#
# $$\frac{\partial L}{\partial B} = s\; g\,(A x)^\top \qquad \frac{\partial L}{\partial A} = s\; (B^\top g)\; x^\top .$$
#
# Both are multiplication tables again: a column times a row. With three inputs, two outputs, $r = 1$ and $\alpha = 2$ every step fits on paper.
# The loss is half the squared distance from a wanted output $y$, so that $g$ is simply $h - y$. The last column is what autograd, which knows none of these
# formulas, finds for the same layer:

# %% tags=["example"]
def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


W, x1, y1 = torch.tensor([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]), vector(1, 2, 1), vector(3, 2)
small = LoRALinear(torch.nn.Linear(3, 2, bias=False), LoRASettings(r=1, lora_alpha=2))
with torch.no_grad():
    small.base.weight.copy_(W)
    small.lora_A.copy_(vector(1, 0, 1)[None])
    small.lora_B.copy_(vector(1, -1)[:, None])

row_A, column_B, factor = small.lora_A.detach(), small.lora_B.detach(), 2 / 1
Ax = row_A @ x1
h = W @ x1 + factor * column_B @ Ax
g1 = h - y1
Btg = column_B.T @ g1
dB, dA = factor * g1[:, None] * Ax, factor * Btg[:, None] * x1

output = small(x1)
output.retain_grad()
(0.5 * (output - y1).square().sum()).backward()


def digits(t):
    return " ".join(f"{v:g}" for v in t.detach().flatten().tolist())


pd.DataFrame(
    [
        ("A x", "1·1 + 0·2 + 1·1", digits(Ax), ""),
        ("h", "W x + 2 B (A x) = (0, 4) + 2·2·(1, -1)", digits(h), digits(output)),
        ("g", "h - y = (4, 0) - (3, 2)", digits(g1), digits(output.grad)),
        ("B^T g", "1·1 + (-1)·(-2)", digits(Btg), ""),
        ("dL/dB", "2 g (A x) = 2·2·(1, -2)", digits(dB), digits(small.lora_B.grad)),
        ("dL/dA", "2 (B^T g) x = 2·3·(1, 2, 1)", digits(dA), digits(small.lora_A.grad)),
    ],
    columns=["what", "on paper", "by the formula", "by autograd"],
).set_index("what")

# %% [markdown]
# The gradient of the full weight would be $g\,x^\top$, six numbers. LoRA's two are that table seen through the other matrix: $\partial L/\partial B = s\,(g x^\top) A^\top$ and
# $\partial L/\partial A = s\,B^\top (g x^\top)$. What $A$ does not let through, $B$ never hears of. Against autograd, and with one small step down the hill:

# %% tags=["check"]
assert torch.equal(dB, small.lora_B.grad) and torch.equal(dA, small.lora_A.grad) and torch.equal(g1, output.grad)
full = g1[:, None] * x1
assert torch.equal(dB, factor * full @ row_A.T) and torch.equal(dA, factor * column_B.T @ full)
torch.optim.SGD([small.lora_A, small.lora_B], lr=0.01).step()
# a smaller loss, and the base did not move
assert (small(x1) - y1).square().sum() < g1.square().sum() and torch.equal(small.base.weight, W)


# %% [markdown]
# ### Why A is random and B is zero
#
# Before the first step the adapted model must be the model we started from; so $BA$ must be zero. It is enough that one of the two is.
# And it must be *only* one. Look at the two gradients again: $A$ stands in that of $B$, and $B$ in that of $A$.
# With $B = 0$ the second is zero and the first is not: $B$ moves first, and from the next step on $A$ moves too. If both start at zero,
# both gradients are zero for ever, and the loss is stuck while everything looks healthy. If both start random, the model
# begins with a random disturbance. All three, measured by autograd:

# %% tags=["example"]
def first_step(init_A, init_B):
    "Output change before, and gradients at, the first step, for given starts of A and B."
    torch.manual_seed(0)
    layer, inputs = LoRALinear(torch.nn.Linear(64, 48), LoRASettings(r=4, lora_alpha=8)), torch.randn(10, 64)
    with torch.no_grad():
        init_A(layer.lora_A)
        init_B(layer.lora_B)
    output = layer(inputs)
    output.square().mean().backward()
    return dict(
        output_change=(output - layer.base(inputs)).abs().max().item(),
        gradient_A=layer.lora_A.grad.abs().max().item(),
        gradient_B=layer.lora_B.grad.abs().max().item(),
    )


def zero(t):
    t.zero_()


def random(t):
    t.uniform_(-0.1, 0.1)


starts = {
    "A random, B zero": first_step(random, zero),
    "both zero": first_step(zero, zero),
    "both random": first_step(random, random),
}
pd.DataFrame(starts).T.round(4)

# %% [markdown]
# The first row is the only one with no change at the start and a gradient to leave it. The same for the layer as it is built, with
# the gradient of $B$ checked against the formula, and one step of plain gradient descent to set $A$ free:

# %% tags=["check"]
layer, inputs = LoRALinear(torch.nn.Linear(64, 48), LoRASettings(r=4, lora_alpha=8)), torch.randn(10, 64)
output = layer(inputs)
# the first output is the base's, bit for bit
assert torch.equal(output, layer.base(inputs))
assert layer.lora_A.abs().max() > 0 and not layer.lora_B.any()
g = 2 * output.detach() / output.numel()  # gradient of the mean square
output.square().mean().backward()
assert not layer.lora_A.grad.any()
assert torch.allclose(layer.lora_B.grad, layer.scaling * g.T @ (inputs @ layer.lora_A.T).detach(), atol=1e-6)
assert layer.base.weight.grad is None and layer.base.bias.grad is None

torch.optim.SGD([layer.lora_A, layer.lora_B], lr=1.0).step()
layer(inputs).square().mean().backward()
# from the second step on, A learns too
assert layer.lora_A.grad.any()


# %% [markdown]
# ### What alpha / r does
#
# Why not just $BA$? Because the rank is something one wants to *try out*, and each trial should not need another learning rate.
# Adam moves every number by about the learning rate, however small its gradient. With $r$ columns in $B$ there are $r$ such moves to add up,
# and they all push the output the same way. Dividing by $r$ undoes that.
#
# We let one layer of width 576 take one Adam step on one input, for several ranks, and look how far the output moves, on average over many draws of $A$ and the input.
# The last row trains the full weight.

# %% tags=["example"]
def move(make, draws=100, lr=1e-3):
    "How far the output of a new layer moves in one Adam step: root mean square, in learning rates, mean of the draws."
    moved = []
    for seed in range(draws):
        torch.manual_seed(seed)
        # an input, and a gradient at the output
        layer, x, g = make(), torch.randn(1, 576), torch.randn(1, 576)
        before = layer(x)
        (before * g).sum().backward()
        torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=lr).step()
        moved.append(((layer(x) - before).square().mean().sqrt() / lr).item())
    return sum(moved) / draws


def plain():
    return torch.nn.Linear(576, 576, bias=False)


def adapted(r, alpha):
    return LoRALinear(plain(), LoRASettings(r=r, lora_alpha=alpha))


ranks = (4, 16, 64)
scaled = {r: move(lambda: adapted(r, 32)) for r in ranks}
unscaled = {r: move(lambda: adapted(r, r)) for r in ranks}
full_move = move(plain)
moves = [{"trained": f"LoRA, r = {r}", "alpha = 32": scaled[r], "alpha = r (no scaling)": unscaled[r]} for r in ranks]
display(
    pd.DataFrame(
        [*moves, {"trained": "full weight", "alpha = 32": full_move, "alpha = r (no scaling)": full_move}]
    ).round(1)
)


def spread(distances):
    return max(distances.values()) / min(distances.values())


Markdown(f"""Over a {ranks[-1] // ranks[0]}-fold range of ranks the output moves by distances that differ by a factor of
{spread(scaled):.2f} with alpha fixed, and of {spread(unscaled):.0f} without the scaling. The full weight moves it
{full_move / scaled[16]:.0f} times as far as rank 16 does, at the same learning rate.""")

# %% [markdown]
# At least for this first step, a new rank needs no new learning rate. [The chapter on variants](22_variants.ipynb) looks beyond it, where another factor ($\alpha/\sqrt r$) has its point. What $\alpha$ does to a given $A$ and $B$ is simple: twice the alpha, twice the change.
#
# So $\alpha$ is a gain. With Adam, raising it does much the same as raising the learning rate (section 4.1 of the paper), and the paper sets it once and
# does not tune it. Common choices are $\alpha = r$ and $\alpha = 2r$; the seed's settings and this book's are both of the second kind.

# %% tags=["check"]
assert spread(scaled) < 1.5 < ranks[-1] / ranks[0] / 1.5 < spread(unscaled)
assert full_move > 5 * max(scaled.values())
single, double = adapted(16, 16), adapted(16, 32)
double.load_state_dict({name: p.normal_() for name, p in single.state_dict().items()})
assert torch.equal(2 * single.delta(), double.delta())


# %% [markdown]
# ### Merging, and back
#
# After training, $W_0 + \frac{\alpha}{r} BA$ is a matrix of the old shape. `merge` writes it into the weight of the base layer, in place, and keeps no second copy;
# from then on the layer computes only that, and costs no more time than before there was an adapter. `unmerge` takes the change off again. A merged layer gives $A$ and $B$ no gradient, so
# training one stops with an error. Merging twice, or unmerging what is not merged, would silently spoil the weights; both are refused.

# %%
#| export
@torch.no_grad()
def _merge(self) -> LoRALinear:
    "Write the change into the base weight, in place."
    require(not self.merged, "the layer is merged already; unmerge it first")
    weight, stretch = self.base.weight + self.delta(), None
    if self.lora_magnitude_vector is not None:
        stretch = _dora_stretch(self)
        weight = stretch[:, None] * weight
    require(
        weight.isfinite().all(),
        "the merged weight would hold numbers that are not finite; the adapter is broken, train it again",
    )
    self.base.weight.copy_(weight)
    self.stretch, self.merged = stretch, True
    return self


@torch.no_grad()
def _unmerge(self) -> LoRALinear:
    "Take the change off the base weight again, in place."
    require(self.merged, "the layer is not merged; there is nothing to take off")
    weight = self.base.weight if self.stretch is None else self.base.weight / self.stretch[:, None]
    self.base.weight.copy_(weight - self.delta())
    self.stretch, self.merged = None, False
    return self


LoRALinear.merge, LoRALinear.unmerge = _merge, _unmerge  # type: ignore[attr-defined]  # they come with their explanation

# %% [markdown]
# How exact is the way back? Adding and subtracting the same number rounds twice, so the last digit of some weights may change. In bfloat16, with 16 binary digits less,
# each of the two roundings is 65,536 times as coarse; where the exact base is needed again, load it again. In 32-bit floats:

# %% tags=["check"]
original, adapted_output = layer.base.weight.clone(), layer(inputs).detach()
layer.merge()
assert (layer.base.weight - original).abs().max() > 1e-3  # there was something to merge
# merged: nothing to train
assert torch.allclose(layer(inputs), adapted_output, atol=1e-5) and not layer(inputs).requires_grad
assert "merged already" in message(layer.merge)
layer.unmerge()
assert "nothing to take off" in message(layer.unmerge)
back_gap = (layer.base.weight - original).abs().max()
assert back_gap <= 2 * torch.finfo(torch.float32).eps * original.abs().max()
Markdown(
    f"The weights reach up to {original.abs().max():.2f}; "
    f"after merging and unmerging, they differ from the original by at most {back_gap:.1e}."
)


# %% [markdown]
# ## Which layers
#
# A block of a Llama has seven linear layers: `q_proj`, `k_proj`, `v_proj`, `o_proj` in the attention, and `gate_proj`, `up_proj`, `down_proj` in the MLP.
# The paper adapted attention only, most often the query and the value. Later work found adapters on *all* linear layers necessary to match full
# fine-tuning (Dettmers et al. 2023, "QLoRA"). The output layer is left out: it is as wide as the vocabulary, and is often the embedding table itself.
#
# `find_targets` names the layers and their shapes. A name matches as in `peft`: the full name of a layer, or its end after a dot.
# It is stricter in one point: *every* name must match. `peft` complains only if none does, so one misspelt name of
# several would go unnoticed. A model that has adapters already is refused.

# %%
#| export
def find_targets(
    model: torch.nn.Module,  # a model without adapters; the meta device will do
    target_modules: str,  # "all-linear" (all but the output layer), or names separated by commas
) -> dict:  # full name of each layer to adapt -> (D_out, D_in)
    "The Linear layers that get an adapter; ValueError for a name that matches none."
    done = [name for name, m in model.named_modules() if hasattr(m, "lora_A")]
    if done:
        raise ValueError(
            f"the model has LoRA already, first on {done[0]!r} and on {len(done)} layers in all; "
            "give the model without adapters"
        )
    linear = {name: m for name, m in model.named_modules() if name and isinstance(m, torch.nn.Linear)}
    has = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
    if target_modules == "all-linear":
        head = getattr(model, "get_output_embeddings", lambda: None)()
        found = {name for name, m in linear.items() if m is not head}
        if not found:
            raise ValueError(f'target_modules="all-linear" finds no Linear layer to adapt; the model has: {has}')
    else:
        found = set()
        for wanted in _names(target_modules):
            match = {name for name in linear if name == wanted or name.endswith(f".{wanted}")}
            if not match:
                raise ValueError(
                    f"target_modules names {wanted!r}, which matches no Linear layer; the model has: {has}"
                )
            found |= match
    return {name: (m.out_features, m.in_features) for name, m in linear.items() if name in found}


# %% [markdown]
# The first block of SmolLM2-135M. Keys and values are narrower than queries, because three query heads share one key head:

# %% tags=["example"]
found = find_targets(models["SmolLM2-135M"], "all-linear")
pd.DataFrame([dict(layer=name, D_out=D_out, D_in=D_in) for name, (D_out, D_in) in list(found.items())[:7]])

# %% [markdown]
# A name that the model does not have, here the way GPT-2 calls its attention, is refused with the names that it has:

# %% tags=["check"]
smol = models["SmolLM2-135M"]
assert len(found) == 7 * 30 and "lm_head" not in found
assert {name.rpartition(".")[2] for name in find_targets(smol, "q_proj, k_proj")} == {"q_proj", "k_proj"}
assert list(find_targets(smol, "layers.3.mlp.up_proj")) == ["model.layers.3.mlp.up_proj"]
refused = message(find_targets, smol, "q_proj,c_attn")
assert "'c_attn'" in refused and "down_proj" in refused and "'q_proj'" not in refused
refused


# %% [markdown]
# ## How many parameters
#
# Each target adds $r\,(D_\text{in} + D_\text{out})$, and with DoRA $D_\text{out}$ more. The count needs the shapes only; nothing is allocated, so it can be made for a model that would
# not fit on this machine, and before one downloads it.

# %%
#| export
def lora_parameter_count(
    model: torch.nn.Module,  # a model without adapters; the meta device will do
    settings: LoRASettings,  # r, target_modules and use_dora are used
) -> dict:  # trainable, total (base + adapter), share (trainable / total), targets (adapted layers)
    "How many parameters LoRA would train, without allocating any."
    shapes = find_targets(model, settings.target_modules).values()
    trainable = sum(settings.r * (D_in + D_out) + settings.use_dora * D_out for D_out, D_in in shapes)
    total = sum(p.numel() for p in model.parameters()) + trainable
    return dict(trainable=trainable, total=total, share=trainable / total, targets=len(shapes))


# %% [markdown]
# Both models with the seed's settings, with the book's, and trained in full. The last column is the memory for gradients and Adam's two averages, the three
# quarters from the beginning of this chapter:

# %% tags=["example"]
rows = []
for name, model in models.items():
    for label, s in (("seed: 8/16, q,k", SEED_LORA), ("book: 16/32, all-linear", LoRASettings())):
        rows.append(dict(model=name, way=label, **lora_parameter_count(model, s)))
    rows.append(dict(model=name, way="full", trainable=sizes[name], total=sizes[name], share=1.0, targets=0))
counts = pd.DataFrame(rows).assign(gradients_and_adam_gib=lambda d: 3 * gib(d.trainable))
looks = dict(trainable="{:,}", total="{:,}", share="{:.2%}", targets="{}", gradients_and_adam_gib="{:.3f}")
display(counts.assign(**{column: counts[column].map(look.format) for column, look in looks.items()}))

trainable = counts.set_index(["model", "way"])["trainable"]
Markdown(
    " ".join(
        f"For {name} the book's adapter has "
        f"{trainable[name, 'book: 16/32, all-linear'] / trainable[name, 'seed: 8/16, q,k']:.1f} times the seed's "
        "parameters, and full fine-tuning "
        f"{trainable[name, 'full'] / trainable[name, 'book: 16/32, all-linear']:.0f} times the book's."
        for name in models
    )
)

# %% [markdown]
# Twice the rank gives a factor of 2; the other five layers of each block, among them the wide ones of the MLP, give the rest. It is still a few percent of the model or less.
# The base weights have to be in memory too, but once, frozen, and in 16 bits if one likes. What the larger adapter buys is a question
# for an evaluation; what it costs is in this table.
#
# The seed's number for SmolLM2-135M on paper: 30 blocks, in each a query of 576 x 576 and a key of 192 x 576.

# %% tags=["check"]
by_hand = 30 * (8 * (576 + 576) + 8 * (576 + 192))
assert lora_parameter_count(smol, SEED_LORA)["trainable"] == by_hand
assert lora_parameter_count(smol, LoRASettings(8, 16, 0.05, "q_proj,k_proj", use_dora=True))[
    "trainable"
] == by_hand + 30 * (576 + 192)
# still nothing allocated
assert all(p.device.type == "meta" for m in models.values() for p in m.parameters())
by_hand


# %% [markdown]
# ## Putting it into a model
#
# Freeze everything, then swap each target for a `LoRALinear` around it. The names of all other layers stay as they were. An optimizer must be made *after* this,
# from the parameters that still want a gradient.
#
# One trap: in many models the output layer and the embedding are *one* tensor. An adapter beside it is harmless; writing into it changes both places. What writes, PiSSA's start and merging, therefore
# refuses a shared weight.

# %%
#| export
def _require_own_weights(model, names, what):
    "ValueError if one of these layers holds a weight that another layer uses too."
    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    shared = [name for name in names if holders[id(model.get_submodule(name).weight)] > 1]
    require(
        not shared,
        f"{what} would write into the weight of {next(iter(shared), '')!r}, "
        "which another layer shares (tied embeddings); leave it out of target_modules, or untie the two",
    )


def add_lora(
    model: torch.nn.Module,  # a model without adapters; it is changed in place
    settings: LoRASettings,  # what the adapter looks like and where it goes; ValueError for what only peft can do
) -> torch.nn.Module:  # the same model; only the adapters are trainable
    "Freeze the model and put a LoRALinear around each target."
    targets = find_targets(model, settings.target_modules)
    _check_start(settings, targets)
    if settings.init_lora_weights == "pissa":
        _require_own_weights(model, targets, "PiSSA")
    model.requires_grad_(False)
    for name in targets:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(model.get_submodule(name), settings))  # type: ignore[arg-type]
    return model


# %% [markdown]
# A tiny Llama with random weights is enough to see it work, and to count what was really made:

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
settings = LoRASettings(r=4, lora_alpha=8)
ours = add_lora(copy.deepcopy(tiny), settings)
ours.model.layers[0].self_attn


# %% [markdown]
# What was promised, what was made, and that nothing but the two matrices wants a gradient. The first logits are those of the base model, to the last bit:

# %% tags=["check"]
def trainable_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


made = sum(p.numel() for p in ours.parameters() if p.requires_grad)
promised = lora_parameter_count(tiny, settings)
assert made == promised["trainable"] and sum(p.numel() for p in ours.parameters()) == promised["total"]
assert all(name.endswith(("lora_A", "lora_B")) for name in trainable_names(ours))

input_ids = torch.randint(0, 256, (2, 12))
# B is zero: still the base model
with torch.no_grad():
    assert torch.equal(ours(input_ids).logits, tiny(input_ids).logits)
assert "has LoRA already" in message(add_lora, ours, settings)
promised


# %% [markdown]
# ## The same as PEFT
#
# Runs train with `peft`, which also saves, loads and combines adapters. `peft_config` says the same settings in its words.

# %%
#| export
def peft_config(
    settings: LoRASettings,  # what the adapter looks like and where it goes
):  # a peft.LoraConfig for a causal language model; ImportError from peft for "loftq" without scipy
    "The same settings for peft: no bias is trained."
    from peft import LoftQConfig, LoraConfig

    targets, start = settings.target_modules, settings.init_lora_weights
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        bias="none",
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        target_modules=targets if targets == "all-linear" else _names(targets),
        task_type="CAUSAL_LM",
        init_lora_weights=True if start == "default" else start,
        **({"loftq_config": LoftQConfig(loftq_bits=4)} if start == "loftq" else {}),
    )


# %% [markdown]
# Is the layer above really what `peft` computes? We give both the same $A$ and the same $B$, neither of them zero, and compare the logits, the gradient of every
# adapter matrix, and the counts. The check allows a difference of one millionth, which is rounding. The adapters themselves change the logits by far more, so there is something to get wrong.
# [The chapter on variants](22_variants.ipynb) holds them all to the same measure.

# %% tags=["check"]
theirs = get_peft_model(copy.deepcopy(tiny), peft_config(settings))
twin = {
    f"base_model.model.{name.replace('lora_A', 'lora_A.default.weight').replace('lora_B', 'lora_B.default.weight')}": p
    for name, p in ours.named_parameters()
    if p.requires_grad
}
assert set(twin) == trainable_names(theirs)
with torch.no_grad():
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            p.normal_(std=0.1)
            twin[name].copy_(p)

answers = {label: model(input_ids, labels=input_ids) for label, model in (("ours", ours), ("peft", theirs))}
for answer in answers.values():
    answer.loss.backward()


def difference(a, b):
    return (a - b).abs().max().item()


gradient_gap = max(difference(twin[name].grad, p.grad) for name, p in theirs.named_parameters() if p.requires_grad)
logit_gap, changed = (
    difference(answers["ours"].logits, answers["peft"].logits),
    difference(answers["ours"].logits, tiny(input_ids).logits),
)

assert logit_gap < 1e-6 and gradient_gap < 1e-6
assert changed > 1e-3  # the adapters do something
# and every one of them has a gradient to compare
assert min(p.grad.abs().max() for p in twin.values()) > 1e-5
for s in (settings, SEED_LORA):
    count = lora_parameter_count(tiny, s)
    assert get_peft_model(copy.deepcopy(tiny), peft_config(s)).get_nb_trainable_parameters() == (
        count["trainable"],
        count["total"],
    )
dict(logit_gap=logit_gap, gradient_gap=gradient_gap, changed_by_adapter=changed)

# %% [markdown]
# ## Common errors
#
# **"Rank 16 means 16 dimensions are trained."** The rank is the inner width of the product $BA$. The change has the full shape, and all entries of the weight can move;
# they just cannot move independently. The hidden width of the model does not change.
#
# **"PEFT stands for performance", or "PEFT is LoRA".** It stands for *parameter-efficient fine-tuning*, a family of methods. LoRA is one of them, and `peft` is
# a library that has many.
#
# **"LoRA's learning rate is higher because of the biases."** It *is* higher: about ten times that of full fine-tuning in careful comparisons (Schulman et al. 2025, "LoRA Without Regret").
# But no bias is trained here, and a Llama has none. One reason is in the table on $\alpha/r$: at the same rate, the first step moves the
# output of an adapted layer much less than that of a fully trained one, because the step has to pass through a small, random $A$ and a $B$ that begins at zero.
#
# **"LoRA makes the model smaller or faster."** The base stays as large as it was, and the adapter adds a little work until it is merged. What
# gets smaller is the memory for *training*, and the file to keep for each character.
#
# **The optimizer was made before the adapter.** Then it holds the old, now frozen weights, and never sees $A$ and $B$. Nothing learns, and nothing complains. Adapter first, optimizer second.
#
# **Both matrices at zero, or one name misspelt among the targets.** Training runs, and less is learned than planned, or nothing. The checks above are for these.
#
# Two of these can be checked on the spot, the biases and the early optimizer:

# %% tags=["check"]
# a Llama has no bias
assert not [name for name, _ in smol.named_parameters() if name.endswith("bias")]
plain_model = copy.deepcopy(tiny)
# made before the adapter
too_early = torch.optim.AdamW(plain_model.parameters())
held = {id(p) for group in too_early.param_groups for p in group["params"]}
late = add_lora(plain_model, settings)
# it holds no adapter matrix
assert not any(id(p) in held for p in late.parameters() if p.requires_grad)
