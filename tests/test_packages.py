"What is imported is declared, what is declared is used and pinned, and what is overridden is still there."

import ast
import inspect
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# module -> distribution
NAMED = {
    "functorch": "torch",  # a part of its wheel
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "intel_extension_for_pytorch": "intel-extension-for-pytorch",
    "oneccl_bindings_for_pytorch": "oneccl-bind-pt",
}
# declared, and needed though no line imports it
UNIMPORTED = {
    "ipykernel": "the kernel in which papermill runs a chapter",
    "jinja2": "transformers writes chat templates with it",
    "sentencepiece": "tokenizers of the Llama family, OpenLLaMA's among them, are read with it",
    "protobuf": "the same tokenizers' files",
    "bitsandbytes": "transformers makes 4-bit weights with it",
    "trackio": "accelerate's tracker of that name",
    "tensorboard": "accelerate's tracker of that name",
    "nbdev": "its commands export, clean and run the chapters",
    "fastcore": "nbdev 2 works with versions below 2",
    "execnb": "nbdev 2 works with versions below 0.2",
    "ghapi": "nbdev 2 works with versions below 2",
    "jupyterlab": "to read and change chapters in",
    "ruff": ".ci/book formats and checks with it",
    "mypy": ".ci/run checks types with it",
    "mpich": "an mpirun to test with",
    "pytest-xdist": "the README's command runs two tests at a time",
}

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf8")
settings = settings["DEFAULT"]


def declared(name):
    "Distribution -> requirement of one list in settings.ini."
    found = map(Requirement, settings[name].split())
    return {canonicalize_name(r.name): r for r in found}


RUN_TIME, DEV = declared("requirements"), declared("dev_requirements")
EXTRAS = {k: declared(k) for k in settings if k.endswith("_requirements") and k != "dev_requirements"}
IN_EXTRAS = {name for extra in EXTRAS.values() for name in extra}


def imported(source, everywhere=True):
    "Distributions that a piece of Python imports, also inside functions; False: at its top level alone."
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    tops = {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"simpsons_llm"}
    return {canonicalize_name(NAMED.get(top, top)) for top in tops}


def of_modules(everywhere=True):
    return {
        p.name: imported(p.read_text(encoding="utf8"), everywhere)
        for p in sorted((ROOT / "simpsons_llm").rglob("*.py"))
    }


def of_chapters():
    "Imports of the cells that a job runs: a wheel carries the chapters."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]_*/[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        code = [
            "".join(c["source"])
            for c in cells
            if c["cell_type"] == "code" and not {"check", "example"} & set(c["metadata"].get("tags", []))
        ]
        found[path.name] = set().union(*map(imported, code))
    return found


def test_what_is_imported_is_declared():
    for name, found in {**of_modules(), **of_chapters()}.items():
        lacks = found - RUN_TIME.keys() - IN_EXTRAS
        assert not lacks, f"{name} imports {lacks}, which settings.ini does not declare"


def test_what_only_an_extra_declares_is_imported_when_it_is_used():
    for name, found in of_modules(everywhere=False).items():
        assert found <= RUN_TIME.keys(), name


def test_what_is_declared_is_used():
    used = set().union(*of_modules().values(), *of_chapters().values())
    # setuptools comes with whatever builds the package
    own = {p.stem for p in (ROOT / "tests").glob("*.py")} | {"setuptools"}
    files = [*sorted((ROOT / "tests").glob("*.py")), ROOT / ".ci" / "book", ROOT / "setup.py"]
    of_tools = {p.name: imported(p.read_text(encoding="utf8")) - set(map(canonicalize_name, own)) for p in files}
    for name, found in of_tools.items():
        assert found <= RUN_TIME.keys() | DEV.keys() | IN_EXTRAS, name
    idle = (RUN_TIME.keys() | IN_EXTRAS) - used | DEV.keys() - used.union(*of_tools.values())
    assert idle <= UNIMPORTED.keys(), (
        f"nothing imports {idle - UNIMPORTED.keys()}: take it out of settings.ini, or say here what needs it"
    )
    everything = RUN_TIME.keys() | DEV.keys() | IN_EXTRAS
    assert UNIMPORTED.keys() <= everything - (used & RUN_TIME.keys()), "an entry of UNIMPORTED is not needed any more"


def test_pins_are_what_is_declared():
    "Whatever a fresh install brings has one version, and that is allowed."
    pins = {
        canonicalize_name(r.name): r
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
        for r in [Requirement(line)]
    }
    for name, requirement in {**RUN_TIME, **DEV}.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), (
            f"{name}: {requirement} is declared, {pin} is pinned"
        )


def test_versions_of_python_are_the_same_everywhere():
    "Declared, classified, and run by continuous integration."
    pythons = settings["pythons"].split()
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert pythons[0] == settings["min_python"] and json.loads(re.search(r"python: (\[.*\])", workflow)[1]) == pythons
    assert all(f'"{v}"' in workflow for v in pythons)


def test_the_code_is_valid_for_the_oldest_python():
    oldest = tuple(map(int, settings["min_python"].split(".")))
    for path in (ROOT / "simpsons_llm").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf8"), feature_version=oldest)


# ---- other people's private methods --------------------------------------------------------------------------------


def overridden(cls, of):
    "(name, ours, theirs) of the methods of `cls` and its bases up to `of`."
    ours = [c for c in cls.__mro__ if c not in of.__mro__]
    return [(name, f, getattr(of, name, None)) for c in ours for name, f in vars(c).items() if inspect.isfunction(f)]


def fits(ours, theirs):
    "Whether a method can be called as the one that it takes the place of."
    kinds, mine = inspect.Parameter, inspect.signature(ours).parameters.values()
    if any(p.kind == kinds.VAR_POSITIONAL for p in mine):
        return True
    plain = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in plain for p in mine) >= sum(
        p.kind in plain for p in inspect.signature(theirs).parameters.values()
    )


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from simpsons_llm.data.samples import Sample
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.base import tiny_model
    from simpsons_llm.train.finetune import FinetuneConfig, make_trainer, training_arguments

    device, samples = find_device("cpu"), [Sample([5, 6, 7], [0.0, 1.0, 1.0])] * 4
    arguments = training_arguments(
        FinetuneConfig(run=str(tmp_path_factory.mktemp("run")), global_batch_size=2, micro_batch_size=1), 4, device
    )
    return make_trainer(tiny_model()[0], arguments, samples, samples, 0, None, arguments.output_dir)


def test_what_we_override_in_trainer_is_there_and_takes_what_ours_takes(trainer):
    "Private methods can change in any minor version; then this fails first, and says which."
    from transformers import Trainer

    found = overridden(type(trainer), Trainer)
    private = {name for name, _, theirs in found if theirs and name[0] == "_"}
    assert {
        "_get_num_items_in_batch",
        "_save_checkpoint",
        "_save_optimizer_and_scheduler",
        "_load_best_model",
    } <= private
    assert [name for name, _, theirs in found if theirs is None] == ["shard"], (
        "a method of Trainer that is overridden is not there any more"
    )
    for name, ours, theirs in found:
        if theirs:
            assert fits(ours, theirs), f"Trainer.{name} takes other arguments now: {inspect.signature(theirs)}"


def test_transformers_has_an_upper_bound():
    "The next minor version after the newest that was run; a weekly job tries what comes after it."
    (upper,) = [s for s in RUN_TIME["transformers"].specifier if s.operator == "<"]
    assert re.fullmatch(r"5\.\d+", upper.version)
