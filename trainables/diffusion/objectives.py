"""What masked diffusion is trained for: which terms, how they are weighed, at which times.

    Mdlm(steps=0)              the bound in continuous time: cross-entropy of hidden tokens, weighed by rho(t)
    Mdlm(steps=T)              the bound of a chain of T steps, one of its terms times T
    Mdlm(bound=0, cross_entropy=1)      masked language modelling with any share hidden
    D3pm(steps=T)              the mixture's terms, the mask being an answer; with cross_entropy, the hybrid loss

Both weights stand beside the whole bound, not beside its mean term, so that they mean the same at any T.  Published:
hybrid_lambda 1e-2 beside bound / T, which with T = 2048 is cross_entropy = 20.48 here, ten times the bound's share.

Shapes: n hidden positions, t and s [n, 1].  arXiv 2406.07524, 2107.03006, 2211.15029.
"""

from torch import Tensor

from trainables.config import config
from trainables.diffusion.absorbing import Absorbing, density_term, step_term


@config
class Mdlm:
    """The mask is no answer, visible tokens are kept; steps 0 is continuous time.  cross_entropy: of hidden tokens."""

    steps: int = 0
    bound: float = 1.0
    cross_entropy: float = 0.0

    def __post_init__(self):
        _check_weights(self.bound, self.cross_entropy)
        if self.steps < 0:
            raise ValueError(f"steps must be 0 (continuous time) or more, not {self.steps}")


@config
class D3pm:
    """The mask is an answer among others.  cross_entropy: of all tokens, visible ones too.

    as_published: a spindle is centred on each sentence and the schedule's rate stands for the token's.  That is no
    bound, but it is what was trained; D3pm has no other way with a spindle.
    """

    steps: int = 2048
    bound: float = 1.0
    cross_entropy: float = 0.0
    as_published: bool = False

    def __post_init__(self):
        _check_weights(self.bound, self.cross_entropy)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


def _check_weights(bound: float, cross_entropy: float) -> None:
    if bound < 0 or cross_entropy < 0 or bound + cross_entropy == 0:
        raise ValueError("bound and cross_entropy are weights, 0 or more and not both 0, "
                         f"not {bound} and {cross_entropy}")


def step_of(t: Tensor, steps: int) -> tuple[Tensor, Tensor | None]:
    """The step (t, s) of a chain of `steps` in which the time t falls; in continuous time (0) t itself, and no s."""
    if not steps:
        return t, None
    k = (t * steps).ceil().clamp(min=1)
    return k / steps, (k - 1) / steps


def bound_term(process: Absorbing, log_p: Tensor, words: Tensor, t: Tensor, s: Tensor | None,
               weights: Tensor) -> Tensor:
    """The bound's estimate from one time, [n] nats: the density at t, or the step's term per length of the step.

    log_p [n, V] without the mask; words [n]; weights [V] of the spindle
    """
    all_words = weights if process.spindle else None
    if s is None:
        return density_term(log_p, words, process.rate(t, all_words))
    return step_term(log_p, words, process.reveal(t, s, all_words)) / (t - s)[:, 0]
