"""The families of encoders: each class decides its tokenizer, architecture and pretraining objective.

    Bert | Roberta | T5 | Bart        contextual: hidden states of the last layer (T5, BART: of the encoder half)
    Embeddings(of=Bert())             no context: the static token embeddings of another encoder

    weights = Pretrained(name="google-bert/bert-base-cased")     from the Hugging Face hub
              Folder(name, digest)                               the user's folder, known by its content: `imported`
              Small(layers=2, width=128, ...)                    transformers' own model, trained here on the corpus

transformers takes seconds to import, so it is imported where a model is made and nowhere else.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from trainables.config import ConfigError, config
from trainables.text.checkpoints import read_about
from trainables.text.pretraining import Infilling, MaskedWords, SpanCorruption
from trainables.text.tokenizers import POSITIONS, byte_level_bpe, unigram, wordpiece
from trainables.training.learning_rate import Cosine
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


# ---------------------------------------------------------------- where weights come from


@config
class Pretrained:
    """A hub checkpoint.  A folder's name may stand here until `imported` has put its content in its place."""

    name: str
    revision: str = "main"                     # a commit, for a result that others can have again

    storage: ClassVar[str] = "float16"         # of cached encodings, see encodings.py


@config
class Folder:
    """A folder's checkpoint that `imported` has put into the store."""

    name: str                                  # for people: what the folder was called
    digest: str                                # of its files

    storage: ClassVar[str] = "float16"


@config
class Small:
    """A small model of the family, trained here on the corpus."""

    layers: int = 2
    decoder_layers: int = 1                    # of T5's and BART's other half, which is thrown away
    width: int = 128
    heads: int = 4
    feedforward: int = 512
    dropout: float = 0.1
    vocabulary: int = 2_000                    # pieces, at most
    hidden: float = 0.15                       # share of a text, as published (BART hides twice that)
    length: int = 64                           # tokens of a training text; longer ones are cut
    training: Training = Training(optimizer=AdamW(lr=1e-3), schedule=Cosine(warmup=50), steps=1_000, batch=64)
    seed: int = 0

    storage: ClassVar[str] = "float32"

    def __post_init__(self):
        for name in ("layers", "decoder_layers", "width", "heads", "feedforward"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if not 0 < self.hidden <= 0.45:
            raise ValueError(f"hidden is a share in (0, 0.45], not {self.hidden}")
        if self.vocabulary < 300:
            raise ValueError(f"vocabulary must be at least 300 pieces (256 of them bytes), not {self.vocabulary}")
        if not 4 <= self.length <= POSITIONS // 2:
            raise ValueError(f"length must lie in 4..{POSITIONS // 2} tokens, not {self.length}")

    @property
    def deviation(self) -> float:
        """Of the initial weights: the published .02 belongs to a width of 768; narrow layers start with larger ones."""
        return 0.02 * (768 / self.width) ** 0.5


Weights = Pretrained | Folder | Small


# ---------------------------------------------------------------- the families


@config
class Bert:
    """WordPiece, masked language modelling with static masks.   arXiv 1810.04805"""

    weights: Weights = Pretrained(name="google-bert/bert-base-cased")
    model_type: ClassVar[str] = "bert"

    def tokenizer(self, texts: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
        return wordpiece(texts, vocabulary)

    def untrained(self, small: Small, tokenizer: "PreTrainedTokenizerFast") -> nn.Module:
        """A model of that size inside its objective."""
        from transformers import BertConfig, BertForMaskedLM

        model = BertForMaskedLM(BertConfig(
            vocab_size=len(tokenizer), hidden_size=small.width, num_hidden_layers=small.layers,
            num_attention_heads=small.heads, intermediate_size=small.feedforward, max_position_embeddings=POSITIONS,
            hidden_dropout_prob=small.dropout, attention_probs_dropout_prob=small.dropout,
            initializer_range=small.deviation, pad_token_id=_id(tokenizer.pad_token_id)))
        return MaskedWords(model, model.cls, mask=_id(tokenizer.mask_token_id), special=_special(tokenizer),
                           share=small.hidden, static=True)

    def half(self, model: Any) -> "PreTrainedModel":
        """What of the trained model encodes."""
        return model.bert

    def load(self, folder: Path, **how: Any) -> Any:
        from transformers import BertModel

        return BertModel.from_pretrained(folder, add_pooling_layer=False, **how)


@config
class Roberta:
    """Byte-level BPE, masked language modelling with masks drawn anew each time.   arXiv 1907.11692"""

    weights: Weights = Pretrained(name="FacebookAI/roberta-base")
    model_type: ClassVar[str] = "roberta"

    def tokenizer(self, texts: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
        return byte_level_bpe(texts, vocabulary)

    def untrained(self, small: Small, tokenizer: "PreTrainedTokenizerFast") -> nn.Module:
        """A model of that size inside its objective."""
        from transformers import RobertaConfig, RobertaForMaskedLM

        model = RobertaForMaskedLM(RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=small.width, num_hidden_layers=small.layers,
            num_attention_heads=small.heads, intermediate_size=small.feedforward,
            max_position_embeddings=POSITIONS + 2, type_vocab_size=1,       # positions count from the pad id, plus one
            hidden_dropout_prob=small.dropout, attention_probs_dropout_prob=small.dropout,
            initializer_range=small.deviation, **_ids(tokenizer)))
        return MaskedWords(model, model.lm_head, mask=_id(tokenizer.mask_token_id), special=_special(tokenizer),
                           share=small.hidden, static=False)

    def half(self, model: Any) -> "PreTrainedModel":
        """What of the trained model encodes."""
        return model.roberta

    def load(self, folder: Path, **how: Any) -> Any:
        from transformers import RobertaModel

        return RobertaModel.from_pretrained(folder, add_pooling_layer=False, **how)


@config
class T5:
    """Unigram pieces, span corruption; the encoder half.   arXiv 1910.10683"""

    weights: Weights = Pretrained(name="google-t5/t5-base")
    model_type: ClassVar[str] = "t5"

    def tokenizer(self, texts: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
        return unigram(texts, vocabulary)

    def untrained(self, small: Small, tokenizer: "PreTrainedTokenizerFast") -> nn.Module:
        """A model of that size inside its objective."""
        from transformers import T5Config, T5ForConditionalGeneration

        pad, end = _id(tokenizer.pad_token_id), _id(tokenizer.eos_token_id)
        model = T5ForConditionalGeneration(T5Config(
            vocab_size=len(tokenizer), d_model=small.width, d_kv=small.width // small.heads, d_ff=small.feedforward,
            num_layers=small.layers, num_decoder_layers=small.decoder_layers, num_heads=small.heads,
            dropout_rate=small.dropout, pad_token_id=pad, eos_token_id=end))
        model.config.decoder_start_token_id = pad
        sentinels = tuple(i for i in _special(tokenizer) if "extra_id" in str(tokenizer.convert_ids_to_tokens(i)))
        return SpanCorruption(model, sentinels=sentinels, pad=pad, end=end, share=small.hidden)

    def half(self, model: Any) -> "PreTrainedModel":
        """What of the trained model encodes."""
        from transformers import T5EncoderModel

        encoder = T5EncoderModel(model.config)
        encoder.load_state_dict({name: model.state_dict()[name] for name in encoder.state_dict()})
        return encoder

    def load(self, folder: Path, **how: Any) -> Any:
        from transformers import T5EncoderModel

        return T5EncoderModel.from_pretrained(folder, **how)


@config
class Bart:
    """Byte-level BPE, denoising of infilled text; the encoder half.   arXiv 1910.13461"""

    weights: Weights = Pretrained(name="facebook/bart-base")
    model_type: ClassVar[str] = "bart"

    def tokenizer(self, texts: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
        return byte_level_bpe(texts, vocabulary)

    def untrained(self, small: Small, tokenizer: "PreTrainedTokenizerFast") -> nn.Module:
        """A model of that size inside its objective."""
        from transformers import BartConfig, BartForConditionalGeneration

        end = _id(tokenizer.eos_token_id)
        model = BartForConditionalGeneration(BartConfig(
            vocab_size=len(tokenizer), d_model=small.width, encoder_layers=small.layers,
            decoder_layers=small.decoder_layers, encoder_attention_heads=small.heads,
            decoder_attention_heads=small.heads,
            encoder_ffn_dim=small.feedforward, decoder_ffn_dim=small.feedforward, max_position_embeddings=POSITIONS,
            dropout=small.dropout, init_std=small.deviation, decoder_start_token_id=end, forced_eos_token_id=end,
            **_ids(tokenizer)))
        return Infilling(model, mask=_id(tokenizer.mask_token_id), pad=_id(tokenizer.pad_token_id), end=end,
                         share=2 * small.hidden)

    def half(self, model: Any) -> "PreTrainedModel":
        """What of the trained model encodes."""
        return model.get_encoder()

    def load(self, folder: Path, **how: Any) -> Any:
        from transformers import BartModel
        from transformers.models.bart.modeling_bart import BartEncoder

        if "BartEncoder" in (read_about(folder).get("architectures") or ()):
            return BartEncoder.from_pretrained(folder, **how)
        loaded: Any = BartModel.from_pretrained(folder, **how)
        model, info = loaded
        info["missing_keys"] = {name for name in info["missing_keys"] if not name.startswith("decoder.")}
        return model.get_encoder(), info


Contextual = Bert | Roberta | T5 | Bart


@config
class Embeddings:
    """The static token embeddings of an encoder: every word the same vector wherever it stands."""

    of: Contextual = Bert()


Encoder = Bert | Roberta | T5 | Bart | Embeddings


def _id(value: Any) -> int:
    if not isinstance(value, int):
        raise ConfigError("weights", "the tokenizer lacks a special token that this family needs")
    return value


def _ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, Any]:
    return {f"{name}_token_id": _id(getattr(tokenizer, f"{name}_token_id")) for name in ("pad", "bos", "eos")}


def _special(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    return tuple(sorted(set(tokenizer.all_special_ids)))
