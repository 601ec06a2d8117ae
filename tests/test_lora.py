"LoRA by hand against PEFT, over more cases than a reader wants to see."

import copy
import importlib.machinery
import json
import subprocess
import sys
import types

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from simpsons_llm.lora.layer import (
    SEED_LORA,
    LoRALinear,
    LoRASettings,
    add_lora,
    find_targets,
    lora_parameter_count,
    peft_config,
    plot_low_rank,
)
from simpsons_llm.lora.variants import (
    load_lora,
    lora_layers,
    merge,
    read_lora_settings,
    remove_lora,
    save_lora,
    unmerge,
)

SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
)
TARGETS = [
    "all-linear",
    "q_proj,k_proj",
    "q_proj, v_proj ,down_proj",
    "layers.1.self_attn.o_proj,gate_proj",
    "model.layers.0.mlp.up_proj",
]
VARIANTS = {
    "plain": {},
    "dropout": dict(lora_dropout=0.3),
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "dora+dropout": dict(use_dora=True, lora_dropout=0.3),
    "dora+rslora": dict(use_dora=True, use_rslora=True),
    "pissa": dict(init_lora_weights="pissa"),
    "dora+pissa": dict(use_dora=True, init_lora_weights="pissa"),
}


def grid(f):
    return pytest.mark.parametrize("variant", VARIANTS)(
        pytest.mark.parametrize("targets", ["all-linear", "q_proj,k_proj", "up_proj", "v_proj,layers.1.mlp.down_proj"])(
            f
        )
    )


def llama(bias=False, tied=True, device="cpu"):
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    if bias and device == "cpu":  # they start at zero, which would hide a lost bias
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("bias"):
                    p.normal_(std=0.1)
    return model


def in_peft(name):
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        name = name.replace(part, f"{part}.default.weight")
    return f"base_model.model.{name}"


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def pair(model, settings):
    "The same model adapted by us and by PEFT, with the same A and B, none of them zero."
    ours, theirs = add_lora(copy.deepcopy(model), settings), get_peft_model(copy.deepcopy(model), peft_config(settings))
    mine = {in_peft(name): p for name, p in trainable(ours).items()}
    assert mine.keys() == trainable(theirs).keys()
    with torch.no_grad():
        for name, p in trainable(theirs).items():
            mine[name].copy_(
                p.mul_(torch.empty_like(p).uniform_(0.5, 1.5)) if "magnitude" in name else p.normal_(std=0.1)
            )
    return ours, theirs, mine


@pytest.fixture
def input_ids():
    torch.manual_seed(1)
    return torch.randint(0, SHAPE["vocab_size"], (2, 9))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("r, alpha", [(1, 1), (40, 20)])
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


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_equals_adapter_and_peft(targets, input_ids):
    model = llama(bias=True)
    ours, theirs, _ = pair(model, LoRASettings(r=3, lora_alpha=6, target_modules=targets))
    with torch.no_grad():
        before = ours(input_ids).logits
        assert remove_lora(ours) is ours and all(
            type(ours.get_submodule(name)) is torch.nn.Linear for name in find_targets(model, targets)
        )
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
    frozen = {name: p.clone() for name, p in ours.named_parameters() if "lora_" not in name}
    assert not frozen.keys() & trainable(ours).keys()
    optimizer = torch.optim.AdamW(trainable(ours).values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = ours(input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
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
    apart = layer.eval()(x)
    assert torch.allclose(apart, layer.merge()(x), atol=1e-4) and torch.equal(layer.train()(x), layer(x))


@pytest.mark.parametrize(
    "dtype, adapter",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes_as_peft(dtype, adapter):
    ours, theirs, mine = pair(llama().to(dtype), LoRASettings(r=2, target_modules="q_proj"))
    assert {p.dtype for p in mine.values()} == {p.dtype for p in trainable(theirs).values()} == {adapter}
    layer = ours.model.layers[0].self_attn.q_proj
    assert layer(torch.ones(1, SHAPE["hidden_size"], dtype=dtype)).dtype == dtype == layer.merge().base.weight.dtype


def test_init_range_as_peft():
    torch.manual_seed(0)
    theirs = get_peft_model(llama(), peft_config(LoRASettings(r=16)))
    ours = add_lora(llama(), LoRASettings(r=16))
    for name, p in trainable(ours).items():
        q = theirs.get_parameter(in_peft(name))
        bound = p.shape[1] ** -0.5
        if name.endswith("lora_B"):
            assert not p.any() and not q.any()
        else:
            assert max(p.abs().max(), q.abs().max()) <= bound
            assert 0.8 < p.std() / q.std() < 1.25 and abs(p.std() - bound / 3**0.5) < 0.1 * bound


@pytest.mark.parametrize(
    "name, value",
    [
        ("r", 0),
        ("r", -4),
        ("r", 2.5),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", "32"),
        ("lora_dropout", -0.1),
        ("lora_dropout", 1),
        ("lora_dropout", float("nan")),
        ("lora_dropout", None),
        ("target_modules", ""),
        ("target_modules", " "),
        ("target_modules", "q_proj,"),
        ("target_modules", ["q_proj"]),
        ("target_modules", None),
        ("use_rslora", "yes"),
        ("use_rslora", 1),
        ("use_dora", None),
        ("init_lora_weights", "svd"),
        ("init_lora_weights", True),
    ],
)
def test_settings_refuse(name, value):
    with pytest.raises(ValueError) as error:
        LoRASettings(**{name: value})
    assert f"{name}={value!r}" in str(error.value)


@grid
def test_variants_equal_peft(variant, targets, input_ids):
    "Logits, loss and gradients in training mode; weights merged; logits after the way back."
    model, settings = llama(), LoRASettings(r=4, lora_alpha=8, target_modules=targets, **VARIANTS[variant])
    ours, theirs, mine = pair(model, settings)
    outputs = []
    for m in (ours, theirs):
        torch.manual_seed(3)  # the same inputs are dropped
        outputs.append(m.train()(input_ids, labels=input_ids))
        outputs[-1].loss.backward()
    a, b = outputs

    def close(x, y):
        return torch.testing.assert_close(x, y, atol=1e-6, rtol=0)

    close(a.logits, b.logits)
    close(a.loss, b.loss)
    for name, p in trainable(theirs).items():
        assert p.grad.abs().max() > 0
        close(mine[name].grad, p.grad)
    count = lora_parameter_count(model, settings)
    assert (count["trainable"], count["total"]) == theirs.get_nb_trainable_parameters()
    with torch.no_grad():
        before = ours.eval()(input_ids).logits
        close(before, theirs.eval()(input_ids).logits)
        assert (before - model(input_ids).logits).abs().max() > 1e-4  # the adapter does something
        if settings.lora_dropout:
            assert (before - a.logits).abs().max() > 1e-4
        base = {name: layer.base.weight.clone() for name, layer in lora_layers(ours).items()}
        assert merge(ours) is ours
        theirs.merge_adapter()
        for name, layer in lora_layers(ours).items():
            close(layer.base.weight, theirs.base_model.model.get_submodule(name).base_layer.weight)
            assert (layer.base.weight - base[name]).abs().max() > 1e-3
        torch.testing.assert_close(ours(input_ids).logits, before, atol=1e-5, rtol=0)
        theirs.unmerge_adapter()
        close(unmerge(ours)(input_ids).logits, before)
        close(theirs(input_ids).logits, before)
        for name, layer in lora_layers(ours).items():
            close(layer.base.weight, base[name])


@grid
def test_disk_both_ways(variant, targets, input_ids, tmp_path):
    model, settings = llama(), LoRASettings(r=4, lora_alpha=8, target_modules=targets, **VARIANTS[variant])
    ours, theirs, _ = pair(model, settings)
    assert save_lora(ours, tmp_path / "ours", settings) == tmp_path / "ours"
    theirs.save_pretrained(str(tmp_path / "peft"))
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with torch.no_grad():
        logits = ours.eval()(input_ids).logits
        assert (logits - model(input_ids).logits).abs().max() > 1e-4
        for loaded in (
            PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "ours")),
            load_lora(copy.deepcopy(model), tmp_path / "peft"),
            load_lora(copy.deepcopy(model), tmp_path / "ours"),
        ):
            torch.testing.assert_close(loaded.eval()(input_ids).logits, logits, atol=1e-6, rtol=0)
    assert read_lora_settings(tmp_path / "ours") == LoRASettings(
        4,
        8,
        settings.lora_dropout,
        ",".join(sorted(map(str.strip, targets.split(",")))),
        *list(vars(settings).values())[4:],
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_starts_as_peft(variant, input_ids):
    "From the same seed: the same A, B, lengths and base weights; and the base's logits."
    model, settings = llama(), LoRASettings(r=4, lora_alpha=8, target_modules="up_proj", **VARIANTS[variant])
    torch.manual_seed(5)
    ours = add_lora(copy.deepcopy(model), settings).eval()
    torch.manual_seed(5)
    theirs = get_peft_model(copy.deepcopy(model), peft_config(settings)).eval()
    for name, p in trainable(ours).items():
        q = theirs.get_parameter(in_peft(name))
        if not name.endswith("lora_A") or "pissa" in variant:
            torch.testing.assert_close(p, q, atol=1e-6, rtol=0)
    for name, layer in lora_layers(ours).items():
        torch.testing.assert_close(
            layer.base.weight, theirs.base_model.model.get_submodule(name).base_layer.weight, atol=1e-6, rtol=0
        )
        assert torch.equal(layer.base.weight, model.get_submodule(name).weight) == ("pissa" not in variant)
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids).logits, model(input_ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("use_dora", [False, True])
def test_bias_survives_every_way(use_dora, input_ids):
    model = llama(bias=True)
    ours, theirs, _ = pair(model, LoRASettings(r=3, lora_alpha=6, use_dora=use_dora, lora_dropout=0.2))
    with torch.no_grad():
        logits = []
        for m in (ours.train(), theirs.train()):
            torch.manual_seed(3)
            logits.append(m(input_ids).logits)
        torch.testing.assert_close(*logits, atol=1e-6, rtol=0)
        before = ours.eval()(input_ids).logits
        torch.testing.assert_close(remove_lora(ours)(input_ids).logits, before, atol=1e-5, rtol=0)


def test_merge_refuses_before_it_writes():
    model = add_lora(llama(), LoRASettings(r=2))
    with pytest.raises(ValueError, match="14 of 14 layers are not merged"):
        unmerge(model)
    merge(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="14 of 14 layers are merged already"):
        merge(model)
    unmerge(model)
    layer = model.model.layers[1].mlp.up_proj
    layer.merge()
    for call, said in ((merge, "1 of 14 layers are merged already"), (unmerge, "13 of 14 layers are not merged")):
        with pytest.raises(ValueError, match=said):
            call(model)
    # B is zero: nothing may have moved
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="merged already"):
        layer.merge()
    layer.unmerge()
    with pytest.raises(ValueError, match="nothing to take off"):
        layer.unmerge()
    with torch.no_grad():
        layer.lora_B.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        layer.merge()
    assert layer.base.weight.isfinite().all() and not layer.merged


def test_half_merged_can_be_removed_both_ways(input_ids):
    model = llama()
    ours, _, _ = pair(model, LoRASettings(r=2, use_dora=True))
    with torch.no_grad():
        adapted = ours(input_ids).logits
        merge(ours)
        torch.testing.assert_close(remove_lora(copy.deepcopy(ours))(input_ids).logits, adapted, atol=1e-5, rtol=0)
        plain = remove_lora(ours, keep_change=False)
        torch.testing.assert_close(plain(input_ids).logits, model(input_ids).logits, atol=1e-5, rtol=0)
    assert not trainable(plain) and not any(isinstance(m, LoRALinear) for m in plain.modules())
    for call in (merge, unmerge, remove_lora, lora_layers):
        with pytest.raises(ValueError, match="no LoRALinear"):
            call(plain)


def test_merged_layers_train_nothing(input_ids):
    model = merge(add_lora(llama(), LoRASettings(r=2)))
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(input_ids, labels=input_ids).loss.backward()


def test_shared_weights_are_not_written():
    settings = LoRASettings(r=2, target_modules="lm_head,up_proj")
    tied, apart = add_lora(llama(tied=True), settings), add_lora(llama(tied=False), settings)
    for call in (merge, remove_lora):
        with pytest.raises(ValueError, match="'lm_head.base'.*shares"):
            call(tied)
    assert not any(layer.merged for layer in lora_layers(tied).values())
    assert type(remove_lora(tied, keep_change=False).lm_head) is torch.nn.Linear
    merge(apart)
    model, pissa = llama(tied=True), LoRASettings(r=2, target_modules="lm_head", init_lora_weights="pissa")
    with pytest.raises(ValueError, match="'lm_head'.*shares"):
        add_lora(model, pissa)
    assert all(p.requires_grad for p in model.parameters())
    add_lora(llama(tied=False), pissa)


def test_starts_that_cannot_be_are_refused():
    model = llama()
    with pytest.raises(ValueError, match="train with peft"):
        add_lora(model, LoRASettings(r=4, lora_alpha=4, init_lora_weights="loftq"))
    with pytest.raises(ValueError, match="r=17.*k_proj has rank 16 at most"):
        add_lora(model, LoRASettings(r=17, init_lora_weights="pissa"))
    assert all(p.requires_grad for p in model.parameters()) and not any(
        isinstance(m, LoRALinear) for m in model.modules()
    )
    started = add_lora(model, LoRASettings(r=2, init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="load the base model again"):
        remove_lora(started, keep_change=False)
    assert isinstance(started.model.layers[0].mlp.up_proj, LoRALinear)


def test_loftq_goes_to_peft_at_scaling_1_only(monkeypatch):
    for wrong in (dict(r=16), dict(r=8, lora_alpha=4), dict(r=16, lora_alpha=16, use_rslora=True)):
        with pytest.raises(ValueError, match="scaling 1 only"):
            LoRASettings(init_lora_weights="loftq", **wrong)
    scipy = types.ModuleType("scipy")
    scipy.__spec__ = importlib.machinery.ModuleSpec("scipy", None)
    # peft only asks whether it is there
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    for right in (dict(r=8, lora_alpha=8), dict(r=16, lora_alpha=4, use_rslora=True, use_dora=True)):
        config = peft_config(LoRASettings(init_lora_weights="loftq", **right))
        assert (
            config.init_lora_weights == "loftq"
            and config.loftq_config["loftq_bits"] == 4
            and config.use_dora == right.get("use_dora", False)
        )


@pytest.mark.parametrize(
    "config",
    [
        dict(peft_type="IA3"),
        dict(peft_type=None),
        dict(bias="lora_only"),
        dict(rank_pattern={"q_proj": 2}),
        dict(alpha_pattern={"q_proj": 2}),
        dict(modules_to_save=["lm_head"]),
        dict(layers_to_transform=[0]),
        dict(fan_in_fan_out=True),
        dict(exclude_modules=["q_proj"]),
        dict(lora_bias=True),
        dict(trainable_token_indices=[1]),
        dict(target_modules=".*proj"),
        dict(target_modules=None),
        dict(target_modules=[]),
        dict(init_lora_weights="olora"),
        dict(init_lora_weights="pissa_niter_4"),
        dict(init_lora_weights="loftq"),
        dict(new_in_peft=1),
        dict(r=0),
        dict(lora_alpha=None),
        dict(use_dora="yes"),
    ],
    ids=str,
)
def test_load_refuses_by_name(config, tmp_path):
    get_peft_model(llama(), peft_config(SEED_LORA)).save_pretrained(str(tmp_path))
    path, model = tmp_path / "adapter_config.json", llama()
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    ((name, value),) = config.items()
    with pytest.raises(ValueError) as error:
        load_lora(model, tmp_path)
    assert f"{name}={value!r}" in str(error.value)
    assert all(p.requires_grad for p in model.parameters()) and not any(
        isinstance(m, LoRALinear) for m in model.modules()
    )


def test_load_refuses_what_does_not_fit(tmp_path):
    def add_and_save(model, s, to):
        return save_lora(add_lora(model, s), tmp_path / to)

    path = add_and_save(llama(), LoRASettings(r=2, target_modules="up_proj"), "a")
    shorter = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}))
    with pytest.raises(
        ValueError,
        match="2 of its keys have no place and 0 places have no key, such as base_model.model.model.layers.1",
    ):
        load_lora(shorter, path)
    longer = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="0 of its keys have no place and 2 places have no key"):
        load_lora(longer, path)
    wider = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "intermediate_size": 64}))
    with pytest.raises(
        ValueError,
        match=r"2 of its tensors have another shape, such as .*lora_B.weight: \(48, 2\) in the file, \(64, 2\)",
    ):
        load_lora(wider, path)
    for model in (shorter, longer, wider):
        assert all(p.requires_grad for p in model.parameters())
    (path / "adapter_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_lora(llama(), path)
    (path / "adapter_config.json").unlink()
    for nothing in (path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"):
            load_lora(llama(), nothing)
    with pytest.raises(ValueError, match="no LoRALinear"):
        save_lora(llama(), tmp_path / "b")
    with pytest.raises(ValueError, match="not with LoRASettings"):
        save_lora(add_lora(llama(), SEED_LORA), tmp_path / "b", LoRASettings())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal"])
def test_other_starts_of_peft_load(start, input_ids, tmp_path):
    config = peft_config(LoRASettings(r=4, target_modules="q_proj"))
    config.init_lora_weights = start
    theirs = get_peft_model(llama(), config)
    with torch.no_grad():
        for p in trainable(theirs).values():
            p.normal_(std=0.1)
        theirs.save_pretrained(str(tmp_path))
        ours = load_lora(llama(), tmp_path)
        torch.testing.assert_close(ours(input_ids).logits, theirs(input_ids).logits, atol=1e-6, rtol=0)
        assert (ours(input_ids).logits - llama()(input_ids).logits).abs().max() > 1e-4


def test_merged_model_saves_the_same_adapter(input_ids, tmp_path):
    ours, _, _ = pair(llama(), LoRASettings(r=2, use_dora=True))
    with torch.no_grad():
        logits = ours(input_ids).logits
        save_lora(merge(ours), tmp_path)
        torch.testing.assert_close(load_lora(llama(), tmp_path)(input_ids).logits, logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", ["plain", "dora"])
@pytest.mark.parametrize("ratio", [1.0, 4.0, 16.0])
def test_lora_plus_of_peft_takes_our_layers(variant, ratio):
    "Each parameter is in the optimizer once, with the rate that its twin in peft's model has."
    from peft.optimizers import create_loraplus_optimizer

    ours, theirs, mine = pair(llama(), LoRASettings(r=2, **VARIANTS[variant]))
    got, wanted = [
        {
            id(p): g["lr"]
            for g in create_loraplus_optimizer(m, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=ratio).param_groups
            for p in g["params"]
        }
        for m in (ours, theirs)
    ]
    assert len(got) == len(mine) == len(wanted)
    assert all(got[id(mine[name])] == wanted[id(p)] for name, p in trainable(theirs).items())
    assert all(got[id(p)] == 1e-3 * (1 if name.endswith("lora_A") else ratio) for name, p in trainable(ours).items())


def test_settings():
    assert (SEED_LORA.r, SEED_LORA.lora_alpha, SEED_LORA.lora_dropout, SEED_LORA.target_modules) == (
        8,
        16,
        0.05,
        "q_proj,k_proj",
    )
    assert LoRASettings() == LoRASettings(16, 32, 0.0, "all-linear") and LoRASettings(r=64).scaling == 0.5
    with pytest.raises(AttributeError):
        SEED_LORA.r = 4
    config = peft_config(SEED_LORA)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias, config.task_type) == (
        8,
        16,
        0.05,
        "none",
        "CAUSAL_LM",
    )
    assert (
        set(config.target_modules) == {"q_proj", "k_proj"}
        and peft_config(LoRASettings()).target_modules == "all-linear"
    )


@pytest.mark.parametrize(
    "targets, named",
    [
        ("qproj", "'qproj'"),
        ("q_proj,c_attn", "'c_attn'"),
        ("proj", "'proj'"),
        ("embed_tokens", "'embed_tokens'"),
        ("self_attn", "'self_attn'"),
        ("ayers.0.mlp.up_proj", "'ayers"),
    ],
)
def test_unknown_target_names_itself_and_the_others(targets, named):
    model = llama()
    for call in (lambda: find_targets(model, targets), lambda: add_lora(model, LoRASettings(target_modules=targets))):
        with pytest.raises(ValueError) as error:
            call()
        assert named in str(error.value) and "down_proj, gate_proj, k_proj" in str(error.value)
    assert all(p.requires_grad for p in model.parameters())  # refused before anything was touched


@pytest.mark.parametrize(
    "adapt", [lambda m: add_lora(m, SEED_LORA), lambda m: get_peft_model(m, peft_config(SEED_LORA))]
)
def test_second_adapter_is_refused(adapt):
    model = adapt(llama())
    assert isinstance(model, (LlamaForCausalLM, PeftModel))
    for call in (
        find_targets,
        lambda m, t: lora_parameter_count(m, LoRASettings()),
        lambda m, t: add_lora(m, LoRASettings()),
    ):
        with pytest.raises(ValueError, match="has LoRA already"):
            call(model, "all-linear")


def test_nothing_to_adapt_is_refused():
    with pytest.raises(ValueError, match="no Linear layer to adapt"):
        find_targets(torch.nn.Sequential(torch.nn.ReLU()), "all-linear")


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
    code = (
        "import sys, simpsons_llm.lora.layer, simpsons_llm.lora.variants; "
        "print([m for m in ('transformers', 'peft', 'safetensors', 'matplotlib', 'pandas', 'nbdev', 'fastcore') if m "
        "in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
