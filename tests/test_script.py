"Script files, good and bad."

import csv
import gzip
import io
import json
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data.formats import find_format, read_script
from simpsons_llm.data.lines import parse_lines, rename
from simpsons_llm.data.tables import COLUMNS, read_table, recover_row
from simpsons_llm.data.text import read_fountain, read_text
from simpsons_llm.machine.encodings import decode

ROW = dict(
    zip(
        COLUMNS,
        [
            "1",
            "1",
            "1",
            "Homer Simpson: (EATING) Mmm, pie.",
            "0",
            "true",
            "1",
            "1",
            "Homer Simpson",
            "Home",
            "Mmm, pie.",
            "mmm pie",
            "2",
        ],
    )
)


def table(*rows, names=COLUMNS):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([list(r.values()) if isinstance(r, dict) else r for r in rows])
    return out.getvalue()


@pytest.mark.parametrize("true,false,empty", [("true", "false", ""), ("TRUE", "FALSE", "NA"), ("True", "False", "")])
def test_both_public_flavours(true, false, empty):
    heading = {
        **{c: empty for c in COLUMNS},
        "episode_id": 1,
        "number": 0,
        "raw_text": "(Home: int. home - day)",
        "speaking_line": false,
        "raw_location_text": "Home",
    }
    script = read_table(table(heading, {**ROW, "speaking_line": true}), "x")
    assert {k: n for k, n in script.counts.items() if n} == {"spoken": 1, "heading": 1} and not script.rejected
    assert script.scenes[0].lines[0].text == "Mmm, pie." and script.scenes[0].location == "Home"


def test_rows_in_any_order_give_the_same_scenes(tmp_path):
    from pathlib import Path

    rows = Path(read_script("springfield").path).read_text(encoding="utf8").splitlines()
    (tmp_path / "x.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]), encoding="utf8")

    def plain(script):
        return [[(line.speaker, line.text) for line in s.lines] for s in script.scenes]

    assert plain(read_script(tmp_path / "x.csv")) == plain(read_script("springfield"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    row = {**ROW, "spoken_words": "Señor café, jalapeño!", "raw_text": "Homer Simpson: Señor café, jalapeño!"}
    (tmp_path / "x.csv").write_bytes(table(row).replace("\n", newline).encode(encoding))
    assert read_script(tmp_path / "x.csv").lines[0].text == "Señor café, jalapeño!"


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"episode_id": "one"}, "whole numbers"),
        ({"number": ""}, "whole numbers"),
        ({"speaking_line": "maybe"}, "true or false"),
        ({"raw_character_text": ""}, "no speaker"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(change, reason):
    script = read_table(table(ROW, {**ROW, "number": 2, **change}), "x")
    assert (
        len(script.rejected) == 1
        and reason in script.rejected[0].reason
        and script.rejected[0].row == 3
        and script.counts["spoken"] == 1
    )


def test_a_row_twice_is_rejected():
    script = read_table(table(ROW, ROW), "x")
    assert script.counts["spoken"] == 1 and "same episode_id and number as line 2" in script.rejected[0].reason


def test_an_id_twice_is_noted():
    script = read_table(table(ROW, {**ROW, "number": 2}), "x")
    assert script.counts["spoken"] == 2 and "1 rows repeat the id" in script.notes[0]


def test_embedded_newlines_stay_on_one_line_and_rows_keep_their_line_numbers():
    script = read_table(table({**ROW, "spoken_words": "Two\nlines"}, {**ROW, "number": "x"}), "x")
    assert script.lines[0].text == "Two lines" and script.rejected[0].row == 4


@pytest.mark.parametrize(
    "text,says",
    [
        ("", "empty"),
        ("a,b\n1,2", "no column that is known as speaker or text"),
        (table(), "no spoken line"),
        (table({**ROW, "speaking_line": "false"}), "no spoken line"),
        ("[[1, 2", "not valid JSON"),
        ("[]", "no spoken line"),
        ('[{"p": "x"}]', "no known kind"),
        ("PK\x03\x04\0\0", "an archive"),
        ("{", "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, text, says):
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(ValueError, match=says) as e:
        read_script(tmp_path / "x.csv")
    assert "x.csv" in str(e.value) and "\n" not in str(e.value)


def test_json_in_both_spellings_and_context_that_is_not_learned(tmp_path):
    records = [
        {"p": "Moe: Closed.\nBarney: Since when?", "c": "Moe", "l": "Moe: Since you."},
        {"p": "", "c": "Homer", "l": "Hello?"},
    ]
    for keys in (("p", "c", "l"), ("instruction", "input", "output")):
        (tmp_path / "x.json").write_text(json.dumps([dict(zip(keys, r.values())) for r in records]))
        a, b = read_script(tmp_path / "x.json").scenes
        assert [(line.speaker, line.text, line.learn) for line in a.lines] == [
            ("Moe", "Closed.", False),
            ("Barney", "Since when?", False),
            ("Moe", "Since you.", True),
        ]
        assert [line.text for line in b.lines] == ["Hello?"]


def test_records_of_one_speaker_come_back_as_whole_scenes(tmp_path):
    "Other people's lines lie between: contexts overlap, and no line may land in two scenes."
    from simpsons_llm.data.prepare import samples_of

    script = read_script("springfield")
    (tmp_path / "x.json").write_text(json.dumps(samples_of(script.scenes, ["Homer Simpson"], context_lines=10)))
    again = read_script(tmp_path / "x.json")
    assert [line.text for line in again.lines if line.learn] == [
        line.text for line in script.lines if line.speaker == "Homer Simpson"
    ]
    assert max(Counter(line.text for line in again.lines).values()) == max(
        Counter(line.text for line in script.lines).values()
    )


def test_an_unclosed_quote_costs_at_most_its_own_row():
    text = table(*[{**ROW, "number": n} for n in range(4)]).splitlines()
    # the quote is never closed, yet the row is certain
    text[2] = '1,1,1,Homer Simpson: Pie.,0,true,1,1,Homer Simpson,Home,"Pie.,pie,1'
    script = read_table("\n".join(text), "x")
    assert script.counts["spoken"] == 4 and script.recovered == [3] and not script.rejected
    # what was typed is not what is said
    text[2] = '1,1,1,Homer Simpson: Cake.,0,true,1,1,Homer Simpson,Home,"Pie.,pie,1'
    script = read_table("\n".join(text), "x")
    assert (
        script.counts["spoken"] == 3
        and len(script.rejected) == 1
        and script.rejected[0].row == 3
        and "an unclosed quote?" in script.rejected[0].reason
    )


@pytest.mark.parametrize(
    "row,text",
    [
        (
            '9,1,7,"Homer Simpson: The sign says "closed", Marge.",0,true,2,1,Homer Simpson,Home,'
            '"The sign says "closed", Marge.",the sign says closed marge,5',
            'The sign says "closed", Marge.',
        ),
        (
            '9,1,7,"Homer Simpson: The sign says \\"closed\\".",0,true,2,1,Homer Simpson,Home,'
            '"The sign says \\"closed\\".",the sign says closed,4',
            'The sign says "closed".',
        ),
        (
            "9,1,7,Homer Simpson: (SIGHS) Pie, cake, and more.,0,true,2,1,Homer Simpson,Home,"
            "Pie, cake, and more.,pie cake and more,4",
            "Pie, cake, and more.",
        ),
        (
            '9,1,7,"Homer Simpson: Pie, cake.",0,true,2,1,"Homer Simpson","Home, Sweet Home",Pie, cake.,pie cake,2',
            "Pie, cake.",
        ),
        (
            '9,1,7,"Homer Simpson: A, "b", c, "d, e, f", g, h.",0,TRUE,2,1,Homer Simpson,Home,'
            '"A, "b", c, "d, e, f", g, h.",a b c d e f g h,8',
            'A, "b", c, "d, e, f", g, h.',
        ),
        ("9,1,7,(Home, int. kitchen),0,false,,1,,Home,,,", None),
        ('9,1,7,"(Home: "int. kitchen", day)",0,false,,1,,Home,,,', None),
    ],
)
def test_a_damaged_row_is_recovered_when_it_is_certain(row, text):
    script = read_table("\n".join([",".join(COLUMNS), *table(ROW).splitlines()[1:], row]), "x")
    assert script.recovered == [3] and not script.rejected and script.account()["kept"] == 1
    if text:
        assert script.lines[1].text == text and script.lines[1].location.startswith("Home")


@pytest.mark.parametrize(
    "row",
    [
        # the two texts differ
        "9,1,7,Homer Simpson: Pie, cake.,0,true,2,1,Homer Simpson,Home,Pie, pizza.,pie pizza,2",
        # no speaker in front
        "9,1,7,Pie, cake.,0,true,2,1,Homer Simpson,Home,Pie, cake.,pie cake,2",
        # neither true nor false
        "9,1,7,Homer Simpson: Pie, cake.,0,maybe,2,1,Homer Simpson,Home,Pie, cake.,pie cake,2",
        # where does the location end?
        "9,1,7,(Home),0,false,,1,,Home, Sweet, Home,,,",
    ],
)
def test_a_damaged_row_is_rejected_in_doubt(row):
    assert recover_row(row) is None or row.count("maybe")
    script = read_table("\n".join([",".join(COLUMNS), *table(ROW).splitlines()[1:], row]), "x")
    assert script.counts["spoken"] == 1 and [r.row for r in script.rejected] == [3]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_other_programs(separator):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows([COLUMNS, list(ROW.values())])
    assert read_table(out.getvalue(), "x").lines[0].text == "Mmm, pie."


def test_directions_are_kept_on_request(tmp_path):
    (tmp_path / "a.csv").write_text(table(ROW))
    (tmp_path / "a.txt").write_text("Homer: (EATING) Mmm.")
    (tmp_path / "a.fountain").write_text("INT. HOME\n\nHOMER\n(eating)\nMmm.\n")
    for name, want in (("a.csv", "(EATING) Mmm, pie."), ("a.txt", "(EATING) Mmm."), ("a.fountain", "(eating) Mmm.")):
        assert (
            read_script(tmp_path / name, keep_directions=True).lines[0].text == want
            and "(" not in read_script(tmp_path / name).lines[0].text
        )


def test_a_heading_begins_a_scene_even_in_the_same_place():
    heading = {
        **{c: "" for c in COLUMNS},
        "raw_text": "(Home: int. home - later)",
        "episode_id": 1,
        "speaking_line": "false",
        "raw_location_text": "Home",
    }
    rows = [{**ROW, "number": n, "spoken_words": f"Line {n}."} for n in (1, 2, 4, 5)]
    script = read_table(table(*rows[:2], {**heading, "number": 3}, *rows[2:]), "x")
    assert [[line.text for line in s.lines] for s in script.scenes] == [
        ["Line 1.", "Line 2."],
        ["Line 4.", "Line 5."],
    ] and [s.index for s in script.scenes] == [0, 1]


def test_blank_rows_end_a_scene_and_where_each_row_has_one_two_do():
    def texts(text):
        return [[line.text for line in s.lines] for s in read_text(text, "x").scenes]

    assert texts("A: 1.\nB: 2.\n\nA: 3.\nB: 4.\n\n\nA: 5.\nB: 6.") == [["1.", "2."], ["3.", "4."], ["5.", "6."]]
    assert texts("A: 1.\n\nB: 2.\n\nA: 3.\n\n\nB: 4.\n\nA: 5.") == [["1.", "2.", "3."], ["4.", "5."]]


def test_rows_of_a_screenplay_keep_their_numbers_behind_comments():
    text = (
        "INT. HOME\n\nMARGE\nOne.\n\n/* three\nrows\nare gone */\n\nHOMER\nTwo.\n\n[[a note\nover two rows]]\n\nMARGE\n"
        "Three.\n"
    )
    lines = read_fountain(text, "x").lines
    assert [(line.text, text.split("\n")[line.row - 1][:3]) for line in lines] == [
        ("One.", "One"),
        ("Two.", "Two"),
        ("Three.", "Thr"),
    ]


def joined(text, where):
    return rename(read_text(text, where))


def test_text_rows():
    script = joined(
        "[Home]\nMarge: One.\n   and two.\n\nBart (O.S.): (beat) Three.\n(Bart leaves.)\nno speaker here\n"
        "Lisa: (SIGHS)\nCh. 6: Four: five.\n[Episode 4]\n12:30: Noon.",
        "x",
    )
    assert [(line.episode, line.location, line.speaker, line.text) for line in script.lines] == [
        (1, "Home", "Marge", "One. and two."),
        (1, "Home", "Bart", "Three."),
        (1, "Home", "Ch. 6", "Four: five."),
    ]
    assert [len(s.lines) for s in script.scenes] == [1, 2] and [r.row for r in script.rejected] == [7, 11]
    kinds = {"spoken": 3, "heading": 2, "direction": 1, "wordless": 1, "continuation": 1}
    assert {k: n for k, n in script.counts.items() if n} == kinds


def test_fountain_marks():
    script = read_fountain(
        "Title: T\nAuthor: A\n\n# Episode 3\n\n= a synopsis\n\n.SNIPER SCOPE\n\n@McBain\n~La la\nla.\n\n!SHOUTING\n\n"
        "INT./EXT. CAR - DAY #4#\n\n/* cut\n\nBART\nGone.\n*/\n\nBART (CONT'D) ^\n(beat)\n"
        "**Cool** [[a note]] \\*car\\*.\n\n> THE END <\n",
        "x",
    )
    assert [(line.episode, line.location, line.speaker, line.text) for line in script.lines] == [
        (3, "Sniper Scope", "McBain", "La la la."),
        (3, "Car", "Bart", "Cool *car*."),
    ]


@pytest.mark.parametrize(
    "name,text,kind",
    [
        ("a.json", "{}", "json"),
        ("a.txt", '[{"p": ""}]', "json"),
        ("a.txt", "[Home]\nBart: A.", "text"),
        ("a.fountain", "BART\nHi.", "fountain"),
        ("a.txt", "INT. HOME\n\nBART\nHi.", "fountain"),
        ("a.txt", ",".join(COLUMNS), "table"),
        ("a.csv", "a,b", "table"),
        ("a", "Bart: The INT. is here.", "text"),
        ("a.tsv", "\t".join(COLUMNS), "table"),
    ],
)
def test_what_a_file_is(name, text, kind):
    assert find_format(name, text) == kind


def test_a_speaker_whose_name_holds_a_colon_comes_back_from_samples(tmp_path):
    from simpsons_llm.data.prepare import samples_of

    rows = [
        {**ROW, "number": n, "raw_character_text": who, "raw_text": f"{who}: Line {n}.", "spoken_words": f"Line {n}."}
        for n, who in enumerate(["Robot: Two", "Bart", "Robot: Two", "Bart"])
    ]
    script = read_table(table(*rows), "x")
    (tmp_path / "x.json").write_text(json.dumps(samples_of(script.scenes)))
    again = read_script(tmp_path / "x.json")
    assert len(again.scenes) == 1 and [(line.speaker, line.text) for line in again.lines] == [
        (line.speaker, line.text) for line in script.lines
    ]


def test_a_name_with_a_colon_inside_what_is_said():
    assert parse_lines("Kent Brockman: Tonight: a shoe: where is it?") == [
        ("Kent Brockman", "Tonight: a shoe: where is it?")
    ]


GOOD = {
    "csv": table(
        *[
            {
                **ROW,
                "id": n,
                "number": n,
                "raw_text": f'Homer Simpson: (EATING) Line {n}, "quoted", and more.',
                "spoken_words": f'Line {n}, "quoted", and more.',
                "normalized_text": f"line {n} quoted and more",
            }
            for n in range(8)
        ]
    ),
    "txt": (
        "[Home]\nMarge: One.\n  and two.\n\n[Episode 2]\n[Moe's Tavern]\nMoe: (WIPING) Three.\nBart: Four: five.\n"
        "(Bart leaves.)\nMoe: Six.\n"
    ),
    "fountain": (
        "Title: T\n\n# Episode 1\n\nINT. HOME - DAY\n\nAn action.\n\nMARGE\n(beat)\nOne *two*.\nThree.\n\n"
        "/* gone */\n\n@McBain\nFour. [[note]]\n\nCUT TO:\n"
    ),
    "json": json.dumps(
        [
            {"p": "", "c": "Marge", "l": "One."},
            {"p": "Marge: One.", "c": "Bart", "l": "Two."},
            {"instruction": "Marge: One.\nBart: Two.", "input": "Marge", "output": "Three."},
        ],
        indent=0,
    ),
    "jsonl": "\n".join(json.dumps({"p": f"Marge: {n}.", "c": "Bart", "l": f"Line {n}."}) for n in range(4)),
}
TURNS = [(("Ada", "Otto B", "Juno")[i % 3], f"Cup {i} is here, I think.") for i in range(12)]
ASKED = [{"role": ("user", "assistant")[i % 2], "content": f"Cup {i}, say?"} for i in range(4)]
TIMES = [f"00:00:{2 * i:02}.000 --> 00:00:{2 * i + 1:02}.900" for i in range(12)]
PARAGRAPH = '<Paragraph Type="{}"><Text>{}</Text></Paragraph>\n'.format
GOOD |= {
    "named.csv": table(*[(1 + i // 6, *t) for i, t in enumerate(TURNS)], names=("episode", "speaker", "text")),
    "messages.jsonl": "\n".join(json.dumps({"messages": ASKED}) for _ in range(4)),
    "sharegpt.json": json.dumps(
        [{"conversations": [{"from": "human", "value": "On?"}, {"from": "gpt", "value": "No."}]}] * 4
    ),
    "play.txt": "\n\n".join(f"{w.upper()}\n{t}\nAnd so on." for w, t in TURNS),
    "screenplay.txt": "INT. LAB\n\n" + "\n\n".join(f"{' ' * 22}{w.upper()}\n{' ' * 11}{t}" for w, t in TURNS),
    "fdx": "<FinalDraft><Content>\n"
    + "".join(PARAGRAPH("Character", w.upper()) + PARAGRAPH("Dialogue", t) for w, t in TURNS)
    + "</Content></FinalDraft>",
    "srt": "\n\n".join(f"{i}\n{c.replace('.', ',')}\n{w}: {t}" for i, (c, (w, t)) in enumerate(zip(TIMES, TURNS), 1)),
    "vtt": "WEBVTT\n\n" + "\n\n".join(f"{c}\n<v {w}>{t}" for c, (w, t) in zip(TIMES, TURNS)),
    "ass": "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, "
    "MarginV, Effect, Text\n"
    + "\n".join(f"Dialogue: 0,0:00:{i:02}.00,0:00:{i:02}.90,Default,{w},0,0,0,,{t}" for i, (w, t) in enumerate(TURNS)),
    "whatsapp.txt": "\n".join(f"12/03/23, 21:{i:02} - {w}: {t}" for i, (w, t) in enumerate(TURNS)),
    "telegram.json": json.dumps(
        {"name": "x", "messages": [
            {"id": i, "type": "message", "date": f"2023-03-12T21:{i:02}:00", "from": w, "text": t}
            for i, (w, t) in enumerate(TURNS)
        ]},
        indent=1,
    ),
    "telegram.html": "<!DOCTYPE html><body>\n"
    + "\n".join(
        f'<p class="date">1:00</p><div class="from_name">{w}</div><div class="text">{t}</div>' for w, t in TURNS
    ),
    "page.html": "<html><body>\n" + "\n".join(f"<p><b>{w}:</b> {t}</p>" for w, t in TURNS),
    "table.html": "<table><tr><th>Character<th>Line</tr>\n"
    + "\n".join(f"<tr><td>{w}</td><td>{t}</td></tr>" for w, t in TURNS),
}  # fmt: skip
PACKED = ("parquet", "txt.gz")


def packed(kind):
    "Bytes of a file that is no text."
    if kind == "parquet":
        out = io.BytesIO()
        pd.DataFrame(TURNS, columns=["speaker", "text"]).to_parquet(out)
        return out.getvalue()
    return gzip.compress("\n".join(f"{w}: {t}" for w, t in TURNS).encode(), mtime=0)


NASTY = [
    '"',
    ",",
    "\n",
    "\r\n",
    "'",
    ":",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\",
    "\t",
    "\0",
    "\u2028",
    "\ufeff",
    "\ud83d\ude00",
    "NA",
    "true",
    "*/",
    "/*",
    "1",
    "-1",
    "9" * 30,
    " ",
    "\x0c",
    "#",
    "=",
    ">",
    "@",
    "\\ud800",
]


def mutated(draw, text):
    "A text with up to five pieces dropped, doubled, inserted or moved."
    for _ in range(draw(st.integers(1, 5))):
        i, j = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        j = min(j, i + draw(st.sampled_from([1, 2, 10, 200])))
        nasty = draw(st.sampled_from(NASTY))
        text = draw(
            st.sampled_from(
                [
                    text[:i] + text[j:],
                    text[:i] + nasty + text[i:],
                    text[:i] + text[i:j] * 2 + text[j:],
                    text[:i] + nasty + text[j:],
                    text[j:] + text[:i] + text[i:j],
                ]
            )
        )
    return text


def mutated_bytes(draw, data):
    "The same for bytes."
    for _ in range(draw(st.integers(1, 4))):
        i, n = draw(st.integers(0, len(data))), draw(st.sampled_from([0, 1, 4, 100]))
        data = data[:i] + draw(st.binary(max_size=4)) + data[i + n :]
    return data


@pytest.mark.parametrize("kind", [*GOOD, *PACKED])
@settings(max_examples=110, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_mutated_file_gives_a_full_account_or_one_sentence(tmp_path_factory, kind, data):
    "2,310 damaged files: every row counts once and untouched ones are kept, or the file is refused in one sentence."
    if kind in PACKED:
        raw = mutated_bytes(data.draw, packed(kind))
    else:
        codec = data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
        raw = mutated(data.draw, GOOD[kind]).encode(codec, "replace")
        if data.draw(st.integers(0, 9)) == 0:
            raw = raw[: len(raw) // 2] + bytes([data.draw(st.integers(128, 255))]) + raw[len(raw) // 2 :]
    path = tmp_path_factory.getbasetemp() / f"mutated.{kind}"
    path.write_bytes(raw)
    try:
        script = read_script(path)
    except ValueError as e:
        assert str(e) and len(str(e).splitlines()) == 1 and len(str(e)) < 1500, str(e)
        assert "mutated" in str(e), str(e)
        return
    if kind in PACKED:
        a, text = script.account(), ""
    else:
        a, text = script.account(), decode(raw)[0]
    assert a["rows"] == a["kept"] + a["recovered"] + a["rejected"] and a["kept"] >= 0 and script.lines
    assert sum(script.counts.values()) == a["kept"] + a["recovered"] and all(
        line.text and "\n" not in line.text for line in script.lines
    )
    if script.format in ("subtitles", "chat") and not kind.endswith(("json", "html")) and text:
        assert a["rows"] == len(text.removesuffix("\n").split("\n"))
    if kind == "messages.jsonl" and script.format == "json" and text.count("\n") > 1:
        assert a["rows"] == sum(bool(r.strip()) for r in text.split("\n"))
    if script.format in ("text", "play", "screenplay") and text:
        assert a["rows"] == sum(bool(r.strip()) for r in text.split("\n"))
    if script.format == "json" and kind in ("json", "jsonl"):
        assert script.counts["spoken"] == sum(line.learn for line in script.lines)
    if script.format == "table" and kind == "csv":
        assert script.counts["spoken"] == len(script.lines) and len({line.row for line in script.lines}) == len(
            script.lines
        )
        whole, rows = set(GOOD[kind].splitlines()[1:]), text.split("\n")
        used = {line.row for line in script.lines} | {r.row for r in script.rejected if "same episode" in r.reason}
        header = next(i for i, r in enumerate(rows) if r.strip())
        for i, r in enumerate(rows):
            if i > header and r in whole:
                assert i + 1 in used, (i + 1, r)
