# %%
#| default_exp train.history

# %% [markdown]
# # What a run tells
#
# > Losses, perplexities, samples of text and the time left, as they come and afterwards, all from one file.
#
# A run of hours is watched, compared and sometimes mourned, and all that anybody has of it is what it wrote down. So each number goes into `metrics.jsonl` in the run's folder at once, one JSON object a line: a row for each step, for each evaluation, and for each time the model was asked to speak. Whatever is shown (progress lines, pictures, tables, a tracker in the browser) comes from those rows. Who makes the steps does not matter here; [the loop by hand](45_loop.ipynb) and [Trainer](47_finetune.ipynb) do, and both write through the `Recorder` below, so their runs can be laid side by side.

# %%
#| export
import json
import math
import os
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import Device, Ranks, synchronize
from simpsons_llm.machine.distributed import gather, group_ranks, on_main, total
from simpsons_llm.machine.job import (
    LISTENER,
    Progress,
    Stopped,
    append_jsonl,
    damage_in,
    is_sealed,
    read_json,
    read_jsonl,
    require,
    seal,
    write_text,
)
from simpsons_llm.model.adapter import weight_shapes
from simpsons_llm.model.decode import SAMPLING, Sampling
from simpsons_llm.model.infer import finish_lines, moment_row
from simpsons_llm.model.verbatim import Seen
from simpsons_llm.train.config import RunLength

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.packing import use_isolated
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.samples import scene_samples
from simpsons_llm.machine.device import find_device, find_ranks
from simpsons_llm.machine.job import chapters_dir
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.infer import heldout_moments
from simpsons_llm.model.loss import collator, heldout_loss, token_losses
from simpsons_llm.train.config import make_optimizer

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## Samples of text
#
# A loss says how well the model guesses, not how it talks. So it is asked, now and then, at three moments of one validation scene: always the same moments, chosen by rule, and always the most likely words, so that whatever changes is what was learned. In training a model drops out parts of itself and draws random numbers; sampling switches that off, and draws with numbers of its own. Of several ranks, the first asks alone, unless each holds only a part of the model.

# %%
#| export
SAYS = Sampling(max_new_tokens=40, do_sample=False, repetition_penalty=1.0)


def said_at(
    model,  # the model in training, with or without adapter
    maker: TextMaker,  # tokenizer and template
    moments: list,  # (scene, position, speaker, real line), as `heldout_moments` gives them; not empty
    sampling: Sampling,  # how words are drawn
    before: int | None = None,  # most lines before the answer that are told, 0 or more; None: all
) -> list:  # one answer for each moment
    "What the model would say now, in one batch."
    was_training = model.training
    model.eval()
    try:
        told = [s.lines[0 if before is None else max(i - before, 0) : i] for s, i, *_ in moments]
        requests = [(s.location, lines, who) for (s, _, who, _), lines in zip(moments, told)]
        return finish_lines(model, maker, requests, sampling)
    finally:
        model.train(was_training)


def text_samples(
    model,  # the model in training, with or without adapter
    maker: TextMaker,  # tokenizer and template
    moments: list,  # what `heldout_moments` chose
) -> list:  # rows: before (the line before; empty where the scene begins), speaker, real, said; no rows without moments
    "What the model would say now, beside the real lines."
    if not moments:
        return []
    return [{**moment_row(m), "said": text} for m, text in zip(moments, said_at(model, maker, moments, SAYS))]


# %%
model, tokenizer = tiny_model()
maker = TextMaker(tokenizer, "script")
moments = heldout_moments(
    split_scenes(read_script("springfield").scenes)["valid"],
    ["Homer Simpson", "Marge Simpson", "Bart Simpson"],
    most_scenes=1,
)
pd.DataFrame(text_samples(model, maker, moments))

# %% [markdown]
# The tiny model knows no language; it stands in where only the machinery matters. A model that is packed, in training and half-way through its random numbers says the same, and draws the same number next:

# %% tags=["check"]
before = text_samples(model, maker, moments)
use_isolated(model.train())
torch.manual_seed(5)
expected = torch.rand(1)
torch.manual_seed(5)
assert text_samples(model, maker, moments) == before and model.training and torch.rand(1) == expected

# %% [markdown]
# ## Learned by heart
#
# A model that reads few lines often learns them by heart. The held-out loss sees little of it: it asks what the model thinks of *other* lines, not what it would say. So at each evaluation the model also speaks, and the share of runs of eight words that stand in training lines is measured ([said before, word for word](../3_model/36_verbatim.ipynb)). Real lines of the validation scenes, which nobody copied, have such runs too. They say how much is normal; one point more is allowed. A step beyond that limit is not kept, however low its loss. This is the *gate*.
#
# | step | held-out loss | recited, of at most 1.2 % | |
# |---|---|---|---|
# | 40 | 2.9 | 0.4 % | kept |
# | 80 | 2.6 | 4.0 % | the lowest loss, and not kept: it recites |
# | 120 | 2.8 | 1.0 % | better than step 40: kept in its place |
#
# Who is asked, and when? The same moments each time, chosen by rule: as many for each character as possible, and of its lines those early in a scene, where little has to be read first, spread over all scenes. The test scenes are not touched.

# %%
#| export
ASKED_ON_CPU = 24  # answers at each evaluation; with SmolLM2 about 8 s on two cores that have nothing else to do
ASKED = 96  # on an accelerator, where they take about as long as one
EARLY = 4  # lines before a moment, at most, as long as there are enough of them
RECITES = SAMPLING["book"].changed(max_new_tokens=40)  # how they are drawn; the random numbers are always the same
MARGIN = 0.01  # what a step that is kept may recite more than people do


def spread_moments(
    scenes: list,  # held-out `Scene`s
    speakers: list | tuple,  # the characters to learn; empty: all
    most: int,  # moments, at most; 1 or more
) -> list:  # (scene, position, speaker, real line), by speaker; fewer where there are fewer lines
    "Moments at which each character really speaks, early in scenes from the first to the last."
    every = [(s, i, x.speaker, x.text) for s in scenes for i, x in enumerate(s.lines)]
    every = [m for m in every if not speakers or m[2] in speakers]
    places: dict = {}
    soon = [m for m in every if m[1] <= EARLY]
    for m in soon if len(soon) >= most else every:
        places.setdefault(m[2], []).append(m)
    ranked = sorted(places.values(), key=len, reverse=True)  # who says most first
    shares = [0] * len(ranked)
    while sum(shares) < min(most, sum(map(len, ranked))):
        for k, own in enumerate(ranked):
            shares[k] += len(own) > shares[k] and sum(shares) < most
    chosen = []
    for own, n in zip(ranked, shares):
        early = [m for m in own if m[1] <= EARLY]
        pool = early if len(early) >= n else sorted(own, key=lambda m: m[1])[:n]
        chosen += [pool[int((j + 0.5) * len(pool) / n)] for j in range(n)]
    return chosen


# %% [markdown]
# 24 moments in the validation scenes of the book's script, by character; how many scenes they come from, and after how many lines at most:

# %% tags=["example"]
valid_scenes = split_scenes(read_script("springfield").scenes)["valid"]
chosen = spread_moments(valid_scenes, [], ASKED_ON_CPU)
asked = pd.DataFrame([(id(s), i, who) for s, i, who, _ in chosen], columns=["scenes", "lines before", "speaker"])
asked.groupby("speaker").agg({"scenes": "nunique", "lines before": "max"}).T

# %% tags=["check"]
assert len(chosen) == len({(id(s), i) for s, i, *_ in chosen}) == 24 and asked["scenes"].nunique() >= 8
assert all((s.lines[i].speaker, s.lines[i].text) == (who, real) for s, i, who, real in chosen)
assert {who for *_, who, _ in spread_moments(valid_scenes, ["Homer Simpson"], 9)} == {"Homer Simpson"}
assert spread_moments(valid_scenes, ["Nobody"], 9) == [] and len(spread_moments(valid_scenes, [], 10**6)) == sum(
    len(s.lines) for s in valid_scenes
)


# %% [markdown]
# The lines that were learned are kept as runs of words, on the first rank alone, and made when they are first asked for. An accelerator may lack the memory for so many answers beside a model in training; then every second moment has to do.

# %%
#| export
class Gate:
    "How much of what a model says stands in the lines that it learned from, and how much is normal."

    def __init__(
        self,
        parts: dict,  # split name -> `Scene`s
        speakers: list | tuple,  # the characters to learn; empty: all
        most: int = ASKED_ON_CPU,  # answers, at most
        before: int | None = None,  # most lines before an answer that are told; None: all
    ):
        self.parts, self.speakers, self.before = parts, speakers, before
        self.moments = spread_moments(parts["valid"], speakers, most)

    @cached_property
    def seen(self) -> Seen:
        "All training lines, whoever says them."
        return Seen(line.text for s in self.parts["train"] for line in s.lines)

    def human(self) -> float:  # 0..1
        "What people recite: real validation lines of the characters to learn, all of them."
        who = self.speakers
        real = (x.text for s in self.parts["valid"] for x in s.lines if not who or x.speaker in who)
        return self.seen.share(real)

    def answers(
        self,
        model,  # the model in training
        maker: TextMaker,  # tokenizer and template
        fewer: bool = True,  # ask fewer where memory lacks; False where several ranks must ask the same
    ) -> list:  # what it says
        "What the model says at the moments."
        import torch

        while True:
            try:
                return said_at(model, maker, self.moments, RECITES, self.before)
            except torch.OutOfMemoryError:
                if not fewer or len(self.moments) < 2:
                    raise
            self.moments = self.moments[::2]


# %% [markdown]
# The tiny model has learned nothing yet. Its answers, the share that it recites, and that of people:

# %% tags=["example"]
gate = Gate(split_scenes(read_script("springfield").scenes), [], 4)
now = gate.answers(model, maker)
now[0][:40], gate.seen.share(now), gate.human()

# %% [markdown]
# The model speaks at each evaluation, since a new lowest loss may recite, and a worse one may be the end of the run. What is decided follows from the rows of `metrics.jsonl` alone, so a run that is resumed decides as if nothing had happened. The step that is kept is the one with the lowest loss of those within the limit, and where none is, of all. And a run is over when two evaluations in a row were worse in both respects than the best so far: what follows would not be kept.

# %%
#| export
WORSE = "loss and memorising got worse"  # why a run ended
TIME = "the time allowed was up"


def judged(
    rows: list,  # of metrics.jsonl
) -> tuple:  # (evaluations of steps that were made, those within the limit, what people recite; inf without a gate)
    "The evaluations of a run, and which of them pass the gate."
    made = [r for r in rows if r["step"] and "valid_loss_nats" in r]
    human = next((r["human_verbatim"] for r in rows if "human_verbatim" in r), math.inf)
    return made, [r for r in made if r.get("verbatim", 0.0) <= human + MARGIN], human


def kept_row(
    rows: list,  # of metrics.jsonl, with an evaluation of a step
) -> dict:  # the first of equals
    "The evaluation of the step that is kept."
    made, passed, _ = judged(rows)
    return min(passed or made, key=lambda r: r["valid_loss_nats"])


def got_worse(
    rows: list,  # of metrics.jsonl
) -> bool:
    "Whether loss and memorising (beyond its limit) were above those of the best loss, at the last two evaluations."
    made, _, human = judged(rows)

    def worse(at):
        best = min(made[:at], key=lambda r: r["valid_loss_nats"])
        floor = {"valid_loss_nats": 0.0, "verbatim": human + MARGIN}  # within the limit, nothing is recited
        return all(made[at].get(k, 0.0) > max(best.get(k, 0.0), floor[k]) for k in ("valid_loss_nats", "verbatim"))

    return human < math.inf and len(made) > 2 and worse(len(made) - 2) and worse(len(made) - 1)


def gate_facts(
    rows: list,  # of metrics.jsonl
) -> dict | None:  # human_verbatim, limit, verbatim (of the kept step), decided_by; None without gate or evaluation
    "What the gate decided, for the summary."
    made, passed, human = judged(rows)
    if not made or human == math.inf:
        return None
    kept, lowest = kept_row(rows), min(made, key=lambda r: r["valid_loss_nats"])
    how = "none passed" if not passed else "loss" if kept is lowest else "memorising"
    return {
        "human_verbatim": human,
        "limit": human + MARGIN,
        "verbatim": kept.get("verbatim"),
        "decided_by": how,
    }


# %% [markdown]
# The table from above, and what it would decide without its last row; with two worse ones at its end:

# %%
tries = [(0, 4.0, None), (40, 2.9, 0.004), (80, 2.6, 0.04), (120, 2.8, 0.01)]
history = [
    {"step": step, "valid_loss_nats": loss, **({"human_verbatim": 0.002} if share is None else {"verbatim": share})}
    for step, loss, share in tries
]
on_end = [{"step": step, "valid_loss_nats": 3.0, "verbatim": 0.06} for step in (160, 200)]
pd.DataFrame(
    [
        {"rows": name, "kept": kept_row(rows)["step"], **gate_facts(rows), "over": got_worse(rows)}
        for name, rows in (("all", history), ("without the last", history[:-1]), ("two worse", history + on_end))
    ]
).set_index("rows")

# %% tags=["check"]
assert [kept_row(history[:n])["step"] for n in (2, 3, 4)] == [40, 40, 120] and gate_facts(history[:1]) is None
assert gate_facts([{"step": 0, "human_verbatim": 0.0}, history[2]])["decided_by"] == "none passed"
assert not got_worse(history + on_end[:1]) and got_worse(history + on_end)


# %% [markdown]
# ## Trackers
#
# `metrics.jsonl` and `loss.png` need no service. Who keeps many runs beside each other may have them in [trackio](https://github.com/gradio-app/trackio) (local), [Weights & Biases](https://wandb.ai) or TensorBoard as well, through accelerate's trackers. Without a login, `wandb` writes into the run's folder and says how to send it later.
#
# A tracker of one's own: its name in `TRACKERS` of [the settings](40_config.ipynb), a branch below that gives an object with `log` and `finish`, and, if it writes a folder into the run, that folder's name in `RESULTS` of [the life of a run](44_lifecycle.ipynb), so that the next run sets it aside.

# %%
#| export
class Tracker(Protocol):
    "What a run tells a tracker, whichever it is."

    def log(self, values: dict, step: int | None = None): ...

    def finish(self): ...


# %% [markdown]
# Two methods are all that is asked. Of one's own, a tracker that prints:

# %% tags=["example"]
class Printed:
    "A tracker on the screen."

    def log(self, values: dict, step: int | None = None):
        print(f"step {step}:", ", ".join(f"{k} {v}" for k, v in values.items()))

    def finish(self):
        print("that was the run")


Printed().log({"valid_loss_nats": 2.5}, step=10)


# %% [markdown]
# The services are imported only when one is named, so that none has to be installed. A tracker learns the settings first, so that runs can be told apart by them.

# %%
#| export
def open_tracker(
    name: str,  # none, trackio, wandb or tensorboard
    run: Path,  # the run's folder; its name is the run's name
    settings: dict,  # shown beside the curves
) -> Tracker | None:  # an accelerate tracker
    "Begin a run in a tracker."
    if name == "none":
        return None
    import os

    from accelerate import tracking

    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker("", logging_dir=str(run / "tensorboard"))
    elif name == "trackio":
        tracker = tracking.TrackioTracker("simpsons_llm", name=run.name, embed=False)
    else:
        import wandb

        offline = {} if os.environ.get("WANDB_MODE") or wandb.api.api_key else {"mode": "offline"}
        if offline:
            print(
                f"wandb: not logged in, so the run is kept in {run / 'wandb'}; `wandb sync` sends it later", flush=True
            )
        tracker = tracking.WandBTracker("simpsons_llm", name=run.name, dir=str(run), **offline)
    tracker.main_process_only = False  # only the first rank has one at all
    tracker.start()
    tracker.store_init_configuration({k: v for k, v in settings.items() if isinstance(v, (str, int, float))})
    return tracker


# %% [markdown]
# ## Where the time goes
#
# A run of a small model may spend more time on being looked at than on learning, and nobody notices. So a *stopwatch* runs all the time, for one part at a time: whoever begins with something else turns it over. Whatever is not named goes to the part that ran before, so the parts add up to the whole.

# %%
#| export
PARTS = ("load", "train", "score", "speak", "save", "other")


class Stopwatch:
    "Wall time of a run, by what it went into."

    def __init__(
        self,
        part: str = "other",  # one of PARTS, runs first
    ):
        self.spent, self.part, self.since = dict.fromkeys(PARTS, 0.0), part, time.perf_counter()

    def turn_to(
        self,
        part: str,  # one of PARTS; runs from now on
    ) -> str:  # the one that ran until now
        "Another part begins."
        require(part in PARTS, f"part={part!r} was given; expected {', '.join(PARTS)}")
        now, before = time.perf_counter(), self.part
        self.spent[before] += now - self.since
        self.part, self.since = part, now
        return before

    @contextmanager
    def during(
        self,
        part: str,  # one of PARTS; runs for as long as the block does
    ):
        "A part in the middle of another one."
        before = self.turn_to(part)
        try:
            yield
        finally:
            self.turn_to(before)

    def read(self) -> dict:  # part -> seconds, all of PARTS
        "Seconds of each part until now."
        self.turn_to(self.part)
        return dict(self.spent)


# %% [markdown]
# A moment of training, a longer one of scoring in the middle of it:

# %% tags=["check"]
begun, watch = time.perf_counter(), Stopwatch("train")
with watch.during("score"):
    time.sleep(0.1)
time.sleep(0.02)
parts = watch.read()
assert parts["score"] >= 0.1 > 0.06 > parts["train"] >= 0.02 and watch.part == "train"
assert abs(sum(parts.values()) - (time.perf_counter() - begun)) < 0.01
{part: round(s, 2) for part, s in parts.items()}


# %% [markdown]
# ## Counting
#
# How many tokens, how many of them learned, in how many seconds? Two kinds of learned tokens are told apart by name: `learned_tokens` are those of the characters to learn, at full weight; `context_tokens` are those of everybody else's lines, which count a little (`context_weight`). For one character of many the second kind can be several times the first. The meter looks at each step's micro-batches before they are computed, and adds up over all ranks. It works out the weight by which a step's loss is divided, since that is a sum over the global batch too. Steps are timed without evaluations; work that a device still has in its queue is waited for. And it knows when the time that was allowed is up.

# %%
#| export
@dataclass
class Meter:
    "Tokens and seconds of a run."

    ranks: Ranks  # the ranks
    device: Device  # the device: its work is waited for before the clock is read
    length: RunLength  # what happens when
    max_minutes: float | None = field(default=None, kw_only=True)  # time limit in minutes; None: no limit
    watch: Stopwatch = field(default_factory=Stopwatch, kw_only=True)  # of the whole run
    real_tokens: int = field(default=0, init=False)  # tokens that went through the model, on all ranks
    learned_tokens: int = field(default=0, init=False)  # of them, those that were learned at full weight
    context_tokens: int = field(default=0, init=False)  # and those that were learned at less
    # a number or a tensor
    heard: float = field(default=0.0, init=False)  # losses of this step's tokens of full weight, summed on this rank
    own_tokens: int = field(default=0, init=False)  # real tokens on this rank, in this process
    earlier_tokens: int = field(default=0, init=False)  # real tokens before the run was resumed
    step_s: float = field(default=0.0, init=False)  # seconds in steps, without evaluation
    earlier_s: float = field(default=0.0, init=False)  # the same before the run was resumed
    stopped_because: str = field(default="", init=False)  # why the run ended before its last step; "": it did not
    asked: bool = field(default=False, init=False)  # a signal asked one of the ranks to stop

    @property
    def stopped_early(self) -> bool:
        "Whether the run ends before its last step."
        return bool(self.stopped_because)

    def begin(self):
        "Start the clock, and the telling of progress."
        self.watch.turn_to("train")
        self.begun, self.begun_tokens, self.begun_s = time.perf_counter(), self.real_tokens, self.step_s
        LISTENER.patient = True
        most_s = 60 * self.max_minutes if self.max_minutes else None
        self.progress = Progress(self.length.steps, "train", every_s=5, show=self.ranks.is_main, most_s=most_s)

    def count(
        self,
        parts: list,  # this rank's micro-batches of one step
    ) -> float:  # the loss weights of the global batch, added up over all ranks
        "Count the tokens of a step before it is made. All ranks must call it."
        self.watch.turn_to("train")
        weights = [p["loss_weights"][:, 1:] for p in parts]
        own: list = [
            sum(int(p["lengths"].sum()) for p, w in zip(parts, weights) if w.any()),
            *(sum(int(which(w).sum()) for w in weights) for which in (lambda w: w == 1, lambda w: (w > 0) & (w < 1))),
            sum(float(w.sum()) for w in weights),
        ]
        # one number more in a sum that is made anyway: all ranks stop after the same step
        real, learned, context, weight, asked = total(*own, float(bool(LISTENER.number)))
        self.asked = self.asked or asked > 0
        self.own_tokens += own[0]
        self.real_tokens += int(real)
        self.learned_tokens += int(learned)
        self.context_tokens += int(context)
        return weight

    def hear(
        self,
        losses,  # of a micro-batch, B x K, in nats
        weights,  # their weights, B x K
    ):
        "Remember the losses of full weight. The device is not waited for."
        self.heard = self.heard + (losses.detach() * (weights == 1)).sum()

    def step_begins(self):
        "The first micro-batch follows."
        self.watch.turn_to("train")
        synchronize(self.device)
        self.since = time.perf_counter()

    def step_ends(
        self,
        step: int,  # 1..steps
    ) -> bool:  # whether the run must stop here
        "The optimizer has stepped. All ranks must call it."
        synchronize(self.device)
        self.step_s += time.perf_counter() - self.since
        # who is alone need not ask
        self.asked = self.asked or bool(LISTENER.number) and self.ranks.world_size < 2
        # rank 0's clock counts
        if self.max_minutes and step < self.length.steps:
            self.stopped_because = TIME * gather(time.perf_counter() - self.begun > 60 * self.max_minutes)[0]
        return self.stopped_early

    def stop_if_asked(
        self,
        step: int,  # that was saved; after one that was not, this must not be called
    ):
        "End the run if a signal asked for it, while it saved, too; Stopped on all ranks."
        if self.asked or LISTENER.number and self.ranks.world_size < 2:
            LISTENER.patient = False
            raise Stopped(LISTENER.number or signal.SIGTERM, f"after step {step}, which was saved")


# %% [markdown]
# A signal that asks to stop ([what a job is](../9_machine/91_job.ipynb)) is heard at the end of a step. Of several ranks it may have reached one alone; it tells the others in the sums of the next step, and all save after that one.
#
# One step on a scene in which Homer speaks. Most of what is learned there, by count, is what the others say:

# %% tags=["example"]
meter = Meter(find_ranks(), find_device("cpu"), RunLength(3, 2, 2, -1, 0))
scene, _ = scene_samples([moments[0][0]], maker, ["Homer Simpson"], 900, 0.1)
weight = meter.count([collator(model, tokenizer.pad_token_id)([scene[0].features()])])
counted = ["real_tokens", "learned_tokens", "context_tokens"]
pd.DataFrame([{**{n: getattr(meter, n) for n in counted}, "the loss is divided by": round(weight, 1)}])


# %% [markdown]
# ## Telling how it goes
#
# The recorder is a meter that speaks. It writes `metrics.jsonl` as it comes, tells progress and time left, and stops a run whose loss is not a number.
#
# Two losses are written for each step. `train_loss_nats` is what is minimised, a mean over all tokens by their weights. `learned_loss_nats` is the mean over the tokens of full weight alone, which is what the held-out loss counts too: only these two can be compared.
#
# At the end of an epoch it also writes two perplexities, $e^{\text{loss}}$: how many tokens the model hesitates between, on average. That of training comes from the tokens of full weight in the epoch's steps, and so it lags behind: half of those steps were made by a model that knew less.

# %%
#| export
@dataclass
class Recorder(Meter):
    "What happened so far, in numbers, in metrics.jsonl, and on the screen."

    run: Path  # the run's folder
    say: Callable[[], list]  # called for samples of text; gives rows
    tracker: Tracker | None = None  # what `open_tracker` gave
    recites: Callable[[], float] | None = None  # called at each evaluation, on all ranks; None: no gate
    fingerprint: Callable[[], list] = list  # called when the held-out loss was measured; tells weights apart
    rows: list = field(default_factory=list, init=False)  # of metrics.jsonl
    fingerprints: dict = field(default_factory=dict, init=False)  # step -> what it gave

    def write(
        self,
        step: int,  # 0..steps
        **values,  # what is known after it
    ):
        "Add a row to metrics.jsonl, and its numbers to the tracker."
        row = {"step": step, "epoch": round(step / self.length.epoch_steps, 4), **values}
        self.rows.append(row)
        if self.ranks.is_main:
            append_jsonl(self.run / "metrics.jsonl", row)
        if self.tracker:
            self.tracker.log({k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}, step=step)

    def learned(
        self,
        step: int,  # 1..steps
        loss: float,  # of the step's global batch, nats per unit of weight
        grad_norm: float,  # before it was clipped
        learning_rate: float,  # the step's
    ):
        "A step is done. All ranks must call it."
        for name, value in (("train_loss_nats", loss), ("grad_norm", grad_norm)):
            require(
                math.isfinite(value),
                f"{name} is {value} at step {step}; the run was stopped; try a lower learning_rate, or dtype=float32",
            )
        (heard,), self.heard = total(float(self.heard)), 0.0
        before = next((r for r in reversed(self.rows) if "learned_tokens" in r), {"learned_tokens": 0})
        # a step of a scene without the character has none
        full = self.learned_tokens - before["learned_tokens"]
        self.write(
            step,
            train_loss_nats=loss,
            **({"learned_loss_nats": heard / full} if full else {}),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            real_tokens=self.real_tokens,
            learned_tokens=self.learned_tokens,
            context_tokens=self.context_tokens,
            step_s=round(self.step_s, 4),
        )
        speed = (self.real_tokens - self.begun_tokens) / max(self.step_s - self.begun_s, 1e-9)
        note = f"loss {loss:.3f}  {speed:.0f} tokens/s" + "  (the time allowed is up)" * self.stopped_early
        self.progress(step, note, over=self.stopped_early)

    def evaluated(
        self,
        step: int,  # 1..steps
        loss: float,  # held-out, nats per token
    ):
        "The held-out loss was measured. All ranks must call it."
        require(
            math.isfinite(loss),
            f"the held-out loss is {loss} at step {step}; "
            "the run was stopped; try a lower learning_rate, or dtype=float32",
        )
        with self.watch.during("speak"):
            share = self.recites() if self.recites else None
        epoch = step % self.length.epoch_steps == 0
        train = self.train_perplexity(step) if epoch else None
        self.write(
            step,
            valid_loss_nats=loss,
            valid_perplexity=math.exp(loss),
            **({"train_perplexity": train} if train else {}),
            **({} if share is None else {"verbatim": share}),
        )
        if step < self.length.steps and got_worse(self.rows):
            self.stopped_because = WORSE
        if self.ranks.is_main:
            print(
                f"step {step}: held-out loss {loss:.4f} nats per token"
                + (
                    f"; epoch {step // self.length.epoch_steps}: "
                    f"perplexity {train:.2f} in training, {math.exp(loss):.2f} held out"
                    if train
                    else ""
                )
                + self.told_share(share),
                flush=True,
            )
        self.fingerprints[step] = self.fingerprint()
        # a checkpoint follows
        self.watch.turn_to("save")

    def told_share(
        self,
        share: float | None,  # recited at this evaluation, 0..1; None: there is no gate
    ) -> str:  # nothing where there is nothing to tell
        "What the gate made of an evaluation, for the screen."
        if share is None:
            return ""
        limit = judged(self.rows)[2] + MARGIN
        told = f"; recites {share:.1%}" + f", over the limit of {limit:.1%}" * (share > limit)
        return told + f"; stopped: {WORSE}" * (self.stopped_because == WORSE)

    @property
    def best(self) -> tuple:  # (step, its held-out loss in nats per token)
        "The step that is kept, as far as it is known."
        row = kept_row(self.rows)
        return row["step"], row["valid_loss_nats"]

    def train_perplexity(
        self,
        step: int,  # the last of an epoch
    ) -> float | None:  # of the epoch's tokens of full weight; None if there were none
        "How the epoch went, from the rows that were written."
        rows = {r["step"]: r for r in self.rows if "train_loss_nats" in r and r["step"] <= step}
        mine = range(step - self.length.epoch_steps + 1, step + 1)
        tokens = [rows[k]["learned_tokens"] - rows.get(k - 1, {"learned_tokens": 0})["learned_tokens"] for k in mine]
        return (
            math.exp(sum(n * rows[k]["learned_loss_nats"] for n, k in zip(tokens, mine) if n) / sum(tokens))
            if sum(tokens)
            else None
        )

    def speak(
        self,
        step: int,  # 0..steps
    ):
        "Let the model speak if text is due after this step, and write it down. All ranks must call it."
        with self.watch.during("speak"):
            rows = self.say() if self.length.samples(step) else []
        # both engines score after they have let the model speak
        if step and (self.stopped_early or self.length.evaluates(step)):
            self.watch.turn_to("score")
        if not rows:
            return
        self.write(step, samples=rows)
        for r in rows[:1]:
            print(f"  {r['speaker']}: {r['said'][:120]}", flush=True)


# %% [markdown]
# Two steps of one epoch, told by hand; a third one that goes wrong:

# %%
told = Path(tempfile.mkdtemp())
recorder = Recorder(find_ranks(), find_device("cpu"), RunLength(3, 2, 2, -1, 0), told, say=lambda: [])
recorder.begin()
for step, loss in ((1, 3.0), (2, 2.0)):
    recorder.step_begins()
    recorder.learned_tokens += 100 * step
    recorder.heard = 100 * step * loss
    recorder.step_ends(step)
    recorder.learned(step, loss, 1.0, 1e-3)
recorder.evaluated(2, 2.5)
try:
    recorder.learned(3, float("nan"), 1.0, 1e-3)
except ValueError as e:
    print(e)

# %% tags=["check"]
epoch = read_jsonl(told / "metrics.jsonl")[-1]
assert (
    math.isclose(epoch["train_perplexity"], math.exp((100 * 3 + 200 * 2) / 300))
    and math.isclose(epoch["valid_perplexity"], math.exp(2.5))
    and epoch["epoch"] == 1
)

# %% [markdown]
# What the file holds of it: a row for each step, then one for the evaluation. The step that went wrong left none.

# %% tags=["example"]
columns = ["step", "epoch", "train_loss_nats", "learned_tokens", "valid_loss_nats", "train_perplexity"]
pd.DataFrame(read_jsonl(told / "metrics.jsonl"))[columns].round(2)

# %% [markdown]
# A tracker gets the numbers of a row as it is written, and not its text:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as shown:
    printing = Recorder(find_ranks(), find_device("cpu"), RunLength(3, 2, 2, -1, 0), Path(shown), list, Printed())
    printing.write(1, train_loss_nats=3.0, samples=["Homer Simpson: Doughnuts."])

# %% [markdown]
# ## Checkpoints that are whole
#
# A run may be killed at any moment, also while a checkpoint is being written. So a checkpoint grows under a hidden name and is renamed when all of it is there, by whichever engine: what is called `checkpoint-6` was whole when it got that name, and a kill in the middle costs the steps since the one before. It is sealed as well, and takes along the rows of `metrics.jsonl` until then. Which one a run goes on from is decided in one place, and handed to the engine by its path. (Left to find it by itself, Trainer takes the folder with the highest number, whole or not.)

# %%
#| export
STATE = "trainer_state.json"  # where training stood
METRICS = "metrics.jsonl"  # of the run; a checkpoint has its rows until then


def checkpoint_folder(
    run: Path,  # a run's folder
    step: int,  # of the checkpoint
) -> Path:  # where it is, or would be
    "The folder of one checkpoint."
    return Path(run) / "checkpoints" / f"checkpoint-{step}"


def checkpoints(
    run: Path,  # a run's folder
) -> list:  # steps, the oldest first
    "The checkpoints that were finished; whether they are still whole, `whole_checkpoint` says."
    found = (
        re.fullmatch(r"checkpoint-(\d+)", p.parent.name)
        for p in (Path(run) / "checkpoints").glob(f"checkpoint-*/{STATE}")
    )
    return sorted(int(m[1]) for m in found if m)


def last_checkpoint(
    run: Path,  # a run's folder
) -> int:  # its step; 0 if there is none
    "The step of the newest checkpoint that was finished."
    return max(checkpoints(run), default=0)


# %% [markdown]
# Three folders, of which the last was cut short: it lacks the file that is written last.

# %% tags=["example"]
with tempfile.TemporaryDirectory() as cut:
    for step in (2, 4, 6):
        checkpoint_folder(cut, step).mkdir(parents=True)
    for step in (2, 4):
        (checkpoint_folder(cut, step) / STATE).write_text("{}")
    whole, last = checkpoints(cut), last_checkpoint(cut)
whole, last


# %% [markdown]
# Several processes write one checkpoint. It gets its name only when all are done, and if one of them fails, all learn of it instead of waiting.

# %%
#| export
@contextmanager
def new_checkpoint(
    run: Path,  # a run's folder
    step: int,  # of the checkpoint
):  # a hidden folder to write into; the checkpoint is there when the block ends well
    "A checkpoint that is there as a whole or not at all. All ranks must enter and leave the block."
    ranks, to = group_ranks(), checkpoint_folder(run, step)
    part, failed = to.with_name(f".{to.name}"), None

    def begin():
        # of a run that was killed
        for left in to.parent.glob(".checkpoint-*"):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)

    def end():
        if (Path(run) / METRICS).is_file():
            shutil.copyfile(Path(run) / METRICS, part / METRICS)
        seal(part)
        if to.exists():
            shutil.rmtree(to)
        part.rename(to)

    on_main(ranks, begin)
    try:
        yield part
    except Exception as e:
        failed = e
    told = gather(failed and f"{type(failed).__name__}: {failed}")
    if failed:
        raise failed
    require(not any(told), f"another rank could not write its part of {to}: {next(filter(None, told), '')}")
    on_main(ranks, end)


# %% [markdown]
# The folder's name inside the block and after it:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as grown:
    with new_checkpoint(grown, 6) as part:
        (part / STATE).write_text("{}")
        inside = [p.name for p in part.parent.iterdir()]
    after = [p.name for p in part.parent.iterdir()]
inside, after


# %% [markdown]
# What is written beside the weights also tells where training stood, and which step was best until then:

# %%
#| export
def state_of(
    run: Path,  # a run's folder
    step: int,  # of the checkpoint
) -> tuple:  # (the best step so far, its held-out loss; 0, inf: none yet); ValueError if it is not of this step
    "What a checkpoint says of where training stood."
    state = read_json(checkpoint_folder(run, step) / STATE, dict)
    at, loss = state.get("global_step"), state.get("best_metric")
    best = re.fullmatch(r"checkpoint-(\d+)", Path(str(state.get("best_model_checkpoint"))).name)
    require(at == step and not isinstance(at, bool), f"{STATE} says step {at!r}")
    if {"best_metric", "best_model_checkpoint"} <= state.keys() and state["best_model_checkpoint"] is None is loss:
        return 0, math.inf  # stopped before the first evaluation
    require(best and isinstance(loss, (int, float)), f"{STATE} does not say which step was best")
    return int(best[1]), loss  # type: ignore[index]


def best_at(
    run: Path,  # a run's folder
    step: int,  # of a checkpoint
) -> int:  # `step` itself where its state does not say
    "The step that was best when a checkpoint was written."
    try:
        return state_of(run, step)[0]
    except (OSError, ValueError):
        return step


# %% [markdown]
# Checkpoints take room, so old ones go. The newest stays, to go on from, and the best, to be kept at the end. Of the others as many as are asked for, each with the one that was best at its time, so that it can take the newest one's place.

# %%
#| export
def thin_out(
    run: Path,  # a run's folder, with a checkpoint just written
    most: int,  # checkpoints to keep, 1 or more; the newest and the best always stay
    best: int,  # step of the best one; 0: none was evaluated yet
):
    "Let go of old checkpoints, and of what is not whole. One rank alone calls it."
    whole = checkpoints(run)
    keep = {best, whole[-1]} & {*whole}
    # an older one is of use with the one that was best then
    for step in reversed(whole):
        if len(keep | (both := {step, best_at(run, step)} & {*whole})) <= most:
            keep |= both
    for p in (Path(run) / "checkpoints").glob("[cd]*-*"):
        if p.name not in {f"checkpoint-{k}" for k in keep}:
            shutil.rmtree(p)


# %% [markdown]
# Four checkpoints, the second the best, two to keep:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as thinned:
    for step in (2, 4, 6, 8):
        with new_checkpoint(thinned, step) as part:
            (part / STATE).write_text("{}")
    thin_out(thinned, 2, best=4)
    stayed = checkpoints(thinned)
stayed

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder)

    def save(step, fails=False):
        with new_checkpoint(run, step) as part:
            (part / "weights").write_text("w")
            if fails:
                raise KeyboardInterrupt if fails == "stopped" else OSError("the disk is full")
            (part / STATE).write_text("{}")

    for step in (2, 4, 6, 8):
        save(step)
    for why in ("stopped", "full"):
        try:
            save(10, why)
            raise AssertionError
        except (KeyboardInterrupt, OSError):
            assert last_checkpoint(run) == 8
    (run / "checkpoints" / "checkpoint-12").mkdir()  # not whole: no state in it
    assert checkpoints(run) == [2, 4, 6, 8]
    thin_out(run, 2, best=4)
    assert checkpoints(run) == [4, 8] and not (run / "checkpoints" / "checkpoint-12").exists()
    save(10)
    thin_out(run, 1, best=10)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["checkpoint-10"]

# %% [markdown]
# ### Whole, still
#
# Months may lie between a checkpoint and the run that goes on from it, and a disk in between. So before a run goes on, its newest checkpoint is looked at: that all files are as they were sealed, that nothing is missing of what a run needs, and that the step in it is that of its name. (Without the optimizer's file Trainer would go on all the same, with a rate that begins again.)

# %%
#| export
NEEDED = {
    "the weights": ("adapter_model.safetensors", "model*.safetensors"),
    "the optimizer's state": ("optimizer.pt",),
    "the schedule": ("scheduler.pt",),
    "the random numbers": ("random.pt", "rng_state*.pth"),  # the loop's, Trainer's
    "the trainer's state": (STATE,),
}


def unreadable(
    folder: Path,  # a checkpoint without a manifest
) -> list:  # sentences
    "What of an earlier version's checkpoint is cut short, as far as its files tell it themselves."
    found = []
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(file) as z:  # with a checksum of each part
                    if z.testzip():
                        found.append(f"{file.name} is damaged")
            if file.suffix == ".safetensors":
                weight_shapes(file)
        except (OSError, zipfile.BadZipFile):
            found.append(f"{file.name} cannot be read")
    return found


# %% [markdown]
# All that can be wrong with one checkpoint, in words:

# %%
#| export
def checkpoint_damage(
    run: Path,  # a run's folder
    step: int,  # of the checkpoint
) -> list:  # sentences; none if it is whole
    "What has happened to a checkpoint."
    folder = checkpoint_folder(run, step)
    if not folder.is_dir():
        return ["it is gone"]
    found = damage_in(folder)
    if not found:
        found = [f"{files[0]} ({what}) is missing" for what, files in NEEDED.items() if not any_of(folder, files)]
    if not found and not is_sealed(folder):
        found = unreadable(folder)
    try:
        if not found:
            state_of(run, step)
    except ValueError as e:
        found = [str(e).removeprefix(f"{folder}{os.sep}")]
    return found


def any_of(
    folder: Path,  # a folder
    patterns: tuple,  # of files' names
) -> bool:
    "Whether there is a file of one of these names."
    return any(next(folder.glob(p), None) for p in patterns)


# %% [markdown]
# The rows of `metrics.jsonl` are part of what a run goes on from: they decide which step is kept, and what the picture shows. A sealed checkpoint has its own copy. So whatever has happened to the file since, rows are taken from there, and a sentence says what was wrong. Of a checkpoint of an earlier version the run's own file must have every row.

# %%
#| export
def parsed_rows(
    raw: bytes,  # of a file like metrics.jsonl
) -> tuple:  # (rows until the first that is none, number of the row that is none or 0, whether it is the last one)
    "Rows, as far as they are rows."
    lines: list = raw.split(b"\n")
    rows: list = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf8")) if line.strip() else None
            if row is not None and not (isinstance(row, dict) and isinstance(row.get("step"), int)):
                raise ValueError
        except ValueError:
            return rows, number, number >= len(lines) - (lines[-1] == b"")
        rows += [row] if row is not None else []
    return rows, 0, False


def rows_until(
    run: Path,  # a run's folder
    step: int,  # of a checkpoint that is whole
) -> tuple:  # (rows of the steps until then, what was wrong with the file: "" or a sentence); ValueError if rows lack
    "The rows of metrics.jsonl that a run goes on from."
    kept, own = checkpoint_folder(run, step) / METRICS, Path(run) / METRICS
    raw = own.read_bytes() if own.is_file() else b""
    rows, bad, last = parsed_rows(raw)
    said = f"the last row of {METRICS} was half written and is cut off" if bad and last else ""
    if kept.is_file():
        if not raw.startswith(kept.read_bytes()):
            why = "is missing" if not own.is_file() else "is empty" if not raw else "is damaged, or lacks rows"
            said = f"{METRICS} {why}; its rows until step {step} are taken from the checkpoint"
        rows = [row for row in read_jsonl(kept) if row["step"] <= step]
        require(any(row["step"] == step for row in rows), f"its {METRICS} has no row of step {step}")
        return rows, said
    mine = [row for row in rows if row["step"] <= step]
    made = {row["step"] for row in mine if "train_loss_nats" in row}
    lacking = sorted({*range(1, step + 1)} - made)
    require(not lacking, f"{METRICS} lacks the row of step {', '.join(map(str, lacking[:3]))}")
    best, loss = state_of(run, step)
    scored = {row["step"]: row["valid_loss_nats"] for row in mine if "valid_loss_nats" in row}
    best_there = not best or scored.get(best) == loss
    require(0 in scored and best_there, f"{METRICS} lacks the held-out loss of step 0 or {best}")
    return mine, said


# %% [markdown]
# Of all checkpoints, the newest is taken that is whole, with the one of its best step, which is loaded at the end. Those that are passed over are named, with what is wrong.

# %%
#| export
def whole_checkpoint(
    run: Path,  # a run's folder
) -> tuple:  # (step of the newest checkpoint that is whole; 0: none, {step: what is wrong} of newer ones)
    "Where a run can go on from. One rank alone calls it."
    passed: dict = {}
    names = (re.fullmatch(r"checkpoint-(\d+)", p.name) for p in (Path(run) / "checkpoints").glob("checkpoint-*"))
    for step in sorted((int(m[1]) for m in names if m), reverse=True):
        wrong = checkpoint_damage(run, step)
        if not wrong and (best := state_of(run, step)[0]) not in (0, step):
            of_best = passed.get(best) or checkpoint_damage(run, best)
            wrong = [f"of its best step, checkpoint-{best}: {x}" for x in of_best]
        try:
            if not wrong:
                rows_until(run, step)
                return step, passed
        except ValueError as e:
            wrong = [str(e)]
        passed[step] = wrong
    return 0, passed


def passed_over(
    passed: dict,  # what `whole_checkpoint` found wrong
) -> str:  # such as "checkpoint-6: optimizer.pt is missing"
    "Damaged checkpoints in words."
    return "; ".join(f"checkpoint-{step}: {', '.join(wrong)}" for step, wrong in passed.items())


def leave_out(
    run: Path,  # a run's folder
    passed: dict,  # damaged checkpoints, by step
):
    "Call damaged checkpoints so; the next one that is whole lets go of them. One rank alone calls it."
    for step in passed:
        aside = checkpoint_folder(run, step).with_name(f"damaged-{step}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint_folder(run, step).rename(aside)


# %% [markdown]
# Three checkpoints; the newest loses a file, and in the one before a bit falls over:

# %% tags=["example"]
def pretend(run, step, best):
    "A checkpoint with nothing in its files."
    append_jsonl(Path(run) / METRICS, {"step": step})
    with new_checkpoint(run, step) as part:
        for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "random.pt"):
            (part / name).write_bytes(b"numbers")
        state = {"global_step": step, "best_metric": 2.5, "best_model_checkpoint": f"checkpoint-{best}"}
        (part / STATE).write_text(json.dumps(state))


with tempfile.TemporaryDirectory() as hurt:
    for step in (2, 4, 6):
        pretend(hurt, step, best=2)
    (checkpoint_folder(hurt, 6) / "optimizer.pt").unlink()
    (checkpoint_folder(hurt, 4) / "scheduler.pt").write_bytes(b"numbirs")
    found = whole_checkpoint(hurt)
    print(f"{passed_over(found[1])}; going on from step {found[0]}")

# %% tags=["check"]
with tempfile.TemporaryDirectory() as hurt:
    for step in (2, 4, 6):
        pretend(hurt, step, best=2)
    assert whole_checkpoint(hurt) == (6, {})
    # the best one counts for all that would load it
    (checkpoint_folder(hurt, 2) / "adapter_model.safetensors").write_bytes(b"")
    step, passed = whole_checkpoint(hurt)
    assert step == 0 and list(passed) == [6, 4, 2] and "best step, checkpoint-2: adapter_model" in passed[6][0]
    leave_out(hurt, passed)
    assert sorted(p.name for p in (Path(hurt) / "checkpoints").iterdir()) == ["damaged-2", "damaged-4", "damaged-6"]
    pretend(hurt, 2, best=2)
    # another name than the step in it
    checkpoint_folder(hurt, 2).rename(checkpoint_folder(hurt, 8))
    assert whole_checkpoint(hurt) == (0, {8: [f"{STATE} says step 2"]})

# %% [markdown]
# Does it hold? `tests/damage.py` damages runs, adapters, exports, prepared data and kept tokens of the tiny model in some 400 ways, and then goes on with them or asks them. How many ended how, before all this was there and now? (*same*: the result without the damage, bit for bit; *older* and *rebuilt*: the same result from an older checkpoint or made anew, and said; *refused*: in one sentence.)

# %% tags=["example"]
tried = pd.read_json(chapters_dir() / "_results" / "damage.jsonl", lines=True)
tried["what"] = tried["case"].str.extract(r"(resume|infer|again|data|cache)", expand=False)
names = {
    "resume": "a run goes on",
    "again": "a finished run",
    "infer": "adapter, model, export",
    "data": "prepared data",
}
tried["what"] = tried["what"].replace(names | {"cache": "kept tokens"})
tried.groupby(["what", "when", "end"]).size().unstack(fill_value=0)

# %% [markdown]
# Of the WRONG ones before, most were told in a library's words, and 22 went on to another result without a word: a lost random state, a flipped bit, rows that were cut off.

# %% tags=["check"]
ends = tried.groupby(["when", "end"]).size()
silent = tried["said"].str.startswith("another result")
assert "WRONG" not in ends["now"] and ends["now"].sum() > 400 and silent.sum() == 22 and ends["before"]["WRONG"] == 142


# %% [markdown]
# A run that was killed had gone on past its last checkpoint. What it wrote after that is done again, so those rows are taken out of the file, and the counters go on from the last row that stays. If these rows say that the run was over, it is.

# %%
#| export
def take_up(
    recorder: Recorder,  # of a run that goes on; its counters are set
    done: int,  # step of the checkpoint that it goes on from
) -> dict:  # the row of step 0: the base's held-out losses, as the run measured them when it began
    "Make the records of a run fit to go on from a checkpoint. All ranks must call it."
    # the first rank reads, all have the same rows
    recorder.rows, said = on_main(recorder.ranks, lambda: rows_until(recorder.run, done))
    if recorder.ranks.is_main:
        if said:
            print(said, flush=True)
        write_text(recorder.run / METRICS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in recorder.rows))
    last: dict = next((row for row in reversed(recorder.rows) if "real_tokens" in row), {})
    for counter in ("real_tokens", "learned_tokens", "context_tokens", "step_s"):
        setattr(recorder, counter, last.get(counter, 0))
    recorder.earlier_tokens, recorder.earlier_s = recorder.real_tokens, recorder.step_s
    recorder.stopped_because = WORSE * (done < recorder.length.steps and got_worse(recorder.rows))
    return next(row for row in recorder.rows if row["step"] == 0)


# %% [markdown]
# Killed after step 3, the checkpoint at 2: the row of step 3 is gone, and counting goes on from 200 tokens.

# %% tags=["example"]
with tempfile.TemporaryDirectory() as killed:
    again = Recorder(find_ranks(), find_device("cpu"), RunLength(4, 4, 4, -1, 0), Path(killed), say=lambda: [])
    for step in range(4):
        append_jsonl(again.run / "metrics.jsonl", {"step": step, "real_tokens": 100 * step})
        if step == 2:
            with new_checkpoint(again.run, 2) as part:
                (part / STATE).write_text("{}")
    take_up(again, 2)
[row["step"] for row in again.rows], again.real_tokens


# %% [markdown]
# ## Looking at it
#
# The picture of a run is drawn from the file that the run wrote, so it can be drawn again at any time, also while it runs. Both curves count the tokens of full weight alone. A run keeps the best step that it made, also where the base was better; then the picture says so.

# %%
#| export
def plot_losses(
    run,  # a run's folder
    ax=None,  # matplotlib axes; None: make some
):  # the axes
    "Training and held-out loss over the steps, the kept step marked."
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6.4, 4))[1]
    rows = read_jsonl(Path(run) / "metrics.jsonl")
    for name, label, style in (
        ("learned_loss_nats", "train", dict(color="#b9a100", lw=1, alpha=0.8)),
        ("valid_loss_nats", "held out (valid)", dict(color="#1f5fa8", marker="o")),
    ):
        ax.plot([r["step"] for r in rows if name in r], [r[name] for r in rows if name in r], label=label, **style)
    valid = [r for r in rows if "valid_loss_nats" in r]
    if any(r["step"] > 0 for r in valid):
        best = kept_row(rows)
        worse = ", not better than the base" if valid[0]["valid_loss_nats"] <= best["valid_loss_nats"] else ""
        ax.plot(
            best["step"],
            best["valid_loss_nats"],
            "*",
            ms=15,
            color="#c0504d",
            label=f"kept: step {best['step']}, {best['valid_loss_nats']:.3f}{worse}",
        )
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("loss (nats per token)")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.figure.tight_layout()
    return ax


# %% [markdown]
# A record to look at: the tiny model learns for two epochs of twelve steps, as plainly as can be (what is missing here stands in [the chapter on the loop](45_loop.ipynb)).

# %%
parts, run = split_scenes(read_script("springfield").scenes), Path(tempfile.mkdtemp())
train, valid = (scene_samples(parts[name][:n], maker, (), 600, 0.1)[0][:n] for name, n in (("train", 24), ("valid", 8)))
collate, optimizer = collator(model, tokenizer.pad_token_id), make_optimizer(model, 3e-3)
recorder = Recorder(
    find_ranks(), find_device("cpu"), RunLength(24, 12, 6, 24, 0), run, say=lambda: text_samples(model, maker, moments)
)
recorder.begin()
recorder.write(0, valid_loss_nats=heldout_loss(model, valid, 0))
recorder.speak(0)
for step in range(1, 25):
    at = 2 * (step - 1) % 24
    batch = collate([s.features() for s in train[at : at + 2]])
    weight = recorder.count([batch])
    recorder.step_begins()
    losses, weights = token_losses(model, batch)
    loss = (losses * weights).sum() / weight
    recorder.hear(losses, weights)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    recorder.step_ends(step)
    recorder.learned(step, loss.item(), norm.item(), 3e-3)
    if step % 6 == 0:
        recorder.evaluated(step, heldout_loss(model, valid, 0))
recorder.speak(24)

# %% [markdown]
# The held-out loss that was lowest is marked: it is the step that a run keeps.

# %%
plot_losses(run)
plt.show()


# %% [markdown]
# From the same file, as tables: the perplexities first.

# %%
#| export
def perplexities(
    run,  # a run's folder
):  # a pandas frame: step, epoch, valid, and train at the end of each epoch
    "How many tokens the model hesitates between, evaluation by evaluation."
    import pandas as pd

    rows = [r for r in read_jsonl(Path(run) / "metrics.jsonl") if "valid_loss_nats" in r]
    frame = pd.DataFrame(
        {
            "step": [r["step"] for r in rows],
            "epoch": [r["epoch"] for r in rows],
            "valid perplexity": [math.exp(r["valid_loss_nats"]) for r in rows],
        }
    )
    if any("train_perplexity" in r for r in rows):
        frame["train perplexity of the epoch"] = [r.get("train_perplexity") for r in rows]
    return frame.set_index("step")


# %%
perplexities(run).round(2)


# %% [markdown]
# The epoch's own perplexity is above the held-out one at its end, although those scenes were learned: it is a mean over steps of which the first knew less.

# %% [markdown]
# The text is laid out so that each row is one place in the scene: what was said before, the real line, and then the model's, from left to right as it learned.

# %%
#| export
def what_was_said(
    run,  # a run's folder
    most: int = 4,  # how many moments of the run to show, the first and the last always
):  # a pandas frame: one row for each place in the scene, with the real line and one column for each step
    "Samples of text, side by side."
    import pandas as pd

    rows = [r for r in read_jsonl(Path(run) / "metrics.jsonl") if "samples" in r]
    if not rows:
        return pd.DataFrame()
    picked = sorted(
        {round(i * (len(rows) - 1) / max(min(most, len(rows)) - 1, 1)) for i in range(min(most, len(rows)))}
    )
    frame = pd.DataFrame([{k: s[k] for k in ("before", "speaker", "real")} for s in rows[0]["samples"]])
    for i in picked:
        frame[f"step {rows[i]['step']}"] = [s["said"] for s in rows[i]["samples"]]
    return frame


# %% [markdown]
# And the text of a model that has seen a few thousand letters in its life:

# %%
what_was_said(run)

# %% tags=["check"]
said, table = what_was_said(run), perplexities(run)
assert (
    list(said.columns) == ["before", "speaker", "real", "step 0", "step 24"]
    and (said["step 0"] != said["step 24"]).any()
    and len(said) == len(moments)
)
assert (
    list(table.index) == [0, 6, 12, 18, 24]
    and table["train perplexity of the epoch"].notna().sum() == 2
    and table.loc[12, "train perplexity of the epoch"] > table.loc[12, "valid perplexity"]
)
ax = plot_losses(told)
assert [list(line.get_ydata()) for line in ax.lines] == [[3.0, 2.0], [2.5], [2.5]]
plt.close(ax.figure)
# the base is best: the star is on the step that is kept all the same
with tempfile.TemporaryDirectory() as worse:
    for step, loss in ((0, 2.0), (1, 2.6), (2, 2.5)):
        append_jsonl(Path(worse) / "metrics.jsonl", {"step": step, "valid_loss_nats": loss})
    star = plot_losses(worse).lines[-1]
    assert (list(star.get_xdata()), list(star.get_ydata())) == (
        [2],
        [2.5],
    ) and "not better than the base" in star.get_label()
    plt.close(star.figure)
