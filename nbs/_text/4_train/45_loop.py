# %%
#| default_exp train.loop

# %% [markdown]
# # The loop by hand
#
# > Everything that training is, on one page: batches, forward, loss, backward, accumulation, clipping, optimizer, schedule, evaluation, checkpoint, resume, ranks.
#
# A trainer from a library is a hundred settings deep, and when a run goes wrong one would like to have seen the thing itself once. Here it is: the same data, the same settings and the same records as in [fine-tuning](47_finetune.ipynb) with Trainer, and between them a loop that is written out. It trains an adapter or the whole model, on one device or many, is resumed after a kill, and gives, step for step, the numbers that Trainer gives. [Eight ways to train nothing](48_pitfalls.ipynb) break it, each of them found in real programs, and shows what that costs.
#
# Left out is what belongs to Trainer: models in parts (FSDP). Each rank holds the whole model here.

# %% tags=["parameters"]
data = "springfield"  # a folder that prepare wrote; or a script, which is then prepared with the defaults
run = "runs/loop"  # the run's folder
base_model = "auto"  # hub id, folder, .gguf file or short name; auto: smollm2-135m on CPU, else open_llama_3b
mode = "lora"  # lora: an adapter on a frozen base; full: all weights are trained
recipe = "book"  # where settings without a value come from: book or seed
view = None  # scenes: one pass over each scene; rows: one sample a line; book scenes, seed rows
template = None  # form of prompts: script, alpaca or chat (the model's own); book script, seed alpaca
max_seq_len = None  # most tokens of a sample; book 512, seed 256
context_lines = None  # rows: lines before the answer; book 10, seed 10
context_weight = None  # scenes: loss weight of other characters' lines, 0..1; book 0.1, seed 0
r = None  # LoRA rank; book 16, seed 8
lora_alpha = None  # its scale is lora_alpha / r; book 32, seed 16
lora_dropout = None  # dropout before the adapter, 0..1; book 0, seed 0.05
target_modules = None  # layers with an adapter, or all-linear; book all-linear, seed q_proj,k_proj
use_rslora = False  # scale by lora_alpha / sqrt(r) instead of lora_alpha / r
use_dora = False  # DoRA: learn the length of each row of a weight apart from its direction
init_lora_weights = "default"  # how the adapter starts: default, pissa or loftq
lora_plus_ratio = 1.0  # LoRA+: the learning rate of B over that of A; 1: the same, 16 in its paper
quantization = "none"  # of the frozen base: none, or nf4 for 4 bits (needs bitsandbytes)
learning_rate = None  # peak rate; book 5e-4, seed 3e-4; a tenth of it with mode=full
warmup_ratio = None  # share of the steps in which the rate rises, 0..1; book 0.05, seed 0.1
weight_decay = None  # pull of each step on the weights towards 0, 0 or more; book 0, seed 0
global_batch_size = None  # samples for one optimizer step, over all processes; book 2, seed 128
micro_batch_size = None  # samples at once in one process; book 2, seed 16
epochs = 0.1  # passes over the data; the book takes a look at the loop, a whole run is 1
max_steps = None  # optimizer steps; overrules epochs
max_minutes = None  # stop at the next step after so many minutes, with what was learned so far
eval_steps = 3  # optimizer steps between evaluations and checkpoints
sample_steps = None  # optimizer steps between samples of text; 0: none; None: with each evaluation
gate = None  # keep no step that recites; stop where that and loss get worse; book True, seed False
max_grad_norm = 1.0  # gradients are scaled down to this norm
packing = "auto"  # flat: end to end; rows: in rows of row_len; none: filled up; auto: flat where it does well
row_len = 2048  # packing=rows: tokens of a row; batch sizes then count rows
gradient_checkpointing = False  # recompute activations: less memory, about a third slower
compile = "auto"  # on an accelerator: graph (record the step), layers (compile, too), none; auto: what pays
save_total_limit = 3  # checkpoints to keep, the best one always
seed = 42  # of the adapter, the order of samples and dropout
resume = False  # go on from the last checkpoint of this run
score_test = False  # at the end, once: score the test scenes before and after
trackers = "none"  # none, or trackio, wandb, tensorboard
device = "auto"  # xpu, cuda, cpu; auto: the best there is
dtype = "auto"  # bfloat16, float32; auto: as the device has it
backend = "auto"  # how ranks talk: xccl, ccl, nccl, gloo; auto: the device's own
group_timeout_s = 600.0  # longest wait for another rank, in seconds

# %% [markdown]
# Who is this? A rank that believes to be alone among four must be seen at once.

# %%
from simpsons_llm.machine.distributed import who_am_i

print(who_am_i(device, dtype, backend))

# %%
#| export
import math
from dataclasses import dataclass
from itertools import islice

from simpsons_llm.data.batches import RankBatches, as_features, share_loader
from simpsons_llm.data.packing import to_device
from simpsons_llm.data.prepare import Prepared
from simpsons_llm.machine.distributed import gather, in_group, total
from simpsons_llm.machine.job import same_parameters, write_json
from simpsons_llm.model.loss import collator, heldout_loss, token_losses
from simpsons_llm.train.config import TrainConfig, make_optimizer, make_schedule
from simpsons_llm.train.history import STATE, checkpoint_folder, new_checkpoint, state_of, thin_out
from simpsons_llm.train.lifecycle import Job, run_job
from simpsons_llm.train.sharding import load_weights

# %%
#| hide
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch

from simpsons_llm.machine.device import Ranks, find_device, find_ranks
from simpsons_llm.machine.job import chapters_dir, read_jsonl
from simpsons_llm.model.adapter import add_adapter
from simpsons_llm.model.base import load_base, tiny_model
from simpsons_llm.train.history import perplexities, what_was_said
from simpsons_llm.train.lifecycle import plan, require_apart, summary_text

pd.set_option("display.max_colwidth", 110)


# %% [markdown]
# ## The settings
#
# Those of every training run. Only the length is another: this chapter is read with the loop running beside it, so it takes a few steps.

# %%
#| export
@dataclass
class LoopConfig(TrainConfig):
    "Settings of the loop job."

    run: str = "runs/loop"  # the run's folder
    epochs: "float | None" = 0.1  # passes over the data; the book takes a look at the loop, a whole run is 1
    eval_steps: "int | None" = 3  # optimizer steps between evaluations and checkpoints


# %% tags=["check"]
assert same_parameters(LoopConfig, "loop")
assert LoopConfig(recipe="seed").resolved() == {**TrainConfig(recipe="seed").resolved(), "epochs": 0.1, "eval_steps": 3}
{name: (getattr(TrainConfig(), name), getattr(LoopConfig(), name)) for name in ("run", "epochs", "eval_steps")}


# %% [markdown]
# ## The loss of a step
#
# A step learns from a *global batch*, which may pass through the model in several *micro-batches*, on several ranks. Its loss is one fraction, $\sum w_t \, \ell_t / \sum w_t$, over all tokens of the global batch. So each micro-batch contributes its numerator, divided by the weight of the whole; the contributions add up, and so do their gradients.

# %%
#| export
def weighted_loss(
    model,  # a causal language model
    batch: dict,  # a micro-batch, on the model's device
    weight: float,  # the loss weights of the global batch, added up
    hear=None,  # called with losses and weights, both B x K: `Recorder.hear`
):  # a scalar: this micro-batch's part of the step's loss
    "What a micro-batch adds to the loss of a step."
    losses, weights = token_losses(model, batch)
    if hear:
        hear(losses, weights)
    return (losses * weights).sum() / weight


# %% tags=["check"]
model, tokenizer = tiny_model()
parts = [
    {"input_ids": torch.tensor([[5, 6, 7, 8][:n]]), "loss_weights": torch.tensor([[0.0, 1.0, 0.1, 1.0][:n]])}
    for n in (4, 2)
]
whole = [token_losses(model, p) for p in parts]
mean = sum((loss * w).sum() for loss, w in whole) / sum(w.sum() for _, w in whole)
assert torch.allclose(sum(weighted_loss(model, p, 3.1) for p in parts), mean)
[round(weighted_loss(model, p, 3.1).item(), 4) for p in parts], round(mean.item(), 4)


# %% [markdown]
# ## Many ranks
#
# Each rank computes other samples with the same weights. All must step with the same gradient, the sum of theirs. And all must begin with the same weights: the seed sees to that, and to be safe, rank 0 hands out its own. Sent in one piece, since hundreds of small messages take longer than a large one.

# %%
#| export
def sum_gradients(
    parameters: list,  # those that are trained, on every rank in the same order
):
    "Add up the gradients of all ranks, in place. All ranks must call it."
    if not in_group():
        return
    import torch

    for p in parameters:
        # a part that this rank had no use for, another may have had
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.nn.utils.parameters_to_vector([p.grad for p in parameters])
    torch.distributed.all_reduce(flat)
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad.copy_(g.view_as(p.grad))


def same_start(
    parameters: list,  # those that are trained, on every rank in the same order
):
    "Give all ranks the parameters of the first. All ranks must call it."
    if not in_group():
        return
    import torch

    flat = torch.nn.utils.parameters_to_vector([p.data for p in parameters])
    torch.distributed.broadcast(flat, 0)
    for p, d in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.data.copy_(d.view_as(p.data))


# %% [markdown]
# A rank with the gradients 1 and 2. The other one is played here, and has 10 and 20:

# %% tags=["example"]
p = torch.nn.Parameter(torch.zeros(2))
p.grad = torch.tensor([1.0, 2.0])
theirs = torch.tensor([10.0, 20.0])
with patch(f"{__name__}.in_group", lambda: True), patch("torch.distributed.all_reduce", lambda flat: flat.add_(theirs)):
    sum_gradients([p])
p.grad


# %% [markdown]
# ## What the loop needs
#
# A model that is ready, an optimizer, a schedule, batches, and a place to begin. On an accelerator the forward pass runs in bfloat16 (`autocast`), while the trained weights stay in 32 bits. The batches of a step come from its number alone, so a resumed run skips those that were learned.

# %%
#| export
class TrainState:
    "All that changes while a model is trained, and the batches that change it."

    def __init__(
        self,
        job: Job,  # the run
        model,  # the model, ready to be trained
    ):
        import torch

        config, s, device = job.config, job.config.resolved(), job.device
        self.job, self.model, self.device, self.step, self.best = (
            job,
            model,
            torch.device(device.torch),
            0,
            (0, math.inf),
        )
        if device.dtype == "bfloat16":
            # nothing is kept between calls: a recorded step may not lean on it, and a weight is used once in a pass
            model.forward = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)(model.forward)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        same_start(self.parameters)
        self.optimizer = make_optimizer(
            model, s["learning_rate"], config.lora_plus_ratio, device.type != "cpu", s["weight_decay"]
        )
        self.schedule = make_schedule(self.optimizer, job.length.warmup_steps, job.length.steps)
        items, lengths = as_features(job.items)
        self.sampler = RankBatches(
            lengths,
            s["global_batch_size"],
            s["micro_batch_size"],
            job.ranks.rank,
            job.ranks.world_size,
            config.seed,
            grouped=not job.isolated,
        )
        self.loader = share_loader(
            items, collator(model, job.maker.tokenizer.pad_token_id), self.sampler, pin_memory=device.type != "cpu"
        )
        torch.manual_seed(config.seed)  # dropout

    def batches(self):
        "For each step that is left, this rank's micro-batches; they may be asked for before the step is made."
        at = self.step
        while at < self.job.length.steps:
            epoch, done = divmod(at, self.job.length.epoch_steps)
            self.loader.set_epoch(epoch)
            micro = iter(self.loader)
            for number, step in enumerate(self.sampler.steps()):
                parts = list(islice(micro, len(step)))
                if number < done:
                    continue
                yield parts
                at += 1
                if at >= self.job.length.steps:
                    return


# %% [markdown]
# The first step of a run of the tiny model: one micro-batch, of two samples that lie end to end.

# %% tags=["example"]
job = plan(LoopConfig(run="runs/never", base_model="tiny", max_seq_len=600), Ranks(), find_device("cpu", "float32"))
model, _ = load_base("tiny", job.device)
require_apart(job, model)
model = add_adapter(model, job.config.lora, job.config.seed)
parts = next(TrainState(job, model).batches())
len(parts), {name: tuple(value.shape) for name, value in parts[0].items() if hasattr(value, "shape")}


# %% [markdown]
# ## The loop
#
# `learn_from` and `train` are the page that this chapter is about. Read it from top to bottom: what comes before the first line and after the last one stands in [the chapter on the life of a run](44_lifecycle.ipynb), and what it calls is one line or one library function each. At the end, the best step is loaded.

# %%
#| export
class Loop(TrainState):
    "Training, written out."

    name = "loop"

    def learn_from(
        self,
        parts: list,  # this rank's micro-batches of one step
        weight: float,  # the loss weights of the global batch, added up
    ) -> tuple:  # (this rank's part of the loss, norm of the gradient), both tensors
        "One step: forward, backward, clipping, optimizer."
        import torch

        loss = torch.zeros((), device=self.device)
        # gradients of the micro-batches add up
        for part in parts:
            part_loss = weighted_loss(self.model, to_device(part, self.device), weight, self.job.recorder.hear)
            part_loss.backward()
            loss += part_loss.detach()
        sum_gradients(self.parameters)  # and those of the ranks
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.job.config.max_grad_norm)
        self.optimizer.step()
        # once a step, not once a micro-batch
        self.optimizer.zero_grad()
        return loss, norm

    def train(self):
        "From this step to the last."
        recorder, length = self.job.recorder, self.job.length
        recorder.begin()
        self.model.train()
        batches = self.batches()
        parts = next(batches, None)
        while parts:
            weight = recorder.count(parts)
            recorder.step_begins()
            # computed, not read: on a device the rate is a tensor
            rate = self.schedule.base_lrs[0] * self.schedule.lr_lambdas[0](self.schedule.last_epoch)
            loss, norm = self.learn_from(parts, weight)
            parts = next(batches, None)  # made while the device is at work
            self.schedule.step()
            self.step += 1
            stop = recorder.step_ends(self.step)
            # for metrics.jsonl and the progress line
            recorder.learned(self.step, total(float(loss))[0], norm.item(), rate)
            # lines of text, where they are due
            recorder.speak(self.step)
            if due := stop or length.evaluates(self.step):
                self.evaluate()
            if due or recorder.asked:
                save_checkpoint(self)
                recorder.stop_if_asked(self.step)
            # the time is up, or the evaluation saw that it gets worse
            if stop or recorder.stopped_early:
                break

    def optimizer_state(self) -> dict:
        "What the optimizer remembers, as it is kept."
        return self.optimizer.state_dict()

    def evaluate(self):
        "The held-out loss and its perplexity; the recorder says which step is best so far."
        valid, pad_id = self.job.samples["valid"], self.job.maker.tokenizer.pad_token_id
        loss = heldout_loss(self.model, valid, pad_id, self.job.config.resolved()["micro_batch_size"])
        self.job.recorder.evaluated(self.step, loss)
        self.best = self.job.recorder.best

    def learn(
        self,
        resumed: int,  # the step of the last checkpoint; 0: from the beginning
        first,  # called when the model is where it will be trained
    ):
        "Take the model to the end of the run, its best step loaded."
        first()
        if resumed:
            load_checkpoint(self, resumed)
        if self.step < self.job.length.steps and not self.job.recorder.stopped_early:
            self.train()
        load_weights(self.model, checkpoint_folder(self.job.run, self.best[0]))


# %% [markdown]
# ## Checkpoint and resume
#
# To go on as if nothing had happened, a run needs more than weights: the optimizer's two means for each parameter, the place in the schedule, the state of the random numbers (dropout draws them; each rank has its own), the step, and which step was best so far. It is written under a hidden name and renamed when it is whole, as [the chapter on the history of a run](43_history.ipynb) has it. The files are those of Trainer: either engine goes on from the other's checkpoint.

# %%
#| export
def random_state(
    device,  # a torch.device
) -> dict:  # of the CPU, and of the accelerator where there is one
    "Where the random numbers stand."
    import torch

    return {
        "cpu": torch.get_rng_state(),
        **({} if device.type == "cpu" else {"device": torch.get_device_module(device).get_rng_state(device)}),
    }


def set_random_state(
    state: dict,  # what `random_state` gave
    device,  # a torch.device
):
    "Let the random numbers go on from there."
    import torch

    torch.set_rng_state(state["cpu"])
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


def save_checkpoint(
    loop: Loop,  # it has just made a step
):
    "Write all that is needed to go on, and let go of old checkpoints. All ranks must call it."
    import torch

    run, length, (best, loss), states = loop.job.run, loop.job.length, loop.best, gather(random_state(loop.device))
    with new_checkpoint(run, loop.step) as part:
        if loop.job.ranks.is_main:
            loop.model.save_pretrained(part)
            for name, what in (
                ("optimizer", loop.optimizer_state()),
                ("scheduler", loop.schedule.state_dict()),
                ("random", states),
            ):
                torch.save(what, part / f"{name}.pt")
            write_json(
                part / STATE,
                {
                    "global_step": loop.step,
                    "max_steps": length.steps,
                    "epoch": loop.step / length.epoch_steps,
                    "best_metric": loss if best else None,
                    "best_global_step": best,
                    "best_model_checkpoint": str(checkpoint_folder(run, best)) if best else None,
                    "train_batch_size": loop.sampler.sizes[1],
                    "logging_steps": 1,
                    "eval_steps": length.eval_steps,
                    "save_steps": length.eval_steps,
                    "stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}},
                },
            )
    if loop.job.ranks.is_main:
        thin_out(run, loop.job.config.save_total_limit, best)


def load_checkpoint(
    loop: Loop,  # a fresh one
    step: int,  # of the checkpoint
):
    "Bring a loop to where it was."
    import torch

    at = checkpoint_folder(loop.job.run, step)
    load_weights(loop.model, at)
    loop.optimizer.load_state_dict(torch.load(at / "optimizer.pt", map_location="cpu", weights_only=True))
    loop.schedule.load_state_dict(torch.load(at / "scheduler.pt", weights_only=True))
    loop.step, loop.best = step, state_of(loop.job.run, step)
    states = torch.load(at / "random.pt", weights_only=True) if (at / "random.pt").is_file() else []
    if len(states) != loop.job.ranks.world_size:
        return  # another number of ranks draws other numbers
    set_random_state(states[loop.job.ranks.rank], loop.device)


# %% [markdown]
# A loop that has come to step 7, and a fresh one that goes on from there:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    job = replace(job, run=Path(folder))
    killed, fresh = Loop(job, model), Loop(job, model)
    killed.step, killed.best = 7, (6, 3.21)
    save_checkpoint(killed)
    load_checkpoint(fresh, 7)
    print(*sorted(p.name for p in checkpoint_folder(folder, 7).iterdir()), sep=", ")
fresh.step, fresh.best


# %% [markdown]
# ## The job

# %%
#| export
def loop(
    config: LoopConfig,  # the settings
    made: Prepared | None = None,  # the data itself, not written yet; None: what the settings name
) -> dict:  # the summary, also in summary.json; ValueError or a file error, in one sentence, if it cannot be done
    "Train by hand; returns and writes the summary."
    return run_job(config, Loop, made)


# %% [markdown]
# ## From the parameters at the top

# %%
config = LoopConfig.from_names(globals())
summary, me = loop(config), find_ranks()
if me.is_main:
    print(summary_text(summary))

# %% [markdown]
# Who computed what: of several ranks, each shows itself, and rank 0 all of them.

# %%
shares = pd.DataFrame(summary["ranks"]).set_index("rank").round(3)
shares if me.is_main else shares.loc[[me.rank]]

# %% [markdown]
# The rest is the same for all ranks, and rank 0 shows it: the losses of the steps and the held-out loss between them, and the same as perplexity. (A run of an epoch has a curve, `loss.png`; a few steps are better read as a table.)

# %%
told = pd.DataFrame([r for r in read_jsonl(Path(config.run) / "metrics.jsonl") if "samples" not in r])
names = ["train_loss_nats", "valid_loss_nats", "learning_rate", "grad_norm"]
told.groupby("step").first()[names].round(5) if me.is_main else None

# %%
perplexities(config.run).round(2) if me.is_main else None

# %% [markdown]
# What the model said on the way, beside the real lines:

# %%
what_was_said(config.run) if me.is_main else None

# %%
pd.Series(summary["provenance"], name="provenance").to_frame()

# %% [markdown]
# ## Beside Trainer
#
# The tests hold the losses, gradient norms and rates of fifty steps within 1e-5 of Trainer's, for adapters and for the whole model, with accumulation, on one rank and on two, and with a resume in the middle; on one rank the two are usually equal to the last bit. The same on an H100, twenty steps of SmolLM2 each (`tests/gpu_lessons.py`): in 32 bits nothing differs, in bfloat16 the order of sums does.

# %% tags=["example"]
rows = [r for r in read_jsonl(chapters_dir() / "_results" / "gpu_lessons.jsonl") if r["kind"] == "beside trainer"]
pd.DataFrame(
    [
        {
            "mode": r["mode"],
            "dtype": r["dtype"],
            "largest difference, nats": r["largest_difference"],
            "speed, loop : trainer": r["tokens_per_s"][1] / r["tokens_per_s"][0],
        }
        for r in rows
    ]
).round(4)
