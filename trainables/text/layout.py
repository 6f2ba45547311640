"""Where things stand in a discrete diffusion's sequence: one layout for training, the bound and sampling.

    front [B, S]                       state [B, L]
    [CLS]                              w w w w [SEP] . . .          unconditional
    [CLS] s s s [SEP] . .              w w w w [SEP] . . .          conditional: the source in its frame, always visible

    lengths "drawn"      the end and what follows are known once the length is: nobody says them, padding is not read;
                         the length is drawn from the training texts' law (of the same source length), and paid for
    lengths "written"    end and padding are words like others: the model says where a text ends

What may be hidden is what a text may hold, so a special token inside a text is known as well.  Padding of the front is
not read either, and positions are counted over what is read.   B texts, L and S places, V words
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.randomness import Rng
from trainables.system import Batch
from trainables.text.lengths import draw_lengths, length_law
from trainables.text.masked_lm import MaskedLmNetwork

Lengths = Literal["drawn", "written"]


@dataclass
class Places:
    """What is read in front [B, S], which places are read [B, L], which are known, and as what."""

    front: Tensor
    front_mask: Tensor
    read: Tensor
    known: Tensor
    ids: Tensor


class Layout(nn.Module):
    """The layout of texts of L = `length` tokens and sources of S = `source_length` (0: none).

    A module, so that it moves with the system that owns it; it has no parameters and leaves nothing in checkpoints.
    """

    never: Tensor
    law: Tensor
    overall: Tensor
    empty: Tensor
    start: Tensor

    def __init__(self, network: MaskedLmNetwork, length: int, source_length: int, lengths: Lengths, counts: Tensor):
        """counts [S + 1, L + 1]: how many training texts of how many tokens have a source of how many."""
        super().__init__()
        self.words, self.length, self.source_length, self.lengths = network.words, length, source_length, lengths
        frame = self.words.tokenizer.encode("").ids
        self.end, self.pad = frame[len(self.words.start)], self.words.pad
        said = {network.unknown} | ({self.end, self.pad} if lengths == "written" else set())
        never = torch.ones(network.vocabulary, dtype=torch.bool)             # the model's table may be padded
        never[:self.words.vocabulary] = False
        never[[i for i in self.words.special if i not in said]] = True
        for name, value in {"never": never, "law": length_law(counts), "empty": torch.tensor(frame),
                            "start": torch.tensor(self.words.start, dtype=torch.long),
                            "overall": length_law(counts.sum(0, keepdim=True))}.items():
            self.register_buffer(name, value, persistent=False)

    # ---------------------------------------------------------------- what a batch says

    def able(self, batch: Batch) -> Tensor:
        """[B, L] bool: what may be hidden and must be said."""
        read = batch.mask if self.lengths == "drawn" else torch.ones_like(batch.mask)
        return read & ~self.never[batch.ids]

    def places(self, batch: Batch | None, rows: int, dropout: float = 0.0, rng: Rng | None = None) -> Places:
        """What is read besides the hidden text; of a sampler's batch only source and mask are looked at.

        dropout: the share of sources that are replaced by the empty text
        """
        device, L = self.never.device, self.length
        front, front_mask = self.front(batch, rows, dropout, rng)
        anywhere = torch.ones(rows, L, dtype=torch.bool, device=device)
        if self.lengths == "written":
            return Places(front, front_mask, anywhere, ~anywhere, torch.full((rows, L), self.pad, device=device))
        read = anywhere if batch is None else batch.mask
        place, last = torch.arange(L, device=device), read.sum(1, keepdim=True) - 1
        return Places(front, front_mask, read, place >= last, torch.where(place == last, self.end, self.pad))

    def front(self, batch: Batch | None, rows: int, dropout: float = 0.0, rng: Rng | None = None
              ) -> tuple[Tensor, Tensor]:
        """ids and mask [B, S] of the start token, or of the source in its frame: an empty one where there is none."""
        device, S = self.never.device, self.source_length
        if not S:
            ids = self.start.expand(rows, -1)
            return ids, torch.ones_like(ids, dtype=torch.bool)
        nothing = F.pad(self.empty, (0, S - len(self.empty)), value=self.pad).expand(rows, S)
        seen = (torch.arange(S, device=device) < len(self.empty)).expand(rows, S)
        if batch is None or batch.source is None:
            return nothing, seen
        ids, mask = batch.source.ids, batch.source.mask
        if rng is not None and dropout:
            dropped = rng.uniform((rows, 1)) < dropout
            ids, mask = torch.where(dropped, nothing, ids), torch.where(dropped, seen, mask)
        return ids, mask

    def count(self, batch: Batch) -> dict[str, int]:
        """Tokens (pieces and ends), pieces, and words between blanks: of the texts as they were written, for what a
        tokenizer gives back lacks the words it does not know."""
        assert batch.words is not None
        frame = torch.tensor([self.end, self.pad], device=batch.ids.device)
        pieces = int((batch.mask & ~torch.isin(batch.ids, frame)).sum())
        return {"token": pieces + len(batch), "piece": pieces, "word": int(batch.words.sum())}

    # ---------------------------------------------------------------- lengths

    def draw_mask(self, rows: int, rng: Rng, batch: Batch | None = None) -> Tensor:
        """[rows, L] bool: lengths from the law, given how long the sources are where the batch has them."""
        place = torch.arange(self.length, device=self.never.device)
        if self.lengths == "written":
            return (place >= 0).expand(rows, -1)
        law = self.overall.expand(rows, -1) if batch is None or batch.source is None else \
            self.law[self.source_count(batch)]
        return place < draw_lengths(law, rng)

    def length_cost(self, batch: Batch) -> Tensor:
        """-ln P(the texts' lengths) [B]; 0 where the model itself says where a text ends."""
        if self.lengths == "written":
            return torch.zeros(len(batch), dtype=torch.float64, device=self.law.device)
        return -self.law[self.source_count(batch), batch.mask.sum(1)].log()

    def source_count(self, batch: Batch) -> Tensor:
        """Tokens of each source [B], 0 without."""
        return batch.mask.new_zeros(len(batch), dtype=torch.long) if batch.source is None else batch.source.mask.sum(1)
