"Tokens and minutes of a run, by a clock that the test winds."

import pytest
import torch

import simpsons_llm.train.history as H
from simpsons_llm.machine.device import Ranks, find_device
from simpsons_llm.train.config import TrainConfig, run_length


@pytest.fixture
def meter(monkeypatch):
    "(meter of a run of 100 steps that may take a minute, what sets the clock)"
    now = [0.0]
    monkeypatch.setattr(H.time, "perf_counter", lambda: now[0])
    m = H.Meter(Ranks(), find_device("cpu", "float32"), run_length(TrainConfig(max_steps=100), 1000), max_minutes=1)
    m.begin()
    return m, lambda seconds: now.__setitem__(0, seconds)


def test_a_run_stops_when_its_minutes_are_over(meter):
    m, at = meter
    for step, (begin, end, stops) in enumerate([(1, 3, False), (50, 59, False), (59.5, 60.5, True)], 1):
        at(begin)
        m.step_begins()
        at(end)
        assert m.step_ends(step) is stops is m.stopped_early
    assert m.step_s == pytest.approx(2 + 9 + 1)  # what lies between steps does not count


def test_the_last_step_stops_nothing_early(meter):
    m, at = meter
    m.step_begins()
    at(1000)
    assert m.step_ends(100) is False and not m.stopped_early


def test_tokens_that_nothing_predicts_are_not_learned(meter):
    "The first of a row; and what a filler computes is not counted at all."

    def part(*weights):
        return {"loss_weights": torch.tensor([weights]), "lengths": torch.tensor([len(weights)])}

    m, _ = meter
    assert m.count([part(1.0, 1.0, 0.0, 0.25), part(1.0, 0.0, 1.0)]) == 2.25
    assert (m.real_tokens, m.learned_tokens, m.context_tokens, m.own_tokens) == (7, 2, 1, 7)
    assert m.count([part(0.0, 0.0), part(1.0, 0.5)]) == 0.5
    assert (m.real_tokens, m.learned_tokens, m.context_tokens) == (9, 2, 2)


def test_perplexity_of_an_epoch_is_that_of_its_tokens(tmp_path):
    "Of two steps, one learned from nine times as many; steps of other epochs do not count."
    length = run_length(TrainConfig(max_steps=4, global_batch_size=2), 4)
    recorder = H.Recorder(Ranks(), find_device("cpu", "float32"), length, tmp_path, None)
    counts, losses = (10, 20, 110, 120), (7.0, 5.0, 2.0, 4.0)
    recorder.rows = [
        {"step": k, "train_loss_nats": 9.0, "learned_loss_nats": x, "learned_tokens": n}
        for k, (n, x) in enumerate(zip(counts, losses), 1)
    ]
    assert recorder.train_perplexity(2) == pytest.approx(torch.tensor((10 * 7.0 + 10 * 5.0) / 20).exp().item())
    assert recorder.train_perplexity(4) == pytest.approx(torch.tensor((90 * 2.0 + 10 * 4.0) / 100).exp().item())


def test_the_parts_of_a_run_add_up_to_the_whole(monkeypatch, tmp_path):
    "Two steps, an evaluation, text, a checkpoint: each second goes where it was spent, and nothing is lost."
    now = [100.0]

    def spend(seconds):
        now[0] += seconds

    monkeypatch.setattr(H.time, "perf_counter", lambda: now[0])
    watch = H.Stopwatch("load")
    spend(7)
    length = run_length(TrainConfig(max_steps=2, eval_steps=2), 4)
    recorder = H.Recorder(
        Ranks(), find_device("cpu", "float32"), length, tmp_path, lambda: spend(3) or [], watch=watch, fingerprint=list
    )
    recorder.begin()
    for step in (1, 2):
        spend(0.5)  # batches are made
        recorder.step_begins()
        spend(10)
        recorder.step_ends(step)
        recorder.learned(step, 1.0, 1.0, 1e-3)
        recorder.speak(step)
    spend(5)
    recorder.evaluated(2, 1.0)
    spend(2)
    assert watch.read() == {"load": 7, "train": 21, "score": 5, "speak": 3, "save": 2, "other": 0}
    assert sum(watch.read().values()) == now[0] - 100
    with pytest.raises(ValueError, match="part='test' was given"):
        watch.turn_to("test")
