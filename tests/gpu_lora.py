"""Where to put the adapter, and what full fine-tuning changes, with SmolLM2-135M on the book's script. Run by hand on an accelerator:

    python tests/gpu_lora.py OUT [processes]

Writes OUT/gpu_lora.jsonl, which the chapter on what fine-tuning changes reads: one JSON line for each run (`ablation`), for each layer's change (`spectrum`) and for
each rank that the full change was cut to (`cut`). Everything is judged on the validation scenes; the test scenes are not read.
"""
import json
import sys
from pathlib import Path

BASE = "smollm2-135m"
ATTENTION, MLP = "q_proj,k_proj,v_proj,o_proj", "gate_proj,up_proj,down_proj"
PLACES = {"q, k": "q_proj,k_proj", "q, v": "q_proj,v_proj", "attention": ATTENTION, "MLP": MLP, "all linear": "all-linear"}
SAME_SIZE = {"q, k": 85, "q, v": 85, "attention": 42, "MLP": 26, "all linear": 16}  # ranks that give each place about as many parameters as the last


def first_jobs():
    "One run for each place, rank and learning rate."
    def row(group, place, rank, rates):
        for rate in rates: yield {"group": group, "place": place, "target_modules": PLACES[place], "r": rank, "lora_alpha": 2*rank, "learning_rate": rate, "seed": 42}
    for place in PLACES: yield from row("same rank", place, 16, (2e-4, 5e-4, 1e-3, 2e-3))
    for place in list(PLACES)[:-1]: yield from row("same size", place, SAME_SIZE[place], (2e-4, 5e-4, 1e-3, 2e-3))
    for rank in (1, 4, 64): yield from row("rank", "all linear", rank, (5e-4, 1e-3, 2e-3))
    for rate in (2e-5, 5e-5, 1e-4, 2e-4): yield {"group": "full", "place": "everything", "mode": "full", "learning_rate": rate, "seed": 42}


def best_rows(rows):
    "The best learning rate of each place and rank, by the validation scenes."
    best = {}
    for r in rows:
        key = (r["group"], r["place"], r.get("r"))
        if key not in best or r["valid_loss_nats_best"] < best[key]["valid_loss_nats_best"]: best[key] = r
    return list(best.values())


def more_seeds(rows):
    "Two more seeds at the best rate of each place and rank."
    for row in best_rows(rows):
        for seed in (1, 2): yield {k: row[k] for k in ("group", "place", "target_modules", "r", "lora_alpha", "mode", "learning_rate") if k in row} | {"seed": seed}


def work(jobs, number, out, data):
    "These runs, one after the other."
    import shutil

    from simpsons_llm.finetune import FinetuneConfig, finetune
    for i, job in jobs:
        run = f"/tmp/gpu_lora/{i}"
        settings = {k: v for k, v in job.items() if k not in ("group", "place")}
        summary = finetune(FinetuneConfig(data=data, run=run, base_model=BASE, dtype="float32", save_total_limit=1, eval_steps=10, **settings))
        keep = ("trainable_parameters", "valid_loss_nats_base", "valid_loss_nats_best", "best_step", "optimizer_steps", "device", "dtype")
        with open(f"{out}/ablation_{number}.jsonl", "a") as f: f.write(json.dumps({"kind": "ablation", "run": i, **job, **{k: summary[k] for k in keep}}) + "\n")
        shutil.rmtree(f"{run}/checkpoints")


def read(out): return [json.loads(line) for path in sorted(Path(out).glob("ablation_*.jsonl")) for line in open(path)]


def changes(out, data):
    "Spectra of the best full run and of the best run of the adapter, and the full change cut to a rank."
    import torch

    from simpsons_llm.device import find_device
    from simpsons_llm.evaluate import heldout_loss
    from simpsons_llm.finetune import FinetuneConfig
    from simpsons_llm.lifecycle import make_samples, run_data
    from simpsons_llm.model import load_base, load_tuned, merge
    from simpsons_llm.prompt import TextMaker
    from simpsons_llm.spectra import add_changes, effective_rank, noise_like, rank_for, shares_held, singular_values, weight_changes
    rows = [r for r in best_rows([r for r in read(out) if r["seed"] == 42])]
    full, lora = next(r for r in rows if r["group"] == "full"), next(r for r in rows if (r["group"], r["place"]) == ("same rank", "all linear"))
    device = find_device("auto", "float32")
    base, tokenizer = load_base(BASE, device)
    found = {"full": load_tuned(f"/tmp/gpu_lora/{full['run']}/model", device)[0], "LoRA, r 16": merge(load_tuned(f"/tmp/gpu_lora/{lora['run']}/adapter", device)[0])}
    config = FinetuneConfig(data=data, base_model=BASE)
    valid = make_samples(config, TextMaker(tokenizer), *run_data(config)[:2])[0]["valid"]
    score = lambda model: heldout_loss(model, valid, tokenizer.pad_token_id, 8)
    with open(f"{out}/changes.jsonl", "w") as f:
        say = lambda **row: print(json.dumps(row), file=f, flush=True)
        for name, model in found.items():
            change = weight_changes(base, model)
            for layer, d in change.items():
                values, weight = singular_values(d), base.get_submodule(layer).weight
                noise = singular_values(noise_like(d).to(d.device))
                say(kind="spectrum", way=name, layer=layer, shape=list(d.shape), relative=(d.norm()/weight.norm()).item(), rank_50=rank_for(values, 0.5), rank_90=rank_for(values, 0.9), effective_rank=effective_rank(values),
                    held_16=shares_held(values)[16].item(), noise_rank_90=rank_for(noise, 0.9), values=[round(v, 6) for v in (values/values[0])[:128].tolist()] if "layers.15." in layer else None)
            if name == "full":
                say(kind="cut", r=0, valid_loss_nats=score(base))
                for r in (1, 2, 4, 8, 16, 32, 64, 128, None): say(kind="cut", r=r, valid_loss_nats=score(add_changes(base, change, r)))
            say(kind="cut", way=name, valid_loss_nats=score(model), learning_rate=(full if name == "full" else lora)["learning_rate"])


def main():
    import multiprocessing

    from simpsons_llm.prepare import PrepareConfig, prepare
    out, processes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    data = "/tmp/gpu_lora/data"
    prepare(PrepareConfig(out=data))
    context, done = multiprocessing.get_context("spawn"), 0
    for phase in (lambda: first_jobs(), lambda: more_seeds(read(out))):
        jobs = list(enumerate(phase(), done)); done += len(jobs)
        workers = [context.Process(target=work, args=(jobs[n::processes], f"{n}_{done}", out, data)) for n in range(processes)]
        for w in workers: w.start()
        for w in workers: w.join()
        assert not any(w.exitcode for w in workers)
    changes(out, data)
    parts = [*sorted(Path(out).glob("ablation_*.jsonl")), Path(out)/"changes.jsonl"]
    (Path(out)/"gpu_lora.jsonl").write_text("".join(p.read_text() for p in parts))


if __name__ == "__main__": main()
