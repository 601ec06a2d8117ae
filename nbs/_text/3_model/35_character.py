# %%
#| default_exp model.character

# %% [markdown]
# # A character
#
# > A model and a name: what one talks to.
#
# Whoever has trained a character wants to hear it, and not to carry model, tokenizer, template and notes from call to call. A `Character` holds them. It answers one line at a time, several times over, or piece by piece; what it is asked with is what it was trained with, since all of it goes through [finishing a line](33_infer.ipynb).

# %%
#| export
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from simpsons_llm.data.prepare import known_speaker
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import require
from simpsons_llm.model.adapter import find_trained, load_several, load_tuned, merge
from simpsons_llm.model.base import load_base
from simpsons_llm.model.decode import SAMPLING, Sampling
from simpsons_llm.model.infer import finish_lines, lines_of, stream_line

# %%
#| hide
import tempfile

import torch

from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.model.adapter import add_adapter, save_adapter


# %% [markdown]
# A character is loaded from a run, or from a base model that was never trained: the "before". A run knows whom it learned; a name that it does not know is refused, with those that it does. Base models know everybody a little.

# %%
#| export
def learned_speaker(
    name: str,  # as somebody wrote it
    known: dict,  # name -> number of lines, of those that were learned; empty: not known
) -> str:  # as it was learned; ValueError with those that were
    "A character of a run."
    require(isinstance(name, str), f"name={name!r} was given; expected a name, such as 'Homer Simpson'")
    try:
        return known_speaker(name, known)
    except ValueError as e:
        learned = ", ".join(list(known)[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
        raise ValueError(f"{name!r} was not learned by this run, which knows {learned}") from e


class Character:
    "Somebody who answers."

    def __init__(
        self,
        name: str,  # who speaks, in full
        model,  # a model, with or without adapter
        maker: TextMaker,  # tokenizer and template of its training
        sampling: Sampling = SAMPLING["book"],  # how words are drawn
        known: Iterable[str] = (),  # all characters of its training; empty: not known
        adapter: str = "",  # its name, where the model holds several
    ):
        require(isinstance(name, str) and name.strip(), 'no name was given; say who speaks, such as "Homer Simpson"')
        self.name, self.model, self.maker, self.sampling, self.known = name, model, maker, sampling, tuple(known)
        self.adapter = adapter

    @classmethod
    def load(
        cls,
        source: "str | Path",  # a run's folder, an adapter's, or a base model by name
        name: str = "",  # who speaks; empty: whom the run learned most from
        base_model: "str | None" = None,  # adapters: another name for the same base; None: as the run says
        device: str = "auto",  # "xpu", "cuda", "cpu"; auto: the best there is
        dtype: str = "auto",  # "bfloat16", "float32"; auto: as the device has it
        sampling: "str | Sampling" = "book",  # how words are drawn: "book", "seed", "greedy", or settings of one's own
    ) -> "Character":  # FileNotFoundError or ValueError if there is no such model or name
        "A character, ready to answer."
        if not isinstance(sampling, Sampling):
            require(sampling in SAMPLING, f"sampling={sampling!r} was given; expected {', '.join(SAMPLING)}")
            sampling = SAMPLING[sampling]
        place = find_device(device, dtype)
        if Path(source).is_dir() and any((Path(source) / f).exists() for f in MARKS):
            trained = find_trained(source)
            known = trained.notes.get("speakers") or {}
            name = learned_speaker(name, known) if name else next(iter(known), "")
            model, tokenizer, notes = load_tuned(source, place, base_model)
            return cls(name, merge(model), TextMaker.of_notes(tokenizer, notes), sampling, known)
        model, tokenizer = load_base(str(source), place)
        return cls(name, model.eval(), TextMaker(tokenizer), sampling)

    def answers(
        self,
        lines: "str | list[str]",  # what was said before: "Name: line" rows
        n: int = 3,  # how many answers, 1 or more
        location: str = "",  # where the scene is; may be empty
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        **sampling,  # single settings of `Sampling`: temperature, top_p, max_new_tokens ...
    ) -> list[str]:  # ValueError for a setting that cannot be
        "Several answers to the same words, all drawn at once."
        require(isinstance(n, int) and n >= 1, f"n={n!r} was given; expected a whole number, 1 or more")
        request = self.request(lines, location, random_seed)
        self.get_ready()
        return finish_lines(self.model, self.maker, [request] * n, self.sampling.changed(**sampling), random_seed)

    def request(
        self,
        lines: "str | list[str]",  # what was said before: "Name: line" rows
        location: str,  # where the scene is; may be empty
        random_seed: int,  # of the sampling
    ) -> tuple:  # (location, `Line`s, name), as `finish_lines` takes it; ValueError for what is neither
        "What a caller gave, looked at."
        rows = [lines] if isinstance(lines, str) else lines
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, str) for row in rows):
            raise ValueError(
                f"lines={lines!r} was given; expected text such as 'Marge: Dinner!', or a list of such rows"
            )
        require(isinstance(location, str), f"location={location!r} was given; expected text, such as 'Home'")
        good = isinstance(random_seed, int) and 0 <= random_seed < 2**64
        require(good, f"random_seed={random_seed!r} was given; expected a whole number from 0 to 2**64 - 1")
        return location, lines_of("\n".join(rows)), self.name

    def says(
        self,
        lines: "str | list[str]",  # what was said before: "Name: line" rows
        location: str = "",  # where the scene is; may be empty
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        **sampling,  # single settings of `Sampling`
    ) -> str:  # the line; ValueError for a setting that cannot be
        "The next line."
        return self.answers(lines, 1, location, random_seed, **sampling)[0]

    def stream(
        self,
        lines: "str | list[str]",  # what was said before: "Name: line" rows
        location: str = "",  # where the scene is; may be empty
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        **sampling,  # single settings of `Sampling`; beams cannot be streamed
    ) -> Iterator[str]:  # pieces of text; together they are what `says` gives
        "The next line, piece by piece."
        where, rows, _ = self.request(lines, location, random_seed)
        return self.reply(where, rows, self.sampling.changed(**sampling), random_seed)

    def reply(
        self,
        location: str,  # where the scene is; may be empty
        lines: list,  # the `Line`s before
        sampling: "Sampling | None" = None,  # how words are drawn; None: the character's own way
        random_seed: int = 42,  # of the sampling, 0..2**64-1
        each: "Callable | None" = None,  # called with the number of every token drawn; what it raises ends the answer
    ) -> Iterator[str]:  # pieces of text, as `stream`
        "The next line of a scene, piece by piece."
        how = sampling or self.sampling
        pieces = stream_line(self.model, self.maker, location, lines, self.name, how, random_seed, each)
        while True:
            self.get_ready()  # another character may have spoken between two pieces
            piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def get_ready(self):
        "Where the model holds several adapters, switch to this character's."
        if self.adapter and self.model.active_adapter != self.adapter:
            self.model.set_adapter(self.adapter)

    def __repr__(self):
        others = f", of {len(self.known)} characters" if len(self.known) > 1 else ""
        return f"{self.name} ({self.model.name_or_path}{others})"


# any of these makes a folder one that training left
MARKS = ("adapter", "model", "summary.json", "adapter_config.json", "simpsons_llm.json")

# %% [markdown]
# The base model as Homer. Nobody has taught it who he is:

# %% tags=["example"]
before = Character.load("smollm2-135m", "Homer Simpson")
asked = "Marge Simpson: Homer, the dog is wearing your tie again."
before.answers(asked, 3)

# %% [markdown]
# A seed gives the same answer, alone or in pieces; another seed another one. A run knows its characters, by any spelling that is not ambiguous:

# %% tags=["check"]
assert "".join(before.stream(asked)) == before.says(asked) == before.says(asked) != before.says(asked, random_seed=7)
assert before.says(asked, max_new_tokens=3) != before.says(asked)
with tempfile.TemporaryDirectory() as folder:
    base, _ = load_base("tiny", find_device("cpu", "float32"))
    model = add_adapter(base, LoRASettings(r=4, lora_alpha=8))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)  # as if it had been trained
    notes = {"base_model": "tiny", "template": "script", "speakers": {"Marge Simpson": 9, "Homer Simpson": 5}}
    save_adapter(model, Path(folder) / "adapter", notes)
    homer = Character.load(folder, "homer simpson", device="cpu")
    rows = ["Marge Simpson: Well?", "Bart Simpson: Ay!"]
    assert homer.says(rows) == homer.says("\n".join(rows))
    assert homer.name == "Homer Simpson" and Character.load(folder, device="cpu").name == "Marge Simpson"
    assert homer.says(asked) != Character.load("tiny", "Homer Simpson", device="cpu").says(asked)
    for wrong, meant in (
        (lambda: Character.load(folder, "Moe Szyslak", device="cpu"), "Marge Simpson"),
        (lambda: Character.load("tiny", device="cpu"), "who speaks"),
        (lambda: homer.says(asked, temperature=0), "temperature"),
        (lambda: homer.answers(asked, 0), "n=0"),
        (lambda: homer.says(asked, temp=1), "temperature"),
        (lambda: homer.says(asked, max_new_tokens=2.5), "whole number"),
        (lambda: homer.says(asked, random_seed=-1), "random_seed"),
        (lambda: homer.says(5), "expected text"),
    ):
        try:
            wrong()
            raise AssertionError(meant)
        except ValueError as e:
            assert meant in str(e), e


# %% [markdown]
# ## A cast
#
# A run that learned everybody's lines is a whole cast, and its characters share one model. Several runs can be a cast, too: one adapter each, over one base that is loaded once. Then nothing is merged, since the weights belong to all of them; before somebody speaks, the model is switched to the adapter that is theirs. Two runs may know the same name; the second is told apart by its run.

# %%
#| export
def load_cast(
    sources: "str | Path | list",  # a run, an adapter's folder or a base model's name; several: adapters over one base
    names: Iterable[str] = (),  # who speaks; empty: everybody whom the runs learned (a base model needs names)
    base_model: "str | None" = None,  # adapters: another name for the same base; None: as the run says
    device: str = "auto",  # "xpu", "cuda", "cpu"; auto: the best there is
    dtype: str = "auto",  # "bfloat16", "float32"; auto: as the device has it
    sampling: "str | Sampling" = "book",  # how words are drawn, as for `Character.load`
) -> (
    "dict[str, Character]"
):  # by name, those with most lines first; FileNotFoundError or ValueError as `Character.load`
    "Everybody of one run or of several, over one model."
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    require(given, "no run was given; give a run's folder, such as runs/x")
    asked = list(names)
    if len(given) == 1:
        first = Character.load(given[0], asked[0] if asked else "", base_model, device, dtype, sampling)
        who = [learned_speaker(n, dict.fromkeys(first.known, 1)) if first.known else n for n in asked] or first.known
        return {n: Character(n, first.model, first.maker, first.sampling, first.known) for n in who or [first.name]}
    sampling = sampling if isinstance(sampling, Sampling) else SAMPLING[sampling]
    model, tokenizer, adapters = load_several(given, find_device(device, dtype), base_model)
    cast: dict = {}
    for (adapter, notes), source in zip(adapters.items(), given):
        known = notes.get("speakers") or {}
        maker = TextMaker.of_notes(tokenizer, notes)
        for n in known:
            key = f"{n} ({Path(source).name})" if n in cast else n
            cast[key] = Character(n, model, maker, sampling, known, adapter)
    wanted = [learned_speaker(n, dict.fromkeys(cast, 1)) for n in asked]
    return {n: cast[n] for n in wanted or cast}


# %% [markdown]
# Two adapters over one base. Each character answers as it does alone, whoever spoke before, and also when two of them speak in turns, a piece at a time:

# %% tags=["check"]
with tempfile.TemporaryDirectory() as folder:
    runs = [Path(folder) / "first", Path(folder) / "second"]
    for k, (run, who) in enumerate(zip(runs, ({"Homer Simpson": 5, "Lisa Simpson": 2}, {"Homer Simpson": 9}))):
        torch.manual_seed(k)
        base, _ = load_base("tiny", find_device("cpu", "float32"))
        model = add_adapter(base, LoRASettings(r=4 + k, lora_alpha=8))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.2)
        save_adapter(model, run / "adapter", {"base_model": "tiny", "template": "script", "speakers": who})
    cast = load_cast(runs, device="cpu")
    assert list(cast) == ["Homer Simpson", "Lisa Simpson", "Homer Simpson (second)"]
    alone = [Character.load(run, "Homer Simpson", device="cpu").says(asked) for run in runs]
    one, other = cast["Homer Simpson"], cast["Homer Simpson (second)"]
    assert [one.says(asked), other.says(asked)] == alone and alone[0] != alone[1]
    assert [other.says(asked), one.says(asked)] == alone[::-1]
    turns = [one.stream(asked), other.stream(asked)]
    heard = ["", ""]
    for _ in range(60):
        heard = [h + next(t, "") for h, t in zip(heard, turns)]
    assert heard == alone
    assert list(load_cast(runs[0], ["lisa simpson"], device="cpu")) == ["Lisa Simpson"]
    for wrong, meant in (
        (lambda: load_cast([], device="cpu"), "no run"),
        (lambda: load_cast(runs, ["Moe"], device="cpu"), "Moe"),
    ):
        try:
            wrong()
            raise AssertionError(meant)
        except ValueError as e:
            assert meant in str(e), e
