"""The curves that schedules are made of: log-SNRs, their inverses, and the signal and noise they stand for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BETA_UNTIL = 0.95           # where an unbounded rate is held, as TEncDM does


def preserve_variance(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def from_decay(decay: Tensor) -> Tensor:
    """log-SNR where abar = exp(-decay), without forming 1 - abar."""
    return -decay.expm1().log()


def to_decay(log_snr: Tensor) -> Tensor:
    """-ln abar: the inverse of `from_decay`."""
    return torch.logaddexp(torch.zeros_like(log_snr), -log_snr)


def log_cotangent(t: Tensor) -> Tensor:
    """2 ln cot(pi t / 2): the log-SNR of abar = cos^2(pi t / 2).  (abs: float32's pi / 2 lies past the zero of cos.)"""
    angle = t * (math.pi / 2)
    return 2 * (angle.cos().abs().log() - angle.sin().log())


def arc_cotangent(log_snr: Tensor) -> Tensor:
    """The inverse of `log_cotangent`."""
    return torch.atan((-log_snr / 2).exp()) * (2 / math.pi)


def positive(**values: float) -> None:
    """Refuse what is not > 0."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")


def check_shift(scale: float, clamp: float) -> None:
    """Refuse what LD4LG's shift and clamp cannot be."""
    positive(scale=scale)
    if clamp < 0:
        raise ValueError(f"clamp must be positive, or 0 for none, not {clamp}")


def shift(raw: Tensor, scale: float, clamp: float) -> Tensor:
    """LD4LG's log-SNR from a raw one: held in [-clamp, clamp] (not, where clamp is 0), then SNR times scale^2."""
    return (raw.clamp(-clamp, clamp) if clamp else raw) + 2 * math.log(scale)


def unshift(log_snr: Tensor, scale: float, clamp: float, time: Callable[[Tensor], Tensor]) -> Tensor:
    """The inverse of `shift`, where `time` inverts the raw curve; a level beyond the clamp is the clamp's."""
    raw = log_snr - 2 * math.log(scale)
    return time(raw.clamp(-clamp, clamp) if clamp else raw)
