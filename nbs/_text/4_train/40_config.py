# %%
#| default_exp train.config

# %% [markdown]
# # Hyperparameters
#
# > Two recipes, one set of settings, the optimizer and its learning rate: what is decided before the first step.
#
# A training run is described by some forty numbers and names. Two chapters train from the same description: [one with a loop](45_loop.ipynb) that is written out, [the other](47_finetune.ipynb) with the Trainer of Hugging Face. What the description means is settled here, once: which values a recipe gives, which do not go together, how many steps a run has and when it is looked at, what the optimizer is, and how the learning rate rises and falls.

# %%
#| export
import math
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from simpsons_llm.data.batches import fit_batches
from simpsons_llm.data.prompt import TEMPLATES
from simpsons_llm.data.samples import BLOCKS
from simpsons_llm.machine.job import JobConfig, require
from simpsons_llm.model.base import QUANTIZATIONS

# %%
#| hide
from dataclasses import fields

import pandas as pd
import torch

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.model.adapter import add_adapter
from simpsons_llm.model.base import tiny_model

# %% [markdown]
# ## Two recipes
#
# `seed` is the recipe of the project that this book carries on: LoRA rank 8 on the query and key projections, one sample a line, the Alpaca form, batches of 128. Four things are mended. The loss counts the answer alone (the seed learned its own prompt too). The warmup lasts a tenth of the run (the seed's lasted all of it, so the learning rate came to its peak only at the last step). 128 is 16 x 8 (it was 12 x 10 = 120). Padding stands on the right.
#
# `book` learns faster from the same lines: an adapter on all linear layers, whole scenes in one pass, a higher learning rate. [What fine-tuning changes](../2_lora/21_spectra.ipynb) measures what places, ranks and rates are worth, and how far the seed's recipe comes at its own rate and at its best one.
#
# Two scenes a step were chosen on the validation scenes of the book's own script; for a script many times as long, 16 are a better start. With so little text a model *overfits* after one to three passes: it learns its lines by heart, and the loss on others rises. So the best step is kept, and with `book` no step that recites: [what a run tells](43_history.ipynb) says how that is measured (`gate`). The seed's way knows no such gate.

# %%
#| export
RECIPES: dict[str, dict] = {
    "book": dict(
        view="scenes",
        template="script",
        max_seq_len=512,
        context_lines=10,
        context_weight=0.1,
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
        learning_rate=5e-4,
        warmup_ratio=0.05,
        weight_decay=0.0,
        global_batch_size=2,
        micro_batch_size=2,
        epochs=1.0,
        eval_steps=None,
        gate=True,
    ),
    "seed": dict(
        view="rows",
        template="alpaca",
        max_seq_len=256,
        context_lines=10,
        context_weight=0.0,
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules="q_proj,k_proj",
        learning_rate=3e-4,
        warmup_ratio=0.1,
        weight_decay=0.0,
        global_batch_size=128,
        micro_batch_size=16,
        epochs=3.0,
        eval_steps=50,
        gate=False,
    ),
}

# %% [markdown]
# Side by side. Only the number of context lines is the same:

# %% tags=["example"]
pd.DataFrame(RECIPES)

# %% [markdown]
# ## The settings
#
# Trained in full, a model wants a learning rate about a tenth of an adapter's (Schulman et al. 2025, "LoRA Without Regret"; [the chapter on LoRA](../2_lora/20_layer.ipynb) shows why, and [what fine-tuning changes](../2_lora/21_spectra.ipynb) measures it); so `mode=full` divides the recipe's by ten. Its weights are kept in 32 bits on every device.
#
# How samples share a batch (`packing`) changes nothing that is learned: the packing chapter holds the losses equal. A setting without a value comes from the recipe; one that was given stands. So `recipe=seed` with `r=16` means rank 16 and all else as in the seed.

# %%
#| export
PACKINGS = ("auto", "flat", "rows", "none")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")


@dataclass
class TrainConfig(JobConfig):
    "Settings of a training run, however it is trained."

    data: str = "springfield"  # a folder that prepare wrote; or a script, which is then prepared with the defaults
    run: str = "runs/train"  # the run's folder
    base_model: str = "auto"  # hub id, folder, .gguf file or short name; auto: smollm2-135m on CPU, else open_llama_3b
    mode: str = "lora"  # lora: an adapter on a frozen base; full: all weights are trained
    recipe: str = "book"  # where settings without a value come from: book or seed
    view: "str | None" = None  # scenes: one pass over each scene; rows: one sample a line; book scenes, seed rows
    template: "str | None" = None  # form of prompts: script, alpaca or chat (the model's own); book script, seed alpaca
    max_seq_len: "int | None" = None  # most tokens of a sample; book 512, seed 256
    context_lines: "int | None" = None  # rows: lines before the answer; book 10, seed 10
    context_weight: "float | None" = None  # scenes: loss weight of other characters' lines, 0..1; book 0.1, seed 0
    r: "int | None" = None  # LoRA rank; book 16, seed 8
    lora_alpha: "int | None" = None  # its scale is lora_alpha / r; book 32, seed 16
    lora_dropout: "float | None" = None  # dropout before the adapter, 0..1; book 0, seed 0.05
    target_modules: "str | None" = None  # layers with an adapter, or all-linear; book all-linear, seed q_proj,k_proj
    use_rslora: bool = False  # scale by lora_alpha / sqrt(r) instead of lora_alpha / r
    use_dora: bool = False  # DoRA: learn the length of each row of a weight apart from its direction
    init_lora_weights: str = "default"  # how the adapter starts: default, pissa or loftq
    lora_plus_ratio: float = 1.0  # LoRA+: the learning rate of B over that of A; 1: the same, 16 in its paper
    quantization: str = "none"  # of the frozen base: none, or nf4 for 4 bits (needs bitsandbytes)
    learning_rate: "float | None" = None  # peak rate; book 5e-4, seed 3e-4; a tenth of it with mode=full
    warmup_ratio: "float | None" = None  # share of the steps in which the rate rises, 0..1; book 0.05, seed 0.1
    weight_decay: "float | None" = None  # pull of each step on the weights towards 0, 0 or more; book 0, seed 0
    global_batch_size: "int | None" = None  # samples for one optimizer step, over all processes; book 2, seed 128
    micro_batch_size: "int | None" = None  # samples at once in one process; book 2, seed 16
    epochs: "float | None" = None  # passes over the data; book 1, seed 3
    max_steps: "int | None" = None  # optimizer steps; overrules epochs
    max_minutes: "float | None" = None  # stop at the next step after so many minutes, with what was learned so far
    # both come at the end of each epoch and of the run, too
    eval_steps: "int | None" = None  # optimizer steps between evaluations and checkpoints; book 4 a run, seed 50
    sample_steps: "int | None" = None  # optimizer steps between samples of text; 0: none; None: with each evaluation
    gate: "bool | None" = None  # keep no step that recites; stop where that and loss get worse; book True, seed False
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    # how the samples of a batch lie; auto looks at the model and the device
    packing: str = "auto"  # flat: end to end; rows: in rows of row_len; none: filled up; auto: flat where it does well
    row_len: int = 2048  # packing=rows: tokens of a row; batch sizes then count rows
    gradient_checkpointing: bool = False  # recompute activations: less memory, about a third slower
    compile: str = "auto"  # on an accelerator: graph (record the step), layers (compile, too), none; auto: what pays
    save_total_limit: int = 3  # checkpoints to keep, the best one always
    seed: int = 42  # of the adapter, the order of samples and dropout
    resume: bool = False  # go on from the last checkpoint of this run
    score_test: bool = False  # at the end, once: score the test scenes before and after
    trackers: str = "none"  # none, or trackio, wandb, tensorboard
    device: str = "auto"  # xpu, cuda, cpu; auto: the best there is
    dtype: str = "auto"  # bfloat16, float32; auto: as the device has it
    backend: str = "auto"  # how ranks talk: xccl, ccl, nccl, gloo; auto: the device's own
    group_timeout_s: float = 600.0  # longest wait for another rank, in seconds

    sharding, use_ipex = "none", False  # no settings here; finetune makes them some
    # how ranks exchange gradients: in one piece, or, in finetune, in DDP's buckets
    exchange = "flat"

    def check(self):
        from simpsons_llm.lora.layer import LoRASettings

        check_settings(self)
        s = self.resolved()
        self.lora = (
            None
            if self.mode == "full"
            else LoRASettings(
                s["r"],
                s["lora_alpha"],
                s["lora_dropout"],
                s["target_modules"],
                self.use_rslora,
                self.use_dora,
                self.init_lora_weights,
            )
        )

    def resolved(self) -> dict:
        "The recipe's settings, with those that were given in their place."
        defaults = dict(RECIPES[self.recipe])
        if self.mode == "full":
            defaults["learning_rate"] /= 10
        return {n: v if getattr(self, n) is None else getattr(self, n) for n, v in defaults.items()}

    def for_ranks(
        self,
        world_size: int,  # ranks, 1 or more
    ) -> "TrainConfig":  # ValueError where what was asked for cannot be shared by so many
        "The same settings with batch sizes that so many ranks can share."
        asked, s = (self.global_batch_size is not None, self.micro_batch_size is not None), self.resolved()
        whole, micro = fit_batches(s["global_batch_size"], s["micro_batch_size"], world_size, *asked)
        changed = {
            **({} if whole == s["global_batch_size"] else {"global_batch_size": whole}),
            **({} if micro == s["micro_batch_size"] else {"micro_batch_size": micro}),
        }
        return replace(self, **changed) if changed else self


# %% [markdown]
# How many are left to the recipe, and which of them have no value there either, which means no limit or the usual:

# %% tags=["example"]
unset = [f.name for f in fields(TrainConfig) if f.default is None]
print(f"{len(unset)} of {len(fields(TrainConfig))} settings have no value of their own; in no recipe:")
[n for n in unset if n not in RECIPES["book"]]

# %% [markdown]
# Refused is what cannot work, in one sentence and before anything is loaded: values out of range, and settings that do not go together.

# %%
#| export
COMPILE = ("auto", "graph", "layers", "none")


def check_settings(
    config: TrainConfig,  # the settings
):
    "ValueError for the first setting that cannot be: what was given, what was expected."
    require(config.run.strip(), "run was given as nothing; give a folder for the run, such as runs/x")
    require(config.recipe in RECIPES, f"recipe={config.recipe!r} was given; expected {' or '.join(RECIPES)}")
    s = config.resolved()
    require(s["view"] in ("rows", "scenes"), f"view={s['view']!r} was given; expected rows or scenes")
    require(s["template"] in TEMPLATES, f"template={s['template']!r} was given; expected {', '.join(TEMPLATES)}")
    require(
        s["view"] == "rows" or s["template"] in BLOCKS,
        f"view=scenes needs template=script or chat, not {s['template']}; or use view=rows",
    )
    require(config.compile in COMPILE, f"compile={config.compile!r} was given; expected {', '.join(COMPILE)}")
    require(config.packing in PACKINGS, f"packing={config.packing!r} was given; expected {', '.join(PACKINGS)}")
    require(
        config.packing != "rows" or config.row_len >= s["max_seq_len"],
        f"row_len={config.row_len} was given; "
        f"expected at least max_seq_len={s['max_seq_len']}, so that every sample fits into a row",
    )
    require(s["max_seq_len"] >= 16, f"max_seq_len={s['max_seq_len']} was given; expected 16 or more")
    require(0 <= s["context_weight"] <= 1, f"context_weight={s['context_weight']} was given; expected 0..1")
    require(
        0 < s["learning_rate"] < 1,
        f"learning_rate={s['learning_rate']} was given; expected a number above 0 and below 1",
    )
    require(
        0 <= s["warmup_ratio"] < 1,
        f"warmup_ratio={s['warmup_ratio']} was given; expected 0 or more, below 1 (the rate must come down again)",
    )
    require(
        0 <= s["weight_decay"] < math.inf,
        f"weight_decay={s['weight_decay']} was given; expected 0 or more (0: none; 0.01 to 0.1 is usual)",
    )
    for name in (
        "global_batch_size",
        "micro_batch_size",
        "epochs",
        "max_steps",
        "max_minutes",
        "eval_steps",
        "save_total_limit",
        "max_grad_norm",
    ):
        value = s.get(name, getattr(config, name))
        require(value is None or value > 0, f"{name}={value} was given; expected more than 0")
    require(
        config.sample_steps is None or config.sample_steps >= 0,
        f"sample_steps={config.sample_steps} was given; expected 0 or more",
    )
    require(s["context_lines"] >= 0, f"context_lines={s['context_lines']} was given; expected 0 or more")
    require(
        config.trackers in TRACKERS,
        f"trackers={config.trackers!r} was given; expected {', '.join(TRACKERS)}",
    )
    require(
        config.trackers == "none" or find_spec(config.trackers),
        f"trackers={config.trackers} was given, but {config.trackers} is not installed; "
        "pip install 'simpsons_llm[track]'",
    )
    require(
        config.backend in ("auto", "xccl", "ccl", "nccl", "gloo"),
        f"backend={config.backend!r} was given; expected auto, xccl, ccl, nccl or gloo",
    )
    require(
        config.group_timeout_s > 0, f"group_timeout_s={config.group_timeout_s} was given; expected more than 0 seconds"
    )
    require(
        0 <= config.seed < 2**32,
        f"seed={config.seed} was given; expected 0 to 2**32 - 1, which all the libraries below can take",
    )
    require(config.mode in ("lora", "full"), f"mode={config.mode!r} was given; expected lora or full")
    require(config.lora_plus_ratio >= 1, f"lora_plus_ratio={config.lora_plus_ratio} was given; expected 1 or more")
    require(
        config.quantization in QUANTIZATIONS,
        f"quantization={config.quantization!r} was given; expected {' or '.join(QUANTIZATIONS)}",
    )
    only_lora = [
        n
        for n in ("use_rslora", "use_dora", "init_lora_weights", "lora_plus_ratio", "quantization")
        if getattr(config, n) != getattr(type(config), n)
    ]
    require(
        config.mode == "lora" or not only_lora,
        f"mode=full was given with {only_lora and only_lora[0]}, "
        "which belongs to an adapter; leave it out, or use mode=lora",
    )
    require(
        config.quantization == "none" or config.init_lora_weights == "default",
        f"quantization={config.quantization} was given with init_lora_weights={config.init_lora_weights}, "
        "which changes the base's weights; use one of the two",
    )


# %% [markdown]
# A few that are refused, and what is said to them:

# %% tags=["example"]
def refusal(**given):
    "What is said to these settings."
    try:
        return TrainConfig(**given) and "nothing"
    except ValueError as e:
        return str(e)


for given in ({"learning_rate": 3}, {"template": "alpaca"}, {"mode": "full", "use_dora": True}):
    print(refusal(**given))

# %% [markdown]
# What was given stands, the recipe fills the rest, and `mode=full` takes a tenth of its rate:

# %% tags=["example"]
asked = [dict(), dict(mode="full"), dict(mode="full", learning_rate=1e-4), dict(recipe="seed", r=16)]
pd.DataFrame([{"given": str(a), **TrainConfig(**a).resolved()} for a in asked])[["given", "learning_rate", "r", "view"]]

# %% [markdown]
# More processes than a global batch has samples: the batch of the recipe grows, so that each has one at least.

# %% tags=["example"]
sizes = ["global_batch_size", "micro_batch_size"]
pd.DataFrame({n: TrainConfig().for_ranks(n).resolved() for n in (1, 2, 4, 8)}).loc[sizes].rename_axis(columns="ranks")

# %% tags=["check"]
assert TrainConfig(recipe="seed").resolved() == RECIPES["seed"]
assert TrainConfig(recipe="seed", r="16", learning_rate="1e-3").resolved() == {
    **RECIPES["seed"],
    "r": 16,
    "learning_rate": 1e-3,
}
for wrong in (
    dict(recipe="soup"),
    dict(view="scenes", template="alpaca"),
    dict(learning_rate=3),
    dict(r=0),
    dict(warmup_ratio=1),
    dict(weight_decay=-0.1),
    dict(micro_batch_size=0),
    dict(trackers="x"),
    dict(sample_steps=-1),
    dict(seed=2**32),
):
    try:
        TrainConfig(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert next(iter(wrong)) in str(e), e


# %% [markdown]
# ## How long, and when to look
#
# An *epoch* is one pass over the samples; a step learns from one global batch. The held-out loss is measured every few steps, at the end of each epoch (of four at most, where they are shorter than that), and at the end of the run, so that the last step is never kept or thrown away unseen. Where nobody said how often, a run of several epochs is looked at when one of them ends; of ninety short ones, at four. Text is sampled at the same moments unless another interval is asked for.

# %%
#| export
@dataclass(frozen=True)
class RunLength:
    "How many optimizer steps a run has, and what happens at which."

    steps: int  # of the whole run
    epoch_steps: int  # of one pass over the data
    eval_steps: int  # between evaluations
    sample_steps: int  # between samples of text; 0: with each evaluation; -1: never
    warmup_steps: int  # in which the learning rate rises
    each_epoch: bool = True  # whether an evaluation follows each epoch, whatever eval_steps says

    def evaluates(
        self,
        step: int,  # 1..steps
    ) -> bool:
        "Whether the held-out loss is measured, and a checkpoint saved, after this step."
        epoch = self.each_epoch and step % self.epoch_steps == 0
        return step % self.eval_steps == 0 or epoch or step == self.steps

    def samples(
        self,
        step: int,  # 0..steps; 0: before the first
    ) -> bool:
        "Whether text is sampled after this step."
        if self.sample_steps > 0:
            return step % self.sample_steps == 0 or step == self.steps
        return self.sample_steps == 0 and (step == 0 or self.evaluates(step))


# %% [markdown]
# A run of two epochs of five steps, evaluated every third step (`e`), with text every fourth (`s`):

# %% tags=["example"]
small = RunLength(steps=10, epoch_steps=5, eval_steps=3, sample_steps=4, warmup_steps=1)
pd.DataFrame({k: ["e" * small.evaluates(k), "s" * small.samples(k)] for k in range(1, 11)}, index=["held out", "text"])

# %% [markdown]
# How often? Scoring a token is a forward pass, 0.44 of what training on it takes (SmolLM2 with an adapter on two cores, measured in a default run), so a small script can be looked at longer than it is learned from. With 4 evaluations on 11 scenes beside 82 that were learned, scoring took 25 % of a run, and 32 % with the test scenes. Hence the rule: six tokens are scored for ten that are trained on, at most, which stays below a fifth of the time (measured on two cores of an AMD EPYC, 30 November 2026: 19 %, with test scenes 16 %). What must be scored comes first: the base, and if asked for the test scenes, twice. What is left is for evaluations on the way, four at most and one at least. It depends on the data alone, never on a clock, so a run stays the same wherever it runs.

# %%
#| export
EVALUATIONS = 4  # in a run, at most, unless eval_steps says otherwise
SCORED = 0.6  # tokens that are scored for each one that is trained on, at most


def evaluations(
    trained: float,  # tokens of all steps
    valid: int,  # tokens of the validation samples
    test: int = 0,  # tokens of the test samples; 0: they are not scored
) -> int:  # 1..EVALUATIONS
    "How often the held-out loss is measured on the way, the end included."
    left = SCORED * trained - valid - 2 * test
    return max(1, min(EVALUATIONS, int(left // max(valid, 1))))


# %% [markdown]
# The book's script (35,499 tokens to learn, 4,840 and 4,895 held out), with and without test scenes; and three passes over it:

# %% tags=["check"]
assert [evaluations(n * 35499, 4840, test) for n, test in ((1, 0), (1, 4895), (3, 4895), (0.1, 0))] == [3, 1, 4, 1]
pd.DataFrame(
    {
        f"{n:g} epochs, {'with' if test else 'without'} test": {
            "evaluations": (k := evaluations(n * 35499, 4840, test)),
            "tokens scored for each trained on": ((k + 1) * 4840 + 2 * test) / (n * 35499),
        }
        for n, test in ((1, 0), (1, 4895), (3, 0), (3, 4895))
    }
).T.round(2)


# %% [markdown]
# The numbers of steps follow from the settings and the number of samples. What is given as a share (the warmup, the evaluations) is rounded here and nowhere else.

# %%
#| export
def run_length(
    config: TrainConfig,  # the settings
    samples: int,  # number of training samples, or of rows
    looks: int = EVALUATIONS,  # evaluations in all, where no interval was asked for
) -> RunLength:
    "The steps of a run; warmup and evaluations are shares of them."
    s = config.resolved()
    epoch = math.ceil(samples / s["global_batch_size"])
    steps = config.max_steps or math.ceil(s["epochs"] * epoch)
    passes = math.ceil(steps / epoch)
    every = math.ceil(steps / looks) if passes == 1 else epoch * math.ceil(passes / looks)
    every = min(s["eval_steps"] or every, steps)
    speak = 0 if config.sample_steps is None else config.sample_steps or -1
    each = every <= epoch or bool(s["eval_steps"]) and passes <= EVALUATIONS  # ninety short ones are not waited for
    return RunLength(steps, epoch, every, speak, min(int(s["warmup_ratio"] * steps), steps - 1), each)


# %% [markdown]
# The book's recipe on 82 scenes, and ninety-nine and three epochs of it:

# %%
for epochs in (1, 99, 3):
    length = run_length(TrainConfig(epochs=epochs), 82)
    print(
        f"{length.steps} steps, warmup {length.warmup_steps}, evaluated after",
        *[step for step in range(1, length.steps + 1) if length.evaluates(step)],
    )

# %% tags=["check"]
assert (
    length.steps == 123
    and all(length.evaluates(k) for k in (41, 82, 123))
    and not length.evaluates(40)
    and length.samples(0)
    and length.samples(41)
)
assert not any(run_length(TrainConfig(sample_steps=0), 82).samples(k) for k in range(42)) and run_length(
    TrainConfig(sample_steps=10), 82
).samples(20)
assert run_length(TrainConfig(max_steps=1), 82) == RunLength(1, 41, 1, 0, 0)
many = run_length(TrainConfig(epochs=99), 82)
assert sum(map(many.evaluates, range(1, many.steps + 1))) == EVALUATIONS


# %% [markdown]
# ## The optimizer
#
# AdamW (Loshchilov & Hutter 2019) keeps two running means for each parameter, of the gradient and of its square, and steps by their ratio. *Weight decay* also takes a share of each weight away, the learning rate times `weight_decay` at each step; the recipes have none, as is usual for adapters. What has one dimension (norms, biases) does not decay. The optimizer holds *references* to the parameters that it was given. Hence the order of things: first the adapter, then the optimizer. An optimizer that was made before knows only the frozen base, trains nothing, and complains about nothing. So a model without a trainable parameter is refused.
#
# On a GPU, all parameters are stepped by one fused kernel. LoRA+ (Hayou et al. 2024) gives B a higher rate than A; PEFT builds that optimizer.

# %%
#| export
def make_optimizer(
    model,  # a PEFT model, or a plain one that is trained in full
    learning_rate: float,  # peak rate, above 0
    lora_plus_ratio: float = 1.0,  # the learning rate of B over that of A
    fused: bool = False,  # one kernel for all parameters; on GPUs
    weight_decay: float = 0.0,  # share of a weight that a step at rate 1 takes away, 0 or more
):  # a torch.optim.AdamW; ValueError if nothing in the model is trained
    "The optimizer of a run."
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    require(
        trainable,
        "no parameter of the model is trainable, so an optimizer would have nothing to do; "
        "add the adapter before the optimizer is made",
    )
    if lora_plus_ratio == 1:
        flat = [p for p in trainable if p.ndim < 2] if weight_decay else []
        groups = [{"params": [p for p in trainable if p.ndim > 1]}, {"params": flat, "weight_decay": 0.0}]
        what: list = groups if flat else trainable
        return torch.optim.AdamW(what, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=learning_rate,
        loraplus_lr_ratio=lora_plus_ratio,
        loraplus_weight_decay=weight_decay,
        fused=fused,
    )


# %% [markdown]
# A frozen base to which no adapter was added:

# %%
base, _ = tiny_model()
for p in base.parameters():
    p.requires_grad_(False)
try:
    make_optimizer(base, 1e-3)
except ValueError as e:
    print(e)

# %% [markdown]
# With an adapter there is something to step, and with LoRA+ the rates are two:

# %% tags=["example"]
model = add_adapter(base, LoRASettings(r=4))
names = {id(p): n for n, p in model.named_parameters()}
groups = [g for g in make_optimizer(model, 1e-3, lora_plus_ratio=16.0).param_groups if g["params"]]
pd.DataFrame(
    [
        {
            "learning rate": g["lr"],
            "tensors": len(g["params"]),
            "the first": names[id(g["params"][0])].split("layers.")[1],
        }
        for g in groups
    ]
)

# %% tags=["check"]
assert {(g["lr"], "lora_B" in names[id(p)]) for g in groups for p in g["params"]} == {(1e-3, False), (16e-3, True)}
(only,) = make_optimizer(model, 1e-3).param_groups
assert (
    sum(p.numel() for p in only["params"]) == sum(p.numel() for g in groups for p in g["params"]) > 0
    and only["weight_decay"] == 0
)

# %% [markdown]
# What a decay of 0.1 takes from a matrix and from a norm in one step at a rate of 0.5, where no gradient pulls:

# %% tags=["example"]
pulled = torch.nn.ParameterDict({"matrix": torch.ones(2, 2), "norm": torch.ones(2)})
for p in pulled.values():
    p.grad = torch.zeros_like(p)
make_optimizer(pulled, 0.5, weight_decay=0.1).step()
{name: round(p.mean().item(), 4) for name, p in pulled.items()}

# %% tags=["check"]
assert torch.allclose(pulled["matrix"], torch.full((2, 2), 1 - 0.5 * 0.1)) and (pulled["norm"] == 1).all()


# %% [markdown]
# ## The learning rate
#
# In the first steps the means of AdamW rest on little, so the rate rises in $n$ equal parts (the *warmup*); then it falls in a straight line. No step is wasted: the first has $1/n$ of the peak, the $n$-th the peak itself, and the last one still a part of it, $1/(N - n + 1)$ of $N$ steps. (The usual schedule of libraries has a rate of 0 at the first step, which then moves nothing.)

# %%
#| export
def rate_of_step(
    done: int,  # steps that were made, 0..steps
    warmup_steps: int,  # in which the rate rises, 0..steps; 0 and 1 are the same
    steps: int,  # of the whole run
) -> float:  # share of the peak for the next step, above 0..1; 0 after the last
    "Up in a line, down in a line."
    top = max(warmup_steps, 1)
    return (done + 1) / top if done < top else max(0, steps - done) / max(steps - top + 1, 1)


# %% [markdown]
# Three steps up to the peak and five down to a sixth of it, in parts of the peak:

# %% tags=["example"]
[round(rate_of_step(done, warmup_steps=3, steps=8), 2) for done in range(8)]


# %% [markdown]
# PyTorch's own scheduler multiplies the peak with that share, so checkpoints keep its place like that of any other.

# %%
#| export
def make_schedule(
    optimizer,  # what `make_optimizer` made
    warmup_steps: int,  # in which the rate rises, 0..steps
    steps: int,  # of the whole run
):  # a torch scheduler; call `step` after each optimizer step
    "The learning rate of each step."
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, partial(rate_of_step, warmup_steps=warmup_steps, steps=steps))


# %% [markdown]
# Over a run of 100 steps, for both recipes, and for the seed as it was, whose warmup lasted all 100:

# %% tags=["example"]
def rates(peak, warmup, steps=100):
    "The learning rate of each step."
    schedule, told = make_schedule(make_optimizer(model, peak), warmup, steps), []
    for _ in range(steps):
        told.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return told


curves = pd.DataFrame({"book": rates(5e-4, 5), "seed, mended": rates(3e-4, 10), "seed, as it was": rates(3e-4, 100)})
ax = curves.plot(figsize=(6.4, 3), color=["#f2c500", "#4f86c6", "#c0504d"])
ax.set_xlabel("optimizer step")
ax.set_ylabel("learning rate")
ax.spines[["top", "right"]].set_visible(False)
last = curves[-10:].mean()
print(
    f"mean learning rate of the last ten steps: {last['seed, mended']:.1e} mended, "
    f"{last['seed, as it was']:.1e} as it was: where steps should be smallest, they were largest"
)

# %% tags=["check"]
assert (
    all(abs(a - b) < 1e-12 for a, b in zip(curves["book"], [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 95 / 96 * 5e-4]))
    and abs(curves["book"].iloc[-1] - 5e-4 / 96) < 1e-12
)
assert (
    curves["book"].idxmax() == 4 and curves["seed, mended"].idxmax() == 9 and curves["seed, as it was"].idxmax() == 99
)
assert all(
    all(rate_of_step(k, w, n) > 0 for k in range(n))
    and max(rate_of_step(k, w, n) for k in range(n)) == 1
    and rate_of_step(n, w, n) == 0
    for n in (1, 2, 7)
    for w in range(n + 1)
)
