# %%
#| default_exp ranks.launch

# %% [markdown]
# # Launching ranks
#
# > The same chapter once per rank, on any launcher, on one machine or several; if one rank fails, all end.
#
# `simpsons-llm launch -n 4 finetune --out runs/x` runs the finetune chapter four times over: one kernel per rank, started by torchrun, an MPI or SLURM. Every rank leaves its executed notebook in the run's folder.

# %%
#| export
import hashlib
import json
import os
import platform
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from simpsons_llm.machine.device import Ranks, complete_env, find_ranks
from simpsons_llm.machine.distributed import free_port, rank_env
from simpsons_llm.machine.job import (
    STOPS,
    Stopped,
    find_chapter,
    hold_folder,
    open_folder,
    read_json,
    require,
    set_aside,
    write_json,
)
from simpsons_llm.ranks.execute import GRACE_S, JobError, check_parameters, check_values, exit_code, run_chapter

# %%
#| hide
import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from unittest.mock import patch

import nbformat
import pandas as pd
from IPython.display import Markdown

from simpsons_llm.machine.job import chapters_dir


# %% [markdown]
# ## One rank of many
#
# `mpirun -n 4 simpsons-llm rank finetune runs/x/rank{rank}.ipynb` runs the chapter four times, and each process has three more things to do than `run`:
#
# 1. find out which rank it is ([the chapter on devices](../9_machine/90_device.ipynb)), and agree with the others on an address to meet at;
# 2. complete the environment, so that its kernel knows all that before any library is loaded;
# 3. when something goes wrong, see to it that *all* ranks end. The others wait in a collective for one that will never come, half an hour by default, and the cards are paid for.
#
# How launchers behave when one process ends with an error decides the third:
#
# | launcher | a process exits with an error | a process is killed |
# |---|---|---|
# | torchrun | ends the others | ends the others |
# | Open MPI | ends the others | ends the others |
# | MPICH | others go on, unless told | ends the others |
# | Intel MPI | others go on, unless told | others go on, unless the process had introduced itself |
# | SLURM | others go on, unless `--kill-on-bad-exit` | the same |
#
# MPICH and Intel MPI share an ancestor, Hydra, which talks with the processes it starts over a descriptor named by `PMI_FD`, in lines of text (the PMI-1 protocol). A process that says `cmd=init` and then vanishes without `cmd=finalize` is taken for a crash, and `cmd=abort` ends the job with a code. Real MPI programs speak it inside `MPI_Init`; these few lines speak it without MPI. As a present, Hydra keeps a small dictionary for the job: rank 0 puts its address into it, and the others read it.

# %%
#| export
class Hydra:
    "The PMI-1 protocol, as MPICH's and Intel MPI's process manager speaks it."

    def __init__(
        self,
        fd: int,  # the descriptor of PMI_FD
    ):
        self.fd, self.open = fd, True
        self.ask("cmd=init pmi_version=1 pmi_subversion=1")
        self.name = self.ask("cmd=get_my_kvsname")["kvsname"]

    @classmethod
    def find(cls, env=None):
        "The connection to Hydra, or None where something else started this process."
        env = os.environ if env is None else env
        try:
            return cls(int(env["PMI_FD"])) if "PMI_FD" in env and "MPI_LOCALRANKID" in env else None
        except (OSError, ValueError, KeyError):
            return None

    def ask(
        self,
        line: str,  # a command of the protocol
        timeout_s: float = 120,  # longest wait for the answer
    ) -> dict:  # name -> value of the answer; ConnectionError if none comes
        "Say one line, hear one line."
        os.write(self.fd, line.encode() + b"\n")
        answer, until = b"", time.monotonic() + timeout_s
        while not answer.endswith(b"\n"):
            if not select.select([self.fd], [], [], max(0, until - time.monotonic()))[0]:
                raise ConnectionError(
                    f"the process manager did not answer {line.split()[0]!r} within {timeout_s:g} s; "
                    "not all ranks may have started"
                )
            piece = os.read(self.fd, 1)
            if not piece:
                raise ConnectionError("the process manager closed its connection")
            answer += piece
        return dict(part.split("=", 1) for part in answer.decode().split() if "=" in part)

    def share(
        self,
        value: str,  # what rank 0 has to say, without blanks; others: anything
        is_main: bool,  # is this rank 0?
    ) -> str:  # what rank 0 said
        "Rank 0's value, on every rank."
        if is_main:
            self.ask(f"cmd=put kvsname={self.name} key=meet value={value}")
        self.ask("cmd=barrier_in")
        return self.ask(f"cmd=get kvsname={self.name} key=meet")["value"]

    def finish(self):
        "Say that this rank is done."
        if self.open:
            self.open = False
            self.ask("cmd=finalize", 10)

    def abort(
        self,
        code: int,  # exit code of the job
    ):
        "End all ranks of the job."
        try:
            os.write(self.fd, f"cmd=abort exitcode={code}\n".encode())
        except OSError:
            pass


# %% [markdown]
# Where there is no Hydra, ranks meet by other means. torchrun has set `MASTER_ADDR` and `MASTER_PORT`; under `srun` all ranks can compute the same from the names of the hosts and the number of the job; else rank 0 leaves a note in the folder of the run, under a name that only this job has.

# %%
#| export
def first_host(
    nodes: str,  # SLURM's shorthand, e.g. "node[01-04,07],login1"
) -> str:  # the first name, e.g. "node01"
    "The first host of SLURM's list."
    m = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not m:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r} was given; expected host names such as node[01-04]")
    return m[1] + (m[2] or "") + (m[3] or "")


def own_address() -> str:
    "An address of this machine that others can reach, as far as it can tell."
    for target in ("10.255.255.255", "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.connect((target, 9))
                return s.getsockname()[0]  # nothing is sent
            except OSError:
                continue
    return socket.gethostname()


def job_name(
    env,  # mapping of environment variables
) -> str:  # the same for all ranks of a job, and for no other job
    "A name for this job, from what its launcher says."
    for name in ("SIMPSONS_LLM_JOB", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PALS_APID"):
        if env.get(name):
            return f"{name}={env[name]}"
    parent = os.getppid()
    # its start time: numbers of processes come again
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"parent={platform.node()} {parent} {started}"


# %% tags=["check"]
firsts = {nodes: first_host(nodes) for nodes in ("node[01-04,07],login1", "a", "gpu-7,gpu-8", "r[3,5]n1")}
assert list(firsts.values()) == ["node01", "a", "gpu-7", "r3n1"]
firsts


# %%
#| export
def meet(
    ranks: Ranks,  # this rank
    folder,  # the run's folder, which all ranks see
    hydra=None,  # the connection to Hydra, or None
    env=None,  # mapping of environment variables; None: `os.environ`
    timeout_s: float = 120,  # longest wait for rank 0's note
) -> tuple:  # (address, port), the same on every rank; ConnectionError if rank 0 leaves no note
    "Agree on an address where the ranks meet."
    env = os.environ if env is None else env
    alone = ranks.local_world_size == ranks.world_size
    if ranks.launcher == "slurm":
        number = 7 * int(env.get("SLURM_JOB_ID", 0)) + int(env.get("SLURM_STEP_ID", 0))
        return env.get("MASTER_ADDR") or first_host(
            env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or platform.node()
        ), 20000 + number % 12000
    here = (
        f"{env.get('MASTER_ADDR') or ('127.0.0.1' if alone else own_address())}:{free_port()}" if ranks.is_main else "-"
    )
    if hydra:
        there = hydra.share(here, ranks.is_main)
    else:
        note = Path(folder) / f".meet-{hashlib.sha256(job_name(env).encode()).hexdigest()[:16]}"
        if ranks.is_main:
            write_json(note, here)
        until = time.monotonic() + timeout_s
        while not note.is_file():
            if time.monotonic() > until:
                raise ConnectionError(
                    f"rank 0 left no note in {folder} within {timeout_s:g} s; "
                    "do all ranks see this folder? else export MASTER_ADDR and MASTER_PORT"
                )
            time.sleep(0.05)
        there = read_json(note)
    address, _, port = there.rpartition(":")
    return address, int(port)


# %% [markdown]
# A command that an mpirun starts by itself, without `rank` and without a notebook, meets the others in the same way:

# %%
#| export
@contextmanager
def among_others(
    folder,  # one that all ranks see; made if it is not there
):
    "A command as one of several ranks: an address is agreed on where the launcher gave none. Alone, nothing happens."
    ranks = find_ranks()
    if ranks.world_size < 2 or "MASTER_PORT" in os.environ:
        yield
        return
    hydra = Hydra.find()
    address, port = meet(ranks, open_folder(folder), hydra)
    complete_env(ranks, master_addr=address, master_port=port)
    yield
    if hydra:
        hydra.finish()


# %% tags=["check"]
slurm = dict(SLURM_JOB_ID="123", SLURM_STEP_ID="0", SLURM_STEP_NODELIST="node[01-02]")
assert meet(Ranks(3, 1, 4, 2, "slurm"), ".", env=slurm) == ("node01", 20861)
with tempfile.TemporaryDirectory() as folder:
    env = {"PMIX_NAMESPACE": "prterun-host-1@1"}
    with ThreadPoolExecutor() as pool:
        late = pool.submit(meet, Ranks(1, 1, 2, 2, "openmpi"), folder, env=env)
        assert meet(Ranks(0, 0, 2, 2, "openmpi"), folder, env=env) == late.result()
    try:
        meet(Ranks(1, 1, 2, 2, "openmpi"), folder, env={"PMIX_NAMESPACE": "another job"}, timeout_s=0.1)
        raise AssertionError
    except ConnectionError as e:
        assert "left no note" in str(e)
        print(str(e).replace(folder, "FOLDER"))


# %% [markdown]
# Hydra is not at hand in every checkout, but its side of the talk is short. Here it is played by a thread:

# %% tags=["check"]
def play_hydra(end, rank, table, all_in):
    "Answer one rank as Hydra does, until it is done or gives up."
    with end, end.makefile("rw") as wire:
        for line in wire:
            said = dict(part.split("=", 1) for part in line.split())
            if said["cmd"] == "put":
                table[said["key"]] = said["value"]
            if said["cmd"] == "barrier_in":
                all_in.wait()
            if said["cmd"] == "abort":
                return f"abort {said['exitcode']}"
            wire.write(
                {
                    "init": "cmd=response_to_init rc=0",
                    "get_my_kvsname": "cmd=my_kvsname kvsname=kvs_1",
                    "put": "cmd=put_result rc=0",
                    "barrier_in": "cmd=barrier_out",
                    "get": f"cmd=get_result value={table.get('meet')}",
                    "finalize": "cmd=finalize_ack",
                }[said["cmd"]]
                + "\n"
            )
            wire.flush()
            if said["cmd"] == "finalize":
                return "done"


def talk(rank, end, code):
    hydra = Hydra.find({"PMI_FD": str(end.fileno()), "MPI_LOCALRANKID": str(rank)})
    place = meet(Ranks(rank, rank, 2, 2, "mpich"), ".", hydra, {})
    hydra.abort(code) if code else hydra.finish()
    return place


table, all_in = {}, threading.Barrier(2)
pairs = [socket.socketpair() for _ in range(2)]
with ThreadPoolExecutor() as pool:
    plays = [pool.submit(play_hydra, pairs[r][1], r, table, all_in) for r in range(2)]
    places = [pool.submit(talk, r, pairs[r][0], [0, 3][r]) for r in range(2)]
assert places[0].result() == places[1].result() and places[0].result()[0] == "127.0.0.1"
assert [p.result() for p in plays] == ["done", "abort 3"]
# another launcher's PMI_FD is left alone
assert Hydra.find({}) is None and Hydra.find({"PMI_FD": "3"}) is None
[p.result() for p in plays]


# %% [markdown]
# The process of one rank. A failure is written down before the job is ended, as a small file beside the notebooks, so that whoever started the job can say in one sentence what happened. If the summary of the run still says "running", that is corrected too: nobody else may be left to do so.

# %%
#| export
def say_failed(
    folder: Path,  # the run's folder
    message: str,  # what happened, in one sentence
    status: str = "failed",  # or "interrupted"
):
    "Put the end of a run into its summary, unless it has an end already."
    path = folder / "summary.json"
    try:
        before = read_json(path).get("status") if path.is_file() else None
    except ValueError:
        before = "running"
    if before == "running":
        write_json(path, {"status": status, "error": message})


# %% tags=["example"]
for before in ("running", "done"):
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "summary.json", {"status": before})
        say_failed(Path(folder), "rank 1: ValueError: the film is torn")
        print(before, "->", read_json(Path(folder) / "summary.json"))


# %%
#| export
def run_rank(
    name: str,  # a job's name, a chapter's, or the path of any notebook
    notebook: str,  # the executed notebook, with {rank} in it
    parameters: dict | None = None,  # name -> value
    ccl_debug: bool = False,  # let oneCCL tell what it does
) -> Path:  # the executed notebook
    "Run a chapter as one rank of a job; if it fails, all ranks end."
    ranks = find_ranks()
    require(
        "{rank}" in notebook or ranks.world_size == 1,
        f"the notebook {notebook} was given for {ranks.world_size} ranks; "
        f"write {{rank}} into its name, such as runs/x/rank{{rank}}.ipynb",
    )
    executed = Path(notebook.replace("{rank}", str(ranks.rank)))
    hydra, began = Hydra.find(), time.time()
    report = (
        executed.parent / f".failed-{hashlib.sha256(job_name(os.environ).encode()).hexdigest()[:8]}-{ranks.rank}.json"
    )
    folder, held = open_folder(executed.parent), ExitStack()
    if ranks.is_main:
        try:
            held.enter_context(hold_folder(folder, f"rank {Path(name).stem}"))
        except ValueError as e:  # another job is at work in there, so nothing is written, no report either
            if hydra:
                print(f"error: {e}", file=sys.stderr, flush=True)
                hydra.abort(2)
                time.sleep(2)
            raise
    try:
        if ranks.world_size > 1 and "MASTER_PORT" not in os.environ:
            address, port = meet(ranks, folder, hydra)
            complete_env(ranks, master_addr=address, master_port=port)
        else:
            complete_env(ranks)
        rank_env(ranks, ccl_debug=ccl_debug)
        run_chapter(name, folder, parameters, ranks.is_main, executed, hold=False)
    except BaseException as e:
        status = "interrupted" if isinstance(e, KeyboardInterrupt) else "failed"
        message = (
            f"rank {ranks.rank} was interrupted"
            if status == "interrupted"
            else f"rank {ranks.rank}: {getattr(e, 'ename', type(e).__name__)}: {e}"
        )
        try:
            if executed.parent.is_dir():
                write_json(
                    report,
                    {
                        "rank": ranks.rank,
                        "host": platform.node(),
                        "time": time.time(),
                        "status": status,
                        "error": message,
                        "code": exit_code(e),
                        "follows": getattr(e, "ename", "") == "RankFailed",
                    },
                )
                if status == "failed" or ranks.is_main:
                    say_failed(executed.parent, message, status)
        except OSError:
            pass
        if hydra:
            sys.stdout.flush()
            print(f"error: {message}", file=sys.stderr, flush=True)
            hydra.abort(exit_code(e))
            time.sleep(2)
        raise
    finally:
        if ranks.is_main:
            for note in executed.parent.glob(".meet-*"):
                if note.stat().st_mtime >= began - 1:
                    note.unlink(missing_ok=True)
        held.close()
    if hydra:
        hydra.finish()
    return executed


# %% [markdown]
# Two ranks cannot write into one notebook:

# %% tags=["example"]
with patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}):
    try:
        run_rank("prepare", "runs/x/executed.ipynb")
    except ValueError as e:
        print(e)

# %% [markdown]
# ## All ranks at once
#
# `simpsons-llm launch` writes the launcher's command line, starts it, and stays until all is over. Four ways, one shape:

# %%
#| export
LAUNCHERS = ("auto", "torchrun", "mpich", "intelmpi", "openmpi", "slurm")
# one rank's process, whatever PATH says
RANK = [sys.executable, "-c", "import simpsons_llm.ranks.launch as launch; launch.answer_launch()"]


def answer_launch():
    "What a process that `launch` started does: be one rank."
    chapter, notebook, parameters, ccl_debug = sys.argv[1:5]
    try:
        run_rank(chapter, notebook, read_json(parameters), ccl_debug == "True")
    except KeyboardInterrupt as e:
        sys.exit(exit_code(e))
    except Exception as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(exit_code(e))


def mpi_kind(
    mpirun: str = "mpirun",  # the program, by name or path
) -> str:  # "mpich", "intelmpi", "openmpi", or "" if there is none
    "Whose mpirun this is."
    if not shutil.which(mpirun):
        return ""
    try:
        said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (
        "openmpi"
        if "Open MPI" in said
        else "intelmpi"
        if "Intel" in said
        else "mpich"
        if "HYDRA" in said or "mpich" in said.lower()
        else ""
    )


# %% [markdown]
# Programs that say no more than the first line of each:

# %% tags=["example"]
kinds = {}
for line in ("mpirun (Open MPI) 5.0.8", "HYDRA build details:", "Intel(R) MPI Library for Linux* OS", "something else"):
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "mpirun"
        program.write_text(f"#!/bin/sh\necho '{line}'\n")
        program.chmod(0o700)
        kinds[line] = mpi_kind(str(program))
kinds


# %%
#| export
def choose_launcher(
    want: str,  # one of LAUNCHERS
    several: bool,  # are several hosts named?
    env=None,  # mapping of environment variables; None: `os.environ`
) -> str:  # the launcher; ValueError where it is not there
    "Which launcher starts the ranks."
    env = os.environ if env is None else env
    require(want in LAUNCHERS, f"launcher {want!r} was given; expected one of {', '.join(LAUNCHERS)}")
    in_slurm = "SLURM_JOB_ID" in env and shutil.which("srun")
    if want == "auto":
        return "slurm" if in_slurm else (mpi_kind() or "torchrun") if several else "torchrun"
    if want == "slurm":
        require(
            in_slurm,
            "launcher slurm was given, but this is no allocation: "
            "SLURM_JOB_ID or srun is missing; start with salloc or sbatch",
        )
    elif want != "torchrun":
        found = mpi_kind()
        require(
            found == want,
            f"launcher {want} was given, "
            f"but {'there is no mpirun on PATH' if not found else f'the mpirun on PATH is that of {found}'}; "
            "put the right bin folder first on PATH, or use --launcher torchrun",
        )
    return want


def read_hosts(
    text: str,  # host names with commas, or the path of a file with one a line; "a:4" or "a slots=4": 4 ranks on a
    n: int,  # ranks in all
) -> list:  # (host, ranks on it); ValueError if n cannot be shared out
    "Who runs how many ranks."
    if not text:
        return []
    lines = Path(text).read_text(encoding="utf8").splitlines() if Path(text).is_file() else text.split(",")
    found = [
        m
        for line in lines
        if (m := re.match(r"\s*([^\s:#]+)(?:\s*:\s*(\d+)|\s+slots\s*=\s*(\d+))?", line.split("#")[0]))
    ]
    require(found, f"hosts {text!r} names no host; write a,b or a file with one host a line")
    options = [m[1] for m in found if m[1].startswith("-")]
    require(
        not options,
        f"the host {' and '.join(map(repr, options))} begins with a dash, "
        "which ssh and mpirun would take for an option; write names or addresses of hosts",
    )
    each = [int(m[2] or m[3] or 0) for m in found]
    if not any(each):
        each = [n // len(found) + (i < n % len(found)) for i in range(len(found))]
    require(
        all(each) and sum(each) == n,
        f"{n} ranks were asked for, but the hosts have {' + '.join(map(str, each))}; let them add up",
    )
    return [(m[1], k) for m, k in zip(found, each)]


# %% tags=["check"]
assert (
    read_hosts("a,b", 4) == [("a", 2), ("b", 2)] == read_hosts("a:2,b:2", 4)
    and read_hosts("", 3) == []
    and read_hosts("a,b", 3) == [("a", 2), ("b", 1)]
)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "hosts"
    file.write_text("# two cards each\nnode1 slots=2\nnode2 slots=2  # the new one\n")
    assert read_hosts(str(file), 4) == [("node1", 2), ("node2", 2)]
for bad in (
    lambda: read_hosts("a:2,b:2", 5),
    lambda: read_hosts("a,b,c", 2),
    lambda: read_hosts("a,-oProxyCommand=x", 2),
    lambda: choose_launcher("mpi", False),
    lambda: choose_launcher("slurm", False, {}),
):
    try:
        bad()
        raise AssertionError
    except ValueError as e:
        print(e)
assert choose_launcher("auto", False, {}) == "torchrun"
read_hosts("a,b", 3), read_hosts("a:1,b:3", 4)

# %% [markdown]
# An MPI and SLURM bring the environment to other hosts over connections of their own. (That was looked at with MPICH, Intel MPI and Open MPI: no value stood in a command line. Open MPI wants the names, after `-x`.) torchrun does not, so `launch` writes the variables that matter into the command for ssh. And a command line is public: `ps` shows it to everybody who is logged in, on both hosts. So what is secret never stands there: variables with a token, key, password or credential in their name, and addresses with a password in them. One printed line says which ones stay behind. Log in on each host instead, once; for a token of the hub, with `hf auth login`.
#
# The same holds for parameters: they are no place for secrets, because every executed notebook shows them. On their way to the ranks they lie in a file that only its owner can read, and that is removed when the job is over.

# %%
#| export
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL")


def is_secret(
    name: str,  # an environment variable's name
    value: str = "",  # what it holds
) -> bool:  # whether it must not stand where others can read it
    "Is this variable for its owner's eyes only?"
    words = name.upper().split("_")
    place = words[-1] in ("PATH", "FILE", "DIR")  # where a secret lies is none
    named = not place and any(w.removesuffix("S").endswith(SECRETS) for w in words)
    return named or bool(re.search(r"://[^/\s@]*:[^/\s@]+@", value))


# %% tags=["check"]
assert all(
    map(
        is_secret,
        (
            "HF_TOKEN",
            "hf_api_key",
            "HF_APIKEY",
            "CCL_PASSWORD",
            "WANDB_API_KEY",
            "HF_SECRETS",
            "SIMPSONS_LLM_CREDENTIALS",
        ),
    )
)
assert not any(
    map(
        is_secret,
        (
            "TOKENIZERS_PARALLELISM",
            "HF_HOME",
            "HF_TOKEN_PATH",
            "CCL_KVS_MODE",
            "OMP_NUM_THREADS",
            "NCCL_DEBUG_KEYWORDS",
            "MASTER_ADDR",
        ),
    )
)
assert is_secret("HF_ENDPOINT", "https://me:pass@hub.example") and not is_secret(
    "HF_ENDPOINT", "https://hub.example:8080/a@b"
)
{name: is_secret(name) for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "WANDB_API_KEY")}

# %%
#| export
# what torchrun's ranks on other hosts get
CARRIED = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "HOME",
    "SIMPSONS_LLM_",
    "HF_",
    "OMP_",
    "CCL_",
    "FI_",
    "ZE_",
    "IPEX_",
    "NCCL_",
    "GLOO_",
    "MASTER_",
    "TOKENIZERS_",
    "XDG_",
)


def launch_commands(
    launcher: str,  # torchrun, mpich, intelmpi, openmpi or slurm
    n: int,  # ranks in all
    program: list,  # what each rank runs
    hosts: list | tuple = (),  # (host, ranks on it); empty: this machine
    rsh: str = "ssh",  # how to reach a host
    port: int = 0,  # where ranks on several hosts meet
    env=None,  # mapping of environment variables; None: `os.environ`
) -> list:  # (command, variables to add) for each process to start: one, or with torchrun one a host
    "The launcher's command line."
    env, names = os.environ if env is None else env, ",".join(h for h, _ in hosts)
    if launcher == "slurm":
        return [
            (
                [
                    "srun",
                    "--ntasks",
                    str(n),
                    "--kill-on-bad-exit=1",
                    *(["--nodelist", names] if hosts else []),
                    *program,
                ],
                {},
            )
        ]
    if launcher == "openmpi":
        where = ["--host", ",".join(f"{h}:{k}" for h, k in hosts), "--prtemca", "plm_ssh_agent", rsh] if hosts else []
        carried = [x for k in sorted(env) if k.startswith(CARRIED[5:]) for x in ("-x", k)]
        root = (
            {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
            if hasattr(os, "geteuid") and os.geteuid() == 0
            else {}
        )
        return [
            (
                ["mpirun", "-n", str(n), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", *where, *carried, *program],
                root,
            )
        ]
    if launcher in ("mpich", "intelmpi"):
        if launcher == "mpich":
            return [
                (
                    [
                        "mpirun",
                        *(["-launcher-exec", rsh, "-hosts", ",".join(f"{h}:{k}" for h, k in hosts)] if hosts else []),
                        "-n",
                        str(n),
                        *program,
                    ],
                    {},
                )
            ]
        per_host = [x for h, k in hosts for x in (":", "-host", h, "-n", str(k), *program)][1:]
        return [
            (
                ["mpirun", *(per_host or ["-n", str(n), *program])],
                {
                    "I_MPI_PIN": "0",
                    **({"I_MPI_HYDRA_BOOTSTRAP": "ssh", "I_MPI_HYDRA_BOOTSTRAP_EXEC": rsh} if hosts else {}),
                },
            )
        ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python"]
    if not hosts:
        return [([*torchrun, "--standalone", "--nproc-per-node", str(n), *program], {})]
    require(
        len({k for _, k in hosts}) == 1,
        "torchrun wants the same number of ranks on every host; give them alike, or use an MPI",
    )
    carried = [f"{k}={v}" for k, v in sorted(env.items()) if k.startswith(CARRIED) and not is_secret(k, v)]

    def on(i, host, k):
        there = [
            "env",
            "-C",
            os.getcwd(),
            *carried,
            *torchrun,
            "--nnodes",
            str(len(hosts)),
            "--node-rank",
            str(i),
            "--master-addr",
            hosts[0][0],
            "--master-port",
            str(port),
            "--nproc-per-node",
            str(k),
            *program,
        ]
        return [
            *rsh.split(),
            host,
            *([" ".join(map(shlex.quote, there))] if Path(rsh.split()[0]).name in ("ssh", "rsh") else there),
        ]

    return [(on(i, host, k), {}) for i, (host, k) in enumerate(hosts)]


# %% tags=["example"]
rows = {
    name: " ".join(launch_commands(name, 4, ["simpsons-llm", "rank", "..."], env={})[0][0]).replace(
        sys.executable, "python"
    )
    for name in LAUNCHERS[1:]
}
rows["mpich, two hosts"] = " ".join(
    launch_commands("mpich", 4, ["simpsons-llm", "rank", "..."], [("a", 2), ("b", 2)], env={})[0][0]
)
pd.Series(rows, name="command").to_frame().style.set_properties(**{"text-align": "left"})

# %% tags=["check"]
there = " ".join(
    launch_commands(
        "torchrun",
        2,
        ["simpsons-llm"],
        [("a", 1), ("b", 1)],
        env={"HF_TOKEN": "hf_abc", "HF_HOME": "/hub", "TOKENIZERS_PARALLELISM": "false"},
    )[1][0]
)
assert "hf_abc" not in there and "HF_HOME=/hub" in there and "TOKENIZERS_PARALLELISM=false" in there


# %% [markdown]
# ## Nothing left behind
#
# The launcher ends its own children. But a kernel is a grandchild, in a session of its own, and a launcher that is itself killed ends nobody. So every process of a job carries the job's name in its environment, and whoever still carries it on this machine when the job is over is ended. (Kernels also look after themselves: one whose parent is gone ends within a second or two.)

# %%
#| export
def processes_of(
    job: str,  # the job's name, the value of SIMPSONS_LLM_JOB
) -> list:  # numbers of processes on this machine, without this one; empty where the system does not tell
    "Processes that belong to a job."
    found, mark = [], f"SIMPSONS_LLM_JOB={job}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            ours = mark in path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is not ours to look at
        if ours and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def end_processes(
    job: str,  # the job's name
    patience_s: float,  # time to end by themselves, in seconds
) -> int:  # how many had to be killed
    "Wait for a job's processes, then kill those that stay."
    until = time.monotonic() + patience_s
    while (left := processes_of(job)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return len(left)


# %% [markdown]
# A job that is told to stop is not ended, but asked, so that its ranks can save what they have. The launcher is asked only where it has no ranks here: an mpirun that hears a signal may kill its ranks before they have saved.

# %%
#| export
def ask_ranks(
    job: str,  # the job's name
    started: list,  # processes of the launcher
):
    "Ask all ranks to stop."
    here = []
    for pid in processes_of(job):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue
        if words[: len(RANK)] == RANK:
            here.append(pid)
    for pid in here:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for p in started:
        if not here and p.poll() is None:
            p.terminate()


# %% [markdown]
# A process that would sleep for a minute, and is given a fifth of a second:

# %% tags=["example"]
sleeper = subprocess.Popen(["sleep", "60"], env={**os.environ, "SIMPSONS_LLM_JOB": "an-example"})
found = processes_of("an-example") == [sleeper.pid]
found, end_processes("an-example", 0.2), sleeper.wait()  # found, how many were killed, and by which signal


# %%
#| export
def write_private(
    path: Path,  # the file; replaced if it is there
    data,  # anything that JSON can hold
) -> Path:  # the file
    "Write JSON that nobody but its owner can read."
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf8") as f:
        json.dump(data, f)
    return path


def launch(
    name: str,  # a job's name, a chapter's, or the path of any notebook
    out,  # the run's folder
    n: int,  # ranks in all, 1 or more
    parameters: dict | None = None,  # name -> value
    launcher: str = "auto",  # one of LAUNCHERS
    hosts: str = "",  # host names with commas, or a hostfile
    rsh: str = "ssh",  # how to reach a host
    ccl_debug: bool = False,  # let oneCCL tell what it does
) -> list:  # the executed notebooks; JobError if a rank failed
    "Run a chapter once per rank, and wait for the end."
    require(n >= 1, f"-n {n} was given; expected 1 or more ranks")
    chapter = find_chapter(name)
    check_values(check_parameters(dict(parameters or {}), chapter), chapter, n)
    where = read_hosts(hosts, n)
    launcher = choose_launcher(launcher, bool(where))
    out = open_folder(out)
    with hold_folder(out, f"launch {chapter.stem}"):
        return start_all(chapter, out, n, parameters, launcher, where, rsh, ccl_debug)


def start_all(
    chapter: Path,  # a notebook
    out: Path,  # the run's folder, held for this job
    n: int,  # ranks in all
    parameters: dict | None,  # name -> value
    launcher: str,  # one of LAUNCHERS but auto
    where: list,  # (host, ranks on it); empty: this machine
    rsh: str,  # how to reach a host
    ccl_debug: bool,  # let oneCCL tell what it does
) -> list:  # as `launch`
    "Start the ranks, and see to their end."
    for old in out.glob(".failed-*.json"):
        old.unlink()
    set_aside(out, [p.name for p in out.glob("rank*.ipynb")])
    job = uuid.uuid4().hex[:12]
    given = write_private(out / ".parameters.json", parameters or {})
    program = [*RANK, str(chapter), str(out / "rank{rank}.ipynb"), str(given), str(ccl_debug)]
    own = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    env = {**own, "SIMPSONS_LLM_JOB": job}
    if where:
        env["MASTER_ADDR"] = where[0][0]
    kept = [k for k, v in sorted(env.items()) if k.startswith(CARRIED) and is_secret(k, v)]
    if kept and where and launcher == "torchrun":
        print(
            f"not carried to other hosts, since everybody there could read it: {', '.join(kept)}; "
            "log in on each host instead, e.g. hf auth login",
            flush=True,
        )
    started, log = [], open(out / "launcher.log", "w", encoding="utf8")
    try:
        with log:
            for command, more in launch_commands(launcher, n, program, where, rsh, free_port(), env):
                started.append(
                    subprocess.Popen(
                        command,
                        env={**env, **more},
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        errors="replace",
                        start_new_session=True,
                    )
                )
                threading.Thread(target=show_lines, args=[started[-1].stdout], daemon=True).start()
            code = watch(started)
    except KeyboardInterrupt:
        ask_ranks(job, started)
        end_processes(job, GRACE_S + 4)
        say_failed(out, "interrupted", "interrupted")
        raise
    finally:
        for p in started:
            if p.poll() is None:
                p.kill()
        left = end_processes(job, 5)
        given.unlink(missing_ok=True)
    notebooks = sorted(out.glob("rank*.ipynb"), key=lambda p: int(re.sub(r"\D", "", p.stem) or 0))
    if code or left:
        raise job_error(out, code, launcher, n)
    require(
        len(notebooks) == n,
        f"{n} ranks were started by {launcher}, but {len(notebooks)} notebooks are in {out}; "
        "every rank must see this folder",
    )
    return notebooks


# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    print(oct(write_private(Path(folder) / ".parameters.json", {"seed": 7}).stat().st_mode & 0o777))
try:
    launch("prepare", "runs/never", 0)
except ValueError as e:
    print(e)


# %%
#| export
def show_lines(
    stream,  # a process's output
):
    "Show lines as they come, in a terminal and in a notebook alike."
    for line in stream:
        print(line, end="", flush=True)


def told_to_stop(
    number: int,  # of the signal
    frame,  # where it was heard
):
    "A signal handler."
    raise Stopped(number)


def watch(
    started: list,  # processes
) -> int:  # the first exit code that is not 0; 0 if all went well
    "Wait for processes; when one fails, end the others."
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [n for n in STOPS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        before = {n: signal.signal(n, told_to_stop) for n in heard}
    try:
        while any(p.poll() is None for p in started):
            if any(p.poll() for p in started):
                break
            time.sleep(0.1)
        for p in started:
            if p.poll() is None:
                p.terminate()
        for p in started:
            try:
                p.wait(GRACE_S + 4)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return next(
        (p.returncode for p in started if p.returncode and p.returncode > 0),
        next((1 for p in started if p.returncode), 0),
    )


# %% [markdown]
# One process fails, while the other would sleep for a minute:

# %% tags=["example"]
pair = [subprocess.Popen(["sh", "-c", "exit 3"]), subprocess.Popen(["sleep", "60"])]
watch(pair), [p.returncode for p in pair]


# %%
#| export
def job_error(
    out: Path,  # the run's folder
    code: int,  # the launcher's exit code
    launcher: str,  # its name
    n: int,  # ranks that were started
) -> JobError:  # in the words of the rank that failed first; the summary says so too
    "Why a job ended, from the reports that its ranks left."
    told = list(map(read_json, out.glob(".failed-*.json")))
    reports = sorted((r for r in told if r["status"] == "failed"), key=lambda r: (r["follows"], r["time"]))
    silent = sorted(set(range(n)) - {r["rank"] for r in told})
    tail = (out / "launcher.log").read_text(encoding="utf8", errors="replace").strip().splitlines()[-15:]
    if reports:
        message = reports[0]["error"]
    elif told and len(silent) == 1:
        message = (
            f"rank {silent[0]} ended without a word, so somebody killed it, "
            "or the system did because memory ran out (see dmesg)"
        )
    else:
        message = "\n".join(
            [
                f"{launcher} ended with exit code {code} and no rank said why: "
                "one was killed, or could not start; its last words:",
                *tail,
            ]
        )
    say_failed(out, message)
    for p in out.glob(".failed-*.json"):
        p.unlink(missing_ok=True)
    return JobError(f"{message}; all ranks were ended", reports[0]["code"] if reports else 1)


# %% [markdown]
# Two reports. Rank 0 was the first to write, but it only followed another:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for rank, error in enumerate(("RankFailed: rank 1 is gone", "ValueError: the film is torn")):
        report = {"rank": rank, "time": rank, "status": "failed", "error": f"rank {rank}: {error}", "code": 2}
        write_json(Path(folder) / f".failed-job-{rank}.json", {**report, "follows": rank == 0})
    (Path(folder) / "launcher.log").write_text("")
    print(job_error(Path(folder), 1, "torchrun", 2))

# %% [markdown]
# Two ranks of a small notebook of one's own, by torchrun. Each leaves its notebook; only rank 0's words are shown.

# %% tags=["example"]
own = nbformat.v4.new_notebook(
    cells=[
        nbformat.v4.new_code_cell("word = 'nothing'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from simpsons_llm.machine.device import find_ranks\nr = find_ranks()\n"
            "if word == 'fail' and r.rank == 1: raise ValueError('the film is torn')\n"
            "import time\ntime.sleep(60*(word == 'fail'))\nprint(f'rank {r.rank} of {r.world_size} says {word}')"
        ),
    ]
)
with tempfile.TemporaryDirectory() as folder:
    nbformat.write(own, Path(folder) / "own.ipynb")
    with redirect_stdout(io.StringIO()) as said:
        notebooks = launch(f"{folder}/own.ipynb", f"{folder}/run", 2, {"word": "woohoo"})
    texts = [nbformat.read(p, 4).cells[-1].outputs[0].text for p in notebooks]
    try:
        launch(f"{folder}/own.ipynb", f"{folder}/torn", 2, {"word": "fail"})
    except JobError as e:
        failed = e
    kept = sorted(p.name for p in Path(folder, "torn").glob("*.ipynb"))
print(said.getvalue())
print(str(failed).replace(folder, "FOLDER"))
texts

# %% tags=["check"]
assert texts == [f"rank {r} of 2 says woohoo\n" for r in range(2)] and said.getvalue() == texts[0]
assert (
    exit_code(failed) == 2
    and "rank 1: ValueError: the film is torn" in str(failed)
    and kept == ["rank0.ipynb", "rank1.ipynb"]
)

# %% [markdown]
# ## How fast a job ends
#
# `tests/launchers.sh` lets one of two ranks come to grief in four ways (its cell raises, its kernel exits, its kernel is killed, its `rank` process is killed), before and after the ranks have met, under four launchers, and starts 32 ranks twenty times. These are its results, on two cores; seconds from the mishap to the end of `launch`, with all notebooks kept and no process left, which the tests check.

# %% tags=["example"]
rows = pd.read_json(chapters_dir() / "_results" / "launchers.jsonl", lines=True)
failures = (
    rows[rows.kind == "failure"].pivot_table(index="launcher", columns=["how", "when"], values="seconds").round(1)
)
failures

# %% tags=["example"]
starts = rows[rows.kind == "start"]
Markdown(
    f"The slowest end took {rows[rows.kind == 'failure'].seconds.max():.1f} s. {len(starts)} of 20 starts of "
    f"{int(starts.ranks.max())} ranks succeeded, in {starts.seconds.min():.0f} to {starts.seconds.max():.0f} s each."
)

# %% tags=["check"]
# 4 launchers, 4 ways before and after
assert failures.shape == (4, 8) and failures.max().max() < 10 and len(starts) == 20

# %% [markdown]
# ## On two GPUs
#
# `tests/gpu_several.py` launched the chapters on one and on two NVIDIA H200 of one machine (PyTorch 2.11, NCCL). Both engines, an adapter and whole models, whole and in parts, by torchrun and by MPICH: how far are the losses of two ranks from those of one?

# %% tags=["example"]
gpus = pd.read_json(chapters_dir() / "_results" / "gpu_several.jsonl", lines=True)
pairs = (
    gpus[(gpus["kind"] == "run") & (gpus["world_size"] == 2)]
    .astype({"sharded": bool})
    .set_index(["base", "dtype", "engine", "mode", "launcher"])
)
pairs["first rank's share"] = [ranks[0][1] for ranks in pairs["ranks"]]
pairs[["sharded", "furthest_from_one_nats", "first rank's share", "peak_mem_gib", "seconds"]].round(
    {"first rank's share": 3, "peak_mem_gib": 2, "seconds": 0}
)

# %% [markdown]
# In fp32 they are equal to 4.8e-7; what bf16 rounds away is larger. (The seconds are those of the whole `launch`, kernels, notebooks and checkpoints included.) And when a rank comes to grief while the other waits for it in an all-reduce on its card?

# %% tags=["example"]
pd.set_option("display.max_colwidth", 200)
torn = gpus[gpus["kind"] == "failure"].set_index("how")
torn[["seconds", "code", "kernels_left", "message"]].astype({"code": int, "kernels_left": int}).round(1)

# %% [markdown]
# A collective on a GPU cannot be interrupted: its rank does not listen to the polite signal, and is killed after a while (four seconds when this was measured, ten now, so that steps can be saved). So it takes somewhat longer than on a CPU, and ends all the same.

# %% tags=["check"]
assert (
    (pairs.query("dtype == 'float32'")["furthest_from_one_nats"] < 1e-6).all()
    and len(pairs.query("dtype == 'float32'")) == 6
    and (pairs["furthest_from_one_nats"] < 0.01).all()
)
assert (
    len(torn) == 2
    and (torn["seconds"] < 10).all()
    and (torn["code"] > 0).all()
    and (torn["kernels_left"] == 0).all()
    and (gpus[gpus["kind"] == "resume"]["equal_within"] == 1e-5).all()
)


# %% [markdown]
# ## Runs at a glance
#
# Every run's `summary.json`, newest first: what was trained, how far the loss fell, how fast it went. Losses may be compared only between runs with the same base model, data, view and template.

# %%
#| export
def list_runs(
    root="runs",  # folder that holds runs, at any depth
) -> list:  # one dict a run, newest first; runs without a readable summary say so
    "Summaries of all runs below a folder."
    rows = []
    for path in sorted(Path(root).rglob("summary.json"), key=lambda p: -p.stat().st_mtime):
        if "earlier" in path.parts:
            continue
        try:
            s = read_json(path)
        except ValueError:
            s = {"status": "unreadable summary"}
        names = (
            "status",
            "base_model",
            "recipe",
            "view",
            "template",
            "device",
            "mode",
            "learning_rate",
            "world_size",
            "optimizer_steps",
            "best_step",
            "valid_loss_nats_base",
            "valid_loss_nats_best",
            "tokens_per_s",
            "peak_mem_gib",
            "train_s",
        )
        rows.append({"run": str(path.parent), **{n: s.get(n, s.get("settings", {}).get(n)) for n in names}})
    return rows


# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    for i, text in enumerate(('{"status": "done", "valid_loss_nats_best": 3.5}', "half a fi")):
        (open_folder(Path(folder) / f"run{i}") / "summary.json").write_text(text)
    listed = pd.DataFrame(list_runs(folder)).set_index("run").rename(index=lambda run: Path(run).name).sort_index()
    assert dict(listed["status"]) == {"run0": "done", "run1": "unreadable summary"}
listed[["status", "valid_loss_nats_best"]]
