# %%
#| default_exp train.sharding

# %% [markdown]
# # Models in parts
#
# > When a model does not fit on one device, each rank holds a part of it: FSDP, through accelerate, with checkpoints that any number of ranks can read.
#
# With DDP every rank holds the whole model, and only gradients travel. For an adapter that is right: what is trained is small. In full fine-tuning each parameter needs 16 bytes (fp32 weight, gradient, and the two averages of AdamW), so 3 billion parameters ask for 48 GB before the first activation. *Fully sharded data parallel* cuts every parameter into as many parts as there are ranks. Before a layer computes, its parts are gathered (all-gather); afterwards they are dropped again; its gradients are summed so that each rank keeps the sum of its own part only (reduce-scatter). The optimizer then works on parts.
#
# The work is done by PyTorch's `fully_shard` ("FSDP2"), which accelerate calls for the Trainer. Two things are added here: the same on CPU ranks, where it can be tried and tested without a GPU, and checkpoints in the one form that a single process, DDP and FSDP all read.

# %%
#| export
import os
from pathlib import Path

from simpsons_llm.machine.distributed import group_ranks
from simpsons_llm.model.adapter import compare_weights
from simpsons_llm.model.base import load_whole, readable, require_whole

# %%
#| hide
import tempfile

import pandas as pd
from safetensors.torch import save_file
from transformers import Trainer

from simpsons_llm.machine.distributed import start_ranks
from simpsons_llm.machine.job import chapters_dir
from simpsons_llm.model.base import tiny_model

# %% [markdown]
# What each rank holds of 3 billion parameters at 16 bytes, in GB, by the number of ranks:

# %% tags=["example"]
ways = {"DDP": [3e9 * 16 / 1e9] * 4, "FSDP": [3e9 * 16 / n / 1e9 for n in (1, 2, 4, 8)]}
pd.DataFrame(ways, index=pd.Index([1, 2, 4, 8], name="ranks")).T


# %% [markdown]
# ## Parts and wholes
#
# A parameter in parts is a `DTensor`: it has the shape of the whole, and holds a slice. To put it together, all ranks must take part; to cut one's own slice out of a whole that every rank has read from disk, nobody has to.

# %%
#| export
def whole(
    tensor,  # a tensor, in parts or not
):  # the whole of it, on the CPU
    "Put a tensor together. All ranks must call it."
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


# %% [markdown]
# The other way needs no message, if all ranks have read the same whole.

# %%
#| export
def share_of(
    tensor,  # a whole tensor, the same on all ranks
    like,  # a tensor that may be in parts
):  # `tensor` in the same parts as `like`
    "This rank's part of a whole. Nothing is sent."
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


# %% [markdown]
# A matrix of three rows on two ranks. The parts are of two rows and of one; put together they are the three again, on both:

# %% tags=["example"]
rows = start_ranks("""
    join_group(ranks, find_device("cpu"))
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from simpsons_llm.train.sharding import share_of, whole
    matrix = torch.arange(6).view(3, 2)
    like = distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    part = share_of(matrix, like)
    print(part.to_local().tolist(), whole(part).tolist(), sep=";")""")
pd.DataFrame([s.split(";") for s in rows], columns=["the part", "the whole"]).rename_axis("rank")


# %% [markdown]
# Of a whole model one rank needs the wholes, the one that writes them. The others help to gather each and let go of it.

# %%
#| export
def gather_weights(
    model,  # a model whose parameters are in parts; with an adapter of PEFT, only that is gathered
) -> dict:  # name -> whole tensor, on the CPU; {} on all ranks but the first
    "What a sharded model leaves behind, put together tensor by tensor. All ranks must call it."
    main, adapter, out, seen = group_ranks().is_main, hasattr(model, "get_base_model"), {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if adapter and "lora_" not in name:
            continue
        # a tied weight is gathered once, and stays one tensor
        if id(tensor) not in seen:
            seen[id(tensor)] = _kept(tensor, main)
        if main:
            out[name] = seen[id(tensor)]
    return out


def _kept(tensor, main):
    "The whole on rank 0; None on the others, which only help to gather it."
    t = whole(tensor)
    return t if main else None


# %% [markdown]
# What each of two ranks holds of a small model before and after it is cut, and that the whole comes back:

# %% tags=["example"]
said = start_ranks("""
    join_group(ranks, find_device("cpu"))
    import torch
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    from simpsons_llm.train.sharding import gather_weights, share_of, whole
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 32))
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    mesh = init_device_mesh("cpu", (2,))
    for layer in model: fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    held = sum(p.to_local().numel() for p in model.parameters())
    back = all(torch.equal(whole(p), before[k]) for k, p in model.named_parameters())
    cut = all(torch.equal(share_of(before[k], p).to_local(), p.to_local()) for k, p in model.named_parameters())
    names = len(gather_weights(model))
    print(sum(v.numel() for v in before.values()), held, back, cut, names)""")
pd.DataFrame(
    [s.split() for s in said],
    columns=["numbers in all", "held by this rank", "the whole comes back", "parts are the same", "weights gathered"],
).rename_axis("rank")

# %% tags=["check"]
assert [s.split()[2:] for s in said] == [["True", "True", "4"], ["True", "True", "0"]]
assert all(int(s.split()[1]) * 2 == int(s.split()[0]) for s in said)

# %% [markdown]
# A checkpoint must hold all that it is loaded for: each weight of the adapter, or each of the model. What it lacks would stay as it is, a mixture of two steps that no run ever had; and a tensor of another shape would be spread over the rows. Only a weight that the model ties to another is kept once.

# %%
#| export
EARLIER = "remove it to go on from an earlier one, or run without resume"


def checkpoint_weights(
    folder,  # a checkpoint: model*.safetensors or adapter_model.safetensors
) -> dict:  # name -> tensor; FileNotFoundError if there is none, or one cannot be read
    "The weights in a checkpoint, under the names of their files."
    from safetensors.torch import load_file

    saved: dict = {}
    adapter = Path(folder) / "adapter_model.safetensors"
    files = [adapter] if adapter.is_file() else sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no weights in {folder}; expected model.safetensors or adapter_model.safetensors")
    with readable(f"the checkpoint {folder}", EARLIER, folder):
        for f in files:
            saved |= load_file(f)
    return saved


# %% [markdown]
# The first four of the tiny model, by the names that they have in the file:

# %% tags=["example"]
tiny, _ = tiny_model()
with tempfile.TemporaryDirectory() as folder:
    save_file(tiny.state_dict(), f"{folder}/model.safetensors")
    kept = checkpoint_weights(folder)
pd.Series({name: tuple(t.shape) for name, t in kept.items()}, name="shape").head(4).to_frame()


# %% [markdown]
# Names and shapes are compared before the first number is copied, so a checkpoint that does not fit leaves the model as it was.

# %%
#| export
def load_weights(
    model,  # a model, in parts or not
    folder,  # a checkpoint: model*.safetensors or adapter_model.safetensors
):
    "Copy a checkpoint's weights into a model; each rank takes its part. Errors as `load_whole`, with nothing changed."
    import torch

    what, mine, saved = f"the checkpoint {folder}", model.state_dict(keep_vars=True), checkpoint_weights(folder)
    if (Path(folder) / "adapter_model.safetensors").is_file():
        # PEFT leaves the adapter's name out: lora_A.weight for lora_A.default.weight,
        # lora_magnitude_vector for lora_magnitude_vector.default.weight
        named = {
            k.replace(f".{model.active_adapter}.weight", ".weight").replace(
                "lora_magnitude_vector.weight", "lora_magnitude_vector"
            ): k
            for k in mine
            if "lora_" in k
        }
        saved, mine = {named.get(k, k): v for k, v in saved.items()}, {k: mine[k] for k in named.values()}
    elif not saved.keys() <= mine.keys() and (Path(folder) / "config.json").is_file():
        # experts are saved one by one, and computed as one tensor
        saved = load_whole(folder, what, EARLIER).state_dict()
    kept = {id(mine[name]) for name in saved if name in mine}
    # a tied weight is kept once
    wanted = {name: tuple(t.shape) for name, t in mine.items() if name in saved or id(t) not in kept}
    found = compare_weights({name: tuple(t.shape) for name, t in saved.items()}, wanted)
    require_whole(
        f"{what} does not fit this model", found, f"it was saved from another model or with other settings; {EARLIER}"
    )
    with torch.no_grad():
        for name, tensor in saved.items():
            mine[name].copy_(share_of(tensor.to(mine[name].dtype), mine[name]))


# %% [markdown]
# A checkpoint from which a layer's weight is missing:

# %% tags=["example"]
with tempfile.TemporaryDirectory() as folder:
    part = {k: v for k, v in tiny.state_dict().items() if k != "model.norm.weight"}
    save_file(part, f"{folder}/model.safetensors")
    try:
        load_weights(tiny, folder)
    except ValueError as e:
        print(str(e).replace(folder, "FOLDER"))


# %% [markdown]
# ## The Trainer's part
#
# accelerate shards for accelerators only; on CPU ranks it would quietly train with DDP. Telling it otherwise is three assignments, after which everything is the same code. In bfloat16 its policy would also sum gradients in bfloat16; here they are summed in fp32. The checkpoint methods write whole tensors under the names that the Trainer uses without FSDP: `model.safetensors` or the adapter's file, `optimizer.pt`, `scheduler.pt`. They are gathered tensor by tensor, so that rank 0 needs the room of one model in its machine's memory, not each rank that of one on its card.
# Read, they are by `load_weights`, sharded or not: what the Trainer misses in a checkpoint it only warns of.
#
# Activations, where they are to be computed again, are so by the layers themselves (`recompute_activations`) and not by FSDP's own wrapper: that renames the layers, and PEFT then finds no adapter to save. The weights are fetched as often either way.

# %%
#| export
def fsdp_arguments() -> dict:  # keyword arguments for transformers.TrainingArguments
    "FSDP2, one part for each decoder layer; gradients are cut after each micro-batch: no rank holds whole ones."
    return {
        "fsdp": True,
        "fsdp_config": {
            "fsdp_version": 2,
            "version": 2,
            "state_dict_type": "FULL_STATE_DICT",
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        },
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


# %% [markdown]
# The Trainer itself is changed at the places where it makes its accelerator, saves and loads; the steps are its own.

# %%
#| export
def sharded_trainer(
    trainer: type,  # transformers.Trainer or a subclass
) -> type:  # a subclass; without FSDP it behaves as before
    "A Trainer whose sharded checkpoints are those of an unsharded one, and which shards on CPU ranks too."
    import torch

    class ShardedTrainer(trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            from accelerate.state import DistributedType, PartialState

            state = self.accelerator.state
            if not self.args.fsdp:
                return
            if state.distributed_type == DistributedType.MULTI_CPU:
                from accelerate.utils import FullyShardedDataParallelPlugin

                state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
                state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
                self.is_fsdp_enabled = True
            if self.args.bf16:
                from torch.distributed.fsdp import MixedPrecisionPolicy

                state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                    param_dtype=torch.bfloat16, reduce_dtype=torch.float32
                )

        def shard(self):
            "Spread the model now, for work before or without training."
            self.model = self.model_wrapped = self.accelerator.prepare(self.model)

        def save_model(self, output_dir=None, _internal_call=False):
            if not self.is_fsdp_enabled:
                return super().save_model(output_dir, _internal_call)
            weights = gather_weights(self.model)
            if self.args.should_save:
                self._save(output_dir or self.args.output_dir, state_dict=weights)

        def _save_optimizer_and_scheduler(self, output_dir):
            if not self.is_fsdp_enabled:
                return super()._save_optimizer_and_scheduler(output_dir)
            state, main = self.optimizer.state_dict(), self.args.should_save
            state["state"] = {
                i: {k: _kept(v, main) if torch.is_tensor(v) else v for k, v in s.items()}
                for i, s in state["state"].items()
            }
            if main:
                torch.save(state, os.path.join(output_dir, "optimizer.pt"))
                torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))

        def _load_from_checkpoint(self, checkpoint, model=None):
            # also where nothing is sharded: it does not pass over what is missing
            load_weights(model or self.model, checkpoint)

        def _load_best_model(self):
            load_weights(self.model, self.state.best_model_checkpoint)

        def _load_optimizer_and_scheduler(self, checkpoint):
            if not self.is_fsdp_enabled or checkpoint is None:
                return super()._load_optimizer_and_scheduler(checkpoint)
            state = torch.load(
                os.path.join(checkpoint, "optimizer.pt"), map_location="cpu", weights_only=True, mmap=True
            )
            mine = [p for g in self.optimizer.param_groups for p in g["params"]]
            state["state"] = {
                i: {k: share_of(v, mine[i]) if torch.is_tensor(v) else v for k, v in s.items()}
                for i, s in state["state"].items()
            }
            self.optimizer.load_state_dict(state)
            self.lr_scheduler.load_state_dict(torch.load(os.path.join(checkpoint, "scheduler.pt"), weights_only=True))

    return ShardedTrainer


# %% [markdown]
# All that differs from the Trainer, by name; `shard` is new:

# %% tags=["example"]
methods = [name for name, f in vars(sharded_trainer(Trainer)).items() if callable(f)]
pd.DataFrame({"method": methods, "of the Trainer": [hasattr(Trainer, m) for m in methods]})

# %% [markdown]
# That a run with FSDP gives the losses of a run without, and that the checkpoints of either are resumed by the other in any number of ranks, is tested with finetune on CPU ranks (`tests/test_ranks.py`): within 1e-5 in fp32, in losses, gradient norms and what is saved.
#
# On a GPU, the model is loaded on the CPU, cut, and moved to the cards, NCCL beside gloo. A group of a single rank takes the same way. `tests/gpu_ranks.py` did that on an H100 with a tiny model, beside the same run alone and with DDP (8 steps; the tiny model's speed says nothing about larger ones):

# %% tags=["example"]
found = pd.read_json(chapters_dir() / "_results" / "gpu_ranks.jsonl", lines=True)
found[["mode", "way", "dtype"]] = found.pop("name").str.split("-", expand=True)
found.set_index(["mode", "way", "dtype"])[
    ["sharded", "valid_loss_nats_best", "furthest_from_alone_nats", "peak_mem_gib"]
]

# %% tags=["check"]
assert (found[found["dtype"] == "float32"].furthest_from_alone_nats < 1e-5).all() and found.sharded.sum() == 4

# %% [markdown]
# And two GPUs of one machine, two H200, by `tests/gpu_several.py`: SmolLM2 trained whole in bf16 for 20 steps of 16 samples, on one card, on two that each hold all of it (DDP), and on two that each hold half (FSDP). What does half a model save, and what does it cost?

# %% tags=["example"]
several = pd.read_json(chapters_dir() / "_results" / "gpu_several.jsonl", lines=True)
several = several[several["kind"] == "run"]
whole_model = several[(several["base"] == "smollm2-135m") & (several["mode"] == "full")]
table = whole_model.assign(
    way=[
        ("FSDP" if s else "DDP") if n > 1 else "one card"
        for n, s in zip(whole_model["world_size"], whole_model["sharded"])
    ]
).set_index("way")
table = table[["peak_mem_gib", "tokens_per_s", "valid_loss_nats_best", "furthest_from_one_nats"]]
table.assign(speedup=table["tokens_per_s"] / table["tokens_per_s"].iloc[0]).round(
    {"peak_mem_gib": 2, "tokens_per_s": 0, "valid_loss_nats_best": 4, "furthest_from_one_nats": 4, "speedup": 2}
)

# %% [markdown]
# DDP makes this small model 1.65 times as fast on two cards; FSDP takes 2.1 GiB less on each, and gives the speed away, since every layer is fetched twice a step, for few tokens. That is the bargain: FSDP is for what does not fit. The losses differ by what bf16 rounds (two cards add in another order, and FSDP keeps bf16 copies of the weights to compute with). In fp32, a tiny model's losses were within 4.8e-7 of those on one card, in every way, and a checkpoint of two ranks was gone on with by one and the other way round.

# %% tags=["check"]
assert (several[several["dtype"] == "float32"]["furthest_from_one_nats"] < 1e-6).all() and several[
    several["world_size"] == 2
]["sharded"].sum() == 2
assert (
    table.loc["FSDP", "peak_mem_gib"] < table.loc["DDP", "peak_mem_gib"] - 2
    and 1.6 < table.loc["DDP", "tokens_per_s"] / table.loc["one card", "tokens_per_s"] < 1.7
)
assert (table["furthest_from_one_nats"] < 0.01).all()
