"Shared by the tests: few threads, no network, results in folders of their own."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import sys

import pytest

CLI = [sys.executable, "-c", "from simpsons_llm.cli import main; main()"]  # the command line, whatever PATH says
TINY = dict(base_model="tiny", max_seq_len=1200, learning_rate=3e-3, r=4, lora_alpha=8)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    "The book's script, prepared once."
    from simpsons_llm.prepare import PrepareConfig, prepare
    out = tmp_path_factory.mktemp("data")
    prepare(PrepareConfig(out=str(out)))
    return str(out)


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    "A short run of the tiny model: (folder, summary)."
    from simpsons_llm.finetune import FinetuneConfig, finetune
    folder = tmp_path_factory.mktemp("runs")/"tiny"
    return folder, finetune(FinetuneConfig(data=data, run=str(folder), max_steps=12, eval_steps=4, **TINY))
