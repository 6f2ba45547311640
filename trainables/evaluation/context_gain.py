"""Context gain: how much of what can be known from context a denoiser knows.

    gain = (context-free loss - loss) / (context-free loss - oracle loss)        0: each word by itself,  1: perfect

Under heavy noise nearly all of a denoising loss is noise that nobody can remove, and a network that has learned to
clean each position by itself already shows a falling loss.  On the built-in corpus both ends are known exactly: there
are few enough stories to enumerate, so with p_k their probabilities and z_k their encodings

    oracle        E[x_0 | x_t]        = sum_k w_k z_k,      w_k   ~ p_k N(x_t; alpha z_k, sigma^2)
    context-free  E[x_0i | x_ti]      = sum_k w_ki z_ki,    w_ki  ~ p_k N(x_ti; alpha z_ki, sigma^2)    each i by itself

Shapes: N stories in the grammar, B noised ones, L positions, D features.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.config import config
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.times import Times
from trainables.randomness import step_rng
from trainables.stages import Context, Stage
from trainables.text.encodings import EncodedTexts, Encodings, EncodingStatistics
from trainables.text.stories import Oracle, all_stories

TIMES = 10              # even in probability over the training times
ROWS = 48               # held-out stories at each, at most; a model is judged on these, so their noise cancels


@config
class ContextBounds:
    """Noised validation stories x_t at a grid of training times, and what oracle and context-free denoiser lose on
    them: bounds.safetensors, x0 [B, L, D], x_t [TIMES, B, L, D], t, oracle and alone [TIMES]."""

    encoded: EncodedTexts
    process: Gaussian
    times: Times

    version: ClassVar[int] = 2               # 2: on validation texts; a search selects by what it says

    def needs(self) -> tuple[Stage, ...]:
        return self.encoded, EncodingStatistics(encoded=self.encoded)

    def make(self, out: Path, context: Context) -> None:
        encodings = Encodings.of(self.encoded, context)
        texts = all_stories()
        log_p = torch.from_numpy(Oracle().log_likelihood(texts)).float()
        table = encodings.encode(encodings.read(texts))                                  # [N, L, D]
        valid = encodings.batches("valid")
        x0 = encodings.encode(valid.take(torch.arange(min(ROWS, len(valid)))))           # [B, L, D]
        times = self.times.quantiles(TIMES, self.process.schedule).sort().values
        noised, losses = [], []
        for i, t in enumerate(times):
            t = t.expand(len(x0), 1)
            noised.append(self.process.corrupt(x0, t, step_rng(0, f"context bounds {i}"))[0])
            losses.append(bounds(table, log_p, x0, noised[-1], *self.process.at(t)))
        oracle, alone = torch.tensor(losses).T.contiguous()
        save_file({"x0": x0, "x_t": torch.stack(noised), "t": times, "oracle": oracle, "alone": alone.clone()},
                  out / "bounds.safetensors")


def bounds(table: Tensor, log_p: Tensor, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """Mean squared errors of the oracle and of the best context-free denoiser, at one time for all rows.

    table [N, L, D], log_p [N], x0 and x_t [B, L, D], alpha and sigma [B, 1, 1]
    """
    a, s = float(alpha.flatten()[0]), float(sigma.flatten()[0])
    log_w = torch.empty(x_t.shape[1], len(x_t), len(table))                              # [L, B, N]
    for i in range(x_t.shape[1]):
        z = table[:, i]
        log_w[i] = (a * (x_t[:, i] @ z.T) - 0.5 * a**2 * z.square().sum(-1)) / s**2
    together = ((log_w.sum(0) + log_p).softmax(-1) @ table.flatten(1)).view_as(x0)
    alone = torch.stack([(log_w[i] + log_p).softmax(-1) @ table[:, i] for i in range(x_t.shape[1])], 1)
    return float((together - x0).square().mean()), float((alone - x0).square().mean())


class ContextGain:
    """The gain of a denoiser on the stories of a ContextBounds folder."""

    def __init__(self, folder: Path):
        self.known = load_file(folder / "bounds.safetensors")

    def __call__(self, denoise: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> Tensor:
        """denoise: (x_t [B, L, D], t [B, 1]) -> the guess of x_0.  The gain over all times together, a scalar."""
        x0, known = self.known["x0"].to(device), self.known
        guesses = (denoise(x_t.to(device), t.to(device).expand(len(x0), 1))
                   for x_t, t in zip(known["x_t"], known["t"], strict=True))
        loss = torch.stack([(guess - x0).square().mean() for guess in guesses]).cpu()
        return (known["alone"] - loss).sum() / (known["alone"] - known["oracle"]).sum()
