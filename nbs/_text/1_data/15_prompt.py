# %%
#| default_exp data.prompt

# %% [markdown]
# # Text for the model
#
# > The only place where text for the model is made: for training and for answering, by the same function.
#
# A model that was trained on one form of prompt and is asked with another answers worse, and nothing tells you so. The seed of this project trained with `### Response` and asked with `### Output`. So all text is made in this chapter, once, and a check holds the tokens of training and of serving equal.
#
# Three forms are built in: a plain script, the seed's Alpaca form, and the chat template of the model, whatever it is. How texts become samples to learn from, with a loss weight for each token, is told in [samples and loss weights](16_samples.ipynb).

# %%
#| export
import bisect
import copy
import datetime

from simpsons_llm.data.formats import read_script
from simpsons_llm.machine.job import require

# %%
#| hide
from unittest.mock import patch

from transformers.utils import chat_template_utils


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


# %% [markdown]
# The letter ñ is two bytes, so it is two tokens, neither of which is text by itself:

# %% tags=["example"]
tokenizer = byte_tokenizer()
[(i, tokenizer.decode([i])) for i in tokenizer("Señor").input_ids]

# %% tags=["check"]
assert tokenizer.decode(tokenizer("Ay, Señor Ümlaut?").input_ids) == "Ay, Señor Ümlaut?"
assert len(tokenizer) == 259 and tokenizer.pad_token_id != tokenizer.eos_token_id


# %% [markdown]
# ## From pieces to tokens
#
# The tokenizers of most models put the space into the token of the word behind it. A prompt that ends in `Homer: ` has already spent the space on a token of its own, and the answer begins with other tokens than in the same text written in one. The model is then asked with tokens that it never saw at this place. Other tokenizers join a full stop and the newline behind it.
#
# The remedy: text is cut into *pieces* (a name with its colon, what is said, the end of the line) and each piece is tokenized by itself. Adding a line can then never change the tokens before it.
#
# One more trap: a line may hold the letters of a special token. If somebody says `</s>` and the tokenizer reads the end of the text there, the model learns to fall silent in mid-sentence. So what comes from a script is read *literally*; only the scaffolding of a chat template may hold special tokens.

# %%
#| export
def reader(
    tokenizer,  # a transformers tokenizer
    literal: bool = True,  # letters of special tokens are letters
):  # a function: list of texts -> for each, its token ids, no special tokens added
    """Plain tokenization.

    A literal reader has a copy of the tokenizer, so nobody's padding or truncation is in it, and threads may use it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not literal or backend is None or not hasattr(backend, "encode_batch_fast"):
        return lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=literal).input_ids
    backend = copy.deepcopy(backend)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    # a quarter of the time of tokenizer(texts)
    return lambda texts: [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


# %% [markdown]
# The same five letters, read literally and not: five bytes, or the one token that ends an answer.

# %% tags=["example"]
{how: reader(tokenizer, literal)(["<eos>"])[0] for how, literal in (("literal", True), ("not literal", False))}


# %% [markdown]
# By itself, yet not out of place: SentencePiece tokenizers put a space in front of any text that begins. So a piece is tokenized behind a short anchor, the character that it follows in the real text, and the anchor's tokens are taken off again.

# %%
#| export
def piece_ids(
    read,  # what `reader` gave
    texts: list,  # pieces of text
    anchor: str = "",  # what each piece follows, e.g. ":"; empty: the beginning of the text
) -> list:  # for each piece, its token ids, without special tokens
    "Token ids of pieces, as they are in the middle of a text."
    if not anchor or not texts:
        return read(texts) if texts else []
    before, *together = read([anchor, *(anchor + t for t in texts)])
    n, alone = len(before), None
    for i, x in enumerate(together):
        if x[:n] == before and len(x) > n:
            together[i] = x[n:]
        else:  # anchor and piece merged into one token: tokenize the piece alone
            alone = alone or read(texts)
            together[i] = alone[i]
    return together


# %% [markdown]
# A tokenizer trained on the spot, of the kind that GPT-2 and SmolLM2 use, shows the trap in its first two rows, and the pieces in the third:

# %%
#| export
def small_tokenizer(
    size: int = 2000,  # how many tokens it has
    chat_template: str | None = None,  # a chat template
    special: tuple = (),  # the template's special tokens
):  # a transformers tokenizer, made in half a second
    "A byte-level BPE tokenizer trained on the book's own script, for examples and tests."
    tokenizer = byte_tokenizer().train_new_from_iterator(
        [f"{line.speaker}: {line.text}\n" for line in read_script("springfield").lines], size, show_progress=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = chat_template
    return tokenizer


# %% tags=["example"]
bpe = small_tokenizer()


def bars(*parts):
    return " | ".join("|".join(repr(bpe.decode([i]))[1:-1] for i in ids) for ids in parts)


scene = read_script("springfield").scenes[0]
name, said = scene.lines[1].speaker, scene.lines[1].text[:40]
print("as one text:          ", bars(bpe(f"{name}: {said}").input_ids))
print("prompt with a space:  ", bars(bpe(f"{name}: ").input_ids, bpe(said).input_ids))
print(
    "pieces:               ",
    bars(
        *(
            piece_ids(reader(bpe), [piece], anchor)[0]
            for piece, anchor in ((f"{name}:", "\n"), (f" {said}", ":"), ("\n", "."))
        )
    ),
)

# %% tags=["check"]
trap = [" Good night.</s>", " <eos> is near", " <pad><bos>"]
read = piece_ids(reader(bpe), trap, ":")
assert not {0, 1, 2} & {i for ids in read for i in ids} and [bpe.decode(x) for x in read] == trap
assert bpe.eos_token_id in bpe("<eos>").input_ids  # the tokenizer is as it was
# leaves its settings in the tokenizer
bpe(["a", "longer text"], padding=True, truncation=True, max_length=3)
assert piece_ids(reader(bpe), trap, ":") == read

# %% [markdown]
# ## Three forms of text
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
TEMPLATES = ("script", "alpaca", "chat")


def alpaca_frame(
    speaker: str,  # who answers
) -> tuple:  # (text before the lines, text behind them)
    "The seed's prompt: an opening sentence and the headings Instruction, Input and Response."
    return (
        "Here is a part of a scene from a script. Write what the named character says next.\n\n"
        f"### Instruction:\nComplete {speaker}'s line.\n\n### Input:\n",
        f"\n\n### Response:\n{speaker}:",
    )


# %% [markdown]
# Where the dots are, the lines of the scene will stand:

# %% tags=["example"]
print("...".join(alpaca_frame("Homer Simpson")))

# %% [markdown]
# **`chat`** is what the model itself understands as a conversation. Chat models are trained on turns of `user` and `assistant`, wrapped in tokens of their own; the tokenizer brings a template that does the wrapping. The character to speak is the assistant. What others say between two of its lines is one turn of the user, with names. If nobody spoke in between, the user's turn says so, since many templates insist on turns that alternate.

# %%
#| export
SILENCE = "(Nobody else speaks.)"


def chat_system(
    location: str,  # where the scene is; may be empty
    speaker: str,  # who answers
) -> str:  # the system's words
    "What a chat model is told before a scene."
    return (
        f"You are {speaker} in a scene of a script.{f' The scene is set here: {location}.' if location else ''} "
        f"Answer with the next line of {speaker}, and nothing else."
    )


# %% [markdown]
# The mayor, in the first scene of the book's script:

# %% tags=["example"]
chat_system(scene.location, "Mayor Quimby")

# %% [markdown]
# A template is a program in the language Jinja. This is a common one:

# %%
#| export
# a common template and its special tokens, for examples and tests
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
)

# %% [markdown]
# Run on a conversation of one turn, it wraps the turn and opens the answer:

# %% tags=["example"]
chat_bpe = small_tokenizer(2000, *CHATML)
dinner = [{"role": "user", "content": "Marge Simpson: Dinner!"}]
print(chat_bpe.apply_chat_template(dinner, tokenize=False, add_generation_prompt=True))

# %% [markdown]
# Some templates write the date of the day into the system's words, by calling `strftime_now`. A character that was trained on a Monday would then be asked with Tuesday's text on Tuesday, and nobody would notice. Here it is always the same day, whenever and wherever: a small function of that name is written in front of the template, in the template's own language, so every program that reads templates finds it before its own clock. A constant needs no record of when a run was made, and the same settings make the same text tomorrow. The day stands in the notes beside a model all the same, so that a later version of this book may choose another.

# %%
#| export
DATE = "2025-01-01"  # the day on which all conversations take place
CLOCK = "{% macro strftime_now(format) %}{{ format"


def on_day(
    day: datetime.date,  # any day; midnight is its time
) -> dict:  # what `strftime` puts for each of its codes, in English whatever the system speaks
    "A day in the codes of `strftime`."
    name = ("Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur", "Sun")[day.weekday()] + "day"
    months = "January February March April May June July August September October November December"
    month, numbers = months.split()[day.month - 1], {c: day.strftime(f"%{c}") for c in "dHIjmMSUwWyY"}
    words = {
        "%A": name,
        "%a": name[:3],
        "%B": month,
        "%b": month[:3],
        "%p": "AM",
        "%e": f"{day.day:2}",
        "%F": f"{day}",
        "%T": "00:00:00",
        "%f": "000000",
        "%z": "",
        "%Z": "",
    }
    bare = {f"%-{c}": n.lstrip("0") or "0" for c, n in numbers.items()}  # without zeros in front
    return {**words, **{f"%{c}": n for c, n in numbers.items()}, **bare}


# %% [markdown]
# The codes that templates commonly ask for, on that day:

# %% tags=["example"]
codes = on_day(datetime.date.fromisoformat(DATE))
{code: codes[code] for code in ("%A", "%d", "%-d", "%B", "%b", "%Y", "%F")}


# %% [markdown]
# The macro replaces each code in the format that a template gives:

# %%
#| export
def with_date(
    template: str,  # a chat template
    date: str = DATE,  # the day it writes, as year-month-day
) -> str:  # the same for every day; as it was if it asks for no date, or is fixed already; ValueError if `date` is none
    "A chat template that writes one date for ever."
    try:
        codes = on_day(datetime.date.fromisoformat(date))
    except (ValueError, TypeError):
        raise ValueError(f"date={date!r} was given; expected a day such as {DATE}") from None
    if "strftime_now" not in template or template.startswith(CLOCK):
        return template
    steps = {"%%": "@percent@", **codes, "@percent@": "%"}  # %% is a percent sign
    return CLOCK + "".join(f" | replace({a!r}, {b!r})" for a, b in steps.items()) + " }}{% endmacro %}\n" + template


# %% tags=["example"]
DATED = (
    "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%A, %-d %B %Y') }}\n{% endif %}" + CHATML[0],
    CHATML[1],
)
dated_bpe, talk = (
    small_tokenizer(2000, *DATED),
    [{"role": "system", "content": "Be Homer."}, {"role": "user", "content": "Dinner!"}],
)
print(dated_bpe.apply_chat_template(talk, tokenize=False, chat_template=with_date(DATED[0])))

# %% [markdown]
# To cut the text of a template into pieces, the conversation is written with marks in place of the words, and the text between the marks is what the template adds:
#
# `before` **first user** `middle` **answer** `end` `again` **next user** `middle` ...
#
# For that to work, adding a turn must not change what stands before it. A few templates break this rule; then `chat` is refused, with the reason. A model that was published by this book has [a template of its own](../6_talk/65_template.ipynb) in front of the one that it came with, and a mark between the two; the latter is the model's.

# %%
#| export
MOST_KEPT = 20_000  # texts whose tokens are remembered; a server is told ever new ones
OWN_TEMPLATE = "{#- the model's own template -#}"  # what follows is the model's


class ChatFrame:
    "What a tokenizer's chat template writes around the words of a conversation."

    MARKS = ("@@first@@", "@@answer@@", "@@second@@")
    takes_system = True  # whether the template has a role for the system's words

    def __init__(
        self,
        tokenizer,  # a transformers tokenizer with a chat template
        date: str = DATE,  # the day on which the conversation takes place, as year-month-day
    ):
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")  # others are for tools
        if not template:
            raise ValueError(
                "template=chat was given, but the tokenizer has no chat template; "
                "use template=script, or a model that was trained to chat"
            )
        template = template.split(OWN_TEMPLATE)[-1]
        self.tokenizer, self.template = tokenizer, with_date(template, date)
        self._before: dict = {}
        self.special = tuple(
            dict.fromkeys(
                [
                    *map(str, tokenizer.all_special_tokens),
                    *(t.content for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special),
                ]
            )
        )
        asked, again = self.render("@@system@@", 1), self.render("@@system@@", 3)
        first, answer, second = self.MARKS
        unstable = (
            "template=chat was given, but this model's chat template changes earlier text when a line is added, "
            "or writes the words differently; use template=script"
        )
        require(
            all(text.count(m) == 1 for text, ms in ((asked, self.MARKS[:1]), (again, self.MARKS)) for m in ms), unstable
        )
        self.middle = asked.split(first)[1]
        between = again.split(first)[1].split(answer)
        require(
            again.startswith(asked)
            and again.endswith(self.middle)
            and between[0].startswith(self.middle)
            and not between[0][len(self.middle) :].strip(),
            unstable,
        )
        self.lead, tail = between[0][len(self.middle) :], between[1].split(second)[0]
        ends = [i + len(t) for t in self.special if (i := tail.find(t)) >= 0]
        require(
            ends,
            "template=chat was given, but this model's chat template "
            "ends an answer with no special token; use template=script",
        )
        self.end, self.again = tail[: min(ends)], tail[min(ends) :]

    def write(
        self,
        messages: list,  # of {"role", "content"}
        ask: bool = True,  # end where the assistant answers
    ) -> str:  # the template's text, the same on every day; raises whatever the template raises
        "Write a conversation."
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask, chat_template=self.template
        )

    def render(
        self,
        system: str,  # the system's words
        turns: int,  # 1: first user; 3: first user, answer, second user
    ) -> str:  # the template's text, ready for an answer
        "Write a conversation of marks."
        roles = ("user", "assistant", "user")
        said = [{"role": r, "content": m} for r, m in list(zip(roles, self.MARKS))[:turns]]
        # for templates without a system role
        merged = [{"role": "user", "content": f"{system}\n\n{self.MARKS[0]}"}, *said[1:]]
        for messages in ([{"role": "system", "content": system}, *said], merged):
            try:
                text = self.write(messages)
            except Exception as e:
                problem = e
                continue  # whatever a template raises
            if system in text:
                self.takes_system = messages is not merged
                return text
        raise ValueError(
            "template=chat was given, but this model's chat template takes neither a system message "
            f"nor a user's ({problem if 'problem' in locals() else 'it leaves out the words'}); use template=script"
        )

    def before(
        self,
        location: str,  # where the scene is; may be empty
        speaker: str,  # who answers
    ) -> str:  # text before the first user's words
        "How a conversation begins; the last answer for the same scene and speaker is kept."
        key = (location, speaker)
        if key not in self._before:
            if len(self._before) >= MOST_KEPT:
                self._before.clear()
            self._before[key] = self.render(chat_system(location, speaker), 1).split(self.MARKS[0])[0]
        return self._before[key]

    def follows(
        self,
        text: str,  # what the template writes
    ) -> str:  # the anchor of what comes next
        "The last character, unless it belongs to a special token: behind those, text begins anew."
        return "" if text.endswith(self.special) else text[-1:]


# %% [markdown]
# What the template above writes before the first user's words, and the pieces between the words:

# %% tags=["example"]
frame = ChatFrame(chat_bpe)
print(frame.before("Moe's Tavern", "Homer Simpson"), "...", sep="")
{"middle": frame.middle, "lead": frame.lead, "end": frame.end, "again": frame.again}

# %% tags=["check"]
for template, says in (
    (None, "no chat template"),
    ("{% for m in messages %}{{ loop.length }} {{ m['content'] }}{% endfor %}<eos>", "changes earlier text"),
    ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no special token"),
    ("{{ raise_exception('no') }}", "takes neither"),
):
    try:
        ChatFrame(small_tokenizer(2000, template, CHATML[1]))
        raise AssertionError(template)
    except ValueError as e:
        assert says in str(e), (says, str(e))

# %% [markdown]
# ## One maker for training and serving
#
# Each token has a *role*, which [the chapter on samples](16_samples.ipynb) turns into a loss weight: scaffolding (names, headings, what a template adds), or words that are only read.

# %%
#| export
# roles: what a template adds; words that are read; words that count a little; words to learn
SCAFFOLD, READ, CONTEXT, LEARNED = range(4)


class Tokens:
    "A growing sequence of tokens, each with its role."

    __slots__ = ("ids", "roles")

    def __init__(
        self,
        ids: list | None = None,  # token ids to begin with
        roles: bytes | bytearray = b"",  # their roles
    ):
        self.ids, self.roles = ids or [], bytearray(roles)

    def __len__(self):
        return len(self.ids)

    def add(
        self,
        ids: list,  # token ids
        role: int,  # one role for all of them
    ):
        "Add a piece; gives itself back."
        self.ids += ids
        self.roles += bytes((role,)) * len(ids)
        return self


# %% [markdown]
# A name is scaffolding (role 0), what is said is read (role 1):

# %% tags=["example"]
tokens = Tokens().add(bpe("Homer Simpson:").input_ids, SCAFFOLD).add(bpe(" Mmm, donuts.").input_ids, READ)
[(bpe.decode([i]), role) for i, role in zip(tokens.ids, tokens.roles)]


# %% [markdown]
# `TextMaker` joins a tokenizer and a template. What is asked of a model (`prompt_ids`) is by construction the beginning of what it was trained on. Names and headings repeat, so their tokens are kept.

# %%
#| export
class TextMaker:
    "Makes all token sequences, for training and for serving."

    def __init__(
        self,
        tokenizer,  # a transformers tokenizer with an end token and another token to pad with
        template: str = "script",  # "script", "alpaca" or "chat"
        max_seq_len: int | None = None,  # most tokens of prompt and answer when serving, as trained; None: the model's
        date: str = DATE,  # the day that a chat template writes, as year-month-day
    ):
        require(
            template in TEMPLATES,
            f"template={template!r} was given; expected {', '.join(TEMPLATES[:-1])} or {TEMPLATES[-1]}",
        )
        require(tokenizer.eos_token_id is not None, "the tokenizer has no end token; answers could not end")
        self.tokenizer, self.template, self.max_seq_len, self.date = tokenizer, template, max_seq_len, date
        self._kept: dict = {}
        self.literal, self.marked = reader(tokenizer), reader(tokenizer, False)
        # whether `said` may run in a thread
        self.threads = hasattr(getattr(tokenizer, "backend_tokenizer", None), "encode_batch_fast")
        # None with the other templates, which do not ask for it
        self.frame: ChatFrame = ChatFrame(tokenizer, date) if template == "chat" else None  # type: ignore[assignment]
        plain = tokenizer("a").input_ids
        self.bos = (
            [tokenizer.bos_token_id]
            if tokenizer.bos_token_id is not None and plain[0] == tokenizer.bos_token_id
            else []
        )
        self.end = (
            [tokenizer.eos_token_id]
            if template == "alpaca"
            else self.ids("\n", ".")
            if template == "script"
            else self.ids(self.frame.end, ".", False)
        )
        require(
            tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in self.stop_ids,
            "the tokenizer pads with the token that ends an answer, or has no padding token; "
            "set another pad token, or the end would never be learned",
        )

    @classmethod
    def of_notes(
        cls,
        tokenizer,  # the tokenizer of a trained model
        notes: dict,  # the notes beside it: template, and where they are known max_seq_len and date
    ):  # a TextMaker
        "The maker of a model's training, for serving it."
        return cls(tokenizer, notes["template"], notes.get("max_seq_len"), notes.get("date") or DATE)

    def ids(
        self,
        text: str,  # a piece of text
        anchor: str = "",  # what it follows
        literal: bool = True,  # letters of special tokens are letters
    ) -> list:  # token ids
        "Tokens of one piece; the last answer for the same piece is kept."
        key = (text, anchor, literal)
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = piece_ids(self.literal if literal else self.marked, [text], anchor)[0] if text else []
        return self._kept[key]

    @property
    def stop_ids(self) -> list:
        "Tokens at which an answer ends."
        return sorted({self.end[-1], self.tokenizer.eos_token_id})

    def said(
        self,
        lines: list,  # `Line`s
    ) -> list:  # for each, (tokens as others read it, tokens as an answer), without the end
        "Tokens of what is said, all lines in one call (the slow part, so not kept one by one)."
        # people say the same short things again and again
        texts = list(dict.fromkeys(line.text for line in lines))
        read = answer = dict(zip(texts, piece_ids(self.literal, [f" {t}" for t in texts], ":")))
        if self.template == "chat":
            answer = dict(
                zip(
                    texts,
                    piece_ids(
                        self.literal, [self.frame.lead + t for t in texts], self.frame.follows(self.frame.middle)
                    ),
                )
            )
        return [(read[line.text], answer[line.text]) for line in lines]

    def name(
        self,
        speaker: str,  # who speaks; may be empty
    ) -> list:  # token ids
        "Tokens of a speaker's name and colon, at the beginning of a line."
        return self.ids(f"{speaker}:", "\n") if speaker else []

    def heading(
        self,
        location: str,  # where the scene is; may be empty
    ) -> list:  # token ids
        "Tokens that open a scene in the script template."
        return self.bos + self.ids(f"[{location or 'Scene'}]\n")


# %% [markdown]
# The tokens at which an answer ends in each form; the tokenizer's own end always counts too:

# %% tags=["example"]
maker, chat_maker = TextMaker(bpe), TextMaker(chat_bpe, "chat")
{m.template: [m.tokenizer.decode([i]) for i in m.stop_ids] for m in (maker, TextMaker(bpe, "alpaca"), chat_maker)}


# %% [markdown]
# The three forms differ in how they open, how they join the lines, and how they close. The two plain ones:

# %%
#| export
def alpaca_text(
    maker: TextMaker,  # tokenizer and template
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s before the answer
    speaker: str,  # who answers
    said: list,  # what `TextMaker.said` gave for `lines`
) -> Tokens:  # everything up to and including "Name:"
    "A prompt in the seed's form."
    before, after = alpaca_frame(speaker)
    out, newline = Tokens().add(maker.bos + maker.ids(before), SCAFFOLD), maker.ids("\n", ".")
    if location:
        out.add(maker.ids(f"[{location}]", "\n"), SCAFFOLD)
    for i, (line, (read, _)) in enumerate(zip(lines, said)):
        if i or location:
            out.add(newline, SCAFFOLD)
        out.add(maker.name(line.speaker), SCAFFOLD).add(read, READ)
    return out.add(maker.ids(after.removesuffix(f"{speaker}:"), "."), SCAFFOLD).add(maker.name(speaker), SCAFFOLD)


def script_text(
    maker: TextMaker,  # tokenizer and template
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s before the answer
    speaker: str,  # who answers
    said: list,  # what `TextMaker.said` gave for `lines`
) -> Tokens:  # everything up to and including "Name:"
    "A prompt in the plain form."
    out = Tokens().add(maker.heading(location), SCAFFOLD)
    for line, (read, _) in zip(lines, said):
        out.add(maker.name(line.speaker), SCAFFOLD).add(read + maker.end, READ)
    return out.add(maker.name(speaker), SCAFFOLD)


# %% [markdown]
# One line of the scene and the name of who answers, by role. Only what the mayor says is read, with its newline; all else is scaffolding:

# %% tags=["example"]
opened = script_text(maker, scene.location, scene.lines[:1], "Homer Simpson", maker.said(scene.lines[:1]))
{
    name: bpe.decode([i for i, role in zip(opened.ids, opened.roles) if role == wanted])
    for name, wanted in (("scaffolding", SCAFFOLD), ("read", READ))
}


# %% [markdown]
# A conversation is made turn by turn. A turn of the user closes what stands before, gives the lines of the others, and opens the answer:

# %%
#| export
def user_turn(
    maker: TextMaker,  # tokenizer and the chat template
    out: Tokens,  # what stands before; it grows
    opened: str,  # the text before the turn's words
    begins: bool,  # whether a conversation begins here
    lines: list | tuple,  # the `Line`s of others; may be empty
    said: list,  # what `TextMaker.said` gave for them
) -> Tokens:  # `out`, up to where the assistant answers
    "One turn of the user, and the opening of the answer."
    opening = opened.rstrip(" ")
    lead, anchor = opened[len(opening) :], maker.frame.follows(opening)
    out.add(maker.ids(opening, "" if begins else ".", False), SCAFFOLD)
    if not lines:
        out.add(maker.ids(lead + SILENCE, anchor), SCAFFOLD)
    for i, (line, (read, _)) in enumerate(zip(lines, said)):
        if i:
            out.add(maker.ids("\n", "."), SCAFFOLD)
        out.add(
            maker.name(line.speaker) if i else maker.ids(f"{lead}{line.speaker}:", anchor) if line.speaker else [],
            SCAFFOLD,
        ).add(read, READ)
    return out.add(maker.ids(maker.frame.middle, ".", False), SCAFFOLD)


# %% [markdown]
# Nobody spoke since the last answer, and the turn says so:

# %% tags=["example"]
print(chat_bpe.decode(user_turn(chat_maker, Tokens(), chat_maker.frame.again, False, (), []).ids))


# %% [markdown]
# Each line of the character that is asked ends a turn of the user; what others said since stands in it:

# %%
#| export
def chat_text(
    maker: TextMaker,  # tokenizer and the chat template
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s before the answer
    speaker: str,  # who answers
    said: list,  # what `TextMaker.said` gave for `lines`
) -> Tokens:  # everything up to the answer
    "A prompt as a conversation."
    out, opened, turn = Tokens(), maker.frame.before(location, speaker), 0
    for i, line in enumerate(lines):
        if line.speaker != speaker:
            continue
        user_turn(maker, out, opened, turn == 0, lines[turn:i], said[turn:i]).add(said[i][1] + maker.end, READ)
        opened, turn = maker.frame.again, i + 1
    return user_turn(maker, out, opened, turn == 0, lines[turn:], said[turn:])


# %% [markdown]
# `prompt_ids` is what a model is asked with. If the text would be too long, whole lines are left out from the *beginning*: the newest lines matter most, and an answer is never cut.

# %%
#| export
WRITERS = {"script": script_text, "alpaca": alpaca_text, "chat": chat_text}


def prompt_tokens(
    maker: TextMaker,  # tokenizer and template
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s before the answer
    speaker: str,  # who answers
    max_len: int = 10**9,  # most tokens; lines that do not fit are left out from the beginning
    said: list | None = None,  # what `TextMaker.said` gave for `lines`, if that is known already
) -> tuple:  # (`Tokens` up to the answer, how many lines were left out)
    "A prompt with its roles."
    said = maker.said(lines) if said is None else said

    def without(first):
        return WRITERS[maker.template](maker, location, lines[first:], speaker, said[first:])

    whole = without(0)
    if len(whole) <= max_len:
        return whole, 0
    # leaving out more makes it shorter
    first = bisect.bisect_left(range(len(lines)), True, key=lambda n: len(without(n)) <= max_len)
    return without(first), first


def prompt_ids(
    maker: TextMaker,  # tokenizer and template
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s before the answer
    speaker: str,  # who answers
    max_len: int = 10**9,  # most tokens; lines that do not fit are left out from the beginning
) -> list:  # token ids, up to where the answer begins
    "What a model is asked with: everything up to the answer."
    return prompt_tokens(maker, location, lines, speaker, max_len)[0].ids


# %% [markdown]
# Four lines of the scene, and what is left of them in 80 tokens:

# %% tags=["example"]
print(bpe.decode(prompt_ids(maker, scene.location, scene.lines[:4], "Homer Simpson")))
print("---- at most 80 tokens:")
short = prompt_ids(maker, scene.location, scene.lines[:4], "Homer Simpson", max_len=80)
print(bpe.decode(short))

# %% tags=["check"]
# one line more would not fit
assert len(prompt_ids(maker, scene.location, scene.lines[1:4], "Homer Simpson")) > 80
# the newest stay
assert (
    len(short) <= 80
    and f"{scene.lines[3].text}\nHomer Simpson:" in bpe.decode(short)
    and scene.lines[0].text not in bpe.decode(short)
)

# %% [markdown]
# The same moment in the other two forms:

# %% tags=["example"]
print(bpe.decode(prompt_ids(TextMaker(bpe, "alpaca"), scene.location, scene.lines[:2], "Homer Simpson")))
print("---- chat:")
print(
    chat_bpe.decode(prompt_ids(chat_maker, scene.location, scene.lines[5:8], "Homer Simpson")),
    "...",
    sep="",
)

# %% [markdown]
# ## Adding a line never changes earlier tokens
#
# In all three forms the tokens of a prompt, up to its last word, stay as they are when the scene goes on. The chat templates of four families stand in for all the others, in our own spelling: roles in marks of their own (ChatML), headers (as in Llama 3), brackets with the system's words in the first turn (as in Llama 2), and turns without a system role (as in Gemma).

# %% tags=["check"]
CHATS = {
    "chatml": CHATML,
    "headers": (
        "<bos>{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|over|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}",
        ("<|start|>", "<|stop|>", "<|over|>"),
    ),
    "brackets": (
        "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set ms = messages[1:] %}{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}"
        "{% for m in ms %}{% if m['role'] == 'user' %}<bos>[INST] {{ (s if loop.first else '') + m['content'] }}"
        " [/INST]{% else %} {{ m['content'] }} <eos>{% endif %}{% endfor %}",
        (),
    ),
    "turns": (
        "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        "{{ m['content'] | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
        ("<turn>", "<end>"),
    ),
}
makers = [TextMaker(bpe), TextMaker(bpe, "alpaca")] + [
    TextMaker(small_tokenizer(2000, *chat), "chat") for chat in CHATS.values()
]
for maker in makers:
    for who in ("Homer Simpson", "Mayor Quimby"):
        for i in range(len(scene.lines)):
            now, later = (prompt_tokens(maker, scene.location, scene.lines[:n], who)[0] for n in (i, i + 1))
            last = now.roles.rfind(bytes((READ,))) + 1  # up to the last word
            assert later.ids[:last] == now.ids[:last] and (last > 0) == (i > 0), (maker.template, i)

# %% [markdown]
# And a conversation cut into pieces reads as the template writes it in one:

# %% tags=["check"]
for (_, marks), maker in zip(CHATS.values(), makers[2:]):
    lines, who = scene.lines[:9], "Homer Simpson"
    turns, pending = [], []
    for line in lines:
        if line.speaker == who:
            turns += [("user", "\n".join(pending) or SILENCE), ("assistant", line.text)]
            pending = []
        else:
            pending.append(f"{line.speaker}: {line.text}")
    turns.append(("user", "\n".join(pending) or SILENCE))
    system = chat_system(scene.location, who)
    said = [{"role": r, "content": c} for r, c in turns]
    try:
        text = maker.tokenizer.apply_chat_template(
            [{"role": "system", "content": system}, *said], tokenize=False, add_generation_prompt=True
        )
    except Exception:
        said[0]["content"] = f"{system}\n\n{said[0]['content']}"
        text = maker.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert maker.tokenizer.decode(prompt_ids(maker, scene.location, lines, who)) == text, marks
    assert prompt_ids(maker, scene.location, lines, who) == maker.tokenizer(text, add_special_tokens=False).input_ids, (
        marks
    )


# %% [markdown]
# The date: with the clock of `transformers` set to one day and then to the next, a template that asks for it writes two texts. What is asked here stays the same:

# %% tags=["check"]
def on_two_days(write):
    "What a call gives on two days in a row."

    def clock(day):
        return type("Clock", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None: day)})

    found = []
    for day in (datetime.datetime(2031, 5, 8), datetime.datetime(2031, 5, 9)):
        with patch.object(chat_template_utils, "datetime", clock(day)):
            found.append(write())
    return found


one, other = on_two_days(lambda: dated_bpe.apply_chat_template(talk, tokenize=False))
# the template as it came
assert one != other and "8 May 2031" in one
one, other = on_two_days(lambda: prompt_ids(TextMaker(dated_bpe, "chat"), "Home", scene.lines[:5], "Homer Simpson"))
assert one == other and "Wednesday, 1 January 2025" in dated_bpe.decode(one)
assert with_date(with_date(DATED[0]), "2031-05-08") == with_date(DATED[0]) and with_date(CHATML[0]) == CHATML[0]
day = on_day(datetime.date(2031, 5, 8))
assert all(datetime.datetime(2031, 5, 8).strftime(code) == text for code, text in day.items() if code[1] != "-")

# %% [markdown]
# A pad token that also ends answers is refused before anything is made, as promised at the top:

# %% tags=["check"]
broken = byte_tokenizer()
broken.pad_token = broken.eos_token
for template in TEMPLATES[:2]:
    try:
        TextMaker(broken, template)
        raise AssertionError
    except ValueError as e:
        assert "pad" in str(e)
broken = small_tokenizer(2000, *CHATML)
broken.pad_token = "<|im_end|>"
try:
    TextMaker(broken, "chat")
    raise AssertionError
except ValueError as e:
    assert "pad" in str(e)
