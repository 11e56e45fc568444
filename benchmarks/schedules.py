"""Share of the signal that named noise schedules leave after each of 1000 steps.

    python benchmarks/schedules.py [--out docs/figures/schedules.svg]

A table of the values is written, too, as ``.md``.

The left panel of figure 2 of DiffRec (Du et al. 2023, arXiv 2304.04541). Nothing is measured.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffuserec.models.diffusion import NoiseSchedule
from diffuserec.reports.curves import draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "schedules.svg"
N_STEPS = 1000
LOOKS = {"sqrt": ("#0550ae", "-"), "cosine": ("#953800", "--"), "linear": ("#1a7f37", "-.")}


def draw(axes: Sequence["Axes"]) -> None:
    (panel,) = axes
    for name, (color, line) in LOOKS.items():
        alpha_bars = NoiseSchedule.named(name, N_STEPS).alpha_bars.numpy()
        panel.plot(range(1, N_STEPS + 1), alpha_bars, line, color=color, label=name)
    panel.set_xlabel(f"step n of {N_STEPS}")
    panel.set_ylabel("alpha_bar")
    panel.set_ylim(0, 1)
    panel.set_xlim(0, N_STEPS)
    panel.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURE)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw_svg(given.out, "Noise schedules", 1, draw)
    shown = (1, 100, 200, 400, 600, 800, 900, 1000)
    lines = [["schedule", *(f"n = {n}" for n in shown)], ["---"] * (1 + len(shown))]
    for name in LOOKS:
        alpha_bars = NoiseSchedule.named(name, N_STEPS).alpha_bars
        lines.append([name, *(f"{alpha_bars[n - 1].item():.3g}" for n in shown)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    given.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
