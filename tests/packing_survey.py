"""Which kinds of models can be packed?

Every causal language model that transformers knows, made small, is asked as a run asks it.

    python tests/packing_survey.py              all kinds, some minutes; writes nbs/_results/packing_models.jsonl
    python tests/packing_survey.py llama bert   these kinds, to the screen

Each row: what the class says of itself (`says`), what a sketch of it does (`does`, `leak`), and the verdict. A kind
that is admitted is measured once more by other means (`off`): other weights, seven sequences of up to 61 tokens, each
against itself alone in the library's own attention. And each kind is saved and loaded again (`loads`): nothing of a
whole model is taken for missing.
"""

import json
import os
import signal
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
RECORD = Path(__file__).resolve().parent.parent / "nbs" / "_results" / "packing_models.jsonl"
SECONDS, MOST = 120, 5 * 10**8  # for one kind, and its largest number of weights


def named(value, names):
    "The same value for names that different kinds use for the same thing."
    return dict.fromkeys(names.split(), value)


LAYERS = named(4, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers") | named(
    2, "encoder_layers num_encoder_layers"
)
WIDTHS = named(
    64,
    "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim emb_dim attention_hidden_size lru_width "
    "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff ffn_hidden_size "
    "feed_forward_size hidden_dim moe_intermediate_size shared_expert_intermediate_size",
)
HEADS = named(
    4,
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads",
) | {"num_key_value_heads": 2}
EXPERTS = (
    named(4, "num_experts num_local_experts n_routed_experts moe_num_experts")
    | named(2, "num_experts_per_tok num_experts_per_token moe_k")
    | named(1, "n_group topk_group")
)
OTHERS = (
    named(16, "head_dim dim_head q_lora_rank kv_lora_rank v_head_dim")
    | named(8, "qk_rope_head_dim qk_nope_head_dim rotary_dim")
    | {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
)
CONV = ["conv", "full_attention"] * 2
OWN = {  # what a kind needs besides
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8},
    "dots1": {"n_shared_experts": 1, "moe_layer_freq": 1},
    "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
    "lfm2": {"full_attn_idxs": [1, 3], "layer_types": CONV},
    "lfm2_moe": {"layer_types": CONV, "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
}


def attempt(make):
    "What is made, or None."
    try:
        return make()
    except Exception:
        return None


def small_parts(cls):
    "Of a kind made of parts: each part, made small where that is possible."
    parts = {name: getattr(cls(), name, None) for name in getattr(cls, "sub_configs", {})}

    def small(part):
        return next((c for make in small_configs(type(part)) if (c := attempt(make))), part)

    return {name: small(part).to_dict() for name, part in parts.items() if part is not None}


def small_configs(cls, **switches):
    "Ways to a kind's configuration, made small; not every way makes a model."
    if parts := small_parts(cls):
        yield lambda: cls(**parts, **switches)
    switches, renamed = {**OWN.get(cls.model_type, {}), **switches}, getattr(cls, "attribute_map", {})
    names, everything = cls().to_dict().keys() | renamed.keys(), LAYERS | WIDTHS | HEADS | EXPERTS | OTHERS
    wanted = {k: v for k, v in everything.items() if k in names and renamed.get(k, k) == k}
    widths = (*WIDTHS, *HEADS, "head_dim", "dim_head")
    for without in ((), ("head_dim",), ("num_key_value_heads",), ("head_dim", "num_key_value_heads"), widths):
        yield lambda: cls(**{**{k: v for k, v in wanted.items() if k not in without}, **switches})
    # for latent attention
    equal = named(HEADS["num_attention_heads"], "num_key_value_heads") if "num_key_value_heads" in wanted else {}
    yield lambda: cls(**{**{k: v for k, v in wanted.items() if k != "head_dim"}, **equal, **switches})
    yield lambda: cls(**{**{k: v for k, v in wanted.items() if k in LAYERS}, **switches})
    yield lambda: cls(**switches)


def small_model(cls, **switches):
    "The first of them that makes a model through which a text goes: (configuration, sketch, whether it reads ahead)."
    from simpsons_llm.data.packing import reads_ahead
    from simpsons_llm.model.base import shape_of, sketch_of

    first = None
    for make in small_configs(cls, **switches):
        try:
            config = make()
            if sum(p.numel() for p in shape_of(config).parameters()) > MOST:
                raise ValueError("too large")
            sketch = sketch_of(config)
            return config, sketch, reads_ahead(sketch)
        except Exception as e:
            first = first or e
    raise first


def measured_again(config):
    "The largest difference of an answer end to end from the same alone, relative to the spread of the answers."
    import torch
    from transformers import AutoModelForCausalLM

    from simpsons_llm.data.packing import EndToEnd, packed_inputs, use_isolated

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_((torch.rand_like(p) - 0.5) * (2 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
        texts = [torch.randint(3, 190, (n,)).tolist() for n in (5, 30, 3, 61, 17, 44, 8)]
        alone = torch.cat([model(input_ids=torch.tensor([t]), use_cache=False).logits[0] for t in texts])
        use_isolated(model)
        batch = EndToEnd(0)([{"input_ids": t, "loss_weights": [1.0] * len(t)} for t in texts])
        together = model(input_ids=batch["input_ids"], use_cache=False, **packed_inputs(batch)).logits[0]
    return ((together - alone).abs().max() / alone.std()).item()


def loads(config):
    "What is said when a model is saved and loaded again; empty if it loads whole."
    from transformers import AutoModelForCausalLM

    from simpsons_llm.model.base import load_whole

    with tempfile.TemporaryDirectory() as folder:
        try:
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            load_whole(folder, "it", "report this")
            return ""
        except Exception as e:
            return in_short(e)


def in_short(e):
    "An error in a line."
    return f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"


def survey(kind, cls, **switches):
    "The row of one kind of model."
    from simpsons_llm.data.packing import can_isolate, leaks_between, probe_packing
    from simpsons_llm.model.base import shape_of, sketch_of

    row = {"model_type": kind, **switches}
    try:
        config, sketch, ahead = small_model(cls, **switches)
    except Exception as e:
        return {**row, "verdict": "not asked", "why": in_short(e)}
    row |= {"class": type(sketch).__name__, "loads": loads(config), "reads_ahead": ahead}
    row |= {"says": can_isolate(shape_of(config)), "does": leaks_between(sketch)}
    row["leak"] = attempt(lambda: probe_packing(sketch_of(config))["leak"])
    row["verdict"] = "reads ahead" if ahead else "refused" if row["says"] or row["does"] else "packed"
    if row["verdict"] == "packed":
        row["off"] = measured_again(config)
    return row


def rows_of(kind, cls):
    "The row of a kind; for an encoder that can be made a decoder, also that one's."
    signal.alarm(SECONDS)
    try:
        yield (row := survey(kind, cls))
        if row["verdict"] == "reads ahead" and "is_decoder" in cls().to_dict():
            yield survey(kind, cls, is_decoder=True)
    except Exception as e:
        yield {"model_type": kind, "verdict": "not asked", "why": in_short(e)}
    finally:
        signal.alarm(0)


def main(wanted):
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def late(*_):
        raise TimeoutError(f"took longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    rows, about = (
        [],
        {"transformers": transformers.__version__, "torch": torch.__version__, "date": date.today().isoformat()},
    )
    for kind in wanted or KINDS:
        for row in rows_of(kind, transformers.CONFIG_MAPPING[kind]):
            print(json.dumps(row), flush=True)
            rows.append({**row, **about})
    if not wanted:
        RECORD.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf8")
    leaking = [r["model_type"] for r in rows if r["verdict"] == "packed" and not r["off"] < 1e-3]
    counts = {v: sum(r["verdict"] == v for r in rows) for v in ("packed", "refused", "reads ahead", "not asked")}
    print(counts, "admitted and leaking:", leaking)
    return bool(leaking)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
