"A run's folder: one job at a time, checkpoints that are whole, and nothing written before all checks have passed."

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import CLI, TINY, same

from simpsons_llm.data.prepare import PrepareConfig, load_data, prepare
from simpsons_llm.machine.job import HELD, LOCK, hold_folder, read_json, read_jsonl, read_lock
from simpsons_llm.model.infer import InferConfig, infer
from simpsons_llm.ranks.execute import run_chapter
from simpsons_llm.ranks.launch import launch
from simpsons_llm.talk.publish import export
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.history import checkpoints, last_checkpoint
from simpsons_llm.train.lifecycle import costs, plan
from simpsons_llm.train.loop import LoopConfig, loop

ENGINES = {"trainer": (FinetuneConfig, finetune), "loop": (LoopConfig, loop)}
SCRIPT = "\n\n".join(
    f"[Episode {e}]\n[Kitchen]\n"
    + "\n".join(
        f"{who}: {said} in number {e}, {word}."
        for who, said in (("Homer", "I ate the whole pie"), ("Marge", "That was a wreath"), ("Homer", "It had berries"))
    )
    for e, word in enumerate("apples frogs pianos rivers clouds stars".split(), 1)
)


def files(folder):
    "Every file below a folder, and what is in it."
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# ---- one job at a time ----------------------------------------------------------------------------------------------

HOLDER = (
    "import sys; from simpsons_llm.machine.job import hold_folder\n"
    "with hold_folder(sys.argv[1], 'finetune', *map(__import__('pathlib').Path, sys.argv[2:])): print('held', "
    "flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    "Processes that hold runs/x and, as an export does, runs/given: (runs/x, processes)."
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"status": "running"}')
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in ((folder,), (folder.with_name("given"), folder.with_name(".given.lock")))
    ]
    assert [p.stdout.readline() for p in started] == ["held\n"] * 2
    yield folder, started
    for p in started:
        p.kill()
        p.communicate()


def test_a_second_job_in_a_folder_is_refused(holder, run, data):
    "Whatever it is; it is told whose the folder is, and touches nothing."
    folder, started = holder
    jobs = {
        "finetune": lambda: finetune(FinetuneConfig(data=data, run=str(folder), max_steps=1, **TINY)),
        "loop": lambda: loop(LoopConfig(data=data, run=str(folder), max_steps=1, **TINY)),
        "prepare": lambda: prepare(PrepareConfig(out=str(folder))),
        "infer": lambda: infer(InferConfig(base_model="tiny", out=str(folder))),
        "run": lambda: run_chapter("prepare", folder),
        "launch": lambda: launch("prepare", folder, 1),
    }
    before = files(folder)
    for name, job in jobs.items():
        with pytest.raises(
            ValueError,
            match=rf"x is in use by finetune by .* \(process {started[0].pid}\), since \d+ s; "
            "wait for its end, or choose another folder$",
        ):
            job()
        assert files(folder) == before, name
    with pytest.raises(ValueError, match=f"in use by finetune.*process {started[1].pid}"):
        export(run[0], folder.with_name("given"))
    done = subprocess.run([*CLI, "rank", "prepare", str(folder / "rank{rank}.ipynb")], capture_output=True, text=True)
    assert done.returncode == 2 and "in use by finetune" in done.stderr and files(folder) == before


def test_a_lock_of_a_killed_job_is_taken_over(holder, data, capsys):
    folder, started = holder
    os.kill(started[0].pid, signal.SIGKILL)
    started[0].wait()
    assert finetune(FinetuneConfig(data=data, run=str(folder), max_steps=1, **TINY))["optimizer_steps"] == 1
    assert f"(process {started[0].pid})" in capsys.readouterr().out and not (folder / LOCK).exists()


def test_a_process_below_may_work_in_a_folder_that_is_held_and_keeps_it(tmp_path):
    "A launcher's rank, a chapter's kernel. When the process above is killed, the one below still holds the folder."
    with hold_folder(tmp_path / "x", "launch"):
        below = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "x")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert below.stdout.readline() == "held\n"
        note = read_lock(tmp_path / "x" / LOCK)[0]
        assert [p["pid"] for p in note["processes"]] == [os.getpid(), below.pid]
        # the same process a second time is another job
        with pytest.raises(ValueError, match="in use by launch"):
            with hold_folder(tmp_path / "x", "launch"):
                pass
        below.kill()
        below.communicate()
    assert not (tmp_path / "x").exists() and HELD not in os.environ
    above = (
        "import os, subprocess, sys; from simpsons_llm.machine.job import hold_folder\n"
        "with hold_folder(sys.argv[1], 'launch'): print(subprocess.Popen([sys.executable, '-c', sys.argv[2], "
        "sys.argv[1]], stdin=subprocess.PIPE).pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", above, str(tmp_path / "y"), HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    try:
        assert parent.stdout.readline() == "held\n"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        # its end closed the pipe that the child reads from, so it may be gone any moment: only a living child must be
        # believed
        held = read_lock(tmp_path / "y" / LOCK)[0]["processes"] if (tmp_path / "y" / LOCK).exists() else []
        assert [p["pid"] for p in held] == [parent.pid, child]
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        parent.communicate()


# ---- checkpoints that are whole -------------------------------------------------------------------------------------

DIE = """
import json, os, signal, sys, torch
from simpsons_llm.train.finetune import *; from simpsons_llm.train.loop import *
engine, how, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with Ctrl-C switched off
saved, save = [], torch.save
def dying(what, path, *more):
    save(what, path, *more); saved.append(str(path))
    if str(path).endswith("optimizer.pt") and sum(p.endswith("optimizer.pt") for p in saved) == 2:
        os.kill(os.getpid(), getattr(signal, how))
torch.save = dying
loop(LoopConfig(**settings)) if engine == "loop" else finetune(FinetuneConfig(**settings))
"""


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "Three checkpoints of each engine, unbroken: engine -> folder."
    folder = tmp_path_factory.mktemp("whole")
    for name, (config, train) in ENGINES.items():
        train(config(data=data, run=str(folder / name), max_steps=6, epochs=1, eval_steps=2, **TINY))
    return folder


@pytest.mark.parametrize(
    "engine, how",
    [
        ("loop", "SIGKILL"),
        ("trainer", "SIGINT"),
        pytest.param("loop", "SIGINT", marks=pytest.mark.slow),
        pytest.param("trainer", "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ended_while_it_saved_goes_on_from_what_is_whole(engine, how, whole, data, tmp_path):
    """Killed in the middle of the second checkpoint: resumed from the first, to the same end.

    Stopped by Ctrl-C there, it is finished first."""
    config, train = ENGINES[engine]
    settings = dict(data=data, run=str(tmp_path / "x"), max_steps=6, epochs=1, eval_steps=2, **TINY)
    done = subprocess.run(
        [sys.executable, "-c", DIE, engine, how, json.dumps(settings)], capture_output=True, text=True
    )
    assert done.returncode in (-signal.SIGKILL, 1, 130, -signal.SIGINT), done.stderr
    kept = [2] if how == "SIGKILL" else [2, 4]
    assert checkpoints(tmp_path / "x") == kept and read_json(tmp_path / "x" / "summary.json")["status"] == (
        "running" if how == "SIGKILL" else "interrupted"
    )
    assert train(config(**settings, resume=True))["resumed_from_step"] == kept[-1]
    same(whole / engine, tmp_path / "x", 1e-6)
    assert not list((tmp_path / "x" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("engine", ENGINES)
def test_half_a_checkpoint_is_passed_over(engine, whole, data, tmp_path):
    "Such as an earlier version could leave: the newest folder has no state in it."
    import shutil

    config, train = ENGINES[engine]
    shutil.copytree(whole / engine, tmp_path / "x")
    for step in (4, 6):
        (tmp_path / "x" / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    (tmp_path / "x" / "summary.json").write_text('{"status": "running"}')
    assert last_checkpoint(tmp_path / "x") == 2
    again = train(config(data=data, run=str(tmp_path / "x"), max_steps=6, epochs=1, eval_steps=2, resume=True, **TINY))
    assert again["resumed_from_step"] == 2 and checkpoints(tmp_path / "x") == [2, 4, 6]
    same(whole / engine, tmp_path / "x", 1e-6)


# ---- nothing is written before all checks have passed ---------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    (tmp_path / "mine.txt").write_text(SCRIPT)
    return str(tmp_path / "mine.txt")


def test_an_estimate_writes_nowhere(script, tmp_path, monkeypatch):
    "Neither beside a finished run's data, nor into a new folder, nor into the cache."
    monkeypatch.setenv("SIMPSONS_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "simpsons_llm.train.lifecycle.estimate_run",
        lambda job: __import__("dataclasses").replace(job.told, step_s=1.0, tokens_per_s=1.0, tflop_per_s=1.0),
    )
    config = FinetuneConfig(data=script, run=str(tmp_path / "x"), max_steps=1, **TINY)
    before = files(tmp_path)
    assert "steps" in costs(config)["the run:"] and files(tmp_path) == before and not (tmp_path / "x").exists()
    finetune(config)
    monkeypatch.setenv("SIMPSONS_LLM_CACHE", str(tmp_path / "cache2"))
    before = files(tmp_path)
    costs(FinetuneConfig(data="springfield", run=str(tmp_path / "x"), **TINY))
    assert files(tmp_path) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_is_refused_leaves_everything_as_it_was(engine, script, tmp_path):
    config, train = ENGINES[engine]
    settings = dict(data=script, run=str(tmp_path / "x"), max_steps=2, eval_steps=1, **TINY)
    train(config(**settings))
    assert load_data(tmp_path / "x" / "data")[1]["script"] == "mine.txt"
    before = files(tmp_path / "x")
    for wrong, says in (
        ({"data": "springfield", "resume": True}, "data_sha256"),
        ({"data": "springfield", "target_modules": "no_proj"}, "no_proj"),
        ({"r": 5, "resume": True}, "r: 4 then, 5 now"),
        ({"max_seq_len": 16}, "max_seq_len"),
    ):
        with pytest.raises(ValueError, match=says):
            train(config(**{**settings, **wrong}))
        assert files(tmp_path / "x") == before, says
    with pytest.raises(ValueError):
        train(config(**{**settings, "run": str(tmp_path / "new" / "y"), "target_modules": "no_proj"}))
    assert not (tmp_path / "new").exists()


def test_a_new_run_on_another_script_sets_the_data_of_the_first_aside(script, data, tmp_path):
    run, other = tmp_path / "x", str(Path(data).with_name("short.csv"))
    for source in (script, other, other):
        finetune(FinetuneConfig(data=source, run=str(run), max_steps=1, **TINY))
    assert (
        load_data(run / "earlier" / "1" / "data")[1]["script"] == "mine.txt"
        and load_data(run / "data")[1]["script"] == "short.csv"
    )
    assert not (run / "earlier" / "2" / "data").exists()  # the same data stays where it is


# ---- what is told is what was done ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def homer(data, tmp_path_factory):
    "Prepared data with one character to learn."
    out = tmp_path_factory.mktemp("homer") / "data"
    prepare(PrepareConfig(script=str(Path(data).with_name("short.csv")), out=str(out), speakers="Homer Simpson"))
    return str(out)


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_of_two_kinds_are_told_apart_and_like_is_compared_with_like(engine, homer, tmp_path, capsys):
    "At a rate that moves nothing, the perplexity of an epoch in training is that of its scenes as they are scored."
    from simpsons_llm.machine.device import find_device, find_ranks
    from simpsons_llm.model.base import tiny_model
    from simpsons_llm.model.loss import heldout_loss

    config, train = ENGINES[engine]
    config = config(
        data=homer,
        run=str(tmp_path / "x"),
        epochs=1,
        eval_steps=1000,
        global_batch_size=8,
        **{**TINY, "learning_rate": 1e-12, "max_seq_len": 900},
    )
    summary = train(config)
    samples = plan(config, find_ranks(), find_device("cpu")).samples
    full, less = (
        sum(s.loss_weights.count(1.0) for s in samples["train"]),
        sum(0 < w < 1 for s in samples["train"] for w in s.loss_weights),
    )
    assert (summary["learned_tokens"], summary["context_tokens"]) == (full, less) and 0 < full < less
    told = (
        f"{full:,} of them learned, and {less:,} of other lines at weight 0.1, "
        f"which is {0.1 * less / (0.1 * less + full):.0%} of the loss"
    )
    assert told in capsys.readouterr().out
    last = [r for r in read_jsonl(tmp_path / "x" / "metrics.jsonl") if "train_perplexity" in r][-1]
    model, tokenizer = tiny_model()
    assert math.log(last["train_perplexity"]) == pytest.approx(
        heldout_loss(model, samples["train"], tokenizer.pad_token_id), abs=1e-5
    )
    steps = [r for r in read_jsonl(tmp_path / "x" / "metrics.jsonl") if "train_loss_nats" in r]
    # the two are not the same number
    assert any(abs(r["train_loss_nats"] - r["learned_loss_nats"]) > 1e-4 for r in steps if "learned_loss_nats" in r)
    assert all(1.0 in s.loss_weights for name in ("valid", "test") for s in samples[name])


@pytest.mark.parametrize("engine", ENGINES)
def test_no_step_has_a_learning_rate_of_0(engine, data, tmp_path):
    config, train = ENGINES[engine]
    train(config(data=data, run=str(tmp_path / "x"), max_steps=8, epochs=1, eval_steps=8, warmup_ratio=0.5, **TINY))
    rates = [r["learning_rate"] for r in read_jsonl(tmp_path / "x" / "metrics.jsonl") if "learning_rate" in r]
    assert rates == pytest.approx([3e-3 * share for share in (1 / 4, 2 / 4, 3 / 4, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5)])


def test_before_and_after_are_computed_in_the_same_format(script, tmp_path):
    "In full, in bfloat16, at a rate that moves nothing: both engines measure the same loss before, and the same after."
    found = {}
    for name, (config, train) in ENGINES.items():
        s = train(
            config(
                data=script,
                run=str(tmp_path / name),
                mode="full",
                dtype="bfloat16",
                device="cpu",
                max_steps=1,
                epochs=1,
                eval_steps=1,
                **{**TINY, "learning_rate": 1e-12},
            )
        )
        found[name] = (s["valid_loss_nats_base"], s["valid_loss_nats_best"])
        assert found[name][0] == pytest.approx(found[name][1], abs=1e-6)
    assert found["trainer"] == pytest.approx(found["loop"], abs=1e-6)
    exact = loop(
        LoopConfig(
            data=script,
            run=str(tmp_path / "fp32"),
            mode="full",
            device="cpu",
            max_steps=1,
            epochs=1,
            eval_steps=1,
            **{**TINY, "learning_rate": 1e-12},
        )
    )
    # in 32 bits it is another number
    assert abs(exact["valid_loss_nats_base"] - found["loop"][0]) > 1e-5


def test_costs_of_several_ranks_count_what_they_exchange_and_what_loading_takes(data, monkeypatch):
    from dataclasses import replace

    import simpsons_llm.train.lifecycle as L
    from simpsons_llm.machine.device import Ranks, find_device

    monkeypatch.setattr(L, "on_main", lambda ranks, do: do())
    # whole epochs: the same pairs meet in micro-batches of two, whatever the global batch
    big = dict(data=data, mode="full", epochs=1, global_batch_size=4, **{**TINY, "max_seq_len": 200})

    cpu = find_device("cpu")

    def told(config, n, device=cpu):
        return plan(config, Ranks(0, 0, n, n), device).told

    # what this process uses meanwhile does not matter here
    monkeypatch.setattr("simpsons_llm.train.cost.peak_memory_gib", lambda device: 0.0)
    one, ddp = told(FinetuneConfig(sharding="none", **big), 1), told(FinetuneConfig(sharding="none", **big), 2)
    # the same number of micro-batches on a rank
    alone = told(FinetuneConfig(sharding="none", **{**big, "global_batch_size": 2}), 1)
    assert (
        ddp.peak_mem_gib == pytest.approx(alone.peak_mem_gib + alone.gradients_gib)
        and one.peak_mem_gib >= alone.peak_mem_gib
    )
    by_hand = told(LoopConfig(**big), 2)
    assert by_hand.peak_mem_gib == pytest.approx(
        max(alone.peak_mem_gib, alone.weights_gib + 2 * alone.gradients_gib + alone.optimizer_gib)
    )
    monkeypatch.setattr(L, "memory_gib", lambda kind: 2 * alone.weights_gib * 0.9)
    with pytest.raises(ValueError, match="loaded whole into the host's memory first, once by each of the 2 ranks"):
        told(FinetuneConfig(sharding="fsdp", **big), 2, replace(cpu, memory_gib=100.0))
