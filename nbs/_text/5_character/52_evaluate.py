# %%
#| default_exp character.evaluate

# %% [markdown]
# # Is it the character?
#
# > One run, the base it came from, and the people who wrote the real lines, measured side by side.
#
# A fine-tuned model is shown at its best by whoever trained it. This chapter asks it at held-out moments that nobody chose, and puts each figure beside two others: that of the base model, which training had to beat, and that of the real lines, which say what is possible. Each has an interval, from a bootstrap over episodes: lines of one episode are alike, and with other episodes the figure could have been anywhere in it.
#
# What is measured is explained where it is made: [a voice in texts](50_voice.ipynb), [a line's likelihood](51_likelihood.ipynb), [reciting](../3_model/36_verbatim.ipynb). Here they are taken, written down as JSON, and told as a report. The chapter is a program: `simpsons-llm evaluate --run runs/x`.

# %% tags=["parameters"]
run = ""  # a finished run's folder, such as runs/x; its base model is measured beside it
beside = ""  # folders of more runs on the same data, with commas, such as runs/seed
split = "test"  # whose moments: test, or valid while there is still something to choose
data = ""  # a folder of prepared data; empty: the run's own
lines = None  # moments at most, of the characters who speak most; 0: all; None: 66 on a CPU, else all
sampling = "book"  # how words are drawn: book, seed or greedy
max_new_tokens = 60  # most tokens of an answer
random_seed = 42  # of all that is drawn
out = ""  # folder for the report; empty: evaluation in the run's folder
device = "auto"  # xpu, cuda, cpu; auto: the best there is
dtype = "auto"  # bfloat16, float32; auto: as the device has it

# %%
#| export
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from simpsons_llm.character.likelihood import (
    Moment,
    Reader,
    bits_per_byte,
    choose_moments,
    contrast_nats,
    hear,
    loss_nats,
    next_speaker_acc,
    text_bits_per_byte,
)
from simpsons_llm.character.voice import (
    Said,
    SpeakerClassifier,
    commonest_share,
    confusion,
    difference,
    distinct,
    interval,
    length_distance,
    length_table,
    plot_confusion,
    pooled_accuracy,
    real_or_generated,
    self_bleu,
    verifier_auc,
)
from simpsons_llm.data.prepare import load_data, plain_words
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import (
    JobConfig,
    Progress,
    append_jsonl,
    hold_folder,
    open_folder,
    provenance,
    read_jsonl,
    require,
    same_parameters,
    write_json,
    write_text,
)
from simpsons_llm.model.adapter import find_trained, load_tuned, merge, untuned
from simpsons_llm.model.decode import SAMPLING, Sampling
from simpsons_llm.model.infer import answer_text, draw_lines
from simpsons_llm.model.verbatim import Seen
from simpsons_llm.train.run import Run

# %%
#| hide
import io
import json
import tempfile
from contextlib import chdir, redirect_stdout

import pandas as pd
from IPython.display import Markdown, display

from simpsons_llm.train.finetune import FinetuneConfig, finetune


# %% [markdown]
# ## The settings

# %%
#| export
@dataclass
class EvaluateConfig(JobConfig):
    "Settings of the evaluate job."

    run: str = ""  # a finished run's folder, such as runs/x; its base model is measured beside it
    beside: str = ""  # folders of more runs on the same data, with commas, such as runs/seed
    split: str = "test"  # whose moments: test, or valid while there is still something to choose
    data: str = ""  # a folder of prepared data; empty: the run's own
    lines: "int | None" = None  # moments at most, of the characters who speak most; 0: all; None: 66 on a CPU, else all
    sampling: str = "book"  # how words are drawn: book, seed or greedy
    max_new_tokens: int = 60  # most tokens of an answer
    random_seed: int = 42  # of all that is drawn
    out: str = ""  # folder for the report; empty: evaluation in the run's folder
    device: str = "auto"  # xpu, cuda, cpu; auto: the best there is
    dtype: str = "auto"  # bfloat16, float32; auto: as the device has it

    def check(self):
        require(self.split in ("test", "valid"), f"split={self.split!r} was given; expected test or valid")
        require(self.sampling in SAMPLING, f"sampling={self.sampling!r} was given; expected {', '.join(SAMPLING)}")
        require((self.lines or 0) >= 0, f"lines={self.lines} was given; expected 0 or more")
        require(0 <= self.random_seed < 2**64, f"random_seed={self.random_seed} was given; expected 0 to 2**64 - 1")
        self.drawn()

    def drawn(self) -> Sampling:
        "How words are drawn."
        return SAMPLING[self.sampling].changed(max_new_tokens=self.max_new_tokens)

    def others(self) -> list:
        "The runs beside."
        return [name.strip() for name in self.beside.split(",") if name.strip()]


# %% tags=["check"]
assert same_parameters(EvaluateConfig, "evaluate")
for bad in (dict(split="train"), dict(lines=-1), dict(sampling="best"), dict(max_new_tokens=0)):
    try:
        EvaluateConfig(**bad)
        raise AssertionError(bad)
    except ValueError as e:
        print(e)

# %% [markdown]
# ## Asking all moments
#
# Every side is asked at the same moments with the same context and the same random numbers. Prompts of like length are asked together, since a batch is as long as its longest; a CPU takes 32 at once, an accelerator 128. Whether an answer ended by itself is seen in its tokens: one that was cut has no end.

# %%
#| export
BATCH = {"cpu": 32}  # answers at once; elsewhere:
BATCH_ELSEWHERE = 128
CANDIDATES = 3  # others who are asked whether the line could be theirs, for each moment


@dataclass
class Side:
    "One model, or the script itself, at all moments."

    name: str  # human, base, tuned, or a run's folder name
    texts: list = field(default_factory=list)  # what it says at each moment
    ended: list = field(default_factory=list)  # whether the answer ended by itself; empty for people
    heard: list = field(default_factory=list)  # of `Heard`; empty for people, and where only answers are compared
    plain_bits: float = math.nan  # bits per byte on plain text


def speak_at(
    model,  # a model in evaluation mode
    maker: TextMaker,  # tokenizer and template of its training
    moments: list,  # of `Moment`
    sampling: Sampling,  # how words are drawn
    random_seed: int = 42,  # of the first batch; the next has the next
    progress: Callable | None = None,  # hears how many answers are there
) -> tuple:  # (the answer at each moment, whether it ended by itself)
    "What a model says at moments."
    size = BATCH.get(model.device.type, BATCH_ELSEWHERE)
    order = sorted(range(len(moments)), key=lambda k: sum(len(line.text) for line in moments[k].request()[1]))
    texts, ended = [""] * len(moments), [False] * len(moments)
    for number, begin in enumerate(range(0, len(order), size)):
        some = order[begin : begin + size]
        drawn = draw_lines(model, maker, [moments[k].request() for k in some], sampling, random_seed + number)
        for k, ids in zip(some, drawn.tolist()):
            texts[k], ended[k] = answer_text(maker.tokenizer, ids), not set(maker.stop_ids).isdisjoint(ids)
            ended[k] = ended[k] and bool(plain_words(texts[k]))  # silence is no answer
        if progress:
            progress(begin + len(some))
    return texts, ended


def candidates(
    moment: Moment,  # where somebody speaks
    main: list,  # names of characters, the most frequent first
) -> list:  # at most CANDIDATES names
    "Who else might say a line: those of the scene first, then the main characters."
    there = [line.speaker for line in moment.scene.lines]
    return [who for who in dict.fromkeys([*there, *main]) if who != moment.line.speaker][:CANDIDATES]


def listen(
    name: str,  # of the side
    model,  # a model in evaluation mode
    maker: TextMaker,  # tokenizer and template of its training
    moments: list,  # of `Moment`
    main: list,  # names of characters, the most frequent first
    config: EvaluateConfig,  # how words are drawn
) -> Side:
    "All that one model is asked."
    progress, reader = Progress(2 * len(moments), name, "moments"), Reader(model)
    heard = []
    for k, m in enumerate(moments):
        heard.append(hear(reader, maker, m, candidates(m, main)))
        progress(k + 1)
    texts, ended = speak_at(
        model, maker, moments, config.drawn(), config.random_seed, lambda n: progress(len(moments) + n)
    )
    return Side(name, texts, ended, heard, text_bits_per_byte(model, maker.tokenizer))


# %% [markdown]
# ## Figures
#
# Each measure becomes a figure: `value`, `low`, `high` and `n`. Means and shares are drawn again with whole episodes. Measures of variety are not: an episode that is drawn twice says everything twice, and would look dull. Their interval comes from leaving out one episode at a time (the jackknife). And they are taken on as many words of each side, or short answers would look more varied than long ones.

# %%
#| export
def jackknife(
    groups: list,  # the items of each episode
    statistic: Callable,  # of a list of items, a number
) -> dict:  # value, low, high (None with one episode), n
    "A figure with an interval from leaving out one episode at a time."
    groups = [g for g in groups if g]
    items = [x for g in groups for x in g]
    value, k = statistic(items), len(groups)
    if k < 2:
        return {"value": value, "low": None, "high": None, "n": len(items)}
    without = [statistic([x for i, g in enumerate(groups) if i != j for x in g]) for j in range(k)]
    mean = sum(without) / k
    wide = 1.96 * math.sqrt((k - 1) / k * sum((x - mean) ** 2 for x in without))
    return {"value": value, "low": value - wide, "high": value + wide, "n": len(items)}


# %% [markdown]
# Three episodes of one number each, by hand: the means without one are 2.5, 2 and 1.5, the standard error is $\sqrt{\frac{2}{3} \cdot 0.5} = 0.577$.

# %% tags=["check"]
mean = jackknife([[1], [2], [3]], lambda x: sum(x) / len(x))
assert mean["value"] == 2 and math.isclose(mean["high"] - 2, 1.96 * math.sqrt(2 / 3 * 0.5)) and mean["n"] == 3

# %%
#| export
SIZES = (1, 5, 20, 50)  # lines that are pooled
COMPARED = 50  # lines that are held against one another


def none_of(
    why: str,  # the reason
) -> dict:  # value, low and high None, n 0, why
    "A figure that cannot be given."
    return {"value": None, "low": None, "high": None, "n": 0, "why": why}


@dataclass
class Ground:
    "What all sides are measured against."

    moments: list  # of `Moment`
    train: list  # of `Said`: all training lines
    seen: Seen  # the same, for looking up
    classifier: SpeakerClassifier | None  # who speaks; None: too few lines of too few characters
    notes: list  # sentences on what could not be measured, or not well

    def groups(
        self,
        items: list,  # one for each moment
    ) -> list:  # lists of items, one for each episode
        "Items by episode."
        found: dict = {}
        for m, item in zip(self.moments, items):
            found.setdefault(m.scene.episode, []).append(item)
        return list(found.values())

    def said(
        self,
        texts: list,  # one for each moment
    ) -> list:  # of `Said`
        "Texts as lines of whoever speaks at the moment."
        return [Said(m.scene.episode, m.line.speaker, text) for m, text in zip(self.moments, texts)]


def as_many_words(
    sides: dict,  # name -> `Side`
    ground: Ground,  # the moments
) -> dict:  # name -> texts at the moments, cut so that all sides have as many words in each episode
    "Texts whose variety can be compared."
    words = {name: [plain_words(text) for text in side.texts] for name, side in sides.items()}
    most: dict = {}
    for texts in words.values():
        for group in ground.groups(list(zip([m.scene.episode for m in ground.moments], texts))):
            count = sum(len(w) for _, w in group)
            most[group[0][0]] = min(most.get(group[0][0], count), count)
    found: dict = {}
    for name, texts in words.items():
        left, found[name] = dict(most), []
        for m, w in zip(ground.moments, texts):
            part = w[: left[m.scene.episode]]
            left[m.scene.episode] -= len(part)
            found[name].append(" ".join(part))
    return found


def figures_of(
    side: Side,  # one model, or people
    ground: Ground,  # what it is measured against
    human: Side,  # people
    random_seed: int = 0,  # of what is drawn
    alike: list | None = None,  # its texts as `as_many_words` cut them; None: cut beside people
) -> dict:  # name -> figure, without the side's name
    "All figures of one side."
    alike = alike or as_many_words({"human": human, side.name: side}, ground)[side.name]
    groups, found = ground.groups(side.texts), {}
    found["verbatim_8gram"] = interval(groups, ground.seen.share)
    longest = max(map(ground.seen.longest, side.texts))
    found["longest_run"] = {"value": longest, "low": None, "high": None, "n": len(side.texts)}
    for n in (1, 2, 3):
        found[f"distinct_{n}"] = jackknife(ground.groups(alike), lambda texts, n=n: distinct(texts, n))
    # the same moments on all sides
    count = len(alike)
    some = set(random.Random(random_seed).sample(range(count), min(COMPARED, count)))
    chosen = ground.groups([text if k in some else None for k, text in enumerate(alike)])
    chosen = [[text for text in group if text is not None] for group in chosen]
    found["self_bleu"] = jackknife(chosen, lambda texts: self_bleu(texts, most=COMPARED))
    found["commonest_share"] = jackknife(groups, commonest_share)
    empty = [not plain_words(text) for text in side.texts]
    found["empty_share"] = interval(ground.groups(empty), lambda x: sum(x) / max(len(x), 1))
    found["words"] = interval(groups, lambda texts: sum(len(t.split()) for t in texts) / max(len(texts), 1))
    if ground.classifier:
        said = [s for s in ground.said(side.texts) if s.speaker in ground.classifier.speakers]
        for size in SIZES:
            found[f"speaker_acc_{size}"] = pooled_accuracy(ground.classifier, said, size, seed=random_seed)
    if side is human:
        return found
    found["ends_by_itself"] = interval(ground.groups(side.ended), lambda x: sum(x) / max(len(x), 1))
    if side.heard:
        heard = ground.groups(side.heard)
        for statistic in (loss_nats, bits_per_byte, contrast_nats, next_speaker_acc):
            found[statistic.__name__] = interval(heard, statistic)
        found["forgetting_bits_per_byte"] = {"value": side.plain_bits, "low": None, "high": None, "n": 1}
    pairs = [(m.scene.episode, real, said) for m, real, said in zip(ground.moments, human.texts, side.texts)]
    for size, figure in real_or_generated(pairs, sizes=(1, 20, 50), seed=random_seed).items():
        found[f"auc_real_{size}"] = figure
    found["verifier_20"] = verified(ground, pairs, random_seed)
    ks = length_distance(side.texts, human.texts)
    found["length_ks"] = {"value": ks["ks"], "low": None, "high": None, "n": len(side.texts)}
    return found


def verified(
    ground: Ground,  # the moments and the training lines
    pairs: list,  # (episode, real line, answer) at each moment
    random_seed: int,  # of the pools
) -> dict:  # a figure
    "The authorship verifier, for the character who speaks most at the moments."
    known = Counter(s.speaker for s in ground.train)
    here = Counter(m.line.speaker for m in ground.moments)
    who = next((w for w, _ in here.most_common() if known[w] >= LEAST_LINES), None)
    if who is None:
        return none_of(f"nobody at the moments has {LEAST_LINES} training lines")
    episodes, real, said = map(list, zip(*(p for m, p in zip(ground.moments, pairs) if m.line.speaker == who)))
    lines, names = (
        [s.text for s in ground.train if s.speaker == who],
        ground.classifier.names if ground.classifier else (),
    )
    return verifier_auc(lines, real, said, (20,), episodes, names, seed=random_seed)[20]


# %% [markdown]
# The names in the JSON file are `measure_side`; the fine-tuned run has no suffix, but for its loss (`loss_nats_tuned`, `bits_per_byte_tuned`), which everybody wants to see beside that of the base. What changed from base to run, and from another run to this one, is a figure as well, with the episodes paired.

# %%
#| export
BOTH = ("loss_nats", "bits_per_byte")  # measures whose name tells the tuned side, too


def named(
    found: dict,  # side -> its figures
) -> dict:  # the flat names of the JSON file
    "Figures under the names that other programs look for."
    flat = {}
    for side, figures in found.items():
        for name, figure in figures.items():
            flat[name if side == "tuned" and name not in BOTH else f"{name}_{side}"] = figure
    return flat


def changes(
    sides: dict,  # name -> `Side`; tuned is among them
    ground: Ground,  # what they were measured against
) -> dict:  # name -> figure: tuned minus the other side
    "Paired differences of the losses."
    tuned = ground.groups(sides["tuned"].heard)
    return {
        f"{name}_change_from_{other}": difference(list(zip(tuned, ground.groups(side.heard))), statistic)
        for other, side in sides.items()
        if side.heard and other != "tuned"
        for name, statistic in (("loss_nats", loss_nats), ("contrast_nats", contrast_nats))
    }


# %% [markdown]
# ## The job
#
# What is refused: a run without the split, a run on other data, a folder that holds no run. What is only told: characters with too few lines for a pool. A test split that is looked at again and again is no test split any more, so each look is counted, and the report says the number.

# %%
#| export
STRONG = 0.7  # least AUC of the base model for a detector that counts
LEAST_LINES = 20  # in training, for a character to be known by its voice
LEAST_SPEAKERS, MOST_SPEAKERS = 4, 8  # between whom the classifier chooses


def make_ground(
    parts: dict,  # split name -> `Scene`s
    report: dict,  # the data's report
    config: EvaluateConfig,  # the settings
    most: int,  # moments at most; 0: all
) -> Ground:  # ValueError if there is nothing to ask
    "Moments, training lines, and a classifier that has heard them."
    moments = choose_moments(parts[config.split], report["speakers"], most)
    whom = ", ".join(list(report["speakers"])[:3]) or "anybody"
    require(
        moments,
        f"no {config.split} scene has a line of {whom} with something before it; "
        f"prepare the script with a larger {config.split}-share, or give another split",
    )
    train = [Said(s.episode, line.speaker, line.text) for s in parts["train"] for line in s.lines]
    known, here, notes = Counter(s.speaker for s in train), Counter(m.line.speaker for m in moments), []
    speakers = [who for who, _ in here.most_common() if known[who] >= LEAST_LINES][:MOST_SPEAKERS]
    often = [who for who, n in known.most_common() if n >= LEAST_LINES and who not in speakers]
    speakers += often[: max(LEAST_SPEAKERS - len(speakers), 0)]  # who else might have said it
    classifier = None
    if len(speakers) > 1:
        classifier = SpeakerClassifier.fit(train, speakers)
    else:
        notes.append(
            f"speaker accuracy needs two characters with {LEAST_LINES} training lines; there are {len(speakers)}"
        )
    for size in SIZES[1:]:
        enough = [who for who in speakers if here[who] >= size]
        if len(enough) < min(len(speakers), 2):
            notes.append(f"pools of {size} lines need two characters with so many; there are {len(enough)}")
        elif len(enough) < len(speakers):
            notes.append(f"pools of {size} lines are of {', '.join(enough)} alone; the others have fewer lines")
    if len(moments) < sum(1 for _ in choose_moments(parts[config.split], report["speakers"])):
        notes.append(
            f"{len(moments)} moments were taken, of those who speak most; with --lines 0 intervals are narrower"
        )
    if (n := len({m.scene.episode for m in moments})) < 5:
        notes.append(f"{n} held-out episodes are few: intervals are unreliable, and probably too narrow")
    return Ground(moments, train, Seen(s.text for s in train), classifier, notes)


def require_same_data(
    source: str,  # a run's folder
    report: dict,  # of the data that is used
):
    "Refuse a run that learned from other data: its test scenes may not be unseen."
    notes = find_trained(source).notes
    require(
        notes.get("data_sha256", report["data_sha256"]) == report["data_sha256"],
        f"{source} was trained on other data, so the scenes that are asked here may not be unseen by it; "
        "give runs of the same prepared data",
    )


def evaluate(
    config: EvaluateConfig,  # the settings
) -> dict:  # figures by name, and `about`; ValueError or FileNotFoundError if it cannot be
    "Measure a run; the report and its figures are written into a folder."
    require(config.run.strip(), "no run was given; say which, such as --run runs/x")
    find_trained(config.run)
    out = config.out or str(Path(config.run) / "evaluation")
    with hold_folder(out, "evaluate"):
        result, pictures = measure(config)
        folder = open_folder(out)
        for name, picture in pictures.items():
            picture.savefig(folder / name, dpi=110, bbox_inches="tight")
        write_json(folder / "evaluation.json", result)
        write_text(folder / "report.md", report_text(result, list(pictures)))
    return result


def side_names(
    sources: list,  # folders of runs
) -> list:  # a name for each, none twice, and none that means something else
    "What runs beside are called: their folders' names."
    names: list = []
    for source in sources:
        folder = find_trained(source).folder
        name = (folder.parent if folder.name in ("adapter", "model") else folder).resolve().name
        taken = {"human", "base", "tuned", "lines", "before", "speaker", *names}
        names.append(next(n for n in (name, *(f"{name}_{k}" for k in range(2, 1000))) if n not in taken))
    return names


def look_at_test(
    source: str,  # a run's folder
) -> int:  # how often its test scenes were looked at, this time included
    "Count a look, before there is anything to see."
    file = open_folder(source) / "test_looks.jsonl"
    append_jsonl(file, {"at": time.strftime("%Y-%m-%d %H:%M")})
    return len(read_jsonl(file))


def measure(
    config: EvaluateConfig,  # the settings
) -> tuple:  # (figures by name and `about`, pictures by file name)
    "All of `evaluate` but the writing."
    where = find_device(config.device, config.dtype)
    if config.data:
        parts, report = load_data(config.data)
    else:
        learned = Run(config.run).data()
        parts, report = learned.parts, learned.report
    for source in (config.run, *config.others()):
        require_same_data(source, report)
    most = (66 if where.type == "cpu" else 0) if config.lines is None else config.lines
    ground = make_ground(parts, report, config, most)
    main = [who for who, _ in Counter(line.speaker for s in parts["train"] for line in s.lines).most_common(6)]
    sides, names = {"human": Side("human", [m.line.text for m in ground.moments])}, side_names(config.others())
    looks = [look_at_test(s) for s in (config.run, *config.others())] if config.split == "test" else []
    print(
        f"{len(ground.moments)} moments of {config.split} in {len({m.scene.episode for m in ground.moments})} "
        f"episodes, {where.name} ({where.dtype})",
        flush=True,
    )
    for name, source in (("tuned", config.run), *zip(names, config.others())):
        model, tokenizer, notes = load_tuned(source, where)
        maker = TextMaker.of_notes(tokenizer, notes)
        if name == "tuned":
            with untuned(model, notes) as base:
                sides["base"] = listen("base", base, maker, ground.moments, main, config)
        model = merge(model).eval()
        sides[name] = listen(name, model, maker, ground.moments, main, config)
    order = ["human", "base", "tuned", *(n for n in sides if n not in ("human", "base", "tuned"))]
    sides = {name: sides[name] for name in order}
    alike = as_many_words(sides, ground)
    found = {
        name: figures_of(side, ground, sides["human"], config.random_seed, alike[name]) for name, side in sides.items()
    }
    unsaid = [f"{name}: {f['why']}" for name, f in found["tuned"].items() if f.get("why") and "auc" in name]
    weak = found["base"]["auc_real_20"]["low"]
    if weak is not None and weak < STRONG:
        unsaid.append(
            "the base model's lines are hardly told from real ones, so that those of the run are not says little"
        )
    unsaid += [
        f"{name} says nothing at {f['empty_share']['value']:.0%} of the moments"
        for name, f in found.items()
        if f["empty_share"]["value"] > 0.02
    ]
    about = {
        "settings": config.to_dict(),
        "sides": list(sides),
        "moments": len(ground.moments),
        "episodes": len({m.scene.episode for m in ground.moments}),
        "speakers": dict(Counter(m.line.speaker for m in ground.moments)),
        "notes": [*ground.notes, *unsaid],
        "heard_among": ground.classifier.speakers if ground.classifier else [],
        **({"test_looks": looks[0]} if looks else {}),
        "data_sha256": report["data_sha256"],
        "device": where.name,
        "provenance": provenance(),
        "words": {name: length_table(side.texts) for name, side in sides.items()},
        "by_character": by_character(sides, ground),
        "said": examples(sides, ground),
    }
    return {**named(found), **changes(sides, ground), "about": about}, draw(found, sides, ground)


# %% [markdown]
# ## The report
#
# Figures for machines go into `evaluation.json`. People get a page: a table of measures by sides with intervals, the loss of each character, answers beside real lines (the first of each character, by rule), pictures, and what could not be measured.

# %%
#| export
def by_character(
    sides: dict,  # name -> `Side`
    ground: Ground,  # what they were measured against
) -> dict:  # character -> lines, and the loss of each side in nats per token
    "Held-out loss of each character."
    found: dict = {}
    for who, lines in Counter(m.line.speaker for m in ground.moments).most_common():
        found[who] = {"lines": lines}
        for name, side in sides.items():
            if side.heard:
                found[who][name] = loss_nats([h for h in side.heard if h.moment.line.speaker == who])
    return found


def examples(
    sides: dict,  # name -> `Side`
    ground: Ground,  # what they were measured against
    most: int = 6,  # moments, one for each character
) -> list:  # dicts: before, speaker, and what each side says
    "The first moment of each character, by rule."
    first: dict = {}
    for k, m in enumerate(ground.moments):
        if len(m.line.text.split()) >= 5:
            first.setdefault(m.line.speaker, k)
    rows = []
    for k in list(first.values())[:most]:
        m = ground.moments[k]
        last = m.request()[1][-1]
        before = f"{last.speaker}: {last.text}"
        rows.append({"before": before, "speaker": m.line.speaker, **{n: side.texts[k] for n, side in sides.items()}})
    return rows


def told(
    figure: dict | None,  # value, low, high, n
) -> str:  # such as 0.713 (0.62 to 0.80)
    "A figure in a cell of a table."
    if not figure or figure["value"] is None or math.isnan(figure["value"]):
        return "-"
    value = f"{figure['value']:.3f}"
    return value if figure["low"] is None else f"{value} ({figure['low']:.2f} to {figure['high']:.2f})"


# what each measure means, and in which direction it is better
MEANINGS = {
    "loss_nats": "held-out loss, nats per token (less)",
    "bits_per_byte": "bits per byte of the lines (less)",
    "contrast_nats": "contrast, nats per token (more)",
    "next_speaker_acc": "right next speaker (more)",
    "speaker_acc_1": "speaker known from 1 line",
    "speaker_acc_5": "from 5 lines",
    "speaker_acc_20": "from 20 lines (as human)",
    "speaker_acc_50": "from 50 lines",
    "auc_real_1": "told from real lines, 1 line (0.5 is best)",
    "auc_real_20": "20 lines",
    "auc_real_50": "50 lines",
    "verifier_20": "real lines closer to known ones of who speaks most, 20 lines (0.5 is best)",
    "verbatim_8gram": "runs of 8 words that stand in train (as human)",
    "longest_run": "longest run that stands in train, words",
    "distinct_1": "different words (as human)",
    "distinct_2": "different pairs of words",
    "distinct_3": "different runs of three",
    "self_bleu": "likeness of answers to one another (as human)",
    "commonest_share": "share of the most common answer (less)",
    "words": "words of an answer (as human)",
    "length_ks": "distance of lengths from the real ones (less)",
    "empty_share": "answers without a word (less)",
    "ends_by_itself": "answers that end by themselves (more)",
    "forgetting_bits_per_byte": "bits per byte of plain prose (as base)",
}


def figure_name(
    measure: str,  # one of MEANINGS
    side: str,  # human, base, tuned or another run
) -> str:  # its name in the JSON file
    "Where a figure stands."
    return measure if side == "tuned" and measure not in BOTH else f"{measure}_{side}"


def report_text(
    result: dict,  # what `evaluate` gives
    pictures: list,  # file names
) -> str:  # Markdown
    "The report."
    about, sides = result["about"], result["about"]["sides"]
    looks = f", looked at {n} times" if (n := about.get("test_looks", 1)) > 1 else ""
    rows = [
        f"# Is it the character? {about['settings']['run']}",
        "",
        f"{about['moments']} moments in {about['episodes']} episodes of {about['settings']['split']}{looks}; "
        f"{about['device']}. Intervals of 95 %, over episodes. Speakers are heard among "
        f"{', '.join(about['heard_among']) or 'nobody'}: by chance {1 / max(len(about['heard_among']), 1):.2f}; "
        f"the next speaker is one of {CANDIDATES + 1} names at most.",
        "",
        f"| measure | {' | '.join(sides)} |",
        f"|---|{'---|' * len(sides)}",
        *(
            f"| {meaning} | {' | '.join(told(result.get(figure_name(name, side))) for side in sides)} |"
            for name, meaning in MEANINGS.items()
        ),
        "",
        "Paired change of the run: "
        + "; ".join(f"{k.replace('_', ' ')} {told(v)}" for k, v in result.items() if "_change_from_" in k)
        + ".",
    ]
    if about["notes"]:
        rows += ["", "What to keep in mind:", "", *(f"- {note}" for note in about["notes"])]
    models = [s for s in sides if s != "human"]
    rows += [
        "",
        "## Loss by character",
        "",
        f"| character | lines | {' | '.join(models)} |",
        f"|---|---|{'---|' * len(models)}",
    ]
    for who, r in about["by_character"].items():
        rows.append(f"| {who} | {r['lines']} | {' | '.join(f'{r[m]:.3f}' for m in models)} |")
    shares = list(next(iter(about["words"].values())))
    rows += ["", "## Words of a line, by share of the lines", "", f"| side | {' | '.join(map(str, shares))} |"]
    rows.append(f"|---|{'---|' * len(shares)}")
    for name, row in about["words"].items():
        rows.append(f"| {name} | {' | '.join(f'{n:g}' for n in row.values())} |")
    rows += ["", "## Said", "", f"| before | speaker | {' | '.join(sides)} |", f"|---|---|{'---|' * len(sides)}"]
    for r in about["said"]:
        cells = (str(c).replace("|", "\\|") for c in r.values())
        rows.append(f"| {' | '.join(cells)} |")
    rows += ["", *(f"![{Path(p).stem}]({p})" for p in pictures)]
    return "\n".join(rows) + "\n"


def draw(
    found: dict,  # side -> its figures
    sides: dict,  # name -> `Side`
    ground: Ground,  # what they were measured against
) -> dict:  # file name -> matplotlib figure
    "The pictures of a report."
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for measure, ax, label in (
        ("speaker_acc", axes[0], "speaker known"),
        ("auc_real", axes[1], "AUC, real or generated"),
    ):
        for k, name in enumerate(found):  # a side has one colour in both
            points = [(n, f) for n in SIZES if (f := found[name].get(f"{measure}_{n}")) and f["value"] is not None]
            if points:
                ax.plot([n for n, _ in points], [f["value"] for _, f in points], ".-", color=f"C{k}", label=name)
        ax.set(xlabel="lines that are pooled", ylabel=label, xscale="log", ylim=(0, 1.05))
        ax.set_xticks(SIZES, [str(n) for n in SIZES])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].axhline(0.5, color="grey", lw=1, ls="--")
    if ground.classifier:
        axes[0].axhline(1 / len(ground.classifier.speakers), color="grey", lw=1, ls="--", label="chance")
    axes[0].legend(frameon=False, fontsize=8)
    pictures = {"pools.png": picture}
    if ground.classifier:
        said = [s for s in ground.said(sides["tuned"].texts) if s.speaker in ground.classifier.speakers]
        frame = confusion(ground.classifier, said, 5)
        if len(frame):
            pictures["confusion.png"] = plot_confusion(frame).figure
    return pictures


# %% [markdown]
# ## A run of the tiny model
#
# Everything in seconds, on a model that knows nothing and a run that learned next to nothing. The figures say so:

# %% tags=["example"]
folder = Path(tempfile.mkdtemp())
with chdir(folder), redirect_stdout(io.StringIO()):
    finetune(FinetuneConfig(run="runs/x", base_model="tiny", max_steps=8, max_seq_len=400, device="cpu"))
    found = evaluate(EvaluateConfig(run="runs/x", split="valid", lines=60, max_new_tokens=12, device="cpu"))
short = [
    "loss_nats_base",
    "loss_nats_tuned",
    "contrast_nats",
    "auc_real_20",
    "distinct_2",
    "distinct_2_human",
    "ends_by_itself",
]
pd.DataFrame({name: found[name] for name in short}).T.round(3)

# %% tags=["check"]
files = {p.name for p in (folder / "runs/x/evaluation").iterdir()}
assert files >= {"evaluation.json", "report.md", "pools.png", "confusion.png"}
assert not (folder / "runs/x/test_looks.jsonl").exists()  # these were validation scenes
assert found["loss_nats_tuned"]["value"] < found["loss_nats_base"]["value"]
assert found["auc_real_20"]["value"] is None and any("auc_real_20" in n for n in found["about"]["notes"])  # gibberish
assert all(set(f) >= {"value", "low", "high", "n"} for name, f in found.items() if name != "about")
kept = json.loads((folder / "runs/x/evaluation/evaluation.json").read_text())
assert kept["loss_nats_tuned"] == found["loss_nats_tuned"]
print((folder / "runs/x/evaluation/report.md").read_text()[:1500])

# %% [markdown]
# The job, for the run of the parameters:

# %%
if run:
    result = evaluate(EvaluateConfig.from_names(globals()))
    display(Markdown(report_text(result, [])))
