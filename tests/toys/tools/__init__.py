"""Small checkpoints in the layouts of other training tools, with the tools' own names and keys."""
