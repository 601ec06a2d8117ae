# %%
#| default_exp machine.cli

# %% [markdown]
# # The command line
#
# > `simpsons-llm`: every job with every setting, made from the same dataclasses as the notebooks.
#
# A setting is written once, in a job's dataclass, with its default and its meaning. The command line is made from that: a field becomes an option, its comment the help text. What goes wrong because of what was given is told in one sentence, with exit code 2; what goes wrong because of a mistake in the program is told as such, with exit code 1. `--debug` shows the traceback of either.

# %%
#| export
import inspect
import json
import os
import re
import sys
import traceback
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Optional

import typer

from simpsons_llm.machine.job import Stopped, again_command, field_help, format_seconds, read_json, require
from simpsons_llm.ranks.execute import JobError, exit_code

# %%
#| hide
import io
import subprocess
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from simpsons_llm.machine.job import JobConfig, open_folder, write_json
from simpsons_llm.ranks.execute import on_purpose

# %% [markdown]
# ## From a dataclass to a command
#
# The function that typer turns into a command is made with the signature that the dataclass dictates.

# %%
#| export
KINDS: dict = {"str": str, "int": int, "float": float, "bool": bool}


def option(
    field,  # a dataclass field
    help: str,  # what it means
    argument: bool,  # a word without a name instead of an option
    repeated: bool = False,  # may be given several times
) -> inspect.Parameter:  # for the command's signature
    "One setting as an option of the command line."
    text = getattr(field.type, "__name__", field.type)
    kind: Any = KINDS[text.split("|")[0].strip()]
    flag = kind is bool
    if "None" in text:
        kind = Optional[kind]  # noqa: UP045  typer reads an annotation made at run time
    name = "--" + field.name.replace("_", "-")
    if repeated:
        kind, help = Optional[list[kind]], f"{help}; may be given several times"  # noqa: UP045
    how = (
        typer.Argument(help=help) if argument else typer.Option(f"{name}/--no-{name[2:]}" if flag else name, help=help)
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if repeated else field.default,
        annotation=Annotated[kind, how],
    )


def job_command(
    config: Any,  # a JobConfig subclass
    do,  # called with a config, and with what `more` names
    summary: str,  # the command's help, with examples
    argument: str = "",  # the field that is given without a name
    more: tuple = (),  # what the command takes besides, as `inspect.Parameter`s
):  # a function for typer
    "A job as a command."

    def command(**given):
        extra = {p.name: given.pop(p.name) for p in more}
        given |= {name: "\n".join(given[name] or ()) for name in config.repeated}
        do(config(**given), **extra)

    helps = field_help(config)
    own = [option(f, helps.get(f.name, ""), f.name == argument, f.name in config.repeated) for f in fields(config)]
    command.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    command.__doc__ = summary
    return command


# %% [markdown]
# A small job, its help, and what it is called with:

# %% tags=["example"]
@dataclass
class Order(JobConfig):
    donuts: int = 12  # how many, 1 or more
    sprinkles: bool = True  # with sprinkles

    def check(self):
        require(self.donuts > 0, f"donuts={self.donuts} was given; expected 1 or more")


small = typer.Typer(add_completion=False, rich_markup_mode=None)
small.command()(job_command(Order, print, "Order donuts."))
small(["--help"], prog_name="order", standalone_mode=False)
small(["--donuts", "24", "--no-sprinkles"], standalone_mode=False)

# %% [markdown]
# ## What the commands do
#
# Each is a few lines: the work is done by the chapters. Heavy imports happen inside, so that `--help` is quick.

# %%
#| export
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From a script to a character that talks. Start with: simpsons-llm demo\n\n"
    "Add --debug to any command to see the traceback of an error.",
)


def do_prepare(
    config,  # a PrepareConfig
    export: str,  # a file for other trainers; empty: none
):
    "Prepare, and show the report."
    from simpsons_llm.data.dataset import Data, form_of
    from simpsons_llm.data.prepare import prepare, report_text

    if export:
        form_of(export)  # a name that means nothing is refused before anything is written
    report = prepare(config)
    print(report_text(report))
    if export:
        print(f"for other trainers: {', '.join(map(str, Data.load(config.out).export(export)))}")
    print(f"written to {config.out}; next: simpsons-llm finetune --data {quote(config.out)} --run runs/x")
    if len(report["all_speakers"]) > 1 and not config.speakers:
        alone = next(iter(report["all_speakers"]))
        print(f"to learn {alone} alone: {again_command('prepare', replace(config, speakers=alone))}")


def do_train(
    config,  # a FinetuneConfig, or a LoopConfig
):
    "Train, and show what it brought."
    from simpsons_llm.machine.device import find_ranks
    from simpsons_llm.ranks.launch import among_others
    from simpsons_llm.train.finetune import FinetuneConfig, finetune
    from simpsons_llm.train.lifecycle import KEPT, summary_text
    from simpsons_llm.train.loop import loop

    with among_others(config.run):
        summary = finetune(config) if isinstance(config, FinetuneConfig) else loop(config)
    if not find_ranks().is_main:
        return
    print(summary_text(summary))
    print(f"{KEPT[config.mode]}: {Path(config.run) / KEPT[config.mode]}; loss curve: {Path(config.run) / 'loss.png'}")
    print(f"next: {ask_command(config.run)}")


def ask_command(
    run: str,  # a finished run's folder
) -> str:  # to be pasted into a shell
    "How to ask a run's first character: at a moment at which it was asked in training."
    from simpsons_llm.machine.job import read_jsonl

    asked: list = next((r["samples"] for r in read_jsonl(Path(run) / "metrics.jsonl") if r.get("samples")), [])
    words = f" --speaker {quote(asked[0]['speaker'])} {quote(asked[0]['before'])}" if asked else ""
    return f"simpsons-llm infer --adapter {quote(str(run))}{words}"


def do_estimate(
    config,  # a FinetuneConfig
):
    "Tell what a run would cost, without running it."
    from simpsons_llm.train.lifecycle import costs

    for name, rows in costs(config).items():
        print(name)
        for key, value in rows.items():
            print(f"  {key:22}{value}")


def do_contrast(
    config,  # a ContrastConfig
):
    "Learn from pairs, and show what it brought."
    from simpsons_llm.character.contrast import contrast, contrast_text

    print(contrast_text(contrast(config)))
    print(f"adapter: {Path(config.out) / 'adapter'}; gains: {Path(config.out) / 'contrast.png'}")
    print(f"next: {ask_command(config.out)}")


def do_chat(
    config,  # a ChatConfig
    page: bool = False,  # in a browser instead of the terminal
    host: str = "127.0.0.1",  # of the page: an address of this machine
    port: int = 8000,  # of the page
    key: str = "",  # of the page: what a browser has to know; empty: what $SIMPSONS_LLM_KEY says, or nothing
):
    "Talk in the terminal, or on a page."
    from simpsons_llm.talk.chat import chat

    if page:
        from simpsons_llm.talk.page import serve_page

        require(
            not (config.auto or config.save), "auto or save was given with page, where buttons do both; leave them out"
        )
        return serve_page(config, host, port, key or os.environ.get("SIMPSONS_LLM_KEY", ""))
    given = host != "127.0.0.1" or port != 8000 or key
    require(not given, "host, port or key was given without page, for which they are; add --page")
    try:
        import readline  # noqa: F401  the arrow keys go back in what was typed
    except ImportError:
        pass
    chat(config)


def do_serve(
    config,  # a ServeConfig
):
    "Answer other people's tools."
    from simpsons_llm.talk.serve import serve

    serve(config)


def do_infer(
    config,  # an InferConfig
    file: str = "",  # also write the answers to this JSON file
):
    "Answer, and show moments and timing if they were asked for."
    from simpsons_llm.model.infer import infer

    result = infer(config)
    for row in result.get("prompts", [{"prompt": config.prompt, **result}]):
        print(row["prompt"])
        for line in row["answers"]:
            print(f"{row['speaker']}: {line}")
    write_rows(result, file)
    if "before_after" in result:
        show_before_after(result["before_after"])
    if t := result.get("timing"):
        print(
            f"{t['tokens']} tokens on {t['device']} ({t['dtype']}), {t['runs']} runs: mean {t['mean_s']:.3f} s, "
            f"min {t['min_s']:.3f}, max {t['max_s']:.3f}, deviation {t['stdev_s']:.3f}; "
            f"{t['tokens_per_s']:.1f} tokens/s"
        )


# %% [markdown]
# Whoever wants the same with one thing changed gets the whole command:

# %% tags=["example"]
from simpsons_llm.data.prepare import PrepareConfig

print(again_command("prepare", PrepareConfig(script="my script.txt", speakers="Ada\nSammy Davis, Jr.", split="scene")))

# %% [markdown]
# After training, the command to try next can be pasted into a shell as it is:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder, chdir(folder):
    moment = {"speaker": "Homer Simpson", "before": "Marge Simpson: Homer, the dog is wearing your tie again."}
    (open_folder("runs/x") / "metrics.jsonl").write_text(json.dumps({"step": 0, "samples": [moment]}))
    print(ask_command("runs/x"))


# %% [markdown]
# Answers are best seen side by side:

# %%
#| export
def show_before_after(
    rows: list,  # what `infer` found at held-out moments
):
    "Real line, base and fine-tuned model side by side."
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True, title="scenes that were never seen in training")
    for name in ("line before", "asked", "real line", "base model", "fine-tuned"):
        table.add_column(name, no_wrap=False, ratio=1 if name == "asked" else 3, overflow="fold")
    for r in rows:
        table.add_row(*map(escape, (r["before"], r["speaker"], r["real"], r["base"], r["tuned"])))
    print_table(table)


def print_table(
    table,  # a rich Table
):
    "As wide as the terminal, or wide enough to read where there is none."
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 150).print(table)


# %% tags=["example"]
tie = {"before": "Marge Simpson: The dog is wearing your tie.", "speaker": "Homer Simpson"}
show_before_after([{**tie, "real": "He has the interview.", "base": "I am a dog.", "tuned": "It looks good on him."}])


# %% [markdown]
# What was measured of a run, as a table: what it means, and each side beside the others.

# %%
#| export
def do_evaluate(
    config,  # an EvaluateConfig
    file: str = "",  # also write the figures to this JSON file
):
    "Measure a run, and show what came out."
    from rich.table import Table

    from simpsons_llm.character.evaluate import MEANINGS, evaluate, figure_name, told

    result = evaluate(config)
    about, table = result["about"], Table(box=None)
    for name in ("", *about["sides"]):
        table.add_column(name, overflow="fold")
    for name, meaning in MEANINGS.items():
        table.add_row(meaning, *(told(result.get(figure_name(name, side))) for side in about["sides"]))
    print_table(table)
    for note in about["notes"]:
        print(f"note: {note}")
    if (n := about.get("test_looks", 1)) > 1:
        print(f"note: the test scenes were looked at {n} times by this run; choose by --split valid")
    print(f"report: {Path(config.out or Path(config.run) / 'evaluation') / 'report.md'}")
    write_rows(result, file)


# %% [markdown]
# The jobs become commands. A command's help begins with what it does and goes on with examples to copy.

# %%
#| export
def add_jobs():
    "Register the jobs; their dataclasses are light to import."
    from simpsons_llm.character.contrast import ContrastConfig
    from simpsons_llm.character.evaluate import EvaluateConfig
    from simpsons_llm.data.prepare import PrepareConfig
    from simpsons_llm.model.infer import InferConfig
    from simpsons_llm.talk.chat import ChatConfig
    from simpsons_llm.talk.serve import ServeConfig
    from simpsons_llm.train.finetune import FinetuneConfig
    from simpsons_llm.train.loop import LoopConfig

    export = inspect.Parameter(
        "export",
        inspect.Parameter.KEYWORD_ONLY,
        default="",
        annotation=Annotated[
            str,
            typer.Option(
                help="also a file for other trainers, whose name tells the form: messages.jsonl, "
                "prompt_completion.jsonl or lines.jsonl; valid and test lie beside it"
            ),
        ],
    )
    app.command("prepare")(
        job_command(
            PrepareConfig,
            do_prepare,
            """Turn a script into scenes to learn from, to choose by and to judge by.

    \b
    simpsons-llm prepare --script simpsons_script_lines.csv --out runs/data
    simpsons-llm prepare --script my.csv --speakers "Homer Simpson,Marge Simpson"
    simpsons-llm prepare --script my.csv --speakers "Homer Simpson" --speakers "Moe Szyslak"
    simpsons-llm prepare --script lines.csv --columns speaker=Character,text=Line,episode=Episode
    simpsons-llm prepare --script chat.txt --split scene --scene-break 2h --aliases names.txt
    simpsons-llm prepare --script samples.json --split scene
    simpsons-llm prepare --script my.csv --export runs/data/messages.jsonl""",
            more=(export,),
        )
    )
    app.command("finetune")(
        job_command(
            FinetuneConfig,
            do_train,
            """Fine-tune a base model on prepared data; leaves an adapter in the run's folder.

    \b
    simpsons-llm finetune --data runs/data --run runs/x
    simpsons-llm finetune --data runs/data --base-model openlm-research/open_llama_3b --recipe seed
    simpsons-llm finetune --data runs/data --run runs/full --mode full
    simpsons-llm finetune --data runs/data --run runs/quick --max-steps 10""",
        )
    )
    app.command("loop")(
        job_command(
            LoopConfig,
            do_train,
            """Train with the loop that is written out in the book's chapter loop: as finetune, step for step.
    A few steps, unless epochs or max-steps say more.

    \b
    simpsons-llm loop --data runs/data --run runs/byhand --max-steps 20
    simpsons-llm loop --data runs/data --mode full --epochs 1
    simpsons-llm loop --data runs/data --run runs/byhand --max-steps 20 --resume""",
        )
    )
    app.command("contrast")(
        job_command(
            ContrastConfig,
            do_contrast,
            """After finetune: teach what the character would not say, with pairs of a right and a wrong line.
    Leaves a new run; the first one stays as it is.

    \b
    simpsons-llm contrast --run runs/x --out runs/y
    simpsons-llm contrast --run runs/x --out runs/others --rejected speakers --pairs 200
    simpsons-llm contrast --run runs/x --out runs/few --pairs 16 --max-minutes 10""",
        )
    )
    app.command("estimate")(
        job_command(
            FinetuneConfig,
            do_estimate,
            """Tell what a fine-tuning run would cost: memory, arithmetic, time.
    No weights are loaded; a run that cannot fit is refused.

    \b
    simpsons-llm estimate --data runs/data
    simpsons-llm estimate --data runs/data --base-model openlm-research/open_llama_3b --global-batch-size 64
    simpsons-llm estimate --data runs/data --mode full --gradient-checkpointing""",
        )
    )

    def json_file(help):
        annotation = Annotated[str, typer.Option("--json", help=help)]
        return inspect.Parameter("file", inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)

    app.command("infer")(
        job_command(
            InferConfig,
            do_infer,
            """Let a character say the next line.

    \b
    simpsons-llm infer --adapter runs/x "Marge Simpson: Homer, the dog is wearing your tie again."
    simpsons-llm infer --adapter runs/x --speaker "Bart Simpson" --answers 3 "Seymour Skinner: Who was that?"
    simpsons-llm infer --adapter runs/x --sampling seed --bench
    simpsons-llm infer --adapter runs/x --data runs/data
    simpsons-llm infer --adapter runs/x --prompts asked.jsonl --json answers.json""",
            argument="prompt",
            more=(json_file("also a file for the answers"),),
        )
    )

    def page_option(name, kind: Any, default, help):
        annotation = Annotated[kind, typer.Option(f"--{name}", help=help)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    app.command("chat")(
        job_command(
            ChatConfig,
            do_chat,
            """Talk with a run's characters: play one of them, or let them talk among themselves, in the terminal or
    on a page in the browser. /help shows what can be done in the terminal: another answer, other words, undo.

    \b
    simpsons-llm chat --run runs/x
    simpsons-llm chat --run runs/x --page
    simpsons-llm chat --run runs/x --speaker "Bart Simpson" --you "Seymour Skinner" --location "Principal's Office"
    simpsons-llm chat --run runs/x --auto 8 --save scene.txt
    simpsons-llm chat --run runs/x --run runs/y""",
            more=(
                page_option("page", bool, False, "on a page in the browser; only this machine can open it"),
                page_option("host", str, "127.0.0.1", "of the page: 0.0.0.0 lets others in, who need a key"),
                page_option("port", int, 8000, "of the page; 0: a free one"),
                page_option("key", str, "", "of the page, 8 letters or more; empty: what $SIMPSONS_LLM_KEY says"),
            ),
        )
    )
    app.command("serve")(
        job_command(
            ServeConfig,
            do_serve,
            """Let other people's tools ask a run's characters: a server like OpenAI's, each character a model.
    Only this machine can reach it, unless --host says otherwise; then a key is needed.

    \b
    simpsons-llm serve --run runs/x
    simpsons-llm serve --run runs/x --run runs/y --port 8001
    SIMPSONS_LLM_KEY=a-long-secret simpsons-llm serve --run runs/x --host 0.0.0.0""",
        )
    )
    app.command("evaluate")(
        job_command(
            EvaluateConfig,
            do_evaluate,
            """Is it the character? Measure a run beside its base and the real lines: loss, contrast, who is heard,
    real or generated, variety, reciting, forgetting. Minutes; the report lies in the run's folder.

    \b
    simpsons-llm evaluate --run runs/x
    simpsons-llm evaluate --run runs/x --split valid --lines 40
    simpsons-llm evaluate --run runs/x --beside runs/quick --json evaluation.json""",
            more=(json_file("also a file for the figures: value, low, high, n each"),),
        )
    )


add_jobs()


# %% [markdown]
# The jobs are there, and each looks at its settings before it does anything:

# %% tags=["example"]
def refusal(*words):
    "The sentence with which a command refuses what it was given."
    try:
        app(list(words), prog_name="simpsons-llm", standalone_mode=False)
    except (ValueError, OSError) as e:
        return str(e)


print([c.name for c in app.registered_commands])
refusal("prepare", "--split", "row")


# %% [markdown]
# `export` makes a run into a model for others. If a GGUF file was asked for and could not be made, that is an error, though the model itself is there.

# %%
#| export
@app.command()
def export(
    source: Annotated[str, typer.Argument(help="a run's folder, such as runs/x, or an adapter's")],
    out: Annotated[
        str, typer.Option(help="folder for the model; new, empty, or an earlier export; empty: export/ in the source")
    ] = "",
    dtype: Annotated[
        str, typer.Option(help="format of the weights: float32, float16, bfloat16; auto: as the base is stored")
    ] = "auto",
    gguf: Annotated[
        str, typer.Option(help="also a GGUF file and a Modelfile for Ollama: f32, f16, bf16 or q8_0; empty: none")
    ] = "",
    speaker: Annotated[
        str, typer.Option(help="who answers in chat template, Modelfile and README.md; empty: the first of the run")
    ] = "",
    base_model: Annotated[str | None, typer.Option(help="another name for the base it was trained on")] = None,
    device: Annotated[str, typer.Option(help="where the adapter is added in: cpu, xpu, cuda or auto")] = "cpu",
):
    """Merge base and adapter into one model that others load without this program; with README.md, and GGUF on request.
    What it prints last are command lines that serve it: transformers, vLLM, llama.cpp.

    \b
    simpsons-llm export runs/x --out runs/x/export
    simpsons-llm export runs/x --dtype bfloat16
    simpsons-llm export runs/x --gguf q8_0 --speaker "Homer Simpson" --out homer"""
    from simpsons_llm.model.decode import SAMPLING
    from simpsons_llm.talk.publish import export as publish
    from simpsons_llm.talk.publish import export_text, next_lines

    record = publish(
        source, out or Path(source) / "export", dtype, gguf, speaker, base_model, device, SAMPLING["book"].arguments()
    )
    print(export_text(record))
    print(next_lines(record))
    if gguf and not record["gguf"]["file"]:
        raise ValueError(record["gguf"]["note"])


# %% tags=["example"]
refusal("export", "nowhere")


# %% [markdown]
# `push` sends what was made to the hub. Without `--dry-run` it wants a token; with it, nothing leaves the machine.

# %%
#| export
@app.command()
def push(
    source: Annotated[str, typer.Argument(help="an export's folder, or a finished run's, of which the adapter goes")],
    to: Annotated[str, typer.Option(help="where to, as user/name on the hub")],
    private: Annotated[bool, typer.Option("--private", help="a place that only its owner sees")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be sent; uses no network")] = False,
):
    """Send a model and its card to the hub; the figures of evaluate stand on the card. Nothing else is sent.

    \b
    simpsons-llm push runs/x/export --to me/homer --dry-run
    simpsons-llm push runs/x/export --to me/homer --private
    simpsons-llm push runs/x --to me/homer-lora"""
    from simpsons_llm.talk.push import push as send
    from simpsons_llm.talk.push import push_text

    print(push_text(send(source, to, private, dry_run)))


# %% tags=["example"]
refusal("push", "nowhere", "--to", "me/homer", "--dry-run")

# %% [markdown]
# `run` starts a chapter under papermill. Its `-p NAME VALUE` is papermill's own way of writing parameters.

# %%
#| export
CHAPTER = typer.Argument(help="a job (prepare, finetune, infer), a chapter (47_finetune) or the path of a notebook")
PARAMETER = typer.Option("-p", "--parameter", metavar="NAME VALUE", help="set a parameter; may be given several times")
PARAMETERS = typer.Option("-f", "--file", help="YAML file with parameters; -p overrules it")
CCL_DEBUG = typer.Option("--ccl-debug", help="let oneCCL tell what it does (CCL_LOG_LEVEL=debug)")


@app.command()
def run(
    chapter: Annotated[str, CHAPTER],
    out: Annotated[str, typer.Option(help="folder for the executed notebook and what the job writes")] = "",
    parameter: Annotated[list[str] | None, PARAMETER] = None,
    file: Annotated[str | None, PARAMETERS] = None,
):
    """Run a chapter under papermill, without a screen; the executed notebook is the log.

    \b
    simpsons-llm run finetune --out runs/x -p max_steps 10
    simpsons-llm run nbs/1_data/14_prepare.ipynb --out runs/data -p script my.csv
    simpsons-llm run finetune --out runs/x -f params.yaml -p seed 7"""
    from simpsons_llm.ranks.execute import run_chapter

    executed = run_chapter(chapter, out or f"runs/{Path(chapter).stem}", typed_parameters(parameter, file))
    print(f"executed notebook: {executed}")


def typed_parameters(
    pairs: "list | None",  # NAME=VALUE, as `join_parameters` wrote them
    file: "str | None",  # a YAML file
) -> dict:  # name -> value
    "Parameters of a chapter from the command line."
    from simpsons_llm.ranks.execute import read_parameters

    return read_parameters(
        [(p.partition("=")[0], p.partition("=")[2] if "=" in p else None) for p in pairs or []], file
    )


# %% tags=["example"]
typed_parameters(["seed=7", "script=my.csv", "score_test=true"], None)


# %% [markdown]
# The same chapter, on many cards. `launch` starts the ranks; `rank` is what each of them is, and what people with an `mpirun` of their own call; `runs` tells what came of it.

# %%
#| export
@app.command()
def launch(
    chapter: Annotated[str, CHAPTER],
    n: Annotated[
        int | None,
        typer.Option("-n", "--ranks", help="ranks in all; by default one per accelerator of this machine"),
    ] = None,
    out: Annotated[
        str, typer.Option(help="the run's folder: one executed notebook a rank, and what the job writes")
    ] = "",
    parameter: Annotated[list[str] | None, PARAMETER] = None,
    file: Annotated[str | None, PARAMETERS] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="torchrun, mpich, intelmpi, openmpi, slurm; auto: slurm in an allocation, "
            "the mpirun on PATH for several hosts, else torchrun"
        ),
    ] = "auto",
    hosts: Annotated[
        str,
        typer.Option(
            help="host names with commas, such as a,b or a:4,b:4; or a hostfile with lines such as: a slots=4"
        ),
    ] = "",
    rsh: Annotated[
        str, typer.Option(help="program that starts a command on a host, called with the host and the command")
    ] = "ssh",
    ccl_debug: Annotated[bool, CCL_DEBUG] = False,
):
    """Run a chapter once per rank. If one rank fails, all end, and the message says which and why.

    \b
    simpsons-llm launch -n 4 finetune --out runs/x -p max_steps 100
    simpsons-llm launch -n 4 finetune --out runs/x --launcher intelmpi -p base_model openlm-research/open_llama_3b
    simpsons-llm launch -n 8 finetune --out runs/x --hosts node1,node2
    simpsons-llm launch -n 2 nbs/1_data/14_prepare.ipynb --out runs/data"""
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.ranks.launch import launch as start

    if n is None:
        import torch

        kind = find_device().type
        if kind == "cpu" or hosts:
            why = "the hosts have not been asked for their cards" if hosts else "there is no accelerator to count"
            raise ValueError(f"-n was not given, and {why}; write -n 2 for two ranks")
        n = getattr(torch, kind).device_count()
    notebooks = start(
        chapter,
        out or f"runs/{Path(chapter).stem}",
        n,
        typed_parameters(parameter, file),
        launcher,
        hosts,
        rsh,
        ccl_debug,
    )
    print(f"executed notebooks: {notebooks[0]}" + (f" to {notebooks[-1].name}" if len(notebooks) > 1 else ""))


# %% [markdown]
# On this machine the accelerators can be counted. On others somebody has to say how many ranks there are:

# %% tags=["example"]
refusal("launch", "prepare", "--hosts", "node1,node2")


# %%
#| export
@app.command()
def rank(
    chapter: Annotated[str, CHAPTER],
    notebook: Annotated[
        str, typer.Argument(help="the executed notebook, with {rank} in its name; its folder is the run's")
    ],
    parameter: Annotated[list[str] | None, PARAMETER] = None,
    file: Annotated[str | None, PARAMETERS] = None,
    ccl_debug: Annotated[bool, CCL_DEBUG] = False,
):
    """Be one rank of a chapter: for an mpirun or srun of your own. `launch` does this for you.

    \b
    mpirun -n 4 simpsons-llm rank nbs/4_train/47_finetune.ipynb runs/x/rank{rank}.ipynb -p max_steps 100
    srun --kill-on-bad-exit=1 -n 8 simpsons-llm rank finetune runs/x/rank{rank}.ipynb
    torchrun --no-python --nproc-per-node 4 simpsons-llm rank finetune runs/x/rank{rank}.ipynb"""
    from simpsons_llm.machine.device import find_ranks
    from simpsons_llm.ranks.launch import run_rank

    executed = run_rank(chapter, notebook, typed_parameters(parameter, file), ccl_debug)
    if find_ranks().is_main:
        print(f"executed notebook: {executed}")


# %%
#| export
@app.command()
def runs(
    root: Annotated[str, typer.Argument(help="folder with runs, at any depth")] = "runs",
    file: Annotated[str | None, typer.Option("--json", help="file for the list")] = None,
):
    """List runs, newest first: parameters, losses, speed, status.

    \b
    simpsons-llm runs
    simpsons-llm runs runs --json runs.json"""
    from rich.table import Table

    from simpsons_llm.ranks.launch import list_runs

    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"no folder at {root}; give a folder that holds runs, or start one: simpsons-llm finetune --run runs/x"
        )
    rows = list_runs(root)
    if not rows:
        print(f"no run in {root}; start one: simpsons-llm finetune --run {quote(f'{root}/x')}")
        return
    table = Table(box=None)
    columns = {
        "run": "run",
        "status": "status",
        "base_model": "base",
        "mode": "mode",
        "view": "view",
        "learning_rate": "rate",
        "world_size": "ranks",
        "optimizer_steps": "steps",
        "valid_loss_nats_base": "loss before",
        "valid_loss_nats_best": "best loss",
        "best_step": "at step",
        "tokens_per_s": "tokens/s",
        "peak_mem_gib": "GiB",
        "train_s": "time",
    }
    for i, name in enumerate(columns.values()):
        table.add_column(name, justify="left" if i < 5 else "right", overflow="fold")

    def cell(name, x):
        if x is None:
            return "-"
        if name == "train_s":
            return format_seconds(x)
        if not isinstance(x, float):
            return str(x)
        return f"{x:.4f}" if "loss" in name else f"{x:.1f}" if x >= 1 else f"{x:g}"

    for r in rows:
        table.add_row(*(cell(name, r[name]) for name in columns))
    print_table(table)
    write_rows(rows, file)


# %% tags=["example"]
refusal("runs", "nowhere")


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

    from simpsons_llm.machine.distributed import doctor as examine

    rows = examine()
    table = Table(show_header=True, box=None)
    for name in ("", "item", "value", "hint"):
        table.add_column(name, overflow="fold")
    for r in rows:
        table.add_row(
            {True: "ok", False: "no", None: "-"}[r["ok"]], *(escape(str(r[k])) for k in ("item", "value", "hint"))
        )
    print_table(table)
    if any(r["ok"] is False for r in rows):
        raise typer.Exit(1)


# %% [markdown]
# `demo` is the first chapter of the book, without a screen: prepare the script that comes with the package, fine-tune, and let Homer, Marge and Bart speak in test scenes.

# %%
#| export
@app.command()
def demo(
    out: Annotated[
        str, typer.Option(help="the run's folder: its executed notebook, and all that it writes")
    ] = "runs/demo",
    base_model: Annotated[str, typer.Option(help="a hub id, folder or short name")] = "smollm2-135m",
    max_minutes: Annotated[
        float, typer.Option(help="training stops after so many minutes, with what was learned so far")
    ] = 6.0,
):
    """The book's first chapter: fine-tune on the script that comes with the package, and show what changed.
    Minutes on a laptop.

    \b
    simpsons-llm demo
    simpsons-llm demo --max-minutes 1 --out runs/short"""
    import time

    from simpsons_llm.ranks.execute import run_chapter
    from simpsons_llm.train.lifecycle import summary_text

    begin = time.perf_counter()
    executed = run_chapter("start", out, {"base_model": base_model, "max_minutes": max_minutes})
    show_before_after(read_json(Path(out) / "before_after.json"))
    print(summary_text(read_json(Path(out) / "summary.json")))
    print(f"loss curve: {Path(out) / 'loss.png'}; the chapter as it ran: {executed}")
    print(f"the demo took {format_seconds(time.perf_counter() - begin)}; ask Homer yourself:")
    print(
        f'  simpsons-llm infer --adapter {quote(out)} --speaker "Homer Simpson" '
        '"Marge Simpson: Homer, the dog is wearing your tie again."'
    )


# %% [markdown]
# Benchmarks are a group of commands of their own, each with `--json FILE`:

# %%
#| export
bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure the book's way beside the seed's way, and predictions beside what they predict.",
)
app.add_typer(bench, name="bench")
JSON_FILE = typer.Option(
    "--json", help="file for the results: rows of name, ours, seed, peer, ratio, unit, device, versions"
)


def show_bench(
    rows: list,  # what `bench_row` made
    file: "str | None",  # where to write them
):
    "Results as a table, and as JSON."
    from rich.table import Table

    # who measured no peer needs no column for one
    sides = ("ours", "seed", "peer") if any(r.get("peer") is not None for r in rows) else ("ours", "seed")
    table = Table(box=None)
    for name in ("", *sides, "ratio", "unit"):
        table.add_column(name, justify="left" if name in ("", "unit") else "right", overflow="fold")

    def number(x):
        return "-" if x is None else f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"

    for r in rows:
        table.add_row(
            r["name"],
            *(number(r[side]) for side in sides),
            number(r["ratio"]) + " x" * (r["ratio"] is not None),
            r["unit"],
        )
    print_table(table)
    write_rows(rows, file)


def write_rows(
    rows: "list | dict",  # results
    file: "str | None",  # where to write them; None or empty: nowhere
):
    "Results as JSON."
    from simpsons_llm.machine.job import open_folder, write_json

    if file:
        write_json(open_folder(Path(file).parent) / Path(file).name, rows)
        print(f"written to {file}")


@bench.command("prepare")
def bench_prepare(
    lines: Annotated[int, typer.Option(help="rows of the table, 1,000 or more")] = 158_000,
    base_model: Annotated[str, typer.Option(help="whose tokenizer: a hub id, folder or short name")] = "smollm2-135m",
    sizes: Annotated[str, typer.Option(help="sizes of more tables, with commas, to see how the cost grows")] = "",
    file: Annotated[str | None, JSON_FILE] = None,
):
    """From a table to packed rows of tokens: seconds and memory. The seed's way takes a minute or two.

    \b
    simpsons-llm bench prepare
    simpsons-llm bench prepare --lines 20000 --json bench.json
    simpsons-llm bench prepare --sizes 10000,100000,1000000"""
    from simpsons_llm.bench.preparation import bench_prepare as measure

    try:
        more = tuple(int(n) for n in sizes.split(",") if n.strip())
    except ValueError:
        raise ValueError(
            f"--sizes {sizes!r} was given; expected whole numbers with commas, such as 10000,100000"
        ) from None
    show_bench(measure(lines, base_model, more), file)


# %% tags=["example"]
made_up = {"name": "tokens of a made-up table", "ours": 12.5, "seed": 50.0, "peer": None, "ratio": 4.0, "unit": "s"}
show_bench([made_up], None)
show_bench([made_up | {"peer": 14.0}], None)
refusal("bench", "prepare", "--sizes", "many")

# %% [markdown]
# Training and talking have a benchmark each, and so has the time that training takes to the same result.

# %%
#| export
DATA = typer.Option(help="a script file, or a folder that prepare wrote")
BASE_MODEL = typer.Option(help="a hub id, folder or short name")
RECIPE = typer.Option(help="of our side: book or seed")
DEVICE = typer.Option(help="xpu, cuda or cpu; auto: the best there is")


@bench.command("train")
def bench_train(
    data: Annotated[str, DATA] = "springfield",
    base_model: Annotated[str, BASE_MODEL] = "smollm2-135m",
    recipe: Annotated[str, RECIPE] = "book",
    micro_batch_size: Annotated[
        int | None, typer.Option(help="of our side: samples at once, and at least so many a step; empty: the recipe's")
    ] = None,
    compile: Annotated[
        str, typer.Option(help="of our side, on an accelerator: graph, layers, none; auto: what pays in a long run")
    ] = "auto",
    seconds: Annotated[
        float | None, typer.Option(help="how long steps of each side are timed; empty: 60 on a CPU, else 20")
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    peer: Annotated[bool, typer.Option(help="on an accelerator: also Trainer with our samples")] = True,
    file: Annotated[str | None, JSON_FILE] = None,
):
    """Training: learned lines and tokens in a second, a step's time and memory, ours beside the seed's way.
    Each side runs for its seconds, and a few first steps that are not timed.

    \b
    simpsons-llm bench train
    simpsons-llm bench train --seconds 40 --json train.json
    simpsons-llm bench train --base-model openlm-research/open_llama_3b --recipe seed --micro-batch-size 64
    simpsons-llm bench train --data runs/data --micro-batch-size 16 --compile layers"""
    from simpsons_llm.bench.training import bench_train as measure

    show_bench(measure(data, base_model, recipe, micro_batch_size, compile, seconds, device, peer), file)


@bench.command("quality")
def bench_quality(
    data: Annotated[str, DATA] = "springfield",
    base_model: Annotated[str, BASE_MODEL] = "smollm2-135m",
    recipe: Annotated[str, RECIPE] = "book",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME VALUE",
            help="a setting of finetune for our side; may be given several times",
        ),
    ] = None,
    seed_steps: Annotated[
        int | None, typer.Option(help="optimizer steps of the seed's side, of 128 rows each; empty: its three epochs")
    ] = None,
    scores: Annotated[int, typer.Option(help="how often each side is scored, 1 or more")] = 20,
    lines: Annotated[
        int | None, typer.Option(help="validation lines that are scored; 0: all; empty: 48 on a CPU, else all")
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    file: Annotated[str | None, JSON_FILE] = None,
    curve: Annotated[str | None, typer.Option(help="file for the scores of both sides, a JSON object a line")] = None,
    plot: Annotated[str | None, typer.Option(help="file for the picture, such as quality.png")] = None,
):
    """Training to the same result: seconds and tokens until ours is as good as the seed's best, on the same lines.
    Minutes on an accelerator; hours on a CPU, unless the seed's steps are few.

    \b
    simpsons-llm bench quality
    simpsons-llm bench quality --seed-steps 4 --lines 24 --json quality.json
    simpsons-llm bench quality --curve quality.jsonl --plot quality.png
    simpsons-llm bench quality -p learning_rate 1e-3 -p global_batch_size 8 -p micro_batch_size 8"""
    from simpsons_llm.bench.training import bench_quality as measure
    from simpsons_llm.bench.training import plot_quality
    from simpsons_llm.machine.job import open_folder, write_text

    rows, scored = measure(
        data, base_model, recipe, typed_parameters(parameter, None), seed_steps, scores, lines, device
    )
    show_bench(rows, file)
    if curve:
        write_text(open_folder(Path(curve).parent) / Path(curve).name, "".join(json.dumps(r) + "\n" for r in scored))
        print(f"scores: {curve}")
    if plot:
        plot_quality(scored).figure.savefig(open_folder(Path(plot).parent) / Path(plot).name, dpi=110)
        print(f"picture: {plot}")


@bench.command("infer")
def bench_infer(
    adapter: Annotated[
        str, typer.Option(help="a run's folder, such as runs/x; empty: a fresh adapter on the base model")
    ] = "",
    base_model: Annotated[str, BASE_MODEL] = "smollm2-135m",
    prompts: Annotated[
        int | None, typer.Option(help="questions at once, besides the one alone; empty: 8 on a CPU, else 64")
    ] = None,
    tokens: Annotated[int, typer.Option(help="of each answer, the same on all sides, 2 or more")] = 60,
    runs: Annotated[int | None, typer.Option(help="timed runs of each, 2 or more; empty: 2 on a CPU, else 12")] = None,
    device: Annotated[str, DEVICE] = "auto",
    file: Annotated[str | None, JSON_FILE] = None,
):
    """Talking: tokens in a second for one question and for many at once, ours beside the seed's way (five beams,
    the adapter beside the weights) and that of transformers. Minutes.

    \b
    simpsons-llm bench infer
    simpsons-llm bench infer --prompts 16 --tokens 40 --json infer.json
    simpsons-llm bench infer --adapter runs/x"""
    from simpsons_llm.bench.talking import bench_infer as measure

    # what is known is kept, should the last side be stopped
    tell = partial(write_rows, file=file)
    show_bench(measure(adapter, base_model, prompts, tokens, runs, device, tell), file)


# %% [markdown]
# What cannot be measured is refused before a process is started:

# %% tags=["example"]
for words in (
    ("train", "--seconds", "0"),
    ("train", "--recipe", "seed", "--micro-batch-size", "12"),
    ("quality", "-p", "learning_rat=1e-3"),
    ("infer", "--adapter", "nowhere"),
):
    print(refusal("bench", *words, "--device", "cpu"))

# %% [markdown]
# Now that results can be written, `runs` has all that it needs. One run is done, another has just begun:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder, chdir(folder):
    losses = {"valid_loss_nats_base": 3.21, "valid_loss_nats_best": 2.98, "best_step": 60, "train_s": 372.0}
    summary = {"status": "done", "base_model": "smollm2-135m", "mode": "lora", **losses}
    write_json(open_folder("runs/x") / "summary.json", summary)
    write_json(open_folder("runs/y") / "summary.json", {"status": "running"})
    refusal("runs")


# %%
#| export
@bench.command("costs")
def bench_costs(
    device: Annotated[str, typer.Option(help="xpu, cuda or cpu; auto: the best there is")] = "auto",
    only: Annotated[str, typer.Option(help="settings whose name has this in it; empty: all")] = "",
    file: Annotated[str | None, typer.Option("--json", help="file for the results")] = None,
):
    """Memory and time of a training step, predicted beside measured, over ranks, targets, lengths, batches,
    checkpointing and full fine-tuning. Minutes; let nothing else run meanwhile.

    \b
    simpsons-llm bench costs
    simpsons-llm bench costs --only checkpointing --json costs.json"""
    from simpsons_llm.bench.preparation import bench_costs as measure

    write_rows(measure(device, only), file)


# %%
#| export
@bench.command("collectives")
def bench_collectives(
    n: Annotated[
        int,
        typer.Option(
            "-n",
            "--ranks",
            help="ranks to start on this machine; 0: one per accelerator, 2 on a CPU, or those that a launcher started",
        ),
    ] = 0,
    sizes: Annotated[
        str,
        typer.Option(
            help="numbers in an array: auto (powers of 4), seed (1 to 786,432), or a list such as 1,1024,1048576"
        ),
    ] = "auto",
    dtypes: Annotated[
        str, typer.Option(help="number formats, with commas: float32, bfloat16, float16")
    ] = "float32,bfloat16",
    warmup: Annotated[int, typer.Option(help="calls before the clock counts, 0 or more")] = 10,
    repeats: Annotated[int, typer.Option(help="calls that are timed, 1 or more")] = 10,
    device: Annotated[str, typer.Option(help="xpu, cuda or cpu; auto: the best there is")] = "auto",
    backend: Annotated[str, typer.Option(help="xccl, ccl, nccl or gloo; auto: the one for the device")] = "auto",
    file: Annotated[str | None, typer.Option("--json", help="file for the results")] = None,
    plot: Annotated[str | None, typer.Option(help="file for the picture, such as collectives.png")] = None,
):
    """Broadcast, all-reduce, all-gather and reduce-scatter between ranks: time, bandwidth, and whether each is right.

    \b
    simpsons-llm bench collectives -n 2
    simpsons-llm bench collectives --sizes seed --json collectives.json --plot collectives.png
    simpsons-llm bench collectives -n 4 --device cpu --sizes 1,1024,1048576 --dtypes float32
    mpirun -n 2 simpsons-llm bench collectives"""
    from rich.table import Table

    from simpsons_llm.machine.device import find_ranks
    from simpsons_llm.ranks.collectives import CollectivesConfig, in_bytes, measure, plot_bandwidth
    from simpsons_llm.ranks.launch import among_others

    config = CollectivesConfig(
        sizes=sizes, dtypes=dtypes, warmup=warmup, repeats=repeats, device=device, backend=backend
    )
    with among_others("."):
        rows = measure(config, n)
    if not find_ranks().is_main:
        return
    table = Table(
        box=None,
        title=f"{rows[0]['world_size']} ranks, {rows[0]['backend']}, {rows[0]['device']}; "
        f"median of {repeats} calls, every answer right",
    )
    for name in ("", "numbers", "size", "µs", "fastest", "slowest", "algorithm GB/s", "bus GB/s"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for r in rows:
        if r["seconds"] is None:
            table.add_row(f"{r['op']}, {r['dtype']}: {r['note']}")
        else:
            table.add_row(
                f"{r['op']}, {r['dtype']}",
                f"{r['elements']:,}",
                in_bytes(r["bytes"]),
                *(f"{r[k] * 1e6:,.1f}" for k in ("seconds", "min_s", "max_s")),
                *(f"{r[k]:.3g}" for k in ("algorithm_gb_per_s", "bus_gb_per_s")),
            )
    print_table(table)
    write_rows(rows, file)
    if plot:
        plot_bandwidth(rows, file=plot)
        print(f"picture: {plot}")


# %% tags=["example"]
refusal("bench", "collectives", "--repeats", "0")


# %% [markdown]
# ## One sentence for what was given wrongly
#
# An error that the book raises on purpose is a `ValueError`, a `TypeError` or one of the file errors, and the line that failed is a `raise` in its own code (or in a chapter that papermill ran). Anything else is a mistake in the program, and says so.

# %%
#| export
def join_parameters(
    argv: list,  # words of the command line
) -> list:  # the same with `-p NAME VALUE` written as `-p NAME=VALUE`
    "papermill's way of writing parameters, for a parser that takes one word an option."
    words, out = list(argv), []
    while words:
        out.append(words.pop(0))
        if (
            out[-1] in ("-p", "--parameter")
            and len(words) > 1
            and re.fullmatch(r"\w+", words[0])
            and not words[1].startswith("-p")
        ):
            out.append(f"{words.pop(0)}={words.pop(0)}")
    return out


# %% tags=["example"]
join_parameters(["run", "finetune", "-p", "seed", "7", "-p", "r=8"])


# %%
#| export
def main(
    argv: list | None = None,  # words of the command line; None: those of this process
) -> int:  # exit code: 0 done, 2 wrong input, 1 a mistake in the program, 128 + a signal's number
    "The entry point of `simpsons-llm`."
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    Stopped.last = 0
    try:
        code = app(
            join_parameters([w for w in words if w != "--debug"]), prog_name="simpsons-llm", standalone_mode=True
        )
    except SystemExit as e:
        code = e.code
        if code == 130:
            print("interrupted", file=sys.stderr)  # typer made this of a KeyboardInterrupt
            code = 128 + (Stopped.last or 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + (Stopped.last or 2)
    except Exception as e:
        if debug:
            traceback.print_exc()
        code = exit_code(e)
        if code == 2 or isinstance(e, JobError):
            print(f"error: {e}", file=sys.stderr)
        else:
            print(
                f"unexpected {type(e).__name__}: {e}" + ("" if debug else "; add --debug for the traceback"),
                file=sys.stderr,
            )
    if argv is None:
        groups = sys.modules.get("simpsons_llm.machine.distributed")
        if groups:  # not imported: this process was in none
            groups.end_process(code or 0)
        sys.exit(code)
    return code or 0


# %% [markdown]
# ## As a user sees it

# %% tags=["example"]
main(["infer", "--help"]);


# %% tags=["check"]
def said(*words):
    "Exit code and what was printed to standard output and standard error."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


for command in ("prepare", "finetune", "infer", "run", "demo", "doctor"):
    code, out, err = said(command, "--help")
    assert code == 0 and "simpsons-llm " + command in out, command

# %% [markdown]
# Each field of a job is an option with its help:

# %% tags=["check"]
from simpsons_llm.data.prepare import PrepareConfig
from simpsons_llm.model.infer import InferConfig
from simpsons_llm.train.finetune import FinetuneConfig

for command, config in (("prepare", PrepareConfig), ("finetune", FinetuneConfig), ("infer", InferConfig)):
    helps, shown = field_help(config), said(command, "--help")[1]
    assert set(helps) == {f.name for f in fields(config)}, set(helps) ^ {f.name for f in fields(config)}
    for f in fields(config):
        assert f"--{f.name.replace('_', '-')}" in shown or f.name == "prompt", f.name

# %% [markdown]
# Wrong input: one sentence each, exit code 2, no traceback.

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for words in (
        ("prepare", "--script", "nowhere.csv"),
        ("prepare", "--speakers", "Homer Simson", "--out", folder),
        ("finetune", "--data", "nowhere"),
        ("finetune", "--base-model", "no-such-model", "--run", folder + "/run"),
        ("finetune", "--learning-rate", "7"),
        ("infer", "--adapter", "nowhere"),
        ("run", "finetune", "--out", folder, "-p", "max_step", "3"),
        ("prepare", "--out", "/proc/nowhere"),
    ):
        code, out, err = said(*words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (words, code, err)
        print(code, err.replace(folder, "FOLDER"), end="")


# %% [markdown]
# A mistake in the program is not the user's fault, and is told apart:

# %% tags=["check"]
@app.command(hidden=True)
def broken():
    raise KeyError("a mistake")


code, out, err = said("broken")
assert code == 1 and "unexpected KeyError" in err and "Traceback" not in err

for mistake, meant in (
    (lambda: format_seconds("x"), False),
    (lambda: format_seconds(None), False),
    (lambda: require(False, "given on purpose"), True),
):
    try:
        mistake()
    except Exception as e:
        assert on_purpose(e) is meant, e
assert "Traceback" in said("broken", "--debug")[2]
assert said("no-such-command")[0] == 2
assert join_parameters(["run", "x", "-p", "a", "1", "-p", "b=2"]) == ["run", "x", "-p", "a=1", "-p", "b=2"]

# %% [markdown]
# The command line starts quickly, because nothing heavy is imported before it is needed:

# %% tags=["check"]
heavy = subprocess.run(
    [
        sys.executable,
        "-c",
        "import sys, simpsons_llm.machine.cli\n"
        "heavy = 'torch', 'transformers', 'matplotlib', 'pandas', 'datasets'\n"
        "print([m for m in heavy if m in sys.modules])",
    ],
    capture_output=True,
    text=True,
    check=True,
)
assert heavy.stdout.strip() == "[]", heavy.stdout
