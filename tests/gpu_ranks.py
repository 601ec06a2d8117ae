"""One rank on a GPU, with and without a group: the same losses. Run by hand: python tests/gpu_ranks.py OUT [MODE]

A group of one rank takes the way of many: NCCL or xccl beside gloo, DDP or FSDP around the model, batches dealt out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SETTINGS = dict(
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


def one(out, name, mode, way, more):
    "One run in a process of its own."
    from simpsons_llm.train import finetune as F
    from simpsons_llm.train import lifecycle as L

    if way != "alone":
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29611"
        )
        import torch
        from torch import distributed as dist

        from simpsons_llm.machine.device import find_device

        d = find_device()
        getattr(torch, d.type).set_device(0)
        dist.init_process_group(f"cpu:gloo,{d.type}:{d.backend}", rank=0, world_size=1)
        share = L.share_model
        if way == "fsdp":
            L.share_model = lambda *a: (share(*a)[0], True)
    s = F.finetune(F.FinetuneConfig(data=str(out / "data"), run=str(out / name), mode=mode, **{**SETTINGS, **more}))
    print(
        "RESULT",
        json.dumps(
            {
                k: s[k]
                for k in (
                    "sharded",
                    "valid_loss_nats_base",
                    "valid_loss_nats_best",
                    "tokens_per_s",
                    "peak_mem_gib",
                    "device",
                    "layout",
                )
            }
        ),
        flush=True,
    )


def main(out, modes=("lora", "full")):
    from simpsons_llm.data.prepare import PrepareConfig, prepare
    from simpsons_llm.machine.job import read_jsonl, write_json

    prepare(PrepareConfig(out=str(out / "data")))
    rows, kept = [], {}
    for mode in modes:
        for way in ("alone", "group", "fsdp"):
            for dtype in ("float32", "bfloat16"):
                name = f"{mode}-{way}-{dtype}"
                p = subprocess.run(
                    [sys.executable, __file__, str(out), name, mode, way, json.dumps({"dtype": dtype})],
                    capture_output=True,
                    text=True,
                )
                result = next(
                    (
                        json.loads(line.removeprefix("RESULT "))
                        for line in p.stdout.splitlines()
                        if line.startswith("RESULT ")
                    ),
                    None,
                )
                if result is None:
                    print(name, "failed:", (p.stderr.strip().splitlines() or ["?"])[-6:])
                    rows.append({"name": name, "failed": True})
                    continue
                kept[mode, way, dtype] = [
                    r.get("train_loss_nats", r.get("valid_loss_nats")) for r in read_jsonl(out / name / "metrics.jsonl")
                ]
                apart = max(abs(a - b) for a, b in zip(kept[mode, way, dtype], kept[mode, "alone", dtype]))
                rows.append({"name": name, **result, "furthest_from_alone_nats": apart})
                print(rows[-1], flush=True)
    write_json(out / "ranks.json", rows)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    if len(sys.argv) == 3:
        main(out, sys.argv[2:])
    elif len(sys.argv) > 2:
        one(out, *sys.argv[2:5], json.loads(sys.argv[5]))
    else:
        main(out)
