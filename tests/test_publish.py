"Published models: the same answers, wherever and however they are loaded; nothing half done, nothing lost."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import simpsons_llm.publish as P
from simpsons_llm.cli import main
from simpsons_llm.device import find_device
from simpsons_llm.infer import SAMPLING, InferConfig, infer
from simpsons_llm.lora import LoRASettings
from simpsons_llm.model import SMOLLM2, TINY, add_adapter, load_base, load_gguf, load_tokenizer, save_adapter, tiny_model
from simpsons_llm.prompt import CHATML, TextMaker, byte_tokenizer, prompt_ids, small_tokenizer
from simpsons_llm.script import read_script

CPU, WHO = find_device("cpu", "float32"), "Homer Simpson"


def adapter_on(base_model, folder, template="script", spread=0.05, **notes):
    "An adapter with random numbers, as if it had been trained."
    base, tokenizer = load_base(str(base_model), CPU)
    model = add_adapter(base, LoRASettings(r=4, lora_alpha=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name: p.normal_(std=spread)
    save_adapter(model, folder, {"base_model": str(base_model), "base_source": base.origin, "template": template, **notes})
    return P.answer_logits(model, TextMaker(tokenizer, template), WHO)


@pytest.fixture(scope="module")
def no_converter():
    "A machine without llama.cpp."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PATH", ""); m.delenv("LLAMA_CPP", raising=False)
        yield


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
@pytest.mark.parametrize("dtype", list(P.DTYPES))
def test_each_format_and_prompt(tmp_path, dtype, template):
    model, tokenizer = tiny_model()
    if template == "chat": tokenizer.chat_template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
    model.save_pretrained(tmp_path/"base"); tokenizer.save_pretrained(tmp_path/"base")
    wanted = adapter_on(tmp_path/"base", tmp_path/"a", template)
    record = P.export(tmp_path/"a", tmp_path/"out", dtype)
    again, t = load_base(str(tmp_path/"out"), CPU)
    distance = P.logit_distance(P.answer_logits(again, TextMaker(t, template), WHO), wanted)
    assert distance == pytest.approx(record["saved"], abs=1e-6) and distance < P.DTYPES[dtype] < record["learned"]
    assert distance > 1e-5 or dtype == "float32"  # rounding was really done
    config = json.loads((tmp_path/"out"/"config.json").read_text())
    assert config["dtype"] == dtype and t.chat_template == tokenizer.chat_template
    assert not [p.name for p in (tmp_path/"out").iterdir() if p.suffix != ".safetensors" and str(tmp_path) in p.read_text()]  # no path of this machine
    assert {p.stat().st_mode & 0o044 for p in (tmp_path/"out").glob("*.safetensors")} == {(tmp_path/"out"/"config.json").stat().st_mode & 0o044}  # others may read it as they may the rest


def test_it_loads_where_there_is_neither_peft_nor_this_book(tmp_path):
    wanted = adapter_on(TINY, tmp_path/"a")
    P.merge_and_export(tmp_path/"a", tmp_path/"out")
    ids = prompt_ids(TextMaker(byte_tokenizer()), "", P.SAMPLE, WHO)
    code = ("import sys; sys.modules['peft'] = sys.modules['simpsons_llm'] = None\nimport torch, json\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"model, tokenizer = AutoModelForCausalLM.from_pretrained('out'), AutoTokenizer.from_pretrained('out')\nids = torch.tensor([{ids}])\n"
            "torch.save(model(ids).logits[0].detach(), 'logits.pt'); print(model.generate(ids, max_new_tokens=3).shape)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert P.logit_distance(torch.load(tmp_path/"logits.pt"), wanted) < 1e-5


def test_a_merge_that_went_wrong_is_not_published(tmp_path, monkeypatch):
    adapter_on(TINY, tmp_path/"a")
    monkeypatch.setattr(P, "merge", lambda model: model.unload())  # the adapter is thrown away
    with pytest.raises(ValueError, match="answers differently"): P.export(tmp_path/"a", tmp_path/"out")
    monkeypatch.undo()
    write = P.write_model
    def spoil(model, *rest):
        with torch.no_grad(): model.model.layers[1].mlp.up_proj.weight.mul_(1.05)
        write(model, *rest)
    monkeypatch.setattr(P, "write_model", spoil)  # what is saved is not what was merged
    with pytest.raises(ValueError, match="answers differently"): P.export(tmp_path/"a", tmp_path/"out")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_learned_less_than_rounding_takes(tmp_path):
    adapter_on(TINY, tmp_path/"a", spread=1e-5)
    with pytest.raises(ValueError, match="training itself moved.*float32"): P.export(tmp_path/"a", tmp_path/"out", "bfloat16")
    assert P.export(tmp_path/"a", tmp_path/"out")["saved"] < 1e-5


def test_a_run_is_published_with_its_numbers(run, tmp_path, monkeypatch):
    folder, summary = run
    record = P.export(folder, tmp_path/"out")
    card = (tmp_path/"out"/"README.md").read_text()
    for text in (f"{summary['valid_loss_nats_base']:.4f} before, {summary['valid_loss_nats_best']:.4f} after", f"| optimizer steps | {summary['optimizer_steps']} |", f"| step kept | {summary['best_step']} |",
                 f"{summary['train_lines']:,}; held out: {summary['valid_lines']:,}", summary["script_sha256"][:12], f"learning_rate={summary['settings']['learning_rate']}", "Homer Simpson"): assert text in card, text
    assert "test loss" not in card and "None" not in card  # it was not scored
    again = P.export(tmp_path/"out", tmp_path/"again", "float16")  # an export of an export keeps the story
    told = (tmp_path/"again"/"README.md").read_text()
    assert f"{summary['valid_loss_nats_base']:.4f} before" in told and "a LoRA adapter, merged" in told and again["learned"] == record["learned"]
    ask = dict(sampling="greedy", max_new_tokens=12)
    assert infer(InferConfig(adapter=str(folder/"adapter"), **ask))["answers"] == infer(InferConfig(adapter=str(tmp_path/"out"), **ask))["answers"]
    worse = P.Trained("adapter", folder, {"template": "script"}, {**summary, "status": "not better than the base"})
    assert "not better than its base" in P.model_card(worse, record, TextMaker(byte_tokenizer()))


def test_what_is_there_already_stays(tmp_path):
    adapter_on(TINY, tmp_path/"a")
    (tmp_path/"out").mkdir(); (tmp_path/"out"/"letter.txt").write_text("mine"); (tmp_path/"file").write_text("mine")
    for taken in ("out", "file", "a"):
        with pytest.raises(ValueError, match="not an earlier export|would replace"): P.export(tmp_path/"a", tmp_path/taken)
    assert (tmp_path/"out"/"letter.txt").read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["a", "file", "out"]


# GGUF

def write_gguf(model, tokenizer, path, add_bos=False):
    "A Llama in GGUF, by the gguf library: what the converter would write, in the few fields that matter here."
    import gguf
    c, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(c.num_hidden_layers); w.add_context_length(c.max_position_embeddings); w.add_embedding_length(c.hidden_size); w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads); w.add_head_count_kv(c.num_key_value_heads); w.add_layer_norm_rms_eps(c.rms_norm_eps); w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(c.head_dim); w.add_vocab_size(c.vocab_size)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2"); w.add_token_list([t for t, _ in sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1])])
    w.add_token_types([3 if i < 3 else 1 for i in range(len(tokenizer))]); w.add_token_merges([" ".join(m) for m in spec["merges"]])
    w.add_bos_token_id(tokenizer.bos_token_id); w.add_eos_token_id(tokenizer.eos_token_id); w.add_pad_token_id(tokenizer.pad_token_id); w.add_add_bos_token(add_bos)
    for name, value in model.state_dict().items():
        value = value.float()
        for part, heads in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            if part in name: value = value.reshape(heads, 2, value.shape[0]//heads//2, -1).swapaxes(1, 2).reshape(value.shape)
        w.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A small Llama with a BPE tokenizer: (model, tokenizer, GGUF file, exported folder)."
    from transformers import LlamaConfig, LlamaForCausalLM
    place, tokenizer = tmp_path_factory.mktemp("gguf"), small_tokenizer(400)
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                         max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
    write_gguf(model, tokenizer, place/"small.gguf")
    model.save_pretrained(place/"model"); tokenizer.save_pretrained(place/"model"); (place/"model"/P.NOTES).write_text('{"template": "script"}')
    return model, tokenizer, place/"small.gguf", place/"model"


def test_a_gguf_base_gives_an_ordinary_model(small, tmp_path):
    model, tokenizer, file, _ = small
    base, t = load_gguf(file, "float32")
    same = P.logit_distance(P.answer_logits(base, TextMaker(t), WHO), P.answer_logits(model, TextMaker(tokenizer), WHO))
    assert same < 1e-5  # the file is well made
    wanted = adapter_on(file, tmp_path/"a")
    record = P.export(tmp_path/"a", tmp_path/"out")
    assert record["dtype"] == "float32" and record["learned"] > 0.05 and "quantization_config" not in (tmp_path/"out"/"config.json").read_text()
    again, t2 = load_base(str(tmp_path/"out"), CPU)
    assert P.logit_distance(P.answer_logits(again, TextMaker(t2), WHO), wanted) < 1e-5 and t2("Marge: Ay, Señor!").input_ids == t("Marge: Ay, Señor!").input_ids
    assert str(tmp_path) not in "".join((tmp_path/"out"/n).read_text() for n in ("README.md", P.NOTES)) and "gguf small.gguf" in (tmp_path/"out"/"README.md").read_text()


def test_a_gguf_file_is_held_against_its_model(small, tmp_path):
    model, tokenizer, file, folder = small
    assert P.check_gguf(file, folder, False, "f32") == {"tensors": len(model.state_dict()), "architecture": "llama"}
    with pytest.raises(ValueError, match="leaves out the token bos"): P.check_gguf(file, folder, True, "f32")
    other, _ = load_base(str(folder), CPU)
    with torch.no_grad(): other.get_input_embeddings().weight.mul_(1.01)
    write_gguf(other, tokenizer, tmp_path/"other.gguf")
    with pytest.raises(ValueError, match="embedding"): P.check_gguf(tmp_path/"other.gguf", folder, False, "f16")
    write_gguf(model, tokenizer, tmp_path/"bos.gguf", add_bos=True)
    with pytest.raises(ValueError, match="adds the token bos"): P.check_gguf(tmp_path/"bos.gguf", folder, False, "f32")


def converter(folder, does):
    "A stand-in for llama.cpp's script."
    folder.mkdir(exist_ok=True)
    (folder/"convert_hf_to_gguf.py").write_text(f"import shutil, sys\nfolder, _, outtype, _, out = sys.argv[1:]\n{does}\n")
    return str(folder)


def test_the_converter_is_called_and_checked(small, tmp_path, monkeypatch):
    model, tokenizer, file, folder = small
    monkeypatch.setenv("LLAMA_CPP", converter(tmp_path/"good", f"shutil.copy({str(file)!r}, out)"))
    made = P.export(folder, tmp_path/"out", gguf="f32", sampling=SAMPLING["book"].arguments())
    assert made["gguf"]["file"] == "model-f32.gguf" and made["gguf"]["tensors"] == len(model.state_dict()) and (tmp_path/"out"/"model-f32.gguf").read_bytes() == file.read_bytes()
    text = (tmp_path/"out"/"Modelfile").read_text()
    assert "FROM ./model-f32.gguf\n" in text and "ollama create homer-simpson" in (tmp_path/"out"/"README.md").read_text()
    for ours, theirs in P.PARAMETERS.items(): assert f"PARAMETER {theirs} {SAMPLING['book'].arguments()[ours]}\n" in text  # as chapter 07 draws
    monkeypatch.setenv("LLAMA_CPP", converter(tmp_path/"bad", "sys.exit('pre-tokenizer was not recognized')"))
    made = P.export(folder, tmp_path/"out", gguf="f32")
    assert made["gguf"]["file"] is None and "refused the model: pre-tokenizer was not recognized" in made["gguf"]["note"] and (tmp_path/"out"/"model.safetensors").is_file()
    with torch.no_grad(): model.get_input_embeddings().weight.mul_(1.01)
    try: write_gguf(model, tokenizer, tmp_path/"wrong.gguf")
    finally:
        with torch.no_grad(): model.get_input_embeddings().weight.div_(1.01)
    monkeypatch.setenv("LLAMA_CPP", converter(tmp_path/"wrong", f"shutil.copy({str(tmp_path/'wrong.gguf')!r}, out)"))
    with pytest.raises(ValueError, match="embedding"): P.to_gguf(folder, tmp_path/"x.gguf", "f32")
    assert not list(tmp_path.glob("*x.gguf*"))


@pytest.mark.skipif(not P.find_converter(), reason="llama.cpp's converter is not installed")
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_the_real_converter(tmp_path, outtype):
    "A small Llama with SmolLM2's tokenizer: the converter knows that one."
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM
    tokenizer = load_tokenizer(SMOLLM2)
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                                         pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    model.save_pretrained(tmp_path/"m"); tokenizer.save_pretrained(tmp_path/"m"); (tmp_path/"m"/P.NOTES).write_text('{"template": "script", "speakers": {"Homer Simpson": 9}}')
    record = P.export(tmp_path/"m", tmp_path/"out", gguf=outtype)
    assert record["gguf"]["architecture"] == "llama" and record["gguf"]["tensors"] == len(model.state_dict()) - 1, record["gguf"]  # tied: written once
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path/"out"/f"model-{outtype}.gguf").tensors}
    ours = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    theirs = gguf.quants.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
    assert 0 < np.linalg.norm(ours - theirs)/np.linalg.norm(ours) < P.OUTTYPES[outtype]
    if outtype == "f16":
        again, t = load_gguf(tmp_path/"out"/"model-f16.gguf", "float32")
        maker = TextMaker(tokenizer)  # not every version of transformers finds the end token in a GGUF file
        assert 0 < P.logit_distance(P.answer_logits(again, maker, WHO), P.answer_logits(model, maker, WHO)) < P.DTYPES["float16"]
        assert t("Homer Simpson: D'oh!\n").input_ids == tokenizer("Homer Simpson: D'oh!\n").input_ids


# Templates

GO = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
	var in struct { Template, System string; Messages []struct{ Role, Content string } }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
	all := in.Messages
	if in.System != "" { all = append([]struct{ Role, Content string }{{"system", in.System}}, all...) }
	if err := template.Must(template.New("").Parse(in.Template)).Execute(os.Stdout, map[string]any{"System": in.System, "Messages": all}); err != nil { panic(err) }
}
"""


@pytest.mark.skipif(not shutil.which("go"), reason="the language Go is not installed")
def test_go_reads_the_templates_as_we_do(tmp_path):
    (tmp_path/"main.go").write_text(GO)
    env = {**os.environ, "GOCACHE": str(tmp_path/"cache"), "GOPATH": str(tmp_path/"path"), "GOTOOLCHAIN": "local"}
    subprocess.run(["go", "build", "-o", str(tmp_path/"render"), str(tmp_path/"main.go")], check=True, env=env)
    lines = read_script("springfield").scenes[0].lines[:6]
    for maker in (TextMaker(byte_tokenizer()), TextMaker(byte_tokenizer(), "alpaca"), TextMaker(small_tokenizer(400, *CHATML), "chat")):
        go = P.ollama_template(maker, WHO)
        for system in ("", "Moe's Tavern"):
            for messages in (P.as_messages(lines, WHO), [{"role": "user", "content": "Marge: Hm."}, {"role": "assistant", "content": " D'oh!"}, {"role": "assistant", "content": ""}]):
                given = json.dumps({"Template": go, "System": system, "Messages": messages})
                assert subprocess.run([str(tmp_path/"render")], input=given, capture_output=True, text=True, check=True).stdout == P.render_go(go, system, messages)


def modelfile_values(text):
    "Read a Modelfile as Ollama does: one command a line, or up to the closing triple quotes; quotes know no escapes."
    found = re.findall(r'^(?:#.*|(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) ("""(?:.|\n)*?"""|.*))$', text, re.M)
    return [(name, value[3:-3] if value.startswith('"""') else value) for name, value in found if name]


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_a_modelfile_asks_as_in_training(template):
    maker = TextMaker(small_tokenizer(400, *CHATML), template, 256)
    for location in ("", "Moe's Tavern"):
        values = dict(modelfile_values(P.modelfile(maker, WHO, "m.gguf", location, SAMPLING["greedy"].arguments())))
        text = P.render_go(values["TEMPLATE"], values.get("SYSTEM", ""), P.as_messages(P.SAMPLE, WHO))
        assert maker.marked([text])[0] == prompt_ids(maker, location, P.SAMPLE, WHO)
        assert values["FROM"] == "./m.gguf" and values["PARAMETER temperature"] == "0" and values["PARAMETER num_ctx"] == "256" and values["PARAMETER repeat_last_n"] == "-1"
        assert values["PARAMETER stop"] == ("<|im_end|>" if template == "chat" else "\n")  # a real newline, not a backslash and an n


def test_bos_is_written_once():
    "Where texts of the training begin with bos, llama.cpp writes it: the chat's own is taken off the template."
    tokenizer = small_tokenizer(400, "<bos>" + CHATML[0], CHATML[1])
    from tokenizers.processors import TemplateProcessing
    for adds in (False, True):
        if adds: tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
        for template in ("script", "chat"):
            maker = TextMaker(tokenizer, template)
            assert bool(maker.bos) == adds
            ids = P.ollama_ids(maker, P.ollama_template(maker, WHO), "", P.SAMPLE, WHO)
            assert ids == prompt_ids(maker, "", P.SAMPLE, WHO) and ids.count(tokenizer.bos_token_id) == (adds or template == "chat")


# The command line

def test_the_command(run, tmp_path, capsys, no_converter):
    folder, _ = run
    assert main(["export", str(folder), "--out", str(tmp_path/"out"), "--speaker", "marge simpson"]) == 0
    assert "fill in" in capsys.readouterr().out and "Marge Simpson" in (tmp_path/"out"/"README.md").read_text()
    drawn = json.loads((tmp_path/"out"/"generation_config.json").read_text())
    assert {k: drawn[k] for k in ("temperature", "top_k", "top_p", "max_new_tokens")} == {k: v for k, v in SAMPLING["book"].arguments().items() if k in ("temperature", "top_k", "top_p", "max_new_tokens")}
    assert main(["export", str(folder), "--out", str(tmp_path/"out"), "--gguf", "f16"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: no GGUF file was made") and "pipx install" in said.err and said.err.count("\n") == 1 and (tmp_path/"out"/"model.safetensors").is_file()
    for words in (("nowhere",), (folder, "--out", folder), (folder, "--gguf", "q4"), (folder, "--dtype", "int8"), (folder, "--speaker", "Hommer"), (folder, "--device", "tpu")):
        assert main(["export", *map(str, words)]) == 2, words
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["export", "--help"]) == 0 and "simpsons-llm export runs/x" in capsys.readouterr().out
    assert not (Path(folder)/"export").exists()
