"""Our side of the comparison: `train` itself, on a recipe's own system and batches, timed from inside.

`train` asks between steps whether it should stop.  It is asked here: the clock is read after the warm-up and after the
last step that counts, and then the training is left, so that nothing is saved.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import now
from torch.utils.flop_counter import FlopCounterMode

from trainables.config import override
from trainables.randomness import step_rng
from trainables.stages import Context
from trainables.training.average import NoAverage
from trainables.training.compiling import eager
from trainables.training.state import trainable
from trainables.training.train import Training, arithmetic, set_training, train
from trainables.trial import Trial

LEAST = 3          # steps before the clock starts: the first ones fill caches and allocate


class Enough(Exception):
    """Everything that was to be timed has been."""


class Ours:
    """A recipe's system, ready to be trained for a few steps at a time."""

    def __init__(self, recipe: Trial, context: Context, batch: int, precision: str):
        changes: dict[str, Any] = {"precision": precision, "steps": 1_000_000}
        self.training: Training = override(recipe.training, changes | ({"batch": batch} if batch else {}))
        self.recipe, self.context, self.batch = recipe, context, self.training.batch
        for stage in recipe.system.needs_to_train(recipe.data):
            context.get(stage)
        torch.manual_seed(0)
        self.system: Any = recipe.system.build(recipe.data, context)
        self.batches = self.system.batches("train")
        self.parameters = sum(p.numel() for p in trainable(self.system).values())
        self.averaged = 0 if isinstance(self.training.ema, NoAverage) else self.parameters
        rows = self.batches.take(torch.arange(min(256, len(self.batches))))
        self.tokens = float(rows.mask.sum(1).double().mean()) * self.batch

    def run(self, steps: int) -> float:
        """Seconds a step, of so many steps after a few that do not count."""
        device, warm, seen, marks = self.context.device, min(LEAST, steps), 0, []

        def asked() -> bool:
            nonlocal seen
            seen += 1
            if seen == warm or seen == warm + steps:
                marks.append(now(device))
            if seen == warm + steps:
                raise Enough
            return False

        with tempfile.TemporaryDirectory() as out:
            try:
                train(self.system, self.batches, self.training, seed=0, out=Path(out),
                      context=replace(self.context, should_stop=asked))
            except Enough:
                pass
        return (marks[1] - marks[0]) / steps

    def profile(self, steps: int, rows: int) -> str:
        """Where the time of some steps goes, by kernel and operation, and what the host spends on asking for them."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            self.run(steps)
        found = seen.key_averages()
        return found.table(sort_by="self_device_time_total", row_limit=rows, max_name_column_width=90) + found.table(
            sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=60)

    def flops(self) -> float:
        """Of the products in one step, forwards and backwards, self-conditioning included."""
        device = self.context.device
        numbers = arithmetic(self.training.precision, device)
        batch = self.batches.take(torch.arange(self.batch) % len(self.batches)).to(device)
        set_training(self.system.to(device))
        with eager(), FlopCounterMode(display=False) as counter:
            with torch.autocast(device.type, numbers, enabled=numbers != torch.float32):
                loss = self.system.loss(batch, 0.5, step_rng(0, 0, device))["loss"]
            loss.backward()
        self.system.zero_grad()
        return float(counter.get_total_flops())
