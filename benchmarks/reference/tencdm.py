"""TEncDM's step as released (803a322): every batch is encoded anew; one coin per batch decides on self-conditioning."""

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.attention import EagerAttention
from reference.loop import Clock, Loop


class Block(nn.Module):
    """A BERT layer, eager."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.attention, self.first, self.second = EagerAttention(width, heads, dropout), nn.LayerNorm(width), \
            nn.LayerNorm(width)
        self.up, self.down, self.dropout = nn.Linear(width, feedforward), nn.Linear(feedforward, width), \
            nn.Dropout(dropout)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        h = self.first(h + self.dropout(self.attention(h, mask)))
        return self.second(h + self.dropout(self.down(F.gelu(self.up(h)))))


class Denoiser(nn.Module):
    """BERT layers with long skips; time and the last guess enter every layer."""

    def __init__(self, layers: int, width: int, heads: int, feedforward: int, positions: int = 512):
        super().__init__()
        self.width = width
        self.position = nn.Embedding(positions, width)
        self.time = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.time_in = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.guess_in = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.layers = nn.ModuleList(Block(width, heads, feedforward, 0.1) for _ in range(layers))

    def forward(self, x: Tensor, t: Tensor, guess: Tensor, mask: Tensor) -> Tensor:
        half = self.width // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=x.device) / half)
        angle = t[:, None] * frequency
        e = self.time(torch.cat([angle.cos(), angle.sin()], -1))
        h = x + self.position(torch.arange(x.shape[1], device=x.device))
        kept: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if i < len(self.layers) // 2:
                kept.append(h)
            else:
                h = h + kept.pop()
            h = layer(h + self.time_in[i](e)[:, None] + self.guess_in[i](guess), mask)
        return h


class Step:
    """Encoder, denoiser, loop.   encoder: a transformers model with eager attention; positions are not masked away"""

    def __init__(self, encoder: nn.Module, shape: tuple[int, int, int, int], clock: Clock, device: torch.device,
                 numbers: torch.dtype):
        self.encoder, self.clock = encoder.to(device).eval().requires_grad_(False), clock
        self.network = Denoiser(*shape).to(device).train()
        self.loop = Loop(self.network, self.network, clock, numbers=numbers)
        self.mean, self.std = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)

    def __call__(self, ids: Tensor, mask: Tensor, coin: bool | None = None) -> float:
        """ids, mask [B, L] on the host, as a loader leaves them; coin: self-conditioning, tossed where not said"""
        coin = random.random() < 0.5 if coin is None else coin
        device = self.mean.device
        ids, mask = ids.to(device), mask.to(device)
        return self.loop.step(lambda: self.loss(ids, mask, coin))

    def loss(self, ids: Tensor, mask: Tensor, coin: bool) -> Tensor:
        with self.clock.part("encoder"), torch.no_grad():
            x0 = (self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state - self.mean) / self.std
            x0 = torch.where(mask[..., None], x0, 0.0)
        with self.clock.part("rest"):
            t = torch.rand(len(ids), device=x0.device)
            alpha = 1 / (1 + 81 * torch.tan(t * math.pi / 2) ** 2).sqrt()
            noise = torch.randn_like(x0)
            x_t = alpha[:, None, None] * x0 + (1 - alpha**2).clamp(min=0).sqrt()[:, None, None] * noise
            guess, everywhere = torch.zeros_like(x0), torch.ones_like(mask)
        if coin:
            with self.clock.part("self-conditioning"), torch.no_grad():
                guess = self.network(x_t, t, guess, everywhere)
        with self.clock.part("forward"):
            output = self.network(x_t, t, guess, everywhere)
        with self.clock.part("rest"):
            self.statistics(x0, output, mask)
            return (output.float() - x0).square().mean()

    @torch.no_grad()
    def statistics(self, x0: Tensor, output: Tensor, mask: Tensor) -> list[float]:
        """Four masked means of norms and deviations, each looked at."""
        real = mask[..., None]
        count = mask.sum()
        return [float(((value * real).sum() / count).item()) for value in
                (x0.norm(dim=-1, keepdim=True), output.norm(dim=-1, keepdim=True), x0.std(-1, keepdim=True),
                 output.std(-1, keepdim=True))]
