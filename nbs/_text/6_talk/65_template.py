# %%
#| default_exp talk.template

# %% [markdown]
# # A scene as messages
#
# > The chat template of a published character: any program that can chat asks it with the prompt of its training.
#
# Programs that serve language models all speak one language: a list of *messages*, each with a role (`system`, `user`, `assistant`) and its words. A character was trained on scenes. Somebody has to turn the one into the other, and whoever does it otherwise than in training asks a stranger. The place for it is the *chat template*: a small program in the language Jinja that lies beside a model, and that transformers, vLLM and llama.cpp all run before they ask. So this chapter writes a template that makes of messages the prompt of [text for the model](../1_data/15_prompt.ipynb), token for token; [publishing](66_publish.ipynb) lays it into the folder.
#
# What is left out: a template cannot count tokens, so it never shortens a long scene, and it cannot keep the letters of a special token from being one, as this book's own prompts do.

# %%
#| export
import json

from simpsons_llm.data.prompt import OWN_TEMPLATE, SILENCE, TextMaker, alpaca_frame, chat_system, prompt_ids
from simpsons_llm.machine.job import require
from simpsons_llm.talk.ollama import SAMPLE, as_messages

# %%
#| hide
import copy

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import FancyBboxPatch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line
from simpsons_llm.data.prompt import CHATML, byte_tokenizer, small_tokenizer
from simpsons_llm.model.base import SMOLLM2, load_tokenizer


# %% [markdown]
# ## Which message is what
#
# | message | in the scene |
# |---|---|
# | `system` | the place: `Moe's Tavern` |
# | `user`, every row such as `Name: line` | those lines |
# | `user` with the field `name` | one line, said by that name |
# | `user`, anything else | one line of the person whom you play |
# | `assistant` | the character's own line |
# | the end of the list | the character's name and a colon: its turn |
#
# Whom do you play? The character with the most lines that is not the one you talk to, or somebody else, where a template is told (`you`, as `speaker` below). Where the model knows nobody else, it is a stranger. Some servers drop the field `name` on the way (that of transformers does), so rows with names are the safe way to write a line. Here is a scene as messages:

# %%
#| export
def scene_messages(
    location: str,  # where the scene is; may be empty
    lines: list,  # `Line`s before the answer
    speaker: str,  # who answers
) -> list:  # of {"role", "content"}
    "A scene as other programs get it."
    return [{"role": "system", "content": location}] * bool(location) + as_messages(lines, speaker)


# %% tags=["example"]
who = "Homer Simpson"
scene = next(
    s
    for s in read_script("springfield").scenes
    if len(s.lines) > 6 and [line.speaker == who for line in s.lines[:3]] == [False, True, False]
)
pd.set_option("display.max_colwidth", 100)
pd.DataFrame(scene_messages(scene.location, scene.lines[:4], who))


# %% [markdown]
# ## Reading the messages
#
# The first half of the template is the same for all forms of prompt: it gathers the place and the lines. A template is shared by everybody who asks, so the character's name stands in it, as a word that may be overruled: most servers pass `chat_template_kwargs` on, and with `{"speaker": "Marge Simpson"}` another character of the run answers. A name that the run did not learn is refused, where it would be answered by nobody we know.
#
# Jinja comes in several dialects. What is used here is understood by all that were tried: `split`, `trim`, `replace`, lists that are added, and a `namespace`, since a plain variable that is set within a loop is forgotten behind it.

# %%
#| export
def quoted(
    text: str,  # any text
) -> str:  # with quotation marks around it
    "A text as a constant of Jinja."
    return json.dumps(text, ensure_ascii=False)


# who speaks to a model that knows nobody else
STRANGER = "Stranger"


def read_jinja(
    speaker: str,  # who answers, where nobody else is asked for
    names: tuple,  # whom else one may ask for, who has most lines first; empty: anybody
) -> str:  # sets `who`, `scene.place` and `scene.rows`: pairs of a name and what is said
    "Jinja that gathers a scene from messages."
    known = f"[{', '.join(map(quoted, names))}]"
    first, second = (*names, STRANGER, STRANGER)[:2] if len(names) > 1 else (STRANGER, STRANGER)
    refusal = f"who ~ {quoted(' was not learned by this model; it knows ' + ', '.join(names[:20]))}"
    one_row = "| replace('\\n', ' ') | trim"
    return (
        f"{{%- set who = speaker if speaker is defined and speaker else {quoted(speaker)} -%}}"
        + f"{{%- if who not in {known} -%}}{{{{ raise_exception({refusal}) }}}}{{%- endif -%}}" * bool(names)
        + f"{{%- set other = {quoted(second)} if who == {quoted(first)} else {quoted(first)} -%}}"
        "{%- set me = you if you is defined and you else other -%}"
        "{%- set scene = namespace(place='', rows=[]) -%}"
        "{%- for m in messages -%}{%- set said = (m['content'] or '') | trim -%}"
        f"{{%- if m['role'] in ['system', 'developer'] -%}}{{%- set scene.place = said {one_row} -%}}"
        "{%- elif m['role'] == 'assistant' or m['name'] -%}"
        "{%- set by = m['name'] if m['name'] else who -%}"
        f"{{%- set scene.rows = scene.rows + [[by, said {one_row}]] -%}}"
        "{%- elif m['role'] == 'user' and said -%}{%- set all = namespace(named=true, rows=[]) -%}"
        "{%- for line in said.split('\\n') -%}{%- set row = line | trim -%}{%- set parts = row.split(': ') -%}"
        "{%- if parts | length > 1 and parts[0] | length <= 60 -%}"
        "{%- set all.rows = all.rows + [[parts[0], parts[1:] | join(': ')]] -%}"
        "{%- elif row -%}{%- set all.named = false -%}{%- endif -%}{%- endfor -%}"
        f"{{%- set scene.rows = scene.rows + (all.rows if all.named else [[me, said {one_row}]]) -%}}"
        "{%- endif -%}{%- endfor -%}"
    )


# %% [markdown]
# Four lines of a rehearsal, written in every way that the table allows, and what the template has gathered of them:

# %% tags=["example"]
bpe = small_tokenizer()
asked = [
    {"role": "system", "content": "Home"},
    {"role": "user", "content": "Marge Simpson: Two things: the dog, and your tie.\nMoe Szyslak: It barks."},
    {"role": "assistant", "content": " It has an interview."},
    {"role": "user", "name": "Lisa Simpson", "content": "At the pound?"},
]
gathered = (
    read_jinja(who, (who, "Marge Simpson")) + "{{ scene.place }}{% for r in scene.rows %}{{ '\n' ~ r }}{% endfor %}"
)
print(bpe.apply_chat_template(asked, chat_template=gathered, tokenize=False))

# %% tags=["check"]
seen = bpe.apply_chat_template(asked, chat_template=gathered, tokenize=False, speaker="Marge Simpson")
assert "['Marge Simpson', 'It has an interview.']" in seen and "['Moe Szyslak', 'It barks.']" in seen
for names, you, meant in (
    ((who, "Marge Simpson"), {}, "Marge Simpson"),
    ((who,), {}, STRANGER),
    ((), {"you": "Moe"}, "Moe"),
):
    alone = bpe.apply_chat_template(
        [{"role": "user", "content": "Hi.\nAnd: bye."}],
        chat_template=read_jinja(who, names) + "{{ scene.rows }}",
        tokenize=False,
        **you,
    )
    assert alone == str([[meant, "Hi. And: bye."]])
try:
    bpe.apply_chat_template(asked, chat_template=gathered, tokenize=False, speaker="Moe Szyslak")
    raise AssertionError
except Exception as e:
    assert "Moe Szyslak was not learned" in str(e), e

# %% [markdown]
# ## Writing the prompt
#
# The second half writes what training wrote. A model whose texts begin with the token `<bos>` gets it from the template: programs that run a template add none of their own, and the prompt would lack it.

# %%
#| export
# one line of the scene
ROW = "{{ row[0] ~ ': ' ~ row[1] }}"


def script_jinja(
    bos: bool,  # whether texts begin with the token bos
) -> str:  # Jinja that follows `read_jinja`
    "The script form."
    return (
        "{{ bos_token }}" * bos + "{{ '[' ~ (scene.place or 'Scene') ~ ']\\n' }}"
        "{%- for row in scene.rows -%}" + ROW + "{{ '\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ who ~ ':' }}{%- endif -%}"
    )


def alpaca_jinja(
    bos: bool,  # whether texts begin with the token bos
) -> str:  # Jinja that follows `read_jinja`
    "The seed's form."
    before, after = (t.split("@@who@@") for t in alpaca_frame("@@who@@"))
    return (
        "{{ bos_token }}" * bos + f"{{{{ {quoted(before[0])} ~ who ~ {quoted(before[1])} }}}}"
        "{%- if scene.place -%}{{ '[' ~ scene.place ~ ']' }}{%- endif -%}"
        "{%- for row in scene.rows -%}{{ '\\n' if scene.place or not loop.first else '' }}" + ROW + "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {quoted(after[0])} ~ who ~ {quoted(after[1])} }}}}{{%- endif -%}}"
    )


# %% [markdown]
# A model that was trained in its own chat form keeps its own template. What goes before it changes the messages first: the system's words become those of the training, and all lines between two of the character's own become one turn of the user. A mark between the two halves tells this book where the model's own template begins, should the model be trained further.

# %%
#| export
def chat_jinja(
    own: str,  # the model's own chat template, the date in it fixed
    takes_system: bool,  # whether it has a role for the system's words
) -> str:  # Jinja that follows `read_jinja`
    "The model's own chat form: its own template, asked with the messages of the training."
    here, plain = (chat_system(place, "@@who@@") for place in ("@@place@@", ""))

    def said(text):
        for mark, name in (("@@who@@", "who"), ("@@place@@", "scene.place")):
            text = text.replace(mark, f'" ~ {name} ~ "')
        return text

    first = "[{'role': 'system', 'content': words}]" if takes_system else "[]"
    opening = "''" if takes_system else "words ~ '\\n\\n'"
    return (
        f"{{%- set words = {said(quoted(here))} if scene.place else {said(quoted(plain))} -%}}"
        f"{{%- set talk = namespace(turns={first}, heard='', opening={opening}) -%}}"
        "{%- for row in scene.rows -%}{%- if row[0] == who -%}"
        f"{{%- set heard = talk.opening ~ (talk.heard or {quoted(SILENCE)}) -%}}"
        "{%- set talk.turns = talk.turns + [{'role': 'user', 'content': heard},"
        " {'role': 'assistant', 'content': row[1]}] -%}"
        "{%- set talk.heard = '' -%}{%- set talk.opening = '' -%}{%- else -%}"
        "{%- set line = row[0] ~ ': ' ~ row[1] -%}"
        "{%- set talk.heard = talk.heard ~ ('\\n' if talk.heard else '') ~ line -%}{%- endif -%}{%- endfor -%}"
        f"{{%- set heard = talk.opening ~ (talk.heard or {quoted(SILENCE)}) -%}}"
        "{%- set messages = talk.turns + [{'role': 'user', 'content': heard}] -%}" + OWN_TEMPLATE + own
    )


# %% [markdown]
# Together they are one template for one character:

# %%
#| export
def scene_template(
    maker: TextMaker,  # tokenizer and template of the training
    speaker: str,  # who answers, where nobody else is asked for
    names: tuple = (),  # whom else one may ask for; empty: anybody
) -> str:  # a chat template in Jinja
    "What other programs need, to ask as in training."
    require(speaker.strip(), "no speaker was given; say who answers, such as 'Homer Simpson'")
    read, bos = read_jinja(speaker, tuple(names)), bool(maker.bos)
    if maker.template == "chat":
        return read + chat_jinja(maker.frame.template, maker.frame.takes_system)
    return read + (script_jinja(bos) if maker.template == "script" else alpaca_jinja(bos))


def template_ids(
    tokenizer,  # a tokenizer with a chat template, or one that was loaded from a published folder
    messages: list,  # of {"role", "content"}, and where it is known "name"
    **more,  # for the template, such as speaker="Marge Simpson"
) -> list:  # token ids
    "What a program that runs the chat template asks with."
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **more)


# %% tags=["example"]
def with_template(maker, names=()):
    "A tokenizer as it lies in a published folder."
    tokenizer = copy.copy(maker.tokenizer)
    tokenizer.chat_template = scene_template(maker, who, names)
    return tokenizer


maker = TextMaker(bpe)
published = with_template(maker)
print(published.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
print("---- and for another character:")
print(published.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, speaker="Marge Simpson")[-80:])

# %% [markdown]
# The way of a line, from the message to the prompt. Nothing of a message is lost, and the last words, the name of who answers, are the template's own:

# %% tags=["example"]
boxes = [*scene_messages(scene.location, scene.lines[:3], who), {"role": "", "content": "(no more messages)"}]
rows = published.apply_chat_template(boxes[:-1], tokenize=False, add_generation_prompt=True).split("\n")
colours = {"system": "#cfd8dc", "user": "#b3d4f0", "assistant": "#f9e27d", "": "#ffffff"}
fig, ax = plt.subplots(figsize=(9, 2.6))
ax.set(xlim=(-1, 100), ylim=(0, len(boxes)))
ax.axis("off")
for i, (m, row) in enumerate(zip(boxes, rows)):
    y = len(boxes) - i - 0.9
    for x, label in ((0, f"{m['role']}:  {m['content']}" if m["role"] else m["content"]), (52, row)):
        ax.add_patch(FancyBboxPatch((x, y), 46, 0.7, boxstyle="round,pad=0.1", fc=colours[m["role"]], ec="#888"))
        ax.text(x + 1, y + 0.35, label if len(label) < 56 else label[:53] + "...", va="center", fontsize=7.5)
    ax.annotate("", (51.6, y + 0.35), (46.6, y + 0.35), arrowprops={"arrowstyle": "->", "color": "#555"})
plt.show()


# %% [markdown]
# ## Token for token
#
# Equal text is not enough. This book makes tokens piece by piece; a program that runs a template turns the whole text into tokens at once. With most tokenizers the two agree. Some join the sign that ends a line and the newline behind it into one token, and then a few tokens differ. Whether they do is found out by asking: a sample is written both ways, and who publishes is told.

# %%
#| export
def template_note(
    tokenizer,  # with the chat template of `scene_template`
    maker: TextMaker,  # tokenizer and template of the training
    speaker: str,  # who answers
) -> str:  # "" if the tokens are those of the training, else what differs
    "Does the chat template ask with the very tokens of the training?"
    own = [SAMPLE[0]._replace(speaker=speaker, text="It suits him. He has an interview!")]
    for location, lines in (("", SAMPLE), ("Home", SAMPLE), ("Home", SAMPLE + own + SAMPLE)):
        ids = template_ids(tokenizer, scene_messages(location, lines, speaker))
        wanted = prompt_ids(maker, location, lines, speaker)
        if ids != wanted:
            same = tokenizer.decode(ids) == maker.tokenizer.decode(wanted)
            why = "joins signs over the end of a line where training kept them apart" if same else "writes another text"
            return f"the chat template {why}, so the tokens differ from those of the training"
    return ""


# %% [markdown]
# All moments of the first scenes of the book's script, for every form and several tokenizers: what the template asks with beside the prompt of the training. Among them are the moments at which the character speaks twice in a row, or is the last to have spoken.

# %% tags=["check"]
NO_SYSTEM = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
    ("<turn>", "<end>"),
)
smol = load_tokenizer(SMOLLM2)
makers = {
    f"{name}, {form}": TextMaker(t, form)
    for name, t in (("bytes", byte_tokenizer()), ("small BPE", bpe), ("SmolLM2", smol))
    for form in ("script", "alpaca")
} | {
    "SmolLM2, chat": TextMaker(smol, "chat"),
    "ChatML": TextMaker(small_tokenizer(2000, *CHATML), "chat"),
    "no system role": TextMaker(small_tokenizer(2000, *NO_SYSTEM), "chat"),
}
compared = dict.fromkeys(makers, 0)
for name, m in makers.items():
    theirs = with_template(m)
    assert template_note(theirs, m, who) == ""
    for s in read_script("springfield").scenes[:25]:
        for speaker in (who, "Marge Simpson"):
            for i in range(min(9, len(s.lines))):
                messages = scene_messages(s.location, s.lines[:i], speaker)
                if not messages:
                    continue
                ids = template_ids(theirs, messages, speaker=speaker)
                assert ids == prompt_ids(m, s.location, s.lines[:i], speaker), (name, i, speaker)
                compared[name] += 1
compared

# %% [markdown]
# And a tokenizer that reads a full stop and the newline behind it as one is told apart:

# %% tags=["check"]
joins = byte_tokenizer()
joins.add_tokens([".\n"])
m = TextMaker(joins)
said = template_note(with_template(m), m, who)
assert "joins signs" in said
odd = 'Bob "\\n{{ 7 * 6 }}" Terwilliger\'s %} `cat`'
theirs = copy.copy(bpe)
theirs.chat_template = scene_template(maker, odd, (odd, who))
lines = [Line(0, 0, "Marge Simpson", "Well?"), Line(0, 1, odd, "Never: {{ messages }}.")]
assert template_ids(theirs, scene_messages("Jail", lines, odd)) == prompt_ids(maker, "Jail", lines, odd)
said

# %% [markdown]
# ## No token bos twice
#
# A tokenizer that begins each text with `<bos>` by itself would give one more, had the program asked it to. The template's own is the only one:

# %% tags=["check"]
for name in ("no system role", "small BPE, script"):
    ids = template_ids(with_template(makers[name]), scene_messages("Home", scene.lines[:3], who))
    assert ids.count(bpe.bos_token_id) == len(makers[name].bos) + (name == "no system role"), name

# %% [markdown]
# You can now say what a message means to a character, and have a program that has never heard of this book ask the right question.

# %% [markdown]
# ### Exercises
#
# 1. A server is asked with one message of the role `user`, `Hello!`, and no name. What does the model of a script read?
# 2. Somebody asks a model of Homer with `speaker` set to `Moe Szyslak`, whom it has not learned. What should the server answer, and why is an answer in Moe's name worse than none?

# %% tags=["check"]
hello = published.apply_chat_template(
    [{"role": "user", "content": "Hello!"}], tokenize=False, add_generation_prompt=True
)
assert (
    hello == "[Scene]\nStranger: Hello!\nHomer Simpson:"
)  # the template was made for anybody, so it knows nobody else
strict = with_template(maker, (who,))  # an error: a wrong voice looks like a right one
try:
    template_ids(strict, asked, speaker="Moe Szyslak")
    raise AssertionError
except Exception as e:
    assert "it knows Homer Simpson" in str(e)
