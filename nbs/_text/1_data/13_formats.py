# %%
#| default_exp data.formats

# %% [markdown]
# # Reading a script
#
# > One call for any script: tables, plain text, Fountain screenplays and the samples of earlier projects.
#
# People keep scripts in many forms. Whatever the form, this chapter ends with the same scenes and the same account of all rows; nothing is dropped silently. Tables are read in [lines, scenes and the public table](10_lines.ipynb); here come plain text (`Speaker: line`), Fountain screenplays, and the JSON samples (`p/c/l` or `instruction/input/output`) that earlier fine-tuning projects use. What the words mean to a model is told in [text for the model](15_prompt.ipynb).

# %%
#| export
import json
import re
import string
from collections import Counter
from operator import attrgetter
from pathlib import Path

import simpsons_llm
from simpsons_llm.data.lines import (
    HINT,
    Line,
    Rejected,
    Scene,
    Script,
    clean,
    decode,
    has_words,
    read_table,
    scenes_of,
    without_directions,
)
from simpsons_llm.machine.job import collector_off, require

# %%
#| hide
import tempfile

import pandas as pd

from simpsons_llm.data.lines import COLUMNS

pd.set_option("display.max_colwidth", 110)


# %% [markdown]
# ## From bytes to text
#
# Files come with byte order marks, as UTF-8, UTF-16 or in the Latin-1 family of older Windows programs. UTF-8 is strict: text in another encoding fails to decode as UTF-8 almost surely, so trying it first is safe. Windows-1252 accepts nearly anything, so it comes last.

# %%
#| export
def decode(
    data: bytes,  # a file's bytes
    name: str = "file",  # its name, for the error
    encoding: str | None = None,  # a codec's name; None: find out
) -> tuple:  # (text with \n line ends, name of the encoding)
    "Text of a script file, whatever wrote it."
    bom = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else None
    for codec in [encoding] if encoding else [bom] if bom else ["utf-8-sig", "cp1252", "latin-1"]:
        try:
            text = data.decode(codec)
            break
        except UnicodeDecodeError:
            continue
        except LookupError:
            raise ValueError(f"encoding {codec!r} is not known; use a name such as utf-8, cp1252 or utf-16") from None
    else:
        raise ValueError(f"{name} is not text in encoding {encoding or bom}; leave the encoding out or name another")
    if codec == "utf-8-sig" and data[:3] != b"\xef\xbb\xbf":
        codec = "utf-8"
    require("\0" not in text, f"{name} holds binary data, not a script; expected a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n"), codec


# %% tags=["example"]
decode("Moe: Order a café, pal.".encode("utf-8-sig")), decode("Moe: Order a café, pal.".encode("cp1252"))

# %% tags=["check"]
for codec in ("utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"):
    assert decode("café\r\n".encode(codec))[0] == "café\n"
for bad, encoding in ((b"PK\0\0", None), (b"caf\xe9", "utf-8"), (b"x", "klingon")):
    try:
        decode(bad, "x.csv", encoding)
        raise AssertionError
    except ValueError:
        pass

# %% [markdown]
# ## One call for any script
#
# `read_script` finds out what a file is: by its name where the ending says so, else by what stands in it. The name `springfield` means the script that comes with the package: original scenes, written for this book, with the characters everybody knows.

# %%
#| export
READERS = {"table": read_table, "text": read_text, "fountain": read_fountain, "json": read_records}


def find_format(
    name: str,  # a file's name
    text: str,  # what stands in it
) -> str:  # a key of `READERS`
    "What kind of script a file holds."
    suffix, begin = Path(name).suffix.lower(), text.lstrip()
    if (
        suffix in (".json", ".jsonl", ".ndjson")
        or re.match(r"\{|\[\s*[\[{\]]", begin)
        or (suffix in (".csv", ".tsv") and begin[:1] == "[")
    ):
        return "json"
    if suffix in (".fountain", ".spmd"):
        return "fountain"
    if suffix in (".csv", ".tsv") or {"raw_text", "speaking_line"} <= set(
        re.findall(r"\w+", begin[: begin.find("\n")].lower())
    ):
        return "table"
    headings = re.findall(r"^(?:INT|EXT|EST|INT\.?/EXT|I/E)\. ", text, re.M)
    return (
        "fountain"
        if headings and len(headings) > len(re.findall(r"^\S[^:\n]{0,59}:\s+\S", text, re.M)) / 10
        else "text"
    )


# %%
#| export
def read_script(
    path: "str | Path",  # a script file, or "springfield": the script that comes with the package
    keep_directions: bool = False,  # keep (STAGE DIRECTIONS) inside lines
    encoding: str | None = None,  # a codec's name; None: find out
    format: str = "auto",  # table, text, fountain or json; auto: find out
) -> Script:  # FileNotFoundError or ValueError, in one sentence, when it cannot be read
    "Read a script, whatever its format."
    require(format == "auto" or format in READERS, f"format={format!r} was given; expected auto, {', '.join(READERS)}")
    path = Path(simpsons_llm.__file__).parent / "data" / "springfield.csv" if str(path) == "springfield" else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no script at {path}; give the path of a table, text, Fountain or JSON file, "
            "or springfield for the script that comes with the package"
        )
    text, encoding = decode(path.read_bytes(), path.name, encoding)
    require(text.strip(), f"{path.name} is empty; {HINT}")
    with collector_off():
        script = READERS[find_format(path.name, text) if format == "auto" else format](text, path.name, keep_directions)
    if not script.lines:
        why = (
            "; ".join(f"{r}: {n} rows" for r, n in Counter(r.reason for r in script.rejected).most_common(3))
            or "it has no spoken rows"
        )
        raise ValueError(f"{path.name} holds no spoken line that can be used ({why}); read as {script.format}, {HINT}")
    script.path, script.encoding = str(path), encoding
    return script


# %% [markdown]
# The script that comes with the book:

# %% tags=["example"]
script = read_script("springfield")
script.account()

# %% tags=["example"]
pd.DataFrame(
    [(line.speaker, line.text) for line in script.scenes[0].lines], columns=["speaker", script.scenes[0].location]
)

# %% tags=["check"]
account = script.account()
assert account["rows"] == account["kept"] and account["rejected"] == account["recovered"] == 0
assert account["spoken"] == len(script.lines) == sum(script.speakers.values())
assert all(len({line.location for line in s.lines}) == 1 for s in script.scenes)


# %% [markdown]
# The same scenes, written in each of the other formats, come back as the same lines:

# %% tags=["check"]
def as_text(scenes):
    return "\n".join(
        f"[Episode {s.episode}]\n[{s.location}]\n" + "".join(f"{line.speaker}: {line.text}\n" for line in s.lines)
        for s in scenes
    )


def as_fountain(scenes):
    return "".join(
        f"# Episode {s.episode}\n\n.{s.location}\n\n" + "".join(f"@{line.speaker}\n{line.text}\n\n" for line in s.lines)
        for s in scenes
    )


def as_records(scenes):
    return json.dumps(
        [
            {"p": "\n".join(f"{b.speaker}: {b.text}" for b in s.lines[:i]), "c": line.speaker, "l": line.text}
            for s in scenes
            for i, line in enumerate(s.lines)
        ]
    )


want = [[(line.speaker, line.text) for line in s.lines] for s in script.scenes]
for name, write in (("s.txt", as_text), ("s.fountain", as_fountain), ("s.json", as_records)):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(write(script.scenes), encoding="utf8")
        again = read_script(Path(folder) / name)
    assert [[(line.speaker, line.text) for line in s.lines] for s in again.scenes] == want and not again.rejected, name

# %% [markdown]
# ## A damaged table
#
# A copy of the script with three kinds of damage: a row with a field too many, a row with too few, an episode that is not a number. All rows are still accounted for, and the scenes that were not touched are the same.

# %% tags=["example"]
rows = Path(script.path).read_text(encoding="utf8").splitlines()
rows[10] += ",surplus"
rows[20] = "too,few"
rows[30] = rows[30].replace(",1,", ",one,", 1)
with tempfile.TemporaryDirectory() as folder:
    damaged = Path(folder) / "damaged.csv"
    damaged.write_text("\n".join(rows), encoding="utf8")
    broken = read_script(damaged)
pd.DataFrame([(r.row, r.reason, r.text[:60]) for r in broken.rejected], columns=["line", "reason", "text"])

# %% tags=["check"]
assert [r.row for r in broken.rejected] == [11, 21, 31] and broken.account()["rows"] == account["rows"]
assert [s for s in broken.scenes if s.episode > 1] == [s for s in script.scenes if s.episode > 1]
assert len(broken.lines) + sum(r.row in {line.row for line in script.lines} for r in broken.rejected) == len(
    script.lines
)

# %% [markdown]
# What cannot be read at all is refused with one sentence:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    for name, content in {
        "shopping.csv": "item,price\ndonut,1",
        "empty.csv": " ",
        "half.json": '[{"p": ',
        "headings.csv": ",".join(COLUMNS),
        "letter.txt": "Dear Sir,\nno.",
    }.items():
        (Path(folder) / name).write_text(content)
        try:
            read_script(Path(folder) / name)
            raise AssertionError(name)
        except ValueError as e:
            print(e)


# %% [markdown]
# ## A format of one's own
#
# A reader takes the text of a file, the file's name for messages, and whether directions are kept; it gives a `Script`. Often it is enough to write the text in a form that is read already, and the account of its rows comes with that. An entry in `READERS` makes the reader known to `file_format` and `--file-format`; a line in `find_format` lets files be recognised by themselves. So a format that stays is three small pieces in this chapter, and a test of what it must refuse. Here is one for rows of `Name<tab>line`:

# %% tags=["example"]
def read_tabs(text, where, keep_directions=False):
    "Rows of a name, a tab and a line."
    return read_text(re.sub(r"^([^\t\n]+)\t", r"\1: ", text, flags=re.M), where, keep_directions)


READERS["tabs"] = read_tabs
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "lab.tsv").write_text("Ada\tIs it on?\nCharles\tIt was on.\n\nAda\tI hear it.\n")
    own = read_script(Path(folder) / "lab.tsv", format="tabs")
del READERS["tabs"]
[[(line.speaker, line.text) for line in s.lines] for s in own.scenes], own.account()["rejected"]

# %% tags=["check"]
assert [[line.speaker for line in s.lines] for s in own.scenes] == [["Ada", "Charles"], ["Ada"]]
