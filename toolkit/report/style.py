"""The style sheet of the HTML report: inline, light and dark, made for paper as well."""

CSS = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5c6773; --line: #dfe3e8; --stripe: #fafbfc;
  --pass: #17733a; --pass-bg: #dff3e5; --fail: #b3261e; --fail-bg: #fbe3e1; --inconclusive: #8a5a00; --inconclusive-bg: #fdf0d2;
  --mark: #2458c5; --band: #2458c51f; --bar: #8fb0ee; --done: #17733a; --cached: #5c6773; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151b; --card: #1a2028; --ink: #e6eaf0; --soft: #9aa6b4; --line: #2e3742; --stripe: #1e252e;
  --pass: #7ddc9c; --pass-bg: #143823; --fail: #ff9c94; --fail-bg: #46191a; --inconclusive: #f5c76a; --inconclusive-bg: #41300d;
  --mark: #8db2ff; --band: #8db2ff26; --bar: #3f66ab; --done: #7ddc9c; --cached: #9aa6b4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { display: flex; flex-wrap: wrap; align-items: center; gap: 12px; margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 17px; }
p { margin: 6px 0 0; }
section { margin-top: 20px; padding: 20px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.soft { color: var(--soft); }
.note { margin-top: 12px; padding: 8px 12px; border-left: 3px solid var(--inconclusive); border-radius: 0 6px 6px 0;
  background: var(--inconclusive-bg); }
.scroll { overflow-x: auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 20px; }
.two section { margin-top: 0; } .two { margin-top: 20px; }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { padding: 6px 14px 6px 0; color: var(--soft); font-size: 12.5px; font-weight: 600; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
td { padding: 8px 14px 8px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; } td.number, th.number { padding-right: 20px; }
.keep { white-space: nowrap; }
.name { min-width: 180px; font-weight: 600; overflow-wrap: anywhere; }
.under { display: block; color: var(--soft); font-size: 12.5px; font-weight: 400; }
.any { overflow-wrap: anywhere; } .budget { width: 190px; } .judged { width: 130px; }
code, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 6px 0 0; padding: 10px 12px; background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.badge { display: inline-block; padding: 1px 10px; border-radius: 999px; font-size: 12.5px; font-weight: 600; white-space: nowrap; }
h1 .badge { padding: 3px 14px; font-size: 15px; }
.pass { color: var(--pass); background: var(--pass-bg); }
.fail, .failed { color: var(--fail); background: var(--fail-bg); }
.inconclusive { color: var(--inconclusive); background: var(--inconclusive-bg); }
.done { color: var(--done); } .cached, .skipped, .unneeded { color: var(--soft); }
.done, .cached, .skipped, .unneeded { border: 1px solid var(--line); }
details { border-top: 1px solid var(--line); padding: 10px 0; }
details:first-of-type { border-top: 0; padding-top: 0; } details:last-of-type { padding-bottom: 0; }
summary { cursor: pointer; } summary .badge { margin-right: 8px; } details table { margin-top: 6px; }
.meter { display: block; height: 8px; min-width: 2px; background: var(--bar); border-radius: 4px; }
.track { width: 34%; min-width: 120px; padding-top: 14px; }
figure { margin: 0; } figcaption { margin-top: 6px; color: var(--soft); font-size: 12.5px; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg text { fill: var(--ink); font-size: 12.5px; }
svg .soft { fill: var(--soft); font-size: 11.5px; }
svg .value { font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--soft); }
svg .whisker { stroke: var(--mark); stroke-width: 2; fill: none; }
svg .dot { fill: var(--mark); }
svg .bar { fill: var(--bar); }
svg .band { fill: var(--band); }
svg .source { stroke: var(--mark); stroke-dasharray: 4 3; }
footer { margin-top: 20px; color: var(--soft); font-size: 12.5px; }
@media print { body { background: none; } main { max-width: none; padding: 0; } section { break-inside: avoid; } }
""".strip()
