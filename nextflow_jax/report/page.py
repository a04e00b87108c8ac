"""The page: one HTML document with its style inside, no scripts, nothing loaded from anywhere."""

import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #667080; --line: #d5dae1;
        --panel: #f6f7f9; --right: #1a7f37; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171a; --soft: #9aa4b1; --line: #363c44; --panel: #1d2125;
          --right: #4ac26b; --wrong: #ff8a80; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 60rem; } p.lead, .soft { color: var(--soft); }
nav { margin: .8rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; } a { color: inherit; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; display: block;
        max-width: 100%; overflow-x: auto; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line);
         vertical-align: top; }
td.number, th.number { text-align: right; }
.mark { font-size: .75rem; font-weight: 600; }
.mark.right { color: var(--right); } .mark.wrong { color: var(--wrong); }
.gallery { display: flex; flex-wrap: wrap; gap: .7rem; align-items: stretch; }
.card { margin: 0; padding: .5rem; background: var(--panel); border: 1px solid var(--line); border-radius: 6px; }
.card.right { border-color: var(--right); } .card.wrong { border-color: var(--wrong); }
.row { display: flex; flex-wrap: wrap; gap: .3rem; align-items: center; }
.card figcaption { font-size: .8rem; max-width: 22rem; margin-top: .3rem; overflow-wrap: anywhere; }
.card img { image-rendering: pixelated; display: block; }
.stack { display: inline-flex; flex-direction: column; gap: .2rem; }
.sign { color: var(--soft); padding: 0 .15rem; }
.curves { display: flex; flex-wrap: wrap; gap: .6rem; }
.curves svg { width: min(100%, 24rem); height: auto; color: var(--ink); }
.curves.wide svg { width: min(100%, 62rem); }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; overflow-x: auto;
      font-size: .78rem; line-height: 1.4; }
"""


def document(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page: a title, a sentence under it, links to the sections, the sections.

    Args:
      title: plain text.
      lead: plain text.
      sections: (heading as plain text, body as HTML); sections with an empty body are left out.
    """
    kept = [(f"s{i}", heading, body) for i, (heading, body) in enumerate(sections) if body]
    links = "".join(f'<a href="#{name}">{html.escape(heading)}</a>' for name, heading, _ in kept)
    bodies = "".join(
        f'<section id="{name}"><h2>{html.escape(heading)}</h2>{body}</section>\n' for name, heading, body in kept
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><nav>{links}</nav>\n'
        f"{bodies}</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(text)}</h3>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain-text cells; the first column is words, the others align right as numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["", *(' class="number"' for _ in row[1:])]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def foldable(summary: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def folded(summary: str, body: str) -> str:
    """HTML behind a line that opens it."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def drawings(svgs: Sequence[str], wide: bool = False) -> str:
    """Drawings side by side as far as the window is wide; `wide`: each as wide as the page."""
    return f'<div class="curves{" wide" if wide else ""}">{"".join(svgs)}</div>' if svgs else ""
