"Shared by the tests: few threads, no network, results in folders of their own."

import math
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
import signal
import sys

import pytest

# a shell switches these off in what it starts in the background, and so does nohup; tests send them
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# the command line, whatever PATH says
CLI = [sys.executable, "-c", "from simpsons_llm.machine.cli import main; main()"]
TINY = dict(base_model="tiny", max_seq_len=600, learning_rate=3e-3, r=4, lora_alpha=8, sample_steps=0, gate=False)


def as_words(settings):
    "Settings as a command line has them."
    names = {k: k.replace("_", "-") for k in settings}
    given = (
        [f"--{'' if v else 'no-'}{names[k]}"] if isinstance(v, bool) else [f"--{names[k]}", str(v)]
        for k, v in settings.items()
    )
    return [word for words in given for word in words]


SLOW = "slow; run with --slow, as .ci/run does"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too: more launchers, kills, hosts")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: many processes or long runs; skipped unless --slow is given")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason=SLOW))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    "The book's script, of each scene the first four short lines, prepared once: samples are five times as short."
    import csv

    from simpsons_llm.data.formats import read_script
    from simpsons_llm.data.prepare import PrepareConfig, prepare

    out, script = tmp_path_factory.mktemp("data"), read_script("springfield")
    short = {
        (line.episode, line.number)
        for s in script.scenes
        for line in [line for line in s.lines if len(line.text.split()) <= 12][:4]
    }
    rows = list(csv.DictReader(open(script.path, encoding="utf8")))
    with open(out / "short.csv", "w", newline="", encoding="utf8") as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader()
        table.writerows(
            r for r in rows if r["speaking_line"] == "false" or (int(r["episode_id"]), int(r["number"])) in short
        )
    prepare(PrepareConfig(script=str(out / "short.csv"), out=str(out / "data")))
    return str(out / "data")


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    "A short run of the tiny model: (folder, summary)."
    from simpsons_llm.train.finetune import FinetuneConfig, finetune

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, finetune(FinetuneConfig(data=data, run=str(folder), max_steps=12, eval_steps=4, **TINY))


def weights(run):
    "What a run left: its adapter's tensors, or the whole model's."
    from safetensors.torch import load_file

    folder = run / "adapter" if (run / "adapter").is_dir() else run / "model"
    return {k: v for f in folder.glob("*model*.safetensors") for k, v in load_file(f).items()}


def cut(source, to, step):
    "A copy of a run that was killed after a step at which it saved a checkpoint."
    shutil.copytree(source, to)
    for p in (to / "checkpoints").glob("checkpoint-*"):
        if int(p.name.rsplit("-", 1)[1]) > step:
            shutil.rmtree(p)
    for left in ("adapter", "model"):
        shutil.rmtree(to / left, ignore_errors=True)
    (to / "summary.json").write_text('{"status": "running"}')
    return to


def same(a, b, tolerance=1e-5):
    "Losses, gradient norms, counts and what was saved."
    from simpsons_llm.machine.job import read_jsonl

    rows = [read_jsonl(r / "metrics.jsonl") for r in (a, b)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] and len(rows[0]) > 4
    for x, y in zip(*rows):
        assert x.keys() == y.keys()
        for name in x.keys() - {"step_s", "samples"}:
            pair = [math.log(r[name]) if "perplexity" in name else r[name] for r in (x, y)]
            assert abs(pair[0] - pair[1]) <= tolerance, (name, x, y)
        # what is said may differ where two words are as likely
        for one, other in zip(x.get("samples", []), y.get("samples", [])):
            assert all(one[k] == other[k] for k in ("before", "speaker", "real"))
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys() and one
    assert all((v - other[k]).abs().max() <= tolerance for k, v in one.items())
