# %% [markdown]
# # Words
#
# > The words that the book uses, each with a number or a picture, and the way from script to character in one drawing.
#
# None of this has to be known before [the first chapter](00_start.ipynb). It is looked up. The numbers are made here, by the base model of the book.

# %%
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm import Character, prepare
from simpsons_llm.data.samples import scene_samples

homer = Character.load("smollm2-135m", "Homer Simpson", device="cpu")
model, tokenizer = homer.model, homer.maker.tokenizer
line = "Marge Simpson: Homer, the dog is wearing your tie again."


# %% [markdown]
# ## The way
#
# Each box is a chapter or two, and what comes out of one goes into the next. Nothing flows back up.

# %%
def draw_way():
    "From the script to the character, as one drawing."
    rows = [
        [("script", "a file"), ("lines", "who, what"), ("scenes", "lines in one place"), ("splits", "by episode")],
        [("tokens", "numbers"), ("samples", "a weight each"), ("rows", "end to end"), ("batches", "for a step")],
        [("base model", "frozen"), ("+ adapter", "LoRA"), ("steps", "on 1..N ranks"), ("run", "a folder")],
        [("loss", "measured"), ("answers", "asked"), ("one model", "given away"), ("Ollama, ...", "served")],
    ]
    colors, titles = ("#f2c500", "#4f86c6", "#c0504d", "#6aa84f"), ("data", "tokens", "training", "talking")
    _, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for y, (row, color, title) in enumerate(zip(rows, colors, titles)):
        ax.text(-0.12, -y, title, ha="right", va="center", color="grey")
        for x, (name, what) in enumerate(row):
            ax.add_patch(plt.Rectangle((x, -y - 0.3), 0.8, 0.6, facecolor=color, alpha=0.35, edgecolor=color))
            ax.text(x + 0.4, -y, f"{name}\n{what}", ha="center", va="center", fontsize=9)
            if x < 3 and y < 3:
                ax.annotate("", (x + 1, -y), (x + 0.8, -y), arrowprops={"arrowstyle": "->"})
        if y < 3:
            ax.annotate("", (0.4, -y - 0.7), (3.4, -y - 0.3), arrowprops={"arrowstyle": "->", "color": "grey"})
    ax.set(xlim=(-0.7, 3.9), ylim=(-3.4, 0.4))
    ax.axis("off")


draw_way()

# %% [markdown]
# ## Token
#
# A model reads numbers. A *token* is a piece of text that has one: a word, a part of a word, a sign. The *vocabulary* is the list of them. Everything in this book is counted in tokens.

# %%
ids = tokenizer(line).input_ids
print(f"{len(line)} letters, {len(ids)} tokens, of a vocabulary of {len(tokenizer):,}")
pd.DataFrame({"token": [tokenizer.decode([i]) for i in ids], "number": ids}).T

# %% [markdown]
# ## Logit and probability
#
# For each place the model gives every token of the vocabulary a number, the *logit*: how well it would go on from here. The softmax, $p_i = e^{z_i} / \sum_j e^{z_j}$, makes probabilities of them. Here are the five likeliest first tokens of Homer's answer:

# %%
prompt = tokenizer(f"[Simpson Home]\n{line}\nHomer Simpson:", return_tensors="pt")
with torch.no_grad():
    logits = model(**prompt).logits[0, -1].float()
probability = logits.softmax(0)
best = probability.topk(5).indices
names = [repr(tokenizer.decode([i])) for i in best]
pd.DataFrame({"logit": logits[best], "probability": probability[best]}, index=names).round(3)

# %% [markdown]
# ## Nat, loss and perplexity
#
# How surprised is the model by the token that really comes? By $-\ln p$ *nats*: none at $p = 1$, 0.69 at a half, 4.6 at a hundredth. The *loss* is the mean over the tokens of a line, and training makes it smaller. $e^{\text{loss}}$ is the *perplexity*: as if the model chose blindly among so many tokens.

# %%
with torch.no_grad():
    nats = -model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)[range(len(ids) - 1), ids[1:]]
loss = nats.mean().item()
bars = pd.Series(nats.tolist(), [repr(tokenizer.decode([i])) for i in ids[1:]])
ax = bars.plot.bar(figsize=(7, 2.8), color="#4f86c6", ylabel="nats")
ax.axhline(loss, color="#c0504d", label=f"loss {loss:.2f} nats per token, perplexity {math.exp(loss):.0f}")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Parameter and gradient
#
# The model is a long formula with many numbers in it, its *parameters* or *weights*. The *gradient* says for each of them in which direction the loss falls, and the *learning rate* how far one goes in that direction at each step.
#
# ## Adapter, and the first meaning of rank
#
# *LoRA* leaves all parameters as they are (*frozen*) and adds to each matrix of the model a product of two thin ones. Their width is the *rank* $r$ of the adapter, and these numbers alone are trained:

# %%
n, r = 576, 16
whole = sum(p.numel() for p in model.parameters())
print(f"the model: {whole:,} parameters")
print(f"one of its matrices: {n} x {n} = {n * n:,}; an adapter of rank {r} beside it: 2 x {n} x {r} = {2 * n * r:,}")

# %% [markdown]
# ## Rank, the second meaning
#
# When several processors train together, each runs a copy of the program, and each copy is a *rank*: rank 0, rank 1 and so on; their number is the *world size*. The two meanings have nothing to do with each other. Where a chapter says "on four ranks" it means processes, where it says "of rank 4" it means matrices.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.2), layout="constrained")
for x, width, height, color, name in (
    (0, 8, 8, "#c9d7ea", "frozen\nmatrix"),
    (10, 1, 8, "#f2a65a", "B"),
    (12, 8, 1, "#f2a65a", "A"),
):
    left.add_patch(plt.Rectangle((x, -height), width, height, facecolor=color, edgecolor="black"))
    left.text(x + width / 2, -4 if width == height else -height - 0.9, name, ha="center", va="center")
left.text(9, -4, "+", ha="center", va="center", fontsize=14)
left.set(xlim=(-0.5, 20.5), ylim=(-9.5, 0.5))
left.set_title("rank of an adapter: how thin B and A are", fontsize=9)
for i in range(4):
    right.add_patch(plt.Rectangle((i * 2.4, 0), 2, 2, facecolor="#c9d7ea", edgecolor="black"))
    right.text(i * 2.4 + 1, 1, f"rank {i}", ha="center", va="center")
right.set(xlim=(-0.3, 9.5), ylim=(-0.7, 2.7))
right.set_title("ranks of a launch: copies of the program", fontsize=9)
for ax in (left, right):
    ax.axis("off")

# %% [markdown]
# ## Batch, step, epoch
#
# A *sample* is what the model reads at once: a scene, or a window of a long one. A *batch* is so many samples, and after each batch the *optimizer* corrects the parameters once: that is a *step*. If a batch does not fit into memory, it is computed in *micro-batches* whose gradients are added up. An *epoch* is one pass over all training samples.

# %%
data = prepare("springfield")
samples, _ = scene_samples(data.parts["train"], homer.maker, max_seq_len=512)
print(f"{len(data.parts['train'])} training scenes, {len(samples)} samples of up to 512 tokens")
print(f"2 samples in a batch: {math.ceil(len(samples) / 2)} steps are an epoch")

# %% [markdown]
# ## Train, valid, test
#
# An *episode* is what was written in one piece, and a *scene* what is said in one place without a break. What was learned by heart says nothing. So whole episodes are kept apart: *valid* to choose by (which step, which setting), *test* to look at once, at the end. *Held-out* means either.

# %%
pd.DataFrame({name: {"scenes": len(s), "lines": sum(len(x.lines) for x in s)} for name, s in data.parts.items()}).T

# %% [markdown]
# ## Recipe, template, packing, and the seed
#
# A *recipe* is a set of settings that go together: `book`, and `seed`, that of the project which this one carries on and calls *the seed*. (The `seed` of a draw is another word for where random numbers begin.) The *template* is the form in which a scene becomes text: as a script, as instructions, as a chat. *Packing* lays samples end to end in one row, each for itself, instead of filling the short ones up.
#
# ## Sampling and temperature
#
# An answer is drawn token by token, by the probabilities. A *temperature* below 1 sharpens them first, $p_i \propto e^{z_i / T}$: safer words. Above 1 they are flattened: bolder ones.

# %%
pd.DataFrame({f"temperature {t}": (logits / t).softmax(0)[best] for t in (0.5, 1.0, 2.0)}, index=names).round(3)

# %%
{t: homer.says(line, temperature=t, max_new_tokens=20) for t in (0.3, 0.8, 2.0)}
