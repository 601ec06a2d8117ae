"What is kept and when a run ends, where the model recites: told by rows, decided alike by both engines and all ranks."

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, cut, same, weights

from simpsons_llm.data.prepare import load_data
from simpsons_llm.machine.distributed import start_ranks
from simpsons_llm.machine.job import read_json, read_jsonl
from simpsons_llm.train import finetune as trainer_module
from simpsons_llm.train import history, lifecycle
from simpsons_llm.train import loop as loop_module
from simpsons_llm.train.config import TrainConfig, make_optimizer
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.lifecycle import Job, summary_text
from simpsons_llm.train.loop import LoopConfig, loop

ENGINES = [(FinetuneConfig, finetune), (LoopConfig, loop)]
BOTH = pytest.mark.parametrize("config, train", ENGINES, ids=["trainer", "loop"])
SIX = {**TINY, "max_steps": 6, "epochs": 1, "eval_steps": 2, "gate": True}


@pytest.fixture
def recites(monkeypatch):
    "What sets the share that a model recites after a step, instead of letting it speak."

    def set_shares(shares):
        monkeypatch.setattr(Job, "recites", lambda self: shares.get(self.engine.step, shares.get("later")))

    return set_shares


@pytest.fixture
def worse_and_worse(monkeypatch):
    "The held-out loss is how far the adapter is from its beginning: the same weights, the same loss."

    def distance(model, *_, **__):
        return 2.0 + sum(float(p.detach().norm()) for n, p in model.named_parameters() if "lora_B" in n)

    for module in (loop_module, trainer_module, lifecycle):
        monkeypatch.setattr(module, "heldout_loss", distance)


def evaluations(run):
    return {r["step"]: r for r in read_jsonl(run / "metrics.jsonl") if "valid_loss_nats" in r}


# ---- what is kept ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "shares, kept, how",
    [
        ({2: 0.0, 4: 0.5, 6: 0.5}, 2, "memorising"),
        ({2: 0.5, 4: 0.01, 6: 0.011}, 4, "memorising"),
        ({2: 0.5, 4: 0.0, 6: 0.01}, 6, "loss"),
        ({2: 0.5, 4: 0.2, 6: 0.3}, 6, "none passed"),
    ],
)
def test_a_step_that_recites_is_not_kept(config, train, shares, kept, how, recites, data, tmp_path):
    "The loss falls at each of them. People recite nothing in this script, so a hundredth is allowed."
    recites(shares)
    run = tmp_path / "run"
    summary = train(config(data=data, run=str(run), **SIX))
    rows = evaluations(run)
    assert rows[2]["valid_loss_nats"] > rows[4]["valid_loss_nats"] > rows[6]["valid_loss_nats"]
    assert (summary["best_step"], summary["valid_loss_nats_best"]) == (kept, rows[kept]["valid_loss_nats"])
    assert {k: rows[k].get("verbatim") for k in (2, 4, 6)} == shares and rows[0]["human_verbatim"] == 0.0
    facts = {"human_verbatim": 0.0, "limit": 0.01, "verbatim": shares[kept], "decided_by": how}
    assert summary["gate"] == facts == read_json(run / "summary.json")["gate"]
    folder = run / "checkpoints" / f"checkpoint-{kept}"
    from safetensors.torch import load_file

    there = load_file(folder / "adapter_model.safetensors")
    assert there and all(torch.equal(v, weights(run)[k]) for k, v in there.items())
    assert list(history.plot_losses(run).lines[-1].get_xdata()) == [kept]
    told = summary_text(summary)
    assert ("a step with a lower loss was not kept" in told) == (how == "memorising")
    assert ("all steps recite, this one 30.0% (people: 0.0%)" in told) == (how == "none passed")
    assert len(told.splitlines()) == 3 + (how == "memorising") + ("WARNING" in told)


def test_both_engines_decide_alike_and_go_on_from_each_other(recites, data, tmp_path):
    "In one piece, and killed at each evaluation: the same rows, the same step, the same weights."
    recites({2: 0.0, 4: 0.4, 6: 0.4})
    found = {}
    for config, train in ENGINES:
        found[train] = train(config(data=data, run=str(tmp_path / train.__name__), **SIX))
    same(tmp_path / "finetune", tmp_path / "loop", 1e-6)
    for (config, train), other in zip(ENGINES, ("loop", "finetune")):
        for step in (2, 4, 6):
            taken = cut(tmp_path / other, tmp_path / f"{other} {step}", step)
            summary = train(config(data=data, run=str(taken), resume=True, **SIX))
            same(tmp_path / other, taken, 1e-6)
            assert summary["resumed_from_step"] == step and summary["best_step"] == found[train]["best_step"] == 2
            assert summary["gate"] == found[train]["gate"]


# ---- when a run ends ------------------------------------------------------------------------------------------------


@BOTH
def test_two_evaluations_that_are_worse_in_both_end_a_run(config, train, recites, worse_and_worse, data, tmp_path):
    recites({2: 0.001, 4: 0.03, 6: 0.02, "later": 0.0})
    settings = {**SIX, "max_steps": 40}
    run = tmp_path / "run"
    summary = train(config(data=data, run=str(run), **settings))
    assert summary["stopped_early"] and summary["stopped_because"] == "loss and memorising got worse"
    assert (summary["optimizer_steps"], summary["best_step"]) == (6, 2) and list(evaluations(run)) == [0, 2, 4, 6]
    assert "stopped early: loss and memorising got worse" in summary_text(summary)
    before = (run / "metrics.jsonl").read_bytes()
    assert train(config(data=data, run=str(run), resume=True, **settings))["optimizer_steps"] == 6  # it is finished
    for step in (2, 4, 6):  # killed on the way, and between the last checkpoint and the summary
        taken = cut(run, tmp_path / str(step), step)
        again = train(config(data=data, run=str(taken), resume=True, **settings))
        same(run, taken, 1e-6)
        assert again["optimizer_steps"] == 6 and again["stopped_because"] == summary["stopped_because"]
    assert (run / "metrics.jsonl").read_bytes() == before


@BOTH
@pytest.mark.parametrize(
    "shares",
    [
        {2: 0.001, 4: 0.03, 6: 0.001, 8: 0.03, 10: 0.001},  # not twice in a row
        {2: 0.0, "later": 0.005},  # more, and within the limit
        {2: 0.0, "later": 0.0},  # the loss alone
    ],
)
def test_a_run_goes_on_where_one_of_the_two_is_no_worse(
    config, train, shares, recites, worse_and_worse, data, tmp_path
):
    recites(shares)
    summary = train(config(data=data, run=str(tmp_path / "x"), **{**SIX, "max_steps": 10}))
    assert summary["optimizer_steps"] == 10 and summary["stopped_because"] is None and not summary["stopped_early"]


def test_a_run_whose_last_step_is_the_second_worse_one_was_not_stopped(recites, worse_and_worse, data, tmp_path):
    recites({2: 0.0, 4: 0.1, 6: 0.1})
    summary = loop(LoopConfig(data=data, run=str(tmp_path / "x"), **SIX))
    assert summary["optimizer_steps"] == 6 and not summary["stopped_early"] and summary["stopped_because"] is None


def test_a_time_that_is_up_is_another_reason(data, tmp_path):
    summary = loop(LoopConfig(data=data, run=str(tmp_path / "x"), max_steps=400, max_minutes=0.01, **TINY))
    assert summary["stopped_because"] == history.TIME and "stopped early: the time" in summary_text(summary)
    again = LoopConfig(data=data, run=str(tmp_path / "x"), max_steps=400, max_minutes=0.02, resume=True, **TINY)
    assert loop(again)["optimizer_steps"] > summary["optimizer_steps"]  # there is more time now


@BOTH
def test_the_seed_recipe_has_no_gate_and_no_early_end(config, train, monkeypatch, worse_and_worse, data, tmp_path):
    monkeypatch.setattr(Job, "recites", lambda self: 1 / 0)
    settings = {k: v for k, v in SIX.items() if k != "gate"}
    summary = train(
        config(
            data=data,
            run=str(tmp_path / "x"),
            recipe="seed",
            max_seq_len=900,
            micro_batch_size=1,
            global_batch_size=1,
            **{k: v for k, v in settings.items() if k != "max_seq_len"},
        )
    )
    assert summary["gate"] is None and summary["best_step"] == 2 and summary["optimizer_steps"] == 6
    assert summary["settings"]["gate"] is False and not any(
        "verbatim" in r for r in evaluations(tmp_path / "x").values()
    )
    assert TrainConfig().resolved()["gate"] is True and not TrainConfig(gate="False").resolved()["gate"]


# ---- what is asked --------------------------------------------------------------------------------------------------


@BOTH
def test_the_model_is_asked_at_validation_moments_of_the_characters(config, train, monkeypatch, tmp_path):
    "In one batch, without dropout, as it was trained; and goes on learning as if nobody had asked."
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    folder = tmp_path / "data"
    prepare(PrepareConfig(out=str(folder), speakers="Homer Simpson,Lisa Simpson"))
    parts, report = load_data(folder)
    assert len(report["speakers"]) == 2
    lines = [x.text for s in parts["train"] for x in s.lines if len(x.text.split()) > 9][:24]
    asked = []

    def finish(model, maker, requests, sampling):
        assert not model.training and sampling.max_new_tokens <= 40 and sampling.do_sample
        asked.append(requests)
        torch.rand(3)
        return lines[: len(requests)]

    monkeypatch.setattr(history, "finish_lines", finish)
    settings = {**SIX, "max_steps": 3, "eval_steps": 2, "lora_dropout": 0.0}
    summary = train(config(data=str(folder), run=str(tmp_path / "x"), **settings))
    assert summary["gate"]["verbatim"] == 1.0 and summary["gate"]["decided_by"] == "none passed"
    assert summary["wall_s"]["speak"] > 0 and len(asked) == 2 and asked[0] == asked[1]
    assert len(asked[0]) == 24 and {who for *_, who in asked[0]} == set(report["speakers"])
    held_out = {
        (s.location, tuple(x.text for x in s.lines[:i]), s.lines[i].speaker)
        for s in parts["valid"]
        for i in range(len(s.lines))
    }
    assert {(where, tuple(x.text for x in before), who) for where, before, who in asked[0]} <= held_out
    for name in report["speakers"]:
        early = [len(before) for _, before, who in asked[0] if who == name]
        there = sorted(i for s in parts["valid"] for i, x in enumerate(s.lines) if x.speaker == name)
        assert max(early) <= max(history.EARLY, there[len(early) - 1])  # none is later than has to be
    real = [x.text for s in parts["valid"] for x in s.lines if x.speaker in report["speakers"]]
    human = history.Seen(x.text for s in parts["train"] for x in s.lines).share(real)
    assert summary["gate"]["human_verbatim"] == human


def test_a_gate_changes_nothing_that_is_learned(data, tmp_path):
    "Not even where dropout draws random numbers; here the model speaks itself."
    for name, gate in (("with", True), ("without", False)):
        loop(LoopConfig(data=data, run=str(tmp_path / name), lora_dropout=0.2, **{**SIX, "gate": gate}))
    losses = [
        [r["train_loss_nats"] for r in read_jsonl(tmp_path / n / "metrics.jsonl") if "train_loss_nats" in r]
        for n in ("with", "without")
    ]
    assert losses[0] == losses[1] and evaluations(tmp_path / "with")[6]["verbatim"] == 0.0


def test_rows_ask_with_as_many_lines_as_they_were_trained_with(data):
    from simpsons_llm.machine.device import find_device, find_ranks
    from simpsons_llm.train.lifecycle import plan

    rows = TrainConfig(data=data, base_model="tiny", view="rows", context_lines=2, max_seq_len=900)
    where = find_ranks(), find_device("cpu", "float32")
    assert plan(rows, *where, keep=False).gate.before == 2
    scenes = TrainConfig(data=data, base_model="tiny", max_seq_len=900)
    assert plan(scenes, *where, keep=False).gate.before is None
    scene = SimpleNamespace(location="", lines=list("abcd"))
    told = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(history, "finish_lines", lambda _, __, requests, ___: told.extend(requests))
        for before in (2, 0, None):
            history.said_at(torch.nn.Linear(1, 1), None, [(scene, 3, "x", "d")], history.RECITES, before)
    assert [lines for _, lines, _ in told] == [["b", "c"], [], ["a", "b", "c"]]


def test_fewer_are_asked_where_memory_lacks(data, monkeypatch):
    gate, sizes = history.Gate(load_data(data)[0], []), []

    def said_at(model, maker, moments, *_):
        sizes.append(len(moments))
        if len(moments) > 6:
            raise torch.OutOfMemoryError("too many")
        return ["a"] * len(moments)

    monkeypatch.setattr(history, "said_at", said_at)
    with pytest.raises(torch.OutOfMemoryError):
        gate.answers(None, None, fewer=False)
    assert len(gate.answers(None, None)) == 6 and sizes == [24, 24, 12, 6]
    assert len(gate.answers(None, None)) == 6 and sizes[-1] == 6  # from now on


# ---- several ranks --------------------------------------------------------------------------------------------------

RANKS = """
    import contextlib, io, json
    from simpsons_llm.train import history
    from simpsons_llm.train.{module} import *
    asked, real = [], history.finish_lines
    def finish(model, maker, requests, sampling):
        asked.append(len(requests))
        said = real(model, maker, requests[:2], sampling)  # a part of a model speaks only with the others
        return [maker_lines[len(asked) > 1]] * len(requests) if said else []
    history.finish_lines = finish
    from simpsons_llm.data.prepare import load_data
    lines = [x.text for s in load_data({data!r})[0]["train"] for x in s.lines]
    maker_lines = ["", max(lines, key=lambda text: len(text.split()))]
    with contextlib.redirect_stdout(io.StringIO()):
        summary = {job}({config}(data={data!r}, run={run!r}, **{settings!r}))
    print(json.dumps([asked, summary["gate"], summary["best_step"], summary["sharded"]]))"""


@pytest.mark.parametrize(
    "job, more",
    [("loop", {}), ("finetune", {"sharding": "fsdp"}), pytest.param("finetune", {}, marks=pytest.mark.slow)],
    ids=str,
)
def test_ranks_decide_together(job, more, data, tmp_path):
    "The first rank speaks alone, or all do where each holds a part of the model; it recites from the second time on."
    config = {"loop": "LoopConfig", "finetune": "FinetuneConfig"}[job]
    settings = {**SIX, "max_steps": 4, "global_batch_size": 2, "micro_batch_size": 1, "device": "cpu", **more}
    run = tmp_path / "run"
    told = start_ranks(
        RANKS.format(module=job, job=job, config=config, data=data, run=str(run), settings=settings), timeout_s=240
    )
    (asked, *first), (also, *second) = map(json.loads, told)
    sharded = bool(more)
    assert (
        first
        == second
        == [{"human_verbatim": 0.0, "limit": 0.01, "verbatim": 0.0, "decided_by": "memorising"}, 2, sharded]
    )
    assert asked == [24, 24] and also == (asked if sharded else [])
    assert [r.get("verbatim") for r in evaluations(run).values()] == [None, 0.0, 1.0]


# ---- weight decay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, {"mode": "full", "learning_rate": 3e-4}, {"lora_plus_ratio": 4.0}],
    ids=["adapter", "whole", "plus"],
)
def test_weight_decay_is_that_of_trainer(more, data, tmp_path):
    settings = {**TINY, "max_steps": 6, "epochs": 1, "eval_steps": 3, **more}
    for config, train in ENGINES:
        train(config(data=data, run=str(tmp_path / train.__name__), weight_decay=5.0, **settings))
    same(tmp_path / "finetune", tmp_path / "loop", 1e-6)
    loop(LoopConfig(data=data, run=str(tmp_path / "without"), **settings))
    one, other = weights(tmp_path / "loop"), weights(tmp_path / "without")
    changed = {k for k, v in one.items() if v.ndim > 1 and not torch.allclose(v, other[k], rtol=1e-5, atol=0)}
    assert changed == {k for k, v in one.items() if v.ndim > 1}
    taken = cut(tmp_path / "loop", tmp_path / "resumed", 3)
    finetune(FinetuneConfig(data=data, run=str(taken), weight_decay=5.0, resume=True, **settings))
    same(tmp_path / "loop", taken, 1e-6)


def test_weights_decay_by_rate_times_decay_and_norms_do_not():
    from simpsons_llm.model.base import tiny_model

    model = tiny_model()[0]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, 0.1, weight_decay=0.2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kinds = {p.ndim > 1 for p in before.values()}
    assert kinds == {True, False}
    for n, p in model.named_parameters():
        assert torch.allclose(p, before[n] * (1 - 0.1 * 0.2 * (p.ndim > 1))), n


def test_settings_that_cannot_be():
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight_decay"):
            TrainConfig(weight_decay=wrong)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="lora_dropout"):
            TrainConfig(lora_dropout=wrong)
    with pytest.raises(TypeError, match="gate"):
        TrainConfig(gate="perhaps")
    assert TrainConfig().resolved()["weight_decay"] == TrainConfig(recipe="seed").resolved()["weight_decay"] == 0.0


def test_the_gate_can_be_switched_off_on_the_command_line():
    import typer
    from typer.testing import CliRunner

    from simpsons_llm.machine.cli import job_command

    app, given = typer.Typer(), []
    app.command()(job_command(FinetuneConfig, given.append, "Train."))
    for words in ([], ["--gate"], ["--no-gate", "--weight-decay", "0.1"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert [config.gate for config in given] == [None, True, False] and given[2].resolved()["weight_decay"] == 0.1


def test_a_recorder_that_says_stop_by_itself_is_heard(data, tmp_path, monkeypatch):
    "As the benchmark's does, when its goal is reached."
    real = history.Recorder.step_ends
    monkeypatch.setattr(history.Recorder, "step_ends", lambda self, step: real(self, step) or step == 3)
    assert loop(LoopConfig(data=data, run=str(tmp_path / "x"), **SIX))["optimizer_steps"] == 3
