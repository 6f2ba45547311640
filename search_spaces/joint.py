"""The mission's joint space, over TEncDM: encoder, schedule and its tangent coefficient, self-conditioning, annealing
and its power, optimizer and what belongs to it.

    system.encoder               BERT, RoBERTa, T5, BART, embeddings
    system.process.schedule      tan-d with d, cosine, sqrt
    system.self_conditioning     share of a batch that sees its own first guess
    system.times.range           all noise from the first step, or mild noise first: u^power
    training.optimizer           AdamW or Lion, each with ranges of its own

Losses cannot be compared across most of it: select on validation texts, and prune on nothing, or on a metric that has
the same meaning everywhere, as the built-in corpus' valid/context_gain has (evaluation/context_gain.py).
"""

from search_spaces import optimizers, tencdm
from search_spaces.domains import Choice, LogUniform, Space, Uniform, With
from search_spaces.tencdm import LOSS_DEPENDS_ON as LOSS_DEPENDS_ON
from trainables.diffusion.ranges import FullRange, PolynomialRange
from trainables.text.encoders import T5, Bart, Bert, Embeddings, Roberta, Small, contextual
from trainables.trial import Trial


def space(trial: Trial) -> Space:
    return Space({
        "system.encoder": encoders(trial),
        "system.process.schedule": tencdm.schedules(),
        "system.self_conditioning": Uniform(0.0, 1.0),
        "system.times.range": Choice(FullRange(), With(opening(trial), {"power": LogUniform(0.5, 4.0)})),
        "training.optimizer": optimizers.either(trial.training.optimizer),
        "training.schedule.warmup": optimizers.warmup(trial.training),
    })


def opening(trial: Trial) -> PolynomialRange:
    """As published, where that opens well above the lowest time, else at twice the lowest."""
    return PolynomialRange(start=max(PolynomialRange().start, 2 * trial.system.times.low))      # type: ignore[union-attr]


def encoders(trial: Trial) -> Choice:
    """Every family: home-grown at the recipe's size where the recipe's is, else as published."""
    usual = contextual(trial.system.encoder)         # type: ignore[union-attr]
    home_grown = isinstance(usual.weights, Small)
    families = [family(weights=usual.weights) if home_grown else family() for family in (Bert, Roberta, T5, Bart)]
    return Choice(*[usual if type(usual) is type(family) else family for family in families], Embeddings(of=usual))
