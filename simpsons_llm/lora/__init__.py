"""What LoRA is: the layer, what fine-tuning changes in a matrix, and the variants.

Here lives the theory on plain PyTorch, each formula with its source; a new variant belongs into `variants`.
Not here: scripts, base models, runs. PEFT is imported only where a layer of its own is compared with ours or made.
"""
