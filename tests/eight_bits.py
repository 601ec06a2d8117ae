"""Do the numbers survive when the frozen products of a LoRA run are made in 8 bits? By hand, on a CPU:

    python tests/eight_bits.py OUT [--steps 24] [--tokens 256] [--scenes 12]

Fine-tunes SmolLM2-135M on the book's script with the book's recipe, once for each way of WAYS: the same samples in the
same order, the same start. What a kernel would compute is emulated in 32 bits: each operand is rounded to the grid of
its format with a scale for each of its rows (what `torch._scaled_mm` calls rowwise), multiplied, and scaled back. Sums
stay in 32 bits, which is kinder than a card may be, and the adapter's own products are left alone. No speed is measured
here. A way that OUT has already is left out, so that a second call goes on.

Writes OUT/eight_bits.jsonl, which the chapter on speed reads: one JSON line a way.
"""

import argparse
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from simpsons_llm.machine.job import read_jsonl
from simpsons_llm.train.lifecycle import run_job
from simpsons_llm.train.loop import Loop, LoopConfig

# name -> formats of the frozen weight, of the inputs, and of the gradients that come back; None: 32 bits
WAYS = {
    "plain": (None, None, None),
    "fp8": ("e4m3", "e4m3", "e4m3"),
    "int8": ("int8", "int8", "int8"),
    "int4 weights": ("int4", None, None),
    "another start": (None, None, None),
    "fp8 weights": ("e4m3", None, None),
    "bf16": ("bf16", "bf16", "bf16"),
    "fp8, gradients e5m2": ("e4m3", "e4m3", "e5m2"),
}
FLOATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
WHOLE = {"int8": 127, "int4": 7}


def on_grid(x, kind):
    "The values of x in a format, and the scale of each row (the last dimension is a row); their product is about x."
    if kind in (None, "bf16"):
        return (x.bfloat16().float() if kind else x), torch.ones(1, 1)
    most = torch.finfo(FLOATS[kind]).max if kind in FLOATS else WHOLE[kind]
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / most
    # a quotient may be the largest number and a last bit more, which is no number in e4m3
    x = (x / scale).clamp(-most, most)
    return (x.to(FLOATS[kind]).float() if kind in FLOATS else x.round()), scale


class FrozenProduct(torch.autograd.Function):
    "x W^T of rounded operands, and its backward pass."

    @staticmethod
    def forward(ctx, x, weight, scale, inputs, gradients):
        ctx.save_for_backward(weight, scale)
        ctx.gradients = gradients
        x, of_rows = on_grid(x, inputs)
        return x @ weight.T * of_rows * scale.T

    @staticmethod
    def backward(ctx, gradient):
        weight, scale = ctx.saved_tensors
        # the sum runs over the rows of W now, so their scales cannot wait until it is made: the gradient takes them
        gradient, of_rows = on_grid(gradient * scale.T, ctx.gradients)
        return gradient @ weight * of_rows, None, None, None, None


def frozen_layers(model):
    "The linear layers that an adapter lies on."
    return [m.base_layer for m in model.modules() if isinstance(m, LoraLayer)]


def rounded_product(weight, scale, inputs, gradients, x):
    "A layer's forward pass."
    return FrozenProduct.apply(x, weight, scale, inputs, gradients)


def round_products(model, weights, inputs, gradients):
    "Make the frozen products in these formats, from now on."
    for layer in frozen_layers(model):
        assert layer.bias is None and not layer.weight.requires_grad
        grid, scale = on_grid(layer.weight.detach(), weights)
        layer.forward = partial(rounded_product, grid, scale, inputs, gradients)


def one(name, steps, tokens, scenes):
    "A run, and what its record says."
    jobs, formats = [], WAYS[name]

    def engine(job, model):
        jobs.append(job)
        job.samples["valid"] = job.samples["valid"][:scenes]
        if any(formats):
            round_products(model, *formats)
        if name == "another start":
            torch.manual_seed(1)
            for m in model.modules():
                if isinstance(m, LoraLayer):
                    m.reset_lora_parameters("default", True)
        return Loop(job, model)

    run, begun = Path(tempfile.mkdtemp()), time.perf_counter()
    config = LoopConfig(
        run=str(run / "run"),
        base_model="smollm2-135m",
        max_seq_len=tokens,
        max_steps=steps,
        eval_steps=steps,
        sample_steps=0,
        device="cpu",
        dtype="float32",
    )
    summary = run_job(config, engine)
    rows = [r for r in read_jsonl(run / "run" / "metrics.jsonl") if "train_loss_nats" in r]
    shutil.rmtree(run)
    # an adapter is used on weights as they are, whatever it was trained on
    for layer in frozen_layers(jobs[0].engine.model) if any(formats) else ():
        del layer.forward
    return {
        "name": name,
        **dict(zip(("weights", "inputs", "gradients"), (f or "fp32" for f in formats))),
        "losses": [r["train_loss_nats"] for r in rows],
        "norms": [round(r["grad_norm"], 4) for r in rows],
        "valid_loss_nats_base": summary["valid_loss_nats_base"],
        "valid_loss_nats": summary["valid_loss_nats_best"],
        "valid_loss_nats_plain_weights": jobs[0].score("valid") if any(formats) else summary["valid_loss_nats_best"],
        "valid_samples": len(jobs[0].samples["valid"]),
        "max_seq_len": tokens,
        "base_model": "smollm2-135m",
        "recipe": config.recipe,
        "wall_s": round(time.perf_counter() - begun, 1),
        "device": "cpu, emulated in float32",
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--scenes", type=int, default=12, help="validation samples that are scored")
    parser.add_argument("--tokens", type=int, default=256, help="most tokens of a sample; the recipe's 512 take longer")
    args = parser.parse_args()
    file = Path(args.out) / "eight_bits.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {r["name"] for r in read_jsonl(file)} if file.is_file() else set()
    for name in (n for n in WAYS if n not in done):
        row = one(name, args.steps, args.tokens, args.scenes)
        with open(file, "a") as f:
            f.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
