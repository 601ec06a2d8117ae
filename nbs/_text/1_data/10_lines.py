# %%
#| default_exp data.lines

# %% [markdown]
# # Lines, scenes and names
#
# > Who says what, where, until the place changes; with an account of every row, and a look at whether it is dialogue at all.
#
# A script is text that people typed: episodes, places, speakers, words, and now and then a broken row. A model that talks like Homer needs from it the *scenes*: who says what, in which order, until the place changes. This chapter has the records for that, the account of what became of each row, the names under which one person speaks, and the *gate*: a few shares that tell dialogue from nonsense that was read as dialogue. Reading files is left to the next three chapters: [tables](11_tables.ipynb), [typed scripts](12_text.ipynb) and [any script](13_formats.ipynb).

# %%
#| export
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape
from operator import attrgetter
from typing import NamedTuple
from zlib import crc32

# %%
#| hide
import pandas as pd


# %% [markdown]
# ## Three small records
#
# A `Line` is what somebody says (a named tuple, since there are many of them and a tuple is made three times as fast as a frozen dataclass). A `Scene` is a run of lines in one place. A `Rejected` row remembers where it stood in the file and why it was not used.

# %%
#| export
class Line(NamedTuple):
    "One spoken line."

    episode: int  # episode number
    number: int  # order within the episode
    speaker: str  # who says it, e.g. "Homer Simpson"
    text: str  # what is said, on one line
    location: str = ""  # where
    row: int = 0  # line of the file it comes from, counted from 1
    learn: bool = True  # False: known only as context of other lines, never a target


@dataclass(frozen=True, slots=True)
class Scene:
    "Lines in one place, in order; as text, a script that can be read again."

    episode: int  # episode number
    index: int  # order of the scene within the episode, counted from 0
    location: str  # where
    lines: tuple  # the `Line`s

    def __str__(self):
        return "\n".join([f"[{self.location or 'Scene'}]", *(f"{x.speaker}: {x.text}" for x in self.lines)])

    def _repr_html_(self):
        said = (
            f'<div><b style="color:{speaker_colour(x.speaker)}">{escape(x.speaker)}</b>&ensp;{escape(x.text)}</div>'
            for x in self.lines
        )
        return f"<div><i>{escape(self.location or 'Scene')}</i></div>{''.join(said)}"


def speaker_colour(
    name: str,  # who speaks
) -> str:  # as CSS has it, to be read on white and on black
    "A colour that a name always has."
    return f"hsl({crc32(name.encode('utf8', 'replace')) % 360} 65% 45%)"


@dataclass(frozen=True, slots=True)
class Rejected:
    "A row that was not used."

    row: int  # line of the file where it begins, counted from 1
    reason: str  # why, in a few words
    text: str  # what stood there, shortened


# %% [markdown]
# ## Scenes
#
# A scene ends at a heading, where the location changes, or with the episode. Rows may come in any order (the public copies are not sorted), so they are sorted by episode and number first.

# %%
#| export
def scenes_of(
    lines: list,  # spoken `Line`s, in any order
    headings: list | tuple = (),  # heading rows as `Line`s: a scene begins at each
) -> list:  # `Scene`s in order; a scene has at least one line
    "Cut lines into scenes."
    scenes: list[Scene] = []
    current: list[Line] = []
    index: dict = {}  # episode -> its newest scene
    place = None
    cuts = {(h.episode, h.number, h.row) for h in headings}

    def close():
        if not current:
            return
        first = current[0]
        index[first.episode] = index.get(first.episode, -1) + 1
        scenes.append(Scene(first.episode, index[first.episode], first.location, tuple(current)))
        current.clear()

    for x in sorted([*headings, *lines], key=attrgetter("episode", "number", "row")):
        here = (x.episode, x.location)
        if here != place:
            close()
        place = here
        if (x.episode, x.number, x.row) in cuts:
            close()
        else:
            current.append(x)
    close()
    return scenes


# %% tags=["check"]
def said(episode, number, location):
    return Line(episode, number, "Homer Simpson", f"line {number}", location)


lines = [
    said(1, 5, "Home"),
    said(1, 1, "Moe's Tavern"),
    said(1, 2, "Moe's Tavern"),
    said(1, 4, "Moe's Tavern"),
    said(2, 1, "Home"),
]
scenes = scenes_of(lines, headings=[Line(1, 3, "", "(Moe's Tavern: int. - night)", "Moe's Tavern")])
# a heading between 2 and 4, another place at 5, another episode
assert [[line.number for line in s.lines] for s in scenes] == [[1, 2], [4], [5], [1]] and [s.index for s in scenes] == [
    0,
    1,
    2,
    0,
]

# %% [markdown]
# A scene shows itself as people read one, each speaker in a colour of his own; `print` gives the text of a script.

# %% tags=["example"]
about_a_tie = [
    ("Marge Simpson", "The dog is wearing your tie."),
    ("Homer Simpson", "It looks <b>good</b> on him."),
    ("Marge Simpson", "He has the interview."),
]
tie = Scene(1, 0, "Simpson Home", tuple(Line(1, i, *said) for i, said in enumerate(about_a_tie)))
tie

# %% tags=["check"]
assert str(tie).splitlines()[:2] == ["[Simpson Home]", "Marge Simpson: The dog is wearing your tie."]
shown = tie._repr_html_()
assert "<b>good" not in shown and shown.count(speaker_colour("Marge Simpson")) == 2

# %% [markdown]
# ## The script, with its account
#
# What a reader gets is a `Script`: scenes, and an account of all rows that always adds up. A row is *kept* as it stands, *recovered* although it was damaged, or *rejected*. What was kept or recovered is of some kind: spoken lines, headings, directions (what somebody does), rows without words, notes that a writer hid, and, in text files, rows that go on with the line before. Of each kind the letters are counted, too: a hundred short names that were taken for speech weigh less than one page that was not.

# %%
#| export
KINDS = ("spoken", "heading", "direction", "wordless", "continuation", "cue", "note")  # what a row can be, but rejected


def size_of(
    text: str,  # any text
) -> int:  # its letters and marks
    "How much stands in a text: everything but blanks."
    return len(text) - text.count(" ")


class Tally:
    "Rows as a reader meets them, by kind."

    def __init__(self):
        self.counts: dict[str, int] = dict.fromkeys(KINDS, 0)  # rows of each kind
        self.sizes: dict[str, int] = dict.fromkeys((*KINDS, "rejected"), 0)  # letters of each kind
        self.rejected: list[Rejected] = []

    def add(
        self,
        kind: str,  # one of `KINDS`
        text: str = "",  # what stands there
        rows: int = 1,  # rows of the file that it takes
    ):
        "Count a row that was understood."
        self.counts[kind] += rows
        self.sizes[kind] += size_of(text)

    def reject(
        self,
        row: int,  # line of the file where it begins, counted from 1
        reason: str,  # why it cannot be used, in a few words
        text: str,  # what stands there
    ):
        "Count a row that was not."
        self.sizes["rejected"] += size_of(text)
        self.rejected.append(Rejected(row, reason, text[:120]))


# %%
#| export
@dataclass
class Script:
    "Scenes of a script file and the account of its rows."

    path: str  # where it was read from
    encoding: str  # how its text was decoded
    scenes: list  # `Scene`s in order
    counts: dict  # rows of each kind: spoken, heading, direction, wordless, and so on
    rejected: list = field(default_factory=list)  # `Rejected` rows
    recovered: list = field(default_factory=list)  # lines of the file where recovered rows begin
    notes: list = field(default_factory=list)  # what a person should know, a sentence each
    format: str = "table"  # a key of `READERS`
    sizes: dict = field(default_factory=dict)  # letters of each kind, and of rejected rows; empty: not counted
    merged: dict = field(default_factory=dict)  # name -> {its other spellings: lines}
    doubts: list = field(default_factory=list)  # what does not look like dialogue, a phrase each

    @classmethod
    def of(
        cls,
        where: str,  # the file's name
        scenes: list,  # `Scene`s in order
        tally: Tally,  # what became of its rows
        format: str,  # a key of `READERS`
        notes: Iterable[str] = (),  # what a person should know, a sentence each
        recovered: Iterable[int] = (),  # lines of the file where recovered rows begin
    ) -> "Script":
        "What a reader gives."
        return cls(where, "", scenes, tally.counts, tally.rejected, [*recovered], [*notes], format, tally.sizes)

    @property
    def lines(self) -> list:
        "All spoken lines, in order."
        return [line for s in self.scenes for line in s.lines]

    @property
    def speakers(self) -> dict:
        "Each speaker's number of lines, most first."
        return dict(Counter(line.speaker for line in self.lines).most_common())

    def account(self) -> dict:
        "rows = kept + recovered + rejected, always; the kinds add up to kept + recovered."
        used = sum(self.counts.values())
        return {
            "rows": used + len(self.rejected),
            "kept": used - len(self.recovered),
            "recovered": len(self.recovered),
            "rejected": len(self.rejected),
            **self.counts,
        }


# %% [markdown]
# How a file is to be read, where a person knows better than the file:

# %%
#| export
@dataclass(frozen=True)
class Reading:
    "What a reader may be told."

    keep_directions: bool = False  # keep (STAGE DIRECTIONS) inside lines
    scene_break: str = "auto"  # auto; blank, blanks (two), heading; 20: every 20 lines; 30s, 5m, 2h: a pause
    columns: dict = field(default_factory=dict)  # speaker, text, episode ... -> name of the table's column


AUTO = Reading()  # nobody said anything: find out

# %% [markdown]
# ## Words and directions
#
# Text is brought onto one line. What somebody *does* stands in brackets of many kinds, between asterisks in chat and Markdown, in italics on saved pages: `(WIPING GLASS) Closed.`, `[burps]`, `{laughs}`, `*sighs*`, `（叹气）`. It is taken out of a line, since a character that answers in stage directions is no fun to talk to. But `I *really* mean it` is stress, not a direction: between asterisks or in italics only an aside goes, which begins the line or follows a full stop, and does not go on in small letters.

# %%
#| export
BRACKETS = ("()", "[]", "{}", "（）", "【】", "［］", "〔〕")  # which pairs enclose directions
INSIDE = re.compile("|".join(rf"{re.escape(x[0])}[^{re.escape(x)}]*{re.escape(x[1])}" for x in BRACKETS))
UNCLOSED = re.compile(r"(?<=\S)\s[(\[{（【［〔]\w+(?: \w+){0,3}$")  # a direction that ends a line without its bracket
STARRED = re.compile(
    r"(?<![\w*])(\*{1,3}|_{1,2})(?=[^\s*_])([^*_]*?[^\s*_])\1(?![\w*])|<(i|em)>([^<]*)</\3>", re.I | re.S
)


def clean(
    text: str,  # a field's text
) -> str:  # on one line, single spaces; "" for NA
    "One field as plain text."
    return "" if text == "NA" else " ".join(text.split())


clean_name = lru_cache(10_000)(clean)  # the same few names and places, again and again


def _aside(m: re.Match) -> str:
    "What becomes of *this*: nothing if it is an aside, else its words."
    said, before, after = m[2] or m[4] or "", m.string[: m.start()].rstrip(), m.string[m.end() :].lstrip()
    begins = not before or before[-1] in ".!?…:。！？"
    ends = not after or not (after[0].islower() or after[0] in ",;")
    return " " if begins and ends and (before or after or said[:1].islower()) else said


# %%
#| export
def without_directions(
    text: str,  # what somebody says
) -> str:  # the words alone
    "Take (STAGE DIRECTIONS), [these], {these}, *these* and <i>these</i> out of a line."
    if text.isalnum() or not re.search(r"[(\[{（【［〔*<_]", text):
        return text
    text = re.sub(r"[*_]+(?=[(\[{（【［〔])|(?<=[)\]}）】］〕])[*_]+", "", text)
    for _ in range(8):  # brackets within brackets, from the inside
        text, n = INSIDE.subn(" ", text)
        if not n:
            break
    text = UNCLOSED.sub("", text)
    if "*" in text or "<" in text or "_" in text:
        text = STARRED.sub(_aside, re.sub(r"<(i|em)>\s*</\1>", " ", text, flags=re.I))
    return clean(text)


def has_words(
    text: str,  # what somebody says
) -> bool:  # False for "", "(SIGHS)" and "..."
    "Whether anything is left to learn."
    return text[:1].isalnum() or bool(re.search(r"\w", without_directions(text)))


# %% tags=["example"]
for said in (
    "(WIPING GLASS) Closed. [burps]",
    "*sighs* Fine.",
    "I *really* mean it.",
    "走吧。（叹气）",
    "A {nod (slow)} yes.",
):
    print(f"{said:32} {without_directions(said)}")

# %% tags=["check"]
assert without_directions("(WIPING GLASS) Closed. (BEAT) Go home.") == "Closed. Go home." and clean("NA") == ""
assert without_directions("*laughs*") == "" and without_directions("*Never mind me!*") == "Never mind me!"
assert (
    without_directions("2 * 3 * 4 is x < y") == "2 * 3 * 4 is x < y" and without_directions("<i>(low)</i> No.") == "No."
)
worded = ("Pie.", "...pie", "(SIGHS) Oh", "(SIGHS)", "", "...!", "[*]")
assert [has_words(t) for t in worded] == [True] * 3 + [False] * 4


# %% [markdown]
# ## A conversation in a few rows
#
# The plainest form, in which prompts are given and samples keep their context: a name, a colon, what is said. A name ends at the first colon that a space follows, so `Channel 6: Live` is said by Channel 6, and `3:16` is no name. Where names are known already, the longest known one counts.

# %%
#| export
def split_name(
    text: str,  # such as "Moe Szyslak: Closed."
    known: set | tuple = (),  # names that are known
) -> tuple:  # (speaker, what is said); ("", text) where no speaker is named
    "Who says it, and what."
    ends = [m.start() for m in re.finditer(r":(?=\s|$)|：", text[:100])]
    named = [i for i in ends if text[:i].strip() in known] or [i for i in ends[:1] if 0 < len(text[:i].strip()) <= 60]
    return (text[: named[-1]].strip(), clean(text[named[-1] + 1 :])) if named else ("", clean(text))


def parse_lines(
    text: str,  # "Name: line" rows with newlines between
    known: set | tuple = (),  # names that are known
) -> list:  # (speaker, text) pairs; ("", text) where no speaker is named
    "Lines of a conversation as people write them."
    return [split_name(row.strip(), known) for row in text.splitlines() if row.strip()]


# %% tags=["example"]
parse_lines(
    "Marge Simpson: Homer, the dog is wearing your tie again.\n"
    "Homer Simpson: It suits him: he has an interview.\nTechnician: Two: Ready.",
    {"Technician: Two"},
)

# %% [markdown]
# ## One person, several spellings
#
# `Marla`, `MARLA`, `Marla [to Otto]`, `MARLA (V.O.)`, `MARLA (CONT'D)`, `@Marla`: nobody would call these six people, yet a count of names does, and each would learn a sixth of her. So a name is compared by its *key*: letters and digits alone, without case, marks, brackets, and the words that screenplays hang on a name. Names with one key are one speaker. That is certain; what only looks alike, as `Marla` and `Marla Quill`, may be two people, and is shown instead.

# %%
#| export
EXTENSION = re.compile(
    r"(?<![\s,–—-])[\s,–—-]+(?:V\.? ?O\.?|O\.? ?[SC]\.?|CONT(?:['’]|IN)?['’]?D\.?|CONTINUED|CONTINUING)$"
)  # what screenplays hang on a name, in capitals


@lru_cache(20_000)
def shown_name(
    name: str,  # a name as it stands in a file
) -> str:  # without brackets, marks and extensions; as it was if nothing would be left
    "A speaker's name as one would write it."
    plain = clean(INSIDE.sub(" ", name)).strip('*_`"“”:：@ ').replace("**", "")
    while plain != (plain := EXTENSION.sub("", plain)):
        pass
    return plain or clean(name)


@lru_cache(20_000)
def name_key(
    name: str,  # a name as it stands in a file, or as somebody typed it
) -> str:  # the same for all its spellings
    "Letters and digits of a name, without case; what is compared."
    plain = unicodedata.normalize("NFKC", shown_name(name)).casefold()
    marked = re.sub(r"['’.]", "", plain).replace("_", " ").replace("&", " and ")
    # a vowel sign, as in Hindi or Thai, is part of its letter
    letters = "".join(c if c.isalnum() or c in "+#" or unicodedata.category(c)[0] == "M" else " " for c in marked)
    return " ".join(letters.split()) or plain


# %% tags=["example"]
for name in (
    "MARLA (V.O.)",
    "Marla [to Otto]",
    "MARLA CONT'D",
    "@McPike",
    "Otto Brandt, Jr.",
    "OTTO BRANDT JR",
    "Ada_Quill",
):
    print(f"{name:18} {shown_name(name):18} {name_key(name)}")


# %% [markdown]
# Of several spellings the one with the most lines gives the name, but capitals only if there is nothing else: they are how a screenplay prints a name, not how one writes it.

# %%
#| export
def merge_spellings(
    speakers: dict,  # name as it stands in the file -> number of lines
) -> dict:  # name -> the spelling that all of its kind get
    "One name for each person who certainly is one."
    kinds: dict[str, list[str]] = {}
    for name in speakers:
        kinds.setdefault(name_key(name), []).append(name)
    found = {}
    for names in kinds.values():
        shown: Counter[str] = Counter()
        for name in names:
            shown[shown_name(name)] += speakers[name]
        best = max(shown, key=lambda n: (n != n.upper() or n == n.lower(), shown[n]))
        found.update(dict.fromkeys(names, best))
    return found


def rename(
    script: Script,  # a script as a reader gave it
    aliases: dict | None = None,  # other name's key -> name, from a person who knows
) -> Script:  # the same with one name for each person; `merged` says which spellings were joined
    "Join the spellings of each speaker."
    speakers = script.speakers
    told = {n: aliases[name_key(n)] for n in speakers if name_key(n) in aliases} if aliases else {}
    new = merge_spellings({n: k for n, k in speakers.items() if n not in told}) | told
    merged: dict[str, dict] = {}
    for old, name in new.items():
        if old != name:
            merged.setdefault(name, {})[old] = speakers[old]
    changed = {old for old, name in new.items() if old != name}
    if not changed:
        return script
    scenes = [
        replace(s, lines=tuple(x._replace(speaker=new.get(x.speaker, x.speaker)) for x in s.lines))
        if any(x.speaker in changed for x in s.lines)
        else s
        for s in script.scenes
    ]
    return replace(script, scenes=scenes, merged=merged)


# %% tags=["example"]
spelt = {"MARLA": 16, "Marla": 32, "Marla [to Otto]": 4, "OTTO BRANDT JR.": 3, "Juno": 9}
merge_spellings(spelt)

# %% [markdown]
# What is not certain is listed for a person to decide: a name that is the first or last words of another, and names that differ in one letter.

# %%
#| export
TITLES = {"mr", "mrs", "ms", "miss", "dr", "prof", "professor", "captain", "capt", "chief", "officer", "sir", "lady"}


def alike_names(
    speakers: dict,  # name -> number of lines
    scenes: list | tuple = (),  # `Scene`s: who speaks in one scene with another is somebody else
    most: int = 5,  # how many pairs
    among: int = 300,  # how many names are looked at, those with the most lines
) -> list:  # (name with more lines, name with fewer) pairs, most lines first
    "Pairs of names that may be one person."
    names = list(speakers)[:among]
    words = {n: tuple(w for w in name_key(n).split() if w not in TITLES) or (name_key(n),) for n in names}

    def one_letter_off(a: str, b: str) -> bool:
        if min(len(a), len(b)) < 5 or abs(len(a) - len(b)) > 1 or a == b or re.search(r"\d", a + b):
            return False
        i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        return a[i + 1 :] == b[i + 1 :] or a[i:] == b[i + 1 :] or a[i + 1 :] == b[i:]

    found = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            x, y = sorted((words[a], words[b]), key=len)
            part = len(x) < len(y) and x in (y[: len(x)], y[-len(x) :]) and "and" not in y
            if part or words[a] == words[b] or one_letter_off(" ".join(words[a]), " ".join(words[b])):
                found.append((a, b))
    # a part of several names, such as a family's, names nobody
    parts = Counter(min(p, key=lambda n: len(words[n])) for p in found)
    left = [p for p in found if parts[min(p, key=lambda n: len(words[n]))] == 1]
    for there in ({x.speaker for x in s.lines} for s in scenes if left):
        left = [p for p in left if not there.issuperset(p)]
    return left[:most]


# %% tags=["check"]
assert alike_names({"Marla": 9, "Otto": 8, "Marla Quill": 5, "Dr. Pike": 3, "Pike": 2, "Juno": 1}) == [
    ("Marla", "Marla Quill"),
    ("Dr. Pike", "Pike"),
]
assert alike_names({"Homer Simpson": 9, "Marge Simpson": 8, "Simpson": 3}) == [] and alike_names(
    {"Smithers": 2, "Smthers": 1}
)
apart = scenes_of([Line(1, i, n, "Hi.") for i, n in enumerate(["Pike", "Dr. Pike"])])
assert alike_names({"Dr. Pike": 3, "Pike": 2}, apart) == [] != alike_names({"Dr. Pike": 3, "Pike": 2})
assert set(merge_spellings(spelt).values()) == {"Marla", "OTTO BRANDT JR.", "Juno"}
five = {"Al": 2, "AL (V.O.)": 1, "Bo": 2}
lines = [Line(1, i, n, "Hi.", "") for i, n in enumerate(n for n, k in five.items() for _ in range(k))]
joined = rename(Script("x", "", scenes_of(lines), {"spoken": 5}))
assert joined.speakers == {"Al": 3, "Bo": 2} and joined.merged == {"Al": {"AL (V.O.)": 1}}
assert rename(joined, {"bo": "Bo Quill", "al": "Al"}).speakers == {"Al": 3, "Bo Quill": 2}

# %% [markdown]
# ## Is it dialogue?
#
# A reader that expects `Name: line` finds it in the strangest files: in verse, in recipes, in a log. What it makes of them adds up, row by row, and is nonsense. But nonsense looks different from dialogue, whatever the format: most rows were not understood; most names speak once; names are as long as sentences; scenes have one line; hardly a letter of the file is speech. These shares are measured, and what is beyond all dialogue is refused.

# %%
#| export
LABELS = set(
    "info warning warn error debug trace critical fatal name phone tel fax email e-mail mobile address date time total "
    "price invoice order subject cc id url link image version key value type size status default description step "
    "note tip ingredients method directions instructions serves title category tags author license summary traceback "
    "fixed added changed removed deprecated feature bug pros cons rating color margin padding".split()
)  # what stands before a colon in logs, letters, forms and recipes


LEVELS = {"info", "warning", "warn", "error", "debug", "trace", "fatal"}


def is_label(
    key: str,  # a `name_key`
) -> bool:
    "Whether a log or a form would have it before a colon."
    return key in LABELS or key.split(" ", 1)[0] in LEVELS or bool(re.fullmatch(r"\w+(?:error|exception)", key))


def measure(
    script: Script,  # what a reader made of a file
) -> dict:  # shares 0..1, but `lines`, `names`, `scenes` (counts) and `name_words` (median over lines)
    "How much a reading looks like dialogue."
    rows, speakers = script.account(), script.speakers
    lines, scenes = sum(speakers.values()), [s for s in script.scenes if s.lines]
    once = [n for n, k in speakers.items() if k == 1]
    total = sum(script.sizes.values())
    lengths = [len(n.split()) if " " in n else len(n) / 8 for n, k in speakers.items() for _ in range(min(k, 20))]
    return {
        "rejected": rows["rejected"] / max(rows["rows"], 1),
        "speech": script.sizes.get("spoken", 0) / total if total else 1.0,
        "lines": lines,
        "names": len(speakers),
        "names_once": len(once) / max(len(speakers), 1),
        "lines_once": len(once) / max(lines, 1),
        "labels": sum(k for n, k in speakers.items() if is_label(name_key(n))) / max(lines, 1),
        "name_words": statistics.median(lengths) if lengths else 0.0,
        "scenes": len(scenes),
        "scenes_one_line": sum(len(s.lines) == 1 for s in scenes) / max(len(scenes), 1),
    }


# %% [markdown]
# Two limits for each share: from the first on a reading is *doubtful* and shown, from the second on it is *refused*. They were set between what true scripts of all formats give and what wrong readings of them give; [your own script](../0_start/02_your_script.ipynb) has the figures. A share of few things means nothing, so each has its least number.

# %%
#| export
class Limit(NamedTuple):
    "From where on a share is doubtful, and from where on it is refused."

    doubtful: float  # from here on it is told
    refused: float  # from here on nothing is written
    least: tuple  # (which count of `measure`, its least number) for the share to mean anything
    words: str  # what is wrong, with {} for the share


LIMITS = {
    "rejected": Limit(0.2, 0.5, ("rows", 4), "{:.0%} of the rows were not understood"),
    "silent": Limit(0.75, 0.95, ("rows", 10), "{:.0%} of the letters in the file are not speech"),
    "lines_once": Limit(0.3, 0.5, ("lines", 16), "{:.0%} of the lines are said by names that speak once"),
    "scenes_one_line": Limit(0.4, 0.6, ("scenes", 5), "{:.0%} of the scenes have a single line"),
    "names_once": Limit(1.0, 2.0, ("rows", 12), "nobody speaks twice ({:.0%} of the names speak once)"),
    "labels": Limit(0.25, 0.5, ("lines", 2), "{:.0%} of the lines stand behind labels of logs, forms or recipes"),
    "name_words": Limit(4, 6, ("lines", 4), "the names of speakers have {:.0f} words (median)"),
}


def doubts(
    script: Script,  # what a reader made of a file
) -> tuple:  # (whether it is refused, what is wrong: a phrase each)
    "What does not look like dialogue."
    found = measure(script)
    found |= {"silent": 1 - found["speech"], "rows": script.account()["rows"]}
    wrong = {name: x for name, x in LIMITS.items() if found[x.least[0]] >= x.least[1] and found[name] >= x.doubtful}
    refused = any(found[name] >= x.refused for name, x in wrong.items())
    return refused, [x.words.format(found[name]) for name, x in wrong.items()]


# %% tags=["example"]
def read_as(*rows):  # (speaker, text) pairs in one scene
    tally = Tally()
    for _, text in rows:
        tally.add("spoken", text)
    return Script.of("x", scenes_of([Line(1, i, who, text, "") for i, (who, text) in enumerate(rows)]), tally, "text")


talk = read_as(*[("Ada", "Is it on?"), ("Otto", "It was on.")] * 5)
recipe = read_as(*[(f"Step {i}, stir", "until smooth.") for i in range(20)])
pd.DataFrame({"talk": measure(talk), "recipe": measure(recipe)}).T.round(2)

# %% tags=["example"]
doubts(talk), doubts(recipe)

# %% tags=["check"]
assert doubts(talk) == (False, []) and doubts(recipe)[0]

# %% [markdown]
# Where several readers could be meant, the one whose reading looks most like dialogue is taken:

# %%
#| export
NAMED = re.compile(r"[\w.'’-]+(?: [\w.'’-]+){0,3}[:：]\s?\S")


def quality(
    script: Script,  # what a reader made of a file
) -> float:  # 0..1
    "How much of a file became speech that looks like dialogue."
    m = measure(script)
    if not m["lines"]:
        return 0.0
    # speech that begins with a name was cut in the wrong places
    m["named"] = sum(bool(NAMED.match(x.text)) for x in script.lines) / m["lines"]
    long = (1 - m["named"]) / (1 + max(0.0, m["name_words"] - 3))
    alone = m["scenes_one_line"] if m["scenes"] > 2 else 0.1 * (m["scenes"] == 1 and m["lines"] >= 20)
    return m["speech"] * (1 - m["rejected"]) * (1 - m["lines_once"] * min(1, m["lines"] / 16)) * (1 - alone / 2) * long


# %% tags=["example"]
round(quality(talk), 3), round(quality(recipe), 3)
