"""The live view: stages and cells done, running and waiting, current losses, an ETA.

A terminal gets a screen that is redrawn; anything else (a file, a job on a cluster, whose log a laptop follows) gets a
line per event, and every EVERY seconds what is running: its step, its losses, and when all will be done.
"""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studies.engine.ledger import Ledger, Record, read_from
from studies.engine.plan import Cell, Plan, Shared
from trainables.config import flat

Work = Cell | Shared
EVERY = 60.0                            # seconds between looks, where there is no screen
MOST = 3                                # of what runs, in such a look


class View:
    """Told of events by whoever runs things; reads the outboxes for what is going on inside.

    Events may come from another thread; drawing happens in `tick`, in the thread that calls it.
    """

    def __init__(self, plan: Plan, ledger: Ledger, console: Console):
        self.plan, self.ledger, self.console = plan, ledger, console
        self.began = self.told = time.time()
        self.concurrent = 1
        self.running: dict[str, tuple[Work, float]] = {}
        self.ended: dict[str, Record] = {}
        self.latest: dict[str, tuple[int, dict[str, float]]] = {}
        self.offsets: dict[str, int] = {}
        # What others print must not be shown above the view: it goes where `quiet` has sent it.
        self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False,
                         redirect_stderr=False) if console.is_terminal else None

    def __enter__(self) -> "View":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(Text(f"{time.strftime('%H:%M:%S')}  {text}"), soft_wrap=True)

    def begins(self, work: Work) -> None:
        self.running[work.key] = (work, time.time())
        if not self.live:
            self.say(f"start  {work.name}")

    def ends(self, work: Work, record: Record) -> None:
        self.running.pop(work.key, None)
        self.ended[work.key] = record
        done, total = self._count(type(work))
        kind = "stage" if isinstance(work, Shared) else "trial"
        reason = f": {record['reason']}" if record["reason"] else ""
        if not self.live or record["status"] != "done":
            self.say(f"{record['status']:<6} {kind} {done}/{total}  {work.name}  {span(record['seconds'])}{reason}")

    def drops(self, work: Work) -> None:
        """It is not at work any more, and has not ended: it will begin again."""
        self.running.pop(work.key, None)
        if not self.live:
            self.say(f"again  {work.name}")

    def tick(self) -> None:
        """Look, and draw."""
        if self.live:
            self._look()
            self.live.update(self._draw(), refresh=True)
        elif self.running and time.time() - self.told >= EVERY:
            self.told = time.time()
            self._look()
            self._tell()

    # -- what is known

    def _count(self, kind: type) -> tuple[int, int]:
        works = self.plan.shared if kind is Shared else self.plan.missing
        return sum(work.key in self.ended for work in works), len(works)

    def _look(self) -> None:
        for key, (work, _) in list(self.running.items()):
            path = self.ledger.outbox(key if isinstance(work, Cell) else f"stage-{key}")
            if not path.exists():
                continue
            start = self.offsets.get(key, 0)
            lines, self.offsets[key] = read_from(path, start)
            for line in lines:
                if line["kind"] == "metrics":
                    step, metrics = self.latest.get(key, (0, {}))
                    self.latest[key] = max(step, line["step"]), metrics | line["metrics"]

    def _share(self, key: str, work: Work) -> float:
        """How much of a running cell is done, 0 where nobody can tell."""
        if isinstance(work, Shared) or key not in self.latest:
            return 0.0
        steps = flat(work.trial).get("training.steps")
        return min(self.latest[key][0] / steps, 1.0) if isinstance(steps, int) and steps > 0 else 0.0

    def remaining(self) -> float | None:
        """Expected seconds to the end; None while nobody knows."""
        seen: dict[str, list[float]] = {name: [seconds] for name, seconds in self.plan.history.items()}
        for work in (*self.plan.shared, *self.plan.missing):
            name = work.arm if isinstance(work, Cell) else type(work.stage).__name__
            if work.key in self.ended:
                seen.setdefault(name, []).append(self.ended[work.key]["seconds"])
            elif work.key in self.running and (share := self._share(work.key, work)) > 0.05:
                seen.setdefault(name, []).append((time.time() - self.running[work.key][1]) / share)
        total = 0.0
        for works, names in ((self.plan.shared, None), (self.plan.missing, set(self.plan.arms))):
            usual = [sum(v) / len(v) for name, v in seen.items() if names is None or name in names]
            for work in works:
                if work.key in self.ended:
                    continue
                own = seen.get(work.arm if isinstance(work, Cell) else type(work.stage).__name__)
                if not own and not usual:
                    return None
                expected = sum(own) / len(own) if own else sum(usual) / len(usual)
                spent = time.time() - self.running[work.key][1] if work.key in self.running else 0.0
                total += max(expected - spent, 0.0)
        return total / self.concurrent

    # -- how it looks

    def _gone(self) -> str:
        left = self.remaining()
        return f"{span(time.time() - self.began)} gone, " + (
            f"about {span(left)} to go" if left is not None else "time to go not known yet")

    def _tell(self) -> None:
        """What the screen would show now, in two lines."""
        counts = [f"{done}/{total} {name}" for name, (done, total) in
                  (("stages", self._count(Shared)), ("trials", self._count(Cell))) if total]
        self.say(f"at work  {', '.join(counts)} done, {len(self.running)} running, {self._gone()}")
        parts = []
        for key, (work, _) in list(self.running.items())[:MOST]:
            step, metrics = self.latest.get(key, (0, {}))
            parts.append(f"{work.name} step {step}  {losses(metrics)}" if metrics else work.name)
        more = len(self.running) - len(parts)
        self.say("         " + "; ".join(parts) + (f"; and {more} more" if more > 0 else ""))

    def _draw(self) -> Group:
        head = Text(f"{self.plan.study.name} · {self.plan.scale} · {self._gone()}")
        bars = Table.grid(padding=(0, 1))
        for name, kind in (("stages", Shared), ("trials", Cell)):
            done, total = self._count(kind)
            active = sum(isinstance(work, kind) for work, _ in list(self.running.values()))
            if total:
                bars.add_row(name, ProgressBar(total=total, completed=done, width=30),
                             f"{done} done, {active} running, {total - done - active} waiting")
        active = Table.grid(padding=(0, 2))
        for key, (work, since) in list(self.running.items()):
            step, metrics = self.latest.get(key, (0, {}))
            active.add_row("  " + work.name, span(time.time() - since), f"step {step}" if metrics else "",
                           losses(metrics))
        return Group(head, bars, active)


def losses(metrics: Mapping[str, float]) -> str:
    """The losses among the latest metrics, or the first few of them."""
    wanted = [name for name in metrics if name.endswith("loss")] or list(metrics)
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in wanted[:3])


def span(seconds: Any) -> str:
    """Seconds as people say them."""
    seconds = int(round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 6000:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
