"""Where a result came from: the commit, and what the tree said besides.

A tree that was sent to a cluster has no repository; it carries a file that says both.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 500_000                       # characters of a diff that are kept
CARRIED = ".provenance.json"            # what a sent tree says of itself


@dataclass(frozen=True)
class Code:
    """The code that runs: commit, and the difference of the working tree to it ("" when clean)."""

    commit: str
    diff: str

    @property
    def digest(self) -> str:
        """What the difference is filed under; "" when clean."""
        return hashlib.sha256(self.diff.encode()).hexdigest()[:12] if self.diff else ""


def code(root: Path = ROOT) -> Code:
    """The state of the repository that this file lies in.

    Outside of one, as in an image, it is the commit that PALIMPSEST_COMMIT names, or "unknown".
    """
    if (root / CARRIED).exists():
        return Code(**json.loads((root / CARRIED).read_text(encoding="utf-8")))
    commit = _git(root, "rev-parse", "HEAD").strip()
    if not commit:
        return Code(os.environ.get("PALIMPSEST_COMMIT") or "unknown", "")
    new = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    diff = _git(root, "diff", "HEAD", "--no-ext-diff") + "".join(f"untracked: {name}\n" for name in new)
    return Code(commit, diff[:LONGEST])


def commits(old: str, new: str, paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """The commits after `old`, up to `new`, that touch these paths, latest first; [] where git does not know."""
    said = _git(root, "log", "--no-merges", "--format=%h %an: %s", f"{old}..{new}", "--", *paths)
    return said.splitlines()


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20,
                              errors="replace", check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
