"""Checks of a model folder: its kind, files, names of weights, a tied head, errors of loading."""
