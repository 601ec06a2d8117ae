"Splits that do not leak, and reports that say what happened."

import json
import random
from collections import Counter

import pytest

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prepare import (
    PrepareConfig,
    deal,
    find_speaker,
    find_speakers,
    known_speaker,
    leak_report,
    load_data,
    ngrams,
    plain_words,
    prepare,
    random_rows_leak,
    report_text,
    split_scenes,
)

BOOK = read_script("springfield").scenes


def scene(episode, *texts, index=0):
    return Scene(
        episode,
        index,
        "Home",
        tuple(Line(episode, i, "Bart" if i % 2 else "Lisa", t, "Home", 10 * episode + i) for i, t in enumerate(texts)),
    )


@pytest.mark.parametrize("split", ["episode", "scene"])
@pytest.mark.parametrize("seed", range(8))
def test_sets_share_nothing_and_hold_the_chosen_characters(split, seed):
    chosen = ["Homer Simpson", "Marge Simpson", "Lisa Simpson", "Bart Simpson"]
    parts = split_scenes(BOOK, chosen, 0.1, 0.15, split, seed)
    units = [{s.episode if split == "episode" else (s.episode, s.index) for s in p} for p in parts.values()]
    assert not (units[0] & units[1] or units[0] & units[2] or units[1] & units[2]) and sum(
        map(len, parts.values())
    ) == len(BOOK)
    assert all(set(chosen) <= {line.speaker for s in p for line in s.lines} for p in parts.values())
    total = sum(len(s.lines) for s in BOOK)
    assert (
        abs(sum(len(s.lines) for s in parts["valid"]) / total - 0.1) < 0.05
        and abs(sum(len(s.lines) for s in parts["test"]) / total - 0.15) < 0.05
    )


def test_a_deal_says_how_far_it_is_from_the_wanted_shares():
    size = {u: 5 + 3 * u for u in range(9)}
    for seed in range(20):
        off, sets = deal(list(size), size, (0.2, 0.1), random.Random(seed))
        train, valid, test = (sum(map(size.get, s)) / sum(size.values()) for s in sets)
        assert (
            abs(off - abs(valid - 0.2) - abs(test - 0.1)) < 1e-12 and abs(train + valid + test - 1) < 1e-12 and off > 0
        )


def test_the_split_has_a_seed_of_its_own():
    assert split_scenes(BOOK, seed=1) == split_scenes(BOOK, seed=1) != split_scenes(BOOK, seed=2)
    random.seed(0)
    first = split_scenes(BOOK, seed=1)
    random.seed(1)
    assert first == split_scenes(BOOK, seed=1)


def test_leaks_are_counted_as_by_hand():
    train = [
        scene(1, "The frogs are in the piano again, Lisa.", "No."),
        scene(2, "One two three four five six seven eight nine ten."),
    ]
    held = [
        scene(
            3,
            "the frogs are in the PIANO again lisa",
            "No.",
            "And one two three four five six seven eight",
            "Nothing of this is known.",
        )
    ]
    report = leak_report(train, held)
    assert [line.number for line in report["leaked"]] == [0] and report["lines"] == 3 and report["line_share"] == 1 / 3
    grams = [ngrams(plain_words(line.text)) for line in held[0].lines]
    assert (
        report["ngrams"] == len(set().union(*grams)) == 3
        and report["ngram_share"] == 2 / 3
        and [line.number for line in report["similar"]] == [0, 2]
    )


def test_random_rows_leak_as_a_plain_count_says():
    "The quick count against rows that are really made."
    for lines in (0, 1, 3, 10):
        rng, train, held = random.Random(5), [], []
        for s in BOOK:
            for i, kept in enumerate([rng.random() >= 0.2 for _ in s.lines]):
                if kept:
                    train += [" ".join(plain_words(line.text)) for line in s.lines[max(0, i - lines) : i + 1]]
                elif len(plain_words(s.lines[i].text)) >= 4:
                    held.append(" ".join(plain_words(s.lines[i].text)))
        known = set(train)
        assert random_rows_leak(BOOK, 0.2, lines, 5) == sum(h in known for h in held) / len(held)


def test_a_split_that_leaks_stops_with_the_lines_named(tmp_path):
    gag = "Get out of my bar and stay out, you."
    rows = [
        f"[Episode {e}]\nMoe: {gag}\nBarney: Line number {e} is about {word}.\n"
        for e, word in enumerate("apples frogs pianos rivers clouds".split(), 1)
    ]
    (tmp_path / "gag.txt").write_text("\n".join(rows))
    with pytest.raises(ValueError) as e:
        prepare(PrepareConfig(script=str(tmp_path / "gag.txt"), out=str(tmp_path / "out")))
    assert gag in str(e.value) and "(episode " in str(e.value) and " of the file)" in str(e.value)
    assert "max_leak" in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "out").exists()
    report = prepare(PrepareConfig(script=str(tmp_path / "gag.txt"), out=str(tmp_path / "out"), max_leak=1.0))
    text = report_text(report)
    assert (
        f"'{gag}' in 5 episodes" in text and report["running_gags"][0]["times"] == 5 and f"leaked: Moe: {gag}" in text
    )


def test_a_report_a_person_can_read(tmp_path):
    (tmp_path / "x.fountain").write_text(
        "\n\n".join(
            f"# Episode {e}\n\nINT. HOME\n\nBART\nLine {e} of mine {word}.\n\nLISA\nAnd {word} too."
            for e, word in enumerate("apples frogs pianos rivers clouds stars".split(), 1)
        )
    )
    report = prepare(PrepareConfig(script=str(tmp_path / "x.fountain"), out=str(tmp_path / "out"), speakers="Bart"))
    text = report_text(report)
    for says in (
        "x.fountain, read as fountain",
        "rows = ",
        "12 spoken lines",
        "to learn: Bart",
        "split by episode, seed 42",
        "train",
        "limit 1.0%",
        "as in the seed",
    ):
        assert says in text, says
    assert all((tmp_path / "out" / n).stat().st_size > 500 for n in ("speakers.png", "lengths.png"))
    parts, again = load_data(tmp_path / "out")
    assert again == json.loads(json.dumps(report)) and sum(len(s.lines) for p in parts.values() for s in p) == 12


def test_rejected_rows_are_named_by_line_and_reason(tmp_path):
    (tmp_path / "x.txt").write_text(
        "".join(f"[Home]\nBart: Line {i}.\nMoe: {i}?\n" for i in range(6)) + "no speaker\nnobody either\n"
    )
    report = prepare(PrepareConfig(script=str(tmp_path / "x.txt"), out=str(tmp_path / "out"), split="scene"))
    assert "rejected: 2 x no speaker is named" in report_text(report) and "(lines 19, 20)" in report_text(report)
    assert (tmp_path / "out" / "rejected.csv").read_text().count("no speaker is named") == 2


def test_a_character_missing_from_a_set_is_warned_of(tmp_path):
    (tmp_path / "x.txt").write_text(
        "".join(
            f"[Episode {e}]\nBart: Line {e} of {w}.\n" + ("Moe: Closed today.\n" if e == 1 else "") + "\n"
            for e, w in enumerate("apples frogs pianos rivers".split(), 1)
        )
    )
    report = prepare(PrepareConfig(script=str(tmp_path / "x.txt"), out=str(tmp_path / "out"), speakers="Bart,Moe"))
    assert "WARNING: Moe to learn, but without a line in" in report_text(report)


def test_names_are_found_whatever_their_case():
    speakers = dict(Counter(line.speaker for s in BOOK for line in s.lines).most_common())
    assert find_speakers(" HOMER simpson ,Moe Szyslak", speakers) == ["Homer Simpson", "Moe Szyslak"]
    with pytest.raises(ValueError, match="did you mean"):
        find_speakers("Hommer", speakers)


def test_a_name_spelt_as_in_the_script_is_that_name(tmp_path, capsys):
    "A script's spellings are one; among those of other sources the exact one wins, then the one with more lines."
    speakers = {"Homer": 40, "HOMER": 7, "homer": 1}
    assert [find_speaker(n, speakers) for n in speakers] == list(speakers) and find_speaker(
        " HoMeR ", speakers
    ) == "Homer"
    assert (
        find_speaker("HOMER", dict(reversed(speakers.items()))) == "HOMER"
        and find_speaker("hOMER", dict(reversed(speakers.items()))) == "Homer"
    )
    rows = [
        f"[Episode {e}]\nHomer: Number {e} is about {word}.\nHomer: And {word} too.\nHOMER: {word.upper()}!\n"
        for e, word in enumerate("apples frogs pianos rivers clouds".split(), 1)
    ]
    (tmp_path / "two.txt").write_text("\n".join(rows))
    for asked in ("Homer", "HOMER", "homer"):
        report = prepare(
            PrepareConfig(script=str(tmp_path / "two.txt"), out=str(tmp_path / "out"), speakers=asked, max_leak=1.0)
        )
        assert report["speakers"] == ["Homer"] and report["sets"]["train"]["learned_lines"] == 9
        assert report["merged"] == {"Homer": {"HOMER": 5}} and "Homer is also spelt HOMER (5)" in report_text(report)
    capsys.readouterr()
    assert known_speaker("HOMER", speakers) == "HOMER" and not capsys.readouterr().out
    assert known_speaker("HoMer", speakers) == "Homer" and "is read as 'Homer'" in capsys.readouterr().out
    assert known_speaker("Whoever", {}) == "Whoever"


def test_a_name_may_hold_commas():
    speakers = {"Homer": 40, "Sammy": 9, "Sammy Davis": 5, "Sammy Davis, Jr.": 3, "Jr.": 2, "Larry, Moe, Curly": 1}
    for wanted, found in (
        ("Sammy Davis, Jr.", ["Sammy Davis, Jr."]),
        ("Homer,sammy davis ,jr. ,Sammy", ["Homer", "Sammy Davis, Jr.", "Sammy"]),
        ("Jr.,Sammy Davis", ["Jr.", "Sammy Davis"]),
        ("Sammy Davis,Homer,Jr.", ["Sammy Davis", "Homer", "Jr."]),
        ("Larry,Moe, Curly,Homer", ["Larry, Moe, Curly", "Homer"]),
        (" ,Homer,, ", ["Homer"]),
        ("", []),
    ):
        assert find_speakers(wanted, speakers) == found, wanted
    with pytest.raises(ValueError, match="no speaker called 'Larry'; did you mean"):
        find_speakers("Homer,Larry, Moe", speakers)
    with pytest.raises(ValueError, match="did you mean Sammy Davis, Jr."):
        find_speakers("Sammy Davies, Jr.", {k: v for k, v in speakers.items() if k != "Sammy Davis"})


def test_names_that_look_alike_are_alike():
    assert find_speaker("sen\u0303or  skinner", {"Se\u00f1or Skinner": 3}) == "Se\u00f1or Skinner"


@pytest.mark.parametrize("held", ["valid", "test"])
@pytest.mark.parametrize("more", ["", "And one word more"])
def test_each_way_to_leak_stops_the_split(held, more, tmp_path):
    "A line of training comes again in one held-out set alone; whole, or so that only runs of eight words are the same."
    words = "apples frogs pianos rivers clouds".split()

    def script(extra):
        return "\n".join(
            f"[Episode {e}]\nBarney: Number {e} is about {w}.\nMoe: {extra.get(e, f'Now {w} are closed.')}\n"
            for e, w in enumerate(words)
        )

    (tmp_path / "x.txt").write_text(script({}))
    parts = split_scenes(read_script(tmp_path / "x.txt").scenes)
    said, (learned, unseen) = "Get out of my bar and stay out today", (parts[n][0].episode for n in ("train", held))
    (tmp_path / "x.txt").write_text(script({learned: f"{said}.", unseen: f"{said}. {more}".strip()}))
    with pytest.raises(ValueError, match=rf"max_leak=0.01: '{said}\. ?{more}' \(episode {unseen}"):
        prepare(PrepareConfig(script=str(tmp_path / "x.txt"), out=str(tmp_path / "out")))


def test_data_that_was_changed_afterwards_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text(
        "\n".join(
            f"[Episode {e}]\nMoe: Number {e} is about {w}.\n" for e, w in enumerate("apples frogs pianos".split(), 1)
        )
    )
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
        prepare(PrepareConfig(script=str(tmp_path / "x.txt"), out=str(tmp_path / "out")))
        load_data(tmp_path / "out")
        file = tmp_path / "out" / name
        file.write_text(file.read_text().replace("about", "ABOUT"))
        with pytest.raises(ValueError, match=f"{name} is missing or not what prepare wrote"):
            load_data(tmp_path / "out")
        file.unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load_data(tmp_path / "out")
