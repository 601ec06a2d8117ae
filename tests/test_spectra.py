"Spectra of changes: matrices whose rank is known, what must be refused, and three ways to the same change."

import copy
import math

import matplotlib
import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from simpsons_llm.lora.layer import LoRALinear, LoRASettings, add_lora, find_targets, peft_config
from simpsons_llm.lora.spectra import (
    add_changes,
    best_of_rank,
    effective_rank,
    layer_weights,
    noise_like,
    plot_spectra,
    rank_for,
    shares_held,
    singular_values,
    spectra_table,
    weight_changes,
)

matplotlib.use("Agg")
SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
)
SHAPES = [(1, 1), (1, 7), (12, 12), (12, 40), (40, 12)]


def llama(tied=True, **other):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **other}, tie_word_embeddings=tied))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(n, k, seed=0):
    return torch.linalg.qr(drawn(n, n, seed=seed).double())[0][:, :k]


def known(values, D_out, D_in, seed=0):
    "A matrix with these singular values."
    s = torch.tensor(values, dtype=torch.double)
    return orthogonal(D_out, len(s), seed) * s @ orthogonal(D_in, len(s), seed + 1).T


def with_adapters(model, settings):
    "LoRA whose B is not zero."
    model = add_lora(model, settings)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.normal_()
    return model


@pytest.mark.parametrize("D_out, D_in", SHAPES)
def test_known_values_come_back(D_out, D_in):
    values = [2.0**-i for i in range(min(D_out, D_in))]
    found = singular_values(known(values, D_out, D_in))
    assert found.dtype == torch.double and torch.allclose(found, torch.tensor(values, dtype=torch.double))
    energy = [v * v for v in values]
    assert torch.allclose(
        shares_held(found),
        torch.tensor([sum(energy[:r]) / sum(energy) for r in range(len(values) + 1)], dtype=torch.double),
    )


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("D_out, D_in", [(12, 12), (12, 40), (40, 12)])
def test_rank_of_sums(k, D_out, D_in):
    "A sum of k tables has rank k, in 32 bits too."
    found = singular_values(drawn(D_out, k) @ drawn(k, D_in, seed=1))
    assert rank_for(found, 1) == k and effective_rank(found) < k + 0.01
    assert [rank_for(found, share) for share in (1e-9, 0.5, 0.9, 0.99)] == sorted(
        rank_for(found, share) for share in (1e-9, 0.5, 0.9, 0.99)
    )


@pytest.mark.parametrize("n", [1, 5, 33])
def test_orthogonal_has_full_effective_rank(n):
    found = singular_values(orthogonal(n, n))
    assert math.isclose(effective_rank(found), n, rel_tol=1e-9)
    for share in (0.1, 0.5, 0.9, 1):
        assert rank_for(found, share) == math.ceil(share * n - 1e-9)


@pytest.mark.parametrize("share, r", [(1e-12, 1), (0.5, 1), (16 / 25, 1), (0.6401, 2), (0.99, 2), (1, 2), (1.0, 2)])
def test_rank_at_the_edges(share, r):
    assert rank_for(torch.tensor([4.0, 3.0, 0.0]), share) == r


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
def test_measures_do_not_depend_on_length(scale):
    matrix = drawn(12, 20).double()
    a, b = singular_values(matrix), singular_values(scale * matrix)
    assert math.isclose(effective_rank(a), effective_rank(b), rel_tol=1e-9)
    assert all(rank_for(a, share) == rank_for(b, share) for share in (0.3, 0.9, 0.99))


def test_structure_tells_from_noise():
    structured = (drawn(64, 3) @ drawn(3, 96, seed=1)) + 0.1 * drawn(64, 96, seed=2)
    noise = noise_like(structured)
    assert noise.shape == structured.shape and math.isclose(noise.norm(), structured.norm(), rel_tol=1e-5)
    assert torch.equal(noise, noise_like(structured)) and not torch.equal(noise, noise_like(structured, 1))
    assert rank_for(singular_values(structured), 0.9) == 3 < 30 < rank_for(singular_values(noise), 0.9)


@pytest.mark.parametrize("D_out, D_in", SHAPES)
@pytest.mark.parametrize("r", [0, 1, 3, 12, 99])
def test_best_of_rank_misses_what_it_must(D_out, D_in, r):
    matrix = drawn(D_out, D_in)
    values, cut = singular_values(matrix), best_of_rank(matrix, r)
    assert cut.dtype == matrix.dtype and cut.shape == matrix.shape
    assert math.isclose((matrix - cut).norm(), values[r:].norm(), rel_tol=1e-4, abs_tol=1e-5)
    assert not cut.any() if r == 0 else rank_for(singular_values(cut), 1) == min(r, D_out, D_in)
    if r >= min(D_out, D_in):
        assert torch.equal(cut, matrix)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rank_for(torch.ones(3), 0),
        lambda: rank_for(torch.ones(3), -1),
        lambda: rank_for(torch.ones(3), 1.0001),
        lambda: rank_for(torch.ones(3), math.nan),
        lambda: rank_for(torch.zeros(3)),
        lambda: rank_for(torch.tensor([])),
        lambda: rank_for(torch.tensor([1.0, 2.0])),
        lambda: rank_for(torch.tensor([1.0, -1.0])),
        lambda: rank_for(torch.ones(2, 2)),
        lambda: effective_rank(torch.zeros(2)),
        lambda: shares_held(torch.tensor([math.nan, 1.0])),
        lambda: singular_values(torch.ones(3)),
        lambda: singular_values(torch.tensor([[math.nan]])),
        lambda: singular_values(torch.tensor([[math.inf, 1.0]])),
        lambda: best_of_rank(torch.ones(2, 2), -1),
        lambda: best_of_rank(torch.ones(2, 2), 1.0),
        lambda: plot_spectra({"nothing": torch.zeros(3)}),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("r, alpha", [(1, 1), (4, 8), (40, 20)])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj", "model.layers.1.mlp.up_proj"])
def test_adapter_equals_merged(r, alpha, targets):
    base, settings = llama(), LoRASettings(r=r, lora_alpha=alpha, target_modules=targets)
    adapted, merged = with_adapters(copy.deepcopy(base), settings), copy.deepcopy(base)
    with torch.no_grad():
        for name, m in adapted.named_modules():
            if isinstance(m, LoRALinear):
                merged.get_submodule(name).weight += m.delta()
    ours, found = weight_changes(base, adapted), weight_changes(base, merged)
    assert ours.keys() == found.keys() == find_targets(base, targets).keys()
    for name in ours:
        assert torch.equal(ours[name], adapted.get_submodule(name).delta()) and not ours[name].requires_grad
        assert torch.allclose(ours[name], found[name], atol=1e-5)
        assert rank_for(singular_values(ours[name]), 1) <= r
    with torch.no_grad():
        input_ids = torch.arange(10)[None]
        assert torch.allclose(add_changes(base, ours)(input_ids).logits, adapted(input_ids).logits, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_peft_model(tied):
    base = llama(tied)
    theirs = get_peft_model(copy.deepcopy(base), peft_config(LoRASettings(r=3, lora_alpha=6)))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.normal_()
    wanted = {
        name.removeprefix("base_model.model."): m.get_delta_weight("default").detach()
        for name, m in theirs.named_modules()
        if hasattr(m, "get_delta_weight")
    }
    with pytest.raises(ValueError, match="has LoRA already"):
        weight_changes(base, theirs)
    with pytest.raises(ValueError, match="merged and removed"):
        weight_changes(base.state_dict(), theirs.state_dict())
    merged = theirs.merge_and_unload()
    for found in (weight_changes(base, merged), weight_changes(base.state_dict(), merged.state_dict())):
        assert found.keys() == wanted.keys() and all(
            torch.allclose(found[name], d, atol=1e-5) for name, d in wanted.items()
        )


def test_halves_are_subtracted_in_32_bits():
    before = {"a.weight": torch.full((2, 2), 1.0).bfloat16(), "norm.weight": torch.ones(3).bfloat16()}
    after = {"a.weight": torch.full((2, 2), 1.0078125).bfloat16(), "norm.weight": torch.zeros(3).bfloat16()}
    ((name, d),) = weight_changes(before, after).items()
    # vectors are not compared
    assert name == "a" and d.dtype == torch.float32 and (d == 0.0078125).all()


def test_only_what_changed():
    base, after = llama(), llama()
    with torch.no_grad():
        after.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert list(weight_changes(base, after)) == ["model.layers.1.mlp.up_proj"]
    assert set(layer_weights(base)) == set(find_targets(base, "all-linear")) and "lm_head" in layer_weights(
        base.state_dict()
    )


def test_what_cannot_be_compared():
    base = llama()
    adapted, dora = (with_adapters(llama(), LoRASettings(r=2)) for _ in range(2))
    # the change is more than B A then
    dora.model.layers[1].mlp.up_proj.lora_magnitude_vector = torch.nn.Parameter(torch.ones(48))
    moved = llama()
    with torch.no_grad():
        moved.model.layers[0].self_attn.q_proj.weight += 1
    cases = [
        (base, llama(), "none of 14 layers changed"),
        (base, add_lora(llama(), LoRASettings(r=2)), "none of 14 layers changed"),
        (base, llama(intermediate_size=40), r"\(48, 32\) before and \(40, 32\) after"),
        (base, llama(num_hidden_layers=3), "only one side has"),
        (llama(num_hidden_layers=3), base, "only one side has"),
        (moved, adapted, "more than B A"),
        (base, dora, "more than B A"),
        (adapted, base, "has LoRA already"),
        (base, base.state_dict(), "one model and one state dict"),
        (base.state_dict(), {"a.weight": torch.ones(2, 2)}, "only one side has"),
    ]
    for before, after, text in cases:
        with pytest.raises(ValueError, match=text):
            weight_changes(before, after)
    with pytest.raises(ValueError, match="its change"):
        add_changes(base, {"model.layers.0.mlp.up_proj": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="has no layer 'x'"):
        spectra_table({"x": torch.ones(2, 2)}, base)


def test_table_and_picture():
    base = llama()
    changes = weight_changes(base, with_adapters(llama(), LoRASettings(r=2)))
    table = spectra_table(changes, base, (0.5, 0.999))
    assert list(table.columns) == [
        "shape",
        "norm",
        "relative",
        "rank_50",
        "rank_99.9",
        "effective_rank",
        "full_rank",
    ] and list(table.index) == list(changes)
    assert (
        (table["rank_99.9"] <= 2).all() and (table.full_rank >= 16).all() and "relative" not in spectra_table(changes)
    )
    first = next(iter(changes))
    assert math.isclose(table.relative[first], changes[first].norm() / layer_weights(base)[first].norm(), rel_tol=1e-5)
    ax = plot_spectra(
        {"LoRA": singular_values(changes[first]), "noise": singular_values(noise_like(changes[first]))}, r=(2,)
    )
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [2, 32] and ax.get_yscale() == "log"
    matplotlib.pyplot.close(ax.figure)


def test_cut_changes_leave_the_model_alone():
    base = llama()
    before, changes = copy.deepcopy(base.state_dict()), weight_changes(base, with_adapters(llama(), LoRASettings(r=8)))
    for r in (0, 1, 4):
        cut = add_changes(base, changes, r)
        if r == 0:
            with pytest.raises(ValueError, match="none of"):
                weight_changes(base, cut)
        else:
            assert all(
                torch.allclose(d, best_of_rank(changes[name], r), atol=1e-5)
                for name, d in weight_changes(base, cut).items()
            )
    assert all(torch.equal(before[name], t) for name, t in base.state_dict().items())
