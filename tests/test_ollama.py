"What goes to llama.cpp and Ollama: the same weights, asked with the same tokens."

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

import simpsons_llm.talk.ollama as O
import simpsons_llm.talk.publish as P
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prompt import CHATML, TextMaker, byte_tokenizer, prompt_ids, small_tokenizer
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.base import SMOLLM2, load_base, load_gguf, load_tokenizer
from simpsons_llm.model.decode import SAMPLING

CPU, WHO = find_device("cpu", "float32"), "Homer Simpson"


def write_gguf(model, tokenizer, path, add_bos=False):
    "A Llama in GGUF, by the gguf library: what the converter would write, in the few fields that matter here."
    import gguf

    c, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(c.head_dim)
    w.add_vocab_size(c.vocab_size)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([t for t, _ in sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1])])
    w.add_token_types([3 if i < 3 else 1 for i in range(len(tokenizer))])
    w.add_token_merges([" ".join(m) for m in spec["merges"]])
    w.add_bos_token_id(tokenizer.bos_token_id)
    w.add_eos_token_id(tokenizer.eos_token_id)
    w.add_pad_token_id(tokenizer.pad_token_id)
    w.add_add_bos_token(add_bos)
    for name, value in model.state_dict().items():
        value = value.float()
        for part, heads in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            if part in name:
                value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        w.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A small Llama with a BPE tokenizer: (model, tokenizer, GGUF file, exported folder)."
    from transformers import LlamaConfig, LlamaForCausalLM

    place, tokenizer = tmp_path_factory.mktemp("gguf"), small_tokenizer(400)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    write_gguf(model, tokenizer, place / "small.gguf")
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "model" / P.NOTES).write_text('{"template": "script"}')
    return model, tokenizer, place / "small.gguf", place / "model"


def test_a_gguf_file_is_held_against_its_model(small, tmp_path):
    model, tokenizer, file, folder = small
    assert O.check_gguf(file, folder, False, "f32") == {"tensors": len(model.state_dict()), "architecture": "llama"}
    with pytest.raises(ValueError, match="leaves out the token bos"):
        O.check_gguf(file, folder, True, "f32")
    other, _ = load_base(str(folder), CPU)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.01)
    write_gguf(other, tokenizer, tmp_path / "other.gguf")
    with pytest.raises(ValueError, match="embedding"):
        O.check_gguf(tmp_path / "other.gguf", folder, False, "f16")
    write_gguf(model, tokenizer, tmp_path / "bos.gguf", add_bos=True)
    with pytest.raises(ValueError, match="adds the token bos"):
        O.check_gguf(tmp_path / "bos.gguf", folder, False, "f32")


def test_a_gguf_file_is_read_once(small, monkeypatch):
    import gguf

    model, tokenizer, file, folder = small
    made = []
    for kind in (gguf.GGUFReader, gguf.TensorNameMap):
        begin = kind.__init__
        monkeypatch.setattr(
            kind, "__init__", lambda self, *a, begin=begin, kind=kind: (made.append(kind.__name__), begin(self, *a))[1]
        )
    theirs = gguf.GGUFReader
    again, t = load_gguf(file, "float32")
    assert sorted(made) == ["GGUFReader", "TensorNameMap"] and gguf.GGUFReader is theirs
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert t("Homer Simpson: D'oh!\n").input_ids == tokenizer("Homer Simpson: D'oh!\n").input_ids


def converter(folder, does):
    "A stand-in for llama.cpp's script."
    folder.mkdir(exist_ok=True)
    (folder / "convert_hf_to_gguf.py").write_text(
        f"import shutil, sys\nfolder, _, outtype, _, out = sys.argv[1:]\n{does}\n"
    )
    return str(folder)


def test_the_converter_is_called_and_checked(small, tmp_path, monkeypatch):
    model, tokenizer, file, folder = small
    monkeypatch.setenv("LLAMA_CPP", converter(tmp_path / "good", f"shutil.copy({str(file)!r}, out)"))
    made = P.export(folder, tmp_path / "out", gguf="f32", sampling=SAMPLING["book"].arguments())
    assert (
        made["gguf"]["file"] == "model-f32.gguf"
        and made["gguf"]["tensors"] == len(model.state_dict())
        and load_gguf(tmp_path / "out" / "model-f32.gguf", "float32")[1].get_vocab() == tokenizer.get_vocab()
    )
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert (
        "FROM ./model-f32.gguf\n" in text
        and "ollama create homer-simpson" in (tmp_path / "out" / "README.md").read_text()
    )
    # as chapter 07 draws
    for ours, theirs in O.PARAMETERS.items():
        assert f"PARAMETER {theirs} {SAMPLING['book'].arguments()[ours]}\n" in text
    monkeypatch.setenv("LLAMA_CPP", converter(tmp_path / "bad", "sys.exit('pre-tokenizer was not recognized')"))
    made = P.export(folder, tmp_path / "out", gguf="f32")
    assert (
        made["gguf"]["file"] is None
        and "refused the model: pre-tokenizer was not recognized" in made["gguf"]["note"]
        and (tmp_path / "out" / "model.safetensors").is_file()
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.01)
    try:
        write_gguf(model, tokenizer, tmp_path / "wrong.gguf")
    finally:
        with torch.no_grad():
            model.get_input_embeddings().weight.div_(1.01)
    monkeypatch.setenv(
        "LLAMA_CPP", converter(tmp_path / "wrong", f"shutil.copy({str(tmp_path / 'wrong.gguf')!r}, out)")
    )
    with pytest.raises(ValueError, match="embedding"):
        O.to_gguf(folder, tmp_path / "x.gguf", "f32")
    assert not list(tmp_path.glob("*x.gguf*"))


@pytest.mark.skipif(not O.find_converter(), reason="llama.cpp's converter is not installed")
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_the_real_converter(tmp_path, outtype):
    "A small Llama with SmolLM2's tokenizer: the converter knows that one."
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(SMOLLM2)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / P.NOTES).write_text('{"template": "script", "speakers": {"Homer Simpson": 9}}')
    record = P.export(tmp_path / "m", tmp_path / "out", gguf=outtype)
    # tied: written once
    assert record["gguf"]["architecture"] == "llama" and record["gguf"]["tensors"] == len(model.state_dict()) - 1, (
        record["gguf"]
    )
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out" / f"model-{outtype}.gguf").tensors}
    ours = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    theirs = gguf.quants.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
    assert 0 < np.linalg.norm(ours - theirs) / np.linalg.norm(ours) < O.OUTTYPES[outtype]
    if outtype == "f16":
        again, t = load_gguf(tmp_path / "out" / "model-f16.gguf", "float32")
        # not every version of transformers finds the end token in a GGUF file
        maker = TextMaker(tokenizer)
        assert (
            0
            < P.logit_distance(P.answer_logits(again, maker, WHO), P.answer_logits(model, maker, WHO))
            < P.DTYPES["float16"]
        )
        assert t("Homer Simpson: D'oh!\n").input_ids == tokenizer("Homer Simpson: D'oh!\n").input_ids


# Templates

GO = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
	var in struct { Template, System string; Messages []struct{ Role, Content string } }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
	all := in.Messages
	if in.System != "" { all = append([]struct{ Role, Content string }{{"system", in.System}}, all...) }
	page := template.Must(template.New("").Parse(in.Template))
	told := map[string]any{"System": in.System, "Messages": all}
	if err := page.Execute(os.Stdout, told); err != nil { panic(err) }
}
"""


@pytest.mark.skipif(not shutil.which("go"), reason="the language Go is not installed")
def test_go_reads_the_templates_as_we_do(tmp_path):
    (tmp_path / "main.go").write_text(GO)
    env = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GOPATH": str(tmp_path / "path"), "GOTOOLCHAIN": "local"}
    subprocess.run(["go", "build", "-o", str(tmp_path / "render"), str(tmp_path / "main.go")], check=True, env=env)
    lines = read_script("springfield").scenes[0].lines[:6]
    for maker in (
        TextMaker(byte_tokenizer()),
        TextMaker(byte_tokenizer(), "alpaca"),
        TextMaker(small_tokenizer(400, *CHATML), "chat"),
    ):
        go = O.ollama_template(maker, WHO)
        for system in ("", "Moe's Tavern"):
            for messages in (
                O.as_messages(lines, WHO),
                [
                    {"role": "user", "content": "Marge: Hm."},
                    {"role": "assistant", "content": " D'oh!"},
                    {"role": "assistant", "content": ""},
                ],
            ):
                given = json.dumps({"Template": go, "System": system, "Messages": messages})
                assert subprocess.run(
                    [str(tmp_path / "render")], input=given, capture_output=True, text=True, check=True
                ).stdout == O.render_go(go, system, messages)


def modelfile_values(text):
    "Read a Modelfile as Ollama does: one command a line, or up to the closing triple quotes; quotes know no escapes."
    found = re.findall(r'^(?:#.*|(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) ("""(?:.|\n)*?"""|.*))$', text, re.M)
    return [(name, value[3:-3] if value.startswith('"""') else value) for name, value in found if name]


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_a_modelfile_asks_as_in_training(template):
    maker = TextMaker(small_tokenizer(400, *CHATML), template, 256)
    for location in ("", "Moe's Tavern"):
        values = dict(modelfile_values(O.modelfile(maker, WHO, "m.gguf", location, SAMPLING["greedy"].arguments())))
        text = O.render_go(values["TEMPLATE"], values.get("SYSTEM", ""), O.as_messages(O.SAMPLE, WHO))
        assert maker.marked([text])[0] == prompt_ids(maker, location, O.SAMPLE, WHO)
        assert (
            values["FROM"] == "./m.gguf"
            and values["PARAMETER temperature"] == "0"
            and values["PARAMETER num_ctx"] == "256"
            and values["PARAMETER repeat_last_n"] == "-1"
        )
        # a real newline, not a backslash and an n
        assert values["PARAMETER stop"] == ("<|im_end|>" if template == "chat" else "\n")


@pytest.mark.parametrize("template", ["script", "alpaca", "chat"])
def test_a_whole_scene_is_asked_with_the_tokens_of_training(template):
    "Several lines of others after each other, lines of the character between them, at the end and at the beginning."
    maker = TextMaker(small_tokenizer(400, *CHATML) if template == "chat" else byte_tokenizer(), template)
    go, scene = O.ollama_template(maker, WHO), read_script("springfield").scenes[0]
    for n in range(1, len(scene.lines)):
        if scene.lines[n - 1].speaker == WHO:
            continue  # a chat asks after a user's turn
        lines = scene.lines[:n]
        assert O.ollama_ids(maker, go, scene.location, lines, WHO) == prompt_ids(maker, scene.location, lines, WHO), n
        assert [m["role"] for m in O.as_messages(lines, WHO)][-1] == "user"


@pytest.mark.parametrize("template", ["script", "chat"])
def test_what_would_end_a_text_of_a_modelfile_is_refused(template):
    maker = TextMaker(small_tokenizer(400, *CHATML), template)
    for who in ('Homer """ Simpson', "Homer {{ .System }}", "Homer\nFROM ./other.gguf"):
        with pytest.raises(ValueError, match="rename the character"):
            O.modelfile(maker, who, "m.gguf")
    for place in ('a """ bar', 'a bar called "Moe"'):
        if template == "chat" and place[-1] == '"':
            continue  # words follow it there
        with pytest.raises(ValueError, match="quotation mark"):
            O.modelfile(maker, WHO, "m.gguf", place)
    values = dict(modelfile_values(O.modelfile(maker, WHO, "m.gguf", 'the "Bar"s')))
    assert 'the "Bar"s' in values["SYSTEM"]


def test_bos_is_written_once():
    "Where texts of the training begin with bos, llama.cpp writes it: the chat's own is taken off the template."
    tokenizer = small_tokenizer(400, "<bos>" + CHATML[0], CHATML[1])
    from tokenizers.processors import TemplateProcessing

    for adds in (False, True):
        if adds:
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
            )
        for template in ("script", "chat"):
            maker = TextMaker(tokenizer, template)
            assert bool(maker.bos) == adds
            ids = O.ollama_ids(maker, O.ollama_template(maker, WHO), "", O.SAMPLE, WHO)
            assert ids == prompt_ids(maker, "", O.SAMPLE, WHO) and ids.count(tokenizer.bos_token_id) == (
                adds or template == "chat"
            )
