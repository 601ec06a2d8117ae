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
from collections.abc import Iterable, Iterator
from pathlib import Path

from simpsons_llm.data.prepare import known_speaker
from simpsons_llm.data.prompt import TextMaker
from simpsons_llm.machine.device import find_device
from simpsons_llm.machine.job import require
from simpsons_llm.model.adapter import find_trained, load_tuned, merge
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
    ):
        require(isinstance(name, str) and name.strip(), 'no name was given; say who speaks, such as "Homer Simpson"')
        self.name, self.model, self.maker, self.sampling, self.known = name, model, maker, sampling, tuple(known)

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
        chosen = self.sampling.changed(**sampling)
        where, rows, name = self.request(lines, location, random_seed)
        return stream_line(self.model, self.maker, where, rows, name, chosen, random_seed)

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
