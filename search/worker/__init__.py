"""Workers: the queue of trials, checkpoints, and training in lockstep."""
