"""TEncDM's denoiser: BERT layers with long additive skips, told the time and its own last guess in every layer.

    h = x_t + position
    first half:   push h;            h = layer(h + time(t) + guess(x0_hat))
    second half:  h = h + pop();     h = layer(h + time(t) + guess(x0_hat))          last pushed, first popped
    output = h                       the last LayerNorm is the output (with norms in front: a linear head)

Shapes: x [B, L, D], t [B, 1] or [B, L], source [B, S, D].  arXiv 2402.19097; the layer is BERT's, 1810.04805.
With 12 layers of width 768: 101,983,488 parameters, 130,350,336 with cross-attention.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config
from trainables.networks.initial import drawn


@config
class Transformer:
    """The size of a denoiser.  `width` equal to the encodings' needs no projections, as published."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    feedforward: int = 3072
    positions: int = 512          # longest text
    dropout: float = 0.1          # of hidden states and of attention
    skips: bool = True            # layer i of the second half sees what the mirrored layer of the first half saw
    norm: Literal["post", "pre"] = "post"      # published: post; "pre" learns faster when steps are few
    time_scale: float = 1.0       # times t, before its sinusoid; published: 1, where neighbouring t look alike
    silent: bool = False          # at first no branch says anything (its last weights are 0): faster when steps are few

    def __post_init__(self):
        for name in ("layers", "width", "heads", "feedforward", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be an even multiple of heads, not {self.width} for {self.heads} heads")
        if self.skips and self.layers % 2:
            raise ValueError(f"skips join two halves, so layers must be even, not {self.layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.time_scale <= 0:
            raise ValueError(f"time_scale must be positive, not {self.time_scale}")

    def build(self, features: int, reads_source: bool = False) -> "Denoiser":
        """The network, for encodings of `features` dimensions."""
        return drawn(Denoiser(self, features, reads_source))


def sinusoid(t: Tensor, width: int) -> Tensor:
    """[..., width]: cos(t f_i) then sin(t f_i), f_i = 10000^(-i / (width / 2))."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / half))
    angle = t.float().unsqueeze(-1) * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class Attention(nn.Module):
    """Multi-head attention of `x` over `memory` (itself, when there is none)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, L, D], memory [B, S, D], mask [B, S] bool of what may be read -> [B, L, D]"""
        memory = x if memory is None else memory
        B, L, D = x.shape
        q = self.query(x).view(B, L, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(memory).view(B, memory.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        return self.output(heads.transpose(1, 2).reshape(B, L, D))


class Layer(nn.Module):
    """A BERT layer: attention, (cross-attention,) feed-forward, each added and then normalised; or normalised first."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, reads_source: bool = False,
                 norm: str = "post"):
        super().__init__()
        self.norm = norm
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.cross = Attention(width, heads, dropout) if reads_source else None
        self.cross_norm = nn.LayerNorm(width, eps=1e-12) if reads_source else None
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, source: Tensor | None = None, source_mask: Tensor | None = None) -> Tensor:
        """h [B, L, D], source [B, S, D] with its mask [B, S] -> [B, L, D]"""
        h = self.residual(h, self.attention_norm, self.attention)
        if self.cross is not None and self.cross_norm is not None:
            if source is None:
                raise ValueError("this network reads a source, and the batch has none")
            cross = self.cross
            h = self.residual(h, self.cross_norm, lambda x: cross(x, source, source_mask))
        return self.residual(h, self.feedforward_norm, lambda x: self.down(F.gelu(self.up(x))))

    def ends(self) -> list[nn.Module]:
        """The last linear layer of each branch."""
        return [self.attention.output, self.down, *([] if self.cross is None else [self.cross.output])]

    def residual(self, h: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm == "pre":
            return h + self.dropout(branch(norm(h)))
        return norm(h + self.dropout(branch(h)))


class Denoiser(nn.Module):
    """x_t, t, the previous guess (and a source) -> the network's output, [B, L, D]."""

    def __init__(self, cfg: Transformer, features: int, reads_source: bool):
        super().__init__()
        self.cfg = cfg
        D = cfg.width
        same = features == D
        self.enter = nn.Identity() if same else nn.Linear(features, D)
        self.enter_guess = nn.Identity() if same else nn.Linear(features, D)
        self.enter_source = nn.Linear(features, D) if reads_source and not same else nn.Identity()
        self.leave = nn.Identity() if same and cfg.norm == "post" else nn.Linear(D, features)
        self.position = nn.Embedding(cfg.positions, D)
        self.time = nn.Sequential(nn.Linear(D, 2 * D), nn.SiLU(), nn.Linear(2 * D, D))
        self.time_in = nn.ModuleList(nn.Linear(D, D) for _ in range(cfg.layers))
        self.guess_in = nn.ModuleList(nn.Linear(D, D) for _ in range(cfg.layers))
        self.layers = nn.ModuleList(
            Layer(D, cfg.heads, cfg.feedforward, cfg.dropout, reads_source, cfg.norm) for _ in range(cfg.layers))

    def reset_parameters(self) -> None:
        if not self.cfg.silent:
            return
        linear = [part for part in self.modules() if isinstance(part, nn.Linear)]
        for part in linear:
            nn.init.zeros_(part.bias)
        branches = [last for layer in self.layers for last in layer.ends()]        # type: ignore[operator]
        for part in (*branches, *self.time_in, *self.guess_in, self.leave):
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.weight)

    def forward(self, x_t: Tensor, t: Tensor, guess: Tensor, source: Tensor | None = None,
                source_mask: Tensor | None = None) -> Tensor:
        """x_t, guess [B, L, D]; t [B, 1] or [B, L]; source [B, S, D] with source_mask [B, S] bool -> [B, L, D]"""
        h = self.enter(x_t) + self.position.weight[: x_t.shape[1]]
        e = self.time(sinusoid(t * self.cfg.time_scale, self.cfg.width).to(h.dtype))               # [B, 1|L, D]
        guess = self.enter_guess(guess)
        source = None if source is None else self.enter_source(source)
        told = at_once(self.time_in, e) + at_once(self.guess_in, guess)                            # [B, L, layers x D]
        half, seen = self.cfg.layers // 2, []
        for i, (layer, words) in enumerate(zip(self.layers, told.chunk(self.cfg.layers, -1), strict=True)):
            if self.cfg.skips and i < half:
                seen.append(h)
            elif self.cfg.skips:
                h = h + seen[self.cfg.layers - 1 - i]
            h = layer(h + words, source, source_mask)
        return self.leave(h)


def at_once(parts: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Linear layers of the same input, side by side [..., layers x D]: one product in place of many small ones."""
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    return F.linear(x, torch.cat([part.weight for part in linear]), torch.cat([part.bias for part in linear]))


class WordReader(nn.Module):
    """TEncDM's decoder: BERT layers without positions or padding mask, then a linear layer to the vocabulary.

    Encodings carry their positions, so the reader needs none.  3 layers of 768 and 28,996 words: 43,561,540 parameters.
    """

    def __init__(self, layers: int, width: int, heads: int, feedforward: int, dropout: float, words: int,
                 reads_source: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, feedforward, dropout, reads_source) for _ in range(layers))
        self.words = nn.Linear(width, words)

    def forward(self, h: Tensor, source: Tensor | None = None, source_mask: Tensor | None = None) -> Tensor:
        """Encodings [B, L, D] -> logits [B, L, V]."""
        for layer in self.layers:
            h = layer(h, source, source_mask)
        return self.words(h)
