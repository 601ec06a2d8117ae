# %%
#| default_exp data.lines

# %% [markdown]
# # Lines, scenes and the public table
#
# > A table of lines becomes scenes, damaged rows are recovered where they are certain, and every row is accounted for.
#
# A script is text that people typed: episodes, locations, speakers, words, and now and then a broken row. A model that talks like Homer needs from it the *scenes*: who says what, in which order, until the place changes. This chapter has the records for that, and reads the public Kaggle table `simpsons_script_lines.csv` and any table with the same columns. Other formats are read in [reading a script](11_formats.ipynb).

# %%
#| export
import csv
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from simpsons_llm.machine.job import require


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
    "Lines in one place, in order."

    episode: int  # episode number
    index: int  # order of the scene within the episode, counted from 0
    location: str  # where
    lines: tuple  # the `Line`s


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
# ## The script, with its account
#
# What a reader gets is a `Script`: scenes, and an account of all rows that always adds up. A row is *kept* as it stands, *recovered* although it was damaged, or *rejected*. What was kept or recovered is of some kind: spoken lines, headings, directions (what somebody does), rows without words, and, in text files, rows that go on with the line before.

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
    format: str = "table"  # table, text, fountain or json

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
# ## From bytes to text
#
# Files come with byte order marks, as UTF-8, UTF-16 or in the Latin-1 family of older Windows programs. UTF-8 is strict: text in another encoding fails to decode as UTF-8 almost surely, so trying it first is safe. Windows-1252 accepts nearly anything, so it comes last.

# %%
#| export
def decode(
    data: bytes,  # a file's bytes
    name: str = "file",  # its name, for the error
    encoding: str | None = None,  # a codec's name; None: find out
) -> tuple:  # (text with \n line ends, name of the encoding)
    "Text of a script file, whatever wrote it."
    bom = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else None
    for codec in [encoding] if encoding else [bom] if bom else ["utf-8-sig", "cp1252", "latin-1"]:
        try:
            text = data.decode(codec)
            break
        except UnicodeDecodeError:
            continue
        except LookupError:
            raise ValueError(f"encoding {codec!r} is not known; use a name such as utf-8, cp1252 or utf-16") from None
    else:
        raise ValueError(f"{name} is not text in encoding {encoding or bom}; leave the encoding out or name another")
    if codec == "utf-8-sig" and data[:3] != b"\xef\xbb\xbf":
        codec = "utf-8"
    require("\0" not in text, f"{name} holds binary data, not a script; expected a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n"), codec


# %% tags=["example"]
decode("Moe: Order a café, pal.".encode("utf-8-sig")), decode("Moe: Order a café, pal.".encode("cp1252"))

# %% tags=["check"]
for codec in ("utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"):
    assert decode("café\r\n".encode(codec))[0] == "café\n"
for bad, encoding in ((b"PK\0\0", None), (b"caf\xe9", "utf-8"), (b"x", "klingon")):
    try:
        decode(bad, "x.csv", encoding)
        raise AssertionError
    except ValueError:
        pass

# %% [markdown]
# ## The Kaggle table
#
# Seven of its thirteen columns matter here. `raw_text` holds the row as it was typed, such as `Moe Szyslak: (WIPING GLASS) Closed.`; `spoken_words` holds the same without speaker and stage directions. A row with `speaking_line` false is a heading, `(Moe's Tavern: int. moe's tavern - night)`, or a direction, `(Barney raises his hand.)`.

# %%
#| export
COLUMNS = (
    "id",
    "episode_id",
    "number",
    "raw_text",
    "timestamp_in_ms",
    "speaking_line",
    "character_id",
    "location_id",
    "raw_character_text",
    "raw_location_text",
    "spoken_words",
    "normalized_text",
    "word_count",
)
NEEDED = (
    "episode_id",
    "number",
    "raw_text",
    "speaking_line",
    "raw_character_text",
    "raw_location_text",
    "spoken_words",
)
HINT = (
    "expected a table with the columns of simpsons_script_lines.csv, "
    "a text of 'Speaker: line' rows, a Fountain screenplay, or JSON samples"
)


# %% [markdown]
# A table without these columns is another kind of file. The error names what is missing. Programs that think in other languages write tables with semicolons or tabs, so the separator is the one that finds the most columns.

# %%
#| export
def read_header(
    first: str,  # the first line of the file
    where: str,  # the file's name, for the error
) -> tuple:  # (column name -> position, separator)
    "Positions of the columns; ValueError naming the ones that are missing."
    names = {s: next(csv.reader([first], delimiter=s), []) for s in ",;\t"}
    at = {s: {n.strip().lower(): i for i, n in enumerate(ns)} for s, ns in names.items()}
    separator = max(at, key=lambda s: len(set(NEEDED) & at[s].keys()))
    missing = [n for n in NEEDED if n not in at[separator]]
    require(not missing, f"{where} lacks the column{'s'[: len(missing) > 1]} {', '.join(missing)}; {HINT}")
    return at[separator], separator


# %% [markdown]
# Text is brought onto one line, and stage directions are taken out of it:

# %%
#| export
def clean(
    text: str,  # a field's text
) -> str:  # on one line, single spaces; "" for NA
    "One field as plain text."
    return "" if text == "NA" else " ".join(text.split())


clean_name = lru_cache(10_000)(clean)  # the same few names and places, again and again


def without_directions(
    text: str,  # what somebody says
) -> str:  # the words alone
    "Take (STAGE DIRECTIONS) out of a line."
    return clean(re.sub(r"\([^()]*\)", " ", text)) if "(" in text else text


def has_words(
    text: str,  # what somebody says
) -> bool:  # False for "", "(SIGHS)" and "..."
    "Whether anything is left to learn."
    return text[:1].isalnum() or bool(re.search(r"\w", without_directions(text)))


# %% tags=["check"]
assert without_directions("(WIPING GLASS) Closed. (BEAT) Go home.") == "Closed. Go home." and clean("NA") == ""
assert [has_words(t) for t in ("Pie.", "...pie", "(SIGHS)", "", "...!", "(SIGHS) Oh")] == [
    True,
    True,
    False,
    False,
    False,
    True,
]


# %% [markdown]
# One row after another. A row must have as many fields as the header, whole numbers for episode and position, and, when it is spoken, a speaker. What fails is rejected with the reason. A spoken row without words, such as `(SIGHS)`, is counted as wordless: it is fine, there is just nothing to learn from it.

# %%
#| export
def read_row(
    fields: list,  # one row's fields
    at: dict,  # column name -> position
    row: int,  # line of the file, for later messages
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> tuple:  # (kind, Line or heading's location or reason); kind: spoken, heading, direction, wordless, rejected
    "What one row of the table is."
    if len(fields) != len(at):
        return "rejected", f"{len(fields)} fields, expected {len(at)}"
    try:
        episode, number = int(fields[at["episode_id"]]), int(fields[at["number"]])
    except ValueError:
        return "rejected", "episode_id and number must be whole numbers"
    speaking, location, speaker = (
        fields[at["speaking_line"]].strip().lower(),
        clean_name(fields[at["raw_location_text"]]),
        clean_name(fields[at["raw_character_text"]]),
    )
    if speaking == "false":
        raw = clean(fields[at["raw_text"]])
        heading = (
            raw.lower().startswith(f"({location}:".lower())
            if location
            else ": int" in raw.lower() or ": ext" in raw.lower()
        )
        return ("heading" if heading else "direction"), Line(episode, number, "", raw, location, row)
    if speaking != "true":
        return "rejected", "speaking_line must be true or false"
    text = (
        clean(fields[at["raw_text"]]).removeprefix(f"{speaker}:").strip()
        if keep_directions
        else clean(fields[at["spoken_words"]])
    )
    if not has_words(text):
        return "wordless", Line(episode, number, speaker, "", location, row)
    if not speaker:
        return "rejected", "spoken, but no speaker is named"
    return "spoken", Line(episode, number, speaker, text, location, row)


# %% tags=["example"]
at = {name: i for i, name in enumerate(COLUMNS)}
spoken = [
    "12",
    "3",
    "4",
    "Moe Szyslak: (WIPING GLASS) Closed.",
    "9000",
    "true",
    "1",
    "15",
    "Moe Szyslak",
    "Moe's Tavern",
    "Closed.",
    "closed",
    "1",
]
read_row(spoken, at, 14), read_row(spoken, at, 14, keep_directions=True)[1].text, read_row(spoken[:9], at, 14)

# %% [markdown]
# ## A damaged row that is still certain
#
# Some rows of the public table hold quotation marks and commas that nobody escaped; read as CSV they fall into up to 20 fields, or swallow the rows below them. Yet the table says most things twice. `raw_text` is speaker, colon and words; `spoken_words` is the words again. So a row can be cut by its fixed parts (three numbers at the start; time, true or false and two numbers in the middle; a number at the end), and the cut is *certain* if the speaker stands in `raw_text` and both texts have the same letters. Then the row is recovered. In doubt it is rejected: a wrong line does more harm than a missing one.

# %%
#| export
DAMAGED = re.compile(r"(\d+),(\d+),(\d+),(.*),(\d+|NA|),(true|false),(\d*|NA),(\d*|NA),(.*)", re.I | re.S)


def unquote(
    piece: str,  # a field as it stands in the file
) -> str:  # its text
    "A field without its outer quotation marks and escapes."
    piece = piece.strip()
    if piece[:1] == '"':
        piece = piece[1:].removesuffix('"') if piece[-1:] == '"' and len(piece) > 1 else piece[1:]
    return re.sub(r'\\"|""', '"', piece)


def letters(
    text: str,  # any text
) -> str:  # such as "dohmydonut"
    "The letters and digits of a text, for comparing."
    return re.sub(r"[\W_]+", "", text).lower()


# %%
#| export
def recover_row(
    text: str,  # a damaged row of a table with the thirteen columns, as it stands in the file
) -> list | None:  # its fields; None unless they are certain
    "Cut a damaged row by its fixed parts, and hold its two texts against each other."
    m = DAMAGED.fullmatch(text.strip())
    if not m:
        return None
    raw, rest = unquote(m[4]), m[9]
    if m[6].lower() == "false":
        m2 = re.fullmatch(r"(?:NA)?,(.*),(?:NA)?,(?:NA)?,(?:NA)?", rest, re.S)
        location = unquote(m2[1]) if m2 else '"'
        sure = '"' not in location and ("," not in location or raw.lower().startswith(f"({location}".lower()))
        return [*m.groups()[:3], raw, *m.groups()[4:8], "", location, "", "", ""] if sure else None
    m2 = re.fullmatch(r'(.*),([^,"]*),(\d*|NA)', rest, re.S)
    if not m2:
        return None

    def commas(s):
        return [i for i, c in enumerate(s) if c == ","]

    for i in commas(m2[1]):
        speaker = unquote(m2[1][:i])
        if not speaker or not raw.startswith(f"{speaker}:"):
            continue
        said, rest = letters(without_directions(raw[len(speaker) + 1 :])), m2[1][i + 1 :]
        cuts = [
            j
            for j in commas(rest)
            if letters(without_directions(unquote(rest[j + 1 :]))) == said and '"' not in unquote(rest[:j])
        ]
        if len(cuts) == 1:
            return [
                *m.groups()[:3],
                raw,
                *m.groups()[4:8],
                speaker,
                unquote(rest[: cuts[0]]),
                unquote(rest[cuts[0] + 1 :]),
                m2[2],
                m2[3],
            ]
    return None


# %% tags=["example"]
for row in (
    '7,1,3,"Homer Simpson: They call it "light", and it is, too.",9000,true,2,1,'
    'Homer Simpson,Home,"They call it "light", and it is, too.",they call it light and it is too,8',
    "8,1,4,Homer Simpson: Pie, cake, pie.,9000,true,2,1,Homer Simpson,Home,Pie, cake, pie.,pie cake pie,3",
    "9,1,5,Homer Simpson: Pie, cake, pie.,9000,true,2,1,Homer Simpson,Home,Cake, pie.,cake pie,2",
):
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

    def __init__(
        self,
        text: str,  # a whole file
        most: int = 100,  # most lines of one row
    ):
        self.lines, self.at, self.most, self.begin = text.split("\n"), 0, most, 0

    def __iter__(self):
        lines = self.lines
        while self.at < len(lines) and self.at - self.begin < self.most:
            self.at += 1
            yield lines[self.at - 1] + "\n"

    def go_back(
        self,
        row_start,  # pattern of a row's beginning; None: any line may be one
    ):
        "End the row that began at `begin` before the next line that looks like a row."
        self.at = next(
            (k for k in range(self.begin + 1, self.at) if row_start is None or row_start.match(self.lines[k])), self.at
        )


# %% [markdown]
# A row that repeats an episode's position would put two lines in one place; the second is rejected. An `id` that comes twice with another position is only noted: the position decides, and tables are often joined from parts that each count from 1.

# %%
#| export
def read_table(
    text: str,  # a whole CSV file
    where: str,  # its name, for errors
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> Script:  # scenes and account; ValueError if columns are missing
    "Read a table in the format of simpsons_script_lines.csv."
    csv.field_size_limit(1 << 30)
    feed = Feed(text.lstrip("\n"))
    skipped, first = len(text) - len(text.lstrip("\n")), next(iter(feed), "")
    at, separator = read_header(first, where)
    standard = tuple(at) == COLUMNS and separator == ","
    row_start = re.compile(r"\d+,\d+,\d+,") if standard else None

    # from where the feed stands
    def rows():
        return csv.reader(iter(feed), delimiter=separator, strict=True)

    found: dict[str, list] = {k: [] for k in ("spoken", "heading", "direction", "wordless")}
    seen: dict[tuple, int] = {}  # (episode, number) -> its row
    reader, rejected, recovered = rows(), [], []
    ids, twice, id_at = set(), 0, at.get("id")
    while feed.at < len(feed.lines):
        feed.begin = feed.at
        row = feed.begin + skipped + 1
        try:
            fields, broken = next(reader), None
        except StopIteration:
            break
        except csv.Error:
            fields, broken = None, "quotation marks that do not match"
        if fields == []:
            continue  # an empty line is no row
        if (
            fields
            and feed.at > feed.begin + 1
            and row_start
            and any(map(row_start.match, feed.lines[feed.begin + 1 : feed.at]))
        ):
            broken = "quotation marks that do not match"
        if broken:
            spans, _ = feed.at, feed.go_back(row_start)
            reader = rows()
            if spans > feed.at:
                broken += f" (read as CSV it spans lines {row} to {spans + skipped}: an unclosed quote?)"
            if not any(c.strip() for c in feed.lines[feed.begin : feed.at]):
                continue
        kind, what = ("rejected", broken) if broken else read_row(fields, at, row, keep_directions)
        mended = recover_row("\n".join(feed.lines[feed.begin : feed.at])) if kind == "rejected" and standard else None
        if mended:
            fields, (kind, what) = mended, read_row(mended, at, row, keep_directions)
        if kind != "rejected" and (before := seen.setdefault((what.episode, what.number), row)) != row:
            kind, what = "rejected", f"same episode_id and number as line {before}"
        if kind == "rejected":
            rejected.append(Rejected(row, what, " ".join(feed.lines[feed.begin : feed.at])[:120]))
        else:
            found[kind].append(what)
            if mended:
                recovered.append(row)
            if id_at is not None and (name := fields[id_at]):
                twice += name in ids
                ids.add(name)
    notes = [f"{twice} rows repeat the id of another row; they are kept, since their episode and number differ"] * bool(
        twice
    )
    return Script(
        where,
        "",
        scenes_of(found["spoken"], found["heading"]),
        {k: len(v) for k, v in found.items()},
        rejected,
        recovered,
        notes,
        "table",
    )


# %% [markdown]
# Four damaged rows among good ones. The first three are recovered, though the third never closes its quotation mark; the last is rejected:

# %% tags=["example"]
good = "{n},1,{n},Moe Szyslak: Row {n}.,0,true,1,1,Moe Szyslak,Moe's Tavern,Row {n}.,row {n},2".format
damaged = [
    good(n=1),
    '2,1,2,"Moe Szyslak: I said "no", pal.",0,true,1,1,Moe Szyslak,Moe\'s Tavern,"I said "no", pal.",i said no pal,4',
    "3,1,3,Moe Szyslak: No, no, no.,0,true,1,1,Moe Szyslak,Moe's Tavern,No, no, no.,no no no,3",
    "4,1,4,Moe Szyslak: Out.,0,true,1,1,Moe Szyslak,Moe's Tavern,\"Out.,out,1",
    good(n=5),
    '6,1,6,"Moe Szyslak: Who "took,0,true,1,1',
    good(n=7),
]
bar = read_table("\n".join([",".join(COLUMNS), *damaged]), "bar.csv")
print(bar.account())
print([line.text for line in bar.lines])
[(r.row, r.reason) for r in bar.rejected]

# %% tags=["check"]
assert bar.recovered == [3, 4, 5] and [r.row for r in bar.rejected] == [7] and len(bar.lines) == 6
assert bar.account()["rows"] == 7 == bar.account()["kept"] + bar.account()["recovered"] + bar.account()["rejected"]
