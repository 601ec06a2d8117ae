"""Several GPUs of one machine against one: the same losses, how fast, how much memory, and what if a rank fails.

Run by hand:

    python tests/gpu_several.py OUT tiny [RANKS]        equality, checkpoints of one number of ranks resumed by another,
                                                        failures, collectives
    python tests/gpu_several.py OUT smollm2 [RANKS]     a real model: losses, speed and memory
    python tests/gpu_several.py OUT mpich [RANKS]       started by MPICH's mpirun, which must be on PATH

Adds to OUT/gpu_several.jsonl, which the chapters on launching and on models in parts read. Everything is started by
`simpsons-llm launch`, so papermill runs the chapters.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from conftest import CLI, cut, same

TINY = dict(
    base_model="tiny",
    max_seq_len=1200,
    learning_rate=3e-3,
    r=4,
    lora_alpha=8,
    max_steps=8,
    eval_steps=4,
    global_batch_size=8,
    micro_batch_size=2,
    dtype="float32",
)
SMOLLM2 = dict(base_model="smollm2-135m", max_steps=20, eval_steps=20, global_batch_size=16, micro_batch_size=8)
WAYS = [
    ("finetune", "lora", "none"),
    ("finetune", "full", "none"),
    ("finetune", "full", "fsdp"),
    ("loop", "lora", "none"),
    ("loop", "full", "none"),
]
SETTLED = 6  # steps before the clock counts


def keep(out, **row):
    print(row, flush=True)
    with open(out / "gpu_several.jsonl", "a", encoding="utf8") as f:
        f.write(json.dumps(row) + "\n")


def start(out, ranks, chapter, name, launcher="torchrun", **p):
    "One run: its summary and rows; RuntimeError with the last words if it failed."
    words = [
        x
        for k, v in {"data": out / "data", **p}.items()
        if (k, chapter) != ("sharding", "loop")
        for x in ("-p", k, str(v))
    ]
    began = time.time()
    done = subprocess.run(
        [*CLI, "launch", "-n", str(ranks), "--launcher", launcher, chapter, "--out", str(out / name), *words],
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip() or done.stdout)[-1500:]}")
    rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    return json.loads((out / name / "summary.json").read_text()), rows, time.time() - began


def compare(out, ranks, settings, dtypes, ways=WAYS, launcher="torchrun"):
    "Each way on one GPU and on several: how far apart, how fast, how much memory."
    for dtype in dtypes:
        alone = {}
        for chapter, mode, sharding in ways:
            for n in (1, ranks):
                if (chapter, mode, n) in alone:
                    continue  # one rank has nothing to share out
                name = f"{settings['base_model']}-{chapter}-{mode}-{sharding}-{dtype}-{launcher}-{n}"
                try:
                    summary, rows, seconds = start(
                        out, n, chapter, name, launcher, mode=mode, sharding=sharding, **{**settings, "dtype": dtype}
                    )
                except RuntimeError as e:
                    keep(out, kind="run", name=name, failed=str(e))
                    continue
                steps, lost = (
                    [r for r in rows if "train_loss_nats" in r],
                    [r.get("train_loss_nats", r.get("valid_loss_nats")) for r in rows if "samples" not in r],
                )
                if n == 1:
                    alone[chapter, mode, 1] = lost
                apart = (
                    max(abs(a - b) for a, b in zip(lost, alone[chapter, mode, 1], strict=True))
                    if (chapter, mode, 1) in alone
                    else None
                )
                at = steps[min(SETTLED, len(steps) - 2)]
                keep(
                    out,
                    kind="run",
                    base=settings["base_model"],
                    engine=summary["engine"],
                    mode=mode,
                    sharded=summary["sharded"],
                    dtype=dtype,
                    launcher=summary["launcher"],
                    world_size=summary["world_size"],
                    device=summary["device"],
                    furthest_from_one_nats=apart,
                    tokens_per_s=(steps[-1]["real_tokens"] - at["real_tokens"]) / (steps[-1]["step_s"] - at["step_s"]),
                    peak_mem_gib=summary["peak_mem_gib"],
                    predicted_gib=summary["predicted"]["peak_mem_gib"],
                    valid_loss_nats_best=summary["valid_loss_nats_best"],
                    ranks=[[r["device"], r["share"], r["peak_mem_gib"]] for r in summary["ranks"]],
                    seconds=seconds,
                )


def resume(out, ranks):
    "Checkpoints written by several ranks, gone on with by one, and the other way round."
    for chapter, mode, sharding in (
        ("finetune", "full", "fsdp"),
        ("finetune", "lora", "none"),
        ("loop", "full", "none"),
    ):
        runs = {n: out / f"tiny-{chapter}-{mode}-{sharding}-float32-torchrun-{n}" for n in (1, ranks)}
        if not runs[1].is_dir():
            runs[1] = out / f"tiny-{chapter}-{mode}-none-float32-torchrun-1"
        for before, after in ((ranks, 1), (1, ranks)):
            name = f"resumed-{chapter}-{mode}-{sharding}-{before}-{after}"
            cut(runs[before], out / name, 4)
            try:
                start(out, after, chapter, name, mode=mode, sharding=sharding, resume=True, **TINY)
                same(runs[1], out / name, 1e-5)
                keep(
                    out,
                    kind="resume",
                    engine=chapter,
                    mode=mode,
                    sharding=sharding,
                    ranks_before=before,
                    ranks_after=after,
                    equal_within=1e-5,
                )
            except (RuntimeError, AssertionError) as e:
                keep(out, kind="resume", name=name, failed=f"{type(e).__name__}: {e}"[-1500:])


def failures(out, ranks):
    "A rank raises or is killed while the others wait for it in a collective on their GPUs."
    import nbformat

    cell = nbformat.v4.new_code_cell
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                cell("how = 'ok'", metadata={"tags": ["parameters"]}),
                cell(
                    "import os, time, torch\n"
                    "from pathlib import Path\n"
                    "from simpsons_llm.machine.device import *\n"
                    "from simpsons_llm.machine.distributed import *\n"
                    "r = find_ranks(); d = find_device('auto', local_rank=r.local_rank)\n"
                    "join_group(r, d)\n"
                    "one = torch.ones(1, device=d.torch); torch.distributed.all_reduce(one); "
                    "torch.accelerator.synchronize(); print(r, one.item(), torch.distributed.get_backend())"
                ),
                cell(
                    "if r.rank == 1:\n"
                    "    Path('grief').write_text(str(time.time()))\n"
                    "    if how == 'raise': raise ValueError('the film is torn')\n"
                    "    os.kill(os.getpid(), 9)\n"
                    "torch.distributed.all_reduce(one); torch.accelerator.synchronize(); print('the end')"
                ),
            ]
        ),
        out / "grief.ipynb",
    )
    for how in ("raise", "kill"):
        done = subprocess.run(
            [*CLI, "launch", "-n", str(ranks), str(out / "grief.ipynb"), "--out", str(out / how), "-p", "how", how],
            cwd=out,
            capture_output=True,
            text=True,
            timeout=200,
        )
        left = subprocess.run(["pgrep", "-fc", "ipykernel_launcher"], capture_output=True, text=True).stdout.strip()
        keep(
            out,
            kind="failure",
            how=how,
            seconds=time.time() - float((out / "grief").read_text()),
            code=done.returncode,
            kernels_left=int(left),
            message=done.stderr.strip().splitlines()[-1].replace(f"{out}/", "")[-300:],
        )


def main(out, part, ranks=2):
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    if not (out / "data").is_dir():
        prepare(PrepareConfig(out=str(out / "data")))
    if part == "mpich":
        return compare(out, ranks, TINY, ("float32",), WAYS[:1], "mpich")
    if part == "smollm2":
        return compare(out, ranks, SMOLLM2, ("bfloat16", "float32"))
    print(subprocess.run([*CLI, "doctor"], capture_output=True, text=True).stdout, flush=True)
    compare(out, ranks, TINY, ("float32",))
    resume(out, ranks)
    failures(out, ranks)
    done = subprocess.run(
        [
            *CLI,
            "bench",
            "collectives",
            "-n",
            str(ranks),
            "--json",
            str(out / "collectives.json"),
            "--plot",
            str(out / "collectives.png"),
        ],
        capture_output=True,
        text=True,
    )
    print(done.stdout[-3000:], done.stderr[-500:], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], *map(int, sys.argv[3:]))
