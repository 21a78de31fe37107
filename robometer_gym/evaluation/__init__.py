"""Evaluation of a reward model: on a video, or on a policy's episodes in an environment.

    trace = score_video(model, read_video("attempt.mp4"), "open the drawer", fps=3)
    plot_scores(trace, "attempt.png")

    report = evaluate(env, policy, episodes=20)  # an environment in one of the reward wrappers
    report.totals.f1, report.save("outputs/eval")

Names are imported on first use. Needs no torch; the model is anything that has `predict`. Plots
need the extra "video" (matplotlib), imported only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robometer_gym._lazy import lazy_names

if TYPE_CHECKING:
    from robometer_gym.evaluation.env_changes import HoldSuccess
    from robometer_gym.evaluation.metrics import (
        Detection,
        confusion_margin,
        detection,
        kendall_tau_a,
        policy_ranking,
        preference_accuracy,
        progress_correlation,
        value_order_correlation,
    )
    from robometer_gym.evaluation.overlay import write_overlay
    from robometer_gym.evaluation.plots import (
        plot_episodes,
        plot_learning_curves,
        plot_losses,
        plot_scores,
    )
    from robometer_gym.evaluation.report import Report
    from robometer_gym.evaluation.rollout import EvaluationInterrupted, evaluate
    from robometer_gym.evaluation.scoring import score_frames, score_video
    from robometer_gym.evaluation.totals import (
        Totals,
        clock_order,
        is_undecided,
        last_frame_success,
        value_order,
    )

__all__ = [
    "Detection",
    "EvaluationInterrupted",
    "HoldSuccess",
    "Report",
    "Totals",
    "clock_order",
    "confusion_margin",
    "detection",
    "evaluate",
    "is_undecided",
    "kendall_tau_a",
    "last_frame_success",
    "plot_episodes",
    "plot_learning_curves",
    "plot_losses",
    "plot_scores",
    "policy_ranking",
    "preference_accuracy",
    "progress_correlation",
    "score_frames",
    "score_video",
    "value_order",
    "value_order_correlation",
    "write_overlay",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(
            (
                "Detection",
                "confusion_margin",
                "detection",
                "kendall_tau_a",
                "policy_ranking",
                "preference_accuracy",
                "progress_correlation",
                "value_order_correlation",
            ),
            "robometer_gym.evaluation.metrics",
        ),
        **dict.fromkeys(
            ("plot_episodes", "plot_learning_curves", "plot_losses", "plot_scores"),
            "robometer_gym.evaluation.plots",
        ),
        **dict.fromkeys(("score_frames", "score_video"), "robometer_gym.evaluation.scoring"),
        **dict.fromkeys(
            ("Totals", "clock_order", "is_undecided", "last_frame_success", "value_order"),
            "robometer_gym.evaluation.totals",
        ),
        "Report": "robometer_gym.evaluation.report",
        "EvaluationInterrupted": "robometer_gym.evaluation.rollout",
        "HoldSuccess": "robometer_gym.evaluation.env_changes",
        "evaluate": "robometer_gym.evaluation.rollout",
        "write_overlay": "robometer_gym.evaluation.overlay",
    },
)
