"""What travels to a cluster with a command: the working tree, the files that the command names, and where it came from.

    git ls-files, changed and new files too; what .gitignore names stays      --+
    --data and --test-data files, folders of weights in --set                   +--> a folder, which Ray takes along as
    .provenance.json: the commit, and what the tree says besides              --+    the job's working directory

A path that is on this machine travels, and the command names its copy.  An absolute path that is not here is taken for
the cluster's.  What would be lost or misread there is refused here: results must go where all of its machines see them.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from studies.engine.provenance import CARRIED, ROOT, code
from studies.engine.study import BadInput
from trainables.text.encoders import names_folder
from trainables.text.files import FORM

MIB = 2**20
MOST = 95 * MIB                         # Ray's dashboard takes 100 MiB, and holds it in memory
LEFT = (".git", ".venv", "__pycache__", "results")       # where git cannot say what stays
HERE = {"--on", "--json"}               # flags with a value that mean something on this machine alone
FILES = {"--data", "--test-data"}
THERE = {"--out": "a folder that all of the cluster's machines see", "--store": "such a folder, or a URL",
         "--storage": "a file in such a folder, or a URL"}


@dataclass(frozen=True)
class Parcel:
    """What was packed."""

    folder: Path
    command: tuple[str, ...]            # the script and its arguments, as the cluster runs them
    digest: str                         # of the command and the files it names: typed again, it means the same job
    tree: str                           # of everything
    commit: str

    @property
    def out(self) -> str | None:
        """Where the command wants its results; None: where the cluster keeps them."""
        return next((given for flag, given in options(self.command[1:]) if flag == "--out"), None)


def pack(script: Path, arguments: Iterable[str], into: Path, root: Path = ROOT) -> Parcel:
    """Put everything that the command needs into an empty folder.   BadInput"""
    if not script.is_relative_to(root):
        raise BadInput(f"--on runs a file of {root}, which {script} is not")
    for name in listing(root):
        source, target = root / name, into / name
        if source.is_file():                    # not a deleted one, nor a link to nowhere
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    weigh(into, "the working tree", "let .gitignore name what is no code")
    carried, words = into / "carried", [str(script.relative_to(root))]
    for flag, given in options(arguments):
        if flag in HERE or flag == "--stop":
            continue
        words += [flag] if given is None else [flag, rewritten(flag, given, carried)] if flag else [given]
    weigh(into, "the tree and the files that are named", "copy the files to where the cluster's machines see them")
    source = code(root)
    (into / CARRIED).write_text(json.dumps({"commit": source.commit, "diff": source.diff}), encoding="utf-8")
    meant = sorted(options(words[1:]), key=lambda option: option[0])       # stable: --set twice keeps its order
    return Parcel(into, tuple(words), digest([words[0], *(f"{flag} {given}" for flag, given in meant)], carried),
                  digest([], into), source.commit)


def options(words: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(flag, value) of a command line: ("", word) for what stands alone, (flag, None) for a flag without a value."""
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            yield "", word
        elif "=" in word:
            flag, _, value = word.partition("=")
            yield flag, value
        elif words and not words[0].startswith("--") and word not in ALONE:
            yield word, words.pop(0)
        else:
            yield word, None


ALONE = {"--dry-run", "--report", "--decide", "--stop", "--help"}       # of the flags that all studies have


def listing(root: Path) -> list[str]:
    """The files of the working tree that are code, as git sees it."""
    try:
        said = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                              capture_output=True, check=True, timeout=60).stdout
        return sorted({os.fsdecode(name) for name in said.split(b"\0") if name})
    except (OSError, subprocess.SubprocessError):
        return sorted(str(path.relative_to(root)) for path in root.rglob("*")
                      if path.is_file() and not set(LEFT) & set(path.relative_to(root).parts))


# ---------------------------------------------------------------- what the command names


def rewritten(flag: str, given: str, carried: Path) -> str:
    """The value of an option as the cluster is to read it; what it names here comes along.   BadInput"""
    if flag in THERE and "://" not in given and not Path(given).is_absolute():
        raise BadInput(f"{flag} {given}: with --on it is the cluster's, so an absolute path: {THERE[flag]}.  "
                       "Without --out, results go where the cluster keeps them, and reports come here")
    if flag in FILES:
        return of_data(flag, given, carried)
    if flag == "--set":
        path, equals, value = given.partition("=")
        return path + equals + re.sub(r"""^[^'"()]+$|(?<=['"])[^'"]+(?=['"])""",
                                      lambda found: of_weights(found[0], carried), value)
    return given


def of_data(flag: str, given: str, carried: Path) -> str:
    """`reviews.csv:text` -> `carried/0/reviews.csv:text`"""
    form = FORM.fullmatch(given)
    named = form["path"] if form else given
    path = Path(named).expanduser()
    if path.is_file():
        return f"{brought(path, carried, flag)}{given.removeprefix(named)}"
    if form and not path.is_absolute():
        raise BadInput(f"{flag} {given}: no such file")
    return given


def of_weights(given: str, carried: Path) -> str:
    """A folder of weights, as `imported` will read it."""
    path = Path(given).expanduser()
    if names_folder(given) and path.is_dir():
        return f"./{brought(path, carried, '--set')}"
    if names_folder(given) and not path.is_absolute():
        raise BadInput(f"--set {given}: no such folder")
    return given


def brought(path: Path, carried: Path, flag: str) -> str:
    """Copy a file or a folder, under its own name, which is part of what a cell is; its place in the parcel."""
    place = carried / str(len(list(carried.iterdir())) if carried.exists() else 0) / path.resolve().name
    size = sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())
    check_size(size, f"{flag} {path}", f"copy it to the cluster (ray rsync-up FILE.yaml {path} /results/{path.name}) "
                                       "and name it by its path there")
    place.parent.mkdir(parents=True)
    if path.is_dir():
        shutil.copytree(path, place)
    else:
        shutil.copy2(path, place)
    return str(place.relative_to(carried.parent))


def weigh(folder: Path, what: str, remedy: str) -> None:
    """BadInput: more than travels."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    largest = max(sizes, key=lambda path: sizes[path], default=folder)
    check_size(sum(sizes.values()), what, f"{remedy}; its largest file is {largest.relative_to(folder)}")


def check_size(size: int, what: str, remedy: str) -> None:
    if size > MOST:
        raise BadInput(f"{what}: {size / MIB:.0f} MiB, and at most {MOST // MIB} MiB travel with a command: {remedy}")


def digest(words: Iterable[str], folder: Path) -> str:
    """Of words, and of all files in a folder."""
    said = hashlib.sha256("\0".join(words).encode())
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.is_file():
            said.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return said.hexdigest()[:10]
