"""What may vary in annealed LD4LG, the annealing thesis: how the range of noise opens, and what does the stepping.

The thesis tries five shapes (here: all noise at once, linear, polynomial with its power, cosine, stepwise with its
stages) from a fifth of the levels to all of them at half of training, under Lion and AdamW.
"""

from search_spaces import optimizers
from search_spaces.domains import Choice, Domain, Integers, LogUniform, Space, Uniform, With
from search_spaces.ld4lg import LOSS_DEPENDS_ON as LOSS_DEPENDS_ON
from search_spaces.ld4lg import nuisance as nuisance
from trainables.diffusion.ranges import CosineRange, FullRange, LinearRange, PolynomialRange, StepwiseRange
from trainables.trial import Trial


def space(trial: Trial) -> Space:
    """The optimizer's, and the annealing's."""
    return Space({
        "training.optimizer": optimizers.either(trial.training.optimizer),
        "training.schedule.warmup": optimizers.warmup(trial.training),
        "system.times.range": ranges(),
        "system.loss": Choice("l1", "l2", "smooth_l1"),
        "system.self_conditioning": Uniform(0.0, 1.0),
    })


def ranges() -> Choice:
    """Every shape with what it is described by."""
    opening: dict[str, Domain] = {"start": Uniform(0.05, 0.5), "until": Uniform(0.2, 1.0)}
    return Choice(
        FullRange(), With(LinearRange(), opening), With(PolynomialRange(), opening | {"power": LogUniform(0.5, 4.0)}),
        With(CosineRange(), opening), With(StepwiseRange(), opening | {"stages": Integers(2, 10)}))
