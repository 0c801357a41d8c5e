"""How figures look and are saved: fonts, colours, PNG and SVG. Says nothing of what they show.

Chinese words are drawn wherever a font with Chinese glyphs is installed; elsewhere each label has an English
form that stands in for it, so a figure is never full of empty boxes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart also by people who see few of them; then shades of grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Noto Serif CJK SC",
    "Noto Serif CJK JP",
)
PROBE = "题抽蕴"


@cache
def chinese_font() -> str | None:
    """Family of an installed font that has Chinese glyphs: a well-known one, else any that has them.

    Matplotlib's own list of fonts may be older than the fonts, so the files are looked at too.
    """
    manager = font_manager.fontManager
    listed = {entry.name: entry.fname for entry in manager.ttflist}
    for name in (*FAMILIES, *listed):
        if name in listed and _has_glyphs(listed[name]):
            return name
    known = set(listed.values())
    for path in sorted(set(font_manager.findSystemFonts()) - known, key=_serif_last):
        if _has_glyphs(path):
            manager.addfont(path)
            return str(font_manager.get_font(path).family_name)
    return None


def _serif_last(path: str) -> tuple[bool, bool, str]:
    """Order of font files: plain regular faces first."""
    return "serif" in path.lower(), "regular" not in path.lower(), path


def _has_glyphs(path: str) -> bool:
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return False
    # matplotlib's own font of last resort claims every character and draws boxes
    return "Last Resort" not in font.family_name and all(font.get_char_index(ord(c)) for c in PROBE)


def label(english: str, chinese: str = "") -> str:
    """A label in both languages where Chinese can be drawn, else in English."""
    return f"{english} {chinese}".rstrip() if chinese and chinese_font() else english


@contextmanager
def style() -> Iterator[None]:
    """Fonts and sizes of all figures."""
    family = [name for name in (chinese_font(), "DejaVu Sans") if name]
    settings: dict[str, Any] = {
        "font.family": family,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "axes.grid": True,
        "grid.color": "#E5E5E5",
        "legend.frameon": False,
        "svg.hashsalt": "mp2",
        "figure.dpi": 100,
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure.

    Args:
        width: In inches.
        height: In inches.
    """
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """A figure as PNG, 150 dots per inch."""
    return _saved(figure, "png", dpi=150, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """A figure as SVG; letters are outlines, so it looks the same without the font."""
    return _saved(figure, "svg", metadata={"Date": None})


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with style(), warnings.catch_warnings():
        # a rare character that even the Chinese font lacks is no reason to draw nothing
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format=form, **options)
    return out.getvalue()


def line_style(index: int) -> dict[str, Any]:
    """Colour and marker of the n-th line."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.5,
    }
