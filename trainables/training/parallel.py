"""Several workers on one model: what the training loop knows of them, and all it knows.

    ALONE                      one worker; everything here is the identity
    Parallel.joined(device)    this process's place in the torch.distributed group that somebody else has initialised

Who starts the processes (Ray Train, torchrun, a test) is not our business.  Systems know nothing of this: they are
wrapped, and their gradients come out averaged over the workers.

DDP settings, and why: unused parameters are looked for at every step, because which part of a network a step uses may
depend on chance (a self-conditioning input, a null condition), and differently on each worker; so static_graph is
out.  The pass without gradient that self-conditioning makes leaves no trace in the graph and needs no care.  Buffers
are constants here and are sent once.  Where a
model does use everything, torch remarks once that the search was in vain.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Parallel:
    """A worker's place among `world` workers; `rank` 0 is the one that writes files."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None       # a group over CPU tensors: asking it something does not stall a GPU

    @classmethod
    def joined(cls, device: torch.device | str = "cpu") -> "Parallel":
        """The place in the initialised default group; every worker calls this, once.   RuntimeError: no group"""
        if not dist.is_initialized():
            raise RuntimeError("torch.distributed has no process group: initialise it first, or use ALONE")
        control = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(device), control)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with worker 0's weights and buffers, and gradients that are means over the workers."""
        return module if self.world == 1 else in_step(module)

    def holding(self, wrapped: nn.Module, more: bool) -> contextlib.AbstractContextManager[None]:
        """While `more` micro-batches follow, gradients stay here instead of being exchanged each time."""
        if more and isinstance(wrapped, DistributedDataParallel):
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the workers of a CPU tensor of floats, any shape."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self.control)
        return total / self.world

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the workers of a CPU tensor of floats, any shape."""
        return self.mean(values) * self.world

    def any(self, flag: bool) -> bool:
        """Whether some worker says so; all workers get the same answer."""
        if self.world == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, group=self.control)
        return bool(votes)

    def share(self, data: bytes) -> bytes:
        """Worker 0's bytes, on every worker; the others' argument is ignored."""
        if self.world == 1:
            return data
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0, group=self.control)
        if not int(length):
            return b""
        mine = bytearray(data) if self.rank == 0 else bytearray(int(length))
        dist.broadcast(torch.frombuffer(mine, dtype=torch.uint8), 0, group=self.control)
        return bytes(mine)

    def barrier(self) -> None:
        """Go on when all workers have come here."""
        if self.world > 1:
            dist.barrier(group=self.control)


def in_step(module: nn.Module) -> DistributedDataParallel:
    """The module as one of its group's replicas."""
    # No device_ids: batches are placed by the loop, and DDP must not scatter them again.
    return DistributedDataParallel(module, forward_sync_buffers=False, find_unused_parameters=True,
                                   gradient_as_bucket_view=True)


ALONE = Parallel()
