"""Predicted beside measured cost on an accelerator, run by hand: `python tests/gpu_costs.py OUT`.

Writes OUT/gpu_costs.jsonl, which the chapter on benchmarks shows. Besides the settings of `simpsons-llm bench costs`:
a model of 3.4 billion random weights with its base in 4 bits (needs bitsandbytes).
"""

import json
import sys
from pathlib import Path


def four_bits():
    "QLoRA: weights and peak memory, predicted and measured."
    import torch
    from transformers import AutoModelForCausalLM

    from simpsons_llm.data.packing import use_isolated
    from simpsons_llm.machine.device import find_device, peak_memory_gib, reset_peak_memory
    from simpsons_llm.model.adapter import add_adapter
    from simpsons_llm.model.base import OPEN_LLAMA, load_base, load_config, load_tokenizer
    from simpsons_llm.train.config import make_optimizer
    from simpsons_llm.train.cost import Recipe, estimate, make_batch, micro_step, update

    device, folder = find_device(), "/tmp/gpu_costs/big"
    with device.torch:
        model = AutoModelForCausalLM.from_config(load_config(OPEN_LLAMA), dtype=getattr(torch, device.dtype))
    model.save_pretrained(folder)
    load_tokenizer("smollm2-135m").save_pretrained(folder)
    del model
    torch.cuda.empty_cache() if device.type == "cuda" else None
    recipe = Recipe(seq_lens=(512,) * 8, quantization="nf4")
    told = estimate(OPEN_LLAMA, recipe, device)
    base, _ = load_base(folder, device, "nf4")
    held = getattr(torch, device.type).memory_allocated() / 2**30
    use_isolated(base)
    model = add_adapter(base, recipe.lora).train()
    optimizer, batch = make_optimizer(model, 1e-5, fused=True), make_batch(recipe, device.torch)
    reset_peak_memory(device)
    for _ in range(3):
        micro_step(model, batch, device.dtype)
        update(model, optimizer)
    peak = peak_memory_gib(device)
    yield {
        "setting": "3B: 4 bits (nf4), r 16, 8 x 512",
        "base": OPEN_LLAMA,
        "tokens": told.tokens,
        "trainable": told.trainable,
        "weights_gib predicted": told.weights_gib,
        "weights_gib measured": held,
        "GiB predicted": told.peak_mem_gib,
        "GiB measured": peak,
        "memory ratio": told.peak_mem_gib / peak,
        "device": device.name,
        "dtype": device.dtype,
    }


def main():
    from simpsons_llm.bench.preparation import bench_costs

    with open(Path(sys.argv[1]) / "gpu_costs.jsonl", "w") as f:
        for row in bench_costs():
            print(json.dumps(row), file=f, flush=True)
        for row in four_bits():
            print(json.dumps(row), file=f, flush=True)
            print(row, flush=True)


if __name__ == "__main__":
    main()
