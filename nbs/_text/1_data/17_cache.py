# %%
#| default_exp data.cache

# %% [markdown]
# # Keeping tokens
#
# > Samples are kept under the name of what they were made from, so that the next run need not make them again.
#
# Tokenizing a long script takes seconds to minutes, and the seed kept its tokens on disk: whatever changed afterwards, the old tokens were used. Here the name of what is kept *is* what it was made from: a hash over the data's hash, the characters, all options, the tokenizer's whole definition, and the code of the chapters that make tokens. Change any of them and the name is another. What is kept is an Arrow table of the `datasets` library, which is mapped into memory rather than read.

# %%
#| export
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import simpsons_llm
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.data.samples import Sample
from simpsons_llm.machine.job import cache_dir, open_folder, read_json, write_json

# %%
#| hide
import time

import matplotlib.pyplot as plt
import pandas as pd
from datasets import load_from_disk

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prompt import CHATML, TEMPLATES, byte_tokenizer, small_tokenizer
from simpsons_llm.data.samples import row_samples, scene_samples

bpe = small_tokenizer(2000, *CHATML)
makers = {template: TextMaker(bpe, template) for template in TEMPLATES}
everything, targets = read_script("springfield").scenes, ["Homer Simpson", "Marge Simpson"]
scenes = everything[:6]


# %% [markdown]
# ## What samples are made from
#
# The name of a tokenizer says little about its tokens: the same name may stand for another version, or for one to which words were added. So its whole definition is hashed.

# %%
#| export
def tokenizer_hash(
    tokenizer,  # a transformers tokenizer
) -> str:  # 16 hexadecimal digits
    "A hash over everything that decides about a tokenizer's tokens."
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    what = backend.to_str() if hasattr(backend, "to_str") else json.dumps(sorted(tokenizer.get_vocab().items()))
    what += json.dumps(
        [tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None), type(tokenizer).__name__],
        default=str,
        sort_keys=True,
    )
    return hashlib.sha256(what.encode()).hexdigest()[:16]


# %% [markdown]
# One word more, and the hash is another:

# %% tags=["example"]
longer = byte_tokenizer()
longer.add_tokens(["Springfield"])
tokenizer_hash(byte_tokenizer()), tokenizer_hash(byte_tokenizer()), tokenizer_hash(longer)


# %% [markdown]
# The code counts as well: a prompt that is put together in another way has other tokens, with the same tokenizer and the same data.

# %%
#| export
def code_hash() -> str:
    "A hash over the modules that turn a script into samples."
    package = Path(simpsons_llm.__file__).parent / "data"
    return hashlib.sha256(
        b"".join((package / f"{m}.py").read_bytes() for m in ("lines", "formats", "prepare", "prompt", "samples"))
    ).hexdigest()[:16]


def cache_key(
    maker: TextMaker,  # tokenizer and template
    data_sha256,  # hash or hashes of the data
    **options,  # everything else that shapes the samples
) -> dict:  # what the samples are made from
    "What must be the same for kept samples to be used."
    made = {
        "tokenizer": tokenizer_hash(maker.tokenizer),
        "template": maker.template,
        "date": maker.date,
        "code": code_hash(),
    }
    return {"data": data_sha256, **made, **options}


# %% [markdown]
# The key is plain data. It is kept beside the samples, so whoever finds a folder of tokens can read what they were made from:

# %% tags=["example"]
key = cache_key(makers["script"], "hash of the script", targets=targets, max_seq_len=512)
key


# %% [markdown]
# ## To a table and back
#
# A sample is a row: token ids, loss weights, roles. Arrow keeps each column in one piece, with its type.

# %%
#| export
def save_samples(
    samples: list,  # `Sample`s
    folder,  # a new folder
):
    "Write samples as an Arrow table."
    import pyarrow as pa
    from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    table = pa.table(
        {
            "input_ids": pa.array([x.input_ids for x in samples], pa.list_(pa.int32())),
            "loss_weights": pa.array([x.loss_weights for x in samples], pa.list_(pa.float64())),
            "roles": pa.array([x.roles for x in samples], pa.binary()),
        }
    )
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        Dataset(table).save_to_disk(str(folder))
    finally:
        enable_progress_bars() if shown else None


def load_samples(
    folder,  # what `save_samples` wrote
) -> list:  # `Sample`s
    "Read samples from an Arrow table."
    from datasets import load_from_disk

    table = load_from_disk(str(folder)).data.table
    return [Sample(*x) for x in zip(*(table[c].to_pylist() for c in ("input_ids", "loss_weights", "roles")))]


# %% [markdown]
# What the file of six scenes holds, and the bytes of each column:

# %% tags=["example"]
samples, _ = scene_samples(scenes, makers["script"], targets)
with tempfile.TemporaryDirectory() as folder:
    save_samples(samples, folder)
    table, back = load_from_disk(folder).data.table, load_samples(folder)
columns = {c.name: (str(c.type), table.num_rows, table[c.name].nbytes) for c in table.schema}
pd.DataFrame(columns, index=["type", "rows", "bytes"]).T

# %% [markdown]
# Most of it are loss weights, in double precision: nothing is rounded on the way.

# %% tags=["check"]
assert back == samples

# %% [markdown]
# ## Kept, or made
#
# Kept samples are used if the whole key is the same; the folder's name alone, a shortened hash, is not trusted. A folder gets its name only when all of it is written, so a run that is killed leaves nothing that looks whole. Where anything is wrong with what was kept, samples are made anew: a cache may cost time, never a run.

# %%
#| export
KEEP = 16  # how many sets of samples are kept, the newest


def kept_samples(
    key: dict,  # what `cache_key` gave
    make,  # called without arguments if nothing is kept: gives (split name -> `Sample`s, facts as plain data)
    folder: Path | None = None,  # where samples are kept; None: the cache folder
    keep: bool = True,  # keep new ones; False: nothing is written
) -> tuple:  # (split name -> `Sample`s, facts, whether they were kept before)
    "Samples by what they are made from: kept ones if there are, else new ones, which are kept."
    folder = Path(folder or cache_dir() / "tokens")
    place = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    try:
        note = read_json(place / "key.json")
        if note["key"] == key:
            if keep:
                os.utime(place)
            return {name: load_samples(place / name) for name in note["splits"]}, note["facts"], True
    except (OSError, ValueError, KeyError, IndexError, TypeError, ImportError):
        pass  # not there, or not whole: made anew
    samples, facts = make()
    # nothing to learn: soon refused, not worth keeping
    if not keep or not all(samples.values()):
        return samples, facts, False
    try:
        open_folder(folder)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".new"))
        for name, xs in samples.items():
            save_samples(xs, temporary / name)
        write_json(temporary / "key.json", {"key": key, "splits": list(samples), "facts": facts})
        shutil.rmtree(place, ignore_errors=True)
        os.replace(temporary, place)
        for old in sorted((p for p in folder.iterdir() if p.name[:1] != "."), key=lambda p: p.stat().st_mtime)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, ImportError):
        # a full disk, another rank was first, or no datasets library: not kept
        shutil.rmtree(locals().get("temporary", ""), ignore_errors=True)
    return samples, facts, False


# %% [markdown]
# The whole script in both views, with every character to learn. The first call makes and keeps, the second reads; `size_mib` is what lies on disk:

# %% tags=["example"]
def seconds_of(view, folder):
    "Seconds of one call, the samples, and whether they were kept before."
    maker = TextMaker(bpe)  # a fresh one, which remembers no tokens
    key, start = cache_key(maker, "hash of the script", view=view.__name__), time.perf_counter()
    made, _, kept = kept_samples(key, lambda: ({"train": view(everything, maker, [], 512)[0]}, {}), folder)
    return time.perf_counter() - start, made["train"], kept


rows = {}
with tempfile.TemporaryDirectory() as folder:
    seconds_of(scene_samples, Path(folder) / "warm")  # imports the libraries
    for name, view in (("scenes", scene_samples), ("rows", row_samples)):
        (first_s, made, _), (second_s, again, kept) = seconds_of(view, folder), seconds_of(view, folder)
        newest = max(Path(folder).glob("*/key.json"), key=lambda p: p.stat().st_mtime).parent
        size = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
        tokens = sum(len(x.input_ids) for x in made)
        rows[name] = (len(made), tokens, size / 2**20, first_s, second_s, kept and again == made)
times = pd.DataFrame(rows, index=["samples", "tokens", "size_mib", "first_s", "second_s", "the same"]).T
times

# %% [markdown]
# How much of the wait is saved?

# %% tags=["example"]
ax = times[["second_s", "first_s"]].astype(float).plot.barh(color=["#4f86c6", "#f2c500"], figsize=(6.4, 2.2))
ax.set(xlabel="seconds", ylabel="view")
ax.legend(["second call: read", "first call: made and kept"], frameon=False, reverse=True)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
saved = (times["first_s"] / times["second_s"]).astype(float)
print(f"The second call is {saved['scenes']:.0f} times as fast with scenes, {saved['rows']:.0f} times with rows.")

# %% [markdown]
# What must not happen is that old tokens are used for new settings. Other options, another tokenizer, one with a word more, and a damaged note: each is made anew.

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:

    def get(maker=makers["script"], **options):
        key = cache_key(
            maker,
            "hash of the script",
            targets=options.get("targets", targets),
            max_seq_len=options.get("max_seq_len", 512),
        )
        return kept_samples(
            key,
            lambda: ({"train": scene_samples(scenes, maker, key["targets"], key["max_seq_len"])[0]}, {"too_long": 0}),
            folder,
        )

    first, facts, kept = get()
    again, facts_again, kept_again = get()
    assert (kept, kept_again) == (False, True) and again == first and facts == facts_again
    # other options: other tokens
    assert not get(targets=["Moe Szyslak"])[2] and not get(max_seq_len=256)[2]
    other = byte_tokenizer()
    # another tokenizer
    assert not get(TextMaker(other))[2] and get(TextMaker(other))[2]
    other.add_tokens(["Springfield"])
    # the same one with a word more
    assert not get(TextMaker(other))[2]
    # damaged ones are made anew
    for note in Path(folder).glob("*/key.json"):
        note.write_text("{")
    assert not get()[2] and get()[2] and not get(max_seq_len=256)[2]
    none = cache_key(makers["script"], "an empty split")
    for _ in range(2):
        assert kept_samples(none, lambda: ({"train": []}, {}), folder) == ({"train": []}, {}, False)
