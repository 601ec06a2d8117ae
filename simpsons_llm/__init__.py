"""From a TV script to a character that talks.

    from simpsons_llm import Character, finetune, prepare

What stands in `__all__` is for those who write programs; the parts below it are the book's, chapter by chapter.
A name is looked up when it is asked for, so that importing the package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data.dataset import Data as Data
    from .data.dataset import prepare as prepare
    from .data.formats import read_script as read_script
    from .model.character import Character as Character
    from .model.infer import Sampling as Sampling
    from .talk.publish import export as export
    from .train.run import Run as Run
    from .train.run import estimate as estimate
    from .train.run import finetune as finetune

PLACES = {
    "Character": "model.character",
    "Data": "data.dataset",
    "Run": "train.run",
    "Sampling": "model.infer",
    "estimate": "train.run",
    "export": "talk.publish",
    "finetune": "train.run",
    "prepare": "data.dataset",
    "read_script": "data.formats",
}
__all__ = ["__version__", *PLACES]


def __getattr__(name):
    if name not in PLACES:
        raise AttributeError(f"simpsons_llm has no {name!r}; it offers {', '.join(PLACES)}")
    if name in ("Character", "Run"):
        import_module(".talk.chat", __name__)  # gives characters their method `chat`
    return getattr(import_module(f".{PLACES[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *PLACES})
