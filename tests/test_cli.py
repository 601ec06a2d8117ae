"The command line, as people and scripts use it."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simpsons_llm.machine.cli import main

BIN = Path(sys.executable).parent
TINY = ["--base-model", "tiny", "--max-seq-len", "600"]


def cli(*words, cwd, ok=0, **env):
    done = subprocess.run(
        [str(BIN / "simpsons-llm"), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    assert done.returncode == ok, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder in which the three commands were run after each other."
    where = tmp_path_factory.mktemp("user")
    cli(
        "prepare",
        "--script",
        "springfield",
        "--speakers",
        "Homer Simpson,Marge Simpson",
        "--out",
        "runs/data",
        cwd=where,
    )
    cli("finetune", "--data", "runs/data", "--run", "runs/x", "--max-steps", "3", "--eval-steps", "3", *TINY, cwd=where)
    return where


def test_the_three_commands(place):
    assert (place / "runs/x/adapter/adapter_model.safetensors").is_file()
    prompt = "Marge Simpson: Homer, the dog is wearing your tie again."
    done = cli(
        "infer", "--adapter", "runs/x/adapter", "--speaker", "Homer Simpson", prompt, "--max-new-tokens", "8", cwd=place
    )
    first, second = done.stdout.strip().splitlines()
    assert first == prompt and second.startswith("Homer Simpson: ")


def test_infer_with_the_seeds_sampling_and_a_benchmark(place):
    done = cli(
        "infer",
        "--adapter",
        "runs/x/adapter",
        "--sampling",
        "seed",
        "--max-new-tokens",
        "4",
        "--bench",
        "Moe Szyslak: Closed.",
        cwd=place,
    )
    assert "12 runs: mean" in done.stdout and "deviation" in done.stdout


def test_a_chapter_by_name_with_parameters_and_a_file(place):
    (place / "params.yaml").write_text("base_model: tiny\nmax_seq_len: 600\nmax_steps: 5\neval_steps: 2\n")
    done = cli(
        "run",
        "finetune",
        "--out",
        "runs/y",
        "-p",
        "max_steps",
        "2",
        "-p",
        "data=runs/data",
        "-f",
        "params.yaml",
        cwd=place,
    )
    assert "runs/y/rank0.ipynb" in done.stdout and "held-out loss" in done.stdout
    assert json.loads((place / "runs/y/summary.json").read_text())["optimizer_steps"] == 2
    notebook = json.loads((place / "runs/y/rank0.ipynb").read_text())
    assert not any({"check", "example"} & set(c["metadata"].get("tags", [])) for c in notebook["cells"])
    assert any("image/png" in o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", []))


def test_plain_papermill_runs_the_same_chapter(place):
    from simpsons_llm.machine.job import find_chapter

    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        str(find_chapter("prepare")),
        "out.ipynb",
        "-p",
        "out",
        "runs/byhand",
        "-p",
        "split_seed",
        "7",
    ]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    assert json.loads((place / "runs/byhand/report.json").read_text())["split_seed"] == 7


def test_a_line_of_dialogue_stays_text_on_its_way_into_a_notebook(place):
    line = "Marge: Homer: [laughs] it's 5 o'clock"
    cli(
        "run",
        "infer",
        "--out",
        "runs/said",
        "-p",
        "prompt",
        line,
        "-p",
        "base_model",
        "tiny",
        "-p",
        "max_new_tokens",
        "3",
        cwd=place,
    )
    assert json.loads((place / "runs/said/answers.json").read_text())["settings"]["prompt"] == line


def test_an_adapter_of_other_data_is_not_shown_as_unseen(place):
    cli("prepare", "--split-seed", "5", "--out", "runs/other", cwd=place)
    assert "other data" in cli("infer", "--adapter", "runs/x/adapter", "--data", "runs/other", cwd=place, ok=2).stderr


def test_a_notebook_of_ones_own(place):
    import nbformat

    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("print('n is', n)"),
        ]
    )
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, place / "own.ipynb")
    assert "n is 5" in cli("run", "own.ipynb", "--out", "runs/own", "-p", "n", "5", cwd=place).stdout


@pytest.mark.parametrize(
    "words,says",
    [
        (["prepare", "--script", "nowhere.csv"], "no script at nowhere.csv"),
        (["prepare", "--speakers", "Homer Simson"], "did you mean Homer Simpson"),
        (["prepare", "--script", "shopping.csv"], "no column that is known as speaker or text"),
        (["prepare", "--script", "short.csv"], "no spoken line"),
        (["prepare", "--out", "shopping.csv/inside"], "cannot write into"),
        (["prepare", "--valid-share", "0.9"], "valid_share=0.9"),
        (["finetune", "--data", "nowhere"], "no data at nowhere"),
        (["finetune", "--base-model", "smollm3"], "no base model at 'smollm3'"),
        (["finetune", "--base-model", "./no/such.gguf"], "no base model at"),
        (["finetune", "--run", "shopping.csv/inside"], "cannot write into"),
        (
            [
                "finetune",
                "--global-batch-size",
                "10",
                "--micro-batch-size",
                "4",
                "--base-model",
                "tiny",
                "--max-seq-len",
                "1200",
            ],
            "which cannot share it",
        ),
        (["finetune", "--target-modules", "no_proj", "--base-model", "tiny", "--max-seq-len", "1200"], "no_proj"),
        (["finetune", "--max-seq-len", "16", "--base-model", "tiny"], "nothing to learn"),
        (["finetune", "--learning-rate", "fast"], "learning-rate"),
        (["infer", "--adapter", "nowhere"], "no adapter in nowhere"),
        (["infer", "--adapter", "runs/x/adapter", "--speaker", "Homre Simpson"], "did you mean Homer Simpson"),
        (["infer", "--device", "xpu:9"], "xpu"),
        (["run", "nothing"], "no chapter is called"),
        (["run", "finetune", "-p", "max_step", "3"], "did you mean max_steps"),
        (["run", "prepare", "-p", "speakers", "Nobody"], "no speaker called"),
        (["run", "finetune", "-p", "max_steps"], "without a value"),
        (["infer", "--adapter", "runs/x/adapter", "--speaker", "Homer Simpson,Marge Simpson"], "no speaker called"),
        (["infer", "--base-model", "broken.gguf"], "could not be loaded"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_told_in_one_sentence(place, words, says, monkeypatch, capfd):
    (place / "shopping.csv").write_text("item,price\ndonut,1\n")
    from simpsons_llm.data.tables import COLUMNS

    (place / "broken.gguf").write_bytes(b"not a model")
    (place / "short.csv").write_text(",".join(COLUMNS) + "\n1,2,3\n")
    monkeypatch.chdir(place)
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert says in err and "Traceback" not in err + out


def test_commands_have_the_defaults_of_their_settings():
    "What is not given on the command line is what a notebook or a Python caller gets."
    import inspect
    from dataclasses import fields

    from simpsons_llm.data.prepare import PrepareConfig
    from simpsons_llm.machine.cli import job_command
    from simpsons_llm.model.infer import InferConfig
    from simpsons_llm.train.finetune import FinetuneConfig

    for config in (PrepareConfig, FinetuneConfig, InferConfig):
        found = inspect.signature(job_command(config, print, "")).parameters
        given = {n: "".join(p.default or ()) if n in config.repeated else p.default for n, p in found.items()}
        assert given == {f.name: f.default for f in fields(config)}


def test_bad_input_in_a_process_of_its_own(place):
    "The same through the installed command: exit code 2, one line on standard error, nothing on standard output."
    done = cli("prepare", "--script", "nowhere.csv", cwd=place, ok=2)
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_debug_shows_the_traceback(place):
    assert "Traceback" in cli("prepare", "--script", "nowhere.csv", "--debug", cwd=place, ok=2).stderr


def test_doctor_knows_this_machine(place):
    from simpsons_llm.machine.distributed import doctor

    done = subprocess.run([str(BIN / "simpsons-llm"), "doctor"], cwd=place, capture_output=True, text=True)
    assert done.returncode == any(row["ok"] is False for row in doctor()), done.stdout
    assert "torch" in done.stdout and "papermill" in done.stdout


@pytest.mark.parametrize("found", [(True, None), (None,), (True, False), (False,)])
def test_doctor_fails_where_something_is_wrong_and_only_there(found, monkeypatch, capsys):
    "On a pretended machine: what is optional and missing is no fault."
    rows = [
        {"item": f"part {i}", "value": "x", "ok": ok, "hint": "" if ok else "do this"} for i, ok in enumerate(found)
    ]
    monkeypatch.setattr("simpsons_llm.machine.distributed.doctor", lambda: rows)
    assert main(["doctor"]) == (False in found)
    shown = capsys.readouterr().out
    assert all(f"part {i}" in shown for i in range(len(rows))) and shown.count("do this") == sum(
        ok is not True for ok in found
    )


def test_whole_numbers_keep_every_digit():
    from simpsons_llm.data.prepare import PrepareConfig
    from simpsons_llm.machine.job import coerce

    for n in (2**53 + 1, -(2**53) - 1, 2**63, 12345678901234567891):
        for given in (n, str(n), f" {n} ", f"{n}.0", f"{n}.000"):
            assert coerce(given, "int", "seed") == n, given
        assert PrepareConfig(split_seed=str(n)).split_seed == n
    for given, meant in (
        (3.0, 3),
        ("3.0", 3),
        ("1e3", 1000),
        (1e3, 1000),
        ("1_000", 1000),
        ("2.5e1", 25),
        (1e20, 10**20),
    ):
        assert coerce(given, "int", "x") == meant
    for given in (
        1.5,
        "1.5",
        "9007199254740993.5",
        "1e-3",
        "1e999",
        "1e999999999",
        "inf",
        float("nan"),
        "nan",
        "",
        "x",
        True,
        [3],
    ):
        with pytest.raises(TypeError, match="expected int"):
            coerce(given, "int", "x")


@pytest.mark.parametrize(
    "words,says",
    [
        (["infer", "--random-seed", str(2**64)], "random_seed"),
        (["finetune", "--seed", str(2**32)], "seed=4294967296"),
        (["loop", "--seed", "-1"], "seed=-1"),
    ],
)
def test_a_seed_that_no_library_takes_is_refused(words, says, capsys):
    assert main(words) == 2 and says in capsys.readouterr().err


def test_hints_can_be_pasted_into_a_shell(tmp_path, monkeypatch, capsys):
    "Folders with blanks and signs, in each command that is shown."
    import shlex

    from simpsons_llm.data.prepare import load_data

    monkeypatch.chdir(tmp_path)
    odd = "my data; $(echo 'x')"
    assert main(["prepare", "--out", odd]) == 0
    hint = next(line for line in capsys.readouterr().out.splitlines() if "next: " in line).split("next: ")[1]
    assert shlex.split(hint)[:4] == ["simpsons-llm", "finetune", "--data", odd]
    with pytest.raises(FileNotFoundError) as e:
        load_data("no such; folder")
    assert shlex.split(str(e.value).split("with: ")[1])[-2:] == ["--out", "no such; folder"]
    (tmp_path / "a b").mkdir()
    assert main(["runs", "a b"]) == 0
    assert shlex.split(capsys.readouterr().out.split("start one: ")[1]) == [
        "simpsons-llm",
        "finetune",
        "--run",
        "a b/x",
    ]


def test_a_benchmark_writes_its_rows(tmp_path, monkeypatch, capsys):
    "The work is done here instead of in processes of its own; the chapter on benchmarks starts those."
    from simpsons_llm.bench import preparation as bench

    monkeypatch.setattr(
        bench,
        "in_process",
        lambda function, **arguments: {**getattr(bench, function.split(":")[1])(**arguments), "peak_gib": 1.0},
    )
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "prepare", "--lines", "1000", "--base-model", "tiny", "--json", "out/bench.json"]) == 0
    rows = json.loads((tmp_path / "out/bench.json").read_text())
    assert (
        all(set(r) == {"name", "ours", "seed", "peer", "ratio", "unit", "device", "versions"} for r in rows)
        and rows[0]["unit"] == "s"
    )
    assert (
        rows[0]["ratio"] == rows[0]["seed"] / rows[0]["ours"]
        and "table to packed rows" in capsys.readouterr().out
        and rows[0]["versions"]["torch"]
    )


@pytest.mark.parametrize(
    "words,says",
    [
        (("--lines", "10"), "expected 1,000 or more"),
        (("--sizes", "many"), "whole numbers with commas"),
        (("--base-model", "nowhere"), "no base model"),
    ],
)
def test_a_benchmark_refuses_what_it_cannot_measure(words, says, capsys):
    assert main(["bench", "prepare", *words]) == 2 and says in capsys.readouterr().err
