"""A model in hand: base models found and loaded whole, adapters put on and taken off, questions asked, losses told.

Here lives what works on a model that is ready: `base`, `adapter`, `infer`, `loss`.
Not here: optimizers, steps, run folders of training. This part imports `data`, `lora` and `machine`.
"""
