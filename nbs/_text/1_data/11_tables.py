# %%
#| default_exp data.tables

# %% [markdown]
# # Tables and records
#
# > The public table with its damaged rows, any table with named columns, and the JSON records of chat data.

# %%
#| export
import csv
import json
import re
from operator import attrgetter

from simpsons_llm.data.lines import (
    Line,
    Reading,
    Rejected,
    Scene,
    Script,
    Tally,
    clean,
    clean_name,
    has_words,
    scenes_of,
    without_directions,
)
from simpsons_llm.machine.job import require

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
