# %%
#| default_exp model.loss

# %% [markdown]
# # Evaluation
#
# > How well does a model guess the lines of scenes that it has never seen? One number, per token.
#
# Before a model is taught, one must be able to say how good it is. The number for that is the *held-out loss*: how improbable the model finds the lines of scenes that it was not trained on. The base model has one already, and fine-tuning should bring it down. The same loss, on training scenes, is what training minimises.
#
# This first version of the chapter holds that number alone. Whether a line sounds like its speaker, whether answers vary, whether the model only remembers: that needs other measures, which come later.

# %%
#| export
import sys
from dataclasses import dataclass

from simpsons_llm.data.packing import EndToEnd, base_of, packed_inputs, require_learning, to_device
from simpsons_llm.machine.distributed import group_ranks, total
from simpsons_llm.machine.job import require

# %%
#| hide
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.packing import use_isolated
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.data.samples import Sample, scene_samples
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.base import load_base, tiny_model


# %% [markdown]
# ## Samples side by side
#
# Several samples are read at once. The packing chapter lays them end to end, where a model's attention allows it. For all other models the shorter ones are filled up, on the right. With causal attention no real token sees what stands to its right, so no attention mask is needed, and the fast attention kernels can be used.

# %%
#| export
class PadRight:
    "Collator: samples side by side, filled up on the right with weight 0."

    def __init__(
        self,
        pad_id: int,  # the padding token
    ):
        self.pad_id = pad_id

    def __call__(
        self,
        samples: list,  # what `Sample.features` gives: dicts with input_ids and loss_weights
    ) -> dict:  # B x T: input_ids (int64), loss_weights (float32), labels (-100 where nothing is learned); lengths (B)
        import torch

        longest = max(len(s["input_ids"]) for s in samples)
        ids = torch.tensor([s["input_ids"] + [self.pad_id] * (longest - len(s["input_ids"])) for s in samples])
        weights = torch.tensor([s["loss_weights"] + [0.0] * (longest - len(s["loss_weights"])) for s in samples])
        require_learning(weights[:, 1:])
        return {
            "input_ids": ids,
            "loss_weights": weights,
            "labels": ids.masked_fill(weights == 0, -100),
            "lengths": torch.tensor([len(s["input_ids"]) for s in samples]),
        }


# %% [markdown]
# A sample of four tokens beside one of two. The second is filled up with token 0, of weight 0, and neither that nor what has no weight becomes a label:

# %% tags=["example"]
long = {"input_ids": [11, 12, 13, 14], "loss_weights": [0.0, 0.0, 1.0, 1.0]}
short = {"input_ids": [21, 22], "loss_weights": [0.0, 1.0]}
PadRight(pad_id=0)([long, short])


# %% [markdown]
# Which of the two ways a batch is laid depends on the model alone, so it is asked of the model and nobody else needs to know.

# %%
#| export
def collator(
    model,  # a causal language model
    pad_id: int,  # the padding token
):  # `EndToEnd` for a model that uses isolated attention, else `PadRight`
    "How samples become a batch for this model."
    return (EndToEnd if model.config._attn_implementation == "isolated" else PadRight)(pad_id)


# %% [markdown]
# The same tiny model, before and after its attention keeps samples in a row apart:

# %% tags=["example"]
model, _ = tiny_model()
at_first = type(collator(model, 0)).__name__
use_isolated(model)
at_first, type(collator(model, 0)).__name__


# %% [markdown]
# ## A loss that counts tokens by their weight
#
# For each position a model computes *logits*: one number for each token of the vocabulary, from which the probabilities are made. With 49,152 tokens they are the largest thing in memory: a thousand tokens take 200 MB, and as much again for their gradients. Positions from which nothing is learned need none. `logits_to_keep` tells the model at which positions to compute them.
#
# The loss of several batches together is $\sum w_t \, \ell_t / \sum w_t$ over *all* their tokens, where $\ell_t$ is the negative log-probability of token $t$ in nats and $w_t$ its weight. Averaging each batch first and then the averages would count tokens of short batches more, as an example below shows.

# %%
#| export
def token_losses(
    model,  # a causal language model
    batch: dict,  # what `PadRight` or `EndToEnd` makes, on the model's device; its `keep`, if given: the K positions
) -> tuple:  # (losses in nats, B x K; weights, B x K), where K counts the positions of which at least one sample learns
    "Negative log-probability of the learned tokens."
    import torch

    weights = batch["loss_weights"][:, 1:]
    # position t predicts token t + 1
    keep = batch["keep"] if "keep" in batch else (weights > 0).any(0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"], logits_to_keep=keep, use_cache=False, **packed_inputs(batch)
    ).logits.float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["input_ids"][:, keep + 1].flatten(), reduction="none"
    )
    return losses.view(logits.shape[:2]), weights[:, keep]


# %% [markdown]
# Nothing is lost by leaving positions out: the same loss as with all logits.

# %% tags=["check"]
cpu = find_device("cpu", "float32")
tiny, tiny_tokenizer = load_base("tiny", cpu)
scenes = split_scenes(read_script("springfield").scenes)["valid"][:3]
samples, _ = scene_samples(scenes, TextMaker(tiny_tokenizer), ["Homer Simpson"], max_seq_len=900, context_weight=0.5)
batch = PadRight(tiny_tokenizer.pad_token_id)([s.features() for s in samples[:3]])
losses, weights = token_losses(tiny, batch)
whole = torch.nn.functional.cross_entropy(
    tiny(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1),
    batch["input_ids"][:, 1:].flatten(),
    reduction="none",
)
assert torch.allclose((losses * weights).sum(), (whole * batch["loss_weights"][:, 1:].flatten()).sum(), rtol=1e-5)
alone = [(lambda loss, w: (loss * w).sum())(*token_losses(tiny, PadRight(0)([s.features()]))) for s in samples[:3]]
assert torch.allclose(sum(alone), (losses * weights).sum(), rtol=1e-5)  # filling up changes nothing
assert {0.5, 1.0} <= set(weights.unique().tolist())

# %% [markdown]
# How much is left out? In the same scenes, Homer's lines alone are learned now; the others' lines are read, but no logits are computed at them:

# %% tags=["example"]
homer, _ = scene_samples(scenes, TextMaker(tiny_tokenizer), ["Homer Simpson"], max_seq_len=900)
losses, _ = token_losses(tiny, PadRight(0)([homer[0].features()]))
f"logits at {losses.shape[1]} of {len(homer[0].input_ids)} positions"

# %% [markdown]
# Two batches, one with many learned tokens and one with few: the mean over tokens, and the mean of the two means.

# %% tags=["example"]
sums = [
    tuple(x.item() for x in ((loss * w).sum(), w.sum()))
    for loss, w in (
        token_losses(tiny, PadRight(0)([Sample(samples[0].input_ids[:n], samples[0].loss_weights[:n]).features()]))
        for n in (900, 150)
    )
]
print(
    f"{sums[0][1]:.0f} and {sums[1][1]:.0f} learned tokens (by weight): "
    f"{sum(loss for loss, _ in sums) / sum(w for _, w in sums):.4f} nats over tokens, "
    f"{sum(loss / w for loss, w in sums) / 2:.4f} as a mean of means"
)


# %% [markdown]
# ## Held-out loss, per token
#
# The number by which a model is judged: the mean over all learned tokens of the held-out lines, in nats. Not the mean of batch means, which depends on how lines happen to be batched. Only tokens of full weight count.
#
# What does not count is not computed: a sample without a token of full weight is left out, and so is the loss of other characters' lines.
#
# Compare this number only between runs with the same base model, data, view, template and context. Another tokenizer cuts the text into other tokens; another view gives the model other context.

# %%
#| export
def scored(
    samples: list,  # `Sample`s
) -> list:  # their features, those with a token of full weight behind the first, all other weights 0
    "What of held-out samples is scored."
    return [
        {"input_ids": s.input_ids, "loss_weights": [float(w == 1) for w in s.loss_weights]}
        for s in samples
        if 1.0 in s.loss_weights[1:]
    ]


# %% [markdown]
# The tokens of the samples from above by their weight, as they are learned from and as they are scored. Those of weight 0.5, other characters' words, go to 0:

# %% tags=["example"]
pd.DataFrame(
    {
        "learned from": pd.Series([w for s in samples for w in s.loss_weights]).value_counts(),
        "scored": pd.Series([w for s in scored(samples) for w in s["loss_weights"]]).value_counts(),
    }
).rename_axis("weight").fillna(0).astype(int)

# %% [markdown]
# ## As many at once as there is room for
#
# Scoring is done over and over: before training, on the way, at the end. It keeps nothing for a backward pass, so an accelerator has room for many more samples than in training, and with a few samples at once it would wait for the processor most of the time. What is limited is the number of tokens (those that are filled up are computed as well), and the number of positions with logits. For each of these come a number in 16 bits from the model, a copy in 32, and the logarithm of its probability in 32: ten bytes for each word of the vocabulary. With 49,152 tokens, 2,184 positions make 1 GiB.
#
# A CPU gains nothing from more samples at once: it computes all the time, and larger tensors fit worse into its caches. SmolLM2 on two cores (AMD EPYC, 30 November 2026) spent 17.2, 16.8, 17.0 and 18.9 processor seconds on the 11 validation scenes, 1, 2, 4 and 11 at once. There it stays at the size of the training.

# %%
#| export
SCORE_TOKENS = 16_384  # at once on an accelerator, filled-up ones counted
SCORE_BYTES = 2**30  # of logits and their copies at once, on an accelerator
LOGIT_BYTES = 10  # a logit: 2 as the model gives it, 4 in fp32, 4 as a logarithm of probability


@dataclass(frozen=True)
class ScoreLimit:
    "How much is scored at once; one sample always is."

    samples: int = sys.maxsize  # 1 or more
    tokens: int = sys.maxsize  # what is filled up included
    positions: int = sys.maxsize  # with logits, over all samples


def default_limit(
    vocabulary: int,  # tokens of the model's vocabulary
) -> ScoreLimit:
    "How much an accelerator scores at once."
    return ScoreLimit(tokens=SCORE_TOKENS, positions=max(1, SCORE_BYTES // (LOGIT_BYTES * vocabulary)))


def score_limit(
    model,  # a causal language model
    batch_size: int,  # samples at once on a CPU
) -> ScoreLimit:
    "How much of held-out samples a model's device takes at once."
    if model.device.type == "cpu":
        return ScoreLimit(samples=batch_size)
    # what a run has found, with the memory of training in mind
    found = getattr(base_of(model), "score_limit", None)
    return found or default_limit(model.get_input_embeddings().weight.shape[0])


def score_batches(
    samples: list,  # what `scored` gave
    limit: ScoreLimit,  # how much at once
    packed: bool,  # end to end; False: filled up to the longest
) -> list:  # lists of samples, none of them empty
    "Samples in batches that keep to a limit, in their order."
    batches: list = []
    at: set = set()  # where a batch has logits
    longest = tokens = positions = 0
    for s in samples:
        n, learned = len(s["input_ids"]), {t for t, w in enumerate(s["loss_weights"]) if w > 0 and t > 0}
        size = len(batches[-1]) + 1 if batches else 1
        # filled up, each sample has logits wherever one of them learns
        more = (tokens + n, positions + len(learned)) if packed else (size * max(longest, n), size * len(at | learned))
        if batches and size <= limit.samples and more[0] <= limit.tokens and more[1] <= limit.positions:
            batches[-1].append(s)
            longest, at, (tokens, positions) = max(longest, n), at | learned, more
        else:
            batches.append([s])
            longest, at, tokens, positions = n, learned, n, len(learned)
    return batches


# %% [markdown]
# The samples of above, two by two as a CPU may score them, and in at most 2,500 tokens, end to end and filled up. The shortest come first, so that little is filled up:

# %% tags=["example"]
ordered, most = sorted(scored(samples), key=lambda s: len(s["input_ids"])), ScoreLimit(tokens=2500)
print("tokens:", *[len(s["input_ids"]) for s in ordered])
ways = {
    "two by two": score_batches(ordered, ScoreLimit(samples=2), packed=True),
    "2,500 tokens, end to end": score_batches(ordered, most, packed=True),
    "2,500 tokens, filled up": score_batches(ordered, most, packed=False),
}
pd.Series({way: [len(b) for b in batches] for way, batches in ways.items()}, name="samples of each batch").to_frame()


# %% [markdown]
# Several processes share the samples: the first of them takes the first sample, the second one the second, and so on around, and each makes batches of its own. What they add up is the two sums, so that the mean is the same for any number of them. Reading a number from a device means waiting for it. So the sums of batches stay there, and are read when all is done.

# %%
#| export
def widest(
    device,  # a torch.device
):  # a torch.dtype
    "What sums are added up in: 64 bits, where a device has them for sure."
    import torch

    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def heldout_loss(
    model,  # a causal language model
    samples: list,  # `Sample`s
    pad_id: int,  # the padding token
    batch_size: int = 4,  # samples at once on a CPU; an accelerator takes what it has room for
    progress=None,  # called with the number of samples done
    limit: ScoreLimit | None = None,  # how much at once; None: what `score_limit` says
) -> float:  # nats per learned token
    """Mean negative log-probability of the held-out tokens to learn.

    In a group of ranks, each scores a part, and all must call it."""
    import torch

    was_training, ranks, collate = model.training, group_ranks(), collator(model, pad_id)
    ordered = sorted(scored(samples), key=lambda s: len(s["input_ids"]))
    require(ordered, "no held-out token is to be learned; check the speakers of the data")
    limit, packed = limit or score_limit(model, batch_size), isinstance(collate, EndToEnd)
    shares = [score_batches(ordered[k :: ranks.world_size], limit, packed) for k in range(ranks.world_size)]
    mine, longest = shares[ranks.rank], max(shares, key=len)
    sums, count = [], 0
    model.eval()
    with torch.no_grad():
        for turn, other in enumerate(longest):
            # all ranks take as many turns; one without a batch of its own computes another's, and does not count it
            batch = collate(mine[turn] if turn < len(mine) else other)
            learned = batch["loss_weights"][:, 1:] == 1
            keep = learned.any(0).nonzero().squeeze(1)
            losses, weights = token_losses(model, to_device({**batch, "keep": keep}, model.device))
            if turn < len(mine):
                sums.append(losses.where(weights == 1, 0.0).sum(dtype=widest(model.device)))
                count += int(learned.sum())
            if progress:
                progress(sum(len(b) for share in shares for b in share[: turn + 1]))
    model.train(was_training)
    loss = torch.stack(sums).cpu().double().sum().item() if sums else 0.0
    loss, count = total(loss, count)
    return loss / count


# %% tags=["check"]
one, four = (heldout_loss(tiny, samples, tiny_tokenizer.pad_token_id, batch_size=n) for n in (1, 4))
use_isolated(tiny)
# one by one, filled up, end to end
assert abs(one - four) < 1e-5 and abs(one - heldout_loss(tiny, samples, tiny_tokenizer.pad_token_id)) < 1e-5
full = [
    (loss[w == 1].sum().item(), int((w == 1).sum()))
    for loss, w in (token_losses(tiny, PadRight(0)([s.features()])) for s in samples)
]
assert abs(one - sum(loss for loss, _ in full) / sum(n for _, n in full)) < 1e-5
# of other characters' lines nothing is in it
assert scored([*samples, Sample([5, 6, 7], [0.0, 0.5, 0.5])]) == scored(samples)
# a random model knows nothing: about ln(vocabulary)
assert abs(one - math.log(len(tiny_tokenizer))) < 0.3
print(
    f"random model: {one:.3f} nats per token; "
    f"guessing among {len(tiny_tokenizer)} tokens: {math.log(len(tiny_tokenizer)):.3f}"
)

# %% [markdown]
# And the real base model, on the first two validation scenes of the book's script. It knows English well, these people not at all:

# %% tags=["example"]
where = find_device()
base, tokenizer = load_base("smollm2-135m", where)
real, _ = scene_samples(scenes[:2], TextMaker(tokenizer))
before = heldout_loss(base, real, tokenizer.pad_token_id)
print(
    f"{before:.3f} nats per token, that is, the right token gets {math.exp(-before):.1%} (geometric mean); "
    f"evenly among {len(tokenizer):,} tokens it would be {math.log(len(tokenizer)):.1f} nats"
)

# %% tags=["check"]
assert before < 0.5 * math.log(len(tokenizer))

# %% [markdown]
# Which words does that come from? One line of Homer's, token by token; the dashed line is the mean from above:

# %% tags=["example"]
spoken, _ = scene_samples(scenes[:1], TextMaker(tokenizer), ["Homer Simpson"])
batch = to_device(PadRight(tokenizer.pad_token_id)(scored(spoken[:1])), base.device)
with torch.no_grad():
    nats = token_losses(base, batch)[0][0].tolist()
words = [tokenizer.decode([t]) for t, w in zip(spoken[0].input_ids[1:], spoken[0].loss_weights[1:]) if w == 1]
first, last = [i for i, word in enumerate(words) if word == "\n"][:2]
ax = pd.Series(nats[first + 1 : last]).plot.bar(figsize=(6.4, 3), color="#4f86c6", width=0.8)
ax.axhline(before, color="#c0504d", ls="--", lw=1)
ax.set_xticklabels([word.strip() for word in words[first + 1 : last]], rotation=60)
ax.set_ylabel("nats")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
print(
    f"{words[last - 2].strip()!r} alone: {nats[last - 2]:.1f} nats; 'arge' after ' M': {nats[words.index('arge')]:.2f}"
)

# %% [markdown]
# Ends of words and most punctuation cost little. The loss stands in the words that a speaker chooses, here above all in the one that makes the joke.
