"The held-out loss, against a sum that is written out."

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import simpsons_llm.model.loss as E
from simpsons_llm.data.packing import use_isolated
from simpsons_llm.data.samples import Sample
from simpsons_llm.machine.device import Ranks

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def llama(isolated=False):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.5)).train()
    if isolated:
        use_isolated(model)
    return model


def samples(number=7):
    "Sequences whose tokens count fully, a little or not at all."
    g = torch.Generator().manual_seed(1)
    drawn = [
        (torch.randint(3, 50, (n,), generator=g).tolist(), torch.randint(0, 3, (n,), generator=g).tolist())
        for n in range(5, 5 + 3 * number, 3)
    ]
    return [Sample(ids, [(0.0, 0.25, 1.0)[k] for k in kinds[:-1]] + [1.0]) for ids, kinds in drawn]


def by_hand(model, some):
    "(sum, number) over all tokens that count fully, each predicted from those before it."
    losses = []
    with torch.no_grad():
        for x in some:
            said = model.eval()(input_ids=torch.tensor([x.input_ids])).logits[0].log_softmax(-1)
            losses += [
                -said[t - 1, x.input_ids[t]].item() for t in range(1, len(x.input_ids)) if x.loss_weights[t] == 1
            ]
    return sum(losses), len(losses)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_only_tokens_to_learn_are_scored(batch_size, isolated):
    "Lines of others, which training learns a little, do not count; the model goes on as it was."
    loss, count = by_hand(llama(), samples())
    model = llama(isolated)
    assert E.heldout_loss(model, samples(), 0, batch_size) == pytest.approx(loss / count, abs=1e-5)
    assert model.training and not E.heldout_loss(model.eval(), samples(), 0, batch_size) == 0 and not model.training


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_score_each_sample_once(world_size, monkeypatch):
    "Seven batches among ranks: all take as many turns, and the sums are those of one."
    whole, model, parts, turns = by_hand(llama(), samples()), llama(), [], []
    for rank in range(world_size):
        taken = []
        monkeypatch.setattr(E, "group_ranks", lambda: Ranks(rank, 0, world_size, 1, "group"))
        monkeypatch.setattr(E, "total", lambda *sums: parts.append(sums) or list(sums))
        E.heldout_loss(model, samples(), 0, 1, taken.append)
        turns.append(len(taken))
    assert [sum(p) for p in zip(*parts)] == pytest.approx(whole, abs=1e-4) and set(turns) == {-(-7 // world_size)}


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no held-out token"):
        E.heldout_loss(llama(), [Sample([5, 6, 7], [0.0, 0.5, 0.5])], 0)


LIMITS = [
    E.ScoreLimit(samples=1),
    E.ScoreLimit(tokens=60),
    E.ScoreLimit(positions=9),
    E.ScoreLimit(tokens=1),
    E.ScoreLimit(),
]


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_however_many_at_once_the_loss_is_the_same(limit, isolated):
    loss, count = by_hand(llama(), samples())
    assert E.heldout_loss(llama(isolated), samples(), 0, limit=limit) == pytest.approx(loss / count, abs=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_batches_keep_to_the_limit_or_are_one_sample(limit, packed):
    "Counted anew, from the batch that the collator makes: filled-up tokens and logits included."
    from simpsons_llm.data.packing import EndToEnd

    some = E.scored(samples(9))
    batches = E.score_batches(some, limit, packed)
    assert [s for b in batches for s in b] == some
    for batch, following in zip(batches, [*batches[1:], None]):
        sizes = []
        for tried in (batch, [*batch, following[0]] if following else None):
            if tried:
                made = (EndToEnd if packed else E.PadRight)(0)(tried)
                kept = (made["loss_weights"][:, 1:] > 0).any(0).sum() * len(made["input_ids"])
                sizes.append((len(tried), made["input_ids"].numel(), int(kept)))
        most = (limit.samples, limit.tokens, limit.positions)
        assert len(batch) == 1 or all(n <= m for n, m in zip(sizes[0], most))
        # and no smaller than they have to be
        assert not following or any(n > m for n, m in zip(sizes[1], most))


def test_an_accelerator_takes_what_its_memory_has_room_for():
    "The logits of a large vocabulary need room; what a run has found counts; batch_size is for a CPU."
    from types import SimpleNamespace

    for vocabulary in (32_000, 49_152, 128_256, 262_144):
        most = E.default_limit(vocabulary)
        assert 0.99 * 2**30 < most.positions * vocabulary * 10 <= 2**30 and most.tokens == 16_384
    assert E.default_limit(10**9).positions == 1
    model = llama()
    assert E.score_limit(model, 3) == E.ScoreLimit(samples=3)
    there = SimpleNamespace(device=torch.device("cuda"), get_input_embeddings=model.get_input_embeddings)
    assert E.score_limit(there, 3) == E.default_limit(50)
    there.score_limit = E.ScoreLimit(tokens=7)
    assert E.score_limit(there, 3).tokens == 7


def test_nothing_is_read_from_the_device_until_all_is_scored(monkeypatch):
    "A number that is read makes the host wait; one reading, after the last batch."
    read, forwards, cpu, losses = [], [], torch.Tensor.cpu, E.token_losses
    monkeypatch.setattr(E, "token_losses", lambda *given: forwards.append(1) or losses(*given))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: read.append(len(forwards)) or cpu(t))
    E.heldout_loss(llama(), samples(), 0, 1)
    assert read == [7]


@pytest.mark.parametrize("kind", ["cpu", "xpu"])
def test_sums_of_many_batches_lose_nothing(kind, monkeypatch):
    "Also where a device has no numbers of 64 bits: sums of batches are added up in 64 on the host."
    told = torch.full((1, 1), 1 + 2**-20)
    monkeypatch.setattr(E, "token_losses", lambda model, batch: (told, torch.ones(1, 1)))
    monkeypatch.setattr(E, "widest", lambda device: {"cpu": torch.float64, "xpu": torch.float32}[kind])
    many = [Sample([5, 6], [0.0, 1.0])] * 3000
    assert E.heldout_loss(llama(), many, 0, 1) == pytest.approx(told.item(), abs=1e-9)
    assert E.widest(torch.device(kind)) is (torch.float64 if kind == "cpu" else torch.float32)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_samples_evenly_and_tell_how_far_all_are(world_size, monkeypatch):
    "With room for everything at once, each takes its part of the samples; eight ranks of seven samples, too."
    counts, told = [], []
    for rank in range(world_size):
        done = []
        monkeypatch.setattr(E, "group_ranks", lambda: Ranks(rank, 0, world_size, 1, "group"))
        monkeypatch.setattr(E, "total", lambda *sums: counts.append(sums[1]) or [1.0, 1.0])
        E.heldout_loss(llama(), samples(), 0, progress=done.append, limit=E.ScoreLimit())
        told.append(done)
    assert told == [[7]] * world_size
    assert sum(counts) == by_hand(llama(), samples())[1] and sum(n > 0 for n in counts) == min(world_size, 7)
