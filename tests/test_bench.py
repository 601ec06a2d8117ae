"Tables to measure with, which of several runs counts, and whether two sides are measured by the same rule."

import json
import time
from pathlib import Path

import pytest

import simpsons_llm.bench.preparation as B
import simpsons_llm.bench.talking as K
import simpsons_llm.bench.training as T
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.packing import EndToEnd
from simpsons_llm.data.prepare import load_data, split_scenes
from simpsons_llm.data.prompt import CHATML, TextMaker, small_tokenizer
from simpsons_llm.data.samples import scene_samples
from simpsons_llm.machine.cli import main
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.base import load_base, load_tokenizer
from simpsons_llm.model.infer import Sampling
from simpsons_llm.model.loss import PadRight, heldout_loss

CPU = find_device("cpu", "float32")
ALPACA = TextMaker(load_tokenizer("tiny"), "alpaca")


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


def alpaca_rows(data, most):
    "The seed's rows of prepared data."
    parts, report = load_data(data)
    return T.seed_rows(parts["train"], ALPACA, report["speakers"], most)


def test_the_seeds_way_counts_real_tokens_and_rows(data, tmp_path):
    "One step over all rows: each is heard once, filling is not, and the model sees it."
    parts, _ = load_data(data)
    few = next(n for n in range(1, 99) if len(T.seed_rows(parts["train"][:n], ALPACA, (), 300)) > 40)
    rows = T.seed_rows(parts["train"][:few], ALPACA, (), 300)
    assert 16 < len(rows) <= 128 and all(x["labels"] == x["input_ids"] for x in rows)
    heard, seen = [], []
    trainer = T.seed_trainer(
        "tiny", parts["train"][:few], (), CPU, str(tmp_path), 1, max_seq_len=300, heard=lambda *x: heard.append(x)
    )
    trainer.model.register_forward_pre_hook(
        lambda _, args, given: seen.append((given["input_ids"].numel(), given["labels"].ne(-100).sum())),
        with_kwargs=True,
    )
    trainer.train()
    real = sum(len(x["input_ids"]) for x in rows)
    assert (sum(n for n, _ in heard), sum(n for _, n in heard)) == (real, len(rows))
    assert sum(n for n, _ in seen) > real == sum(int(n) for _, n in seen)
    assert trainer.state.global_step == 1 and trainer.args.learning_rate == 3e-4


def test_lines_at_full_weight_are_counted():
    "Of a scene, Homer's lines; of the others', which weigh a tenth, none; laid end to end or filled up."
    scenes = split_scenes(read_script("springfield").scenes)["train"][:6]
    maker, homer = TextMaker(load_tokenizer("tiny")), ["Homer Simpson"]
    samples, _ = scene_samples(scenes, maker, homer, 5000, 0.1)
    wanted = sum(line.speaker in homer for s in scenes for line in s.lines)
    assert 0 < wanted < sum(len(s.lines) for s in scenes)
    for collate in (PadRight(0), EndToEnd(0)):
        assert T.lines_in(collate([x.features() for x in samples]), maker.end[-1]) == wanted


def test_the_books_way_is_timed_by_steps_and_lines(data):
    found = T.ours_train({"data": data, "base_model": "tiny", "device": "cpu", "max_seq_len": 600}, 0.3, "ours")
    parts, report = load_data(data)
    samples, _ = scene_samples(parts["train"], TextMaker(load_tokenizer("tiny")), report["speakers"], 600, 0.1)
    each = sum(len(x.input_ids) for x in samples) / sum(len(s.lines) for s in parts["train"])
    assert found["steps"] >= 2 and found["engine"] == "trainer" and found["samples"] == 2
    assert 0.7 * each < found["tokens_per_s"] / found["lines_per_s"] < 1.4 * each
    assert 0.3 <= found["steps"] * found["step_s"] < 3


def test_recorded_steps_are_timed_and_scored_too(data, monkeypatch):
    "The engine of accelerators, with a stand-in for their graphs."
    from test_speed import Played

    from simpsons_llm.train import speed

    monkeypatch.setattr(speed, "graph_class", lambda device: Played)
    monkeypatch.setattr(speed, "Recorded", Played)
    settings = {"data": data, "base_model": "tiny", "device": "cpu", "max_seq_len": 600, "compile": "graph"}
    found = T.ours_train(settings, 0.3, "ours")
    assert found["engine"] == "loop" and found["steps"] >= 2 and found["lines_per_s"] > 0
    more = {"scores": 2, "lines": 4, "max_seq_len": 400}
    fast, plain = (T.ours_quality({**settings, "max_steps": 4, "compile": c}, **more) for c in ("graph", "none"))
    for a, b in zip(fast["curve"], plain["curve"], strict=True):
        assert abs(a["loss_nats"] - b["loss_nats"]) < 1e-4 and (a["step"], a["tokens"]) == (b["step"], b["tokens"])


def test_the_clock_leaves_out_what_comes_first(monkeypatch):
    now = iter([0.0, 10.0, 12.0, 13.0])
    monkeypatch.setattr(T.time, "perf_counter", lambda: next(now))
    told = []

    class Told:
        total = 3.0

        def __call__(self, done, note, over):
            told.append((done, over))

    monkeypatch.setattr(T, "Progress", lambda *_: Told())
    pace = T.Pace(CPU, 3.0, warmups=2)
    assert [pace(n, 1) for n in (100, 100, 30, 60)] == [False, False, False, True]
    # the last two steps, of two seconds and one
    assert pace.result() == {"steps": 2, "step_s": 1.5, "tokens_per_s": 30.0, "lines_per_s": 2 / 3}
    assert told == [(2.0, False), (3.0, True)]
    with pytest.raises(ValueError, match="ended before a step could be timed"):
        T.Pace(CPU, 3.0).result()


def test_a_clock_stands_still_while_it_is_stopped(monkeypatch):
    now = iter([0.0, 2.0, 50.0, 53.0, 54.0])
    monkeypatch.setattr(T.time, "perf_counter", lambda: next(now))
    watch = T.Watch(CPU)
    watch.go()
    watch.lap()  # 2 s
    watch.stop()
    watch.go()  # at 50
    watch.go()  # runs already
    watch.lap()  # 3 s
    watch.lap()  # 1 s
    assert watch.seconds == 6.0


@pytest.mark.parametrize("speakers", [(), ("Homer Simpson",)])
def test_both_forms_score_the_same_words_after_the_same_lines(speakers):
    "Also where the longer form has no room for all ten lines: then the shorter one gets as few."
    tokenizer = load_tokenizer("tiny")
    scenes, makers = split_scenes(read_script("springfield").scenes)["valid"], [TextMaker(tokenizer), ALPACA]
    counts = []
    for most in (5000, 700, 330):
        script, alpaca = T.same_lines(scenes, makers, speakers, most)
        assert len(script) == len(alpaca) and max(len(x.input_ids) for x in alpaca) <= most
        for pair in zip(script, alpaca):
            said, before = [], []
            for x in pair:
                first = x.loss_weights.index(1.0)
                assert x.loss_weights[first:] == [1.0] * (len(x.input_ids) - first)  # the line ends the sample
                said.append(tokenizer.decode(x.input_ids[first:]))
                before.append(tokenizer.decode(x.input_ids[:first]))
            assert said[0] == said[1] and said[0].startswith(" ") and "\n" not in said[0]
            who = before[0].rsplit("\n", 1)[1]
            assert before[1].endswith(f"### Response:\n{who}") and (not speakers or who == "Homer Simpson:")
            shown = before[1].split("### Input:\n")[1].split("\n\n### Response:")[0]
            assert before[0] == f"{shown}\n{who}"
        counts.append(len(script))
        assert {len(x) for x in T.same_lines(scenes, makers, speakers, most, most=7)} == {7}
    assert counts[0] == sum(not speakers or line.speaker in speakers for s in scenes for line in s.lines)
    assert counts[0] >= counts[1] >= counts[2] > 0
    with pytest.raises(ValueError, match="no line to score fits into 40 tokens"):
        T.same_lines(scenes, makers, speakers, 40)
    with pytest.raises(ValueError, match="chat has others"):
        T.same_lines(scenes, [TextMaker(small_tokenizer(600, *CHATML), "chat")], speakers)


def test_both_sides_start_from_the_base_and_score_the_same(data):
    "The first score of each is the base's on its own form of the same lines."
    more = {"scores": 2, "lines": 10, "max_seq_len": 400}
    seed = T.seed_quality(data, "tiny", "cpu", steps=2, **more)
    settings = {"data": data, "base_model": "tiny", "device": "cpu", "max_seq_len": 600, "max_steps": 4}
    ours = T.ours_quality(settings, **more)
    assert (seed["lines"], seed["scored_tokens"]) == (ours["lines"], ours["scored_tokens"]) and seed["lines"] == 10
    parts, report = load_data(data)
    model, tokenizer = load_base("tiny", CPU)
    forms = T.same_lines(parts["valid"], [TextMaker(tokenizer), ALPACA], report["speakers"], 400, most=10)
    for side, form in zip((ours, seed), forms):
        assert abs(side["curve"][0]["loss_nats"] - heldout_loss(model, form, 0)) < 1e-4
        assert side["curve"][0]["train_s"] == 0 == side["curve"][0]["tokens"] == side["curve"][0]["step"]
        times = [r["train_s"] for r in side["curve"]]
        assert times == sorted(times) and times[-1] > 0 and side["curve"][-1]["tokens"] > 0
    assert [r["step"] for r in seed["curve"]] == [0, 1, 2] and [r["step"] for r in ours["curve"]] == [0, 2, 4]
    # two steps of 128 rows
    rows = alpaca_rows(data, 400)
    mean = sum(len(x["input_ids"]) for x in rows) / len(rows)
    assert 0.8 * 256 * mean < seed["curve"][-1]["tokens"] < 1.2 * 256 * mean


def test_scoring_and_saving_take_no_time(data, monkeypatch):
    "Both clocks stand still while a model is scored, however long that takes."
    import simpsons_llm.train.finetune as F
    import simpsons_llm.train.lifecycle as L

    def slow(*_, **__):
        time.sleep(1.5)
        return 5.0 - next(fall)

    fall = (k / 100 for k in range(99))
    for module in (T, F):
        monkeypatch.setattr(module, "heldout_loss", slow)
    monkeypatch.setattr(L.Job, "score", lambda self, split: 5.0)
    monkeypatch.setattr(L, "require", lambda *_: None)  # the loss of the best step is made up, too
    few = {"scores": 2, "lines": 4, "max_seq_len": 400}
    settings = {"data": data, "base_model": "tiny", "device": "cpu", "max_seq_len": 600, "max_steps": 4}
    begin = time.perf_counter()
    ours = T.ours_quality(settings, **few)
    wall = time.perf_counter() - begin
    assert ours["curve"][-1]["train_s"] < wall - 3.0 and ours["curve"][-1]["train_s"] < 1.5
    begin = time.perf_counter()
    seed = T.seed_quality(data, "tiny", "cpu", steps=2, **few)
    assert seed["curve"][-1]["train_s"] < time.perf_counter() - begin - 4.5


def test_ours_stops_when_it_is_there(data):
    more = {"scores": 4, "lines": 4, "max_seq_len": 400}
    settings = {"data": data, "base_model": "tiny", "device": "cpu", "max_seq_len": 600, "max_steps": 8}
    settings |= {"learning_rate": 3e-3}
    whole = T.ours_quality(settings, **more)["curve"]
    assert [r["step"] for r in whole] == [0, 2, 4, 6, 8] and whole[2]["loss_nats"] < whole[1]["loss_nats"]
    # the loss of step 4 is the goal; the fall to it is one, too
    for goals in (
        {"goal": whole[2]["loss_nats"], "gain": 0.0},
        {"goal": 99.0, "gain": whole[0]["loss_nats"] - whole[2]["loss_nats"]},
    ):
        short = T.ours_quality(settings, **goals, **more)["curve"]
        assert [r["step"] for r in short][:3] == [0, 2, 4] and short[-1]["step"] == 5
        assert all(abs(a["loss_nats"] - b["loss_nats"]) < 1e-5 for a, b in zip(whole[:3], short))
    only_one = T.ours_quality(settings, goal=99.0, gain=9.0, **more)["curve"]
    assert only_one[-1]["step"] == 8  # both goals must be reached


def test_time_to_the_seeds_best():
    seed = [T.score_row("seed", k, 10.0 * k, 100 * k, loss) for k, loss in enumerate([4.0, 3.9, 3.8, 3.85])]
    ours = [T.score_row("ours", k, 1.0 * k, 10 * k, loss) for k, loss in enumerate([3.9, 3.85, 3.75, 3.65])]
    rows = T.quality_rows(ours, seed, "x", "cpu")
    assert T.seeds_best(seed)[0] == 3.8 and abs(T.seeds_best(seed)[1] - 0.2) < 1e-9
    found = {r["name"].split(": ")[1]: (r["ours"], r["seed"], r["ratio"]) for r in rows}
    assert found["training to 3.8000 nats per token"] == (2.0, 20.0, 10.0)
    assert found["tokens read to 3.8000 nats per token"] == (20, 200, 10.0)
    assert found["training to 0.2000 nats below the base"] == (3.0, 20.0, 20 / 3)
    assert found["the base in each form"] == (3.9, 4.0, None) and found["the best that was scored"] == (3.65, 3.8, None)
    # a side that learned nothing sets no fall as a goal
    flat = [{**r, "loss_nats": 4.0 + r["step"]} for r in seed]
    assert len(T.quality_rows(ours, flat, "x", "cpu")) == 4 and T.seeds_best(flat) == (5.0, -1.0)


def test_the_seed_talks_with_beams_and_ours_merged(monkeypatch):
    "What each side asks, with which model; all answer the same questions with as many tokens."
    calls = []

    def spy(module_call):
        def call(model, maker, requests, sampling, *more, **given):
            calls.append((hasattr(model, "disable_adapter"), len(requests), sampling))
            return module_call(model, maker, requests, sampling, *more, **given)

        return call

    monkeypatch.setattr(K, "generate_exactly", spy(K.generate_exactly))
    monkeypatch.setattr(K, "finish_lines", spy(K.finish_lines))
    monkeypatch.setattr(K, "bench_answer", spy(K.bench_answer))
    for side, beams, adapter in (("seed", 5, True), ("peer", 1, True), ("ours", 1, False)):
        calls.clear()
        found = K.talk_side(side, "", "tiny", 3, 6, 2, "cpu")
        assert {c[0] for c in calls} == {adapter} and {c[1] for c in calls} == {1, 3}
        assert {(c[2].num_beams, c[2].max_new_tokens) for c in calls} == {(beams, 6)}
        assert found["one"] > 0 and found["many"] > 0 and found["first_s"] > 0
        assert ("one_faster" in found) == (side == "ours") and "many_faster" not in found
    with pytest.raises(ValueError, match="expected ours, seed, peer"):
        K.talk_side("theirs", "", "tiny", 3, 6, 2, "cpu")


def test_answers_are_endless():
    "Ours says as many tokens as it is asked for, also where a line would have ended."
    model, tokenizer = load_base("tiny", CPU)
    maker, passes = TextMaker(tokenizer), []
    model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    wild = Sampling(max_new_tokens=400, temperature=2.0, top_k=0, top_p=1.0)
    K.finish_lines(model.eval(), maker, K.some_requests(1), wild)
    ended = len(passes)
    passes.clear()
    K.finish_lines(model, K.endless(maker), K.some_requests(1), wild)
    assert ended < 400 <= len(passes)
    assert len(K.some_requests(500)) == 500 and len({len(r[1]) for r in K.some_requests(500)}) == 1


def test_who_falls_silent_early_is_not_fast():
    "A side that draws fewer tokens than asked for is an error, not a record."
    model, tokenizer = load_base("tiny", CPU)
    short, cut = Sampling(max_new_tokens=6), model.generate
    K.generate_exactly(model, TextMaker(tokenizer), K.some_requests(2), short)
    model.generate = lambda **given: cut(**given)[:, :-1]
    with pytest.raises(ValueError, match="6 tokens were to be drawn, and 5 were"):
        K.generate_exactly(model, TextMaker(tokenizer), K.some_requests(2), short)


def test_commands_report_what_processes_found(tmp_path, monkeypatch, capsys):
    "Rows as a table and as JSON; more lines in a second are better, fewer GiB are."
    monkeypatch.chdir(tmp_path)
    one = {"steps": 3, "step_s": 0.5, "lines_per_s": 20.0, "tokens_per_s": 300.0, "peak_mem_gib": 1.0}
    sides = {
        "ours_train": {**one, "engine": "trainer", "samples": 2},
        "seed_train": {**one, "lines_per_s": 2.0, "peak_mem_gib": 4.0},
    }
    monkeypatch.setattr(T, "in_process", lambda f, **_: sides[f.split(":")[1]])
    assert (
        main(["bench", "train", "--base-model", "tiny", "--device", "cpu", "--seconds", "1", "--json", "t.json"]) == 0
    )
    lines, tokens, step, memory = json.loads(Path("t.json").read_text())
    assert (lines["ratio"], tokens["ratio"], step["ratio"], memory["ratio"]) == (10.0, 1.0, None, 4.0)
    assert step["ours"] == 500.0 and lines["unit"] == "lines/s" and "10 x" in capsys.readouterr().out

    asked = {}

    def quality(f, **given):
        asked[f.split(":")[1]] = given
        side = "seed" if "seed" in f else "ours"
        curve = [T.score_row(side, k, (10.0 if side == "seed" else 2.0) * k, 9 * k, 4.0 - k / 9) for k in range(3)]
        parts, report, _ = T.run_data(T.FinetuneConfig())
        form = T.same_lines(parts["valid"], [ALPACA], report["speakers"], 256, most=5)[0]
        return {"curve": curve, "lines": len(form), "scored_tokens": sum(x.learned for x in form)}

    monkeypatch.setattr(T, "in_process", quality)
    words = "bench quality --base-model tiny --device cpu --lines 5 --seed-steps 2 -p learning_rate 1e-3 --json q.json"
    assert main([*words.split(), "--curve", "out/q.jsonl", "--plot", "q.png"]) == 0
    rows = json.loads(Path("q.json").read_text())
    assert rows[0]["ratio"] == 5.0 and asked["ours_quality"]["settings"]["learning_rate"] == 1e-3
    assert asked["ours_quality"]["goal"] == 4.0 - 2 / 9 and asked["seed_quality"]["steps"] == 2
    assert len(Path("out/q.jsonl").read_text().splitlines()) == 6 and Path("q.png").stat().st_size > 1000

    speed = {"ours": 9.0, "seed": 3.0, "peer": 6.0}
    monkeypatch.setattr(K, "in_process", lambda f, side, **_: dict.fromkeys(("one", "many", "first_s"), speed[side]))
    assert main(["bench", "infer", "--base-model", "tiny", "--device", "cpu", "--json", "i.json"]) == 0
    one, many, first = json.loads(Path("i.json").read_text())
    assert (one["ratio"], many["peer"]) == (3.0, 6.0) and abs(first["ratio"] - 1 / 3) < 1e-9
    assert "peer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words,says",
    [
        ("train --seconds 0", "expected more than 0"),
        ("train --recipe seed --micro-batch-size 12", "not a multiple"),
        ("train --micro-batch-size 0", "micro_batch_size=0"),
        ("train --data nowhere", "no data at nowhere"),
        ("train --base-model nowhere", "no base model"),
        ("quality -p learning_rat 1e-3", "did you mean learning_rate"),
        ("quality -p data x", "sets it itself"),
        ("quality --scores 0", "scores=0"),
        ("quality --base-model tiny -p template chat -p view rows", "chat"),
        ("infer --adapter nowhere", "no adapter in nowhere"),
        ("infer --tokens 1", "tokens=1"),
        ("infer --runs 1", "runs=1"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, says, capsys):
    assert main(["bench", *words.split(), "--device", "cpu"]) == 2 and says in capsys.readouterr().err
