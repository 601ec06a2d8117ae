"""Packing on an accelerator, run by hand: `python tests/gpu_packing.py`. Prints one JSON line for each finding.

Equality: the loss and gradients of samples one by one, against filled up, end to end (the
variable-length kernel), sequence by sequence, and a block-diagonal mask.
Speed: training steps of a Llama with head size 100, real tokens per second, as ratios to filled-up batches.
"""

import json
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import simpsons_llm.data.packing as packing
from simpsons_llm.data.packing import EndToEnd, to_device, use_isolated
from simpsons_llm.data.samples import Sample
from simpsons_llm.machine.device import find_device, synchronize
from simpsons_llm.model.loss import PadRight, token_losses

KERNEL = packing.varlen_kernel


def samples_of(n, vocabulary, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = (95 * torch.exp(0.45 * torch.randn(n, generator=g))).long().clamp(24, 256).tolist()
    return [
        Sample(torch.randint(3, vocabulary, (k,), generator=g).tolist(), [0.0] * 2 + [1.0] * (k - 2)).features()
        for k in lengths
    ]


def model_of(device, layers, width, vocabulary):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 100,
        num_key_value_heads=width // 100,
        head_dim=100,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(
        device.torch, getattr(torch, device.dtype)
    )


WAYS = {
    "filled up": (PadRight, False, None),
    "end to end, kernel": (EndToEnd, True, KERNEL),
    "end to end, sequence by sequence": (EndToEnd, True, lambda query: None),
    "block-diagonal mask": (EndToEnd, False, None),
}


def batches_of(way, samples, device, at_once):
    collate, isolated, kernel = WAYS[way]
    packing.varlen_kernel = kernel or KERNEL
    return [
        to_device(collate(0)(samples[i : i + at_once]), device.torch) for i in range(0, len(samples), at_once)
    ], isolated


def loss_and_gradients(model, batches):
    model.zero_grad()
    total = 0.0
    for b in batches:
        losses, weights = token_losses(model, b)
        loss = (losses * weights).sum() / 1000
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten().float() for p in model.parameters()])


def main():
    for dtype in ("float32", "bfloat16"):
        device = find_device("auto", dtype)
        samples = samples_of(24, 500)
        want, grads = loss_and_gradients(
            model_of(device, 3, 400, 500), [to_device(PadRight(0)([s]), device.torch) for s in samples]
        )
        for way in WAYS:
            batches, isolated = batches_of(way, samples, device, 8)
            model = model_of(device, 3, 400, 500)
            if isolated:
                use_isolated(model)
            got, mine = loss_and_gradients(model, batches)
            print(
                json.dumps(
                    {
                        "device": device.name,
                        "dtype": dtype,
                        "way": way,
                        "kernel": bool(
                            isolated
                            and packing.varlen_kernel(torch.zeros(1, device=device.torch, dtype=getattr(torch, dtype)))
                        ),
                        "loss_difference": abs(got - want),
                        "gradient_difference_relative": ((mine - grads).norm() / grads.norm()).item(),
                    }
                ),
                flush=True,
            )
            limit = 1e-5 if dtype == "float32" else 2e-2
            assert abs(got - want) / want < limit and (mine - grads).norm() < limit * grads.norm() + (
                0.03 * grads.norm() if dtype != "float32" else 0
            ), way
    device, base = find_device(), None
    samples = samples_of(256, 32_000)
    for way in WAYS:
        batches, isolated = batches_of(way, samples, device, 64)
        model = model_of(device, 12, 1600, 32_000)
        if isolated:
            use_isolated(model)
        tokens, seconds = sum(int(b["lengths"].sum()) for b in batches), []
        for _i in range(6):
            synchronize(device)
            start = time.perf_counter()
            loss_and_gradients(model, batches)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        rate = tokens / sorted(seconds[2:])[1]
        base = base or rate
        print(
            json.dumps(
                {
                    "device": device.name,
                    "dtype": device.dtype,
                    "way": way,
                    "tokens_per_s": round(rate),
                    "ratio_to_filled_up": round(rate / base, 2),
                }
            ),
            flush=True,
        )
        del model, batches
        torch.cuda.empty_cache() if device.type == "cuda" else None
    packing.varlen_kernel = KERNEL


if __name__ == "__main__":
    main()
