"""Gymnasium wrappers: scalar and vector environments whose reward is a reward model."""
