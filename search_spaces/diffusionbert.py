"""What may vary in DiffusionBERT (arXiv 2211.15029).

The paper argues about the spindle (its strength, and what of a word it looks at) and about how, and whether, the
masked language model is told the time (Table 3); its hybrid loss weighs a cross-entropy beside the bound.
"""

from search_spaces import optimizers
from search_spaces.domains import Choice, Space, Uniform
from trainables.trial import Trial

# The bound of another process is another number; its weights make another sum.
LOSS_DEPENDS_ON = ("system.process", "system.measure", "system.objective", "system.times", "system.lm")


def nuisance(trial: Trial) -> Space:
    """The optimizer's own."""
    return Space(optimizers.nuisance(trial.training))


def space(trial: Trial) -> Space:
    """The optimizer's, and what the paper argues about."""
    return nuisance(trial) | {
        "system.process.spindle": Uniform(0.0, 0.5),
        "system.measure": Choice("frequency", "information"),
        "system.told": Choice("nothing", "prefix", "layers"),
        "system.objective.cross_entropy": Uniform(0.0, max(1.0, 2 * _cross_entropy(trial))),
    }


def _cross_entropy(trial: Trial) -> float:
    return trial.system.objective.cross_entropy      # type: ignore[union-attr]
