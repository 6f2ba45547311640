"""Initial weights by name: what two networks have in common begins alike, whatever else one of them has.

    network = drawn(Denoiser(...))              from torch's seed and the name of each part

Drawn one after another from one stream, as PyTorch does it, an arm with one layer more than its base would differ from
it in every weight behind that layer, and its paired seeds would pair less than they say.
"""

from typing import TypeVar

import torch
from torch import nn

from trainables.randomness import seed_of

Network = TypeVar("Network", bound=nn.Module)


def drawn(network: Network) -> Network:
    """The network, its weights drawn anew on the CPU: each part's `reset_parameters`, under a seed of its name.

    Inner parts come first, so what a whole makes of its parts (zeroes, mostly) stands.  torch's generator is left as
    `torch.manual_seed` had set it.
    """
    seed = torch.initial_seed()
    for name, part in reversed(list(network.named_modules())):
        reset = getattr(part, "reset_parameters", None)
        if reset is not None:
            torch.default_generator.manual_seed(seed_of(seed, name))
            reset()
    torch.default_generator.manual_seed(seed)
    return network
