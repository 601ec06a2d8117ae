# %%
#| default_exp script

# %% [markdown]
# # Reading a script
#
# > Script files become lines, lines become scenes, and every row that could not be used is kept with its reason.
#
# A script is text that people typed: episodes, locations, speakers, words, and now and then a broken row. A model that talks like Homer needs from it the *scenes*: who says what, in which order, until the place changes. This chapter reads such files, never drops a row silently, and ends with scenes.
#
# It reads the public Kaggle table `simpsons_script_lines.csv` and any table with the same columns, plain text (`Speaker: line`), Fountain screenplays, and the JSON samples (`p/c/l` or `instruction/input/output`) that earlier fine-tuning projects use. What the words mean to a model is left to later chapters.

# %%
#| export
import csv
import json
import re
import string
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import simpsons_llm
from simpsons_llm.job import collector_off, require

# %%
#| hide
import tempfile

import pandas as pd

pd.set_option("display.max_colwidth", 110)


# %% [markdown]
# ## Three small records
#
# A `Line` is what somebody says (a named tuple, since there are many of them and a tuple is made three times as fast as a frozen dataclass). A `Scene` is a run of lines in one place. A `Rejected` row remembers where it stood in the file and why it was not used.

# %%
#| export
class Line(NamedTuple):
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
# ## The script, with its account
#
# What a reader gets is a `Script`: scenes, and an account of all rows that always adds up. A row is *kept* as it stands, *recovered* although it was damaged, or *rejected*. What was kept or recovered is of some kind: spoken lines, headings, directions (what somebody does), rows without words, and, in text files, rows that go on with the line before.

# %%
#| export
@dataclass
class Script:
    "Scenes of a script file and the account of its rows."
    path: str             # where it was read from
    encoding: str         # how its text was decoded
    scenes: list          # `Scene`s in order
    counts: dict          # rows of each kind: spoken, heading, direction, wordless, and so on
    rejected: list = field(default_factory=list)  # `Rejected` rows
    recovered: list = field(default_factory=list) # lines of the file where recovered rows begin
    notes: list = field(default_factory=list)     # what a person should know, a sentence each
    format: str = "table" # table, text, fountain or json

    @property
    def lines(self) -> list:
        "All spoken lines, in order."
        return [l for s in self.scenes for l in s.lines]

    @property
    def speakers(self) -> dict:
        "Each speaker's number of lines, most first."
        return dict(Counter(l.speaker for l in self.lines).most_common())

    def account(self) -> dict:
        "rows = kept + recovered + rejected, always; the kinds add up to kept + recovered."
        used = sum(self.counts.values())
        return {"rows": used + len(self.rejected), "kept": used - len(self.recovered), "recovered": len(self.recovered), "rejected": len(self.rejected), **self.counts}


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
    require("\0" not in text, f"{name} holds binary data, not a script; expected a text file")
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
HINT = "expected a table with the columns of simpsons_script_lines.csv, a text of 'Speaker: line' rows, a Fountain screenplay, or JSON samples"


# %% [markdown]
# A table without these columns is another kind of file. The error names what is missing. Programs that think in other languages write tables with semicolons or tabs, so the separator is the one that finds the most columns.

# %%
#| export
def read_header(
    first: str,  # the first line of the file
    where: str,  # the file's name, for the error
) -> tuple:      # (column name -> position, separator)
    "Positions of the columns; ValueError naming the ones that are missing."
    names = {s: next(csv.reader([first], delimiter=s), []) for s in ",;\t"}
    at = {s: {n.strip().lower(): i for i, n in enumerate(ns)} for s, ns in names.items()}
    separator = max(at, key=lambda s: len(set(NEEDED) & at[s].keys()))
    missing = [n for n in NEEDED if n not in at[separator]]
    require(not missing, f"{where} lacks the column{'s'[:len(missing) > 1]} {', '.join(missing)}; {HINT}")
    return at[separator], separator


# %% [markdown]
# Text is brought onto one line, and stage directions are taken out of it:

# %%
#| export
def clean(
    text: str, # a field's text
) -> str:      # on one line, single spaces; "" for NA
    "One field as plain text."
    return "" if text == "NA" else " ".join(text.split())


clean_name = lru_cache(10_000)(clean)  # the same few names and places, again and again


def without_directions(
    text: str, # what somebody says
) -> str:      # the words alone
    "Take (STAGE DIRECTIONS) out of a line."
    return clean(re.sub(r"\([^()]*\)", " ", text)) if "(" in text else text


def has_words(
    text: str, # what somebody says
) -> bool:     # False for "", "(SIGHS)" and "..."
    "Whether anything is left to learn."
    return text[:1].isalnum() or bool(re.search(r"\w", without_directions(text)))


# %% tags=["check"]
assert without_directions("(WIPING GLASS) Closed. (BEAT) Go home.") == "Closed. Go home." and clean("NA") == ""
assert [has_words(t) for t in ("Pie.", "...pie", "(SIGHS)", "", "...!", "(SIGHS) Oh")] == [True, True, False, False, False, True]


# %% [markdown]
# One row after another. A row must have as many fields as the header, whole numbers for episode and position, and, when it is spoken, a speaker. What fails is rejected with the reason. A spoken row without words, such as `(SIGHS)`, is counted as wordless: it is fine, there is just nothing to learn from it.

# %%
#| export
def read_row(
    fields: list,    # one row's fields
    at: dict,        # column name -> position
    row: int,        # line of the file, for later messages
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> tuple:          # (kind, Line or heading's location or reason); kind: spoken, heading, direction, wordless, rejected
    "What one row of the table is."
    if len(fields) != len(at): return "rejected", f"{len(fields)} fields, expected {len(at)}"
    try: episode, number = int(fields[at["episode_id"]]), int(fields[at["number"]])
    except ValueError: return "rejected", "episode_id and number must be whole numbers"
    speaking, location, speaker = fields[at["speaking_line"]].strip().lower(), clean_name(fields[at["raw_location_text"]]), clean_name(fields[at["raw_character_text"]])
    if speaking == "false":
        raw = clean(fields[at["raw_text"]])
        heading = raw.lower().startswith(f"({location}:".lower()) if location else ": int" in raw.lower() or ": ext" in raw.lower()
        return ("heading" if heading else "direction"), Line(episode, number, "", raw, location, row)
    if speaking != "true": return "rejected", "speaking_line must be true or false"
    text = clean(fields[at["raw_text"]]).removeprefix(f"{speaker}:").strip() if keep_directions else clean(fields[at["spoken_words"]])
    if not has_words(text): return "wordless", Line(episode, number, speaker, "", location, row)
    if not speaker: return "rejected", "spoken, but no speaker is named"
    return "spoken", Line(episode, number, speaker, text, location, row)


# %% tags=["example"]
at = {name: i for i, name in enumerate(COLUMNS)}
spoken = ["12", "3", "4", "Moe Szyslak: (WIPING GLASS) Closed.", "9000", "true", "1", "15", "Moe Szyslak", "Moe's Tavern", "Closed.", "closed", "1"]
read_row(spoken, at, 14), read_row(spoken, at, 14, keep_directions=True)[1].text, read_row(spoken[:9], at, 14)

# %% [markdown]
# ## A damaged row that is still certain
#
# Some rows of the public table hold quotation marks and commas that nobody escaped; read as CSV they fall into up to 20 fields, or swallow the rows below them. Yet the table says most things twice. `raw_text` is speaker, colon and words; `spoken_words` is the words again. So a row can be cut by its fixed parts (three numbers at the start; time, true or false and two numbers in the middle; a number at the end), and the cut is *certain* if the speaker stands in `raw_text` and both texts have the same letters. Then the row is recovered. In doubt it is rejected: a wrong line does more harm than a missing one.

# %%
#| export
DAMAGED = re.compile(r'(\d+),(\d+),(\d+),(.*),(\d+|NA|),(true|false),(\d*|NA),(\d*|NA),(.*)', re.I | re.S)


def unquote(
    piece: str, # a field as it stands in the file
) -> str:       # its text
    "A field without its outer quotation marks and escapes."
    piece = piece.strip()
    if piece[:1] == '"': piece = piece[1:].removesuffix('"') if piece[-1:] == '"' and len(piece) > 1 else piece[1:]
    return re.sub(r'\\"|""', '"', piece)


def letters(
    text: str, # any text
) -> str:      # such as "dohmydonut"
    "The letters and digits of a text, for comparing."
    return re.sub(r"[\W_]+", "", text).lower()


# %%
#| export
def recover_row(
    text: str,  # a damaged row of a table with the thirteen columns, as it stands in the file
) -> list:      # its fields; None unless they are certain
    "Cut a damaged row by its fixed parts, and hold its two texts against each other."
    m = DAMAGED.fullmatch(text.strip())
    if not m: return None
    raw, rest = unquote(m[4]), m[9]
    if m[6].lower() == "false":
        m2 = re.fullmatch(r"(?:NA)?,(.*),(?:NA)?,(?:NA)?,(?:NA)?", rest, re.S)
        location = unquote(m2[1]) if m2 else '"'
        sure = '"' not in location and ("," not in location or raw.lower().startswith(f"({location}".lower()))
        return [*m.groups()[:3], raw, *m.groups()[4:8], "", location, "", "", ""] if sure else None
    m2 = re.fullmatch(r'(.*),([^,"]*),(\d*|NA)', rest, re.S)
    if not m2: return None
    commas = lambda s: [i for i, c in enumerate(s) if c == ","]
    for i in commas(m2[1]):
        speaker = unquote(m2[1][:i])
        if not speaker or not raw.startswith(f"{speaker}:"): continue
        said, rest = letters(without_directions(raw[len(speaker) + 1:])), m2[1][i + 1:]
        cuts = [j for j in commas(rest) if letters(without_directions(unquote(rest[j + 1:]))) == said and '"' not in unquote(rest[:j])]
        if len(cuts) == 1: return [*m.groups()[:3], raw, *m.groups()[4:8], speaker, unquote(rest[:cuts[0]]), unquote(rest[cuts[0] + 1:]), m2[2], m2[3]]
    return None


# %% tags=["example"]
for row in ('7,1,3,"Homer Simpson: They call it "light", and it is, too.",9000,true,2,1,Homer Simpson,Home,"They call it "light", and it is, too.",they call it light and it is too,8',
            '8,1,4,Homer Simpson: Pie, cake, pie.,9000,true,2,1,Homer Simpson,Home,Pie, cake, pie.,pie cake pie,3',
            '9,1,5,Homer Simpson: Pie, cake, pie.,9000,true,2,1,Homer Simpson,Home,Cake, pie.,cake pie,2'):
    print(recover_row(row) and recover_row(row)[8:11])


# %% [markdown]
# The third is not certain: what was typed and what is said differ, so nobody knows where the location ends.
#
# ## Rows that swallow rows
#
# An unclosed quotation mark makes a CSV reader take the next lines for text of the same field, up to the next quotation mark, and that may be a thousand rows later. So the file is read through a feed that can go back: if a row cannot be right, it ends where the next line looks like a row, and reading goes on there. Rows are numbered as an editor numbers lines, so that a person finds them.

# %%
#| export
class Feed:
    "Lines of a text one after the other, with a way back."
    def __init__(self,
        text: str,        # a whole file
        most: int = 100,  # most lines of one row
    ): self.lines, self.at, self.most, self.begin = text.split("\n"), 0, most, 0

    def __iter__(self):
        lines = self.lines
        while self.at < len(lines) and self.at - self.begin < self.most:
            self.at += 1
            yield lines[self.at - 1] + "\n"

    def go_back(self,
        row_start, # pattern of a row's beginning; None: any line may be one
    ):
        "End the row that began at `begin` before the next line that looks like a row."
        self.at = next((k for k in range(self.begin + 1, self.at) if row_start is None or row_start.match(self.lines[k])), self.at)


# %% [markdown]
# A row that repeats an episode's position would put two lines in one place; the second is rejected. An `id` that comes twice with another position is only noted: the position decides, and tables are often joined from parts that each count from 1.

# %%
#| export
def read_table(
    text: str,       # a whole CSV file
    where: str,      # its name, for errors
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> Script:         # scenes and account; ValueError if columns are missing
    "Read a table in the format of simpsons_script_lines.csv."
    csv.field_size_limit(1 << 30)
    feed = Feed(text.lstrip("\n"))
    skipped, first = len(text) - len(text.lstrip("\n")), next(iter(feed), "")
    at, separator = read_header(first, where)
    standard = tuple(at) == COLUMNS and separator == ","
    row_start = re.compile(r"\d+,\d+,\d+,") if standard else None
    def rows(): return csv.reader(iter(feed), delimiter=separator, strict=True)  # from where the feed stands
    reader, found, rejected, recovered = rows(), {k: [] for k in ("spoken", "heading", "direction", "wordless")}, [], []
    seen, ids, twice, id_at = {}, set(), 0, at.get("id")
    while feed.at < len(feed.lines):
        feed.begin = feed.at
        row = feed.begin + skipped + 1
        try: fields, broken = next(reader), None
        except StopIteration: break
        except csv.Error: fields, broken = None, "quotation marks that do not match"
        if fields == []: continue  # an empty line is no row
        if fields and feed.at > feed.begin + 1 and row_start and any(map(row_start.match, feed.lines[feed.begin + 1:feed.at])): broken = "quotation marks that do not match"
        if broken:
            spans, _ = feed.at, feed.go_back(row_start)
            reader = rows()
            if spans > feed.at: broken += f" (read as CSV it spans lines {row} to {spans + skipped}: an unclosed quote?)"
            if not any(c.strip() for c in feed.lines[feed.begin:feed.at]): continue
        kind, what = ("rejected", broken) if broken else read_row(fields, at, row, keep_directions)
        if kind == "rejected" and standard and (mended := recover_row("\n".join(feed.lines[feed.begin:feed.at]))):
            kind, what = read_row(mended, at, row, keep_directions)
            if kind != "rejected": recovered.append(row); fields = mended
        if kind != "rejected" and (before := seen.setdefault((what.episode, what.number), row)) != row:
            kind, what = "rejected", f"same episode_id and number as line {before}"
            if recovered[-1:] == [row]: recovered.pop()
        if kind == "rejected": rejected.append(Rejected(row, what, " ".join(feed.lines[feed.begin:feed.at])[:120]))
        else:
            found[kind].append(what)
            if id_at is not None and (name := fields[id_at]):
                twice += name in ids
                ids.add(name)
    notes = [f"{twice} rows repeat the id of another row; they are kept, since their episode and number differ"]*bool(twice)
    return Script(where, "", scenes_of(found["spoken"], found["heading"]), {k: len(v) for k, v in found.items()}, rejected, recovered, notes, "table")


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
    scenes, current, place, index = [], [], None, {}
    cuts = {(h.episode, h.number, h.row) for h in headings}
    def close():
        if not current: return
        first = current[0]
        index[first.episode] = index.get(first.episode, -1) + 1
        scenes.append(Scene(first.episode, index[first.episode], first.location, tuple(current)))
        current.clear()
    for x in sorted([*headings, *lines], key=attrgetter("episode", "number", "row")):
        here = (x.episode, x.location)
        if here != place: close()
        place = here
        if (x.episode, x.number, x.row) in cuts: close()
        else: current.append(x)
    close()
    return scenes


# %% tags=["check"]
def said(episode, number, location): return Line(episode, number, "Homer Simpson", f"line {number}", location)
lines = [said(1, 5, "Home"), said(1, 1, "Moe's Tavern"), said(1, 2, "Moe's Tavern"), said(1, 4, "Moe's Tavern"), said(2, 1, "Home")]
scenes = scenes_of(lines, headings=[Line(1, 3, "", "(Moe's Tavern: int. - night)", "Moe's Tavern")])
# a heading between 2 and 4, another place at 5, another episode
assert [[l.number for l in s.lines] for s in scenes] == [[1, 2], [4], [5], [1]] and [s.index for s in scenes] == [0, 1, 2, 0]

# %% [markdown]
# Four damaged rows among good ones. The first three are recovered, though the third never closes its quotation mark; the last is rejected:

# %% tags=["example"]
good = '{n},1,{n},Moe Szyslak: Row {n}.,0,true,1,1,Moe Szyslak,Moe\'s Tavern,Row {n}.,row {n},2'.format
damaged = [good(n=1), '2,1,2,"Moe Szyslak: I said "no", pal.",0,true,1,1,Moe Szyslak,Moe\'s Tavern,"I said "no", pal.",i said no pal,4',
           '3,1,3,Moe Szyslak: No, no, no.,0,true,1,1,Moe Szyslak,Moe\'s Tavern,No, no, no.,no no no,3',
           '4,1,4,Moe Szyslak: Out.,0,true,1,1,Moe Szyslak,Moe\'s Tavern,"Out.,out,1', good(n=5), '6,1,6,"Moe Szyslak: Who "took,0,true,1,1', good(n=7)]
bar = read_table("\n".join([",".join(COLUMNS), *damaged]), "bar.csv")
print(bar.account())
print([l.text for l in bar.lines])
[(r.row, r.reason) for r in bar.rejected]

# %% tags=["check"]
assert bar.recovered == [3, 4, 5] and [r.row for r in bar.rejected] == [7] and len(bar.lines) == 6
assert bar.account()["rows"] == 7 == bar.account()["kept"] + bar.account()["recovered"] + bar.account()["rejected"]

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
    text: str,         # such as "Moe Szyslak: Closed."
    known: set = (),   # names that are known
) -> tuple:            # (speaker, what is said); ("", text) where no speaker is named
    "Who says it, and what."
    ends = [m.start() for m in re.finditer(r":(?=\s|$)", text[:100])]
    named = [i for i in ends if text[:i].strip() in known] or [i for i in ends[:1] if 0 < len(text[:i].strip()) <= 60]
    return (text[:named[-1]].strip(), clean(text[named[-1] + 1:])) if named else ("", clean(text))


def parse_lines(
    text: str,       # "Name: line" rows with newlines between
    known: set = (), # names that are known
) -> list:           # (speaker, text) pairs; ("", text) where no speaker is named
    "Lines of a conversation as people write them."
    return [split_name(row.strip(), known) for row in text.splitlines() if row.strip()]


# %% tags=["example"]
parse_lines("Marge Simpson: Homer, the dog is wearing your tie again.\nHomer Simpson: It suits him: he has an interview.\nTechnician: Two: Ready.", {"Technician: Two"})


# %% [markdown]
# Some people put a blank line after *every* line. In such a file one blank line means nothing, and two end a scene.

# %%
#| export
def read_text(
    text: str,       # a whole text file
    where: str,      # its name, for errors
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> Script:         # scenes and account
    "Read `Speaker: line` rows."
    rows, lines, breaks, counts, rejected = text.split("\n"), [], [], Counter(), []
    filled = [bool(r.strip()) for r in rows]
    pairs, together = sum(filled), sum(a and b for a, b in zip(filled, filled[1:]))
    spaced = pairs > 3 and together < pairs/10  # hardly two rows stand together
    episode, location, empty, open_at = 1, "", 0, None  # open_at: indentation of the line that may go on
    for row, raw in enumerate(rows, 1):
        text, indent = " ".join(raw.split()), len(raw) - len(raw.lstrip())
        if not text:
            empty += 1
            if empty > spaced: breaks.append(Line(episode, row, "", "", location, row)); open_at = None
            continue
        empty = 0
        if m := EPISODE.fullmatch(text): episode, location, open_at = int(m[1]), "", None; counts["heading"] += 1
        elif text[0] + text[-1] == "[]": location, open_at = text[1:-1].strip(), None; counts["heading"] += 1; breaks.append(Line(episode, row, "", text, location, row))
        elif text[0] + text[-1] == "()": counts["direction"] += 1
        elif open_at is not None and indent > open_at:
            more = text if keep_directions else without_directions(text)
            lines[-1] = lines[-1]._replace(text=clean(f"{lines[-1].text} {more}")); counts["continuation"] += 1
        else:
            speaker, said = split_name(text)
            speaker = without_directions(speaker)
            if not keep_directions: said = without_directions(said)
            open_at = None
            if not speaker: rejected.append(Rejected(row, "no speaker is named; expected 'Speaker: line', '[Place]' or '(direction)'", text[:120]))
            elif not has_words(said): counts["wordless"] += 1
            else: lines.append(Line(episode, row, speaker, said, location, row)); counts["spoken"] += 1; open_at = indent
    notes = ["every line is followed by a blank one, so two blank lines end a scene here"]*spaced
    return Script(where, "", scenes_of(lines, breaks), {k: counts[k] for k in ("spoken", "heading", "direction", "wordless", "continuation")}, rejected, [], notes, "text")


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
for s in plain.scenes: print(s.location, [f"{l.speaker}: {l.text}" for l in s.lines])
plain.account(), plain.rejected

# %% tags=["check"]
assert len(plain.scenes) == 2 and plain.scenes[0].lines[1].text == "Surprise me. No, wait. Beer." and plain.rejected[0].row == 8
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
TITLE = re.compile(r"(?:title|credit|authors?|source|draft date|date|contact|copyright|notes|revision|format)\s*:", re.I)


def fountain_place(
    text: str, # a row
) -> str:      # the place; None if the row is no scene heading
    "The place that a scene heading names."
    m = PLACE.fullmatch(text)
    if text[:1] == "." and text[1:2] not in ("", "."): place = text[1:]
    elif m: place = m[1]
    else: return None
    place = re.sub(r"\s*#[^#]*#\s*$", "", PLACE.sub(r"\1", place))
    return string.capwords(re.split(r"\s+[-–—]+\s+", place)[0]) or "Scene"


def fountain_cue(
    text: str, # a row with a blank one above it and text below it
) -> str:      # the speaker; None if the row is no cue
    "The speaker that a cue names."
    name = without_directions(text.removesuffix("^").strip()).strip()
    if name[:1] == "@": return name[1:].strip() or None
    return string.capwords(name) if name == name.upper() and re.search(r"[^\W\d_]", name) and name[-1] not in ":.!?" else None


# %%
#| export
def read_fountain(
    text: str,       # a whole Fountain file
    where: str,      # its name, for errors
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> Script:         # scenes and account; a spoken block is one line
    "Read a screenplay in Fountain."
    hide = lambda m: re.sub(r"[^\n]", "", m[0])  # comments leave their line ends, so that rows keep their numbers
    rows = re.sub(r"\[\[.*?\]\]", hide, re.sub(r"/\*.*?(?:\*/|\Z)", hide, text, flags=re.S), flags=re.S).split("\n")
    counts, lines, breaks, rejected = Counter({k: 0 for k in ("spoken", "heading", "direction", "wordless", "continuation", "cue", "note")}), [], [], []
    episode, location, speaker, begun, pending, above = 1, "", None, False, "", True  # above: is the row above blank?
    title = bool(TITLE.match(next((r.strip() for r in rows if r.strip()), "")))
    for row, raw in enumerate(rows, 1):
        plain = " ".join(raw.split())
        if not plain:
            if speaker and raw.startswith("  "): continue  # two spaces: the speech goes on
            title = title and not counts["note"]  # the title page ends at its first blank row
            speaker, above, pending = None, True, ""
            continue
        blank_above, above = above, False
        below = row < len(rows) and bool(rows[row].strip())
        if title: counts["note"] += 1
        elif speaker:
            text = re.sub(r"(?<!\\)[*_]+", "", plain.removeprefix("~")).replace("\\*", "*").replace("\\_", "_").strip()
            if text[:1] + text[-1:] == "()":
                counts["direction"] += 1; pending = f"{text} " if keep_directions else ""; continue
            text, pending = pending + (text if keep_directions else without_directions(text)), ""
            if not has_words(text): counts["wordless"] += 1
            elif begun: lines[-1] = lines[-1]._replace(text=f"{lines[-1].text} {text}"); counts["continuation"] += 1
            else: lines.append(Line(episode, row, speaker, text, location, row)); counts["spoken"] += 1; begun = True
        elif plain[0] == "#":
            m = EPISODE.fullmatch(plain); counts["note"] += 1
            if m: episode, location = int(m[1]), ""
        elif plain[0] == "=": counts["note"] += 1
        elif plain[0] in "!>" or (blank_above and plain.endswith(" TO:") and plain == plain.upper()): counts["direction"] += 1
        elif blank_above and (place := fountain_place(plain)):
            location = place; counts["heading"] += 1; breaks.append(Line(episode, row, "", plain, location, row))
        elif blank_above and below and (name := fountain_cue(plain)): speaker, begun = name, False; counts["cue"] += 1
        else: counts["direction"] += 1
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
for s in screen.scenes: print(s.location, [f"{l.speaker}: {l.text}" for l in s.lines])
screen.account()

# %% tags=["check"]
assert [[l.speaker for l in s.lines] for s in screen.scenes] == [["Homer Simpson", "Carl"], ["McGurk"]] and screen.scenes[0].location == "Power Plant"
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
    record, # one JSON value
) -> tuple: # names of its three fields; None if it has neither spelling
    "Which spelling a record uses."
    return next((k for k in SPELLINGS if isinstance(record, dict) and all(isinstance(record.get(x), str) for x in k)), None)


def read_record(
    record,          # one JSON value
    known: set = (), # names of all who speak
) -> tuple:          # (context pairs, speaker, text), or (None, reason, "")
    "One sample in either spelling."
    if not (keys := spelling_of(record)): return None, "expected text under p, c, l or instruction, input, output", ""
    context, speaker, said = (record[k].encode("utf8", "replace").decode("utf8") for k in keys)
    speaker, said = clean(speaker), clean(said)
    if not speaker or len(speaker) > 60: return None, f"{keys[1]} must be the name of who speaks next", ""
    said = said.removeprefix(f"{speaker}:").strip()
    return (parse_lines(context, known), speaker, said) if has_words(said) else (None, f"nothing is said under {keys[2]}", "")


# %% [markdown]
# In a file of one record a line, one broken line is rejected; a broken list is broken as a whole:

# %%
#| export
def load_records(
    text: str,  # a whole JSON or JSONL file
    where: str, # its name, for errors
) -> tuple:     # ([(row, JSON value)], `Rejected` rows); ValueError if nothing can be read
    "The JSON values of a file, with the lines they stand in (in a list: their places)."
    try: whole = json.loads(text)
    except RecursionError: raise ValueError(f"{where} is nested too deeply; expected a list of records or one record a line") from None
    except json.JSONDecodeError as e:
        found, bad = [], []
        for row, line in enumerate(text.split("\n"), 1):
            if not line.strip(): continue
            try: found.append((row, json.loads(line)))
            except (json.JSONDecodeError, RecursionError) as broken: bad.append(Rejected(row, f"not valid JSON ({getattr(broken, 'msg', 'nested too deeply')})", line[:120]))
        require(any(spelling_of(r) for _, r in found), f"{where} is not valid JSON ({e.msg} at line {e.lineno}); expected a list of records or one record a line")
        return found, bad
    return list(enumerate(whole if isinstance(whole, list) else [whole], 1)), []


# %%
#| export
def read_records(
    text: str,  # a whole JSON or JSONL file
    where: str, # its name, for errors
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
) -> Script:    # scenes and account
    "Read p/c/l or instruction/input/output samples back into scenes."
    records, rejected = load_records(text, where)
    known = {clean(r[keys[1]]) for _, r in records if (keys := spelling_of(r))}
    strip = (lambda t: t) if keep_directions else without_directions
    scenes, so_far, spoken = [], [], 0
    for row, record in records:
        context, speaker, said = read_record(record, known)
        if context is not None and not has_words(strip(said)): context, speaker = None, "nothing is said but directions"
        if context is None: rejected.append(Rejected(row, speaker, json.dumps(record)[:120])); continue
        spoken += 1
        shared = next((n for n in range(min(len(context), len(so_far)), 0, -1) if so_far[-n:] == context[:n]), 0)
        if not shared: scenes.append([]); so_far = []  # a new scene
        new = [(who, what, False) for who, what in context[shared:]] + [(speaker, said, True)]
        scenes[-1] += [Line(0, len(scenes[-1]) + i, who, strip(what), "", row, learn) for i, (who, what, learn) in enumerate(new)]
        so_far += [x[:2] for x in new]
    scenes = [Scene(0, i, "", tuple(l for l in lines if l.text)) for i, lines in enumerate(scenes)]
    return Script(where, "", scenes, {"spoken": spoken}, sorted(rejected, key=attrgetter("row")), [], [], "json")


# %% tags=["check"]
samples = [{"p": "", "c": "Marge", "l": "Dinner!"}, {"p": "Marge: Dinner!", "c": "Homer", "l": "Already?"}, {"p": "Marge: Dinner!\nHomer: Already?", "c": "Marge", "l": "It is noon."}]
renamed = [dict(zip(SPELLINGS[1], s.values())) for s in samples]
for text in (json.dumps(samples), json.dumps(renamed), "\n".join(map(json.dumps, samples))):
    records = read_records(text, "samples.json")
    assert [[(l.speaker, l.text) for l in s.lines] for s in records.scenes] == [[("Marge", "Dinner!"), ("Homer", "Already?"), ("Marge", "It is noon.")]]
assert all(l.learn for l in records.lines) and records.counts == {"spoken": 3} and not records.rejected
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
    name: str, # a file's name
    text: str, # what stands in it
) -> str:      # a key of `READERS`
    "What kind of script a file holds."
    suffix, begin = Path(name).suffix.lower(), text.lstrip()
    if suffix in (".json", ".jsonl", ".ndjson") or re.match(r"\{|\[\s*[\[{\]]", begin) or (suffix in (".csv", ".tsv") and begin[:1] == "["): return "json"
    if suffix in (".fountain", ".spmd"): return "fountain"
    if suffix in (".csv", ".tsv") or {"raw_text", "speaking_line"} <= set(re.findall(r"\w+", begin[:begin.find("\n")].lower())): return "table"
    headings = re.findall(r"^(?:INT|EXT|EST|INT\.?/EXT|I/E)\. ", text, re.M)
    return "fountain" if headings and len(headings) > len(re.findall(r"^\S[^:\n]{0,59}:\s+\S", text, re.M))/10 else "text"


# %%
#| export
def read_script(
    path,                 # a script file, or "springfield": the script that comes with the package
    keep_directions: bool = False, # keep (STAGE DIRECTIONS) inside lines
    encoding: str = None, # a codec's name; None: find out
    format: str = "auto", # table, text, fountain or json; auto: find out
) -> Script:              # FileNotFoundError or ValueError, in one sentence, when it cannot be read
    "Read a script, whatever its format."
    require(format == "auto" or format in READERS, f"format={format!r} was given; expected auto, {', '.join(READERS)}")
    path = Path(simpsons_llm.__file__).parent/"data"/"springfield.csv" if str(path) == "springfield" else Path(path)
    if not path.is_file(): raise FileNotFoundError(f"no script at {path}; give the path of a table, text, Fountain or JSON file, or springfield for the script that comes with the package")
    text, encoding = decode(path.read_bytes(), path.name, encoding)
    require(text.strip(), f"{path.name} is empty; {HINT}")
    with collector_off(): script = READERS[find_format(path.name, text) if format == "auto" else format](text, path.name, keep_directions)
    if not script.lines:
        why = "; ".join(f"{r}: {n} rows" for r, n in Counter(r.reason for r in script.rejected).most_common(3)) or "it has no spoken rows"
        raise ValueError(f"{path.name} holds no spoken line that can be used ({why}); read as {script.format}, {HINT}")
    script.path, script.encoding = str(path), encoding
    return script


# %% [markdown]
# The script that comes with the book:

# %% tags=["example"]
script = read_script("springfield")
script.account()

# %% tags=["example"]
pd.DataFrame([(l.speaker, l.text) for l in script.scenes[0].lines], columns=["speaker", script.scenes[0].location])

# %% tags=["check"]
account = script.account()
assert account["rows"] == account["kept"] and account["rejected"] == account["recovered"] == 0
assert account["spoken"] == len(script.lines) == sum(script.speakers.values())
assert all(len({l.location for l in s.lines}) == 1 for s in script.scenes)


# %% [markdown]
# The same scenes, written in each of the other formats, come back as the same lines:

# %% tags=["check"]
def as_text(scenes): return "\n".join(f"[Episode {s.episode}]\n[{s.location}]\n" + "".join(f"{l.speaker}: {l.text}\n" for l in s.lines) for s in scenes)
def as_fountain(scenes): return "".join(f"# Episode {s.episode}\n\n.{s.location}\n\n" + "".join(f"@{l.speaker}\n{l.text}\n\n" for l in s.lines) for s in scenes)
def as_records(scenes): return json.dumps([{"p": "\n".join(f"{b.speaker}: {b.text}" for b in s.lines[:i]), "c": l.speaker, "l": l.text} for s in scenes for i, l in enumerate(s.lines)])
want = [[(l.speaker, l.text) for l in s.lines] for s in script.scenes]
for name, write in (("s.txt", as_text), ("s.fountain", as_fountain), ("s.json", as_records)):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/name).write_text(write(script.scenes), encoding="utf8")
        again = read_script(Path(folder)/name)
    assert [[(l.speaker, l.text) for l in s.lines] for s in again.scenes] == want and not again.rejected, name

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
    for name, content in {"shopping.csv": "item,price\ndonut,1", "empty.csv": " ", "half.json": '[{"p": ', "headings.csv": ",".join(COLUMNS), "letter.txt": "Dear Sir,\nno."}.items():
        (Path(folder)/name).write_text(content)
        try: read_script(Path(folder)/name); raise AssertionError(name)
        except ValueError as e: print(e)
