"""Checks of a model folder: its kind, names of weights, a tied head, and errors of loading."""
