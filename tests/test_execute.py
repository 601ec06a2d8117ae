"Values as they are typed, and whose fault an error is."

import pytest

from simpsons_llm.machine.job import find_chapter, require
from simpsons_llm.ranks.execute import ChapterError, JobError, check_parameters, exit_code, plain_value, read_parameters


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("5", 5),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("None", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("", ""),
        ("007", "007"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("nan", "nan"),
        ("1,2", "1,2"),
        ("[1]", "[1]"),
        ("Homer: 5", "Homer: 5"),
        (" 5", " 5"),
        (7, 7),
    ],
)
def test_what_is_typed_keeps_its_meaning(text, wanted):
    found = plain_value(text)
    assert found == wanted and type(found) is type(wanted)


def test_what_is_typed_overrules_the_file(tmp_path):
    (tmp_path / "p.yaml").write_text("max_steps: 10\nrun: runs/x\n")
    assert read_parameters([("max_steps", "3"), ("seed", "7")], str(tmp_path / "p.yaml")) == {
        "max_steps": 3,
        "run": "runs/x",
        "seed": 7,
    }


def test_a_parameter_that_a_chapter_does_not_have_is_refused():
    with pytest.raises(ValueError, match="did you mean max_steps"):
        check_parameters({"max_step": 3}, find_chapter("finetune"))
    assert check_parameters({"max_steps": 3}, find_chapter("finetune")) == {"max_steps": 3}


def test_exit_codes_tell_whose_fault_it_was():
    def code_of(do):
        try:
            do()
        except BaseException as e:
            return exit_code(e)

    def interrupted():
        raise KeyboardInterrupt

    assert code_of(lambda: require(False, "2 was given; expected 3")) == 2  # said by the package
    assert code_of(lambda: int("x")) == 1  # not meant for the user
    assert code_of(lambda: open("/no/such/file")) == 2  # a file, whoever noticed
    assert code_of(interrupted) == 130
    assert exit_code(JobError("rank 1 failed", 2)) == 2
    assert exit_code(ChapterError("ValueError", "", "x.ipynb", "raise ValueError(message)")) == 2
    assert (
        exit_code(ChapterError("ValueError", "", "x.ipynb", "int('x')"))
        == exit_code(ChapterError("RuntimeError", "", "x.ipynb", "raise RuntimeError"))
        == 1
    )
