"""The rules of an episode: windows, predictions, rewards, success. Needs numpy and Pillow only."""
