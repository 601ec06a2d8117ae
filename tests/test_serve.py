"Serving: what is asked over the network is the book's own prompt, everybody gets a turn, and nothing ends it."

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from conftest import CLI

from simpsons_llm.data import lines, prompt
from simpsons_llm.data.lines import Line
from simpsons_llm.data.prompt import CHATML, TextMaker, prompt_ids
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.cli import main
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.base import load_base, tiny_model
from simpsons_llm.model.character import Character, load_cast
from simpsons_llm.model.infer import lines_of
from simpsons_llm.talk import serve
from simpsons_llm.talk.serve import make_app, served
from simpsons_llm.talk.stage import Errand, Refused, Stage, in_turn

SAID = "Marge Simpson: Homer, the dog is wearing your tie again."
MESSAGE = {"role": "user", "name": "Marge Simpson", "content": "Homer, the dog is wearing your tie again."}
HOMER = {"model": "Homer Simpson", "messages": [MESSAGE]}


def adapter(folder, seed, *names):
    "An adapter over the tiny model, as if it had been trained."
    torch.manual_seed(seed)
    model = add_adapter(load_base("tiny", find_device("cpu", "float32"))[0], LoRASettings(r=4, lora_alpha=8))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    speakers = {n: 9 - i for i, n in enumerate(names)}
    save_adapter(model, folder / "adapter", {"base_model": "tiny", "template": "script", "speakers": speakers})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return adapter(tmp_path_factory.mktemp("run"), 1, "Marge Simpson", "Homer Simpson", "Bart Simpson")


@pytest.fixture(scope="module")
def cast(folder):
    return load_cast(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def stage(cast):
    stage = Stage(cast)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def url(stage):
    with served(make_app(stage)) as url:
        yield url


@pytest.fixture(scope="module")
def chats(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions


@pytest.fixture
def slow(folder):
    "The same cast, with ten milliseconds before each piece."
    cast = load_cast(folder, device="cpu", dtype="float32")
    homer, reply = cast["Homer Simpson"], cast["Homer Simpson"].reply

    def slowly(*given):
        for piece in reply(*given):
            time.sleep(0.01)
            yield piece

    homer.reply = slowly
    stage = Stage(cast, most_waiting=10)
    says = load_cast(folder, device="cpu", dtype="float32")["Homer Simpson"].says
    # an answer that is long for sure
    stage.long = next(s for s in range(99) if len(says(SAID, random_seed=s, max_new_tokens=99)) > 80)
    yield stage
    stage.close()


def until(condition, seconds=10):
    "Wait for something that another thread does."
    end = time.perf_counter() + seconds
    while not condition() and time.perf_counter() < end:
        time.sleep(0.005)
    assert condition()


def test_models_are_the_characters(url):
    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert [m.id for m in api.models.list()] == ["Marge Simpson", "Homer Simpson", "Bart Simpson"]
    assert api.models.retrieve("homer-simpson").id == api.models.retrieve("Homer Simpson").id == "Homer Simpson"
    with pytest.raises(openai.NotFoundError, match="expected one of Marge Simpson"):
        api.models.retrieve("Krusty")


def test_an_answer_is_what_the_character_says_whole_or_in_pieces(chats, cast, stage):
    expected = [cast["Homer Simpson"].says(SAID, random_seed=seed) for seed in (7, 8)]
    answer = chats.create(**HOMER, seed=7, n=2)
    assert [c.message.content for c in answer.choices] == expected and expected[0] != expected[1]
    assert answer.usage.completion_tokens == sum(len(a.answer_ids) for a in list(stage.answered)[-2:])
    events = list(chats.create(**HOMER, seed=7, n=2, stream=True, stream_options={"include_usage": True}))
    pieces = [e.choices[0] for e in events if e.choices]
    for i in (0, 1):
        assert "".join(p.delta.content or "" for p in pieces if p.index == i) == expected[i]
    assert len(pieces) > 8 and events[-1].usage == answer.usage
    ends = [p.finish_reason for p in pieces if p.finish_reason]
    assert ends == [c.finish_reason for c in answer.choices]


def test_tokens_are_counted_and_the_end_is_told(chats, cast, stage):
    maker = cast["Homer Simpson"].maker
    cut = chats.create(**HOMER, seed=7, max_tokens=5)
    assert (cut.usage.completion_tokens, cut.choices[0].finish_reason) == (5, "length")
    assert cut.usage.prompt_tokens == len(prompt_ids(maker, "", lines_of(SAID), "Homer Simpson"))
    ended = next(a for s in range(99) if (a := chats.create(**HOMER, seed=s)).usage.completion_tokens < 60)
    assert ended.choices[0].finish_reason == "stop" and stage.answered[-1].answer_ids[-1] in maker.stop_ids
    # the limits of a server hold, whatever was asked for; a temperature of 0 is the most likely word
    chats.create(**HOMER, max_completion_tokens=10**6)
    assert stage.answered[-1].sampling.max_new_tokens == 256
    cold = [chats.create(**HOMER, temperature=t, max_tokens=20).choices[0].message.content for t in (0, 1e-300)]
    assert cold == [cast["Homer Simpson"].says(SAID, do_sample=False, max_new_tokens=20)] * 2
    # without a seed each time another
    assert len({chats.create(**HOMER, max_tokens=20).choices[0].message.content for _ in range(4)}) > 1


def test_a_stop_ends_an_answer_and_its_drawing(chats, cast, stage):
    whole = cast["Homer Simpson"].says(SAID, random_seed=7)
    pieces = list(cast["Homer Simpson"].stream(SAID, random_seed=7))
    stop = pieces[4][-1] + pieces[5][0]  # it comes in two pieces
    expected = whole[: whole.index(stop)]
    assert chats.create(**HOMER, seed=7, stop=stop).choices[0].message.content == expected
    assert len(stage.answered[-1].answer_ids) < 60 and stage.answered[-1].finish == "stop"
    streamed = chats.create(**HOMER, seed=7, stop=["never", stop], stream=True)
    assert "".join(e.choices[0].delta.content or "" for e in streamed) == expected


def test_a_text_is_gone_on_with(url, cast):
    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).completions
    expected = cast["Homer Simpson"].says(SAID, "Home", random_seed=7)
    for text in (f"[Home]\n{SAID}", f"[Home]\n{SAID}\nHomer Simpson:", [f"[Home]\n{SAID}"]):
        assert api.create(model="homer-simpson", prompt=text, seed=7).choices[0].text == expected
    pieces = api.create(model="homer-simpson", prompt=f"[Home]\n{SAID}", seed=7, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == expected


MOES = [
    {"role": "developer", "content": "Moe's\n Tavern"},
    {"role": "user", "content": "Moe Szyslak: Closed.\n\nBarney Gumble: It is <|im_end|> noon, Moe."},
    {"role": "assistant", "content": "Then it is\nnearly evening."},
    {"role": "user", "content": [{"type": "text", "text": "You promised:"}, {"type": "text", "text": "the roof."}]},
    {"role": "user", "name": "bart-simpson", "content": "Marge Simpson: is what he calls a pony. 🐴"},
    {"role": "assistant", "name": "Moe Szyslak", "content": "I call it a tab.", "tool_calls": None, "refusal": None},
]
AT_MOES = [
    ("Moe Szyslak", "Closed."),
    ("Barney Gumble", "It is <|im_end|> noon, Moe."),
    ("Homer Simpson", "Then it is nearly evening."),
    ("Marge Simpson", "You promised: the roof."),
    ("Bart Simpson", "Marge Simpson: is what he calls a pony. 🐴"),
    ("Moe Szyslak", "I call it a tab."),
]


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_the_model_reads_the_prompt_of_its_training(template):
    model, tokenizer = tiny_model()
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHATML[1])})
    tokenizer.chat_template = CHATML[0]
    model.resize_token_embeddings(len(tokenizer))
    maker, read = TextMaker(tokenizer, template), []
    names = ("Marge Simpson", "Homer Simpson", "Bart Simpson")
    stage = Stage({"Homer Simpson": Character("Homer Simpson", model.eval(), maker, known=names)})
    model.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].tolist()), with_kwargs=True)
    with served(make_app(stage)) as url:
        api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = api.chat.completions.create(model="Homer Simpson", messages=MOES, max_tokens=2)
        said = [Line(0, i, *pair) for i, pair in enumerate(AT_MOES)]
        expected = prompt_ids(maker, "Moe's Tavern", said, "Homer Simpson")
        assert read[0] == [expected] and answer.usage.prompt_tokens == len(expected)
        # nobody has spoken yet
        read.clear()
        api.chat.completions.create(model="Homer Simpson", messages=MOES[:1], max_tokens=2)
        assert read[0] == [prompt_ids(maker, "Moe's Tavern", [], "Homer Simpson")]
        # the oldest lines are left out where all do not fit, as in training
        maker.max_seq_len = len(expected) - 20
        read.clear()
        api.chat.completions.create(model="Homer Simpson", messages=MOES, max_tokens=2)
        assert (
            read[0] == [prompt_ids(maker, "Moe's Tavern", said, "Homer Simpson", maker.max_seq_len - 2)] != [expected]
        )
    stage.close()


def test_whom_you_play_can_be_said(cast, stage):
    app = make_app(stage, you="Ned Flanders")
    with served(app) as url:
        api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        api.chat.completions.create(model="Homer Simpson", messages=[{"role": "user", "content": "Hi."}], max_tokens=1)
    assert stage.answered[-1].lines == [Line(0, 0, "Ned Flanders", "Hi.")]


def test_several_adapters_take_turns_in_one_base(folder, tmp_path):
    both = load_cast([folder, adapter(tmp_path / "other", 2, "Moe Szyslak")], device="cpu", dtype="float32")
    stage, names = Stage(both), ["Homer Simpson", "Moe Szyslak"] * 3

    async def all_at_once():
        async def one(name):
            return "".join([p async for p in stage.stream(name, "", lines_of(SAID), 7)])

        return await asyncio.gather(*map(one, names))

    said = asyncio.run(all_at_once())
    assert said == [both[name].says(SAID, random_seed=7) for name in names] and said[0] != said[1]
    stage.close()


def test_a_key_is_asked_for(stage):
    with served(make_app(stage, "open-sesame")) as url:
        for key in ("none", "open-sesam", "öffne-dich"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            reply = httpx.get(f"{url}/v1/models", headers=headers)
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
            assert "open-sesame" not in reply.text
        assert httpx.get(f"{url}/v1/models").status_code == httpx.get(f"{url}/v1/nowhere").status_code == 401
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "waiting": 0}
        assert len(openai.OpenAI(base_url=f"{url}/v1", api_key="open-sesame").models.list().data) == 3


JSON = {"Content-Type": "application/json"}
WRONG = [  # (what is sent, its status, a word of the message)
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe\xfd", 400, "JSON"),
    (b"[" * 100_000, 400, "JSON"),
    (b'{"seed": ' + b"9" * 10_000 + b"}", 400, "JSON"),
    (b"[]", 400, "object"),
    (b" " * 1_100_000, 413, "bytes"),
    ({}, 400, "messages"),
    ({"messages": [MESSAGE]}, 400, "model is missing"),
    ({**HOMER, "model": 5}, 400, "model"),
    ({**HOMER, "model": "Krusty"}, 404, "not here"),
    ({**HOMER, "model": ""}, 404, "not here"),
    ({**HOMER, "model": "\ud800" * 5000}, 404, "not here"),
    ({**HOMER, "messages": []}, 400, "messages=0"),
    ({**HOMER, "messages": "Hi."}, 400, "expected a list"),
    ({**HOMER, "messages": [MESSAGE] * 1001}, 400, "1001"),
    ({**HOMER, "messages": [5]}, 400, "messages[0]"),
    ({**HOMER, "messages": [{"role": "tool", "content": "Hi."}]}, 400, "role"),
    ({**HOMER, "messages": [{"role": ["user"], "content": "Hi."}]}, 400, "role"),
    ({**HOMER, "messages": [{"role": "user"}]}, 400, "content"),
    ({**HOMER, "messages": [{"role": "user", "content": " \n"}]}, 400, "empty"),
    ({**HOMER, "messages": [{"role": "user", "content": "D'oh\0"}]}, 400, "U+0000"),
    ({**HOMER, "messages": [{"role": "user", "content": "\ud83d alone"}]}, 400, "U+D83D"),
    ({**HOMER, "messages": [{"role": "user", "content": "a" * 70_000}]}, 400, "70000"),
    ({**HOMER, "messages": [{"role": "user", "content": "a " * 30_000}]}, 400, "longer than"),
    ({**HOMER, "messages": [{"role": "user", "content": "a" * 40_000}] * 2}, 400, "64000"),
    ({**HOMER, "messages": [{**MESSAGE, "name": "x" * 61}]}, 400, "61"),
    ({**HOMER, "messages": [{**MESSAGE, "name": "\udfff"}]}, 400, "U+DFFF"),
    ({**HOMER, "messages": [{**MESSAGE, "tool_calls": [{}]}]}, 400, "tool_calls"),
    ({**HOMER, "messages": [{**MESSAGE, "content": [{"type": "image_url"}]}]}, 400, "type text"),
    ({**HOMER, "messages": [{"role": "system", "content": "x" * 301}]}, 400, "at most 300"),
    ({**HOMER, "messages": [{"role": "system", "content": "x"}] * 2}, 400, "second"),
    ({**HOMER, "temperature": "hot"}, 400, "temperature"),
    ({**HOMER, "temperature": -1}, 400, "temperature"),
    ({**HOMER, "top_p": 0}, 400, "top_p"),
    ({**HOMER, "n": 0}, 400, "n=0"),
    ({**HOMER, "n": 99}, 400, "n=99"),
    ({**HOMER, "seed": 2**64}, 400, "seed"),
    ({**HOMER, "max_tokens": 1.5}, 400, "max_tokens"),
    ({**HOMER, "stop": ["a"] * 5}, 400, "stop"),
    ({**HOMER, "stream": "yes"}, 400, "stream"),
    ({**HOMER, "stream_options": 5}, 400, "stream_options"),
    ({**HOMER, "tools": [{"type": "function"}]}, 400, "not done here"),
    ({**HOMER, "presence_penalty": 1}, 400, "not done here"),
    ({**HOMER, "\ud800": 1}, 400, "not known"),
    ({**HOMER, "temprature": 1}, 400, "not known"),
]


def send(client, body, path="/v1/chat/completions", headers=JSON):
    return client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)


def is_refused(reply, status, word):
    error = reply.json()["error"]
    assert reply.status_code == status and word in error["message"], (reply.status_code, error, word)
    assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in reply.text
    assert len(reply.text) < 1000, "what was given is shown in part only"


@pytest.mark.parametrize("body, status, word", WRONG, ids=[f"{word} {i}" for i, (*_, word) in enumerate(WRONG)])
def test_what_is_wrong_is_told(url, body, status, word):
    with httpx.Client(base_url=url) as client:
        is_refused(send(client, body), status, word)


def test_whatever_else_is_wrong_is_told(url):
    with httpx.Client(base_url=url) as client:
        text = {"model": "Homer Simpson", "prompt": ""}
        is_refused(send(client, text, "/v1/completions"), 400, "empty")
        is_refused(send(client, {**text, "prompt": [1, 2]}, "/v1/completions"), 400, "prompt")
        is_refused(send(client, {**text, "prompt": "[x" + "x" * 300 + "]"}, "/v1/completions"), 400, "place")
        is_refused(send(client, HOMER, headers={"Content-Type": "text/plain"}), 415, "application/json")
        is_refused(send(client, HOMER, headers={}), 415, "application/json")
        is_refused(send(client, HOMER, "/v1/embeddings"), 404, "Not Found")
        is_refused(client.get("/v1/chat/completions"), 405, "Not Allowed")
        # a web page of a stranger, by its own name and by ours
        is_refused(send(client, HOMER, headers={**JSON, "Host": "evil.example"}), 403, "Host")
        is_refused(send(client, HOMER, headers={**JSON, "Origin": "http://evil.example"}), 403, "a page of")
        assert send(client, {**HOMER, "max_tokens": 1}, headers={**JSON, "Origin": url}).status_code == 200


def test_a_request_that_does_not_end_is_ended(stage):
    with served(make_app(stage, limits=serve.Limits(body_s=0.2))) as url:
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            s.sendall(b"Content-Length: 50\r\n\r\n{")
            s.settimeout(10)
            assert b" 408 " in s.recv(4096)


def test_a_fault_is_ours_and_nobody_elses_business(folder, caplog):
    cast = load_cast(folder, device="cpu", dtype="float32")
    broken, stage = cast["Bart Simpson"], Stage(cast)
    broken.reply = at_once
    with served(make_app(stage)) as url, httpx.Client(base_url=url) as client:
        for more in ({}, {"stream": True}):
            reply = send(client, {**HOMER, "model": "Bart Simpson", **more})
            assert reply.status_code == 500 and reply.json()["error"]["type"] == "server_error"
            assert "secret" not in reply.text
        broken.reply = halfway
        reply = send(client, {**HOMER, "model": "Bart Simpson", "stream": True})
        assert reply.status_code == 200 and "server_error" in reply.text and "secret" not in reply.text
        assert send(client, {**HOMER, "max_tokens": 1}).status_code == 200
    stage.close()


def at_once(*_):
    raise RuntimeError("/home/me/secret")


def halfway(*_):
    yield "D'oh"
    raise RuntimeError("secret")


def test_sixteen_at_once_are_answered_in_their_order(cast, stage, url):
    expected = {seed: cast["Homer Simpson"].says(SAID, random_seed=seed) for seed in range(16)}
    stage.answered.clear()

    async def all_at_once():
        api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        async def one(seed):
            answer = await api.chat.completions.create(**HOMER, seed=seed)
            return answer.choices[0].message.content

        return await asyncio.gather(*map(one, range(16)))

    assert asyncio.run(all_at_once()) == list(expected.values())
    turns = list(stage.answered)
    assert len(turns) == 16 and [a.asked_s for a in turns] == sorted(a.asked_s for a in turns)
    # nobody has two turns while others wait, and the last one waits for fifteen others and not longer
    assert all(before.ended_s <= after.began_s for before, after in zip(turns, turns[1:]))
    assert max(a.ended_s - a.asked_s for a in turns) <= turns[-1].ended_s - turns[0].asked_s
    assert sum(a.began_s > b.asked_s for a in turns for b in turns) > 16, "they were not there at once"


def test_a_queue_that_is_full_says_so_and_who_comes_again_is_answered(slow):
    slow.queue.most = 1
    with served(make_app(slow)) as url:
        api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError) as refused:
            api.chat.completions.create(**HOMER, n=5, seed=slow.long, max_tokens=99)  # five places are not there
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        until(lambda: not slow.queue.waiting and (slow.now is None or slow.now in slow.answered))
        assert all(a.finish == "" for a in slow.answered), "who was refused is answered"
        patient = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=5)
        assert patient.chat.completions.create(**HOMER, max_tokens=3).choices


def test_who_does_not_read_holds_up_nobody_and_who_hangs_up_gives_its_place_back(cast, slow):
    stage = slow

    async def tries():
        said, long = lines_of(SAID), cast["Homer Simpson"].sampling.changed(max_new_tokens=250)
        idle = stage.ask("Homer Simpson", "", said)  # never reads
        leaves = stage.stream("Homer Simpson", "", said, sampling=long)
        await anext(leaves)
        waits = stage.ask("Homer Simpson", "", said, random_seed=5)
        await leaves.aclose()
        stage.queue.leave(waits)
        last = "".join([p async for p in stage.stream("Homer Simpson", "", said, random_seed=7)])
        assert last == cast["Homer Simpson"].says(SAID, random_seed=7) and idle.pieces.qsize() > 1
        with pytest.raises(ZeroDivisionError):
            await in_turn(stage, lambda: 1 / 0)
        assert await in_turn(stage, lambda a: a + 1, 1) == 2

    asyncio.run(tries())
    turns = [a for a in stage.answered if not isinstance(a, Errand)]
    assert len(turns) == 3 and len(turns[1].answer_ids) < 50 and turns[1].finish == ""


def test_a_client_that_hangs_up_is_not_answered_further(slow):
    with served(make_app(slow)) as url:
        for more in ({"stream": True}, {}):
            slow.answered.clear()
            body = json.dumps({**HOMER, **more, "max_tokens": 99, "seed": slow.long, "n": 8}).encode()
            dropped(int(url.rsplit(":", 1)[1]), body, until_turn=slow)
            until(lambda: not slow.queue.waiting and slow.now in slow.answered)
            assert [a.finish for a in slow.answered] == [""], "its answers were drawn to the end"


def dropped(port, body, until_turn=None):
    "A client that sends a request, and leaves as soon as it is its turn on this stage, or at once."
    before = until_turn and until_turn.now
    with socket.create_connection(("127.0.0.1", port)) as s:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        s.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        if until_turn:
            until(lambda: until_turn.now is not before and until_turn.now.answer_ids)


def blocks(language):
    "Code that the chapter shows in its words."
    chapter = Path(serve.__file__).parents[2] / "nbs" / "6_talk" / "62_serve.ipynb"
    cells = json.loads(chapter.read_text(encoding="utf8"))["cells"]
    words = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(rf"^```{language}\n(.*?)^```$", words, re.S | re.M)


def test_the_command_serves_and_nothing_that_arrives_ends_it(folder, capsys):
    "1,000 wrong requests and 100 clients that leave, in a process of its own, whose memory is looked at."
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*CLI, "serve", "--run", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            told = [process.stdout.readline(), process.stdout.readline()]
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/v1", told[0])[1])
            # as it is printed, in the terminal and in the chapter
            (snippet,), (curl,) = blocks("python"), blocks("bash")
            exec(snippet.replace("8000", str(port)), {})
            assert len(capsys.readouterr().out) > 1
            for line in (told[1].strip(), curl.replace("8000", str(port))) if shutil.which("curl") else ():
                out = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60).stdout
                assert json.loads(out)["choices"][0]["message"]["role"] == "assistant", out
            assert main(["serve", "--run", str(folder), "--port", str(port)]) == 2
            assert "another server" in capsys.readouterr().err
            watched, rest = psutil.Process(process.pid), json.dumps({**HOMER, "stream": True}).encode()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

                def trouble(wrong, leave, begin=0):
                    for i in range(begin, begin + wrong):
                        body, status, _ = WRONG[i % len(WRONG)]
                        reply = send(client, body)
                        assert (reply.status_code, "error" in reply.json()) == (status, True)
                    for i in range(begin, begin + leave):
                        where = {"role": "system", "content": f"Place {i}"}
                        new = {**HOMER, "messages": [where, {**MESSAGE, "name": f"Person {i}"}], "stream": i % 2 == 0}
                        dropped(port, json.dumps(new).encode() if i % 3 else rest)
                    assert send(client, {**HOMER, "max_tokens": 5}).status_code == 200

                trouble(200, 30)
                before = watched.memory_info().rss
                trouble(1000, 100, 1000)
                grown = (watched.memory_info().rss - before) / 2**20
                print(f"{grown:.1f} MiB more after 1,000 wrong requests and 100 that left")
                assert grown < 12, f"{grown:.1f} MiB more"
                until(lambda: client.get("/health").json() == {"status": "ok", "waiting": 0})
            assert watched.num_threads() < 40
        finally:
            process.terminate()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out.strip() == "ended" and not err.strip(), (process.returncode, out, err)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to_though_somebody_is_answered(cast, how):
    stage, listener, before = Stage(cast), serve.open_port(port=0), signal.getsignal(how)
    server, port = serve.server_of(make_app(stage)), listener.getsockname()[1]

    def later():
        until(lambda: server.started)
        dropped(port, json.dumps({**HOMER, "stream": True}).encode(), until_turn=stage)
        os.kill(os.getpid(), how)

    thread = threading.Thread(target=later)
    thread.start()
    begin = time.perf_counter()
    serve.until_told(server, listener)
    thread.join()
    listener.close()
    stage.close()
    assert time.perf_counter() - begin < 10 and signal.getsignal(how) is before and not stage.worker.is_alive()


def test_a_stage_that_is_closed_ends_its_answer_and_sends_away_who_waits(slow):
    async def closing():
        long = slow.cast["Homer Simpson"].sampling.changed(max_new_tokens=99)
        first, second = (slow.ask("Homer Simpson", "", lines_of(SAID), slow.long, long) for _ in range(2))
        await first.pieces.get()
        slow.close()
        with pytest.raises(Refused, match="closed"):
            slow.ask("Homer Simpson", "", [])
        with pytest.raises(Refused, match="closed"):
            await anext(slow.hear(second))
        assert first.finish == "" and not slow.worker.is_alive()

    asyncio.run(closing())


def test_what_strangers_write_is_not_kept_for_ever(cast, stage, monkeypatch):
    monkeypatch.setattr(prompt, "MOST_KEPT", 50)
    maker = TextMaker(cast["Homer Simpson"].maker.tokenizer)
    for i in range(200):
        prompt_ids(maker, f"Place {i}", [Line(0, 0, f"Person {i}", "Hi.")], "Homer Simpson")
    assert len(maker._kept) <= 50
    names = lines.name_key.cache_info().currsize
    with pytest.raises(Refused):
        stage.find("x" * 10**6)
    assert lines.name_key.cache_info().currsize == names + 1 and lines.name_key("x" * 200)
    assert lines.name_key.cache_info().currsize == names + 1, "a megabyte would be kept"


def test_where_a_server_may_stand(capsys, monkeypatch):
    for words, meant in (
        (["--host", "0.0.0.0"], "without a key"),
        (["--host", "nowhere.invalid"], "an address of this machine"),
        (["--key", "short"], "8 plain letters"),
        (["--port", "70000"], "70000"),
        (["--most-waiting", "0"], "most_waiting"),
        (["--run", "nowhere", "--port", "0"], "nowhere"),
    ):
        assert main(["serve", *words]) == 2
        assert meant in capsys.readouterr().err
    monkeypatch.setenv("SIMPSONS_LLM_KEY", "from-the-environment")
    assert serve.ServeConfig().key == "from-the-environment"
    serve.open_port("0.0.0.0", 0, "from-the-environment").close()
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["serve"]) == 2
    assert 'pip install "simpsons_llm[serve]"' in capsys.readouterr().err
