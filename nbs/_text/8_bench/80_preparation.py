# %%
#| default_exp bench.preparation

# %% [markdown]
# # Benchmarks
#
# > Ours beside the seed's way, both measured in one run, and only results that were really obtained.
#
# "Fast" means nothing without a second number. Each benchmark here does the same work twice on the same machine, the book's way and the way of the project that it carries on, and reports the ratio. Each side runs in a process of its own, so that neither warms up the other and the memory of each is known. The preparation of data comes first; then predictions are held against what they predicted. [Training](81_training.ipynb) and [talking](82_talking.ipynb) have chapters of their own.

# %%
#| export
import csv
import gc
import json
import os
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.packing import PackedRows
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.prompt import TextMaker, alpaca_frame
from simpsons_llm.data.samples import Sample, row_samples, scene_samples
from simpsons_llm.machine.device import find_device, find_ranks, peak_memory_gib, reset_peak_memory, synchronize
from simpsons_llm.machine.job import Progress, in_process, provenance, require
from simpsons_llm.model.base import load_config, load_tokenizer
from simpsons_llm.train.config import run_length
from simpsons_llm.train.cost import Recipe, build, estimate
from simpsons_llm.train.finetune import FinetuneConfig, make_trainer, training_arguments
from simpsons_llm.train.history import Meter

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.job import chapters_dir


# %% [markdown]
# ## A table as long as one likes
#
# The public table has 158,000 rows. For a measurement that anybody can repeat, the book's own script is repeated and varied: each episode gets new numbers, and every fifth word is drawn anew from the script's vocabulary, so that the tokenizer does not see the same lines again.

# %%
#| export
def varied_table(
    path,  # the CSV file to write
    lines: int,  # rows, without the header
    seed: int = 0,  # of the drawn words
) -> Path:  # the file
    "A table of any length in the format of simpsons_script_lines.csv."
    with open(read_script("springfield").path, encoding="utf8", newline="") as f:
        header, *rows = csv.reader(f)
    at, rng = {n: i for i, n in enumerate(header)}, random.Random(seed)
    words, episodes = [w for r in rows for w in r[at["spoken_words"]].split()], len({r[at["episode_id"]] for r in rows})
    with open(path, "w", encoding="utf8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(header)
        for i in range(lines):
            again, k = divmod(i, len(rows))
            row: list = list(rows[k])
            row[at["id"]], row[at["episode_id"]] = i + 1, int(row[at["episode_id"]]) + again * episodes
            if row[at["spoken_words"]]:
                said = " ".join(rng.choice(words) if rng.random() < 0.2 else w for w in row[at["spoken_words"]].split())
                row[at["spoken_words"]], row[at["raw_text"]] = said, f"{row[at['raw_character_text']]}: {said}"
            writer.writerow(row)
    return Path(path)


# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    varied = read_script(varied_table(Path(folder) / "x.csv", 5000))
assert varied.account()["rows"] == varied.account()["kept"] == 5000
original = {line.text for line in read_script("springfield").lines}
assert sum(line.text in original for line in varied.lines) < 0.25 * len(varied.lines)


# %% [markdown]
# ## The book's way
#
# Read, split by episode, make samples with weights, pack into rows of 1,024 tokens. The view is `scenes`, or `rows` to compare like with like.

# %%
#| export
def ours_prepare(
    table: str,  # a CSV file
    base_model: str,  # whose tokenizer
    view: str = "scenes",  # scenes or rows
    row_len: int = 1024,  # tokens of a packed row
) -> dict:  # seconds of each stage and in all; samples, tokens, rows, filling
    "From a table to packed rows, the book's way."
    times: dict[str, float] = {}
    tokenizer, start = load_tokenizer(base_model), time.perf_counter()

    def stage(name):
        times[f"{name}_s"] = time.perf_counter() - start - sum(times.values())

    script = read_script(table)
    stage("read")
    parts = split_scenes(script.scenes)
    stage("split")
    maker = TextMaker(tokenizer)
    made = {
        n: scene_samples(p, maker, [], row_len)[0]
        if view == "scenes"
        else row_samples(p, maker, [], min(256, row_len))[0]
        for n, p in parts.items()
    }
    stage("samples")
    packed = {n: PackedRows(x, row_len) for n, x in made.items()}
    for p in packed.values():
        p.arrays(tokenizer.pad_token_id)
    stage("pack")
    tokens = sum(len(x.input_ids) for xs in made.values() for x in xs)
    return {
        "seconds": time.perf_counter() - start,
        **times,
        "lines": len(script.lines),
        "samples": sum(map(len, made.values())),
        "tokens": tokens,
        "packed_rows": sum(map(len, packed.values())),
        "filling": packed["train"].filling,
        "learned_tokens": sum(x.learned for xs in made.values() for x in xs),
    }


# %% [markdown]
# ## The seed's way
#
# Records with the lines before (written as JSON by one program, read as JSON by the next), a random split of rows, and `datasets.map` over one sample at a time: the Alpaca prompt, cut off at 256 tokens, the end token added if there is room, labels equal to inputs. Nothing is packed; the tokenized splits are saved, as the seed does.

# %%
#| export
def seed_prepare(
    table: str,  # a CSV file
    base_model: str,  # whose tokenizer
) -> dict:  # seconds in all; samples, tokens
    "From a table to tokenized rows, the seed's way."
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    before: list[str] = []
    tokenizer, records, place, start = load_tokenizer(base_model), [], None, time.perf_counter()
    with open(table, encoding="utf8", newline="") as f:
        for row in csv.DictReader(f):
            here = (row["episode_id"], row["raw_location_text"])
            if here != place:
                before, place = [], here
            if row["speaking_line"] != "true" or not row["spoken_words"]:
                continue
            records.append(
                {
                    "instruction": "\n".join(before[-10:]),
                    "input": row["raw_character_text"],
                    "output": row["spoken_words"],
                }
            )
            before.append(f"{row['raw_character_text']}: {row['spoken_words']}")
    progress, done = Progress(len(records), "the seed's way", "samples"), 0

    def tokenize(record):
        nonlocal done
        begin, end = alpaca_frame(record["input"])
        ids = tokenizer(
            f"{begin}{record['instruction']}{end} {record['output']}", truncation=True, max_length=256, padding=False
        )
        if ids["input_ids"][-1] != tokenizer.eos_token_id and len(ids["input_ids"]) < 256:
            ids["input_ids"].append(tokenizer.eos_token_id)
            ids["attention_mask"].append(1)
        ids["labels"] = ids["input_ids"].copy()
        done += 1
        progress(done)
        return ids

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data.json").write_text(json.dumps(records), encoding="utf8")
        data = load_dataset("json", data_files=str(Path(folder, "data.json")), cache_dir=folder)[
            "train"
        ].train_test_split(test_size=min(200, len(records) // 10), seed=42, shuffle=True)
        data = {name: part.shuffle(seed=42).map(tokenize) for name, part in data.items()}
        for name, part in data.items():
            part.save_to_disk(str(Path(folder, name)))
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "samples": len(records),
            "tokens": sum(map(len, data["train"]["input_ids"])) + sum(map(len, data["test"]["input_ids"])),
        }


# %% [markdown]
# ## One process for each side
#
# What a process has loaded or kept cannot help the next one, and its peak memory is its own. What takes seconds is run three times, and the median counts; what takes minutes averages over its own length.

# %%
#| export
def median_of(
    runs: int,  # how often
    function: str,  # "module:function" of this package
    **arguments,  # its arguments, plain data
) -> dict:  # the result of the run with the median of `seconds`
    "Several processes one after the other, the middle one counts."
    return sorted((in_process(function, **arguments) for _ in range(runs)), key=lambda r: r["seconds"])[runs // 2]


# %% [markdown]
# Every benchmark reports in the same rows, which `--json FILE` writes down. Of seconds and of memory less is better, of tokens in a second more; the ratio says in either case how many times better ours is than the seed's. Some numbers are only told, such as the seconds of steps that do not learn the same.

# %%
#| export
def bench_row(
    name: str,  # what was measured
    ours: float | None,  # the book's way; None: it did not get there
    seed: float | None = None,  # the seed's way; None: not measured
    unit: str = "s",  # unit of all sides
    device: str = "cpu",  # the device's name
    peer: float | None = None,  # what a careful user of the libraries gets; None: not measured
    better: str = "less",  # what is better, less or more; neither: the sides are not to be compared
) -> dict:  # name, ours, seed, peer, ratio (how many times better ours is than the seed's), unit, device, versions
    "One result, ours beside the seed's."
    require(better in ("less", "more", "neither"), f"better={better!r} was given; expected less, more or neither")
    above, below = {"less": (seed, ours), "more": (ours, seed)}.get(better, (None, None))
    return {
        "name": name,
        "ours": ours,
        "seed": seed,
        "peer": peer,
        "ratio": above / below if above is not None and below else None,
        "unit": unit,
        "device": device,
        "versions": provenance(),
    }


# %% [markdown]
# Three seconds beside six, and twenty tokens a second beside ten, are both twice as good:

# %% tags=["example"]
pair = [
    bench_row("a job", 3.0, 6.0),
    bench_row("its speed", 20.0, 10.0, "tokens/s", peer=15.0, better="more"),
    bench_row("a step of it", 0.5, 9.0, better="neither"),
]
pd.DataFrame(pair).drop(columns="versions")

# %% tags=["check"]
assert [r["ratio"] for r in pair] == [2.0, 2.0, None] and bench_row("never", None, 6.0)["ratio"] is None


# %%
#| export
def bench_prepare(
    lines: int = 158_000,  # rows of the table
    base_model: str = "smollm2-135m",  # whose tokenizer
    sizes: tuple = (),  # more tables, ours alone: does the cost grow in proportion?
) -> list:  # what `bench_row` makes
    "From a table to packed rows: seconds and memory, ours beside the seed's way."
    require(
        lines >= 1000 and all(n >= 1000 for n in sizes),
        f"{min([lines, *sizes])} lines were given; expected 1,000 or more",
    )
    load_tokenizer(base_model)  # fetch it now, not inside a measurement
    device = find_device("cpu").name
    with tempfile.TemporaryDirectory() as folder:
        table = str(varied_table(Path(folder) / "table.csv", lines))
        print(f"a table of {lines:,} rows, {os.path.getsize(table) / 1e6:.0f} MB; the book's way ...", flush=True)
        ours = median_of(3, "bench.preparation:ours_prepare", table=table, base_model=base_model)
        like = in_process("bench.preparation:ours_prepare", table=table, base_model=base_model, view="rows")
        seed = in_process("bench.preparation:seed_prepare", table=table, base_model=base_model)
        rows = [
            bench_row(
                f"prepare {lines:,} rows: table to packed rows, scenes", ours["seconds"], seed["seconds"], "s", device
            ),
            bench_row(
                f"prepare {lines:,} rows: table to packed rows, one sample a line",
                like["seconds"],
                seed["seconds"],
                "s",
                device,
            ),
            bench_row(f"prepare {lines:,} rows: tokens to train on", ours["tokens"], seed["tokens"], "tokens", device),
            bench_row(f"prepare {lines:,} rows: peak memory", ours["peak_gib"], seed["peak_gib"], "GiB", device),
        ]
        rows += [
            bench_row(f"prepare {lines:,} rows: {k.removesuffix('_s')}", ours[k], unit="s", device=device)
            for k in ("read_s", "split_s", "samples_s", "pack_s")
        ]
        for n in sizes:
            grown = median_of(
                3 if n < 200_000 else 1,
                "bench.preparation:ours_prepare",
                table=str(varied_table(Path(folder) / "grown.csv", n)),
                base_model=base_model,
            )
            print(f"{n:,} rows: {grown['seconds']:.2f} s", flush=True)
            rows += [
                bench_row(
                    f"prepare {n:,} rows: seconds for 1,000 rows", 1000 * grown["seconds"] / n, unit="s", device=device
                ),
                bench_row(f"prepare {n:,} rows: peak memory", grown["peak_gib"], unit="GiB", device=device),
            ]
    return rows


# %% [markdown]
# A short run shows the form of the result; its ratio means little, since starting costs are a large part of it:

# %% tags=["example"]
short = bench_prepare(2000, "tiny")
pd.DataFrame(short).drop(columns=["versions", "peer"]).round(3)

# %% tags=["check"]
facts = {"name", "ours", "seed", "peer", "ratio", "unit", "device", "versions"}
assert all(set(r) == facts and r["ours"] > 0 for r in short)
assert short[0]["ratio"] == short[0]["seed"] / short[0]["ours"] > 1

# %% [markdown]
# ## Results: preparing data
#
# The whole length of the public table, with the tokenizer of SmolLM2 (run by hand: `simpsons-llm bench prepare --sizes 10000,30000,100000,300000,1000000`; two cores, seconds are of that machine, the ratio is what to look at).

# %%
#| eval: false
full = bench_prepare(sizes=(10_000, 30_000, 100_000, 300_000, 1_000_000))

# %%
#| eval: false
table = pd.DataFrame(full).drop(columns=["versions", "peer"])
table[table.seed.notna() | ~table.name.str.contains("1,000 rows|0,000 rows: peak")].round(3)

# %% [markdown]
# Does the cost grow in proportion? Seconds for a thousand rows, from ten thousand rows to a million; a flat line means that it does:

# %%
#| eval: false
grown = pd.DataFrame(
    [(int(r["name"].split()[1].replace(",", "")), r["unit"], r["ours"]) for r in full[8:]],
    columns=["rows", "unit", "value"],
).pivot(index="rows", columns="unit", values="value")
grown.columns = ["peak memory (GiB)", "s for 1,000 rows"]
ax = grown["s for 1,000 rows"].plot(
    marker="o", logx=True, ylim=(0, 1.2 * grown["s for 1,000 rows"].max()), figsize=(6.4, 2.8), color="#1f5fa8"
)
ax.set_xlabel("rows of the table")
ax.set_ylabel("s for 1,000 rows")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
grown.round(4)


# %% [markdown]
# ## Is the estimate right?
#
# [The chapter on costs](../4_train/41_cost.ipynb) tells memory and time of a training step before it is done. Here the step is done: the trainer of the finetune chapter takes a few steps with the whole model, and its time and peak stand beside the estimate, which was made first, in the same process. One thing at a time is changed: rank, targets, length, batch, checkpointing, everything trained. The weights are random, which changes neither; so a model can be measured whose weights are not at hand.

# %%
#| export
def settings_to_cost(
    device_type: str,  # "cpu": sizes for a laptop; else for a large GPU
) -> dict:  # name -> (base model, `Recipe`)
    "The settings whose cost is predicted and measured."
    # brings PyTorch, which the preparation of data does without
    from simpsons_llm.lora.layer import LoRASettings

    small, large = "smollm2-135m", "openlm-research/open_llama_3b"
    n, qk = (256 if device_type == "cpu" else 512), LoRASettings(8, 16, 0.0, "q_proj,k_proj")

    def of(count, length=n, **more):
        return Recipe(seq_lens=(length,) * count, **more)

    few = 2 if device_type == "cpu" else 4
    rows = {
        f"r 16, all linear, {few} x {n}": (small, of(few)),
        "rank 64": (small, of(few, lora=LoRASettings(64, 128))),
        "q and k, rank 8": (small, of(few, lora=qk)),
        f"length {2 * few * n // 2}": (small, of(1, few * n)),
        f"{2 * few} x {n}": (small, of(2 * few)),
        f"{few} x {n}, checkpointing": (small, of(few, gradient_checkpointing=True)),
        f"{few} x {n}, answers only": (small, of(few, learned=few * n // 4)),
        f"full, {few} x {n}": (small, of(few, lora=None)),
    }
    if device_type != "cpu":
        rows |= {
            f"3B: r 16, all linear, 8 x {n}": (large, of(8)),
            f"3B: q and k, rank 8, 8 x {n}": (large, of(8, lora=qk)),
            f"3B: 16 x {n}, checkpointing": (large, of(16, gradient_checkpointing=True)),
            "3B: length 4,096": (large, of(1, 4096)),
            f"3B: full, 2 x {n}": (large, of(2, lora=None)),
        }
    return rows


def cost_of(
    base_model: str,  # whose shape
    recipe: dict,  # a `Recipe` as a dict
    device_type: str = "auto",  # where
    steps: int = 8,  # optimizer steps, of which the first two are not timed
) -> dict:  # predicted and measured: step_s, peak_gib, trainable
    "One setting: the estimate first, then real steps of the trainer."
    from transformers import PrinterCallback, TrainerCallback

    step, device = Recipe(**recipe), find_device(device_type)
    config, times = load_config(base_model, device.type), []
    told = estimate(config, step, device, timed=True)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            synchronize(device)
            self.begin = time.perf_counter()

        def on_step_end(self, *_, **__):
            synchronize(device)
            times.append(time.perf_counter() - self.begin)

    model = build(config, step, device.dtype, device.torch)
    n, learned = len(step.seq_lens), (step.learned or step.tokens) / step.tokens
    samples = [
        Sample([5] * k, [0.0] * (k - round(k * learned)) + [1.0] * round(k * learned)) for k in step.seq_lens
    ] * (steps * step.gradient_accumulation_steps)
    with tempfile.TemporaryDirectory() as folder:
        settings = FinetuneConfig(
            run=folder,
            micro_batch_size=n,
            global_batch_size=n * step.gradient_accumulation_steps,
            max_steps=steps,
            gradient_checkpointing=step.gradient_checkpointing,
            eval_steps=steps + 1,
        )
        arguments = training_arguments(settings, len(samples), device)
        arguments.eval_strategy = arguments.save_strategy = "no"
        arguments.load_best_model_at_end = False
        trainer = make_trainer(
            model,
            arguments,
            samples,
            samples[:1],
            0,
            Meter(find_ranks(), device, run_length(settings, len(samples))),
            folder,
            [Clock()],
            grouped=not step.packed,
        )
        trainer.remove_callback(PrinterCallback)
        reset_peak_memory(device)
        trainer.train()
    step_s, peak = sorted(times[2:])[len(times[2:]) // 2], peak_memory_gib(device)
    del trainer, model
    gc.collect()
    if device.type != "cpu":
        import torch

        getattr(torch, device.type).empty_cache()
    return {
        "predicted": {"step_s": told.step_s, "peak_gib": told.peak_mem_gib},
        "measured": {"step_s": step_s, "peak_gib": peak},
        "trainable": told.trainable,
        "tokens": told.tokens,
        "device": device.name,
        "dtype": device.dtype,
        "flop_per_token": told.flop_per_token,
    }


# %%
#| export
def bench_costs(
    device: str = "auto",  # xpu, cuda or cpu; auto: the best there is
    only: str = "",  # settings whose name has this in it; "": all
) -> list:  # rows: setting, tokens, predicted and measured seconds of a step and GiB, and their ratios
    "Predicted beside measured, one setting after the other; on a CPU each in a process of its own."
    kind, rows = find_device(device).type, []
    for name, (base, recipe) in settings_to_cost(kind).items():
        if only not in name:
            continue
        load_config(base, kind)
        if kind == "cpu":
            r = in_process(
                "bench.preparation:cost_of", base_model=base, recipe=asdict(recipe), device_type=kind, steps=6
            )
        else:
            r = cost_of(base, asdict(recipe), kind, steps=14)  # its memory is counted by tensor, so one process will do
        told, real = r["predicted"], r["measured"]
        rows.append(
            {
                "setting": name,
                "base": base,
                "tokens": r["tokens"],
                "trainable": r["trainable"],
                "step_s predicted": told["step_s"],
                "step_s measured": real["step_s"],
                "time ratio": told["step_s"] / real["step_s"],
                "GiB predicted": told["peak_gib"],
                "GiB measured": real["peak_gib"],
                "memory ratio": told["peak_gib"] / real["peak_gib"],
                "device": r["device"],
                "dtype": r["dtype"],
            }
        )
        print(
            f"{name}: {told['step_s']:.3f} s predicted, {real['step_s']:.3f} measured; "
            f"{told['peak_gib']:.2f} GiB predicted, {real['peak_gib']:.2f} measured",
            flush=True,
        )
    require(rows, f"only={only!r} was given; expected part of a setting's name: {'; '.join(settings_to_cost(kind))}")
    return rows


# %% [markdown]
# One setting of the tiny model shows the form. Its steps take milliseconds, so its time is mostly the trainer's own.

# %% tags=["example"]
one = cost_of("tiny", asdict(Recipe(lora=LoRASettings(4, 8), seq_lens=(256, 256))), "cpu", steps=6)
pd.DataFrame({k: one[k] for k in ("predicted", "measured")}).round(3)

# %% [markdown]
# The settings themselves were run by hand, `simpsons-llm bench costs` on two CPU cores and `tests/gpu_costs.py` on one H100; what they found is kept beside the book.

# %% tags=["example"]
found = pd.read_json(chapters_dir() / "_results" / "costs.jsonl", lines=True)
held = found.dropna(subset=["memory ratio"])
held.assign(device=held.device.str.replace("NVIDIA ", "").str.replace(" 80GB HBM3", ""))[
    [
        "device",
        "setting",
        "tokens",
        "step_s predicted",
        "step_s measured",
        "time ratio",
        "GiB predicted",
        "GiB measured",
        "memory ratio",
    ]
].round(3)

# %% tags=["example"]
groups = [(name.replace("NVIDIA ", "").replace(" 80GB HBM3", ""), rows) for name, rows in held.groupby("device")]
tall = [len(rows) for _, rows in groups]
fig, axes = plt.subplots(
    len(groups), 1, figsize=(8, 0.24 * sum(tall) + 1.4), height_ratios=tall, sharex=True, layout="constrained"
)
for ax, (name, rows) in zip(axes, groups):
    rows = rows.sort_values("memory ratio")
    ax.axvline(1, color="grey", linewidth=1)
    for what, color, mark in (("memory ratio", "#1f5fa8", "o"), ("time ratio", "#c0504d", "D")):
        ax.plot(rows[what], range(len(rows)), mark, color=color, markersize=4, label=what.replace(" ratio", ""))
    ax.set_yticks(range(len(rows)), rows.setting, fontsize=7)
    ax.set_title(name, fontsize=9, loc="left")
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=8)
axes[-1].set_xlabel("predicted / measured")
plt.show()
worst = {
    name: (max(abs(rows["memory ratio"] - 1)), max(abs(rows["time ratio"] - 1)))
    for name, rows in held.groupby("device")
}
print("; ".join(f"{name}: memory within {m:.1%}, time within {t:.1%}" for name, (m, t) in worst.items()))

# %% [markdown]
# A base in 4 bits was loaded too; its step was not measured on the GPU in its present form, its weights were:

# %% tags=["example"]
found[found["weights_gib measured"].notna()][
    ["device", "setting", "weights_gib predicted", "weights_gib measured"]
].round(3)

# %% [markdown]
# Memory is counted, so it is off by little: what the kernels need for themselves, and on a CPU the holes in the process's memory. Time is measured on a quiet machine; on one with other work in the background both sides wander, and their ratio with them.

# %% tags=["check"]
assert (abs(held["memory ratio"] - 1) < 0.15).all() and (abs(held["time ratio"] - 1) < 0.20).all()
assert held.groupby("device").setting.nunique().min() >= 6
