"Text for the model: the same for training and serving, for every kind of tokenizer."

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prompt import CHATML, LEARNED, TextMaker, Tokens, byte_tokenizer, prompt_ids, small_tokenizer
from simpsons_llm.data.samples import audit, cut_windows, row_samples, scene_samples


def word_pieces(kind):
    "A tokenizer like GPT-2's (bpe), Llama's (metaspace, begin token) or tiktoken's, which merges `.` and a line end."
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [f"{line.speaker}: {line.text}\n" for line in read_script("springfield").lines]
    if kind == "bpe":
        return small_tokenizer(1500)
    special = ["<pad>", "<bos>", "<eos>"]
    if kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            decoders.Metaspace(prepend_scheme="first"),
        )
        special += ["<unk>"]
    else:
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
            decoders.ByteLevel(),
        )
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=list(string.printable) if kind == "metaspace" else pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if kind == "metaspace":
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


MADE = {}
BRACKETS = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}<bos>[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} <eos>{% endif %}"
    "{% endfor %}"
)
CHATS = {"chat": CHATML[0], "chat in brackets": BRACKETS}
FORMS = ["script", "alpaca", *CHATS]


def maker_of(kind, form):
    if kind not in MADE:
        MADE[kind] = byte_tokenizer() if kind == "bytes" else word_pieces(kind)
        MADE[kind].add_special_tokens({"additional_special_tokens": list(CHATML[1])})
    MADE[kind].chat_template = CHATS.get(form)
    return TextMaker(MADE[kind], "chat" if form in CHATS else form)


KINDS = ["bytes", "bpe", "metaspace", "merging"]
names = st.sampled_from(["Homer Simpson", "Marge Simpson", "Moe Szyslak", "Dr. Hibbert", "Ned"])
words = (
    (
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30)
        | st.sampled_from(["<eos>", "Oh <bos> no", "a<|im_end|>b", "<pad>"])
    )
    .map(lambda s: " ".join(s.split()))
    .filter(bool)
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    said=st.lists(st.tuples(names, words), min_size=1, max_size=6),
    location=st.sampled_from(["", "Moe's Tavern", "Home"]),
)
def test_what_is_served_is_the_beginning_of_what_is_trained(kind, form, said, location):
    "In both views; special tokens that a script spells out stay letters."
    maker = maker_of(kind, form)
    scene = Scene(1, 0, location, tuple(Line(1, i, who, text, location) for i, (who, text) in enumerate(said)))
    rows = row_samples([scene], maker, max_seq_len=10**6, context_lines=10**6)[0]
    mine = {}
    if maker.template != "alpaca":
        for who in {line.speaker for line in scene.lines}:
            mine[who] = scene_samples([scene], maker, [who], max_seq_len=10**6)[0][0]
    for i, line in enumerate(scene.lines):
        asked = prompt_ids(maker, location, scene.lines[:i], line.speaker)
        assert rows[i].input_ids[: len(asked)] == asked and rows[i].learned == len(rows[i].input_ids) - len(asked)
        assert rows[i].input_ids[-len(maker.end) :] == maker.end
        stops = [
            t
            for t in rows[i].input_ids[len(asked) : -len(maker.end)]
            if t in maker.stop_ids and t != maker.tokenizer.unk_token_id
        ]
        assert not stops or maker.template == "script" and "\n" in maker.tokenizer.decode(stops), (
            "an answer ends at its end only"
        )
        if mine:
            assert mine[line.speaker].input_ids[: len(asked)] == asked and all(
                mine[line.speaker].loss_weights[len(asked) : len(rows[i].input_ids)]
            )
        if maker.template == "script":  # adding a line never changes earlier tokens
            assert scene_samples([scene], maker, max_seq_len=10**6)[0][0].input_ids[: len(asked)] == asked


def test_a_piece_is_read_as_in_the_middle_of_a_text():
    "SentencePiece puts a blank before a text that begins; a name inside of a scene has none, and what is said has one."
    maker = maker_of("metaspace", "script")

    def letters(ids):
        return "".join(maker.tokenizer.convert_ids_to_tokens(ids))

    assert (
        letters(maker.tokenizer("Homer Simpson:", add_special_tokens=False).input_ids)
        == "\u2581Homer\u2581Simpson:"
        != letters(maker.name("Homer Simpson"))
        == "Homer\u2581Simpson:"
    )
    ((read, answer),) = maker.said([Line(0, 0, "Moe", "Closed.")])
    assert letters(read) == letters(answer) == "\u2581Closed."


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_decode_to_the_text(kind):
    maker = maker_of(kind, "script")
    scene = read_script("springfield").scenes[3]
    text = maker.tokenizer.decode(
        scene_samples([scene], maker, max_seq_len=10**6)[0][0].input_ids, skip_special_tokens=True
    )

    def tidy(s):
        return " ".join(s.split())

    assert tidy(text) == tidy(
        f"[{scene.location}]\n" + "\n".join(f"{line.speaker}: {line.text}" for line in scene.lines)
    )


@pytest.mark.parametrize("max_seq_len", [60, 100, 256, 4000])
@pytest.mark.parametrize(
    "make,template",
    [
        (row_samples, "script"),
        (row_samples, "alpaca"),
        (row_samples, "chat"),
        (scene_samples, "script"),
        (scene_samples, "chat"),
    ],
)
def test_each_line_is_learned_once_or_named_as_too_long(make, template, max_seq_len):
    maker, scenes, targets = (
        maker_of("bpe", template),
        read_script("springfield").scenes[:12],
        ["Homer Simpson", "Lisa Simpson"],
    )
    samples, too_long = make(scenes, maker, targets, max_seq_len=max_seq_len)
    wanted = [line for s in scenes for line in s.lines if line.speaker in targets and line not in too_long]
    assert all(len(x.input_ids) <= max_seq_len == max(max_seq_len, len(x.loss_weights)) for x in samples)
    learned = [t for x in samples for t, w in zip(x.input_ids, x.loss_weights) if w]
    expected = [t for _, answer in maker.said(wanted) for t in answer + maker.end]
    # a chat is told for one character after the other
    assert learned == expected if template != "chat" or make is row_samples else sorted(learned) == sorted(expected)
    assert all(x.loss_weights[0] == 0 and len(x.roles) == len(x.input_ids) for x in samples)
    if samples:
        assert audit(samples, maker)["learned_ends"] >= len(wanted)


def test_a_window_begins_with_the_end_of_the_one_before():
    "As context, and with no more of it than was allowed: by hand, and in a scene."
    blocks = [(Tokens([n] * 10, bytes((LEARNED,)) * 10),) * 2 + (n,) for n in range(6)]

    def cut(overlap, most=42):
        return [
            (w.ids[2::10], w.roles.count(LEARNED))
            for w in cut_windows(Tokens([9, 9], bytes(2)), blocks, most, overlap)[0]
        ]

    assert cut(0) == [([0, 1, 2, 3], 40), ([4, 5], 20)] and cut(0.25) == [([0, 1, 2, 3], 40), ([3, 4, 5], 20)]
    assert cut(0.5) == [([0, 1, 2, 3], 40), ([2, 3, 4, 5], 20)] and cut(1.0) == [
        ([0, 1, 2, 3], 40),
        ([1, 2, 3, 4], 10),
        ([2, 3, 4, 5], 10),
    ]
    maker, scene = maker_of("bpe", "script"), read_script("springfield").scenes[0]
    windows, _ = scene_samples([scene], maker, max_seq_len=200)
    assert len(windows) > 2
    for first, second in zip(windows, windows[1:]):
        begins = second.roles.index(bytes((LEARNED,)))
        repeated = maker.tokenizer.decode(second.input_ids[len(maker.heading(scene.location)) : begins]).split("\n")[0]
        assert (
            repeated
            and repeated in maker.tokenizer.decode(first.input_ids)
            and begins < 50 + len(maker.heading(scene.location)) + 8
        )


def test_others_count_by_the_context_weight():
    maker, scene = maker_of("bpe", "script"), read_script("springfield").scenes[0]
    (x,), _ = scene_samples([scene], maker, ["Homer Simpson"], max_seq_len=4000, context_weight=0.25)
    said = maker.said(scene.lines)

    def by(homer):
        return sum(len(t) + 1 for (t, _), line in zip(said, scene.lines) if (line.speaker == "Homer Simpson") == homer)

    assert x.loss_weights.count(1.0) == by(True) and x.loss_weights.count(0.25) == by(False)
    assert set(x.loss_weights) == {0.0, 0.25, 1.0}


def test_context_that_is_never_a_target_stays_context():
    maker = maker_of("bytes", "script")
    scene = Scene(0, 0, "", (Line(0, 0, "Moe", "Closed.", learn=False), Line(0, 1, "Moe", "Since you.")))
    (x,), _ = scene_samples([scene], maker, context_weight=1.0)
    assert maker.tokenizer.decode([t for t, w in zip(x.input_ids, x.loss_weights) if w]) == " Since you.\n"
    assert len(row_samples([scene], maker)[0]) == 1


def test_scenes_in_the_alpaca_form_are_refused():
    with pytest.raises(ValueError, match="template=script"):
        scene_samples([], maker_of("bytes", "alpaca"))


@pytest.mark.parametrize("form", FORMS)
def test_context_is_cut_from_the_left_by_whole_lines(form):
    maker, scene = maker_of("bpe", form), read_script("springfield").scenes[2]
    for most in (10**9, 300, 200, 150, 110, 95):
        text = maker.tokenizer.decode(
            prompt_ids(maker, scene.location, scene.lines[:12], scene.lines[12].speaker, most)
        )
        there = [line.text in text for line in scene.lines[:12]]
        # no more than needed
        if not all(there) and most >= 110:
            assert (
                len(
                    prompt_ids(maker, scene.location, scene.lines[there.count(False) - 1 : 12], scene.lines[12].speaker)
                )
                > most
            )
        assert (
            there == sorted(there)
            and (most < 10**9 or all(there))
            and len(prompt_ids(maker, scene.location, scene.lines[:12], scene.lines[12].speaker, most))
            <= max(most, 100)
        )


def test_a_chat_window_begins_with_the_system_message():
    maker, scene = maker_of("bpe", "chat"), read_script("springfield").scenes[0]
    samples, _ = scene_samples([scene], maker, ["Homer Simpson"], max_seq_len=200)
    assert len(samples) > 1 and all(
        maker.tokenizer.decode(x.input_ids).startswith("<|im_start|>system\nYou are Homer Simpson") for x in samples
    )
