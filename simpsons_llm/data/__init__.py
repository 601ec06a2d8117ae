"""From a script to batches of tokens: lines, formats, prepared data, prompts, samples, packing, batches.

Here lives everything about text and tokens, the tokenizer among it; a token learns by the weight that it has here.
Not here: weights of a model, devices, steps. This part imports `machine` alone.
"""
