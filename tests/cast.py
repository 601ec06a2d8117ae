"""An adapter for each character, or one for all? Both learn the same script, and are asked at the same moments.

    python tests/cast.py OUT [--data springfield] [--names 4] [--epochs 1] [--base smollm2-135m]

Run by hand; an hour or two on two cores, minutes on an accelerator. Trains one run on everybody's lines, and two for
each of the characters who speak most, with everybody else's lines as context: one that passes over the script as
often, and (for the first of them; `--longer 4` for all) one that learns as many lines as the run of all, by passing
more often. All else is the same recipe. Then, at validation moments of those characters: the base model, the run of
all, and for each moment the run of who speaks. The validation split is large (30 % of the episodes), so that there is
something to measure by; no test split is looked at. Writes OUT/cast.jsonl, a row a side, the losses' paired
differences from the run of all in it; runs that are there are not trained again. With `--base tiny --quick` the whole
way takes a minute on a CPU.
"""

import argparse
import time
from collections import Counter
from pathlib import Path


def slug(name):
    return "".join(c if c.isalnum() else "_" for c in name)


def learn(out, name, script, speakers, epochs, a):
    "One run, unless it is there; its folder."
    from simpsons_llm.data.prepare import PrepareConfig, load_data, prepare
    from simpsons_llm.train.finetune import FinetuneConfig, finetune

    run, data = out / name, out / f"data_{name}"
    if not (run / "adapter").is_dir():
        prepare(PrepareConfig(script=script, speakers=speakers, valid_share=0.3, test_share=0.05, out=str(data)))
        # `prepare` deals the episodes so that whom it is to learn is in every set: others may be held out then
        asked = {s.episode for s in load_data(str(out / "data_all"))[0]["valid"]}
        learned = {s.episode for s in load_data(str(data))[0]["train"]}
        told = f"{name} would learn from episodes {sorted(asked & learned)}, at which it is asked later"
        assert not asked & learned, told
        more = {"max_steps": 4, "device": "cpu", "max_seq_len": 600} if a.quick else {}
        given = {"run": str(run), "data": str(data), "base_model": a.base, "epochs": epochs, "sample_steps": 0}
        finetune(FinetuneConfig(**given, **more))
    return run


def asked(name, run, moments, main, config, base=False):
    "One run at some moments."
    from simpsons_llm.character.evaluate import listen
    from simpsons_llm.data.prompt import TextMaker
    from simpsons_llm.machine.device import find_device
    from simpsons_llm.model.adapter import load_tuned, merge, untuned

    model, tokenizer, notes = load_tuned(run, find_device(config.device, config.dtype))
    maker = TextMaker.of_notes(tokenizer, notes)
    if base:
        with untuned(model, notes) as plain:
            return listen(name, plain, maker, moments, main, config)
    return listen(name, merge(model).eval(), maker, moments, main, config)


def joined(name, sides, moments):
    "Several runs, each at the moments of its own character, as one side in the order of all moments."
    from simpsons_llm.character.evaluate import Side

    turns = {who: iter(zip(s.texts, s.ended, s.heard)) for who, s in sides.items()}
    texts, ended, heard = map(list, zip(*(next(turns[m.line.speaker]) for m in moments)))
    plain = [s.plain_bits for s in sides.values()]
    return Side(name, texts, ended, heard, sum(plain) / len(plain))


def differences(heard, other, names):
    "Paired differences of the losses of two sides, over all lines and by character; episodes are drawn."
    from simpsons_llm.character.likelihood import contrast_nats, loss_nats
    from simpsons_llm.character.voice import difference

    found = {}
    for who in ["all", *names]:
        pairs = {}
        for ours, theirs in zip(heard, other, strict=True):
            assert ours.moment is theirs.moment
            if who in ("all", ours.moment.line.speaker):
                pair = pairs.setdefault(ours.moment.scene.episode, ([], []))
                pair[0].append(ours)
                pair[1].append(theirs)
        both = list(pairs.values())
        found[who] = {"loss_nats": difference(both, loss_nats), "contrast_nats": difference(both, contrast_nats)}
    return found


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("--data", default="springfield", help="a script")
    ask.add_argument("--names", type=int, default=4)
    ask.add_argument("--epochs", type=float, default=1.0)
    ask.add_argument("--base", default="smollm2-135m")
    ask.add_argument("--lines", type=int, default=240, help="moments at most")
    ask.add_argument("--longer", type=int, default=1, help="for how many also with as many lines as the run of all")
    ask.add_argument("--quick", action="store_true")
    a = ask.parse_args()

    from simpsons_llm.character.evaluate import EvaluateConfig, Side, as_many_words, figures_of, make_ground
    from simpsons_llm.character.likelihood import loss_nats
    from simpsons_llm.machine.job import append_jsonl, provenance
    from simpsons_llm.train.run import Run

    out = a.out
    out.mkdir(parents=True, exist_ok=True)
    everybody = learn(out, "all", a.data, "", a.epochs, a)
    data = Run(everybody).data()
    names = list(data.report["all_speakers"])[: a.names]  # those with most lines
    own = {who: learn(out, slug(who), a.data, who, a.epochs, a) for who in names}
    lines = Counter(x.speaker for s in data.parts["train"] for x in s.lines)
    passes = {who: a.epochs * sum(lines.values()) / lines[who] for who in names}
    longer = {who: learn(out, f"{slug(who)}_longer", a.data, who, passes[who], a) for who in names[: a.longer]}
    config = EvaluateConfig(run=str(everybody), split="valid", **({"device": "cpu"} if a.quick else {}))
    ground = make_ground(data.parts, {**data.report, "speakers": names}, config, 12 if a.quick else a.lines)
    moments = ground.moments
    names = [w for w in names if any(m.line.speaker == w for m in moments)]  # few moments may leave somebody out
    main = [who for who, _ in lines.most_common(6)]
    sides = {"human": Side("human", [m.line.text for m in moments])}
    sides["base"] = asked("base", everybody, moments, main, config, base=True)
    sides["one for all"] = asked("one for all", everybody, moments, main, config)
    of = {w: [m for m in moments if m.line.speaker == w] for w in names}
    sides["one each"] = joined("one each", {w: asked(w, own[w], of[w], main, config) for w in names}, moments)
    for_all = sides["one for all"].heard
    more = {w: asked(w, run, of[w], main, config) for w, run in longer.items()}
    alike = as_many_words(sides, ground)
    for name, side in sides.items():
        losses = {w: loss_nats([h for h in side.heard if h.moment.line.speaker == w]) for w in names}
        row = {
            "side": name,
            "data": a.data,
            "base_model": a.base,
            "epochs": a.epochs,
            "episodes": len({m.scene.episode for m in moments}),
            "moments": len(moments),
            "lines": dict(Counter(m.line.speaker for m in moments)),
            "learned_lines": {w: lines[w] for w in names} | {"all": sum(lines.values())},
            "loss_nats_by_character": losses if side.heard else {},
            "change_from_one_for_all": differences(side.heard, for_all, names) if side.heard else {},
            "figures": figures_of(side, ground, sides["human"], config.random_seed, alike[name]),
            "said": side.texts[:8],
            "when": time.strftime("%Y-%m-%d"),
            "provenance": provenance(),
        }
        append_jsonl(out / "cast.jsonl", row)
        told = ("loss_nats", "contrast_nats", "speaker_acc_5", "speaker_acc_20", "auc_real_20", "distinct_2")
        print(name, {n: row["figures"][n]["value"] for n in told if n in row["figures"]}, losses, flush=True)
    for who, side in more.items():
        all_heard = [h for h in for_all if h.moment.line.speaker == who]
        row = {
            "side": "one each, as many lines",
            "who": who,
            "epochs": passes[who],
            "loss_nats": loss_nats(side.heard),
            "change_from_one_for_all": differences(side.heard, all_heard, [])["all"],
            "when": time.strftime("%Y-%m-%d"),
            "provenance": provenance(),
        }
        append_jsonl(out / "cast.jsonl", row)
        print(row["side"], who, row["loss_nats"], row["change_from_one_for_all"], flush=True)


if __name__ == "__main__":
    main()
