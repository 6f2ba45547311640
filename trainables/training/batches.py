"""Which examples a step sees, and how they reach the model.

    epoch 0      epoch 1                every epoch is a permutation made from (seed, epoch)
    7 2 9 4 0 3  5 0 8 ...
    `step 0-'`step 1--' ...             step k takes `batch` places of the endless sequence, from k * batch on

    global batch  r0 r1 r2 r3 r4 r5 r6 r7               dealt like cards over (micro-batch, worker):
    2 workers, 2 micro-batches: r0 r4 | r1 r5 (first micro-batch), r2 r6 | r3 r7 (second)

The place in the data is a function of the step alone, so nothing about it is saved, and any number of workers sees
the same global batches.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from trainables.randomness import seed_of
from trainables.system import Batch

HELD_SHARE = 0.3          # of a GPU's free memory, for examples


class Batches(Protocol):
    """Examples that can be taken by number."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def take(self, indices: Tensor) -> Batch:
        """The examples `indices` [B] int64, in this order, on the CPU."""
        ...


@runtime_checkable
class Movable(Protocol):
    """Examples that a device can hold, every one of them."""

    def size(self) -> int:
        """Bytes of all examples."""
        ...

    def on(self, device: torch.device) -> Batches:
        """The same examples there: `take` gets indices that are there, and what it gives is there."""
        ...


class Order:
    """The endless shuffled sequence of example numbers; every epoch's permutation is made once and kept for a while."""

    def __init__(self, count: int, seed: int):
        if count <= 0:
            raise ValueError("there are no examples to train on")
        self.count, self.seed = count, seed
        self._epochs: dict[int, Tensor] = {}

    def places(self, first: int, last: int) -> Tensor:
        """Example numbers at the places first .. last - 1.   [last - first] int64"""
        epochs = range(first // self.count, (last - 1) // self.count + 1)
        pieces = [self._epoch(e)[max(0, first - e * self.count):last - e * self.count] for e in epochs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = torch.randperm(self.count, generator=generator)
        return self._epochs[epoch]


class Feed:
    """This worker's share of each global batch, on its device: rows part, part + parts, ... with
    part = micro * world + rank and parts = accumulate * world.

    A GPU holds all examples where they fit into a share of its free memory, and gathers by itself.  Otherwise the next
    share is gathered in a thread while this one is computed, and copied from pinned memory.  Either way the device need
    not wait for the host.
    """

    def __init__(self, batches: Batches, *, seed: int, batch: int, accumulate: int, rank: int, world: int,
                 device: torch.device):
        self.batches, self.order = batches, Order(len(batches), seed)
        self.batch, self.accumulate, self.rank, self.world, self.device = batch, accumulate, rank, world, device
        self.held = device.type == "cuda" and isinstance(batches, Movable) and fits(batches.size(), device)
        if self.held:
            self.batches = cast(Movable, batches).on(device)
        self._thread = ThreadPoolExecutor(1, "feed") if device.type == "cuda" and not self.held else None
        self._next: tuple[tuple[int, int], Future[Batch]] | None = None

    def at(self, step: int, micro: int) -> Batch:
        """The share of micro-batch `micro` of step `step`.   batch / (accumulate * world) rows"""
        if self.held:
            return self.batches.take(self._rows(step, micro).pin_memory().to(self.device, non_blocking=True))
        if self._thread is None:
            return self._gather(step, micro).to(self.device)
        ready, self._next = self._next, None
        here = ready[1].result() if ready and ready[0] == (step, micro) else pinned(self._gather(step, micro))
        following = (step, micro + 1) if micro + 1 < self.accumulate else (step + 1, 0)
        self._next = following, self._thread.submit(lambda: pinned(self._gather(*following)))
        return sent(here, self.device)

    def _gather(self, step: int, micro: int) -> Batch:
        return self.batches.take(self._rows(step, micro))

    def _rows(self, step: int, micro: int) -> Tensor:
        rows = self.order.places(step * self.batch, (step + 1) * self.batch)
        return rows[micro * self.world + self.rank::self.accumulate * self.world]


def fits(size: int, device: torch.device) -> bool:
    """Whether a GPU can hold so many bytes of examples: other trials may share it, and most of it is for the model."""
    return size <= HELD_SHARE * torch.cuda.mem_get_info(device)[0]


def pinned(batch: Batch) -> Batch:
    """The same batch in memory that a GPU can fetch by itself."""
    return replace(batch, **{name: value.pin_memory() if isinstance(value, Tensor) else pinned(value)
                             for name, value in _present(batch).items()})


def sent(batch: Batch, device: torch.device) -> Batch:
    """The pinned batch on its way to `device`; the copy is queued, not waited for."""
    return replace(batch, **{
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else sent(value, device)
        for name, value in _present(batch).items()})


def _present(batch: Batch) -> dict[str, "Tensor | Batch"]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, (Tensor, Batch))}
