# %%
#| default_exp data.formats

# %% [markdown]
# # Any script
#
# > Subtitles, chats, saved pages and Final Draft; what a file is; and one call that reads it, or says truly why not.
#
# People keep scripts in many forms. Whatever the form, this chapter ends with the same scenes and the same account of all rows; nothing is dropped silently. [Tables](11_tables.ipynb) and [typed scripts](12_text.ipynb) are read in chapters of their own, and [bytes become text](../9_machine/94_encodings.ipynb) in the machine room. Here come the forms that have times or tags, then the choice among all readers, and the gate that lets through only what looks like dialogue. What all this is for is told with examples in [your own script](../0_start/02_your_script.ipynb).

# %%
#| export
import bisect
import html
import json
import math
import re
import string
import warnings
from collections import Counter
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import simpsons_llm
from simpsons_llm.data.lines import (
    AUTO,
    EXTENSION,
    Line,
    Reading,
    Script,
    Tally,
    clean,
    doubts,
    has_words,
    quality,
    rename,
    scenes_of,
    without_directions,
)
from simpsons_llm.data.tables import (
    MOST_NAME,
    MOST_TEXT,
    Row,
    guess_columns,
    looks_like_movie_lines,
    looks_like_records,
    looks_like_table,
    read_any,
    read_movie_lines,
    read_parquet,
    read_records,
    read_table,
)
from simpsons_llm.data.text import MARKS, cut_whole, read_fountain, read_play, read_screenplay, read_text
from simpsons_llm.machine.encodings import decode, open_bytes
from simpsons_llm.machine.job import collector_off, require

# %%
#| hide
import tempfile

import pandas as pd

from simpsons_llm.data.tables import COLUMNS

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## Pauses
#
# Subtitles and chats have no headings, but they have times, and people who change the place or the subject make a pause. How long is one? Where `--scene-break` says `30s`, `5m` or `2h`, so long. Otherwise the file says it: sort the gaps by length, and look for the place where they jump. Nine captions follow each other within a second, the next comes after twenty: anything between parts the scenes. A jump counts where it is at least threefold, above what is no pause in any case (4 seconds between captions, 10 minutes in a chat). Where nothing jumps, a usual pause is taken: 10 seconds, or an hour.

# %%
#| export
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def spell_time(
    seconds: float,  # how long
) -> str:  # 20s, 5m, 2h: as `--scene-break` takes it
    "A pause in words."
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 1 else f"{seconds:.1f}s"


def find_pause(
    gaps: list,  # seconds from each line to the next
    least: float,  # shorter gaps are none
    usual: float,  # what to take where none stands out
) -> float:  # seconds
    "From how long on a gap parts scenes."
    known = sorted(g for g in gaps if g > 0)
    best, at = 3.0, usual
    for i in range(len(known) * 2 // 3, len(known) - 1):
        low, high = max(known[i], least / 3), known[i + 1]
        if high >= least and high / low >= best:
            best, at = high / low, max(least, math.sqrt(low * high))
    step = next(s for s in (86400, 3600, 60, 1) if at >= 2 * s or s == 1)
    return round(at / step) * step if at >= 1 else at


class Timed(NamedTuple):
    "A line with the time when it was said."

    speaker: str  # who
    text: str  # what
    row: int  # line of the file
    start: float | None  # seconds; None: not known
    end: float | None  # seconds


def by_pauses(
    timed: list,  # `Timed` lines, in order
    how: Reading,  # what a person said
    least: float = 4.0,  # seconds that are no pause
    usual: float = 10.0,  # seconds that are one
) -> tuple:  # (`Scene`s, notes: a sentence each)
    "Cut lines into scenes where nobody spoke for long."
    told = how.scene_break
    m = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", told)
    require(
        m or told in ("auto", "heading"),
        f"scene_break={told!r} was given, but this file has times; give auto, 30s, 5m, 2h or 20",
    )
    each = max(1, int(float(m[1]))) if m and not m[2] else 0
    gaps = [
        max(0.0, b.start - a.end) if a.end is not None and b.start is not None else 0.0
        for a, b in zip(timed, timed[1:])
    ]
    pause = float(m[1]) * UNITS[m[2]] if m and m[2] else find_pause(gaps, least, usual)
    lines, cuts = [], []
    for i, x in enumerate(timed):
        if i and (i % each == 0 if each else told != "heading" and gaps[i - 1] >= pause):
            cuts.append(Line(1, 2 * i, "", "", "", x.row))
        lines.append(Line(1, 2 * i + 1, x.speaker, x.text, "", x.row))
    scenes = scenes_of(lines, cuts)
    if each or told == "heading":
        return scenes, []
    why = "as told" if m else "found from the file" if cuts else "nothing stands out"
    return scenes, [f"scenes end where nobody speaks for {spell_time(pause)} ({why}; --scene-break says otherwise)"]


# %% tags=["example"]
find_pause([0.1, 0.3, 0.2, 20, 0.1, 0.2, 31, 0.1], 4, 10), find_pause([1, 2, 3, 4, 5], 4, 10)

# %% tags=["check"]
assert 4 < find_pause([0.1, 0.3, 0.2, 20, 0.1, 0.2, 31, 0.1], 4, 10) < 20 and find_pause([], 4, 10) == 10
said = [Timed("Ada", "Hm.", i, t, t + 1) for i, t in enumerate((0, 2, 4, 40, 42, 44), 1)]
assert [[len(s.lines) for s in by_pauses(said, Reading(scene_break=b))[0]] for b in ("auto", "2h", "4")] == [
    [3, 3],
    [6],
    [4, 2],
]


# %% [markdown]
# ## Subtitles
#
# A caption is a time and a few rows. Who speaks is not always written, and if it is, in many ways: `MARLA: Tea?`, `[SPEAKER_00]: Tea?` from programs that tell voices apart, `<v Marla>` in WebVTT, a field of its own in the SSA format; two rows with dashes are two people. The library pysubs2 knows the formats; what it does not keep are the rows of the file, which the account needs, and the voices. So its times and its reader for SSA are used, and the captions of the other two formats are cut here.

# %%
#| export
class Caption(NamedTuple):
    "What is shown at one time."

    start: float  # seconds
    end: float  # seconds
    name: str  # who speaks, where the format has a field for it
    rows: list  # (line of the file, text) pairs
    comment: bool = False  # not shown


def cues(
    text: str,  # SubRip or WebVTT
    tally: Tally,  # rows that are no captions are counted here
) -> list:  # `Caption`s in order
    "Captions of a file whose captions begin with a row of two times."
    from pysubs2.formats.subrip import SubripFormat
    from pysubs2.formats.webvtt import WebVTTFormat

    vtt = text.lstrip().startswith("WEBVTT")
    known = WebVTTFormat if vtt else SubripFormat
    rows = text.split("\n")
    times = {i: known.TIMESTAMP.findall(row) for i, row in enumerate(rows) if "-->" in row[:300]}
    times = {i: s for i, s in times.items() if len(s) == 2 and all(any(part.strip(":") for part in t[-3:]) for t in s)}
    times = {i: s for i, s in times.items() if all(t[0] != ":" for t in s)}
    found: list[Caption] = []
    own = False  # whether rows belong to the newest caption
    for i, row in enumerate(rows):
        if i in times:
            start, end = (known.timestamp_to_ms(t) / 1000 for t in times[i])
            found.append(Caption(start, end, "", []))
            tally.add("wordless", row)
            own = True
        elif not row.strip():
            tally.add("wordless") if i < len(rows) - 1 or row else None
            own = own and not vtt
        elif i + 1 in times and (not own or not rows[i - 1].strip() or re.fullmatch(r"\s*\d+\s*", row) and not vtt):
            tally.add("wordless", row)  # a caption's number or name
        elif own:
            found[-1].rows.append((i + 1, row))
        elif vtt:
            tally.add("note", row)
        else:
            tally.reject(i + 1, "stands before the first caption", row)
    return found


def events(
    text: str,  # SSA or ASS
    where: str,  # the file's name
    tally: Tally,  # rows that are no captions are counted here
) -> list:  # `Caption`s in order of time
    "Captions of an SSA file."
    import pysubs2

    rows = text.split("\n")
    places = [i for i, row in enumerate(rows) if re.match(r"\s*(Dialogue|Comment):", row)]
    kind = "ass" if "[v4+ styles]" in text.lower() else "ssa"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = list(pysubs2.SSAFile.from_string(text, format_=kind))
        except Exception:  # it gives up at one bad row, and says so in many ways
            found = []
            head = "\n".join(re.findall(r"(?im)^\s*(?:\[events\]|format:.*)$", text[:20_000]))
            for i in places:
                try:
                    found += list(pysubs2.SSAFile.from_string(f"{head}\n{rows[i]}", format_=kind))[:1]
                except Exception:
                    tally.reject(i + 1, "its fields cannot be read", rows[i])
            bad = {x.row - 1 for x in tally.rejected}
            places = [i for i in places if i not in bad]
    require(len(found) == len(places), f"{where} is an SSA file with rows outside [Events]; save it as SubRip (.srt)")
    own = {*places, *(x.row - 1 for x in tally.rejected)}
    for i, row in enumerate(rows):
        if i not in own and (row.strip() or i < len(rows) - 1):
            tally.add("note" if row.strip() else "wordless", row)
    captions = [
        Caption(
            e.start / 1000,
            e.end / 1000,
            e.name.strip(),
            [(i + 1, e.plaintext if not e.is_drawing else "")],
            e.is_comment,
        )
        for i, e in zip(places, found)
    ]
    return sorted(captions, key=lambda c: (c.start, c.rows[0][0]))


# %% [markdown]
# ### Who speaks
#
# In front of a colon stands a name, or something else: `Listen: it boils.` A label of a program (`SPEAKER_00`) and a name in capitals are certain. Words as one writes them are taken for names where most captions begin so, or where the same ones come at least three times. In brackets without a colon, `(MARLA) Tea?` looks like `(SIGHS) Tea?`, so only a name that is known from elsewhere in the file counts.

# %%
#| export
DASH = re.compile(r"\s*(?:>>+|[-–—‐]+)\s*(?=\S)")
LABEL = re.compile(r"(?i:speaker|spk|sprecher|locuteur|hablante)[ _-]?\d+|(?i:unknown)")
NAMED = re.compile(
    r"\s*(?:>>+\s*)?(?:\[([^\[\]:]{1,40})\]\s*[:：]|\(([^():]{1,40})\)\s*[:：]"
    r"|(\w[^:：\[\](){}<>!?]{0,39})[:：](?!\d|//))\s*"
)
BRACKETED = re.compile(r"\s*(?:>>+\s*)?[\[(]([^\[\]():]{1,40})[\])]\s*(?=\S)")


def name_at(
    text: str,  # a row of a caption
) -> tuple:  # (the name before its colon, or "", the rest)
    "What stands before a colon."
    m = NAMED.match(text)
    name = clean(m[1] or m[2] or m[3]) if m else ""
    return (name, text[m.end() :]) if m and name and len(name.split()) <= 5 else ("", text)


def names_in(
    captions: list,  # `Caption`s
) -> set:  # names before colons
    "Which words before colons are names."
    seen = Counter(name_at(DASH.sub("", plain_row(row), count=1))[0] for c in captions for _, row in c.rows)
    seen.pop("", None)
    capital = {
        n for n in seen if n == n.upper() and n != n.lower() or LABEL.fullmatch(n) or n == n.lower() == n.upper()
    }
    proper = {n for n in seen if all(w[0].isupper() or not w[0].isalpha() for w in n.split())}
    many = sum(seen[n] for n in proper) > 0.3 * len(captions)
    rows = [m for c in captions if c.rows and (m := BRACKETED.match(plain_row(c.rows[0][1])))]
    if len(rows) > 0.5 * len(captions):  # [Ada] Tea?, again and again: sounds do not stand before all that is said
        capital |= {n for n, k in Counter(m[1] for m in rows).items() if k > 1 and n[0] != n[0].lower()}
    return capital | {n for n in proper if many or seen[n] >= 3}


def plain_row(
    row: str,  # a row of a caption
) -> str:  # without marks of layout; <v Marla> stays
    "Take tags and codes out."
    row = re.sub(r"\{\\[^{}]*\}|\{[a-zA-Z]:[^{}]*\}", "", row)
    row = re.sub(r"</?(?!v[ .])[a-zA-Z/][^<>]{0,200}>|</v>|<\d[\d:.]*>", "", row)
    return html.unescape(row.replace("\\N", " ").replace("\\n", " ").replace("\\h", " "))


# %%
#| export
MUSIC = re.compile(r"[♪♫♬][^♪♫♬]*(?:[♪♫♬]|$)")


def turns(
    caption: Caption,  # what is shown at one time
    names: set,  # known names
) -> list:  # (speaker or "", [(line of the file, text)]) for each person who speaks
    "The people of a caption, and their rows."
    found: list[tuple[str, list]] = []
    rows = [(n, part) for n, row in caption.rows for part in plain_row(row).split("\n")]
    dashes = len(rows) > 1 and bool(DASH.match(rows[-1][1]) or sum(bool(DASH.match(t)) for _, t in rows) > 1)
    for n, row in rows:
        for voice in filter(str.strip, re.split(r"(?=<v[ .])", row)) if "<v" in row else [row]:
            m = re.match(r"<v[^\s<>]*\s+([^<>]*)>", voice)
            begins, who, said = bool(m), clean(m[1]) if m else "", voice[m.end() :] if m else voice
            dash = DASH.match(said)
            if dash and (dashes or not found) and not re.match(r"\s*[-–—]+\s*\d", said):
                begins, said = begins or dashes or ">" in dash[0], said[dash.end() :]
            name, rest = name_at(said)
            b = BRACKETED.match(said)
            if name in names:
                begins, who, said = True, name, rest
            elif b and (b[1] in names or LABEL.fullmatch(b[1])):
                begins, who, said = True, clean(b[1]), said[b.end() :]
            if begins or not found:
                found.append((who or ("" if found else caption.name), []))
            found[-1][1].append((n, said))
    return found


# %% tags=["example"]
one = Caption(0, 2, "", [(1, "MARLA: <i>Is it on?</i>"), (2, "- It was. [kettle whistles]")])
turns(one, {"MARLA"})

# %% [markdown]
# ### Lines
#
# A caption becomes a line of its own for each of its people, also where a sentence goes on in the next caption: captions follow speech closely, and where one of them ends is where the speaker breathes. A caption without a name goes on with the speaker before if the sentence does, else it is said by *Someone*. Rolling captions, in which each row is shown twice, are found by their times: what is on the screen already, without a break, is not said again.

# %%
#| export
NOBODY = "Someone"  # who speaks where no name is written


def rolled(
    rows: list,  # (line of the file, text) pairs of a caption
    before: list,  # texts of the caption before, without a break
) -> int:  # how many of its first rows stood there already
    "Rows that only move up."
    texts = [clean(plain_row(t)) for _, t in rows]
    for n in range(min(len(texts), len(before)), 0, -1):
        if texts[:n] == before[-n:] and any(texts[:n]):
            return n
    return 0


def read_subtitles(
    text: str,  # SubRip, WebVTT or SSA
    where: str,  # the file's name
    how: Reading = AUTO,  # what a person said
) -> Script:  # rows of the account are rows of the file
    "Read subtitles: a line for each person of a caption, scenes by pauses."
    tally = Tally()
    ssa = bool(re.search(r"(?im)^\s*\[(script info|v4\+? styles|events)\]", text[:4000]))
    captions = events(text, where, tally) if ssa else cues(text, tally)
    require(
        captions, f"{where} has no caption with two times, as 00:00:01,000 --> 00:00:02,000; give --file-format text"
    )
    names = names_in(captions)
    timed: list[Timed] = []
    shown: list[str] = []
    last, unnamed = Caption(0, -1, "", []), 0
    for c in captions:
        if c.comment:
            tally.add("note", c.rows[0][1])
            continue
        again = rolled(c.rows, shown) if c.start <= last.end + 0.04 else 0
        for _, row in c.rows[:again]:
            tally.add("continuation", row)
        shown, last = [clean(plain_row(t)) for _, t in c.rows] or shown, c
        counted: set = set()
        for who, rows in turns(c._replace(rows=c.rows[again:]), names):
            whole = clean(" ".join(t for _, t in rows))
            kept = whole if how.keep_directions else without_directions(MUSIC.sub(" ", whole))
            spoken = bool(re.search(r"\w", without_directions(MUSIC.sub(" ", whole))))
            goes_on = timed and not counted and timed[-1].text[-1:] not in '.!?…。！？"”♪)]' and c.start - last.end < 2
            if spoken:
                who = who or (timed[-1].speaker if goes_on and whole[:1].islower() else NOBODY)
                unnamed += who == NOBODY
                timed.append(Timed(who, kept, rows[0][0], c.start, c.end))
            kind = "spoken" if spoken else "direction" if re.search(r"\w", whole) else "wordless"
            for n, row in rows:
                if n not in counted:
                    tally.add(kind if kind != "spoken" or n == rows[0][0] else "continuation", row)
                    counted.add(n)
    scenes, notes = by_pauses(timed, how)
    if timed and unnamed == len(timed):
        notes.append(
            f"no caption says who speaks: all lines are said by {NOBODY}; no character can be learned from them"
        )
    elif unnamed:
        notes.append(f"{unnamed} of {len(timed)} lines name nobody and are said by {NOBODY}")
    return Script.of(where, scenes, tally, "subtitles", notes)


def looks_like_subtitles(
    text: str,  # a file's text
) -> bool:
    "Whether a file begins as subtitles do."
    head = text[:20_000].lstrip()
    times = re.findall(r"(?m)^\s*(?:\d+:)?\d\d?:\d\d[.,]\d{1,3}\s*-->\s*(?:\d+:)?\d\d?:\d\d[.,]\d{1,3}", head)
    return bool(times) or head.startswith("WEBVTT") or bool(re.match(r"(?i)\[script info\]", head))


# %% tags=["example"]
captions = """1
00:00:01,000 --> 00:00:02,000
MARLA: <i>Is it on?</i>
I can't hear it.

2
00:00:02,100 --> 00:00:03,000
[kettle whistles]

3
00:00:24,000 --> 00:00:25,000
- OTTO: It was on
- (sighs) No.
"""
subtitled = read_subtitles(captions, "tea.srt")
[(x.speaker, x.text, x.row) for x in subtitled.lines], len(subtitled.scenes), subtitled.notes, subtitled.account()

# %% tags=["check"]
assert subtitled.account()["rows"] == len(captions.splitlines()) and subtitled.account()["continuation"] == 1
assert subtitled.speakers == {"MARLA": 1, "OTTO": 1, "Someone": 1}
voices = read_subtitles("WEBVTT\n\nNOTE by Ada\n\n00:01.000 --> 00:02.000\n<v Ada>On?</v>\n<v Otto>Off.</v>\n", "x.vtt")
assert [x[2:4] for x in voices.lines] == [("Ada", "On?"), ("Otto", "Off.")] and voices.counts["note"] == 2

# %% [markdown]
# ## Chats
#
# An exported chat is nearly a script: date, time, name, colon, words. What is not: rows without a name, which the program wrote (*Otto left*), and messages that are no words (`<Media omitted>`). The program writes them in the language of the telephone, so they are known by their shape where that is possible: what stands in angle brackets alone, a file's name with a bracket behind it, and in exports of an iPhone the invisible mark U+200E in front of whatever a person did not type. A message may go on over rows, with blank ones between. What stands in brackets was typed by the person and stays: nobody acts in a chat.

# %%
#| export
DATE = (
    r"(?P<date>\d{1,4}[./-]\s?\d{1,2}[./-]\s?\d{1,4}\.?|\d{4}年\d{1,2}月\d{1,2}日|\d{4}년\s?\d{1,2}월\s?\d{1,2}일)"
    r"(?:,?\s+(?:(?:at|um|às|à|o|om|a|las|klo|kl\.|alle)\s+)*)"
)
DAYTIME = (
    r"(?:上午|下午|午前|午後|오전|오후)?\s?\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\.\d+)?(?:\s?[apAP]\.?\s?[mM]\.?|\s?[صم])?"
)
HEAD = re.compile(
    rf"\[\s*(?:{DATE})?(?P<time>{DAYTIME})\s*\]\s*[-–]?\s*(?P<a>.*)"  # [12/03/2023, 21:02] Ada: on
    rf"|{DATE.replace('date', 'date2')}(?P<time2>{DAYTIME})(?:\s+[-–—]|\s*,)\s+(?P<b>.*)"
    rf"|(?:{DATE.replace('date', 'date3')})?(?P<time3>\d{{1,2}}:\d{{2}}(?::\d{{2}})?)"
    r"(?:\s+(?P<c>(?:<[^<>]{1,40}>|\*|-!-).*)|\t\s*(?P<d>\S[^\t]{0,40}\t.*)|\s+From\s+(?P<e>.*))",  # 21:02 <Ada> on
    re.S,
)
ABOVE = re.compile(  # Ada — 12/03/2023 21:02, and below it what she wrote
    rf"(?P<name>\w[^:：\t\[\]<>]{{0,39}}?)(?:\s+[-–—]\s+|\s{{2,}}|\s+(?P<open>[(\[]))(?:{DATE})?(?P<time>{DAYTIME})"
    r"(?(open)[)\]]):?\s*"
)
NICK = re.compile(r"<[ @+%&~]?([^<>\s][^<>]{0,39})>\s*(.*)", re.S)
SAYS = re.compile(r"([^:：\n]{1,60}?)\s?[:：](?:\s+(.*)|$)", re.S)
GONE = re.compile(
    r"<[^<>]{3,60}>|null|\S.*\.(?:jpe?g|png|webp|gif|mp4|3gp|opus|m4a|mp3|pdf|vcf|docx?|xlsx?)\s*\([^()]+\)"
    r"|(?:image|video|audio|sticker|gif|document|contact card|photo|voice message|bild|foto|imagen|imagem"
    r"|immagine|afbeelding"
    r"|vídeo|dokument|documento?|figurinha|изображение|видео|аудио|стикер)"
    r"\s+(?:omitted|weggelassen|omitid[oa]|absente?|omess[oa]"
    r"|ocultad[oa]|omis[ea]?|weggelaten|pominięt[oya]|пропущено|опущено)"
    r"|.{0,20}(?:message was deleted|deleted this message|nachricht (?:wurde )?gelöscht"
    r"|eliminó este mensaje|eliminaste este mensaje"
    r"|message a été supprimé|supprimé ce message|mensagem (?:foi )?apagada|apagou esta mensagem"
    r"|messaggio è stato eliminato"
    r"|bericht is verwijderd|сообщение удалено|wiadomość została usunięta|消息已被?[删刪]除|訊息已刪除).{0,20}"
    r"|missed (?:voice|video) call.*|verpasster (?:sprach|video)anruf.*",
    re.I | re.S,
)  # fmt: skip


class Message(NamedTuple):
    "A row that begins a message."

    date: str  # as it stands there; "" for a time alone
    time: str  # as it stands there
    name: str  # who; "" for a row of the program's own
    text: str  # what
    typed: bool  # False: the program wrote it


def message_at(
    row: str,  # a row of a chat
) -> Message | None:  # None: it goes on with the message before, or is no chat
    "What begins with a date or a time."
    bare = row.replace("\u202f", " ").replace("\xa0", " ")
    m = HEAD.match(MARKS.sub("", bare[:80]).lstrip() + bare[80:])
    if not m:
        above = ABOVE.fullmatch(bare) if len(bare) < 90 else None
        return Message(above["date"] or "", above["time"], clean(above["name"]), "", True) if above else None
    rest = next(r for k in "abcde" if (r := m[k]) is not None)
    date, time = m["date"] or m["date2"] or m["date3"] or "", m["time"] or m["time2"] or m["time3"]
    if m["d"] is not None:  # columns with tabs between; an arrow is the program's
        name, said = rest.split("\t", 1)
        return Message(date, time, clean(name.strip("@+ ")) if re.search(r"\w", name) else "", clean(said), True)
    if m["e"] is not None:  # From Ada to everyone: on
        rest = re.sub(r"^([^:]{1,40}?)\s+to\s+[^:]{1,40}:", r"\1:", rest, flags=re.I)
    typed = not re.match(
        r"[^:：]{1,60}[:：]\s*\u200e", bare[m.start() :].split("]", 1)[-1] if "\u200e" in bare[:150] else ""
    )
    nick = NICK.match(rest)
    said = None if nick or re.match(r"[*-](?:!-|\*\*)?\s", rest) else SAYS.match(rest)
    found = nick or said
    name = clean(found[1]).removeprefix("~").strip() if found else ""
    return Message(date, time, name, clean(found[2] or "") if found else rest, typed)


# %% tags=["example"]
for row in (
    "12/03/23, 21:02 - Marla Quill: Is it on? (the kettle)",
    "[12.03.2023, 09:02:11 PM] Otto: \u200eimage omitted",
    "3/12/23, 9:02\u202fPM - Otto left",
    "[21:02] <juno> it whistles",
    "and one more thing: tea",
):
    print(message_at(row))


# %% [markdown]
# Dates are written in every order. Which one it is, a file of some days tells: no month is the thirteenth, and time goes forward.

# %%
#| export
def day_order(
    dates: list,  # dates as they stand in a file, in order
) -> str:  # dmy, mdy or ymd
    "In which order day, month and year stand."
    numbers = [tuple(map(int, re.findall(r"\d+", d))) for d in dict.fromkeys(dates) if d]
    numbers = [n for n in numbers if len(n) == 3]
    if not numbers or max(n[0] for n in numbers) > 31:
        return "ymd"
    if max(n[0] for n in numbers) > 12:
        return "dmy"
    if max(n[1] for n in numbers) > 12:
        return "mdy"

    def back(a, b):  # how often time would go back
        keys = [(n[2], n[a], n[b]) for n in numbers]
        return sum(y < x for x, y in zip(keys, keys[1:]))

    return "dmy" if back(1, 0) <= back(0, 1) else "mdy"


def seconds_of(
    date: str,  # a date as it stands in the file; "": none
    time: str,  # a time of day
    order: str,  # dmy, mdy or ymd
) -> float | None:  # seconds since some day; None: no such date
    "When a message was written."
    n, clock = [int(x) for x in re.findall(r"\d+", date)], [int(x) for x in re.findall(r"\d+", time)[:3]]
    late = bool(re.search(r"(?i)p\.?\s?m|下午|午後|오후|م", time))
    early = bool(re.search(r"(?i)a\.?\s?m|上午|午前|오전|ص", time))
    hour = clock[0] % 12 + 12 * late if late or early else clock[0]
    day = 0
    if len(n) == 3:
        year, month, of_month = (n[order.index(x)] for x in "ymd")
        try:
            day = datetime(year + 2000 if year < 100 else year, month, of_month).toordinal()
        except ValueError:
            return None
    return day * 86400.0 + hour * 3600 + clock[1] * 60 + (clock[2] if len(clock) > 2 else 0)


# %%
#| export
def read_chat(
    text: str,  # an exported chat
    where: str,  # the file's name
    how: Reading = AUTO,  # what a person said
) -> Script:  # rows of the account are rows of the file; in JSON, messages
    "Read a chat: a line for each message, scenes by pauses."
    if text.lstrip()[:1] == "{" or re.match(r"\s*\[\s*\{", text):
        return read_chat_json(text, where, how)
    rows = text.split("\n")
    heads = {i: m for i, row in enumerate(rows) if (m := message_at(row))}
    require(heads, f"{where} has no row such as `12/03/23, 21:02 - Name: text`; give --file-format text")
    names = Counter(m.name for m in heads.values() if m.name)
    odd = {n for n, k in names.items() if k == 1 and len(n.split()) > 4 or re.search(r"[\"“”«»]", n)}
    order = day_order([m.date for m in heads.values()])
    tally, timed = Tally(), []
    newest: list[str] | None = None  # the words of the newest message; None: it is no speech
    speech: list[tuple[Message, int, list]] = []
    started = False
    for i, row in enumerate(rows):
        m = heads.get(i)
        if m:
            started, text_of = True, MARKS.sub("", m.text).strip()
            lost = not m.typed or GONE.fullmatch(text_of)
            newest = None
            if not m.name or m.name in odd or lost:
                tally.add("note", row)
            elif re.search(r"\w", text_of) or not text_of and i + 1 not in heads and any(rows[i + 1 : i + 2]):
                newest = [text_of]
                speech.append((m, i + 1, newest))
                tally.add("spoken", row)
            else:
                tally.add("wordless", row)
        elif not row.strip():
            tally.add("wordless") if i < len(rows) - 1 or row else None
        elif not started:
            tally.reject(i + 1, "stands before the first message", row)
        elif newest is None:
            tally.add("note", row)
        else:
            newest.append(MARKS.sub("", row))
            tally.add("continuation", row)
    days, before = 0, 0.0
    for m, n, words in speech:
        at = seconds_of(m.date, m.time, order)
        if at is not None and not m.date:  # a time alone begins again each day
            days += 86400 * (at + days < before - 3600)
            before = at = at + days
        said = re.sub(r" ?<[^<>]{3,60}>$", "", clean(" ".join(words)))  # <This message was edited>
        timed.append(Timed(m.name, said or "…", n, at, at))
    scenes, notes = by_pauses(timed, how, 600, 3600)
    return Script.of(where, scenes, tally, "chat", notes)


# %% [markdown]
# Telegram writes JSON: messages with `from`, `date`, and a text that is a string or a list of parts, some of which are links. Discord, Slack, Messenger and others write other names for the same three things. Messenger begins with the newest message, and writes each byte of UTF-8 as a letter of its own.

# %%
#| export
WHO_WROTE = ("from", "sender_name", "author", "creator", "user_profile", "sender", "user")
WHEN = ("date", "timestamp_ms", "timestamp", "created_date", "createdDateTime", "ts")
WROTE = ("text", "content", "body")
NAMES = ("nickname", "real_name", "displayName", "name")


def part_of(
    message: dict,  # a message
    keys: tuple,  # what the thing is called by several programs
):  # the first that is there; None if none is
    "A thing that goes by several names."
    return next((message[k] for k in keys if message.get(k) is not None), None)


def name_of(
    who,  # what stands for a person: a name, or a record that holds it
) -> str:  # "" for nobody
    "The name of who wrote a message."
    who = who.get("user") or who if isinstance(who, dict) else who
    who = next((who[k] for k in NAMES if who.get(k)), "") if isinstance(who, dict) else who
    return clean(who) if isinstance(who, str) else ""


def time_of(
    when,  # a number of seconds or milliseconds, or a date as ISO has it
) -> float | None:  # seconds; None: not known
    "When a message was written."
    try:
        number = float(when)
        return number / 1000 if number > 1e11 else number
    except (TypeError, ValueError):
        pass
    try:
        return (datetime.fromisoformat(str(when)).replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        return None


def once_more(
    text: str,  # such as "cafÃ©"
) -> str:  # such as "café", if it was bytes
    "Letters that were written as bytes."
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def read_chat_json(
    text: str,  # a chat as JSON
    where: str,  # the file's name
    how: Reading = AUTO,  # what a person said
) -> Script:  # rows of the account are messages
    "Read a chat that was exported as JSON."
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is JSON nested too deep for a chat; give Telegram's result.json") from None
    except ValueError as e:
        raise ValueError(f"{where} is not valid JSON ({e}); export the chat again") from None
    data = {"messages": data} if isinstance(data, list) else data
    chats = data.get("chats", {}) if isinstance(data, dict) else {}
    chats = chats.get("list", []) if isinstance(chats, dict) else []
    chats = [c for c in (chats or [data]) if isinstance(c, dict) and isinstance(c.get("messages"), list)]
    require(
        chats, f"{where} has no list of messages; expected Telegram's result.json with messages of from, date and text"
    )
    tally, timed, at, number = Tally(), [], 0, 0
    for m in (m for chat in chats for m in chat["messages"]):
        number += 1
        if not isinstance(m, dict):
            tally.reject(number, "is no message", str(m))
            continue
        found = text.find(f'"id": {m.get("id")}', at) if "id" in m else -1
        at = found + 1 if found >= 0 else at
        parts = part_of(m, WROTE) or ""
        parts = parts.get("content", "") if isinstance(parts, dict) else parts
        parts = parts if isinstance(parts, list) else [parts]
        said = clean("".join(str(p.get("text", "")) if isinstance(p, dict) else str(p or "") for p in parts))
        name = name_of(part_of(m, WHO_WROTE)) or name_of(m.get("user"))
        if "sender_name" in m:
            said, name = once_more(said), once_more(name)
        service = str(m.get("type", "message")).lower() not in ("message", "default", "reply", "generic", "share")
        if service or m.get("subtype") or not said:
            tally.add("note", said)
        elif len(name) > MOST_NAME or len(said) > MOST_TEXT:
            tally.reject(number, f"more than {MOST_TEXT:,} letters in one message, or {MOST_NAME} in a name", said)
        elif not re.search(r"\w", said):
            tally.add("wordless", said)
        else:
            seconds = time_of(part_of(m, WHEN))
            timed.append(Timed(name or "Deleted account", said, number if found < 0 else found, seconds, seconds))
            tally.add("spoken", said)
    times = [x.start for x in timed if x.start is not None]
    if times and times[0] > times[-1]:
        timed.reverse()
    ends = [m.start() for m in re.finditer("\n", text)]
    timed = [x._replace(row=bisect.bisect(ends, x.row) + 1 if at else x.row) for x in timed]
    scenes, notes = by_pauses(timed, how, 600, 3600)
    notes.append("rows of this file are counted as messages")
    return Script.of(where, scenes, tally, "chat", notes)


def looks_like_chat(
    text: str,  # a file's text
) -> bool:
    "Whether a file begins as an exported chat does."
    if text.lstrip()[:1] in ("{", "[") and re.match(r'\s*[{\[]\s*["{]', text):
        head = text[:20_000]
        held = '"messages"' in head or text.lstrip()[0] == "["
        timed = any(f'"{k}":' in head for k in WHEN) and any(f'"{k}":' in head for k in WHO_WROTE)
        return held and timed and not re.search(r'"(?:role|conversations|speaker|character|mapping)":', head)
    rows = [row for row in text[:40_000].split("\n")[:200] if row.strip()]
    heads = [m for row in rows if (m := message_at(row))]
    named = sum(bool(m.name) for m in heads)
    return named >= 2 and len(heads) >= 0.2 * len(rows) and named >= 0.3 * len(heads)


# %% tags=["example"]
chat = """12/03/23, 21:02 - Otto created group "Tea"
12/03/23, 21:02 - Marla Quill: Is it on? :(

I can't hear it. :)
12/03/23, 21:03 - Otto: <Media omitted>
13/03/23, 08:15 - Otto: It was.
"""
chatted = read_chat(chat, "tea.txt")
[(x.speaker, x.text, x.row) for x in chatted.lines], len(chatted.scenes), chatted.notes, chatted.account()

# %% tags=["check"]
assert (
    chatted.speakers == {"Marla Quill": 1, "Otto": 1} and chatted.account()["rows"] == 6 and chatted.counts["note"] == 2
)
assert day_order(["3/4/23", "3/14/23"]) == "mdy" and day_order(["31.1.23", "1.2.23"]) == "dmy"
assert day_order(["1/2/23", "2/2/23", "1/3/23"]) == "dmy" and seconds_of("", "9:02 PM", "dmy") == 75720
assert looks_like_chat(chat) and not looks_like_chat("Ada: Is the kettle on?") and not looks_like_subtitles(chat)

# %% [markdown]
# ## Saved pages
#
# Transcripts stand on web pages. The standard library's parser reads HTML as it is found, broken or not. What a person sees becomes rows, as a browser's *copy* gives them: a blank row between paragraphs, none between rows that only a `<br>` parts. Italics are kept as `<i>`, since they often mean a direction; scripts, styles and menus are hidden, and counted. A table whose columns are known, if it is most of the page, is read as a table; and where elements are called `speaker` or `from_name`, a colon goes behind what they hold, if the page makes more sense so.

# %%
#| export
BLOCKS = set("address article center dd div dl dt fieldset figure figcaption form header li main section tr".split())
APART = set("blockquote h1 h2 h3 h4 h5 h6 hr ol p pre table ul".split())  # a blank row before and after
HIDDEN = set("head script style nav noscript template svg iframe object select button textarea footer aside".split())
NAMING = re.compile(r"(?:^|[\s_-])(?:name|who|speaker|character|author|username|sender|nick)(?=\s|$)", re.I)
ASIDE = re.compile(r"(?:^|[\s_-])(?:date|time|timestamp|userpic\w*|avatar|initials|details)(?=\s|$)", re.I)
VOID = set("area base br col embed hr img input link meta param source track wbr".split())


class Page(HTMLParser):
    "Rows of text from a page."

    def __init__(
        self,
        classes: bool = False,  # go by what elements are called: class="speaker", class="date"
    ):
        super().__init__(convert_charrefs=True)
        self.classes, self.naming, self.named = classes, "", False
        self.grid: list[tuple[int, list[str]]] = []  # rows of tables: (line of the file, cells)
        self.cell = False  # a cell is open
        self.rows: list[tuple[int, str]] = []  # (line of the file, text)
        self.parts: list[str] = []  # the row that is being read
        self.hidden: list[str] = []  # what is not seen
        self.inside: list[str] = []  # hidden elements that are open
        self.pre = self.italic = self.at = self.cells = 0
        self.empty = True  # nothing stands in the row yet

    def end_row(self, blank: bool = False):
        text = "".join(self.parts) + ("</i>" if self.italic and self.parts else "")
        text = text.rstrip() if self.pre else clean(text)
        text = re.sub(r"<i>(\s*)</i>", r"\1", text)
        if text.strip() or self.pre and not blank:
            self.rows.append((self.at, text))
        if blank and self.rows and self.rows[-1][1]:
            self.rows.append((self.getpos()[0], ""))
        self.parts, self.cells, self.empty = ["<i>"] if self.italic else [], 0, True
        self.at = self.getpos()[0]

    def name_ends(self):
        "A colon behind what is a name, and what is said goes on in the same row."
        name = clean("".join(self.parts))
        self.named = 0 < len(name) <= 60 and name not in ("<i>", "</i>")
        self.parts.append(": " if self.named and name[-1] not in ":：" else " ")

    def handle_starttag(self, tag, attrs):
        self.cell = (self.cell or tag in ("td", "th")) and tag not in ("tr", "table")
        if tag == "tr":
            self.grid.append((self.getpos()[0], []))
        elif tag in ("td", "th") and self.grid:
            self.grid[-1][1].append("")
        elif self.cell and self.grid and tag in BLOCKS | APART | {"br"}:
            self.grid[-1][1][-1] += " "
        called = str(dict(attrs).get("class") or "") if self.classes and tag not in VOID else ""
        if self.inside and self.classes and tag not in VOID:
            self.inside.append(tag)
        elif called and ASIDE.search(called):
            self.inside.append(tag)
        elif self.named and tag in BLOCKS | {"p"} and tag != "dt" and not NAMING.search(called):
            pass  # what is said begins here, in the row of the name
        elif self.inside:
            if tag == "body" or self.inside[-1] == "head" and tag in APART | {"div"}:
                self.inside.clear()
            elif tag in HIDDEN:
                self.inside.append(tag)
        elif tag in HIDDEN:
            self.inside.append(tag)
        elif tag == "br":
            self.end_row(blank=not self.pre and self.empty)
        elif tag in BLOCKS | APART:
            self.end_row(blank=tag in APART)
            self.pre += tag == "pre"
            self.naming = tag if NAMING.search(called) or tag == "dt" else self.naming
        elif tag in ("td", "th"):
            first = clean("".join(self.parts)) if self.cells == 1 else ""
            colon = self.cells == 1 and 0 < len(first) <= 40 and first[-1] not in ":："
            self.parts.append(": " if colon else " " if self.cells else "")
            self.cells += 1
        elif called and NAMING.search(called):
            self.naming = tag
        elif tag in ("i", "em"):
            self.italic += 1
            self.parts.append("<i>" if self.italic == 1 else "")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th", "tr", "table")
        if self.inside:
            if tag in self.inside:
                last = len(self.inside) - 1 - self.inside[::-1].index(tag)
                del self.inside[last if self.classes else self.inside.index(tag) :]
        elif tag and tag == self.naming:
            self.naming = ""
            self.name_ends()
        elif tag in BLOCKS | APART:
            self.end_row(blank=tag in APART)
            self.pre -= tag == "pre" and self.pre > 0
        elif tag in ("i", "em") and self.italic:
            self.italic -= 1
            self.parts.append("" if self.italic else "</i>")

    def handle_data(self, data):
        if self.inside:
            self.hidden += [row for row in data.split("\n") if row.strip()]
            return
        self.named = self.named and not data.strip()
        if self.cell and self.grid and self.grid[-1][1]:
            self.grid[-1][1][-1] += data
        first, *others = data.split("\n") if self.pre else [data]
        for i, row in enumerate([first, *others]):
            if i:
                self.end_row()
                self.at += i
            if self.empty and row.strip():
                self.empty = False
                skipped = len(data) - len(data.lstrip())
                self.at = self.getpos()[0] + (i if self.pre else data[:skipped].count("\n"))
            self.parts.append(row)

    def handle_comment(self, data):
        self.hidden += [row for row in data.split("\n") if row.strip()]


# %%
#| export
def html_rows(
    text: str,  # HTML
    classes: bool = False,  # go by what elements are called
) -> tuple:  # (text, hidden rows, line of the file of each row of the text)
    "What a person sees of a page, and where each row comes from."
    return rows_of_page(feed_page(text, classes))


def rows_of_page(
    page: Page,  # a page, taken apart
) -> tuple:  # (text, hidden rows, line of the file of each row of the text)
    "The text of a page."
    rows = page.rows
    while rows and not rows[-1][1]:
        rows.pop()
    return "\n".join(row for _, row in rows) + "\n" * bool(rows), len(page.hidden), [n for n, _ in rows]


def feed_page(
    text: str,  # HTML
    classes: bool = False,  # go by what elements are called
) -> Page:  # the page, taken apart
    "Read HTML to its end."
    page = Page(classes)
    closed = text.rfind("-->") + 1  # a comment without an end would hide the rest, and takes the parser for ever
    text = text[:closed] + text[closed:].replace("<!--", "&lt;!--")
    ended = text.rfind(">") + 1  # so does a tag
    text = text[:ended] + text[ended:].replace("<", "&lt;")
    try:
        page.feed(text)
        page.close()
    except (AssertionError, RecursionError) as e:
        raise ValueError(
            f"the page cannot be read as HTML ({clean(str(e))[:80]}); save it as text in the browser"
        ) from None
    page.end_row()
    return page


def grid_of(
    page: Page,  # a page, taken apart
) -> tuple:  # (names of the columns, `Row`s, rows of text beside them); no names if a table is not most of the page
    "The table of a page whose columns are known."
    rows = [(n, [clean(c) for c in cells]) for n, cells in page.grid]
    for i, (_, header) in enumerate(rows[:200]):
        if {"speaker", "text"} <= guess_columns(header).keys() and max(map(len, header)) <= 30:
            taken = [Row(n, cells) for n, cells in rows[i + 1 :] if len(cells) == len(header)]
            size = sum(len(c) for r in taken for c in r.fields)
            if size * 2 > sum(len(t) for _, t in page.rows):
                return header, taken, len(page.hidden) + max(0, len(page.rows) - len(taken))
    return [], [], 0


def html_to_text(
    text: str,  # HTML
) -> tuple:  # (text, how many rows of the page are not seen)
    "What a person sees of a page."
    return html_rows(text)[:2]


def looks_like_html(
    text: str,  # a file's text
) -> bool:
    "Whether a file begins as a web page does."
    head = re.sub(r"(?s)^(?:\s|<\?xml.{0,200}?\?>|<!--.{0,2000}?-->)*", "", text[:10_000], count=1)[:1000].lower()
    return bool(
        re.match(r"<!doctype html|<(?:html|head|body|meta|title|table|div|p|pre|h\d|article|font|center)\b", head)
    )


# %% tags=["example"]
page = "<head><title>Tea</title></head><p><b>Ada:</b> Is it on?\n<i>(sighs)</i><p><b>Otto:</b> It was &hellip; <br>on."
html_to_text(page)

# %% tags=["check"]
assert html_to_text(page) == ("Ada: Is it on? <i>(sighs)</i>\n\nOtto: It was …\non.\n", 1)
assert html_rows("<table><tr><td>Ada<td>On?\n<tr><td>Otto<td>Off.</table>") == ("Ada: On?\nOtto: Off.\n", 0, [1, 2])
assert looks_like_html(page) and not looks_like_html("Ada: <b>on</b>") and not looks_like_html(captions)


# %% [markdown]
# ## Final Draft
#
# A Final Draft file is XML: paragraphs that say of what type they are. So nothing has to be guessed, only counted: the standard library's parser goes through it once, and knows the row of each paragraph. Entities, with which a small file can blow up to gigabytes, are used by no screenplay and refused. Paragraphs that do not belong to the script (title page, summaries, omitted scenes, notes) count as notes.

# %%
#| export
class Paragraph(NamedTuple):
    "A paragraph of a screenplay."

    row: int  # line of the file
    type: str  # Character, Dialogue ...
    text: str  # on one line
    hidden: bool  # it stands outside the script


def fdx_paragraphs(
    text: str,  # a Final Draft file
    where: str,  # the file's name, for the error
) -> list:  # `Paragraph`s in order of their ends
    "All paragraphs, those within others too."
    parser = expat.ParserCreate("utf-8")
    found: list[Paragraph] = []
    path: list[str] = []
    open_: list[tuple] = []  # (row, type, parts, hidden)

    def start(tag, attributes):
        path.append(tag)
        require(len(path) < 200, f"{where} is nested more than 200 deep, which no screenplay is; save it again")
        if tag == "Paragraph":
            outside = "Content" not in path or "TitlePage" in path
            within = {"SceneProperties", "Summary", "ScriptNote", "OmittedScene", "HeaderAndFooter"} & set(path)
            open_.append((parser.CurrentLineNumber, attributes.get("Type", ""), [], bool(outside or within)))

    def end(tag):
        path.pop()
        if tag == "Paragraph":
            row, kind, parts, hidden = open_.pop()
            found.append(Paragraph(row, kind, clean("".join(parts)), hidden))

    def data(words):
        if open_ and path[-1] == "Text":
            open_[-1][2].append(words)

    def entity(*_):
        raise ValueError(f"{where} declares XML entities, which no screenplay needs; save it again from Final Draft")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, data
    parser.EntityDeclHandler = entity
    parser.buffer_text = True
    try:
        for i in range(0, len(text), 1 << 20):
            parser.Parse(text[i : i + (1 << 20)].encode("utf-8", "replace"), False)
        parser.Parse(b"", True)
    except expat.ExpatError as e:
        why = expat.ErrorString(e.code)
        raise ValueError(f"{where} is not whole XML ({why} in row {e.lineno}); save or export it again") from None
    return found


# %%
#| export
def shown_as_name(
    cue: str,  # a name as a screenplay prints it, with or without (V.O.)
) -> str:  # capitals as one writes a name; what hangs on it stays, for `merge_spellings`
    "MARLA QUILL (V.O.) is Marla Quill (V.O.)."
    m = re.match(r"[^(（\[]*", cue)
    name = m[0] if m else cue
    hung = EXTENSION.search(name.rstrip())
    name = name[: hung.start()] if hung else name.rstrip()
    return (string.capwords(name) if name == name.upper() else name) + cue[len(name) :]


def read_fdx(
    text: str,  # a Final Draft file
    where: str,  # the file's name
    how: Reading = AUTO,  # what a person said
) -> Script:  # rows of the account are paragraphs
    "Read a screenplay of Final Draft."
    told = how.scene_break
    require(
        told in ("auto", "heading") or told.isdecimal(),
        f"scene_break={told!r} was given, but Final Draft names its scenes; give auto or 20",
    )
    tally = Tally()
    lines: list[Line] = []
    headings: list[Line] = []
    speaker = place = ""
    begun: list[str] = []  # the words of a block
    asides: list[str] = []  # what is done before the next of them
    spoken = at = 0  # whether it has words, and where they begin

    def close():
        nonlocal begun
        if begun:
            lines.append(Line(1, 2 * len(lines) + 1, speaker, clean(" ".join(begun)), place, at))
        begun = []

    paragraphs = fdx_paragraphs(text, where)
    require(paragraphs, f"{where} has no <Paragraph>, as Final Draft writes them; give --file-format html or text")
    for p in paragraphs:
        said = bool(re.search(r"\w", p.text))
        if p.hidden:
            tally.add("note", p.text)
        elif len(p.text) > (MOST_NAME if p.type == "Character" else MOST_TEXT):
            tally.reject(p.row, f"more than {MOST_TEXT:,} letters in one paragraph, or {MOST_NAME} in a name", p.text)
            speaker = "" if p.type == "Character" else speaker
        elif p.type in ("Dialogue", "Singing", "Lyrics") and said:
            words = p.text if how.keep_directions else without_directions(p.text)
            if not speaker:
                tally.reject(p.row, "speech without a name", p.text)
            elif not has_words(p.text):
                tally.add("direction", p.text)
            else:
                tally.add("continuation" if spoken else "spoken", p.text)
                at = at if spoken else p.row
                begun += [*asides, words]
                asides, spoken = [], 1
        elif p.type == "Parenthetical" and speaker:
            tally.add("direction" if said else "wordless", p.text)
            asides += [p.text] if how.keep_directions and said else []
        elif not said:
            tally.add("wordless", p.text)
        else:
            close()
            speaker, asides, spoken = "", [], 0
            if p.type == "Character":
                tally.add("cue", p.text)
                speaker = shown_as_name(p.text)
            elif p.type == "Scene Heading":
                tally.add("heading", p.text)
                place = p.text
                headings.append(Line(1, 2 * len(lines), "", p.text, place, p.row))
            else:
                tally.add("direction", p.text)
    close()
    if told.isdecimal():
        each = max(1, int(told))
        headings = [Line(1, x.number - 1, "", "", x.location, x.row) for x in lines[each::each]]
    return Script.of(where, scenes_of(lines, headings), tally, "fdx", ["rows of this file are counted as paragraphs"])


def looks_like_fdx(
    text: str,  # a file's text
) -> bool:
    "Whether a file begins as Final Draft writes it."
    return bool(re.search(r"<FinalDraft\b", text[:4000]))


# %% tags=["example"]
fdx = """<?xml version="1.0" encoding="UTF-8"?>
<FinalDraft DocumentType="Script"><Content>
<Paragraph Type="Scene Heading"><Text>INT. TEA ROOM - DAY</Text></Paragraph>
<Paragraph Type="Character"><Text>MARLA QUILL (V.O.)</Text></Paragraph>
<Paragraph Type="Parenthetical"><Text>(low)</Text></Paragraph>
<Paragraph Type="Dialogue"><Text>Is it </Text><Text Style="Italic">on?</Text></Paragraph>
<Paragraph Type="Action"><Text>It is.</Text></Paragraph>
</Content></FinalDraft>"""
drafted = read_fdx(fdx, "tea.fdx")
drafted.lines, drafted.account()

# %% tags=["check"]
assert drafted.lines == [Line(1, 1, "Marla Quill (V.O.)", "Is it on?", "INT. TEA ROOM - DAY", 6)] and looks_like_fdx(
    fdx
)
assert drafted.account()["rows"] == 5 and read_fdx(fdx, "x", Reading(True)).lines[0].text == "(low) Is it on?"
for bad in (fdx[:-20], fdx.replace("<Final", "<!DOCTYPE x [<!ENTITY a 'a'>]><Final", 1), "<a/>"):
    try:
        raise AssertionError(read_fdx(bad, "x.fdx"))
    except ValueError:
        pass


# %% [markdown]
# ## What a file is
#
# The name often says it: `.srt`, `.fdx`, `.fountain`. Where it does not, the beginning does: an XML head, a list in brackets, times, a first row of column names. What is left was typed by somebody, in one of four layouts; there all four readers are tried on the beginning, and the one whose reading looks most like dialogue is taken.

# %%
#| export
def read_json(
    text: str,  # a whole file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a person said
) -> Script:  # scenes and account
    "Read records, or a chat's export, or a table that is only called JSON."
    if looks_like_chat(text) and not how.columns:
        return read_chat_json(text, where, how)
    named = not looks_like_records(text) and looks_like_table(text)
    return (read_table if named else read_records)(text, where, how)


READERS = {
    "table": read_table,
    "json": read_json,
    "text": read_text,
    "play": read_play,
    "screenplay": read_screenplay,
    "fountain": read_fountain,
    "fdx": read_fdx,
    "subtitles": read_subtitles,
    "chat": read_chat,
    "movie_lines": read_movie_lines,
}  # by the name that --file-format takes; "html" and "parquet" are added below
TYPED = ("text", "play", "screenplay", "fountain")  # layouts of typed files
ENDINGS = {
    ".csv": "table",
    ".tsv": "table",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".fountain": "fountain",
    ".spmd": "fountain",
    ".fdx": "fdx",
    ".srt": "subtitles",
    ".vtt": "subtitles",
    ".ass": "subtitles",
    ".ssa": "subtitles",
    ".html": "html",
    ".htm": "html",
    ".parquet": "parquet",
}
WORDS = {
    "table": "a table with named columns",
    "json": "JSON or JSONL records",
    "text": "rows of 'Name: line'",
    "play": "names alone in a row, words below",
    "screenplay": "a screenplay in columns",
    "fountain": "a Fountain screenplay",
    "fdx": "a Final Draft file",
    "subtitles": "subtitles",
    "chat": "a chat's export",
    "movie_lines": "the Cornell movie dialogs",
}
SAMPLE = 3000  # rows of a typed file that decide about its layout
LONGEST_ROW = 1_000_000  # letters; a typed file with a longer row was not typed
LONGEST_PAGE = 30_000_000  # letters; programs write pages and chats into one row


def tried(
    text: str,  # a whole file
    names,  # keys of `READERS`
    how: Reading,  # what a reader may be told
) -> list:  # (quality 0..1, name, script of the file's beginning), best first; readers that refuse are left out
    "What several readers make of a file's beginning."
    begin, found = "\n".join(text.split("\n", SAMPLE)[:SAMPLE]), []
    for name in names:
        try:
            script = rename(READERS[name](begin, "file", how))
        except (ValueError, RecursionError):
            continue
        found.append((quality(script), name, script))
    return sorted(found, key=lambda x: -round(x[0], 2))


def find_format(
    name: str,  # a file's name
    text: str,  # what stands in it
    how: Reading = AUTO,  # what a reader may be told
) -> str:  # a key of `READERS`
    "What kind of script a file holds."
    begin = text[:200_000]
    for looks, sure in (
        (looks_like_fdx, "fdx"),
        (looks_like_html, "html"),
        (looks_like_records, "json"),
        (looks_like_subtitles, "subtitles"),
    ):
        if looks(begin):
            return sure
    kind = ENDINGS.get(Path(name).suffix.lower())
    if kind and (kind != "table" or looks_like_table(begin)):
        return kind
    for looks, likely in (
        (looks_like_chat, "chat"),
        (looks_like_movie_lines, "movie_lines"),
        (looks_like_table, "table"),
    ):
        if looks(begin):
            return likely
    set_places = re.search(r"(?m)^\s*(?:\d+\s+)?(?:INT|EXT|I/E)[./ ]", begin)  # screenplays have them, plays do not
    best = tried(
        text, TYPED if not set_places else sorted(TYPED, key="text screenplay fountain play".split().index), how
    )
    typed = best[0][1] if best and best[0][0] > (0.5 if kind else 0) else "text"
    return kind if kind and typed == "text" and not (best and best[0][0] > 0.5) else typed


# %% tags=["example"]
{
    name: find_format(name, text)
    for name, text in {
        "a.txt": "Moe: Closed.\nBarney: Again?\n",
        "b.txt": "MOE\nClosed.\n\nBARNEY\nAgain?\n",
        "c.txt": "Character,Line\nMoe,Closed.\nBarney,Again?\n",
        "d.txt": '[{"p": "", "c": "Moe", "l": "Closed."}]',
        "e.vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Moe>Closed.\n",
    }.items()
}


# %% [markdown]
# A saved page is its text, in one of the typed layouts or as a chat:

# %%
#| export
def read_html(
    text: str,  # a whole HTML page
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a reader may be told
) -> Script:  # scenes and account; hidden rows are notes
    "Read the script that a saved page shows."
    page = feed_page(text)
    header, rows, beside = grid_of(page)
    if header:
        script = read_any(header, rows, where, how)
        script.counts["note"] += beside
        return replace(script, format="html")
    shown, hidden, at = rows_of_page(page)
    found = tried(shown[:LONGEST_ROW], TYPED, how)
    chat = looks_like_chat(shown) and not looks_like_records(shown)
    if not chat and len(NAMING.findall(" ".join(re.findall(r"class=[\"']?([^\"'>]{1,100})", text)))) > 3:
        other = html_rows(text, classes=True)
        better, best = tried(other[0][:LONGEST_ROW], TYPED, how)[:1], found[0] if found else (0, "", None)
        if better and (
            better[0][0] > max(best[0], 0.5) or best[2] and len(better[0][2].lines) > 2 * len(best[2].lines)
        ):
            (shown, hidden, at), found = other, better
    kind = "chat" if chat else (found or [(0, "text", None)])[0][1]
    script = READERS[kind](shown, where, how)
    script.counts["note"] += hidden
    script.rejected = [replace(x, row=at[x.row - 1]) for x in script.rejected]
    scenes = [replace(s, lines=tuple(x._replace(row=at[x.row - 1]) for x in s.lines)) for s in script.scenes]
    return replace(script, scenes=scenes, format="html")


READERS["html"] = read_html
WORDS["html"] = "a saved web page"


# %% [markdown]
# ## The gate
#
# A reading that does not look like dialogue is refused, and says what the file may be instead. Whoever knows better names the format; then the same doubts are only told.

# %%
#| export
def guessed(
    text: str,  # a whole file
    kind: str,  # what it was read as
    how: Reading,  # what a reader may be told
) -> str:  # part of a sentence
    "What else a file may be: the three best guesses, and the option that forces each."
    found = [
        x
        for x in tried(text, [n for n in READERS if n != "html" or looks_like_html(text[:200_000])], how)
        if x[0] > 0 and x[1] != kind
    ][:3]
    told = [
        f"{WORDS.get(name, name)}, {len(s.lines):,} lines by {len(s.speakers):,} speakers such as "
        f"{', '.join(list(s.speakers)[:2])} (--file-format {name})"
        for _, name, s in found
    ]
    return "it may be " + "; or ".join(told) if told else "no reader makes dialogue of it"


def judge(
    script: Script,  # what a reader made of a file
    text: str,  # the file
    forced: bool,  # whether a person named the format
    how: Reading,  # what a reader may be told
) -> Script:  # the same with its doubts; ValueError if it does not look like dialogue and nobody named the format
    "Let through what looks like dialogue."
    refused, wrong = doubts(script)
    if refused and not forced:
        what = WORDS.get(script.format, script.format)
        raise ValueError(
            f"{Path(script.path).name} does not look like dialogue when it is read as {what}: {', '.join(wrong)}; "
            f"{guessed(text, script.format, how)}; to take it as it is: --file-format {script.format}"
        )
    script.doubts = wrong
    return script


# %% [markdown]
# ## One call for any script
#
# The name `springfield` means the script that comes with the package: original scenes, written for this book, with the characters everybody knows. `hub:OWNER/NAME` is a data set of the Hugging Face hub; a folder is one that `datasets` saved.

# %%
#| export
HINT = (
    "expected a table with named columns, 'Name: line' rows, a play, a screenplay, subtitles, a chat's export, "
    "or JSON records"
)


def dataset_records(
    source: str,  # a folder that `datasets` saved, or hub:OWNER/NAME
) -> list:  # its rows as plain data, all splits one after the other; ValueError if it cannot be had
    "Rows of a data set."
    from datasets import load_dataset, load_from_disk

    try:
        found = load_dataset(source[4:]) if source.startswith("hub:") else load_from_disk(source)
    except Exception as e:  # whatever the library meets on disk or on the way to the hub
        raise ValueError(
            f"{source} cannot be read as a data set ({(str(e) or type(e).__name__).splitlines()[0][:120]}); "
            "expected a folder that datasets saved, or hub:OWNER/NAME and a connection"
        ) from None
    return [row for split in (found.values() if hasattr(found, "values") else [found]) for row in split]


def read_script(
    path: "str | Path",  # a script file, hub:OWNER/NAME, or "springfield": the script that comes with the package
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
    encoding: str | None = None,  # a codec's name; None: find out
    format: str = "auto",  # a key of `READERS`; auto: find out
    columns: dict | None = None,  # speaker, text, episode ... -> name of the table's column; None: find out
    scene_break: str = "auto",  # what ends a scene, as `Reading` has it
    aliases: dict | None = None,  # other name's `name_key` -> name to use
) -> Script:  # FileNotFoundError or ValueError, in one sentence, when it cannot be read
    "Read a script, whatever its format."
    known = [*READERS, "parquet"]
    require(format == "auto" or format in known, f"format={format!r} was given; expected auto, {', '.join(known)}")
    how, source = Reading(keep_directions, scene_break, columns or {}), str(path)
    path = Path(simpsons_llm.__file__).parent / "data" / "springfield.csv" if source == "springfield" else Path(path)
    if source.startswith("hub:") or path.is_dir():
        text, encoding, kind, notes = json.dumps(dataset_records(source), default=str), "utf-8", "json", []
    elif not path.is_file():
        raise FileNotFoundError(
            f"no script at {path}; give the path of a script file, hub:OWNER/NAME for a data set of the Hugging Face "
            "hub, or springfield for the script that comes with the package"
        )
    else:
        data, inner, notes = open_bytes(path.read_bytes(), path.name)
        kind = "parquet" if data[:4] == b"PAR1" else format
        text = ""
        if kind != "parquet":
            text, encoding, told = decode(data, inner, encoding)
            notes = [*notes, *told]
            require(text.strip(), f"{path.name} is empty; {HINT}")
            kind = find_format(inner, text[:LONGEST_ROW], how) if format == "auto" else format
            most = LONGEST_ROW if kind in (*TYPED, "subtitles") else LONGEST_PAGE
            longest = max(map(len, text.split("\n"))) if kind not in ("table", "json", "fdx") else 0
            require(
                longest <= most,
                f"{path.name} has a row of {longest:,} letters, which nobody typed; {HINT}",
            )
    with collector_off():
        script = read_parquet(data, path.name, how) if kind == "parquet" else READERS[kind](text, path.name, how)
        script.path, script.encoding = source if source.startswith("hub:") else str(path), encoding or "binary"
        script.notes = [*notes, *script.notes]
        script = rename(script, aliases)
    if scene_break == "auto" and len(script.scenes) == 1 and len(script.lines) >= 12:
        script = cut_whole(script)
    if not script.lines:
        why = (
            "; ".join(f"{r}: {n} rows" for r, n in Counter(r.reason for r in script.rejected).most_common(3))
            or "it has no spoken rows"
        )
        raise ValueError(f"{path.name} holds no spoken line that can be used ({why}); read as {script.format}, {HINT}")
    return judge(script, text[:LONGEST_ROW], format != "auto", how)


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
# A reader takes the text of a file, the file's name for messages, and a `Reading`, what it may be told; it gives a `Script`. Often it is enough to write the text in a form that is read already, and the account of its rows comes with that. An entry in `READERS` makes the reader known to `file_format` and `--file-format`; a line in `find_format` lets files be recognised by themselves. So a format that stays is three small pieces in this chapter, and a test of what it must refuse. Here is one for rows of `Name<tab>line`:

# %% tags=["example"]
def read_tabs(text, where, how=AUTO):
    "Rows of a name, a tab and a line."
    return read_text(re.sub(r"^([^\t\n]+)\t", r"\1: ", text, flags=re.M), where, how)


READERS["tabs"] = read_tabs
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "lab.tsv").write_text("Ada\tIs it on?\nCharles\tIt was on.\n\nAda\tI hear it.\n")
    own = read_script(Path(folder) / "lab.tsv", format="tabs")
del READERS["tabs"]
[[(line.speaker, line.text) for line in s.lines] for s in own.scenes], own.account()["rejected"]

# %% tags=["check"]
assert [[line.speaker for line in s.lines] for s in own.scenes] == [["Ada", "Charles"], ["Ada"]]
