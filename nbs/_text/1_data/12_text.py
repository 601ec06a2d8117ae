# %%
#| default_exp data.text

# %% [markdown]
# # Typed scripts
#
# > What people type and print: rows of `Name: line`, plays with the name above, screenplays in columns, Fountain.
#
# There is no format called "script". There are habits: a colon after the name, or the name alone above the words; a blank row between scenes, or after every speech; rows that end where the paper does. A reader that knows one habit makes nonsense of the others, without noticing. So this chapter asks the file itself: which names come again, where blank rows stand, how wide it is. Tables are read in [tables and records](11_tables.ipynb); which reader a file gets is decided in [any script](13_formats.ipynb).

# %%
#| export
import html
import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from simpsons_llm.data.lines import (
    AUTO,
    INSIDE,
    Line,
    Reading,
    Scene,
    Script,
    Tally,
    clean,
    has_words,
    name_key,
    scenes_of,
    shown_name,
    without_directions,
)

# %%
#| hide
import pandas as pd

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## Rows
#
# A row of a file is its words, and how far it is indented. Invisible marks go, and Markdown that stands around a name: `**Marla:** Fine.` and `- **Marla**: Fine.` are `Marla: Fine.` What wikis and saved pages leave (`'''Marla'''`, `<b>Marla</b>`, `== Pier ==`) is written as Markdown first.

# %%
#| export
MARKS = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")  # unseen, and no joiners of letters
LISTED = r"(?:(?:[-+*•>:]|\d+[.)]|[^\w\s(\[{<\"“'‘*]{1,3})\s+|:+(?=\*))*"  # bullets, numbers, a picture or two
BOLD = re.compile(LISTED + r"(\*{1,3}|_{1,3})(?=[^\s*])(.+?)(?<=[^\s*])\1\s*(.*)")
TAGS = [
    (re.compile(r"<br\s*/?>", re.I), " "),
    (re.compile(r"</?(?:b|strong)>|'{3}", re.I), "**"),
    (re.compile(r"</?(?:i|em)>(?=\s?[\[(][^<>]{0,200}[\])]</?(?:i|em)>)|(?<=[\])])</(?:i|em)>", re.I), ""),
    (re.compile(r"''"), "*"),
    (re.compile(r"^\s*<hr[^<>]*>\s*$", re.I), "---"),
    (re.compile(r"^(={2,4})\s*([^=]+?)\s*\1$"), r"## \2"),
]  # what wikis and pages leave, as Markdown


class Row(NamedTuple):
    "A row of a typed file."

    number: int  # line of the file, counted from 1
    text: str  # on one line, without marks; "" if blank
    indent: int  # blanks before it
    width: int  # letters up to its end, with the blanks before it


def without_bold(
    text: str,  # a row
) -> str:  # the same, with a plain name
    "A row without the Markdown around its name."
    if not (m := BOLD.fullmatch(text)):
        return text
    name, rest = m[2].strip(), m[3]
    if name[-1] in ":：" or rest[:1] in (":", "："):
        return f"{name.rstrip(':：').strip()}: {rest.lstrip(':： ')}".strip()
    if (
        re.match(r"[(\[][^)\]]*[)\]]\s*[:：]", rest)
        or (not rest and len(m[1]) > 1)
        or re.fullmatch(r"\[[^\]]+\]", name)
    ):
        return f"{name} {rest}".strip()
    return text


def rows_of(
    text: str,  # a whole file
) -> list:  # `Row`s
    "The rows of a typed file."
    found = []
    for number, raw in enumerate(text.split("\n"), 1):
        raw = MARKS.sub("", raw).expandtabs(8).rstrip()
        if "&" in raw:
            raw = html.unescape(raw)
        if "''" in raw or "<" in raw or raw[:2] == "==":
            for mark, new in TAGS:
                raw = mark.sub(new, raw)
        plain = " ".join(raw.split())
        if "**" in plain or plain[:1] in "-+*•>_":
            plain = without_bold(plain)
        if plain[:1] == "#" and plain[-1] in ":：":
            plain = plain.lstrip("# ")  # a name as a heading
        found.append(Row(number, plain, len(raw) - len(raw.lstrip()), len(raw)))
    return found


# %% tags=["example"]
typed = rows_of("**Marla:** Fine.\n    - **Otto** (sighs): Again?\n*sighs*\n**JUNO**\nTom &amp; Ada: Hi.")
pd.DataFrame(typed).set_index("number")

# %% [markdown]
# ## What is no speech
#
# Episodes have numbers, in some habit: `Episode 4`, `S02E04`, `2x04`, `第4集`. A season may stand before it, alone or in the same row. Then there are places: `Scene 3: The pier`, `INT. BAR - NIGHT`, `[Moe's Tavern]`; acts; and what the paper brings along: page numbers, `CONTINUED`, credits.

# %%
#| export
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
CHINESE = "一二三四五六七八九"
NUMBER = rf"\d+|{'|'.join(WORDS)}|[ivx]+"
CALLED = (
    "episode|ep|folge|épisode|episodio|episódio|epizod|odcinek|avsnitt|afsnit|aflevering|jakso|díl|rész|bölüm|"
    "серия|эпизод|выпуск|επεισόδιο|الحلقة|פרק|에피소드"
)
SEASONS = "season|series|staffel|saison|temporada|stagione|сезон"
REST = r"\s*(?:[:.\]|–—\"“«(-].*)?(?-i:\s[A-Z][^.!?:]{0,60})?"  # a title may follow
SHOW = r"(?:[^.:!?]{1,40}[\s–—-])?"  # and the name of a series stand before it
EPISODES = [
    re.compile(p, re.I)
    for p in (
        rf"\W*(?:{SEASONS})\s+(?P<s>{NUMBER})\W+(?:{CALLED})\.?\s*#?(?P<e>{NUMBER}){REST}",
        rf"\W*{SHOW}s(?P<s>\d+)\W{{0,3}}ep?(?P<e>\d+)\b.*",
        rf"\W*{SHOW}(?P<s>\d{{1,2}})x(?P<e>\d{{2,3}})\b.*",
        r"\W*(?P<s>\d{1,2})\.(?P<e>\d\d)\s*[:–—\"“-].*",
        rf"\W*(?P<e>\d+)(?:\.|ª|º|st|nd|rd|th)?\s*(?:{CALLED}|puntata){REST}",
        rf"\W*(?:{CALLED})\.?\s*(?:no\.?|nr\.?|#)?\s*(?P<e>{NUMBER}){REST}",
        rf"\W*第\s*(?P<e>\d+|[{CHINESE}十]+)\s*[集话話回].*",
        r"\W*제?\s*(?P<e>\d+)\s*화\b.*",
    )
]
SEASON = re.compile(
    rf"\W*(?:season|series|staffel|saison|temporada|stagione|сезон)\s+(?P<s>{NUMBER}){REST}|第(?P<c>\d+|[{CHINESE}十]+)季",
    re.I,
)


def as_number(
    text: str | None,  # such as "4", "four", "iv", "十二"
) -> int | None:  # None for None
    "A number as people write it."
    if text is None or text.isdigit():
        return None if text is None else int(text)
    if text.lower() in WORDS:
        return WORDS.index(text.lower()) + 1
    if text[0] in CHINESE + "十":
        tens, _, ones = text.rpartition("十")
        ten = (CHINESE.find(tens) + 1 or 1) * 10 if "十" in text else 0
        return ten + CHINESE.find(ones[:1] or "?") + 1
    worth = [{"i": 1, "v": 5, "x": 10}[c] for c in text.lower()]
    return sum(-a if a < b else a for a, b in zip(worth, [*worth[1:], 0]))


def episode_of(
    text: str,  # a row
) -> tuple | None:  # (season or None, episode or None); None if the row names neither
    "Season and episode that a row begins."
    if len(text) > 120 or not (re.search(r"\d", text[:40]) or len(text) < 60):
        return None
    for pattern in EPISODES:
        if m := pattern.fullmatch(text):
            return as_number(m.groupdict().get("s")), as_number(m["e"])
    m = SEASON.fullmatch(text)
    return (as_number(m["s"] or m["c"]), None) if m else None


# %% tags=["example"]
rows = [
    "[Episode 2: The Frogs]",
    "Season 1 Episode 12",
    "S02E04: Tea",
    "2x04 Tea",
    "第十二集",
    "SEASON TWO",
    "Episode 3 was fine.",
]
{row: episode_of(row) for row in rows}

# %% tags=["check"]
assert [episode_of(r) for r in rows] == [(None, 2), (1, 12), (2, 4), (2, 4), (None, 12), (2, None), None]
assert [as_number(n) for n in ("IV", "ix", "seven", "十", "二十", "二十三")] == [4, 9, 7, 10, 20, 23]

# %% [markdown]
# A row in brackets is a place, unless it tells what somebody does. That is seen from how it begins (a name of the script and then a small letter, a pronoun, `Enter`, a word such as `laughs`), from the full stop behind it, or from its length.

# %%
#| export
PLACE = re.compile(
    r"(?:\d+[A-Z]?\.?\s+)?(?:INT\.?\s?/\s?EXT|EXT\.?\s?/\s?INT|I/E|INT|EXT|EST|ИНТ|НАТ|ЭКСТ)(?:\.|\s)"
    r"\s*(.*?)(?:\s+\d+[A-Z]?)?",
    re.I,
)
SCENE = re.compile(
    r"(?:scene|setting|location|place|szene|ort|scène|lieu|escena|lugar|scen[aă]?|cena|sahne|сцена|явление|картина|"
    r"место|"
    r"σκηνή|مشهد|סצנה|场景|場景|シーン|場所|씬|장면|S#)(?=\W|\d|$)"
    rf"\s*#?(?:(?P<n>{NUMBER})\b)?\s*(?P<mark>[:：.–—-])?\s*(?P<place>.*)",
    re.I,
)
ACT = re.compile(
    rf"\W*(?:(?:act|part|chapter) (?:{NUMBER})|teaser|cold open|prologue|epilogue|tag)\b(?:\W.{{0,60}})?|"
    r"\W*(?:opening|closing) credits\W*",
    re.I,
)
DOES = set(
    "he she it they we you everyone everybody all both someone enter exit exeunt music pause beat silence laughter "
    "laughing applause crowd fade sound sounds sfx".split()
)


SHORT_PLACE = re.compile(
    rf"第\s*[\d{CHINESE}十]+\s*[场場幕]\W*(.*)|[〇○◯■]\s*(.+)|\d+[-–]\d+\W+([日夜内外晨晚].*)|cảnh\s+\d+\W*(.*)", re.I
)
CUT_TO = re.compile(r"[\[(](?:\w+ )?cuts? to\b\W*(.*\w.*)[\])]|(?:\w+ )?cut to:\s+(.*\w)\W*", re.I)
BETWEEN = re.compile(
    r"(?:-{1,5}|[–—]|~+|=+|<|\*{2,5})\s?(\w.{0,50}?)\s?(?:-{1,5}|[–—]|~+|=+|>|\*{2,5})"
)  # -- The pier --


def tells(
    text: str,  # what stands in brackets
    names: set | frozenset,  # names and first names of who speaks, small letters
) -> bool:  # False for a place
    "Whether a row in brackets tells what somebody does."
    words = re.findall(r"[\w'’-]+", text := text.strip("_* "))
    if not words or text[-1] in ".!?…。！？" or len(words) > 9:
        return True
    first = words[0].casefold()
    named = any(" ".join(words[:n]).casefold() in names and words[n][0].islower() for n in (1, 2, 3) if n < len(words))
    return named or first in DOES or bool(text[0].islower() and re.fullmatch(r"[a-z]+(?:s|ing|ed)", first))


def place_name(
    text: str,  # what follows INT. or EXT.
) -> str:  # such as "Moe's Tavern"
    "A place as one would write it, without the time of day."
    place = re.sub(r"\s*#[^#]*#\s*$", "", text)
    place = m[1] if (m := PLACE.fullmatch(place)) else place
    return string.capwords(re.split(r"\s+[-–—]+\s+", place)[0]) or "Scene"


def place_of(
    text: str,  # a row, or what stands in brackets over several
    names: set | frozenset = frozenset(),  # names and first names of who speaks, small letters
) -> str | None:  # the place, "" for a heading that names none; None if it is no heading
    "The place that a heading names."
    inside = text[1:-1].strip() if text[0] + text[-1] in ("[]", "【】", "［］") else ""
    if m := BETWEEN.fullmatch(text):
        inside = m[1]
    if m := CUT_TO.fullmatch(text):
        inside, text = "", f"# {m[1] or m[2]}"
    plain = inside or text.strip("#*=~–— -")
    plain = plain[1:-1] if plain[:1] == "(" and plain[-1] == ")" else plain
    if (m := SCENE.fullmatch(plain)) and (m["n"] or m["mark"]):
        return re.split(r"[,.;，。]\s?", m["place"])[0].strip(" .:") if m["place"] else ""
    if short := SHORT_PLACE.fullmatch(plain):
        return next(filter(None, short.groups()), "")
    if m and m["n"] and not m["mark"] and PLACE.fullmatch(m["place"]):
        return place_name(m["place"])
    if (m := PLACE.fullmatch(plain)) and (plain.isupper() or re.match(r"\S{3,7}\.", plain)):
        return place_name(plain)
    if inside:
        return None if tells(inside, names) else plain
    return "" if ACT.fullmatch(plain) else plain if text[:1] == "#" and plain else None


# %% tags=["example"]
rows = ["[Moe's Tavern]", "[Otto leaves, the door bangs]", "[Otto's house]", "[Scene: The pier, at night.]", "[laughs]"]
rows += ["Scene 3: The pier", "INT. MOE'S TAVERN - NIGHT", "### The pier", "ACT TWO", "I saw the scene."]
{row: place_of(row, {"otto"}) for row in rows}

# %% tags=["check"]
assert [place_of(r, {"otto"}) for r in rows] == [
    "Moe's Tavern", None, "Otto's house", "The pier", None, "The pier", "Moe's Tavern", "The pier", "", None
]  # fmt: skip

# %% [markdown]
# Page numbers, credits and the like are notes. Some words are credits anywhere (`Written by`), others only before anybody speaks, since `Author` may well be somebody in a play.

# %%
#| export
NOTE = re.compile(
    r"[\W_]*(?:(?:page|pg\.?|p\.)\s*)?\d{1,4}(?:\s*(?:of|/)\s*\d{1,4})?[\W_]*|"
    r"[\W\d]*(?:continued|more|cont['’]d|fortsetzung)\W*(?:\(\d+\)|\d+)?\W*",
    re.I,
)
CREDIT = re.compile(
    r"(?:(?:originally )?(?:written|directed|transcribed|story|teleplay|screenplay|produced|created|adapted|translated|"
    r"edited|typed|narrated|music|based|lyrics|book)\s+(?:and \w+ )?(?:by|on)|transcri(?:ber|pt|ption)s?|disclaimer|"
    r"(?:original )?air(?:ed| ?date)s?|executive producers?|guest stars?|starring|©|\(c\)|copyright)\b.*",
    re.I,
)
FRONT = re.compile(
    r"(?:title|credits?|authors?|source|draft(?: date)?|date|contact|notes?|revision|format|cast|"
    r"characters|dramatis personae|"
    r"with|subject|from|to|url|website|language|thanks to)\s*[:：].*",
    re.I,
)
CAST = re.compile(
    r"\W*(?:(?:the )?(?:cast|characters|persons|people)(?: of (?:the )?(?:characters|play|drama))?|"
    r"dramatis person(?:ae|æ)|"
    r"personen|personnages|personajes|personaggi|действующие лица|人物|登場人物)\W*",
    re.I,
)  # a list of who is who follows, up to the next blank row
CUE = re.compile(
    r"(?:(?:sound|music|sound effects?|sfx|fx|lights|lighting|camera)\s*[:：]|△|▲).*|"
    r"[\[(_]*(?:re-?)?(?:enter|exit|exeunt)\b[^:]*",
    re.I,
)  # for those behind the stage, and who comes and goes
LISTING = re.compile(r"(?:出场人物|登場人物|人物|时间|時間)\s*[:：].*")
TRANSITION = re.compile(
    r"\W*(?:(?:smash |match |jump |hard |flash )?cut(?:s)? to|fade (?:in|out|to)|dissolve to|wipe to|"
    r"commercial break|the end|end|"
    r"end of (?:act|episode|scene|part|show|teaser|cold open|tag).{0,20}|to be continued|black(?:out)?|intermission)\b"
    r"[^a-z]{0,40}(?:black|white)?[.:]?",
    re.I,
)
SEPARATOR = re.compile(r"(?:[-*_=~#•·]\s*){3,}|[⁂§#]")

# %% tags=["check"]
assert all(NOTE.fullmatch(r) for r in ("12", "- 12 -", "Page 3 of 40", "CONTINUED: (2)", "(MORE)", "(CONTINUED)"))
assert all(CREDIT.fullmatch(r) for r in ("Written by: Pat", "Story by Pat and Sam", "Original Airdate: May 1"))
assert all(TRANSITION.fullmatch(r) for r in ("CUT TO:", "SMASH CUT TO:", "FADE OUT.", "END OF ACT ONE", "The End"))
assert not any(p.fullmatch("Endless talk.") for p in (NOTE, CREDIT, FRONT, TRANSITION, SEPARATOR))

# %% [markdown]
# ## Names
#
# What stands before a colon is a name if it looks like one, and if it comes again, or begins with a capital. Not every script has colons: in printed plays a full stop stands there (`NORA [aside]. Fine.`, `_Nora_. Fine.`), elsewhere a dash, or the name stands in brackets (`<ada> Fine.`), or the words do (`太郎「はい」`). Each habit is a *cut*, and the file has the one by which most rows name somebody who comes again.

# %%
#| export
DASH = re.compile(r"(.{1,40}?)(?:\s[-–|>]\s|\s?—\s?|\s?--\s)\s*(\S.*)")
TITLED = r"(?:(?i:mrs?|ms|dr|prof|st|mme|mlle|lt|capt|sgt|col|gen|rev)\.\s)?"
ASIDE = r"(?:,?\s*(?:\([^)]*\)|\[[^\]]*\]|_[^_]*_))*"
STOP = re.compile(rf"_?({TITLED}[^.:!?,;()\[\]_]{{1,30}})_?{ASIDE}\.(?:[-–—]+|\s+[-–—]?)\s*(\S.*)")
ENCLOSED = re.compile(
    r"[<\[(【]([^<>\[\]():【】]{1,30})(?:】\s*|[>\])]:?\s+)(\S.*)|([^\s「『:：][^「『:：]{0,14})[「『](.*?)[」』]?"
)
SAYS = set(
    "yes no oh well ah hm ok okay right sure fine please thanks sorry why what who how where there here so".split()
)
SMALL = set("a an and the of on in at to from with for de la le el du des van von der und et y of & # no nr".split())


def before_colon(
    text: str,  # a row
) -> tuple | None:  # (what stands before the first colon, what follows); None if there is none
    "A row cut at the colon that may end a name; one in brackets, in 3:16 or in an address does not."
    for m in re.finditer("[:：]", text[:120]):
        left, right = text[: m.start()], text[m.end() :]
        opened = any(left.count(a) > left.count(b) for a, b in ("()", "[]", "（）"))
        if not opened and (m[0] == "：" or not right or right[0] in " \"“‘'([*<" or right[0].isalpha()):
            return left.strip(), right.strip()
    return None


def before_stop(
    text: str,  # a row
) -> tuple | None:  # as `before_colon`
    "A row cut at the full stop behind a name in capitals, as plays are printed: NORA. or NORA [aside]."
    m = STOP.fullmatch(text)
    return (m[1].strip(), m[2]) if m and m[1].isupper() else None


def before_small_stop(
    text: str,  # a row
) -> tuple | None:  # as `before_colon`
    "A row cut at the full stop behind a name in small letters: Nora. or _Nora_ (low)."
    m = STOP.fullmatch(text)
    name = m[1].strip() if m else ""
    named = name and not name.isupper() and like_a_name(name, False) and name.casefold() not in SAYS
    return (name, m[2]) if m and named else None


def before_dash(
    text: str,  # a row
) -> tuple | None:  # as `before_colon`
    "A row cut at the dash behind a name."
    m = DASH.fullmatch(text)
    return (m[1].strip(), m[2]) if m else None


def enclosed(
    text: str,  # a row
) -> tuple | None:  # as `before_colon`
    "A row cut behind a name in brackets, or before words in corners: <ada> Hi, [Ada] Hi, 太郎「はい」."
    m = ENCLOSED.fullmatch(text)
    return ((m[1] or m[3]).strip(), m[2] or m[4]) if m else None


CUTS = (before_colon, before_stop, before_dash, enclosed, before_small_stop)


def like_a_name(
    text: str,  # what may be a name
    often: bool,  # whether it comes again
) -> bool:
    "Whether a text looks like somebody's name."
    name = shown_name(text)
    words = name.split()
    if (
        not re.search(r"[^\W\d_]", name)
        or len(name) > 60
        or CREDIT.fullmatch(text)
        or re.search(r"[!?;…|]|://|\.\.", name)
    ):
        return False
    if often:
        return len(words) <= 8
    return len(words) <= 5 and not any(w[0].islower() and w.casefold() not in SMALL for w in words)


def names_of(
    rows: list,  # `Row`s
    cut,  # one of `CUTS`
) -> Counter:  # `name_key` -> rows
    "Who may be speaking, and how often."
    found = Counter(name_key(c[0]) for r in rows if r.text and (c := cut(r.text)) and like_a_name(c[0], True))
    return Counter({k: n for k, n in found.items() if k})


# %% tags=["example"]
rows = rows_of(
    "Marla (to Otto: softly): Go.\nOTTO: No.\nUntil the choir repairs: nothing.\nMarla: Go!\nSee http://x.org: it"
)
print([before_colon(r.text) for r in rows])
names_of(rows, before_colon)


# %% [markdown]
# ## The habits of a file
#
# Before a row is read, the file is looked at as a whole: how names are set off, whether they stand above the words, whether every row has a blank one behind it, and whether rows end because the paper does. A row is *full* if the first word of the next would not have fitted into the widest row.

# %%
#| export
class Habits(NamedTuple):
    "How a typed file is laid out."

    cut: Any  # one of `CUTS`; None: no mark ends a name, it stands above in a row of its own
    above: bool  # names stand above what is said
    names: Counter  # `name_key` -> how often it may be speaking
    begins: frozenset  # names and first names of those, small letters
    blocks: bool  # a speech is all rows up to the next blank one
    wide: int  # the widest row, where rows end because the paper does; 0: they do not
    sure: bool = False  # nearly every row names who speaks, or no blank row stands above names in capitals


def is_full(
    row: Row,  # a row
    below: Row,  # the next one
    wide: int,  # the widest row
) -> bool:  # whether the row ended because nothing more fitted
    "Whether a row goes on in the next one."
    return bool(wide and below.text) and row.width + 1 + len(below.text.split(" ", 1)[0]) > wide


def habits_of(
    rows: list,  # `Row`s without blank ones after every row
    plain: bool,  # names stand alone above what is said, without a mark
) -> Habits:
    "Look at a file as a whole."
    filled = [r for r in rows if r.text]
    pairs = [(a, b) for a, b in zip(rows, rows[1:]) if a.text and b.text]
    first = [b for a, b in zip([Row(0, "", 0, 0), *rows], rows) if b.text and not a.text]  # rows that begin a block
    counted = [names_of(filled, cut) for cut in CUTS]
    again = [sum(n for n in names.values() if n > 1) for names in counted]
    best = max(range(len(CUTS)), key=lambda i: again[i] / (1 if i == 0 else 2))
    cut: Any = CUTS[best]
    names = counted[best]
    if plain:
        tight = len(first) < len(filled) / 10  # no blank rows at all: only capitals tell a name
        among = [r for r in filled if r.text.isupper()] if tight else first
        cut, names = None, Counter(name_key(r.text) for r in among if len(r.text) <= 45)
    alone = sum(bool((c := before_colon(a.text)) and not c[1] and like_a_name(c[0], True)) for a, _ in pairs)
    above = plain or alone > again[0] / 2
    wide = max((r.width for r in filled), default=0)
    known = {k for k, n in names.items() if n > 1}

    def named(row, often=True):
        c = cut(row.text) if cut else None
        return bool(c and (name_key(c[0]) in known if often else like_a_name(c[0], False)))

    loose = [
        (a, b)
        for a, b in pairs
        if not named(b) and not named(b, False) and b.text[0] not in "([{" and b.indent <= a.indent
    ]
    full = sum(is_full(a, b, wide) for a, b in loose)
    begins = frozenset(known | {k.split()[0] for k in known if len(k.split()[0]) > 2})
    openers = names_of(first, cut) if cut else Counter()
    opening = sum(map(named, first))
    small = sum(r.text[0].islower() for r in first) > len(first) / 2  # names in small letters
    inner = sum(named(r) and (small or not r.text[0].islower()) for r in filled) - opening
    blocks = above or (len(first) > 3 and opening > 4 * inner and opening > 0.5 * len(first))
    if blocks and cut and sum(openers.values()) > again[best] / 4:
        names = openers  # a colon further down is no name
    wide = wide if wide <= 160 and full > 0.6 * len(loose) else 0
    sure = tight if plain else not wide and again[best] > 0.8 * len(filled)
    return Habits(cut, above, names, begins, blocks, wide, sure)


# %% tags=["example"]
bar = """MOE: What'll it be? And don't say a beer,
I have had it with beers this week.
BARNEY: Two beers.
MOE: Get out of here, and take your
two beers with you.
"""
habits_of(rows_of(bar), plain=False)


# %% [markdown]
# ## Reading row by row
#
# Now each row is what it is: a note, an episode, a place, a direction, the beginning of a speech, or more of the one before. Only what is none of these is rejected.

# %%
#| export
class Typed:
    "One typed file, read row by row."

    def __init__(
        self,
        rows: list,  # `Row`s without blank ones after every row
        how: Reading,  # what a reader may be told
        habits: Habits,  # how the file is laid out
    ):
        self.rows, self.how, self.habits, self.tally = rows, how, habits, Tally()
        self.lines: list[Line] = []
        self.breaks: list[Line] = []  # where a scene ends whatever the blank rows
        self.gaps: list[int] = []  # for each line, blank rows since the one before
        self.episodes: list[tuple] = [(None, 1)]  # (season or None, number) in order of appearance
        self.season: int | None = None
        self.place, self.blanks, self.fresh = "", 0, True
        self.speaker = ""
        self.said: list[tuple] = []  # (`Row`, its text) pairs of the speech
        self.cue: Row | None = None  # where its name stands, if that is a row of its own
        self.cast: int | None = None  # where a list of who is who ended so far, 0: it was only announced
        self.run = 0  # blank rows right before this row
        self.repeated: Counter | None = None  # rows that come again, counted when it is asked for first
        self.paged = False  # a page ended, and nothing stood on the next one so far

    def read(self) -> "Typed":
        "Take all rows."
        i = 0
        while i < len(self.rows):
            i += self.take(i)
        self.close()
        return self

    def take(
        self,
        i: int,  # index of a row
    ) -> int:  # how many rows were taken
        "Take the row at `i`, and those that belong to it."
        row = self.rows[i]
        if not row.text:
            self.close()
            self.run, self.fresh = self.run + (not self.paged), True
            self.blanks = max(self.blanks, self.run)
            return 1
        n, text = self.bracketed(i)
        kind, self.run = self.kind_of(text, n, row), 0
        self.paged = kind == "note" and bool(self.lines)
        self.blanks = 0 if self.paged else self.blanks
        if kind:
            self.tally.add(kind, text, n)
            self.fresh = True
            return n
        named = self.name_at(i)
        if named:
            self.close()
            self.open(row, *named)
        elif self.goes_on(row):
            self.said.append((row, row.text))
        elif not self.lines and not self.speaker:
            self.tally.add("note", text)  # what stands before anybody speaks
        else:
            self.close()
            self.paged = self.comes_again(text)
            self.tally.reject(
                row.number, "no speaker is named; expected 'Speaker: line', '[Place]' or '(direction)'", text
            )
        self.fresh = False
        return 1

    def comes_again(
        self,
        text: str,  # a row that says nothing
    ) -> bool:
        "Whether a row stands in the file three times, as a page's head does."
        if self.repeated is None:
            self.repeated = Counter(r.text for r in self.rows)
        return self.repeated[text] > 2

    def bracketed(
        self,
        i: int,  # index of a row
    ) -> (
        tuple
    ):  # (how many rows, their text): more than one if a bracket that begins here ends at the end of a later row
        "The row at `i`, or all rows of what stands in brackets there."
        text = self.rows[i].text
        close = {"(": ")", "[": "]", "{": "}", "（": "）", "【": "】"}.get(text[0])
        whole = text
        for n, row in enumerate(self.rows[i + 1 : i + 12], 2):
            if not close or whole.count(text[0]) <= whole.count(close) or not row.text:
                break
            whole += f" {row.text}"
            if whole.count(text[0]) <= whole.count(close):
                return (n, whole) if whole.rstrip(".")[-1] == close else (1, text)
        return 1, text

    def kind_of(
        self,
        text: str,  # a row, or several in brackets
        n: int,  # how many
        row: Row,  # the first of them
    ) -> str:  # note, heading, direction; "" if it may be speech
        "What a row is that is no speech; headings are followed."
        early = not self.lines and not self.speaker
        if NOTE.fullmatch(text) or CREDIT.fullmatch(text) or LISTING.fullmatch(text):
            return "note"
        if FRONT.fullmatch(text) and (early or self.habits.names[name_key(re.split("[:：]", text)[0])] < 2):
            return "note"
        if found := episode_of(text):
            self.close()
            self.begin(*found)
            return "heading"
        if SEPARATOR.fullmatch(text):
            self.end_scene(row)
            return "heading"
        if early and re.match(r"#\s", text):
            return "note"  # a title
        place = place_of(text, self.habits.begins)
        if place is not None and not (self.speaker and text[0] not in "[【［#" and self.habits.above):
            self.close()
            self.place = place or self.place
            self.end_scene(row)
            return "heading"
        if early and (CAST.fullmatch(text) or self.cast in (0, row.number - 1)):
            self.cast = 0 if CAST.fullmatch(text) else row.number + n - 1
            return "note"
        if CUE.fullmatch(text) and (self.fresh or re.search("[:：△▲]|^Ex(?:it|eunt)|^[\\[(_]", text)):
            self.close()
            return "direction"
        if re.fullmatch(r"([*_])[^*_]+\1\W*", text) and not (self.cue and not self.said):
            return "direction"
        if TRANSITION.fullmatch(text) and (text.isupper() or self.fresh):
            return "direction"
        return (
            "direction"
            if not INSIDE.sub("", without_directions(text)).strip(" .") and text[0] in "([{*（【［<_"
            else ""
        )

    def begin(
        self,
        season: int | None,  # named in the row, or None
        number: int | None,  # None: only a season is named
    ):
        "Begin an episode; where numbers begin again, a season does."
        if season is not None:
            self.season = season
        self.place = ""
        if number is None:
            return
        if season is None and (self.season, number) in self.episodes and self.lines:
            if self.episodes[-1] == (self.season, number):
                return
            self.season = (self.season or 1) + 1
        if self.lines or self.episodes != [(None, 1)]:
            self.episodes.append((self.season, number))
        else:
            self.episodes = [(self.season, number)]

    def end_scene(
        self,
        row: Row,  # where
    ):
        "A scene ends before this row."
        self.close()
        self.breaks.append(Line(len(self.episodes) - 1, row.number, "", row.text, self.place, row.number))

    def name_at(
        self,
        i: int,  # index of a row
    ) -> tuple | None:  # (name, what follows in the row); None if nobody is named
        "Who begins to speak in a row."
        row, h = self.rows[i], self.habits
        below = i + 1 < len(self.rows) and bool(self.rows[i + 1].text)
        if h.cut is None:
            often = h.names[name_key(row.text)] > 2
            capital = row.text.isupper() and row.text[-1] not in ",;"
            short = len(row.text) <= 45 and like_a_name(row.text, often or capital)
            fresh = self.fresh or (h.sure and often and capital)
            return (row.text, "") if fresh and below and short and (often or capital) else None
        found = h.cut(row.text)
        if not found:
            return None
        name, rest = found
        often = h.names[name_key(name)] > 1
        if not like_a_name(name, often or (h.sure and name.count(" ") < 4)) or (not rest and not below and not often):
            return None
        if rest and h.above and not (self.fresh and often):
            return None
        if self.said and not self.fresh:  # a colon in the middle of a speech
            full = is_full(self.said[-1][0], row, h.wide)
            if (not often and (h.blocks or full)) or (full and name[0].islower()):
                return None
        return name, rest

    def goes_on(
        self,
        row: Row,  # a row in which nobody is named
    ) -> bool:  # whether it belongs to the speech before
        "Whether a speech goes on."
        if not self.speaker:
            return False
        if self.habits.blocks or not self.said:
            return True
        above, text = self.said[-1][0], " ".join(t for _, t in self.said)
        opened = any(text.count(a) > text.count(b) for a, b in ("()", "[]", "{}", "（）"))
        small = row.text[0].islower() and text[-1:] not in '.!?…"”)'
        return opened or small or row.indent > self.said[0][0].indent or is_full(above, row, self.habits.wide)

    def open(
        self,
        row: Row,  # where the name stands
        name: str,  # as it stands there
        rest: str,  # what follows in the row
    ):
        "Begin a speech."
        self.speaker = string.capwords(name) if self.habits.cut is None and name.isupper() else name
        self.said, self.cue = ([(row, rest)], None) if rest else ([], row)

    def close(self):
        "End the speech, if somebody speaks."
        if not self.speaker:
            return
        raw = clean(" ".join(text for _, text in self.said))
        said = raw if self.how.keep_directions else without_directions(raw)
        if self.cue:
            self.tally.add("cue" if self.said else "wordless", self.cue.text)
        if self.said:
            row = self.said[0][0]
            words = has_words(said)
            self.tally.add("spoken" if words else "wordless", said)
            self.tally.add("direction", raw.replace(said, "", 1), 0)
            self.tally.add("continuation", "", len(self.said) - 1)
            if words:
                self.lines.append(Line(len(self.episodes) - 1, row.number, self.speaker, said, self.place, row.number))
                self.gaps.append(self.blanks)
                self.blanks = 0
        self.speaker, self.said, self.cue = "", [], None


# %% [markdown]
# ## Where scenes end
#
# At places, acts and rules, always. At a blank row where blank rows part *scenes*; in many files they part speeches. The file tells: if most speeches follow the one before without a blank row, a blank one means something. Else two of them may. A file that marks no scenes at all is cut every twenty lines, since a model reads no hundred lines at once; that is said, and `scene_break` says it better.

# %%
#| export
SCENE_LINES = 20  # lines of a scene where none is marked


def breaks_at(
    gaps: list,  # for each line, blank rows since the one before
    how: str,  # auto, blank, blanks, heading
) -> tuple:  # (how many blank rows end a scene, 0: none do; a note or "")
    "What a blank row means in a file."
    if how != "auto":
        return {"blank": 1, "blanks": 2}.get(how, 0), ""
    tight, one, more = sum(g == 0 for g in gaps[1:]), sum(g == 1 for g in gaps[1:]), sum(g > 1 for g in gaps[1:])
    if one <= max(tight, 1):
        return 1, ""
    if 0 < more <= (one + tight) / 2:
        return 2, "blank rows stand between speeches, so two of them end a scene here"
    return 0, "blank rows stand between speeches and end no scene here" if one else ""


def cut_every(
    scenes: list,  # `Scene`s
    most: int,  # lines of a scene
) -> list:  # `Scene`s of so many lines, or fewer
    "Cut scenes into shorter ones."
    found: list[Scene] = []
    index: Counter = Counter()
    for s in scenes:
        for i in range(0, len(s.lines), most):
            found.append(replace(s, index=index[s.episode], lines=s.lines[i : i + most]))
            index[s.episode] += 1
    return found


def numbered(
    episodes: list,  # (season or None, number) pairs in order of appearance
) -> list:  # a whole number for each, in the order of the seasons
    "One number for season and episode: 204 is the fourth of the second season, 2004 where there are a hundred."
    if all(s is None for s, _ in episodes):
        return [n for _, n in episodes]
    base = 1000 if any(n > 99 for _, n in episodes) else 100
    return [(s or 1) * base + n for s, n in episodes]


# %% tags=["example"]
print(breaks_at([0, 0, 0, 1, 0, 0], "auto"), breaks_at([0, 1, 1, 1, 2, 1, 1], "auto"))
numbered([(None, 1), (None, 2)]), numbered([(1, 1), (1, 2), (2, 1)])


# %%
#| export
def script_of(
    typed: Typed,  # a file that was read
    where: str,  # its name
    format: str,  # a key of `READERS`
    notes: Iterable[str] = (),  # what a person should know
) -> Script:  # scenes and account
    "Scenes and account of a typed file."
    wish, lines, notes = typed.how.scene_break, typed.lines, list(notes)
    every = int(wish) if wish.isdigit() else 0
    at, told = breaks_at(typed.gaps, "heading" if every else wish)
    number = numbered(typed.episodes)
    lines = [x._replace(episode=number[x.episode]) for x in lines]
    breaks = [x._replace(episode=number[x.episode]) for x in typed.breaks]
    breaks += [
        Line(x.episode, x.row - 1, "", "", x.location, x.row - 1) for x, g in zip(lines, typed.gaps) if at and g >= at
    ]
    scenes = scenes_of(lines, breaks)
    if any(s is not None for s, _ in typed.episodes):
        notes.append("seasons are kept apart: an episode's number is its season and its number, such as 204")
    return Script.of(
        where, cut_every(scenes, every) if every else scenes, typed.tally, format, [*notes, *[told] * bool(told)]
    )


def cut_whole(
    script: Script,  # a script of one scene
) -> Script:  # the same in scenes of `SCENE_LINES` lines, or a third of all lines
    "What to do with a file that marks no scenes."
    every = min(SCENE_LINES, len(script.lines) // 3)
    told = f"no scene is marked, so one ends every {every} lines; --scene-break says it better"
    return replace(script, scenes=cut_every(script.scenes, every), notes=[*script.notes, told])


# %% [markdown]
# ## What stands in every row
#
# Podcasts and chats put a time before each name or behind it, radio plays number their lines, lists have bullets, and tables that were pasted have a gap where a colon would be. Such a *dress* says nothing about a row, as all have it; where enough rows do, it goes, and `Name: line` is left. Else `00:12 Ada` and `00:19 Ada` would be two speakers, each with one line.

# %%
#| export
TIME = r"(?:\d{1,2}:)?\d{1,2}:\d\d(?:[.,]\d{1,3})?(?:\s?[AaPp]\.?[Mm]\.?)?"
BEFORE = re.compile(rf"^\s*(?:[\[(]?{TIME}[\])]?|\d{{1,5}}[.)]?(?=\s))(?:\s*[–—|-])?\s+(?=\S)")
BEHIND = re.compile(
    rf"^(?=.{{1,80}}$)([^:]{{1,40}}?)\s*[–—|,-]?\s*[\[(]?(?:(?:Today|Yesterday) at )?{TIME}[\])]?\s*:?\s*$"
)
APART = re.compile(r"^(\S[^\t:]{0,38}?)(?:\t[\t ]{0,60}| {3,60}|\u3000{1,9}|(?<=[A-Z]{2})  )(?=[^\s\d])")
MARKED = re.compile(r"^\s*(?:[-•·–—]|>{1,2}|[*+](?=\s))\s*(?=[^\s>*-])")
DRESSES = ((BEFORE, "", 0.4), (MARKED, "", 0.5), (BEHIND, r"\1:", 0.3), (APART, r"\1: ", 0.4))  # share of rows, 0..1
DECIDING = 5000  # rows that tell a file's habit


def undressed(
    rows: list,  # rows as they stand in the file
) -> list:  # the same, row by row, with `Name: line` where a habit of the whole file stood for it
    "Rows without what stands in most of them: times, numbers, bullets, and gaps in place of colons."
    begin = [r for r in rows[:DECIDING] if r.strip()]
    for dress, plain, least in DRESSES:
        filled = [r for r in begin if dress is not APART or not r[0].isspace()]
        if sum(bool(dress.match(r)) for r in filled) > least * len(filled):
            rows, begin = [dress.sub(plain, r) for r in rows], [dress.sub(plain, r) for r in begin]
    return rows


def unspaced(
    rows: list,  # `Row`s
) -> tuple:  # (`Row`s, whether one blank row behind each was taken away)
    "Rows of a file in which hardly two stand together: one blank row behind each means nothing."
    filled = [bool(r.text) for r in rows]
    if sum(filled) <= 3 or sum(a and b for a, b in zip(filled, filled[1:])) >= sum(filled) / 10:
        return rows, False
    return [r for a, r in zip([Row(0, "", 0, 0), *rows], rows) if r.text or not a.text], True


# %% tags=["example"]
undressed(["00:12 Ada: Is it on?", "00:15 Otto: It was on."]), undressed(["ADA      Is it on?", "OTTO     It was on."])


# %%
#| export
def read_typed(
    text: str,  # a whole text file
    where: str,  # its name
    how: Reading,  # what a reader may be told
    plain: bool,  # names stand alone above what is said, without a mark
) -> Script:  # scenes and account
    "Read rows of names and lines."
    found, spaced = unspaced(rows_of("\n".join(undressed(text.split("\n")))))
    typed = Typed(found, how, habits_of(found, plain)).read()
    notes = ["every line is followed by a blank one, so two blank lines end a scene here"] * spaced
    return script_of(typed, where, "play" if plain else "text", notes)


def read_text(
    text: str,  # a whole text file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a reader may be told
) -> Script:  # scenes and account
    "Read `Speaker: line` rows, and `Speaker:` above what is said."
    return read_typed(text, where, how, False)


def read_play(
    text: str,  # a whole text file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a reader may be told
) -> Script:  # scenes and account
    "Read a name alone in a row, and what is said below it."
    return read_typed(text, where, how, True)


# %% [markdown]
# ## Screenplays in columns
#
# A printed screenplay has no marks. What is what is told by columns: action at the left, speech further in, names in capitals further still, `(parentheticals)` between; pages break speeches with `(MORE)` and `(CONTINUED)`. The columns differ from file to file, so they are found: names are rows in capitals with a row right below that is less far in, and speech stands where the rows below names do.

# %%
#| export
def is_cue(
    row: Row,  # a row
    below: Row | None,  # the next one
) -> bool:  # whether it may be a name above speech, by its letters alone
    "Whether a row looks like the name above a speech."
    name = shown_name(row.text) if row.text else ""
    short = 0 < len(name) <= 40 and name == name.upper() and name != name.lower() and name[-1] not in ":,;"
    return bool(short and below and below.text and not PLACE.fullmatch(row.text) and not NOTE.fullmatch(row.text))


def columns_of(
    rows: list,  # `Row`s
) -> tuple:  # (indentation of names, of speech) as sets; empty if there are none
    "Where names and speech stand in a screenplay."
    pairs = [(a, b) for a, b in zip(rows, rows[1:]) if is_cue(a, b)]
    below = Counter(b.indent for a, b in pairs if b.text[0] != "(" and b.indent < a.indent)
    if not below:
        return frozenset(), frozenset()
    most = below.most_common(1)[0][1]
    speech = frozenset(i for i, n in below.items() if n > most / 20)
    names = Counter(a.indent for a, b in pairs if (b.indent in speech or b.text[0] == "(") and a.indent > min(speech))
    return frozenset(i for i, n in names.items() if n > max(names.values()) / 50), speech


# %%
#| export
def read_screenplay(
    text: str,  # a whole text file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a reader may be told
) -> Script:  # scenes and account
    "Read a screenplay that is laid out in columns of blanks."
    rows, _ = unspaced(rows_of(text))
    names, speech = columns_of(rows)
    typed = Typed(rows, how, Habits(None, True, Counter(), frozenset(), True, 0))
    inside = range(min(speech, default=0), max(names, default=0))  # where speech and parentheticals stand
    torn = ""  # who was speaking when the page ended
    for i, row in enumerate(rows):
        below = next((r for r in rows[i + 1 : i + 2]), None)
        if not row.text:
            # blank rows inside a speech: the next row stands where speech does
            if typed.speaker and not (
                below and below.text and below.indent in speech and below.indent > 0 and not is_cue(below, None)
            ):
                typed.close()
            continue
        if NOTE.fullmatch(row.text):
            torn = typed.lines[-1].speaker if typed.lines and "MORE" in row.text else torn
            torn = typed.speaker or torn
            typed.tally.add("note", row.text)
        elif PLACE.fullmatch(row.text) and (row.text[:3].isupper() or re.match(r"\S{3,7}\.", row.text)):
            typed.place = place_name(row.text)
            typed.end_scene(row)
            typed.tally.add("heading", row.text)
        elif found := episode_of(row.text):
            typed.close()
            typed.begin(*found)
            typed.tally.add("heading", row.text)
        elif (
            below and is_cue(row, below) and row.indent in names and (below.indent < row.indent or below.text[0] == "(")
        ):
            typed.close()
            typed.speaker, typed.said, typed.cue = string.capwords(shown_name(row.text)), [], row
            torn = ""
        elif typed.speaker and row.indent in inside:
            typed.said.append((row, row.text))
        elif not typed.lines:
            typed.close()
            typed.tally.add("note", row.text)
        else:
            typed.close()
            typed.tally.add("direction", row.text)
    typed.close()
    return script_of(typed, where, "screenplay", [])


# %% tags=["example"]
page = """          INT. BAR - NIGHT

          Moe wipes a glass.

                              MOE
                         (to himself, and
                         to the glass)
                    Nobody drinks from
                    you any more.
                              (MORE)

                                                  2.
                              MOE (CONT'D)
                    Not even me.

                              BARNEY
                    I would.
"""
screen = read_screenplay(page, "bar.txt")
print(screen.account())
[f"{line.speaker}: {line.text}" for line in screen.lines]

# %% [markdown]
# ## Fountain
#
# Screenwriters use Fountain, plain text in which the layout says what a row is ([its syntax](https://fountain.io/syntax)): scene headings begin with `INT.` or `EXT.`, a name in capitals with text below it is a cue, whatever stands in it (`OTTO BRANDT JR.`, `R2 UNIT`, `WHO?`), and everything else is action. Marks force what layout cannot say: `.` a heading, `@` a cue, `!` action. Names come in capitals because the format wants them so; here they are written as in the other formats.
#
# Writers hide notes in `[[ ]]` and whole passages in `/* */`. A blank row ends a note, closed or not; a `/*` that is never closed hides nothing. Both are told. Hidden rows are in the account, as notes.

# %%
#| export
TITLE = re.compile(
    r"(?:title|credit|authors?|source|draft date|date|contact|copyright|notes|revision|format)\s*:", re.I
)
BLANK = re.compile(r"\n[ \t]?\n")
STAR = "\1"  # stands for a star that is no mark
HIDDEN = "\0"  # stands for a hidden letter, so that rows keep their numbers


def hide(
    text: str,  # a Fountain file
) -> tuple:  # (the same with hidden letters as `HIDDEN`, notes on marks that are not closed)
    "Notes and passages that a writer hid."

    def cover(m):
        return re.sub(r"[^\n]", HIDDEN, m[0])

    text = re.sub(r"/\*.*?\*/", cover, text, flags=re.S)
    told = []
    if (open_at := text.find("/*")) >= 0:
        told = [f"/* in row {text.count(chr(10), 0, open_at) + 1} is never closed, so it hides nothing"]
    pieces, at = [], 0
    while (begin := text.find("[[", at)) >= 0:
        end, blank = text.find("]]", begin), BLANK.search(text, begin)
        closed = 0 <= end < (blank.start() if blank else len(text))
        until = end + 2 if closed else blank.start() if blank else len(text)
        if not closed:
            told.append(
                f"[[ in row {text.count(chr(10), 0, begin) + 1} is not closed before the next blank row, which ends it"
            )
        pieces += [text[at:begin], re.sub(r"[^\n]", HIDDEN, text[begin:until])]
        at = until
    return "".join(pieces) + text[at:], told[:5]


def fountain_place(
    text: str,  # a row
) -> str | None:  # the place; None if the row is no scene heading
    "The place that a scene heading names."
    if text[:1] == "." and text[1:2] not in ("", "."):
        return place_name(text[1:])
    return place_name(text) if PLACE.fullmatch(text) else None


def fountain_cue(
    text: str,  # a row with a blank one above it and text below it
    often: bool = False,  # whether it comes again, as a name does
) -> str | None:  # the speaker; None if the row is no cue
    "The speaker that a cue names."
    name = shown_name(text.removesuffix("^").strip())
    if text[:1] == "@":
        return name or None
    if name == name.upper() and name != name.lower():
        return None if place_of(text) is not None else string.capwords(name)
    # letters without capitals, as in Chinese
    plain = (
        len(name) <= 12 and re.search(r"[^\W\d_]", name) and not re.search(r"[\[\](){}（）【】「」『』:：。，、]", text)
    )
    return name if often and name == name.upper() and plain else None


# %%
#| export
def read_fountain(
    text: str,  # a whole Fountain file
    where: str,  # its name, for errors
    how: Reading = AUTO,  # what a reader may be told
) -> Script:  # scenes and account; a spoken block is one line
    "Read a screenplay in Fountain."
    text, notes = hide(text)
    raws = text.split("\n")
    rows = [Row(i, " ".join(r.replace(HIDDEN, "").split()), 0, len(r)) for i, r in enumerate(raws, 1)]
    typed = Typed(rows, how, Habits(None, True, Counter(r.text for r in rows), frozenset(), True, 0))
    tally, above = typed.tally, True  # above: is the row above blank?
    title = bool(TITLE.match(next((r.text for r in rows if r.text), "")))
    for row, raw, below in zip(rows, raws, [*rows[1:], Row(0, "", 0, 0)]):
        plain = row.text
        if not plain:
            if HIDDEN in raw:
                tally.add("note", raw)  # its blank row ends nothing
                continue
            if typed.speaker and typed.said and raw.startswith("  "):
                continue  # two spaces: the speech goes on
            typed.close()
            title, above = title and not tally.counts["note"], True
            continue
        blank_above, above = above, False
        if title:
            tally.add("note", plain)
        elif typed.speaker:
            said = re.sub(r"(?<!\\)[*_]+", "", plain.removeprefix("~")).replace("\\*", STAR).replace("\\_", "_").strip()
            typed.said.append((row, said))
        else:
            kind = fountain_kind(plain, blank_above, bool(below.text), typed, row)
            if kind:
                tally.add(kind, plain)
    typed.close()
    typed.lines = [x._replace(text=x.text.replace(STAR, "*")) for x in typed.lines]
    return script_of(typed, where, "fountain", notes)


def fountain_kind(
    text: str,  # a row outside of speech
    blank: bool,  # whether the row above is blank
    below: bool,  # whether there is text in the row below
    typed: Typed,  # what was read so far; places, episodes and speakers are followed
    row: Row,  # the same row
) -> str:  # note, heading or direction; "" for a cue, which is counted when its speech ends
    "What a row of Fountain is, outside of speech."
    if text[0] in "#=":
        if text[0] == "#" and (found := episode_of(text)):
            typed.begin(*found)
        return "note"
    if NOTE.fullmatch(text):
        return "note"  # pages of a print
    if text[0] in "!>" or (blank and text.endswith(" TO:") and text == text.upper()):
        return "direction"
    if blank and (place := fountain_place(text)):
        typed.place = place
        typed.end_scene(row)
        return "heading"
    if blank and below and (name := fountain_cue(text, typed.habits.names[text] > 2)):
        typed.speaker, typed.said, typed.cue = name, [], row
        return ""
    return "direction"


# %% tags=["example"]
play = """Title: The Long Lunch

INT. POWER PLANT - DAY

Homer sits at a panel that blinks. [[Does it?]]

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
open_note = read_fountain("INT. BAR\n\nMOE\nHi. [[what\n\nBARNEY\nBeer.\n", "x.fountain")
assert [line.text for line in open_note.lines] == ["Hi.", "Beer."] and "row 4" in open_note.notes[0]
