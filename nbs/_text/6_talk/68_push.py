# %%
#| default_exp talk.push

# %% [markdown]
# # Giving it away
#
# > From a folder on this machine to a page on the hub, with what was measured on its card; and nothing else with it.
#
# The hub of Hugging Face is where people look for models. A model there is a folder under version control, with a page that shows its card. Sending a folder is one call of a library; what deserves care is *what* is sent. A run's folder holds checkpoints, prepared data, samples and the names of folders on one's own machine, and what was sent once is hard to call back. So nothing is sent because it lies there: each file that goes is on a list, texts are searched for paths, and a rehearsal shows all of it without a network.
#
# `simpsons-llm push runs/x/export --to user/homer --dry-run` is the rehearsal.

# %%
#| export
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from simpsons_llm.character.evaluate import figure_name, told
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.job import Facts, read_json, require, write_text
from simpsons_llm.model.adapter import NOTES, Trained, find_trained
from simpsons_llm.model.base import load_tokenizer
from simpsons_llm.talk.publish import exported_notes, hub_id, main_speaker, model_card, public_name

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import yaml

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import MANIFEST, write_json
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.base import load_base
from simpsons_llm.talk.publish import export

# %% [markdown]
# ## Something to give away
#
# A run of the tiny model, as training leaves it: adapter, summary, a checkpoint and prepared data; and figures as [the evaluation](../5_character/52_evaluate.ipynb) writes them. All of them are made up here, but for the shapes. One value is a trap: a path of this machine.

# %% tags=["example"]
place = Path(tempfile.mkdtemp())
run = place / "x"
base, _ = load_base("tiny", find_device("cpu", "float32"))
notes = {"base_model": "tiny", "template": "script", "max_seq_len": 400, "speakers": {"Homer Simpson": 406}}
save_adapter(add_adapter(base, LoRASettings(r=8, lora_alpha=32)), run / "adapter", notes)
summary = {
    "status": "done",
    "base_model": "tiny",
    "settings": {"template": "script", "r": 8},
    "data": str(place / "data"),
    "ranks": [{"rank": 0, "host": "my-laptop", "device": "cpu"}],
    "optimizer_steps": 34,
    "valid_loss_nats_base": 3.8984,
    "valid_loss_nats_best": 3.6171,
}
write_json(run / "summary.json", summary)
for name in ("checkpoints/34/optimizer.pt", "data/train.jsonl", "before_after.json", "loss.png"):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("not for strangers")


def figure(value, low, high, n=66):
    "A figure with its interval."
    return {"value": value, "low": low, "high": high, "n": n}


measured = {
    "about": {"sides": ["human", "base", "tuned"], "settings": {"split": "test"}, "moments": 66, "episodes": 9},
    "loss_nats_base": figure(4.01, 3.8, 4.2),
    "loss_nats_tuned": figure(3.72, 3.5, 3.9),
    "speaker_acc_20_human": figure(0.91, 0.8, 1.0),
    "speaker_acc_20": figure(0.48, 0.3, 0.7),
    "auc_real_20": figure(0.71, 0.6, 0.8),
}
(run / "evaluation").mkdir()
write_json(run / "evaluation" / "evaluation.json", measured)
record = export(run, run / "export")
sorted(p.name for p in run.iterdir())

# %% [markdown]
# ## What goes, and what stays
#
# Two things can be given away: an *export*, which is a whole model, or a *run*, of which the adapter goes. The files that go are named by patterns. The rest stays, whatever it is, and is shown.

# %%
#| export
# what a stranger needs
GOES = {
    "model": (
        *("README.md", "Modelfile", "chat_template.jinja", "config.json", "generation_config.json", NOTES),
        *("model*.safetensors", "model.safetensors.index.json", "model-*.gguf"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "merges.txt"),
    ),
    "adapter": ("adapter_config.json", "adapter_model.safetensors", NOTES),
}
# the ends of a run that left something
FINISHED = ("done", "not better than the base")


@dataclass
class Gift:
    "What is given away, before it goes."

    kind: str  # "model", or "adapter"
    folder: Path  # where the files lie
    trained: Trained  # what was trained: notes and summary
    evaluation: dict  # the figures of the evaluation; empty if it was not measured
    card: Path  # where the card lies, or will


def find_gift(
    source,  # an export's folder, or a finished run's
) -> Gift:  # FileNotFoundError or ValueError if it is neither
    "What can be given away of a folder."
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no folder at {source}; give a run's, such as runs/x, or an export's")
    trained, notes = find_trained(source), exported_notes(source)
    status = trained.summary.get("status", "done")
    require(
        status in FINISHED,
        f"the run in {source} is not finished (its summary says: {status}); let it end, or give another one",
    )
    if "export" in notes:
        return Gift("model", source, trained, find_evaluation(source, trained), source / "README.md")
    require(
        trained.kind == "adapter",
        f"{source} holds all weights of a model, and is no export; "
        f"make one first: simpsons-llm export {source}, and give its folder",
    )
    home = trained.folder.parent if trained.folder.name == "adapter" else trained.folder
    require(trained.summary, f"{source} is an adapter without a run's summary.json beside it; give a run's folder")
    return Gift("adapter", trained.folder, trained, find_evaluation(home, trained), home / "README.md")


# %% [markdown]
# An evaluation lies in its run. An export that lies there too may have it, if it is of that very run:

# %%
#| export
def find_evaluation(
    folder: Path,  # a run's folder, or an export's
    trained: Trained,  # what lies in it
) -> dict:  # empty if there is none
    "The figures that `simpsons-llm evaluate` wrote for a run."
    for home in (folder, folder.resolve().parent):
        file, summary = home / "evaluation" / "evaluation.json", home / "summary.json"
        if file.is_file() and summary.is_file():
            same = ("valid_loss_nats_best", "optimizer_steps", "script_sha256")
            if all(read_json(summary).get(k) == trained.summary.get(k) for k in same):
                return read_json(file)
    return {}


# %% tags=["example"]
gift = find_gift(run / "export")
gift.kind, gift.folder.name, len(gift.evaluation)


# %% tags=["check"]
def refused(call, *args, **kwargs):
    "The sentence with which this call must be refused."
    try:
        call(*args, **kwargs)
    except (ValueError, OSError) as e:
        return str(e).replace(str(place), "runs")
    raise AssertionError("nothing was refused")


assert find_gift(run).kind == "adapter" and find_gift(run).evaluation == gift.evaluation == measured
write_json(run / "summary.json", {**summary, "optimizer_steps": 35})
assert find_gift(run / "export").evaluation == {}  # another run lies around it now
write_json(run / "summary.json", {**summary, "status": "running"})
unfinished = refused(find_gift, run)
write_json(run / "summary.json", summary)
refused(find_gift, place / "nowhere")
unfinished

# %% [markdown]
# ## Figures for the card
#
# A card should say how good the model is before it says anything else. What the evaluation measured becomes a table, with its intervals, beside the base and the real lines. The loss alone says little to a stranger: so the card also says how often the character is known by its lines, and how well generated lines are told from real ones.

# %%
#| export
# measure -> what a stranger reads
SHOWN = {
    "loss_nats": "held-out loss, nats per token (less is better)",
    "speaker_acc_20": "speaker known from 20 lines (like the real lines is best)",
    "auc_real_20": "20 lines told from real ones, AUC (0.5 is best)",
    "verbatim_8gram": "runs of 8 words that stand in the training lines (like the real lines is best)",
    "ends_by_itself": "answers that end by themselves (more is better)",
}


def figures_table(
    found: dict,  # what `simpsons-llm evaluate` wrote
) -> list:  # rows of Markdown; empty if nothing was measured
    "What was measured, for a card."
    about = found.get("about", {})
    sides = [s for s in ("human", "base", "tuned") if s in about.get("sides", ())]
    rows = []
    for name, label in SHOWN.items():
        cells = [told(found.get(figure_name(name, side))) for side in sides]
        if set(cells) - {"-"}:
            rows.append(f"| {label} | {' | '.join(cells)} |")
    if not rows:
        return []
    names = {"human": "real lines", "base": "base", "tuned": "this model"}
    lead = f"{about['moments']} moments of {about['episodes']} episodes" if "moments" in about else "Moments"
    return [
        f"{lead} that were not learned from (the split `{about['settings']['split']}`); intervals of 95 %.",
        "",
        f"| | {' | '.join(names[s] for s in sides)} |",
        f"|---|{'---|' * len(sides)}",
        *rows,
    ]


# %% tags=["example"]
print("\n".join(figures_table(measured)))

# %% [markdown]
# Machines read the head of a card. The hub's form for results is called `model-index`: a task, a data set, and metrics with names and values.

# %%
#| export
# the hub's word for a measure
METRICS = {"loss_nats": "loss", "speaker_acc_20": "accuracy", "auc_real_20": "roc_auc"}


def model_index(
    name: str,  # the model's name
    trained: Trained,  # what was trained
    found: dict,  # what `simpsons-llm evaluate` wrote; may be empty
) -> list:  # for the head of a card; empty if nothing was measured
    "What was measured, in the hub's form."
    metrics: list = []
    for measure, kind in METRICS.items():
        value = (found.get(figure_name(measure, "tuned")) or {}).get("value")
        if value is not None and value == value:
            metrics.append({"type": kind, "name": SHOWN[measure], "value": round(value, 4)})
    split = found.get("about", {}).get("settings", {}).get("split", "valid")
    s = trained.summary
    loss = next((x for k in ("test", "valid") if (x := s.get(f"{k}_loss_nats_best")) is not None), None)
    if not metrics and loss is not None:
        split = "test" if "test_loss_nats_best" in s else "valid"
        metrics.append({"type": "loss", "name": "held-out loss, nats per token", "value": round(loss, 4)})
    if not metrics:
        return []
    task = {"type": "text-generation", "name": "the next line of a character"}
    data = {"type": "script", "name": "scenes that were not learned from", "split": split}
    return [{"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]


# %% tags=["example"]
print(yaml.safe_dump({"model-index": model_index("homer", gift.trained, measured)}, sort_keys=False))


# %% [markdown]
# Both are put into the card that lies in the folder, which somebody may have written on: its words stay as they are. A card that has a table or results of its own keeps them.

# %%
#| export
def with_figures(
    card: str,  # Markdown with a YAML head
    name: str,  # the model's name
    trained: Trained,  # what was trained
    found: dict,  # what `simpsons-llm evaluate` wrote; may be empty
) -> str:  # the card with what was measured; ValueError if its head is no YAML
    "A card that says how good the model is."
    import yaml

    parts = re.match(r"---\n(.*?\n)---\n(.*)", card, re.S)
    if not parts:
        raise ValueError("README.md has no head between two rows of dashes; export the model again")
    head, words = parts[1], parts[2]
    try:
        facts = yaml.safe_load(head) or {}
    except yaml.YAMLError as e:
        raise ValueError(f"the head of README.md is no YAML ({str(e).splitlines()[0]}); mend it") from None
    index, table = model_index(name, trained, found), figures_table(found)
    if index and "model-index" not in facts:
        head += yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
    if table and "\n## How good it is\n" not in words:
        section = "\n".join(["## How good it is", "", *table, "", ""])
        words = words.replace("## How it was made\n", f"{section}## How it was made\n", 1)
    return f"---\n{head}---\n{words}"


# %% tags=["check"]
card = with_figures((run / "export" / "README.md").read_text(), "homer", gift.trained, measured)
assert (
    "speaker known from 20 lines (like the real lines is best) | 0.910 (0.80 to 1.00) | - | 0.480 (0.30 to 0.70)"
    in card
)
assert with_figures(card, "homer", gift.trained, measured) == card  # once is enough
head = yaml.safe_load(card.split("---\n")[1])
assert [m["value"] for m in head["model-index"][0]["results"][0]["metrics"]] == [3.72, 0.48, 0.71]
plain = with_figures((run / "export" / "README.md").read_text(), "homer", gift.trained, {})
assert "How good it is" not in plain and "value: 3.6171" in plain  # the run's own held-out loss
refused(with_figures, "no head", "homer", gift.trained, {})

# %% [markdown]
# ## What strangers must not read
#
# Notes and settings are JSON. In them, a path of this machine becomes the name of its last part, and what tells of machines and folders is left out. A base model that is on the hub is called by its name there, so that whoever loads the adapter finds it. What is left is searched once more, all texts of it, and a path that was found ends the matter: better no model than one with a home folder in it.

# %%
#| export
# settings and facts that are of no use elsewhere
PRIVATE = {"host", "hosts", "ranks", "run", "out", "cache", "checkpoint"}
FOLDERS = "home|root|Users|tmp|mnt|media|scratch|var|srv|opt|data|work"  # in which people keep things
PATHS = re.compile(rf"(?<![\w.:/\\-])(?:(?:~|/(?:{FOLDERS}))/|[A-Z]:\\+)[^\s\"'`,;)]+")


def public(
    value,  # anything that JSON can hold
    top: bool = True,  # whether `run`, the summary of a training, is meant, and no folder
):  # the same, without what is nobody's business
    "Notes and settings as strangers may read them."
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in PRIVATE or (top and k == "run" and isinstance(v, dict))}
        named = {k: hub_id(v) or v for k, v in kept.items() if k in ("base_model", "base_model_name_or_path")}
        return {k: public(v, False) for k, v in {**kept, **named}.items()}
    if isinstance(value, list):
        return [public(v, False) for v in value]
    return public_name(value) if isinstance(value, str) and len(value) < 1000 else value


def own_paths(
    text: str,  # what is to be sent
    names: bool = True,  # also paths of the usual folders; False: only those of this place
) -> list:  # the paths in it that tell of this machine
    "Where a text gives this machine away."
    places = {str(Path.home()), os.getcwd(), os.path.realpath(os.getcwd())}
    found = [p for p in places if len(Path(p).parts) > 2 and p in text]
    return found + (PATHS.findall(text) if names else [])


# %% tags=["example"]
public(
    {
        "base_model": "smollm2-135m",
        "data": "/home/me/scripts/mine.csv",
        "run": {"device": "cpu", "ranks": [{"host": "my-laptop"}], "base_source": "folder /home/me/llama"},
    }
)

# %% tags=["check"]
assert own_paths("see /home/me/x.csv and C:\\Users\\me") == ["/home/me/x.csv", "C:\\Users\\me"]
assert own_paths("https://hub/home/x 3/4 and/or ./home/x {{ '/tmp' }}") == []
assert own_paths(f'"{os.getcwd()}/x"', names=False) or len(Path.cwd().parts) < 3


# %% [markdown]
# ## The parcel
#
# All of it comes together as a list: a name, and either the bytes or the file. Weights are sent from where they lie; texts are made ready in memory, so the folder stays as it is. Of a run the adapter has a card of its own, which is written beside it once, so that it can be read and corrected before it goes.

# %%
#| export
def gift_card(
    gift: Gift,  # what is given away
    name: str,  # the model's name
) -> str:  # Markdown; for a run it is written where it is not there
    "The card as it will stand on the hub."
    if gift.kind == "adapter" and not gift.card.is_file():
        maker = TextMaker.of_notes(load_tokenizer(gift.trained.notes["base_model"]), gift.trained.notes)
        write_text(gift.card, model_card(gift.trained, {"kind": "adapter"}, maker, main_speaker(gift.trained.notes)))
    require(gift.card.is_file(), f"there is no {gift.card}; export the model again")
    return with_figures(gift.card.read_text(encoding="utf8"), name, gift.trained, gift.evaluation)


def parcel(
    gift: Gift,  # what is given away
    name: str,  # the model's name
) -> dict:  # name on the hub -> bytes, or the Path of a file; ValueError if it would tell of this machine
    "What is sent."
    out: dict = {"README.md": gift_card(gift, name).encode()}
    for p in sorted(gift.folder.iterdir()):
        if not p.is_file() or not any(fnmatch(p.name, pattern) for pattern in GOES[gift.kind]) or p.name in out:
            continue
        ours = p.name in (NOTES, "adapter_config.json")
        out[p.name] = (json.dumps(public(read_json(p)), indent=1, ensure_ascii=False) + "\n").encode() if ours else p
    for name_, what in out.items():
        if not name_.endswith((".safetensors", ".gguf", "tokenizer.model")):
            text = (what if isinstance(what, bytes) else what.read_bytes()).decode("utf8", "replace")
            told_ = own_paths(text, names=not name_.startswith(("tokenizer", "vocab", "merges")))
            require(not told_, f"{name_} tells of this machine: {', '.join(told_[:3])}; take it out, and push again")
    return out


def size_of(
    what,  # bytes, or a Path
) -> int:  # bytes
    "How much is sent."
    return len(what) if isinstance(what, bytes) else what.stat().st_size


# %% tags=["example"]
sent = {kind: {n: size_of(w) for n, w in parcel(find_gift(run / kind), "homer").items()} for kind in ("", "export")}
pd.DataFrame({"of the run": sent[""], "of the export": sent["export"]}).astype("Int64")

# %% [markdown]
# How much of the run's folder goes, and how much stays? By size, all that lies in it:

# %% tags=["example"]
lies = {str(p.relative_to(run)): p.stat().st_size for p in sorted(run.rglob("*")) if p.is_file()}
gone = {"README.md"} | {f"adapter/{n}" for n in sent[""]} | {f"export/{n}" for n in sent["export"]}
table = pd.DataFrame([(n.split("/")[0], "may go" if n in gone else "stays", size) for n, size in lies.items()])
shares = table.pivot_table(index=0, columns=1, values=2, aggfunc="sum")[["stays", "may go"]]
ax = shares.plot.barh(stacked=True, figsize=(7, 2.6), color=["#cfd8dc", "#f2c500"], logx=True, width=0.7)
ax.set(xlabel="bytes", ylabel="", xlim=(1, None))
ax.legend(title="", frameon=False, fontsize=8)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% tags=["check"]
everything = b"".join(
    w if isinstance(w, bytes) else w.read_bytes()
    for k in ("", "export")
    for w in parcel(find_gift(run / k), "homer").values()
)
for secret in (str(place), "my-laptop", "not for strangers", "optimizer.pt"):
    assert secret.encode() not in everything, secret
(run / "export" / "Modelfile").write_text("FROM /home/me/models/homer.gguf")
betrayed = refused(parcel, find_gift(run / "export"), "homer")
(run / "export" / "Modelfile").unlink()
betrayed.replace("/home/me", "HOME")


# %% [markdown]
# ## Sending it
#
# Three things are asked before anything is sent. Is there a name of the form `user/name`? Is there a token, the word by which the hub knows who one is? And is the card finished, where all the world may read it: a licence that nobody has filled in is no licence. Whoever sends it to a private place may fill it in later.

# %%
#| export
def check_name(
    to: str,  # where to, as user/name
) -> str:  # the name alone; ValueError if it is none
    "A place on the hub."
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(to)
    except HFValidationError as e:
        raise ValueError(f"--to {to!r} was given; expected user/name, such as me/homer ({e})") from None
    require(to.count("/") == 1, f"--to {to!r} was given; expected user/name, such as me/homer")
    return to.split("/")[1]


@contextmanager
def told_plainly(
    to: str,  # where to
) -> Iterator[None]:
    "What goes wrong between here and the hub, in one sentence."
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as e:
        code = getattr(getattr(e, "response", None), "status_code", 0)
        why = {401: "the token is not known there", 403: "the token may not write there"}
        raise ValueError(
            f"the hub refused {to} ({code}: {why.get(code, str(e).strip().splitlines()[0])}); "
            "see https://huggingface.co/settings/tokens"
        ) from e
    except ValueError as e:
        raise ValueError(" ".join(str(e).split())) from e
    except OSError:
        raise
    except Exception as e:  # of the library that speaks HTTP, whichever it is
        raise OSError(f"nothing was sent to {to}: {type(e).__name__}: {e}") from e


# %%
#| export
def push(
    source: str | os.PathLike,  # an export's folder, or a finished run's, of which the adapter goes
    to: str,  # where to: user/name on the hub
    private: bool = False,  # a place that only its owner sees; a new one, or one that is private already
    dry_run: bool = False,  # only tell what would be sent; no network
) -> Facts:  # to, kind, private, files (name -> bytes), left_out (names), url ("" after a dry run); ValueError, OSError
    "Send a model and its card to the hub."
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    name, gift = check_name(to), find_gift(source)
    what = parcel(gift, name)
    unfinished = b"FILL IN" in what["README.md"] and not private
    left = sorted(p.name for p in gift.folder.iterdir() if p.name not in what)
    files = {n: size_of(w) for n, w in what.items()}
    facts = Facts(to=to, kind=gift.kind, private=private, files=files, left_out=left, card=str(gift.card), url="")
    facts["unfinished"] = unfinished
    if dry_run:
        return facts
    require(
        not unfinished,
        f"{gift.card} still says FILL IN, about licence or rights; write what is true there, or push with --private",
    )
    token = get_token()
    if not token:
        raise ValueError(
            "there is no token for the hub; make one that may write at https://huggingface.co/settings/tokens, "
            "then run: hf auth login (or set HF_TOKEN)"
        )
    with told_plainly(to):
        api = HfApi(token=token)
        api.create_repo(to, private=private, exist_ok=True)
        if private and not api.repo_info(to).private:
            raise ValueError(f"{to} is there already, and everybody can read it; choose another name for --private")
        operations = [CommitOperationAdd(n, w if isinstance(w, bytes) else str(w)) for n, w in what.items()]
        done = api.create_commit(to, operations, commit_message=f"{gift.kind} made with simpsons_llm")
    facts["url"] = str(done.commit_url)
    return facts


def push_text(
    facts: dict,  # what `push` gave
) -> str:  # lines for people
    "What was sent, or would be."
    total = sum(facts["files"].values())
    where = f"{facts['to']} ({'private' if facts['private'] else 'for everybody to read'})"
    rows = [f"{'sent to' if facts['url'] else 'would be sent to'} {where}: {facts['kind']}, {total:,} bytes"]
    rows += [f"  {n}  {b:,} bytes" for n, b in facts["files"].items()]
    if facts["left_out"]:
        rows.append(f"stays here: {', '.join(facts['left_out'])}")
    if facts["unfinished"]:
        rows.append(f"before that, fill in what {facts['card']} asks for; or use --private")
    rows.append(facts["url"] or "nothing was sent: this was a rehearsal")
    return "\n".join(rows)


# %% tags=["example"]
print(push_text(push(run / "export", "me/homer", dry_run=True)).replace(f"{place}/", "runs/"))

# %% tags=["check"]
rehearsed = push(run, "me/homer", dry_run=True)
assert rehearsed["kind"] == "adapter" and set(rehearsed["files"]) == set(sent[""])
assert rehearsed["left_out"] == [MANIFEST]  # it seals the files as they lie here
said = [
    refused(push, run / "export", "me/homer"),
    refused(push, run / "export", "homer", dry_run=True),
    refused(push, run / "export", "me/ho mer", dry_run=True),
    refused(push, run / "data", "me/homer", dry_run=True),
]
assert "FILL IN" in said[0] and all("user/name" in s for s in said[1:3])
said

# %% [markdown]
# You can now give a character away, and know to the byte what you gave.

# %% [markdown]
# ### Exercises
#
# 1. A summary holds `{"settings": {"data": "/scratch/me/show.csv"}}`. What does the stranger read?
# 2. Why is an evaluation of the run around an export not taken, when the numbers of the two runs differ?

# %% tags=["check"]
assert public({"settings": {"data": "/scratch/me/show.csv"}}) == {"settings": {"data": "show.csv"}}
other = Trained("model", run / "export", {}, {**summary, "valid_loss_nats_best": 3.5})
assert find_evaluation(run / "export", other) == {}  # they would be another model's merits
