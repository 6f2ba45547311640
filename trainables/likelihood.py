"""The bound of a trained discrete diffusion on a split of its corpus, as a stage: bound.json.

    json.loads((context.get(Likelihood(checkpoint=trial.checkpoint(), split="test")) / "bound.json").read_text())

Training reports the bound on validation texts (valid/bound_per_word); this is for other texts, more draws, the number
of steps that a sampler takes.  What the numbers are, evaluation/text_bound.py says.
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

from trainables.config import ConfigError, config
from trainables.diffusionbert import DiffusionBert
from trainables.evaluation.text_bound import BoundEstimate, text_bound
from trainables.stages import Context, Stage
from trainables.training.train import load_weights
from trainables.trial import Trained


@config
class Likelihood:
    """bound.json, {"bound_per_word": ..., ...}, of a checkpoint's texts.   ConfigError: a system without a bound"""

    checkpoint: Trained
    split: Literal["train", "valid", "test"] = "test"
    estimate: BoundEstimate = BoundEstimate(texts=1_024, draws=32)

    version: ClassVar[int] = 1

    def __post_init__(self):
        if not isinstance(self.checkpoint.system, DiffusionBert):
            raise ConfigError("checkpoint.system", f"{type(self.checkpoint.system).__name__} has no bound on its "
                                                   "texts' likelihood; DiffusionBert has")

    def needs(self) -> tuple[Stage, ...]:
        return (self.checkpoint,)

    def make(self, out: Path, context: Context) -> None:
        cfg = self.checkpoint.system
        assert isinstance(cfg, DiffusionBert)
        system = cfg.build(self.checkpoint.data, context)
        load_weights(system, context.get(self.checkpoint))
        system.to(context.device).eval()
        found = text_bound(system, system.batches(self.split), self.estimate, context.device)
        (out / "bound.json").write_text(json.dumps({name: float(value) for name, value in found.items()}, indent=1))
