"""Where a result came from: the commit, and what the tree said besides.

A tree that was sent to a cluster has no repository; it carries a file that says both.
"""

import hashlib
import json
import subprocess
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
    """The state of the repository that this file lies in; commit "unknown" outside of one."""
    if (root / CARRIED).exists():
        return Code(**json.loads((root / CARRIED).read_text(encoding="utf-8")))
    commit = _git(root, "rev-parse", "HEAD").strip()
    if not commit:
        return Code("unknown", "")
    new = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    diff = _git(root, "diff", "HEAD", "--no-ext-diff") + "".join(f"untracked: {name}\n" for name in new)
    return Code(commit, diff[:LONGEST])


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20,
                              errors="replace", check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
