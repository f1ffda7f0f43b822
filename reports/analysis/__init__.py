"""Analysis of results: effects at the best rate, comparisons, rankings and hypotheses."""
