# %%
#| default_exp machine.job

# %% [markdown]
# # What a job is
#
# > Settings, folders, progress and provenance: the few things that every job chapter shares.
#
# Some chapters of this book are also programs: they prepare data, fine-tune, answer. Such a *job* is started in three ways: a reader runs the cells, papermill runs the notebook, or the command line calls the same function. All three must mean the same thing, so the rules stand here once: what settings are, where results go, how progress is told, and what is written down about where a result came from.
#
# Nothing in this chapter knows about scripts or models. It needs no accelerator and imports nothing heavy.

# %%
#| export
import ast
import difflib
import gc
import getpass
import hashlib
import html
import importlib
import json
import linecache
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import ClassVar

import simpsons_llm

# Two warnings of the libraries that concern nobody here:
# progress is plain lines, and PEFT asks transformers by an older name.
for known in ("IProgress not found", ".*is_gradient_checkpointing.*"):
    warnings.filterwarnings("ignore", message=known)

# %%
#| hide
import io
from contextlib import redirect_stdout
from unittest.mock import patch


# %% [markdown]
# ## Settings: one dataclass, three ways in
#
# A job's settings are a dataclass. Its fields are what papermill can inject into a notebook, what the command line offers, and what a Python caller passes. A value may arrive with the wrong kind: YAML reads `5e-4` as text, papermill reads `3` where a float is meant. So each field is brought to its declared type, and what cannot be brought there is refused in one sentence before any model is loaded.

# %%
#| export
def whole(
    value,  # a number, or the text of one
) -> int:  # ValueError, TypeError, ArithmeticError if it is none, or has a fraction
    "A whole number, every digit of it: a float holds fifteen digits or so, and a seed may have more."
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = Decimal(value)  # 1e3, 3.0
    # refuses 1e999999999, and what is no number, before anything is written out digit by digit
    int(float(value))
    if int(value) != value:
        raise ValueError
    return int(value)


def coerce(
    value,  # what was given: a number, text, bool or None
    kind: str,  # the declared type as text, e.g. "int", "float | None"
    name: str,  # the field's name, for the error
):  # the value as its declared type; TypeError if that is impossible
    "Bring one setting to its declared type, without losing anything on the way."
    kinds = [k.strip() for k in str(kind).split("|")]
    if value is None or (value == "None" and "str" not in kinds):
        if "None" in kinds:
            return None
        raise TypeError(f"{name} was given no value; expected {kinds[0]}")
    try:
        if "bool" in kinds:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        if "int" in kinds:
            return whole(value)
        if "float" in kinds:
            return float(value)
        if "str" in kinds:
            return str(value)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        pass
    raise TypeError(f"{name}={value!r} was given; expected {' or '.join(kinds)}")


# %% [markdown]
# `5e-4` from a YAML file is text; the field wants a float:

# %% tags=["example"]
coerce("5e-4", "float", "learning_rate"), coerce(3, "float", "epochs"), coerce("None", "int | None", "r")

# %% tags=["check"]
assert [coerce(x, "int", "max_steps") for x in ("12", 12.0, "12.0", "1.2e1")] == [12] * 4
# no digit is lost
assert [coerce(x, "int", "seed") for x in (2**53 + 1, f"{2**53 + 1}", f"{2**53 + 1}.0")] == [2**53 + 1] * 3 and int(
    float(2**53 + 1)
) == 2**53
assert coerce("true", "bool", "bench") is True and coerce(None, "int | None", "r") is None
for value, kind in (
    ("many", "int"),
    (1.5, "int"),
    ("1.5", "int"),
    ("1e999", "int"),
    ("nan", "int"),
    (True, "float"),
    (None, "float"),
    ("yes?", "bool"),
):
    try:
        coerce(value, kind, "x")
        raise AssertionError((value, kind))
    except TypeError as e:
        assert "x" in str(e)


# %% [markdown]
# The base class does this for all fields, then calls the job's own `check`. `from_names` is the way in for notebooks: it takes the values that the `parameters` cell (or papermill) left among the notebook's names.

# %%
#| export
@dataclass
class JobConfig:
    "Base of every job's settings: typed, checked when made, the same from a notebook, a file or the command line."

    repeated: ClassVar[tuple] = ()  # text fields whose option may be given several times; each becomes a row

    def __post_init__(self):
        for f in fields(self):
            kind = f.type if isinstance(f.type, str) else f.type.__name__
            setattr(self, f.name, coerce(getattr(self, f.name), kind, f.name))
        self.check()

    def check(self):
        "Raise ValueError for a combination that cannot work. Each job says what."

    @classmethod
    def from_names(
        cls,
        names: dict,  # a notebook's names, e.g. `globals()`
    ):  # the settings; TypeError or ValueError if a value cannot be
        "The settings that a notebook's names hold."
        return cls(**{f.name: names[f.name] for f in fields(cls)})

    @classmethod
    def of(
        cls,
        **given,  # settings by name; the others have their defaults
    ):  # the settings; TypeError or ValueError if a name is not known or a value cannot be
        "The settings that a Python caller gives."
        known = [f.name for f in fields(cls)]
        for name in given:
            near = difflib.get_close_matches(name, known, n=2) or known
            require(name in known, f"{name}={given[name]!r} was given; did you mean {' or '.join(near)}?")
        return cls(**given)

    def to_dict(self) -> dict:
        "The settings as plain data, for YAML and JSON."
        return asdict(self)


# %% [markdown]
# Most refusals have one form, so they share one helper:

# %%
#| export
def require(
    condition: object,  # what must hold
    message: str,  # one sentence: what was given, what was expected, what to do
):
    "Raise ValueError with `message` unless `condition` holds."
    if not condition:
        raise ValueError(message)


# %% tags=["example"]
@dataclass
class DemoConfig(JobConfig):
    "A job's settings, for the examples of this chapter."

    max_steps: int = 20  # optimizer steps, 1 or more
    learning_rate: float = 5e-4  # peak rate, above 0
    r: "int | None" = None  # rank; None: from the recipe

    def check(self):
        require(self.max_steps > 0, f"max_steps={self.max_steps} was given; expected 1 or more")


DemoConfig(max_steps="10", learning_rate="1e-3")

# %% tags=["check"]
assert DemoConfig.from_names({"max_steps": 5, "learning_rate": 1, "r": None, "unrelated": 0}) == DemoConfig(5, 1.0)
try:
    DemoConfig(max_steps=0)
    raise AssertionError
except ValueError as e:
    assert "max_steps=0" in str(e)


# %% [markdown]
# ### The comment is the help text
#
# Each field carries its meaning in the comment beside it. The command line shows the same words in `--help`, so nobody writes them twice.

# %%
#| export
def field_help(
    cls,  # a JobConfig subclass; one in a notebook needs a `check` of its own
) -> dict:  # field name -> the comment beside the field
    "What each setting means, read from the comments in the class and in those that it extends."
    found: dict = {}
    for c in reversed([c for c in cls.__mro__ if issubclass(c, JobConfig) and c is not JobConfig]):
        # a notebook's cell, or a module's file
        file = c.check.__code__.co_filename if "check" in vars(c) else sys.modules[c.__module__].__file__
        source = "".join(linecache.getlines(str(file)))
        body = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == c.__name__)
        found |= dict(
            re.findall(
                r"^\s+(\w+)\s*:[^#\n]*#[ ]*(.+)$",
                "\n".join(source.splitlines()[body.lineno - 1 : body.end_lineno]),
                re.M,
            )
        )
    return {f.name: found[f.name].strip() for f in fields(cls) if f.name in found}


def settings_text(
    cls,  # a JobConfig subclass
    leave_out: tuple = (),  # names that are not to be told
) -> str:  # a row for each setting
    "The settings in words, for the docstring of a function that takes them by name."
    words = field_help(cls)
    return "\n".join(
        f"    {f.name} = {f.default!r}: {words.get(f.name, '')}" for f in fields(cls) if f.name not in leave_out
    )


# %% tags=["example"]
field_help(DemoConfig)

# %% tags=["example"]
print(settings_text(DemoConfig))


# %% [markdown]
# ### The chapter is the program
#
# A job chapter has one cell tagged `parameters`. Its names and values must be exactly the dataclass's fields and defaults, otherwise papermill and the command line would run two different programs. `parameters_of` reads that cell from the notebook file; each job chapter compares it with its dataclass.

# %%
#| export
def chapters_dir() -> Path:
    "Where the chapters lie: inside an installed package, or `nbs/` of a checkout."
    package = Path(simpsons_llm.__file__).resolve().parent
    return package / "chapters" if (package / "chapters").is_dir() else package.parent / "nbs"


# %% [markdown]
# People name a job in different ways, and all should work: `finetune`, `47_finetune`, or a path.

# %%
#| export
def find_chapter(
    name: str,  # a job's name ("finetune"), a chapter's ("47_finetune"), or the path of any notebook
) -> Path:  # the notebook; FileNotFoundError if there is none
    "The notebook of a job."
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path
        raise FileNotFoundError(f"no notebook at {name}; give a path that exists or a chapter's name")
    have = sorted(chapters_dir().glob("[0-9]_*/[0-9]*.ipynb"))
    for p in have:
        if name in (p.stem, p.stem.split("_", 1)[1]):
            return p
    raise FileNotFoundError(
        f"no chapter is called {name!r}; there are {', '.join(p.stem.split('_', 1)[1] for p in have)}"
    )


# %% [markdown]
# A file that should hold JSON and does not is told by name, in words that need no knowledge of Python:

# %%
#| export
def read_json(
    path,  # the file
    kind: type = object,  # dict or list where it must be one
    advice: str = "make it again",  # what to do where it is damaged
):  # what it holds; FileNotFoundError, or ValueError if it is not JSON of that kind
    "Read a JSON file."
    raw = Path(path).read_bytes()
    try:
        found = json.loads(raw.decode("utf8"))
    except (ValueError, RecursionError) as e:
        why = f"is not valid JSON (row {getattr(e, 'lineno', 1)})" if raw.strip() else "is empty"
        raise ValueError(f"{path} {why}; {advice}") from None
    kinds = f"{type(found).__name__}, not {kind.__name__}"
    require(isinstance(found, kind), f"{path} is JSON of another kind ({kinds}); {advice}")
    return found


# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for text in ("", '{"status":\n "do', "[1]"):
        (Path(folder) / "summary.json").write_text(text)
        try:
            read_json(Path(folder) / "summary.json", dict)
        except ValueError as e:
            print(str(e).replace(folder, "runs/x"))


# %% [markdown]
# The cell holds literals only, so it can be read without being run:

# %%
#| export
def parameters_of(
    notebook,  # path of a notebook
) -> dict:  # names and values of its cell tagged `parameters`; empty if it has none; ValueError if it is no notebook
    "The parameters of a job chapter, without running it."
    nb = read_json(notebook)
    require(isinstance(nb, dict) and isinstance(nb.get("cells"), list), f"{notebook} is not a notebook of format 4")
    source = next(
        ("".join(c["source"]) for c in nb["cells"] if "parameters" in c.get("metadata", {}).get("tags", [])), ""
    )
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue  # an import, say
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Name):
            continue
        try:
            found[target.id] = ast.literal_eval(node.value) if node.value else None
        except (ValueError, TypeError):
            found[target.id] = None  # computed: known by name only
    return found


# %% [markdown]
# This is the check that each job chapter makes of itself:

# %%
#| export
def same_parameters(
    cls,  # the job's JobConfig subclass
    chapter: str,  # the chapter that is that job's program
) -> bool:  # True, or ValueError naming every difference
    "Hold a chapter's `parameters` cell against its dataclass: names, order and defaults."
    cell = list(parameters_of(find_chapter(chapter)).items())
    want = [(f.name, f.default) for f in fields(cls)]
    require(
        cell == want,
        f"parameters cell of {chapter} and {cls.__name__} differ "
        f"in {sorted(set(map(repr, cell)) ^ set(map(repr, want)))}",
    )
    return True


# %% [markdown]
# A notebook made on the spot shows what is read:

# %% tags=["example"]
cell = {
    "cell_type": "code",
    "metadata": {"tags": ["parameters"]},
    "source": ["max_steps = 20\n", "r = None  # from the recipe"],
}
with tempfile.TemporaryDirectory() as folder:
    notebook = Path(folder) / "01_tiny.ipynb"
    notebook.write_text(json.dumps({"cells": [cell]}), encoding="utf8")
    shown = parameters_of(notebook)
shown

# %% tags=["check"]
assert shown == {"max_steps": 20, "r": None}
for wrong in ("no_such_chapter", "nowhere/x.ipynb"):
    try:
        find_chapter(wrong)
        raise AssertionError
    except FileNotFoundError as e:
        assert wrong in str(e)


# %% [markdown]
# ## A run is a folder
#
# Everything that a job writes lies in one folder, and every write is atomic: a reader of `summary.json` never sees half a file, and a run that is killed leaves the last whole one. A folder that cannot be written is reported before hours of work, not after.

# %%
#| export
def open_folder(
    path,  # the folder; its parents are made too
) -> Path:  # the folder, proven to be writable; PermissionError with one sentence otherwise
    "Make a folder ready for results."
    path = Path(path)
    if path.is_file():
        raise FileExistsError(f"{path} is a file, and a folder is to be written there; choose another name")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        raise PermissionError(
            f"cannot write into the folder {path} ({e.strerror or e}); choose another with write access"
        ) from e
    return path


# %% [markdown]
# What several runs share (weights that were fetched, tokens that were made) lies in one cache folder:

# %%
#| export
def cache_dir() -> Path:
    "$SIMPSONS_LLM_CACHE, else simpsons_llm in the user's cache folder."
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SIMPSONS_LLM_CACHE") or Path(cache) / "simpsons_llm")


# %% [markdown]
# A crash in the middle of a write must not leave half a file in the place of a whole one:

# %%
#| export
def write_text(
    path,  # the file
    text: str,  # its new contents
) -> Path:  # the file
    "Write a whole file or nothing: a temporary file beside it takes its place in one step."
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf8")
    os.replace(temporary, path)
    return path


def write_json(
    path,  # the file
    data,  # anything that JSON can hold
) -> Path:  # the file
    "Write JSON atomically, readable and with UTF-8 kept as it is."
    return write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


# %% [markdown]
# Metrics grow line by line while a run goes on, so they are appended:

# %%
#| export
def append_jsonl(
    path,  # the file, one JSON object a line
    row: dict,  # what to add
):
    "Add one line to a JSONL file; a reader beside us sees whole lines."
    with open(path, "a", encoding="utf8") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(
    path,  # the file
) -> list:  # its objects; FileNotFoundError if the file is not there
    "All objects of a JSONL file."
    found = []
    for number, row in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        try:
            found += [json.loads(row.decode("utf8"))] if row.strip() else []
        except ValueError:
            raise ValueError(f"{path} is not valid JSONL (row {number}); make it again") from None
    return found


# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    run = open_folder(Path(folder) / "runs" / "x")
    append_jsonl(run / "metrics.jsonl", {"step": 1, "text": "café"})
    append_jsonl(run / "metrics.jsonl", {"step": 2})
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1, 2]
    write_json(run / "summary.json", {"status": "running"})
    write_json(run / "summary.json", {"status": "done"})
    assert json.loads((run / "summary.json").read_text()) == {"status": "done"} and len(list(run.iterdir())) == 2
    try:
        open_folder(run / "summary.json" / "inside")
        raise AssertionError
    except PermissionError as e:
        assert "cannot write" in str(e)


# %% [markdown]
# A second fine-tuning under the same name must not destroy the first: what the first one left is set aside in `earlier/`. (Prepared data is made again from the script in seconds, so `prepare` writes over its folder.) A second one *at the same time* is refused, further down.

# %%
#| export
def set_aside(
    folder,  # a run's folder
    names: list,  # files and folders of an earlier run, where present
) -> Path | None:  # where they are now; None if there was nothing
    "Move what an earlier run left into `earlier/1`, `earlier/2`, and so on."
    folder = Path(folder)
    there = [folder / n for n in names if (folder / n).exists()]
    if not there:
        return None
    number = max((int(p.name) for p in (folder / "earlier").glob("[0-9]*") if p.name.isdigit()), default=1)
    # else another part of the same run was put there
    if any((folder / "earlier" / str(number) / n).exists() for n in names):
        number += 1
    to = open_folder(folder / "earlier" / str(number))
    for p in there:
        shutil.move(str(p), to / p.name)
    return to


# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    assert set_aside(folder, ["summary.json"]) is None
    for n in (1, 2):
        write_json(Path(folder) / "summary.json", n)
        assert set_aside(folder, ["summary.json", "adapter"]).name == str(n)
    assert not (Path(folder) / "summary.json").exists()


# %% [markdown]
# ## Progress: plain lines with the time left
#
# A bar that redraws itself turns a papermill log into thousands of lines. `Progress` prints a plain line now and then, with what is done, the time left at the speed so far, and whatever the job wants to say. In a notebook that somebody watches, the lines of a cell stand in one place instead and are written over: one for each thing that is counted.

# %%
#| export
def format_seconds(
    seconds: float,  # a duration in seconds
) -> str:  # such as "48 s", "3 min 05 s", "2 h 10 min"
    "A duration as a person would say it."
    s = int(round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


# %%
#| export
LINES = "SIMPSONS_LLM_LINES"  # environment: 1 in a kernel whose output is a log
_PANEL: dict = {}  # cell: its number; display: where its progress stands; rows: what is counted -> its line


def watched_cell():  # its number; None: a plain program, or a log
    "The cell of a notebook that runs now, if somebody may be watching it."
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell.execution_count if shell and hasattr(shell, "kernel") and not os.environ.get(LINES) else None


def tell(
    what: str,  # what is counted
    line: str,  # how far it is
):
    "A line of progress: printed, or in its place below the running cell."
    cell = watched_cell()
    if cell is None:
        print(line, flush=True)
        return
    from IPython.display import display

    if _PANEL.get("cell") != cell:
        _PANEL.update(cell=cell, display=None, rows={})
    _PANEL["rows"][what] = line
    shown = {"text/plain": "\n".join(_PANEL["rows"].values())}
    if _PANEL["display"]:
        _PANEL["display"].update(shown, raw=True)
    else:
        _PANEL["display"] = display(shown, raw=True, display_id=True)


class Progress:
    "Progress in lines: done, share, time left. At most one every `every_s` seconds, and always the last."

    def __init__(
        self,
        total: float,  # how much there is to do
        what: str,  # the first word of each line
        unit: str = "steps",  # what is counted
        every_s: float = 5,  # least seconds between lines
        show: bool = True,  # False on all ranks but the first
        most_s: float | None = None,  # the time allowed for all of it, in seconds
    ):
        self.total, self.what, self.unit, self.every_s, self.show = total, what, unit, every_s, show
        self.start, self.most_s = time.perf_counter(), most_s
        self.last = -float("inf")

    def __call__(
        self,
        done: float,  # how much is done, 0..total
        note: str = "",  # the job's own words, e.g. the loss
        over: bool = False,  # it ends here, whatever is left
    ):
        "Tell how far the job is."
        now, over = time.perf_counter(), over or done >= self.total
        if not self.show or (not over and now - self.last < self.every_s):
            return
        self.last, spent = now, now - self.start
        needs = spent * (self.total - done) / done if done else 0.0
        if self.most_s is not None:
            needs = min(needs, max(self.most_s - spent, 0.0))
        known = done and (spent >= self.every_s or done >= self.total / 100)  # the first moment says nothing
        left = f"{format_seconds(spent)} in all" if over and done else f"{format_seconds(needs)} left" if known else ""
        count = f"{done:g}/{self.total:g} {self.unit}"
        tell(self.what, "  ".join(x for x in (self.what, count, f"{100 * done / self.total:3.0f} %", left, note) if x))


# %% tags=["example"]
progress = Progress(3, "train", every_s=0)
for step in range(1, 4):
    time.sleep(0.01)
    progress(step, f"loss {4 - step / 10:.2f}")

# %% tags=["check"]
out = io.StringIO()
with redirect_stdout(out), patch.dict(os.environ, {LINES: "1"}):
    p = Progress(100, "score", every_s=60)
    for i in range(1, 101):
        p(i)
    Progress(10, "quiet", show=False)(10)
    short = Progress(10**6, "allowed", every_s=0, most_s=60)
    short.start -= 30  # as if half of the time were over
    short(1)
    Progress(10**6, "begun")(1)
    short(2, over=True)
# the first, the last, no flood
rows = out.getvalue().splitlines()
assert [line.split()[1] for line in rows[:-3]] == ["1/100", "100/100"]
# the time allowed is never exceeded by the time left, and nothing is told of it before something is known
assert int(rows[-3].split()[-3]) <= 60 and rows[-3].endswith("s left") and rows[-1].endswith("in all")
assert "left" not in rows[-2]
assert [format_seconds(s) for s in (47.6, 185, 7800)] == ["48 s", "3 min 05 s", "2 h 10 min"]


# %% [markdown]
# Python's collector of cyclic garbage looks at all living objects again and again while millions of small ones are made. Lines and tokens form no cycles, so it is switched off meanwhile: reading a table of 158,000 rows and cutting it into samples takes about a quarter less time.

# %%
#| export
@contextmanager
def collector_off():
    "Make many small objects without looking for garbage among them."
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.enable() if was_on else None


# %% tags=["check"]
with collector_off():
    assert not gc.isenabled()
assert gc.isenabled()


# %% [markdown]
# The large libraries bring some 600,000 objects that stay until the end. Each full look for garbage goes over all of them, which takes a quarter of a second, and loading a model gives rise to several. So they are imported without it, and afterwards put where it does not look. What is alive at that moment is never looked at again, hence only the first time counts, before there is any model.

# %%
#| export
def import_all(
    *names: str,  # of modules
):
    "Import large libraries, and keep the collector from looking for garbage among what they made."
    if all(name in sys.modules for name in names):
        return
    with collector_off():
        for name in names:
            importlib.import_module(name)
        gc.freeze()


# %% tags=["check"]
before = gc.get_freeze_count()
import_all("json", "gc")
assert gc.get_freeze_count() == before  # nothing new: what lives here stays in sight
with patch.dict(sys.modules):
    sys.modules.pop("this", None)
    import_all("json", "this")
    assert "this" in sys.modules and gc.get_freeze_count() > before and gc.isenabled()
gc.unfreeze()


# %% [markdown]
# What commands do before their work, then (SmolLM2 on two cores of an AMD EPYC, PyTorch 2.13, 30 November 2026; processor seconds, the least of several runs in turn with the program as it was before):
#
# | | before | now |
# |---|---|---|
# | `finetune`, to its first step: imports | 2.5 | 2.4 |
# | - looking for garbage | 0.9 | 0.1 |
# | - asking the model, and a sketch of it, whether packed samples stay apart | 1.1 | 1.1 |
# | - counting the memory of a step | 0.6 | 0.6 |
# | - tokenizer, weights and adapter | 0.6 | 0.4 |
# | - script, samples, the rest | 0.2 | 0.2 |
# | `infer`, one answer: imports | 2.2 | 2.1 |
# | - looking for garbage | 0.7 | 0.1 |
# | - weights, adapter, merging | 0.8 | 0.7 |
# | - the answer | 1.1 | 1.1 |
# | the first time: unpacking the weights | 18.4 | 4.6 |
#
# With the start of Python and its end, `finetune` comes to its first step after 5.0 processor seconds instead of 7.3, and `infer` takes 4.6 instead of 6.3. What is left is mostly the import of PyTorch and transformers.

# %% [markdown]
# ## Results that show themselves
#
# What a function gives back is looked at by a person first. `Facts` is a dictionary that a notebook shows as a table and a terminal as rows:

# %%
#| export
class Facts(dict):
    "Named results: a dict that shows itself, whose entries are attributes too."

    def __getattr__(
        self,
        name: str,  # of an entry
    ):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} here, but {', '.join(map(repr, self))}") from None

    def rows(self) -> list:  # (name, text); entries that hold entries are left to those who ask for them
        "The entries in words."
        plain = {k: v for k, v in self.items() if not isinstance(v, (dict, list, tuple))}
        return [(k.replace("_", " "), f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in plain.items()]

    def __repr__(self):
        rows = self.rows()
        return "\n".join(f"{name:{max(len(n) for n, _ in rows)}}  {text}" for name, text in rows)

    def _repr_html_(self):
        cells = (
            f"<tr><td>{html.escape(n)}</td><td style='text-align:left'>{html.escape(t)}</td></tr>"
            for n, t in self.rows()
        )
        return f"<table>{''.join(cells)}</table>"


# %% [markdown]
# Tables of dialogue are read, and pandas cuts the text in them short:

# %%
#| export
def text_frame(
    rows,  # what a pandas frame is made of
    **how,  # and its other arguments
):  # a pandas frame
    "A frame that shows its texts whole, and from the left."
    import pandas as pd

    class Whole(pd.DataFrame):
        @property
        def _constructor(self):
            return Whole

        def _repr_html_(self):
            with pd.option_context("display.max_colwidth", None):
                cells = pd.DataFrame(self).to_html(index=False, border=0, justify="left")
            return cells.replace("<td>", '<td style="text-align:left">')

        def __repr__(self):
            with pd.option_context("display.max_colwidth", 48, "display.width", 200, "display.max_columns", None):
                return pd.DataFrame(self).to_string(index=False)

    return Whole(rows, **how)


# %% tags=["example"]
text_frame([{"speaker": "Moe Szyslak", "text": "One thing after the other, and the last one was the door. " * 2}])

# %% tags=["example"]
facts = Facts(valid_loss_nats_base=3.8984, valid_loss_nats_best=3.6119, ranks=[{"rank": 0}])
facts

# %% tags=["check"]
assert facts.valid_loss_nats_best == facts["valid_loss_nats_best"] and "ranks" not in repr(facts)
assert "&lt;" in Facts(a="<b>")._repr_html_()
try:
    print(facts.loss)
    raise AssertionError
except AttributeError as e:
    assert "valid_loss_nats_base" in str(e)

# %% [markdown]
# ## One job at a time in a folder
#
# Two runs in one folder would write into each other's files, and both would say that all went well. So a job *holds* its folder while it works: a file `.lock` in it says who does, where, and since when. It is made in one step that only one of two can win, which works on every file system, those of clusters too. Whoever finds it there is refused, unless its owner is gone. On the owner's machine one can ask for the process; the time of its start is compared as well, since numbers of processes come again. From another machine one cannot ask, so the owner touches the file every half minute, and one that was left alone for ten minutes is taken for stale.
#
# A job often works through others: `launch` starts ranks, papermill starts a kernel, and the training in that kernel wants the same folder. They learn from the environment that it is held for them, and add themselves to the owners. A folder that was made for a job and in which nothing was written is removed again.

# %%
#| export
# the file, and the variable that tells processes below which locks are held for them
LOCK, HELD = ".lock", "SIMPSONS_LLM_HELD"
# so often the owner touches its lock; so long a silent one from another machine is believed, in seconds
BEAT_S, SILENT_S = 30.0, 600.0


def own_place() -> str:
    "Where process numbers mean the same as here: the machine since its start, and the container."
    places = [platform.node()]
    for look in (Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink("/proc/self/ns/pid")):
        try:
            places.append(look().strip())
        except OSError:  # not Linux
            pass
    return " ".join(places)


def user_name() -> str:
    "Who runs this, where the system knows it."
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return "somebody"


def own_process() -> dict:  # pid, started (seconds since 1970) and place
    "This process, so that others can find out whether it still lives."
    import psutil

    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "place": own_place()}


def is_alive(
    process: dict,  # what `own_process` gave, on this machine
) -> bool:
    "Whether a process still lives; another one with its number does not count."
    import psutil

    try:
        found = psutil.Process(process["pid"])
        return abs(found.create_time() - process["started"]) < 2 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # it is there, and another user's
        return True
    except psutil.Error:
        return False


# %%
#| export
def read_lock(
    path: Path,  # a lock file
) -> tuple:  # (what its owner wrote, seconds since it was touched); ({}, age) if that cannot be read
    """Who holds a folder: what, user, host, since and processes.

    Both times are those of the folder's own file system, so clocks need not agree."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as now:
        age = os.stat(now.name).st_mtime - path.stat().st_mtime
    try:
        note = json.loads(path.read_text(encoding="utf8"))
    except ValueError:
        note = {}
    return (note if isinstance(note, dict) and note.get("processes") else {}), age


def lock_is_held(
    note: dict,  # what `read_lock` gave
    age_s: float,  # seconds since it was touched
) -> bool:  # False for what an ended process left behind
    "Whether one of a lock's owners is still there."
    if not note:
        return age_s < SILENT_S
    return any(is_alive(p) if p["place"] == own_place() else age_s < SILENT_S for p in note["processes"])


def owner_text(
    note: dict,  # what `read_lock` gave
) -> str:  # such as "finetune by ann on node1 (process 4711), since 3 min 20 s"
    "The owner of a lock in words."
    if not note:
        return "another job"
    return (
        f"{note['what']} by {note['user']} on {note['host']} (process {note['processes'][0]['pid']}), "
        f"since {format_seconds(max(0, time.time() - note['since']))}"
    )


# %%
#| export
def make_lock(
    path: Path,  # the lock file
    note: dict,  # what to write into it
) -> bool:  # False if there is one already
    "Make a lock file; of several who try at once, one succeeds."
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf8") as f:
        json.dump(note, f)
    return True


def take_lock(
    path: Path,  # the lock file
    folder,  # the folder it stands for
    note: dict,  # what to write into it
):
    "Make a lock file, in the place of a stale one if need be; ValueError naming the owner if the folder is held."
    while not make_lock(path, note):
        try:
            found, age = read_lock(path)
        except FileNotFoundError:  # given back this very moment
            continue
        here = found and all(p["place"] == own_place() for p in found["processes"])
        where = "" if here else f"; if that job is gone, remove {path}"
        require(
            not lock_is_held(found, age),
            f"{folder} is in use by {owner_text(found)}; wait for its end, or choose another folder{where}",
        )
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            continue
        if read_lock(aside)[0] != found:  # somebody else was quicker, and this is the new lock
            os.rename(aside, path)
            continue
        aside.unlink()
        print(f"{folder}: {owner_text(found)}, left a lock behind and is gone; the folder is taken over", flush=True)


# %%
#| export
def join_lock(
    path: Path,  # a lock that a process above holds
):
    "Add this process to the owners, so that the folder stays held if only this one is left."
    try:
        note, _ = read_lock(path)
        if note:
            write_json(path, {**note, "processes": [*note["processes"], own_process()]})
    except FileNotFoundError:
        pass


@contextmanager
def hold_folder(
    folder,  # the folder that a job writes into; made if it is not there
    what: str,  # the job, e.g. "finetune"
    lock: Path | None = None,  # the lock file; None: `.lock` in the folder
):
    "Keep a folder to oneself for the length of a `with` block; ValueError naming the owner if it is another's."
    folder = Path(folder)
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    path = Path(os.path.realpath(lock or open_folder(folder) / LOCK))
    held = [entry.split("=", 1) for entry in os.environ.get(HELD, "").split(os.pathsep) if "=" in entry]
    if any(Path(name) == path and int(pid) != os.getpid() for pid, name in held):
        join_lock(path)
        yield
        return
    take_lock(
        path,
        folder,
        {
            "what": what,
            "user": user_name(),
            "host": platform.node(),
            "since": time.time(),
            "processes": [own_process()],
        },
    )
    done, before = threading.Event(), os.environ.get(HELD)

    def beat():
        while not done.wait(BEAT_S):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, daemon=True).start()
    os.environ[HELD] = os.pathsep.join([*filter(None, [before]), f"{os.getpid()}={path}"])
    try:
        yield
    finally:
        done.set()
        if before is None:
            os.environ.pop(HELD, None)
        else:
            os.environ[HELD] = before
        path.unlink(missing_ok=True)
        for made in new:
            with suppress(OSError):
                made.rmdir()  # only an empty one goes


# %% [markdown]
# While one holds a folder, another is refused, and told by whom; a lock whose owner is gone stops nobody:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "runs" / "x"
    with hold_folder(run, "finetune"):
        try:
            with hold_folder(run, "prepare"):
                pass
        except ValueError as e:
            print(re.sub(r"by .* \(process \d+\)", "by ann on node1 (process 4711)", str(e).replace(folder, ".")))
    print("left in the folder:", os.listdir(folder))

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    # this number, but another process
    path, gone = Path(folder) / LOCK, {**own_process(), "started": 1.0}
    far = {**gone, "place": "elsewhere"}
    for processes, held in (
        ([own_process()], True),
        ([gone], False),
        ([gone, own_process()], True),
        ([gone, far], True),
    ):
        assert lock_is_held({"processes": processes}, 5.0) == held
    assert (
        not lock_is_held({"processes": [gone, far]}, SILENT_S + 1)
        and lock_is_held({}, 5.0)
        and not lock_is_held({}, SILENT_S + 1)
    )
    write_json(path, {"what": "loop", "user": "ann", "host": "node1", "since": 0, "processes": [gone]})
    with redirect_stdout(io.StringIO()) as said, hold_folder(folder, "loop"):
        assert read_lock(path)[0]["processes"] == [own_process()]
    assert "left a lock behind" in said.getvalue() and not path.exists() and HELD not in os.environ

# %% [markdown]
# ## Being told to stop
#
# A batch system takes a machine back, somebody presses Ctrl-C, a terminal is closed: the process is sent a *signal* (TERM, INT, HUP; some systems send USR1 as a warning). Its default is to end the process at once, and everything since the last checkpoint is lost. So a job *listens*. Before there is anything to save, a signal ends it at once, in order. In the middle of training the first signal is a wish: the step is finished and saved, and then the job ends. A second one ends it at once. So does the first, if the step takes longer than a few seconds, since those who send signals soon send one that cannot be heard.
#
# A signal that was switched off before Python began (by `nohup`, or by a shell for what it runs in the background) stays off. How a program ended is told by a number, as a shell does it: 128 and the number of the signal, 130 for Ctrl-C.

# %%
#| export
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
PATIENCE_S = 7.0  # so long a step may go on after a signal, in seconds


class Stopped(KeyboardInterrupt):
    "A signal ended this job."

    last: ClassVar[int] = 0  # number of the signal that was heard last in this process

    def __init__(
        self,
        number: int,  # of the signal
        where: str = "",  # how far the job had come, such as "after step 5"
    ):
        self.number = Stopped.last = int(number)
        super().__init__(f"interrupted by {signal.Signals(number).name}" + f" {where}" * bool(where))


class Listener:
    "What a signal does."

    def __init__(self):
        self.begin()

    def begin(self):
        "Nothing was heard yet, and nothing is there to be saved."
        self.number = 0  # of the signal that was heard; 0: none
        self.patient = False  # the first signal is a wish
        self.job = object()  # which of the jobs of this process it is
        self.last_word: Callable[[Stopped], object] = lambda stopped: None  # before the process ends the hard way

    def __call__(
        self,
        number: int,  # of the signal
        frame,  # where it was heard
    ):
        "The signal handler."
        if self.number or not self.patient:
            self.number = self.number or number
            raise Stopped(number, "before the step was saved" if self.patient else "")
        self.number = number
        print(f"{signal.Signals(number).name}: this step is finished and saved; once more ends at once", flush=True)
        threading.Thread(target=self.wait, args=[self.job], daemon=True).start()

    def wait(
        self,
        job,  # that was told to stop; a later one is not meant
    ):
        "Time for a step; then the second signal comes from here, and then the end."
        time.sleep(PATIENCE_S)
        if self.job is job and self.number and self.patient:
            os.kill(os.getpid(), self.number)
        time.sleep(2)
        if self.job is job and self.number and self.patient:  # a library does not give the word back
            with suppress(Exception):
                self.last_word(Stopped(self.number, "before the step was saved"))
            sys.stdout.flush()
            os._exit(128 + self.number)


LISTENER = Listener()


@contextmanager
def listening():
    "While this lasts, signals are heard by `LISTENER`; those that are switched off are not."
    LISTENER.begin()
    here = threading.current_thread() is threading.main_thread()
    heard = [n for n in STOPS if here and signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {n: signal.signal(n, LISTENER) for n in heard}
    try:
        yield LISTENER
    finally:
        LISTENER.begin()
        for number, handler in before.items():
            signal.signal(number, handler)


# %% [markdown]
# A job of steps that is told to stop in its third, and once more; and one that was told before its first:

# %% tags=["example"]
def steps(*at, patient=True):
    "Count to five; a signal comes at these."
    with listening() as ear:
        ear.patient = patient
        try:
            for step in range(1, 6):
                for _ in range(at.count(step)):
                    signal.raise_signal(signal.SIGTERM)
                if ear.number:
                    raise Stopped(ear.number, f"after step {step}")
        except Stopped as e:
            print(e, "- exit code", 128 + e.number)


steps(3)
steps(3, 3)
steps(1, patient=False)

# %% tags=["check"]
before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
steps(3)  # switched off before: not heard
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
signal.signal(signal.SIGTERM, before)
assert signal.getsignal(signal.SIGTERM) == before and Stopped.last == signal.SIGTERM


# %% [markdown]
# ### The command that goes on
#
# Whoever is stopped should be told how to go on, in words that can be pasted into a shell:

# %%
#| export
def again_command(
    job: str,  # the command's name
    config: JobConfig,  # its settings
    **other,  # settings that are to be others
) -> str:  # to be pasted into a shell; what has its default is left out
    "The command that would give these settings."
    words = ["simpsons-llm", job]
    for f in fields(config):
        value, name = other.get(f.name, getattr(config, f.name)), f.name.replace("_", "-")
        if value == f.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            rows = value.split("\n") if f.name in config.repeated else [value]
            words += [x for row in rows for x in (f"--{name}", quote(str(row)))]
    return " ".join(words)


def again_launched(
    job: str,  # the chapter's name
    config: JobConfig,  # its settings, `run` among them
    n: int,  # ranks
    **other,  # settings that are to be others
) -> str:  # to be pasted into a shell
    "The same on several ranks."
    now = {f.name: other.get(f.name, getattr(config, f.name)) for f in fields(config)}
    given = [f"-p {f.name} {quote(str(now[f.name]))}" for f in fields(config) if now[f.name] != f.default]
    return " ".join(["simpsons-llm launch", job, f"-n {n} --out {quote(now['run'])}", *given])


# %% tags=["example"]
print(again_command("demo", DemoConfig(max_steps=50), r=4))


# %% tags=["check"]
@dataclass
class RunConfig(JobConfig):
    run: str = "runs/x"  # folder
    resume: bool = False  # go on

    def check(self):
        pass


assert again_command("demo", RunConfig("my run"), resume=True) == "simpsons-llm demo --run 'my run' --resume"
assert (
    again_launched("demo", RunConfig(), 2, resume=True) == "simpsons-llm launch demo -n 2 --out runs/x -p resume True"
)


# %% [markdown]
# ## Where a result came from
#
# A number without its circumstances cannot be trusted or repeated. Each run writes down versions, the revision of the code, and hashes of its data.

# %%
#| export
def sha256(
    path,  # a file
) -> str:  # 64 hexadecimal digits
    "The SHA-256 of a file, read in pieces."
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            h.update(piece)
    return h.hexdigest()


# %% [markdown]
# ### What was written is what is there
#
# A disk fills up, a copy is cut off, a bit falls over, somebody tidies up. A library that reads such a folder may fail in its own words, or not at all: a checkpoint without its optimizer's file goes on, with a rate that begins again. So whoever writes a folder of results *seals* it: last of all comes a manifest with the size and the SHA-256 of each file. Whoever reads it asks first what is wrong. Texts for people (`.md`) are left out, since people may change them.
#
# SHA-256 takes about 1.2 s for a GiB here, and files are read beside each other in threads. A model of 3 billion numbers leaves 36 GB in a checkpoint, for which that is too much. So files of up to 1 GiB are hashed whole, and larger ones by a MiB of every 64, the first and the last among them: 36 GB in a second, and what is cut off, overwritten or mixed up is noticed all the same. A single bit in such a large file mostly is not.

# %%
#| export
MANIFEST = "simpsons_llm.manifest.json"  # of a sealed folder; written last
HASHED_WHOLE, PIECE, STRIDE = 1 << 30, 1 << 20, 64 << 20  # bytes


def file_facts(
    path,  # a file
) -> dict:  # size, and sha256 or, of a large file, pieces_sha256
    "By what a file is known again."
    size = os.path.getsize(path)
    if size <= HASHED_WHOLE:
        return {"size": size, "sha256": sha256(path)}
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for at in (*range(0, size - PIECE, STRIDE), size - PIECE):
            f.seek(at)
            h.update(f.read(PIECE))
    return {"size": size, "pieces_sha256": h.hexdigest()}


def seal(
    folder,  # a folder whose files are all written
    names: list | tuple = (),  # files to be known again; empty: all below it, hidden ones and texts for people left out
) -> Path:  # the manifest
    "Write down what each file of a folder is, last of all."
    folder = Path(folder)
    every = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".md")
    files = names or [p.as_posix() for p in every if not any(x[0] == "." for x in p.parts) and p.name != MANIFEST]
    with ThreadPoolExecutor(4) as pool:
        facts = list(pool.map(lambda name: file_facts(folder / name), files))
    return write_json(folder / MANIFEST, {"files": dict(zip(files, facts))})


def unseal(
    folder,  # a folder that is about to be written into
):
    "What a folder's manifest said is true no more."
    (Path(folder) / MANIFEST).unlink(missing_ok=True)


def is_sealed(
    folder,  # any folder
) -> bool:
    "Whether a folder has a manifest; those of earlier versions have none."
    return (Path(folder) / MANIFEST).is_file()


# %% [markdown]
# What is wrong is said by file, so that a person knows whether it can be helped:

# %%
#| export
def file_damage(
    path: Path,  # a file
    was: dict,  # what `file_facts` gave when it was sealed
) -> str:  # such as "optimizer.pt is missing"; "" if it is as it was
    "What has happened to a file."
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != was["size"]:
        return f"{path.name} has {size:,} of {was['size']:,} bytes" if size else f"{path.name} is empty"
    return "" if file_facts(path) == was else f"{path.name} has changed since it was written"


def damage_in(
    folder,  # a folder
    names: list | tuple = (),  # only these of its files; empty: all of the manifest
) -> list:  # sentences; none where all is as it was sealed, or where there is no manifest
    "What has happened to a folder since it was sealed."
    folder = Path(folder)
    if not is_sealed(folder):
        return []
    try:
        files = read_json(folder / MANIFEST, dict)["files"]
        wanted = {k: v for k, v in files.items() if not names or k in names}
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda item: file_damage(folder / item[0], item[1]), wanted.items())
            return [x for x in found if x]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is damaged"]


def require_sealed(
    folder,  # a folder that is about to be read
    what: str,  # what it is, in words
    advice: str,  # what to do if it is damaged
    names: list | tuple = (),  # only these of its files; empty: all of the manifest
):
    "ValueError, saying what has happened, if a sealed folder is not as it was; one without a manifest passes."
    wrong = damage_in(folder, names)
    meant = f", or remove {MANIFEST} there if this was meant"
    require(not wrong, f"{what} in {folder} is damaged: {', '.join(wrong)}; {advice}{meant}")


# %% [markdown]
# Four files after four mishaps:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for name in ("a.bin", "b.bin", "c.bin", "d.bin", "e.bin"):
        (Path(folder) / name).write_bytes(name.encode() * 1000)
    seal(folder)
    (Path(folder) / "a.bin").unlink()
    (Path(folder) / "b.bin").write_bytes(b"")
    (Path(folder) / "c.bin").write_bytes(b"c.bin" * 600)
    (Path(folder) / "d.bin").write_bytes(b"c.bin" + b"d.bin" * 999)
    wrong = damage_in(folder)
wrong

# %% tags=["check"]
assert [w.split()[0] for w in wrong] == ["a.bin", "b.bin", "c.bin", "d.bin"] and "3,000 of 5,000 bytes" in wrong[2]
with tempfile.TemporaryDirectory() as folder:
    large = Path(folder) / "large"
    with patch.dict(globals(), HASHED_WHOLE=100, PIECE=10, STRIDE=50):
        large.write_bytes(bytes(range(256)))
        before = file_facts(large)
        for at, seen in ((0, True), (55, True), (255, True), (30, False)):
            raw = bytearray(range(256))
            raw[at] ^= 4
            large.write_bytes(raw)
            assert (file_damage(large, before) != "") == seen, at
    assert damage_in(folder) == [] and not is_sealed(folder)
    for text in ("", "[]", '{"files": 3}', '{"files": {"large": 3}}'):
        (Path(folder) / MANIFEST).write_text(text)
        assert damage_in(folder) == [f"{MANIFEST} is damaged"], text


# %% [markdown]
# The code that made a result is named by its revision; a `+` says that files had been changed since:

# %%
#| export
def git_revision() -> str | None:
    "The revision of the checkout this package runs from, with `+` if files differ from it; None outside a checkout."
    root = Path(simpsons_llm.__file__).resolve().parent.parent

    def git(*args):
        return subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # installed inside another project
        if not (root / "settings.ini").is_file() or Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict:
    "Versions of everything that shapes a result, and the code's revision."

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    names = ("simpsons_llm", "torch", "transformers", "peft", "accelerate", "datasets")
    return {"python": platform.python_version(), **{n: version(n) for n in names}, "revision": git_revision()}


# %% tags=["example"]
{k: v for k, v in provenance().items() if k != "revision"}

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    # the standard's own test vector
    assert sha256(write_text(Path(folder) / "a", "abc")).startswith("ba7816bf")
assert provenance()["python"] == sys.version.split()[0]


# %% [markdown]
# ## A process of its own
#
# What a process has loaded or kept cannot help the next one, and its peak memory is its own. So what is measured runs in a fresh process; it is given plain data, and gives plain data back.

# %%
#| export
def in_process(
    function: str,  # "module:function" of this package
    **arguments,  # its arguments, plain data
) -> dict:  # its result, and peak_gib of the process; RuntimeError if it failed
    "Call a function in a process of its own."
    command = [
        sys.executable,
        "-c",
        "import simpsons_llm.machine.job as job; job.answer_call()",
        function,
        json.dumps(arguments),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    ) as process:
        last = ""
        for line in process.stdout or ():
            if line.startswith("{"):
                last = line
            elif line.strip():
                print(line, end="", flush=True)
    if process.returncode or not last:
        raise RuntimeError(f"{function} failed with exit code {process.returncode}; its messages stand above")
    return json.loads(last)


def answer_call():
    "The other side of `in_process`."
    from simpsons_llm.machine.device import find_device, peak_memory_gib

    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(f"simpsons_llm.{module}"), name)(**json.loads(sys.argv[2]))
    print("\n" + json.dumps({**result, "peak_gib": peak_memory_gib(find_device("cpu"))}), flush=True)


# %% tags=["check"]
alone = in_process("machine.job:provenance")
here = {k: v for k, v in provenance().items() if k != "revision"}  # which a commit may change meanwhile
assert {k: alone[k] for k in here} == here and 0 < alone["peak_gib"] < 8
