# %%
#| default_exp ranks.collectives

# %% [markdown]
# # Collectives
#
# > What ranks say to each other while they train, how long it takes, and whether the answer is right.
#
# Several ranks train one model by talking: after each step they add up their gradients, and where the model is divided among them they fetch each other's pieces. If that is slow, a second card brings little; if it is wrong, nothing trains. This chapter times the four operations that training stands on, for one number up to millions, and holds every single answer against the right one. What a step computes meanwhile belongs to [the chapter on costs](../4_train/41_cost.ipynb).
#
# It is also a program. `simpsons-llm bench collectives` starts ranks on this machine and prints the table; `simpsons-llm launch -n 4 collectives`, or any other launcher, runs this chapter once per rank.

# %% tags=["parameters"]
out = "runs/collectives"  # folder for collectives.json and collectives.png
sizes = "auto"  # numbers in an array: auto (powers of 4), seed (1 to 786,432), a list such as 1,1024,1048576
dtypes = "float32,bfloat16"  # number formats, with commas: float32, bfloat16, float16
warmup = 10  # calls before the clock counts, 0 or more
repeats = 10  # calls that are timed, 1 or more
device = "auto"  # auto, xpu, cuda or cpu
backend = "auto"  # auto, xccl, ccl, nccl or gloo

# %%
#| export
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from simpsons_llm.machine.device import (
    Device,
    Ranks,
    _count,
    backend_for,
    complete_env,
    find_device,
    find_ranks,
    synchronize,
)
from simpsons_llm.machine.distributed import end_process, gather, in_group, join_group, leave_group, rank_env
from simpsons_llm.machine.job import (
    JobConfig,
    Progress,
    open_folder,
    provenance,
    read_json,
    require,
    same_parameters,
    write_json,
)

if TYPE_CHECKING:
    import torch

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from simpsons_llm.machine.job import chapters_dir


# %% [markdown]
# ## Four operations
#
# Each rank calls the same operation at the same place of its program, and goes on when its own part is done. Four ranks hold A, B, C and D; an array may have four pieces, written A0 A1 A2 A3.
#
# | operation | before, on ranks 0, 1, 2, 3 | after, on ranks 0, 1, 2, 3 | where training uses it |
# |---|---|---|---|
# | broadcast | A, B, C, D | A, A, A, A | all start from the same adapter |
# | all-reduce | A, B, C, D | A+B+C+D on each | plain data parallelism (DDP): the gradients of a step |
# | all-gather | A, B, C, D | A B C D on each | a divided model (FSDP): weights, fetched before they are used |
# | reduce-scatter | A0 A1 A2 A3, and so on | A0+B0+C0+D0, A1+B1+C1+D1, ... | FSDP: gradients, each rank keeps the sum of its own piece |
#
# An all-reduce is a reduce-scatter with an all-gather after it, and so moves as much as both. FSDP gathers the weights twice a step, forwards and backwards, and scatters the gradients once: three halves of what DDP moves ([ZeRO](https://arxiv.org/abs/1910.02054), section 7).
#
# PyTorch has a function for each. The two that change the number of pieces got new names in recent versions; the old ones still work there, with a warning.

# %%
#| export
def _named(*names):
    "The function of torch.distributed by the first of its names that this version knows."
    from torch import distributed as dist

    return next(getattr(dist, name) for name in names if hasattr(dist, name))


COLLECTIVES = {
    "broadcast": lambda result, own: _named("broadcast")(result, 0),
    "all-reduce": lambda result, own: _named("all_reduce")(result),
    "all-gather": lambda result, own: _named("all_gather_single", "all_gather_into_tensor")(result, own),
    "reduce-scatter": lambda result, own: _named("reduce_scatter_single", "reduce_scatter_tensor")(result, own),
}


# %% [markdown]
# ## How fast is fast?
#
# Time alone does not tell if the wires are used well, since eight ranks have to move more than two. NVIDIA's tests for its library give two speeds, and so does this chapter ([performance notes of nccl-tests](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md)). With $S$ bytes in the whole array, $t$ seconds and $n$ ranks:
#
# - the *algorithm bandwidth* $S/t$: divide any array by it to know how long it will take;
# - the *bus bandwidth* $S/t \cdot f$: how fast a rank really sends, to be held against what its wires can do, whatever the number of ranks. The factor $f$ counts how often each byte has to travel: all-reduce $2(n-1)/n$, all-gather and reduce-scatter $(n-1)/n$, broadcast 1.
#
# The whole array is what each rank holds; of an all-gather it is the result, of a reduce-scatter what goes in.

# %%
#| export
def bus_factor(
    op: str,  # a name in `COLLECTIVES`
    world_size: int,  # number of ranks, 2 or more
) -> float:  # bus bandwidth / algorithm bandwidth
    "How many times a byte of the array leaves a rank, at best (nccl-tests, doc/PERFORMANCE.md)."
    require(op in COLLECTIVES, f"op={op!r} was given; expected one of {', '.join(COLLECTIVES)}")
    require(world_size >= 2, f"world_size={world_size} was given; expected 2 or more, since one rank sends nothing")
    divided = (world_size - 1) / world_size
    return {"broadcast": 1.0, "all-reduce": 2 * divided, "all-gather": divided, "reduce-scatter": divided}[op]


# %% tags=["example"]
pd.DataFrame({n: {op: bus_factor(op, n) for op in COLLECTIVES} for n in (2, 4, 8, 64)}).rename_axis("ranks", axis=1)

# %% tags=["check"]
assert (
    bus_factor("all-reduce", 2) == 1
    and bus_factor("all-reduce", 4) == bus_factor("reduce-scatter", 4) + bus_factor("all-gather", 4) == 1.5
)
try:
    bus_factor("all-reduce", 1)
    raise AssertionError
except ValueError as e:
    print(e)

# %% [markdown]
# ## The settings
#
# Sizes count the numbers of the whole array. `auto` goes up to 16 Mi numbers (64 MiB in float32) on an accelerator and to 1 Mi on a CPU; `seed` are the sizes of the project that this book carries on: powers of two, and 786,432 at the end.

# %%
#| export
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # name -> bytes of a number


def parse_sizes(
    sizes,  # auto, seed, whole numbers with commas, or a list of whole numbers
    device_type: str = "cpu",  # decides how far `auto` goes
) -> list:  # numbers in an array, ascending; ValueError for what is no such list
    "Sizes to measure."
    if sizes == "auto":
        return [4**k for k in range(11 if device_type == "cpu" else 13)]
    if sizes == "seed":
        return [2**k for k in range(20)] + [786_432]
    try:
        found = sorted({int(s) for s in (sizes.split(",") if isinstance(sizes, str) else sizes)})
    except (ValueError, TypeError):
        found = []
    require(
        found and found[0] >= 1,
        f"sizes={sizes!r} was given; expected auto, seed, "
        "or whole numbers of 1 or more with commas, such as 1,1024,1048576",
    )
    return found


# from names with commas, or a list of them; ValueError for one that is not known
def parse_dtypes(dtypes) -> list:
    "Number formats to measure."
    found = list(dict.fromkeys(d.strip() for d in (dtypes.split(",") if isinstance(dtypes, str) else dtypes)))
    require(
        found and all(d in DTYPES for d in found),
        f"dtypes={dtypes!r} was given; expected some of {', '.join(DTYPES)}, with commas",
    )
    return found


# %%
#| export
@dataclass
class CollectivesConfig(JobConfig):
    "Settings of the collectives job."

    out: str = "runs/collectives"  # folder for collectives.json and collectives.png
    sizes: str = "auto"  # numbers in an array: auto (powers of 4), seed (1 to 786,432), a list such as 1,1024,1048576
    dtypes: str = "float32,bfloat16"  # number formats, with commas: float32, bfloat16, float16
    warmup: int = 10  # calls before the clock counts, 0 or more
    repeats: int = 10  # calls that are timed, 1 or more
    device: str = "auto"  # auto, xpu, cuda or cpu
    backend: str = "auto"  # auto, xccl, ccl, nccl or gloo

    def check(self):
        parse_sizes(self.sizes)
        parse_dtypes(self.dtypes)
        require(
            self.warmup >= 0 and self.repeats >= 1,
            f"warmup={self.warmup} and repeats={self.repeats} were given; expected 0 or more, and 1 or more",
        )
        for name, known in (
            ("device", ("auto", "xpu", "cuda", "cpu")),
            ("backend", ("auto", "xccl", "ccl", "nccl", "gloo")),
        ):
            require(
                getattr(self, name) in known,
                f"{name}={getattr(self, name)!r} was given; expected one of {', '.join(known)}",
            )


# %% tags=["check"]
assert same_parameters(CollectivesConfig, "collectives")
assert parse_sizes("auto") == parse_sizes("auto", "xpu")[:11] and parse_sizes("seed")[-3:] == [
    262_144,
    524_288,
    786_432,
]
for wrong in (
    dict(sizes="big"),
    dict(sizes="0,4"),
    dict(dtypes="int8"),
    dict(repeats=0),
    dict(device="tpu"),
    dict(backend="mpi"),
):
    try:
        CollectivesConfig(**wrong)
        raise AssertionError(wrong)
    except ValueError as e:
        assert next(iter(wrong)) in str(e)


# %% [markdown]
# ## Data whose answer is known
#
# Random numbers cannot be checked without a second way to add them up. So each rank fills its array by a rule, and every rank knows the rule: at position $i$ rank $r$ has $1 + ((i+1)(r+1) \bmod m)$. All ranks differ, and so do the positions, so that pieces that were exchanged or left out are noticed. All of these are small whole numbers: $m$ is chosen so that the sum over all ranks stays below 257, since up to there bfloat16 has all whole numbers. Whatever the order of adding, the answer is exact, and is compared with `==`. And $m$ is odd, because arrays have lengths like 1,024: with $m = 128$ their pieces would look alike.

# %%
#| export
def pattern(
    ranks: list,  # whose numbers to add up; one rank: its own data
    count: int,  # how many numbers
    start: int,  # position of the first
    world_size: int,  # number of ranks, up to 256
    dtype,  # torch dtype
    device="cpu",  # torch device
):  # 1-d tensor of whole numbers, 1..256
    "The data of ranks from a position on, added up."
    import torch

    require(world_size <= 256, f"{world_size} ranks were given; the check of the answers is exact up to 256")
    top = (256 // world_size - 1) | 1  # the largest odd number that keeps the sum within 256
    positions = torch.arange(start + 1, start + 1 + min(top, count), device=device)
    period = sum(positions * (r + 1) % top + 1 for r in ranks)
    return period.to(dtype).repeat(-(-count // top))[:count]


# %% tags=["check"]
import torch

for n in (2, 3, 4, 8, 48, 64, 256):
    whole = pattern(range(n), 1000, 0, n, torch.bfloat16)
    assert (
        torch.equal(whole.double(), sum(pattern([r], 1000, 0, n, torch.float64) for r in range(n)))
        and whole.max() <= 256
    )
    assert torch.equal(whole[300:], pattern(range(n), 700, 300, n, torch.bfloat16))
assert not torch.equal(pattern([0, 1], 512, 0, 2, torch.float32), pattern([0, 1], 512, 512, 2, torch.float32))
pd.DataFrame(
    [pattern(who, 8, 0, 4, torch.bfloat16).tolist() for who in ([0], [1], [2], [3], range(4))],
    index=[*(f"rank {r}" for r in range(4)), "sum"],
    dtype=int,
)


# %% [markdown]
# A case is one operation on one size: what the rank puts in, where the result goes, and what must be there afterwards. Where an array is divided among the ranks, its size is rounded up to a multiple of their number.

# %%
#| export
@dataclass
class Case:
    "One collective, ready to be called as often as one likes."

    op: str  # a name in `COLLECTIVES`
    elements: int  # numbers of the whole array
    own: "torch.Tensor"  # tensor that this rank puts in
    result: "torch.Tensor"  # tensor that the collective writes
    answer: "torch.Tensor"  # tensor that must be there afterwards

    def run(self):
        COLLECTIVES[self.op](self.result, self.own)

    def reset(self):
        "Forget the last answer: broadcast and all-reduce work in place, so theirs starts as the rank's own data."
        self.result.copy_(self.own) if self.op in ("broadcast", "all-reduce") else self.result.zero_()

    def mistake(self) -> str:  # "" if the answer is right
        "The first wrong number of the answer."
        wrong = (self.result != self.answer).nonzero()
        return (
            f"position {(at := int(wrong[0]))} has {self.result[at].item():g} instead of {self.answer[at].item():g}"
            if len(wrong)
            else ""
        )


def make_case(
    op: str,  # a name in `COLLECTIVES`
    size: int,  # numbers in the whole array, 1 or more
    ranks: Ranks,  # this rank
    dtype,  # torch dtype
    device="cpu",  # torch device
) -> Case:  # its tensors on the device
    "A collective with data, and its answer."
    r, n = ranks.rank, ranks.world_size
    piece = -(-size // n)

    def data(who, count, start=0):
        return pattern(who, count, start, n, dtype, device)

    if op == "all-gather":
        answer = data([0], 0).new_empty(n * piece)
        for other in range(n):
            answer[other * piece : (other + 1) * piece] = data([other], piece, other * piece)
        own = data([r], piece, r * piece)
    elif op == "reduce-scatter":
        own, answer = data([r], n * piece), data(range(n), piece, r * piece)
    else:
        own, answer = data([r], size), data([0] if op == "broadcast" else range(n), size)
    return Case(op, max(len(own), len(answer)), own, answer.new_empty(len(answer)), answer)


# %% [markdown]
# Four ranks can be played by one process that does by hand what the collective should do. The right result has no mistake; one number off has, and so has a result in which two ranks' pieces were exchanged:

# %% tags=["check"]
cases = [make_case("all-gather", 1000, Ranks(r, r, 4, 4), torch.bfloat16) for r in range(4)]
assert [c.elements for c in cases] == [1000] * 4 and len(cases[0].own) == 250
cases[0].result.copy_(torch.cat([c.own for c in cases]))
assert cases[0].mistake() == ""
cases[0].result.copy_(torch.cat([cases[r].own for r in (0, 2, 1, 3)]))
assert cases[0].mistake().startswith("position 250")
cases = [make_case("reduce-scatter", 1001, Ranks(r, r, 4, 4), torch.float32) for r in range(4)]
for r, c in enumerate(cases):
    c.result.copy_(sum(x.own for x in cases)[251 * r : 251 * (r + 1)])
    assert c.mistake() == "" and c.elements == 1004
cases[2].result[7] += 1
print(cases[2].mistake())


# %% [markdown]
# ## The clock
#
# A collective is done when the last rank is done. So all ranks meet, each measures its own call, and the slowest counts. An accelerator works behind the program's back, so the clock stops when the device has finished. The answer of *every* call is looked at, also of the first ones, which are not timed: they open connections and take buffers. The median of the timed calls is reported, with the fastest and the slowest.
#
# Each call is timed from Python, alone. For small arrays that includes what PyTorch itself needs to start it, some microseconds; nccl-tests, which starts many calls and divides, shows less there.

# %%
#| export
class WrongAnswer(RuntimeError):
    "A collective that gave a wrong result."


def time_case(
    case: Case,  # what to call
    device: Device,  # where it runs
    warmup: int,  # calls that are not timed, 0 or more
    repeats: int,  # calls that are timed, 1 or more
) -> list:  # seconds of the timed calls, each on its slowest rank; WrongAnswer, on all ranks, if one was wrong on one
    "Call a collective again and again, with all ranks."
    import torch
    from torch import distributed as dist

    times, mistake = [], ""
    for _ in range(warmup + repeats):
        case.reset()
        synchronize(device)
        dist.all_reduce(torch.zeros(1))  # all ranks meet, on the CPU
        begin = time.perf_counter()
        case.run()
        synchronize(device)
        times.append(time.perf_counter() - begin)
        mistake = mistake or case.mistake()
    found = gather((times[warmup:], mistake))
    for rank, (_, mistake) in enumerate(found):
        if mistake:
            raise WrongAnswer(
                f"{case.op} of {case.elements:,} {str(case.own.dtype).removeprefix('torch.')} numbers "
                f"is wrong on rank {rank} of {len(found)}: {mistake}; do not train with this backend"
            )
    return [max(one) for one in zip(*(t for t, _ in found))]


# %% [markdown]
# Not every backend has every operation for every device. One that is missing gets a row that says so; any other error is an error.

# %%
#| export
def lacking(
    case: Case,  # a small one, to try it once
    device: Device,  # where it would run
) -> str:  # the reason, the same on all ranks; "" if the operation is there
    "Why a backend does not have an operation."
    reason = ""
    try:
        case.reset()
        case.run()
        synchronize(device)
    except RuntimeError as e:  # NotImplementedError is one
        reason = (str(e).splitlines() or [""])[0][:200] or type(e).__name__
        if not isinstance(e, NotImplementedError) and not any(
            w in reason.lower() for w in ("support", "implement", "scalar type")
        ):
            raise
    return next(filter(None, gather(reason)), "")


# %%
#| export
def bench_collectives(
    sizes="auto",  # what `parse_sizes` takes
    dtypes="float32,bfloat16",  # what `parse_dtypes` takes
    warmup: int = 10,  # calls that are not timed, 0 or more
    repeats: int = 10,  # calls that are timed, 1 or more
    device: str = "auto",  # auto, xpu, cuda or cpu
    backend: str = "auto",  # auto, or a backend by name
) -> list:  # a dict for each operation, dtype and size, the same on all ranks; ValueError for one process alone
    "Time and check the four collectives. Every rank of a group must call it."
    ranks = find_ranks()
    require(
        ranks.world_size > 1,
        "one process alone has nobody to talk to; start ranks with simpsons-llm bench collectives -n 2, "
        "simpsons-llm launch -n 2 collectives or mpirun -n 2 simpsons-llm bench collectives",
    )
    complete_env(ranks)
    rank_env(ranks)  # before torch is imported
    import torch

    d, made, rows = find_device(device, local_rank=ranks.local_rank), not in_group(), []
    talk = join_group(ranks, d, backend)
    sizes, dtypes = parse_sizes(sizes, d.type), parse_dtypes(dtypes)
    progress = Progress(len(COLLECTIVES) * len(dtypes) * len(sizes), "collectives", "measured", show=ranks.is_main)
    for op in COLLECTIVES:
        for name in dtypes:
            base = {"op": op, "dtype": name, "world_size": ranks.world_size, "backend": talk, "device": d.name}
            if reason := lacking(make_case(op, 1, ranks, getattr(torch, name), d.torch), d):
                rows += [base | {"size": None, "seconds": None, "note": f"not available: {reason}"}]
                continue
            for size in sizes:
                case = make_case(op, size, ranks, getattr(torch, name), d.torch)
                times, n_bytes = time_case(case, d, warmup, repeats), case.elements * DTYPES[name]
                speed = n_bytes / statistics.median(times) / 1e9
                rows.append(
                    base
                    | {
                        "size": size,
                        "elements": case.elements,
                        "bytes": n_bytes,
                        "seconds": statistics.median(times),
                        "min_s": min(times),
                        "max_s": max(times),
                        "algorithm_gb_per_s": speed,
                        "bus_gb_per_s": speed * bus_factor(op, ranks.world_size),
                        "note": "",
                    }
                )
                progress(len(rows), f"{op}, {name}, {size:,}")
    if made:
        leave_group()
    require(
        any(r["seconds"] for r in rows),
        f"{talk} has none of the collectives for {d.type}: {rows[0]['note']}; choose another backend, or device cpu",
    )
    return rows


# %% tags=["check"]
if find_ranks().world_size == 1:
    try:
        bench_collectives()
        raise AssertionError
    except ValueError as e:
        print(e)

# %% [markdown]
# ## Ranks on this machine
#
# Where no launcher started several ranks, they are started here, by PyTorch's own launcher: as many as there are accelerators, or two on a CPU. Each leaves its result in a file, or what went wrong.

# %%
#| export
# errors whose message says it all
KINDS = {c.__name__: c for c in (ValueError, ConnectionError, WrongAnswer)}


def on_ranks(
    function: str,  # "module:function" of this package, called on every rank
    n: int,  # number of ranks, 2 or more
    **arguments,  # its arguments, plain data
) -> list:  # each rank's result; ValueError, ConnectionError, WrongAnswer or RuntimeError with the first rank's error
    "Start ranks on this machine and let each call a function."
    require(n >= 2, f"{n} ranks were asked for; expected 2 or more, since one has nobody to talk to")
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "errors", "w+") as errors:
        program = "import simpsons_llm.ranks.collectives as ours; ours.answer_rank()"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(n),
            "--no-python",
            sys.executable,
            "-c",
            program,
            folder,
            function,
            json.dumps(arguments),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={"OMP_NUM_THREADS": "1", **os.environ}
        ) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
        if process.returncode == 0:
            return [read_json(Path(folder) / f"{r}.json") for r in range(n)]
        failed = sorted(Path(folder).glob("*.error"), key=lambda p: p.stat().st_mtime_ns)
        if not failed:
            errors.seek(0)
            raise RuntimeError(
                f"{n} ranks ended with exit code {process.returncode}: " + " ".join(errors.read().split()[-60:])
            )
        kind, text = read_json(failed[0])
        if kind in KINDS:
            raise KINDS[kind](text)
        raise RuntimeError(f"rank {failed[0].stem} of {n} failed: {kind}: {text}")


def answer_rank():
    "The other side of `on_ranks`."
    folder, function, arguments = sys.argv[1:4]
    module, _, name = function.partition(":")
    me = Path(folder) / str(find_ranks().rank)
    try:
        write_json(
            me.with_suffix(".json"), getattr(import_module(f"simpsons_llm.{module}"), name)(**json.loads(arguments))
        )
    except Exception as e:
        write_json(me.with_suffix(".error"), [type(e).__name__, str(e)])
        raise
    end_process()


# %%
#| export
def measure(
    config: CollectivesConfig,  # the settings; `out` is not used
    n: int = 0,  # ranks to start where no launcher did; 0: one per accelerator, two on a CPU
) -> list:  # what `bench_collectives` returns, on every rank
    "The rows, from the ranks that a launcher started, or from ranks started here."
    settings = {k: v for k, v in config.to_dict().items() if k != "out"}
    ranks = find_ranks()
    if ranks.world_size > 1:
        require(
            n in (0, ranks.world_size),
            f"{n} ranks were asked for, but {ranks.launcher} started {ranks.world_size}; leave the number out",
        )
        return bench_collectives(**settings)
    d = find_device(config.device)
    n = n or (2 if d.type == "cpu" else _count(d.type))
    require(
        n > 1,
        f"{n} rank on {d.type} has nobody to talk to; "
        "a collective needs 2 or more: give -n 2, and --device cpu where there is one accelerator",
    )
    if d.type != "cpu":
        find_device(d.type, local_rank=n - 1)  # says so if there are fewer
    backend_for(d.type, config.backend)
    return on_ranks("ranks.collectives:bench_collectives", n, **settings)[0]


# %% [markdown]
# ## What comes out
#
# A table of bus bandwidths for people, and the picture that shows most: bytes against bus bandwidth, both in powers, one line for an operation.

# %%
#| export
def table_of(
    rows: list,  # what `measure` returned
    value: str = "bus_gb_per_s",  # a number of the rows
    dtype: str = "float32",  # whose rows
):  # a frame: size x operation
    "One number of all rows, side by side."
    import pandas as pd

    some = pd.DataFrame([r for r in rows if r["dtype"] == dtype and r["seconds"] is not None])
    return some.pivot(index="size", columns="op", values=value).reindex(
        columns=[op for op in COLLECTIVES if op in set(some.op)]
    )


def in_bytes(n: int) -> str:  # such as "64 KiB"
    "A number of bytes as a person would say it."
    shift, unit = next((s, u) for s, u in ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B")) if n >> s or not s)
    return f"{n / 2**shift:.4g} {unit}"


COLORS = ("#1f5fa8", "#c0504d", "#e0a100")  # of the number formats


def plot_bandwidth(
    rows: list,  # what `measure` returned
    file=None,  # also save the picture here; None: do not
):  # the axes, one for each collective
    "Bus bandwidth over the bytes of the array, both in powers; a panel for each collective."
    import matplotlib.pyplot as plt

    measured = [r for r in rows if r["seconds"] is not None]
    ops = [op for op in COLLECTIVES if any(r["op"] == op for r in measured)]
    figure, grid = plt.subplots(1, len(ops), figsize=(2.6 * len(ops) + 0.6, 3), sharey=True, squeeze=False)
    axes = grid[0]
    small, large = min(r["bytes"] for r in measured), max(r["bytes"] for r in measured)
    at = [2**k for k in range(0, 41, 8) if small <= 2**k <= large]
    for ax, op in zip(axes, ops):
        for color, dtype in zip(COLORS, dict.fromkeys(r["dtype"] for r in measured)):
            points = [(r["bytes"], r["bus_gb_per_s"]) for r in measured if (r["op"], r["dtype"]) == (op, dtype)]
            if points:
                ax.plot(*zip(*points), marker=".", color=color, label=dtype)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.grid(alpha=0.3)
        ax.set_xticks(at, [in_bytes(b) for b in at], fontsize=8)
        ax.set_title(op, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("bus bandwidth (GB/s)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("size of the whole array", fontsize=10)
    about = f"{measured[0]['world_size']} ranks, {measured[0]['backend']}, {measured[0]['device']}"
    figure.suptitle(about, fontsize=10)
    figure.tight_layout()
    if file:
        figure.savefig(open_folder(Path(file).parent) / Path(file).name, dpi=110)
        plt.close(figure)
    return axes


# %%
#| export
def collectives(
    config: CollectivesConfig,  # the settings
) -> list:  # what `measure` returns; rank 0 writes collectives.json and collectives.png
    "Measure, and write down what was found."
    if find_ranks().is_main:
        open_folder(config.out)
    rows = measure(config)
    if find_ranks().is_main:
        write_json(
            Path(config.out) / "collectives.json",
            {"settings": config.to_dict(), "rows": rows, "provenance": provenance()},
        )
        plot_bandwidth(rows, file=Path(config.out) / "collectives.png")
    return rows


# %% [markdown]
# ## The job
#
# From the parameters at the top; two real ranks if nobody started more:

# %%
rows = collectives(CollectivesConfig.from_names(globals()))
timed, main = [r for r in rows if r["seconds"] is not None], find_ranks().is_main
first = timed[0]
if main:
    print(
        f"{len(timed)} measurements, every answer right; "
        f"{first['world_size']} ranks, {first['backend']}, {first['device']}",
        *(f"{r['op']} of {r['dtype']}: {r['note']}" for r in rows if r["note"]),
        sep="\n",
    )

# %% [markdown]
# In the first number format, a row for each size: how long a call takes, and how well it uses the wires.

# %%
tables = {
    "µs": (table_of(rows, "seconds", first["dtype"]) * 1e6).map("{:,.0f}".format),
    "bus GB/s": table_of(rows, dtype=first["dtype"]).map("{:.3g}".format),
}
if main:
    display(pd.concat(tables, axis=1))

# %% [markdown]
# Where does waiting end and carrying begin? The same as a picture, for all number formats:

# %%
if main:
    plot_bandwidth(rows)
    plt.show()

# %% [markdown]
# The curve has two parts. On the left a call takes about the same time however little it carries: there the *latency* is measured, and twice the bytes are twice the bandwidth, a straight line upwards. On the right the wires (here, the memory and the cores that copy) are busy all the time, and the line gets flat: that is the *bandwidth*. Where it bends is the size below which it pays to put small arrays together, which DDP does, in buckets.

# %%
curves = {
    op: [r for r in timed if (r["op"], r["dtype"]) == (op, first["dtype"])]
    for op in table_of(rows, dtype=first["dtype"])
}
best = {op: max(r["bus_gb_per_s"] for r in curve) for op, curve in curves.items()}
half = {op: next(r["bytes"] for r in curve if r["bus_gb_per_s"] >= best[op] / 2) for op, curve in curves.items()}
if main:
    display(
        Markdown(
            f"In this run, in {first['dtype']}: "
            + "; ".join(
                f"{op} takes {curve[0]['seconds'] * 1e6:,.0f} µs for the smallest array "
                f"and reaches {best[op]:.2g} GB/s, half of it from {in_bytes(half[op])} on"
                for op, curve in curves.items()
            )
            + "."
        )
    )

# %% [markdown]
# What is a good number? It depends on what lies between the ranks.
#
# - **gloo on one machine**: the run above. Ranks copy through the machine's memory, with the cores that also compute; other work on them shows in the slowest calls.
# - **NVLink, two H200**: shown below.
# - **NVLink, eight H100**: a developer of NCCL [names](https://github.com/NVIDIA/nccl-tests/issues/212) 450 GB/s as the rate of the line and about 370 GB/s of bus bandwidth as what a program can reach; an all-reduce shows about 480 GB/s, because the switch adds there and fewer bytes travel than the factor assumes. Such values need arrays larger than 256 MB: `--sizes 268435456`.
# - **Intel's Xe Link**: no figure stands here, since none was found that was measured in this way.
#
# More telling than a list is a second machine of the same kind, or yesterday's `collectives.json`: two runs that should be equal and are not have a reason, such as another network interface than was meant. `simpsons-llm doctor` shows the environment that decides it.
#
# ## Two GPUs
#
# The same chapter's measurement on two NVIDIA H200 of one machine, with NCCL (`simpsons-llm bench collectives -n 2`), kept beside the book:

# %% tags=["example"]
gpus = read_json(chapters_dir() / "_results" / "collectives_nccl.json")
plot_bandwidth(gpus)
plt.show()

# %% tags=["example"]
table_of(gpus).tail(4).round(1).rename_axis(columns="bus GB/s")

# %% [markdown]
# A call takes about as long for four bytes as for some MiB, and at 64 MiB the lines still rise: latency decides nearly all the way, so gradients want few, large messages. The last rows are beyond the 64 GB/s of a PCIe 5 slot; these cards are linked directly.
#
# ## What it means for training
#
# DDP adds up the gradients of what is trained once a step. With LoRA that is the adapter alone, $r(D_{in} + D_{out})$ numbers for each layer with one. Four bytes a number, at the speed of the largest all-reduce above:

# %% tags=["example"]
from transformers import LlamaConfig

from simpsons_llm.model.base import OPEN_LLAMA, SHAPES, load_config
from simpsons_llm.train.cost import Recipe, parameter_counts

speed, n = curves["all-reduce"][-1]["algorithm_gb_per_s"], first["world_size"]
shapes = {"SmolLM2 135M": load_config("smollm2-135m"), "open_llama 3B": LlamaConfig(**SHAPES[OPEN_LLAMA])}
steps = pd.DataFrame(
    [
        (
            model,
            way,
            trained,
            4 * trained / 1e6,
            bus_factor("all-reduce", n) * 4 * trained / 1e6,
            4 * trained / 1e6 / speed,
        )
        for model, shape in shapes.items()
        for way, more in (("LoRA r 16, all linear", {}), ("all weights", {"lora": None}))
        for trained in [parameter_counts(shape, Recipe(seq_lens=(1,), **more))[0]]
    ],
    columns=["model", "trained", "numbers", "MB a step", f"MB each of {n} ranks sends", "ms a step"],
).set_index(["model", "trained"])
display(steps.round(1))
adapter, whole = (steps.loc["SmolLM2 135M"].loc[way] for way in ("LoRA r 16, all linear", "all weights"))
Markdown(
    f"The adapter of SmolLM2 costs {adapter['MB a step']:.1f} MB a step, {adapter['ms a step']:.0f} ms "
    f"at the {speed:.2g} GB/s of this run; all weights would cost {whole['MB a step']:.0f} MB "
    f"and {whole['ms a step']:,.0f} ms, {whole['MB a step'] / adapter['MB a step']:.0f} times as much. "
    "DDP hides part of it behind the backward pass."
)

# %% tags=["check"]
# large arrays travel faster
assert len(parse_sizes(sizes)) < 8 or all(best[op] > 50 * curve[0]["bus_gb_per_s"] for op, curve in curves.items())
assert {r["op"] for r in rows} == set(COLLECTIVES) and all(r["min_s"] <= r["seconds"] <= r["max_s"] for r in timed)
assert adapter.numbers == 30 * 16 * sum(
    a + b for a, b in ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576))
)

# %% [markdown]
# ## What to remember
#
# - Small arrays cost latency, large ones bandwidth; the bus bandwidth tells how well the wires are used, for any number of ranks.
# - A collective that is fast and wrong trains a wrong model: every answer is checked before its time counts.
# - LoRA makes a step's talk small: ranks share the gradients of the adapter, not those of all weights.
