# %%
#| default_exp data.formats

# %% [markdown]
# # Reading a script
#
# > One call for any script: tables, plain text, Fountain screenplays and the samples of earlier projects.
#
# People keep scripts in many forms. Whatever the form, this chapter ends with the same scenes and the same account of all rows; nothing is dropped silently. Tables are read in [lines, scenes and the public table](10_lines.ipynb); here come plain text (`Speaker: line`), Fountain screenplays, and the JSON samples (`p/c/l` or `instruction/input/output`) that earlier fine-tuning projects use. What the words mean to a model is told in [text for the model](13_prompt.ipynb).

# %%
#| export
import json
import re
import string
from collections import Counter
from operator import attrgetter
from pathlib import Path

import simpsons_llm
from simpsons_llm.data.lines import (
    HINT,
    Line,
    Rejected,
    Scene,
    Script,
    clean,
    decode,
    has_words,
    read_table,
    scenes_of,
    without_directions,
)
from simpsons_llm.machine.job import collector_off, require

# %%
#| hide
import tempfile

import pandas as pd

from simpsons_llm.data.lines import COLUMNS

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## Plain text
#
# The form in which people type dialogue. A blank line ends a scene, and a line in brackets names the next one's place:
#
# ```
# [Moe's Tavern]
# Moe Szyslak: What'll it be?
# Homer Simpson: Surprise me.
#   No, wait. Beer.
# ```
#
# An indented row goes on with the line before it; a row in parentheses is a direction; `[Episode 2]` begins an episode, so that a long text can be split by episode. A name ends at the first colon that a space follows, so `Channel 6: Live` is said by Channel 6, and `3:16` is no name. Where names are known already, the longest known one counts.

# %%
#| export
EPISODE = re.compile(r"\W*(?:season\s+\d+\W+)?episode\s+(\d+)\s*(?:[:\]–—-].*)?", re.I)


def split_name(
    text: str,  # such as "Moe Szyslak: Closed."
    known: set | tuple = (),  # names that are known
) -> tuple:  # (speaker, what is said); ("", text) where no speaker is named
    "Who says it, and what."
    ends = [m.start() for m in re.finditer(r":(?=\s|$)", text[:100])]
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
# Some people put a blank line after *every* line. In such a file one blank line means nothing, and two end a scene.

# %%
#| export
def read_text(
    text: str,  # a whole text file
    where: str,  # its name, for errors
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> Script:  # scenes and account
    "Read `Speaker: line` rows."
    counts: Counter[str] = Counter()
    rows, lines, breaks, rejected = text.split("\n"), [], [], []
    filled = [bool(r.strip()) for r in rows]
    pairs, together = sum(filled), sum(a and b for a, b in zip(filled, filled[1:]))
    spaced = pairs > 3 and together < pairs / 10  # hardly two rows stand together
    # open_at: indentation of the line that may go on
    episode, location, empty, open_at = 1, "", 0, None
    for row, raw in enumerate(rows, 1):
        text, indent = " ".join(raw.split()), len(raw) - len(raw.lstrip())
        if not text:
            empty += 1
            if empty > spaced:
                breaks.append(Line(episode, row, "", "", location, row))
                open_at = None
            continue
        empty = 0
        if m := EPISODE.fullmatch(text):
            episode, location, open_at = int(m[1]), "", None
            counts["heading"] += 1
        elif text[0] + text[-1] == "[]":
            location, open_at = text[1:-1].strip(), None
            counts["heading"] += 1
            breaks.append(Line(episode, row, "", text, location, row))
        elif text[0] + text[-1] == "()":
            counts["direction"] += 1
        elif open_at is not None and indent > open_at:
            more = text if keep_directions else without_directions(text)
            lines[-1] = lines[-1]._replace(text=clean(f"{lines[-1].text} {more}"))
            counts["continuation"] += 1
        else:
            speaker, said = split_name(text)
            speaker = without_directions(speaker)
            if not keep_directions:
                said = without_directions(said)
            open_at = None
            if not speaker:
                rejected.append(
                    Rejected(
                        row, "no speaker is named; expected 'Speaker: line', '[Place]' or '(direction)'", text[:120]
                    )
                )
            elif not has_words(said):
                counts["wordless"] += 1
            else:
                lines.append(Line(episode, row, speaker, said, location, row))
                counts["spoken"] += 1
                open_at = indent
    notes = ["every line is followed by a blank one, so two blank lines end a scene here"] * spaced
    return Script(
        where,
        "",
        scenes_of(lines, breaks),
        {k: counts[k] for k in ("spoken", "heading", "direction", "wordless", "continuation")},
        rejected,
        [],
        notes,
        "text",
    )


# %% tags=["example"]
typed = """[Moe's Tavern]
Moe Szyslak: What'll it be?
Homer Simpson: (STARES AT MENU) Surprise me.
  No, wait. Beer.

(The door opens. Marge stands in it.)
Marge Simpson: Homer?
Homer looks at the ceiling.
"""
plain = read_text(typed, "bar.txt")
for s in plain.scenes:
    print(s.location, [f"{line.speaker}: {line.text}" for line in s.lines])
plain.account(), plain.rejected

# %% tags=["check"]
assert (
    len(plain.scenes) == 2
    and plain.scenes[0].lines[1].text == "Surprise me. No, wait. Beer."
    and plain.rejected[0].row == 8
)
spread = read_text("\n\n".join(["[Home]", "Bart: A.", "Lisa: B.", "Bart: C.", "", "Lisa: D."]), "x.txt")
assert [len(s.lines) for s in spread.scenes] == [3, 1] and spread.notes
two = read_text("[Episode 1]\nBart: A.\n\n[Episode 2: The Frogs]\nLisa: B.", "x.txt")
assert [s.episode for s in two.scenes] == [1, 2]

# %% [markdown]
# ## Fountain
#
# Screenwriters use Fountain, plain text in which the layout says what a row is ([its syntax](https://fountain.io/syntax)): scene headings begin with `INT.` or `EXT.`, a name in capitals with text below it is a cue, and everything else is action. Marks force what layout cannot say: `.` a heading, `@` a cue, `!` action. Names come in capitals because the format wants them so; here they are written as in the other formats.

# %%
#| export
PLACE = re.compile(r"(?:INT\.?/EXT|EXT\.?/INT|I/E|INT|EXT|EST)(?:\.|\s)\s*(.*)", re.I)
TITLE = re.compile(
    r"(?:title|credit|authors?|source|draft date|date|contact|copyright|notes|revision|format)\s*:", re.I
)


def fountain_place(
    text: str,  # a row
) -> str | None:  # the place; None if the row is no scene heading
    "The place that a scene heading names."
    m = PLACE.fullmatch(text)
    if text[:1] == "." and text[1:2] not in ("", "."):
        place = text[1:]
    elif m:
        place = m[1]
    else:
        return None
    place = re.sub(r"\s*#[^#]*#\s*$", "", PLACE.sub(r"\1", place))
    return string.capwords(re.split(r"\s+[-–—]+\s+", place)[0]) or "Scene"


def fountain_cue(
    text: str,  # a row with a blank one above it and text below it
) -> str | None:  # the speaker; None if the row is no cue
    "The speaker that a cue names."
    name = without_directions(text.removesuffix("^").strip()).strip()
    if name[:1] == "@":
        return name[1:].strip() or None
    return (
        string.capwords(name)
        if name == name.upper() and re.search(r"[^\W\d_]", name) and name[-1] not in ":.!?"
        else None
    )


# %%
#| export
def read_fountain(
    text: str,  # a whole Fountain file
    where: str,  # its name, for errors
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> Script:  # scenes and account; a spoken block is one line
    "Read a screenplay in Fountain."

    # comments leave their line ends, so that rows keep their numbers
    def hide(m):
        return re.sub(r"[^\n]", "", m[0])

    rows = re.sub(r"\[\[.*?\]\]", hide, re.sub(r"/\*.*?(?:\*/|\Z)", hide, text, flags=re.S), flags=re.S).split("\n")
    counts = Counter({k: 0 for k in ("spoken", "heading", "direction", "wordless", "continuation", "cue", "note")})
    lines: list[Line] = []
    breaks: list[Line] = []
    rejected: list[Rejected] = []
    # above: is the row above blank?
    episode, location, speaker, begun, pending, above = 1, "", None, False, "", True
    title = bool(TITLE.match(next((r.strip() for r in rows if r.strip()), "")))
    for row, raw in enumerate(rows, 1):
        plain = " ".join(raw.split())
        if not plain:
            if speaker and raw.startswith("  "):
                continue  # two spaces: the speech goes on
            title = title and not counts["note"]  # the title page ends at its first blank row
            speaker, above, pending = None, True, ""
            continue
        blank_above, above = above, False
        below = row < len(rows) and bool(rows[row].strip())
        if title:
            counts["note"] += 1
        elif speaker:
            text = re.sub(r"(?<!\\)[*_]+", "", plain.removeprefix("~")).replace("\\*", "*").replace("\\_", "_").strip()
            if text[:1] + text[-1:] == "()":
                counts["direction"] += 1
                pending = f"{text} " if keep_directions else ""
                continue
            text, pending = pending + (text if keep_directions else without_directions(text)), ""
            if not has_words(text):
                counts["wordless"] += 1
            elif begun:
                lines[-1] = lines[-1]._replace(text=f"{lines[-1].text} {text}")
                counts["continuation"] += 1
            else:
                lines.append(Line(episode, row, speaker, text, location, row))
                counts["spoken"] += 1
                begun = True
        elif plain[0] == "#":
            m = EPISODE.fullmatch(plain)
            counts["note"] += 1
            if m:
                episode, location = int(m[1]), ""
        elif plain[0] == "=":
            counts["note"] += 1
        elif plain[0] in "!>" or (blank_above and plain.endswith(" TO:") and plain == plain.upper()):
            counts["direction"] += 1
        elif blank_above and (place := fountain_place(plain)):
            location = place
            counts["heading"] += 1
            breaks.append(Line(episode, row, "", plain, location, row))
        elif blank_above and below and (name := fountain_cue(plain)):
            speaker, begun = name, False
            counts["cue"] += 1
        else:
            counts["direction"] += 1
    return Script(where, "", scenes_of(lines, breaks), dict(counts), rejected, [], [], "fountain")


# %% tags=["example"]
play = """Title: The Long Lunch

INT. POWER PLANT - DAY

Homer sits at a panel that blinks.

HOMER SIMPSON
(whispering)
If I do not look at it,
it is not blinking.

CARL (O.S.)
It is *blinking*, Homer.

EXT. POWER PLANT - LATER

@McGurk
Who left the gate open?

CUT TO:
"""
screen = read_fountain(play, "lunch.fountain")
for s in screen.scenes:
    print(s.location, [f"{line.speaker}: {line.text}" for line in s.lines])
screen.account()

# %% tags=["check"]
assert [[line.speaker for line in s.lines] for s in screen.scenes] == [
    ["Homer Simpson", "Carl"],
    ["McGurk"],
] and screen.scenes[0].location == "Power Plant"
assert screen.account()["rows"] == sum(bool(r.strip()) for r in play.splitlines())

# %% [markdown]
# ## JSON samples
#
# Earlier projects turn each line into a record: `p`, the lines before it; `c`, who speaks next; `l`, what is said. A script then renames them, in that order, to `instruction`, `input` and `output`. Both spellings are read, as one list or one record a line.
#
# Such records repeat their context: the third line of a scene stands in the records of all later lines too. Where a record's context overlaps the end of the scene read so far, only what is new is added. That gives the scenes back, and keeps the same line from being learned many times, or from standing in two splits.

# %%
#| export
SPELLINGS = (("p", "c", "l"), ("instruction", "input", "output"))


def spelling_of(
    record,  # one JSON value
) -> tuple | None:  # names of its three fields; None if it has neither spelling
    "Which spelling a record uses."
    return next(
        (k for k in SPELLINGS if isinstance(record, dict) and all(isinstance(record.get(x), str) for x in k)), None
    )


def read_record(
    record,  # one JSON value
    known: set | tuple = (),  # names of all who speak
) -> tuple:  # (context pairs, speaker, text), or (None, reason, "")
    "One sample in either spelling."
    if not (keys := spelling_of(record)):
        return None, "expected text under p, c, l or instruction, input, output", ""
    context, speaker, said = (record[k].encode("utf8", "replace").decode("utf8") for k in keys)
    speaker, said = clean(speaker), clean(said)
    if not speaker or len(speaker) > 60:
        return None, f"{keys[1]} must be the name of who speaks next", ""
    said = said.removeprefix(f"{speaker}:").strip()
    return (
        (parse_lines(context, known), speaker, said)
        if has_words(said)
        else (None, f"nothing is said under {keys[2]}", "")
    )


# %% [markdown]
# In a file of one record a line, one broken line is rejected; a broken list is broken as a whole:

# %%
#| export
def load_records(
    text: str,  # a whole JSON or JSONL file
    where: str,  # its name, for errors
) -> tuple:  # ([(row, JSON value)], `Rejected` rows); ValueError if nothing can be read
    "The JSON values of a file, with the lines they stand in (in a list: their places)."
    try:
        whole = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; expected a list of records or one record a line") from None
    except json.JSONDecodeError as e:
        found, bad = [], []
        for row, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                found.append((row, json.loads(line)))
            except (json.JSONDecodeError, RecursionError) as broken:
                bad.append(Rejected(row, f"not valid JSON ({getattr(broken, 'msg', 'nested too deeply')})", line[:120]))
        require(
            any(spelling_of(r) for _, r in found),
            f"{where} is not valid JSON ({e.msg} at line {e.lineno}); expected a list of records or one record a line",
        )
        return found, bad
    return list(enumerate(whole if isinstance(whole, list) else [whole], 1)), []


# %%
#| export
def read_records(
    text: str,  # a whole JSON or JSONL file
    where: str,  # its name, for errors
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> Script:  # scenes and account
    "Read p/c/l or instruction/input/output samples back into scenes."
    records, rejected = load_records(text, where)
    known = {clean(r[keys[1]]) for _, r in records if (keys := spelling_of(r))}
    strip = (lambda t: t) if keep_directions else without_directions
    groups: list[list] = []  # lines of each scene
    so_far: list[tuple] = []
    spoken = 0
    for row, record in records:
        context, speaker, said = read_record(record, known)
        if context is not None and not has_words(strip(said)):
            context, speaker = None, "nothing is said but directions"
        if context is None:
            rejected.append(Rejected(row, speaker, json.dumps(record)[:120]))
            continue
        spoken += 1
        shared = next((n for n in range(min(len(context), len(so_far)), 0, -1) if so_far[-n:] == context[:n]), 0)
        if not shared:
            groups.append([])
            so_far = []  # a new scene
        new = [(who, what, False) for who, what in context[shared:]] + [(speaker, said, True)]
        groups[-1] += [
            Line(0, len(groups[-1]) + i, who, strip(what), "", row, learn) for i, (who, what, learn) in enumerate(new)
        ]
        so_far += [x[:2] for x in new]
    scenes = [Scene(0, i, "", tuple(line for line in lines if line.text)) for i, lines in enumerate(groups)]
    return Script(where, "", scenes, {"spoken": spoken}, sorted(rejected, key=attrgetter("row")), [], [], "json")


# %% tags=["check"]
samples = [
    {"p": "", "c": "Marge", "l": "Dinner!"},
    {"p": "Marge: Dinner!", "c": "Homer", "l": "Already?"},
    {"p": "Marge: Dinner!\nHomer: Already?", "c": "Marge", "l": "It is noon."},
]
renamed = [dict(zip(SPELLINGS[1], s.values())) for s in samples]
for text in (json.dumps(samples), json.dumps(renamed), "\n".join(map(json.dumps, samples))):
    records = read_records(text, "samples.json")
    assert [[(line.speaker, line.text) for line in s.lines] for s in records.scenes] == [
        [("Marge", "Dinner!"), ("Homer", "Already?"), ("Marge", "It is noon.")]
    ]
assert all(line.learn for line in records.lines) and records.counts == {"spoken": 3} and not records.rejected
half = read_records("\n".join([json.dumps(samples[0]), '{"p": ', json.dumps(samples[1])]), "half.jsonl")
assert len(half.lines) == 2 and [r.row for r in half.rejected] == [2]

# %% [markdown]
# ## One call for any script
#
# `read_script` finds out what a file is: by its name where the ending says so, else by what stands in it. The name `springfield` means the script that comes with the package: original scenes, written for this book, with the characters everybody knows.

# %%
#| export
READERS = {"table": read_table, "text": read_text, "fountain": read_fountain, "json": read_records}


def find_format(
    name: str,  # a file's name
    text: str,  # what stands in it
) -> str:  # a key of `READERS`
    "What kind of script a file holds."
    suffix, begin = Path(name).suffix.lower(), text.lstrip()
    if (
        suffix in (".json", ".jsonl", ".ndjson")
        or re.match(r"\{|\[\s*[\[{\]]", begin)
        or (suffix in (".csv", ".tsv") and begin[:1] == "[")
    ):
        return "json"
    if suffix in (".fountain", ".spmd"):
        return "fountain"
    if suffix in (".csv", ".tsv") or {"raw_text", "speaking_line"} <= set(
        re.findall(r"\w+", begin[: begin.find("\n")].lower())
    ):
        return "table"
    headings = re.findall(r"^(?:INT|EXT|EST|INT\.?/EXT|I/E)\. ", text, re.M)
    return (
        "fountain"
        if headings and len(headings) > len(re.findall(r"^\S[^:\n]{0,59}:\s+\S", text, re.M)) / 10
        else "text"
    )


# %%
#| export
def read_script(
    path: "str | Path",  # a script file, or "springfield": the script that comes with the package
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
    encoding: str | None = None,  # a codec's name; None: find out
    format: str = "auto",  # table, text, fountain or json; auto: find out
) -> Script:  # FileNotFoundError or ValueError, in one sentence, when it cannot be read
    "Read a script, whatever its format."
    require(format == "auto" or format in READERS, f"format={format!r} was given; expected auto, {', '.join(READERS)}")
    path = Path(simpsons_llm.__file__).parent / "data" / "springfield.csv" if str(path) == "springfield" else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no script at {path}; give the path of a table, text, Fountain or JSON file, "
            "or springfield for the script that comes with the package"
        )
    text, encoding = decode(path.read_bytes(), path.name, encoding)
    require(text.strip(), f"{path.name} is empty; {HINT}")
    with collector_off():
        script = READERS[find_format(path.name, text) if format == "auto" else format](text, path.name, keep_directions)
    if not script.lines:
        why = (
            "; ".join(f"{r}: {n} rows" for r, n in Counter(r.reason for r in script.rejected).most_common(3))
            or "it has no spoken rows"
        )
        raise ValueError(f"{path.name} holds no spoken line that can be used ({why}); read as {script.format}, {HINT}")
    script.path, script.encoding = str(path), encoding
    return script


# %% [markdown]
# The script that comes with the book:

# %% tags=["example"]
script = read_script("springfield")
script.account()

# %% tags=["example"]
pd.DataFrame(
    [(line.speaker, line.text) for line in script.scenes[0].lines], columns=["speaker", script.scenes[0].location]
)

# %% tags=["check"]
account = script.account()
assert account["rows"] == account["kept"] and account["rejected"] == account["recovered"] == 0
assert account["spoken"] == len(script.lines) == sum(script.speakers.values())
assert all(len({line.location for line in s.lines}) == 1 for s in script.scenes)


# %% [markdown]
# The same scenes, written in each of the other formats, come back as the same lines:

# %% tags=["check"]
def as_text(scenes):
    return "\n".join(
        f"[Episode {s.episode}]\n[{s.location}]\n" + "".join(f"{line.speaker}: {line.text}\n" for line in s.lines)
        for s in scenes
    )


def as_fountain(scenes):
    return "".join(
        f"# Episode {s.episode}\n\n.{s.location}\n\n" + "".join(f"@{line.speaker}\n{line.text}\n\n" for line in s.lines)
        for s in scenes
    )


def as_records(scenes):
    return json.dumps(
        [
            {"p": "\n".join(f"{b.speaker}: {b.text}" for b in s.lines[:i]), "c": line.speaker, "l": line.text}
            for s in scenes
            for i, line in enumerate(s.lines)
        ]
    )


want = [[(line.speaker, line.text) for line in s.lines] for s in script.scenes]
for name, write in (("s.txt", as_text), ("s.fountain", as_fountain), ("s.json", as_records)):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(write(script.scenes), encoding="utf8")
        again = read_script(Path(folder) / name)
    assert [[(line.speaker, line.text) for line in s.lines] for s in again.scenes] == want and not again.rejected, name

# %% [markdown]
# ## A damaged table
#
# A copy of the script with three kinds of damage: a row with a field too many, a row with too few, an episode that is not a number. All rows are still accounted for, and the scenes that were not touched are the same.

# %% tags=["example"]
rows = Path(script.path).read_text(encoding="utf8").splitlines()
rows[10] += ",surplus"
rows[20] = "too,few"
rows[30] = rows[30].replace(",1,", ",one,", 1)
with tempfile.TemporaryDirectory() as folder:
    damaged = Path(folder) / "damaged.csv"
    damaged.write_text("\n".join(rows), encoding="utf8")
    broken = read_script(damaged)
pd.DataFrame([(r.row, r.reason, r.text[:60]) for r in broken.rejected], columns=["line", "reason", "text"])

# %% tags=["check"]
assert [r.row for r in broken.rejected] == [11, 21, 31] and broken.account()["rows"] == account["rows"]
assert [s for s in broken.scenes if s.episode > 1] == [s for s in script.scenes if s.episode > 1]
assert len(broken.lines) + sum(r.row in {line.row for line in script.lines} for r in broken.rejected) == len(
    script.lines
)

# %% [markdown]
# What cannot be read at all is refused with one sentence:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for name, content in {
        "shopping.csv": "item,price\ndonut,1",
        "empty.csv": " ",
        "half.json": '[{"p": ',
        "headings.csv": ",".join(COLUMNS),
        "letter.txt": "Dear Sir,\nno.",
    }.items():
        (Path(folder) / name).write_text(content)
        try:
            read_script(Path(folder) / name)
            raise AssertionError(name)
        except ValueError as e:
            print(e)


# %% [markdown]
# ## A format of one's own
#
# A reader takes the text of a file, the file's name for messages, and whether directions are kept; it gives a `Script`. Often it is enough to write the text in a form that is read already, and the account of its rows comes with that. An entry in `READERS` makes the reader known to `file_format` and `--file-format`; a line in `find_format` lets files be recognised by themselves. So a format that stays is three small pieces in this chapter, and a test of what it must refuse. Here is one for rows of `Name<tab>line`:

# %% tags=["example"]
def read_tabs(text, where, keep_directions=False):
    "Rows of a name, a tab and a line."
    return read_text(re.sub(r"^([^\t\n]+)\t", r"\1: ", text, flags=re.M), where, keep_directions)


READERS["tabs"] = read_tabs
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "lab.tsv").write_text("Ada\tIs it on?\nCharles\tIt was on.\n\nAda\tI hear it.\n")
    own = read_script(Path(folder) / "lab.tsv", format="tabs")
del READERS["tabs"]
[[(line.speaker, line.text) for line in s.lines] for s in own.scenes], own.account()["rejected"]

# %% tags=["check"]
assert [[line.speaker for line in s.lines] for s in own.scenes] == [["Ada", "Charles"], ["Ada"]]
