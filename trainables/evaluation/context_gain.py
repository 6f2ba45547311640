"""Context gain: how much of what can be known from context a denoiser knows.

    gain = (context-free loss - loss) / (context-free loss - oracle loss)        0: each word by itself,  1: perfect

Under heavy noise nearly all of a denoising loss is noise that nobody can remove, and a network that has learned to clean
each position by itself already shows a falling loss.  On the built-in corpus both ends are known exactly: there are few
enough stories to enumerate, so with p_k their probabilities and z_k their encodings

    oracle        E[x_0 | x_t]        = sum_k w_k z_k,      w_k   ~ p_k N(x_t; alpha z_k, sigma^2)
    context-free  E[x_0i | x_ti]      = sum_k w_ki z_ki,    w_ki  ~ p_k N(x_ti; alpha z_ki, sigma^2)      each i by itself

Shapes: N stories in the grammar, B noised ones, L positions, D features.
"""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.times import Times
from trainables.randomness import step_rng
from trainables.stages import Context, Stage
from trainables.text.encodings import EncodedTexts, Encodings, EncodingStatistics
from trainables.text.stories import Oracle, all_stories

TIMES = 10              # levels at which the two losses are computed; between them they are interpolated
ROWS = 64               # held-out stories at each


@config
class ContextBounds:
    """The two losses at a grid of training times, for encodings of the built-in corpus: bounds.json."""

    encoded: EncodedTexts
    process: Gaussian
    times: Times

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return self.encoded, EncodingStatistics(encoded=self.encoded)

    def make(self, out: Path, context: Context) -> None:
        encodings = Encodings.of(self.encoded, context)
        texts = all_stories()
        log_p = torch.from_numpy(Oracle().log_likelihood(texts)).float()
        table = encodings.encode(encodings.read(texts))                                  # [N, L, D]
        x0 = encodings.encode(encodings.batches("test").take(torch.arange(ROWS)))        # [B, L, D]
        times = self.times.quantiles(TIMES, self.process.schedule).sort().values
        rows = []
        for i, t in enumerate(times):
            t = t.expand(ROWS, 1)
            x_t, _ = self.process.corrupt(x0, t, step_rng(0, f"context bounds {i}"))
            rows.append(bounds(table, log_p, x0, x_t, *self.process.at(t)))
        oracle, alone = zip(*rows, strict=True)
        (out / "bounds.json").write_text(json.dumps({"t": times.tolist(), "oracle": oracle, "context_free": alone}))


def bounds(table: Tensor, log_p: Tensor, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """Mean squared errors of the oracle and of the best context-free denoiser, at one time for all rows.

    table [N, L, D], log_p [N], x0 and x_t [B, L, D], alpha and sigma [B, 1, 1]
    """
    alpha, sigma = float(alpha.flatten()[0]), float(sigma.flatten()[0])
    log_w = torch.empty(x_t.shape[1], len(x_t), len(table))                              # [L, B, N]
    for i in range(x_t.shape[1]):
        z = table[:, i]
        log_w[i] = (alpha * (x_t[:, i] @ z.T) - 0.5 * alpha**2 * z.square().sum(-1)) / sigma**2
    together = ((log_w.sum(0) + log_p).softmax(-1) @ table.flatten(1)).view_as(x0)
    alone = torch.stack([(log_w[i] + log_p).softmax(-1) @ table[:, i] for i in range(x_t.shape[1])], 1)
    return float((together - x0).square().mean()), float((alone - x0).square().mean())


class ContextGain:
    """The gain of a guess, given the bounds."""

    def __init__(self, folder: Path):
        table = json.loads((folder / "bounds.json").read_text())
        self.t, self.oracle, self.alone = (np.array(table[name]) for name in ("t", "oracle", "context_free"))

    def __call__(self, guess: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """guess and x0 [B, L, D], t [B, 1] -> the share of what context tells, a scalar"""
        at = t.flatten().double().cpu().numpy()
        alone = np.interp(at, self.t, self.alone).mean()
        oracle = np.interp(at, self.t, self.oracle).mean()
        loss = (guess.float() - x0.float()).square().mean()
        return (float(alone) - loss) / float(alone - oracle)
