"""Boxes, arrows and text as SVG, in colors that a light and a dark page share."""

from xml.sax.saxutils import escape

WIDE = 400
"""Width of a drawing, in its own units: as many pixels on a phone, so that text is readable there."""
COLORS = {"register": "66 133 244", "cache": "22 160 100", "memory": "230 126 34", "passed": "140 140 150"}
"""Kinds of boxes; "never" is an outline in dashes."""
STYLE = """
.fig { font-family: system-ui, sans-serif; max-width: 620px; width: 100%; height: auto; display: block; margin: auto; }
.fig text { fill: var(--color-foreground-primary, #111); font-size: 12px; }
.fig .small { fill-opacity: 0.85; font-size: 11px; }
.fig .line, .fig .never { stroke: var(--color-foreground-secondary, #555); stroke-width: 1; fill: none; }
.fig .never { stroke-dasharray: 3 3; opacity: 0.6; }
.fig .head { fill: var(--color-foreground-secondary, #555); }
"""


class Drawing:
    """A figure of a given height; `title` says what it shows, for readers who do not see it."""

    def __init__(self, title: str, height: int) -> None:
        self.title, self.height = title, height
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, anchor: str = "middle", small: bool = False) -> None:
        """One line of text with its baseline at y."""
        kind = ' class="small"' if small else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(text)}</text>')

    def line(self, x: float, y: float, to_x: float, to_y: float, kind: str = "line") -> None:
        """A straight line."""
        self.parts.append(f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" class="{kind}"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float, text: str = "") -> None:
        """A line with a head at its end, and perhaps a word to the right of its middle."""
        self.line(x, y, to_x, to_y)
        length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
        ux, uy = (to_x - x) / length, (to_y - y) / length
        back_x, back_y = to_x - 7 * ux, to_y - 7 * uy
        corners = [(to_x, to_y), (back_x - 3.5 * uy, back_y + 3.5 * ux), (back_x + 3.5 * uy, back_y - 3.5 * ux)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        self.parts.append(f'<polygon points="{points}" class="head"/>')
        if text:
            self.text((x + to_x) / 2 + 6, (y + to_y) / 2 + 4, text, "start", small=True)

    def box(self, x: float, y: float, wide: float, tall: float, kind: str, *lines: str) -> None:
        """A rectangle with centered lines of text; the first is larger."""
        paint = 'class="never"' if kind == "never" else _paint(kind, 0.28)
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{tall:g}" rx="3" {paint}/>')
        first = y + tall / 2 - 7.5 * (len(lines) - 1) + 4
        for i, line in enumerate(lines):
            self.text(x + wide / 2, first + 15 * i, line, small=i > 0)

    def band(self, y: float, tall: float, kind: str, name: str, note: str = "") -> None:
        """A wide background with its name at the upper left and a note at the upper right."""
        self.parts.append(f'<rect x="8" y="{y:g}" width="384" height="{tall:g}" rx="6" {_paint(kind, 0.09)}/>')
        self.text(20, y + 19, name, "start")
        if note:
            self.text(380, y + 19, note, "end", small=True)

    def outline(self, x: float, y: float, wide: float, tall: float, radius: float) -> None:
        """The border of all points within `radius` of a rectangle."""
        self.parts.append(
            f'<rect x="{x - radius:g}" y="{y - radius:g}" width="{wide + 2 * radius:g}" '
            f'height="{tall + 2 * radius:g}" rx="{radius:g}" class="line"/>'
        )

    def svg(self) -> str:
        """The file's content."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {self.height}" class="fig" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )


def _paint(kind: str, opacity: float) -> str:
    color = f"rgb({COLORS[kind].replace(' ', ',')})"
    return f'fill="{color}" fill-opacity="{opacity}" stroke="{color}" stroke-opacity="{2 * opacity:g}"'
