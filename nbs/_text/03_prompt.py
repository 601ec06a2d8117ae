# %%
#| default_exp prompt

# %% [markdown]
# # Text for the model
#
# > The only place where text for the model is made: for training and for answering, by the same function.
#
# A model that was trained on one form of prompt and is asked with another answers worse, and nothing tells you so. The seed of this project trained with `### Response` and asked with `### Output`. So all text is made in this chapter, once, and a check holds the tokens of training and of serving equal.
#
# A token is learned only if it should be: what a character says is, the scaffolding around it is not. Each token therefore carries a *loss weight*. Packing samples into rows is left to a later chapter.

# %%
#| export
from dataclasses import dataclass

from simpsons_llm.job import require
from simpsons_llm.prepare import is_target
from simpsons_llm.script import Line, Scene, parse_lines

# %%
#| hide
import html
import random

import pandas as pd
from IPython.display import HTML

from simpsons_llm.prepare import split_scenes
from simpsons_llm.script import read_script


# %% [markdown]
# ## A tokenizer for the examples
#
# Tokens are the units that a model reads: numbers that stand for pieces of text. Real models bring their own tokenizers. For examples and tests, one that maps each byte to a token is enough: it needs no file, and no text is unknown to it. Its special tokens are `<bos>`, which begins a text for models that were trained with one, `<eos>`, which ends an answer, and `<pad>`, which fills up.
#
# Filling up and ending must be two different tokens. Many trainers hide padding from the loss by its number; if the end token pads too, the end is hidden with it, and the model never learns to stop. This book hides padding by position, and still refuses such a tokenizer, because other tools read what it saves.

# %%
#| export
def byte_tokenizer():
    "A tokenizer of 256 bytes and three special tokens, built in memory."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    special = ["<pad>", "<bos>", "<eos>"]
    vocab = {t: i for i, t in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


# %% tags=["check"]
tokenizer = byte_tokenizer()
assert tokenizer.decode(tokenizer("Ay, Señor Ümlaut?").input_ids) == "Ay, Señor Ümlaut?"
assert len(tokenizer) == 259 and tokenizer.pad_token_id != tokenizer.eos_token_id

# %% [markdown]
# ## Two forms of text
#
# **`script`** is a scene as people write it, one line after the other. An answer ends with its line: the end token is the newline.
#
# ```
# [Moe's Tavern]
# Moe Szyslak: What'll it be?
# Homer Simpson: Surprise me.
# ```
#
# **`alpaca`** is the seed's form, in our own words: an opening sentence, then headings. It asks for one line, and an answer ends with the tokenizer's `<eos>`.

# %%
#| export
TEMPLATES = ("script", "alpaca")


def alpaca_prompt(
    location: str, # where the scene is; may be empty
    lines: list,   # the `Line`s before the answer
    speaker: str,  # who answers
) -> str:          # everything up to and including "Name:"
    "The seed's prompt: an opening sentence and the headings Instruction, Input and Response."
    context = "\n".join([f"[{location}]"]*bool(location) + [f"{l.speaker}: {l.text}" if l.speaker else l.text for l in lines])
    return ("Here is a part of a scene from a script. Write what the named character says next.\n\n"
            f"### Instruction:\nComplete {speaker}'s line.\n\n### Input:\n{context}\n\n### Response:\n{speaker}:")


# %% tags=["example"]
scene = read_script("springfield").scenes[0]
print(alpaca_prompt(scene.location, scene.lines[:2], scene.lines[2].speaker), scene.lines[2].text)


# %% [markdown]
# ## From pieces to tokens
#
# The tokenizers of most models put the space into the token of the word behind it. A prompt that ends in `Homer: ` has already spent the space on a token of its own, and the answer begins with other tokens than in the same text written in one. The model is then asked with tokens that it never saw at this place. Other tokenizers join a full stop and the newline behind it.
#
# The remedy: text is cut into *pieces* (a name with its colon, what is said, the end of the line) and each piece is tokenized by itself. Adding a line can then never change the tokens before it.
#
# By itself, yet not out of place: SentencePiece tokenizers put a space in front of any text that begins. So a piece is tokenized behind a short anchor, the character that it follows in the real text, and the anchor's tokens are taken off again.

# %%
#| export
def piece_ids(
    tokenizer,        # a transformers tokenizer
    texts: list,      # pieces of text
    anchor: str = "", # what each piece follows, e.g. ":"; empty: the beginning of the text
) -> list:            # for each piece, its token ids, without special tokens
    "Token ids of pieces, as they are in the middle of a text."
    ids = lambda xs: tokenizer(xs, add_special_tokens=False).input_ids
    if not texts: return []
    if not anchor: return ids(texts)
    before = ids([anchor])[0]
    together = ids([anchor + t for t in texts])
    alone = None
    for i, x in enumerate(together):
        if x[:len(before)] == before and len(x) > len(before): together[i] = x[len(before):]
        else:  # anchor and piece merged into one token: tokenize the piece alone
            alone = alone or ids(texts)
            together[i] = alone[i]
    return together


# %% [markdown]
# A tokenizer trained on the spot, of the kind that GPT-2 and SmolLM2 use, shows the trap in its first two rows, and the pieces in the third:

# %% tags=["example"]
def small_bpe(size=2000):
    "A byte-level BPE tokenizer, trained on the book's own script."
    bpe = byte_tokenizer().train_new_from_iterator([f"{l.speaker}: {l.text}\n" for s in read_script("springfield").scenes for l in s.lines], size, show_progress=False)
    return bpe

bpe = small_bpe()
def bars(*parts): return " | ".join("|".join(repr(bpe.decode([i]))[1:-1] for i in ids) for ids in parts)

name, said = scene.lines[1].speaker, scene.lines[1].text[:40]
print("as one text:          ", bars(bpe(f"{name}: {said}").input_ids))
print("prompt with a space:  ", bars(bpe(f"{name}: ").input_ids, bpe(said).input_ids))
print("pieces:               ", bars(piece_ids(bpe, [f"{name}:"], "\n")[0], piece_ids(bpe, [f" {said}"], ":")[0], piece_ids(bpe, ["\n"], ".")[0]))


# %% [markdown]
# ## One maker for training and serving
#
# `TextMaker` joins a tokenizer and a template. What is asked of a model (`prompt_ids`) is by construction the beginning of what it was trained on. Names and headings repeat, so their tokens are kept.

# %%
#| export
class TextMaker:
    "Makes all token sequences, for training and for serving."
    def __init__(self,
        tokenizer,                # a transformers tokenizer with an end token and another token to pad with
        template: str = "script", # "script" or "alpaca"
        max_seq_len: int = None,  # most tokens of prompt and answer when serving, as in training; None: as many as the model takes
    ):
        require(template in TEMPLATES, f"template={template!r} was given; expected {' or '.join(TEMPLATES)}")
        require(tokenizer.eos_token_id is not None, "the tokenizer has no end token; answers could not end")
        require(tokenizer.pad_token_id not in (None, tokenizer.eos_token_id), "the tokenizer pads with its end token, or has no padding token; set another pad token, or the end would never be learned")
        self.tokenizer, self.template, self.max_seq_len, self._kept = tokenizer, template, max_seq_len, {}
        plain = tokenizer("a").input_ids
        self.bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and plain[0] == tokenizer.bos_token_id else []
        self.end = [tokenizer.eos_token_id] if template == "alpaca" else self.ids("\n", ".")

    def ids(self,
        text: str,        # a piece of text
        anchor: str = "", # what it follows
    ) -> list:            # token ids
        "Tokens of one piece; the last answer for the same piece is kept."
        if (text, anchor) not in self._kept: self._kept[text, anchor] = piece_ids(self.tokenizer, [text], anchor)[0]
        return self._kept[text, anchor]

    @property
    def stop_ids(self) -> list:
        "Tokens at which an answer ends."
        return sorted({self.end[-1], self.tokenizer.eos_token_id})

    def said(self,
        lines: list, # `Line`s
    ) -> list:       # for each, the tokens of what is said, without the end
        "Tokens of what is said, all lines in one call (the slow part, so not kept one by one)."
        return piece_ids(self.tokenizer, [f" {l.text}" for l in lines], ":")

    def name(self,
        speaker: str, # who speaks
    ) -> list:        # token ids
        "Tokens of a speaker's name and colon, at the beginning of a line."
        return self.ids(f"{speaker}:", "\n")

    def heading(self,
        location: str, # where the scene is; may be empty
    ) -> list:         # token ids
        "Tokens that open a scene in the script template."
        return self.bos + self.ids(f"[{location or 'Scene'}]\n")


# %% [markdown]
# `prompt_ids` is what a model is asked with. If the text would be too long, whole lines are left out from the *beginning*: the newest lines matter most, and an answer is never cut.

# %%
#| export
def prompt_ids(
    maker: TextMaker,      # tokenizer and template
    location: str,         # where the scene is; may be empty
    lines: list,           # the `Line`s before the answer
    speaker: str,          # who answers
    max_len: int = 10**9,  # most tokens; lines that do not fit are left out from the beginning
    said: list = None,     # tokens of `lines`, if they are known already (script template)
) -> list:                 # token ids, ending with the speaker's name and colon
    "What a model is asked with: everything up to the answer."
    if maker.template == "alpaca":
        for first in range(len(lines) + 1):
            ids = maker.bos + piece_ids(maker.tokenizer, [alpaca_prompt(location, lines[first:], speaker)])[0]
            if len(ids) <= max_len: break
        return ids
    ids, name = maker.heading(location), maker.name(speaker)
    each = [(maker.name(l.speaker) if l.speaker else []) + text + maker.end for l, text in zip(lines, said if said is not None else maker.said(lines))]
    room, first = max_len - len(ids) - len(name), len(each)
    while first and room >= len(each[first - 1]): first -= 1; room -= len(each[first])
    return ids + [i for e in each[first:] for i in e] + name


# %% tags=["example"]
maker = TextMaker(bpe)
print(bpe.decode(prompt_ids(maker, scene.location, scene.lines[:4], "Homer Simpson")))
print("---- at most 80 tokens:")
short = prompt_ids(maker, scene.location, scene.lines[:4], "Homer Simpson", max_len=80)
print(bpe.decode(short))

# %% tags=["check"]
assert len(short) <= 80 and f"{scene.lines[3].text}\nHomer Simpson:" in bpe.decode(short) and scene.lines[0].text not in bpe.decode(short)  # the newest stay


# %% [markdown]
# ## What the loss of a token is
#
# For each next token a model gives a probability $p$ to the token that really comes. The loss of that token is $-\ln p$, in *nats*: 0 if the model was certain, $\ln 49152 = 10.8$ if it guesses evenly among the 49,152 tokens of SmolLM2. A mean of 3.5 nats says that the right tokens get $e^{-3.5}$, about 3 %, as their geometric mean. 0.15 nats less makes each of them 1.16 times as probable.
#
# A *loss weight* says how much a token's loss counts in training: 1 fully, 0 not at all.
#
# ## Two views of the same scenes
#
# A `Sample` is a sequence of tokens, each with its loss weight: 0 means that the token is read but not learned.

# %%
#| export
@dataclass(frozen=True, slots=True)
class Sample:
    "One sequence to train on or to score."
    input_ids: list    # T token ids
    loss_weights: list # T weights, 0..1: how much the prediction *of* this token counts

    @property
    def learned(self) -> int:
        "Number of tokens that are learned."
        return sum(w > 0 for w in self.loss_weights)

    def features(self) -> dict:
        "As a dict, which is what Trainer and collators read."
        return {"input_ids": self.input_ids, "loss_weights": self.loss_weights}


# %% [markdown]
# **`rows`** is the seed's view: one sample for each line to learn, with the lines before it as context. Simple, and expensive: a line is read again as context for each of the lines that follow.

# %%
#| export
def row_samples(
    scenes: list,            # `Scene`s
    maker: TextMaker,        # tokenizer and template
    targets: list = (),      # names to learn; empty: everyone
    max_seq_len: int = 256,  # most tokens of a sample
    context_lines: int = 10, # most lines of context
) -> tuple:                  # (samples, lines that are longer than max_seq_len by themselves)
    "One sample a line: its context is read, the line and its end are learned."
    samples, too_long = [], []
    for s in scenes:
        said = maker.said(s.lines)
        for i, l in enumerate(s.lines):
            if not is_target(l, targets): continue
            answer, first = said[i] + maker.end, max(0, i - context_lines)
            prompt = prompt_ids(maker, s.location, s.lines[first:i], l.speaker, max_seq_len - len(answer), said[first:i])
            if len(prompt) + len(answer) > max_seq_len: too_long.append(l)
            else: samples.append(Sample(prompt + answer, [0.0]*len(prompt) + [1.0]*len(answer)))
    return samples, too_long


# %% [markdown]
# **`scenes`** reads a whole scene once, and every line to learn is a target in it exactly once. Causal attention makes this right: a token sees only what stands before it, so what is said later cannot help to guess it. It learns the same lines from a tenth to an eighth of the tokens, as counted below.
#
# Lines of other characters can be learned a little too (`context_weight`), since they are English and Springfield as well. A scene that is longer than `max_seq_len` becomes several windows; each repeats the end of the one before it as context, which is not learned again.

# %%
#| export
def scene_samples(
    scenes: list,                # `Scene`s
    maker: TextMaker,            # tokenizer and the script template
    targets: list = (),          # names to learn; empty: everyone
    max_seq_len: int = 512,      # most tokens of a sample
    context_weight: float = 0.0, # loss weight of lines by others, 0..1
    overlap: float = 0.25,       # share of a window that may repeat the one before it, as context
) -> tuple:                      # (samples, lines that are longer than max_seq_len by themselves)
    "One pass over each scene; every line to learn is a target exactly once."
    require(maker.template == "script", f"view=scenes needs template=script, not {maker.template}; or use view=rows")
    samples, too_long = [], []
    for s in scenes:
        heading, window = maker.heading(s.location), []
        for l, said in zip(s.lines, maker.said(s.lines)):
            name = maker.name(l.speaker) if l.speaker else []
            weight = 1.0 if is_target(l, targets) else context_weight*l.learn
            line = (name + said + maker.end, [0.0]*len(name) + [weight]*(len(said) + len(maker.end)))
            if len(heading) + len(line[0]) > max_seq_len: too_long.append(l); continue
            if len(heading) + sum(len(i) for i, _ in window) + len(line[0]) > max_seq_len:
                samples.append(join(heading, window))
                window = tail(window, min(overlap*max_seq_len, max_seq_len - len(heading) - len(line[0])))
            window.append(line)
        samples.append(join(heading, window))
    return [x for x in samples if x.learned], too_long


# %% [markdown]
# The two helpers put lines together, and choose what a new window repeats:

# %%
#| export
def join(
    heading: list, # tokens that open the scene
    window: list,  # (token ids, loss weights) of its lines
) -> Sample:       # all in one
    "A heading and lines as one sample."
    return Sample(heading + [i for ids, _ in window for i in ids], [0.0]*len(heading) + [w for _, ws in window for w in ws])


def tail(
    window: list, # (token ids, loss weights) of lines
    room: float,  # most tokens to keep
) -> list:        # the last lines that fit, none of them learned again
    "What the next window repeats as context."
    first = len(window)
    while first and room >= len(window[first - 1][0]): first -= 1; room -= len(window[first][0])
    return [(ids, [0.0]*len(ids)) for ids, _ in window[first:]]


# %% [markdown]
# ### The same lines, learned once
#
# In both views each line of the characters to learn is a target exactly once. Every prompt of serving is the beginning of a training sample, token for token:

# %% tags=["check"]
scenes, targets = read_script("springfield").scenes[:6], ["Homer Simpson", "Marge Simpson"]
for make, template in ((row_samples, "script"), (row_samples, "alpaca"), (scene_samples, "script")):
    maker = TextMaker(bpe, template)
    samples, too_long = make(scenes, maker, targets, max_seq_len=200)
    learned = [t for x in samples for t, w in zip(x.input_ids, x.loss_weights) if w]
    wanted = [t for s in scenes for l, said in zip(s.lines, maker.said(s.lines)) if is_target(l, targets) for t in said + maker.end]
    assert learned == wanted and not too_long and max(len(x.input_ids) for x in samples) <= 200, (make, template)

# %% tags=["check"]
s = scenes[0]
whole = scene_samples([s], TextMaker(bpe), max_seq_len=10**6)[0][0].input_ids
for i, l in enumerate(s.lines):
    asked = prompt_ids(TextMaker(bpe), s.location, s.lines[:i], l.speaker)
    assert whole[:len(asked)] == asked                                     # scenes: served = trained
    for template in TEMPLATES:                                             # rows: the same
        maker = TextMaker(bpe, template)
        row = row_samples([s], maker, max_seq_len=10**6, context_lines=10**6)[0][i]
        asked = prompt_ids(maker, s.location, s.lines[:i], l.speaker)
        assert row.input_ids[:len(asked)] == asked and not any(row.loss_weights[:len(asked)])
        assert bpe.decode(row.input_ids[len(asked):], skip_special_tokens=True).strip() == l.text

# %% [markdown]
# What do the two views cost? Tokens that the model must read for the same learned tokens, whole script, ten lines of context:

# %% tags=["example"]
everything, rows = read_script("springfield").scenes, []
for view, make, template in (("rows", row_samples, "alpaca"), ("rows", row_samples, "script"), ("scenes", scene_samples, "script")):
    samples, _ = make(everything, TextMaker(bpe, template), max_seq_len=512)
    rows.append((view, template, len(samples), sum(len(x.input_ids) for x in samples), sum(x.learned for x in samples)))
cost = pd.DataFrame(rows, columns=["view", "template", "samples", "tokens read", "tokens learned"])
cost["read per learned"] = (cost["tokens read"]/cost["tokens learned"]).round(1)
print(f"For the same {cost['tokens learned'][0]:,} learned tokens, scenes read {cost['read per learned'][2]} tokens for each learned one, rows {cost['read per learned'][1]}, and with Alpaca headings {cost['read per learned'][0]}.")
cost

# %% tags=["check"]
assert cost["tokens learned"][0] == cost["tokens learned"][1] == cost["tokens learned"][2]  # the end is one token in each
assert cost["read per learned"][2]*5 < cost["read per learned"][1]

# %% [markdown]
# How many scenes of the book's script would a limit of 512 tokens cut? The histogram shows their lengths:

# %% tags=["example"]
lengths = pd.Series([len(x.input_ids) for x in scene_samples(everything, TextMaker(bpe), max_seq_len=10**6)[0]])
ax = lengths.plot.hist(bins=20, color="#4f86c6", figsize=(6.4, 3))
ax.axvline(512, color="#c0504d"); ax.set_xlabel("tokens of a scene (the small tokenizer of this chapter)"); ax.set_ylabel("scenes"); ax.spines[["top", "right"]].set_visible(False)
print(f"{(lengths > 512).sum()} of {len(lengths)} scenes are longer than 512 tokens; the median scene has {lengths.median():.0f}.")


# %% [markdown]
# ## The audit before training
#
# A wrong label is the quietest bug in fine-tuning: the loss falls, and nothing useful is learned. So before every training the samples are counted and looked at, and training is refused when a sample learns nothing or the end of an answer is never learned.

# %%
#| export
def audit(
    samples: list,    # `Sample`s
    maker: TextMaker, # what made them
) -> dict:            # counts: samples, tokens, learned_tokens, learned_ends, longest
    "Counts of what will be learned; ValueError if nothing would be, or if answers would never learn to end."
    require(samples, "there is nothing to learn: no sample has a learned token; check the speakers and max_seq_len")
    for i, x in enumerate(samples): require(x.learned, f"sample {i} of {len(samples)} has 0 learned tokens; check the speakers and max_seq_len")
    ends = sum(t == maker.end[-1] and w > 0 for x in samples for t, w in zip(x.input_ids, x.loss_weights))
    require(ends, f"the token that ends an answer ({maker.tokenizer.decode(maker.end)!r}) is never learned; answers would not stop")
    return {"samples": len(samples), "tokens": sum(len(x.input_ids) for x in samples), "learned_tokens": sum(x.learned for x in samples),
            "learned_ends": ends, "longest": max(len(x.input_ids) for x in samples)}


# %% tags=["check"]
maker = TextMaker(bpe)
samples, _ = scene_samples(scenes, maker, targets)
assert audit(samples, maker)["learned_ends"] == sum(is_target(l, targets) for s in scenes for l in s.lines)
blank = Sample(samples[0].input_ids, [0.0]*len(samples[0].input_ids))
endless = [Sample(x.input_ids, [w*(t != maker.end[-1]) for t, w in zip(x.input_ids, x.loss_weights)]) for x in samples]
for bad, word in (([], "nothing"), ([*samples, blank], "0 learned"), (endless, "never learned")):
    try: audit(bad, maker); raise AssertionError(word)
    except ValueError as e: assert word in str(e)


# %% [markdown]
# Looking is better still. Yellow is learned, blue is learned a little (`context_weight`), grey is only read:

# %%
#| export
def show_sample(
    sample: Sample,  # a sample
    tokenizer,       # its tokenizer
    most: int = 200, # tokens to show
) -> str:            # HTML
    "A sample as coloured text: what is learned, learned a little, only read."
    import html
    spans = []
    for i, w in list(zip(sample.input_ids, sample.loss_weights))[:most]:
        color = "#f2c500" if w == 1 else "#a9c8ec" if w > 0 else "#ececec"
        text = html.escape(tokenizer.decode([i])).replace("\n", "&para;<br>")
        spans.append(f'<span style="background:{color};color:#111;margin-right:1px;white-space:pre-wrap">{text}</span>')
    return f'<div style="line-height:1.7;font-family:monospace">{"".join(spans)}</div>'


# %% tags=["example"]
HTML(show_sample(scene_samples(scenes[:1], maker, ["Homer Simpson"], context_weight=0.1)[0][0], bpe))

# %% tags=["example"]
HTML(show_sample(row_samples(scenes[:1], TextMaker(bpe, "alpaca"), ["Homer Simpson"])[0][1], bpe))

# %% [markdown]
# A pad token that also ends answers is refused before anything is made, as promised at the top:

# %% tags=["check"]
broken = byte_tokenizer(); broken.pad_token = broken.eos_token
try: TextMaker(broken); raise AssertionError
except ValueError as e: assert "pad" in str(e)
