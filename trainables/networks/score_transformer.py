"""The score LM's network: a pre-norm transformer told the noise of every token, blind beyond its document.

    h = input(x) + guess(x0_hat)                          x scaled to unit variance by whoever calls
    e = mlp(fourier(noise))                               [B, 1 or L, E]  ; noise = log(sigma) / 4, for each token
    layer:  h = h + attention(film(rms(h), e))            rotary places that restart with each document
            h = h + swiglu(film(rms(h), e))               film(h, e) = (1 + scale(e)) h + shift(e), both 0 at first
    output = linear(rms(h))

    segment  0 0 0 1 1 -1        document of each token, -1 for what is not to be seen
    places   0 1 2 0 1  0        attention     x x x . . .      block diagonal by document number, not by length;
                                               x x x . . .      a token that nothing may see still sees itself,
                                               x x x . . .      so that no row is empty
                                               . . . x x .
So a document's outputs do not depend on what it shares a row with, nor on where in the row it stands.

Shapes: x [B, L, d], segment [B, L] int64.  CDCD, arXiv 2211.15089; FiLM 1709.07871, rotary 2104.09864, RMSNorm
1910.07467, SwiGLU 2002.05202, Fourier features 2006.10739.
"""

import math

import torch
from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config
from trainables.networks.initial import drawn

FREQUENCIES = 64          # of the Fourier features of the noise level


@config
class ScoreTransformer:
    """The size of the network.  `as_published`: noise levels scale by what the network says, not by 1 plus it, and
    neither scale nor shift starts at 0 (and the system tells sigma itself)."""

    layers: int = 8
    width: int = 512
    heads: int = 8
    feedforward: int = 2_048          # of SwiGLU: two matrices up, one down
    told: int = 128                   # features by which layers are told the noise level
    dropout: float = 0.1              # of what attention and feed-forward add
    theta: float = 10_000.0           # base of the rotary wavelengths
    as_published: bool = False

    def __post_init__(self):
        for name in ("layers", "width", "heads", "feedforward", "told"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.heads) or self.width // self.heads < 4:
            raise ValueError("width must be an even multiple of heads, and a head at least 4 wide, "
                             f"not {self.width} for {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.theta <= 1:
            raise ValueError(f"theta must be above 1, not {self.theta}")

    def build(self, features: int, outputs: int, reads_guess: bool) -> "ScoreNetwork":
        """The network, for states of `features` dimensions."""
        return drawn(ScoreNetwork(self, features, outputs, reads_guess))


def fourier(noise: Tensor) -> Tensor:
    """[...] -> [..., 1 + 2 FREQUENCIES]: s, sin(2 pi s w), cos(2 pi s w).

    The published w are normal draws; these are the half-normal's even quantiles, the same everywhere and for ever
    (w and -w say the same).
    """
    u = (torch.arange(FREQUENCIES, dtype=torch.float64, device=noise.device) + 0.5) / FREQUENCIES
    w = (torch.erfinv(u) * math.sqrt(2)).float()
    angle = 2 * math.pi * noise[..., None] * w
    return torch.cat([noise[..., None], angle.sin(), angle.cos()], -1)


def neighbours(segment: Tensor) -> Tensor:
    """[B, L, L] bool: whether the two tokens are of one document, and both to be seen."""
    return (segment[:, :, None] == segment[:, None, :]) & (segment >= 0)[:, :, None]


def places(together: Tensor) -> Tensor:
    """Each token's place in its document: how many of its neighbours [B, L, L] stand before it.   [B, L] int64"""
    return together.tril(-1).sum(-1)


class Film(nn.Module):
    """RMS norm, scaled and shifted by what a token's noise level says."""

    def __init__(self, cfg: ScoreTransformer):
        super().__init__()
        self.norm = nn.RMSNorm(cfg.width, eps=1e-4, elementwise_affine=False)
        self.told = nn.Linear(cfg.told, 2 * cfg.width)
        self.kept = 0.0 if cfg.as_published else 1.0

    def reset_parameters(self) -> None:
        if self.kept:
            nn.init.zeros_(self.told.weight)
            nn.init.zeros_(self.told.bias)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [B, L, D], e [B, 1 or L, E] -> [B, L, D]"""
        scale, shift = self.told(e).chunk(2, -1)
        return torch.addcmul(shift, self.norm(h), scale + self.kept)


class Attention(nn.Module):
    """Multi-head self-attention with rotary places; no biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor, seen: Tensor | None) -> Tensor:
        """x [B, L, D]; angles [B, 1, L, D / heads]; seen [B, 1, L, L] bool, None: everything -> [B, L, D]"""
        B, L, D = x.shape
        parts = self.query_key_value(x).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)      # [3, B, H, L, D/H]
        q, k = apply_rotary_emb(angles, parts[:2]).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, parts[2], attn_mask=seen)
        return self.output(heads.transpose(1, 2).reshape(B, L, D))


class Layer(nn.Module):
    def __init__(self, cfg: ScoreTransformer):
        super().__init__()
        self.attention_film = Film(cfg)
        self.attention = Attention(cfg.width, cfg.heads)
        self.feedforward_film = Film(cfg)
        self.up = nn.Linear(cfg.width, 2 * cfg.feedforward, bias=False)
        self.down = nn.Linear(cfg.feedforward, cfg.width, bias=False)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, h: Tensor, e: Tensor, angles: Tensor, seen: Tensor | None) -> Tensor:
        """h [B, L, D], e [B, 1 or L, E] -> [B, L, D]"""
        h = h + self.dropout(self.attention(self.attention_film(h, e), angles, seen))
        gate, up = self.up(self.feedforward_film(h, e)).chunk(2, -1)
        return h + self.dropout(self.down(F.silu(gate) * up))


class ScoreNetwork(nn.Module):
    """x, noise, segment (and the previous guess) -> [B, L, outputs]."""

    def __init__(self, cfg: ScoreTransformer, features: int, outputs: int, reads_guess: bool):
        super().__init__()
        self.cfg = cfg
        self.enter = nn.Linear(features, cfg.width, bias=False)
        self.enter_guess = nn.Linear(features, cfg.width, bias=False) if reads_guess else None
        self.told = nn.Sequential(nn.Linear(1 + 2 * FREQUENCIES, cfg.told), nn.GELU(),
                                  nn.Linear(cfg.told, cfg.told), nn.GELU())
        # Places are not 0, 1, 2, ... of a row, so the package's cache of them is of no use.
        self.rotary = RotaryEmbedding(cfg.width // cfg.heads, theta=cfg.theta, cache_if_possible=False,   # type: ignore[arg-type]
                                      cache_max_seq_len=1)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.width, eps=1e-4)
        self.leave = nn.Linear(cfg.width, outputs, bias=False)

    def forward(self, x: Tensor, noise: Tensor, segment: Tensor | None = None, guess: Tensor | None = None) -> Tensor:
        """x and guess [B, L, d]; noise [B, 1 or L]; segment [B, L] int64, None: every row is one whole document."""
        h = self.enter(x).float()                              # whatever layers compute in, they add up in float32
        if self.enter_guess is not None and guess is not None:
            h = h + self.enter_guess(guess)
        e = self.told(fourier(noise.float()))
        if segment is None:
            place, seen = torch.arange(x.shape[1], device=x.device)[None], None
        else:
            together = neighbours(segment)
            place = places(together)
            seen = (together | torch.eye(x.shape[1], dtype=torch.bool, device=x.device))[:, None]
        angles = self.rotary(place)[:, None]
        for layer in self.layers:
            h = layer(h, e, angles, seen)
        return self.leave(self.norm(h))
