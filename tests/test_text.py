"What a model is asked with and what it says: any day, any data, whole or in pieces, the caller's random numbers kept."

import datetime
import json
import subprocess
import sys
import threading
import unicodedata
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data.dataset import cache_key
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prepare import PrepareConfig, load_data, prepare
from simpsons_llm.data.prompt import (
    CHATML,
    DATE,
    SILENCE,
    TextMaker,
    byte_tokenizer,
    chat_system,
    on_day,
    prompt_ids,
    small_tokenizer,
    with_date,
)
from simpsons_llm.data.samples import audit, row_samples, scene_samples
from simpsons_llm.machine.device import Draws, find_device
from simpsons_llm.machine.job import read_json, read_jsonl
from simpsons_llm.model import infer as I
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import (
    answer_text,
    before_after,
    bench_answer,
    finish_lines,
    heldout_moments,
    spoken,
    stream_line,
)
from simpsons_llm.talk.ollama import chat_go, chat_parts
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.train.history import perplexities, text_samples, what_was_said
from simpsons_llm.train.loop import LoopConfig, loop

ENGINES = [(FinetuneConfig, finetune), (LoopConfig, loop)]
LINES = [Line(0, 0, "Marge Simpson", "Homer, the dog is wearing your tie again.")]


@pytest.fixture(scope="module")
def tiny():
    "The tiny model and its maker of texts."
    model, tokenizer = tiny_model()
    return model.eval(), TextMaker(tokenizer)


# ---- scenes of one line ---------------------------------------------------------------------------------------------


def one_liners(kind, folder):
    "Data whose scenes are single lines: (script, its speakers)."
    words = "apples frogs pianos rivers clouds stars spoons hats lamps roads".split()
    if kind == "json":
        (folder / "script.json").write_text(
            json.dumps(
                [
                    {"instruction": "", "input": who, "output": f"{say} {w}, and that is all there is to it."}
                    for w in words
                    for who, say in (("Homer", "I like"), ("Marge", "I saw"))
                ]
            )
        )
        return folder / "script.json"
    (folder / "script.txt").write_text(
        "\n\n".join(
            f"[Place {i}]\n{('Homer', 'Marge')[i % 2]}: {w.title()} are what I think of, again and again."
            for i, w in enumerate(words)
        )
    )
    return folder / "script.txt"


@pytest.mark.parametrize("kind", ["json", "text"])
def test_scenes_of_one_line_are_learned_and_asked(kind, tmp_path, capsys):
    "Prepared, trained by both engines, sampled, asked before and after: nothing was said before, which is no error."
    prepare(
        PrepareConfig(
            script=str(one_liners(kind, tmp_path)),
            out=str(tmp_path / "data"),
            split="scene",
            valid_share=0.2,
            test_share=0.2,
            max_leak=1.0,
            file_format=kind,  # by itself such a file does not look like dialogue
        )
    )
    parts, _ = load_data(tmp_path / "data")
    assert all(len(s.lines) == 1 for p in parts.values() for s in p)
    for config, train in ENGINES:
        run = tmp_path / train.__name__
        summary = train(
            config(
                data=str(tmp_path / "data"), run=str(run), max_steps=2, eval_steps=2, **{**TINY, "sample_steps": None}
            )
        )
        assert summary["optimizer_steps"] == 2
        told = [r["samples"] for r in read_jsonl(run / "metrics.jsonl") if "samples" in r]
        assert len(told) == 2 and all(
            r["before"] == "" and r["speaker"] in ("Homer", "Marge") for rows in told for r in rows
        )
        # one of them really says something there
        assert {r["real"] for r in told[0]} & {s.lines[0].text for s in parts["valid"]}
        assert list(what_was_said(run)["before"]) == [""] * 2 and list(perplexities(run).index) == [0, 2]
    from simpsons_llm.machine.cli import main

    capsys.readouterr()
    assert (
        main(
            [
                "infer",
                "--adapter",
                str(tmp_path / "finetune" / "adapter"),
                "--data",
                str(tmp_path / "data"),
                "--speaker",
                "Homer",
                "--max-new-tokens",
                "3",
                "--out",
                str(tmp_path / "said"),
                "",
            ]
        )
        == 0
    )
    rows = read_json(tmp_path / "said" / "answers.json")["before_after"]
    assert rows and all(r["before"] == "" for r in rows) and "never seen in training" in capsys.readouterr().out


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_a_first_line_is_asked_for_as_it_is_trained(template):
    maker, scene = TextMaker(small_tokenizer(400, *CHATML), template), Scene(0, 0, "Home", LINES[:1])
    (sample,), _ = row_samples([scene], maker)
    asked = prompt_ids(maker, "Home", [], "Marge Simpson")
    assert sample.input_ids[: len(asked)] == asked and sample.learned == len(sample.input_ids) - len(asked)
    # templates insist on turns that alternate, so the user's says that nobody spoke
    if template == "chat":
        turns = [
            {"role": "system", "content": chat_system("Home", "Marge Simpson")},
            {"role": "user", "content": SILENCE},
        ]
        assert maker.tokenizer.decode(asked) == maker.frame.write(turns)


def test_moments_of_short_and_long_scenes(tiny):
    long = Scene(
        1,
        0,
        "Bar",
        tuple(Line(1, i, ("Moe", "Barney")[i % 2], f"Line number {i} of this long scene.") for i in range(8)),
    )
    alone = [Scene(0, i, "", (Line(0, i, who, "Hm."),)) for i, who in enumerate(("Moe", "Lisa", "Barney"))]
    # a scene with a context where there is one
    assert [(s, i) for s, i, *_ in heldout_moments([*alone, long], ["Moe", "Barney"])] == [(long, 4), (long, 5)]
    assert [(s.lines[0].speaker, i, who, real) for s, i, who, real in heldout_moments(alone, ["Barney"], 1)] == [
        ("Barney", 0, "Barney", "Hm.")
    ]
    for moments in (heldout_moments([], ["Moe"]), heldout_moments([long], [])):
        assert moments == [] == text_samples(*tiny, moments) == before_after(*tiny, moments)
    # no line with four before it
    short = Scene(2, 0, "Bar", long.lines[:4])
    ((s, i, who, real),) = heldout_moments([short], ["Moe"])
    assert (i, real) == (2, short.lines[2].text)
    moments = heldout_moments([short], ["Barney", "Lisa"])
    assert [(i, real) for _, i, _, real in moments] == [(2, None)] * 2
    assert [I.moment_row(m)["real"] for m in moments] == [
        "(says nothing at this moment)",
        "(says nothing in this scene)",
    ] and I.moment_row(moments[0])["before"] == "Barney: Line number 1 of this long scene."


# ---- the same text on every day -------------------------------------------------------------------------------------

DATED = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% if strftime_now is defined %}{{ strftime_now('Today is %A, %d %B %Y. ') }}{% endif %}"
    "{% endif %}" + CHATML[0]
)


def on(monkeypatch, day):
    "Set the clock that chat templates read."
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(
        chat_template_utils,
        "datetime",
        type("Clock", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None: datetime.datetime(*day))}),
    )


def test_text_is_the_same_on_every_day(monkeypatch):
    "Training, serving, Ollama's template and the name of kept samples; the template as it came is the control."
    tokenizer, scene = (
        small_tokenizer(600, DATED, CHATML[1]),
        Scene(0, 0, "Home", (*LINES, Line(0, 1, "Homer Simpson", "It has a better neck for it."))),
    )
    found = []
    for day in ((2030, 12, 31), (2031, 1, 1)):
        on(monkeypatch, day)
        maker = TextMaker(tokenizer, "chat")
        found.append(
            (
                tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False),
                scene_samples([scene], maker, ["Homer Simpson"])[0],
                row_samples([scene], maker)[0],
                prompt_ids(maker, "Home", LINES, "Homer Simpson"),
                chat_go(maker),
                chat_parts(tokenizer, DATED),
                cache_key(maker, "data"),
            )
        )
    control, *ours, parts, key = zip(*found)
    assert control[0] != control[1] and "31 December 2030" in control[0] and parts[0] != parts[1]
    assert (
        all(a == b for a, b in ours)
        and key[0] == key[1]
        and ours[3]
        and "Today is Wednesday, 01 January 2025. " in tokenizer.decode(ours[2][0])
    )
    other = TextMaker(tokenizer, "chat", date="2024-07-04")
    assert (
        "Thursday, 04 July 2024" in tokenizer.decode(prompt_ids(other, "", LINES, "Homer Simpson"))
        and cache_key(other, "data") != key[0]
    )
    again = TextMaker.of_notes(tokenizer, {"template": "chat", "max_seq_len": 99, "date": "2024-07-04"})
    assert (
        prompt_ids(again, "", LINES, "Homer Simpson") == prompt_ids(other, "", LINES, "Homer Simpson")
        and again.max_seq_len == 99
    )
    assert TextMaker.of_notes(tokenizer, {"template": "chat"}).date == DATE
    with pytest.raises(ValueError, match="date='yesterday'"):
        TextMaker(tokenizer, "chat", date="yesterday")


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n\n  {% if true %}\n", "{# words #}\n"])
def test_a_fixed_date_changes_nothing_else_of_a_template(start, monkeypatch):
    "Whitespace at its beginning included, and every code of a date as the system writes it."
    codes = [c for c in on_day(datetime.date(2024, 2, 29)) if c != "%f"]
    template = (
        start
        + "[{{ strftime_now('%d %%d' ~ ' | "
        + " | ".join(codes)
        + "') }}]"
        + ("\n{% endif %}" if "if" in start else "")
        + "\n{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    on(monkeypatch, (2024, 2, 29))
    tokenizer, said = byte_tokenizer(), [{"role": "user", "content": "Hm."}]

    def write(template):
        return tokenizer.apply_chat_template(said, tokenize=False, chat_template=template)

    fixed = with_date(template, "2024-02-29")
    assert write(fixed) == write(template) and "29 %d" in write(fixed)
    on(monkeypatch, (2031, 5, 8))
    assert write(fixed) != write(template) and with_date(fixed, "2031-05-08") == fixed


def test_notes_and_exports_keep_the_date(tmp_path, data, monkeypatch):
    "The notes name it; a published template writes it in anybody's hands."
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import simpsons_llm.talk.publish as P

    run = tmp_path / "run"
    finetune(FinetuneConfig(data=data, run=str(run), max_steps=1, eval_steps=1, **TINY))
    assert read_json(run / "adapter" / "simpsons_llm.json")["date"] == DATE
    tokenizer = small_tokenizer(400, DATED, CHATML[1])
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / P.NOTES).write_text(
        json.dumps({"template": "chat", "date": "2024-07-04", "speakers": {"Homer Simpson": 9}})
    )
    P.export(tmp_path / "m", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    on(monkeypatch, (2031, 5, 8))
    assert "04 July 2024" in theirs.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
    assert "date of the training, 2024-07-04" in (tmp_path / "out" / "README.md").read_text()
    maker = TextMaker(tokenizer, "chat")
    (tmp_path / "byhand").mkdir()
    P.write_model(model, maker, "float32", tmp_path / "byhand", {})
    assert tokenizer.chat_template == DATED and "01 January 2025" in AutoTokenizer.from_pretrained(
        tmp_path / "byhand"
    ).apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
    # an export can be exported again
    P.export(tmp_path / "out", tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == theirs.chat_template


# ---- what is said ---------------------------------------------------------------------------------------------------


def pieces_of(text, cuts):
    "A text in pieces."
    at = sorted({c % (len(text) + 1) for c in cuts})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)])]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(
        st.characters() | st.sampled_from("\n\r\t \x0b\x85\u2028\u2029\u200c\u200d\u00a0\u202e\u2066\x1b\ufeff"),
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_an_answer_in_pieces_is_the_whole_answer(text, cuts):
    "Over all of Unicode, halves of characters included."
    whole = "".join(spoken([text]))
    assert "".join(spoken(pieces_of(text, cuts))) == whole == "".join(spoken(text)) and all(spoken(text))
    assert whole == whole.strip() and len(whole.splitlines()) <= 1 and "".join(spoken([whole])) == whole
    whole.encode("utf8")
    gone = [c for c in text.lstrip().split("\n")[0] if c not in whole]
    assert all(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in I.TURNS or c.isspace() for c in gone)


@pytest.mark.parametrize(
    "text, line",
    [
        ("Quoi\u00a0?", "Quoi\u00a0?"),
        ("1\u202f000 donuts", "1\u202f000 donuts"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 here", "\U0001f468\u200d\U0001f469\u200d\U0001f467 here"),
        ("\u05e9\u05dc\u05d5\u05dd\u200f!", "\u05e9\u05dc\u05d5\u05dd\u200f!"),
        ("\uf8ff and \U000e0067", "\uf8ff and \U000e0067"),
        ("a\x1b[31mred\x07", "a[31mred"),
        ("safe\u202egnp.exe\u2069", "safegnp.exe"),
        ("half \ud83d of", "half  of"),
        ("one\ttwo\x85three\u2028four", "one two three four"),
        ("one\r\ntwo", "one"),
        ("\n \n Hm. \u00a0\nMarge:", "Hm."),
        ("\x00\nD'oh!", "D'oh!"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_letters_and_joiners_stay_and_signs_go(text, line):
    assert "".join(spoken([text])) == "".join(spoken(text)) == line


def saying(tokens):
    "A model that says these tokens, whoever asks."

    def generate(input_ids, streamer=None, stopping_criteria=None, **_):
        out = input_ids
        if streamer:
            streamer.put(input_ids.cpu())
        for t in tokens:
            out = torch.cat([out, torch.tensor([[t]])], dim=1)
            if streamer:
                streamer.put(torch.tensor([t]))
            if stopping_criteria and stopping_criteria(out, None).all():
                break
        if streamer:
            streamer.end()
        return out

    return SimpleNamespace(generate=generate, device=torch.device("cpu"), config=SimpleNamespace())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    text=st.text(
        st.characters(codec="utf-8") | st.sampled_from("\n \u200c\u200d\u00a0\u3042\u4e2d\U0001f600"), max_size=20
    )
)
def test_a_stream_says_what_an_answer_says(text, tiny):
    "Through the real streamer, a token for each byte, so that characters come in parts."
    _, maker = tiny
    model = saying(maker.tokenizer(text, add_special_tokens=False).input_ids)
    assert (
        "".join(stream_line(model, maker, "", LINES, "Homer Simpson"))
        == finish_lines(model, maker, [("", LINES, "Homer Simpson")])[0]
        == "".join(spoken([text]))
    )


def test_a_batch_says_what_each_prompt_says_alone(tiny):
    "Filled up on the left and hidden there; names in the scene make prompts of different length."
    model, maker = tiny
    greedy = Sampling(max_new_tokens=8, do_sample=False, repetition_penalty=1.0)
    requests = [
        (where, LINES * n, who)
        for where, n, who in (("", 0, "Moe"), ("Home", 1, "Homer Simpson"), ("Town Hall", 3, "Mayor Quimby"))
    ]
    batch = I.ask_batch(model, maker, requests, greedy)
    for ids, mask, (where, lines, who) in zip(batch["input_ids"], batch["attention_mask"], requests):
        assert ids[mask.bool()].tolist() == prompt_ids(maker, where, lines, who) and mask.tolist() == sorted(
            mask.tolist()
        )
    with torch.no_grad():
        together = model.generate(**batch, **greedy.arguments(), pad_token_id=maker.tokenizer.pad_token_id)[:, -8:]
        alone = [
            model.generate(
                **I.ask_batch(model, maker, [r], greedy),
                **greedy.arguments(),
                pad_token_id=maker.tokenizer.pad_token_id,
            )[0, -8:]
            for r in requests
        ]
    assert together.tolist() == [a.tolist() for a in alone]


def test_a_prompt_leaves_room_for_the_answer(tiny):
    "Within what the model was trained on, and within what it can take at all."
    model, maker = tiny
    for limit in (120, None):
        short = TextMaker(maker.tokenizer, "script", limit)
        most = limit or model.config.max_position_embeddings
        got = I.ask_batch(model, short, [("Home", LINES * 200, "Homer Simpson")], Sampling(max_new_tokens=40))[
            "input_ids"
        ].shape[1]
        assert most - 40 - 60 < got <= most - 40


# ---- random numbers -------------------------------------------------------------------------------------------------


def test_asking_leaves_the_callers_random_numbers_alone(tiny):
    model, maker = tiny
    requests, few = [("Home", LINES, "Homer Simpson")] * 2, Sampling(max_new_tokens=6)
    torch.manual_seed(11)
    expected = torch.rand(6)
    torch.manual_seed(42)
    with torch.no_grad():
        old = model.generate(
            **I.ask_batch(model, maker, requests, few),
            **few.arguments(),
            eos_token_id=maker.stop_ids,
            pad_token_id=maker.tokenizer.pad_token_id,
        )
    torch.manual_seed(11)
    got = [torch.rand(1)]
    said = finish_lines(model, maker, requests, few)
    got.append(torch.rand(1))
    # the answers of a seed are those of before
    assert said == [answer_text(maker.tokenizer, ids) for ids in old[:, -6:]]
    bench_answer(model, maker, requests[:1], Sampling(max_new_tokens=2), runs=2, warmups=0, device=find_device("cpu"))
    got.append(torch.rand(1))
    text_samples(model, maker, [(Scene(0, 0, "", tuple(LINES)), 1, "Homer Simpson", None)])
    got.append(torch.rand(1))
    reader = stream_line(model, maker, *requests[0], few)
    # drawn while the model waits
    first = next(reader)
    got.append(torch.rand(1))
    assert first + "".join(reader) == finish_lines(model, maker, requests[:1], few)[0]
    got.append(torch.rand(1))
    assert torch.cat(got).tolist() == expected.tolist()


def test_streams_at_the_same_time_do_not_mix(tiny):
    "Two readers in two threads, a third one in turns with a fourth: each gets the answer of its own seed."
    model, maker = tiny
    ask, few = ("Home", LINES, "Homer Simpson"), Sampling(max_new_tokens=12)
    alone = {seed: finish_lines(model, maker, [ask], few, seed)[0] for seed in range(4)}
    assert len(set(alone.values())) > 1
    found = {}

    def read(seed):
        found[seed] = "".join(stream_line(model, maker, *ask, few, seed))

    threads = [threading.Thread(target=read, args=[seed]) for seed in (0, 1)]
    for t in threads:
        t.start()
    two, said = {seed: stream_line(model, maker, *ask, few, seed) for seed in (2, 3)}, {2: "", 3: ""}
    while two:
        for seed in list(two):
            piece = next(two[seed], None)
            if piece is None:
                del two[seed]
            else:
                said[seed] += piece
    for t in threads:
        t.join()
    assert {**found, **said} == alone


def test_a_reader_who_has_had_enough_ends_the_drawing(tiny):
    model, maker = tiny
    before = threading.active_count()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    reader = stream_line(model, maker, "Home", LINES, "Homer Simpson", Sampling(max_new_tokens=200))
    next(reader)
    reader.close()
    assert threading.active_count() == before and torch.rand(1) == expected

    def broken(**_):
        raise RuntimeError("the model is torn")

    with pytest.raises(RuntimeError, match="torn"):
        list(
            stream_line(
                SimpleNamespace(generate=broken, device=model.device, config=model.config),
                maker,
                "",
                LINES,
                "Homer Simpson",
            )
        )
    assert threading.active_count() == before and Draws(find_device("cpu"), 1).__enter__().__exit__() is None


def test_a_program_may_end_while_a_reader_is_half_way():
    code = (
        "from simpsons_llm.model.decode import Sampling\n"
        "from simpsons_llm.model.infer import *; from simpsons_llm.model.base import tiny_model; "
        "from simpsons_llm.data.prompt import TextMaker\n"
        "model, tokenizer = tiny_model()\n"
        "reader = stream_line(model, TextMaker(tokenizer), '', [], 'Moe', Sampling(max_new_tokens=400))\n"
        "print(len(next(reader)) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "True\n", done.stderr


# ---- lines that are too long ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view, template",
    [("rows", "script"), ("rows", "alpaca"), ("scenes", "script"), ("rows", "chat"), ("scenes", "chat")],
)
def test_lines_that_are_all_too_long_are_told_by_their_length(view, template):
    maker = TextMaker(small_tokenizer(400, *CHATML), template)
    scene = Scene(
        0,
        0,
        "Home",
        (
            *LINES,
            Line(0, 1, "Homer Simpson", "Quiet."),
            Line(0, 2, "Homer Simpson", "It has a better neck for it than I ever had."),
        ),
    )
    make = row_samples if view == "rows" else scene_samples
    needs = [
        len(prompt_ids(maker, "Home", [], line.speaker)) + len(answer) + len(maker.end)
        for line, (_, answer) in zip(scene.lines, maker.said(scene.lines))
    ][1:]
    samples, too_long = make([scene], maker, ["Homer Simpson"], max_seq_len=min(needs) - 1)
    assert not samples and len(too_long) == 2
    with pytest.raises(ValueError) as e:
        audit(samples, maker, [scene], ["Homer Simpson"], min(needs) - 1)
    assert f"each of the 2 lines to learn is longer than max_seq_len={min(needs) - 1} tokens" in str(
        e.value
    ) and f"the shortest takes {min(needs)}, the longest {max(needs)})" in str(e.value)
    assert "check the speakers" not in str(e.value)
    # what it says is enough
    samples, too_long = make([scene], maker, ["Homer Simpson"], max_seq_len=max(needs))
    assert len(too_long) == 0 and audit(samples, maker)["learned_ends"] == 2
    with pytest.raises(ValueError, match="check the speakers"):
        audit([], maker, [scene], ["Moe"], 500)


def test_a_run_that_would_learn_only_what_others_say_is_refused():
    "Short lines of others count a little; the lines to learn are all too long."
    maker = TextMaker(byte_tokenizer())
    scene = Scene(
        0,
        0,
        "",
        (
            Line(0, 0, "Moe", "Closed."),
            Line(0, 1, "Homer", "But it is Friday. " * 9),
            Line(0, 2, "Moe", "So what. " * 20),
        ),
    )
    samples, too_long = scene_samples([scene], maker, ["Homer"], 60, context_weight=0.1)
    # what Moe cannot say is no line to learn
    assert samples and [line.speaker for line in too_long] == ["Homer"]
    with pytest.raises(ValueError, match="but what others say: each of the 1 lines"):
        audit(samples, maker, [scene], ["Homer"], 60)


def test_a_run_names_the_length(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"nothing to learn: each of the \d+ lines to learn is longer than max_seq_len=16 tokens"
    ):
        finetune(FinetuneConfig(data=data, run=str(tmp_path / "x"), **{**TINY, "max_seq_len": 16}))
