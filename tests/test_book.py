"The book as a whole: made files are up to date, notebooks and data are fit to ship."
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT/"nbs").glob("*.ipynb"))


def cells(path): return json.loads(path.read_text(encoding="utf8"))["cells"]


def test_modules_twins_and_readme_are_up_to_date():
    "Nothing unexported, uncleaned or untwinned: `.ci/book` would change no file."
    done = subprocess.run([sys.executable, ".ci/book", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_notebook_is_fit_to_read(path):
    "Title and summary first, no failed cell, no path of a machine, no library of the build in its code."
    first = "".join(next(c["source"] for c in cells(path) if c["cell_type"] == "markdown"))
    assert first.startswith("# ") and "\n> " in first
    for c in cells(path):
        for o in c.get("outputs", []):
            assert o["output_type"] != "error", "".join(o.get("evalue", ""))
            text = json.dumps({k: v for k, v in (o.get("data") or {"text": o.get("text")}).items() if k != "image/png"})
            found = re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|Users|opt|var)/[\w./-]+|site-packages", text)
            assert not found, found[0]
        if c["cell_type"] == "code":
            assert not re.search(r"^\s*(?:from|import)\s+(?:nbdev|fastcore|pytest)\b", "".join(c["source"]), re.M)


def test_job_chapters_have_the_parameters_of_their_dataclass():
    from simpsons_llm.collectives import CollectivesConfig
    from simpsons_llm.finetune import FinetuneConfig
    from simpsons_llm.infer import InferConfig
    from simpsons_llm.job import field_help, find_chapter, same_parameters
    from simpsons_llm.loop import LoopConfig
    from simpsons_llm.prepare import PrepareConfig
    for cls, name in ((PrepareConfig, "prepare"), (InferConfig, "infer"), (LoopConfig, "loop"), (FinetuneConfig, "finetune"), (CollectivesConfig, "collectives")):
        assert same_parameters(cls, name)
        source = "".join(next(c["source"] for c in cells(find_chapter(name)) if "parameters" in c["metadata"].get("tags", [])))
        comments = dict(re.findall(r"^(\w+) = .*?\s# (.*)$", source, re.M))
        assert comments == field_help(cls)  # the same words, too


def test_chapters_import_only_what_stands_before_them():
    "No module imports upward: data flows down the book."
    order = {}
    for path in CHAPTERS:
        exp = re.search(r"#\| default_exp (\w+)", "".join("".join(c["source"]) + "\n" for c in cells(path)))
        if exp: order[exp[1]] = len(order)
    for name, place in order.items():
        source = (ROOT/"simpsons_llm"/f"{name}.py").read_text(encoding="utf8")
        for other in re.findall(r"from (?:simpsons_llm)?\.(\w+) import", source): assert order[other] < place, f"{name} imports {other}"


def test_import_and_help_are_quick():
    "The package imports nothing heavy."
    code = "import sys, simpsons_llm, simpsons_llm.cli, simpsons_llm.finetune, simpsons_llm.infer; print([m for m in ('torch','transformers','pandas','matplotlib','datasets','gradio') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_script_is_what_it_promises():
    "Columns of the public table, enough episodes, scenes, lines and speakers; derived columns agree with the text."
    import csv
    from simpsons_llm.lines import COLUMNS
    from simpsons_llm.script import read_script
    script = read_script("springfield")
    assert len({s.episode for s in script.scenes}) >= 24 and len(script.scenes) >= 72 and len(script.lines) >= 1200 and len(script.speakers) >= 20
    account = script.account()
    assert account["rejected"] == 0 and account["direction"] > 50 and account["wordless"] > 5 and account["heading"] >= 72
    rows = list(csv.DictReader(open(script.path, encoding="utf8")))
    assert tuple(rows[0]) == COLUMNS and [int(r["id"]) for r in rows] == list(range(1, len(rows) + 1))
    for r in rows:
        if r["speaking_line"] == "true":
            said = re.sub(r"\s+([.,!?])", r"\1", " ".join(re.sub(r"\([^)]*\)", "", r["raw_text"].split(": ", 1)[1]).split()))
            assert said == r["spoken_words"] and r["raw_text"].startswith(r["raw_character_text"] + ": ")
            assert (r["word_count"] or "0") == str(len(r["normalized_text"].split()))
        else: assert not r["spoken_words"] and r["raw_text"].startswith("(")


def test_the_script_repeats_no_sentence():
    "A sentence of four words or more stands in it once: what a model learns by heart cannot pass for style."
    from collections import Counter
    from simpsons_llm.script import read_script
    sentences = Counter(" ".join(re.sub(r"[^a-z0-9 ]", "", s.lower()).split()) for l in read_script("springfield").lines for s in re.split(r"(?<=[.!?])\s+", l.text))
    assert not [s for s, n in sentences.items() if n > 1 and len(s.split()) >= 4]


def test_the_wheel_carries_chapters_and_data(tmp_path):
    "An installed package runs its chapters without a checkout; it is built from the source archive, which must have all that belongs in it."
    top = ("setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE")
    for name in top: shutil.copy2(ROOT/name, tmp_path/name)
    for name in ("nbs", "simpsons_llm"): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", "archive"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), *map(str, (tmp_path/"archive").glob("*.tar.gz"))], check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"simpsons_llm/chapters/{p.name}" for p in CHAPTERS if p.stem[0].isdigit()} | {f"simpsons_llm/chapters/_results/{p.name}" for p in (ROOT/"nbs"/"_results").iterdir()} <= set(names)
    assert "simpsons_llm/data/springfield.csv" in names and not any(n.startswith(("tests/", "nbs/")) for n in names)
