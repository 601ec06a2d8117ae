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
