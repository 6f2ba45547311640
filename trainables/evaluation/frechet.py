"""Frechet distance between two clouds of texts, each taken for a Gaussian.   arXiv 1706.08500

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))        squared units of the features, which have length 1

It falls as 1 / n even between two draws of the same texts, so n is fixed and the distance of real texts (fd_real) is
printed beside it.
"""

from typing import ClassVar

import numpy as np

from trainables.config import config
from trainables.evaluation.features import Features, FeatureTable, JudgeStates
from trainables.evaluation.real import Real, shortage
from trainables.stages import Context, Stage


@config
class Frechet:
    """fd: lower is better; never below fd_real but by chance."""

    features: Features = JudgeStates()

    better: ClassVar[dict[str, str]] = {"fd": "lower"}

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return (*self.features.needs(real.data), FeatureTable(real=real, features=self.features))

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        references = np.load(context.get(FeatureTable(real=real, features=self.features)) / "features.npy")
        reason = shortage(samples, real, len(references))
        return {"fd": reason or frechet(self.features.of(samples[:real.count], real.data, context), references)}


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two clouds, [n, D] each, in float64.

    tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): no root of a matrix that is nearly singular
    (there are often fewer texts than features), so nothing complex and nothing negative.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    shift = a.mean(0) - b.mean(0)
    (root_a, trace_a), (root_b, trace_b) = _root(a), _root(b)
    overlap = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    return float(max(shift @ shift + trace_a + trace_b - 2 * overlap, 0.0))


def _root(points: np.ndarray) -> tuple[np.ndarray, float]:
    """R with R R^T = covariance, [D, D], and the covariance's trace."""
    covariance = np.atleast_2d(np.cov(points, rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)), float(np.trace(covariance))
