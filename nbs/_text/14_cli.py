# %%
#| default_exp cli

# %% [markdown]
# # The command line
#
# > `simpsons-llm`: every job with every setting, made from the same dataclasses as the notebooks.
#
# A setting is written once, in a job's dataclass, with its default and its meaning. The command line is made from that: a field becomes an option, its comment the help text. What goes wrong because of what was given is told in one sentence, with exit code 2; what goes wrong because of a mistake in the program is told as such, with exit code 1. `--debug` shows the traceback of either.

# %%
#| export
import builtins
import inspect
import re
import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Annotated, List, Optional

import typer

import simpsons_llm
from simpsons_llm.job import field_help, format_seconds, read_json

# %%
#| hide
import io
import subprocess
import tempfile
from contextlib import redirect_stderr, redirect_stdout

# %% [markdown]
# ## From a dataclass to a command
#
# The function that typer turns into a command is made with the signature that the dataclass dictates.

# %%
#| export
KINDS = {"str": str, "int": int, "float": float, "bool": bool}


def option(
    field,              # a dataclass field
    help: str,          # what it means
    argument: bool,     # a word without a name instead of an option
) -> inspect.Parameter: # for the command's signature
    "One setting as an option of the command line."
    text = getattr(field.type, "__name__", field.type)
    kind = KINDS[text.split("|")[0].strip()]
    if "None" in text: kind = Optional[kind]
    name = "--" + field.name.replace("_", "-")
    how = typer.Argument(help=help) if argument else typer.Option(f"{name}/--no-{name[2:]}" if kind is bool else name, help=help)
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, how])


def job_command(
    config: type,       # a JobConfig subclass
    do,                 # called with a config
    summary: str,       # the command's help, with examples
    argument: str = "", # the field that is given without a name
):                      # a function for typer
    "A job as a command."
    def command(**given): do(config(**given))
    helps = field_help(config)
    command.__signature__ = inspect.Signature([option(f, helps.get(f.name, ""), f.name == argument) for f in fields(config)])
    command.__doc__ = summary
    return command


# %% [markdown]
# ## What the commands do
#
# Each is a few lines: the work is done by the chapters. Heavy imports happen inside, so that `--help` is quick.

# %%
#| export
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                  help="From a script to a character that talks. Start with: simpsons-llm demo\n\nAdd --debug to any command to see the traceback of an error.")


def do_prepare(
    config, # a PrepareConfig
):
    "Prepare, and show the report."
    from simpsons_llm.prepare import prepare, report_text
    print(report_text(prepare(config)))
    print(f"written to {config.out}; next: simpsons-llm finetune --data {config.out} --run runs/x")


def do_finetune(
    config, # a FinetuneConfig
):
    "Fine-tune, and show what it brought."
    from simpsons_llm.finetune import KEPT, finetune, summary_text
    print(summary_text(finetune(config)))
    kept = Path(config.run)/KEPT[config.mode]
    print(f"{KEPT[config.mode]}: {kept}; loss curve: {Path(config.run)/'loss.png'}; next: simpsons-llm infer --adapter {kept}")


def do_estimate(
    config, # a FinetuneConfig
):
    "Tell what a run would cost, without running it."
    from simpsons_llm.finetune import costs
    for name, rows in costs(config).items():
        print(name)
        for key, value in rows.items(): print(f"  {key:22}{value}")


def do_infer(
    config, # an InferConfig
):
    "Answer, and show moments and timing if they were asked for."
    from simpsons_llm.infer import infer
    result = infer(config)
    print(config.prompt)
    for line in result["answers"]: print(f"{result['speaker']}: {line}")
    if "before_after" in result: show_before_after(result["before_after"])
    if t := result.get("timing"):
        print(f"{t['tokens']} tokens on {t['device']} ({t['dtype']}), {t['runs']} runs: mean {t['mean_s']:.3f} s, min {t['min_s']:.3f}, max {t['max_s']:.3f}, deviation {t['stdev_s']:.3f}; {t['tokens_per_s']:.1f} tokens/s")


# %% [markdown]
# Answers are best seen side by side:

# %%
#| export
def show_before_after(
    rows: list, # what `infer` found at held-out moments
):
    "Real line, base and fine-tuned model side by side."
    from rich.markup import escape
    from rich.table import Table
    table = Table(show_lines=True, title="scenes that were never seen in training")
    for name in ("line before", "asked", "real line", "base model", "fine-tuned"): table.add_column(name, no_wrap=False, ratio=1 if name == "asked" else 3, overflow="fold")
    for r in rows: table.add_row(*map(escape, (r["before"], r["speaker"], r["real"], r["base"], r["tuned"])))
    print_table(table)


def print_table(
    table, # a rich Table
):
    "As wide as the terminal, or wide enough to read where there is none."
    from rich.console import Console
    Console(width=None if sys.stdout.isatty() else 150).print(table)


# %% [markdown]
# The three jobs become commands. A command's help begins with what it does and goes on with examples to copy.

# %%
#| export
def add_jobs():
    "Register the three jobs; their dataclasses are light to import."
    from simpsons_llm.finetune import FinetuneConfig
    from simpsons_llm.infer import InferConfig
    from simpsons_llm.prepare import PrepareConfig
    app.command("prepare")(job_command(PrepareConfig, do_prepare, """Turn a script into scenes to learn from, to choose by and to judge by.

    \b
    simpsons-llm prepare --script simpsons_script_lines.csv --out runs/data
    simpsons-llm prepare --script my.csv --speakers "Homer Simpson,Marge Simpson"
    simpsons-llm prepare --script samples.json --split scene"""))
    app.command("finetune")(job_command(FinetuneConfig, do_finetune, """Fine-tune a base model on prepared data; leaves an adapter in the run's folder.

    \b
    simpsons-llm finetune --data runs/data --run runs/x
    simpsons-llm finetune --data runs/data --base-model openlm-research/open_llama_3b --recipe seed
    simpsons-llm finetune --data runs/data --run runs/full --mode full
    simpsons-llm finetune --data runs/data --run runs/quick --max-steps 10"""))
    app.command("estimate")(job_command(FinetuneConfig, do_estimate, """Tell what a fine-tuning run would cost: memory, arithmetic, time. No weights are loaded; a run that cannot fit is refused.

    \b
    simpsons-llm estimate --data runs/data
    simpsons-llm estimate --data runs/data --base-model openlm-research/open_llama_3b --micro-batch-size 8 --global-batch-size 64
    simpsons-llm estimate --data runs/data --mode full --gradient-checkpointing"""))
    app.command("infer")(job_command(InferConfig, do_infer, """Let a character say the next line.

    \b
    simpsons-llm infer --adapter runs/x/adapter --speaker "Homer Simpson" "Marge Simpson: Homer, the dog is wearing your tie again."
    simpsons-llm infer --adapter runs/x/adapter --speaker "Bart Simpson" --answers 3 "Seymour Skinner: Who painted the frogs?"
    simpsons-llm infer --adapter runs/x/adapter --sampling seed --bench
    simpsons-llm infer --adapter runs/x/adapter --data runs/data""", argument="prompt"))

add_jobs()


# %% [markdown]
# `export` makes a run into a model for others. If a GGUF file was asked for and could not be made, that is an error, though the model itself is there.

# %%
#| export
@app.command()
def export(
    source: Annotated[str, typer.Argument(help="a run's folder, such as runs/x, or an adapter's")],
    out: Annotated[str, typer.Option(help="folder for the model; new, empty, or an earlier export; empty: export/ in the source")] = "",
    dtype: Annotated[str, typer.Option(help="format of the weights: float32, float16, bfloat16; auto: as the base is stored")] = "auto",
    gguf: Annotated[str, typer.Option(help="also a GGUF file and a Modelfile for Ollama: f32, f16, bf16 or q8_0; empty: none")] = "",
    speaker: Annotated[str, typer.Option(help="who answers in Modelfile and README.md; empty: the first of the run")] = "",
    base_model: Annotated[Optional[str], typer.Option(help="another name for the base it was trained on")] = None,
    device: Annotated[str, typer.Option(help="where the adapter is added in: cpu, xpu, cuda or auto")] = "cpu",
):
    """Merge base and adapter into one model that others load without this program; with README.md, and GGUF on request.

    \b
    simpsons-llm export runs/x --out runs/x/export
    simpsons-llm export runs/x --dtype bfloat16
    simpsons-llm export runs/x --gguf q8_0 --speaker "Homer Simpson" --out homer"""
    from simpsons_llm.infer import SAMPLING
    from simpsons_llm.publish import export as publish, export_text
    record = publish(source, out or Path(source)/"export", dtype, gguf, speaker, base_model, device, SAMPLING["book"].arguments())
    print(export_text(record))
    if gguf and not record["gguf"]["file"]: raise ValueError(record["gguf"]["note"])


# %% [markdown]
# `run` starts a chapter under papermill. Its `-p NAME VALUE` is papermill's own way of writing parameters.

# %%
#| export
@app.command()
def run(
    chapter: Annotated[str, typer.Argument(help="a job (prepare, finetune, infer), a chapter (10_finetune) or the path of a notebook")],
    out: Annotated[str, typer.Option(help="folder for the executed notebook and what the job writes")] = "",
    parameter: Annotated[Optional[List[str]], typer.Option("-p", "--parameter", metavar="NAME VALUE", help="set a parameter; may be given several times")] = None,
    file: Annotated[Optional[str], typer.Option("-f", "--file", help="YAML file with parameters; -p overrules it")] = None,
):
    """Run a chapter under papermill, without a screen; the executed notebook is the log.

    \b
    simpsons-llm run finetune --out runs/x -p max_steps 10
    simpsons-llm run nbs/02_prepare.ipynb --out runs/data -p script my.csv
    simpsons-llm run finetune --out runs/x -f params.yaml -p seed 7"""
    from simpsons_llm.launch import read_parameters, run_chapter
    pairs = [(p.partition("=")[0], p.partition("=")[2] if "=" in p else None) for p in parameter or []]
    notebook = run_chapter(chapter, out or f"runs/{Path(chapter).stem}", read_parameters(pairs, file))
    print(f"executed notebook: {notebook}")


# %% [markdown]
# `doctor` answers the question that comes before all others: will it run here?

# %%
#| export
@app.command()
def doctor():
    """Show what this machine offers and what is missing: devices, memory, backends, versions.

    \b
    simpsons-llm doctor"""
    from rich.markup import escape
    from rich.table import Table
    from simpsons_llm.distributed import doctor as examine
    rows = examine()
    table = Table(show_header=True, box=None)
    for name in ("", "item", "value", "hint"): table.add_column(name, overflow="fold")
    for r in rows: table.add_row({True: "ok", False: "no", None: "-"}[r["ok"]], *(escape(str(r[k])) for k in ("item", "value", "hint")))
    print_table(table)
    if any(r["ok"] is False for r in rows): raise typer.Exit(1)


# %% [markdown]
# `demo` does the whole way in one command, by running three chapters under papermill: prepare the script that comes with the package, fine-tune, and let Homer, Marge and Bart speak in test scenes.

# %%
#| export
@app.command()
def demo(
    out: Annotated[str, typer.Option(help="folder for everything the demo writes")] = "runs/demo",
    base_model: Annotated[str, typer.Option(help="a hub id, folder or short name")] = "smollm2-135m",
    epochs: Annotated[float, typer.Option(help="passes over the data")] = 1.0,
    max_minutes: Annotated[float, typer.Option(help="training stops after so many minutes, with what was learned so far")] = 6.0,
):
    """Prepare the script that comes with the package, fine-tune on it, and show what changed. Minutes on a laptop.

    \b
    simpsons-llm demo"""
    import time
    from simpsons_llm.finetune import summary_text
    from simpsons_llm.launch import run_chapter
    begin, folder = time.perf_counter(), Path(out)
    print("1/3  prepare the script that comes with the package", flush=True)
    notebooks = [run_chapter("prepare", folder/"data")]
    print("2/3  fine-tune", flush=True)
    notebooks.append(run_chapter("finetune", folder/"finetune", {"data": str(folder/"data"), "base_model": base_model, "epochs": epochs, "max_minutes": max_minutes, "score_test": True}))
    print("3/3  let the characters speak in test scenes", flush=True)
    notebooks.append(run_chapter("infer", folder/"infer", {"data": str(folder/"data"), "adapter": str(folder/"finetune"/"adapter")}, show=False))
    summary = read_json(folder/"finetune"/"summary.json")
    show_before_after(read_json(folder/"infer"/"answers.json")["before_after"])
    print(summary_text(summary))
    print(f"loss curve: {folder/'finetune'/'loss.png'}\nexecuted notebooks: {', '.join(map(str, notebooks))}")
    print(f"the demo took {format_seconds(time.perf_counter() - begin)}; ask Homer yourself:\n  simpsons-llm infer --adapter {folder/'finetune'/'adapter'} --speaker \"Homer Simpson\" \"Marge Simpson: Homer, the dog is wearing your tie again.\"")


# %% [markdown]
# Benchmarks are a group of commands of their own, each with `--json FILE`:

# %%
#| export
bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help="Measure the book's way beside the seed's way, and predictions beside what they predict.")
app.add_typer(bench, name="bench")
JSON_FILE = typer.Option("--json", help="file for the results: rows of name, ours, seed, ratio, unit, device, versions")


def show_bench(
    rows: list,        # what `bench_row` made
    file: "str | None", # where to write them
):
    "Results as a table, and as JSON."
    from rich.table import Table
    table = Table(box=None)
    for name in ("", "ours", "seed", "ratio", "unit"): table.add_column(name, justify="left" if name in ("", "unit") else "right", overflow="fold")
    def number(x): return "-" if x is None else f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"
    for r in rows: table.add_row(r["name"], number(r["ours"]), number(r["seed"]), number(r["ratio"]) + " x"*(r["ratio"] is not None), r["unit"])
    print_table(table)
    write_rows(rows, file)


def write_rows(
    rows: list,         # results
    file: "str | None", # where to write them; None: nowhere
):
    "Results as JSON."
    from simpsons_llm.job import open_folder, write_json
    if file: write_json(open_folder(Path(file).parent)/Path(file).name, rows); print(f"written to {file}")


@bench.command("prepare")
def bench_prepare(
    lines: Annotated[int, typer.Option(help="rows of the table, 1,000 or more")] = 158_000,
    base_model: Annotated[str, typer.Option(help="whose tokenizer: a hub id, folder or short name")] = "smollm2-135m",
    sizes: Annotated[str, typer.Option(help="sizes of more tables, with commas, to see how the cost grows")] = "",
    file: Annotated[Optional[str], JSON_FILE] = None,
):
    """From a table to packed rows of tokens: seconds and memory. The seed's way takes a minute or two.

    \b
    simpsons-llm bench prepare
    simpsons-llm bench prepare --lines 20000 --json bench.json
    simpsons-llm bench prepare --sizes 10000,100000,1000000"""
    from simpsons_llm.bench import bench_prepare as measure
    try: more = tuple(int(n) for n in sizes.split(",") if n.strip())
    except ValueError: raise ValueError(f"--sizes {sizes!r} was given; expected whole numbers with commas, such as 10000,100000") from None
    show_bench(measure(lines, base_model, more), file)


# %%
#| export
@bench.command("costs")
def bench_costs(
    device: Annotated[str, typer.Option(help="xpu, cuda or cpu; auto: the best there is")] = "auto",
    only: Annotated[str, typer.Option(help="settings whose name has this in it; empty: all")] = "",
    file: Annotated[Optional[str], typer.Option("--json", help="file for the results")] = None,
):
    """Memory and time of a training step, predicted beside measured, over ranks, targets, lengths, batches, checkpointing and full fine-tuning. Minutes; let nothing else run meanwhile.

    \b
    simpsons-llm bench costs
    simpsons-llm bench costs --only checkpointing --json costs.json"""
    from simpsons_llm.bench import bench_costs as measure
    write_rows(measure(device, only), file)


# %% [markdown]
# ## One sentence for what was given wrongly
#
# An error that the book raises on purpose is a `ValueError`, a `TypeError` or one of the file errors, and the line that failed is a `raise` in its own code (or in a chapter that papermill ran). Anything else is a mistake in the program, and says so.

# %%
#| export
EXPECTED = (ValueError, TypeError, FileNotFoundError, PermissionError, ConnectionError)


def on_purpose(
    error: BaseException, # what was raised
) -> bool:                # True: the user's input is at fault, and the message says how
    "Was this error raised by the book's own code, to say what was given wrongly?"
    if hasattr(error, "ename"):  # from a notebook: only the class's name is left
        kind = getattr(builtins, error.ename, Exception)
        return issubclass(kind, OSError) or issubclass(kind, EXPECTED) and "raise " in error.line
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(simpsons_llm.__file__).parent.resolve()
    if isinstance(error, OSError): return True  # a file, a folder or a network, whoever noticed
    return isinstance(error, EXPECTED) and bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(own) and "raise " in (frames[-1].line or "")


def join_parameters(
    argv: list, # words of the command line
) -> list:      # the same with `-p NAME VALUE` written as `-p NAME=VALUE`
    "papermill's way of writing parameters, for a parser that takes one word an option."
    words, out = list(argv), []
    while words:
        out.append(words.pop(0))
        if out[-1] in ("-p", "--parameter") and len(words) > 1 and re.fullmatch(r"\w+", words[0]) and not words[1].startswith("-p"): out.append(f"{words.pop(0)}={words.pop(0)}")
    return out


# %%
#| export
def main(
    argv: list = None, # words of the command line; None: those of this process
) -> int:              # exit code: 0 done, 2 wrong input, 1 a mistake in the program, 130 interrupted
    "The entry point of `simpsons-llm`."
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try: code = app(join_parameters([w for w in words if w != "--debug"]), standalone_mode=True)
    except SystemExit as e: code = e.code
    except KeyboardInterrupt: print("interrupted", file=sys.stderr); code = 130
    except Exception as e:
        if debug: traceback.print_exc()
        if on_purpose(e): print(f"error: {e}", file=sys.stderr); code = 2
        else: print(f"unexpected {type(e).__name__}: {e}" + ("" if debug else "; add --debug for the traceback"), file=sys.stderr); code = 1
    if argv is None: sys.exit(code)
    return code or 0


# %% [markdown]
# ## As a user sees it

# %% tags=["example"]
main(["infer", "--help"]);


# %% tags=["check"]
def said(*words):
    "Exit code and what was printed to standard output and standard error."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = main(list(words))
    return code, out.getvalue(), err.getvalue()

for command in ("prepare", "finetune", "infer", "run", "demo", "doctor"):
    code, out, err = said(command, "--help")
    assert code == 0 and "simpsons-llm " + command in out, command

# %% [markdown]
# Each field of a job is an option with its help:

# %% tags=["check"]
from simpsons_llm.finetune import FinetuneConfig
from simpsons_llm.infer import InferConfig
from simpsons_llm.prepare import PrepareConfig

for command, config in (("prepare", PrepareConfig), ("finetune", FinetuneConfig), ("infer", InferConfig)):
    helps, shown = field_help(config), said(command, "--help")[1]
    assert set(helps) == {f.name for f in fields(config)}, set(helps) ^ {f.name for f in fields(config)}
    for f in fields(config): assert f"--{f.name.replace('_', '-')}" in shown or f.name == "prompt", f.name

# %% [markdown]
# Wrong input: one sentence each, exit code 2, no traceback.

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for words in (("prepare", "--script", "nowhere.csv"), ("prepare", "--speakers", "Homer Simson", "--out", folder), ("finetune", "--data", "nowhere"),
                  ("finetune", "--base-model", "no-such-model", "--run", folder + "/run"), ("finetune", "--learning-rate", "7"), ("infer", "--adapter", "nowhere"),
                  ("run", "finetune", "--out", folder, "-p", "max_step", "3"), ("prepare", "--out", "/proc/nowhere")):
        code, out, err = said(*words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (words, code, err)
        print(code, err.replace(folder, "FOLDER"), end="")


# %% [markdown]
# A mistake in the program is not the user's fault, and is told apart:

# %% tags=["check"]
@app.command(hidden=True)
def broken(): raise KeyError("a mistake")

code, out, err = said("broken")
assert code == 1 and "unexpected KeyError" in err and "Traceback" not in err
from simpsons_llm.job import format_seconds, require
for mistake, meant in ((lambda: format_seconds("x"), False), (lambda: format_seconds(None), False), (lambda: require(False, "given on purpose"), True)):
    try: mistake()
    except Exception as e: assert on_purpose(e) is meant, e
assert "Traceback" in said("broken", "--debug")[2]
assert said("no-such-command")[0] == 2
assert join_parameters(["run", "x", "-p", "a", "1", "-p", "b=2"]) == ["run", "x", "-p", "a=1", "-p", "b=2"]

# %% [markdown]
# The command line starts quickly, because nothing heavy is imported before it is needed:

# %% tags=["check"]
heavy = subprocess.run([sys.executable, "-c", "import sys, simpsons_llm.cli; print([m for m in ('torch', 'transformers', 'matplotlib', 'pandas', 'datasets') if m in sys.modules])"], capture_output=True, text=True, check=True)
assert heavy.stdout.strip() == "[]", heavy.stdout
