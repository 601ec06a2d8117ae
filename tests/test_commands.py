"Commands hold: what README, --help, chapters and hints print is run, cut short, in its order, from an empty folder."

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import CLI

from simpsons_llm.machine.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
STARTS = ("simpsons-llm", "mpirun", "torchrun", "papermill", "sbatch")
# not run here, but understood: why
ELSEWHERE = {
    "--hosts": "wants hosts of these names; tests/test_hosts.py has two",
    "--launcher intelmpi": "wants Intel MPI; tests/launchers.sh runs it",
    "sbatch": "wants SLURM",
    "--gguf": "wants llama.cpp's converter; tests/test_ollama.py runs it where it is",
    "simpsons-llm serve": "answers until it is ended; tests/test_serve.py asks it",
    "--private": "wants an account of the hub; tests/test_push.py has a stand-in",
    "--to me/homer-lora": "the same",
    "--page": "serves until it is told to end; tests/test_page.py opens it in a browser",
    "bench costs": "takes minutes; tests/test_bench.py measures one of its rows",
}


def of_text(text):
    "Commands in blocks of a Markdown text, and those that stand whole in a line of words."
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.S | re.M)
    whole = re.findall(r"(?<!`)`([^`\n]+ [^`\n]+)`(?!`)", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    lines = [line.strip() for block in blocks for line in block.splitlines()] + whole
    # a name in capitals or dots stand for something
    lines = [line for line in lines if line.startswith(STARTS) and not re.search(r"\.\.\. |\b[A-Z]{4,}\b", line)]
    # a name alone is no command
    full = [line for line in lines if len(line.split()) > 2 or line == "simpsons-llm runs"]
    return [line for line in full if re.search("simpsons-llm|papermill", line)]


def of_help(command, found=()):
    "Examples in the help of a command and of those below it."
    lines = [line.strip() for line in (command.help or "").splitlines()]
    mine = [line for line in lines if line.startswith(STARTS) and line.partition(" ")[2]]
    return mine + [line for below in getattr(command, "commands", {}).values() for line in of_help(below)]


def of_chapters():
    found = []
    for path in sorted((ROOT / "nbs").glob("[0-9]_*/[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        found += of_text("\n".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "markdown"))
    return found


README = of_text((ROOT / "README.md").read_text(encoding="utf8"))
HELP = of_help(typer.main.get_command(app))
CHAPTERS = [c for c in dict.fromkeys(of_chapters()) if c not in HELP + README]


def short(command):
    "The same command, made to end soon: the tiny model, few steps, few tokens, two ranks."
    words = shlex.split(
        command.replace("openlm-research/open_llama_3b", "tiny").replace("--device xpu", "--device cpu")
    )
    for i, word in enumerate(words[:-1]):
        if word in ("-n", "--nproc-per-node", "--ranks") and words[0] + words[1] != "simpsons-llmbench":
            words[i + 1] = str(min(int(words[i + 1]), 4 if command in README and "launch" in words else 2))
        if word in ("--max-steps", "max_steps", "--epochs"):
            words[i : i + 2] = ["--max-steps" if word[0] == "-" else word, "2"]
        if word in ("--lines", "--sizes") and "prepare" in words:
            words[i + 1] = "1000"
    job = words[words.index("simpsons-llm") + 1] if "simpsons-llm" in words else words[0]
    tiny = [] if "tiny" in words else ["--base-model", "tiny"]
    steps = [] if "--max-steps" in words else ["--max-steps", "2"]
    more = {
        "finetune": tiny + steps,
        "loop": tiny + steps,
        "estimate": tiny,
        "evaluate": ["--lines", "12", "--max-new-tokens", "4", "--device", "cpu"],
        "contrast": ["--pairs", "4", "--rejected", "speakers", "--device", "cpu"],
        "infer": ["--max-new-tokens", "4"],
        "chat": ["--max-new-tokens", "4", "--device", "cpu"],
        "demo": [*tiny, "--max-minutes", "0.02"],
    }
    if job == "bench":
        return words + SHORT_BENCH.get(words[words.index("bench") + 1], [])
    if job in ("run", "launch", "rank", "papermill") and any("finetune" in w for w in words):
        return (
            words
            + ([] if "tiny" in words else ["-p", "base_model", "tiny"])
            + ([] if "max_steps" in words else ["-p", "max_steps", "2"])
        )
    return words + more.get(job, [])


TINY = ["--base-model", "tiny", "--device", "cpu"]
SHORT_BENCH = {
    "prepare": ["--base-model", "tiny", "--lines", "1000"],
    "collectives": "--device cpu --sizes 1,64 --dtypes float32 --warmup 0 --repeats 1".split(),
    "train": [*TINY, "--seconds", "0.2"],
    "quality": [*TINY, *"--seed-steps 1 --scores 1 --lines 4 -p max_steps 2".split()],
    "infer": [*TINY, "--prompts", "2", "--tokens", "4"],
}


def understood(words):
    "The command line knows every option of it: all are read before help is shown."
    words = shlex.split(words[words.index("--wrap") + 1]) if "--wrap" in words else words
    return "simpsons-llm" in words and main([*words[words.index("simpsons-llm") + 1 :], "--help"]) == 0


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty folder with the files that examples name."
    monkeypatch.chdir(tmp_path)
    script = ROOT / "simpsons_llm" / "data" / "springfield.csv"
    for name in ("my.csv", "simpsons_script_lines.csv"):
        shutil.copy2(script, name)
    said = [{"instruction": f"A: {i}?", "input": "B", "output": f"{i} it is, by chance."} for i in range(60)]
    Path("samples.json").write_text(json.dumps(said))
    rows = [f"{i // 12 + 1},{('Ada', 'Otto')[i % 2]},Cup {i} of the morning is gone." for i in range(72)]
    Path("lines.csv").write_text("\n".join(["Episode,Character,Line", *rows]))
    rows = [
        f"{i // 8 + 1:02d}/03/23, 09:{i % 8:02d} - {('Ada', 'A. B.')[i % 2]}: Cup {i} is gone, too." for i in range(72)
    ]
    Path("chat.txt").write_text("\n".join(rows))
    rows = (f"Episode {i}\nAda: Cup {i} is gone, I fear.\nOtto: It is on shelf {i}, Ada.\n" for i in range(1, 7))
    Path("my_script.txt").write_text("".join(rows))
    Path("names.txt").write_text("Ada Byron = Ada\nOtto Brandt = A. B.\n")
    Path("params.yaml").write_text("max_steps: 2\nbase_model: tiny\n")
    Path("asked.jsonl").write_text(json.dumps("Marge Simpson: Dinner!"))
    Path("nbs").symlink_to(ROOT / "nbs")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Homer?\n/auto 2\n"))  # of a conversation
    return tmp_path


def do(command):
    "Run one as it is printed, but cut short; in this process where no other is started anyhow."
    words = short(command)
    if any(mark in command for mark in ELSEWHERE):
        assert understood(words), words
        return
    if words[0] == "simpsons-llm" and words[1] not in ("run", "launch", "rank", "demo", "bench"):
        assert main(words[1:]) == 0, words
        return
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    at = words.index("simpsons-llm") if "simpsons-llm" in words else len(words)
    words = [*words[:at], *CLI, *words[at + 1 :]] if at < len(words) else words
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_there_are_commands():
    assert understood(shlex.split("simpsons-llm finetune --run runs/x --seed 7"))
    assert not understood(shlex.split("simpsons-llm finetune --run runs/x --sede 7"))
    assert len(README) >= 8 and len(HELP) > 30 and len(CHAPTERS) > 5
    assert any("launch -n 4 finetune" in c for c in README)


def test_what_readme_prints_runs_in_its_order(place):
    for command in README:
        if "pip install" not in command and "nbdev_test" not in command:
            before = Path("runs/data/train.jsonl").read_bytes() if "papermill" in command else b""
            do(command)
            # a notebook's examples and checks never write where results are
            assert not before or before == Path("runs/data/train.jsonl").read_bytes()


OWN = ("run", "launch", "rank", "demo", "bench")  # these start processes


def alone(command):
    "A job that runs in the process that asks for it."
    return command.startswith("simpsons-llm") and command.split()[1] not in OWN


@pytest.mark.slow
def test_what_help_and_chapters_print_runs(place):
    "The jobs one after the other; many are the same once they are cut short."
    for command in {shlex.join(short(c)): c for c in HELP + CHAPTERS if alone(c)}.values():
        do(command)


@pytest.mark.slow
def test_what_starts_processes_runs_too(place):
    "One of each kind (launcher, job, name or path, file of parameters) is run; of the others all words are known."
    ran = set(map(kind_of, README))
    for command in [c for c in HELP + CHAPTERS if not alone(c)]:
        if kind_of(command) in ran:
            assert understood(shlex.split(command)) or "papermill" in command
        else:
            do(command)
        ran.add(kind_of(command))


def kind_of(command):
    "What of a command makes it another than the next."
    words = [w for w in command.split() if not w.startswith("-") and not w.isdigit()]
    return command.split()[0], *words[1:3], ".ipynb" in command, "-f " in command


def test_hints_lead_from_a_script_of_ones_own_to_an_answer(place, capsys):
    "Each command that a command prints as the next one."
    people = ("Ada Byron", 'O\'Neil "Red"', "Zoë")
    rows = [
        f"{people[i % 3]}: This is line {i}, and {['stars', 'soup', 'snow'][i % 3]} comes next." for i in range(240)
    ]
    scenes = "\n\n".join("\n".join(["[The Lab]", *rows[i : i + 8]]) for i in range(0, 240, 8))
    Path("play one.txt").write_text(f"{scenes}\n", encoding="utf8")
    command = 'simpsons-llm prepare --script "play one.txt" --split scene --out "runs/my data" --max-leak 1'
    seen = []
    while command and len(seen) < 5:
        do(command)
        seen.append(shlex.split(command)[1])
        out = capsys.readouterr().out
        command = (re.findall(r"next: (simpsons-llm .*)$", out, re.M) or [""])[0]
    assert seen == ["prepare", "finetune", "infer"] and re.search(r"^(Ada Byron|O'Neil \"Red\"|Zoë): ", out, re.M), out
