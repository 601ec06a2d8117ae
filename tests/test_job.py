"Settings, progress and folders: what every job relies on."

import hashlib
from itertools import chain, repeat

import pytest

from simpsons_llm.machine import job as J


@pytest.mark.parametrize(
    "value, kind, wanted",
    [
        ("3", "int", 3),
        (3.0, "int", 3),
        ("1e3", "int", 1000),
        ("0.5", "float", 0.5),
        (2, "float", 2.0),
        ("false", "bool", False),
        ("1", "bool", True),
        ("0", "bool", False),
        ("None", "int | None", None),
        (None, "float | None", None),
        ("None", "str", "None"),
        (5, "str", "5"),
    ],
)
def test_coerce_keeps_what_was_meant(value, kind, wanted):
    found = J.coerce(value, kind, "steps")
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    "value, kind",
    [(2.5, "int"), ("2.5", "int"), ("many", "int"), (True, "int"), ("yes", "bool"), (None, "int"), ("inf", "int")],
)
def test_coerce_loses_nothing_on_the_way(value, kind):
    with pytest.raises(TypeError, match=r"^steps"):
        J.coerce(value, kind, "steps")


def test_progress_tells_share_and_time_left_and_not_too_often(monkeypatch, capsys):
    clock = chain([0, 10, 12, 40, 41], repeat(50))  # seconds at the start and at each call
    monkeypatch.setattr(J.time, "perf_counter", lambda: next(clock))
    tell = J.Progress(200, "train", every_s=5)
    for done in (50, 60, 160, 200):
        tell(done, "loss 1.5")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # nothing two seconds after a line, but always the last
    for line, parts in zip(
        lines,
        (
            ("train", "50/200 steps", " 25 %", "30 s left", "loss 1.5"),
            ("160/200", " 80 %", "10 s left"),
            ("200/200", "100 %", "41 s in all"),
        ),
    ):
        assert all(part in line for part in parts), line
    J.Progress(1, "train", show=False)(1)
    assert not capsys.readouterr().out


def test_sha256_is_that_of_the_whole_file(tmp_path):
    for size in (0, 10, 1 << 20, 3 * (1 << 20) + 7):
        data = bytes(range(256)) * (size // 256 + 1)
        (tmp_path / "x").write_bytes(data[:size])
        assert J.sha256(tmp_path / "x") == hashlib.sha256(data[:size]).hexdigest()


def test_set_aside_overwrites_no_earlier_run(tmp_path):
    for text in ("first", "second", "third"):
        (tmp_path / "summary.json").write_text(text)
        J.set_aside(tmp_path, ["summary.json", "rank0.ipynb"])
    assert [(tmp_path / "earlier" / n / "summary.json").read_text() for n in "123"] == ["first", "second", "third"]
    (tmp_path / "rank0.ipynb").write_text("third")
    # another part of the same run
    assert J.set_aside(tmp_path, ["rank0.ipynb"]) == tmp_path / "earlier" / "3"
    assert J.set_aside(tmp_path, ["rank0.ipynb"]) is None
