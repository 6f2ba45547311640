"""DiffusionBERT's step as released (19d7f49): D3PM's posterior over all words at all places, true and guessed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.loop import Clock, Loop

STEPS = 2048


class Step:
    """A masked language model with eager attention, and the loop; there is no average."""

    def __init__(self, model: nn.Module, mask_id: int, clock: Clock, device: torch.device, numbers: torch.dtype):
        self.model, self.mask_id, self.clock, self.device = model.to(device).train(), mask_id, clock, device
        self.loop = Loop(self.model, self.model, clock, lr=3e-6, averages=0, numbers=numbers)

    def __call__(self, ids: Tensor, mask: Tensor, coin: bool | None = None) -> float:
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.loop.step(lambda: self.loss(ids, mask))

    def loss(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self.clock.part("rest"):
            t = int(torch.randint(1, STEPS + 1, (1,)).item())                    # one for the whole batch
            hidden = (torch.rand(ids.shape, device=ids.device) < t / STEPS) & mask
            x_t = torch.where(hidden, self.mask_id, ids)
        with self.clock.part("forward"):
            logits = self.model(input_ids=x_t, attention_mask=mask.long()).logits.float()           # [B, L, V]
        with self.clock.part("posterior"):
            divergence = divergence_of(logits.softmax(-1), ids, x_t, self.mask_id, t)
            crossed = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
            return ((divergence + 0.01 * crossed) * mask).sum() / mask.sum()


def divergence_of(p: Tensor, ids: Tensor, x_t: Tensor, mask_id: int, t: int) -> Tensor:
    """KL [B, L] of the true posterior and the one for p [B, L, V], the guess of x_0."""
    true, guess = (posterior(x0, x_t, mask_id, t) for x0 in (F.one_hot(ids, p.shape[-1]).to(p.dtype), p))
    return (true * ((true + 1e-20).log() - (guess + 1e-20).log())).sum(-1)


def posterior(x0: Tensor, x_t: Tensor, mask_id: int, t: int) -> Tensor:
    """q(x_{t-1} | x_t, x_0) [B, L, V] for x0 [B, L, V] of shares: two facts, their product, normed."""
    keep_before, keep = 1 - (t - 1) / STEPS, 1 - t / STEPS
    absorbed = F.one_hot(torch.tensor(mask_id, device=x0.device), x0.shape[-1]).to(x0.dtype)
    before = keep_before * x0 + (1 - keep_before) * absorbed                            # q(x_{t-1} | x_0)
    stay = keep / keep_before
    seen = F.one_hot(x_t, x0.shape[-1]).to(x0.dtype)
    fact = stay * seen + (1 - stay) * (x_t == mask_id)[..., None]                       # q(x_t | x_{t-1})
    product = before * fact
    return product / product.sum(-1, keepdim=True).clamp(min=1e-20)
