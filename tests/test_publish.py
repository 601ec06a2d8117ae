"Published models: the same answers, wherever and however they are loaded; nothing half done, nothing lost."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import test_ollama
import torch

import simpsons_llm.talk.publish as P
from simpsons_llm.data.prompt import TextMaker, byte_tokenizer, prompt_ids
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.cli import main
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.base import TINY, load_base, load_gguf, tiny_model
from simpsons_llm.model.decode import SAMPLING
from simpsons_llm.model.infer import InferConfig, infer

CPU, WHO = find_device("cpu", "float32"), "Homer Simpson"
small = test_ollama.small  # a fixture


def adapter_on(base_model, folder, template="script", spread=0.05, **notes):
    "An adapter with random numbers, as if it had been trained."
    base, tokenizer = load_base(str(base_model), CPU)
    model = add_adapter(base, LoRASettings(r=4, lora_alpha=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=spread)
    save_adapter(
        model, folder, {"base_model": str(base_model), "base_source": base.origin, "template": template, **notes}
    )
    return P.answer_logits(model, TextMaker(tokenizer, template), WHO)


@pytest.fixture(scope="module")
def no_converter():
    "A machine without llama.cpp."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PATH", "")
        m.delenv("LLAMA_CPP", raising=False)
        yield


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
@pytest.mark.parametrize("dtype", list(P.DTYPES))
def test_each_format_and_prompt(tmp_path, dtype, template):
    model, tokenizer = tiny_model()
    if template == "chat":
        tokenizer.chat_template = (
            "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
            "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
        )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    wanted = adapter_on(tmp_path / "base", tmp_path / "a", template)
    record = P.export(tmp_path / "a", tmp_path / "out", dtype)
    again, t = load_base(str(tmp_path / "out"), CPU)
    distance = P.logit_distance(P.answer_logits(again, TextMaker(t, template), WHO), wanted)
    assert distance == pytest.approx(record["saved"], abs=1e-6) and distance < P.DTYPES[dtype] < record["learned"]
    assert distance > 1e-5 or dtype == "float32"  # rounding was really done
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype and TextMaker(t, template).template == template
    # no path of this machine
    assert not [
        p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors" and str(tmp_path) in p.read_text()
    ]
    # others may read it as they may the rest
    assert {p.stat().st_mode & 0o044 for p in (tmp_path / "out").glob("*.safetensors")} == {
        (tmp_path / "out" / "config.json").stat().st_mode & 0o044
    }


def test_it_loads_where_there_is_neither_peft_nor_this_book(tmp_path):
    wanted = adapter_on(TINY, tmp_path / "a")
    P.merge_and_export(tmp_path / "a", tmp_path / "out")
    ids = prompt_ids(TextMaker(byte_tokenizer()), "", P.SAMPLE, WHO)
    code = (
        "import sys; sys.modules['peft'] = sys.modules['simpsons_llm'] = None\n"
        "import torch, json\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained('out'), AutoTokenizer.from_pretrained('out')\n"
        f"ids = torch.tensor([{ids}])\n"
        "torch.save(model(ids).logits[0].detach(), 'logits.pt'); print(model.generate(ids, max_new_tokens=3).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert P.logit_distance(torch.load(tmp_path / "logits.pt"), wanted) < 1e-5


def test_a_merge_that_went_wrong_is_not_published(tmp_path, monkeypatch):
    adapter_on(TINY, tmp_path / "a")
    monkeypatch.setattr(P, "merge", lambda model: model.unload())  # the adapter is thrown away
    with pytest.raises(ValueError, match="answers differently"):
        P.export(tmp_path / "a", tmp_path / "out")
    monkeypatch.undo()
    write = P.write_model

    def spoil(model, *rest):
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(1.05)
        write(model, *rest)

    monkeypatch.setattr(P, "write_model", spoil)  # what is saved is not what was merged
    with pytest.raises(ValueError, match="answers differently"):
        P.export(tmp_path / "a", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_learned_less_than_rounding_takes(tmp_path):
    adapter_on(TINY, tmp_path / "a", spread=1e-5)
    with pytest.raises(ValueError, match="training itself moved.*float32"):
        P.export(tmp_path / "a", tmp_path / "out", "bfloat16")
    assert P.export(tmp_path / "a", tmp_path / "out")["saved"] < 1e-5


def test_a_run_is_published_with_its_numbers(run, tmp_path, monkeypatch):
    folder, summary = run
    record = P.export(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        f"{summary['valid_loss_nats_base']:.4f} before, {summary['valid_loss_nats_best']:.4f} after",
        f"| optimizer steps | {summary['optimizer_steps']} |",
        f"| step kept | {summary['best_step']} |",
        f"{summary['train_lines']:,}; held out: {summary['valid_lines']:,}",
        summary["script_sha256"][:12],
        f"learning_rate={summary['settings']['learning_rate']}",
        "Homer Simpson",
    ):
        assert text in card, text
    assert "test loss" not in card and "None" not in card  # it was not scored
    # an export of an export keeps the story
    again = P.export(tmp_path / "out", tmp_path / "again", "float16")
    told = (tmp_path / "again" / "README.md").read_text()
    assert (
        f"{summary['valid_loss_nats_base']:.4f} before" in told
        and "a LoRA adapter, merged" in told
        and again["learned"] == record["learned"]
    )
    ask = dict(sampling="greedy", max_new_tokens=12)
    assert (
        infer(InferConfig(adapter=str(folder / "adapter"), **ask))["answers"]
        == infer(InferConfig(adapter=str(tmp_path / "out"), **ask))["answers"]
    )
    worse = P.Trained("adapter", folder, {"template": "script"}, {**summary, "status": "not better than the base"})
    assert "not better than its base" in P.model_card(worse, record, TextMaker(byte_tokenizer()))


@pytest.mark.parametrize(
    "who",
    [
        "Homer Simpson",
        'Bob "$(echo no)" Terwilliger\'s `cat`',
        "Sammy Davis, Jr.",
        "\u30db\u30fc\u30de\u30fc",
        "-x; ls",
    ],
)
def test_commands_of_a_card_can_be_pasted_into_a_shell(who):
    rows = P.card_use(TextMaker(byte_tokenizer()), who, "model.gguf")
    words = {
        row.split()[1]: subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {row}"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for row in rows
        if row.startswith(("simpsons-llm", "ollama"))
    }
    line = "Marge Simpson: Homer, the dog is wearing your tie again."
    assert (
        words["infer"] == ["simpsons-llm", "infer", "--adapter", ".", "--speaker", who, line]
        and words["run"][-1] == line
    )
    assert words["create"][2] == words["run"][2] and words["create"][2].isascii() and words["create"][2][0].isalnum()


def test_what_is_there_already_stays(tmp_path):
    adapter_on(TINY, tmp_path / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("out", "file", "a"):
        with pytest.raises(ValueError, match="not an earlier export|would replace"):
            P.export(tmp_path / "a", tmp_path / taken)
    assert (tmp_path / "out" / "letter.txt").read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == [
        "a",
        "file",
        "out",
    ]


def test_a_gguf_base_gives_an_ordinary_model(small, tmp_path):
    model, tokenizer, file, _ = small
    base, t = load_gguf(file, "float32")
    same = P.logit_distance(P.answer_logits(base, TextMaker(t), WHO), P.answer_logits(model, TextMaker(tokenizer), WHO))
    assert same < 1e-5  # the file is well made
    wanted = adapter_on(file, tmp_path / "a")
    record = P.export(tmp_path / "a", tmp_path / "out")
    assert (
        record["dtype"] == "float32"
        and record["learned"] > 0.05
        and "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    )
    again, t2 = load_base(str(tmp_path / "out"), CPU)
    assert (
        P.logit_distance(P.answer_logits(again, TextMaker(t2), WHO), wanted) < 1e-5
        and t2("Marge: Ay, Señor!").input_ids == t("Marge: Ay, Señor!").input_ids
    )
    assert (
        str(tmp_path) not in "".join((tmp_path / "out" / n).read_text() for n in ("README.md", P.NOTES))
        and "gguf small.gguf" in (tmp_path / "out" / "README.md").read_text()
    )


# The command line


def test_the_command(run, tmp_path, capsys, no_converter):
    folder, _ = run
    assert main(["export", str(folder), "--out", str(tmp_path / "out"), "--speaker", "marge simpson"]) == 0
    assert "fill in" in capsys.readouterr().out and "Marge Simpson" in (tmp_path / "out" / "README.md").read_text()
    drawn = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {k: drawn[k] for k in ("temperature", "top_k", "top_p", "max_new_tokens")} == {
        k: v
        for k, v in SAMPLING["book"].arguments().items()
        if k in ("temperature", "top_k", "top_p", "max_new_tokens")
    }
    assert main(["export", str(folder), "--out", str(tmp_path / "out"), "--gguf", "f16"]) == 2
    said = capsys.readouterr()
    assert (
        said.err.startswith("error: no GGUF file was made")
        and "pipx install" in said.err
        and said.err.count("\n") == 1
        and (tmp_path / "out" / "model.safetensors").is_file()
    )
    for words in (
        ("nowhere",),
        (folder, "--out", folder),
        (folder, "--gguf", "q4"),
        (folder, "--dtype", "int8"),
        (folder, "--speaker", "Hommer"),
        (folder, "--device", "tpu"),
    ):
        assert main(["export", *map(str, words)]) == 2, words
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["export", "--help"]) == 0 and "simpsons-llm export runs/x" in capsys.readouterr().out
    assert not (Path(folder) / "export").exists()
