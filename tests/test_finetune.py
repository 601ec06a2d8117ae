"Fine-tuning: equal however it is batched or interrupted, and honest about what it learned."

import json
import shutil

import pytest
from conftest import TINY, same

from simpsons_llm.machine.job import read_jsonl
from simpsons_llm.model.loss import heldout_loss
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.lifecycle import make_samples, run_data


def test_summary_holds_what_is_promised(run):
    folder, summary = run
    on_disk = json.loads((folder / "summary.json").read_text())
    names = """status base_model recipe device dtype world_size train_lines valid_lines learned_tokens real_tokens
               optimizer_steps valid_loss_nats_base valid_loss_nats_best best_step tokens_per_s peak_mem_gib train_s
               adapter""".split()
    assert set(names) <= set(on_disk) and on_disk == json.loads(json.dumps(summary))
    assert on_disk["status"] == "done" and on_disk["optimizer_steps"] == 12 and on_disk["best_step"] in (4, 8, 12)
    assert (folder / on_disk["adapter"] / "adapter_model.safetensors").is_file() and (
        folder / "loss.png"
    ).stat().st_size > 1000
    assert (
        on_disk["valid_loss_nats_best"] < on_disk["valid_loss_nats_base"]
        and 0 < on_disk["learned_tokens"] < on_disk["real_tokens"]
    )


def test_the_saved_adapter_gives_the_measured_loss(run, data):
    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.adapter import load_adapter

    folder, summary = run
    model, tokenizer, notes = load_adapter(folder / "adapter", find_device("cpu"))
    config = FinetuneConfig(data=data, run=str(folder), **TINY)
    parts, report, _ = run_data(config)
    valid = make_samples(config, TextMaker(tokenizer, notes["template"]), parts, report)[0]["valid"]
    assert heldout_loss(model, valid, tokenizer.pad_token_id) == pytest.approx(
        summary["valid_loss_nats_best"], abs=1e-5
    )
    best = min(
        (r["valid_loss_nats"], r["step"]) for r in read_jsonl(folder / "metrics.jsonl") if "valid_loss_nats" in r
    )
    assert best[1] == summary["best_step"] and best[0] == pytest.approx(summary["valid_loss_nats_best"], abs=1e-5)


def test_micro_batches_give_the_same_as_one_batch(data, tmp_path):
    "8 x 1 = 4 x 2 = 2 x 4 = 1 x 8, with samples of different lengths and weights."
    for micro in (8, 4, 2, 1):
        finetune(
            FinetuneConfig(
                data=data,
                run=str(tmp_path / str(micro)),
                global_batch_size=8,
                micro_batch_size=micro,
                max_steps=4,
                eval_steps=4,
                **TINY,
            )
        )
        if micro != 8:
            same(tmp_path / "8", tmp_path / str(micro), 1e-5)


def test_packed_batches_give_the_same_as_padded_ones(data, tmp_path, monkeypatch):
    "The same order of samples, end to end and filled up: the same losses and adapter."
    from simpsons_llm.train.finetune import make_trainer

    monkeypatch.setattr("simpsons_llm.train.finetune.make_trainer", lambda *args: make_trainer(*args[:8], False))
    for packing in ("none", "flat"):
        finetune(
            FinetuneConfig(
                data=data,
                run=str(tmp_path / packing),
                packing=packing,
                global_batch_size=4,
                micro_batch_size=2,
                max_steps=4,
                eval_steps=4,
                **TINY,
            )
        )
    same(tmp_path / "none", tmp_path / "flat", 1e-5)


def test_rows_of_a_fixed_length_learn_every_sample_once(data, tmp_path, capsys):
    summary = finetune(
        FinetuneConfig(
            data=data,
            run=str(tmp_path / "rows"),
            packing="rows",
            row_len=2400,
            epochs=1,
            eval_steps=100,
            global_batch_size=2,
            micro_batch_size=1,
            **TINY,
        )
    )
    flat = finetune(
        FinetuneConfig(
            data=data,
            run=str(tmp_path / "flat"),
            packing="flat",
            epochs=1,
            eval_steps=100,
            global_batch_size=4,
            micro_batch_size=4,
            **TINY,
        )
    )
    assert (
        summary["learned_tokens"] == flat["learned_tokens"]
        and summary["real_tokens"] == flat["real_tokens"]
        and "% full" in capsys.readouterr().out
    )
    assert "learned" in (tmp_path / "rows" / "audit.html").read_text()


def test_packing_is_refused_where_the_model_cannot(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "simpsons_llm.train.lifecycle.can_isolate", lambda model: "its layers look back over a window only"
    )
    with pytest.raises(ValueError, match="packing=flat was given, but this model cannot be packed: its layers"):
        finetune(FinetuneConfig(data=data, run=str(tmp_path / "x"), packing="flat", **TINY))
    assert finetune(FinetuneConfig(data=data, run=str(tmp_path / "y"), max_steps=1, **TINY))["optimizer_steps"] == 1


@pytest.mark.parametrize("killed_after", [4, 8])
def test_a_resumed_run_equals_an_unbroken_one(data, tmp_path, killed_after):
    "Killed between two checkpoints, or after the last one; the records hold each step once, and the counters agree."
    whole = FinetuneConfig(data=data, run=str(tmp_path / "whole"), max_steps=8, eval_steps=2, lora_dropout=0.1, **TINY)
    summary, broken = finetune(whole), tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    for step in range(killed_after + 1, 9):
        shutil.rmtree(broken / "checkpoints" / f"checkpoint-{step}", ignore_errors=True)
    shutil.rmtree(broken / "adapter")
    (broken / "summary.json").write_text('{"status": "running"}')
    with open(broken / "metrics.jsonl", "a") as f:
        f.write('{"step": 9, "half a li')
    again = finetune(FinetuneConfig(**{**whole.to_dict(), "run": str(broken), "resume": True}))
    same(tmp_path / "whole", broken, 1e-6)
    for name in ("optimizer_steps", "real_tokens", "learned_tokens", "best_step", "valid_loss_nats_base"):
        assert again[name] == summary[name], name
    assert (
        again["valid_loss_nats_best"] == pytest.approx(summary["valid_loss_nats_best"], abs=1e-6)
        and again["resumed_from_step"] == killed_after
    )
    assert [r["step"] for r in read_jsonl(broken / "metrics.jsonl")] == [
        r["step"] for r in read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    ]


def test_resuming_a_finished_run_changes_nothing(run):
    folder, summary = run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["found"]
    assert finetune(FinetuneConfig(**{**config, "resume": True}))["optimizer_steps"] == summary["optimizer_steps"]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "wrong",
    [
        dict(data="nowhere"),
        dict(target_modules="no_proj"),
        dict(max_seq_len=16),
        dict(base_model="no-such"),
        dict(global_batch_size=3),
    ],
)
def test_a_slip_leaves_an_earlier_run_as_it_is(run, data, wrong):
    folder, _ = run
    names = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    with pytest.raises((ValueError, FileNotFoundError)):
        finetune(FinetuneConfig(**{**TINY, "data": data, "run": str(folder), "micro_batch_size": 2, **wrong}))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == names


def test_resuming_with_other_settings_is_refused(run, data):
    folder, _ = run
    with pytest.raises(ValueError, match="learning_rate"):
        finetune(
            FinetuneConfig(
                data=data, run=str(folder), max_steps=12, eval_steps=4, resume=True, **{**TINY, "learning_rate": 1e-4}
            )
        )
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"  # nothing lost


def test_resuming_with_other_data_is_refused(run, tmp_path):
    import yaml

    from simpsons_llm.data.prepare import PrepareConfig, prepare

    folder, _ = run
    prepare(PrepareConfig(out=str(tmp_path / "other"), split_seed=7))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["found"]
    with pytest.raises(ValueError, match="data_sha256"):
        finetune(FinetuneConfig(**{**config, "data": str(tmp_path / "other"), "resume": True}))


def test_resuming_nothing_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="no checkpoint"):
        finetune(FinetuneConfig(data=data, run=str(tmp_path / "x"), resume=True, **TINY))


def test_a_second_run_sets_the_first_aside(data, tmp_path):
    config = FinetuneConfig(data=data, run=str(tmp_path / "x"), max_steps=1, eval_steps=1, **TINY)
    first = finetune(config)
    finetune(config)
    assert (
        json.loads((tmp_path / "x" / "earlier" / "1" / "summary.json").read_text())["valid_loss_nats_best"]
        == first["valid_loss_nats_best"]
    )


def test_the_seed_recipe(data, tmp_path):
    "Rows, the Alpaca form, 8/16/q,k: as the seed, on the tiny model."
    config = FinetuneConfig(
        data=data,
        run=str(tmp_path / "x"),
        base_model="tiny",
        recipe="seed",
        max_seq_len=1200,
        global_batch_size=8,
        micro_batch_size=4,
        max_steps=2,
        eval_steps=1,
    )
    summary = finetune(config)
    saved = json.loads((tmp_path / "x" / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"], sorted(saved["target_modules"])) == (
        8,
        16,
        0.05,
        ["k_proj", "q_proj"],
    )
    assert (
        summary["settings"]["template"] == "alpaca"
        and summary["settings"]["view"] == "rows"
        and summary["trainable_parameters"] == 3584
    )


def test_a_run_that_learns_nothing_does_not_look_healthy(data, tmp_path):
    still = finetune(FinetuneConfig(data=data, run=str(tmp_path / "y"), max_steps=3, eval_steps=3, **TINY))
    # even three steps move something at an ordinary rate
    assert still["valid_loss_nats_best"] != still["valid_loss_nats_base"]
    summary = finetune(
        FinetuneConfig(data=data, run=str(tmp_path / "x"), max_steps=3, eval_steps=3, **{**TINY, "learning_rate": 1e-9})
    )
    assert summary["status"] == "not better than the base"
    from simpsons_llm.train.lifecycle import summary_text

    assert "WARNING" in summary_text(summary)


def test_a_loss_that_is_not_a_number_stops_the_run(data, tmp_path, monkeypatch):
    import simpsons_llm.train.loop as module

    real = module.token_losses
    monkeypatch.setattr(
        module,
        "token_losses",
        lambda model, batch: tuple(
            x * float("nan") if model.training and i == 0 else x for i, x in enumerate(real(model, batch))
        ),
    )
    with pytest.raises(ValueError, match="train_loss_nats is nan at step 1"):
        finetune(FinetuneConfig(data=data, run=str(tmp_path / "x"), max_steps=3, **TINY))
    assert json.loads((tmp_path / "x" / "summary.json").read_text())["status"] == "failed"


def test_a_time_limit_keeps_what_was_learned(data, tmp_path):
    summary = finetune(
        FinetuneConfig(data=data, run=str(tmp_path / "x"), max_steps=400, eval_steps=200, max_minutes=0.02, **TINY)
    )
    assert (
        summary["stopped_early"]
        and 0 < summary["optimizer_steps"] < 400
        and summary["best_step"] == summary["optimizer_steps"]
    )


def test_speakers_that_are_learned_are_all_that_is_scored(tmp_path):
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    prepare(PrepareConfig(out=str(tmp_path / "homer"), speakers="Homer Simpson"))
    summary = finetune(
        FinetuneConfig(data=str(tmp_path / "homer"), run=str(tmp_path / "x"), max_steps=1, eval_steps=1, **TINY)
    )
    notes = json.loads((tmp_path / "x" / "adapter" / "simpsons_llm.json").read_text())
    assert list(notes["speakers"]) == ["Homer Simpson"] and summary["valid_lines"] < 100


VARIANTS = {
    "rsLoRA": dict(use_rslora=True),
    "DoRA": dict(use_dora=True),
    "PiSSA": dict(init_lora_weights="pissa"),
    "LoRA+": dict(lora_plus_ratio=16.0),
    "full": dict(mode="full"),
    "full, checkpointing": dict(mode="full", gradient_checkpointing=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_of_training_learns_and_gives_back_what_it_measured(name, data, tmp_path):
    "Trained, saved, loaded on a fresh base: the loss is the one that was measured; the estimate knew what is trained."
    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.adapter import load_tuned

    config = FinetuneConfig(data=data, run=str(tmp_path / "x"), max_steps=6, eval_steps=3, **VARIANTS[name], **TINY)
    summary = finetune(config)
    assert (
        summary["status"] == "done"
        and summary["mode"] == config.mode
        and summary["predicted"]["trainable"] == summary["trainable_parameters"]
    )
    kept = tmp_path / "x" / ("model" if config.mode == "full" else "adapter")
    assert (
        summary[kept.name] == kept.name
        and not (tmp_path / "x" / ("adapter" if config.mode == "full" else "model")).exists()
    )
    model, tokenizer, notes = load_tuned(kept, find_device("cpu"))
    parts, report, _ = run_data(config)
    valid = make_samples(config, TextMaker(tokenizer, notes["template"]), parts, report)[0]["valid"]
    assert heldout_loss(model, valid, tokenizer.pad_token_id) == pytest.approx(
        summary["valid_loss_nats_best"], abs=2e-5
    )


@pytest.mark.parametrize(
    "extra", [dict(mode="full"), dict(init_lora_weights="pissa"), dict(use_dora=True, lora_plus_ratio=4.0)], ids=str
)
def test_these_resume_as_an_unbroken_run(extra, data, tmp_path):
    "6 steps = 3 + a kill + 3, and a kill between the last step and the end."
    whole = FinetuneConfig(data=data, run=str(tmp_path / "whole"), max_steps=6, eval_steps=3, **extra, **TINY)
    summary = finetune(whole)
    for left in (3, 6):
        broken = tmp_path / f"broken{left}"
        shutil.copytree(tmp_path / "whole", broken)
        for p in (broken / "checkpoints").glob("checkpoint-*"):
            if int(p.name.rsplit("-", 1)[1]) > left:
                shutil.rmtree(p)
        (broken / "summary.json").write_text('{"status": "running"}')
        again = finetune(FinetuneConfig(**{**whole.to_dict(), "run": str(broken), "resume": True}))
        assert (
            again["valid_loss_nats_best"] == pytest.approx(summary["valid_loss_nats_best"], abs=1e-6)
            and again["resumed_from_step"] == left
        )
        assert sum("train_loss_nats" in r for r in read_jsonl(broken / "metrics.jsonl")) == 6
        same(tmp_path / "whole", broken, 1e-5)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(mode="half"), "lora or full"),
        (dict(mode="full", use_dora=True), "use_dora"),
        (dict(mode="full", quantization="nf4"), "quantization"),
        (dict(lora_plus_ratio=0.5), "lora_plus_ratio"),
        (dict(quantization="int8"), "none or nf4"),
        (dict(quantization="nf4", init_lora_weights="pissa"), "one of the two"),
        (dict(init_lora_weights="loftq"), "lora_alpha"),
    ],
    ids=str,
)
def test_ways_that_do_not_go_together_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(**wrong)


def test_full_fine_tuning_takes_a_tenth_of_the_rate():
    assert FinetuneConfig(mode="full").resolved()["learning_rate"] == pytest.approx(
        FinetuneConfig().resolved()["learning_rate"] / 10
    )
    assert FinetuneConfig(mode="full", learning_rate=1e-3).resolved()["learning_rate"] == 1e-3


def test_a_run_that_cannot_fit_is_refused_before_weights_are_loaded(data, tmp_path, monkeypatch):
    import simpsons_llm.train.lifecycle as F

    monkeypatch.setattr(F, "load_base", lambda *_: pytest.fail("weights were loaded"))
    # what would help is tested with the costs
    monkeypatch.setattr("simpsons_llm.train.cost.milder", lambda recipe: [])
    monkeypatch.setattr(F, "find_device", lambda *a: __import__("dataclasses").replace(find(*a), memory_gib=0.01))
    from simpsons_llm.machine.device import find_device as find

    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "summary.json").write_text('{"optimizer_steps": 1}')
    with pytest.raises(ValueError, match="needs at least"):
        finetune(FinetuneConfig(data=data, run=str(tmp_path / "x"), max_steps=1, **TINY))
    assert (tmp_path / "x" / "summary.json").read_text() == '{"optimizer_steps": 1}'  # nothing lost


def test_four_bits_learn_or_are_refused(data, tmp_path):
    "QLoRA on a small model of four-bit layers; where bitsandbytes is missing, one sentence."
    from importlib.util import find_spec

    from simpsons_llm.model.base import tiny_model

    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = FinetuneConfig(
        data=data,
        run=str(tmp_path / "x"),
        quantization="nf4",
        max_steps=6,
        eval_steps=3,
        **{**TINY, "base_model": str(tmp_path / "base")},
    )
    if not find_spec("bitsandbytes"):
        with pytest.raises(ValueError, match="bitsandbytes is not installed"):
            finetune(config)
        return
    summary = finetune(config)
    assert summary["status"] == "done" and (tmp_path / "x" / "adapter" / "adapter_model.safetensors").is_file()


def test_loftq_is_refused_where_it_cannot_run(data, tmp_path):
    "PEFT's LoftQ needs a GPU and two libraries."
    with pytest.raises(ValueError, match="loftq was given; it needs a GPU"):
        finetune(
            FinetuneConfig(
                data=data,
                run=str(tmp_path / "x"),
                init_lora_weights="loftq",
                max_steps=4,
                eval_steps=2,
                **{**TINY, "lora_alpha": TINY["r"]},
            )
        )
