# %%
#| default_exp talk.serve

# %% [markdown]
# # Serving
#
# > A character behind an address: other people's tools talk to it as they talk to OpenAI's models.
#
# So far who asked sat in the program that held the model. A *server* is a program that holds the model and waits; others, in any language, on this machine or on another, send it a question over the network and read the answer. What they send and what comes back has to be agreed upon, and most tools have agreed: nearly every chat window, editor and library can talk to OpenAI's address, and to any other that is built like it. So this chapter builds that: `simpsons-llm serve --run runs/x`. A question and its answer, in short:
#
# ```json
# {"model": "Homer Simpson", "messages": [{"role": "user", "content": "The dog is wearing your tie again."}]}
# {"model": "Homer Simpson", "choices": [{"message": {"role": "assistant", "content": "It suits him."}}]}
# ```
#
# Two things are hard about it. Tools send *messages*, but a character was trained on *scenes*: what the model reads must be the prompt of its training, token for token. And whatever arrives, a server answers, or says what was wrong, and goes on. That one model is asked by many at once is [the stage's](61_stage.ipynb) business. What is left out: encryption and accounts, which a web server in front of this one does better.

# %%
#| export
import asyncio
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import shlex
import signal
import socket
import threading
import time
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from simpsons_llm.data.lines import Line, clean, name_key
from simpsons_llm.machine.job import JobConfig, require
from simpsons_llm.model.character import Character, load_cast
from simpsons_llm.model.decode import SAMPLING
from simpsons_llm.model.infer import SOMEBODY, lines_of, most_tokens, typed_prompt
from simpsons_llm.talk.stage import Asked, Full, HungUp, Refused, Stage

# %%
#| hide
import urllib.error
import urllib.request

from simpsons_llm.data.prompt import prompt_tokens


# %% [markdown]
# ## From messages to a scene
#
# A request for a chat holds a list of messages, each with a *role*: `system` tells the model who it is, `user` is a person, `assistant` is the model. A character was trained on something else: a place, and lines that several people say. The one has to become the other, and there is a natural way:
#
# | message | becomes |
# |---|---|
# | `system` | the place of the scene, on one line; at most one |
# | `assistant` | the character's own line |
# | `user` with a `name` | that person's line |
# | `user`, every row such as `Name: line` | those lines |
# | `user`, anything else | a line of the person whom you play |
#
# Whom do you play? A name that the model knows serves best: without another word it is the character with the most lines that is not the one you talk to. Where the model knows nobody else, it is a stranger.
#
# A text from the network may hold what no script has: half characters, which no tokenizer can read, and control characters. It may be empty, or long without end. Each is refused with a sentence that says what was given and what to do. What was given is shown in it, but not all of it:

# %%
#| export
def expect(
    condition,  # what has to be true
    message: str,  # what was given, what was expected, what to do
    param: str | None = None,  # the field at fault
    status: int = 400,  # of HTTP
    code: str | None = None,  # what a program may look for
):
    "Refused unless it is true."
    if not condition:
        raise Refused(message, param, status, code)


def shown(
    value,  # anything from a request
) -> str:  # at most 60 characters, all of them printable
    "What was given, in a message."
    try:
        text = repr(value[:60]) if isinstance(value, str) else json.dumps(value)
    except (ValueError, RecursionError):  # nested too deep
        text = f"a {type(value).__name__}"
    return text[:70] + "..." * (len(text) > 70 or isinstance(value, str) and len(value) > 60)


# %% [markdown]
# How much is too much? A scene of the book has about ten lines; these limits leave room for a hundred times as much, and are small for the machine:

# %%
#| export
@dataclass(frozen=True)
class Limits:
    "The most that a request may hold."

    body_bytes: int = 1 << 20  # of a request
    body_s: float = 20.0  # seconds that a request may take to arrive
    messages: int = 1000  # of a scene
    letters: int = 64_000  # characters of all messages together
    name_letters: int = 60  # characters of a speaker's name, as where scripts are read
    location_letters: int = 300  # characters of a place
    answers: int = 8  # to one request
    tokens: int = 256  # of an answer; who asks for more gets these


NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def some_text(
    value,  # what stands in the request
    param: str,  # where
    most: int,  # characters, 1 or more
) -> str:  # Refused if it is no text, empty, too long, or holds what no script does
    "A text that can be read."
    expect(isinstance(value, str), f"{param}={shown(value)} was given; expected a text", param)
    expect(len(value) <= most, f"{param} has {len(value)} characters; expected at most {most}", param)
    expect(value.strip(), f"{param} is empty; expected what is said, such as 'Dinner is ready.'", param)
    odd = NOT_TEXT.search(value)
    where = f"U+{ord(odd[0]):04X} at position {odd.start()}" if odd else ""
    expect(not odd, f"{param} holds {where}, which is no letter of a text; leave it out", param)
    return value


# %% [markdown]
# A message's content is a text, or a list of parts that are texts. Fields that belong to tools and pictures may stand there without a value, as clients send back what they were given:

# %%
#| export
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def message_text(
    message,  # one message
    param: str,  # where it stands, such as "messages[2]"
    limits: Limits,  # the most that it may hold
) -> tuple:  # (role, name or "", text); Refused for anything else
    "Who says what in a message."
    expect(isinstance(message, dict), f"{param}={shown(message)} was given; expected an object", param)
    role = message.get("role")
    known = isinstance(role, str) and role in ROLES
    expect(known, f"role={shown(role)} was given; expected {', '.join(ROLES)}", f"{param}.role")
    for field in sorted(set(message) - {"role", "content", "name"}):
        expect(
            not message[field],
            f"{shown(field)} was given in a message, which has no meaning here; expected role, content and name",
            f"{param}.{field[:60]}",
        )
    content, where = message.get("content"), f"{param}.content"
    if isinstance(content, list):
        for part in content:
            plain = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            expect(plain, f"{shown(part)} was given; expected parts of type text, since characters only read", where)
        content = "\n".join(part["text"] for part in content)
    name = message.get("name")
    if name is not None:
        name = clean(some_text(name, f"{param}.name", limits.name_letters))
    return ROLES[role], name or "", some_text(content, where, limits.letters)


# %% [markdown]
# And the scene. Names are spelt as the model knows them, so `marge-simpson`, which clients prefer that allow no blanks in names, is Marge Simpson.

# %%
#| export
def scene_of(
    messages,  # of a request
    speaker: str,  # who answers
    you: str,  # who says what nobody is named for
    names: tuple = (),  # names whose spelling is known
    limits: Limits = Limits(),  # the most that a request may hold
) -> tuple:  # (location, `Line`s); Refused for what is no scene
    "What a character is asked with."
    good = isinstance(messages, list) and 0 < len(messages) <= limits.messages
    number = len(messages) if isinstance(messages, list) else shown(messages)
    expect(good, f"messages={number} was given; expected a list of 1 to {limits.messages} messages", "messages")
    spelt, letters = {name_key(n): n for n in names}, 0
    location, lines = "", []
    for i, message in enumerate(messages):
        param = f"messages[{i}]"
        role, name, text = message_text(message, param, limits)
        letters += len(text)
        expect(
            letters <= limits.letters, f"more than {limits.letters} characters were given; leave out some", "messages"
        )
        if role == "system":
            short = len(text) <= limits.location_letters
            told = f"the system message is the place of the scene, on at most {limits.location_letters} characters"
            expect(short, f"{told}; {len(text)} were given; make it shorter, or leave it out", f"{param}.content")
            expect(not location, f"{told}; a second one was given; leave it out", param)
            location = clean(text)
            continue
        rows = lines_of(text)
        if role == "assistant" or name or not all(row.speaker for row in rows):
            who = spelt.get(name_key(name), name) if name else speaker if role == "assistant" else you
            rows = [Line(0, 0, who, clean(text))]
        lines += rows
    return location, [line._replace(number=i) for i, line in enumerate(lines)]


# %% [markdown]
# A scene at Moe's, as a chat window would send it:

# %% tags=["example"]
moes = [
    {"role": "system", "content": "Moe's Tavern"},
    {"role": "user", "content": "Moe Szyslak: Closed.\nBarney Gumble: It is noon, Moe."},
    {"role": "assistant", "content": "Then it is nearly evening."},
    {"role": "user", "content": "You promised to fix the roof."},
    {"role": "user", "name": "bart-simpson", "content": "He promised me a pony, too."},
]
location, lines = scene_of(moes, "Homer Simpson", "Marge Simpson", ("Homer Simpson", "Marge Simpson", "Bart Simpson"))
print(f"[{location}]", *(f"{line.speaker}: {line.text}" for line in lines), sep="\n")


# %% tags=["check"]
def refusal(f, *given):
    "The sentence with which something is refused."
    try:
        f(*given)
    except Refused as e:
        return str(e)
    raise AssertionError(given)


def asked_with(*messages):
    return scene_of(list(messages), "Homer Simpson", "Marge Simpson")


assert lines[:2] == lines_of(moes[1]["content"])
assert asked_with({"role": "user", "content": "I asked:\nwhy?"})[1] == [Line(0, 0, "Marge Simpson", "I asked: why?")]
assert "U+0000" in refusal(asked_with, {"role": "user", "content": "D'oh\0"})
assert "U+D83D" in refusal(asked_with, {"role": "user", "content": "\ud83d"})
assert "list of 1" in refusal(asked_with) and "tool" in refusal(asked_with, {"role": "tool", "content": "5"})
assert "second" in refusal(asked_with, moes[0], moes[0]) and "empty" in refusal(
    asked_with, {"role": "user", "content": " "}
)


# %% [markdown]
# The older form of OpenAI's interface has no messages, only a text to be gone on with. Here it is rows of `Name: line`, as everywhere in this book. A first row in brackets is the place; a last row that is the character's name with nothing behind it is where the answer begins anyway.

# %%
#| export
def scene_of_text(
    prompt,  # "Name: line" rows
    speaker: str,  # who answers
    limits: Limits = Limits(),  # the most that a request may hold
) -> tuple:  # (location, `Line`s); Refused for what is no text
    "What a character is asked with, from a text."
    scene = typed_prompt(some_text(prompt, "prompt", limits.letters))
    location, asked = scene["location"], scene["speaker"]
    many = len(location) > limits.location_letters
    expect(not many, f"the place has {len(location)} characters; expected {limits.location_letters} at most", "prompt")
    told = f"the text ends with the name of {shown(asked)}, and {speaker} is asked; leave it out, or ask for that model"
    expect(not asked or name_key(asked) == name_key(speaker), told, "prompt")
    lines = lines_of(scene["prompt"])
    many = len(lines) > limits.messages
    expect(not many, f"{len(lines)} rows were given; expected {limits.messages} at most", "prompt")
    return location, lines


# %% tags=["example"]
scene_of_text("[Moe's Tavern]\nMoe Szyslak: Closed.\nHomer Simpson:", "Homer Simpson")

# %% [markdown]
# ## The other fields
#
# A request may also say how words are drawn. Names and ranges are those of OpenAI's interface; `top_k`, `min_p` and `repetition_penalty` come besides, as other servers have them. What does it help a client to know that a field has no effect? Much: so a field that is not known is refused, as OpenAI's own server does, and so is a known one that asks for what is not done here, such as tools. Notes for the bookkeeping of others are let through.

# %%
#| export
NUMBERS: dict = {  # field -> (least, most, whole number)
    "n": (1, Limits.answers, True),
    "seed": (-(2**63), 2**64 - 1, True),
    "temperature": (0, 2, False),
    "top_p": (0.001, 1, False),
    "max_tokens": (1, 10**9, True),
    "max_completion_tokens": (1, 10**9, True),
    "top_k": (0, 10**6, True),
    "min_p": (0, 1, False),
    "repetition_penalty": (0.1, 10, False),
}
OTHERS = ("model", "stream", "stream_options", "stop")
NOTES = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "reasoning_effort")
ONLY: dict = {  # field -> values that ask for nothing
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "echo"), (0,)),
    **dict.fromkeys(("tools", "functions", "logit_bias", "suffix"), ([], {}, "")),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
}


def known_fields(
    body,  # a request's JSON
    own: str,  # the field that holds what was said: "messages" or "prompt"
) -> dict:  # its fields that have a value and an effect; Refused for others
    "A request that asks for nothing that is not done here."
    expect(isinstance(body, dict), f"{shown(body)} was given; expected a JSON object with model and {own}")
    given = {k: v for k, v in body.items() if v is not None and k not in NOTES}
    for name in [k for k in given if k not in (own, *NUMBERS, *OTHERS)]:
        expect(name in ONLY, f"{shown(name)} is not known here; leave it out", name[:60], code="unknown_parameter")
        told = f"{name}={shown(given[name])} was given, which is not done here; leave it out"
        expect(given.pop(name) in ONLY[name], told, name, code="unsupported_parameter")
    for name, (least, most, whole) in NUMBERS.items():
        if name in given:
            x = given[name]
            good = isinstance(x, int if whole else (int, float)) and not isinstance(x, bool) and least <= x <= most
            kind = "a whole number" if whole else "a number"
            expect(good, f"{name}={shown(x)} was given; expected {kind} from {least} to {most}", name)
    expect(
        isinstance(given.get("model", ""), str),
        f"model={shown(given.get('model'))} was given; expected a name",
        "model",
    )
    expect(own in given, f"{own} is missing; expected what was said before", own)
    return given


# %% [markdown]
# What is left becomes the settings of [how a word is drawn](../3_model/32_decode.ipynb). A temperature of 0 means the most likely word each time. A limit of tokens above that of the server is no error, since it is only a limit; a model cannot answer in more tokens than half of those it can take, either.

# %%
#| export
def drawn_as(
    given: dict,  # what `known_fields` gave
    character: Character,  # who answers
    limits: Limits = Limits(),  # the most tokens
) -> dict:  # random_seed, sampling and stop, as `Stage.ask` takes them; Refused for a stop that is none
    "How words are drawn for a request."
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    settings = {name: given[name] for name in names if name in given}
    if settings.get("temperature", 1) < 0.01:
        settings |= {"temperature": 1.0, "do_sample": False}
    asked = given.get("max_completion_tokens", given.get("max_tokens", character.sampling.max_new_tokens))
    most = min(asked, limits.tokens, max(1, most_tokens(character.model, character.maker) // 2))
    stop = given.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    good = isinstance(stop, list) and len(stop) <= 4 and all(isinstance(s, str) and 0 < len(s) <= 100 for s in stop)
    expect(good, f"stop={shown(stop)} was given; expected a text, or up to 4, of 1 to 100 characters", "stop")
    return {
        "sampling": character.sampling.changed(max_new_tokens=most, num_beams=1, **settings),
        "random_seed": given["seed"] % 2**64 if "seed" in given else secrets.randbelow(2**63),
        "stop": tuple(stop),
    }


# %% tags=["example"]
somebody = Character.load("tiny", "Homer Simpson", device="cpu")
drawn_as(known_fields({"messages": [], "temperature": 0, "max_tokens": 4096, "seed": -1}, "messages"), somebody)

# %% tags=["check"]
for wrong in ({"temperature": 3}, {"n": True}, {"seed": 1.5}, {"top_p": float("nan")}, {"tools": [{}]}, {"typo": 1}):
    assert next(iter(wrong)) in refusal(known_fields, {"messages": [], **wrong}, "messages"), wrong
assert known_fields({"messages": 1, "logprobs": False, "user": "x", "stop": None}, "messages") == {"messages": 1}
for stop in ([""], 5, ["a"] * 5):
    assert "stop" in refusal(drawn_as, {"stop": stop}, somebody)


# %% [markdown]
# ## What goes back
#
# An answer is JSON whose fields are laid down. In a *stream* the pieces come as they are drawn, each in a line that begins with `data: `, with an empty line behind it; this form is older than chat windows and called server-sent events.

# %%
#| export
class Reply:
    "How answers look: in the form of chats or of texts."

    def __init__(
        self,
        chat: bool,  # a chat's form; False: a text's
        model: str,  # the character's name
    ):
        self.chat, prefix, kind = chat, *(("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion"))
        self.head: dict[str, Any] = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def usage(
        self,
        asked: list,  # what was asked, and answered
    ) -> dict:  # numbers of tokens
        "What was read and drawn; a prompt counts once."
        read, drawn = len(asked[0].prompt_ids), sum(len(a.answer_ids) for a in asked)
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}

    def whole(
        self,
        asked: list,  # what was asked
        texts: list,  # the answers
    ) -> dict:
        "All answers at once."
        said = [{"message": {"role": "assistant", "content": t}} if self.chat else {"text": t} for t in texts]
        ends = [{"index": i, "finish_reason": a.finish, "logprobs": None} for i, a in enumerate(asked)]
        return {**self.head, "choices": [a | b for a, b in zip(ends, said)], "usage": self.usage(asked)}

    def event(
        self,
        i: int = -1,  # which answer; -1: none
        text: str = "",  # a piece of it
        end: str | None = None,  # why it ended; None: it goes on
        begins: bool = False,  # the first piece of an answer
        **more,  # further fields
    ) -> str:  # of a stream
        "A piece of an answer."
        delta = {"role": "assistant", "content": ""} if begins else {"content": text} if text else {}
        said = {"delta": delta} if self.chat else {"text": text}
        choices = [{"index": i, **said, "finish_reason": end, "logprobs": None}] if i >= 0 else []
        head = {**self.head, "object": self.head["object"] + ".chunk" * self.chat}
        return f"data: {json.dumps({**head, 'choices': choices, **more}, ensure_ascii=False)}\n\n"


# %% tags=["example"]
print(Reply(True, "Homer Simpson").event(0, " D'oh"))

# %% [markdown]
# And what is refused has a form, too. A mistake of the program itself is status 500; what it was stands in the server's log and is no business of the client.

# %%
#| export
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error"}


def error_body(
    message: str,  # what was given, what was expected, what to do
    status: int = 400,  # of HTTP
    param: str | None = None,  # the field at fault
    code: str | None = None,  # what a program may look for
) -> dict:
    "An error as OpenAI's clients read it."
    kind = KINDS.get(status, "invalid_request_error")
    # half a character that somebody sent cannot be sent back
    plain = [text and text.encode("utf8", "backslashreplace").decode() for text in (message, param)]
    return {"error": {"message": plain[0], "type": kind, "param": plain[1], "code": code}}


def fault_body(
    e: Exception,  # a mistake of the program
) -> dict:
    "What is told of a mistake; the rest goes into the server's log."
    logging.getLogger("uvicorn.error").error("an answer failed", exc_info=e)
    return error_body("the server made a mistake; what it was stands in its log", 500)


def error_reply(
    message: str,  # what was given, what was expected, what to do
    status: int = 400,  # of HTTP
    param: str | None = None,  # the field at fault
    code: str | None = None,  # what a program may look for
    retry_after_s: int = 0,  # seconds after which to ask again; 0: never
):  # a response
    "An error as a response."
    from starlette.responses import JSONResponse

    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(message, status, param, code), status, headers)


# %% tags=["example"]
error_body("'Krusty' is not here; expected one of Homer Simpson, Marge Simpson", 404, "model", "model_not_found")


# %% [markdown]
# ## Reading a request
#
# A request arrives in pieces, and may never end: its size and its time are limited. Only JSON is read, which is more than tidiness: a web page that somebody has open in a browser may send plain forms to any address of this machine, but JSON only where that address allows it.

# %%
#| export
async def read_json(
    request,  # a Starlette request
    limits: Limits = Limits(),  # the most bytes and seconds
):  # what the JSON says; Refused for what is none
    "A request's body."
    from starlette.requests import ClientDisconnect

    kind, body = request.headers.get("content-type", ""), bytearray()
    json_given = kind.partition(";")[0].strip().lower() == "application/json"
    expect(json_given, f"Content-Type: {shown(kind)} was given; expected application/json", status=415)
    try:
        async with asyncio.timeout(limits.body_s):
            async for piece in request.stream():
                body += piece
                large = len(body) > limits.body_bytes
                expect(not large, f"the request has more than {limits.body_bytes} bytes; send less", status=413)
    except TimeoutError:
        raise Refused(f"the request did not arrive within {limits.body_s:.0f} seconds; ask again", status=408) from None
    except ClientDisconnect:
        raise HungUp from None
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as e:  # no JSON, no UTF-8, numbers without end, nested too deep
        raise Refused(f"the request is not JSON that can be read ({str(e)[:100]}); send an object") from None


# %% [markdown]
# Before anything is read, two things are looked at. Where a key was agreed upon, it has to be there; keys are compared in a time that does not tell how many of their letters were right. Where none was, the server is for this machine alone; but a browser on this machine shows pages of strangers, and such a page can make its own name lead to this machine. It then asks with that name, and is refused. So is any page that asks from another address than the server's own.
#
# The guard also stands where a mistake of the program would come out. It is written into the server's log, and the client is told that there was one, no more.

# %%
#| export
HERE = ("localhost", "127.0.0.1", "::1")


class Guard:
    "Lets in who may come; the rest goes to the application."

    def __init__(
        self,
        app,  # the application behind it
        key: str = "",  # what a client has to know; empty: only this machine's names are let in
    ):
        self.app, self.key = app, key

    def against(
        self,
        path: str,  # what is asked for
        headers: dict,  # name -> value, of the request
    ) -> tuple:  # what `error_reply` takes; empty: come in
        "What speaks against a request."
        host = headers.get("host", "")
        if not self.key and urlsplit(f"//{host}").hostname not in HERE:
            return f"Host: {shown(host)} was given; expected localhost or 127.0.0.1", 403
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host:
            return f"a page of {shown(origin)} asked; expected one of this server", 403
        if self.key and path.startswith("/v1"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.key.encode())
            if scheme.lower() != "bearer" or not right:
                told = "no key was given" if not given else "another key was given"
                return f"{told}; expected the server's, as in: Authorization: Bearer KEY", 401, None, "invalid_api_key"
        return ()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            headers = {k.decode("latin1").lower(): v.decode("latin1") for k, v in scope["headers"]}
            try:
                against = self.against(scope["path"], headers)
            except ValueError:  # a host that is no address
                against = ("the address that was asked for cannot be read", 400)
            if against:
                return await error_reply(*against)(scope, receive, send)
            return await told_if_faulty(self.app, scope, receive, send)
        await self.app(scope, receive, send)


async def told_if_faulty(
    app,  # an application
    scope,  # of a request
    receive,  # gives what arrives
    send,  # takes what goes back
):
    "Call an application; its mistakes are told to the log, and that there was one to the client."
    from starlette.responses import JSONResponse

    begun = False

    async def watched(message):
        nonlocal begun
        begun = True
        await send(message)

    try:
        await app(scope, receive, watched)
    except Exception as e:
        if begun:
            raise  # the connection is cut
        await JSONResponse(fault_body(e), 500)(scope, receive, send)


# %% tags=["check"]
assert Guard(None).against("/v1/models", {"host": "127.0.0.1:8000"}) == ()
assert Guard(None).against("/v1/models", {"host": "evil.example:8000"})[1] == 403
assert Guard(None).against("/", {"host": "localhost:80", "origin": "http://evil.example"})[1] == 403
assert Guard(None, "sesame").against("/v1/models", {"authorization": "Bearer sesam"})[1] == 401
assert Guard(None, "sesame").against("/v1/models", {"authorization": "Bearer sesame"}) == ()


# %% [markdown]
# ## Answering
#
# A client that hangs up says nothing: its connection is closed, and whoever waits for that has to wait for the answer at the same time. What comes first wins:

# %%
#| export
async def unless_gone(
    request,  # a Starlette request whose body was read
    work,  # a coroutine
):  # what it gives; HungUp if the client left first
    "Do some work, as long as there is somebody to do it for."

    async def left():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HungUp
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# %% [markdown]
# A request for several answers takes as many places in the queue, with a seed each that is one higher. All are taken at once, so it is known at once whether there is room.

# %%
#| export
def take_places(
    stage: Stage,  # who answers
    name: str,  # of the character
    scene: tuple,  # (location, `Line`s)
    n: int,  # how many answers
    random_seed: int,  # of the first
    **how,  # sampling and stop
) -> list:  # what `Stage.ask` gave; Full where there is no room for all
    "A place in the queue for each answer."
    asked: list[Asked] = []
    try:
        for i in range(n):
            asked.append(stage.ask(name, scene[0], scene[1], (random_seed + i) % 2**64, **how))
    except Full:
        for a in asked:
            stage.queue.leave(a)
        raise
    return asked


# %% [markdown]
# Then a request can be answered, whatever its form:

# %%
#| export
STRANGER = "Stranger"  # says what nobody is named for, where the model knows nobody else


def partner(
    stage: Stage,  # who answers
    character: Character,  # who is asked
) -> str:  # a name
    "Whom a character is likely to talk to: of those whom the model knows, who has most to say."
    others = (*character.known, *(c.name for c in stage.cast.values()))
    return next((n for n in others if n != character.name), STRANGER)


async def answer(
    stage: Stage,  # who answers
    request,  # a Starlette request
    chat: bool,  # whether it brings messages; False: a text
    you: str = "",  # who says what nobody is named for; empty: whom the character knows best
    limits: Limits = Limits(),  # the most that it may hold
):  # a response; Refused or HungUp
    "Answer one request."
    own = "messages" if chat else "prompt"
    given = known_fields(await read_json(request, limits), own)
    expect("model" in given, f"model is missing; expected one of {', '.join(list(stage.cast)[:8])}", "model")
    name = stage.find(given["model"])
    character = stage.cast[name]
    if chat:
        names = tuple(dict.fromkeys((*character.known, *(c.name for c in stage.cast.values()))))
        scene = scene_of(given[own], character.name, you or partner(stage, character), names, limits)
    else:
        text = given[own][0] if isinstance(given[own], list) and len(given[own]) == 1 else given[own]
        scene = scene_of_text(text, character.name, limits)
    streamed, options = given.get("stream", False), given.get("stream_options", {})
    expect(isinstance(streamed, bool), f"stream={shown(streamed)} was given; expected true or false", "stream")
    expect(
        isinstance(options, dict), f"stream_options={shown(options)} was given; expected an object", "stream_options"
    )
    asked = take_places(stage, name, scene, given.get("n", 1), **drawn_as(given, character, limits))
    reply = Reply(chat, name)
    if streamed:
        return await stream_reply(stage, request, asked, reply, bool(options.get("include_usage")))
    return await whole_reply(stage, request, asked, reply)


# %% [markdown]
# The answer at once, and the answer in pieces. A stream begins when its first piece is there: until then, what goes wrong can still be told by the status.

# %%
#| export
async def whole_reply(
    stage: Stage,  # who answers
    request,  # a Starlette request
    asked: list,  # places in the queue
    reply: Reply,  # how it looks
):  # a response
    "All answers to a request, when the last one has ended."
    from starlette.responses import JSONResponse

    async def texts():
        return ["".join([piece async for piece in stage.hear(a)]) for a in asked]

    try:
        return JSONResponse(reply.whole(asked, await unless_gone(request, texts())))
    finally:
        for a in asked:
            stage.queue.leave(a)


async def stream_reply(
    stage: Stage,  # who answers
    request,  # a Starlette request
    asked: list,  # places in the queue
    reply: Reply,  # how it looks
    include_usage: bool,  # tell the numbers of tokens at the end
):  # a response
    "The answers to a request, as they come."
    from starlette.responses import StreamingResponse

    heard = [stage.hear(a) for a in asked]

    async def events(first):
        try:
            for i, (a, pieces) in enumerate(zip(asked, heard)):
                if reply.chat:
                    yield reply.event(i, begins=True)
                if i == 0 and first:
                    yield reply.event(i, first)
                async for piece in pieces:
                    yield reply.event(i, piece)
                yield reply.event(i, end=a.finish)
            if include_usage:
                yield reply.event(usage=reply.usage(asked))
            yield "data: [DONE]\n\n"
        except Exception as e:
            told = error_body(e.message, e.status) if isinstance(e, Refused) else fault_body(e)
            yield f"data: {json.dumps(told)}\n\n"
        finally:
            for a in asked:
                stage.queue.leave(a)

    try:
        first = await unless_gone(request, anext(heard[0], ""))
    except BaseException:
        for a in asked:
            stage.queue.leave(a)
        raise
    return StreamingResponse(events(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


# %% [markdown]
# ## The application
#
# FastAPI finds out which function an address stands for, and calls it. Its own way of checking what arrives is not used, nor its pages that describe an interface: the first would have its own form of errors, the second load programs from elsewhere. A page of one's own may be added to the application.

# %%
#| export
def make_app(
    stage: Stage,  # who answers
    key: str = "",  # what a client has to know; empty: nothing, and only this machine's names are let in
    you: str = "",  # who says what nobody is named for; empty: whom the character asked knows best
    limits: Limits = Limits(),  # the most that a request may hold
):  # a FastAPI application, to which more addresses may be added
    "The server as an application."
    needs_packages()
    from fastapi import FastAPI, Request

    app = FastAPI(title="simpsons_llm", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, key=key)
    add_errors(app)
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "simpsons_llm"} for name in stage.cast]

    async def list_models():
        return {"object": "list", "data": models}

    async def one_model(name: str):
        return models[list(stage.cast).index(stage.find(name))]

    async def chat(request: Request):
        return await answer(stage, request, True, you, limits)

    async def complete(request: Request):
        return await answer(stage, request, False, you, limits)

    async def health():
        return {"status": "ok", "waiting": len(stage.queue.waiting)}

    app.get("/health")(health)
    app.get("/v1/models")(list_models)
    app.get("/v1/models/{name:path}")(one_model)
    app.post("/v1/chat/completions", response_model=None)(chat)
    app.post("/v1/completions", response_model=None)(complete)
    return app


def needs_packages():
    "ValueError where what serves is not installed."
    missing = [name for name in ("fastapi", "uvicorn") if not find_spec(name)]
    told = f"{' and '.join(missing)} is needed to serve, and not installed"
    require(not missing, f'{told}; pip install "simpsons_llm[serve]"')


def add_errors(
    app,  # a FastAPI application
):
    "Whatever goes wrong becomes JSON."
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    async def refused(request, e):
        return error_reply(e.message, e.status, e.param, e.code, e.retry_after_s)

    async def elsewhere(request, e):
        told = f"{request.method} {shown(request.url.path)} was asked for: {e.detail}"
        return error_reply(f"{told}; expected /v1/models, /v1/chat/completions or /v1/completions", e.status_code)

    async def gone(request, e):
        return Response(status_code=499)  # nobody reads it

    for kind, handler in ((Refused, refused), (HTTPException, elsewhere), (HungUp, gone)):
        app.add_exception_handler(kind, handler)


# %% [markdown]
# ## At an address
#
# A server listens at a *port*, a number of which each program needs its own. Who can reach it? At `127.0.0.1`, the address by which a machine calls itself, nobody from outside; that is where a server without a key stays. A port of 0 takes one that is free.

# %%
#| export
def open_port(
    host: str = "127.0.0.1",  # an address of this machine
    port: int = 8000,  # 0..65535; 0: a free one
    key: str = "",  # what a client has to know
) -> socket.socket:  # bound, not yet listening; ValueError where that cannot be
    "Take a port, before the slow work begins."
    require(0 <= port < 65536, f"port={port} was given; expected 0 (a free one) to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise ValueError(f"host={host!r} was given; expected an address of this machine, such as 127.0.0.1") from None
    inside = ipaddress.ip_address(address[0]).is_loopback
    require(inside or key, f"host={host!r} was given without a key; others can reach that address, so give a key, too")
    require(not key or key.isascii() and len(key) >= 8, "the key is too short or odd; expected 8 plain letters or more")
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as e:
        listener.close()
        told = f"port {port} of {host} cannot be taken ({e.strerror})"
        raise ValueError(f"{told}; is another server running? Give another port, or 0 for a free one") from None
    return listener


def address_of(
    listener: socket.socket,  # what `open_port` gave
) -> str:  # such as http://127.0.0.1:8000
    "Where a server is reached."
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


# %% [markdown]
# uvicorn takes connections and speaks HTTP. It ends when it is told to, by Ctrl-C or by the system, lets answers that have begun go on for three seconds, and lets nobody in meanwhile.

# %%
#| export
def server_of(
    app,  # an application
):  # a uvicorn server, not yet running
    "What takes connections."
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3)
    )


@contextmanager
def served(
    app,  # an application
):  # the address, for the length of a `with` block
    "A server in a thread of this process, at a free port of this machine."
    with closing(open_port(port=0)) as listener:
        server = server_of(app)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join(timeout=30)


# %% [markdown]
# ## The command
#
# Now everything is there; `pip install "simpsons_llm[serve]"` brings the packages. The key may stand in the environment variable `SIMPSONS_LLM_KEY`, where other users of the machine cannot read it, as they can what a command was called with.

# %%
#| export
@dataclass
class ServeConfig(JobConfig):
    "Settings of the command serve."

    repeated = ("run", "speaker")
    run: str = ""  # a run's folder, an adapter's or an exported model's; empty: the base model alone
    speaker: str = ""  # who can be asked; empty: everybody whom the runs learned (a base model: Homer Simpson)
    you: str = ""  # who says what nobody is named for; empty: whom the character asked knows best
    host: str = "127.0.0.1"  # an address of this machine; 0.0.0.0: all of them, which needs a key
    port: int = 8000  # 0..65535; 0: a free one
    key: str = ""  # what clients have to send, 8 letters or more; empty: what $SIMPSONS_LLM_KEY says, or none
    most_waiting: int = 64  # how many may wait for an answer; who comes then is told to come later
    base_model: str = "auto"  # a hub id, folder or short name; auto: the run's own, or the one for this device
    sampling: str = "book"  # how words are drawn unless a request says so: book or greedy
    device: str = "auto"  # xpu, cuda, cpu; auto: the best there is
    dtype: str = "auto"  # bfloat16, float32; auto: as the device has it

    def check(self):
        self.key = self.key or os.environ.get("SIMPSONS_LLM_KEY", "")
        require(self.sampling in SAMPLING, f"sampling={self.sampling!r} was given; expected {', '.join(SAMPLING)}")
        require(self.most_waiting >= 1, f"most_waiting={self.most_waiting} was given; expected 1 or more")
        you = len(self.you) <= Limits.name_letters and all(c.isprintable() for c in self.you)
        require(you, f"you={self.you[:80]!r} was given; expected a name of at most {Limits.name_letters} letters")


def curl_command(
    url: str,  # of a server, such as http://127.0.0.1:8000
    model: str,  # the model's name there
    said: str,  # what is said to the character
    key: bool = False,  # whether one has to be sent; it is taken from the environment
) -> str:  # a line for the shell
    "How a server is asked, whichever it is."
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": said}]}, ensure_ascii=False)
    header = ' -H "Authorization: Bearer $SIMPSONS_LLM_KEY"' if key else ""
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d {shlex.quote(body)}"


def first_words(
    stage: Stage,  # who answers
    url: str,  # where
    key: bool,  # whether one has to be sent
) -> str:
    "What is shown when a server is ready."
    names = list(stage.cast)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    asked = curl_command(url, names[0], "The dog is wearing your tie again.", key)
    return f"{', '.join(names[:5])}{more} can be asked at {url}/v1 (Ctrl-C ends it). Try:\n  {asked}"


def serve(
    config: ServeConfig,  # the settings
):  # ValueError or FileNotFoundError for what cannot be
    "Answer until told to end."
    needs_packages()
    with closing(open_port(config.host, config.port, config.key)) as listener:
        runs = [r for r in config.run.split("\n") if r]
        names = [n for n in config.speaker.split("\n") if n] or ([] if runs else [SOMEBODY])
        cast = load_cast(
            runs or config.base_model,
            names,
            None if config.base_model == "auto" else config.base_model,
            config.device,
            config.dtype,
            SAMPLING[config.sampling].changed(num_beams=1),
        )
        with closing(Stage(cast, config.most_waiting)) as stage:
            listener.listen(128)
            print(first_words(stage, address_of(listener), bool(config.key)), flush=True)
            until_told(server_of(make_app(stage, config.key, config.you)), listener)
            print("ended", flush=True)


def until_told(
    server,  # what `server_of` gave
    listener: socket.socket,  # what `open_port` gave
):
    "Run a server until Ctrl-C, or until the system ends it; both are a good end. Only in a program's first thread."
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            server.run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)


# %% [markdown]
# A client that knows nothing of this book asks a server that was started by `simpsons-llm serve` like this, with the package of OpenAI:
#
# ```python
# from openai import OpenAI
#
# client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
# answer = client.chat.completions.create(
#     model="Homer Simpson",
#     messages=[{"role": "user", "content": "The dog is wearing your tie again."}],
#     seed=42,
# )
# print(answer.choices[0].message.content)
# ```
#
# and in a shell like this:
#
# ```bash
# curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
#   -d '{"model": "Homer Simpson", "messages": [{"role": "user", "content": "The dog is wearing your tie again."}]}'
# ```
#
# Chat windows such as Open WebUI ask for a base URL and a key: the URL is the one that ends in `/v1`, and the key anything, where the server was given none.

# %% [markdown]
# What do such clients send and get? Here is a server in this notebook, and a client of six lines, with the library that comes with Python. The base model plays. First the answer piece by piece, as it comes over the network:

# %% tags=["example"]
homer = Character.load("smollm2-135m", "Homer Simpson", device="cpu", dtype="float32")
stage = Stage({f"{n} Simpson": Character(f"{n} Simpson", homer.model, homer.maker) for n in ("Homer", "Marge", "Bart")})


def post(url, key="", **asked):
    "Status and text of a reply."
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode(), headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


asked = {"model": "homer-simpson", "messages": moes, "max_tokens": 20, "seed": 42}
with served(make_app(stage)) as url:
    _, streamed = await asyncio.to_thread(post, url, **asked, stream=True)
    _, whole = await asyncio.to_thread(post, url, **asked)
print(
    *(event[event.index('"choices"') :] for event in streamed.split("\n\n")[:4]),
    "...",
    streamed[-15:].strip(),
    sep="\n",
)

# %% [markdown]
# And at once:

# %% tags=["example"]
whole = json.loads(whole)
whole["choices"], whole["usage"]

# %% [markdown]
# What did the model read? Nothing but the prompt of its training, to the last token, and so it says what a `Character` says:

# %% tags=["check"]
read = stage.answered[-1].prompt_ids
expected = prompt_tokens(homer.maker, "Moe's Tavern", lines, "Homer Simpson")[0].ids
assert read == expected and whole["usage"]["prompt_tokens"] == len(expected)
scene = [f"{line.speaker}: {line.text}" for line in lines]
assert whole["choices"][0]["message"]["content"] == homer.says(scene, "Moe's Tavern", max_new_tokens=20)
events = [json.loads(event[6:])["choices"][0]["delta"] for event in streamed.split("\n\n")[:-2]]
assert "".join(delta.get("content", "") for delta in events) == whole["choices"][0]["message"]["content"]

# %% tags=["example"]
print(homer.maker.tokenizer.decode(read))

# %% [markdown]
# What is wrong is told, and the server goes on:

# %% tags=["example"]
with served(make_app(stage, key="sesame-open")) as url:
    for key, wrong in (("sesame", {}), ("sesame-open", {"model": "Krusty"}), ("sesame-open", {"temperature": 3})):
        status, reply = await asyncio.to_thread(post, url, key, **{**asked, **wrong})
        print(status, json.loads(reply)["error"]["message"])

# %% tags=["check"]
stage.close()
for wrong in (dict(port=65536), dict(host="0.0.0.0", port=0), dict(host="nowhere.invalid"), dict(key="short")):
    try:
        open_port(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert str(next(iter(wrong.values()))) in str(e) or "key" in str(e), e
with closing(open_port(port=0)) as listener:
    listener.listen(1)
    try:
        open_port(port=listener.getsockname()[1])
        raise AssertionError
    except ValueError as e:
        assert "another server" in str(e)

# %% [markdown]
# Is there no server that could be used as it is? transformers brings one, `transformers serve`, and a chat template could write most of our prompt; but it hands the template only the role and the content of a message, so a speaker's `name` is lost, and it turns the written prompt into tokens as a whole, so that a user who types `<|im_end|>` ends a turn. [A template](65_template.ipynb) makes an exported folder ready for it and others like it, as far as that goes; where many characters share a model, and what is read has to be what was trained on to the last token, this chapter's server is the smaller way.
#
# You can now let any program talk to a character, many of them at once, and tell each what it did wrong.

# %% [markdown]
# ### Exercises
#
# 1. A tool sends `{"role": "user", "content": "Bart: Ay!\nLisa: Bart..."}` to Homer. How many lines does the model read, and who says them? And if the second row were `Lisa sighs.`?
# 2. Why does a server on this machine alone look at a request's `Host`, when nobody else can reach it?

# %% tags=["check"]
# 1: two, by Bart and Lisa; with a row that names nobody it is one line of the person who is played
two = asked_with({"role": "user", "content": "Bart: Ay!\nLisa: Bart..."})[1]
assert two == [Line(0, 0, "Bart", "Ay!"), Line(0, 1, "Lisa", "Bart...")]
one = asked_with({"role": "user", "content": "Bart: Ay!\nLisa sighs."})[1]
assert one == [Line(0, 0, "Marge Simpson", "Bart: Ay! Lisa sighs.")]
# 2: the scripts of any page in a browser on this machine can; the browser says which name they asked for
rebound = Guard(None).against("/v1/chat/completions", {"host": "evil.example:8000"})
assert rebound[1] == 403 and "localhost" in rebound[0]
