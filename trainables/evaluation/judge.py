"""The judge: a small causal language model that learned from texts no other model has seen.

    judge split --byte-level BPE--> ids --GPT-2, small--> nats      judge_nll = nats per word, the end one of them

A judge that was trained on a model's own training texts calls a copyist fluent, hence the split of its own.  No word is
unknown to it, for it spells in bytes: with a word for the unknown, gibberish would be cheap.  What a judge cannot see:
that a text is dull (repeating the likeliest sentence scores better than real), nor that it is copied.
"""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config
from trainables.evaluation.pretrained import nats
from trainables.evaluation.real import Real
from trainables.randomness import Rng, seed_of
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.checkpoints import quietly
from trainables.text.corpora import Data, read_texts
from trainables.text.tokenizers import byte_level_bpe
from trainables.training.average import NoAverage
from trainables.training.learning_rate import Cosine
from trainables.training.optimizers import AdamW
from trainables.training.train import Training, train


@config
class Judge:
    """Its size and training; the default learns a corpus of short texts in ten to twenty CPU seconds."""

    layers: int = 2
    width: int = 96
    heads: int = 4
    dropout: float = 0.1
    vocabulary: int = 800              # byte-level BPE: 256 bytes, and the commonest pairs of what is there
    length: int = 128                  # tokens; longer texts are cut
    training: Training = Training(
        optimizer=AdamW(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1), schedule=Cosine(warmup=30), ema=NoAverage(),
        steps=300, batch=16, precision="float32", save_every=300)
    seed: int = 0

    def __post_init__(self):
        if self.layers < 1 or self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ValueError("layers, heads and width must be positive, width a multiple of heads")
        if self.vocabulary < 261:
            raise ValueError(f"vocabulary must be at least 261 (256 bytes, 5 special tokens), not {self.vocabulary}")
        if self.length < 2:
            raise ValueError(f"length must be at least 2 tokens, not {self.length}")


@config
class JudgeLm:
    """The trained judge, a folder in Hugging Face format. Its curve is judge/train/loss, nats per token."""

    data: Data
    judge: Judge

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "judge"

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def make(self, out: Path, context: Context) -> None:
        cfg, texts = self.judge, read_texts(context.get(self.data), "judge")
        tokenizer = byte_level_bpe(texts, cfg.vocabulary)
        tokenizer.model_max_length = cfg.length + 2        # the ends count
        tokens = Tokens(tokenizer(texts, truncation=True)["input_ids"])
        torch.manual_seed(seed_of(cfg.seed, "judge"))
        model = CausalLm(cfg, tokenizer, tokens.mean_length())
        train(model, tokens, cfg.training, seed=cfg.seed, out=out / "training", context=context)
        with quietly():
            model.gpt2.cpu().save_pretrained(out)
        tokenizer.save_pretrained(out)
        shutil.rmtree(out / "training")


@config
class JudgeNll:
    """judge_nll: nats per word.  Below judge_nll_real it is no praise: the text is duller than real text."""

    judge: Judge = Judge()

    better: ClassVar[dict[str, str]] = {"judge_nll": "lower"}

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return (JudgeLm(data=real.data, judge=self.judge),)

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        folder = context.get(JudgeLm(data=real.data, judge=self.judge))
        said = nats(str(folder), samples, self.judge.length, context.device, ends=True)
        return {"judge_nll": float(said.nats.sum() / said.words.sum())}


class CausalLm(nn.Module):
    """transformers' GPT-2 with a loss over all tokens but the first; `typical` is how many a text has on average."""

    def __init__(self, cfg: Judge, tokenizer: Any, typical: float):
        from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds, so not before it is needed

        super().__init__()
        self.typical = typical
        self.gpt2 = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_positions=cfg.length + 2, n_embd=cfg.width, n_layer=cfg.layers,
            n_head=cfg.heads, resid_pdrop=cfg.dropout, embd_pdrop=cfg.dropout, attn_pdrop=cfg.dropout,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        """Nats per token; divided by the typical length, not by the batch's, so that it is a mean over rows."""
        logits = self.gpt2(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[:, :-1]      # [B, L - 1, V]
        nats = F.cross_entropy(logits.float().transpose(1, 2), batch.ids[:, 1:], reduction="none")
        return {"loss": (nats * batch.mask[:, 1:]).sum(1).mean() / self.typical}


class Tokens:
    """Rows of ids, of any lengths, that can be taken by number."""

    def __init__(self, rows: list[list[int]]):
        self.rows = [torch.tensor(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def mean_length(self) -> float:
        """Tokens that are predicted, all but the first, of a row on average."""
        return sum(len(row) - 1 for row in self.rows) / len(self.rows)

    def take(self, indices: Tensor) -> Batch:
        """ids and mask, [B, L] for the longest of these rows"""
        rows = [self.rows[row] for row in indices.tolist()]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Batch(ids=ids, mask=torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None])
