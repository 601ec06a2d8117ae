"Prepared data, windows of long scenes, and samples that are kept."

import pytest

from simpsons_llm.data.dataset import cache_key, kept_samples
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prepare import PrepareConfig, load_data, prepare
from simpsons_llm.data.prompt import CHATML, READ, TextMaker, byte_tokenizer, small_tokenizer
from simpsons_llm.data.samples import Sample, scene_samples

SCENES = [s for s in read_script("springfield").scenes if len(s.lines) > 12][:6]


@pytest.fixture(scope="module")
def maker():
    return TextMaker(small_tokenizer(600))


def lines_in(body, blocks, since):
    "Which lines, from a to before b, a window holds that goes on from line `since`."
    for a in range(since + 1):
        b, rest = a, body
        while rest and b < len(blocks) and rest[: len(blocks[b])] == blocks[b]:
            rest, b = rest[len(blocks[b]) :], b + 1
        if not rest and b > since:
            return a, b


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_a_window_begins_with_the_end_of_the_one_before_which_is_read_and_not_learned(overlap, maker):
    "As many whole lines as fit into the share."
    most, repeats = 200, []
    for scene in SCENES:
        opening, end = maker.heading(scene.location), 0
        blocks = [
            maker.name(line.speaker) + read + maker.end for line, (read, _) in zip(scene.lines, maker.said(scene.lines))
        ]
        windows, too_long = scene_samples([scene], maker, max_seq_len=most, overlap=overlap)
        assert len(windows) > 1 and not too_long
        for number, w in enumerate(windows):
            a, b = lines_in(w.input_ids[len(opening) :], blocks, end)
            repeated = sum(map(len, blocks[a:end]))
            weights, roles = w.loss_weights[len(opening) :], w.roles[len(opening) :]
            assert not any(weights[:repeated]) and set(roles[:repeated]) <= {READ}, (
                "what is repeated was learned before"
            )
            assert READ not in roles[repeated:] and any(weights[repeated:])
            fits = min(overlap * most, most - len(opening) - len(blocks[end])) if number else 0
            assert repeated <= fits and (a == 0 or repeated + len(blocks[a - 1]) > fits), (
                "as many lines as fit, and no more"
            )
            if number:
                repeats.append(end - a)
            end = b
        assert end == len(blocks)
    assert sum(map(bool, repeats)) > len(repeats) / 2


def test_windows_repeat_nothing_where_nothing_may_be_repeated(maker):
    samples, _ = scene_samples(SCENES, maker, max_seq_len=200, overlap=0.0)
    assert not any(READ in x.roles for x in samples)


def test_padding_is_never_the_end_of_an_answer():
    for pad in ("<eos>", None):
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = pad
        with pytest.raises(ValueError, match="pad"):
            TextMaker(tokenizer)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "Ċ"  # a line end, at which an answer in the script form ends
    with pytest.raises(ValueError, match="pad"):
        TextMaker(tokenizer)
    assert TextMaker(tokenizer, "alpaca")


def test_kept_samples_are_used_for_the_same_text_alone(tmp_path):
    tokenizer, options = (
        small_tokenizer(300, *CHATML),
        dict(view="scenes", max_seq_len=100, context_weight=0.1, targets=["Homer Simpson"]),
    )
    makers = [
        TextMaker(t, form) for t in (tokenizer, small_tokenizer(301, *CHATML)) for form in ("script", "alpaca", "chat")
    ]
    keys = [cache_key(m, "data", **options) for m in makers]
    keys += [cache_key(makers[0], "other data", **options)] + [
        cache_key(makers[0], "data", **{**options, **other})
        for other in (dict(view="rows"), dict(max_seq_len=101), dict(context_weight=0.0), dict(targets=[]))
    ]
    for i, key in enumerate(keys):
        samples, facts, kept = kept_samples(
            key, lambda: ({"train": [Sample([i], [1.0], b"\3")]}, {"number": i}), tmp_path
        )
        assert not kept and facts == {"number": i} and samples["train"][0].input_ids == [i]
    for i, key in enumerate(keys):
        samples, facts, kept = kept_samples(key, lambda: pytest.fail("made again"), tmp_path)
        assert kept and facts == {"number": i} and samples["train"] == [Sample([i], [1.0], b"\3")]


def test_each_window_of_a_chat_repeats_whole_turns():
    maker = TextMaker(small_tokenizer(600, *CHATML), "chat")
    lines = tuple(
        Line(1, i, who, f"This is line number {i} of a long talk.")
        for i, who in enumerate(["Marge Simpson", "Homer Simpson"] * 12)
    )
    windows, _ = scene_samples([Scene(1, 0, "Home", lines)], maker, ["Homer Simpson"], max_seq_len=250, overlap=0.5)
    ends = [sum(w == 1 and t == maker.end[-1] for t, w in zip(x.input_ids, x.loss_weights)) for x in windows]
    read = [
        sum(w == 0 and r == READ and t == maker.end[-1] for t, w, r in zip(x.input_ids, x.loss_weights, x.roles))
        for x in windows
    ]
    assert len(windows) > 2 and sum(ends) == 12 and not read[0] and all(read[1:])


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_prepared_data_that_was_changed_or_is_incomplete_is_refused(name, tmp_path):
    prepare(PrepareConfig(out=str(tmp_path)))
    file = tmp_path / f"{name}.jsonl"
    file.write_text(file.read_text(encoding="utf8").replace("Homer", "Homre", 1), encoding="utf8")
    with pytest.raises(ValueError, match=f"{name}.jsonl is missing or not what prepare wrote"):
        load_data(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{name}.jsonl is missing"):
        load_data(tmp_path)
