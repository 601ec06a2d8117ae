"The chat page: its server, asked by a program, and the page in a real browser."

import asyncio
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
import torch
from fastapi.testclient import TestClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import simpsons_llm.talk.page as P
import simpsons_llm.talk.serve as S
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.base import load_base
from simpsons_llm.model.character import load_cast
from simpsons_llm.talk.chat import ChatConfig

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here: apt-get install chromium chromium-driver"
)
PEOPLE = {"Homer Simpson": 9, "Marge Simpson": 5, "Bart Simpson": 3}
TIE = {"run": "x", "speaker": "Homer Simpson", "location": "Home", "lines": [["Marge Simpson", "The dog."]]}
QUICK = {"sampling": {"max_new_tokens": 3}}
TAG = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two runs over one base, as if they had been trained."
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    base, _ = load_base("tiny", find_device("cpu", "float32"))
    model = add_adapter(base, LoRASettings(r=4, lora_alpha=8))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    for run, people in (("x", PEOPLE), ("y", {"Moe Szyslak": 2, "Homer Simpson": 1})):
        save_adapter(model, folder / run / "adapter", {"base_model": "tiny", "template": "script", "speakers": people})
    return [str(folder / "x"), str(folder / "y")]


@pytest.fixture(scope="module")
def page(runs):
    stage = S.Stage(load_cast(runs, device="cpu"))
    yield P.TalkingPage(stage, runs, device="cpu")
    stage.close()


@pytest.fixture
def client(page):
    return TestClient(P.make_page(page, rate=P.Rate(1000, 10_000, 100)), base_url="http://localhost")


def slowly(monkeypatch, words=("One ", "two ", "three ", "four."), pause_s=0.2):
    "Have everybody say the same, word by word."

    def reply(self, location, lines, sampling=None, random_seed=42, drew=None):
        for i, word in enumerate(words):
            drew(i)
            yield word
            time.sleep(pause_s)

    monkeypatch.setattr(P.Character, "reply", reply)


def rows(answer):
    "What came, but how many come first."
    found = [json.loads(r) for r in answer.text.splitlines()]
    assert "before" in found[0] or "note" in found[0]
    return [r for r in found if "before" not in r]


# ---- asked by a program ----------------------------------------------------------------------------------------------


def test_an_answer_is_the_characters_and_says_what_was_sent(client, page):
    found = rows(client.post("/page/answer", json=TIE | {"seed": 7}))
    homer = page.stage.cast["Homer Simpson"]
    assert "".join(r.get("piece", "") for r in found) == homer.says("Marge Simpson: The dog.", "Home", 7)
    sent = "[Home]\nMarge Simpson: The dog.\nHomer Simpson:"
    assert found[0] == {"prompt": sent, "tokens": len(sent), "left_out": 0} and found[-1]["end"] in ("stop", "length")
    # what does not fit is told
    long = TIE | {"lines": [["Marge Simpson", "x" * 900]] * 12}
    first = rows(client.post("/page/answer", json=long | QUICK))[0]
    assert first["left_out"] > 0 and first["prompt"].count("Marge") == 12 - first["left_out"]
    # all runs together are the same voices
    assert rows(client.post("/page/answer", json=TIE | {"seed": 7, "run": P.ALL}))[:-1] == found[:-1]


def test_a_base_model_is_loaded_once_and_asked_with_the_same_words(runs, monkeypatch):
    loaded, load = [], P.load_base
    monkeypatch.setattr(P, "load_base", lambda *a: (loaded.append(a), time.sleep(0.3), load(*a))[-1])
    stage = S.Stage(load_cast(runs, device="cpu"))
    client = TestClient(P.make_page(P.TalkingPage(stage, runs, device="cpu")), base_url="http://localhost")
    ask = TIE | QUICK | {"side": "base"}
    with ThreadPoolExecutor(2) as pool:
        found = [rows(a) for a in pool.map(lambda _: client.post("/page/answer", json=ask), range(2))]
    third = rows(client.post("/page/answer", json=ask))
    assert len(loaded) == 1 and all("note" in f[0] and f[1:-1] == third[:-1] for f in found)
    tuned = rows(client.post("/page/answer", json=TIE | QUICK))
    assert tuned[0] == third[0] and tuned[1] != third[1]
    # what cannot be loaded is told, and the others go on
    stage.cast = {n: c for n, c in stage.cast.items() if "base" not in n}
    page = P.TalkingPage(stage, runs, "no-such-model", device="cpu")
    client = TestClient(P.make_page(page), base_url="http://localhost")
    assert "no-such-model" in rows(client.post("/page/answer", json=ask))[-1]["error"]
    assert "end" in rows(client.post("/page/answer", json=TIE | QUICK))[-1]
    stage.close()


BAD = [
    (400, "", b"{"),
    (400, "", b"[1]"),
    (400, "", b"[" * 90_000),
    (400, "", b'{"seed": 1e999, "run": "x", "speaker": "Homer Simpson"}'),
    (400, "", b"\xff\xfe"),
    (413, "", b'{"x": "' + b"y" * 500_000 + b'"}'),
    (400, "run", {**TIE, "run": "../../etc/passwd"}),
    (400, "run", {**TIE, "run": None}),
    (400, "Krusty", {**TIE, "speaker": "Krusty"}),
    (400, "cannot answer", {**TIE, "speaker": ["Homer Simpson"]}),
    (400, "pairs", {**TIE, "lines": [["Homer Simpson", "a", "b"]]}),
    (400, "empty", {**TIE, "lines": [["Homer Simpson", " \u2028 "]]}),
    (400, "2,000", {**TIE, "lines": [["Homer Simpson", "x" * 2001]]}),
    (400, "401", {**TIE, "lines": [["Homer Simpson", "x"]] * 401}),
    (400, "colon", {**TIE, "lines": [["Homer: Moe", "x"]]}),
    (400, "temperature", {**TIE, "sampling": {"temperature": -1}}),
    (400, "max_new_tokens", {**TIE, "sampling": {"max_new_tokens": 10**6}}),
    (400, "max_new_tokens", {**TIE, "sampling": {"max_new_tokens": 2.5}}),
    (400, "num_beams", {**TIE, "sampling": {"num_beams": 9}}),
    (400, "seed", {**TIE, "seed": -1}),
    (400, "side", {**TIE, "side": "other"}),
]


def test_what_is_wrong_is_told_as_json(client, page):
    for status, meant, body in BAD * 3:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = client.post("/page/answer", content=raw, headers={"content-type": "application/json"})
        assert answer.status_code == status and meant in answer.json()["error"]["message"], (body[:80], answer.text)
    for names in ([], None, ["Krusty"], [5], ["Homer Simpson"] * 13):
        assert client.post("/page/next", json=TIE | {"names": names}).status_code == 400
    assert client.get("/page/answer").status_code == 405 and client.post("/page/open", json={}).status_code == 404
    chances = client.post("/page/next", json=TIE | {"names": list(PEOPLE)}).json()["chances"]
    assert list(chances) == ["Homer Simpson", "Bart Simpson"]  # Marge has just spoken
    # odd signs of writing are no mistake
    odd = TIE | QUICK | {"lines": [["Marge Simpson", "a\ud800b\u0000c\u202e d \U0001f369"]]}
    raw = json.dumps(odd).encode()
    assert "end" in rows(client.post("/page/answer", content=raw, headers={"content-type": "application/json"}))[-1]
    assert not page.stage.queue.waiting


def test_who_comes_from_elsewhere_is_turned_away(page):
    app = P.make_page(page)

    def status(path="/page/about", base="http://127.0.0.1:8000", **headers):
        return TestClient(app, base_url=base).post(path, json={}, headers=headers).status_code

    assert status() == status(base="http://localhost:8000") == status(origin="http://127.0.0.1:8000") == 200
    assert status(base="http://stranger.example") == status(origin="http://stranger.example") == 403
    assert status(origin="null") == status(origin="http://127.0.0.1:9") == 403
    plain = TestClient(app, base_url="http://localhost").post("/page/about", content="{}")
    assert plain.status_code == 415
    with_key = P.make_page(page, "open sesame")
    for given, wanted in (("", 401), ("Bearer wrong", 401), ("Basic open sesame", 401), ("Bearer open sesame", 200)):
        asked = TestClient(with_key, base_url="http://my.house:80").post(
            "/page/about", json={}, headers={"authorization": given}
        )
        assert asked.status_code == wanted, given
    with pytest.raises(ValueError, match="key"):
        P.serve_page(ChatConfig(), host="0.0.0.0", port=0)


def test_the_command_says_where_the_page_is(runs, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(P, "until_told", lambda server, listener: found.append((server.config.app, listener.fileno())))
    P.serve_page(ChatConfig(run=runs[0], device="cpu"), port=0, key="open sesame")
    assert re.fullmatch(r"open http://127\.0\.0\.1:\d+/#key=open%20sesame in a browser .*\n", capsys.readouterr().out)
    assert TestClient(found[0][0]).get("/").content == P.page_html() and found[0][1] > 0


def test_every_answer_has_its_headers_and_the_page_no_way_out(client):
    answers = [client.get("/"), client.post("/page/about", json={}), client.post("/page/script", content="x")]
    assert [a.status_code for a in answers] == [200, 200, 415]
    for answer in answers:
        assert P.HEADERS.items() <= {k.title(): v for k, v in answer.headers.items()}.items()
        assert "access-control-allow-origin" not in answer.headers
    policy = dict(part.split(" ", 1) for part in answers[0].headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and "unsafe" not in str(policy)
    html = answers[0].text
    assert not re.search(r'\son\w+="|style="|https?://|import\(|innerHTML', html)
    # every field has a name that is read out
    for field in re.findall(r"<(?:input|select|textarea)[^>]*>", html):
        before = html[: html.index(field)]
        labelled = before.rfind("<label") > before.rfind("</label>")
        assert labelled or "aria-label" in field, field


def test_a_full_queue_a_fast_client_and_a_fault_are_told(page, client, monkeypatch, runs):
    slowly(monkeypatch)
    stage = S.Stage(load_cast(runs, device="cpu"), most_waiting=1)
    app = P.make_page(P.TalkingPage(stage, runs, device="cpu"))
    small = TestClient(app, base_url="http://localhost")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: small.post("/page/answer", json=TIE), range(4)))
    turned = [a for a in found if a.status_code == 429]
    assert 1 <= len(turned) <= 3 and all(int(a.headers["retry-after"]) >= 1 and a.json()["error"] for a in turned)
    assert all("".join(r.get("piece", "") for r in rows(a)) == "One two three four." for a in found if a not in turned)
    stage.close()
    quick = TestClient(P.make_page(page, rate=P.Rate(0.01, 3)), base_url="http://localhost")
    assert [quick.post("/page/about", json={}).status_code for _ in range(5)] == [200] * 3 + [429] * 2
    assert quick.get("/").status_code == 200

    def broken(*given):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(P.Character, "reply", broken)
    told = rows(client.post("/page/answer", json=TIE))
    assert list(told[0]) == ["error"] and "secret" not in told[0]["error"]
    monkeypatch.undo()
    assert "end" in rows(client.post("/page/answer", json=TIE | QUICK))[-1]


def test_who_leaves_before_the_first_word_keeps_no_place(page, monkeypatch):
    slowly(monkeypatch)

    async def asking():
        first = await page.answer(TIE)
        while page.stage.queue.waiting:
            await asyncio.sleep(0.01)
        places = [await page.answer(TIE) for _ in range(3)]
        assert [json.loads(await anext(p))["before"] for p in places[:2]] == [1, 2]
        assert len(page.stage.queue.waiting) == 3
        await places[0].aclose()  # reads no more
        del places  # never read
        await asyncio.sleep(0.05)
        assert not page.stage.queue.waiting
        assert len([r async for r in first]) == 7

    asyncio.run(asking())


def test_a_scene_goes_out_and_comes_back(client):
    lines = [["Marge Simpson", "Homer: no."], ["Homer Simpson", f"(sighs) ... {TAG}"], ["Bart", "[Bang]"], ["B", "NA!"]]
    for place in ("", "Moe's Tavern"):
        text = client.post("/page/script", json={"location": place, "lines": lines}).json()["script"]
        assert client.post("/page/read", json={"script": text}).json() == {"location": place, "lines": lines}
    assert client.post("/page/read", json={"script": "Chapter 1\n\nIt was a dark night."}).status_code == 400


def test_settings_become_a_page(runs, tmp_path):
    (tmp_path / "scene.txt").write_text("[School]\nBart Simpson: Ay!\nSkinner: Bart!\n")
    config = ChatConfig(run="\n".join(runs), script=str(tmp_path / "scene.txt"), device="cpu", random_seed=5)
    about = TestClient(P.make_page(P.page_of(config)), base_url="http://localhost").post("/page/about", json={}).json()
    assert [r["name"] for r in about["runs"]] == [P.ALL, "x", "y"] and about["seed"] == 5
    assert about["scene"]["lines"] == [["Bart Simpson", "Ay!"], ["Skinner", "Bart!"]]
    assert about["scene"]["place"] == "School" and "Skinner" in about["scene"]["people"]
    base = ChatConfig(base_model="tiny", device="cpu")
    about = TestClient(P.make_page(P.page_of(base)), base_url="http://localhost").post("/page/about", json={}).json()
    assert about["runs"] == [{"name": "tiny", "tuned": False, "characters": ["Homer Simpson", "Marge Simpson"]}]


# ---- in a browser ----------------------------------------------------------------------------------------------------


class Tab:
    "A browser with the page, and a person's hands."

    def __init__(self, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(word)
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def open(self, address):
        "The page, as a visitor sees it who has not been here before."
        self.driver.get("about:blank")
        self.driver.get(address)
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.get("about:blank")
        self.driver.get(address)
        self.until(lambda: self("run").get_attribute("value"))
        return self

    def __call__(self, id):
        return self.driver.find_element(By.ID, id)

    def until(self, true, seconds=20):
        WebDriverWait(self.driver, seconds, 0.03).until(lambda _: true())

    def idle(self):
        self.until(lambda: not self("stop").is_enabled())

    def lines(self):
        "(speaker, words) of each line; words of both sides where there are two."
        words = "[...x.querySelectorAll('.said')].map(p => p.textContent)"
        script = f"return [...document.querySelectorAll('#lines .line')].map(x => [who(x), ...{words}])"
        script = f"const who = (x) => (x.querySelector('.who') || {{}}).textContent; {script}"
        return [tuple(x) for x in self.driver.execute_script(script)]

    def alert(self):
        return self("alert").text

    def say(self, text, then=None):
        if then:
            Select(self("next")).select_by_visible_text(then)
        self("text").send_keys(text, Keys.ENTER)
        self.idle()
        return self.lines()

    def tool(self, i, word):
        line = self.driver.find_elements(By.CSS_SELECTOR, "#lines .line")[i]
        next(b for b in line.find_elements(By.TAG_NAME, "button") if b.text == word).click()

    def fill(self, id, text):
        self(id).clear()
        self(id).send_keys(text, Keys.TAB)

    def complaints(self):
        "What the browser found wrong, but answers with a status."
        return [r for r in self.driver.get_log("browser") if "Failed to load resource" not in r["message"]]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    tab = Tab(downloads)
    yield tab
    tab.driver.quit()


@contextmanager
def served_page(page, **given):
    with S.served(P.make_page(page, **({"rate": P.Rate(1000, 10_000, 100)} | given))) as address:
        yield address


@pytest.fixture
def tab(browser, page):
    with served_page(page) as address:
        browser.address = address
        yield browser.open(address)
        assert browser.complaints() == []
        assert browser.driver.execute_script("return document.title") == "A scene"


@in_browser
def test_words_are_said_and_come_one_by_one(tab, monkeypatch):
    slowly(monkeypatch)
    tab("text").send_keys("Homer?", Keys.ENTER)
    seen = set()
    while tab("stop").is_enabled() or not seen:
        seen |= {x[1] for x in tab.lines()[1:]}
    assert {"One ", "One two ", "One two three "} & seen and tab.lines() == [
        ("Marge Simpson", "Homer?"),
        ("Homer Simpson", "One two three four."),
    ]
    assert tab("text").get_attribute("value") == "" and "One two three four." in tab("status").get_attribute(
        "textContent"
    )
    # another try comes where the line stands
    tab.tool(1, "Retry")
    tab.until(lambda: tab.lines()[1][1].startswith("One "))
    assert len(tab.lines()) == 2
    tab.idle()
    # stopped: what was said so far stays
    tab("text").send_keys("Homer?", Keys.ENTER)
    tab.until(lambda: len(tab.lines()) == 4 and len(tab.lines()[3][1]) > 3)
    tab("text").send_keys(Keys.ESCAPE)
    tab.idle()
    assert len(tab.lines()) == 4 and tab.lines()[3][1].startswith("One") and not tab.lines()[3][1].endswith("four.")
    # a reload loses nothing
    before = tab.lines()
    tab.driver.refresh()
    tab.until(lambda: tab.lines() == before)


@in_browser
def test_lines_are_tried_again_edited_put_in_taken_out_and_brought_back(tab, page):
    tab.say("Homer, the dog is wearing your tie again.")
    first = tab.say("Well?")
    assert [x[0] for x in first] == ["Marge Simpson", "Homer Simpson"] * 2
    tab.tool(1, "Retry")
    tab.idle()
    again = tab.lines()
    assert "Retry line 2" in tab.driver.switch_to.active_element.get_attribute("aria-label")
    assert again[1][1] != first[1][1] and again[:1] + again[2:] == first[:1] + first[2:]
    tab.tool(0, "Edit")
    field = tab.driver.switch_to.active_element
    field.clear()
    field.send_keys("The cat.", Keys.ENTER)
    assert tab.lines()[0] == (
        "Marge Simpson",
        "The cat.",
    ) and "Edit line 1" in tab.driver.switch_to.active_element.get_attribute("aria-label")
    tab.tool(0, "Edit")
    tab.driver.switch_to.active_element.send_keys(" What?", Keys.ESCAPE)
    assert tab.lines()[0] == ("Marge Simpson", "The cat.")
    tab.tool(0, "Insert below")
    speaker = tab.driver.find_element(By.CSS_SELECTOR, ".edit input")
    speaker.clear()
    speaker.send_keys("Ned Flanders")
    tab.driver.find_element(By.CSS_SELECTOR, ".edit textarea").send_keys("Hi there!", Keys.ENTER)
    assert tab.lines()[1] == ("Ned Flanders", "Hi there!") and len(tab.lines()) == 5
    assert "only you can speak" in tab("people").text
    focused = tab.driver.switch_to.active_element
    assert "Edit line 2" in focused.get_attribute("aria-label")
    focused.send_keys(Keys.CONTROL, "z")
    assert len(tab.lines()) == 4
    tab("text").send_keys("x", Keys.CONTROL, "z")
    assert len(tab.lines()) == 4  # in a field it is the field's own
    tab("text").clear()
    tab.tool(0, "Insert below")
    tab.driver.switch_to.active_element.send_keys("Hi there!", Keys.ENTER)
    tab.tool(1, "Insert below")
    tab.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert len(tab.lines()) == 5
    tab.tool(3, "Delete")
    assert len(tab.lines()) == 4
    # the next answer was told of all that
    tab.say("So?")
    assert "Marge Simpson: The cat.\nMarge Simpson: Hi there!\n" in page.stage.cast[
        "Homer Simpson"
    ].maker.tokenizer.decode(page.stage.answered[-1].prompt_ids)
    for _ in range(20):
        if tab("undo").is_enabled():
            tab("undo").click()
    assert tab.lines() == [] and not tab("undo").is_enabled()


@in_browser
def test_one_plays_somebody_else_and_lets_them_talk(tab):
    Select(tab("run")).select_by_visible_text("x")
    tab.fill("name", "Bart Simpson")
    tab.driver.find_element(By.CSS_SELECTOR, "#join button").click()
    tab.fill("place", "School")
    assert tab("title").text == "School"
    Select(tab("me")).select_by_visible_text("Bart Simpson")
    assert [o.text for o in Select(tab("next")).options] == [
        "whoever the model picks",
        "Homer Simpson",
        "Marge Simpson",
        "nobody yet",
    ]
    assert tab.say("Ay caramba!", "nobody yet") == [("Bart Simpson", "Ay caramba!")]
    assert tab.say("Eat my shorts!", "Marge Simpson")[-1][0] == "Marge Simpson"
    assert tab.say("Don't have a cow!", "whoever the model picks")[-1][0] in ("Marge Simpson", "Homer Simpson")
    Select(tab("me")).select_by_visible_text("nobody, I watch")
    assert not tab("say").is_displayed()
    tab.fill("count", "3")
    tab("auto").click()
    tab.idle()
    assert len(tab.lines()) == 8 and {x[0] for x in tab.lines()} <= PEOPLE.keys()
    tab.driver.find_element(By.CSS_SELECTOR, "#people button[aria-label*=Bart]").click()
    assert "Bart" not in tab("people").text and tab("place").get_attribute("value") == "School"
    Select(tab("run")).select_by_visible_text("y")
    assert len(tab.lines()) == 8 and "only you can speak" in tab("people").text


@in_browser
def test_both_models_answer_the_same_words_and_the_prompt_is_shown(tab, page):
    tab("compare").click()
    lines = tab.say("Homer, the dog is wearing your tie again.")
    assert len(lines[1]) == 3 and lines[1][1] != lines[1][2]
    tuned, base = [page.stage.answered[-2], page.stage.answered[-1]]
    assert tuned.prompt_ids == base.prompt_ids and "base model" in base.name
    tab.tool(1, "Prompt")
    assert tab("sent-text").text == page.stage.cast[tuned.name].maker.tokenizer.decode(tuned.prompt_ids)
    assert f"{len(tuned.prompt_ids)} tokens" in tab("sent-about").text
    tab.driver.find_element(By.CSS_SELECTOR, "#sent button").click()
    tab.tool(1, "Use this")
    assert tab.lines()[1] == (lines[1][0], lines[1][2], lines[1][1])
    tab("compare").click()
    tab.say("Well?")
    assert "".join(tab.lines()[1][1].split()) in "".join(
        page.stage.cast[tuned.name].maker.tokenizer.decode(page.stage.answered[-1].prompt_ids).split()
    )
    for name, value in (("temperature", "0.01"), ("max_new_tokens", "5"), ("seed", "77")):
        tab.driver.execute_script("document.getElementById('drawing').open = true")
        tab.fill(name, value)
    tab.say("Well?")
    last = page.stage.answered[-1]
    assert (last.sampling.temperature, last.sampling.max_new_tokens, last.random_seed) == (0.01, 5, 77)


@in_browser
def test_what_is_too_long_is_refused_and_what_looks_like_a_tag_is_text(tab, monkeypatch, tmp_path):
    tab.driver.execute_script("document.getElementById('text').value = 'x'.repeat(2001)")
    tab("send").click()
    assert "2001 characters, at most 2000" in tab.alert() and tab.lines() == []
    assert len(tab("text").get_attribute("value")) == 2001  # nothing is lost
    # what the page does not know the server does
    tab.driver.execute_script("about.limits.line = 9999")
    tab("send").click()
    tab.idle()
    assert "2,001 letters" in tab.alert() and len(tab.lines()) == 1
    tab("undo").click()
    tab("text").clear()
    slowly(monkeypatch, (TAG[:9], TAG[9:]), 0)
    tab.fill("place", TAG[:100])
    tab.fill("name", TAG[:55])
    tab.driver.find_element(By.CSS_SELECTOR, "#join button").click()
    assert tab.say(TAG) == [("Marge Simpson", TAG), ("Homer Simpson", TAG)]
    (tmp_path / "bad.txt").write_text(f"[{TAG[:100]}]\n{TAG[:55]}: {TAG}\n")
    tab("file").send_keys(str(tmp_path / "bad.txt"))
    tab.until(lambda: tab.lines() == [(TAG[:55], TAG)])
    tab.tool(0, "Edit")
    tab.driver.switch_to.active_element.send_keys("!", Keys.ENTER)
    assert tab.lines() == [(TAG[:55], TAG + "!")]
    assert (
        not tab.driver.find_elements(By.CSS_SELECTOR, "img")
        and len(tab.driver.find_elements(By.CSS_SELECTOR, "script")) == 1
    )
    # and the second lock: nothing that is put in as HTML gets in
    refused = "try { document.body.innerHTML += '<b>'; return 'in' } catch (e) { return e.name }"
    assert tab.driver.execute_script(refused) == "TypeError"
    tab.driver.get_log("browser")


@in_browser
def test_a_scene_is_saved_and_loaded(tab, downloads, tmp_path):
    tab.fill("place", "Moe's Tavern")
    before = tab.say("Homer: the dog (again) ... is [here].")
    tab("save").click()
    tab.until(lambda: list(Path(downloads).glob("scene*.txt")))
    (file,) = Path(downloads).glob("scene*.txt")
    tab.until(
        lambda: file.read_text().startswith("[Moe's Tavern]\nMarge Simpson: Homer: the dog (again) ... is [here].")
    )
    tab("new").click()
    tab.fill("place", "Home")
    assert tab.lines() == []
    tab("file").send_keys(str(file))
    tab.until(lambda: len(tab.lines()) == 2)
    assert tab.lines()[0] == before[0] and tab("title").text == "Moe's Tavern"
    for text, meant in (("no scene", "names nobody"), ("x" * 300_000, "too large"), ("", "no line")):
        (tmp_path / "other.txt").write_text(text)
        tab("file").send_keys(str(tmp_path / "other.txt"))
        tab.until(lambda: meant in tab.alert())
        assert tab.lines()[0] == before[0]


@in_browser
def test_two_at_once_and_one_who_leaves(tab, page, monkeypatch, downloads):
    other = Tab(downloads)
    try:
        other.open(tab.address)
        slowly(monkeypatch, ("word ",) * 30, 0.08)
        tab("text").send_keys("Mine.", Keys.ENTER)
        tab.until(lambda: len(tab.lines()) == 2 and "word" in tab.lines()[1][1])
        other("text").send_keys("Yours.", Keys.ENTER)
        other.until(lambda: len(other.lines()) == 2)
        other.until(lambda: other.lines()[1][1] == "One other comes first ...")
        tab.driver.get("about:blank")  # in the middle of an answer
        other.idle()
        assert other.lines() == [("Marge Simpson", "Yours."), ("Homer Simpson", "word " * 29 + "word")]
        mine = next(a for a in page.stage.answered if a.lines[-1:] and a.lines[-1].text == "Mine.")
        assert 0 < len(mine.answer_ids) < 30, "an answer that nobody read was drawn to its end"
        assert other.complaints() == []
        tab.driver.get(tab.address)
    finally:
        other.driver.quit()


@in_browser
def test_who_asks_too_often_is_told_in_a_sentence_and_so_is_a_server_that_is_gone(browser, page):
    with served_page(page, rate=P.Rate(0.001, 6)) as address:
        browser.open(address)
        browser.say("Homer?")
        browser.fill("count", "9")
        browser("auto").click()
        browser.idle()
        assert "too many requests" in browser.alert() and 2 <= len(browser.lines()) < 9
    browser("auto").click()
    browser.idle()
    assert "does not answer" in browser.alert()
    browser.driver.get_log("browser")


@in_browser
def test_a_key_comes_with_the_address_and_does_not_stay_there(browser, page):
    with served_page(page, key="open sesame") as address:
        browser.open(f"{address}/#key=open%20sesame")
        assert browser.driver.current_url == f"{address}/"
        assert len(browser.say("Homer?")) == 2
        browser.driver.execute_script("sessionStorage.clear()")
        browser.driver.refresh()
        browser.until(lambda: browser("key").is_displayed())
        browser("key").send_keys("open sesame", Keys.ENTER)
        browser.until(lambda: browser("run").get_attribute("value"))
    browser.driver.get_log("browser")
