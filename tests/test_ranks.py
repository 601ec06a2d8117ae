"Several ranks learn what one learns, end together when one fails, and leave nothing behind."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import CLI, TINY, cut, same

from simpsons_llm.machine.job import append_jsonl, read_json
from simpsons_llm.ranks.launch import mpi_kind
from simpsons_llm.train.finetune import FinetuneConfig, finetune

SETTINGS = dict(max_steps=6, eval_steps=3, global_batch_size=8, micro_batch_size=1, **TINY)
BY_HAND = pytest.mark.skipif(
    not os.environ.get("SIMPSONS_LLM_LONG"), reason="long; run by hand with SIMPSONS_LLM_LONG=1"
)


def start(*words, cwd, **env):
    return subprocess.run(
        [*CLI, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def parameters(data, **more):
    return [x for k, v in {"data": data, **SETTINGS, **more}.items() for x in ("-p", k, str(v))]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    "Runs of one rank, for each mode: eight micro-batches a step."
    folder = tmp_path_factory.mktemp("alone")
    for mode in ("lora", "full"):
        finetune(FinetuneConfig(data=data, run=str(folder / mode), mode=mode, **SETTINGS))
    return folder


# ---- equal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "launcher, n",
    [("torchrun", 2), pytest.param("mpich", 4, marks=BY_HAND), pytest.param("torchrun", 8, marks=BY_HAND)],
)
def test_one_by_eight_is_two_by_four_is_four_by_two(launcher, n, alone, data, tmp_path):
    if launcher != "torchrun" and mpi_kind() != launcher:
        pytest.skip(f"the mpirun of {launcher} is not on PATH")
    done = start(
        "launch",
        "-n",
        n,
        "finetune",
        "--out",
        tmp_path / "run",
        "--launcher",
        launcher,
        *parameters(data),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    same(alone / "lora", tmp_path / "run")
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (
        summary["world_size"] == n
        and summary["launcher"] == launcher
        and not summary["sharded"]
        and [r["rank"] for r in summary["ranks"]] == list(range(n))
    )
    assert (
        sum(r["real_tokens"] for r in summary["ranks"])
        == summary["real_tokens"]
        == read_json(alone / "lora" / "summary.json")["real_tokens"]
    )
    for r in range(n):  # every rank says who it is; only the first shows what is shared
        nb = nbformat.read(tmp_path / "run" / f"rank{r}.ipynb", 4)
        texts = [
            "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in c.get("outputs", []))
            for c in nb.cells
        ]
        assert any(f"rank {r} of {n} (launcher: {launcher}" in t and "talk through gloo" in t for t in texts)
        assert any("held-out loss in nats" in t for t in texts) == (r == 0)
        assert any("tokens_per_s" in t and "peak_mem_gib" in t for t in texts)
    assert "at rank" not in done.stdout and done.stdout.count("held-out loss in nats per token") == 1
    listed = start("runs", tmp_path, cwd=tmp_path).stdout
    assert "done" in listed and f"{summary['valid_loss_nats_best']:.4f}" in listed


RESUME = """
import shutil, sys
from pathlib import Path
from simpsons_llm.train.finetune import FinetuneConfig, finetune
from simpsons_llm.machine.device import complete_env, find_ranks
from simpsons_llm.machine.distributed import join_group, gather, find_device, leave_group
settings, new, resumed = json.loads(sys.argv[1]), *map(Path, sys.argv[2:4])
finetune(FinetuneConfig(run=str(new), **settings))
if resumed.is_dir(): finetune(FinetuneConfig(run=str(resumed), resume=True, **settings))
leave_group()
left = []
for place in Path("/proc/self/task").glob("*/comm"):  # Linux tells the names of a process's threads
    try: left += [name for name in [place.read_text()] if "gloo" in name]
    except OSError: pass  # it has ended
assert not left, f"threads of a group that was left can abort Python while it ends: {left}"
"""


@pytest.mark.parametrize(
    "mode, n",
    [
        ("full", 2),
        pytest.param("full", 4, marks=BY_HAND),
        pytest.param("lora", 2, marks=BY_HAND),
        pytest.param("lora", 4, marks=BY_HAND),
    ],
)
def test_a_model_in_parts_learns_the_same_and_resumes_in_any_number_of_ranks(mode, n, alone, data, tmp_path):
    settings = dict(data=data, mode=mode, sharding="fsdp", **SETTINGS)
    other = cut(alone / mode, tmp_path / "from_one_rank", 3)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(n),
        "--no-python",
        sys.executable,
        "-c",
        "import json" + RESUME,
    ]
    done = subprocess.run(
        [*torchrun, json.dumps(settings), tmp_path / "sharded", other],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        read_json(tmp_path / "sharded" / "summary.json")["sharded"]
        and "each holds a part of the model (FSDP)" in done.stdout
    )
    same(alone / mode, tmp_path / "sharded")
    # one rank's checkpoint, gone on with in parts
    same(alone / mode, other)
    back = cut(tmp_path / "sharded", tmp_path / "back_to_one", 3)
    finetune(FinetuneConfig(run=str(back), resume=True, **settings))
    same(alone / mode, back)  # and the other way round


@pytest.mark.slow
def test_an_adapter_in_parts_is_saved_where_activations_are_computed_again(alone, data, tmp_path):
    settings = dict(data=data, sharding="fsdp", gradient_checkpointing=True, **SETTINGS)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
        "-c",
        "import json" + RESUME,
    ]
    done = subprocess.run(
        [*torchrun, json.dumps(settings), tmp_path / "sharded", tmp_path / "none"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_json(tmp_path / "sharded" / "summary.json")["sharded"]
    same(alone / "lora", tmp_path / "sharded")


def test_what_cannot_be_shared_out_is_refused(data):
    for wrong, says in (
        ({"sharding": "zero"}, "sharding"),
        ({"backend": "mpi"}, "backend"),
        ({"group_timeout_s": 0}, "group_timeout_s"),
        ({"use_ipex": True}, "use_ipex"),
    ):
        with pytest.raises(ValueError, match=says):
            FinetuneConfig(data=data, **wrong)


# ---- fails fast ---------------------------------------------------------------------------------------------------


def own_notebook(path):
    "Ranks that meet in a group or not, and then wait; one of them comes to grief."
    cell = nbformat.v4.new_code_cell
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                cell("how = 'ok'\nwhen = 'before'", metadata={"tags": ["parameters"]}),
                cell(
                    "import os, time\n"
                    "from pathlib import Path\n"
                    "from simpsons_llm.machine.device import find_ranks\n"
                    "r = find_ranks()\n"
                    "if when == 'after':\n"
                    "    from simpsons_llm.machine.device import *\n"
                    "    from simpsons_llm.machine.distributed import *\n"
                    "    join_group(r, find_device('cpu'))\n"
                    "    gather(None)\n"
                    "print(r, os.environ['MASTER_PORT'])"
                ),
                cell(
                    "if r.rank == 1 and how != 'ok':\n"
                    "    time.sleep(2*(when == 'before'))\n"
                    "    Path('grief').write_text(str(time.time()))\n"
                    "    if how == 'raise': raise ValueError('the film is torn')\n"
                    "    if how == 'exit': os._exit(7)\n"
                    "    os.kill(os.getpid() if how == 'kill' else os.getppid(), 9); time.sleep(100)\n"
                    "if how != 'ok':\n"
                    "    gather(None) if when == 'after' else time.sleep(100)\n"
                    "print('the end')"
                ),
            ]
        ),
        path,
    )


def note(**row):
    "Keep a result for the book, where SIMPSONS_LLM_RESULTS names a file."
    if os.environ.get("SIMPSONS_LLM_RESULTS"):
        append_jsonl(os.environ["SIMPSONS_LLM_RESULTS"], row)


def processes_with(text):
    "Command lines of processes that work in a folder, launchers, ranks and kernels alike."
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if text in os.readlink(p / "cwd") and int(p.name) != os.getpid():
                found.append((p / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass
    return found


def comes_to_grief(folder, launcher, how, when, n=2):
    "(seconds from the mishap to the end, exit code, message); no process and every notebook must be left."
    own_notebook(folder / "own.ipynb")
    p = subprocess.Popen(
        [
            *CLI,
            "launch",
            "-n",
            str(n),
            "own.ipynb",
            "--out",
            "run",
            "--launcher",
            launcher,
            "-p",
            "how",
            how,
            "-p",
            "when",
            when,
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, error = p.communicate(timeout=180)
    took = time.time() - float((folder / "grief").read_text()) if (folder / "grief").is_file() else None
    assert sorted(f.name for f in folder.glob("run/rank*.ipynb")) == [f"rank{r}.ipynb" for r in range(n)], error
    if how == "raise":
        assert any(
            o.output_type == "error"
            for c in nbformat.read(folder / "run" / "rank1.ipynb", 4).cells
            for o in c.get("outputs", [])
        )
    assert not processes_with(str(folder)) and "the end" not in out
    return took, p.returncode, error


CASES = [("torchrun", "killrank", "after")] + [
    pytest.param("mpich", how, when, marks=pytest.mark.slow) for how, when in (("raise", "before"), ("kill", "after"))
]
DONE = [("torchrun", "killrank", "after"), ("mpich", "raise", "before"), ("mpich", "kill", "after")]
ALL = [
    (launcher, h, w)
    for launcher in ("torchrun", "mpich", "intelmpi", "openmpi")
    for h in ("raise", "exit", "kill", "killrank")
    for w in ("before", "after")
]


@pytest.mark.parametrize("launcher, how, when", CASES + [pytest.param(*c, marks=BY_HAND) for c in ALL if c not in DONE])
def test_one_rank_that_fails_ends_the_job(launcher, how, when, tmp_path, monkeypatch):
    path = os.pathsep.join(
        [
            *(p for p in [os.path.join(os.environ.get("SIMPSONS_LLM_MPI", ""), launcher, "bin")] if os.path.isdir(p)),
            os.environ["PATH"],
        ]
    )
    monkeypatch.setenv("PATH", path)
    if launcher != "torchrun" and mpi_kind() != launcher:
        pytest.skip(
            f"the mpirun of {launcher} is not on PATH; SIMPSONS_LLM_MPI names a folder with one folder for each"
        )
    took, code, error = comes_to_grief(tmp_path, launcher, how, when)
    assert took < 10, f"{took:.1f} s"
    assert code == (2 if how == "raise" else 1), error
    if how == "raise":
        assert "rank 1: ValueError: the film is torn" in error
    if how in ("exit", "kill"):
        assert "rank 1: DeadKernelError" in error or "all ranks were ended" in error
    note(kind="failure", launcher=launcher, how=how, when=when, seconds=round(took, 2), exit_code=code)


def test_a_launch_that_is_told_to_stop_leaves_nobody(tmp_path):
    own_notebook(tmp_path / "own.ipynb")
    p = subprocess.Popen(
        [*CLI, "launch", "-n", "2", "own.ipynb", "--out", "run", "-p", "how", "wait"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.time() + 60
    while (
        not all(
            f.is_file() and "world_size=2" in f.read_text()
            for f in (tmp_path / "run" / "rank0.ipynb", tmp_path / "run" / "rank1.ipynb")
        )
        and time.time() < until
    ):
        time.sleep(0.2)
    p.send_signal(signal.SIGTERM)
    begin = time.time()
    out, error = p.communicate(timeout=60)
    assert p.returncode == 143 and "interrupted" in error and time.time() - begin < 15, error
    assert not processes_with(str(tmp_path))
    nb = nbformat.read(tmp_path / "run" / "rank0.ipynb", 4)
    assert any(
        o.output_type == "error" and o.ename == "KeyboardInterrupt" for c in nb.cells for o in c.get("outputs", [])
    )


@pytest.mark.slow
def test_an_interrupted_run_says_so(data, tmp_path):
    p = subprocess.Popen(
        [*CLI, "run", "finetune", "--out", "run", *parameters(data, max_steps=500, eval_steps=500)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in p.stdout:
        if line.startswith("score"):
            break
    p.send_signal(signal.SIGINT)
    out, error = p.communicate(timeout=60)
    assert p.returncode == 130 and error.strip().endswith("interrupted") and "Traceback" not in error, error
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "interrupted"


# ---- many, and two at once ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_jobs_at_once_do_not_meet(tmp_path):
    cell = nbformat.v4.new_code_cell
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                cell("word = 'none'", metadata={"tags": ["parameters"]}),
                cell(
                    "from simpsons_llm.machine.device import *\n"
                    "from simpsons_llm.machine.distributed import *\n"
                    "r = find_ranks()\n"
                    "join_group(r, find_device('cpu'))\n"
                    "print(gather(word))"
                ),
            ]
        ),
        tmp_path / "own.ipynb",
    )
    jobs = {
        word: subprocess.Popen(
            [*CLI, "launch", "-n", "2", "own.ipynb", "--out", word, "-p", "word", word],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for word in ("doh", "woohoo")
    }
    for word, p in jobs.items():
        out, error = p.communicate(timeout=120)
        assert p.returncode == 0 and f"['{word}', '{word}']" in out, error


@BY_HAND
@pytest.mark.parametrize("start_number", range(20))
def test_32_ranks_start(start_number, tmp_path):
    cell = nbformat.v4.new_code_cell
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                cell(
                    "import os\n"
                    "print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], os.environ['MASTER_PORT'])"
                )
            ]
        ),
        tmp_path / "own.ipynb",
    )
    begin = time.time()
    done = start("launch", "-n", 32, "own.ipynb", "--out", "run", "--launcher", "mpich", cwd=tmp_path)
    said = [nbformat.read(tmp_path / "run" / f"rank{r}.ipynb", 4).cells[0].outputs[0].text.split() for r in range(32)]
    assert (
        done.returncode == 0
        and [x[:4] for x in said] == [["rank", str(r), "of", "32"] for r in range(32)]
        and len({x[4] for x in said}) == 1
    ), done.stderr
    note(kind="start", launcher="mpich", ranks=32, number=start_number, seconds=round(time.time() - begin, 1))
