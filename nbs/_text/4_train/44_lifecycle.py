# %%
#| default_exp train.lifecycle

# %% [markdown]
# # The life of a run
#
# > What surrounds the steps: data, plan, and what is left at the end, the same for whoever does the steps.
#
# Take the training itself away, and most of a training program is still there. It finds its data, decides how samples share a batch, refuses what cannot fit, goes on after a kill, keeps the best checkpoint, and sums up. All that stands here, once; what is told on the way stands in [the chapter on the history of a run](43_history.ipynb). The steps are done by an *engine*: the one of [the loop by hand](45_loop.ipynb), or [the Trainer](47_finetune.ipynb) of Hugging Face. An engine has a `name`, a `model`, the number of the `step` it has reached, the `best` step with its loss, and `learn`, which takes it to the end.

# %%
#| export
import math
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from simpsons_llm.data.batches import accumulation_steps, global_batches
from simpsons_llm.data.dataset import cache_key, kept_samples
from simpsons_llm.data.packing import PackedRows, base_of, can_isolate, leaks_between, packs_well, row_shape
from simpsons_llm.data.prepare import PrepareConfig, Prepared, load_data, read_and_split, write_prepared
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.data.samples import audit, row_samples, scene_samples, write_audit
from simpsons_llm.machine.device import (
    Device,
    Ranks,
    complete_env,
    find_device,
    find_ranks,
    load_ipex,
    memory_gib,
    peak_memory_gib,
    reset_peak_memory,
    set_threads,
)
from simpsons_llm.machine.distributed import gather, group_ranks, join_group, main_first, on_main, rank_env
from simpsons_llm.machine.job import (
    LISTENER,
    MANIFEST,
    Progress,
    again_command,
    again_launched,
    format_seconds,
    hold_folder,
    is_sealed,
    listening,
    provenance,
    require,
    seal,
    set_aside,
    unseal,
    write_json,
    write_text,
)
from simpsons_llm.model.adapter import (
    add_adapter,
    read_summary,
    recompute_activations,
    save_adapter,
    save_model,
    trainable_parameters,
)
from simpsons_llm.model.base import ask_by_doing, find_base, load_base, load_config, load_tokenizer, shape_of
from simpsons_llm.model.infer import heldout_moments
from simpsons_llm.model.loss import ScoreLimit, heldout_loss, scored, widest
from simpsons_llm.train.config import RunLength, TrainConfig, evaluations, run_length
from simpsons_llm.train.cost import (
    COMFORT,
    Estimate,
    Recipe,
    largest_within,
    limit_scoring,
    on_rank,
    require_room,
    room_gib,
    with_time,
)
from simpsons_llm.train.history import (
    ASKED,
    ASKED_ON_CPU,
    WORSE,
    Gate,
    Recorder,
    Stopwatch,
    checkpoint_folder,
    gate_facts,
    last_checkpoint,
    leave_out,
    open_tracker,
    passed_over,
    plot_losses,
    take_up,
    text_samples,
    whole_checkpoint,
)
from simpsons_llm.train.sharding import gather_weights

# %%
#| hide
import tempfile
from types import SimpleNamespace

import pandas as pd

from simpsons_llm.train.history import new_checkpoint


# %% [markdown]
# ## Data for the run
#
# A folder of prepared data is read as it is. A script is read and split in memory; it is written into the run's folder when all checks have passed, and not before, so that a run that is refused leaves nothing behind and an estimate writes nowhere. The label audit of [the chapter on samples](../1_data/16_samples.ipynb) stands before every training.

# %%
#| export
def data_folder(
    config: TrainConfig,  # the settings
) -> Path:  # what `load_data` reads
    "Where the prepared data of a run lies."
    return Path(config.data) if Path(config.data).is_dir() else Path(config.run) / "data"


def run_data(
    config: TrainConfig,  # the settings
    made: Prepared | None = None,  # the data itself, not written yet; None: what the settings name
) -> tuple:  # (split name -> `Scene`s, report, `Prepared` that is still to be written or None)
    "Prepared data of a run; nothing is written. All ranks must call it."
    if made:
        return made.parts, made.report, made
    require(config.data.strip(), "data was given as nothing; give a folder that prepare wrote, or a script file")
    if data_folder(config) == Path(config.data):
        if (Path(config.data) / "summary.json").is_file() and (Path(config.data) / "data").is_dir():
            raise ValueError(f"{config.data} is a run; the data that it learned from is {Path(config.data) / 'data'}")
        return *load_data(config.data), None
    if config.data != "springfield" and not Path(config.data).is_file():
        raise FileNotFoundError(f"no data at {config.data}; give a folder that prepare wrote, or a script file")
    made = on_main(group_ranks(), lambda: read_and_split(PrepareConfig(script=config.data)))
    return made.parts, made.report, made


def holds_data(
    folder: Path,  # where prepared data may lie
    made: Prepared,  # what `run_data` gave
) -> bool:
    "Whether just this data lies in a folder, whole, with the same characters to learn."
    try:
        there = load_data(folder)[1]
        return all(there[k] == made.report[k] for k in ("data_sha256", "speakers"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


# %% tags=["example"]
parts, report, made = run_data(TrainConfig())
print({name: f"{len(scenes)} scenes" for name, scenes in parts.items()})
where = data_folder(TrainConfig(run="runs/never"))
str(where), holds_data(where, made)  # where it will be written, and whether it is there


# %% [markdown]
# Then scenes become samples, in the view that was asked for. Lines that are too long are told, not dropped in silence.

# %%
#| export
def make_samples(
    config: TrainConfig,  # the settings
    maker: TextMaker,  # tokenizer and template
    parts: dict,  # split name -> `Scene`s
    report: dict,  # the data's report
    keep: bool = True,  # keep new samples in the cache folder
) -> tuple:  # (split name -> `Sample`s, split name -> number of lines too long to learn)
    "Samples of all splits in the view that was asked for; kept ones if nothing has changed."
    s, targets = config.resolved(), report["speakers"]
    options = {k: s[k] for k in ("view", "max_seq_len", "context_lines", "context_weight")}

    def make():
        samples, too_long = {}, {}
        for name, scenes in parts.items():
            if s["view"] == "rows":
                samples[name], long = row_samples(scenes, maker, targets, s["max_seq_len"], s["context_lines"])
            else:
                samples[name], long = scene_samples(scenes, maker, targets, s["max_seq_len"], s["context_weight"])
            too_long[name] = len(long)
        return samples, too_long

    samples, too_long, _ = kept_samples(
        cache_key(maker, report["data_sha256"], targets=targets, **options), make, keep=keep
    )
    return samples, too_long


# %% tags=["example"]
maker = TextMaker(load_tokenizer("tiny"), "script")
views = {
    (view, most): make_samples(TrainConfig(view=view, max_seq_len=most), maker, parts, report, keep=False)
    for view, most in (("scenes", 600), ("rows", 600), ("scenes", 100))
}
pd.DataFrame(
    {
        f"{view} of up to {most} tokens": {"samples": len(samples["train"]), "lines too long": too_long["train"]}
        for (view, most), (samples, too_long) in views.items()
    }
).T


# %% [markdown]
# ## The plan
#
# All that a run consists of travels as one record. Its engine may be of any class that has these five:

# %%
#| export
class Engine(Protocol):
    "What does the steps."

    @property
    def model(self) -> Any: ...  # as it is now

    @property
    def name(self) -> str: ...

    @property
    def step(self) -> int: ...  # the number of steps it has made

    @property
    def best(self) -> tuple: ...  # (the step that was best, its held-out loss)

    def learn(self, resumed: int, first: Callable[[], None]): ...  # to the end of the run, its best step loaded


LATER: Any = None  # stands where a plan has nothing yet


@dataclass
class Job:
    "All that a run consists of."

    config: TrainConfig  # the settings
    run: Path  # the run's folder
    ranks: Ranks  # all of them
    device: Device  # of this rank
    maker: TextMaker  # tokenizer and template
    samples: dict  # split name -> `Sample`s
    counts: dict  # what `audit` counted in the training samples
    too_long: dict  # split name -> number of lines that were too long to learn
    report: dict  # the data's report
    base: str  # the base model's name
    shape: object  # its transformers configuration
    items: list | PackedRows  # what batches are made of: training `Sample`s, or rows of them
    layout: str  # how samples share a batch, in words
    isolated: bool  # samples of a batch lie end to end and do not see each other
    told: Estimate  # what a step will cost on one rank
    sharded: bool  # each rank holds a part of the model (FSDP)
    length: RunLength  # how many steps, and what happens at which
    moments: list  # where text is sampled: what `heldout_moments` chose in a validation scene
    made: Prepared | None = None  # data of a script, not written yet
    limit: ScoreLimit | None = None  # how much of held-out samples is scored at once; None: as a CPU does it
    gate: Gate | None = None  # what keeps steps that recite from being kept; None: nothing
    resumed: int = 0  # step of the checkpoint that it goes on from; 0: from the beginning
    recorder: Recorder = LATER  # of what happens
    engine: Engine = LATER  # what does the steps

    def score(
        self,
        split: str,  # "valid" or "test"
    ) -> float:  # nats per learned token
        "The held-out loss of the model as it is now. All ranks must call it."
        progress = Progress(len(self.samples[split]), f"score {split}", "samples", show=self.ranks.is_main)
        with self.recorder.watch.during("score"), self.autocast():
            return heldout_loss(
                self.engine.model,
                self.samples[split],
                self.maker.tokenizer.pad_token_id,
                self.config.resolved()["micro_batch_size"],
                progress,
            )

    def say(self) -> list:  # rows, as `text_samples` gives them; none where this rank is not asked
        "Samples of text of the model as it is now. All ranks must call it."
        if not (self.ranks.is_main or self.sharded):
            return []
        with self.autocast():
            return text_samples(self.engine.model, self.maker, self.moments)

    def recites(self) -> float:  # 0..1; the same on all ranks
        "How much of what the model says now stands in training lines; for runs with a gate. All ranks must call it."
        gate, model = self.gate, self.engine.model
        assert gate

        def said():
            with self.autocast():
                return gate.answers(model, self.maker, fewer=not self.sharded)

        # who holds a part of the model must speak with the others; the first rank counts
        together = said() if self.sharded else None
        return on_main(self.ranks, lambda: gate.seen.share(said() if together is None else together))

    def fingerprint(self) -> list:  # (sum, norm) of each trained parameter; nothing of a model in parts
        "Two numbers by which weights are known again."
        import torch

        # what a rank holds of such a model at the moment depends on what was computed last
        if self.sharded:
            return []
        parts = [p.detach() for p in self.engine.model.parameters() if p.requires_grad]
        sums = [torch.stack([p.sum(dtype=widest(p.device)), p.float().norm()]).cpu() for p in parts]
        return torch.stack(sums).double().tolist()

    def autocast(self):
        """The number format of the steps, for what is measured outside of them too.

        Before and after are computed alike, whatever the engine has done to the model by then."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.dtype == "bfloat16")


# %% [markdown]
# Everything that can be wrong with data, names or settings shows before the earlier results are set aside:

# %%
#| export
def plan(
    config: TrainConfig,  # the settings
    ranks: Ranks,  # all of them
    device: Device,  # where it runs
    keep: bool = True,  # keep new samples in the cache folder
    made: Prepared | None = None,  # the data itself, not written yet; None: what the settings name
) -> Job:  # all but engine and recorder; ValueError or a file error where the run cannot be done
    "Everything that can be known before a weight is loaded. Nothing is written into the run's folder."
    s, name = config.resolved(), find_base(config.base_model, device.type).name
    parts, report, made = run_data(config, made)
    with main_first(ranks):  # what it keeps in the cache, others read
        maker, shape = TextMaker(load_tokenizer(name), s["template"]), load_config(name, device.type)
        samples, too_long = make_samples(config, maker, parts, report, keep)
    # others are not scored
    for split in ("valid", "test"):
        samples[split] = [x for x in samples[split] if x.learned]
    for split, long in too_long.items():
        if long and ranks.is_main:
            print(
                f"{split}: {long} lines are longer than "
                f"max_seq_len={s['max_seq_len']} tokens by themselves and are not learned"
            )
    counts = audit(samples["train"], maker, parts["train"], report["speakers"], s["max_seq_len"])
    require(
        samples["valid"], f"no line of the validation scenes fits into max_seq_len={s['max_seq_len']} tokens; raise it"
    )
    items, layout, isolated = lay_out(config, shape, samples["train"], device)
    free = config.micro_batch_size is None and device.type != "cpu"
    if free:
        config = choose_micro_batch(config, shape, samples["train"], isolated, device, ranks.world_size)
    length = run_length(config, len(items), looks(config, samples, len(items)))
    moments = heldout_moments(parts["valid"], (report["speakers"] or list(report["all_speakers"]))[:3], most_scenes=1)
    recipe = step_recipe(config, samples["train"], isolated, ranks.world_size, device)
    told, sharded = share_model(config, shape, recipe, device, ranks.world_size)
    if sharded:
        require_host(told, ranks, memory_gib("cpu"))
    if free and ranks.is_main:
        n, whole = config.resolved()["micro_batch_size"], device.memory_gib
        print(f"micro-batch {n}: {told.peak_mem_gib:.1f} of {whole:.1f} GiB predicted")
    limit = None
    if device.type != "cpu":
        # the memory of a recording is not given back in between
        room = max(room_gib(device) - told.peak_mem_gib, 0.0) if recipe.compile != "none" else math.inf
        limit = limit_scoring(shape, recipe, told, device, room)
    gate = None
    if s["gate"]:
        many = ASKED_ON_CPU if device.type == "cpu" or sharded else ASKED
        gate = Gate(parts, report["speakers"], many, s["context_lines"] if s["view"] == "rows" else None)
    return Job(
        config,
        Path(config.run),
        ranks,
        device,
        maker,
        samples,
        counts,
        too_long,
        report,
        name,
        shape,
        items,
        layout,
        isolated,
        told,
        sharded,
        length,
        moments,
        made,
        limit,
        gate if gate and gate.moments else None,
    )


def looks(
    config: TrainConfig,  # the settings
    samples: dict,  # split name -> `Sample`s
    items: int,  # what batches are made of: samples, or rows
) -> int:  # evaluations of the run
    "How often a run is evaluated, so that scoring takes a small part of its time."
    held_out = {n: sum(len(x["input_ids"]) for x in scored(samples[n])) for n in ("valid", "test")}
    epochs = run_length(config, items).steps / math.ceil(items / config.resolved()["global_batch_size"])
    trained = epochs * sum(len(x.input_ids) for x in samples["train"])
    return evaluations(trained, held_out["valid"], held_out["test"] if config.score_test else 0)


# %% [markdown]
# How samples share a batch depends on the model and the device. The model is asked what it says of itself, and by doing, with a sketch of its kind. Asked for and impossible is an error; `auto` takes what is possible and fast, and the layout tells why:

# %%
#| export
def lay_out(
    config: TrainConfig,  # the settings
    shape,  # the base model's transformers configuration
    samples: list,  # training `Sample`s
    device: Device,  # where it runs
) -> tuple:  # (samples or `PackedRows`, layout in words, whether attention must be isolated); ValueError if impossible
    "Choose how samples share a batch."
    done = ask_by_doing(shape)  # also refuses a model that reads ahead, packed or not
    reason = can_isolate(shape_of(shape)) or done
    require(
        not reason or config.packing in ("auto", "none"),
        f"packing={config.packing} was given, but this model cannot be packed: {reason}; use packing=none",
    )
    if config.packing == "auto" and not reason and not packs_well(device):
        reason = f"on {device.type} in {device.dtype} that is faster"
    if reason or config.packing == "none":
        return samples, "batches of similar length, filled up" + (f" ({reason})" if reason else ""), False
    if config.packing != "rows":
        return samples, "samples of a batch end to end", True
    rows = PackedRows(samples, config.row_len)
    return rows, f"{len(rows)} rows of {config.row_len} tokens, {rows.filling:.1%} full", True


# %% tags=["example"]
samples, shape = views["scenes", 600][0]["train"], load_config("tiny")
for packing in ("none", "flat", "rows"):
    print(f"{packing}: {lay_out(TrainConfig(packing=packing), shape, samples, find_device('cpu'))[1]}")


# %% [markdown]
# With several ranks there is a second choice. Each may hold the whole model and exchange gradients (DDP), or each may hold a part of it and borrow the rest, layer by layer (FSDP). The first is faster and is taken for adapters; the second is for what does not fit on one device, and for full fine-tuning, where weights, gradients and two numbers of the optimizer for each come to 16 bytes a parameter.

# %%
#| export
def share_model(
    config: TrainConfig,  # the settings
    shape,  # the base model's transformers configuration
    recipe: Recipe,  # the training step
    device: Device,  # where it runs
    world_size: int = 1,  # ranks
) -> tuple:  # (the `Estimate` for one rank, whether each holds only a part); ValueError where neither fits
    "Choose how ranks share the model."
    want = config.sharding if world_size > 1 and config.quantization == "none" else "none"
    if want == "none" or want == "auto" and config.mode == "lora":
        try:
            exchange = config.exchange if world_size > 1 else "none"
            return require_room(shape, recipe, device, exchange=exchange), False
        except ValueError:
            if want == "none":
                raise
    # the plain loop does the steps of a model in parts
    return require_room(shape, replace(recipe, compile="none"), device, world_size), True


# %% [markdown]
# [Fine-tuning](47_finetune.ipynb) lets it be chosen. Does each rank then hold a part only?

# %% tags=["example"]
class Choosing(TrainConfig):
    sharding = "auto"


configs = {"lora": Choosing(), "full": Choosing(mode="full")}
pd.DataFrame(
    {
        ranks: {
            m: share_model(c, shape, Recipe(c.lora, (64, 64)), find_device("cpu"), n)[1] for m, c in configs.items()
        }
        for n, ranks in ((1, "1 rank"), (2, "2 ranks"))
    }
)


# %% [markdown]
# A model in parts is loaded whole all the same, into the memory of the host, before it goes to the devices part by part: once by each rank of the machine. That is told, and refused where the host has no room for it.

# %%
#| export
def host_gib(
    told: Estimate,  # for one rank that holds a part
    ranks: Ranks,  # all of them
) -> float:  # GiB, of all ranks of this machine together
    "What loading a sharded model takes of the host's memory."
    return told.weights_gib * ranks.world_size * ranks.local_world_size


def require_host(
    told: Estimate,  # for one rank that holds a part
    ranks: Ranks,  # all of them
    room_gib: float,  # the host's memory, GiB; nan: not known
):
    "ValueError where the host cannot hold a whole model for each rank while it is loaded."
    need = host_gib(told, ranks)
    require(
        not need > room_gib,
        "a sharded model is loaded whole into the host's memory first, once by each of the "
        f"{ranks.local_world_size} ranks of a machine: {need:.1f} GiB, and this one has {room_gib:.1f}; "
        "start fewer ranks on each machine, or use sharding=none where the devices have room for it",
    )


# %% tags=["check"]
four = replace(find_ranks(), world_size=4, local_world_size=4)
part = SimpleNamespace(weights_gib=3.2)
assert (
    math.isclose(host_gib(part, four), 51.2)
    and require_host(part, four, 64.0) is None
    and require_host(part, four, math.nan) is None
)
try:
    require_host(part, four, 48.0)
    raise AssertionError
except ValueError as e:
    assert "4 ranks of a machine: 51.2 GiB, and this one has 48.0" in str(e)
    print(e)


# %% [markdown]
# What a step costs is decided by its largest micro-batch. Which samples meet in one is known beforehand: their order comes from the random seed. So the largest of the run is looked up, over all its steps and all ranks. (The largest that could be, of the longest samples, is half as large again for a script of scenes of all lengths, and would refuse runs that fit.) Steps that are recorded have rows of whole multiples of 64 tokens. [The chapter on costs](41_cost.ipynb) counts it, and refuses a run that cannot fit while nothing has been loaded yet.

# %%
#| export
def largest_micro_batch(
    config: TrainConfig,  # the settings
    samples: list,  # training `Sample`s
    isolated: bool,  # samples of a batch end to end
) -> tuple:  # (lengths of its samples, the most positions of any micro-batch at which something is learned)
    "The micro-batch with the most tokens, filled-up ones counted, of all steps."
    s = config.resolved()
    lengths, learned = [len(x.input_ids) for x in samples], [x.weighted for x in samples]
    length, micro = run_length(config, len(samples)), s["micro_batch_size"]
    found: list = []
    for epoch in range(math.ceil(length.steps / length.epoch_steps)):
        batches = global_batches(lengths, s["global_batch_size"], config.seed, epoch, grouped=not isolated)
        for batch in batches[: length.steps - epoch * length.epoch_steps]:
            found += [batch[at : at + micro] for at in range(0, len(batch), micro)]

    def tokens(part):
        return sum(lengths[i] for i in part) if isolated else len(part) * max(lengths[i] for i in part)

    return tuple(lengths[i] for i in max(found, key=tokens)), max(sum(learned[i] for i in part) for part in found)


def fast_steps(
    config: TrainConfig,  # the settings
    isolated: bool,  # samples of a batch end to end
    device: Device,  # where it runs
) -> str:  # graph, layers, or none
    "How the chapter on speed may do the steps, as far as memory is concerned: what `Recipe` calls `compile`."
    plain = config.compile == "none" or config.quantization != "none"
    uncompiled = config.gradient_checkpointing and config.compile == "graph"
    if not isolated or device.type == "cpu" or plain or uncompiled or not packs_well(device):
        return "none"
    # `auto` records a step that is not compiled first, and compiles where that pays
    return "layers" if config.compile == "layers" else "graph"


def step_recipe(
    config: TrainConfig,  # the settings
    samples: list,  # training `Sample`s
    isolated: bool,  # samples of a batch end to end
    world_size: int = 1,  # ranks
    device: Device | None = None,  # where it runs; None: steps are done by the plain loop
    largest: bool = True,  # the largest micro-batch; False: one of average size
) -> Recipe:  # for `estimate`
    "A run's training step, as the chapter on costs describes it."
    s = config.resolved()
    n, how = min(s["micro_batch_size"], len(samples)), fast_steps(config, isolated, device) if device else "none"
    if config.packing == "rows":
        lengths, learned = (config.row_len,) * n, config.row_len * n
    elif largest:
        lengths, learned = largest_micro_batch(config, samples, isolated)
        if how != "none":  # rows are filled up
            row = row_shape([[0]], [sum(lengths)], [learned])
            lengths += tuple(n for n in (row.tokens - sum(lengths),) if n)
            learned = row.learned
    else:
        lengths = (round(sum(len(x.input_ids) for x in samples) / len(samples)),) * n
        learned = n * round(sum(x.weighted for x in samples) / len(samples))
    return Recipe(
        config.lora,
        lengths,
        learned if isolated else max(lengths) - 1,
        isolated,
        accumulation_steps(s["global_batch_size"], s["micro_batch_size"], world_size),
        config.gradient_checkpointing,
        config.quantization,
        how,
    )


# %% [markdown]
# The lengths of the two samples in the largest micro-batch, and in one of average size; and how much less that is than the two longest samples there are:

# %% tags=["example"]
lengths = sorted((len(x.input_ids) for x in samples), reverse=True)
for largest in (True, False):
    print(step_recipe(TrainConfig(), samples, isolated=True, largest=largest).seq_lens)
f"the longest of all: {tuple(lengths[:2])}"


# %% [markdown]
# ### How many at once
#
# A recipe's `micro_batch_size` was chosen for any machine. An accelerator is faster with more: with rows of the predecessor's kind, 64 at once were 1.4 times as fast as 16 (a model of open_llama_3b's shape on one H200). So where no size was asked for, it is the largest that divides this rank's share of the global batch and whose predicted memory leaves two fifths of the device free. What a step learns from stays. A CPU gains nothing, and keeps the recipe's; so does a device that does not tell its memory.

# %%
#| export
def choose_micro_batch(
    config: TrainConfig,  # the settings, without micro_batch_size
    shape,  # the base model's transformers configuration
    samples: list,  # training `Sample`s
    isolated: bool,  # samples of a batch end to end
    device: Device,  # where it runs
    world_size: int = 1,  # ranks
) -> TrainConfig:  # with micro_batch_size, the same on all ranks
    "As many samples at once as an accelerator has room for. All ranks must call it."
    each, more = divmod(config.resolved()["global_batch_size"], world_size)
    if device.type == "cpu" or math.isnan(device.memory_gib) or more:
        return config
    sizes = [n for n in range(1, each + 1) if each % n == 0]

    def sized(n):
        return replace(config, micro_batch_size=n)

    def recipe(n, on=device):
        return step_recipe(sized(n), samples, isolated, world_size, on)

    # one sample at once tells how the model is shared; the plain loop does the steps of a model in parts
    sharded = world_size > 1 and share_model(config, shape, recipe(1), device, world_size)[1]
    ways = (world_size, "none") if sharded else (1, config.exchange if world_size > 1 else "none")
    found = largest_within(
        sizes,
        lambda n: on_rank(shape, recipe(n, None if sharded else device), device, *ways).peak_mem_gib,
        COMFORT * device.memory_gib,
    )
    return sized(min(gather(found)))


# %% [markdown]
# The same before any run, for `simpsons-llm estimate`: how much, how long, and on what it rests. The tokens of an epoch are those of the real samples. With `compile=auto` a step is recorded before anything is compiled, so what is told, and refused, is the step that is not compiled. Where compiled layers would take much less, that is told beside it; `compile=layers` compiles from the first step.

# %%
#| export
TELL_BOTH = 0.9  # a step whose layers are compiled is told, too, where it needs less than this share


def costs(
    config: TrainConfig,  # the settings
    made: Prepared | None = None,  # the data itself, not written yet; None: what the settings name
) -> dict:  # heading -> {what: value with unit}; ValueError where the run cannot fit
    "What a run would cost, measured on a few layers of the model."
    device, ranks = find_device(config.device, config.dtype), find_ranks()
    if device.type == "cpu":
        set_threads(ranks)
    job = plan(config, ranks, device, keep=False, made=made)
    told, average = estimate_run(job), step_recipe(job.config, job.samples["train"], job.isolated, largest=False)
    assert told.tokens_per_s is not None  # it was measured just now
    steps = job.length.steps
    tokens = steps * average.tokens * average.gradient_accumulation_steps
    step = told.table()
    recipe = step_recipe(job.config, job.samples["train"], job.isolated, device=device)
    if recipe.compile == "graph" and not job.sharded:
        compiled = on_rank(job.shape, replace(recipe, compile="layers"), device).peak_mem_gib
        if compiled < TELL_BOTH * told.peak_mem_gib:
            step["peak memory, compile=layers"] = f"{compiled:.3f} GiB"
    return {
        f"{job.base} on {device.name} ({device.dtype}), {job.layout}": {},
        "the largest step:": step,
        "the run:": {
            "steps": f"{steps:,}",
            "tokens": f"{tokens:,}",
            "training time": f"{format_seconds(tokens / told.tokens_per_s)}, evaluations not counted",
        },
    }


def estimate_run(
    job: Job,  # what `plan` made
) -> Estimate:  # of its largest step, with its time
    "What a step costs, this device's speed measured too."
    return with_time(
        job.told,
        job.shape,
        step_recipe(job.config, job.samples["train"], job.isolated, job.ranks.world_size, job.device),
        job.device,
    )


# %%
job = plan(TrainConfig(run="runs/never", base_model="tiny", max_seq_len=600), find_ranks(), find_device("cpu"))
print(job.layout, "|", job.length)
costs(TrainConfig(run="runs/never", base_model="tiny", max_seq_len=600))["the run:"]

# %% tags=["check"]
assert (
    not Path("runs/never").exists() and job.length.steps == math.ceil(len(job.samples["train"]) / 2) and not job.sharded
)
assert len(job.moments) == 3 and all(scene in job.made.parts["valid"] for scene, *_ in job.moments)
try:
    lay_out(TrainConfig(packing="rows", max_seq_len=64, row_len=64), job.shape, job.samples["train"], job.device)
    raise AssertionError
except ValueError as e:
    assert "more than a row of 64" in str(e)


# %% [markdown]
# What is about to be learned is shown first: how many parameters, how many tokens. The same stands in `audit.html` in the run's folder, with one sample in colours.

# %%
#| export
def what_is_learned(
    job: Job,  # the run
) -> str:  # four lines for people
    "The run in words, before it begins."
    model, config, counts = job.engine.model, job.config, job.counts
    trainable, total = trainable_parameters(model)
    weight, context = config.resolved()["context_weight"], counts["context_tokens"]
    learned = f"{counts['learned_tokens']:,} of them learned" + (
        f", and {context:,} of other lines at weight {weight:g}, "
        f"which is {weight * context / (weight * context + counts['learned_tokens']):.0%} of the loss"
        if context
        else ""
    )
    return "\n".join(
        [
            f"{base_of(model).name_or_path} on {job.device.name} ({job.device.dtype}); recipe {config.recipe}",
            f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})",
            f"to learn: {counts['samples']} samples, {counts['tokens']:,} tokens, {learned}; "
            f"{job.length.steps} steps of {config.resolved()['global_batch_size']} "
            f"{'rows' if config.packing == 'rows' else 'samples'}; {job.layout}",
            *(
                [
                    f"{job.ranks.world_size} ranks, "
                    + (
                        "each holds a part of the model (FSDP); "
                        f"while it is loaded, {host_gib(job.told, job.ranks):.1f} GiB of the host's memory"
                        if job.sharded
                        else "each holds the whole model (DDP)"
                    )
                ]
                if job.ranks.world_size > 1
                else []
            ),
            f"peak memory of a step: {'at least ' if job.device.type == 'cpu' else ''}{job.told.peak_mem_gib:.1f} GiB "
            f"of {job.device.memory_gib:.1f}",
        ]
    )


# %% [markdown]
# The two lines in the middle, which do not depend on the machine:

# %% tags=["example"]
model = add_adapter(load_base("tiny", job.device)[0], job.config.lora, job.config.seed)
told = what_is_learned(replace(job, engine=SimpleNamespace(model=model)))
print(*told.splitlines()[1:3], sep="\n")

# %% [markdown]
# ## The job
#
# A run under a name that was used before sets the earlier results aside first; `resume` goes on where the last checkpoint stands, but only with the same settings, since the steps still to come depend on all of them. A run whose time was up may get more of it; one that ended because loss and memorising got worse is finished. How many ranks share the work, and how, may differ: it changes nothing but the time. A checkpoint that was damaged since is left out, and an older one taken ([what a run tells](43_history.ipynb) has how that is seen); where none is whole, the run is refused.

# %%
#| export
KEPT = {"lora": "adapter", "full": "model"}  # what a run leaves, and the folder it is in
LEAST_GAIN = 0.005  # nats per token; a run whose held-out loss falls by less is not called done
# when a run is resumed, perhaps on more or fewer ranks
MAY_CHANGE = (
    "run",
    "trackers",
    "max_minutes",
    "save_total_limit",
    "score_test",
    "micro_batch_size",
    "sharding",
    "backend",
    "group_timeout_s",
    "use_ipex",
    "compile",
)
RESULTS = [
    "audit.html",
    "config.yaml",
    "metrics.jsonl",
    "checkpoints",
    "adapter",
    "model",
    "export",
    "before_after.json",
    "summary.json",
    MANIFEST,
    "loss.png",
    "tensorboard",
    "wandb",
]


def read_settings(
    run: Path,  # a run's folder
) -> dict:  # what config.yaml holds; ValueError if it is not there, or damaged
    "The settings that a run was begun with."
    import yaml

    file = run / "config.yaml"
    raw = file.read_bytes() if file.is_file() else b""
    try:
        found = yaml.safe_load(raw.decode("utf8"))
    except (ValueError, yaml.YAMLError):
        found = None
    why = "is damaged, or cut short" if raw.strip() else "is empty" if file.is_file() else "is missing"
    require(
        # the last of what is written
        isinstance(found, dict) and isinstance(found.get("found", {}), dict) and "seed" in found,
        f"{file} {why}, so nobody knows what the run's settings were; bring it back, or begin a new run",
    )
    return found


def go_on_from(
    run: Path,  # a run's folder
) -> int:  # step of the newest checkpoint that is whole; ValueError if there is none
    "Choose a checkpoint; damaged ones are left out, which is said. One rank alone calls it."
    step, passed = whole_checkpoint(run)
    require(
        step,
        f"no checkpoint of {run} is whole ({passed_over(passed)}); bring the files back, or run without resume",
    )
    if passed:
        print(f"damaged, and left out: {passed_over(passed)}; going on from the older checkpoint-{step}", flush=True)
        leave_out(run, passed)
    if not is_sealed(checkpoint_folder(run, step)):
        print(f"checkpoint-{step} has no manifest; its files are there and can be read, more is not known", flush=True)
    return step


def open_run(
    config: TrainConfig,  # the settings
    run: Path,  # the run's folder
    found: dict,  # what the settings stand for: base_source, data_sha256 and speakers
    made: Prepared | None = None,  # a script's data, to be written into the run's folder
) -> tuple:  # (summary of a finished run that should be resumed, or None; step of the checkpoint to go on from, or 0)
    "Set earlier results aside, or check that they can be resumed; then write config.yaml."
    import yaml

    settings, done, step = {**config.to_dict(), "resume": False, "found": found}, ended(run, config.resume), 0
    if config.resume:
        if not any((run / "checkpoints").glob("checkpoint-*")):
            raise ValueError(f"{config.run} has no checkpoint to resume from; run without resume")
        before: dict = read_settings(run)
        before, now = ({**s, **(s.get("found") or {})} for s in (before, settings))
        changed = sorted(k for k in now if before.get(k) != now[k] and k not in (*MAY_CHANGE, "found"))
        require(
            not changed,
            "to resume, the settings must be those of the run; "
            f"{', '.join(f'{k}: {before.get(k)} then, {now[k]} now' for k in changed)}",
        )
        # the time may be longer now
        if "optimizer_steps" in done and (not done.get("stopped_early") or done.get("stopped_because") == WORSE):
            return done, 0
        step = go_on_from(run)
    else:
        # a finished run needs them no more
        if "optimizer_steps" in done:
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
        set_aside(run, RESULTS + ["data"] * bool(made and not holds_data(run / "data", made)))
    if made and not holds_data(run / "data", made):
        write_prepared(made, run / "data")
    unseal(run)
    write_text(run / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    return None, step


def ended(
    run: Path,  # a run's folder
    resume: bool,  # the run is to go on; else a damaged summary is set aside with the rest
) -> dict:  # the summary that is there; {} if there is none
    "How an earlier run in a folder ended."
    try:
        return read_summary(run)
    except ValueError:
        if resume:
            raise
        return {}


# %% [markdown]
# A run is opened, leaves a checkpoint, and is to be resumed with another learning rate:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder)
    open_run(TrainConfig(run=folder), run, {})
    with new_checkpoint(run, 3) as part:
        (part / "trainer_state.json").write_text("{}")
    try:
        open_run(TrainConfig(run=folder, resume=True, learning_rate=1e-4, max_minutes=5), run, {})
    except ValueError as e:
        print(e)


# %% [markdown]
# The outermost function asks where it runs, refuses what cannot work before anything is moved or loaded, and keeps the run's folder to itself while it works there. From the moment at which the summary says "running", a run that fails says so in it. One that was told to stop says how it goes on:
#
# ```
# SIGTERM: this step is finished and saved; once more ends at once
# interrupted by SIGTERM after step 5, which was saved; to go on: simpsons-llm finetune --data runs/data --run runs/x --resume
# ```

# %%
#| export
def run_job(
    config: TrainConfig,  # the settings
    make_engine: Callable[[Job, Any], Engine],  # called with the job and the model
    made: Prepared | None = None,  # the data itself, not written yet; None: what the settings name
) -> dict:  # the summary, also in summary.json; ValueError or a file error, in one sentence, if it cannot be done
    "Train a base model on prepared scenes; returns and writes the summary."
    watch, ranks = Stopwatch("load"), find_ranks()
    complete_env(ranks)
    rank_env(ranks)  # before transformers is imported
    device = find_device(config.device, config.dtype, ranks.local_rank)
    if device.type == "cpu":
        set_threads(ranks)
    given, fitted = config, config.for_ranks(ranks.world_size)
    # on an accelerator `plan` chooses how many at once
    free = given.micro_batch_size is None and device.type != "cpu"
    config = replace(fitted, micro_batch_size=None) if free else fitted
    find_base(config.base_model, device.type)
    if config.use_ipex:
        load_ipex()
    join_group(ranks, device, config.backend, config.group_timeout_s)
    if fitted is not given and ranks.is_main:
        before, now = (c.resolved() for c in (given, fitted))
        instead = (
            "" if given.global_batch_size == fitted.global_batch_size else f" instead of {before['global_batch_size']}"
        )
        at_once = "on all" if free else f"{now['micro_batch_size']} at once on each"
        print(f"{now['global_batch_size']} samples a step{instead}, {at_once} of {ranks.world_size} ranks")
    with listening(), ExitStack() as held:
        on_main(ranks, lambda: held.enter_context(hold_folder(config.run, getattr(make_engine, "name", "train"))))
        return begin_run(plan(config, ranks, device, made=made), make_engine, watch)


def require_apart(
    job: Job,  # what `plan` made
    model,  # the base model, loaded; from now on with isolated attention
):
    """The last word on packing has the model itself, in the number format of the training.

    ValueError if its sequences do not stay apart."""
    with job.autocast():
        wrong = leaks_between(model)
    require(not wrong, f"samples were to lie end to end, but in {job.base} they cannot: {wrong}; use packing=none")


def write_failed(
    run: Path,  # the run's folder
    error: BaseException,  # what ended it
    again: str = "",  # the command that goes on; empty: there is none
):
    "A summary that says how a run ended, and how it goes on if it was interrupted."
    stopped = isinstance(error, KeyboardInterrupt)
    said = str(error) if stopped and str(error) else f"{type(error).__name__}: {error}"
    found = {"status": "interrupted" if stopped else "failed", "error": said}
    if stopped and again:
        found["resume"] = again
        print(f"{said}; to go on: {again}", flush=True)
    write_json(run / "summary.json", found)


def goes_on_with(
    job: Job,  # a run that was begun
) -> str:  # to be pasted into a shell; empty where nothing was saved yet
    "The command that takes up a run from its last checkpoint."
    config, n = job.config, job.ranks.world_size
    name = type(config).__name__.removesuffix("Config").lower()
    if not last_checkpoint(job.run):
        return ""
    return again_launched(name, config, n, resume=True) if n > 1 else again_command(name, config, resume=True)


def begin_run(
    job: Job,  # what `plan` made
    make_engine: Callable[[Job, Any], Engine],  # called with the job and the model
    watch: Stopwatch | None = None,  # that runs already; None: begins now
) -> dict:  # the summary
    "Load the model, open the run, build the engine, and hand over to `measure`."
    config, run, ranks, watch = job.config, job.run, job.ranks, watch or Stopwatch("load")
    # a sharded model goes to the devices in parts
    where = replace(job.device, type="cpu", index=0) if job.sharded else job.device
    where = where if config.lora else replace(where, dtype="float32")
    model, _ = load_base(job.base, where, config.quantization, job.maker.tokenizer)
    found = {
        "base_source": model.origin,
        "data_sha256": job.report["data_sha256"],
        "speakers": list(job.report["speakers"]),
    }
    if job.isolated:
        require_apart(job, model)
    if config.lora:
        model = add_adapter(model, config.lora, config.seed)
    if job.limit:
        base_of(model).score_limit = job.limit
    watch.turn_to("other")
    # nothing was moved or written before this line
    finished, job.resumed = on_main(ranks, lambda: open_run(config, run, found, job.made))
    if finished:
        print(f"{config.run} is finished ({finished['optimizer_steps']} steps); nothing is left to resume")
        return finished
    if ranks.is_main:
        write_json(run / "summary.json", {"status": "running"})
    if ranks.is_main:
        LISTENER.last_word = lambda stopped: write_failed(run, stopped, goes_on_with(job))
    try:
        if ranks.is_main:
            write_audit(job.samples["train"], job.maker, job.counts, run / "audit.html")
        if config.gradient_checkpointing:
            recompute_activations(model)
        job.recorder = Recorder(
            ranks,
            job.device,
            job.length,
            run,
            job.say,
            recites=job.recites if job.gate else None,
            fingerprint=job.fingerprint,
            max_minutes=config.max_minutes,
            watch=watch,
        )
        job.engine = make_engine(job, model)
        if ranks.is_main:
            print(what_is_learned(job), flush=True)
            job.recorder.tracker = open_tracker(config.trackers, run, config.to_dict())
        return measure(job)
    except BaseException as e:
        LISTENER.patient = False
        if ranks.is_main:
            write_failed(run, e, goes_on_with(job))
        raise
    finally:
        if job.recorder and job.recorder.tracker:
            job.recorder.tracker.finish()


# %% [markdown]
# What cannot be done is refused before there is a folder:

# %% tags=["example"]
try:
    run_job(TrainConfig(run="runs/never", base_model="no-such-model"), None)
except FileNotFoundError as e:
    print(e)
Path("runs/never").exists()


# %% [markdown]
# What is saved must be what was measured, so the best step's weights are looked at after they were loaded: they must be those that its held-out loss was measured with. Two numbers for each parameter tell that in a moment. Only where they were not kept (the step was made before the run was resumed, or ranks hold parts of the model) is the loss measured again.

# %%
#| export
def require_same(
    job: Job,  # the run, its best step loaded
    step: int,  # the best
    loss: float,  # its held-out loss as it was measured in training, nats per token
):
    "ValueError if these are not the weights that were measured. All ranks must call it."
    kept = job.recorder.fingerprints.get(step)
    if kept:
        now = job.fingerprint()
        same = all(abs(a - b) <= 1e-6 * max(norm, n) for (a, norm), (b, n) in zip(kept, now, strict=True))
        require(
            all(gather(same)),
            f"the weights of step {step} are not those that scored {loss:.4f} in training; "
            "the checkpoint was damaged, or it was not loaded as it was saved",
        )
        return
    found = job.score("valid")
    require(
        abs(found - loss) < 1e-3 * max(1, found),
        f"the checkpoint of step {step} scores {found:.4f} where {loss:.4f} was measured in training; "
        "it was not loaded as it was saved",
    )


# %% [markdown]
# Before the first step a fresh adapter changes nothing, so the held-out loss is that of the base. (LoftQ's base is rounded to 4 bits, and that is what is measured.) With a gate the first row also says what share of real validation lines stands in training lines; [what a run tells](43_history.ipynb) measures the model's own against it at each evaluation. Test scenes are scored with it, too, and a second time at the end.

# %%
#| export
def measure(
    job: Job,  # the run, ready to start
) -> dict:  # the summary
    "Score the base, train, load the best step, save it, and write the summary."
    engine, recorder, watch = job.engine, job.recorder, job.recorder.watch
    resumed, losses, clock = job.resumed, {}, {}
    before = take_up(recorder, resumed) if resumed else {}
    if before and "human_verbatim" not in before:
        recorder.recites = None  # the run began without a gate

    # the model is where it will be trained, and no checkpoint is loaded yet, so this is the base
    def first():
        row = before or {"valid_loss_nats": job.score("valid")}
        if job.config.score_test and "test_loss_nats" not in row:
            require(
                not (job.sharded and resumed),
                "score_test was given on resuming a sharded run that began without it, "
                "and its base cannot be scored any more; leave it out",
            )
            row["test_loss_nats"] = job.score("test")
        if not job.config.resume:
            if job.gate:
                with watch.during("speak"):
                    row["human_verbatim"] = on_main(job.ranks, job.gate.human)
            recorder.write(0, **row)
            recorder.speak(0)
        losses["valid_loss_nats_base"] = row["valid_loss_nats"]
        if job.config.score_test:
            losses["test_loss_nats_base"] = row["test_loss_nats"]
        reset_peak_memory(job.device)
        clock["start"] = time.perf_counter()

    watch.turn_to("train")
    engine.learn(resumed, first)
    LISTENER.patient = False  # what follows is done again from the last checkpoint
    watch.turn_to("save")
    speed = {
        "tokens_per_s": recorder.real_tokens / max(recorder.step_s, 1e-9),
        "peak_mem_gib": peak_memory_gib(job.device),
        "train_s": time.perf_counter() - clock["start"],
    }
    best_step, best = engine.best
    require_same(job, best_step, best)
    losses |= {"valid_loss_nats_best": best, "best_step": best_step}
    if job.config.score_test:
        losses["test_loss_nats_best"] = job.score("test")
    summary = summarise(job, losses, speed, resumed)
    weights = gather_weights(engine.model) if job.sharded else None  # all ranks give their part
    return {**summary, "wall_s": on_main(job.ranks, lambda: close_run(job, summary, weights))}


# %% [markdown]
# The summary names all that shaped the result, so that two runs can be told apart, and one repeated:

# %%
#| export
def summarise(
    job: Job,  # the run, after training
    losses: dict,  # held-out losses in nats per token, and the step that was kept
    speed: dict,  # tokens_per_s of all ranks; peak_mem_gib and train_s (wall clock, evaluations included) of this one
    resumed: int,  # the step it was resumed from; 0: from the beginning
) -> dict:  # the summary
    "What is written down about a run."
    config, engine, rec, report, base = job.config, job.engine, job.recorder, job.report, base_of(job.engine.model)
    lines = {f"{n}_lines": report["sets"][n]["learned_lines"] - job.too_long[n] for n in ("train", "valid")}
    gained = losses["valid_loss_nats_base"] - losses["valid_loss_nats_best"] >= LEAST_GAIN
    own = {
        "rank": job.ranks.rank,
        "host": platform.node(),
        "device": f"{job.device.type}:{job.device.index}" if job.device.type != "cpu" else "cpu",
        "real_tokens": rec.own_tokens,
        "share": rec.own_tokens / max(rec.real_tokens - rec.earlier_tokens, 1),
        "tokens_per_s": rec.own_tokens / max(rec.step_s - rec.earlier_s, 1e-9),
        "peak_mem_gib": speed["peak_mem_gib"],
        "train_s": speed["train_s"],
    }
    everybody = gather(own)
    speed = {**speed, "peak_mem_gib": max(r["peak_mem_gib"] for r in everybody)}
    return {
        "status": "done" if gained else "not better than the base",
        "engine": engine.name,
        "stopped_early": rec.stopped_early,
        "stopped_because": rec.stopped_because or None,
        "resumed_from_step": resumed,
        "base_model": base.name_or_path,
        "base_source": base.origin,
        "mode": config.mode,
        "recipe": config.recipe,
        "settings": config.resolved(),
        "layout": job.layout,
        "device": job.device.name,
        "dtype": job.device.dtype,
        "world_size": job.ranks.world_size,
        "launcher": job.ranks.launcher,
        "sharded": job.sharded,
        "ranks": everybody,
        "trainable_parameters": trainable_parameters(engine.model)[0],
        **lines,
        "too_long_lines": job.too_long,
        "learned_tokens": rec.learned_tokens,
        "context_tokens": rec.context_tokens,
        "real_tokens": rec.real_tokens,
        "optimizer_steps": engine.step,
        **losses,
        "gate": gate_facts(rec.rows),
        "valid_perplexity_best": math.exp(losses["valid_loss_nats_best"]),
        **speed,
        "predicted": asdict(job.told),
        KEPT[config.mode]: KEPT[config.mode],
        "data_sha256": report["data_sha256"],
        "script_sha256": report["script_sha256"],
        "provenance": provenance(),
    }


def close_run(
    job: Job,  # the run, after training
    summary: dict,  # what `summarise` made
    weights: dict | None = None,  # name -> tensor, of a sharded model; None: the model's own
) -> dict:  # where the time went, in seconds
    "Save adapter or model with its notes, the picture, and last the summary: a run whose summary has results is whole."
    import matplotlib.pyplot as plt

    names = job.report["speakers"] or list(job.report["all_speakers"])
    notes = {
        "base_model": summary["base_model"],
        "base_source": summary["base_source"],
        "template": job.maker.template,
        "date": job.maker.date,
        "max_seq_len": summary["settings"]["max_seq_len"],
        "speakers": {n: job.report["all_speakers"][n] for n in names},
        "recipe": job.config.recipe,
        "data_sha256": job.report["data_sha256"],
    }
    if job.config.mode == "full":
        save_model(job.engine.model, job.maker.tokenizer, job.run / "model", notes, weights)
    else:
        save_adapter(job.engine.model, job.run / "adapter", notes, weights)
    figure = plot_losses(job.run).figure
    figure.savefig(job.run / "loss.png", dpi=110)
    plt.close(figure)
    wall_s = {part: round(s, 3) for part, s in job.recorder.watch.read().items()}
    write_json(job.run / "summary.json", {**summary, "wall_s": wall_s})
    seal(job.run, ["config.yaml", "metrics.jsonl", "summary.json"])
    return wall_s


# %% [markdown]
# And the sentences that a person wants to read at the end:

# %%
#| export
def summary_text(
    summary: dict,  # what `finetune` returned
) -> str:  # a few lines for people
    "The summary in words."
    s, fell = summary, summary["valid_loss_nats_base"] - summary["valid_loss_nats_best"]
    rows = [
        f"held-out loss in nats per token: {s['valid_loss_nats_base']:.4f} before, {s['valid_loss_nats_best']:.4f} "
        f"after (step {s['best_step']} of {s['optimizer_steps']}), a change of {-fell:+.4f}"
    ]
    gate = s.get("gate") or {"decided_by": "loss"}
    if gate["decided_by"] == "memorising":
        rows.append(
            f"a step with a lower loss was not kept, since it recites: more than {gate['limit']:.1%} of its runs of "
            f"words stood in training lines (this step: {gate['verbatim']:.1%}, people: {gate['human_verbatim']:.1%})"
        )
    if gate["decided_by"] == "none passed":
        rows[0] += f"; all steps recite, this one {gate['verbatim']:.1%} (people: {gate['human_verbatim']:.1%})"
    if "test_loss_nats_base" in s:
        rows.append(
            f"test scenes, scored once: {s['test_loss_nats_base']:.4f} before, {s['test_loss_nats_best']:.4f} after"
        )
    rows.append(
        f"{s['real_tokens']:,} tokens in {format_seconds(s['train_s'])} "
        f"({s['tokens_per_s']:.0f} tokens/s while training), peak memory {s['peak_mem_gib']:.1f} GiB"
    )
    if whole := sum(s.get("wall_s", {}).values()):
        shares = sorted(((x / whole, part) for part, x in s["wall_s"].items() if x >= 0.005 * whole), reverse=True)
        rows.append(f"{format_seconds(whole)} of wall time: {', '.join(f'{part} {x:.0%}' for x, part in shares)}")
    if s["stopped_early"]:
        rows.append(f"stopped early: {s['stopped_because']}")
    if fell < LEAST_GAIN:
        rows.append(
            f"WARNING: the held-out loss fell by less than {LEAST_GAIN} nats, "
            "so this adapter is hardly better than the base; try more steps, another learning_rate or more data"
        )
    return "\n".join(rows)


# %% [markdown]
# ## An engine that does nothing
#
# The least engine there is: it lets the base be scored, makes no step, and says so. All the rest happens as in a run of hours, and the end of it shows that such a run is not taken for one that worked:

# %%
class Idle:
    "An engine without a step."

    name = "idle"

    def __init__(self, job, model):
        self.job, self.model, self.step = job, model, 0

    def learn(self, resumed, first):
        first()
        self.best = 0, self.job.score("valid")


run = Path(tempfile.mkdtemp()) / "idle"
summary = run_job(TrainConfig(run=str(run), base_model="tiny", max_seq_len=600), Idle)
print(summary_text(summary))

# %%
summary["status"], sorted(p.name for p in run.iterdir())

# %% tags=["check"]
assert (
    summary["status"] == "not better than the base"
    and summary["optimizer_steps"] == 0
    and summary["valid_loss_nats_best"] == summary["valid_loss_nats_base"]
)
assert {"config.yaml", "metrics.jsonl", "summary.json", "audit.html", "adapter", "loss.png", "data"} <= {
    p.name for p in run.iterdir()
}

# %% [markdown]
# What makes a run here are its settings and an engine; [the loop by hand](45_loop.ipynb) and [fine-tuning](47_finetune.ipynb) bring one each.
