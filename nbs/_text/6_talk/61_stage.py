# %%
#| default_exp talk.stage

# %% [markdown]
# # One model, many who ask
#
# > Who asks takes a place in a queue, and hears the answer as it is drawn; whoever hangs up gives the place back.
#
# So far the model sat in the program that asked it, and one person asked. A [chat page](63_page.ipynb) and [a server](62_serve.ipynb) have many who ask at once, and one model, which draws one answer at a time. Somebody has to wait, and nobody for ever; who cannot be answered has to be told so; and an answer that nobody reads any more must not keep others waiting. That is the same for a page and for a server, so it has this chapter of its own, without a word about networks. What is left out: several answers drawn in one batch, which would serve many faster.

# %%
#| export
import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

from simpsons_llm.data.lines import Line, name_key
from simpsons_llm.data.prompt import prompt_tokens
from simpsons_llm.machine.job import require
from simpsons_llm.model.character import Character
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import most_tokens

# %%
#| hide
from contextlib import aclosing

import matplotlib.pyplot as plt

from simpsons_llm.model.infer import lines_of


# %% [markdown]
# ## Turned away
#
# Not everybody gets an answer. Whoever asks for somebody who is not there, or sends no text, or comes when too many wait, is turned away with a sentence, and with the number by which programs of the web tell the reason: 404 for what is not there, 429 for too many at once, 400 for what could not be understood.

# %%
#| export
class Refused(ValueError):
    "Nobody answers, and why; it becomes a reply of status 4xx."

    def __init__(
        self,
        message: str,  # what was given, what was expected, what to do
        param: str | None = None,  # the field at fault
        status: int = 400,  # of HTTP, 400..499, or 503
        code: str | None = None,  # what a program may look for
        retry_after_s: int = 0,  # seconds after which to ask again; 0: never
    ):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
        self.retry_after_s = retry_after_s


class Full(Refused):
    "Too many wait already."


class HungUp(Exception):
    "Nobody reads any more."


# %% [markdown]
# ## Somebody who asks
#
# Those who ask a server are its *clients*. One thread is enough to listen to hundreds of them, since most of the time each of them waits: the thread goes round in a *loop* and turns to whichever has something to do, and a function that may be left waiting in the middle is an `async` one. Drawing a token is another kind of work. It keeps a thread busy, and whoever did it in the loop would stop listening to all others. So there are two threads, the loop and one that draws, and what is drawn has to be handed over. Each client has a queue of pieces of its own: the model puts pieces in at its speed, the client takes them out at its own, and the loop is told of each piece by the one call that may be made from another thread.

# %%
#| export
class Asked:
    "A client that asked, and the pieces of its answer."

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
        self.left_out = 0  # lines that did not fit before it
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

    def do(
        self,
        cast: dict[str, Character],  # who is there
    ):
        "What is done when it is one's turn, in the thread that draws."
        draw_answer(cast[self.name], self)


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
            if ready := held[: min(found)]:
                yield ready
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
# A model draws one answer at a time, so those who ask wait in a queue: who came first is answered first. That is the plainest kind of fairness, and it has a promise that can be kept: whoever has a place is answered when those before it are, and nobody who comes later can push it back. The queue has an end, though: a client that comes when it is full is told so at once, which is kinder than to let it wait for minutes. And who hangs up gives his place back.

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
            if self.closed:
                raise Refused("the stage is closed; nobody answers any more", None, 503)
            if len(self.waiting) >= self.most:
                told = f"{len(self.waiting)} wait already, and no more may; ask again later"
                raise Full(told, None, 429, "rate_limit_exceeded", max(1, round(self.mean_s)))
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
                self.waiting.popleft().tell(Refused("the stage was closed", None, 503))
            self.changed.notify()


# %% [markdown]
# ## An answer
#
# When it is a client's turn, a prompt is made and an answer drawn, by the functions that answer everywhere in this book. What was read and what was drawn is kept, since whoever pays by the token wants to know the numbers. A prompt that is too long loses its oldest lines, as in training; where not even the last line fits there is nothing left to answer to, and that is said.

# %%
#| export
def draw_answer(
    character: Character,  # who answers
    asked: Asked,  # whose turn it is
) -> None:  # Refused if the last line alone is too long
    "Draw one answer, and hand over its pieces."
    maker, sampling = character.maker, asked.sampling
    most = max(1, most_tokens(character.model, maker) - sampling.max_new_tokens)
    prompt, left_out = prompt_tokens(maker, asked.location, asked.lines, character.name, most)
    if asked.lines and left_out == len(asked.lines):
        told = f"the last line alone is longer than the {most} tokens that may stand before an answer; make it shorter"
        raise Refused(told, None, 400, "context_length_exceeded")
    asked.prompt_ids, asked.left_out = prompt.ids, left_out
    pieces = character.reply(asked.location, asked.lines, sampling, asked.random_seed, asked.drew)
    for piece in ended_by(pieces, asked.stop):
        asked.tell(piece)
    full = len(asked.answer_ids) >= sampling.max_new_tokens
    asked.finish = "length" if full and asked.answer_ids[-1] not in maker.stop_ids else "stop"


# %% [markdown]
# ## One model, many who ask
#
# The characters stand on a *stage*. They may share one model, and one thread draws for all of them. A client that reads slowly keeps nobody waiting, since its pieces wait in its own queue, which an answer of at most so many tokens cannot overflow. What goes wrong in an answer is told to the one who asked; the thread goes on with the next.

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
        self.now: Asked | None = None  # whose turn it is, or was
        self.worker = threading.Thread(target=self.work, name="stage", daemon=True)
        self.worker.start()

    def work(self):
        "Answer one after the other, until the stage is closed."
        while asked := self.queue.next():
            self.now = asked
            asked.began_s = time.perf_counter()
            try:
                asked.do(self.cast)
            except HungUp:
                pass
            except Exception as e:  # the reader's, who shows it
                asked.tell(e)
            asked.ended_s = time.perf_counter()
            self.queue.mean_s += (asked.ended_s - asked.began_s - self.queue.mean_s) / 8
            self.answered.append(asked)
            asked.tell(None)

    def close(self):
        "End the thread; who still waits is sent away, and who is answered is cut short."
        self.queue.close()
        if self.now:
            self.now.gone = True
        self.worker.join(timeout=60)

    def find(
        self,
        name: str,  # a name, in any spelling: "Homer Simpson", "homer-simpson"
    ) -> str:  # as it stands in the cast; Refused with those who do
        "Who is meant."
        keys = {name_key(n): n for n in reversed(self.cast)} | {n: n for n in self.cast}
        there = ", ".join(list(self.cast)[:8]) + (f" and {len(self.cast) - 8} more" if len(self.cast) > 8 else "")
        found = keys.get(name) or keys.get(name_key(name[:200]))
        if not found:
            raise Refused(f"{name[:60]!r} is not here; expected one of {there}", "model", 404, "model_not_found")
        return found

    def ask(
        self,
        name: str,  # who answers
        location: str,  # where the scene is; may be empty
        lines: list[Line],  # what was said before
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        sampling: Sampling | None = None,  # how words are drawn; None: as the character has it
        stop: tuple = (),  # texts before which the answer ends
    ) -> Asked:  # a place in the queue; Full if there is none, Refused if nobody is called so
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
    ) -> AsyncIterator[str]:  # pieces of text; Full or Refused before the first
        "Ask, wait for one's turn, and hear the next line piece by piece."
        asked = self.ask(name, location, lines, random_seed, sampling)
        try:
            async for piece in self.hear(asked):
                yield piece
        finally:
            self.queue.leave(asked)


# %% [markdown]
# Four clients ask within a second. The third has no patience: it hangs up after its second piece.

# %% tags=["example"]
homer = Character.load("smollm2-135m", "Homer Simpson", device="cpu", dtype="float32")
others = [Character(n, homer.model, homer.maker, homer.sampling) for n in ("Marge Simpson", "Bart Simpson")]
stage = Stage({c.name: c for c in (homer, *others)})
words = homer.sampling.changed(max_new_tokens=24)


async def client(after_s, name, said, most_pieces=99):
    "Asks after some time, and reads so many pieces."
    await asyncio.sleep(after_s)
    heard: list = []
    async with aclosing(stage.stream(name, "", lines_of(said), sampling=words)) as pieces:
        async for piece in pieces:
            heard.append(piece)
            if len(heard) == most_pieces:
                break
    return "".join(heard)


questions = (
    ("Homer Simpson", "Marge Simpson: The dog is wearing your tie again."),
    ("Marge Simpson", "Bart Simpson: I need a note for Skinner."),
    ("Homer Simpson", "Moe Szyslak: You owe me for nine beers."),
    ("Homer Simpson", "Lisa Simpson: Dad, what is a soul?"),
)
said = await asyncio.gather(*(client(0.2 * i, *q, 2 if i == 2 else 99) for i, q in enumerate(questions)))
said


# %% [markdown]
# Who waited, and who was answered? The queue keeps the times:

# %% tags=["example"]
def plot_turns(answered, ax=None):
    "When each was asked, begun and ended."
    ax = ax or plt.subplots(figsize=(7, 2.2))[1]
    start = min(a.asked_s for a in answered)
    for i, a in enumerate(answered):
        ax.barh(i, a.began_s - a.asked_s, left=a.asked_s - start, color="lightgray", label="waits" if i == 0 else None)
        left = len(a.answer_ids) < a.sampling.max_new_tokens and a.finish == ""
        color, label = ("tab:red", "is answered, hangs up") if left else ("tab:blue", "is answered" if i == 0 else None)
        ax.barh(i, a.ended_s - a.began_s, left=a.began_s - start, color=color, label=label)
    names = [f"client {i + 1}" for i in range(len(answered))]
    ax.set(xlabel="seconds since the first asked", yticks=range(len(answered)), yticklabels=names)
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    return ax


plot_turns(list(stage.answered));

# %% [markdown]
# Each coloured bar begins where the one before it ends, in the order in which they asked: that is all there is to being fair. The third client's bar ends at the token after it had left, and the fourth was answered so much earlier.

# %% tags=["check"]
turns = list(stage.answered)
assert [a.asked_s for a in turns] == sorted(a.asked_s for a in turns)
assert all(before.ended_s <= after.began_s for before, after in zip(turns, turns[1:]))
assert len(turns[2].answer_ids) <= 4 and turns[2].finish == ""
expected = [homer.says(q[1], max_new_tokens=24) for q in questions if q[0] == homer.name]
assert [said[0], said[3]] == expected[::2] and expected[1].startswith(said[2]) and expected[1] != said[2]
try:
    async for _ in stage.stream("Krusty", "", []):
        pass
    raise AssertionError
except Refused as e:
    assert e.status == 404 and "Homer Simpson" in str(e)

# %% [markdown]
# And when the queue is full? A stage with room for two, asked by five at once: one is answered, two wait, two are told to come later. Who has the patience to do so, as OpenAI's clients have, is answered after all.

# %% tags=["example"]
small = Stage({"Homer Simpson": homer}, most_waiting=2)
taken: list = []
for _ in range(5):
    try:
        taken.append(small.ask("Homer Simpson", "", lines_of(questions[0][1]), sampling=words))
        await asyncio.sleep(0.02)  # the first one's turn begins
    except Full as e:
        print(e.status, e)
small.close()
len(taken)


# %% [markdown]
# Whatever else needs the model, such as asking it who speaks next, has to wait for its turn, too: two threads in one model would switch its adapters under each other's hands.

# %%
#| export
class Errand(Asked):
    "Something else that is done with the model."

    def __init__(
        self,
        f,  # a function without arguments
    ):
        super().__init__("", "", [], 0, Sampling())
        self.f = f

    def do(
        self,
        cast: dict[str, Character],  # who is there
    ):
        "Do it, unless nobody wants it any more."
        if not self.gone:
            self.tell((self.f(),))


async def in_turn(
    stage: Stage,  # whose thread does it
    f,  # a function
    *given,  # its arguments
):  # its result; raises what it raises, and Full where there is no room
    "Do something with the model when those who came before are answered."
    errand = Errand(partial(f, *given))
    stage.queue.join(errand)
    try:
        result = await errand.pieces.get()
        if isinstance(result, BaseException):
            raise result
        return result[0]
    finally:
        stage.queue.leave(errand)


# %% [markdown]
# A sum that takes a moment, in its turn. Of two errands, one is called off before its turn comes; it is not done:

# %% tags=["check"]
done: list = []
assert await in_turn(stage, sum, [1, 2, 3]) == 6
first, second = (Errand(partial(done.append, i)) for i in (1, 2))
stage.queue.join(first)
stage.queue.join(second)
stage.queue.leave(second)
await first.pieces.get()
await in_turn(stage, done.append, 3)
assert done == [1, 3]
stage.close()
try:
    await in_turn(stage, sum, [])
    raise AssertionError
except Refused as e:
    assert e.status == 503

# %% [markdown]
# You can now let many talk to one model, in the order in which they came, and say to each who cannot why not.

# %% [markdown]
# ### Exercises
#
# 1. Clients ask one after the other, a hundredth of a second apart, and each answer takes a second. How long does the tenth wait, if who came *last* were answered first, and on the stage of this chapter? Who pays for the difference?
# 2. A reader says that an answer has to end before `"tie"`, and the model draws `" my t"` and `"ire"`. When is the reader told of the `t`?

# %% tags=["check"]
# 1: the first is being answered when the others come; then last come, first served
asked_at = [0.01 * i for i in range(10)]
first_come = [i - t for i, t in enumerate(asked_at)]
last_come = [asked_at[0], *(10 - i - t for i, t in enumerate(asked_at) if i)]
assert round(first_come[9], 2) == 8.91 and round(last_come[9], 2) == 0.91
# the second pays: it waits for all who came later, and for ever if they keep coming
assert max(last_come) == last_come[1] == 9 - 0.01 and abs(sum(first_come) - sum(last_come)) < 1e-9
# 2: with the next piece, when it is clear that no "tie" begins there
assert list(ended_by([" my t", "ire"], ("tie",))) == [" my ", "tire"]
