"Moments, likelihoods and the evaluate job, on the tiny model."

import json
import math

import pytest
import torch

import simpsons_llm.character.evaluate as E
import simpsons_llm.character.likelihood as L
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import read_json, read_jsonl, unseal, write_json
from simpsons_llm.model.base import load_base
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import finish_lines
from simpsons_llm.model.verbatim import Seen
from simpsons_llm.train.finetune import FinetuneConfig, finetune

CPU = find_device("cpu", "float32")


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_base("tiny", CPU)
    return model.eval(), TextMaker(tokenizer)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run that learned next to nothing."
    folder = tmp_path_factory.mktemp("runs") / "x"
    finetune(FinetuneConfig(run=str(folder), base_model="tiny", max_steps=4, max_seq_len=400, device="cpu"))
    return folder


def scene(episode, *speakers, text="Nobody said anything like {} before."):
    return Scene(
        episode, episode, "Kitchen", tuple(Line(episode, i, s, text.format(i)) for i, s in enumerate(speakers))
    )


def test_moments_are_shared_out():
    "At most a third for one character, spread over the scenes; what fits is everything; the first line has no before."
    scenes = [scene(e, *("HHHHHHHHHM" if e < 3 else "HBBM")) for e in range(6)]
    every = L.choose_moments(scenes)
    assert len(every) == sum(len(s.lines) - 1 for s in scenes) == len(L.choose_moments(scenes, most=1000))
    some = L.choose_moments(scenes, most=12)
    count = {who: sum(m.line.speaker == who for m in some) for who in "HBM"}
    assert count == {"H": 4, "B": 4, "M": 4} and len({m.scene.episode for m in some if m.line.speaker == "H"}) == 3
    assert some == [m for m in every if m in some]  # in the order of the scenes
    assert {m.line.speaker for m in L.choose_moments(scenes, ["B"])} == {"B"} and L.choose_moments([]) == []
    silent = Scene(9, 9, "", (Line(9, 0, "H", "Hm."), Line(9, 1, "H", " "), Line(9, 2, "H", "Oh.", learn=False)))
    assert L.choose_moments([silent]) == []  # nothing said, or not to be learned


@pytest.mark.parametrize("template", ["script", "alpaca"])
@pytest.mark.parametrize("limit", [None, 60])
def test_candidates_cost_what_each_costs_alone(tiny, template, limit):
    "Read together or one by one, cut or not: the same nats."
    model, tokenizer = tiny[0], tiny[1].tokenizer
    maker = TextMaker(tokenizer, template, limit)
    moment = L.Moment(scene(1, "Homer Simpson", "Bart Simpson", "Marge Simpson", "Homer Simpson"), 3)
    others = ["Bart Simpson", "C. Montgomery Burns"]
    heard = L.hear(L.Reader(model), maker, moment, others)
    for who, nats in zip(others, heard.others):
        changed = Scene(1, 1, "Kitchen", (*moment.scene.lines[:3], moment.line._replace(speaker=who)))
        assert math.isclose(L.hear(L.Reader(model), maker, L.Moment(changed, 3)).nats, nats, rel_tol=1e-4)
    assert bool(heard.names) == (template == "script")
    if heard.names:
        head = [*maker.ids("[Kitchen]\n")]
        assert head and len(heard.names) == 3


def test_a_long_name_has_the_same_lines_before_it(tiny, monkeypatch):
    "Where the scene is cut, it is cut alike for all."
    maker, seen = TextMaker(tiny[1].tokenizer, "script", 190), []
    read = L.sequence_nats
    monkeypatch.setattr(L, "sequence_nats", lambda r, rows, *more: (seen.append(rows), read(r, rows, *more))[1])
    moment = L.Moment(scene(1, *(["Bo", "Al"] * 4)), 7)
    L.hear(L.Reader(tiny[0]), maker, moment, ["A name of a good many more letters than the other one has"])
    opening, other = seen[0]
    head = len(maker.name("Al"))
    said = len(maker.said([moment.line])[0][1]) + len(maker.end)
    assert opening[: len(opening) - head - said] == other[: len(opening) - head - said]
    assert len(other) <= 190 and len(opening) < sum(len(x.text) for x in moment.scene.lines)


def test_the_verifier_hears_no_names(monkeypatch):
    from types import SimpleNamespace

    given = {}
    moments = [L.Moment(scene(e, "B", "A"), 1) for e in range(3)]
    train = [E.Said(9, "A", f"line {k}") for k in range(E.LEAST_LINES)]
    ground = E.Ground(moments, train, Seen([]), SimpleNamespace(names=("Bo",)), [])
    monkeypatch.setattr(E, "verifier_auc", lambda *a, **k: given.update(names=a[5], known=a[0]) or {20: {"value": 0.5}})
    assert E.verified(ground, [(e, "x", "y") for e in range(3)], 0) == {"value": 0.5}
    assert given["names"] == ("Bo",) and len(given["known"]) == E.LEAST_LINES


def test_sequences_without_a_common_beginning_are_refused(tiny):
    with pytest.raises(ValueError, match="one beginning"):
        L.sequence_nats(L.Reader(tiny[0]), [[1, 2], [2, 3]], 0)


def test_a_reader_that_remembers_reads_the_same(tiny):
    "Longer, shorter, other and the same sequences in turn: what was read before leaves no trace."
    reader = L.Reader(tiny[0])
    for ids in ([5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [5, 6, 11], [5, 6, 11], [12], [5, 6, 7, 8], [5]):
        with torch.no_grad():
            logits, cache = reader.read(ids)
            plain = tiny[0](torch.tensor([ids])).logits[:, -1:]
        assert torch.allclose(logits, plain, atol=1e-5) and cache.get_seq_length() == len(ids)
        cache.batch_repeat_interleave(3)  # the caller's own
        assert reader.cache.layers[0].keys.shape[0] == 1


def test_a_name_is_worth_its_whole_probability(tiny):
    "Names of several tokens: the product, as the model would write them."
    model, maker = tiny
    moment = L.Moment(scene(1, "Bart Simpson", "Homer Simpson"), 1)
    heard = L.hear(L.Reader(model), maker, moment, ["Lisa Simpson"])
    before = maker.heading("Kitchen")
    from simpsons_llm.data.prompt import prompt_ids

    ids = prompt_ids(maker, "Kitchen", list(moment.scene.lines[:1]), "Homer Simpson")
    size = len(maker.name("Homer Simpson"))
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nats = -sum(float(logs[k - 1, ids[k]]) for k in range(len(ids) - size, len(ids)))
    assert math.isclose(heard.names[0], nats, rel_tol=1e-4) and ids[: len(before)] == before


def test_answers_are_those_of_one_batch(tiny, monkeypatch):
    "Sorted by length and back in place; an answer that was cut is not said to have ended."
    model, maker = tiny
    moments = [L.Moment(scene(1, *("AB" * k)), 2 * k - 1) for k in (3, 1, 2)]
    greedy = Sampling(6, do_sample=False, repetition_penalty=1.0)
    texts, ended = E.speak_at(model, maker, moments, greedy)
    assert texts == [finish_lines(model, maker, [m.request()], greedy)[0] for m in moments] and ended == [False] * 3

    class Ends(TextMaker):
        stop_ids = [n for n in range(len(maker.tokenizer)) if n != maker.tokenizer.pad_token_id]

    for said, ended in (("Yes.", True), ("...", False)):  # silence is no answer
        monkeypatch.setattr(E, "answer_text", lambda tokenizer, ids, said=said: said)
        assert E.speak_at(model, Ends(maker.tokenizer), moments, greedy) == ([said] * 3, [ended] * 3)


def test_runs_of_words_are_counted_one_by_one():
    "Not whole lines; a longer run holds the shorter ones."
    seen = Seen(["one two three four five six seven eight nine ten", "Eight nine ten, eleven!"])
    said = "Two, three, four, five, six, seven, eight, nine and ten"
    assert seen.count(said) == (1, 3) and seen.longest(said) == 8 and seen.longest("eight nine ten eleven twelve") == 4
    assert seen.longest("") == 0 and seen.longest("never") == 0 and Seen([]).longest("one") == 0
    assert seen.share([said, "short"]) == 1 / 3


def test_moments_are_of_the_split_that_was_given(run):
    parts, report = E.load_data(run / "data")
    for split in ("valid", "test"):
        moments = E.make_ground(parts, report, E.EvaluateConfig(split=split), 20).moments
        assert {m.scene for m in moments} <= set(parts[split])


def test_figures_have_their_names():
    "Only the losses of the run tell whose they are."
    found = {"tuned": {"loss_nats": 1, "distinct_2": 2}, "human": {"distinct_2": 3}, "base": {"loss_nats": 4}}
    assert E.named(found) == {"loss_nats_tuned": 1, "distinct_2": 2, "distinct_2_human": 3, "loss_nats_base": 4}
    assert [E.figure_name("auc_real_20", s) for s in ("tuned", "base")] == ["auc_real_20", "auc_real_20_base"]
    assert set(E.BOTH) < set(E.MEANINGS)


def test_data_beside_the_run_is_found(tmp_path):
    "A run on a folder that prepare wrote does not hold its data."
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    prepare(PrepareConfig(script="springfield", out=str(tmp_path / "data")))
    run = str(tmp_path / "x")
    given = dict(base_model="tiny", max_steps=2, max_seq_len=400, gate=False, sample_steps=0, device="cpu")
    finetune(FinetuneConfig(run=run, data=str(tmp_path / "data"), **given))
    asked = dict(run=run, lines=9, max_new_tokens=4, split="valid", device="cpu")
    found = [E.evaluate(E.EvaluateConfig(**asked, **more)) for more in ({}, {"data": str(tmp_path / "data")})]
    assert found[0]["loss_nats_tuned"] == found[1]["loss_nats_tuned"]


def test_a_side_has_one_colour_in_both_panels():
    "People are not told from themselves, so the right panel has a line less."
    made = {"speaker_acc_1": {"value": 0.5}, "speaker_acc_20": {"value": 0.8}}
    told = {**made, "auc_real_1": {"value": 0.6}, "auc_real_20": {"value": None}}
    ground = E.Ground([], [], Seen([]), None, [])
    left, right = E.draw({"human": made, "base": told, "tuned": told}, {}, ground)["pools.png"].axes
    colours = {x.get_label(): x.get_color() for x in left.lines}
    beside = {x.get_label(): x.get_color() for x in right.lines if x.get_label() in colours}
    assert set(colours) == {"human", "base", "tuned"} and set(beside) == {"base", "tuned"}
    assert all(colours[name] == color for name, color in beside.items())


def test_an_evaluation_repeats_and_counts_its_looks(run):
    "Same seed, same figures; each look at the test scenes is counted, one at validation is not."
    given = dict(run=str(run), lines=40, max_new_tokens=8, device="cpu")
    found = [E.evaluate(E.EvaluateConfig(**given)) for _ in range(2)]
    assert [f["about"]["test_looks"] for f in found] == [1, 2] == [1, len(read_jsonl(run / "test_looks.jsonl"))]
    for name in found[0]:
        assert name == "about" or found[0][name] == found[1][name], name
    assert "looked at 2 times" in (run / "evaluation" / "report.md").read_text()
    valid = E.evaluate(E.EvaluateConfig(**given, split="valid", beside=str(run), out=str(run / "v")))
    assert "test_looks" not in valid["about"] and valid["loss_nats_x"] == valid["loss_nats_tuned"]
    change = valid["loss_nats_change_from_x"]
    assert change["value"] == change["low"] == change["high"] == 0
    wanted = (
        "loss_nats_base loss_nats_tuned bits_per_byte_tuned contrast_nats next_speaker_acc speaker_acc_20 "
        "speaker_acc_20_human auc_real_20 auc_real_20_base verbatim_8gram verbatim_8gram_human distinct_2 "
        "distinct_2_human ends_by_itself forgetting_bits_per_byte"
    )
    for name in wanted.split():
        assert {"value", "low", "high", "n"} <= set(found[0][name]), name
    json.dumps(found[0], allow_nan=False)


def test_what_cannot_be_measured_is_refused(run, tmp_path):
    "One sentence each."
    for given, words in (
        ({}, "no run was given"),
        ({"run": str(tmp_path)}, "no adapter in"),
        ({"run": str(run), "beside": str(tmp_path / "y")}, "no adapter in"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            E.evaluate(E.EvaluateConfig(device="cpu", **given))
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    notes = next(other.rglob("simpsons_llm.json"))
    unseal(notes.parent)  # changed on purpose
    write_json(notes, {**read_json(notes), "data_sha256": {"train": "0"}})
    with pytest.raises(ValueError, match="trained on other data"):
        E.evaluate(E.EvaluateConfig(run=str(other), lines=8, device="cpu"))
    parts, report = E.load_data(run / "data")
    with pytest.raises(ValueError, match="test-share"):
        E.make_ground({**parts, "test": []}, report, E.EvaluateConfig(), 0)
    one = E.make_ground(parts, {**report, "speakers": ["Marge Simpson"]}, E.EvaluateConfig(split="valid"), 0)
    assert len(one.classifier.speakers) == E.LEAST_SPEAKERS and one.classifier.speakers[0] == "Marge Simpson"
    alone = {**parts, "train": [s for s in parts["train"] if len(s.lines) < 9][:1]}
    few = E.make_ground(alone, report, E.EvaluateConfig(split="valid"), 0)
    assert few.classifier is None and any("two characters" in n for n in few.notes)
    assert E.verified(few, [(0, "a", "b")] * len(few.moments), 0)["value"] is None


def test_runs_beside_have_names_of_their_own(run, tmp_path):
    "Folders of one name, or of a name that means something here."
    import shutil

    for name in ("a/base", "b/base", "a/run"):
        shutil.copytree(run / "adapter", tmp_path / name / "adapter")
    sources = [str(tmp_path / n) for n in ("a/base", "b/base", "a/run/adapter", "a/run")]
    assert E.side_names(sources) == ["base_2", "base_3", "run", "run_2"]


def test_variety_is_compared_on_as_many_words():
    "Of each episode; short answers are no more varied for being short."
    moments = [L.Moment(scene(e, "A", "B", "A"), k) for e in (1, 2) for k in (1, 2)]
    ground = E.Ground(moments, [], Seen([]), None, [])
    long, short = ["a b c d", "a b c d", "e f", "g h"], ["a b", "c", "d e f", "d e f g"]
    cut = E.as_many_words({"x": E.Side("x", long), "y": E.Side("y", short)}, ground)
    assert cut == {"x": ["a b c", "", "e f", "g h"], "y": ["a b", "c", "d e f", "d"]}


def test_silence_is_told(tiny):
    moments = [L.Moment(scene(1, "A", "B", "A"), k) for k in (1, 2)]
    ground, human = E.Ground(moments, [], Seen([]), None, []), E.Side("human", ["One two three.", "Four five six."])
    found = E.figures_of(E.Side("x", ["", "..."], [False, False]), ground, human)
    assert found["empty_share"]["value"] == 1 and found["ends_by_itself"]["value"] == 0
    assert found["verifier_20"]["value"] is None and found["distinct_2"]["value"] == 0
