"""Annealed LD4LG: not a system but a difference.  LD4LG's first release, trained on mild noise first.

    words --frozen BART encoder--> x_0 [B, L, 768], normalised by a mean and one scale      no autoencoder: RawEncodings
    x_t = alpha_t x_0 + sigma_t noise,  t <= ceiling(step / steps)                   linear beta; diffusion/ranges.py
    x0_hat = network(x_t, t, previous x0_hat)          loss = |x0_hat - x_0|, over the text's own places
    words <--frozen BART decoder-- x_0                 as many places as a length drawn from the training texts

The annealing thesis opens the range of times from a fifth to all of it in the first half of training, by one of five
shapes, and steps by Lion.  Its guess and class are read by cross-attention, its positions are relative as well, its
clock is the index i = 1000 t - 1 of a noise level.  All of that is values of LD4LG's config.

One thing is not the thesis': its t is one of 1,000 levels, and here it is any number, between two levels as well, where
the betas' schedule is interpolated (diffusion/discrete.py) and the clock tells a broken index.  So training sees all
indices; a sampler asks at whole ones only on the thesis' own grid of 250 steps.  A range that opens with less than one
level, on which the thesis crashes, is refused.

What annealing owes to the order, and what to showing mild noise more often altogether, is for its control to say:
Times(law=Exposure(range=...)), see studies/ablation_annealing.py.
"""

from typing import TYPE_CHECKING

from trainables.config import override
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.ranges import PolynomialRange
from trainables.diffusion.schedules import LinearBeta
from trainables.diffusion.steppers import LinearGrid, Posterior
from trainables.diffusion.times import Times
from trainables.ld4lg import Ld4lg, ld4lg, ld4lg_laptop
from trainables.text.corpora import Data, RocStories, Stories
from trainables.text.latents import RawEncodings
from trainables.training.optimizers import Lion

if TYPE_CHECKING:
    from trainables.trial import Trial


def ld4lg_annealed(data: Data = RocStories()) -> "Trial":
    """The thesis' recipe, to the number: on ROCStories 500,000 steps of 64 without dropout, elsewhere as for E2E, which
    is 80,000 with; a range of power 2; Lion at AdamW's rate, betas and decay; 250 steps of DDIM with eta 1.

    Its other runs: {"training.optimizer": AdamW(lr=1e-4, weight_decay=...)} with the same numbers, and with the classes
    of SST and AG News, HubTexts(name="fancyzhx/ag_news", class_column="label"), ld4lg.CLASS_CONDITIONAL.
    """
    stories = isinstance(data, RocStories)
    lion = Lion(lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-6 if stories else 0.01)
    recipe = ld4lg(data)
    return override(recipe, difference(recipe) | {
        "system.times": Times(range=PolynomialRange(power=2.0), low=0.001),          # the first of 1,000 levels
        "system.network.dropout": 0.0 if stories else 0.1,
        "training.optimizer": lion,
        "training.steps": 500_000 if stories else 80_000,
        "training.batch": 64,
        "sampling.stepper": Posterior(eta=1.0),
        "sampling.grid": LinearGrid(),
        "sampling.steps": 250,
    })


def ld4lg_annealed_laptop(data: Data = Stories()) -> "Trial":
    """A recipe that learns the built-in corpus on one core in minutes, language model included.

    Its language model learns from texts of which less is hidden: one that is used to guessing what is missing writes
    words into a text that nobody said, and here no autoencoder is trained to stop it.  States of every token cost more
    than a few latents, so feed-forward layers are half as wide (2 seeds saw no loss); and its sampler, which adds new
    noise at each step, wants more of them.
    """
    recipe = ld4lg_laptop(data)
    return override(recipe, difference(recipe) | {
        "system.representation.model.weights.hidden": 0.05,
        "system.network.expansion": 2,
        "system.times": Times(range=PolynomialRange(power=2.0), low=0.01),
        "training.optimizer": Lion(lr=1e-3, weight_decay=0.1),
        "sampling.stepper": Posterior(eta=1.0),
        "sampling.steps": 60,
    })


def difference(recipe: "Trial") -> dict:
    """What makes LD4LG, at any size, the thesis' system: dotted path -> value."""
    assert isinstance(recipe.system, Ld4lg)
    return {
        "system.representation": RawEncodings(model=recipe.system.representation.model),
        "system.process": Gaussian(schedule=LinearBeta(), predicts="x0"),
        "system.loss": "l1",
        "system.network.dense": 0,
        "system.network.relative": True,
        "system.network.reads": "attended",
        "system.network.clock": "index",
    }
