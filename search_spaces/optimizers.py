"""Ranges around an optimizer's own values, shared by the systems' spaces.

    under("training.optimizer", around(AdamW(lr=1e-2)))       {"training.optimizer.lr": ..., ".weight_decay": ...}
    With(Lion(lr=2e-3), around(Lion(lr=2e-3)))                the same for one option of a choice
"""

from collections.abc import Mapping

from search_spaces.domains import Choice, Domain, Integers, LogUniform, Uniform, With
from trainables.training.optimizers import AdamW, Lion, Optimizer
from trainables.training.train import Training


def around(optimizer: Optimizer) -> dict[str, Domain]:
    """A tenth of the rate to four times of it, and its decay."""
    return {"lr": LogUniform.around(optimizer.lr, 10, 4), "weight_decay": decay(optimizer)}


def decay(optimizer: Optimizer) -> Domain:
    """What acts is lr x decay, so Lion's range lies as much higher as its rates lie lower.  Where nothing decays, the
    range is linear and begins there."""
    low, high = (1e-4, 1e-1) if isinstance(optimizer, AdamW) else (1e-3, 1.0)
    usual = optimizer.weight_decay
    return LogUniform(min(low, usual), max(high, usual)) if usual > 0 else Uniform(0.0, high)


def warmup(training: Training) -> Integers:
    """From next to nothing to a quarter of training, or to twice what the recipe takes where that is more."""
    steps, usual = training.steps, training.schedule.warmup
    low = max(1, min(usual, steps // 100))
    return Integers(low, max(low + 1, min(steps, max(steps // 4, 2 * usual))), log=True)


def either(usual: Optimizer) -> Choice:
    """AdamW or Lion, one of them the recipe's: Lion at a fifth of AdamW's rate (2302.06675: a third to a tenth)."""
    adam = usual if isinstance(usual, AdamW) else AdamW(lr=5 * usual.lr, betas=usual.betas, decays=usual.decays)
    lion = usual if isinstance(usual, Lion) else Lion(lr=usual.lr / 5, decays=usual.decays)
    return Choice(With(adam, around(adam)), With(lion, around(lion)))


def under(path: str, domains: Mapping[str, Domain]) -> dict[str, Domain]:
    return {f"{path}.{name}": domain for name, domain in domains.items()}


def nuisance(training: Training) -> dict[str, Domain]:
    """What every arm has to have at its best before it is compared: rate, decay, warm-up."""
    return {**under("training.optimizer", around(training.optimizer)), "training.schedule.warmup": warmup(training)}
