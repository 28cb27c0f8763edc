"""Training: the step, the totals of an epoch, the state of a run, and its log."""
