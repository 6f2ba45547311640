"""The score LM's step as released (480dccc): padded rows, every pair of words' cosine at every step, two averages."""

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.attention import EagerAttention
from reference.loop import Clock, Loop


class Block(nn.Module):
    """RMS norms that the noise level scales and shifts, eager attention with rotary places, SwiGLU."""

    def __init__(self, width: int, heads: int, feedforward: int, told: int):
        super().__init__()
        self.first, self.second = (nn.RMSNorm(width, elementwise_affine=False) for _ in range(2))
        self.first_film, self.second_film = nn.Linear(told, 2 * width), nn.Linear(told, 2 * width)
        self.attention = EagerAttention(width, heads, 0.0, bias=False)
        self.up, self.down = nn.Linear(width, 2 * feedforward, bias=False), nn.Linear(feedforward, width, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, h: Tensor, e: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        scale, shift = self.first_film(e).chunk(2, -1)
        h = h + self.dropout(self.attention(self.first(h) * scale + shift, mask, turn))
        scale, shift = self.second_film(e).chunk(2, -1)
        gate, up = self.up(self.second(h) * scale + shift).chunk(2, -1)
        return h + self.dropout(self.down(F.silu(gate) * up))


class Model(nn.Module):
    """Word vectors of one norm, and the network that guesses the words."""

    def __init__(self, layers: int, width: int, heads: int, feedforward: int, words: int, embedding: int = 128):
        super().__init__()
        self.table = nn.Parameter(torch.randn(words, embedding) * 0.001)
        self.enter, self.leave = nn.Linear(embedding, width, bias=False), nn.Linear(width, words, bias=False)
        self.told = nn.Sequential(nn.Linear(129, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU())
        self.frequency: Tensor
        self.turn: Tensor
        self.register_buffer("frequency", torch.randn(64))
        self.register_buffer("turn", 1e4 ** (-torch.arange(width // heads // 2) / (width // heads // 2)).repeat(2))
        self.layers = nn.ModuleList(Block(width, heads, feedforward, 128) for _ in range(layers))
        self.last = nn.RMSNorm(width)

    def forward(self, x: Tensor, sigma: Tensor, mask: Tensor) -> Tensor:
        angle = 2 * torch.pi * sigma[..., None] * self.frequency
        e = self.told(torch.cat([sigma[..., None], angle.sin(), angle.cos()], -1))
        turn = torch.arange(x.shape[1], device=x.device)[:, None] * self.turn
        h = self.enter(x)
        for layer in self.layers:
            h = layer(h, e, mask, turn)
        return self.leave(self.last(h))


class Step:
    """Model and loop."""

    def __init__(self, shape: tuple[int, int, int, int], words: int, clock: Clock, device: torch.device,
                 numbers: torch.dtype):
        self.model, self.clock, self.device = Model(*shape, words).to(device).train(), clock, device
        self.loop = Loop(self.model, self.model, clock, lr=1e-4, averages=2, norms_one_by_one=True, numbers=numbers)

    def __call__(self, ids: Tensor, mask: Tensor, coin: bool | None = None) -> float:
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.loop.step(lambda: self.loss(ids, mask))

    def loss(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self.clock.part("rest"):
            table = F.normalize(self.model.table, dim=-1) * self.model.table.shape[1] ** 0.5
            x0, level = F.embedding(ids, table), random.random()
            sigma = torch.full(ids.shape, 1.0 + 9.0 * level, device=ids.device)
            x_t = (x0 + sigma[..., None] * torch.randn_like(x0)) / (1 + sigma[..., None] ** 2).sqrt()
        with self.clock.part("forward"):
            logits = self.model(x_t, sigma, mask)
            loss = (F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none").view_as(ids)
                    * mask).sum() / mask.sum()
        with self.clock.part("anisotropy"), torch.no_grad():
            unit = F.normalize(self.model.table, dim=-1)
            cosine = unit @ unit.T
            ((cosine.sum() - cosine.diagonal().sum()) / (len(unit) * (len(unit) - 1))).item()
        return loss
