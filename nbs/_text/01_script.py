# %%
#| default_exp script

# %% [markdown]
# # Reading a script
#
# > Script files become lines, lines become scenes, and every row that could not be used is kept with its reason.
#
# A script is a table that people typed: episodes, locations, speakers, words, and now and then a broken row. A model that talks like Homer needs from it the *scenes*: who says what, in which order, until the place changes. This chapter reads such tables, never drops a row silently, and ends with scenes.
#
# It reads the public Kaggle table `simpsons_script_lines.csv` (13 columns), any CSV file with the same columns, and the JSON samples (`p/c/l` or `instruction/input/output`) that earlier fine-tuning projects use.

# %%
#| export
import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import simpsons_llm
from simpsons_llm.job import require

# %%
#| hide
import tempfile

import pandas as pd

pd.set_option("display.max_colwidth", 110)


# %% [markdown]
# ## Three small records
#
# A `Line` is what somebody says. A `Scene` is a run of lines in one place. A `Rejected` row remembers where it stood in the file and why it was not used.

# %%
#| export
@dataclass(frozen=True, slots=True)
class Line:
    "One spoken line."
    episode: int       # episode number
    number: int        # order within the episode
    speaker: str       # who says it, e.g. "Homer Simpson"
    text: str          # what is said, on one line
    location: str = "" # where
    row: int = 0       # line of the file it comes from, counted from 1
    learn: bool = True # False: known only as context of other lines, never a target


@dataclass(frozen=True, slots=True)
class Scene:
    "Lines in one place, in order."
    episode: int # episode number
    index: int   # order of the scene within the episode, counted from 0
    location: str # where
    lines: tuple # the `Line`s


@dataclass(frozen=True, slots=True)
class Rejected:
    "A row that was not used."
    row: int    # line of the file where it begins, counted from 1
    reason: str # why, in a few words
    text: str   # what stood there, shortened


# %% [markdown]
# ## From bytes to text
#
# Files come with byte order marks, as UTF-8, UTF-16 or in the Latin-1 family of older Windows programs. UTF-8 is strict: text in another encoding fails to decode as UTF-8 almost surely, so trying it first is safe. Windows-1252 accepts nearly anything, so it comes last.

# %%
#| export
def decode(
    data: bytes,          # a file's bytes
    name: str = "file",   # its name, for the error
    encoding: str = None, # a codec's name; None: find out
) -> tuple:               # (text with \n line ends, name of the encoding)
    "Text of a script file, whatever wrote it."
    bom = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else None
    for codec in [encoding] if encoding else [bom] if bom else ["utf-8-sig", "cp1252", "latin-1"]:
        try: text = data.decode(codec); break
        except UnicodeDecodeError: continue
        except LookupError: raise ValueError(f"encoding {codec!r} is not known; use a name such as utf-8, cp1252 or utf-16") from None
    else: raise ValueError(f"{name} is not text in encoding {encoding or bom}; leave the encoding out or name another")
    if codec == "utf-8-sig" and data[:3] != b"\xef\xbb\xbf": codec = "utf-8"
    require("\0" not in text, f"{name} holds binary data, not a script; expected a CSV or JSON text file")
    return text.replace("\r\n", "\n").replace("\r", "\n"), codec


# %% tags=["example"]
decode("Moe: Order a café, pal.".encode("utf-8-sig")), decode("Moe: Order a café, pal.".encode("cp1252"))

# %% tags=["check"]
for codec in ("utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"): assert decode("café\r\n".encode(codec))[0] == "café\n"
for bad, encoding in ((b"PK\0\0", None), (b"caf\xe9", "utf-8"), (b"x", "klingon")):
    try: decode(bad, "x.csv", encoding); raise AssertionError
    except ValueError: pass

# %% [markdown]
# ## The Kaggle table
#
# Seven of its thirteen columns matter here. `raw_text` holds the row as it was typed, such as `Moe Szyslak: (WIPING GLASS) Closed.`; `spoken_words` holds the same without speaker and stage directions. A row with `speaking_line` false is a heading, `(Moe's Tavern: int. moe's tavern - night)`, or a direction, `(Barney raises his hand.)`.

# %%
#| export
COLUMNS = ("id", "episode_id", "number", "raw_text", "timestamp_in_ms", "speaking_line", "character_id", "location_id",
           "raw_character_text", "raw_location_text", "spoken_words", "normalized_text", "word_count")
NEEDED = ("episode_id", "number", "raw_text", "speaking_line", "raw_character_text", "raw_location_text", "spoken_words")
HINT = "expected a CSV file with the columns of simpsons_script_lines.csv"


# %% [markdown]
# A file without these columns is another kind of file. The error names what is missing.

# %%
#| export
def read_header(
    names: list, # the first row's fields
    where: str,  # the file's name, for the error
) -> dict:       # column name -> position
    "Positions of the columns; ValueError naming the ones that are missing."
    position = {n.strip().lower(): i for i, n in enumerate(names)}
    missing = [n for n in NEEDED if n not in position]
    require(not missing, f"{where} lacks the column{'s'[:len(missing) > 1]} {', '.join(missing)}; {HINT}")
    return position


# %% [markdown]
# One row after another. A row must have as many fields as the header, whole numbers for episode and position, and, when it is spoken, a speaker. What fails is rejected with the reason. A spoken row without words, such as `(SIGHS)`, is counted as wordless: it is fine, there is just nothing to learn from it.

# %%
#| export
def clean(
    text: str, # a field's text
) -> str:      # on one line, single spaces; "" for NA
    "One field as plain text."
    return "" if text == "NA" else " ".join(text.split())


def read_row(
    fields: list,    # one row's fields
    at: dict,        # column name -> position
    row: int,        # line of the file, for later messages
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> tuple:          # (kind, Line or heading's location or reason); kind: spoken, heading, direction, wordless, rejected
    "What one row of the table is."
    if len(fields) != len(at): return "rejected", f"{len(fields)} fields, expected {len(at)}"
    get = lambda name: clean(fields[at[name]])
    try: episode, number = int(get("episode_id")), int(get("number"))
    except ValueError: return "rejected", "episode_id and number must be whole numbers"
    raw, location, speaker = get("raw_text"), get("raw_location_text"), get("raw_character_text")
    if get("speaking_line").lower() not in ("true", "false"): return "rejected", "speaking_line must be true or false"
    if get("speaking_line").lower() == "false":
        heading = raw.lower().startswith(f"({location}:".lower()) if location else ": int" in raw.lower() or ": ext" in raw.lower()
        return ("heading" if heading else "direction"), Line(episode, number, "", raw, location, row)
    text = raw.removeprefix(f"{speaker}:").strip() if keep_directions else get("spoken_words")
    if not re.search(r"\w", re.sub(r"\([^)]*\)", "", text)): return "wordless", Line(episode, number, speaker, "", location, row)
    if not speaker: return "rejected", "spoken, but no speaker is named"
    return "spoken", Line(episode, number, speaker, text, location, row)


# %% tags=["example"]
at = {name: i for i, name in enumerate(COLUMNS)}
spoken = ["12", "3", "4", "Moe Szyslak: (WIPING GLASS) Closed.", "9000", "true", "1", "15", "Moe Szyslak", "Moe's Tavern", "Closed.", "closed", "1"]
read_row(spoken, at, 14), read_row(spoken, at, 14, keep_directions=True)[1].text, read_row(spoken[:9], at, 14)


# %% [markdown]
# ## Scenes
#
# A scene ends at a heading, where the location changes, or with the episode. Rows may come in any order (the public copies are not sorted), so they are sorted by episode and number first.

# %%
#| export
def scenes_of(
    lines: list,         # spoken `Line`s, in any order
    headings: list = (), # heading rows as `Line`s: a scene begins at each
) -> list:               # `Scene`s in order; a scene has at least one line
    "Cut lines into scenes."
    scenes, current, place = [], [], None
    def close():
        nonlocal current
        if current:
            index = scenes[-1].index + 1 if scenes and scenes[-1].episode == current[0].episode else 0
            scenes.append(Scene(current[0].episode, index, current[0].location, tuple(current)))
        current = []
    order = lambda pair: (pair[1].episode, pair[1].number, pair[1].row)
    for is_heading, x in sorted([(True, h) for h in headings] + [(False, l) for l in lines], key=order):
        if is_heading or (x.episode, x.location) != place: close()
        place = (x.episode, x.location)
        if not is_heading: current.append(x)
    close()
    return scenes


# %% tags=["check"]
def said(episode, number, location): return Line(episode, number, "Homer Simpson", f"line {number}", location)
lines = [said(1, 5, "Home"), said(1, 1, "Moe's Tavern"), said(1, 2, "Moe's Tavern"), said(1, 4, "Moe's Tavern"), said(2, 1, "Home")]
scenes = scenes_of(lines, headings=[Line(1, 3, "", "(Moe's Tavern: int. - night)", "Moe's Tavern")])
# a heading between 2 and 4, another place at 5, another episode
assert [[l.number for l in s.lines] for s in scenes] == [[1, 2], [4], [5], [1]] and [s.index for s in scenes] == [0, 1, 2, 0]


# %% [markdown]
# ## The script, with its account
#
# What a reader gets is a `Script`: scenes, and an account of all rows that always adds up. Kept rows are of four kinds: spoken lines, headings, directions (what somebody does) and wordless rows. The rest is rejected, with line numbers and reasons.

# %%
#| export
@dataclass
class Script:
    "Scenes of a script file and the account of its rows."
    path: str             # where it was read from
    encoding: str         # how its text was decoded
    scenes: list          # `Scene`s in order
    counts: dict          # rows of each kind: spoken, heading, direction, wordless
    rejected: list = field(default_factory=list) # `Rejected` rows

    @property
    def lines(self) -> list:
        "All spoken lines, in order."
        return [l for s in self.scenes for l in s.lines]

    @property
    def speakers(self) -> dict:
        "Each speaker's number of lines, most first."
        return dict(Counter(l.speaker for l in self.lines).most_common())

    def account(self) -> dict:
        "rows = kept + rejected, always."
        kept = sum(self.counts.values())
        return {"rows": kept + len(self.rejected), "kept": kept, **self.counts, "rejected": len(self.rejected)}


# %% [markdown]
# Rows are numbered as an editor numbers lines, so that a person finds them. A row that repeats an episode's position would put two lines in one place; the second is rejected.

# %%
#| export
def read_table(
    text: str,       # a whole CSV file
    where: str,      # its name, for errors
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> tuple:          # (scenes, counts, rejected)
    "Read a table in the format of simpsons_script_lines.csv."
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text))
    at = read_header(next(reader, []), where)
    found, rejected, seen, begin = {"spoken": [], "heading": [], "direction": [], "wordless": []}, [], {}, reader.line_num + 1
    for fields in reader:
        row, begin = begin, reader.line_num + 1
        if not fields: continue  # an empty line is no row
        kind, what = read_row(fields, at, row, keep_directions)
        if kind != "rejected" and (first := seen.setdefault((what.episode, what.number), row)) != row:
            kind, what = "rejected", f"same episode_id and number as line {first}"
        if kind == "rejected" and reader.line_num > row: what += f" (it spans lines {row} to {reader.line_num}: an unclosed quote?)"
        if kind == "rejected": rejected.append(Rejected(row, what, ",".join(fields)[:120]))
        else: found[kind].append(what)
    return scenes_of(found["spoken"], found["heading"]), {k: len(v) for k, v in found.items()}, rejected


# %% [markdown]
# ## JSON samples
#
# Earlier projects turn each line into a record: `p`, the lines before it; `c`, who speaks next; `l`, what is said. A script then renames them, in that order, to `instruction`, `input` and `output`. Both spellings are read, as one list or one record a line.
#
# Such records repeat their context: the third line of a scene stands in the records of all later lines too. Where a record's context overlaps the end of the scene read so far, only what is new is added. That gives the scenes back, and keeps the same line from being learned many times, or from standing in two splits.

# %%
#| export
SPELLINGS = (("p", "c", "l"), ("instruction", "input", "output"))


def parse_lines(
    text: str, # "Name: line" rows with newlines between
) -> list:     # (speaker, text) pairs; ("", text) where no speaker is named
    "Lines of a conversation as people write them."
    found = [re.match(r"\s*([^:\n]{1,60}?)\s*:\s+(.*)", row) for row in text.splitlines() if row.strip()]
    rows = [row for row in text.splitlines() if row.strip()]
    return [(m[1], clean(m[2])) if m else ("", clean(row)) for m, row in zip(found, rows)]


# %% tags=["example"]
parse_lines("Marge Simpson: Homer, the dog is wearing your tie again.\nHomer Simpson: It suits him: he has an interview.")


# %% [markdown]
# One record may be broken where its neighbours are fine, so each is judged by itself:

# %%
#| export
def read_record(
    record,    # one JSON value
) -> tuple:    # (context pairs, speaker, text), or (None, reason, "")
    "One sample in either spelling."
    keys = next((k for k in SPELLINGS if isinstance(record, dict) and all(isinstance(record.get(x), str) for x in k)), None)
    if not keys: return None, "expected text under p, c, l or instruction, input, output", ""
    context, speaker, said = (record[k] for k in keys)
    speaker, said = clean(speaker), clean(said)
    if not speaker or len(speaker) > 60: return None, f"{keys[1]} must be the name of who speaks next", ""
    said = said.removeprefix(f"{speaker}:").strip()
    return (parse_lines(context), speaker, said) if said else (None, f"nothing is said under {keys[2]}", "")


# %% [markdown]
# And then the whole file, with scenes joined again:

# %%
#| export
def read_records(
    text: str,  # a whole JSON or JSONL file
    where: str, # its name, for errors
) -> tuple:     # (scenes, counts, rejected)
    "Read p/c/l or instruction/input/output samples back into scenes."
    try: records = list(enumerate(json.loads(text), 1)) if text.lstrip()[:1] == "[" else [(i, json.loads(r)) for i, r in enumerate(text.splitlines(), 1) if r.strip()]
    except json.JSONDecodeError as e: raise ValueError(f"{where} is not valid JSON ({e.msg} at line {e.lineno}); expected a list of records or one record a line") from None
    scenes, rejected = [], []
    for row, record in records:
        context, speaker, said = read_record(record)
        if context is None: rejected.append(Rejected(row, speaker, json.dumps(record, ensure_ascii=False)[:120])); continue
        so_far = [(l.speaker, l.text) for l in scenes[-1]] if scenes else []
        shared = next((n for n in range(min(len(context), len(so_far)), 0, -1) if so_far[-n:] == context[:n]), 0)
        if not shared: scenes.append([])  # a new scene
        scenes[-1] += [Line(0, len(scenes[-1]) + i, who, what, "", row, learn=False) for i, (who, what) in enumerate(context[shared:])]  # context only
        scenes[-1].append(Line(0, len(scenes[-1]), speaker, said, "", row))
    scenes = [Scene(0, i, "", tuple(lines)) for i, lines in enumerate(scenes)]
    return scenes, {"spoken": len(records) - len(rejected)}, rejected


# %% tags=["check"]
samples = [{"p": "", "c": "Marge", "l": "Dinner!"}, {"p": "Marge: Dinner!", "c": "Homer", "l": "Already?"}, {"p": "Marge: Dinner!\nHomer: Already?", "c": "Marge", "l": "It is noon."}]
renamed = [dict(zip(SPELLINGS[1], s.values())) for s in samples]
for text in (json.dumps(samples), json.dumps(renamed), "\n".join(map(json.dumps, samples))):
    scenes, counts, rejected = read_records(text, "samples.json")
    assert [[(l.speaker, l.text) for l in s.lines] for s in scenes] == [[("Marge", "Dinner!"), ("Homer", "Already?"), ("Marge", "It is noon.")]]
assert all(l.learn for l in scenes[0].lines) and counts == {"spoken": 3} and not rejected


# %% [markdown]
# ## One call for any script
#
# `read_script` finds out what a file is. The name `springfield` means the script that comes with the package: original scenes, written for this book, with the characters everybody knows.

# %%
#| export
def read_script(
    path,                 # a CSV, JSON or JSONL file, or "springfield": the script that comes with the package
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
    encoding: str = None, # a codec's name; None: find out
) -> Script:              # FileNotFoundError or ValueError, in one sentence, when it cannot be read
    "Read a script, whatever its format."
    path = Path(simpsons_llm.__file__).parent/"data"/"springfield.csv" if str(path) == "springfield" else Path(path)
    if not path.is_file(): raise FileNotFoundError(f"no script at {path}; give the path of a CSV or JSON file, or springfield for the one that comes with the package")
    text, encoding = decode(path.read_bytes(), path.name, encoding)
    require(text.strip(), f"{path.name} is empty; {HINT}")
    scenes, counts, rejected = read_records(text, path.name) if text.lstrip()[0] in "[{" else read_table(text, path.name, keep_directions)
    if not scenes:
        why = "; ".join(f"{r}: {n} rows" for r, n in Counter(r.reason for r in rejected).most_common(3)) or "it has no spoken rows"
        raise ValueError(f"{path.name} holds no spoken line that can be used ({why}); {HINT}")
    return Script(str(path), encoding, scenes, counts, rejected)


# %% [markdown]
# The script that comes with the book:

# %% tags=["example"]
script = read_script("springfield")
script.account()

# %% tags=["example"]
pd.DataFrame([(l.speaker, l.text) for l in script.scenes[0].lines], columns=["speaker", script.scenes[0].location])

# %% tags=["check"]
account = script.account()
assert account["rows"] == account["kept"] + account["rejected"] and account["rejected"] == 0
assert account["spoken"] == len(script.lines) == sum(script.speakers.values())
assert all(len({l.location for l in s.lines}) == 1 for s in script.scenes)

# %% [markdown]
# ## A damaged table
#
# A copy of the script with three kinds of damage: a row with a field too many, a row with too few, an episode that is not a number. All rows are still accounted for, and the scenes that were not touched are the same.

# %% tags=["example"]
rows = Path(script.path).read_text(encoding="utf8").splitlines()
rows[10] += ",surplus"; rows[20] = "too,few"; rows[30] = rows[30].replace(",1,", ",one,", 1)
with tempfile.TemporaryDirectory() as folder:
    damaged = Path(folder)/"damaged.csv"; damaged.write_text("\n".join(rows), encoding="utf8")
    broken = read_script(damaged)
pd.DataFrame([(r.row, r.reason, r.text[:60]) for r in broken.rejected], columns=["line", "reason", "text"])

# %% tags=["check"]
assert [r.row for r in broken.rejected] == [11, 21, 31] and broken.account()["rows"] == account["rows"]
assert [s for s in broken.scenes if s.episode > 1] == [s for s in script.scenes if s.episode > 1]
assert len(broken.lines) + sum(r.row in {l.row for l in script.lines} for r in broken.rejected) == len(script.lines)

# %% [markdown]
# What cannot be read at all is refused with one sentence:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for name, content in {"shopping.csv": "item,price\ndonut,1", "empty.csv": " ", "half.json": '[{"p": ', "headings.csv": ",".join(COLUMNS)}.items():
        (Path(folder)/name).write_text(content)
        try: read_script(Path(folder)/name); raise AssertionError(name)
        except ValueError as e: print(e)
