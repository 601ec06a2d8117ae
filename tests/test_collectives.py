"Collectives between two real ranks, wrong answers, missing operations, and what is refused."

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from simpsons_llm.machine.device import Ranks
from simpsons_llm.machine.distributed import free_port
from simpsons_llm.ranks import collectives as C
from simpsons_llm.ranks.collectives import (
    CollectivesConfig,
    bus_factor,
    in_bytes,
    make_case,
    measure,
    on_ranks,
    parse_dtypes,
    parse_sizes,
    pattern,
    plot_bandwidth,
    table_of,
)

SIZES, DTYPES = (1, 7, 1000, 5001), ("float32", "bfloat16")


@pytest.fixture(scope="module")
def rows():
    "Two ranks that the book starts itself, once."
    return measure(CollectivesConfig(sizes="1,7,1000,5001", warmup=1, repeats=3, device="cpu"), 2)


# ---- numbers and words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 8, 64, 1000])
def test_what_a_ring_sends_gives_the_factors(n):
    "Count the pieces that leave a rank in a ring, piece by piece; a broadcast's root sends everything once."
    # pieces of 1/n of the array
    ring = {"reduce-scatter": n - 1, "all-gather": n - 1, "all-reduce": 2 * (n - 1)}
    for op, pieces in ring.items():
        assert bus_factor(op, n) == pytest.approx(pieces / n)
    assert bus_factor("broadcast", n) == 1


@pytest.mark.parametrize("op, n", [("all-reduce", 1), ("all-reduce", 0), ("gossip", 2)])
def test_factors_that_cannot_be(op, n):
    pytest.raises(ValueError, bus_factor, op, n).match("expected")


@pytest.mark.parametrize("op", C.COLLECTIVES)
def test_what_a_row_says(op):
    "Three of four ranks are pretended, and the clock."
    with (
        patch.object(C, "find_ranks", lambda: Ranks(0, 0, 4, 4, "env")),
        patch.object(C, "complete_env"),
        patch.object(C, "rank_env"),
        patch.object(C, "join_group", lambda *a: "gloo"),
        patch.object(C, "leave_group"),
        patch.object(C, "lacking", lambda *a: ""),
        patch.object(C, "time_case", lambda *a: [0.003, 0.001, 0.002, 0.1]),
        patch.dict(C.COLLECTIVES, {op: C.COLLECTIVES[op]}, clear=True),
    ):
        (row,) = C.bench_collectives("1000001", "bfloat16", device="cpu")
    elements = 1_000_001 if op in ("broadcast", "all-reduce") else 1_000_004
    assert (row["size"], row["elements"], row["bytes"], row["min_s"], row["seconds"], row["max_s"]) == (
        1_000_001,
        elements,
        2 * elements,
        0.001,
        0.0025,
        0.1,
    )
    assert row["algorithm_gb_per_s"] == pytest.approx(2 * elements / 0.0025 / 1e9) and row["bus_gb_per_s"] / row[
        "algorithm_gb_per_s"
    ] == pytest.approx({"broadcast": 1, "all-reduce": 1.5}.get(op, 0.75))


@pytest.mark.parametrize(
    "given, found",
    [
        ("4", [4]),
        ("8, 2,8", [2, 8]),
        ((3, 1), [1, 3]),
        ("seed", [2**k for k in range(20)] + [786_432]),
        ("auto", [4**k for k in range(11)]),
    ],
)
def test_sizes(given, found):
    assert parse_sizes(given) == found


def test_an_accelerator_gets_larger_sizes():
    assert parse_sizes("auto", "xpu")[-1] == 16 * 2**20 == parse_sizes("auto", "cuda")[-1]


@pytest.mark.parametrize("wrong", ["", "0", "-1,4", "1;2", "1.5", "1k", (), None, ("a",)])
def test_sizes_that_are_none(wrong):
    pytest.raises(ValueError, parse_sizes, wrong).match("expected auto, seed")


@pytest.mark.parametrize("wrong", ["", "float64", "float32,int8", ()])
def test_dtypes_that_are_none(wrong):
    pytest.raises(ValueError, parse_dtypes, wrong).match("expected some of float32")


def test_dtypes():
    assert parse_dtypes("bfloat16, float32,bfloat16") == ["bfloat16", "float32"]


@pytest.mark.parametrize(
    "n, text",
    [(1, "1 B"), (1000, "1000 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 * 2**20, "64 MiB"), (2**30, "1 GiB")],
)
def test_sizes_in_words(n, text):
    assert in_bytes(n) == text


@pytest.mark.parametrize(
    "wrong",
    [dict(sizes="0"), dict(dtypes="x"), dict(warmup=-1), dict(repeats=0), dict(device="gpu"), dict(backend="mpi")],
)
def test_settings_that_cannot_be(wrong):
    pytest.raises(ValueError, CollectivesConfig, **wrong).match(next(iter(wrong)))


def test_the_chapter_has_the_parameters_of_the_dataclass_and_the_same_words():
    from simpsons_llm.machine.job import field_help, find_chapter, same_parameters

    assert same_parameters(CollectivesConfig, "collectives")
    cells = json.loads(find_chapter("collectives").read_text(encoding="utf8"))["cells"]
    source = "".join(next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", [])))
    assert dict(re.findall(r"^(\w+) = .*?\s# (.*)$", source, re.M)) == field_help(CollectivesConfig)


# ---- data whose answer is known -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 85, 100, 256])
def test_any_order_of_adding_gives_the_same_exact_sum(n, dtype):
    data = [pattern([r], 600, 0, n, dtype) for r in range(n)]
    exact = sum(d.double() for d in data)
    assert all(d.min() >= 1 for d in data) and exact.max() <= 256
    for order in (range(n), reversed(range(n)), torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()):
        total = torch.zeros(600, dtype=dtype)
        for r in order:
            total += data[r]
        assert torch.equal(total.double(), exact)
    assert torch.equal(pattern(range(n), 600, 0, n, dtype).double(), exact)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 12, 32])
def test_ranks_and_pieces_differ(n):
    for size in (4**5, 4**8, 786_432):
        piece = -(-size // n)
        whole = pattern(range(n), n * piece, 0, n, torch.float32).view(n, piece)
        assert all(not torch.equal(whole[a], whole[a + 1]) for a in range(n - 1))
    data = [tuple(pattern([r], 64, 0, n, torch.float32).tolist()) for r in range(n)]
    assert len(set(data)) == n or n > 15  # with more ranks some repeat; each still counts in the sum
    missing = [pattern([r for r in range(n) if r != left], 64, 0, n, torch.float32) for left in range(n)]
    assert not any(torch.equal(m, pattern(range(n), 64, 0, n, torch.float32)) for m in missing)


def test_too_many_ranks_to_check():
    pytest.raises(ValueError, pattern, [0], 4, 0, 257, torch.float32).match("exact up to 256")


@pytest.mark.parametrize("op", C.COLLECTIVES)
@pytest.mark.parametrize("n, size", [(2, 1), (2, 9), (3, 9), (4, 4096), (5, 4096)])
def test_a_case_starts_wrong_and_ends_right(op, n, size):
    "What each rank must have, computed here from the ranks' own data alone."
    cases = [make_case(op, size, Ranks(r, r, n, n), torch.bfloat16) for r in range(n)]
    own, piece = [c.own for c in cases], -(-size // n)
    assert cases[0].elements == (size if op in ("broadcast", "all-reduce") else n * piece)
    for r, c in enumerate(cases):
        c.reset()
        assert c.mistake() or (op == "broadcast" and r == 0), "nothing was done, and it was not noticed"
        right = {
            "broadcast": lambda: own[0],
            "all-reduce": lambda: sum(own),
            "all-gather": lambda: torch.cat(own),
            "reduce-scatter": lambda: sum(own)[r * piece : (r + 1) * piece],
        }[op]()
        c.result.copy_(right)
        assert c.mistake() == ""
        c.result[-1] += 1
        assert c.mistake().startswith(f"position {len(right) - 1} has")
        c.result[-1] = float("nan")
        assert "nan" in c.mistake()


# ---- two real ranks -----------------------------------------------------------------------------------------------


def test_all_that_was_asked_for_was_measured(rows):
    assert [(r["op"], r["dtype"], r["size"]) for r in rows] == [
        (op, d, s) for op in C.COLLECTIVES for d in DTYPES for s in SIZES
    ]
    for r in rows:
        assert r["world_size"] == 2 and r["backend"] == "gloo" and r["device"] and r["note"] == ""
        assert r["elements"] == (r["size"] if r["op"] in ("broadcast", "all-reduce") else r["size"] + r["size"] % 2)
        assert r["bytes"] == r["elements"] * {"float32": 4, "bfloat16": 2}[r["dtype"]]
        assert 0 < r["min_s"] <= r["seconds"] <= r["max_s"] < 10
        assert r["bus_gb_per_s"] == pytest.approx(bus_factor(r["op"], 2) * r["bytes"] / r["seconds"] / 1e9)


def test_table_and_picture(rows, tmp_path):
    table = table_of(rows, dtype="bfloat16")
    assert list(table.columns) == list(C.COLLECTIVES) and list(table.index) == list(SIZES) and table.notna().all().all()
    without = [r for r in rows if r["op"] != "all-gather"] + [
        {"op": "all-gather", "dtype": "float32", "size": None, "seconds": None, "note": "not available: x"}
    ]
    assert "all-gather" not in table_of(without)

    def drawn(some):
        return [line for ax in plot_bandwidth(some) for line in ax.get_lines()]

    lines = drawn(rows)
    assert len(lines) == 8 and sorted(lines[0].get_xdata()) == [4, 28, 4000, 20004]
    assert len(drawn(without)) == 6
    plot_bandwidth(rows, file=tmp_path / "a" / "b.png")
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG")


BROKEN = """
import json, torch
from simpsons_llm.ranks import collectives as C
from simpsons_llm.machine.device import find_device, find_ranks
from simpsons_llm.machine.distributed import join_group
ranks, right, said = find_ranks(), dict(C.COLLECTIVES), []
join_group(ranks, find_device("cpu"), timeout_s=60)
calls = [0]
def off_by_one(result, own):
    right["all-reduce"](result, own)
    if ranks.rank == 1 and len(result) == 100: result[42] += 1
def late(result, own):
    right["all-gather"](result, own)
    calls[0] += 1
    if calls[0] == 6 and ranks.rank == 0: result[3] = 0  # once: the last call of the second size
def nothing(result, own): pass
def exchanged(result, own): right["reduce-scatter"](result, torch.cat(own.chunk(2)[::-1]))
def missing(result, own): raise RuntimeError("this backend does not support it\\nand more")
def failing(result, own): raise RuntimeError("connection reset")
for op, broken in (("all-reduce", off_by_one), ("all-gather", late), ("broadcast", nothing),
                   ("reduce-scatter", exchanged), ("reduce-scatter", missing), ("broadcast", failing)):
    C.COLLECTIVES.clear(); C.COLLECTIVES[op] = broken
    if broken is missing: C.COLLECTIVES["broadcast"] = right["broadcast"]
    try: said.append([r["note"] for r in C.bench_collectives("7,100", "bfloat16", 1, 2, "cpu")])
    except (C.WrongAnswer, RuntimeError) as e: said.append(f"{type(e).__name__}: {e}")
C.COLLECTIVES.clear(); C.COLLECTIVES["broadcast"] = missing
try: C.bench_collectives("7", "bfloat16", 1, 2, "cpu")
except ValueError as e: said.append(str(e))
print(json.dumps(said))
"""


def test_a_collective_that_is_wrong_is_noticed_by_all_ranks_and_a_missing_one_is_said():
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BROKEN],
            env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    first, second = [json.loads(p.communicate(timeout=60)[0].splitlines()[-1]) for p in started]
    assert first == second  # nobody goes on alone
    off, late, nothing, exchanged, missing, failing, none = first
    assert off.startswith("WrongAnswer: all-reduce of 100 bfloat16 numbers is wrong on rank 1 of 2: position 42 has")
    assert late.startswith("WrongAnswer: all-gather of 100 bfloat16 numbers is wrong on rank 0 of 2: position 3 has 0")
    assert nothing.startswith("WrongAnswer: broadcast of 7 bfloat16 numbers is wrong on rank 1 of 2: position 0 has")
    assert exchanged.startswith("WrongAnswer: reduce-scatter of 8 bfloat16 numbers is wrong on rank 0 of 2")
    assert missing == ["not available: this backend does not support it", "", ""]
    assert failing == "RuntimeError: connection reset"
    assert none.startswith("gloo has none of the collectives for cpu: not available: this backend does not support it")


# ---- one process alone, and what is refused ------------------------------------------------------------------------


def test_one_process_alone_says_what_to_do():
    with patch.object(C, "find_ranks", lambda: Ranks()):
        pytest.raises(ValueError, C.bench_collectives).match(
            r"bench collectives -n 2, simpsons-llm launch -n 2 collectives or mpirun"
        )


@pytest.mark.parametrize(
    "config, n, says",
    [
        ({}, 1, "1 rank on cpu has nobody to talk to"),
        ({"backend": "nccl"}, 2, "'nccl' does not serve cpu"),
        ({"device": "xpu"}, 0, "PyTorch"),
    ],
)
def test_ranks_that_cannot_be_started(config, n, says):
    if config.get("device") == "xpu" and torch.xpu.is_available():
        pytest.skip("there is an XPU here")
    with (
        patch.object(C, "on_ranks", lambda *a, **k: pytest.fail("ranks were started")),
        pytest.raises(ValueError, match=says),
    ):
        measure(CollectivesConfig(**{"device": "cpu", **config}), n)


def test_the_slowest_rank_of_each_call_counts():
    "Two ranks are pretended, and the calls that warm up are left out."
    from types import SimpleNamespace

    from simpsons_llm.machine.device import find_device

    case = SimpleNamespace(
        op="all-reduce", elements=4, own=torch.zeros(4), reset=lambda: None, run=lambda: None, mistake=lambda: ""
    )
    with (
        patch.object(torch.distributed, "all_reduce", lambda tensor: None),
        patch.object(C, "gather", lambda mine: [([1.0, 5.0], ""), ([3.0, 2.0], "")] if len(mine[0]) == 2 else None),
    ):
        assert C.time_case(case, find_device("cpu"), 3, 2) == [3.0, 5.0]


def test_under_a_launcher_no_more_ranks_are_started():
    with (
        patch.object(C, "find_ranks", lambda: Ranks(0, 0, 4, 4, "mpich")),
        patch.object(C, "bench_collectives", lambda **k: ["row"]),
    ):
        assert measure(CollectivesConfig(sizes="4")) == measure(CollectivesConfig(sizes="4"), 4) == ["row"]
        pytest.raises(ValueError, measure, CollectivesConfig(), 2).match("mpich started 4; leave the number out")


def test_an_error_on_a_rank_arrives_here_in_one_sentence():
    with pytest.raises(RuntimeError, match=r"^rank [01] of 2 failed: TypeError: steps='many' was given; expected int$"):
        on_ranks("machine.job:coerce", 2, value="many", kind="int", name="steps")


@pytest.mark.parametrize(
    "kind, raised, says",
    [
        ("ValueError", ValueError, "^this is wrong$"),
        ("WrongAnswer", C.WrongAnswer, "^this is wrong$"),
        ("ConnectionError", ConnectionError, "^this is wrong$"),
        ("OSError", RuntimeError, "^rank 1 of 2 failed: OSError: this"),
        (None, RuntimeError, "exit code 1: no such thing"),
    ],
)
def test_errors_of_ranks_keep_their_kind(kind, raised, says):
    class Pretended:
        def __init__(self, command, stderr, **_):
            self.stdout, self.returncode, folder = [], 1, command[-3]
            if kind:
                Path(folder, "1.error").write_text(json.dumps([kind, "this is wrong"]))
            else:
                stderr.write("no such\nthing\n")
                stderr.flush()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    with patch.object(C.subprocess, "Popen", Pretended), pytest.raises(raised, match=says):
        on_ranks("x:y", 2)


def test_only_rank_0_writes(rows, tmp_path):
    for rank in (1, 0):
        with (
            patch.object(C, "find_ranks", lambda: Ranks(rank, rank, 2, 2, "torchrun")),
            patch.object(C, "bench_collectives", lambda **k: rows),
        ):
            assert C.collectives(CollectivesConfig(out=str(tmp_path / "run"))) == rows
        assert (tmp_path / "run").exists() is (rank == 0)
    found = json.loads((tmp_path / "run" / "collectives.json").read_text())
    assert (
        found["rows"] == rows
        and found["settings"]["repeats"] == 10
        and found["provenance"]["torch"]
        and (tmp_path / "run" / "collectives.png").is_file()
    )


def test_the_command(rows, tmp_path, capsys):
    from simpsons_llm.machine.cli import main

    gone = {
        "op": "all-gather",
        "dtype": "float16",
        "world_size": 2,
        "backend": "gloo",
        "device": "x",
        "size": None,
        "seconds": None,
        "note": "not available: no",
    }
    asked = []
    with patch.object(C, "measure", lambda config, n: asked.append((config, n)) or rows + [gone]):
        assert (
            main(
                [
                    "bench",
                    "collectives",
                    "-n",
                    "2",
                    "--sizes",
                    "seed",
                    "--repeats",
                    "3",
                    "--json",
                    str(tmp_path / "x" / "c.json"),
                    "--plot",
                    str(tmp_path / "c.png"),
                ]
            )
            == 0
        )
    said = capsys.readouterr().out
    assert asked == [(CollectivesConfig(sizes="seed", repeats=3), 2)]
    assert (
        "2 ranks, gloo" in said
        and "median of 3 calls" in said
        and "all-gather, float16: not available: no" in said
        and said.count("reduce-scatter, bfloat16") == 4
    )
    assert json.loads((tmp_path / "x" / "c.json").read_text()) == rows + [gone] and (tmp_path / "c.png").is_file()
    assert main(["bench", "collectives", "--sizes", "none"]) == 2 and "expected auto, seed" in capsys.readouterr().err
