"""What a study may cost: GPU hours (CPU hours where there are no GPUs), and money an hour."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """`hours`: what all cells of the plan may cost together, those of earlier commands included, so that the same
    command again does not spend again; None: no bound.  `price`: money an hour.  `searched`: what a search has cost
    before its arms are compared, out of the same hours.
    """

    hours: float | None = None
    price: float | None = None
    searched: float = 0.0

    def spell(self, hours: float, unit: str) -> str:
        """0.28 CPU hours (0.70 in money)."""
        money = f" ({hours * self.price:.2f} in money)" if self.price else ""
        return f"{hours:.2g} {unit} hours{money}"
