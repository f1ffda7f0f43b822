"""Gated DeltaNet: a linear recurrence whose state is a matrix, a memory from keys to values.

Yang et al., *Gated Delta Networks*, 2024, https://arxiv.org/abs/2412.06464. B is the batch size.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, silu, softplus

State = tuple[Tensor, Tensor]


class GatedDeltaNet(nn.Module):
    """One layer; its state is S (B, n, n), and three inputs (B, 3, 3n) of a convolution c.

    With x the input, l2 for division by the norm, and α = 1 or no c where an option is off::

        q, k, v = l2(silu(c(x·W_q))), l2(silu(c(x·W_k))), silu(c(x·W_v))
        α, β = exp(−softplus(x·W_α)), σ(x·W_β)
        S ← α·S + k (β·(v − k·α·S))
        y = (RMSNorm(q·S) ⊙ silu(x·W_g))·W_y

    With ``negative``, β is 2·σ(x·W_β): the transition has eigenvalues down to −1, as in Grazzi et
    al., *Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues*, 2024,
    https://arxiv.org/abs/2411.12537.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        decay: bool = True,
        convolution: bool = True,
        negative: bool = False,
    ) -> None:
        super().__init__()
        self.largest_beta = 2 if negative else 1
        self.sizes = [3 * state_size, state_size] + [1] * (1 + decay)
        self.inputs = nn.Linear(input_size, sum(self.sizes))
        self.kernel = nn.Parameter(torch.rand(4, 3 * state_size) - 0.5) if convolution else None
        self.norm = nn.RMSNorm(state_size, eps=1e-5)
        self.read_out = nn.Linear(state_size, input_size)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        zeros = self.read_out.weight.new_zeros
        return zeros(batch_size, *[self.sizes[1]] * 2), zeros(batch_size, 3, self.sizes[0])

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step: x (B, input_size) and the state."""
        (q, k, v, beta, decay), gate, last = self.read(x[None], state)
        memory = decay[0].exp()[:, None] * state[0]  # (B, n, n)
        error = beta[0] * (v[0] - (k[0, :, :, None] * memory).sum(1))  # (B, n)
        memory = memory + k[0, :, :, None] * error[:, None]  # (B, n, n)
        o = self.norm((q[0, :, :, None] * memory).sum(1))  # (B, n)
        return self.read_out(o * gate[0]), (memory, last)

    def forward_sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by T steps: x (T, B, input_size) and the state, C of them at once."""
        parts, gate, last = self.read(x, state)
        c = min(32, len(x))
        whole = [pad(part, (0, 0, 0, 0, 0, -len(x) % c)).movedim(0, 1) for part in parts]
        q, k, v, beta, decay = (torch.stack(torch.split(part, c, 1)) for part in whole)
        memory, outputs = state[0], []
        with torch.autocast(x.device.type, enabled=False):
            total = decay.cumsum(2)  # (…, B, C, 1), log of the product of α
            kept = (total - total.mT).tril().exp().tril()  # (…, B, C, C), from a step to another
            factors = (beta * kept * (k @ k.mT)).tril(-1)  # (…, B, C, C)
            terms = torch.cat((v, total.exp() * k), 3) * beta  # (…, B, C, 2n)
            terms = torch.linalg.solve_triangular(factors, terms, upper=False, unitriangular=True)
            parts = *terms.chunk(2, 3), total.exp() * q, kept * (q @ k.mT), kept[:, :, -1:].mT * k
            for new, seen, read, own, write, log in zip(*parts, total, strict=True):
                error = new - seen @ memory  # (B, C, n)
                outputs.append(read @ memory + own @ error)
                memory = log[:, -1:].exp() * memory + write.mT @ error
        o = self.norm(torch.cat(outputs, 1)[:, : len(x)]).movedim(1, 0)  # (T, B, n)
        return self.read_out(o * gate), (memory, last)

    def read(self, x: Tensor, state: State) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return q, k, v (T, B, n), β, log α (T, B, 1), the gate, and the convolution's state."""
        qkv, gate, beta, *decay = self.inputs(x).to(state[0].dtype).split(self.sizes, 2)
        last = state[1]  # (B, 3, 3n)
        if self.kernel is not None:
            qkv = torch.cat((last.movedim(1, 0), qkv))  # (3 + T, B, 3n)
            last = qkv[-3:].movedim(0, 1)
            terms = [weights * qkv[i : i + len(x)] for i, weights in enumerate(self.kernel)]
            qkv = sum(terms[1:], terms[0])  # (T, B, 3n)
        q, k, v = silu(qkv).chunk(3, 2)  # (T, B, n) each
        log = -softplus(decay[0]) if decay else torch.zeros_like(beta)  # (T, B, 1)
        beta = self.largest_beta * beta.sigmoid()  # (T, B, 1)
        return (normalize(q, dim=2), normalize(k, dim=2), v, beta, log), silu(gate), last
