# %%
#| default_exp data.text

# %% [markdown]
# # Typed scripts
#
# > Rows of names and lines, plays, screenplays.

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
