"""Look at what a reward model says: of a video, or of what a policy does in an environment.

    video = read_video("attempt.mp4")
    scores = score_video(model, video, "open the drawer", fps=3)
    plot_scores(scores, video.frames[scores.frame_indices], "attempt.png")

    report = evaluate(env, policy, episodes=20)  # an environment in one of the reward wrappers
    report.totals.f1, report.save("outputs/eval")

Needs no torch; the model is whatever has `predict`. Pictures need the extra "video" (matplotlib),
which is imported only when it is used.
"""

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
    Run,
    plot_episodes,
    plot_learning_curves,
    plot_losses,
    plot_scores,
)
from robometer_gym.evaluation.report import EvaluatedEpisode, Report, Totals
from robometer_gym.evaluation.rollout import evaluate
from robometer_gym.evaluation.scoring import Scores, score_frames, score_video

__all__ = [
    "Detection",
    "EvaluatedEpisode",
    "Report",
    "Run",
    "Scores",
    "Totals",
    "confusion_margin",
    "detection",
    "evaluate",
    "kendall_tau_a",
    "plot_episodes",
    "plot_learning_curves",
    "plot_losses",
    "plot_scores",
    "policy_ranking",
    "preference_accuracy",
    "progress_correlation",
    "score_frames",
    "score_video",
    "value_order_correlation",
    "write_overlay",
]
