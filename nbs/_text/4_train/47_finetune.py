# %%
#| default_exp train.finetune

# %% [markdown]
# # Fine-tuning
#
# > The workhorse: prepared scenes in, an adapter that speaks out, with everything in between written down.
#
# All parts are there: scenes, tokens with weights, a base model, an adapter, and what surrounds the steps of a run. The loop by hand showed the steps themselves. This chapter lets the Trainer of Hugging Face do them, which brings what a page of code leaves out: models that are spread over several devices, more ways to compute with less memory, and the experience of many users. It is told our loss, our batches and our evaluation, which count each token by its weight; everything else (records, progress, samples of text, a refusal to call a run healthy that learned nothing) is the same as for the loop.
#
# This chapter is the program. `simpsons-llm finetune`, `papermill nbs/4_train/47_finetune.ipynb out.ipynb -p max_steps 10` and "run all" do the same. `simpsons-llm launch -n 4 finetune` runs it once per rank; every cell below is reached by every rank.

# %% tags=["parameters"]
data = "springfield"  # a folder that prepare wrote; or a script, which is then prepared with the defaults
run = "runs/finetune"  # the run's folder
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
epochs = None  # passes over the data; book 1, seed 3
max_steps = None  # optimizer steps; overrules epochs
max_minutes = None  # stop at the next step after so many minutes, with what was learned so far
eval_steps = None  # optimizer steps between evaluations and checkpoints; book 4 a run, seed 50
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
sharding = "auto"  # none: a rank holds the model (DDP); fsdp: a part; auto: fsdp if mode=full or it is too big
use_ipex = False  # intel-extension-for-pytorch: only with torch 2.8 and where it is installed

# %% [markdown]
# Who is this? A rank that believes to be alone among four must be seen at once. The line also completes the environment, before any library that reads it is loaded.

# %%
from simpsons_llm.machine.distributed import who_am_i

print(who_am_i(device, dtype, backend))

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

from simpsons_llm.data.batches import RankBatches, accumulation_steps, as_features, share_loader
from simpsons_llm.data.prepare import Prepared
from simpsons_llm.machine.device import load_ipex, require_ipex
from simpsons_llm.machine.job import require, same_parameters
from simpsons_llm.model.loss import collator, heldout_loss
from simpsons_llm.train.config import TrainConfig, make_optimizer, make_schedule, run_length
from simpsons_llm.train.history import STATE, checkpoint_folder, new_checkpoint, thin_out
from simpsons_llm.train.lifecycle import Job, run_job
from simpsons_llm.train.loop import weighted_loss
from simpsons_llm.train.sharding import fsdp_arguments, load_weights, sharded_trainer
from simpsons_llm.train.speed import FastLoop, slow_because, unrecorded_because

# %%
#| hide
import io
import tempfile
from contextlib import redirect_stdout

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML

from simpsons_llm.data.prepare import load_data
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device, find_ranks
from simpsons_llm.machine.job import read_jsonl
from simpsons_llm.model.adapter import load_tuned
from simpsons_llm.model.infer import before_after, heldout_moments
from simpsons_llm.train.history import perplexities, plot_losses, what_was_said
from simpsons_llm.train.lifecycle import KEPT, data_folder, estimate_run, plan, summary_text
from simpsons_llm.train.loop import LoopConfig, loop

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## The settings
#
# Those of every training run, and two that only this engine has: how ranks share the model, and Intel's extension.

# %%
#| export
SHARDINGS = ("auto", "none", "fsdp")


@dataclass
class FinetuneConfig(TrainConfig):
    "Settings of the finetune job."

    run: str = "runs/finetune"  # the run's folder
    sharding: str = "auto"  # none: a rank holds the model (DDP); fsdp: a part; auto: fsdp if mode=full or it is too big
    use_ipex: bool = False  # intel-extension-for-pytorch: only with torch 2.8 and where it is installed

    exchange = "buckets"  # no setting: how DDP sends gradients

    def check(self):
        super().check()
        require(self.sharding in SHARDINGS, f"sharding={self.sharding!r} was given; expected {', '.join(SHARDINGS)}")
        require(
            self.sharding != "fsdp" or self.quantization == "none",
            "sharding=fsdp was given with quantization=nf4, whose packed weights are not shared out here; "
            "use one of the two",
        )
        if self.use_ipex:
            require_ipex()


# %% tags=["check"]
assert same_parameters(FinetuneConfig, "finetune")
assert FinetuneConfig(recipe="seed", r="16").resolved() == TrainConfig(recipe="seed", r=16).resolved()
for wrong in (dict(sharding="zero"), dict(sharding="fsdp", quantization="nf4"), dict(learning_rate=3)):
    try:
        FinetuneConfig(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert next(iter(wrong)) in str(e), e


# %% [markdown]
# ## The trainer
#
# An ordinary Trainer is told the loss, its weight over a global batch, the batches, the optimizer with its schedule, the evaluation, and which step is best: the same functions that [the loop by hand](45_loop.ipynb) calls. A batch is laid end to end; for a model that cannot have that, samples of similar length go into one batch, so that little has to be filled up. The class is made in a function, so that this module can be imported without loading transformers.

# %%
#| export
def make_trainer(
    model,  # a PEFT model, or a plain one that is trained in full
    arguments,  # transformers.TrainingArguments
    train,  # `Sample`s, or `PackedRows` of them
    valid: list,  # `Sample`s
    pad_id: int,  # the padding token
    meter,  # the `Recorder`, or a `Meter`: counts each step's micro-batches, and hears their losses
    run,  # the run's folder
    callbacks: list | tuple = (),  # transformers.TrainerCallbacks
    lora_plus_ratio: float = 1.0,  # the learning rate of B over that of A
    grouped: bool = False,  # samples of similar length into one batch
    use_ipex: bool = False,  # prepare model and optimizer with Intel's extension
    keep: int = 3,  # checkpoints to keep
):  # a Trainer
    "A Trainer that knows loss weights, global batches and ranks."
    from transformers import Trainer

    items, lengths = as_features(train)
    batches = RankBatches(
        lengths,
        arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        arguments.per_device_train_batch_size,
        arguments.process_index,
        arguments.world_size,
        arguments.seed,
        grouped,
    )

    class ScriptTrainer(sharded_trainer(Trainer)):  # type: ignore[misc]  # a class made when it is asked for
        def get_train_dataloader(self):
            return share_loader(items, self.data_collator, batches, arguments.dataloader_pin_memory)

        def create_optimizer(self, *given):
            if self.optimizer is None:
                self.optimizer = make_optimizer(
                    self.model,
                    arguments.learning_rate,
                    lora_plus_ratio,
                    "fused" in arguments.optim,
                    arguments.weight_decay,
                )
            if use_ipex:
                with_ipex(self.model, self.optimizer)
            return super().create_optimizer(*given)

        def create_scheduler(self, num_training_steps, optimizer=None):
            if self.lr_scheduler is None:
                self.lr_scheduler = make_schedule(
                    optimizer or self.optimizer, arguments.warmup_steps, num_training_steps
                )
            return super().create_scheduler(num_training_steps, optimizer)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # gradients are averaged over ranks, the sum is meant
            return weighted_loss(model, inputs, num_items_in_batch, meter.hear) * self.accelerator.num_processes

        # called once a step
        def _get_num_items_in_batch(self, parts, device):
            return meter.count(parts)

        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            loss = heldout_loss(
                self.accelerator.unwrap_model(self.model), valid, pad_id, arguments.per_device_eval_batch_size
            )
            metrics = {f"{metric_key_prefix}_loss": loss}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _determine_best_metric(self, metrics, trial):
            before = self.state.best_global_step
            self.state.best_global_step, self.state.best_metric = meter.best
            return self.state.best_global_step != before

        def _save_checkpoint(self, model, trial):
            best = self.state.best_global_step or 0  # none yet where a signal came before the first evaluation
            self.state.best_model_checkpoint = str(checkpoint_folder(run, best)) if best else None
            with new_checkpoint(run, self.state.global_step) as part:
                self.save_model(str(part), _internal_call=True)
                self._save_optimizer_and_scheduler(str(part))
                self._save_rng_state(str(part))
                if self.args.should_save:
                    self.state.stateful_callbacks["TrainerControl"] = self.control.state()
                    self.state.save_to_json(str(part / STATE))
            if self.args.should_save:
                thin_out(run, keep, best)

    trainer = ScriptTrainer(
        model=model,
        args=arguments,
        train_dataset=items,
        eval_dataset=[items[0]],
        data_collator=collator(model, pad_id),
        callbacks=list(callbacks),
    )
    # the loss above is already that of the global batch
    trainer.model_accepts_loss_kwargs = trainer.loss_is_scaled_for_ga = True
    return trainer


def with_ipex(
    model,  # the model, before it is wrapped for several ranks
    optimizer,  # its optimizer
):  # (model, optimizer), prepared in place
    "Let Intel's extension prepare a model for training; number types and the layout of weights stay as they are."
    return load_ipex().optimize(model.train(), optimizer=optimizer, inplace=True, weights_prepack=False)


# %% [markdown]
# The rest is configuration.

# %%
#| export
def training_arguments(
    config: TrainConfig,  # the settings
    samples: int,  # number of training samples, or of rows
    device,  # the `Device`
    world_size: int = 1,  # ranks
    sharded: bool = False,  # each rank holds a part of the model
):  # transformers.TrainingArguments
    "Our settings in the words of Trainer."
    from transformers import TrainingArguments

    s = config.resolved()
    accumulation, length = (
        accumulation_steps(s["global_batch_size"], s["micro_batch_size"], world_size),
        run_length(config, samples),
    )
    arguments = TrainingArguments(
        output_dir=str(Path(config.run) / "checkpoints"),
        max_steps=length.steps,
        per_device_train_batch_size=s["micro_batch_size"],
        per_device_eval_batch_size=s["micro_batch_size"],
        gradient_accumulation_steps=accumulation,
        learning_rate=s["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=length.warmup_steps,
        weight_decay=s["weight_decay"],
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch" if device.type == "cpu" else "adamw_torch_fused",
        seed=config.seed,
        bf16=device.dtype == "bfloat16",
        use_cpu=device.type == "cpu",
        eval_strategy="steps",
        eval_steps=length.eval_steps,
        save_strategy="steps",
        save_steps=length.eval_steps,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type != "cpu",
        ddp_find_unused_parameters=False,
        **(fsdp_arguments() if sharded else {}),
    )
    # one process, one device: never DataParallel
    if world_size == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


# %% [markdown]
# ## Trainer as an engine
#
# A callback hands what happens to the recorder, which writes, counts, lets the model speak and watches the time. It also asks for an evaluation and a checkpoint at the moments that are due.

# %%
#| export
def make_reporter(
    job: Job,  # the run
):  # a transformers.TrainerCallback; `first` is called before the first step, `resumed` tells from which
    "The recorder's ears in Trainer."
    from transformers import TrainerCallback

    recorder, length = job.recorder, job.length

    class Reporter(TrainerCallback):
        first = None

        def on_train_begin(self, args, state, control, **_):
            if self.first:
                self.first()
            recorder.begin()
            # the run may have been moved
            if state.best_model_checkpoint:
                state.best_model_checkpoint = str(job.run / "checkpoints" / Path(state.best_model_checkpoint).name)

        def on_step_begin(self, args, state, control, **_):
            recorder.step_begins()

        def on_step_end(self, args, state, control, **_):
            stop = recorder.step_ends(state.global_step)
            control.should_training_stop |= stop
            control.should_evaluate = stop or length.evaluates(state.global_step)
            control.should_save = control.should_evaluate or recorder.asked

        def on_save(self, args, state, control, **_):
            recorder.stop_if_asked(state.global_step)

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                recorder.learned(state.global_step, logs["loss"], logs["grad_norm"], logs["learning_rate"])
                recorder.speak(state.global_step)
            if "eval_loss" in logs:
                recorder.evaluated(state.global_step, logs["eval_loss"])

        def on_evaluate(self, args, state, control, **_):
            control.should_training_stop |= recorder.stopped_early

    return Reporter()


# %% [markdown]
# A run may have been killed between its last step (or the one at which it stopped early) and its end. Then no step is left to do, and the best one is loaded from its checkpoint. A sharded model is spread over the devices only when Trainer begins, so whatever comes first, the score of the base, waits until then.

# %%
#| export
class TrainerEngine:
    "Hugging Face Trainer, as the chapter on the life of a run wants it."

    name = "trainer"

    def __init__(
        self,
        job: Job,  # the run
        model,  # the model, ready to be trained
    ):
        from transformers import PrinterCallback

        config = job.config
        self.job, self.reporter = job, make_reporter(job)
        arguments = training_arguments(config, len(job.items), job.device, job.ranks.world_size, job.sharded)
        self.trainer = make_trainer(
            model,
            arguments,
            job.items,
            job.samples["valid"],
            job.maker.tokenizer.pad_token_id,
            job.recorder,
            job.run,
            [self.reporter],
            config.lora_plus_ratio,
            not job.isolated,
            config.use_ipex,
            config.save_total_limit,
        )
        self.trainer.remove_callback(PrinterCallback)  # our own lines instead of dicts

    @property
    def model(self):
        return self.trainer.model

    @property
    def step(self) -> int:
        return self.trainer.state.global_step

    @property
    def best(self) -> tuple:
        return int(self.trainer.state.best_model_checkpoint.rsplit("-", 1)[1]), self.trainer.state.best_metric

    def learn(
        self,
        resumed: int,  # the step of the last checkpoint; 0: from the beginning
        first,  # called when the model is where it will be trained
    ):
        "Take the model to the end of the run, its best step loaded."
        finished = resumed >= self.job.length.steps or self.job.recorder.stopped_early
        sharded = self.job.sharded
        if sharded and finished:
            self.trainer.shard()
        if sharded and not finished:
            self.reporter.first = first
        else:
            first()
        if finished:
            self.load_best(resumed)
        else:
            self.trainer.train(
                resume_from_checkpoint=str(checkpoint_folder(self.job.run, resumed)) if resumed else None
            )

    def load_best(
        self,
        step: int,  # of the last checkpoint
    ):
        "Bring the trainer to where training ended: its state, and what was learned up to the best step."
        from transformers import TrainerState

        trainer, folder = self.trainer, checkpoint_folder(self.job.run, step)
        trainer.state = TrainerState.load_from_json(str(folder / STATE))
        load_weights(trainer.model, folder.with_name(Path(trainer.state.best_model_checkpoint).name))


# %% [markdown]
# ## Which engine
#
# Both engines give the same numbers and go on from each other's checkpoints. On an accelerator [the fast loop](46_speed.ipynb) takes a fraction of the time, as long as one device holds the whole model. Trainer does the rest, and everything with `compile=none`: it is the reference.

# %%
#| export
def engine_for(
    job: Job,  # the run
    model,  # the model, ready to be trained
):  # a `FastLoop` where its steps can be recorded or compiled, else a `TrainerEngine`
    "The engine of a run."
    import torch

    device, trained = torch.device(job.device.torch), sum(p.numel() for p in model.parameters() if p.requires_grad)
    plain = job.config.compile == "none" or job.sharded or job.config.use_ipex
    only_graph = job.config.compile == "graph" and unrecorded_because(job, device, trained)
    return TrainerEngine(job, model) if plain or only_graph or slow_because(job, device) else FastLoop(job, model)


engine_for.name = TrainerEngine.name  # type: ignore[attr-defined]  # whose folder it is


# %% [markdown]
# ## The job

# %%
#| export
def finetune(
    config: FinetuneConfig,  # the settings
    made: Prepared | None = None,  # the data itself, not written yet; None: what the settings name
) -> (
    dict
):  # the summary, also written as summary.json; ValueError or a file error, in one sentence, if it cannot be done
    "Fine-tune a base model on prepared scenes; returns and writes the summary."
    return run_job(config, engine_for, made)


# %% [markdown]
# Trainer is some ten thousand lines, the loop a page. Do they do the same? Eight steps of four micro-batches each, an adapter on the tiny model, from the same settings:

# %% tags=["example"]
def losses_of(train, config, **more):
    "Training losses of a short run."
    run = Path(tempfile.mkdtemp()) / "run"
    with redirect_stdout(io.StringIO()):
        train(
            config(
                run=str(run),
                base_model="tiny",
                max_seq_len=600,
                max_steps=8,
                eval_steps=8,
                sample_steps=0,
                global_batch_size=4,
                micro_batch_size=1,
                learning_rate=3e-3,
                device="cpu",
                **more,
            )
        )
    return [r["train_loss_nats"] for r in read_jsonl(run / "metrics.jsonl") if "train_loss_nats" in r]


both = pd.DataFrame(
    {"by hand": losses_of(loop, LoopConfig), "by Trainer": losses_of(finetune, FinetuneConfig)},
    index=pd.RangeIndex(1, 9, name="step"),
)
both.assign(apart=(both["by hand"] - both["by Trainer"]).abs())

# %% [markdown]
# Tests hold fifty steps to 1e-5, for adapters and whole models, on one rank and two, and with a kill in the middle; either engine goes on from the other's checkpoint.

# %% tags=["check"]
assert (both["by hand"] - both["by Trainer"]).abs().max() < 1e-5 and both["by hand"].iloc[-1] < both["by hand"].iloc[
    0
] - 0.1

# %% [markdown]
# ## From the parameters at the top

# %%
config = FinetuneConfig.from_names(globals())
pd.Series({**config.resolved(), "seed": config.seed, "max_steps": config.max_steps}, name="setting").to_frame()

# %%
summary, me = finetune(config), find_ranks()
if me.is_main:
    print(summary_text(summary))

# %% [markdown]
# Who computed what: of several ranks, each shows itself, and rank 0 all of them.

# %%
shares = pd.DataFrame(summary["ranks"]).set_index("rank").round(3)
shares if me.is_main else shares.loc[[me.rank]]

# %% [markdown]
# The rest is the same for all ranks, and rank 0 shows it. What was learned: one sample, token by token.

# %%
HTML((Path(config.run) / "audit.html").read_text(encoding="utf8")) if me.is_main else None

# %% [markdown]
# Does it learn, and when would it stop learning? The held-out loss tells; the star marks the step that was kept. Below it the same as perplexity.

# %%
if me.is_main:
    plot_losses(config.run)
    plt.show()

# %%
perplexities(config.run).round(2) if me.is_main else None

# %% [markdown]
# And how did it talk on the way? The most likely words at three moments of one validation scene:

# %%
what_was_said(config.run) if me.is_main else None

# %%
facts = {k: v for k, v in summary.items() if not isinstance(v, (dict, list))}
pd.Series(
    {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}, name="summary"
).to_frame() if me.is_main else None

# %% [markdown]
# What did it cost, and was that foreseen? Before the weights were loaded, the largest micro-batch was counted. On a CPU that count is a lower bound, since the system's memory also has holes that no tensor fills.

# %%
told = summary["predicted"]
pd.DataFrame(
    {
        "predicted": {"trainable parameters": told["trainable"], "peak memory, GiB": told["peak_mem_gib"]},
        "measured": {
            "trainable parameters": summary["trainable_parameters"],
            "peak memory, GiB": summary["peak_mem_gib"],
        },
    }
).round(2)

# %% [markdown]
# With the speed of this device measured too, on two and ten layers ([the chapter on costs](41_cost.ipynb)), time and the memory of a CPU can be told as well:

# %% tags=["example"]
timed = estimate_run(plan(config, find_ranks(), find_device(config.device, config.dtype)))
cost = pd.DataFrame(
    {
        "predicted": {
            "peak memory, GiB": timed.peak_mem_gib - timed.in_use_gib + told["in_use_gib"],
            "tokens/s": timed.tokens_per_s,
        },
        "measured": {"peak memory, GiB": summary["peak_mem_gib"], "tokens/s": summary["tokens_per_s"]},
    }
)
cost.assign(ratio=cost["predicted"] / cost["measured"]).round(3)


# %% [markdown]
# Does it speak? Three moments of a validation scene: the real line, the base model, the fine-tuned one.

# %%
def speak():
    again, tokenizer, notes = load_tuned(Path(config.run) / KEPT[config.mode], find_device(config.device, config.dtype))
    parts, _ = load_data(data_folder(config))
    return pd.DataFrame(
        before_after(
            again,
            TextMaker.of_notes(tokenizer, notes),
            heldout_moments(parts["valid"], list(notes["speakers"])[:3], most_scenes=1),
            notes=notes,
        )
    )


speak() if me.is_main else None

# %%
pd.Series(summary["provenance"], name="provenance").to_frame()
