"""What may vary in DiffusionBERT (arXiv 2211.15029).

The paper argues about the spindle (its strength, and what of a word it looks at) and about how, and whether, the
masked language model is told the time (Table 3); its hybrid loss weighs a cross-entropy beside the bound.

How strong a spindle may be, the words say, and another measure of them says something else; so what is drawn is a share
of the strongest, and every draw can be trained.  The recipe's own process, whose spindle is lambda, stands beside it.
"""

from search_spaces import optimizers
from search_spaces.domains import Choice, Space, Uniform, With
from trainables.config import override
from trainables.trial import Trial

# The bound of another process is another number; its weights make another sum.
LOSS_DEPENDS_ON = ("system.process", "system.measure", "system.objective", "system.times", "system.lm")


def nuisance(trial: Trial) -> Space:
    """The optimizer's own."""
    return Space(optimizers.nuisance(trial.training))


def space(trial: Trial) -> Space:
    """The optimizer's, and what the paper argues about."""
    process = trial.system.process       # type: ignore[union-attr]
    return nuisance(trial) | {
        "system.process": Choice(
            With(process, label="recipe"),
            With(override(process, {"spindle": 0.5, "relative": True}), {"spindle": Uniform(0.0, 1.0)},
                 label="spindle")),
        "system.measure": Choice("frequency", "information"),
        "system.told": Choice("nothing", "prefix", "layers"),
        "system.objective.cross_entropy": Uniform(0.0, max(1.0, 2 * _cross_entropy(trial))),
    }


def _cross_entropy(trial: Trial) -> float:
    return trial.system.objective.cross_entropy      # type: ignore[union-attr]
