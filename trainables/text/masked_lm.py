"""Masked language models: what says which word a mask hides.  Here the head is kept, unlike in encoders.py.

    corpus -> MaskedLmFolder(data, Bert())          the stage: the whole model in Hugging Face format, and tokens.json
    MaskedLmNetwork.load(folder, time=...)          h = states(ids, mask, ...) [B, L, D];  logits = head(h) [..., V]

    words, hidden or not --> embeddings --> layer --> layer --> h --head--> logits over all words
    the time:  nothing told                 the number of masks says enough ("TAD", best in the paper with BERT)
               a prefix "token"             one more place after the first, which stands for the time       ("PTE")
               in every "layers"            h + mlp_i(sinusoid(t)) between attention and feed-forward       ("LTE")

The families are those of families.py that learn by filling masks: Bert | Roberta.  A Small one is trained here on the
corpus with its family's own objective; a pretrained one is fetched from the hub or from the store, where `imported` has
put the folders that a config names.  Refused in one line: decoders, encoders without the head, no mask token.

arXiv 2211.15029, 4.4 for the time.  What the layers are told is zero at first: a pretrained model starts as it was.
"""

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainables.config import ConfigError, config
from trainables.networks.transformer import sinusoid
from trainables.randomness import seed_of
from trainables.stages import Context, Stage
from trainables.text.checkpoints import check_folder, quietly, read_about, shelved
from trainables.text.corpora import Data, read_rows
from trainables.text.encoders import fetched, load_tokenizer, teach
from trainables.text.families import Bert, Folder, Roberta, Small
from trainables.text.tokenizers import Words, spacing

MaskedLm = Bert | Roberta
Told = Literal["nothing", "prefix", "layers"]
MASK = "mask.json"
CLOCK = 1_000.0                # the sinusoid's t: neighbouring times look different


@config
class MaskedLmFolder:
    """The model with its head, in Hugging Face format.  The data train a Small one, and say where blanks go around
    punctuation.  `sources`: a Small one learns words and blanks from the texts' sources, too."""

    data: Data
    lm: MaskedLm
    sources: bool = False

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "masked_lm"

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def check(self, context: Context) -> None:
        """ConfigError where an imported folder cannot serve."""
        if isinstance(self.lm.weights, Folder):
            if (shelf := shelved(self.lm.weights.digest, context.store)) is not None:
                check_masked_lm(shelf, self.lm)

    def make(self, out: Path, context: Context) -> None:
        texts, weights = self._texts("train", context), self.lm.weights
        if isinstance(weights, Small):
            self._train(weights, texts, out, context)
        else:
            with fetched(weights, out, context) as folder:
                self._convert(folder, texts, out)

    def _texts(self, split: str, context: Context) -> list[str]:
        rows = read_rows(context.get(self.data), split)
        return [row["text"] for row in rows] + [row.get("source", "") for row in rows if self.sources]

    def _train(self, small: Small, texts: list[str], out: Path, context: Context) -> None:
        tokenizer = self.lm.tokenizer(texts, small.vocabulary)
        save_words(tokenizer, out, texts=texts)
        torch.manual_seed(seed_of(small.seed, "initial weights"))
        teach(self.lm.untrained(small, tokenizer), small, texts, self._texts("valid", context), out, context)

    def _convert(self, folder: Path, texts: list[str], out: Path) -> None:
        check_masked_lm(folder, self.lm)
        model, tokenizer = load_masked_lm(folder), load_tokenizer(folder)
        save_words(tokenizer, out, published=folder / "tokenizer.json",
                   decoder=spacing(texts) if isinstance(self.lm, Bert) else None)
        with quietly():
            model.save_pretrained(out)


def check_masked_lm(folder: Path, lm: MaskedLm, path: str = "weights.name") -> None:
    """ConfigError unless the folder holds a masked language model of this family, as can be seen from outside."""
    check_folder(folder, lm.model_type, path)
    classes = read_about(folder, path).get("architectures") or ()
    if classes and not any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in classes):
        raise ConfigError(path, f"{folder} holds a {classes[0]}, which has no head that says masked words; "
                                "a model saved as ...ForMaskedLM has")


def save_words(tokenizer: Any, out: Path, **how: Any) -> None:
    """What Words.load reads, and the mask's id beside it.   ConfigError: a tokenizer without a mask"""
    if not isinstance(tokenizer.mask_token_id, int):
        raise ConfigError("weights", "the tokenizer has no mask token, so nothing can be hidden behind it")
    Words.save(tokenizer, out, **how)
    (out / MASK).write_text(json.dumps({"mask": tokenizer.mask_token_id, "unknown": tokenizer.unk_token_id}))


def load_masked_lm(folder: Path, untrained: bool = False) -> Any:
    """The whole model from a checkpoint folder, or one of its kind with fresh weights from torch's global generator.

    ConfigError: a checkpoint that lacks a part, the head for one
    """
    from transformers import BertForMaskedLM, RobertaForMaskedLM

    kind: Any = {Bert.model_type: BertForMaskedLM, Roberta.model_type: RobertaForMaskedLM}[
        read_about(folder)["model_type"]]
    with quietly():
        if untrained:
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        try:
            model, info = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True,
                                               output_loading_info=True, dtype=torch.float32)
        except Exception as error:                         # damaged files, sizes that do not fit: many kinds
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ConfigError("weights", f"{folder} cannot be loaded: {reason}") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise ConfigError("weights", f"{folder} lacks {len(lacking)} weights of a masked language model, "
                                     f"{lacking[0]} for one: it says no masked words")
    return model


# ---------------------------------------------------------------- the network


class MaskedLmNetwork(nn.Module):
    """A masked language model that may be told the time.   V words (of the model: its table may be padded)"""

    def __init__(self, model: Any, words: Words, mask: int, unknown: int | None, told: Told = "nothing"):
        super().__init__()
        self.model, self.words, self.mask, self.unknown, self.told = model, words, mask, unknown, told
        about = model.config
        self.vocabulary: int = about.vocab_size
        self.kinds: int = about.type_vocab_size
        # RoBERTa numbers positions from the pad's id, plus one, and has as many fewer
        self.first = about.pad_token_id + 1 if about.model_type == Roberta.model_type else 0
        self.positions: int = about.max_position_embeddings - self.first - (told == "prefix")
        D, self.width = about.hidden_size, about.hidden_size
        if told == "prefix":
            self.clock = Clock(D, D, silent=False)
        elif told == "layers":
            for layer in model.base_model.encoder.layer:
                layer.attention.output = TimedOutput(layer.attention.output, Clock(D, D))

    @classmethod
    def load(cls, folder: Path, told: Told = "nothing", untrained: bool = False) -> "MaskedLmNetwork":
        """From the folder of a MaskedLmFolder; which family it is, its config.json says."""
        parts = json.loads((folder / MASK).read_text())
        return cls(load_masked_lm(folder, untrained), Words.load(folder), parts["mask"], parts["unknown"], told)

    def states(self, ids: Tensor, mask: Tensor, t: Tensor, kind: Tensor | None = None) -> Tensor:
        """Last hidden states [B, L, D].

        ids [B, L]; mask [B, L] bool, what may be read: positions are counted over it; t [B, 1]; kind [B, L] of segment
        """
        place = (mask.long().cumsum(1) - 1).clamp(min=0)
        seen = mask.long()
        kind = torch.zeros_like(ids) if kind is None or self.kinds < 2 else kind
        if self.told == "layers":
            for layer in self.model.base_model.encoder.layer:
                layer.attention.output.now = t
        if self.told == "prefix":
            vectors = self.model.get_input_embeddings()(ids)
            now = self.clock(t)
            vectors = torch.cat([vectors[:, :1], now, vectors[:, 1:]], 1)
            place = torch.cat([place[:, :1], place[:, :1] + 1, place[:, 1:] + 1], 1)
            seen, kind = (torch.cat([part[:, :1], part[:, :1], part[:, 1:]], 1) for part in (seen, kind))
            h = self.model.base_model(inputs_embeds=vectors, attention_mask=seen, position_ids=place + self.first,
                                      token_type_ids=kind).last_hidden_state
            return torch.cat([h[:, :1], h[:, 2:]], 1)
        return self.model.base_model(input_ids=ids, attention_mask=seen, position_ids=place + self.first,
                                     token_type_ids=kind).last_hidden_state

    def head(self, h: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]."""
        head = self.model.lm_head if self.model.config.model_type == Roberta.model_type else self.model.cls
        return head(h)


class Clock(nn.Module):
    """t [B, 1] -> [B, 1, D]: two layers on a sinusoid; `silent`: zero at first."""

    def __init__(self, width: int, out: int, silent: bool = True):
        super().__init__()
        self.width = width + width % 2
        self.inner, self.outer = nn.Linear(self.width, 2 * width), nn.Linear(2 * width, out)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02 * math.sqrt(768 / width))
            nn.init.zeros_(layer.bias)
        if silent:
            nn.init.zeros_(self.outer.weight)

    def forward(self, t: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(sinusoid(t * CLOCK, self.width).to(self.inner.weight.dtype))))


class TimedOutput(nn.Module):
    """An attention's last part, to whose output the time is added; `now` [B, 1] is said before the model runs."""

    def __init__(self, inner: nn.Module, clock: Clock):
        super().__init__()
        self.inner, self.clock = inner, clock
        self.now: Tensor | None = None

    def forward(self, *arguments: Tensor) -> Tensor:
        assert self.now is not None
        return self.inner(*arguments) + self.clock(self.now)
