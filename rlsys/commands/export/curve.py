"""The curve of a model card: a small SVG image, because a card on the Hub shows images but runs no scripts.

Drawn by hand: of the libraries that rlsys depends on, none writes an image without a browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 640, 240, 44
SERIES = (("reward/total/mean", "reward", "#1f6feb"), ("eval/accuracy", "held-out accuracy", "#1a7f37"))


def write_curve(path: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Draw reward and held-out accuracy over steps, each on its own scale; return False if there is nothing to draw."""
    drawn = []
    for number, (key, label, color) in enumerate(SERIES):
        points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
        if len(points) > 1:
            drawn.append(_series(points, label, color, number))
    if not drawn:
        return False
    frame = (
        f'<rect x="{MARGIN}" y="24" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 64}" fill="none" stroke="#8b949e"/>'
    )
    body = "\n".join([frame, *drawn])
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )
    return True


def _series(points: Sequence[tuple[float, float]], label: str, color: str, number: int) -> str:
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    # A curve that never changes, or of one step, has no extent: it is drawn at the bottom or on the left.
    span, length = (high - low) or 1.0, (max(steps) - min(steps)) or 1.0
    points_text = " ".join(
        f"{MARGIN + (step - min(steps)) / length * (WIDTH - 2 * MARGIN):.1f},"
        f"{HEIGHT - 40 - (value - low) / span * (HEIGHT - 64):.1f}"
        for step, value in points
    )
    text = f"{label}: {values[0]:.3g} to {values[-1]:.3g}, steps {steps[0]:g} to {steps[-1]:g}"
    return (
        f'<polyline points="{points_text}" fill="none" stroke="{color}" stroke-width="2"/>\n'
        f'<text x="{MARGIN + number * 290}" y="{HEIGHT - 14}" fill="{color}">{text}</text>'
    )
