"""Sampling: seconds for so many texts, ours and the released way; the network of TEncDM at the paper's size.

    python benchmarks/sampling.py                                                  a small network, on this CPU
    python benchmarks/sampling.py --device cuda --size paper --count 1000          1,000 texts in 50 steps

    reference   Euler-Maruyama in float32 with eager attention, as released
    ours        the same steps as `Sampled` makes them, in the arithmetic that training had
    ours, 20    DPM-Solver++(2M) in 20 steps even in log-SNR; with a perfect denoiser as good as Euler's 100 (oracle.py)

Only the walk is timed: no words are decoded.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from machine import now  # noqa: E402
from published import SHAPES, trial  # noqa: E402
from reference.tencdm import Denoiser  # noqa: E402

from trainables.config import override  # noqa: E402
from trainables.diffusion.sampler import sample  # noqa: E402
from trainables.diffusion.steppers import DpmPlusPlus2M, LogSnrGrid  # noqa: E402
from trainables.randomness import step_rng  # noqa: E402
from trainables.stages import Context, Store  # noqa: E402
from trainables.training.train import arithmetic  # noqa: E402


@torch.no_grad()
def euler(network: Denoiser, count: int, length: int, steps: int, device: torch.device) -> Tensor:
    """The released walk: x, guess -> x, with tan-9's drift and noise, the score from the guess."""
    x = torch.randn(count, length, network.width, device=device)
    guess, mask = torch.zeros_like(x), torch.ones(count, length, dtype=torch.bool, device=device)
    for i in range(steps):
        now_, then = (1 - (i + j) / steps * 0.99 for j in range(2))
        t = torch.full((count,), now_, device=device)
        guess = network(x, t, guess, mask)
        tangent = math.tan(min(now_, 0.999) * math.pi / 2)
        alpha2 = 1 / (1 + 81 * tangent**2)
        beta = 81 * math.pi * tangent * (1 + tangent**2) * alpha2
        score = -(x - alpha2**0.5 * guess) / (1 - alpha2)
        lapse = now_ - then
        x = x + (0.5 * beta * x + beta * score) * lapse
        if i < steps - 1:
            x = x + (beta * lapse) ** 0.5 * torch.randn_like(x)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=list(SHAPES), default="small")
    parser.add_argument("--count", type=int, default=16, help="texts, in one batch")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    device, shape = torch.device(asked.device), SHAPES[asked.size]
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sampling-") as scratch:
        context = Context(Store(Path(scratch) / "stages"), device=device)
        recipe = trial("tencdm", asked.size, Path(scratch), context.store, count=200)
        system: Any = recipe.system.build(recipe.data, context).to(device).eval()
        numbers, length = arithmetic(recipe.training.precision, device), recipe.system.state_length
        few = override(recipe.sampling, {"stepper": DpmPlusPlus2M(), "grid": LogSnrGrid(), "steps": 20})
        network = Denoiser(shape.layers, shape.width, shape.heads, shape.feedforward).to(device).eval()

        def ours(sampling: Any) -> None:
            with torch.autocast(device.type, numbers, enabled=numbers != torch.float32):
                sample(system, sampling, (asked.count, length), step_rng(0, 0, device))

        ways: dict[str, Callable[[], object]] = {
            "reference": lambda: euler(network, asked.count, length, asked.steps, device),
            "ours": lambda: ours(override(recipe.sampling, {"steps": asked.steps})),
            "ours, 20": lambda: ours(few)}
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(asked.repeats + 1):
            for name, way in ways.items():
                began = now(device)
                way()
                if turn:                                                            # the first one warms up
                    seen[name].append(now(device) - began)
    base = statistics.median(seen["reference"])
    for name, seconds in seen.items():
        median = statistics.median(seconds)
        print(f"{name:<10} {asked.count} texts  {median:8.3f} s ({min(seconds):.3f} .. {max(seconds):.3f})   "
              f"{base / median:.2f} x", flush=True)


if __name__ == "__main__":
    main()
