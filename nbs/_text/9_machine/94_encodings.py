# %%
#| default_exp machine.encodings

# %% [markdown]
# # From bytes to text
#
# > The letters of any text file, whatever wrote it; and the names of files that are no text.
#
# A file is bytes, and which letters they are is a convention that nobody wrote into it. Read by the wrong one, `Don’t` becomes `Donâ€™t` in all lines at once, and a model learns it. This chapter finds the convention, says which it took, and asks where two are as likely. What is no text at all, a film or a word processor's document, is named as what it is, with the way to turn it into text.

# %%
#| export
import codecs
import email
import email.policy
import io
import logging
import math
import re
import string
import unicodedata
import zipfile
import zlib
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from simpsons_llm.machine.job import require

# %%
#| hide
import gzip

import pandas as pd

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## From bytes to text
#
# A file is bytes; which letters they mean is nowhere written. Read in the wrong way, `Don’t` becomes `Donâ€™t` or `DonÕt` in every line, and a character learns to talk like that. So this is decided with care, in an order that goes from certain to doubtful: what a person says; a byte order mark; UTF-16 without one, whose every other byte is zero; UTF-8, which is so strict that text in another encoding practically never passes for it; and then the old encodings with one byte a letter, or two for Chinese, Japanese and Korean, which nothing in the file tells apart but whether sense comes out.

# %%
#| export
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def unmarked(
    data: bytes,  # a file's bytes
) -> str | None:  # utf-16-le, utf-32-be, ...; None if it is none of these
    "UTF-16 or UTF-32 without a mark: blanks and row ends stand where they must, and every character exis"
    "ts."
    head = data[: 1 << 16]
    if b"\0" not in head:
        return None
    found = {}
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = head[: len(head) // 4 * 4 if codec[4] == "3" else len(head) // 2 * 2].decode(codec, "replace")
        kinds = Counter(unicodedata.category(c) for c in text if c not in "\t\n\r\f\ufeff")
        if text and not any(kinds[k] for k in ("Cc", "Cn", "Co")) and text.count("\ufffd") <= 1:
            found[codec] = sum(map(text.count, " \n\r\t:,.，。：")) / len(text)
    return max(found, key=lambda c: found[c]) if found and max(found.values()) > 0.01 else None


# %% tags=["example"]
tea = "Ada: Is the kettle on?\nOtto: It was on.\n"
[unmarked(tea.encode(c)) for c in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-8")], unmarked(bytes(range(256)))

# %% tags=["check"]
assert [unmarked(tea.encode(c)) for c in ("utf-16-le", "utf-32-be")] == ["utf-16-le", "utf-32-be"]
assert unmarked("Олег: Он был здесь.\n".encode("utf-16-le")) == "utf-16-le" and unmarked(b"PK\3\4\0\0\0") is None


# %% [markdown]
# ## UTF-8 with a bad byte in it
#
# Files are edited by several programs. One old program writes one `é` in its own way, and a file of 100,000 good rows is no valid UTF-8 any more. It would be wrong to read all of it in another encoding for that byte: the file stays UTF-8, and the byte is read as the old Windows encoding of the same alphabet. What is told is how many there are and how the first one reads now. A letter of which bytes are missing becomes `�`.

# %%
#| export
class Repaired(NamedTuple):
    "UTF-8 in which some bytes were not."

    text: str  # the text with every byte read somehow
    good: int  # letters outside ASCII that were valid
    bad: int  # places that were not
    first: int  # where the first of them stands in `text`


def repair(
    data: bytes,  # nearly UTF-8
) -> Repaired:  # `bad` is one more than `good` where it was given up
    "Read what is not UTF-8 in the old encoding of the same alphabet."
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    head = data[:200_000].decode("utf-8", "ignore")
    sample = Counter(unicodedata.name(c, "?").split()[0] for c in head if c > "\x7f").most_common(1)
    old = {"CYRILLIC": "cp1251", "GREEK": "cp1253"}.get(sample[0][0] if sample else "", "cp1252")
    places: list[int] = []

    def mend(e):
        places.append(e.start)
        if 2 * len(places) > high or len(places) > 200_000:
            raise e
        lone = data[e.start : e.end]
        broken = len(lone) > 1 or e.end == len(data) and lone[0] >= 0xC2
        return ("\ufffd" if broken else lone.decode(old, "replace")), e.end

    codecs.register_error("mend", mend)
    try:
        text = data.decode("utf-8", "mend")
    except UnicodeDecodeError:
        return Repaired("", 0, 1, 0)
    good = len(text) - len(text.encode("ascii", "ignore")) - len(places)
    return Repaired(text, good, len(places), len(data[: places[0]].decode()) if places else 0)


# %% tags=["example"]
repair("Ada: Don’t, it’s hot. ".encode() + b"Caf\xe9!")

# %% tags=["check"]
assert repair("Кто? ".encode() + "Я.".encode("cp1251")).text == "Кто? Я."
assert repair("Don’t ".encode() + "’".encode()[:2]).text == "Don’t \ufffd"  # cut in the middle of a letter

# %% [markdown]
# ## Which letters make sense
#
# For the rest there is a library, charset-normalizer, which reads a file in all encodings and takes the one with the least disorder. It is good with alphabets, and often wrong between the encodings of the Latin one: `Très bien` in Windows' encoding comes back as `Trčs bien`, with no sign of doubt. The few accented letters of a script are too little for statistics over whole texts, but enough for a look at each of them. Between letters stands a letter or an apostrophe, no `‰` and no `Õ` after small letters; an opening quote follows a blank; the accented letters of a page are those of *one* language, and its common ones most often. So every reading gets a *cost*, in nats: how surprising are its letters outside ASCII? Here are the letters of the languages, the commonest first, and how dense they are:

# %%
#| export
LATIN = {  # language -> (its letters beside a-z, commonest first; their share of all letters)
    "English": ("éèïñçêöüáäåàâôëíóîûúßøæãõ", 0.0005),
    "French": ("éèàêçôûîâùïœëüÿæ", 0.035),
    "German": ("üäößé", 0.017),
    "Spanish": ("óíáéñúüª", 0.02),
    "Portuguese": ("ãçáéíõóêúàâô", 0.04),
    "Italian": ("èàòùéìî", 0.008),
    "Nordic": ("äåöøæé", 0.03),
    "Dutch": ("ëéïöèü", 0.003),
    "Icelandic": ("íðáþöéóæúý", 0.12),
    "Catalan": ("éàèóíòçúïül·", 0.03),
    "Polish": ("łęąóżśćńź", 0.07),
    "Czech": ("íáéěřšžčýůúťňďó", 0.13),
    "Slovak": ("áíéýčžšľúťôňóäďĺŕ", 0.11),
    "Croatian": ("šžčćđ", 0.03),
    "Hungarian": ("áéőöóüíúű", 0.12),
    "Romanian": ("ăîâșțşţ", 0.06),
    "Turkish": ("ıüşğöçİîâ", 0.09),
    "Lithuanian": ("ėšųžąįūčę", 0.06),
    "Latvian": ("āīēšūņļžģčķ", 0.09),
    "Estonian": ("äõüöšž", 0.04),
}
OTHER = {  # alphabet -> languages that use it, all letters, commonest first
    "CYRILLIC": (
        "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
        "оаинвіетрслкудмпзяьбгйчхцюжїєшщфґ",
        "аоиеустнрјлкдмпвзбгчцњшжхћљђџф",
    ),
    "GREEK": (
        "αοιετσνηυρπκμλςωγδβχθάίφόέήώύξζψϊϋΐΰ",
    ),
    "HEBREW": (
        "יוהלאתרבמשםנחעקדטזפגסךןצכףץ",
    ),
    "ARABIC": (
        "اليمنورتبةعدسفهكقحجشصىطخأضغذزءثئظؤإآ،؟ًّ",
        "ایرندهمتوبسشکگلزخقجفپعطچحصغضظذژثئ",
    ),
    "THAI": (
        "านรอกเงมยลวดทสตะปบคหแจพชขใไโผถซศธณภญฉษฟฝฮฐฎฆฤฬ",
    ),
    "HANGUL": (
        "이다는을가에의고하지도기를나요아어은서그로리니사한있해시자대거라만게네오일인여구무주보우안었정들할내"
        "과제수마야면미너부것까상전저 장",
    ),
    "CJK": (
        "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
        "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实"
        "日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政"
        "美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员"
        "解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件"
        "计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象"
        "完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运吗呢吧啊谁"
        "怎",
        "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡"
        "用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實"
        "日意無力與長把機十問很最手頭見什話回給門老她嗎呢吧啊誰怎",
        "日一人国大年中会本事者出見行分言自時上生合前気手間今思入何来子方私彼話場下後名家女男聞知目明高体食長"
        "新心立水使待帰早少車店金電何君僕俺好",
    ),
    "KANA": (
        "いのんたにてとかしはなるがれっをでらすまこりもうさだよあきくつどせけめおそえわみちじやばねろほげひふ"
        "ゃょゅゆむずへぶご",
        "ーンスルトリラアイクッシタドマレジロカオコパニフムバテキサグメィウャエデナプミ",
    ),
}  # fmt: skip

# %% [markdown]
# Of a page in Chinese hardly any list is complete; there, a character that is not in the list costs less where the national standards count it among the ordinary ones.

# %%
#| export
ORDINARY = {"gb2312": (0xB0, 0xD7), "big5": (0xA4, 0xC6), "euc_jp": (0xB0, 0xCF)}  # first byte of ordinary characters


@lru_cache(100_000)
def alphabet(
    c: str,  # one character
) -> str:  # LATIN, CYRILLIC, KANA, CJK ... or "" for what is no letter
    "To which alphabet a letter belongs."
    if not unicodedata.category(c)[0] == "L" and c != "ー":
        return ""
    name = unicodedata.name(c, "?").split()[0]
    return {"HIRAGANA": "KANA", "KATAKANA": "KANA", "KATAKANA-HIRAGANA": "KANA"}.get(name, name)


@lru_cache(100_000)
def letter_cost(
    c: str,  # a letter outside ASCII
    letters: str,  # a language's letters, commonest first
    codec: str = "",  # for Chinese characters: the standard that says which are ordinary
) -> float:  # nats
    "How surprising a letter is in a language."
    c = c if c in letters else c.lower()[:1]
    if codec:
        if c in letters:
            return 4.0
        try:
            first, last = ORDINARY[codec]
            return 7.0 if first <= c.encode(codec)[0] <= last else 9.5
        except UnicodeError:
            return 10.0
    place = letters.find(c)
    if alphabet(c) == "HANGUL":
        return 4.5 if place >= 0 else 6.2
    return 8.0 if place < 0 else math.log((1 + place) * (0.6 + math.log(len(letters))))  # Zipf's law


# %% [markdown]
# What is no letter has its place: quotes at the borders of words, degrees after digits. And a letter has neighbours: of its own alphabet, and small after small ones.

# %%
#| export
def place_cost(
    before: str,  # the character before
    c: str,  # a character outside ASCII
    after: str,  # the character after
) -> float:  # nats
    "How surprising a character is between its neighbours, whatever the language."
    kind, left, right = unicodedata.category(c), before.isalnum(), after.isalnum()
    inside = before.isalpha() and after.isalpha()
    if c == "\ufffd" or kind in ("Cc", "Cn", "Co", "Cs"):
        return 15.0
    if c == "’":
        return 0.5 if left and right else 1.5 if not before.isspace() and not right else 2.0 if after < "\x80" else 8.0
    if c in "“‘„‚¿¡":
        return 10.0 if before.isalnum() else (5.0 if c in "‚‘" else 2.0) if not after.isspace() else 7.0
    if c in "”":
        return 8.0 if inside else 2.0 if not right and not before.isspace() else 4.5
    if c in "«»‹›":
        return 8.0 if inside else 2.5
    if c in "–—…\xa0":
        return (7.0 if inside and c != "—" else 2.0) if c != "\xa0" or not inside else 6.0
    if c in "°€£¥½¼¾²³ºª":
        return 8.0 if inside else 3.0 if before.isdigit() or after.isdigit() else 6.0
    if "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uff60" or c in "·，。":
        return 3.0 if c != "·" else 4.0
    if kind[0] == "M":
        own = unicodedata.name(c, "?").split()[0]
        return 3.0 if alphabet(before) == own or unicodedata.category(before)[0] == "M" else 12.0
    if "\uff61" <= c <= "\uff9f":
        return 12.0  # narrow katakana
    if kind[0] != "L":
        apart = c in "™®©" or not (before.isalpha() or after.isalpha())
        return 6.0 if apart and not "\u2500" <= c <= "\u259f" else 9.0
    cost, own = 0.0, alphabet(c)
    if before.isalpha() and alphabet(before) != own and {alphabet(before), own} - {"CJK", "KANA", "HANGUL", "LATIN"}:
        cost += 8.0
    if own in ("CJK", "KANA", "HANGUL"):
        return cost + 4.0 * (alphabet(before) == "LATIN") + 4.0 * (alphabet(after) == "LATIN")
    if after.isalpha() and after < "\x80" and own != "LATIN":
        cost += 8.0
    if before.isalpha() and before.islower() and c.isupper() or c.islower() and after.isupper():
        cost += 8.0
    if before.isupper() and c.isupper() and after.islower() or before.isdigit() or after.isdigit():
        cost += 5.0
    return cost + (0.3 if c.isupper() else 0.0)


# %%
#| export
def reading_cost(
    text: str,  # rows read in one encoding
    codec: str,  # which
    density: float,  # foreign letters among all letters of the file
    english: bool = False,  # whether its other words are English
) -> float:  # nats
    "How surprising a reading is, in the language that suits it best."
    text = " ".join(dict.fromkeys(text.split()))  # a word said twice is no more evidence
    padded = f" {text} "
    places = [m.start() for m in re.finditer(r"[^\x00-\x7f]", padded)]
    cost = sum(place_cost(padded[i - 1], padded[i], padded[i + 1]) for i in places)
    found = Counter(padded[i] for i in places)
    by: dict[str, Counter] = {}
    for c, n in found.items():
        if alphabet(c):
            by.setdefault(alphabet(c), Counter())[c] += n
    for own, letters in by.items():
        if own == "LATIN":
            options = []
            for name, (known, usual) in LATIN.items():
                off = density / 0.006 if name == "English" else usual / max(density, 1e-6) / 4
                each = min(3.0, max(0.0, math.log(off))) / (1 if letters.total() > 3 else 3)
                each += 0.0 if name == "English" else 5.0 if english else 1.0
                few = len(letters) < min(len(known), letters.total()) // 4  # a language uses several of its letters
                each += 2.0 if few and name != "English" else 0.0
                options.append(sum(n * (letter_cost(c, known) + each) for c, n in letters.items()))
            cost += min(options)
        elif own == "CJK":
            standard = {"cp932": "euc_jp", "euc_jp": "euc_jp", "big5": "big5", "cp950": "big5"}.get(codec, "gb2312")
            standard = "euc_jp" if codec == "cp949" else standard
            extra = 3.0 if codec == "cp949" else 0.0
            known = "".join(OTHER["CJK"][:2] if standard != "euc_jp" else OTHER["CJK"][2:])
            cost += sum(n * (letter_cost(c, known, standard) + extra) for c, n in letters.items())
        else:
            away = 5.0 if own == "KANA" and codec not in ("cp932", "euc_jp") else 0.0
            lists = ["".join(OTHER["KANA"])] if own == "KANA" else OTHER.get(own, ("",))
            cost += min(sum(n * (letter_cost(c, x) + away) for c, n in letters.items()) for x in lists)
    cost -= 0.4 * len(re.findall(r"(?i)[a-z]’(?:s|t|m|d|re|ve|ll)\b|\b(?:l|d|j|n|qu|c|s)’[a-zé]", text))
    foreign_words = re.findall(r"[^\W\d_a-zA-Z]{3,}", text)
    return cost + sum(2.0 * len(w) for w in foreign_words if alphabet(w[0]) == "LATIN")


# %% tags=["example"]
tres = "Marla: Très bien, mon frère. Là-bas !".encode("cp1252")
pd.DataFrame(
    [
        (c, tres.decode(c), round(reading_cost(tres.decode(c), c, 0.1), 1))
        for c in ("cp1252", "cp1250", "cp1251", "mac_roman")
    ],
    columns=["encoding", "reads", "cost"],
)

# %% [markdown]
# ## Certain, or a question
#
# The candidates are the encodings that are met in practice, each with a small cost of its own for how rare it is, and those that charset-normalizer proposes. Encodings in which the file reads the same are one candidate. The best must be ahead of the next by a clear margin, less if the library agrees; if it is not, or if even the best reading is odd, nobody guesses: the person sees a row in each reading, and says `--encoding`.

# %%
#| export
CODECS = {  # encoding -> nats for its rarity
    "cp1252": 0, "mac_roman": 2, "cp1251": 1, "koi8_r": 1, "cp1250": 1, "iso8859_2": 1.5, "cp932": 1, "euc_jp": 1,
    "gb18030": 1, "big5": 1, "cp949": 1, "cp1253": 1, "cp1254": 2, "cp1255": 1.5, "cp1256": 1.5, "cp1257": 2,
    "cp874": 2, "cp866": 4, "cp850": 5, "cp852": 5, "iso8859_5": 3, "iso8859_6": 2.5, "iso8859_7": 2,
    "iso8859_8": 2.5, "iso8859_15": 3, "koi8_u": 2, "mac_cyrillic": 2.5, "mac_latin2": 3.5, "mac_greek": 3,
}  # fmt: skip
LABELS = {"mac_roman": "Mac Roman", "cp932": "Shift-JIS", "euc_jp": "EUC-JP", "cp949": "EUC-KR"}  # as people call them


class Guess(NamedTuple):
    "One way to read a file."

    cost: float  # nats
    codec: str  # encoding
    text: str  # how the sample reads


def sample_of(
    data: bytes,  # a file's bytes
    most: int = 12_000,  # bytes of the sample
) -> bytes:  # rows that hold bytes outside ASCII, from all over the file
    "The rows that tell encodings apart."
    windows = 1 if len(data) < most else 40
    rows: list[bytes] = []
    for i in range(windows):
        begin = data.find(b"\n", len(data) * i // windows) + 1 if i else 0
        size = 0
        for m in re.finditer(rb"[^\r\n]+", data[begin : begin + (1 << 20)]):
            if not m[0].isascii():
                rows.append(m[0][:2000])
                size += len(rows[-1])
            if size > most // windows and windows > 1:
                break
    return b"\n".join(rows)


def guesses(
    data: bytes,  # text in an old encoding
) -> list:  # `Guess`es, best first, no two of which read the same; the library's opinion: its codec names
    "All ways to read a file."
    import charset_normalizer

    sample = sample_of(data)
    words = Counter(re.findall(rb"[a-z]+", data[:100_000].lower()))
    common = sum(words[w] for w in b"the and you to of is in it i that my was".split())
    english = common > 0.06 * max(words.total(), 1) and words[b"the"] + words[b"you"] + words[b"is"] > 0
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    plain = len(data) - len(data.translate(None, string.ascii_letters.encode()))
    logging.getLogger("charset_normalizer").setLevel(logging.ERROR)
    theirs = [name for m in list(charset_normalizer.from_bytes(sample[:6000]))[:2] for name in m.could_be_from_charset]
    theirs = [
        c for c in theirs if c[:3] != "utf" and string.printable.encode().decode(c, "replace") == string.printable
    ][:6]
    found: dict[str, Guess] = {}
    for codec, rarity in {**CODECS, **{c: 6.0 for c in theirs if c not in CODECS}}.items():
        try:
            text = sample.decode(codec, "replace")
        except (LookupError, UnicodeError):
            continue
        if text.count("\ufffd") > 1 + high // 200:
            continue
        if text in found:
            continue
        cost = rarity + reading_cost(text, codec, high / max(1, high + plain), english)
        agreed = any(sample.decode(c, "replace") == text for c in theirs)
        found[text] = Guess(cost - (1 if agreed else 0), codec, text)
    return sorted(found.values())


# %% [markdown]
# So the call gives text, the encoding's name, and what a person should know; or one sentence.

# %%
#| export
def doubtful(
    name: str,  # the file's name
    found: list,  # `Guess`es, best first
) -> str:  # a sentence
    "Ask which reading is right."
    best, other = found[0].text.split("\n"), found[min(1, len(found) - 1)].text.split("\n")
    rows = [i for i, (a, b) in enumerate(zip(best, other)) if a != b] or range(len(best))
    row = max(rows, key=lambda i: len(re.findall(r"[^\x00-\x7f]", best[i][:300])))
    m = re.search(r"[^\x00-\x7f]", best[row])
    begin = max(0, (m.start() if m else 0) - 25)
    shown = [(g.codec, (g.text.split("\n")[row : row + 1] or [""])[0][begin : begin + 50].strip()) for g in found[:3]]
    ways = "; ".join(f"{codec} reads {text!r}" for codec, text in shown)
    return (
        f"{name} is not UTF-8, and its encoding is in doubt: {ways}; say which is right, e.g. --encoding {shown[0][0]}"
    )


def as_told(
    data: bytes,  # a file's bytes
    name: str,  # the file's name
    encoding: str,  # a codec's name, from a person
) -> str:  # the text
    "Decode as a person says."
    try:
        known = codecs.lookup(encoding)
        require(getattr(known, "_is_text_encoding", True) and known.name not in ("undefined", "idna", "punycode"), "")
    except (LookupError, ValueError):
        raise ValueError(
            f"encoding {encoding!r} is not known; use a name such as utf-8, cp1252, mac_roman, cp1251 or utf-16"
        ) from None
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        row = data.count(b"\n", 0, e.start) + 1
        raise ValueError(
            f"{name} is not text in encoding {encoding} (byte 0x{data[e.start]:02x} in row {row}); "
            "leave the encoding out or name another"
        ) from None
    except (UnicodeError, ValueError):
        raise ValueError(f"{name} is not text in encoding {encoding}; leave the encoding out or name another") from None


# %%
#| export
def declared(
    data: bytes,  # a file's bytes, which are not UTF-8
) -> str:  # a codec in which it can be read; "" if it names none
    "The encoding that a page says it has."
    m = re.search(rb"(?i)<(?:meta|\?xml)[^<>]{0,300}?(?:charset|encoding)\s*=\s*[\"']?([\w-]+)", data[:4000])
    name = m[1].decode().lower() if m else ""
    for codec in ("cp1252", name) if name in ("iso-8859-1", "latin-1", "us-ascii") else (name,):  # as browsers do
        try:
            data.decode(codec)
            known = codecs.lookup(codec)
            return "" if known.name[:3] == "utf" or not getattr(known, "_is_text_encoding", True) else known.name
        except (LookupError, ValueError):
            continue
    return ""


def find_encoding(
    data: bytes,  # a file's bytes
    name: str,  # the file's name
) -> tuple:  # (text, encoding, notes)
    "Text in the encoding that is certain, or a question as a ValueError."
    marked = next((codec for mark, codec in MARKS if data.startswith(mark)), None)
    codec = marked or unmarked(data) or ("iso2022_jp" if b"\x1b$" in data else "utf-8")
    try:
        return data.decode(codec), codec, []
    except UnicodeDecodeError as e:
        if codec[:5] != "utf-8":
            text = data.decode(codec, "replace")
            require(text.count("\ufffd") <= 2, f"{name} begins as {codec} but is not ({e.reason}); save it as UTF-8")
            return text, codec, [f"{text.count(chr(0xFFFD))} broken letters of {codec} are read as �."]
    require(b"\0" not in data[: 1 << 20], f"{name} holds binary data, not a script; expected a text file")
    if told := declared(data):
        return data.decode(told), told, []
    fixed = repair(data.removeprefix(codecs.BOM_UTF8))
    shown = fixed.text[:20_000].replace("\ufffd", "")
    sense = fixed.bad * 4 <= fixed.good or reading_cost(shown, "utf-8", 0.03) < 6 * len(
        re.findall(r"[^\x00-\x7f]", shown)
    )
    if marked or fixed.bad <= fixed.good and sense:
        begin = max(fixed.first - 20, fixed.text.rfind("\n", 0, fixed.first) + 1)
        shown = fixed.text[begin : fixed.first + 15].split("\n")[0]
        which = "1 place is" if fixed.bad == 1 else f"{fixed.bad} places are"
        row = fixed.text.count("\n", 0, fixed.first) + 1
        return fixed.text, codec, [f"{which} not valid UTF-8; the first, in row {row}, is read as {shown!r}."]
    found = guesses(data)
    require(found, f"{name} is text in no encoding that is known here; save it as UTF-8")
    best = found[0]
    sure = best.cost < 8 + 6 * len(re.findall(r"[^\x00-\x7f]", best.text))
    require(sure and (len(found) == 1 or found[1].cost - best.cost > 3), doubtful(name, found))
    text = data.decode(best.codec, "replace")
    lost = text.count("\ufffd")
    return text, best.codec, [f"{lost} bytes are not valid {best.codec} and are read as �."] if lost else []


def decode(
    data: bytes,  # a file's bytes
    name: str = "file",  # its name, for the error
    encoding: str | None = None,  # a codec's name; None: find out
) -> tuple:  # (text with \n line ends, name of the encoding, notes: a sentence each)
    "Text of a script file, whatever wrote it."
    text, codec, notes = (as_told(data, name, encoding), encoding, []) if encoding else find_encoding(data, name)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a")
    controls = len(re.findall(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text[: 1 << 20]))
    require(
        "\0" not in text and controls <= 2 + len(text[: 1 << 20]) // 500,
        f"{name} holds binary data, not a script; expected a text file",
    )
    if len(re.findall(r"â€[™œ\x9d\x99\x9c“”¦]|Ã[©¨¤¶¼±]", text[: 1 << 20])) > 2:
        notes.append("Letters such as â€™ or Ã© stand in the file itself: it was read wrongly before it was saved.")
    return text, codec, notes


# %% tags=["example"]
for data in (
    "Marla: Don’t. The café is shut.".encode("cp1252"),
    "Marla: Don’t. The café is shut.".encode("mac_roman"),
    "Марта: Где мой чайник?".encode("koi8_r"),
    "Marla: Dziś też był żółty, jaźń.".encode("iso8859_2"),
    "玛拉：我的水壶在哪里？".encode("gb18030"),
):
    print(decode(data))

# %% [markdown]
# In one short row of Romanian, two languages are possible, and a question is asked:

# %% tags=["example"]
doubted = "Otto: Era aici lângă fereastră.".encode("cp1250")
try:
    print(decode(doubted, "era.txt"))
except ValueError as e:
    print(e)

# %% tags=["check"]
assert decode(doubted, "era.txt", "cp1250")[0] == "Otto: Era aici lângă fereastră."
for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "mac_roman"):
    assert decode("Ada: The café isn’t far.\r\nOtto: No.\r".encode(codec))[0] == "Ada: The café isn’t far.\nOtto: No.\n"
for bad, encoding in ((b"\1\0\2", None), (b"caf\xe9", "utf-8"), (b"x", "klingon"), (b"x", "base64"), (doubted, None)):
    try:
        raise AssertionError(decode(bad, "x.csv", encoding))
    except ValueError as e:
        assert "\n" not in str(e)

# %% [markdown]
# ## What is no text
#
# Some files are not text at all, and somebody who gives a PDF should hear that it is a PDF, and how to get at its words. Most formats say in their first bytes what they are. A zip archive may be a Word document, a spreadsheet, a book or a model; the names within tell. What is packed with gzip is opened, but not without end: a few kilobytes can hold gigabytes of zeros.

# %%
#| export
AS_TEXT = {  # what a file is -> how to get text from it
    "a PDF": "turn it into text with `pdftotext -layout FILE.pdf FILE.txt`",
    "a Word document": "save it as plain text in UTF-8, or `pandoc FILE.docx -t plain --wrap=none -o FILE.txt`",
    "an OpenDocument text": "open it and save it as plain text in UTF-8",
    "an e-book": "turn it into text with `pandoc FILE.epub -t plain --wrap=none -o FILE.txt`",
    "a spreadsheet": "save its sheet as CSV in UTF-8",
    "an RTF document": "open it in a word processor and save it as plain text in UTF-8",
    "an old Office document (.doc, .xls, .ppt)": "open it and save it as plain text, a table as CSV",
    "a presentation": "open it and save its outline as text",
    "a picture": "a text recogniser such as `tesseract FILE out` reads what is printed on it",
    "sound or video": "a speech recogniser such as Whisper makes subtitles (.srt) of it",
    "a database": "write its table of lines as CSV with the database's own program",
    "a pickle or model file": "write the data as CSV, JSON or Parquet with the program that made it",
    "an archive": "unpack it and give the script inside",
    "a program": "give a script of dialogue",
    "a calendar or an address book": "give a script of dialogue",
    "a Git LFS pointer, not the file itself": "fetch the file with `git lfs pull`",
}
MAGIC = (  # (where, bytes, what)
    (0, b"%PDF-", "a PDF"), (0, b"{\\rtf", "an RTF document"), (0, b"\x89PNG\r\n", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"), (0, b"GIF8", "a picture"), (0, b"II*\0", "a picture"),
    (0, b"MM\0*", "a picture"),
    (8, b"WEBP", "a picture"), (4, b"ftypheic", "a picture"), (4, b"ftypavif", "a picture"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.doc, .xls, .ppt)"),
    (4, b"ftyp", "sound or video"), (0, b"ID3", "sound or video"), (0, b"\xff\xfb", "sound or video"),
    (0, b"OggS", "sound or video"), (0, b"fLaC", "sound or video"), (0, b"\x1aE\xdf\xa3", "sound or video"),
    (8, b"WAVE", "sound or video"), (8, b"AVI ", "sound or video"), (0, b"SQLite format 3\0", "a database"),
    (0, b"\x93NUMPY", "a pickle or model file"), (0, b"\x89HDF\r\n", "a pickle or model file"),
    (0, b"GGUF", "a pickle or model file"), (0, b"7z\xbc\xaf\x27\x1c", "an archive"),
    (0, b"Rar!\x1a\x07", "an archive"),
    (0, b"\xfd7zXZ\0", "an archive"), (0, b"BZh", "an archive"), (0, b"\x28\xb5\x2f\xfd", "an archive"),
    (0, b"BEGIN:VC", "a calendar or an address book"),
    (257, b"ustar", "an archive"), (0, b"\x7fELF", "a program"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)  # fmt: skip
SUFFIXES = {  # for bytes that are no text and say nothing else
    "a PDF": "pdf",
    "a Word document": "doc docx pages",
    "an e-book": "epub mobi azw azw3",
    "a spreadsheet": "xls xlsx numbers",
    "a picture": "bmp heic ico jpg jpeg png tif tiff webp",
    "sound or video": "aac avi m4a mkv mov mp3 mp4 mpg ogg wav wma wmv",
    "a pickle or model file": "bin ckpt h5 npy npz pickle pkl pt pth safetensors",
    "a database": "db mdb sqlite",
    "a program": "exe dll so",
}


def zip_kind(
    data: bytes,  # a zip archive
) -> str:  # a key of `AS_TEXT`
    "What a zip archive holds."
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except Exception:  # cut short or damaged: it begins as one all the same
        return "an archive"
    within = " ".join(names[:2000])
    kinds = {
        r"\bword/": "a Word document", r"\bxl/": "a spreadsheet", r"\bppt/": "a presentation",
        r"META-INF/container\.xml|\.opf\b": "an e-book", r"data\.pkl|\.npy\b": "a pickle or model file",
        r"(?s)(?=.*\bcontent\.xml\b).*\bmimetype\b": "an OpenDocument text",
    }  # fmt: skip
    kind = next((kind for pattern, kind in kinds.items() if re.search(pattern, within)), "an archive")
    return "a spreadsheet" if kind == "an OpenDocument text" and b"opendocument.spreadsheet" in data[:200] else kind


def file_kind(
    data: bytes,  # a file's bytes
    name: str,  # its name
) -> str | None:  # a key of `AS_TEXT`; None: it may be read
    "What a file is, if it is no script."
    if data[:4] in (b"PK\3\4", b"PK\5\6"):
        return zip_kind(data)
    head = data[:4096].lstrip() if data[:1].isspace() else data[:4096]
    for at, magic, kind in MAGIC:
        if head[at : at + len(magic)] == magic and (magic != b"BZh" or head[4:10] == b"1AY&SY"):
            if at != 8 or head[:4] == b"RIFF":
                return kind
    if data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5") and b"." in data[-64:]:
        return "a pickle or model file"
    if data[:4] == b"PAR1" or b"\0" not in data[:4096] or unmarked(data):
        return None
    if any(data.startswith(mark) for mark, _ in MARKS):
        return None
    suffix = name.lower().rpartition(".")[2]
    return next((kind for kind, known in SUFFIXES.items() if suffix in known.split()), None)


# %%
#| export
def gunzip(
    data: bytes,  # a gzip file
    name: str,  # its name, for the error
    most: int,  # bytes it may unpack to
) -> bytes:  # what was packed
    "Unpack, but not without end."
    parts: list[bytes] = []
    size = 0
    while data[:2] == b"\x1f\x8b":  # a file may have several members
        unpack = zlib.decompressobj(31)
        try:
            while not unpack.eof:
                part = unpack.decompress(data, 1 << 20)
                size, data = size + len(part), unpack.unconsumed_tail
                parts.append(part)
                require(part or data or unpack.eof, f"{name} is a gzip file that was cut short; fetch it again")
                require(
                    size <= most,
                    f"{name} unpacks to more than {most >> 20} MiB, too much for its size; unpack it first",
                )
        except zlib.error as e:
            raise ValueError(f"{name} is a damaged gzip file ({e}); fetch it again") from None
        data = unpack.unused_data
    return b"".join(parts)


def page_of_mail(
    data: bytes,  # a page as a browser saves it with its pictures (.mhtml), or a message
) -> bytes:  # the page alone, in UTF-8; empty if there is none
    "The text within a file that has several parts."
    head = data[:4000].lower()
    if b"mime-version:" not in head or b"content-type: multipart" not in head:
        return b""
    parts = [p for p in email.message_from_bytes(data, policy=email.policy.compat32).walk() if not p.is_multipart()]
    found = [p for kind in ("text/html", "text/plain") for p in parts if p.get_content_type() == kind]
    if not found:
        return b""
    text = found[0].get_payload(decode=True)
    if not isinstance(text, bytes):
        return b""
    try:
        return text.decode(found[0].get_content_charset("utf-8")).encode()
    except (LookupError, UnicodeError):
        return text


def open_bytes(
    data: bytes,  # a file's bytes
    name: str,  # its name
    most: int = 2 << 30,  # bytes that a packed file may unpack to
    ratio: int = 100,  # how many times its own size it may be, past 64 MiB: text is 3 to 10 times
) -> tuple:  # (bytes to be read, name without .gz, notes: a sentence each)
    "Unpack what is packed, and name what is no script."
    notes = []
    if data[:2] == b"\x1f\x8b":
        data = gunzip(data, name, min(most, max(64 << 20, ratio * len(data))))
        notes.append(f"{name} was unpacked with gzip")
        name = re.sub(r"(?i)\.gz$", "", name)
        require(data[:2] != b"\x1f\x8b", f"{name} is packed with gzip twice; unpack it and give the script inside")
    if page := page_of_mail(data):
        data, name = page, re.sub(r"(?i)\.(?:mht|mhtml|eml)$", "", name) + ".html" * (b"</" in page)
    kind = file_kind(data, name)
    require(kind is None, f"{name} is {kind}, which is not read here; {AS_TEXT.get(kind or '')}")
    return data, name, notes


# %% tags=["example"]
for data in (
    b"%PDF-1.7 ...",
    b"{\\rtf1\\ansi Marla: Hello.}",
    gzip.compress(bytes(100 << 20)),
    gzip.compress(b"Ada: On."),
):
    try:
        print(open_bytes(data, "tea.txt.gz"))
    except ValueError as e:
        print(e)

# %% tags=["check"]
assert open_bytes(gzip.compress(b"Ada: On."), "tea.txt.gz") == (
    b"Ada: On.",
    "tea.txt",
    ["tea.txt.gz was unpacked with gzip"],
)
assert (
    open_bytes(b"PAR1...", "lines.parquet")[0] == b"PAR1..." and open_bytes(b"BZh is a name: no", "x.txt")[1] == "x.txt"
)
for bad in (gzip.compress(bytes(100 << 20)), gzip.compress(tea.encode() * 9)[:-20], b"PK\3\4", b"GIF89a"):
    try:
        raise AssertionError(open_bytes(bad, "x.gz"))
    except ValueError:
        pass
