# %%
#| default_exp character.likelihood

# %% [markdown]
# # How likely is this line, from this mouth?
#
# > What a language model's own probabilities say about a voice: surprise, contrast, and who speaks next.
#
# A model need not say anything to be judged. It can be asked how likely the line is that the script really has at a moment. Three questions follow. How surprised is the model by the line (the held-out loss, line by line)? How much *more* surprised is it if somebody else were to say the same words (the contrast; a model that has learned English and no character has none)? And whom does it expect to speak (it writes the names, too)?
#
# None of them can be fooled by what a model likes to say, since nothing is drawn. None of them hears what the model would say, either; for that there is [the voice](50_voice.ipynb).

# %%
#| export
import copy
import math
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from typing import Any

from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prompt import TextMaker, prompt_tokens
from simpsons_llm.machine.job import require
from simpsons_llm.model.infer import most_tokens

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.samples import row_samples
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.base import load_base
from simpsons_llm.model.loss import PadRight, token_losses


# %% [markdown]
# ## Moments
#
# A moment is a place in a held-out scene at which somebody speaks. Which moments? Measures that pool the lines of one character need many lines of few characters, so those with most lines come first; none has more than a third of the moments, and those of one who has more are spread over the scenes. The first line of a scene has nothing before it and is left out.

# %%
#| export
@dataclass(frozen=True)
class Moment:
    "A line of a scene, and what was said before it."

    scene: Scene
    at: int  # its place in the scene, 1..

    @property
    def line(self) -> Line:
        "The line that the script has."
        return self.scene.lines[self.at]

    def request(
        self,
        speaker: str = "",  # who is to speak; empty: who does
    ) -> tuple:  # (location, `Line`s before, speaker), as `finish_lines` takes it
        "What a model is asked."
        return self.scene.location, list(self.scene.lines[: self.at]), speaker or self.line.speaker


SHARES = 3  # of all moments, one character has at most one


def choose_moments(
    scenes: list,  # held-out `Scene`s
    speakers: list | tuple = (),  # whose lines; empty: everybody's
    most: int = 0,  # how many at most, fewer where a few characters say nearly everything; 0: all
) -> list:  # of `Moment`, in the order of the scenes
    "Moments of the characters who speak most, by rule."
    found = [
        Moment(s, i)
        for s in scenes
        for i, line in enumerate(s.lines)
        if i and line.text.strip() and line.learn and (not speakers or line.speaker in speakers)
    ]
    if not most or most >= len(found):
        return found
    own: dict = {}
    for k, m in enumerate(found):
        own.setdefault(m.line.speaker, []).append(k)
    chosen: list = []
    for places in sorted(own.values(), key=lambda places: -len(places)):
        count = min(len(places), -(-most // min(SHARES, len(own))), most - len(chosen))
        chosen += [places[i * len(places) // count] for i in range(count)]
    return [found[k] for k in sorted(chosen)]


# %% tags=["example"]
parts = split_scenes(read_script("springfield").scenes)
moments = choose_moments(parts["valid"], most=90)
pd.Series(Counter(m.line.speaker for m in moments)).rename("lines of 90")

# %% tags=["check"]
every = choose_moments(parts["valid"])
assert len(every) == sum(len(s.lines) - 1 for s in parts["valid"]) and [m for m in every if m in moments] == moments
assert {m.line.speaker for m in choose_moments(parts["valid"], ["Homer Simpson"])} == {"Homer Simpson"}


# %% [markdown]
# ## One reading, many candidates
#
# The same words from five mouths are five sequences that begin alike: the whole scene so far. A model reads that once, keeps what it has computed (the cache), and reads the five short ends beside one another. Two candidates of three tokens after a scene of a hundred are 106 places instead of 206. And the next moment of the scene begins with the same words again: a reader that remembers goes on from there.

# %%
#| export
def shared_length(
    rows: list,  # token ids of each sequence, two tokens or more
) -> int:  # 0..the shortest length - 1
    "How many tokens all sequences begin with, one short of the shortest."
    shortest = min(map(len, rows)) - 1
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


class Reader:
    "A model that remembers what it has just read."

    def __init__(
        self,
        model,  # a causal language model, in evaluation mode
    ):
        self.model = model
        self.cache: Any = None
        self.ids: list = []

    def read(
        self,
        ids: list,  # tokens, one or more
    ) -> tuple:  # (logits behind the last token, 1 x 1 x V; a cache of one's own that holds the tokens)
        "Read some tokens, from where they differ from those before."
        import torch

        kept = 0
        if self.cache is not None and not any(getattr(self.cache, "is_sliding", [True])):
            same = (i for i, (a, b) in enumerate(zip(self.ids, ids)) if a != b)
            kept = min(next(same, len(self.ids)), len(ids) - 1)  # the last one is always read, for its logits
        if 0 < kept < len(self.ids):
            self.cache.crop(kept - len(self.ids))  # so many fewer
        row = torch.tensor([ids[kept:]], device=self.model.device)
        out = self.model(input_ids=row, past_key_values=self.cache if kept else None, use_cache=True, logits_to_keep=1)
        self.ids, self.cache = list(ids), out.past_key_values
        return out.logits[:, -1:], copy.deepcopy(self.cache)


def sequence_nats(
    reader: Reader,  # who reads
    rows: list,  # token ids of each sequence; the first is the same in all
    pad_id: int,  # the padding token
    most: int = 10**9,  # tokens at the beginning whose surprise is not asked for, 1 or more
) -> list:  # for each sequence, the surprise in nats of its tokens behind those that were read together, on the CPU
    "Negative log-probabilities of sequences that begin alike; what they share is read once, up to `most` tokens."
    import torch

    shared = min(shared_length(rows), most)
    require(shared, "sequences that begin with different tokens were given; expected one beginning for all")
    ends = [row[shared:] for row in rows]
    longest = max(map(len, ends))
    on = {"device": reader.model.device}
    ids = torch.tensor([end + [pad_id] * (longest - len(end)) for end in ends], **on)
    mask = torch.tensor([[1] * (shared + len(e)) + [0] * (longest - len(e)) for e in ends], **on)
    with torch.no_grad():
        first, cache = reader.read(rows[0][:shared])
        cache.batch_repeat_interleave(len(rows))
        logits = reader.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
        logits = torch.cat([first.expand(len(rows), 1, -1), logits[:, :-1]], 1).float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none").cpu()
    return [row[: len(end)] for row, end in zip(nats, ends)]


# %% [markdown]
# On the tiny model, against the plain way, one sequence after the other:

# %% tags=["check"]
device = find_device("cpu", "float32")
model, tokenizer = load_base("tiny", device)
model, maker = model.eval(), TextMaker(tokenizer)
rows = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11], [5, 6, 7, 8, 12]]
assert shared_length(rows) == 3 and shared_length([[1, 2], [1, 2]]) == 1
reader = Reader(model)
assert [len(n) for n in sequence_nats(reader, rows, 0, most=2)] == [4, 2, 3]  # two tokens are not asked for
for row, nats in zip(rows, sequence_nats(reader, rows, 0)):
    logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="none")
    assert torch.allclose(nats, plain[len(plain) - len(nats) :], atol=1e-5) and len(nats) == len(row) - 3


# %% [markdown]
# ## A moment, heard
#
# For each moment, the line is given to the right speaker and to others who might have said it. What comes back is the surprise of the words, and of the names. The names matter in the script template only, where the model writes them itself; in the others the name is part of the question.

# %%
#| export
def ask_alike(
    maker: TextMaker,  # tokenizer and template of the training
    location: str,  # where the scene is; may be empty
    before: list,  # the `Line`s before
    speakers: list,  # who might speak
    room: int = 10**9,  # most tokens of a prompt
) -> tuple:  # (token ids for each speaker, how many of them at the end are the name; 0 where it is not written there)
    "The same lines before each of several speakers."
    spoken = maker.said(before)  # the scene's tokens are made once
    made = [prompt_tokens(maker, location, before, name, max(1, room), spoken) for name in speakers]
    # the same lines before each, or a long name would have fewer
    if out := max(left_out for _, left_out in made):
        made = [prompt_tokens(maker, location, before[out:], name, said=spoken[out:]) for name in speakers]
    sizes = [len(maker.name(name)) if maker.template == "script" else 0 for name in speakers]
    return [tokens.ids for tokens, _ in made], sizes


def name_nats(
    reader: Reader,  # who reads
    maker: TextMaker,  # tokenizer and template of its training
    location: str,  # where the scene is; may be empty
    before: list,  # the `Line`s before
    speakers: list,  # who might speak, one or more
) -> list:  # surprise of each name and its colon, in nats; empty where the template does not write names
    "Who is expected to speak next."
    asked, sizes = ask_alike(maker, location, before, speakers, most_tokens(reader.model, maker))
    if not all(sizes):
        return []
    begin = min(len(ids) - size for ids, size in zip(asked, sizes))
    nats = sequence_nats(reader, asked, maker.tokenizer.pad_token_id, max(1, begin))
    return [float(n[-size:].sum()) for n, size in zip(nats, sizes)]


# %% [markdown]
# With the words behind the name, it is a line that is heard:

# %%
#| export
@dataclass(frozen=True)
class Heard:
    "What a model makes of the line of a moment."

    moment: Moment
    nats: float  # surprise of the line and its end, from the right speaker
    tokens: int  # of the line, its end included
    others: tuple = ()  # nats of the same line from each of the other speakers
    names: tuple = ()  # nats of (the right name, each other one); empty where the template does not write names

    @property
    def contrast(self) -> float:
        "How much more surprising the line is from somebody else, in nats per token; above 0: the voice is known."
        return (sum(self.others) / len(self.others) - self.nats) / self.tokens if self.others else math.nan

    @property
    def expected(self) -> bool:
        "Whether the right name is the likeliest of those that were asked for."
        return len(self.names) > 1 and self.names[0] == min(self.names)


def hear(
    reader: Reader,  # who reads
    maker: TextMaker,  # tokenizer and template of its training
    moment: Moment,  # where somebody speaks
    others: list | tuple = (),  # who else might
) -> Heard:
    "A line from the right mouth and from others."
    said = [*maker.said([moment.line])[0][1], *maker.end]
    who, (where, before, _) = [moment.line.speaker, *others], moment.request()
    asked, sizes = ask_alike(maker, where, before, who, most_tokens(reader.model, maker) - len(said))
    begin = min(len(ids) - size for ids, size in zip(asked, sizes))
    nats = sequence_nats(reader, [ids + said for ids in asked], maker.tokenizer.pad_token_id, max(1, begin))
    lines = [float(n[-len(said) :].sum()) for n in nats]
    names = [float(n[: -len(said)][-size:].sum()) for n, size in zip(nats, sizes)] if all(sizes) else []
    return Heard(moment, lines[0], len(said), tuple(lines[1:]), tuple(names))


# %% [markdown]
# The surprise of the line is that of training's own sample for it, to the last digit that a float has:

# %% tags=["check"]
moment = moments[10]
sample = next(s for s in row_samples([moment.scene], maker, (), 2000, 99)[0][moment.at :])
losses, weights = token_losses(model, PadRight(tokenizer.pad_token_id)([sample.features()]))
heard = hear(reader, maker, moment, ["Bart Simpson", "Ned Flanders"])
assert math.isclose(heard.nats, (losses * (weights == 1)).sum().item(), rel_tol=1e-4)
assert heard.tokens == int((weights == 1).sum()) and len(heard.others) == 2 and len(heard.names) == 3
assert math.isclose(hear(reader, maker, moment).nats, heard.nats, rel_tol=1e-4)  # alone as among others
names = name_nats(reader, maker, *moment.request()[:2], [moment.line.speaker, "Bart Simpson", "Ned Flanders"])
assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(names, heard.names, strict=True))
chat = hear(reader, TextMaker(tokenizer, "alpaca"), moment, ["Bart Simpson"])
assert not chat.names and not chat.expected and len(chat.others) == 1
assert name_nats(reader, TextMaker(tokenizer, "alpaca"), *moment.request()[:2], ["Bart Simpson"]) == []


# %% [markdown]
# ## Sums
#
# From many moments, the figures. Losses are sums of nats over sums of tokens, so a long line counts as much as its tokens do. Bits per byte says the same for models whose tokens differ: what a byte of the script costs, if the model were used to compress it.

# %%
#| export
def loss_nats(
    heard: list,  # of `Heard`
) -> float:  # nats per token; NaN without any
    "Held-out loss of lines."
    tokens = sum(h.tokens for h in heard)
    return sum(h.nats for h in heard) / tokens if tokens else math.nan


def bits_per_byte(
    heard: list,  # of `Heard`
) -> float:  # bits; NaN without any
    "What a byte of the lines costs; the end of a line counts as one."
    size = sum(len(h.moment.line.text.encode()) + 1 for h in heard)
    return sum(h.nats for h in heard) / math.log(2) / size if size else math.nan


def contrast_nats(
    heard: list,  # of `Heard`
) -> float:  # nats per token; 0: it makes no difference who speaks; NaN without any
    "How much more surprising lines are from somebody else."
    asked = [h for h in heard if h.others]
    tokens = sum(h.tokens for h in asked)
    return sum(h.contrast * h.tokens for h in asked) / tokens if tokens else math.nan


def next_speaker_acc(
    heard: list,  # of `Heard`
) -> float:  # 0..1; NaN where the template writes no names
    "How often the right name is the likeliest."
    asked = [h.expected for h in heard if len(h.names) > 1]
    return sum(asked) / len(asked) if asked else math.nan


# %% [markdown]
# Two lines of four and six tokens, by hand: 8 and 18 nats from the right speaker, 10 and 18 from another.

# %% tags=["check"]
two = [Heard(moments[0], 8.0, 4, (10.0,), (1.0, 2.0)), Heard(moments[1], 18.0, 6, (18.0,), (3.0, 2.0))]
assert loss_nats(two) == 26 / 10 and contrast_nats(two) == 2 / 10 and next_speaker_acc(two) == 1 / 2
assert math.isclose(bits_per_byte(two[:1]), 8 / math.log(2) / (len(moments[0].line.text.encode()) + 1))
assert all(math.isnan(f([])) for f in (loss_nats, bits_per_byte, contrast_nats, next_speaker_acc))


# %% [markdown]
# ## What must not be forgotten
#
# A model that learns a script unlearns other things. How much, is told by text that has nothing to do with it: two pages of plain prose that come with the package. They were written for it, so no model can have learned them by heart.

# %%
#| export
def text_bits_per_byte(
    model,  # a causal language model, in evaluation mode
    tokenizer,  # its tokenizer
    text: str = "",  # paragraphs with a blank row between; empty: the package's own
) -> float:  # bits per byte
    "What a byte of plain text costs, each paragraph read by itself."
    import torch

    text = text or (resources.files("simpsons_llm.character") / "plain.txt").read_text(encoding="utf8")
    nats, size = 0.0, 0
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        ids = [tokenizer.eos_token_id, *tokenizer(paragraph, add_special_tokens=False).input_ids]
        row = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=row).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
        size += len(paragraph.encode())
    return nats / math.log(2) / size


# %% [markdown]
# ## A base model, heard
#
# SmolLM2 has never seen the book's script, but the internet has talked about the show. Does it know who speaks? Twenty-four moments, each line given to the right speaker and to the four who speak most:

# %% tags=["example"]
smol, its_tokenizer = load_base("smollm2-135m", device)
smol, its_maker = smol.eval(), TextMaker(its_tokenizer)
some = choose_moments(parts["valid"], most=24)
main = [who for who, _ in Counter(line.speaker for s in parts["train"] for line in s.lines).most_common(5)]
listener = Reader(smol)
told = [hear(listener, its_maker, m, [who for who in main if who != m.line.speaker][:4]) for m in some]
pd.Series({f.__name__: f(told) for f in (loss_nats, bits_per_byte, contrast_nats, next_speaker_acc)}).round(3)

# %% [markdown]
# The contrast of each line. To the right of zero, the words are likelier from the one who says them; a line such as "Yes." could be anybody's:

# %% tags=["example"]
lines = sorted(told, key=lambda h: h.contrast)
ax = plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
ax.barh(
    range(len(lines)), [h.contrast for h in lines], color=["#c9c9c9" if h.contrast < 0 else "#f2c500" for h in lines]
)
for k in (0, 1, -2, -1):
    line = lines[k].moment.line
    ax.text(0.01, k % len(lines), f"{line.speaker}: {line.text[:58]}", fontsize=7, va="center")
ax.set(yticks=[], xlabel="contrast in nats per token")
ax.spines[["top", "right", "left"]].set_visible(False)
plt.show()

# %% tags=["check"]
fair = sum(h.contrast > 0 for h in told) / len(told)
print(f"{fair:.0%} of lines are likelier from the right speaker; plain prose costs", end=" ")
print(f"{text_bits_per_byte(smol, its_tokenizer):.3f} bits a byte, the script {bits_per_byte(told):.3f}")
assert 0.5 < text_bits_per_byte(smol, its_tokenizer) < bits_per_byte(told) < 3

# %% [markdown]
# Lines of a script cost more than prose: they are short, and half of what they mean stands elsewhere.
#
# You can now ask a model three things about a line that it did not write.

# %% [markdown]
# ### Exercises
#
# 1. A line of five tokens costs 12.5 nats from Homer, 13 from Bart and 14 from Lisa. What is its contrast?
# 2. A model's loss falls by 0.3 nats a token, its contrast stays at zero. What has it learned?

# %% tags=["check"]
assert Heard(moments[0], 12.5, 5, (13.0, 14.0)).contrast == 0.2
# how people in this script talk, and not who does: every mouth gains the same
same = [Heard(moments[0], n, 5, (n, n)) for n in (12.5, 11.0)]
assert loss_nats(same[1:]) < loss_nats(same[:1]) and contrast_nats(same) == 0
