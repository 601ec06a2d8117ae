"""Do the tests notice? Faults are put into a copy of the package, one at a time, and the tests that should notice run.

    python tests/faults.py                    all faults; half an hour on one core
    python tests/faults.py seed packing       those with one of these in their name, or of that module
    python tests/faults.py --json             one JSON object a line instead of a table
    python tests/faults.py --check            only look whether each place is there, and Python with the fault in it

A fault is an old text of one module and a new text in its place.

    caught      a test fails with it, and passes without it
    SURVIVED    its tests pass with it: write one that does not
    STALE       the old text does not occur exactly once in the module: take what stands there now
    BROKEN      its tests are not there, could not run, or fail without a fault, too; or it leaves no valid Python

The exit code is 0 if all were caught. Run by hand; pytest does not collect this file.
"""

import argparse
import ast
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("simpsons_llm", "tests", "nbs", ".ci", ".github", "settings.ini", "setup.py", "constraints.txt", "README.md")
LIMIT_S = 300  # longest time for the tests of one fault; a fault that makes them hang is noticed, too


class Fault(NamedTuple):
    "A mistake that a person could make."

    module: str  # "data.prompt" is simpsons_llm/data/prompt.py
    name: str  # what is wrong
    old: str  # text that occurs exactly once in the module
    new: str  # what stands there instead
    tests: str  # arguments for pytest, without tests/test_; or "chapter:NAME", with the fault in its exported cells


# fmt: off
FAULTS = [Fault(*row) for row in (
    # ---- the machine room -------------------------------------------------------------------------------------------
    ("machine.device", "all-ranks-on-card-0", 'index = 0 if kind == "cpu" else local_rank', "index = 0",
     "device.py -k local_rank_picks"),
    ("machine.device", "memory-limit-ignored", "min([machine, *_cgroup_limits()])", "machine",
     "device.py -k respects_the_limit"),
    ("machine.device", "each-rank-takes-all-cores", "_cores() // ranks.local_world_size", "_cores()",
     "device.py -k threads"),
    ("machine.device", "slurm-tasks-of-the-first-node", "counts[min(node, len(counts) - 1)]", "counts[0]",
     "device.py -k tasks_per_node"),
    ("machine.distributed", "sums-of-one-rank", "    dist.all_reduce(sums)\n", "", "group.py"),
    ("machine.distributed", "gather-in-no-order", "dist.all_gather_object(found, value)\n    return found",
     "dist.all_gather_object(found, value)\n    return found[::-1]", "group.py"),
    ("machine.distributed", "failure-of-rank-0-unsaid", "if error:\n        raise RankFailed",
     "if False:\n        raise RankFailed", "group.py"),
    ("machine.distributed", "what-a-person-set-overruled", "if value and name not in env}", "if value}",
     "distributed.py -k 'person_set or tiles'"),
    ("machine.distributed", "two-ranks-on-one-card", "if place and place in places:", "if False:",
     "distributed.py -k cannot_be_right"),
    ("machine.job", "zero-means-true", '"1": True, "0": False}', '"1": True, "0": True}', "job.py -k coerce"),
    ("machine.job", "true-means-one", "if isinstance(value, bool):\n            raise ValueError",
     "if False:\n            raise ValueError", "job.py -k coerce"),
    ("machine.job", "share-of-what-is-left", "100 * done / self.total", "100 * (self.total - done) / self.total",
     "job.py -k progress"),
    ("machine.job", "time-left-of-the-whole", "spent * (self.total - done) / done", "spent * self.total / done",
     "job.py -k progress"),
    ("machine.job", "too-many-lines", "now - self.last < self.every_s", "False", "job.py -k progress"),
    ("machine.job", "hash-of-the-first-piece", "while piece := f.read(1 << 20):\n            h.update(piece)",
     "h.update(f.read(1 << 20))", "job.py -k sha256"),
    ("machine.job", "earlier-run-overwritten", "number += 1", "pass", "job.py -k set_aside"),
    # ---- text -------------------------------------------------------------------------------------------------------
    ("data.lines", "headings-cut-nothing", "in cuts:\n            close()", "in cuts:\n            pass",
     "script.py -k heading"),
    ("data.lines", "brackets-of-one-kind", 'BRACKETS = ("()", "[]", "{}", ', 'BRACKETS = ("()", ',
     "typed.py -k left_out"),
    ("data.lines", "stress-is-a-direction", 'begins = not before or before[-1] in ".!?…:。！？"', "begins = True",
     "typed.py -k left_out"),
    ("data.lines", "case-parts-people", '.casefold()\n    marked', "\n    marked", "prepare.py -k spelt"),
    ("data.lines", "capitals-give-the-name", "key=lambda n: (n != n.upper() or n == n.lower(), shown[n])",
     "key=lambda n: shown[n]", "typed.py -k capitals_give"),
    ("data.lines", "gate-always-open", "refused = any(found[name] >= x.refused for name, x in wrong.items())",
     "refused = False", "languages.py -k doubtful"),
    ("data.lines", "one-scene-two-people", "if not there.issuperset(p)", "if True", "chapter:1_data/10_lines"),
    ("data.tables", "rows-counted-from-0", "row = feed.begin + 1\n", "row = feed.begin\n", "script.py -k line_numbers"),
    ("data.tables", "twice-is-kept", "(what.episode, what.number), row)) != row",
     "(what.episode, what.number), row)) < 0", "script.py -k twice"),
    ("data.tables", "each-record-a-scene", "if not shared:\n            groups.append",
     "if True:\n            groups.append", "script.py -k whole_scenes"),
    ("data.text", "blank-rows-always-part", "if one <= max(tight, 1):", "if True:", "typed.py -k come_back"),
    ("data.text", "rows-are-never-full", "return bool(wide and below.text) and row.width", "return False and row.width",
     "typed.py -k come_back"),
    ("data.text", "seasons-as-one", "if all(s is None for s, _ in episodes):", "if True:", "typed.py -k seasons"),
    ("data.text", "notes-in-no-account", 'tally.add("note", raw)', "pass", "typed.py -k account"),
    ("data.text", "open-notes-hide-all", "until = end + 2 if closed else blank.start() if blank else len(text)",
     "until = end + 2 if closed else len(text)", "typed.py -k never_closed"),
    ("data.formats", "pauses-part-nothing", "gaps[i - 1] >= pause", "False", "files.py"),
    ("data.formats", "hidden-rows-uncounted", 'script.counts["note"] += hidden', "pass",
     "files.py -k hidden_rows"),
    ("data.formats", "gate-never-asked", "if refused and not forced:", "if False:", "languages.py -k doubtful"),
    ("machine.encodings", "one-bad-byte-turns-the-file",
     'return ("\\ufffd" if broken else lone.decode(old, "replace")), e.end', "raise e", "files.py"),
    ("machine.encodings", "bombs-unpacked", "max(64 << 20, ratio * len(data))", "most", "files.py -k gzip"),
    ("data.prepare", "letters-counted-as-words", "return 2 if sum(", "return 1 if sum(", "languages.py -k blanks"),
    ("data.prepare", "commas-cut-names", 'if folded(",".join(pieces[:n])) in known), 1)', "if False), 1)",
     "languages.py -k command"),
    ("data.packing", "padding-has-weight", "kept[: len(at)] = at, ids[at + 1], weights[at + 1]",
     "kept[:] = at, ids[at + 1], 1.0", "speed.py -k filled_up"),
    ("data.packing", "rows-are-cut", "require(room >= 0, ", "require(True, ", "speed.py -k filled_up"),
    ("data.text", "joiners-go", 're.compile("[\\u200b\\u200e', 're.compile("[\\u200b-\\u200e', "typed.py -k joiners"),
    ("data.packing", "padding-runs-on", "lens.append(min(room, shape.longest))", "lens.append(room)",
     "speed.py -k filled_up"),
    ("train.speed", "warming-up-counts", "p.copy_(k)\n", "pass\n", "speed.py -k 'learns_what and given0'"),
    ("train.speed", "gradients-pile-up", "torch._foreach_zero_([p.grad for p in self.parameters])", "pass",
     "speed.py -k 'learns_what and given0'"),
    ("train.speed", "share-of-the-first-step", "        self.share.fill_(1 / weight)\n        total =",
     "        total =",
     "speed.py -k 'learns_what and given0'"),
    ("train.speed", "random-numbers-move", "            set_random_state(random, self.device)\n", "",
     "speed.py -k goes_on_to"),
    ("train.speed", "kept-as-the-graph-has-it", 'float(group["lr"]), False', 'group["lr"], True',
     "speed.py -k plain_engines"),
    ("train.speed", "ranks-keep-their-gradients",
     "        sum_gradients(self.parameters)\n", "", "speed.py -k two_ranks"),
    ("train.speed", "the-longest-row-for-all", "if n.tokens >= part[", "if n is self.shapes[-1] and n.tokens >= part[",
     "speed.py -k several_lengths"),
    ("train.speed", "recorded-though-too-large", "    if trained > MOST_RECORDED:", "    if False:",
     "speed.py -k only_when_compiled"),
    ("train.speed", "a-broken-compiler-stays", "        except Exception:\n            self.compiled.close()\n",
     "        except Exception:\n", "speed.py -k compiler_that_fails"),
    ("train.speed", "recordings-are-kept",
     "            self.recorded, self.update = {}, None\n            self.compiled",
     "            self.compiled", "speed.py -k let_go"),
    ("data.packing", "rows-too-short", "groups[next(end for end in chosen if end >= n)]", "groups[chosen[0]]",
     "speed.py -k 'has_room or several_lengths'"),
    ("data.packing", "every-step-is-counted", "for n, c in counts.items())", "for n, c in ((n, 1) for n in sizes))",
     "speed.py -k at_once"),
    ("train.loop", "steps-asked-for-early-are-counted-late",
     "                at += 1\n", "                at = self.step\n",
     "speed.py -k learns_what"),
    # ---- one token after the other ----------------------------------------------------------------------------------
    ("model.decode", "filling-is-read", "before & self.given[:, None, None] |", "before |", "decode.py -k same_tokens"),
    ("model.decode", "short-answers-are-recorded", "sampling.max_new_tokens >= 8 and ", "", "decode.py -k no_room"),
    ("model.decode", "the-new-token-is-hidden", "        self.mask.index_fill_(3, self.column, True)\n", "",
     "decode.py -k same_tokens"),
    ("model.decode", "places-stand-still", "        self.place.add_(1)\n", "", "decode.py -k same_tokens"),
    ("model.decode", "filling-is-punished", "torch.where(self.given, self.ids, self.ids[:, -1:])", "self.ids",
     "decode.py -k punished"),
    ("model.decode", "talks-on-behind-the-end", "        token = torch.where(self.ended, self.pad_id, token)\n", "",
     "decode.py -k an_answer_ends"),
    ("model.decode", "the-answer-before-is-in-the-cache",
     "        self.mask.zero_()\n", "", "decode.py -k recorded_step"),
    ("model.decode", "warming-up-is-seen", "self.seen.zero_().scatter_", "self.seen.scatter_",
     "decode.py -k 'recorded_step or punished'"),
    ("model.decode", "layers-stay-the-first", 'back.enter_context(patch.object(layer.self_attn, "layer_idx", 0))',
     "layer.self_attn.layer_idx = 0", "decode.py -k one_program"),
    ("model.decode", "windows-are-drawn-here",
     'if any(getattr(layer, "is_sliding", True)', 'if False and any(getattr(layer, "is_sliding", True)',
     "decode.py -k left_to_generate"),
    ("model.decode", "one-scale-for-all-rows",
     ".abs().amax(1).clamp(min=1e-12) / 127", ".abs().amax().expand(linear.weight.shape[0]) / 127",
     "decode.py -k eight_bits"),
    ("model.infer", "half-letters-are-given-out", 'if token is None or not text.endswith("\\ufffd"):', "if True:",
     "decode.py -k half_a_letter"),
    ("data.prepare", "leak-without-ngrams", 'max(leak["line_share"], leak["ngram_share"]) <= max_leak',
     'leak["line_share"] <= max_leak', "prepare.py -k leak"),
    ("data.prepare", "leak-of-valid-only", 'parts["valid"] + parts["test"])', 'parts["valid"])', "prepare.py -k leak"),
    ("data.prepare", "split-by-scene", '(lambda s: s.episode) if split == "episode"',
     '(lambda s: s.episode) if split == "book"', "prepare.py -k sets_share_nothing"),
    ("data.prepare", "split-seed-ignored", 'random.Random(f"{seed}/{i}")', 'random.Random(f"{i}")',
     "prepare.py -k seed_of_its_own"),
    ("data.prepare", "data-not-verified", 'sha256(folder / f"{name}.jsonl") == hashes.get(name)', "True",
     "samples.py -k changed"),
    ("data.prepare", "context-is-a-target", "return line.learn and (", "return (", "prompt.py -k never_a_target"),
    ("data.prompt", "a-line-too-few", "return without(first), first", "return without(first + 1), first + 1",
     "prompt.py -k cut_from_the_left"),
    ("data.prompt", "letters-become-special", "backend.encode_special_tokens = True",
     "backend.encode_special_tokens = False", "prompt.py -k beginning_of_what_is_trained"),
    ("data.prompt", "answers-end-anywhere", "sorted({self.end[-1], self.tokenizer.eos_token_id})",
     "[self.tokenizer.eos_token_id]", "infer.py -k ends_where"),
    ("data.prompt", "padding-ends-answers", "tokenizer.pad_token_id not in self.stop_ids", "True",
     "samples.py -k padding"),
    ("data.samples", "windows-without-overlap", "min(overlap * max_seq_len", "min(0 * max_seq_len",
     "samples.py -k window"),
    ("data.samples", "overlap-always-a-quarter", "min(overlap * max_seq_len", "min(0.25 * max_seq_len",
     "samples.py -k window"),
    ("data.samples", "repeated-lines-learned", "add(tokens.ids, READ)", "add(tokens.ids, LEARNED)",
     "samples.py -k window"),
    ("data.samples", "end-not-learned", "said[i][1] + maker.end, max(", "said[i][1], max(",
     "prompt.py -k 'once or trained'"),
    ("data.samples", "what-is-read-counts", "(0.0, 0.0, context_weight, 1.0)",
     "(0.0, context_weight, context_weight, 1.0)", "prompt.py -k context"),
    ("data.dataset", "cache-without-template", '        "template": maker.template,\n', "", "samples.py -k kept"),
    ("data.dataset", "cache-without-options", ", **options}", "}", "samples.py -k kept"),
    ("data.packing", "first-tokens-learned", "weights[0, begins] = 0.0", "pass", "packing.py -k learns_nothing"),
    ("data.packing", "positions-run-on", " - begins.repeat_interleave(lens)", "", "packing.py -k packed_equals"),
    ("data.packing", "neighbours-are-seen", "x.split(seq_lens, dim=2)", "x.split(sum(seq_lens), dim=2)",
     "packing.py -k neighbours"),
    ("data.packing", "fullest-row-first", "reverse=True)", "reverse=False)", "batches.py -k longest"),
    # ---- adapters ---------------------------------------------------------------------------------------------------
    ("lora.layer", "always-rslora", "(math.sqrt(self.r) if self.use_rslora else self.r)", "math.sqrt(self.r)",
     "lora.py -k equals_peft"),
    ("lora.layer", "dropout-of-nothing", "self.dropout(x.to(self.lora_A.dtype))", "x.to(self.lora_A.dtype)",
     "lora.py -k dropout"),
    ("lora.layer", "b-starts-at-one", "torch.zeros(D_out, r, **kind)", "torch.ones(D_out, r, **kind)",
     "lora.py -k starts_as_the_base"),
    ("lora.layer", "base-is-trained", "    model.requires_grad_(False)\n", "", "lora.py -k starts_as_the_base"),
    ("lora.layer", "adapter-in-16-bits", "torch.promote_types(base.weight.dtype, torch.float32))", "base.weight.dtype)",
     "lora.py -k dtypes"),
    ("lora.layer", "merged-without-scaling", "return self.scaling * (self.lora_B @ self.lora_A)",
     "return self.lora_B @ self.lora_A", "lora.py -k merged"),
    ("lora.variants", "half-an-adapter-loads", "not lost and not empty,", "not lost,", "lora.py -k does_not_fit"),
    ("lora.variants", "merged-twice", "require(\n        not done,", "require(\n        True,",
     "lora.py -k refuses_before"),
    ("lora.spectra", "rank-one-too-high", "< share - 1e-12).sum()))", "< share - 1e-12).sum()) + 1)", "spectra.py"),
    ("lora.spectra", "shares-without-squares", "(values.double() ** 2).cumsum(0) / (values.double() ** 2).sum()",
     "values.double().cumsum(0) / values.double().sum()", "spectra.py"),
    ("lora.spectra", "noise-seed-ignored", "manual_seed(seed)", "manual_seed(0)", "spectra.py -k noise"),
    # ---- a model in hand --------------------------------------------------------------------------------------------
    ("model.base", "pad-id-not-in-config", "model.generation_config.pad_token_id = model.config.pad_token_id = ",
     "model.generation_config.pad_token_id = ", "model.py -k pad"),
    ("model.adapter", "adapter-seed-ignored", "torch.manual_seed(seed)", "torch.manual_seed(0)", "model.py -k seed"),
    ("model.adapter", "adapter-moves-the-dice", "    with torch.random.fork_rng():\n        torch.manual_seed(seed)\n",
     "    if True:\n        torch.manual_seed(seed)\n", "model.py -k seed"),
    ("model.adapter", "pissa-start-added", "-at_start[name]", "at_start[name]",
     "finetune.py -k 'gives_back and PiSSA'"),
    ("talk.ollama", "lines-joined", 'f"\\n{line.speaker}: {line.text}"', 'f" {line.speaker}: {line.text}"',
     "ollama.py -k whole_scene"),
    ("talk.ollama", "bos-not-compared", "require(\n        adds == bos,", "require(\n        True,",
     "ollama.py -k held_against"),
    ("talk.publish", "any-distance-will-do", "require(\n        distance <= limit,", "require(\n        True,",
     "publish.py -k went_wrong"),
    ("talk.publish", "logits-not-centred", "centred = wanted - wanted.mean(-1, keepdim=True)", "centred = wanted",
     "publish.py -k each_format"),
    ("talk.publish", "half-a-folder-stays", "shutil.rmtree(making, ignore_errors=True)\n            raise", "raise",
     "publish.py -k went_wrong"),
    ("model.infer", "answers-repeat-the-prompt",
     '**sampling.arguments(), **ends)[:, batch["input_ids"].shape[1] :]', "**sampling.arguments(), **ends)",
     "infer.py -k stand_on_the_right"),
    ("model.infer", "prompts-filled-on-the-right", "[pad_id] * (longest - len(p)) + p for",
     "p + [pad_id] * (longest - len(p)) for", "infer.py -k alone"),
    ("model.infer", "moments-of-the-first-character", "[first(s, who) for who in speakers]",
     "[first(s, speakers[0]) for _ in speakers]", "infer.py -k moments"),
    ("model.loss", "heldout-of-context", "float(w == 1) for w", "float(w > 0) for w", "evaluate.py"),
    ("model.loss", "heldout-computes-others", "\n        if 1.0 in s.loss_weights[1:]", "", "evaluate.py"),
    ("model.loss", "predicts-itself", '["input_ids"][:, keep + 1]', '["input_ids"][:, keep]', "evaluate.py"),
    ("model.loss", "dropout-while-scoring", "    model.eval()\n    with", "    with", "evaluate.py"),
    ("model.loss", "nothing-is-a-perfect-score", 'require(ordered, "no held-out token',
     'require(True, "no held-out token', "evaluate.py"),
    ("model.loss", "stays-in-evaluation", "    model.train(was_training)\n", "", "evaluate.py"),
    ("model.loss", "idle-rank-counts", "if turn < len(mine):\n                sums",
     "if True:\n                sums", "evaluate.py"),
    ("model.loss", "one-sample-too-many", "size <= limit.samples and", "size <= limit.samples + 1 and", "evaluate.py"),
    ("model.loss", "filled-up-is-free", "(size * max(longest, n), size * len(at | learned))",
     "(tokens + n, size * len(at | learned))", "evaluate.py"),
    ("model.loss", "logits-of-others-are-free", "(size * max(longest, n), size * len(at | learned))",
     "(size * max(longest, n), positions + len(learned))", "evaluate.py"),
    ("model.loss", "waits-for-each-batch", ".sum(dtype=widest(model.device)))",
     ".sum(dtype=widest(model.device)).cpu())", "evaluate.py"),
    ("model.loss", "sums-in-32-bits", "torch.stack(sums).cpu().double().sum()", "torch.stack(sums).cpu().sum()",
     "evaluate.py"),
    ("model.loss", "one-rank-scores-all", "ordered[k :: ranks.world_size]", "ordered[k : k + 1] if k else ordered",
     "evaluate.py"),
    ("model.loss", "what-a-run-found-is-lost", 'getattr(base_of(model), "score_limit", None)', "None", "evaluate.py"),
    ("model.loss", "large-vocabularies-for-free", "SCORE_BYTES // (LOGIT_BYTES * vocabulary)", "2184", "evaluate.py"),
    # ---- training ---------------------------------------------------------------------------------------------------
    ("data.batches", "all-ranks-the-same-share", "turn * self.world_size + self.rank", "turn * self.world_size",
     "batches.py"),
    ("data.batches", "each-epoch-the-same", 'random.Random(f"{seed} {epoch}")', 'random.Random(f"{seed}")',
     "batches.py"),
    ("data.batches", "order-without-seed", 'random.Random(f"{seed} {epoch}")', 'random.Random(f"{epoch}")',
     "batches.py"),
    ("data.batches", "fillers-learn", 'batch["loss_weights"].zero_()', "pass", "batches.py"),
    ("train.config", "no-warmup", 's["warmup_ratio"] * steps', "0 * steps", "config.py -k warmup"),
    ("train.config", "test-scenes-for-free", "- valid - 2 * test", "- valid", "config.py -k small_part"),
    ("train.config", "last-batch-not-counted", 'math.ceil(samples / s["global_batch_size"])',
     'samples // s["global_batch_size"]', "config.py -k length"),
    ("train.config", "full-at-the-adapters-rate", 'defaults["learning_rate"] /= 10', "pass", "finetune.py -k tenth"),
    ("train.config", "weights-decay", "lr=learning_rate, weight_decay=weight_decay",
     "lr=learning_rate, weight_decay=0.1", "config.py -k decay"),
    ("train.config", "norms-decay", "what: list = groups if flat", "what: list = groups if False", "gates.py -k norms"),
    ("train.config", "lora-plus-forgets-decay", "loraplus_weight_decay=weight_decay", "loraplus_weight_decay=0.0",
     "gates.py -k 'weight_decay and plus'"),
    ("train.config", "no-evaluation-at-the-end", "epoch or step == self.steps",
     "epoch", "config.py -k length"),
    ("train.cost", "accumulation-for-free", 'm["micro_s"] * recipe.gradient_accumulation_steps', 'm["micro_s"]',
     "cost.py -k time"),
    ("train.cost", "everything-fits", "if told.peak_mem_gib <= room_gib(device):\n        return told",
     "if True:\n        return told", "cost.py -k cannot_fit"),
    ("train.cost", "scoring-is-free", "count_scoring(config, recipe, device, limit) > room", "False",
     "cost.py -k never_needs"),
    ("train.cost", "a-recording-is-free", "return replace(told, peak_mem_gib=told.peak_mem_gib + told.gradients_gib)",
     "return told", "cost.py -k recorded"),
    ("train.cost", "gradients-go-after-each-step", 'if recipe.compile == "none" else 2', "if True else 2",
     "cost.py -k recorded"),
    ("train.cost", "compiled-layers-keep-all", "            cut_layers(model)\n", "            pass\n",
     "cost.py -k 'device_used or compiler_keeps'"),
    ("train.cost", "another-cut", "partition_fn=min_cut_rematerialization_partition,\n", "",
     "cost.py -k 'device_used or compiler_keeps'"),
    ("train.cost", "masks-of-numbers", "            mask_in_bytes(model)\n", "            pass\n",
     "cost.py -k 'dropout or device_used'"),
    ("train.cost", "no-word-of-the-compiler", 'replace(recipe, compile="layers"), recipe.compile == "graph"),',
     'replace(recipe, compile="layers"), False),', "cost.py -k fits_only"),
    ("train.cost", "next-size-is-taken", "return sizes[fits]", "return sizes[fails]", "cost.py -k largest_size"),
    ("train.cost", "views-counted-twice", "if key in self.sizes:\n", "if False:\n", "cost.py -k live_memory"),
    ("train.cost", "parts-of-activations", 'for n in ("weights_gib", "gradients_gib", "optimizer_gib")}',
     'for n in ("weights_gib", "gradients_gib", "optimizer_gib", "activations_gib")}', "cost.py -k share_all"),
    ("train.sharding", "checkpoint-not-copied", "mine[name].copy_(share_of(tensor.to(mine[name].dtype), mine[name]))",
     "pass", "loop.py -k others_checkpoint"),
    ("train.history", "evaluation-is-training", 'self.watch.turn_to("score")', "pass", "history.py -k add_up"),
    ("train.history", "saving-is-scoring", 'self.watch.turn_to("save")', "pass", "history.py -k add_up"),
    ("train.history", "first-tokens-counted", '[p["loss_weights"][:, 1:] for p in parts]',
     '[p["loss_weights"] for p in parts]', "history.py"),
    ("train.history", "perplexity-of-steps", '(n * rows[k]["learned_loss_nats"] for',
     '(rows[k]["learned_loss_nats"] * sum(tokens) / len(tokens) for', "history.py -k perplexity"),
    ("train.history", "perplexity-of-all-weights", '(n * rows[k]["learned_loss_nats"] for',
     '(n * rows[k]["train_loss_nats"] for', "runs.py -k like_is_compared"),
    ("train.history", "context-counted-as-learned", "lambda w: w == 1,", "lambda w: w > 0,",
     "runs.py -k like_is_compared"),
    ("train.history", "losses-never-forgotten", "(heard,), self.heard = total(float(self.heard)), 0.0",
     "(heard,) = total(float(self.heard))", "runs.py -k like_is_compared"),
    ("train.history", "half-a-checkpoint-is-whole", '.glob(f"checkpoint-*/{STATE}")',
     '.glob("checkpoint-*/adapter_config.json")', "runs.py -k half_a_checkpoint"),
    ("train.history", "checkpoint-under-its-name", 'part, failed = to.with_name(f".{to.name}"), None',
     "part, failed = to, None", "runs.py -k ended_while_it_saved"),
    ("train.history", "the-base-is-marked-as-kept", 'for r in rows if r["step"] and "valid', 'for r in rows if "valid',
     "chapter:4_train/43_history"),
    ("train.history", "minutes-are-seconds", "begun > 60 * self.max_minutes", "begun > self.max_minutes", "history.py"),
    ("train.history", "done-is-stopped-early", "if self.max_minutes and step < self.length.steps:",
     "if self.max_minutes:", "history.py"),
    ("train.history", "last-step-twice", 'read_jsonl(kept) if row["step"] <= step]',
     'read_jsonl(kept) if row["step"] < step]',
     "finetune.py -k 'resumed_run and 4'"),
    ("machine.job", "damage-unseen", "return [x for x in found if x]", "return []", "damage.py -k 'cut or flipped'"),
    ("machine.job", "sizes-only", 'return "" if file_facts(path) == was else f', 'return "" if True else f',
     "damage.py -k 'kept_tokens'"),
    ("machine.job", "signals-unheard", "before = {n: signal.signal(n, LISTENER) for n in heard}", "before = {}",
     "signals.py -k 'finished and TERM'"),
    ("machine.job", "one-signal-is-two", "if self.number or not self.patient:", "if True:",
     "signals.py -k 'finished and TERM'"),
    ("machine.job", "waits-for-ever", "time.sleep(PATIENCE_S)", "time.sleep(99)", "signals.py -k long_step"),
    ("train.history", "no-word-to-other-ranks", "self.asked = self.asked or asked > 0",
     "self.asked = bool(LISTENER.number)", "signals.py -k two_ranks"),
    ("train.history", "optimizer-not-needed", 'found = [f"{files[0]} ({what}) is missing" for',
     'found = [] and [f"{files[0]} ({what}) is missing" for', "damage.py -k without_a_manifest"),
    ("train.history", "any-step-is-this-one", "require(at == step and not", "require(at and not",
     "damage.py -k 'without_a_manifest'"),
    ("train.history", "rows-as-they-are", "if not raw.startswith(kept.read_bytes()):", "if False:",
     "damage.py -k rows_that_were_lost"),
    ("train.history", "older-without-its-best", "{step, best_at(run, step)} & {*whole}", "{step}",
     "damage.py -k best_step"),
    ("train.history", "nan-goes-on", "math.isfinite(value),", "True,", "finetune.py -k not_a_number"),
    ("train.lifecycle", "no-lock-on-a-run", "held.enter_context(hold_folder(", "print((",
     "runs.py -k 'second_job or taken_over'"),
    ("train.lifecycle", "estimate-keeps-samples", "job = plan(config, ranks, device, keep=False, made=made)",
     "job = plan(config, ranks, device)", "runs.py -k estimate"),
    ("train.lifecycle", "another-script-over-the-first", '["data"] * bool(made and not',
     '["data"] * bool(False and not', "runs.py -k sets_the_data"),
    ("train.lifecycle", "written-before-it-is-checked", "    if config.resume:\n        if not any",
     '    write_text(run/"config.yaml", "")\n    if config.resume:\n        if not any',
     "runs.py -k leaves_everything"),
    ("train.lifecycle", "before-in-32-bits", "enabled=self.device.dtype == \"bfloat16\"", "enabled=False",
     "runs.py -k same_format"),
    ("train.lifecycle", "exchange-left-out", "device, exchange=exchange)", 'device, exchange="none")',
     "runs.py -k costs_of_several"),
    ("train.lifecycle", "a-recording-is-free", "ranks.world_size, device)\n    told", "ranks.world_size)\n    told",
     "lifecycle.py -k recording"),
    ("train.lifecycle", "compiled-is-recorded", 'return "layers" if config.compile == "layers" else "graph"',
     'return "graph"', "lifecycle.py -k 'filled_up or make_room'"),
    ("train.lifecycle", "rows-are-not-filled-up", 'if how != "none":  # rows', "if False:  # rows",
     "lifecycle.py -k filled_up"),
    ("train.lifecycle", "compiled-everywhere", "uncompiled or not packs_well(device):", "uncompiled:",
     "lifecycle.py -k pack_well"),
    ("train.lifecycle", "host-forgotten", "if sharded:\n        require_host(", "if False:\n        require_host(",
     "runs.py -k costs_of_several"),
    ("train.finetune", "newest-folder-by-itself", "str(checkpoint_folder(self.job.run, resumed)) if resumed else None",
     "resumed > 0 or None", "runs.py -k half_a_checkpoint"),
    ("machine.job", "a-dead-owner-holds", "if p[\"place\"] == own_place() else age_s", "if False else age_s",
     "runs.py -k taken_over"),
    ("machine.job", "those-below-are-refused", "int(pid) != os.getpid() for pid, name in held",
     "False for pid, name in held", "runs.py -k process_below"),
    ("machine.job", "those-below-do-not-hold", "        join_lock(path)\n", "        pass\n",
     "runs.py -k process_below"),
    ("train.config", "first-step-at-rate-0", "return (done + 1) / top if", "return done / top if",
     "runs.py -k rate_of_0"),
    ("train.config", "last-step-at-rate-0", "max(0, steps - done) / max", "max(0, steps - done - 1) / max",
     "runs.py -k rate_of_0"),
    ("train.lifecycle", "cache-without-weights", '"context_lines", "context_weight")}', '"context_lines")}',
     "lifecycle.py -k kept_samples"),
    ("train.lifecycle", "another-step-is-kept", "            all(gather(same)),", "            True,",
     "lifecycle.py -k not_loaded"),
    ("train.lifecycle", "best-scored-twice", "    if kept:\n        now", "    if False:\n        now",
     "lifecycle.py -k not_measured_again"),
    ("train.lifecycle", "longest-samples-meet", "max(found, key=tokens)), max(sum", "found[0]), max(sum",
     "lifecycle.py -k largest_micro"),
    ("train.lifecycle", "more-than-was-asked-for", "free = config.micro_batch_size is None and device.type",
     "free = device.type", "lifecycle.py -k asked_for"),
    ("train.lifecycle", "all-of-the-memory", "COMFORT * device.memory_gib", "device.memory_gib",
     "lifecycle.py -k room_for"),
    ("train.lifecycle", "ranks-choose-alone", "sized(min(gather(found)))", "sized(found)", "lifecycle.py -k agree"),
    ("train.lifecycle", "text-counts-as-scoring", 'watch.during("score"), self.autocast()', "self.autocast()",
     "lifecycle.py -k time_went"),
    ("train.lifecycle", "test-is-valid", 'losses["test_loss_nats_best"] = job.score("test")',
     'losses["test_loss_nats_best"] = best', "lifecycle.py -k test_scenes"),
    ("train.lifecycle", "test-always-scored", 'if job.config.score_test:\n        losses["test_loss_nats_best"]',
     'if True:\n        losses["test_loss_nats_best"]', "lifecycle.py -k test_scenes"),
    ("train.lifecycle", "resumed-with-other-settings", "require(\n            not changed,",
     "require(\n            True,", "finetune.py -k other_settings"),
    ("train.lifecycle", "always-better", ">= LEAST_GAIN\n", ">= -LEAST_GAIN\n", "finetune.py -k look_healthy"),
    ("train.loop", "gradients-never-cleared", "self.optimizer.zero_grad()", "pass",
     "loop.py -k others_checkpoint"),
    ("train.loop", "gradients-not-clipped", "clip_grad_norm_(self.parameters, self.job.config.max_grad_norm)",
     "clip_grad_norm_(self.parameters, math.inf)", "lifecycle.py -k clipped"),
    ("train.loop", "best-is-last", "self.best = self.job.recorder.best", "self.best = (self.step, loss)",
     "loop.py -k best_is_the_lowest"),
    ("train.loop", "loop-forgets-decay", 's["weight_decay"]', "0.0", "gates.py -k 'weight_decay and adapter'"),
    ("train.loop", "loop-goes-on-though-over", "steps and not self.job.recorder.stopped_early", "steps",
     "gates.py -k 'worse_in_both and loop'"),
    ("train.finetune", "trainer-keeps-by-loss", "self.state.best_global_step, self.state.best_metric = meter.best",
     "return super()._determine_best_metric(metrics, trial)", "gates.py -k 'recites_is_not_kept and trainer'"),
    ("train.finetune", "trainer-does-not-hear-the-end", "control.should_training_stop |= recorder.stopped_early",
     "pass", "gates.py -k 'worse_in_both and trainer'"),
    ("train.finetune", "trainer-forgets-decay", "                    arguments.weight_decay,",
     "                    0.0,", "gates.py -k 'weight_decay and adapter'"),
    ("train.history", "gate-keeps-all", "min(passed or made, key", "min(made, key", "gates.py -k recites_is_not_kept"),
    ("train.history", "gate-keeps-nothing", "min(passed or made, key", "min(passed, key", "gates.py -k recites_is_not"),
    ("train.history", "margin-left-out", "<= human + MARGIN], human", "<= human], human", "gates.py -k recites_is_not"),
    ("train.history", "worse-loss-is-enough", 'for k in ("valid_loss_nats", "verbatim"))',
     'for k in ("valid_loss_nats",))', "gates.py -k goes_on"),
    ("train.history", "worse-once-is-enough", "and worse(len(made) - 2) and worse", "and worse", "gates.py -k goes_on"),
    ("train.history", "end-is-early", "if step < self.length.steps and got_worse", "if got_worse",
     "gates.py -k second_worse"),
    ("train.history", "resume-forgets-the-end", "recorder.stopped_because = WORSE * (done", "WORSE * (done",
     "gates.py -k 'worse_in_both and loop'"),
    ("train.history", "asked-in-training", "    model.eval()\n    try:", "    try:", "gates.py -k validation_moments"),
    ("train.history", "asked-at-training-moments", 'spread_moments(parts["valid"]', 'spread_moments(parts["train"]',
     "gates.py -k validation_moments"),
    ("train.lifecycle", "human-is-forgotten", "on_main(job.ranks, job.gate.human)", "0.5",
     "gates.py -k 'recites_is_not_kept and loop'"),
    ("train.lifecycle", "each-rank-speaks", "said() if self.sharded else None", "said()",
     "gates.py -k decide_together"),
    ("train.lifecycle", "parts-do-not-speak-together", "said() if self.sharded else None", "None",
     "gates.py -k 'decide_together and fsdp'"),
    ("train.lifecycle", "stopped-run-goes-on", ' or done.get("stopped_because") == WORSE):', "):",
     "gates.py -k worse_in_both"),
    ("model.verbatim", "whole-lines-alone", "return len(own & self.runs), len(own)",
     "return int(own <= self.runs), len(own)", "character.py -k runs_of_words"),
    ("character.voice", "names-are-heard", "pattern.sub(MASK, text) if pattern else text", "text",
     "voice.py -k names"),
    ("character.likelihood", "one-takes-all-moments", "-(-most // min(SHARES, len(own))), most", "most",
     "character.py -k shared_out"),
    ("character.likelihood", "what-was-read-stays", "if 0 < kept < len(self.ids):", "if False:",
     "character.py -k remembers"),
    ("character.likelihood", "the-readers-own-cache-is-changed", "copy.deepcopy(self.cache)", "self.cache",
     "character.py -k remembers"),
    ("character.likelihood", "part-of-a-name", "[: -len(said)][-size:].sum())", "[: -len(said)][-1:].sum())",
     "character.py -k whole_probability"),
    ("model.character", "the-adapter-of-whoever-spoke-last", "self.model.set_adapter(self.adapter)", "pass",
     "chat.py -k adapters"),
    ("talk.chat", "another-try-says-the-same", "7919 * self.tries.get(place, 0)", "0", "chat.py -k typed_rows"),
    ("talk.chat", "the-first-lines-are-said-to-fit", "list(self.lines), self.partner, room)[1]",
     "[], self.partner, room)[1]", "chat.py -k long_talk"),
    ("machine.distributed", "a-mesh-keeps-its-group", "{}).clear()", "{})", "ranks.py -k model_in_parts"),
    ("character.evaluate", "answers-in-the-order-of-lengths", "for k, ids in zip(some, drawn.tolist()):",
     "for k, ids in zip(range(begin, begin + size), drawn.tolist()):", "character.py -k one_batch"),
    ("character.evaluate", "other-data-is-taken", 'notes.get("data_sha256", report["data_sha256"]) ==', "True or",
     "character.py -k refused"),
    ("character.evaluate", "looks-are-not-counted", "return len(read_jsonl(file))", "return 1",
     "character.py -k looks"),
    ("character.evaluate", "test-is-scored-for-valid", "parts[config.split], report[\"speakers\"], most)",
     "parts[\"test\"], report[\"speakers\"], most)", "character.py -k split_that"),
    ("character.evaluate", "short-answers-are-more-varied", "part = w[: left[m.scene.episode]]", "part = w",
     "character.py -k as_many_words"),
    ("character.evaluate", "silence-has-ended", "ended[k] = ended[k] and bool(plain_words(texts[k]))", "pass",
     "character.py -k one_batch"),
    ("character.evaluate", "one-name-for-two", "if n not in taken", "if True", "character.py -k names_of_their_own"),
    ("character.contrast", "the-same-mouth", "(*self.request[:2], self.mouth) if self.mouth else self.request",
     "self.request", "contrast.py -k mouth"),
    ("train.history", "within-the-limit-is-worse", '"verbatim": human + MARGIN}', '"verbatim": 0.0}',
     "gates.py -k goes_on"),
    ("train.speed", "any-length-computed-again", "len(self.shapes) > 1 and not self.job.config.gradient_checkpointing",
     "len(self.shapes) > 1", "speed.py -k told_of_lengths"),
    ("train.speed", "long-rows-for-nothing", "most=None if free else 3", "most=3", "speed.py -k told_of_lengths"),
    ("character.likelihood", "long-names-have-fewer-lines", "if out := max(left_out for _, left_out in made):",
     "if (out := 0):", "character.py -k long_name"),
    ("character.evaluate", "names-in-the-verifier", "episodes, names, seed", "episodes, (), seed",
     "character.py -k verifier_hears"),
    ("character.evaluate", "colours-by-panel", 'color=f"C{k}", ', "", "character.py -k colour"),
    ("machine.graphs", "collected-while-recorded", "        gc.disable()", "        pass", "decode.py -k collected"),
    ("train.config", "ninety-ends-of-epochs", "and passes <= EVALUATIONS", "", "config.py -k length"),
    ("data.packing", "free-rows-are-few", "if most is None:", "if False:", "packing.py -k any_length"),
    ("train.loop", "mean-of-micro-batches", ".sum() / weight", ".mean()", "finetune.py -k micro_batches"),
    ("train.loop", "ranks-learn-alone", "torch.distributed.all_reduce(flat)", "pass", "loop.py -k without_a_gradient"),
    ("train.loop", "rate-stands-still", "            self.schedule.step()\n", "", "loop.py -k others_checkpoint"),
    ("train.loop", "dropout-without-seed", "torch.manual_seed(config.seed)  # dropout", "pass",
     "loop.py -k 'other_settings and dropout'"),
    ("train.loop", "optimizer-starts-anew", "    loop.optimizer.load_state_dict(", "    (lambda state: None)(",
     "loop.py -k others_checkpoint"),
    ("train.pitfalls", "steps-add-up", "optimizer.step()\n        optimizer.zero_grad()", "optimizer.step()",
     "chapter:4_train/48_pitfalls"),
    ("train.finetune", "ranks-averaged", " * self.accelerator.num_processes", "", "ranks.py -k in_parts_learns"),
    ("train.finetune", "trainer-clips-at-1", "        max_grad_norm=config.max_grad_norm,\n", "",
     "lifecycle.py -k clipped"),
    ("train.finetune", "trainer-without-warmup", "arguments.warmup_steps, num_training_steps", "0, num_training_steps",
     "lifecycle.py -k rises"),
    ("train.finetune", "an-argument-too-few", "_get_num_items_in_batch(self, parts, device)",
     "_get_num_items_in_batch(self, parts)", "packages.py -k takes"),
    ("train.finetune", "worst-step-kept", "greater_is_better=False", "greater_is_better=True",
     "finetune.py -k measured_loss"),
    ("train.finetune", "lora-plus-forgotten", 'lora_plus_ratio,\n                    "fused"',
     '1.0,\n                    "fused"', "loop.py -k 'other_settings and plus'"),
    # ---- many processes, measures, the command line -----------------------------------------------------------------
    ("ranks.collectives", "all-reduce-once-around", '"all-reduce": 2 * divided', '"all-reduce": divided',
     "collectives.py -k ring"),
    ("ranks.collectives", "last-answer-checked", "mistake = mistake or case.mistake()", "mistake = case.mistake()",
     "collectives.py -k noticed"),
    ("ranks.collectives", "fastest-rank-counts", "[max(one) for one in zip", "[min(one) for one in zip",
     "collectives.py -k slowest"),
    ("ranks.execute", "examples-run-in-jobs", 'LEAVE_OUT = {"check", "example"}', 'LEAVE_OUT = {"check"}',
     "cli.py -k parameters_and_a_file"),
    ("ranks.execute", "own-errors-look-unexpected", "and bool(frames)\n", "and not frames\n",
     "cli.py -k 'one_sentence and Homer'"),
    ("ranks.execute", "numbers-stay-text", "return kind(text)", "return text", "execute.py -k meaning"),
    ("ranks.execute", "parameters-not-looked-at", "require(name in known,", "require(True,",
     "cli.py -k 'one_sentence and max_step'"),
    ("ranks.execute", "file-overrules", "return {**given, **{name: plain_value(v) for name, v in pairs}}",
     "return {**{name: plain_value(v) for name, v in pairs}, **given}", "execute.py -k overrules"),
    ("ranks.launch", "hosts-get-the-same", "n // len(found) + (i < n % len(found))", "n // len(found)", "launch.py"),
    ("ranks.launch", "slurm-first-host", 'm[1] + (m[2] or "") + (m[3] or "")', "m[1]", "launch.py"),
    ("ranks.launch", "follower-blamed", 'key=lambda r: (r["follows"], r["time"])', 'key=lambda r: r["time"]',
     "launch.py"),
    ("ranks.launch", "slots-not-read", "int(m[2] or m[3] or 0)", "int(m[2] or 0)", "launch.py"),
    ("ranks.launch", "silent-rank-unnamed", "len(silent) == 1", "len(silent) == n", "launch.py"),
    ("ranks.launch", "earlier-runs-listed", 'if "earlier" in path.parts:', "if False:", "launch.py"),
    ("bench.preparation", "ratio-upside-down", '"less": (seed, ours), "more": (ours, seed)',
     '"less": (ours, seed), "more": (ours, seed)', "cli.py -k writes_its_rows"),
    ("bench.preparation", "more-is-worse", '"more": (ours, seed)', '"more": (seed, ours)', "bench.py -k ratio"),
    ("bench.training", "padding-counts", 'heard(int(inputs["attention_mask"].sum()),',
     'heard(inputs["attention_mask"].numel(),', "bench.py -k real_tokens"),
    ("bench.training", "lines-of-others-count", '& (batch["loss_weights"][:, 1:] == 1)',
     '& (batch["loss_weights"][:, 1:] > 0)', "bench.py -k full_weight"),
    ("bench.training", "forms-with-unlike-context", "first += max(prompt(m, first)[1] for m in makers)", "pass",
     "bench.py -k both_forms"),
    ("bench.training", "the-end-is-scored", "t.add(said[i][1], LEARNED)", "t.add(said[i][1] + makers[0].end, LEARNED)",
     "bench.py -k both_forms"),
    ("bench.training", "warming-up-is-timed", "if self.seen == self.warmups:", "if self.seen == 1:",
     "bench.py -k leaves_out"),
    ("bench.training", "scoring-takes-the-seeds-time", "watch.stop()\n                self.score(", "self.score(",
     "bench.py -k take_no_time"),
    ("bench.training", "scoring-takes-our-time", "            self.clock.stop()\n", "",
     "bench.py -k take_no_time"),
    ("bench.training", "one-goal-is-enough", "goal = min(self.goal,", "goal = max(self.goal,", "bench.py -k is_there"),
    ("bench.training", "seeds-best-is-the-base", 'r for r in curve if r["step"]]', "r for r in curve]",
     "bench.py -k seeds_best"),
    ("bench.talking", "seed-without-beams", '"seed" if side == "seed" else "book"', '"book"', "bench.py -k beams"),
    ("bench.talking", "ours-unmerged", 'if side == "ours" or side == "peer"', 'if side == "peer"', "bench.py -k beams"),
    ("bench.talking", "fewer-tokens-are-fine", "require(drawn == n and", "require(True or", "bench.py -k silent_early"),
    ("bench.talking", "answers-end-by-themselves", "stop_ids = [-1]", "stops = [-1]", "bench.py -k endless"),
    ("bench.preparation", "best-of-runs", "[runs // 2]", "[0]", "bench.py"),
    ("bench.preparation", "numbers-repeat", 'int(row[at["episode_id"]]) + again * episodes',
     'int(row[at["episode_id"]])', "bench.py"),
    ("machine.cli", "wrong-input-exits-0", "    return code or 0", "    return 0",
     "cli.py -k 'one_sentence and nowhere'"),
    ("machine.cli", "values-in-the-way", 'out.append(f"{words.pop(0)}={words.pop(0)}")', "pass",
     "cli.py -k parameters_and_a_file"),
    ("machine.cli", "defaults-forgotten", "default=None if repeated else field.default",
     "default=None", "cli.py -k defaults"),
    ("machine.cli", "the-last-of-several-counts", '"\\n".join(given[name] or ())', '"".join((given[name] or ())[-1:])',
     "languages.py -k command"),
    # ---- batch sizes for any number of ranks, data in hand, characters ----------------------------------------------
    ("data.batches", "batch-not-raised", "return -(-global_batch_size // at_once) * at_once, micro",
     "return global_batch_size, micro", "config.py -k fit_any"),
    ("data.batches", "asked-for-sizes-change", "sizes = [micro_batch_size] if keep_micro else",
     "sizes =", "config.py -k 'fit_any or asked_for'"),
    ("train.config", "sizes-for-one-rank", 's["micro_batch_size"], world_size, *asked)',
     's["micro_batch_size"], 1, *asked)', "config.py -k 'fit_any or asked_for'"),
    ("ranks.launch", "values-checked-by-the-ranks-alone",
     "check_values(check_parameters(dict(parameters or {}), chapter), chapter, n)",
     "check_parameters(dict(parameters or {}), chapter)", "launch.py -k before_any"),
    ("train.lifecycle", "other-characters-same-folder", 'for k in ("data_sha256", "speakers"))',
     'for k in ("data_sha256",))', "library.py -k learned_from"),
    ("train.lifecycle", "resumed-with-other-characters", '"speakers": list(job.report["speakers"]),', "",
     "library.py -k learned_from"),
    ("train.run", "changed-data-is-shown", 'data.report["data_sha256"] == self.summary["data_sha256"]', "True",
     "library.py -k learned_from"),
    ("data.dataset", "answers-in-the-prompt", 'heard = []\n            found', "pass\n            found",
     "chapter:1_data/19_dataset"),
    ("data.dataset", "prompt-without-its-place", "before = f\"[{s.location or 'Scene'}]\\n\"", 'before = ""',
     "chapter:1_data/19_dataset"),
    ("train.run", "data-of-a-folder-not-used", 'folder = data.folder or Path(run) / "data"',
     'folder = Path(run) / "data"', "library.py -k in_memory"),
    ("model.character", "anybody-of-a-run", "learned_speaker(name, known) if name else", "name if name else",
     "library.py -k another"),
    ("machine.job", "more-left-than-allowed", "if self.most_s is not None:", "if False:", "chapter:9_machine/91_job"),
    ("machine.job", "libraries-in-sight", "        gc.freeze()\n", "", "start.py -k training"),
    ("machine.job", "models-out-of-sight", "if all(name in sys.modules for name in names):", "if False:",
     "start.py -k in_sight"),
    ("model.adapter", "trainer-for-an-answer", "    load_libraries()\n", "    from transformers import Trainer\n",
     "start.py -k training"),
    ("data.dataset", "datasets-for-kept-samples", "    parts = []\n", "    import datasets\n\n    parts = []\n",
     "start.py -k neither"),
    ("train.lifecycle", "tokenizer-loaded-twice", ", config.quantization, job.maker.tokenizer)",
     ", config.quantization)", "start.py -k once"),
    ("model.base", "hashed-each-time", "    folder = cache_dir() / SMOLLM2\n",
     "    folder = cache_dir() / SMOLLM2\n    sha256(folder / \"config.json\")\n", "start.py -k hashed"),
    ("model.base", "header-read-four-times", "kept, names = cache(Reader),", "kept, names = Reader,",
     "ollama.py -k read_once"),
    ("model.base", "names-for-each-part", "cache(gguf.get_tensor_name_map)\n", "gguf.get_tensor_name_map\n",
     "ollama.py -k read_once"),
)]
# fmt: on


def spoilt(path, fault):
    "A module's text with the fault put in; None where its place is not there exactly once."
    text = path.read_text(encoding="utf8")
    return text.replace(fault.old, fault.new) if text.count(fault.old) == 1 else None


def spoilt_chapter(path, fault):
    "A chapter with the fault in its exported cells, which define what its module holds; None as above."
    notebook, found = json.loads(path.read_text(encoding="utf8")), 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "#| export" not in source:
            continue
        found += source.count(fault.old)
        cell["source"] = source.replace(fault.old, fault.new)
    return json.dumps(notebook) if found == 1 else None


def spoils_of(fault, copy):
    "The files that a fault changes and what they hold with it: the module, and the chapter that is its test."
    module = copy / "simpsons_llm" / f"{fault.module.replace('.', '/')}.py"
    spoils = {module: spoilt(module, fault)}
    if fault.tests.startswith("chapter:"):
        chapter = copy / "nbs" / f"{fault.tests[8:]}.ipynb"
        spoils[chapter] = spoilt_chapter(chapter, fault)
    return spoils


def unusable(fault, spoils):
    "Why a fault cannot be tried, as (result, note); None if it can."
    for path, text in spoils.items():
        if text is None:
            return "STALE", f"not exactly once in {path.name}: {fault.old!r}"
        if path.suffix == ".py":
            try:
                ast.parse(text)
            except SyntaxError as error:
                return "BROKEN", f"does not parse: line {error.lineno} of {path.name}, {error.msg}"
    return None


def command_of(tests):
    "What runs the tests of a fault in a copy."
    if tests.startswith("chapter:"):
        return ["nbdev_test", "--path", f"nbs/{tests[8:]}.ipynb", "--n_workers", "0"]
    return pytest_for("-x", *(f"tests/test_{w}" if ".py" in w else w for w in shlex.split(tests)))


def pytest_for(*words):
    report = ("-o", "junit_family=xunit1", "--junitxml", "../report.xml")
    return [sys.executable, "-m", "pytest", "-q", "--slow", "--no-header", "-p", "no:cacheprovider", *report, *words]


def run(command, copy, limit_s=LIMIT_S):
    "Exit code of a command in a copy (None: it took too long), and the last that it said."
    # samples that were kept without the fault must not hide it
    shutil.rmtree(copy.parent / "cache" / "tokens", ignore_errors=True)
    (copy.parent / "report.xml").unlink(missing_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SIMPSONS_LLM_CACHE": str(copy.parent / "cache"),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": path,
    }
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        p = subprocess.Popen(
            command,
            cwd=copy,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = p.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            try:
                os.killpg(p.pid, signal.SIGKILL)  # and what the tests started
            except ProcessLookupError:
                pass
            p.wait()
        said.seek(0)
        return code, " ".join(said.read().split())[-300:]


def failed_tests(copy):
    "Names of the tests that failed in the last run, as pytest takes them."
    file = copy.parent / "report.xml"
    cases = xml.etree.ElementTree.parse(file).iter("testcase") if file.is_file() else ()
    return [
        f"{c.get('file')}::{c.get('name')}"
        for c in cases
        if c.find("failure") is not None or c.find("error") is not None
    ]


def examine(fault, copy):
    "One fault: (what came of it, a note, the tests that failed)."
    spoils = spoils_of(fault, copy)
    if trouble := unusable(fault, spoils):
        return *trouble, []
    whole = {path: path.read_bytes() for path in spoils}
    try:
        for path, text in spoils.items():
            path.write_text(text, encoding="utf8")
        code, said = run(command_of(fault.tests), copy)
    finally:
        for path, data in whole.items():
            path.write_bytes(data)
    if code == 0:
        return "SURVIVED", "its tests pass with it", []
    if code is None:
        return "caught", f"its tests took more than {LIMIT_S} s", []
    if code != 1:
        return "BROKEN", f"exit code {code}: {said}", []
    if failed := failed_tests(copy):
        return "caught", failed[0], failed
    return ("caught", said, [fault.tests]) if fault.tests.startswith("chapter:") else ("BROKEN", said, [])


def copied(folder):
    "A copy of what the tests need, beside a cache of its own: the user's weights are used, samples are made anew."
    sys.path.insert(0, str(ROOT))
    from simpsons_llm.machine.job import cache_dir

    copy, cache = folder / "project", folder / "cache"
    copy.mkdir()
    cache.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("runs", "__pycache__", ".ipynb_checkpoints")
            )
        else:
            shutil.copy2(ROOT / name, copy / name)
    for p in cache_dir().glob("*"):
        if p.name != "tokens":
            (cache / p.name).symlink_to(p)
    return copy


def spoken(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def examine_all(faults, tell):
    "A row for each fault; at the end, the tests that noticed one are run without any."
    begin, rows, noticed = time.perf_counter(), [], {}
    with tempfile.TemporaryDirectory(prefix="faults", ignore_cleanup_errors=True) as folder:
        copy = copied(Path(folder))
        for number, fault in enumerate(faults, 1):
            since = time.perf_counter()
            result, note, failed = examine(fault, copy)
            took, spent = time.perf_counter() - since, time.perf_counter() - begin
            row = {
                "module": fault.module,
                "fault": fault.name,
                "result": result,
                "seconds": round(took, 1),
                "tests": fault.tests,
                "note": note,
            }
            rows.append(row)
            for test in failed:
                noticed.setdefault(test, []).append(row)
            left = spoken(spent / number * (len(faults) - number))
            tell(f"[{number}/{len(faults)}] {fault.module} {fault.name}: {result} in {spoken(took)}; {left} left")
        tell(f"the {len(noticed)} tests that noticed a fault, once more without any")
        for test in failing(noticed, copy):
            for row in noticed.get(test, ()):
                row.update(result="BROKEN", note=f"fails without a fault, too: {test}")
    return rows


def failing(tests, copy):
    "Those of these tests and chapters that fail as things are."
    chapters = [t for t in tests if t.startswith("chapter:")]
    bad, rest = [c for c in chapters if run(command_of(c), copy)[0] != 0], [t for t in tests if t not in chapters]
    code = run(pytest_for(*rest), copy, None)[0] if rest else 0
    return bad + (failed_tests(copy) if code == 1 else rest if code else [])


def table(rows):
    "The rows for people."
    lines = [f"{r['module']:20}{r['fault']:32}{r['result']:10}{r['seconds']:6.0f} s  {r['tests']}" for r in rows]
    lines += [f"{r['result']} {r['module']} {r['fault']}: {r['note']}" for r in rows if r["result"] != "caught"]
    return "\n".join([*lines, f"{sum(r['result'] == 'caught' for r in rows)} of {len(rows)} faults were caught"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="a module, or part of a fault's name")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--check", action="store_true", help="only look whether each fault can be tried")
    given = parser.parse_args()
    faults = [f for f in FAULTS if not given.names or any(n == f.module or n in f.name for n in given.names)]
    if not faults:
        parser.error(f"no fault is called {' or '.join(given.names)}")
    if given.check:
        bad = [(f, *told) for f in faults if (told := unusable(f, spoils_of(f, ROOT)))]
        for f, result, note in bad:
            print(f"{result} {f.module} {f.name}: {note}")
        sys.exit(bool(bad))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    rows = examine_all(faults, lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(map(json.dumps, rows)) if given.json else table(rows))
    sys.exit(any(r["result"] != "caught" for r in rows))


if __name__ == "__main__":
    main()
