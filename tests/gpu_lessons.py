"""Three mistakes of training, with SmolLM2-135M on the book's script, and the loop beside Trainer.

Run by hand on an accelerator:

    python tests/gpu_lessons.py OUT [PROCESSES [SEED ...]]

Adds to OUT/gpu_lessons.jsonl, which the chapters on pitfalls and on the loop read. With several GPUs the processes are
spread over them. Everything is judged on the validation scenes; the test scenes are not read.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

SEED = dict(
    base_model="smollm2-135m", recipe="seed", dtype="float32", sample_steps=0, save_total_limit=1, eval_steps=1000
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def spread(number):
    "Which of the devices a job takes."
    import torch

    if not torch.accelerator.is_available():
        return 0
    torch.accelerator.set_device_index(number % torch.accelerator.device_count())
    return torch.accelerator.current_device_index()


def one(number, name, data, seed, rate, warmup, prompt):
    "A run with the seed's recipe: (held-out loss of the answers, and of the same answers asked for in other words)."
    from dataclasses import replace

    from simpsons_llm.machine.device import find_device, find_ranks
    from simpsons_llm.machine.job import open_folder
    from simpsons_llm.model.loss import heldout_loss
    from simpsons_llm.train.lifecycle import begin_run, plan
    from simpsons_llm.train.loop import Loop, LoopConfig
    from simpsons_llm.train.pitfalls import other_words, whole_prompt

    config = LoopConfig(data=data, run=f"/tmp/gpu_lessons/{number}", epochs=3, seed=seed, learning_rate=rate, **SEED)
    job = plan(config, find_ranks(), find_device("auto", "float32", spread(number)))
    if warmup == "all":
        job.length = replace(job.length, warmup_steps=job.length.steps)
    if prompt:
        job.items = [whole_prompt(s) for s in job.items]
    open_folder(config.run)
    summary = begin_run(job, Loop)
    valid, tokenizer = job.samples["valid"], job.maker.tokenizer
    asked = [other_words(s, tokenizer, "### Response:", "### Output:") for s in valid]
    row = {
        "kind": name,
        "seed": seed,
        "learning_rate": rate,
        "warmup": warmup,
        "whole_prompt": prompt,
        "other_words_nats": heldout_loss(job.engine.model, asked, tokenizer.pad_token_id, 16),
    }
    with job.engine.model.disable_adapter():
        row["other_words_nats_base"] = heldout_loss(job.engine.model, asked, tokenizer.pad_token_id, 16)
    return row | {
        k: summary[k]
        for k in ("valid_loss_nats_base", "valid_loss_nats_best", "optimizer_steps", "best_step", "device", "dtype")
    }


def beside_trainer(number, data, mode, dtype):
    "The same 20 steps by both engines: largest difference of the losses, and the speeds."
    from simpsons_llm.machine.job import read_jsonl
    from simpsons_llm.train.finetune import FinetuneConfig, finetune
    from simpsons_llm.train.loop import LoopConfig, loop

    told = {}
    # the first run of a process is slower
    if number == "lorafloat32":
        finetune(FinetuneConfig(data=data, run="/tmp/gpu_lessons/warm", base_model="smollm2-135m", max_steps=5))
    for name, config, train in (("trainer", FinetuneConfig, finetune), ("loop", LoopConfig, loop)):
        run = f"/tmp/gpu_lessons/{number}_{name}"
        summary = train(
            config(
                data=data,
                run=run,
                base_model="smollm2-135m",
                mode=mode,
                dtype=dtype,
                max_steps=20,
                global_batch_size=16,
                micro_batch_size=8,
                sample_steps=10,
            )
        )
        told[name] = (
            [r["train_loss_nats"] for r in read_jsonl(f"{run}/metrics.jsonl") if "train_loss_nats" in r],
            summary,
        )
    a, b = told["trainer"], told["loop"]
    assert len(a[0]) == len(b[0]) == 20
    return {
        "kind": "beside trainer",
        "mode": mode,
        "dtype": dtype,
        "device": b[1]["device"],
        "largest_difference": max(abs(x - y) for x, y in zip(a[0], b[0])),
        "valid": [a[1]["valid_loss_nats_best"], b[1]["valid_loss_nats_best"]],
        "tokens_per_s": [a[1]["tokens_per_s"], b[1]["tokens_per_s"]],
    }


def main(out, processes=4, *seeds):
    from simpsons_llm.data.prepare import PrepareConfig, prepare
    from simpsons_llm.model.base import load_tokenizer

    data, seeds = "/tmp/gpu_lessons/data", seeds or (42, 1, 2)
    prepare(PrepareConfig(out=data))
    load_tokenizer("smollm2-135m")

    def keep(row):
        print(row, flush=True)
        with open(Path(out, "gpu_lessons.jsonl"), "a", encoding="utf8") as f:
            f.write(json.dumps(row) + "\n")

    if 42 in seeds:
        for mode in ("lora", "full"):
            # alone on the device, since speeds are compared
            for dtype in ("float32", "bfloat16"):
                keep(beside_trainer(mode + dtype, data, mode, dtype))
    jobs = [("prompt", data, seed, 3e-4, "tenth", prompt) for seed in seeds for prompt in (False, True)]
    # that one stands among the prompts
    jobs += [
        ("warmup", data, seed, rate, warmup, False)
        for seed in seeds
        for rate in RATES
        for warmup in ("tenth", "all")
        if (rate, warmup) != (3e-4, "tenth")
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for f in as_completed([pool.submit(one, i, *job) for i, job in enumerate(jobs)]):
            keep(f.result())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
