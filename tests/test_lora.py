"LoRA by hand against PEFT, over more cases than a reader wants to see."
import copy
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from simpsons_llm.lora import (SEED_LORA, LoRALinear, LoRASettings, add_lora, find_targets, lora_parameter_count, peft_config,
                               plot_low_rank)

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=64)
TARGETS = ["all-linear", "q_proj,k_proj", "q_proj, v_proj ,down_proj", "layers.1.self_attn.o_proj,gate_proj", "model.layers.0.mlp.up_proj"]


def llama(bias=False, tied=True, device="cpu"):
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied)
    with torch.device(device): model = LlamaForCausalLM(config)
    if bias and device == "cpu":          # they start at zero, which would hide a lost bias
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("bias"): p.normal_(std=0.1)
    return model


def in_peft(name):
    for part in ("lora_A", "lora_B"): name = name.replace(part, f"{part}.default.weight")
    return f"base_model.model.{name}"


def trainable(model): return {name: p for name, p in model.named_parameters() if p.requires_grad}


def pair(model, settings):
    "The same model adapted by us and by PEFT, with the same A and B, none of them zero."
    ours, theirs = add_lora(copy.deepcopy(model), settings), get_peft_model(copy.deepcopy(model), peft_config(settings))
    mine = {in_peft(name): p for name, p in trainable(ours).items()}
    assert mine.keys() == trainable(theirs).keys()
    with torch.no_grad():
        for name, p in trainable(theirs).items(): mine[name].copy_(p.normal_(std=0.1))
    return ours, theirs, mine


@pytest.fixture
def input_ids():
    torch.manual_seed(1)
    return torch.randint(0, SHAPE["vocab_size"], (2, 9))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("r, alpha", [(1, 1), (4, 8), (40, 20)])
@pytest.mark.parametrize("targets", TARGETS)
def test_equals_peft(targets, r, alpha, bias, input_ids):
    model, settings = llama(bias, tied=not bias), LoRASettings(r=r, lora_alpha=alpha, target_modules=targets)
    ours, theirs, mine = pair(model, settings)
    a, b = ours(input_ids, labels=input_ids), theirs(input_ids, labels=input_ids)
    a.loss.backward(), b.loss.backward()
    assert (a.logits - model(input_ids).logits).abs().max() > 1e-4
    torch.testing.assert_close(a.logits, b.logits, atol=1e-6, rtol=0)
    for name, p in trainable(theirs).items():
        assert p.grad.abs().max() > 0
        torch.testing.assert_close(mine[name].grad, p.grad, atol=1e-6, rtol=0)
    count = lora_parameter_count(model, settings)
    assert (count["trainable"], count["total"]) == theirs.get_nb_trainable_parameters()
    assert count["share"] == count["trainable"] / count["total"]
    assert count["targets"] == len(mine) / 2 == len(find_targets(model, targets))
    assert count == lora_parameter_count(llama(bias, tied=not bias, device="meta"), settings)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_merged_equals_adapter_and_peft(targets, bias, input_ids):
    model = llama(bias)
    ours, theirs, _ = pair(model, LoRASettings(r=3, lora_alpha=6, target_modules=targets))
    with torch.no_grad():
        before = ours(input_ids).logits
        for name in find_targets(model, targets):
            parent, _, child = name.rpartition(".")
            merged = ours.get_submodule(name).merge()
            assert type(merged) is torch.nn.Linear
            setattr(ours.get_submodule(parent), child, merged)
        assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
        torch.testing.assert_close(ours(input_ids).logits, before, atol=1e-5, rtol=0)
        for name, p in theirs.merge_and_unload().named_parameters():
            torch.testing.assert_close(ours.get_parameter(name), p, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_output_layer_only_by_name(tied):
    model = llama(tied=tied)
    assert "lm_head" not in find_targets(model, "all-linear")
    assert find_targets(model, "lm_head") == {"lm_head": (SHAPE["vocab_size"], SHAPE["hidden_size"])}


def test_starts_as_the_base_and_trains_only_the_adapter(input_ids):
    model = llama(bias=True)
    ours = add_lora(copy.deepcopy(model), SEED_LORA).eval()
    assert torch.equal(ours(input_ids).logits, model(input_ids).logits)
    frozen = {name: p.clone() for name, p in ours.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable(ours).values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = ours(input_ids, labels=input_ids).loss
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, ours.get_parameter(name)) for name, p in frozen.items())
    assert all(p.any() for p in trainable(ours).values())


def test_add_lora_changes_in_place_and_any_module():
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    assert add_lora(model, LoRASettings(r=2)) is model
    assert isinstance(model[0], LoRALinear) and isinstance(model[2], LoRALinear)
    assert model[0].lora_A.shape == (2, 5) and model[0].lora_B.shape == (7, 2) and model[0].delta().shape == (7, 5)


def test_dropout_follows_the_mode_of_the_model():
    base, x = torch.nn.Linear(64, 64), torch.ones(1, 64)
    layer = LoRALinear(base.eval(), LoRASettings(r=4, lora_dropout=0.5))
    torch.nn.init.ones_(layer.lora_B)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    assert torch.allclose(layer.eval()(x), layer.merge()(x), atol=1e-4)


@pytest.mark.parametrize("dtype, adapter", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                            (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_dtypes_as_peft(dtype, adapter):
    ours, theirs, mine = pair(llama().to(dtype), LoRASettings(r=2, target_modules="q_proj"))
    assert {p.dtype for p in mine.values()} == {p.dtype for p in trainable(theirs).values()} == {adapter}
    layer = ours.model.layers[0].self_attn.q_proj
    assert layer(torch.ones(1, SHAPE["hidden_size"], dtype=dtype)).dtype == dtype == layer.merge().weight.dtype


def test_init_range_as_peft():
    torch.manual_seed(0)
    theirs = get_peft_model(llama(), peft_config(LoRASettings(r=16)))
    ours = add_lora(llama(), LoRASettings(r=16))
    for name, p in trainable(ours).items():
        q = theirs.get_parameter(in_peft(name))
        bound = p.shape[1] ** -0.5
        if name.endswith("lora_B"): assert not p.any() and not q.any()
        else:
            assert max(p.abs().max(), q.abs().max()) <= bound
            assert 0.8 < p.std() / q.std() < 1.25 and abs(p.std() - bound / 3**0.5) < 0.1 * bound


@pytest.mark.parametrize("name, value", [("r", 0), ("r", -4), ("r", 2.5), ("r", "8"), ("r", True), ("lora_alpha", 0), ("lora_alpha", -1),
    ("lora_alpha", float("nan")), ("lora_alpha", float("inf")), ("lora_alpha", "32"), ("lora_dropout", -0.1), ("lora_dropout", 1),
    ("lora_dropout", float("nan")), ("lora_dropout", None), ("target_modules", ""), ("target_modules", " "), ("target_modules", "q_proj,"),
    ("target_modules", ["q_proj"]), ("target_modules", None)])
def test_settings_refuse(name, value):
    with pytest.raises(ValueError) as error: LoRASettings(**{name: value})
    assert f"{name}={value!r}" in str(error.value)


def test_settings():
    assert (SEED_LORA.r, SEED_LORA.lora_alpha, SEED_LORA.lora_dropout, SEED_LORA.target_modules) == (8, 16, 0.05, "q_proj,k_proj")
    assert LoRASettings() == LoRASettings(16, 32, 0.0, "all-linear") and LoRASettings(r=64).scaling == 0.5
    with pytest.raises(AttributeError): SEED_LORA.r = 4
    config = peft_config(SEED_LORA)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias, config.task_type) == (8, 16, 0.05, "none", "CAUSAL_LM")
    assert set(config.target_modules) == {"q_proj", "k_proj"} and peft_config(LoRASettings()).target_modules == "all-linear"


@pytest.mark.parametrize("targets, named", [("qproj", "'qproj'"), ("q_proj,c_attn", "'c_attn'"), ("proj", "'proj'"),
                                            ("embed_tokens", "'embed_tokens'"), ("self_attn", "'self_attn'"), ("ayers.0.mlp.up_proj", "'ayers")])
def test_unknown_target_names_itself_and_the_others(targets, named):
    model = llama()
    for call in (lambda: find_targets(model, targets), lambda: add_lora(model, LoRASettings(target_modules=targets))):
        with pytest.raises(ValueError) as error: call()
        assert named in str(error.value) and "down_proj, gate_proj, k_proj" in str(error.value)
    assert all(p.requires_grad for p in model.parameters())       # refused before anything was touched


@pytest.mark.parametrize("adapt", [lambda m: add_lora(m, SEED_LORA), lambda m: get_peft_model(m, peft_config(SEED_LORA))])
def test_second_adapter_is_refused(adapt):
    model = adapt(llama())
    assert isinstance(model, (LlamaForCausalLM, PeftModel))
    for call in (find_targets, lambda m, t: lora_parameter_count(m, LoRASettings()), lambda m, t: add_lora(m, LoRASettings())):
        with pytest.raises(ValueError, match="has LoRA already"): call(model, "all-linear")


def test_nothing_to_adapt_is_refused():
    with pytest.raises(ValueError, match="no Linear layer to adapt"): find_targets(torch.nn.Sequential(torch.nn.ReLU()), "all-linear")


def test_works_on_meta():
    model = add_lora(llama(device="meta"), LoRASettings())
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("D_out, D_in, r", [(576, 576, 16), (32, 96, 1), (96, 32, 8)])
def test_plot_is_to_scale(D_out, D_in, r):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    ax = plt.figure().gca()
    assert plot_low_rank(D_out, D_in, r, ax) is ax and ax.get_aspect() == 1
    assert [(p.get_height(), p.get_width()) for p in ax.patches] == [(D_out, D_in), (D_out, r), (r, D_in)]
    boxes = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    assert all(a[1] < b[0] for a, b in zip(boxes, boxes[1:]))
    assert plot_low_rank(D_out, D_in, r) is not ax
    plt.close("all")


def test_import_brings_torch_only():
    code = "import sys, simpsons_llm.lora; print([m for m in ('transformers', 'peft', 'matplotlib', 'pandas', 'nbdev', 'fastcore') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
