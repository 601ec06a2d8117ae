# %%
#| default_exp character.contrast

# %% [markdown]
# # What the character would not say
#
# > After fine-tuning: choose the best of several answers by contrast with other speakers, and learn from pairs of a right line and a wrong one.
#
# [Fine-tuning](../4_train/47_finetune.ipynb) shows a model what Homer says. It is never shown what he would *not* say, so what it learns is half Homer and half anybody in this kind of scene. This chapter brings the other half in twice. Without any training, several answers are drawn, and the one is taken that fits Homer better than it fits others. And with a second, short training, the model gets pairs: at this moment he said this, and not that. What is wrong may be the model's own answer, or the line of somebody else.
#
# This chapter is a program: `simpsons-llm contrast --run runs/x --out runs/y`. Left out are several processes (one is enough for a stage this short) and judges: whether the lines are better is a question for measures, not for the loss that was trained.

# %% tags=["parameters"]
run = "runs/finetune"  # a finished run's folder, with an adapter
out = "runs/contrast"  # the new run's folder
rejected = "both"  # wrong: samples (its own), speakers (others' real ones), both, mouths (the line by others)
pairs = None  # moments, each with a pair of each kind; None: all lines to learn, at most 2,000
beta = 0.1  # what a nat of difference counts; the larger, the closer the model stays to what it was
nll_weight = 1.0  # weight of the right line's own loss, so that it stays likely, 0..1
length_normalized = False  # compare nats per token, not nats per line; beta then wants to be about 5
learning_rate = 2e-5  # peak rate
epochs = 1.0  # passes over the pairs
global_batch_size = 8  # pairs for one optimizer step
micro_batch_size = 4  # pairs at once
max_minutes = None  # stop at the next step after so many minutes, drawing of answers included
random_seed = 42  # of moments, answers and order
device = "auto"  # xpu, cuda, cpu; auto: the best there is
dtype = "auto"  # bfloat16, float32; auto: as the device has it

# %%
#| export
import bisect
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpsons_llm.character.likelihood import Moment, Reader, hear
from simpsons_llm.data.batches import global_batches
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.packing import to_device
from simpsons_llm.data.prepare import is_target, plain_words
from simpsons_llm.data.prompt import LEARNED, TextMaker, prompt_tokens
from simpsons_llm.data.samples import sample_of
from simpsons_llm.machine.device import find_device, find_ranks, peak_memory_gib, reset_peak_memory, set_threads
from simpsons_llm.machine.job import (
    JobConfig,
    Progress,
    append_jsonl,
    format_seconds,
    hold_folder,
    open_folder,
    provenance,
    read_jsonl,
    require,
    same_parameters,
    write_json,
    write_text,
)
from simpsons_llm.model.adapter import find_trained, load_adapter, save_adapter, trainable_parameters
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import finish_lines, heldout_moments, most_tokens
from simpsons_llm.model.loss import PadRight, ScoreLimit, heldout_loss, score_batches, score_limit, token_losses
from simpsons_llm.train.config import TrainConfig, make_optimizer, make_schedule
from simpsons_llm.train.history import Stopwatch, plot_losses, text_samples
from simpsons_llm.train.lifecycle import LEAST_GAIN, make_samples, write_failed
from simpsons_llm.train.run import Run

# %%
#| hide
import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.samples import row_samples
from simpsons_llm.model.base import load_base
from simpsons_llm.train.loop import LoopConfig, loop

pd.set_option("display.max_colwidth", 90)


# %% [markdown]
# ## One pair, by hand
#
# Marge says that the dog wears Homer's tie. Homer's line is "D'oh!"; "Fascinating." is Lisa's. Before the stage the model gives them the log-probabilities -6 and -5 nats: it finds Lisa's line a little likelier in Homer's mouth. A step later they are -5.5 and -6.5. The right line has gained half a nat, the wrong one has lost one and a half, so between them the model has moved by 2 nats. With $\beta = 0.1$ this is a *margin* of 0.2, and the loss is $-\log \sigma(0.2) = 0.598$. Where nothing has moved the margin is 0 and the loss $\log 2 = 0.693$.
#
# That is direct preference optimization, DPO ([Rafailov et al. 2023](https://arxiv.org/abs/2305.18290)): the model as it was, the *reference*, says how likely the lines were, and what counts is how far the model has moved from it.

# %%
#| export
def dpo_losses(
    policy,  # P x 2: log-probability of each pair's right and wrong line in nats, of the model in training
    reference,  # P x 2: the same, of the model before the stage
    beta: float = 0.1,  # nats of margin for a nat of difference, above 0
) -> tuple:  # (losses, P; margins, P): what the right line has gained more than the wrong one, times beta
    "The loss of each pair: small where the right line has gained on the wrong one."
    from torch.nn.functional import logsigmoid

    gained = beta * (policy - reference)
    margins = gained[:, 0] - gained[:, 1]
    return -logsigmoid(margins), margins


# %% [markdown]
# The pair above, before the step and after it:

# %% tags=["example"]
before, after = torch.tensor([[-6.0, -5.0]]), torch.tensor([[-5.5, -6.5]])
{name: [round(x.item(), 3) for x in dpo_losses(p, before)] for name, p in (("before", before), ("after", after))}


# %% [markdown]
# One thing is wrong with it. The margin also grows where both lines lose, and the wrong one loses more; DPO alone often does just this, and a model to which the right line has become unlikely does not say it. So the right line's own loss per token is added, as in plain fine-tuning ([Pang et al. 2024](https://arxiv.org/abs/2404.19733), with weight 1). A longer line has more nats to move; who does not want it to count more can divide by the tokens first ([Lambert et al. 2024](https://arxiv.org/abs/2411.15124)).

# %%
#| export
def pair_losses(
    policy,  # P x 2: log-probability of each pair's right and wrong line, nats
    reference,  # P x 2: the same, of the model before the stage
    counts,  # P x 2: tokens of the lines
    beta: float = 0.1,  # as in `dpo_losses`
    nll_weight: float = 1.0,  # of the right line's own loss per token, 0..1
    length_normalized: bool = False,  # nats per token instead of nats
) -> tuple:  # (losses, P; margins, P)
    "DPO, and the right line stays likely."
    per = counts if length_normalized else 1
    losses, margins = dpo_losses(policy / per, reference / per, beta)
    return losses - nll_weight * policy[:, 0] / counts[:, 0], margins


# %% [markdown]
# Two steps with the same margin. In the first the right line gains; in the second both lose. Their lines have 3 tokens each. Without the right line's own loss they cannot be told apart:

# %% tags=["example"]
tokens, both_lose = torch.full((1, 2), 3.0), torch.tensor([[-8.0, -9.0]])
pd.DataFrame(
    {
        w: {n: pair_losses(p, before, tokens, nll_weight=w)[0].item() for n, p in (("a", after), ("b", both_lose))}
        for w in (0.0, 1.0)
    }
).rename(index={"a": "one gains", "b": "both lose"}, columns=lambda w: f"nll_weight {w:g}").round(3)

# %% tags=["check"]
assert math.isclose(dpo_losses(before, before)[0].item(), math.log(2), rel_tol=1e-6)
assert math.isclose(dpo_losses(after, before)[0].item(), math.log(1 + math.exp(-0.2)), rel_tol=1e-6)
one, lose = (pair_losses(p, before, tokens)[0].item() for p in (after, both_lose))
assert lose > one and math.isclose(lose - one, 2.5 / 3, rel_tol=1e-5)
by_token = pair_losses(after, before, tokens, length_normalized=True)[1].item()
assert math.isclose(by_token, 0.2 / 3, rel_tol=1e-5)


# %% [markdown]
# ## How likely is a line?
#
# A line's log-probability is the sum over its own tokens, the end included, behind everything that stands before it. What stands before it is made by [the function that makes all prompts](../1_data/15_prompt.ipynb), so a line is scored as it would be trained.

# %%
#| export
def line_samples(
    maker: TextMaker,  # tokenizer and template
    requests: list,  # (location, `Line`s before, speaker), n of them
    texts: list,  # what is said, n of them
    most: int = 10**9,  # tokens of prompt and line; the oldest lines are left out where they would be more
) -> list:  # n `Sample`s, in which nothing but the line and its end is learned; ValueError if a line is too long
    "The sample that training would make of each line."
    said, samples = maker.said([Line(0, 0, r[2], text) for r, text in zip(requests, texts)]), []
    for (location, lines, who), (_, answer), text in zip(requests, said, texts):
        answer = answer + maker.end
        tokens, _ = prompt_tokens(maker, location, lines, who, most - len(answer))
        require(
            len(tokens) + len(answer) <= most,
            f"the line {text[:40]!r} has {len(answer)} tokens, and with its speaker more than the {most} that "
            "the model was trained on; leave it out",
        )
        samples.append(sample_of(tokens.add(answer, LEARNED)))
    return samples


# %% [markdown]
# Those samples go through the model side by side, lines of similar length together, and come back in their order:

# %%
#| export
def sample_logprobs(
    model,  # a model in evaluation mode, with or without adapter
    samples: list,  # what `line_samples` made, n of them
    pad_id: int,  # the padding token
    batch_size: int = 8,  # samples at once on a CPU; an accelerator takes what it has room for
    grad: bool = False,  # keep what a backward pass needs
    progress=None,  # called with the number of samples done
) -> tuple:  # (n log-probabilities in nats, n numbers of tokens), float32 tensors on the model's device
    "Log-probability of what each sample learns, added up."
    import torch

    order = sorted(range(len(samples)), key=lambda i: len(samples[i].input_ids))
    limit = ScoreLimit(samples=len(samples)) if grad else score_limit(model, batch_size)
    sums, counts, places = [torch.zeros(0)] * (not samples), [torch.zeros(0)] * (not samples), list[int]()
    for part in score_batches([{**samples[i].features(), "place": i} for i in order], limit, packed=False):
        batch = to_device(PadRight(pad_id)(part), model.device)
        with nullcontext() if grad else torch.no_grad():
            losses, weights = token_losses(model, batch)
        sums.append(-(losses * weights).sum(1))
        counts.append(weights.sum(1))
        places += [s["place"] for s in part]
        if progress:
            progress(len(places))
    back = torch.tensor(places, dtype=torch.long).argsort().to(sums[0].device)
    return torch.cat(sums)[back], torch.cat(counts)[back]


def line_logprobs(
    model,  # a model in evaluation mode, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    requests: list,  # (location, `Line`s before, speaker), n of them
    texts: list,  # what is said, n of them
    batch_size: int = 8,  # lines at once on a CPU; an accelerator takes what it has room for
    grad: bool = False,  # keep what a backward pass needs; all lines then go through the model at once
    progress=None,  # called with the number of lines done
) -> tuple:  # (n log-probabilities in nats, n numbers of tokens), float32 tensors; ValueError if a line is too long
    "How likely each line is where it is said, its end included."
    samples = line_samples(maker, requests, texts, most_tokens(model, maker))
    return sample_logprobs(model, samples, maker.tokenizer.pad_token_id, batch_size, grad, progress)


# %% [markdown]
# SmolLM2 has never been trained on this script, but it has read about the family. A scene to ask it about:

# %% tags=["example"]
model, tokenizer = load_base("smollm2-135m", find_device("cpu", "float32"))
maker, scene = TextMaker(model.eval() and tokenizer), read_script("springfield").scenes[0]
pd.DataFrame([(x.speaker, x.text) for x in scene.lines[4:9]], columns=["speaker", "text"], index=range(4, 9))

# %% [markdown]
# Homer's line in the mouths of three people, in nats and in tokens:

# %% tags=["example"]
at = next(i for i, x in enumerate(scene.lines) if x.speaker == "Homer Simpson")
text, names = scene.lines[at].text, ["Homer Simpson", "Marge Simpson", "Lisa Simpson"]
nats, counts = line_logprobs(model, maker, [(scene.location, scene.lines[:at], name) for name in names], [text] * 3)
pd.DataFrame({"nats": nats.tolist(), "tokens": counts.tolist()}, index=names).round(2)

# %% [markdown]
# The same number as the loss of the sample that training makes of this line:

# %% tags=["check"]
trained, _ = row_samples([scene], maker, max_seq_len=600, context_lines=100)
with torch.no_grad():
    losses, weights = token_losses(model, PadRight(0)([trained[at].features()]))
assert abs(nats[0].item() + (losses * weights).sum().item()) < 1e-3 and counts[0] == trained[at].learned
assert line_samples(maker, [(scene.location, scene.lines[:at], names[0])], [text], 600)[0] == trained[at]
try:
    line_samples(maker, [("", [], names[0])], ["D'oh! " * 300], 600)
    raise AssertionError
except ValueError as e:
    assert "leave it out" in str(e)


# %% [markdown]
# ## Contrast
#
# A likely line need not be Homer's: "What?" is likely for everybody. So the line is put into other people's mouths, at the same moment. What is left, the log-probability under its speaker less the mean under the others, says how much of the line is owed to who says it. It is given per token, so that long lines and short ones can be compared.

# %%
#| export
def rivals(
    who: str,  # who speaks
    others: list | tuple,  # names
) -> list:  # the others, each once; ValueError if there are none
    "Whom a speaker is told from."
    names = [name for name in dict.fromkeys(others) if name != who]
    require(names, f"{who!r} is to be told from others={list(others)}, which names nobody else; give another speaker")
    return names


def contrasts(
    model,  # a model in evaluation mode, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    moments: list,  # (location, `Line`s before, speaker, text), n of them
    others: list | tuple,  # names to tell the speakers from; a moment's own speaker does not count
    progress=None,  # called with the number of lines done
) -> list:  # n numbers, nats per token; above 0: likelier from its speaker than from the others
    "How much likelier each line is from its speaker than, on the mean, from others."
    reader, found = Reader(model), []
    for where, lines, who, text in moments:
        scene = Scene(0, 0, where, (*lines, Line(0, len(lines), who, text)))
        found.append(hear(reader, maker, Moment(scene, len(lines)), rivals(who, others)).contrast)
        if progress:
            progress(len(found))
    return found


# %% [markdown]
# Three lines of the scene, each told from those three people. A number below 0 belongs to a line that the model finds likelier from the others; one that has not been trained on the characters may well do so:

# %% tags=["example"]
moments = [(scene.location, scene.lines[:i], x.speaker, x.text) for i, x in enumerate(scene.lines[: at + 2])][-3:]
pd.DataFrame(
    {
        "speaker": [m[2] for m in moments],
        "text": [m[3] for m in moments],
        "nats per token": contrasts(model, maker, moments, names),
    }
).round(4)

# %% tags=["check"]
found = contrasts(model, maker, [(scene.location, scene.lines[:at], names[0], text)], names)
assert abs(found[0] - ((nats[0] - (nats[1] + nats[2]) / 2) / counts[0]).item()) < 1e-5
try:
    contrasts(model, maker, moments, [])
    raise AssertionError
except ValueError as e:
    assert "nobody else" in str(e)


# %% [markdown]
# ## The best of several
#
# No training is needed for the first use of it: draw `n` answers, take the one with the highest contrast. It costs `n` answers, which are drawn in one batch, and a scoring pass for each speaker. An empty answer comes last, whatever its number.

# %%
#| export
def best_of(
    model,  # a model in evaluation mode, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    requests: list,  # (location, `Line`s before, speaker) for each answer
    n: int = 8,  # answers to choose from, 1 or more; all are drawn in one batch
    sampling: Sampling = Sampling(),  # how words are drawn
    random_seed: int = 42,  # of the sampling, 0..2**64-1
    others: list | tuple = (),  # names to tell the speakers from
    table: bool = False,  # give the others back, too
):  # one answer for each request; with `table`: (those, rows of request, speaker, answer, contrast_nats, best first)
    "Of `n` answers to each request the one that is most its speaker's."
    require(n >= 1, f"n={n} was given; expected 1 or more")
    for _, _, who in requests:
        rivals(who, others)
    asked = [request for request in requests for _ in range(n)]
    said = finish_lines(model, maker, asked, sampling, random_seed)
    moments = [(*request, text) for request, text in zip(asked, said) if text]
    worth = iter(contrasts(model, maker, moments, others))
    rows = [
        {"request": i // n, "speaker": who, "answer": text, "contrast_nats": next(worth) if text else -math.inf}
        for i, ((_, _, who), text) in enumerate(zip(asked, said))
    ]
    ranked = sorted(rows, key=lambda row: (row["request"], -row["contrast_nats"]))
    best = [row["answer"] for row in ranked[::n]]
    return (best, ranked) if table else best


# %% [markdown]
# Four answers of SmolLM2, in the order of their contrast:

# %% tags=["example"]
request = (scene.location, scene.lines[:at], "Homer Simpson")
best, ranked = best_of(model, maker, [request], 4, Sampling(max_new_tokens=16), 1, names, table=True)
pd.DataFrame(ranked)[["answer", "contrast_nats"]].round(3)

# %% tags=["check"]
assert best == [ranked[0]["answer"]] and len(ranked) == 4
assert [r["contrast_nats"] for r in ranked] == sorted((r["contrast_nats"] for r in ranked), reverse=True)

# %% [markdown]
# Highest contrast is not best in every way: a caricature has more of it than a person. Whether listeners prefer such answers has not been measured here.
#
# ## Pairs
#
# A pair is a moment of a train scene with the line that was said and one that was not. Three kinds of wrong lines can be used.
#
# *Samples*: what the model itself says there, as in DITTO ([Shaikh et al. 2024](https://arxiv.org/abs/2406.00888)) and SPIN ([Chen et al. 2024](https://arxiv.org/abs/2401.01335)). They show the model its own mistakes, and its good lines are counted as wrong, too; an answer with the words of the real line is left out.
#
# *Speakers*: a real line of somebody else of about the same length, said later in the same scene if there is one, else in another train scene. It is good language and, at best, on the same subject; all that is wrong with it is who says it. No work that we found uses such lines for a character's voice, so nothing is known about it but what is measured here. A line that the speaker has said, too, is no wrong one.

# %%
#| export
MOST_PAIRS, VALID_PAIRS = 2000, 64  # moments of train scenes, unless told otherwise, and of validation scenes
ANSWERS = Sampling(max_new_tokens=60)  # how the model's own answers are drawn
REJECTED = ("samples", "speakers", "both", "mouths")


@dataclass(frozen=True)
class Pair:
    "A moment, what was said, and what was not."

    request: tuple  # (location, `Line`s before, speaker)
    right: str  # the real line
    wrong: str  # the other
    kind: str  # "samples", "speakers" or "mouths"
    mouth: str = ""  # who says the wrong line; empty: who says the right one

    @property
    def wrong_request(self) -> tuple:
        "What is asked before the wrong line."
        return (*self.request[:2], self.mouth) if self.mouth else self.request


def moments_to_learn(
    scenes: list,  # `Scene`s
    targets: list | tuple,  # names to learn; empty: everyone
    most: int,  # how many
    random_seed: int,  # of the choice
    fits: Callable = lambda request, text: True,  # whether a moment can be used at all
) -> list:  # (scene, position of its line), in a random order
    "Lines of the characters to learn that have words in them."
    found = [(s, i) for s in scenes for i, x in enumerate(s.lines) if is_target(x, targets) and plain_words(x.text)]
    random.Random(random_seed).shuffle(found)
    chosen: list = []
    for s, i in found:
        if len(chosen) == most:
            break
        if fits((s.location, s.lines[:i], s.lines[i].speaker), s.lines[i].text):
            chosen.append((s, i))
    return chosen


# %% [markdown]
# For the second kind, the lines of a split lie in order of their length, so that one of similar length is found by looking around. Not the nearest is taken but any of the forty nearest, or else the same few lines would be everybody's.

# %%
#| export
def speaker_pairs(
    moments: list,  # what `moments_to_learn` gave
    scenes: list,  # `Scene`s to take lines from: those of the same split
    random_seed: int,  # of the choice
) -> list:  # `Pair`s; a moment for which there is no line of anybody else has none
    "Pairs with another speaker's real line."
    draw, lines = random.Random(random_seed), [x for s in scenes for x in s.lines if x.speaker and plain_words(x.text)]
    words = {id(x): plain_words(x.text) for x in lines}
    own = {(x.speaker, *words[id(x)]) for x in lines}
    lines.sort(key=lambda x: len(words[id(x)]))
    sizes, pairs = [len(words[id(x)]) for x in lines], []
    for s, i in moments:
        who, size = s.lines[i].speaker, len(plain_words(s.lines[i].text))

        def fits(x, who=who):
            return id(x) in words and x.speaker != who and (who, *words[id(x)]) not in own

        later = [x for x in s.lines[i + 1 :] if fits(x) and abs(len(words[id(x)]) - size) <= max(2, size // 3)]
        at = bisect.bisect_left(sizes, size)
        near = later or [x for x in lines[max(0, at - 20) : at + 20] if fits(x)]
        if not near:
            near = sorted(filter(fits, lines), key=lambda x: abs(len(words[id(x)]) - size))[:20]
        if near:
            request = (s.location, s.lines[:i], who)
            pairs.append(Pair(request, s.lines[i].text, draw.choice(near).text, "speakers"))
    return pairs


# %% [markdown]
# *The same words from another mouth.* Nothing is wrong with the line but who says it: the right side is the line after its speaker's name, the wrong one after another's, and the loss is the contrast itself. Who? Somebody of the scene, if there is anybody.

# %%
#| export
def mouth_pairs(
    moments: list,  # what `moments_to_learn` gave
    scenes: list,  # `Scene`s whose characters may be the others
    random_seed: int,  # of the choice
) -> list:  # `Pair`s; none where nobody else speaks at all
    "Pairs in which somebody else says the line."
    draw = random.Random(random_seed)
    everybody = sorted({x.speaker for s in scenes for x in s.lines if x.speaker})
    pairs = []
    for s, i in moments:
        who = s.lines[i].speaker
        there = sorted({x.speaker for x in s.lines if x.speaker} - {who}) or [name for name in everybody if name != who]
        if there:
            request = (s.location, s.lines[:i], who)
            pairs.append(Pair(request, s.lines[i].text, s.lines[i].text, "mouths", draw.choice(there)))
    return pairs


# %% [markdown]
# The first kind is drawn from the model, prompts of similar length side by side. This is the slow part of the stage: on a processor it takes longer than the training.

# %%
#| export
def sample_pairs(
    model,  # a model in evaluation mode, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    moments: list,  # what `moments_to_learn` gave
    sampling: Sampling = ANSWERS,  # how words are drawn
    random_seed: int = 42,  # of the sampling, 0..2**32-1
    at_once: int = 8,  # answers at once
    progress=None,  # called with the number of answers drawn
    until: float = math.inf,  # reading of `time.perf_counter` after which no more are drawn
) -> list:  # `Pair`s; an answer that is empty, or has the real line's words, gives none
    "Pairs with the model's own answer."
    moments, pairs = sorted(moments, key=lambda m: sum(len(x.text) for x in m[0].lines[: m[1]])), []
    for at in range(0, len(moments), at_once):
        part = moments[at : at + at_once]
        requests = [(s.location, s.lines[:i], s.lines[i].speaker) for s, i in part]
        # each batch has another length, and recording it would take longer than drawing it
        said = finish_lines(model, maker, requests, sampling, random_seed + at, how="none")
        for (s, i), request, text in zip(part, requests, said):
            if plain_words(text) and plain_words(text) != plain_words(s.lines[i].text):
                pairs.append(Pair(request, s.lines[i].text, text, "samples"))
        if progress:
            progress(at + len(part), over=time.perf_counter() > until)
        if time.perf_counter() > until:
            break
    return pairs


# %% [markdown]
# Two moments of the book's train scenes, with a wrong line of each kind:

# %% tags=["example"]
scenes = split_scenes(read_script("springfield").scenes)
some = moments_to_learn(scenes["train"], (), 2, 1)
real = {p.request: p for p in speaker_pairs(some, scenes["train"], 1)}
drawn = {p.request: p for p in sample_pairs(model, maker, some, Sampling(max_new_tokens=20))}
mouths = {p.request: p.mouth for p in mouth_pairs(some, scenes["train"], 1)}
pd.DataFrame([(r[2], p.right, p.wrong, drawn[r].wrong, mouths[r]) for r, p in real.items() if r in drawn]).set_axis(
    ["speaker", "right", "wrong: somebody else's", "wrong: the model's own", "wrong: the right one by"], axis=1
)

# %% tags=["check"]
wrong = speaker_pairs(moments_to_learn(scenes["train"], (), 300, 1), scenes["train"], 1)
said = {(x.speaker, *plain_words(x.text)) for s in scenes["train"] for x in s.lines}
assert len(wrong) == 300 and not any((p.request[2], *plain_words(p.wrong)) in said for p in wrong)
apart = [abs(len(plain_words(p.right)) - len(plain_words(p.wrong))) for p in wrong]
assert sum(apart) / len(apart) < 3
alone = replace(scene, lines=tuple(x for x in scene.lines if x.speaker == "Homer Simpson"))
assert speaker_pairs([(alone, 0)], [alone], 1) == [] == mouth_pairs([(alone, 0)], [alone], 1)
others = mouth_pairs(some, scenes["train"], 1)
assert all(p.right == p.wrong and p.mouth != p.request[2] and p.wrong_request[2] == p.mouth for p in others)
assert all(p.mouth in {x.speaker for x in s.lines} for p, (s, _) in zip(others, some))


# %% [markdown]
# ## The settings
#
# What is not a setting: dropout is off in this stage, since a reference that was computed without it is compared with; gradients are scaled down to a norm of 1; a tenth of the steps warms up.

# %%
#| export
@dataclass
class ContrastConfig(JobConfig):
    "Settings of the contrast job."

    run: str = "runs/finetune"  # a finished run's folder, with an adapter
    out: str = "runs/contrast"  # the new run's folder
    rejected: str = "both"  # wrong: samples (its own), speakers (others' real ones), both, mouths (the line by others)
    pairs: "int | None" = None  # moments, each with a pair of each kind; None: all lines to learn, at most 2,000
    beta: float = 0.1  # what a nat of difference counts; the larger, the closer the model stays to what it was
    nll_weight: float = 1.0  # weight of the right line's own loss, so that it stays likely, 0..1
    length_normalized: bool = False  # compare nats per token, not nats per line; beta then wants to be about 5
    learning_rate: float = 2e-5  # peak rate
    epochs: float = 1.0  # passes over the pairs
    global_batch_size: int = 8  # pairs for one optimizer step
    micro_batch_size: int = 4  # pairs at once
    max_minutes: "float | None" = None  # stop at the next step after so many minutes, drawing of answers included
    random_seed: int = 42  # of moments, answers and order
    device: str = "auto"  # xpu, cuda, cpu; auto: the best there is
    dtype: str = "auto"  # bfloat16, float32; auto: as the device has it

    def check(self):
        for name in ("run", "out"):
            require(getattr(self, name).strip(), f"{name} was given as nothing; give a run's folder, such as runs/x")
        require(
            Path(self.run).resolve() != Path(self.out).resolve(),
            f"run and out are both {self.run}; choose another folder for out, the run stays as it is",
        )
        require(self.rejected in REJECTED, f"rejected={self.rejected!r} was given; expected {', '.join(REJECTED)}")
        require(0 <= self.nll_weight <= 1, f"nll_weight={self.nll_weight} was given; expected 0..1")
        require(
            0 < self.learning_rate < 1,
            f"learning_rate={self.learning_rate} was given; expected a number above 0 and below 1",
        )
        for name in ("pairs", "beta", "epochs", "global_batch_size", "micro_batch_size", "max_minutes"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"{name}={value} was given; expected more than 0")
        require(0 <= self.random_seed < 2**32, f"random_seed={self.random_seed} was given; expected 0 to 2**32 - 1")


# %% tags=["check"]
assert same_parameters(ContrastConfig, "contrast")
for bad in (
    {"rejected": "nonsense"},
    {"out": "runs/finetune"},
    {"run": " "},
    {"beta": 0},
    {"nll_weight": 2},
    {"pairs": 0},
    {"learning_rate": 5},
    {"random_seed": -1},
):
    try:
        ContrastConfig(**bad)
        raise AssertionError(bad)
    except ValueError as e:
        assert next(iter(bad)) in str(e)


# %% [markdown]
# ## The loop
#
# The page of this chapter. The reference is computed once, before the first step, with the adapter as it is; so no second model is held. Then, for each step: a few pairs, both lines of each through the model, the loss, backward, one step of the optimizer. The settings are those above, and everything else is one line, or one function that is known already.

# %%
#| export
def steps_of(
    config,  # a ContrastConfig
    pairs: int,  # how many there are
) -> tuple:  # (steps of an epoch, steps in all)
    "How many optimizer steps the stage has."
    epoch_steps = math.ceil(pairs / config.global_batch_size)
    return epoch_steps, math.ceil(config.epochs * epoch_steps)


def learn(
    model,  # a model in evaluation mode, whose adapter is trained
    samples: list,  # for each pair (the right line's `Sample`, the wrong one's)
    reference,  # P x 2 log-probabilities, nats: of the model as it is now
    config: ContrastConfig,  # the settings
    pad_id: int,  # the padding token
    tell: Callable = lambda step, row: False,  # called after each step; True: stop here
) -> int:  # the number of steps that were made
    "Learn from pairs."
    import torch

    weights = [p for p in model.parameters() if p.requires_grad]
    lengths = [len(right.input_ids) for right, _ in samples]
    epoch_steps, steps = steps_of(config, len(samples))
    optimizer = make_optimizer(model, config.learning_rate, fused=model.device.type != "cpu")
    schedule = make_schedule(optimizer, steps // 10, steps)
    for step in range(1, steps + 1):
        epoch, at = divmod(step - 1, epoch_steps)
        batch = global_batches(lengths, config.global_batch_size, config.random_seed, epoch, grouped=True)[at]
        seen: list = []
        for begin in range(0, len(batch), config.micro_batch_size):
            part = batch[begin : begin + config.micro_batch_size]
            both = [sample for i in part for sample in samples[i]]
            policy, counts = (x.view(-1, 2) for x in sample_logprobs(model, both, pad_id, grad=True))
            before = reference[part].to(policy.device)
            losses, margins = pair_losses(
                policy, before, counts, config.beta, config.nll_weight, config.length_normalized
            )
            (losses.sum() / len(batch)).backward()  # gradients of the micro-batches add up
            seen.append(torch.cat([losses[:, None], margins[:, None], policy - before], 1).detach())
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        rows = torch.cat(seen)
        loss, margin, right, wrong = rows.mean(0).tolist()
        row = {"epoch": round(step / epoch_steps, 4), "train_loss_nats": loss, "margin": margin}
        row |= {"right_gain_nats": right, "wrong_gain_nats": wrong, "grad_norm": float(norm), "learning_rate": rate}
        row["won_share"] = (rows[:, 1] > 0).float().mean().item()
        if tell(step, row):
            return step
    return steps


# %% [markdown]
# ## What is measured
#
# Twice, before and after, on validation scenes: the held-out loss, computed [as in every run](../3_model/34_loss.ipynb), which must not rise much; and pairs, fixed before the stage. Of those is counted how often the right line is likelier per token than the wrong one, and, afterwards, how often it has gained more. The first is the harder question: a model may have moved the right way, and still prefer its own words. Test scenes are not touched.

# %%
#| export
def won_shares(
    scores,  # P x 2: of each pair's right and wrong line, a tensor; the higher, the better
    kinds: list,  # each pair's kind
) -> dict:  # "all" and each kind -> share of its pairs, 0..1
    "In how many pairs the right line has the higher score."
    right = (scores[:, 0] > scores[:, 1]).tolist()
    groups = {"all": right, **{k: [x for x, kind in zip(right, kinds) if kind == k] for k in dict.fromkeys(kinds)}}
    return {k: sum(x) / len(x) for k, x in groups.items()}


def plot_gains(
    run,  # the folder of a contrast run
    ax=None,  # matplotlib axes; None: make some
):  # the axes
    "What right and wrong lines have gained or lost since the stage began, over its steps."
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6.4, 3.2))[1]
    rows = [r for r in read_jsonl(Path(run) / "metrics.jsonl") if "margin" in r]
    for name, label, color in (("right", "right line", "#1f5fa8"), ("wrong", "wrong line", "#c0504d")):
        ax.plot([r["step"] for r in rows], [r[f"{name}_gain_nats"] for r in rows], label=label, color=color)
    ax.axhline(0, color="#999999", lw=0.8)
    ax.set(xlabel="optimizer steps", ylabel="gain of a line (nats)")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.figure.tight_layout()
    return ax


# %% [markdown]
# ## The stage
#
# First the pairs of both splits. With a limit of time, drawing takes half of it at most, for validation scenes an eighth, and what was not drawn by then is left out.

# %%
#| export
def make_pairs(
    model,  # the run's model, in evaluation mode
    maker: TextMaker,  # tokenizer and template of its training
    parts: dict,  # "train" and "valid" -> `Scene`s
    targets: list,  # names to learn; empty: everyone
    config: ContrastConfig,  # the settings
    limit_s: float = math.inf,  # seconds that the whole stage may take
) -> dict:  # "train" and "valid" -> `Pair`s; ValueError if there are none
    "The pairs to learn from, and those to be judged by."
    most, found, now = most_tokens(model, maker), {}, time.perf_counter()

    def fits(request, text):
        (answer,) = maker.said([Line(0, 0, request[2], text)])
        return len(prompt_tokens(maker, request[0], [], request[2])[0]) + len(answer[1]) + len(maker.end) <= most

    for split, number, share in (("valid", VALID_PAIRS, 1 / 8), ("train", config.pairs or MOST_PAIRS, 1 / 2)):
        moments, pairs = moments_to_learn(parts[split], targets, number, config.random_seed, fits), list[Pair]()
        if config.rejected == "mouths":
            told = mouth_pairs(moments, parts[split], config.random_seed)
            pairs += [p for p in told if fits(p.wrong_request, p.wrong)]
            require(pairs, f"rejected=mouths was given, but in the {split} scenes nobody else speaks; use samples")
        if config.rejected in ("speakers", "both"):
            real = speaker_pairs(moments, parts[split], config.random_seed)
            pairs += [p for p in real if fits(p.request, p.wrong)]
            require(
                pairs,
                f"rejected={config.rejected} was given, but in the {split} scenes nobody else says anything; "
                "use rejected=samples",
            )
        if config.rejected in ("samples", "both"):
            tell = Progress(len(moments), f"answers in {split} scenes", "answers")
            at_once = 8 if model.device.type == "cpu" else 64
            own = sample_pairs(model, maker, moments, ANSWERS, config.random_seed, at_once, tell, now + share * limit_s)
            pairs += [p for p in own if fits(p.request, p.wrong)]
            require(pairs, f"no answer in {split} scenes can be a wrong line: all are empty, or the real ones")
        found[split] = pairs
    return found


# %% [markdown]
# What is written: a run like any other. Its data is copied, its `config.yaml` is that of the first run with the settings of this stage in it, and its summary has the same names; so it can be asked, exported, compared, and be the beginning of another stage.

# %%
#| export
def begin_folder(
    source: Run,  # the run that was fine-tuned
    config: ContrastConfig,  # the settings
) -> Path:  # the new run's folder
    "The new run's folder, with data and settings."
    import yaml

    out, data = Path(config.out), source.data().folder
    assert data is not None  # it was read from there
    to = open_folder(out / "data")
    for file in data.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, to / file.name)
    settings = yaml.safe_load((source.folder / "config.yaml").read_text(encoding="utf8"))
    settings |= {"run": str(out), "data": str(to), "contrast": config.to_dict()}
    write_text(out / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    write_json(out / "summary.json", {"status": "running"})
    return out


def require_free(
    out: Path,  # the new run's folder
):
    "ValueError if a run lies in it."
    there = [name for name in ("adapter", "model", "metrics.jsonl", "config.yaml") if (out / name).exists()]
    require(not there, f"out={out} holds a run already ({', '.join(there)}); choose another folder")


# %% [markdown]
# A `Stage` holds what is needed for the time between: the model, its samples, and the two ways to tell what happens.

# %%
#| export
class Stage:
    "A preference stage that is under way."

    def __init__(
        self,
        source: Run,  # the run that was fine-tuned
        out: Path,  # the new run's folder
        config: ContrastConfig,  # the settings
        device,  # the `Device`
        watch: Stopwatch,  # that runs already
    ):
        self.source, self.out, self.config, self.device, self.watch = source, out, config, device, watch
        self.begun, self.limit_s = time.perf_counter(), 60 * (config.max_minutes or math.inf)
        data, settings = source.data(), source.summary["settings"]
        self.model, tokenizer, self.notes = load_adapter(source.folder / "adapter", device, trainable=True)
        self.maker, self.pad_id = TextMaker.of_notes(tokenizer, self.notes), tokenizer.pad_token_id
        # test scenes are left where they are
        self.parts, self.targets = {k: data.parts[k] for k in ("train", "valid")}, data.report["speakers"]
        as_trained = TrainConfig(**{k: v for k, v in settings.items() if k in TrainConfig.__dataclass_fields__})
        valid = {"valid": self.parts["valid"]}
        self.heldout = make_samples(as_trained, self.maker, valid, data.report, keep=False)[0]["valid"]
        self.nats_before: Any = None  # of the validation pairs, once they were looked at
        self.shown = heldout_moments(self.parts["valid"], data.speakers[:3], most_scenes=1)

    def autocast(self):
        "The number format of a run's steps."
        import torch

        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.device.dtype == "bfloat16", cache_enabled=False
        )

    def pair_up(self):
        "Make the pairs, and what the model is given of them."
        most = most_tokens(self.model, self.maker)
        with self.watch.during("speak"), self.autocast():
            self.pairs = make_pairs(self.model, self.maker, self.parts, self.targets, self.config, self.limit_s)
        self.samples = {
            split: list(
                zip(
                    line_samples(self.maker, [p.request for p in pairs], [p.right for p in pairs], most),
                    line_samples(self.maker, [p.wrong_request for p in pairs], [p.wrong for p in pairs], most),
                )
            )
            for split, pairs in self.pairs.items()
        }

    def look(
        self,
        step: int,  # 0..steps
    ) -> dict:  # valid_loss_nats; ranked and gained: kind -> share
        "Measure on validation scenes, and write it down."
        tell, kinds = Progress(len(self.heldout), "score valid", "samples"), [p.kind for p in self.pairs["valid"]]
        with self.watch.during("score"), self.autocast():
            loss = heldout_loss(self.model, self.heldout, self.pad_id, progress=tell)
            both = [s for pair in self.samples["valid"] for s in pair]
            nats, counts = (x.view(-1, 2) for x in sample_logprobs(self.model, both, self.pad_id))
        require(math.isfinite(loss), f"the held-out loss is {loss} after {step} steps; try a lower learning_rate")
        epoch = round(step / steps_of(self.config, len(self.samples["train"]))[0], 4)
        self.nats_before = nats if step == 0 else self.nats_before
        shares = {"ranked": won_shares(nats / counts, kinds), "gained": won_shares(nats - self.nats_before, kinds)}
        row = {"step": step, "epoch": epoch, "valid_loss_nats": loss, **shares}
        with self.watch.during("speak"), self.autocast():
            said = text_samples(self.model, self.maker, self.shown)
        append_jsonl(self.out / "metrics.jsonl", row)
        append_jsonl(self.out / "metrics.jsonl", {"step": step, "epoch": epoch, "samples": said})
        return row

    def train(self) -> dict:  # what it took
        "The reference, then the loop."
        both, (_, steps) = (
            [s for pair in self.samples["train"] for s in pair],
            steps_of(self.config, len(self.samples["train"])),
        )
        with self.watch.during("score"), self.autocast():
            tell = Progress(len(both), "reference", "lines")
            reference, _ = sample_logprobs(self.model, both, self.pad_id, progress=tell)
        start, ends = time.perf_counter(), self.begun + self.limit_s
        most_s = None if math.isinf(ends) else max(ends - start, 0.0)
        progress = Progress(steps, "contrast", most_s=most_s)

        def tell_step(step, row):
            loss = row["train_loss_nats"]
            require(math.isfinite(loss), f"the loss is {loss} at step {step}; try a lower learning_rate")
            append_jsonl(self.out / "metrics.jsonl", {"step": step, **row})
            stop = time.perf_counter() > ends
            progress(step, f"loss {loss:.3f}  margin {row['margin']:.3f}", over=stop)
            return stop

        with self.watch.during("train"), self.autocast():
            made = learn(self.model, self.samples["train"], reference.view(-1, 2), self.config, self.pad_id, tell_step)
        return {"optimizer_steps": made, "stopped_early": made < steps, "train_s": time.perf_counter() - start}


# %% [markdown]
# The summary says what was gained and what it cost. A stage after which the right line has not gained more in most pairs of validation scenes is not called done.

# %%
#| export
# of the first run's summary, what is true of the second
SAME = ("base_model", "base_source", "mode", "recipe", "settings", "train_lines", "valid_lines", "too_long_lines")


def summarise(
    stage: Stage,  # after training
    before: dict,  # what `Stage.look` gave before the first step
    after: dict,  # and after the last
    took: dict,  # what `Stage.train` gave
) -> dict:  # the summary
    "What is written down about a stage."
    first, loss, pairs, made = stage.source.summary, after["valid_loss_nats"], stage.pairs, took["optimizer_steps"]
    base = first.get("valid_loss_nats_base", math.nan)
    won = "done" if after["gained"]["all"] > 0.5 else "not better than the run"
    lengths = [len(s.input_ids) for pair in stage.samples["train"] for s in pair]
    tokens = round(made / steps_of(stage.config, len(pairs["train"]))[0] * sum(lengths))
    return {
        "status": "not better than the base" if base - loss < LEAST_GAIN else won,
        "engine": "contrast",
        **{name: first[name] for name in SAME if name in first},
        "contrast": stage.config.to_dict(),
        "pairs": {split: dict(Counter(p.kind for p in found)) for split, found in pairs.items()},
        "device": stage.device.name,
        "dtype": stage.device.dtype,
        "world_size": 1,
        "trainable_parameters": trainable_parameters(stage.model)[0],
        "ranked_before": before["ranked"],
        "ranked_after": after["ranked"],
        "gained": after["gained"],
        "valid_loss_nats_base": None if math.isnan(base) else base,
        "valid_loss_nats_before": before["valid_loss_nats"],
        "valid_loss_nats_best": loss,
        "best_step": made,
        **took,
        "real_tokens": tokens,
        "tokens_per_s": tokens / took["train_s"],
        "peak_mem_gib": peak_memory_gib(stage.device),
        **{name: first[name] for name in ("data_sha256", "script_sha256") if name in first},
        "provenance": provenance(),
    }


def contrast_text(
    summary: dict,  # what `contrast` returned
) -> str:  # a few lines for people
    "The summary in words."
    s, n = summary, {split: sum(kinds.values()) for split, kinds in summary["pairs"].items()}
    ranked = [f"{k} {s['ranked_before'][k]:.1%} before, {v:.1%} after" for k, v in s["ranked_after"].items()]
    rows = [
        f"{n['valid']} pairs of validation scenes; right line likelier than the wrong one: {'; '.join(ranked)}",
        f"right line gained more than the wrong one: {'; '.join(f'{k} {v:.1%}' for k, v in s['gained'].items())}",
        f"held-out loss in nats per token: {s['valid_loss_nats_before']:.4f} before, "
        f"{s['valid_loss_nats_best']:.4f} after (base {s['valid_loss_nats_base'] or math.nan:.4f})",
        f"{n['train']} pairs, {s['optimizer_steps']} steps in {format_seconds(s['train_s'])}, "
        f"{format_seconds(sum(s['wall_s'].values()))} in all",
    ]
    if s["stopped_early"]:
        rows.append("stopped early: the time allowed was up")
    if s["status"] != "done":
        rows.append(f"WARNING: {s['status']} on validation scenes; try another learning_rate, or more pairs")
    return "\n".join(rows)


# %% [markdown]
# Now all of it, from the run to the summary. What can be refused is refused before a weight is loaded.

# %%
#| export
def contrast(
    config: ContrastConfig,  # the settings
) -> dict:  # the summary, also in summary.json; ValueError or a file error, in one sentence, if it cannot be done
    "A preference stage after fine-tuning; leaves a new run."
    ranks, device, watch = find_ranks(), find_device(config.device, config.dtype), Stopwatch("load")
    require(ranks.world_size == 1, f"contrast was started on {ranks.world_size} ranks; it runs in one process")
    trained, out = find_trained(config.run), Path(config.out)
    require(
        trained.kind == "adapter",
        f"run={config.run} holds a whole model; this stage goes on with an adapter, so give a run of mode=lora",
    )
    source = Run(trained.folder.parent)
    source.data()
    require_free(out)
    if device.type == "cpu":
        set_threads(ranks)
    with hold_folder(out, "contrast"):
        begin_folder(source, config)
        try:
            stage = Stage(source, out, config, device, watch)
            stage.pair_up()
            before = stage.look(0)
            reset_peak_memory(device)
            took = stage.train()
            summary = summarise(stage, before, stage.look(took["optimizer_steps"]), took)
            watch.turn_to("save")
            save_adapter(stage.model, out / "adapter", {**stage.notes, "contrast": config.to_dict()})
            save_pictures(out)
            summary["wall_s"] = {part: round(s, 3) for part, s in watch.read().items()}
            write_json(out / "summary.json", summary)
            return summary
        except BaseException as e:
            write_failed(out, e)
            raise


def save_pictures(
    out: Path,  # the run's folder
):
    "Losses and gains as pictures."
    import matplotlib.pyplot as plt

    for name, plot in (("loss.png", plot_losses), ("contrast.png", plot_gains)):
        figure = plot(out).figure
        figure.savefig(out / name, dpi=110)
        plt.close(figure)


# %% [markdown]
# ## From the parameters at the top
#
# In the book the run is a toy: a model of 120,000 weights that learns letters for some seconds, then an adapter on it. It writes no words, but it can be asked how likely they are. Its own answers are the wrong lines, and the rate is fifty times that of the settings. A job leaves the next cell out.

# %% tags=["example"]
place, short = Path(tempfile.mkdtemp()), {"max_seq_len": 600, "sample_steps": 0, "device": "cpu"}
letters = {"mode": "full", "base_model": "tiny", "global_batch_size": 4, "learning_rate": 5e-3, "max_steps": 70}
adapter = {"base_model": str(place / "letters" / "model"), "learning_rate": 5e-3, "max_steps": 70}
with redirect_stdout(io.StringIO()):
    for folder, given in (("letters", letters), ("tuned", adapter)):
        loop(LoopConfig(run=str(place / folder), eval_steps=given["max_steps"], **given, **short))
run, out, rejected, pairs = str(place / "tuned"), str(place / "contrast"), "samples", 48
epochs, learning_rate = 4.0, 1e-3

# %%
config = ContrastConfig.from_names(globals())
summary = contrast(config)
print(contrast_text(summary))

# %% [markdown]
# The picture that belongs to the pair by hand: what both lines have gained since the stage began, in nats per line, the mean over the pairs of a step. The wrong line must come to lie below the right one. At first both sink; `nll_weight` is there to pull the right one back.

# %%
plot_gains(config.out)
plt.show()

# %%
named = {"likelier, before": "ranked_before", "likelier, after": "ranked_after", "gained more": "gained"}
pd.DataFrame({words: summary[name] for words, name in named.items()}).round(3)

# %% [markdown]
# On scenes that were not trained, too, most right lines have gained on the wrong ones; fewer pairs have changed sides, since a model finds its own words likely, whatever they are. The tiny model shows that the stage does what it says, and nothing about characters. What it brings SmolLM2 or a larger model (contrast on unseen scenes, what listeners say, how much is recited) has not been measured yet; nor has which kind of wrong line is the better one. Do not take the ranked share for it: it was trained for.

# %% tags=["check"]
assert summary["status"] == "done" and summary["gained"]["all"] > 0.6
steps = [r for r in read_jsonl(Path(config.out) / "metrics.jsonl") if "margin" in r]
assert abs(steps[0]["margin"]) < 1e-4 and steps[-1]["margin"] > 0.05
again = Run(config.out)
assert (
    find_trained(config.out).kind == "adapter"
    and again.data().report == Run(config.run).data().report
    and len(again.texts())
)
# the first run's own number, computed anew
assert abs(summary["valid_loss_nats_before"] - Run(config.run).summary.valid_loss_nats_best) < 1e-3

# %% [markdown]
# You can now say by how much a line is its speaker's, take the best of several answers by it, and teach a model what its character would not say.

# %% [markdown]
# ### Exercises
#
# 1. A pair's right line has gained 1 nat, its wrong line 3. What are margin and loss with $\beta = 0.5$?
# 2. A line has the same log-probability in everybody's mouth. What is its contrast, and is it a bad line?

# %% tags=["check"]
loss, margin = dpo_losses(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), beta=0.5)
assert margin.item() == -1 and math.isclose(loss.item(), math.log(1 + math.e), rel_tol=1e-6)  # 1.313
# 0 nats; it may be a good line, since "What?" is everybody's, but it does not show who speaks
