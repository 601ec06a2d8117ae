"""What makes the character more itself: a search on validation scenes, and one look at the test scenes.

SmolLM2-135M on a prepared table and on the book's script. Run by hand on an accelerator:

    python tests/gpu_voice.py OUT learn    [--data FOLDER] [--processes 6] [--minutes 8]   settings of training
    python tests/gpu_voice.py OUT stage    [--data FOLDER]                                 preference stages on the best
    python tests/gpu_voice.py OUT draw     [--data FOLDER]                                 how words are drawn
    python tests/gpu_voice.py OUT judge    [--data FOLDER]                                 default, best, seed: valid
    python tests/gpu_voice.py OUT test     [--data FOLDER]                                 the same on test, once

Everything is chosen on the validation scenes; `test` refuses a second look. Each step appends JSON lines to
OUT/voice.jsonl, which the chapter on the record shows, and goes on where an earlier call stopped. Runs lie in
OUT/NAME. With `--base tiny --quick` the whole way takes a minute on a CPU.
"""

import argparse
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

# settings of finetune that are varied, one or two at a time, around the book's recipe
LEARN: dict[str, dict] = {
    "book": {},
    "book, 3 epochs": {"epochs": 3.0},
    "seed": {"recipe": "seed"},
    **{
        f"rate {rate:g}, {epochs:g} epochs": {"learning_rate": rate, "epochs": epochs}
        for rate in (1e-3, 2e-3, 4e-3)
        for epochs in (1.0, 3.0)
    },
    **{
        f"decay {decay:g}, rate {rate:g}, 4 epochs": {"weight_decay": decay, "learning_rate": rate, "epochs": 4.0}
        for decay in (0.3, 1.0, 3.0)
        for rate in (1e-3, 2e-3)
    },
    **{
        f"dropout {p:g}, rate 1e-3, 4 epochs": {"lora_dropout": p, "learning_rate": 1e-3, "epochs": 4.0}
        for p in (0.1, 0.3)
    },
    **{
        f"context weight {w:g}, 3 epochs": {"context_weight": w, "learning_rate": 1e-3, "epochs": 3.0}
        for w in (0.0, 0.3, 1.0)
    },
    "8 scenes a step, rate 2e-3, 4 epochs": {
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 2e-3,
        "epochs": 4.0,
    },
    "rank 64, rate 1e-3, 3 epochs": {"r": 64, "lora_alpha": 128, "learning_rate": 1e-3, "epochs": 3.0},
    "full, rate 1e-4, 3 epochs": {"mode": "full", "learning_rate": 1e-4, "epochs": 3.0},
}
STAGES: dict[str, dict] = {
    f"{rejected}, beta {beta:g}, rate {rate:g}": {"rejected": rejected, "beta": beta, "learning_rate": rate}
    for rejected in ("samples", "speakers", "both", "mouths")
    for beta, rate in ((0.1, 2e-5), (0.1, 1e-4), (0.03, 1e-4))
}
DRAW: dict[str, dict] = {
    "book": {},
    **{f"temperature {t:g}": {"temperature": t} for t in (0.6, 1.0, 1.2)},
    **{f"all tokens, temperature {t:g}": {"temperature": t, "top_k": 0, "top_p": 1.0} for t in (0.8, 1.0)},
    **{
        f"min_p {p:g}, temperature {t:g}": {"min_p": p, "temperature": t, "top_k": 0, "top_p": 1.0}
        for p, t in ((0.02, 1.0), (0.05, 1.0), (0.1, 1.0), (0.1, 1.3))
    },
    "no penalty": {"repetition_penalty": 1.0},
    "best of 8": {"best_of": 8},
    "best of 8, all tokens": {"best_of": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
}
CHOSEN = (
    "speaker_acc_20",
    "auc_real_1",
    "auc_real_20",
    "distinct_2",
    "verbatim_8gram",
    "self_bleu",
    "words",
    "length_ks",
)


def slug(name):
    return "".join(c if c.isalnum() else "_" for c in name)


def rows_of(out):
    from simpsons_llm.machine.job import read_jsonl

    return read_jsonl(out / "voice.jsonl") if (out / "voice.jsonl").is_file() else []


def keep(out, row):
    from simpsons_llm.machine.job import append_jsonl

    append_jsonl(out / "voice.jsonl", row)
    print({k: v for k, v in row.items() if k not in ("settings", "figures", "said")}, flush=True)


def learn(name, settings, out, data, base, quick):
    "One fine-tuning; what its summary says."
    from simpsons_llm.train.finetune import FinetuneConfig, finetune

    run = out / slug(name)
    shutil.rmtree(run, ignore_errors=True)
    more = {"max_steps": 4, "device": "cpu"} if quick else {}
    began = time.perf_counter()
    summary = finetune(FinetuneConfig(run=str(run), data=data, base_model=base, sample_steps=0, **{**settings, **more}))
    names = ("valid_loss_nats_base", "valid_loss_nats_best", "best_step", "optimizer_steps", "gate", "status")
    return {
        "part": "learn",
        "name": name,
        "settings": settings,
        **{n: summary.get(n) for n in names},
        "seconds": round(time.perf_counter() - began, 1),
    }


def each(function, jobs, out, processes, minutes):
    "Several at once, in processes of their own; no new one after so many minutes."
    until, waiting = time.time() + 60 * minutes, list(jobs)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        going = {}
        while waiting or going:
            while waiting and len(going) < processes and time.time() < until:
                job = waiting.pop(0)
                going[pool.submit(function, *job)] = job
            if not going:
                break
            for done in wait(going, return_when=FIRST_COMPLETED)[0]:
                job = going.pop(done)
                try:
                    keep(out, done.result())
                except Exception as e:
                    keep(out, {"part": function.__name__, "name": job[0], "failed": f"{type(e).__name__}: {e}"[:300]})
    for job in waiting:
        print("not begun:", job[0], flush=True)


def best(out):
    "The setting of training with the lowest validation loss; its run."
    found = [
        r
        for r in rows_of(out)
        if r["part"] == "learn"
        and r.get("valid_loss_nats_best")
        and r["settings"].get("mode") != "full"  # a preference stage needs an adapter
        and r["settings"].get("recipe") != "seed"  # another form, other losses
        and (r.get("gate") or {}).get("decided_by") != "none passed"
    ]
    return min(found, key=lambda r: r["valid_loss_nats_best"])["name"]


def stage(name, settings, out, quick):
    "One preference stage on the best run."
    from simpsons_llm.character.contrast import ContrastConfig, contrast

    to = out / f"stage_{slug(name)}"
    shutil.rmtree(to, ignore_errors=True)
    more = {"pairs": 4, "device": "cpu"} if quick else {}
    summary = contrast(ContrastConfig(run=str(out / slug(best(out))), out=str(to), **{**settings, **more}))
    return {
        "part": "stage",
        "name": name,
        "settings": settings,
        **{k: v for k, v in summary.items() if isinstance(v, (int, float, str))},
    }


def figures(result, names):
    return {n: result[n] for n in names if n in result}


def judge(out, runs, split, quick):
    "Several runs beside the base and the script."
    from simpsons_llm.character.evaluate import EvaluateConfig, evaluate

    given = {"lines": 12, "max_new_tokens": 8, "device": "cpu"} if quick else {"lines": 0}
    place = str(out / f"evaluation_{split}")
    result = evaluate(EvaluateConfig(run=runs[0], beside=",".join(runs[1:]), split=split, out=place, **given))
    keep(out, {"part": split, "name": ", ".join(Path(r).name for r in runs), "figures": result})


def draw(out, run, settings_of, quick):
    "One run's answers, drawn in several ways."
    from simpsons_llm.character.contrast import best_of
    from simpsons_llm.character.evaluate import EvaluateConfig, Side, figures_of, make_ground, speak_at
    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.adapter import load_tuned, merge
    from simpsons_llm.model.decode import SAMPLING
    from simpsons_llm.train.run import Run

    config = EvaluateConfig(run=run, split="valid", **({"device": "cpu"} if quick else {}))
    data = Run(run).data()
    ground = make_ground(data.parts, data.report, config, 12 if quick else 0)
    human = Side("human", [m.line.text for m in ground.moments])
    model, tokenizer, notes = load_tuned(run, find_device(config.device))
    model, maker = merge(model).eval(), TextMaker.of_notes(tokenizer, notes)
    main = [who for who in dict.fromkeys(m.line.speaker for m in ground.moments)][:4]
    done = {r["name"] for r in rows_of(out) if r["part"] == "draw"}
    for name, settings in settings_of.items():
        if name in done:
            continue
        given = dict(settings)
        n, began = given.pop("best_of", 1), time.perf_counter()
        sampling = SAMPLING["book"].changed(**given, **({"max_new_tokens": 8} if quick else {}))
        if n == 1:
            texts, ended = speak_at(model, maker, ground.moments, sampling)
        else:
            texts = []
            for begin in range(0, len(ground.moments), 16):  # answers are drawn together
                asked = [m.request() for m in ground.moments[begin : begin + 16]]
                texts += best_of(model, maker, asked, n, sampling, 42 + begin, main)
            ended = [True] * len(texts)
        found = figures_of(Side(name, texts, ended), ground, human, 42)
        seconds = round(time.perf_counter() - began, 1)
        row = {"part": "draw", "name": name, "run": Path(run).name, "settings": settings, "seconds": seconds}
        keep(out, {**row, "figures": figures(found, CHOSEN), "said": texts[:5]})


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("part", choices=("learn", "stage", "draw", "judge", "test"))
    ask.add_argument("--data", default="springfield")
    ask.add_argument("--base", default="smollm2-135m")
    ask.add_argument("--processes", type=int, default=6)
    ask.add_argument("--minutes", type=float, default=8)
    ask.add_argument("--only", default="", help="names that have this in them")
    ask.add_argument("--runs", default="", help="judge and test: folders in OUT, with commas; empty: best, book, seed")
    ask.add_argument("--quick", action="store_true")
    a = ask.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    done = {r["name"] for r in rows_of(a.out) if r["part"] == a.part and "failed" not in r}
    if a.part == "learn":
        names = list(LEARN)[:: 9 if a.quick else 1]
        jobs = [(n, LEARN[n], a.out, a.data, a.base, a.quick) for n in names if n not in done and a.only in n]
        each(learn, jobs, a.out, a.processes, a.minutes)
    if a.part == "stage":
        names = list(STAGES)[:: 5 if a.quick else 1]
        jobs = [(n, STAGES[n], a.out, a.quick) for n in names if n not in done and a.only in n]
        each(stage, jobs, a.out, a.processes, a.minutes)
    if a.part == "draw":
        names = [n for n in list(DRAW)[:: 10 if a.quick else 1] if a.only in n]
        run = a.runs or str(a.out / slug(best(a.out)))
        draw(a.out, run, {n: DRAW[n] for n in names}, a.quick)
    if a.part in ("judge", "test"):
        if a.part == "test" and any(r["part"] == "test" for r in rows_of(a.out)):
            raise SystemExit("the test scenes were looked at already")
        runs = [r for r in a.runs.split(",") if r] or list(dict.fromkeys([slug(best(a.out)), "book", "seed"]))
        runs = [str(a.out / r) for r in runs if (a.out / r / "summary.json").is_file()]
        judge(a.out, runs, "valid" if a.part == "judge" else "test", a.quick)


if __name__ == "__main__":
    main()
