"""The reference step of each system, built for the shapes and texts of ours; and the originals' own shares.

ORIGINAL: per cent of an optimizer step by part, of the released code run on one CPU core with random weights at B = 8
(DiffusionBERT: 4); the mean of a step with self-conditioning and one without.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import now
from ours import Ours
from published import Shape

from reference import diffusionbert, ld4lg, scorelm, tencdm
from reference.loop import Clock
from trainables.networks.perceiver import Perceiver
from trainables.system import Batch
from trainables.text.checkpoints import quietly
from trainables.text.documents import SingleDocuments

ORIGINAL: dict[str, dict[str, float]] = {
    "tencdm": {"encoder": 19.4, "forward": 22.9, "self-conditioning": 10.9, "backward": 39.6, "optimizer": 3.9,
               "average": 1.6, "norms": 1.6},
    "ld4lg": {"encoder": 13.7, "forward": 20.7, "self-conditioning": 10.1, "backward": 38.3, "optimizer": 11.3,
              "average": 2.3, "norms": 2.4},
    "diffusionbert": {"forward": 20.3, "posterior": 22.6, "backward": 44.3, "optimizer": 12.6},
    "scorelm": {"forward": 23.0, "anisotropy": 15.2, "backward": 49.0, "optimizer": 4.2, "average": 1.8, "norms": 1.6},
}


@dataclass
class Reference:
    """The other side: steps of the reference loop on the same texts, self-conditioning at every second one."""

    step: Any
    batches: Any
    batch: int
    device: torch.device

    def __post_init__(self):
        rows = self.take(0, min(256, len(self.batches)))
        self.tokens = float(rows.mask.sum(1).double().mean()) * self.batch
        loop = self.step.loop
        self.averaged = sum(p.numel() for p in loop.averaged) * len(loop.means)
        self.number = itertools.count()

    def take(self, first: int, count: int) -> Batch:
        rows = self.batches.take(torch.arange(first, first + count) % len(self.batches))
        return Batch(ids=rows.ids, mask=rows.mask)

    def run(self, steps: int) -> float:
        """Seconds a step, of so many."""
        loaded = [self.take(self.batch * next(self.number), self.batch) for _ in range(steps)]     # workers load aside
        began = now(self.device)
        for i, rows in enumerate(loaded):
            self.step(rows.ids, rows.mask, coin=i % 2 == 0)
        return (now(self.device) - began) / steps


def reference(system: str, ours: Ours, shape: Shape, folder: Path, clock: Clock, numbers: torch.dtype) -> Reference:
    """The reference step of a system, in the shape of ours."""
    with quietly():
        return _reference(system, ours, shape, folder, clock, numbers)


def _reference(system: str, ours: Ours, shape: Shape, folder: Path, clock: Clock, numbers: torch.dtype) -> Reference:
    from transformers import BartModel, BertForMaskedLM, BertModel

    device, mine, batches = ours.context.device, ours.system, ours.batches
    size = (shape.layers, shape.width, shape.heads)
    eager: dict[str, Any] = {"attn_implementation": "eager", "local_files_only": True, "dtype": torch.float32}
    step: Any
    if system == "tencdm":
        encoder = BertModel.from_pretrained(folder / "cased", add_pooling_layer=False, **eager)
        step = tencdm.Step(encoder, (*size, shape.feedforward), clock, device, numbers)
    elif system == "ld4lg":
        encoder = BartModel.from_pretrained(folder / "bart", **eager).get_encoder()
        compressor = Perceiver(heads=shape.heads).build(shape.width, mine.cfg.length).compress
        step = ld4lg.Step(encoder, compressor, (*size, mine.space.width), clock, device, numbers,
                          mine.cfg.network.dense)
    elif system == "diffusionbert":
        model = BertForMaskedLM.from_pretrained(folder / "uncased", **eager)
        step = diffusionbert.Step(model, mine.mask, clock, device, numbers)
    else:
        size = (mine.cfg.network.layers, mine.cfg.network.width, mine.cfg.network.heads)
        step = scorelm.Step((*size, mine.cfg.network.feedforward), mine.pieces.vocabulary, clock, device, numbers)
        batches = SingleDocuments(mine.rows.documents("train"), mine.cfg.length, 0, mine.pieces.pad)
    return Reference(step, batches, ours.batch, device)
