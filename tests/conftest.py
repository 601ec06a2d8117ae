"Shared by the tests: few threads, no network, results in folders of their own."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import sys

import pytest

CLI = [sys.executable, "-c", "from simpsons_llm.cli import main; main()"]  # the command line, whatever PATH says
TINY = dict(base_model="tiny", max_seq_len=600, learning_rate=3e-3, r=4, lora_alpha=8)


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


def weights(run):
    "What a run left: its adapter's tensors, or the whole model's."
    from safetensors.torch import load_file
    folder = run/"adapter" if (run/"adapter").is_dir() else run/"model"
    return {k: v for f in folder.glob("*model*.safetensors") for k, v in load_file(f).items()}


def same(a, b, tolerance=1e-5):
    "Losses, gradient norms, counts and what was saved."
    from simpsons_llm.job import read_jsonl
    rows = [read_jsonl(r/"metrics.jsonl") for r in (a, b)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] and len(rows[0]) > 4
    for x, y in zip(*rows):
        assert x.keys() == y.keys()
        for name in x.keys() - {"step_s"}: assert abs(x[name] - y[name]) <= tolerance, (x, y)
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys() and one
    assert all((v - other[k]).abs().max() <= tolerance for k, v in one.items())
