"Groups of ranks, the environment they need, and the doctor; XPUs are pretended."

import json
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from conftest import CLI, TINY, as_words
from test_device import pretend

from simpsons_llm.machine import distributed as M
from simpsons_llm.machine.device import Device, Ranks, complete_env, find_ranks
from simpsons_llm.machine.distributed import doctor, join_group, rank_env, who_am_i


def healthy(rows):
    assert rows and all(
        set(row) == {"item", "value", "ok", "hint"} and row["ok"] in (True, False, None) for row in rows
    )
    assert all(row["hint"] for row in rows if row["ok"] is not True)
    return {row["item"]: row for row in rows}


def test_doctor_never_raises():
    optional = {"intel-extension-for-pytorch", "oneccl-bind-pt"}

    def boom(*args, **kwargs):
        return 1 / 0

    for name in (
        "_version",
        "find_ranks",
        "find_device",
        "find_ipex",
        "memory_gib",
        "_cores",
        "_count",
        "_seen",
        "_name",
        "_talks",
    ):
        with patch.object(M, name, boom):
            rows = healthy(doctor())
        assert not any(rows[i]["ok"] is False for i in optional & set(rows))
        assert "ok" in rows["python"]
    with patch.object(M.shutil, "disk_usage", boom), patch.object(M.platform, "platform", boom):
        healthy(doctor())
    with patch.dict(sys.modules, {"torch": None}):
        assert healthy(doctor())["torch"]["ok"] is False


def test_doctor_of_a_pretended_machine():
    with pretend(xpu=2, xccl=False), patch.dict(os.environ, {"RANK": "1"}, clear=True):
        rows = healthy(doctor())
    assert rows["xpu:1"]["ok"] is True and "64 GiB, bfloat16" in rows["xpu:1"]["value"]
    assert rows["distributed"]["ok"] is False and rows["ranks"]["ok"] is False
    with pretend(), patch.dict(os.environ, {}, clear=True):
        assert healthy(doctor())["ranks"]["ok"] is True


# ---- the environment of a rank ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tile, hierarchy, ends",
    [
        ("0", None, "COMPOSITE"),
        ("1", None, "FLAT"),
        ("0", "FLAT", "FLAT"),
        ("1", "COMPOSITE", "COMPOSITE"),
        (None, None, None),
        ("yes", None, None),
    ],
)
def test_tiles(tile, hierarchy, ends):
    env = {k: v for k, v in (("IPEX_TILE_AS_DEVICE", tile), ("ZE_FLAT_DEVICE_HIERARCHY", hierarchy)) if v}
    rank_env(Ranks(), env)
    assert env.get("ZE_FLAT_DEVICE_HIERARCHY") == ends


def test_what_a_person_set_for_oneccl_stays():
    ranks = Ranks(1, 1, 4, 4, "mpich")
    for given in ({"CCL_PROCESS_LAUNCHER": "pmix"}, {"CCL_LOCAL_RANK": "0"}):
        env = dict(given)
        made = rank_env(ranks, env)
        assert not any(k.startswith("CCL_") for k in made) and env.items() >= given.items()
    made = rank_env(ranks, {})
    assert made == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "CCL_PROCESS_LAUNCHER": "none",
        "CCL_LOCAL_RANK": "1",
        "CCL_LOCAL_SIZE": "4",
        "CCL_ATL_TRANSPORT": "ofi",
    }
    over_hosts = rank_env(Ranks(3, 1, 4, 2, "mpich"), {"MASTER_ADDR": "127.0.0.1"})
    assert "CCL_ATL_TRANSPORT" not in over_hosts and over_hosts["GLOO_SOCKET_IFNAME"] == "lo"
    assert (
        rank_env(Ranks(3, 1, 4, 2, "mpich"), {"MASTER_ADDR": "no.such.host.invalid"}).get("GLOO_SOCKET_IFNAME") is None
    )


@pytest.mark.parametrize("local_rank", [0, 1])
def test_the_first_line_of_a_rank_on_pretended_cards(local_rank, monkeypatch):
    for k in [
        k
        for k in os.environ
        if k.startswith(("PMI", "OMPI", "SLURM", "RANK", "WORLD", "LOCAL", "MASTER", "CCL", "OMP_WAIT"))
    ]:
        monkeypatch.delenv(k)
    for k, v in dict(RANK=local_rank, WORLD_SIZE=2, LOCAL_RANK=local_rank, LOCAL_WORLD_SIZE=2, MASTER_PORT=1).items():
        monkeypatch.setenv(k, str(v))
    with patch.dict(os.environ), pretend(xpu=2):
        line = who_am_i()
    assert (
        line.startswith(f"rank {local_rank} of 2")
        and f"on xpu:{local_rank}, a xpu, bfloat16; ranks talk through xccl" in line
    )
    with patch.dict(os.environ), pretend(xpu=1):
        if local_rank:
            pytest.raises(ValueError, who_am_i).match("local rank 1 has no device")


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(dict(RANK="0", WORLD_SIZE="1"), id="two"),
        pytest.param(
            dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"), id="four", marks=pytest.mark.slow
        ),
        pytest.param(
            dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1"), id="where", marks=pytest.mark.slow
        ),
    ],
)
def test_one_rank_that_was_told_so_is_one_process(told, tmp_path, data):
    "As in a container or a job script that sets ranks for everything: no group, so nobody to meet."
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in names} | told
    words = [
        "finetune",
        "--data",
        data,
        "--run",
        "x",
        "--max-steps",
        "1",
        "--eval-steps",
        "1",
        *as_words(TINY),
    ]
    done = subprocess.run([*CLI, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "x" / "summary.json").read_text())["world_size"] == 1


def test_one_rank_with_a_place_to_meet_keeps_what_its_launcher_said():
    alone = dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    env = dict(alone)
    assert complete_env(find_ranks(env), env) == {} and env == alone


# ---- groups that cannot be right ----------------------------------------------------------------------------------


def joined(ranks, device, places, size=2, rank=0):
    "What `join_group` does in a group that is pretended to be there."
    from torch import distributed as dist

    begun = []
    with (
        patch.object(dist, "is_initialized", lambda: bool(begun)),
        patch.object(dist, "init_process_group", lambda name, **kw: begun.append((name, kw))),
        patch.object(dist, "get_world_size", lambda: size),
        patch.object(dist, "get_rank", lambda: rank),
        patch.object(M, "gather", lambda value: [value, *places][:size]),
        patch.object(torch.xpu, "set_device", lambda index: begun.append(("set", index))),
    ):
        return join_group(ranks, device), begun


def test_a_group_on_pretended_cards():
    with pretend(xpu=2):
        name, begun = joined(
            Ranks(0, 0, 2, 2, "torchrun"), Device("xpu", 0, "", 64, "bfloat16", "xccl"), [(M._host(), "xpu", 1)]
        )
    assert name == "xccl" and begun[0] == ("set", 0) and begun[1][0] == "cpu:gloo,xpu:xccl"


@pytest.mark.parametrize(
    "place, size, rank, says",
    [
        (("here", "xpu", 0), 2, 0, "both on xpu:0"),
        ((None, "xpu", 1), 4, 0, "torchrun says rank 0 of 2, the group says rank 0 of 4"),
        ((None, "xpu", 1), 2, 1, "the group says rank 1 of 2"),
    ],
)
def test_a_group_that_cannot_be_right_is_refused(place, size, rank, says):
    place = (M._host() if place[0] else "another", *place[1:])
    with pretend(xpu=2), pytest.raises(ValueError, match=says):
        joined(Ranks(0, 0, 2, 2, "torchrun"), Device("xpu", 0, "", 64, "bfloat16", "xccl"), [place], size, rank)


def test_the_older_backend_is_refused_where_it_is_missing():
    with pretend(xpu=2), pytest.raises(ValueError, match="oneccl-bind-pt"):
        join_group(Ranks(0, 0, 2, 2, "torchrun"), Device("xpu", 0, "", 64, "bfloat16", "xccl"), "ccl")
    with pretend(xpu=2, xccl=False), pytest.raises(ValueError, match="no xccl backend"):
        join_group(Ranks(0, 0, 2, 2, "torchrun"), Device("xpu", 0, "", 64, "bfloat16", ""))
