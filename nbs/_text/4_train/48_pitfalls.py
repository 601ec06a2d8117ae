# %%
#| default_exp train.pitfalls

# %% [markdown]
# # Eight ways to train nothing
#
# > Mistakes that raise no error, each with a small run that shows what it costs, and with what guards against it here.
#
# A training program that is wrong seldom stops. It prints losses, writes checkpoints, and learns nothing, or half as well as it could. The eight mistakes of this chapter are not invented: each was found in a program that this book carries on, and each is common. For each there is a run of seconds with a model of a hundred thousand parameters that knows nothing yet, with the mistake and without. Three of them concern what a model knows already; those were also run with SmolLM2-135M on a GPU (`tests/gpu_lessons.py`), and the results are shown beside.

# %%
#| export
from dataclasses import replace

from simpsons_llm.data.samples import Sample
from simpsons_llm.machine.job import require
from simpsons_llm.train.loop import weighted_loss

# %%
#| hide
import tempfile

import pandas as pd
import torch

from simpsons_llm.data.packing import use_isolated
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.device import find_device, find_ranks
from simpsons_llm.machine.job import chapters_dir, read_jsonl
from simpsons_llm.model.adapter import add_adapter
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.loss import collator, heldout_loss
from simpsons_llm.train.config import make_optimizer, make_schedule
from simpsons_llm.train.lifecycle import plan
from simpsons_llm.train.loop import LoopConfig


# %% [markdown]
# ## What the runs share
#
# A few steps of training, as bare as they can be:

# %%
#| export
def few_steps(
    model,  # a causal language model, with or without adapter
    optimizer,  # a torch optimizer
    batches: list,  # one batch for each step, as a collator makes them
    schedule=None,  # a torch scheduler
) -> list:  # the loss of each step, in nats per unit of weight
    "One step for each batch."
    losses = []
    model.train()
    for batch in batches:
        loss = weighted_loss(model, batch, batch["loss_weights"][:, 1:].sum())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# The data are scenes of the book's script, two in a batch; the model is the tiny one, always with the same random weights. It is trained whole or through an adapter.

# %%
folder = tempfile.mkdtemp()
job = plan(LoopConfig(run=folder, base_model="tiny", max_seq_len=600), find_ranks(), find_device("cpu"))


def fresh(adapter=True):
    "The tiny model as it was made, with or without an adapter."
    base, _ = tiny_model()
    use_isolated(base)
    return add_adapter(base, LoRASettings(r=8, lora_alpha=16), seed=0) if adapter else base


def collate(*samples):
    return collator(fresh(False), 0)([s.features() for s in samples])


batches = [collate(*job.items[at : at + 2]) for at in range(0, 80, 2)]
len(batches), batches[0]["input_ids"].shape

# %% [markdown]
# ## 1. The optimizer before the adapter
#
# `optimizer = AdamW(model.parameters())`, then `model = add_adapter(model)`: the lines are easily written in this order. The optimizer holds the parameters of the base, which adding the adapter has frozen. Those never get a gradient, so each step skips them, and the adapter is in nobody's list. Eight steps on the same batch:

# %%
base = fresh(adapter=False)
early = torch.optim.AdamW(base.parameters(), lr=1e-2)
model = add_adapter(base, LoRASettings(r=8, lora_alpha=16), seed=0)
wrong, untouched = few_steps(model, early, batches[:1] * 8), model
model = fresh()
right = few_steps(model, make_optimizer(model, 1e-2), batches[:1] * 8)
pd.DataFrame({"optimizer first": wrong, "adapter first": right}, index=pd.RangeIndex(1, 9, name="step")).round(3)

# %% [markdown]
# Not a digit moves on the left: `lora_B` began at zero and is there still. `make_optimizer` takes only parameters that can be trained, and refuses a model that has none:

# %% tags=["check"]
assert len(set(wrong)) == 1 and not any(p.any() for n, p in untouched.named_parameters() if "lora_B" in n)
assert right[0] == wrong[0] and right[-1] < right[0] - 0.1

# %%
frozen = fresh(adapter=False).requires_grad_(False)
try:
    make_optimizer(frozen, 1e-2)
except ValueError as e:
    print(e)


# %% [markdown]
# ## 2. Gradients cleared in every micro-batch
#
# Accumulation works because `backward` adds to what is there. With `zero_grad` inside the loop over micro-batches, each clears what the ones before it found. The step is made from the last one alone; the batch is four times as small as it says, and three quarters of the time is spent for nothing.

# %%
def gradient(parts, clear=False):
    "The gradient of a step of several micro-batches, as one vector."
    model, weight = fresh(False).train(), sum(float(p["loss_weights"][:, 1:].sum()) for p in parts)
    for part in parts:
        if clear:
            model.zero_grad()
        weighted_loss(model, part, weight).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def angle(a, b):
    return torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(a, b, dim=0).clamp(-1, 1))).item()


whole, cleared = gradient(batches[:4]), gradient(batches[:4], clear=True)
print(f"length {whole.norm():.2f} and {cleared.norm():.2f}, {angle(whole, cleared):.0f} degrees apart")

# %% tags=["check"]
alone = (
    gradient(batches[3:4])
    * float(batches[3]["loss_weights"][:, 1:].sum())
    / sum(float(b["loss_weights"][:, 1:].sum()) for b in batches[:4])
)
# the last micro-batch, and nothing else
assert torch.allclose(cleared, alone, atol=1e-6)
assert not torch.allclose(cleared, whole, atol=1e-2)


# %% [markdown]
# Here, `zero_grad` stands after the optimizer's step, and tests hold eight micro-batches equal to one batch.

# %% [markdown]
# ## 3. Merging and wrapping again, every epoch
#
# To look at some text between epochs, a program merged the adapter into the base, generated, and put a new adapter on. The merged model is right. But the optimizer still holds the matrices of the *old* adapter, which are part of nothing any more.

# %%
def three_epochs(wrap_again):
    "Mean training loss of each epoch of twelve steps."
    model = fresh()
    optimizer, told = make_optimizer(model, 3e-3), []
    for epoch in range(3):
        if epoch and wrap_again:
            model = add_adapter(model.merge_and_unload(), LoRASettings(r=8, lora_alpha=16), seed=0)
        told.append(sum(few_steps(model, optimizer, batches[:12])) / 12)
    return told


epochs = pd.DataFrame(
    {"merged and wrapped again": three_epochs(True), "left alone": three_epochs(False)},
    index=pd.RangeIndex(1, 4, name="epoch"),
)
epochs.round(3)

# %% [markdown]
# The second epoch is better than the first, since the first was learned; after that nothing is. Text is sampled here from the model as it stands, without touching the adapter (`text_samples`).

# %% tags=["check"]
again, left = epochs["merged and wrapped again"], epochs["left alone"]
assert (
    abs(again[3] - again[2]) < 1e-5 and again[2] < again[1] and left[3] < left[2] - 0.01 and left[3] < again[3] - 0.01
)


# %% [markdown]
# ## 4. The optimizer's state, before there is an optimizer
#
# A resumed run must load what the optimizer remembered. In one program that line stood above the one that makes the optimizer:

# %%
def resume(saved, model):
    optimizer.load_state_dict(saved)  # noqa: F821
    optimizer = torch.optim.AdamW(model.parameters())  # noqa: F841


try:
    resume({}, fresh(False))
except UnboundLocalError as e:
    print("UnboundLocalError:", e)


# %% [markdown]
# That at least is loud, on the day of the first resume. The quiet way to repair it is to leave the line out. Then weights go on and the optimizer begins anew, with means of nothing:

# %%
def six_steps(broken=None):
    "Six steps; after three of them, a break with the optimizer's state kept or lost."
    model = fresh(False)
    optimizer = make_optimizer(model, 3e-3)
    losses = few_steps(model, optimizer, batches[:3])
    if broken:
        state, optimizer = optimizer.state_dict(), make_optimizer(model, 3e-3)
        if broken == "state kept":
            optimizer.load_state_dict(state)
    return losses + few_steps(model, optimizer, batches[3:6])


resumed = pd.DataFrame(
    {"unbroken": six_steps(), "state kept": six_steps("state kept"), "state lost": six_steps("state lost")},
    index=pd.RangeIndex(1, 7, name="step"),
)
resumed.round(4)

# %% tags=["check"]
assert (resumed["unbroken"] == resumed["state kept"]).all()
assert (resumed["unbroken"] == resumed["state lost"])[:4].all() and (resumed["unbroken"] != resumed["state lost"])[
    4:
].all()

# %% [markdown]
# Step 4 is the first after the break; its loss comes before its update, so the paths part at step 5. Tests here hold a resumed run equal to an unbroken one, with adapters, in full, with dropout, and on another number of ranks.

# %% [markdown]
# ## 5. The mean of means
#
# Each micro-batch's loss is a mean over *its* tokens, and those means are averaged. If all micro-batches have as many learned tokens, that is the mean over all. Lines are not of one length. A token in a short micro-batch then counts for more than one in a long one, and what the step learns depends on how samples happened to be grouped.

# %%
by_length = sorted(job.items, key=lambda s: s.learned)
pair = [collate(by_length[0]), collate(by_length[-1])]
counts = [float(p["loss_weights"][:, 1:].sum()) for p in pair]
with torch.no_grad():
    sums = [weighted_loss(fresh(False), p, 1.0).item() for p in pair]
print(
    f"weights of the two micro-batches: {counts[0]:.1f} and {counts[1]:.1f}; "
    f"a token of the short one counts {counts[1] / counts[0]:.0f} times as much in the mean of means"
)
print(
    f"loss: {sum(s / n for s, n in zip(sums, counts)) / 2:.4f} as the mean of means, "
    f"{sum(sums) / sum(counts):.4f} over all tokens"
)


# %%
def mean_of_means(parts):
    "The gradient when each micro-batch is averaged by itself."
    model = fresh(False).train()
    for part in parts:
        (weighted_loss(model, part, part["loss_weights"][:, 1:].sum()) / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


print(f"the two gradients are {angle(mean_of_means(pair), gradient(pair)):.0f} degrees apart")

# %% tags=["check"]
assert counts[1] > 3 * counts[0] and angle(mean_of_means(pair), gradient(pair)) > 5
one_batch = collate(by_length[0], by_length[-1])
# weighted_loss does not care how samples are grouped
assert torch.allclose(gradient(pair), gradient([one_batch]), atol=1e-5)

# %% [markdown]
# ## 6. A warmup as long as the run
#
# `warmup_steps=100` in a run of 100 steps is a learning rate that rises to the end. The large steps come last, and none after them to settle down. What that costs depends on the rate and on what the model has to lose. SmolLM2 with the seed's recipe, 36 steps, three seeds, five peak rates, and the mean held-out loss:

# %%
measured = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "gpu_lessons.jsonl"))
real = measured[
    (measured["kind"] == "warmup") | (measured["kind"] == "prompt") & ~measured["whole_prompt"].astype(bool)
]
real = real.pivot_table(index=["learning_rate", "seed"], columns="warmup", values="valid_loss_nats_best")[
    ["tenth", "all"]
].rename(columns={"tenth": "a tenth of the run", "all": "all of the run"})
apart = (
    (real["all of the run"] - real["a tenth of the run"])
    .groupby("learning_rate")
    .agg(["min", "max"])
    .rename(columns={"min": "all is worse by at least", "max": "at most"})
)
real.groupby("learning_rate").mean().join(apart).rename_axis(index="peak rate", columns=None).round(4)

# %% [markdown]
# At the smallest rate the long one is ahead by 0.02 nats with each seed; at the next two it depends on the seed. Such runs never step too far. At the best of these rates (0.01) the warmup that lasts all the run was worse with each seed, by 0.003 to 0.016 nats; the rate that is too high it forgives, being lower for most of the run. (The second and third seed ran on an H200, the rest on an H100; four runs that were made on both gave the same losses to the last digit.)

# %% tags=["check"]
means = real.groupby("learning_rate").mean()
assert real.shape == (15, 2) and real.notna().all().all() and (means.idxmin() == 0.01).all()
# what the words say
assert 0.002 < apart.loc[0.01].min() and apart.loc[0.01].max() < 0.02 and apart.loc[0.03].max() < 0

# %% [markdown]
# And the tiny model, which begins from nothing and has nothing to lose? Its first steps are the wild ones, and 120 steps are too few to settle anyway:

# %%
shuffled = torch.randperm(len(job.items), generator=torch.Generator().manual_seed(0))[:120]
single = [collate(job.items[i]) for i in shuffled]


def schedule_run(rate, warmup):
    "The held-out loss after a run of the tiny model, trained whole."
    model = fresh(False)
    optimizer = make_optimizer(model, rate)
    few_steps(model, optimizer, single, make_schedule(optimizer, warmup, len(single)))
    return heldout_loss(model, short, 0)


short = sorted(job.samples["valid"], key=lambda s: len(s.input_ids))[:15]
pd.DataFrame(
    {name: {3e-3: schedule_run(3e-3, warmup)} for name, warmup in (("a tenth of the run", 12), ("all of the run", 120))}
).rename_axis("peak rate").round(3)


# %% [markdown]
# Here the long one wins. So it is a fault less because it is always the worse than because nobody chose it: a setting of 100 steps became all of a run that happened to have 100. Here the warmup is a share of the run, and cannot be all of it.

# %% [markdown]
# ## 7. The whole prompt in the loss
#
# With `labels = input_ids` the model learns to write its own prompt: the opening sentence of the Alpaca form, headings, other people's lines. The opening is the same in every sample and soon known by heart. So the loss falls fast and far, and says little about the lines that were to be learned.

# %%
#| export
def whole_prompt(
    sample: Sample,  # one that learns its answer
) -> Sample:  # the same, with each token learned
    "As if labels were inputs."
    return replace(sample, loss_weights=[1.0] * len(sample.input_ids))


# %%
rows = plan(
    LoopConfig(run=folder, base_model="tiny", max_seq_len=1200, view="rows", template="alpaca", context_lines=1),
    find_ranks(),
    find_device("cpu"),
)
train, heldout = rows.samples["train"][:160], rows.samples["valid"][:40]
share = sum(s.learned for s in train) / sum(len(s.input_ids) for s in train)
print(f"{share:.0%} of the tokens belong to answers")


def learn(samples, steps=40):
    "Training losses, and the held-out loss of the answers alone."
    model = fresh(False)
    optimizer = make_optimizer(model, 3e-3)
    losses = few_steps(
        model,
        optimizer,
        [collate(*samples[at : at + 4]) for at in range(0, 4 * steps, 4)],
        make_schedule(optimizer, 4, steps),
    )
    return model, losses, heldout_loss(model, heldout, 0)


_, told_all, answers_all = learn([whole_prompt(s) for s in train])
answering, told, answers = learn(train)
pd.DataFrame(
    {
        "training loss at the end": [sum(told_all[-5:]) / 5, sum(told[-5:]) / 5],
        "held-out loss of the answers": [answers_all, answers],
    },
    index=["whole prompt", "answer alone"],
).round(3)

# %% tags=["check"]
assert share < 0.25 and answers_all - sum(told_all[-5:]) / 5 > 0.1 and abs(sum(told[-5:]) / 5 - answers) < 0.1

# %% [markdown]
# The training loss of the first row promises what the second column does not keep; that of the second row is about what it seems. A model that begins from nothing gains from any text, prompts too, so the two answer equally well here. One that knows English has nothing to gain from learning a form by heart. SmolLM2 with the seed's recipe, three seeds each:

# %%
prompts = measured[measured["kind"] == "prompt"]
fell = (prompts["valid_loss_nats_base"] - prompts["valid_loss_nats_best"]).groupby(
    prompts["whole_prompt"].map({True: "whole prompt in the loss", False: "answer alone"})
)
fell.agg(["mean", "min", "max", "count"]).round(3).rename_axis("by how much the held-out loss fell")

# %% [markdown]
# Learning the whole prompt gave away four fifths of what could be learned in these 36 steps.

# %% tags=["check"]
assert fell.max()["whole prompt in the loss"] < 0.25 * fell.min()["answer alone"]


# %% [markdown]
# ## 8. Asked in other words than it was taught
#
# In training the answer followed `### Response:`. The program that let the character speak asked with `### Output:`, other indentation, and a misspelt name of the show. Nothing fails. The model was taught to answer to one form and is shown another.

# %%
#| export
def other_words(
    sample: Sample,  # one whose learned tokens stand at its end
    tokenizer,  # the tokenizer of its text
    old: str,  # words of the prompt
    new: str,  # words in their place
) -> Sample:  # the same answer after another prompt; ValueError if the prompt has no such words
    "Ask for the same answer in other words."
    begin = next(i for i, w in enumerate(sample.loss_weights) if w)
    prompt = tokenizer.decode(sample.input_ids[:begin])
    require(old in prompt, f"the prompt does not contain {old!r}; it is {prompt[-80:]!r} at its end")
    ids = tokenizer(prompt.replace(old, new), add_special_tokens=False)["input_ids"]
    return replace(
        sample,
        input_ids=ids + list(sample.input_ids[begin:]),
        loss_weights=[0.0] * len(ids) + list(sample.loss_weights[begin:]),
    )


# %%
tokenizer = rows.maker.tokenizer
asked = {
    "### Response:": heldout,
    "### Output:": [other_words(s, tokenizer, "### Response:", "### Output:") for s in heldout],
}
{words: round(heldout_loss(answering, samples, 0), 5) for words, samples in asked.items()}

# %% tags=["check"]
assert other_words(heldout[0], tokenizer, "### Response:", "### Response:") == heldout[0]
assert (
    "### Output:" in tokenizer.decode(asked["### Output:"][0].input_ids)
    and asked["### Output:"][0].learned == heldout[0].learned
)
try:
    other_words(heldout[0], tokenizer, "### Antwort:", "x")
    raise AssertionError
except ValueError as e:
    assert "### Antwort:" in str(e)

# %% [markdown]
# The tiny model has not learned to read headings in forty steps, so it does not mind. SmolLM2 does, after the three runs from above, though the answers are the same and only one word before them is another:

# %%
answer = prompts[~prompts["whole_prompt"].astype(bool)].astype({"seed": int}).set_index("seed")
words = pd.DataFrame({"### Response:": answer["valid_loss_nats_best"], "### Output:": answer["other_words_nats"]})
words.assign(worse=words["### Output:"] - words["### Response:"]).round(4)

# %% tags=["check"]
assert (words["### Output:"] - words["### Response:"] > 0.01).all()

# %% [markdown]
# The wrong word alone costs 0.013 nats, a fifteenth of what the training brought, and it stood beside other differences. In this book it cannot happen: training and serving take their text from one function, and a check holds the bytes equal.
