"""Tokenizers in three kinds, trained on the corpus: each family of encoders brings its own.

    wordpiece        BERT            [CLS] the cat . [SEP]      words and ##pieces; blanks are not kept
    byte_level_bpe   RoBERTa, BART   <s> Ġthe Ġcat . </s>       bytes, merged; nothing is ever unknown
    unigram          T5              ▁the ▁cat . </s>           pieces of a likelihood, and 100 sentinels

All three cut a text into words and punctuation first, so that on a corpus with few words every word is one token
whatever stands beside it, and all give the text back: byte-level BPE always, unigram as long as it knows the
characters, WordPiece by rules for the blanks around punctuation that `spacing` reads off the corpus.

Each returns a transformers fast tokenizer; `vocabulary` is the most pieces it may have (T5's sentinels come on top).
`Words` is what is left of any tokenizer once its encoder has been run: texts to ids and back, and which ids are
special.  It reads two small files and does not need transformers.
"""

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")     # said before its first use: a forked worker would warn

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

POSITIONS = 512                      # what BERT, RoBERTa, T5 and BART were (at least) made for
SENTINELS = 100                      # T5's <extra_id_0> ... <extra_id_99>
TOKENS = "tokens.json"


def wordpiece(texts: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """BERT's: longest match first, continued with ##; cased."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The trainer numbers ##letters in the order of a hash table, and breaks ties by number; told them first, in order,
    # it learns the same pieces every time.
    letters = sorted({f"##{letter}" for text in texts for letter in text if not letter.isspace()})
    scratch = _wordpiece()
    scratch.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special + letters, show_progress=False))
    tokenizer = _wordpiece(scratch.get_vocab())
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = spacing(texts)
    return _framed(tokenizer, "[CLS]", "[SEP]", pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                   sep_token="[SEP]", mask_token="[MASK]")


def _wordpiece(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary or {}, unk_token="[UNK]"))                # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_level_bpe(texts: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """GPT-2's, as RoBERTa and BART use it; the first word carries a blank too, so that it is the same token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False,
                                   initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return _framed(tokenizer, "<s>", "</s>", pad_token="<pad>", unk_token="<unk>", bos_token="<s>", cls_token="<s>",
                   eos_token="</s>", sep_token="</s>", mask_token="<mask>")


def unigram(texts: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """SentencePiece's unigram model as T5 uses it, except that punctuation is never glued to a word."""
    cut = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]|\s"), "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False)])
    words = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(text) if not word.isspace())
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram(_pieces(words, vocabulary), unk_id=2))      # type: ignore[call-arg]
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    tokenizer.add_special_tokens([*special, *sentinels])
    return _framed(tokenizer, "", "</s>", pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
                   extra_special_tokens=sentinels)


def _pieces(words: Mapping[str, int], vocabulary: int) -> list[tuple[str, float]]:
    """At most `vocabulary` pieces of words said so often, and their scores: <pad>, </s>, <unk>, then likeliest first.

    ValueError: fewer than the different characters, which always stay
    """
    letters = len(set[str]().union(*words))
    if letters + 3 > vocabulary:
        raise ValueError(f"a vocabulary of {vocabulary} pieces is too small for {letters} different characters and 3 "
                         "special tokens")
    # SentencePiece's candidates are what repeats and is followed by different things.  Where words are few that is no
    # whole word, so each is shown twice: once it ends there, and once a blank follows.
    lines = [f"{word}{blank}\t{times}" for word, count in sorted(words.items())
             for blank, times in (("", count - 1), (" ", 1)) if times]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), input_format="tsv", model_writer=model, model_type="unigram",
        vocab_size=vocabulary, hard_vocab_limit=False, character_coverage=1.0, num_threads=1, minloglevel=2,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    trained = SentencePieceProcessor(model_proto=model.getvalue())
    return [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]


def _framed(tokenizer: Tokenizer, start: str, end: str, **names: Any) -> "PreTrainedTokenizerFast":
    """The tokenizer with special tokens around every text, told which token plays which part."""
    from transformers import PreTrainedTokenizerFast  # a second, and only where tokenizers are made

    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}".strip(), special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=POSITIONS, **names)


def spacing(texts: Iterable[str]) -> Any:
    """WordPiece's decoder for this corpus: punctuation loses the blank before (after) it where these texts mostly have
    none there."""
    seen, bare_before, bare_after = Counter[str](), Counter[str](), Counter[str]()
    for text in texts:
        padded = f" {text} "
        for before, mark, after in zip(padded, padded[1:], padded[2:], strict=False):
            if not mark.isalnum() and not mark.isspace():
                seen[mark] += 1
                bare_before[mark] += not before.isspace()
                bare_after[mark] += not after.isspace()
    before = [decoders.Replace(f" {mark}", mark) for mark in sorted(seen) if 2 * bare_before[mark] > seen[mark]]
    after = [decoders.Replace(f"{mark} ", mark) for mark in sorted(seen) if 2 * bare_after[mark] > seen[mark]]
    return decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *before, *after])


@dataclass(frozen=True)
class Words:
    """Texts to ids and back.   V = vocabulary"""

    tokenizer: Tokenizer
    vocabulary: int
    pad: int
    start: tuple[int, ...]               # what stands before every text: one id, or none (T5)
    end: tuple[int, ...]                 # any of these ends a text
    special: tuple[int, ...]
    unused: tuple[int, ...]              # ids that no text can have, or that no training text had

    @staticmethod
    def save(tokenizer: "PreTrainedTokenizerFast", folder: Path, texts: Sequence[str] = (), *,
             published: Path | None = None, decoder: Any = None) -> None:
        """Write the tokenizer and what `load` wants to know.

        With `texts`, pieces that none of them has are unused.  `published`: the tokenizer.json it came with, if there
        is one; `decoder` replaces its decoder.
        """
        kept = published is not None and published.exists()
        backend = Tokenizer.from_file(str(published)) if kept else tokenizer.backend_tokenizer
        backend.no_padding()
        if decoder is not None:
            backend.decoder = decoder
        special, ends = sorted(set(tokenizer.all_special_ids)), [tokenizer.eos_token_id, tokenizer.sep_token_id]
        vocabulary = backend.get_vocab()
        unused = {i for word, i in vocabulary.items() if re.fullmatch(r"\[unused\d+\]|madeupword\d+", word)}
        if texts:
            seen = {i for encoding in backend.encode_batch(list(texts)) for i in encoding.ids}
            unused |= set(vocabulary.values()) - seen - set(special)
        parts = {"pad": tokenizer.pad_token_id, "start": [i for i in backend.encode("").ids if i not in ends],
                 "end": sorted({i for i in ends if isinstance(i, int)}), "special": special, "unused": sorted(unused)}
        tokenizer.save_pretrained(folder)
        backend.save(str(folder / "tokenizer.json"))
        (folder / TOKENS).write_text(json.dumps(parts))

    @classmethod
    def load(cls, folder: Path) -> "Words":
        """From a folder that `save` wrote to."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        parts = json.loads((folder / TOKENS).read_text())
        lists = {name: tuple(parts[name]) for name in ("start", "end", "special", "unused")}
        return cls(tokenizer, tokenizer.get_vocab_size(), parts["pad"], **lists)

    def ids(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """ids [B, length] int64 with special tokens, cut and padded; mask [B, length] bool"""
        ids, mask, _ = self.read(texts, length)
        return ids, mask

    def read(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
        """`ids`, and how many words between blanks [B] int64 of each text they stand for, unknown ones among them."""
        self.tokenizer.enable_truncation(length)
        self.tokenizer.no_padding()
        ids = torch.full((len(texts), length), self.pad)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        count = torch.zeros(len(texts), dtype=torch.long)
        for row, (text, encoding) in enumerate(zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True)):
            ids[row, :len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, :len(encoding.ids)] = True
            kept = text[:max(end for _, end in encoding.offsets)] if encoding.overflowing else text
            count[row] = len(kept.split())
        return ids, mask, count

    def texts(self, ids: Tensor) -> list[str]:
        """ids [B, L] -> B texts: what stands before the first end token, without special tokens."""
        ended = torch.isin(ids, torch.tensor(self.end, device=ids.device)).cumsum(1) > 0
        rows = [row[:int(stop)].tolist() for row, stop in zip(ids, (~ended).sum(1), strict=True)]
        return self.tokenizer.decode_batch(rows, skip_special_tokens=True)
