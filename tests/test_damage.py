"Folders that were damaged after they were written: named, passed over, made anew or refused. All cases: damage.py."

import json
import shutil
from pathlib import Path

import damage
import pytest
from conftest import TINY, as_words

from simpsons_llm.data.dataset import kept_samples
from simpsons_llm.data.prepare import load_data
from simpsons_llm.data.samples import Sample
from simpsons_llm.machine.job import MANIFEST, damage_in, read_json, read_jsonl
from simpsons_llm.model.adapter import find_trained
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.history import Recorder, checkpoints, thin_out, whole_checkpoint
from simpsons_llm.train.loop import LoopConfig, loop

STEPS = dict(max_steps=6, eval_steps=2, epochs=1, lora_dropout=0.1)
ENGINES = {"finetune": (FinetuneConfig, finetune), "loop": (LoopConfig, loop)}


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    "Runs that came to an end after step 5, and whole ones: engine -> (stopped, what the whole one left)."
    made, learned = {}, Recorder.learned

    def dies(self, step, *more):
        if step == 5:
            raise RuntimeError("killed")
        learned(self, step, *more)

    for engine, (config, train) in ENGINES.items():
        home = tmp_path_factory.mktemp(engine)
        train(config(data=data, run=str(home / "whole"), **STEPS, **TINY))
        Recorder.learned = dies
        try:
            with pytest.raises(RuntimeError):
                train(config(data=data, run=str(home / "stopped"), **STEPS, **TINY))
        finally:
            Recorder.learned = learned
        made[engine] = home / "stopped", damage.result(home / "whole")
    return made


def go_on(engine, stopped, data, place, hurt):
    "Damage a copy and resume it: (exit code, standard output, standard error, whether the result is the whole run's)."
    run = place / "x"
    shutil.copytree(stopped[engine][0], run)
    hurt(run)
    words = as_words(dict(data=data, run=run, resume=True, **STEPS, **TINY))
    code, out, err = damage.command(engine, *words)
    return code, out, err, code == 0 and damage.result(run) == stopped[engine][1]


CASES = {
    "a file lost": ("optimizer.pt", "missing", "optimizer.pt is missing"),
    "a file emptied": ("scheduler.pt", "emptied", "scheduler.pt is empty"),
    "a file cut to half": ("adapter_model.safetensors", "half", "adapter_model.safetensors has"),
    "a bit flipped": ("adapter_model.safetensors", "flipped", "adapter_model.safetensors has changed"),
    "text in its place": ("trainer_state.json", "text", "trainer_state.json has 29 of"),
    "no random state": ("r*.p*", "missing", "is missing"),
    "a damaged manifest": (MANIFEST, "half", f"{MANIFEST} is damaged"),
}


@pytest.mark.parametrize("engine,name", [(e, n) for k, n in enumerate(CASES) for e in [list(ENGINES)[k % 2]]])
def test_an_older_checkpoint_takes_the_place_of_a_damaged_one(engine, name, stopped, data, tmp_path):
    "It is named with what is wrong; the run ends with the same bits."
    file, how, told = CASES[name]
    before = sorted(int(p.name[11:]) for p in (stopped[engine][0] / "checkpoints").iterdir())[-2]

    def hurt(run):
        for p in (run / "checkpoints" / "checkpoint-4").glob(file):
            damage.DAMAGES[how](p)

    code, out, err, same = go_on(engine, stopped, data, tmp_path, hurt)
    assert (code, same) == (0, True), (out, err)
    assert told in out and f"going on from the older checkpoint-{before}" in out
    assert read_json(tmp_path / "x" / "summary.json")["resumed_from_step"] == before
    assert not list((tmp_path / "x" / "checkpoints").glob("damaged-*"))


def test_none_whole_is_refused_and_nothing_is_moved(stopped, data, tmp_path):
    def hurt(run):
        for p in run.glob("checkpoints/*/optimizer.pt"):
            p.unlink()

    code, out, err, _ = go_on("loop", stopped, data, tmp_path, hurt)
    assert code == 2 and err.count("\n") == 1 and "no checkpoint" in err and "optimizer.pt is missing" in err, (
        out,
        err,
    )
    assert checkpoints(tmp_path / "x") == checkpoints(stopped["loop"][0])


def test_rows_that_were_lost_come_from_the_checkpoint(stopped, data, tmp_path):
    "Whatever happened to metrics.jsonl, also to a number in it."

    def hurt(run):
        file = run / "metrics.jsonl"
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join(r.replace('valid_loss_nats": 5', 'valid_loss_nats": 1') for r in rows[1:]))

    code, out, err, same = go_on("loop", stopped, data, tmp_path, hurt)
    assert (code, same) == (0, True), (out, err)
    assert "metrics.jsonl is damaged, or lacks rows; its rows until step 4" in out


def unsealed(run):
    "As an earlier version left it."
    for p in (*run.glob(f"checkpoints/*/{MANIFEST}"), *run.glob("checkpoints/*/metrics.jsonl")):
        p.unlink()


def test_a_checkpoint_without_a_manifest_is_taken_if_it_can_be_read(stopped, data, tmp_path):
    code, out, err, same = go_on("loop", stopped, data, tmp_path, unsealed)
    assert (code, same) == (0, True) and "checkpoint-4 has no manifest" in out, (out, err)


@pytest.mark.parametrize("how", ["no optimizer", "flipped optimizer", "wrong step", "lost rows", "half a row"])
def test_a_damaged_checkpoint_without_a_manifest_is_seen(how, stopped, tmp_path):
    run = tmp_path / "x"
    shutil.copytree(stopped["loop"][0], run)
    unsealed(run)
    newest, rows = run / "checkpoints" / "checkpoint-4", (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    if how == "no optimizer":
        (newest / "optimizer.pt").unlink()
    elif how == "flipped optimizer":
        damage.flip(newest / "optimizer.pt")
    elif how == "wrong step":
        state = read_json(newest / "trainer_state.json")
        (newest / "trainer_state.json").write_text(json.dumps({**state, "global_step": 78}))
    elif how == "lost rows":
        (run / "metrics.jsonl").write_text("".join(r for r in rows if '"step": 4,' not in r or "train_loss" not in r))
    else:
        (run / "metrics.jsonl").write_text("".join(r for r in rows if '"step": 4,' not in r) + rows[-1][:40])
    step, passed = whole_checkpoint(run)
    assert step in (2, 3) and list(passed) == [4], passed


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
@pytest.mark.parametrize("text", ["", "{", "- 1\n"])
def test_a_damaged_note_is_one_sentence(name, text, stopped, data, tmp_path):
    code, out, err, _ = go_on("finetune", stopped, data, tmp_path, lambda run: (run / name).write_text(text))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and name in err, (out, err)
    assert not damage.FOREIGN.search(err)


@pytest.mark.parametrize("how", damage.DAMAGES)
def test_a_damaged_adapter_is_not_loaded(how, run, tmp_path):
    shutil.copytree(run[0] / "adapter", tmp_path / "a")
    assert damage_in(tmp_path / "a") == [] and find_trained(tmp_path / "a").kind == "adapter"
    damage.DAMAGES[how](tmp_path / "a" / "simpsons_llm.json")
    with pytest.raises(ValueError, match="the adapter in .* is damaged: simpsons_llm.json"):
        find_trained(tmp_path / "a")
    with pytest.raises(ValueError, match="is damaged"):
        find_trained(damaged_summary(run[0], tmp_path / "x"))


def damaged_summary(run, place):
    "A run in whose summary a loss was changed."
    shutil.copytree(run, place)
    text = (place / "summary.json").read_text()
    (place / "summary.json").write_text(text.replace('"valid_loss_nats_best": 5', '"valid_loss_nats_best": 4'))
    return place


def test_a_changed_report_is_not_believed(data, tmp_path):
    "Whom to learn stands in it."
    shutil.copytree(data, tmp_path / "d")
    file = tmp_path / "d" / "report.json"
    file.write_text(file.read_text().replace("Homer Simpson", "Homer Simpsom"))
    with pytest.raises(ValueError, match="report.json has changed since it was written; run prepare again"):
        load_data(tmp_path / "d")


def test_kept_tokens_that_were_damaged_are_made_anew(tmp_path, capsys):
    "200 bytes of numbers: before, they were learned, or an IndexError came of them in every later run."
    samples = [Sample(list(range(500)), [1.0] * 500, bytes(500))] * 3

    def get():
        return kept_samples({"k": 1}, lambda: ({"train": samples}, {}), tmp_path)

    assert (get()[2], get()[2]) == (False, True) and not capsys.readouterr().out
    file = next(tmp_path.rglob("*.arrow"))
    raw = bytearray(file.read_bytes())
    for k in range(200):
        raw[len(raw) // 2 + k] ^= 0xFF
    file.write_bytes(raw)
    found, _, kept = get()
    assert found["train"] == samples and not kept
    assert "data-00000-of-00001.arrow has changed since it was written) and are made anew" in capsys.readouterr().out
    assert get()[2]


def test_the_best_step_of_an_older_checkpoint_stays(tmp_path):
    "Without it, the older one could not take the newest one's place."
    for step, best in ((2, 2), (4, 4), (6, 2), (8, 8)):
        at = tmp_path / "checkpoints" / f"checkpoint-{step}"
        at.mkdir(parents=True)
        state = {"global_step": step, "best_metric": 1.0, "best_model_checkpoint": f"checkpoint-{best}"}
        (at / "trainer_state.json").write_text(json.dumps(state))
    thin_out(tmp_path, 3, best=8)
    assert checkpoints(tmp_path) == [2, 6, 8]


def test_the_record_of_all_cases_has_none_that_is_wrong():
    rows = read_jsonl(Path(__file__).parent.parent / "nbs" / "_results" / "damage.jsonl")
    ends = [r["end"] for r in rows if r["when"] == "now"]
    assert len(ends) >= 56 and "WRONG" not in ends
