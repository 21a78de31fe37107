"""The fast path of `RobometerRewardModel.predict`: the same numbers for less work.

Caches the features of each frame of a stream, and the keys and values of every token that the
language model has read, so that a prediction costs only its new frames. Needs torch; knows nothing
of environments. `engine.py` shows how the parts fit together.
"""
