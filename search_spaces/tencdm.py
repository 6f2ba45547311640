"""What may vary in TEncDM (arXiv 2402.19097).

The paper fixes AdamW's rate at 2e-4 and argues about the schedule (Table 3: tan-d for d of 7, 9, 11 against cosine and
sqrt), self-conditioning, and the noise that the decoder is trained on.
"""

from search_spaces import optimizers
from search_spaces.domains import Choice, LogUniform, Space, Uniform, With
from trainables.diffusion.schedules import Cosine, Sqrt, Tangent
from trainables.trial import Trial

# Another encoder, schedule or density of times makes another task of the loss; so does what a batch is hinted.
LOSS_DEPENDS_ON = ("system.encoder", "system.process", "system.times", "system.self_conditioning")


def nuisance(trial: Trial) -> Space:
    """The optimizer's own."""
    return Space(optimizers.nuisance(trial.training))


def space(trial: Trial) -> Space:
    """The optimizer's, and what the paper argues about."""
    return nuisance(trial) | {
        "system.process.schedule": schedules(),
        "system.times.low": LogUniform(1e-5, max(0.15, 2 * trial.system.times.low)),
        "system.self_conditioning": Uniform(0.0, 1.0),
        "system.network.dropout": Uniform(0.0, 0.2),
        "system.decoder.noise_up_to": Uniform(0.01, 0.6),
    }


def schedules() -> Choice:
    """tan-d with its d, and the two that the paper beats."""
    return Choice(With(Tangent(), {"d": LogUniform(1.0, 20.0)}), Cosine(), Sqrt())
