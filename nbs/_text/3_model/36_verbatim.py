# %%
#| default_exp model.verbatim

# %% [markdown]
# # Said before, word for word
#
# > How much of what a model says stands in the lines that it learned from.
#
# A model that has read a script too often stops writing and starts to recite. Its lines then sound exactly like the character, since they are the character's, and every measure of likeness goes up. So each of them needs this one beside it: the share of runs of eight words that also stand in the training lines. People repeat themselves, too: a show has its sayings. The share of *real* held-out lines, which nobody could have copied, says how much is normal.

# %%
#| export
from collections.abc import Iterable

from simpsons_llm.data.prepare import NGRAM, ngrams, plain_words, span

# %%
#| hide
import matplotlib.pyplot as plt
import pandas as pd

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes


# %%
#| export
class Seen:
    "The runs of words of training lines; texts are looked up in it."

    def __init__(
        self,
        lines: Iterable[str],  # training lines
        n: int = NGRAM,  # words of a run, 1 or more; of a script without blanks between words, twice as many letters
    ):
        self.n, self.words = n, [plain_words(text) for text in lines]
        self.runs: set = set().union(*(ngrams(w, n * span(w)) for w in self.words))
        self._of: dict = {}  # length -> all runs of it

    def count(
        self,
        text: str,  # a line
    ) -> tuple:  # (runs of it that were seen, runs of it); (0, 0) for a line that is shorter than a run
        "How many runs of a line were seen."
        words = plain_words(text)
        own = ngrams(words, self.n * span(words))
        return len(own & self.runs), len(own)

    def share(
        self,
        texts: Iterable[str],  # lines
    ) -> float:  # 0..1; 0 where no line is as long as a run
        "The share of all runs of some lines that were seen."
        counts = [self.count(text) for text in texts]
        return sum(c for c, _ in counts) / max(sum(n for _, n in counts), 1)

    def longest(
        self,
        text: str,  # a line
    ) -> int:  # words
        "The longest run of a line that stands in one training line."
        words = plain_words(text)
        for n in range(1, len(words) + 1):
            if n not in self._of:
                self._of[n] = set().union(*(ngrams(w, n) for w in self.words))
            if self._of[n].isdisjoint(ngrams(words, n)):
                return n - 1
        return len(words)


# %% [markdown]
# Three lines against two that were learned. A line of six words has no run of eight, and counts for nothing:

# %% tags=["example"]
learned = ["Facts are meaningless. You could use facts to prove anything that is even remotely true.", "I am so smart."]
seen = Seen(learned)
said = [
    "You could use facts to prove anything that is wrong, Lisa.",
    "I could use a donut to prove that nothing is even remotely good.",
    "I am so smart, I mean it.",
]
pd.DataFrame([(t, *seen.count(t), seen.longest(t)) for t in said], columns=["line", "seen", "runs", "longest run"])

# %% tags=["check"]
assert [seen.count(t) for t in said] == [(2, 4), (0, 6), (0, 0)] and [seen.longest(t) for t in said] == [9, 3, 4]
assert seen.share(said) == 2 / 10 and seen.share([]) == seen.share(said[2:]) == 0 and seen.share(learned) == 1

# %% [markdown]
# How much do people repeat themselves? The held-out lines of the book's script, against its training lines, for runs of several lengths. They hardly ever share eight words in a row with them, so a model that does so often has copied:

# %% tags=["example"]
parts = split_scenes(read_script("springfield").scenes)
lines = {name: [line.text for s in scenes for line in s.lines] for name, scenes in parts.items()}
human = pd.Series({n: Seen(lines["train"], n).share(lines["valid"] + lines["test"]) for n in range(1, 9)})
ax = human.plot.bar(figsize=(6.4, 2.2), color="#f2c500", rot=0)
ax.set(xlabel="words of a run", ylabel="share that was seen")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% tags=["check"]
assert human.is_monotonic_decreasing and human[1] > 0.5 and human[8] < 0.02

# %% [markdown]
# You can now tell a model that has learned a voice from one that has learned the lines.

# %% [markdown]
# ### Exercises
#
# 1. A model's lines hold 240 runs of eight words, 3 of which were seen. People have a share of 0.2 %. Is it within one point of them?
# 2. Why is a run of eight counted, and not a whole line?

# %% tags=["check"]
assert not 3 / 240 <= 0.002 + 0.01  # 1.25 % is more than 1.2 %
whole = "You could use facts to prove anything that is even remotely true, Marge."
assert whole not in learned and seen.share([whole]) > 0.8  # a word more, and a whole line is no longer the same
