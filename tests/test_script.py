"Script files, good and bad."
import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.script import COLUMNS, parse_lines, read_script, read_table

ROW = dict(zip(COLUMNS, ["1", "1", "1", "Homer Simpson: (EATING) Mmm, pie.", "0", "true", "1", "1", "Homer Simpson", "Home", "Mmm, pie.", "mmm pie", "2"]))


def table(*rows, names=COLUMNS):
    out = io.StringIO(); writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names); writer.writerows([list(r.values()) if isinstance(r, dict) else r for r in rows])
    return out.getvalue()


@pytest.mark.parametrize("true,false,empty", [("true", "false", ""), ("TRUE", "FALSE", "NA"), ("True", "False", "")])
def test_both_public_flavours(true, false, empty):
    heading = {**{c: empty for c in COLUMNS}, "episode_id": 1, "number": 0, "raw_text": "(Home: int. home - day)", "speaking_line": false, "raw_location_text": "Home"}
    scenes, counts, rejected = read_table(table(heading, {**ROW, "speaking_line": true}), "x")
    assert counts == {"spoken": 1, "heading": 1, "direction": 0, "wordless": 0} and not rejected
    assert scenes[0].lines[0].text == "Mmm, pie." and scenes[0].location == "Home"


def test_rows_in_any_order_give_the_same_scenes(tmp_path):
    from pathlib import Path
    rows = Path(read_script("springfield").path).read_text(encoding="utf8").splitlines()
    (tmp_path/"x.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]), encoding="utf8")
    plain = lambda script: [[(l.speaker, l.text) for l in s.lines] for s in script.scenes]
    assert plain(read_script(tmp_path/"x.csv")) == plain(read_script("springfield"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    row = {**ROW, "spoken_words": "Señor café, jalapeño!", "raw_text": "Homer Simpson: Señor café, jalapeño!"}
    (tmp_path/"x.csv").write_bytes(table(row).replace("\n", newline).encode(encoding))
    assert read_script(tmp_path/"x.csv").lines[0].text == "Señor café, jalapeño!"


@pytest.mark.parametrize("change,reason", [
    ({"episode_id": "one"}, "whole numbers"), ({"number": ""}, "whole numbers"), ({"speaking_line": "maybe"}, "true or false"), ({"raw_character_text": ""}, "no speaker")])
def test_a_bad_row_is_rejected_with_its_reason(change, reason):
    scenes, counts, rejected = read_table(table(ROW, {**ROW, "number": 2, **change}), "x")
    assert len(rejected) == 1 and reason in rejected[0].reason and rejected[0].row == 3 and counts["spoken"] == 1


def test_a_row_twice_is_rejected():
    _, counts, rejected = read_table(table(ROW, ROW), "x")
    assert counts["spoken"] == 1 and "same episode_id and number as line 2" in rejected[0].reason


def test_embedded_newlines_stay_on_one_line_and_rows_keep_their_line_numbers():
    _, counts, rejected = read_table(table({**ROW, "spoken_words": "Two\nlines"}, {**ROW, "number": "x"}), "x")
    scenes = read_table(table({**ROW, "spoken_words": "Two\nlines"}), "x")[0]
    assert scenes[0].lines[0].text == "Two lines" and rejected[0].row == 4


@pytest.mark.parametrize("text,says", [
    ("", "empty"), ("a,b\n1,2", "lacks the columns"), (table(), "no spoken line"), (table({**ROW, "speaking_line": "false"}), "no spoken line"),
    ("[1, 2", "not valid JSON"), ("[]", "no spoken line"), ('[{"p": "x"}]', "no spoken line"), ("PK\x03\x04\0\0", "binary"), ("{", "not valid JSON")])
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, text, says):
    (tmp_path/"x.csv").write_bytes(text.encode())
    with pytest.raises(ValueError, match=says) as e: read_script(tmp_path/"x.csv")
    assert "x.csv" in str(e.value) and "\n" not in str(e.value)


def test_json_in_both_spellings_and_context_that_is_not_learned(tmp_path):
    records = [{"p": "Moe: Closed.\nBarney: Since when?", "c": "Moe", "l": "Moe: Since you."}, {"p": "", "c": "Homer", "l": "Hello?"}]
    for keys in (("p", "c", "l"), ("instruction", "input", "output")):
        (tmp_path/"x.json").write_text(json.dumps([dict(zip(keys, r.values())) for r in records]))
        a, b = read_script(tmp_path/"x.json").scenes
        assert [(l.speaker, l.text, l.learn) for l in a.lines] == [("Moe", "Closed.", False), ("Barney", "Since when?", False), ("Moe", "Since you.", True)]
        assert [l.text for l in b.lines] == ["Hello?"]


def test_records_of_one_speaker_come_back_as_whole_scenes(tmp_path):
    "Other people's lines lie between: contexts overlap, and no line may land in two scenes."
    from simpsons_llm.prepare import samples_of
    script = read_script("springfield")
    (tmp_path/"x.json").write_text(json.dumps(samples_of(script.scenes, ["Homer Simpson"], context_lines=10)))
    again = read_script(tmp_path/"x.json")
    assert [l.text for l in again.lines if l.learn] == [l.text for l in script.lines if l.speaker == "Homer Simpson"]
    assert max(Counter(l.text for l in again.lines).values()) == max(Counter(l.text for l in script.lines).values())


def test_an_unclosed_quote_names_the_lines_it_swallowed():
    text = table(*[{**ROW, "number": n} for n in range(4)]).splitlines()
    text[2] = '1,1,1,Homer Simpson: Pie.,0,true,1,1,Homer Simpson,Home,"Pie.,pie,1'  # the quote is never closed
    _, counts, rejected = read_table("\n".join(text), "x")
    assert counts["spoken"] == 2 and len(rejected) == 1 and rejected[0].row == 3 and "spans lines 3 to 4: an unclosed quote?" in rejected[0].reason


def test_a_name_with_a_colon_inside_what_is_said():
    assert parse_lines("Kent Brockman: Tonight: a shoe: where is it?") == [("Kent Brockman", "Tonight: a shoe: where is it?")]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_a_mutated_table_gives_a_full_account_or_one_sentence(draw):
    "Characters dropped, doubled or swapped anywhere: rows = kept + rejected, or a ValueError, never anything else."
    rows = [{**ROW, "number": n, "spoken_words": f'Line {n}, "quoted", and more.', "raw_text": f"Homer Simpson: line {n}"} for n in range(5)]
    text = table(*rows)
    for _ in range(draw.draw(st.integers(1, 4))):
        i = draw.draw(st.integers(0, len(text) - 1))
        text = draw.draw(st.sampled_from([text[:i] + text[i + 1:], text[:i] + draw.draw(st.sampled_from(',"\n\'x0')) + text[i:], text[:i] + text[i]*2 + text[i + 1:]]))
    try: scenes, counts, rejected = read_table(text, "x.csv")
    except ValueError as e: assert "\n" not in str(e); return
    rows_read = sum(bool(r) for r in csv.reader(io.StringIO(text))) - 1
    assert sum(counts.values()) + len(rejected) == rows_read and counts["spoken"] == sum(len(s.lines) for s in scenes)
