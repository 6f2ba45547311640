"""Karras' scalings: what a network is shown and told of a noise level, and the guess that is made of what it says.

    network(c_in x_t, c_noise) = F            x0_hat = c_skip x_t + c_out F               for data of unit variance

Where x_0 is one of V words of equal norms (vectors [V, d]), x0_hat says how likely each of them is:

    w x0_hat . x_0(v)  =  x_t . x_0(v) / sigma^2  +  sqrt(1 + sigma^2) / sigma  F . x_0(v)       w = 1 / c_out^2

The first half is the words' exact posterior as far as their own place tells, so a network that says 0 knows as much,
and learns what context adds.     sigma [B, 1 or L, 1]; arXiv 2206.00364, table 1
"""

from torch import Tensor


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise for data of unit variance.   arXiv 2206.00364, table 1; c_noise is finite at 0"""
    total = 1 + sigma**2
    return 1 / total, sigma * total.rsqrt(), total.rsqrt(), (sigma + 1e-3).log() / 4


def edm_weight(sigma: Tensor) -> Tensor:
    """(1 + sigma^2) / sigma^2, 1 / c_out^2."""
    return (1 + sigma**2) / sigma**2


def word_scores(said: Tensor, x_t: Tensor, sigma: Tensor, vectors: Tensor) -> Tensor:
    """w x0_hat . x_0(v), from what the network said.   said, x_t [B, L, d], vectors [V, d] -> [B, L, V]"""
    c_skip, c_out, _, _ = scalings(sigma)
    return edm_weight(sigma) * ((c_skip * x_t + c_out * said) @ vectors.T)
