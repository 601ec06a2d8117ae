"""Typed scripts: the same scenes written down as people do come back as they were."""

import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data.lines import Reading, doubts, quality, rename
from simpsons_llm.data.text import (
    cut_whole,
    episode_of,
    place_of,
    read_fountain,
    read_play,
    read_screenplay,
    read_text,
)

WHO = ["Marge", "Homer", "Lisa", "Ned Flanders"]
SAID = [
    "The dog is wearing your tie again, and this time he has chosen the good one.",
    "It suits him. He has an interview: they pay in bones!",
    "Has anybody asked the dog?",
    "Howdy! I brought back the ladder that I did not know I had lent you.",
    "Why is there a frisbee on the roof, and who is going to bring it down before it rains?",
]
SCENES = [
    (place, [(WHO[(i * 3 + j) % 4], SAID[(i + 2 * j) % 5]) for j in range(5 + i % 2)])
    for i, place in enumerate(["Kitchen", "Moe's Tavern", "Back Yard", "The Church Hall", "Kitchen", "School"])
]
WANT = [[(who, said) for who, said in lines] for _, lines in SCENES]


def inline(between="\n", mark=": ", heading="[{}]\n", name=str, wrap=0):
    def write():
        def row(who, said):
            text = f"{name(who)}{mark}{said}"
            return textwrap.fill(text, wrap, break_on_hyphens=False) if wrap else text

        return "\n\n".join(heading.format(place) + between.join(row(*x) for x in lines) for place, lines in SCENES)

    return write


def above(mark=":", name=str.upper, wrap=0, heading="[{}]\n\n"):
    def write():
        return "\n\n\n".join(
            heading.format(place)
            + "\n\n".join(f"{name(who)}{mark}\n{textwrap.fill(said, wrap) if wrap else said}" for who, said in lines)
            for place, lines in SCENES
        )

    return write


def columns(margin, speech, cue):
    def write():
        def block(who, said):
            rows = textwrap.wrap(said, 30)
            return "\n".join([" " * cue + who.upper(), *(" " * speech + r for r in rows)])

        return "\n\n".join(
            f"{' ' * margin}INT. {place.upper()} - DAY\n\n{' ' * margin}Somebody waits.\n\n"
            + "\n\n".join(block(*x) for x in lines)
            for place, lines in SCENES
        )

    return write


LAYOUTS = {
    "rows": (read_text, inline()),
    "wrapped at 60": (read_text, inline(wrap=60)),
    "wrapped at 40, a blank row after each": (read_text, inline("\n\n", wrap=40, heading="[{}]\n\n")),
    "a blank row after each": (read_text, inline("\n\n", heading="[{}]\n\n")),
    "bold names": (read_text, inline("\n\n", "** ", "### {}\n\n", lambda n: f"**{n}:")),
    "bold names, colon outside": (read_text, inline("\n", "**: ", "## {}\n\n", lambda n: f"- **{n}")),
    "capitals": (read_text, inline(name=str.upper, mark=":  ")),
    "full-width colons": (read_text, inline(mark="：")),
    "no blank behind the colon": (read_text, inline(mark=":")),
    "dashes": (read_text, inline(mark=" — ")),
    "full stops": (read_text, inline(mark=". ", name=str.upper)),
    "tabs": (read_text, inline(mark="\t", heading="")),
    "INT. headings": (read_text, inline(heading="INT. {} - NIGHT\n\n")),
    "Scene: headings": (read_text, inline(heading="Scene: {}\n")),
    "numbered scenes": (read_text, inline(heading="SCENE 3. {}.\n")),
    "rules between": (read_text, inline("\n\n", heading="* * *\n\n")),
    "play": (read_text, above()),
    "play, wrapped": (read_text, above(wrap=50)),
    "play without colons": (read_play, above("", wrap=50)),
    "play, names as one writes them": (read_play, above("", str)),
    "full stops and asides": (read_text, inline("\n\n", ". ", "[{}]\n\n", lambda n: f"{n.upper()} [aside]", 60)),
    "full stops and dashes": (read_text, inline("\n\n", ".--", "[{}]\n\n", str.upper)),
    "full stops, small letters": (read_text, inline(mark=". ")),
    "italic names": (read_text, inline("\n\n", "_. ", "ACT I\n\n", lambda n: f"_{n}")),
    "names in angles": (read_text, inline(mark="> ", name=lambda n: f"<{n}")),
    "names in brackets": (read_text, inline(mark="] ", name=lambda n: f"[{n}")),
    "names in lenses": (read_text, inline(mark="】", name=lambda n: f"【{n}")),
    "words in corners": (read_text, lambda: re.sub("(?m)「(.*)$", r"「\1」", inline(mark="「")())),
    "dashes without blanks": (read_text, inline(mark="—")),
    "upright strokes": (read_text, inline(mark=" | ")),
    "gaps": (read_text, inline(mark="      ")),
    "times before": (read_text, inline(name=lambda n: f"00:12 {n}")),
    "times before angles": (read_text, inline(mark="> ", name=lambda n: f"[00:12] <{n}")),
    "times behind names above": (read_text, above("  0:12", str)),
    "days and times behind names above": (read_text, above(" — Today at 1:00 PM", str)),
    "numbers before": (read_text, inline(name=lambda n: f"12. {n}")),
    "bullets": (read_text, inline(name=lambda n: f"• {n}")),
    "numbers before bold": (read_text, inline(mark=":** ", name=lambda n: f"3. **{n}")),
    "bold brackets": (read_text, inline(mark="]** ", name=lambda n: f"**[{n}")),
    "wiki bold": (read_text, inline("\n\n", "''': ", "== {} ==\n\n", lambda n: f"'''{n}")),
    "tags": (read_text, inline("<br>\n", ":</b> ", "<i>[{}]</i><br>\n", lambda n: f"<b>{n}")),
    "pictures": (read_text, inline(mark=":** ", name=lambda n: f"🙂 **{n}")),
    "headings for names": (read_text, lambda: inline("\n\n", ":\n", "### [{}]\n\n", lambda n: f"#### {n}")()),
    "bold, a blank row below": (read_text, inline("\n\n", ":**\n\n", "### {}\n\n", lambda n: f"**{n}")),
    "names above, no blank rows": (read_play, lambda: re.sub("\n+", "\n", above("")())),
    "names above, blank rows everywhere": (read_play, lambda: re.sub("\n+", "\n\n", above("")())),
    "screenplay, double spaced": (read_screenplay, lambda: columns(0, 11, 22)().replace("\n", "\n\n")),
    "screenplay, Int.": (read_screenplay, lambda: columns(0, 11, 22)().replace("INT. ", "Int. ")),
    "screenplay": (read_screenplay, columns(0, 11, 22)),
    "screenplay, far in": (read_screenplay, columns(15, 25, 37)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scenes_come_back_from_every_layout(layout):
    read, write = LAYOUTS[layout]
    text = write()
    script = rename(read(text, "x"))
    found = [[(x.speaker.title(), x.text) for x in s.lines] for s in script.scenes]
    if layout in ("rows", "tabs") or found != WANT:
        assert found == WANT
    assert script.account()["rows"] == sum(bool(r.strip()) for r in text.split("\n"))
    assert doubts(script) == (False, []) and quality(script) > 0.6 and not script.rejected


@pytest.mark.parametrize("layout", [k for k, (r, _) in LAYOUTS.items() if r is not read_text])
def test_another_reader_thinks_less_of_it(layout):
    read, write = LAYOUTS[layout]
    assert quality(rename(read(write(), "x"))) > 1.5 * quality(rename(read_text(write(), "x")))


def lines(text, read=read_text, **how):
    script = read(text, "x", Reading(**how))
    assert script.account()["rows"] == sum(bool(r.strip()) for r in text.split("\n"))
    return [(x.speaker, x.text) for x in script.lines]


TALK = "Marge: Is it on?\nHomer: It was on.\n"


@pytest.mark.parametrize(
    "row,said",
    [
        ("Marge: (sighs) Is it (low) on?", "Is it on?"),
        ("Marge: [sighs] Is it {points} on?", "Is it on?"),
        ("Marge: *sighs* Is it on?", "Is it on?"),
        ("Marge: *(sighs)* Is it on?", "Is it on?"),
        ("Marge: <i>sighs</i> Is it on?", "Is it on?"),
        ("Marge: （叹气）Is it 【笑】 on?", "Is it on?"),
        ("Marge: Is it *really* on?", "Is it really on?"),
        ("Marge: _sighs_ Is it _on_?", "Is it on?"),
        ("Marge: Is it on? [sighs", "Is it on?"),
        ("Marge: Is it (a (very) long\nshot) on?", "Is it on?"),
        ("Marge (to Homer: low): Is it on?", "Is it on?"),
        ("Marge: Is it &quot;on&quot;?", 'Is it "on"?'),
    ],
)
def test_directions_are_left_out(row, said):
    assert lines(f"{TALK}{row}\n")[-1][1] == said
    assert rename(read_text(f"{TALK}{row}\n", "x")).speakers == {"Marge": 2, "Homer": 1}


def test_unseen_marks_go_and_joiners_of_letters_stay():
    said = "می\u200cخواهم بروم"
    assert lines(f"\u200eMarge: \u2067{said}\u2069\nHomer:\u200b No.\n") == [("Marge", said), ("Homer", "No.")]


def test_capitals_give_a_name_only_where_there_is_nothing_else():
    script = rename(read_text("MARGE: Is it on?\nMarge: It was.\nMARGE: Oh.\nHOMER: Mmm.\nMARGE: No.\n", "x"))
    assert script.speakers == {"Marge": 4, "HOMER": 1} and script.merged == {"Marge": {"MARGE": 3}}


def test_directions_are_kept_on_request():
    assert lines(f"{TALK}Marge: (sighs) No.", keep_directions=True)[-1] == ("Marge", "(sighs) No.")


@pytest.mark.parametrize(
    "row,kind",
    [
        ("[Marge leaves, and the door bangs]", "direction"),
        ("[Laughter]", "direction"),
        ("(The door opens, and\nnobody comes in.)", "direction"),
        ("[A very long\nway to say nothing.]", "direction"),
        ("[The pier]", "heading"),
        ("Scene 4: The pier", "heading"),
        ("ACT TWO", "heading"),
        ("12.", "note"),
        ("CONTINUED: (2)", "note"),
        ("Written by: Pat", "note"),
        ("CUT TO:", "direction"),
        ("CUT TO: THE PIER", "heading"),
        ("(Cut to the pier)", "heading"),
        ("-- The pier --", "heading"),
        ("=== The pier ===", "heading"),
        ("(Scene 2 - The pier)", "heading"),
        ("场景1：码头 日 内", "heading"),
        ("Σκηνή 1: Λιμάνι", "heading"),
        ("Chapter 3", "heading"),
        ("第2场 码头 日 内", "heading"),
        ("〇台所（昼）", "heading"),
        ("1-2 日 内 码头", "heading"),
        ("ИНТ. КУХНЯ - ДЕНЬ", "heading"),
        ("*The door opens.*", "direction"),
        ("END OF TEASER", "direction"),
        ("人物：玛拉、奥托", "note"),
        ("Source: a tape", "note"),
        ("SOUND: A door.", "direction"),
        ("Exeunt.", "direction"),
        ("[Exit Marge.", "direction"),
        ("_Marge goes._", "direction"),
        ("△ Marge goes.", "direction"),
        ("[SOUND: a door]", "direction"),
    ],
)
def test_rows_that_nobody_says(row, kind):
    script = read_text(f"{TALK}{row}\n{TALK}", "x")
    assert script.counts[kind] == len(row.split("\n")) and len(script.lines) == 4 and not script.rejected
    assert script.sizes[kind] > 0 and len(script.scenes) == 1 + (kind == "heading")


@pytest.mark.parametrize(
    "rows,numbers",
    [
        (["Episode 1", "Episode 2"], [1, 2]),
        (["[Episode 7: Tea]", "[Episode 9]"], [7, 9]),
        (["Season 1 Episode 1", "Season 2 Episode 1"], [101, 201]),
        (["S01E03 - Tea", "S02E01"], [103, 201]),
        (["1x03 Tea", "2x01 Tea"], [103, 201]),
        (["SEASON ONE\nEpisode 1", "SEASON TWO\nEpisode 1"], [101, 201]),
        (["Episode 1", "Episode 2", "Episode 1", "Episode 2"], [101, 102, 201, 202]),
        (["第一集", "第十二集"], [1, 12]),
        (["Folge 3", "Folge 4"], [3, 4]),
        (["# Episode One", "# Episode Two"], [1, 2]),
        (["Episode 1 The Frogs", "Episode 2 (Tea)"], [1, 2]),
        (['Ep. 1 "Tea"', 'Ep. 2 "Frogs"'], [1, 2]),
        (["Frogs - 1x03 - Tea", "Frogs S02E01 Tea"], [103, 201]),
        (["1.03 - Tea", "2.01 - Tea"], [103, 201]),
        (["3. Bölüm", "4. Bölüm"], [3, 4]),
        (["Season 1 Episode 130", "Season 2 Episode 1"], [1130, 2001]),
    ],
)
def test_episodes_and_seasons(rows, numbers):
    script = read_text("".join(f"{r}\n{TALK}" for r in rows), "x")
    assert [s.episode for s in script.scenes] == numbers and script.speakers == {
        n: len(rows) for n in ("Marge", "Homer")
    }


def test_a_direction_between_blank_rows_ends_no_scene_nor_does_a_page():
    two = "Marge: Is it\non?\n\nHomer: It was\non.\n\n"
    for row in ("(They wait.)\n\n", "12\n\n\fTHE FROGS\n\n"):
        text = "\n".join(2 * (two + row + two) for _ in range(3))
        assert [len(s.lines) for s in read_text(text, "x").scenes] == [8, 8, 8]


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_a_list_of_who_is_who_is_not_said(between):
    cast = "The Frogs\n\nCast of Characters:\n\nMarge: a mother\nHomer - a father\n\n"
    assert len(lines(cast + between.join((TALK * 4).split("\n")))) == 8


def test_names_in_small_letters_that_come_once():
    said = lines(TALK * 8 + "the driver: Out!\nBoy with a kite: No.\n")
    assert said[-2:] == [("the driver", "Out!"), ("Boy with a kite", "No.")]


def test_a_title_before_a_full_stop_is_part_of_the_name():
    assert lines("MRS. LINDE. Hi.\nDR. RANK. No.\n" * 3)[:2] == [("MRS. LINDE", "Hi."), ("DR. RANK", "No.")]


def test_vowel_signs_tell_names_apart():
    assert rename(read_text("मीना: हाँ\nमोना: नहीं\nमीना: हाँ\nमोना: नहीं\n", "x")).speakers == {"मीना": 2, "मोना": 2}


def test_places_in_letters_without_capitals_are_no_cues():
    text = "[المطبخ]\nأحمد: نعم\nليلى: لا\n\n" * 4
    assert quality(rename(read_text(text, "x"))) > quality(rename(read_fountain(text, "x")))
    assert quality(read_text(f"TEASER\n{TALK}\n" * 4, "x")) > quality(read_fountain(f"TEASER\n{TALK}\n" * 4, "x"))


def test_a_reading_without_scenes_is_worth_less():
    talk = "MARGE:\nIs it on at last?\n\nHOMER:\nIt was on, and on.\n\n" * 4
    text = "".join(f"SCENE {i}. INT. PIER. DAY.\n\nMARGE WAITS.\n\n{talk}" for i in range(6))
    assert quality(read_text(text, "x")) > quality(read_fountain(text, "x")) > 0.5


def test_a_sentence_that_begins_a_wrapped_row_is_no_name():
    said = "It is on since Tuesday, I believe, and so on. No. Wednesday."
    text = "\n".join(textwrap.fill(f"{w}. {said}", 27, subsequent_indent="  ") for w in ("HAM", "HOR") * 6)
    assert rename(read_text(text, "x")).speakers == {"HAM": 6, "HOR": 6}


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{k}: worker {i} has finished\n" for i in range(9) for k in ("INFO", "ERROR db")),
        "".join(f"Name: Person {i}\nPhone: five\nEmail: a@b.org\n\n" for i in range(9)),
        "Serves: six\n\nIngredients:\n- flour\n- butter\n\nMethod:\nStir the flour.\nBake the pie.\n",
        "Apple: A fruit.\nBoat: A ship.\nCat: A beast.\n\n" + "".join(f"W{i}: A word.\n" for i in range(9)),
    ],
)
def test_logs_forms_recipes_and_lists_of_words_are_doubted(text):
    assert doubts(rename(read_text(text, "x")))[1]


def test_what_looks_like_an_episode_or_a_place_and_is_none():
    assert episode_of("Episode 3 was the best of all.") is None and episode_of("Epic 3") is None
    assert place_of("The scene was long.") is None and place_of("Interesting: no.") is None


@pytest.mark.parametrize(
    "how,sizes", [("auto", [4, 4]), ("blank", [2, 2, 2, 2]), ("blanks", [4, 4]), ("heading", [8]), ("3", [3, 3, 2])]
)
def test_scene_breaks(how, sizes):
    two = "Marge: Is it on?\n\nHomer: It was\non and on.\n"
    text = "\n\n".join([f"{two}\n{two}"] * 2) if how in ("auto", "blanks") else f"{TALK}\n{TALK}\n{TALK}\n{TALK}"
    text = text if how in ("auto", "blanks") else text
    script = read_text(text, "x", Reading(scene_break=how))
    assert [len(s.lines) for s in script.scenes] == sizes


def test_a_file_that_marks_no_scene_is_cut_and_says_so():
    script = cut_whole(read_text(TALK * 50, "x"))
    assert [len(s.lines) for s in script.scenes] == [20] * 5 and "--scene-break" in script.notes[0]


def test_colons_inside_wrapped_speech_make_no_speakers():
    said = "I have said it once and I will say it again, for the last time this evening: station: do not feed the bear."
    text = "\n\n".join(f"{who}: {textwrap.fill(said, 40)}" for who in ("Marge", "Homer") * 4)
    assert rename(read_text(text, "x")).speakers == {"Marge": 4, "Homer": 4}


def test_fountain_cues_of_all_kinds():
    names = ["OTTO BRANDT JR.", "DR. PIKE", "R2 UNIT", "WHO?", "MOM!", "ОЛЕГ", "ÉLODIE", "MAN #2", "@玛拉", "TV/RADIO"]
    text = "".join(f"{n}\nHello there.\n\n" for n in names)
    assert len(lines(text, read_fountain)) == len(names)


@pytest.mark.parametrize("mark", ["[[", "/*"])
def test_marks_that_are_never_closed_are_told(mark):
    text = f"INT. BAR\n\nMOE\nHi. {mark} what\n\nBARNEY\nBeer.\n\nMOE\nNo.\n"
    script = read_fountain(text, "x")
    assert len(script.lines) == 3 and "row 4" in script.notes[0]
    assert script.account()["rows"] == sum(bool(r.strip()) for r in text.split("\n"))


def test_a_note_over_several_rows_is_in_the_account():
    text = "INT. BAR\n\n[[one\ntwo]]\n\nMOE\nHi.\n\n/*\nBARNEY\n\nBeer.\n*/\n"
    script = read_fountain(text, "x")
    assert [x.text for x in script.lines] == ["Hi."] and script.counts["note"] == 6
    assert script.account()["rows"] == sum(bool(r.strip()) for r in text.split("\n"))


def test_a_speech_over_two_pages_is_one_place_and_directions_over_rows_go():
    page = "INT. BAR - DAY\n\n{c}MOE\n{p}(to the glass, and\n{p}to himself)\n{s}Nobody\n{s}drinks.\n"
    page += "{p}(MORE)\n\n{c}2.\n\n{c}MOE (CONT'D)\n{s}From you.\n"
    text = page.format(c=" " * 22, p=" " * 16, s=" " * 11) * 2
    script = rename(read_screenplay(text, "x"))
    assert script.speakers == {"Moe": 4} and script.lines[0].text == "Nobody drinks."
    assert script.account()["rows"] == sum(bool(r.strip()) for r in text.split("\n"))


ROWS = st.sampled_from(
    (
        "Marge: Hi.|HOMER|Homer:|(sighs)|[Pier]|[Marge goes|on]|INT. BAR - DAY|Episode 2|Season 3|2x01|---|# Act|12|"
        "(MORE)|*x* y|  in|          FAR|just words that go on|a: b: c|：|[[|]]|/*|*/|@x|.y|!|>|=|~|**B:** c|CUT TO:|"
        "||é: ü|第3集|\t|&amp;|<i>"
    ).split("|")
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.lists(ROWS, max_size=30), st.sampled_from([read_text, read_play, read_screenplay, read_fountain]))
def test_every_row_is_in_the_account(rows, read):
    text = "\n".join(rows)
    script = read(text, "x")
    assert script.account()["rows"] == sum(bool(r.strip()) for r in text.split("\n"))
    assert sum(script.sizes.values()) >= 0 and all(x.text and x.speaker for x in script.lines)
