"""How the page looks: paper and ink, a dark leaf after sunset, a table that becomes cards on a phone."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbf9f4; --leaf: #ffffff; --ink: #211d18; --soft: #6d655b; --rule: #e4ddd0; --faint: #f3eee4;
  --accent: #8a3b12;
  --better: #1b7f5c; --worse: #b3372b; --same: #2f67b0; --open: #8b8378; --differs: #7a4fa3;
  --better-wash: #e2f2ea; --worse-wash: #f9e5e1; --same-wash: #e4edf8; --open-wash: #efeae1; --differs-wash: #efe6f7;
  --c0: #3d3a36; --c1: #c65d21; --c2: #1f78a4; --c3: #4b8f3c; --c4: #a0408c; --c5: #b8901a; --c6: #5b5fc7;
    --c7: #1c8f86;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", "Book Antiqua", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171512; --leaf: #1f1c18; --ink: #ece6da; --soft: #a89f91; --rule: #37322b; --faint: #26221d;
    --accent: #e59a63;
    --better: #5cc79b; --worse: #f08a7b; --same: #83b4f0; --open: #a0978a; --differs: #c7a1ee;
    --better-wash: #1a3329; --worse-wash: #3d211d; --same-wash: #1d2c40; --open-wash: #2d2923; --differs-wash: #30253d;
    --c0: #d8d0c2; --c1: #f0925a; --c2: #63b8e0; --c3: #8fcf7d; --c4: #e08acb; --c5: #e0bf58; --c6: #a3a6f5;
      --c7: #5fd0c5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 72px; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(1.8rem, 1.2rem + 2.6vw, 2.9rem); margin: .15em 0 .35em; letter-spacing: -.01em; }
h2 { font-size: 1.4rem; margin: 0 0 .2em; }
p { margin: .4em 0; max-width: 76ch; }
a { color: var(--accent); text-underline-offset: .15em; }
code { font-family: var(--mono); font-size: .9em; overflow-wrap: anywhere; }
.over { color: var(--soft); font-size: .84rem; letter-spacing: .02em; overflow-wrap: anywhere; }
.over b { color: var(--accent); font-weight: 600; }
.expected { color: var(--soft); font-family: var(--serif); font-style: italic; font-size: 1.08rem; }
.answer { font-family: var(--serif); font-size: 1.28rem; line-height: 1.45; margin: 1.1em 0 .2em;
  padding: .1em 0 .1em 18px;
  border-left: 3px solid var(--accent); max-width: 68ch; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 22px 0 0; font-size: .9rem; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
section { margin-top: 46px; padding-top: 26px; border-top: 1px solid var(--rule); }
.note { color: var(--soft); font-size: .88rem; margin: 0 0 1em; }
.verdicts { list-style: none; margin: 1em 0 0; padding: 0; display: grid; gap: 10px; }
.verdicts li { display: grid; grid-template-columns: 5.4em 1fr; gap: 12px; align-items: baseline; }
.badge { display: inline-block; font-size: .8rem; font-weight: 650; padding: .12em .7em; border-radius: 99px;
  text-align: center; white-space: nowrap; color: var(--open); background: var(--open-wash); }
.badge.better { color: var(--better); background: var(--better-wash); }
.badge.worse { color: var(--worse); background: var(--worse-wash); }
.badge.same { color: var(--same); background: var(--same-wash); }
.badge.differs { color: var(--differs); background: var(--differs-wash); }
.scroll { overflow-x: auto; margin: 1em 0 .6em; background: var(--leaf); border: 1px solid var(--rule);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .8rem; white-space: nowrap;
  vertical-align: bottom; }
th, td { padding: 9px 14px; border-bottom: 1px solid var(--rule); }
td { vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: var(--faint); }
.n { text-align: right; white-space: nowrap; }
td.arm { font-weight: 600; white-space: nowrap; position: sticky; left: 0; background: var(--leaf); }
tbody tr:hover td.arm { background: var(--faint); }
td.arm small, td small { display: block; font-weight: 400; color: var(--soft); font-size: .78rem; }
td.arm small { white-space: normal; min-width: 11em; max-width: 17em; overflow-wrap: anywhere; }
td.arm small.worse { color: var(--worse); }
td small.better { color: var(--better); } td small.worse { color: var(--worse); } td small.same { color: var(--same); }
td small.differs { color: var(--differs); }
td.best { font-weight: 650; }
td.real, td.arm.real { background: var(--faint); color: var(--soft); }
.swatch { display: inline-block; width: .72em; height: .72em; border-radius: 3px; margin-right: .5em;
  vertical-align: -.02em; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: .88rem; margin: .6em 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 18px;
  margin-top: 14px;
  align-items: start; }
figure { margin: 0; padding: 14px 14px 8px; background: var(--leaf); border: 1px solid var(--rule); border-radius: 10px;
  min-width: 0; }
figcaption { font-size: .86rem; font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11.5px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums; }
svg text.name { fill: var(--ink); font-size: 12px; }
svg .grid { stroke: var(--rule); stroke-width: 1; } svg .base { stroke: var(--soft); stroke-width: 1; opacity: .55; }
svg .zero { stroke: var(--soft); stroke-width: 1.2; } svg .margin { fill: var(--same-wash); }
svg .line { fill: none; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; } svg .band { opacity: .2; }
svg .mark { stroke-width: 5; opacity: .3; }
svg .span { stroke-width: 2.4; stroke-linecap: round; }
.texts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: 18px;
  margin-top: 14px; }
.texts article { background: var(--leaf); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px;
  min-width: 0; }
.texts article.real { background: var(--faint); border-style: dashed; }
.texts h3 { font-size: .92rem; margin: 0 0 8px; }
.texts p { font-family: var(--serif); font-size: .99rem; line-height: 1.42; margin: 0; padding: 7px 0;
  border-top: 1px solid var(--rule); overflow-wrap: anywhere; white-space: pre-line; }
details { margin-top: 16px; } summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; font-size: .92rem; margin: 1em 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 56px; color: var(--soft); font-size: .82rem; }
@media (max-width: 720px) {
  main { padding: 24px 16px 48px; }
  .answer { font-size: 1.12rem; }
  .verdicts li { grid-template-columns: 1fr; gap: 4px; } .badge { justify-self: start; }
  .scroll { border: 0; background: none; overflow: visible; }
  table, tbody, tr, td { display: block; } thead { display: none; }
  tbody tr { background: var(--leaf); border: 1px solid var(--rule); border-radius: 10px; margin-bottom: 14px;
    padding: 6px 0; }
  td, .n { display: flex; justify-content: space-between; gap: 18px; text-align: right; white-space: normal;
    padding: 6px 14px; border-bottom: 1px solid var(--rule); }
  td:last-child { border-bottom: 0; }
  td > span { min-width: 0; overflow-wrap: anywhere; }
  td::before { content: attr(data-label); color: var(--soft); font-weight: 400; text-align: left; flex: none;
    max-width: 55%; overflow-wrap: anywhere; }
  td.arm { position: static; font-size: 1.02rem; text-align: left; background: none; } td.arm::before { content: none; }
  td:empty, td.none { display: none; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } nav { display: none; } }
"""
