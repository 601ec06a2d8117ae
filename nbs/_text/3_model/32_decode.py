# %%
#| default_exp model.decode

# %% [markdown]
# # One token after the other
#
# > How an answer is drawn, and how to draw it fast: what was read is kept, and the whole step for a token is recorded.
#
# A language model gives one thing: for each token of the vocabulary, how likely it comes next. An answer is that, sixty times. This chapter holds the settings of the lot, one page that draws with them, and what makes the page fast. What is asked, and what becomes of the tokens, stands in [the chapter on finishing a line](33_infer.ipynb). What the page cannot do (beams, models whose attention looks at a window only) is left to transformers' `generate`, whose answers it gives token for token.

# %%
#| export
import difflib
import math
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from types import FunctionType
from typing import Any
from unittest.mock import patch

from simpsons_llm.data.packing import base_of
from simpsons_llm.machine.distributed import in_group
from simpsons_llm.machine.graphs import Recorded, graph_class
from simpsons_llm.machine.job import require

# %%
#| hide

import time

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.machine.device import Draws, find_device
from simpsons_llm.model.base import load_base


# %% [markdown]
# ## How words are drawn
#
# A language model gives each next token a probability. *Greedy* takes the best each time; small models then go round in circles. *Sampling* draws by lot. First, tokens that already stand in prompt or answer are made less likely (`repetition_penalty`; names in the scene are hit too). Then the odds are sharpened (`temperature` below 1), then the unlikely tail is cut (`top_k`, then `top_p`), then one token is drawn. Another way to cut the tail is `min_p` ([Nguyen et al. 2024](https://arxiv.org/abs/2407.01082)): out goes what is less likely than that share of the best token, so much is cut where the model is sure, and little where it is not; the book leaves it off. `num_beams` keeps that many drafts at once and returns the likeliest; with sampling on, the drafts themselves are drawn. The seed used five beams. One of its settings is changed here: it allowed 100 tokens for prompt *and* answer, so a long prompt left no room to answer; here the answer alone may have 100.

# %%
#| export
@dataclass(frozen=True)
class Sampling:
    "How an answer is drawn; the names are those of transformers' `generate`."

    max_new_tokens: int = 60  # most tokens of an answer, 1 or more
    do_sample: bool = True  # False: always the most likely token
    temperature: float = 0.8  # above 0
    top_k: int = 50  # 0: no limit
    top_p: float = 0.95  # above 0, up to 1
    num_beams: int = 1  # 1 or more
    repetition_penalty: float = 1.05  # above 0; 1: none
    min_p: float = 0.0  # least probability as a share of the best token's, 0..1; 0: off

    def __post_init__(self):
        for name in ("max_new_tokens", "top_k", "num_beams"):
            n = getattr(self, name)
            require(isinstance(n, int) and not isinstance(n, bool), f"{name}={n!r} was given; expected a whole number")
        for name in ("temperature", "top_p", "repetition_penalty", "min_p"):
            x = getattr(self, name)
            require(
                isinstance(x, (int, float)) and not isinstance(x, bool), f"{name}={x!r} was given; expected a number"
            )
        require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} was given; expected 1 or more")
        require(
            self.temperature > 0,
            f"temperature={self.temperature} was given; expected a number above 0, or do_sample=False (greedy)",
        )
        require(0 < self.top_p <= 1, f"top_p={self.top_p} was given; expected a number above 0, up to 1")
        require(0 <= self.min_p <= 1, f"min_p={self.min_p} was given; expected a number from 0 (off) to 1")
        require(
            self.top_k >= 0 and self.num_beams >= 1 and self.repetition_penalty > 0,
            f"expected top_k 0 or more, num_beams 1 or more and repetition_penalty above 0, given {self}",
        )

    def changed(
        self,
        **given,  # single settings by name
    ) -> "Sampling":  # ValueError if there is no such setting, or it cannot be
        "The same with some settings changed."
        known = [f.name for f in fields(self)]
        for name in given:
            near = difflib.get_close_matches(name, known, n=2) or known
            require(name in known, f"{name}={given[name]!r} was given; did you mean {' or '.join(near)}?")
        return replace(self, **given)

    def arguments(self) -> dict:
        "For `generate`: without the settings that are off, or mean nothing when the best token is always taken."
        idle = set() if self.do_sample else {"temperature", "top_k", "top_p", "min_p"}
        if not self.min_p:
            idle.add("min_p")
        return {k: v for k, v in asdict(self).items() if k not in idle}


# %% [markdown]
# The book's settings, the seed's, and no lot at all:

# %%
#| export
SAMPLING = {
    "book": Sampling(),
    "seed": Sampling(100, True, 0.8, 50, 0.9, 5, 1.2),
    "greedy": Sampling(do_sample=False, repetition_penalty=1.0),
}

# %% [markdown]
# What `generate` is called with. Greedy has no use for what shapes a lot:

# %% tags=["example"]
pd.DataFrame({name: pd.Series(preset.arguments(), dtype=object) for name, preset in SAMPLING.items()}).fillna("")

# %% [markdown]
# A name that is none is not swallowed:

# %% tags=["example"]
try:
    Sampling().changed(temprature=1.2)
except ValueError as e:
    print(e)


# %% [markdown]
# ## The lot
#
# The settings above, as arithmetic on the logits of the next token. The order is that of transformers: punish what was said, sharpen, cut to the best `top_k`, cut to those that hold `top_p`, cut to those that reach `min_p`, draw. Of the whole vocabulary only the best `top_k` have to be sorted.

# %%
#| export
def draw_tokens(
    logits,  # B x V, float32: of the next token
    sampling: Sampling,  # how words are drawn; its beams and number of tokens are not used
    seen=None,  # B x V, bool: tokens that stand in prompt or answer; None: none
):  # B token ids
    "The next token of each row, with the random numbers of the process."
    import torch

    if seen is not None and sampling.repetition_penalty != 1:
        unlikely = torch.where(logits < 0, logits * sampling.repetition_penalty, logits / sampling.repetition_penalty)
        logits = torch.where(seen, unlikely, logits)
    if not sampling.do_sample:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        best = logits.topk(min(sampling.top_k or logits.shape[-1], logits.shape[-1])).values
        chances = best.softmax(-1)
        # a token stays if those before it hold less than top_p; the first one always does
        stays = chances.cumsum(-1) - chances < sampling.top_p
        last = best.masked_fill(~stays, torch.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < last, -torch.inf)
    if sampling.min_p:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


# %% [markdown]
# Five tokens with the logits 3, 2, 1, 0 and -1, drawn a thousand times. `top_p` 0.8 keeps two of them, `min_p` 0.1 three, and a token that was said comes less often:

# %% tags=["example"]
five = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).repeat(1000, 1)
said = torch.tensor([[True, False, False, False, False]])
ways = {
    "as they are": (Sampling(temperature=1.0, top_p=1.0, top_k=0), None),
    "temperature 0.5": (Sampling(temperature=0.5, top_p=1.0, top_k=0), None),
    "top_p 0.8": (Sampling(temperature=1.0, top_p=0.8, top_k=0), None),
    "min_p 0.1": (Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.1), None),
    "the first was said": (Sampling(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=2.0), said),
    "greedy": (SAMPLING["greedy"], None),
}
with Draws(torch.device("cpu"), 0):
    shares = {name: draw_tokens(five, s, seen).bincount(minlength=5) / 1000 for name, (s, seen) in ways.items()}
pd.DataFrame(shares, index=[f"logit {x:g}" for x in five[0].tolist()]).T

# %% tags=["check"]
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

some, ids = torch.randn(64, 500) * 3, torch.randint(0, 500, (64, 20))
for s in (
    Sampling(),
    Sampling(top_k=0, top_p=0.7),
    Sampling(top_p=1.0, top_k=3, repetition_penalty=1.3),
    Sampling(min_p=0.2),
    Sampling(top_k=0, top_p=1.0, min_p=0.05),
):
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(s.repetition_penalty)])
    theirs += [TemperatureLogitsWarper(s.temperature), TopKLogitsWarper(s.top_k or 500), TopPLogitsWarper(s.top_p)]
    theirs += [MinPLogitsWarper(s.min_p)]
    with Draws(torch.device("cpu"), 1):
        wanted = torch.multinomial(theirs(ids, some).softmax(-1), 1)[:, 0]
    with Draws(torch.device("cpu"), 1):
        assert torch.equal(draw_tokens(some, s, torch.zeros(64, 500, dtype=torch.bool).scatter_(1, ids, True)), wanted)


# %% [markdown]
# ## The page
#
# A token looks at all tokens before it. Their keys and values do not change, so they are kept in a *cache*; the prompt is read in one pass, and each further pass reads one token per row. Here the cache has its full length from the beginning, and a mask says which places count. That costs a little more arithmetic than a cache that grows, and has one great advantage: every step is the same program on the same tensors. So an accelerator can [record](../9_machine/95_graphs.ipynb) the step, the lot included, and replay it with one call, where it would otherwise wait for a thousand small kernels to be launched.

# %%
#| export
def decodes_here(
    model,  # a model, with or without adapter
) -> str:  # "" if the page can draw with it, else why not
    "Whether a model's cache may have its full length from the beginning."
    from transformers import StaticCache

    plain = base_of(model)
    if not getattr(plain, "_can_compile_fullgraph", False):
        return "the model does not say that its steps are all alike"
    if any(hasattr(p, "device_mesh") for p in plain.parameters()):
        return "the model is spread over several devices"
    if any(getattr(layer, "is_sliding", True) for layer in StaticCache(config=plain.config, max_cache_len=8).layers):
        return "some layers look at a window only"
    return ""


class Decoder:
    "A model that draws: prompts in, and one token for each row at a time."

    def __init__(
        self,
        model,  # a model that `decodes_here`, in evaluation mode
        rows: int,  # prompts at once, B
        length: int,  # most tokens of a prompt, T; shorter ones are filled up
        sampling: Sampling,  # how words are drawn, and how many
        ends=(),  # tokens that end an answer
        pad_id: int = 0,  # fills up, and stands behind the end
        how: str = "auto",  # auto: a recorded step where the device can; layers: compiled as well; none: neither
        again: bool = False,  # record the reading of prompts too, since there will be many
    ):
        import torch
        from transformers import StaticCache

        require(not (why := decodes_here(model)), f"this model cannot be decoded here: {why}; use its `generate`")
        require(how in DECODES, f"compile={how!r} was given; expected {', '.join(DECODES)}")
        self.model, self.sampling, self.pad_id = model, sampling, pad_id
        room, device = length + sampling.max_new_tokens, torch.device(model.device)
        self.cache = StaticCache(config=base_of(model).config, max_cache_len=room)
        whole: dict[str, Any] = {"dtype": torch.long, "device": device}
        self.ids = torch.full((rows, length), pad_id, **whole)  # the prompts
        self.given = torch.zeros(rows, length, dtype=torch.bool, device=device)  # which of them are prompt
        self.token, self.place = torch.zeros(rows, 1, **whole), torch.zeros(rows, 1, **whole)  # the last token drawn
        self.column = torch.zeros(1, **whole)  # of the cache, where that token's keys will stand
        self.mask = torch.zeros(rows, 1, 1, room, dtype=torch.bool, device=device)  # columns that count
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.ends = torch.tensor(sorted(set(ends)) or [-1], **whole)
        self.seen = torch.zeros(rows, model.get_output_embeddings().weight.shape[0], dtype=torch.bool, device=device)
        self.begin, self.go_on = self.read, self.step
        # a shorter answer is there before a step is recorded, and has no room for the steps that warm up
        if how != "none" and sampling.max_new_tokens >= 8 and graph_class(device) and not in_group():
            self.given.fill_(True)
            try:
                self.record(compiled=how == "layers")
                if again:
                    self.begin = Recorded(self.read, device)
            except RuntimeError as e:  # the answers are the same, and take longer
                warnings.warn(f"answers are drawn one kernel at a time: {str(e)[:200]}", stacklevel=2)

    def record(
        self,
        compiled: bool,  # its layers, too, if they can be
    ):
        "Record the step of a token; RuntimeError where the device refuses."
        self.read()  # each recording warms up from the end of the prompts
        try:
            with one_program(self.model, self.cache) if compiled else nullcontext():
                self.go_on = Recorded(self.step, self.ids.device)
        except RuntimeError as e:
            if not compiled:
                raise
            warnings.warn(f"layers are not compiled: {str(e)[:200]}", stacklevel=3)
            self.record(False)

    def read(self):
        "Read the prompts, and draw the first token of each answer."
        import torch

        n, t = self.ids.shape
        before = torch.ones(t, t, dtype=torch.bool, device=self.ids.device).tril()
        sees = torch.zeros(n, 1, t, self.mask.shape[-1], dtype=torch.bool, device=self.ids.device)
        # filling sees itself, since a softmax over nothing is not a number
        sees[..., :t] = before & self.given[:, None, None] | torch.eye(t, dtype=torch.bool, device=self.ids.device)
        places = (self.given.cumsum(1) - 1).clamp(min=0)
        self.cache.reset()
        logits = self.logits(self.ids, sees, places)
        self.mask.zero_()
        self.mask[:, 0, 0, :t] = self.given
        self.place.copy_(places[:, -1:] + 1)
        self.column.fill_(t)
        self.ended.zero_()
        self.seen.zero_().scatter_(1, torch.where(self.given, self.ids, self.ids[:, -1:]), True)
        self.take(logits)

    def logits(self, ids, sees, places):
        "Of the token after the last one: B x V, float32."
        import torch

        with torch.no_grad():
            out = self.model(
                input_ids=ids,
                attention_mask=sees,
                position_ids=places,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float()

    def take(self, logits):
        "Draw a token for each row that has not ended."
        import torch

        token = draw_tokens(logits, self.sampling, self.seen)
        token = torch.where(self.ended, self.pad_id, token)
        self.ended |= (token[:, None] == self.ends).any(1)
        self.seen.scatter_(1, token[:, None], True)
        self.token.copy_(token[:, None])

    def step(self):
        "One more token for each row."
        self.mask.index_fill_(3, self.column, True)
        self.take(self.logits(self.token, self.mask, self.place))
        self.place.add_(1)
        self.column.add_(1)

    def tokens(
        self,
        batch: dict,  # input_ids and attention_mask, both B x T or shorter, filled up on the left
        look: int = 1,  # tokens after which it is asked whether all have ended, since asking waits for the device
    ):  # yields B x 1 token ids, the same tensor with new numbers in it
        "Answers as they are drawn, with the random numbers that the process has whenever it is asked."
        (n, t), (rows, length) = batch["input_ids"].shape, self.ids.shape
        require(n == rows and t <= length, f"{n} prompts of {t} tokens were given; expected {rows} of up to {length}")
        self.ids.fill_(self.pad_id)[:, length - t :] = batch["input_ids"]
        self.given.fill_(False)[:, length - t :] = batch["attention_mask"].bool()
        self.begin()
        for drawn in range(1, self.sampling.max_new_tokens + 1):
            yield self.token
            if drawn == self.sampling.max_new_tokens or drawn % look == 0 and bool(self.ended.all()):
                return
            self.go_on()

    def answers(
        self,
        batch: dict,  # input_ids and attention_mask, both B x T or shorter, filled up on the left
    ):  # B x N token ids, N at most max_new_tokens; behind an answer's end stands filling
        "All answers, drawn to their ends."
        import torch

        return torch.cat([token.clone() for token in self.tokens(batch, look=8)], dim=1)


DECODES = ("auto", "layers", "none")

# %% [markdown]
# SmolLM2 goes on with two prompts at once:

# %% tags=["example"]
where = find_device()
model, tokenizer = load_base("auto" if where.type == "cpu" else "smollm2-135m", where)
model.eval()
said = ["Marge Simpson: Homer, the dog is wearing your tie again.\nHomer Simpson:", "Springfield is a town where"]
batch = tokenizer(said, return_tensors="pt", padding=True, padding_side="left").to(where.torch)
few = Sampling(max_new_tokens=16)
decoder = Decoder(model, 2, 40, few, pad_id=tokenizer.pad_token_id)
with Draws(where, 1):
    drawn = decoder.answers(batch)
[tokenizer.decode(row) for row in drawn]


# %% [markdown]
# Token for token what `generate` gives, drawn or greedy, in one batch:

# %% tags=["check"]
def of_generate(sampling, ends=None):
    with torch.no_grad(), Draws(where, 1):
        out = model.generate(**batch, **sampling.arguments(), eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return out[:, batch["input_ids"].shape[1] :]


if where.type == "cpu":  # an accelerator rounds a cache of another length in another way
    for sampling in (
        few,
        few.changed(do_sample=False),
        Sampling(16, top_k=0, top_p=0.6, repetition_penalty=1.3),
        few.changed(min_p=0.2),
    ):
        decoder.sampling = sampling
        with Draws(where, 1):
            assert torch.equal(decoder.answers(batch), of_generate(sampling))
    assert not torch.equal(of_generate(few), of_generate(few.changed(temperature=2.0)))  # it could have differed
    decoder.sampling, decoder.ends = few, of_generate(few)[:1, 3]  # a token that ends the first answer
    with Draws(where, 1):
        ended = decoder.answers(batch)
    assert torch.equal(
        ended[:, : of_generate(few, decoder.ends.tolist()).shape[1]], of_generate(few, decoder.ends.tolist())
    )


# %% [markdown]
# ## Fewer kernels
#
# A recorded step still consists of its kernels, one after the other, and for a small model each does next to nothing. A compiler makes few of many. All layers are one program, but for one thing: each writes at its own place of the cache, and a compiler makes a program for each number that it meets. So for the length of the recording every layer is given a cache of its own, and is told that it is the first. Nothing of this is left afterwards, since a replay runs no Python.

# %%
#| export
class OwnCache:
    "What one layer sees of a cache: its own part."

    def __init__(
        self,
        part,  # a layer of a transformers cache
    ):
        self.part = part

    def update(self, keys, values, *_, **__):
        return self.part.update(keys, values)


@contextmanager
def one_program(
    model,  # a transformers model
    cache,  # its StaticCache, begun
):  # RuntimeError if its layers are not known
    "Decoder layers compiled as one program, for the length of a `with` block."
    import torch

    inner: Any = base_of(model)
    layers = getattr(getattr(inner, "model", inner), "layers", [])
    if not layers or not all(hasattr(getattr(layer, "self_attn", None), "layer_idx") for layer in layers):
        raise RuntimeError("its layers are not where they usually are")
    with ExitStack() as back:
        for layer, part in zip(layers, cache.layers):
            compiled, own = torch.compile(layer.forward, dynamic=False), OwnCache(part)

            def forward(*args, _compiled=compiled, _own=own, **kwargs):
                return _compiled(*args, **{**kwargs, "past_key_values": _own})

            back.enter_context(patch.object(layer, "forward", forward))
            back.enter_context(patch.object(layer.self_attn, "layer_idx", 0))
        yield


# %% [markdown]
# ## Fewer bytes
#
# A processor does not wait for launches. It waits for memory: for each token all weights are read once, 0.54 GB of them for SmolLM2 in 32 bits, and nothing that is drawn can be drawn faster than that. Weights in 8 bits are a quarter of it. Each row of a weight gets its own scale, the largest number in it divided by 127; the inputs stay as they are. (With inputs in 8 bits too, as a processor's integer instructions want them, the held-out loss rose from 3.94 to 5.04 nats: some inputs of a Llama are a hundred times as large as the others, and the others vanish beside them. That way was dropped.) The product of a row with one input is a loop that a compiler writes, in some seconds; several inputs at once go through the weights in 32 bits, which is no gain, so this is for one answer at a time.

# %%
#| export
def in_8_bits(
    model,  # a plain transformers model in float32, on the CPU; its linear layers are replaced
):  # the same model
    "Linear layers that hold a byte per weight."
    import torch

    def product(weight, scale, x):
        return (weight.float() @ x) * scale

    programs: dict = {}  # one for each size; a compiler gives up on a function that it has compiled for many

    class Linear8(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            if linear.weight.shape not in programs:
                alike = FunctionType(product.__code__.replace(), product.__globals__)
                # a small product is over before a second thread has woken up
                alone: dict[str, Any] = {"cpp.threads": 1} if linear.weight.numel() < 2**22 else {}
                programs[linear.weight.shape] = torch.compile(alike, dynamic=False, options=alone)
            self.product = programs[linear.weight.shape]
            self.scale = linear.weight.detach().abs().amax(1).clamp(min=1e-12) / 127
            self.weight = torch.round(linear.weight.detach() / self.scale[:, None]).to(torch.int8)
            self.bias = linear.bias

        def forward(self, x):
            if x.numel() == x.shape[-1]:
                out = self.product(self.weight, self.scale, x.flatten()).view(*x.shape[:-1], -1)
                return out if self.bias is None else out + self.bias
            return torch.nn.functional.linear(x, self.weight.float() * self.scale[:, None], self.bias)

    require(model.device.type == "cpu", "weights in 8 bits are for a CPU; an accelerator is fast without")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, Linear8(child))
    return model


# %% [markdown]
# How far are the probabilities of the next token from those in 32 bits? For the tiny model, whose weights are random:

# %% tags=["example"]
cpu = find_device("cpu", "float32")
tiny, _ = load_base("tiny", cpu)
ids = torch.randint(3, 200, (1, 30))
with torch.no_grad():
    full, eight = tiny.eval()(ids).logits, in_8_bits(tiny)(ids).logits
f"largest difference of a logit: {(full - eight).abs().max():.4f}, of {full.std():.3f} that they spread"

# %% tags=["check"]
with torch.no_grad():
    assert 0 < (full - eight).abs().max() < 0.2 * full.std()
    last = tiny(ids[:, -1:], position_ids=torch.tensor([[29]])).logits  # one token: the compiled product
    assert torch.allclose(last, load_base("tiny", cpu)[0].eval()(ids[:, -1:]).logits, atol=0.2 * full.std().item())
    assert sum(m.weight.dtype == torch.int8 for m in tiny.modules() if type(m).__name__ == "Linear8") > 5


# %% [markdown]
# ## What it brings here
#
# SmolLM2 on this machine's processor, a greedy answer of 24 tokens, with the adapter's absence (a merged model) on all sides: transformers' `generate`, the page, and the page with weights in 8 bits. How many times as fast as `generate`? On an accelerator the recorded and the compiled step come on top; [the benchmark of talking](../8_bench/82_talking.ipynb) has both, beside the predecessor's way.

# %% tags=["example"]
def seconds(work):
    "Of the fastest of three calls, after one that does not count."
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


if where.type == "cpu":
    one = {name: tensor[:1] for name, tensor in batch.items()}
    plain = SAMPLING["greedy"].changed(max_new_tokens=24)
    ask = {**one, **plain.arguments(), "min_new_tokens": 24, "pad_token_id": tokenizer.pad_token_id}

    def page(model):
        drawing = Decoder(model, 1, one["input_ids"].shape[1], plain, pad_id=tokenizer.pad_token_id)
        return lambda: drawing.answers(one)

    took = {"generate": seconds(lambda: model.generate(**ask)), "the page": seconds(page(model))}
    took["8 bits"] = seconds(page(in_8_bits(model)))
    ratios = pd.Series({name: took["generate"] / s for name, s in took.items()})
    ax = ratios.plot.barh(figsize=(6.4, 1.8), color=["#c9c9c9", "#4f86c6", "#f2c500"])
    ax.set_xlabel("times as fast as generate")
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    print(ratios.round(2).to_dict())

# %% [markdown]
# A processor that reads weights is not waited for by anybody, so the page alone changes little; a quarter of the bytes does.
#
# You can now draw an answer by hand, say why a small model is slow on a fast card, and what three ways there are against it: fewer launches, fewer kernels, fewer bytes.
