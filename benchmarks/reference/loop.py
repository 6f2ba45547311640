"""What the released scripts do around the loss, and a clock for the parts of a step.

    loss --backward--> gradient norm, summed in Python --> clip (a second norm) --> AdamW, one parameter at a time
         --> averages, one parameter at a time --> loss.item() for the progress bar

Everything of a model is averaged, frozen parts too where the script registers them.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Clock:
    """Seconds by part; of the CPU's time, or of the wall's with a GPU, which is waited for where a part ends."""

    def __init__(self, device: torch.device):
        self.device, self.on = device, False
        self.parts: dict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside, if the clock is on."""
        began = self.now() if self.on else 0.0
        yield
        if self.on:
            self.parts[name].append(self.now() - began)


class Loop:
    """A script's optimizer, averages and norms.   averages: how many means of the weights it keeps"""

    def __init__(self, trained: nn.Module, averaged: nn.Module, clock: Clock, *, lr: float = 2e-4, averages: int = 1,
                 norms_one_by_one: bool = False, numbers: torch.dtype = torch.float32):
        self.clock, self.norms_one_by_one, self.numbers = clock, norms_one_by_one, numbers
        self.device = next(trained.parameters()).device
        self.weights = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, foreach=False, fused=False)
        self.averaged = list(averaged.parameters())
        self.means = [[p.detach().clone() for p in self.averaged] for _ in range(averages)]

    def step(self, loss_of: Callable[[], Tensor]) -> float:
        """One training step; the loss."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.numbers, enabled=self.numbers != torch.float32):
            loss = loss_of()
        with self.clock.part("backward"):
            loss.backward()
        with self.clock.part("norms"):
            gradients = [p.grad for p in self.weights if p.grad is not None]
            if self.norms_one_by_one:
                sum(float(gradient.norm().item()) ** 2 for gradient in gradients)
            else:
                torch.sqrt(sum((gradient.square().sum() for gradient in gradients), torch.zeros((), device=self.device)
                               )).item()
            nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=False)
        with self.clock.part("optimizer"):
            self.optimizer.step()
        with self.clock.part("average"), torch.no_grad():
            for means in self.means:
                for mean, weight in zip(means, self.averaged, strict=True):
                    mean.sub_((1 - 0.9999) * (mean - weight))
        with self.clock.part("rest"):
            return loss.item()
