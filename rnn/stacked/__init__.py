"""K gated networks trained in lockstep, with a hand-written backward pass.

It computes the same as :mod:`rnn.cells` for ``bptt_steps = 1``.
"""
