"""Where to put the adapter, at which learning rate, and what full fine-tuning changes.

SmolLM2-135M on the book's script. Run by hand on an accelerator:

    python tests/gpu_lora.py OUT [--processes 8] [--minutes 60]

Writes OUT/gpu_lora.jsonl, which the chapter on what fine-tuning changes reads: one JSON line for each run
(`ablation`), for each layer's change (`spectrum`) and for each rank that the full change was cut to (`cut`). For every
place and rank the learning rate is raised until the loss has a minimum inside the rates that were tried; two more seeds
follow at the best. Everything is judged on the validation scenes; the test scenes are not read. What was done is kept
in OUT, so that a second call goes on.
"""

import argparse
import json
import multiprocessing
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

BASE = "smollm2-135m"
ATTENTION, MLP = "q_proj,k_proj,v_proj,o_proj", "gate_proj,up_proj,down_proj"
PLACES = {
    "q, k": "q_proj,k_proj",
    "q, v": "q_proj,v_proj",
    "attention": ATTENTION,
    "MLP": MLP,
    "all linear": "all-linear",
}
# ranks that give each place about as many parameters as 16 on all linear layers
SAME_SIZE = {"q, k": 85, "q, v": 85, "attention": 42, "MLP": 26}
LADDER = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
FIRST = {
    "full": (5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
    "seed's recipe": (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
    None: (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
}


def rows_of_the_table():
    "Settings of each place and rank, without rate and seed."

    def lora(group, place, rank):
        return {"group": group, "place": place, "target_modules": PLACES[place], "r": rank, "lora_alpha": 2 * rank}

    yield {"group": "full", "place": "everything", "mode": "full"}
    yield {"group": "seed's recipe", "place": "q, k", "recipe": "seed", "r": 8}
    for place in PLACES:
        yield lora("same rank", place, 16)
    for place, rank in SAME_SIZE.items():
        yield lora("same size", place, rank)
    for rank in (1, 4, 64):
        yield lora("rank", "all linear", rank)


def work(job, out, data):
    "One run; its row."
    from simpsons_llm.train.finetune import FinetuneConfig, finetune

    name = (
        "_".join(str(job.get(k, "")) for k in ("group", "place", "r", "learning_rate", "seed"))
        .replace(" ", "")
        .replace(",", "")
        .replace("'", "")
    )
    run, settings = Path(out) / "runs" / name, {k: v for k, v in job.items() if k not in ("group", "place")}
    keep = (
        "trainable_parameters",
        "valid_loss_nats_base",
        "valid_loss_nats_best",
        "best_step",
        "optimizer_steps",
        "learned_tokens",
        "real_tokens",
        "train_s",
        "device",
        "dtype",
    )
    every = 10 if job["group"] != "seed's recipe" else 5
    try:
        summary = finetune(
            FinetuneConfig(
                data=data,
                run=str(run),
                base_model=BASE,
                dtype="float32",
                save_total_limit=1,
                eval_steps=every,
                sample_steps=0,
                **settings,
            )
        )
        found = {k: summary[k] for k in keep}
    except ValueError as e:  # a rate so high that the loss is no number
        found = {"valid_loss_nats_best": None, "error": str(e)}
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return {"kind": "ablation", "run": name, **job, **found}


def key(row):
    return row["group"], row["place"], row.get("r")


def next_jobs(table, rows):
    "What is still to be done for each place and rank: a higher rate where the best is the highest, else more seeds."
    for settings in table:
        mine = [r for r in rows if key(r) == key(settings)]
        tried = {r["learning_rate"] for r in mine if r["seed"] == 42}
        first = FIRST.get(settings["group"], FIRST[None])
        todo = [(rate, 42) for rate in first if rate not in tried]
        if not todo:
            losses = {
                r["learning_rate"]: r["valid_loss_nats_best"]
                for r in mine
                if r["seed"] == 42 and r["valid_loss_nats_best"] is not None
            }
            best, higher = min(losses, key=losses.get), [rate for rate in LADDER if rate > max(tried)]
            if best == max(tried) and higher:
                todo = [(higher[0], 42)]
            else:
                todo = [
                    (best, seed)
                    for seed in (1, 2)
                    if not any(r["seed"] == seed and r["learning_rate"] == best for r in mine)
                ]
        for rate, seed in todo:
            yield {**settings, "learning_rate": rate, "seed": seed}


def sweep(out, data, processes, until):
    "Run until nothing is left to do or the time is up; all rows, and whether all was done."
    file, table, running = Path(out) / "ablation.jsonl", list(rows_of_the_table()), {}
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while True:
            for job in next_jobs(table, rows):
                if job not in running.values() and len(running) < processes and time.time() < until:
                    running[pool.submit(work, job, out, data)] = job
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                running.pop(future)
                rows.append(future.result())
                with open(file, "a") as f:
                    f.write(json.dumps(rows[-1]) + "\n")
                print(
                    len(rows),
                    {
                        k: rows[-1].get(k)
                        for k in ("group", "place", "r", "learning_rate", "seed", "valid_loss_nats_best")
                    },
                    flush=True,
                )
    return rows, not list(next_jobs(table, rows))


def changes(out, data, rows):
    "Spectra of the best full run and of the best run of the adapter, and the full change cut to a rank."
    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.lora.spectra import (
        add_changes,
        effective_rank,
        noise_like,
        rank_for,
        shares_held,
        singular_values,
        weight_changes,
    )
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.adapter import load_tuned, merge
    from simpsons_llm.model.base import load_base
    from simpsons_llm.model.loss import heldout_loss
    from simpsons_llm.train.finetune import FinetuneConfig
    from simpsons_llm.train.lifecycle import make_samples, run_data

    def best(group, place):
        return min(
            (
                r
                for r in rows
                if (r["group"], r["place"], r["seed"]) == (group, place, 42) and r["valid_loss_nats_best"]
            ),
            key=lambda r: r["valid_loss_nats_best"],
        )

    full, lora, device = best("full", "everything"), best("same rank", "all linear"), find_device("auto", "float32")
    base, tokenizer = load_base(BASE, device)

    def where(row, kept):
        return Path(out) / "runs" / row["run"] / kept

    found = {
        "full": load_tuned(where(full, "model"), device)[0],
        "LoRA, r 16": merge(load_tuned(where(lora, "adapter"), device)[0]),
    }
    config = FinetuneConfig(data=data, base_model=BASE)
    valid = make_samples(config, TextMaker(tokenizer), *run_data(config)[:2])[0]["valid"]

    def score(model):
        return heldout_loss(model, valid, tokenizer.pad_token_id, 8)

    with open(f"{out}/changes.jsonl", "w") as f:

        def say(**row):
            return print(json.dumps(row), file=f, flush=True)

        for name, model in found.items():
            change = weight_changes(base, model)
            for layer, d in change.items():
                values, weight = singular_values(d), base.get_submodule(layer).weight
                noise = singular_values(noise_like(d).to(d.device))
                say(
                    kind="spectrum",
                    way=name,
                    layer=layer,
                    shape=list(d.shape),
                    relative=(d.norm() / weight.norm()).item(),
                    rank_50=rank_for(values, 0.5),
                    rank_90=rank_for(values, 0.9),
                    effective_rank=effective_rank(values),
                    held_16=shares_held(values)[16].item(),
                    noise_rank_90=rank_for(noise, 0.9),
                    values=[round(v, 6) for v in (values / values[0])[:128].tolist()]
                    if "layers.15." in layer
                    else None,
                )
            if name == "full":
                say(kind="cut", r=0, valid_loss_nats=score(base))
                for r in (1, 2, 4, 8, 16, 32, 64, 128, None):
                    say(kind="cut", r=r, valid_loss_nats=score(add_changes(base, change, r)))
            say(
                kind="cut",
                way=name,
                valid_loss_nats=score(model),
                learning_rate=(full if name == "full" else lora)["learning_rate"],
            )


def main():
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many minutes")
    args = parser.parse_args()
    out, data = args.out, str(Path(args.out) / "data")
    until = time.time() + 60 * args.minutes
    if not Path(data).is_dir():
        prepare(PrepareConfig(out=data))
    rows, whole = sweep(out, data, args.processes, until)
    if not whole:
        print("not done yet; call again to go on")
        return
    changes(out, data, rows)
    parts = [Path(out) / "ablation.jsonl", Path(out) / "changes.jsonl"]
    (Path(out) / "gpu_lora.jsonl").write_text("".join(p.read_text() for p in parts))
    print(f"{len(rows)} runs; written to {Path(out) / 'gpu_lora.jsonl'}")


if __name__ == "__main__":
    main()
