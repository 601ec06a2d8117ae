"The book as a whole: made files are up to date, notebooks and data are fit to ship."

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import CLI

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]_*/[0-9]*.ipynb"))  # in the order of the book
NOTEBOOKS = [ROOT / "nbs" / "index.ipynb", *CHAPTERS]


def cells(path):
    return json.loads(path.read_text(encoding="utf8"))["cells"]


def test_modules_twins_and_readme_are_up_to_date():
    "Nothing unexported, uncleaned or untwinned: `.ci/book` would change no file."
    done = subprocess.run([sys.executable, ".ci/book", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
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
    from simpsons_llm.character.contrast import ContrastConfig
    from simpsons_llm.character.evaluate import EvaluateConfig
    from simpsons_llm.data.prepare import PrepareConfig
    from simpsons_llm.machine.job import field_help, find_chapter, same_parameters
    from simpsons_llm.model.infer import InferConfig
    from simpsons_llm.ranks.collectives import CollectivesConfig
    from simpsons_llm.train.finetune import FinetuneConfig
    from simpsons_llm.train.loop import LoopConfig

    for cls, name in (
        (PrepareConfig, "prepare"),
        (InferConfig, "infer"),
        (LoopConfig, "loop"),
        (FinetuneConfig, "finetune"),
        (EvaluateConfig, "evaluate"),
        (ContrastConfig, "contrast"),
        (CollectivesConfig, "collectives"),
    ):
        assert same_parameters(cls, name)
        source = "".join(
            next(c["source"] for c in cells(find_chapter(name)) if "parameters" in c["metadata"].get("tags", []))
        )
        comments = dict(re.findall(r"^(\w+) = .*?\s# (.*)$", source, re.M))
        assert comments == field_help(cls)  # the same words, too


PACKAGE = ROOT / "simpsons_llm"
# "data.prompt": its file
MODULES = {p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): p for p in PACKAGE.glob("*/[a-z]*.py")}


def own_imports(path):
    "Modules of the package that a module or chapter imports, wherever it does."
    tree, part = (
        ast.parse(path if isinstance(path, str) else path.read_text(encoding="utf8")),
        "" if isinstance(path, str) else path.parent.name,
    )
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["simpsons_llm", part][: 3 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names = [module, *(f"{module}.{a.name}" for a in node.names)]
        else:
            continue
        found |= {n.removeprefix("simpsons_llm.") for n in names if n.startswith("simpsons_llm.")}
    return found & MODULES.keys()


MANUALS = ("74_xpu",)  # chapters without a module


def test_chapters_have_their_place():
    "Two digits, each once, the tens digit the part; the module has the chapter's name and its part's."
    numbers = [p.name[:2] for p in CHAPTERS]
    assert len(numbers) == len(set(numbers)) and all(p.name[0] == p.parent.name[0] for p in CHAPTERS)
    made = {}
    for path in CHAPTERS:
        exported = re.findall(r"^#\| default_exp (.+)$", "\n".join("".join(c["source"]) for c in cells(path)), re.M)
        if path.parent.name == "0_start" or path.stem in MANUALS:
            assert not exported
        else:
            assert exported == [f"{path.parent.name[2:]}.{path.stem[3:]}"], path
        made.update(dict.fromkeys(exported))
    assert made.keys() == MODULES.keys()
    for part in {p.parent for p in MODULES.values()}:
        said = ast.get_docstring(ast.parse((part / "__init__.py").read_text(encoding="utf8")))
        assert len([line for line in said.splitlines() if line]) == 3, (
            f"{part.name}/__init__.py says in three lines what lives there"
        )


def test_imports_go_down_the_book():
    "Modules import earlier chapters and the machine room, which knows no other part; cli alone knows everyone."
    place = {f"{p.parent.name[2:]}.{p.stem[3:]}": i for i, p in enumerate(CHAPTERS) if p.parent.name != "0_start"}
    for name, path in MODULES.items():
        if name == "machine.cli":
            continue
        for other in own_imports(path) - {name}:
            below = place[other] < place[name]
            assert other != "machine.cli" and (
                below if name.startswith("machine.") == other.startswith("machine.") else other.startswith("machine.")
            ), f"{name} imports {other}"


def test_no_circle_of_imports():
    "Each module can be the first that is imported."
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module('simpsons_llm.' + name)\n"
        "    for m in [m for m in sys.modules if m.startswith('simpsons_llm.')]: del sys.modules[m]"
    )
    subprocess.run([sys.executable, "-c", code, *MODULES], check=True)


def test_import_and_help_are_quick():
    "The package imports nothing heavy."
    code = (
        "import sys, simpsons_llm, simpsons_llm.machine.cli, simpsons_llm.train.finetune, simpsons_llm.model.infer; "
        "print([m for m in ('torch','transformers','pandas','matplotlib','datasets','gradio') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_script_is_what_it_promises():
    "Columns of the public table, enough episodes, scenes, lines and speakers; derived columns agree with the text."
    import csv

    from simpsons_llm.data.formats import read_script
    from simpsons_llm.data.tables import COLUMNS

    script = read_script("springfield")
    assert (
        len({s.episode for s in script.scenes}) >= 24
        and len(script.scenes) >= 72
        and len(script.lines) >= 1200
        and len(script.speakers) >= 20
    )
    account = script.account()
    assert (
        account["rejected"] == 0 and account["direction"] > 50 and account["wordless"] > 5 and account["heading"] >= 72
    )
    rows = list(csv.DictReader(open(script.path, encoding="utf8")))
    assert tuple(rows[0]) == COLUMNS and [int(r["id"]) for r in rows] == list(range(1, len(rows) + 1))
    for r in rows:
        if r["speaking_line"] == "true":
            said = re.sub(
                r"\s+([.,!?])", r"\1", " ".join(re.sub(r"\([^)]*\)", "", r["raw_text"].split(": ", 1)[1]).split())
            )
            assert said == r["spoken_words"] and r["raw_text"].startswith(r["raw_character_text"] + ": ")
            assert (r["word_count"] or "0") == str(len(r["normalized_text"].split()))
        else:
            assert not r["spoken_words"] and r["raw_text"].startswith("(")


def test_the_script_repeats_no_sentence():
    "A sentence of four words or more stands in it once: what a model learns by heart cannot pass for style."
    from collections import Counter

    from simpsons_llm.data.formats import read_script

    sentences = Counter(
        " ".join(re.sub(r"[^a-z0-9 ]", "", s.lower()).split())
        for line in read_script("springfield").lines
        for s in re.split(r"(?<=[.!?])\s+", line.text)
    )
    assert not [s for s, n in sentences.items() if n > 1 and len(s.split()) >= 4]


def test_the_wheel_carries_chapters_and_data(tmp_path):
    "Built from the source archive, which must have all of it, a package runs its chapters without a checkout."
    top = ("setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE")
    for name in top:
        shutil.copy2(ROOT / name, tmp_path / name)
    for name in ("nbs", "simpsons_llm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", "archive"], cwd=tmp_path, check=True, capture_output=True
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            *map(str, (tmp_path / "archive").glob("*.tar.gz")),
        ],
        check=True,
        capture_output=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"simpsons_llm/chapters/{p.parent.name}/{p.name}" for p in CHAPTERS} | {
        f"simpsons_llm/chapters/_results/{p.name}" for p in (ROOT / "nbs" / "_results").iterdir()
    } <= set(names)
    assert {"simpsons_llm/data/springfield.csv", "simpsons_llm/talk/page.html"} <= set(names)
    assert not any(n.startswith(("tests/", "nbs/")) for n in names)


# ---- what chapters say of each other ---------------------------------------------------------------------------------

MARKDOWN = {p: ["".join(c["source"]) for c in cells(p) if c["cell_type"] == "markdown"] for p in NOTEBOOKS}
CODE = {p: ["".join(c["source"]) for c in cells(p) if c["cell_type"] == "code"] for p in NOTEBOOKS}


def headings(path):
    "Anchors of a notebook or of a Markdown file, as Jupyter and GitHub make them."
    texts = [path.read_text(encoding="utf8")] if path.suffix == ".md" else MARKDOWN[path]
    found = [t for text in texts for t in re.findall(r"^#+ (.+)$", text, re.M)]
    return {a for t in found for a in (t.replace(" ", "-"), re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-"))}


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    "Every link to a place in the project is there, and so is the heading that it names."
    texts = MARKDOWN[path] if path in MARKDOWN else [path.read_text(encoding="utf8")]
    links = [
        m
        for text in texts
        for m in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
    ]
    assert links or path.suffix != ".md"
    for link in links:
        if re.match(r"https?://|attachment:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in headings(target), f"{path.name} links to {link}"


def test_chapters_are_named_in_words_that_lead_to_them():
    "No numbers, no `last chapter`: chapters move. `The chapter on X` is a link in prose, and means one chapter."
    places = {}
    for path, texts in MARKDOWN.items():
        for name, link in re.findall(r"\[[Tt]he chapter on ([^]]+)\]\(([^)#]+)", "\n".join(texts)):
            places.setdefault(name, set()).add((path.parent / link).resolve())
    assert len(places) > 5 and all(len(where) == 1 for where in places.values()), places
    vague = (
        r"\bchapters? \d|\b(?:last|next|previous|later|earlier|following) chapters?\b"
        r"|\bchapters? (?:before|above|below|after)\b"
    )
    show_help = subprocess.run([*CLI, "--help"], capture_output=True, text=True, check=True)
    prose = {p: "\n".join(texts) for p, texts in MARKDOWN.items()}
    other = {f"code of {p.stem}": "\n".join(texts) for p, texts in CODE.items()} | {"--help": show_help.stdout}
    other |= {p: p.read_text(encoding="utf8") for p in (ROOT / "simpsons_llm").rglob("__init__.py")}
    for where, text in {**prose, **other}.items():
        found = re.search(vague, text)
        assert not found, f"{where}: {found[0]}"
        for linked, words in re.findall(r"(\[[Tt]he )?\bchapter on ((?:[\w-]+ ?){1,6})", text):
            name = next((n for n in places if f"{words} ".startswith(f"{n} ")), None)
            assert name, f"{where}: no chapter is linked as the chapter on {words}"
            # in code there are no links, and a chapter may speak of itself
            assert linked or where not in prose or places[name] == {where.resolve()}, f"{where}: {name} is no link"
