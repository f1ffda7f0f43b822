"""Results, statistics and pages of studies. Nothing here needs torch."""
