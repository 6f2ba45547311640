"""A trial that takes milliseconds and has everything a real one has: data, a shared stage, training that resumes,
samples, metrics; and levers to slow it down, to make it fail, and to make it diverge."""

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from trainables.config import ConfigError, config
from trainables.randomness import seed_of
from trainables.stages import Context, Stage
from trainables.text.corpora import Imported, Stories, read_texts
from trainables.text.rows import write_rows
from trainables.training.train import Diverged, Stopped


@config
class Words:
    """The built-in corpus of this trial."""

    size: int = 40
    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        rows = [{"text": f"story number {i}"} for i in range(self.size)]
        write_rows(out, {split: rows for split in ("train", "judge", "valid", "test")})


@config
class Fragile:
    """A shared stage to which something happens, as often as it says.  `diary` lists the processes that were at it."""

    diary: str
    harm: Literal["kill", "notice", "wait"] = "kill"
    times: int = 0

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        with open(self.diary, "a") as diary:
            diary.write(f"{os.getpid()}\n")
        attempt = len(Path(self.diary).read_text().split())
        if attempt <= self.times:
            if self.harm == "wait":
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGTERM if self.harm == "notice" else signal.SIGKILL)
        if context.should_stop():
            raise Stopped(attempt)
        (out / "made.json").write_text("{}")


Data = Words | Imported | Stories


@config
class Table:
    """A shared stage: every seed of an arm asks for it."""

    data: Data
    kind: str
    broken: bool = False

    version: ClassVar[int] = 1
    curve: ClassVar[str] = "table"

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def make(self, out: Path, context: Context) -> None:
        if self.broken:
            raise RuntimeError(f"no table of kind {self.kind!r}")
        texts = read_texts(context.get(self.data), "train")
        for step in (1, 2):
            context.record(step, {"train/loss": 1.0 / step})
        (out / "table.json").write_text(json.dumps({"texts": len(texts)}))


@config
class Linear:
    gain: float = 1.0

    def __post_init__(self):
        if self.gain <= 0:
            raise ValueError(f"gain must be positive, not {self.gain}")


@config
class Square:
    gain: float = 2.0


@config
class System:
    kind: Literal["plain", "fancy", "odd"] = "plain"
    shape: Linear | Square = Linear()
    broken_table: bool = False


@config
class Training:
    steps: int = 10
    pause: float = 0.0                  # seconds a step takes
    fail_at: int = 0                    # 0: never
    diverge_at: int = 0
    die_at: int = 0                     # the process kills itself here, once
    gate: str = ""                      # the second step waits until this file is there, or it is told to stop


@config
class Trained:
    system: System
    data: Data
    training: Training
    seed: int

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    together: ClassVar[bool] = True

    def table(self) -> Table:
        return Table(data=self.data, kind=self.system.kind, broken=self.system.broken_table)

    def needs(self) -> tuple[Stage, ...]:
        return (self.table(),)

    def make(self, out: Path, context: Context) -> None:
        context.get(self.table())
        state = out / "state.json"
        step, total = json.loads(state.read_text()) if state.exists() else (0, 0.0)
        while step < self.training.steps:
            step += 1
            if self.training.die_at == step and not (out / "died").exists():
                (out / "died").touch()
                os.kill(os.getpid(), 9)
            if self.training.fail_at == step:
                raise RuntimeError(f"it broke at step {step}")
            if self.training.diverge_at == step:
                raise Diverged(step, math.inf, math.nan)
            time.sleep(self.training.pause)
            gate = Path(self.training.gate)
            while step == 2 and self.training.gate and not gate.exists() and not context.should_stop():
                time.sleep(0.1)
            mine = seed_of(self.seed, self.system.kind, step) % 1000 / 1000
            total += float(context.parallel.mean(torch.tensor([mine * self.system.shape.gain])))
            if context.parallel.rank == 0:
                beside = out / "state.tmp"
                if step % 3 == 0:                          # a checkpoint now and then: a resume repeats steps
                    beside.write_text(json.dumps([step, total]))
                    os.replace(beside, state)
                context.record(step, {"train/loss": total / step, "valid/loss": self.system.shape.gain / step})
            if context.parallel.any(context.should_stop()) and step < self.training.steps:
                if context.parallel.rank == 0:
                    state.write_text(json.dumps([step, total]))
                raise Stopped(step)
        if context.parallel.rank == 0:
            (out / "weights.json").write_text(json.dumps({"total": total, "workers": context.parallel.world,
                                                          "threads": torch.get_num_threads()}))


@config
class Sampled:
    checkpoint: Trained
    count: int = 8
    split: str = "test"
    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.checkpoint,)

    def make(self, out: Path, context: Context) -> None:
        total = json.loads((context.get(self.checkpoint) / "weights.json").read_text())["total"]
        kind = self.checkpoint.system.kind
        lines = [json.dumps({"text": f"{kind} [text] {i} {total:.3f}"}) for i in range(self.count)]
        (out / "samples.jsonl").write_text("\n".join(lines) + "\n")


@config
class Scored:
    samples: Sampled
    split: str = "test"
    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.samples, self.samples.checkpoint)

    def make(self, out: Path, context: Context) -> None:
        context.get(self.samples)
        weights = json.loads((context.get(self.samples.checkpoint) / "weights.json").read_text())
        trained = self.samples.checkpoint
        (out / "metrics.json").write_text(json.dumps({
            f"{self.split}/error": weights["total"], f"{self.split}/quality": 10 - weights["total"],
            "valid/loss": trained.system.shape.gain / trained.training.steps,       # what training ended with
            "workers": weights["workers"], "threads": weights["threads"]}))


@config
class Trial:
    """`check` is asked before anything starts."""

    system: System = System()
    data: Data = Words()
    training: Training = Training()
    samples_drawn: int = 8
    seed: int = 0

    def samples(self, split: str = "test") -> Sampled:
        trained = Trained(system=self.system, data=self.data, training=self.training, seed=self.seed)
        return Sampled(checkpoint=trained, count=self.samples_drawn, split=split)

    def check(self, context: Context) -> None:
        if self.training.steps > 1000:
            raise ConfigError("training.steps", "a fake trial has no such patience")

    def metrics(self) -> Scored:
        return Scored(samples=self.samples())

    def validation(self) -> Scored:
        return Scored(samples=self.samples("valid"), split="valid")


def recipe(data: Data = Words(), **changes: Any) -> Trial:
    """What a scale of a study takes."""
    return Trial(data=data, **changes)
