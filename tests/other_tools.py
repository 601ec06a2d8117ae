"""A published folder in other people's programs, started as `export` prints it, asked by `openai`, beside our answers.

    python tests/other_tools.py ENVIRONMENTS RUN OUT.jsonl

Run by tests/other_tools.sh, which makes the environments. Each row of OUT tells of one program: how many prompts had
as many tokens as ours, how many greedy answers were ours to the letter, and how many began with the same words.
"""

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes
from simpsons_llm.data.prompt import prompt_ids
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import read_json
from simpsons_llm.model.base import load_base
from simpsons_llm.model.character import Character
from simpsons_llm.model.infer import finish_lines
from simpsons_llm.talk.publish import export, serve_commands
from simpsons_llm.talk.template import scene_messages
from simpsons_llm.talk.tools import cast_command

ENVS, RUN, OUT = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), Path(sys.argv[3])
WHO, OTHER = "Homer Simpson", "Marge Simpson"
GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 60}
place = OUT.absolute().parent / "other_tools"


def moments(who, n):
    "Moments of test scenes at which somebody speaks, with at most six lines before."
    found = []
    for s in split_scenes(read_script("springfield").scenes)["test"]:
        for at in [i for i, line in enumerate(s.lines) if i and line.speaker == who][:3]:
            found.append((s.location, list(s.lines[max(0, at - 6) : at]), who))
    return found[:n]


def python_of(name):
    "The Python of an environment; that of this process for transformers."
    return str(ENVS / name / "bin" / "python") if name else sys.executable


def versions(name, *packages):
    "What runs there."
    code = "import sys; from importlib.metadata import version; print(*(version(p) for p in sys.argv[1:]))"
    done = subprocess.run([python_of(name), "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split()))


@contextmanager
def serving(words, env=""):
    "A server, from when it listens to the end of the block: its port."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = f"{Path(python_of(env)).parent}:{os.environ['PATH']}"
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "PATH": path}
    unset = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or not env}
    with open(place / f"{Path(words[0]).name}.log", "a") as log:
        words = [*words, "--port", str(port)]
        print("$", shlex.join(words), flush=True)
        server = subprocess.Popen(words, env={**unset, **settings}, stdout=log, stderr=log, cwd=place)
        try:
            for _ in range(600):
                if server.poll() is not None:
                    raise RuntimeError(f"{words[0]} ended with {server.returncode}; see {log.name}")
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(1)
            yield port
        finally:
            server.terminate()
            server.wait(60)


def ask(port, model, asked, **more):
    "The answers of a server, and how many tokens each prompt had."
    client, texts, lengths = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600), [], []
    for location, lines, who in asked:
        messages = scene_messages(location, lines, who)
        extra = {**more, **({} if who == WHO else {"chat_template_kwargs": {"speaker": who}})}
        done = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=60, extra_body=extra
        )
        texts.append(done.choices[0].message.content.strip())
        lengths.append(done.usage.prompt_tokens)
    return texts, lengths


def row(tool, command, found, wanted, prompts, begun, **facts):
    "What came of a program, as a line of the record."
    texts, lengths = found
    first = [a.split()[:3] == b.split()[:3] for a, b in zip(texts, wanted)]
    differs = next(({"theirs": a, "ours": b} for a, b in zip(texts, wanted) if a != b), None)
    made = {
        "tool": tool,
        "command": command.replace(str(place) + "/", "").replace(str(RUN), "runs/x"),
        "asked": len(wanted),
        "prompts_as_long": sum(a == b for a, b in zip(lengths, prompts)),
        "answers_equal": sum(a == b for a, b in zip(texts, wanted)),
        "three_words_equal": sum(first),
        "differs": differs,
        "seconds": round(time.perf_counter() - begun, 1),
        **facts,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    with open(OUT, "a") as f:
        f.write(json.dumps(made, ensure_ascii=False) + "\n")
    print({k: made[k] for k in ("tool", "asked", "prompts_as_long", "answers_equal", "three_words_equal", "seconds")})


shutil.rmtree(place, ignore_errors=True)
place.mkdir(parents=True)
OUT.unlink(missing_ok=True)
os.environ["PATH"] += f":{ENVS / 'convert' / 'bin'}"
record = export(RUN, place / "homer", "float32", gguf="f16", sampling=GREEDY)
assert record["gguf"]["file"], record["gguf"]["note"]
export(RUN, place / "eight", "float32", gguf="q8_0", sampling=GREEDY)
limit = read_json(place / "homer" / "simpsons_llm.json")["max_seq_len"]
homers = moments(WHO, 12)
both = homers + moments(OTHER, 6)
ours = Character.load(place / "homer", WHO, device="cpu", dtype="float32", sampling="greedy")


def answers(character, asked):
    "Our own, one by one."
    return [finish_lines(character.model, character.maker, [r], character.sampling)[0] for r in asked]


wanted = answers(ours, both)
lengths = [len(prompt_ids(ours.maker, *r)) for r in both]
lines = serve_commands("homer", limit, record["gguf"]["file"])

begun = time.perf_counter()
with serving(shlex.split(lines["transformers"])) as port:
    found = ask(port, "homer", both)
row(
    "transformers serve",
    lines["transformers"],
    found,
    wanted,
    lengths,
    begun,
    versions=versions("", "transformers", "torch"),
    format="float32",
)

n = len(homers)
for folder, form in (("homer", "f16"), ("eight", "q8_0")):
    line = serve_commands(folder, limit, f"model-{form}.gguf")["llama-cpp-python"]
    begun = time.perf_counter()
    with serving([python_of("llama"), *shlex.split(line)[1:]], "llama") as port:
        found = ask(port, "homer", homers, repeat_penalty=1.0)
    row(
        "llama-cpp-python",
        line,
        found,
        wanted[:n],
        lengths[:n],
        begun,
        versions=versions("llama", "llama-cpp-python"),
        format=form,
    )

for more, form in (("--dtype float32", "float32"), ("--dtype bfloat16", "bfloat16")):
    line, begun = f"{lines['vLLM']} {more}", time.perf_counter()
    with serving(shlex.split(line), "vllm") as port:
        found = ask(port, "homer", both)
    row(
        "vLLM, merged", line, found, wanted, lengths, begun, versions=versions("vllm", "vllm-cpu", "torch"), format=form
    )

# two adapters over one base: the run's, and an earlier one of it
base, tokenizer = load_base(
    read_json(RUN / "adapter" / "simpsons_llm.json")["base_model"], find_device("cpu", "float32")
)
base.save_pretrained(place / "base")
tokenizer.save_pretrained(place / "base")
early = sorted((RUN / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[0]
shutil.copytree(RUN / "adapter", place / "late")
shutil.copytree(early, place / "early", ignore=shutil.ignore_patterns("*.pt", "*.pth", "*.bin"))
shutil.copy(RUN / "adapter" / "simpsons_llm.json", place / "early")
cast = {"late": place / "late", "early": place / "early"}
os.chdir(place)
line = cast_command("base", {k: k for k in cast}, "homer", limit) + " --dtype float32"
begun, found, want = time.perf_counter(), ([], []), []
with serving(shlex.split(line), "vllm") as port:
    for name, folder in cast.items():
        texts, counts = ask(port, name, homers)
        found[0].extend(texts), found[1].extend(counts)
        want += answers(Character.load(folder, WHO, device="cpu", dtype="float32", sampling="greedy"), homers)
apart = sum(a != b for a, b in zip(want[:n], want[n:]))
row(
    "vLLM, two adapters",
    line,
    found,
    want,
    lengths[:n] * 2,
    begun,
    versions=versions("vllm", "vllm-cpu", "torch"),
    format="float32",
    answers_apart=apart,
)
