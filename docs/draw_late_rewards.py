"""Draw docs/images/late-rewards.png: when each mode steps and predicts.

python docs/draw_late_rewards.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STEP, MODEL, BLUE, ORANGE, GRAY = 1.0, 2.6, "#1a5fb4", "#d9660a", "#c8ccd0"


def main() -> None:
    """Draw three timelines."""
    figure, axes = plt.subplots(3, 1, figsize=(10, 5.2), sharex=True)
    titles = (
        "synchronous: step waits for its prediction",
        "late=True: one prediction for the whole rollout",
        "background=True: predictions in a thread",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_yticks([0, 1], ["reward model", "environment"])
        axis.set_ylim(-0.6, 1.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False)

    def bar(axis: int, row: int, start: float, length: float, text: str, color: str) -> None:
        axes[axis].broken_barh([(start, length - 0.08)], (row - 0.35, 0.7), color=color)
        axes[axis].text(start + length / 2 - 0.04, row, text, ha="center", va="center", color="w")

    time = 0.0
    for number in range(1, 7):
        bar(0, 1, time, STEP, str(number), BLUE)
        time += STEP
        if number % 2 == 0:
            bar(0, 0, time, MODEL, f"step {number}", ORANGE)
            axes[0].broken_barh([(time, MODEL - 0.08)], (0.65, 0.7), color=GRAY)
            axes[0].text(time + MODEL / 2, 1, "waits", ha="center", va="center", color="#444")
            time += MODEL
    for number in range(1, 7):
        bar(1, 1, (number - 1) * STEP, STEP, str(number), BLUE)
        bar(2, 1, (number - 1) * STEP, STEP, str(number), BLUE)
    bar(1, 0, 6 * STEP, 1.25 * MODEL, "steps 2, 4, 6", ORANGE)
    axes[1].annotate(
        "rewards into the buffer",
        (6 * STEP + 1.25 * MODEL, 0),
        (6 * STEP + 1.45 * MODEL, 0),
        va="center",
        arrowprops={"arrowstyle": "<-"},
    )
    bar(2, 0, 2 * STEP, MODEL, "step 2", ORANGE)
    bar(2, 0, 2 * STEP + MODEL, 1.1 * MODEL, "steps 4, 6", ORANGE)
    end = 2 * STEP + 2.1 * MODEL
    axes[2].broken_barh([(6 * STEP, end - 6 * STEP - 0.08)], (0.65, 0.7), color=GRAY)
    axes[2].text((6 * STEP + end) / 2, 1, "end waits", ha="center", va="center", color="#444")
    axes[2].annotate(
        "reward of step 2",
        (2 * STEP + MODEL, 0.65),
        (2 * STEP + MODEL, 0.45),
        ha="center",
        va="center",
        fontsize=8,
        arrowprops={"arrowstyle": "->"},
    )
    axes[2].set_xlabel("time (environment steps)")
    figure.tight_layout()
    path = Path(__file__).parent / "images" / "late-rewards.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
