# %%
#| default_exp model.infer

# %% [markdown]
# # Finishing a line
#
# > Ask a character for its next line: one, many at once, as a stream; and measure how long it takes.
#
# A fine-tuned model is a character that can be asked. What it is asked with is made by [the chapter on prompts](../1_data/15_prompt.ipynb), token for token as in training; here the answer is drawn, cut at its end, and shown. The base model, which comes first in this book, can be asked in the same way: it is the "before" of every "before and after".
#
# This chapter is a program: `simpsons-llm infer --adapter runs/x --speaker "Homer Simpson" "Marge Simpson: Homer, the dog is wearing your tie again."` With `--adapter` given several times, each character answers with the adapter of its own run.

# %% tags=["parameters"]
prompt = "Marge Simpson: Homer, the dog is wearing your tie again."  # lines before, as "Name: line", one a row
prompts = ""  # instead: a file of many, as text with blank rows between, .json or .jsonl
speaker = ""  # who says the next line; empty: whom the run learned most from (a base model: Homer Simpson)
adapter = ""  # a run's folder (runs/x), an adapter's or a whole model's; empty: the base model alone
base_model = "auto"  # a hub id, folder or short name; auto with an adapter: the base it was trained on
location = ""  # where the scene is; may be empty
data = ""  # a folder of prepared data: also answer in three of its test scenes, beside the real lines
sampling = "book"  # how words are drawn: book, seed or greedy; the next seven change single settings of it
max_new_tokens = None  # most tokens of an answer; book 60, seed 100, greedy 60
temperature = None  # below 1: safer words, above 1: bolder; book 0.8, seed 0.8
top_k = None  # draw from this many best tokens; 0: from all; book 50, seed 50
top_p = None  # draw from the best tokens that hold this much probability, 0..1; book 0.95, seed 0.9
min_p = None  # least probability as a share of the best token's, 0..1; 0: off; book 0, seed 0
num_beams = None  # beams of beam search; book 1, seed 5
repetition_penalty = None  # above 1: avoid what was said; book 1.05, seed 1.2
answers = 1  # how many answers
compile = "auto"  # auto: on an accelerator, record the step of a token; layers: compile it, too; none: neither
quantization = "none"  # int8: weights in 8 bits, on a CPU: twice as fast, a little less exact
random_seed = 42  # of the sampling
bench = False  # also measure the time of an answer
out = ""  # folder for answers.json; empty: only show
device = "auto"  # xpu, cuda, cpu; auto: the best there is
dtype = "auto"  # bfloat16, float32; auto: as the device has it

# %%
#| export
import json
import re
import statistics
import time
import unicodedata
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from simpsons_llm.data.lines import Line, Scene, clean, parse_lines, split_name
from simpsons_llm.data.prepare import known_speaker, load_data
from simpsons_llm.data.prompt import TextMaker, prompt_ids
from simpsons_llm.machine.device import Draws, find_device, synchronize
from simpsons_llm.machine.encodings import decode
from simpsons_llm.machine.job import JobConfig, hold_folder, open_folder, require, same_parameters, write_json
from simpsons_llm.model.adapter import is_whole_model, load_several, merge, untuned
from simpsons_llm.model.base import load_base
from simpsons_llm.model.decode import DECODES, SAMPLING, Decoder, Sampling, decodes_here, in_8_bits

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes

pd.set_option("display.max_colwidth", 110)

# %% [markdown]
# ## The settings
#
# The names and defaults are those of the parameters at the top. What is left at `None` is taken from the preset.

# %%
#| export
SOMEBODY = "Homer Simpson"  # whom a model is asked as that has no characters of its own


@dataclass
class InferConfig(JobConfig):
    "Settings of the infer job."

    repeated: ClassVar = ("adapter",)
    prompt: str = "Marge Simpson: Homer, the dog is wearing your tie again."  # lines before, as "Name: line", one a row
    prompts: str = ""  # instead: a file of many, as text with blank rows between, .json or .jsonl
    speaker: str = ""  # who says the next line; empty: whom the run learned most from (a base model: Homer Simpson)
    adapter: str = ""  # a run's folder (runs/x), an adapter's or a whole model's; empty: the base model alone
    base_model: str = "auto"  # a hub id, folder or short name; auto with an adapter: the base it was trained on
    location: str = ""  # where the scene is; may be empty
    data: str = ""  # a folder of prepared data: also answer in three of its test scenes, beside the real lines
    sampling: str = "book"  # how words are drawn: book, seed or greedy; the next seven change single settings of it
    max_new_tokens: "int | None" = None  # most tokens of an answer; book 60, seed 100, greedy 60
    temperature: "float | None" = None  # below 1: safer words, above 1: bolder; book 0.8, seed 0.8
    top_k: "int | None" = None  # draw from this many best tokens; 0: from all; book 50, seed 50
    top_p: "float | None" = None  # draw from the best tokens that hold this much probability, 0..1; book 0.95, seed 0.9
    min_p: "float | None" = None  # least probability as a share of the best token's, 0..1; 0: off; book 0, seed 0
    num_beams: "int | None" = None  # beams of beam search; book 1, seed 5
    repetition_penalty: "float | None" = None  # above 1: avoid what was said; book 1.05, seed 1.2
    answers: int = 1  # how many answers
    compile: str = "auto"  # auto: on an accelerator, record the step of a token; layers: compile it, too; none: neither
    quantization: str = "none"  # int8: weights in 8 bits, on a CPU: twice as fast, a little less exact
    random_seed: int = 42  # of the sampling
    bench: bool = False  # also measure the time of an answer
    out: str = ""  # folder for answers.json; empty: only show
    device: str = "auto"  # xpu, cuda, cpu; auto: the best there is
    dtype: str = "auto"  # bfloat16, float32; auto: as the device has it

    def check(self):
        require(self.sampling in SAMPLING, f"sampling={self.sampling!r} was given; expected {', '.join(SAMPLING)}")
        require(
            not self.speaker or self.speaker.strip(),
            f'speaker={self.speaker!r} was given; say who answers, e.g. --speaker "Homer Simpson"',
        )
        require(self.answers >= 1, f"answers={self.answers} was given; expected 1 or more")
        require(self.compile in DECODES, f"compile={self.compile!r} was given; expected {', '.join(DECODES)}")
        eight = {"none": False, "int8": True}
        require(self.quantization in eight, f"quantization={self.quantization!r} was given; expected none or int8")
        require(
            not eight[self.quantization] or self.answers == 1 and not self.prompts and self.settings().num_beams == 1,
            "quantization=int8 was given with several answers or beams, which it makes slower; leave it out for those",
        )
        one = "\n" not in self.adapter
        require(one or not self.data, "data was given with several adapters; before and after needs one")
        require(
            one or not eight[self.quantization], "quantization=int8 was given with several adapters; give one of them"
        )
        require(0 <= self.random_seed < 2**64, f"random_seed={self.random_seed} was given; expected 0 to 2**64 - 1")
        self.settings()

    def settings(self) -> Sampling:
        "The preset with the single settings that were given."
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "num_beams", "repetition_penalty")
        return replace(SAMPLING[self.sampling], **{n: getattr(self, n) for n in names if getattr(self, n) is not None})


# %% [markdown]
# The seed's preset, with one beam in place of five:

# %% tags=["example"]
InferConfig(sampling="seed", num_beams=1).settings()

# %% tags=["check"]
assert same_parameters(InferConfig, "infer")
# the seed's settings
assert InferConfig(sampling="seed").settings() == Sampling(100, True, 0.8, 50, 0.9, 5, 1.2)
assert InferConfig(sampling="seed", num_beams=1).settings().num_beams == 1
for wrong in (
    dict(sampling="loud"),
    dict(temperature=0),
    dict(top_p=1.5),
    dict(min_p=1.5),
    dict(answers=0),
    dict(speaker=" "),
    dict(random_seed=2**64),
    dict(compile="graphs"),
    dict(quantization="int8", answers=2),
):
    try:
        InferConfig(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert next(iter(wrong)) in str(e)


# %% [markdown]
# ## Many answers in one batch
#
# Prompts have different lengths, and the model continues at the right end. So the shorter ones are filled up on the *left*, and the attention mask hides the filling. An answer ends at its end token; what a base model says after the end of the line is cut off.

# %%
#| export
def batch_prompts(
    prompts: list,  # token ids of each prompt
    pad_id: int,  # the padding token
    device,  # a torch.device
) -> dict:  # input_ids and attention_mask, both B x T
    "Prompts side by side, filled up on the left."
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return {"input_ids": ids, "attention_mask": mask}


# %% [markdown]
# Two prompts, of two tokens and of four; token 0 fills up:

# %% tags=["example"]
batch_prompts([[11, 12], [21, 22, 23, 24]], 0, "cpu")


# %% [markdown]
# Prompt and answer together must fit what the model was trained on (`max_seq_len` of its notes) and what it can take at all:

# %%
#| export
def most_tokens(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
) -> int:  # 10**9 where neither says
    "Most tokens of prompt and answer together."
    return min(getattr(model.config, "max_position_embeddings", None) or 10**9, maker.max_seq_len or 10**9)


def ask_batch(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    requests: list,  # (location, `Line`s before, speaker) for each answer
    sampling: Sampling,  # how many tokens an answer may have
) -> dict:  # input_ids and attention_mask, both B x T; ValueError if there is nothing to ask
    "The prompts of all requests, with the oldest lines left out where they would be too long."
    require(requests, "there is nothing to answer: no request was given")
    most = most_tokens(model, maker) - sampling.max_new_tokens
    return batch_prompts(
        [prompt_ids(maker, where, lines, who, max(1, most)) for where, lines, who in requests],
        maker.tokenizer.pad_token_id,
        model.device,
    )


# %% [markdown]
# Tokens of three prompts, with 1, 4 and 8 lines of a scene, for a model that was trained on 512 tokens. The longest keeps the newest lines that leave room for the answer's 60:

# %% tags=["example"]
where, scene = find_device(), read_script("springfield").scenes[0]
tiny, bytes_tokenizer = load_base("tiny", where)
trained_on_512 = TextMaker(bytes_tokenizer, max_seq_len=512)
asked = ask_batch(
    tiny, trained_on_512, [(scene.location, scene.lines[:n], "Homer Simpson") for n in (1, 4, 8)], Sampling()
)
asked["attention_mask"].sum(1).tolist()

# %% [markdown]
# The tokens that come back hold the answer, its end, and filling. Only the line is wanted. It ends at a newline; what else breaks or tabulates lines becomes a blank, as it does when a script is read. Letters stay as the model said them, and so does what holds letters together or apart without being seen: the joiners of Persian words and of emoji, the no-break space before a French question mark. Taken out are three kinds of signs that do something to the screen they are shown on instead: control characters, such as those that colour a terminal; halves of a character, which no file can hold; and the embeddings and overrides of writing direction, by which a line could reorder what stands around it.
#
# An answer that comes in pieces goes through the same function as a whole one, so it cannot read differently. Blanks are held back until something follows them, since a line does not end in blanks.

# %%
#| export
# embeddings, overrides and isolates of writing direction
TURNS = set(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def spoken(
    pieces,  # an answer's text, in pieces of any length
):  # yields pieces of the line that is said; together they are the line
    "The line in what a model says: up to its end, without blanks around it and signs that are none of a text's."
    held, begun, ended = "", False, False
    for piece in pieces:
        out = ""
        for c in piece:
            ended = begun and c == "\n"
            if ended:
                break
            kind = unicodedata.category(c)
            if c.isspace() and kind in ("Cc", "Zl", "Zp"):
                c = " "
            elif kind in ("Cc", "Cs") or c in TURNS:
                continue
            if c.isspace():
                held += c * begun
            else:
                out, held, begun = out + held + c, "", True
        if out:
            yield out
        if ended:
            return


def answer_text(
    tokenizer,  # the tokenizer
    ids,  # tokens of an answer, possibly with its end and padding
) -> str:  # the line that is said
    "An answer as text: up to the end of its line."
    return "".join(spoken([tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)]))


# %% [markdown]
# A French question, where the next line is cut off; a Persian word with its joiner; an answer in three pieces, without the sign that would colour the terminal and the one that would turn the line around:

# %% tags=["example"]
[
    "".join(spoken(pieces))
    for pieces in (["\n Quoi\u00a0?\n", "Homer:"], ["می\u200cخواهم"], ["D'oh", "!\t", " \x1b[31mRed", "\u202e \n"])
]


# %% [markdown]
# All answers of a batch are drawn at once by [the page that draws](32_decode.ipynb), or by `generate` where the page cannot do it, with the random numbers of a seed of their own ([the chapter on devices](../9_machine/90_device.ipynb)). Whoever calls finds the process's numbers as they were.

# %%
#| export
def decoder_for(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    batch: dict,  # what `ask_batch` gave
    sampling: Sampling,  # how words are drawn
    ends=None,  # tokens that end an answer; None: those of the template
    how: str = "auto",  # one of DECODES: a recorded step, compiled layers as well, or neither
    again: bool = False,  # there will be many prompts of this length
) -> Decoder | None:  # None where `generate` has to do it: beams, and models that say why in `decodes_here`
    "What draws the answers of a batch."
    if sampling.num_beams > 1 or decodes_here(model):
        return None
    rows, length = batch["input_ids"].shape
    ends = maker.stop_ids if ends is None else ends
    return Decoder(model, rows, length, sampling, ends, maker.tokenizer.pad_token_id, how, again)


def draw_lines(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    requests: list,  # (location, `Line`s before, speaker) for each answer
    sampling: Sampling = Sampling(),  # how words are drawn
    random_seed: int = 42,  # of the sampling, 0..2**64-1
    how: str = "auto",  # how tokens are drawn, as in `decoder_for`
):  # B x T token ids, filled up behind an answer's end; an answer without an end was cut at the most tokens
    "The next line of each request as tokens, all drawn in one batch."
    import torch

    batch = ask_batch(model, maker, requests, sampling)
    decoder = decoder_for(model, maker, batch, sampling, how=how)
    with torch.no_grad(), Draws(model.device, random_seed):
        if decoder:
            return decoder.answers(batch)
        ends = {"eos_token_id": maker.stop_ids, "pad_token_id": maker.tokenizer.pad_token_id}
        return model.generate(**batch, **sampling.arguments(), **ends)[:, batch["input_ids"].shape[1] :]


def finish_lines(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    requests: list,  # (location, `Line`s before, speaker) for each answer
    sampling: Sampling = Sampling(),  # how words are drawn
    random_seed: int = 42,  # of the sampling, 0..2**64-1
    how: str = "auto",  # how tokens are drawn, as in `decoder_for`
) -> list:  # one answer for each request
    "The next line of each request as text."
    drawn = draw_lines(model, maker, requests, sampling, random_seed, how)
    return [answer_text(maker.tokenizer, ids) for ids in drawn]


# %% [markdown]
# What a person types becomes lines first:

# %%
#| export
def lines_of(
    prompt: str,  # "Name: line" rows
) -> list:  # as `Line`s
    "A prompt that a person typed, as lines."
    return [Line(0, i, who, said) for i, (who, said) in enumerate(parse_lines(prompt))]


# %% [markdown]
# The prompt of the parameters:

# %% tags=["example"]
pd.DataFrame([(line.speaker, line.text) for line in lines_of(prompt)], columns=["speaker", "text"])


# %% [markdown]
# Many prompts come in a file. As text they have blank rows between; `[Place]` in front says where, and a name alone at the end who answers. As JSON, or JSON row by row, they are texts, or objects with `prompt` and what else is known.

# %%
#| export
def read_prompts(
    file: "str | Path",  # text with blank rows between, or .json or .jsonl
) -> list:  # dicts with prompt, speaker and location, the last two perhaps empty; ValueError or a file error
    "Prompts that lie in a file."
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path}; give text with blank rows between, .json or .jsonl")
    text = decode(path.read_bytes(), path.name)[0]
    if path.suffix not in (".json", ".jsonl"):
        rows = [typed_prompt(part) for part in re.split(r"\n\s*\n", text) if part.strip()]
    else:
        try:
            given = (
                json.loads(text) if path.suffix == ".json" else [json.loads(r) for r in text.splitlines() if r.strip()]
            )
        except ValueError as e:
            raise ValueError(
                f"{path} is no {path.suffix[1:].upper()}: {e}; mend it, or give the prompts as text"
            ) from e
        given = given if isinstance(given, list) else [given]
        rows = [{"prompt": row} if isinstance(row, str) else row for row in given]
    names = ("prompt", "speaker", "location")
    for i, row in enumerate(rows, 1):
        good = isinstance(row, dict) and row.get("prompt") and row.keys() <= set(names)
        require(
            good and all(isinstance(v, str) for v in row.values()),
            f"prompt {i} of {path} is {json.dumps(row)[:80]}; expected a text, or texts named {', '.join(names)}",
        )
    require(rows, f"{path} has no prompt; expected rows such as Marge: Dinner!")
    return [{n: row.get(n, "") for n in names} for row in rows]


def typed_prompt(
    text: str,  # rows of "Name: line"; perhaps [Place] first, and a name with a colon last
) -> dict:  # prompt, speaker, location; each may be ""
    "A scene as people type it, and who is to go on."
    rows = [row.strip() for row in text.splitlines() if row.strip()]
    place = rows.pop(0)[1:-1] if rows and rows[0][0] == "[" and rows[0][-1] == "]" else ""
    who, said = split_name(rows[-1]) if rows else ("", "")
    asked = who if not said else ""
    return {"prompt": "\n".join(rows[:-1] if asked else rows), "speaker": asked, "location": clean(place)}


# %% tags=["example"]
typed_prompt("[Moe's Tavern]\nMoe: Closed.\nHomer Simpson:")

# %% tags=["check"]
assert typed_prompt("Marge: Dinner!") == {"prompt": "Marge: Dinner!", "speaker": "", "location": ""}
colon = typed_prompt("Marge: I have two words for you:")
assert colon["prompt"] and not colon["speaker"] and not any(typed_prompt(" \n").values())
with tempfile.TemporaryDirectory() as folder:
    asked_rows = [{"prompt": "Marge: Dinner!", "speaker": "Homer", "location": ""}, typed_prompt("Moe: Closed.")]
    for name, text in (
        ("a.txt", "Marge: Dinner!\nHomer:\n\n\nMoe: Closed.\n"),
        ("a.json", json.dumps([{"prompt": "Marge: Dinner!", "speaker": "Homer"}, "Moe: Closed."])),
        ("a.jsonl", '{"prompt": "Marge: Dinner!", "speaker": "Homer"}\n\n"Moe: Closed."\n'),
    ):
        (Path(folder) / name).write_text(text)
        assert read_prompts(Path(folder) / name) == asked_rows
    for text in ("[{]", "[]", "[5]", '[{"prompt": ""}]', '[{"prompt": "A: b", "temp": "1"}]'):
        (Path(folder) / "b.json").write_text(text)
        try:
            read_prompts(Path(folder) / "b.json")
            raise AssertionError(text)
        except ValueError as e:
            assert "b.json" in str(e)

# %% [markdown]
# The base model, before any training, in the first scene of the book's script. It writes English, and borrows its manner from the lines just read. That is imitation of the context, not character:

# %% tags=["example"]
base, tokenizer = load_base("auto" if where.type == "cpu" else "smollm2-135m", where)
maker = TextMaker(tokenizer)
requests = [(scene.location, scene.lines[:4], name) for name in ("Homer Simpson", "Lisa Simpson", "Mayor Quimby")]
short = Sampling(max_new_tokens=30)
pd.DataFrame({"speaker": [r[2] for r in requests], "base model says": finish_lines(base, maker, requests, short)})

# %% [markdown]
# What do temperature and cutting do? The likeliest first tokens of Homer's answer, by the base model: a temperature of 0.8 lifts the front runners, and `top_k` and `top_p` leave few of the many tokens to draw from.

# %% tags=["example"]
with torch.no_grad():
    logits = (
        base(**batch_prompts([prompt_ids(maker, *requests[0])], tokenizer.pad_token_id, base.device))
        .logits[0, -1]
        .float()
        .cpu()
    )
plain, sharp = (logits / t for t in (1.0, 0.8))
top = plain.topk(12).indices
# top_k first, then top_p of what is left
kept = min(
    Sampling().top_k, 1 + int((sharp.topk(Sampling().top_k).values.softmax(0).cumsum(0) < Sampling().top_p).sum())
)
names = [repr(tokenizer.decode([i])) for i in top]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
bars = {"temperature 1": plain.softmax(0)[top].numpy(), "temperature 0.8": sharp.softmax(0)[top].numpy()}
pd.DataFrame(bars, index=names).plot.bar(ax=left, color=["#f2c500", "#4f86c6"])
left.set(ylabel="probability", xlabel="first token of the answer")
order = sharp.softmax(0).sort(descending=True).values.cumsum(0)[:100]
right.plot(range(1, 101), order, color="#4f86c6", label="held by so many tokens, temperature 0.8")
right.axvspan(kept, 100, color="grey", alpha=0.25, label="cut off")
right.axvline(Sampling().top_k, color="#c0504d", linestyle=":", label=f"top_k {Sampling().top_k}")
right.axhline(
    Sampling().top_p * float(order[Sampling().top_k - 1]), color="#c0504d", linestyle="--", label="top_p of those"
)
right.set(xlabel="tokens, the likeliest first", ylabel="probability, added up", xlim=(1, 100), ylim=(0, 1))
right.legend(frameon=False, fontsize=8, loc="lower right")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
print(
    f"{kept} of {len(logits):,} tokens can be drawn; the likeliest, {names[0]}, "
    f"has {plain.softmax(0).max():.1%}, and {sharp.softmax(0).max():.1%} at temperature 0.8."
)

# %% [markdown]
# Filling up must not change an answer. `generate` counts positions from the first real token, which it finds by the mask. Greedy answers of a batch are the answers of each prompt by itself:

# %% tags=["check"]
greedy = Sampling(max_new_tokens=12, do_sample=False, repetition_penalty=1.0)
ragged = [(scene.location, scene.lines[:n], "Homer Simpson") for n in (1, 3, 6)]
assert finish_lines(base, maker, ragged, greedy) == [finish_lines(base, maker, [r], greedy)[0] for r in ragged]
# the seed decides
assert finish_lines(base, maker, requests, short) == (again := finish_lines(base, maker, requests, short))
assert all("\n" not in a for a in again)


# %% [markdown]
# ## Piece by piece
#
# A chat wants words as they come. The page draws a token whenever it is asked for one, so the reader takes pieces of text, and the model waits while the reader reads. Between two pieces the random numbers are the reader's own. A token may be half a letter: a piece is given out when its letters are whole. Some tokens give no piece at all, such as blanks at the end of a line, so whoever counts tokens, or wants to stop between any two, gives a function that is told of each.

# %%
#| export
def stream_line(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template of its training
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s before
    speaker: str,  # who answers
    sampling: Sampling = Sampling(),  # how words are drawn; beams cannot be streamed
    random_seed: int = 42,  # of the sampling, 0..2**64-1
    each=None,  # called with the number of every token when it was drawn; what it raises ends the answer
):  # yields pieces of text; together they are the answer, as `finish_lines` gives it
    "The next line, piece by piece; in one piece where the model cannot be decoded here."
    require(sampling.num_beams == 1, "beams cannot be streamed; use num_beams=1")
    batch = ask_batch(model, maker, [(location, lines, speaker)], sampling)
    decoder = decoder_for(model, maker, batch, sampling)
    if not decoder:
        drawn = draw_lines(model, maker, [(location, lines, speaker)], sampling, random_seed)[0].tolist()
        for token in drawn if each else ():
            each(token)
        yield answer_text(maker.tokenizer, drawn)
        return
    yield from spoken(pieces_of(maker.tokenizer, decoder.tokens(batch), Draws(model.device, random_seed), each))


def pieces_of(
    tokenizer,  # the tokenizer
    tokens,  # draws a 1 x 1 tensor whenever it is asked
    draws: Draws,  # the numbers to draw with
    each=None,  # called with the number of every token
):  # yields text
    "What a model says, in pieces of whole letters."
    ids: list[int] = []
    told = ""
    while True:
        with draws:
            token = next(tokens, None)
        if token is not None:
            ids.append(int(token))
            if each:
                each(ids[-1])
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if token is None or not text.endswith("\ufffd"):
            yield text[len(told) :]
            told = text
        if token is None:
            return


# %% [markdown]
# When does each piece come? Seconds since the question, after three lines of the scene:

# %% tags=["example"]
start = time.perf_counter()
came = [(piece, time.perf_counter() - start) for piece in stream_line(base, maker, *ragged[1], greedy)]
pd.DataFrame(came, columns=["piece", "after_s"]).round(3)

# %% tags=["check"]
heard: list[int] = []
pieces = list(stream_line(base, maker, *ragged[1], greedy, each=heard.append))
assert "".join(pieces) == finish_lines(base, maker, [ragged[1]], greedy)[0] and len(pieces) > 1
assert heard == draw_lines(base, maker, [ragged[1]], greedy)[0].tolist()
# words that are drawn: the same ones, and the reader's numbers are its own
torch.manual_seed(3)
expected = torch.rand(2)
torch.manual_seed(3)
reader = stream_line(base, maker, *ragged[1], short)
first, number = next(reader), torch.rand(1)
assert first + "".join(reader) == finish_lines(base, maker, [ragged[1]], short)[0] and [*number, *torch.rand(1)] == [
    *expected
]


# %% [markdown]
# ## How long does an answer take?
#
# The seed's benchmark: 3 runs to warm up, then 12 that count. Each draws the same number of tokens, so that the runs can be compared.

# %%
#| export
def bench_answer(
    model,  # a model, with or without adapter
    maker: TextMaker,  # tokenizer and template
    requests: list,  # (location, `Line`s before, speaker) for each answer; all are drawn at once
    sampling: Sampling = Sampling(),  # how words are drawn; exactly max_new_tokens are
    runs: int = 12,  # runs that count, 2 or more
    warmups: int = 3,  # runs before them
    device=None,  # the `Device`; None: found
    how: str = "auto",  # how tokens are drawn, as in `decoder_for`; recording and compiling are not timed
) -> dict:  # runs, tokens (of a row), mean_s, min_s, max_s, stdev_s, tokens_per_s (of all answers)
    "Seconds for an answer: mean, minimum, maximum, deviation."
    import torch

    require(runs >= 2, f"runs={runs} was given; expected 2 or more, to have a deviation")
    device, seconds = device or find_device(), []
    batch, rows = ask_batch(model, maker, requests, sampling), len(requests)
    decoder = decoder_for(model, maker, batch, sampling, (), how, again=True)
    exactly = {**sampling.arguments(), "min_new_tokens": sampling.max_new_tokens}
    for i in range(warmups + runs):
        with torch.no_grad(), Draws(model.device, i):
            synchronize(device)
            start = time.perf_counter()
            if decoder:
                drawn = decoder.answers(batch)
            else:
                drawn = model.generate(**batch, **exactly, pad_token_id=maker.tokenizer.pad_token_id)
                drawn = drawn[:, batch["input_ids"].shape[1] :]
            synchronize(device)
            if i >= warmups:
                seconds.append(time.perf_counter() - start)
        require(drawn.shape == (rows, sampling.max_new_tokens), f"{drawn.shape} tokens were drawn")
    return {
        "runs": runs,
        "tokens": sampling.max_new_tokens,
        "mean_s": statistics.mean(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "stdev_s": statistics.stdev(seconds),
        "tokens_per_s": rows * sampling.max_new_tokens / statistics.mean(seconds),
    }


# %% [markdown]
# Five tokens of the tiny model, three times:

# %% tags=["example"]
timing = bench_answer(
    tiny,
    TextMaker(bytes_tokenizer),
    [("Home", lines_of("Marge: Dinner!"), "Homer")],
    Sampling(max_new_tokens=5),
    runs=3,
    warmups=1,
    device=where,
)
pd.DataFrame([timing]).round(4)

# %% tags=["check"]
assert 0 < timing["min_s"] <= timing["mean_s"] <= timing["max_s"] and timing["runs"] == 3


# %% [markdown]
# ## Before and after, in scenes that were never seen
#
# The most telling table of the book: a moment of a test scene, the line that really follows, what the base model says, and what the fine-tuned one says. The moments are chosen by rule, not by taste. The scenes: those in which most of the characters speak, the first three of them. The moment of each character: its first line with at least four lines before it and five words or more. A character who has no such line in a scene is asked all the same, at the moment of the one before; then there is no real line to compare with. In data whose scenes are single lines (instructions without a context, say) nothing was said before, so the moment is the beginning of a scene.

# %%
#| export
def heldout_moments(
    scenes: list,  # held-out `Scene`s
    speakers: list,  # the characters to ask
    most_scenes: int = 3,  # in how many scenes
) -> list:  # (scene, position, speaker, real line or None), by scene, then speaker; empty if scenes or speakers are
    "Moments at which to ask, by rule."
    longer = [s for s in scenes if len(s.lines) > 1]
    before, words = (4, 5) if longer else (0, 1)  # least lines before a moment, least words of its line

    def fits(i, line, who):
        return i >= before and line.speaker == who and len(line.text.split()) >= words

    def first(scene, who):
        return next((i for i, said in enumerate(scene.lines) if fits(i, said, who)), None)

    # a stable sort
    ranked = sorted(longer or scenes, key=lambda s: -sum(first(s, who) is not None for who in speakers))
    moments = []
    for s in ranked[:most_scenes]:
        places = [first(s, who) for who in speakers]
        some = next((p for p in places if p is not None), len(s.lines) // 2)
        for who, place in zip(speakers, places):
            some = some if place is None else place
            moments.append((s, some, who, s.lines[some].text if s.lines[some].speaker == who else None))
    return moments


# %% [markdown]
# Three characters in the test scenes of the book's script; where there is no real line, the moment is another character's:

# %% tags=["example"]
test = split_scenes(read_script("springfield").scenes)["test"]
moments = heldout_moments(test, ["Homer Simpson", "Marge Simpson", "Bart Simpson"])
pd.DataFrame(
    [(s.episode, s.location, i, who, real is not None) for s, i, who, real in moments],
    columns=["episode", "location", "lines before", "speaker", "real line"],
)


# %% [markdown]
# For tables, a moment is put in words: the line before it, and the line that really follows.

# %%
#| export
def moment_row(
    moment: tuple,  # (scene, position, speaker, real line or None) of `heldout_moments`
) -> dict:  # before (the line before; empty where the scene begins), speaker, real
    "A moment in words, for tables."
    s, i, who, real = moment
    name, text = (s.lines[i - 1].speaker, s.lines[i - 1].text) if i else ("", "")
    silent = (
        "(says nothing at this moment)"
        if any(line.speaker == who for line in s.lines)
        else "(says nothing in this scene)"
    )
    return {"before": f"{name}: {text}" if name else text, "speaker": who, "real": real or silent}


# %% [markdown]
# The same nine moments:

# %% tags=["example"]
pd.DataFrame([moment_row(m) for m in moments])


# %% [markdown]
# At each of these moments both models are asked with the same tokens. The base is the same model with its adapter switched off.

# %%
#| export
def before_after(
    model,  # a fine-tuned model
    maker: TextMaker,  # tokenizer and template of its training
    moments: list,  # what `heldout_moments` chose
    sampling: Sampling = Sampling(),  # how words are drawn
    random_seed: int = 42,  # of the sampling
    notes: dict | None = None,  # what stands beside the model; only a model that was trained in full needs it
) -> list:  # rows: scene, before (the line before), speaker, real, base, tuned; empty without moments
    "What base and fine-tuned model say at the same moments, beside the real line."
    if not moments:
        return []
    requests = [(s.location, s.lines[:i], who) for s, i, who, _ in moments]
    tuned = finish_lines(model, maker, requests, sampling, random_seed)
    with untuned(model, notes or {}) as without:
        base = finish_lines(without, maker, requests, sampling, random_seed)
    return [
        {"scene": f"episode {m[0].episode}, {m[0].location}", **moment_row(m), "base": b, "tuned": t}
        for m, b, t in zip(moments, base, tuned)
    ]


# %% tags=["check"]
assert len(moments) == 9 and len({id(s) for s, *_ in moments}) == 3 and all(i >= 4 for _, i, *_ in moments)
assert all(real is None or (s.lines[i].text, s.lines[i].speaker) == (real, who) for s, i, who, real in moments)
# scenes of one line: the moment is their beginning
alone = [Scene(s.episode, s.index, "", s.lines[:1]) for s in test]
begins = heldout_moments(alone, [alone[2].lines[0].speaker], 1)
assert (
    begins[0][1:] == (0, begins[0][0].lines[0].speaker, begins[0][0].lines[0].text)
    and moment_row(begins[0])["before"] == ""
)
assert heldout_moments([], ["Homer Simpson"]) == [] == before_after(base, maker, [])


# %% [markdown]
# ## The job
#
# A folder for answers is held while they are made, so that no second job writes into it.

# %%
#| export
def infer(
    config: InferConfig,  # the settings
) -> dict:  # speaker, answers; prompts, before_after, timing where asked for; ValueError or FileNotFoundError
    "Answer as a character; show held-out moments and timing when asked to."
    with hold_folder(config.out, "infer") if config.out else nullcontext():
        result = answer(config)
        if config.out:
            write_json(open_folder(config.out) / "answers.json", {"settings": config.to_dict(), **result})
    return result


# %% [markdown]
# Who answers? One run's characters share its model. Of several runs each brings an adapter, and the base is loaded once: a name is looked for in all of them, and belongs to the first that knows it.

# %%
#| export
class Voices:
    "Those who can be asked: of a run, of several runs, or of a base model."

    def __init__(
        self,
        config: InferConfig,  # says which
        device,  # the `Device`
    ):
        # a whole model of this book brings its notes
        tuned = config.adapter or (config.base_model if is_whole_model(config.base_model) else "")
        self.tuned = [row for row in tuned.split("\n") if row]
        if self.tuned:
            base = None if config.base_model in ("auto", tuned) else config.base_model
            self.model, tokenizer, self.notes = load_several(self.tuned, device, base)
        else:
            self.model, tokenizer = load_base(config.base_model, device)
            self.notes = {"": {"template": "script"}}
        self.makers = {name: TextMaker.of_notes(tokenizer, n) for name, n in self.notes.items()}
        self.known: dict = {}  # name -> number of lines
        self.adapters: dict = {}  # name -> whose it is
        for adapter, n in self.notes.items():
            for who, lines in (n.get("speakers") or {}).items():
                if who not in self.known:
                    self.known[who], self.adapters[who] = lines, adapter

    def find(
        self,
        name: str,  # as somebody wrote it; empty: whom the first run learned most from
    ) -> str:  # as it was learned; ValueError with those that were
        "Who is asked."
        return known_speaker(name, self.known) if name else next(iter(self.known), SOMEBODY)

    def adapter_of(
        self,
        name: str,  # what `find` gave
    ) -> str:  # one of `makers`; the first for whom nobody knows
        "Whose adapter speaks."
        return self.adapters.get(name, next(iter(self.makers)))

    def turn_to(
        self,
        adapter: str,  # one of `makers`
    ) -> TextMaker:  # tokenizer and template of its training
        "Let one adapter count."
        if len(self.makers) > 1:
            self.model.set_adapter(adapter)
        return self.makers[adapter]

    def answers(
        self,
        requests: list,  # (location, `Line`s before, speaker as `find` gave it)
        config: InferConfig,  # how many answers, and how they are drawn
    ) -> list:  # a list of answers for each request
        "Several requests are drawn at once, where one adapter answers them."
        said: list = [[] for _ in requests]
        for adapter in self.makers:
            own = [i for i, r in enumerate(requests) if self.adapter_of(r[2]) == adapter]
            for first in range(0, len(own), MOST_AT_ONCE):
                some = own[first : first + MOST_AT_ONCE]
                maker = self.turn_to(adapter)
                each = [requests[i] for i in some for _ in range(config.answers)]
                seed = config.random_seed + first
                drawn = finish_lines(self.model, maker, each, config.settings(), seed, config.compile)
                for k, i in enumerate(some):
                    said[i] = drawn[k * config.answers : (k + 1) * config.answers]
        return said


MOST_AT_ONCE = 16  # prompts of a file in one batch


# %% [markdown]
# The moments come first, since merging takes the base away; what is asked and timed afterwards is the faster, merged model. Many prompts are answered several at once.

# %%
#| export
def held_out(
    voices: Voices,  # of one run, not yet merged
    config: InferConfig,  # the settings; `data` says which scenes
) -> list:  # as `before_after`; ValueError if the data are not those of the training
    "Base and fine-tuned model at moments of test scenes."
    require(voices.tuned, "data was given without an adapter; before and after needs one (--adapter runs/x)")
    parts, report = load_data(config.data)
    (notes,), (maker,) = voices.notes.values(), voices.makers.values()
    require(
        notes.get("data_sha256", report["data_sha256"]) == report["data_sha256"],
        f"the adapter was trained on other data than {config.data}, "
        "so its test scenes may not be unseen; give the data of its training",
    )
    known = voices.known
    main = [s for s in ("Homer Simpson", "Marge Simpson", "Bart Simpson") if s in known]
    moments = heldout_moments(parts["test"], main or list(known or report["all_speakers"])[:3])
    return before_after(voices.model, maker, moments, config.settings(), config.random_seed, notes)


def answer(
    config: InferConfig,  # the settings; `out` is not used
) -> dict:  # as `infer`
    "All of `infer` but the writing."
    given = [{"prompt": config.prompt, "speaker": "", "location": ""}]
    given = read_prompts(config.prompts) if config.prompts else given
    device = find_device(config.device, config.dtype)
    voices = Voices(config, device)
    result: dict = {"before_after": held_out(voices, config)} if config.data else {}
    if len(voices.tuned) == 1:
        voices.model = merge(voices.model)
    if config.quantization == "int8":
        require(
            (device.type, device.dtype) == ("cpu", "float32"),
            f"quantization=int8 was given for {device.type} in {device.dtype}; it is for a CPU in float32 "
            "(--device cpu --dtype float32)",
        )
        voices.model = in_8_bits(voices.model)
    speaker = voices.find(config.speaker)
    asked = [voices.find(row["speaker"]) if row["speaker"] else speaker for row in given]
    requests = [(r["location"] or config.location, lines_of(r["prompt"]), who) for r, who in zip(given, asked)]
    said = voices.answers(requests, config)
    rows = [{**row, "speaker": who, "answers": a} for row, who, a in zip(given, asked, said)]
    result = {"speaker": rows[0]["speaker"], "answers": rows[0]["answers"], **result}
    if config.prompts:
        result["prompts"] = rows
    if config.bench:
        maker = voices.turn_to(voices.adapter_of(asked[0]))
        timing = bench_answer(voices.model, maker, requests[:1], config.settings(), device=device, how=config.compile)
        result["timing"] = {"device": device.name, "dtype": device.dtype, **timing}
    return result


# %% [markdown]
# From the parameters at the top:

# %%
config = InferConfig.from_names(globals())
result = infer(config)
for row in result.get("prompts", [{"prompt": config.prompt, **result}]):
    print(row["prompt"])
    for line in row["answers"]:
        print(f"{row['speaker']}: {line}")

# %%
if config.bench:
    display(pd.DataFrame([result["timing"]]).round(3))
if "before_after" in result:
    display(pd.DataFrame(result["before_after"]))
