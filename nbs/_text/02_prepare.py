# %%
#| default_exp prepare

# %% [markdown]
# # Preparing data
#
# > A script becomes three sets of scenes: to learn from, to choose by, and to judge by.
#
# Fine-tuning needs lines to learn from (`train`), lines to choose the best step by (`valid`), and lines that nobody looks at until the end (`test`). How they are split decides whether the numbers of the later chapters mean anything. This chapter splits by episode, shows what it did, and writes a folder that all later chapters read. Turning words into tokens is left to the next chapter.
#
# It is the first chapter that is also a program. `simpsons-llm prepare --script FILE`, `papermill nbs/02_prepare.ipynb` and "run all" do the same.

# %% tags=["parameters"]
script = "springfield"   # a CSV, JSON or JSONL file, or springfield: the script that comes with the package
speakers = ""            # characters to learn, comma-separated full names; empty: everyone
out = "runs/data"        # folder for the prepared data
split = "episode"        # what stays together: episode, or scene for scripts with fewer than 3 episodes
valid_share = 0.1        # share of the lines to choose the best step by, 0..0.5
test_share = 0.1         # share of the lines to judge by at the end, 0..0.5
split_seed = 42          # seed of the split alone; training has its own
max_leak = 0.01          # most held-out lines, as a share, that may stand verbatim in train, 0..1
context_lines = 10       # lines before the answer in the JSON samples, 0 or more
keep_directions = False  # keep (STAGE DIRECTIONS) inside lines
encoding = None          # the file's encoding; None: find out

# %%
#| export
import csv
import difflib
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from simpsons_llm.job import JobConfig, open_folder, provenance, read_json, read_jsonl, require, same_parameters, sha256, write_json, write_text
from simpsons_llm.script import Line, Scene, Script, clean, read_script

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

# %% [markdown]
# ## The settings
#
# The fields are the parameters above, one for one; the check below the class says so.

# %%
#| export
SPLITS = ("train", "valid", "test")


@dataclass
class PrepareConfig(JobConfig):
    "Settings of the prepare job."
    script: str = "springfield"   # a CSV, JSON or JSONL file, or springfield: the script that comes with the package
    speakers: str = ""            # characters to learn, comma-separated full names; empty: everyone
    out: str = "runs/data"        # folder for the prepared data
    split: str = "episode"        # what stays together: episode, or scene for scripts with fewer than 3 episodes
    valid_share: float = 0.1      # share of the lines to choose the best step by, 0..0.5
    test_share: float = 0.1       # share of the lines to judge by at the end, 0..0.5
    split_seed: int = 42          # seed of the split alone; training has its own
    max_leak: float = 0.01        # most held-out lines, as a share, that may stand verbatim in train, 0..1
    context_lines: int = 10       # lines before the answer in the JSON samples, 0 or more
    keep_directions: bool = False # keep (STAGE DIRECTIONS) inside lines
    encoding: "str | None" = None # the file's encoding; None: find out

    def check(self):
        require(self.split in ("episode", "scene"), f"split={self.split!r} was given; expected episode or scene")
        for name in ("valid_share", "test_share"):
            require(0 < getattr(self, name) <= 0.5, f"{name}={getattr(self, name)} was given; expected a share above 0, up to 0.5")
        require(0 <= self.max_leak <= 1, f"max_leak={self.max_leak} was given; expected 0..1")
        require(self.context_lines >= 0, f"context_lines={self.context_lines} was given; expected 0 or more")


# %% tags=["check"]
assert same_parameters(PrepareConfig, "prepare")
for wrong in (dict(split="random"), dict(valid_share=0.9), dict(context_lines=-1)):
    try: PrepareConfig(**wrong); raise AssertionError(wrong)
    except ValueError as e: assert next(iter(wrong)) in str(e)


# %% [markdown]
# ## Whom to learn
#
# Names are asked for as the script spells them. A name that the script does not have is nearly always a slip, so the error offers the closest ones.

# %%
#| export
def find_speaker(
    name: str,       # a name as somebody typed it
    speakers: dict,  # name -> number of lines, most first
) -> str:            # the name as the script spells it; ValueError with the closest ones if there is none
    "One character by name."
    folded, asked = {n.casefold(): n for n in speakers}, name.strip().casefold()
    if asked in folded: return folded[asked]
    near = [folded[m] for m in difflib.get_close_matches(asked, folded, n=3, cutoff=0.5)]
    near = near or [s for s in speakers if set(asked.split()) & set(s.casefold().split())][:3] or list(speakers)[:5]
    raise ValueError(f"the script has no speaker called {name.strip()!r}; did you mean {', '.join(near)}?")


def find_speakers(
    wanted: str,     # comma-separated names; empty: everyone
    speakers: dict,  # name -> number of lines, most first
) -> list:           # the names to learn; empty: everyone
    "Names of the characters to learn."
    return list(dict.fromkeys(find_speaker(n, speakers) for n in wanted.split(",") if n.strip()))


# %% [markdown]
# A line is a target if its speaker is to be learned, and if it is more than context:

# %%
#| export
def is_target(
    line: Line,    # a line
    targets: list, # names to learn; empty: everyone
) -> bool:         # whether the line is to be learned
    "Whether a line is one to learn, or only context."
    return line.learn and (not targets or line.speaker in targets)


# %% tags=["example"]
source = read_script("springfield")
try: find_speakers("Homer Simson", source.speakers)
except ValueError as e: print(e)
find_speakers("homer simpson, Marge Simpson", source.speakers)

# %% tags=["check"]
assert find_speakers("", source.speakers) == []
assert find_speakers("homer simpson, Homer Simpson", source.speakers) == ["Homer Simpson"]


# %% [markdown]
# ## Split by episode, not by row
#
# The obvious split takes every tenth row for validation. For dialogue that is wrong: rows of one scene then stand on both sides. The context of a validation row *is* a training row, and a model that memorises looks like one that has learned. The cell under "Does it leak?" counts how many.
#
# A split by scene would cure that. But scenes of one episode still share a plot, names and running jokes, which a count of equal lines does not see; so whole episodes go to one side here. Of 200 shuffles made from the split's own seed, the one is kept in which the fewest chosen characters are missing from a set, and, among equals, the one closest to the wanted shares. So a character to be learned is also one that can be judged.

# %%
#| export
def split_scenes(
    scenes: list,              # `Scene`s
    targets: list = (),        # names that should appear in every set; empty: everyone with lines in 3 or more units
    valid_share: float = 0.1,  # share of the lines
    test_share: float = 0.1,   # share of the lines
    split: str = "episode",    # what stays together: "episode" or "scene"
    seed: int = 42,            # of the split alone
) -> dict:                     # {"train": scenes, "valid": scenes, "test": scenes}, each in the script's order
    "Part scenes into three sets that share no episode (or no scene)."
    unit = (lambda s: s.episode) if split == "episode" else (lambda s: (s.episode, s.index))
    units = sorted({unit(s) for s in scenes})
    require(len(units) >= 3, f"the script has {len(units)} {split}{'s'[:len(units) != 1]}; a split needs at least 3, "
            + ("so use split=scene (--split scene)" if split == "episode" else "so add more scenes"))
    size, where = Counter(), {}
    for s in scenes:
        for l in s.lines:
            size[unit(s)] += 1
            if is_target(l, targets): where.setdefault(l.speaker, set()).add(unit(s))
    common = [u for name, u in where.items() if name in targets or len(u) >= 3]
    best = min((deal(units, size, common, (valid_share, test_share), random.Random(f"{seed}/{i}")) for i in range(200)), key=lambda d: d[0])[1]
    return {name: [s for s in scenes if unit(s) in chosen] for name, chosen in zip(SPLITS, best)}


# %% [markdown]
# One shuffle, dealt into three sets and graded:

# %%
#| export
def deal(
    units: list,   # what stays together
    size: dict,    # unit -> number of lines
    common: list,  # for each character that should be everywhere, the units it appears in
    shares: tuple, # wanted shares of valid and test
    rng,           # random.Random
) -> tuple:        # ((characters missing from a set, distance from the shares), [train, valid, test] as sets of units)
    "One shuffle of the units into three sets, and how good it is."
    order, total, sets = rng.sample(units, len(units)), sum(size.values()), []
    for share in reversed(shares):
        taken = {order.pop()}
        while len(order) > len(shares) and sum(size[u] for u in taken) + size[order[-1]]/2 < share*total: taken.add(order.pop())
        sets.insert(0, taken)
    sets.insert(0, set(order))
    missing = sum(not (s & where) for where in common for s in sets)
    off = sum(abs(sum(size[u] for u in s)/total - share) for s, share in zip(sets[1:], shares))
    return (missing, off), sets


# %% tags=["example"]
parts = split_scenes(source.scenes)
pd.DataFrame({name: {"episodes": len({s.episode for s in part}), "scenes": len(part), "lines": sum(len(s.lines) for s in part),
                     "speakers": len({l.speaker for s in part for l in s.lines})} for name, part in parts.items()}).T

# %% tags=["check"]
episodes = [{s.episode for s in parts[n]} for n in SPLITS]
assert not (episodes[0] & episodes[1] or episodes[0] & episodes[2] or episodes[1] & episodes[2])       # nothing shared
assert sorted(s.lines[0].row for p in parts.values() for s in p) == sorted(s.lines[0].row for s in source.scenes)  # nothing lost
assert all({"Homer Simpson", "Marge Simpson", "Bart Simpson"} <= {l.speaker for s in p for l in s.lines} for p in parts.values())
assert parts == split_scenes(source.scenes) != split_scenes(source.scenes, seed=43)                   # the seed alone decides
try: split_scenes(parts["valid"][:2]); raise AssertionError
except ValueError as e: assert "--split scene" in str(e)


# %% [markdown]
# ## Does it leak?
#
# The share of held-out lines, four words or longer, that stand word for word in the training lines. A few can be running gags; many mean that the split is wrong, and then the job stops.

# %%
#| export
def leaked_lines(
    train: list,    # training `Scene`s
    heldout: list,  # held-out `Scene`s
    min_words: int = 4, # shorter lines, such as "Oh no.", repeat by chance
) -> tuple:         # (share 0..1 of the held-out lines of that length, the lines)
    "Held-out lines that also stand in the training scenes."
    words = lambda l: " ".join("".join(c for c in l.text.lower() if c.isalnum() or c == " ").split())
    known = {words(l) for s in train for l in s.lines}
    long = [l for s in heldout for l in s.lines if len(words(l).split()) >= min_words]
    found = [l for l in long if words(l) in known]
    return len(found)/max(len(long), 1), found


# %% tags=["example"]
rows = [(s, l) for s in source.scenes for l in s.lines]
random.Random(0).shuffle(rows)
context = [Scene(s.episode, s.index, s.location, tuple(l for l in s.lines if l.number <= x.number)[-11:]) for s, x in rows[len(rows)//5:]]
by_row, _ = leaked_lines(context, [Scene(s.episode, s.index, s.location, (x,)) for s, x in rows[:len(rows)//5]])
by_episode, _ = leaked_lines(parts["train"], parts["valid"] + parts["test"])
print(f"random rows with the ten lines before them: {by_row:.1%} of the held-out lines stand in the training rows; by episode: {by_episode:.1%}")

# %% tags=["check"]
assert by_episode < 0.01 < by_row
assert leaked_lines(parts["train"], parts["train"])[0] == 1


# %% [markdown]
# ## What is written
#
# `train.jsonl`, `valid.jsonl` and `test.jsonl` hold one scene a line. Beside them lie the same lines as `instruction/input/output` samples, the format that earlier projects and many other trainers read, and the rejected rows with their reasons.

# %%
#| export
def scene_to_dict(
    scene: Scene, # a scene
) -> dict:        # plain data for JSON
    "A scene as plain data."
    return {"episode": scene.episode, "index": scene.index, "location": scene.location,
            "lines": [{"number": l.number, "speaker": l.speaker, "text": l.text, "row": l.row, "learn": l.learn} for l in scene.lines]}


def scene_from_dict(
    data: dict, # what `scene_to_dict` made
) -> Scene:     # the same scene
    "A scene from plain data."
    lines = tuple(Line(data["episode"], l["number"], l["speaker"], l["text"], data["location"], l["row"], l["learn"]) for l in data["lines"])
    return Scene(data["episode"], data["index"], data["location"], lines)


# %%
#| export
def samples_of(
    scenes: list,            # `Scene`s
    targets: list = (),      # names to learn; empty: everyone
    context_lines: int = 10, # lines before the answer
) -> list:                   # {"instruction": lines before, "input": who speaks, "output": what is said}
    "One record for each line to learn, as the seed project's JSON files have them."
    said = lambda lines: "\n".join(f"{l.speaker}: {l.text}" if l.speaker else l.text for l in lines)
    return [{"instruction": said(s.lines[max(0, i - context_lines):i]), "input": l.speaker, "output": l.text}
            for s in scenes for i, l in enumerate(s.lines) if is_target(l, targets)]


# %% tags=["example"]
samples_of(parts["train"], ["Homer Simpson"], context_lines=2)[1]

# %% tags=["check"]
assert [scene_from_dict(json.loads(json.dumps(scene_to_dict(s)))) for s in source.scenes] == source.scenes
with tempfile.TemporaryDirectory() as folder:  # the samples read back as the same lines
    write_json(Path(folder)/"samples.json", samples_of(source.scenes, context_lines=100))
    again = read_script(Path(folder)/"samples.json")
    assert [(l.speaker, l.text) for l in again.lines] == [(l.speaker, l.text) for l in source.lines]


# %% [markdown]
# ## A picture of the split
#
# Who can be learned, and who can be judged?

# %%
#| export
def plot_speakers(
    parts: dict,    # split name -> `Scene`s
    most: int = 15, # how many characters to show
    ax=None,        # matplotlib axes; None: make some
):                  # the axes
    "Bars: lines of each character, by split, most lines first."
    import matplotlib.pyplot as plt
    ax = ax or plt.subplots(figsize=(6.4, 4))[1]
    counts = {name: Counter(l.speaker for s in part for l in s.lines) for name, part in parts.items()}
    names = [n for n, _ in sum(counts.values(), Counter()).most_common(most)][::-1]
    left = [0]*len(names)
    for (split, c), color in zip(counts.items(), ("#f2c500", "#4f86c6", "#c0504d")):
        ax.barh(names, [c[n] for n in names], left=left, label=split, color=color)
        left = [a + c[n] for a, n in zip(left, names)]
    ax.set_xlabel("lines"); ax.legend(frameon=False); ax.spines[["top", "right"]].set_visible(False)
    ax.figure.tight_layout()
    return ax


# %% [markdown]
# ## The job

# %%
#| export
def prepare(
    config: PrepareConfig, # the settings
) -> dict:                 # the report, also written as report.json; ValueError or a file error, in one sentence, if it cannot be done
    "Read, split and write a script; returns and writes the report."
    script = read_script(config.script, config.keep_directions, config.encoding)
    targets = find_speakers(config.speakers, script.speakers)
    parts = split_scenes(script.scenes, targets, config.valid_share, config.test_share, config.split, config.split_seed)
    lines = {n: sum(is_target(l, targets) for s in p for l in s.lines) for n, p in parts.items()}
    require(all(lines.values()), f"the sets would hold {lines} lines to learn; every set needs some, so choose characters with more lines, or another split or split_seed")
    leak, leaked = leaked_lines(parts["train"], parts["valid"] + parts["test"])
    require(leak <= config.max_leak, f"{leak:.1%} of the held-out lines stand in the training lines, such as {[l.text for l in leaked[:3]]}; use split=episode, another split_seed, "
            f"or accept it with a max_leak above {leak:.3f} if these are running gags")
    out = open_folder(config.out)
    for name, part in parts.items():
        write_text(out/f"{name}.jsonl", "".join(json.dumps(scene_to_dict(s), ensure_ascii=False) + "\n" for s in part))
        write_json(out/f"{name}_samples.json", samples_of(part, targets, config.context_lines))
    with open(out/"rejected.csv", "w", newline="", encoding="utf8") as f:
        csv.writer(f).writerows([("line", "reason", "text"), *((r.row, r.reason, r.text) for r in script.rejected)])
    report = {"script": Path(script.path).name, "script_sha256": sha256(script.path), "encoding": script.encoding, "account": script.account(),
              "rejected": [asdict(r) for r in script.rejected[:20]], "speakers": targets, "all_speakers": script.speakers, "split": config.split, "split_seed": config.split_seed,
              "sets": {n: {"episodes": len({s.episode for s in p}), "scenes": len(p), "lines": sum(len(s.lines) for s in p), "learned_lines": lines[n]} for n, p in parts.items()},
              "leaked_share": round(leak, 4), "leaked": [f"{l.speaker}: {l.text}" for l in leaked[:20]],
              "data_sha256": {n: sha256(out/f"{n}.jsonl") for n in parts}, "provenance": provenance()}
    ax = plot_speakers(parts); ax.figure.savefig(out/"speakers.png", dpi=110)
    import matplotlib.pyplot as plt
    plt.close(ax.figure)
    write_json(out/"report.json", report)
    return report


# %% [markdown]
# Numbers in a JSON file are for programs; a person reads the same in six lines:

# %%
#| export
def report_text(
    report: dict, # what `prepare` returned
) -> str:         # a few lines for people
    "The report in words."
    a, n = report["account"], len(report["speakers"])
    kinds = ", ".join(f"{a[k]} {words}" for k, words in (("spoken", "spoken lines"), ("heading", "headings"), ("direction", "directions"), ("wordless", "without words")) if a.get(k))
    rows = [f"{report['script']} ({report['encoding']}): {a['rows']} rows = {a['kept']} kept ({kinds}) + {a['rejected']} rejected"]
    rows += [f"  rejected line {r['row']}: {r['reason']}: {r['text'][:70]}" for r in report["rejected"][:5]]
    if a["rejected"] > 5: rows.append(f"  and {a['rejected'] - 5} more; all of them in rejected.csv")
    rows.append(f"to learn: {', '.join(report['speakers']) if n else 'every character'}; split by {report['split']}, seed {report['split_seed']}")
    rows += [f"  {name:5}  {s['episodes']:4} episodes  {s['scenes']:5} scenes  {s['lines']:6} lines, {s['learned_lines']} of them to learn" for name, s in report["sets"].items()]
    rows.append(f"held-out lines (4 words or more) that stand in train: {report['leaked_share']:.1%}" + (f", such as {report['leaked'][0]!r}" if report["leaked"] else ""))
    return "\n".join(rows)


# %% [markdown]
# Later chapters read the folder back. Its files must still be those that the report describes.

# %%
#| export
def load_data(
    folder, # what `prepare` wrote
) -> tuple: # (split name -> `Scene`s, report); FileNotFoundError or ValueError if the folder does not hold prepared data
    "Read prepared data back, and make sure that it is what was written."
    folder = Path(folder)
    if not (folder/"report.json").is_file():
        raise FileNotFoundError(f"no prepared data in {folder}; make some with: simpsons-llm prepare --script FILE --out {folder}")
    report = read_json(folder/"report.json")
    for name in SPLITS:
        require((folder/f"{name}.jsonl").is_file() and sha256(folder/f"{name}.jsonl") == report["data_sha256"][name],
                f"{folder/f'{name}.jsonl'} is missing or not what prepare wrote; run prepare again")
    return {name: [scene_from_dict(d) for d in read_jsonl(folder/f"{name}.jsonl")] for name in SPLITS}, report


# %% [markdown]
# From the parameters at the top:

# %%
config = PrepareConfig.from_names(globals())
report = prepare(config)
print(report_text(report))

# %% [markdown]
# The picture shows every main character in all three sets, and how fast the number of lines falls from the first character to the fifteenth:

# %%
parts, _ = load_data(config.out)
ax = plot_speakers(parts)
plt.show()

# %%
counts = Counter(l.speaker for p in parts.values() for s in p for l in s.lines).most_common()
print(f"{counts[0][0]} has {counts[0][1]} lines; character {min(15, len(counts))} has {counts[:15][-1][1]}; {len(counts)} characters speak.")

# %% [markdown]
# How long are lines and scenes? In words, since tokens belong to the next chapter.

# %%
words = pd.Series([len(l.text.split()) for p in parts.values() for s in p for l in s.lines])
scene_words = pd.Series([sum(len(l.text.split()) for l in s.lines) for p in parts.values() for s in p])
pd.DataFrame({"words per line": words.describe(), "words per scene": scene_words.describe()}).round(1).T

# %% [markdown]
# A folder whose files were changed afterwards is refused, since its report would no longer be true:

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    prepare(PrepareConfig(out=folder, speakers="Homer Simpson"))
    with open(Path(folder)/"test.jsonl", "a") as f: f.write("\n")
    try: load_data(folder); raise AssertionError
    except ValueError as e: assert "test.jsonl" in str(e)
try: load_data("nowhere"); raise AssertionError
except FileNotFoundError as e: assert "prepare" in str(e)
