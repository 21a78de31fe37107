"""Look at what a reward model says: read a video, score it, draw the scores.

    video = read_video("attempt.mp4")
    scores = score_video(model, video, "open the drawer", fps=3)
    plot_scores(scores, video.frames[scores.frame_indices], "attempt.png")

Needs no torch; the model is whatever has `predict`. Video files and pictures need the extra
"video" (PyAV and matplotlib), which is imported only when it is used.
"""

from robometer_gym.evaluation.plots import Run, plot_episodes, plot_scores
from robometer_gym.evaluation.scoring import Scores, score_frames, score_video
from robometer_gym.evaluation.video import Video, read_video, sample_at_fps, write_video

__all__ = [
    "Run",
    "Scores",
    "Video",
    "plot_episodes",
    "plot_scores",
    "read_video",
    "sample_at_fps",
    "score_frames",
    "score_video",
    "write_video",
]
