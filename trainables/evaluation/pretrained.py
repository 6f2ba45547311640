"""What a Hugging Face model, by hub name or folder, makes of texts: a point for each, or nats for each.

    points(name, texts, pooling, length, device)   [texts, D] float32, rows of length 1
    nats(name, texts, length, device)              Said(nats [texts], tokens [texts], words [texts])

Texts go through in batches of similar length, in float32, and come back in their own order.

A model is loaded for each call, or once for all calls within `held()`: several metrics ask gpt2-large about the same
samples, and its weights are 3 GB.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import ConfigError
from trainables.evaluation.words import words
from trainables.text.checkpoints import quietly

Pooling = Literal["mean", "last"]


class Said(NamedTuple):
    """How likely each text is, and how long."""

    nats: np.ndarray       # [texts] float64, the sum over its tokens
    tokens: np.ndarray     # [texts] int64
    words: np.ndarray      # [texts] int64, of that part of the text which was looked at


_held: ContextVar[dict[tuple[str, str, torch.device], tuple[Any, Any]] | None] = ContextVar("held", default=None)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it, models that were loaded stay, for whoever asks again; at its end, the outermost's, they go."""
    if _held.get() is not None:
        yield
        return
    token = _held.set({})
    try:
        yield
    finally:
        _held.reset(token)


def load(name: str, device: torch.device, speaks: bool = False) -> tuple[Any, Any]:
    """The tokenizer, and the model in eval mode, with the head that says the next token where it `speaks` or has one.

    ConfigError: there is no such thing
    """
    import transformers  # takes seconds, so not before it is needed

    kept = _held.get()
    try:
        with quietly():
            made = transformers.AutoConfig.from_pretrained(name).architectures or ()
            speaks = speaks or any(kind.endswith(("LMHeadModel", "ForCausalLM")) for kind in made)
            kind = "AutoModelForCausalLM" if speaks else "AutoModel"
            if kept is not None and (kind, name, device) in kept:
                return kept[kind, name, device]
            model = getattr(transformers, kind).from_pretrained(name, dtype=torch.float32).eval().to(device)
            loaded = transformers.AutoTokenizer.from_pretrained(name), model
    except Exception as error:                             # the library raises many kinds: its words, in one line
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = "the folder holds no checkpoint" if Path(name).is_dir() else "no such model can be had"
        raise ConfigError("name", f"{name}: {what}: {reason}") from error
    if kept is not None:
        kept[kind, name, device] = loaded
    return loaded


def points(name: str, texts: list[str], pooling: Pooling, length: int, device: torch.device) -> np.ndarray:
    """Last hidden states, mean over tokens or the last token's, scaled to length 1.   [texts, D] float32, read-only"""
    return _points(name, tuple(texts), pooling, length, device)


@functools.lru_cache(maxsize=2)                            # MAUVE and Frechet ask for the same texts
@torch.no_grad()
def _points(name: str, texts: tuple[str, ...], pooling: Pooling, length: int, device: torch.device) -> np.ndarray:
    tokenizer, whole = load(name, device)
    model = whole.get_encoder() if whole.config.is_encoder_decoder else whole.base_model
    encoded = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"] if texts else []
    result = np.zeros((len(texts), model.config.hidden_size), np.float32)      # a text without tokens stays at zero
    for rows, ids, mask in _batches(encoded, device):
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state                # [B, L, D]
        result[rows] = one_point(states, mask, pooling).cpu().numpy()
    result.flags.writeable = False
    return result


def one_point(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """States [B, L, D], of which mask [B, L] is text, as one vector of length 1 for each text.   [B, D]"""
    if pooling == "mean":
        pooled = (states * mask[..., None]).sum(1)
    else:
        pooled = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    return F.normalize(pooled.float(), dim=1)


@torch.no_grad()
def nats(name: str, texts: list[str], length: int, device: torch.device, ends: bool = False) -> Said:
    """-ln P(text) under a causal model, the first token predicted from the begin token.

    Texts are cut at `length` tokens.  With `ends`, one that was not cut has to end: one more token, one more word.
    """
    tokenizer, model = load(name, device, speaks=True)
    last = tokenizer.eos_token_id
    first = last if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    cut = {"truncation": True, "max_length": length + 1}               # the one too many tells that a text was cut
    encoded = tokenizer(texts, add_special_tokens=False, **cut)["input_ids"] if texts else []
    heard = np.array([len(words(text if len(ids) <= length else tokenizer.decode(ids[:length])))
                      for text, ids in zip(texts, encoded, strict=True)], np.int64)
    closed = np.array([ends and len(ids) <= length for ids in encoded], np.int64)
    encoded = [[first, *ids[:length], *[last] * int(closed[row])] for row, ids in enumerate(encoded)]
    total = np.zeros(len(texts))
    for rows, ids, mask in _batches(encoded, device):
        logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()           # [B, L - 1, V]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        total[rows] = (loss * mask[:, 1:]).sum(1).double().cpu().numpy()
    return Said(total, np.array([len(ids) - 1 for ids in encoded], np.int64), heard + closed)


def _batches(encoded: Sequence[list[int]], device: torch.device,
             size: int = 16) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Rows of similar length, their ids [B, L] padded with 0 on the right, and which are real [B, L]; none is empty."""
    order = sorted((row for row in range(len(encoded)) if encoded[row]), key=lambda row: len(encoded[row]))
    for start in range(0, len(order), size):
        rows = order[start:start + size]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(encoded[row]) for row in rows], batch_first=True)
        lengths = torch.tensor([len(encoded[row]) for row in rows])
        yield rows, ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
