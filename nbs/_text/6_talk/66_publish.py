# %%
#| default_exp talk.publish

# %% [markdown]
# # Publishing a model
#
# > From base and adapter to one model that others load without this book and without PEFT.
#
# An adapter is a small file that is worth nothing without its base, its prompts and its tools. To give a character away, it is made into *one* model: the adapter is added into the weights, and the sum is written as plain safetensors, with a card that says where it comes from. On request it also becomes a GGUF file with a Modelfile, which is made [for llama.cpp and Ollama](64_ollama.ipynb).
#
# Each step can go wrong without a word: a merge that loses what was learned, rounding that hides it, a folder that is only half written. So the result is held against the model it was made from, before it counts as done.

# %%
#| export
import copy
import os
import re
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import known_speaker
from simpsons_llm.data.prompt import CLOCK, TextMaker, prompt_ids
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import (
    Facts,
    hold_folder,
    open_folder,
    provenance,
    read_json,
    require,
    seal,
    sha256,
    write_json,
    write_text,
)
from simpsons_llm.model.adapter import NOTES, Trained, find_trained, load_tuned, merge
from simpsons_llm.model.base import OPEN_LLAMA, SMOLLM2, TINY, WHEEL, find_base, load_whole, local_source
from simpsons_llm.model.infer import SOMEBODY
from simpsons_llm.talk.ollama import OUTTYPES, SAMPLE, modelfile, to_gguf
from simpsons_llm.talk.serve import curl_command
from simpsons_llm.talk.template import scene_template, template_note

# %%
#| hide
import io
import tempfile
from contextlib import redirect_stdout

import pandas as pd
import torch
from IPython.display import Markdown

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.model.adapter import add_adapter, load_adapter, save_adapter, save_model
from simpsons_llm.model.base import load_base

torch.manual_seed(0)

# %% [markdown]
# ## Something to publish
#
# The example is the tiny model, which reads bytes and knows nothing. It gets an adapter and twenty steps of plain training on the book's script, one scene each. That takes a second, and the numbers below are real: the loss on scenes it was not trained on, before and after. (How training is done properly is told in [fine-tuning](../4_train/47_finetune.ipynb).) What comes out lies in a folder as a run leaves it: `adapter/`, and `summary.json` with settings and results.

# %% tags=["example"]
cpu, place = find_device("cpu", "float32"), Path(tempfile.mkdtemp())
run = place / "x"
base, tokenizer = load_base(TINY, cpu)
model = add_adapter(base, LoRASettings(r=8, lora_alpha=32))
texts = [
    f"[{s.location or 'Scene'}]\n" + "".join(f"{line.speaker}: {line.text}\n" for line in s.lines)
    for s in read_script("springfield").scenes
]
rows = [torch.tensor([tokenizer(t).input_ids[:400]]) for t in texts]


def heldout():
    with torch.no_grad():
        return sum(model(x, labels=x).loss.item() for x in rows[-8:]) / 8


before, optimizer = heldout(), torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
for x in rows[:20]:
    model(x, labels=x).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
save_adapter(
    model,
    run / "adapter",
    {
        "base_model": TINY,
        "base_source": base.origin,
        "template": "script",
        "max_seq_len": 400,
        "speakers": {"Homer Simpson": 406, "Marge Simpson": 206},
    },
)
write_json(
    run / "summary.json",
    {
        "status": "done",
        "base_model": TINY,
        "base_source": base.origin,
        "settings": {"template": "script", "r": 8, "lora_alpha": 32, "learning_rate": 5e-3},
        "optimizer_steps": 20,
        "best_step": 20,
        "valid_loss_nats_base": before,
        "valid_loss_nats_best": heldout(),
        "script_sha256": sha256(read_script("springfield").path),
    },
)
{"before": round(before, 3), "after": round(heldout(), 3)}

# %% [markdown]
# ## What a folder holds
#
# `find_trained` of [the chapter on adapters](../3_model/31_adapter.ipynb) says what lies in a folder: a run's, an adapter's, or a whole model's. A run that trained *all* weights left `model/` in place of `adapter/`: there is nothing to merge, but it is published in the same way.

# %% tags=["check"]
for source in (run, run / "adapter"):
    assert (t := find_trained(source)).kind == "adapter" and t.summary["optimizer_steps"] == 20, source


def refused(call, *args, **kwargs):
    "The sentence with which this call must be refused."
    try:
        call(*args, **kwargs)
    except (ValueError, FileNotFoundError) as e:
        return str(e).replace(str(place), "runs")
    raise AssertionError("nothing was refused")


(place / "empty").mkdir()
refused(find_trained, place / "empty")


# %% [markdown]
# ## How different are two answers?
#
# A model answers with a row of logits for each place: a number for each token that could come next. Only differences within a row count (the softmax takes off what all have in common), so each row is centred first. The distance between two models is then the length of the difference, relative to the length of the logits themselves: 0 means the same answer, and 0.01 is a shift of one percent.
#
# What they are asked is one line of a scene (`SAMPLE`), in the form of the training.

# %%
#| export
def logit_distance(
    logits,  # of one model, ... x V
    wanted,  # of the model to compare with, same shape
) -> float:  # 0: the same; nan if either is not a number somewhere
    "Relative length of the difference between two models' logits."
    centred = wanted - wanted.mean(-1, keepdim=True)
    return ((logits - logits.mean(-1, keepdim=True) - centred).norm() / centred.norm()).item()


def answer_logits(
    model,  # any model for text
    maker: TextMaker,  # tokenizer and template of its training
    speaker: str,  # who answers
):  # T x V, fp32, on the CPU
    "What a model says at each place of a short prompt."
    import torch

    ids = torch.tensor([prompt_ids(maker, "", SAMPLE, speaker)], device=model.device)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0].float().cpu()


# %% [markdown]
# ## Merged in 32 bits, rounded once
#
# The change that was learned is small beside the weights. A 16-bit number keeps few digits: bfloat16 keeps 8 binary ones, so a change below 1/256 of a weight is often rounded away. If the sum is made in bfloat16, the product $BA$ is rounded, then the sum, and then the next layer reads it. So the sum is always made in fp32, and rounded once, when it is saved.
#
# How much is lost? For each format: how far the answers move from those of the adapter model, beside how far training had moved them.

# %% tags=["example"]
maker, who = TextMaker(tokenizer), "Homer Simpson"
adapted, _, _ = load_adapter(run / "adapter", cpu)
wanted = answer_logits(adapted, maker, who)
with adapted.disable_adapter():
    learned = logit_distance(answer_logits(adapted, maker, who), wanted)
whole = merge(copy.deepcopy(adapted))
weights = {k: v.clone() for k, v in whole.state_dict().items()}


def rounded(dtype):
    "The merged model with all its weights rounded to a format, in fp32 arithmetic."
    whole.load_state_dict({k: v.to(dtype) for k, v in weights.items()})
    return answer_logits(whole, maker, who)


formats = (torch.float32, torch.float16, torch.bfloat16)
table = {
    "the base, without the adapter": learned,
    **{f"merged in fp32, saved as {d}".replace("torch.", ""): logit_distance(rounded(d), wanted) for d in formats},
}
table["merged and saved in bfloat16"] = logit_distance(
    answer_logits(merge(copy.deepcopy(adapted).bfloat16()).float(), maker, who), wanted
)
table = pd.Series(table, name="distance")
display(table.map("{:.1e}".format).to_frame())
once, twice = table.iloc[3], table.iloc[4]
Markdown(
    f"Training moved the answers by {learned:.0%}. Rounding the finished sum to bfloat16 moves them by {once:.2%} "
    f"({once * 2**8:.1f} times $2^{{-8}}$); a sum made in bfloat16, by {twice:.2%}, {twice / once:.1f} times as far."
)

# %% [markdown]
# From this follow the limits. In fp32 only the order of additions differs: a unit of rounding is $2^{-24}$, so even thousands of them stay below $10^{-4}$. Rounding a weight to a format with $p$ binary digits changes it by at most $2^{-p}$ of its size, up or down. Over many weights and layers these errors partly cancel, so the distance stays in the neighbourhood of $2^{-p}$; the limit is 16 times that. A merge that went wrong is off by far more.
#
# The limit alone would let something through: an adapter that learned so little that rounding hides it. So rounding must also move the answers by less than half of what training did.

# %%
#| export
# format of the weights -> greatest distance from the model it was made from
DTYPES = {"float32": 1e-4, "float16": 16 * 2**-11, "bfloat16": 16 * 2**-8}


def hold_against(
    distance: float,  # from the model it was made from
    dtype: str,  # format of the saved weights, one of DTYPES
    learned: float | None = None,  # distance between base and adapter model; None: not known
) -> float:  # the limit that was held; ValueError if it was not
    "Does a saved model answer as the one it was made from?"
    limit = DTYPES[dtype] if learned is None else max(DTYPES["float32"], min(DTYPES[dtype], learned / 2))
    better = (
        "report this"
        if dtype == "float32"
        else "use dtype=float32"
        if dtype == "bfloat16"
        else "use dtype=bfloat16 or float32"
    )
    because = (
        f"; training itself moved the answers by only {learned:.1e}"
        if learned is not None and learned / 2 < DTYPES[dtype]
        else ""
    )
    require(
        distance <= limit,
        f"the model saved in {dtype} answers differently from the one it was made from "
        f"(distance {distance:.1e}, expected at most {limit:.1e}){because}; {better}",
    )
    return limit


# %% tags=["check"]
for distance, dtype in zip(table.iloc[1:4], DTYPES):
    assert hold_against(distance, dtype, learned) == DTYPES[dtype]
assert once < twice
for wrong in (
    (learned, "float32", learned),
    (learned, "bfloat16", learned),
    (float("nan"), "float16"),
    (once, "bfloat16", once),
):
    refused(hold_against, *wrong)
refused(hold_against, once, "bfloat16", once)


# %% [markdown]
# ## All of it, or nothing
#
# A folder that is half written looks like a model. So the files are made in a hidden folder beside the place they go to, and the folder is renamed when all is checked. An earlier export is replaced in the same step; a folder that holds anything else is left alone. An export is known by its notes.

# %%
#| export
def exported_notes(
    folder,  # any folder
) -> dict:  # template, max_seq_len, speakers, base_model and more; `export`: how it was made; empty if there are none
    "The facts beside an exported model: what whoever asks it must know."
    return read_json(Path(folder) / NOTES) if (Path(folder) / NOTES).is_file() else {}


@contextmanager
def new_folder(
    out,  # where the finished folder goes; ValueError if something else is there
):  # a folder to fill; it takes its place when the block ends well, and is removed otherwise
    "A folder that appears only when it is complete."
    out = Path(out)
    taken = out.exists() and not (out.is_dir() and (not any(out.iterdir()) or "export" in exported_notes(out)))
    require(not taken, f"{out} is there already and is not an earlier export; choose a new folder")
    whole = Path(os.path.abspath(out))
    making, old = whole.with_name(f".{whole.name}.making"), whole.with_name(f".{whole.name}.old")
    open_folder(whole.parent)
    # beside it, since the folder itself is replaced
    with hold_folder(whole, "export", lock=whole.with_name(f".{whole.name}.lock")):
        for p in (making, old):
            shutil.rmtree(p, ignore_errors=True)
        making.mkdir()
        try:
            yield making
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        if whole.exists():
            whole.rename(old)
        making.rename(whole)
        shutil.rmtree(old, ignore_errors=True)


# %% tags=["check"]
try:
    with new_folder(place / "broken") as folder:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert not any("broken" in p.name for p in place.iterdir())
with new_folder(place / "full") as folder:
    (folder / "something.txt").write_text("mine")
# an empty folder is free
with new_folder(place / "empty") as folder:
    (folder / "something.txt").write_text("mine")
said = refused(new_folder(place / "full").__enter__)
assert [p.name for p in (place / "full").iterdir()] == ["something.txt"]
said


# %% [markdown]
# ## Merge and export
#
# `dtype="auto"` keeps the format the base is stored in, since more digits than it has are wasted on most of the weights. The tiny model, and the numbers unpacked from a GGUF file, are fp32. Notes and card are read by strangers: a path on one's own machine tells them nothing, so of a folder or file only its name is kept.

# %%
#| export
def stored_dtype(
    name: str,  # a base model's name, as for `load_base`
) -> str:  # "float32", "float16" or "bfloat16"
    "The format in which a base model's weights are stored."
    from transformers import AutoConfig

    base = find_base(name)
    if base.kind in ("tiny", "gguf"):
        return "float32"
    dtype = str(AutoConfig.from_pretrained(local_source(base)).dtype).removeprefix("torch.")
    return dtype if dtype in DTYPES else "float32"


def public_name(
    text: str | None,  # a base model's name or origin, such as "gguf /home/me/llama.gguf"; may be None
) -> str | None:  # the same without the folders
    "A base model's name as a stranger may read it."
    kind, _, path = (text or "").partition(" ")
    if kind in ("folder", "gguf") and path:
        return f"{kind} {Path(path).name}"
    return (
        Path(text).name
        if text and (Path(text).is_absolute() or text.startswith((".", "~")) or Path(text).exists())
        else text
    )


# %% [markdown]
# The generation settings are saved too. The tokens that end an answer stand there, which for a script is the newline: then `generate` stops by itself, in anybody's hands. How words are drawn (`sampling`) is given by the caller, in the names that `generate` uses. The chat template is the one of [a scene as messages](65_template.ipynb), with the character's name in it: whoever asks the model through it, in whatever program, writes the prompt of the training. A date in it is that of the training, on every day. (An adapter alone cannot do that: it comes with its base's tokenizer and template. Who serves an adapter elsewhere passes the template of a published folder on.)

# %%
#| export
def write_model(
    model,  # a whole model, in fp32
    maker: TextMaker,  # its tokenizer and template
    dtype: str,  # format of the weights, one of DTYPES
    folder: Path,  # where to
    sampling: dict,  # settings of `generate` to save; may be empty
    speaker: str = SOMEBODY,  # who answers, where the chat template is asked for nobody else
    names: tuple = (),  # whom else it may be asked for; empty: anybody
):
    "Model, generation settings, tokenizer and chat template as plain files."
    import torch
    from transformers import GenerationConfig

    size = torch.finfo(getattr(torch, dtype)).bits // 8 * sum(p.numel() for p in model.parameters())
    free = shutil.disk_usage(folder).free
    require(
        free > size,
        f"the model needs {size / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB left; "
        "choose another folder or a 16-bit dtype",
    )
    tokenizer = copy.copy(maker.tokenizer)
    tokenizer.chat_template = scene_template(maker, speaker, names)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=maker.stop_ids,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # they are written for the owner's eyes only
    for p in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", p)


# %% [markdown]
# The proof is made with what lies on the disk, loaded as a stranger would: by transformers alone.

# %%
#| export
def merge_and_export(
    source,  # a run's folder, an adapter's, or a whole model's
    out,  # folder for the model; new, empty, or an earlier export
    dtype: str = "auto",  # "float32", "float16", "bfloat16"; "auto": as the base is stored
    base_model: str | None = None,  # another name for the same base; None: as the notes say
    device: str = "cpu",  # where the sum is made, always in fp32: "cpu", "xpu", "cuda" or "auto"
    sampling: dict | None = None,  # settings of `generate` to save, e.g. {"do_sample": True, "temperature": 0.8}
    speaker: str = "",  # who answers, where the chat template is asked for nobody else; empty: the first of the notes
) -> dict:  # kind (how it was trained), dtype, parameters, learned, merged, saved, limit; ValueError, FileNotFoundError
    """Add the adapter into the weights, save the plain model, and prove that it answers the same.

    Distances of the answers: learned (None: not known), merged, saved, and the limit of saved."""
    import torch

    require(dtype == "auto" or dtype in DTYPES, f"dtype={dtype!r} was given; expected auto, {', '.join(DTYPES)}")
    trained = find_trained(source)
    require(
        not trained.folder.resolve().is_relative_to(Path(out).resolve()),
        f"out={out} would replace what is exported ({trained.folder}); choose another folder",
    )
    notes, speaker = trained.notes, main_speaker(trained.notes, speaker)
    name = str(trained.folder) if trained.kind == "model" else base_model or notes.get("base_model")
    if not name:
        raise ValueError(f"the adapter in {trained.folder} does not say what its base model is; give base_model")
    with new_folder(out) as folder:
        where, learned = find_device(device, "float32"), None
        model, tokenizer, _ = load_tuned(trained.folder, where, name)
        maker = TextMaker.of_notes(tokenizer, notes)
        wanted = answer_logits(model, maker, speaker)
        if trained.kind == "adapter":
            with model.disable_adapter():
                learned = logit_distance(answer_logits(model, maker, speaker), wanted)
            model = merge(model)
        merged = logit_distance(answer_logits(model, maker, speaker), wanted)
        hold_against(merged, "float32", learned)
        dtype = stored_dtype(name) if dtype == "auto" else dtype
        write_model(model, maker, dtype, folder, sampling or {}, speaker, tuple(notes.get("speakers") or ()))
        parameters = sum(p.numel() for p in model.parameters())
        del model
        again = load_whole(folder, "the saved model", "report this", dtype=torch.float32)
        saved = logit_distance(answer_logits(again, maker, speaker), wanted)
        was = notes.get("export", {})  # of an earlier export: how that was trained
        learned = was.get("learned") if learned is None else learned
        record = {
            "kind": was.get("kind", trained.kind),
            "dtype": dtype,
            "parameters": parameters,
            "learned": learned,
            "merged": merged,
            "saved": saved,
            "limit": hold_against(saved, dtype, learned),
        }
        public = {k: public_name(notes[k]) for k in ("base_model", "base_source") if notes.get(k)}
        summary = {k: public_name(v) if k in ("base_model", "base_source") else v for k, v in trained.summary.items()}
        write_json(
            folder / NOTES, {**notes, **public, "run": summary, "export": {**record, "provenance": provenance()}}
        )
        seal(folder)
    return record


def main_speaker(
    notes: dict,  # the notes beside a model
    want: str = "",  # who is wanted, in any case of letters; empty: the first of the notes
) -> str:  # a name; ValueError if the model was not trained on that character
    "The character that answers where one must be named."
    known = notes.get("speakers") or {}
    return known_speaker(want, known) if want else next(iter(known), SOMEBODY)


# %% tags=["example"]
record = merge_and_export(run, place / "export")
print(", ".join(sorted(p.name for p in (place / "export").iterdir())))
{k: f"{v:.1e}" if isinstance(v, float) else v for k, v in record.items()}

# %% [markdown]
# `learned` is how far training moved the answers, `merged` and `saved` how far merging and saving did: nothing but the order of additions is left. The folder holds nothing of ours but the notes. In bfloat16 it is half the size, and the numbers are those of the table above:

# %% tags=["check"]
from transformers import AutoModelForCausalLM, AutoTokenizer

assert record["saved"] < 1e-5 < 0.1 < record["learned"]
again, small = (
    AutoModelForCausalLM.from_pretrained(place / "export"),
    merge_and_export(run / "adapter", place / "small", "bfloat16"),
)
assert type(again).__name__ == "LlamaForCausalLM" and again.generation_config.eos_token_id == maker.stop_ids
assert (
    abs(small["saved"] - once) < 1e-6 and AutoModelForCausalLM.from_pretrained(place / "small").dtype == torch.bfloat16
)
size = {n: (place / n / "model.safetensors").stat().st_size for n in ("export", "small")}
assert size["small"] < 0.6 * size["export"]
assert AutoTokenizer.from_pretrained(place / "export")("Ay, caramba").input_ids == tokenizer("Ay, caramba").input_ids
size

# %% [markdown]
# A model of which all weights were trained goes the same way. An export can be exported again, in another format, and remembers how it was trained. And what must not happen is refused:

# %% tags=["check"]
rerun = merge_and_export(place / "export", place / "small", "float16")  # replaces an earlier export
assert (
    rerun["kind"] == "adapter"
    and rerun["learned"] == record["learned"]
    and rerun["saved"] < rerun["limit"] == DTYPES["float16"]
)
full, full_tokenizer = load_base(TINY, cpu)
save_model(full, full_tokenizer, place / "y" / "model", {"base_model": TINY, "template": "alpaca"})
assert (
    (own := merge_and_export(place / "y", place / "small"))["kind"] == "model"
    and own["learned"] is None
    and own["saved"] < 1e-6
)
said = [
    refused(merge_and_export, *args)
    for args in (
        (run, place / "full"),
        (run, run),
        (place / "export", place / "export"),
        (run, place / "new", "int4"),
        (place / "nowhere", place / "new"),
    )
]
assert not (place / "new").exists()
said

# %% [markdown]
# ## The card
#
# A model without a description is a riddle. The card, `README.md`, begins with facts for machines (the hub's model pages read them), then says in words what the model is, where it comes from, how good it is, how to ask it, and under which terms. Numbers are taken from the run's summary and from the export; what is not known is left out.
#
# The base's licence is known for the two models this book names. Then it stands in the card, if the script was the book's own. Otherwise the licence is `other`, with a sentence for whoever publishes the model to fill in.

# %%
#| export
LICENCES = {WHEEL["hub"]: "apache-2.0", OPEN_LLAMA: "apache-2.0"}  # of base models, by hub id


def hub_id(
    name: str | None,  # a base model's name; may be None
) -> str:  # its id on the hub; empty for a file, a folder or the tiny model
    "What a base model is called by everybody."
    if name == SMOLLM2:
        return WHEEL["hub"]
    return name if name and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists() else ""


def card_head(
    base: str,  # the base's hub id; may be empty
    own: bool,  # whether the script was the book's own
    kind: str,  # how it was trained: "adapter" or "model" (all weights)
    alone: bool = False,  # an adapter by itself, and no whole model
) -> str:  # YAML between two rows of dashes
    "The facts of a card that machines read."
    rows = [f"base_model: {base}", f"base_model_relation: {'adapter' if alone else 'finetune'}"] if base else []
    rows += [
        f"license: {LICENCES.get(base, 'other') if own else 'other'}",
        f"library_name: {'peft' if alone else 'transformers'}",
        "pipeline_tag: text-generation",
    ]
    rows += ["language: en"] * own + ["tags:", "- simpsons_llm", "- dialogue", *["- lora"] * (kind == "adapter")]
    return "\n".join(["---", *rows, "---"])


# %% [markdown]
# What is known about the training, as rows of a table; a row without a value is left out:

# %%
#| export
def card_table(
    trained: Trained,  # what was published
    record: dict,  # what `merge_and_export` returned; for an adapter alone, its kind
) -> list:  # rows of Markdown
    "What a model was made from, how, and how good it is."
    s, notes = trained.summary, trained.notes
    whole = "saved" in record
    settings, hashes = s.get("settings") or {}, s.get("data_sha256") or notes.get("data_sha256") or {}

    def loss(name):
        return (
            f"{s[f'{name}_loss_nats_base']:.4f} before, {s[f'{name}_loss_nats_best']:.4f} after"
            if f"{name}_loss_nats_best" in s and f"{name}_loss_nats_base" in s
            else None
        )

    rows = {
        "base": public_name(s.get("base_model") or notes.get("base_model")),
        "base's numbers from": public_name(s.get("base_source") or notes.get("base_source")),
        "trained": "all weights"
        if record["kind"] == "model"
        else f"a LoRA adapter{', merged into the weights' * whole}",
        "recipe": s.get("recipe") or notes.get("recipe"),
        "settings": ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None) or None,
        "lines learned": f"{s['train_lines']:,}; held out: {s['valid_lines']:,}"
        if {"train_lines", "valid_lines"} <= s.keys()
        else None,
        "tokens learned, at full weight": f"{s['learned_tokens']:,}" if "learned_tokens" in s else None,
        "tokens of others' lines, at less": f"{s['context_tokens']:,}" if s.get("context_tokens") else None,
        "optimizer steps": s.get("optimizer_steps"),
        "step kept": s.get("best_step"),
        "held-out loss, nats per token": loss("valid"),
        "test loss, nats per token": loss("test"),
        "data, SHA-256": ", ".join(f"{k} {v[:12]}" for k, v in hashes.items()) or None,
        "script, SHA-256": s.get("script_sha256", "")[:12] or None,
        "trained on": f"{s['device']} ({s['dtype']}), {s['world_size']} process{'es' * (s['world_size'] > 1)}"
        if {"device", "dtype", "world_size"} <= s.keys()
        else None,
        "parameters": f"{record['parameters']:,} in {record['dtype']}" if whole else None,
        "difference from the model it was made from": f"{record['saved']:.1e} of the logits' size"
        + (f" (training moved them by {record['learned']:.1e})" if record["learned"] else "")
        if whole
        else None,
        "versions": ", ".join(f"{k} {v}" for k, v in s.get("provenance", {}).items() if v) or None,
    }
    return ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items() if v is not None)]


# %% [markdown]
# Who has the folder wants to know what to type. The programs that can serve it are started with one line each, and asked with another, the same for all: they all speak the language of OpenAI's server. What they do with the folder is told in [other people's tools](67_tools.ipynb). None but this machine can reach them. They listen at port 8000, `llama-server` at 8080.

# %%
#| export
HERE = "http://127.0.0.1:8000"  # where most of them listen


def serve_commands(
    folder: str,  # the published folder, as it is to be typed
    max_seq_len: int | None = None,  # most tokens of a scene in training; None: not known
    gguf: str = "",  # name of the GGUF file in it; empty if there is none
) -> dict:  # program -> a line for the shell; those of llama.cpp only where there is a GGUF file
    "How other programs serve a published model."
    n, loopback = max_seq_len, ["--host", "127.0.0.1"]
    lines = {
        "transformers": ["transformers", "serve", folder, *loopback],
        "vLLM": ["vllm", "serve", folder, *loopback, *(["--max-model-len", str(n)] if n else [])],
    }
    if gguf:
        file = os.path.join(folder, gguf)
        lines["llama.cpp"] = ["llama-server", "-m", file, "--jinja", *(["-c", str(n)] if n else [])]
        lines["llama-cpp-python"] = ["python", "-m", "llama_cpp.server", "--model", file]
        lines["llama-cpp-python"] += ["--n_ctx", str(n)] if n else []
    return {program: shlex.join(words) for program, words in lines.items()}


# %% tags=["example"]
for program, line in serve_commands("runs/x/export", 512, "model-f16.gguf").items():
    print(f"{program:18}{line}")
tie = "Marge Simpson: Homer, the dog is wearing your tie again."
print("and then:         ", curl_command(HERE, "runs/x/export", tie))


# %% [markdown]
# The code in a card should run, whatever the character is called: names are quoted for the shell. It asks with the text of the training, and the tokens that end an answer come from the saved generation settings:

# %%
#| export
def card_use(
    maker: TextMaker,  # tokenizer and template
    speaker: str,  # who answers
    gguf: str = "",  # name of the GGUF file; empty if there is none
    note: str = "",  # what `template_note` said
) -> list:  # rows of Markdown
    "How to ask the model."
    said = f"{SAMPLE[0].speaker}: {SAMPLE[0].text}"
    rows = [
        "With transformers, in this folder:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."',
        f'messages = [{{"role": "user", "content": {said!r}}}]',
        "tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)",
        'how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}',
        "ids = tokenizer.apply_chat_template(messages, **how)",
        "answer = model.generate(**ids, max_new_tokens=60)[0, ids.input_ids.shape[1]:]",
        "print(tokenizer.decode(answer, skip_special_tokens=True).strip())",
        "```",
        "",
        f"Messages are a scene: `system` is its place, rows of `Name: line` by `user` are what others say, `assistant` "
        f"is what {speaker} says. Where a tool passes `chat_template_kwargs` on, `speaker` names another character.",
        *([f"Mind that {note}."] if note else []),
        "",
        "As a server, in this folder, with one of these lines:",
        "",
        "```sh",
        *serve_commands(".", maker.max_seq_len, gguf).values(),
        "```",
        "",
        "With simpsons_llm, which reads the form of the prompt from the notes in the folder:",
        "",
        "```sh",
        shlex.join(["simpsons-llm", "infer", "--adapter", ".", "--speaker", speaker, said]),
        "```",
    ]
    name = re.sub(r"[^a-z0-9]+", "-", speaker.lower()).strip("-") or "character"
    if gguf:
        rows += [
            "",
            "With Ollama; what is typed are lines of the scene:",
            "",
            "```sh",
            f"ollama create {name} -f Modelfile",
            shlex.join(["ollama", "run", name, said]),
            "```",
        ]
    if maker.frame and maker.frame.template.startswith(CLOCK):
        rows += [
            "",
            f"The chat template in this folder writes the date of the training, {maker.date}, on every day: "
            "the model has seen no other.",
        ]
    return rows


# %% [markdown]
# An adapter that is given away by itself is loaded beside its base, and asked with the text:

# %%
#| export
def adapter_use(
    base: str,  # the base's hub id; may be empty
    maker: TextMaker,  # tokenizer and template
    speaker: str,  # who answers
) -> list:  # rows of Markdown
    "How to ask an adapter that comes without its base."
    said = f"{SAMPLE[0].speaker}: {SAMPLE[0].text}"
    return [
        "With transformers and PEFT, in this folder:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {base or 'FOLDER OF THE BASE MODEL'!r}",
        f"prompt = {maker.tokenizer.decode(prompt_ids(maker, '', SAMPLE, speaker))!r}",
        "tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)",
        'model = PeftModel.from_pretrained(model, ".")',
        'ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
        f"answer = model.generate(**ids, max_new_tokens=60, eos_token_id={maker.stop_ids})[0, ids.input_ids.shape[1]:]",
        "print(tokenizer.decode(answer, skip_special_tokens=True).strip())",
        "```",
        "",
        "With simpsons_llm, which reads base and form of the prompt from the notes in the folder:",
        "",
        "```sh",
        shlex.join(["simpsons-llm", "infer", "--adapter", ".", "--speaker", speaker, said]),
        "```",
    ]


# %%
#| export
def model_card(
    trained: Trained,  # what was published
    record: dict,  # what `merge_and_export` returned; {"kind": "adapter"} for an adapter alone
    maker: TextMaker,  # tokenizer and template of the training
    speaker: str = "",  # who answers in the examples; empty: the first of the notes
    gguf: str = "",  # name of the GGUF file; empty if there is none
    note: str = "",  # what `template_note` said
) -> str:  # Markdown with a YAML head
    "README.md of a published model."
    s, base = trained.summary, hub_id(trained.summary.get("base_model") or trained.notes.get("base_model"))
    speaker, names = speaker or main_speaker(trained.notes), list(trained.notes.get("speakers") or {})
    whole = "saved" in record
    script = s.get("script_sha256")
    own = script == sha256(read_script("springfield").path)
    title = (
        ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "") or "A character of a script"
    )
    words = [
        f"# {title}",
        "",
        f"{'A language model' if whole else 'An adapter for a language model'} that says the next line of a character "
        "in a scene. It was fine-tuned on the lines "
        f"of a script with simpsons_llm, and is asked with the scene so far in the form `{maker.template}`.",
    ]
    if s.get("status") == "not better than the base":
        words += ["", "**On held-out scenes this model was not better than its base.**"]
    licence = [
        f"The base model, {base}, comes under {LICENCES[base]}; its terms go on to apply."
        if base in LICENCES
        else (
            f"The weights are made from {base or 'the base model named above'}, whose terms go on to apply. "
            "FILL IN before publishing: its licence, and set `license` at the top of this file."
        )
    ]
    licence += [
        "The script was written for simpsons_llm, and comes under Apache-2.0. "
        "The characters' names belong to their owners."
        if own
        else (
            "The script that was learned from has rights of its own"
            f"{'' if script else ', and is not named in the notes of this model'}. "
            "FILL IN before publishing: whether they allow to pass on a model that was trained on it."
        )
    ]
    limits = [
        "A small model imitates a manner of speaking; it does not know facts, "
        "and may repeat lines of its training, or say what the character, or its authors, never would.",
        "It was trained on one line at a time, at the end of a scene, and is no assistant. "
        "Lines that matter to somebody should be read before they are used.",
    ]
    if notes_len := trained.notes.get("max_seq_len"):
        limits.append(f"Scenes longer than {notes_len} tokens, answer included, are longer than any in training.")
    sections = {
        "How it was made": card_table(trained, record),
        "How to use it": card_use(maker, speaker, gguf, note) if whole else adapter_use(base, maker, speaker),
        "Licence": licence,
        "Limits": limits,
    }
    return (
        "\n".join(
            [
                card_head(base, own, record["kind"], not whole),
                "",
                *words,
                *(row for head, rows in sections.items() for row in ("", f"## {head}", "", *rows)),
            ]
        )
        + "\n"
    )


# %% tags=["example"]
trained = find_trained(run)
card = model_card(trained, record, maker)
Markdown("```yaml\n" + card.split("\n# ")[0] + "\n```\n" + card.split("---\n", 2)[2].replace("\n#", "\n###"))

# %% tags=["check"]
code = re.search(r"```python\n(.*?)```", card, re.S)[1]
# the code of the card runs
with redirect_stdout(io.StringIO()):
    exec(code.replace('"."', repr(str(place / "export"))), told := {})
assert told["ids"]["input_ids"][0].tolist() == prompt_ids(maker, "", SAMPLE, who) and isinstance(
    told["model"], type(again)
)
# no recipe was noted
assert f"{before:.4f} before, {trained.summary['valid_loss_nats_best']:.4f} after" in card and "| recipe |" not in card
assert (
    str(place) not in card
    and str(place) not in (place / "export" / NOTES).read_text() + (place / "export" / "config.json").read_text()
)
assert (
    hub_id(SMOLLM2) == WHEEL["hub"]
    and hub_id("tiny") == hub_id("models/x.gguf/y/z") == hub_id(None) == ""
    and public_name("gguf /home/me/x.gguf") == "gguf x.gguf"
)
odd = 'Bob "$(echo no)" Terwilliger\'s `cat`'
words = next(shlex.split(row) for row in card_use(maker, odd, "x.gguf") if row.startswith("simpsons-llm"))
assert words[4:6] == ["--speaker", odd] and len(words) == 7
assert (
    "FILL IN" in card
    and "license: other" in card_head("someone/else", True, "model")
    and "license: apache-2.0" in card_head(OPEN_LLAMA, True, "model")
    and "license: other" in card_head(OPEN_LLAMA, False, "model")
)


# %% [markdown]
# ## All of it
#
# The chat template is held against the training's prompts with the tokenizer as it lies in the folder. The card is written before the GGUF file, because the converter takes base and licence from it, and once more behind it.

# %%
#| export
def export(
    source: str | os.PathLike,  # a run's folder, an adapter's, or a whole model's
    out: str | os.PathLike,  # folder for the model; new, empty, or an earlier export
    dtype: str = "auto",  # "float32", "float16", "bfloat16"; "auto": as the base is stored
    gguf: str = "",  # also a GGUF file: "f32", "f16", "bf16" or "q8_0"; empty: none
    speaker: str = "",  # who answers in Modelfile and card; empty: the first of the notes
    base_model: str | None = None,  # another name for the same base; None: as the notes say
    device: str = "cpu",  # where the sum is made: "cpu", "xpu", "cuda" or "auto"
    sampling: dict | None = None,  # how words are drawn, in the names of `generate`; saved, and put into the Modelfile
) -> Facts:  # as `merge_and_export`, and out, speaker, note, files (name -> bytes), gguf (`to_gguf`; None: not asked)
    "Publish a run: model, card, and where asked for GGUF file and Modelfile."
    from transformers import AutoTokenizer

    require(gguf in ("", *OUTTYPES), f"gguf={gguf!r} was given; expected {', '.join(OUTTYPES)}")
    trained, out = find_trained(source), Path(out)
    speaker = main_speaker(trained.notes, speaker)
    record = merge_and_export(source, out, dtype, base_model, device, sampling, speaker)
    tokenizer = AutoTokenizer.from_pretrained(out)
    maker, made = TextMaker.of_notes(tokenizer, trained.notes), None
    record["note"] = template_note(tokenizer, maker, speaker)
    write_text(out / "README.md", model_card(trained, record, maker, speaker, "", record["note"]))
    if gguf:
        made = to_gguf(out, out / f"model-{gguf}.gguf", gguf)
        write_text(out / "Modelfile", modelfile(maker, speaker, f"model-{gguf}.gguf", sampling=sampling))
        if made["file"]:
            write_text(out / "README.md", model_card(trained, record, maker, speaker, made["file"], record["note"]))
    files = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
    return Facts(record, out=str(out), speaker=speaker, gguf=made, files=files)


def export_text(
    record: dict,  # what `export` returned
) -> str:  # a few lines for people
    "What was published, in words."
    moved = "" if record["learned"] is None else f"; training moved them by {record['learned']:.1e}"
    return "\n".join(
        [
            f"{record['parameters']:,} parameters in {record['dtype']}; answers differ from those of the model it was "
            f"made from by {record['saved']:.1e} of the logits' size (at most {record['limit']:.1e} allowed{moved})",
            *(f"  {n}  {b:,} bytes" for n, b in record["files"].items()),
            *([f"note: {record['note']}"] if record.get("note") else []),
            f"written to {record['out']}; read README.md and fill in what it asks for before you publish it",
        ]
    )


# %% [markdown]
# And what to do next, to be pasted into a shell:

# %%
#| export
def next_lines(
    record: dict,  # what `export` returned
) -> str:  # a few lines for people
    "How to serve, ask and give away what was published."
    out, notes = record["out"], exported_notes(record["out"])
    gguf = (record["gguf"] or {}).get("file") or ""
    rows = serve_commands(out, notes.get("max_seq_len"), gguf)
    said = f"{SAMPLE[0].speaker}: {SAMPLE[0].text}"
    return "\n".join(
        [
            f"next, serve it as {record['speaker']}, with what you have:",
            *(f"  {line}" for line in rows.values()),
            f"ask it (llama-server listens at port 8080): {curl_command(HERE, out, said)}",
            f"give it away: {shlex.join(['simpsons-llm', 'push', out, '--to', 'user/name', '--dry-run'])}",
        ]
    )


# %% tags=["example"]
print(
    export_text(
        export(run, run / "export", "bfloat16", sampling={"do_sample": True, "temperature": 0.8, "top_p": 0.95})
    ).replace(f"{place}/", "runs/")
)
print(next_lines(Facts(record, out="runs/x/export", speaker=who, gguf=None)))

# %% tags=["check"]
done = export(run, run / "export", speaker="marge simpson")
assert (
    done["gguf"] is None
    and done["speaker"] == "Marge Simpson"
    and {"README.md", "config.json", "generation_config.json", "model.safetensors", NOTES, "tokenizer.json"}
    <= done["files"].keys()
)
assert exported_notes(run / "export")["template"] == "script" and exported_notes(place / "full") == {}
loaded, t, notes = load_tuned(run / "export", cpu)  # the book's own way in: simpsons-llm infer --adapter
assert notes["template"] == "script" and logit_distance(answer_logits(loaded, TextMaker(t), who), wanted) < 1e-5
assert "expected f32" in refused(export, run, run / "export", gguf="q4") and "Homer" in refused(
    export, run, run / "export", speaker="Hommer Simson"
)
shutil.rmtree(place)
