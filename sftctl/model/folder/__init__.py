"""Checks of a model folder: its kind, its files, weight names, a tied head, loading errors."""
