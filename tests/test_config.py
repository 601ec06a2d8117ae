"The length of a run, its optimizer and its rate."

import pytest
import torch

from simpsons_llm.train.config import SCORED, TrainConfig, evaluations, make_optimizer, make_schedule, run_length


@pytest.mark.parametrize(
    "samples, settings, steps, epoch, evaluated",
    [
        (7, dict(global_batch_size=2, epochs=1, eval_steps=3), 4, 4, [3, 4]),
        (8, dict(global_batch_size=2, epochs=2, eval_steps=3), 8, 4, [3, 4, 6, 8]),
        (9, dict(global_batch_size=4, epochs=1.5, eval_steps=100), 5, 3, [3, 5]),
        (9, dict(global_batch_size=4, epochs=5, eval_steps=100), 15, 3, [15]),
        (9, dict(global_batch_size=4, epochs=5, eval_steps=2), 15, 3, [2, 3, 4, 6, 8, 9, 10, 12, 14, 15]),
        (9, dict(global_batch_size=4, epochs=5), 15, 3, [6, 12, 15]),  # no more than four times by itself
        (9, dict(global_batch_size=4, epochs=4), 12, 3, [3, 6, 9, 12]),
        (64, dict(global_batch_size=4, epochs=1), 16, 16, [4, 8, 12, 16]),
        (100, dict(global_batch_size=4, max_steps=10, eval_steps=4), 10, 25, [4, 8, 10]),
    ],
)
def test_length_and_evaluations(samples, settings, steps, epoch, evaluated):
    "The last, shorter batch counts; evaluated every so many steps, when one of a few epochs ends, and at the end."
    length = run_length(TrainConfig(micro_batch_size=1, **settings), samples)
    assert (length.steps, length.epoch_steps) == (steps, epoch) and [
        k for k in range(1, steps + 1) if length.evaluates(k)
    ] == evaluated


@pytest.mark.parametrize("ratio, steps, warmup", [(0.25, 8, 2), (0.05, 40, 2), (0.0, 40, 0), (0.99, 2, 1)])
def test_warmup_is_a_share_of_the_steps(ratio, steps, warmup):
    assert run_length(TrainConfig(max_steps=steps, warmup_ratio=ratio), 1000).warmup_steps == warmup


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_weights_without_a_gradient_do_not_decay(ratio):
    from simpsons_llm.lora.layer import LoRASettings
    from simpsons_llm.model.adapter import add_adapter
    from simpsons_llm.model.base import tiny_model

    model = add_adapter(tiny_model()[0], LoRASettings(r=2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, 0.1, ratio)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("warmup, steps", [(0, 1), (0, 5), (1, 2), (3, 8), (7, 8)])
def test_the_rate_goes_up_to_its_peak_and_down_and_is_never_nothing(warmup, steps):
    "A step at a rate of 0 would be a step for nothing."
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedule, rates = make_schedule(optimizer, warmup, steps), []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.1) and min(rates) > 0
    assert sum(b > a for a, b in zip([0.0, *rates], rates)) == max(warmup, 1)
    peak = rates.index(max(rates))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :]))
    assert steps <= warmup + 1 or rates[-1] < rates[-2]


@pytest.mark.parametrize(
    "given, world_size, sizes",
    [
        ({}, 1, (2, 2)),
        ({}, 2, (2, 1)),
        ({}, 4, (4, 1)),
        ({}, 3, (3, 1)),
        ({"recipe": "seed"}, 4, (128, 16)),
        ({"recipe": "seed"}, 16, (128, 8)),
        ({"recipe": "seed"}, 3, (144, 16)),
        ({"global_batch_size": 64}, 8, (64, 2)),
        ({"micro_batch_size": 8}, 4, (32, 8)),
        ({"global_batch_size": 64, "micro_batch_size": 8}, 4, (64, 8)),
    ],
)
def test_batch_sizes_fit_any_number_of_ranks(given, world_size, sizes):
    "The recipe's global batch is kept where it can be; what was asked for stays."
    config = TrainConfig(**given)
    fitted = config.for_ranks(world_size)
    s = fitted.resolved()
    assert (s["global_batch_size"], s["micro_batch_size"]) == sizes
    assert (fitted is config) == (
        sizes == tuple(config.resolved()[k] for k in ("global_batch_size", "micro_batch_size"))
    )


@pytest.mark.parametrize("given", [{"global_batch_size": 6}, {"global_batch_size": 8, "micro_batch_size": 3}])
def test_batch_sizes_that_were_asked_for_and_cannot_be(given):
    with pytest.raises(ValueError, match="was given with 4 ranks.*use a multiple of"):
        TrainConfig(**given).for_ranks(4)


@pytest.mark.parametrize("test", [0, 4895])
@pytest.mark.parametrize("trained", [10_000, 35_499, 60_000, 100_000, 10**7])
def test_scoring_stays_a_small_part_of_a_run(trained, test):
    "Base, evaluations and test scenes together; as many evaluations as that allows, and one at least."
    n, valid = evaluations(trained, 4840, test), 4840
    assert 1 <= n <= 4
    assert n == 1 or (n + 1) * valid + 2 * test <= SCORED * trained
    assert n == 4 or (n + 2) * valid + 2 * test > SCORED * trained
    assert run_length(TrainConfig(), 82, looks=n).eval_steps == -(-41 // n)
    assert run_length(TrainConfig(eval_steps=5), 82, looks=n).eval_steps == 5  # what was asked for stays
