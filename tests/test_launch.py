"Hosts, reports and lists of runs; the launchers themselves are tested with real ranks."

import json
import subprocess

import pytest

from simpsons_llm.machine.job import write_json
from simpsons_llm.ranks.launch import first_host, job_error, launch, list_runs, read_hosts


@pytest.mark.parametrize(
    "text, n, wanted",
    [
        ("a,b", 4, [("a", 2), ("b", 2)]),
        ("a,b,c", 5, [("a", 2), ("b", 2), ("c", 1)]),
        ("a:3,b:1", 4, [("a", 3), ("b", 1)]),
        ("", 4, []),
        ("10.0.0.1, 10.0.0.2", 2, [("10.0.0.1", 1), ("10.0.0.2", 1)]),
    ],
)
def test_hosts(text, n, wanted):
    assert read_hosts(text, n) == wanted


def test_a_file_of_hosts(tmp_path):
    (tmp_path / "hosts").write_text("# the first two\nnode1 slots=4\nnode2:2  # smaller\n\n")
    assert read_hosts(str(tmp_path / "hosts"), 6) == [("node1", 4), ("node2", 2)]
    with pytest.raises(ValueError, match="6 ranks|4 \\+ 2"):
        read_hosts(str(tmp_path / "hosts"), 5)


@pytest.mark.parametrize("text, n", [("a,b,c", 2), ("a:3,b", 4), ("a:1,b:1", 3), (",", 2)])
def test_hosts_that_do_not_add_up(text, n):
    with pytest.raises(ValueError, match="hosts"):
        read_hosts(text, n)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node7", "node7"),
        ("node[01-04,07],login1", "node01"),
        ("a,b", "a"),
        ("n[3,5-9]-ib", "n3-ib"),
        ("gpu-[10-12]", "gpu-10"),
    ],
)
def test_the_first_host_of_slurm(nodes, first):
    assert first_host(nodes) == first


def report(folder, rank, at, error, **more):
    write_json(
        folder / f".failed-x-{rank}.json",
        {"rank": rank, "time": at, "status": "failed", "error": error, "code": 1, "follows": False, **more},
    )


def test_the_rank_that_failed_by_itself_is_named(tmp_path):
    "Not the one whose clock is behind, which failed because of it; and the summary says so."
    (tmp_path / "launcher.log").write_text("")
    report(tmp_path, 0, 10.0, "rank 0: RankFailed", follows=True)
    report(tmp_path, 1, 12.0, "rank 1: ValueError: the film is torn", code=2)
    report(tmp_path, 2, 13.0, "rank 2: OSError: later")
    (tmp_path / "summary.json").write_text('{"status": "running"}')
    error = job_error(tmp_path, 1, "torchrun", 3)
    assert str(error) == "rank 1: ValueError: the film is torn; all ranks were ended" and error.code == 2
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "status": "failed",
        "error": "rank 1: ValueError: the film is torn",
    }
    assert not list(tmp_path.glob(".failed-*"))


def test_a_rank_that_says_nothing_is_named(tmp_path):
    (tmp_path / "launcher.log").write_text("Killed\n")
    report(tmp_path, 0, 10.0, "rank 0 was interrupted", status="interrupted")
    assert "rank 1 ended without a word" in str(job_error(tmp_path, 1, "torchrun", 2))
    assert "its last words:\nKilled" in str(job_error(tmp_path, 9, "mpich", 2))


def test_runs_are_listed_without_what_was_set_aside(tmp_path):
    for place, status in (("a", "done"), ("b/c", "failed"), ("a/earlier/1", "done"), ("broken", None)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "summary.json").write_text(
            json.dumps({"status": status, "settings": {"view": "rows"}}) if status else "{half"
        )
    rows = {r["run"]: r for r in list_runs(tmp_path)}
    assert {k: r["status"] for k, r in rows.items()} == {
        str(tmp_path / "a"): "done",
        str(tmp_path / "b" / "c"): "failed",
        str(tmp_path / "broken"): "unreadable summary",
    }
    assert rows[str(tmp_path / "a")]["view"] == "rows"


@pytest.mark.parametrize(
    "given, says",
    [
        (
            {"global_batch_size": 3},
            "global_batch_size=3 was given with 2 ranks, which cannot share it; use a multiple of 2",
        ),
        ({"learning_rate": 7}, "learning_rate=7"),
        ({"max_step": 1}, "did you mean max_steps"),
        ({"base_model": "tiny", "seed": "many"}, "seed='many' was given"),
    ],
)
def test_what_cannot_be_is_refused_before_any_rank_starts(given, says, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises((ValueError, TypeError), match=says):
        launch("finetune", tmp_path / "x", 2, given)
    assert not (tmp_path / "x").exists()
