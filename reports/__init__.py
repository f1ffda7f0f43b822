"""Study → table → figures → one HTML page. Nothing here needs torch."""
