# %%
#| default_exp data.prepare

# %% [markdown]
# # Preparing data
#
# > A script becomes three sets of scenes: to learn from, to choose by, and to judge by.
#
# Fine-tuning needs lines to learn from (`train`), lines to choose the best step by (`valid`), and lines that nobody looks at until the end (`test`). How they are split decides whether all later numbers mean anything. This chapter splits by episode, shows what it did, and writes a folder that everything later reads. Turning words into tokens is left to [text for the model](15_prompt.ipynb).
#
# It is the first of the chapters that are also programs. `simpsons-llm prepare --script FILE`, `papermill nbs/1_data/14_prepare.ipynb out.ipynb` and "run all" do the same.

# %% tags=["parameters"]
script = "springfield"  # a script in any form, hub:OWNER/NAME, or springfield: the package's own script
speakers = ""  # characters to learn: names with commas between, or one a row; empty: everyone
aliases = ""  # a file with other names of people, a row each: Marla Quill = Marla, Mrs. Quill
out = "runs/data"  # folder for the prepared data
split = "episode"  # what stays together: episode, or scene for scripts with fewer than 3 episodes
valid_share = 0.1  # share of the lines to choose the best step by, 0..0.5
test_share = 0.1  # share of the lines to judge by at the end, 0..0.5
split_seed = 42  # seed of the split alone; training has its own
max_leak = 0.01  # most held-out lines (and 8-grams of words), as a share, that may stand in train, 0..1
context_lines = 10  # lines before the answer in the JSON samples, 0 or more
keep_directions = False  # keep (STAGE DIRECTIONS) inside lines
scene_break = "auto"  # what ends a scene: blank or blanks (two) rows, heading, 20 (lines), 5m or 2h (a pause)
columns = ""  # where a table has what, such as speaker=Character,text=Line,episode=Episode; empty: find out
encoding = None  # the file's encoding; None: find out
file_format = "auto"  # table, text, play, screenplay, fountain, subtitles, chat, json ...; auto: find out

# %%
#| export
import csv
import difflib
import hashlib
import json
import random
import re
import shlex
import statistics
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

from simpsons_llm.data.formats import READERS, read_script
from simpsons_llm.data.lines import Line, Scene, alike_names, measure, name_key
from simpsons_llm.machine.encodings import decode
from simpsons_llm.machine.job import (
    JobConfig,
    hold_folder,
    open_folder,
    provenance,
    read_json,
    read_jsonl,
    require,
    require_sealed,
    same_parameters,
    seal,
    sha256,
    unseal,
    write_json,
    write_text,
)

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


def columns_of(
    text: str,  # such as "speaker=Character,text=Line"
) -> dict:  # what a column holds -> its name; ValueError if it is not written so
    "Columns as a person names them."
    pieces = [x.strip() for x in re.split(r"[,\n]\s*(?=\w+\s*=)", text) if x.strip()]
    pairs = [re.fullmatch(r"(\w+)\s*=\s*(.+)", x) for x in pieces]
    require(
        all(pairs), f"columns={text!r} was given; expected pairs such as speaker=Character,text=Line,episode=Episode"
    )
    return {m[1].lower(): m[2] for m in pairs if m}


@dataclass
class PrepareConfig(JobConfig):
    "Settings of the prepare job."

    repeated: ClassVar = ("speakers", "columns")

    script: str = "springfield"  # a script in any form, hub:OWNER/NAME, or springfield: the package's own script
    speakers: str = ""  # characters to learn: names with commas between, or one a row; empty: everyone
    aliases: str = ""  # a file with other names of people, a row each: Marla Quill = Marla, Mrs. Quill
    out: str = "runs/data"  # folder for the prepared data
    split: str = "episode"  # what stays together: episode, or scene for scripts with fewer than 3 episodes
    valid_share: float = 0.1  # share of the lines to choose the best step by, 0..0.5
    test_share: float = 0.1  # share of the lines to judge by at the end, 0..0.5
    split_seed: int = 42  # seed of the split alone; training has its own
    max_leak: float = 0.01  # most held-out lines (and 8-grams of words), as a share, that may stand in train, 0..1
    context_lines: int = 10  # lines before the answer in the JSON samples, 0 or more
    keep_directions: bool = False  # keep (STAGE DIRECTIONS) inside lines
    scene_break: str = "auto"  # what ends a scene: blank or blanks (two) rows, heading, 20 (lines), 5m or 2h (a pause)
    columns: str = ""  # where a table has what, such as speaker=Character,text=Line,episode=Episode; empty: find out
    encoding: "str | None" = None  # the file's encoding; None: find out
    file_format: str = "auto"  # table, text, play, screenplay, fountain, subtitles, chat, json ...; auto: find out

    def check(self):
        require(self.out.strip(), "out was given as nothing; give a folder, such as runs/data")
        require(self.split in ("episode", "scene"), f"split={self.split!r} was given; expected episode or scene")
        for name in ("valid_share", "test_share"):
            require(
                0 < getattr(self, name) <= 0.5,
                f"{name}={getattr(self, name)} was given; expected a share above 0, up to 0.5",
            )
        require(0 <= self.max_leak <= 1, f"max_leak={self.max_leak} was given; expected 0..1")
        require(
            self.file_format in ("auto", "parquet", *READERS),
            f"file_format={self.file_format!r} was given; expected auto, parquet, {', '.join(READERS)}",
        )
        require(
            re.fullmatch(r"auto|blanks?|heading|[1-9]\d*[smh]?", self.scene_break),
            f"scene_break={self.scene_break!r} was given; expected auto, blank, blanks, heading, "
            "a number of lines such as 20, or a pause such as 30s, 5m or 2h",
        )
        columns_of(self.columns)
        require(self.context_lines >= 0, f"context_lines={self.context_lines} was given; expected 0 or more")


# %% tags=["check"]
assert same_parameters(PrepareConfig, "prepare")
assert columns_of("speaker=Who, the one,text=Line") == {"speaker": "Who, the one", "text": "Line"}
for wrong in (dict(split="random"), dict(valid_share=0.9), dict(scene_break="soon"), dict(columns="Character")):
    try:
        PrepareConfig(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert next(iter(wrong)) in str(e)
        print(e)


# %% [markdown]
# ## Whom to learn
#
# Names are asked for as the report spells them. Who types another case of letters, or more blanks, or leaves out a full stop, means the same name. [Reading](10_lines.ipynb) has joined the spellings of one person already; samples of other projects and runs of earlier versions may still have `Homer` and `HOMER`. So a name that is spelt exactly as in the script always wins, and where none is, the spelling with the most lines is taken, and told. A name that the script does not have is nearly always a slip, so the error offers the closest ones.

# %%
#| export
def folded(
    name: str,  # a name as somebody typed it
) -> str:  # the same for all its spellings
    "A name without case, with single blanks, one behind each comma."
    return re.sub(r" ?, ?", ", ", " ".join(unicodedata.normalize("NFC", name).split())).casefold()


def find_speaker(
    name: str,  # a name as somebody typed it
    speakers: dict,  # name -> number of lines
) -> str:  # the name as the script spells it; ValueError with the closest ones if there is none
    "One character by name."
    name, asked = name.strip(), folded(name)
    if name in speakers:
        return name
    alike = [n for n in speakers if folded(n) == asked] or [n for n in speakers if name_key(n) == name_key(name)]
    if alike:
        return max(alike, key=speakers.__getitem__)  # among equals the first
    spelt = {folded(n): n for n in reversed(speakers)}
    near = [spelt[m] for m in difflib.get_close_matches(asked, spelt, n=3, cutoff=0.5)]
    near = near or [s for s in speakers if set(asked.split()) & set(s.casefold().split())][:3] or list(speakers)[:5]
    raise ValueError(f"the script has no speaker called {name!r}; did you mean {' or '.join(near)}?")


def spelling_note(
    name: str,  # a name as somebody typed it
    speakers: dict,  # name -> number of lines
) -> str:  # a sentence; empty where there was nothing to choose
    "What a person should know of the spelling that `find_speaker` chose."
    chosen = find_speaker(name, speakers)
    others = [f"{n!r} ({speakers[n]:,} lines)" for n in speakers if folded(n) == folded(chosen) and n != chosen]
    if not others or chosen == name.strip():
        return ""
    return (
        f"{name.strip()!r} is read as {chosen!r} ({speakers[chosen]:,} lines); "
        f"the script also has {' and '.join(others)}, which must be asked for as it is spelt"
    )


# %% tags=["example"]
source = read_script("springfield")
try:
    find_speaker("Homer Simson", source.speakers)
except ValueError as e:
    print(e)
print(spelling_note("homer", {"HOMER": 7, "Homer": 40}))


# %%
#| export
def known_speaker(
    name: str,  # a name as somebody typed it
    known: dict,  # name -> number of lines, as a model's notes have them; empty: nobody knows
) -> str:  # the name as it is known; as it was typed if nobody knows; ValueError as `find_speaker`
    "The character to ask a model for; a choice among spellings is printed."
    if not known:
        return name
    if note := spelling_note(name, known):
        print(note, flush=True)
    return find_speaker(name, known)


# %% [markdown]
# Several names are written with commas between them, or each in a row of its own, which is what an option that is given twice becomes. Some names have a comma of their own: `Sammy Davis, Jr.` So a row is cut at its commas, and from left to right the longest run of pieces that is a name of the script is taken for one name. With `Sammy` and `Sammy, Jr.` both in the script, `Sammy, Jr.` is the second alone.

# %%
#| export
def split_names(
    wanted: str,  # names with commas or line ends between
    speakers: dict,  # name -> number of lines
) -> list:  # each name as it was typed; empty pieces are left out
    "Names in a text, those with a comma in one."
    known, names = set(map(folded, speakers)), []
    for row in wanted.split("\n"):
        pieces = [p for p in row.split(",") if p.strip()]
        while pieces:
            n = next((n for n in range(len(pieces), 1, -1) if folded(",".join(pieces[:n])) in known), 1)
            names.append(",".join(pieces[:n]).strip())
            del pieces[:n]
    return names


def find_speakers(
    wanted: str,  # names with commas or line ends between; empty: everyone
    speakers: dict,  # name -> number of lines
) -> list:  # the names to learn; empty: everyone
    "Names of the characters to learn."
    return list(dict.fromkeys(find_speaker(n, speakers) for n in split_names(wanted, speakers)))


# %% tags=["example"]
print(split_names("Sammy, Jr., Moe\nSammy", {"Sammy": 2, "Sammy, Jr.": 3, "Moe": 9}))
find_speakers("homer simpson, Marge Simpson", source.speakers)


# %% [markdown]
# Who one person is under several names only a person can know. A file says it, a row for each: the name to use, and the others.

# %%
#| export
def read_aliases(
    path: str,  # a text file with rows such as "Marla Quill = Marla, Mrs. Quill"; empty: none
) -> dict:  # other name's `name_key` -> name to use; ValueError naming the row that is not so
    "Other names of people."
    found: dict[str, str] = {}
    if path and not Path(path).is_file():
        raise FileNotFoundError(
            f"no file of names at {path}; give one with rows such as: Marla Quill = Marla, Mrs. Quill"
        )
    told = decode(Path(path).read_bytes(), Path(path).name)[0] if path else ""
    for row, text in enumerate(told.splitlines(), 1):
        if not (text := text.strip()) or text[0] == "#":
            continue
        name, mark, others = (x.strip() for x in text.partition("="))
        given = [o.strip() for o in others.split(",") if o.strip()]
        require(
            mark and name and given,
            f"row {row} of {Path(path).name} is {text[:60]!r}; "
            "expected a name and its others: Marla Quill = Marla, Mrs. Quill",
        )
        for other in [name, *given]:
            before = found.setdefault(name_key(other), name)
            require(
                before == name,
                f"row {row} of {Path(path).name} gives {other!r} to {name!r}, a row before to {before!r}",
            )
    return found


# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    names = Path(folder) / "names.txt"
    names.write_text("# who is who\nMarla Quill = Marla, MRS. QUILL\n")
    assert read_aliases(str(names)) == dict.fromkeys(("marla quill", "marla", "mrs quill"), "Marla Quill")
    names.write_text("Marla Quill")
    try:
        read_aliases(str(names))
        raise AssertionError
    except ValueError as e:
        print(e)


# %% [markdown]
# A line is a target if its speaker is to be learned, and if it is more than context:

# %%
#| export
def is_target(
    line: Line,  # a line
    targets: list | tuple,  # names to learn; empty: everyone
) -> bool:  # whether the line is to be learned
    "Whether a line is one to learn, or only context."
    return line.learn and (not targets or line.speaker in targets)


# %% tags=["example"]
{name: sum(is_target(line, [name]) for line in source.lines) for name in ("Homer Simpson", "Moe Szyslak")}

# %% tags=["check"]
assert find_speakers("", source.speakers) == []
assert find_speakers("homer simpson, Homer Simpson", source.speakers) == ["Homer Simpson"]
two = {"Homer": 40, "HOMER": 7, "Sammy Davis, Jr.": 3, "Sammy": 2}
assert [find_speaker(n, two) for n in ("Homer", "HOMER", "homer", "sammy  davis,jr.")] == [
    "Homer",
    "HOMER",
    "Homer",
    "Sammy Davis, Jr.",
]
assert find_speakers("Sammy Davis, Jr.,HOMER, Sammy", two) == ["Sammy Davis, Jr.", "HOMER", "Sammy"]
assert "40 lines" in spelling_note("homer", two) and spelling_note("HOMER", two) == spelling_note("sammy", two) == ""

# %% [markdown]
# ## Split by episode, not by row
#
# The obvious split takes every tenth row for validation. For dialogue that is wrong: rows of one scene then stand on both sides. The context of a validation row *is* a training row, and a model that memorises looks like one that has learned. "Does it leak?" below counts how many.
#
# A split by scene would cure that. But scenes of one episode still share a plot, names and running jokes, which a count of equal lines does not see; so whole episodes go to one side here. Of many shuffles made from the split's own seed, the one is kept in which the fewest chosen characters are missing from a set, and, among equals, the one closest to the wanted shares. So a character to be learned is also one that can be judged.

# %%
#| export
SHUFFLES = 200  # for a script of up to 1,000 episodes; fewer, in proportion, for more


def split_scenes(
    scenes: list,  # `Scene`s
    targets: list | tuple = (),  # names that should appear in every set; empty: everyone with lines in 3 or more units
    valid_share: float = 0.1,  # share of the lines
    test_share: float = 0.1,  # share of the lines
    split: str = "episode",  # what stays together: "episode" or "scene"
    seed: int = 42,  # of the split alone
) -> dict:  # {"train": scenes, "valid": scenes, "test": scenes}, each in the script's order
    "Part scenes into three sets that share no episode (or no scene)."
    unit = (lambda s: s.episode) if split == "episode" else (lambda s: (s.episode, s.index))
    size: Counter = Counter()  # unit -> lines
    where: dict[str, set] = {}  # name -> units
    for s in scenes:
        u = unit(s)
        size[u] += len(s.lines)
        for name in {line.speaker for line in s.lines if is_target(line, targets)}:
            where.setdefault(name, set()).add(u)
    units = sorted(size)
    require(
        len(units) >= 3,
        f"the script has {len(units)} {split}{'s'[: len(units) != 1]}; a split needs at least 3, "
        + (
            "so use split=scene (--split scene)"
            if split == "episode"
            else "so add more, or say where scenes end with scene_break (--scene-break blank, or 10 for every 10 lines)"
        ),
    )
    common = [u for name, u in where.items() if name in targets or len(u) >= 3]
    shuffles = max(5, min(SHUFFLES, 200 * SHUFFLES * 5 // len(units)))
    dealt = [deal(units, size, (valid_share, test_share), random.Random(f"{seed}/{i}")) for i in range(shuffles)]
    best = dealt[best_deal(dealt, units, common)][1]
    return {name: [s for s in scenes if unit(s) in chosen] for name, chosen in zip(SPLITS, best)}


# %% [markdown]
# One shuffle, dealt into three sets, and how far they are from the wanted shares:

# %%
#| export
def deal(
    units: list,  # what stays together
    size: dict,  # unit -> number of lines
    shares: tuple,  # wanted shares of valid and test
    rng,  # random.Random
) -> tuple:  # (distance from the shares, [train, valid, test] as sets of units)
    "One shuffle of the units into three sets."
    order, total, off = rng.sample(units, len(units)), sum(size.values()), 0.0
    sets: list[set] = []
    for share in reversed(shares):
        taken = [order.pop()]
        lines = size[taken[0]]
        while len(order) > len(shares) and lines + size[order[-1]] / 2 < share * total:
            taken.append(order.pop())
            lines += size[taken[-1]]
        sets.insert(0, set(taken))
        off += abs(lines / total - share)
    return off, [set(order), *sets]


# %% [markdown]
# Five episodes of ten to fifty lines, and a fifth of the lines wanted in each of the last two sets:

# %% tags=["example"]
size = {1: 50, 2: 30, 3: 40, 4: 20, 5: 10}
for seed in range(2):
    off, sets = deal(list(size), size, (0.2, 0.2), random.Random(seed))
    print(f"{off:.2f} from the shares: {sets}")


# %% [markdown]
# And the best of them. Each character's episodes are looked up in every shuffle at once; a character that stands in all three sets has all three bits:

# %%
#| export
def best_deal(
    dealt: list,  # what `deal` gave, several times
    units: list,  # what stays together
    common: list,  # for each character that should be everywhere, the units it appears in
) -> int:  # index of the deal with the fewest characters missing from a set, then the closest to the shares
    "Choose among shuffles."
    import numpy as np

    place = {u: i for i, u in enumerate(units)}
    flat = np.array([place[u] for where in common for u in where], dtype=np.int64)
    begins = np.cumsum([0, *map(len, common)])[:-1]
    grades = []
    for i, (off, sets) in enumerate(dealt):
        bits = np.zeros(len(units), dtype=np.int64)
        for bit, chosen in enumerate(sets):
            bits[[place[u] for u in chosen]] = 1 << bit
        have = np.bitwise_or.reduceat(bits[flat], begins) if len(flat) else np.array([], dtype=np.int64)
        grades.append((int(sum(((have >> bit) & 1 == 0).sum() for bit in range(len(sets)))), off, i))
    return min(grades)[2]


# %% tags=["example"]
parts = split_scenes(source.scenes)
pd.DataFrame(
    {
        name: {
            "episodes": len({s.episode for s in part}),
            "scenes": len(part),
            "lines": sum(len(s.lines) for s in part),
            "speakers": len({line.speaker for s in part for line in s.lines}),
        }
        for name, part in parts.items()
    }
).T

# %% tags=["check"]
episodes = [{s.episode for s in parts[n]} for n in SPLITS]
# nothing shared
assert not (episodes[0] & episodes[1] or episodes[0] & episodes[2] or episodes[1] & episodes[2])
# nothing lost
assert sorted(s.lines[0].row for p in parts.values() for s in p) == sorted(s.lines[0].row for s in source.scenes)
assert all(
    {"Homer Simpson", "Marge Simpson", "Bart Simpson"} <= {line.speaker for s in p for line in s.lines}
    for p in parts.values()
)
# the seed alone decides
assert parts == split_scenes(source.scenes) != split_scenes(source.scenes, seed=43)
try:
    split_scenes(parts["valid"][:2])
    raise AssertionError
except ValueError as e:
    assert "--split scene" in str(e)

# %% [markdown]
# ## Does it leak?
#
# Chinese, Japanese and Thai have no blanks between words; there letters are counted, two for a word. Two counts over the held-out lines. The first: lines of four words or longer that stand word for word in the training lines. The second: runs of eight words (*8-grams*) that do; it finds a line that was copied with a small change. A few can be running gags; many mean that the split is wrong, and then the job stops.

# %%
#| export
MIN_WORDS, NGRAM = 4, 8  # shorter lines, such as "Oh no.", repeat by chance; 8 words in a row hardly do
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai to Chinese
)
LETTER = re.compile(f"[{UNSPACED}]")
WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


def plain_words(
    text: str,  # any text
) -> list:  # its words, small letters, without punctuation; where no blanks stand between words, its letters
    "Words of a line, for comparing."
    return WORD.findall(re.sub(r"[^\w\s]", "", text.lower()))


def span(
    words: list,  # what `plain_words` gave
) -> int:  # 1; 2 for letters of a script without blanks between words, of which two say about as much as a word
    "How many units make a word."
    if not words or max(words[0], words[-1]) < "\u0e00":
        return 1
    return 2 if sum(bool(LETTER.match(w)) for w in words) > len(words) / 2 else 1


def ngrams(
    words: list,  # words, or letters
    n: int | None = None,  # length of a run; None: 8 words, or 16 letters
) -> set:  # tuples of n words
    "All runs of `n` words."
    n = n or NGRAM * span(words)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


# %% tags=["example"]
words = plain_words("Mmm... Is there anything that they can't do? I ask you.")
print(words)
print(plain_words("今天的茶又丢了。"))
len(words), len(ngrams(words))


# %%
#| export
def leak_report(
    train: list,  # training `Scene`s
    heldout: list,  # held-out `Scene`s
    min_words: int = MIN_WORDS,  # shorter lines are not looked at
) -> dict:  # line_share, ngram_share (0..1), lines, ngrams (how many were looked at), leaked, similar (the `Line`s)
    "Held-out lines that also stand in the training scenes, whole or in runs of eight words."
    held = [(line, w) for s in heldout for line in s.lines if len(w := plain_words(line.text)) >= min_words * span(w)]
    wanted, looked = {" ".join(w) for _, w in held}, {g for _, w in held for g in ngrams(w)}
    known, shared = set(), set()
    for s in train:
        for line in s.lines:
            w = plain_words(line.text)
            if (whole := " ".join(w)) in wanted:
                known.add(whole)
            if len(w) >= NGRAM * span(w):
                shared |= ngrams(w) & looked
    leaked = [line for line, w in held if " ".join(w) in known]
    similar = [line for line, w in held if len(w) >= NGRAM * span(w) and not shared.isdisjoint(ngrams(w))]
    return {
        "line_share": len(leaked) / max(len(held), 1),
        "ngram_share": len(shared) / max(len(looked), 1),
        "lines": len(held),
        "ngrams": len(looked),
        "leaked": leaked,
        "similar": similar,
    }


# %% [markdown]
# A held-out line, of which a copy with one more word stands in train. The lines are not equal; the 8-grams see it:

# %% tags=["check"]
said = next(line for s in parts["valid"] for line in s.lines if len(line.text.split()) > 9)
near = Scene(0, 0, "", (Line(0, 0, "Moe", said.text + " Pal.", ""),))
copied = leak_report([near], [Scene(0, 0, "", (said,))])
assert copied["line_share"] == 0 < copied["ngram_share"]
{name: copied[name] for name in ("lines", "line_share", "ngrams", "ngram_share")}


# %% [markdown]
# A line that comes back in several episodes is a running gag. It is not hidden from the count, since a model may well know it by heart; but a person who sees the list can tell a gag from a mistake.

# %%
#| export
def running_gags(
    scenes: list,  # all `Scene`s of a script
    min_words: int = MIN_WORDS,  # shorter lines are not looked at
) -> list:  # {"text", "times", "episodes"}, most episodes first
    "Lines that stand in more than one episode."
    found: dict = {}
    for s in scenes:
        for line in s.lines:
            if len(words := plain_words(line.text)) >= min_words * span(words):
                found.setdefault(" ".join(words), []).append(line)
    gags = [
        {"text": ls[0].text, "times": len(ls), "episodes": len({line.episode for line in ls})}
        for ls in found.values()
        if len(ls) > 1
    ]
    return sorted((g for g in gags if g["episodes"] > 1), key=lambda g: (-g["episodes"], -g["times"], g["text"]))


# %% [markdown]
# The book's script has none, so one is made:

# %% tags=["check"]
assert not running_gags(source.scenes)
gag = [Scene(e, 0, "", (Line(e, 0, "Moe", "Get out of my bar!", ""),)) for e in (1, 2, 3)]
assert running_gags(gag) == [{"text": "Get out of my bar!", "times": 3, "episodes": 3}]
running_gags(gag)


# %% [markdown]
# What would the seed's way leak? There each line became a row with the lines before it, and rows were drawn at random. A held-out line leaks if it stands in the context of any training row, or is a training row's own line:

# %%
#| export
def random_rows_leak(
    scenes: list,  # all `Scene`s of a script
    share: float = 0.2,  # share of the rows that is held out
    context_lines: int = 10,  # lines before a row's own
    seed: int = 42,  # of the draw
) -> float:  # share 0..1 of the held-out lines of 4 words or more
    "What a random split of rows would leak on this script."
    rng, seen, held = random.Random(seed), set(), []
    for s in scenes:
        words = [plain_words(line.text) for line in s.lines]
        trained = [rng.random() >= share for _ in words]
        until = -1  # the last line so far whose row, or whose later rows, are trained on
        for i in range(len(words)):
            until = next(
                (j for j in range(min(i + context_lines, len(words) - 1), max(until, i - 1), -1) if trained[j]), until
            )
            if until >= i:
                seen.add(" ".join(words[i]))
            if not trained[i] and len(words[i]) >= MIN_WORDS * span(words[i]):
                held.append(" ".join(words[i]))
    return sum(h in seen for h in held) / max(len(held), 1)


# %% tags=["example"]
leak = leak_report(parts["train"], parts["valid"] + parts["test"])
by_row = random_rows_leak(source.scenes)
print(
    f"by episode {leak['line_share']:.1%} of {leak['lines']} lines and {leak['ngram_share']:.1%} "
    f"of {leak['ngrams']} 8-grams leak; random rows would leak {by_row:.1%} of the lines"
)

# %% tags=["check"]
assert (
    max(leak["line_share"], leak["ngram_share"]) < 0.01 < 0.9 < by_row
    and random_rows_leak(source.scenes, context_lines=0) < 0.01
)
whole = leak_report(parts["train"], parts["train"])
assert whole["line_share"] == whole["ngram_share"] == 1


# %% [markdown]
# ## What is written
#
# `train.jsonl`, `valid.jsonl` and `test.jsonl` hold one scene a line. Beside them lie the same lines as `instruction/input/output` samples, the format that earlier projects and many other trainers read, and the rejected rows with their reasons.

# %%
#| export
def scene_to_dict(
    scene: Scene,  # a scene
) -> dict:  # plain data for JSON
    "A scene as plain data."
    return {
        "episode": scene.episode,
        "index": scene.index,
        "location": scene.location,
        "lines": [
            {"number": line.number, "speaker": line.speaker, "text": line.text, "row": line.row, "learn": line.learn}
            for line in scene.lines
        ],
    }


def scene_from_dict(
    data: dict,  # what `scene_to_dict` made
) -> Scene:  # the same scene
    "A scene from plain data."
    lines = tuple(
        Line(
            data["episode"], line["number"], line["speaker"], line["text"], data["location"], line["row"], line["learn"]
        )
        for line in data["lines"]
    )
    return Scene(data["episode"], data["index"], data["location"], lines)


# %% tags=["example"]
short = min(source.scenes, key=lambda s: len(s.lines))
scene_to_dict(Scene(short.episode, short.index, short.location, short.lines[:2]))


# %%
#| export
def samples_of(
    scenes: list,  # `Scene`s
    targets: list | tuple = (),  # names to learn; empty: everyone
    context_lines: int = 10,  # lines before the answer
) -> list:  # {"instruction": lines before, "input": who speaks, "output": what is said}
    "One record for each line to learn, as the seed project's JSON files have them."

    def said(lines):
        return "\n".join(f"{line.speaker}: {line.text}" if line.speaker else line.text for line in lines)

    return [
        {"instruction": said(s.lines[max(0, i - context_lines) : i]), "input": line.speaker, "output": line.text}
        for s in scenes
        for i, line in enumerate(s.lines)
        if is_target(line, targets)
    ]


# %% tags=["example"]
samples_of(parts["train"], ["Homer Simpson"], context_lines=2)[1]

# %% tags=["check"]
assert [scene_from_dict(json.loads(json.dumps(scene_to_dict(s)))) for s in source.scenes] == source.scenes
with tempfile.TemporaryDirectory() as folder:  # the samples read back as the same lines
    write_json(Path(folder) / "samples.json", samples_of(source.scenes, context_lines=100))
    again = read_script(Path(folder) / "samples.json")
    assert [(line.speaker, line.text) for line in again.lines] == [(line.speaker, line.text) for line in source.lines]


# %% [markdown]
# ## A picture of the split
#
# Names may be written in letters that no font on this machine has. A font that has them is looked for; where there is none, a name is drawn as its place in the report, since boxes tell nothing.

# %%
#| export
def drawn(
    names: list,  # names of speakers, fewest lines first
) -> list:  # what to write beside their bars; fonts are chosen where they are needed
    "Names as this machine's fonts can draw them."
    import matplotlib.pyplot as plt
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    def has(file, text):
        known = FT2Font(file).get_charmap()
        return all(ord(c) in known for c in text if not c.isspace())

    family, own = plt.rcParams["font.family"], font_manager.findfont(font_manager.FontProperties())
    odd = [n for n in names if not has(own, n)]
    if not odd:
        return names
    others = {f.name: f.fname for f in font_manager.fontManager.ttflist if "Last Resort" not in f.name}
    for name, file in others.items():
        if name not in family and any(has(file, n) for n in odd):
            family = plt.rcParams["font.family"] = [*family, name]
            odd = [n for n in odd if not has(file, n)]
            if not odd:
                return names
    return [f"speaker {len(names) - i}" if n in odd else n for i, n in enumerate(names)]


# %% [markdown]
# Who can be learned, and who can be judged?

# %%
#| export
def plot_speakers(
    parts: dict,  # split name -> `Scene`s
    most: int = 15,  # how many characters to show
    ax=None,  # matplotlib axes; None: make some
):  # the axes
    "Bars: lines of each character, by split, most lines first."
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6.4, 4))[1]
    counts = {name: Counter(line.speaker for s in part for line in s.lines) for name, part in parts.items()}
    names = [n for n, _ in sum(counts.values(), Counter()).most_common(most)][::-1]
    left = [0] * len(names)
    shown = drawn(names)
    for (split, c), color in zip(counts.items(), ("#f2c500", "#4f86c6", "#c0504d")):
        ax.barh(range(len(names)), [c[n] for n in names], left=left, label=split, color=color)
        left = [a + c[n] for a, n in zip(left, names)]
    ax.set_yticks(range(len(names)), shown)
    ax.set_xlabel("lines")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.figure.tight_layout()
    return ax


# %% [markdown]
# How long are lines, and how long are scenes? Long lines are cut last and cost most; scenes must fit into what a model reads at once. So of the scenes it is shown how much of the text stands in those of up to a length: what would be whole if longer ones had to be cut.

# %%
#| export
def line_lengths(
    scenes: list,  # `Scene`s
) -> tuple:  # (length of each line, "words" or "letters": what is counted)
    "How long lines are, in what their script counts by."
    counted = [plain_words(line.text) for s in scenes for line in s.lines]
    letters = sum(map(span, counted)) > 1.5 * len(counted)
    return [
        len(w) if letters else len(line.text.split()) for w, line in zip(counted, (x for s in scenes for x in s.lines))
    ], ("letters" if letters else "words")


# %%
#| export
def plot_lengths(
    parts: dict,  # split name -> `Scene`s
    axes=None,  # two matplotlib axes; None: make some
):  # the axes
    "How many words lines have; and in scenes of how many lines how large a part of all lines stands."
    import matplotlib.pyplot as plt

    axes = plt.subplots(1, 2, figsize=(8, 3))[1] if axes is None else axes
    scenes = [s for p in parts.values() for s in p]
    words, unit = line_lengths(scenes)
    lines = sorted(len(s.lines) for s in scenes)
    axes[0].hist(words, bins=range(0, max(words) + 2, max(1, max(words) // 30)), color="#4f86c6")
    axes[0].axvline(statistics.median(words), color="#c0504d", label=f"median {statistics.median(words):g}")
    axes[0].set(xlabel=f"{unit} of a line", ylabel="lines")
    held = [n / sum(lines) for n in accumulate(lines)]
    half = next(n for n, share in zip(lines, held) if share >= 0.5)
    axes[1].step([0, *lines], [0, *held], where="post", color="#4f86c6")
    axes[1].axvline(half, color="#c0504d", label=f"half of all lines: scenes of up to {half}")
    axes[1].set(
        xlabel="lines of a scene, at most", ylabel="share of all lines", ylim=(0, 1), xlim=(max(0, lines[0] - 3), None)
    )
    for ax in axes:
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].figure.tight_layout()
    return axes


# %% [markdown]
# ## The job
#
# First what the split brought, in numbers:

# %%
#| export
def describe(
    parts: dict,  # split name -> `Scene`s
    targets: list,  # names to learn; empty: everyone
) -> dict:  # sets, missing, words_per_line, lines_per_scene
    "What is in the three sets."
    sets = {
        n: {
            "episodes": len({s.episode for s in p}),
            "scenes": len(p),
            "lines": sum(len(s.lines) for s in p),
            "learned_lines": sum(is_target(line, targets) for s in p for line in s.lines),
        }
        for n, p in parts.items()
    }
    there = {n: {line.speaker for s in p for line in s.lines if is_target(line, targets)} for n, p in parts.items()}
    missing = {n: [t for t in targets if t not in have] for n, have in there.items()}

    def spread(counts):
        return {
            "median": statistics.median(counts),
            "p95": sorted(counts)[int(0.95 * (len(counts) - 1))],
            "longest": max(counts),
        }

    scenes = [s for p in parts.values() for s in p]
    lengths, unit = line_lengths(scenes)
    return {
        "sets": sets,
        "missing": {n: m for n, m in missing.items() if m},
        "words_per_line": spread(lengths),
        "unit": unit,
        "lines_per_scene": spread([len(s.lines) for s in scenes]),
    }


# %% tags=["example"]
found = describe(parts, ["Homer Simpson"])
print(found["words_per_line"], found["lines_per_scene"])
pd.DataFrame(found["sets"]).T


# %% [markdown]
# A split that leaks is refused before anything is written, with the lines that leak:

# %%
#| export
def refuse_leak(
    leak: dict,  # what `leak_report` gave
    max_leak: float,  # most, as a share 0..1
):
    "Raise ValueError naming the lines if a split leaks more than is allowed."
    if max(leak["line_share"], leak["ngram_share"]) <= max_leak:
        return
    lines = leak["leaked"] or leak["similar"]
    named = "; ".join(f"{line.text[:60]!r} (episode {line.episode}, line {line.row} of the file)" for line in lines[:5])
    raise ValueError(
        f"{leak['line_share']:.1%} of the held-out lines and {leak['ngram_share']:.1%} "
        f"of their 8-grams stand in the training lines, more than max_leak={max_leak:g}: {named}"
        + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
        + (
            "; use split=episode or another split_seed, or accept it with a max_leak of "
            f"{max(leak['line_share'], leak['ngram_share']) + 0.0005:.3f} or more if these are running gags"
        )
    )


# %% [markdown]
# A scene of the training set, held out as well:

# %% tags=["example"]
try:
    refuse_leak(leak_report(parts["train"], [short]), 0.01)
except ValueError as e:
    print(e)


# %%
#| export
@dataclass(frozen=True)
class Prepared:
    "A script, read and split, not written anywhere yet."

    parts: dict  # split name -> `Scene`s
    report: dict  # what report.json will hold
    rejected: list  # `Rejected` rows, all of them
    context_lines: int  # lines before the answer in the JSON samples


def scenes_text(
    scenes: list,  # `Scene`s
) -> str:  # one JSON object a line
    "Scenes as they are kept."
    return "".join(json.dumps(scene_to_dict(s), ensure_ascii=False) + "\n" for s in scenes)


def shown_scenes(
    scenes: list,  # `Scene`s
    most: int = 3,  # how many
    lines: int = 4,  # lines of each
) -> list:  # {"episode", "location", "row", "lines": "Name: text" each, "more": lines left out}
    "Some scenes for a person to look at: from the beginning, the middle and the end."
    long = [s for s in scenes if len(s.lines) > 1] or scenes
    chosen = [long[i * (len(long) - 1) // max(most - 1, 1)] for i in range(min(most, len(long)))]
    return [
        {
            "episode": s.episode,
            "location": s.location,
            "row": s.lines[0].row,
            "lines": [f"{x.speaker}: {x.text}" for x in s.lines[:lines]],
            "more": max(0, len(s.lines) - lines),
        }
        for s in chosen
    ]


def read_and_split(
    config: PrepareConfig,  # the settings; `out` is not used
) -> Prepared:  # ValueError or a file error, in one sentence, if it cannot be done
    "All of `prepare` but the writing."
    script = read_script(
        config.script,
        config.keep_directions,
        config.encoding,
        config.file_format,
        columns_of(config.columns),
        config.scene_break,
        read_aliases(config.aliases),
    )
    targets = find_speakers(config.speakers, script.speakers)
    spellings = [
        note for n in split_names(config.speakers, script.speakers) if (note := spelling_note(n, script.speakers))
    ]
    parts = split_scenes(script.scenes, targets, config.valid_share, config.test_share, config.split, config.split_seed)
    found = describe(parts, targets)
    learned = {n: s["learned_lines"] for n, s in found["sets"].items()}
    require(
        all(learned.values()),
        f"the sets would hold {learned} lines to learn; "
        "every set needs some, so choose characters with more lines, or another split or split_seed",
    )
    leak = leak_report(parts["train"], parts["valid"] + parts["test"])
    refuse_leak(leak, config.max_leak)
    reasons: dict[str, list] = {}
    for r in script.rejected:
        reasons.setdefault(r.reason.split(" (read as")[0], []).append(r.row)
    report = {
        "script": Path(script.path).name,
        "script_sha256": sha256(script.path),
        "format": script.format,
        "encoding": script.encoding,
        "account": script.account(),
        "notes": script.notes + spellings,
        "doubts": script.doubts,
        "looks": {k: round(v, 4) for k, v in measure(script).items()},
        "merged": script.merged,
        "alike": alike_names(script.speakers, script.scenes),
        "shown": shown_scenes(script.scenes),
        "rejected": [asdict(r) for r in script.rejected[:20]],
        "rejected_reasons": {k: {"rows": len(v), "lines": v[:10]} for k, v in reasons.items()},
        "recovered": script.recovered[:20],
        "speakers": targets,
        "all_speakers": script.speakers,
        "split": config.split,
        "split_seed": config.split_seed,
        **found,
        "leaked_share": round(leak["line_share"], 4),
        "leaked_ngrams": round(leak["ngram_share"], 4),
        "leak_lines": leak["lines"],
        "leak_ngrams": leak["ngrams"],
        "max_leak": config.max_leak,
        "leaked": [f"{line.speaker}: {line.text}" for line in leak["leaked"][:20]],
        "similar": [f"{line.speaker}: {line.text}" for line in leak["similar"][:20]],
        "random_rows_leaked_share": round(
            random_rows_leak(script.scenes, config.valid_share + config.test_share, seed=config.split_seed), 4
        ),
        "running_gags": running_gags(script.scenes)[:20],
        "data_sha256": {n: hashlib.sha256(scenes_text(p).encode("utf8")).hexdigest() for n, p in parts.items()},
        "provenance": provenance(),
    }
    return Prepared(parts, report, script.rejected, config.context_lines)


# %%
#| export
def write_prepared(
    made: Prepared,  # what `read_and_split` gave
    out,  # the folder
):
    "Write prepared data; report and manifest come last, so a folder with them is whole."
    out, names = open_folder(out), ["rejected.csv", "report.json"]
    unseal(out)
    for name, part in made.parts.items():
        write_text(out / f"{name}.jsonl", scenes_text(part))
        write_json(out / f"{name}_samples.json", samples_of(part, made.report["speakers"], made.context_lines))
        names += [f"{name}.jsonl", f"{name}_samples.json"]
    with open(out / "rejected.csv", "w", newline="", encoding="utf8") as f:
        csv.writer(f).writerows([("line", "reason", "text"), *((r.row, r.reason, r.text) for r in made.rejected)])
    save_plots(made.parts, out)
    write_json(out / "report.json", made.report)
    seal(out, names)


def prepare(
    config: PrepareConfig,  # the settings
) -> dict:  # the report, also written as report.json; ValueError or a file error, in one sentence, if it cannot be done
    "Read, split and write a script; returns and writes the report."
    with hold_folder(config.out, "prepare"):
        made = read_and_split(config)
        write_prepared(made, config.out)
    return made.report


def save_plots(
    parts: dict,  # split name -> `Scene`s
    out: Path,  # the folder
):
    "Write speakers.png and lengths.png."
    import matplotlib.pyplot as plt

    for figure, name in ((plot_speakers(parts).figure, "speakers"), (plot_lengths(parts)[0].figure, "lengths")):
        figure.savefig(out / f"{name}.png", dpi=110)
        plt.close(figure)


# %% tags=["example"]
made = read_and_split(PrepareConfig(speakers="Homer Simpson"))
with tempfile.TemporaryDirectory() as folder:
    write_prepared(made, folder)
    names = sorted(p.name for p in Path(folder).iterdir())
print(", ".join(names))
{name: made.report[name] for name in ("speakers", "leaked_share", "random_rows_leaked_share")}

# %% [markdown]
# Numbers in a JSON file are for programs. A person reads:

# %%
#| export
KIND_WORDS = {
    "spoken": "spoken lines",
    "heading": "headings",
    "direction": "directions",
    "wordless": "without words",
    "continuation": "going on with a line",
    "cue": "cues",
    "note": "notes and titles",
}


def some(
    items: list,  # numbers or words
    most: int = 8,  # how many are named
) -> str:  # with "..." where there are more
    "The first of a list."
    return ", ".join(map(str, items[:most])) + (" ..." if len(items) > most else "")


def account_text(
    report: dict,  # what `prepare` returned
) -> list:  # rows for people
    "What was read, and what was left out, and why."
    r, a = report, report["account"]
    rows = [
        f"{r['script']}, read as {r['format']} in {r['encoding']}",
        f"  {a['rows']:,} rows = {a['kept']:,} kept + {a['recovered']:,} recovered + {a['rejected']:,} rejected",
        "  used: " + ", ".join(f"{a[k]:,} {words}" for k, words in KIND_WORDS.items() if a.get(k)),
    ]
    if r["recovered"]:
        rows.append(f"  recovered: lines {some(r['recovered'], 10)}{' ...' * (a['recovered'] > 20)}")
    rows += [
        f"  rejected: {x['rows']} x {why} (line{'s'[: x['rows'] > 1]} {some(x['lines'])})"
        for why, x in r["rejected_reasons"].items()
    ]
    if a["rejected"]:
        rows.append("  all of them, with their text: rejected.csv")
    rows += [f"  note: {n}" for n in r["notes"]]
    return [*rows, *(f"  WARNING: {x}; are these scenes of yours?" for x in r["doubts"])]


def people_text(
    report: dict,  # what `prepare` returned
) -> list:  # rows for people
    "Who speaks how much, which names were joined, and scenes as they were read."
    r, names = report, list(report["all_speakers"].items())
    rows = [f"{len(names)} characters; most lines: {', '.join(f'{n} {c:,}' for n, c in names[:6])}"]
    for name, others in list(r["merged"].items())[:6]:
        rows.append(f"  {name} is also spelt {', '.join(f'{o} ({n:,})' for o, n in list(others.items())[:4])}")
    rows += [f"  {len(r['merged']) - 6} more names have several spellings"] * (len(r["merged"]) > 6)
    rows += [
        f"  one person? {a} and {b}; if so, say it: --aliases FILE with a row {a} = {b}" for a, b in r["alike"][:3]
    ]
    rows.append("scenes as they were read:")
    for s in r["shown"]:
        rows.append(f"  {s['location'] or 'no place'} (episode {s['episode']}, row {s['row']})")
        rows += [f"    {x[:100]}{'...' * (len(x) > 100)}" for x in s["lines"]] + [f"    and {s['more']} more"] * (
            s["more"] > 0
        )
    return rows


def report_text(
    report: dict,  # what `prepare` returned
) -> str:  # some lines for people
    "The report in words."
    r = report
    rows = [
        *account_text(r),
        *people_text(r),
        f"{r['unit']} of a line: median {r['words_per_line']['median']:g}, longest {r['words_per_line']['longest']}; "
        f"lines of a scene: median {r['lines_per_scene']['median']:g}, longest {r['lines_per_scene']['longest']}",
        f"to learn: {', '.join(r['speakers']) if r['speakers'] else 'every character'}; "
        f"split by {r['split']}, seed {r['split_seed']}",
        f"  {'':5} {'episodes':>9} {'scenes':>7} {'lines':>8} {'to learn':>9}",
    ]
    rows += [
        f"  {n:5} {s['episodes']:>9,} {s['scenes']:>7,} {s['lines']:>8,} {s['learned_lines']:>9,}"
        for n, s in r["sets"].items()
    ]
    rows += [f"  WARNING: {', '.join(m)} to learn, but without a line in {n}" for n, m in r["missing"].items()]
    least, run = (2 * MIN_WORDS, 2 * NGRAM) if r["unit"] == "letters" else (MIN_WORDS, NGRAM)
    rows += [
        f"leak: {r['leaked_share']:.1%} of {r['leak_lines']:,} held-out lines ({least} {r['unit']} or more) "
        f"and {r['leaked_ngrams']:.1%} of {r['leak_ngrams']:,} {run}-grams stand in train (limit {r['max_leak']:.1%});",
        f"  a split of random rows, as in the seed, would leak {r['random_rows_leaked_share']:.1%} of such lines",
    ]
    rows += [f"  leaked: {line[:90]}" for line in r["leaked"][:5]]
    if r["running_gags"]:
        gags = (f"{g['text'][:50]!r} in {g['episodes']} episodes" for g in r["running_gags"][:5])
        rows.append("running gags: " + "; ".join(gags))
    return "\n".join(rows)


# %% [markdown]
# What comes later reads the folder back. Its files must still be those that the report describes.

# %%
#| export
def load_data(
    folder,  # what `prepare` wrote
) -> tuple:  # (split name -> `Scene`s, report); FileNotFoundError or ValueError if it holds no prepared data
    "Read prepared data back, and make sure that it is what was written."
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(
            f"no prepared data in {folder}; make some with: "
            f"simpsons-llm prepare --script FILE --out {shlex.quote(str(folder))}"
        )
    require_sealed(folder, "prepared data", "run prepare again", ["report.json"])
    report = read_json(folder / "report.json", dict, "run prepare again")
    hashes = report.get("data_sha256")
    require(isinstance(hashes, dict), f"{folder / 'report.json'} is no report of prepare; run prepare again")
    for name in SPLITS:
        require(
            (folder / f"{name}.jsonl").is_file() and sha256(folder / f"{name}.jsonl") == hashes.get(name),
            f"{folder / f'{name}.jsonl'} is missing or not what prepare wrote; run prepare again",
        )
    return {name: [scene_from_dict(d) for d in read_jsonl(folder / f"{name}.jsonl")] for name in SPLITS}, report


# %% [markdown]
# A folder whose files were changed afterwards is refused, since its report would no longer be true:

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    prepare(PrepareConfig(out=folder, speakers="Homer Simpson"))
    with open(Path(folder) / "test.jsonl", "a") as f:
        f.write("\n")
    try:
        load_data(folder)
        raise AssertionError
    except ValueError as e:
        assert "test.jsonl" in str(e)
        print(str(e).replace(folder, "FOLDER"))
try:
    load_data("nowhere")
    raise AssertionError
except FileNotFoundError as e:
    assert "prepare" in str(e)
    print(e)

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
counts = Counter(line.speaker for p in parts.values() for s in p for line in s.lines).most_common()
print(
    f"{counts[0][0]} has {counts[0][1]} lines; "
    f"character {min(15, len(counts))} has {counts[:15][-1][1]}; {len(counts)} characters speak."
)

# %% [markdown]
# Lines are short and scenes are long, in words here, since tokens belong to [text for the model](15_prompt.ipynb):

# %%
plot_lengths(parts)
plt.show()
print(
    f"half of the lines have {report['words_per_line']['median']:g} words or fewer, "
    f"95 of 100 have at most {report['words_per_line']['p95']}; half of the scenes have "
    f"{report['lines_per_scene']['median']:g} lines or fewer, the longest {report['lines_per_scene']['longest']}."
)
