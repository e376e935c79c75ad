"""What helps people who are new here: answers to options that do not exist, doctor, init."""
