# %%
#| default_exp character.voice

# %% [markdown]
# # How does one measure a voice?
#
# > Whether lines sound like a character, told from the lines alone, with an interval beside each number.
#
# One could ask a language model who is speaking. Asked to tell by whom the lines of a dialogue were played, such models are right in 69 % of cases and people in 91 % ([arXiv 2508.10014](https://arxiv.org/abs/2508.10014)). A judge who is wrong so often, and who may like the prose of his own kind, is no measure of a voice. So there is no judge here. Small classifiers count letters and words, and what they can and cannot hear is shown on the lines of real people first.
#
# Others have measured so: who of a show's cast says a line ([2204.07721](https://arxiv.org/abs/2204.07721)); whether a text is attributed to the author whom a model imitates, verified as his, or detected as a machine's ([2509.14543](https://arxiv.org/abs/2509.14543)); letters' n-grams as a fingerprint of an author ([2509.24930](https://arxiv.org/abs/2509.24930)); and a few plain counts that give imitations of four famous writers away ([2603.23219](https://arxiv.org/abs/2603.23219)).
#
# Whether a line fits what was said before it is not measured here: these measures see lines, not scenes. Whether it was learned by heart is the question of [said before, word for word](../3_model/36_verbatim.ipynb).

# %%
#| export
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from simpsons_llm.data.prepare import LETTER, ngrams, plain_words
from simpsons_llm.machine.job import require

# %%
#| hide
import random

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.prepare import split_scenes


# %% [markdown]
# ## Lines of an episode
#
# All that is needed of a line: who says it, the words, and the episode. The last is what everything is grouped by, for the lines of one episode resemble each other. They have one plot, often one writer, and its jokes come back.

# %%
#| export
@dataclass(frozen=True)
class Said:
    "A line for measuring."

    episode: Hashable  # what it stands in; lines of one episode stay together
    speaker: str  # who says it
    text: str  # what is said


def by_episode(
    said: list,  # things with an `episode`, such as `Said`
) -> list:  # a list of them for each episode, in order of appearance
    "Lines, an episode at a time."
    found: dict = {}
    for s in said:
        found.setdefault(s.episode, []).append(s)
    return list(found.values())


# %% [markdown]
# The family's lines of the book's script, in three sets that share no episode. A chapter that measures needs more to measure on than training would leave it, so four in ten lines are kept for the test:

# %% tags=["example"]
family = ["Homer Simpson", "Marge Simpson", "Bart Simpson", "Lisa Simpson"]
script = read_script("springfield").scenes
parts = split_scenes(script, family, test_share=0.4)
said = {part: [Said(x.episode, x.speaker, x.text) for s in scenes for x in s.lines] for part, scenes in parts.items()}
counts = {
    part: {**{name: sum(s.speaker == name for s in lines) for name in family}, "episodes": len(by_episode(lines))}
    for part, lines in said.items()
}
pd.DataFrame(counts).T


# %% [markdown]
# ## How sure is a number?
#
# Two episodes were measured, with four lines each. In the first the speaker was told from all four, in the second from none. That is one half. If the eight lines were eight independent witnesses, this half would be known to about a third: $\pm 1.96 \sqrt{0.5 \cdot 0.5 / 8} = \pm 0.35$. But they are not. There were two episodes, and they said opposite things.
#
# The *bootstrap* asks what else could have come out: put the episodes into a hat, draw as many as there are, putting each back, and compute the number anew. With two there are four equally likely draws: first and first (1), first and second (0.5), second and first (0.5), second and second (0). Of many draws, the middle 95 % reach from 0 to 1. Two episodes say nothing, and the interval says so.

# %%
#| export
def episode_draws(
    n: int,  # episodes
    draws: int,  # how often as many are drawn
    seed: int,  # of the draws
):  # draws x n numbers of episodes
    "Episodes drawn with replacement."
    import numpy as np

    return np.random.default_rng(seed).integers(0, n, (draws, n))


def measured(
    value: float,  # on all items; NaN: it cannot be said
    drawn: Iterable[float],  # the same on each draw; NaN is left out
    episodes: int,  # how many there are to draw from
    n: int,  # items that were measured
) -> dict:  # value, low, high, n; None for what cannot be said, as the bounds of a single episode
    "A number with the bounds of the middle 95 % of its draws."
    import numpy as np

    kept = [x for x in drawn if not np.isnan(x)] if episodes > 1 else []
    low, high = np.percentile(kept, [2.5, 97.5]).tolist() if kept else (None, None)
    return {"value": None if np.isnan(value) else float(value), "low": low, "high": high, "n": n}


# %% [markdown]
# A draw may be empty, if an episode has no items, or its statistic may be undefined (NaN). Such draws are left out.

# %%
#| export
def stated(
    groups: list,  # lists of items
    which: Iterable[int],  # numbers of the groups, some of them twice
    statistic: Callable,  # list of items -> float
) -> float:  # NaN where there is no item
    "A statistic of chosen groups taken together."
    items = [x for g in which for x in groups[g]]
    return float(statistic(items)) if items else float("nan")


def interval(
    groups: list,  # a list of items for each episode, one episode or more
    statistic: Callable,  # list of items -> float
    draws: int = 400,  # of the bootstrap
    seed: int = 0,  # of the draws
) -> dict:  # value, low, high, n (items); low and high are None for a single episode, value if it is NaN
    "A statistic with its 95 % interval over episodes."
    require(groups, "no episode was given; expected a list of items for each of one or more")
    drawn = episode_draws(len(groups), draws, seed)
    value = stated(groups, range(len(groups)), statistic)
    return measured(value, [stated(groups, d, statistic) for d in drawn], len(groups), sum(map(len, groups)))


# %% tags=["example"]
two = [[1, 1, 1, 1], [0, 0, 0, 0]]
four = [[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]]
pd.DataFrame([interval(two, np.mean), interval(four, np.mean)], index=["two that disagree", "four alike"])

# %% tags=["check"]
assert interval(two, np.mean) == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 8}
assert interval(two[:1], np.mean) == {"value": 1.0, "low": None, "high": None, "n": 4}


# %% [markdown]
# Two models were measured on the same episodes. Do they differ? Their intervals may well overlap and the answer still be yes: an episode that is hard for one is hard for the other. So the difference is what is drawn, the same episodes for both.

# %%
#| export
def difference(
    pairs: list,  # for each episode (items of a, items of b), one episode or more
    statistic: Callable,  # list of items -> float
    draws: int = 400,  # of the bootstrap
    seed: int = 0,  # of the draws
) -> dict:  # value (of a minus of b), low, high, n (items of the side that has fewer); None as in `interval`
    "How much two things that were measured on the same episodes differ."
    require(pairs, "no episode was given; expected (items of a, items of b) for each of one or more")
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    every, drawn = range(len(pairs)), episode_draws(len(pairs), draws, seed)
    value = stated(a, every, statistic) - stated(b, every, statistic)
    each = [stated(a, d, statistic) - stated(b, d, statistic) for d in drawn]
    return measured(value, each, len(pairs), min(sum(map(len, a)), sum(map(len, b))))


# %% [markdown]
# Three episodes, from easy to hard. In each of them, `a` is right once more than `b`:

# %% tags=["example"]
a, b = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
pd.DataFrame(
    [interval(a, np.mean), interval(b, np.mean), difference(list(zip(a, b)), np.mean)], index=["a", "b", "a - b"]
)

# %% tags=["check"]
same = difference(list(zip(a, b)), np.mean)
assert np.allclose([same["value"], same["low"], same["high"]], 0.25) and same["n"] == 12
assert interval(a, np.mean)["low"] < interval(b, np.mean)["high"]  # the two intervals overlap

# %% [markdown]
# ## Who is speaking?
#
# "Homer, the dog is wearing your tie" is hardly said by Homer. Whom one talks to and about tells much of who one is, but a model that has learned to write "Homer" has not learned Marge's voice. So names are taken out before anything listens: whole names, and each word of a name of three letters or more. "The" is no name, nor is a word in small letters inside one with capitals.
#
# That is done bluntly. With a "Comic Book Guy" in the show every book becomes a NAME; it is the same for all speakers.

# %%
#| export
MASK = "NAME"


@lru_cache(maxsize=64)
def names_pattern(
    names: tuple,  # names of characters
):  # a compiled pattern, the longest first; None without names
    "What finds names in a text."
    found = {name.strip() for name in names}
    for name in names:
        words = re.findall(r"[^\W\d_]{3,}", name)
        found |= {w for w in words if w.lower() not in ("the", "and") and not (w.islower() and not name.islower())}
    # where no blanks stand between words, a name may begin anywhere
    whole = [
        re.escape(f) if LETTER.match(f) else rf"(?<!\w){re.escape(f)}(?!\w)"
        for f in sorted(found - {""}, key=lambda f: (-len(f), f))
    ]
    return re.compile("|".join(whole), re.IGNORECASE) if whole else None


def mask_names(
    text: str,  # a line
    names: Iterable[str],  # of characters, in full
) -> str:  # the line with "NAME" for each of them, and for each word of one
    "A line that does not say who is who."
    pattern = names_pattern(tuple(names))
    return pattern.sub(MASK, text) if pattern else text


# %% tags=["example"]
cast = sorted({s.speaker for s in said["train"]})
[mask_names(s.text, cast) for s in said["train"] if "Homer" in s.text][:3]

# %% tags=["check"]
who = ["Homer Simpson", "Krusty the Clown", "C. Montgomery Burns"]
assert mask_names("HOMER's the homeric clown, c. montgomery burns!", who) == "NAME's the homeric NAME, NAME!"
assert mask_names("Homer", []) == "Homer" and mask_names("C. Burns", who) == "C. NAME"


# %% [markdown]
# What is left is turned into numbers: how often runs of two to five letters occur within words, and single words and pairs of them, with punctuation marks as words. Each is counted by its logarithm (*sublinear*), and for less the more lines have it (TF-IDF). The commonest 20,000 and 10,000 are kept, so that some thousand lines take seconds.

# %%
#| export
def text_features(
    lowercase: bool = True,  # whether capital letters are made small
):  # a scikit-learn transformer: texts -> a sparse matrix, a row each
    "Letters and words of lines, counted."
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    counting = {"sublinear_tf": True, "lowercase": lowercase}
    return make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=20_000, **counting),
        TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), max_features=10_000, **counting),
    )


# %% [markdown]
# A linear model (logistic regression) learns a weight for each of them and each speaker. Speakers count alike, however many lines they have: who talks most in the show must not win when in doubt.
#
# Weighing is not enough. Homer's voice is known from more lines, so the model is surer of him, right or wrong. On a single line that hardly matters. But we are going to add up the log-probabilities of many lines, and a small advantage at each of them adds up as well. So it is measured: each fifth of the training lines is scored by a model of the other four, and the mean log-probability of each speaker, over lines of all speakers in equal parts, is what that speaker gets for nothing. It is subtracted.
#
# All this was chosen on validation lines, a quarter of the script, in four other splits of it (30 November 2026; some of those lines are test lines here, so what follows may look a little too good). Mean accuracy of pools of 20 lines was 0.933 as the model gives it and 0.991 with the subtraction, which also makes the strength of the regularisation matter little: `C` of 0.03, 0.1, 0.3 and 1 gave 0.990, 0.990, 0.991 and 0.991. Naive Bayes, without the subtraction, reached 0.71 at most, in three of these splits.

# %%
#| export
MIN_LINES = 5  # of a speaker, to learn the voice from
NAMED_SHARE = 0.002  # of all lines: who speaks less is hardly spoken of


class SpeakerClassifier:
    "Tells from lines who is speaking; made by `fit`."

    def __init__(
        self,
        speakers: list,  # whom it knows
        names: tuple,  # what is masked
        features,  # what makes numbers of texts
        model,  # what makes log-probabilities of them
        free,  # log-probability that each speaker gets for nothing
    ):
        self.speakers, self.names, self.features, self.model, self.free = speakers, names, features, model, free

    @classmethod
    def fit(
        cls,
        said: list,  # `Said`, of training episodes; others' lines are left out
        speakers: list,  # whom to tell apart, 2 or more, each with 5 lines or more; else ValueError
        names: Iterable[str] | None = None,  # to mask; None: `speakers`, and who has 0.2 % of all lines or more
        seed: int = 0,  # of the parts in which the free log-probability is measured
    ) -> "SpeakerClassifier":
        "Learn some voices."
        import numpy as np
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        speakers, counts = list(dict.fromkeys(speakers)), Counter(s.speaker for s in said)
        require(len(speakers) > 1, f"speakers={speakers} were given; expected 2 or more to tell apart")
        few = {s: counts[s] for s in speakers if counts[s] < MIN_LINES}
        require(
            not few, f"too few lines of {few} were given; expected {MIN_LINES} of each: leave them out, or add lines"
        )
        often = [s for s, n in counts.items() if n >= NAMED_SHARE * len(said)]
        masked = tuple(sorted({*speakers, *often} if names is None else set(names)))
        own = [s for s in said if s.speaker in speakers]
        features, y = text_features(), np.array([speakers.index(s.speaker) for s in own])
        x = features.fit_transform([mask_names(s.text, masked) for s in own])
        model = LogisticRegression(C=0.3, class_weight="balanced", max_iter=300)
        fifths = StratifiedKFold(5, shuffle=True, random_state=seed)
        unheard = cross_val_predict(model, x, y, cv=fifths, method="predict_log_proba")
        free = np.mean([unheard[y == k].mean(0) for k in range(len(speakers))], axis=0)
        return cls(speakers, masked, features, model.fit(x, y), free)

    def scores(
        self,
        texts: Iterable[str],  # lines
    ):  # lines x speakers: log-probabilities, with all speakers alike beforehand
        "How likely each speaker is for each line."
        import numpy as np
        from scipy.special import log_softmax

        texts = [mask_names(text, self.names) for text in texts]
        if not texts:
            return np.zeros((0, len(self.speakers)))
        return log_softmax(self.model.predict_log_proba(self.features.transform(texts)) - self.free, axis=1)


# %% [markdown]
# The probabilities for three lines that nobody has said. A single line says little; even the clearest of these leaves much doubt:

# %% tags=["example"]
classifier = SpeakerClassifier.fit(said["train"], family)
new = ["Mmm, sprinkled donut.", "Oh, I don't think the neighbours would like that, sweetie.", "Eat my shorts, man!"]
pd.DataFrame(np.exp(classifier.scores(new)), index=new, columns=family).round(2)

# %% tags=["check"]
assert np.allclose(np.exp(classifier.scores(new)).sum(1), 1) and classifier.speakers == family
for wrong, meant in (
    (lambda: SpeakerClassifier.fit(said["train"], family[:1]), "2 or more"),
    (lambda: SpeakerClassifier.fit(said["train"], ["Homer Simpson", "Nobody"]), "'Nobody': 0"),
):
    try:
        wrong()
        raise AssertionError(meant)
    except ValueError as e:
        assert meant in str(e), e


# %% [markdown]
# ## A voice is heard in many lines
#
# "Yes." is everybody's. Nobody can tell who says it, and no measure that looks at single lines can. So lines of one speaker are pooled, 5 or 20 or 50, their log-probabilities are added, and the speaker with the highest sum is the answer.
#
# Pools are drawn with replacement from a speaker's lines. A speaker who has fewer lines than a pool is left out, for such pools would be the same few lines over and over; as an answer that speaker stays. Every speaker counts alike, so chance is one in the number of speakers that the classifier knows. For the interval, episodes are drawn first, and pools from them.

# %%
#| export
def pool_rows(
    weights,  # of the lines, above 0
    size: int,  # lines of a pool
    pools: int,  # how many
    rng,  # a numpy Generator
):  # pools x size places in `weights`
    "Pools of lines, drawn with replacement by weight."
    import numpy as np

    edges = np.cumsum(weights)
    return np.minimum(np.searchsorted(edges, rng.random((pools, size)) * edges[-1], side="right"), len(edges) - 1)


def heard_shares(
    logs,  # lines x speakers: log-probabilities
    spoke,  # who spoke each line, as a column of `logs`
    weights,  # how often each line counts, 0 or more
    size: int,  # lines of a pool
    pools: int,  # of each speaker
    rng,  # a numpy Generator
):  # speakers x speakers: share of the row's pools in which the column was heard; NaN for one without lines
    "Who is heard in pools of one speaker's lines."
    import numpy as np

    n = logs.shape[1]
    shares = np.full((n, n), np.nan)
    for k in range(n):
        mine = np.flatnonzero((spoke == k) & (weights > 0))
        if len(mine):
            # single lines are all looked at
            rows = mine[:, None] if size == 1 else mine[pool_rows(weights[mine], size, pools, rng)]
            counted = np.bincount(logs[rows].sum(1).argmax(1), weights[mine] if size == 1 else None, n)
            shares[k] = counted / counted.sum()
    return shares


# %%
#| export
def episode_numbers(
    episodes: Iterable[Hashable],  # of lines
):  # numbers from 0, the same for lines of the same episode
    "Episodes as numbers."
    import numpy as np

    place: dict = {}
    return np.array([place.setdefault(e, len(place)) for e in episodes], dtype=np.int64)


def hearing(
    classifier: SpeakerClassifier,  # who listens
    said: list,  # `Said`; lines of speakers whom it does not know are left out
    size: int,  # lines of a pool, 1 or more; speakers with fewer are left out
) -> tuple:  # (log-probabilities, who spoke, episode numbers, speakers with enough lines)
    "Lines as the classifier hears them."
    import numpy as np

    require(size >= 1, f"size={size} was given; expected 1 line of a pool or more")
    counts = Counter(s.speaker for s in said)
    enough = [s for s in classifier.speakers if counts[s] >= size]
    own = [s for s in said if s.speaker in enough]
    spoke = np.array([classifier.speakers.index(s.speaker) for s in own], dtype=np.int64)
    return classifier.scores(s.text for s in own), spoke, episode_numbers(s.episode for s in own), enough


def pooled_accuracy(
    classifier: SpeakerClassifier,  # who listens
    said: list,  # `Said`, of episodes that the classifier has not learned from, or of a model
    size: int,  # lines of a pool, 1 or more
    pools: int = 200,  # of each speaker
    seed: int = 0,  # of episodes and pools
    draws: int = 400,  # of the bootstrap
) -> dict:  # value, low, high, n (lines), chance; value None, and `why`, if fewer than 2 speakers have enough lines
    "How often the right speaker is heard in `size` lines."
    import numpy as np

    logs, spoke, episodes, enough = hearing(classifier, said, size)
    chance = {"chance": 1 / len(classifier.speakers)}
    if len(enough) < 2:
        why = f"fewer than 2 speakers have {size} line{'s'[: size > 1]}"
        return {**measured(float("nan"), [], 0, len(spoke)), **chance, "why": why}
    rng, n = np.random.default_rng(seed), int(episodes.max()) + 1

    def accuracy(times):
        return float(np.nanmean(np.diag(heard_shares(logs, spoke, times[episodes], size, pools, rng))))

    value = accuracy(np.ones(n))
    each = [accuracy(np.bincount(d, minlength=n).astype(float)) for d in episode_draws(n, draws, seed)]
    return {**measured(value, each, n, len(spoke)), **chance}


# %% [markdown]
# How well can the family be told apart in held-out episodes? This is the ceiling. A model that writes perfect lines can score no higher, other than by writing caricatures.

# %% tags=["example"]
human = pd.DataFrame({size: pooled_accuracy(classifier, said["test"], size) for size in (1, 5, 20, 50)}).T
human.round(3)


# %%
#| export
def plot_voice(
    frame,  # rows: lines of a pool; columns value, low, high, chance, as `pooled_accuracy` gives them
    ax=None,  # matplotlib axes; None: new ones
    label: str = "real lines",  # what was measured
    color: str = "#4f86c6",  # of its curve
):  # the axes
    "Accuracy over the number of lines, with intervals and chance."
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3))
    shown = frame.dropna(subset=["value"]).astype({"value": float, "low": float, "high": float})
    ax.plot(shown.index, shown["value"], marker="o", color=color, label=label)
    ax.fill_between(shown.index, shown["low"], shown["high"], color=color, alpha=0.2, lw=0)
    if not any(line.get_label() == "chance" for line in ax.lines):
        ax.axhline(float(frame["chance"].iloc[0]), color="#777777", ls="--", lw=1, label="chance")
    ax.set(xscale="log", xlabel="lines of a pool", ylabel="share heard right", ylim=(0, 1.03))
    ax.set_xticks(list(frame.index), [str(i) for i in frame.index])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")
    return ax


# %% tags=["example"]
plot_voice(human)
plt.show()

# %% [markdown]
# From single lines the classifier is right about half of the time, from 20 it hardly ever errs. So a model is best compared at 5 and 20 lines: at 1 even people score low, and at 50 everybody is told.

# %% tags=["check"]
assert human["value"].astype(float).is_monotonic_increasing and human["value"][1] > 0.4 and human["value"][20] > 0.85
assert (human["low"] <= human["value"]).all() and (human["value"] <= human["high"]).all()
nobody = pooled_accuracy(classifier, said["test"], 500)
assert nobody["value"] is None and nobody["why"] == "fewer than 2 speakers have 500 lines"


# %% [markdown]
# ## Who is taken for whom
#
# An accuracy does not say what went wrong. A table does: in a row the one who spoke, in the columns who was heard.

# %%
#| export
def confusion(
    classifier: SpeakerClassifier,  # who listens
    said: list,  # `Said`
    size: int,  # lines of a pool, 1 or more; who has fewer gets no row
    pools: int = 200,  # of each speaker
    seed: int = 0,  # of the pools
):  # a pandas DataFrame: rows who spoke, columns who was heard, shares of the row
    "Who is heard when somebody speaks."
    import numpy as np
    import pandas as pd

    logs, spoke, _, enough = hearing(classifier, said, size)
    shares = heard_shares(logs, spoke, np.ones(len(spoke)), size, pools, np.random.default_rng(seed))
    frame = pd.DataFrame(shares, index=classifier.speakers, columns=classifier.speakers)
    return frame.loc[enough].rename_axis("spoke").rename_axis("heard", axis=1)


def plot_confusion(
    frame,  # what `confusion` gave
    ax=None,  # matplotlib axes; None: new ones
):  # the axes
    "The table as a picture, darker for more."
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(1.2 + 0.8 * frame.shape[1], 1.2 + 0.5 * frame.shape[0]))
    ax.imshow(frame.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), share in (
        (at, frame.iloc[at]) for at in ((i, j) for i in range(len(frame)) for j in range(frame.shape[1]))
    ):
        ax.text(j, i, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.6 else "black")
    ax.set_xticks(range(frame.shape[1]), frame.columns, rotation=30, ha="right")
    ax.set_yticks(range(len(frame)), frame.index)
    ax.set(xlabel="heard", ylabel="spoke")
    return ax


# %% [markdown]
# Single lines on the left, pools of five on the right:

# %% tags=["example"]
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
plot_confusion(confusion(classifier, said["test"], 1), left).set_title("1 line")
plot_confusion(five := confusion(classifier, said["test"], 5), right).set_title("5 lines")
plt.show()

# %% tags=["check"]
assert np.allclose(five.sum(axis=1), 1) and list(five.index) == list(five.columns) == family
assert abs(np.diag(five).mean() - human["value"][5]) < 0.05


# %% [markdown]
# ## Real or generated?
#
# Somebody who writes caricatures is told from others very well: "D'oh!" in each line. So a second question belongs to the first: can a line of the model be told from a real one of the same speaker, said at the same moment? A *detector* is trained to do that. It is measured by the AUC: the probability that, of a generated and a real line, the generated one gets the higher score. Here 0.5 is perfect for the model, since nothing can be told, and 1 is bad.

# %%
#| export
def auc(
    real,  # scores of real lines, one or more
    generated,  # scores of generated lines, one or more
    real_weights=None,  # weights of the first; None: all alike
    generated_weights=None,  # weights of the second; None: all alike
) -> float:  # 0..1: how often a generated one scores higher than a real one, ties one half
    "Area under the ROC curve."
    import numpy as np

    order = np.argsort(real)
    below = np.concatenate([[0.0], np.cumsum(np.ones(len(order)) if real_weights is None else real_weights[order])])
    left, right = (np.searchsorted(real[order], generated, side=side) for side in ("left", "right"))
    share = np.average((below[left] + below[right]) / 2, weights=generated_weights) / below[-1]
    return round(float(share), 9)


# %% tags=["check"]
assert auc(np.array([1.0, 2.0]), np.array([3.0, 1.0])) == (1 + 1 + 0.5 + 0) / 4  # four pairs by hand
assert auc(np.array([1.0, 2.0]), np.array([3.0, 1.0]), np.array([1.0, 0.0])) == 0.75


# %% [markdown]
# **Length must not give it away.** Many models talk too long. Then a detector says "long, so it is generated", and that is a true but dull finding, which a table of lengths shows better. So lines are compared only with lines of the same length: one or two words, three or four, and so on up to ten, then in classes that grow by 20 %. Exact numbers of words would leave too few lines to compare, and the tests show that the classes are narrow enough. In each class the side with fewer lines counts in full, and the other is weighted down to it. With 6 real and 2 generated lines of three or four words, each real one has a weight of 1/3, and each generated one of 1. Lines of a length that the other side does not have count nothing. That holds in training and in measuring, and `n` says how many pairs are left.

# %%
#| export
def length_class(
    text: str,  # a line
) -> int:  # 0 without words; a class of two numbers of words up to 10, then of lengths within 20 %
    "Which lines are as long as this one."
    words = len(plain_words(text))
    return (words + 1) // 2 if words <= 10 else 5 + math.ceil(math.log(words / 10, 1.2))


def even_weights(
    classes,  # length class of each line, 0 or more
    made,  # whether it is generated
    times,  # how often it counts, 0 or more
):  # weights: in each class, real and generated lines add up to the same
    "Weights with which length tells nothing."
    import numpy as np

    totals = np.array([np.bincount(classes, times * (made == side), classes.max() + 1) for side in (False, True)])
    own, shared = totals[made.astype(int), classes], totals.min(0)[classes]
    return np.divide(times * shared, own, out=np.zeros(len(classes)), where=own > 0)


# %% tags=["check"]
made = np.array([False] * 6 + [True] * 3)
weights = even_weights(np.array([3] * 8 + [5]), made, np.ones(9))
assert np.allclose(weights, [1 / 3] * 6 + [1, 1, 0])
assert [length_class("a " * n) for n in (0, 1, 2, 3, 10, 11, 12, 13)] == [0, 1, 1, 2, 5, 6, 6, 7]


# %% [markdown]
# **Copies must not mislead.** The detector is cross-validated by episode: each line gets its score from a detector that has seen no line of its episode. Now let a generator copy real lines, at wrong moments. No detector should find anything. But one that remembers gets it wrong *more* often than by chance: a real line of the held-out episode was in training as a generated one, and the other way round. So for each held-out line, one copy of it under the other label, if there is one, is taken out of training.
#
# Of pieces of lines this is not done. A generator that has read the held-out episodes uses their rare words, so those stand in training as generated ones, and the AUC falls *below* 0.5. Where you see that, look for what the model has read.

# %%
#| export
def without_copies(
    texts: list,  # all lines, real and generated
    made,  # whether each is generated
    held,  # whether each is held out
):  # 1.0 for lines to train on; 0.0 for held-out ones and for a copy of each with the other label
    "Which lines a detector may learn from."
    import numpy as np

    owed = Counter((text, not m) for text, m, h in zip(texts, made, held) if h)
    times = np.zeros(len(texts))
    for i in np.flatnonzero(~held):
        key = (texts[i], bool(made[i]))
        times[i] = owed[key] <= 0
        owed[key] -= 1
    return times


def detector_scores(
    texts: list,  # all lines, real and generated
    classes,  # their length classes
    made,  # whether each is generated
    episodes,  # number of each line's episode; two or more different ones
    folds: int,  # parts of the cross-validation; at most one an episode
):  # a score for each line, from a detector without its episode: higher for generated
    "How generated each line looks."
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    x, scores = text_features(lowercase=False).fit_transform(texts), np.zeros(len(texts))
    for _, out in GroupKFold(min(folds, len(set(episodes.tolist())))).split(x, groups=episodes):
        held = np.isin(np.arange(len(texts)), out)
        weights = even_weights(classes, made, without_copies(texts, made, held))
        learn = weights > 0
        if learn.any():
            detector = LogisticRegression(max_iter=300).fit(x[learn], made[learn], weights[learn])
            scores[out] = detector.decision_function(x[out])
    return np.round(scores, 6)  # a difference of rounding is none


# %% [markdown]
# Lines may be pooled here, too: the mean score of 20 lines is far surer than one. Pools of either side are drawn from all held-out lines, with the weights from above. The detector itself is not trained again for each draw of the bootstrap. So the interval is about the episodes that it is measured on, and a little too narrow: other training lines would have made another detector.

# %%
#| export
MIN_PAIRS = 5  # of equal length, for an AUC


def told_apart(
    measure: Callable,  # rows of line numbers, pools x size -> a score for each pool
    classes,  # length class of each line
    made,  # whether it is generated
    episodes,  # number of its episode
    size: int,  # lines of a pool, 1 or more
    pools: int,  # of real lines, and as many of generated ones
    seed: int,  # of episodes and pools
    draws: int = 400,  # of the bootstrap
) -> dict:  # value (AUC), low, high, n (pairs of equal length); value None, and `why`, with too few
    "How often pools of generated lines score higher than pools of real ones of the same lengths."
    import numpy as np

    require(size >= 1, f"size={size} was given; expected 1 line of a pool or more")
    rng, n = np.random.default_rng(seed), int(episodes.max(initial=-1)) + 1

    def once(times):
        weights, sides = even_weights(classes, made, times), []
        for side in (False, True):
            mine = np.flatnonzero((made == side) & (weights > 0))
            if not len(mine):
                return float("nan")
            rows = mine[:, None] if size == 1 else mine[pool_rows(weights[mine], size, pools, rng)]
            sides.append((measure(rows), weights[mine] if size == 1 else None))
        (real, real_weights), (generated, generated_weights) = sides
        return auc(real, generated, real_weights, generated_weights)

    pairs = round(even_weights(classes, made, np.ones(len(made)))[made].sum()) if len(made) else 0
    need = max(MIN_PAIRS, size // 2)  # fewer would be the same lines over and over
    if pairs < need:
        why = f"{pairs} pairs of real and generated lines of the same length; {need} are needed"
        return {**measured(float("nan"), [], 0, pairs), "why": why}
    each = [once(np.bincount(d, minlength=n)[episodes].astype(float)) for d in episode_draws(n, draws, seed)]
    return measured(once(np.ones(len(made))), each, n, pairs)


# %%
#| export
def real_or_generated(
    moments: list,  # (episode, real line, generated line), of two episodes or more
    sizes: tuple = (1, 20, 50),  # lines of a pool, 1 or more
    folds: int = 5,  # parts of the cross-validation, 2 or more; at most one an episode
    seed: int = 0,  # of episodes and pools
    pools: int = 300,  # of real lines, and as many of generated ones
) -> dict:  # size -> value (AUC), low, high, n (pairs of equal length); value None, and `why`, where it cannot be said
    "How well generated lines are told from real ones of the same length: 0.5 not at all, 1 always."
    import numpy as np

    require(folds >= 2, f"folds={folds} was given; expected 2 or more parts")
    texts = [m[1] for m in moments] + [m[2] for m in moments]
    made, episodes = np.repeat([False, True], len(moments)), np.tile(episode_numbers(m[0] for m in moments), 2)
    if len(set(episodes.tolist())) < 2:
        nothing = {**measured(float("nan"), [], 0, len(moments)), "why": "lines of fewer than 2 episodes were given"}
        return {size: dict(nothing) for size in sizes}
    classes = np.array([length_class(text) for text in texts])
    scores = detector_scores(texts, classes, made, episodes, folds)
    return {s: told_apart(lambda rows: scores[rows].mean(1), classes, made, episodes, s, pools, seed) for s in sizes}


# %% [markdown]
# First, is length really gone? The lines of each episode are dealt: a third are the real ones of this game, and of the rest as many play the generated ones, by a draw that prefers short lines. Apart from length both are the same. A detector that may look at length alone says so, and ours does not:

# %% tags=["example"]
dice, dealt = random.Random(0), []
for lines in by_episode([s for part in said.values() for s in part]):
    dice.shuffle(lines)
    first, rest = lines[: len(lines) // 3], lines[len(lines) // 3 :]
    rest.sort(key=lambda s: dice.random() ** (0.85 ** -len(s.text.split())))  # the last are short ones, mostly
    dealt += [(s.episode, s.text, t.text) for s, t in zip(first, rest[::-1])]
words = np.array([[len(plain_words(text)) for text in m[1:]] for m in dealt])
apart = real_or_generated(dealt)
print(f"{len(dealt)} moments, {words[:, 0].mean():.1f} and {words[:, 1].mean():.1f} words a line")
print(f"AUC of shortness: {auc(-words[:, 0], -words[:, 1]):.2f}")
pd.DataFrame(apart).T.round(3)

# %% tags=["check"]
assert auc(-words[:, 0], -words[:, 1]) > 0.58 and all(f["low"] < 0.5 < f["high"] for f in apart.values())

# %% [markdown]
# The intervals hold 0.5. They are much wider for pools: what little the two sides differ in by chance adds up as well, so an AUC of pools is sure only where that of single lines is.
#
# Now for some made-up generators, at all of Homer's moments in the test episodes. One says what he really says there, but in another order. One walks from word to word, choosing each from what Homer has said after the word before in the *training* episodes; it makes no sense beyond two words. And one is polite.

# %% tags=["example"]
known = [s.text for s in said["train"] if s.speaker == "Homer Simpson"]
episodes, real = zip(*((s.episode, s.text) for s in said["test"] if s.speaker == "Homer Simpson"))
follows: dict = {}
for text in known:
    for word, after in zip(["", *text.split()], [*text.split(), ""]):
        follows.setdefault(word, []).append(after)


def walk():
    "A line that is put together from pairs of words."
    words = [dice.choice(follows[""])]
    while words[-1]:
        words.append(dice.choice(follows[words[-1]]))
    return " ".join(words[:-1])


generators = {
    "his lines, shuffled": dice.sample(real, len(real)),
    "from word to word": [walk() for _ in real],
    "I like that.": ["I like that."] * len(real),
}
print(*generators["from word to word"][:3], sep="\n")
told = {g: real_or_generated(list(zip(episodes, real, texts))) for g, texts in generators.items()}
pd.concat({g: pd.DataFrame(found).T for g, found in told.items()}).round(3)

# %% tags=["example"]
_, ax = plt.subplots(figsize=(6.4, 2.8))
for k, (name, found) in enumerate(told.items()):
    value, low, high = (np.array([f[key] for f in found.values()], dtype=float) for key in ("value", "low", "high"))
    bars = np.maximum([value - low, high - value], 0)
    ax.errorbar(np.arange(3) + 0.12 * (k - 1), value, bars, fmt="o", capsize=3, label=name)
ax.axhline(0.5, color="#777777", ls="--", lw=1)
ax.set_xticks(range(3), ["1 line", "20 lines", "50 lines"])
ax.set(ylabel="AUC", ylim=(0, 1.05))
ax.legend(frameon=False, fontsize=8, loc="lower right")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Shuffled lines cannot be told at all. The polite one is always told, on the few moments at which Homer says as little. The walk is what a small language model may be like: one line of it tells something, twenty tell almost all. Mind what the first says about this measure: it sees voices, not sense. Real lines at wrong moments are real lines.

# %% tags=["check"]
assert all(abs(f["value"] - 0.5) < 0.02 for f in told["his lines, shuffled"].values())
alike = told["I like that."]
assert alike[1]["value"] > 0.95 and alike[1]["n"] < 20 and alike[50]["value"] is None and "needed" in alike[50]["why"]
assert 0.55 < told["from word to word"][1]["value"] < told["from word to word"][50]["value"]
one = real_or_generated([(1, "a b", "a c")] * 9)
assert one[1]["value"] is None and "2 episodes" in one[1]["why"]


# %% [markdown]
# ## The same hand?
#
# The detector learns what gives this one model away. A *verifier* knows nothing of models: it takes the known lines of a speaker as a profile, how often each run of three or four letters occurs, and asks how close a pool of other lines comes to it (the cosine of the two). Do real pools come closer than generated ones? Then the AUC is above 0.5. Below 0.5 the generated ones are more like the speaker than the speaker, and that is a caricature.

# %%
#| export
def verifier_auc(
    known: Iterable[str],  # lines of the speaker, of training episodes
    real: Sequence,  # other lines of the speaker
    generated: Sequence,  # generated lines
    sizes: tuple = (20,),  # lines of a pool, 1 or more
    episodes: Sequence | None = None,  # of each moment, for the interval; real and generated are then as many
    names: Iterable[str] = (),  # to mask
    pools: int = 300,  # of real lines, and as many of generated ones
    seed: int = 0,  # of episodes and pools
) -> dict:  # size -> value (AUC), low, high (None without episodes), n (pairs of equal length); None and `why` as above
    "How often a pool of real lines is closer to the known ones than a pool of generated ones of the same lengths."
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    fits = episodes is None or len(real) == len(generated) == len(episodes)
    require(
        fits, f"{len(real)} real and {len(generated)} generated lines were given; expected one each an episode given"
    )
    names, texts = tuple(names), [*real, *generated]
    counter = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), max_features=20_000, norm=None)
    profile = np.asarray(counter.fit_transform([mask_names(t, names) for t in known]).sum(0)).ravel()
    x = counter.transform([mask_names(t, names) for t in texts]).astype(np.float32)
    along, products = x @ (profile / np.linalg.norm(profile)), (x @ x.T).toarray()

    def closeness(rows):
        length = np.sqrt(products[rows[:, :, None], rows[:, None, :]].sum((1, 2)))
        return along[rows].sum(1) / np.maximum(length, 1e-9)

    made = np.repeat([False, True], [len(real), len(generated)])
    where = np.zeros(len(texts), int) if episodes is None else np.tile(episode_numbers(episodes), 2)
    classes = np.array([length_class(text) for text in texts])
    # the closer one is the real one, so signs are turned
    return {s: told_apart(lambda rows: -closeness(rows), classes, made, where, s, pools, seed) for s in sizes}


# %% [markdown]
# The training episodes are known. To them we compare what Homer says in the test episodes: beside the same lines in another order, the walk, and lines of Lisa's:

# %% tags=["example"]
lisa = [s.text for part in said.values() for s in part if s.speaker == "Lisa Simpson"]
others = {**generators, "Lisa's": dice.choices(lisa, k=len(real))}
verified = {g: verifier_auc(known, real, texts, episodes=episodes, names=cast)[20] for g, texts in others.items()}
pd.DataFrame(verified).T.round(3)

# %% tags=["check"]
assert abs(verified["his lines, shuffled"]["value"] - 0.5) < 0.08 and verified["Lisa's"]["value"] > 0.7


# %% [markdown]
# Lisa is another hand. The walk comes at least as close to the known Homer as Homer himself does, and probably closer: all that it says is made of what was known. This is what the detector and the verifier are for together. The one finds it wanting, the other tells in which direction. And five pairs of lines, as the polite one has, make an interval from 0 to 1.

# %% [markdown]
# ## Always the same?
#
# A model may have the voice and little to say. Four plain counts show it. None has a right value; each is compared to that of real lines, and on as many words of them: a hundred words repeat each other more than ten do, so who speaks in shorter lines would look more varied.
#
# - `distinct`: different runs of `n` words, as a share of all.
# - `self_bleu`: how much of a line stands in one of the others. It is the BLEU of translators, which takes the share of runs of one to four words that are found, as a geometric mean, with a penalty for lines that are short for their closest other. Each run counts once a line, and where none is found a tenth of one is assumed. At most 50 lines are compared, so that unequal numbers of lines can be.
# - `commonest_share`: how many of the lines are the commonest one.
# - `length_table`, `length_distance`: how long lines are, and how far two distributions are apart (Kolmogorov and Smirnov: the largest difference of the shares of lines of up to so many words, and how likely it would be if there were none).

# %%
#| export
def distinct(
    texts: Iterable[str],  # lines
    n: int,  # words of a run, 1 or more
) -> float:  # 0..1; 0 where no line is as long as a run
    "Different runs of words as a share of all runs."
    words = [plain_words(text) for text in texts]
    every = sum(max(len(w) - n + 1, 0) for w in words)
    return len(set().union(*(ngrams(w, n) for w in words))) / max(every, 1)


def commonest_share(
    texts: Iterable[str],  # lines
) -> float:  # 0..1; 0 without lines
    "How many lines are the commonest one, but for case and punctuation."
    counts = Counter(" ".join(plain_words(text)) for text in texts)
    return max(counts.values(), default=0) / max(counts.total(), 1)


# %%
#| export
def bleu(
    words: list,  # of a line, one or more
    others: list,  # words of the other lines, one or more
) -> float:  # 0..1
    "How much of a line stands in others, in runs of one to four words."
    import numpy as np

    shares = []
    for n in range(1, min(4, len(words)) + 1):
        own = ngrams(words, n)
        shares.append(max(len(own & set().union(*(ngrams(o, n) for o in others))), 0.1) / len(own))
    closest = min((len(o) for o in others), key=lambda n: (abs(n - len(words)), n))
    return float(np.exp(np.mean(np.log(shares)) + min(0.0, 1 - closest / len(words))))


def self_bleu(
    texts: Iterable[str],  # lines; those without words are left out
    most: int = 50,  # lines that are compared, 2 or more
    seed: int = 0,  # of the choice among more
) -> float:  # 0..1; 0 with fewer than two lines
    "How much lines are like one another."
    import numpy as np

    words = [w for text in texts if (w := plain_words(text))]
    if len(words) > most:
        words = [words[i] for i in np.random.default_rng(seed).choice(len(words), most, replace=False)]
    each = [bleu(w, words[:i] + words[i + 1 :]) for i, w in enumerate(words)] if len(words) > 1 else [0.0]
    return float(np.mean(each))


# %%
#| export
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def length_table(
    texts: Iterable[str],  # lines, one or more
) -> dict:  # share of the lines -> words that they have at most
    "How long lines are."
    import numpy as np

    words = [len(plain_words(text)) for text in texts]
    require(words, "no line was given; expected one or more")
    return dict(zip(QUANTILES, np.quantile(words, QUANTILES).tolist()))


def length_distance(
    texts: Iterable[str],  # lines, one or more
    real: Iterable[str],  # real lines, one or more
) -> dict:  # ks: largest difference of the shares of lines up to a length, 0..1; p: how likely it is by chance
    "How different two distributions of lengths are."
    from scipy.stats import ks_2samp

    one, other = ([len(plain_words(text)) for text in lines] for lines in (texts, real))
    require(one and other, f"{len(one)} and {len(other)} lines were given; expected one or more of each")
    found = ks_2samp(one, other)
    return {"ks": float(found.statistic), "p": float(found.pvalue)}


# %% tags=["example"]
measures = {
    name: {
        "distinct 1": distinct(texts, 1),
        "distinct 2": distinct(texts, 2),
        "self-BLEU": self_bleu(texts),
        "commonest": commonest_share(texts),
        "median words": length_table(texts)[0.5],
        "KS": length_distance(texts, real)["ks"],
        "p": length_distance(texts, real)["p"],
    }
    for name, texts in {"Homer": real, **generators}.items()
}
pd.DataFrame(measures).T.round(3)

# %% tags=["check"]
assert distinct(["a b a b", "b a"], 2) == 2 / 4  # a b, b a, a b; b a
assert self_bleu(["I like that."] * 3) == 1 and self_bleu(["I like that."]) == 0
assert commonest_share(["D'oh!", "d'oh", "No."]) == 2 / 3 and commonest_share([]) == 0
assert length_distance(["a"] * 4, ["a b"] * 4)["ks"] == 1 and length_table(["a b c"])[0.5] == 3
assert measures["Homer"]["self-BLEU"] < measures["I like that."]["self-BLEU"]

# %% [markdown]
# You can now say of lines whose voice they are in, whether they are told from real ones, and how sure you are of that.

# %% [markdown]
# ### Exercises
#
# 1. Three episodes have statistics of 0, 0 and 1 on as many lines each. Which is the highest value that the bootstrap can draw, and how likely is it? Is it inside the interval?
# 2. A model says "D'oh! Mmm, donuts." at each of Homer's moments. What does the speaker classifier say of pools of 20, and what says that it is not Homer?

# %% tags=["check"]
thirds = interval([[0], [0], [1]], np.mean, draws=4000)
assert thirds["high"] == 1.0  # three times the third: 1/27 = 3.7 %, more than 2.5 %
doh = ["D'oh! Mmm, donuts."] * 20
assert family[int(classifier.scores(doh).sum(0).argmax())] == "Homer Simpson"
assert commonest_share(doh) == 1 and self_bleu(doh) == 1 and commonest_share(real) < 0.05
