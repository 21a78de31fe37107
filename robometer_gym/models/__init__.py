"""Reward models: how a name becomes one, and the implementations."""
