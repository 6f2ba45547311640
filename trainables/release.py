"""To release a cell's samples: a folder that writes such texts, without the study, the store and the corpus.

    results/stages/Sampled-<key> and all it stands on --release--> folder
        generator.json                    the samples' config; version and key of each stage; where it comes from
        Trained/model.safetensors
        EncodedTexts/tokenizer.json ...   a folder for each stage that sampling asks for

Which stages those are is not written down anywhere: to release is to build the system once and to note what it asks
for.  A stage with a `release` of its own says what is kept of it; of the others, everything but texts by split.
No pickle: tensors are safetensors, the rest is JSON and tokenizers.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from trainables.config import to_dict
from trainables.generator import Generator
from trainables.shelf import ABOUT, in_store, kinds, released
from trainables.stages import Store, key, upstream
from trainables.trial import Sampled

LEFT = re.compile(r"(train|judge|valid|test)\..*|stage\.json|curve\.jsonl|origin\.json")     # texts, and the workshop's


@runtime_checkable
class Releases(Protocol):
    """A stage that knows what of it a generator needs."""

    def release(self, folder: Path, out: Path) -> None:
        """Write into `out` what a generator needs of the finished `folder`."""


def release(sampled: Sampled, store: Store, out: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write the generator of these samples as the folder `out`, whole or not at all; one that is there is replaced.

    about: where it comes from, for people.   ConfigError: the store lacks a stage
    """
    shelf, config = in_store(sampled, store), released(sampled)
    generator = Generator(config, shelf, torch.device("cpu"))
    if config.system.reads_source:
        generator.conditions(["a source"], None)                             # what reads it is asked for only now
    made = {kind: stage for stage, kind in kinds(upstream(*sampled.needs())).items()}
    work, old = (out.with_name(f".{out.name}.{uuid.uuid4().hex}") for _ in range(2))
    try:
        for kind, stage in shelf.asked.items():
            (work / kind).mkdir(parents=True)
            folder = shelf.get(stage, generator.context)
            if isinstance(stage, Releases):
                stage.release(folder, work / kind)
            else:
                keep(folder, work / kind, weights=weighed(kind, config))
        (work / ABOUT).write_text(json.dumps({
            "format": 1, "about": dict(about or {}), "samples": to_dict(config),
            "stages": {kind: {"version": stage.version, "key": key(made[kind])} for kind, stage in shelf.asked.items()},
        }, indent=1, ensure_ascii=False), encoding="utf-8")
        if out.exists():
            os.replace(out, old)
        os.replace(work, out)
    finally:
        for folder in (work, old):
            shutil.rmtree(folder, ignore_errors=True)
    return out


def weighed(kind: str, sampled: Sampled) -> bool:
    """Whether a language model's own weights are read: not where the checkpoint has them all, or no source comes."""
    return not (kind == "MaskedLmFolder" or kind == "EncoderFolder" and not sampled.system.reads_source)


def keep(folder: Path, out: Path, weights: bool) -> None:
    """Copy a stage without its texts."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not LEFT.fullmatch(str(name)) and (weights or path.suffix != ".safetensors"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
