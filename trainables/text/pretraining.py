"""How each family of encoders learns its encodings: hide a part of a text, and have the model say it.

    BERT      MaskedWords(static)     15 % of the tokens of a text, the same ones every time it is read
    RoBERTa   MaskedWords             15 %, other ones every time
    T5        SpanCorruption          15 % in spans of 3 -> a sentinel each; the decoder says sentinels and spans
    BART      Infilling               30 % in spans of Poisson(3) tokens -> one <mask> each; the decoder says it all

    words      a b c d e f g h        hidden spans: c d, g
    T5         a b <0> e f <1> h      -> <0> c d <1> g <2>
    BART       a b <mask> e f <mask> h      -> a b c d e f g h

Papers: 1810.04805, 1907.11692, 1910.10683, 1910.13461 (without its sentence permutation: our texts are short).  Every
loss is a mean over each text's own targets and then over texts, so it does not depend on how a batch is dealt out.
Shapes: B texts, L positions, K spans at most; a text's start and end tokens are never hidden.
"""

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from trainables.randomness import Rng, seed_of
from trainables.system import Batch


class MaskedWords(nn.Module):
    """Masked language modelling: of the hidden tokens 80 % become the mask, 10 % any word, 10 % stay."""

    head: nn.Module
    ordinary: Tensor

    def __init__(self, model: nn.Module, head: nn.Module, *, mask: int, special: tuple[int, ...], static: bool,
                 share: float = 0.15):
        super().__init__()
        self.model, self.mask, self.static, self.share = model, mask, static, share
        self.head = head                                       # a part of `model`
        ordinary = torch.ones(model.config.vocab_size, dtype=torch.bool)          # type: ignore[union-attr]
        ordinary[list(special)] = False
        self.register_buffer("ordinary", ordinary, persistent=False)

    def loss(self, batch: Batch, progress: float, rng: Rng) -> Mapping[str, Tensor]:
        """Cross-entropy of the hidden tokens, in nats; `accuracy` of saying them."""
        seen, hidden = self.corrupt(batch.ids, batch.mask, rng)
        states = self.model.base_model(seen, attention_mask=batch.mask.long()).last_hidden_state       # type: ignore
        logits = self.head(states[hidden])                                                # [hidden, V]
        target, weight = batch.ids[hidden], _weights(hidden)[hidden]
        loss = (F.cross_entropy(logits.float(), target, reduction="none") * weight).sum()
        return {"loss": loss, "accuracy": ((logits.argmax(-1) == target) * weight).sum().detach()}

    def corrupt(self, ids: Tensor, mask: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """What the model sees [B, L], and which tokens it must say [B, L] bool."""
        uniform = _uniform_of(ids, 3) if self.static else rng.uniform((*ids.shape, 3))
        choice, act, word = uniform.unbind(-1)
        able = mask & self.ordinary[ids]
        count = (self.share * able.sum(1, keepdim=True)).round().clamp(min=1)
        hidden = able & (_rank(choice.masked_fill(~able, 2.0)) < count)
        words = self.ordinary.nonzero().squeeze(1)
        any_word = words[(word * len(words)).long()]
        said = torch.where(act < 0.8, self.mask, torch.where(act < 0.9, any_word, ids))
        return torch.where(hidden, said, ids), hidden


class SpanCorruption(nn.Module):
    """T5's: the decoder says what stood where each sentinel stands."""

    span = 3.0
    sentinels: Tensor

    def __init__(self, model: nn.Module, *, sentinels: tuple[int, ...], pad: int, end: int, share: float = 0.15):
        super().__init__()
        self.model, self.pad, self.end, self.share = model, pad, end, share
        self.register_buffer("sentinels", torch.tensor(sentinels), persistent=False)

    def loss(self, batch: Batch, progress: float, rng: Rng) -> Mapping[str, Tensor]:
        """Cross-entropy of sentinels, hidden words and the end, in nats."""
        seen, target = self.corrupt(batch.ids, batch.mask, rng)
        return _sequence_loss(self.model, seen, target, self.pad)

    def corrupt(self, ids: Tensor, mask: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """What the encoder sees and what the decoder says, padded.   [B, L] and [B, <L]"""
        most = max(1, round(self.share * ids.shape[1]))
        K = max(1, round(most / self.span))
        count = mask.sum(1) - 1                                                           # [B] words, without the end
        hide = torch.minimum((self.share * count).round().clamp(1, most), count).long()
        spans = torch.minimum((hide / self.span).round().clamp(min=1).long(), torch.minimum(hide, count - hide))
        spans = torch.maximum(spans, hide.clamp(max=1))                                   # one word: a text of it alone
        hidden = _pieces(hide, spans, K, rng.uniform(ids.shape))
        kept = _pieces(count - hide, spans, K, rng.uniform(ids.shape))
        span, inside, real = _segments(kept, hidden, ids.shape[1])
        mark = self.sentinels[:K + 1].expand(len(ids), -1)                                # [B, K + 1]
        order = torch.arange(K + 1, device=ids.device)

        seen = _Row(ids.shape[1], self.pad, ids)
        seen.put(ids, torch.arange(ids.shape[1], device=ids.device) - _before(inside) + span, real & ~inside)
        seen.put(mark[:, :K], kept.cumsum(1) + order[:K], order[:K] < spans[:, None])
        seen.put(self.end, (count - hide + spans)[:, None])

        target = _Row(most + K + 2, self.pad, ids)
        target.put(ids, _before(inside) + span + 1, inside)
        target.put(mark, F.pad(hidden.cumsum(1), (1, 0)) + order, order <= spans[:, None])
        target.put(self.end, (hide + spans + 1)[:, None])
        return seen.ids, target.ids


class Infilling(nn.Module):
    """BART's: spans of any length, none included, become one mask each; the decoder says the whole text."""

    span = 3.0
    poisson: Tensor

    def __init__(self, model: nn.Module, *, mask: int, pad: int, end: int, share: float = 0.3):
        super().__init__()
        self.model, self.mask, self.pad, self.end, self.share = model, mask, pad, end, share
        lengths = torch.arange(12.0)
        density = torch.exp(lengths * math.log(self.span) - self.span - torch.lgamma(lengths + 1))
        self.register_buffer("poisson", density.cumsum(0), persistent=False)

    def loss(self, batch: Batch, progress: float, rng: Rng) -> Mapping[str, Tensor]:
        """Cross-entropy of the whole text, in nats."""
        return _sequence_loss(self.model, self.corrupt(batch.ids, batch.mask, rng), batch.ids, self.pad)

    def corrupt(self, ids: Tensor, mask: Tensor, rng: Rng) -> Tensor:
        """What the encoder sees, padded.   [B, L + K]"""
        K = math.ceil(self.share / self.span * ids.shape[1]) + 2
        count = mask.sum(1) - 2                                                           # [B] words, without the ends
        budget = (self.share * count).ceil().long()[:, None]
        uniform, places = rng.uniform(ids.shape)[:, :K], rng.uniform(ids.shape)[:, :K]
        drawn = torch.searchsorted(self.poisson, uniform.contiguous())
        drawn_before = drawn.cumsum(1) - drawn
        active = drawn_before < budget                                                    # [B, K], true first
        hidden = torch.minimum(drawn, budget - drawn_before) * active
        spans, free = active.sum(1), count - hidden.sum(1)
        cuts = torch.where(active, (places * (free + 1)[:, None]).long(), free[:, None]).sort(1).values
        kept = cuts.diff(dim=1, prepend=torch.zeros_like(cuts[:, :1]))                    # before each span
        words = ids[:, 1:]
        span, inside, _ = _segments(kept, hidden, words.shape[1])
        span = torch.minimum(span, spans[:, None])
        position = torch.arange(words.shape[1], device=ids.device)
        order = torch.arange(K, device=ids.device)

        seen = _Row(ids.shape[1] + K, self.pad, ids)
        seen.put(ids[:, :1], torch.zeros_like(ids[:, :1]))
        seen.put(words, 1 + position - _before(inside) + span, (position < count[:, None]) & ~inside)
        seen.put(self.mask, 1 + kept.cumsum(1) + order, active)
        seen.put(self.end, (1 + free + spans)[:, None])
        return seen.ids


# ---------------------------------------------------------------- spans


def _pieces(total: Tensor, parts: Tensor, K: int, uniform: Tensor) -> Tensor:
    """`total` [B] things cut at random into `parts` [B] non-empty pieces: their lengths [B, K].   uniform: [B, L]"""
    thing = torch.arange(uniform.shape[1], device=uniform.device)
    able = (thing > 0) & (thing < total[:, None])
    cut = able & (_rank(uniform.masked_fill(~able, 2.0)) < (parts - 1)[:, None])
    lengths = torch.zeros(len(total), K, dtype=torch.long, device=uniform.device)
    return lengths.scatter_add(1, cut.cumsum(1).clamp(max=K - 1), (thing < total[:, None]).long())


def _segments(kept: Tensor, hidden: Tensor, L: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each position, when kept and hidden stretches [B, K] alternate: how many hidden stretches ended before it,
    whether it is hidden, and whether it lies in any of them.   3 x [B, L]"""
    ends = torch.stack([kept, hidden], 2).flatten(1).cumsum(1)                            # [B, 2K]
    position = torch.arange(L, device=kept.device)
    segment = (ends[:, None, :] <= position[None, :, None]).sum(2)
    real = position < ends[:, -1:]
    return segment // 2, real & (segment % 2 == 1), real


def _before(flag: Tensor) -> Tensor:
    """How many are true before each position.   [B, L]"""
    return flag.long().cumsum(1) - flag.long()


class _Row:
    """Rows of ids that are filled by place; a last column takes what has none."""

    def __init__(self, width: int, pad: int, like: Tensor):
        self._all = like.new_full((len(like), width + 1), pad)

    def put(self, values: Tensor | int, places: Tensor, which: Tensor | None = None) -> None:
        spill = self._all.shape[1] - 1
        places = places if which is None else torch.where(which, places, spill)
        values = values if isinstance(values, Tensor) else torch.full_like(places, values)
        self._all.scatter_(1, places, values)

    @property
    def ids(self) -> Tensor:
        return self._all[:, :-1]


# ---------------------------------------------------------------- losses and chance


def _sequence_loss(model: nn.Module, seen: Tensor, target: Tensor, pad: int) -> dict[str, Tensor]:
    """Teacher-forced cross-entropy of `target` given `seen`, and the accuracy."""
    begin = torch.full_like(target[:, :1], model.config.decoder_start_token_id)           # type: ignore[union-attr]
    said = torch.cat([begin, target[:, :-1]], 1)
    logits = model(input_ids=seen, attention_mask=(seen != pad).long(), decoder_input_ids=said, use_cache=False).logits
    weight = _weights(target != pad)
    losses = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")    # [B, T]
    return {"loss": (losses * weight).sum(), "accuracy": ((logits.argmax(-1) == target) * weight).sum().detach()}


def _weights(which: Tensor) -> Tensor:
    """Weights [B, L] that make a sum the mean over rows of the mean over each row's `which`."""
    return which / which.sum(1, keepdim=True).clamp(min=1) / len(which)


def _rank(values: Tensor) -> Tensor:
    """Each entry's place in its row, smallest first.   [B, L]"""
    return values.argsort(1).argsort(1)


def _uniform_of(ids: Tensor, count: int) -> Tensor:
    """Uniform numbers [B, L, count] that each row of ids [B, L] decides alone."""
    chances = [Generator().manual_seed(seed_of(tuple(row))) for row in ids.tolist()]
    return torch.stack([torch.rand(ids.shape[1], count, generator=chance) for chance in chances]).to(ids.device)
