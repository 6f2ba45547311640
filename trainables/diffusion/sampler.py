"""The sampler: one loop for every system, stepper and process.

    x = prior                                                  1 = t_0 > t_1 > ... > t_N
    for t, s:   hat = denoise(x, t, previous hat)              self-conditioning: the guess before is an input
                x   = reverse(x, hat, t, s)                    a step of the chosen stepper
    (x, hat) --system.decode--> texts

A prompt (`batch.given`, with its clean state in `clean`) is a place where time is 0: it is put back into x before every
look, the network is told t = 0 there, and no stepper moves it.  Guidance looks twice, with and without what the text
hangs on (`batch.source`, `batch.label`), and overshoots: x0 + w (x0 - x0_without); w = 0 is off and costs nothing.
A system that knows what norm a state has puts it right then, once (`Settles`): steps, hints, second looks and the past
see one guess.

The sampler knows systems, never processes; the grid of times, which may depend on the schedule, comes from
`system.times(grid, steps)`.
"""

import dataclasses
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.steppers import EulerMaruyama, Grid, LinearGrid, Stepper
from trainables.diffusion.times import clean_where
from trainables.diffusion.unmasking import Ancestral
from trainables.randomness import Rng
from trainables.system import Batch, Prediction, Settles, System, Walk


@config
class Sampling:
    """How many texts, and how they are drawn: `count` in batches of `batch`, each by `steps` steps.

    `candidates` texts are drawn for each source, and the one most like the others is kept; `consensus` says what is
    alike (evaluation/consensus.py).
    """

    stepper: Stepper | Ancestral = EulerMaruyama()
    grid: Grid = LinearGrid()
    steps: int = 50
    count: int = 1000
    batch: int = 250
    guidance: float = 0.0
    candidates: int = 1
    consensus: Literal["bleu", "rouge2"] = "bleu"

    def __post_init__(self):
        for name in ("steps", "count", "batch", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@torch.no_grad()
def sample(system: System, sampling: Sampling, shape: tuple[int, int], rng: Rng, batch: Batch | None = None,
           clean: Tensor | None = None) -> tuple[Tensor, Prediction]:
    """The last state and the last guess for shape (B, L).

    batch: what is read (`source`) and what is given (`given` [B, L], its clean state in `clean` [B, L, D], or ids
    [B, L] where the state is words).  ValueError for a prompt without its clean state, or guidance without a condition.
    """
    given = None if batch is None else batch.given
    if (given is None) != (clean is None):
        raise ValueError("a prompt needs both batch.given and clean")
    if sampling.guidance and (batch is None or batch.source is None and batch.label is None):
        raise ValueError(f"guidance {sampling.guidance} needs a batch with a source or a label")
    times = system.times(sampling.grid, sampling.steps).float().tolist()
    x = system.prior(shape, rng)
    hat: Prediction | None = None
    remembers = sampling.stepper.remembers

    def look(x: Tensor, t: Tensor) -> Prediction:
        guess = guided(system, x, t, hat, batch, sampling.guidance)
        return system.settle(guess) if isinstance(system, Settles) else guess

    walk = Walk(stepper=sampling.stepper, rng=rng, denoise=look, past=[])
    for now, then in pairwise(times):
        t, s = (clean_where(given, torch.full((shape[0], 1), time, device=x.device)) for time in (now, then))
        x = restore(x, clean, given)
        walk.last = then == times[-1]
        hat = look(x, t)
        x = system.reverse(x, hat, t, s, walk)
        if remembers:                                          # each is as large as the state, or as all its words
            walk.past = [*walk.past, (t, Prediction(hat.x0))][-remembers:]
    assert hat is not None
    return restore(x, clean, given), hat


def restore(x: Tensor, clean: Tensor | None, given: Tensor | None) -> Tensor:
    """x with the prompt put back.   x and clean [B, L, D] or [B, L], given [B, L]"""
    if clean is None or given is None:
        return x
    return torch.where(given if x.dim() == 2 else given[..., None], clean.to(x.dtype), x)


def guided(system: System, x: Tensor, t: Tensor, previous: Prediction | None, batch: Batch | None,
           guidance: float) -> Prediction:
    """The guess, moved away from the guess without a condition by `guidance` times their difference."""
    hat = system.denoise(x, t, previous=previous, batch=batch)
    if not guidance or batch is None:
        return hat
    without = system.denoise(x, t, previous=previous, batch=dataclasses.replace(batch, source=None, label=None))
    logits = hat.logits
    if logits is not None and without.logits is not None:
        logits = logits + guidance * (logits - without.logits)
    return Prediction(hat.x0 + guidance * (hat.x0 - without.x0), logits)
