"""What the results of a study say: effects, comparisons, rankings and hypotheses."""
