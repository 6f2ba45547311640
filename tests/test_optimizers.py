"""Optimizers: Lion's numbers, who decays, and what a resumed training needs of them."""

from typing import get_args

import pytest
import torch
from torch import nn

from trainables.training.optimizers import AdamW, Lion, Optimizer, decay_groups

OPTIMIZERS = get_args(Optimizer)


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_lion_follows_the_reference_vector():
    """spec/latent_systems.md 4.3."""
    p = parameter(1.0, -1.0, 0.5)
    optimizer = Lion(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, decays="all").build([p])
    for _ in range(3):
        p.grad = torch.tensor([0.1, -0.2, 0.0])
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.996700346, -0.996700346, 0.499849975]), atol=1e-8, rtol=1e-7)
    momentum = optimizer.state[p]["momentum"]
    torch.testing.assert_close(momentum, torch.tensor([0.00297010, -0.00594020, 0.0]), atol=1e-8, rtol=1e-6)


def test_adamw_follows_its_equations():
    """arXiv 1711.05101, algorithm 2, in float64 by hand."""
    p = parameter(1.0, -2.0, 0.5)
    optimizer = AdamW(lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, decays="all").build([p])
    x, m, v = p.detach().double(), torch.zeros(3).double(), torch.zeros(3).double()
    for k in range(1, 5):
        g = torch.tensor([0.1 * k, -0.2, 0.0]).double()
        p.grad = g.float()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        x = x * (1 - 1e-2 * 0.1) - 1e-2 * (m / (1 - 0.9**k)) / ((v / (1 - 0.98**k)).sqrt() + 1e-6)
    torch.testing.assert_close(p.detach().double(), x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_vectors_are_spared_unless_all_decay(kind):
    """With a gradient of zero only decay moves a weight: by 1 - .1 * .5."""
    for decays, bias in (("matrices", 1.0), ("all", 0.95)):
        layer = nn.Linear(2, 2)
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
        built = kind(lr=0.1, weight_decay=0.5, decays=decays).build(layer.parameters())
        layer.weight.grad, layer.bias.grad = torch.zeros(2, 2), torch.zeros(2)
        built.step()
        torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), 0.95))
        torch.testing.assert_close(layer.bias.detach(), torch.full((2,), bias))


def test_every_parameter_is_in_one_group():
    layers = nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    groups = decay_groups(layers.parameters(), 0.1, "matrices")
    assert [len(group["params"]) for group in groups] == [2, 3]
    assert len(decay_groups(layers.parameters(), 0.1, "all")) == 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_without_gradient_rests_and_state_is_tensors(kind):
    used, idle = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    built = kind(lr=1e-2).build([used, idle])
    used.grad = torch.ones(2, 2)
    built.step()
    assert torch.equal(idle.detach(), torch.ones(2, 2)) and not torch.equal(used.detach(), torch.ones(2, 2))
    assert built.state[used] and all(isinstance(value, torch.Tensor) for value in built.state[used].values())
    assert not built.state[idle]


@pytest.mark.parametrize("changes, message", [
    ({"lr": 0.0}, "lr must be positive"), ({"betas": (0.9, 1.0)}, "betas"), ({"weight_decay": -0.1}, "weight_decay"),
    ({"decays": "none"}, "decays"),
])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nonsense_is_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)
