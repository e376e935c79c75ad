"""Help for new users: help texts, hints for unknown options, and the commands doctor and init."""
