# %%
#| default_exp data.tables

# %% [markdown]
# # Tables and records
#
# > Scripts that come as rows with columns: the public table with its damaged rows, any table with named columns, Parquet, film dialogues, and the JSON records of chat data.
#
# Most scripts that people pass on are tables, and no two have the same columns. One says `Character` and `Line`, another `speaker` and `line_text`; Excel puts semicolons between them, pandas makes `1.0` of an episode. Chat data is the same thing in braces. This chapter finds out what stands where, says so, and keeps account of each row. Which reader a file gets is decided in [any script](13_formats.ipynb).

# %%
#| export
import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

from simpsons_llm.data.lines import (
    AUTO,
    Line,
    Reading,
    Scene,
    Script,
    Tally,
    clean,
    clean_name,
    has_words,
    parse_lines,
    scenes_of,
    split_name,
    without_directions,
)
from simpsons_llm.machine.job import require

# %%
#| hide
import pandas as pd

# %% [markdown]
# ## The public table
#
# Seven of its thirteen columns matter here. `raw_text` holds the row as it was typed, such as `Moe Szyslak: (WIPING GLASS) Closed.`; `spoken_words` holds the same without speaker and stage directions. A row with `speaking_line` false is a heading, `(Moe's Tavern: int. moe's tavern - night)`, or a direction, `(Barney raises his hand.)`.
#
# Whatever the table, nobody says a hundred thousand letters in one go, and no name has hundreds. What is longer is no row of a script, and is rejected before any pattern is tried on it.

# %%
#| export
COLUMNS = (
    *("id", "episode_id", "number", "raw_text", "timestamp_in_ms", "speaking_line", "character_id", "location_id"),
    *("raw_character_text", "raw_location_text", "spoken_words", "normalized_text", "word_count"),
)
NEEDED = (
    *("episode_id", "number", "raw_text", "speaking_line", "raw_character_text", "raw_location_text", "spoken_words"),
)
MOST_ROW, MOST_TEXT, MOST_NAME = 1_000_000, 100_000, 200  # letters of a row, of what one says, of a name


def whole(
    cell: str,  # such as "3", or "3.0" from a program that knows no whole numbers beside empty cells
) -> int:  # such as 3; ValueError if it is no whole number
    "The whole number in a cell."
    return int(cell.strip().removesuffix(".0"))


# %% [markdown]
# One row after another. A row must have as many fields as the header, whole numbers for episode and position, and, when it is spoken, a speaker. What fails is rejected with the reason. A spoken row without words, such as `(SIGHS)`, is counted as wordless: it is fine, there is just nothing to learn from it.

# %%
#| export
def read_row(
    fields: list,  # one row's fields
    at: dict,  # column name -> position
    row: int,  # line of the file, for later messages
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> tuple:  # (kind, Line or reason); kind: spoken, heading, direction, wordless, rejected
    "What one row of the table is."
    if len(fields) != len(at):
        return "rejected", f"{len(fields)} fields, expected {len(at)}"
    try:
        episode, number = whole(fields[at["episode_id"]]), whole(fields[at["number"]])
    except ValueError:
        return "rejected", "episode_id and number must be whole numbers"
    speaking, place, speaker = (fields[at[n]] for n in ("speaking_line", "raw_location_text", "raw_character_text"))
    if max(len(place), len(speaker)) > MOST_NAME:
        return "rejected", f"a name of more than {MOST_NAME} letters"
    speaking, location, speaker = speaking.strip().lower(), clean_name(place), clean_name(speaker)
    if speaking == "false":
        raw = clean(fields[at["raw_text"]])
        begin = raw.lower()
        heading = begin.startswith(f"({location}:".lower()) if location else ": int" in begin or ": ext" in begin
        return ("heading" if heading else "direction"), Line(episode, number, "", raw, location, row)
    if speaking != "true":
        return "rejected", "speaking_line must be true or false"
    text = fields[at["raw_text" if keep_directions else "spoken_words"]]
    if len(text) > MOST_TEXT:
        return "rejected", f"more than {MOST_TEXT:,} letters in one line"
    text = clean(text).removeprefix(f"{speaker}:").strip() if keep_directions else clean(text)
    if not has_words(text):
        return "wordless", Line(episode, number, speaker, text, location, row)
    if not speaker:
        return "rejected", "spoken, but no speaker is named"
    return "spoken", Line(episode, number, speaker, text, location, row)


# %% tags=["example"]
at = {name: i for i, name in enumerate(COLUMNS)}
typed = "12|3|4|Moe Szyslak: (WIPING GLASS) Closed.|9000|true|1|15|Moe Szyslak|Moe's Tavern|Closed.|closed|1"
spoken = typed.split("|")
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
class Row(NamedTuple):
    "One row of any table."

    row: int  # line of the file where it begins, counted from 1
    fields: list  # its cells, as text
    broken: str = ""  # why it cannot be right; empty: it may be
    raw: str = ""  # as it stands in the file, if it stands in a text


class Feed:
    "Lines of a text one after the other, with a way back."

    def __init__(
        self,
        text: str,  # a whole file
        at: int = 0,  # the line to begin with
        most: int = 100,  # most lines of one row
    ):
        self.lines, self.at, self.most, self.begin = text.split("\n"), at, most, at

    def __iter__(self):
        lines = self.lines
        while self.at < len(lines) and self.at - self.begin < self.most and len(lines[self.at]) <= MOST_ROW:
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


# %%
#| export
def csv_rows(
    feed: Feed,  # a file's lines, behind the header
    separator: str,  # what stands between the fields
    width: int,  # fields of the header
    row_start=None,  # pattern of a row's beginning; None: any line may be one
    style: dict | None = None,  # what `csv.reader` should know besides
) -> Iterator[Row]:  # each row once
    "Rows of delimited text; one that cannot be right takes no other with it."
    csv.field_size_limit(1 << 30)
    reader = None
    while feed.at < len(feed.lines):
        feed.begin, fields, broken = feed.at, [], ""
        row = feed.begin + 1
        if len(feed.lines[feed.at]) > MOST_ROW:
            feed.at += 1
            yield Row(row, [], f"a row of {len(feed.lines[feed.begin]):,} letters", feed.lines[feed.begin])
            continue
        try:
            reader = reader or csv.reader(iter(feed), delimiter=separator, strict=True, **(style or {}))
            fields = next(reader)
        except (csv.Error, StopIteration):
            broken = "quotation marks that do not match"
        if not broken and not "".join(fields[:2]).strip() and len(fields) < 2:
            continue  # an empty line is no row
        if feed.at > feed.begin + 1:
            swallowed = feed.lines[feed.begin + 1 : feed.at]
            if any(map(row_start.match, swallowed)) if row_start else len(fields) > width:
                broken = "quotation marks that do not match"
        if broken:
            spans, reader = feed.at, None
            feed.go_back(row_start)
            if spans > feed.at:
                broken += f" (read as CSV it spans lines {row} to {spans}: an unclosed quote?)"
        raw = "\n".join(feed.lines[feed.begin : feed.at])
        if not broken or raw.strip():
            yield Row(row, fields, broken, raw)


# %% [markdown]
# A row that repeats an episode's position would put two lines in one place; the second is rejected. An `id` that comes twice with another position is only noted: the position decides, and tables are often joined from parts that each count from 1.

# %%
#| export
def read_standard(
    rows: Iterable[Row],  # the rows behind the header
    at: dict,  # column name -> position
    where: str,  # the file's name
    how: Reading,  # what a person said
    mend: bool = False,  # recover damaged rows: the thirteen columns, with commas between
) -> Script:  # scenes and account
    "Read rows of the public table."
    tally, recovered = Tally(), []
    lines: list[Line] = []
    headings: list[Line] = []
    seen: dict[tuple, int] = {}  # (episode, number) -> its row
    ids, twice, id_at = set(), 0, at.get("id")
    for row, fields, broken, raw in rows:
        kind, what = ("rejected", broken) if broken else read_row(fields, at, row, how.keep_directions)
        mended = recover_row(raw) if mend and kind == "rejected" and len(raw) <= MOST_TEXT else None
        if mended:
            fields, (kind, what) = mended, read_row(mended, at, row, how.keep_directions)
        if kind != "rejected" and (before := seen.setdefault((what.episode, what.number), row)) != row:
            kind, what = "rejected", f"same episode_id and number as line {before}"
        if kind == "rejected":
            tally.reject(row, what, raw.replace("\n", " ") or " ".join(fields))
            continue
        tally.add(kind, what.text)
        if kind in ("spoken", "heading"):
            (lines if kind == "spoken" else headings).append(what)
        if mended:
            recovered.append(row)
        if id_at is not None and (name := fields[id_at]):
            twice += name in ids
            ids.add(name)
    note = f"{twice} rows repeat the id of another row; they are kept, since their episode and number differ"
    return Script.of(where, scenes_of(lines, headings), tally, "table", [note] * bool(twice), recovered)


# %% [markdown]
# ## Which column is which
#
# Any other table is understood by the names of its columns. They are compared by letters and digits alone, so `Spoken Words` is `spoken_words`. For each thing to know there is a row of names as public tables use them, the surest first: a table with `text` *and* `line` has a number in `line`.

# %%
#| export
ROLES = {
    "speaker": "speaker speakername character charactername rawcharactertext person personscene actor author player "
    "char who name role username user sender sendername from spokenby sprecher figur personaje personnage personagem "
    "personaggio postac персонаж 角色 人物 キャラクター",
    "text": "spokenwords linetext characterwords dialogue dialog dialoguetext text utterance sentence speech quote "
    "line lines message content value transcript playerline fulltext rawtext what "
    "texto texte replique dialogo fala battuta kwestia реплика 台词 对白 セリフ",
    "season": "season seasonno seasonnumber seasonnum seasonid booknum staffel saison temporada stagione sezon сезон "
    "季 series",
    "episode": "episode episodeno episodenumber episodenum episodeid ep epno epnum seid chapternum folge episodename "
    "episodetitle eptitle title chapterid movie movietitle film play episodio odcinek серия эпизод 集 話数",
    "show": "show showname showtitle tvshow tvseries seriesname seriestitle",
    "scene": "scene sceneid sceneno scenenumber scenenum sceneindex dialogueid dialogid conversationid szene",
    "location": "location rawlocationtext locationname place placeid setting scenelocation ort",
    "order": "number order lineno linenumber linenum lineorder quoteorder position sequence turn utteranceid utterance",
    "kind": "kind type linetype rowtype elementtype speakingline",
    "deleted": "deleted isdeleted deletedscene cut removed",
}


LIKELY = {  # words within longer names, such as character_name and line.text
    "speaker": set("speaker character char sender actor author".split()),
    "text": set("text dialogue dialog line quote utterance message sentence speech script transcript words".split()),
}
UNLIKELY = set(
    "id ids number num no nr count counts index order length gender sex age type time times date start end url file "
    "path class label score rating title language lang role by".split()
)


def guess_columns(
    header: list,  # names of the columns
) -> dict:  # what a column holds -> its position, counted from 0
    "What the columns of a table hold, by their names."
    names: dict[str, int] = {}
    for i, name in enumerate(header):
        names.setdefault(letters(unicodedata.normalize("NFKD", str(name)[:MOST_NAME])), i)
    found: dict[str, int] = {}
    for role, known in ROLES.items():
        place = next((names[n] for n in known.split() if n in names and names[n] not in found.values()), None)
        if place is not None:
            found[role] = place
    for role, likely in LIKELY.items():
        if role not in found:
            parts = [set(re.findall(r"[^\W\d_]+", str(name)[:MOST_NAME].lower())) for name in header]
            fit = (i for i, p in enumerate(parts) if p & likely and not p & UNLIKELY and len(p) < 4)
            place = next((i for i in fit if i not in found.values()), None)
            found |= {} if place is None else {role: place}
    return found


# %% tags=["example"]
for header in ("Season,Episode,Character,Line", "id,scene,line_text,speaker,deleted", "line,text,name", "Ware,Preis"):
    print(f"{header:36} {guess_columns(header.split(','))}")


# %% [markdown]
# Names that are not in these rows are looked at word by word: `character_name` has a character, `line.text` a text, `line_id` neither. Below a title, the first row of which both are known is the header. A show's name keeps its episodes apart from another show's.
#
# A person who knows better names the column, `speaker=Character`, or its place, `speaker=1`; `speaker==Otto` says that Otto speaks all rows, and `season=` that there is nothing of the kind. Where only places are given, the first row is a row like any other, unless it holds names. What she does not name is still guessed, and all of it is told.

# %%
#| export
def shown_header(
    header: list,  # names of the columns
) -> str:  # the first twelve, short
    "Names of columns, for a message."
    names = [" ".join(str(n)[:30].split()) or "(no name)" for n in header[:12]]
    return ", ".join(names) + ", ..." * (len(header) > 12)


def choose_columns(
    header: list,  # the first row
    wanted: dict,  # what a person said: what a column holds -> its name, its place from 1, "=Otto" or ""
    where: str,  # the file's name, for errors
) -> tuple:  # (what a column holds -> position, whether the first row is data)
    "Find the columns; ValueError naming those that there are."
    unknown = [k for k in wanted if k not in ROLES]
    require(not unknown, f"columns says {', '.join(unknown)}; expected {', '.join(ROLES)}, such as speaker=Character")
    names = [letters(str(n)[:MOST_NAME]) for n in header]
    guessed, told, named = guess_columns(header), {}, False
    places = [n for n in wanted.values() if n.isdecimal()]
    places = [] if all(n in header for n in places) else places  # columns may be called 0 and 1
    for role, name in wanted.items():
        if not name or (role == "speaker" and name[0] == "="):
            continue
        exact = [i for i, n in enumerate(header) if str(n).strip() == name.strip() and name not in places]
        exact = exact or [i for i, n in enumerate(names) if n and n == letters(name) and name not in places]
        place = int(name) - 1 if name.isdecimal() and len(name) < 6 else -1
        require(
            exact or 0 <= place < len(header),
            f"{where} has no column {name!r} for {role}; its first row is: {shown_header(header)}",
        )
        told[role], named = (exact[0] if exact else place), named or bool(exact)
    data = bool(told) and not named and not any(names[i] in ROLES[role].split() for role, i in told.items())
    taken = {} if data else {r: i for r, i in guessed.items() if r not in wanted and i not in told.values()}
    at = {r: told.get(r, taken.get(r)) for r in ROLES if r in told or r in taken}
    missing = [r for r in ("speaker", "text") if r not in at and not wanted.get(r)]
    require(
        not missing,
        f"{where} has no column that is known as {' or '.join(missing)}, its first row is: {shown_header(header)}; say "
        "which it is with --columns speaker=NAME,text=NAME, or by place, --columns speaker=1,text=2",
    )
    return at, data


# %% tags=["example"]
for wanted in ({"speaker": "Wer", "text": "Was"}, {"speaker": "2", "text": "3"}, {"text": "Was", "speaker": "=Otto"}):
    print(choose_columns(["Nr", "Wer", "Was"], wanted, "x.csv"))
for wanted in ({}, {"speaker": "Who"}, {"hero": "Wer"}):
    try:
        choose_columns(["Nr", "Wer", "Was"], wanted, "x.csv")
        raise AssertionError
    except ValueError as e:
        print(e)

# %% [markdown]
# ## Episodes and their order
#
# A line's episode is a number. Where seasons are told, `2` in season 3 is 302, so that both seasons' second episodes stay apart. `S03E02`, `Episode 2` and `2.0` are numbers, too. Titles are numbered as they come. In a column of numbers a cell that is none is a damaged row, and is rejected; an empty cell means "as above", as people leave it in a spreadsheet.

# %%
#| export
CODE = re.compile(
    r"s(?:eason|eries)?\W*(\d{1,4})\W*e(?:p(?:isode)?)?\W*(\d{1,5})\b.*|(\d{1,3})x(\d{1,4})\b.*", re.I | re.S
)
NUMBER = re.compile(
    r"(?:season|series|staffel|book|episode|folge|chapter|part|ep|[se]|no)?[\W_]*(\d{1,6})(?:\.0+)?(?:\W+\d+)?", re.I
)


def number_episodes(
    places: Iterable,  # (season, episode) of each row, as the cells say it
) -> tuple:  # ((season, episode) -> number, None for a damaged cell; a note, or "")
    "One whole number for each episode."
    parts: dict[tuple, list] = {}
    for season, episode in dict.fromkeys(places):
        code, s, e = CODE.fullmatch(episode), NUMBER.fullmatch(season), NUMBER.fullmatch(episode)
        parts[season, episode] = [int(s[1]) if s else None, int(e[1]) if e else None]
        if code:
            parts[season, episode] = [int(code[1] or code[3]), int(code[2] or code[4])]
    notes, seasons = [], any(p[0] is not None or key[0] for key, p in parts.items())
    for i, word in ((0, "seasons"), (1, "episodes")):
        cells = {key[i] for key in parts if key[i]}
        known = {key[i] for key, p in parts.items() if key[i] and p[i] is not None}
        if len(known) * 2 < len(cells) or len(cells) == 1 > len(known):
            count: Counter[str] = Counter()
            seen: dict[tuple, int] = {}
            for key, p in parts.items():
                group = key[0] if i else ""
                if (group, key[i]) not in seen:
                    count[group] += 1
                p[i] = seen.setdefault((group, key[i]), count[group])
            notes.append(f"{word} have names, and are numbered in the order in which they come")
    base = max(100, 10 ** len(str(max((e or 0 for _, e in parts.values()), default=0))))
    found: dict[tuple, int | None] = {}
    for (season, episode), (s, e) in parts.items():
        damaged = (season and s is None) or (episode and e is None)
        alone = s if not episode and e is None else (s or 0) * base + (e or 0)
        found[season, episode] = None if damaged else (alone if seasons else e if episode else 1)
    if seasons and any(key[1] for key in parts):
        notes.append(f"episodes are numbered {base} * season + episode")
    return found, "; ".join(notes)


# %% tags=["example"]
for cells in (
    [("1", "1"), ("1.0", "2.0"), ("2", "1")],
    [("", "S01E02"), ("", "1x12")],
    [("", "Bart the Baker"), ("", "The Kettle"), ("", "Bart the Baker")],
    [("", "1"), ("", "2"), ("", "?")],
    [("1", "99"), ("2", "104")],
):
    print(number_episodes(cells))


# %% [markdown]
# Rows stand in the order of the file, unless a column numbers them. The numbers must be those of an episode, or begin again in each scene. If they repeat more often than a slip would, they are something else, and the file's order stays.

# %%
#| export
class Cell(NamedTuple):
    "What a row of a table with named columns says."

    row: int  # line of the file
    kind: str  # one of `KINDS`, or "blank"
    place: tuple  # (season, episode), behind the show where several may be in the file
    scene: str  # what the scene is called or numbered
    location: str  # where
    order: str  # its number
    speaker: str  # who
    text: str  # what


def in_order(
    cells: list,  # `Cell`s as they stand in the file
    tally: Tally,  # takes what is rejected
) -> tuple:  # (`Cell`s in the order in which they are said, a note or "")
    "Sort rows by episode and number."
    number = {}
    for c in cells:
        if m := NUMBER.fullmatch(c.order):
            number[c.row] = int(m[1])
        elif c.kind == "blank":
            tally.add("wordless")
    cells = [c for c in cells if c.kind != "blank" or c.row in number]
    if len(number) * 2 < len(cells):
        return cells, "the order column holds no numbers, so rows stay in the order of the file"
    rank: dict[tuple, int] = {}
    for c in cells:
        rank.setdefault(c.place, len(rank))
        rank.setdefault((c.place, c.scene), len(rank))
    for by_scene in (False, True):
        seen: dict[tuple, int] = {}
        first = {c.row: rank[(c.place, c.scene) if by_scene else c.place] for c in cells}
        twice = {
            c.row: f"same episode and number as line {before}"
            for c in cells
            if c.row in number and (before := seen.setdefault((c.place, first[c.row], number[c.row]), c.row)) != c.row
        }
        if len(twice) <= len(cells) / 20:
            for c in cells:
                if c.row in twice or c.row not in number:
                    tally.reject(c.row, twice.get(c.row, "its number must be a whole number"), f"{c.speaker} {c.text}")
            good = [c for c in cells if c.row in number and c.row not in twice]
            return sorted(good, key=lambda c: (first[c.row], number[c.row])), ""
    return cells, "the order column repeats its numbers, so rows stay in the order of the file"


# %% [markdown]
# ## Any table with named columns
#
# Now a row can be told: spoken, if somebody says something; a direction, if the text is wholly in brackets and nobody speaks, or a column says so; hidden, if it is marked as deleted. Programs leave out empty cells at a row's end, so a short row is filled. A row with too many cells is rejected, unless its origin is certain: the text is the last column, there are no quotation marks, and who speaks is known from other rows. Then somebody typed `Moe,Well, no.` by hand, and the row is recovered.

# %%
#| export
KIND_WORDS = {
    "direction": "false direction directions stagedirection stagedirections action transition parenthetical "
    "scenedescription description",
    "heading": "heading sceneheading scene slugline slug setting",
}
YES = {"true", "1", "1.0", "yes", "y", "t", "x", "deleted", "cut"}
NOBODY = dict.fromkeys(("stagedirection", "stagedirections", "scenedescription"), "direction")  # where names stand
NOBODY |= {"scene": "heading", "sceneheading": "heading"}
SLUG = re.compile(r"[(\[{（【]?\s*(?:scene\b|setting\b|location\b|int[. ]|ext[. ])", re.I)


def kind_of_row(
    speaker: str,  # who speaks, if anybody
    text: str,  # what stands there
    kind: str,  # what a column says that it is
    deleted: str,  # what a column says on whether it is gone
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
) -> tuple:  # (kind or "rejected", the text that counts, or the reason)
    "What a row of named columns is."
    if len(text) > MOST_TEXT or len(speaker) > MOST_NAME:
        return "rejected", f"more than {MOST_TEXT:,} letters in one line, or {MOST_NAME} in a name"
    if deleted.lower() in YES:
        return "note", text
    told = kind and next((k for k, words in KIND_WORDS.items() if letters(kind) in words.split()), "")
    told = told or NOBODY.get(letters(speaker), "")
    spoken = has_words(text)
    aside = not speaker and not spoken and re.search(r"\w", text)  # all of it stands in brackets
    if told or aside:
        return ("heading" if told == "heading" or SLUG.match(text) else "direction"), text
    if not spoken:
        return "wordless", text
    if not speaker:
        return "rejected", "no speaker is named"
    return "spoken", text if keep_directions else without_directions(text)


# %%
#| export
def read_cells(
    rows: Iterable[Row],  # the rows of a table
    at: dict,  # what a column holds -> its position
    header: list,  # names of the columns
    how: Reading,  # what a person said
    tally: Tally,  # takes what is rejected
) -> tuple:  # (`Cell`s, lines of the file where recovered rows begin)
    "What each row says."
    width = len(header)
    rows, who, last = list(rows), at.get("speaker", -1), at.get("text") == width - 1
    known = {r.fields[who].strip() for r in rows if len(r.fields) == width and who >= 0} - {""}
    recovered, cells, above = [], [], dict.fromkeys(PLACES, "")
    fixed = how.columns.get("speaker", "")
    fixed = fixed[1:].strip() if fixed[:1] == "=" else ""
    least = max(at.get(r, 0) for r in ("speaker", "text"))
    for row, fields, broken, raw in rows:
        if not broken and any(c.strip() for c in fields) and not least < len(fields) <= width:
            while len(fields) > width and not fields[-1].strip():
                fields.pop()
            if last and len(fields) > width and '"' not in raw and fields[who].strip() in known:
                fields = raw.split(raw[len(fields[0])], width - 1)
                recovered.append(row)
            broken = "" if least < len(fields) <= width else f"{len(fields)} fields, expected {width}"
        if broken:
            tally.reject(row, broken, raw.replace("\n", " ") or " ".join(fields))
            continue

        def cell(role):
            return fields[at[role]] if role in at and at[role] < len(fields) else ""

        speaker, text, place = (
            fixed or cell("speaker"),
            cell("text"),
            {r: cell(r)[:MOST_NAME].strip(NO_CELL) for r in above},
        )
        speaker = clean(speaker) if len(speaker) <= MOST_NAME else speaker
        speaker, text = "" if speaker in (*MISSING, "None") else speaker, "" if text.strip() in MISSING else text
        text = clean(text).removeprefix(f"{speaker}: ") if len(text) <= MOST_TEXT else text
        kind, what = kind_of_row(speaker, text, cell("kind")[:30], cell("deleted")[:30].strip(), how.keep_directions)
        if (
            kind == "spoken" and fields == header and "text" in guess_columns(fields)
        ):  # a table that was joined from parts
            kind, what, place = "note", "the header again", {}
        if NO_CELL in (speaker, text):
            kind, what = "rejected", "speaker and text must be text"
        if not any(c.strip() for c in fields):
            kind, what = "blank", ""
        if kind == "rejected":
            tally.reject(row, what, raw.replace("\n", " ") or " ".join(fields))
            continue
        above |= {r: clean_name(c) for r, c in place.items() if c.strip()}
        of = (above["show"], above["season"], above["episode"])[0 if "show" in at else 1 :]
        cells.append(Cell(row, kind, of, above["scene"], above["location"], cell("order").strip(), speaker, what))
    return cells, recovered


# %% [markdown]
# A change of scene or place begins a scene; so does a heading, and an empty row where no column tells scenes. Where nothing tells them, an episode is one scene, and `--scene-break 20` makes one of every twenty lines.

# %%
#| export
def read_named(
    rows: Iterable[Row],  # the rows of a table
    at: dict,  # what a column holds -> its position
    header: list,  # names of the columns
    where: str,  # the file's name
    how: Reading,  # what a person said
    told: bool = True,  # the columns have names
) -> Script:  # scenes and account
    "Read a table of which we know what its columns hold."
    tally, lines, cuts, last, run = Tally(), [], [], None, 0
    taken = ", ".join(f"{r} = {' '.join(str(header[i]).split()) if told else i + 1}" for r, i in at.items())
    notes = [f"columns taken: {taken}"]
    cells, mended = read_cells(rows, at, header, how, tally)
    if "show" in at:
        several = len({c.place[0] for c in cells}) > 1
        cells = [
            c._replace(place=(" ".join(c.place[:2]).strip() if several else c.place[1], c.place[2])) for c in cells
        ]
    if "scene" in at and len(cells) > 16 and len({(c.place, c.scene) for c in cells}) > 0.8 * len(cells):
        notes.append(f"{header[at['scene']]} is another in each row, so it is taken for the order of rows")
        at = {r: i for r, i in at.items() if r != "scene"} | {"order": at.get("order", at["scene"])}
        cells = [c._replace(scene="", order=c.order or c.scene) for c in cells]
    episodes, note = number_episodes(c.place for c in cells)
    for c in cells:
        if episodes[c.place] is None:
            tally.reject(c.row, "season and episode must be numbers, as in the other rows", f"{c.speaker} {c.text}")
    notes += [note] * bool(note)
    cells = [c for c in cells if episodes[c.place] is not None]
    if "order" in at:
        cells, note = in_order(cells, tally)
        notes += [note] * bool(note)
    every = int(how.scene_break) if how.scene_break.isdecimal() and how.scene_break != "0" else 0
    scenes = "scene" in at or "location" in at
    for number, c in enumerate(cells):
        episode = episodes[c.place]
        run = 0 if last and last[0] != episode else run
        location = c.location or ("" if c.scene.isdecimal() or NUMBER.fullmatch(c.scene) else c.scene)
        begins = (episode, c.scene) != last or (every and run % every == 0) or (c.kind == "blank" and not scenes)
        if begins or c.kind == "heading":
            cuts.append(Line(episode, number, "", "", location, -1))
        last = (episode, c.scene)
        tally.add("wordless" if c.kind == "blank" else c.kind, c.text)
        if c.kind == "spoken":
            run += 1
            lines.append(Line(episode, number, c.speaker, c.text, location, c.row))
    if hidden := tally.counts["note"]:
        notes.append(f"rows marked as deleted are left out: {hidden}")
    if not scenes and not every and len(cells) > 40:
        notes.append("no column says where scenes begin, so an episode is one; --scene-break 20 cuts every 20 lines")
    tally.rejected.sort(key=lambda r: r.row)
    mended = sorted({c.row for c in cells}.intersection(mended))
    return Script.of(where, scenes_of(lines, cuts), tally, "table", notes, mended)


# %% [markdown]
# Text, Parquet and records share the way from here. Their cells may be numbers, dates, or nothing; what is a list is no cell of a script.

# %%
#| export
PLACES = ("show", "season", "episode", "scene", "location")  # what stands above several rows
MISSING = ("NaN", "nan", "NULL", "null", "<NA>", "#N/A", "N/A")  # what programs write for nothing
NO_CELL = "\0"  # stands for a list, bytes, or a record, where text is expected


def as_text(
    value,  # any value of a table
) -> str:  # "" for nothing
    "A cell as text."
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf8", "replace").decode("utf8")
    if isinstance(value, list | tuple | dict | bytes):
        return NO_CELL
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)[:MOST_TEXT]


def say_who(
    names: Iterable[str],  # what stands before the colon of each text; "" for nothing
) -> bool:  # True if they are the names of people who speak more than once
    "Whether texts name their speakers themselves."
    count = Counter(names)
    total = count.total()
    named = total - count.pop("", 0)
    return named > 1 and named > 0.7 * total and len(count) * 2 <= named + 2


def read_any(
    header: list,  # the first row, as text
    rows: Iterable[Row],  # the rows behind it
    where: str,  # the file's name, for errors
    how: Reading,  # what a person said
    begin: int = 0,  # line of the file where the first row stands; 0: it holds names for sure
    mend: bool = False,  # recover damaged rows of the public table
) -> Script:  # scenes and account; ValueError if the columns are not known
    "Read rows by the names of their columns."
    names = {str(n).strip().lower(): i for i, n in enumerate(header)}
    if not how.columns and all(n in names for n in NEEDED):
        return read_standard(rows, names, where, how, mend and tuple(names) == COLUMNS)
    guessed = guess_columns(header)
    if not how.columns and "text" in guessed and "speaker" not in guessed:
        rows, place, width = list(rows), guessed["text"], len(header)
        fit = [split_name(r.fields[place]) if len(r.fields) == width else ("", "") for r in rows]
        if say_who(name for name, _ in fit):
            header = [*header, "speaker"]
            rows = [
                r._replace(fields=[*r.fields, name] if len(r.fields) == width else r.fields)
                for r, (name, _) in zip(rows, fit)
            ]
    at, data = choose_columns(header, how.columns, where)
    first = [Row(begin, list(header))] if data and begin else []
    return read_named(chain(first, rows), at, header, where, how, not first)


def read_rows(
    header: list,  # names of the columns
    rows: Iterable[list],  # cells of each row, of any type
    where: str,  # the file's name, for errors
    how: Reading = AUTO,  # what a person said
) -> Script:  # scenes and account; ValueError if the columns are not known
    "Read a table that somebody else took apart."

    def taken():
        for i, cells in enumerate(rows, 1):
            yield Row(i, [as_text(c) for c in cells])

    return read_any([as_text(n) for n in header], taken(), where, how)


# %% tags=["example"]
served = read_rows(
    ["Scene", "Who", "Line"],
    [
        [1, "Moe", "(WIPING) What'll it be?"],
        [1, "Homer", "Beer."],
        [1, None, "[Barney falls.]"],
        [2, "Marge", "Homer?"],
    ],
    "bar",
)
print(served.notes, served.account())
[[f"{line.speaker}: {line.text}" for line in s.lines] for s in served.scenes]

# %% [markdown]
# In delimited text the separator must be found first: commas, or what programs of other languages write, semicolons, tabs, upright strokes. Excel may name it in a first row of its own, `sep=;`. Else it is the one with which the first row has the most columns that are known, and then the one with which most rows are as wide as the first. R puts blanks between quoted fields, and a number that has no name before each row.

# %%
#| export
SEP = re.compile(r"sep=(.)\s*", re.I)


def has_blanks(
    header: str,  # the names of the columns, as they stand in the file
    separator: str,  # what stands between them
) -> bool:  # True for "speaker, text"
    "Whether a blank follows each separator."
    _, *others = header.split(separator)
    return separator != " " and bool(others) and all(n[:1] == " " for n in others)


def find_separator(
    rows: list,  # the first rows that hold something, as text
    wanted: dict,  # columns that a person named
) -> tuple:  # (separator, fields of the first row, how many columns are known, rows that are as wide)
    "What stands between the fields."
    csv.field_size_limit(1 << 30)
    tried, rows = [], [rows[0], *(r[:10_000] for r in rows[1:])]
    for sep in ",;\t|" + " " * bool(re.fullmatch(r'"[^"]*"(?: "[^"]*")+', rows[0].strip())):
        spaced = has_blanks(rows[0], sep)
        parsed = [next(csv.reader([r], delimiter=sep, skipinitialspace=spaced), [""]) for r in rows]
        more = [p for p in parsed[1:] if len(p) == len(parsed[0]) + 1]
        if len(more) > 0.7 * (len(parsed) - 1) and all(p[0].strip().isdecimal() for p in more):
            parsed[0] = ["", *parsed[0]]  # R numbers the rows, and has no name for that
        names = [n.strip().lower() for n in parsed[0]]
        known = len(set(NEEDED) & set(names)), len(guess_columns(names)) + len(set(wanted.values()) & set(parsed[0]))
        tried.append((*known, sum(len(p) == len(names) > 1 for p in parsed), len(names), sep, parsed[0]))
    best = max(tried, key=lambda t: t[:4])
    return best[4], best[5], max(best[:2]), best[2]


def find_header(
    rows: list,  # the first rows that hold something, as text
    wanted: dict,  # columns that a person named
) -> tuple:  # (how many rows stand above the header, and what `find_separator` gives)
    "Where the names of the columns stand: below a title, if only there they are known."
    first = find_separator(rows, wanted)
    most = 1
    for i in range(len(rows)):
        found = find_separator(rows[i:], wanted) if i else first
        cells = [c.strip() for c in found[1] if c.strip()]
        known = guess_columns(found[1])
        sure = {"speaker", "text"} <= known.keys() or set(NEEDED) <= {c.lower() for c in cells}
        if (sure or wanted and not i) and (not i or 2 * most <= max(len(cells), 2) and max(map(len, cells)) <= 30):
            return (i, *found)
        most = max(most, sum(bool(c.strip()) for c in next(csv.reader([rows[i]], delimiter=found[0]), [])))
        if i > 8 or len(rows[i]) > 1000:
            break
    return (0, *first)


def find_style(
    text: str,  # the beginning of a file
    separator: str,  # what stands between its fields
    header: str,  # the row with the names of its columns
) -> dict:  # what `csv.reader` should know
    "How the cells are quoted."
    sep = re.escape(separator)
    quoted = re.findall(rf'(?m)(?:^|{sep})"((?:[^"\n]|"")*)(?:"(?={sep}|$))?', text)
    closed = re.findall(rf'(?m)(?:^|{sep})"(?:[^"\n]|"")*"(?={sep}|$)', text)
    style: dict = {}
    if separator in "\t|" and len(quoted) > 2 * len(closed):
        style["quoting"] = csv.QUOTE_NONE  # they are a part of what is said
    elif len(re.findall(rf'\\"(?!{sep}|$)', text)) > len(re.findall(rf'[^{sep}\n]""[^{sep}\n]', text)):
        style["escapechar"] = "\\"
    if has_blanks(header, separator):
        style["skipinitialspace"] = True
    return style


def read_table(
    text: str,  # a whole file of delimited text
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a person said
) -> Script:  # scenes and account; ValueError if the columns are not known
    "Read the public table, or any table with named columns."
    feed = Feed(text)
    begin = next((i for i, line in enumerate(feed.lines) if line.strip()), 0)
    told = SEP.fullmatch(feed.lines[begin][:20])
    begin += bool(told)
    rows = [r for r in islice(feed.lines, begin, begin + 50) if r.strip() and len(r) <= MOST_ROW][:20]
    longest = len(feed.lines[begin]) if begin < len(feed.lines) else 0
    require(
        rows and longest <= MOST_ROW,
        f"{where} has a first row of {longest:,} letters; expected the names of a table's columns",
    )
    above, separator, header, *_ = find_header(rows, how.columns)
    titles = rows[:above]
    if told:
        titles, separator, header = [], told[1], next(csv.reader(rows[:1], delimiter=told[1]), [])
    begin = next(i for i in range(begin, len(feed.lines)) if feed.lines[i] == rows[len(titles)]) if titles else begin
    feed.at = begin + 1
    standard = separator == "," and tuple(n.strip().lower() for n in header) == COLUMNS
    row_start = re.compile(r"\d+,\d+,\d+,") if standard else None
    style = {} if standard else find_style(text[: 1 << 18], separator, feed.lines[begin])
    taken = csv_rows(feed, separator, len(header), row_start, style)
    script = read_any(header, taken, where, how, begin + 1, standard)
    script.counts["note"] += len(titles)
    script.notes += [f"rows above the names of the columns are left out: {len(titles)}"] * bool(titles)
    return script


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

# %% [markdown]
# The same scene as five programs write it:

# %% tags=["example"]
shapes = {
    "fan page": "Season,Episode,Character,Line\n1,1,Moe,Closed.\n1,1,Homer,Since when?\n2,1,Moe,Since you.",
    "Excel": "sep=;\nEpisode;Name;Text\nS01E01;Moe;Closed.\nS01E01;Homer;Since when?\nS02E01;Moe;Since you.",
    "pandas": "episode|speaker|dialogue\n101.0|Moe|Closed.\n101.0|Homer|Since when?\n201.0|Moe|Since you.",
    "deleted": "episode\ttext\tspeaker\tdeleted\n101\tClosed.\tMoe\tFALSE\n101\tNo.\tMoe\tTRUE\n"
    "101\tSince when?\tHomer\tFALSE\n201\tSince you.\tMoe\tFALSE",
}
read = {name: read_table(text, name) for name, text in shapes.items()}
told = {"Wer, Was": "Marge,Dinner!\nHomer,Already?"}
read |= {name: read_table(text, name, Reading(columns={"speaker": "1", "text": "2"})) for name, text in told.items()}
pd.DataFrame(
    [(n, len(s.lines), len(s.scenes), s.lines[-1].episode, "; ".join(s.notes)) for n, s in read.items()],
    columns=["shape", "lines", "scenes", "last episode", "told"],
)

# %% tags=["check"]
for name in shapes:
    assert [(x.episode, x.speaker, x.text) for x in read[name].lines] == [
        (101, "Moe", "Closed."),
        (101, "Homer", "Since when?"),
        (201, "Moe", "Since you."),
    ]
assert read["deleted"].counts["note"] == 1 and read["Wer, Was"].account()["rows"] == 2

# %% [markdown]
# ## Records
#
# Earlier projects turn each line into a record: `p`, the lines before it; `c`, who speaks next; `l`, what is said. A script then renames them, in that order, to `instruction`, `input` and `output`. Chat data comes as conversations: `messages` with a role each, ShareGPT's `conversations` with `from` and `value`, or pairs of prompt and completion. Records whose fields are named like columns are a table.

# %%
#| export
SPELLINGS = (("p", "c", "l"), ("instruction", "input", "output"))
CHATS = (
    "messages",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "turns",
    "utterances",
    "lines",
    "chat",
    "contents",
)
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
BARE = (("instruction", "output"), ("instruction", "response"))  # somebody has to say who answers


def spelling_of(
    record,  # one JSON value
    among: tuple = SPELLINGS,  # the names of fields that are text
) -> tuple | None:  # names of its fields; None if it has none of the spellings
    "Which spelling a record uses."
    return next((k for k in among if isinstance(record, dict) and all(isinstance(record.get(x), str) for x in k)), None)


def turns_of(
    record,  # one JSON value
) -> list:  # the messages of a conversation; [] if it is none
    "The turns of a conversation."
    if not isinstance(record, dict):
        return []
    if isinstance(tree := record.get("mapping"), dict):  # as ChatGPT exports its chats
        return [m for node in tree.values() if isinstance(node, dict) and isinstance(m := node.get("message"), dict)]
    lists = [record[k] for k in (*CHATS, "prompt", "completion") if isinstance(record.get(k), list)]
    turns = [t for part in lists[: 1 + ("prompt" in record)] for t in part]
    names = record.get("speakers")
    if isinstance(names, list) and len(names) == len(turns) and all(isinstance(t, str) for t in turns):
        return [{"role": who, "content": what} for who, what in zip(names, turns)]
    return turns if any(isinstance(t, dict) for t in turns) else []


def transcript_of(
    record: dict,  # one record
) -> list:  # (speaker, text) pairs; [] if no field is a conversation
    "A conversation that stands in one text."
    for key in ("text", "dialogue", "dialog", "conversation", "transcript", "chat", "chosen"):
        text = record.get(key)
        if isinstance(text, str) and len(text) <= MOST_TEXT and ("\n" in text.strip() or text.startswith("### ")):
            pairs = parse_lines(re.sub(r"\s*### (?=\w+:)", "\n", text))
            if len(pairs) > 1 and sum(bool(who) for who, _ in pairs) > 0.7 * len(pairs):
                return pairs
    return []


@lru_cache(100)
def known_roles(
    keys: tuple,  # names of a record's fields
) -> frozenset:  # what they hold
    "What the fields of a record hold; the same for all records of a file."
    return frozenset(guess_columns(list(keys)))


def kind_of(
    record,  # one JSON value
) -> str:  # chat, sample, pair, row; "" for anything else
    "What kind of record it is."
    if not isinstance(record, dict):
        return ""
    if turns_of(record):
        return "chat"
    if spelling_of(record):
        return "sample"
    if spelling_of(record, PAIRS + BARE):
        return "pair"
    return (
        "row" if {"speaker", "text"} <= known_roles(tuple(record)[:1000]) else "chat" if transcript_of(record) else ""
    )


# %% [markdown]
# A file is one list, one record a line, or an object that holds the list under some key. In a file of one record a line, one broken line is rejected; a broken list is broken as a whole. pandas also writes an object with a list for each column. People nest scripts, seasons of episodes of scenes, and write pairs of a name and a text without names for the fields; these are unfolded into records first:

# %%
#| export
def as_records(
    values: list,  # JSON values
    most: float = 0.5,  # how many names there may be for each value
) -> list:  # the same as records, where they are [name, text], {name: text} or "name: text"
    "Bare pairs as records with names for their parts."
    if values and isinstance(values[0], dict) and len(values[0]) != 1:
        return values
    pairs = [
        tuple(v.items())[0] if isinstance(v, dict) and len(v) == 1
        else split_name(v) if isinstance(v, str)
        else tuple(v) if isinstance(v, list) and len(v) == 2
        else ()
        for v in values
    ]  # fmt: skip
    names = Counter(p[0] for p in pairs if len(p) == 2 and all(isinstance(x, str) for x in p) and 0 < len(p[0]) <= 60)
    known = guess_columns(list(names)[:50]).keys() | {t for t in names if t in (*CHATS, "prompt")}
    if names.total() == len(values) and 2 - (most == 1) <= len(names) <= max(2, most * len(values)) and not known:
        return [{"speaker": who, "text": what} for who, what in pairs]
    if values and all(isinstance(v, list) for v in values):
        return [{"messages": as_records(v, 1.0)} for v in values]
    return values


def unfold(
    value,  # any JSON value
    above: dict,  # season, episode, scene and so on of what it stands in
) -> Iterator[dict]:  # records with a speaker and a text
    "Lines of a script that is nested: seasons of episodes of scenes."
    if isinstance(value, list):
        for x in value:
            yield from unfold(x, above)
    if not isinstance(value, dict):
        return
    own = {k: v for k, v in value.items() if not isinstance(v, list | dict)}
    if isinstance(names := value.get("speakers"), list) and names:
        own["speaker"] = " and ".join(map(as_text, names))
    roles = guess_columns(list(own))
    if {"speaker", "text"} <= roles.keys():
        yield above | own
        return
    here = above | {k: own[k] for i, k in enumerate(own) if i in {roles.get(r) for r in PLACES}}
    for key, inner in value.items():
        level = letters(key).removesuffix("s")
        for i, x in enumerate(inner if isinstance(inner, list) and level in PLACES else [inner], 1):
            if isinstance(inner, list) and level in PLACES:
                yield from unfold(x, {level: i} | here)
            elif isinstance(inner, list | dict):
                yield from unfold(x, here | ({"episode": key} if CODE.fullmatch(key) else {}))


def records_in(
    whole,  # the JSON value of a whole file
) -> list:  # its records
    "The records, wherever they stand."
    values = whole if isinstance(whole, list) else [whole]
    first = next((v for v in values if isinstance(v, dict)), {})
    turn = next((t for t in turns_of(first) if isinstance(t, dict)), {"role": ""})
    placed = set(PLACES) & guess_columns(list(first)).keys() and not {"role", "from"} & turn.keys()
    if placed and (rows := list(unfold(whole, {}))) and not kind_of(first) == "row":
        return rows
    if not isinstance(whole, dict):
        return as_records(values)
    if kind_of(whole) in ("sample", "pair"):
        return values
    columns = [list(v.values()) if isinstance(v, dict) else v for v in whole.values()]
    if {"speaker", "text"} <= guess_columns(list(whole)).keys() and all(isinstance(v, list) for v in columns):
        if len({len(v) for v in columns}) == 1:
            return [dict(zip(whole, row)) for row in zip(*columns)]
    if isinstance(whole.get("columns"), list) and isinstance(data := whole.get("data"), list):
        return [dict(zip(map(as_text, whole["columns"]), row)) for row in data if isinstance(row, list)] or values
    if turns_of(whole):
        return values
    lists = [v for v in whole.values() if isinstance(v, list) and any(map(kind_of, v[:20]))]
    if len(lists) == len(whole) and all(map(CODE.fullmatch, whole)):
        lists = []
    return [x for v in lists for x in v] or list(unfold(whole, {})) or values


def load_records(
    text: str,  # a whole JSON or JSONL file
    where: str,  # its name, for errors
    tally: Tally,  # takes what is broken
) -> list:  # (row, JSON value) pairs; ValueError if nothing can be read
    "The JSON values of a file, with the lines they stand in (in a list: their places)."
    try:
        return list(enumerate(records_in(json.loads(text)), 1))
    except (ValueError, RecursionError) as e:
        why = "it is nested too deeply" if isinstance(e, RecursionError) else f"{str(e).split(':')[0]}"
        why += f" at line {e.lineno}" if isinstance(e, json.JSONDecodeError) else ""
    found: list[tuple] = []
    broken: list[tuple] = []
    for row, line in enumerate(text.split("\n"), 1):
        bare = line.strip().removesuffix(",")
        if not bare:
            continue
        try:
            require(len(line) <= MOST_ROW, f"a row of {len(line):,} letters")
            found.append((row, json.loads(bare)))
        except (ValueError, RecursionError) as e:
            reason = "nested too deeply" if isinstance(e, RecursionError) else str(e).split(":")[0]
            broken.append((row, f"not valid JSON ({reason})", line))
    if len(found) < len(broken) and (values := in_a_row(text)):
        found, broken = values, []
    require(
        any(isinstance(r, dict | list) for _, r in found) and len(found) >= len(broken),
        f"{where} is not valid JSON ({why}); expected a list of records, or one record a line",
    )
    for row, reason, line in broken:
        if line.strip() in ("[", "]") and row in (1, text.rstrip().count("\n") + 1):
            tally.add("wordless")  # a list whose last record has a comma
        else:
            tally.reject(row, reason, line)
    return list(zip([row for row, _ in found], as_records([r for _, r in found])))


def in_a_row(
    text: str,  # several JSON values, one after the other, each over several lines
) -> list:  # (row, JSON value) pairs; [] if it is anything else
    "JSON values that no list holds together."
    decoder, at, row, found = json.JSONDecoder(), 0, 1, []
    while m := re.compile(r"[\s,]*(?=\{)").match(text, at):
        row, begin = row + text.count("\n", at, m.end()), m.end()
        try:
            value, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            return []
        found.append((row, value))
        row += text.count("\n", begin, at)
    return found if not text[at:].strip(" \n\t,") else []


# %% [markdown]
# Samples repeat their context: the third line of a scene stands in the records of all later lines too. Where a record's context overlaps the end of the scene read so far, only what is new is added. That gives the scenes back, and keeps the same line from being learned many times, or from standing in two splits.

# %%
#| export
def read_sample(
    record,  # one JSON value
    known: set,  # names of all who speak
    how: Reading,  # what a person said
) -> tuple:  # (context pairs, speaker, text), or (None, reason, "")
    "One sample in either spelling."
    if not (keys := spelling_of(record)):
        return None, "expected text under p, c, l or instruction, input, output", ""
    context, speaker, said = (as_text(record[k]) for k in keys)
    if not speaker.strip() or len(speaker) > 60:
        return None, f"{keys[1]} must be the name of who speaks next", ""
    if max(len(context), len(said)) > MOST_TEXT:
        return None, f"more than {MOST_TEXT:,} letters in one line", ""
    speaker = clean(speaker)
    pairs = [*parse_lines(context, known), (speaker, clean(said).removeprefix(f"{speaker}:").strip())]
    if not how.keep_directions:
        pairs = [(who, without_directions(what)) for who, what in pairs]
    return (pairs[:-1], *pairs[-1]) if has_words(pairs[-1][1]) else (None, f"nothing is said under {keys[2]}", "")


def read_samples(
    records: list,  # (row, JSON value) pairs
    where: str,  # the file's name
    how: Reading,  # what a person said
    tally: Tally,  # takes what is rejected
) -> Script:  # scenes and account
    "Read p/c/l or instruction/input/output samples back into scenes."
    known = {clean(r[keys[1]]) for _, r in records if (keys := spelling_of(r)) and len(r[keys[1]]) <= 60}
    groups: list[list] = []  # lines of each scene
    so_far: list[tuple] = []
    for row, record in records:
        context, speaker, said = read_sample(record, known, how)
        if context is None:
            tally.reject(row, speaker, shown(record))
            continue
        tally.add("spoken", said)
        shared = next((n for n in range(min(len(context), len(so_far)), 0, -1) if so_far[-n:] == context[:n]), 0)
        if not shared:
            groups.append([])
            so_far = []  # a new scene
        new = [(*x, False) for x in context[shared:]] + [(speaker, said, True)]
        groups[-1] += [
            Line(0, len(groups[-1]) + i, who, what, "", row, learn) for i, (who, what, learn) in enumerate(new)
        ]
        so_far += [x[:2] for x in new]
    scenes = [Scene(0, i, "", tuple(line for line in lines if line.text)) for i, lines in enumerate(groups)]
    return Script.of(where, scenes, tally, "json")


# %% [markdown]
# Instruction samples are also the shape of general tasks, `Translate into French`, whose `input` is no name. Taken for speakers, they would make a cast of a hundred nonsensical names. So they are samples of characters only if most contexts are rows of names and lines, and some of these names are among the inputs, or the inputs are few. Samples of *one* character often leave the input empty; then a person has to say who it is.

# %%
#| export
def shown(
    record,  # any JSON value
) -> str:  # as it may have stood in the file
    "A record for a message."
    try:
        return as_text(json.dumps(record, ensure_ascii=False))
    except (RecursionError, ValueError):
        return "{...}"


def require_characters(
    records: list,  # (row, JSON value) pairs
    where: str,  # the file's name
):
    "ValueError unless instruction samples hold names."
    samples = [r for _, r in records if spelling_of(r) == SPELLINGS[1]]
    way = "give the name of who says the outputs, such as --columns speaker==Otto"
    names = Counter(clean(r["input"]) for r in samples if 0 < len(r["input"].strip()) <= 60)
    require(names or not samples, f"{where} holds instruction samples of which no input says who speaks; {way}")
    contexts = [parse_lines(r["instruction"][:MOST_TEXT], set(names)) for r in samples]
    fit = sum(all(who for who, _ in pairs) for pairs in contexts)
    heard = any(who in names for pairs in contexts for who, _ in pairs)
    require(
        fit * 2 >= len(samples) and (heard or len(names) * 4 <= len(samples) + 8),
        f"{where} holds instruction samples without characters (their inputs are no names, their instructions no "
        f"'Name: line' rows); {way}",
    )


# %% [markdown]
# A conversation is a scene; roles are its speakers, unless a message has a `name`. What `system` says is a note to the model and no speech. A record counts as one row, however many turns it has.

# %%
#| export
TOLD = {"system", "developer", "tool", "function", "ipython"}  # roles that do not talk
SAYS = ("role", "from", "author", "speaker", "sender", "user")  # fields of a message that say who
SAID = ("content", "value", "text", "line", "utterance", "parts", "message", "transcript")  # and what
ANSWERS = {"assistant", "gpt", "model", "bot", "chatgpt"}  # roles of the one that is learned


def read_turn(
    turn,  # one message of a conversation
    name: str = "",  # who answers, if a person said so
) -> tuple:  # (speaker, text); ("", text) for what is no speech, ("", "") for what cannot be read
    "Who says what in a message."
    if not isinstance(turn, dict):
        return "", ""
    role = next((r for k in SAYS if (r := turn.get(k))), "")
    role = role.get("role") or role.get("name") if isinstance(role, dict) else role
    what = next((t for k in SAID if (t := turn.get(k))), "")
    what = what.get("parts") or what.get("text") if isinstance(what, dict) else what
    if isinstance(what, list):  # parts: text, pictures
        parts = (p.get("text") if isinstance(p, dict) else p for p in what)
        what = " ".join(p for p in parts if isinstance(p, str))
    role = role if isinstance(role, str) else ""
    if not isinstance(what, str) or len(what) > MOST_TEXT:
        return "", ""
    who = next((n for k in ("name", "character") if isinstance(n := turn.get(k), str) and n.strip()), "")
    who = who or (name if name and role.lower() in ANSWERS else role)
    return ("" if role.lower() in TOLD or len(who) > MOST_NAME else clean(as_text(who))), clean(as_text(what))


def turns_in(
    record,  # one JSON value
    name: str = "",  # who answers, if a person said so
) -> list:  # (speaker, text) pairs
    "The turns of a conversation, or of a prompt and its completion."
    if turns := turns_of(record):
        sides = ANSWERS | {"human", "user"}  # {"human": "On?", "assistant": "On."} is two turns
        two = [isinstance(t, dict) and 0 < len(t.keys() & sides) and not t.keys() & {*SAYS[:4], *SAID} for t in turns]
        parts = [[{"role": k, "content": t[k]} for k in t if k in sides] if p else [t] for p, t in zip(two, turns)]
        return [read_turn(t, name) for part in parts for t in part]
    if not spelling_of(record, (*SPELLINGS, *PAIRS, *BARE)) and isinstance(record, dict):
        return [(w if w.lower() not in TOLD else "", t) for w, t in transcript_of(record)]
    if not (keys := spelling_of(record, (*SPELLINGS[1:], *PAIRS, *BARE))):
        return []
    *asked, said = (record[k] for k in keys)
    texts = "\n".join(t for t in asked if t.strip()), said
    pairs = parse_lines(texts[0]) if texts[0].rstrip()[-1:] == ":" and len(texts[0]) <= MOST_TEXT else []
    if pairs and all(who for who, _ in pairs) and not pairs[-1][1]:  # "Marge: Dinner!\nHomer:"
        return [*pairs[:-1], (pairs[-1][0], clean(as_text(said))[:MOST_TEXT])]
    return [(w, clean(as_text(t))) for w, t in zip(("user", name or "assistant"), texts) if len(t) <= MOST_TEXT]


# %%
#| export
def read_chats(
    records: list,  # (row, JSON value) pairs
    where: str,  # the file's name
    how: Reading,  # what a person said
    tally: Tally,  # takes what is rejected
) -> Script:  # a scene of each conversation
    "Read conversations."
    scenes: list[Scene] = []
    strip = clean if how.keep_directions else without_directions
    name = how.columns.get("speaker", "").removeprefix("=").strip()
    told = lost = 0
    for row, record in records:
        turns = turns_in(record, name)
        said = [(who, strip(what)) for who, what in turns if who and has_words(what)]
        notes = [what for who, what in turns if not who and what]
        told += len(notes)
        lost += sum(not who and not what for who, what in turns)
        if not said:
            tally.reject(row, "no message with a role and words", shown(record))
            continue
        tally.add("spoken", " ".join(what for _, what in said))
        tally.add("note", " ".join(notes), rows=0)
        lines = tuple(Line(0, i, who, what, "", row) for i, (who, what) in enumerate(said))
        scenes.append(Scene(0, len(scenes), "", lines))
    notes = [f"each of the {len(scenes)} conversations is a scene; they have {sum(len(s.lines) for s in scenes)} lines"]
    notes += [f"messages of system and tools are no speech, and left out: {told}"] * bool(told)
    notes += [f"messages without text are left out: {lost}"] * bool(lost)
    return Script.of(where, scenes, tally, "json", notes)


def read_loaded(
    records: list,  # (row, JSON value) pairs
    where: str,  # the file's name, for errors
    how: Reading,  # what a person said
    tally: Tally,  # what was rejected before
) -> Script:  # scenes and account; ValueError if the records are of no known kind
    "Read records by their kind."
    kinds = Counter(map(kind_of, (r for _, r in records)))
    fixed = how.columns.get("speaker", "")[:1] == "="
    kind = max(("chat", "sample", "pair", "row"), key=lambda k: kinds[k])
    if how.columns and not (fixed and len(how.columns) == 1):
        kind = "row"
    elif records and not kinds[kind]:
        keys = next((list(r) for _, r in records if isinstance(r, dict)), [])
        require(
            False,
            f"{where} holds JSON of no known kind ({'it has ' + shown_header(keys) if keys else 'no records'}); "
            "expected messages, conversations, prompt and completion, p/c/l or instruction samples, or records with a "
            "speaker and a text, which --columns speaker=NAME,text=NAME names",
        )
    if kind == "row":
        return read_dicts(records, where, how, tally)
    bare = kind == "pair" and all(spelling_of(r, BARE) for _, r in records if kind_of(r) == "pair")
    require(
        fixed or not bare,
        f"{where} holds instruction samples that do not say who speaks; give the name of who says the outputs, such as "
        "--columns speaker==Otto",
    )
    if kind == "sample" and not fixed:
        require_characters(records, where)
        script = read_samples(records, where, how, tally)
    else:
        script = read_chats(records, where, how, tally)
    tally.rejected.sort(key=lambda r: r.row)
    return script


def read_dicts(
    records: list,  # (row, JSON value) pairs
    where: str,  # the file's name, for errors
    how: Reading,  # what a person said
    tally: Tally,  # what was rejected before
) -> Script:  # scenes and account
    "Read records as rows of a table; their keys are the columns."
    keys = Counter(k for _, r in records if isinstance(r, dict) for k in islice(r, 1000))
    header = [k for k, _ in keys.most_common(1000)]

    def rows():
        for row, r in records:
            if isinstance(r, dict):
                yield Row(row, [as_text(r.get(k)) for k in header])
            else:
                yield Row(row, [], "not a record", shown(r))

    script = read_any([as_text(k) for k in header], rows(), where, how)
    script.rejected = sorted([*tally.rejected, *script.rejected], key=lambda r: r.row)
    script.sizes["rejected"] += tally.sizes["rejected"]
    script.format = "json"
    return script


def read_records(
    text: str,  # a whole JSON or JSONL file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a person said
) -> Script:  # scenes and account; ValueError if it is of no known kind
    "Read samples, conversations, or records with named fields."
    tally = Tally()
    return read_loaded(load_records(text, where, tally), where, how, tally)


# %% tags=["example"]
samples = [
    {"p": "", "c": "Marge", "l": "Dinner!"},
    {"p": "Marge: Dinner!", "c": "Homer", "l": "Already?"},
    {"p": "Marge: Dinner!\nHomer: Already?", "c": "Marge", "l": "It is noon."},
]
chat = {
    "messages": [
        {"role": "system", "content": "You are Moe."},
        {"role": "user", "content": "One beer."},
        {"role": "assistant", "content": "(SIGHS) Money first."},
    ]
}
tasks = [{"instruction": "Name three birds.", "input": "", "output": "Crow, crow, crow."}] * 3
for records, columns in ((samples, {}), ([chat], {}), ([chat], {"speaker": "=Moe"}), (tasks, {"speaker": "=Otto"})):
    script = read_records(json.dumps(records), "x.json", Reading(columns=columns))
    print([f"{line.speaker}: {line.text}" for line in script.scenes[0].lines], *script.notes)
for bad in (tasks, [{"price": 1}], "donut"):
    try:
        read_records(json.dumps(bad), "x.json")
        raise AssertionError
    except ValueError as e:
        print(e)

# %% tags=["check"]
renamed = [dict(zip(SPELLINGS[1], s.values())) for s in samples]
for text in (json.dumps(samples), json.dumps(renamed), "\n".join(map(json.dumps, samples))):
    records = read_records(text, "samples.json")
    assert [[(line.speaker, line.text) for line in s.lines] for s in records.scenes] == [
        [("Marge", "Dinner!"), ("Homer", "Already?"), ("Marge", "It is noon.")]
    ]
assert all(line.learn for line in records.lines) and records.counts["spoken"] == 3 and not records.rejected
half = read_records("\n".join([json.dumps(samples[0]), '{"p": ', json.dumps(samples[1])]), "half.jsonl")
assert len(half.lines) == 2 and [r.row for r in half.rejected] == [2]


# %% [markdown]
# ## Parquet
#
# Data sets are passed on as Parquet: columns with types, packed. What is left to do is to take it apart in batches; a column of conversations goes the way of records.

# %%
#| export
def read_parquet(
    data: bytes,  # a whole Parquet file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a person said
) -> Script:  # scenes and account; ValueError if it is no Parquet, or of no known kind
    "Read a Parquet file."
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        header, size = (
            file.schema_arrow.names,
            sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)),
        )
        require(size < 1 << 32, f"{where} holds {size >> 30} GiB when unpacked; give a part of it")
        batches = (b for b in file.iter_batches(1000))
        nested = any(isinstance(t, pa.ListType | pa.LargeListType) for t in file.schema_arrow.types)
        if nested and set(header) & {*CHATS, "prompt", "completion"} and not how.columns.get("text"):
            rows = (r for b in batches for r in b.to_pylist())
            script = read_loaded(list(enumerate(rows, 1)), where, how, Tally())
        else:
            script = read_rows(
                header, (list(r) for b in batches for r in zip(*(c.to_pylist() for c in b.columns))), where, how
            )
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{where} is no Parquet file that can be read ({str(e).splitlines()[0][:80]})") from None
    script.format = "parquet"
    return script


# %% tags=["example"]
packed = io.BytesIO()
pd.DataFrame({"episode": [1.0, 1.0], "character": ["Moe", "Barney"], "line": ["Closed.", None]}).to_parquet(packed)
read_parquet(packed.getvalue(), "bar.parquet").account()

# %% [markdown]
# ## Film dialogues
#
# The Cornell corpus of film dialogues separates five fields by ` +++$+++ `: line, character, film, name, text. Its rows run backwards (`L1045` above `L1044`), and dialogues follow each other in any order; but lines are numbered through each film, and those that belong to no dialogue were left out. So the rows of a film are sorted by number, and where numbers are missing, a scene begins. A blank row parts two rows as well, whichever of them comes first.

# %%
#| export
FILM = "+++$+++"


def read_movie_lines(
    text: str,  # a whole file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a person said
) -> Script:  # scenes and account; a film is an episode
    "Read film dialogues as the Cornell corpus has them."
    tally, blank, last = Tally(), False, None
    lines: list[Line] = []
    films: dict[str, int] = {}  # film -> its number
    seen: dict[tuple, int] = {}  # (film's number, number of the line) -> row
    parted: set[tuple] = set()  # pairs of rows with a blank one between
    for row, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            blank = True
            continue
        fields = [f.strip() for f in raw.split(FILM, 4)] if len(raw) <= MOST_TEXT else []
        m = re.fullmatch(r"L(\d{1,9})", fields[0]) if len(fields) == 5 else None
        if not m or len(fields[3]) > MOST_NAME or not fields[2]:
            tally.reject(row, f"expected L1 {FILM} u1 {FILM} m1 {FILM} NAME {FILM} text", raw)
            continue
        here = (films.setdefault(fields[2], len(films) + 1), int(m[1]))
        if blank and last:
            parted |= {(last, here), (here, last)}
        last, blank = here, False
        said = clean(re.sub(r"</?[bu]>", "", fields[4]))
        said = said if how.keep_directions else without_directions(said)
        if (before := seen.setdefault(here, row)) != row:
            tally.reject(row, f"same film and number as line {before}", raw)
        elif not has_words(said):
            tally.add("wordless", said)
        elif not fields[3]:
            tally.reject(row, "spoken, but no speaker is named", raw)
        else:
            tally.add("spoken", said)
            lines.append(Line(here[0], here[1], clean(fields[3]), said, "", row))
    require(lines, f"{where} holds no film dialogue; expected rows of five fields with {FILM} between them")
    apart = parted if len(parted) < len(seen) else set()  # a blank row after each row means nothing
    ordered = sorted(seen)
    cuts = [
        Line(b[0], b[1], "", "", "", -1)
        for a, b in zip(ordered, ordered[1:])
        if a[0] != b[0] or b[1] - a[1] > 1 or (a, b) in apart
    ]
    notes = [f"films are episodes ({len(films)} here); a scene begins where line numbers jump, or behind a blank row"]
    return Script.of(where, scenes_of(lines, cuts), tally, "movie", notes)


# %% tags=["example"]
film = "\n".join(
    f" {FILM} ".join(fields)
    for fields in (
        ("L12", "u1", "m0", "OTTO", "Is it far?"),
        ("L11", "u0", "m0", "MARLA", "We walk."),
        ("L4", "u1", "m0", "OTTO", "Where is the bus?"),
        ("L3", "u0", "m0", "MARLA", "Gone."),
    )
)
[[f"{line.speaker}: {line.text}" for line in s.lines] for s in read_movie_lines(film, "film.txt").scenes]


# %% [markdown]
# ## A quick look
#
# Whoever has a file without a telling name looks at its first rows. A table has known columns and rows as wide as the first: dialogue has commas, too, but no row in it names a speaker's and a text's column.

# %%
#| export
def first_rows(
    text: str,  # a whole file
) -> list:  # up to 50 rows that hold something
    "The beginning of a file."
    return [r for r in text[:200_000].split("\n") if r.strip()][:50]


def looks_like_table(
    text: str,  # a whole file
) -> bool:  # True for a separator that Excel names, too
    "Whether a text is a table with columns that are known."
    rows = first_rows(text)
    if not rows or SEP.fullmatch(rows[0]):
        return bool(rows)
    above, sep, header, _, wide = find_header(rows[:20], {})
    guessed = guess_columns(header)
    known = {"speaker", "text"} <= guessed.keys() or set(NEEDED) <= {n.strip().lower() for n in header}
    if not known and "text" in guessed and any('"' in r for r in rows) | (len(header) > 1):
        cells = [next(csv.reader([r], delimiter=sep), []) for r in rows[1:]]
        return say_who(split_name(c[guessed["text"]])[0] if len(c) == len(header) else "" for c in cells)
    return known and len(header) > 1 and wide * 2 >= min(len(rows), 20) - above


def looks_like_records(
    text: str,  # a whole file
) -> bool:  # False for a heading in brackets, [Moe's Tavern], or a note, [[cut this]]
    "Whether a text begins as JSON does."
    return bool(re.match(r'\s*(?:\{\s*(?:"|\}|$)|\[\s*(?:\{\s*["}]|\]|\[\s*["\[{\d]))', text[:10_000]))


def looks_like_movie_lines(
    text: str,  # a whole file
) -> bool:  # True if most of its first rows have the separator of the corpus
    "Whether a text is film dialogue."
    rows = first_rows(text)
    return sum(r.count(FILM) >= 3 for r in rows) * 2 > len(rows)


# %% tags=["check"]
looks = (looks_like_table, looks_like_records, looks_like_movie_lines)
for text, want in (
    (shapes["fan page"], 0),
    (shapes["Excel"], 0),
    ("Moe, wiping: Closed, pal.\nHomer: Since when, Moe?", None),
    ("[Moe's Tavern]\nMoe: Closed.", None),
    (json.dumps([chat]), 1),
    (json.dumps(chat), 1),
    (film, 2),
):
    assert [f(text) for f in looks] == [i == want for i in range(3)], text

# %% [markdown]
# You can now read a script that comes as rows, and say of each row what became of it.
#
# 1. A table of a play has the columns `Act`, `Scene`, `Player`, `PlayerLine`. Which columns are taken, and what does a person have to say so that an act is an episode?
# 2. In a shuffled table two rows in a hundred have the same number. What becomes of them, and what if it were ten?

# %% tags=["example"]
play = "Act,Scene,Player,PlayerLine\n1,1,Ada,On.\n2,1,Otto,Off."
acts = read_table(play, "play.csv", Reading(columns={"episode": "Act"}))
few, many = (
    read_table("number,who,line\n" + "".join(f"{max(i, n)},Ada,Row {i}.\n" for i in range(100)), "x.csv")
    for n in (2, 10)
)
print(acts.notes, [line.episode for line in acts.lines])
few.account()["rejected"], many.account()["rejected"], many.notes[1]

# %% tags=["check"]
assert [line.episode for line in acts.lines] == [1, 2] and few.account()["rejected"] == 2
assert many.account()["rejected"] == 0 and "repeats its numbers" in many.notes[1]
