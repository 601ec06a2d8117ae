"What a stranger imports: ten names, one way from a script to an answer, data for other people's trainers."

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import simpsons_llm
from simpsons_llm import Character, Data, Run, estimate, finetune, prepare

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"base_model": "tiny", "max_steps": 2, "max_seq_len": 600}


@pytest.fixture(scope="module")
def data():
    return prepare("springfield", speakers=["Homer Simpson"])


def test_every_name_is_there_and_says_what_it_is():
    assert 8 <= len(simpsons_llm.PLACES) <= 12 and set(simpsons_llm.__all__) <= set(dir(simpsons_llm))
    for name in simpsons_llm.PLACES:
        thing = getattr(simpsons_llm, name)
        assert inspect.getdoc(thing), name
        for method in [m for m in vars(thing).values() if inspect.isfunction(m)] if inspect.isclass(thing) else [thing]:
            hints = inspect.signature(method).parameters.values()
            typed = [p for p in hints if p.annotation is not p.empty or p.kind == p.VAR_KEYWORD or p.name in ("self",)]
            given = [p.name for p in hints if p not in typed]
            assert method.__name__.startswith("_") or not given or name == "export", (
                f"{name}.{method.__name__}: {given}"
            )
    with pytest.raises(AttributeError, match="no 'train_model'; it offers Character"):
        _ = simpsons_llm.train_model


def test_help_tells_the_settings():
    for function, names in ((finetune, ("max_steps", "base_model")), (estimate, ("mode",)), (prepare, ("split_seed",))):
        assert all(f"    {name} = " in (inspect.getdoc(function) or "") for name in names)


def test_type_checkers_know_the_same_names():
    source = (ROOT / "simpsons_llm" / "__init__.py").read_text(encoding="utf8")
    told = re.findall(r"^    from \.([\w.]+) import (\w+) as \2$", source, re.M)
    assert {name: place for place, name in told} == simpsons_llm.PLACES
    assert (ROOT / "simpsons_llm" / "py.typed").is_file()


def test_the_first_block_of_the_readme_runs_as_it_stands(tmp_path):
    "But for the model and the steps."
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf8"), re.S)[:1]
    assert block.startswith("from simpsons_llm import Character, finetune, prepare\n")
    shutil.copy2(ROOT / "simpsons_llm" / "data" / "springfield.csv", tmp_path / "my_script.csv")
    quick = block.replace("max_minutes=5", "max_minutes=5, base_model='tiny', max_steps=2")
    assert quick != block
    more = "assert Character.load('runs/x', 'Homer Simpson').says('A: B.', max_new_tokens=2) is not None"
    done = subprocess.run(
        [sys.executable, "-c", quick + more], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "x" / "data" / "report.json").is_file()


def test_data_in_memory_is_what_the_run_learns(data, tmp_path):
    "Nothing is written before the run; another script prepared meanwhile changes nothing."
    other = prepare("springfield", speakers=["Moe Szyslak"])
    run = finetune(data, tmp_path / "x", **QUICK)
    assert run.data().report["speakers"] == ["Homer Simpson"] != other.report["speakers"]
    assert list(run.character().known) == ["Homer Simpson"]
    again = finetune(data, tmp_path / "x", **{**QUICK, "max_steps": 3})
    assert again.summary.optimizer_steps == 3 and Run(tmp_path / "x").summary.optimizer_steps == 3
    # from a folder: the same
    written = prepare("springfield", ["Homer Simpson"], out=tmp_path / "data")
    assert Data.load(tmp_path / "data").report["data_sha256"] == data.report["data_sha256"]
    same = finetune(written, tmp_path / "y", **QUICK)
    assert same.summary.valid_loss_nats_best == run.summary.valid_loss_nats_best
    assert not (tmp_path / "y" / "data").exists()


def test_what_a_run_learned_from_is_told_or_refused(data, tmp_path):
    "Other characters in the same folder, other data where it lay, other characters on resuming: never silently."
    marge, bart = (prepare("springfield", speakers=[name]) for name in ("Marge Simpson", "Bart Simpson"))
    # the same scenes in the same splits: only whom to learn differs
    assert marge.report["data_sha256"] == bart.report["data_sha256"]
    assert finetune(marge, tmp_path / "x", **QUICK).data().report["speakers"] == ["Marge Simpson"]
    run = finetune(bart, tmp_path / "x", **QUICK)
    assert run.data().report["speakers"] == ["Bart Simpson"]
    elsewhere = prepare("springfield", ["Homer Simpson"], out=tmp_path / "there")
    run = finetune(elsewhere, tmp_path / "x", **QUICK)
    assert run.data().report["speakers"] == ["Homer Simpson"] and run.data().folder == tmp_path / "there"
    prepare("springfield", ["Homer Simpson"], out=tmp_path / "there", split_seed=7)
    for ask in (run.data, run.before_after):
        with pytest.raises(ValueError, match="there is not what .*x learned from any more; prepare it again"):
            ask()
    stopped = {**QUICK, "max_steps": 6, "eval_steps": 2}
    finetune(bart, tmp_path / "y", max_minutes=1e-6, **stopped)
    with pytest.raises(ValueError, match="speakers: \\['Bart Simpson'\\] then, \\['Homer Simpson'\\] now"):
        finetune(data, tmp_path / "y", resume=True, **stopped)


@pytest.mark.parametrize("speakers", [[""], None, 5, [1], (n for n in ["Homer Simpson"])])
def test_speakers_that_are_none_are_not_everyone(speakers):
    with pytest.raises(ValueError, match="expected a list of names"):
        prepare("springfield", speakers)


def test_results_show_themselves(data, tmp_path):
    run = finetune(data, tmp_path / "x", eval_steps=1, **QUICK)
    told = estimate(data, **QUICK)
    for thing in (data, run, run.summary, told):
        html = thing._repr_html_()
        assert (
            len(html) > 100 and len(repr(thing).splitlines()) > 2 and str(tmp_path.parent) not in html.split("\n")[1:]
        )
    assert list(run.losses().columns) == ["epoch", "train_loss_nats", "valid_loss_nats", "learning_rate"]
    assert run.plot().get_ylabel() and len(run.perplexities()) == 3 and len(run.texts()) >= 1
    assert not list(tmp_path.glob("estimate*"))


def test_a_character_of_one_run_is_not_asked_of_another(data, tmp_path):
    run = finetune(data, tmp_path / "x", **QUICK)
    with pytest.raises(ValueError, match="Homer Simpson"):
        run.character("Marge Simpson")
    with pytest.raises(FileNotFoundError, match="no finished run in .*; give the folder that finetune wrote"):
        Run(tmp_path)
    assert Character.load("tiny", "Anybody").says("A: B.", max_new_tokens=2) is not None


def tokens(tokenizer, form):
    "What anybody would write for a form: words to tokens, the prompt left out of the loss."

    def one(row):
        if form == "messages":
            ids = tokenizer("\n".join(m["content"] for m in row["messages"])).input_ids
            return {"input_ids": ids[:200], "labels": ids[:200]}
        prompt, whole = tokenizer(row["prompt"]).input_ids, tokenizer(row["prompt"] + row["completion"]).input_ids
        return {"input_ids": whole[-200:], "labels": ([-100] * len(prompt) + whole[len(prompt) :])[-200:]}

    return one


@pytest.mark.parametrize("form", ["prompt_completion", "messages"])
def test_trainer_takes_it_as_it_is(form, data, tmp_path):
    "Hugging Face's Trainer, with nothing of ours but the data and the tiny model."
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from simpsons_llm.model.base import tiny_model

    model, tokenizer = tiny_model()
    sets = data.to_datasets(form)
    some = sets["train"].select(range(24)).map(tokens(tokenizer, form), remove_columns=sets["train"].column_names)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=8, learning_rate=0.01, logging_steps=1, report_to="none", use_cpu=True, seed=1
    )
    trainer = Trainer(
        model, arguments, train_dataset=some, data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True)
    )
    trainer.train()
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("form", ["prompt_completion", "messages"])
def test_trl_takes_it_as_it_is(form, data, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed; run by hand: pip install trl")
    from simpsons_llm.data.prompt import CHATML
    from simpsons_llm.model.base import tiny_model

    model, tokenizer = tiny_model()
    tokenizer.chat_template = CHATML[0]
    some = data.to_datasets(form)["train"].select(range(24))
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=8, learning_rate=0.01, logging_steps=1, report_to="none", use_cpu=True, max_length=200
    )
    trainer = trl.SFTTrainer(model, arguments, train_dataset=some, processing_class=tokenizer)
    trainer.train()
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.2
