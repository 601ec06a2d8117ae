# %%
#| default_exp machine.distributed

# %% [markdown]
# # Ranks that work together
#
# > How copies of one program find each other, wait for each other and add up what they know.
#
# Four ranks that do not know of each other train four models, each on all of the data, and nothing looks wrong. A group is what makes them one: they meet at an address, compare what they are, and from then on share numbers. This chapter sets the environment that PyTorch and Intel's libraries read, makes the group, and refuses one that cannot be right. Who starts the ranks is left to [the chapter on launching](../7_ranks/72_launch.ipynb).

# %%
#| export
import atexit
import gc
import os
import platform
import shutil
import socket
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

from simpsons_llm.machine.device import (
    _BACKENDS,
    Device,
    Ranks,
    _cores,
    _count,
    _name,
    _seen,
    _talks,
    _version,
    backend_for,
    complete_env,
    find_device,
    find_ipex,
    find_ranks,
    memory_gib,
)

# %%
#| hide
from unittest.mock import patch

import pandas as pd


# %% [markdown]
# ## What must be set before PyTorch wakes up
#
# Several libraries read environment variables once, when they are loaded. So they are set first, in the process that starts a rank. Each has a reason, and what a person has set stays.
#
# - `OMP_WAIT_POLICY=PASSIVE`: threads of one rank that wait should sleep. By default they spin, and where several ranks share the cores they spin on the cores that the others need. (Two programs of two threads on two cores took 17 s for a step that takes 2 s alone; with sleeping threads 3.9 s.)
# - `ZE_FLAT_DEVICE_HIERARCHY`: whether each half of a two-tile Intel card is a device (`FLAT`, the driver's default) or the card is (`COMPOSITE`). Older guides set `IPEX_TILE_AS_DEVICE=0` for the second, which today's PyTorch does not read; it is translated.
# - oneCCL asks who started the ranks. A rank here computes in a Jupyter kernel, a child of the process that `mpirun` started, and Jupyter closes the connection to `mpirun` on the way. So oneCCL is told that there is none, and the two numbers that it would have asked for. On one machine it is also told not to use MPI between hosts (`CCL_ATL_TRANSPORT=ofi`); for several hosts that choice is left to the cluster's manual.
# - gloo, which CPU ranks talk through, asks the system for the address of its own host name, and on many machines that is 127.0.0.1, where no other host can reach it. On several hosts it is given the network interface that leads to rank 0.

# %%
#| export
def interface_to(
    address: str,  # a host name or an address
) -> str:  # the name of the network interface that leads there, such as "eth0"; "" where the system does not say
    "The network interface through which a host is reached."
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((address, 9))
            own = s.getsockname()[0]  # nothing is sent
            for _, name in socket.if_nameindex():
                # SIOCGIFADDR
                try:
                    found = socket.inet_ntoa(
                        fcntl.ioctl(s.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))[20:24]
                    )
                except OSError:
                    continue  # an interface without an address
                if found == own:
                    return name
    except (ImportError, OSError, AttributeError):
        pass
    return ""


# %% tags=["example"]
interface_to("127.0.0.1")


# %%
#| export
def rank_env(
    ranks: Ranks,  # this rank
    env=None,  # mapping to complete in place, MASTER_ADDR in it if there are several hosts; None: `os.environ`
    ccl_debug: bool = False,  # let oneCCL tell what it does
) -> dict:  # variable -> value, of those that were set here
    "Set what the libraries below read once. Call it before torch is imported."
    env = os.environ if env is None else env
    wish, several = {}, ranks.world_size > 1
    if env.get("IPEX_TILE_AS_DEVICE") in ("0", "1"):
        wish["ZE_FLAT_DEVICE_HIERARCHY"] = {"0": "COMPOSITE", "1": "FLAT"}[env["IPEX_TILE_AS_DEVICE"]]
    if ccl_debug:
        wish["CCL_LOG_LEVEL"] = "debug"
    if ranks.local_world_size > 1:
        wish["OMP_WAIT_POLICY"] = "PASSIVE"
    if several and not any(k in env for k in ("CCL_PROCESS_LAUNCHER", "CCL_LOCAL_RANK", "CCL_LOCAL_SIZE")):
        wish |= {
            "CCL_PROCESS_LAUNCHER": "none",
            "CCL_LOCAL_RANK": str(ranks.local_rank),
            "CCL_LOCAL_SIZE": str(ranks.local_world_size),
        }
        if ranks.local_world_size == ranks.world_size:
            wish["CCL_ATL_TRANSPORT"] = "ofi"
    if several and ranks.local_world_size < ranks.world_size:
        wish["GLOO_SOCKET_IFNAME"] = interface_to(env.get("MASTER_ADDR", ""))
    made = {name: value for name, value in wish.items() if value and name not in env}
    env.update(made)
    return made


# %% [markdown]
# The second of two ranks on one machine, in a shell where an older guide's line was pasted:

# %% tags=["check"]
shell = {"IPEX_TILE_AS_DEVICE": "0", "CCL_ATL_TRANSPORT": "mpi"}
made = rank_env(Ranks(1, 1, 2, 2, "mpich"), shell)
assert (
    made["ZE_FLAT_DEVICE_HIERARCHY"] == "COMPOSITE"
    and made["CCL_LOCAL_RANK"] == "1"
    and shell["CCL_ATL_TRANSPORT"] == "mpi"
)
assert rank_env(Ranks(1, 1, 2, 2, "mpich"), shell) == {} == rank_env(Ranks(), {})
assert rank_env(Ranks(), {}, ccl_debug=True) == {"CCL_LOG_LEVEL": "debug"}
assert rank_env(Ranks(2, 0, 4, 2), {"MASTER_ADDR": "127.0.0.1"})["GLOO_SOCKET_IFNAME"] == interface_to("127.0.0.1")
made


# %% [markdown]
# ## The group
#
# `join_group` is called once by every rank. It waits until all have come, with a limit: PyTorch's own is half an hour, in which eight cards do nothing because the ninth never started.
#
# Then the ranks compare notes. The group's size must be the launcher's; if somebody else made a group before, of another size, the ranks would not sum what they should. And no two ranks may sit on the same card: they would share its memory, and the run would be slow or die late, for no reason that it could name.
#
# On a GPU the group gets two backends: the card's own for tensors on it, gloo for small things on the CPU, such as a sentence.

# %%
#| export
def free_port(
    host: str = "",  # address to look at; empty: all of this machine's
) -> int:  # a port nobody listens at
    "A port that is free at this moment."
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def _host() -> str:
    "A name for this machine that two machines do not share."
    try:
        return f"{platform.node()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return platform.node()


def in_group() -> bool:
    "Is there a group of several ranks?"
    if "torch" not in sys.modules:
        return False
    from torch import distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def group_ranks() -> Ranks:  # rank and size of the group; one process alone where there is none
    "This process's place in the group."
    if not in_group():
        return Ranks()
    from torch import distributed as dist

    return Ranks(dist.get_rank(), 0, dist.get_world_size(), 1, "group")


def gather(
    value,  # a small thing that pickle can carry: a number, a sentence, a dict
) -> list:  # the values of all ranks, in the order of ranks; of one process alone: [value]
    "Everybody's value, on every rank. All ranks must call it."
    if not in_group():
        return [value]
    from torch import distributed as dist

    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


# %%
#| export
def total(
    *numbers: float,  # this rank's numbers, as many as on every other rank
) -> list:  # the sums, floats, the same on every rank
    "Sums over all ranks. All ranks must call it."
    if not in_group():
        return [float(n) for n in numbers]
    import torch
    from torch import distributed as dist

    sums = torch.tensor(numbers, dtype=torch.float64)  # on the CPU, so no device is waited for
    dist.all_reduce(sums)
    return sums.tolist()


# %%
#| export
def join_group(
    ranks: Ranks,  # this rank, as `find_ranks` found it
    device: Device,  # what it computes on
    backend: str = "auto",  # "auto", or a backend by name
    timeout_s: float = 600,  # longest wait for another rank, in seconds
) -> str:  # the backend; "" for one process alone; ValueError or ConnectionError for a group that cannot be
    "Meet the other ranks, and make sure that they are who they should be."
    if ranks.world_size < 2:
        return ""
    from datetime import timedelta

    import torch
    import torch.distributed.nn  # before there is a group: its functions keep the group that they find as a default
    from torch import distributed as dist

    name = backend_for(device.type, backend)
    if name == "ccl":
        import oneccl_bindings_for_pytorch  # noqa: F401, makes the backend known
    if not dist.is_initialized():
        if device.type != "cpu":
            getattr(torch, device.type).set_device(device.index)
        both = name if device.type == "cpu" or name == "gloo" else f"cpu:gloo,{device.type}:{name}"
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            dist.init_process_group(
                both, timeout=timedelta(seconds=timeout_s), rank=ranks.rank, world_size=ranks.world_size
            )
        except (RuntimeError, TimeoutError) as e:  # torch's DistError is a RuntimeError
            reason = (str(e).splitlines() or [""])[0][:200]
            raise ConnectionError(
                f"rank {ranks.rank} of {ranks.world_size} did not meet the others at {where} within "
                f"{timeout_s:g} s ({reason}); see if all were started, and if that address can be reached from here"
            ) from None
        # threads of a group that is still there when Python ends can abort the process
        atexit.register(leave_group)
        MEMBER.append(ranks.rank)
    if dist.get_world_size() != ranks.world_size or dist.get_rank() != ranks.rank:
        raise ValueError(
            f"{ranks.launcher} says rank {ranks.rank} of {ranks.world_size}, the group says rank {dist.get_rank()} "
            f"of {dist.get_world_size()}; let one launcher start all ranks, and nothing else make a group before"
        )
    places: dict = {}
    for rank, place in enumerate(gather(None if device.type == "cpu" else (_host(), device.type, device.index))):
        if place and place in places:
            raise ValueError(
                f"ranks {places[place]} and {rank} are both on {place[1]}:{place[2]} of {place[0].split()[0]}; "
                "start at most one rank per device, and let LOCAL_RANK count on each machine"
            )
        places[place] = rank
    return name


MEMBER: list = []  # ranks that this process has had in a group


def leave_group():
    "Take the group apart with its threads, so that another can be made, and Python can end."
    if "torch" not in sys.modules:
        return
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        for mesh in [o for o in gc.get_objects() if type(o).__name__ == "DeviceMesh"]:
            getattr(mesh, "_pg_registry", {}).clear()  # PyTorch caches meshes, and a mesh keeps its groups
        gc.collect()  # a group's threads end with the last that holds it


def end_process(
    code: int = 0,  # exit code
):
    "End this process at once if it was in a group: what is left of a group's threads can abort it while Python ends."
    if MEMBER:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# %% [markdown]
# Some work is for one rank: unpacking weights, preparing data that all will read. `main_first` lets rank 0 through and the others follow. If rank 0 fails, the others do not wait for it; they stop as well, and say whose fault it was.

# %%
#| export
class RankFailed(RuntimeError):
    "Another rank failed, so this one cannot go on."


def on_main(
    ranks: Ranks,  # this rank
    do,  # called without arguments, on rank 0 alone
):  # what it returned there, on every rank; RankFailed on the others if it failed
    "Let rank 0 do something, and tell all what came of it. All ranks must call it."
    found = error = None
    if ranks.is_main:
        try:
            found = do()
        except BaseException as e:
            gather((None, f"{type(e).__name__}: {e}"))
            raise
    found, error = gather((found, None))[0]
    if error:
        raise RankFailed(f"rank 0 failed: {error}")
    return found


@contextmanager
def main_first(
    ranks: Ranks,  # this rank
):
    "The block runs on rank 0, then on all others; RankFailed there if rank 0 failed."
    if not ranks.is_main:
        on_main(ranks, None)  # wait for the end of rank 0's block
    try:
        yield
    except BaseException as e:
        if ranks.is_main:
            gather((None, f"{type(e).__name__}: {e}"))
        raise
    if ranks.is_main:
        on_main(ranks, lambda: None)


# %% [markdown]
# Two real ranks, each a process of its own. They meet, gather, and wait for each other:

# %%
#| export
def start_ranks(
    code: str,  # Python; `ranks`, and all of `device` and this chapter, are there
    world_size: int = 2,  # ranks
    timeout_s: float = 120,  # longest time for all of it, in seconds
) -> list:  # what each rank printed, on one line
    "Run a piece of code once per rank, each in a process of its own on this machine's CPU."
    import subprocess
    import textwrap

    program = (
        "import importlib\nfor m in ('device', 'distributed'): "
        "globals().update(vars(importlib.import_module('simpsons_llm.machine.' + m)))\n"
        f"ranks = find_ranks(); rank_env(ranks)\n{textwrap.dedent(code)}\nend_process()\n"
    )
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world_size)
    ]
    try:
        said = [p.communicate(timeout=timeout_s) for p in started]
    finally:
        for p in started:
            if p.poll() is None:
                p.kill()
    for rank, (p, (_, error)) in enumerate(zip(started, said)):
        if p.returncode:
            raise RuntimeError(
                f"rank {rank} ended with exit code {p.returncode}: {(error.strip().splitlines() or ['no message'])[-1]}"
            )
    return [" ".join(out.split()) for out, _ in said]


# %% tags=["example"]
said = start_ranks("""
    print("backend", join_group(ranks, find_device("cpu")))
    with main_first(ranks): print("after rank 0:", not ranks.is_main, end=" ")
    print("all know", on_main(ranks, lambda: f"rank {ranks.rank}"))
    print("all:", gather(ranks.rank*10), total(1, ranks.rank))""")
pd.Series(said, name="said").rename_axis("rank").to_frame()

# %% tags=["check"]
assert said == [f"backend gloo after rank 0: {late} all know rank 0 all: [0, 10] [2.0, 1.0]" for late in (False, True)]
failed = start_ranks("""
    join_group(ranks, find_device("cpu"))
    try:
        with main_first(ranks):
            if ranks.is_main: raise ValueError("no such script")
    except (ValueError, RankFailed) as e: print(type(e).__name__, e)""")
assert failed == ["ValueError no such script", "RankFailed rank 0 failed: ValueError: no such script"]
lonely = start_ranks("""
    import os
    if ranks.rank == 0:
        try: join_group(ranks, find_device("cpu"), timeout_s=1)
        except ConnectionError as e: print(e)""")
assert lonely[0].startswith("rank 0 of 2 did not meet the others") and not lonely[1]
assert gather("alone") == ["alone"] and join_group(Ranks(), find_device("cpu")) == ""
print(failed[1])
print(lonely[0].split(" at ")[0])


# %% [markdown]
# ## Who am I?
#
# The first thing that a job shows. A rank that believes to be alone among four must be seen at once.

# %%
#| export
def who_am_i(
    device: str = "auto",  # "auto", "xpu", "cuda" or "cpu"
    dtype: str = "auto",  # "auto", "bfloat16" or "float32"
    backend: str = "auto",  # "auto", or a backend by name
) -> str:  # one line
    "Rank, size, device and backend, for the first cell of a job. Completes the environment on the way."
    ranks = find_ranks()
    complete_env(ranks)
    rank_env(ranks)
    d = find_device(device, dtype, ranks.local_rank)
    talk = f"; ranks talk through {backend_for(d.type, backend)}" if ranks.world_size > 1 else ""
    return (
        f"rank {ranks.rank} of {ranks.world_size} (launcher: {ranks.launcher}, {ranks.local_world_size} "
        f"on this machine) on {d.type}{'' if d.type == 'cpu' else f':{d.index}'}, {d.name}, {d.dtype}{talk}"
    )


# %% tags=["example"]
who_am_i()


# %% [markdown]
# ## The doctor
#
# "It does not work here" is answered fastest by a table. `doctor` puts everything of these two chapters into rows: what was found, if
# that is good, and what to do if not. `ok` is True, False, or None for a thing that is optional and not there.
# A doctor must not fall ill itself: every row is made under guard, and what goes wrong becomes the row's value.

# %%
#| export
def _rows(
    item: str,  # what is looked at
    look,  # function without arguments that returns a list of (item, value, ok, hint)
    optional: bool = False,  # is it no fault if this is missing?
) -> list:  # rows of `doctor`
    "Rows of one examination; an error becomes a row."
    try:
        found = look()
    except Exception as e:
        found = [
            (
                item,
                f"{type(e).__name__}: {e}",
                None if optional else False,
                "look at the message: it says what is wrong",
            )
        ]
    return [
        dict(zip(("item", "value", "ok", "hint"), (name, str(value), ok, "" if ok else hint)))
        for name, value, ok, hint in found
    ]


# %% [markdown]
# First what everything stands on.

# %%
#| export
def _look_python():
    return [
        ("python", platform.python_version(), sys.version_info >= (3, 11), "install Python 3.11 or newer"),
        ("platform", platform.platform(), True, ""),
    ]


def _look_torch():
    import torch

    build = next((kind for kind in ("xpu", "cuda", "hip") if getattr(torch.version, kind, None)), "cpu")
    new = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 8)
    label = {"xpu": "XPU", "cuda": "CUDA", "hip": "ROCm", "cpu": "CPU"}[build]
    return [("torch", f"{torch.__version__} ({label} build)", new, "pip install 'torch>=2.8'")]


def _look_cpu():
    return [
        ("cpu", f"{_name('cpu')}, {_cores()} cores, float32", True, ""),
        (
            "cpu memory",
            f"{memory_gib('cpu'):.1f} GiB",
            not memory_gib("cpu") < 4,
            "under 4 GiB: only tiny models will fit",
        ),
    ]


# %% [markdown]
# Accelerators, and whether ranks can talk. The second depends on the first: with XPUs in the machine, a PyTorch without
# `xccl` is a fault; on a CPU it is none.

# %%
#| export
def _look_accelerators():
    found = [find_device(kind, local_rank=i) for kind in ("xpu", "cuda") for i in range(_count(kind))]
    if not found:
        return [
            (
                "accelerator",
                f"none; {_seen()}",
                None,
                "optional; an Intel GPU needs PyTorch's XPU build, an NVIDIA GPU its CUDA build, and both a driver",
            )
        ]
    return [(f"{d.type}:{d.index}", f"{d.name}, {d.memory_gib:.0f} GiB, {d.dtype}", True, "") for d in found]


def _look_backends():
    has = [b for b in ("xccl", "nccl", "gloo") if _talks(b)]
    kind = next(k for k in ("xpu", "cuda", "cpu") if _count(k))
    need = _BACKENDS[kind][0]
    return [
        (
            "distributed",
            ", ".join(has) or "none",
            need in has,
            f"several ranks on {kind} need {need}, which this PyTorch build does not have; one process works",
        )
    ]


# %% [markdown]
# The environment and the installed packages, by version number alone. A long list of imports would be slow, and one
# broken package would hide the rest.

# %%
#| export
def _look_ranks():
    r = find_ranks()
    return [
        (
            "ranks",
            f"rank {r.rank} of {r.world_size}, {r.local_world_size} on this machine; launcher {r.launcher}",
            True,
            "",
        )
    ]


def _look_group():
    if not in_group():
        return [("group", "none", None, "optional; several ranks make one when they train")]
    from torch import distributed as dist

    r = find_ranks()
    return [
        (
            "group",
            f"rank {dist.get_rank()} of {dist.get_world_size()}, backend {dist.get_backend()}",
            dist.get_world_size() == r.world_size,
            f"the launcher says {r.world_size} ranks; let one launcher start all of them",
        )
    ]


_TELLING = ("CCL_", "FI_", "ZE_", "I_MPI_", "IPEX_", "GLOO_", "NCCL_", "OMP_", "MASTER_")


def _look_environment():
    "Variables that change how ranks talk and what they see; those of the launchers' own bookkeeping are left out."
    found = sorted(k for k in os.environ if k.startswith(_TELLING) and not k.startswith(("I_MPI_HYDRA", "I_MPI_INFO")))
    masked = os.environ.get("ZE_AFFINITY_MASK") and find_ranks().local_world_size > 1
    return [
        (
            "environment",
            "  ".join(f"{k}={os.environ[k]}" for k in found) or "nothing set",
            not masked,
            "ZE_AFFINITY_MASK is set and several ranks share this "
            "machine: masks that differ from rank to rank make oneCCL hang; unset it, the local rank picks the device",
        )
    ]


def _look_packages():
    found = {
        name: _version(name) for name in ("transformers", "peft", "datasets", "accelerate", "papermill", "ipykernel")
    }
    return [(name, v or "not installed", v is not None, f"pip install {name}") for name, v in found.items()]


def _look_options():
    ipex, why = find_ipex()
    ccl = _version("oneccl-bind-pt")
    return [
        ("intel-extension-for-pytorch", why, ipex or None, "optional; only for torch 2.8"),
        (
            "oneccl-bind-pt",
            ccl or "not installed",
            True if ccl else None,
            "optional; only for the ccl backend of torch 2.8",
        ),
    ]


def _look_disk():
    free = shutil.disk_usage(".").free / 2**30
    return [
        (
            "disk free here",
            f"{free:.0f} GiB",
            free >= 10,
            "under 10 GiB: a 3B base model takes 6 GiB in bfloat16, a full checkpoint more",
        )
    ]


# %% [markdown]
# All of it, in the order in which one thing needs the next.

# %%
#| export
# of dicts: item, value, ok (True, False, or None: optional and not there), hint (what to do)
def doctor() -> list:
    "What this machine offers and what is wrong with it. Never raises."
    return [
        *_rows("python", _look_python),
        *_rows("torch", _look_torch),
        *_rows("accelerator", _look_accelerators),
        *_rows("cpu", _look_cpu),
        *_rows("distributed", _look_backends),
        *_rows("ranks", _look_ranks),
        *_rows("group", _look_group),
        *_rows("environment", _look_environment),
        *_rows("packages", _look_packages),
        *_rows("options", _look_options, optional=True),
        *_rows("disk free here", _look_disk),
    ]


# %% tags=["example"]
pd.set_option("display.max_colwidth", 120, "display.width", 300)
pd.DataFrame(doctor()).set_index("item")

# %% [markdown]
# Rows with `None` are not faults: they name what this machine could have and does not need.
#
# Three patients with known illnesses. A shell with a leftover `RANK`; a PyTorch that cannot let ranks talk; a
# Python without PyTorch. Each gets a table all the same, with the fault in its row; here is that of the first two at once.

# %% tags=["check"]
with (
    patch.dict(os.environ, RANK="3", ZE_AFFINITY_MASK="0"),
    patch(f"{__name__}._count", lambda kind: kind == "cpu"),
    patch(f"{__name__}._talks", lambda backend: False),
):
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name, None)
    table = pd.DataFrame(doctor()).set_index("item")
assert table.ok["ranks"] is False and "WORLD_SIZE" in table.value["ranks"]
assert table.ok["distributed"] is False
with patch.dict(sys.modules, {"torch": None}):  # as if PyTorch were not installed
    ill = {row["item"]: row["ok"] for row in doctor()}
assert ill["torch"] is False and ill["python"] is True
assert all(row["ok"] is not False or row["hint"] for row in doctor())
assert {row["item"] for row in doctor()} >= {
    "python",
    "torch",
    "cpu",
    "ranks",
    "group",
    "environment",
    "transformers",
    "disk free here",
}
table.loc[["ranks", "distributed"]]

# %% [markdown]
# ## What to remember
#
# - `find_ranks`, `complete_env`, `rank_env` before the libraries are loaded; `join_group` before the first collective.
# - What all ranks call, all ranks must reach: no `if rank == 0` around `gather`.
# - A group is checked when it is made, not trusted.
