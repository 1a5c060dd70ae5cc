"""One learner and its actors as processes or threads: started, watched, shown in the terminal, and ended together."""
