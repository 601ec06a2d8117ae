"Grids that would bore a reader of chapter 00: launchers' environments, errors, pretended GPUs, memory limits."

import os
import subprocess
import sys
import warnings
from contextlib import ExitStack, contextmanager
from itertools import product
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from simpsons_llm.machine import device as D
from simpsons_llm.machine.device import Device, Ranks, backend_for, complete_env, find_device, find_ipex, find_ranks

# ---- ranks -------------------------------------------------------------------------------------------------------


def environment(launcher, rank, machines, per_machine):
    "What `launcher` would tell rank `rank` of machines x per_machine ranks."
    world, local = machines * per_machine, rank % per_machine
    values = {
        "torchrun": dict(
            RANK=rank, WORLD_SIZE=world, LOCAL_RANK=local, LOCAL_WORLD_SIZE=per_machine, TORCHELASTIC_RUN_ID="x"
        ),
        "env": dict(RANK=rank, WORLD_SIZE=world, LOCAL_RANK=local, LOCAL_WORLD_SIZE=per_machine),
        "openmpi": dict(
            OMPI_COMM_WORLD_RANK=rank,
            OMPI_COMM_WORLD_SIZE=world,
            OMPI_COMM_WORLD_LOCAL_RANK=local,
            OMPI_COMM_WORLD_LOCAL_SIZE=per_machine,
        ),
        "mpich": dict(PMI_RANK=rank, PMI_SIZE=world, MPI_LOCALRANKID=local, MPI_LOCALNRANKS=per_machine),
        "intelmpi": dict(
            PMI_RANK=rank, PMI_SIZE=world, MPI_LOCALRANKID=local, MPI_LOCALNRANKS=per_machine, I_MPI_HYDRA_UUID="u"
        ),
        "slurm": dict(
            SLURM_STEP_ID=0,
            SLURM_PROCID=rank,
            SLURM_NTASKS=world,
            SLURM_LOCALID=local,
            SLURM_NODEID=rank // per_machine,
            SLURM_NTASKS_PER_NODE=f"{per_machine}(x{machines})",
        ),
    }[launcher]
    return {name: str(value) for name, value in values.items()}


LAUNCHERS = ["torchrun", "env", "openmpi", "mpich", "intelmpi", "slurm"]
SHAPES = [(1, 1), (1, 4), (2, 3)]
CASES = [(how, m, n, r) for how, (m, n) in product(LAUNCHERS, SHAPES) for r in range(m * n)]


@pytest.mark.parametrize("launcher, machines, per_machine, rank", CASES)
def test_launchers(launcher, machines, per_machine, rank):
    env = environment(launcher, rank, machines, per_machine)
    ranks = find_ranks(env)
    assert ranks == Ranks(rank, rank % per_machine, machines * per_machine, per_machine, launcher)
    assert ranks.is_main == (rank == 0)
    made = complete_env(ranks, env, master_addr="10.0.0.1", master_port=29400)
    if ranks.world_size == 1:
        assert made == {}
    else:
        assert env["MASTER_ADDR"] == "10.0.0.1" and env["MASTER_PORT"] == "29400"
        assert [env[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == [
            str(n) for n in (rank, machines * per_machine, rank % per_machine, per_machine)
        ]
    assert find_ranks(env) == ranks  # completing changes nothing of the answer
    assert complete_env(ranks, env, master_port=1) == {}  # and there is nothing left to do


@pytest.mark.parametrize("outer", ["slurm", "mpich", "openmpi"])
def test_torchrun_is_the_innermost(outer):
    env = {**environment(outer, 1, 2, 1), **environment("torchrun", 5, 2, 4)}
    assert find_ranks(env) == Ranks(5, 1, 8, 4, "torchrun")


@pytest.mark.parametrize("launcher", ["openmpi", "mpich", "intelmpi"])
def test_mpi_inside_slurm(launcher):
    env = {**environment("slurm", 1, 2, 1), **environment(launcher, 5, 2, 4)}
    assert find_ranks(env) == Ranks(5, 1, 8, 4, launcher)


def test_pmi_without_local_rank_takes_it_from_slurm_or_pals():
    pmi = dict(PMI_RANK="5", PMI_SIZE="6")
    assert find_ranks({**environment("slurm", 5, 2, 3), **pmi}) == Ranks(5, 2, 6, 3, "mpich")
    assert find_ranks({**pmi, "PALS_LOCAL_RANKID": "2"}) == Ranks(5, 2, 6, 6, "mpich")
    with pytest.raises(ValueError, match="LOCAL_RANK"):
        find_ranks(pmi)


def test_slurm_outside_and_inside_a_step():
    env = environment("slurm", 0, 2, 4)
    del env["SLURM_STEP_ID"]
    # the shell of an sbatch script
    assert find_ranks(env) == Ranks()
    step = dict(
        environment("slurm", 1, 1, 2), SLURM_NTASKS="8", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="2"
    )
    # a step smaller than its job
    assert find_ranks(step) == Ranks(1, 1, 2, 2, "slurm")
    shell = environment("slurm", 0, 1, 1)
    # srun --pty, then a launcher
    assert find_ranks({**shell, **environment("env", 1, 1, 2)}) == Ranks(1, 1, 2, 2, "env")


@pytest.mark.parametrize(
    "text, counts", [("8", [8, 8]), ("4(x2)", [4, 4]), ("4(x2),3", [4, 4, 3]), ("1,2(x2), 5", [1, 2, 2, 5])]
)
def test_tasks_per_node(text, counts):
    assert [D._tasks_on_node(text, node) for node in range(len(counts))] == counts


BAD = [
    (dict(RANK="0"), "RANK is set but WORLD_SIZE is not"),
    (dict(WORLD_SIZE="1"), "WORLD_SIZE is set but RANK is not"),
    (dict(RANK="x", WORLD_SIZE="2"), "RANK='x' is not a whole number"),
    (dict(RANK="", WORLD_SIZE="2"), "whole number"),
    (dict(RANK="1.5", WORLD_SIZE="2"), "whole number"),
    (dict(RANK="2", WORLD_SIZE="2", LOCAL_RANK="0"), "rank is 2"),
    (dict(RANK="-1", WORLD_SIZE="2", LOCAL_RANK="0"), "rank is -1"),
    (dict(RANK="0", WORLD_SIZE="0"), "world size is 0"),
    (dict(RANK="0", WORLD_SIZE="2"), "set LOCAL_RANK"),
    (dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="2"), "local rank is 2"),
    (dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4"), "local world size 4"),
    (dict(LOCAL_RANK="0"), "LOCAL_RANK"),
    (dict(PMI_RANK="1"), "PMI_SIZE is not"),
    (dict(OMPI_COMM_WORLD_SIZE="2"), "OMPI_COMM_WORLD_RANK is not"),
    (dict(SLURM_STEP_ID="0", SLURM_PROCID="1"), "SLURM_NTASKS is not"),
    (dict(environment("slurm", 1, 2, 2), SLURM_NTASKS_PER_NODE="four"), "SLURM_NTASKS_PER_NODE='four'"),
    (dict(environment("slurm", 1, 2, 2), SLURM_NTASKS_PER_NODE="2(x0)"), "SLURM_NTASKS_PER_NODE"),
]


@pytest.mark.parametrize("env, message", BAD)
def test_impossible(env, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        find_ranks(env)


@pytest.mark.parametrize("launcher", ["openmpi", "mpich", "intelmpi", "slurm"])
@pytest.mark.parametrize(
    "extra", [dict(RANK="0", WORLD_SIZE="1"), dict(RANK="0", WORLD_SIZE="4"), dict(LOCAL_RANK="0")]
)
def test_disagreement(launcher, extra):
    with pytest.raises(ValueError, match="disagree"):
        find_ranks({**environment(launcher, 1, 1, 4), **extra})


def test_two_mpis_disagree():
    with pytest.raises(ValueError, match="disagree"):
        find_ranks({**environment("openmpi", 0, 1, 4), **environment("mpich", 0, 1, 2)})


def test_os_environ_is_the_default(monkeypatch):
    for name in [
        n
        for n in os.environ
        if n.startswith(("RANK", "WORLD_", "LOCAL_", "OMPI_", "PMI_", "MPI_", "SLURM_", "TORCHELASTIC", "MASTER_"))
    ]:
        monkeypatch.delenv(name)
    assert find_ranks() == Ranks()
    for name, value in environment("openmpi", 1, 1, 2).items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        # so that monkeypatch removes them afterwards
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    assert complete_env(find_ranks(), master_port=29400)["LOCAL_RANK"] == "1" == os.environ["LOCAL_RANK"]


# ---- meeting place -----------------------------------------------------------------------------------------------


def test_port():
    two = Ranks(1, 1, 2, 2, "mpich")
    with pytest.raises(ValueError, match="MASTER_PORT"):
        complete_env(two, {})
    for port in (0, 65536, -1):
        with pytest.raises(ValueError, match="1 to 65535"):
            complete_env(two, {}, master_port=port)
    env = dict(environment("torchrun", 1, 1, 2), MASTER_ADDR="10.0.0.9", MASTER_PORT="1234")
    assert complete_env(find_ranks(env), env, master_port=5) == {} and env["MASTER_PORT"] == "1234"


def test_two_machines_do_not_meet_at_localhost():
    ranks = Ranks(0, 0, 4, 2, "mpich")
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        complete_env(ranks, {}, master_port=29400)
    env = dict(MASTER_ADDR="node0")
    assert "MASTER_ADDR" not in complete_env(ranks, env, master_port=29400) and env["MASTER_ADDR"] == "node0"


# ---- devices -----------------------------------------------------------------------------------------------------


@contextmanager
def pretend(xpu=0, cuda=0, bf16=True, xccl=True, gib=64):
    "Let PyTorch claim GPUs."
    with ExitStack() as stack:
        for kind, count in (("xpu", xpu), ("cuda", cuda)):
            stack.enter_context(
                patch.multiple(
                    getattr(torch, kind),
                    is_available=lambda count=count: count > 0,
                    device_count=lambda count=count: count,
                    get_device_properties=lambda device=None, kind=kind: SimpleNamespace(
                        name=f"a {kind}", total_memory=gib * 2**30
                    ),
                    is_bf16_supported=lambda including_emulation=True: including_emulation or bf16,
                    max_memory_allocated=lambda device=None: 3 * 2**30,
                    synchronize=lambda device=None: called.append(("sync", device)),
                    reset_peak_memory_stats=lambda device=None: called.append(("reset", device)),
                )
            )
        stack.enter_context(patch.object(torch.distributed, "is_xccl_available", lambda: xccl, create=True))
        called = []
        yield called


@pytest.mark.parametrize(
    "xpu, cuda, want, kind",
    [
        (0, 0, "auto", "cpu"),
        (2, 0, "auto", "xpu"),
        (0, 2, "auto", "cuda"),
        (2, 2, "auto", "xpu"),
        (2, 2, "cuda", "cuda"),
        (2, 2, "cpu", "cpu"),
        (1, 0, "xpu", "xpu"),
    ],
)
@pytest.mark.parametrize("bf16", [True, False])
def test_choice(xpu, cuda, want, kind, bf16):
    with pretend(xpu, cuda, bf16):
        d = find_device(want)
    assert (d.type, d.index) == (kind, 0)
    assert d.dtype == ("bfloat16" if bf16 and kind != "cpu" else "float32")
    assert d.backend == dict(xpu="xccl", cuda="nccl", cpu="gloo")[kind]
    if kind != "cpu":
        assert (d.name, d.memory_gib) == (f"a {kind}", 64)


@pytest.mark.parametrize("kind", ["xpu", "cuda"])
def test_local_rank_picks_the_device(kind):
    with pretend(**{kind: 3}):
        for i in range(3):
            assert find_device(local_rank=i).torch == torch.device(kind, i)
        for i in (3, 9, -1):
            with pytest.raises(ValueError, match=f"local rank {i} has no device.*3 {kind}"):
                find_device(local_rank=i)
    with pretend():
        assert find_device(local_rank=9).torch == torch.device("cpu")


@pytest.mark.parametrize(
    "want, dtype, message",
    [
        ("xpu", "auto", "'xpu' was asked for"),
        ("cuda", "auto", "'cuda' was asked for"),
        ("gpu", "auto", "unknown"),
        ("xpu:1", "auto", "unknown"),
        ("auto", "float16", "unknown"),
        ("cpu", "bf16", "unknown"),
    ],
)
def test_refused_devices(want, dtype, message):
    with pretend(), pytest.raises(ValueError, match=message):
        find_device(want, dtype)


@pytest.mark.parametrize(
    "kind, bf16, warns", [("cpu", False, True), ("xpu", True, False), ("cuda", True, False), ("cuda", False, True)]
)
def test_bfloat16_by_name(kind, bf16, warns):
    with pretend(xpu=1, cuda=1, bf16=bf16), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert find_device(kind, "bfloat16").dtype == "bfloat16" and find_device(kind, "float32").dtype == "float32"
    assert bool(caught) == warns


def test_backends():
    assert (backend_for("cpu"), backend_for("cuda"), backend_for("cuda", "gloo")) == ("gloo", "nccl", "gloo")
    with pretend(xccl=True):
        assert backend_for("xpu") == backend_for("xpu", "xccl") == "xccl"
    with pretend(xpu=1, xccl=False):
        with pytest.raises(ValueError, match="download.pytorch.org/whl/xpu"):
            backend_for("xpu")
        assert find_device().backend == ""
    with patch.object(D, "find_spec", lambda name: None), pytest.raises(ValueError, match="oneccl-bind-pt"):
        backend_for("xpu", "ccl")
    with patch.object(D, "find_spec", lambda name: name):
        assert backend_for("xpu", "ccl") == backend_for("cpu", "ccl") == "ccl"
    for kind, want in (("cpu", "nccl"), ("xpu", "nccl"), ("cuda", "ccl"), ("cpu", "mpi")):
        with pytest.raises(ValueError, match="does not serve"):
            backend_for(kind, want)
    with pytest.raises(ValueError, match="unknown"):
        backend_for("mps")


@pytest.mark.parametrize(
    "ipex, torch_version, ok",
    [
        (None, "2.8.0", False),
        ("2.8.0", "2.8.0+cpu", True),
        ("2.8.10+xpu", "2.8.0+xpu", True),
        ("2.8.0", "2.13.0", False),
        ("2.8.0", None, False),
        ("2.1.0", "2.13.0", False),
    ],
)
def test_ipex(ipex, torch_version, ok):
    found = {"intel-extension-for-pytorch": ipex, "torch": torch_version}
    with patch.object(D, "_version", found.get):
        answer, why = find_ipex()
    assert answer is ok and why and "intel_extension_for_pytorch" not in sys.modules


# ---- memory, waiting, threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines, files, limits",
    [
        ("0::/job/step", {"job/memory.max": "1000", "job/step/memory.max": "max"}, [1000]),
        ("0::/", {"memory.max": "77"}, [77]),
        ("0::/not/mounted/here", {"memory.max": "5"}, [5]),
        (
            "4:memory:/box\n0::/",
            {"memory/box/memory.limit_in_bytes": "300", "memory/memory.limit_in_bytes": "9223372036854771712"},
            [300, 9223372036854771712],
        ),
        ("5:cpu,cpuacct:/x", {"memory.max": "1"}, []),
        ("", {}, []),
        ("rubbish", {}, []),
    ],
)
def test_control_groups(tmp_path, lines, files, limits):
    (tmp_path / "cgroup").write_text(lines)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert D._cgroup_limits(tmp_path / "fs", tmp_path / "cgroup") == limits
    assert D._cgroup_limits(tmp_path / "fs", tmp_path / "missing") == []


def test_cpu_memory_respects_the_limit():
    with patch.object(D, "_cgroup_limits", lambda: []):
        machine = D.memory_gib("cpu")
    with patch.object(D, "_cgroup_limits", lambda: [2**30]):
        assert D.memory_gib("cpu") == min(1, machine)
    with patch.object(D, "_cgroup_limits", lambda: [2**62]):
        assert D.memory_gib("cpu") == machine
    # nan
    with patch.object(D.os, "sysconf", side_effect=ValueError):
        assert D.memory_gib("cpu") != D.memory_gib("cpu")


def test_cpu_peak(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  2048 kB\n")
    assert D._cpu_peak_bytes(tmp_path / "status") == 2 * 2**20
    resource = pytest.importorskip("resource")
    with patch.object(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=4096)):
        with patch.object(D.sys, "platform", "linux"):
            assert D._cpu_peak_bytes(tmp_path / "missing") == 4096 * 1024
        with patch.object(D.sys, "platform", "darwin"):
            assert D._cpu_peak_bytes(tmp_path / "missing") == 4096
    assert D.peak_memory_gib(torch.device("cpu")) > 0


@pytest.mark.parametrize("kind", ["xpu", "cuda"])
def test_gpu_calls_name_the_device(kind):
    d = Device(kind, 1, "", 64, "bfloat16", "")
    with pretend(**{kind: 2}) as called:
        assert D.peak_memory_gib(d) == 3 and D.memory_gib(kind, 1) == 64
        assert D.reset_peak_memory(d) is True
        D.synchronize(d)
        D.synchronize(d.torch)
    assert called == [("reset", 1), ("sync", 1), ("sync", 1)]


def test_cpu_has_nothing_to_wait_for():
    assert D.synchronize(torch.device("cpu")) is None


@pytest.mark.parametrize(
    "cores, local, launcher, omp, threads",
    [
        (8, 1, "none", None, 8),
        (8, 4, "mpich", None, 2),
        (2, 8, "mpich", None, 1),
        (8, 4, "mpich", "1", "kept"),
        (8, 4, "env", "6", "kept"),
        (8, 4, "torchrun", "1", 2),
        (8, 4, "torchrun", "6", "kept"),
        (8, 1, "torchrun", "1", "kept"),
    ],
)
def test_threads(cores, local, launcher, omp, threads):
    before = torch.get_num_threads()
    try:
        with patch.object(D, "_cores", lambda: cores):
            got = D.set_threads(Ranks(0, 0, local, local, launcher), {} if omp is None else {"OMP_NUM_THREADS": omp})
        assert got == torch.get_num_threads() == (before if threads == "kept" else threads)
    finally:
        torch.set_num_threads(before)


def test_importing_the_module_is_light():
    code = (
        "import sys, simpsons_llm.machine.device, simpsons_llm.machine.distributed; "
        "print([m for m in ('torch', 'transformers', 'pandas', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
