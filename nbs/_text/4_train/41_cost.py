# %%
#| default_exp train.cost

# %% [markdown]
# # What it will cost
#
# > Memory, arithmetic and time of a training step, told before the weights are loaded.
#
# "Out of memory" comes late: after the download, after the loading, sometimes after an hour, when the first long batch comes by. Yet everything that decides it is known at the beginning: the shape of the model, what is trained, how many tokens a step sees. This chapter counts a training step without doing it, measures how fast this device is at such work, and says which setting would help if it does not fit. Runs use it before they begin, and show what was predicted beside what was measured.

# %%
#| export
import gc
import json
import math
import time
import weakref
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from simpsons_llm.data.packing import base_of, can_isolate, use_isolated
from simpsons_llm.machine.device import (
    Device,
    find_device,
    find_ranks,
    peak_memory_gib,
    reset_peak_memory,
    set_threads,
    synchronize,
)
from simpsons_llm.machine.job import in_process, require
from simpsons_llm.model.adapter import add_adapter, recompute_activations
from simpsons_llm.model.base import load_config, shape_of, short_config
from simpsons_llm.model.loss import ScoreLimit, default_limit, token_losses
from simpsons_llm.train.config import make_optimizer

if TYPE_CHECKING:
    from simpsons_llm.lora.layer import LoRASettings

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformers import LlamaConfig

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.job import chapters_dir, read_jsonl
from simpsons_llm.model.base import OPEN_LLAMA, SMOLLM2, TINY


# %% [markdown]
# ## What decides the cost
#
# Of all the settings of a run, these decide what a step costs. The lengths are those of the samples of one micro-batch; `learned` counts the positions at which a loss is computed, since only these need logits.

# %%
#| export
def book_lora():  # the settings of the chapter on LoRA, imported when they are needed
    "The adapter of the book: rank 16 on all linear layers."
    from simpsons_llm.lora.layer import LoRASettings

    return LoRASettings()


@dataclass(frozen=True)
class Recipe:
    "What a training step does, as far as it costs anything."

    lora: "LoRASettings | None" = field(default_factory=book_lora)  # the adapter; None: all weights are trained
    seq_lens: tuple = (512, 512)  # tokens of each sample of a micro-batch, each 1 or more
    learned: "int | None" = None  # positions at which a loss is computed; None: all
    packed: bool = True  # samples end to end; False: filled up to the longest
    gradient_accumulation_steps: int = 1  # micro-batches of one optimizer step
    gradient_checkpointing: bool = False  # compute activations again instead of keeping them
    quantization: str = "none"  # none; nf4: the base's linear layers in 4 bits
    compile: str = "none"  # as the chapter on speed does steps: graph (recorded), layers (compiled, too), none

    def __post_init__(self):
        object.__setattr__(self, "seq_lens", tuple(self.seq_lens))
        if isinstance(self.lora, dict):
            from simpsons_llm.lora.layer import LoRASettings

            object.__setattr__(self, "lora", LoRASettings(**self.lora))
        require(
            self.seq_lens and all(isinstance(n, int) and n > 0 for n in self.seq_lens),
            f"seq_lens={self.seq_lens} was given; expected the lengths of one sample or more, each at least 1",
        )
        require(
            self.gradient_accumulation_steps > 0,
            f"gradient_accumulation_steps={self.gradient_accumulation_steps} was given; expected 1 or more",
        )
        require(
            self.lora or self.quantization == "none",
            "quantization=nf4 was given without an adapter; "
            "4-bit weights cannot be trained, so give LoRA settings or quantization=none",
        )
        require(
            self.compile in ("none", "graph", "layers"),
            f"compile={self.compile!r} was given; expected none, graph, layers",
        )
        require(
            self.compile == "none" or self.packed and self.quantization == "none",
            f"compile={self.compile} was given; it needs samples end to end (packed) and quantization=none",
        )

    @property
    def tokens(self) -> int:
        "Real tokens of a micro-batch."
        return sum(self.seq_lens)

    @property
    def shape(self) -> tuple:
        "Rows and columns of a micro-batch, what is filled up included."
        return (1, self.tokens) if self.packed else (len(self.seq_lens), max(self.seq_lens))


# %% tags=["example"]
try:
    Recipe(lora=None, quantization="nf4")
except ValueError as e:
    print(e)
[Recipe(seq_lens=(300, 200), packed=packed).shape for packed in (True, False)]


# %% [markdown]
# ## A step without numbers
#
# PyTorch can run a program with tensors that have a shape, a type and a device, but no contents. A whole training step on such tensors takes a second or two, whatever the size of the model, and each operation behaves as it would with numbers: it makes outputs of the right size, and what the backward pass will need is kept alive. So memory can be *counted*: add up every tensor when it is made, take it off when it is dropped, and remember the largest sum. Nothing about the architecture has to be known, and no option can be forgotten in a formula.

# %%
#| export
def live_memory():
    "A context in which `now` and `peak` count the bytes of all tensors that are alive; `add` counts older ones."
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.now, self.peak, self.sizes = 0, 0, {}

        def add(self, tensor):
            storage = tensor.untyped_storage()  # views share one
            key = storage._cdata
            if key in self.sizes:
                return
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key)

        def drop(self, key):
            self.now -= self.sizes.pop(key, 0)

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.add(leaf)
            return out

    return Live()


# %% [markdown]
# A matrix product of 1,000 x 1,000 numbers, then its square root. Three tensors of 4 MB, of which one dies on the way:

# %% tags=["check"]
from torch._subclasses.fake_tensor import FakeTensorMode

with FakeTensorMode(), live_memory() as live:
    a = torch.empty(1000, 1000)
    b = a @ a
    b = b.sqrt()
    half = b[:500]  # a view costs nothing
print(f"{live.now / 4e6:.0f} alive, {live.peak / 4e6:.0f} at the peak, in units of 4 MB")
assert live.now == 8_000_000 and live.peak == 12_000_000


# %% [markdown]
# The model for it is made on the `meta` device, where its layers and its adapter get their shapes; then each shape becomes a tensor without contents on the real device. A step needs few layers: all layers of these models are alike, so one and two of them say what each further one adds.

# %%
#| export
def build(
    config,  # a transformers configuration
    recipe: Recipe,  # adapter, packing and checkpointing are used
    dtype: str,  # of the base: "float32" or "bfloat16"
    where,  # a torch.device; "meta" for shapes only
):  # a model with random weights, ready to be trained
    "The model that a recipe trains, but for its numbers."
    import torch
    from transformers import AutoModelForCausalLM

    kept_in = getattr(torch, dtype if recipe.lora else "float32")
    if where == "meta":
        model = shape_of(config, kept_in)
    else:
        with torch.device(where):
            model = AutoModelForCausalLM.from_config(config, dtype=kept_in)
    if recipe.packed:
        use_isolated(model)
    # another start costs nothing in a step
    if recipe.lora:
        model = add_adapter(model, replace(recipe.lora, init_lora_weights="default"))
    if recipe.gradient_checkpointing:
        recompute_activations(model)
    model.train()
    return model


# %%
#| export
def without_numbers(
    model,  # a model on the meta device
    where,  # a torch.device
):  # the same model; inside FakeTensorMode its tensors live there, without contents
    "Move a model from the meta device to a device, as shapes only."
    import torch

    made = {}

    def fake(p):
        return torch.empty(p.shape, dtype=p.dtype, device=where)

    for module in model.modules():
        for name, p in module._parameters.items():
            if p is None:
                continue
            # tied weights stay one
            if p not in made:
                made[p] = torch.nn.Parameter(fake(p), requires_grad=p.requires_grad)
            module._parameters[name] = made[p]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = fake(b)
    return model


# %% [markdown]
# open_llama_3b in full, 14 GB in 32 bits, moved to the CPU in no time:

# %% tags=["example"]
shapes = build(load_config(OPEN_LLAMA), Recipe(lora=None), "float32", "meta")
before = shapes.device
with FakeTensorMode(allow_non_fake_inputs=True):
    shapes = without_numbers(shapes, torch.device("cpu"))
f"from {before} to {shapes.device}: {sum(p.nbytes for p in shapes.parameters()) / 1e9:.1f} GB, none of them filled"


# %% [markdown]
# The step itself: the loss of [the chapter on evaluation](../3_model/34_loss.ipynb), backward, clipping, AdamW. The same function runs below with real numbers, to measure time.

# %%
#| export
def make_batch(
    recipe: Recipe,  # lengths and layout
    where,  # a torch.device
) -> dict:  # what a collator would make, with zeros for tokens
    "A micro-batch of the recipe's shape."
    import torch

    rows, columns = recipe.shape
    learned = min(columns - 1, recipe.learned or columns - 1)
    batch: dict = {
        "input_ids": torch.zeros(rows, columns, dtype=torch.long, device=where),
        "loss_weights": torch.ones(rows, columns, device=where),
        "keep": torch.arange(max(learned, 1), device=where),
    }
    if recipe.packed:
        ends = torch.tensor(
            [sum(recipe.seq_lens[:i]) for i in range(len(recipe.seq_lens) + 1)], dtype=torch.int32, device=where
        )
        batch |= {
            "position_ids": torch.cat([torch.arange(n, device=where) for n in recipe.seq_lens])[None],
            "cu_seqlens": ends,
            "seq_lens": recipe.seq_lens,
        }
    return batch


def micro_step(
    model,  # a model in training mode
    batch: dict,  # a micro-batch
    dtype: str,  # "bfloat16": computed under autocast
    between=lambda: None,  # called after the forward pass, while everything that it kept is alive
):
    "Forward and backward of one micro-batch."
    import torch

    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        losses, weights = token_losses(model, batch)
    loss = (losses * weights).sum()
    del losses
    between()
    loss.backward()


def update(
    model,  # a model with gradients
    optimizer,  # its optimizer
):
    "Clip, step, clear."
    import torch

    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()


# %% tags=["example"]
make_batch(Recipe(seq_lens=(3, 2), learned=3), "cpu")


# %% [markdown]
# ### What a compiler keeps
#
# [The chapter on speed](46_speed.ipynb) compiles the decoder layers, and a compiled layer keeps less for its backward pass. Of two tensors that tell the same, the smaller one is kept; what is cheap to compute (a norm, an activation function, a change of the number format) is computed again. A part of the compiler decides this, the *partitioner*: it cuts the graph of a layer in two where the fewest bytes pass from forward to backward. For that it needs shapes only, so it can be asked, here and on any machine. The layer is traced and cut as the compiler would do it; then both halves run operation by operation, without the kernels that would be made of them, and are counted like everything else.
#
# One kind of tensor is not as large on a CPU as elsewhere: the mask of dropout, which a CPU keeps as numbers and an accelerator as bytes. Where a CPU stands in, it has to use the accelerator's operation.

# %%
#| export
def cut_layers(
    model,  # with tensors that have no numbers, perhaps with an adapter; inside FakeTensorMode
):
    "From now on each decoder layer keeps what it would keep compiled; where no layers are found, nothing changes."
    from functorch.compile import aot_function, min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch.func import functional_call
    from torch.fx import Interpreter
    from torch.nn import Module

    def run(graph, args):
        return Interpreter(graph).boxed_run(args)

    def by_operation(graph, _):
        half: Any = partial(run, graph)
        half._boxed_call = True  # it takes a list and empties it, so that each tensor goes when it was used last
        return half

    def cut(layer):
        plain = Module()
        plain.layer, plain.forward = layer, layer.forward
        weights = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
        halves = aot_function(
            lambda weights, args, kwargs: functional_call(plain, weights, args, kwargs),
            by_operation,
            by_operation,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        layer.forward = lambda *args, **kwargs: halves(weights, args, kwargs)

    inner = base_of(model)
    for layer in getattr(getattr(inner, "model", inner), "layers", []):
        cut(layer)


def mask_in_bytes(
    model,  # a model whose tensors have no numbers
):
    "Dropout that keeps its mask as an accelerator does, a byte for each number, on a CPU that stands in for one."
    import torch

    def draw(x, p):
        return torch.native_dropout(x, p, True)[0]

    dropouts: list[Any] = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    for module in dropouts:
        module.forward = partial(draw, p=module.p)


# %% [markdown]
# Now a step can be counted. Its first run makes the optimizer's averages; the second is the one that counts. With accumulation it has two micro-batches, since the gradients of the first are still there when the second is computed. PyTorch's own counter adds up the arithmetic of the matrix products on the way. Attention is left out there, because not every kernel is known to it, and added by its formula: for $n$ tokens with a causal mask, $2 n^2 D$ operations forward, where $D$ is the width of all heads together, and twice that backward.

# %%
#| export
def counted_on(
    device: Device,  # what is asked about
):  # a torch.device: its own, or the CPU where this machine has no such device, whose tensors are as large
    "Where tensors without numbers live."
    import torch

    here = torch.accelerator.current_accelerator(check_available=True)
    return device.torch if here is not None and here.type == device.type else torch.device("cpu")


def count_step(
    config,  # a transformers configuration
    recipe: Recipe,  # what a step does
    device: Device,  # where, and in which number format
) -> dict:  # bytes of weights, gradients, optimizer, activations and peak; flop of a micro-batch
    """Memory and arithmetic of a step, counted without doing it.

    Activations are what is alive after the forward pass. Attention is left out of flop. Where layers are compiled and
    computed again (checkpointing), they are counted as if they were not compiled: then they hardly differ."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    found: dict[str, int] = {}
    model = build(config, recipe, device.dtype, "meta")
    # the same without boundaries; the library's own way builds a mask where it sees no numbers
    if not can_isolate(model):
        use_isolated(model)
    cut = recipe.compile == "layers" and not recipe.gradient_checkpointing
    # a CPU can be asked everywhere
    where = torch.device("cpu") if cut else counted_on(device)
    # steps that may be recorded clear their gradients and keep them: as if there had been a micro-batch before
    micro_steps = min(2, recipe.gradient_accumulation_steps) if recipe.compile == "none" else 2
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = without_numbers(model, where)
        one = recipe
        if where.type != device.type:
            mask_in_bytes(model)
            # an accelerator's attention kernel takes all sequences of a row at once: one will do
            one = replace(recipe, seq_lens=(recipe.tokens,)) if recipe.packed else recipe
        live, flops = live_memory(), FlopCounterMode(display=False)
        for t in (*model.parameters(), *model.buffers()):
            live.add(t)
        trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        weights = live.now
        optimizer, batch = make_optimizer(model, 1e-5, fused=device.type != "cpu"), make_batch(one, where)
        if cut:  # traced before anything is counted
            cut_layers(model)
            micro_step(model, batch, device.dtype)
            optimizer.zero_grad()
        with live:
            with flops:
                micro_step(model, batch, device.dtype)
            update(model, optimizer)
            averages, live.peak = sum(v.nbytes for state in optimizer.state.values() for v in state.values()), live.now
            for _ in range(micro_steps):
                before = live.now
                micro_step(model, batch, device.dtype, lambda: found.update(activations=live.now - before))
            update(model, optimizer)
        matmul = sum(
            n
            for op, n in flops.get_flop_counts().get("Global", {}).items()
            if "attention" not in str(op) and "attn" not in str(op)
        )
        return {
            "weights": weights,
            "gradients": trained,
            "optimizer": averages,
            "peak": live.peak,
            "flop": matmul,
            **found,
        }


# %% [markdown]
# The tiny model with an adapter, in kilobytes. The activations are most of it:

# %% tags=["example"]
cpu = find_device("cpu", "float32")
counted = count_step(load_config(TINY), Recipe(seq_lens=(300, 200)), cpu)
{name: round(value / 1e3) for name, value in counted.items() if name != "flop"}


# %% [markdown]
# What is known of two depths tells of every depth. The same function serves below, where depths are timed.

# %%
#| export
def depths(
    layers: int,  # of the whole model
    few: int,  # layers of a short model
    more: int,  # layers of a longer one
) -> tuple:  # which depths to look at
    "Two depths that tell of all; a model that is not deeper is looked at itself."
    return (few, more) if layers > more else (layers,)


def extrapolate(
    found: dict,  # number of layers -> numbers of a model with so many; one entry, or two
    wanted: int,  # layers of the whole model
) -> dict:  # the numbers of the whole model
    "What each further layer adds, added as often as there are layers."
    (few, first), (more, second) = min(found.items()), max(found.items())
    return {k: v + (second[k] - v) / max(more - few, 1) * (wanted - few) for k, v in first.items()}


def count(
    config,  # a transformers configuration
    recipe: Recipe,  # what a step does
    device: Device,  # where, and in which number format
) -> dict:  # as `count_step`, for all layers
    """A step of the whole model, counted with one and two of its layers.

    Layers that cannot be cut as a compiler would do it are counted as they are: that is more."""
    layers = config.num_hidden_layers

    def by_layers(recipe):
        return extrapolate(
            {n: count_step(short_config(config, n), recipe, device) for n in depths(layers, 1, 2)}, layers
        )

    try:
        found = by_layers(recipe)
    except Exception:
        if recipe.compile != "layers":
            raise
        found = by_layers(replace(recipe, compile="graph"))
    saved = squeezed(config, device.dtype) if recipe.quantization == "nf4" else 0
    return {**found, "weights": found["weights"] - saved, "peak": found["peak"] - saved}


# %% [markdown]
# One and two layers stand for all of them. Do they? The tiny model, with six layers, counted whole, and counted by one and two:

# %% tags=["check"]
six = short_config(load_config(TINY), 2)
six.num_hidden_layers = 6
for recipe in (
    Recipe(seq_lens=(300, 200)),
    Recipe(lora=None, seq_lens=(64, 50), packed=False, gradient_accumulation_steps=4),
):
    whole, told = count_step(six, recipe, cpu), count(six, recipe, cpu)
    assert all(abs(whole[k] / told[k] - 1) < 0.02 for k in whole), (whole, told)
pd.DataFrame({"counted whole": whole, "by one and two layers": told}).astype(int)

# %% [markdown]
# A base in 4 bits is counted as it would be in 16 or 32, and what it saves is taken off: each weight of the linear layers takes half a byte and its share of the scales.

# %%
#| export
# a weight in 4 bits, for each 64 a scale in 8 bits, for each 256 of those a number in 32
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def squeezed(
    config,  # a transformers configuration
    dtype: str,  # what the base would be in
) -> float:  # bytes saved
    "What 4-bit weights save: all linear layers but the output layer."
    from simpsons_llm.lora.layer import find_targets

    numbers = sum(rows * columns for rows, columns in find_targets(shape_of(config), "all-linear").values())
    return numbers * ((2 if dtype == "bfloat16" else 4) - NF4_BYTES)


# %% tags=["example"]
f"{OPEN_LLAMA}: {squeezed(load_config(OPEN_LLAMA), 'bfloat16') / 2**30:.1f} GiB saved of 6.4 in 16 bits"

# %% [markdown]
# ## How fast is this device?
#
# A step's time is its arithmetic over the rate of the device, but that rate is not one number: it depends on the widths of the layers, on the tokens at once, on what the kernels reach, and for a small model on how fast Python can start them. So the rate is measured on the work itself. A model of the same widths with two layers and random weights does the very step above, then one with ten. The difference is what eight layers cost; the rest is what embedding, output layer and the fixed costs of a step take.
#
# On a CPU the operating system counts memory, and it counts more than the tensors. The allocator of the C library gives large blocks back to the system, but cannot always use the holes between smaller ones again. How much is lost depends on its version; so the peak of the process is measured in the same way, in a process of its own for each depth, which leaves this one clean.

# %%
#| export
DEPTHS = (2, 10)  # layers of the two models that are measured


def measure_steps(
    config,  # a transformers configuration
    recipe: Recipe,  # what a step does
    device: Device,  # where
    least_s: float = 1.5,  # measure at least this long, and three steps
) -> dict:  # micro_s and update_s in seconds (medians), peak: bytes above the start
    "Training steps of a model with random weights, timed, on this device."
    from statistics import median

    reset_peak_memory(device)
    start = peak_memory_gib(device)
    model = build(config, recipe, device.dtype, device.torch)
    optimizer, batch = make_optimizer(model, 1e-5, fused=device.type != "cpu"), make_batch(recipe, device.torch)
    micro: list[float] = []
    updates: list[float] = []

    def timed(f, *args):
        synchronize(device)
        begin = time.perf_counter()
        f(*args)
        synchronize(device)
        return time.perf_counter() - begin

    # libraries are loaded, kernels chosen
    for _ in range(2):
        micro_step(model, batch, device.dtype)
        update(model, optimizer)
    begin = time.perf_counter()
    while len(updates) < 3 or time.perf_counter() - begin < least_s:
        for _ in range(min(2, recipe.gradient_accumulation_steps)):
            micro.append(timed(micro_step, model, batch, device.dtype))
        updates.append(timed(update, model, optimizer))
    return {"micro_s": median(micro), "update_s": median(updates), "peak": (peak_memory_gib(device) - start) * 2**30}


def measure_alone(
    config: dict,  # a transformers configuration as `to_dict` gives it
    recipe: dict,  # a `Recipe` as a dict
    dtype: str,  # "float32" or "bfloat16"
) -> dict:  # as `measure_steps`
    "Measure on the CPU in a process that does nothing else."
    import transformers.models.llama.modeling_llama  # noqa: F401  imported before memory is counted
    from transformers import AutoConfig

    set_threads(find_ranks())
    return measure_steps(
        AutoConfig.for_model(config.pop("model_type"), **config), Recipe(**recipe), find_device("cpu", dtype)
    )


def measure(
    config,  # a transformers configuration
    recipe: Recipe,  # what a step does
    device: Device,  # where
) -> dict:  # micro_s, update_s and peak of the whole model
    "How long a step will take on this device, measured on few layers."
    layers, found = config.num_hidden_layers, {}
    for n in depths(layers, *DEPTHS):
        short = short_config(config, n)
        if device.type == "cpu":
            found[n] = in_process(
                "train.cost:measure_alone",
                config=json.loads(short.to_json_string(use_diff=False)),
                recipe=asdict(recipe),
                dtype=device.dtype,
            )
        else:
            import torch

            found[n] = measure_steps(short, recipe, device)
            gc.collect()
            getattr(torch, device.type).empty_cache()
    return extrapolate(found, layers)


# %% [markdown]
# Of a model with 26 layers two depths are timed; one with six is timed as it is:

# %% tags=["example"]
{layers: depths(layers, *DEPTHS) for layers in (26, 6)}


# %% [markdown]
# ## The estimate
#
# Put together: counts for everything, and, where it was measured, time. Memory is what `peak_memory_gib` will show: tensors on a GPU; on a CPU the whole process, so what it uses already comes on top.

# %%
#| export
@dataclass(frozen=True)
class Estimate:
    "What a training step will cost, on one rank."

    trainable: int  # parameters that are trained
    total: int  # all parameters, the adapter's included
    weights_gib: float  # the model and its buffers
    gradients_gib: float  # one number for each trained one
    optimizer_gib: float  # AdamW: two numbers for each trained one
    activations_gib: float  # kept by the forward pass for the backward pass, logits included
    peak_mem_gib: float  # most in use at once; not the sum of the above, which do not all peak together
    flop_per_token: float  # floating point operations for each real token, with what checkpointing repeats
    tokens: int  # real tokens of an optimizer step
    in_use_gib: float = 0.0  # part of the peak that this process used already; 0 on a GPU
    step_s: "float | None" = None  # seconds of an optimizer step; None: not measured
    tokens_per_s: "float | None" = None  # real tokens a second
    tflop_per_s: "float | None" = None  # the rate that comes to, in 10^12 operations a second

    def table(self) -> dict:  # name -> value with its unit, for people
        "The estimate, readable."
        gib = {
            n.removesuffix("_gib").replace("_mem", " memory"): f"{getattr(self, n):.3f} GiB"
            for n in ("weights_gib", "gradients_gib", "optimizer_gib", "activations_gib", "peak_mem_gib")
        }
        out = {
            "trainable parameters": f"{self.trainable:,} of {self.total:,} ({self.trainable / self.total:.2%})",
            **gib,
            "arithmetic": f"{self.flop_per_token / 1e9:.3g} GFLOP per token",
        }
        if self.step_s:
            out |= {
                "time of a step": f"{self.step_s:.3g} s for {self.tokens:,} tokens",
                "speed": f"{self.tokens_per_s:,.0f} tokens/s ({self.tflop_per_s:.3g} TFLOP/s)",
            }
        return out


# %% [markdown]
# Parameters are counted on the shape of the whole model:

# %%
#| export
def parameter_counts(
    config,  # a transformers configuration
    recipe: Recipe,  # its adapter is used
) -> tuple:  # (trainable, all)
    "Parameters of the whole model, from its shape."
    from simpsons_llm.lora.layer import lora_parameter_count

    model = shape_of(config)
    if recipe.lora:
        return tuple(lora_parameter_count(model, recipe.lora)[k] for k in ("trainable", "total"))
    return (sum(p.numel() for p in model.parameters()),) * 2


def estimate(
    model,  # a transformers configuration, or a name as for `load_base`
    recipe: Recipe,  # what a step does
    device: Device,  # where, and in which number format
    timed: bool = False,  # measure this device too: seconds on a GPU, about half a minute on a CPU
) -> Estimate:  # on a CPU without `timed`, peak memory is a lower bound: tensors, and what the process uses now
    "What a training step of this model will cost on this device."
    config = load_config(model, device.type) if isinstance(model, str) else model
    counts, (trainable, total) = count(config, recipe, device), parameter_counts(config, recipe)
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = (
        6
        * config.num_hidden_layers
        * config.num_attention_heads
        * heads
        * sum(n * n for n in (recipe.seq_lens if recipe.packed else [recipe.shape[1]] * recipe.shape[0]))
    )
    flop, in_use = counts["flop"] + attention, 0.0
    # counted anew, the peak is what is in use
    if device.type == "cpu":
        reset_peak_memory(device)
        in_use = peak_memory_gib(device)
    sizes = {f"{k}_gib": counts[k] / 2**30 for k in ("weights", "gradients", "optimizer", "activations")}
    told = Estimate(
        trainable,
        total,
        **sizes,
        peak_mem_gib=counts["peak"] / 2**30 + in_use,
        in_use_gib=in_use,
        flop_per_token=flop / recipe.tokens,
        tokens=recipe.tokens * recipe.gradient_accumulation_steps,
    )
    return with_time(told, config, recipe, device) if timed else told


def with_time(
    told: Estimate,  # what `estimate` counted
    config,  # the same transformers configuration
    recipe: Recipe,  # the same recipe
    device: Device,  # the same device
) -> Estimate:  # with time and speed; on a CPU the peak is that of a process
    "Add what this device's speed makes of an estimate."
    m = measure(config, recipe, device)
    step_s = m["micro_s"] * recipe.gradient_accumulation_steps + m["update_s"]
    peak = max(told.peak_mem_gib, m["peak"] / 2**30 + told.in_use_gib) if device.type == "cpu" else told.peak_mem_gib
    return replace(
        told,
        peak_mem_gib=peak,
        step_s=step_s,
        tokens_per_s=told.tokens / step_s,
        tflop_per_s=told.flop_per_token * told.tokens / step_s / 1e12,
    )


# %% [markdown]
# open_llama_3b with the adapter of the book. (The peak is left out: what this process uses already is part of it.)

# %% tags=["example"]
table = estimate(OPEN_LLAMA, Recipe(), cpu).table()
{name: value for name, value in table.items() if name != "peak memory"}


# %% [markdown]
# ### What takes the memory
#
# SmolLM2-135M, two scenes of 512 tokens at once, in four ways. The bars show each part at its largest, the black line the peak of the step. The two differ: the gradients of the weights come while the activations go, and for a moment the gradients of the logits need room as well.

# %%
#| export
def plot_memory(
    estimates: dict,  # name -> `Estimate`
    ax=None,  # matplotlib axes; None: make some
):  # the axes
    "What each way of training keeps in memory, and its peak."
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6.4, 0.6 * len(estimates) + 1.2))[1]
    left, names = [0.0] * len(estimates), list(estimates)
    for part, color in (
        ("weights", "#b8c4d6"),
        ("optimizer", "#4f86c6"),
        ("activations", "#f2c500"),
        ("gradients", "#c0504d"),
    ):
        widths = [getattr(e, f"{part}_gib") for e in estimates.values()]
        ax.barh(names, widths, left=left, color=color, label=part)
        left = [a + b for a, b in zip(left, widths)]
    for i, e in enumerate(estimates.values()):
        ax.plot(
            [e.peak_mem_gib - e.in_use_gib] * 2,
            [i - 0.42, i + 0.42],
            color="black",
            lw=2,
            label="peak" if i == 0 else None,
        )
    ax.invert_yaxis()
    ax.set_xlabel("GiB")
    ax.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.4, 1.0), fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.figure.tight_layout()
    return ax


# %% tags=["example"]
two = dict(seq_lens=(512, 512))
ways = {
    "full": Recipe(lora=None, **two),
    "LoRA, all linear": Recipe(**two),
    "LoRA, q and k": Recipe(lora=LoRASettings(8, 16, 0.0, "q_proj,k_proj"), **two),
    "LoRA, checkpointing": Recipe(gradient_checkpointing=True, **two),
}
costs = {name: estimate(SMOLLM2, recipe, cpu) for name, recipe in ways.items()}
plot_memory(costs)
plt.show()
pd.DataFrame(
    {
        name: {k: getattr(e, k) for k in ("weights_gib", "gradients_gib", "optimizer_gib", "activations_gib")}
        | {"peak": e.peak_mem_gib - e.in_use_gib, "GFLOP/token": e.flop_per_token / 1e9}
        for name, e in costs.items()
    }
).T.round(3)

# %% [markdown]
# LoRA does away with gradients and averages, as [the chapter on LoRA](../2_lora/20_layer.ipynb) promised. It does little for the activations: to reach the adapters of the first layer, the backward pass has to go through all layers above. They are the largest part here, and what checkpointing is for: it keeps the input of each layer only and computes the rest again, for more arithmetic.
#
# The counts against what can be worked out by hand: four bytes for a number, eight for its two averages; two operations for each weight and token forward, and as many backward for what is frozen, twice as many for what is trained.

# %% tags=["check"]
for e in costs.values():
    assert abs(e.gradients_gib - 4 * e.trainable / 2**30) < 1e-6 and abs(e.optimizer_gib - 2 * e.gradients_gib) < 1e-4
    assert e.peak_mem_gib - e.in_use_gib > e.weights_gib + e.optimizer_gib + e.activations_gib
config = load_config(SMOLLM2)
# no adapter; the tied output layer counts once and is used once
trained = parameter_counts(config, Recipe(lora=None))[0]
# matrix products, and attention over 512 tokens
by_hand = 6 * trained + 6 * config.num_hidden_layers * config.hidden_size * 512
print(f"full, per token: {costs['full'].flop_per_token / 1e9:.4f} GFLOP counted, {by_hand / 1e9:.4f} by hand")
assert abs(costs["full"].flop_per_token / by_hand - 1) < 0.01
assert costs["LoRA, all linear"].flop_per_token < 0.8 * costs["full"].flop_per_token
assert costs["LoRA, checkpointing"].activations_gib < 0.2 * costs["LoRA, all linear"].activations_gib

# %% [markdown]
# Ranks that hold the whole model each must exchange their gradients, and that takes a copy of them: DDP sends them in *buckets* that are there all the time; the loop by hand lays them end to end when the backward pass is done, and its activations are gone by then. For an adapter that is nothing. For a model of 3.4 billion parameters trained in full it is 12.8 GiB.

# %%
#| export
EXCHANGES = ("none", "buckets", "flat")


def exchanged(
    told: Estimate,  # what `estimate` told of one process alone
    how: str = "buckets",  # none: one process; buckets: as DDP does it; flat: as the loop by hand does it
) -> Estimate:  # with the memory of the exchange
    """An estimate for one of several ranks that hold the whole model each.

    Buckets are a second copy of the gradients at all times; flat, it is there only when activations are gone."""
    require(how in EXCHANGES, f"how={how!r} was given; expected {', '.join(EXCHANGES)}")
    # in the loop, between the backward pass and the step
    after = told.in_use_gib + told.weights_gib + 2 * told.gradients_gib + told.optimizer_gib
    peak = {
        "none": told.peak_mem_gib,
        "buckets": told.peak_mem_gib + told.gradients_gib,
        "flat": max(told.peak_mem_gib, after),
    }
    return replace(told, peak_mem_gib=peak[how])


# %% [markdown]
# Two H200 trained SmolLM2 in full. What was told then left the buckets out; the gradients come to 0.50 GiB (134.5 million numbers of 4 bytes):

# %% tags=["example"]
kept = [
    r
    for r in read_jsonl(chapters_dir() / "_results" / "gpu_several.jsonl")
    if r["kind"] == "run" and r["mode"] == "full" and not r["sharded"] and r["world_size"] == 2 and r["base"] == SMOLLM2
]
pd.DataFrame(
    [
        {
            "device": f"2 x {r['device']}",
            "told, no buckets": r["predicted_gib"],
            "with buckets": r["predicted_gib"] + 134_515_008 * 4 / 2**30,
            "measured, GiB": r["peak_mem_gib"],
        }
        for r in kept
    ]
).round(2)

# %% tags=["check"]
assert (
    all(
        abs(r["predicted_gib"] + 134_515_008 * 4 / 2**30 - r["peak_mem_gib"])
        < 0.03 * r["peak_mem_gib"]
        < r["peak_mem_gib"] - r["predicted_gib"]
        for r in kept
    )
    and kept
)
alone = Estimate(
    8,
    8,
    weights_gib=1,
    gradients_gib=1,
    optimizer_gib=2,
    activations_gib=3,
    peak_mem_gib=6.5,
    flop_per_token=1,
    tokens=1,
    in_use_gib=0.25,
)
assert [exchanged(alone, how).peak_mem_gib for how in EXCHANGES] == [6.5, 7.5, 6.5] and exchanged(
    replace(alone, peak_mem_gib=5), "flat"
).peak_mem_gib == 5.25


# %% [markdown]
# Ranks that share the model (FSDP) hold a part each of weights, gradients and optimizer, and borrow one layer after the other for as long as it computes. What is borrowed is not counted here, so this is a lower bound; for a model of many layers it comes close.

# %%
#| export
def in_parts(
    told: Estimate,  # what `estimate` told of the whole model
    parts: int,  # ranks that share it, 1 or more
) -> Estimate:  # what one of them holds
    "An estimate for one of several ranks that share the model."
    kept = {n: getattr(told, n) / parts for n in ("weights_gib", "gradients_gib", "optimizer_gib")}
    return replace(told, **kept, peak_mem_gib=told.peak_mem_gib - sum(getattr(told, n) - k for n, k in kept.items()))


# %% tags=["check"]
whole = Estimate(10, 10, 1.0, 1.0, 2.0, 0.5, 4.4, 1.0, 8)
assert (
    in_parts(whole, 1) == whole
    and abs(in_parts(whole, 4).peak_mem_gib - 1.4) < 1e-9
    and in_parts(whole, 4).optimizer_gib == 0.5
)
{n: round(in_parts(whole, n).peak_mem_gib, 2) for n in (1, 2, 4, 8)}  # ranks -> GiB of one of them

# %% [markdown]
# ### A step that is recorded
#
# [The chapter on speed](46_speed.ipynb) records a step as a graph of the device. Then the gradients stay where they are, from step to step, which the count knows; and while it is recorded, a copy of what is trained is kept, so that recording changes nothing. For an adapter that is little; for half a billion parameters, the most that is recorded, it is 2 GiB.

# %%
#| export
MOST_RECORDED = 500_000_000  # parameters that are trained; a step of more is not recorded


def recorded_step(
    told: Estimate,  # what `estimate` told
    recipe: Recipe,  # the same step
) -> Estimate:
    "An estimate with the copy that recording needs, where the step may be recorded."
    if recipe.compile == "none" or told.trainable > MOST_RECORDED:
        return told
    return replace(told, peak_mem_gib=told.peak_mem_gib + told.gradients_gib)


# %% tags=["check"]
graph = Recipe(compile="graph")
assert recorded_step(whole, graph).peak_mem_gib == whole.peak_mem_gib + 1 and recorded_step(whole, Recipe()) == whole
assert recorded_step(replace(whole, trainable=MOST_RECORDED + 1), graph).peak_mem_gib == whole.peak_mem_gib


# %% [markdown]
# Is what compiled layers keep told rightly? One H200 says what it used, for a model of open_llama_3b's shape in three ways of training: the predecessor's adapter on query and key with 128 rows at once, the book's with 32 scenes, and all weights. The first row is Trainer, without a compiler. What was in use before a run is taken off, and `uncompiled` is what would be told without asking the partitioner.

# %% tags=["example"]
def beside(row):
    device, recipe = replace(cpu, type="cuda", name=row["device"], dtype="bfloat16"), Recipe(**row["recipe"])
    ways = {"predicted": recipe, "uncompiled": replace(recipe, compile=recipe.compile.replace("layers", "graph"))}
    told = {k: recorded_step(estimate(LlamaConfig(**row["shape"]), r, device), r).peak_mem_gib for k, r in ways.items()}
    measured = row["peak_mem_gib"] - row["left_gib"]  # what was in use before the run is not the step's
    return {"measured": measured, **told, "predicted / measured": told["predicted"] / measured}


kept = read_jsonl(chapters_dir() / "_results" / "compiled_memory.jsonl")
found = pd.DataFrame({row["name"]: beside(row) for row in kept}).T
print(", ".join(str(kept[0][k]) for k in ("device", "torch", "date")))
found.round(2)

# %% [markdown]
# Compiled, the first adapter's step needs 67 GiB in place of 86, and is told within 1 %, like the others; without the partitioner the prediction would be 14 to 31 % too high. With checkpointing only the input of each layer is kept, so the compiler has little to leave out; there the plain count stands, 5 % too high. This table was counted on a CPU, which does not fill up heads of 100 numbers to 104, as the card's attention kernel wants them: counted on the card, Trainer's row says 85.8. Compiled layers are asked on a CPU everywhere.

# %% tags=["check"]
layers = [row["name"] for row in kept if row["recipe"]["compile"] == "layers"]
assert found["predicted / measured"].between(0.98, 1.05).all() and len(layers) >= 4
assert found.loc["large seed layers", "uncompiled"] > 1.2 * found.loc["large seed layers", "measured"]


# %% [markdown]
# ## Will it fit, and what would make it fit?
#
# A run that cannot fit is refused before anything is downloaded or loaded. "Cannot" means that the tensors alone, and what the process uses already, are more than the device has; of a GPU a twentieth is left for its own libraries. The sentence that refuses it says which single setting would make it fit, the mildest first: compiled layers and fewer samples at once (with more micro-batches for the same step) change nothing that is learned; checkpointing costs time; an adapter, 4 bits or shorter samples change the result.

# %%
#| export
def room_gib(
    device: Device,  # its `memory_gib` counts
) -> float:  # GiB; inf where the system does not say
    "Memory that a run may use."
    if math.isnan(device.memory_gib):
        return math.inf
    return device.memory_gib * (1 if device.type == "cpu" else 0.95)


def milder(
    recipe: Recipe,  # what does not fit
) -> list:  # (the settings in words, the `Recipe`)
    "Recipes that need less memory, the mildest change first."
    longest, n = max(recipe.seq_lens), len(recipe.seq_lens)
    single = replace(
        recipe,
        seq_lens=(longest,),
        learned=recipe.learned and math.ceil(recipe.learned * longest / recipe.tokens),
        gradient_accumulation_steps=recipe.gradient_accumulation_steps * n,
    )
    lora = recipe.lora or book_lora()
    ways = [
        ("compile=layers", replace(recipe, compile="layers"), recipe.compile == "graph"),
        ("micro_batch_size=1", single, n > 1),
        (
            "compile=layers and micro_batch_size=1",
            replace(single, compile="layers"),
            n > 1 and recipe.compile == "graph",
        ),
        (
            "gradient_checkpointing=true",
            replace(recipe, gradient_checkpointing=True),
            not recipe.gradient_checkpointing,
        ),
        (
            "micro_batch_size=1 and gradient_checkpointing=true",
            replace(single, gradient_checkpointing=True),
            n > 1 and not recipe.gradient_checkpointing,
        ),
        ("mode=lora", replace(recipe, lora=lora), recipe.lora is None),
        (
            "mode=lora, micro_batch_size=1 and gradient_checkpointing=true",
            replace(single, lora=lora, gradient_checkpointing=True),
            recipe.lora is None,
        ),
        (
            "quantization=nf4, micro_batch_size=1 and gradient_checkpointing=true",
            replace(single, lora=lora, gradient_checkpointing=True, quantization="nf4", compile="none"),
            recipe.quantization == "none",
        ),
    ]
    short = [
        (
            f"max_seq_len={k}, micro_batch_size=1 and gradient_checkpointing=true",
            replace(single, seq_lens=(k,), learned=min(single.learned or k, k), gradient_checkpointing=True),
            k < longest,
        )
        for k in (1024, 512, 256, 128)
    ]
    return [(words, r) for words, r, possible in (*ways, *short) if possible]


def on_rank(
    config,  # a transformers configuration
    recipe: Recipe,  # what a step does
    device: Device,  # where
    parts: int = 1,  # ranks that share weights, gradients and optimizer, 1 or more
    exchange: str = "none",  # how ranks that hold the whole model each exchange gradients, one of EXCHANGES
) -> Estimate:
    "What a step costs on one of several ranks."
    return recorded_step(exchanged(in_parts(estimate(config, recipe, device), parts), exchange), recipe)


def require_room(
    model,  # a transformers configuration, or a name
    recipe: Recipe,  # what a step does
    device: Device,  # where; its `memory_gib` is the limit
    parts: int = 1,  # ranks that share weights, gradients and optimizer, 1 or more
    exchange: str = "none",  # how ranks that hold the whole model each exchange gradients, one of EXCHANGES
) -> Estimate:  # the estimate; ValueError, with a setting that would fit, where the run cannot
    "Refuse a run that cannot fit."
    config = load_config(model, device.type) if isinstance(model, str) else model

    def tell(r):
        return on_rank(config, r, device, parts, exchange)

    told = tell(recipe)
    if told.peak_mem_gib <= room_gib(device):
        return told
    helps = next((words for words, r in milder(recipe) if tell(r).peak_mem_gib <= room_gib(device)), None)
    raise ValueError(
        f"a step of this run needs at least {told.peak_mem_gib:.1f} GiB "
        f"and {device.name} has {room_gib(device):.1f} GiB to give; "
        + (f"it would fit with {helps}" if helps else "no setting of this model would fit; use a smaller base model")
    )


# %% [markdown]
# open_llama_3b on a machine with 16 GiB, trained in full, and with too many samples at once:

# %% tags=["check"]
laptop = replace(cpu, name="a machine of 16 GiB", memory_gib=16.0)
said = []
for recipe in (Recipe(lora=None, **two), Recipe(seq_lens=(512,) * 4)):
    try:
        require_room(OPEN_LLAMA, recipe, laptop)
        raise AssertionError
    except ValueError as e:
        said.append(str(e))
        print(e, end="\n\n")
assert all("GiB" in text and "would fit" in text for text in said)
assert require_room(SMOLLM2, Recipe(**two), laptop).peak_mem_gib < 16

# %% [markdown]
# ## What else fits
#
# How many samples at once should a rank compute? As many as there is room for: an accelerator is faster with more, and what is learned is the same, since the global batch stays. Room means some three fifths of the memory. The rest is for the rounding of the allocator, for scoring, for text that is sampled, and for programs beside this one. More samples never need less, so not all sizes have to be tried: the largest first, then by halves.

# %%
#| export
COMFORT = 0.6  # of an accelerator's memory, for a step whose micro-batch is chosen here


def largest_within(
    sizes: list,  # rising
    peak_gib,  # called with a size; gives GiB, which rise, too
    room_gib: float,  # GiB
) -> int:  # the first where none fits
    "The largest size that fits."
    if len(sizes) == 1 or peak_gib(sizes[-1]) <= room_gib:
        return sizes[-1]
    fits, fails = 0, len(sizes) - 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if peak_gib(sizes[middle]) <= room_gib else (fits, middle)
    return sizes[fits]


# %% [markdown]
# Sizes that divide 128, half a GiB each, in 40 GiB: asked four times.

# %% tags=["check"]
asked: list = []
sizes = [2**k for k in range(8)]
assert largest_within(sizes, lambda n: asked.append(n) or n / 2, 40) == 64 and len(asked) <= 4
assert largest_within(sizes, lambda n: n / 2, 0.1) == 1 and largest_within(sizes, lambda n: n / 2, 99) == 128
assert all(
    largest_within([1, 2, 3, 6], lambda n: n, most) == max(k for k in (1, 2, 3, 6) if k <= most) for most in range(1, 9)
)
asked


# %% [markdown]
# Scoring must not need more than training does, or a run would fail at its first evaluation. Nothing is kept for a backward pass, so the peak is that of a layer, or of the logits, however many layers there are. It is counted as above, for as much as [the chapter on evaluation](../3_model/34_loss.ipynb) wants at once, and halved until it fits.

# %%
#| export
def count_scoring(
    config,  # a transformers configuration
    recipe: Recipe,  # adapter and packing are used, and the longest of its samples
    device: Device,  # where, and in which number format
    limit: ScoreLimit,  # how much at once
) -> float:  # bytes on top of weights
    "Memory for scoring as much as is allowed at once, counted without doing it."
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    longest, where = max(recipe.seq_lens), counted_on(device)
    n = max(1, limit.tokens // longest)
    batch = replace(recipe, seq_lens=(longest,) * n, gradient_checkpointing=False)
    learned = min(limit.positions if recipe.packed else limit.positions // n, batch.shape[1] - 1)

    # the second layer still has the input of the first beside it; further ones need no more
    model = build(short_config(config, min(2, config.num_hidden_layers)), batch, device.dtype, "meta").eval()
    if not can_isolate(model):
        use_isolated(model)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model, live = without_numbers(model, where), live_memory()
        for t in (*model.parameters(), *model.buffers()):
            live.add(t)
        weights, made = live.now, make_batch(replace(batch, learned=max(learned, 1)), where)
        with live, torch.autocast(where.type, torch.bfloat16, enabled=device.dtype == "bfloat16"):
            token_losses(model, made)
    # copies of trained weights in 16 bits, which autocast keeps
    return live.peak - weights + (2 * parameter_counts(config, recipe)[0] if device.dtype == "bfloat16" else 0)


def limit_scoring(
    config,  # a transformers configuration
    recipe: Recipe,  # the training step
    told: Estimate,  # what it costs on this rank
    device: Device,  # where, and in which number format; no CPU
    room_gib: float = math.inf,  # GiB; no more than this, whatever training takes
) -> ScoreLimit:
    "How much is scored at once, so that it needs no more memory than training does."
    # gradients may stay while it is scored, and the optimizer's averages do
    kept = told.in_use_gib + told.weights_gib + told.optimizer_gib + told.gradients_gib
    room = min(told.peak_mem_gib - kept, room_gib) * 2**30
    limit = default_limit(config.get_text_config().vocab_size)
    while max(limit.tokens // max(recipe.seq_lens), 1) > 1 and count_scoring(config, recipe, device, limit) > room:
        limit = replace(limit, tokens=limit.tokens // 2, positions=limit.positions // 2)
    return limit


# %% [markdown]
# SmolLM2 on an accelerator: what training takes on top of what stays, and what scoring takes.

# %% tags=["check"]
card = replace(cpu, type="cuda", dtype="bfloat16", memory_gib=80.0)
config, rows = load_config(SMOLLM2), []
for n in (1, 2, 16):
    recipe = Recipe(seq_lens=(512,) * n)
    told = estimate(config, recipe, card)
    limit = limit_scoring(config, recipe, told, card)
    room = told.peak_mem_gib - told.weights_gib - told.optimizer_gib - told.gradients_gib
    need = count_scoring(config, recipe, card, limit) / 2**30
    rows.append(
        {"samples of 512 tokens": n, "training, GiB": room, "scoring, GiB": need, "tokens at once": limit.tokens}
    )
    assert need <= room
pd.DataFrame(rows).set_index("samples of 512 tokens").round(2)

# %% [markdown]
# Time is not shown here, since it takes a run to compare it with: the finetune chapter sets both beside what it measured, and [the chapter on benchmarks](../8_bench/80_preparation.ipynb) has the table over models, ranks, targets, lengths, batches, checkpointing and full fine-tuning.
