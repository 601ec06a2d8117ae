# %%
#| default_exp talk.serve

# %% [markdown]
# # Serving
#
# > A character behind an address: other people's tools talk to it as they talk to OpenAI's models.
#
# So far the model sat in the program that asked it. A *server* is a program that holds the model once and waits; others, in any language, on this machine or on another, send it a question over the network and read the answer. What they send and what comes back has to be agreed upon, and most tools have agreed: nearly every chat window, editor and library can talk to OpenAI's address, and to any other that is built like it. So this chapter builds that: `simpsons-llm serve --run runs/x`.
#
# Three things are hard about it. Tools send *messages*, but a character was trained on *scenes*: what the model reads must be the prompt of its training, token for token. One model is asked by many at once: somebody has to wait, and nobody for ever. And whatever arrives, a server answers, or says what was wrong, and goes on. What is left out: encryption and accounts, which a web server in front of this one does better, and several answers drawn in one batch.

# %%
#| export
import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec

from simpsons_llm.data.lines import Line, name_key
from simpsons_llm.data.prompt import prompt_tokens
from simpsons_llm.machine.job import require
from simpsons_llm.model.character import Character
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import most_tokens, stream_line

# %%
#| hide
import tempfile


# %% [markdown]
# ## Somebody who asks
#
# Whoever asks gets a place in a queue, and a queue of pieces of his own: the model puts pieces in at its speed, the reader takes them out at his. The two live in different threads, since drawing a token keeps a thread busy and a server must go on listening; a piece is handed over to the reader's thread by the one call that may be made from another.

# %%
#| export
class Full(ValueError):
    "Too many wait already."

    retry_after_s = 1  # seconds after which a place is likely to be free


class HungUp(Exception):
    "Nobody reads any more."


class Asked:
    "One who asked: where he stands, and the pieces of his answer."

    def __init__(
        self,
        name: str,  # who answers
        location: str,  # where the scene is; may be empty
        lines: list[Line],  # what was said before
        random_seed: int,  # of the sampling
        sampling: Sampling,  # how words are drawn
        stop: tuple = (),  # texts before which the answer ends
    ):
        self.name, self.location, self.lines, self.random_seed = name, location, lines, random_seed
        self.sampling, self.stop = sampling, stop
        self.loop, self.pieces = asyncio.get_running_loop(), asyncio.Queue()  # type: ignore[var-annotated]
        self.gone = False  # nobody reads any more
        self.finish = ""  # "stop": the line has ended; "length": it was cut at the most tokens
        self.prompt_ids: list[int] = []  # what the model read
        self.answer_ids: list[int] = []  # what it drew
        self.asked_s, self.began_s, self.ended_s = time.perf_counter(), 0.0, 0.0

    def tell(
        self,
        piece,  # text; an exception; None at the end
    ):
        "Hand over a piece, from any thread."
        with suppress(RuntimeError):  # the reader's loop has ended
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def drew(
        self,
        token: int,  # its number
    ):
        "One more token; HungUp if nobody wants it."
        self.answer_ids.append(token)
        if self.gone:
            raise HungUp


# %% [markdown]
# A reader may name texts at which the answer has to end. Such a text can come in two pieces, so what may be its beginning is held back until it is clear:

# %%
#| export
def ended_by(
    pieces,  # an answer's text, in pieces
    stop: tuple,  # texts before which it ends; none of them empty
):  # yields pieces; together they are the text before the first stop
    "An answer up to a text at which it has to end."
    held = ""
    for piece in pieces:
        held += piece
        if found := [i for i in map(held.find, stop) if i >= 0]:
            yield held[: min(found)]
            return
        keep = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        if ready := held[: len(held) - keep]:
            yield ready
        held = held[len(held) - keep :]
    if held:
        yield held


# %% tags=["example"]
list(ended_by(["The dog", " is wear", "ing my t", "ie.", " Why?"], ("tie", "?")))


# %% [markdown]
# ## The queue
#
# A model draws one answer at a time, so those who ask wait in a queue: who came first is answered first. That is the plainest kind of fairness, and it has a promise that can be kept: whoever has a place is answered after those before him, and nobody who comes later can push him back. The queue has an end, though: who comes when it is full is told so at once, which is kinder than to let him wait for minutes. And who hangs up gives his place back.

# %%
#| export
class Queue:
    "Those who wait, first come, first served; for several threads."

    def __init__(
        self,
        most: int,  # how many may wait, 1 or more
    ):
        require(isinstance(most, int) and most >= 1, f"most_waiting={most!r} was given; expected 1 or more")
        self.most, self.mean_s, self.closed = most, 1.0, False  # mean seconds of an answer
        self.waiting: deque[Asked] = deque()
        self.changed = threading.Condition()

    def join(
        self,
        asked: Asked,  # who asks
    ):
        "Take the last place; Full if there is none."
        with self.changed:
            require(not self.closed, "the stage is closed")
            if len(self.waiting) >= self.most:
                full = Full(f"{len(self.waiting)} wait already, and no more may; ask again later")
                full.retry_after_s = max(1, round(self.mean_s))
                raise full
            self.waiting.append(asked)
            self.changed.notify()

    def next(self) -> Asked | None:
        "Who is first, as soon as there is somebody; None when the queue was closed."
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            return self.waiting.popleft() if self.waiting else None

    def leave(
        self,
        asked: Asked,  # who hangs up
    ):
        "Give back one's place; if it is one's turn already, the drawing ends at the next token."
        with self.changed:
            asked.gone = True
            with suppress(ValueError):
                self.waiting.remove(asked)

    def close(self):
        "Send everybody away."
        with self.changed:
            self.closed = True
            while self.waiting:
                self.waiting.popleft().tell(ValueError("the stage was closed"))
            self.changed.notify()


# %% [markdown]
# ## An answer
#
# When it is his turn, a prompt is made and an answer drawn, by the functions that answer everywhere in this book. What was read and what was drawn is kept, since whoever pays by the token wants to know the numbers. A prompt that is too long loses its oldest lines, as in training; where not even the last line fits there is nothing left to answer to, and that is said.

# %%
#| export
def draw_answer(
    character: Character,  # who answers
    asked: Asked,  # whose turn it is
) -> None:  # ValueError if the last line alone is too long
    "Draw one answer, and hand over its pieces."
    model, maker, sampling = character.model, character.maker, asked.sampling
    most = max(1, most_tokens(model, maker) - sampling.max_new_tokens)
    prompt, left_out = prompt_tokens(maker, asked.location, asked.lines, character.name, most)
    require(
        not asked.lines or left_out < len(asked.lines),
        f"the last line alone is longer than the {most} tokens that may stand before an answer; make it shorter",
    )
    asked.prompt_ids = prompt.ids
    pieces = stream_line(
        model, maker, asked.location, asked.lines, character.name, sampling, asked.random_seed, asked.drew
    )
    for piece in ended_by(pieces, asked.stop):
        asked.tell(piece)
    full = len(asked.answer_ids) >= sampling.max_new_tokens
    asked.finish = "length" if full and asked.answer_ids[-1] not in maker.stop_ids else "stop"


# %% [markdown]
# ## One model, many who ask
#
# The characters stand on a *stage*. They may share one model, and one thread draws for all of them. A reader who is slow keeps nobody waiting, since his pieces wait in a queue of his own, which an answer of at most so many tokens cannot overflow. What goes wrong in an answer is told to the one who asked; the thread goes on with the next.

# %%
#| export
class Stage:
    "One model, many who ask."

    def __init__(
        self,
        cast: dict[str, Character],  # name -> who answers; they may share a model
        most_waiting: int = 64,  # how many may wait, 1 or more; who comes then is refused
    ):
        require(cast, "nobody is on the stage; give at least one character")
        self.cast, self.queue = dict(cast), Queue(most_waiting)
        self.answered: deque[Asked] = deque(maxlen=256)  # the last ones, in the order in which they ended
        self.worker = threading.Thread(target=self.work, name="stage", daemon=True)
        self.worker.start()

    def work(self):
        "Answer one after the other, until the stage is closed."
        while asked := self.queue.next():
            asked.began_s = time.perf_counter()
            try:
                draw_answer(self.cast[asked.name], asked)
            except HungUp:
                pass
            except Exception as e:  # the reader's, who shows it
                asked.tell(e)
            asked.ended_s = time.perf_counter()
            self.queue.mean_s += (asked.ended_s - asked.began_s - self.queue.mean_s) / 8
            self.answered.append(asked)
            asked.tell(None)

    def close(self):
        "End the thread; who still waits is sent away."
        self.queue.close()
        self.worker.join(timeout=60)

    def find(
        self,
        name: str,  # a name, in any spelling: "Homer Simpson", "homer-simpson"
    ) -> str:  # as it stands in the cast; ValueError with those who do
        "Who is meant."
        keys = {name_key(n): n for n in reversed(self.cast)} | {n: n for n in self.cast}
        there = ", ".join(list(self.cast)[:8]) + (f" and {len(self.cast) - 8} more" if len(self.cast) > 8 else "")
        found = keys.get(name) or keys.get(name_key(name))
        if not found:
            raise ValueError(f"{name[:80]!r} is not here; expected one of {there}")
        return found

    def ask(
        self,
        name: str,  # who answers
        location: str,  # where the scene is; may be empty
        lines: list[Line],  # what was said before
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        sampling: Sampling | None = None,  # how words are drawn; None: as the character has it
        stop: tuple = (),  # texts before which the answer ends
    ) -> Asked:  # a place in the queue; Full if there is none, ValueError if nobody is called so
        "Take a place in the queue, at once; called in an event loop."
        name = self.find(name)
        asked = Asked(name, location, lines, random_seed, sampling or self.cast[name].sampling, stop)
        self.queue.join(asked)
        return asked

    async def hear(
        self,
        asked: Asked,  # what `ask` gave
    ) -> AsyncIterator[str]:  # pieces of text; raises what went wrong while drawing
        "The answer as it comes; who stops reading has hung up."
        try:
            while (piece := await asked.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.queue.leave(asked)

    async def stream(
        self,
        name: str,  # who answers
        location: str,  # where the scene is; may be empty
        lines: list[Line],  # what was said before
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        sampling: Sampling | None = None,  # how words are drawn; None: as the character has it
    ) -> AsyncIterator[str]:  # pieces of text; Full or ValueError before the first
        "Ask, wait for one's turn, and hear the next line piece by piece."
        asked = self.ask(name, location, lines, random_seed, sampling)
        try:
            async for piece in self.hear(asked):
                yield piece
        finally:
            self.queue.leave(asked)


# %% [markdown]
# ## An application
#
# FastAPI finds out which function a request is meant for, and calls it. The application is made with the stage in it; a page may add addresses of its own.

# %%
#| export
def make_app(
    stage: Stage,  # who answers
    key: str = "",  # what a client has to know; empty: nothing
):  # a FastAPI application, to which more addresses may be added
    "The server as an application."
    from fastapi import FastAPI

    app = FastAPI(title="simpsons_llm", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.stage, app.state.key = stage, key
    return app
