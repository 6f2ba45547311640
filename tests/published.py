"""Published shapes without published weights: texts and checkpoints made on the spot, for what only their sizes decide.

    texts(path, 4_096)                       a .txt file: made-up words, as often as words are (Zipf), 40 to 60 a text
    checkpoint(folder, Bert(), PAPER)        in Hugging Face format: a tokenizer of these texts, weights at random
    trial("tencdm", "paper", folder, store)  the paper's recipe on them: real stages, real caches, nothing downloaded

How long a training step takes does not depend on what the weights are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.config import override
from trainables.diffusionbert import diffusionbert
from trainables.ld4lg import ld4lg
from trainables.ld4lg_annealed import ld4lg_annealed
from trainables.scorelm import scorelm
from trainables.stages import Store
from trainables.tencdm import tencdm
from trainables.text.checkpoints import quietly
from trainables.text.corpora import Imported, import_files
from trainables.text.encoders import Bart, Bert, Pretrained
from trainables.trial import Trial

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


@dataclass(frozen=True)
class Shape:
    """How large a language model is, and the texts it is to read."""

    layers: int
    width: int
    heads: int
    feedforward: int
    vocabulary: dict[str, int]
    texts: int
    words: tuple[int, int] = (40, 60)


PAPER = Shape(12, 768, 12, 3072, {"cased": 28_996, "uncased": 30_522, "bart": 50_265}, texts=4_096)
SMALL = Shape(4, 256, 4, 1024, {"cased": 4_000, "uncased": 4_000, "bart": 4_000}, texts=400)
TOY = Shape(2, 64, 2, 128, {"cased": 1_000, "uncased": 1_000, "bart": 1_000}, texts=200, words=(8, 14))
SHAPES = {"paper": PAPER, "small": SMALL, "toy": TOY}
LENGTHS = {"roc": (40, 60), "e2e": (12, 36), "qqp": (7, 18)}              # words of a text, as those corpora have them


def texts(path: Path, shape: Shape, seed: int = 0, different: int = 6_000) -> Path:
    """A file of texts, one a line, all different."""
    rng = np.random.default_rng(seed)
    words = sorted({"".join(rng.choice(SYLLABLES, rng.integers(1, 5))) for _ in range(2 * different)})[:different]
    rng.shuffle(words)
    shares = 1 / np.arange(3, len(words) + 3)
    counts = rng.integers(shape.words[0], shape.words[1] + 1, shape.texts)
    drawn = rng.choice(len(words), counts.sum(), p=shares / shares.sum())
    ends = counts.cumsum()
    path.write_text("\n".join(" ".join(words[i] for i in drawn[end - count:end])
                              for count, end in zip(counts, ends, strict=True)), encoding="utf-8")
    return path


def checkpoint(folder: Path, kind: str, shape: Shape, lines: list[str]) -> Path:
    """A whole model of that shape in `folder`, with a tokenizer of these lines.   kind: cased, uncased or bart"""
    from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM

    if folder.exists():
        return folder
    family, V = (Bart() if kind == "bart" else Bert()), shape.vocabulary[kind]
    tokenizer = family.tokenizer(lines, min(V, 16_000))
    torch.manual_seed(0)
    ids: dict[str, Any] = {f"{name}_token_id": value for name in ("pad", "bos", "eos")
                           if (value := getattr(tokenizer, f"{name}_token_id")) is not None}
    if kind == "bart":
        half = shape.layers // 2
        model = BartForConditionalGeneration(BartConfig(
            vocab_size=V, d_model=shape.width, encoder_layers=half, decoder_layers=half,
            encoder_attention_heads=shape.heads, decoder_attention_heads=shape.heads,
            encoder_ffn_dim=shape.feedforward, decoder_ffn_dim=shape.feedforward, max_position_embeddings=1_024,
            decoder_start_token_id=ids["eos_token_id"], forced_eos_token_id=ids["eos_token_id"], **ids))
    else:
        model = BertForMaskedLM(BertConfig(
            vocab_size=V, hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            intermediate_size=shape.feedforward, **ids))
    with quietly():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trial(system: str, size: str, folder: Path, store: Store, lengths: str = "", count: int = 0) -> Trial:
    """The recipe of a system on made-up texts and a made-up language model, ready to be built.

    lengths: of which corpus the texts' lengths are, count: how many texts; empty and 0 are as the size has them
    """
    shape = SHAPES[size]
    shape = replace(shape, words=LENGTHS[lengths] if lengths else shape.words, texts=count or shape.texts)
    folder.mkdir(parents=True, exist_ok=True)
    path = texts(folder / "texts.txt", shape)
    data, lines = import_files(str(path), None, store), path.read_text(encoding="utf-8").splitlines()

    def weights(kind: str) -> Pretrained:
        return Pretrained(name=str(checkpoint(folder / kind, kind, shape, lines)))

    return RECIPES[system](data, shape, weights).settled(store)


Weights = Callable[[str], Pretrained]


def _tencdm(data: Imported, shape: Shape, weights: Weights) -> Trial:
    changes: dict[str, Any] = {"system.encoder.weights": weights("cased"), "system.decoder.training.steps": 1}
    if shape.width != PAPER.width:
        changes |= {f"system.network.{name}": getattr(shape, name)
                    for name in ("layers", "width", "heads", "feedforward")} | {
            "system.decoder.heads": shape.heads, "system.decoder.feedforward": shape.feedforward}
    return override(tencdm(data), changes)


def _ld4lg(data: Imported, shape: Shape, weights: Weights) -> Trial:
    changes: dict[str, Any] = {
        "system.representation.model": Bart(weights=weights("bart")),
        # The compressor's training is not what is measured: two steps leave one to load.
        "system.representation.training.training.steps": 2, "system.representation.training.training.batch": 8,
        "system.representation.training.training.validate_on": 8,
        "system.representation.training.training.schedule.warmup": 0}
    if shape.width != PAPER.width:
        changes |= {"system.network.layers": shape.layers, "system.network.width": shape.width,
                    "system.network.heads": shape.heads, "system.network.dense": min(3, shape.layers // 2),
                    "system.representation.perceiver.heads": shape.heads}
    return override(ld4lg(data), changes)


def _ld4lg_annealed(data: Imported, shape: Shape, weights: Weights) -> Trial:
    changes: dict[str, Any] = {"system.representation.model": Bart(weights=weights("bart"))}
    if shape.width != PAPER.width:
        changes |= {"system.network.layers": shape.layers, "system.network.width": shape.width,
                    "system.network.heads": shape.heads, "system.network.dense": min(3, shape.layers // 2)}
    return override(ld4lg_annealed(data), changes)


def _diffusionbert(data: Imported, shape: Shape, weights: Weights) -> Trial:
    return override(diffusionbert(data), {"system.lm": Bert(weights=weights("uncased"))})


def _scorelm(data: Imported, shape: Shape, weights: Weights) -> Trial:
    changes: dict[str, Any] = {"system.tokenizer.vocabulary": 8_000}
    if shape.width != PAPER.width:
        changes |= {"system.network.layers": shape.layers, "system.network.width": shape.width,
                    "system.network.heads": shape.heads, "system.network.feedforward": shape.feedforward,
                    "system.tokenizer.vocabulary": 2_000}
    return override(scorelm(data), changes)


RECIPES = {"tencdm": _tencdm, "ld4lg": _ld4lg, "ld4lg_annealed": _ld4lg_annealed, "diffusionbert": _diffusionbert,
           "scorelm": _scorelm}
