"""A figure as inline SVG for a page that has a light and a dark face.

Every colour of the drawing becomes a CSS variable with the drawn colour as its fallback; the page sets the variables
in the dark scheme. Greys are turned over, colours are lightened until they stand out on the dark ground, so that a
figure needs to be drawn once only.
"""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Iterable

import matplotlib as mpl
from matplotlib.figure import Figure

from theory.show.theme import theme

DARK_GROUND = "#16181b"
LEGIBLE = 4.5  # contrast that WCAG 2.1 (1.4.3, level AA) asks of text; lines and markers need 3
_COLOUR = re.compile(r"(fill|stroke|stop-color): ?(#[0-9a-f]{6})", re.IGNORECASE)


def luminance(colour: str) -> float:
    """Relative luminance of '#rrggbb'. Source: WCAG 2.1, definition of relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21. Source: WCAG 2.1, definition of contrast ratio."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def on_dark(colour: str, ground: str = DARK_GROUND) -> str:
    """The colour's counterpart on a dark ground: a grey turned over, a hue lightened as far as it needs to be."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    if max(red, green, blue) - min(red, green, blue) < 0.06:
        floor = _mean_channel(ground)
        value = floor + (1 - light) * (0.93 - floor)
        return _hex((value, value, value))
    while contrast(_hex(colorsys.hls_to_rgb(hue, light, saturation)), ground) < LEGIBLE and light < 0.98:
        light += 0.01
    return _hex(colorsys.hls_to_rgb(hue, light, saturation))


def _mean_channel(colour: str) -> float:
    return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) / 3 / 255


def _hex(rgb: Iterable[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def inline_svg(figure: Figure, name: str, label: str) -> tuple[str, set[str]]:
    """The figure as an `<svg role="img">` element, and the colours that it uses.

    Args:
      name: makes the element's ids unique on the page; letters, digits, _ and -.
      label: the alternative text.
    """
    assert re.fullmatch(r"[\w-]+", name), name
    buffer = io.StringIO()
    with theme(), mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)  # of all elements; the page has it
    text = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{name}-{m[1]}"', text)
    text = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{name}-{m[1]}"', text)
    text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{name}-{m[1]})", text)
    found = {m.group(2).lower() for m in _COLOUR.finditer(text)}
    text = _COLOUR.sub(lambda m: f"{m.group(1)}: var(--k{m.group(2)[1:].lower()}, {m.group(2)})", text)
    # Text without a fill of its own, and paths that rely on SVG's default, are black.
    head, rest = text.split(">", 1)
    width, height = (float(v) for v in re.findall(r'(?:width|height)="([\d.]+)pt"', head)[:2])
    opening = (
        f'<svg role="img" aria-label="{_attribute(label)}" viewBox="0 0 {width:g} {height:g}" '
        'xmlns="http://www.w3.org/2000/svg" class="drawn">'
    )
    return opening + rest, found | {"#000000"}


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def dark_variables(colours: Iterable[str]) -> str:
    """CSS declarations of the dark scheme for these colours."""
    return " ".join(f"--k{c[1:]}: {on_dark(c)};" for c in sorted(colours))
