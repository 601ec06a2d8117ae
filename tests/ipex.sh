#!/usr/bin/env bash
# The finetune chapter beside Intel's extension, on a CPU. Run by hand: it needs torch 2.8 in an environment of its own (about 7 GB).
#
#     bash tests/ipex.sh [VENV] [OUT]
#
# VENV  folder of the virtual environment; made where it is not there, used where it is. Default: a new temporary folder, which is kept
# OUT   folder for the two runs, new or empty. Default: a new temporary folder, which is kept
#
# It runs the chapter under papermill with and without use_ipex, and compares losses and adapters. It ends with 0 if they agree within 1e-4.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-$(mktemp -d)/venv}; out=${2:-$(mktemp -d)}
[ -e "$venv" ] || python3 -m venv "$venv"
[ -x "$venv/bin/python" ] || { echo "error: $venv has no bin/python; give the folder of a virtual environment, or one that is not there" >&2; exit 2; }
mkdir -p "$out"; [ -z "$(ls -A "$out")" ] || { echo "error: $out is not empty; give a new folder" >&2; exit 2; }
venv=$(realpath "$venv"); out=$(realpath "$out")
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" MPLBACKEND=Agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false

ready() { [ -x "$venv/bin/simpsons-llm" ] && python - <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
def numbers(package): return [int(n) for n in version(package).split("+")[0].split(".")[:2]]
try: sys.exit(not (numbers("torch") == numbers("intel-extension-for-pytorch") == [2, 8] and numbers("transformers") < [5, 24]))
except PackageNotFoundError: sys.exit(1)
PY
}
# the extension imports modules that transformers 5.24 no longer has; constraints.txt is for another torch, and left out
ready || python -m pip install -q -e ".[ipex]" "transformers<5.24"
python -c "import pathlib, simpsons_llm, sys; sys.exit(pathlib.Path(simpsons_llm.__file__).parent.parent != pathlib.Path.cwd())"

echo "== simpsons-llm doctor"
simpsons-llm doctor || echo "(doctor ended with $?)"
for name in plain ipex; do
    echo "== $name"
    flag=false; [ $name = plain ] || flag=true
    simpsons-llm run finetune --out "$out/$name" -p base_model tiny -p max_steps 8 -p eval_steps 4 -p use_ipex $flag -p device cpu
done

echo "== report"
python - "$out" <<'PY'
import json, sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import read_jsonl
from simpsons_llm.model.base import load_adapter

out, names, failed = Path(sys.argv[1]), ("plain", "ipex"), []
def check(right, text): print("ok  " if right else "FAIL", text); right or failed.append(text)

rows = {n: read_jsonl(out/n/"metrics.jsonl") for n in names}
summaries = {n: json.loads((out/n/"summary.json").read_text()) for n in names}
print(", ".join(f"{p} {version(p)}" for p in ("torch", "intel-extension-for-pytorch", "transformers", "peft", "accelerate")))
for key, label in (("train_loss_nats", "training loss"), ("valid_loss_nats", "held-out loss")):
    losses = [{r["step"]: r[key] for r in rows[n] if key in r} for n in names]
    print(f"{label:14}", "  ".join(f"step {s}: {v:.5f} / {losses[1].get(s, float('nan')):.5f}" for s, v in losses[0].items()))
    worst = max(abs(v - losses[1].get(s, float("nan"))) for s, v in losses[0].items())
    check(losses[0].keys() == losses[1].keys() and len(losses[0]) > 2 and worst <= 1e-4, f"{label} without and with the extension: at most {worst:.1e} nats apart in {len(losses[0])} places (1e-4 allowed)")
    check(min(losses[1].values()) < losses[1][min(losses[1])], f"{label} with the extension fell, from {losses[1][min(losses[1])]:.4f} to {min(losses[1].values()):.4f}")
for n, text in (("plain", "was not used where it was not asked for"), ("ipex", "was used where it was asked for")):
    said = [o for c in json.loads((out/n/"rank0.ipynb").read_text())["cells"] for o in c.get("outputs", []) if "IPEX - " in json.dumps(o)]
    check(bool(said) == (n == "ipex"), f"the extension {text}, by its own words in the executed notebook")
weights = [load_file(out/n/"adapter"/"adapter_model.safetensors") for n in names]
apart = max((v - weights[1][k]).abs().max().item() for k, v in weights[0].items()) if weights[0].keys() == weights[1].keys() else float("nan")
check(apart <= 1e-4, f"the two adapters: at most {apart:.1e} apart in {len(weights[0])} tensors")
model, _, _ = load_adapter(out/"ipex"/"adapter", find_device("cpu"))
check("intel_extension_for_pytorch" not in sys.modules and {type(m).__module__.split(".")[0] for m in model.modules()} <= {"torch", "transformers", "peft"}, "its adapter loads without the extension")
inputs = torch.arange(40)[None] + 5
with torch.no_grad(): before = model(input_ids=inputs).logits; after = model.merge_and_unload()(input_ids=inputs).logits
check(torch.allclose(before, after, atol=1e-4), f"merged into the base it answers the same: logits at most {(before - after).abs().max().item():.1e} apart")
seconds = {n: max(r["step_s"] for r in rows[n] if "step_s" in r) for n in names}
print(f"seconds in 8 steps: {seconds['plain']:.2f} without, {seconds['ipex']:.2f} with; a ratio of {seconds['ipex']/seconds['plain']:.2f}, which other work on the machine moves")
print(f"runs: {out}" if failed else f"all is well; runs: {out}")
sys.exit(bool(failed))
PY
