"""Figures as inline SVG, drawn by hand: a page of them needs no library, no script and no network.

    values -> Scale (data to pixels, with round ticks) -> marks whose colours are the page's CSS variables

So one figure serves light and dark, a phone and a wall.  All texts are escaped; numbers that are not finite are left
out.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 240                # in the units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 34
COLOURS = 8                             # of the page's palette; the ninth line is the first colour, dashed
POINTS = 240                            # of a curve, more than there are pixels


@dataclass(frozen=True)
class Scale:
    """Data low ... high to pixels start ... end, on a straight or a logarithmic axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(x) for x in (low, high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers inside the scale: 1, 2 or 5 times a power of ten."""
        if self.log:
            powers = [10.0 ** power for power in range(math.ceil(math.log10(self.low) - 1e-9),
                                                       math.floor(math.log10(self.high) + 1e-9) + 1)]
            if len(powers) > count:
                return powers[::-(-len(powers) // count)]
            fine = [digit * 10.0 ** power for power in range(math.floor(math.log10(self.low)),
                                                             math.ceil(math.log10(self.high))) for digit in (1, 2, 5)]
            return powers if len(powers) > 2 else [tick for tick in fine if self.low <= tick <= self.high]
        if self.high == self.low:
            return [self.low]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(digit for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    @staticmethod
    def over(values: Iterable[float], start: float, end: float, log: bool = False, room: float = 0.04) -> "Scale":
        """A scale that holds the values, and a little room."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        if log:
            room = (high / low) ** room if high > low else 2.0
            return Scale(low / room, high * room, start, end, True)
        pad = (high - low) * room or abs(high) * 0.1 or 1.0
        return Scale(low - pad, high + pad, start, end)


@dataclass(frozen=True)
class Line:
    """A curve with its band: (x, mean, low, high) by x."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    colour: int


@dataclass(frozen=True)
class Span:
    """An interval of a forest plot; `kind` is a verdict, which gives the colour."""

    name: str
    mean: float
    low: float | None
    high: float | None
    kind: str
    text: str


@dataclass(frozen=True)
class Mark:
    """Something that happened at x: a line across; `kind` is a verdict, which gives the colour."""

    x: float
    kind: str
    text: str


def colour(number: int) -> str:
    """The CSS colour of the number-th arm."""
    return f"var(--c{number % COLOURS})"


def curves(lines: Sequence[Line], x_label: str, log: bool = False, marks: Sequence[Mark] = ()) -> str:
    """Lines with bands over steps.  `log`: logarithmic where all is positive and spans more than a factor of 6."""
    lines = [Line(line.name, thin([p for p in line.points if all(map(math.isfinite, p))]), line.colour)
             for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    values = [value for line in lines for point in line.points for value in point[2:]]
    log = log and min(values) > 0 and max(values) / min(values) > 6
    x = Scale.over([point[0] for line in lines for point in line.points], LEFT, WIDTH - RIGHT, room=0.01)
    y = Scale.over(values, HEIGHT - BOTTOM, TOP, log)
    parts = [_axes(x, y, x_label)]
    parts += [f'<line class="mark" style="stroke:var(--{mark.kind})" x1="{x(mark.x):.1f}" x2="{x(mark.x):.1f}" '
              f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"><title>{escape(mark.text)}</title></line>'
              for mark in marks if x.low <= mark.x <= x.high]
    for line in lines:
        band = [f"{x(p[0]):.1f},{y(p[3]):.1f}" for p in line.points] + [
            f"{x(p[0]):.1f},{y(p[2]):.1f}" for p in reversed(line.points)]
        if any(p[2] != p[3] for p in line.points):
            parts.append(f'<polygon class="band" style="fill:{colour(line.colour)}" points="{" ".join(band)}"/>')
    for line in lines:
        style = f"stroke:{colour(line.colour)}" + (";stroke-dasharray:5 3" if line.colour >= COLOURS else "")
        points = " ".join(f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in line.points)
        parts.append(f'<polyline class="line" style="{style}" points="{points}"><title>{escape(line.name)}</title>'
                     "</polyline>")
        if len(line.points) < 12:
            parts += [_dot(x(p[0]), y(p[1]), f"fill:{colour(line.colour)}", f"{line.name}, {p[0]:g}: {p[1]:.4g}", 2.6)
                      for p in line.points]
    return svg(parts, HEIGHT, ", ".join(line.name for line in lines))


def band(seeds: Iterable[Sequence[tuple[int, float]]]) -> list[tuple[float, float, float, float]]:
    """(step, mean, lowest, highest) over the seeds that have the step."""
    by_step: dict[int, list[float]] = {}
    for curve in seeds:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    return [(float(step), math.fsum(values) / len(values), min(values), max(values))
            for step, values in sorted(by_step.items()) if all(map(math.isfinite, values))]


def thin(points: Sequence[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    """Not more than POINTS of them; groups of neighbours become their mean and their outermost band."""
    group = -(-len(points) // POINTS)
    found = []
    for first in range(0, len(points), group or 1):
        some = points[first:first + group]
        found.append((some[-1][0], math.fsum(p[1] for p in some) / len(some),
                      min(p[2] for p in some), max(p[3] for p in some)))
    return found


def forest(spans: Sequence[Span], margin: float | None, label: str) -> str:
    """Differences with their intervals, one a row, about zero; the margin is shaded.

    An interval that would squeeze all others is cut at the edge, and an arrow says so.
    """
    spans = [span for span in spans if math.isfinite(span.mean)]
    if not spans:
        return ""
    row, left = 30, 112
    height = TOP + row * len(spans) + BOTTOM
    reach = sorted(max(abs(end) for end in (span.mean, span.low, span.high) if end is not None) for span in spans)
    means = max(abs(span.mean) for span in spans)
    limit = max(min(reach[-1], max(3 * means, 6 * reach[(len(reach) - 1) // 2])), margin or 0.0)
    ends = [max(-limit, min(limit, end)) for span in spans
            for end in (span.mean, span.low, span.high) if end is not None]
    x = Scale.over([0.0, *ends, *((-margin, margin) if margin else ())], left, WIDTH - RIGHT)
    parts = [f'<rect class="margin" x="{x(-margin):.1f}" y="{TOP}" width="{x(margin) - x(-margin):.1f}" '
             f'height="{row * len(spans)}"><title>margin: ±{margin:g}</title></rect>'] if margin else []
    bottom = TOP + row * len(spans)
    for tick in x.ticks(4):
        parts += [f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>',
                  f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{number(tick)}</text>']
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for place, span in enumerate(spans):
        y = TOP + row * (place + 0.5)
        style = f"var(--{span.kind})"
        parts.append(f'<text class="name" x="0" y="{y + 4:.1f}">{escape(shorten(span.name))}'
                     f'<title>{escape(span.name)}</title></text>')
        if span.low is not None and span.high is not None:
            a, b = x(max(span.low, x.low)), x(min(span.high, x.high))
            parts.append(f'<line class="span" style="stroke:{style}" x1="{a:.1f}" x2="{b:.1f}" '
                         f'y1="{y:.1f}" y2="{y:.1f}"/>')
            for cut, at, way in ((span.low < x.low, a, -1), (span.high > x.high, b, 1)):
                if cut:
                    parts.append(f'<path style="fill:{style}" d="M{at - way * 7:.1f} {y - 5:.1f}'
                                 f'l{way * 8} 5l{-way * 8} 5z"/>')
        parts.append(_dot(x(span.mean), y, f"fill:{style}", f"{span.name}: {span.text}"))
    parts.append(f'<text class="axis" x="{(left + WIDTH - RIGHT) / 2:.1f}" y="{height - 3}" text-anchor="middle">'
                 f"{escape(label)}</text>")
    return svg(parts, height, label)


def scatter(points: Sequence[tuple[float, float, int, str]], x_label: str, y_label: str, *, x_log: bool = False,
            ends: tuple[float, float] | None = None, options: Sequence[str] = (),
            rug: Sequence[tuple[float, int, str]] = (), front: Sequence[tuple[float, float]] = ()) -> str:
    """Points (x, y, colour, what a pointer reads); `front` is drawn as steps through its corners.

    ends: of the x axis, where the points need not fill it; options: their names where x counts them; rug: (x, colour,
    text) of what has no y, as ticks on the axis.
    """
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    if not points:
        return ""
    across = range(len(options)) if options else ends or [p[0] for p in points]
    x = Scale.over(across, LEFT, WIDTH - RIGHT, x_log, room=0.25 if options else 0.04)
    y = Scale.over([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [_axes(x, y, x_label, y_label, options)]
    for at, shade, text in rug:
        parts.append(f'<line class="rug" style="stroke:{colour(shade)};opacity:.55" x1="{x(at):.1f}" x2="{x(at):.1f}" '
                     f'y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM - 7}"><title>{escape(text)}</title></line>')
    if front:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in front)
        parts.append(f'<polyline class="line" style="stroke:var(--ink)" points="{path}"/>')
    parts += [_dot(x(a), y(b), f"fill:{colour(number)};opacity:.75", text, 3.4) for a, b, number, text in points]
    return svg(parts, HEIGHT, f"{y_label} by {x_label}")


def svg(parts: Iterable[str], height: float, label: str) -> str:
    """A drawing that is as wide as its place."""
    return (f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}" '
            f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>')


def _axes(x: Scale, y: Scale, x_label: str, y_label: str = "", options: Sequence[str] = ()) -> str:
    parts = []
    for tick in y.ticks(5):
        parts += [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>',
                  f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>']
    names = [(float(place), shorten(option, 60 // len(options))) for place, option in enumerate(options)] or [
        (tick, number(tick)) for tick in x.ticks(5)]
    for tick, name in names:
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(name)}</text>')
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">'
                 f"{escape(x_label)}</text>")
    if y_label:
        parts.append(f'<text class="axis" x="{LEFT}" y="{TOP - 2}">{escape(y_label)}</text>')
    return "".join(parts)


def _dot(x: float, y: float, style: str, text: str, radius: float = 4.5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{style}"><title>{escape(text)}</title></circle>'


def number(value: float) -> str:
    """A tick's number, short."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}".replace("-", "−")
    return (f"{value:g}" if abs(value) < 10000 else f"{value / 1000:g}k").replace("-", "−")


def shorten(name: str, longest: int = 17) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= longest else name[:longest - 1] + "…"


def grid(figures: Mapping[str, str], wrap: Callable[[str], str] = escape) -> str:
    """Figures side by side, each beneath its title."""
    return '<div class="figures">' + "".join(
        f"<figure><figcaption>{wrap(title)}</figcaption>{figure}</figure>"
        for title, figure in figures.items() if figure) + "</div>"
