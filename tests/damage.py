"""What a damaged folder does: runs of the tiny model are damaged in many ways, then gone on with, or asked.

    python tests/damage.py                  all cases; about ten minutes on two cores
    python tests/damage.py --quick          two kinds of runs instead of four
    python tests/damage.py loop optimizer   those with all of these words in their name
    python tests/damage.py --keep now       also into nbs/_results/damage.jsonl, as what was found now

A case is a kind of run, a file and a damage. It ends in one of these ways:

    same       the same result as without the damage, bit for bit
    older      an older checkpoint is taken, which is said; the same result
    rebuilt    made anew, which is said; the same result
    refused    one sentence of the book's own, exit code 2
    WRONG      a traceback, a library's text, another result, or another checkpoint without a word

The exit code is 0 if none is WRONG. Run by hand; pytest does not collect this file.
"""

import argparse
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
if __name__ == "__main__":  # a test that imports this asks other hubs
    os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
KINDS = [("finetune", "lora"), ("loop", "full"), ("loop", "lora"), ("finetune", "full")]
STEPS = dict(max_steps=6, eval_steps=2, sample_steps=3)
TINY = dict(base_model="tiny", max_seq_len=300, learning_rate=3e-3, gate=False, device="cpu")
# what a library would say, and what says that nobody thought of it
FOREIGN = re.compile(
    r"Traceback|unexpected |Safetensor|PytorchStream|JSONDecode|Expecting|codec|Errno|yaml\.|KeyError|IndexError|"
    r"Unpickling|pickle|zip archive|headerr?|NoneType|object has no|line 1 column"
)


def flip(path):
    "One bit in the middle."
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


DAMAGES = {
    "missing": lambda p: p.unlink(),
    "emptied": lambda p: p.write_bytes(b""),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "flipped": flip,
    "text": lambda p: p.write_text("This is not what stood here.\n"),
}


def words(settings):
    "Settings as a command line has them."
    given = [(k.replace("_", "-"), v) for k, v in settings.items()]
    named = ([f"--{'' if v else 'no-'}{k}"] if isinstance(v, bool) else [f"--{k}", str(v)] for k, v in given)
    return [w for pair in named for w in pair]


def command(*argv):
    "Exit code, standard output, standard error."
    from simpsons_llm.machine.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(list(map(str, argv)))
        except BaseException as e:  # main lets nothing through
            code = f"{type(e).__name__}: {e}"
    return code, out.getvalue(), err.getvalue()


def small_data(out):
    "Prepared data of a few short scenes."
    lines = (("Homer", "I ate the whole pie"), ("Marge", "That was a wreath"), ("Homer", "It had berries"))
    script = "\n\n".join(
        f"[Episode {e}]\n[Kitchen]\n" + "\n".join(f"{who}: {said} in number {e}, {word}." for who, said in lines)
        for e, word in enumerate("apples frogs pianos rivers clouds stars oceans trains".split(), 1)
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    text = Path(f"{out}.txt")
    text.write_text(script)
    code, _, err = command("prepare", "--script", text, "--out", out)
    assert code == 0, err


def result(run):
    "What a run left, without its times: weights, rows, and what the summary says of them."
    run = Path(run)
    weights = next(
        p for p in (run / "adapter" / "adapter_model.safetensors", run / "model" / "model.safetensors") if p.is_file()
    )
    rows = [json.loads(r) for r in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    rows = [{k: v for k, v in r.items() if k != "step_s"} for r in rows]
    summary = json.loads((run / "summary.json").read_text(encoding="utf8"))
    names = ("status", "best_step", "valid_loss_nats_best", "valid_loss_nats_base", "optimizer_steps", "learned_tokens")
    return weights.read_bytes(), rows, {k: summary.get(k) for k in names}


class Case:
    "A folder that was damaged, and what must come of it."

    def __init__(self, name, whole, hurt, do, wanted, refer=""):
        self.name, self.whole, self.hurt, self.do, self.wanted = name, whole, hurt, do, wanted

    def run(self, place):
        "(end, what was said)"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.whole, place)
        self.hurt(place)
        (code, out, err), found = self.do(place)
        said = (err.strip() or out.strip().splitlines()[-1] if err.strip() or out.strip() else "").strip()
        if code == 2:
            one = err.startswith("error: ") and err.count("\n") == 1 and not FOREIGN.search(err)
            return ("refused" if one else "WRONG"), err.strip()
        if code != 0 or FOREIGN.search(out + err):
            return "WRONG", f"exit code {code}: {said[:300]}"
        try:
            now = found()
        except Exception as e:
            return "WRONG", f"nothing to compare: {type(e).__name__} {e}"
        if now != self.wanted:
            return "WRONG", "another result, and exit code 0"
        told = [line for line in out.splitlines() if re.search(r"damaged|older|made again|anew|cut off", line)]
        if "resume" in self.name:
            start = json.loads((place / "x" / "summary.json").read_text())["resumed_from_step"]
            if start < 4:
                return ("older", told[0]) if told else ("WRONG", f"resumed from {start} without a word")
        if "cache" in self.name:
            return ("rebuilt", told[0]) if told else ("same", "")
        return "same", told[0] if told else ""


def cases(home, kinds):
    "All cases; the runs are made on the way."
    from simpsons_llm.train.history import Recorder

    data = home / "data"
    small_data(data)
    learned = Recorder.learned
    for engine, mode in kinds:
        kind = f"{engine} {mode}"
        own = dict(data=data, mode=mode, **STEPS, **TINY, **(dict(lora_dropout=0.1) if mode == "lora" else {}))
        whole, stopped = home / kind.replace(" ", "-") / "whole", home / kind.replace(" ", "-") / "stopped"

        def train(place, *more, engine=engine, own=own):
            run = Path(place) / "x"
            return command(engine, *words({**own, "run": run}), *more), lambda: result(run)

        def dies(self, step, *more):
            if step == 5:
                raise RuntimeError("killed")
            learned(self, step, *more)

        code, _, err = train(whole)[0]
        assert code == 0, err
        Recorder.learned = dies
        try:
            train(stopped)
        finally:
            Recorder.learned = learned
        wanted, kept = result(whole / "x"), {"lora": "adapter", "full": "model"}[mode]

        def resume(place, train=train):
            return train(place, "--resume")

        def infer(place):
            code = command(
                "infer",
                "--adapter",
                place / "x",
                "--speaker",
                "Homer",
                "Marge: Pie?",
                "--device",
                "cpu",
                "--max-new-tokens",
                8,
            )
            return code, lambda: code[1]

        newest = stopped / "x" / "checkpoints" / "checkpoint-4"
        yield Case(f"{kind}: resume, nothing damaged", stopped, lambda p: None, resume, wanted)
        for file in sorted(p.name for p in newest.iterdir()):
            for how, hurt in DAMAGES.items():
                yield Case(
                    f"{kind}: resume, checkpoint-4/{file} {how}",
                    stopped,
                    lambda p, f=file, h=hurt: h(p / "x" / "checkpoints" / "checkpoint-4" / f),
                    resume,
                    wanted,
                )
        for file in ("metrics.jsonl", "config.yaml", "summary.json"):
            for how, hurt in DAMAGES.items():
                yield Case(
                    f"{kind}: resume, {file} {how}", stopped, lambda p, f=file, h=hurt: h(p / "x" / f), resume, wanted
                )
        weights = "adapter_model.safetensors" if mode == "lora" else "model.safetensors"

        def state(place, step, **changed):
            file = place / "x" / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

        def both(place, hurt, file):
            for p in (place / "x" / "checkpoints").glob("checkpoint-*"):
                hurt(p / file)

        def renamed(place):
            (place / "x" / "checkpoints" / "checkpoint-4").rename(place / "x" / "checkpoints" / "checkpoint-6")

        def lost(place, keep):
            file = place / "x" / "metrics.jsonl"
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join(r for k, r in enumerate(rows) if keep(k, len(rows))))

        def half_row(place):
            file = place / "x" / "metrics.jsonl"
            file.write_text(file.read_text()[:-20])

        def changed_number(place):
            file = place / "x" / "metrics.jsonl"
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join(r.replace('valid_loss_nats": 5', 'valid_loss_nats": 4') for r in rows))

        def unsealed(place, hurt, file):
            # as an earlier version left it, and then damaged
            for folder in (place / "x" / "checkpoints").glob("checkpoint-*"):
                for p in [*folder.glob("*manifest*"), *folder.glob("metrics.jsonl")]:
                    p.unlink()
            if file:
                hurt(place / "x" / "checkpoints" / "checkpoint-4" / file)

        more = {
            "global_step 78": lambda p: state(p, 4, global_step=78),
            "global_step a word": lambda p: state(p, 4, global_step="four"),
            "state a list": lambda p: (p / "x/checkpoints/checkpoint-4/trainer_state.json").write_text("[]"),
            "best checkpoint elsewhere": lambda p: state(p, 4, best_model_checkpoint="nowhere"),
            "checkpoint-4 called checkpoint-6": renamed,
            "no optimizer in either": lambda p: both(p, DAMAGES["missing"], "optimizer.pt"),
            "weights of both flipped": lambda p: both(p, flip, weights),
            "checkpoints gone": lambda p: shutil.rmtree(p / "x" / "checkpoints"),
            "half of the last row": half_row,
            "first row lost": lambda p: lost(p, lambda k, n: k > 0),
            "rows in the middle lost": lambda p: lost(p, lambda k, n: not 1 < k < 4),
            "last rows lost": lambda p: lost(p, lambda k, n: k < n - 4),
            "a held-out loss changed": changed_number,
            "config a list": lambda p: (p / "x/config.yaml").write_text("- 1\n"),
            "config with a bad row": lambda p: (p / "x/config.yaml").write_text("a: [1\nb: }"),
            "summary a list": lambda p: (p / "x/summary.json").write_text("[1]"),
            "summary a number": lambda p: (p / "x/summary.json").write_text("3"),
            "no manifests": lambda p: unsealed(p, None, ""),
            "no manifests, optimizer missing": lambda p: unsealed(p, DAMAGES["missing"], "optimizer.pt"),
            "no manifests, scheduler half": lambda p: unsealed(p, DAMAGES["half"], "scheduler.pt"),
            "no manifests, optimizer flipped": lambda p: unsealed(p, flip, "optimizer.pt"),
            "no manifests, weights half": lambda p: unsealed(p, DAMAGES["half"], weights),
            "no manifests, state emptied": lambda p: unsealed(p, DAMAGES["emptied"], "trainer_state.json"),
        }
        for name, hurt in more.items():
            yield Case(f"{kind}: resume, {name}", stopped, hurt, resume, wanted)
        (code, answer, err), _ = infer(whole)
        assert code == 0, err
        for file in [f"{kept}/{p.name}" for p in sorted((whole / "x" / kept).iterdir())] + ["summary.json"]:
            for how, hurt in DAMAGES.items():
                yield Case(
                    f"{kind}: infer, {file} {how}", whole, lambda p, f=file, h=hurt: h(p / "x" / f), infer, answer
                )
        # a finished run that is to go on says that it is finished
        done = whole.with_name("done")
        shutil.copytree(whole, done)
        for how, hurt in DAMAGES.items():
            yield Case(
                f"{kind}: again, summary.json {how}",
                done,
                lambda p, h=hurt: h(p / "x" / "summary.json"),
                resume,
                wanted,
            )
        if (engine, mode) != kinds[0]:
            continue
        export = home / "export"
        code, out, err = command("export", whole / "x", "--out", export / "x")
        assert code == 0, (out, err)
        (code, answer, err), _ = infer(export)
        assert code == 0, err
        for file in sorted(p.name for p in (export / "x").iterdir()):
            for how, hurt in DAMAGES.items():
                yield Case(
                    f"export: infer, {file} {how}", export, lambda p, f=file, h=hurt: h(p / "x" / f), infer, answer
                )

        def with_data(place, train=train):
            run = Path(place) / "run"
            return train(run, "--data", place / "d"), lambda: None

        folder = home / "prepared"
        small_data(folder / "d")

        def fresh(place, engine=engine, own=own):
            found = command(
                engine, *words({**own, "data": Path(place) / "d", "run": Path(place) / "x", "max_steps": 2})
            )
            return found, lambda: result(Path(place) / "x")

        first, found = fresh(home / "prepared")
        assert first[0] == 0, first
        plain = found()
        shutil.rmtree(home / "prepared" / "x")
        for file in sorted(p.name for p in (folder / "d").iterdir()):
            for how, hurt in DAMAGES.items():
                yield Case(f"data: {file} {how}", folder, lambda p, f=file, h=hurt: h(p / "d" / f), fresh, plain)

        cached = home / "cached"
        small_data(cached / "d")

        def with_cache(place):
            before = os.environ.get("SIMPSONS_LLM_CACHE")
            os.environ["SIMPSONS_LLM_CACHE"] = str(place / "cache")
            try:
                return fresh(place)
            finally:
                os.environ.pop("SIMPSONS_LLM_CACHE") if before is None else os.environ.update(SIMPSONS_LLM_CACHE=before)

        assert with_cache(cached)[0][0] == 0
        shutil.rmtree(cached / "x")
        entry = next((cached / "cache" / "tokens").iterdir())

        def many(path):
            raw = bytearray(path.read_bytes())
            for k in range(200):
                raw[len(raw) * (k + 100) // 301] ^= 0xFF
            path.write_bytes(raw)

        for file in sorted(p.relative_to(cached) for p in entry.rglob("*") if p.is_file()):
            for how, hurt in {**DAMAGES, "200 bytes": many}.items():
                yield Case(
                    f"cache: {file.parent.name[:5]}/{file.name} {how}",
                    cached,
                    lambda p, f=file, h=hurt: h(p / f),
                    with_cache,
                    plain,
                )


def main():
    "All cases, a line each, and their count."
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("words", nargs="*")
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--keep", default="")
    given = ask.parse_args()
    found, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SIMPSONS_LLM_CACHE"] = str(Path(home) / "cache")
        for case in cases(Path(home), KINDS[:2] if given.quick else KINDS):
            if not all(w in case.name for w in given.words):
                continue
            end, said = case.run(Path(home) / "case")
            said = said.replace(home, "").replace("/case/x", "RUN")
            print(f"{end:8} {case.name}{f'  | {said[:230]}' if said else ''}", flush=True)
            found.append({"when": given.keep or "now", "case": case.name, "end": end, "said": said[:120]})
    ends = [r["end"] for r in found]
    print({e: ends.count(e) for e in sorted(set(ends))}, f"{time.perf_counter() - start:.0f} s")
    if given.keep:
        file = ROOT / "nbs" / "_results" / "damage.jsonl"
        old = [json.loads(r) for r in file.read_text(encoding="utf8").splitlines()] if file.is_file() else []
        rows = [r for r in old if r["when"] != given.keep] + found
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf8")
    sys.exit("WRONG" in ends)


if __name__ == "__main__":
    main()
