# %% [markdown]
# # simpsons_llm
#
# > A literate, notebook-first project that turns a TV script into a character that talks.
#
# Give it a script, and it fine-tunes a language model on the dialogue with LoRA, until Homer answers like Homer:
#
# ```python
# from simpsons_llm import Character, finetune, prepare
#
# data = prepare("my_script.csv", speakers=["Homer Simpson"])
# run = finetune(data, run="runs/x", max_minutes=5)
# homer = run.character("Homer Simpson")  # or Character.load("runs/x", "Homer Simpson")
# print(homer.says("Marge Simpson: Homer, the dog is wearing your tie again."))
# ```
#
# It is a book first: each chapter is a Jupyter notebook that explains one idea, exports one module of this package, and checks its own promises. And the book runs: the chapters that are jobs are the very programs that train, started from JupyterLab, from the command line, or headlessly by papermill, once per rank. One device layer serves Intel XPU, CUDA and CPU (what was run where stands at the end). LoRA, low-rank adaptation, trains a small addition to a frozen model; [a chapter](2_lora/20_layer.ipynb) explains it from the beginning.

# %% [markdown]
# ## Two commands
#
# In a clone of this repository, with Python 3.11.5 or newer (the pinned versions need it; the tests run on 3.11 and 3.13). The first installs, and runs [the first chapter](0_start/00_start.ipynb) without a screen: from the script that comes with the package to a character that answers. It fetches 93 MB of weights once; after that everything works offline. The demo itself takes less than ten minutes on two cores:
#
# ```bash
# python -m pip install -c constraints.txt -e ".[dev]" && simpsons-llm demo
# ```
#
# The second runs the chapters top to bottom, then the tests, in about a quarter of an hour on two cores (two at a time; the variable keeps the threads of two programs from waiting in each other's way, which costs several times the time). It leaves out the two chapters that train for minutes: the demo has just run the first, and the tests run the cells of the other with a tiny model. `nbdev_test` alone runs them too, and `pytest --slow` the tests with many processes; continuous integration runs these as well:
#
# ```bash
# OMP_WAIT_POLICY=PASSIVE nbdev_test --n_workers 2 --skip_file_re '^[_.]|^00_start|^47_finetune' && python -m pytest -q -n 2 --dist worksteal
# ```
#
# `constraints.txt` pins every version. It names PyTorch 2.13.0; for XPU or another CUDA version install PyTorch from its own index first.

# %% [markdown]
# ## What comes out
#
# The demo learns from 28 episodes of original scenes, written for this project with the characters everybody knows. These are its results, read from the files that it left. Nine answers in three test scenes, at moments chosen by rule: what the script says, what the base model says, what the fine-tuned model says. A model of 135 million parameters after a few minutes on a laptop is no comedian yet.

# %%
#| eval: false
import math
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

from simpsons_llm import Run

places = [Path(folder) for folder in ("runs/demo", "0_start/runs/demo", "../runs/demo")]
demo = next((Run(p) for p in places if (p / "summary.json").is_file()), None)
if demo is None:
    print("run `simpsons-llm demo` first")
else:
    table = pd.read_json(demo.folder / "before_after.json")[["before", "speaker", "real", "base", "tuned"]]
    table.columns = ["line before", "asked", "real line", "base model", "fine-tuned"]
    rows = [list(table), ["---"] * len(table.columns), *table.values.tolist()]
    display(Markdown("\n".join("| " + " | ".join(str(x).replace("|", "\\|") for x in row) + " |" for row in rows)))

# %%
#| eval: false
if demo:
    s = demo.summary
    gain = math.exp(s.valid_loss_nats_base - s.valid_loss_nats_best)
    display(
        Markdown(
            f"Held-out loss, on lines of episodes that were never trained on: **{s.valid_loss_nats_base:.3f}** nats "
            f"per token before, **{s.valid_loss_nats_best:.3f}** after (step {s.best_step} of {s.optimizer_steps}); "
            f"each right token became {gain:.2f} times as probable (geometric mean). On the test scenes, scored once "
            f"at the end: {s.test_loss_nats_base:.3f} before, {s.test_loss_nats_best:.3f} after. {s.base_model}, "
            f"{s.real_tokens:,} tokens, {s.train_s / 60:.1f} minutes with evaluations on {s.device} ({s.dtype}), "
            f"peak memory {s.peak_mem_gib:.1f} GiB."
        )
    )

# %% [markdown]
# ## Your own script
#
# As you have it: a table with any column names, `Name: line` rows (wrapped or not), a play, a screenplay in columns, Fountain, Final Draft, subtitles, an exported chat, a saved web page, JSON of other trainers, Parquet, or a folder of `datasets`. What it is is found out and told, with the account of every row, the spellings of names that were joined, and three scenes as they were read. What does not look like dialogue is refused, with the three best guesses of what it is. [Your own script](0_start/02_your_script.ipynb) has the whole table of shapes:
#
# ```
# simpsons-llm prepare  --script simpsons_script_lines.csv --speakers "Homer Simpson,Marge Simpson" --out runs/data
# simpsons-llm finetune --data runs/data --run runs/x
# simpsons-llm infer    --adapter runs/x --speaker "Homer Simpson" "Marge Simpson: Homer, the dog is wearing your tie again."
# simpsons-llm chat     --run runs/x
# simpsons-llm evaluate --run runs/x
# simpsons-llm export   runs/x
# ```
#
# `chat` is a conversation in the terminal: play one of the characters, or let them talk among themselves (`--auto 8`); `simpsons-llm chat --run runs/x --page` opens [a page](6_talk/63_page.ipynb) in the browser, and in a notebook it is `homer.chat()`. `simpsons-llm serve --run runs/x` is [a server](6_talk/62_serve.ipynb) that other tools talk to as to OpenAI's. The page, with the demo's model, after a few minutes of training on two cores:
#
# ![a scene on the chat page, with the fine-tuned and the base model's answers side by side](6_talk/page.png)
#
# `evaluate` asks whether it is the character: loss, contrast and next speaker on held-out lines, who is heard in what the run says, whether it is told from the real lines, variety, reciting and forgetting, each with an interval, beside the base model and the script itself ([what it measures](5_character/52_evaluate.ipynb)). `simpsons-llm contrast --run runs/x --out runs/y` goes on from a run with a preference stage. `simpsons-llm estimate` tells memory and time of a run before it begins; `export` makes one plain model of base and adapter, with a card, and on request a GGUF file. Prepared data is also a `datasets.DatasetDict` (`data.to_datasets("messages")`), and `prepare --export messages.jsonl` writes it for other trainers.
#
# The same as notebooks, headlessly; the executed notebook is the log of the run (papermill by itself also runs the cells with examples and checks, which take a while):
#
# ```
# simpsons-llm run finetune --out runs/y -p data runs/data -p max_steps 10
# papermill nbs/4_train/47_finetune.ipynb out.ipynb -p data runs/data -p run runs/z -p max_steps 10
# ```
#
# The same once per rank, on many cards or machines, by torchrun, MPICH, Intel MPI, Open MPI or SLURM. Every rank leaves its notebook; if one fails, all end, and the message says which and why:
#
# ```
# simpsons-llm launch -n 4 finetune --out runs/four -p data runs/data -p max_steps 100
# mpirun -n 4 simpsons-llm rank finetune runs/own/rank{rank}.ipynb -p data runs/data -p max_steps 100
# simpsons-llm runs
# ```
#
# `simpsons-llm loop` trains with a loop that is written out instead of Trainer, step for step the same. Either way the run's `metrics.jsonl` holds losses, perplexities and what the model said on the way, and `--trackers` sends the numbers to trackio, Weights & Biases or TensorBoard too. `--recipe seed` trains as the seed did, the project that this one carries on (rank 8, alpha 16, query and key projections, one sample a line). `simpsons-llm doctor` shows what the machine offers. Every command has `--help` with examples.

# %% [markdown]
# ## The book
#
# The folders of `nbs/` are the parts of the book, and each part is the subpackage of the same name. A part uses the parts before it, and the machine room, which everyone may use. Read with `jupyter lab nbs`.
#
# | part | chapter | what it explains |
# |---|---|---|
# | **start** | [a character that talks](0_start/00_start.ipynb) | from a script to an answer in a quarter of an hour |
# | | [words](0_start/01_words.ipynb) | the words of the book, each with a number or a picture |
# | | [your script](0_start/02_your_script.ipynb) | files as people have them, read right or refused, and how one sees it |
# | **data** | [lines](1_data/10_lines.ipynb) | lines, scenes, names, and whether it is dialogue at all |
# | | [tables](1_data/11_tables.ipynb) | the public table with its damaged rows, any other table, JSON records |
# | | [text](1_data/12_text.ipynb) | typed scripts, plays, screenplays, Fountain |
# | | [formats](1_data/13_formats.ipynb) | any script: encodings, subtitles, chats, pages; here a format is added |
# | | [prepare](1_data/14_prepare.ipynb) | train, valid and test by episode |
# | | [prompt](1_data/15_prompt.ipynb) | text becomes tokens, for training and serving alike |
# | | [samples](1_data/16_samples.ipynb) | loss weights, two views of a scene, the audit before training |
# | | [packing](1_data/17_packing.ipynb) | sequences end to end, kept apart |
# | | [batches](1_data/18_batches.ipynb) | which samples make a step, and which rank computes them |
# | | [dataset](1_data/19_dataset.ipynb) | data in hand, as a `DatasetDict`, for other trainers, and its tokens kept |
# | **lora** | [layer](2_lora/20_layer.ipynb) | low rank, the LoRA layer, parameter counts |
# | | [spectra](2_lora/21_spectra.ipynb) | what fine-tuning changes, and where an adapter belongs, measured |
# | | [variants](2_lora/22_variants.ipynb) | rsLoRA, DoRA, PiSSA, LoRA+, LoftQ, QLoRA; here a variant is added |
# | **model** | [base](3_model/30_base.ipynb) | base models by name, loaded whole |
# | | [adapter](3_model/31_adapter.ipynb) | adapters on, saved, loaded, merged |
# | | [decode](3_model/32_decode.ipynb) | how a word is drawn, and drawn fast |
# | | [infer](3_model/33_infer.ipynb) | finishing a line, and how long it takes |
# | | [loss](3_model/34_loss.ipynb) | the loss of a token, and of held-out lines |
# | | [character](3_model/35_character.ipynb) | a model and a name: what one talks to |
# | | [verbatim](3_model/36_verbatim.ipynb) | how much of what a model says it has only copied |
# | **train** | [config](4_train/40_config.ipynb) | two recipes, the settings of a run, its length, optimizer and learning rate |
# | | [cost](4_train/41_cost.ipynb) | memory, arithmetic and time, told before the weights are loaded |
# | | [sharding](4_train/42_sharding.ipynb) | models in parts, one on each rank |
# | | [history](4_train/43_history.ipynb) | what a run tells: losses, perplexities, samples of text; here a tracker is added |
# | | [lifecycle](4_train/44_lifecycle.ipynb) | what surrounds the steps: data, plan, resuming, summary |
# | | [loop](4_train/45_loop.ipynb) | training written out: every line between data and adapter |
# | | [speed](4_train/46_speed.ipynb) | the fast loop: rows of one length, compiled layers, a recorded step |
# | | [finetune](4_train/47_finetune.ipynb) | fine-tuning with Trainer, on one device or many |
# | | [pitfalls](4_train/48_pitfalls.ipynb) | eight ways to train nothing, each with its run |
# | | [run](4_train/49_run.ipynb) | fine-tuning in one call, and what a run left |
# | **character** | [voice](5_character/50_voice.ipynb) | whose lines are these, and did a person write them: measured on the lines alone |
# | | [likelihood](5_character/51_likelihood.ipynb) | what a model makes of a line from the right mouth, and from others |
# | | [evaluate](5_character/52_evaluate.ipynb) | is it the character: a run beside its base and the real lines, as a report |
# | | [contrast](5_character/53_contrast.ipynb) | what the character would not say: a preference stage, and the best of several answers |
# | **talk** | [chat](6_talk/60_chat.ipynb) | a conversation: play somebody, let them talk, take words back, keep the scene |
# | | [stage](6_talk/61_stage.ipynb) | one model, many who ask: places in a queue, and who hangs up |
# | | [serve](6_talk/62_serve.ipynb) | a server that other tools talk to as to OpenAI's |
# | | [page](6_talk/63_page.ipynb) | the chat page: who is there, retry, edit, base and tuned side by side |
# | | [ollama](6_talk/64_ollama.ipynb) | GGUF files, and prompts for llama.cpp and Ollama |
# | | [template](6_talk/65_template.ipynb) | the prompt of training as a chat template, token for token |
# | | [publish](6_talk/66_publish.ipynb) | one plain model to give away, with its card |
# | | [tools](6_talk/67_tools.ipynb) | transformers, vLLM, llama.cpp: what was asked of each, and what came back |
# | | [push](6_talk/68_push.ipynb) | to the hub, with measured figures on the card, and a rehearsal first |
# | **ranks** | [collectives](7_ranks/70_collectives.ipynb) | how fast ranks talk, and whether they get it right |
# | | [execute](7_ranks/71_execute.ipynb) | a chapter under papermill |
# | | [launch](7_ranks/72_launch.ipynb) | the same once per rank, on any launcher: here ranks start |
# | | [xpu](7_ranks/74_xpu.ipynb) | Intel GPUs, a manual |
# | **bench** | [preparation](8_bench/80_preparation.ipynb) | ours beside the seed's way, measured: data |
# | | [training](8_bench/81_training.ipynb) | lines learned in a second, and seconds to the same result |
# | | [talking](8_bench/82_talking.ipynb) | words in a second, one answer and many |
# | **machine** | [device](9_machine/90_device.ipynb) | what am I running on: accelerator, number format, ranks |
# | | [job](9_machine/91_job.ipynb) | what a job is: settings, folders, locks, progress, provenance |
# | | [distributed](9_machine/92_distributed.ipynb) | ranks that meet, wait for each other and add up; the doctor |
# | | [cli](9_machine/93_cli.ipynb) | the command line |
# | | [encodings](9_machine/94_encodings.ipynb) | from bytes to text, whatever wrote them |
# | | [graphs](9_machine/95_graphs.ipynb) | work that a device has recorded |
#
# Chapters on conversations and on measures of a character are to come; their numbers are kept free. After a change: `.ci/book` formats the code, exports the modules and refreshes the text twins in `nbs/_text/`, which show changes of notebooks as plain text.

# %% [markdown]
# ## What was run where
#
# Everything in this repository runs on CPU (two cores, no AVX-512) in its tests. On one H100 (torch 2.11, transformers 5.17) fine-tuning ran in bf16 and fp32, with micro-batches, resumed, and under papermill, with the same losses as on the CPU; costs were predicted and measured there, and 112 runs compared places and ranks of adapters; that code is what XPU runs too. No Intel XPU was at hand: what concerns XPU follows Intel's and PyTorch's documentation and is tested against a stand-in. Several ranks ran on CPU, on one machine and between two hosts that were network namespaces; on two NVIDIA H200 of one machine two ranks trained adapters and whole models, with DDP and FSDP, as one does (fp32 losses within 4.8e-7). More GPUs were not at hand, and SLURM was not run. [The chapter on Intel GPUs](7_ranks/74_xpu.ipynb) says what else was run on what.
#
# ## Licence
#
# Apache-2.0, for code, words and the script in `simpsons_llm/data/`. The characters' names belong to their owners; the script was written for this project, and none of its lines was taken from the show. The base models have licences of their own.
