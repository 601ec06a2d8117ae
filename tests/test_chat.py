"A conversation in the terminal as people use it: a process, typed rows, wrong rows, signals, what is kept."

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
import torch
from conftest import CLI, TINY

from simpsons_llm import Character, Run
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prompt import prompt_ids
from simpsons_llm.model.character import load_cast
from simpsons_llm.model.infer import read_prompts
from simpsons_llm.talk.chat import ChatConfig, Conversation, begin
from simpsons_llm.train.finetune import FinetuneConfig, finetune


@pytest.fixture(scope="module")
def folder(run):
    return str(run[0])


def talk(*words, rows="", **how):
    return subprocess.run(
        [*CLI, "chat", "--device", "cpu", *map(str, words)],
        input=rows,
        capture_output=True,
        text=True,
        timeout=120,
        **how,
    )


def test_typed_rows_are_said_answered_and_kept_as_a_script(folder, tmp_path):
    kept = tmp_path / "new" / "scene.txt"
    rows = "Homer, the dog is wearing your tie.\n/retry\n/as Lisa Simpson\nDad!\n/edit 1 The cat is.\n/auto 2\n/scene\n"
    done = talk("--run", folder, "--location", "Home", "--save", kept, "--max-new-tokens", 12, rows=rows)
    assert done.returncode == 0, done.stderr
    scene = read_script(str(kept)).scenes[-1]
    assert scene.location == "Home" and scene.lines[0].text == "The cat is." and "Lisa Simpson: Dad!" in str(scene)
    answers = re.findall(rf"{scene.lines[1].speaker}: (.+)", done.stdout)
    assert answers[0] != answers[1]  # another try says something else
    again = talk("--run", folder, "--location", "Home", "--save", kept, "--max-new-tokens", 12, rows=rows)
    assert again.stdout == done.stdout  # a seed gives the same conversation
    on = talk("--run", folder, "--script", kept, "--auto", 1, "--max-new-tokens", 12)
    assert on.returncode == 0 and "The cat is." in on.stdout


def test_what_is_wrong_is_told_and_the_conversation_goes_on(folder, tmp_path):
    rows = (
        "\n/ask nobody\n/edit 9 x\n/edit x\n/drop\n/heat 0\n/load none.txt\n/save\n/undo\n/retry\n/shout\n" + "x" * 5000
    )
    done = talk("--run", folder, "--max-new-tokens", 8, rows=rows + "\nStill there?\n/scene\n", cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr
    told = ("nobody", "line 9", "temperature", "none.txt", "no file", "nothing was changed", "/shout", "5,000 letters")
    for words in told:
        assert words in done.stdout, words
    assert "Still there?" in done.stdout.split("[Scene]")[-1]


def test_wrong_settings_are_refused_before_anything_is_loaded(folder, tmp_path):
    for words, says in (
        ({"run": str(tmp_path)}, "no adapter"),
        ({"run": str(tmp_path / "none")}, "none"),
        ({"run": folder, "speaker": "Nobody At All"}, "Nobody At All"),
        ({"run": folder, "script": str(tmp_path / "none.txt")}, "none.txt"),
        ({"run": folder, "temperature": 0}, "temperature"),
        ({"run": folder, "auto": -1}, "auto"),
    ):
        with pytest.raises((ValueError, OSError), match=says):
            begin(ChatConfig(device="cpu", **words))
    done = talk("--run", tmp_path)
    assert done.returncode == 2 and "no adapter" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_terminal_has_colours_and_control_c_leaves_in_peace(folder):
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [*CLI, "chat", "--device", "cpu", "--run", folder], stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    heard = b""

    def until(words, seconds=60):
        nonlocal heard
        end = time.time() + seconds
        while words not in heard and time.time() < end:
            if select.select([master], [], [], 0.2)[0]:
                heard += os.read(master, 4096)
        assert words in heard, heard

    until(b"/help")
    until(b":\x1b[0m ")
    os.write(master, b"Homer?\n")
    until(b"\x1b[1;")
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    time.sleep(1)
    os.write(master, b"/quit\n")
    assert child.wait(30) == 0
    os.close(master)


def test_the_model_is_told_what_it_was_trained_with(folder, monkeypatch):
    talk = Character.load(folder, device="cpu").chat(you="Marge Simpson", location="Home", max_new_tokens=8)
    asked = []
    forward = torch.nn.Module.__call__

    def listen(self, *args, **kwargs):
        ids = kwargs.get("input_ids")
        if self is talk.cast[talk.partner].model and ids is not None and ids.shape[1] > 1:
            asked.append(ids[0].tolist())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", listen)
    talk("Well?")("Really?")
    maker = talk.cast[talk.partner].maker
    told = [prompt_ids(maker, "Home", list(talk.lines[:n]), talk.partner) for n in (1, 3)]
    assert asked == told


def test_several_adapters_answer_as_each_alone(folder, tmp_path):
    other = tmp_path / "other"
    config = dict(data=str(Run(folder).data().folder), run=str(other), max_steps=6, eval_steps=3, **TINY)
    finetune(FinetuneConfig(**{**config, "r": 2}))
    cast = load_cast([folder, str(other)], device="cpu")
    who = next(iter(cast))
    alone = [Character.load(f, who, device="cpu").says("Marge: Well?", max_new_tokens=12) for f in (folder, str(other))]
    pair = [cast[who], cast[f"{who} (other)"]]
    assert [c.says("Marge: Well?", max_new_tokens=12) for c in pair] == alone and alone[0] != alone[1]
    assert [c.says("Marge: Well?", max_new_tokens=12) for c in pair[::-1]] == alone[::-1]


def test_a_cast_is_one_model_and_a_long_talk_forgets_its_beginning(folder):
    cast = load_cast(folder, device="cpu")
    assert len({id(c.model) for c in cast.values()}) == 1 < len(cast)
    talk = Conversation(cast, you="Marge Simpson", max_new_tokens=8)
    assert talk.left_out() == 0
    for _ in range(40):
        talk.say("The dog is wearing your tie again, and he has the interview at ten.")
    assert 0 < talk.left_out() < 40
    talk()
    assert len(talk.lines) == 41


def test_infer_takes_many_prompts_and_gives_json(folder, tmp_path):
    asked = tmp_path / "asked.jsonl"
    rows = [{"prompt": "Marge: Dinner!", "speaker": "Bart Simpson"}, "Lisa Simpson: Dad?"]
    asked.write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    words = [*CLI, "infer", "--adapter", folder, "--device", "cpu", "--max-new-tokens", "8", "--answers", "2"]

    def ask(*more):
        return subprocess.run([*words, *map(str, more)], capture_output=True, text=True, timeout=120)

    done = ask("--prompts", asked, "--json", tmp_path / "said.json")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf8"))["prompts"]
    assert [row["speaker"] for row in said][0] == "Bart Simpson" and all(len(row["answers"]) == 2 for row in said)
    ask("--prompts", asked, "--json", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "said.json").read_text()
    for text, says in (
        ("[", "JSON"),
        ("[1]", "prompt 1"),
        ('["x: y", {"speaker": "A"}]', "prompt 2"),
        ("[]", "no prompt"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=f"bad.json.*{says}|{says}.*bad.json"):
            read_prompts(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('[{"prompt": "x: y", "speaker": "Nobody At All"}]')
    wrong = ask("--prompts", tmp_path / "bad.json")
    assert wrong.returncode == 2 and "Nobody At All" in wrong.stderr, wrong.stderr
