"""Statistics of a study: effects, comparisons, rankings and tests of hypotheses."""
