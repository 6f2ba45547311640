"""MAUVE: how much two clouds of texts overlap, 0..1.   arXiv 2102.01454, with the authors' own library

    texts -> features -> k-means over both sets -> two histograms over `buckets` -> area under their divergence curve

The value depends on the number of texts, on the buckets and on the features, much more than on many a model: real text
against real text at n = 1000 scores 1.00 with 10 buckets and .84 with 200.  So all three are fixed, a score is refused
where there are fewer texts, and the score of real texts (mauve_real) is printed beside it.
"""

import functools
import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from trainables.config import ConfigError, config
from trainables.evaluation.features import Features, FeatureTable, JudgeStates
from trainables.evaluation.real import Real, shortage
from trainables.stages import Context, Stage


@config
class Mauve:
    """The published numbers use Pooled("gpt2-large", "last") and n / 10 buckets."""

    features: Features = JudgeStates()
    buckets: int = 50
    scaling: float = 5.0
    seed: int = 25

    better: ClassVar[dict[str, str]] = {"mauve": "higher"}

    def __post_init__(self):
        if self.buckets < 2 or self.scaling <= 0:
            raise ValueError("buckets must be at least 2, scaling positive")

    def check(self) -> None:
        """ConfigError where the library is not installed."""
        if importlib.util.find_spec("mauve") is None or importlib.util.find_spec("faiss") is None:
            raise ConfigError("evaluation.metrics", "MAUVE needs the extra: pip install 'palimpsest[paper]'")

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return (*self.features.needs(real.data), FeatureTable(real=real, features=self.features))

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        references = np.load(context.get(FeatureTable(real=real, features=self.features)) / "features.npy")
        reason = shortage(samples, real, len(references))
        if not reason and self.buckets > real.count:
            reason = f"needs at least {self.buckets} texts for {self.buckets} buckets, not {real.count}"
        if reason:
            return {"mauve": reason}
        features = self.features.of(samples[:real.count], real.data, context)
        return {"mauve": mauve(features, references, self.buckets, self.scaling, self.seed)}


def mauve(features: np.ndarray, references: np.ndarray, buckets: int, scaling: float = 5.0, seed: int = 25) -> float:
    """MAUVE of two clouds, [n, D] each; 0..1."""
    return float(_library().compute_mauve(p_features=features, q_features=references, num_buckets=buckets,
                                          mauve_scaling_factor=scaling, seed=seed, verbose=False).mauve)


@functools.cache
def _library() -> Any:
    """The library, imported at its first use: it brings scikit-learn, which takes seconds.

    Its k-means wants 39 points a bucket and says so on the terminal at every call, though the published protocol has
    20 (n / 10 buckets over 2 n points); it is told that this is enough, which changes no result.
    """
    import faiss

    module: Any = importlib.import_module("mauve.compute_mauve")
    module.faiss = SimpleNamespace(Kmeans=functools.partial(faiss.Kmeans, min_points_per_centroid=1))
    return module
