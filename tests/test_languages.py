"Scripts in other letters go the whole way: read, split, counted, drawn, trained on, asked."

import json
import warnings

import matplotlib.pyplot as plt
import pytest
from conftest import TINY

from simpsons_llm.data.dataset import prepare as prepare_data
from simpsons_llm.data.prepare import (
    PrepareConfig,
    drawn,
    leak_report,
    line_lengths,
    plain_words,
    plot_speakers,
    prepare,
    read_aliases,
    report_text,
)
from simpsons_llm.machine.cli import main
from simpsons_llm.train.loop import LoopConfig, loop

SCRIPTS = {  # heading of an episode, the mark behind a name, who speaks, what they say about {}, a direction
    "Chinese": (
        "第{}集",
        "：",
        ["玛拉", "奥托"],
        ["今天的{}又不见了，谁也不知道。", "那个{}昨天还在桌子上呢，真的。"],
        "（叹气）",
    ),
    "Japanese": (
        "第{}話",
        "：",
        ["マルラ", "オットー"],
        ["{}はどこへ行ったのでしょうか。", "{}なら机の上にありましたよ。"],
        "（ため息）",
    ),
    "Arabic": (
        "الحلقة {}",
        ": ",
        ["مارلا", "أوتو"],
        ["من أخذ {} من المطبخ هذا الصباح؟", "رأيت {} على الطاولة أمس مساء."],
        "(تتنهد)",
    ),
    "Russian": (
        "Серия {}",
        ": ",
        ["Марта", "Олег"],
        ["Кто взял {} из кухни сегодня утром?", "Вчера {} ещё стоял на столе, я видел."],
        "(вздыхает)",
    ),
    "Polish": (
        "Odcinek {}",
        ": ",
        ["Małgosia", "Łukasz"],
        ["Kto zabrał {} z kuchni dziś rano?", "Wczoraj {} stał jeszcze na stole."],
        "(wzdycha)",
    ),
}
THINGS = {
    "Chinese": "茶壶 雨伞 梯子 面包 钥匙 书".split(),
    "Japanese": "やかん 傘 はしご パン 鍵 本".split(),
    "Arabic": "الإبريق المظلة السلم الخبز المفتاح الكتاب".split(),
    "Russian": "чайник зонт стул хлеб ключ словарь".split(),
    "Polish": "czajnik parasol stołek chleb klucz słownik".split(),
}


def script(language, folder):
    "A script of six episodes."
    heading, mark, names, said, aside = SCRIPTS[language]
    rows = []
    for e, thing in enumerate(THINGS[language], 1):
        rows.append(heading.format(e))
        rows += [f"{names[i % 2]}{mark}{aside} {said[i % 2].format(thing)} {i + e * 10}" for i in range(4)]
    path = folder / f"{language}.txt"
    path.write_text("\n".join(rows), encoding="utf8")
    return path


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_script_in_another_language_goes_the_whole_way(language, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = SCRIPTS[language][2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = prepare(PrepareConfig(script=str(script(language, tmp_path)), out="data", speakers=names[0]))
    assert report["all_speakers"] == dict.fromkeys(names, 12) and report["speakers"] == [names[0]]
    assert report["account"]["rejected"] == 0 and len({s["episodes"] for s in report["sets"].values()}) == 2
    assert report["unit"] == ("letters" if language in ("Chinese", "Japanese") else "words")
    lines = [x for s in json.loads(f"[{','.join(open('data/train.jsonl', encoding='utf8'))}]") for x in s["lines"]]
    assert not any(c in x["text"] for x in lines for c in "()（）") and report["unit"] in report_text(report)
    summary = loop(LoopConfig(data="data", run="run", max_steps=2, eval_steps=2, **TINY))
    assert summary["optimizer_steps"] == 2
    capsys.readouterr()
    assert main(["infer", "--adapter", "run", "--speaker", names[0], "--max-new-tokens", "3", f"{names[1]}: ?"]) == 0
    assert names[0] in capsys.readouterr().out


def test_a_line_that_stands_in_train_is_found_without_blanks_between_words(tmp_path):
    from simpsons_llm.data.lines import Line, Scene

    said, near = (
        "今天的壶又丢了，谁也不许出门，大家都在原地等着吧。",
        "你听：今天的壶又丢了，谁也不许出门，大家都在原地等着。",
    )
    held = [Scene(2, 0, "", (Line(2, 0, "玛拉", said),)), Scene(3, 0, "", (Line(3, 0, "玛拉", near),))]
    found = leak_report([Scene(1, 0, "", (Line(1, 0, "奥托", said),))], held)
    assert found["lines"] == 2 and found["line_share"] == 0.5 and 0.5 < found["ngram_share"] < 1
    assert [len(plain_words(t)) for t in ("你好吗？", "Are you well?", "どこ ですか")] == [3, 3, 5]
    assert line_lengths(held)[1] == "letters"


def test_names_that_no_font_has_are_drawn_as_their_places():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = "\U0001e900\U0001e901"  # letters of Adlam, which few machines have
        from simpsons_llm.data.lines import Line, Scene

        lines = tuple(Line(1, i, n, "Hi.") for i, n in enumerate(["Ada"] * 3 + [odd] * 2 + ["مارلا"]))
        ax = plot_speakers({"train": [Scene(1, 0, "", lines)]})
        ax.figure.savefig("/dev/null", format="png")
        plt.close(ax.figure)
    shown = [t.get_text() for t in ax.get_yticklabels()]
    assert shown[-1] == "Ada" and shown[-2] in ("speaker 2", odd) and shown[0] == "مارلا"
    assert drawn(["Ada"]) == ["Ada"]


def test_aliases_join_people_and_a_bad_row_is_named(tmp_path):
    rows = "".join(
        f"Episode {e}\nMarla: Line {e} of mine.\nMrs. Quill: Line {e} again.\nOtto: Yes {e}.\n" for e in range(1, 6)
    )
    (tmp_path / "x.txt").write_text(rows)
    (tmp_path / "names.txt").write_text("# people\nMarla Quill = Marla, MRS QUILL\n")
    data = prepare_data(tmp_path / "x.txt", ["Marla Quill"], aliases=str(tmp_path / "names.txt"), max_leak=1.0)
    assert data.report["all_speakers"] == {"Marla Quill": 10, "Otto": 5}
    (tmp_path / "old.txt").write_bytes("Zoé Brandt = Otto, André".encode("cp1252"))
    assert read_aliases(str(tmp_path / "old.txt"))["otto"] == "Zoé Brandt"
    with pytest.raises(FileNotFoundError, match="no file of names at nowhere.txt"):
        read_aliases("nowhere.txt")
    for text, says in (("Marla Quill", "row 1 of names.txt"), ("A = B\nC = B", "gives 'B' to 'C'")):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(ValueError, match=says):
            read_aliases(str(tmp_path / "names.txt"))


def test_a_doubtful_reading_is_shown_with_a_warning_and_a_bad_one_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"Ada: Row {i} of {i}.\nGuest {chr(65 + i)}: Once.\nOtto: No {i}.\n" for i in range(12))
    (tmp_path / "doubtful.txt").write_text(rows)
    assert main(["prepare", "--script", "doubtful.txt", "--split", "scene", "--max-leak", "1"]) == 0
    out = capsys.readouterr().out
    assert "WARNING: 33% of the lines are said by names that speak once" in out and "Ada: Row 0 of 0." in out
    (tmp_path / "bad.txt").write_text("".join(f"Step {i}: take bowl {i}\n" for i in range(30)))
    assert main(["prepare", "--script", "bad.txt", "--out", "new"]) == 2
    assert "does not look like dialogue" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_command_that_the_report_prints_holds(tmp_path, monkeypatch, capsys):
    import shlex

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my script.txt").write_text("".join(f"Dr. Ada, M.D.: Row {i}.\nOtto: No {i}.\n\n" for i in range(9)))
    assert (
        main(["prepare", "--script", "my script.txt", "--split", "scene", "--scene-break", "blank", "--max-leak", "1"])
        == 0
    )
    told = next(x for x in capsys.readouterr().out.splitlines() if " alone: " in x)
    assert main(shlex.split(told.split("alone: ")[1])[1:]) == 0
    assert "to learn: Dr. Ada, M.D.;" in capsys.readouterr().out
    both = ["--speakers", "Dr. Ada, M.D.", "--speakers", "otto"]
    words = [
        "prepare",
        "--script",
        "my script.txt",
        "--split",
        "scene",
        "--scene-break",
        "blank",
        "--max-leak",
        "1",
        *both,
    ]
    assert main(words) == 0 and "to learn: Dr. Ada, M.D., Otto;" in capsys.readouterr().out
