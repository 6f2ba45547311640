"""A study that is watched at night, its nights as the history has them, and what is said of one."""

import importlib
import textwrap
from pathlib import Path
from typing import Any

from studies.engine.nights import cells_of, judge_night
from studies.engine.study import Arm, BadInput, Maximise, Minimise, Scale, Study, Watch
from studies.engine.watched import read_nightly

SAID = '''
    false_alarms = 0.01
    [studies.toy]
    study = "toy"
    scale = "laptop"
    seeds = 4
    most = 6
    speed = "15%"
    [studies.toy.margins]
    "test/error" = "2%"
    "test/quality" = 0.05
    '''


def toy(module: str = "fake_trial") -> Study:
    recipe = importlib.import_module(module).recipe
    return Study(name="toy", question="Which kind?", arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})},
                 scales={"laptop": Scale(recipe)},
                 report=(Minimise("test/error"), Maximise("test/quality"), Watch("threads")))


def found(name: str) -> Study:
    if name != "toy":
        raise BadInput(f"no study {name!r}")
    return toy()


def write(folder: Path, text: str = SAID) -> Path:
    path = folder / "nightly.toml"
    path.write_text(textwrap.dedent(text))
    return path


def night(cells: list[dict], verdict: str = "pass", **more: Any) -> dict:
    return {"kind": "night", "study": "toy", "number": 1, "night": "2026-01-01", "at": 0.0, "host": "h",
            "commit": "c" * 40, "dirty": False, "code": {}, "scale": "laptop", "verdict": verdict, "why": "because",
            "findings": [], "compared_with": None, "changed": [], "suspects": [], "cells": cells} | more


def cells(error: float, key: str = "k", speed: float = 100.0, seeds: int = 6, **more: Any) -> list[dict]:
    return [{"arm": arm, "seed": seed, "key": f"{key}-{arm}-{seed}", "config": f"c-{arm}-{seed}", "status": "done",
             "reason": "", "host": "h", "speed": speed + seed,
             "metrics": {"test/error": error + seed, "test/quality": 10 - error - seed}} | more
            for arm in ("plain", "fancy") for seed in range(seeds)]


def judged(tmp_path: Path, good: list[dict] | None, now: list[dict], **more: Any) -> Any:
    watched = read_nightly(write(tmp_path), found).studies[0]
    return judge_night(watched, night(good) if good else None, cells_of({"cells": now}), **more)
