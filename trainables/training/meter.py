"""What training measures between two records, without making a GPU wait for it.

    meter.add({"loss": ..., "accuracy": ...})     once per micro-batch; the tensors are only kept
    meter.means(step, batch)                      at a record: one look at the device, means over steps and workers

A number that is not finite ends the training.  To look for one is to wait for the device, so on a GPU that is done
when something is recorded or saved, which still finds the step where it began; on a CPU it is done at every step.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainables.training.parallel import Parallel


class Diverged(Exception):
    """The loss or the gradient is no longer a finite number: `step` (1 is the first), `loss`, `grad_norm`."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        super().__init__(step, loss, grad_norm)      # the arguments, so that the exception travels between processes
        self.step, self.loss, self.grad_norm = step, loss, grad_norm

    def __str__(self) -> str:
        return f"training diverged at step {self.step}: loss {self.loss:g}, gradient norm {self.grad_norm:g}"


class Meter:
    """Values by name since the last record: "grad_norm" once a step, everything else `accumulate` times.

    "tokens", a worker's real tokens in a micro-batch, become a speed.
    """

    def __init__(self, parallel: Parallel, accumulate: int, device: torch.device):
        self.parallel, self.accumulate, self.device = parallel, accumulate, device
        self._forget()

    def _forget(self) -> None:
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.checked = 0                             # steps that are known to be finite
        self.began = time.perf_counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Keep these scalars."""
        for name, value in values.items():
            self.values[name].append(value.detach().float())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.began += time.perf_counter() - start

    def means(self, step: int, batch: int) -> dict[str, float]:
        """Means since the last record, over workers too, and the speed; then everything starts afresh.   Diverged"""
        self.check(step)
        names, steps = sorted(self.values), len(self.values["grad_norm"])
        means = torch.stack([torch.stack(self.values[name]).double().mean() for name in names]).cpu()
        speed = batch * steps / (time.perf_counter() - self.began)
        numbers = self.parallel.mean(torch.cat([means, torch.tensor([speed], dtype=torch.float64)])).tolist()
        result = dict(zip([*names, "examples_per_second"], numbers, strict=True))
        if "tokens" in result:
            step_tokens = result.pop("tokens") * self.accumulate * self.parallel.world
            result["tokens_per_second"] = step_tokens * result["examples_per_second"] / batch
        if not math.isfinite(result["loss"]):
            raise Diverged(step, result["loss"], result["grad_norm"])
        self._forget()
        return result

    def check(self, step: int) -> None:
        """Raise Diverged if one of the steps up to `step` was not finite.

        With several workers only the gradient norm is looked at, which is the same on all of them, so that all
        raise together; a worker's own loss is seen by the others at the next record.
        """
        norms = _numbers(self.values["grad_norm"][self.checked:])
        losses = _numbers(self.values["loss"][self.checked * self.accumulate:])
        for i, norm in enumerate(norms):
            loss = sum(losses[i * self.accumulate:(i + 1) * self.accumulate]) / self.accumulate
            if not math.isfinite(norm) or self.parallel.world == 1 and not math.isfinite(loss):
                loss = float(self.parallel.mean(torch.tensor([loss], dtype=torch.float64)))
                raise Diverged(step - (len(norms) - 1 - i), loss, norm)
        self.checked += len(norms)

    def notes(self) -> dict[str, Any]:
        """Everything as plain JSON, for a state file."""
        return {"seconds": time.perf_counter() - self.began,
                "values": {name: _numbers(values) for name, values in self.values.items()}}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Go on from `notes`."""
        self._forget()
        self.began -= notes["seconds"]
        for name, values in notes["values"].items():
            self.values[name] = list(torch.tensor(values, device=self.device))


def _numbers(values: list[Tensor]) -> list[float]:
    """One wait for the device, not one for each."""
    return torch.stack(values).tolist() if len(values) > 1 else [float(value) for value in values]
