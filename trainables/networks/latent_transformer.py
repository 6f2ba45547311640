"""LD4LG's denoiser: a pre-LN transformer with GEGLU, which the time scales and shifts, and a few long connections.

    tau = MLP(sinusoid(clock))                                          clock: 1000 abar(t), or the discrete index
    h   = Linear([x_t ; hint]) + position + Linear(GELU(tau))           hint: the last guess of x_0, or a learned vector
    each layer:   the last `dense` ones:  h = Linear([h ; output of the mirrored early layer])
                  h = h + attend(LN h);   h = h + read(LN h; memory)
                  h = h + (1 + g) LN(GEGLU(LN h)) + b,   (g, b) = Linear(GELU(tau))
    output = Linear(LN h)           zero at the start: so are g and b

What else there is to know comes in one of two ways: "concatenated" (the hint beside x_t, the class added to tau), or
"attended" (both are read by cross-attention: the design of LD4LG's first release and of the annealing thesis).  A
source is always read by cross-attention.  Where something was dropped or is unknown, its learned null vector, or the
null class, stands in its place, row by row.

Shapes: x_t, hint [B, L, D]; t and signal [B, 1] or [B, L]; source [B, S, E]; W = width.      arXiv 2212.09462
With D = 64: 187,928,960 parameters; 4 classes 190,295,168; a source of E = 768 216,850,304, of 2048 217,833,344.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config
from trainables.networks.initial import drawn

BUCKETS, FARTHEST = 32, 128          # of T5's relative positions


@config
class LatentTransformer:
    """The size of a denoiser, and how it is told what it is told."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    positions: int = 64           # most positions of a state
    expansion: int = 4            # of the feed-forward layers and of the time's embedding
    dropout: float = 0.1          # of attention's probabilities and between the feed-forward's two layers
    dense: int = 3                # long connections: from the first layers to the last ones
    scale_shift: bool = True      # the time scales and shifts each feed-forward's output
    relative: bool = False        # T5's relative position bias besides absolute positions
    reads: Literal["concatenated", "attended"] = "concatenated"
    clock: Literal["signal", "index"] = "signal"
    as_published: bool = False    # connections as the published code makes them, see `connections`

    def __post_init__(self):
        for name in ("layers", "width", "heads", "positions", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, and {self.heads} do not divide {self.width}")
        if self.width % 2 or self.width < 4:
            raise ValueError(f"width must be even and at least 4, for the time's sines and cosines, not {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not 0 <= 2 * self.dense <= self.layers:
            raise ValueError(f"dense must be 0 to half of the {self.layers} layers, not {self.dense}")

    def connections(self) -> dict[int, int]:
        """Late layer -> the early layer whose output it merges.

        As published, with 12 layers and 3 connections, 10 and 11 merge the outputs of 9 and 10, which are what they
        have anyway: the stack of outputs is filled again each time something is taken from it.
        """
        late = range(self.layers - self.dense, self.layers)
        if not self.as_published:
            return {layer: self.layers - 1 - layer for layer in late}
        found, stack = {}, []
        for layer in range(self.layers):
            if layer in late:
                found[layer] = stack.pop()
            if len(stack) < self.dense:
                stack.append(layer)
        return found

    def build(self, features: int, *, hint: bool = True, classes: int = 0, source: int = 0) -> "LatentDenoiser":
        """The network for states of `features` dimensions; `hint`: whether it sees its last guess; classes: how many
        (0: it is told none); source: the width of what it reads (0: nothing)."""
        return drawn(LatentDenoiser(self, features, hint, classes, source))


def sinusoid(clock: Tensor, width: int) -> Tensor:
    """[..., width]: sin(clock f_i) then cos(clock f_i), f_i = 10000^(-i / (width / 2 - 1))."""
    half = width // 2
    step = -math.log(10_000.0) / max(half - 1, 1)
    frequency = torch.exp(torch.arange(half, device=clock.device, dtype=torch.float64) * step)
    angle = clock.double().unsqueeze(-1) * frequency                     # a clock of 1000 would cost float32 its digits
    return torch.cat([angle.sin(), angle.cos()], -1).float()


class LatentDenoiser(nn.Module):
    """x_t, the time, and what else is known -> the network's output, [B, L, D]."""

    def __init__(self, cfg: LatentTransformer, features: int, hint: bool, classes: int, source: int):
        super().__init__()
        self.cfg, self.hints, self.classes, self.sources = cfg, hint, classes, source > 0
        self.connections = cfg.connections()
        W, wide = cfg.width, cfg.width * cfg.expansion
        attended = cfg.reads == "attended"

        self.time = nn.Sequential(nn.Linear(W, wide), nn.GELU(), nn.Linear(wide, wide))
        self.time_in = nn.Sequential(nn.GELU(), nn.Linear(wide, W))
        self.enter = nn.Linear(features * (2 if hint and not attended else 1), W)
        self.position = nn.Embedding(cfg.positions, W)
        self.relative = RelativeBias(cfg.heads, W // cfg.heads) if cfg.relative else None
        if hint:
            self.no_hint = nn.Parameter(torch.empty(W if attended else features))
            self.enter_hint = nn.Linear(features, W) if attended else nn.Identity()
        if classes:
            self.label = nn.Embedding(classes + 1, W)                    # the last one is the null class
            self.enter_label = nn.Identity() if attended else nn.Linear(W, wide)
        if source:
            self.enter_source = nn.Linear(source, W)
            self.no_source = nn.Parameter(torch.empty(W))
        crosses = bool(source) or attended and (hint or classes > 0)
        self.layers = nn.ModuleList(LatentLayer(cfg, crosses) for _ in range(cfg.layers))
        self.merge = nn.ModuleDict({str(layer): nn.Linear(2 * W, W) for layer in self.connections})
        self.last = nn.LayerNorm(W)
        self.leave = nn.Linear(W, features)

    def reset_parameters(self) -> None:
        for nothing in (self.no_hint if self.hints else None, self.no_source if self.sources else None):
            if nothing is not None:
                nn.init.normal_(nothing, std=0.02)
        zero(self.leave)

    def forward(self, x_t: Tensor, t: Tensor, signal: Tensor, mask: Tensor | None = None, *,
                hint: Tensor | None = None, hinted: Tensor | None = None, label: Tensor | None = None,
                source: Tensor | None = None, source_mask: Tensor | None = None,
                read: Tensor | None = None) -> Tensor:
        """The output, [B, L, D].

        x_t [B, L, D], t and signal power [B, 1 or L], mask [B, L] bool of the valid positions (all, if None);
        hint [B, L, D], and hinted [B] bool: which rows may see it (all); label [B], `classes` being the null class
        (all null); source [B, S, E] with source_mask [B, S], and read [B] bool: which rows may read it (all)
        """
        B, L, _ = x_t.shape
        mask = torch.ones(B, L, dtype=torch.bool, device=x_t.device) if mask is None else mask
        clock = 1000 * signal if self.cfg.clock == "signal" else 1000 * t - 1
        tau = self.time(sinusoid(clock, self.cfg.width).to(x_t.dtype))                     # [B, 1|L, wide]
        memory: list[tuple[Tensor, Tensor]] = []                                           # vectors and their masks

        if self.sources:
            seen = None if source is None else self.enter_source(source)
            memory += self.or_nothing(seen, source_mask, read, self.no_source, B)
        if self.hints and self.cfg.reads == "attended":
            seen = None if hint is None else self.enter_hint(hint)
            memory += self.or_nothing(seen, mask, hinted, self.no_hint, B)
        elif self.hints:
            shown = self.no_hint.to(x_t.dtype).expand_as(x_t)
            if hint is not None:
                shown = hint if hinted is None else torch.where(hinted[:, None, None], hint, shown)
            x_t = torch.cat([x_t, shown], -1)
        if self.classes:
            label = torch.full((B,), self.classes, device=x_t.device) if label is None else label
            said = self.enter_label(self.label(label))[:, None, :]                         # [B, 1, wide | W]
            if self.cfg.reads == "attended":
                memory.append((said, torch.ones(B, 1, dtype=torch.bool, device=x_t.device)))
            else:
                tau = tau + said

        h = self.enter(x_t) + self.position.weight[:L] * self.cfg.width ** -0.5 + self.time_in(tau)
        among = allowed(mask, None if self.relative is None else self.relative(L))
        recalled, readable = None, None
        if memory:
            recalled = torch.cat([vectors.to(h.dtype) for vectors, _ in memory], 1)
            readable = allowed(torch.cat([which for _, which in memory], 1))
        outputs: dict[int, Tensor] = {}
        for i, layer in enumerate(self.layers):
            if i in self.connections:
                h = self.merge[str(i)](torch.cat([h, outputs[self.connections[i]]], -1))
            h = layer(h, tau, among, recalled, readable)
            if i in self.connections.values():
                outputs[i] = h
        return self.leave(self.last(h))

    @staticmethod
    def or_nothing(vectors: Tensor | None, mask: Tensor | None, which: Tensor | None, nothing: Tensor,
                   B: int) -> list[tuple[Tensor, Tensor]]:
        """Of each row either its vectors [B, S, W], under their mask, or the one null vector."""
        null = nothing.expand(B, 1, -1)
        if vectors is None:
            return [(null, torch.ones(B, 1, dtype=torch.bool, device=nothing.device))]
        real = torch.ones(vectors.shape[:2], dtype=torch.bool, device=nothing.device) if mask is None else mask
        if which is None:
            return [(vectors, real)]
        return [(vectors, real & which[:, None]), (null, ~which[:, None])]


class LatentLayer(nn.Module):
    """Attention, (cross-attention,) and a gated feed-forward that the time scales and shifts."""

    def __init__(self, cfg: LatentTransformer, crosses: bool):
        super().__init__()
        W, wide = cfg.width, cfg.width * cfg.expansion
        self.attention_norm, self.attention = nn.LayerNorm(W), Attention(W, cfg.heads, cfg.dropout)
        self.cross_norm = nn.LayerNorm(W) if crosses else None
        self.cross = Attention(W, cfg.heads, cfg.dropout) if crosses else None
        self.norm, self.up, self.down = nn.LayerNorm(W), nn.Linear(W, 2 * wide), nn.Linear(wide, W)
        self.after = nn.LayerNorm(W) if cfg.scale_shift else None
        self.scale_shift = nn.Linear(wide, 2 * W) if cfg.scale_shift else None
        self.dropout = nn.Dropout(cfg.dropout)

    def reset_parameters(self) -> None:
        if self.scale_shift is not None:
            zero(self.scale_shift)

    def forward(self, h: Tensor, tau: Tensor, among: Tensor, memory: Tensor | None, readable: Tensor | None) -> Tensor:
        """h [B, L, W], tau [B, 1|L, wide], memory [B, M, W]; among and readable as `allowed` makes them."""
        h = h + self.attention(self.attention_norm(h), None, among)
        if self.cross is not None and self.cross_norm is not None:
            h = h + self.cross(self.cross_norm(h), memory, readable)
        value, gate = self.up(self.norm(h)).chunk(2, -1)
        u = self.down(self.dropout(value * F.gelu(gate)))
        if self.after is not None and self.scale_shift is not None:
            g, b = self.scale_shift(F.gelu(tau)).chunk(2, -1)
            u = self.after(u) * (1 + g) + b
        return h + u


class Attention(nn.Module):
    """Multi-head attention of x over `memory` (itself, when there is none), without biases."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None, seen: Tensor) -> Tensor:
        k, v = self.key_value(x if memory is None else memory).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), k, v))
        seen = seen if seen.dtype == torch.bool else seen.to(q.dtype)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen,
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.output(heads.transpose(1, 2).flatten(2))


class RelativeBias(nn.Module):
    """T5's: a learned number per head for how far a key lies before or behind, in buckets.   arXiv 1910.10683"""

    def __init__(self, heads: int, head: int):
        super().__init__()
        self.bias, self.scale = nn.Embedding(BUCKETS, heads), head ** 0.5

    def forward(self, L: int) -> Tensor:
        """[1, heads, L, L]"""
        place = torch.arange(L, device=self.bias.weight.device)
        return self.bias(bucket(place[None, :] - place[:, None])).permute(2, 0, 1)[None] * self.scale


def bucket(distance: Tensor) -> Tensor:
    """Each sign has half of the buckets: one for each small distance, the others spaced evenly in its logarithm."""
    half = BUCKETS // 2
    exact = half // 2
    far = distance.abs()
    logarithmic = exact + ((far.clamp(min=1).float() / exact).log() / math.log(FARTHEST / exact)
                           * (half - exact)).long().clamp(max=half - exact - 1)
    return torch.where(far < exact, far, logarithmic) + half * (distance > 0)


def allowed(mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """mask [B, S] of the keys that may be seen, as attention takes it: [B, 1, 1, S] bool, or added to a bias."""
    keys = mask[:, None, None, :]
    return keys if bias is None else bias.masked_fill(~keys, -torch.inf)


def zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
