# %%
#| default_exp ranks.execute

# %% [markdown]
# # Running a chapter
#
# > papermill runs a chapter without a screen, and the executed notebook is the log of the run.
#
# A job chapter is a program. Started by `simpsons-llm run finetune --out runs/x -p max_steps 10`, it runs in a kernel of its own with the parameters that were given, and leaves the executed notebook in the run's folder: code, words, numbers and pictures of *this* run, together.
#
# One chapter, one process is the subject here. The same chapter once per rank is that of the next.

# %%
#| export
import builtins
import difflib
import importlib
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import contextmanager, nullcontext
from pathlib import Path

import simpsons_llm
from simpsons_llm.machine.device import find_ranks
from simpsons_llm.machine.job import (
    LINES,
    STOPS,
    Stopped,
    chapters_dir,
    find_chapter,
    hold_folder,
    open_folder,
    parameters_of,
    require,
    set_aside,
)

# %%
#| hide
import io
from contextlib import redirect_stdout

import nbformat
import pandas as pd

# %% [markdown]
# ## What a job leaves out
#
# Cells tagged `check` and `example` are for readers and tests. A job skips them: it should do its work, not prove the book again. The cells that define functions stay, so the notebook that ran is complete.

# %%
#| export
LEAVE_OUT = {"check", "example"}


def job_notebook(
    path,  # a notebook
):  # an nbformat notebook: only what the job needs
    "A chapter as a program: without checks, examples and the outputs of an earlier run."
    import nbformat

    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not LEAVE_OUT & set(c.metadata.get("tags", []))]
    for c in nb.cells:
        if c.cell_type == "code":
            c.outputs, c.execution_count = [], None
    return nb


# %% tags=["example"]
rows = []
for name in ("prepare", "infer", "finetune"):
    whole, job = nbformat.read(find_chapter(name), as_version=4), job_notebook(find_chapter(name))
    rows.append((find_chapter(name).stem, len(whole.cells), len(job.cells)))
pd.DataFrame(rows, columns=["chapter", "cells in the book", "cells in the job"])

# %% tags=["check"]
job = job_notebook(find_chapter("finetune"))
assert sum("parameters" in c.metadata.get("tags", []) for c in job.cells) == 1
assert not any(LEAVE_OUT & set(c.metadata.get("tags", [])) for c in job.cells) and not any(
    c.get("outputs") for c in job.cells
)


# %% [markdown]
# ## Parameters that mean something
#
# papermill adds a cell with the given values right below the cell tagged `parameters`, so that they replace the defaults. A name that the chapter does not have, such as a misspelt `max_step`, gets a line in papermill's log, and the run goes on as if nothing were wrong. So `simpsons-llm run` holds names against the `parameters` cell first and refuses what it does not find; plain `papermill` does not. Of the values, `10` is a number, `true` is true and `None` is none; anything else is text, also if it has colons and brackets in it, as a line of dialogue may.

# %%
#| export
def plain_value(
    text,  # a value as it was typed
):  # None, True, False, an int or a float where the text is one; else the text itself
    "A value of the command line. Text stays text, whatever marks stand in it."
    if not isinstance(text, str):
        return text
    named = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}
    if text in named:
        return named[text]
    for kind, form in ((int, r"[+-]?(0|[1-9]\d*)"), (float, r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")):
        if re.fullmatch(form, text):
            return kind(text)
    return text


# %% [markdown]
# Words as they are typed, and what they become. A number with a leading zero may be a name, so it stays text:

# %% tags=["example"]
typed = ["10", "5e-4", "true", "None", "007", "Marge: [laughs] hi"]
pd.DataFrame([(w, plain_value(w), type(plain_value(w)).__name__) for w in typed], columns=["typed", "read", "kind"])


# %% [markdown]
# Long lists of parameters are kept in a file; what is typed beside it overrules it.

# %%
#| export
def read_parameters(
    pairs: list,  # (name, value) pairs as typed; a value of None means that none was given
    file: str | None = None,  # a YAML file with more parameters; the pairs overrule it
) -> dict:  # name -> value
    "Parameters from the command line and a file."
    import yaml

    given: dict = {}
    if file:
        if not Path(file).is_file():
            raise FileNotFoundError(f"no parameter file at {file}; give a YAML file such as: max_steps: 10")
        try:
            given = yaml.safe_load(Path(file).read_text(encoding="utf8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ValueError(
                f"{file} is not valid YAML ({str(e).splitlines()[0]}); write lines such as: max_steps: 10"
            ) from None
        require(isinstance(given, dict), f"{file} holds no parameters; write lines such as: max_steps: 10")
    for name, value in pairs:
        require(
            name and value is not None,
            f"-p {name} was given without a value; write -p NAME VALUE, e.g. -p max_steps 10",
        )
    return {**given, **{name: plain_value(v) for name, v in pairs}}


# %% [markdown]
# The file says 5 steps, the command line 10:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "more.yaml").write_text("max_steps: 5\nr: 4\n")
    given = read_parameters([("max_steps", "10"), ("resume", "true")], f"{folder}/more.yaml")
given

# %% [markdown]
# Values are looked at before anything is started: each job has its dataclass, and that refuses what cannot be. Otherwise every process would start, and say it.

# %%
#| export
JOBS = {
    "prepare": "data.prepare:PrepareConfig",
    "infer": "model.infer:InferConfig",
    "loop": "train.loop:LoopConfig",
    "finetune": "train.finetune:FinetuneConfig",
    "evaluate": "character.evaluate:EvaluateConfig",
    "contrast": "character.contrast:ContrastConfig",
    "collectives": "ranks.collectives:CollectivesConfig",
}  # chapters that are jobs, and their settings


def check_values(
    given: dict,  # name -> value
    chapter: Path,  # path of the chapter
    n: int = 1,  # ranks
):
    "ValueError or TypeError for what a job would refuse: told once, before any rank is started."
    if chapters_dir() not in chapter.parents:
        return
    module, _, name = JOBS.get(chapter.stem.partition("_")[2], "").partition(":")
    if module:
        config = getattr(importlib.import_module(f"simpsons_llm.{module}"), name)(**given)
        if hasattr(config, "for_ranks"):
            config.for_ranks(n)


# %% [markdown]
# A value that is out of range, and one that eight processes cannot share:

# %% tags=["example"]
for given, n in (({"learning_rate": 3}, 1), ({"global_batch_size": 12}, 8)):
    try:
        check_values(given, find_chapter("finetune"), n)
    except ValueError as e:
        print(e)


# %% [markdown]
# And names, which the dataclass never sees if the chapter has no such parameter:

# %%
#| export
def check_parameters(
    given: dict,  # name -> value
    chapter,  # path of the chapter
) -> dict:  # the same, or ValueError naming what the chapter does not know
    "Refuse parameters that the chapter does not have."
    known = parameters_of(chapter)
    require(known or not given, f"{Path(chapter).name} has no cell tagged parameters, so it takes none")
    for name in given:
        near = difflib.get_close_matches(name, known, n=2) or list(known)
        require(name in known, f"{Path(chapter).stem} has no parameter {name!r}; did you mean {' or '.join(near)}?")
    return given


# %% tags=["example"]
try:
    check_parameters(read_parameters([("max_step", "10")]), find_chapter("finetune"))
except ValueError as e:
    print(e)

# %% tags=["check"]
line = "Marge: Homer: [laughs] hi"
assert [plain_value(x) for x in (line, "@x", "007", "7", "1e-3", "None", "no", ".5")] == [
    line,
    "@x",
    "007",
    7,
    1e-3,
    None,
    "no",
    0.5,
]
try:
    read_parameters([("max_steps", None)])
    raise AssertionError
except ValueError as e:
    assert "without a value" in str(e)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "params.yaml"
    file.write_text("max_steps: 5\nr: 4\n")
    assert read_parameters([("max_steps", "10")], str(file)) == {"max_steps": 10, "r": 4}
    file.write_text("- a list")
    for wrong in (str(file), "nowhere.yaml"):
        try:
            read_parameters([], wrong)
            raise AssertionError
        except (ValueError, FileNotFoundError):
            pass


# %% [markdown]
# ## A kernel that nobody else talks to
#
# Kernels started at the same moment on one machine can pick the same network ports, and one of them then waits a minute for nothing. (Of 8 started together this happened one time in three, of 32 each time, on a machine with two cores.) Sockets in a folder of one's own cannot collide. The folder's name is short, because a socket's path may have about a hundred characters.

# %%
#| export
def private_kernel(
    folder,  # an empty folder with a short path
):  # a traitlets Config for papermill
    "Kernel sockets in a folder of one's own, on systems that have such sockets."
    from traitlets.config import Config

    # no such sockets, or no room for their names: network ports
    if sys.platform == "win32" or len(str(folder)) > 80:
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "connection_file": str(Path(folder) / "k.json")}})


# %% [markdown]
# A short folder gets sockets, one whose name is too long gets network ports, the default:

# %% tags=["example"]
[dict(private_kernel(name)) for name in ("k1", "k" * 90)]

# %% [markdown]
# ## Running a chapter
#
# What the job prints is shown as it comes. If a cell fails, the notebook is kept up to and including the traceback, and the error is raised again here in one sentence.
#
# The kernel is a process of its own, so a signal to this one does not reach it. Ctrl-C here, or a launcher's SIGTERM, is passed on as an interrupt. Training finishes its step and saves it first ([what a job is](../9_machine/91_job.ipynb)); then the cell ends with a traceback, the job writes down that it was interrupted and how it goes on, and the notebook is saved. A kernel that waits inside a library does not notice an interrupt; it is killed ten seconds later.

# %%
#| export
GRACE_S = 10  # time that an interrupted kernel gets to end its cell, in seconds


class Interrupter:
    "While this lasts, signals that ask to stop interrupt the kernel, and kill it if it does not listen."

    def __init__(self):
        self.managers, self.signal = [], None

    def kernel_class(self):
        "A kernel manager that this interrupter knows of."
        from jupyter_client import AsyncKernelManager

        held = self.managers

        class Known(AsyncKernelManager):
            def __init__(self, **kw):
                super().__init__(**kw)
                held.append(self)

        return Known

    def kernel_pid(self):
        "Process number of the kernel, or None if none runs."
        return next(
            (m.provisioner.pid for m in reversed(self.managers) if m.provisioner is not None and m.provisioner.pid),
            None,
        )

    def stop(self, number, _frame):
        "The signal handler."
        first, self.signal, pid = self.signal is None, number, self.kernel_pid()
        if pid is None or not first:
            raise Stopped(number)

        def send(what):
            if self.kernel_pid() != pid:
                return
            try:
                os.kill(pid, what)
            except ProcessLookupError:
                pass

        send(signal.SIGINT)
        timer = threading.Timer(GRACE_S, send, [getattr(signal, "SIGKILL", signal.SIGTERM)])
        timer.daemon = True
        timer.start()

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self.stop)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# %% [markdown]
# A SIGTERM, as a batch system sends it before it kills, is heard. No kernel runs here that it could be passed on to, so it ends this program's own work:

# %% tags=["example"]
with Interrupter() as stopper:
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted by", signal.Signals(stopper.signal).name)


# %% [markdown]
# A rank should start at once. Where JupyterLab is installed, `jsonschema`, which papermill brings in, builds a grammar of web addresses with `rfc3987_syntax` as soon as it is imported: 1 to 3 s for each rank, and a notebook holds nothing that would be checked with it. So it is left out.

# %%
#| export
@contextmanager
def without(
    module: str,  # a module's name
):
    "While this lasts, a module that is not loaded yet cannot be imported."
    held = sys.modules.get(module)
    sys.modules[module] = held  # type: ignore[assignment]  # None means: cannot be imported
    try:
        yield
    finally:
        if held is None:
            del sys.modules[module]


# %% [markdown]
# A module of Python's own, left out for a moment:

# %% tags=["example"]
with without("wave"):
    try:
        import wave
    except ImportError as e:
        print(e)

# %% tags=["check"]
with without("wave"):
    try:
        import wave

        raise AssertionError
    except ImportError:
        pass
import wave

with without("wave"):
    import wave as again
assert again is wave and sys.modules["wave"] is wave


# %% [markdown]
# An error that a chapter raises to say what was given wrongly differs from a mistake in the program by the line that failed: a `raise`, or not. The command line tells the two apart by it.

# %%
#| export
def raised_in(
    traceback: list,  # a notebook's traceback, as Jupyter colours it
) -> str:  # the line that its last arrow points at
    "The line of code at which an error was raised."
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    return ([m[1] for m in re.finditer(r"^-+>\s*\d+\s?(.*)$", plain, re.M)] or [""])[-1].strip()


# %% [markdown]
# The end of a traceback as a notebook keeps it; the line at the last arrow:

# %% tags=["example"]
end = """----> 1 check(r=0)
File config.py:7, in check(r)
      6 if r < 1:
----> 7     raise ValueError(f"r={r} was given")"""
raised_in(end.splitlines())


# %% [markdown]
# The error itself crosses from the kernel as words. What is known of it is kept together, and its message says where to read on:

# %%
#| export
class ChapterError(RuntimeError):
    "A chapter that failed under papermill."

    def __init__(
        self,
        ename: str,  # the error's class, e.g. "ValueError"
        evalue: str,  # its sentence
        notebook,  # the executed notebook, with the traceback
        line: str,  # the line of code that failed
    ):
        super().__init__(f"{evalue} (the notebook with the traceback: {notebook})")
        self.ename, self.evalue, self.notebook, self.line = ename, evalue, Path(notebook), line


# %% [markdown]
# Two names of the environment decide how a notebook looks that nobody watches: where pictures go, and whether progress comes as lines.

# %%
#| export
@contextmanager
def kernel_env():
    "The environment in which a kernel starts whose notebook is a log."
    before = {name: os.environ.get(name) for name in ("MPLBACKEND", LINES)}
    # a backend meant for scripts would keep pictures out of the notebook
    os.environ.pop("MPLBACKEND", None)
    os.environ[LINES] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


# %% [markdown]
# While it lasts, progress is told in lines; afterwards all is as before:

# %% tags=["example"]
with kernel_env():
    within = os.environ.get(LINES)
{"within": within, "after": os.environ.get(LINES)}


# %% [markdown]
# These pieces together run a notebook. There are four ends: it went well, a cell failed, it was interrupted, or the kernel died without a word.

# %%
#| export
def execute(
    chapter: Path,  # a notebook
    executed: Path,  # the executed notebook
    given: dict,  # parameters
    show: bool = True,  # print what the job prints
):
    "papermill, with a kernel of its own that signals reach; errors as `run_chapter`."
    import logging

    with without("rfc3987_syntax"):
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError
    logging.getLogger("papermill").setLevel(logging.ERROR)
    short = "/tmp" if len(tempfile.gettempdir()) > 60 and os.access("/tmp", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="k", dir=short, ignore_cleanup_errors=True) as sockets,
        Interrupter() as stopper,
        kernel_env(),
    ):
        try:
            papermill.execute_notebook(
                job_notebook(chapter),
                str(executed),
                given,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                config=private_kernel(sockets),
                start_timeout=600,
                kernel_manager_class=stopper.kernel_class(),
                stdout_file=sys.stdout if show else None,
                request_save_on_cell_execute=True,
                autosave_cell_every=30,
            )
        except PapermillExecutionError as e:
            if e.ename in ("KeyboardInterrupt", "Stopped") or stopper.signal:
                raise Stopped(stopper.signal or signal.SIGINT) from None
            raise ChapterError(e.ename, e.evalue, executed, raised_in(e.traceback)) from None
        except DeadKernelError:
            if stopper.signal:
                raise Stopped(stopper.signal) from None
            raise ChapterError(
                "DeadKernelError",
                "the kernel died without a word; "
                "somebody killed it, or the system did because memory ran out (see dmesg)",
                executed,
                "",
            ) from None


# %% [markdown]
# Around it stands what concerns folders: the job's own folder is the one where the notebook goes, one job at a time holds it, and what an earlier run left is set aside.

# %%
#| export
FOLDER = ("out", "run")  # the parameter that names a job's folder, where the chapter has it


def run_chapter(
    name: str,  # a job's name, a chapter's, or the path of any notebook
    out,  # folder for the executed notebook; also the job's own folder, unless the parameters say otherwise
    parameters: dict | None = None,  # name -> value
    show: bool = True,  # print what the job prints
    notebook=None,  # the executed notebook; None: rank{rank}.ipynb in `out`
    hold: bool = True,  # keep the folder to oneself; False: the caller does already
) -> Path:  # the executed notebook
    """Run a chapter under papermill.

    ChapterError if it fails, KeyboardInterrupt if it was interrupted, ValueError if another job holds the folder."""
    chapter, known, given = find_chapter(name), parameters_of(find_chapter(name)), dict(parameters or {})
    check_parameters(given, chapter)
    out, ranks = open_folder(out), find_ranks()
    folder = next((f for f in FOLDER if f in known), None)
    if folder:
        given.setdefault(folder, str(out))
    executed = Path(notebook or out / f"rank{ranks.rank}.ipynb")
    # one rank holds it for all
    with hold_folder(out, chapter.stem) if hold and ranks.is_main else nullcontext():
        set_aside(executed.parent, [executed.name])
        execute(chapter, executed, given, show)
    return executed


# %% [markdown]
# A small run for the sake of the example: the chapter that prepares data, with the book's script and for one character.

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as said:
    notebook = run_chapter("prepare", Path(folder) / "run", {"speakers": "Moe Szyslak"})
    left = sorted(p.name for p in notebook.parent.iterdir())
    nb = nbformat.read(notebook, as_version=4)
    injected = next(c.source for c in nb.cells if "injected-parameters" in c.metadata.get("tags", []))
print(injected.replace(folder, "FOLDER"))
left

# %% tags=["check"]
assert {"rank0.ipynb", "train.jsonl", "report.json", "speakers.png"} <= set(left)
assert "Moe Szyslak" in injected and "to learn: Moe Szyslak" in said.getvalue()
assert all(c.get("execution_count") for c in nb.cells if c.cell_type == "code")

# %% [markdown]
# A failing run keeps its notebook, and says in one sentence what went wrong:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    try:
        run_chapter("prepare", folder, {"speakers": "Nobody At All"}, show=False)
    except ChapterError as e:
        failure, kept = e, nbformat.read(e.notebook, as_version=4)
print(str(failure).replace(folder, "FOLDER"))
failure.ename, failure.line

# %% tags=["check"]
assert failure.ename == "ValueError" and failure.line.startswith("raise ") and "Nobody At All" in str(failure)
assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", []))


# %% [markdown]
# ## Whose fault it was
#
# A program tells the one that started it how it ended by a number. A job of several processes has that of the one that failed.

# %%
#| export
class JobError(RuntimeError):
    "A job of which a rank failed."

    def __init__(
        self,
        message: str,  # what happened, in one sentence
        code: int,  # the exit code of the rank
    ):
        super().__init__(message)
        self.code = code


# %% [markdown]
# Input that was wrong is told in a sentence, without a traceback; a mistake in the program needs the traceback. A `ValueError` alone does not decide it, since libraries raise those too: it must come from a `raise` in the book's own code.

# %%
#| export
EXPECTED = (ValueError, TypeError, FileNotFoundError, PermissionError, ConnectionError)


def on_purpose(
    error: BaseException,  # what was raised
) -> bool:  # True: the user's input is at fault, and the message says how
    "Was this error raised by the book's own code, to say what was given wrongly?"
    if hasattr(error, "ename"):  # from a notebook: only the class's name is left
        kind = getattr(builtins, error.ename, Exception)
        return issubclass(kind, OSError) or issubclass(kind, EXPECTED) and "raise " in getattr(error, "line", "")
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(simpsons_llm.__file__).parent.resolve()
    if isinstance(error, OSError):
        return True  # a file, a folder or a network, whoever noticed
    return (
        isinstance(error, EXPECTED)
        and bool(frames)
        and Path(frames[-1].filename).resolve().is_relative_to(own)
        and "raise " in (frames[-1].line or "")
    )


# %% [markdown]
# The failing run from above, and an error of the same class that nobody in the book raised:

# %% tags=["example"]
on_purpose(failure), on_purpose(ValueError("math domain error"))


# %%
#| export
def exit_code(
    error: BaseException,  # what ended a program
) -> int:  # 2 wrong input, 128 + the number of a signal, 130 for Ctrl-C, 1 anything else; of a job, that of its rank
    "The exit code that tells what kind of failure it was."
    if isinstance(error, JobError):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 128 + getattr(error, "number", signal.SIGINT)
    return 2 if on_purpose(error) else 1


# %% [markdown]
# 2 asks for other input, 130 is Ctrl-C, 1 is a mistake, anything else came from a process of the job:

# %% tags=["example"]
ends = {"run above": failure, "Ctrl-C": KeyboardInterrupt(), "a mistake": ZeroDivisionError()}
ends["killed for memory"] = JobError("rank 1 was killed", 137)
pd.Series({what: exit_code(e) for what, e in ends.items()}, name="exit code").to_frame()
