"""Is it the character? Measures of a voice, the job that takes them, and what raises them.

Here lives what judges lines that a model wrote, beside those of people: `voice`, `evaluate`, `contrast`, `record`.
Not here: the steps of training, and how a line is drawn. This part imports `data`, `lora`, `model`, `train` and `machine`.
"""
