"""The fast loop beside Trainer on an accelerator, run by hand: `python tests/gpu_speed.py OUT [small large resume]`.

With TABLE=FILE also `table`. `python tests/gpu_speed.py nbs/_results predict table large` needs no accelerator: the
memory that is predicted for the runs of a record, beside what was measured.

Writes OUT/gpu_speed.jsonl, which the chapter on speed shows: one JSON line a run, of `finetune` as people call it, on
models of random weights in the shapes of SmolLM2-135M (small) and open_llama_3b (large) and the book's script.
"""

import gc
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
W3B = {
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def make_base(shape, folder):
    "A model of random weights, with the tokenizer of SmolLM2."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.base import load_tokenizer

    if (folder / "config.json").is_file():
        return str(folder)
    torch.manual_seed(0)
    with find_device().torch:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    given = os.environ.get("TOKENIZER")  # a folder, where SmolLM2 itself cannot be had
    (AutoTokenizer.from_pretrained(given) if given else load_tokenizer("smollm2-135m")).save_pretrained(folder)
    return str(folder)


def one(out, name, base, steps, **given):
    "One run, and what its metrics say."
    import torch

    from simpsons_llm.machine.job import read_jsonl
    from simpsons_llm.train.finetune import FinetuneConfig, finetune

    run = Path("/tmp/gpu_speed") / name.replace(" ", "_")
    torch._dynamo.reset()
    gc.collect()  # an engine's parts know each other: without this, the model before stays and counts
    torch.accelerator.empty_cache()
    left_gib = torch.accelerator.memory_allocated() / 2**30
    begun = time.perf_counter()
    settings = {"run": str(run), "base_model": base, "max_steps": steps, "eval_steps": steps, "sample_steps": 0}
    try:
        summary = finetune(FinetuneConfig(**settings | given))
    except Exception as e:
        row = {"name": name, "failed": f"{type(e).__name__}: {str(e)[:500]}"}
        print(json.dumps(row), file=out, flush=True)
        print(row, flush=True)
        return
    wall = time.perf_counter() - begun
    rows = [r for r in read_jsonl(run / "metrics.jsonl") if "train_loss_nats" in r]
    late = rows[len(rows) // 2 :]
    times = [b["step_s"] - a["step_s"] for a, b in zip(late, late[1:])]
    tokens = late[-1]["real_tokens"] - late[0]["real_tokens"]
    row = {
        "name": name,
        "engine": summary["engine"],
        "compile": given.get("compile", "auto"),
        "steps": len(rows),
        "ms a step": round(statistics.median(times) * 1e3, 2),
        "tokens_per_s": round(tokens / sum(times)),
        "real tokens a step": round(tokens / len(times)),
        "first step_s": round(rows[0]["step_s"], 2),
        "wall_s": round(wall, 1),
        "peak_mem_gib": summary.get("peak_mem_gib"),
        "predicted_gib": summary["predicted"]["peak_mem_gib"],
        "left_gib": left_gib,  # in use before the run; 0 but for libraries
        "wall_s of": summary.get("wall_s"),
        "losses": [r["train_loss_nats"] for r in (*rows[:6], rows[-1])],
        "norms": [round(r["grad_norm"], 4) for r in rows[:3]],
        "device": summary["device"],
        "torch": torch.__version__,
    }
    print(json.dumps(row), file=out, flush=True)
    print({k: v for k, v in row.items() if k not in ("device", "torch")}, flush=True)


def predicted(record, name, shape, **given):
    "What a run would take, beside what a record says of it; the device does not have to be here."
    from dataclasses import replace

    from transformers import LlamaConfig

    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.machine.job import read_jsonl
    from simpsons_llm.model.base import load_tokenizer
    from simpsons_llm.train.cost import on_rank
    from simpsons_llm.train.finetune import FinetuneConfig
    from simpsons_llm.train.lifecycle import make_samples, records_steps, run_data, step_recipe

    card = replace(find_device("cpu"), type="cuda", dtype="bfloat16", memory_gib=139.8)
    config = FinetuneConfig(base_model="tiny", **given)  # its name counts for nothing here
    parts, report, _ = run_data(config)
    samples = make_samples(config, TextMaker(load_tokenizer("smollm2-135m"), "script"), parts, report, keep=False)[0]
    recipe = step_recipe(config, samples["train"], True)
    told = on_rank(LlamaConfig(**shape), recipe, card, recorded=records_steps(config, True, card))
    row = next((r for r in read_jsonl(record) if r["name"] == name), None)
    if not row:
        return
    print(
        f"{name:18} {recipe.tokens:6,} tokens, {recipe.learned:6,} learned: {told.peak_mem_gib:7.3f} GiB predicted, "
        f"{row['peak_mem_gib']:7.3f} measured (there before: {row.get('left_gib', float('nan')):.3f}); "
        f"ratio {told.peak_mem_gib / row['peak_mem_gib']:.3f}"
    )


def resumed(out, base):
    "A run with dropout that goes on from its middle, beside the same in one piece: the same numbers."
    from simpsons_llm.machine.job import read_jsonl
    from simpsons_llm.train.finetune import FinetuneConfig, finetune

    whole, half, again = (Path("/tmp/gpu_speed") / n for n in ("whole", "half", "again"))
    settings = {"base_model": base, "max_steps": 24, "eval_steps": 12, "sample_steps": 0, "lora_dropout": 0.05}
    for how, dropout in (("graph", 0.05), ("graph", 0.0), ("layers", 0.0)):
        settings["lora_dropout"] = dropout
        for folder in (whole, half, again):
            shutil.rmtree(folder, ignore_errors=True)
        finetune(FinetuneConfig(run=str(whole), compile=how, **settings))
        finetune(FinetuneConfig(run=str(again), compile=how, **settings))
        shutil.copytree(whole, half)
        shutil.rmtree(half / "checkpoints" / "checkpoint-24")
        shutil.rmtree(half / "adapter")
        (half / "summary.json").write_text(json.dumps({"status": "running"}))
        finetune(FinetuneConfig(run=str(half), compile=how, resume=True, **settings))
        found = [
            [r["train_loss_nats"] for r in read_jsonl(f / "metrics.jsonl") if "train_loss_nats" in r]
            for f in (whole, half, again)
        ]
        apart = [max(abs(a - b) for a, b in zip(found[0], other)) for other in found[1:]]
        row = {"name": f"resumed, {how}, dropout {dropout}", "apart": apart[0], "apart in a second whole run": apart[1]}
        print(json.dumps(row), file=out, flush=True)
        print(row, flush=True)


def runs(which):
    "(name, shape, steps, settings) of each run of a group."
    many = {n: {"global_batch_size": n, "micro_batch_size": n} for n in (2, 32, 64)}
    if which == "small":
        yield "small 2 trainer", SMOL, 24, {"compile": "none"}
        for how in ("graph", "layers"):
            yield f"small 2 {how}", SMOL, 82, {"compile": how}
        yield "small 2 seed 7", SMOL, 12, {"compile": "graph", "seed": 7}
        yield "small 2 half", SMOL, 24, {"compile": "graph", "eval_steps": 12}
        yield "small 64 trainer", SMOL, 10, {"compile": "none", **many[64]}
        yield "small 64 layers", SMOL, 20, {"compile": "layers", **many[64]}
        yield "small 64 in four", SMOL, 10, {"compile": "graph", "global_batch_size": 64, "micro_batch_size": 16}
    if which == "table":  # a real table, of which a step of 64 scenes is always full
        of = {"data": os.environ["TABLE"], "epochs": 9.0}
        for n, how, steps in ((2, "none", 20), (2, "auto", 60), (2, "layers", 60), (64, "none", 8), (64, "layers", 16)):
            yield f"table {n} {how}", SMOL, steps, {"compile": how, **many[n], **of}
    if which == "large":
        qk = {"r": 8, "lora_alpha": 16, "target_modules": "q_proj,k_proj"}
        yield "large qk trainer", W3B, 8, {"compile": "none", **many[32], **qk}
        yield "large qk layers", W3B, 16, {"compile": "layers", **many[32], **qk}
        yield "large book layers", W3B, 16, {"compile": "layers", **many[32]}


def main():
    folder, which = Path(sys.argv[1]), sys.argv[2:] or ["small", "large"]
    if which[0] == "predict":
        for name, shape, steps, given in (run for group in which[1:] for run in runs(group)):
            predicted(folder / "gpu_speed.jsonl", name, shape, max_steps=steps, **given)
        return
    bases = {id(SMOL): "smol", id(W3B): "w3b"}
    with open(folder / "gpu_speed.jsonl", "a") as out:
        if "resume" in which:
            resumed(out, make_base(SMOL, Path("/tmp/gpu_speed/smol")))
        for name, shape, steps, given in (run for group in which for run in runs(group)):
            one(out, name, make_base(shape, Path("/tmp/gpu_speed") / bases[id(shape)]), steps, **given)


if __name__ == "__main__":
    main()
