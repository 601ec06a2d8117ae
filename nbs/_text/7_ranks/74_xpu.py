# %% [markdown]
# # Fine-tuning on Intel GPUs
#
# > A manual for a machine of four Intel Data Center GPU Max 1550 cards, or for several such machines: from the installation to what failures mean.
#
# The code that trains on an XPU is the code that trains elsewhere: PyTorch has the device `xpu` and the backend `xccl` built in, and this book asks for both through `torch.accelerator`, as on any GPU. What is different is around it: where the packages come from, what a card is, how ranks are started. **Nothing in this chapter was run on an XPU**; what was run is said at its end.

# %% [markdown]
# ## 1. Install, and ask the doctor
#
# PyTorch's own XPU build comes from its own index; `xccl`, through which the cards talk, is in it since version 2.8. The project's needs follow, without the pinned CPU build:
#
# ```
# pip install torch --index-url https://download.pytorch.org/whl/xpu
# pip install -e .
# simpsons-llm doctor
# ```
#
# The doctor should list `xpu:0` and its sisters, `bfloat16`, and `xccl` under `distributed`. The GPU driver and, in containers, `/dev/dri` must be there. `intel-extension-for-pytorch` and `oneccl-bind-pt` are not needed: both ended with version 2.8. Who must stay with torch 2.8 can have them from Intel's own index, and ask for them with `use_ipex=true` and `backend=ccl`:
#
# ```
# pip install -e ".[ipex,ccl]" --extra-index-url https://pytorch-extension.intel.com/release-whl/stable/xpu/us/
# ```

# %% [markdown]
# ## 2. Tiles or cards?
#
# A Max 1550 has two tiles with 64 GB each. By default (`ZE_FLAT_DEVICE_HIERARCHY=FLAT`) each tile is a device, so four cards are eight ranks; that is the faster way when the model fits into 64 GB. With `ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE` a card is one device of 128 GB, and four cards are four ranks. `IPEX_TILE_AS_DEVICE=0` of older guides means COMPOSITE and is translated. Do not hide devices from single ranks with `ZE_AFFINITY_MASK`: every rank sees all, and takes the one of its local rank.

# %% [markdown]
# What a rank is told by the environment, before it asks for a device, can be looked at anywhere. With a stand-in for the library that claims to be eight tiles of 64 GB, the rank with number 5 of 8 takes the sixth:

# %% tags=["example"]
from types import SimpleNamespace
from unittest.mock import patch

import torch

from simpsons_llm.machine.device import find_device, find_ranks

tile = SimpleNamespace(name="Intel(R) Data Center GPU Max 1550", total_memory=64 * 2**30)
pretended = {
    "is_available": lambda: True,
    "device_count": lambda: 8,
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_device_properties": lambda device=None: tile,
}
env = {"RANK": "5", "LOCAL_RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}
with patch.multiple(torch.xpu, **pretended), patch.dict("os.environ", env):
    ranks = find_ranks()
    chosen = find_device("xpu", "auto", ranks.local_rank)
chosen

# %% tags=["check"]
assert (chosen.type, chosen.index, chosen.dtype, chosen.memory_gib) == ("xpu", 5, "bfloat16", 64)

# %% [markdown]
# ## 3. One tile first
#
# Before eight, one: prepare the data, ask what the run will cost, and let it make a few steps. The base model has 3.4 billion parameters and is fetched from the hub once, about 7 GB; where compute nodes have no network, fetch it on a login node (`hf download openlm-research/open_llama_3b`) and let all share `HF_HOME`.
#
# ```
# simpsons-llm prepare --script springfield --out runs/data
# simpsons-llm estimate --data runs/data --device xpu --base-model openlm-research/open_llama_3b
# simpsons-llm finetune --data runs/data --run runs/one --base-model openlm-research/open_llama_3b --max-steps 10
# ```

# %% [markdown]
# ## 4. All of them
#
# On one machine, by torchrun (which comes with PyTorch) or by an MPI:
#
# ```
# simpsons-llm launch -n 8 finetune --out runs/a -p data runs/data -p base_model openlm-research/open_llama_3b -p global_batch_size 64 -p micro_batch_size 8
# simpsons-llm launch -n 8 finetune --out runs/b --launcher intelmpi -p data runs/data -p base_model openlm-research/open_llama_3b
# mpirun -n 8 simpsons-llm rank finetune runs/c/rank{rank}.ipynb -p data runs/data -p base_model openlm-research/open_llama_3b
# torchrun --nproc-per-node 8 --no-python simpsons-llm rank finetune runs/d/rank{rank}.ipynb -p data runs/data -p base_model openlm-research/open_llama_3b
# ```
#
# `global_batch_size` is what a step learns from, whatever the number of ranks. What is left out is chosen so that the ranks can share it (the book's recipe has two scenes a step; eight ranks make it eight, and say so). `-p mode full` trains all weights, in parts on the cards. Before a long run: `simpsons-llm estimate` with the same settings, and `simpsons-llm bench collectives` to see what the connection gives.

# %% [markdown]
# ## 5. Several machines
#
# All must see the run's folder and have the same environment. With ssh between them, `--hosts node1,node2`; in an allocation of SLURM, `simpsons-llm launch` uses `srun`; with an mpirun of one's own, export `MASTER_ADDR` as the address of the first host on the fast network:
#
# ```
# simpsons-llm launch -n 16 finetune --out runs/x --hosts node1,node2 -p data runs/data
# sbatch --nodes 2 --ntasks-per-node 8 --wrap "simpsons-llm launch -n 16 finetune --out runs/x -p data runs/data"
# ```
#
# The Argonne Leadership Computing Facility runs its Max 1550 machines with `CCL_PROCESS_LAUNCHER=pmix CCL_ATL_TRANSPORT=mpi CCL_KVS_MODE=mpi FI_MR_CACHE_MONITOR=userfaultfd`. That asks for MPI inside the training process, which a kernel started by papermill cannot reach; there, run `mpirun ... simpsons-llm finetune --run runs/x` instead of `rank`: the same training without notebooks.

# %% [markdown]
# ## 6. What failures mean
#
# `--ccl-debug`, an option of `launch` and `rank`, sets `CCL_LOG_LEVEL=debug`. Cures as reported in the issues that are named:
#
# | symptom | cure | reported in |
# |---|---|---|
# | "pidfd is not supported", or a hang in a container | `--cap-add SYS_PTRACE` (or `seccomp=unconfined`) for the container, `/dev/dri` mounted | oneCCL 217 |
# | ranks with different `ZE_AFFINITY_MASK` hang | unset it; the local rank picks the device | oneCCL 217 |
# | "fi_getinfo" finds 0 providers | `FI_PROVIDER_PATH` to the `prov` folder of Intel MPI, `FI_PROVIDER=tcp` | llm-d 2270 |
# | "could not get local_idx/count" | `CCL_PROCESS_LAUNCHER=none`, `CCL_LOCAL_RANK`, `CCL_LOCAL_SIZE`; `rank` and `launch` set them | accelerate 2340 |
# | torchrun fails where mpirun works | `--launcher intelmpi` | PyTorch 158722 |
# | a hang with stale IPC handles | `CCL_ZE_CACHE_OPEN_IPC_HANDLES=0` | oneCCL 212 |
# | filled-up batches need many times the memory | `packing=flat`: no boolean mask, so no slow attention path | torch-xpu-ops 2390 |
# | "rank 3 of 8 did not meet the others" | was it started? is `MASTER_ADDR` reachable from its host? | this book |
# | "ranks 0 and 1 are both on xpu:0" | let the launcher set the local rank; do not mask devices | this book |
# | all ranks end, and the message names one | its notebook `rank{r}.ipynb` has the traceback | this book |
# | "the kernel died without a word" | memory of the host: `dmesg`; fewer ranks per host, or `sharding=fsdp` | this book |

# %% [markdown]
# ## What was run on what
#
# Several ranks: on CPU, with gloo, by torchrun, MPICH, Intel MPI and Open MPI on one machine, and by torchrun and MPICH between two hosts that were network namespaces of one machine; on two NVIDIA H200 of one machine, with NCCL, by torchrun and MPICH (DDP and FSDP; [the chapter on launching](72_launch.ipynb) shows the results). One rank: on one NVIDIA H100. Both go through the same `torch.accelerator` calls that an XPU takes. `xpu`, `xccl` and tiles: tested against stand-ins that claim to be such devices. IPEX 2.8: on a CPU (`tests/ipex.sh`). SLURM's `srun` and `ccl`: not run at all, written from documentation.
