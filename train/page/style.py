"""The look of an HTML report: one light and one dark set of colours, and a set for paper."""

# Light colours are also what a figure is drawn with; train/page/drawing.py turns each into its variable.
LIGHT = {
    "--ink": "#1b1f24",
    "--soft": "#57606a",
    "--rule": "#d0d7de",
    "--paper": "#ffffff",
    "--band": "#f5f7f9",
    "--link": "#0b5cad",
    "--plain": "#c4500c",
    "--scratch": "#0b6bb3",
    "--finetuned": "#0a7d5a",
}
DARK = {
    "--ink": "#e6e9ed",
    "--soft": "#a3adb8",
    "--rule": "#3a424c",
    "--paper": "#14181d",
    "--band": "#1c2229",
    "--link": "#79b8ff",
    "--plain": "#ff9a5c",
    "--scratch": "#62b5f5",
    "--finetuned": "#3fd0a1",
}

# Nothing may be fetched: pictures are inline, styles are inline, there is no script.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"{name}:{value};" for name, value in colours.items())


_RULES = """
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.4rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
a { color: var(--link); }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
p code { background: var(--band); padding: .05em .3em; border-radius: 3px; }
nav { background: var(--band); border-radius: 6px; padding: .6rem 1rem; margin: 1.25rem 0; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { padding: .1rem 0; }
nav .part { margin-left: .8rem; font-size: .92rem; white-space: nowrap; }
section.level3 { display: flex; flex-wrap: wrap; column-gap: 2.5rem; align-items: center; }
section.level3 > h3 { flex-basis: 100%; }
.table { position: relative; overflow-x: auto; margin: 1rem 0; max-width: 100%;
  width: fit-content; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: baseline; white-space: nowrap; }
th { font-weight: 400; }
thead th { border-bottom: 2px solid var(--soft); color: var(--soft); font-size: .9rem;
  white-space: normal; vertical-align: bottom; }
.words { text-align: left; }
td.words, tbody th.words { white-space: normal; overflow-wrap: break-word; max-width: 28rem; }
tbody tr:nth-child(even) { background: var(--band); }
td em, tbody th em { color: var(--soft); }
figure { margin: 1.25rem 0; max-width: 100%; overflow-x: auto; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .92rem; max-width: 46rem; margin-top: .4rem; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, caption { break-after: avoid; }
  tr, figure, section.level3 { break-inside: avoid; }
  .table, figure { overflow: visible; }
  figure svg { min-width: 0 !important; }
}
"""

STYLE = (
    f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
    f"{_RULES}"
)
