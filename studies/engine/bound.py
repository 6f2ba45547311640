"""What a search may cost: --hours bounds its points and the comparison behind them together.

    spent by points that have ended  +  expected of those at work  +  kept for the comparison  +  one more point
                                                                          more than the hours: nothing new is asked for

Costs are those that cells have told, of earlier commands and of all drivers; a point that nothing is known about costs
nothing, so the first few are asked for, as many as can run at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from studies.engine.budget import Budget
from studies.engine.search import Search


@dataclass
class Bound:
    """`unit`: GPU or CPU, whose hours are counted.   cells: what will be compared when the search is over"""

    budget: Budget = Budget()
    unit: str = "CPU"
    cells: int = 0
    said: str = ""                      # why nothing more is asked for, once that is so

    @property
    def what(self) -> str:
        return f"{self.unit.lower()}_hours"

    def spent(self, searches: Iterable[Search]) -> float:
        """Hours of all points that have ended."""
        return sum(hours for one in searches for _, hours in one.costs(self.what).values())

    def usual(self, searches: Iterable[Search], whole: bool = False) -> float | None:
        """Mean hours of a point, or of a `whole` one, which ran to its end; None where none is known."""
        known = [hours for one in searches for status, hours in one.costs(self.what).values()
                 if status == "done" or not whole]
        return sum(known) / len(known) if known else None

    def kept(self, searches: Iterable[Search]) -> float:
        """Hours that the comparison is expected to take."""
        return self.cells * (self.usual(searches, whole=True) or 0.0)

    def reached(self, searches: list[Search], concurrent: int) -> bool:
        """Whether the hours do not bear one more point."""
        if self.budget.hours is None:
            return False
        spent, kept, each = self.spent(searches), self.kept(searches), self.usual(searches)
        at_work = sum(len(one.running()) for one in searches)
        if each is None:
            return at_work >= concurrent
        if over := spent + kept + (at_work + 1) * each > self.budget.hours:
            self.said = (f"--hours: {self.budget.spell(spent, self.unit)} of {self.budget.hours:g} are spent"
                         + (f", {self.budget.spell(kept, self.unit)} kept for the comparison" if kept else "")
                         + ": no more points")
        return over

    def expectation(self, searches: Iterable[Search], points: int, seconds: float | None) -> str:
        """What `points` more cost, in words.   seconds: of such a trial, which count where no point has ended"""
        each = self.usual(searches := list(searches))
        each = each if each is not None or seconds is None else seconds / 3600
        if not points:
            return "nothing to search"
        words = f"{points} points of unknown cost: nothing like them has run here yet" if each is None else \
            f"{points} points x {self.budget.spell(each, self.unit)} = {self.budget.spell(points * each, self.unit)}"
        return words + (f"; no more than {self.budget.hours:g} in all, the comparison included"
                        if self.budget.hours is not None else "")
