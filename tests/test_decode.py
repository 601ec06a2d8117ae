"Answers token by token: as `generate` gives them, recorded or not, for every kind of model that says it can."

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from simpsons_llm.data.prompt import TextMaker, small_tokenizer
from simpsons_llm.machine.device import Draws
from simpsons_llm.model import decode
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.decode import SAMPLING, Decoder, Sampling, decodes_here, draw_tokens, in_8_bits
from simpsons_llm.model.infer import InferConfig, batch_prompts, finish_lines, pieces_of, stream_line

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 7, 30, 31], [11, 12, 60], [40, 41, 42, 43, 44, 45, 46]]
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2, **SMALL},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2, **SMALL},
    "qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, **SMALL},
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {"intermediate_size": 64, **SMALL},
    "olmo2": {"intermediate_size": 64, "num_key_value_heads": 2, **SMALL},
}


def made(kind, **given):
    "A small model of random weights."
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**KINDS.get(kind, SMALL), "pad_token_id": 0, **given})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so that the likeliest token is not always the same
    return model


def of_generate(model, batch, sampling, seed=1, **more):
    with torch.no_grad(), Draws(CPU, seed):
        out = model.generate(**batch, **sampling.arguments(), pad_token_id=0, **{"eos_token_id": None, **more})
    return out[:, batch["input_ids"].shape[1] :]


def of_page(decoder, batch, seed=1):
    with Draws(CPU, seed):
        return decoder.answers(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_generate(kind):
    "Drawn and greedy, alone and side by side; prompts shorter than the page is long change nothing."
    model = made(kind)
    assert not decodes_here(model)
    for prompts in (PROMPTS[:1], PROMPTS):
        batch = batch_prompts(prompts, 0, CPU)
        for s in (
            Sampling(12, do_sample=False, repetition_penalty=1.0),
            Sampling(12, top_k=0, top_p=1.0, repetition_penalty=1.0, min_p=0.3),
            Sampling(12, top_k=20, repetition_penalty=1.0),
        ):
            wanted = of_generate(model, batch, s)
            assert len(set(wanted[0].tolist())) > 1
            for length in (batch["input_ids"].shape[1], 19):
                assert torch.equal(of_page(Decoder(model, len(prompts), length, s), batch), wanted)
    assert not torch.equal(wanted, of_generate(model, batch, s, seed=2))  # it could have differed


def test_what_was_said_is_punished_but_not_what_fills_up():
    "As `generate` does it with one prompt; side by side each row as it is alone, where `generate` punishes filling."
    model, s = made("llama"), Sampling(12, do_sample=False, repetition_penalty=1.8)
    alone = [of_generate(model, batch_prompts([p], 0, CPU), s)[0].tolist() for p in PROMPTS]
    for pad in (0, alone[1][0]):  # the second: what a short prompt goes on with
        assert of_page(Decoder(model, 3, 7, s, pad_id=pad), batch_prompts(PROMPTS, pad, CPU)).tolist() == alone
    mild = Sampling(12, do_sample=False, repetition_penalty=1.0)
    assert alone[0] != of_generate(model, batch_prompts(PROMPTS[:1], 0, CPU), mild)[0].tolist()


def test_an_answer_ends_and_filling_follows():
    model, s = made("llama"), Sampling(16, do_sample=False, repetition_penalty=1.0)
    batch = batch_prompts(PROMPTS, 0, CPU)
    plain = of_page(Decoder(model, 3, 7, s), batch)
    end = int(plain[0, 4])
    ended = of_page(Decoder(model, 3, 7, s, [end]), batch)
    for before, after in zip(plain.tolist(), ended.tolist()):
        n = before.index(end) + 1 if end in before else len(before)
        assert after[:n] == before[:n] and set(after[n:]) <= {0}
    passes = []
    model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    of_page(Decoder(model, 1, 7, s, [end]), batch_prompts(PROMPTS[:1], 0, CPU))
    assert len(passes) <= 8 < 16  # all had ended, and nobody went on


class Played:
    "A recording that is played: it runs once more when it is made."

    made = 0

    def __init__(self, work, device, warm=3):
        self.work = work
        Played.made += 1
        for _ in range(warm):
            work()

    def __call__(self):
        return self.work()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_while_a_graph_is_recorded(monkeypatch, fails):
    "A graph of an earlier answer that is let go in the middle spoils the recording; afterwards all is as before."
    import gc
    from contextlib import nullcontext
    from types import SimpleNamespace

    from simpsons_llm.machine import graphs as G

    seen = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    module = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda s: nullcontext(),
        graph=lambda g, **more: nullcontext(),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)

    def work():
        seen.append(gc.isenabled())
        if fails and len(seen) == 4:
            raise RuntimeError("the device does not take it")
        return len(seen)

    with pytest.raises(RuntimeError, match="does not take") if fails else nullcontext():
        assert G.Recorded(work, torch.device("cuda"))() == 4
    assert seen == [False] * 4 and gc.isenabled()


@pytest.fixture
def graphs(monkeypatch):
    "A CPU that records."
    monkeypatch.setattr(decode, "graph_class", lambda device: Played)
    monkeypatch.setattr(decode, "Recorded", Played)
    Played.made = 0


def test_a_recorded_step_draws_the_same(graphs, monkeypatch):
    "What warming up left behind is not in the answer; a second answer knows nothing of the first."
    model, s, batch = made("llama"), Sampling(12, top_k=20), batch_prompts(PROMPTS, 0, CPU)
    plain = Decoder(model, 3, 7, s, how="none")
    assert Played.made == 0
    wanted = of_page(plain, batch)
    for given, count in (({}, 1), ({"again": True}, 2)):
        Played.made = 0
        decoder = Decoder(model, 3, 7, s, **given)
        assert Played.made == count
        of_page(decoder, batch_prompts(PROMPTS[::-1], 0, CPU))
        assert torch.equal(of_page(decoder, batch), wanted)
    monkeypatch.setattr(decode, "in_group", lambda: True)  # of several ranks nobody records
    Played.made = 0
    assert torch.equal(of_page(Decoder(model, 3, 7, s), batch), wanted) and Played.made == 0


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8])
def test_short_answers_have_no_room_for_warming_up(graphs, tokens):
    "They are drawn one step at a time; a longer one is recorded, also after a compiler that failed."
    model, s, batch = made("gpt2"), Sampling(tokens, top_k=20), batch_prompts(PROMPTS, 0, CPU)
    wanted = of_page(Decoder(model, 3, 7, s, how="none"), batch)
    with pytest.warns(UserWarning, match="not compiled") if tokens == 8 else nullcontext():
        decoder = Decoder(model, 3, 7, s, how="layers", again=True)
    assert Played.made == (2 if tokens == 8 else 0) and torch.equal(of_page(decoder, batch), wanted)


def test_layers_are_one_program_while_it_is_recorded(graphs, monkeypatch):
    "Each with a cache of its own, told to be the first; afterwards they are as they were."
    calls = []

    def compile_(function, dynamic=None):
        calls.append(function)
        return lambda *args, **kwargs: (seen.append(function.__self__.self_attn.layer_idx), function(*args, **kwargs))[
            1
        ]

    seen: list = []
    monkeypatch.setattr(torch, "compile", compile_)
    model, s, batch = made("llama"), Sampling(12, top_k=20), batch_prompts(PROMPTS, 0, CPU)
    wanted = of_page(Decoder(model, 3, 7, s, how="none"), batch)
    decoder = Decoder(model, 3, 7, s, how="layers")
    assert len(calls) == 2 and set(seen) == {0}
    layers = model.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1] and "forward" not in vars(layers[0])
    assert torch.equal(of_page(decoder, batch), wanted)


def test_what_cannot_be_compiled_is_recorded_all_the_same(graphs, monkeypatch):
    s, batch = Sampling(8, top_k=20), batch_prompts(PROMPTS, 0, CPU)
    other = made("gpt2")
    with pytest.warns(UserWarning, match="layers are not compiled: its layers are not where"):
        decoder = Decoder(other, 3, 7, s, how="layers")
    plain = Decoder(other, 3, 7, s, how="none")
    assert Played.made == 1 and torch.equal(of_page(decoder, batch), of_page(plain, batch))

    def broken(function, dynamic=None):
        def fails(*_, **__):
            raise RuntimeError("no compiler was found")

        return fails

    model = made("llama")
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="no compiler was found"):
        decoder = Decoder(model, 3, 7, s, how="layers")
    assert torch.equal(of_page(decoder, batch), of_page(Decoder(model, 3, 7, s, how="none"), batch))
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]


def test_a_recording_that_fails_changes_nothing_but_the_time(graphs, monkeypatch):
    def refuse(work, device, warm=3):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model, s, batch = made("llama"), Sampling(8, top_k=20), batch_prompts(PROMPTS, 0, CPU)
    wanted = of_page(Decoder(model, 3, 7, s, how="none"), batch)
    monkeypatch.setattr(decode, "Recorded", refuse)
    with pytest.warns(UserWarning, match="one kernel at a time: operation not permitted"):
        decoder = Decoder(model, 3, 7, s)
    assert torch.equal(of_page(decoder, batch), wanted)


def test_what_cannot_be_drawn_here_is_left_to_generate(monkeypatch):
    "Windows of attention, and models that do not say that their steps are alike."
    windows = made("mistral", intermediate_size=64, num_key_value_heads=2, sliding_window=4)
    assert "window" in decodes_here(windows)
    with pytest.raises(ValueError, match="look at a window"):
        Decoder(windows, 1, 8, Sampling())
    model, tokenizer = tiny_model()
    maker, request = TextMaker(tokenizer), ("", [], "Homer Simpson")
    here = finish_lines(model.eval(), maker, [request])
    asked = []
    generate = model.generate
    model.generate = lambda **given: (asked.append(given), generate(**given))[1]
    assert finish_lines(model, maker, [request]) == here and not asked
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    assert finish_lines(model, maker, [request]) == here and len(asked) == 1
    assert "".join(stream_line(model, maker, *request)) == here[0] and len(asked) == 2


def test_wrong_sizes_are_refused():
    decoder = Decoder(made("llama"), 2, 5, Sampling(4))
    with pytest.raises(ValueError, match="3 prompts of 7 tokens were given; expected 2 of up to 5"):
        decoder.answers(batch_prompts(PROMPTS, 0, CPU))
    with pytest.raises(ValueError, match="compile='graphs'"):
        Decoder(made("llama"), 1, 5, Sampling(4), how="graphs")


def test_half_a_letter_is_held_back():
    "A token may be a byte of a letter; pieces are whole letters, and together they are the text."
    tokenizer = small_tokenizer(300)
    text = "Señor Ñoño – 漢字"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text)
    pieces = list(pieces_of(tokenizer, iter(torch.tensor([[i]]) for i in ids), Draws(CPU, 0)))
    assert "".join(pieces) == text and not any("\ufffd" in p for p in pieces) and len(pieces) > 5
    cut = list(pieces_of(tokenizer, iter(torch.tensor([[i]]) for i in ids[:-1]), Draws(CPU, 0)))
    assert "".join(cut) == tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("min_p", (0.05, 0.3, 1.0))
def test_min_p_leaves_out_what_transformers_leaves_out(min_p):
    "The same tokens can be drawn, alone and after top_k and top_p; where it is off, `generate` is not told of it."
    from transformers import MinPLogitsWarper

    draw = torch.Generator().manual_seed(1)
    row = torch.randn(1, 12, generator=draw) * 2
    kept = MinPLogitsWarper(min_p)(torch.zeros(1, 1), row).isfinite()[0].nonzero()[:, 0].tolist()
    plain = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=min_p)
    drawn = set(draw_tokens(row.repeat(20000, 1), plain).tolist())
    assert drawn == set(kept) and (min_p == 1.0) == (len(kept) == 1) and len(kept) < 12
    few = set(draw_tokens(row.repeat(20000, 1), plain.changed(top_k=2)).tolist())
    assert few == drawn & set(row[0].topk(2).indices.tolist())
    assert plain.arguments()["min_p"] == min_p and "min_p" not in Sampling().arguments()
    assert "min_p" not in plain.changed(do_sample=False).arguments()
    assert InferConfig(min_p=min_p).settings().min_p == min_p
    for wrong in (-0.1, 1.1, "0.1"):
        with pytest.raises(ValueError, match="min_p"):
            Sampling(min_p=wrong)


def test_a_very_small_top_p_keeps_the_best():
    logits = torch.tensor([[0.0, 2.0, 1.0]]).repeat(50, 1)
    assert set(draw_tokens(logits, Sampling(top_p=1e-6, top_k=0)).tolist()) == {1}
    assert set(draw_tokens(logits, Sampling(top_k=10, top_p=1.0, temperature=5.0)).tolist()) == {0, 1, 2}


def test_eight_bits_are_the_weights_rounded():
    "One token through the loop, several through the product: both are what the rounded weights give."
    torch.manual_seed(1)
    model = torch.nn.Module()
    model.device, model.one, model.two = CPU, torch.nn.Linear(24, 40), torch.nn.Linear(24, 40, bias=False)
    weights = [model.one.weight.detach().clone(), model.two.weight.detach().clone()]
    bias = model.one.bias.detach().clone()
    in_8_bits(model)
    x = torch.randn(1, 3, 24)
    for layer, weight, b in ((model.one, weights[0], bias), (model.two, weights[1], 0)):
        scale = weight.abs().amax(1, keepdim=True) / 127
        rounded = torch.round(weight / scale) * scale
        assert layer.weight.dtype == torch.int8 and (rounded - weight).abs().max() <= scale.max() / 2 + 1e-6
        with torch.no_grad():
            assert torch.allclose(layer(x), x @ rounded.T + b, atol=1e-5)
            assert torch.allclose(layer(x[:, :1]), x[:, :1] @ rounded.T + b, atol=1e-5)
    with pytest.raises(ValueError, match="for a CPU"):
        in_8_bits(SimpleNamespace(device=torch.device("meta")))


@pytest.mark.parametrize(
    "given,meant",
    [
        ({"compile": "graph"}, "compile='graph' was given; expected auto, layers, none"),
        ({"quantization": "nf4"}, "quantization='nf4' was given; expected none or int8"),
        ({"quantization": "int8", "answers": 2}, "several answers or beams"),
        ({"quantization": "int8", "num_beams": 2}, "several answers or beams"),
    ],
)
def test_what_cannot_be_asked_is_said(given, meant):
    with pytest.raises(ValueError, match=meant):
        InferConfig(**given)


def test_the_presets_are_what_they_were():
    assert SAMPLING["seed"].arguments()["num_beams"] == 5 and SAMPLING["greedy"].arguments()["do_sample"] is False
