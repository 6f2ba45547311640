"""A generator: a trained system that writes.  No study, no store and no corpus is behind it.

    Generator.load(folder).write(100, seed=0) --> {"text", "source", "class"}, ...          which folders: shelf.py

    noise of (seed, batch) --sampler--> last state --decode--> texts            as the cell drew its samples (trial.py)

It draws as the cell did: with its seed, as many texts as the cell drew are the cell's own, and fewer are the first of
them, for noise is drawn for the whole batch however few of its rows are asked for.  (A batch of another size may round
sums otherwise: of a text that hangs on the last digit, this is not promised.)
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from trainables.config import ConfigError, assign, near
from trainables.diffusion.sampler import sample
from trainables.evaluation.consensus import agreed
from trainables.randomness import Rng, step_rng
from trainables.shelf import Shelf, opened
from trainables.stages import Context
from trainables.system import Batch, TakesPrompts
from trainables.text.rows import Row
from trainables.training.train import arithmetic, load_weights
from trainables.trial import Sampled, check_guidance, check_stepper

REDRAWN = 20             # lengths, where a prompt asks for longer texts


def said(prompt: str) -> list[str]:
    """What a prompt gives: the texts between its blanks to be filled."""
    return [part.strip() for part in re.split(r"(?<!\S)_(?!\S)", prompt)]


class Generator:
    """A system with its weights, and how it is sampled."""

    def __init__(self, sampled: Sampled, shelf: Shelf, device: torch.device):
        self.sampled, self.device = sampled, device
        self.context = Context(cast(Any, shelf), device=device)
        self.system: Any = sampled.system.build_to_sample(sampled.checkpoint.data, self.context)
        load_weights(self.system, self.context.get(sampled.checkpoint))
        self.system.to(device).eval()

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", assignments: Sequence[str] = ()) -> "Generator":
        """From a released folder, a samples folder of a store, or a checkpoint's that is sampled in one way.

        assignments: path=value texts, of the sampling (sampling.steps=20).   ConfigError
        """
        folder = Path(folder)
        sampled, shelf = opened(folder)
        for text in assignments:
            if not text.strip().startswith("sampling."):
                raise ConfigError("--set", f"{text}: what a generator may change begins with sampling.")
        sampled = assign(sampled, assignments)
        check_stepper(sampled.system, sampled.sampling)
        check_guidance(sampled.system, sampled.sampling)
        return cls(sampled, shelf, torch.device(device))

    @property
    def seed(self) -> int:
        """The cell's."""
        return self.sampled.checkpoint.seed

    @property
    def classes(self) -> list[str]:
        """What may be asked for, where a class is read."""
        return self.system.space.classes if self.sampled.system.reads_class else []

    def check(self, count: int, sources: Sequence[str] = (), label: str | None = None) -> None:
        """ConfigError, with the flag, for what this system cannot be asked."""
        system, name = self.sampled.system, type(self.sampled.system).__name__
        if count < 1:
            raise ConfigError("-n", f"at least 1 text, not {count}")
        if system.reads_source != bool(sources):
            raise ConfigError("--source", f"this {name} writes from sources; name a file of them" if system.reads_source
                              else f"this {name} reads no sources")
        if system.reads_class != (label is not None):
            raise ConfigError("--class", f"this {name} writes texts of a class; name one of {', '.join(self.classes)}"
                              if system.reads_class else f"this {name} knows no classes")
        if label is not None and label not in self.classes:
            raise ConfigError("--class", f"{label!r} is none of its classes{near(label, self.classes)}")

    def check_prompt(self, prompt: str) -> None:
        """ConfigError where this system cannot be given words, or has no room for so many."""
        if not isinstance(self.system, TakesPrompts):
            raise ConfigError("--prompt", f"this {type(self.sampled.system).__name__} diffuses what an encoder makes "
                                          "of a whole text, in which no place is a word, so it cannot be given words")
        if not any(said(prompt)):
            raise ConfigError("--prompt", f"has no word to be given: {prompt!r}")
        self.system.prompt(said(prompt))

    def write(self, count: int, seed: int | None = None, sources: Sequence[str] = (), label: str | None = None,
              prompt: str = "") -> Iterator[Row]:
        """`count` texts, each {"text", and "source" and "class" where they are read}; sources in turn, over and over.

        seed: None takes the cell's; prompt: what the text begins with, each _ in it a place to be written.
        ConfigError: see `check` and `check_prompt`
        """
        self.check(count, sources, label)
        if prompt:
            self.check_prompt(prompt)
        sampling, seed = self.sampled.sampling, self.seed if seed is None else seed
        first = 0
        while first < count:
            whole = sampling.batch if first >= sampling.count else min(sampling.batch, sampling.count - first)
            rows = min(whole, count - first)
            asked = [sources[(first + row) % len(sources)] for row in range(rows)] if sources else []
            texts = [self.draw(rows, whole, f"{first}.{candidate}" if candidate else first, seed, asked, label, prompt)
                     for candidate in range(sampling.candidates)]
            for row, several in enumerate(zip(*texts, strict=True)):
                conditions = ({"source": asked[row]} if asked else {}) | ({} if label is None else {"class": label})
                yield {"text": agreed(several, sampling.consensus)} | conditions
            first += rows

    def draw(self, rows: int, whole: int, purpose: int | str, seed: int, sources: Sequence[str],
             label: str | None, prompt: str = "") -> list[str]:
        """The first `rows` texts of a batch of `whole`."""
        shape = (rows, self.sampled.system.state_length)
        rng = step_rng(self.sampled.noise(seed), purpose, self.device, whole=whole)
        batch = None
        if sources or label is not None:
            source, labels = self.conditions(sources, label)
            batch = Batch(ids=torch.zeros(shape, dtype=torch.long), mask=torch.ones(shape, dtype=torch.bool),
                          source=source, label=None if labels is None else labels.expand(rows)).to(self.device)
        if prompt:
            return self.prompted(shape, rng, batch, prompt)
        return self.sampled.drawn(self.system, shape, rng, batch)

    def prompted(self, shape: tuple[int, int], rng: Rng, batch: Batch | None, prompt: str) -> list[str]:
        """Texts around given words.  A drawn length that has no room for them is drawn again, and in the end made."""
        system: Any = self.system
        ids, given = (part.to(self.device).expand(shape) for part in system.prompt(said(prompt)))
        needed = int(given[0].nonzero().max()) + 2                               # and the end
        mask = system.draw_mask(shape[0], rng, batch)
        for _ in range(REDRAWN):
            again = system.draw_mask(shape[0], rng, batch)                       # as often for any number of rows
            mask = torch.where(mask.sum(1, keepdim=True) < needed, again, mask)
        mask = mask | (torch.arange(shape[1], device=self.device) < needed)
        batch = Batch(ids=ids, mask=mask, given=given, source=None if batch is None else batch.source)
        numbers = arithmetic(self.sampled.checkpoint.training.precision, self.device)
        with torch.autocast(self.device.type, numbers, enabled=numbers != torch.float32):
            walked = sample(system, self.sampled.sampling, shape, rng, batch, system.clean(ids))
        return system.decode(*walked, batch)

    def conditions(self, sources: Sequence[str], label: str | None) -> tuple[Batch | None, torch.Tensor | None]:
        """Sources as the system reads them, and the class's number [1]."""
        read = self.system.read_sources(list(sources), self.context) if sources else None
        return read, None if label is None else torch.tensor([self.classes.index(label)])
