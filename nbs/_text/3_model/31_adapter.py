# %%
#| default_exp model.adapter

# %% [markdown]
# # Adapters on a model
#
# > An adapter put on a base model, saved, loaded, merged; and the same for a model that was trained in full.
#
# [What LoRA adds](../2_lora/20_layer.ipynb) is known, and [a base model](30_base.ipynb) is at hand. This chapter puts the one on the other. The adapter in training is PEFT's, configured by the settings of [the chapter on LoRA](../2_lora/20_layer.ipynb), so that what this book saves loads anywhere.

# %%
#| export
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from simpsons_llm.machine.device import Device, find_device
from simpsons_llm.machine.job import open_folder, read_json, require, require_sealed, seal, unseal, write_json
from simpsons_llm.model.base import load_base, load_libraries, readable, require_whole

# %%
#| hide
import tempfile

import pandas as pd
import torch

from simpsons_llm.lora.layer import SEED_LORA, LoRASettings, lora_parameter_count
from simpsons_llm.model.base import SMOLLM2, TINY, tiny_model

device = find_device("cpu")


# %% [markdown]
# ## An adapter on the model
#
# PEFT adds the adapter in place: the base's numbers are frozen, the new thin matrices are kept in fp32 even where the base is in bf16, since their small steps would be lost in rounding. What is trained is counted and shown; a model in which nothing would train is refused.
#
# PiSSA starts with the largest part of each weight *moved* into the adapter, so the base beneath is no longer the base that others have. Its start is remembered here, and subtracted when the adapter is saved.

# %%
#| export
def add_adapter(
    model,  # a base model
    settings,  # a LoRASettings of the chapter on LoRA
    seed: int = 42,  # of the random half of the adapter
):  # the PEFT model
    "Freeze a base model and put a fresh adapter on it."
    import torch
    from peft import get_peft_model, get_peft_model_state_dict

    from simpsons_llm.lora.layer import find_targets, peft_config

    find_targets(model, settings.target_modules)  # says which names there are, if one is wrong
    if settings.init_lora_weights == "loftq":
        lacks = [n for n in ("bitsandbytes", "scipy") if not find_spec(n)]
        require(
            not lacks and model.device.type != "cpu",
            "init_lora_weights=loftq was given; it needs a GPU, bitsandbytes and scipy, "
            f"and here {' and '.join(lacks) or 'a GPU'} is missing (pip install 'simpsons_llm[qlora]'); "
            "use default or pissa",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(model, peft_config(settings), autocast_adapter_dtype=True)
    # the vocabulary is the base's own; left to itself, PEFT asks the hub about it at each checkpoint
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    if settings.init_lora_weights == "pissa":
        model.at_start = {
            n: p.detach().cpu().clone()
            for n, p in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
    trainable_parameters(model)
    return model


# %% [markdown]
# "Trainable" is counted, not assumed. The classic bug is an optimizer over nothing.

# %%
#| export
def trainable_parameters(
    model,  # a model, with or without adapter
) -> tuple:  # (trainable, all); ValueError if nothing is trainable
    "How many numbers are trained, of how many."
    trainable, total = (
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        sum(p.numel() for p in model.parameters()),
    )
    require(trainable, "no parameter of the model is trainable; add an adapter first")
    return trainable, total


# %% [markdown]
# Predicted by [the chapter on LoRA](../2_lora/20_layer.ipynb) and counted, for the base model of the book:

# %% tags=["example"]
counts = {}
for label, settings in (("seed: 8/16/q,k", SEED_LORA), ("book: 16/32/all linear", LoRASettings())):
    fresh, _ = load_base(SMOLLM2, device)
    predicted = lora_parameter_count(fresh, settings)["trainable"]
    counts[label] = (predicted, *trainable_parameters(add_adapter(fresh, settings)))
frame = pd.DataFrame(counts, index=["predicted", "trainable", "all"]).T
frame["share"] = (frame["trainable"] / frame["all"]).map("{:.2%}".format)
frame

# %% tags=["check"]
assert (frame["predicted"] == frame["trainable"]).all()
try:
    trainable_parameters(torch.nn.Linear(2, 2).requires_grad_(False))
    raise AssertionError
except ValueError as e:
    assert "trainable" in str(e)

# %% [markdown]
# One layer of the tiny model, in bf16, with an adapter of rank 4. The base's matrix is frozen; the two thin ones beside it are trained, in fp32:

# %% tags=["example"]
thin = add_adapter(tiny_model()[0].bfloat16(), LoRASettings(r=4))
parts = {n.split("up_proj.")[1]: p for n, p in thin.named_parameters() if "layers.0.mlp.up_proj" in n}
pd.DataFrame(
    {n: (tuple(p.shape), p.dtype, p.requires_grad) for n, p in parts.items()}, index=["shape", "dtype", "trained"]
).T


# %% [markdown]
# Training keeps each layer's activations for the backward pass. They can be computed again instead (*gradient checkpointing*): far less memory, about a third more time. A layer takes part only if its input wants a gradient, and the output of a frozen embedding does not; with an adapter it is told to.

# %%
#| export
def recompute_activations(
    model,  # in training, with or without adapter; before it is cut into parts (FSDP)
):
    "Compute each layer's activations again in the backward pass instead of keeping them."
    if hasattr(model, "get_base_model"):
        model.enable_input_require_grads()
    # the second is its older name
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()


# %% [markdown]
# What a forward pass over 256 tokens keeps of the tiny model's activations, in MiB, before and after:

# %% tags=["example"]
def kept_mib(model, ids):
    "Size of what is kept for the backward pass, without the model's own parameters."
    kept, own = {}, {p.data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        _loss = model(input_ids=ids, labels=ids).loss  # alive, so that no place in memory is used twice
    return sum(n for place, n in kept.items() if place not in own) / 2**20


again = add_adapter(tiny_model()[0], LoRASettings(r=4)).train()
all_kept = kept_mib(again, torch.arange(256).view(1, 256))
recompute_activations(again)
{"kept": round(all_kept, 2), "computed again": round(kept_mib(again, torch.arange(256).view(1, 256)), 2)}

# %% tags=["check"]
again = add_adapter(tiny_model()[0], LoRASettings(r=4)).train()
ids = torch.arange(12).view(1, 12)


def gradients():
    again.zero_grad()
    again(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for p in again.parameters() if p.requires_grad]


kept, names = gradients(), list(again.state_dict()) + [n for n, _ in again.named_modules()]
recompute_activations(again)
assert any(getattr(m, "gradient_checkpointing", False) for m in again.modules()) and all(
    torch.equal(a, b) for a, b in zip(kept, gradients())
)
# by which PEFT finds what to save
assert names == list(again.state_dict()) + [n for n, _ in again.named_modules()]


# %% [markdown]
# ## Saving and loading an adapter
#
# What PiSSA moved at the start is subtracted by a second block in each thin matrix: $BA - B_0A_0 = [B, -B_0]\,[A; A_0]$. So the adapter that is saved has twice the rank, and the base beneath it is the ordinary one.

# %%
#| export
def subtract_start(
    folder,  # a saved adapter that started as PiSSA; rewritten in place
    at_start: dict,  # its weights before training
):
    "Make of a PiSSA adapter an ordinary one, of twice the rank, for the ordinary base."
    import torch
    from safetensors.torch import load_file, save_file

    weights, config = load_file(folder / "adapter_model.safetensors"), read_json(folder / "adapter_config.json")
    for name in weights:  # B A - B0 A0 = [B, -B0] [A; A0]
        if "lora_A" in name:
            weights[name] = torch.cat([weights[name], at_start[name]])
        if "lora_B" in name:
            weights[name] = torch.cat([weights[name], -at_start[name]], dim=1)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    grown = 2**0.5 if config["use_rslora"] else 2  # so that the scaling stays what it was
    write_json(
        folder / "adapter_config.json",
        {**config, "r": 2 * config["r"], "lora_alpha": grown * config["lora_alpha"], "init_lora_weights": True},
    )


# %% [markdown]
# An adapter is useless without the facts of its training: the base model and the form of its prompts. They lie beside the weights, so `infer --adapter FOLDER` needs nothing else. Weights are safetensors, which hold numbers and no code. Last of all the folder is sealed ([what a job is](../9_machine/91_job.ipynb) has it), so that a bit that falls over later is noticed by whoever loads it.

# %%
#| export
NOTES = "simpsons_llm.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", NOTES)


def save_adapter(
    model,  # a PEFT model
    folder,  # where to
    notes: dict,  # facts to keep beside it; at least base_model and template
    weights: dict | None = None,  # name -> tensor, where the model holds only a part of each; None: the model's own
) -> Path:  # the folder
    "Save adapter and notes, and seal them."
    folder = open_folder(folder)
    unseal(folder)
    model.save_pretrained(folder, safe_serialization=True, **({"state_dict": weights} if weights else {}))
    if hasattr(model, "at_start"):
        subtract_start(folder, model.at_start)
    write_json(folder / NOTES, notes)
    seal(folder, ADAPTER_FILES)
    return folder


# %% [markdown]
# A PiSSA adapter of rank 4 on the tiny model: the files of its folder, and the rank it has there.

# %% tags=["example"]
place = tempfile.TemporaryDirectory()  # goes when the notebook ends
moved = add_adapter(load_base(TINY, device)[0], LoRASettings(r=4, init_lora_weights="pissa"))
kept_in = save_adapter(moved, place.name, {"base_model": TINY, "template": "chat"})
print("r =", read_json(kept_in / "adapter_config.json")["r"])
pd.DataFrame({"bytes": {p.name: p.stat().st_size for p in sorted(kept_in.iterdir())}})


# %% [markdown]
# An adapter that was saved by other tools has no notes. Its own configuration names the base, and the plain script form is assumed.

# %%
#| export
def adapter_notes(
    folder,  # what `save_adapter` wrote
) -> dict:  # its notes; FileNotFoundError if there is no adapter
    "The facts beside an adapter."
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if (folder / name).is_file():
            continue
        raise FileNotFoundError(
            f"no adapter in {folder} ({name} is missing); give the folder of a run, such as runs/x, or of an adapter"
        )
    advice = "bring the files back, or train again"
    require_sealed(folder, "the adapter", advice)
    found = read_json(folder / "adapter_config.json", dict, advice)
    if (folder / NOTES).is_file():
        return read_json(folder / NOTES, dict, advice)
    return {
        "base_model": found.get("base_model_name_or_path"),
        "template": "script",
    }


# %% [markdown]
# The same folder with its notes and without them:

# %% tags=["example"]
with_notes = adapter_notes(kept_in)
unseal(kept_in)
(kept_in / NOTES).unlink()
{"with notes": with_notes, "without": adapter_notes(kept_in)}


# %% [markdown]
# An adapter for another model loads "successfully" in many tools, with all its keys ignored. Here each key must find its place, and each place its key, of the same shape. The file's side of it stands in its first bytes, so a damaged file is found before the base is loaded.

# %%
#| export
def weight_shapes(
    file,  # a safetensors file
) -> dict:  # name -> shape; FileNotFoundError if it cannot be read
    "What a file of weights holds, without reading them."
    from safetensors import safe_open

    with readable(f"the weights in {file}", "save or fetch them again"), safe_open(file, "pt") as f:
        return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}


def compare_weights(
    saved: dict,  # name -> shape, of a file
    wanted: dict,  # the same, of the model
) -> dict:  # for `require_whole`
    "What a file lacks, has too much, or has in another shape."
    reshaped = [(n, saved[n], wanted[n]) for n in saved.keys() & wanted.keys() if tuple(saved[n]) != tuple(wanted[n])]
    missing, unexpected = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": reshaped}


# %% [markdown]
# The first two tensors of the saved file, beside a model of rank 4 that lacks the second:

# %% tags=["example"]
(a, shape), (b, _) = list(weight_shapes(kept_in / "adapter_model.safetensors").items())[:2]
compare_weights({a: shape, b: ()}, {a: (4, shape[1])})


# %% [markdown]
# Loading puts these together: notes, shapes, base, adapter, and the comparison that lets nothing through in silence.

# %%
#| export
def load_adapter(
    folder,  # an adapter's folder
    device: Device,  # where to put it
    base_model: str | None = None,  # another name for the same base; None: as the notes say
    trainable: bool = False,  # the adapter is to be trained further
) -> tuple:  # (PEFT model in evaluation mode, tokenizer, notes); ValueError if the adapter does not fit
    "Base model and adapter, ready to answer."
    load_libraries()
    from peft import PeftModel, get_peft_model_state_dict

    notes, saved = adapter_notes(folder), weight_shapes(Path(folder) / "adapter_model.safetensors")
    base, tokenizer = load_base(base_model or notes["base_model"], device)
    misfit, advice = (
        f"the adapter in {folder} does not fit the base model {base.name_or_path}",
        "give the base it was trained on",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT only warns of is checked below, and raises
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable, ignore_mismatched_sizes=True)
    except (RuntimeError, ValueError) as e:
        raise ValueError(f"{misfit}: {str(e).strip().splitlines()[0]}; {advice}") from e
    if trainable:  # as a fresh one is saved
        model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    wanted = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    require_whole(misfit, compare_weights(saved, wanted), f"{advice}, or save the adapter again")
    if notes.get("base_source", base.origin) != base.origin:
        warnings.warn(
            f"the adapter in {folder} was trained on {notes['base_source']}, "
            f"and answers now on {base.origin}: expect small differences",
            stacklevel=2,
        )
    return model.eval(), tokenizer, notes


# %% [markdown]
# A base is large and an adapter small, so several characters can share one base: each adapter gets a name, and `set_adapter` says which of them counts.

# %%
#| export
def load_another(
    model,  # what `load_adapter` gave
    folder,  # the folder of another adapter over the same base
    name: str,  # what it is called in the model
) -> dict:  # its notes; ValueError if it does not fit
    "Another adapter over the same base; the one that counts stays the same."
    from peft import get_peft_model_state_dict

    notes, origin = adapter_notes(folder), model.get_base_model().origin
    misfit = f"the adapter in {folder} does not fit the base model {origin}, over which the first one lies"
    advice = "give adapters that were trained on one base"
    require(
        notes.get("base_source", origin) == origin, f"{misfit}: it was trained on {notes.get('base_source')}; {advice}"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_adapter(str(folder), name, ignore_mismatched_sizes=True)
    except (RuntimeError, ValueError) as e:
        raise ValueError(f"{misfit}: {str(e).strip().splitlines()[0]}; {advice}") from e
    found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    wanted = {n: tuple(t.shape) for n, t in found.items()}
    require_whole(misfit, compare_weights(weight_shapes(Path(folder) / "adapter_model.safetensors"), wanted), advice)
    model.eval()
    return notes


# %% [markdown]
# Once training is over, the adapter can be added into the weights. The answers stay the same, and each token costs one matrix product less per layer:

# %%
#| export
def merge(
    model,  # a PEFT model, or a plain one
):  # the base model with the adapter added into its weights; a plain model as it is
    "One plain model: answers the same, faster."
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


# %% [markdown]
# An adapter with random numbers, as if it had been trained: what it changes in the logits, what saving and loading changes, and what merging does.

# %% tags=["example"]
cpu = find_device("cpu", "float32")
base, tokenizer = load_base(TINY, cpu)
model = add_adapter(base, LoRASettings(r=4, lora_alpha=8))
torch.manual_seed(0)
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.normal_(std=0.1)  # as if it had been trained
x = torch.tensor([tokenizer("Marge: Homer, the dog is wearing your tie again.").input_ids])
with tempfile.TemporaryDirectory() as folder:
    save_adapter(model, folder, {"base_model": TINY, "template": "script"})
    size = sum(p.stat().st_size for p in Path(folder).iterdir())
    again, _, notes = load_adapter(folder, cpu)
    with torch.no_grad():
        saved, loaded, without = model.eval()(x).logits, again(x).logits, load_base(TINY, cpu)[0](x).logits
    merged = merge(again)
    with torch.no_grad():
        plain = merged(x).logits
{
    "bytes on disk": size,
    "notes": notes,
    "moved by the adapter": round((loaded - without).abs().max().item(), 3),
    "loaded - saved": (loaded - saved).abs().max().item(),
    "merged - adapter": (plain - loaded).abs().max().item(),
}

# %% tags=["check"]
assert torch.equal(saved, loaded) and (loaded - without).abs().max() > 0.01
assert torch.allclose(plain, loaded, atol=1e-5)

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    save_adapter(add_adapter(load_base(TINY, cpu)[0], SEED_LORA), folder, {"base_model": TINY, "template": "script"})
    from safetensors.torch import load_file, save_file

    weights = load_file(Path(folder) / "adapter_model.safetensors")
    renamed = {k.replace("layers.1", "layers.7"): v for k, v in weights.items()}
    unseal(folder)  # as other tools leave it
    for bad in (renamed, dict(list(weights.items())[:-1]), {k: v.repeat(2, 2) for k, v in weights.items()}):
        save_file(bad, Path(folder) / "adapter_model.safetensors")
        try:
            load_adapter(folder, cpu)
            raise AssertionError
        except ValueError as e:
            assert "does not fit" in str(e), e
try:
    load_adapter("nowhere", cpu)
    raise AssertionError
except FileNotFoundError as e:
    assert "adapter" in str(e)

# %% [markdown]
# The same for adapters of every kind: saved, loaded on a fresh base, and still the same answers.

# %% tags=["check"]
for variant in (
    dict(use_rslora=True),
    dict(use_dora=True),
    dict(init_lora_weights="pissa"),
    dict(use_dora=True, use_rslora=True, init_lora_weights="pissa"),
):
    model = add_adapter(load_base(TINY, cpu)[0], LoRASettings(r=4, lora_alpha=8, **variant))
    with torch.no_grad():
        start = model(x).logits
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn_like(p))  # as if it had been trained
        trained = model.eval()(x).logits
        with tempfile.TemporaryDirectory() as folder:
            again = load_adapter(save_adapter(model, folder, {"base_model": TINY, "template": "script"}), cpu)[0](
                x
            ).logits
    assert torch.allclose(start, without, atol=2e-5) and torch.allclose(trained, again, atol=2e-5), variant
    assert (trained - without).abs().max() > 0.01


# %% [markdown]
# ## Models that were trained in full
#
# Full fine-tuning leaves no adapter but a whole model. It is kept in the form of transformers, with the same notes beside it; so whoever answers or publishes need not ask which of the two it is.

# %%
#| export
def save_model(
    model,  # a transformers model
    tokenizer,  # its tokenizer
    folder,  # where to
    notes: dict,  # facts to keep beside it; at least base_model and template
    weights: dict | None = None,  # name -> tensor, where the model holds only a part of each; None: the model's own
) -> Path:  # the folder
    "Save a whole model, its tokenizer and notes, and seal them."
    folder = open_folder(folder)
    unseal(folder)
    model.save_pretrained(folder, safe_serialization=True, **({"state_dict": weights} if weights else {}))
    tokenizer.save_pretrained(folder)
    write_json(folder / NOTES, notes)
    seal(folder)
    return folder


def is_whole_model(
    folder,  # any path
) -> bool:  # True for what `save_model` wrote
    "Is this a whole model with this book's notes?"
    return (Path(folder) / "config.json").is_file() and (Path(folder) / NOTES).is_file()


# %% [markdown]
# The whole tiny model in the folder of a run, where the saved adapter above is a sixth of its size:

# %% tags=["example"]
run_place = tempfile.TemporaryDirectory()
whole_in = save_model(*load_base(TINY, cpu), Path(run_place.name) / "model", {"base_model": TINY, "template": "script"})
print("whole model:", is_whole_model(whole_in), "- adapter:", is_whole_model(kept_in))
pd.DataFrame({"bytes": {p.name: p.stat().st_size for p in sorted(whole_in.iterdir())}})


# %% [markdown]
# One may point at a run (`runs/x`), at the adapter in it, or at an adapter from elsewhere. A run that trained *all* weights leaves `model/` in place of `adapter/`. Whoever answers or publishes finds both in the same way. What stands in `summary.json` belongs to the run, so a bare adapter has none, unless it lies in its run. A run that left nothing says how it ended.

# %%
#| export
@dataclass(frozen=True)
class Trained:
    "What training left behind."

    kind: str  # "adapter", or "model" where all weights were trained
    folder: Path  # where the weights lie
    notes: dict  # the facts beside them: base_model, template, max_seq_len, speakers and more
    summary: dict = field(default_factory=dict)  # the run's summary.json; empty if there is none


# %%
#| export
def read_summary(
    run: Path,  # a run's folder, or any other
) -> dict:  # what summary.json holds; {} if there is none; ValueError if it is damaged
    "How a run ended."
    advice = "bring it back, or remove it: the weights do not need it"
    if not (run / "summary.json").is_file():
        return {}
    found = read_json(run / "summary.json", dict, advice)
    # one of a run that is going on, or has failed, is written over again and again
    if "optimizer_steps" in found:
        require_sealed(run, "the run", advice, ["summary.json"])
    return found


def find_trained(
    source,  # a run's folder, an adapter's, or a whole model's
) -> Trained:  # FileNotFoundError or ValueError if there is nothing, or no telling what
    "What lies in a folder."
    source = Path(source)
    inside = [source / n for n in ("adapter", "model") if (source / n).is_dir()]
    require(
        len(inside) < 2,
        f"{source} holds both an adapter and a whole model; give one of them: {' or '.join(map(str, inside))}",
    )
    folder = inside[0] if inside else source
    run = folder.parent if folder.name in ("adapter", "model") else folder
    summary = read_summary(run)
    if is_whole_model(folder):
        require_sealed(folder, "the model", "bring the file back, or make it again", [NOTES])
        notes = read_json(folder / NOTES, dict)
        # an export carries the summary with it
        return Trained("model", folder, notes, summary or notes.get("run", {}))
    if not (folder / "adapter_config.json").is_file():
        ended = ": ".join(summary[k] for k in ("status", "error") if summary.get(k))
        raise FileNotFoundError(
            f"no adapter in {source}, and no model with {NOTES}; {f'its summary says: {ended}; ' if ended else ''}"
            "give the folder of a finished run, such as runs/x, or of an adapter"
        )
    return Trained("adapter", folder, adapter_notes(folder), summary)


# %% [markdown]
# Both folders from above, by the same call:

# %% tags=["example"]
[(found.kind, found.folder.name == "model", found.notes) for found in map(find_trained, (kept_in, run_place.name))]


# %% [markdown]
# Whoever answers needs model and tokenizer, of whichever kind:

# %%
#| export
def load_tuned(
    source,  # a run's folder, or what `save_adapter` or `save_model` wrote
    device: Device,  # where to put it
    base_model: str | None = None,  # adapters: another name for the same base; None: as the notes say
) -> tuple:  # (model in evaluation mode, tokenizer, notes); errors as `find_trained` and `load_adapter`
    "What fine-tuning left, adapter or whole model, ready to answer."
    trained = find_trained(source)
    if trained.kind == "adapter":
        return load_adapter(trained.folder, device, base_model)
    model, tokenizer = load_base(str(trained.folder), device)
    return model.eval(), tokenizer, trained.notes


# %% tags=["check"]
with tempfile.TemporaryDirectory() as run:
    save_adapter(
        add_adapter(load_base(TINY, cpu)[0], SEED_LORA),
        Path(run) / "adapter",
        {"base_model": TINY, "template": "script"},
    )
    write_json(Path(run) / "summary.json", {"status": "done"})
    for source in (run, Path(run) / "adapter"):
        assert (found := find_trained(source)).kind == "adapter" and found.summary == {"status": "done"}
    assert load_tuned(run, cpu)[2]["template"] == "script"
    (Path(run) / "adapter" / "adapter_config.json").unlink()  # as if it had failed before it was saved
    write_json(Path(run) / "summary.json", {"status": "failed", "error": "ValueError: a batch learns nothing"})
    try:
        load_tuned(run, cpu)
        raise AssertionError
    except FileNotFoundError as e:
        print(str(e).replace(run, "runs/x"))


# %% [markdown]
# Several runs become one model with several adapters, over one base that is loaded once. They cannot be merged, since the weights belong to all of them:

# %%
#| export
def load_several(
    sources: list,  # runs or adapters' folders; one alone may hold a whole model
    device: Device,  # where to put it
    base_model: str | None = None,  # another name for the same base; None: as the first one's notes say
) -> tuple:  # (model, tokenizer, notes of each by its adapter's name: default, run1, run2 ...); as `load_tuned`
    "What several runs left, as one model; the first adapter counts until `set_adapter` names another."
    for source in sources if len(sources) > 1 else ():
        kind = find_trained(source).kind
        require(kind == "adapter", f"{source} holds a whole model; of several runs each must have left an adapter")
    model, tokenizer, notes = load_tuned(sources[0], device, base_model)
    others = {f"run{k}": find_trained(source).folder for k, source in enumerate(sources) if k}
    return model, tokenizer, {"default": notes} | {n: load_another(model, f, n) for n, f in others.items()}


# %% [markdown]
# To show what training changed, the base has to speak as well. An adapter can be switched off; beside a whole model the base is loaded again.

# %%
#| export
@contextmanager
def untuned(
    model,  # what `load_tuned` gave
    notes: dict,  # its notes
):  # the base model, in evaluation mode
    "The base model of a fine-tuned one, for the length of a `with` block."
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield model
        return
    yield load_base(
        notes["base_model"],
        find_device(model.device.type, str(model.dtype).removeprefix("torch."), model.device.index or 0),
    )[0].eval()


# %% [markdown]
# The adapter of random numbers again: how far the logits are from the base's, as it answers, and inside the block.

# %% tags=["example"]
tuned = add_adapter(load_base(TINY, cpu)[0], LoRASettings(r=4)).eval()
with torch.no_grad():
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            p.fill_(0.1)
    answers = {"tuned": (tuned(x).logits - without).abs().max().item()}
    with untuned(tuned, {}) as plain_base:
        answers["untuned"] = (plain_base(x).logits - without).abs().max().item()
answers

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    whole, tokenizer = load_base(TINY, cpu)
    # as if it had been trained
    with torch.no_grad():
        whole.model.layers[0].mlp.up_proj.weight.add_(0.1)
    again, _, notes = load_tuned(save_model(whole, tokenizer, folder, {"base_model": TINY, "template": "script"}), cpu)
    with torch.no_grad(), untuned(again, notes) as before:
        assert torch.equal(again(x).logits, whole(x).logits) and torch.equal(before(x).logits, without)
    assert (again(x).logits - without).abs().max() > 0.01
