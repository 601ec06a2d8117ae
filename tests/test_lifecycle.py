"What settings promise, looked up in what a run did: clipping, warmup, test scenes, the step that is kept."

import pytest
import torch
from conftest import TINY

from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import read_json, read_jsonl
from simpsons_llm.model.adapter import load_adapter
from simpsons_llm.model.base import load_base
from simpsons_llm.model.loss import heldout_loss
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.lifecycle import make_samples, run_data
from simpsons_llm.train.loop import LoopConfig, loop

ENGINES = pytest.mark.parametrize(
    "config, train", [(FinetuneConfig, finetune), (LoopConfig, loop)], ids=["trainer", "loop"]
)


@pytest.mark.parametrize("train, most", [(finetune, 0.05), (loop, 0.05), (loop, 1e6)])
def test_gradients_are_clipped_before_the_optimizer_sees_them(train, most, data, tmp_path, monkeypatch):
    "metrics.jsonl tells the norm before; where that is smaller, gradients stay as they are."
    from torch._subclasses.fake_tensor import FakeTensor

    seen, step = [], torch.optim.AdamW.step

    def looked_at(self, *args, **kwargs):
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not isinstance(gradients[0], FakeTensor):
            # costs are counted without numbers
            seen.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", looked_at)
    config = FinetuneConfig if train is finetune else LoopConfig
    train(config(data=data, run=str(tmp_path / "x"), max_steps=2, eval_steps=2, max_grad_norm=most, **TINY))
    told = [r["grad_norm"] for r in read_jsonl(tmp_path / "x" / "metrics.jsonl") if "grad_norm" in r]
    assert len(seen) == len(told) == 2 and min(told) > 0.05
    assert seen == pytest.approx([min(norm, most) for norm in told], rel=1e-4)


@ENGINES
def test_the_rate_rises_in_as_many_steps_as_warmup_says_then_falls(config, train, data, tmp_path):
    settings = {**TINY, "learning_rate": 2e-3, "eval_steps": 100, "max_steps": 6, "warmup_ratio": 0.5}
    train(config(data=data, run=str(tmp_path / "x"), **settings))
    rates = [r["learning_rate"] for r in read_jsonl(tmp_path / "x" / "metrics.jsonl") if "learning_rate" in r]
    assert len(rates) == 6 and max(rates) == pytest.approx(2e-3)
    assert sum(b > a for a, b in zip([0.0, *rates], rates)) == 3
    assert all(a > b for a, b in zip(rates[3:], rates[4:]))


@ENGINES
def test_test_scenes_are_scored_before_and_after_when_asked_for(config, train, data, tmp_path):
    settings = config(data=data, run=str(tmp_path / "x"), max_steps=4, eval_steps=2, score_test=True, **TINY)
    summary, device = train(settings), find_device("cpu")
    parts, report, _ = run_data(settings)
    tuned, tokenizer, notes = load_adapter(tmp_path / "x" / "adapter", device)
    samples = make_samples(settings, TextMaker(tokenizer, notes["template"]), parts, report)[0]
    for split in ("test", "valid"):
        for when, model in (("best", tuned), ("base", load_base("tiny", device)[0])):
            assert summary[f"{split}_loss_nats_{when}"] == pytest.approx(
                heldout_loss(model, samples[split], tokenizer.pad_token_id), abs=1e-5
            ), (split, when)
    assert abs(summary["test_loss_nats_best"] - summary["valid_loss_nats_best"]) > 1e-3
    rows = read_jsonl(tmp_path / "x" / "metrics.jsonl")
    assert [(r["step"], r["test_loss_nats"]) for r in rows if "test_loss_nats" in r] == [
        (0, summary["test_loss_nats_base"])
    ]


def test_test_scenes_are_left_alone_otherwise(run):
    folder, summary = run
    assert not [k for k in (*summary, *read_json(folder / "summary.json")) if k.startswith("test_")]
    assert not [r for r in read_jsonl(folder / "metrics.jsonl") if any(k.startswith("test_") for k in r)]


def test_a_step_that_was_not_loaded_as_it_was_saved_is_noticed(data, tmp_path, monkeypatch):
    "Weights of another step than the best come back."
    import simpsons_llm.train.loop as module

    real = module.load_weights
    monkeypatch.setattr(module, "load_weights", lambda model, folder: real(model, folder.with_name("checkpoint-1")))
    with pytest.raises(ValueError, match="it was not loaded as it was saved"):
        loop(LoopConfig(data=data, run=str(tmp_path / "x"), max_steps=3, eval_steps=1, **TINY))
    assert (
        read_json(tmp_path / "x" / "summary.json")["status"] == "failed" and not (tmp_path / "x" / "adapter").exists()
    )


def test_kept_samples_are_those_of_the_settings(data, tmp_path, monkeypatch):
    "Each setting that shapes samples, changed one at a time, with the same cache."
    monkeypatch.setenv("SIMPSONS_LLM_CACHE", str(tmp_path))
    found = []
    for more in (
        {},
        dict(context_weight=0.5),
        dict(max_seq_len=150),
        dict(view="rows"),
        dict(view="rows", context_lines=1),
        {},
    ):
        config = FinetuneConfig(data=data, **{**TINY, **more})
        parts, report, _ = run_data(config)
        maker, report = TextMaker(load_base("tiny", find_device("cpu"))[1]), {**report, "speakers": ["Homer Simpson"]}
        found.append([(x.input_ids, x.loss_weights) for x in make_samples(config, maker, parts, report)[0]["train"]])
    assert found[0] == found[-1] and all(a != b for i, a in enumerate(found[:-1]) for b in found[:i])
