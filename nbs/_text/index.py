# %% [markdown]
# # simpsons_llm
#
# > A literate, notebook-first project that turns a TV script into a character that talks.
#
# Give it a script, and it fine-tunes a language model on the dialogue with LoRA, until Homer answers like Homer. It is a book first: each chapter is a Jupyter notebook that explains one idea, exports one module of this package, and checks its own promises. And the book runs: the chapters that are jobs are the very programs that train, started from JupyterLab, from the command line, or headlessly by papermill. One device layer serves Intel XPU, CUDA and CPU (what was run where stands at the end). LoRA, low-rank adaptation, trains a small addition to a frozen model; chapter 05 explains it from the beginning.

# %% [markdown]
# ## Two commands
#
# In a clone of this repository, with Python 3.11.5 or newer (the pinned versions need it; the tests run on 3.11 and 3.13). The first installs and then does the whole way, from the script that comes with the package to a character that answers. It fetches 93 MB of weights once; after that everything works offline. The demo itself takes less than ten minutes on two cores:
#
# ```bash
# python -m pip install -c constraints.txt -e ".[dev]" && simpsons-llm demo
# ```
#
# The second runs the chapters top to bottom, then the tests, in less than twelve minutes on two cores (two at a time; the variable keeps the threads of two programs from waiting in each other's way, which costs several times the time). It leaves out chapter 10, which takes longer than all others together: the demo has just run it in full, and the tests run its cells with a tiny model. `nbdev_test` alone runs it too:
#
# ```bash
# OMP_WAIT_POLICY=PASSIVE nbdev_test --n_workers 2 --skip_file_re '^[_.]|^10_' && python -m pytest -q -n 2 --dist worksteal
# ```
#
# `constraints.txt` pins every version. It names PyTorch 2.13.0; for XPU or another CUDA version install PyTorch from its own index first.

# %% [markdown]
# ## What comes out
#
# The demo learns from 28 episodes of original scenes, written for this project with the characters everybody knows. These are its results, read from the files that it left. The loss on lines of episodes that were never trained on, in nats per token (the mean of $-\ln p$ of each token that really came):

# %%
#| eval: false
import json
import math
from pathlib import Path

from IPython.display import Image, Markdown, display

demo = next((p for p in (Path("runs/demo"), Path("../runs/demo")) if (p / "finetune" / "summary.json").is_file()), None)
if demo is None:
    print("run `simpsons-llm demo` first")
else:
    display(Image(demo / "finetune" / "loss.png"))

# %%
#| eval: false
if demo:
    s = json.loads((demo / "finetune" / "summary.json").read_text(encoding="utf8"))
    display(
        Markdown(
            f"Held-out loss: **{s['valid_loss_nats_base']:.3f}** nats per token before, **{s['valid_loss_nats_best']:.3f}** after (step {s['best_step']} of {s['optimizer_steps']}). "
            f"Each right token became {math.exp(s['valid_loss_nats_base'] - s['valid_loss_nats_best']):.2f} times as probable (geometric mean). On the test scenes, scored once at the end: {s['test_loss_nats_base']:.3f} before, {s['test_loss_nats_best']:.3f} after. "
            f"{s['base_model']}, {s['real_tokens']:,} tokens, {s['train_s'] / 60:.1f} minutes with evaluations on {s['device']} ({s['dtype']}), peak memory {s['peak_mem_gib']:.1f} GiB."
        )
    )

# %% [markdown]
# And nine answers in three test scenes, at moments chosen by rule: what the script says, what the base model says, what the fine-tuned model says. A model of 135 million parameters after a few minutes on a laptop is no comedian yet.

# %%
#| eval: false
if demo:
    rows = json.loads((demo / "infer" / "answers.json").read_text(encoding="utf8"))["before_after"]
    table = [[r["before"], r["speaker"], r["real"], r["base"], r["tuned"]] for r in rows]
    head = ["line before", "asked", "real line", "base model", "fine-tuned"]
    display(
        Markdown(
            "\n".join(
                "| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in [head, ["---"] * 5, *table]
            )
        )
    )

# %% [markdown]
# ## Your own script
#
# A table with the columns of the public `simpsons_script_lines.csv` (damaged rows are recovered where they are certain), plain text (`Speaker: line`, a blank line between scenes, `[places]` in brackets), a Fountain screenplay, or JSON samples (`p/c/l` or `instruction/input/output`):
#
# ```
# simpsons-llm prepare  --script simpsons_script_lines.csv --speakers "Homer Simpson,Marge Simpson" --out runs/data
# simpsons-llm finetune --data runs/data --run runs/x
# simpsons-llm infer    --adapter runs/x/adapter --speaker "Homer Simpson" "Marge Simpson: Homer, the dog is wearing your tie again."
# simpsons-llm export   runs/x
# ```
#
# `simpsons-llm estimate` tells memory and time of a run before it begins; `export` makes one plain model of base and adapter, with a card, and on request a GGUF file.
#
# The same as notebooks, headlessly; the executed notebook is the log of the run:
#
# ```
# simpsons-llm run finetune --out runs/x -p max_steps 10
# papermill nbs/10_finetune.ipynb out.ipynb -p max_steps 10
# ```
#
# The same once per rank, on many cards or machines, by torchrun, MPICH, Intel MPI, Open MPI or SLURM. Every rank leaves its notebook; if one fails, all end, and the message says which and why:
#
# ```
# simpsons-llm launch -n 4 finetune --out runs/x -p max_steps 100
# mpirun -n 4 simpsons-llm rank finetune runs/x/rank{rank}.ipynb -p max_steps 100
# simpsons-llm runs
# ```
#
# `simpsons-llm loop` trains with a loop that is written out instead of Trainer, step for step the same. Either way the run's `metrics.jsonl` holds losses, perplexities and what the model said on the way, and `--trackers` sends the numbers to trackio, Weights & Biases or TensorBoard too. `--recipe seed` trains as the project did that this one carries on (rank 8, alpha 16, query and key projections, one sample a line). `simpsons-llm doctor` shows what the machine offers. Every command has `--help` with examples.

# %% [markdown]
# ## The book
#
# | chapter | what it explains |
# |---|---|
# | [00 device](00_device.ipynb) | what am I running on: accelerator, number format, ranks |
# | [00 distributed](00_distributed.ipynb) | ranks that meet, wait for each other and add up; the doctor |
# | [00 job](00_job.ipynb) | what a job is: settings, folders, progress, provenance |
# | [01 lines](01_lines.ipynb) | lines, scenes, and the public table with its damaged rows |
# | [01 script](01_script.ipynb) | any script: text, Fountain, samples |
# | [02 prepare](02_prepare.ipynb) | train, valid and test by episode |
# | [03 prompt](03_prompt.ipynb) | text and tokens, for training and serving alike |
# | [03 samples](03_samples.ipynb) | loss weights, two views of a scene, the audit before training |
# | [04 packing](04_packing.ipynb) | sequences end to end, kept apart |
# | [05 lora](05_lora.ipynb) | low rank, the LoRA layer, parameter counts |
# | [05 spectra](05_spectra.ipynb) | what fine-tuning changes, and where an adapter belongs, measured |
# | [05 variants](05_variants.ipynb) | rsLoRA, DoRA, PiSSA, LoRA+, LoftQ, QLoRA; adapters on disk |
# | [06 model](06_model.ipynb) | base models by name; adapters on, saved, loaded, merged |
# | [06 ollama](06_ollama.ipynb) | GGUF files, and prompts for llama.cpp and Ollama |
# | [06 publish](06_publish.ipynb) | one plain model to give away, with its card |
# | [07 infer](07_infer.ipynb) | finishing a line, and how long it takes |
# | [08 evaluate](08_evaluate.ipynb) | the held-out loss, per token |
# | [09 batches](09_batches.ipynb) | which samples make a step, and which rank computes them |
# | [09 config](09_config.ipynb) | two recipes, the settings of a run, its length, optimizer and learning rate |
# | [09 cost](09_cost.ipynb) | memory, arithmetic and time, told before the weights are loaded |
# | [09 fsdp](09_fsdp.ipynb) | models in parts, one on each rank |
# | [09 history](09_history.ipynb) | what a run tells: losses, perplexities, samples of text, trackers |
# | [09 lifecycle](09_lifecycle.ipynb) | what surrounds the steps: data, plan, resuming, summary |
# | [09 loop](09_loop.ipynb) | training written out: every line between data and adapter |
# | [09 pitfalls](09_pitfalls.ipynb) | eight ways to train nothing, each with its run |
# | [10 finetune](10_finetune.ipynb) | fine-tuning with Trainer, on one device or many; XPU training step by step |
# | [12 bench](12_bench.ipynb) | ours beside the seed's way, measured |
# | [12 collectives](12_collectives.ipynb) | how fast ranks talk, and whether they get it right |
# | [13 execute](13_execute.ipynb) | a chapter under papermill |
# | [13 launch](13_launch.ipynb) | the same once per rank, on any launcher |
# | [14 cli](14_cli.ipynb) | the command line |
#
# Chapters on the chat page and more measures of a character are to come; their numbers are kept free. Read with `jupyter lab nbs`. After a change: `.ci/book` exports the modules and refreshes the text twins in `nbs/_text/`, which show changes of notebooks as plain text.

# %% [markdown]
# ## As a library

# %%
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes

script = read_script("springfield")
{name: sum(len(s.lines) for s in part) for name, part in split_scenes(script.scenes).items()}

# %% [markdown]
# ## What was run where
#
# Everything in this repository runs on CPU (two cores, no AVX-512) in its tests. On one H100 (torch 2.11, transformers 5.17) fine-tuning ran in bf16 and fp32, with micro-batches, resumed, and under papermill, with the same losses as on the CPU; costs were predicted and measured there, and 75 runs compared places and ranks of adapters; that code is what XPU runs too. No Intel XPU was at hand: what concerns XPU follows Intel's and PyTorch's documentation and is tested against a stand-in. Several ranks ran on CPU, on one machine and between two hosts that were network namespaces; on two NVIDIA H200 of one machine two ranks trained adapters and whole models, with DDP and FSDP, as one does (fp32 losses within 4.8e-7). More GPUs were not at hand, and SLURM was not run. Chapter 10 says what else was run on what.
#
# ## Licence
#
# Apache-2.0, for code, words and the script in `simpsons_llm/data/`. The characters' names belong to their owners; the script was written for this project, and none of its lines was taken from the show. The base models have licences of their own.
