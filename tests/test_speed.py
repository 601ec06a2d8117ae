"The fast loop: rows of one length, and a recorded step, with a stand-in for a device's graphs, beside the plain loop."

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data import packing
from simpsons_llm.data.packing import EndToEnd, RowShape, fixed_row, row_shape, use_isolated
from simpsons_llm.machine.distributed import free_port
from simpsons_llm.machine.job import read_jsonl
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.loss import token_losses
from simpsons_llm.train import finetune as F
from simpsons_llm.train import speed
from simpsons_llm.train.finetune import FinetuneConfig, engine_for, finetune
from simpsons_llm.train.lifecycle import run_job
from simpsons_llm.train.loop import Loop, LoopConfig
from simpsons_llm.train.speed import FastLoop, row_losses


class Played:
    "What `Recorded` does, without a graph: the same work on the same tensors, three times before it counts."

    made, data = 0, ""

    def __init__(self, work, device, warm=3, beside=None):
        self.work = work
        Played.made += 1
        for _ in range(warm):
            work()

    def __call__(self):
        return self.work()


@pytest.fixture(autouse=True)
def short(data):
    "What the runs of this file learn from."
    Played.data = str(data)


@pytest.fixture
def graphs(monkeypatch):
    "A CPU that records."
    monkeypatch.setattr(speed, "graph_class", lambda device: Played)
    monkeypatch.setattr(speed, "Recorded", Played)
    Played.made = 0


def losses(run):
    return [r["train_loss_nats"] for r in read_jsonl(run / "metrics.jsonl") if "train_loss_nats" in r]


def trained(folder, **given):
    "A run of the tiny model by `finetune`; its summary."
    settings = {"data": Played.data, "run": str(folder), "max_steps": 8, "eval_steps": 4, **TINY, "sample_steps": 0}
    return finetune(FinetuneConfig(**settings | given))


@pytest.mark.parametrize(
    "given",
    [
        {"compile": "graph"},
        {"compile": "auto"},
        {"compile": "graph", "global_batch_size": 4, "micro_batch_size": 2},
        {"compile": "graph", "global_batch_size": 16, "micro_batch_size": 16, "max_steps": 12},
        {"compile": "graph", "packing": "rows", "row_len": 1024},
        {"compile": "graph", "mode": "full"},
        {"compile": "graph", "recipe": "seed", "template": "script", "view": "rows", "lora_dropout": 0.0},
    ],
)
def test_a_recorded_step_learns_what_trainer_learns(tmp_path, graphs, given, capsys):
    fast = trained(tmp_path / "fast", **given)
    assert fast["engine"] == "loop" and Played.made >= 2
    plain = trained(tmp_path / "plain", **given | {"compile": "none"})
    assert plain["engine"] == "trainer"
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "plain"), abs=2e-5)
    assert fast["valid_loss_nats_best"] == pytest.approx(plain["valid_loss_nats_best"], abs=2e-5)
    if given == {"compile": "graph"}:  # a control: another seed learns something else
        assert trained(tmp_path / "other", **given | {"seed": 7})
        assert losses(tmp_path / "other") != pytest.approx(losses(tmp_path / "fast"), abs=1e-3)


def test_rows_of_several_lengths_learn_what_trainer_learns(tmp_path, graphs, monkeypatch, capsys):
    "Each length is recorded, and each micro-batch goes into the shortest that has room."
    monkeypatch.setattr(packing, "LEAST_TOKENS", 1)
    filled, sizes = [], {"global_batch_size": 3, "micro_batch_size": 3, "max_steps": 9, "eval_steps": 9}
    fill = FastLoop.fill
    monkeypatch.setattr(FastLoop, "fill", lambda self, row: (filled.append((self, row["shape"])), fill(self, row))[1])
    trained(tmp_path / "fast", compile="graph", **sizes)
    shapes = filled[0][0].shapes
    assert 1 < len(shapes) <= 3 and Played.made == len(shapes) + 1
    assert {k for _, k in filled[len(shapes) :]} == set(range(len(shapes)))  # the first were for the recording
    assert " or ".join(f"{n.tokens:,}" for n in shapes) in capsys.readouterr().out
    trained(tmp_path / "plain", compile="none", **sizes)
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "plain"), abs=2e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(2, 900), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 3))
def test_every_micro_batch_has_room_in_the_shape_that_it_is_given(batches, most):
    lengths = [n for b in batches for n in b]
    ends = [0, *torch.tensor([len(b) for b in batches]).cumsum(0).tolist()]
    indices = [list(range(a, b)) for a, b in zip(ends, ends[1:])]
    learned = [n // 2 for n in lengths]
    shapes = packing.row_shapes(indices, lengths, learned, most)
    assert len(shapes) <= most and [n.tokens for n in shapes] == sorted({n.tokens for n in shapes})
    assert shapes[-1].tokens == row_shape(indices, lengths, learned).tokens
    for b in batches:
        shape = next(n for n in shapes if n.tokens >= sum(b))
        samples = [{"input_ids": [5] * n, "loss_weights": [0.0] * (n - n // 2) + [1.0] * (n // 2)} for n in b]
        assert fixed_row(EndToEnd(0)(samples), shape, 0)["input_ids"].shape == (1, shape.tokens)
    padded = [sum(next(n.tokens for n in s if n.tokens >= sum(b)) for b in batches) for s in (shapes, shapes[-1:])]
    assert padded[0] <= padded[1]


def test_shapes_of_a_long_run_are_found_at_once():
    "The time depends on how many lengths there are, not on how many steps."
    made = torch.Generator().manual_seed(0)
    lengths = torch.randint(3000, 9000, (500,), generator=made).tolist()
    batches, begun = [[k % 500] for k in range(60_000)], time.process_time()
    shapes = packing.row_shapes(batches, lengths, lengths)
    assert len(shapes) == 3 and time.process_time() - begun < 3


def test_a_resumed_run_goes_on_to_the_same_numbers(tmp_path, graphs):
    "With dropout: the random numbers are those after the checkpoint, not those of the warming up."
    trained(tmp_path / "whole", lora_dropout=0.1)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "checkpoint-8")
    shutil.rmtree(tmp_path / "half" / "adapter")
    (tmp_path / "half" / "summary.json").write_text(json.dumps({"status": "running"}))
    trained(tmp_path / "half", lora_dropout=0.1, resume=True)
    assert losses(tmp_path / "half") == losses(tmp_path / "whole")


def test_the_plain_engines_go_on_from_its_checkpoint(tmp_path, graphs):
    trained(tmp_path / "fast")
    kept = torch.load(tmp_path / "fast" / "checkpoints" / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert all(isinstance(g["lr"], float) and not g["capturable"] for g in kept["param_groups"])
    shutil.copytree(tmp_path / "fast", tmp_path / "plain")
    shutil.rmtree(tmp_path / "plain" / "checkpoints" / "checkpoint-8")
    (tmp_path / "plain" / "summary.json").write_text(json.dumps({"status": "running"}))
    trained(tmp_path / "plain", resume=True, compile="none")
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "fast"), abs=2e-5)


def test_a_recording_that_fails_costs_nothing(tmp_path, graphs, monkeypatch, capsys):
    "Warmed up three times, then refused by the device: the run goes on as if nothing had been tried."

    class Refused(Played):
        def __init__(self, work, device, warm=3, beside=None):
            super().__init__(work, device, warm)
            if Played.made == 2:
                raise RuntimeError("operation not permitted when stream is capturing\nmore words")

    monkeypatch.setattr(speed, "Recorded", Refused)
    assert trained(tmp_path / "fast", lora_dropout=0.1)["engine"] == "loop"
    assert "not recorded (RuntimeError: operation not permitted when stream is capturing)" in capsys.readouterr().out
    run_job(
        LoopConfig(run=str(tmp_path / "loop"), data=Played.data, max_steps=8, eval_steps=4, lora_dropout=0.1, **TINY),
        Loop,
    )
    assert losses(tmp_path / "fast") == losses(tmp_path / "loop")


@pytest.mark.parametrize(
    "why,change",
    [
        ("a CPU does not wait", {"graph_class": lambda device: None}),
        ("4 bits", {}),
    ],
)
def test_where_nothing_can_be_gained_trainer_does_it(tmp_path, graphs, monkeypatch, why, change):
    for name, value in change.items():
        monkeypatch.setattr(speed, name, value)
    job = F.Job.__new__(F.Job)
    job.isolated, job.config = True, FinetuneConfig(base_model="tiny")
    if why == "4 bits":
        job.config = FinetuneConfig(base_model="tiny", quantization="nf4")
    assert why in speed.slow_because(job, torch.device("cpu"))
    if why == "a CPU does not wait":
        assert trained(tmp_path / "run", max_steps=1)["engine"] == "trainer"


@pytest.fixture
def compiled(monkeypatch):
    "How often a layer was compiled, where compiling is played."
    calls = []

    def compile_(function, dynamic=None):
        calls.append(function)
        return lambda *args, **kwargs: function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.parametrize(
    "why,given,change",
    [
        ("", {"gradient_checkpointing": True}, {}),
        ("so many parameters", {"mode": "full"}, {"MOST_RECORDED": 10}),
        ("so many parameters", {"global_batch_size": 4, "micro_batch_size": 2}, {"MOST_RECORDED": 10}),
    ],
)
def test_a_step_that_is_recorded_only_when_compiled_or_not_at_all_learns_the_same(
    tmp_path, graphs, compiled, monkeypatch, capsys, why, given, change
):
    for name, value in change.items():
        monkeypatch.setattr(speed, name, value)
    fast = trained(tmp_path / "fast", compile="layers", **given)
    # the tiny model has two layers; compiled, what is computed again can be recorded
    assert fast["engine"] == "loop" and Played.made == (0 if why else 2) and len(compiled) == 2
    said = capsys.readouterr().out
    assert f"; not recorded: {why}" in said if why else "step compiled and recorded" in said
    trained(tmp_path / "plain", **given | {"compile": "none"})
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "plain"), abs=2e-5)
    assert trained(tmp_path / "graph", max_steps=1, compile="graph", **given)["engine"] == "trainer"
    compiled.clear()
    assert trained(tmp_path / "auto", max_steps=2, **given)["engine"] == "loop" and not compiled  # two steps do not pay
    monkeypatch.setattr(speed, "COMPILE_S", 1e-6)
    assert trained(tmp_path / "pays", max_steps=2, **given)["engine"] == "loop" and len(compiled) == 2


@pytest.mark.parametrize(
    "given, trained_most, dynamic, free",
    [
        ({}, None, True, False),
        ({"gradient_checkpointing": True}, None, False, False),  # told to compute again, no length but its own
        ({}, 10, True, True),  # nothing is recorded: rows are as long as they are
        ({"gradient_checkpointing": True}, 10, False, False),
    ],
)
def test_what_the_compiler_is_told_of_lengths(
    tmp_path, graphs, compiled, monkeypatch, given, trained_most, dynamic, free
):
    "A few lengths where a step is recorded or each is compiled by itself; any where neither is."
    seen, plain = {}, speed.compiled_layers
    find = speed.row_shapes
    monkeypatch.setattr(packing, "LEAST_TOKENS", 1)
    monkeypatch.setattr(speed, "compiled_layers", lambda m, dynamic=False: (seen.update(dynamic=dynamic), plain(m))[1])
    monkeypatch.setattr(speed, "row_shapes", lambda *a, most=3: (seen.update(most=most), find(*a, most=most))[1])
    if trained_most:
        monkeypatch.setattr(speed, "MOST_RECORDED", trained_most)
    trained(tmp_path / "x", compile="layers", max_steps=6, eval_steps=6, **given)
    assert seen == {"dynamic": dynamic, "most": None if free else 3}


def test_a_compiler_that_fails_leaves_the_recorded_step(tmp_path, graphs, monkeypatch, capsys):
    "And the layers as they were."

    def compile_(function, dynamic=None):
        def broken(*args, **kwargs):
            raise RuntimeError("no compiler was found\nand more")

        return broken

    monkeypatch.setattr(torch, "compile", compile_)
    trained(tmp_path / "fast", compile="layers", lora_dropout=0.1)
    assert "layers are not compiled (RuntimeError: no compiler was found)" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(speed, "graph_class", lambda device: Played)
    monkeypatch.setattr(speed, "Recorded", Played)
    trained(tmp_path / "graph", compile="graph", lora_dropout=0.1)
    assert losses(tmp_path / "fast") == losses(tmp_path / "graph")


def test_what_a_recording_holds_is_let_go(tmp_path, graphs, monkeypatch):
    kept = []
    old = FastLoop.make_step
    monkeypatch.setattr(FastLoop, "make_step", lambda self, compiled: (kept.append(self), old(self, compiled)))
    trained(tmp_path / "fast")
    assert kept[0].recorded == {} and kept[0].update is None and all(p.grad is None for p in kept[0].parameters)


RANK = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_speed import Played
from simpsons_llm.machine.distributed import end_process
from simpsons_llm.train import speed
from simpsons_llm.train.finetune import FinetuneConfig, finetune
speed.graph_class, speed.Recorded = lambda device: Played, Played
finetune(FinetuneConfig(**{settings!r}))
assert Played.made == 2
end_process()
"""


def test_two_ranks_record_their_steps_and_learn_what_one_learns(tmp_path, graphs):
    sizes = {"global_batch_size": 4, "micro_batch_size": 1, "max_steps": 4, "eval_steps": 4}
    trained(tmp_path / "one", **sizes)
    settings = {"data": Played.data, "run": str(tmp_path / "two"), **TINY, "sample_steps": 0, **sizes}
    code = RANK.format(tests=str(Path(__file__).parent), settings=settings)
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **group, "RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(2)
    ]
    assert [r.wait(120) for r in ranks] == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)


def test_the_fast_loop_by_itself_is_the_loop_where_nothing_is_recorded(tmp_path):
    config = {"data": Played.data, "max_steps": 3, "eval_steps": 3, **TINY, "sample_steps": 0}
    for name, engine in (("fast", FastLoop), ("loop", Loop)):
        run_job(LoopConfig(run=str(tmp_path / name), **config), engine)
    assert losses(tmp_path / "fast") == losses(tmp_path / "loop")
    assert engine_for.name == "trainer"


SAMPLES = st.lists(st.integers(2, 40), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SAMPLES, st.integers(0, 3), st.sampled_from([16, 64]))
def test_filled_up_or_not_the_losses_are_the_same(lengths, more, step):
    model, _ = tiny_model()
    use_isolated(model)
    made = torch.Generator().manual_seed(sum(lengths))
    samples = [
        {
            "input_ids": torch.randint(3, 200, (n,), generator=made).tolist(),
            "loss_weights": [float(w) for w in torch.randint(0, 2, (n - 1,), generator=made)] + [1.0],
        }
        for n in lengths
    ]
    learned = [sum(w > 0 for w in s["loss_weights"]) for s in samples]
    shape = row_shape([list(range(len(lengths))), [0]], lengths, learned, step)
    shape = RowShape(shape.tokens + more * step, shape.sequences + more * step, shape.longest, shape.learned)
    with pytest.raises(ValueError, match="the run's longest"):  # never cut
        fixed_row(EndToEnd(0)(samples), RowShape(sum(lengths) - 1, 99, 40, 999), 0)
    for part in (samples, samples[:1]):
        plain = EndToEnd(0)(part)
        row = fixed_row(plain, shape, 0)
        assert row["input_ids"].shape == (1, shape.tokens) and row["cu_seqlens"].shape == (shape.sequences + 1,)
        assert max(row["seq_lens"]) <= shape.longest and row["cu_seqlens"][-1] == shape.tokens
        assert sum(row["seq_lens"]) == shape.tokens and row["weights"].sum() == plain["loss_weights"].sum()
        with torch.no_grad():
            (want, weights), found = token_losses(model, plain), row_losses(model, row, shape.longest)
        assert torch.allclose(found[row["weights"] > 0], want[weights > 0], atol=1e-4)
