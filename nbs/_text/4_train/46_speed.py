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
import pandas as pd
import torch

from simpsons_llm.data.packing import use_isolated
from simpsons_llm.machine.job import chapters_dir, read_jsonl
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.loss import token_losses


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
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['it failed'])[0][:200]}"


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
        items: Any = self.loader.dataset.items
        learned = [sum(w > 0 for w in x["loss_weights"]) for x in items]
        if "lengths" in items[0]:  # rows of several samples: the longest of those counts
            longest = max(max(x["lengths"]) for x in items)
            shape = row_shape(batches, [len(x["input_ids"]) for x in items], learned)
            most = max(sum(len(items[i]["lengths"]) for i in b) for b in batches)
            self.shapes = [RowShape(shape.tokens, most + -(-shape.tokens // longest) + 1, longest, shape.learned)]
        else:
            self.shapes = row_shapes(batches, self.sampler.lengths, learned)
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
                self.compiled.enter_context(compiled_layers(self.model, dynamic=len(self.shapes) > 1))
            if why := self.unrecorded(compiled):
                for at in range(len(self.shapes)):
                    self.forward_backward(at)
                    self.recorded[at] = partial(self.forward_backward, at)
                self.update = self.clip_and_step
            else:
                self.record()
        except Exception:
            self.compiled.close()
            self.recorded = {}
            raise
        if self.job.ranks.is_main:
            rows = " or ".join(f"{n.tokens:,}" for n in self.shapes)
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
        tokens = {"input_ids": [0, 0], "loss_weights": [1.0, 1.0]}
        for at in range(len(self.shapes)):  # any numbers will do
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
# What each step of the way brings, by `finetune` as people call it, on one H200 (PyTorch 2.11, 30 November 2026): models of random weights in the shape of SmolLM2-135M, with scenes of a real script table, and of open_llama_3b, with the book's script. `none` is Trainer with the same samples end to end; `auto` on such a short run records, and does not compile. Tokens are real ones; filled-up places are not counted. The script is `tests/gpu_speed.py`.

# %%
record = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "gpu_speed.jsonl"))
runs = record[record["ms a step"].notna()].set_index("name")
columns = ["engine", "compile", "real tokens a step", "ms a step", "tokens_per_s", "first step_s", "peak_mem_gib"]
runs[columns].round({"peak_mem_gib": 1})

# %% [markdown]
# How many times as fast as Trainer?

# %%
ways = {
    "SmolLM2, 2 scenes": ["table 2 none", "table 2 auto", "table 2 layers"],
    "SmolLM2, 64 scenes": ["table 64 none", "table 64 layers"],
    "3 billion, q and k": ["large qk trainer", "large qk layers"],
}
speed = runs["tokens_per_s"]
ratios = {name: [speed[w] / speed[rows[0]] for w in rows] for name, rows in ways.items()}
ax = plt.subplots(figsize=(7, 3), layout="constrained")[1]
colors = {"trainer": "#c9c9c9", "graph": "#f2c500", "layers": "#4f86c6"}
at, places = 0, []
for name, rows in ways.items():
    for w, ratio in zip(rows, ratios[name]):
        kind = {"none": "trainer", "trainer": "trainer", "auto": "graph"}.get(w.split()[-1], "layers")
        ax.barh(at, ratio, color=colors[kind])
        ax.text(ratio * 1.05, at, f"{ratio:.1f} x, {speed[w]:,.0f} tokens/s", va="center", fontsize=8)
        places.append((at, f"{name}: {kind}"))
        at -= 1
    at -= 0.6
ax.set_yticks(*zip(*places))
ax.set(xscale="log", xlim=(0.8, 120), xlabel="times as fast as Trainer on the same samples")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# A small model gains most, since it did least: its step was launches. A large one computes most of the time, and gains from the compiler alone. The gain depends on the processor beside the card: on a fast one Trainer waits less.
#
# The numbers that are learned are the same. Losses of the first steps differ by what bf16 rounds; and a run that goes on from its middle is as far from the run in one piece as a second run in one piece is (the device adds up in another order each time):

# %%
first = {w: runs.loc[w, "losses"][0] for rows in ways.values() for w in rows}
print({name: round(max(first[w] for w in rows) - min(first[w] for w in rows), 5) for name, rows in ways.items()})
record[record["apart"].notna()].set_index("name")[["apart", "apart in a second whole run"]].round(5)

# %% [markdown]
# ## What is left
#
# Not done here: several ranks (the exchange of gradients would have to be recorded, too), devices without an attention kernel that takes all sequences at once (XPU among them: its graphs were not tried), models that are trained in full beyond half a billion parameters. There Trainer goes on as before. Rows of one length waste what is filled up, most where a step has few scenes of unlike length, and the short last batch of an epoch costs as much as a full one.
#
# You can now tell a step that computes from one that waits, and say what a recording needs: fixed shapes, fixed places, and nothing read back in the middle.
