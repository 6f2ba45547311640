"""Texts on disk: one JSON object a line, {"text": ..., optional "source": ..., "class": ...}, one file per split.

    folder/train.jsonl      what a model learns from
    folder/judge.jsonl      what the judge learns from, so that no judge ever knew a model's training texts
    folder/valid.jsonl      for choosing
    folder/test.jsonl       for reporting, once
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from trainables.config import ConfigError, near

SPLITS = ("train", "judge", "valid", "test")
Row = dict[str, str]


def read_rows(folder: Path, split: str) -> list[Row]:
    """All rows of a split, in order.  ConfigError when there is no such split."""
    return [row for rows in row_blocks(folder, split, sys.maxsize) for row in rows]


def row_blocks(folder: Path, split: str, size: int) -> Iterator[list[Row]]:
    """The rows of a split in order, `size` at a time.  ConfigError when there is no such split."""
    path = folder / f"{split}.jsonl"
    if not path.exists():
        raise ConfigError("", f"no split {split!r} in {folder}{near(split, SPLITS)}")
    with open(path, encoding="utf-8") as lines:
        while block := [json.loads(line) for line in itertools.islice(lines, size)]:
            yield block


def count_rows(folder: Path, split: str) -> int:
    """How many rows a split has, without reading what they say."""
    with open(folder / f"{split}.jsonl", "rb") as lines:
        return sum(1 for _ in lines)


def read_texts(folder: Path, split: str) -> list[str]:
    """The texts of a split, in order."""
    return [row["text"] for row in read_rows(folder, split)]


def write_rows(folder: Path, splits: Mapping[str, Iterable[Row]]) -> None:
    """One file per split."""
    for split, rows in splits.items():
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tidy(text: str) -> str:
    """The text with every run of white space a single blank."""
    return " ".join(text.split())


def deal(rows: list[Row], groups: list[str], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]]:
    """Deal rows to splits; rows of one group go to one split, whatever order the file had them in.

    The groups are put in an order that only (seed, group) decides, and every split takes groups until it has its share
    of the rows.  ConfigError when that leaves a split without rows.
    """
    members: dict[str, list[Row]] = {}
    for row, group in zip(rows, groups, strict=True):
        members.setdefault(group, []).append(row)
    order = sorted(members, key=lambda group: hashlib.blake2b(f"{seed} {group}".encode()).digest())

    splits: dict[str, list[Row]] = {name: [] for name in shares}
    names, dealt, due = iter(shares.items()), 0, 0.0
    split = next(iter(shares))
    for group in order:
        while dealt >= round(due):
            split, share = next(names)
            due += share / sum(shares.values()) * len(rows)
        splits[split] += members[group]
        dealt += len(members[group])
    for name, dealt_rows in splits.items():
        if not dealt_rows:
            raise ConfigError("", f"too few texts: {len(rows)} in {len(members)} groups leave none for {name!r}")
    return splits
