"""LD4LG's language autoencoder: a Perceiver that says a text in a few short vectors, and its inverse.

    h [B, L, E] --compress--> Z [B, latents, width] --expand--> h_hat [B, latents, E]

    compress   X = h + position;   Z = learned queries
               each layer:  x = LN(X), z = LN(Z);   Z = Z + attend(z; [x ; z]);   Z = Z + feedforward(LN Z)
               Z = LN(Z), each vector put to the norm sqrt(width)
    expand     Linear(Z) + position, through ordinary pre-LN layers, LN:   what a decoder reads in the encoder's place

Queries and keys are RMS-normalised per head, in float32.  A text is read under its mask, and the latents have no
padding, so a system that diffuses Z needs no lengths.  E is the language model's width.
arXiv 2212.09462; Perceiver 2103.03206
For E = 768, 32 latents of 64 and texts of 64: 25,618,432 parameters = 4,285,312 + 21,333,120.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config


@config
class Perceiver:
    """The size of the compressor and of its inverse."""

    latents: int = 32
    width: int = 64               # of a latent
    layers: int = 3               # of each half
    heads: int = 12               # they share the language model's width
    expansion: int = 4            # of the feed-forward layers
    norm: bool = True             # every latent has the norm sqrt(width)
    deviation: float = 0.02       # of the initial weights, as BART's; 0: PyTorch's own, as published for T5

    def __post_init__(self):
        for name in ("latents", "width", "layers", "heads", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.norm and self.width < 2:
            raise ValueError("width must be at least 2: of a single number with a fixed norm only the sign is left")
        if self.deviation < 0:
            raise ValueError(f"deviation must be 0 or more, not {self.deviation}")

    def build(self, features: int, positions: int) -> "PerceiverAutoencoder":
        """The network, for encodings of `features` dimensions of texts of at most `positions` tokens.

        ValueError: the features do not split into the heads
        """
        if features % self.heads:
            raise ValueError(f"heads must divide the language model's width of {features}, and {self.heads} do not")
        return PerceiverAutoencoder(self, features, positions)


class PerceiverAutoencoder(nn.Module):
    """Both halves."""

    def __init__(self, cfg: Perceiver, features: int, positions: int):
        super().__init__()
        self.compress = Compressor(cfg, features, positions)
        self.expand = Expander(cfg, features)
        if cfg.deviation:
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(module.weight, std=cfg.deviation)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)


class Compressor(nn.Module):
    """h [B, L, E], mask [B, L] -> Z [B, latents, width]"""

    def __init__(self, cfg: Perceiver, features: int, positions: int):
        super().__init__()
        self.cfg = cfg
        self.position = nn.Embedding(positions, features)
        self.queries = nn.Parameter(torch.randn(cfg.latents, cfg.width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList([Resampler(features, cfg.width, cfg.heads), feedforward(cfg.width, cfg.expansion)])
            for _ in range(cfg.layers))
        self.last = nn.LayerNorm(cfg.width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h [B, L, E], mask [B, L] bool of what is text -> Z [B, latents, width]"""
        X = h + self.position.weight[:h.shape[1]] * h.shape[-1] ** -0.5
        Z = self.queries.expand(len(h), -1, -1)
        for attend, forward in self.layers:                                              # type: ignore[misc]
            Z = Z + attend(Z, X, mask)
            Z = Z + forward(Z)
        Z = self.last(Z)
        return fixed_norm(Z) if self.cfg.norm else Z


def fixed_norm(z: Tensor) -> Tensor:
    """Each vector of z [..., D] put to the norm sqrt(D)."""
    return F.normalize(z, dim=-1) * z.shape[-1] ** 0.5


class Resampler(nn.Module):
    """Attention of the latents over the text and over themselves."""

    def __init__(self, features: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.text_norm, self.latent_norm = nn.LayerNorm(features), nn.LayerNorm(width)
        self.query = nn.Linear(width, features, bias=False)
        self.of_text = nn.Linear(features, 2 * features, bias=False)
        self.of_latents = nn.Linear(width, 2 * features, bias=False)
        self.query_norm, self.key_norm = (nn.RMSNorm(features // heads, eps=1e-8) for _ in range(2))
        self.output = nn.Linear(features, width)

    def forward(self, Z: Tensor, X: Tensor, mask: Tensor) -> Tensor:
        x, z = self.text_norm(X), self.latent_norm(Z)
        k, v = torch.cat([self.of_text(x), self.of_latents(z)], 1).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(z), k, v))
        seen = F.pad(mask, (0, Z.shape[1]), value=True)[:, None, None, :]
        q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.output(heads.transpose(1, 2).flatten(2))


class Expander(nn.Module):
    """Z [B, latents, width] -> h_hat [B, latents, E]"""

    def __init__(self, cfg: Perceiver, features: int):
        super().__init__()
        self.enter = nn.Linear(cfg.width, features)
        self.position = nn.Embedding(cfg.latents, features)
        self.layers = nn.ModuleList(
            nn.ModuleList([SelfAttention(features, cfg.heads), feedforward(features, cfg.expansion)])
            for _ in range(cfg.layers))
        self.last = nn.LayerNorm(features)

    def forward(self, Z: Tensor) -> Tensor:
        h = self.enter(Z)
        h = h + self.position.weight * h.shape[-1] ** -0.5
        for attend, forward in self.layers:                                              # type: ignore[misc]
            h = h + attend(h)
            h = h + forward(h)
        return self.last(h)


class SelfAttention(nn.Module):
    """Pre-LN self-attention with normalised queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = (nn.RMSNorm(width // heads, eps=1e-8) for _ in range(2))
        self.output = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm(h)).unflatten(-1, (3, self.heads, -1))    # [B, L, 3, heads, head]
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.output(heads.transpose(1, 2).flatten(2))


def feedforward(width: int, expansion: int) -> nn.Module:
    """Pre-LN, GELU."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, expansion * width), nn.GELU(),
                         nn.Linear(expansion * width, width))
