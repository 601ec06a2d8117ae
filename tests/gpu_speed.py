"""The fast loop beside Trainer on an accelerator, by hand: `python tests/gpu_speed.py OUT [small large where resume]`.

Also one run by its name, such as "large full layers"; TABLE is a folder that prepare wrote, TOKENIZER one with the
tokenizer of SmolLM2. `python tests/gpu_speed.py nbs/_results predict table large` needs no accelerator: the memory
that is predicted for the runs of a record, beside what was measured.

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
    gc.collect()  # an engine's parts know each other: without this, the model before stays and counts
    torch.accelerator.empty_cache()
    left_gib = torch.accelerator.memory_allocated() / 2**30
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
    scored = {r["step"] for r in read_jsonl(run / "metrics.jsonl") if "valid_loss_nats" in r}  # and a checkpoint saved
    late = [k for k in range(len(rows) // 2 + 1, len(rows)) if rows[k - 1]["step"] not in scored]
    times = [ends[k][0] - ends[k - 1][0] for k in late]
    tokens = sum(rows[k]["real_tokens"] - rows[k - 1]["real_tokens"] for k in late)
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
    from unittest.mock import patch

    from transformers import LlamaConfig

    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.machine.job import read_jsonl
    from simpsons_llm.model.base import load_tokenizer
    from simpsons_llm.train.cost import on_rank
    from simpsons_llm.train.finetune import FinetuneConfig
    from simpsons_llm.train.lifecycle import make_samples, run_data, step_recipe

    card = replace(find_device("cpu"), type="cuda", dtype="bfloat16", memory_gib=139.8)
    config = FinetuneConfig(base_model="tiny", **given)  # its name counts for nothing here
    parts, report, _ = run_data(config)
    maker = TextMaker(load_tokenizer("smollm2-135m"), config.resolved()["template"])
    samples = make_samples(config, maker, parts, report, keep=False)[0]
    with patch("simpsons_llm.train.lifecycle.packs_well", lambda device: True):
        recipe = step_recipe(config, samples["train"], True, device=card)
    told = on_rank(LlamaConfig(**shape), recipe, card)
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
    "(name, shape, steps, settings) of each run of a group; TABLE is a folder that prepare wrote."
    table = {"data": os.environ.get("TABLE", "springfield"), "epochs": 99.0}
    many = {n: {"global_batch_size": n, "micro_batch_size": n} for n in (2, 32, 64, 128)}
    seed = {**table, **many[128], "recipe": "seed", "view": "rows"}
    if which == "small":  # SmolLM2's shape, scenes of a real table
        for n, how, steps in (
            (2, "none", 20),
            (2, "graph", 60),
            (2, "layers", 60),
            (64, "none", 8),
            (64, "layers", 16),
        ):
            yield f"small {n} {how}", SMOL, steps, {"compile": how, **many[n], **table}
        yield "small 64 in four", SMOL, 10, {"compile": "graph", **many[64], "micro_batch_size": 16, **table}
    if which == "large":  # the predecessor's shape: q and k, 128 rows a step
        yield "large seed none", W3B, 6, {"compile": "none", **seed}
        yield "large seed layers", W3B, 10, {"compile": "layers", **seed}
        yield "large seed checkpointing", W3B, 8, {"compile": "layers", "gradient_checkpointing": True, **seed}
        yield "large book layers", W3B, 12, {"compile": "layers", **many[32], **table}
        yield "large full layers", W3B, 8, {"compile": "layers", "mode": "full", **seed, "micro_batch_size": 64}


KINDS = {
    "matrix products": ("nvjet", "gemm", "gemv", "splitk", "cutlass", "cublas"),
    "attention": ("flash", "fmha", "attn", "attention"),
    "optimizer": ("multi_tensor", "adam", "lpnorm"),
    "copies": ("memcpy", "memset", "copy_kernel"),
}


def kind_of(kernel):
    "What a kernel does, by its name; attention before products, since it is made of them."
    name = kernel.lower()
    for kind in ("attention", "optimizer", "matrix products", "copies"):
        if any(word in name for word in KINDS[kind]):
            return kind
    return "elementwise"


def where_time_goes(out, name, base, steps, **given):
    "One step, profiled: the milliseconds of its kernels by kind, how many there are, and how long the device waits."
    import torch
    from torch.profiler import ProfilerActivity, profile

    from simpsons_llm.train.finetune import FinetuneConfig, finetune
    from simpsons_llm.train.history import Meter

    torch._dynamo.reset()
    gc.collect()
    torch.accelerator.empty_cache()
    begins, ends, found = Meter.step_begins, Meter.step_ends, {"at": 0}

    def on_begin(self):
        begins(self)
        found["at"] += 1
        if found["at"] == steps - 1:
            found["profile"] = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            found["profile"].__enter__()
        found["since"] = time.perf_counter()

    def on_end(self, step):
        if found["at"] == steps - 2:  # the step before, without a profiler
            torch.accelerator.synchronize()
            found["step_ms"] = 1e3 * (time.perf_counter() - found["since"])
        if found["at"] == steps - 1:
            torch.accelerator.synchronize()  # by the device's clock; what follows, reading the loss, is not in the step
            found["profile"].__exit__(None, None, None)
        return ends(self, step)

    Meter.step_begins, Meter.step_ends = on_begin, on_end
    run = Path("/tmp/gpu_speed") / name.replace(" ", "_")
    shutil.rmtree(run, ignore_errors=True)
    try:
        finetune(
            FinetuneConfig(run=str(run), base_model=base, max_steps=steps, eval_steps=steps, sample_steps=0, **given)
        )
    except Exception as e:
        print({"name": name, "failed": str(e)[:300]}, flush=True)
        return
    finally:
        Meter.step_begins, Meter.step_ends = begins, ends
    events = found["profile"].key_averages()
    kinds: dict = {}
    for e in events:
        if e.device_type.name == "CUDA" and e.self_device_time_total:
            kind = kinds.setdefault(kind_of(e.key), [0.0, 0])
            kind[0] += e.self_device_time_total / 1e3
            kind[1] += e.count
    waits = {e.key: e.count for e in events if e.key in ("cudaStreamSynchronize", "cudaEventSynchronize")}
    row = {
        "name": f"where {name}",
        "step_ms": round(found["step_ms"], 2),
        "kernel_ms": {k: round(v[0], 3) for k, v in kinds.items()},
        "kernels": {k: v[1] for k, v in kinds.items()},
        "host waits in the step": sum(waits.values()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
    }
    print(json.dumps(row), file=out, flush=True)
    print(row, flush=True)


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
        wanted = [r for group in ("small", "large") for r in runs(group) if group in which or r[0] in which]
        for name, shape, steps, given in wanted:
            one(out, name, make_base(shape, Path("/tmp/gpu_speed") / bases[id(shape)]), steps, **given)
        if "where" in which:
            table = {"data": os.environ.get("TABLE", "springfield"), "epochs": 99.0}
            for how in ("none", "graph", "layers"):
                base = make_base(SMOL, Path("/tmp/gpu_speed/smol"))
                where_time_goes(out, f"small 2 {how}", base, 9, compile=how, **table)
            rows = {"recipe": "seed", "view": "rows", "global_batch_size": 128, "micro_batch_size": 128, **table}
            for how in ("none", "layers"):
                base = make_base(W3B, Path("/tmp/gpu_speed/w3b"))
                where_time_goes(out, f"large seed {how}", base, 6, compile=how, **rows)


if __name__ == "__main__":
    main()
