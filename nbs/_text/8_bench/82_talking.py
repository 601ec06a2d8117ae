# %%
#| default_exp bench.talking

# %% [markdown]
# # Talking, measured
#
# > How many words in a second: one answer, and many at once, the book's way beside the seed's and that of the libraries.
#
# An answer is drawn token by token, and each token needs the whole model once. So the time of an answer is that of some sixty passes through the model, in which little is computed and much is waited for: for weights to be read, and for the processor to launch the next kernel. What helps is to have less to do in each pass (the adapter merged into the weights, one draft in place of five), and to be asked many things at once.
#
# The seed asked its model with the adapter beside the weights, five beams, and settings of its own. Here all sides answer the same questions with exactly the same number of tokens.

# %%
#| export
import math
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

from simpsons_llm.bench.preparation import bench_row
from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import Draws, find_device, find_ranks, set_threads, synchronize
from simpsons_llm.machine.job import Progress, in_process, require
from simpsons_llm.model.adapter import add_adapter, find_trained, load_tuned, merge
from simpsons_llm.model.base import find_base, load_base, load_tokenizer
from simpsons_llm.model.decode import SAMPLING, Sampling, in_8_bits
from simpsons_llm.model.infer import ask_batch, bench_answer, finish_lines

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd
import torch

from simpsons_llm.machine.job import chapters_dir, read_jsonl


# %% [markdown]
# ## What is asked
#
# Moments of the book's test scenes, each with four lines before it. The questions are of unlike length, as real ones are.

# %%
#| export
def some_requests(
    count: int,  # how many, 1 or more
) -> list:  # (location, `Line`s before, speaker)
    "Moments at which somebody speaks; from the beginning again where there are too few."
    scenes = split_scenes(read_script("springfield").scenes)["test"]
    found = [(s.location, s.lines[i - 4 : i], s.lines[i].speaker) for s in scenes for i in range(4, len(s.lines))]
    return list(islice(cycle(found), count))


# %% tags=["example"]
pd.DataFrame(
    [(where, before[-1].speaker, before[-1].text[:60], who) for where, before, who in some_requests(3)],
    columns=["location", "line before by", "line before", "asked"],
)


# %% [markdown]
# ## Just so many tokens
#
# An answer ends with its line, sooner or later, and a way of answering that falls silent early would look fast. `generate` can be told to go on (`min_new_tokens`). The book's `finish_lines` stops at the tokens that its maker names; so it gets a maker that names one that no model can say.

# %%
#| export
class EndlessMaker(TextMaker):
    "A maker whose answers never end by themselves."

    stop_ids = [-1]  # no token has this number


def endless(
    maker: TextMaker,  # tokenizer and template
) -> TextMaker:
    "The same maker, for answers of a fixed number of tokens."
    return EndlessMaker(maker.tokenizer, maker.template, maker.max_seq_len, maker.date)


# %% [markdown]
# The tiny model is a random one and ends its lines at random. How often it is asked for a token shows how many it says:

# %% tags=["example"]
where = find_device("cpu")
tiny, tiny_tokenizer = load_base("tiny", where)
tiny.eval()
passes = []
tiny.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
plain, told = TextMaker(tiny_tokenizer), {}
for name, maker in (("ends by itself", plain), ("endless", endless(plain))):
    passes.clear()
    finish_lines(tiny, maker, some_requests(1), Sampling(max_new_tokens=400, top_k=0, top_p=1.0, temperature=2.0))
    told[name] = len(passes)
told

# %% tags=["check"]
assert told["endless"] >= 400 > told["ends by itself"] and endless(plain).end == plain.end


# %% [markdown]
# ## The model
#
# A run's model, or a base with a fresh adapter. The matrix B of a fresh adapter is zero, and then merging would change nothing; so it gets random numbers here. The seed's side has the seed's small adapter (rank 8 on query and key), the others the book's; with `adapter` all have the one of that run.

# %%
#| export
def talking_model(
    adapter: str,  # a run's folder, an adapter's or a whole model's; empty: a fresh adapter on the base
    base_model: str,  # for a fresh adapter: a hub id, folder or short name
    device,  # the `Device`
    small: bool = False,  # a fresh adapter as the seed's
) -> tuple:  # (model with its adapter, `TextMaker`)
    "What is asked."
    import torch

    from simpsons_llm.lora.layer import LoRASettings

    if adapter:
        model, tokenizer, notes = load_tuned(adapter, device)
        return model, TextMaker.of_notes(tokenizer, notes)
    model, tokenizer = load_base(base_model, device)
    model = add_adapter(model, LoRASettings(8, 16, 0.05, "q_proj,k_proj") if small else LoRASettings())
    with torch.no_grad(), Draws(torch.device(device.torch), 0):
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.01)
    return model.eval(), TextMaker(tokenizer)


# %% tags=["check"]
fresh, maker = talking_model("", "tiny", where)
batch = ask_batch(fresh, maker, some_requests(1), Sampling())
with torch.no_grad():
    tuned, base = fresh(**batch).logits, None
    with fresh.disable_adapter():
        base = fresh(**batch).logits
    merged = merge(fresh)(**batch).logits
assert (tuned - base).abs().max() > 1e-3 > 10 * (tuned - merged).abs().max()
ranks = [p.shape[0] for n, p in talking_model("", "tiny", where, small=True)[0].named_parameters() if "lora_A" in n]
assert set(ranks) == {8} and len(ranks) == 4

# %% [markdown]
# ## Three sides
#
# *seed*: the adapter beside the weights, `generate` with five beams and the seed's settings. *peer*: what a careful user of transformers gets; on an accelerator the merged model, one question with a static cache, for which `generate` compiles by itself (many at once without, since that compiles for minutes), on a CPU plain `generate` with the adapter beside the weights. *ours*: the merged model, asked by the book, and then in [the faster way that it offers](../3_model/32_decode.ipynb): compiled on an accelerator, with weights in 8 bits on a CPU. All draw words by lot. What comes first (loading, and then recording or compiling) is not in the tokens per second, but the time of the first answer is told.

# %%
#| export
SIDES = ("ours", "seed", "peer")


def generate_exactly(
    model,  # with or without adapter
    maker: TextMaker,  # tokenizer and template
    requests: list,  # what `some_requests` gave
    sampling: Sampling,  # `max_new_tokens` of it are drawn
    random_seed: int = 0,  # of the sampling
    **more,  # for `generate`
):
    "transformers' own way, with just so many tokens."
    import torch

    batch, n = ask_batch(model, maker, requests, sampling), sampling.max_new_tokens
    ends: dict[str, Any] = {"eos_token_id": maker.stop_ids, "pad_token_id": maker.tokenizer.pad_token_id}
    with torch.no_grad(), Draws(model.device, random_seed):
        out = model.generate(**batch, **sampling.arguments(), **ends, min_new_tokens=n, **more)
    drawn = out.shape[1] - batch["input_ids"].shape[1]
    require(drawn == n and len(out) == len(requests), f"{n} tokens were to be drawn, and {drawn} were")


def talk_side(
    side: str,  # ours, seed or peer
    adapter: str,  # a run's folder; empty: a fresh adapter
    base_model: str,  # for a fresh adapter
    prompts: int,  # questions at once, besides the one alone
    tokens: int,  # of each answer
    runs: int,  # timed runs, 2 or more
    device: str = "auto",  # xpu, cuda or cpu
) -> dict:  # first_s; one and many: tokens in a second; ours also: one_faster and, on an accelerator, many_faster
    "One side, asked one thing and many."
    require(side in SIDES, f"side={side!r} was given; expected {', '.join(SIDES)}")
    where = find_device(device)
    if where.type == "cpu":
        set_threads(find_ranks())
    model, maker = talking_model(adapter, base_model, where, small=side == "seed")
    maker.max_seq_len = None  # a short training is no reason to forget lines
    if side == "ours" or side == "peer" and where.type != "cpu":
        model = merge(model).eval()
    sampling = SAMPLING["seed" if side == "seed" else "book"].changed(max_new_tokens=tokens)
    static = {"cache_implementation": "static"} if side == "peer" and where.type != "cpu" else {}
    one, many = some_requests(1), some_requests(prompts)
    label, progress = {"ours": "the book's way", "seed": "the seed's way", "peer": "transformers"}[side], None

    def ask(requests, i):
        if side == "ours":
            finish_lines(model, endless(maker), requests, sampling, i)
        else:
            generate_exactly(model, maker, requests, sampling, i, **(static if requests is one else {}))

    def timed(requests, i):
        synchronize(where)
        start = time.perf_counter()
        ask(requests, i)
        synchronize(where)
        if progress:
            progress(i)
        return time.perf_counter() - start

    print(f"{label}: the first answer ...", flush=True)
    first_s = timed(one, 0)
    print(f"{label}: {first_s:.1f} s; {runs} more, then {runs} times {prompts} at once", flush=True)
    if side == "ours":
        found = {"first_s": first_s, **ours_timed(model, maker, one, many, sampling, runs, where)}
        print(f"{label}: " + ", ".join(f"{k} {v:,.1f}" for k, v in found.items()), flush=True)
        return found
    timed(one, 0)
    alone = tokens / statistics.mean(timed(one, i) for i in range(runs))
    print(f"{label}: {alone:,.1f} tokens/s", flush=True)
    progress = Progress(runs, f"{label}, {prompts} at once", "runs", every_s=5)
    if where.type != "cpu":
        timed(many, 0)  # another shape
    seconds = statistics.mean(timed(many, i) for i in range(1, runs + 1))
    return {"first_s": first_s, "one": alone, "many": prompts * tokens / seconds}


def ours_timed(
    model,  # merged
    maker: TextMaker,  # tokenizer and template
    one: list,  # a request
    many: list,  # requests
    sampling: Sampling,  # `max_new_tokens` of it are drawn
    runs: int,  # timed runs, 2 or more
    device,  # the `Device`
) -> dict:  # one, many, one_faster and, on an accelerator, many_faster: tokens in a second
    "The book's way, and the faster one."

    def speed(requests, how="auto", of=model):
        return bench_answer(of, maker, requests, sampling, runs, 1, device, how)["tokens_per_s"]

    found = {"one": speed(one), "many": speed(many)}
    if device.type == "cpu":
        return found if device.dtype != "float32" else {**found, "one_faster": speed(one, of=in_8_bits(model))}
    return {**found, "one_faster": speed(one, "layers"), "many_faster": speed(many, "layers")}


# %% [markdown]
# ## The benchmark

# %%
#| export
def bench_infer(
    adapter: str = "",  # a run's folder; empty: a fresh adapter on the base
    base_model: str = "smollm2-135m",  # for a fresh adapter: a hub id, folder or short name
    prompts: int | None = None,  # questions at once; None: 8 on a CPU, else 64
    tokens: int = 60,  # of each answer, 2 or more
    runs: int | None = None,  # timed runs of each, 2 or more; None: 2 on a CPU, else 12 as the seed's benchmark has
    device: str = "auto",  # xpu, cuda or cpu; auto: the best there is
    tell: Callable[[list], Any] | None = None,  # hears the rows that are known when a side is done, the last one not
) -> list:  # what `bench_row` makes; ValueError or a file error if it cannot be
    "Talking: tokens in a second, ours beside the seed's way and the libraries'."
    where = find_device(device)
    small = where.type == "cpu"
    prompts, runs = (8 if small else 64) if prompts is None else prompts, (2 if small else 12) if runs is None else runs
    for name, value, least in (("prompts", prompts, 1), ("tokens", tokens, 2), ("runs", runs, 2)):
        require(value >= least, f"{name}={value} was given; expected {least} or more")
    if adapter:
        trained = find_trained(adapter)
        base_model = trained.notes.get("base_model") or base_model
    find_base(base_model, where.type)
    load_tokenizer(base_model)  # fetched now, not inside a measurement
    given = {"adapter": adapter, "base_model": base_model, "prompts": prompts, "tokens": tokens, "runs": runs}
    print(f"{base_model} on {where.name}: {tokens} tokens for an answer, on all sides", flush=True)
    found: dict[str, dict] = {}
    name = f"talk {base_model}"
    faster = "ours with weights in 8 bits" if small else "ours compiled"

    def row(what, key, unit, better, own=""):
        ours, seed, peer = (found.get(s, {}).get(k) for s, k in zip(SIDES, (own or key, key, key)))
        return bench_row(f"{name}: {what}", ours, seed, unit, where.name, peer, better) if ours else None

    def rows():
        made = (
            row("1 prompt", "one", "tokens/s", "more"),
            row(f"1 prompt, {faster}", "one", "tokens/s", "more", "one_faster"),
            row(f"{prompts} prompts at once", "many", "tokens/s", "more"),
            row(f"{prompts} prompts at once, {faster}", "many", "tokens/s", "more", "many_faster"),
            row("the first answer, with what is recorded or compiled", "first_s", "s", "less"),
        )
        return [r for r in made if r]

    for side in SIDES:
        found[side] = in_process("bench.talking:talk_side", side=side, **given, device=where.type)
        if tell and side != SIDES[-1]:
            tell(rows())
    return rows()


# %% [markdown]
# The form, on the tiny model:

# %% tags=["example"]
short = bench_infer(base_model="tiny", prompts=4, tokens=12, device="cpu")
pd.DataFrame(short).drop(columns=["versions", "device"]).round(3)

# %% tags=["check"]
assert all(r[s] > 0 for r in short for s in SIDES) and short[0]["ratio"] == short[0]["ours"] / short[0]["seed"]
assert short[-1]["ratio"] == short[-1]["seed"] / short[-1]["ours"] and len(short) == 4
assert all(math.isfinite(r["ratio"]) for r in short)

# %% [markdown]
# What a kept record holds of longer runs (`simpsons-llm bench infer --json bench.json`), on one H200 with 3 runs of each (PyTorch 2.11, 30 November 2026). One answer of SmolLM2 is 13 times as fast as the seed's way, compiled 24 times; for three billion parameters it is 6 and 9. The seed's 64 answers of SmolLM2 took 19 s for three times (some 600 tokens/s), and were stopped with the rest of that run before they were written down. The third side, transformers with a static cache, compiled for longer than the minute that was left to it there, with both models; the empty column says so.

# %% tags=["example"]
kept = pd.DataFrame(read_jsonl(chapters_dir() / "_results" / "bench.jsonl"))
kept = kept[kept.name.str.startswith("talk ")].drop(columns="versions")
kept.round(3)

# %% tags=["check"]
alone = kept.set_index("name")["ours"].filter(like=": 1 prompt")
assert alone["talk smollm2-135m: 1 prompt, ours compiled"] > 500 and alone.filter(like="open_llama").min() > 150
assert kept["ratio"].filter(kept.index[kept.name.str.contains("open_llama.*prompts at once")]).min() > 4


# %% [markdown]
# What costs the seed its time? Five drafts are five times the arithmetic, and the adapter is a second, small product beside each of the large ones. Passes through the model and products in one pass, counted:

# %% tags=["example"]
def products(model):
    "Matrix products of one pass."
    seen = []
    hooks = [
        m.register_forward_hook(lambda *_: seen.append(1)) for m in model.modules() if isinstance(m, torch.nn.Linear)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]], device=model.device))
    for h in hooks:
        h.remove()
    return len(seen)


counts = {
    "the seed's, beside": products(talking_model("", "tiny", where, small=True)[0]),
    "the book's, beside": products(talking_model("", "tiny", where)[0]),
    "merged": products(merge(talking_model("", "tiny", where)[0])),
}
ax = pd.Series(counts).plot.barh(figsize=(6.4, 1.8), color=["#4f86c6", "#c9c9c9", "#f2c500"])
ax.set_xlabel("products of matrices in one pass of the tiny model")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
counts

# %% tags=["check"]
assert counts["merged"] < counts["the seed's, beside"] < counts["the book's, beside"] == 3 * counts["merged"] - 2

# %% [markdown]
# You can now measure an answer, and tell a model that is slow from one that says more.
