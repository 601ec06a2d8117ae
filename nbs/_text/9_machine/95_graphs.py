# %%
#| default_exp machine.graphs

# %% [markdown]
# # Recorded work
#
# > A thousand small kernels with one launch: a function that is recorded once as a graph of the device, and replayed.
#
# An accelerator is told what to do kernel by kernel, and each telling takes some microseconds of the processor. A step of a small model is thousands of kernels that are done sooner than the next can be told: the device waits. But a step is always the same list. Devices can *record* such a list, with the addresses of its tensors, and run it again with one call. What changes from step to step, the batch, is copied into the recorded tensors first.

# %%
#| export
import gc
from collections.abc import Callable
from typing import Any

from simpsons_llm.machine.job import require


# %%
#| export
def graph_class(
    device,  # a torch.device
):  # the device's class for recorded graphs; None if it has none
    "Asked for, not assumed: CUDA has graphs, XPU has them in newer versions of PyTorch, a CPU has none."
    import torch

    module: Any = torch.get_device_module(device) if device.type != "cpu" else None
    return next((c for n in ("CUDAGraph", "XPUGraph") if (c := getattr(module, n, None))), None)


class Recorded:
    "A function of fixed tensors as a graph: called, it does again what it did when it was recorded."

    def __init__(
        self,
        work: Callable[[], Any],  # reads and writes tensors that stay where they are; gives tensors, or a tuple of them
        device,  # a torch.device that has graphs
        warm: int = 3,  # calls before it is recorded: whatever is made once must be made by then
        beside: "Recorded | None" = None,  # shares its memory: what one gave is gone when the other was replayed
    ):
        import torch

        make, module = graph_class(device), torch.get_device_module(device)
        require(make, f"{device} records no graphs; use what the graph was to replace")
        stream, kept, collects = module.Stream(), torch.is_autocast_cache_enabled(), gc.isenabled()
        torch.set_autocast_cache_enabled(False)  # what autocast keeps between calls is gone when it ends
        gc.disable()  # a graph that is let go while another is recorded spoils it
        try:
            stream.wait_stream(module.current_stream())
            with module.stream(stream):
                for _ in range(warm):
                    work()
            module.current_stream().wait_stream(stream)
            self.graph = make()
            with module.graph(self.graph, **({"pool": beside.graph.pool()} if beside else {})):
                self.out = work()
        finally:
            torch.set_autocast_cache_enabled(kept)
            if collects:
                gc.enable()

    def __call__(self):
        "Replay; the result is the tensors of the recording, with new numbers in them."
        self.graph.replay()
        return self.out


# %% [markdown]
# A CPU has no graphs, and says so:

# %% tags=["check"]
import torch

assert graph_class(torch.device("cpu")) is None
try:
    Recorded(lambda: None, torch.device("cpu"))
    raise AssertionError
except ValueError as e:
    print(e)

# %% [markdown]
# Where there is one, a replay gives what the function gives. What a recording needs from outside must hold while it is made: Python's garbage collector waits, since a graph of an earlier answer that is let go in the middle ends the recording (on an H200 one of dozens was lost so).

# %% tags=["check"]
if torch.accelerator.is_available() and graph_class(torch.accelerator.current_accelerator()):
    where = torch.accelerator.current_accelerator()
    x = torch.zeros(4, device=where)
    replay = Recorded(lambda: (x * 2 + 1).sum(), where)
    x.fill_(3)
    assert replay().item() == 28
