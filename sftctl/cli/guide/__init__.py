"""Help for new users: answers to options that do not exist, doctor, init."""
