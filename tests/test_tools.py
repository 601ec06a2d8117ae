"A published folder in other hands: the same tokens in, the same line out, whatever program runs the template."

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_ollama
import torch
from conftest import TINY as SETTINGS
from test_publish import CPU, WHO, adapter_on

import simpsons_llm.talk.publish as P
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line
from simpsons_llm.data.prompt import CHATML, OWN_TEMPLATE, ChatFrame, TextMaker, prompt_ids, small_tokenizer
from simpsons_llm.machine.cli import main
from simpsons_llm.machine.job import read_json, unseal
from simpsons_llm.model.base import SMOLLM2, TINY, load_base, load_tokenizer, tiny_model
from simpsons_llm.model.character import Character
from simpsons_llm.talk.template import scene_messages, scene_template, template_ids, template_note
from simpsons_llm.talk.tools import cast_command, cast_objections
from simpsons_llm.train.finetune import FinetuneConfig, finetune

small = test_ollama.small  # a fixture
KNOWN = {WHO: 9, "Marge Simpson": 7, "Bart Simpson": 5}
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
HEADERS = (
    "<bos>{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}",
    ("<|start|>", "<|stop|>", "<|over|>"),
)
NO_SYSTEM = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ raise_exception('turns alternate') if (m['role'] == 'user') != (loop.index0 % 2 == 0) }}"
    "<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}",
    ("<turn>", "<end>"),
)
TOKENIZERS = {
    "SmolLM2": lambda: load_tokenizer(SMOLLM2),
    "BPE": lambda: small_tokenizer(1200),
    "ChatML": lambda: small_tokenizer(1200, *CHATML),
    "headers": lambda: small_tokenizer(1200, *HEADERS),
    "no system": lambda: small_tokenizer(1200, *NO_SYSTEM),
}


def begins_with_bos(tokenizer):
    "A tokenizer that puts the token bos before each text, as Llama's do."
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return tokenizer


def published(tokenizer, template, folder, names=tuple(KNOWN)):
    "(maker, tokenizer as it is loaded from a folder to which the template was saved)."
    from transformers import AutoTokenizer

    maker = TextMaker(tokenizer, template)
    tokenizer.chat_template = scene_template(maker, WHO, names)
    tokenizer.save_pretrained(folder)
    return maker, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "name, template, bos",
    [(n, t, False) for n in ("SmolLM2", "BPE") for t in ("script", "alpaca")]
    + [("BPE", t, True) for t in ("script", "alpaca")]
    + [("SmolLM2", "chat", False), ("ChatML", "chat", False), ("headers", "chat", True), ("no system", "chat", True)],
)
def test_the_template_asks_with_the_tokens_of_the_training(name, template, bos, tmp_path):
    "Every moment of forty scenes, for three characters, through a tokenizer that was saved and loaded."
    tokenizer = TOKENIZERS[name]()
    maker, theirs = published(begins_with_bos(tokenizer) if bos else tokenizer, template, tmp_path)
    assert bool(maker.bos) == bos and template_note(theirs, maker, WHO) == ""
    compared = 0
    for scene in read_script("springfield").scenes[25:65]:
        for who in KNOWN:
            for i in range(1, min(10, len(scene.lines) + 1)):
                lines = scene.lines[:i]
                ids = template_ids(theirs, scene_messages(scene.location, lines, who), speaker=who)
                assert ids == prompt_ids(maker, scene.location, lines, who), (i, who, theirs.decode(ids))
                assert ids.count(theirs.bos_token_id) == ids.count(maker.tokenizer.bos_token_id)
                compared += 1
    assert compared > 500


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_messages_as_people_send_them(template, tmp_path):
    "Without a place, with names, roles of other houses, blanks, line ends of other systems, and empty messages."
    maker, theirs = published(small_tokenizer(1200, *CHATML), template, tmp_path)
    lines = [Line(0, 0, "Marge Simpson", "Two: one and two."), Line(0, 1, "Moe", "It barks."), Line(0, 2, WHO, "Doh!")]
    wanted = prompt_ids(maker, "Home", lines, WHO)
    rows = "Marge Simpson: Two: one and two.\r\n\n  Moe: It barks. \n"
    for messages in (
        [("system", "Home"), ("user", rows), ("assistant", "Doh!")],
        [("developer", " Home\n"), ("user", rows), ("assistant", " Doh!\n")],
        [("user", rows), ("system", "Home"), ("user", ""), ("user", None), ("user", "Homer Simpson: Doh!")],
    ):
        assert template_ids(theirs, [{"role": r, "content": c} for r, c in messages]) == wanted
    named = [{"role": "user", "name": "Marge Simpson", "content": "Two: one\nand two."}]
    named += [{"role": "user", "content": "It barks."}, {"role": "user", "name": WHO, "content": "Doh!"}]
    assert template_ids(theirs, [{"role": "system", "content": "Home"}, *named], you="Moe") == wanted
    # whoever has most lines, but who is asked
    lines[1] = lines[1]._replace(speaker="Marge Simpson")
    assert template_ids(theirs, named) == prompt_ids(maker, "", lines, WHO)
    alone = theirs.decode(template_ids(theirs, [{"role": "user", "content": "A: b\nc"}], speaker="Marge Simpson"))
    assert "Homer Simpson: A: b c" in alone
    text = theirs.apply_chat_template(named, tokenize=False, add_generation_prompt=False)
    if template != "alpaca":
        assert theirs.apply_chat_template(named, tokenize=False, add_generation_prompt=True).startswith(text)


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
@pytest.mark.parametrize("trim", [True, False])
def test_any_jinja_will_do(template, trim, tmp_path):
    "Programs differ in what they do with line ends behind a block: the template has none."
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    maker, theirs = published(small_tokenizer(1200, *CHATML), template, tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    written = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim).from_string(template)
    messages = scene_messages("Home", read_script("springfield").scenes[3].lines[:6], WHO)
    text = written.render(messages=messages, add_generation_prompt=True, bos_token="<bos>")
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_character_that_was_not_learned_is_refused(tmp_path):
    _, theirs = published(small_tokenizer(1200), "script", tmp_path)
    with pytest.raises(Exception, match="Moe Szyslak was not learned by this model; it knows Homer Simpson"):
        template_ids(theirs, [{"role": "user", "content": "Hm."}], speaker="Moe Szyslak")
    _, anybody = published(small_tokenizer(1200), "script", tmp_path, ())
    assert anybody.decode(template_ids(anybody, [{"role": "user", "content": "A: Hm."}], speaker="Moe")).endswith(
        "Moe:"
    )
    with pytest.raises(ValueError, match="no speaker"):
        scene_template(TextMaker(small_tokenizer(1200)), " ")


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_an_export_says_what_the_run_says(template, tmp_path):
    "Greedy, by transformers alone, from the folder: the same line, which ends where ours does."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = tiny_model()
    tokenizer.chat_template = (
        HEADERS[0].replace("<|start|>", "<bos>").replace("<|stop|>", ">").replace("<|over|>", "<eos>")
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter_on(tmp_path / "base", tmp_path / "run" / "adapter", template, spread=0.3, speakers=KNOWN)
    P.export(tmp_path / "run", tmp_path / "out", sampling=GREEDY)
    theirs, tokens = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    maker = TextMaker(tokenizer, template)
    # with random numbers an answer would hardly end: the end becomes a little likelier than a token that was said
    scene = read_script("springfield").scenes[0]
    ids = torch.tensor([prompt_ids(maker, scene.location, scene.lines[:3], WHO)])
    said = theirs.generate(ids, max_new_tokens=8, eos_token_id=None)[0, ids.shape[1] + 5]
    with torch.no_grad():
        head = theirs.get_output_embeddings().weight
        head[maker.stop_ids[-1]] = head[said] * 1.05
    unseal(tmp_path / "out")  # changed on purpose
    theirs.save_pretrained(tmp_path / "out")
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == maker.stop_ids
    ended, homer = 0, Character.load(tmp_path / "out", WHO, device="cpu", dtype="float32", sampling="greedy")
    for scene in read_script("springfield").scenes[:12]:
        lines = scene.lines[:3]
        messages = scene_messages(scene.location, lines, WHO)
        ids = tokens.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = theirs.generate(**ids, max_new_tokens=60)[0, ids["input_ids"].shape[1] :]
        said = homer.says([f"{line.speaker}: {line.text}" for line in lines], scene.location)
        text = tokens.decode(answer, skip_special_tokens=True)
        assert "".join(shown(text)) == said
        ended += len(answer) < 60 and answer[-1].item() in maker.stop_ids
    assert ended


def shown(text):
    "An answer as this book shows it."
    from simpsons_llm.model.infer import spoken

    return spoken([text])


def test_an_exported_chat_model_can_be_trained_and_exported_again(tmp_path, data):
    "The template of a scene is taken off: the model's own is what a further training writes with."
    model, tokenizer = tiny_model()
    own = HEADERS[0].replace("<|start|>", "<bos>").replace("<|stop|>", ">").replace("<|over|>", "<eos>")
    tokenizer.chat_template = own
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter_on(tmp_path / "base", tmp_path / "a", "chat", speakers=KNOWN)
    P.export(tmp_path / "a", tmp_path / "out")
    _, theirs = load_base(str(tmp_path / "out"), CPU)
    assert theirs.chat_template.endswith(OWN_TEMPLATE + own) and ChatFrame(theirs).template == own
    P.export(tmp_path / "out", tmp_path / "again")
    assert load_base(str(tmp_path / "again"), CPU)[1].chat_template == theirs.chat_template
    made = dict(SETTINGS, base_model=str(tmp_path / "out"), template="chat", max_seq_len=700)
    summary = finetune(FinetuneConfig(data=data, run=str(tmp_path / "more"), max_steps=1, eval_steps=1, **made))
    assert summary["status"] in ("done", "not better than the base")


def test_the_end_of_a_line_stands_in_the_gguf_file(small, tmp_path, monkeypatch):
    "llama.cpp does not read generation_config.json: the newline goes to the place of one more end."
    from gguf import GGUFReader

    model, tokenizer, file, folder = small
    monkeypatch.setenv(
        "LLAMA_CPP", test_ollama.converter(tmp_path / "c", f"import shutil; shutil.copy({str(file)!r}, out)")
    )
    made = P.export(folder, tmp_path / "out", gguf="f32")
    before, after = GGUFReader(file), GGUFReader(tmp_path / "out" / made["gguf"]["file"])
    ends = TextMaker(tokenizer).stop_ids
    assert after.get_field("tokenizer.ggml.eot_token_id").contents() in set(ends) - {tokenizer.eos_token_id}
    assert after.get_field("tokenizer.ggml.eos_token_id").contents() == tokenizer.eos_token_id
    assert set(after.fields) - set(before.fields) == {"tokenizer.ggml.eot_token_id"}
    assert all(
        (a.data == b.data).all() and a.name == b.name for a, b in zip(after.tensors, before.tensors, strict=True)
    )
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    # an answer that ends with the tokenizer's own end needs no other
    (folder / P.NOTES).write_text('{"template": "alpaca"}')
    try:
        made = P.export(folder, tmp_path / "alpaca", gguf="f32")
    finally:
        (folder / P.NOTES).write_text('{"template": "script"}')
    assert (tmp_path / "alpaca" / made["gguf"]["file"]).read_bytes() == Path(file).read_bytes()


def test_what_vllm_would_refuse(tmp_path):
    adapter_on(TINY, tmp_path / "a")
    adapter_on(TINY, tmp_path / "b")
    config = read_json(tmp_path / "b" / "adapter_config.json")
    for change, meant in (
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"bias": "all"}, "bias=all"),
        ({"r": 1024}, "1024"),
        ({"init_lora_weights": "pissa_niter_4"}, "PiSSA"),
    ):
        (tmp_path / "b" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        assert meant in " ".join(cast_objections(tmp_path / "b"))
        with pytest.raises(ValueError, match="vLLM would refuse"):
            cast_command("base", {"a": tmp_path / "a", "b": tmp_path / "b"}, "out")
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps({**config, "r": 24}))
    line = cast_command("base", {"a": tmp_path / "a", "b's": tmp_path / "b"}, "my out", 512)
    words = shlex.split(line)
    assert words[words.index("--max-lora-rank") + 1] == "32" and f"b's={tmp_path / 'b'}" in words
    assert words[-4:] == ["--chat-template", "my out/chat_template.jinja", "--generation-config", "my out"]
    with pytest.raises(FileNotFoundError):
        cast_command("base", {"a": tmp_path / "nowhere"}, "out")


def listens(port):
    "Whether somebody does."
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_the_server_of_transformers_as_export_prints_it(tmp_path, capsys):
    "The printed line, a port of its own, the openai client: every prompt as long as ours, every answer ours."
    openai = pytest.importorskip("openai")
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("transformers[serving] is not installed")
    adapter_on(TINY, tmp_path / "run" / "adapter", spread=0.3, speakers=KNOWN, max_seq_len=512)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    words = shlex.split(next(r for r in printed.splitlines() if r.strip().startswith("transformers serve")))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = [str(Path(sys.executable).parent / words[0]), *words[1:], "--port", str(port)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(program, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            assert server.poll() is None
            if listens(port):
                break
            time.sleep(1)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
        # what the folder says of repetition holds there, and cannot be asked away
        homer = Character.load(out, WHO, device="cpu", dtype="float32", sampling="greedy")
        for scene in read_script("springfield").scenes[:3]:
            lines = scene.lines[:4]
            done = client.chat.completions.create(
                model=str(out), messages=scene_messages(scene.location, lines, WHO), temperature=0, max_tokens=60
            )
            rows = [f"{line.speaker}: {line.text}" for line in lines]
            said = homer.says(rows, scene.location, repetition_penalty=1.05)
            assert done.usage.prompt_tokens == len(prompt_ids(homer.maker, scene.location, lines, WHO))
            assert "".join(shown(done.choices[0].message.content)) == said
    finally:
        server.terminate()
        server.wait(30)
