"""LD4LG's step as released (0bf9381): encoder and compressor at every step, a loss cut row by row in Python, and an
average of everything, the frozen encoder included, which the script registers as a context encoder."""

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.attention import EagerAttention
from reference.loop import Clock, Loop


class Block(nn.Module):
    """Pre-LN attention, which keeps its scores, and a GEGLU that the time scales and shifts."""

    def __init__(self, width: int, heads: int, dropout: float = 0.1):
        super().__init__()
        wide = 4 * width
        self.first, self.second, self.after = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = EagerAttention(width, heads, dropout, bias=False, keeps=True)
        self.up, self.down, self.dropout = nn.Linear(width, 2 * wide), nn.Linear(wide, width), nn.Dropout(dropout)
        self.scale_shift = nn.Sequential(nn.GELU(), nn.Linear(wide, 2 * width))

    def forward(self, h: Tensor, tau: Tensor, mask: Tensor) -> Tensor:
        h = h + self.attention(self.first(h), mask)
        value, gate = self.up(self.second(h)).chunk(2, -1)
        scale, shift = self.scale_shift(tau)[:, None].chunk(2, -1)
        return h + self.after(self.down(self.dropout(value * F.gelu(gate)))) * (1 + scale) + shift


class Denoiser(nn.Module):
    """Layers, of which the last `dense` also read early ones."""

    def __init__(self, layers: int, width: int, heads: int, features: int, positions: int = 64, dense: int = 3):
        super().__init__()
        self.width, self.dense, wide = width, dense, 4 * width
        self.time = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, wide))
        self.time_in = nn.Sequential(nn.GELU(), nn.Linear(wide, width))
        self.enter, self.position = nn.Linear(2 * features, width), nn.Embedding(positions, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.merge = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(dense))
        self.last, self.leave = nn.LayerNorm(width), nn.Linear(width, features)

    def forward(self, x: Tensor, abar: Tensor, hint: Tensor, mask: Tensor) -> Tensor:
        half = self.width // 2
        angle = 1000 * abar[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, device=x.device) / half)
        tau = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        h = self.enter(torch.cat([x, hint], -1)) + self.time_in(tau)[:, None]
        h = h + self.position(torch.arange(x.shape[1], device=x.device))
        kept: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            late = i - (len(self.layers) - self.dense)
            if late >= 0:
                h = self.merge[late](torch.cat([h, kept.pop()], -1))
            h = layer(h, tau, mask)
            if i < self.dense:
                kept.append(h)
        return self.leave(self.last(h))


class Step:
    """A frozen encoder and compressor, the denoiser, the loop."""

    def __init__(self, encoder: nn.Module, compressor: nn.Module, shape: tuple[int, int, int, int], clock: Clock,
                 device: torch.device, numbers: torch.dtype, dense: int):
        self.encoder, self.compressor = (part.to(device).eval().requires_grad_(False)
                                         for part in (encoder, compressor))
        self.network, self.clock, self.device = Denoiser(*shape, dense=dense).to(device).train(), clock, device
        averaged = nn.ModuleList([self.network, self.encoder])
        self.loop = Loop(self.network, averaged, clock, numbers=numbers)

    def __call__(self, ids: Tensor, mask: Tensor, coin: bool | None = None) -> float:
        coin = random.random() < 0.5 if coin is None else coin
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.loop.step(lambda: self.loss(ids, mask, coin))

    def loss(self, ids: Tensor, mask: Tensor, coin: bool) -> Tensor:
        with self.clock.part("encoder"), torch.no_grad():
            h = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            x0 = self.compressor(h.float(), mask).float()                                    # [B, latents, D]
        with self.clock.part("rest"):
            seen = torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device)
            t = torch.rand(len(ids), device=x0.device)
            alpha, sigma = (t * math.pi / 2).cos()[:, None, None], (t * math.pi / 2).sin()[:, None, None]
            noise = torch.randn_like(x0)
            x_t, hint, abar = alpha * x0 + sigma * noise, torch.zeros_like(x0), alpha[:, 0, 0] ** 2
        if coin:
            with self.clock.part("self-conditioning"), torch.no_grad():
                hint = alpha * x_t - sigma * self.network(x_t, abar, hint, seen)
        with self.clock.part("forward"):
            output = self.network(x_t, abar, hint, seen)
        with self.clock.part("rest"):
            errors = (output.float() - (alpha * noise - sigma * x0)).square()
            return torch.stack([errors[i][:int(torch.sum(seen[i]))].mean() for i in range(len(errors))]).mean()
