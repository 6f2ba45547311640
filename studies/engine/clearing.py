"""What nights leave behind: checkpoints, samples and caches of code that nobody will compare with any more.

    stages that cells of the watched studies stand on
        - those of the last `keep` nights, and of each study's good night
        - those of cells that ended after the last night, by one that was stopped      -> removed, folder by folder

Records, curves, values and texts stay for ever; they are small.  Nothing is touched that no record of a night names, so
ordinary studies may share the folder.  A removed stage that is asked for again, because the code went back, is made
again.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from studies.engine.ledger import Ledger
from studies.engine.nights import History, cells_of
from studies.engine.watched import Watched


def clear(history: History, studies: Iterable[Watched], keep: int) -> list[str]:
    """Remove what is of no use any more; the names of what was removed."""
    named: set[str] = set()
    needed: set[str] = set()
    for watched in studies:
        records = {record["key"]: record for record in Ledger(history.out / watched.study.name).cells()}
        nights = history.nights(watched.name)
        good = history.good(watched, cells_of(nights[-1])) if nights else None
        for night in (*nights[-keep:], *([good] if good else [])):
            for cell in night["cells"]:
                needed |= set(records.get(cell["key"], {}).get("stages", ()))
        since = nights[-1]["at"] if nights else 0.0
        needed |= {stage for record in records.values() if record["ended"] > since for stage in record["stages"]}
        named |= {stage for record in records.values() for stage in record["stages"]}
    return [name for name in sorted(named - needed) if remove(history.out / "stages" / name)]


def remove(folder: Path) -> bool:
    """Remove a finished stage; a reader sees all of it or nothing."""
    if not folder.is_dir():
        return False
    aside = folder.with_name(f"{folder.name}.gone.tmp")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
    return True
