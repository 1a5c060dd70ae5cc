"""Many runs at a time: the seeds of an experiment, and the trials of a sweep."""
