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
# - It is 31 MB to download and 76 MB on disk (2,453 files), and brings 14 packages that this book needs for nothing else. The page is one file of 35 kB and needs FastAPI and uvicorn, which [serving](61_serve.ipynb) needs anyway.
# - Unless told otherwise it tells its makers that it was started, and asks them for the newest version. It also has routes that hand out files and fetch addresses for a page (`/file=`, `/proxy=`); they are guarded, but a page that has no such route needs no guard. It can share a page through a tunnel; here that must not happen by accident.
# - What speaks for it: it is tested by very many people, it looks well, and its fonts now come from the package and no longer from elsewhere.
#
# So the page is our own, in plain HTML, CSS and JavaScript: [`page.html`](https://github.com/rahulunair/simpsons_llm/blob/main/simpsons_llm/talk/page.html). It can be read from top to bottom, and its developer is whoever reads this.

# %%
#| export
import asyncio
import hmac
import json
import logging
import random
import re
import secrets
import socket
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import require
from simpsons_llm.model.adapter import find_trained
from simpsons_llm.model.base import load_base
from simpsons_llm.model.character import MARKS, Character, load_cast
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import SOMEBODY, lines_of
from simpsons_llm.talk.chat import MOST, next_speaker, typed
from simpsons_llm.talk.serve import Asked, Full, Stage, make_app

# %%
#| hide
import tempfile
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.model.adapter import add_adapter, save_adapter


# %% [markdown]
# ## A scene comes in
#
# The page sends the whole scene with every question: where it is, and who said what. That is more than the last line, but a few kilobytes are nothing beside a model's work, and it makes the server simple: it remembers nothing, so an edited line needs no special care, two windows cannot mix their scenes, and a reload loses nothing.
#
# Whatever comes in is looked at before a model sees it, and each limit has a number. They are in one place, and the page asks for them, so that it can say at once what the server would refuse.

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
    what: str,  # what it is, for the error
) -> str:  # on one line; may be empty; ValueError if it is no text, or too long
    "A name or a place."
    require(isinstance(text, str), f"{what} of type {type(text).__name__} was given; expected text")
    said = typed(text[:MOST]) if text.strip() else ""
    require(
        len(text) <= MOST and len(said) <= LIMITS[limit],
        f"{what} of {len(text):,} letters was given; expected {LIMITS[limit]} at most",
    )
    return said


def scene_of(
    given: dict,  # what the page sent: location, and lines as [speaker, text] pairs
) -> Scene:  # ValueError if it is none, or past a limit
    "The scene that a page sent."
    rows = given.get("lines", [])
    pairs = isinstance(rows, list) and all(isinstance(r, list) and len(r) == 2 for r in rows)
    require(pairs, 'lines are no list of pairs; expected such as [["Marge Simpson", "Dinner!"]]')
    require(len(rows) <= LIMITS["lines"], f"{len(rows)} lines were given; expected {LIMITS['lines']} at most")
    said = []
    for i, (who, text) in enumerate(rows):
        name = short(who, "name", "a name")
        require(name and ":" not in name, f"{name!r} was given as a name; expected one without a colon")
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
    require(known, f"sampling={str(chosen)[:80]} was given; expected some of {', '.join(CHANGED)}")
    new = usual.changed(num_beams=1, **chosen)
    for name in ("max_new_tokens", "temperature"):
        most, x = LIMITS[name], getattr(new, name)
        require(x <= most, f"{name}={x} was given; expected {most} at most")
    return new


def seed_of(
    given: dict,  # what the page sent: "seed"; may be missing
) -> int:  # 0..2**53, the whole numbers that JavaScript has; ValueError for others
    "The random seed of an answer."
    seed = given.get("seed", 42)
    good = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= 2**53
    require(good, f"seed={str(seed)[:40]} was given; expected a whole number from 0 to 2**53")
    return seed


# %% [markdown]
# What arrives is a row of bytes that claims to be JSON. A program that reads it meets some that are not: cut off, nested ten thousand times, with `NaN` for a number, or a list where a name should be.

# %%
#| export
def object_of(
    body: bytes,  # what somebody sent
) -> dict:  # ValueError if it is no JSON object
    "A request as data."

    def never(word):
        raise ValueError(word)

    try:
        found = json.loads(body, parse_constant=never)
    except (ValueError, RecursionError):
        raise ValueError("the request is no JSON; expected an object such as {}") from None
    require(isinstance(found, dict), f"the request is a JSON {type(found).__name__}; expected an object such as {{}}")
    return found


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


for body, meant in (
    (b"", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b'{"seed": NaN}', "no JSON"),
    (b"\xff\xfe", "no JSON"),
    (b"[1]", "JSON list"),
    (b'{"lines": [["Homer"]]}', "pairs"),
    (b'{"lines": {"0": 1}}', "pairs"),
    (b'{"lines": [["", "Hm."]]}', "colon"),
    (b'{"lines": [["Homer: Moe", "Hm."]]}', "colon"),
    (b'{"lines": [["Homer", ""]]}', "empty"),
    (b'{"lines": [["Homer", 5]]}', "int"),
    (b'{"lines": [["Homer", "%s"]]}' % (b"x" * 2001), "2,001"),
    (b'{"lines": [["%s", "Hm."]]}' % (b"x" * 61), "61"),
    (b'{"location": "%s"}' % (b"x" * 121), "121"),
    (b'{"location": ["Home"]}', "list"),
    (b'{"lines": [%s]}' % b",".join([b'["Homer", "Hm."]'] * 401), "401 lines"),
):
    assert meant in refused(lambda b: scene_of(object_of(b)), body), body[:60]
for chosen in ({"temperature": 0}, {"temperature": 9}, {"max_new_tokens": 201}, {"top_k": 1}, {"top_p": "x"}, []):
    refused(sampling_of, {"sampling": chosen}, Sampling())
assert sampling_of({}, Sampling()) == Sampling()
for seed in (-1, 2**60, 0.5, True, "1"):
    assert str(seed) in refused(seed_of, {"seed": seed})


# %% [markdown]
# ## A scene goes out, and comes back
#
# A scene is kept as a script: a place in brackets, and `Name: words` row by row. [A scene](../1_data/10_lines.ipynb) is printed in that way, and `prepare` reads it, so a talk that went well can be training data the next day. The page makes a file of it without the server: nothing is written here, and there is no route that takes the name of a file. A file that is loaded is read by the browser and sent as text. It goes through the limits like anything else.

# %%
#| export
def read_scene(
    text,  # a script: "[Place]" and "Name: words" rows
) -> Scene:  # its last scene; ValueError if there is none, or past a limit
    "A scene that somebody kept."
    require(isinstance(text, str), f"a script of type {type(text).__name__} was given; expected text")
    rows = [row.strip() for row in text.splitlines() if row.strip()]
    places = [i for i, row in enumerate(rows) if row.startswith("[") and row.endswith("]")]
    first = places[-1] if places else -1
    place = rows[first][1:-1] if places else ""
    said = lines_of("\n".join(rows[first + 1 :]))
    require(said, "the file has no line of a scene; expected rows such as Marge Simpson: Dinner!")
    for line in said:
        require(line.speaker, f"the row {line.text[:60]!r} names nobody; expected such as Marge Simpson: Dinner!")
    return scene_of({"location": "" if place == "Scene" else place, "lines": [[x.speaker, x.text] for x in said]})


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


def rooms_of(
    cast: dict[str, Character],  # what `load_cast` gave
    runs: list[str],  # what it was given
) -> dict[str, Room]:  # by name; all runs together first, if there are several
    "The choices that a page offers."
    shown: list[str] = []
    for run in runs:
        name = Path(run).name or str(run)
        shown.append(name if name not in shown else f"{name} ({shown.count(name) + 1})")
    voices: list[dict] = [{} for _ in runs]
    for key, c in cast.items():
        # `load_cast` calls the adapters of several runs default, run1, run2 ...
        voices[int(c.adapter[3:]) if c.adapter.startswith("run") else 0][c.name] = key
    tuned = [base_name(run) != "" for run in runs]
    rooms = [Room(n, v, t) for n, v, t in zip(shown, voices, tuned) if v]
    if len(rooms) > 1:
        every = {name: key for room in reversed(rooms) for name, key in room.voices.items()}
        ordered = {c.name: every[c.name] for c in cast.values()}
        rooms = [Room(ALL, ordered, all(tuned)), *rooms]
    return {room.name: room for room in rooms}


def base_name(
    run: str,  # a run's folder, or a base model's name
) -> str:  # the base model it was trained from; empty if it is a base model itself
    "What a run was trained from."
    trained = Path(run).is_dir() and any((Path(run) / f).exists() for f in MARKS)
    return find_trained(run).notes.get("base_model", "") if trained else ""


# %% [markdown]
# The base model is a second model in memory, which most people never ask for. So it is loaded when somebody first wants to see it, once, while the others go on. It is asked in the form of the run's training: the same words, token for token, so that the difference is the training and nothing else.

# %%
#| export
class Bases:
    "The base models beside the trained ones."

    def __init__(
        self,
        stage: Stage,  # who answers; base models join the cast
        names: dict[str, str],  # adapter's name in the cast -> its base model
        device: str = "auto",  # "xpu", "cuda", "cpu"; auto: the best there is
        dtype: str = "auto",  # "bfloat16", "float32"; auto: as the device has it
    ):
        self.stage, self.names, self.place = stage, names, (device, dtype)
        self.models: dict[str, Any] = {}  # base model's name -> the model
        self.loading = threading.Lock()

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
            tuned, base = self.stage.cast[key], self.names[self.stage.cast[key].adapter]
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
pd.DataFrame({n: pd.Series(r.voices) for n, r in rooms_of(cast, [folder / "x", folder / "y"]).items()}).fillna("")

# %% [markdown]
# ## Words while they are made
#
# A model makes ten to a hundred tokens a second, so a line takes seconds, and seconds of silence are long. HTTP can send a body in pieces: the server writes a piece when it has one, the browser reads it with `response.body.getReader()`. What is sent must still say what it is, so each piece is a row of JSON. The first one tells what the model was really sent, token for token, not what we think it was; then come the words; the last one says that it is the end. If there is no last row, the answer broke off, and the page says so.
#
# An error cannot be a status any more once words are on the way. Then it is a row of its own.

# %%
#| export
def row(
    **facts,  # what it says
) -> bytes:  # one line
    "One row of an answer."
    return (json.dumps(facts) + "\n").encode()


async def answer_rows(
    stage: Stage,  # who answers
    asked: Asked,  # a place in its queue
) -> AsyncIterator[bytes]:  # rows: the prompt; pieces; the end, or what went wrong
    "An answer, row by row."
    began, tokenizer = False, stage.cast[asked.name].maker.tokenizer
    try:
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
    except Exception:
        logging.exception("an answer failed")
        yield row(error=BROKEN)


BROKEN = "Something went wrong in the server; its output says more."


def sent_row(
    tokenizer,  # the model's
    asked: Asked,  # whose turn it is
) -> bytes:  # a row
    "What the model read."
    text = tokenizer.decode(asked.prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return row(prompt=text, tokens=len(asked.prompt_ids), left_out=asked.left_out)


# %% [markdown]
# When the browser goes away in the middle (a closed tab, the stop button), the connection breaks. The framework then stops reading our rows, the rows stop hearing the stage, and [the stage](61_serve.ipynb) ends the drawing at the next token. Nobody computes for nobody.
#
# When do the pieces come? The base model, on this machine:

# %% tags=["example"]
homer = Stage({"Homer Simpson": Character.load("smollm2-135m", SOMEBODY)})


async def hear(stage, said, **settings):
    "Seconds at which the rows of an answer come, and the rows."
    scene, start = scene_of(said), time.perf_counter()
    sampling = stage.cast[SOMEBODY].sampling.changed(**settings)
    asked = stage.ask(SOMEBODY, scene.location, list(scene.lines), 42, sampling)
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
print(rows[0][1]["prompt"], f"({rows[0][1]['tokens']} tokens)", rows[-1][1], sep="\n")

# %% tags=["check"]
assert list(rows[0][1]) == ["prompt", "tokens", "left_out"] and rows[-1][1]["end"] in ("stop", "length")
assert rows[0][1]["prompt"].endswith("tie again.\nHomer Simpson:") and came[0] < came[-1]
whole = homer.cast[SOMEBODY].says("Marge Simpson: Homer, the dog is wearing <b>your</b> tie again.", "Simpson Home")
assert "".join(r.get("piece", "") for _, r in rows) == whole
homer.close()


# %% [markdown]
# ## The answers of the page's server
#
# Five questions, each a function from data to data. Wrong input raises a ValueError here, and nothing else; how that becomes a status is decided once, further down.

# %%
#| export
class PageServer:
    "What the page can ask for."

    def __init__(
        self,
        stage: Stage,  # who answers
        runs: list[str],  # the runs of its cast, as `load_cast` was given them
        base_model: str = "",  # the base of all runs; empty: as they say
        device: str = "auto",  # where a base model goes: "xpu", "cuda", "cpu"
        dtype: str = "auto",  # in which numbers: "bfloat16", "float32"
    ):
        self.stage, self.rooms = stage, rooms_of(stage.cast, runs)
        names = {c.adapter: int(c.adapter[3:]) if c.adapter.startswith("run") else 0 for c in stage.cast.values()}
        bases = {adapter: base_model or base_name(runs[i]) for adapter, i in names.items()}
        self.bases = Bases(stage, bases, device, dtype)

    def about(self) -> dict:
        "What there is to choose from."
        usual = next(iter(self.stage.cast.values())).sampling
        return {
            "runs": [{"name": r.name, "tuned": r.tuned, "characters": list(r.voices)} for r in self.rooms.values()],
            "sampling": {name: getattr(usual, name) for name in CHANGED},
            "limits": LIMITS,
        }

    def voice(
        self,
        given: dict,  # what the page sent: "run"
        speaker,  # who is to speak
    ) -> str:  # the name in the cast; ValueError with those that there are
        "Who is meant."
        room = self.rooms.get(given["run"]) if isinstance(given.get("run"), str) else None
        if room is None:
            raise ValueError(f"run={str(given.get('run'))[:60]!r} was given; expected one of {', '.join(self.rooms)}")
        known = ", ".join(list(room.voices)[:6])
        found = room.voices.get(speaker) if isinstance(speaker, str) else None
        if not found:
            raise ValueError(f"{str(speaker)[:60]!r} cannot answer; expected one of {known}")
        return found

    def script(self, given: dict) -> dict:
        "The scene as a script."
        return {"script": f"{scene_of(given)}\n"}

    def read(self, given: dict) -> dict:
        "A script as a scene."
        scene = read_scene(given.get("script"))
        return {"location": scene.location, "lines": [[x.speaker, x.text] for x in scene.lines]}


# %% [markdown]
# Two of them need a model. An answer waits in the queue of the stage, and so does the question who is next, which the model decides by [its expectation of the names](60_chat.ipynb): one thread uses the model, whatever it is used for.

# %%
#| export
class Answering(PageServer):
    "A page's server with answers."

    async def answer(self, given: dict) -> AsyncIterator[bytes]:  # ValueError, or Full, before the first row
        "Somebody's next line."
        scene, key = scene_of(given), self.voice(given, given.get("speaker"))
        sampling, seed = sampling_of(given, self.stage.cast[key].sampling), seed_of(given)
        side = given.get("side", "tuned")
        require(side in ("tuned", "base"), f"side={str(side)[:40]!r} was given; expected tuned or base")
        ask = (scene.location, list(scene.lines), seed, sampling)
        if side == "tuned" or not self.rooms[given["run"]].tuned:
            return answer_rows(self.stage, self.stage.ask(key, *ask))
        if base := self.bases.find(key):
            return answer_rows(self.stage, self.stage.ask(base, *ask))
        return self.first_time(key, ask)

    async def first_time(
        self,
        key: str,  # a trained one's name in the cast
        ask: tuple,  # location, lines, seed and sampling
    ) -> AsyncIterator[bytes]:  # rows
        "An answer of a base model that must be loaded first."
        yield row(note="The base model is being loaded ...")
        try:
            asked = self.stage.ask(await asyncio.to_thread(self.bases.load, key), *ask)
        except (ValueError, OSError) as e:
            yield row(error=str(e))
            return
        async for r in answer_rows(self.stage, asked):
            yield r

    async def next(self, given: dict) -> dict:
        "Who speaks next: drawn by what the model expects."
        scene, names, seed = scene_of(given), given.get("names"), seed_of(given)
        good = isinstance(names, list) and 0 < len(names) <= LIMITS["people"]
        require(good, f"names={str(names)[:60]} was given; expected a list of one to {LIMITS['people']} names")
        keys = [self.voice(given, name) for name in names]
        chances = await self.stage.turn(keys[0], lambda c: next_speaker(c, scene.location, list(scene.lines), names))
        speaker = random.Random(seed).choices(list(chances), list(chances.values()))[0]
        return {"speaker": speaker, "chances": chances}
