"Jobs that are told to stop: the step is finished and saved, the end is written down, and they go on to the same bits."

import os
import shlex
import signal
import subprocess
import sys
import time

import damage
import nbformat
import pytest
from conftest import CLI, TINY, as_words

from simpsons_llm.machine import job
from simpsons_llm.machine.distributed import free_port
from simpsons_llm.machine.job import Stopped, read_json
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.history import Meter, checkpoints
from simpsons_llm.train.loop import LoopConfig, loop

ENGINES = {"finetune": (FinetuneConfig, finetune), "loop": (LoopConfig, loop)}
STEPS = dict(max_steps=6, eval_steps=4, epochs=1, lora_dropout=0.1)
# a command line in which signals come at the beginning of a step
TOLD = """
import os, signal, sys, time
import simpsons_llm.machine.job as job
from simpsons_llm.machine.cli import main
from simpsons_llm.train.history import Meter
step, name, times, slow_s, job.PATIENCE_S = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:6])
for k in job.STOPS: signal.signal(k, signal.default_int_handler)  # a shell may have switched some off
before, seen = Meter.step_begins, []
def begins(self):
    before(self)
    seen.append(1)
    if len(seen) == step:
        for _ in range(times): os.kill(os.getpid(), getattr(signal, name))
        until = time.monotonic() + slow_s
        while time.monotonic() < until: time.sleep(0.05)
Meter.step_begins = begins
sys.argv[1:] = sys.argv[6:]
main()
"""


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "Runs that nobody stopped: engine -> what they left."
    made = {}
    for engine, (config, train) in ENGINES.items():
        run = tmp_path_factory.mktemp(engine) / "x"
        train(config(data=data, run=str(run), **STEPS, **TINY))
        made[engine] = damage.result(run)
    return made


def told(step, name, *words, times=1, slow_s=0, patience_s=7, env=None):
    "A command that is told to stop in a step: a process."
    return subprocess.Popen(
        [sys.executable, "-c", TOLD, *map(str, (step, name, times, slow_s, patience_s)), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def settings(data, run, **more):
    return as_words(dict(data=data, run=run, **STEPS, **TINY, **more))


@pytest.mark.parametrize(
    "engine,name,step",
    [
        ("finetune", "SIGTERM", 2),  # before the first evaluation: nothing is best yet
        ("loop", "SIGINT", 5),
        pytest.param("loop", "SIGUSR1", 2, marks=pytest.mark.slow),
        pytest.param("finetune", "SIGHUP", 5, marks=pytest.mark.slow),
        pytest.param("loop", "SIGTERM", 4, marks=pytest.mark.slow),  # the step is evaluated, too
    ],
)
def test_a_step_is_finished_and_saved_and_the_run_goes_on_to_the_same_bits(engine, name, step, whole, data, tmp_path):
    run = tmp_path / "my run"
    p = told(step, name, engine, *settings(data, run))
    out, err = p.communicate(timeout=120)
    assert p.returncode == 128 + getattr(signal, name), (out, err)
    assert checkpoints(run)[-1] == step and "Traceback" not in err
    summary = read_json(run / "summary.json")
    assert summary["status"] == "interrupted" and summary["error"] == (
        f"interrupted by {name} after step {step}, which was saved"
    )
    assert f"to go on: {summary['resume']}" in out
    # the command as it is told
    code, out, err = damage.command(*shlex.split(summary["resume"])[1:])
    assert code == 0, (out, err)
    assert read_json(run / "summary.json")["resumed_from_step"] == step and damage.result(run) == whole[engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_between_a_step_and_its_saving_waits_for_the_next(engine, data, tmp_path, monkeypatch):
    "What is told to be saved is there."
    before, (config, train) = Meter.step_ends, ENGINES[engine]

    def ends(self, step):
        stop = before(self, step)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return stop

    monkeypatch.setattr(Meter, "step_ends", ends)
    with pytest.raises(Stopped, match="after step 3, which was saved"):
        train(config(data=data, run=str(tmp_path / "x"), **STEPS, **TINY))
    summary = read_json(tmp_path / "x" / "summary.json")
    assert checkpoints(tmp_path / "x") == [3] and "--resume" in summary["resume"]


def test_the_patience_with_one_job_does_not_end_the_next(monkeypatch):
    monkeypatch.setattr(job, "PATIENCE_S", 0.3)
    for wait in (0, 0.6):
        with job.listening() as ear:
            ear.patient = True
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(job, "PATIENCE_S", 60)
            try:
                time.sleep(wait)  # for the first one a second signal would come here
            except Stopped:
                pytest.fail("a job was ended by the signal that an earlier one had heard")
            assert ear.number == signal.SIGTERM


def test_a_second_signal_ends_at_once(data, tmp_path):
    p = told(5, "SIGTERM", "loop", *settings(data, tmp_path / "x"), times=2, slow_s=60)
    out, err = p.communicate(timeout=60)
    summary = read_json(tmp_path / "x" / "summary.json")
    assert (p.returncode, summary["status"]) == (143, "interrupted") and checkpoints(tmp_path / "x") == [4], (out, err)
    assert "before the step was saved" in summary["error"] and "--resume" in summary["resume"]


def test_a_long_step_is_not_waited_for(data, tmp_path):
    "The last checkpoint stands, and the end is written down before somebody sends SIGKILL."
    p = told(5, "SIGTERM", "loop", *settings(data, tmp_path / "x"), slow_s=60, patience_s=0.5)
    out, err = p.communicate(timeout=60)
    summary = read_json(tmp_path / "x" / "summary.json")
    assert (p.returncode, summary["status"]) == (143, "interrupted") and checkpoints(tmp_path / "x") == [4], (out, err)


@pytest.mark.parametrize("engine", ["loop", pytest.param("finetune", marks=pytest.mark.slow)])
def test_of_two_ranks_both_save_the_step_after_which_one_was_told(engine, data, tmp_path):
    "Only the second rank hears the signal."
    run, shared = tmp_path / "x", dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    shared["MASTER_PORT"] = str(free_port())
    words = settings(data, run, global_batch_size=2)
    ranks = [
        told(2 if r else 0, "SIGUSR1", engine, *words, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in (0, 1)
    ]
    ends = [p.communicate(timeout=120) for p in ranks]
    assert [p.returncode for p in ranks] == [143, 128 + signal.SIGUSR1], ends
    assert checkpoints(run) == [3]  # its sums told the first rank
    summary = read_json(run / "summary.json")
    assert summary["status"] == "interrupted" and f"simpsons-llm launch {engine} -n 2 --out {run}" in summary["resume"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("how", ["run", "launch", "rank"])
def test_chapters_under_papermill_are_told(how, name, data, tmp_path):
    "Their kernels save, the notebooks are kept, and no process is left."
    run = tmp_path / "run"
    given = dict(data=data, max_steps=5000, eval_steps=4999, epochs=1, **TINY)
    words = [w for k, v in given.items() for w in ("-p", k, str(v))]
    command = {
        "run": ["run", "loop", "--out", run],
        "launch": ["launch", "-n", "2", "loop", "--out", run],
        "rank": ["rank", "loop", f"{run}/rank{{rank}}.ipynb"],
    }[how]
    p = subprocess.Popen(
        [*CLI, *map(str, command), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in p.stdout:
        if line.startswith("train") and "loss" in line:
            break
    begun = time.time()
    p.send_signal(getattr(signal, name))
    out, err = p.communicate(timeout=60)
    assert p.returncode == 128 + getattr(signal, name) and time.time() - begun < 25, (out, err)
    summary = read_json(run / "summary.json")
    assert summary["status"] == "interrupted" and len(checkpoints(run)) == 1, summary
    assert f"step {checkpoints(run)[0]}, which was saved" in summary["error"] and "resume" in summary["resume"]
    kept = nbformat.read(run / "rank0.ipynb", 4)
    assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", []))
