"""The verdict of a set of metrics: how far samples are from real texts, in the metric that likes them least.

    departures(values)    {"memorisation": 12.4, "mauve": 1.1, ...}     1 = as much as chance or taste could explain
    worst(values)         12.4        the largest of them: a text that cheats one metric pays in another
    remarks(values)       ["memorisation .97, real .35"]                what a table's note should say

A departure is a difference from the real texts' value, in tolerances.  Some values have two bad sides: to be better
than real in the eyes of the judge is as suspect as to be worse.
"""

from collections.abc import Mapping

# Value -> (tolerance, the share of the real value that is added to it, which side of the real value is bad).
TOLERANCES: dict[str, tuple[float, float, str]] = {
    "illegal": (0.02, 0.0, "above"), "total_variation": (0.02, 0.5, "above"),
    "mauve": (0.05, 0.0, "below"), "fd": (0.002, 0.5, "above"), "judge_nll": (0.25, 0.0, "both"),
    "entropy": (0.1, 0.0, "both"), "diversity": (0.005, 0.2, "both"), "self_bleu": (0.05, 0.0, "both"),
    "duplicates": (0.05, 0.0, "above"), "memorisation": (0.05, 0.0, "above"), "copied": (0.05, 0.0, "above"),
}


def departures(values: Mapping[str, float]) -> dict[str, float]:
    """How far each value is on the bad side of its `_real`, in tolerances; values without either are left out."""
    found = {}
    for name, (tolerance, share, side) in TOLERANCES.items():
        if name in values and f"{name}_real" in values:
            real = values[f"{name}_real"]
            difference = (values[name] - real) / (tolerance + share * abs(real))
            bad = {"both": abs(difference), "above": difference, "below": -difference}[side]
            found[name] = max(bad, 0.0)
    return found


def worst(values: Mapping[str, float]) -> float:
    """The largest departure; 0 when nothing could be compared."""
    return max(departures(values).values(), default=0.0)


def remarks(values: Mapping[str, float], beyond: float = 3.0) -> list[str]:
    """The departures beyond so many tolerances, the largest first, in words."""
    far = sorted(((size, name) for name, size in departures(values).items() if size > beyond), reverse=True)
    return [f"{name} {values[name]:.3g}, real {values[f'{name}_real']:.3g}" for _, name in far]
