"""Starts, watches, shows in the terminal, and ends one learner and its actors, which are processes or threads."""
