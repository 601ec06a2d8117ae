"""The fast loop beside Trainer on an accelerator, run by hand: `python tests/gpu_speed.py OUT [small large resume]`.

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
    "One run, and what its metrics say; a step's time is from the end of one to the end of the next, data and all."
    import torch

    from simpsons_llm.machine.job import read_jsonl
    from simpsons_llm.train.finetune import FinetuneConfig, finetune
    from simpsons_llm.train.history import Recorder

    run = Path("/tmp/gpu_speed") / name.replace(" ", "_")
    shutil.rmtree(run, ignore_errors=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    torch.accelerator.empty_cache()
    ends, learned = [], Recorder.learned

    def clocked(self, step, *args):
        learned(self, step, *args)
        ends.append((time.perf_counter(), torch._dynamo.utils.counters["stats"]["unique_graphs"]))

    Recorder.learned = clocked
    begun = time.perf_counter()
    settings = {"run": str(run), "base_model": base, "max_steps": steps, "eval_steps": steps, "sample_steps": 0}
    try:
        summary = finetune(FinetuneConfig(**settings | given))
        Recorder.learned = learned
    except Exception as e:
        Recorder.learned = learned
        row = {"name": name, "failed": f"{type(e).__name__}: {str(e)[:500]}"}
        print(json.dumps(row), file=out, flush=True)
        print(row, flush=True)
        return
    wall = time.perf_counter() - begun
    rows = [r for r in read_jsonl(run / "metrics.jsonl") if "train_loss_nats" in r]
    late = rows[len(rows) // 2 :]
    clock = ends[len(rows) // 2 :]
    times = [b[0] - a[0] for a, b in zip(clock, clock[1:])]
    tokens = late[-1]["real_tokens"] - late[0]["real_tokens"]
    counted = torch._dynamo.utils.counters
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
        "graph breaks": sum(counted["graph_break"].values()),
        "compiled after the second step": ends[-1][1] - ends[1][1],
        "losses": [r["train_loss_nats"] for r in (*rows[:6], rows[-1])],
        "norms": [round(r["grad_norm"], 4) for r in rows[:3]],
        "device": summary["device"],
        "torch": torch.__version__,
    }
    print(json.dumps(row), file=out, flush=True)
    print({k: v for k, v in row.items() if k not in ("device", "torch")}, flush=True)


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


def main():
    folder, which = Path(sys.argv[1]), sys.argv[2:] or ["small", "large"]
    with open(folder / "gpu_speed.jsonl", "a") as out:
        if "small" in which:
            base = make_base(SMOL, Path("/tmp/gpu_speed/smol"))
            one(out, "small 2 trainer", base, 24, compile="none")
            for how in ("graph", "layers"):
                one(out, f"small 2 {how}", base, 82, compile=how)
            one(out, "small 2 seed 7", base, 12, compile="graph", seed=7)
            one(out, "small 2 half", base, 24, compile="graph", eval_steps=12)
            many = {"global_batch_size": 64, "micro_batch_size": 64}
            one(out, "small 64 trainer", base, 10, compile="none", **many)
            one(out, "small 64 layers", base, 20, compile="layers", **many)
            one(out, "small 64 in four", base, 10, compile="graph", global_batch_size=64, micro_batch_size=16)
        if "resume" in which:
            resumed(out, make_base(SMOL, Path("/tmp/gpu_speed/smol")))
        if "table" in which:  # a real table, of which a step of 64 scenes is always full
            base, data = make_base(SMOL, Path("/tmp/gpu_speed/smol")), os.environ["TABLE"]
            for n, how, steps in (
                (2, "none", 20),
                (2, "auto", 60),
                (2, "layers", 60),
                (64, "none", 8),
                (64, "layers", 16),
            ):
                sizes = {"global_batch_size": n, "micro_batch_size": n}
                one(out, f"table {n} {how}", base, steps, data=data, compile=how, epochs=9.0, **sizes)
        if "large" in which:
            base = make_base(W3B, Path("/tmp/gpu_speed/w3b"))
            many = {"global_batch_size": 32, "micro_batch_size": 32}
            qk = {"r": 8, "lora_alpha": 16, "target_modules": "q_proj,k_proj"}
            one(out, "large qk trainer", base, 8, compile="none", **many, **qk)
            one(out, "large qk layers", base, 16, compile="layers", **many, **qk)
            one(out, "large book layers", base, 16, compile="layers", **many)


if __name__ == "__main__":
    main()
