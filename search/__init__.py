"""Search: create studies, train their trials, prune and refine them."""
