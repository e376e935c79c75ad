"""What a model folder holds: names of weights, a tied head, and why it can't be loaded."""
