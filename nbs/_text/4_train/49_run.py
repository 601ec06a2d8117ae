# %%
#| default_exp train.run

# %% [markdown]
# # Fine-tuning in one call
#
# > `finetune(data)` for Python callers; a finished run as an object that shows itself and lets its characters speak.
#
# [Fine-tuning](47_finetune.ipynb) is a job: settings in, a folder out. Whoever writes Python wants to hand over data and to get something to go on with. So this chapter puts a face on the job, and nothing beneath it is done anew: the settings have the names that they have on the command line, and what a call leaves is the same folder.

# %%
#| export
from dataclasses import fields
from html import escape
from pathlib import Path

from simpsons_llm.data.dataset import Data
from simpsons_llm.data.prepare import PrepareConfig, Prepared
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import Facts, read_jsonl, require, settings_text, text_frame, write_json
from simpsons_llm.model.adapter import load_tuned, read_summary
from simpsons_llm.model.character import Character
from simpsons_llm.model.infer import before_after, heldout_moments
from simpsons_llm.train.finetune import FinetuneConfig
from simpsons_llm.train.finetune import finetune as train_with_trainer
from simpsons_llm.train.history import perplexities, plot_losses, what_was_said
from simpsons_llm.train.lifecycle import costs, data_folder, read_settings, summary_text
from simpsons_llm.train.loop import LoopConfig
from simpsons_llm.train.loop import loop as train_by_hand

# %%
#| hide
import tempfile

from simpsons_llm.data.dataset import prepare


# %% [markdown]
# ## What a run left
#
# A run is a folder, and this object reads it. Nothing is kept in it that does not lie there, so a run of last week is opened as the one that has just ended.

# %%
#| export
class Run:
    "A finished run."

    def __init__(
        self,
        folder: "str | Path",  # of the run; FileNotFoundError if no run with results lies there
    ):
        self.folder = Path(folder)
        facts = read_summary(self.folder)
        if "optimizer_steps" not in facts:
            ended = ": ".join(facts[k] for k in ("status", "error") if k in facts)
            raise FileNotFoundError(
                f"no finished run in {self.folder}{f' (its summary says: {ended})' if ended else ''}; "
                "give the folder that finetune wrote, such as runs/x"
            )
        self.summary = Facts(facts)  # settings, counts, losses, speed and versions

    def losses(self):  # a pandas frame, by step: valid and train loss in nats per token, epoch, learning_rate
        "What the run measured on its way."
        import pandas as pd

        rows = [r for r in read_jsonl(self.folder / "metrics.jsonl") if not {"samples"} & r.keys()]
        names = ["epoch", "train_loss_nats", "valid_loss_nats", "learning_rate"]
        frame = pd.DataFrame(rows).groupby("step").first()
        return frame[[n for n in names if n in frame]]

    def perplexities(self):  # a pandas frame
        "How many tokens the model hesitates between, evaluation by evaluation."
        return perplexities(self.folder)

    def texts(self):  # a pandas frame
        "What the characters said on the way, beside the real lines."
        return text_frame(what_was_said(self.folder).reset_index())

    def plot(self):  # matplotlib axes
        "Training and held-out loss over the steps; the kept step is marked."
        return plot_losses(self.folder)

    def data(self) -> Data:  # FileNotFoundError if it was moved, ValueError if it was changed
        "What the run learned from."
        given = Path(read_settings(self.folder)["data"])
        # a script, or data that was in memory, lies in the run itself
        folder = next((f for f in (given, self.folder / "data") if (f / "report.json").is_file()), None)
        if folder is None:
            raise FileNotFoundError(f"{self.folder} learned from {given}, which is not there (seen from this folder)")
        data = Data.load(folder)
        require(
            data.report["data_sha256"] == self.summary["data_sha256"],
            f"{folder} is not what {self.folder} learned from any more; prepare it again with the same settings",
        )
        return data

    def character(
        self,
        name: str = "",  # who speaks; empty: whom the run learned most from
        **how,  # device, dtype, sampling, base_model, as for `Character.load`
    ) -> Character:  # ValueError if the run does not know the name
        "A character of this run, ready to answer."
        return Character.load(self.folder, name, **how)

    def before_after(
        self,
        most_scenes: int = 3,  # of the test scenes, 1 or more
        device: str = "auto",  # "xpu", "cuda", "cpu"; auto: the best there is
    ):  # a pandas frame: the line before, who was asked, the real line, the base model's, the fine-tuned one's
        "What the models say in scenes that were never learned from, at moments chosen by rule; kept in the folder."
        good = isinstance(most_scenes, int) and most_scenes >= 1
        require(good, f"most_scenes={most_scenes!r} was given; expected a whole number, 1 or more")
        model, tokenizer, notes = load_tuned(self.folder, find_device(device))
        moments = heldout_moments(self.data().parts["test"], list(notes["speakers"])[:3], most_scenes)
        rows = before_after(model, TextMaker.of_notes(tokenizer, notes), moments, notes=notes)
        write_json(self.folder / "before_after.json", rows)
        names = {
            "before": "line before",
            "speaker": "asked",
            "real": "real line",
            "base": "base model",
            "tuned": "fine-tuned",
        }
        return text_frame(rows, columns=list(names)).rename(columns=names)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self):
        return f"{self.folder}: {self.summary['status']}\n{summary_text(self.summary)}"

    def _repr_html_(self):
        return f"<pre>{escape(repr(self))}</pre>"


# %% [markdown]
# ## The call
#
# Data in hand is written into the run's folder when all has been checked; data in a folder, or a script, may be given by its path. Settings that the command line knows are known here, and others are refused with the nearest that there is.

# %%
#| export
def train_config(
    data: "Data | str | Path",  # what `prepare` gave, a folder of prepared data, or a script
    run: "str | Path",  # the run's folder
    settings: dict,  # name -> value
    kind: "type[FinetuneConfig] | type[LoopConfig]" = FinetuneConfig,  # whose settings
) -> "tuple[FinetuneConfig | LoopConfig, Prepared | None]":  # (the settings, data still to be written)
    "Settings for data in hand."
    names = {f.name for f in fields(PrepareConfig)} - {f.name for f in fields(kind)}
    for name in names & settings.keys():
        raise ValueError(f"{name} was given, which is a setting of the data: prepare(script, {name}=...) takes it")
    require(
        isinstance(data, (Data, str, Path)),
        f"data of type {type(data).__name__} was given; expected what prepare gives, a folder or a script",
    )
    if not isinstance(data, Data):
        return kind.of(data=str(data), run=str(run), **settings), None
    # in memory: it will lie in the run's folder
    folder = data.folder or Path(run) / "data"
    return kind.of(data=str(folder), run=str(run), **settings), data.made


def finetune(
    data: "Data | str | Path" = "springfield",  # what `prepare` gave, a folder of prepared data, or a script
    run: "str | Path" = "runs/finetune",  # the run's folder; earlier results in it are set aside
    engine: str = "trainer",  # "trainer": transformers' Trainer; "loop": the loop that is written out
    **settings,  # as for `simpsons-llm finetune`: base_model, recipe, mode, epochs, max_minutes, learning_rate ...
) -> Run:  # ValueError, TypeError or a file error, in one sentence, if it cannot be done
    "Fine-tune a base model on a script's characters."
    engines: dict[str, tuple] = {"trainer": (FinetuneConfig, train_with_trainer), "loop": (LoopConfig, train_by_hand)}
    require(engine in engines, f"engine={engine!r} was given; expected {' or '.join(engines)}")
    kind, train = engines[engine]
    train(*train_config(data, run, settings, kind))
    return Run(run)


def estimate(
    data: "Data | str | Path" = "springfield",  # as for `finetune`
    **settings,  # as for `finetune`
) -> Facts:  # ValueError where the run cannot fit, with what would help
    "Memory and time of a run, told before it begins; nothing is written."
    found = costs(*train_config(data, "runs/estimate", settings))
    (about, _), *parts = found.items()
    return Facts(about=about, **{k: v for _, rows in parts for k, v in rows.items()})


# %% [markdown]
# What `help(finetune)` shows is the same list of settings that `simpsons-llm finetune --help` does:

# %%
#| export
for function in (finetune, estimate):
    told = settings_text(FinetuneConfig, ("data", "run"))
    function.__doc__ = f"{function.__doc__}\n\nThe settings and their defaults (None: as the recipe has it):\n\n{told}"

# %% tags=["example"]
print(*finetune.__doc__.splitlines()[:8], sep="\n")

# %% [markdown]
# A run of two steps with the tiny model, to see what there is. It learns next to nothing, and says so:

# %% tags=["example"]
place = Path(tempfile.mkdtemp())
data = prepare("springfield", speakers=["Homer Simpson"])
run = finetune(data, place / "x", base_model="tiny", max_steps=2, max_seq_len=600, learning_rate=0.01)
print(repr(run).replace(str(place), "runs"))

# %% tags=["example"]
run.losses().round(4)

# %% tags=["example"]
run.character("Homer Simpson").says("Marge Simpson: Homer, the dog is wearing your tie again.", max_new_tokens=12)

# %% tags=["check"]
told = run.before_after()
assert len(told) == 3 and list(told["asked"].unique()) == ["Homer Simpson"]
assert (
    run.summary.optimizer_steps == 2
    and run.data().parts == data.parts
    and data_folder(train_config(data, place / "x", {})[0]) == place / "x" / "data"
)
assert (
    Run(place / "x").summary == run.summary
    and abs(run.losses()["valid_loss_nats"].iloc[0] - run.summary.valid_loss_nats_base) < 1e-6
)
by_hand = finetune(
    data, place / "y", engine="loop", base_model="tiny", max_steps=2, max_seq_len=600, learning_rate=0.01
)
assert abs(by_hand.summary.valid_loss_nats_best - run.summary.valid_loss_nats_best) < 1e-5
for wrong, meant in (
    (lambda: finetune(data, place / "z", max_step=2), "max_steps"),
    (lambda: finetune(data, place / "z", engine="jax"), "trainer or loop"),
    (lambda: finetune("nowhere", place / "z"), "no data at nowhere"),
    (lambda: run.character("Moe Szyslak"), "Homer Simpson"),
    (lambda: Run(place), "no finished run"),
    (lambda: finetune(data, place / "z", speakers=["Homer Simpson"]), "prepare(script, speakers=...)"),
    (lambda: finetune(data.to_datasets(), place / "z"), "DatasetDict"),
    (lambda: finetune(str(place / "x"), place / "z"), "is a run"),
    (lambda: finetune(data, ""), "given as nothing"),
    (lambda: run.before_after(0), "most_scenes=0"),
):
    try:
        wrong()
        raise AssertionError(meant)
    except (ValueError, FileNotFoundError) as e:
        assert meant in str(e), e
assert not (place / "z").exists()
