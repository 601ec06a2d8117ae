"The preference stage: its loss, its pairs, the best of several answers, and the job from a run to a run."

import math
import shutil

import pytest
import torch

from simpsons_llm.character import contrast as C
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prepare import load_data
from simpsons_llm.data.prompt import CHATML, TextMaker, small_tokenizer
from simpsons_llm.data.samples import row_samples, scene_samples
from simpsons_llm.machine.cli import main
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import read_json, read_jsonl
from simpsons_llm.model.adapter import find_trained, load_adapter, load_tuned
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import InferConfig, infer
from simpsons_llm.model.loss import PadRight, token_losses
from simpsons_llm.ranks.execute import run_chapter
from simpsons_llm.train.run import Run

A, B = "Homer Simpson", "Marge Simpson"
SAID = ((A, "Mmm, a donut."), (B, "Homer, that is a tie."), (A, "It is still good!"), (B, "The dog wears it."))
SCENE = Scene(1, 0, "Kitchen", tuple(Line(1, i, who, text) for i, (who, text) in enumerate(SAID)))
REQUESTS = [("Kitchen", SCENE.lines[:i], line.speaker) for i, line in enumerate(SCENE.lines)]


def test_the_loss_by_hand_and_where_it_pulls():
    "Two pairs, added up by hand; the right line is pulled up and the wrong one down, the more the worse it stands."
    policy = torch.tensor([[-10.0, -9.0], [-20.0, -26.0]], requires_grad=True)
    reference, counts = torch.tensor([[-11.0, -8.0], [-20.0, -25.0]]), torch.tensor([[5.0, 4.0], [10.0, 13.0]])
    losses, margins = C.pair_losses(policy, reference, counts, 0.5, 0.25)
    by_hand = [0.5 * ((1) - (-1)), 0.5 * (0 - (-1))]
    assert margins.tolist() == by_hand
    for loss, margin, nats, n in zip(losses.tolist(), by_hand, (-10, -20), (5, 10)):
        assert math.isclose(loss, math.log(1 + math.exp(-margin)) - 0.25 * nats / n, rel_tol=1e-6)
    plain, _ = C.pair_losses(policy, reference, counts, 0.5, 0.0)
    (pull,) = torch.autograd.grad(plain.sum(), policy)
    assert (pull[:, 0] < 0).all() and (pull[:, 1] > 0).all() and torch.allclose(pull.sum(1), torch.zeros(2))
    assert pull[1, 1] > pull[0, 1]  # its margin is smaller
    by_token = C.pair_losses(policy, reference, counts, 0.5, 0.0, True)[1]
    assert torch.allclose(by_token, torch.tensor([0.5 * (1 / 5 + 1 / 4), 0.5 * (0 + 1 / 13)]))


@pytest.mark.parametrize("template", ("script", "alpaca", "chat"))
def test_a_line_is_scored_as_it_is_trained(template):
    model, tokenizer = tiny_model()[0].eval(), small_tokenizer(300, *CHATML)
    model.resize_token_embeddings(len(tokenizer))
    maker = TextMaker(tokenizer, template)
    texts, pad = [line.text for line in SCENE.lines], tokenizer.pad_token_id
    nats, counts = C.line_logprobs(model, maker, REQUESTS, texts, batch_size=3)
    for i, sample in enumerate(row_samples([SCENE], maker, max_seq_len=2000, context_lines=99)[0]):
        losses, weights = token_losses(model, PadRight(pad)([sample.features()]))
        assert counts[i] == sample.learned == weights.sum()
        assert abs(nats[i].item() + (losses * weights).sum().item()) < 1e-3
    again, _ = C.line_logprobs(model, maker, REQUESTS, texts, grad=True)
    assert torch.allclose(nats, again, atol=1e-3) and again.requires_grad and not nats.requires_grad
    alone = [C.line_logprobs(model, maker, [r], [t])[0].item() for r, t in zip(REQUESTS, texts)]
    assert torch.allclose(nats, torch.tensor(alone), atol=1e-3)


def test_all_lines_of_a_scene_are_its_sample():
    "In the plain form one pass over the scene learns what its lines learn one by one."
    model, tokenizer = tiny_model()
    maker = TextMaker(tokenizer)
    (sample,), _ = scene_samples([SCENE], maker, max_seq_len=2000)
    losses, weights = token_losses(model.eval(), PadRight(0)([sample.features()]))
    nats, counts = C.line_logprobs(model, maker, REQUESTS, [line.text for line in SCENE.lines])
    assert counts.sum() == weights.sum() and abs(nats.sum().item() + (losses * weights).sum().item()) < 1e-2


def test_no_lines_and_a_line_that_is_too_long():
    model, tokenizer = tiny_model()
    assert [len(x) for x in C.line_logprobs(model, TextMaker(tokenizer), [], [])] == [0, 0]
    with pytest.raises(ValueError, match="has 301 tokens.*leave it out"):
        C.line_logprobs(model, TextMaker(tokenizer, max_seq_len=100), REQUESTS[:1], ["x" * 299])


def test_contrast_is_a_difference_of_log_probabilities():
    model, tokenizer = tiny_model()
    model, maker, text = model.eval(), TextMaker(tokenizer), "D'oh!"
    names = [A, B, "Moe"]
    nats, counts = C.line_logprobs(model, maker, [("", [], name) for name in names], [text] * 3)
    (found,) = C.contrasts(model, maker, [("", [], A, text)], names)
    assert math.isclose(found, ((nats[0] - (nats[1] + nats[2]) / 2) / counts[0]).item(), abs_tol=1e-6)
    assert C.contrasts(model, maker, [("", [], A, text)], [B, A, "Moe", B]) == pytest.approx([found], abs=1e-6)
    with pytest.raises(ValueError, match="names nobody else"):
        C.contrasts(model, maker, [("", [], A, text)], [A])


def test_the_best_is_chosen_by_contrast(monkeypatch):
    "Of the answers of its own request, an empty one last."
    said = {A: ["", "b", "c"], B: ["d", "", "e"]}
    worth = {"b": -2.0, "c": -1.0, "d": 5.0, "e": 4.0}
    model, tokenizer = tiny_model()

    def draw(model, maker, asked, sampling, seed):
        assert [who for *_, who in asked] == [A] * 3 + [B] * 3
        return said[A] + said[B]

    monkeypatch.setattr(C, "finish_lines", draw)
    monkeypatch.setattr(C, "contrasts", lambda model, maker, moments, others: [worth[m[3]] for m in moments])
    asked = [("", [], A), ("", [], B)]
    best, rows = C.best_of(model, TextMaker(tokenizer), asked, 3, others=(A, B), table=True)
    assert best == ["c", "d"] == C.best_of(model, TextMaker(tokenizer), asked, 3, others=(A, B))
    assert [r["answer"] for r in rows] == ["c", "b", "", "d", "e", ""]
    said[A] = ["", "", ""]
    assert C.best_of(model, TextMaker(tokenizer), asked, 3, others=(A, B)) == ["", "d"]
    for bad, meant in (({"n": 0}, "n=0"), ({"others": [B]}, "nobody else")):
        with pytest.raises(ValueError, match=meant):
            C.best_of(model, TextMaker(tokenizer), asked, **{"n": 3, "others": (A, B), **bad})


def test_the_best_of_real_answers():
    model, tokenizer = tiny_model()
    model, maker, s = model.eval(), TextMaker(tokenizer), Sampling(max_new_tokens=12)
    best, rows = C.best_of(model, maker, REQUESTS[:2], 4, s, 3, [A, B], table=True)
    for i, request in enumerate(REQUESTS[:2]):
        mine = [r for r in rows if r["request"] == i]
        found = C.contrasts(model, maker, [(*request, r["answer"]) for r in mine], [A, B])
        assert best[i] == mine[found.index(max(found))]["answer"]


def test_a_wrong_line_is_somebody_elses_and_of_like_length(data):
    scenes = load_data(data)[0]["train"]
    moments = C.moments_to_learn(scenes, [A], 10**6, 1)
    said = {line.text for s in scenes for line in s.lines if line.speaker == A}
    pairs = C.speaker_pairs(moments, scenes, 1)
    assert len(pairs) == len(moments) and {p.request[2] for p in pairs} == {A}
    assert not {p.wrong for p in pairs} & said and {p.right for p in pairs} <= said
    later = [p.wrong in [x.text for x in s.lines[i + 1 :]] for p, (s, i) in zip(pairs, moments)]
    before = [p.wrong in [x.text for x in s.lines[:i]] for p, (s, i) in zip(pairs, moments)]
    assert sum(later) > len(later) / 5 and not any(before)
    assert pairs == C.speaker_pairs(moments, scenes, 1) != C.speaker_pairs(moments, scenes, 2)
    # what both say is nobody's mark
    both = Scene(1, 0, "", (Line(1, 0, A, "What?"), Line(1, 1, B, "what!"), Line(1, 2, B, "Why not?")))
    assert {p.wrong for k in range(9) for p in C.speaker_pairs([(both, 0)], [both], k)} == {"Why not?"}


FEW = {"device": "cpu", "learning_rate": 3e-3, "global_batch_size": 4, "micro_batch_size": 2}


@pytest.fixture(scope="module")
def stage(run, tmp_path_factory):
    "A short stage after the tiny run: (folder, summary)."
    out = tmp_path_factory.mktemp("contrast") / "y"
    return out, C.contrast(C.ContrastConfig(run=str(run[0]), out=str(out), pairs=10, epochs=2, **FEW))


def test_the_stage_leaves_a_run(run, stage, data):
    out, summary = stage
    assert summary == read_json(out / "summary.json") and not (out / ".lock").exists()
    number = sum(summary["pairs"]["train"].values())
    assert 10 < number <= 20 and summary["optimizer_steps"] == summary["best_step"] == 2 * math.ceil(number / 4)
    assert find_trained(out).kind == "adapter" and find_trained(out).notes["contrast"]["pairs"] == 10
    assert load_data(out / "data")[1] == load_data(data)[1] == Run(out).data().report
    assert abs(summary["valid_loss_nats_before"] - run[1]["valid_loss_nats_best"]) < 1e-3
    for text in (repr(Run(out)), C.contrast_text(summary), str(Run(out).losses()), str(Run(out).texts())):
        assert len(text) > 100
    said = infer(InferConfig(adapter=str(out), data=str(out / "data"), max_new_tokens=4, device="cpu"))
    assert said["answers"] and said["before_after"]
    model, _, _ = load_tuned(out, find_device("cpu", "float32"))
    before, _, _ = load_tuned(run[0], find_device("cpu", "float32"))
    moved = [n for (n, p), q in zip(model.named_parameters(), before.parameters()) if not torch.equal(p, q)]
    assert moved and all("lora_" in n for n in moved)


def test_the_first_step_knows_nothing_and_the_last_ones_more(stage):
    "Reference and policy are the same at first: every margin is 0, and DPO's loss log 2."
    out, summary = stage
    rows = [r for r in read_jsonl(out / "metrics.jsonl") if "margin" in r]
    assert len(rows) == summary["optimizer_steps"] and abs(rows[0]["margin"]) < 1e-5
    assert abs(rows[0]["right_gain_nats"]) < 1e-3 and abs(rows[0]["wrong_gain_nats"]) < 1e-3
    assert rows[-1]["margin"] > 0.02 and rows[-1]["right_gain_nats"] > rows[-1]["wrong_gain_nats"]


def pair_samples(maker, n=6):
    texts = [("Mmm, donut.", "Fascinating."), ("D'oh!", "Oh, Homer.")] * (n // 2)
    requests = [REQUESTS[i % 4] for i in range(n)]
    return list(zip(*(C.line_samples(maker, requests, [t[k] for t in texts]) for k in range(2))))


def test_micro_batches_add_up_and_log_2_comes_first(run, tmp_path):
    "The same steps in micro-batches of one pair and of four; without the right line's own loss the first is log 2."
    found = []
    for micro in (1, 4):
        model, tokenizer, notes = load_adapter(run[0] / "adapter", find_device("cpu", "float32"), trainable=True)
        samples, rows = pair_samples(TextMaker.of_notes(tokenizer, notes)), []
        both = [s for pair in samples for s in pair]
        reference = C.sample_logprobs(model, both, 0)[0].view(-1, 2)
        config = C.ContrastConfig(out=str(tmp_path), nll_weight=0, epochs=3, **{**FEW, "micro_batch_size": micro})
        assert C.learn(model, samples, reference, config, 0, lambda step, row: rows.append(row)) == 6
        assert math.isclose(rows[0]["train_loss_nats"], math.log(2), abs_tol=1e-5)
        assert rows[-1]["train_loss_nats"] < 0.68
        found.append([(r["train_loss_nats"], r["grad_norm"]) for r in rows])
    assert torch.allclose(torch.tensor(found[0]), torch.tensor(found[1]), rtol=2e-3, atol=1e-5)


def test_time_that_is_up_ends_it_with_what_was_learned(run, tmp_path):
    given = {"run": str(run[0]), "out": str(tmp_path / "y"), "rejected": "speakers", "max_minutes": 1e-6, **FEW}
    summary = C.contrast(C.ContrastConfig(**given))
    assert summary["stopped_early"] and summary["optimizer_steps"] == 1 and (tmp_path / "y" / "adapter").is_dir()


def test_test_scenes_are_not_looked_at(run, monkeypatch, tmp_path):
    "None of their lines reaches the tokenizer."
    held = {line.text for s in Run(run[0]).data().parts["test"] for line in s.lines}
    seen, said = set(), TextMaker.said
    monkeypatch.setattr(TextMaker, "said", lambda self, lines: seen.update(x.text for x in lines) or said(self, lines))
    C.contrast(C.ContrastConfig(run=str(run[0]), out=str(tmp_path / "y"), rejected="speakers", pairs=4, **FEW))
    parts, _ = load_data(tmp_path / "y" / "data")
    known = {line.text for name in ("train", "valid") for s in parts[name] for line in s.lines}
    assert seen & known and not seen & (held - known)


def test_wrong_input_is_one_sentence(run, stage, tmp_path, capsys):
    "What was given, what to do; and nothing is left."
    bare = tmp_path / "bare"
    shutil.copytree(run[0], bare, ignore=shutil.ignore_patterns("adapter", "checkpoints"))
    for words, meant in (
        (["--run", str(bare)], "no adapter in"),
        (["--run", str(tmp_path / "nowhere")], "no adapter in"),
        (["--run", str(run[0]), "--rejected", "nonsense"], "rejected='nonsense' was given; expected samples, speakers"),
        (["--run", str(run[0]), "--out", str(stage[0])], "holds a run already"),
        (["--run", str(run[0]), "--out", str(run[0])], "choose another folder for out"),
        (["--run", str(run[0]), "--nll-weight", "3"], "nll_weight=3.0"),
    ):
        out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
        assert main(["contrast", *words, *out, "--device", "cpu"]) == 2, words
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1 and meant in told, told
        assert not (tmp_path / "out").exists()


def test_where_nobody_else_speaks_there_are_no_wrong_lines(run, tmp_path, monkeypatch):
    whole = C.Run.data

    def alone(self):
        found = whole(self)
        for scenes in found.parts.values():
            scenes[:] = [Scene(s.episode, s.index, "", tuple(x._replace(speaker=A) for x in s.lines)) for s in scenes]
        return found

    monkeypatch.setattr(C.Run, "data", alone)
    config = C.ContrastConfig(run=str(run[0]), out=str(tmp_path / "y"), rejected="speakers", pairs=4, **FEW)
    with pytest.raises(ValueError, match="nobody else says anything; use rejected=samples"):
        C.contrast(config)
    assert read_json(tmp_path / "y" / "summary.json")["status"] == "failed"


def test_the_command_and_the_chapter_do_the_same(run, tmp_path, capsys):
    "The folder is `out`, also where a chapter is run."
    words = "--rejected speakers --pairs 4 --device cpu --learning-rate 1e-3".split()
    assert main(["contrast", "--run", str(run[0]), "--out", str(tmp_path / "y"), *words]) == 0
    told = capsys.readouterr().out
    assert "held-out loss" in told and f"simpsons-llm infer --adapter {tmp_path / 'y'}" in told
    given = dict(run=str(run[0]), rejected="speakers", pairs=4, device="cpu", learning_rate=1e-3)
    assert run_chapter("contrast", tmp_path / "z", given, show=False).parent == tmp_path / "z"
    one, other = (
        [r["train_loss_nats"] for r in read_jsonl(tmp_path / f / "metrics.jsonl") if "margin" in r] for f in "yz"
    )
    assert one == pytest.approx(other, abs=1e-5) and one


def test_no_more_answers_are_drawn_when_time_is_up():
    model, tokenizer = tiny_model()
    moments, few = [(SCENE, 1), (SCENE, 2), (SCENE, 3)], Sampling(max_new_tokens=12)
    drawn = [
        C.sample_pairs(model.eval(), TextMaker(tokenizer), moments, few, 1, at_once=1, until=t) for t in (0, math.inf)
    ]
    assert len(drawn[0]) <= 1 < len(drawn[1]) and drawn[1][: len(drawn[0])] == drawn[0]


def test_the_same_words_from_another_mouth(run, tmp_path):
    "The wrong side is asked as somebody else; what is learned is the contrast."
    out = tmp_path / "mouths"
    summary = C.contrast(C.ContrastConfig(run=str(run[0]), out=str(out), rejected="mouths", pairs=6, **FEW))
    assert set(summary["pairs"]["train"]) == {"mouths"} and find_trained(out).kind == "adapter"
    pair = C.Pair(("", [], A), "D'oh!", "D'oh!", "mouths", B)
    assert pair.wrong_request == ("", [], B) and C.Pair(("", [], A), "a", "b", "samples").wrong_request == ("", [], A)
    model, tokenizer = tiny_model()
    maker = TextMaker(tokenizer)
    right, wrong = (C.line_samples(maker, [r], ["D'oh!"])[0] for r in (pair.request, pair.wrong_request))
    assert right.input_ids != wrong.input_ids and right.learned == wrong.learned
