"What settings promise, looked up in what a run did: clipping, warmup, test scenes, the step that is kept."

import time
from dataclasses import replace

import pytest
import torch
from conftest import TINY

from simpsons_llm.data.batches import RankBatches
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import Ranks, find_device
from simpsons_llm.machine.job import read_json, read_jsonl
from simpsons_llm.model.adapter import load_adapter
from simpsons_llm.model.base import load_base
from simpsons_llm.model.loss import heldout_loss
from simpsons_llm.train import lifecycle
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.lifecycle import make_samples, plan, run_data, step_recipe, summary_text
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
    monkeypatch.setattr(module, "load_weights", lambda model, folder: real(model, folder.with_name("checkpoint-2")))
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


@ENGINES
def test_what_was_measured_in_training_is_not_measured_again(config, train, data, tmp_path, monkeypatch):
    "The base and each evaluation; at the end weights are compared. Where nothing is known of them, they are scored."
    scored = []
    for name in ("lifecycle", "loop", "finetune"):
        module = __import__(f"simpsons_llm.train.{name}", fromlist=["x"])
        monkeypatch.setattr(module, "heldout_loss", lambda *given: scored.append(1) or heldout_loss(*given))
    settings = {"data": data, "run": str(tmp_path / "x"), "max_steps": 4, "eval_steps": 2, **TINY}
    summary = train(config(**settings))
    assert len(scored) == 3
    rows = {
        r["step"]: r["valid_loss_nats"] for r in read_jsonl(tmp_path / "x" / "metrics.jsonl") if "valid_loss_nats" in r
    }
    assert summary["valid_loss_nats_best"] == rows[summary["best_step"]]
    # killed after the last step
    (tmp_path / "x" / "summary.json").write_text('{"status": "running"}')
    again = train(config(**settings, resume=True))
    assert len(scored) == 4 and again["valid_loss_nats_best"] == pytest.approx(
        summary["valid_loss_nats_best"], abs=1e-6
    )


@ENGINES
def test_where_the_time_went(config, train, data, tmp_path, monkeypatch, capsys):
    "Work that takes a known time is found in its part, and the parts are the whole."
    for name in ("lifecycle", "loop", "finetune"):
        module = __import__(f"simpsons_llm.train.{name}", fromlist=["x"])
        monkeypatch.setattr(module, "heldout_loss", lambda *given: time.sleep(0.5) or heldout_loss(*given))
    said, kept, loaded = lifecycle.text_samples, lifecycle.save_adapter, lifecycle.load_base
    monkeypatch.setattr(lifecycle, "text_samples", lambda *given: time.sleep(0.7) or said(*given))
    monkeypatch.setattr(lifecycle, "save_adapter", lambda *given: time.sleep(0.9) or kept(*given))
    monkeypatch.setattr(lifecycle, "load_base", lambda *given: time.sleep(1.1) or loaded(*given))
    begun, settings = time.perf_counter(), {**TINY, "sample_steps": 2}
    summary = train(config(data=data, run=str(tmp_path / "x"), max_steps=4, eval_steps=2, score_test=True, **settings))
    whole, wall = time.perf_counter() - begun, summary["wall_s"]
    assert set(wall) == {"load", "train", "score", "speak", "save", "other"}
    assert sum(wall.values()) == pytest.approx(whole, abs=0.2)
    least = {"score": 5 * 0.5, "speak": 3 * 0.7, "save": 0.9, "load": 1.1}
    assert all(wall[part] >= s for part, s in least.items()) and wall["other"] < 1
    steps = read_jsonl(tmp_path / "x" / "metrics.jsonl")
    assert wall["train"] >= max(r.get("step_s", 0) for r in steps)
    # what sleeps elsewhere is not in training
    assert wall["train"] < whole - sum(least.values())
    assert read_json(tmp_path / "x" / "summary.json")["wall_s"] == wall
    assert f"score {wall['score'] / sum(wall.values()):.0%}" in summary_text(summary)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    "given", [{}, {"epochs": 2.5, "global_batch_size": 6, "micro_batch_size": 3}, {"max_steps": 3}]
)
def test_the_largest_micro_batch_is_that_of_the_run(isolated, given, data):
    "Laid out by the sampler itself, for two ranks: none is larger, and one is as large."
    config = FinetuneConfig(data=data, **{**TINY, **given})
    parts, report, _ = run_data(config)
    maker = TextMaker(load_base("tiny", find_device("cpu"))[1])
    samples = make_samples(config, maker, parts, report, keep=False)[0]["train"]
    s, lengths = config.resolved(), [len(x.input_ids) for x in samples]
    length = lifecycle.run_length(config, len(samples))
    found, done = [], 0
    while done < length.steps:
        ranks = [
            RankBatches(lengths, s["global_batch_size"], s["micro_batch_size"], 0, 1, config.seed, grouped=not isolated)
        ]
        for r in ranks:
            r.set_epoch(done // length.epoch_steps)
        for step in ranks[0].steps():
            if done < length.steps:
                found += step
            done += 1
    sizes = [sum(lengths[i] for i in m) if isolated else len(m) * max(lengths[i] for i in m) for m in found]
    recipe = step_recipe(config, samples, isolated)
    assert recipe.shape[0] * recipe.shape[1] == max(sizes)
    if isolated:
        assert recipe.learned == max(sum(samples[i].weighted for i in m) for m in found)


CARD = replace(find_device("cpu", "float32"), type="cuda", name="a card", dtype="bfloat16", memory_gib=80.0)


@pytest.fixture
def card(monkeypatch):
    "A device that is not here: it packs well."
    monkeypatch.setattr(lifecycle, "packs_well", lambda device: True)
    return CARD


SEED = {"base_model": "tiny", "recipe": "seed", "template": "script"}


def planned(data, device, ranks=None, **given):
    return plan(FinetuneConfig(data=data, run="runs/never", **{**SEED, **given}), ranks or Ranks(), device, keep=False)


@pytest.mark.parametrize(
    "given",
    [{}, {"packing": "none"}, {"packing": "rows", "row_len": 512}, {"mode": "full"}, {"gradient_checkpointing": True}],
    ids=str,
)
def test_an_accelerator_takes_as_many_at_once_as_it_has_room_for(given, data, card, capsys):
    "Of sizes that divide the batch the largest within three fifths of the memory; the next one would be beyond."
    whole = planned(data, card, **given)
    assert whole.config.micro_batch_size == 128 == whole.config.resolved()["global_batch_size"]
    assert f"micro-batch 128: {whole.told.peak_mem_gib:.1f} of 80.0 GiB predicted" in capsys.readouterr().out
    tight = replace(card, memory_gib=whole.told.peak_mem_gib)
    job, more = planned(data, tight, **given), {}
    n = job.config.micro_batch_size
    assert n in (1, 2, 4, 8, 16, 32, 64) and job.told.peak_mem_gib <= 0.6 * tight.memory_gib
    more = planned(data, replace(tight, memory_gib=9e9), micro_batch_size=2 * n, **given)
    assert more.told.peak_mem_gib > 0.6 * tight.memory_gib
    # the step is the same
    assert job.length == whole.length and job.config.resolved()["global_batch_size"] == 128
    assert job.config.to_dict()["micro_batch_size"] == n


@pytest.mark.parametrize("given, device", [({"micro_batch_size": 8}, CARD), ({}, find_device("cpu", "float32"))])
def test_what_was_asked_for_stays_and_a_cpu_keeps_the_recipe(given, device, data, card, capsys):
    job = planned(data, device, **given)
    assert job.config.resolved()["micro_batch_size"] == given.get("micro_batch_size", 16)
    assert job.config.micro_batch_size == given.get("micro_batch_size")
    assert "micro-batch" not in capsys.readouterr().out
    assert (job.limit is None) == (device.type == "cpu")


def test_ranks_agree_on_what_the_smallest_has_room_for(data, card, monkeypatch):
    "Each counts for its own device; a share of the batch is divided."
    ranks = Ranks(0, 0, 4, 4, "played")
    assert planned(data, card, ranks).config.micro_batch_size == 32
    monkeypatch.setattr(lifecycle, "gather", lambda n: [n, 8, 16, n])
    assert planned(data, card, ranks).config.micro_batch_size == 8
    # of a size that four cannot share, nothing is chosen; the usual sentence refuses it
    with pytest.raises(ValueError, match="is not a multiple of"):
        planned(data, card, ranks, global_batch_size=6)


def test_sharded_models_and_devices_that_do_not_tell_their_memory(data, card):
    job = planned(data, card, Ranks(0, 0, 2, 2, "played"), mode="full", sharding="fsdp")
    assert job.sharded and job.config.micro_batch_size == 64
    assert planned(data, replace(card, memory_gib=float("nan"))).config.micro_batch_size is None


def test_a_run_goes_on_with_another_size_at_once(data, tmp_path, monkeypatch):
    "Chosen for a device, written into config.yaml, and no reason to refuse to resume."
    import yaml

    chosen, settings = [2, 1], {"data": data, "run": str(tmp_path / "x"), "max_steps": 4, "eval_steps": 2, **TINY}

    def choose(config, *more, **given):
        return plan(replace(config, micro_batch_size=chosen.pop(0)), *more, **given)

    monkeypatch.setattr(lifecycle, "plan", choose)
    finetune(FinetuneConfig(**settings))
    assert yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())["micro_batch_size"] == 2
    (tmp_path / "x" / "summary.json").write_text('{"status": "running"}')
    assert finetune(FinetuneConfig(**settings, resume=True))["settings"]["micro_batch_size"] == 1


def test_a_recording_is_told_where_there_will_be_one(data, card):
    "Of one rank, samples end to end, unless it is switched off; how many are scored at once minds it, too."
    settings = {"mode": "full", "micro_batch_size": 16}
    plain, told = (planned(data, card, compile=how, **settings).told for how in ("none", "auto"))
    # of several micro-batches, one set of gradients is counted already; rows of 64 tokens more or less
    assert told.peak_mem_gib == pytest.approx(plain.peak_mem_gib + plain.gradients_gib, rel=0.05)
    assert told.peak_mem_gib >= plain.peak_mem_gib + plain.gradients_gib
    # what two ranks exchange comes on top
    two = [
        planned(data, card, Ranks(0, 0, 2, 2, "played"), sharding="none", compile=c, **settings)
        for c in ("none", "auto")
    ]
    assert two[1].told.peak_mem_gib > two[0].told.peak_mem_gib > plain.peak_mem_gib + 0.9 * plain.gradients_gib
    filled = planned(data, card, packing="none", compile="none", **settings).told
    assert planned(data, card, packing="none", **settings).told == filled
    # a card that is full with the recording leaves one sample at once
    tight = replace(card, memory_gib=told.peak_mem_gib / 0.95 + 1e-6)
    small = planned(data, tight, **settings).limit
    assert small.tokens < planned(data, card, **settings).limit.tokens


def test_rows_are_filled_up_where_steps_are_recorded(data, card):
    "In the shape that the fast loop gives them; and whether layers are compiled is known from the settings."
    config = FinetuneConfig(data=data, micro_batch_size=2, **SEED)
    parts, report, _ = run_data(config)
    maker = TextMaker(load_base("tiny", find_device("cpu"))[1])
    samples = make_samples(config, maker, parts, report, keep=False)[0]["train"]

    def recipe(device=card, isolated=True, **given):
        return step_recipe(replace(config, **given), samples, isolated, device=device)

    plain = recipe(compile="none")
    assert plain == recipe(None) and plain == recipe(find_device("cpu")) and plain.compile == "none"
    for how, counted in (("auto", "graph"), ("graph", "graph"), ("layers", "layers")):
        row = recipe(compile=how)
        assert row.compile == counted and row.tokens % 64 == row.learned % 64 == 0 and plain.tokens % 64
        assert 0 < row.tokens - plain.tokens < 64 and 0 <= row.learned - plain.learned < 64
        assert row.seq_lens[:-1] == plain.seq_lens
    assert recipe(compile="layers", isolated=False).compile == "none"
    assert recipe(compile="graph", gradient_checkpointing=True).compile == "none"
    assert recipe(compile="layers", gradient_checkpointing=True).compile == "layers"


def test_a_card_that_does_not_pack_well_compiles_nothing(data):
    "There the plain loop does the steps, whatever was asked for, and that is what must fit."
    slow = replace(CARD, type="xpu")
    job = planned(data, slow, packing="flat", compile="layers", micro_batch_size=16)
    assert job.told == planned(data, slow, packing="flat", compile="none", micro_batch_size=16).told


def test_compiled_layers_make_room_for_more(data, card):
    auto, layers = (planned(data, card, compile=how, micro_batch_size=128).told for how in ("auto", "layers"))
    assert layers.peak_mem_gib < 0.95 * auto.peak_mem_gib  # most of it are logits
    tight = replace(card, memory_gib=(auto.peak_mem_gib + layers.peak_mem_gib) / 2 / 0.6)
    sizes = [planned(data, tight, compile=how).config.micro_batch_size for how in ("auto", "layers")]
    assert sizes == [64, 128]


def test_an_estimate_tells_both_where_they_differ(data, card, monkeypatch):
    monkeypatch.setattr(lifecycle, "find_device", lambda *a: card)
    monkeypatch.setattr(
        lifecycle, "with_time", lambda told, *a: replace(told, step_s=1.0, tokens_per_s=9.0, tflop_per_s=1)
    )

    def step(**given):
        config = FinetuneConfig(data=data, run="runs/never", micro_batch_size=128, **{**SEED, **given})
        return lifecycle.costs(config)["the largest step:"]

    assert "peak memory, compile=layers" not in step()  # they hardly differ
    monkeypatch.setattr(lifecycle, "TELL_BOTH", 0.95)
    both, layers = step(), step(compile="layers")
    assert both["peak memory, compile=layers"] == layers["peak memory"] != both["peak memory"]
    assert "peak memory, compile=layers" not in layers and "peak memory, compile=layers" not in step(compile="none")
