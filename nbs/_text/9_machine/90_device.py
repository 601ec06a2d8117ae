# %%
#| default_exp machine.device

# %% [markdown]
# # Device and ranks
#
# > Which processor this program runs on, in which number type, and as which of how many copies.
#
# The same program should run on a laptop, on one GPU and on many. It meets three questions before it can do any
# work: what may I compute on, in which number type, and am I alone? The libraries below us each answer a part of
# this, and some of them answer wrongly without saying so. This chapter asks once, writes the answers down in two
# small records, `Device` and `Ranks`, and refuses what cannot be right. How copies find each other is the
# subject of [ranks that work together](92_distributed.ipynb), starting them that of [the chapter on launching](../7_ranks/72_launch.ipynb).

# %%
#| export
import os
import platform
import sys
import threading
import warnings
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

# %%
#| hide
import tempfile
import time
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import torch

from simpsons_llm.machine.job import chapters_dir


# %% [markdown]
# The module imports nothing heavy. PyTorch is imported inside the functions that need it, so that reading the
# environment stays quick.
#
# ## Ranks: which copy am I?
#
# Training on several processors starts one copy of the program per processor. Each copy is a *rank*:
#
# - `rank` counts over all machines, from 0; rank 0 prints and saves.
# - `local_rank` counts on one machine; it picks the processor.
# - `world_size` is how many copies there are, `local_world_size` how many of them are on this machine.

# %%
#| export
@dataclass(frozen=True)
class Ranks:
    "Which copy of the program this is, and how many there are."

    rank: int = 0  # number of this copy over all machines, 0..world_size-1
    local_rank: int = 0  # number of this copy on its machine, 0..local_world_size-1
    world_size: int = 1  # copies on all machines, 1 or more
    local_world_size: int = 1  # copies on this machine, 1..world_size
    launcher: str = "none"  # who started it: "torchrun", "openmpi", "mpich", "intelmpi", "slurm", "env" or "none"

    @property
    def is_main(self) -> bool:
        "Is this the copy that prints and saves?"
        return self.rank == 0


# %% tags=["example"]
Ranks(), Ranks(rank=3, local_rank=1, world_size=4, local_world_size=2).is_main

# %% [markdown]
# Two machines with two processors each make four ranks. The second copy on the second machine is then
# `Ranks(rank=3, local_rank=1, world_size=4, local_world_size=2)`.
#
# A launcher tells a copy its numbers through environment variables, and every launcher has its own names for them:
#
# | launcher | rank | world size | local rank | local world size |
# |---|---|---|---|---|
# | `torchrun` | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` | `LOCAL_WORLD_SIZE` |
# | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK` | `OMPI_COMM_WORLD_LOCAL_SIZE` |
# | MPICH, Intel MPI | `PMI_RANK` | `PMI_SIZE` | `MPI_LOCALRANKID` | `MPI_LOCALNRANKS` |
# | PALS (the `mpiexec` of some Intel clusters) | `PMI_RANK` | `PMI_SIZE` | `PALS_LOCAL_RANKID` | |
# | SLURM's `srun` | `SLURM_PROCID` | `SLURM_NTASKS` | `SLURM_LOCALID` | `SLURM_NTASKS_PER_NODE` |
#
# The names of the first three rows were read from ranks that these launchers really started (Open MPI 5.0, MPICH 5.0,
# Intel MPI 2021.18). The last two rows are from documentation.
#
# Why not leave this to the Trainer? Because on XPU and CUDA it looks at `LOCAL_RANK` alone, which `mpirun` does not
# set. Four ranks under plain `mpirun` then train four separate models, all on processor 0, and nothing complains.
#
# The table as data. Where a place has several names, the first one that is set counts.

# %%
#| export
_FIELDS = "rank", "world_size", "local_rank", "local_world_size"
_SAYS = {
    "env": (["RANK"], ["WORLD_SIZE"], ["LOCAL_RANK"], ["LOCAL_WORLD_SIZE"]),
    "openmpi": (
        ["OMPI_COMM_WORLD_RANK"],
        ["OMPI_COMM_WORLD_SIZE"],
        ["OMPI_COMM_WORLD_LOCAL_RANK"],
        ["OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    "pmi": (
        ["PMI_RANK"],
        ["PMI_SIZE"],
        ["MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"],
        ["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
    ),
    "slurm": (
        ["SLURM_PROCID"],
        ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        ["SLURM_LOCALID"],
        ["SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"],
    ),
}


# %% [markdown]
# SLURM writes its tasks per machine in a shorthand: `4(x2),3` is 4, 4 and 3 tasks on three machines.
# `SLURM_NODEID` says which of them this is.

# %%
#| export
def _tasks_on_node(
    text: str,  # SLURM's shorthand, e.g. "4(x2),3"
    node: int = 0,  # which machine of the job, from 0
) -> int:  # tasks on that machine
    "Tasks on machine `node`, from SLURM's shorthand."
    counts = []
    for part in text.split(","):
        tasks, _, times = part.strip().rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts[min(node, len(counts) - 1)]


# %% tags=["check"]
tasks = [_tasks_on_node("4(x2),3", node) for node in range(3)]
assert tasks == [4, 4, 3]
tasks


# %% [markdown]
# Reading one launcher's variables. The name of the variable stays beside its number, so that an error can point at
# it. Half an answer is worse than none: a rank without a world size would have to be guessed.

# %%
#| export
def _read(
    env,  # mapping of environment variables
    launcher: str,  # a key of `_SAYS`
) -> dict:  # field -> (variable, number), only what is set
    "What one launcher's variables say."
    said = {}
    for field, names in zip(_FIELDS, _SAYS[launcher]):
        name = next((n for n in names if n in env), None)
        if name is None:
            continue
        try:
            text = env[name]
            if "TASKS_PER_NODE" in name:
                text = _tasks_on_node(text, int(env.get("SLURM_NODEID", 0)))
            said[field] = name, int(text)
        except (ValueError, IndexError):
            raise ValueError(
                f"{name}={env[name]!r} is not a whole number; unset it, or let the launcher set it"
            ) from None
    if ("rank" in said) != ("world_size" in said):
        have, lacks = (
            (said["rank"][0], _SAYS[launcher][1][-1])
            if "rank" in said
            else (said["world_size"][0], _SAYS[launcher][0][0])
        )
        raise ValueError(f"{have} is set but {lacks} is not; set both, or unset both and let the launcher set them")
    return said


# %% [markdown]
# `refusal` keeps the error of a call that has to fail; all later sections use it.

# %% tags=["check"]
def refusal(f, *args, **kwargs):
    "The sentence with which a call refuses its input."
    try:
        result = f(*args, **kwargs)
    except ValueError as e:
        return str(e)
    raise AssertionError(f"accepted, with {result!r}")


print(refusal(_read, {"RANK": "1"}, "env"))
_read({"RANK": "1", "WORLD_SIZE": "2"}, "env")


# %% [markdown]
# More than one launcher may have spoken, and the order in which to believe them matters:
#
# 1. `torchrun` is always the innermost: `srun` or `mpirun` may start one `torchrun` per machine, which then starts the
#    ranks. When `TORCHELASTIC_RUN_ID` shows that it did, only its word counts.
# 2. Open MPI, MPICH and Intel MPI come next. On a cluster their own helpers are started by `srun`, so SLURM's
#    variables are there too and count the helpers, not the ranks.
# 3. SLURM itself, and only inside `srun`, where `SLURM_STEP_ID` is set. The shell of an `sbatch` script has
#    `SLURM_NTASKS` too, yet it is no rank. Nor is an interactive shell under `srun --pty`, a step of one task, when
#    another launcher was started in it.
# 4. `RANK` and its sisters, set by hand or by another launcher.
#
# Two that both speak for the ranks must agree. A forgotten `export WORLD_SIZE=1` under `mpirun -n 4` would make four
# lonely models again. One number may be missing: without a local world size all ranks are taken to be on this machine,
# since the mistake it could lead to, too few threads each, is a mild one. A missing local rank is not guessed, because
# the wrong one puts two ranks on the same processor.

# %%
#| export
def _merge(
    sources: list,  # dicts of `_read`, the one to believe most first
) -> dict:  # field -> number
    "One answer from several that must agree."
    found = {}
    for field in _FIELDS:
        said = [s[field] for s in sources if field in s]
        if not said:
            continue
        for name, number in said[1:]:
            if number != said[0][1]:
                raise ValueError(
                    f"{said[0][0]}={said[0][1]} but {name}={number}: two launchers disagree; unset RANK, "
                    "WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE in the shell, and let one launcher start the ranks"
                )
        found[field] = said[0][1]
    return found


# %% tags=["example"]
by_hand, by_mpi = {"world_size": ("WORLD_SIZE", 1)}, {"world_size": ("OMPI_COMM_WORLD_SIZE", 4)}
refusal(_merge, [by_mpi, by_hand])


# %% [markdown]
# And then the numbers must fit each other.

# %%
#| export
def _checked(
    found: dict,  # field -> number
    launcher: str,  # who said so
) -> Ranks:  # the same as a record
    "Ranks whose numbers are possible."
    if "rank" not in found:
        raise ValueError(
            "LOCAL_RANK or LOCAL_WORLD_SIZE is set but RANK and WORLD_SIZE are not; unset it, or set all of them"
        )
    world = found["world_size"]
    if world > 1 and "local_rank" not in found:
        raise ValueError(
            f"world size is {world} but nothing says which rank of its machine this is; set LOCAL_RANK "
            "(0 where each machine runs one rank)"
        )
    ranks = Ranks(found["rank"], found.get("local_rank", 0), world, found.get("local_world_size", world), launcher)
    if not 0 <= ranks.rank < world:
        raise ValueError(f"rank is {ranks.rank} but world size is {world}; a rank is 0 to world size - 1")
    if not 0 <= ranks.local_rank < ranks.local_world_size <= world:
        raise ValueError(
            f"local rank is {ranks.local_rank}, local world size {ranks.local_world_size}, world size {world}; "
            "expected local rank < local world size <= world size"
        )
    return ranks


# %% tags=["example"]
print(refusal(_checked, {"rank": 4, "world_size": 4, "local_rank": 0}, "env"))
_checked({"rank": 3, "world_size": 4, "local_rank": 1, "local_world_size": 2}, "env")


# %% [markdown]
# Now the question itself is short. Intel MPI is MPICH with variables of its own that begin with `I_MPI_`;
# `I_MPI_ROOT` alone proves nothing, because sourcing oneAPI's `setvars.sh` sets it in any shell.

# %%
#| export
def find_ranks(
    env=None,  # mapping of environment variables; None: `os.environ`
) -> Ranks:  # one process alone where no launcher speaks; ValueError where the variables cannot be right
    "Which rank this is, from the variables of torchrun, Open MPI, MPICH, Intel MPI or SLURM."
    env = os.environ if env is None else env
    own, ompi, pmi = (_read(env, launcher) for launcher in ("env", "openmpi", "pmi"))
    if own and env.get("TORCHELASTIC_RUN_ID"):
        return _checked(_merge([own]), "torchrun")
    mpi = [s for s in (ompi, pmi) if "rank" in s]
    inside_srun = "SLURM_STEP_ID" in env and not any("local_rank" in s for s in mpi)
    step = _read(env, "slurm") if inside_srun else {}
    if own and step and step["world_size"][1] == 1:
        step = {}
    if not (mpi or own or step):
        return Ranks()
    intel = any(name.startswith("I_MPI_") and name != "I_MPI_ROOT" for name in env)
    launcher = (
        "openmpi" if "rank" in ompi else "intelmpi" if mpi and intel else "mpich" if mpi else "slurm" if step else "env"
    )
    return _checked(_merge([*mpi, step, own]), launcher)


# %% [markdown]
# Any mapping will do, so fake environments can be tried without a cluster. Here is the second rank of a job as each
# launcher would tell it:

# %%
ENVS = {
    "python": {},
    "torchrun": dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none"),
    "by hand": dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1"),
    "Open MPI": dict(
        OMPI_COMM_WORLD_RANK="1",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_LOCAL_RANK="1",
        OMPI_COMM_WORLD_LOCAL_SIZE="2",
    ),
    "MPICH": dict(PMI_RANK="1", PMI_SIZE="2", MPI_LOCALRANKID="1", MPI_LOCALNRANKS="2"),
    "Intel MPI": dict(PMI_RANK="1", PMI_SIZE="2", MPI_LOCALRANKID="1", MPI_LOCALNRANKS="2", I_MPI_PIN_INFO="1"),
    "srun, 2 machines": dict(
        SLURM_STEP_ID="0",
        SLURM_PROCID="5",
        SLURM_NTASKS="8",
        SLURM_LOCALID="1",
        SLURM_NTASKS_PER_NODE="4(x2)",
        SLURM_NODEID="1",
    ),
    "sbatch shell": dict(SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_LOCALID="0", SLURM_NTASKS_PER_NODE="4(x2)"),
}
pd.DataFrame({name: vars(find_ranks(env)) for name, env in ENVS.items()}).T

# %% [markdown]
# The last two rows differ by one variable, `SLURM_STEP_ID`, and that is the difference between rank 5 of 8 and a
# process alone.

# %% tags=["check"]
assert all(find_ranks(ENVS[n]).world_size == 2 for n in ("torchrun", "by hand", "Open MPI", "MPICH", "Intel MPI"))
assert find_ranks(ENVS["srun, 2 machines"]) == Ranks(5, 1, 8, 4, "slurm")
assert find_ranks(ENVS["sbatch shell"]) == find_ranks({}) == Ranks() and Ranks().is_main
assert find_ranks({**ENVS["MPICH"], "I_MPI_ROOT": "/opt/intel"}).launcher == "mpich"
one_torchrun_per_machine = {**ENVS["srun, 2 machines"], **ENVS["torchrun"]}
assert find_ranks(one_torchrun_per_machine) == find_ranks(ENVS["torchrun"])

# %% [markdown]
# What must be refused is worth seeing too.

# %% tags=["check"]
wrong = {
    "half set": dict(RANK="1"),
    "no number": dict(RANK="one", WORLD_SIZE="2"),
    "too high": dict(RANK="2", WORLD_SIZE="2", LOCAL_RANK="0"),
    "LOCAL_RANK alone": dict(LOCAL_RANK="0"),
    "forgotten export": {**ENVS["Open MPI"], "RANK": "0", "WORLD_SIZE": "1"},
}
for name, env in wrong.items():
    print(f"{name}: {refusal(find_ranks, env)}\n")
assert "RANK is set but WORLD_SIZE is not" in refusal(find_ranks, wrong["half set"])
assert "WORLD_SIZE is set but RANK is not" in refusal(find_ranks, dict(WORLD_SIZE="2"))
assert "'one'" in refusal(find_ranks, wrong["no number"])
assert "disagree" in refusal(find_ranks, wrong["forgotten export"])


# %% [markdown]
# ## One set of names for everybody
#
# PyTorch, accelerate and transformers understand one set of names only: torchrun's. `complete_env` writes what is
# missing of it. When it is called matters: **before transformers is imported**. That library and accelerate look at
# these variables in several places, some of them early, and keep what they saw. On XPU and CUDA a Trainer that finds
# no `LOCAL_RANK` settles for training alone on device 0. Before the import is the one moment that is never too late.
#
# One process alone may also have been told a rank: `RANK=0 WORLD_SIZE=1 LOCAL_RANK=0` stands in the environment of many
# a job script and container. Accelerate takes a `LOCAL_RANK` for a group, and then wants to know where to meet. If nobody
# says, there is nobody to meet: the variable is taken away, and the process is what it is, one alone.
#
# Two values are no rank's own: where to meet. All ranks must know the same address and port. A rank cannot find a free
# port by itself, because the others would find different ones; so the launcher picks it and exports it as
# `MASTER_PORT`. What is already set stays. Under torchrun that is essential: its `MASTER_PORT` belongs to a store that
# is already running.

# %%
#| export
def complete_env(
    ranks: Ranks,  # this copy, as `find_ranks` found it
    env=None,  # mapping to complete in place; None: `os.environ`
    master_addr: str = "127.0.0.1",  # address of rank 0's machine, used where MASTER_ADDR is missing
    master_port: int | None = None,  # port on it, 1..65535, used where MASTER_PORT is missing; the same on every rank
) -> dict:  # the variables that were set here, {} for one process alone
    """Set what is missing of torchrun's variables, and take away what would mislead one process alone.

    Call it before transformers is imported."""
    env = os.environ if env is None else env
    if ranks.world_size < 2:
        if not {"MASTER_ADDR", "MASTER_PORT"} <= set(env):
            env.pop("LOCAL_RANK", None)
        return {}
    if "MASTER_PORT" not in env:
        if master_port is None:
            raise ValueError(
                f"{ranks.world_size} ranks need one port to meet at and MASTER_PORT is not set; one rank cannot guess "
                "a port that the others know: export MASTER_PORT before starting them, or pass master_port"
            )
        if not 0 < int(master_port) < 65536:
            raise ValueError(f"master_port={master_port}; expected 1 to 65535")
    if (
        ranks.local_world_size < ranks.world_size
        and "MASTER_ADDR" not in env
        and master_addr in ("127.0.0.1", "localhost")
    ):
        raise ValueError(
            f"{ranks.world_size} ranks with {ranks.local_world_size} on this machine cannot meet at {master_addr}; "
            "export MASTER_ADDR, or pass master_addr: the address of the machine of rank 0"
        )
    full = {
        **{field.upper(): getattr(ranks, field) for field in _FIELDS},
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": master_port,
    }
    made = {name: str(value) for name, value in full.items() if name not in env}
    env.update(made)
    return made


# %% [markdown]
# A rank under Open MPI. The second time there is nothing left to do, and the launcher is still known.

# %% tags=["check"]
env = dict(ENVS["Open MPI"])
made = complete_env(find_ranks(env), env, master_port=29500)
assert made["LOCAL_RANK"] == "1" and made["MASTER_PORT"] == "29500"
assert complete_env(find_ranks(env), env, master_port=29501) == {} and env["MASTER_PORT"] == "29500"
assert find_ranks(env) == find_ranks(ENVS["Open MPI"])
alone = {}
assert complete_env(find_ranks({}), alone) == {} == alone
told = dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
assert (
    complete_env(find_ranks(told), told) == {}
    and told == dict(RANK="0", WORLD_SIZE="1")
    and find_ranks(told).world_size == 1
)
# torchrun with one rank
met = {**told, "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
assert complete_env(find_ranks(met), met) == {} and met["LOCAL_RANK"] == "0"
print(refusal(complete_env, find_ranks(ENVS["MPICH"]), {}), "\n")
print(refusal(complete_env, find_ranks(ENVS["srun, 2 machines"]), {}, master_port=29500))
made


# %% [markdown]
# The second refusal is about a default that is right on one machine only: two machines that both wait at `127.0.0.1`
# each wait for themselves, half an hour by default.
#
# ## Devices: what may I compute on?
#
# PyTorch knows three kinds that matter here:
#
# | type | what it is | talks to other ranks through |
# |---|---|---|
# | `xpu` | Intel GPUs; part of PyTorch itself, in its XPU build | `xccl`, in that build since 2.8 |
# | `cuda` | NVIDIA GPUs, and AMD's in the ROCm build | `nccl` |
# | `cpu` | any processor | `gloo` |
#
# A `Device` says everything that is asked of it later.

# %%
#| export
@dataclass(frozen=True)
class Device:
    "What this rank computes on."

    type: str  # "xpu", "cuda" or "cpu"
    index: int  # which one of its type, from 0; 0 for cpu
    name: str  # what the maker calls it
    memory_gib: float  # all of its memory, GiB
    dtype: str  # number type of the model: "bfloat16" or "float32"
    backend: str  # how ranks talk: "xccl", "ccl", "nccl", "gloo"; "" where this PyTorch has none for it

    @property
    def torch(self):
        "The same as a `torch.device`; cpu has no index."
        import torch

        return torch.device(self.type) if self.type == "cpu" else torch.device(self.type, self.index)


# %% [markdown]
# ### How the ranks will talk
#
# Native PyTorch comes first. Intel's older `ccl` backend lives in a package that ended with PyTorch 2.8; it is taken
# only when asked for by name, and only if it is there. Whether `xccl` is there is a fact about the PyTorch build, so we
# ask it rather than compare version numbers.

# %%
#| export
def _talks(backend: str) -> bool:
    "Does this PyTorch build have the backend?"
    from torch import distributed

    return bool(getattr(distributed, f"is_{backend}_available", lambda: False)())


_BACKENDS = {"xpu": ("xccl", "ccl"), "cuda": ("nccl", "gloo"), "cpu": ("gloo", "ccl")}


def backend_for(
    device_type: str,  # "xpu", "cuda" or "cpu"
    want: str = "auto",  # "auto", or a backend by name
) -> str:  # the name for `torch.distributed.init_process_group`; ValueError where it is not there
    "The communication backend for a device type."
    if device_type not in _BACKENDS:
        raise ValueError(f"device type {device_type!r} is unknown; expected one of {', '.join(_BACKENDS)}")
    name = _BACKENDS[device_type][0] if want == "auto" else want
    if name not in _BACKENDS[device_type]:
        raise ValueError(
            f"backend {want!r} does not serve {device_type}; "
            f"expected auto or one of {', '.join(_BACKENDS[device_type])}"
        )
    if name == "ccl" and find_spec("oneccl_bindings_for_pytorch") is None:
        raise ValueError(
            "backend 'ccl' needs oneccl-bind-pt, which is not installed; install it from Intel's index beside "
            "torch 2.8, or leave the backend at auto"
        )
    if name == "xccl" and not _talks("xccl"):
        raise ValueError(
            "this PyTorch has no xccl backend, which ranks on xpu talk through; install torch 2.8 or newer from "
            "PyTorch's XPU index: pip install torch --index-url https://download.pytorch.org/whl/xpu"
        )
    return name


# %% tags=["check"]
assert (backend_for("cpu"), backend_for("cuda"), backend_for("cuda", "gloo")) == ("gloo", "nccl", "gloo")
with patch.object(torch.distributed, "is_xccl_available", lambda: True, create=True):
    assert backend_for("xpu") == "xccl"
with patch.object(torch.distributed, "is_xccl_available", lambda: False, create=True):
    assert "download.pytorch.org/whl/xpu" in refusal(backend_for, "xpu")
assert "unknown" in refusal(backend_for, "tpu")
backend_for("cpu"), backend_for("cuda"), refusal(backend_for, "cpu", "nccl")


# %% [markdown]
# ### The dtype trap
#
# bfloat16 halves the memory of a model, and GPUs multiply it much faster than float32. A CPU without the instructions
# for it (AVX-512-BF16 or AMX) has to imitate it. On a 2-core AVX2 machine we measured 0.8 GFLOP/s in bfloat16 against
# 54 in float32: about 70 times slower. The result is right, so nobody notices except by waiting. Here is the same
# product of two matrices in both types, on the machine that ran this page:

# %% tags=["example"]
def matmul_gflops(dtype, n=384, repeats=3):
    "Speed of an n x n matrix product on the CPU, the best of a few tries."
    a, best = torch.ones(n, n, dtype=dtype), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


speed = {name: matmul_gflops(getattr(torch, name)) for name in ("float32", "bfloat16")}
print({name: f"{gflops:.1f} GFLOP/s" for name, gflops in speed.items()})
print(f"float32 is {speed['float32'] / speed['bfloat16']:.1f} times as fast as bfloat16 here")


# %% [markdown]
# The ratio is a matter of the processor: a newer 16-core Xeon gave 1776 GFLOP/s in bfloat16 against 1001 in float32.
#
# So the dtype follows the device: bfloat16 where a GPU has it, float32 otherwise and on a CPU, where it is never a
# disaster. On a CPU that is good at bfloat16, ask for it by name; `find_device` warns, and does as told.
# Older GPUs imitate bfloat16 too, and `is_bf16_supported()` says yes to that; we ask without the imitation.

# %%
#| export
def _count(device_type: str) -> int:
    "How many devices of this type PyTorch can use; 1 for cpu."
    import torch

    if device_type == "cpu":
        return 1
    module = getattr(torch, device_type, None)
    return module.device_count() if module is not None and module.is_available() else 0


def _has_bf16(device_type: str) -> bool:
    "Does the hardware itself compute in bfloat16, as far as PyTorch knows?"
    import torch

    if device_type == "cpu":
        return False
    ask = getattr(getattr(torch, device_type), "is_bf16_supported", None)
    if ask is None:
        return device_type == "xpu"
    try:
        return bool(ask(including_emulation=False))
    except TypeError:
        return bool(ask())


# %% [markdown]
# ### How much memory it has
#
# A GPU says so itself. A CPU's answer has a catch: in a container or a batch job, the machine's memory is not yours.
# The limit is in the *control group* of the process, in one of two layouts (version 1 and 2), and a limit of any
# group above counts as well. A program that believes the machine instead is killed without a word.

# %%
#| export
def _cgroup_limits(
    root: str = "/sys/fs/cgroup",  # where control groups are mounted
    proc: str = "/proc/self/cgroup",  # which groups this process is in
) -> list:  # memory limits in bytes, of this group and those above it
    "Memory limits that the control groups of this process set."
    limits: list = []
    try:
        lines = Path(proc).read_text().splitlines()
    except OSError:
        return limits
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            top, name = Path(root), "memory.max"
        elif "memory" in controllers.split(","):
            top, name = Path(root) / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / group.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            try:
                text = (place / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                limits.append(int(text))
    return limits


# %% [markdown]
# A job with 8 GiB, in a group of 16 GiB, in one without a limit:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    group = Path(folder) / "batch" / "job7"
    group.mkdir(parents=True)
    (Path(folder) / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text(f"{16 * 2**30}\n")
    (group / "memory.max").write_text(f"{8 * 2**30}\n")
    (Path(folder) / "groups").write_text("0::/batch/job7\n")
    limits = _cgroup_limits(folder, f"{folder}/groups")
[f"{n / 2**30:g} GiB" for n in limits]


# %%
#| export
def memory_gib(
    device_type: str,  # "xpu", "cuda" or "cpu"
    index: int = 0,  # which one of its type, from 0
) -> float:  # GiB; nan where the system does not say
    "All memory of a device; for cpu what a control group leaves of it."
    if device_type != "cpu":
        import torch

        return getattr(torch, device_type).get_device_properties(index).total_memory / 2**30
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("nan")
    return min([machine, *_cgroup_limits()]) / 2**30


# %% tags=["check"]
assert memory_gib("cpu") > 0.1
limit = f"{__name__}._cgroup_limits"
with patch(limit, lambda: [2**30, 2**40]):
    assert memory_gib("cpu") == 1.0  # a container with 1 GiB
# version 1 writes "no limit" so
with patch(limit, lambda: [2**63 - 4096]):
    assert memory_gib("cpu") < 2**20
print(f"{memory_gib('cpu'):.1f} GiB for this process")


# %% [markdown]
# ### Finding it
#
# "auto" takes an XPU, else a CUDA GPU, else the CPU. A device that was asked for and is not there is an error: falling
# back to the CPU would look like success, and take a hundred times as long. Each rank takes the device of its local
# rank. Do not hide devices from ranks one by one (`ZE_AFFINITY_MASK`, `CUDA_VISIBLE_DEVICES`): every rank then sees a
# single device 0, and on XPU ranks with disjoint masks were reported to hang.

# %%
#| export
def _name(device_type: str, index: int = 0) -> str:
    "What the maker calls it; for a cpu that does not say, its architecture."
    if device_type != "cpu":
        import torch

        return getattr(torch, device_type).get_device_properties(index).name
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _seen() -> str:
    "What this PyTorch can use, in words."
    import torch

    current = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    kinds = [f"{n} {kind}" for kind in ("xpu", "cuda") if (n := _count(kind))]
    if current is not None and current.type not in ("xpu", "cuda"):
        kinds.append(f"{current.type} (not used here)")
    return f"PyTorch {torch.__version__} sees {', '.join([*kinds, 'the cpu'])}"


# %%
#| export
def find_device(
    want: str = "auto",  # "auto", "xpu", "cuda" or "cpu"
    dtype: str = "auto",  # "auto", "bfloat16" or "float32"
    local_rank: int = 0,  # number of this rank on its machine; picks the device
) -> Device:  # ValueError where it is not there
    "What this rank computes on, and in which dtype."
    if want not in ("auto", "xpu", "cuda", "cpu"):
        raise ValueError(f"device {want!r} is unknown; expected auto, xpu, cuda or cpu")
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"dtype {dtype!r} is unknown; expected auto, bfloat16 or float32")
    kind = next(k for k in ("xpu", "cuda", "cpu") if _count(k)) if want == "auto" else want
    if not _count(kind):
        raise ValueError(
            f"device {kind!r} was asked for, but {_seen()}; "
            f"use device auto, or install a PyTorch build and a driver for {kind}"
        )
    if local_rank < 0 or kind != "cpu" and local_rank >= _count(kind):
        raise ValueError(
            f"local rank {local_rank} has no device, since {_seen()}; start at most {_count(kind)} ranks per machine, "
            "and let every rank see all devices"
        )
    native = _has_bf16(kind)
    if dtype == "bfloat16" and not native:
        warnings.warn(
            f"bfloat16 on this {kind} may be imitated: on a CPU without AVX-512-BF16 or AMX it was measured "
            "about 70 times slower than float32; dtype auto picks float32",
            stacklevel=2,
        )
    if dtype == "auto":
        dtype = "bfloat16" if native else "float32"
    try:
        backend = backend_for(kind)
    except ValueError:
        backend = ""
    index = 0 if kind == "cpu" else local_rank
    return Device(kind, index, _name(kind, index), memory_gib(kind, index), dtype, backend)


# %% [markdown]
# A GPU that has no backend in this PyTorch build is still good for one process, so `find_device` leaves `backend`
# empty then, and `backend_for` says what to install once several ranks are wanted.
#
# The promises that hold on every machine, and a few refusals:

# %% tags=["check"]
cpu = find_device("cpu", local_rank=7)  # any rank may share the CPU
assert (cpu.type, cpu.dtype, cpu.backend, cpu.torch) == ("cpu", "float32", "gloo", torch.device("cpu"))
here = find_device()
assert here.torch == torch.empty(0, device=here.torch).device and here.memory_gib > 0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert find_device("cpu", "bfloat16").dtype == "bfloat16"  # allowed, with a warning
assert "70 times slower" in str(caught[0].message)
print(refusal(find_device, "gpu"), refusal(find_device, "cpu", "float16"), sep="\n")
here


# %% [markdown]
# ### A pretended XPU
#
# No Intel GPU was at hand when this book was written. What can be checked without one is our side of the bargain:
# given a PyTorch that *says* it has XPUs, do we choose them, pick the right one per rank, and take bfloat16 and `xccl`?
# `fake_xpu` replaces the functions of `torch.xpu` that we ask, for the length of a `with` block. Nothing can be
# computed on such a device, and these checks say nothing about real hardware or drivers.
#
# Below are two pretended cards; the rank with local rank 1 gets the second. Then hardware without bfloat16, a PyTorch
# without `xccl`, a third rank, and a machine without any card.

# %% tags=["check"]
@contextmanager
def fake_xpu(count=2, gib=64, bf16=True, xccl=True):
    "Let PyTorch claim `count` Intel GPUs. For checks only: nothing can run on them."
    card = SimpleNamespace(name="Pretended GPU Max 1550", total_memory=gib * 2**30)
    with (
        patch.multiple(
            torch.xpu,
            is_available=lambda: count > 0,
            device_count=lambda: count,
            get_device_properties=lambda device=None: card,
            is_bf16_supported=lambda including_emulation=True: bf16,
        ),
        patch.object(torch.distributed, "is_xccl_available", lambda: xccl, create=True),
        patch.object(torch.accelerator, "current_accelerator", lambda *args, **kwargs: torch.device("xpu")),
    ):
        yield


with fake_xpu():
    second = find_device(local_rank=1)
assert (second.type, second.index, second.dtype, second.backend) == ("xpu", 1, "bfloat16", "xccl")
assert second.memory_gib == 64 and second.torch == torch.device("xpu", 1)
# the dtype follows the device
with fake_xpu(bf16=False):
    assert find_device().dtype == "float32"
# one process needs no backend
with fake_xpu(xccl=False):
    assert find_device().backend == ""
with fake_xpu():
    print(refusal(find_device, local_rank=2), "\n")
with fake_xpu(count=0):
    print(refusal(find_device, "xpu"))
second


# %% [markdown]
# A note on tiles. One card of the Max 1550 has two halves. By default each is a device of 64 GB, and wants a rank.
# With `ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE` one card is one device of 128 GB. `find_device` takes what the driver shows.
#
# ## Waiting and measuring
#
# A GPU runs behind the program: a call returns when the work is queued, not when it is done. A stopwatch without
# `synchronize` measures the queueing. On the CPU there is nothing to wait for.

# %%
#| export
def synchronize(
    device,  # a `Device` or a `torch.device`
) -> None:
    "Wait until the device has done all work given to it."
    import torch

    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device.index)


# %% tags=["example"]
a = torch.ones(2048, 2048, device=here.torch)
a @ a
synchronize(here)  # the first call also loads libraries
start = time.perf_counter()
a @ a
queued = time.perf_counter() - start
synchronize(here)
done = time.perf_counter() - start
print(f"{here.type}: call returned after {queued * 1e3:.1f} ms, result there after {done * 1e3:.1f} ms")


# %% [markdown]
# The most memory that a run needed decides whether it fits a smaller machine. PyTorch counts it for GPUs. For the CPU,
# Linux keeps the largest size of each process (`VmHWM`), and writing 5 to a file starts that count anew where it is
# allowed. Elsewhere there is `getrusage`, in bytes on macOS and in KiB on Linux, and it can't be reset.

# %%
#| export
def reset_peak_memory(
    device,  # a `Device` or a `torch.device`
) -> bool:  # False where the count cannot be started anew and older peaks stay in it
    "Start counting the peak of used memory anew."
    if device.type != "cpu":
        import torch

        getattr(torch, device.type).reset_peak_memory_stats(device.index)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return "VmHWM" in Path("/proc/self/status").read_text()


# %%
#| export
def _cpu_peak_bytes(status: str = "/proc/self/status") -> float:
    "The largest size this process had in memory, in bytes."
    try:
        for line in Path(status).read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_memory_gib(
    device,  # a `Device` or a `torch.device`
) -> float:  # GiB; tensors only on a GPU, the whole process on a CPU
    "The most memory in use since `reset_peak_memory`, or since the start."
    if device.type == "cpu":
        return _cpu_peak_bytes() / 2**30
    import torch

    return getattr(torch, device.type).max_memory_allocated(device.index) / 2**30


# %% [markdown]
# A tensor of 256 MiB comes and goes. The peak remembers it until the count starts anew:

# %% tags=["check"]
anew = reset_peak_memory(cpu)
before = peak_memory_gib(cpu)
tensor = torch.ones(64 * 2**20)  # float32: 4 bytes each
with_tensor = peak_memory_gib(cpu)
del tensor
gone = peak_memory_gib(cpu)
for _ in range(20):  # a busy machine takes the memory back a little later
    reset_peak_memory(cpu)
    again = peak_memory_gib(cpu)
    if not anew or again < gone - 0.2:
        break
    time.sleep(0.1)
assert gone >= with_tensor - 0.01 >= before - 0.02
assert not anew or with_tensor - before > 0.2 and again < gone - 0.2
pd.Series(
    {"before": before, "with the tensor": with_tensor, "deleted": gone, "counted anew": again}, name="peak GiB"
).round(2)


# %% [markdown]
# ## Threads
#
# On a CPU each rank starts as many threads as it sees cores. Four ranks on 16 cores would start 64 threads and spend
# their time taking turns. `set_threads` gives each rank its share. A number in `OMP_NUM_THREADS` is the user's will and
# wins, with one exception: torchrun itself sets it to 1 when it starts several ranks, which nobody asked for.
#
# `mpirun` may bind each rank to its own cores already. The rank then sees only those, and takes a share of a share. That is
# slower than need be, but never wrong; set `OMP_NUM_THREADS` to the cores per rank, or switch binding off
# (`--bind-to none` in Open MPI, `I_MPI_PIN=0` in Intel MPI).

# %%
#| export
def _cores() -> int:
    "Cores this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(
    ranks: Ranks,  # this copy; its local world size shares the cores
    env=None,  # mapping of environment variables; None: `os.environ`
) -> int:  # threads that PyTorch now uses
    "Give this rank its share of the cores, unless the user set OMP_NUM_THREADS."
    import torch

    asked = (os.environ if env is None else env).get("OMP_NUM_THREADS", "")
    from_torchrun = asked == "1" and ranks.launcher == "torchrun" and ranks.local_world_size > 1
    if not asked or from_torchrun:
        torch.set_num_threads(max(1, _cores() // ranks.local_world_size))
    return torch.get_num_threads()


# %% tags=["check"]
threads = torch.get_num_threads()
with patch(f"{__name__}._cores", lambda: 4):
    shares = {n: set_threads(Ranks(world_size=n, local_world_size=n), env={}) for n in (1, 2, 8)}
    # the user's will: left alone
    assert set_threads(Ranks(), env={"OMP_NUM_THREADS": "3"}) == shares[8]
torch.set_num_threads(threads)
assert shares == {1: 4, 2: 2, 8: 1}
shares

# %% [markdown]
# ## Random numbers of one's own
#
# PyTorch draws from one generator for the whole process, and one for each GPU. Who sets their seed sets it for everybody:
# a program that asks a model for a line, and draws a number of its own before and after, would find its numbers to be
# those of the model's seed. `Draws` keeps a state apart. Inside its `with` block the process's generators have that state,
# outside they are as they were, and a second block goes on where the first one ended. Only one block is open at a time,
# so two threads that draw take turns, and each gets the numbers of its own seed.

# %%
#| export
_DRAWING = threading.RLock()


class Draws:
    "Random numbers of one's own; those of the process are after each `with` block as they were before."

    def __init__(
        self,
        device,  # a `Device` or a `torch.device`: the CPU's generator is always among them
        seed: int,  # where they begin, 0..2**64-1
    ):
        import torch

        self.devices = [
            torch.device("cpu"),
            *([torch.device(device.type, device.index or 0)] if device.type != "cpu" else []),
        ]
        self.states = [torch.Generator(d).manual_seed(seed).get_state() for d in self.devices]

    def swap(self):
        "Exchange the process's states and one's own."
        import torch

        for i, d in enumerate(self.devices):
            module, where = (torch, ()) if d.type == "cpu" else (getattr(torch, d.type), (d,))
            mine, self.states[i] = self.states[i], module.get_rng_state(*where)
            module.set_rng_state(mine, *where)

    def __enter__(self):
        _DRAWING.acquire()
        try:
            self.swap()
        except BaseException:
            _DRAWING.release()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.swap()
        finally:
            _DRAWING.release()


# %% tags=["check"]
torch.manual_seed(7)
wanted = torch.rand(4)  # what a seed gives in a process of its own
torch.manual_seed(1)
theirs = torch.rand(2)
torch.manual_seed(1)
draws, got = Draws(cpu, 7), []
with draws:
    got += [*torch.rand(2)]
between = torch.rand(1)
with draws:
    got += [*torch.rand(2)]
assert got == [*wanted] and [*between, *torch.rand(1)] == [*theirs]


# %% [markdown]
# ## Intel's extension: only if it fits
#
# Older guides use `intel-extension-for-pytorch` (IPEX). It ended with version 2.8; newer PyTorch has what it brought.
# Beside any other PyTorch version, importing it does not raise a clean ImportError: it prints a message and dies of
# something else. So the decision is made from version numbers, before any import.

# %%
#| export
def _version(package: str) -> str | None:
    "Version of an installed package, or None. Imports nothing."
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_ipex() -> tuple:  # (may it be imported, why or why not)
    "May intel-extension-for-pytorch be imported? Decided from versions alone."
    ipex, torch = _version("intel-extension-for-pytorch"), _version("torch")
    if ipex is None:
        return False, "not installed; torch 2.8 and newer need no extension"
    if torch is None:
        return False, f"version {ipex} is installed, but torch is not"
    same = ipex.split(".")[:2] == torch.split(".")[:2]
    if same:
        return True, f"version {ipex} fits torch {torch}"
    return False, (
        f"version {ipex} needs torch {'.'.join(ipex.split('.')[:2])} and torch {torch} is installed; "
        "uninstall the extension, or install the torch it needs"
    )


# %%
#| export
def require_ipex():
    "Raise ValueError where Intel's extension may not be imported. Imports nothing."
    ok, why = find_ipex()
    if not ok:
        raise ValueError(f"use_ipex was given, but intel-extension-for-pytorch cannot be used: {why}")


def load_ipex():  # the module; ValueError where it may not be imported, or dies of it
    "Import Intel's extension, if it fits."
    require_ipex()
    try:
        import intel_extension_for_pytorch
    except (Exception, SystemExit) as e:  # it does not die of ImportError alone
        raise ValueError(
            f"use_ipex was given, but importing intel-extension-for-pytorch failed with {type(e).__name__}: "
            f"{str(e)[:200]}; version 2.8 needs transformers below 5.24; or leave use_ipex out"
        ) from None
    return intel_extension_for_pytorch


# %% tags=["check"]
def with_versions(**versions):
    return patch(f"{__name__}._version", lambda p: versions.get(p.split("-")[0]))


with with_versions(intel="2.8.10+xpu", torch="2.8.0+xpu"):
    assert find_ipex()[0]
with with_versions(intel="2.8.0", torch="2.13.0+cpu"):
    ok, why = find_ipex()
assert not ok and "2.8.0" in why and "2.13.0" in why
assert "intel_extension_for_pytorch" not in sys.modules
with with_versions(torch="2.13.0"):
    assert find_ipex() == (False, "not installed; torch 2.8 and newer need no extension")
find_ipex(), why

# %% [markdown]
# `tests/ipex.sh` builds an environment with PyTorch 2.8 and IPEX 2.8.0 for the CPU and runs the finetune chapter there under papermill, once without and once with the extension. The end of what it printed:

# %% tags=["example"]
kept = (chapters_dir() / "_results" / "ipex.txt").read_text(encoding="utf8")
print(
    "\n".join(
        line
        for line in kept.splitlines()
        if line.startswith(("ok   ", "seconds in", "all is well", " ok  intel", " ok  torch"))
    )
)

# %% [markdown]
# ## What to remember
#
# - `find_ranks()` then `complete_env(...)` come first, before transformers; `find_device(local_rank=...)` after them.
# - The dtype follows the device. bfloat16 on an ordinary CPU is right, and very slow.
# - What cannot be right is refused with a sentence that names the variable.
# - When something is odd: `doctor()`, in [ranks that work together](92_distributed.ipynb).
