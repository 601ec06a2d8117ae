# %% [markdown]
# # Your own script
#
# > What went wrong with scripts as people have them, how one sees it, and what becomes of each shape of file.
#
# Whoever has fine-tuned Homer wants somebody else next, and has a file: a transcript saved from a fan page, a screenplay, subtitles, years of a chat. No two of them look alike. A program that reads `Name: line` will read any of them without complaint, and learn, with exit code 0, that a character called `Until weigh choir repair` says "polite until silent". Nothing downstream notices: the loss falls. So reading is where a project such as this one is won or lost, and this chapter shows both sides: what is read, and what is refused.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from simpsons_llm import prepare, read_script
from simpsons_llm.data.formats import READERS, TYPED
from simpsons_llm.data.lines import LIMITS, measure, quality

pd.set_option("display.max_colwidth", 90)
folder = Path(tempfile.mkdtemp())


def as_file(name, text):
    "The path of a new file."
    (folder / name).write_text(text, encoding="utf8") if isinstance(text, str) else (folder / name).write_bytes(text)
    return folder / name


def as_read(path, **how):
    "A script as a frame: who says what, where."
    script = read_script(path, **how)
    rows = [(s.location, x.speaker, x.text) for s in script.scenes for x in s.lines]
    return pd.DataFrame(rows, columns=["place", "speaker", "text"])


# %% [markdown]
# ## A look at one file
#
# A page of a play, as it is printed: the name alone, the words below, in verse. There is a colon in the third line.

# %%
NAMES = ["LISA", "BART", "MAGGIE", "NED"]
SAID = [
    "Who took the ladder from the shed this morning?\nI wanted to look at the moon: it is full tonight.",
    "I did, and I am not done with it.\nListen: there is a frisbee on the roof.",
    "Then bring it down: the frisbee, not the roof.",
    "Neighbours, may I have my ladder back?\nIt says so on the rung: property of Ned.",
    "It says so now. It said less when I took it.",
    "Bart, give the man his ladder: he has been kind.",
]
speeches = [(NAMES[(i + i // 3) % 4], SAID[(i * 5 + 2) % 6]) for i in range(24)]
play = "".join(f"{who}:\n{said}\n\n" for who, said in speeches)
print(play[:230])

# %%
as_read(as_file("play.txt", play)).head(3)

# %% [markdown]
# Right. Now with a reader that only knows `Name: line`, as most scripts on the web have it, written down here in two lines. It finds speakers, too:

# %%
naive = [tuple(x.strip() for x in row.split(":", 1)) for row in play.split("\n") if row.strip() and ":" in row]
naive = pd.DataFrame([x for x in naive if x[1]], columns=["speaker", "text"])
naive["speaker"].value_counts().head(4)


# %% [markdown]
# Every row of this table is nonsense, and nothing in it looks broken. What gives it away are shares.
#
# ## How nonsense looks
#
# A few shares tell dialogue from what was taken for it, in any format. They are measured for every reading: how many rows were not understood, how much of the file is speech, how many lines belong to names that speak once, how many scenes have one line, how long names are, and how many are no names at all but the labels of forms, logs and recipes (`INFO`, `Serves`). Here is one conversation, written down in four ways, and read by each of the four readers of typed files:

# %%
def shapes(pairs):
    "The same conversation as people would type it."
    return {
        "text": "".join(f"{a.title()}: {b}\n".replace("\n", " ").strip() + "\n" for a, b in pairs),
        "play": "".join(f"{a}\n{b}\n\n" for a, b in pairs),
        "screenplay": "INT. YARD - DAY\n\n"
        + "".join(f"{'':30}{a}\n" + "".join(f"{'':15}{row}\n" for row in b.split("\n")) + "\n" for a, b in pairs),
        "fountain": "INT. YARD - DAY\n\n" + "".join(f"@{a.title()}\n{b}\n\n" for a, b in pairs),
    }


files = {kind: as_file(f"{kind}.txt", text) for kind, text in shapes(speeches).items()}
files["recipe"] = as_file(
    "recipe.txt", "".join(f"Step {i}: take bowl number {i}\nStir it {i} times: slowly.\n\n" for i in range(1, 25))
)


def qualities(path):
    "How much each reading looks like dialogue, 0 to 1."
    return [quality(READERS[kind](path.read_text(encoding="utf8"), path.name)) for kind in TYPED]


marks = pd.DataFrame({name: qualities(path) for name, path in files.items()}, index=TYPED).T
ax = plt.subplots(figsize=(5.4, 3.2), layout="constrained")[1]
ax.imshow(marks, vmin=0, vmax=1, cmap="YlGn", aspect="auto")
for (i, j), x in np.ndenumerate(marks.to_numpy()):
    ax.text(j, i, f"{x:.2f}", ha="center", va="center", fontsize=9, color="white" if x > 0.5 else "black")
ax.set_xticks(range(len(TYPED)), TYPED)
ax.set_yticks(range(len(marks)), marks.index)
ax.set(xlabel="read as", ylabel="file")
plt.show()

# %% [markdown]
# A file's row has its highest number at its own reader, or at one that reads it as well (Fountain takes most plays and screenplays: it was made so). The recipe has no such number in its row. The reader with the highest one is taken, and then there is a gate: a share beyond the first limit is shown to you, one beyond the second is refused.

# %%
pd.DataFrame(
    {
        k: {"told from": x.doubtful, "refused from": x.refused, "counts from": " ".join(map(str, x.least))}
        for k, x in LIMITS.items()
    }
).T


# %% [markdown]
# Where do the limits come from? From true and wrong readings side by side. Here are all readings of the five files above and of the springfield script, each a dot; dotted is where a share is told, the line where it is refused:

# %%
def shares(script):
    "What the gate looks at."
    m = measure(script)
    return {**m, "silent": 1 - m["speech"]}


springfield = read_script("springfield")
true, wrong = [shares(springfield)], []
for name, path in files.items():
    for kind in TYPED:
        script = READERS[kind](path.read_text(encoding="utf8"), path.name)
        if script.lines:
            (true if marks.loc[name, kind] > 0.5 else wrong).append(shares(script))
shown = {name: limit for name, limit in LIMITS.items() if limit.refused <= 1 or name == "name_words"}
_, axes = plt.subplots(2, 3, figsize=(8, 4.6), layout="constrained")
for ax, (name, limit) in zip(axes.flat, shown.items()):
    for x, (found, color) in enumerate(((true, "#6aa84f"), (wrong, "#c0504d"))):
        ax.scatter([x] * len(found), [f[name] for f in found], color=color, alpha=0.6)
    ax.axhline(limit.doubtful, color="grey", lw=1, ls=":")
    ax.axhline(limit.refused, color="grey", lw=1)
    ax.set_xticks([0, 1], ["true", "wrong"])
    ax.set(xlim=(-0.6, 1.6), title=name)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# No share alone parts the two; a wrong reading is beyond a limit in one of them. The recipe is refused, and the sentence says what else the file may be:

# %%
try:
    read_script(files["recipe"])
except ValueError as e:
    print(e)

# %% [markdown]
# ## What people really have
#
# Six shapes that used to be read wrong without a word. Rows that end where the paper does, and a blank row after every speech, which ends no scene:

# %%
fan = """Episode 4: The Ladder

Written by: Nobody in particular

[Scene: The back yard, Ned looks over the hedge while a frisbee lands on the
roof.]

Ned: Howdy, neighbours! I could not help but see that my ladder is standing in
your yard, and that Bart is standing on my ladder.

Bart: (from above) It is a free roof, [points] mostly.

[Ned leaves, shaking his head.]

Lisa: He said it politely. That is how you know that it is serious, as my
teacher says.
"""
as_read(as_file("fan.txt", fan))

# %% [markdown]
# One person in several spellings. What is certain is joined; what only may be one person is asked in the report:

# %%
spelt = ["Lisa", "LISA", "Lisa [to Ned]", "LISA (V.O.)", "Ned", "Ned Flanders"]
rows = "\n\n".join("\n".join(f"{n}: This is row {i} of part {j}." for i, n in enumerate(spelt)) for j in range(4))
data = prepare(as_file("spelt.txt", rows), split="scene")
print("\n".join(x for x in str(data).split("\n") if "spelt" in x or "one person" in x or "characters" in x))

# %% [markdown]
# A chat from a telephone: dates are no names, and a long silence ends a scene.

# %%
chat = "".join(
    f"12/03/23, {h}:{m:02d} - {who}: {said}\n"
    for h, m, who, said in [
        (9, 1, "Marge", "Who ate the cake?"),
        (9, 2, "Homer", "Define cake."),
        (9, 2, "Homer", "<Media omitted>"),
        (21, 40, "Marge", "Are you coming home?"),
        (21, 41, "Homer", "I am home.\nI am in the pantry."),
    ]
)
script = read_script(as_file("chat.txt", chat))
[[f"{x.speaker}: {x.text}" for x in s.lines] for s in script.scenes]

# %% [markdown]
# A table with columns of its own names. They are guessed, and the guess is told; `columns` says better.

# %%
table = "Season,Episode,Character,Line\n" + "".join(
    f"1,{1 + i // 4},{a.title()},{b!r}\n".replace("\\n", " ") for i, (a, b) in enumerate(speeches)
)
script = read_script(as_file("lines.csv", table.replace("'", '"')))
script.notes, script.lines[0]

# %% [markdown]
# Letters of other programs. A Russian text from an old editor is found out; where two encodings are as likely, both are shown and you choose:

# %%
russian = "".join(f"Марта: Кто взял чайник номер {i}?\nОлег: Он стоит на столе, как вчера.\n\n" for i in range(6))
script = read_script(as_file("old.txt", russian.encode("cp1251")))
script.encoding, script.lines[0].text

# %% [markdown]
# And scripts whose letters know no capitals and no blanks: names and directions are seen all the same, and a leak is counted in letters.

# %%
tea = "".join(
    f"第{i}集\n玛拉：今天的茶又丢了，这是第{i}次。（叹气）\n奥托：谁也不许出去，窗户都关着呢，门也关着。\n\n"
    for i in range(1, 7)
)
data = prepare(as_file("tea.txt", tea), max_leak=1.0)
print("\n".join(x for x in str(data).split("\n") if "leak" in x or "rows" in x or "letters" in x))

# %% [markdown]
# The second speaker says the same in every episode. That is a leak, and without `max_leak` the split is refused.
#
# ## The shapes, and what becomes of them
#
# | you have | what happens |
# |---|---|
# | rows of `Name: line`, also `**Name:**`, `Name - line`, `NAME. line`, `Name<tab>line` | read; rows that were wrapped are joined; a blank row ends a scene, unless one stands after every speech |
# | a play, the name above the words | read, with or without a colon, verse too |
# | a screenplay in columns, with page numbers and `(MORE)` | read by its columns |
# | Fountain, Final Draft (`.fdx`) | read as their makers describe them |
# | subtitles (`.srt`, `.vtt`, `.ass`) | read; a pause ends a scene; without names nobody can be learned, and that is said |
# | an export of WhatsApp, Telegram or the like | read; a pause ends a scene |
# | a saved web page | read as the text it shows |
# | any table (`.csv`, tabs, semicolons, pipes, Parquet) | read by the names of its columns; `--columns speaker=...,text=...` says which |
# | JSON of other trainers: `messages`, ShareGPT, prompt/completion, `p/c/l`, instructions with names | read, a conversation a scene |
# | a folder of `datasets`, or `hub:OWNER/NAME` | read as the records in it |
# | any of these in `.gz` | opened first |
# | PDF, Word, RTF, images, a film | named as what they are, with the way to make text of them |
# | something that is no dialogue | refused, with the three best guesses of what it is |
#
# Stage directions go, in brackets of all kinds, unless `--keep-directions` is given. Episodes are found in most ways of counting them; seasons are kept apart. Then:
#
# ```
# simpsons-llm prepare --script my_script.txt --out runs/data
# ```
#
# The report says who speaks how much, under which spellings, and shows three scenes as they were read. Ten seconds of looking at these are worth more than any gate.
#
# ## You can now
#
# tell from a few numbers whether a file was read or misread, and name the option that mends it. Two things to try:
#
# 1. Which of the shares gives away a shopping list with prices (`Milk: 2`), and why is `name_words` not it?
# 2. Take the blank rows out of the play above. Who still reads it, and by what?

# %% tags=["solution"]
shopping = as_file(
    "list.txt",
    "".join(
        f"{thing}: {i}\n"
        for i, thing in enumerate(
            "Milk Bread Tea Rice Salt Eggs Jam Oil Soap Figs Nuts Corn Peas Beans Kale Leek Plum Pear".split()
        )
    ),
)
found = {k: round(v, 2) for k, v in shares(READERS["text"](shopping.read_text(), "list.txt")).items()}
print(
    "1. lines_once:",
    found["lines_once"],
    "- every name speaks once; and names of one word are as short as names can be:",
    found["name_words"],
)
dense = "\n".join(row for row in play.split("\n") if row)
print(
    "2.",
    {kind: len(READERS[kind](dense, "x").lines) for kind in TYPED},
    "- 'text', by the colon behind the name that comes again",
)

# %% tags=["check"]
script = read_script(as_file("play.txt", play))
assert [(x.speaker, x.text) for x in script.lines] == [(a, b.replace("\n", " ")) for a, b in speeches]
for kind, path in files.items():
    if kind != "recipe":
        assert len(read_script(path).lines) == len(speeches), kind
assert len(read_script(folder / "fan.txt").lines) == 3 and len(read_script(folder / "chat.txt").scenes) == 2
