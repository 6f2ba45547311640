"""What a trainer, a sampler and an evaluator need of a model, and nothing more.

    Trains   loss(batch, progress, rng)                            decoders and autoencoders satisfy it too
    System   prior · denoise · reverse · decode                    a text-diffusion model
    Walk     what the sampler's steps share

Shapes: B sequences, L positions, D features, V words.  Time is a field over positions: t is [B, 1] or [B, L], 0 is
clean text and 1 is pure noise, and a prompt is a place where t = 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trainables.randomness import Rng


@dataclass
class Batch:
    """Texts as the model sees them."""

    ids: Tensor                        # [B, L] int64
    mask: Tensor                       # [B, L] bool, real tokens
    segment: Tensor | None = None      # [B, L] int64, which packed document a token is of
    given: Tensor | None = None        # [B, L] bool, the prompt
    source: "Batch | None" = None      # sequence-to-sequence: what is read
    label: Tensor | None = None        # [B] int64, the class that was asked for
    words: Tensor | None = None        # [B] int64, how many words between blanks the texts have, where somebody counted
    encodings: Tensor | None = None    # [B, L, D] frozen encodings of ids, where a cache holds them

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in held.items() if part is not None})

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Prediction:
    """The best guess of the clean state: every network, whatever it outputs, ends here."""

    x0: Tensor                         # [B, L, D] expected clean state, or [B, L, V] log p(x_0)
    logits: Tensor | None = None       # [B, L, V]


@dataclass
class Walk:
    """One run of the sampler: what a step may look at besides the state."""

    stepper: Any                                       # the kind that the system's process understands
    rng: Rng
    denoise: Callable[[Tensor, Tensor], Prediction]    # (x, t): another guess, for steppers that want a second look
    past: list[tuple[Tensor, Prediction]]              # (t, guess) of the last steps, as many as the stepper remembers
    last: bool = False                                 # whether this is the last step: some steppers then add no noise


class Trains(Protocol):
    """Anything the trainer can train: an nn.Module with a loss."""

    def loss(self, batch: Batch, progress: float, rng: Rng) -> Mapping[str, Tensor]:
        """Scalars by name; "loss" is the one minimised.  progress = step / steps."""
        ...


@runtime_checkable
class Diagnoses(Protocol):
    """A model that has more to say of itself than its held-out loss."""

    def diagnose(self) -> Mapping[str, Tensor]:
        """Scalars by name, asked at each validation, on the averaged weights, in eval mode, without gradients."""
        ...


@runtime_checkable
class Compiles(Protocol):
    """A model with networks that a compiler may fuse: tensors in, tensors out, no chance in them but dropout."""

    def compilable(self) -> Sequence[nn.Module]:
        """Those networks; they are called as they are, never method by method."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A system that knows more of a clean state than its network's guess does: its norm, for one."""

    def settle(self, hat: Prediction) -> Prediction:
        """The guess, guidance done, as steps, hints, second looks and histories are to see it."""
        ...


@runtime_checkable
class DrawsMask(Protocol):
    """A system that decides how long a text will be before it is drawn."""

    def draw_mask(self, rows: int, rng: Rng, batch: Batch | None = None) -> Tensor:
        """[rows, L] bool, the positions that will be text: `batch.mask` while sampling.  batch: the conditions."""
        ...


@runtime_checkable
class TakesPrompts(Protocol):
    """A system whose state is words, so that some can be given."""

    def prompt(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids [L] and which of them are given [L] bool: these texts, with a place to be written between two of them."""
        ...

    def clean(self, ids: Tensor) -> Tensor:
        """The clean state of ids [B, L]."""
        ...


class System(Trains, Protocol):
    """A text-diffusion model."""

    def times(self, grid: Any, steps: int) -> Tensor:
        """[steps + 1] from 1 down: `grid` as this system's process understands it (a grid may follow the schedule)."""
        ...

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        """x_1 for (B, L): where sampling starts."""
        ...

    def denoise(self, x_t: Tensor, t: Tensor, *, previous: Prediction | None, batch: Batch | None = None) -> Prediction:
        """The guess of x_0 from x_t at time t; `previous` is the sampler's last guess, for self-conditioning."""
        ...

    def reverse(self, x_t: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: "Walk") -> Tensor:
        """x_s from x_t, s < t, by walk.stepper."""
        ...

    def decode(self, x: Tensor, hat: Prediction, batch: Batch | None = None, rng: Rng | None = None) -> list[str]:
        """Words from the last state and the last guess; by `rng`, where they are drawn."""
        ...
