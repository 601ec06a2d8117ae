"Measures of a voice: what they must not hear, what they must, and how sure they may be."

import json
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.character.voice import (
    Said,
    SpeakerClassifier,
    by_episode,
    commonest_share,
    confusion,
    difference,
    distinct,
    interval,
    length_class,
    length_distance,
    length_table,
    mask_names,
    plot_confusion,
    plot_voice,
    pooled_accuracy,
    real_or_generated,
    self_bleu,
    text_features,
    told_apart,
    verifier_auc,
)
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes

FAMILY = ["Homer Simpson", "Marge Simpson", "Bart Simpson", "Lisa Simpson"]


@pytest.fixture(scope="module")
def said():
    "All lines of the book's script, by set."
    parts = split_scenes(read_script("springfield").scenes, FAMILY, test_share=0.4)
    return {p: [Said(x.episode, x.speaker, x.text) for s in scenes for x in s.lines] for p, scenes in parts.items()}


@pytest.fixture(scope="module")
def classifier(said):
    return SpeakerClassifier.fit(said["train"], FAMILY)


def made_up(speaker, words, n, seed=0, length=8):
    "Lines of a speaker who draws words from a list, in ten episodes."
    rng = random.Random(f"{speaker}/{seed}")
    return [Said(i % 10, speaker, " ".join(rng.choices(words, k=length))) for i in range(n)]


def test_intervals_are_over_episodes():
    "Twenty equal lines of an episode are one witness, not twenty."
    together = [[float(k % 2)] * 20 for k in range(10)]
    apart = [[0.0, 1.0] * 10 for _ in range(10)]
    wide, narrow = interval(together, np.mean), interval(apart, np.mean)
    assert wide["value"] == narrow["value"] == 0.5 and wide["n"] == 200
    assert 0.55 < wide["high"] - wide["low"] < 0.65 and narrow["high"] == narrow["low"] == 0.5
    assert interval(together, np.mean, seed=3) == interval(together, np.mean, seed=3)
    assert interval(together, np.mean, draws=50, seed=3) != interval(together, np.mean, draws=50, seed=4)
    assert list(wide) == ["value", "low", "high", "n"] and json.dumps(wide)


def test_intervals_leave_out_what_cannot_be_said():
    "A draw without items or with NaN is left out; a number of nothing is None."
    ratio = lambda items: sum(items) / len(items) if sum(items) else float("nan")  # noqa: E731
    found = interval([[1, 1], [0, 0], []], ratio)
    assert found["value"] == 0.5 and 0 < found["low"] <= found["high"] == 1
    nothing = interval([[], []], np.mean)
    assert nothing == {"value": None, "low": None, "high": None, "n": 0}
    assert interval([[2, 4]], np.mean) == {"value": 3.0, "low": None, "high": None, "n": 2}
    with pytest.raises(ValueError, match="no episode"):
        interval([], np.mean)


def test_a_difference_is_paired():
    "Episodes differ by much, the two things by little in each: the difference is sure."
    rng = np.random.default_rng(0)
    pairs = [((x := rng.normal(10 * k, 1, 8)) + 1, x + rng.normal(0, 0.1, 8)) for k in range(8)]
    found = difference([(list(a), list(b)) for a, b in pairs], np.mean)
    assert 0.9 < found["low"] < found["value"] < found["high"] < 1.1 and found["n"] == 64
    swapped = difference([(list(b), list(a)) for a, b in pairs], np.mean)
    assert swapped["value"] == pytest.approx(-found["value"])
    assert difference([([1], [0, 1])], np.mean) == {"value": 0.5, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(
    "text, names, masked",
    [
        ("homer, HOMER's Homeric hom", ["Homer Simpson"], "NAME, NAME's Homeric hom"),
        ("The clown and the bear", ["Krusty the Clown"], "The NAME and the bear"),
        ("Ed and Al met Edna", ["Ed Al Edna"], "Ed and Al met NAME"),
        ("Ed Al Edna", ["Ed Al Edna"], "NAME"),
        ("Homer J. Simpson", ["Homer J. Simpson"], "NAME"),
        ("The bear, clown", ["The Clown"], "The bear, NAME"),
        ("von here, Otto", ["Otto von Ring"], "von here, NAME"),
        ("anna said", ["anna"], "NAME said"),
        ("太郎は太郎だ", ["太郎"], "NAMEはNAMEだ"),
        ("a.b axb", ["a.b"], "NAME axb"),
        ("as it was", [], "as it was"),
        ("as it was", [""], "as it was"),
    ],
)
def test_names_are_masked(text, names, masked):
    assert mask_names(text, names) == masked


def test_names_are_not_heard():
    "Two who differ only in whom they speak to cannot be told apart, unless names are left in."
    words = [f"w{i}" for i in range(40)]
    lines = [
        Said(s.episode, s.speaker, s.text + (" Lenny Leonard" if s.speaker == "Carl Carlson" else " Carl Carlson"))
        for who in ("Carl Carlson", "Lenny Leonard")
        for s in made_up(who, words, 200)
    ]
    train, test = [s for s in lines if s.episode < 5], [s for s in lines if s.episode >= 5]
    speakers = ["Carl Carlson", "Lenny Leonard"]
    deaf, hears = SpeakerClassifier.fit(train, speakers), SpeakerClassifier.fit(train, speakers, names=())
    assert 0.3 < pooled_accuracy(deaf, test, 1)["value"] < 0.7 and pooled_accuracy(hears, test, 1)["value"] == 1
    assert not any("lenny" in name for name in deaf.features.get_feature_names_out())  # nor in training
    assert (deaf.scores(["Lenny Leonard w1 w2"]) == deaf.scores(["Carl Carlson w1 w2"])).all()
    assert np.ptp(hears.scores(["Lenny Leonard"]), axis=1) > 1


def test_rare_speakers_are_no_names(said):
    "Who says 0.2 % of the lines is masked, who says less is not, and the speakers that are told apart always are."
    crowd = [Said(1, "Crowd", "Boo!")] + [Said(1, "Moe Szyslak", "What?")] * 3
    few = [Said(1, who, f"line {i}") for who in ("A Bee", "C Dee") for i in range(800)]
    known = SpeakerClassifier.fit(few + crowd + [Said(1, "Moe Szyslak", "Hm.")], ["A Bee", "C Dee"])
    assert known.names == ("A Bee", "C Dee", "Moe Szyslak")


def test_who_has_more_lines_gets_nothing_for_it(said, classifier):
    "Pools of each of the family are told, of those with few lines in training, too."
    shares = confusion(classifier, said["test"], 20)
    assert np.diag(shares).min() > 0.93, shares
    assert np.allclose(np.exp(classifier.scores(["Oh.", ""])).sum(1), 1) and classifier.scores([]).shape == (0, 4)
    train = [s for s in said["train"] if s.speaker != "Lisa Simpson" or s.episode % 3 == 0]
    assert np.diag(confusion(SpeakerClassifier.fit(train, FAMILY), said["test"], 20)).min() > 0.75


def test_speakers_count_alike():
    "Accuracy is the mean over speakers, however many lines each has; a speaker with too few lines is left out."
    a, b = [f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)]
    train = made_up("A A", a, 60) + made_up("B B", b, 60) + made_up("C C", [*a, *b], 60)
    known = SpeakerClassifier.fit(train, ["A A", "B B", "C C"], names=())
    # of A 90 lines that are A's; of B 10 that are A's as well
    wrong = made_up("A A", a, 90, 1) + [Said(s.episode, "B B", s.text) for s in made_up("A A", a, 10, 2)]
    found = pooled_accuracy(known, wrong, 5)
    assert found["value"] == 0.5 and found["n"] == 100 and found["chance"] == pytest.approx(1 / 3)
    alone = pooled_accuracy(known, wrong, 11)
    assert alone["value"] is None and "fewer than 2 speakers have 11 lines" in alone["why"] and json.dumps(alone)
    assert list(confusion(known, wrong, 11).index) == ["A A"]
    with pytest.raises(ValueError, match="size=0"):
        pooled_accuracy(known, wrong, 0)


def test_accuracy_is_sure_over_episodes():
    "An episode in which all goes wrong makes the interval wide."
    a, b = [f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)]
    known = SpeakerClassifier.fit(made_up("A A", a, 60) + made_up("B B", b, 60), ["A A", "B B"], names=())
    other = {"A A": "B B", "B B": "A A"}
    lines = made_up("A A", a, 90, 1) + made_up("B B", b, 90, 1)
    lines = [Said(s.episode % 3, other[s.speaker] if s.episode % 3 == 0 else s.speaker, s.text) for s in lines]
    found = pooled_accuracy(known, lines, 1)
    assert 0.55 < found["value"] < 0.75 and found["low"] == 0 and found["high"] == 1
    assert found == pooled_accuracy(known, lines, 1)


def test_few_lines_and_speakers_are_refused(said):
    for speakers, meant in ((FAMILY[:1], "2 or more"), ([FAMILY[0]] * 2, "2 or more"), (["Nobody", *FAMILY], "Nobody")):
        with pytest.raises(ValueError, match=meant):
            SpeakerClassifier.fit(said["train"], speakers)


def test_some_thousand_lines_take_seconds(said):
    "Features are limited, and nothing goes line by line."
    many = [Said((k, s.episode), s.speaker, f"{s.text} {k}") for k in range(8) for s in said["train"]]
    begin = time.process_time()
    known = SpeakerClassifier.fit(many, FAMILY)
    pooled_accuracy(known, many, 20)
    letters = np.random.default_rng(0).integers(97, 123, (4000, 12)).astype(np.uint8)  # all words different
    assert text_features().fit_transform([bytes(row).decode() for row in letters]).shape[1] == 20_000 + 4000
    assert time.process_time() - begin < 60  # about a tenth of it


def dealt(said, seed, prefer=0.0):
    "In each episode real and generated lines by lot; the generated ones shorter if `prefer` is above 0."
    rng, moments = np.random.default_rng(seed), []
    for lines in by_episode([s for part in said.values() for s in part]):
        lines = [lines[i] for i in rng.permutation(len(lines))]
        k = len(lines) // 3
        weights = np.exp([-prefer * len(s.text.split()) for s in lines[k:]])
        others = rng.choice(len(lines) - k, k, replace=False, p=weights / weights.sum())
        moments += [(s.episode, s.text, lines[k + i].text) for s, i in zip(lines[:k], others)]
    return moments


def test_a_generator_that_differs_only_in_length_is_not_told(said):
    "Of lines that are drawn by length alone the mean of some detectors is chance, and each is near it."
    found = [real_or_generated(dealt(said, seed, 0.3), sizes=(1,), pools=10)[1]["value"] for seed in range(5)]
    assert abs(np.mean(found) - 0.5) < 0.03 and max(abs(x - 0.5) for x in found) < 0.09, found


def test_lengths_are_compared_with_their_like():
    "Even to a detector that looks at nothing but length, longer lines tell nothing; without the weights, nearly all."
    rng = np.random.default_rng(0)
    words = np.concatenate(
        [rng.integers(1, 16, 400), np.minimum(rng.integers(1, 16, 400) + rng.integers(0, 12, 400), 15)]
    )
    made, episodes = np.repeat([False, True], 400), np.tile(np.arange(400) % 10, 2)
    classes = np.array([length_class("a " * n) for n in words])
    measure = lambda rows: words[rows].mean(1)  # noqa: E731
    found = [told_apart(measure, c, made, episodes, 1, 100, 0)["value"] for c in (classes, classes * 0)]
    assert abs(found[0] - 0.5) < 0.04 and found[1] > 0.7, found


@pytest.mark.parametrize("within", [True, False], ids=["within an episode", "over all"])
def test_copies_are_not_told(said, within):
    "Real lines at other moments, of the same episode or of any."
    lines = [s for s in said["train"] if s.speaker == "Homer Simpson"]
    rng, texts = random.Random(0), []
    for group in by_episode(lines) if within else [lines]:
        texts += rng.sample([s.text for s in group], len(group))
    flat = [s for group in by_episode(lines) for s in group] if within else lines
    found = real_or_generated([(s.episode, s.text, t) for s, t in zip(flat, texts)])
    assert all(abs(f["value"] - 0.5) < 0.05 for f in found.values()), found
    assert list(found) == [1, 20, 50] and json.dumps(found)


def test_a_detector_has_not_seen_the_episode():
    "What gives generated lines away in one episode alone is not learned from that episode."
    words = [f"w{i}" for i in range(30)]
    lines = made_up("A A", words, 300)
    moments = [(s.episode, s.text, f"{t.text} {'xyzuvwabcd'[s.episode] * 9}") for s, t in zip(lines, lines[::-1])]
    moments = [(e, f"{r} {'klmnopqrst'[e] * 9}", g) for e, r, g in moments]
    assert real_or_generated(moments, sizes=(1,))[1]["value"] < 0.75


def test_a_generator_with_one_line_is_told(said):
    "Even where people say it once or twice themselves."
    lines = [s for part in said.values() for s in part]
    own = [(s.episode, "I like that." if k in (5, 600) else s.text, "I like that.") for k, s in enumerate(lines)]
    for moments in ([(e, s, "I like that.") for e, s, _ in dealt(said, 0)], own):
        found = real_or_generated(moments)
        assert found[1]["value"] > 0.95, found
        assert all(f["value"] > 0.95 if f["n"] >= size / 2 else f["value"] is None for size, f in found.items()), found


def test_what_cannot_be_compared_says_why():
    long, short = "one two three four five six seven eight nine ten eleven twelve", "no"
    found = real_or_generated([(k, long, short) for k in range(20)])
    assert all(f["value"] is None and f["n"] == 0 and "same length" in f["why"] for f in found.values())
    assert "2 episodes" in real_or_generated([])[1]["why"]
    two = real_or_generated(
        [(k % 2, f"yes {k}", f"no {k}") for k in range(40)], sizes=(1,)
    )  # fewer episodes than folds
    assert two[1]["value"] == 1
    assert real_or_generated([(k % 2, f"yes {k}", "") for k in range(40)], sizes=(1,))[1]["value"] is None


def test_a_verifier_knows_the_hand(said):
    of = lambda who, parts: [s.text for p in parts for s in said[p] if s.speaker == who]  # noqa: E731
    known, homer = of("Homer Simpson", ["train"]), of("Homer Simpson", ["test"])
    found = verifier_auc(known, homer, of("Lisa Simpson", said), sizes=(1, 20))
    assert 0.5 < found[1]["value"] < found[20]["value"] and found[20]["value"] > 0.75
    assert found[20]["low"] is None
    same = verifier_auc(known, homer, homer[::-1], episodes=list(range(len(homer))))[20]
    assert abs(same["value"] - 0.5) < 0.1 and same["low"] < 0.5 < same["high"]
    # the generated ones are more like the known ones than the real ones are
    assert verifier_auc(known, homer, known)[20]["value"] < 0.35
    with pytest.raises(ValueError, match="expected one each"):
        verifier_auc(known, homer, homer[1:], episodes=list(range(len(homer))))


TEXTS = st.lists(st.text(alphabet="ab .!", max_size=12), max_size=8)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 3))
def test_shares_are_shares(texts, n):
    for value in (distinct(texts, n), self_bleu(texts), commonest_share(texts)):
        assert 0 <= value <= 1
    assert self_bleu(texts) == self_bleu(texts)


def test_plain_counts():
    assert distinct(["no no no no"], 1) == 0.25 and distinct(["no no no no"], 2) == 1 / 3 and distinct([], 2) == 0
    # one run of each length is lost, of 4, 3, 2 and 1; the last counts as a tenth
    by_hand = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    assert self_bleu(["a b c d", "a b c e"]) == pytest.approx(by_hand)
    # a short one pays for its brevity, one without words is left out
    assert self_bleu(["a b", "a b c d", "..."]) == pytest.approx(
        (np.exp(-1) + (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25) / 2
    )
    many = [f"{i % 9} and {i % 7} or {i % 5}" for i in range(200)]
    assert self_bleu(many, most=10, seed=1) == self_bleu(many, most=10, seed=1) != self_bleu(many, most=10, seed=2)
    assert commonest_share(["Yes.", "yes!", "no", "maybe"]) == 0.5
    assert length_table(["a"] * 10 + ["a b c"] * 11) == {0.05: 1, 0.25: 1, 0.5: 3, 0.75: 3, 0.95: 3}
    assert length_distance(["a"] * 10, ["a"] * 5 + ["a b"] * 5)["ks"] == 0.5
    assert length_distance(["a", "b c"], ["d", "e f"]) == {"ks": 0.0, "p": 1.0}
    with pytest.raises(ValueError, match="0 and 1 lines"):
        length_distance([], ["a"])


def test_pictures_show_their_frames(said, classifier):
    import matplotlib

    matplotlib.use("Agg")
    import pandas as pd

    frame = pd.DataFrame({size: pooled_accuracy(classifier, said["test"], size, draws=20) for size in (1, 5, 500)}).T
    ax = plot_voice(frame)
    assert list(ax.lines[0].get_xdata()) == [1, 5]  # what could not be said is not drawn
    assert plot_voice(frame, ax, "others", "red") is ax
    assert [line.get_label() for line in ax.lines] == ["real lines", "chance", "others"]
    table = confusion(classifier, said["test"], 1)
    assert [t.get_text() for t in plot_confusion(table).texts] == [f"{x:.2f}" for x in table.to_numpy().ravel()]
