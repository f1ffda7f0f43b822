"""What networks learn: the contract of a task, texts, synthetic tasks and tasks from files."""
