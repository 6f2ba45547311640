"""Checkpoints in Hugging Face format: how they are had, and which are refused.

    config.json          says the family (model_type)
    *.safetensors        the weights; pickled ones are refused, for they can run code
    tokenizer files      a fast tokenizer's

    hub_folder(name, revision)        a hub checkpoint's folder, downloaded or from the hub's own cache
    keep_folder(folder, store)        copies a folder's checkpoint into the store => the digest of its files
    kept_folder(digest, store, into)  ... and back, on any machine that shares the store
    shelved(digest, store)            where the store keeps it, if it does so on this machine
    check_folder(folder, model_type)  ConfigError, in one line, where a folder cannot serve; reads no weights
    quietly()                         transformers without progress bars and load reports
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import fsspec

from trainables.config import ConfigError
from trainables.stages import Store

PARTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
         "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model")


def hub_folder(name: str, revision: str) -> Path:
    """The folder of a hub checkpoint; its name is the commit.   ConfigError when it cannot be had"""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PARTS), ignore_patterns=["*/*"]))
    except Exception as error:                             # the library raises many kinds: its words, in one line
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise ConfigError("weights.name", f"cannot get {name!r} at {revision!r} from the Hugging Face hub{offline}: "
                                          f"{reason}") from error
    finally:
        enable_progress_bars()


def check_folder(folder: Path, model_type: str, path: str = "weights.name") -> None:
    """ConfigError unless the folder holds an encoder checkpoint of this family, as far as can be seen from outside."""
    def refuse(problem: str) -> ConfigError:
        return ConfigError(path, f"{folder} {problem}")

    if not folder.is_dir():
        raise refuse("is no folder")
    about = read_about(folder, path)
    kind = about.get("model_type")
    if kind != model_type:
        raise refuse(f"holds a model of type {kind!r}, and this encoder must be of type {model_type!r}")
    if about.get("is_decoder"):
        raise refuse("holds a decoder: it sees no word that comes later")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        raise refuse("has pickled weights only; save them as safetensors first" if pickled else "has no *.safetensors")
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")):
        raise refuse("has no tokenizer")


def weight_names(folder: Path, path: str = "weights.name") -> set[str]:
    """What the checkpoint's weights are called; none is read.   ConfigError: a damaged file"""
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                names |= set(weights.keys())
        except SafetensorError as error:
            raise ConfigError(path, f"{file} cannot be read: {error}") from None
    return names


def read_about(folder: Path, path: str = "weights.name") -> dict[str, Any]:
    """The checkpoint's config.json.   ConfigError: there is none that can be read"""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(path, f"{folder} is no checkpoint: it has no config.json") from None
    except ValueError:
        raise ConfigError(path, f"{folder} is no checkpoint: its config.json is not JSON") from None
    return about if isinstance(about, dict) else {}


# ---------------------------------------------------------------- the store's shelf of imported folders


def keep_folder(folder: Path, store: Store) -> str:
    """Copy the checkpoint in `folder` into the store, unless it is there.   => the digest of its files"""
    files = sorted(path for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, p) for p in PARTS))
    listing = {path.name: _digest(path) for path in files}
    digest = hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()[:16]
    there, shelf = _shelf(store, digest)
    if not there.exists(f"{shelf}/whole.json"):
        there.makedirs(shelf, exist_ok=True)
        for path in files:
            there.put_file(str(path), f"{shelf}/{path.name}")
        there.pipe_file(f"{shelf}/whole.json", json.dumps(listing).encode())        # last: half a copy is no copy
    return digest


def kept_folder(digest: str, store: Store, into: Path) -> Path:
    """Fetch what `keep_folder` put there into the new folder `into`.   ConfigError: not in this store"""
    there, shelf = _shelf(store, digest)
    try:
        listing = json.loads(there.cat_file(f"{shelf}/whole.json"))
    except FileNotFoundError:
        raise ConfigError("weights.digest", f"no checkpoint {digest} in this store: name its folder again") from None
    into.mkdir(parents=True)
    for name in listing:
        there.get_file(f"{shelf}/{name}", str(into / name))
    return into


def shelved(digest: str, store: Store) -> Path | None:
    """Where the store keeps what `keep_folder` put there, if that can be looked into from here."""
    shelf = store.folder / "imports" / digest
    return shelf if not store.remote and (shelf / "whole.json").exists() else None


def _shelf(store: Store, digest: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(f"{store.url if store.remote else store.folder}/imports/{digest}")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- transformers


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, transformers reports errors only and draws nothing."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
