# %%
#| default_exp talk.page

# %% [markdown]
# # The chat page
#
# > A scene in the browser: play one of them, let them talk, take words back, and see what the model was really sent.
#
# In a terminal a scene runs by. On a page it stands still: every line can be tried again, changed or taken out, and the words of the base model can stand beside those of the trained one. `simpsons-llm chat --page --run runs/x` opens it, in your own browser and for nobody else. This is a conversation with the model that [the first chapter](../0_start/00_start.ipynb) trains in six minutes:
#
# ![A scene in the browser: lines of Marge and Homer, the last one answered by the trained model and by the base model side by side](page.png)
#
# What does a page need besides a model? Words that appear while they are made. A promise that what somebody types is shown as text and never obeyed. Limits, since a model is slow and a sender is fast. And the knowledge that a server on one's own machine is not alone: every web page that is open in the same browser can try to talk to it. This chapter goes through these one by one. What is left out is accounts, encryption and a place to keep scenes: the scene lives in the browser, the server keeps nothing, and a file is how it is kept.

# %% [markdown]
# ## Why not a library for chat pages?
#
# [Gradio](https://www.gradio.app) makes a chat window in three lines, and for a question and its answer it is the right choice. We looked at version 6.31 before writing our own:
#
# - Its chat window knows two parties, a user and an assistant. A scene has many speakers, the person changes seats, every line of anybody's can be changed or put in between, and two models answer the same words side by side. All that can be built from its parts, but then it is our page in a harder language.
# - It is 31 MB to download and 76 MB on disk (2,453 files), and brings 14 packages that this book needs for nothing else. The page is one file of 30 kB and needs FastAPI and uvicorn, which [serving](62_serve.ipynb) needs anyway.
# - Unless told otherwise it tells its makers that it was started, and asks them for the newest version. It also has routes that hand out files and fetch addresses for a page (`/file=`, `/proxy=`); they are guarded, but a page that has no such route needs no guard. It can share a page through a tunnel; here that must not happen by accident.
# - What speaks for it: it is tested by very many people, it looks well, and its fonts now come from the package and no longer from elsewhere.
#
# So the page is our own, in plain HTML, CSS and JavaScript: [page.html](https://github.com/rahulunair/simpsons_llm/blob/main/simpsons_llm/talk/page.html). It can be read from top to bottom, and its developer is whoever reads this.

# %%
#| export
import asyncio
import json
import random
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.adapter import find_trained
from simpsons_llm.model.base import load_base
from simpsons_llm.model.character import MARKS, Character
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import lines_of, typed_prompt
from simpsons_llm.talk.chat import MOST, ChatConfig, begin, next_speaker, typed
from simpsons_llm.talk.serve import (
    Guard,
    Limits,
    address_of,
    error_reply,
    expect,
    fault_body,
    make_app,
    needs_packages,
    open_port,
    read_json,
    server_of,
    shown,
    until_told,
)
from simpsons_llm.talk.stage import Asked, Refused, Stage, in_turn

# %%
#| hide
import tempfile
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.character import load_cast

# %% [markdown]
# ## A scene comes in
#
# The page sends the whole scene with every question: where it is, and who said what. That is more than the last line, but a few kilobytes are nothing beside a model's work, and it makes the server simple: it remembers nothing, so an edited line needs no special care, two windows cannot mix their scenes, and a reload loses nothing.
#
# Whatever comes in is looked at before a model sees it, and each limit has a number. They are in one place, and the page asks for them, so that it can say at once what the server would refuse. How a request is read, and how a refusal becomes a status and a sentence, is known from [serving](62_serve.ipynb).

# %%
#| export
LIMITS = {
    "line": MOST,  # letters of a line
    "name": 60,  # letters of a name
    "location": 120,  # letters of a place
    "people": 12,  # in a scene
    "lines": 400,  # of a scene
    "auto": 50,  # lines that are asked for at once
    "max_new_tokens": 200,  # of an answer
    "temperature": 5.0,  # above, all words are alike
    "bytes": 500_000,  # of a request
}


def short(
    text,  # what somebody gave
    limit: str,  # a key of `LIMITS`
    what: str,  # what it is, for the refusal
) -> str:  # on one line; may be empty; Refused if it is no text, or too long
    "A name or a place."
    expect(isinstance(text, str), f"{what} of type {type(text).__name__} was given; expected text")
    most = LIMITS[limit]
    expect(len(text) <= most, f"{what} of {len(text):,} letters was given; expected {most} at most")
    return typed(text) if text.strip() else ""


# %% [markdown]
# A name ends where its colon stands, in the prompt as in a script, so it may not have another one in it.

# %%
#| export
def scene_of(
    given: dict,  # what the page sent: location, and lines as [speaker, text] pairs
) -> Scene:  # ValueError if it is none, or past a limit
    "The scene that a page sent."
    rows = given.get("lines", [])
    pairs = isinstance(rows, list) and all(isinstance(r, list) and len(r) == 2 for r in rows)
    expect(pairs, 'lines are no list of pairs; expected such as [["Marge Simpson", "Dinner!"]]')
    expect(len(rows) <= LIMITS["lines"], f"{len(rows)} lines were given; expected {LIMITS['lines']} at most")
    said = []
    for i, (who, text) in enumerate(rows):
        name = short(who, "name", "a name")
        expect(name and ":" not in name, f"{name!r} was given as a name; expected one without a colon")
        said.append(Line(0, i, name, typed(text)))
    return Scene(0, 0, short(given.get("location", ""), "location", "a place"), tuple(said))


# %% [markdown]
# How words are drawn comes in as well, as three settings of [decoding](../3_model/32_decode.ipynb), each with its range.

# %%
#| export
CHANGED = ("temperature", "top_p", "max_new_tokens")


def sampling_of(
    given: dict,  # what the page sent: "sampling", a dict; may be missing
    usual: Sampling,  # how words are drawn otherwise
) -> Sampling:  # ValueError for a setting that cannot be
    "How the page wants words to be drawn."
    chosen = given.get("sampling", {})
    known = isinstance(chosen, dict) and set(chosen) <= set(CHANGED)
    expect(known, f"sampling={shown(chosen)} was given; expected some of {', '.join(CHANGED)}")
    new = usual.changed(**chosen)
    for name in ("max_new_tokens", "temperature"):
        most, x = LIMITS[name], getattr(new, name)
        expect(x <= most, f"{name}={x} was given; expected {most} at most")
    return new


def seed_of(
    given: dict,  # what the page sent: "seed"; may be missing
) -> int:  # 0..2**53, the whole numbers that JavaScript has; Refused for others
    "The random seed of an answer."
    seed = given.get("seed", 42)
    good = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= 2**53
    expect(good, f"seed={shown(seed)} was given; expected a whole number from 0 to 2**53")
    return seed


# %% tags=["example"]
tie = {
    "location": "Simpson Home",
    "lines": [["Marge Simpson", "Homer, the dog is\nwearing <b>your</b> tie again."]],
}
scene_of(tie)


# %% tags=["check"]
def refused(do, *given):
    "The sentence with which this must be refused."
    try:
        do(*given)
    except ValueError as e:
        return str(e)
    raise AssertionError(f"{given} was not refused")


for given, meant in (
    ({"lines": [["Homer"]]}, "pairs"),
    ({"lines": {"0": 1}}, "pairs"),
    ({"lines": [["", "Hm."]]}, "colon"),
    ({"lines": [["Homer: Moe", "Hm."]]}, "colon"),
    ({"lines": [["Homer", ""]]}, "empty"),
    ({"lines": [["Homer", 5]]}, "int"),
    ({"lines": [["Homer", "x" * 2001]]}, "2,001"),
    ({"lines": [["x" * 61, "Hm."]]}, "61"),
    ({"location": "x" * 121}, "121"),
    ({"location": ["Home"]}, "list"),
    ({"lines": [["Homer", "Hm."]] * 401}, "401 lines"),
):
    assert meant in refused(scene_of, given), given
nan = float("nan")
for chosen in ({"temperature": 0}, {"temperature": 9}, {"max_new_tokens": 201}, {"top_k": 1}, {"top_p": nan}, []):
    refused(sampling_of, {"sampling": chosen}, Sampling())
assert sampling_of({}, Sampling()) == Sampling()
for seed in (-1, 2**60, 0.5, True, "1", nan):
    assert "whole number" in refused(seed_of, {"seed": seed})


# %% [markdown]
# ## A scene goes out, and comes back
#
# A scene is kept as a script: a place in brackets, and `Name: words` row by row. [A scene](../1_data/10_lines.ipynb) is printed in that way, and `prepare` reads it, so a talk that went well can be training data the next day. The page makes a file of it without the server: nothing is written here, and there is no route that takes the name of a file. A file that is loaded is read by the browser and sent as text. It goes through the limits like anything else.

# %%
#| export
def read_scene(
    text,  # a script: "[Place]" and "Name: words" rows
) -> Scene:  # its last scene; Refused or ValueError if there is none, or past a limit
    "A scene that somebody kept."
    expect(isinstance(text, str), f"a script of type {type(text).__name__} was given; expected text")
    rows = text.splitlines()
    begins = [i for i, row in enumerate(rows) if row.strip()[:1] == "[" and row.strip()[-1:] == "]"]
    last = typed_prompt("\n".join(rows[begins[-1] if begins else 0 :]))
    said, alone = lines_of(last["prompt"]), last["speaker"]
    expect(said, "the file has no line of a scene; expected rows such as Marge Simpson: Dinner!")
    expect(not alone, f"the last row is {shown(alone)} and no words; expected such as Marge Simpson: Dinner!")
    for line in said:
        expect(line.speaker, f"the row {line.text[:60]!r} names nobody; expected such as Marge Simpson: Dinner!")
    place = last["location"] if last["location"] != "Scene" else ""
    return scene_of({"location": place, "lines": [[x.speaker, x.text] for x in said]})


# %% tags=["check"]
kept = scene_of(tie)
assert read_scene(str(kept)) == kept and read_scene(f"[Bar]\nMoe: Hm.\n\n{kept}\n") == kept
assert read_scene("Moe: Closed: go home.").lines[0][2:4] == ("Moe", "Closed: go home.")
for text in ("", "[Bar]", "no name here", None, f"Moe: {'x' * 2001}", "Moe: Hm.\n" * 401):
    refused(read_scene, text)

# %% [markdown]
# ## Who can speak
#
# A page may be opened for several runs over one base model. Then one can choose: one run, or all of them, each character with the run that knows it. [A cast](../3_model/35_character.ipynb) holds everybody over one model; a `Room` is a choice of theirs, by the names under which they speak.

# %%
#| export
ALL = "all runs"


@dataclass(frozen=True)
class Room:
    "A run, and who speaks in it."

    name: str  # as the page shows it
    voices: dict  # who speaks -> the name in the cast
    tuned: bool  # whether there is a base model to compare with


def base_name(
    run: str,  # a run's folder, or a base model's name
) -> str:  # the base model it was trained from; empty if it is a base model itself
    "What a run was trained from."
    trained = Path(run).is_dir() and any((Path(run) / f).exists() for f in MARKS)
    return find_trained(run).notes.get("base_model", "") if trained else ""


# %% [markdown]
# Now the rooms. The adapter's name in the model tells which run somebody comes from.

# %%
#| export
def run_index(
    character: Character,  # one of a cast
) -> int:  # counted from 0
    "Which of several runs somebody comes from: `load_cast` calls their adapters default, run1, run2 ..."
    return int(character.adapter.removeprefix("run")) if character.adapter.startswith("run") else 0


def rooms_of(
    cast: dict[str, Character],  # what `load_cast` gave
    runs: list,  # what it was given: folders, or a base model's name
) -> dict[str, Room]:  # by name; all runs together first, if there are several
    "The choices that a page offers."
    voices: list[dict] = [{} for _ in runs]
    for key, c in cast.items():
        voices[run_index(c)][c.name] = key
    ends = [Path(run).name or str(run) for run in runs]
    names = [str(run) if ends.count(end) > 1 else end for run, end in zip(runs, ends)]
    rooms = [Room(n, v, bool(base_name(run))) for n, v, run in zip(names, voices, runs) if v]
    if len(rooms) > 1:
        every = {c.name: key for key, c in reversed(cast.items())}
        ordered = {c.name: every[c.name] for c in cast.values()}
        rooms = [Room(ALL, ordered, all(r.tuned for r in rooms)), *rooms]
    return {room.name: room for room in rooms}


# %% [markdown]
# The base model is a second model in memory, which most people never ask for. So it is loaded when somebody first wants to see it, once, while the others go on. It is asked in the form of the run's training: the same words, token for token, so that the difference is the training and nothing else.

# %%
#| export
class Bases:
    "The base models beside the trained ones."

    def __init__(
        self,
        stage: Stage,  # who answers; base models join the cast
        names: list[str],  # of each run, its base model; empty: none
        device: str = "auto",  # "xpu", "cuda", "cpu"; auto: the best there is
        dtype: str = "auto",  # "bfloat16", "float32"; auto: as the device has it
    ):
        self.stage, self.names, self.place = stage, names, (device, dtype)
        self.models: dict[str, Any] = {}  # base model's name -> the model
        self.loading = Lock()

    def find(
        self,
        key: str,  # a trained one's name in the cast
    ) -> str:  # the same one's name, as the base model speaks; empty: it must be loaded first
        "Whether the base model is there."
        return f"{key} (base model)" if f"{key} (base model)" in self.stage.cast else ""

    def load(
        self,
        key: str,  # a trained one's name in the cast
    ) -> str:  # the same one's name, as the base model speaks; errors as `load_base`
        "Load the base model, unless it is there; takes its time, so call it in a thread."
        with self.loading:
            tuned, base = self.stage.cast[key], self.names[run_index(self.stage.cast[key])]
            if base not in self.models:
                self.models[base] = load_base(base, find_device(*self.place))[0].eval()
            joined = f"{key} (base model)"
            self.stage.cast[joined] = Character(tuned.name, self.models[base], tuned.maker, tuned.sampling)
        return joined


# %% [markdown]
# For the examples: the tiny model with an adapter that was pushed about as if it had been trained.

# %% tags=["example"]
folder = Path(tempfile.mkdtemp())
base, _ = load_base("tiny", find_device("cpu", "float32"))
model = add_adapter(base, LoRASettings(r=4, lora_alpha=8))
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.normal_(std=0.2)
known = {"Homer Simpson": 9, "Marge Simpson": 5, "Bart Simpson": 3}
for run, people in (("x", known), ("y", {"Homer Simpson": 2, "Moe Szyslak": 2})):
    save_adapter(model, folder / run / "adapter", {"base_model": "tiny", "template": "script", "speakers": people})
cast = load_cast([folder / "x", folder / "y"], device="cpu")
rooms = rooms_of(cast, [folder / "x", folder / "y"])
pd.DataFrame({n: pd.Series(r.voices) for n, r in rooms.items()}).fillna("")

# %% tags=["check"]
assert list(rooms) == ["all runs", "x", "y"] and all(r.tuned for r in rooms.values())
assert rooms["y"].voices == {"Homer Simpson": "Homer Simpson (y)", "Moe Szyslak": "Moe Szyslak"}
assert rooms["all runs"].voices["Homer Simpson"] == "Homer Simpson" and len(rooms["all runs"].voices) == 4
assert list(rooms_of(load_cast("tiny", ["Moe"], device="cpu"), ["tiny"]).values()) == [
    Room("tiny", {"Moe": "Moe"}, False)
]


# %% [markdown]
# ## Words while they are made
#
# A model makes ten to a hundred tokens a second, so a line takes seconds, and seconds of silence are long. HTTP can send a body in pieces: the server writes a piece when it has one, the browser reads it with `response.body.getReader()`. What is sent must still say what it is, so each piece is a row of JSON. The first one tells how many come first; the next one what the model was really sent, token for token, not what we think it was; then come the words; the last one says that it is the end. If there is no last row, the answer broke off, and the page says so.
#
# An error cannot be a status any more once words are on the way. Then it is a row of its own.

# %%
#| export
def row(
    **facts,  # what it says
) -> bytes:  # one line
    "One row of an answer."
    return (json.dumps(facts) + "\n").encode()


def sent_row(
    tokenizer,  # the model's
    asked: Asked,  # whose turn it is
) -> bytes:  # a row
    "What the model read."
    text = tokenizer.decode(asked.prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return row(prompt=text, tokens=len(asked.prompt_ids), left_out=asked.left_out)


# %% [markdown]
# The rows of an answer, while it waits and while it comes:

# %%
#| export
async def answer_rows(
    stage: Stage,  # who answers
    asked: Asked,  # a place in its queue
) -> AsyncIterator[bytes]:  # rows: who comes first; the prompt; pieces; the end, or what went wrong
    "An answer, row by row."
    began, tokenizer = False, stage.cast[asked.name].maker.tokenizer
    try:
        waiting, busy = list(stage.queue.waiting), stage.now is not None and not stage.now.ended_s
        yield row(before=waiting.index(asked) + busy if asked in waiting else 0)
        async for piece in stage.hear(asked):
            if not began:
                yield sent_row(tokenizer, asked)
            began = True
            yield row(piece=piece)
        if not began:
            yield sent_row(tokenizer, asked)
        yield row(end=asked.finish, seconds=round(asked.ended_s - asked.began_s, 3))
    except ValueError as e:
        yield row(error=str(e))
    except Exception as e:
        yield row(error=fault_body(e)["error"]["message"])
    finally:
        stage.queue.leave(asked)


# %% [markdown]
# A function that yields does nothing until it is first asked, and then cannot clean up after itself either: a reader who is gone before the first word would keep his place in the queue. So the first row is made at once, and from then on leaving works.

# %%
#| export
async def begun(
    rows: AsyncIterator[bytes],  # an answer
) -> AsyncIterator[bytes]:  # the same
    "An answer whose first row is there already: whoever drops it now leaves the queue, even if he never reads."
    first = await anext(rows)

    async def whole():
        yield first
        async for r in rows:
            yield r

    return whole()


# %% [markdown]
# When the browser goes away in the middle (a closed tab, the stop button), the connection breaks. The framework then stops reading our rows, the rows stop hearing the stage, and [the stage](62_serve.ipynb) ends the drawing at the next token. Nobody computes for nobody.
#
# When do the pieces come? The base model, on this machine; the first word is there long before the line is:

# %% tags=["example"]
homer = Stage({"Homer Simpson": Character.load("smollm2-135m", "Homer Simpson")})


async def hear(stage, said, **settings):
    "Seconds at which the rows of an answer come, and the rows."
    scene, start = scene_of(said), time.perf_counter()
    sampling = stage.cast["Homer Simpson"].sampling.changed(**settings)
    asked = stage.ask("Homer Simpson", scene.location, list(scene.lines), 42, sampling)
    return [(time.perf_counter() - start, json.loads(r)) async for r in answer_rows(stage, asked)]


with ThreadPoolExecutor() as pool:
    rows = pool.submit(asyncio.run, hear(homer, tie)).result()
    rows = pool.submit(asyncio.run, hear(homer, tie)).result()  # the first time, a model warms up
came = [s for s, r in rows if "piece" in r]
fig, ax = plt.subplots(figsize=(6.4, 1.5))
ax.vlines(came, 0, 1, color="#865a00")
ax.axvline(came[-1], color="#22211d", linestyle=":")
ax.set(xlabel="seconds after the question; dotted: the whole line", yticks=[], xlim=(0, None))
ax.spines[["top", "right", "left"]].set_visible(False)
plt.show()
print("".join(r.get("piece", "") for _, r in rows))
print(rows[1][1]["prompt"], f"({rows[1][1]['tokens']} tokens)", rows[-1][1], sep="\n")

# %% tags=["check"]
assert rows[0][1] == {"before": 0} and rows[-1][1]["end"] in ("stop", "length")
assert list(rows[1][1]) == ["prompt", "tokens", "left_out"]
assert rows[1][1]["prompt"].endswith("tie again.\nHomer Simpson:") and came[0] < came[-1]
whole = homer.cast["Homer Simpson"].says(
    "Marge Simpson: Homer, the dog is wearing <b>your</b> tie again.", "Simpson Home"
)
assert "".join(r.get("piece", "") for _, r in rows) == whole
homer.close()


# %% [markdown]
# ## What the page may ask for
#
# Five questions, each a function from data to data. Two of them need a model, and wait in the queue of [the stage](62_serve.ipynb): an answer, and the question who is next, which is [the model's expectation of the names](60_chat.ipynb). One thread uses the model, whatever it is used for.
#
# A small model likes to go on as it began: after one line of Lisa's it expects another line of Lisa's, where the script that it learned has two lines of one speaker in a row once in two hundred. So whoever has just spoken is not asked about while others are there.

# %%
#| export
class Page:
    "What a page may ask for."

    def __init__(
        self,
        stage: Stage,  # who answers
        runs: list,  # the runs of its cast, as `load_cast` was given them
        base_model: str = "",  # the base of all runs; empty: as they say
        device: str = "auto",  # where a base model goes: "xpu", "cuda", "cpu"
        dtype: str = "auto",  # in which numbers: "bfloat16", "float32"
        scene: "dict | None" = None,  # how the page begins: place, me, people and lines; None: as it likes
        random_seed: int = 42,  # of the first answer, 0..2**64-1
    ):
        self.stage, self.rooms, self.scene = stage, rooms_of(stage.cast, runs), scene
        self.random_seed = random_seed % 2**53  # the whole numbers that JavaScript has
        self.bases = Bases(stage, [base_name(run) and (base_model or base_name(run)) for run in runs], device, dtype)

    async def about(self, given: dict) -> dict:
        "What there is to choose from."
        usual = next(iter(self.stage.cast.values())).sampling
        return {
            "runs": [{"name": r.name, "tuned": r.tuned, "characters": list(r.voices)} for r in self.rooms.values()],
            "sampling": {name: getattr(usual, name) for name in CHANGED},
            "limits": LIMITS,
            "scene": self.scene,
            "seed": self.random_seed,
        }

    def voice(
        self,
        given: dict,  # what the page sent: "run"
        speaker,  # who is to speak
    ) -> str:  # the name in the cast; Refused with those that there are
        "Who is meant."
        room = self.rooms.get(run) if isinstance(run := given.get("run"), str) else None
        if room is None:
            raise Refused(f"run={shown(run)} was given; expected one of {', '.join(self.rooms)}", "run")
        found = room.voices.get(speaker) if isinstance(speaker, str) else None
        if found is None:
            known = ", ".join(list(room.voices)[:6])
            raise Refused(f"{shown(speaker)} cannot answer; expected one of {known}", "speaker")
        return found

    async def script(self, given: dict) -> dict:
        "The scene as a script."
        return {"script": f"{scene_of(given)}\n"}

    async def read(self, given: dict) -> dict:
        "A script as a scene."
        scene = read_scene(given.get("script"))
        return {"location": scene.location, "lines": [[x.speaker, x.text] for x in scene.lines]}


# %%
#| export
class TalkingPage(Page):
    "What a page may ask for, with what a model has to do."

    async def next(self, given: dict) -> dict:
        "Who speaks next: drawn by what the model expects."
        scene, names, seed = scene_of(given), given.get("names"), seed_of(given)
        good = isinstance(names, list) and 0 < len(names) <= LIMITS["people"]
        expect(good, f"names={shown(names)} was given; expected a list of one to {LIMITS['people']} names")
        keys = [self.voice(given, name) for name in names or ()]
        model, lines = self.stage.cast[keys[0]], list(scene.lines)
        chances = await in_turn(self.stage, next_speaker, model, scene.location, lines, names)
        speaker = random.Random(seed).choices(list(chances), list(chances.values()))[0]
        return {"speaker": speaker, "chances": chances}

    async def answer(self, given: dict) -> AsyncIterator[bytes]:  # ValueError, or Full, before the first row
        "Somebody's next line, as rows."
        scene, key = scene_of(given), self.voice(given, given.get("speaker"))
        side, sampling = given.get("side", "tuned"), sampling_of(given, self.stage.cast[key].sampling)
        expect(side in ("tuned", "base"), f"side={shown(side)} was given; expected tuned or base", "side")
        ask = (scene.location, list(scene.lines), seed_of(given), sampling)
        if side == "base" and self.rooms[given["run"]].tuned:
            if not (base := self.bases.find(key)):
                return self.first_time(key, ask)
            key = base
        return await begun(answer_rows(self.stage, self.stage.ask(key, *ask)))

    async def first_time(
        self,
        key: str,  # a trained one's name in the cast
        ask: tuple,  # location, lines, seed and sampling
    ) -> AsyncIterator[bytes]:
        "An answer of a base model that must be loaded first."
        yield row(note="The base model is being loaded ...")
        try:
            asked = self.stage.ask(await asyncio.to_thread(self.bases.load, key), *ask)
        except (ValueError, OSError) as e:
            yield row(error=str(e))
            return
        async for r in answer_rows(self.stage, asked):
            yield r


# %% [markdown]
# A page with two runs, asked by hand. Both sides get the same prompt:

# %% tags=["example"]
stage = Stage(cast)
page = TalkingPage(stage, [folder / "x", folder / "y"], device="cpu")


async def talk():
    question = {**tie, "run": "x", "speaker": "Bart Simpson", "sampling": {"max_new_tokens": 12}}
    answers = [[json.loads(r) async for r in await page.answer(question | {"side": s})] for s in ("tuned", "base")]
    return await page.next(question | {"names": list(known)}), *answers


def wait_for(work):
    "What a coroutine gives; a notebook has a loop of its own, so it runs in another thread."
    with ThreadPoolExecutor() as pool:
        return pool.submit(asyncio.run, work).result()


chosen, tuned, before = wait_for(talk())
print(chosen)
pd.DataFrame({"trained": tuned[:4], "base": before[1:5]})

# %% tags=["check"]
pairs = [(a.speaker, b.speaker) for s in read_script("springfield").scenes for a, b in zip(s.lines, s.lines[1:])]
assert 0.004 < sum(a == b for a, b in pairs) / len(pairs) < 0.006
assert before[0]["note"] and before[1:3] == tuned[:2] and tuned[1]["prompt"].endswith("again.\nBart Simpson:")
assert "Bart Simpson (base model)" in stage.cast and not page.bases.find("Moe Szyslak")
assert abs(sum(chosen["chances"].values()) - 1) < 1e-6 and chosen["speaker"] in chosen["chances"]
assert list(chosen["chances"]) == ["Homer Simpson", "Bart Simpson"]  # Marge has just spoken
for wrong, meant in (
    ({"run": "z"}, "all runs, x, y"),
    ({"run": "x", "speaker": "Moe Szyslak"}, "Bart Simpson"),
    ({"run": "x", "speaker": "Bart Simpson", "side": "middle"}, "tuned or base"),
    ({"run": ["x"]}, "all runs"),
):
    assert meant in refused(wait_for, page.answer(wrong)), wrong


# %% [markdown]
# ## At the door
#
# [The server's guard](62_serve.ipynb) already looks at who comes: a page of a stranger, open in the same browser, can send requests to this machine, so the `Host` must be this machine's name (a stranger's page can make its own name lead here, but cannot lie about the name), the `Origin` must be the page itself, and the body must say that it is JSON, which a stranger's page may not send without being asked first. From elsewhere nobody gets in at all: the server listens at `127.0.0.1`, and at another address only with a key.
#
# Two things are added here. **How often** one client may ask: a bucket of tokens, as it is called, that fills up steadily; each request takes one, and who finds it empty is told to wait. **How many at once**: thirty-two. Both are far above what one person can do, and far below what a program that went wild can. Against the model of the picture, 1,000 wrong requests and 100 that hung up in the middle left the server with the memory it had before, and answering in a second.

# %%
#| export
class Rate:
    "How often, and how many at once, each client may ask."

    def __init__(
        self,
        a_second: float = 4.0,  # requests in the long run
        burst: int = 120,  # requests at once, after a rest
        at_once: int = 32,  # requests that are not answered yet; windows of one machine share an address
    ):
        self.a_second, self.burst, self.at_once = a_second, burst, at_once
        self.buckets: dict[str, tuple[float, float]] = {}  # client -> (requests left, when that was)
        self.busy: Counter[str] = Counter()

    def wait_s(
        self,
        client: str,  # its address
        now: float,  # seconds of some clock
    ) -> float:  # 0: come in, and the request is counted
        "How long somebody has to wait."
        left, then = self.buckets.pop(client, (float(self.burst), now))
        left = min(self.burst, left + (now - then) * self.a_second)
        wait = max(0.0, (1 - left) / self.a_second, self.busy[client] >= self.at_once)
        self.buckets[client] = (left - (not wait), now)  # the last one asked is the last in the dict
        while len(self.buckets) > 10_000:  # who has not asked for longest has a full bucket by now
            self.buckets.pop(next(iter(self.buckets)))
        return wait


# %% tags=["check"]
rate = Rate(a_second=2, burst=3, at_once=1)
assert [rate.wait_s("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5] and rate.wait_s("b", 0.0) == 0
assert rate.wait_s("a", 0.5) == 0 < rate.wait_s("a", 0.5) and rate.wait_s("a", 99) == 0
rate.busy["a"] = 1
assert rate.wait_s("a", 999) == 1


# %% [markdown]
# ## What the page itself may do
#
# A line may be `<img src=x onerror=alert(1)>`, typed by a joker, read from a file, or said by a model that has seen too many web pages. If it goes into the page as HTML, the browser obeys it. So text never becomes HTML: the page is built by one function that makes elements and puts text into them as text,
#
# ```js
# function el(tag, given, ...inside) { const e = document.createElement(tag); ... e.append(...inside); return e; }
# ```
#
# and `innerHTML` stands nowhere in the file. That is the lock. A second one is on the outside, for the day somebody forgets: the header `Content-Security-Policy` tells the browser what this page may do. Nothing, it says, but run the one script and use the one style sheet whose SHA-256 are these, and talk to the server it came from. A script that got in with a line would have another SHA-256, no picture or font comes from elsewhere, nobody may put the page into a frame, and even our own script may not turn text into HTML (`trusted-types`).

# %%
#| export
def page_html() -> bytes:
    "The page."
    return (resources.files("simpsons_llm.talk") / "page.html").read_bytes()


def page_policy(
    html: bytes,  # the page
) -> str:  # the header's value
    "What a browser lets the page do."

    def blocks(tag):
        found = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), html, re.S)
        return " ".join(f"'sha256-{b64encode(sha256(block).digest()).decode()}'" for block in found)

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {blocks(b'script')}",
            f"style-src {blocks(b'style')}",
            "connect-src 'self'",
            "img-src data:",  # the empty icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


# %% tags=["example"]
print(page_policy(page_html()).replace("; ", "\n"))

# %% tags=["check"]
html = page_html().decode()
assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", html)
assert html.count("<script>") == html.count("<style>") == 1 and len(html) < 60_000

# %% [markdown]
# The door keeper stands before everything else. It is a plain function of the web server's interface (ASGI), not a wrapper that reads whole answers, or nothing would be streamed any more.

# %%
#| export
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


# %% [markdown]
# Each request is looked at before anything of it is read, and counted while it is answered.

# %%
#| export
class Door:
    "Who may come in, how often, and with which headers one leaves."

    def __init__(
        self,
        app,  # the application behind it
        key: str = "",  # what a client has to know; empty: nothing
        rate: "Rate | None" = None,  # how often one may ask; None: as usual
    ):
        self.app, self.guard, self.rate = app, Guard(None, key), rate or Rate()

    def against(
        self,
        scope: dict,  # a request, as ASGI has it
        client: str,  # its address
    ) -> tuple:  # what `error_reply` takes; empty: come in
        "What speaks against a request."
        headers = {k.decode("latin1").lower(): v.decode("latin1") for k, v in scope["headers"]}
        try:
            if scope["path"].startswith("/page/") and (told := self.guard.against("/v1", headers)):
                return told
        except ValueError:
            return ("the address that was asked for cannot be read", 400)
        wait = self.rate.wait_s(client, time.monotonic()) if scope["method"] == "POST" else 0
        many = "too many requests at once; wait a moment, and try again"
        return (many, 429, None, None, max(1, round(wait))) if wait else ()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        client = (scope.get("client") or ["?"])[0]

        async def leave(message):
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = message | {"headers": [*message["headers"], *own]}
            await send(message)

        if told := self.against(scope, client):
            return await error_reply(*told)(scope, receive, leave)
        self.rate.busy[client] += 1
        try:
            await self.app(scope, receive, leave)
        finally:
            self.rate.busy[client] -= 1
            self.rate.busy += Counter()  # forgets those at zero


# %% [markdown]
# ## The application
#
# The page joins [the server's application](62_serve.ipynb), so whoever opens it also has an address for other people's tools. There is no route that takes the name of a file, none that fetches an address, and none that changes anything.

# %%
#| export
def make_page(
    page: TalkingPage,  # what it may ask for
    key: str = "",  # what a client has to know; empty: nothing, and only this machine's names are let in
    rate: "Rate | None" = None,  # how often one client may ask; None: as usual
):  # a FastAPI application
    "The page and its server as an application."
    app, html = make_app(page.stage, key), page_html()
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    limits = Limits(body_bytes=int(LIMITS["bytes"]))

    def route(name):
        async def reply(request: Request):
            given = await read_json(request, limits)
            expect(isinstance(given, dict), f"{shown(given)} was given; expected an object")
            try:
                found = await getattr(page, name)(given)
            except Refused:
                raise
            except ValueError as e:
                raise Refused(str(e)) from None
            return JSONResponse(found) if isinstance(found, dict) else StreamingResponse(found, media_type=ROWS)

        app.post(f"/page/{name}", response_model=None)(reply)

    for name in ("about", "answer", "next", "script", "read"):
        route(name)

    async def whole():
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": page_policy(html)})

    app.get("/", response_model=None)(whole)
    app.add_middleware(Door, key=key, rate=rate)
    return app


ROWS = "application/x-ndjson"  # a JSON value in each row

# %% [markdown]
# In-process, as tests ask it:

# %% tags=["example"]
from fastapi.testclient import TestClient

client = TestClient(make_page(page), base_url="http://127.0.0.1", raise_server_exceptions=False)
ask = {**tie, "run": "x", "speaker": "Homer Simpson", "sampling": {"max_new_tokens": 3}}
print(*client.post("/page/answer", json=ask).text.splitlines(), sep="\n")
far = {"host": "evil.example"}
bad = {
    "no such character": client.post("/page/answer", json=ask | {"speaker": "Krusty"}),
    "an overlong line": client.post("/page/script", json={"lines": [["Moe", "x" * 3000]]}),
    "no JSON": client.post("/page/answer", content="{", headers={"content-type": "application/json"}),
    "a form of a stranger's page": client.post("/page/answer", data={"a": 1}),
    "a stranger's name for this machine": client.post("/page/about", json={}, headers=far),
    "a stranger's page": client.post("/page/about", json={}, headers={"origin": "http://evil.example"}),
    "a file": client.get("/page/../../etc/passwd"),
}
pd.DataFrame({n: [r.status_code, r.json()["error"]["message"]] for n, r in bad.items()}, ["status", "told"]).T

# %% tags=["check"]
assert [r.status_code for r in bad.values()] == [400, 400, 400, 415, 403, 403, 404]
shown_page = client.get("/")
assert shown_page.content == page_html() and "default-src 'none'" in shown_page.headers["content-security-policy"]
assert all(r.headers["x-content-type-options"] == "nosniff" for r in (shown_page, *bad.values()))
locked = TestClient(make_page(page, "open sesame"), base_url="http://elsewhere")
assert locked.post("/page/about", json={}).status_code == 401 and locked.get("/").status_code == 200
with_key = {"authorization": "Bearer open sesame"}
assert list(locked.post("/page/about", json={}, headers=with_key).json()["runs"][0]) == ["name", "tuned", "characters"]
few = TestClient(make_page(page, rate=Rate(0.1, 2)), base_url="http://localhost")
assert [few.post("/page/about", json={}).status_code for _ in range(3)] == [200, 200, 429]
stage.close()


# %% [markdown]
# ## Opening it
#
# The command takes a port first, so that a port that is taken is told before a model is loaded. The settings are those of [the terminal](60_chat.ipynb): who is played, where it is, the script to go on with. With a key, the key stands in the address behind a `#`. What stands there is never sent to a server and in nobody's log; the page reads it, and sends it where keys belong.

# %%
#| export
def serve_page(
    config: ChatConfig,  # runs, who is played, and how words are drawn
    host: str = "127.0.0.1",  # an address of this machine; one that others can reach needs a key
    port: int = 8000,  # 0..65535; 0: a free one
    key: str = "",  # what a browser has to know; empty: nothing
):  # ends with Ctrl-C; ValueError or FileNotFoundError for what cannot be
    "Open the chat page."
    needs_packages()
    with closing(open_port(host, port, key)) as listener:
        page = page_of(config)
        with closing(page.stage):
            listener.listen(128)
            mark = f"#key={quote(key)}" if key else ""
            print(f"open {address_of(listener)}/{mark} in a browser (Ctrl-C ends it)", flush=True)
            until_told(server_of(make_page(page, key)), listener)


def page_of(
    config: ChatConfig,  # runs, who is played, and how words are drawn
) -> TalkingPage:  # errors as `begin`
    "The page that the settings ask for."
    talk = begin(config)
    first = talk.cast[talk.partner].model
    runs = [r for r in config.run.split("\n") if r] or [str(first.name_or_path)]
    people = list(dict.fromkeys([talk.partner, talk.you, *(x.speaker for x in talk.lines)]))
    scene = {"place": talk.location, "me": talk.you, "people": people, "lines": [list(p) for p in talk.pairs()]}
    base = "" if config.base_model == "auto" else config.base_model
    return TalkingPage(Stage(talk.cast), runs, base, config.device, config.dtype, scene, config.random_seed)


# %% tags=["check"]
school = page_of(ChatConfig(run=str(folder / "x"), speaker="Bart Simpson", location="School", device="cpu"))
assert school.scene == {
    "place": "School",
    "me": "Homer Simpson",
    "people": ["Bart Simpson", "Homer Simpson"],
    "lines": [],
}
school.stage.close()

# %% [markdown]
# ## Tried as a person would
#
# A page that passes its tests can still be a nuisance. So we sat down before it, with the model of the picture, on a machine with two slow cores. What was in the way, and what became of it:
#
# - *Let them talk* gave six lines of Homer's: the model expects whoever spoke to go on. Now others come first.
# - Somebody who was added to a scene was never asked, because the page had quietly kept the only name that could answer before. It now keeps a name only if a person chose it.
# - The whole page scrolled, and the field to type in went out of sight. Now the lines scroll, and the rest stays.
# - After a click on *Retry* the keyboard was nowhere: the button had been drawn anew. The page puts the focus back.
# - A file that had been refused could not be loaded again after it was mended: for the browser it was the same file.
# - *Retry* beside one's own words replaced them by the model's. It is there for lines of the model alone.
# - Lines that the model wrote in one's part were marked as one's own.
# - Two windows: the second one waits without a word. Now it says how many come first.
#
# Seen in Chromium as well: dark and light, a screen of 360 points, the keyboard alone (Tab, Enter, Escape, Ctrl+Z), a reload in the middle of a scene, and lines that look like tags. The tests do it all again, where Chromium is there: two browsers at once, and one that leaves in the middle of an answer.
#
# You can now put a model behind a page, and know who else might be knocking at it.

# %% [markdown]
# ### Exercises
#
# 1. A bucket holds 120 requests and gets 4 a second. A program sends 10 a second without a rest. After how many seconds is the first one refused?
# 2. Why must the page's server look at the name in `Host`, although it listens at `127.0.0.1` alone?

# %% tags=["check"]
# 1: the bucket loses 6 a second, and is empty after 20
rate, times = Rate(), [i / 10 for i in range(400)]
assert abs(next(t for t in times if rate.wait_s("x", t)) - 20) < 1
# 2: a browser on this machine is inside, and so is the page of a stranger in it, once its name leads to 127.0.0.1
assert Guard(None).against("/", {"host": "stranger.example"})[1] == 403
