"""Episodes and videos: the data that a reward model is trained on and scores.

    episodes = read_episodes("rollouts")          # written by RecordEpisodes
    episodes = read_lerobot("path/to/dataset")    # a LeRobot dataset

Needs no torch. Video files need PyAV and LeRobot datasets pyarrow, imported only when used.
"""

from robometer_gym.data.episodes import Episode, EpisodeWriter, read_episodes
from robometer_gym.data.lerobot import read_lerobot
from robometer_gym.data.video import Video, read_video, sample_at_fps, write_video
from robometer_gym.data.video_frames import VideoFrames

__all__ = [
    "Episode",
    "EpisodeWriter",
    "Video",
    "VideoFrames",
    "read_episodes",
    "read_lerobot",
    "read_video",
    "sample_at_fps",
    "write_video",
]
