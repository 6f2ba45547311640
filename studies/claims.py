"""What do the papers claim, and what of it holds here?

Each claim of claims.yaml is a difference between two arms of a study, in a metric, with a direction and a margin.  This
runs the cells that the claims still lack, and prints supported, refuted or undecided for each, with the interval, the
number of paired seeds and the cells behind it.  What is said is said of the scale that was asked: a laptop's refutation
is none of the paper's experiment.

    python studies/claims.py --dry-run                              what would run, and what it costs
    python studies/claims.py                                        run what is missing, and answer
    python studies/claims.py --only contextual-beats-embeddings --seeds 8
    python studies/claims.py --hours 2                              as far as two CPU (GPU) hours reach
    python studies/claims.py --report                               the answers again, from what is recorded
"""

import importlib
from pathlib import Path

from studies.engine.ask import main
from studies.engine.study import Study

HERE = Path(__file__).parent
STUDIES = sorted(path.stem for path in HERE.glob("*.py") if path.stem.startswith(("ablation_", "compare_")))


def load(name: str) -> Study:
    """The study of a file."""
    return importlib.import_module(f"studies.{name}").study


if __name__ == "__main__":
    main(HERE / "claims.yaml", STUDIES, load)
