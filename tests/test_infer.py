"Asking a model: what it is given, what is taken of its answer, and when it is asked."

from types import SimpleNamespace

import pytest
import torch

from simpsons_llm.data.formats import read_script
from simpsons_llm.data.lines import Line, Scene
from simpsons_llm.data.prompt import CHATML, TextMaker, prompt_ids, small_tokenizer
from simpsons_llm.data.samples import row_samples
from simpsons_llm.lora.layer import LoRASettings
from simpsons_llm.model.adapter import add_adapter, save_adapter
from simpsons_llm.model.base import tiny_model
from simpsons_llm.model.decode import Sampling
from simpsons_llm.model.infer import InferConfig, finish_lines, heldout_moments, infer

SCENE = read_script("springfield").scenes[0]
REQUESTS = [(SCENE.location, SCENE.lines[:n], "Homer Simpson") for n in (6, 1, 3)]


class Saying:
    "A model that says what it is told to, and remembers how it was asked."

    config, device = SimpleNamespace(max_position_embeddings=None), torch.device("cpu")

    def __init__(self, said):
        self.said = said

    def generate(self, input_ids, attention_mask, **asked):
        self.ids, self.mask, self.asked = input_ids, attention_mask, asked
        return torch.cat([input_ids, torch.tensor([self.said] * len(input_ids))], dim=1)


@pytest.mark.parametrize("form", ["script", "alpaca", "chat"])
def test_prompts_stand_on_the_right_and_the_answer_alone_comes_back(form):
    tokenizer = small_tokenizer(300, *CHATML)
    maker, said = TextMaker(tokenizer, form), " Mmm, donuts."
    model = Saying(tokenizer(said, add_special_tokens=False).input_ids + maker.end)
    assert finish_lines(model, maker, REQUESTS) == [said.strip()] * 3
    for ids, mask, (where, lines, who) in zip(model.ids.tolist(), model.mask.tolist(), REQUESTS):
        prompt = prompt_ids(maker, where, lines, who)
        assert ids[-len(prompt) :] == prompt and mask == [0] * (len(ids) - len(prompt)) + [1] * len(prompt)


@pytest.mark.parametrize("form", ["script", "alpaca", "chat"])
def test_an_answer_ends_where_training_ended_it(form):
    tokenizer = small_tokenizer(300, *CHATML)
    maker, model = TextMaker(tokenizer, form), Saying([5])
    finish_lines(model, maker, REQUESTS[:1])
    samples, _ = row_samples([SCENE], maker, max_seq_len=10**6)
    assert {x.input_ids[-1] for x in samples} <= set(
        model.asked["eos_token_id"]
    ) and tokenizer.eos_token_id in model.asked["eos_token_id"]
    assert model.asked["pad_token_id"] == tokenizer.pad_token_id not in model.asked["eos_token_id"]


def test_together_as_each_alone():
    model, tokenizer = tiny_model()
    maker, greedy = TextMaker(tokenizer), Sampling(20, do_sample=False, repetition_penalty=1.0)
    assert finish_lines(model.eval(), maker, REQUESTS, greedy) == [
        finish_lines(model, maker, [r], greedy)[0] for r in REQUESTS
    ]


def test_the_seed_decides_what_is_drawn():
    model, tokenizer = tiny_model()
    model.eval()
    with torch.no_grad():
        model.lm_head.weight[:97].zero_()  # line ends and other control characters grow unlikely
    first, again, other = (
        finish_lines(model, TextMaker(tokenizer), REQUESTS, Sampling(30, repetition_penalty=1.0), seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other and all(first)


def test_moments_are_where_a_character_has_a_past_and_something_to_say():
    def scene(index, *said):
        return Scene(1, index, "Home", tuple(Line(1, i, who, text) for i, (who, text) in enumerate(said)))

    long, short = "This line has more than four words.", "Short line."
    talk = [("Bart", long), ("Marge", long)]
    few = scene(0, ("Homer", long), *talk)  # no past
    late = scene(1, ("Homer", long), *talk, ("Homer", long), ("Homer", short), ("Bart", long), ("Homer", long))
    other = scene(2, *talk, *talk, ("Homer", short), ("Marge", long))
    moments = heldout_moments([few, late, other], ["Homer", "Marge"], most_scenes=2)
    assert [(s.index, i, who, real) for s, i, who, real in moments] == [
        (1, 6, "Homer", long),
        (1, 6, "Marge", None),
        (2, 5, "Homer", None),
        (2, 5, "Marge", long),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Adapters of two runs over one base, of different shapes, as if they had been trained."
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("first", "second")]
    for k, (folder, known) in enumerate(zip(folders, ({"Homer Simpson": 5, "Lisa Simpson": 2}, {"Moe Szyslak": 9}))):
        torch.manual_seed(k)
        model = add_adapter(tiny_model()[0], LoRASettings(r=4 + k, lora_alpha=8))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.normal_(std=0.2)
        save_adapter(model, folder / "adapter", {"base_model": "tiny", "template": "script", "speakers": known})
    return [str(folder) for folder in folders]


def test_of_several_runs_each_answers_as_alone(runs, tmp_path):
    "In the order that was asked, whoever comes first; a name belongs to the first run that knows it."
    rows = ["Marge: Well?\n" + who for who in ("Moe Szyslak:", "Lisa Simpson:", "moe szyslak:", "Homer Simpson:")]
    (tmp_path / "asked.txt").write_text("\n\n".join(rows))
    asked = dict(prompts=str(tmp_path / "asked.txt"), sampling="greedy", max_new_tokens=12, device="cpu")
    together = infer(InferConfig(adapter="\n".join(runs), **asked))
    assert [row["speaker"] for row in together["prompts"]] == [
        "Moe Szyslak",
        "Lisa Simpson",
        "Moe Szyslak",
        "Homer Simpson",
    ]
    alone = []
    for row, run in zip(rows, (runs[1], runs[0], runs[1], runs[0])):
        (tmp_path / "asked.txt").write_text(row)
        alone += infer(InferConfig(adapter=run, **asked))["answers"]
    assert [row["answers"] for row in together["prompts"]] == [[a] for a in alone] and len(set(alone)) > 2
    del asked["prompts"]
    assert infer(InferConfig(adapter="\n".join(runs), **asked))["speaker"] == "Homer Simpson"
    for more, meant in (
        (dict(speaker="Krusty"), "Krusty"),
        (dict(data="anywhere"), "several adapters"),
        (dict(quantization="int8", dtype="float32"), "several adapters"),
    ):
        with pytest.raises(ValueError, match=meant):
            infer(InferConfig(adapter="\n".join(runs), **asked, **more))
