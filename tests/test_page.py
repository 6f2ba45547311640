"""The HTML page: complete and escaped as text; and in a real browser, in light and dark, wide and narrow, offline."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_trial import Square
from test_report import ARMS, FACTORS, REPORT, error, plan, study, wobble, write

from studies.engine.decide import Rule
from studies.engine.figures import Line, Scale, Span, band, curves, forest, number, scatter, thin
from studies.engine.findings import Findings
from studies.engine.ledger import Ledger
from studies.engine.page import Section, page, sections, typeset
from studies.engine.study import Arm, Minimise, Watch

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> Findings:
    folder = tmp_path_factory.mktemp("page")
    long = Arm({"system.shape": Square(gain=3.25), "training.steps": 17})
    wide = study(report=(*REPORT, *(Watch(f"a/rather/long/name/of/a/metric/number/{i}") for i in range(9))),
                 arms=ARMS | {"<script>alert(1)</script>": long})
    for cell in plan(folder, wide).cells:
        lost = (cell.arm, cell.seed) == ("odd & co_", 3)
        value = error(cell) if cell.arm in ARMS else 3.0 + wobble(cell)
        write(folder, cell, value, "diverged" if lost else "done")
        if not lost:
            record = Ledger(folder / "toy").cell(cell.key) or {}
            record["metrics"] |= {f"a/rather/long/name/of/a/metric/number/{i}": 1234.5 * i for i in range(9)}
            record["metrics"] |= {"test/error_real": 0.5}
            Ledger(folder / "toy").write_cell(record)
    return Findings(plan(folder, wide), Ledger(folder / "toy"))


@pytest.fixture(scope="module")
def html(findings) -> str:
    runs = {cell.key: f"run{cell.seed}" * 8 for cell in findings.plan.cells}
    return page(findings, sections(findings, runs, lambda run: f"http://127.0.0.1:5000/#/runs/{run}"))


class Outline(HTMLParser):
    """Whether every element is closed, and everything that a browser would fetch."""

    VOID = {"meta", "link", "br", "img", "hr", "input"}

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or name == "href" and tag in ("link", "use", "image"):
                self.fetched.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


# ---------------------------------------------------------------- as text


def test_the_page_is_well_formed_and_fetches_nothing(html):
    outline = Outline()
    outline.feed(html)
    assert outline.open == [] and outline.fetched == ["data:,"] and "script" not in outline.tags
    assert not re.search(r"url\(|@import|@font-face", html)
    assert "<script>" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>wrote</b>" not in html and "&lt;b&gt;wrote&lt;/b&gt;" in html


def test_the_page_has_everything(html, findings):
    for words in ("Which &lt;kind&gt;?", "None &amp; all.", "Verdicts", "Numbers", "Differences", "Learning curves",
                  "Texts", "Provenance", "training diverged at step 3", "system.kind = fancy", "real texts",
                  ">real texts</span>", "http://127.0.0.1:5000/#/runs/run0run0",
                  findings.plan.cells[0].key, "valid/loss", "<polyline"):
        assert words in html
    assert html.count('class="badge worse"') >= 2 and html.count('class="badge same"') >= 2


def test_a_caller_may_add_sections(findings):
    made = page(findings, [Section("Trials of the search", "<p>mine</p>", "a < b"), Section("Nothing", "")])
    assert '<section id="trials-of-the-search">' in made and "a &lt; b" in made and "Nothing" not in made


def test_an_empty_ledger_has_a_page(tmp_path):
    found = Findings(plan(tmp_path), Ledger(tmp_path / "toy"))
    made = page(found, sections(found))
    Outline().feed(made)
    assert "Nothing has finished yet" in made and "4 not run" in made


def test_factors_and_decisions_have_their_sections(tmp_path):
    made = study(arms={}, factors=FACTORS)
    for cell in plan(tmp_path, made).cells:
        write(tmp_path, cell, 1.0 + ("square" in cell.arm) + wobble(cell))
    found = Findings(plan(tmp_path, made, rule=Rule(4)), Ledger(tmp_path / "toy"))
    text = page(found, sections(found))
    Outline().feed(text)
    assert "Effects of the factors" in text and "fancy x square" in text and "anytime p" in text
    assert "Decision" in text and "hold however often one looks" in text
    assert "Holm" not in text and "Analysis of variance" not in text        # which hold where n was fixed beforehand
    found = Findings(plan(tmp_path, made), Ledger(tmp_path / "toy"))
    text = page(found, sections(found))
    assert "Holm p" in text and "Analysis of variance" in text


# ---------------------------------------------------------------- figures


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 1.0), (-3.7, 12.2), (0.00012, 0.00037), (1e6, 3e7), (5.0, 5.0)):
        ticks = Scale(low, high, 0, 100).ticks()
        assert 1 <= len(ticks) <= 8 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    logs = Scale(0.02, 30.0, 0, 100, True)
    assert all(0.02 <= tick <= 30 for tick in logs.ticks()) and logs(0.02) == 0 and logs(30.0) == pytest.approx(100)
    assert [number(x) for x in (0.0, 0.25, 12000, -3, 2.5e-5, 1e7)] == ["0", "0.25", "12k", "−3", "2.5e−5", "1e7"]


def test_a_band_spans_the_seeds():
    assert band([[(1, 1.0), (2, 4.0)], [(1, 3.0)], [(3, float("nan"))]]) == [(1.0, 2.0, 1.0, 3.0), (2.0, 4.0, 4.0, 4.0)]
    points = [(float(i), 1.0, 0.0 - i, 2.0) for i in range(10_000)]
    thinned = thin(points)
    assert len(thinned) <= 240 and thinned[-1][0] == 9999.0 and min(p[2] for p in thinned) == -9999.0


def test_figures_of_nothing_are_nothing():
    assert curves([], "step") == curves([Line("a", [(1.0, float("nan"), 0.0, 0.0)], 0)], "step") == ""
    assert forest([], None, "x") == scatter([], "x", "y") == ""


def test_an_interval_that_would_squeeze_the_others_is_cut():
    spans = [Span("a", 0.1, 0.0, 0.2, "open", ""), Span("b", 0.2, 0.1, 0.3, "open", ""),
             Span("wild", 0.3, -90.0, 90.0, "open", "")]
    drawn = forest(spans, 0.05, "difference")
    assert drawn.count("<path") == 2 and 'class="margin"' in drawn
    assert forest(spans[:2], None, "difference").count("<path") == 0


def test_minus_signs_are_typeset_where_numbers_are_negative():
    assert typeset("-0.3 ± 0.1 of a-b-1 <x>") == "−0.3 ± 0.1 of a-b-1 &lt;x&gt;"


# ---------------------------------------------------------------- in a browser

PROBE = """<pre id="probe"></pre><script>
onload = () => {
  const fetched = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  const root = document.documentElement, wide = root.clientWidth;
  const out = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > wide + 1
    && (wide < 700 || !e.closest(".scroll"))).map(e => e.tagName + "." + e.className + e.textContent.slice(0, 30));
  document.getElementById("probe").textContent = JSON.stringify({
    fetched, scroll: root.scrollWidth, wide, out, cards: getComputedStyle(document.querySelector("td")).display,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    dots: document.querySelectorAll("svg circle").length, errors: window.mistakes });
};
</script>"""
LISTEN = """<script>
  window.mistakes = [];
  window.addEventListener("error", e => window.mistakes.push(String(e.message)));
</script>"""


def render(html: str, folder: Path, width: int, dark: bool = False) -> tuple[dict, str]:
    """What the browser makes of the page, and what it says on its console."""
    file = folder / f"page-{width}-{dark}.html"
    file.write_text(html.replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    # Below 500 pixels a headless window does not shrink; a frame does.
    frame = folder / f"frame-{width}-{dark}.html"
    frame.write_text(f'<iframe src="{file.name}" style="width:{width}px;height:900px;border:0"></iframe>'
                     '<pre id="copy"></pre><script>onload = () => { document.getElementById("copy").textContent = '
                     'document.querySelector("iframe").contentDocument.getElementById("probe").textContent; }</script>')
    done = subprocess.run(
        [CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", "--enable-logging=stderr",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
         f"--window-size={max(width, 600)},900", "--virtual-time-budget=3000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="copy">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], done.stdout[-500:] + done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")), console


@browser
@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (320, True)])
def test_the_page_stands_alone_in_a_browser(html, tmp_path, width, dark):
    seen, console = render(html, tmp_path, width, dark)
    assert seen["wide"] == pytest.approx(width, abs=16)                  # but for a scroll bar
    assert seen["fetched"] == [] and seen["errors"] == [] and console == ""
    assert seen["out"] == [] and seen["scroll"] <= seen["wide"]          # the page never scrolls sideways
    assert seen["cards"] == ("table-cell" if width > 720 else "flex")
    brightness = sum(map(int, re.findall(r"\d+", seen["paper"])[:3]))
    assert (brightness < 150) == dark
    assert seen["dots"] > 20


@browser
def test_the_probe_sees_what_it_should(html, tmp_path):
    """The checks above are not blind: a page that fetches, overflows and errs is caught."""
    bad = html.replace("</main>", '<div style="width:3000px">x</div><img src="http://127.0.0.1:9/nothing.png"></main>'
                                  "<script>undefinedFunction()</script>")
    seen, _ = render(bad, tmp_path, 1280)
    assert seen["scroll"] > seen["wide"] and seen["out"] and seen["fetched"] and seen["errors"]


def test_a_study_without_a_direction_has_no_verdicts(tmp_path):
    watched = study(report=(Watch("threads"),))
    for cell in plan(tmp_path, watched).cells:
        write(tmp_path, cell, 1.0)
    found = Findings(plan(tmp_path, watched), Ledger(tmp_path / "toy"))
    assert ">Verdicts<" not in page(found, sections(found))
    assert Minimise("m").margin is None
