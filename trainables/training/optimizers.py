"""Optimizers are configs with one verb, `build(parameters)`.

    AdamW(lr=2e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, decays="all")      TEncDM
    Lion(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1)                                arXiv 2302.06675

`decays` says which parameters weight decay shrinks: "matrices" spares biases, gains and other vectors (ndim < 2) as
LD4LG does, "all" spares nothing as TEncDM does.

All optimizer state is tensors by parameter, so that state.py can write it without pickle.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainables.config import config


@config
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101), in one fused kernel on CPU and GPU."""

    lr: float = 2e-4                                 # at the peak of the schedule
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decays: Literal["matrices", "all"] = "matrices"

    def __post_init__(self):
        _check(self.lr, self.betas, self.weight_decay)
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, not {self.eps}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters, which must lie on their device already."""
        groups = decay_groups(parameters, self.weight_decay, self.decays)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@config
class Lion:
    """The sign of an interpolated momentum (arXiv 2302.06675): half of Adam's memory, about a third of its lr."""

    lr: float = 1e-4                                 # at the peak of the schedule
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    decays: Literal["matrices", "all"] = "matrices"

    def __post_init__(self):
        _check(self.lr, self.betas, self.weight_decay)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        return _Lion(decay_groups(parameters, self.weight_decay, self.decays), self.lr, self.betas)


Optimizer = AdamW | Lion


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float, decays: str) -> list[dict[str, Any]]:
    """Parameter groups for torch: those that decay, and those that do not; an empty group is left out."""
    shrunk, spared = [], []
    for parameter in parameters:
        (shrunk if decays == "all" or parameter.ndim >= 2 else spared).append(parameter)
    groups = [{"params": shrunk, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class _Lion(torch.optim.Optimizer):
    """p <- p (1 - lr wd);   p <- p - lr sign(b1 m + (1 - b1) g);   m <- b2 m + (1 - b2) g;   m starts at 0."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            # All at once saves launches on a GPU; one by one stays in the cache of a CPU, three times as fast.
            for together in [[p] for p in moved] if all(p.device.type == "cpu" for p in moved) else [moved]:
                self._move(together, group["lr"], group["betas"], group["weight_decay"])
        return loss

    def _move(self, parameters: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self._momentum(p) for p in parameters]
        if weight_decay:
            torch._foreach_mul_(parameters, 1.0 - lr * weight_decay)
        direction = torch._foreach_lerp(momenta, gradients, 1.0 - betas[0])
        torch._foreach_sign_(direction)
        torch._foreach_add_(parameters, direction, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1.0 - betas[1])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def _check(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    if lr <= 0:
        raise ValueError(f"lr must be positive, not {lr}")
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas must lie in [0, 1), not {betas}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be 0 or more, not {weight_decay}")
