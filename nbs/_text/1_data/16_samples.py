# %%
#| default_exp data.samples

# %% [markdown]
# # Samples and loss weights
#
# > Scenes become sequences of tokens, each token with a weight: what is learned, what is only read.
#
# A token is learned only if it should be: what a character says is, the scaffolding around it is not. So each token of a sample carries a *loss weight*. This chapter makes samples in two views, counts what each of them costs and cuts off and looks at them before training.

# %%
#| export
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from simpsons_llm.data.lines import Scene
from simpsons_llm.data.prepare import is_target
from simpsons_llm.data.prompt import CONTEXT, LEARNED, READ, SCAFFOLD, TextMaker, Tokens, prompt_tokens, user_turn
from simpsons_llm.machine.job import collector_off, require, write_text

# %%
#| hide
import pandas as pd
from IPython.display import HTML

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line
from simpsons_llm.data.prompt import CHATML, TEMPLATES, prompt_ids, small_tokenizer

everything, bpe = read_script("springfield").scenes, small_tokenizer(2000, *CHATML)
makers = {template: TextMaker(bpe, template) for template in TEMPLATES}
scenes, targets = everything[:6], ["Homer Simpson", "Marge Simpson"]


# %% [markdown]
# ## What the loss of a token is
#
# For each next token a model gives a probability $p$ to the token that really comes. The loss of that token is $-\ln p$, in *nats*: 0 if the model was certain, $\ln 49152 = 10.8$ if it guesses evenly among the 49,152 tokens of SmolLM2. A mean of 3.5 nats says that the right tokens get $e^{-3.5}$, about 3 %, as their geometric mean. 0.15 nats less makes each of them 1.16 times as probable.
#
# A *loss weight* says how much a token's loss counts in training: 1 fully, 0 not at all. A `Sample` is a sequence of tokens, each with its weight, and the role that the weight comes from.

# %%
#| export
@dataclass(frozen=True, slots=True)
class Sample:
    "One sequence to train on or to score."

    input_ids: list  # T token ids
    loss_weights: list  # T weights, 0..1: how much the prediction *of* this token counts
    roles: bytes = b""  # T roles (SCAFFOLD, READ, CONTEXT, LEARNED of the prompt chapter), for looking at it

    @property
    def learned(self) -> int:
        "Number of tokens that are learned in full: those of the characters to learn."
        return self.loss_weights.count(1.0)

    @property
    def weighted(self) -> int:
        "Number of tokens with any loss weight, those of other characters' lines included."
        return len(self.loss_weights) - self.loss_weights.count(0.0)

    def features(self) -> dict:
        "As a dict, which is what Trainer and collators read."
        return {"input_ids": self.input_ids, "loss_weights": self.loss_weights}


def sample_of(
    tokens: Tokens,  # tokens with roles
    context_weight: float = 0.0,  # weight of the role CONTEXT, 0..1
) -> Sample:  # with weights
    "Roles become weights."
    weights = (0.0, 0.0, context_weight, 1.0)  # of SCAFFOLD, READ, CONTEXT, LEARNED
    return Sample(tokens.ids, list(map(weights.__getitem__, tokens.roles)), bytes(tokens.roles))


# %% [markdown]
# ## Two views of the same scenes
#
# **`rows`** is the seed's view: one sample for each line to learn, with the lines before it as context, at most `context_lines` of them and never more than fit. Simple, and expensive: a line is read again as context for each of the lines that follow.
#
# Tokenizers are fast when they get many texts at once, so scenes are taken in groups. They also work outside of Python, so the next groups are tokenized in a thread while samples of the last one are put together.

# %%
#| export
def with_said(
    scenes: list | tuple,  # `Scene`s
    maker: TextMaker,  # tokenizer and template
    at_once: int = 1000,  # lines in one call of the tokenizer
):  # yields (scene, what `TextMaker.said` gives for its lines)
    "Scenes with the tokens of their lines."
    groups, size = list[list](), at_once
    for s in scenes:
        if size >= at_once:
            groups.append([])
            size = 0
        groups[-1].append(s)
        size += len(s.lines)

    def job(group):
        return maker.said([line for s in group for line in s.lines])

    with collector_off(), ThreadPoolExecutor(1) as ahead:
        waiting = deque(ahead.submit(job, g) for g in groups[:3]) if maker.threads else deque()
        for i, group in enumerate(groups):
            said, begin = waiting.popleft().result() if maker.threads else job(group), 0
            if maker.threads and i + 3 < len(groups):
                waiting.append(ahead.submit(job, groups[i + 3]))
            for s in group:
                yield s, said[begin : begin + len(s.lines)]
                begin += len(s.lines)


def row_samples(
    scenes: list,  # `Scene`s
    maker: TextMaker,  # tokenizer and template
    targets: list | tuple = (),  # names to learn; empty: everyone
    max_seq_len: int = 256,  # most tokens of a sample
    context_lines: int = 10,  # most lines of context
) -> tuple:  # (samples, lines to learn that are longer than max_seq_len by themselves)
    "One sample a line: its context is read, the line and its end are learned."
    samples, too_long = [], []
    for s, said in with_said(scenes, maker):
        for i, line in enumerate(s.lines):
            if not is_target(line, targets):
                continue
            answer, first = said[i][1] + maker.end, max(0, i - context_lines)
            out, _ = prompt_tokens(
                maker, s.location, s.lines[first:i], line.speaker, max_seq_len - len(answer), said[first:i]
            )
            if len(out) + len(answer) > max_seq_len:
                too_long.append(line)
            else:
                samples.append(sample_of(out.add(answer, LEARNED)))
    return samples, too_long


# %% [markdown]
# **`scenes`** reads a whole scene once, and every line to learn is a target in it exactly once. Causal attention makes this right: a token sees only what stands before it, so what is said later cannot help to guess it. It learns the same lines from a tenth to an eighth of the tokens, as counted below.
#
# Lines of other characters can be learned a little too (`context_weight`), since they are English and Springfield as well. A scene that is longer than `max_seq_len` becomes several windows; each repeats the end of the one before it as context, which is not learned again.
#
# Whatever the template, a scene is an opening and *blocks*, one block for each line (`script`) or for each answer with the turn before it (`chat`).

# %%
#| export
def script_blocks(
    maker: TextMaker,  # tokenizer and template
    scene: Scene,  # a scene
    said: list,  # what `TextMaker.said` gave for its lines
    targets: list | tuple,  # names to learn; empty: everyone
    context: int,  # role of lines by others: CONTEXT or READ
    max_seq_len: int,  # not used: a line is not cut
):  # yields (opening, blocks); a block is (`Tokens` where it begins a window, `Tokens` elsewhere, its last line)
    "A scene in the plain form: one block a line."
    blocks, end = [], maker.end
    for line, (read, _) in zip(scene.lines, said):
        role, name = LEARNED if is_target(line, targets) else context if line.learn else READ, maker.name(line.speaker)
        block = Tokens(name + read + end, bytes((SCAFFOLD,)) * len(name) + bytes((role,)) * (len(read) + len(end)))
        blocks.append((block, block, line))
    yield Tokens().add(maker.heading(scene.location), SCAFFOLD), blocks


def chat_blocks(
    maker: TextMaker,  # tokenizer and template
    scene: Scene,  # a scene
    said: list,  # what `TextMaker.said` gave for its lines
    targets: list | tuple,  # names to learn; empty: everyone
    context: int,  # not used: a user's turns are never learned
    max_seq_len: int,  # most tokens of a block; lines before an answer are left out from the beginning
):  # yields (opening, blocks), as `script_blocks` does, for each character to learn
    "A scene as conversations, one for each character to learn: one block for each of its lines."
    for who in dict.fromkeys(line.speaker for line in scene.lines if is_target(line, targets)):
        turn, blocks = 0, []
        for i, line in enumerate(scene.lines):
            if line.speaker != who:
                continue
            answer, role = said[i][1] + maker.end, LEARNED if is_target(line, targets) else READ

            def block(opened, begins, since):
                return user_turn(maker, Tokens(), opened, begins, scene.lines[since:i], said[since:i]).add(answer, role)

            # the newest lines that fit
            first = next(
                b
                for n in range(turn, i + 1)
                if len(b := block(maker.frame.before(scene.location, who), True, n)) <= max_seq_len or n == i
            )
            blocks.append((first, block(maker.frame.again, False, turn), line))
            turn = i + 1
        yield Tokens(), blocks


# %%
#| export
BLOCKS = {"script": script_blocks, "chat": chat_blocks}


def scene_samples(
    scenes: list,  # `Scene`s
    maker: TextMaker,  # tokenizer and the script or chat template
    targets: list | tuple = (),  # names to learn; empty: everyone
    max_seq_len: int = 512,  # most tokens of a sample
    context_weight: float = 0.0,  # loss weight of lines by others, 0..1 (script template)
    overlap: float = 0.25,  # share of a window that may repeat the one before it, as context
) -> tuple:  # (samples, lines to learn that are longer than max_seq_len by themselves)
    "One pass over each scene; every line to learn is a target exactly once."
    require(
        maker.template in BLOCKS, f"view=scenes needs template=script or chat, not {maker.template}; or use view=rows"
    )
    samples, too_long = [], []
    context = CONTEXT if context_weight else READ
    for s, said in with_said(scenes, maker):
        for opening, blocks in BLOCKS[maker.template](maker, s, said, targets, context, max_seq_len):
            windows, long = cut_windows(opening, blocks, max_seq_len, overlap)
            # what others say is missing from the context, and that is all
            too_long += [line for line in long if is_target(line, targets)]
            samples += [
                sample_of(w, context_weight) for w in windows if w.roles.count(LEARNED) or w.roles.count(CONTEXT)
            ]
    return samples, too_long


# %% [markdown]
# Cutting into windows: a block that does not fit begins a new one. A conversation's window begins with the system message, as every prompt does.

# %%
#| export
def cut_windows(
    opening: Tokens,  # what every window begins with
    blocks: list,  # (`Tokens` where it begins a window, `Tokens` elsewhere, line) in order
    max_seq_len: int,  # most tokens of a window
    overlap: float,  # share of a window that may repeat the one before it
) -> tuple:  # (windows as `Tokens`, lines that fit into none)
    "Put blocks together as long as they fit."
    begin = len(opening)
    windows, too_long, window, size = [], [], list[tuple](), begin

    def read(tokens):
        return Tokens().add(tokens.ids, READ)  # what is repeated is not learned again

    for first, later, line in blocks:
        if begin + len(first.ids) > max_seq_len:
            too_long.append(line)
            continue
        if window and size + len(later.ids) > max_seq_len:
            windows.append(join(opening, window))
            room = min(overlap * max_seq_len, max_seq_len - begin - len(later.ids))
            keep = len(window)
            while keep and room >= len(window[keep - 1][0]):
                keep -= 1
                room -= len(window[keep][0])
            window = [(read(f), read(said)) for f, said in window[keep:]]
            size = begin + sum(len(w[i > 0]) for i, w in enumerate(window))
        size += len(later.ids if window else first.ids)
        window.append((first, later))
    return windows + [join(opening, window)] * bool(window), too_long


def join(
    opening: Tokens,  # what comes first
    window: list,  # (`Tokens` where it begins a window, `Tokens` elsewhere) of its blocks
) -> Tokens:  # all in one
    "One sequence of several."
    blocks = [block[i > 0] for i, block in enumerate(window)]
    return Tokens(opening.ids + [t for b in blocks for t in b.ids], opening.roles + b"".join(b.roles for b in blocks))


# %% [markdown]
# ### The same lines, learned once
#
# In both views and all forms each line of the characters to learn is a target exactly once:

# %% tags=["check"]
VIEWS = (
    ("rows", row_samples, "script"),
    ("rows", row_samples, "alpaca"),
    ("rows", row_samples, "chat"),
    ("scenes", scene_samples, "script"),
    ("scenes", scene_samples, "chat"),
)
for view, make, template in VIEWS:
    maker = makers[template]
    samples, too_long = make(scenes, maker, targets, max_seq_len=300)
    learned = [t for x in samples for t, w in zip(x.input_ids, x.loss_weights) if w]
    wanted = [
        t
        for s in scenes
        for line, (_, answer) in zip(s.lines, maker.said(s.lines))
        if is_target(line, targets)
        for t in answer + maker.end
    ]
    assert (sorted(learned) if (view, template) == ("scenes", "chat") else learned) == (
        sorted(wanted) if (view, template) == ("scenes", "chat") else wanted
    ), (view, template)
    assert not too_long and max(len(x.input_ids) for x in samples) <= 300

# %% [markdown]
# And every prompt of serving is the beginning of a training sample, token for token:

# %% tags=["check"]
s = scenes[0]
for view, make, template in VIEWS:
    maker = makers[template]
    for who in targets:
        samples, _ = make([s], maker, [who], 10**6, **({"context_lines": 10**6} if view == "rows" else {}))
        mine = [i for i, line in enumerate(s.lines) if line.speaker == who]
        for n, i in enumerate(mine):
            sample, asked = samples[n if view == "rows" else 0], prompt_ids(maker, s.location, s.lines[:i], who)
            assert sample.input_ids[: len(asked)] == asked
            rest = sample.input_ids[len(asked) :]
            assert (
                bpe.decode(rest[: rest.index(maker.end[-1])]).strip() == s.lines[i].text
                and sample.loss_weights[len(asked)] == 1
            )


# %% [markdown]
# What do the views cost? Tokens that the model must read for the same learned tokens, whole script, ten lines of context, Homer and Marge to learn:

# %% tags=["example"]
def cost_of(view, make, template):
    samples, _ = make(everything, makers[template], targets, max_seq_len=1024)
    return view, template, len(samples), sum(len(x.input_ids) for x in samples), sum(x.learned for x in samples)


cost = pd.DataFrame(
    [cost_of(*v) for v in VIEWS], columns=["view", "template", "samples", "tokens read", "tokens learned"]
)
cost["read per learned"] = (cost["tokens read"] / cost["tokens learned"]).round(1)
cost

# %% [markdown]
# With every character to learn, the difference is largest:

# %% tags=["example"]
targets_of_two, targets = targets, []
cost = pd.DataFrame(
    [cost_of(*v) for v in VIEWS if v[2] != "chat"],
    columns=["view", "template", "samples", "tokens read", "tokens learned"],
)
targets = targets_of_two
cost["read per learned"] = (cost["tokens read"] / cost["tokens learned"]).round(1)
print(
    f"For the same {cost['tokens learned'][0]:,} learned tokens, scenes read {cost['read per learned'][2]} tokens "
    f"for each learned one, rows {cost['read per learned'][0]}, and with Alpaca headings {cost['read per learned'][1]}."
)
cost

# %% tags=["check"]
# the end is one token in each
assert cost["tokens learned"][0] == cost["tokens learned"][1] == cost["tokens learned"][2]
assert cost["read per learned"][2] * 5 < cost["read per learned"][0] < cost["read per learned"][1]


# %% [markdown]
# ## What a limit cuts off
#
# `max_seq_len` is the most tokens of a sample. Memory grows with it, so it is tempting to set it low. What is lost? In `rows`, context lines; in both views, lines that do not fit by themselves; in `scenes`, nothing else, but a scene in several windows reads its seams twice.

# %%
#| export
def truncation_table(
    scenes: list,  # `Scene`s
    maker: TextMaker,  # tokenizer and template
    targets: list | tuple = (),  # names to learn; empty: everyone
    lengths: tuple = (128, 256, 512, 1024),  # values of max_seq_len to look at
    context_lines: int = 10,  # most lines of context in rows
) -> list:  # a dict for each length
    "What each limit would cut off."
    rows, wanted = [], sum(is_target(line, targets) for s in scenes for line in s.lines)
    full = sum(len(x.input_ids) for x in row_samples(scenes, maker, targets, 10**9, context_lines)[0])
    for n in lengths:
        samples, long = row_samples(scenes, maker, targets, n, context_lines)
        row = {
            "max_seq_len": n,
            "lines too long": len(long) / max(wanted, 1),
            "rows: tokens cut": 1 - sum(len(x.input_ids) for x in samples) / max(full, 1),
        }
        if maker.template in BLOCKS:
            windows, _ = scene_samples(scenes, maker, targets, n)
            row |= {
                "scenes: windows": len(windows),
                "scenes: longest": max((len(x.input_ids) for x in windows), default=0),
            }
        rows.append(row)
    return rows


# %% tags=["example"]
cut = pd.DataFrame(truncation_table(everything, makers["script"])).set_index("max_seq_len")
print(
    f"256 tokens cut {cut['rows: tokens cut'][256]:.0%} of what rows would read, 512 tokens "
    f"{cut['rows: tokens cut'][512]:.1%}; no line is longer than 256 tokens ({cut['lines too long'][256]:.0%})."
)
cut.round(3)

# %% tags=["check"]
assert (
    list(cut["rows: tokens cut"]) == sorted(cut["rows: tokens cut"], reverse=True)
    and cut["rows: tokens cut"][1024] == 0 == cut["lines too long"][256]
)

# %% [markdown]
# How long are the samples of each view? The histogram shows tokens of the small tokenizer of this chapter; a real one has longer pieces:

# %% tags=["example"]
lengths = {
    f"{view}, {template}": pd.Series([len(x.input_ids) for x in make(everything, makers[template], [], 10**6)[0]])
    for view, make, template in VIEWS
    if template != "chat"
}
ax = pd.DataFrame(lengths).plot.hist(
    bins=40, density=True, alpha=0.6, figsize=(6.4, 3), color=["#f2c500", "#c0504d", "#4f86c6"]
)
ax.set_xlabel("tokens of a sample")
ax.set_ylabel("share")
ax.set_yticks([])
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
print("; ".join(f"{name}: median {x.median():.0f}, longest {x.max()}" for name, x in lengths.items()))


# %% [markdown]
# ## The audit before training
#
# A wrong label is the quietest bug in fine-tuning: the loss falls, and nothing useful is learned. So before every training the samples are counted and looked at, and training is refused when a sample learns nothing, when all that is learned is a little of what others say, or when the end of an answer is never learned. The commonest reason is a limit below the shortest line; then the refusal names the lengths.

# %%
#| export
def why_nothing(
    scenes: list | tuple,  # the `Scene`s that samples were made of; empty: not known
    maker: TextMaker,  # what made them
    targets: list | tuple,  # names to learn; empty: everyone
    max_seq_len: int,  # most tokens of a sample
) -> str:  # half a sentence, with what to do
    "Why no line of some scenes is learned."
    needs = [
        len(prompt_tokens(maker, s.location, [], line.speaker)[0]) + len(answer) + len(maker.end)
        for s, said in with_said(scenes, maker)
        for line, (_, answer) in zip(s.lines, said)
        if is_target(line, targets)
    ]
    if not needs or min(needs) <= max_seq_len:
        return "check the speakers and max_seq_len"
    return (
        f"each of the {len(needs):,} lines to learn is longer than max_seq_len={max_seq_len} tokens "
        f"by itself (with heading, name and end, the shortest takes {min(needs):,}, the longest {max(needs):,}); "
        f"raise max_seq_len, to {max(needs):,} for all of them"
    )


def audit(
    samples: list,  # `Sample`s
    maker: TextMaker,  # what made them
    scenes: list | tuple = (),  # the `Scene`s they were made of, to say why nothing is learned
    targets: list | tuple = (),  # names to learn; empty: everyone
    max_seq_len: int = 10**9,  # most tokens of a sample
) -> dict:  # samples, tokens, learned_tokens (weight 1), context_tokens (less), learned_ends, longest, scaffold, read
    "Counts of what will be learned; ValueError if nothing would be, or if answers would never learn to end."

    def nothing(what):
        return ValueError(f"there is nothing to learn{what}: {why_nothing(scenes, maker, targets, max_seq_len)}")

    if not samples:
        raise nothing("")
    end, ends, total, learned, context, longest, roles = maker.end[-1], 0, 0, 0, 0, 0, [0] * 4
    for i, x in enumerate(samples):
        full, n = x.learned, x.weighted
        require(n, f"sample {i} of {len(samples)} has 0 learned tokens; check the speakers and max_seq_len")
        if x.input_ids.count(end):
            ends += sum(w > 0 for t, w in zip(x.input_ids, x.loss_weights) if t == end)
        total += len(x.input_ids)
        learned += full
        context += n - full
        longest = max(longest, len(x.input_ids))
        for r in range(4):
            roles[r] += x.roles.count(r)
    if not learned:
        raise nothing(" but what others say")
    require(
        ends,
        f"the token that ends an answer ({maker.tokenizer.decode(maker.end)!r}) is never learned; "
        "answers would not stop",
    )
    return {
        "samples": len(samples),
        "tokens": total,
        "learned_tokens": learned,
        "context_tokens": context,
        "learned_ends": ends,
        "longest": longest,
        **dict(zip(("scaffold", "read"), roles)),
    }


# %% tags=["check"]
maker = makers["script"]
samples, _ = scene_samples(scenes, maker, targets)
assert audit(samples, maker)["learned_ends"] == sum(is_target(line, targets) for s in scenes for line in s.lines)
blank = Sample(samples[0].input_ids, [0.0] * len(samples[0].input_ids))
endless = [
    Sample(x.input_ids, [w * (t != maker.end[-1]) for t, w in zip(x.input_ids, x.loss_weights)]) for x in samples
]
for bad, word in (([], "nothing"), ([*samples, blank], "0 learned"), (endless, "never learned")):
    try:
        audit(bad, maker)
        raise AssertionError(word)
    except ValueError as e:
        assert word in str(e)
for make in (row_samples, scene_samples):  # a limit below the shortest line
    none, too_long = make(scenes, maker, targets, max_seq_len=10)
    try:
        audit(none, maker, scenes, targets, 10)
        raise AssertionError(make)
    except ValueError as e:
        told = str(e)
        assert f"each of the {len(too_long)} lines" in told and "max_seq_len=10" in told
print(told)
talkative = Scene(
    0,
    0,
    "",
    (Line(0, 0, "Moe", "Closed."), Line(0, 1, "Homer Simpson", "But it is Friday, " + "and Friday is the day " * 20)),
)
try:
    audit(scene_samples([talkative], maker, targets, 60, 0.1)[0], maker, [talkative], targets, 60)
    raise AssertionError
except ValueError as e:
    assert "what others say" in str(e) and "each of the 1 lines" in str(e)

# %% [markdown]
# Looking is better still. Yellow is learned, blue is learned a little (`context_weight`), white is only read, grey is scaffolding:

# %%
#| export
COLORS = {
    LEARNED: ("#f2c500", "learned"),
    CONTEXT: ("#a9c8ec", "learned a little"),
    READ: ("#ffffff", "only read"),
    SCAFFOLD: ("#d9d9d9", "scaffolding"),
}


def show_sample(
    sample: Sample,  # a sample
    tokenizer,  # its tokenizer
    most: int = 300,  # tokens to show
) -> str:  # HTML
    "A sample as coloured text: what is learned, learned a little, only read, scaffolding."
    import html

    def span(text, role):
        style = f"background:{COLORS[role][0]};color:#111;margin-right:1px;white-space:pre-wrap;border-radius:2px"
        return f'<span style="{style}">{text}</span>'

    roles = sample.roles or bytes(LEARNED if w == 1 else CONTEXT if w else READ for w in sample.loss_weights)
    shown = [
        span(html.escape(tokenizer.decode([i])).replace("\n", "&para;<br>"), r)
        for i, r in list(zip(sample.input_ids, roles))[:most]
    ]
    legend = " ".join(span(f"&nbsp;{what}: {roles.count(r)}&nbsp;", r) for r, (_, what) in COLORS.items())
    more = f"<br>and {len(roles) - most} more tokens" if len(roles) > most else ""
    return (
        f'<div style="line-height:1.7;font-family:monospace;background:#fff;color:#111;padding:6px">'
        f"{''.join(shown)}{more}<br><br>{legend}</div>"
    )


# %% tags=["example"]
HTML(show_sample(scene_samples(scenes[:1], makers["script"], ["Homer Simpson"], context_weight=0.1)[0][0], bpe, 600))

# %% tags=["example"]
HTML(show_sample(row_samples(scenes[:1], makers["alpaca"], ["Homer Simpson"])[0][1], bpe))

# %% tags=["example"]
HTML(show_sample(scene_samples(scenes[:1], makers["chat"], ["Homer Simpson"])[0][0], bpe, 600))


# %% [markdown]
# A run writes the same picture into its folder, so that those who train from a shell can look too:

# %%
#| export
def write_audit(
    samples: list,  # `Sample`s
    maker: TextMaker,  # what made them
    counts: dict,  # what `audit` gave
    path,  # the HTML file
) -> Path:  # the file
    "One sample in colours, and the counts."
    longest = sorted(samples, key=lambda x: len(x.input_ids))[len(samples) // 2]
    rows = "".join(
        f"<tr><td>{k.replace('_', ' ')}</td><td style='text-align:right'>{v:,}</td></tr>" for k, v in counts.items()
    )
    return write_text(
        path,
        "<!doctype html><meta charset='utf-8'><title>What is learned</title>"
        "<body style='font-family:sans-serif;max-width:60em;margin:2em auto'><h1>What is learned</h1>"
        f"<p>Template {maker.template}; a sample of median length.</p>"
        f"{show_sample(longest, maker.tokenizer, 2000)}<table>{rows}</table>",
    )
