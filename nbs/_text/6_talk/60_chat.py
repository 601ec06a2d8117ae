# %%
#| default_exp talk.chat

# %% [markdown]
# # A conversation
#
# > Talk with a cast: play one of them, let them talk among themselves, take words back, and keep the scene as a script.
#
# [A character](../3_model/35_character.ipynb) says one line. A conversation is more than many of them: somebody has to say whose turn it is, what was said must be there for the next line, and an answer that was no good must go away without a trace. All this is one thing, a scene in progress, and the model knows nothing of it. It is asked anew for each line, with the scene as it stands, in the very words of its training.
#
# So whoever edits a line changes what everybody has heard. That is no trick: it is how a language model remembers.

# %%
#| export
import os
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simpsons_llm.character.likelihood import Reader, name_nats
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line, Scene, clean, speaker_colour, split_name
from simpsons_llm.data.prompt import prompt_tokens
from simpsons_llm.machine.job import JobConfig, open_folder, require, write_text
from simpsons_llm.model.adapter import find_trained
from simpsons_llm.model.character import Character, learned_speaker, load_cast
from simpsons_llm.model.decode import SAMPLING, Sampling
from simpsons_llm.model.infer import most_tokens

# %%
#| hide
import io
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

from simpsons_llm.data.formats import read_script as read


# %% [markdown]
# ## Whose turn is it?
#
# In the script form a model writes names, too: behind a scene stands `Lisa Simpson:` or `Homer Simpson:`, and it has an opinion about which. So the probability of each name is asked for, and made to add up to one over those who are there. Whoever has just spoken is left out. A model thinks that one who talks goes on talking, and left to itself it gives monologues; in the book's script one line in two hundred is followed by another one of the same person. In the other forms the name is part of the question, and nobody can be asked; then all others have the same chance.

# %%
#| export
def next_speaker(
    character: Character,  # whose model is asked
    location: str,  # where the scene is; may be empty
    lines: list,  # the `Line`s so far
    names: Iterable[str],  # who is there; whoever spoke last is left out if there are others
) -> dict:  # name -> probability, 0..1, adding up to 1; ValueError if nobody is there
    "Who speaks next, as the model sees it."
    import torch

    there, last = list(names), lines[-1].speaker if lines else ""
    require(there, "nobody is in the scene; say who is, such as Homer Simpson, Marge Simpson")
    there = [n for n in there if n != last] or there
    character.get_ready()
    nats = name_nats(Reader(character.model), character.maker, location, lines, there)
    if nats:
        return dict(zip(there, torch.tensor(nats).neg().softmax(0).tolist()))
    return dict.fromkeys(there, 1 / len(there))


# %% [markdown]
# A base model that has learned no script, in a scene of the book's: the other names after each of its lines. It has noticed who is talking.

# %% tags=["example"]
names = ["Homer Simpson", "Marge Simpson", "Bart Simpson", "Lisa Simpson", "Ned Flanders"]
homer = Character.load("smollm2-135m", "Homer Simpson")
scene = max(read("springfield").scenes, key=lambda s: sum(x.speaker in names for x in s.lines[:8]))
expected = pd.DataFrame(
    [next_speaker(homer, scene.location, scene.lines[:i], names) for i in range(1, 8)], columns=names
)
ax = expected.plot.barh(
    stacked=True, figsize=(7, 3.2), color=["#f2c500", "#4f86c6", "#e8743b", "#c0504d", "#8fae5d"], width=0.8
)
ax.set(
    yticks=range(7),
    yticklabels=[f"{x.speaker.split()[0]}: {x.text[:26]}" for x in scene.lines[:7]],
    xlabel="probability of who speaks after this line",
    xlim=(0, 1),
)
ax.invert_yaxis()
ax.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 1))
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% tags=["check"]
chances = next_speaker(homer, scene.location, list(scene.lines[:3]), names)
assert list(chances) == [n for n in names if n != scene.lines[2].speaker] and abs(sum(chances.values()) - 1) < 1e-6
seed_form = Character("Homer Simpson", homer.model, type(homer.maker)(homer.maker.tokenizer, "alpaca"))
fair = next_speaker(seed_form, "", [Line(0, 0, "Homer Simpson", "Hm.")], names[:3])
assert fair == {"Marge Simpson": 0.5, "Bart Simpson": 0.5}
pairs = [(a.speaker, b.speaker) for s in read("springfield").scenes for a, b in zip(s.lines, s.lines[1:])]
assert 0 < sum(a == b for a, b in pairs) / len(pairs) < 0.01

# %% [markdown]
# ## The scene in progress
#
# A `Talk` holds who is there, who is played by a person, and the lines. What a person types becomes a line of the one that is played; `Lisa Simpson: Dad!` says it as somebody else. An answer comes piece by piece and becomes a line when it has ended, or when whoever reads it has heard enough.
#
# Each answer has a random seed of its own, made of the talk's, of its place and of how often that place was tried: the same talk gives the same words, and another try others.

# %%
#| export
MOST = 2000  # letters of a line that somebody types; the longest speech of a sitcom has about as many


class Talk:
    "A scene in progress."

    def __init__(
        self,
        cast: "dict[str, Character]",  # by name, as `load_cast` gives it
        partner: str = "",  # who answers; empty: the first of the cast
        you: str = "",  # whom a person plays; empty: the next one after who answers
        location: str = "",  # where the scene is; may be empty
        random_seed: int = 42,  # of the sampling
        **sampling,  # single settings of `Sampling`: temperature, max_new_tokens ...
    ):
        require(cast, "a cast of nobody was given; give a run's folder to load_cast")
        self.cast, self.location, self.random_seed = dict(cast), location, random_seed
        self.partner = self.known(partner) if partner else next(iter(cast))
        others = [n for n in cast if n != self.partner]
        self.you = clean(you) or next(iter(others), "You")
        self.lines: list[Line] = []
        self.tries: dict[int, int] = {}  # place -> how often it was answered anew
        self.past: list = []  # the lines before each change
        self.change(**sampling)

    def change(
        self,
        **sampling,  # single settings of `Sampling`; TypeError or ValueError for one that cannot be
    ):
        "Draw words in another way from now on."
        self.sampling: Sampling = self.cast[self.partner].sampling.changed(**sampling)
        require(self.sampling.num_beams == 1, "beams cannot be streamed; use num_beams=1")

    def known(
        self,
        name: str,  # as somebody wrote it; a first name will do
    ) -> str:  # as the cast has it; ValueError with those that there are
        "Somebody of the cast."
        typed = str(name).casefold().split()
        near = [n for n in self.cast if typed and n.casefold().split()[: len(typed)] == typed]
        return near[0] if len(near) == 1 else learned_speaker(name, dict.fromkeys(self.cast, 1))

    @property
    def scene(self) -> Scene:
        "The talk as a scene."
        return Scene(0, 0, self.location, tuple(self.lines))

    @property
    def there(self) -> list:
        "Who can speak by itself: those of the cast that have spoken, and who answers; a person's part is left out."
        said = [x.speaker for x in self.lines if x.speaker in self.cast]
        return [n for n in dict.fromkeys([self.partner, *said]) if n != self.you]

    def put(
        self,
        lines: Iterable[tuple],  # (speaker, text) pairs
    ):
        "Have these lines from now on; what was before can be brought back."
        self.past.append(self.lines)
        self.lines = [Line(0, i, who, text) for i, (who, text) in enumerate(lines)]

    def pairs(self) -> list:
        "The lines as (speaker, text)."
        return [(x.speaker, x.text) for x in self.lines]


# %% [markdown]
# What can be done with it, in the order in which people ask for it. First: speak.

# %%
#| export
def typed(
    text: str,  # what somebody typed
) -> str:  # on one line; ValueError if nothing is left, or too much
    "Words of a person, as a line."
    require(isinstance(text, str), f"a line of type {type(text).__name__} was given; expected text")
    said = clean("".join(c if c.isprintable() or c.isspace() or ord(c) in (0x200C, 0x200D) else " " for c in text))
    require(said, "an empty line was given; say something, such as: The dog is wearing your tie.")
    require(len(said) <= MOST, f"a line of {len(said):,} letters was given; expected {MOST:,} at most; say it in parts")
    return said


class Speaking(Talk):
    "A scene in which people and characters speak."

    def say(
        self,
        text: str,  # words, or "Name: words" for another one of the cast; ValueError for none or too many
    ) -> "Speaking":  # the same
        "Add a line of a person's."
        who, words = split_name(typed(text), set(self.cast) | {self.you})
        if who not in self.cast and who != self.you:
            who, words = self.you, typed(text)  # a colon in the middle of a sentence
        self.put([*self.pairs(), (who, typed(words))])
        return self

    def seed(self) -> int:
        "The random seed of the next answer."
        place = len(self.lines)
        return (self.random_seed + 1009 * place + 7919 * self.tries.get(place, 0)) % 2**64

    def reply(
        self,
        name: str = "",  # who; empty: the one that answers
    ) -> Iterator[str]:  # pieces of text; ValueError if nobody has that name
        "The next line, piece by piece; it is part of the scene when it has ended, or was left."
        who = self.known(name) if name else self.partner
        character = self.cast[who]
        pieces = character.reply(self.location, list(self.lines), self.sampling, self.seed())

        def come():
            heard = ""
            try:
                for piece in pieces:
                    heard += piece
                    yield piece
            finally:
                if heard.strip():
                    self.put([*self.pairs(), (who, heard.strip())])

        return come()

    def auto(
        self,
        n: int = 4,  # how many lines, 1 or more
        names: Iterable[str] = (),  # who may speak; empty: those who are there, and the part that a person plays
    ) -> Iterator[tuple]:  # (name, pieces of its line); read one line before you ask for the next
        "They talk among themselves; who is next is drawn by the model's own expectation."
        require(isinstance(n, int) and n >= 1, f"n={n!r} was given; expected a whole number of lines, 1 or more")
        who = [self.known(name) for name in names] or [*self.there, *([self.you] if self.you in self.cast else [])]
        if len(who) == 1 and len(self.cast) > 1:
            who = list(self.cast)[:4]
        for _ in range(n):
            chances = next_speaker(self.cast[self.partner], self.location, list(self.lines), who)
            name = random.Random(self.seed()).choices(list(chances), list(chances.values()))[0]
            yield name, self.reply(name)


# %% [markdown]
# Then take back, try again, put right. A change keeps what was before, so that it can be undone; an undone answer leaves nothing behind.

# %%
#| export
class Conversation(Speaking):
    "A scene in progress that can be mended, kept and shown; calling it says a line and waits for the answer."

    def retry(self) -> Iterator[str]:  # pieces of another answer; ValueError if there is none to try again
        "Another answer in place of the last line."
        require(
            self.lines and self.lines[-1].speaker in self.cast, "there is no answer to try again; say something first"
        )
        who, place = self.lines[-1].speaker, len(self.lines) - 1
        self.put(self.pairs()[:-1])
        self.tries[place] = self.tries.get(place, 0) + 1
        return self.reply(who)

    def place(
        self,
        number: int,  # of a line, counted from 1
    ) -> int:  # counted from 0; ValueError if there is no such line
        "Where a line stands."
        good = isinstance(number, int) and 1 <= number <= len(self.lines)
        require(good, f"line {number!r} was asked for; there are {len(self.lines)}, counted from 1")
        return number - 1

    def edit(
        self,
        number: int,  # of a line, counted from 1
        text: str,  # new words
    ):
        "Put other words into a line."
        i, lines = self.place(number), self.pairs()
        self.put([*lines[:i], (lines[i][0], typed(text)), *lines[i + 1 :]])

    def drop(
        self,
        number: int,  # of a line, counted from 1
    ):
        "Take a line out."
        i, lines = self.place(number), self.pairs()
        self.put([*lines[:i], *lines[i + 1 :]])

    def undo(self) -> bool:  # False if nothing was ever changed
        "As it was before the last change."
        if self.past:
            self.lines = self.past.pop()
            return True
        return False

    def save(
        self,
        file: "str | Path",  # a text file; folders that are not there are made
    ) -> Path:  # the file; OSError if it cannot be written
        "The scene as a script that `prepare` reads; overwrites."
        open_folder(Path(file).parent)
        return write_text(Path(file), f"{self.scene}\n")

    def load(
        self,
        file: "str | Path",  # a script of any form that the book reads
    ):
        "Go on with the last scene of a script; ValueError or a file error if there is none."
        scenes = read_script(str(file)).scenes
        require(scenes, f"{file} has no scene; give a script, such as one that was saved here")
        self.location = scenes[-1].location if scenes[-1].location != "Scene" else ""
        self.put([(x.speaker, x.text) for x in scenes[-1].lines])

    def left_out(self) -> int:  # lines; 0 as long as all fit
        "How many of the first lines the next answer is not told, since they do not fit any more."
        character = self.cast[self.partner]
        room = max(1, most_tokens(character.model, character.maker) - self.sampling.max_new_tokens)
        return prompt_tokens(character.maker, self.location, list(self.lines), self.partner, room)[1]

    def __call__(
        self,
        text: str = "",  # what you say; empty: only ask for the next line
        name: str = "",  # who answers; empty: the one that answers
    ) -> "Conversation":  # the same, which a notebook shows
        "Say a line, and have it answered."
        if text:
            self.say(text)
        for _ in self.reply(name):
            pass
        return self

    def __str__(self):
        return str(self.scene)

    __repr__ = __str__  # where there are no colours

    def _repr_html_(self):
        return self.scene._repr_html_()


# %% [markdown]
# In a notebook a character is asked to chat, and what comes back is called with one's words. `homer.chat()` is a method of every character as soon as this chapter is there, and the package sees to that.

# %%
#| export
def chat_with(
    self,  # a `Character`
    you: str = "",  # whom you play; empty: another one whom the run knows
    location: str = "",  # where the scene is; may be empty
    random_seed: int = 42,  # of the sampling
    **sampling,  # single settings of `Sampling`
) -> Conversation:
    "Begin a conversation: call what comes back with your words."
    cast = {n: Character(n, self.model, self.maker, self.sampling, self.known, self.adapter) for n in self.known}
    return Conversation({self.name: self, **cast}, self.name, you, location, random_seed, **sampling)


setattr(Character, "chat", chat_with)  # noqa: B010  a method for every character

# %% [markdown]
# The base model as Homer, and we are Marge. It was never taught who he is:

# %% tags=["example"]
talk = homer.chat(you="Marge Simpson", location="Simpson Home", max_new_tokens=30)
talk("Homer, the dog is wearing your tie again.")

# %% tags=["example"]
talk("He has the interview at ten. You have it at nine.")

# %% [markdown]
# The same seed, the same scene; a retry changes the last line alone, and undoing brings the first one back. What was saved is read again as what it was:

# %% tags=["check"]
again = homer.chat(you="Marge Simpson", location="Simpson Home", max_new_tokens=30)
for words in ("Homer, the dog is wearing your tie again.", "He has the interview at ten. You have it at nine."):
    again(words)
assert again.pairs() == talk.pairs() and len(talk.lines) == 4 and talk.lines[1].speaker == "Homer Simpson"
first = talk.pairs()
other = "".join(talk.retry())
assert talk.pairs()[:3] == first[:3] and talk.lines[-1].text == other.strip() != first[-1][1]
assert talk.undo() and len(talk.lines) == 3 and talk.undo() and talk.pairs() == first
# heard halfway: the part is the line
part = homer.chat(you="Marge Simpson", max_new_tokens=30).say("Homer?")
pieces = part.reply()
begun = next(pieces) + next(pieces)
pieces.close()
assert part.lines[-1].text == begun.strip() and len(part.lines) == 2
talk.edit(1, "The dog is: wearing\n a hat.")
assert talk.lines[0].text == "The dog is: wearing a hat." and talk.lines[0].speaker == "Marge Simpson"
talk.say("Homer Simpson: D'oh!").say("Listen: no.")
assert talk.pairs()[-2:] == [("Homer Simpson", "D'oh!"), ("Marge Simpson", "Listen: no.")]
talk.drop(5)
with tempfile.TemporaryDirectory() as folder:
    talk.save(Path(folder) / "tie.txt")
    back = homer.chat(you="Marge Simpson")
    back.load(Path(folder) / "tie.txt")
    assert back.pairs() == talk.pairs() and back.location == "Simpson Home" and str(back) == str(talk)
for wrong, meant in (
    (lambda: talk.say("  \n"), "empty"),
    (lambda: talk.say("x" * 3000), "3,000"),
    (lambda: talk.edit(99, "x"), "line 99"),
    (lambda: Conversation({}), "nobody"),
    (lambda: homer.chat(temperature=0), "temperature"),
    (lambda: list(talk.auto(0)), "n=0"),
    (lambda: homer.chat().retry(), "no answer"),
):
    before = talk.pairs()
    try:
        wrong()
        raise AssertionError(meant)
    except ValueError as e:
        assert meant in str(e) and talk.pairs() == before, e


# %% [markdown]
# ## In the terminal
#
# The command `simpsons-llm chat` is this in a terminal. Words are said; what begins with a slash is done. Nothing that is wrong ends the conversation: it is told in a sentence, and one goes on.

# %%
#| export
@dataclass
class ChatConfig(JobConfig):
    "Settings of the command chat."

    repeated: ClassVar[tuple] = ("run",)
    run: str = ""  # a run's folder, an adapter's or an exported model's; empty: the base model alone
    speaker: str = ""  # who answers; empty: whom the run learned most from
    you: str = ""  # whom you play; empty: the next one that the run knows
    location: str = ""  # where the scene is; may be empty
    script: str = ""  # go on with the last scene of this script
    auto: int = 0  # they talk among themselves for so many lines, and that is all
    save: str = ""  # keep the scene in this text file, line by line; `prepare` reads it
    base_model: str = "auto"  # a hub id, folder or short name; auto: the run's own, or the one for this device
    sampling: str = "book"  # how words are drawn: book, seed or greedy; the next two change single settings of it
    temperature: "float | None" = None  # below 1: safer words, above 1: bolder; book 0.8
    max_new_tokens: "int | None" = None  # most tokens of an answer; book 60
    random_seed: int = 42  # of the sampling
    device: str = "auto"  # xpu, cuda, cpu; auto: the best there is
    dtype: str = "auto"  # bfloat16, float32; auto: as the device has it

    def check(self):
        require(self.sampling in SAMPLING, f"sampling={self.sampling!r} was given; expected {', '.join(SAMPLING)}")
        require(self.auto >= 0, f"auto={self.auto} was given; expected a number of lines, or 0 to take part yourself")
        require(0 <= self.random_seed < 2**64, f"random_seed={self.random_seed} was given; expected 0 to 2**64 - 1")
        good = all(c.isprintable() for c in self.you + self.location)
        require(good, "you or location has signs that cannot be shown; give plain text")
        self.words()

    def words(self) -> Sampling:
        "How words are drawn."
        given: dict[str, Any] = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        return SAMPLING[self.sampling].changed(num_beams=1, **{n: v for n, v in given.items() if v is not None})


def begin(
    config: ChatConfig,  # the settings
) -> Conversation:  # FileNotFoundError or ValueError for a run, a name or a script that cannot be
    "The conversation that the settings ask for."
    runs = [r for r in config.run.split("\n") if r]
    base = None if config.base_model == "auto" else config.base_model
    how: dict[str, Any] = {"device": config.device, "dtype": config.dtype, "sampling": config.words()}
    for run in runs:
        find_trained(run)  # a wrong folder is told before anything is loaded
    if runs:
        cast = load_cast(runs, base_model=base, **how)
    else:
        names = [config.speaker or "Homer Simpson", config.you or "Marge Simpson"]
        cast = load_cast(config.base_model, dict.fromkeys(names), **how)
    talk = Conversation(cast, config.speaker, config.you, config.location, config.random_seed)
    if config.script:
        talk.load(config.script)
        talk.location = config.location or talk.location
    return talk


# %% [markdown]
# What can be done, and the names by which it is done. Each is a function of the terminal and of what stands behind its name.

# %%
#| export
HELP = """what you type is said; these are done instead:
  /ask NAME       let somebody else answer from now on   /as NAME        play somebody else
  /retry          another answer                         /undo           as it was before
  /edit N WORDS   other words in line N                  /drop N         take line N out
  /auto N         they talk among themselves             /next           let the model say who speaks
  /scene          the whole scene, with line numbers     /where PLACE    where it is
  /cast           who there is                           /heat 0.8       the temperature of words
  /save FILE      keep it as a script                    /load FILE      go on with a script
  /prompt         what the model is really told          /quit           or Ctrl-D"""


class Terminal:
    "A conversation in a terminal."

    def __init__(
        self,
        talk: Conversation,  # what is talked
        out=None,  # where words go; None: standard output
        save: str = "",  # keep the scene in this file after each change
    ):
        self.talk, self.out, self.save = talk, out or sys.stdout, save
        self.colours = self.out.isatty() and "NO_COLOR" not in os.environ

    def show(self, *words, end="\n"):
        "Write at once."
        print(*words, end=end, file=self.out, flush=True)

    def named(
        self,
        name: str,  # who speaks
    ) -> str:  # with its colour where there are colours
        "A name before its words."
        if not self.colours:
            return f"{name}: "
        hue = int(speaker_colour(name).removeprefix("hsl(").split()[0])
        return f"\033[1;{(31, 33, 32, 36, 34, 35)[hue // 60]}m{name}:\033[0m "

    def hear(
        self,
        name: str,  # who speaks
        pieces: Iterator[str],  # what is said
    ):
        "A line as it comes; Ctrl-C ends it, and what was heard stays."
        self.show(self.named(name), end="")
        try:
            for piece in pieces:
                self.show(piece, end="")
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
        self.show()

    def show_scene(self):
        "The whole scene, with numbers."
        self.show(f"[{self.talk.location or 'Scene'}]")
        for i, x in enumerate(self.talk.lines, 1):
            self.show(f"{i:3} {self.named(x.speaker)}{x.text}")


# %%
#| export
def number_of(
    word: str,  # what somebody typed
    what: str,  # what it should be
) -> int:  # ValueError if it is none
    "A whole number."
    require(word.isdecimal(), f"{word!r} was given; expected {what}, such as 2")
    return int(word)


class Commands(Terminal):
    "What a slash does."

    def do_ask(self, rest):
        self.talk.partner = self.talk.known(rest)
        self.show(f"{self.talk.partner} answers")

    def do_as(self, rest):
        require(rest, "nobody was named; say whom you play, such as /as Marge Simpson")
        self.talk.you = clean(rest)

    def do_retry(self, rest):
        who = self.talk.lines[-1].speaker if self.talk.lines else ""
        self.hear(who, self.talk.retry())

    def do_undo(self, rest):
        require(self.talk.undo(), "nothing was changed yet")
        self.show_scene()

    def do_edit(self, rest):
        number, _, words = rest.partition(" ")
        self.talk.edit(number_of(number, "the number of a line and its new words"), words)
        self.show_scene()

    def do_drop(self, rest):
        self.talk.drop(number_of(rest, "the number of a line"))
        self.show_scene()

    def do_auto(self, rest):
        for who, pieces in self.talk.auto(number_of(rest or "4", "a number of lines")):
            self.hear(who, pieces)

    def do_next(self, rest):
        self.do_auto("1")

    def do_scene(self, rest):
        self.show_scene()

    def do_where(self, rest):
        self.talk.location = clean(rest)

    def do_cast(self, rest):
        self.show(f"you play {self.talk.you}; {self.talk.partner} answers; others: {', '.join(self.talk.cast)}")

    def do_heat(self, rest):
        try:
            heat = float(rest)
        except ValueError:
            raise ValueError(f"{rest!r} was given; expected a temperature, such as 0.8") from None
        self.talk.change(temperature=heat)

    def do_save(self, rest):
        require(rest or self.save, "no file was named; say where, such as /save scene.txt")
        self.show(
            f"kept in {self.talk.save(rest or self.save)}; read it with: simpsons-llm chat --script {rest or self.save}"
        )

    def do_load(self, rest):
        require(rest, "no file was named; say which, such as /load scene.txt")
        self.talk.load(rest)
        self.show_scene()

    def do_prompt(self, rest):
        character, lines = self.talk.cast[self.talk.partner], list(self.talk.lines)
        ids = prompt_tokens(character.maker, self.talk.location, lines, character.name)[0].ids
        self.show(f"{character.maker.tokenizer.decode(ids)}\n({len(ids)} tokens)")

    def do_help(self, rest):
        self.show(HELP)


# %% [markdown]
# One round: words are said and answered, or a command is done. Whatever could not be done is told.

# %%
#| export
def turn(
    terminal: Commands,  # the terminal
    typed_row: str,  # what somebody typed
) -> bool:  # False: that was all
    "One round of a conversation."
    row, talk = typed_row.strip(), terminal.talk
    if row in ("/quit", "/exit", "/q"):
        return False
    name, _, rest = row[1:].partition(" ")
    try:
        if row.startswith("/"):
            do: Any = getattr(terminal, f"do_{name}", None)
            require(do, f"/{name} was given; expected one of the commands that /help shows")
            do(rest.strip())
        elif row:
            talk.say(row)
            terminal.hear(talk.partner, talk.reply())
            if out := talk.left_out():
                terminal.show(f"(the first {out} lines do not fit any more; {talk.partner} does not remember them)")
        if terminal.save and talk.lines:
            talk.save(terminal.save)
    except (ValueError, TypeError) as e:
        terminal.show(str(e))
    except OSError as e:
        terminal.show(f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e))
    return True


def chat(
    config: ChatConfig,  # the settings
    ask=input,  # asks for a row; EOFError: that was all
    out=None,  # where words go; None: standard output
) -> Conversation:  # as it was left; errors as `begin`
    "Talk in the terminal until there is nothing more to say."
    terminal = Commands(begin(config), out, config.save)
    talk = terminal.talk
    if config.script:
        terminal.show_scene()
    if config.auto:
        terminal.do_auto(str(config.auto))
        if config.save:
            talk.save(config.save)
        return talk
    terminal.show(f"you play {talk.you}; {talk.partner} answers; /cast shows all {len(talk.cast)} who could")
    terminal.show("type what you say, or /help")
    while True:
        try:
            row = ask(terminal.named(talk.you))
        except (EOFError, KeyboardInterrupt):
            terminal.show()
            return talk
        if not turn(terminal, row):
            return talk


# %% [markdown]
# A conversation in a terminal, typed by a list instead of a person:

# %% tags=["example"]
rows = iter(
    ["Homer, the dog is wearing your tie again.", "/retry", "/edit 1 The cat is wearing it.", "/heat hot", "/quit"]
)
heard = io.StringIO()


def person(before):
    row = next(rows)
    print(f"{before}{row}", file=heard)
    return row


left = chat(ChatConfig(location="Simpson Home", max_new_tokens=20), person, heard)
print(heard.getvalue())

# %% tags=["check"]
assert left.pairs()[0] == ("Marge Simpson", "The cat is wearing it.") and len(left.lines) == 2
assert "expected a temperature" in heard.getvalue()
rows = iter([])


def silent(before):
    raise EOFError


heard = io.StringIO()
assert left.known("homer") == "Homer Simpson" and left.known("marge simpson") == "Marge Simpson"
assert len(chat(ChatConfig(auto=3, max_new_tokens=8), silent, heard).lines) == 3
assert heard.getvalue().count("\n") == 3
for wrong in (dict(sampling="loud"), dict(temperature=0), dict(auto=-1), dict(random_seed=-1), dict(you="a\x1b")):
    try:
        ChatConfig(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert next(iter(wrong)) in str(e)

# %% [markdown]
# You can now hold a conversation with a model that forgets everything, because the scene remembers.

# %% [markdown]
# ### Exercises
#
# 1. A talk has the lines of Marge, Homer, Marge, Homer. Homer's first answer is edited. Which later lines would the model say in another way, and which of them change by themselves?
# 2. Why does each try of an answer need a seed of its own?

# %% tags=["check"]
# 1: all that come after could differ, and none changes: what was said stands, until somebody asks for it again
told = homer.chat(you="Marge Simpson", max_new_tokens=10).say("One?").say("Homer Simpson: Two.").say("Three?")
told.edit(2, "Ten.")
assert told.pairs()[2] == ("Marge Simpson", "Three?")
# 2: with the same seed the same prompt gives the same words, and trying again would change nothing
seeds = [told.seed()]
told.tries[3] = 1
assert seeds[0] != told.seed()
