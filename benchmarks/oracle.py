"""Sampling with a perfect denoiser: what is wrong then is the sampler's fault alone.

    python benchmarks/oracle.py                    every stepper at 5, 10, 20, 50 and 100 looks, 3,000 texts: minutes
    python benchmarks/oracle.py --texts 500 --looks 10 20

The language: a Markov chain of 24 words, each with 4 successors, 32 words a text, every word a random vector of 8
dimensions and norm sqrt(8), noised by TEncDM's tan-9.  The exact expectation of x_0 given x_t is a forward-backward sum
over the chain, so the "network" makes no error at all.

    illegal     share of the samples' word pairs that the chain cannot make
    variation   total variation of the word pairs' distribution, samples against chain
    floor       the same of texts that the chain itself wrote

Seen with 500 texts (floor .0000 / .028): Euler SDE .1524 / .167 at 10 looks, .0185 / .074 at 20, .0000 / .031 at 100;
DPM++(2M) even in log-SNR .0000 / .043 at 10 and .0000 / .033 at 20.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainables.diffusion.gaussian import Gaussian  # noqa: E402
from trainables.diffusion.sampler import Sampling, sample  # noqa: E402
from trainables.diffusion.schedules import Tangent  # noqa: E402
from trainables.diffusion.steppers import (  # noqa: E402
    Ddpm,
    DpmPlusPlus2M,
    EulerMaruyama,
    EulerOde,
    Grid,
    Heun,
    LinearGrid,
    LogSnrGrid,
    Posterior,
    Stepper,
)
from trainables.randomness import Rng, step_rng  # noqa: E402
from trainables.system import Batch, Prediction, Walk  # noqa: E402

WORDS, SUCCESSORS, LENGTH, DIMENSIONS = 24, 4, 32, 8

WAYS: dict[str, tuple[Stepper, Grid, int]] = {                               # and how often it looks in a step
    "Euler SDE (TEncDM's)": (EulerMaruyama(), LinearGrid(), 1),
    "Euler ODE": (EulerOde(), LinearGrid(), 1),
    "DDPM": (Ddpm(variance="small"), LinearGrid(), 1),
    "DDIM": (Posterior(), LinearGrid(), 1),
    "Heun": (Heun(), LinearGrid(), 2),
    "DPM++(2M)": (DpmPlusPlus2M(), LinearGrid(), 1),
    "DPM++(2M), log-SNR": (DpmPlusPlus2M(), LogSnrGrid(), 1),
    "DDPM, log-SNR": (Ddpm(variance="small"), LogSnrGrid(), 1),
}


class Chain:
    """The language, and the denoiser that knows it.   pairs [V, V]: how often a word follows another"""

    def __init__(self, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        self.follows = torch.zeros(WORDS, WORDS, dtype=torch.float64)
        for word in range(WORDS):
            legal = torch.randperm(WORDS, generator=rng)[:SUCCESSORS]
            shares = torch.rand(SUCCESSORS, generator=rng, dtype=torch.float64) + 0.2
            self.follows[word, legal] = shares / shares.sum()
        first = torch.full((WORDS,), 1 / WORDS, dtype=torch.float64)
        for _ in range(1_000):
            first = first @ self.follows
        self.first, self.pairs = first, first[:, None] * self.follows
        vectors = torch.randn(WORDS, DIMENSIONS, generator=rng, dtype=torch.float64)
        self.vectors = F.normalize(vectors, dim=1) * DIMENSIONS ** 0.5
        self.process = Gaussian(schedule=Tangent(d=9.0), predicts="x0")

    def write(self, count: int, rng: torch.Generator) -> Tensor:
        """Texts of the chain's own.   [count, LENGTH]"""
        words = [torch.multinomial(self.first, count, replacement=True, generator=rng)]
        while len(words) < LENGTH:
            words.append(torch.multinomial(self.follows[words[-1]], 1, generator=rng)[:, 0])
        return torch.stack(words, 1)

    def marginals(self, x: Tensor, t: Tensor) -> Tensor:
        """p(word | x_t) at each place, [B, L, V], by sums forwards and backwards over the chain."""
        alpha, sigma = self.process.at(t.double())
        far = (x[:, :, None] - alpha[..., None] * self.vectors).square().sum(-1)
        seen = (-(far - far.amin(-1, keepdim=True)) / (2 * sigma**2)).exp()                  # up to a factor a place
        before, after = [self.first * seen[:, 0]], [torch.ones_like(seen[:, 0])]
        for i in range(1, LENGTH):
            reached = (before[-1] / before[-1].sum(-1, keepdim=True)) @ self.follows
            before.append(reached * seen[:, i])
            onwards = (after[-1] * seen[:, LENGTH - i]) @ self.follows.T
            after.append(onwards / onwards.sum(-1, keepdim=True))
        p = torch.stack(before, 1) * torch.stack(after[::-1], 1)
        return p / p.sum(-1, keepdim=True)

    # -- what the sampler asks of a system

    def times(self, grid: Grid, steps: int) -> Tensor:
        return grid.times(self.process.schedule, steps)

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return self.process.prior((*shape, DIMENSIONS), rng).double()

    def denoise(self, x_t: Tensor, t: Tensor, *, previous: Prediction | None = None, batch: Batch | None = None
                ) -> Prediction:
        return Prediction(self.marginals(x_t, t) @ self.vectors)

    def reverse(self, x_t: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        return walk.stepper.step(self.process, x_t, hat, t, s, walk)

    def words(self, x: Tensor) -> Tensor:
        """The nearest word at each place.   [B, L]"""
        return (x @ self.vectors.T).argmax(-1)


def judged(chain: Chain, words: Tensor) -> tuple[float, float]:
    """(illegal, variation) of texts [B, L]."""
    found = torch.bincount((words[:, :-1] * WORDS + words[:, 1:]).flatten(), minlength=WORDS**2).double()
    found = (found / found.sum()).view(WORDS, WORDS)
    return float(found[chain.follows == 0].sum()), float((found - chain.pairs).abs().sum() / 2)


def drawn(chain: Chain, way: str, looks: int, texts: int, seed: int = 0) -> Tensor:
    """Texts [texts, LENGTH] by one of WAYS with so many looks."""
    stepper, grid, each = WAYS[way]
    sampling = Sampling(stepper=stepper, grid=grid, steps=max(1, looks // each))
    x, _ = sample(chain, sampling, (texts, LENGTH), step_rng(seed, f"{way} {looks}"))        # type: ignore[arg-type]
    return chain.words(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=3_000)
    parser.add_argument("--looks", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    asked = parser.parse_args()
    chain = Chain()
    illegal, variation = judged(chain, chain.write(asked.texts, torch.Generator().manual_seed(1)))
    print(f"{asked.texts} texts; illegal / variation     floor {illegal:.4f} / {variation:.3f}")
    print(f"{'':<22}" + "".join(f"{looks:>16}" for looks in asked.looks), flush=True)
    for way in WAYS:
        cells = [judged(chain, drawn(chain, way, looks, asked.texts)) for looks in asked.looks]
        print(f"{way:<22}" + "".join(f"{f'{a:.4f} / {b:.3f}':>16}" for a, b in cells), flush=True)


if __name__ == "__main__":
    main()
