"Packing: nothing lost, nothing seen that should not be, for several kinds of models."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from simpsons_llm.evaluate import PadRight, token_losses
from simpsons_llm.packing import EndToEnd, PackedRows, best_fit, can_isolate, filling, isolated_attention, use_isolated
from simpsons_llm.samples import Sample

SMALL = dict(vocab_size=120, hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
MODELS = {"llama": LlamaConfig(**SMALL), "llama, odd head size": LlamaConfig(**{**SMALL, "head_dim": 20}), "qwen2": Qwen2Config(**SMALL), "qwen3": Qwen3Config(**SMALL, head_dim=10),
          "gpt2": GPT2Config(vocab_size=120, n_embd=40, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)}


def samples_of(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [Sample(torch.randint(3, 120, (n,), generator=g).tolist(), [0.0]*min(2, n) + torch.rand(max(n - 2, 0), generator=g).round(decimals=1).tolist()) for n in lengths]


def loss_and_gradients(config, collate, samples, isolated):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if isolated: use_isolated(model)
    total = sum((losses*weights).sum() for batch in collate for losses, weights in [token_losses(model, batch)])/100
    total.backward()
    return total.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", list(MODELS))
def test_packed_equals_unpacked(name):
    "Loss and gradients within 1e-5: by itself, filled up, end to end (sequence by sequence), in rows of a fixed length, and with a block-diagonal mask."
    samples = samples_of([5, 30, 3, 61, 17, 44, 8])
    features = [s.features() for s in samples]
    want, grads = loss_and_gradients(MODELS[name], [PadRight(0)([f]) for f in features], samples, False)
    rows = PackedRows(samples, 64)
    masked = {k: v for k, v in EndToEnd(0)(features).items() if k != "cu_seqlens"}  # positions alone: transformers makes the mask
    ways = {"filled up": ([PadRight(0)(features)], True), "end to end": ([EndToEnd(0)(features)], True), "rows": ([EndToEnd(0, 64)([r]) for r in rows], True), "two rows at once": ([EndToEnd(0, 64)(list(rows)[i:i + 2]) for i in range(0, len(rows), 2)], True)}
    for way, (batches, isolated) in ways.items():
        got, mine = loss_and_gradients(MODELS[name], batches, samples, isolated)
        assert abs(got - want) < 1e-5, way
        assert grads.keys() == mine.keys() and all((mine[n] - grads[n]).abs().max() < 1e-5 for n in grads), way
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="sdpa")
    logits = model(input_ids=masked["input_ids"], position_ids=masked["position_ids"], use_cache=False).logits
    loss = (torch.nn.functional.cross_entropy(logits[0, :-1], masked["input_ids"][0, 1:], reduction="none")*masked["loss_weights"][0, 1:]).sum()/100
    loss.backward()
    assert abs(loss.item() - want) < 1e-5 and all((p.grad - grads[n]).abs().max() < 1e-5 for n, p in model.named_parameters() if n in grads)


def test_a_sequence_does_not_see_its_neighbours():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS["llama"]); use_isolated(model)
    a, b, c = (s.features() for s in samples_of([20, 30, 10]))
    other = {**a, "input_ids": [(t*7) % 100 + 3 for t in a["input_ids"]]}
    with torch.no_grad():
        first, second = (token_losses(model, EndToEnd(0)([x, b, c]))[0] for x in (a, other))
    n = sum(w > 0 for w in a["loss_weights"][1:])
    assert torch.equal(first[0, n:], second[0, n:]) and not torch.allclose(first[0, :n], second[0, :n])


def test_generating_is_as_it_was():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS["llama"])
    ids, mask = torch.randint(3, 120, (3, 12)), torch.tensor([[0]*4 + [1]*8, [1]*12, [0]*1 + [1]*11])
    before = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0).tolist()
    use_isolated(model)
    assert model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0).tolist() == before


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 64), max_size=80), row_len=st.integers(64, 200))
def test_best_fit_loses_nothing_and_is_near_the_best(lengths, row_len):
    rows = best_fit(lengths, row_len)
    assert sorted(i for r in rows for i in r) == list(range(len(lengths))) and all(r and sum(lengths[i] for i in r) <= row_len for r in rows)
    assert len(rows) <= 11/9*max(-(-sum(lengths)//row_len), 1) + 4 and 0 <= filling(lengths, rows, row_len) <= 1


def test_a_batch_that_learns_nothing_is_refused():
    blank = [{"input_ids": [5, 6, 7], "loss_weights": [1.0, 0.0, 0.0]}]  # the first token is predicted from nothing
    for collate in (PadRight(0), EndToEnd(0)):
        with pytest.raises(ValueError, match="a batch learns nothing"): collate(blank)


def test_models_that_cannot_be_packed_say_why():
    from transformers import Gemma2Config, MistralConfig
    windowed = AutoModelForCausalLM.from_config(MistralConfig(**SMALL, sliding_window=16))
    bent = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, head_dim=10, attn_logit_softcapping=30.0, layer_types=["full_attention"]*2))
    assert "window" in can_isolate(windowed) and can_isolate(bent)
    assert all(can_isolate(AutoModelForCausalLM.from_config(c)) == "" for c in MODELS.values())


def test_where_packed_rows_are_fast():
    from types import SimpleNamespace
    from simpsons_llm.packing import packs_well
    assert packs_well(SimpleNamespace(type="cpu")) and not packs_well(SimpleNamespace(type="xpu"))  # no variable-length kernel on XPU
