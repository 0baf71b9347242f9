"""Pictures of the results, for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import compare, slope
from benchmarks.notes import REACHES

__all__ = ["draw"]

_FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"


def draw(results: dict[str, Any]) -> None:
    """Draw every plot, and the ratios of every comparison in one."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same numbers make the same file.
    mpl.rcParams |= {"svg.hashsalt": "bench", "svg.fonttype": "none"}
    for answer in results["answers"]:
        for plot in answer["plots"]:
            _draw_lines(plot)
    _draw_ratios(results)


def _save(figure: Any, key: str) -> None:
    path = _FOLDER / f"bench-{key}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _draw_lines(plot: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in plot["lines"].items():
        label = f"{name} (slope {slope(points):z.2f})"
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel=plot["x"], ylabel=plot["y"], xscale="log", yscale="log")
    axes.set_title(plot["title"])
    axes.grid(visible=True, alpha=0.3)
    # Beside the axes, where it hides no line.
    figure.legend(fontsize="small", loc="outside center right")
    _save(figure, plot["key"])


def _draw_ratios(results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    rows = [
        (f"{REACHES[answer['question']]}: {name}", compare(table["times"], name, base))
        for answer in results["answers"]
        for table in answer["tables"]
        if (base := table["base"])
        for name in table["times"]
        if name != base
    ][::-1]
    if not rows:
        return
    figure = Figure(figsize=(9, 0.26 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    medians = [ratio.median for _, ratio in rows]
    axes.barh(
        places,
        medians,
        xerr=[
            [ratio.median - ratio.low for _, ratio in rows],
            [ratio.high - ratio.median for _, ratio in rows],
        ],
        color=["tab:blue" if "django_smart" in name else "silver" for name, _ in rows],
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time over that of the first way (1.00)")
    axes.set_yticks(places, [name for name, _ in rows], fontsize=7)
    _save(figure, "ratios")
