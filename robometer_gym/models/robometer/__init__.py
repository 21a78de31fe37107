"""Robometer: the predictor, its network and its engine. Needs torch; knows no environments."""
