"""Encoder-decoder language models, whole: the encoder reads a text, the decoder writes one.      BART, T5, FLAN-T5

    corpus -> LanguageModelFolder(data, Bart())      the stage: a checkpoint in Hugging Face format, with its tokenizer
           -> LanguageModelStates(language_model)    every text's last encoder states, cached

    FrozenLanguageModel.load(folder)
        .encode(ids, mask) -> h [B, L, E]            .logits(h, mask, ids) -> [B, L, V]  teacher-forced
        .write(h, mask, Decoding(by=Nucleus()), rng)      -> B texts

Which model is said as for encoders (families.py): Bart or T5 with Pretrained, Folder or Small weights; FLAN-T5 is
T5(weights=Pretrained(name="google/flan-t5-base")).  A Small one is trained here, BART by infilling; T5's span
corruption never has a decoder say a whole text, so half of its loss is to repeat the text, FLAN's instructions being
out of a small corpus' reach.
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import ConfigError, config
from trainables.randomness import Rng, seed_of
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.checkpoints import check_folder, quietly, read_about, shelved, weight_names
from trainables.text.corpora import Data, read_rows
from trainables.text.encoders import FrozenEncoder, fetched, load_tokenizer, teach
from trainables.text.encodings import SPLITS, write_encodings
from trainables.text.families import T5, Bart, Folder, Small
from trainables.text.tokenizers import TOKENS, Words

LanguageModel = Bart | T5

# ---------------------------------------------------------------- the model as a stage


@config
class LanguageModelFolder:
    """Both halves in Hugging Face format.  `sources`: a Small one learns from the rows' sources as well."""

    data: Data
    model: LanguageModel
    sources: bool = False

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "language_model"

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def check(self, context: Context) -> None:
        """ConfigError where an imported folder cannot serve."""
        if (shelf := self.shelf(context)) is not None:
            check_language_model(shelf, self.model)

    def shelf(self, context: Context) -> Path | None:
        """The imported folder, if it is one that can be looked into before anything is made."""
        weights = self.model.weights
        return shelved(weights.digest, context.store) if isinstance(weights, Folder) else None

    def width(self, context: Context) -> int | None:
        """The model's, where it can be known before anything is made."""
        weights, shelf = self.model.weights, self.shelf(context)
        if isinstance(weights, Small):
            return weights.width
        return None if shelf is None else read_about(shelf).get("d_model")

    def make(self, out: Path, context: Context) -> None:
        weights = self.model.weights
        if isinstance(weights, Small):
            self._train(weights, out, context)
        else:
            with fetched(weights, out, context) as folder:
                self._convert(folder, out)

    def _train(self, small: Small, out: Path, context: Context) -> None:
        texts, held_out = (self._texts(context, split) for split in ("train", "valid"))
        tokenizer = self.model.tokenizer(texts, small.vocabulary)
        Words.save(tokenizer, out, texts)
        torch.manual_seed(seed_of(small.seed, "initial weights"))
        learner: Any = self.model.untrained(small, tokenizer)
        if isinstance(self.model, T5):
            learner = RepeatsToo(learner, Words.load(out).pad)
        teach(learner, small, texts, held_out, out, context)

    def _texts(self, context: Context, split: str) -> list[str]:
        rows = read_rows(context.get(self.data), split)
        sources = sorted({row["source"] for row in rows if "source" in row}) if self.sources else []
        return [row["text"] for row in rows] + sources

    def _convert(self, folder: Path, out: Path) -> None:
        check_folder(folder, self.model.model_type)
        model, tokenizer = load_whole(self.model, folder), load_tokenizer(folder)
        Words.save(tokenizer, out, published=folder / "tokenizer.json")
        with quietly():
            model.save_pretrained(out)


def check_language_model(folder: Path, model: LanguageModel, path: str = "weights.name") -> None:
    """ConfigError unless the folder holds both halves of a language model of this family, as can be seen from what its
    weights are called."""
    check_folder(folder, model.model_type, path)
    about, names = read_about(folder, path), weight_names(folder, path)
    if not any("decoder." in name for name in names):
        made = ", ".join(about.get("architectures") or ()) or "its maker"
        raise ConfigError(path, f"{folder} has no weights of a {model.model_type} decoder ({made} kept none); texts "
                                "are written by a whole encoder-decoder model")
    if about.get("tie_word_embeddings") is False and not any(name.endswith("lm_head.weight") for name in names):
        raise ConfigError(path, f"{folder} has no head that says words, and its config.json says that its head is no "
                                "copy of the token table (tie_word_embeddings)")


def load_whole(family: LanguageModel, folder: Path) -> Any:
    """The model of a checkpoint folder.   ConfigError: it cannot be loaded, or it has an encoder alone"""
    from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

    kind: Any = BartForConditionalGeneration if isinstance(family, Bart) else T5ForConditionalGeneration
    with quietly():
        try:
            model, info = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True,
                                               output_loading_info=True, dtype=torch.float32)
        except Exception as error:                         # damaged files, sizes that do not fit: many kinds
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ConfigError("weights", f"{folder} cannot be loaded: {reason}") from error
    lacking = sorted(set(info["missing_keys"]) - {"final_logits_bias"})           # zeros, where a BART has none
    if any("decoder" in name for name in lacking):
        made = ", ".join(read_about(folder).get("architectures") or ()) or "its maker"
        raise ConfigError("weights", f"{folder} lacks {len(lacking)} weights of its {family.model_type} decoder, "
                                     f"{lacking[0]} for one ({made} kept no decoder); texts are written by a whole "
                                     "encoder-decoder model")
    if lacking:
        raise ConfigError("weights", f"{folder} lacks {len(lacking)} weights of its {family.model_type} model, "
                                     f"{lacking[0]} for one")
    return model


class RepeatsToo(nn.Module):
    """A learner, and as much weight on saying the whole text as it was read."""

    def __init__(self, learner: Any, pad: int):
        super().__init__()
        self.learner, self.pad = learner, pad
        self.model = learner.model

    def loss(self, batch: Batch, progress: float, rng: Rng) -> Mapping[str, Tensor]:
        """The mean of both cross-entropies, in nats; `accuracy` of repeating."""
        own = self.learner.loss(batch, progress, rng)["loss"]
        said = self.model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False,
                          decoder_input_ids=shifted(batch.ids, self.model.config.decoder_start_token_id)).logits
        again, accuracy = said_right(said, batch.ids, batch.mask)
        return {"loss": (own + again) / 2, "accuracy": accuracy}


def shifted(ids: Tensor, start: int) -> Tensor:
    """What a decoder is shown while it says ids [B, L]."""
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)


def said_right(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and accuracy of ids [B, L], the mean over texts of the mean over each text's tokens."""
    weight = mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    losses = F.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")
    return (losses * weight).sum(), ((logits.argmax(-1) == ids) * weight).sum().detach()


# ---------------------------------------------------------------- how it writes


@config
class Greedy:
    """The likeliest token, each time."""


@config
class Beam:
    """The likeliest of the texts that `beams` beams find."""

    beams: int = 4

    def __post_init__(self):
        if self.beams < 2:
            raise ValueError(f"beams must be at least 2 (Greedy is one), not {self.beams}")


@config
class Nucleus:
    """Each token drawn from the likeliest ones that together have probability p.   arXiv 1904.09751"""

    p: float = 0.95

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"p must be in (0, 1], not {self.p}")


@config
class Decoding:
    """How a language model writes a text out of encoder states; lengths in tokens, special ones included."""

    by: Greedy | Beam | Nucleus = Beam()
    longest: int = 64
    shortest: int = 5
    unrepeated: int = 3                  # no n-gram of this length twice; 0: whatever it likes
    repetition_penalty: float = 1.2      # logits of tokens said before are divided by it; 1: none

    def __post_init__(self):
        if not 0 <= self.shortest <= self.longest or self.longest < 2:
            raise ValueError("lengths must satisfy 0 <= shortest <= longest and 2 <= longest, "
                             f"not {self.shortest} and {self.longest}")
        if self.unrepeated < 0:
            raise ValueError(f"unrepeated must be the length of an n-gram, or 0, not {self.unrepeated}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive, not {self.repetition_penalty}")


class FrozenLanguageModel(nn.Module):
    """A language model that is only read and made to write; V words, E features."""

    def __init__(self, model: Any, words: Words):
        super().__init__()
        self.model, self.words = model.requires_grad_(False).eval(), words
        self.width: int = model.config.d_model

    @classmethod
    def load(cls, folder: Path) -> "FrozenLanguageModel":
        """From the folder of a LanguageModelFolder; which family it is, its config.json says."""
        family = Bart() if read_about(folder)["model_type"] == Bart.model_type else T5()
        return cls(load_whole(family, folder), Words.load(folder))

    def encoder(self) -> FrozenEncoder:
        """The half that reads."""
        return FrozenEncoder(self.model.get_encoder(), self.words)

    @torch.no_grad()
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last encoder states [B, L, E] of ids [B, L], where mask [B, L] says what is text."""
        return self.model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def logits(self, h: Tensor, mask: Tensor | None, ids: Tensor) -> Tensor:
        """What the decoder says of ids [B, L], told each token after it was to say it, having read h [B, S, E].
        [B, L, V]"""
        from transformers.modeling_outputs import BaseModelOutput

        start = self.model.config.decoder_start_token_id
        states: Any = BaseModelOutput(last_hidden_state=h)                               # type: ignore[arg-type]
        return self.model(encoder_outputs=states, attention_mask=None if mask is None else mask.long(),
                          decoder_input_ids=shifted(ids, start), use_cache=False).logits

    @torch.no_grad()
    def write(self, h: Tensor, mask: Tensor | None, decoding: Decoding, rng: Rng | None = None) -> list[str]:
        """B texts, written by the decoder from states h [B, S, E] under mask [B, S].

        rng: Nucleus draws by it; its draws for a text are the same however many others are written beside it.
        ValueError: Nucleus without
        """
        from transformers import LogitsProcessorList
        from transformers.modeling_outputs import BaseModelOutput

        by, drawn = decoding.by, LogitsProcessorList()
        if isinstance(by, Nucleus):
            if rng is None:
                raise ValueError("Nucleus draws its words, so it needs an rng")
            drawn.append(NucleusDraw(by.p, rng.uniform((len(h), decoding.longest)).to(h.device)))
        how = copy.deepcopy(self.model.generation_config)
        how.update(decoder_start_token_id=self.model.config.decoder_start_token_id,
                   max_length=decoding.longest, min_length=decoding.shortest, max_new_tokens=None,
                   no_repeat_ngram_size=decoding.unrepeated, repetition_penalty=decoding.repetition_penalty,
                   num_beams=by.beams if isinstance(by, Beam) else 1, early_stopping=isinstance(by, Beam),
                   do_sample=False, top_p=None, top_k=None, temperature=None)
        real = torch.ones(h.shape[:2], dtype=torch.long, device=h.device) if mask is None else mask.long()
        states: Any = BaseModelOutput(last_hidden_state=h)                               # type: ignore[arg-type]
        with quietly():
            ids = self.model.generate(encoder_outputs=states, attention_mask=real, generation_config=how,
                                      logits_processor=drawn)
        return self.words.tokenizer.decode_batch([self.spoken(row) for row in ids[:, 1:].tolist()],
                                                 skip_special_tokens=True)

    def spoken(self, row: list[int]) -> list[int]:
        """The ids before the first end token."""
        stop = next((place for place, token in enumerate(row) if token in self.words.end), len(row))
        return row[:stop]


class NucleusDraw:
    """A last processor of logits, after all constraints: it leaves but the drawn word, for a greedy search to take.

    transformers' own sampling draws for a whole batch at once, so a text would hang on who is written beside it.
    dice [B, longest], uniform in [0, 1): a number for each place of each text.
    """

    def __init__(self, p: float, dice: Tensor):
        self.p, self.dice = p, dice

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """-inf but for one word of each row.   ids [B, written so far], logits [B, V]"""
        fall, words = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = fall.cumsum(-1) - fall
        reached = (fall * (before < self.p)).cumsum(-1)                                    # the likeliest always stays
        aim = self.dice[:, ids.shape[1] - 1, None].double() * reached[:, -1:]
        place = torch.searchsorted(reached, aim, right=True).clamp(max=logits.shape[1] - 1)
        return torch.full_like(logits, -torch.inf).scatter(1, words.gather(1, place), 0.0)


# ---------------------------------------------------------------- its states, cached


@config
class LanguageModelStates:
    """All texts of train, valid and test as last encoder states, special tokens' included, raw.

    In the folder, per split: <split>.ids.npy int32 [N, L], <split>.mask.npy bool [N, L], <split>.encodings.npy
    [N, L, E]; tokenizer.json and tokens.json.
    """

    language_model: LanguageModelFolder
    length: int

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.language_model.data, self.language_model)

    def make(self, out: Path, context: Context) -> None:
        folder = context.get(self.language_model)
        encoder = FrozenLanguageModel.load(folder).to(context.device).encoder()
        for split in SPLITS:
            texts = [row["text"] for row in read_rows(context.get(self.language_model.data), split)]
            write_states(out, split, texts, self.length, encoder, self.language_model.model.weights.storage)
        copy_words(folder, out)


def write_states(out: Path, name: str, texts: list[str], length: int, encoder: FrozenEncoder, storage: str, *,
                 trimmed: bool = False, states: bool = True) -> None:
    """Tokens and (if `states`) states of these texts, cut at `length` tokens, as LanguageModelStates describes;
    `trimmed`: as long as the longest of them."""
    ids, mask = write_ids(out, name, texts, length, encoder.words, trimmed)
    if not int(mask.sum(1).min()):
        raise ConfigError("data", f"{name} has a text without a token")
    if int(mask.sum(1).max()) > encoder.positions:
        raise ConfigError("length", f"the encoder reads {encoder.positions} tokens at most, and {name} has more")
    if states:
        write_encodings(out / f"{name}.encodings.npy", ids, mask, encoder, np.dtype(storage))


def write_ids(out: Path, name: str, texts: list[str], length: int, words: Words,
              trimmed: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens of these texts and their mask, written and returned.   2 x [N, length]"""
    ids, mask = words.ids(texts, length)
    if trimmed:
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
    np.save(out / f"{name}.ids.npy", ids.numpy().astype(np.int32))
    np.save(out / f"{name}.mask.npy", mask.numpy())
    return ids, mask


def copy_words(folder: Path, out: Path) -> None:
    for name in ("tokenizer.json", TOKENS):
        shutil.copyfile(folder / name, out / name)
