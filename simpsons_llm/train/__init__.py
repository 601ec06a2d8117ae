"""The steps and what surrounds them: settings, costs, sharding, records, checkpoints, two engines, known mistakes.

Here lives what changes weights and what is written down about it; a new tracker belongs into `history`.
Not here: how text becomes tokens (`data`), how ranks are started (`ranks`), how a model is asked (`model`).
"""
