# %%
#| default_exp data.dataset

# %% [markdown]
# # Data in hand, for other tools, and kept
#
# > Prepared data as an object that shows itself, as a `DatasetDict`, as the files that other trainers read, and its tokens kept for the next run.
#
# [Preparing data](14_prepare.ipynb) is a job with a folder as its result. Whoever writes Python wants the same in one call, with something to look at; and whoever trains with other tools wants their forms of it. The library `datasets` is what most of them take, so prepared data becomes a `DatasetDict` in three forms: a row a line, a prompt with its completion, and conversations.

# %%
#| export
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import simpsons_llm
from simpsons_llm.data.prepare import (
    PrepareConfig,
    Prepared,
    is_target,
    load_data,
    plot_speakers,
    read_and_split,
    report_text,
    write_prepared,
)
from simpsons_llm.data.prompt import SILENCE, TextMaker, chat_system
from simpsons_llm.data.samples import Sample
from simpsons_llm.machine.job import (
    cache_dir,
    damage_in,
    hold_folder,
    is_sealed,
    open_folder,
    read_json,
    require,
    seal,
    settings_text,
    text_frame,
    write_json,
    write_text,
)

# %%
#| hide
import io
import time
from contextlib import redirect_stdout

import matplotlib.pyplot as plt
import pandas as pd
from datasets import load_from_disk

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prompt import CHATML, TEMPLATES, byte_tokenizer, prompt_ids, small_tokenizer
from simpsons_llm.data.samples import row_samples, scene_samples

pd.set_option("display.max_colwidth", 100)


# %% [markdown]
# ## Three forms of the same lines
#
# `lines` is the plainest: who says what, where. It trains nobody to answer, but it is what one wants for counting, searching and pictures.

# %%
#| export
def line_records(
    scenes: list,  # `Scene`s
    targets: list | tuple = (),  # names to learn; empty: everyone
) -> list:  # episode, scene, location, number, speaker, text, learned (whether the line is one to learn)
    "A record for each line."
    return [
        {
            "episode": s.episode,
            "scene": s.index,
            "location": s.location,
            "number": line.number,
            "speaker": line.speaker,
            "text": line.text,
            "learned": is_target(line, targets),
        }
        for s in scenes
        for line in s.lines
    ]


# %% [markdown]
# `prompt_completion` has a record for each line to learn: the scene up to the name, and the line. It is the text of [the plain form of prompts](15_prompt.ipynb), letter for letter, so a model that another tool trained on it can be asked by this book.

# %%
#| export
def prompt_records(
    scenes: list,  # `Scene`s
    targets: list | tuple = (),  # names to learn; empty: everyone
) -> list:  # prompt, completion
    "A record for each line to learn: the scene so far, and the line."
    found = []
    for s in scenes:
        before = f"[{s.location or 'Scene'}]\n"
        for line in s.lines:
            if is_target(line, targets):
                found.append({"prompt": f"{before}{line.speaker}:", "completion": f" {line.text}\n"})
            before += f"{line.speaker}: {line.text}\n"
    return found


# %% [markdown]
# `messages` has a record for each scene and character to learn: the character is the assistant, everybody else the user. It is what a chat model's own template writes in training here.

# %%
#| export
def message_records(
    scenes: list,  # `Scene`s
    targets: list | tuple = (),  # names to learn; empty: everyone
) -> list:  # messages: a list of {"role", "content"}, which ends with the assistant
    "A conversation for each scene and character to learn."
    found = []
    for s in scenes:
        for who in dict.fromkeys(line.speaker for line in s.lines if is_target(line, targets)):
            messages, heard = [{"role": "system", "content": chat_system(s.location, who)}], []
            for line in s.lines:
                if line.speaker != who:
                    heard.append(f"{line.speaker}: {line.text}" if line.speaker else line.text)
                    continue
                messages.append({"role": "user", "content": "\n".join(heard) or SILENCE})
                messages.append({"role": "assistant", "content": line.text})
                heard = []
            found.append({"messages": messages})
    return found


FORMS = {"lines": line_records, "prompt_completion": prompt_records, "messages": message_records}


def form_of(
    file: str | Path,  # a name such as messages.jsonl
) -> str:  # the form that it names; ValueError if it names none
    "The form that a file is called by."
    form = next((f for f in FORMS if f in Path(file).stem), None)
    if not form:
        raise ValueError(
            f"file {Path(file).name!r} was given; expected a name with {', '.join(FORMS)} in it, such as messages.jsonl"
        )
    return form


def records(
    scenes: list,  # `Scene`s
    targets: list | tuple = (),  # names to learn; empty: everyone
    form: str = "lines",  # "lines", "prompt_completion" or "messages"
) -> list:  # plain data; ValueError for another form
    "Scenes in one of the three forms."
    require(form in FORMS, f"form={form!r} was given; expected {', '.join(FORMS)}")
    return FORMS[form](scenes, targets)


# %% tags=["example"]
scene = read_script("springfield").scenes[0]
{form: records([scene], ["Homer Simpson"], form)[0] for form in FORMS}

# %% [markdown]
# Are they the texts that this book trains on and asks with? With a tokenizer that reads bytes, text and tokens can be held against each other: the prompt against what a model is asked with, and the conversation against the prompt of the last answer in it, as a chat template writes both.

# %% tags=["check"]
scenes, maker = read_script("springfield").scenes[:12], TextMaker(byte_tokenizer())
asked = [
    (maker.tokenizer.decode(prompt_ids(maker, s.location, s.lines[:i], line.speaker)), line.text)
    for s in scenes
    for i, line in enumerate(s.lines)
]
made = records(scenes, form="prompt_completion")
assert [(r["prompt"], r["completion"]) for r in made] == [(a, f" {text}\n") for a, text in asked]

chat = TextMaker(small_tokenizer(2000, *CHATML), "chat")
for s in scenes:
    for r in records([s], ["Homer Simpson"], "messages"):
        last = max(i for i, line in enumerate(s.lines) if line.speaker == "Homer Simpson")
        tokens = prompt_ids(chat, s.location, s.lines[:last], "Homer Simpson")
        text = chat.tokenizer.apply_chat_template(r["messages"][:-1], tokenize=False, add_generation_prompt=True)
        assert chat.tokenizer.decode(tokens) == text and r["messages"][-1]["content"] == s.lines[last].text


# %% [markdown]
# ## Data in hand

# %%
#| export
@dataclass(frozen=True, repr=False)
class Data:
    "A script, read and split by episode. What `prepare` gives and `finetune` takes."

    parts: dict  # "train", "valid", "test" -> `Scene`s
    report: dict  # what was read, learned and left out
    folder: Path | None = None  # where it lies; None: in memory only
    made: Prepared | None = None  # what is still to be written; None: all is written

    @classmethod
    def load(
        cls,
        folder: str | Path,  # what `prepare` wrote
    ) -> "Data":  # FileNotFoundError or ValueError if it holds no prepared data
        "Read prepared data back."
        parts, report = load_data(folder)
        return cls(parts, report, Path(folder))

    @property
    def speakers(self) -> list[str]:
        "The characters that are learned."
        return list(self.report["speakers"] or self.report["all_speakers"])

    def lines(
        self,
        split: str = "train",  # "train", "valid" or "test"
    ):  # a pandas frame: episode, scene, location, number, speaker, text, learned; ValueError for another split
        "The lines of a split, to look at."
        require(split in self.parts, f"split={split!r} was given; expected {', '.join(self.parts)}")
        return text_frame(line_records(self.parts[split], self.report["speakers"]))

    def to_datasets(
        self,
        form: str = "lines",  # "lines", "prompt_completion" or "messages"
    ):  # a `datasets.DatasetDict` with the splits train, valid and test; ValueError for another form
        "The same lines for everybody who works with Hugging Face's libraries."
        from datasets import Dataset, DatasetDict

        targets = self.report["speakers"]
        return DatasetDict({n: Dataset.from_list(records(p, targets, form)) for n, p in self.parts.items()})

    def export(
        self,
        file: str | Path,  # for train, such as messages.jsonl; valid and test lie beside it as messages.valid.jsonl ...
        form: str = "",  # "lines", "prompt_completion" or "messages"; empty: the one that the file is called by
    ) -> list[Path]:  # the three files; ValueError if the form is not known
        "Write JSON lines for other trainers, a file for each split."
        file = Path(file)
        form = form or form_of(file)
        require(form in FORMS, f"form={form!r} was given; expected {', '.join(FORMS)}")
        require(not file.is_dir(), f"{file} is a folder; give the name of a file, such as messages.jsonl")
        open_folder(file.parent)
        files = {"train": file, **{n: file.with_suffix(f".{n}{file.suffix}") for n in ("valid", "test")}}
        for name, path in files.items():
            rows = records(self.parts[name], self.report["speakers"], form)
            write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        return list(files.values())

    def plot(
        self,
        most: int = 15,  # how many characters
    ):  # matplotlib axes
        "Who speaks how much, by split."
        return plot_speakers(self.parts, most)

    def __repr__(self):
        return report_text(self.report)

    def _repr_html_(self):
        return f"<pre>{escape(report_text(self.report))}</pre>"


def prepare(
    script: str | Path = "springfield",  # a table, text, Fountain or JSON file; springfield: the one that comes along
    speakers: list[str] | tuple[str, ...] | str = (),  # characters to learn, in full; empty: everyone
    out: str | Path | None = None,  # a folder to write to; None: `finetune` writes it into the run
    **settings,  # the other settings of `simpsons-llm prepare`, by their names: split, valid_share, test_share ...
) -> Data:  # ValueError, TypeError or a file error, in one sentence, if it cannot be done
    "Read a script and split it by episode."
    if isinstance(speakers, str):
        names = speakers
    else:
        listed = isinstance(speakers, (list, tuple)) and all(isinstance(n, str) and n.strip() for n in speakers)
        require(listed, f"speakers={speakers!r} was given; expected a list of names, or nothing for everyone")
        names = ",".join(speakers)
    config = PrepareConfig.of(script=str(script), speakers=names, **settings)
    require(out is None or str(out).strip(), "out was given as nothing; give a folder, or None to keep it in memory")
    if out is None:
        made = read_and_split(config)
        return Data(made.parts, made.report, None, made)
    with hold_folder(out, "prepare"):
        made = read_and_split(config)
        write_prepared(made, out)
    return Data(made.parts, made.report, Path(out))


# %%
#| export
told = settings_text(PrepareConfig, ("script", "speakers", "out"))
prepare.__doc__ = f"{prepare.__doc__}\n\nThe other settings and their defaults:\n\n{told}"

# %% [markdown]
# One call, and something to look at:

# %% tags=["example"]
data = prepare("springfield", speakers=["Homer Simpson"])
data

# %% tags=["example"]
data.lines("valid")[["location", "speaker", "text", "learned"]].head(4)

# %% tags=["example"]
sets = data.to_datasets("prompt_completion")
sets

# %% tags=["example"]
sets["train"].to_pandas().head(4)

# %% [markdown]
# Nothing is lost or added on the way: every line stands in one split, every line to learn is one completion, and every answer one of the assistant. What lies in files is what was in memory, and a folder gives the same data back.

# %% tags=["check"]
lines, chats = data.to_datasets("lines"), data.to_datasets("messages")
for name, scenes in data.parts.items():
    assert lines[name]["text"] == [line.text for s in scenes for line in s.lines]
    learned = [f" {r['text']}\n" for r in lines[name] if r["learned"]]
    assert list(sets[name]["completion"]) == learned
    assert [f" {m['content']}\n" for r in chats[name] for m in r["messages"] if m["role"] == "assistant"] == learned
with tempfile.TemporaryDirectory() as folder:
    written = prepare("springfield", ["Homer Simpson"], out=Path(folder) / "data")
    assert Data.load(written.folder).parts == written.parts == data.parts
    files = data.export(Path(folder) / "messages.jsonl")
    assert [f.name for f in files] == ["messages.jsonl", "messages.valid.jsonl", "messages.test.jsonl"]
    assert [json.loads(row) for row in files[1].read_text(encoding="utf8").splitlines()] == list(chats["valid"])
    for wrong in (lambda: data.export("for_trl.jsonl"), lambda: data.to_datasets("chat")):
        try:
            wrong()
            raise AssertionError
        except ValueError as e:
            assert "prompt_completion" in str(e)


# %% [markdown]
# ## Tokens that are kept
#
# Tokenizing a long script takes seconds to minutes, and the seed kept its tokens on disk: whatever changed afterwards, the old tokens were used. Here the name of what is kept *is* what it was made from: a hash over the data's hash, the characters, all options, the tokenizer's whole definition, and the code of the chapters that make tokens. Change any of them and the name is another. What is kept is an Arrow table of the same library, which is mapped into memory rather than read.

# %% [markdown]
# ### What samples are made from
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
bpe = small_tokenizer(2000, *CHATML)
makers = {template: TextMaker(bpe, template) for template in TEMPLATES}
everything, targets = read_script("springfield").scenes, ["Homer Simpson", "Marge Simpson"]
few = everything[:6]

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
        b"".join(
            (package / f"{m}.py").read_bytes()
            for m in ("lines", "tables", "text", "formats", "prepare", "prompt", "samples")
        )
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
# ### To a table and back
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
    "Read samples from an Arrow table; without the library that wrote it, whose import takes longer than the reading."
    import pyarrow as pa

    parts = []
    for file in read_json(Path(folder) / "state.json")["_data_files"]:
        with pa.OSFile(str(Path(folder) / file["filename"])) as source:
            parts.append(pa.ipc.open_stream(source).read_all())
    table = pa.concat_tables(parts)
    return [Sample(*x) for x in zip(*(table[c].to_pylist() for c in ("input_ids", "loss_weights", "roles")))]


# %% [markdown]
# What the file of six scenes holds, and the bytes of each column:

# %% tags=["example"]
samples, _ = scene_samples(few, makers["script"], targets)
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
# ### Kept, or made
#
# Kept samples are used if the whole key is the same; the folder's name alone, a shortened hash, is not trusted. A folder gets its name only when all of it is written, so a run that is killed leaves nothing that looks whole. And it is sealed: a number that was changed afterwards is noticed before it is learned. Where anything is wrong with what was kept, samples are made anew, and a sentence says so: a cache may cost time, never a run.

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
        wrong = damage_in(place)
        if place.is_dir() and not is_sealed(place):
            wrong = ["it has no manifest"]
        if wrong:
            print(f"kept tokens in {place} are damaged ({', '.join(wrong)}) and are made anew", flush=True)
        note = {} if wrong else read_json(place / "key.json", dict)
        if note.get("key") == key:
            if keep:
                os.utime(place)
            return {name: load_samples(place / name) for name in note["splits"]}, note["facts"], True
    except (OSError, ValueError, KeyError, IndexError, TypeError, ImportError):
        pass  # not there, or of another version: made anew
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
        seal(temporary)
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
            lambda: ({"train": scene_samples(few, maker, key["targets"], key["max_seq_len"])[0]}, {"too_long": 0}),
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
    with redirect_stdout(io.StringIO()) as said:
        assert not get()[2] and get()[2] and not get(max_seq_len=256)[2]
    print(said.getvalue().splitlines()[0].replace(folder, "CACHE"))
    none = cache_key(makers["script"], "an empty split")
    for _ in range(2):
        assert kept_samples(none, lambda: ({"train": []}, {}), folder) == ({"train": []}, {}, False)
