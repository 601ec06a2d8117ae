"Tables to measure with, and which of several runs counts."

import pytest

import simpsons_llm.bench.preparation as B
from simpsons_llm.data.formats import read_script


def test_a_table_of_any_length_is_a_whole_script(tmp_path):
    "Three times as long as the book's: no row repeats another's place or id, so none is rejected."
    book = read_script("springfield")
    rows = book.account()["rows"]
    grown = read_script(B.varied_table(tmp_path / "x.csv", 3 * rows + 10))
    assert grown.account()["rows"] == 3 * rows + 10 and not grown.rejected and not grown.notes
    assert len({s.episode for s in grown.scenes}) >= 3 * len({s.episode for s in book.scenes})
    again, other = (B.varied_table(tmp_path / f"{seed}.csv", 500, seed).read_text() for seed in (0, 1))
    assert again == B.varied_table(tmp_path / "y.csv", 500).read_text() != other


def test_the_run_in_the_middle_counts(monkeypatch):
    for seconds, middle in (([3, 1, 2], 2), ([5.0, 1.0, 9.0, 2.0, 7.0], 5.0), ([4], 4)):
        left = iter(seconds)
        monkeypatch.setattr(
            B, "in_process", lambda function, **arguments: {"seconds": next(left), "function": function, **arguments}
        )
        assert B.median_of(len(seconds), "bench.preparation:ours_prepare", table="x") == {
            "seconds": middle,
            "function": "bench.preparation:ours_prepare",
            "table": "x",
        }


def test_a_ratio_above_one_means_that_ours_is_better():
    assert B.bench_row("x", 2.0, 6.0)["ratio"] == 3.0 and B.bench_row("x", 2.0)["ratio"] is None
    assert B.bench_row("x", 6.0, 2.0, "tokens/s", better="more")["ratio"] == 3.0
    assert B.bench_row("x", 6.0, 2.0, better="neither")["ratio"] is None
    # nothing to divide by, or not reached
    assert B.bench_row("x", 0.0, 6.0)["ratio"] is None and B.bench_row("x", None, 6.0)["ratio"] is None
    with pytest.raises(ValueError, match="expected less, more or neither"):
        B.bench_row("x", 1.0, 2.0, better="tokens/s")
