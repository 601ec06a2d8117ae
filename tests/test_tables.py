"Tables, Parquet, records and film dialogues."

import csv
import io
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Reading
from simpsons_llm.data.tables import (
    COLUMNS,
    looks_like_movie_lines,
    looks_like_records,
    looks_like_table,
    read_movie_lines,
    read_parquet,
    read_records,
    read_rows,
    read_table,
)

TALK = [
    ("Ada", "Is it on, then?"),
    ("Otto", "It was on."),
    ("Ada", 'Then "hum" a bit.'),
    ("Juno", "I hear it; do you?"),
]


def written(rows, separator=",", end="\n"):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end).writerows(rows)
    return out.getvalue()


def said(script):
    return [(line.speaker, line.text) for line in script.lines]


def shape(script):
    return [(s.episode, [line.text for line in s.lines]) for s in script.scenes]


def refusal(read, *given):
    "The one sentence with which something is refused."
    with pytest.raises(ValueError) as e:
        read(*given)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 700 and "Traceback" not in str(e.value)
    return str(e.value)


NAMES = [
    ("Season", "Episode", "Character", "Line"),
    ("season", "episode", "speaker", "line_text"),
    ("season no.", "episode no.", "name", "line"),
    ("Season", "EpisodeNo", "Character", "Dialogue"),
    ("season", "episode_number", "author", "quote"),
    ("Season", "Episode", "Name", "Sentence"),
    ("book_num", "chapter_num", "character", "character_words"),
    ("SEASON", "EPISODE", "Speaker", "Utterance"),
    ("season", "episode_id", "raw_character_text", "spoken_words"),
    ("Saison", "Épisode", "Personnage", "Réplique"),
    ("Temporada", "Episódio", "Personagem", "Fala"),
    ("Stagione", "Episodio", "Personaggio", "Battuta"),
    ("Sezon", "Odcinek", "Postać", "Kwestia"),
    ("Сезон", "Серия", "Персонаж", "Реплика"),
    ("季", "集", "角色", "台词"),
    ("season_number", "episode_number", "character_name", "script_text"),
    ("season", "episode.id", "line.speaker", "line.text"),
    ("Series", "ep", "who", "what"),
    ("season", "episode", "spoken_by", "spoken_text"),
]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_columns_of_public_tables_are_guessed(names, separator):
    rows = [names, *[(1 + i // 2, f"{1 + i % 2}.0", *row) for i, row in enumerate(TALK)]]
    script = read_table(written(rows, separator), "x.csv")
    assert said(script) == TALK and [line.episode for line in script.lines] == [101, 102, 201, 202]
    assert f"speaker = {names[2]}, text = {names[3]}" in script.notes[0] and not script.rejected


def test_a_standard_table_with_a_separator_that_excel_names_and_ids_that_pandas_made():
    rows = [
        [n, "1.0", f"{n}.0", f"{who}: {what}", 0, "true", 1, 1, who, "Lab", what, "", 1]
        for n, (who, what) in enumerate(TALK)
    ]
    for begin in ("", "sep=;\n", "SEP=;  \n"):
        script = read_table(begin + written([COLUMNS, *rows], ";"), "x.csv")
        assert said(script) == TALK and [line.number for line in script.lines] == [0, 1, 2, 3]
        assert script.lines[0].row == 2 + bool(begin) and {line.location for line in script.lines} == {"Lab"}


LONG = [(1 + i // 12, ("Ada", "Otto", "Juno")[i % 3], f'Cup {i}, "so to say".') for i in range(24)]
HEAD = ("episode", "speaker", "text")


@pytest.mark.parametrize(
    "text,notes",
    [
        ("All lines of my show,,\nexported in May,,\n,,\n" + written([HEAD, *LONG]), 3),
        ("# source: fans\n" + written([HEAD, *LONG], ";"), 1),
        (written([HEAD, *LONG[:12], HEAD, *LONG[12:]]), 1),
        (
            "speaker,text\n"
            + written([r[1:] for r in LONG[:12]])
            + "speaker,text\n"
            + written([r[1:] for r in LONG[12:]]),
            1,
        ),
        (written([HEAD, *[(i, *r) for i, r in enumerate(LONG, 1)]]), 0),  # R numbers rows without a name
        (written([HEAD, *LONG]).replace('""', '\\"'), 0),
        ("\n".join("\t".join(map(str, r)) for r in [HEAD, *LONG]).replace("Cup", '"Cup'), 0),
        (written([HEAD, *LONG]).replace(",", ", ").replace(",  ", ", "), 0),
        (
            written([("ep", "Dialogue ID", "Character", "Dialogue"), *[(r[0], i, *r[1:]) for i, r in enumerate(LONG)]]),
            0,
        ),
        (
            written([("n", "episode", "who", "line"), *[(i % 12, *r) for i, r in enumerate(LONG)]]).replace(
                "n,", "order,", 1
            ),
            0,
        ),
        (written([("episode", "line"), *[(e, f"{who}: {what}") for e, who, what in LONG]]), 0),
        (written([("Show", "episode", "who", "line"), *[("AB"[e - 1], 1, *r) for e, *r in LONG]]), 0),
        (written([HEAD, *LONG, (2, "NaN", "Lost."), (2, "Ada", "NULL"), (2, "None", "x")]), 0),
    ],
)
def test_habits_of_public_tables(tmp_path, text, notes):
    (tmp_path / "x.csv").write_text(text, encoding="utf8")
    script = read_script(tmp_path / "x.csv")
    want = [(who, what.replace("Cup", '"Cup') if '\t"Cup' in text else what) for _, who, what in LONG]
    assert [(who, what.replace(", ", ",").replace(",", ", ")) for who, what in said(script)] == want
    assert script.counts["note"] == notes
    told = any(word in text[:200].lower() for word in ("episode", "ep,"))
    assert len({s.episode for s in script.scenes}) == 1 + told and script.doubts == []


def test_a_table_of_r_has_blanks_between_and_row_names_without_a_name():
    rows = "\n".join(f'"{i}" "{who}" "{what.replace(chr(34), chr(34) * 2)}"' for i, (who, what) in enumerate(TALK))
    script = read_table('"character" "dialogue"\n' + rows, "x.txt")
    assert said(script) == TALK and looks_like_table('"character" "dialogue"\n' + rows)


def test_scenes_of_a_table():
    rows = [("scene", "speaker", "text"), ("1", "A", "a."), ("", "B", "b."), ("2", "A", "c."), ("1", "A", "d.")]
    assert shape(read_table(written(rows), "x")) == [(1, ["a.", "b."]), (1, ["c."]), (1, ["d."])]
    rows = [("place", "speaker", "text"), ("Lab", "A", "a."), ("Lab", "B", "b."), ("Pier", "A", "c.")]
    assert [s.location for s in read_table(written(rows), "x").scenes] == ["Lab", "Pier"]
    bare = "speaker,text\nA,a.\nB,b.\n,\nA,c.\n,[Scene: the pier]\nB,d.\n"
    assert shape(read_table(bare, "x")) == [(1, ["a.", "b."]), (1, ["c."]), (1, ["d."])]
    long = written([("speaker", "text"), *[("A", f"row {i}.") for i in range(50)]])
    assert "--scene-break" in read_table(long, "x").notes[-1] and len(read_table(long, "x").scenes) == 1
    assert [len(s.lines) for s in read_table(long, "x", Reading(scene_break="20")).scenes] == [20, 20, 10]


@pytest.mark.parametrize(
    "cells,want",
    [
        (["1", "2", "2", "3"], [1, 2, 2, 3]),
        (["S01E01", "S01E02", "s2e1", "2x03"], [101, 102, 201, 203]),
        (["Episode 1", "Episode 2", "Ep. 3", "4"], [1, 2, 3, 4]),
        (["The Kettle", "", "The Bus", "The Kettle"], [1, 1, 2, 1]),
        (["17-18", "17-18", "19", "20"], [17, 17, 19, 20]),
    ],
)
def test_episodes_are_numbers(cells, want):
    script = read_table(written([("episode", "speaker", "text"), *[(c, *t) for c, t in zip(cells, TALK)]]), "x")
    assert sorted(line.episode for line in script.lines) == sorted(want) and not script.rejected
    assert any("have names" in n for n in script.notes) == ("The Bus" in cells)


def test_a_cell_that_is_no_number_among_numbers_is_rejected():
    rows = [("episode", "speaker", "text"), *[(c, *t) for c, t in zip("12?2", TALK)]]
    script = read_table(written(rows), "x")
    assert [r.row for r in script.rejected] == [4] and script.account()["rows"] == 4 and len(script.lines) == 3


def test_seasons_alone_and_seasons_with_names():
    rows = [("Season", "Character", "Line"), *[(c, *t) for c, t in zip("1122", TALK)]]
    assert [line.episode for line in read_table(written(rows), "x").lines] == [1, 1, 2, 2]
    rows = [("Season", "Episode", "Character", "Line"), *[(*c, *t) for c, t in zip(["w1", "w2", "f1", "f2"], TALK)]]
    assert [line.episode for line in read_table(written(rows), "x").lines] == [101, 102, 201, 202]


def test_rows_are_sorted_by_a_number_and_stay_where_it_is_none():
    def read(numbers, scenes):
        rows = [("scene", "number", "speaker", "text"), *[(s, n, *t) for s, n, t in zip(scenes, numbers, TALK)]]
        return read_table(written(rows), "x")

    assert [line.text for line in read("4321", "1111").lines] == [t for _, t in TALK[::-1]]
    assert [line.text for line in read("2121", "1122").lines] == [TALK[i][1] for i in (1, 0, 3, 2)]
    same = read("1111", "1111")
    assert said(same) == TALK and "repeats its numbers" in same.notes[-1]
    assert "holds no numbers" in read("abcd", "1111").notes[-1]


def test_what_a_row_of_named_columns_can_be():
    rows = [
        ("speaker", "text", "kind", "deleted"),
        ("Ada", "(HUMMING) On.", "", "FALSE"),
        ("Ada", "(HUMMING)", "", ""),
        ("", "(The kettle falls.)", "", ""),
        ("", "Nobody says this.", "", ""),
        ("Ada", "Cut this.", "", "TRUE"),
        ("Ada", "pours tea", "action", ""),
        ("", "INT. PIER", "heading", ""),
        ("Otto", "Two\nrows.", "dialogue", "0"),
        ("Scene", "A lab by night.", "", ""),
    ]
    script = read_table(written(rows), "x")
    assert said(script) == [("Ada", "On."), ("Otto", "Two rows.")] and len(script.scenes) == 2
    want = {"spoken": 2, "wordless": 1, "direction": 2, "note": 1, "heading": 2}
    assert {k: v for k, v in script.counts.items() if v} == want and [r.row for r in script.rejected] == [5]
    assert read_table(written(rows), "x", Reading(keep_directions=True)).lines[0].text == "(HUMMING) On."


def test_columns_are_named_by_a_person():
    table = "Nr;Wer;Was\n1;Ada;Is it on?\n2;Otto;No."
    for columns in ({"speaker": "Wer", "text": "Was"}, {"speaker": "wer", "text": "WAS", "order": "Nr"}):
        assert said(read_table(table, "x", Reading(columns=columns))) == [("Ada", "Is it on?"), ("Otto", "No.")]
    bare = "Ada,Is it on?\nOtto,No.\n"
    assert "--columns speaker=1,text=2" in refusal(read_table, bare, "x.csv")
    placed = Reading(columns={"speaker": "1", "text": "2"})
    assert said(read_table(bare, "x", placed)) == [("Ada", "Is it on?"), ("Otto", "No.")]
    assert read_table(bare, "x", placed).lines[0].row == 1
    assert len(read_table("speaker,text\n" + bare, "x", placed).lines) == 2
    fixed = read_table("Line\tYear\nOn.\t1\nOff.\t2", "x", Reading(columns={"speaker": "=Otto"}))
    assert said(fixed) == [("Otto", "On."), ("Otto", "Off.")]
    digits = "1,Ada,On?\n2,Otto,No.\n"
    by_place = Reading(columns={"order": "1", "speaker": "2", "text": "3"})
    assert said(read_table(digits, "x", by_place)) == [("Ada", "On?"), ("Otto", "No.")]
    unnamed = Reading(columns={"speaker": "0", "text": "1"})
    assert said(read_table("0,1\nAda,On?\nOtto,No.\n", "x", unnamed)) == [("Ada", "On?"), ("Otto", "No.")]
    no_season = Reading(columns={"season": ""})
    two = "season,episode,speaker,text\n1,1,Ada,On.\n2,2,Ada,Off."
    assert [line.episode for line in read_table(two, "x", no_season).lines] == [1, 2]


@pytest.mark.parametrize(
    "table,columns,says",
    [
        ("a,b\n1,2", {}, "known as speaker or text, its first row is: a, b"),
        ("speaker,b\n1,2", {}, "known as text"),
        ("a,b\n1,2", {"hero": "a"}, "columns says hero; expected speaker, text"),
        ("a,b\n1,2", {"speaker": "c", "text": "b"}, "has no column 'c' for speaker; its first row is: a, b"),
        ("a,b\n1,2", {"speaker": "3", "text": "b"}, "has no column '3'"),
        ("x" * 2_000_000, {}, "first row of 2,000,000 letters"),
        ("", {}, "first row of 0 letters"),
        (",".join(f"c{i}" for i in range(5000)), {}, "c11, ..."),
    ],
)
def test_a_table_that_cannot_be_read_says_which_columns_there_are(table, columns, says):
    assert says in refusal(read_table, table, "x.csv", Reading(columns=columns))


def test_short_and_long_rows_of_named_columns():
    typed = 'speaker,text\nAda,On.\nOtto,Well, no, or yes.\nOtto,Off.\nJuno, Jr.,Hum.\nAda,"On", off, on.\n'
    script = read_table(typed, "x")
    assert said(script)[1] == ("Otto", "Well, no, or yes.") and script.recovered == [3]
    assert [r.row for r in script.rejected] == [5, 6] and script.account()["rows"] == 5
    table = "speaker,text,note\nAda,On.\nAda,On.,,,\nAda,On, and off,x,y\nAda\nOtto,Fine.,x\n"
    script = read_table(table, "x")
    assert [line.row for line in script.lines] == [2, 3, 6] and [r.row for r in script.rejected] == [4, 5]


def test_an_unclosed_quote_in_named_columns_costs_one_row():
    rows = ["speaker,text", *[f'Ada,"Row {i}, there."' for i in range(9)]]
    rows[4] = 'Ada,"Never closed'
    script = read_table("\n".join(rows), "x")
    assert script.account()["rows"] == 9 and len(script.lines) == 8 and [r.row for r in script.rejected] == [5]


@pytest.mark.parametrize("header", [",".join(COLUMNS), "speaker,text"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_row_of_three_hundred_million_letters_is_one_rejected_row(header, quote):
    good = "1,1,1,Ada: On.,0,true,1,1,Ada,Lab,On.,on,1" if "id" in header else "Ada,On."
    begin = time.perf_counter()
    script = read_table("\n".join([header, good, "Ada," + quote + "x" * 30_000_000, good.replace("1,1", "2,2")]), "x")
    assert len(script.lines) == 2 and "30,000,00" in script.rejected[0].reason and time.perf_counter() - begin < 5
    assert len(script.rejected[0].text) <= 120


def test_a_name_of_a_million_letters_is_rejected():
    rows = [("speaker", "text"), ("A" * 900_000, "On."), ("Ada", "On."), ("Ada", "x" * 900_000)]
    assert [r.row for r in read_table(written(rows), "x").rejected] == [2, 4]
    chat = [{"messages": [{"role": "r" * 10_000_000, "content": "Hi."}, {"role": "user", "content": "Hi."}]}]
    assert said(read_records(json.dumps(chat), "x")) == [("user", "Hi.")]
    samples = [{"p": "", "c": "x" * 10_000_000, "l": "Hi."}, {"p": "", "c": "Ada", "l": "On."}]
    assert len(read_records(json.dumps(samples), "x").rejected) == 1


def test_rows_that_somebody_else_took_apart():
    rows = [[1.0, "Ada", "On."], [1.0, "Otto", None], [float("nan"), "Otto", 7], [2.0, ["Ada"], "Off."]]
    script = read_rows(["Episode", "who", "Line"], rows, "x")
    assert said(script) == [("Ada", "On."), ("Otto", "7")] and script.counts["wordless"] == 1
    assert [r.row for r in script.rejected] == [4]


def test_parquet(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([(1, *t) for t in TALK] + [(None, "Ada", "On.")], columns=["Episode", "speaker", "text"])
    frame.to_parquet(tmp_path / "x.parquet")
    script = read_parquet((tmp_path / "x.parquet").read_bytes(), "x.parquet")
    assert said(script) == [*TALK, ("Ada", "On.")] and script.format == "parquet"
    chats = [[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]] * 3
    pd.DataFrame({"id": [1, 2, 3], "messages": chats}).to_parquet(tmp_path / "y.parquet")
    assert [len(s.lines) for s in read_parquet((tmp_path / "y.parquet").read_bytes(), "y").scenes] == [2, 2, 2]
    row = [1, 1, 2, "Ada: (HUMS) On.", 0, True, 1, 1, "Ada", "Lab", "On.", "on", 1]
    pd.DataFrame([row], columns=COLUMNS).to_parquet(tmp_path / "z.parquet")
    assert said(read_parquet((tmp_path / "z.parquet").read_bytes(), "z")) == [("Ada", "On.")]
    whole = (tmp_path / "x.parquet").read_bytes()
    for bad in (b"PAR1", b"", whole[: len(whole) // 2], whole[:50] + b"\0" * 50 + whole[100:]):
        try:
            read_parquet(bad, "x.parquet")
        except ValueError as e:
            assert len(str(e).splitlines()) == 1 and "x.parquet" in str(e)
    assert "known as speaker" in refusal(read_parquet, _parquet(pd, tmp_path), "w.parquet")


def _parquet(pd, folder):
    pd.DataFrame({"a": [1]}).to_parquet(folder / "w.parquet")
    return (folder / "w.parquet").read_bytes()


CHAT = [
    {"role": "system", "content": "Be Otto."},
    {"role": "user", "content": "On?"},
    {"role": "assistant", "content": "On."},
]
SHARED = [{"from": "human", "value": "On?"}, {"from": "gpt", "value": "On."}]


@pytest.mark.parametrize(
    "record,speakers",
    [
        ({"messages": CHAT}, ["user", "assistant"]),
        ({"id": 7, "messages": CHAT, "source": "x"}, ["user", "assistant"]),
        ({"conversations": SHARED}, ["human", "gpt"]),
        ({"messages": [{"role": "user", "name": "Ada", "content": "On?"}, CHAT[2]]}, ["Ada", "assistant"]),
        (
            {"messages": [CHAT[1], {"role": "assistant", "content": [{"type": "text", "text": "On."}]}]},
            ["user", "assistant"],
        ),
        ({"prompt": "On?", "completion": "On."}, ["user", "assistant"]),
        ({"prompt": CHAT[:2], "completion": CHAT[2:]}, ["user", "assistant"]),
    ],
)
def test_conversations(record, speakers):
    for text in (
        json.dumps([record] * 3, indent=1),
        "\n".join([json.dumps(record)] * 3),
        json.dumps({"data": [record] * 3}),
    ):
        script = read_records(text, "x.json")
        assert said(script) == list(zip(speakers, ("On?", "On."))) * 3 and script.account()["rows"] == 3
        assert len(script.scenes) == 3 and not script.rejected
    if speakers[1] == "assistant":
        named = read_records(text, "x.json", Reading(columns={"speaker": "=Otto"}))
        assert list(named.speakers) == [speakers[0], "Otto"]
    assert said(read_records(json.dumps(record), "x.json")) == list(zip(speakers, ("On?", "On.")))


def test_a_prompt_of_names_and_lines_is_a_scene():
    record = {"prompt": "Ada: On?\nOtto: On.\nAda:", "completion": " Then hum."}
    script = read_records(json.dumps([record] * 2), "x")
    assert said(script)[:3] == [("Ada", "On?"), ("Otto", "On."), ("Ada", "Then hum.")] and len(script.scenes) == 2


PAIRS = [(who, what) for _, who, what in LONG]
PLACED = [{"speaker": who, "text": what} for who, what in PAIRS]
ASKED = [{"role": ("user", "assistant")[i % 2], "content": f"Cup {i}."} for i in range(8)]
NODES = {
    str(i): {"message": {"author": {"role": m["role"]}, "content": {"parts": [m["content"]]}}}
    for i, m in enumerate(ASKED)
}


@pytest.mark.parametrize(
    "value,scenes",
    [
        (PAIRS, None),
        ([{who: what} for who, what in PAIRS], None),
        ([f"{who}: {what}" for who, what in PAIRS], None),
        ([PAIRS[:12], PAIRS[12:]], 2),
        (
            {
                "s": [
                    {"speakers": [who for who, _ in part], "dialogue": [t for _, t in part]}
                    for part in (PAIRS[:12], PAIRS[12:])
                ]
            },
            2,
        ),
        ([{"text": "\n".join(f"{who}: {what}" for who, what in part)} for part in (PAIRS[:12], PAIRS[12:])], 2),
        ({"columns": ["speaker", "text"], "index": [0], "data": PAIRS}, None),
        ({str(i): r for i, r in enumerate(PLACED)}, None),
        ({"rows": [{"row_idx": i, "row": r} for i, r in enumerate(PLACED)]}, None),
        ({"S01E01": PLACED[:12], "S01E02": PLACED[12:]}, 2),
        (
            [
                {"season": 1, "episode": e, "lines": [{"who": w, "line": t} for k, w, t in LONG if k == e]}
                for e in (1, 2)
            ],
            2,
        ),
        (
            {
                "season_id": "s01",
                "episodes": [
                    {
                        "episode_id": f"s01_e0{e}",
                        "scenes": [
                            {
                                "utterances": [
                                    {"speakers": [w], "transcript": t, "tokens": [["x"]]} for k, w, t in LONG if k == e
                                ]
                            }
                        ],
                    }
                    for e in (1, 2)
                ],
            },
            2,
        ),
        (
            [
                {"dialogue_id": e, "turns": [{"speaker": w, "utterance": t} for k, w, t in LONG if k == e]}
                for e in (1, 2)
            ],
            2,
        ),
    ],
)
def test_scripts_in_json_of_many_shapes(tmp_path, value, scenes):
    (tmp_path / "x.json").write_text(json.dumps(value))
    script = read_script(tmp_path / "x.json")
    assert said(script) == PAIRS and not script.rejected and script.doubts == []
    assert scenes is None or len(script.scenes) == scenes


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ASKED] * 3),
        "\n".join([json.dumps(ASKED)] * 3),
        "\n".join([json.dumps({"messages": ASKED}, indent=2)] * 3),
        "[\n" + (json.dumps({"chat": ASKED}) + ",\n") * 3 + "]",
        (
            json.dumps(
                {
                    "conversation": [
                        {"user": ASKED[i]["content"], "assistant": ASKED[i + 1]["content"]} for i in range(0, 8, 2)
                    ]
                }
            )
            + "\n"
        )
        * 3,
        json.dumps([{"contents": [{"role": m["role"], "parts": [{"text": m["content"]}]} for m in ASKED]}] * 3),
        json.dumps([{"title": "x", "mapping": NODES}] * 3),
        json.dumps([{"text": "".join(f"### {m['role']}: {m['content']}" for m in ASKED)}] * 3),
    ],
)
def test_chats_of_trainers_in_many_shapes(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    script = read_script(tmp_path / "x.json")
    assert said(script) == [(m["role"], m["content"]) for m in ASKED] * 3 and len(script.scenes) == 3
    assert script.account()["rejected"] == 0


def test_what_system_says_is_no_speech_but_counted():
    script = read_records(json.dumps({"messages": CHAT}), "x")
    assert script.sizes["note"] == 7 and script.counts["note"] == 0 and any("no speech" in n for n in script.notes)
    lost = [{"messages": [*CHAT, {"role": "user", "content": None}, 5]}, {"messages": [{"role": "user"}]}]
    script = read_records(json.dumps(lost), "x")
    assert (
        script.account()["rows"] == 2 and len(script.rejected) == 1 and any("without text" in n for n in script.notes)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: json.dumps(rows),
        lambda rows: "\n".join(map(json.dumps, rows)),
        lambda rows: json.dumps({"title": "x", "lines": rows}),
        lambda rows: json.dumps({"train": rows[:1], "test": rows[1:]}),
        lambda rows: json.dumps({k: [r[k] for r in rows] for k in rows[0]}),
        lambda rows: json.dumps({k: {str(i): r[k] for i, r in enumerate(rows)} for k in rows[0]}),
    ],
)
def test_records_with_named_columns(make):
    rows = [{"Season": 1, "Episode": 1 + i // 2, "Character": who, "Line": what} for i, (who, what) in enumerate(TALK)]
    script = read_records(make(rows), "x.json")
    assert said(script) == TALK and [line.episode for line in script.lines] == [101, 101, 102, 102]
    assert script.account()["rows"] == 4 and "speaker = Character" in script.notes[0]


def test_instruction_samples_without_characters_are_refused():
    tasks = [
        {"instruction": f"Sort these: {i}", "input": w, "output": "Done."}
        for i in range(9)
        for w in ("a b c", "", "The sea is wet")
    ]
    general = [{**t, "instruction": "Translate into French"} if i % 3 else t for i, t in enumerate(tasks)]
    assert "without characters" in refusal(read_records, json.dumps(general), "x.json")
    empty = [{"instruction": f"Is it {i}?", "input": "", "output": "It is."} for i in range(9)]
    bare = [{"instruction": f"Is it {i}?", "output": "It is."} for i in range(9)]
    for records in (empty, bare):
        assert "--columns speaker==Otto" in refusal(read_records, json.dumps(records), "x.json")
        script = read_records(json.dumps(records), "x.json", Reading(columns={"speaker": "=Otto"}))
        assert script.speakers == {"user": 9, "Otto": 9} and len(script.scenes) == 9
    held = [{"instruction": f"Ada: Row {i}.", "input": "Otto", "output": f"Row {i + 1}."} for i in range(9)]
    assert read_records(json.dumps(held), "x.json").speakers == {"Ada": 9, "Otto": 9}


@pytest.mark.parametrize(
    "text,says",
    [
        ("[1, 2", "not valid JSON"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('[{"price": 1}]', "no known kind (it has price)"),
        ('{"price": 1}\n{"price": 2}', "no known kind"),
        ("[1, 2]", "no known kind"),
        ('"' + "x" * 30_000_000, "not valid JSON"),
        ('[{"p": ' + "9" * 5000 + "}]", "not valid JSON"),
    ],
)
def test_json_that_cannot_be_read_is_refused_for_what_it_is(text, says):
    begin = time.perf_counter()
    message = refusal(read_records, text, "x.json")
    assert says in message and time.perf_counter() - begin < 5
    assert says == "not valid JSON" or "not valid JSON" not in message or "nested" in says


def test_one_bad_row_among_records_is_one_rejected_row():
    rows = [json.dumps({"messages": CHAT})] * 4
    for bad in ("{", "[" * 100_000, "7", '{"price": 1}', "x" * 2_000_000):
        script = read_records("\n".join([*rows[:2], bad, "", *rows[2:]]), "x.jsonl")
        assert [r.row for r in script.rejected] == [3] and script.account()["rows"] == 5 and len(script.scenes) == 4
    script = read_records("\n".join(['{"who": "Ada", "line": "On."}', "{", '{"who": "Otto", "line": "Off."}']), "x")
    assert said(script) == [("Ada", "On."), ("Otto", "Off.")] and [r.row for r in script.rejected] == [2]
    assert script.sizes["rejected"] == 1 and read_records('[{"who": "A\\ud800", "line": "On."}]', "x").lines


FILM = [
    f"L{n} +++$+++ u{n % 2} +++$+++ m{film} +++$+++ {'ADA' if n % 2 else 'OTTO'} +++$+++ Row {n}: on."
    for film in (3, 7)
    for n in (10, 11, 12, 20, 21)
]


def test_film_dialogues_forward_and_backward():
    want = [(1, [10, 11, 12]), (1, [20, 21]), (2, [10, 11, 12]), (2, [20, 21])]
    backward = [*FILM[4::-1], *FILM[:4:-1]]
    for rows in (FILM, backward):
        script = read_movie_lines("\n".join(rows), "x.txt")
        assert [(s.episode, [line.number for line in s.lines]) for s in script.scenes] == want
        assert script.speakers == {"OTTO": 6, "ADA": 4} and script.account()["rows"] == 10
    for rows in (FILM, backward):
        blank = rows.index(FILM[1])
        script = read_movie_lines("\n".join([*rows[:blank], "", *rows[blank:]]), "x.txt")
        cut = [10], [11, 12]
        if rows is backward:
            cut = [10, 11], [12]
        assert tuple([line.number for line in s.lines] for s in script.scenes[:2]) == cut
    assert len(read_movie_lines("\n\n".join(FILM), "x").scenes) == 4


def test_film_dialogues_that_are_damaged():
    bad = [
        "L9 +++$+++ u1",
        FILM[0],
        "L30 +++$+++ u1 +++$+++ m3 +++$+++  +++$+++ Who?",
        "L31 +++$+++ u1 +++$+++ m3 +++$+++ ADA +++$+++",
    ]
    script = read_movie_lines("\n".join([*FILM, *bad]), "x")
    assert [r.row for r in script.rejected] == [11, 12, 13] and script.counts["wordless"] == 1
    assert "five fields" in refusal(read_movie_lines, "Ada: Hi.\nOtto: Ho.", "x.txt")


@pytest.mark.parametrize(
    "text,want",
    [
        (written([("Season", "Episode", "Character", "Line"), *[(1, 1, *t) for t in TALK]]), "table"),
        (written([("name", "dialogue"), *TALK], "|"), "table"),
        ("sep=;\nx;y\n1;2", "table"),
        (",".join(COLUMNS), "table"),
        ("\n".join(f"{who}, aside: Well, {what}" for who, what in TALK), ""),
        ("Speaker, text\n\nAda: On.\nOtto: Off.\nAda: No.", ""),
        ("a,b\n1,2", ""),
        ("[Lab]\nAda: On.", ""),
        ("[[a note]]\n\nINT. LAB\n\nADA\nOn.", ""),
        ("{laughs} Ada: On.", ""),
        ("[]", "records"),
        ('  [\n {"p": ""}]', "records"),
        ('{"messages": []}', "records"),
        ("\n".join(FILM), "film"),
        ("", ""),
        ("x" * 5_000_000, ""),
    ],
)
def test_a_quick_look(text, want):
    looks = {"table": looks_like_table, "records": looks_like_records, "film": looks_like_movie_lines}
    assert {name for name, look in looks.items() if look(text)} == ({want} - {""})


def test_many_rows_of_named_columns_take_seconds():
    rows = written(
        [
            ("Season", "Episode", "Character", "Line"),
            *[(1 + i // 9000, 1 + i // 300 % 30, *TALK[i % 4]) for i in range(40_000)],
        ]
    )
    begin = time.perf_counter()
    assert len(read_table(rows, "x").lines) == 40_000 and time.perf_counter() - begin < 8


GOOD = {
    "named": written(
        [("episode", "number", "speaker", "text"), *[(1 + i // 4, i, *TALK[i % 4]) for i in range(8)]]
    ).replace('"', ""),
    "quoted": written(
        [("season", "episode", "scene", "who", "line"), *[(1, 1, i // 2, *TALK[i % 4]) for i in range(8)]], ";"
    ),
    "standard": written(
        [
            COLUMNS,
            *[
                [n, 1, n, f"{who}: {what}", 0, "true", 1, 1, who, "Lab", what, "", 1]
                for n, (who, what) in enumerate(TALK * 2)
            ],
        ]
    ),
    "chats": "\n".join(json.dumps({"messages": CHAT}) for _ in range(5)),
    "rows": "\n".join(json.dumps({"speaker": who, "text": what}) for who, what in TALK),
    "film": "\n".join(FILM),
}
NASTY = [
    '"',
    ",",
    ";",
    "\n",
    "\t",
    "|",
    "{",
    "}",
    "[",
    "]",
    ":",
    "\\",
    "+++$+++",
    "NaN",
    "null",
    "9" * 30,
    "\x0c",
    "\u2028",
    "\0",
    "sep=,\n",
    "1.0",
    "\ufeff",
]


@pytest.mark.parametrize("kind", list(GOOD))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_each_row_of_a_mutated_file_counts_once(kind, data):
    text = GOOD[kind]
    for _ in range(data.draw(st.integers(1, 4))):
        i, n = data.draw(st.integers(0, len(text))), data.draw(st.sampled_from([0, 1, 3, 20, 200]))
        new = data.draw(st.sampled_from(["", *NASTY, text[i : i + n] * 2]))
        text = text[:i] + new + text[i + n :]
    read = read_movie_lines if kind == "film" else read_records if kind in ("chats", "rows") else read_table
    try:
        script = read(text, "x.y")
    except ValueError as e:
        assert len(str(e).splitlines()) == 1 and "x.y" in str(e) and len(str(e)) < 900
        return
    account, filled = script.account(), [i for i, r in enumerate(text.split("\n"), 1) if r.strip()]
    assert account["rows"] == account["kept"] + account["recovered"] + account["rejected"] and account["kept"] >= 0
    assert all(line.text and line.speaker and "\n" not in line.text + line.speaker for line in script.lines)
    assert script.sizes["spoken"] > 0 or not script.lines
    places = [line.row for line in script.lines if line.learn] + [r.row for r in script.rejected]
    if kind == "chats":
        places = sorted({line.row for line in script.lines}) + [r.row for r in script.rejected]
    assert len(set(places)) == len(places)
    if kind in ("chats", "rows", "film"):
        assert account["rows"] == len(filled)
    else:
        header = 1 + text.lstrip().lower().startswith("sep=")
        assert account["rows"] <= len(filled) - header
        if '"' not in text:
            assert account["rows"] == len(filled) - header
