"The loop by hand: step for step what Trainer does; samples of text, perplexities and trackers of both."

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import CLI, SLOW, TINY, cut, same

from simpsons_llm.machine.job import read_json, read_jsonl
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.history import perplexities, what_was_said
from simpsons_llm.train.loop import LoopConfig, loop

FIFTY = {**TINY, **dict(max_steps=50, eval_steps=25, global_batch_size=4, micro_batch_size=1, sample_steps=25)}
FEW = dict(max_steps=6, epochs=1, eval_steps=3, **TINY)
ENGINES = [(FinetuneConfig, finetune), (LoopConfig, loop)]


@pytest.fixture(scope="module", params=["lora", "full"])
def by_trainer(request, data, tmp_path_factory):
    "Fifty steps of four micro-batches each, by Trainer: (settings, folder)."
    settings, folder = (
        dict(data=data, mode=request.param, **{**FIFTY, "learning_rate": 3e-3 if request.param == "lora" else 3e-4}),
        tmp_path_factory.mktemp("trainer") / request.param,
    )
    finetune(FinetuneConfig(run=str(folder), **settings))
    return settings, folder


def test_fifty_steps_are_those_of_trainer(by_trainer, tmp_path):
    "Losses, gradient norms, rates, text, what is saved; also with a kill in the middle."
    settings, trainer = by_trainer
    loop(LoopConfig(run=str(tmp_path / "one"), **settings))
    same(trainer, tmp_path / "one", 1e-5)
    said = [
        [r["samples"] for r in read_jsonl(run / "metrics.jsonl") if "samples" in r]
        for run in (trainer, tmp_path / "one")
    ]
    assert said[0] == said[1] and len(said[0]) == 3 and len(said[0][0]) == 3
    resumed = cut(tmp_path / "one", tmp_path / "resumed", 25)
    summary = loop(LoopConfig(run=str(resumed), resume=True, **settings))
    same(trainer, resumed, 1e-5)
    assert summary["resumed_from_step"] == 25 and summary["engine"] == "loop"


def test_fifty_steps_of_two_ranks_are_those_of_trainer(by_trainer, tmp_path, request):
    "Two micro-batches a step on each rank of `launch`; each leaves its notebook, the first shows what is shared."
    settings, trainer = by_trainer
    if settings["mode"] == "lora" and not request.config.getoption("--slow"):
        pytest.skip(SLOW)
    words = [x for k, v in settings.items() for x in ("-p", k, str(v))]
    done = subprocess.run(
        [*CLI, "launch", "-n", "2", "loop", "--out", "run", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    same(trainer, tmp_path / "run", 1e-5)
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (
        summary["engine"] == "loop"
        and [r["rank"] for r in summary["ranks"]] == [0, 1]
        and summary["optimizer_steps"] == 50
    )
    texts = [(tmp_path / "run" / f"rank{r}.ipynb").read_text() for r in (0, 1)]
    assert all(
        (words in texts[0]) and (words not in texts[1])
        for words in ("held-out loss in nats per token", "valid perplexity", "step 0")
    )
    assert all(f"rank {r} of 2" in text for r, text in enumerate(texts))


@pytest.mark.parametrize(
    "extra",
    [
        dict(lora_dropout=0.2),
        dict(lora_plus_ratio=4.0, packing="none"),
        dict(use_dora=True, gradient_checkpointing=True),
        dict(packing="rows", row_len=1200, global_batch_size=2, micro_batch_size=1),
    ],
    ids=str,
)
def test_other_settings_give_what_trainer_gives(extra, data, tmp_path):
    "Dropout draws the same numbers, batches of similar length are the same ones."
    for config, train in ENGINES:
        train(config(data=data, run=str(tmp_path / train.__name__), **{**FEW, **extra}))
    same(tmp_path / "finetune", tmp_path / "loop", 1e-6)


def test_each_engine_goes_on_from_the_others_checkpoint(data, tmp_path):
    for config, train in ENGINES:
        train(config(data=data, run=str(tmp_path / train.__name__), **FEW))
    for (config, train), other in zip(ENGINES, ("loop", "finetune")):
        taken = cut(tmp_path / other, tmp_path / f"{other}, gone on with", 3)
        assert train(config(data=data, run=str(taken), resume=True, **FEW))["resumed_from_step"] == 3
        same(tmp_path / other, taken, 1e-6)


def test_a_resumed_loop_draws_the_same_dropout_and_closes_a_finished_run(data, tmp_path):
    settings = dict(data=data, lora_dropout=0.2, **FEW)
    loop(LoopConfig(run=str(tmp_path / "whole"), **settings))
    for step in (3, 6):
        broken = cut(tmp_path / "whole", tmp_path / str(step), step)
        # killed while it was written
        half = broken / "checkpoints" / ".checkpoint-5"
        half.mkdir()
        (half / "optimizer.pt").write_text("half")
        loop(LoopConfig(run=str(broken), resume=True, **settings))
        same(tmp_path / "whole", broken, 1e-6)


def test_checkpoints_that_are_kept(data, tmp_path):
    "No more than were asked for, among them the last and the best."
    summary = loop(
        LoopConfig(
            data=data, run=str(tmp_path / "x"), **{**FEW, "eval_steps": 1, "save_total_limit": 2, "learning_rate": 0.5}
        )
    )
    kept = {int(p.name.rsplit("-", 1)[1]) for p in (tmp_path / "x" / "checkpoints").iterdir()}
    assert kept == {6, summary["best_step"]} | ({5} if summary["best_step"] == 6 else set())


def test_the_best_is_the_lowest_and_the_first_of_equals(monkeypatch, tmp_path):
    from unittest.mock import MagicMock

    import simpsons_llm.train.loop as module
    from simpsons_llm.machine.device import find_device, find_ranks
    from simpsons_llm.train.config import RunLength
    from simpsons_llm.train.history import Recorder

    told, state = iter([5.0, 4.0, 6.0, 4.0, 4.5]), MagicMock(best=(0, math.inf))
    where = find_ranks(), find_device("cpu", "float32")
    state.job.recorder = Recorder(*where, RunLength(9, 9, 1, -1, 0), tmp_path, list)
    monkeypatch.setattr(module, "heldout_loss", lambda *_: next(told))
    for step in range(1, 6):
        state.step = step
        module.Loop.evaluate(state)
    assert state.best == (2, 4.0)


def test_a_time_limit_keeps_what_was_learned(data, tmp_path):
    summary = loop(
        LoopConfig(data=data, run=str(tmp_path / "x"), max_steps=400, eval_steps=200, max_minutes=0.02, **TINY)
    )
    assert (
        summary["stopped_early"]
        and 0 < summary["optimizer_steps"] < 400
        and summary["best_step"] == summary["optimizer_steps"]
    )


def test_a_parameter_without_a_gradient_on_this_rank_gets_that_of_the_others(monkeypatch):
    "Such as an expert that none of this rank's tokens chose."
    import torch

    import simpsons_llm.train.loop as module

    used, unused = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    used.grad = torch.full((2, 3), 2.0)
    monkeypatch.setattr(module, "in_group", lambda: True)
    # the other rank's gradients are ones
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(1.0))
    module.sum_gradients([used, unused])
    assert (used.grad == 3).all() and (unused.grad == 1).all()


def test_a_loss_that_is_not_a_number_stops_the_run(data, tmp_path, monkeypatch):
    import simpsons_llm.train.loop as module

    real = module.weighted_loss
    monkeypatch.setattr(module, "weighted_loss", lambda *args: float("nan") * real(*args))
    with pytest.raises(ValueError, match="nan at step 1"):
        loop(LoopConfig(data=data, run=str(tmp_path / "x"), **FEW))


# ---- what both engines tell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, train", ENGINES, ids=["trainer", "loop"])
def test_text_and_perplexities_of_each_epoch(config, train, tmp_path):
    "Two short epochs: evaluated at the end of each, whatever eval_steps says."
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    lines = [
        f"{who}: {said}"
        for scene in range(12)
        for who, said in (
            ("Homer Simpson", f"Donut number {scene} is the best one of all."),
            ("Marge Simpson", f"You said that about number {scene} before, Homie."),
        )
        * 3
    ]
    blocks = ["[Kitchen]\n" + "\n".join(lines[at : at + 6]) for at in range(0, 72, 6)]
    (tmp_path / "script.txt").write_text("\n\n".join(blocks))
    prepare(
        PrepareConfig(
            script=str(tmp_path / "script.txt"),
            split="scene",
            valid_share=0.2,
            test_share=0.2,
            out=str(tmp_path / "data"),
        )
    )
    run = tmp_path / "run"
    summary = train(
        config(data=str(tmp_path / "data"), run=str(run), epochs=2, eval_steps=1000, **{**TINY, "sample_steps": None})
    )
    rows = read_jsonl(run / "metrics.jsonl")
    ends = [r for r in rows if "train_perplexity" in r]
    assert [r["epoch"] for r in ends] == [1.0, 2.0] and ends[-1]["step"] == summary["optimizer_steps"]
    for r in ends:
        assert r["valid_perplexity"] == pytest.approx(math.exp(r["valid_loss_nats"]))
        losses = [
            x["train_loss_nats"] for x in rows if "train_loss_nats" in x and r["epoch"] - 1 < x["epoch"] <= r["epoch"]
        ]
        assert min(losses) <= math.log(r["train_perplexity"]) <= max(losses)
    table = perplexities(run)
    assert (
        list(table.index) == [0, *[r["step"] for r in ends]]
        and table["train perplexity of the epoch"].notna().sum() == 2
    )
    said = what_was_said(run)
    assert (
        list(said.columns) == ["before", "speaker", "real", "step 0", *[f"step {r['step']}" for r in ends]]
        and len(said) == 2
        and said["real"].str.startswith(("Donut", "You said")).all()
    )
    assert summary["valid_perplexity_best"] == pytest.approx(math.exp(summary["valid_loss_nats_best"]))


def test_no_text_where_none_was_asked_for(data, tmp_path):
    for config, train in ENGINES:
        train(config(data=data, run=str(tmp_path / train.__name__), max_steps=2, **TINY))
        assert (
            not any("samples" in r for r in read_jsonl(tmp_path / train.__name__ / "metrics.jsonl"))
            and what_was_said(tmp_path / train.__name__).empty
        )


def log_records(data, block=32768):
    "Records of a log in LevelDB's format, after the 7 bytes of wandb's header."
    at, record = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        # before them a checksum
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        # 1: whole, 2, 3, 4: first, middle and last piece
        if kind in (1, 4):
            yield record
            record = b""


def tracked(name, run, trackio_dir):
    "What a tracker's own files say: {metric: [(step, value), ...]}."
    found = {}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        for folder in {p.parent for p in (run / "tensorboard").rglob("events.out.*")}:
            events = EventAccumulator(str(folder))
            events.Reload()
            for tag in events.Tags()["scalars"]:
                found.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    elif name == "wandb":
        from wandb.proto import wandb_internal_pb2

        (file,) = (run / "wandb").rglob("*.wandb")
        for piece in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for k, v in row.items():
                found.setdefault(k, []).append((row["_step"], v))
    else:
        import sqlite3

        (file,) = trackio_dir.glob("simpsons_llm.db")
        for step, metrics in sqlite3.connect(file).execute(
            "select step, metrics from metrics where run_name = ?", (run.name,)
        ):
            for k, v in json.loads(metrics).items():
                found.setdefault(k, []).append((step, v))
    return found


TRACKERS = ("trackio", "wandb", "tensorboard")


@pytest.fixture(scope="module")
def tracked_runs(data, tmp_path_factory):
    "A folder with a run for each installed tracker, by each engine, made in a process without network or login."
    where = tmp_path_factory.mktemp("tracked")
    code = (
        "import json, sys; from simpsons_llm.train.loop import *; from simpsons_llm.train.finetune import *\n"
        "for name in sys.argv[2:]:\n"
        "    for c, f in ((FinetuneConfig, finetune), (LoopConfig, loop)): f(c(run=f'{name}/{f.__name__}', "
        "trackers=name, **json.loads(sys.argv[1])))"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "WANDB_MODE")} | {
        "HOME": str(where),
        "TRACKIO_DIR": str(where / "kept"),
    }
    settings = dict(data=data, max_steps=3, eval_steps=3, **TINY)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings), *filter(find_spec, TRACKERS)],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return where


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_without_a_network(name, tracked_runs):
    "The real libraries, offline: each number of metrics.jsonl is in the tracker's own files, from both engines."
    if not find_spec(name):
        pytest.skip(f"{name} is not installed; pip install 'simpsons_llm[track]'")
    for run in (tracked_runs / name / "finetune", tracked_runs / name / "loop"):
        there, numbers = tracked(name, run, tracked_runs / "kept"), 0
        for row in read_jsonl(run / "metrics.jsonl"):
            for k, v in row.items():
                if k in ("step", "samples"):
                    continue
                assert any(
                    step == row["step"] and float(value) == pytest.approx(v, rel=1e-5, abs=1e-9)
                    for step, value in there[k]
                ), (k, v)
                numbers += 1
        assert numbers > 20 and (run / "loss.png").is_file()


def test_a_tracker_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("simpsons_llm.train.config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="trackio is not installed; pip install"):
        LoopConfig(trackers="trackio")
