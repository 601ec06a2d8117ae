"""Hours of training and asking: does memory stay flat, and does everything that begins end?

    python tests/soak.py OUT [--minutes 120] [--keep]

Run by hand; two processes of one thread each. The first trains one run after the other with the tiny model, both
engines in turn, then asks each run it made, and throws it away. The second is `simpsons-llm serve` over such a run,
asked again and again, well and badly, by a client that hangs up now and then. The memory of both is read every ten
seconds. OUT/soak.jsonl has a row a minute; with `--keep` the last row of all goes into nbs/_results/soak.jsonl. The
exit code is 0 if nothing failed and memory was flat: the middle of the last quarter at most a twentieth above that
of the second.
"""

import argparse
import atexit
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-c", "from simpsons_llm.machine.cli import main; main()"]
EVERY_S, LIMIT = 10, 1.05
TINY = dict(
    base_model="tiny", max_seq_len=400, learning_rate=3e-3, gate=False, device="cpu", sample_steps=0, r=4, lora_alpha=8
)


def rounds(out, data):
    "Train, ask, throw away, until told to end; a line of JSON for each round."
    from simpsons_llm.model.character import Character
    from simpsons_llm.train.finetune import FinetuneConfig, finetune
    from simpsons_llm.train.loop import LoopConfig, loop

    engines = ((FinetuneConfig, finetune), (LoopConfig, loop))
    for i in range(10**9):
        config, train = engines[i % 2]
        run = out / f"run{i}"
        summary = train(config(data=str(data), run=str(run), max_steps=8, eval_steps=4, sample_steps=0, seed=i, **TINY))
        homer = Character.load(run, device="cpu")
        said = [homer.says("Marge Simpson: Well?", random_seed=k, max_new_tokens=8) for k in range(5)]
        print(json.dumps({"round": i, "status": summary["status"], "said": len(said)}), file=sys.__stderr__, flush=True)
        shutil.rmtree(run)


def rss_mib(pid):
    "Memory of a process and of those that it started, in MiB."
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        fields = dict(re.findall(r"^(Pid|PPid|VmRSS):\s+(\d+)", text, re.M))
        if str(pid) in (fields.get("Pid"), fields.get("PPid")):
            total += int(fields.get("VmRSS", 0)) / 1024
    return total


class Asker(threading.Thread):
    "Asks a server well, badly, and hangs up."

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.counts, self.ended = url, {"answers": 0, "refused": 0, "hung up": 0, "failed": 0}, False

    def post(self, asked, read=True):
        body = json.dumps(asked).encode()
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            reply.read(None if read else 20)

    def run(self):
        good = {"model": "Homer Simpson", "max_tokens": 8, "messages": [{"role": "user", "content": "Well?"}]}
        kinds = [("answers", good)] * 3 + [("refused", {**good, "model": "Nobody at all"}), ("hung up", good)]
        for i in range(10**9):
            what, asked = kinds[i % len(kinds)]
            try:
                self.post({**asked, "seed": i, "stream": what == "hung up"}, read=what != "hung up")
            except urllib.error.HTTPError as e:
                what = "refused" if e.code == 404 and what == "refused" else "failed"
            except OSError:
                what = "failed"
            if self.ended:
                return
            self.counts[what] += 1
            time.sleep(0.05)


def flat(rows, side):
    "Memory in the last quarter as a multiple of the second quarter's, by their middles."
    values = [r[side] for r in rows]
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter] or values)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("--minutes", type=float, default=120)
    ask.add_argument("--keep", action="store_true", help="also into nbs/_results/soak.jsonl")
    ask.add_argument("--rounds", action="store_true", help=argparse.SUPPRESS)  # the first process is this script, too
    a = ask.parse_args()
    out, data = a.out.resolve(), a.out.resolve() / "data"
    if a.rounds:
        return rounds(out, data)

    from simpsons_llm.data.prepare import PrepareConfig, prepare
    from simpsons_llm.machine.job import append_jsonl, provenance
    from simpsons_llm.train.loop import LoopConfig, loop

    out.mkdir(parents=True, exist_ok=True)
    prepare(PrepareConfig(script="springfield", out=str(data)))
    loop(LoopConfig(data=str(data), run=str(out / "served"), max_steps=4, sample_steps=0, **TINY))
    errors = (out / "rounds.log").open("w")
    serving = subprocess.Popen(
        [*CLI, "serve", "--run", str(out / "served"), "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    url = next(m.group(1) for line in serving.stdout if (m := re.search(r"(http://\S+)/v1", line)))
    training = subprocess.Popen(
        [sys.executable, __file__, str(out), "--rounds"], stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT
    )
    asker, rows, begun = Asker(url), [], time.monotonic()
    asker.start()
    log = out / "soak.jsonl"
    log.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(lambda: [p.kill() for p in (training, serving)])
    ended = lambda: training.poll() is not None or serving.poll() is not None  # noqa: E731
    while time.monotonic() - begun < 60 * a.minutes and not ended():
        time.sleep(EVERY_S)
        done = [r for r in (out / "rounds.log").read_text().splitlines() if r.startswith('{"round"')]
        minutes = round((time.monotonic() - begun) / 60, 2)
        memory = {"training_mib": rss_mib(training.pid), "serving_mib": rss_mib(serving.pid)}
        rows.append({"minutes": minutes, **memory, "runs": len(done), **asker.counts})
        if len(rows) % (60 // EVERY_S) == 0:
            append_jsonl(log, rows[-1])
    died, asker.ended = ended(), True
    for p in (training, serving):
        p.terminate()
        p.wait(timeout=60)
    rows = [r for r in rows if r["minutes"] > min(2, a.minutes / 10)] or rows
    growth = {side: round(flat(rows, f"{side}_mib"), 4) for side in ("training", "serving")}
    good = not died and not rows[-1]["failed"] and max(growth.values()) <= LIMIT and rows[-1]["runs"] > 1
    curve = rows[:: max(1, len(rows) // 120)]
    last = {**rows[-1], "growth": growth, "flat": good, "when": time.strftime("%Y-%m-%d"), "provenance": provenance()}
    last |= {side: [round(r[side]) for r in curve] for side in ("training_mib", "serving_mib")}
    last["at_minutes"] = [r["minutes"] for r in curve]
    append_jsonl(log, last)
    if a.keep:
        append_jsonl(ROOT / "nbs" / "_results" / "soak.jsonl", last)
    print({k: last[k] for k in ("minutes", "runs", "answers", "refused", "hung up", "failed", "growth", "flat")})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
