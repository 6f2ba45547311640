"""Attention as the scripts write it: products, a softmax, dropout of the probabilities."""

import torch
from torch import Tensor, nn


class EagerAttention(nn.Module):
    """Multi-head attention with a projection each for queries, keys and values; `keeps` copies that nobody reads."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool = True, keeps: bool = False):
        super().__init__()
        self.heads, self.keeps = heads, keeps
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, turn: Tensor | None = None) -> Tensor:
        """x [B, L, D], mask [B, L] or [B, L, L] bool of what may be seen, turn [L, D / heads] angles"""
        B, L, D = x.shape
        q, k, v = (part(x).view(B, L, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        if turn is not None:
            q, k = (turned(part, turn) for part in (q, k))
        scores = q @ k.transpose(-1, -2) / (D // self.heads) ** 0.5
        kept = [scores.clone()] if self.keeps else []
        if mask is not None:
            seen = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        shares = scores.softmax(-1)
        kept += [shares.clone()] if self.keeps else []
        heads = self.dropout(shares).to(v.dtype) @ v
        return self.output(heads.transpose(1, 2).reshape(B, L, D))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary places: x cos + rotate(x) sin."""
    a, b = x.chunk(2, -1)
    return (x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()).to(x.dtype)
