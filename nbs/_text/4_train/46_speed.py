# %%
#| default_exp train.speed

# %% [markdown]
# # Where a step's time goes
#
# > The same loop, fast on an accelerator: rows of one length, layers compiled, the whole step recorded as a graph of the device.
#
# [The loop by hand](45_loop.ipynb) is right, and slow on a fast card: SmolLM2 with two scenes a step took 0.2 to 0.3 s there, whether the card could do a thousand tokens in that time or a million. It waits for the processor, which has thousands of small kernels to launch in each step. Two things help. A *compiler* makes few kernels of many. And a *recorded graph* launches what is left with one call. Both want shapes that never change, so rows are filled up to one length first. The loss, the gradients, the checkpoints and everything around the step stay those of the loop; where something is missing (no accelerator, several ranks, a model whose samples cannot lie end to end), the step is the loop's own.

# %%
#| export
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from simpsons_llm.data.packing import EndToEnd, RowShape, base_of, fixed_row, packs_well, row_shape, row_shapes
from simpsons_llm.machine.device import synchronize
from simpsons_llm.machine.distributed import gather
from simpsons_llm.machine.graphs import Recorded, graph_class
from simpsons_llm.train.cost import MOST_RECORDED
from simpsons_llm.train.lifecycle import Job
from simpsons_llm.train.loop import Loop, random_state, set_random_state, sum_gradients

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from simpsons_llm.data.packing import use_isolated
from simpsons_llm.machine.job import chapters_dir, read_jsonl
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.loss import token_losses

# %% [markdown]
# ## Waiting, or computing?
#
# One step of SmolLM2 with two scenes on one H200, and where its milliseconds go: kernels by kind, and the time in which the device does nothing. The record was made by `tests/gpu_speed.py` with PyTorch's profiler.

# %% tags=["example"]
record = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "gpu_speed.jsonl")).set_index("name")
profiled = record[record["kernel_ms"].notna()]
kinds = ["matrix products", "attention", "elementwise", "copies", "optimizer"]
spent = pd.DataFrame(list(profiled["kernel_ms"]), index=profiled.index.str.removeprefix("where "))[kinds].fillna(0)
spent["waiting"] = (profiled["step_ms"].to_numpy() - spent.sum(axis=1)).clip(lower=0)
colors = ["#4f86c6", "#1f5fa8", "#f2c500", "#c0504d", "#8064a2", "#e4e4e4"]
ax = spent.plot.barh(stacked=True, figsize=(7, 0.5 * len(spent) + 1.2), color=colors)
ax.invert_yaxis()
ax.set(xlabel="ms a step", ylabel="")
ax.legend(frameon=False, fontsize=8, ncols=3)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
kernels = [sum(filter(pd.notna, k.values())) for k in profiled["kernels"]]
spent.assign(kernels=kernels, busy=1 - spent["waiting"] / spent.sum(axis=1)).round(2)

# %% [markdown]
# Without a recording the device is busy for a sixteenth of the step; the rest is the processor telling it what to do, some 8,000 times. That is *launch-bound*: a step takes as long whether it holds five hundred tokens or five thousand. A step of three billion parameters and 25,000 tokens is *compute-bound*: launches are hidden behind products that take milliseconds each. One picture shows both. The slanted lines are steps that take a fixed time whatever they hold; the flat ones are what the matrix products alone would allow (4 operations for each parameter and token, since frozen weights need no gradient, at 790 TFLOP/s, measured on this card). A run lies under the lower of its two lines.

# %% tags=["example"]
runs = record[record["real tokens a step"].notna() & record.index.str.match("small|large seed (none|layers)$")]
flops = {"small": 4 * 134.5e6, "large": 4 * 3.54e9}  # a token: 4 times the parameters of all products
ax = plt.subplots(figsize=(7, 3.8), layout="constrained")[1]
tokens = np.array([200, 100_000])
for size, color in (("small", "#c0504d"), ("large", "#1f5fa8")):
    ax.axhline(790e12 / flops[size], color=color, lw=1)
    ax.text(210, 790e12 / flops[size] * 1.1, f"{size}: products alone", color=color, fontsize=8)
for how, mark, style in (("none", "o", ":"), ("graph", "s", "-."), ("layers", "D", "--")):
    some = runs[runs["compile"].eq(how) | runs.index.str.endswith(how)]
    small = some[some.index.str.startswith("small 2 ")]
    if len(small):
        ms = small["ms a step"].iloc[0]
        ax.plot(tokens, 1e3 * tokens / ms, style, color="grey", lw=1, label=f"{ms:,.0f} ms a step")
    for name, r in some.iterrows():
        color = "#c0504d" if name.startswith("small") else "#1f5fa8"
        ax.plot(r["real tokens a step"], r["tokens_per_s"], mark, color=color)
for how, mark in (("Trainer", "o"), ("recorded", "s"), ("compiled and recorded", "D")):
    ax.plot([], [], mark, color="k", label=how)
ax.set(xscale="log", yscale="log", xlabel="real tokens of a step", ylabel="tokens/s", ylim=(1e3, 3e6), xlim=(200, 1e5))
ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
ax.spines[["top", "right"]].set_visible(False)
plt.show()


# %% [markdown]
# ## The loss of a filled-up row
#
# A row knows where something is learned (`keep`), which token comes there, and how much it counts. Logits are made for these places alone: for SmolLM2 they are a fifth of the arithmetic.

# %%
#| export
def row_losses(
    model,  # a causal language model with isolated attention
    row: dict,  # what `fixed_row` made, on the model's device
    longest: int,  # tokens of the longest sequence; known beforehand, so that nothing has to be read from the device
):  # K losses in nats; those of places that were filled in mean nothing
    "Negative log-probability of the learned tokens of a row."
    import torch

    out = model(
        input_ids=row["input_ids"],
        position_ids=row["position_ids"],
        logits_to_keep=row["keep"],
        use_cache=False,
        cu_seq_lens_q=row["cu_seqlens"],
        cu_seq_lens_k=row["cu_seqlens"],
        max_length_q=longest,
        max_length_k=longest,
        seq_lens=row.get("seq_lens", (longest,)),
    )
    return torch.nn.functional.cross_entropy(out.logits[0].float(), row["targets"], reduction="none")


# %% [markdown]
# Filled up or not, the loss of each learned token is the same:

# %% tags=["check"]
model, _ = tiny_model()
use_isolated(model)
pair = [
    {"input_ids": [5, 6, 7, 8, 9], "loss_weights": [1.0] * 5},
    {"input_ids": [3, 4, 5], "loss_weights": [0, 0, 0.5]},
]
plain = EndToEnd(0)(pair)
row = fixed_row(plain, RowShape(16, 6, 5, 8), 0)
losses, weights = token_losses(model, plain)
filled = row_losses(model, row, 5)
assert torch.allclose(filled[: losses.numel()], losses[0], atol=1e-5) and row["weights"].sum() == weights.sum()
assert torch.allclose((filled * row["weights"]).sum(), (losses * weights).sum(), atol=1e-5)


# %% [markdown]
# ## Compiled layers
#
# All layers of a model are the same program with other weights, so one of them is compiled, which takes seconds rather than the minute that a whole model takes. Evaluation has batches of all shapes, and would be compiled for each; it goes the plain way.

# %%
#| export
@contextmanager
def compiled_layers(
    model,  # a transformers model, perhaps with an adapter
    dynamic: bool = False,  # for rows of several lengths
):  # RuntimeError if its layers are not known
    """The decoder layers of a model compiled, for the length of a `with` block.

    Where a layer computes its activations again, the compiler is told, and leaves out what the backward pass has no
    use for: of a frozen projection, its result."""
    import torch

    inner: Any = base_of(model)
    layers = list(getattr(getattr(inner, "model", inner), "layers", []))
    if not layers:
        raise RuntimeError("its layers are not where they usually are")
    with ExitStack() as back:
        for layer in layers:
            plain = work = layer.forward
            if getattr(layer, "gradient_checkpointing", False):
                work = partial(torch.utils.checkpoint.checkpoint, plain, use_reentrant=False)
                back.enter_context(patch.object(layer, "gradient_checkpointing", False))
            compiled = torch.compile(work, dynamic=dynamic)

            def forward(*args, _layer=layer, _plain=plain, _compiled=compiled, **kwargs):
                return (_compiled if _layer.training else _plain)(*args, **kwargs)

            back.enter_context(patch.object(layer, "forward", forward))
        yield


# %% [markdown]
# ## The fast loop
#
# What keeps a run from going this way is a reason in words, so that it can be told. Some steps are not recorded: one that trains billions of parameters takes so long that its launches are hidden, while the copies that a recording needs would not fit; and one that computes its activations again asks for random states in its middle, unless it is compiled. Of several ranks each records its own two halves, and between them the gradients are exchanged as in the plain loop.

# %%
#| export
COMPILE_S = 15.0  # about what compiling a layer takes, with its backward pass
GAIN = 0.4  # share of a step that compiling saves, at least


def slow_because(
    job: Job,  # the run
    device,  # a torch.device
) -> str:  # "" where a run can be made faster than by the plain loop
    "Why a run goes the loop's own way."
    if device.type == "cpu" and not graph_class(device):
        return "a CPU does not wait for launches"
    if not job.isolated:
        return "samples of a batch do not lie end to end"
    if device.type != "cpu" and not packs_well(job.device):
        return "no attention kernel of the device takes all sequences of a row at once"
    if job.config.quantization != "none":
        return "weights in 4 bits were not tried in a recording"
    return ""


def unrecorded_because(
    job: Job,  # the run
    device,  # a torch.device
    trained: int,  # parameters that are trained
    compiled: bool = False,  # whether its layers are compiled
) -> str:  # "" where a step can be recorded
    "Why a run that can be fast is not recorded."
    if graph_class(device) is None:
        return f"{device.type} records no graphs"
    if job.config.gradient_checkpointing and not compiled:
        return "activations are computed again"
    if trained > MOST_RECORDED:
        return "so many parameters are trained that a step is long enough by itself"
    return ""


def told_error(
    error: Exception,  # of a device or a compiler
) -> str:  # one line
    "An error in short."
    lines = str(error).strip().splitlines() or ["it failed"]
    said = lines[0] if not lines[0].endswith(":") else " ".join(lines[:2])  # "... raised:", and then what
    return f"{type(error).__name__}: {said[:200]}"


class FastLoop(Loop):
    "The loop with rows of one length, compiled layers, and its step recorded on the device."

    def __init__(
        self,
        job: Job,  # the run
        model,  # the model, ready to be trained
    ):
        super().__init__(job, model)
        self.recorded: dict = {}  # shape -> forward and backward of a micro-batch
        self.update: Any = None  # clipping and optimizer
        self.on_device = self.device.type != "cpu"
        self.compiled = ExitStack()  # while it is open
        self.slow = slow_because(job, self.device)
        if job.config.compile == "graph":
            self.slow = self.slow or self.unrecorded(False)
        if not self.slow:
            self.prepare()
        elif job.ranks.is_main and self.on_device:
            print(f"steps are not recorded: {self.slow}")

    def unrecorded(
        self,
        compiled: bool,  # whether the layers are compiled
    ) -> str:
        "Why the step is not recorded, or nothing."
        return unrecorded_because(self.job, self.device, sum(p.numel() for p in self.parameters), compiled)

    def prepare(self):
        "Find the shapes of all rows, and tensors that stay where they are."
        import torch

        batches: list = []
        steps, epoch = self.job.length.steps, 0
        while len(batches) < steps * self.sampler.accumulation:
            self.sampler.set_epoch(epoch)
            batches += [[max(i, -1 - i) for i in micro] for micro in self.sampler]
            epoch += 1
        batches = batches[: steps * self.sampler.accumulation]
        items: Any = self.loader.dataset.items
        learned = [sum(w > 0 for w in x["loss_weights"]) for x in items]
        if "lengths" in items[0]:  # rows of several samples: the longest of those counts
            longest = max(max(x["lengths"]) for x in items)
            shape = row_shape(batches, [len(x["input_ids"]) for x in items], learned)
            most = max(sum(len(items[i]["lengths"]) for i in b) for b in batches)
            self.shapes = [RowShape(shape.tokens, most + -(-shape.tokens // longest) + 1, longest, shape.learned)]
        else:
            # what is not recorded can be as long as it is, unless each length is compiled by itself
            free = self.unrecorded(True) and not self.job.config.gradient_checkpointing
            self.shapes = row_shapes(batches, self.sampler.lengths, learned, most=None if free else 3)
        on: dict[str, Any] = {"device": self.device}
        self.rows: list[dict[str, Any]] = [
            {
                "input_ids": torch.zeros(1, n.tokens, dtype=torch.long, **on),
                "position_ids": torch.zeros(1, n.tokens, dtype=torch.long, **on),
                "cu_seqlens": torch.full((n.sequences + 1,), n.tokens, dtype=torch.int32, **on),
                "keep": torch.zeros(n.learned, dtype=torch.long, **on),
                "targets": torch.zeros(n.learned, dtype=torch.long, **on),
                "weights": torch.zeros(n.learned, **on),
            }
            for n in self.shapes
        ]
        self.lens: list = [()] * len(self.shapes)
        self.share = torch.ones((), **on)  # 1 / loss weights of the step

    def row_of(
        self,
        part: dict,  # what `EndToEnd` made
        at: int | None = None,  # which shape; None: the first that has room
    ) -> dict:
        "A micro-batch in its shape, where the device can fetch it."
        if at is None:
            at = next(k for k, n in enumerate(self.shapes) if n.tokens >= part["input_ids"].shape[1])
        made = fixed_row(part, self.shapes[at], self.job.maker.tokenizer.pad_token_id)
        pinned = {k: v.pin_memory() if self.on_device and k in self.rows[0] else v for k, v in made.items()}
        return {**pinned, "shape": at}

    def batches(self):
        "For each step that is left, this rank's micro-batches, with their rows."
        for parts in super().batches():
            for part in parts if not self.slow else ():
                part["row"] = self.row_of(part)
            yield parts

    def fill(
        self,
        row: dict,  # what `row_of` made
    ):
        "Bring a micro-batch into the tensors that the recording reads."
        for name, tensor in self.rows[row["shape"]].items():
            tensor.copy_(row[name], non_blocking=True)
        self.lens[row["shape"]] = row["seq_lens"]

    def forward_backward(
        self,
        at: int,  # which shape
    ):
        "A micro-batch: its gradients are added to those that are there."
        row = self.rows[at]
        # where no kernel takes all sequences at once, their lengths are needed
        more = {} if self.on_device else {"seq_lens": self.lens[at]}
        losses = row_losses(self.model, {**row, **more}, self.shapes[at].longest)
        loss = (losses * row["weights"]).sum() * self.share
        loss.backward()
        return loss.detach(), losses.detach()

    def clip_and_step(self):
        "The optimizer's part; gradients are zero afterwards."
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.job.config.max_grad_norm, foreach=True)
        self.optimizer.step()
        torch._foreach_zero_([p.grad for p in self.parameters])
        return norm

    def record(self):
        "Record the two halves of a step; parameters, optimizer and random numbers are as before."
        import torch

        for group in self.optimizer.param_groups if self.on_device else ():
            group["capturable"], group["lr"] = True, torch.as_tensor(float(group["lr"]), device=self.device)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].to(self.device)
        kept = [p.detach().clone() for p in self.parameters]
        old = {p: {k: v.clone() for k, v in s.items()} for p, s in self.optimizer.state.items()}
        try:
            # the longest first: the others have room in its memory
            for at in reversed(range(len(self.shapes))):
                work, beside = partial(self.forward_backward, at), next(iter(self.recorded.values()), None)
                self.recorded[at] = Recorded(work, self.device, beside=beside)
            self.update = Recorded(self.clip_and_step, self.device)
        finally:
            with torch.no_grad():
                for p, k in zip(self.parameters, kept):
                    p.copy_(k)
                for p, state in self.optimizer.state.items():
                    for name, value in state.items():
                        value.copy_(old[p][name]) if p in old else value.zero_()

    def make_step(
        self,
        compiled: bool,  # its layers, too
    ):
        "Make the two halves of a step ready. Where that fails, layers are as before."
        begun, self.recorded, self.update = time.perf_counter(), {}, None
        try:
            if compiled:
                # a compiler that is told what to compute again does not take rows of any length
                dynamic = len(self.shapes) > 1 and not self.job.config.gradient_checkpointing
                self.compiled.enter_context(compiled_layers(self.model, dynamic=dynamic))
            if why := self.unrecorded(compiled):
                self.recorded = {at: partial(self.forward_backward, at) for at in range(len(self.shapes))}
                for at in (*range(len(self.shapes))[:2], len(self.shapes) - 1):  # a compiler has seen its lengths
                    self.recorded[at]()
                self.update = self.clip_and_step
            else:
                self.record()
        except Exception:
            self.compiled.close()
            self.recorded = {}
            raise
        if self.job.ranks.is_main:
            sizes = [f"{n.tokens:,}" for n in self.shapes]
            rows = " or ".join(sizes) if len(sizes) < 4 else f"{sizes[0]} to {sizes[-1]}"
            what = "compiled" * compiled + " and " * (compiled and not why) + "recorded" * (not why)
            print(
                f"step {what or 'tried'} in {time.perf_counter() - begun:.1f} s: rows of {rows} tokens, "
                f"up to {self.shapes[-1].learned:,} of them learned" + f"; not recorded: {why}" * bool(why),
                flush=True,
            )

    def seconds(self) -> float:  # of one micro-batch
        "How long forward and backward of the longest row take."
        longest = self.recorded[len(self.shapes) - 1]
        longest()
        synchronize(self.job.device)
        begun = time.perf_counter()
        for _ in range(3):
            longest()
        synchronize(self.job.device)
        return (time.perf_counter() - begun) / 3

    def choose(
        self,
        parts: list,  # micro-batches of the first step
        weight: float,  # their loss weights, added up
    ):
        "Make the step: recorded; compiled as well where the steps that are left pay for it. Nothing is learned here."
        import torch

        wish, random = self.job.config.compile, random_state(self.device)
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        tokens = {"input_ids": [1, 1], "loss_weights": [1.0, 1.0]}  # any will do
        for at in range(len(self.shapes)):
            self.fill(self.row_of(EndToEnd(0)([tokens]), at))
        self.share.fill_(1 / weight)
        try:
            compiled = wish == "layers"
            if wish == "auto":
                gain_s, trouble = 0.0, None
                try:
                    self.make_step(False)
                    gain_s = GAIN * self.seconds() * len(parts) * (self.job.length.steps - self.step)
                except RuntimeError as e:
                    trouble = e
                compiled = gather(gain_s > 2 * COMPILE_S)[0]  # all ranks are here, whatever happened to one
                if trouble:
                    raise trouble
                if not compiled and self.job.ranks.is_main:
                    cost = f"take {COMPILE_S:.0f}"
                    print(f"layers are not compiled: that would save about {gain_s:.0f} s of this run, and {cost}")
            if compiled and self.job.ranks.is_main:
                print("compiling the layers ...", flush=True)
            if compiled or wish == "graph":
                try:
                    self.make_step(compiled)
                except RuntimeError as e:
                    if not compiled or self.unrecorded(False):
                        raise
                    print(f"layers are not compiled ({told_error(e)})")
                    self.make_step(False)
        finally:
            set_random_state(random, self.device)
            for p in self.parameters:
                p.grad.zero_()

    def learn_from(
        self,
        parts: list,  # this rank's micro-batches of one step
        weight: float,  # the loss weights of the global batch, added up
    ) -> tuple:  # (this rank's part of the loss, norm of the gradient), both tensors
        "One step, made ready the first time."
        import torch

        if not self.recorded and not self.slow:
            try:
                self.choose(parts, weight)
            except RuntimeError as e:  # what the device or the compiler does not take; nothing was learned yet
                self.slow = told_error(e)
                print(f"steps are not recorded ({self.slow}); they are made one kernel at a time")
        if self.slow:
            return super().learn_from([{k: v for k, v in part.items() if k != "row"} for part in parts], weight)
        self.share.fill_(1 / weight)
        total = torch.zeros((), device=self.device)
        for part in parts:
            at = part["row"]["shape"]
            self.fill(part["row"])
            loss, losses = self.recorded[at]()
            self.job.recorder.hear(losses, self.rows[at]["weights"])
            total += loss
        sum_gradients(self.parameters)
        return total, self.update()

    def train(self):
        "From this step to the last; what the recording held is let go."
        try:
            super().train()
        finally:
            self.recorded, self.update = {}, None
            self.compiled.close()
            for p in self.parameters:
                p.grad = None

    def optimizer_state(self) -> dict:
        "What the optimizer remembers, as the plain loop keeps it."
        state = super().optimizer_state()
        for group in state["param_groups"]:
            group["lr"], group["capturable"] = float(group["lr"]), False  # as the plain loop has them
        return state


# %% [markdown]
# Where nothing can be recorded, the fast loop is the loop:

# %% tags=["check"]
assert slow_because(None, torch.device("cpu")) == "a CPU does not wait for launches"

# %% [markdown]
# ## Measured
#
# What each step of the way brings, by `finetune` as people call it, on one H200 (PyTorch 2.11, 30 November 2026): models of random weights in the shapes of SmolLM2-135M and open_llama_3b, and a real script table. `small` has 2 or 64 scenes a step and the book's recipe. `large seed` is the predecessor's shape, rank 8 on query and key and 128 rows a step; `large book` has the book's recipe with 32 scenes, `large full` trains all weights. `none` is Trainer with the same samples end to end. Tokens are real ones, filled-up places are not counted, and a step lasts from the end of the one before to its own, the making of its batch included. The script is `tests/gpu_speed.py`.

# %% tags=["example"]
columns = ["engine", "real tokens a step", "ms a step", "tokens_per_s", "first step_s", "peak_mem_gib"]
timed = record[record["ms a step"].notna()]
timed[columns].round({"peak_mem_gib": 1, "ms a step": 1})

# %% [markdown]
# The `peer` rows are a plain loop on the same rows, written for this one model with nothing around it: packed rows, one compiled function for a layer, fused projections. For the predecessor's shape `finetune` is as fast. For the whole model it reaches 0.95 of the peer, with weights in 32 bits where the peer trains in 16; rows that were all filled up to the longest cost another tenth. The book's recipe, all linear layers at rank 16, reaches 0.83 of the predecessor's shape with a quarter of its tokens a step. Rows of `small 64` were made in an earlier run on another card of the kind, with one length for all; in the run of the others its steps took 75 ms (median).
#
# How many times as fast as Trainer?

# %% tags=["example"]
ways = {
    "SmolLM2, 2 scenes": ["small 2 none", "small 2 graph", "small 2 layers"],
    "SmolLM2, 64 scenes": ["small 64 none", "small 64 layers"],
    "3 billion, q and k": ["large seed none", "large seed layers", "large seed checkpointing"],
}
speed = timed["tokens_per_s"]
ax = plt.subplots(figsize=(7, 3.2), layout="constrained")[1]
shades = {"none": "#c9c9c9", "graph": "#f2c500", "layers": "#4f86c6", "checkpointing": "#8064a2"}
at, places = 0.0, []
for name, rows in ways.items():
    for w in rows:
        kind, ratio = w.split()[-1], speed[w] / speed[rows[0]]
        ax.barh(at, ratio, color=shades[kind])
        ax.text(ratio * 1.05, at, f"{ratio:.2f} x, {speed[w]:,.0f} tokens/s", va="center", fontsize=8)
        places.append((at, f"{name}: {kind}"))
        at -= 1
    at -= 0.6
ax.set_yticks(*zip(*places))
ax.set(xscale="log", xlim=(0.8, 150), xlabel="times as fast as Trainer on the same samples")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% tags=["check"]
assert (
    profiled.loc[["where small 2 graph", "where small 2 layers"], "host waits in the step"] <= 1
).all()  # and that one was the reading of the rate, which is computed since
assert speed["large full layers"] > 25_000 and speed["large book layers"] > 0.8 * speed["large seed layers"]
new = timed[timed["graph breaks"].notna()]  # each layer is one program, and nothing is compiled in the middle of a run
assert (new["graph breaks"] == 0).all() and (new["compiled after the second step"] == 0).all() and len(new) >= 5
assert speed["large seed layers"] >= speed["peer, large seed"]
assert timed.loc["large seed checkpointing", "peak_mem_gib"] < timed.loc["large seed layers", "peak_mem_gib"] / 3

# %% [markdown]
# A small model gains most, since it did least: its step was launches. A large one computes most of the time, and gains from the compiler, which also keeps fewer numbers for the backward pass (68 GiB in place of 86). Activations that are computed again cost little more than a quarter of the speed, since the compiler leaves out of the second computation what the backward pass has no use for; they leave a fifth of the memory. The gain depends on the processor beside the card: on a fast one Trainer waits less.
#
# The numbers that are learned are the same. Losses of the first steps differ by what bf16 rounds:

# %% tags=["example"]
first = {w: record.loc[w, "losses"][:3] for rows in ways.values() for w in rows}
pd.DataFrame(first, index=["step 1", "step 2", "step 3"]).T.round(4)

# %% [markdown]
# A run that goes on from its middle is as far from the run in one piece as a second run in one piece is (the device adds up in another order each time; on a CPU stand-in the two are equal to the last bit):

# %% tags=["example"]
record[record["apart"].notna()][["apart", "apart in a second whole run"]].round(5)

# %% [markdown]
# ## What was tried and left
#
# - *Letting the compiler try many sizes of blocks* (`coordinate_descent_tuning`): 39,442 instead of 39,283 tokens/s in one run with the large model, for 36 s of compiling instead of 14. Not worth it.
# - *Eager checkpointing of compiled layers*, each computed again as a whole: 26,408 tokens/s where the compiler, told of it, gives 28,159.
# - *Rows of any length* for a compiler that is told what to compute again: PyTorch 2.11 does not compile that, and the run fell back to 18,115 tokens/s. With checkpointing each of a few lengths is compiled by itself.
# - *One call before a recording* instead of three: 0.7 s in place of 1.0 for SmolLM2. Compiled layers did not get ready so within a minute; three it is.
# - *Several ranks* record their own halves of a step and exchange gradients between them. That was tried with processes on a CPU, where recordings are played; not on several cards.
# - XPU: its graphs are asked for like CUDA's, and were not tried; without an attention kernel that takes all sequences at once, Trainer goes on there as before.
#
# ### Frozen products in 8 bits
#
# A step that computes is bound by what the card multiplies in 16 bits, and 8 bits go twice as fast there (peak rates of an H200, as its maker gives them). Frozen weights are not trained, so they could be kept so. What could be won at most, for the predecessor's shape, if all products took half the time and rounding took none?

# %% tags=["example"]
computed = timed.loc["large seed layers"]
products_ms = 1e3 * flops["large"] * computed["real tokens a step"] / 790e12
shorter_ms = computed["ms a step"] - products_ms / 2
print(f"{computed['ms a step']:.0f} ms a step, {products_ms:.0f} of them products; {shorter_ms:.0f} with 8 bits")
print(f"at most {computed['ms a step'] / shorter_ms:.2f} times as fast")

# %% [markdown]
# Before anybody writes kernels for that: do the numbers survive? This can be found out without a card. `tests/eight_bits.py` trains SmolLM2 by the loop, with the book's recipe and script (samples of up to 256 tokens, 24 steps), and rounds each operand of the frozen products to the grid of its format, with a scale for each row, as `torch._scaled_mm` takes them; the rest stays in 32 bits. In the backward pass the sum runs over the rows of the weight, so the gradient takes their scales before it is rounded itself. `int4 weights` is there to see a difference that matters, `another start` has other random numbers in A: a distance as small as its is luck.

# %% tags=["example"]
eight = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "eight_bits.jsonl")).set_index("name")
curves = pd.DataFrame(list(eight["losses"]), index=eight.index)
off = curves - curves.loc["plain"]
ax = plt.subplots(figsize=(7, 3.2), layout="constrained")[1]
for way, color in (("int4 weights", "#c9c9c9"), ("fp8", "#c0504d"), ("int8", "#1f5fa8"), ("another start", "#f2c500")):
    ax.plot(range(1, len(off.columns) + 1), off.loc[way], "o-", ms=3, color=color, label=way)
ax.axhline(0, color="k", lw=0.6)
ax.set(xlabel="step", ylabel="loss above the plain run, nats")
ax.legend(frameon=False, fontsize=8, ncols=4)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
held = {
    "base": "valid_loss_nats_base",
    "trained": "valid_loss_nats",
    "its adapter, 32 bits": "valid_loss_nats_plain_weights",
}
survived = eight[["weights", "inputs", "gradients"]].assign(
    **{"train, mean distance": off.abs().mean(axis=1), **{f"held out, {k}": eight[v] for k, v in held.items()}}
)
survived.round(4)

# %% tags=["check"]
far, after, alone = (
    survived[k] for k in ("train, mean distance", "held out, trained", "held out, its adapter, 32 bits")
)
assert far["another start"] < 0.005 and abs(after["another start"] - after["plain"]) < 0.005  # luck
assert far["int4 weights"] > 0.2  # a difference that matters is seen
assert (far[["fp8", "int8"]] > 5 * far["another start"]).all()  # the curve is another one
assert (after[["fp8", "int8"]] > after["plain"] + 0.005).all()
assert abs(alone["int8"] - alone["plain"]) < 0.005 < alone["fp8"] - alone["plain"]

# %% [markdown]
# They do not survive. The loss of a step is 0.02 nats from the plain run's with fp8 and 0.03 with int8, more than ten times what luck does, and the held-out loss after training is 0.013 and 0.022 higher, where 0.005 was the most allowed: the frozen model itself is 0.033 worse in 8 bits before anything is learned, and training makes up for a part of that only. The adapter that was learned beside int8 is as good as any on weights in 32 bits (0.0006 nats apart); that of fp8 loses 0.009. So int8 is not ruled out for training as such, but its curve cannot be compared with that of others, and this book's promise is that a faster step gives the same numbers. It was left. The speed was not measured on a card; 24 steps, one seed and a small model say little about three billion parameters. Not run either: weights alone in fp8, gradients in e5m2, and bf16, whose own distance from 32 bits would be the fair measure on a card (the script has all three). Scales for blocks of a row, or outliers kept in 16 bits, were not tried. A kernel for it would also need each fp8 weight a second time for the backward pass, turned round, since these units of the card read both operands along the sum: as much memory as one copy in 16 bits.
#
# ## A whole run
#
# Training is seconds now, and the rest of a run is what one waits for. The demo on one H200 (a host of 16 slower cores), started twice, and the same fine-tuning from the command line. `load` of a command holds the imports of torch, transformers and peft; a chapter has made them before. What lies `outside` the fine-tuning is, in the demo, a second Python that runs the chapter, its imports, and three cells in which characters answer; in the command, starting Python.

# %% tags=["example"]
whole = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "demo.jsonl")).set_index("name")
parts = pd.DataFrame(list(whole["wall_s of"]), index=whole.index)
parts["outside"] = whole["wall_s"] - parts.sum(axis=1)
ax = parts.plot.barh(stacked=True, figsize=(7, 2.6), color=[*colors, "#4bacc6"])
ax.invert_yaxis()
ax.set(xlabel="seconds", ylabel="")
ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.2))
ax.spines[["top", "right"]].set_visible(False)
plt.show()
parts.assign(all=whole["wall_s"]).round(1)

# %% tags=["check"]
assert (parts["train"] < 15).all() and (parts["score"] < whole["wall_s"] / 5).all() and (parts["outside"] > 0).all()

# %% [markdown]
# You can now tell a step that computes from one that waits, and say what a recording needs: fixed shapes, fixed places, and nothing read back in the middle.

# %% [markdown]
# ### Exercises
#
# 1. A step of 270 ms consists of 8,000 kernels that take 22 ms in all. How fast does the processor launch, and what would a step take if its 8,000 kernels were one recording?
# 2. Rows of an epoch have 8,000 tokens but for the last, which has 500; there are six. What share of the work is padding with one shape, and with two?

# %% tags=["check"]
launch_us = 270e3 / 8000  # about 34 microseconds each; recorded, the step takes its 22 ms
assert 30 < launch_us < 40
one, two = 1 - (5 * 8000 + 500) / (6 * 8000), 1 - (5 * 8000 + 500) / (5 * 8000 + 512)
print(f"{launch_us:.0f} microseconds a launch; padding {one:.1%} with one shape, {two:.1%} with two")
