"Files as people have them: encodings, packed files, subtitles, chats, pages and Final Draft."

import codecs
import csv
import gzip
import html
import io
import json
import pickle
import re
import time
import zipfile
from email.message import EmailMessage

import pandas as pd
import pysubs2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data.formats import (
    find_pause,
    html_rows,
    html_to_text,
    looks_like_chat,
    looks_like_fdx,
    looks_like_html,
    looks_like_subtitles,
    read_chat,
    read_fdx,
    read_script,
    read_subtitles,
)
from simpsons_llm.data.lines import Reading
from simpsons_llm.machine.encodings import decode, open_bytes

WORDS = {
    "French": "Ada: Très bien, ma chère. Où as-tu caché la théière ?\nOtto: Là-bas, à côté du piano.\n",
    "German": "Ada: Schön, daß du Tee für uns gekocht hast.\nOtto: Natürlich. Äpfel gibt es übrigens auch.\n",
    "Spanish": "Ada: ¿Dónde está la tetera, señor?\nOtto: Mañana la traerán, quizás. ¡Adiós!\n",
    "Swedish": "Ada: Var är min kittel på båten?\nOtto: Jag såg den där förra året.\n",
    "English": "Ada: “Don’t touch that kettle,” she said – and Zoë’s café shut.\nOtto: It’s the end…\n",
    "Polish": "Ada: Gdzie jest mój czajnik? Zażółć to, proszę.\nOtto: Był tutaj, obok łóżka, dziś też.\n",
    "Czech": "Ada: Kde je můj čajník, příteli?\nOtto: Ještě včera tu byl, že ano.\n",
    "Russian": "Ада: Кто унёс мой чайник?\nОтто: Его здесь никогда не было.\n",
    "Greek": "Άντα: Πού πήγε η τσαγιέρα μου;\nΌθων: Ήταν εδώ πριν από λίγο.\n",
    "Hebrew": "עדה: איפה הקומקום שלי?\nאוטו: הוא היה כאן אתמול.\n",
    "Arabic": "آدا: أين الإبريق يا صديقي؟\nأوتو: كان هنا قبل قليل.\n",
    "Japanese": "エイダ：わたしのやかんはどこですか。\nオットー：さっきまでここにありました。\n",
    "Chinese": "艾达：我的水壶到哪里去了？\n奥托：它刚才还在这里。\n",
    "Taiwan": "艾達：我的水壺到哪裡去了？\n奧托：它剛才還在這裡。\n",
    "Korean": "에이다: 내 주전자가 어디 있어요?\n오토: 조금 전에 여기 있었어요.\n",
}
WRITTEN = [(w, c) for w in ("French", "German", "Spanish", "Swedish", "English") for c in ("cp1252", "mac_roman")]
WRITTEN += [(w, c) for w in ("Polish", "Czech") for c in ("cp1250", "iso8859_2")]
WRITTEN += [
    ("Russian", "cp1251"),
    ("Russian", "koi8_r"),
    ("Greek", "cp1253"),
    ("Hebrew", "cp1255"),
    ("Arabic", "cp1256"),
]
WRITTEN += [("Japanese", "shift_jis"), ("Japanese", "euc_jp"), ("Chinese", "gb18030"), ("Chinese", "gbk")]
WRITTEN += [("Taiwan", "big5"), ("Korean", "euc_kr")]
PLAIN = "Ada: Where is the kettle, and who put it in the garden?\nOtto: {} was there when I came.\n"


@pytest.mark.parametrize("often", [1, 300])
@pytest.mark.parametrize("language,codec", WRITTEN)
def test_encodings(language, codec, often):
    text = WORDS[language] * often
    assert decode(text.encode(codec), "x")[0] == text


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("language", WORDS)
def test_unicode(language, codec):
    text, _, notes = decode(WORDS[language].replace("\n", "\r\n").encode(codec), "x")
    assert text == WORDS[language] and not notes


@pytest.mark.parametrize("codec", ["cp1252", "mac_roman", "cp1250"])
@pytest.mark.parametrize(
    "word", "café Zoë Müller naïve DON’T ’tis CAFÉ £5 Señor Çelik Élise “Go” 20° à Ñ ½ … –".split()
)
def test_a_letter_or_two_is_right_or_asked(word, codec):
    text = PLAIN.format(word)
    try:
        data = text.encode(codec)
    except UnicodeEncodeError:
        return
    try:
        assert decode(data, "x")[0] == text
    except ValueError as e:
        assert "--encoding" in str(e) and "\n" not in str(e)
    assert decode(data, "x", codec)[0] == text


def test_one_letter_is_enough():
    for word in ("café", "Zoë", "don’t", "Müller", "“Go”"):
        assert decode(PLAIN.format(word).encode("cp1252"))[0] == PLAIN.format(word)
    for word in ("café", "don’t", "naïve"):
        assert decode(PLAIN.format(word).encode("mac_roman"))[0] == PLAIN.format(word)


def test_one_bad_byte_leaves_the_rest():
    data = ("Ada: Don’t.\n" * 500).encode() + b"Otto: The caf\xe9.\n" + "Ada: It’s shut.\n".encode()
    text, codec, notes = decode(data, "x")
    assert codec == "utf-8" and text.count("Don’t.") == 500 and "The café." in text and "Don’t" not in notes[0]
    assert "row 501" in notes[0] and "café" in notes[0]
    text, codec, notes = decode(("Ада: Да.\n" * 50).encode() + "Отто: Я.\n".encode("cp1251"), "x")
    assert codec == "utf-8" and text.endswith("Отто: Я.\n") and notes
    cut = decode("Ada: It’s".encode()[:-2] + b"\n" + "’".encode(), "x")[0]
    assert "â" not in cut and "�" in cut


def test_decode_refuses_in_a_sentence():
    calls = [
        (b"\0\1\2\3", None, "binary"),
        (bytes(range(256)) * 9, None, "binary"),
        (b"caf\xe9", "utf-8", "row 1"),
        (b"x", "klingon", "not known"),
        (b"x", "zlib", "not known"),
        (b"\xff\xfeA", "utf-16", "is not text"),
        ("Otto: Era aici lângă fereastră.".encode("cp1250"), None, "--encoding cp1250"),
    ]
    for data, encoding, words in calls:
        with pytest.raises(ValueError, match=words) as e:
            decode(data, "x.txt", encoding)
        assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_decode_is_quick():
    for data in (b"\xe9" * 3_000_000, "Ada: Très bien.\n".encode("cp1252") * 300_000, "é".encode() * 10**6 + b"\xe9"):
        start = time.perf_counter()
        try:
            decode(data, "x")
        except ValueError as e:
            assert "\n" not in str(e)
        assert time.perf_counter() - start < 10


def zipped(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name in names:
            z.writestr(name, "x")
    return data.getvalue()


def test_what_is_no_script_is_named():
    named = {
        b"%PDF-1.4 x": "PDF.*pdftotext",
        b"{\\rtf1 x}": "RTF",
        b"\x89PNG\r\n\x1a\nx": "picture",
        b"\xff\xd8\xff\xe0": "picture",
        b"RIFF1234WEBPVP8 ": "picture",
        b"RIFF1234WAVEfmt ": "sound",
        b"\0\0\0\x20ftypisom": "video",
        b"ID3\4": "sound",
        b"SQLite format 3\0": "database",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": r"\.doc",
        b"7z\xbc\xaf\x27\x1c": "archive",
        b"\xfd7zXZ\0": "archive",
        b"\x28\xb5\x2f\xfd": "archive",
        b"Rar!\x1a\x07\0": "archive",
        pickle.dumps(["Ada"]): "pickle",
        zipped("word/document.xml"): "Word",
        zipped("xl/workbook.xml"): "spreadsheet",
        zipped("mimetype", "content.xml"): "OpenDocument",
        zipped("mimetype", "META-INF/container.xml"): "e-book",
        zipped("model/data.pkl"): "pickle or model",
        zipped("tea.txt"): "archive.*unpack",
    }
    for data, words in named.items():
        with pytest.raises(ValueError, match=words):
            open_bytes(data, "tea")
    with pytest.raises(ValueError, match="e-book"):
        open_bytes(b"BOOK\0MOBI", "tea.mobi")
    for data in (
        b"PAR1x",
        b"",
        "Ada: Où ?".encode("utf-16"),
        "Ада: да\n".encode("utf-16-le"),
        b"BZhang: no.",
        b"<html>",
    ):
        assert open_bytes(data, "tea.doc") == (data, "tea.doc", [])


def test_gzip():
    text = "".join(f"Ada: Cup {i}.\n" for i in range(1000)).encode()
    data, name, notes = open_bytes(gzip.compress(text), "tea.csv.GZ")
    assert (data, name, len(notes)) == (text, "tea.csv", 1)
    assert open_bytes(gzip.compress(text) + gzip.compress(text), "x.gz")[0] == text * 2
    start = time.perf_counter()
    for bad in (gzip.compress(bytes(400 << 20), 1), gzip.compress(text)[:-30], gzip.compress(text)[:9], b"\x1f\x8bxx"):
        with pytest.raises(ValueError) as e:
            open_bytes(bad, "x.gz")
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="twice"):
        open_bytes(gzip.compress(gzip.compress(text)), "x.gz")
    assert time.perf_counter() - start < 10


def full(script, text):
    "Every row of the file is in the account once."
    rows = script.account()
    assert rows["rows"] == len(text.removesuffix("\n").split("\n")) == rows["kept"] + rows["rejected"]


@pytest.mark.parametrize("kind", ["srt", "vtt", "ass", "ssa"])
@pytest.mark.parametrize("field", [False, True])
def test_a_hundred_captions_come_back(kind, field):
    if field and kind in ("srt", "vtt"):
        return
    subs, want = pysubs2.SSAFile(), []
    for i in range(100):
        who, begin = ("Ada", "Otto", "Juno")[i % 3], i * 2000 + i // 10 * 30_000
        want.append((who, f"Cup {i} is here, I think."))
        said = f"Cup {i} is here,\\NI think."
        subs.append(pysubs2.SSAEvent(begin, begin + 1900, said if field else f"{who}: {said}", name=who * field))
    text = subs.to_string(kind)
    script = read_subtitles(text, "x")
    assert [(x.speaker, x.text) for x in script.lines] == want and len(script.scenes) == 10
    assert all("Cup" in text.split("\n")[x.row - 1] for x in script.lines) and looks_like_subtitles(text)
    full(script, text)


def srt(*captions, gap=0.1):
    rows = []
    for i, words in enumerate(captions):
        a, b = (time.strftime("%H:%M:%S", time.gmtime(t)) for t in (i * 2, i * 2 + 1))
        rows.append(f"{i + 1}\n{a},000 --> {b},900\n{words}\n")
    return "\n".join(rows)


def said(script):
    return [(x.speaker, x.text) for x in script.lines]


def test_who_speaks_in_subtitles():
    text = srt(
        "[SPEAKER_00]: Tea?",
        "(SPEAKER_01) No.",
        ">> ADA: <i>Yes,\nplease.</i>",
        "- OTTO: Why?\n- So.",
        "{\\an8}[bell\nrings]",
    )
    assert said(read_subtitles(text, "x")) == [
        ("SPEAKER_00", "Tea?"),
        ("SPEAKER_01", "No."),
        ("ADA", "Yes, please."),
        ("OTTO", "Why?"),
        ("Someone", "So."),
    ]
    full(read_subtitles(text, "x"), text)
    listen = srt("Ada: Tea?", "Otto: No.", "Ada: Why?", "Otto: Listen: it boils.", "Ada: At 10:30?")
    assert said(read_subtitles(listen, "x"))[3:] == [("Otto", "Listen: it boils."), ("Ada", "At 10:30?")]
    nobody = read_subtitles(srt("Listen: it boils.", "Is it on?", "42", "♪ la la ♪", "(sighs) Fine &amp; good."), "x")
    assert said(nobody)[-1] == ("Someone", "Fine & good.") and nobody.counts["direction"] == 1
    assert nobody.speakers == {"Someone": 4} and any("no character can be learned" in n for n in nobody.notes)
    kept = read_subtitles(srt("ADA: (sighs) Fine."), "x", Reading(keep_directions=True))
    assert said(kept) == [("ADA", "(sighs) Fine.")]


def test_webvtt():
    text = (
        "WEBVTT - tea\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE not said\nat all\n\nfirst\n"
        "00:01.000 --> 00:02.000 align:start\n<v.loud Ada Quill>Is it on?</v>\n<v Otto>Off.\n\n"
        "00:00:02.500 --> 00:00:03.000\n<v Ada Quill>Oh, <b>no</b><00:00:02.700><c> really</c>.\n"
    )
    script = read_subtitles(text, "x")
    assert said(script) == [("Ada Quill", "Is it on?"), ("Otto", "Off."), ("Ada Quill", "Oh, no really.")]
    assert script.counts["note"] == 6
    full(script, text)


def test_rolling_captions_are_said_once():
    cue = "00:00:0{}.000 --> 00:00:0{}.000\n{}\n\n"
    rows = [
        cue.format(1, 2, "where is"),
        cue.format(2, 3, "where is\nthe kettle"),
        cue.format(3, 4, "the kettle\nI ask"),
    ]
    text = "WEBVTT\n\n" + "".join(rows)
    script = read_subtitles(text, "x")
    assert " ".join(x.text for x in script.lines) == "where is the kettle I ask" and script.counts["continuation"] == 2
    full(script, text)
    twice = read_subtitles(srt("ADA: No.", "ADA: No."), "x")
    assert len(twice.lines) == 2


def test_pauses():
    assert find_pause([0.1] * 9 + [60] + [0.1] * 9 + [45], 4, 10) > 4 and find_pause([1.0] * 20, 4, 10) == 10
    text = srt(*["ADA: On."] * 9)
    lengths = {"auto": [9], "1s": [9], "3": [3, 3, 3], "0.05s": [1] * 9, "2h": [9]}
    for told, want in lengths.items():
        assert [len(s.lines) for s in read_subtitles(text, "x", Reading(scene_break=told)).scenes] == want
    with pytest.raises(ValueError, match="has times"):
        read_subtitles(text, "x", Reading(scene_break="blanks"))


CHATS = {
    "12/03/23, 21:0{} - {}: {}": "android",
    "[12/03/2023, 21:0{}:11] {}: {}": "iphone",
    "[12.03.23, 21:0{}:11] {}: {}": "german",
    "3/14/23, 9:0{}\u202fPM - {}: {}": "american",
    "\u200e[2023-03-12, 9:0{}:11\u202fp.m.] ~ {}: {}": "iso",
    "2023/3/12 下午9:0{} - {}: {}": "taiwan",
    "[21:0{}] {}: {}": "plain",
    "[21:0{}:11] <{}> {}": "irc",
    "21:0{} <@{}> {}": "irssi",
}


@pytest.mark.parametrize("shape", CHATS, ids=CHATS.values())
def test_chats(shape):
    rows = [shape.format(i, ("Ada", "Otto")[i % 2], f"Cup {i}: (a small one) :)") for i in range(6)]
    text = "\n".join(rows[:3] + ["and then", "", "more"] + rows[3:]) + "\n"
    script = read_chat(text, "x")
    want = [(("Ada", "Otto")[i % 2], f"Cup {i}: (a small one) :)" + " and then more" * (i == 2)) for i in range(6)]
    assert said(script) == want and len(script.scenes) == 1 and looks_like_chat(text)
    assert [x.row for x in script.lines] == [1, 2, 3, 7, 8, 9]
    full(script, text)


def test_what_nobody_typed_in_a_chat():
    rows = [
        "Messages are encrypted.",
        "Ada: On?",
        "Otto: <Medien ausgeschlossen>",
        "Ada: Diese Nachricht wurde gelöscht.",
    ]
    rows += [
        "Otto: IMG-2.jpg (file attached)",
        "Ada: image omitted",
        "Otto left",
        'Otto changed the name to "Tea: now"',
        "Ada: 👍",
    ]
    text = "\n".join(f"12/03/23, 21:{i:02} - {row}" for i, row in enumerate(rows))
    script = read_chat(text, "x")
    assert script.speakers == {"Ada": 1} and script.counts["note"] == 7 and script.counts["wordless"] == 1
    full(script, text)
    phone = "[12/03/2023, 21:02:11] Tea Club: \u200eMensajes cifrados.\n[12/03/2023, 21:02:12] Ada: Sí.\n"
    assert said(read_chat(phone, "x")) == [("Ada", "Sí.")]
    days = "\n".join(f"{d}/03/23, 21:0{i} - Ada: Cup {i}." for d in (12, 13, 14) for i in range(3))
    assert [len(s.lines) for s in read_chat(days, "x").scenes] == [3, 3, 3]


def telegram(n=100):
    rows = [
        {
            "id": i,
            "type": "message",
            "date": f"2023-03-{1 + i // 10:02}T21:{i % 10:02}:00",
            "from": ("Ada", "Otto")[i % 2],
        }
        | {"text": f"Cup {i}." if i % 3 else ["Cup ", {"type": "bold", "text": f"{i}."}]}
        for i in range(n)
    ]
    rows.insert(2, {"id": n, "type": "service", "date": "2023-03-01T21:02:00", "actor": "Ada", "text": ""})
    return json.dumps({"name": "Tea", "type": "private_chat", "messages": rows}, indent=1)


def test_telegram():
    text = telegram()
    script = read_chat(text, "result.json")
    assert said(script) == [(("Ada", "Otto")[i % 2], f"Cup {i}.") for i in range(100)] and len(script.scenes) == 10
    assert script.account()["rows"] == 101 and script.counts["note"] == 1 and looks_like_chat(text)
    assert text.split("\n")[script.lines[50].row - 1].strip() == '"id": 50,'
    for bad in ("{}", '{"messages": {}}', "{" + '"a":{' * 100_000, "{x}"):
        with pytest.raises(ValueError) as e:
            read_chat(bad, "x.json")
        assert "\n" not in str(e.value)


def test_saved_pages():
    page = """<!DOCTYPE html><html><head><title>Tea</title><style>b { }</style></head><body><nav>Home
    About</nav><script>var x = "<p>";</script><h1>Tea</h1>
<p><b>Ada:</b> Isn&rsquo;t it
on? <i>(sighs)</i></p><p><strong>Otto:</strong> No.<br>Not yet.</p><!-- hidden -->
<table><tr><td>Ada</td><td>Oh.</td></tr></table><pre>     OTTO
  Well.</pre></body></html>"""
    text, hidden, rows = html_rows(page)
    want = "Tea\n\nAda: Isn’t it on? <i>(sighs)</i>\n\nOtto: No.\nNot yet.\n\nAda: Oh.\n\n     OTTO\n  Well.\n"
    assert (text, hidden) == (want, 6) == html_to_text(page) and looks_like_html(page)
    assert rows == [2, 2, 3, 4, 4, 4, 4, 5, 5, 5, 6]
    assert html_to_text("<p><i>a<br>b</i> c</p><p>d")[0] == "<i>a</i>\n<i>b</i> c\n\nd\n"


@pytest.mark.parametrize(
    "piece", ["<", "<!--", "<a ", "&", "<div>", "<i>", "<![CDATA[", "<script>", '<p a="', "<?", "</a ", "<pre>\n"]
)
def test_pages_take_no_time(piece):
    start = time.perf_counter()
    html_to_text(piece * 20_000)
    assert time.perf_counter() - start < 5


def fdx(*paragraphs):
    rows = "\n".join(f'<Paragraph Type="{kind}"><Text>{text}</Text></Paragraph>' for kind, text in paragraphs)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<FinalDraft Version="5"><Content>\n{rows}\n</Content></FinalDraft>\n'
    )


def test_final_draft():
    parts, want = [], []
    for i in range(100):
        if i % 10 == 0:
            parts.append(("Scene Heading", f"INT. ROOM {i} - DAY"))
        parts += [
            ("Character", ("ADA", "OTTO BRANDT (V.O.)", "McPIKE")[i % 3]),
            ("Parenthetical", "(low)"),
            ("Dialogue", f"Cup {i}."),
        ]
        parts += [("Dialogue", "More &amp; more.")] * (i % 2) + [("Action", "A bell.")]
        want.append((("Ada", "Otto Brandt (V.O.)", "McPIKE")[i % 3], f"Cup {i}." + " More & more." * (i % 2)))
    script = read_fdx(fdx(*parts), "x")
    assert said(script) == want and len(script.scenes) == 10 and script.scenes[1].location == "INT. ROOM 10 - DAY"
    assert script.account()["rows"] == len(parts) and script.counts["continuation"] == 50 and looks_like_fdx(fdx())
    kept = read_fdx(fdx(*parts), "x", Reading(keep_directions=True, scene_break="25"))
    assert kept.lines[0].text == "(low) Cup 0." and len(kept.scenes) >= 4


def test_final_draft_hidden_and_double():
    text = fdx(
        ("Scene Heading", "INT. A"), ("Dialogue", "Lost."), ("Character", "ADA"), ("Dialogue", "(beat)"), ("Shot", "ON")
    )
    double = (
        "<DualDialogue>"
        + re.search(r"<Paragraph.*</Paragraph>", fdx(("Character", "OTTO"), ("Dialogue", "Ho.")), re.S)[0]
    )
    summary = "<SceneProperties><Summary><Paragraph><Text>Hidden.</Text></Paragraph></Summary></SceneProperties>"
    text = text.replace(
        "</Content>", f"<Paragraph>{double}</DualDialogue></Paragraph><Paragraph>{summary}</Paragraph></Content>"
    )
    text = text.replace(
        "</FinalDraft>", "<TitlePage><Content><Paragraph><Text>T</Text></Paragraph></Content></TitlePage></FinalDraft>"
    )
    script = read_fdx(text, "x")
    assert said(script) == [("Otto", "Ho.")] and script.rejected[0].reason == "speech without a name"
    assert script.counts["note"] == 2 and script.account()["rows"] == 11


def test_final_draft_refuses():
    whole = fdx(("Character", "ADA"), ("Dialogue", "On."))
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    for bad, words in (
        (whole[:-40], "row"),
        (whole.replace("<FinalDraft", bomb + "<FinalDraft", 1), "entities"),
        ("<a>" * 100_000, "deep"),
        ("<FinalDraft/>", "Paragraph"),
        ("Ada: On.", "XML"),
    ):
        with pytest.raises(ValueError, match=words) as e:
            read_fdx(bad, "x.fdx")
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="names its scenes"):
        read_fdx(whole, "x", Reading(scene_break="5m"))


WROTE = [(("Ada", "Otto B", "Juno")[i % 3], f"Cup {i} is here, I think.", i * 60 + i // 12 * 40_000) for i in range(24)]


def wrote(shape, clock="%d/%m/%Y, %H:%M"):
    "A row of each message."
    return (
        "\n".join(shape.format(w, t, time.strftime(clock, time.gmtime(1_700_000_000 + s))) for w, t, s in WROTE) + "\n"
    )


def dumped(make, **around):
    "A chat as JSON: what `make` has for each message."
    rows = [
        make(w, t, 1_700_000_000 + s, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_700_000_000 + s)))
        for w, t, s in WROTE
    ]
    return json.dumps({**around, "messages": rows} if around else rows, indent=1)


EXPORTS = {
    "french": wrote("{2} - {0} : {1}", "%d/%m/%Y à %H:%M"),
    "finnish": wrote("{2} - {0}: {1}", "%d.%m.%Y klo %H.%M"),
    "korean": wrote("{2}, {0} : {1}", "%Y년 %m월 %d일 %H:%M"),
    "tabs": wrote("{2}\t{0}\t{1}", "%Y-%m-%d %H:%M:%S") + "2024-01-01 10:00:00\t-->\tx (~u@h) has joined\n",
    "zoom": wrote("{2} From {0} to Everyone:\n\t{1}", "%H:%M:%S"),
    "zoom of old": wrote("{2}\t From  {0} : {1}", "%H:%M:%S"),
    "slack": wrote("{0}  {2}\n{1}", "%H:%M"),
    "discord": wrote("{0} — {2}\n{1}\n", "%m/%d/%Y %H:%M"),
    "voices": wrote("{0} ({2}):\n{1}\n", "%H:%M:%S"),
    "telegram.json": dumped(
        lambda w, t, s, d: {"id": s, "type": "message", "date": d, "from": w, "text": [t[:5], {"text": t[5:]}]},
        name="x",
        type="y",
    ),
    "discord.json": dumped(
        lambda w, t, s, d: {
            "id": "7",
            "type": "Default",
            "timestamp": d + "+00:00",
            "content": t,
            "author": {"id": "1", "name": w},
        },
        guild={},
    ),
    "slack.json": dumped(
        lambda w, t, s, d: {
            "type": "message",
            "user": "U1",
            "text": t,
            "ts": f"{s}.1",
            "user_profile": {"real_name": w},
        }
    ),
    "teams.json": dumped(
        lambda w, t, s, d: {
            "id": "1",
            "createdDateTime": d + "Z",
            "from": {"user": {"displayName": w}},
            "body": {"content": t},
        }
    ),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_of_chats_the_whole_way(tmp_path, kind):
    path = tmp_path / (kind if "." in kind else "x.txt")
    path.write_text(EXPORTS[kind], encoding="utf8")
    script = read_script(path)
    assert said(script) == [(w, t) for w, t, _ in WROTE] and script.format == "chat"
    assert len(script.scenes) == 2 and not script.rejected


def test_messenger_begins_with_the_newest_and_writes_bytes_as_letters(tmp_path):
    def message(who, text, seconds):
        who, text = (x.encode().decode("latin-1") for x in (who, text + " Café – ☕"))
        return {"sender_name": who, "timestamp_ms": (1_700_000_000 + seconds) * 1000, "content": text}

    data = {"participants": [], "messages": [message(*x) for x in WROTE[::-1]], "title": "x"}
    (tmp_path / "x.json").write_text(json.dumps(data))
    script = read_script(tmp_path / "x.json")
    assert said(script) == [(w, t + " Café – ☕") for w, t, _ in WROTE] and len(script.scenes) == 2


def test_a_changed_subject_is_no_speech():
    rows = wrote("{2} - {0}: {1}") + 2 * "14/11/2023, 22:13 - Ada changed the subject from “a: b” to “c”\n"
    assert said(read_chat(rows, "x")) == [(w, t) for w, t, _ in WROTE]


@pytest.mark.parametrize("shape", ["[{}] {}", "({}) {}"])
def test_names_in_brackets_before_most_captions(shape):
    script = read_subtitles(srt(*[shape.format(w, t) for w, t, _ in WROTE], "[Bell] Who?", "(sighs) No."), "x")
    assert said(script)[:24] == [(w, t) for w, t, _ in WROTE] and script.speakers["Someone"] == 2


BESIDE = "<nav><a>Home</a></nav><p>We use cookies.</p>{}<footer><p>About us, and so on.</p></footer>"
PAGES = {
    "table": "<table><tr><th>Character<th>Line</tr>"
    + "".join(f"<tr><td>{w}</td>\n<td>{t}<br></td></tr>" for w, t, _ in WROTE)
    + "</table>",
    "wide table": "<table><tr><th></th><th>Time<th>Character<th>Line</tr>"
    + "".join(f"<tr><th>{s}</th><td>{s}<td>{w}<td>{t}" for w, t, s in WROTE)
    + "</table>",
    "list": "<dl>" + "".join(f"<dt>{w}</dt>\n<dd>{t}</dd>\n" for w, t, _ in WROTE) + "</dl>",
    "spans": "".join(f'<div><span class="who">{w}</span><span class="what">{t}</span></div>' for w, t, _ in WROTE),
    "divisions": "".join(
        f'<div class="m"><div class="from_name">\n{w}</div>\n<div class="text"><p>{t}</div></div>' for w, t, _ in WROTE
    ),
    "dated": "".join(
        f'<div><div class="userpic"><div>{w[0]}</div></div><div class="date details">12:0{s % 7}</div>'
        f'<div class="from_name">{w}</div><div class="text">{t}</div></div>'
        for w, t, s in WROTE
    ),
}


@pytest.mark.parametrize("kind", PAGES)
def test_pages_the_whole_way(tmp_path, kind):
    (tmp_path / "x.html").write_text(f"<!DOCTYPE html><html><body>{BESIDE.format(PAGES[kind])}</body></html>")
    script = read_script(tmp_path / "x.html")
    assert said(script) == [(w, t) for w, t, _ in WROTE] and script.format == "html"


@pytest.mark.parametrize("name,codec", [("windows-1252", "cp1252"), ("iso-8859-1", "cp1252"), ("koi8-r", "koi8_r")])
def test_a_page_says_its_encoding(name, codec):
    text = f"<meta http-equiv=x content='text/html; charset={name}'><p>Ada: " + (
        "Café…" if codec == "cp1252" else "Чай"
    )
    assert decode(text.encode(codec), "x") == (text, codecs.lookup(codec).name, [])


def test_a_page_saved_with_its_pictures(tmp_path):
    message = EmailMessage()
    message.set_content("see the page")
    message.add_alternative(BESIDE.format("".join(f"<p><b>{w}:</b> {t} Café</p>" for w, t, _ in WROTE)), subtype="html")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png")
    (tmp_path / "x.mhtml").write_bytes(message.as_bytes())
    assert said(read_script(tmp_path / "x.mhtml")) == [(w, t + " Café") for w, t, _ in WROTE]


def test_what_only_has_colons_is_no_script(tmp_path):
    for text in ("BEGIN:VCALENDAR\nSUMMARY: Tea\n", "BEGIN:VCARD\nFN: Ada\n"):
        (tmp_path / "x").write_text(text * 20)
        with pytest.raises(ValueError, match="calendar or an address book"):
            read_script(tmp_path / "x")


ASS = pysubs2.SSAFile()
ASS.events = [pysubs2.SSAEvent(i * 2000, i * 2000 + 1900, f"Cup {i}.", name="Ada") for i in range(6)]
CHAT = "\n".join(f"12/03/23, 21:0{i} - Ada: Cup {i}." for i in range(6))
SEEDS = {
    "srt": (read_subtitles, srt(*[f"ADA: Cup {i}.\nGood." for i in range(6)])),
    "ass": (read_subtitles, ASS.to_string("ass")),
    "vtt": (read_subtitles, ASS.to_string("vtt").replace("Cup", "<v Ada>Cup")),
    "chat": (read_chat, CHAT),
    "telegram": (read_chat, telegram(4)),
    "fdx": (
        read_fdx,
        fdx(("Scene Heading", "INT. A"), ("Character", "ADA"), ("Parenthetical", "(low)"), ("Dialogue", "On.")),
    ),
    "html": (
        None,
        "<html><body><p><b>Ada:</b> On? <i>low</i><br>Yes.</p><table><tr><td>Otto<td>Off.</table><pre>x\n</pre>",
    ),
    "bytes": (decode, WORDS["French"] + WORDS["Russian"]),
}
JUNK = [
    "-->",
    "\n\n",
    "[",
    "<v ",
    "00:00:01,000 --> 00:00:02,000",
    "Dialogue: ",
    "</Text>",
    "<Paragraph>",
    '"',
    "99999999999",
]
JUNK += ["\u200e", "- ", "{", "}", "\0", "♪", "é", "<", "&#x;", "1:", "٣", "12/03/23, 21:0", "\x85", "\ud800"]
CHANGE = st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 5, 60]), st.sampled_from([*JUNK, ""]))


@pytest.mark.parametrize("kind", SEEDS)
def test_mutated(kind):
    reader, seed = SEEDS[kind]

    @settings(max_examples=300, derandomize=True, deadline=None, database=None)
    @given(st.lists(CHANGE, min_size=1, max_size=6))
    def check(changes):
        text = seed
        for where, cut, junk in changes:
            at = int(where * len(text))
            text = text[:at] + junk + text[at + cut :]
        try:
            if kind == "html":
                got, _, rows = html_rows(text)
                assert len(rows) == got.count("\n") and rows == sorted(rows)
            elif kind == "bytes":
                decode(text.encode("utf-8", "surrogatepass"), "x")
            else:
                script = reader(text, "x")
                rows = script.account()
                assert rows["rows"] == rows["kept"] + rows["rejected"] and all(
                    x.row > 0 and x.text for x in script.lines
                )
                if kind in ("srt", "ass", "vtt", "chat") and text.lstrip()[:1] != "{":
                    full(script, text)
        except ValueError as e:
            assert not isinstance(e, UnicodeError) and "\n" not in str(e) and len(str(e)) < 500

    check()


HUNDRED = [(("Ada", "Otto B", "Juno")[i % 3], f'Cup {i}; is it "here", or — nowhere?') for i in range(100)]
FRAME = pd.DataFrame([(1 + i // 25, w, t) for i, (w, t) in enumerate(HUNDRED)], columns=["episode", "speaker", "text"])


def as_page(frame):
    return f"<!DOCTYPE html><html><body>{frame.to_html()}</body></html>".encode()


def as_mail(frame):
    message = EmailMessage()
    message.set_content("see the page")
    message.add_alternative("".join(f"<p><b>{w}:</b> {html.escape(t)}</p>" for w, t in HUNDRED), subtype="html")
    return message.as_bytes()


def as_fdx(frame):
    pytest.importorskip("screenplain")
    from screenplain.export import fdx
    from screenplain.parsers import fountain

    rows = [f"INT. LAB {i // 25}\n\n" * (i % 25 == 0) + f"{w.upper()}\n{t}\n\n" for i, (w, t) in enumerate(HUNDRED)]
    out = io.StringIO()
    fdx.to_fdx(fountain.parse(io.StringIO("".join(rows))), out)
    return out.getvalue().encode()


def as_screenplay(frame):
    pytest.importorskip("screenplain")
    from screenplain.export import html as page
    from screenplain.parsers import fountain

    out = io.StringIO()
    page.convert(fountain.parse(io.StringIO("".join(f"{w.upper()}\n{t}\n\n" for w, t in HUNDRED))), out)
    return out.getvalue().encode()


def as_parquet(frame):
    out = io.BytesIO()
    frame.to_parquet(out)
    return out.getvalue()


WRITERS = {
    "x.parquet": as_parquet,
    "comma.csv": lambda f: f.to_csv().encode(),
    "excel.csv": lambda f: f.to_csv(sep=";", index=False, lineterminator="\r\n").encode("utf-8-sig"),
    "sep.csv": lambda f: ("sep=;\r\n" + f.to_csv(sep=";", index=False, lineterminator="\r\n")).encode("utf-8-sig"),
    "old.csv": lambda f: f.to_csv(sep=";", index=False, lineterminator="\r\n").encode("cp1252"),
    "unicode.txt": lambda f: f.to_csv(sep="\t", index=False, lineterminator="\r\n").encode("utf-16"),
    "floats.csv": lambda f: f.astype({"episode": float}).to_csv(decimal=",", sep=";").encode(),
    "bar.csv": lambda f: f.to_csv(sep="|", quoting=csv.QUOTE_ALL).encode(),
    "lines.jsonl": lambda f: f.to_json(orient="records", lines=True).encode(),
    "split.json": lambda f: f.to_json(orient="split").encode(),
    "table.json": lambda f: f.to_json(orient="table").encode(),
    "columns.json": lambda f: f.to_json().encode(),
    "index.json": lambda f: f.to_json(orient="index").encode(),
    "records.json": lambda f: f.to_json(orient="records", indent=2, force_ascii=False).encode(),
    "packed.csv.gz": lambda f: gzip.compress(f.to_csv().encode()),
    "page.html": as_page,
    "page.eml": as_mail,
    "x.fdx": as_fdx,
    "screenplay.html": as_screenplay,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_hundred_lines_of_public_programs_come_back(tmp_path, name):
    (tmp_path / name).write_bytes(WRITERS[name](FRAME))
    script = read_script(tmp_path / name)
    assert [(w.title(), t) for w, t in said(script)] == [(w.title(), t) for w, t in HUNDRED]
    assert not script.rejected and script.doubts == []
    assert name in ("page.eml", "x.fdx", "screenplay.html") or {x.episode for x in script.lines} == {1, 2, 3, 4}


@pytest.mark.parametrize("parts", [None, ("train", "test")])
def test_a_folder_of_datasets_comes_back(tmp_path, parts):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_pandas(FRAME)
    half = {name: whole.select(range(50 * i, 50 * i + 50)) for i, name in enumerate(parts or ())}
    (datasets.DatasetDict(half) if parts else whole).save_to_disk(str(tmp_path / "d"))
    assert said(read_script(tmp_path / "d")) == HUNDRED


@pytest.mark.parametrize("name", ["x.csv", "x.txt", "x.html", "x.json"])
def test_wide_long_and_deep_files_take_no_time(tmp_path, name):
    whole = {
        "x.csv": "speaker,text,"
        + ",".join(f"c{i}" for i in range(10_000))
        + "\n"
        + ("Ada,On," + "," * 9_999 + "\n") * 9,
        "x.txt": "Ada: On.\nOtto: " + "word " * 2_000_000,
        "x.html": "<html><body>" + "<div>" * 20_000 + "<p>Ada: On.</p><p>Otto: Off.</p>",
        "x.json": '[{"who": "Ada", "line": "On."}, {"who": "Otto", "line": "' + "word " * 4_000_000 + '"}]',
    }[name]
    (tmp_path / name).write_text(whole)
    start = time.perf_counter()
    try:
        assert read_script(tmp_path / name).lines
    except ValueError as e:
        assert "nobody typed" in str(e) and len(str(e).splitlines()) == 1
    assert time.perf_counter() - start < 8


def test_a_name_as_long_as_a_page_is_no_name():
    chat = json.dumps({"messages": [{"type": "message", "date": "2023-01-01", "from": "A" * 9**6, "text": "On."}]})
    assert [len(x.rejected) for x in (read_chat(chat, "x"), read_fdx(fdx(("Character", "A" * 999)), "x"))] == [1, 1]


def test_hidden_rows_of_a_page_are_in_the_account(tmp_path):
    said = "".join(f"<p>Ada: Is it on, {i}?</p><p>Otto: It was on, {i}.</p>" for i in range(6))
    hidden = "<script>\nvar a = 1;\nvar b = 2;\n</script>"
    (tmp_path / "x.html").write_text(f"<html><body>{said}</body></html>")
    (tmp_path / "y.html").write_text(f"<html><body>{hidden}{said}</body></html>")
    plain, whole = (read_script(tmp_path / n) for n in ("x.html", "y.html"))
    assert whole.counts["note"] > plain.counts["note"] and whole.speakers == plain.speakers == {"Ada": 6, "Otto": 6}
