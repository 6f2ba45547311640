"""What may vary in LD4LG (arXiv 2212.09462).

The paper shifts the cosine schedule for conditional generation, predicts v (its code also x0 and noise), and finds
self-conditioning essential (Table 4); its code offers three losses.
"""

from search_spaces import optimizers
from search_spaces.domains import Choice, LogUniform, Space, Uniform, With
from trainables.diffusion.schedules import Cosine, Sigmoid, SimpleLinear
from trainables.trial import Trial

LOSS_DEPENDS_ON = ("system.representation", "system.process", "system.times", "system.loss", "system.self_conditioning")


def nuisance(trial: Trial) -> Space:
    """The optimizer's own."""
    return Space(optimizers.nuisance(trial.training))


def space(trial: Trial) -> Space:
    """The optimizer's, and what the paper and its code leave open."""
    shifted = {"scale": LogUniform(0.1, 10.0)}
    return nuisance(trial) | {
        "system.process.schedule": Choice(With(Cosine(), shifted), With(Sigmoid(), shifted),
                                          With(SimpleLinear(), shifted)),
        "system.process.predicts": Choice("v", "x0", "noise"),
        "system.times.low": LogUniform(1e-5, 0.1),
        "system.loss": Choice("l2", "l1", "smooth_l1"),
        "system.self_conditioning": Uniform(0.0, 1.0),
        "system.network.dropout": Uniform(0.0, 0.2),
    }
