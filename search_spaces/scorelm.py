"""What may vary in the score LM: a learned embedding table under exploding noise, words guessed by cross-entropy.

Its paper reports on the range of noise (sigma up to 10 in the released settings, 300 in the paper's), on per-token
noise and on the temperature of the sampler's guesses.
"""

from search_spaces import optimizers
from search_spaces.domains import Choice, LogUniform, Space, Uniform
from trainables.trial import Trial

# Cross-entropy is in nats whatever the network, but how hard a guess is depends on the noise, and on the hint.
LOSS_DEPENDS_ON = ("system.process", "system.times", "system.weighting", "system.multilevel", "system.prompts",
                   "system.self_conditioning", "system.embedding", "system.deviation", "system.tokenizer")


def nuisance(trial: Trial) -> Space:
    """The optimizer's own."""
    return Space(optimizers.nuisance(trial.training))


def space(trial: Trial) -> Space:
    """The optimizer's, and what the paper and its code leave open."""
    return nuisance(trial) | {
        "system.process.schedule.low": LogUniform(0.1, 1.5),
        "system.process.schedule.high": LogUniform(5.0, 300.0),
        "system.process.schedule.rho": Uniform(1.0, 10.0),
        "system.multilevel": Uniform(0.0, 1.0),
        "system.output": Choice("head", "posterior"),
        "system.weighting": Choice("plain", "edm"),
        "system.self_conditioning": Uniform(0.0, 1.0),
        "system.temperature": Uniform(0.5, 1.2),
        "system.network.dropout": Uniform(0.0, 0.2),
    }
