"Costs: counted as they are, refused before anything is loaded, and told in settings that help."

from dataclasses import replace

import pytest
import torch

from simpsons_llm.data.packing import base_of
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import chapters_dir, read_jsonl
from simpsons_llm.model.base import load_config
from simpsons_llm.train.cost import (
    Recipe,
    count,
    count_scoring,
    count_step,
    estimate,
    largest_within,
    limit_scoring,
    live_memory,
    make_batch,
    milder,
    on_rank,
    parameter_counts,
    require_room,
    room_gib,
    short_config,
)

CPU = find_device("cpu", "float32")
TINY = load_config("tiny")


def deep(layers):
    config = short_config(TINY, 2)
    config.num_hidden_layers = layers
    return config


RECIPES = {
    "flat": Recipe(seq_lens=(120, 80)),
    "padded": Recipe(seq_lens=(120, 80), packed=False),
    "few learned": Recipe(seq_lens=(120, 80), learned=7),
    "q": Recipe(lora=LoRASettings(2, 4, 0.1, "q_proj"), seq_lens=(64,)),
    "dora": Recipe(lora=LoRASettings(4, 8, use_dora=True), seq_lens=(64, 64)),
    "checkpointing": Recipe(seq_lens=(120, 80), gradient_checkpointing=True),
    "full": Recipe(lora=None, seq_lens=(64, 64)),
    "accumulated": Recipe(lora=None, seq_lens=(64,), gradient_accumulation_steps=3),
    "compiled": Recipe(seq_lens=(200,), compile="layers"),
    "compiled, dropout": Recipe(lora=LoRASettings(4, 8, 0.1, "q_proj,k_proj"), seq_lens=(200,), compile="layers"),
    "compiled, full": Recipe(lora=None, seq_lens=(200,), compile="layers"),
}
CARD = replace(CPU, type="cuda", name="a card", dtype="bfloat16", memory_gib=80.0)


@pytest.mark.parametrize("name", ["flat", "dora", "checkpointing", "accumulated", "compiled", "compiled, full"])
def test_few_layers_tell_all(name):
    "Counted with two and three layers, or with all five: the same."
    whole, told = count_step(deep(5), RECIPES[name], CPU), count(deep(5), RECIPES[name], CPU)
    for k in whole:
        assert told[k] == pytest.approx(whole[k], rel=0.03), k


def real_step(config, recipe):
    "The same with real numbers: what is alive, and what autograd says that it saved."
    from simpsons_llm.train.config import make_optimizer
    from simpsons_llm.train.cost import build, micro_step, update

    model = build(config, recipe, "float32", torch.device("cpu"))
    optimizer, batch, saved, found, live = (
        make_optimizer(model, 1e-5),
        make_batch(recipe, torch.device("cpu")),
        {},
        {},
        live_memory(),
    )

    def keep(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    own = [*model.parameters(), *model.buffers(), *[v for v in batch.values() if hasattr(v, "untyped_storage")]]
    for t in own:
        live.add(t)
    with live:
        micro_step(model, batch, "float32")
        update(model, optimizer)
        before = live.peak = live.now
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            micro_step(model, batch, "float32", lambda: found.update(activations=live.now - before))
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        update(model, optimizer)
    averages = sum(v.nbytes for s in optimizer.state.values() for v in s.values())
    return {
        "weights": sum(p.nbytes for p in (*model.parameters(), *model.buffers())),
        "gradients": gradients,
        "optimizer": averages,
        "peak": live.peak,
        **found,
    }, sum(n for key, n in saved.items() if key not in {t.untyped_storage().data_ptr() for t in own})


@pytest.mark.parametrize("name", ["flat", "padded", "few learned", "full"])
def test_counts_are_those_of_a_real_step(name):
    told, (real, saved) = count_step(deep(3), RECIPES[name], CPU), real_step(deep(3), RECIPES[name])
    for k in real:
        assert told[k] == pytest.approx(real[k], rel=0.02), k
    assert saved <= told["activations"] * 1.001 and saved > 0.75 * told["activations"]


@pytest.mark.parametrize("name", [name for name in RECIPES if "compiled" in name])
def test_compiled_layers_keep_what_the_compiler_keeps(name):
    "Counted, beside what autograd says of layers that were compiled, with numbers: the same bytes."
    from simpsons_llm.train.cost import build, micro_step

    recipe, where, saved = RECIPES[name], torch.device("cpu"), {}
    told, plain = (count_step(deep(3), replace(recipe, compile=how), CPU) for how in ("layers", "graph"))
    model, batch = build(deep(3), recipe, "float32", where), make_batch(recipe, where)
    torch._dynamo.reset()
    for layer in base_of(model).model.layers:
        # the compiler's own way, but for the kernels
        layer.forward = torch.compile(layer.forward, backend="aot_eager_decomp_partition", dynamic=False)
    micro_step(model, batch, "float32")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

    def keep(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        micro_step(model, batch, "float32")
    own = [*model.parameters(), *model.buffers(), *[v for v in batch.values() if hasattr(v, "untyped_storage")]]
    for t in own:
        saved.pop(t.untyped_storage().data_ptr(), None)
    # the loss itself is alive, too
    assert told["activations"] == sum(saved.values()) + 4
    assert told["activations"] < 0.9 * plain["activations"]
    assert all(told[k] == plain[k] for k in ("weights", "gradients", "optimizer", "flop"))


RECORD = read_jsonl(chapters_dir() / "_results" / "compiled_memory.jsonl")


@pytest.mark.parametrize("row", RECORD, ids=[row["name"] for row in RECORD])
def test_what_is_told_is_what_a_device_used(row):
    "Counted without that device; what was in use before the run is not the step's."
    from transformers import LlamaConfig

    recipe, measured = Recipe(**row["recipe"]), row["peak_mem_gib"] - row["left_gib"]
    told = on_rank(LlamaConfig(**row["shape"]), recipe, CARD)
    close = 0.06 if recipe.gradient_checkpointing else 0.02
    assert told.peak_mem_gib == pytest.approx(measured, rel=close) and told.in_use_gib == 0


def test_layers_that_cannot_be_cut_are_counted_as_they_are(monkeypatch):
    def fail(model):
        raise RuntimeError("another version")

    recipe = RECIPES["compiled"]
    plain, compiled = (count(TINY, replace(recipe, compile=how), CARD) for how in ("graph", "layers"))
    monkeypatch.setattr("simpsons_llm.train.cost.cut_layers", fail)
    assert count(TINY, recipe, CARD) == plain and compiled["peak"] < plain["peak"]
    # layers that are not where they usually are will not be compiled either
    monkeypatch.setattr("simpsons_llm.train.cost.cut_layers", lambda model: None)
    assert count(TINY, recipe, CARD) == plain


def test_the_mask_of_dropout_takes_a_byte_on_an_accelerator():
    "Also where a CPU stands in for it; a CPU itself keeps numbers."
    shape = {"seq_lens": (200,), "compile": "none"}
    kept = {
        (d.type, p): count_step(TINY, Recipe(lora=LoRASettings(4, 8, p, "q_proj"), **shape), d)["activations"]
        for d in (CARD, CPU)
        for p in (0.0, 0.1)
    }
    # nothing before the first layer is trained, so that only the second keeps its mask
    assert TINY.num_hidden_layers == 2
    numbers = 200 * TINY.hidden_size
    assert [kept[d, 0.1] - kept[d, 0.0] for d in ("cuda", "cpu")] == [numbers, 4 * numbers]


def test_what_fits_only_compiled_is_told_so():
    recipe = Recipe(seq_lens=(400,) * 8, compile="graph")
    told, compiled = (on_rank(TINY, replace(recipe, compile=how), CARD).peak_mem_gib for how in ("graph", "layers"))
    assert compiled < 0.9 * told
    tight = replace(CARD, memory_gib=(told + compiled) / 2 / 0.95)
    with pytest.raises(ValueError, match="would fit with compile=layers$"):
        require_room(TINY, recipe, tight)
    assert require_room(TINY, replace(recipe, compile="layers"), tight).peak_mem_gib == compiled
    # whoever switched it off is not asked to
    with pytest.raises(ValueError, match="would fit with micro_batch_size=1$"):
        require_room(TINY, replace(recipe, compile="none"), tight)
    nf4 = [r for words, r in milder(recipe) if "nf4" in words]
    assert nf4 and all(r.compile == "none" for r in nf4)


def test_each_setting_moves_the_cost_the_right_way():
    base = estimate(TINY, Recipe(seq_lens=(400, 400)), CPU)
    assert base.trainable == parameter_counts(TINY, Recipe())[0] and base.tokens == 800 and base.step_s is None

    def of(**kw):
        return estimate(TINY, Recipe(**{"seq_lens": (400, 400), **kw}), CPU)

    assert of(lora=LoRASettings(64, 128)).trainable == 4 * base.trainable
    # longer samples: more attention
    assert of(seq_lens=(800,)).flop_per_token > base.flop_per_token
    assert of(seq_lens=(400,) * 4).activations_gib == pytest.approx(2 * base.activations_gib, rel=0.02)
    assert of(gradient_checkpointing=True).activations_gib < 0.6 * base.activations_gib
    assert of(gradient_checkpointing=True).flop_per_token > 1.2 * base.flop_per_token
    assert of(learned=10).activations_gib < base.activations_gib
    full = of(lora=None)
    assert full.trainable == full.total and full.optimizer_gib == pytest.approx(2 * full.gradients_gib, rel=1e-3)
    four = of(quantization="nf4")
    assert (
        four.weights_gib < base.weights_gib
        and four.peak_mem_gib - four.in_use_gib < base.peak_mem_gib - base.in_use_gib
        and four.trainable == base.trainable
    )


def test_a_run_that_cannot_fit_is_refused_and_told_what_would(monkeypatch):
    recipe = Recipe(lora=None, seq_lens=(400,) * 8)
    free = estimate(TINY, recipe, CPU)
    tight = replace(CPU, memory_gib=free.in_use_gib + (free.peak_mem_gib - free.in_use_gib) * 0.7)
    with pytest.raises(ValueError, match="needs at least .* GiB .* it would fit with micro_batch_size=1"):
        require_room(TINY, recipe, tight)
    monkeypatch.setattr("simpsons_llm.train.cost.milder", lambda r: milder(r)[-2:])
    with pytest.raises(ValueError, match="no setting of this model would fit"):
        require_room(TINY, recipe, replace(CPU, memory_gib=0.01))
    assert require_room(TINY, recipe, CPU).trainable == free.trainable
    assert room_gib(replace(CPU, memory_gib=float("nan"))) == float("inf")
    assert room_gib(replace(CPU, type="cuda", memory_gib=80)) < 80


def test_what_would_help_keeps_the_step_the_same_where_it_can():
    recipe = Recipe(seq_lens=(300, 200), learned=100, gradient_accumulation_steps=2)
    words, single = milder(recipe)[0]
    assert (
        words == "micro_batch_size=1"
        and single.seq_lens == (300,)
        and single.gradient_accumulation_steps == 4
        and single.learned == 60
    )
    assert not any("mode=lora" in w for w, _ in milder(recipe)) and any(
        "mode=lora" in w for w, _ in milder(replace(recipe, lora=None))
    )
    assert all("micro_batch_size=1" not in w or len(r.seq_lens) == 1 for w, r in milder(recipe))


def test_the_time_of_a_step_is_that_of_all_its_micro_batches(monkeypatch):
    from simpsons_llm.train.cost import with_time

    monkeypatch.setattr("simpsons_llm.train.cost.measure", lambda *_: {"micro_s": 0.5, "update_s": 0.1, "peak": 0.0})
    recipe = Recipe(seq_lens=(60, 40), gradient_accumulation_steps=4)
    told = with_time(estimate(TINY, recipe, CPU), TINY, recipe, CPU)
    assert (
        told.step_s == pytest.approx(4 * 0.5 + 0.1)
        and told.tokens == 400
        and told.tokens_per_s == pytest.approx(400 / 2.1)
    )
    assert told.tflop_per_s == pytest.approx(told.flop_per_token * told.tokens_per_s / 1e12)


def test_ranks_that_share_a_model_share_all_but_activations():
    from simpsons_llm.train.cost import in_parts

    whole = estimate(TINY, Recipe(lora=None, seq_lens=(64, 64)), CPU)
    part, shared = in_parts(whole, 4), ("weights_gib", "gradients_gib", "optimizer_gib")
    assert (
        all(getattr(part, n) == pytest.approx(getattr(whole, n) / 4) for n in shared)
        and part.activations_gib == whole.activations_gib
    )
    assert (
        whole.peak_mem_gib - part.peak_mem_gib == pytest.approx(sum(getattr(whole, n) for n in shared) * 3 / 4)
        and in_parts(whole, 1) == whole
    )


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(seq_lens=()), "seq_lens"),
        (dict(seq_lens=(0,)), "seq_lens"),
        (dict(gradient_accumulation_steps=0), "gradient_accumulation_steps"),
        (dict(lora=None, quantization="nf4"), "4-bit"),
        (dict(compile="auto"), "compile='auto'"),
        (dict(compile="graph", packed=False), "end to end"),
        (dict(compile="layers", quantization="nf4"), "quantization=none"),
    ],
)
def test_impossible_recipes(wrong, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**wrong)


def test_live_memory_counts_each_storage_once_and_lets_go():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), live_memory() as live:
        a = torch.empty(1000)
        views = [a[i:] for i in range(10)] + [a.view(10, 100)]
        assert live.now == 4000
        b = a + 1
        del a, views
        assert live.now == 4000 and live.peak == 8000 and len(b) == 1000


def test_the_command(capsys, data):
    from simpsons_llm.machine.cli import main

    assert main(["estimate", "--data", data, "--base-model", "tiny", "--max-seq-len", "1200", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for word in ("trainable parameters", "peak memory", "GFLOP per token", "tokens/s", "steps", "training time"):
        assert word in said, word


def test_four_bits_are_counted_as_they_are(tmp_path):
    "A real step with a 4-bit base, tensor by tensor, beside the count; skipped where bitsandbytes is missing."
    pytest.importorskip("bitsandbytes")
    from simpsons_llm.data.packing import use_isolated
    from simpsons_llm.model.adapter import add_adapter
    from simpsons_llm.model.base import load_base, tiny_model
    from simpsons_llm.train.config import make_optimizer
    from simpsons_llm.train.cost import micro_step, update

    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    recipe, live = Recipe(seq_lens=(300, 200), quantization="nf4"), live_memory()
    told, base = count(load_config(str(tmp_path)), recipe, CPU), load_base(str(tmp_path), CPU, "nf4")[0]
    use_isolated(base)
    model, batch = add_adapter(base, recipe.lora).train(), make_batch(recipe, CPU.torch)
    # an adapter's layer shows its base's weight again
    states = {
        id(q): q for m in model.modules() if (q := getattr(getattr(m, "weight", None), "quant_state", None))
    }.values()
    scales = [t for q in states for t in (q.absmax, q.state2.absmax)]
    for t in (*model.parameters(), *model.buffers(), *scales):
        live.add(t)
    weights, optimizer = live.now, make_optimizer(model, 1e-5)
    for v in batch.values():
        if hasattr(v, "untyped_storage"):
            live.add(v)
    with live:
        micro_step(model, batch, "float32")
        update(model, optimizer)
        live.peak = live.now
        micro_step(model, batch, "float32")
        update(model, optimizer)
    assert (
        len(states) == 14
        and told["weights"] == pytest.approx(weights, rel=0.03)
        and told["peak"] == pytest.approx(live.peak, rel=0.03)
    )


@pytest.mark.parametrize("packed", [True, False])
def test_scoring_is_counted_as_it_is(packed):
    "The peak of scoring with numbers, tensor by tensor, beside the count."
    from simpsons_llm.model.loss import ScoreLimit, token_losses
    from simpsons_llm.train.cost import build

    recipe, limit = Recipe(seq_lens=(100, 60), packed=packed), ScoreLimit(tokens=400, positions=200)
    told = count_scoring(deep(3), recipe, CPU, limit)
    model, live = build(deep(3), recipe, "float32", torch.device("cpu")).eval(), live_memory()
    for t in (*model.parameters(), *model.buffers()):
        live.add(t)
    weights, learned = live.now, 200 if packed else 50
    with live, torch.no_grad():
        token_losses(
            model, make_batch(Recipe(seq_lens=(100,) * 4, learned=learned, packed=packed), torch.device("cpu"))
        )
    assert told == pytest.approx(live.peak - weights, rel=0.02)
    # four times as much at once needs about four times as much
    more = count_scoring(deep(3), recipe, CPU, ScoreLimit(tokens=1600, positions=800))
    assert 3 * told < more < 4.1 * told


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lens", [(30,), (600, 500), (600,) * 64])
def test_scoring_never_needs_more_than_training(lens, packed):
    "On a small micro-batch less is scored at once; on a large one as much as the chapter on evaluation allows."
    from simpsons_llm.model.loss import default_limit

    card, recipe = CARD, Recipe(seq_lens=lens, packed=packed)
    told = estimate(TINY, recipe, card)
    limit, room = limit_scoring(TINY, recipe, told, card), told.peak_mem_gib - told.weights_gib - told.optimizer_gib
    assert count_scoring(TINY, recipe, card, limit) <= room * 2**30 or limit.tokens < 2 * max(lens)
    assert (limit == default_limit(TINY.vocab_size)) == (len(lens) == 64)
    # where a recording keeps its memory, what is left counts
    assert limit_scoring(TINY, recipe, told, card, room_gib=0.0).tokens < 2 * max(lens)


@pytest.mark.parametrize("number", [1, 2, 6, 96, 128])
def test_the_largest_size_that_fits_is_found_with_few_questions(number):
    sizes, asked = [n for n in range(1, number + 1) if number % n == 0], []
    for most in range(number + 2):
        asked.clear()
        found = largest_within(sizes, lambda n: asked.append(n) or float(n), most)
        assert found == max([n for n in sizes if n <= most], default=1) and len(asked) <= 5


def test_a_recorded_step_keeps_gradients_and_a_copy(monkeypatch):
    "And whoever trains too much for that keeps the gradients only."
    monkeypatch.setattr("simpsons_llm.train.cost.peak_memory_gib", lambda device: 0.0)
    # so long that the gradients come when the activations are still there
    recipe = Recipe(lora=None, seq_lens=(600,))
    plain, twice = (estimate(TINY, replace(recipe, gradient_accumulation_steps=n), CPU) for n in (1, 2))
    gib, graph = plain.gradients_gib, replace(recipe, compile="graph")
    assert plain.peak_mem_gib + 0.5 * gib < twice.peak_mem_gib < plain.peak_mem_gib + 1.01 * gib
    kept = estimate(TINY, graph, CPU)
    assert kept.peak_mem_gib == pytest.approx(twice.peak_mem_gib) and kept.tokens == plain.tokens
    assert on_rank(TINY, graph, CPU).peak_mem_gib == pytest.approx(twice.peak_mem_gib + gib)
    assert on_rank(TINY, recipe, CPU) == plain
    monkeypatch.setattr("simpsons_llm.train.cost.MOST_RECORDED", plain.trainable - 1)
    assert on_rank(TINY, graph, CPU).peak_mem_gib == pytest.approx(twice.peak_mem_gib)


def test_a_device_that_is_not_here_is_counted_all_the_same():
    "In its number format; tensors are as large as there."
    told, here = (estimate(TINY, Recipe(seq_lens=(120, 80)), d) for d in (CARD, replace(CPU, dtype="bfloat16")))
    assert told.in_use_gib == 0 and told.peak_mem_gib == pytest.approx(here.peak_mem_gib - here.in_use_gib, rel=1e-3)
