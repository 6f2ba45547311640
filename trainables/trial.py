"""One trial: train a system on data, sample from it, score the samples.

    corpus -> ... the system's own stages ... -> checkpoint -> samples -> metrics

A trial is a chain of nouns, each a stage that is found when it was made before: a study of samplers trains nothing, and
a metric added next month recomputes metrics only.  `run(trial, context)` is the whole of it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import torch

from trainables.config import ConfigError, config
from trainables.diffusion.sampler import Sampling, sample
from trainables.diffusionbert import DiffusionBert
from trainables.evaluation.consensus import agreed
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.mauve import Mauve
from trainables.evaluation.real import ReadsClasses
from trainables.evaluation.verdict import worst
from trainables.ld4lg import Ld4lg
from trainables.randomness import Rng, seed_of, step_rng
from trainables.scorelm import ScoreLm
from trainables.stages import Context, Stage, Store
from trainables.system import Batch, DrawsMask
from trainables.tencdm import TEncDM
from trainables.text.corpora import Data, Imported, Stories, read_rows
from trainables.text.encoders import imported
from trainables.text.pieces import imported_pieces
from trainables.text.rows import Row
from trainables.training.train import MEASURED, Stopped, Training, arithmetic, load_weights, train

System = TEncDM | Ld4lg | DiffusionBert | ScoreLm       # the closed set of systems: a sixth is one more name here


def check_stepper(system: System, sampling: Sampling) -> None:
    """ConfigError where the system cannot walk by the sampling's stepper."""
    if not isinstance(sampling.stepper, system.steppers):
        raise ConfigError("sampling.stepper", f"{type(system).__name__} walks by "
                          f"{', '.join(each.__name__ for each in system.steppers)}, not by "
                          f"{type(sampling.stepper).__name__}")


def check_guidance(system: System, sampling: Sampling) -> None:
    """ConfigError where guidance has nothing to push away from: a guess without conditions that was never learned.

    `system.dropouts`: the condition -> the path of the share of training that goes without it.
    """
    if not sampling.guidance:
        return
    name, strength = type(system).__name__, sampling.guidance
    reads = [condition for condition, whether in (("source", system.reads_source), ("class", system.reads_class))
             if whether]
    if not reads:
        raise ConfigError("sampling.guidance", "pushes away from the guess without a source or a class, and this "
                                               f"{name} reads neither; it must be 0, not {strength}")
    for condition in reads:
        path = system.dropouts[condition]
        if not reduce(getattr, path.split("."), system):
            raise ConfigError(f"system.{path}", f"must be above 0 (0.1 is usual), not 0.0, for sampling.guidance "
                                                f"{strength}: the guess without a {condition}, from which it pushes "
                                                "away, is learned where that is dropped")


@config
class Trial:
    """Everything that decides a result, the seed included; nothing that does not."""

    system: System
    data: Data
    training: Training
    sampling: Sampling
    evaluation: Evaluation
    seed: int = 0

    def __post_init__(self):
        check_stepper(self.system, self.sampling)

    def checkpoint(self) -> "Trained":
        return Trained(system=self.system.learned(), data=self.data, training=self.training, seed=self.seed)

    def samples(self, split: str = "test") -> "Sampled":
        return Sampled(system=self.system, checkpoint=self.checkpoint(), sampling=self.sampling, split=split)

    def metrics(self) -> "Scored":
        """What is reported."""
        return Scored(samples=self.samples(), evaluation=self.evaluation, split="test")

    def validation(self) -> "Scored":
        """What a search may choose by: other samples, asked for by other sources, against other texts."""
        return Scored(samples=self.samples("valid"), evaluation=self.evaluation, split="valid")

    def method(self) -> dict[str, Any]:
        """All but the data, the seed and the evaluation, by path, in whole parts: what another method's arm changes of
        a base, and --set may change what is in them."""
        return {"system": self.system, "training": self.training, "sampling": self.sampling}

    def curves(self) -> tuple[str, ...]:
        """Names of what training records by step."""
        return (*(f"train/{name}" for name in (*self.system.losses, *MEASURED)), *self._validated())

    def scores(self) -> tuple[str, ...]:
        """Names of what validation() says, where the texts allow it: the evaluation's values, and training's last."""
        metrics = self.evaluation.metrics
        names = (*(name for metric in metrics for name in metric.better), "departure",
                 *(name for metric in metrics if self.system.reads_class and isinstance(metric, ReadsClasses)
                   for name in metric.of_classes))
        return (*(f"valid/{name}" for name in names), *self._validated())

    def _validated(self) -> tuple[str, ...]:
        return tuple(f"valid/{name}" for name in (*self.system.losses, *self.system.diagnoses(self.data)))

    def settled(self, store: Store) -> "Trial":
        """The same trial with every folder or tokenizer that it names replaced by its content, now in the store.

        ConfigError, with the dotted path, for a folder that is no checkpoint, or of another kind.
        """
        return imported_pieces(imported(self, store), store)

    def check(self, context: Context) -> None:
        """Refuse texts that cannot be learned from.  A corpus that must be downloaded first is not waited for.

        ConfigError, with the dotted path.
        """
        for metric in self.evaluation.metrics:
            if isinstance(metric, Mauve):
                metric.check()
        check_guidance(self.system, self.sampling)
        if self.sampling.candidates > 1 and not self.system.reads_source:
            raise ConfigError("sampling.candidates", "the most agreed text is sought among those of one source; "
                                                     f"without sources it must be 1, not {self.sampling.candidates}")
        if self.sampling.count < self.evaluation.references:
            raise ConfigError("sampling.count", "must be at least evaluation.references = "
                                                f"{self.evaluation.references}, not {self.sampling.count}")
        if isinstance(self.system, DiffusionBert):
            self.system.check(self.data, context)
        if not isinstance(self.data, (Stories, Imported)) and not context.store.has(self.data):
            return
        data = context.get(self.data)
        for split in ("train", "valid", "test"):
            rows = read_rows(data, split)
            if self.system.reads_source and not all(row.get("source") for row in rows):
                where, off = ("source", "NoSource") if isinstance(self.system, Ld4lg) else ("source_length", "0")
                raise ConfigError(f"system.{where}", f"the texts of {split} have no sources to read; it must be {off}")
            if self.system.reads_class and not all(row.get("class") for row in rows):
                raise ConfigError("system", f"the texts of {split} have no classes to be conditioned on")
        longest = max(len(row["text"].split()) for row in read_rows(data, "train"))
        if longest < 4:
            raise ConfigError("data", f"the longest text has {longest} words; a text model needs texts of 4 or more")


def run(trial: Trial, context: Context) -> dict[str, float]:
    """The trial's metrics, by name; whatever they need is found or made."""
    return json.loads((context.get(trial.metrics()) / "metrics.json").read_text(encoding="utf-8"))


@config
class Trained:
    """The averaged weights of a trained system, and curve.jsonl.  Unfinished training is kept and continued."""

    system: System
    data: Data
    training: Training
    seed: int

    version: ClassVar[int] = 2               # 2: initial weights by name
    resumable: ClassVar[bool] = True
    together: ClassVar[bool] = True          # several workers may make it

    def needs(self) -> tuple[Stage, ...]:
        return self.system.needs_to_train(self.data)

    def make(self, out: Path, context: Context) -> None:
        for stage in self.needs():                                      # making one would move the generator
            context.get(stage)
        torch.manual_seed(seed_of(self.seed, "initial weights"))        # seeded before the network is built
        system = self.system.build(self.data, context)
        curve = Curve(out / "curve.jsonl") if context.parallel.rank == 0 else None

        def record(step: int, metrics: Mapping[str, float]) -> None:
            context.record(step, metrics)
            if curve is not None:
                curve.add(step, metrics)

        train(system, system.batches("train"), self.training, seed=self.seed, out=out,
              context=replace(context, record=record), validate=system.batches("valid"), parallel=context.parallel)


@config
class Sampled:
    """Texts drawn from a checkpoint: samples.jsonl, {"text", and "source" or "class" where one was asked for}."""

    system: System
    checkpoint: Trained
    sampling: Sampling
    split: str = "test"                      # whose sources and classes are asked for

    version: ClassVar[int] = 2               # 2: guided guesses have one norm, and each text its own dice

    def needs(self) -> tuple[Stage, ...]:
        return (self.checkpoint, *self.system.needs_to_sample(self.checkpoint.data))

    def make(self, out: Path, context: Context) -> None:
        cfg = self.system
        system = cfg.build_to_sample(self.checkpoint.data, context)
        load_weights(system, context.get(self.checkpoint))
        system.to(context.device).eval()
        asked = self.asked(context)
        with open(out / "samples.jsonl", "w", encoding="utf-8") as file:
            for first in range(0, self.sampling.count, self.sampling.batch):
                if context.should_stop():
                    raise Stopped(self.checkpoint.training.steps)       # drawn again, from the checkpoint
                rows = range(first, min(first + self.sampling.batch, self.sampling.count))
                where = [asked[row % len(asked)] for row in rows]
                drawn = [self.draw(system, where, f"{first}.{candidate}" if candidate else first, context)
                         for candidate in range(self.sampling.candidates)]
                for (_, conditions), *texts in zip(where, *drawn, strict=True):
                    row = {"text": agreed(texts, self.sampling.consensus)} | conditions
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def asked(self, context: Context) -> list[tuple[int, Row]]:
        """What texts may be asked for: a row's number in its split and the conditions it stands for, each once."""
        read = [name for name, wanted in
                (("source", self.system.reads_source), ("class", self.system.reads_class)) if wanted]
        if not read:
            return [(0, {})]
        found: dict[tuple[str, ...], tuple[int, Row]] = {}
        for number, row in enumerate(read_rows(context.get(self.checkpoint.data), self.split)):
            conditions = {name: row[name] for name in read}
            found.setdefault(tuple(conditions.values()), (number, conditions))
        return list(found.values())

    def draw(self, system: Any, where: list[tuple[int, Row]], purpose: int | str, context: Context) -> list[str]:
        """A text for each of these conditions; `purpose` tells one draw's noise from another's."""
        batch = None
        if where[0][1]:
            batch = conditions_of(system.batches(self.split).take(torch.tensor([number for number, _ in where])))
            batch = batch.to(context.device)
        rng = step_rng(self.noise(self.checkpoint.seed), purpose, context.device)
        return self.drawn(system, (len(where), self.system.state_length), rng, batch)

    def drawn(self, system: Any, shape: tuple[int, int], rng: Rng, batch: Batch | None = None) -> list[str]:
        """Texts from a state of `shape` [B, L], under the conditions of the batch."""
        masks: Any = system                  # or a type checker would take it for nothing else
        mask = masks.draw_mask(shape[0], rng, batch) if isinstance(masks, DrawsMask) else None
        if mask is not None:
            masked = Batch(ids=torch.zeros(shape, dtype=torch.long, device=mask.device), mask=mask)
            batch = masked if batch is None else replace(masked, source=batch.source, label=batch.label)
        device = rng.generator.device
        numbers = arithmetic(self.checkpoint.training.precision, device)              # what the network has learned in
        with torch.autocast(device.type, numbers, enabled=numbers != torch.float32):
            walked = sample(system, self.sampling, shape, rng, batch)
        return system.decode(*walked, batch, rng)

    def noise(self, seed: int) -> int:
        """The seed of its draws, from a trial's."""
        return seed_of(seed, *(("samples",) if self.split == "test" else ("samples", self.split)))


def conditions_of(batch: Batch) -> Batch:
    """What a sampler may see of test texts: what they are conditioned on, and nothing of themselves."""
    unseen = torch.zeros_like(batch.ids)
    return Batch(ids=unseen, mask=torch.ones_like(batch.mask), source=batch.source, label=batch.label)


@config
class Scored:
    """metrics.json: the samples' scores against real texts of `split`, and what training ended with."""

    samples: Sampled
    evaluation: Evaluation
    split: str

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.samples, *self.evaluation.needs(self.samples.checkpoint.data, (self.split,)))

    def make(self, out: Path, context: Context) -> None:
        data = self.samples.checkpoint.data
        rows = read_lines(context.get(self.samples) / "samples.jsonl")
        scores = self.evaluation.measure([row["text"] for row in rows], self.split, data, context,
                                         [row["source"] for row in rows if "source" in row],
                                         [row["class"] for row in rows if "class" in row])
        ended = read_curve(context.get(self.samples.checkpoint) / "curve.jsonl")
        values = scores.values | {"departure": worst(scores.values)}       # in the eyes of the strictest metric
        metrics = {f"{self.split}/{name}": value for name, value in values.items()}
        (out / "metrics.json").write_text(json.dumps(metrics | {
            name: value for name, value in ended.items() if name.startswith("valid/")}, indent=1), encoding="utf-8")
        (out / "absent.json").write_text(json.dumps(scores.absent, indent=1), encoding="utf-8")


# ---------------------------------------------------------------- curves and lines


class Curve:
    """A checkpoint's own learning curve, so that a later study that finds the checkpoint finds it too."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def read_lines(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_curve(path: Path) -> dict[str, float]:
    """The last value of everything recorded.  Steps that a killed run repeated are later lines, so they win."""
    last: dict[str, float] = {}
    for row in read_lines(path):
        last |= {name: value for name, value in row.items() if name != "step"}
    return last
