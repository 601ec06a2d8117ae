"What a command does before its work: nothing twice, nothing that only other commands need."

import gc
import json
import subprocess
import sys

import pytest
from conftest import TINY, as_words

from simpsons_llm.machine.job import import_all
from simpsons_llm.model import base as B

HEAVY = ("transformers.trainer", "datasets", "pandas", "matplotlib", "IPython", "papermill", "gguf", "scipy", "sklearn")


def imported(*words, stop=""):
    "What a command imports of HEAVY, up to a function that it does not enter; objects out of the collector's sight."
    look = (
        "import gc, json, sys\n"
        "from simpsons_llm.machine.cli import main\n"
        "import simpsons_llm.train.lifecycle as lifecycle\n"
        f"def tell(*_):\n    print(json.dumps([[m for m in {HEAVY} if m in sys.modules], gc.get_freeze_count()]))\n"
        "    sys.stdout.flush(); import os; os._exit(0)\n"
        f"if {stop!r}: setattr(lifecycle, {stop!r}, tell)\n"
        "code = main(sys.argv[1:])\n"
        "assert code == 0, code\n"
        "tell()"
    )
    done = subprocess.run([sys.executable, "-c", look, *map(str, words)], capture_output=True, text=True, timeout=200)
    assert not done.returncode, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_answer_needs_nothing_of_training(run):
    heavy, frozen = imported("infer", "--adapter", run[0], "--max-new-tokens", 2)
    # the libraries' own objects, which no look for garbage goes over again
    assert not heavy and frozen > 200_000


def test_the_loop_needs_neither_trainer_nor_pictures(run, data, tmp_path):
    words = as_words(TINY)
    heavy, frozen = imported("loop", "--data", data, "--run", tmp_path / "x", *words, stop="measure")
    assert not heavy and frozen > 200_000


def test_a_run_loads_each_part_of_its_base_once(data, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoTokenizer

    from simpsons_llm.machine.device import find_device
    from simpsons_llm.train import lifecycle
    from simpsons_llm.train.finetune import FinetuneConfig, engine_for

    model, tokenizer = B.load_base("tiny", find_device("cpu"))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    loads = []

    def counted(where, name, what):
        inner = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: (loads.append(what), inner(*a, **k))[1])

    counted(AutoTokenizer, "from_pretrained", "tokenizer")
    counted(AutoConfig, "from_pretrained", "config")
    counted(B, "load_whole", "weights")
    monkeypatch.setattr(lifecycle, "measure", lambda job: {})
    config = FinetuneConfig(data=data, run=str(tmp_path / "run"), **{**TINY, "base_model": str(tmp_path / "base")})
    lifecycle.run_job(config, engine_for)
    assert loads.count("tokenizer") == 1 and loads.count("weights") == 1
    # transformers itself reads it for the tokenizer and for the weights
    assert loads.count("config") <= 3


def test_unpacked_weights_are_not_hashed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMPSONS_LLM_CACHE", str(tmp_path))
    monkeypatch.setattr(B, "in_hub_cache", lambda _: False)
    monkeypatch.setattr(B, "sha256", lambda path: pytest.fail(f"{path} was hashed"))
    (tmp_path / B.SMOLLM2).mkdir()
    (tmp_path / B.SMOLLM2 / "config.json").write_text("{}")
    assert B.find_base(B.SMOLLM2).source == str(tmp_path / B.SMOLLM2)


def test_what_was_imported_already_stays_in_sight():
    before = gc.get_freeze_count()
    import_all("json", "torch")
    assert gc.get_freeze_count() == before and gc.isenabled()
