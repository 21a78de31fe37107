"""The fast path behind `RobometerRewardModel.predict`: the same numbers for less work.

What was computed for a stream of frames is kept: the features of each frame, and the keys and
values of everything that the language model has read. A query pays for what is new. Needs torch;
knows nothing of environments. How the parts fit together is told in `engine.py`.
"""
