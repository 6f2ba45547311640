"""Encoders: frozen language models whose hidden states a Gaussian system diffuses.

    corpus -> EncoderFolder(data, Bert())     the stage: config.json, model.safetensors (what encodes, and no more),
                                              tokenizer.json, tokens.json
    FrozenEncoder.load(folder)                .encode(ids [B, L], mask [B, L]) -> [B, L, D], .words, .table [V, D]

A Small encoder is trained by the stage with its family's own objective; a pretrained one is fetched from the hub or
from the store, where `imported(cfg, store)` has put the folders that a config names.  A checkpoint of another family,
a decoder, a folder without weights are refused with one line.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

from trainables.config import ConfigError, config, fields, is_config, join, override
from trainables.randomness import seed_of
from trainables.stages import Context, Stage, Store
from trainables.system import Batch
from trainables.text.checkpoints import (
    check_folder,
    hub_folder,
    keep_folder,
    kept_folder,
    quietly,
    read_about,
)
from trainables.text.corpora import Data, read_rows
from trainables.text.families import (
    T5,
    Bart,
    Bert,
    Contextual,
    Embeddings,
    Encoder,
    Folder,
    Pretrained,
    Roberta,
    Small,
)
from trainables.text.tokenizers import Words, spacing
from trainables.training.train import train

__all__ = ["T5", "Bart", "Bert", "Contextual", "Embeddings", "Encoder", "EncoderFolder", "Folder", "FrozenEncoder",
           "Pretrained", "Roberta", "Small", "contextual", "imported"]

C = TypeVar("C")


def contextual(encoder: Encoder) -> Contextual:
    """The encoder whose folder serves: itself, or the one whose embeddings are taken."""
    return encoder.of if isinstance(encoder, Embeddings) else encoder


@config
class EncoderFolder:
    """The encoder in Hugging Face format.  The data train a Small one, and say where blanks go around punctuation.
    `sources`: a Small one learns from the texts' sources, too."""

    data: Data
    encoder: Contextual
    sources: bool = False

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "encoder"

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def make(self, out: Path, context: Context) -> None:
        texts, weights = self._texts("train", context), self.encoder.weights
        if isinstance(weights, Small):
            self._train(weights, texts, out, context)
        else:
            with fetched(weights, out, context) as folder:
                self._convert(folder, texts, out)

    def _texts(self, split: str, context: Context) -> list[str]:
        rows = read_rows(context.get(self.data), split)
        return [row["text"] for row in rows] + [row.get("source", "") for row in rows if self.sources]

    def _train(self, small: Small, texts: list[str], out: Path, context: Context) -> None:
        tokenizer = self.encoder.tokenizer(texts, small.vocabulary)
        Words.save(tokenizer, out, texts)
        torch.manual_seed(seed_of(small.seed, "initial weights"))
        learner = self.encoder.untrained(small, tokenizer)
        teach(learner, small, texts, self._texts("valid", context), out, context, self.encoder.half)

    def _convert(self, folder: Path, texts: list[str], out: Path) -> None:
        """Keep of a checkpoint what encodes."""
        check_folder(folder, self.encoder.model_type)
        model, tokenizer = load_model(self.encoder, folder), load_tokenizer(folder)
        Words.save(tokenizer, out, published=folder / "tokenizer.json",
                   decoder=spacing(texts) if isinstance(self.encoder, Bert) else None)
        with quietly():
            model.save_pretrained(out)


@contextmanager
def fetched(weights: Pretrained | Folder, out: Path, context: Context) -> Iterator[Path]:
    """The folder of a checkpoint that is not trained here; of a hub's, `out/origin.json` then says which it was."""
    if isinstance(weights, Folder):
        shutil.rmtree(out / "imported", ignore_errors=True)
        yield kept_folder(weights.digest, context.store, out / "imported")
        shutil.rmtree(out / "imported")
    elif names_folder(weights.name):
        raise ConfigError("weights.name", f"{weights.name} is a folder, and `imported` was not asked to read it")
    else:
        folder = hub_folder(weights.name, weights.revision)
        yield folder
        origin = {"name": weights.name, "revision": weights.revision, "commit": folder.name}
        (out / "origin.json").write_text(json.dumps(origin))


def teach(learner: Any, small: Small, texts: list[str], held_out: list[str], out: Path, context: Context,
          half: Callable[[Any], Any] = lambda model: model) -> None:
    """Train a small model with its objective, on texts in the words that `out` has, and save what `half` takes."""
    words = Words.load(out)
    with quietly():
        train(learner, TokenRows.of(texts, words, small.length), small.training, seed=small.seed,
              out=out / "training", context=context, validate=TokenRows.of(held_out, words, small.length))
        half(learner.model.cpu()).save_pretrained(out)
    shutil.rmtree(out / "training")


class TokenRows:
    """Tokenised texts that can be taken by number."""

    def __init__(self, ids: Tensor, mask: Tensor):
        self.ids, self.mask = ids, mask

    @classmethod
    def of(cls, texts: list[str], words: Words, length: int) -> "TokenRows":
        """Cut at `length` tokens, padded to the longest text."""
        ids, mask = words.ids(texts, length)
        longest = int(mask.sum(1).max())
        return cls(ids[:, :longest], mask[:, :longest])

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        return Batch(ids=self.ids[indices], mask=self.mask[indices])

    def size(self) -> int:
        """Bytes of all examples."""
        return self.ids.nbytes + self.mask.nbytes

    def on(self, device: torch.device) -> "TokenRows":
        """The same examples, held by a device."""
        return TokenRows(self.ids.to(device), self.mask.to(device))


class FrozenEncoder:
    """An encoder that is only read: eval mode, no gradient.   V words, D features"""

    def __init__(self, model: nn.Module, words: Words):
        self.model, self.words = model.requires_grad_(False).eval(), words
        self.table: Tensor = model.get_input_embeddings().weight.detach()           # type: ignore[operator]  # [>= V, D]
        self.width = self.table.shape[1]

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "FrozenEncoder":
        """From the folder of an EncoderFolder; which family it is, its config.json says."""
        family = {kind.model_type: kind for kind in get_args(Contextual)}[read_about(folder)["model_type"]]
        return cls(load_model(family(), folder).to(device), Words.load(folder))

    @property
    def positions(self) -> int:
        """How long a text it can read, in tokens."""
        about: Any = self.model.config
        limit = getattr(about, "max_position_embeddings", None)
        if limit is None:                                                           # T5 knows distances, not places
            return 1 << 30
        return limit - (2 if about.model_type == Roberta.model_type else 0)         # its positions start after the pad

    @torch.no_grad()
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states [B, L, D] float32 of ids [B, L], where mask [B, L] says what is text."""
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()


def load_model(encoder: Contextual, folder: Path) -> Any:
    """What encodes, from a checkpoint folder.   ConfigError: a checkpoint that lacks a part of it"""
    with quietly():
        try:
            model, info = encoder.load(folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
                                       dtype=torch.float32)
        except Exception as error:                         # damaged files, sizes that do not fit: many kinds
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ConfigError("weights", f"{folder} cannot be loaded: {reason}") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise ConfigError("weights", f"{folder} lacks {len(lacking)} weights of its {encoder.model_type} encoder, "
                                     f"{lacking[0]} for one")
    return model


def load_tokenizer(folder: Path) -> Any:
    """A checkpoint's fast tokenizer.   ConfigError: it has none"""
    from transformers import AutoTokenizer

    with quietly():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ConfigError("weights", f"the tokenizer in {folder} cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise ConfigError("weights", f"{folder} has a slow tokenizer only")
    return tokenizer


# ---------------------------------------------------------------- folders that the user names


def names_folder(name: str) -> bool:
    """Whether `Pretrained(name)` means a folder of this machine."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).is_dir()


def imported(cfg: C, store: Store) -> C:
    """`cfg` with the content of every encoder folder that it names in the store, and its digest in the name's place.

    ConfigError, with the dotted path, for folders that cannot serve.
    """
    changes = {}
    for path, encoder in _encoders(cfg):
        if isinstance(encoder.weights, Pretrained) and names_folder(encoder.weights.name):
            folder, where = Path(encoder.weights.name).expanduser(), join(path, "weights")
            check_folder(folder, encoder.model_type, join(where, "name"))
            changes[where] = Folder(name=folder.resolve().name, digest=keep_folder(folder, store))
    return override(cfg, changes)


def _encoders(cfg: Any, path: str = "") -> Iterator[tuple[str, Contextual]]:
    """Every contextual encoder inside a config, with its dotted path."""
    if isinstance(cfg, Contextual):
        yield path, cfg
    elif is_config(cfg):
        for name in fields(type(cfg)):
            yield from _encoders(getattr(cfg, name), join(path, name))
