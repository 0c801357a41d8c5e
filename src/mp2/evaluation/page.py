"""One self-contained HTML page: all tables and figures of a report, without a script or an outside file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from mp2.evaluation.typeset import Table, html_table

STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
nav a { margin-right: 1rem; white-space: nowrap }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap }
th:first-child, .word { text-align: left }
thead th { border-top: 2px solid; border-bottom: 1px solid }
tbody tr:last-child td { border-bottom: 2px solid }
.best { font-weight: 700 } .quiet { color: #666; font-style: italic }
.note { color: #444; font-size: .8rem; margin: .3rem 0; max-width: 60rem }
figure { margin: 1.5rem 0 } figure svg { max-width: 100%; height: auto }
figcaption { font-size: .85rem; color: #444 }
"""
TITLES = {
    "figure3": "Figure 3: dev score through the two stages (dashed: where stage II begins)",
    "figure4a": "Figure 4a: accuracy against the number of labels",
    "figure4b": "Figure 4b: score against the number of training rows",
    "ablation-tasks": "Average score against the number of upstream tasks",
    "ablation-k": "Average score against the number of modular prompts per layer (K)",
    "ablation-p": "Average score against the length of a prompt (P)",
    "ablation-h": "Average score against the size of the encoder (H)",
    "intervals-unseen-data-7": "Averages over unseen data, with intervals",
    "intervals-unseen-task-7": "Averages over unseen tasks, with intervals",
}


def page(
    title: str, tables: Sequence[Table], drawings: Mapping[str, bytes], remarks: Sequence[str] = ()
) -> str:
    """The page.

    Args:
        title: Heading.
        tables: Tables in order.
        drawings: Name -> SVG.
        remarks: Lines above all.
    """
    links = [(table.name, table.title) for table in tables] + [
        (name, figure_title(name)) for name in drawings
    ]
    nav = "".join(f'<a href="#{html.escape(name)}">{html.escape(text)}</a>' for name, text in links)
    said = "".join(f"<li>{html.escape(line)}</li>" for line in remarks)
    body = "".join(map(html_table, tables)) + "".join(_figure(*item) for item in drawings.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>"
        f"<nav>{nav}</nav>{f'<ul>{said}</ul>' if said else ''}\n{body}</body></html>\n"
    )


def figure_title(name: str) -> str:
    """Caption of a figure by its file name."""
    if name.startswith("figure5-"):
        return f"Figure 5: routers of the upstream tasks, clustered (bank {name.removeprefix('figure5-')})"
    return TITLES.get(name, name.replace("-", " ").capitalize())


def _figure(name: str, svg: bytes) -> str:
    text = svg.decode("utf-8")
    start = text.index("<svg")  # without the XML prologue, which HTML does not know
    # ids are unique within a drawing only, but a page holds several
    drawing = text[start:].replace('id="', f'id="{name}-').replace('"#', f'"#{name}-')
    drawing = drawing.replace("url(#", f"url(#{name}-")
    caption = html.escape(figure_title(name))
    return f'<figure id="{html.escape(name)}">{drawing}<figcaption>{caption}</figcaption></figure>\n'
