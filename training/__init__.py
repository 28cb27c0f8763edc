"""Training: the step (compiled), what an epoch adds up, the state of a run, and its log."""
