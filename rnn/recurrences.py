"""The built-in cells over whole sequences: their sequence forms.

The products of the inputs of all time steps are one product. What takes one step after another is
computed in C on a CPU, in float32 or with the factors of products rounded to bfloat16; elsewhere
by a loop of PyTorch. T is the number of time steps, B that of streams, n the state size, K that of
networks that ``torch.vmap`` computes together.
"""

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rnn.config import GatedOptions, Precision

if TYPE_CHECKING:
    from rnn.cells import ElmanCell, GatedCell, GRUCell, LSTMCell


def read_elman(cell: "ElmanCell", x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Advance an Elman cell by T steps.

    Args:
        cell: the cell.
        x: inputs (T, B, n).
        h: state (B, n) before the first step.

    Returns:
        The outputs (T, B, n) and the state after the last step.
    """
    precision = _find_precision(x, h)
    if precision is None:
        return _loop(cell, x, h)
    states = _Kernel(_GATED, precision, gates=1).run(
        wx=functional.linear(x, cell.input.weight),
        bias=cell.input.bias + cell.state.bias,
        recurrent=cell.state.weight.mT,
        state=h,
    )["states"]
    return states, states[-1]


def read_gru(cell: "GRUCell", x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Advance a GRU by T steps; see :func:`read_elman`."""
    precision = _find_precision(x, h)
    if precision is None:
        return _loop(cell, x, h)
    n = h.shape[1]
    bias = cell.input.bias
    of_gates = bias[: 2 * n] + cell.state.bias[: 2 * n]  # (2n)
    states = _Kernel(_GRU, precision, gates=3).run(
        wx=functional.linear(x, cell.input.weight),
        bias=torch.cat((of_gates, cell.state.bias[2 * n :], bias[2 * n :])),
        recurrent=cell.state.weight.mT,
        state=h,
    )["states"]
    return states, states[-1]


def read_lstm(
    cell: "LSTMCell", x: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Advance an LSTM by T steps; see :func:`read_elman`."""
    h, m = state
    precision = _find_precision(x, h, m)
    if precision is None:
        return _loop(cell, x, state)
    results = _Kernel(_LSTM, precision, gates=4).run(
        wx=functional.linear(x, cell.input.weight),
        bias=cell.input.bias + cell.state.bias,
        recurrent=cell.state.weight.mT,
        state=h,
        memory=m,
    )
    states = results["states"]
    return states, (states[-1], results["last_memory"])


def _loop(cell: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Advance a cell by T steps, one after another."""
    ys = []
    for wx in cell.input(x).to(x.dtype):  # (B, n to 4n)
        y, state = cell.step(wx, state)  # (B, n)
        ys.append(y)
    return torch.stack(ys), state


# ------------------------------------------------------------------ the gated cell


def read_gated(cell: "GatedCell", x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Advance a gated cell by T steps; see :func:`read_elman`."""
    n = h.shape[1]
    gates = [gate for gate in (cell.state_gate, cell.forget_gate) if gate is not None]
    maps = [cell.candidate, *gates]
    weight = torch.cat([linear.weight.mT[: 2 * n] for linear in maps], 1)  # (2n, m)
    bias = torch.cat([linear.bias for linear in maps])  # (m)
    given = {"state": h, "recurrent": weight[n:], "bias": bias}
    if cell.gate_inputs == "candidate":
        if cell.state_gate is not None:
            given["state_gate"] = cell.state_gate.weight.mT[2 * n :]  # (n, n)
        if cell.forget_gate is not None:
            given["forget_gate"] = cell.forget_gate.weight.mT[2 * n :]  # (n, n)
    if cell.input_gate is None:
        given["wx"] = functional.linear(x, weight[:n].mT)  # (T, B, m)
    else:
        of_c = cell.input_gate.weight.mT  # (2n, 2n)
        given["wx"] = functional.linear(x, of_c[:n].mT)  # (T, B, 2n)
        given |= {"x": x, "input": weight[:n]}
        given |= {"input_gate": of_c[n:], "gate_bias": cell.input_gate.bias}
    precision = _find_precision(x, h)
    if precision is None:
        states, gated_h = _loop_gated(cell, given)
    else:
        kernel = _Kernel(
            _GATED, precision, len(maps), cell.state_gate is not None, cell.forget_gate is not None
        )
        results = kernel.run(**given)
        states = results["states"]
        gated_h = results.get("gated_h")
    if gated_h is None and cell.state_source != "new":
        gated_h = torch.cat((h[None], states[:-1]))  # (T, B, n)
    parts = []
    if cell.state_source != "old":
        parts.append(states)
    if cell.state_source != "new":
        assert gated_h is not None
        parts.append(gated_h)
    if cell.residual:
        parts.append(x)
    r = torch.cat(parts, 2) if len(parts) > 1 else parts[0]  # (T, B, n to 3n)
    o = cell.read_out(r)  # (T, B, n)
    if cell.output_gate is None:
        y = functional.silu(o)  # (T, B, n)
    else:
        y = torch.sigmoid(cell.output_gate(torch.cat((o, r), 2))) * o  # (T, B, n)
    return y, states[-1]


def _loop_gated(cell: "GatedCell", given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the states (T, B, n) and, with an input gate, h' (T, B, n), one after another."""
    h = given["state"]
    n = h.shape[1]
    states = []
    gated = []
    for t, wx in enumerate(given["wx"].to(h.dtype)):
        if "input" in given:
            i = torch.sigmoid(
                wx + _multiply(h, given["input_gate"]) + given["gate_bias"]
            )  # (B, 2n)
            gated.append(i[:, n:] * h)  # (B, n)
            products = _multiply(i[:, :n] * given["x"][t], given["input"])  # (B, m)
            products = products + _multiply(gated[t], given["recurrent"])  # (B, m)
        else:
            products = wx + _multiply(h, given["recurrent"])  # (B, m)
        products = products + given["bias"]
        u = torch.tanh(products[:, :n])  # (B, n)
        if cell.state_gate is not None:
            z = products[:, n : 2 * n]  # (B, n)
            if "state_gate" in given:
                z = z + _multiply(u, given["state_gate"])
            u = torch.lerp(h, u, torch.sigmoid(z))  # (B, n), z ⊙ u + (1 − z) ⊙ h
        if cell.forget_gate is not None:
            f = products[:, -n:]  # (B, n)
            if "forget_gate" in given:
                f = f + _multiply(u, given["forget_gate"])
            u = torch.sigmoid(f) * u  # (B, n)
        h = u
        states.append(h)
    return torch.stack(states), torch.stack(gated) if gated else None


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return x·W in the dtype of x."""
    return (x @ weight).to(x.dtype)


# ------------------------------------------------------------------ in C

_GATED, _GRU, _LSTM = range(3)
_WEIGHTS = ("recurrent", "input_gate", "input", "state_gate", "forget_gate")
_ARRAYS = (
    *("x", "wx", "bias", "gate_bias", "state", "memory", "states", "memories", "results"),
    *("gated_x", "gated_h", "i", "d_states", "d_gated_h", "d_last_memory", "d_results"),
    *("d_recurrent", "d_wx", "d_x", "d_state", "d_memory"),
)


class _Weight(ctypes.Structure):
    """Struct Weight of sequence.c."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "is_transposed", "next")),
    ]


class _Sequence(ctypes.Structure):
    """Struct Sequence of sequence.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("cell", "count", "steps", "streams", "n", "threads")),
        *((name, ctypes.c_int64) for name in ("gates", "keeps")),
        *((name, ctypes.c_int64) for name in ("has_state_gate", "has_forget_gate")),
        *((name, _Weight) for name in _WEIGHTS),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


class _Kernel(NamedTuple):
    """A recurrence in C.

    Attributes:
        cell: the cell's number in sequence.c.
        precision: fp32 or bf16.
        gates: number of gates and candidates that read the state.
        has_state_gate, has_forget_gate: switches of the gated cell.
        keeps: whether the results of all steps are kept for the backward pass.
    """

    cell: int
    precision: Precision
    gates: int
    has_state_gate: bool = False
    has_forget_gate: bool = False
    keeps: bool = True

    def run(self, **given: Tensor) -> dict[str, Tensor]:
        """Return the results of a forward pass by their names in struct Sequence."""
        if self.precision == "fp32":
            given["wx"] = given["wx"].float()
        kernel = self._replace(keeps=torch.is_grad_enabled())
        results = _Forward.apply(kernel, tuple(given), *given.values())  # type: ignore[no-untyped-call]
        return dict(zip(kernel.result_columns("x" in given), results, strict=True))

    def result_columns(self, has_input_gate: bool) -> dict[str, int]:
        """Return the names of results, and their columns in state sizes; gradients come first."""
        columns = {"states": 1}
        if has_input_gate:
            columns |= {"gated_h": 1, "gated_x": 1, "i": 2}
        if self.cell == _LSTM:
            columns |= {"last_memory": 1, "memories": 1}
        return columns | {"results": self.gates + (self.cell != _LSTM)}

    def call(self, arrays: Mapping[str, Tensor], is_backward: bool) -> None:
        """Call the library with arrays by their names in struct Sequence."""
        from rnn.native.library import load_library

        *_, steps, streams, _ = arrays["wx"].shape
        count = arrays["wx"][..., 0, 0, 0].numel()
        n = arrays["state"].shape[-1]
        read = {name: arrays[name].contiguous() for name in _ARRAYS if name in arrays}
        weights = {}
        used = []  # which live as long as the call
        for name in _WEIGHTS:
            if name in arrays:
                weight = arrays[name].reshape(count, *arrays[name].shape[-2:])
                _, rows, columns = weight.shape
                is_transposed = weight.stride()[1:] == (1, rows)
                if not is_transposed and weight.stride()[1:] != (columns, 1):
                    weight = weight.contiguous()
                used.append(weight)
                weights[name] = _Weight(
                    weight.data_ptr(), rows, columns, is_transposed, weight.stride(0)
                )
        sequence = _Sequence(
            self.cell,
            count,
            steps,
            streams,
            n,
            torch.get_num_threads(),
            self.gates,
            self.keeps,
            self.has_state_gate,
            self.has_forget_gate,
            **weights,
            **{name: tensor.data_ptr() for name, tensor in read.items()},
        )
        library = load_library(self.precision)
        assert library is not None
        if library.rnn_sequence(ctypes.addressof(sequence), is_backward):
            raise MemoryError("not enough memory for a recurrence in C")


def _stack(
    batch_size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Return tensors with the axis of ``torch.vmap`` as their first one."""
    return [
        tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for dim, tensor in zip(in_dims, tensors, strict=True)
    ]


class _Forward(torch.autograd.Function):
    """All steps of a recurrence. Arrays are (…, T, B, columns), with K instead of the dots."""

    @staticmethod
    def forward(kernel: _Kernel, names: tuple[str, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        state = given["state"]
        *lead, steps, _, _ = given["wx"].shape
        *_, streams, n = state.shape
        results = {}
        for name, columns in kernel.result_columns("x" in given).items():
            is_kept = kernel.keeps or name in ("states", "memories", "gated_h")
            shape = (*lead, steps if is_kept else 1, streams, columns * n)
            results[name] = (
                state.new_empty(state.shape) if name == "last_memory" else state.new_empty(shape)
            )
        kernel.call(given | results, False)
        if "memories" in results:
            results["last_memory"].copy_(results["memories"][..., -1, :, :])
        return tuple(results.values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernel, ctx.names, *tensors = inputs
        results = dict(zip(ctx.kernel.result_columns("x" in ctx.names), output, strict=True))
        differentiable = ("states", "gated_h", "last_memory")
        ctx.mark_non_differentiable(
            *(result for name, result in results.items() if name not in differentiable)
        )
        ctx.set_materialize_grads(False)
        ctx.result_names = tuple(results)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        arrays = dict(zip((*ctx.names, *ctx.result_names), ctx.saved_tensors, strict=True))
        for name, grad in zip(ctx.result_names, grads, strict=True):
            if name in ("states", "gated_h", "last_memory"):
                arrays[f"d_{name}"] = torch.zeros_like(arrays[name]) if grad is None else grad
        result = _Backward.apply(ctx.kernel, ctx.names, tuple(arrays), *arrays.values())  # type: ignore[no-untyped-call]
        return None, None, *result

    @staticmethod
    def vmap(info: Any, in_dims: Any, kernel: Any, names: Any, *tensors: Tensor) -> Any:
        stacked = _stack(info.batch_size, in_dims[2:], tensors)
        results = _Forward.apply(kernel, names, *stacked)  # type: ignore[no-untyped-call]
        return results, (0,) * len(results)


class _Backward(torch.autograd.Function):
    """The gradients of what :class:`_Forward` reads."""

    @staticmethod
    def forward(
        kernel: _Kernel, wanted: tuple[str, ...], names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        arrays = dict(zip(names, tensors, strict=True))
        state = arrays["state"]
        states = arrays["states"]
        n = state.shape[-1]
        m = kernel.gates * n
        d = states.new_empty(*states.shape[:-1], m)
        new = {"d_results": d, "d_state": state.new_empty(state.shape)}
        if kernel.cell == _GRU:
            new["d_recurrent"] = states.new_empty(states.shape)
        if kernel.cell == _LSTM:
            new["d_memory"] = state.new_empty(state.shape)
        if "x" in arrays:
            new["d_x"] = states.new_empty(states.shape)
            new["d_wx"] = arrays["i"].new_empty(arrays["i"].shape)
        kernel.call(arrays | new, True)
        grads = {name.removeprefix("d_"): grad for name, grad in new.items()}
        grads["bias"] = d.sum((-3, -2))
        d = d.to(arrays["wx"].dtype)
        grads["wx"] = new.get("d_wx", d).to(d.dtype)
        if kernel.cell == _GRU:
            bias = grads["bias"]
            of_state = new["d_recurrent"].sum((-3, -2))
            grads["bias"] = torch.cat((bias[..., : 2 * n], of_state, bias[..., 2 * n :]), -1)
            parts = (d[..., : 2 * n], new["d_recurrent"].to(d.dtype))
            weights = [_multiply_previous(state, states, part) for part in parts]
            grads["recurrent"] = torch.cat(weights, -1)
        elif "x" in arrays:
            grads["recurrent"] = _multiply_steps(arrays["gated_h"], d)
            grads["input"] = _multiply_steps(arrays["gated_x"], d)
            grads["input_gate"] = _multiply_previous(state, states, grads["wx"])
            grads["gate_bias"] = new["d_wx"].sum((-3, -2))
        else:
            grads["recurrent"] = _multiply_previous(state, states, d)
        results = arrays["results"]
        if "state_gate" in arrays:
            grads["state_gate"] = _multiply_steps(results[..., :n], d[..., n : 2 * n])
        if "forget_gate" in arrays:
            grads["forget_gate"] = _multiply_steps(results[..., m:], d[..., -n:])
        return tuple(grads[name] for name in wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "a recurrence in C has no gradient of its gradient: set RNN_SEARCH_NATIVE=0"
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, kernel: Any, wanted: Any, names: Any, *tensors: Tensor
    ) -> Any:
        stacked = _stack(info.batch_size, in_dims[3:], tensors)
        results = _Backward.apply(kernel, wanted, names, *stacked)  # type: ignore[no-untyped-call]
        return results, (0,) * len(results)


def _multiply_steps(a: Tensor, d: Tensor) -> Tensor:
    """Return aᵀ·d (…, n, columns) of rows (…, T, B, n) and (…, T, B, columns)."""
    return (a.flatten(-3, -2).to(d.dtype).mT @ d.flatten(-3, -2)).to(a.dtype)


def _multiply_previous(state: Tensor, states: Tensor, d: Tensor) -> Tensor:
    """Return the same of the states before each step."""
    later = _multiply_steps(states[..., :-1, :, :], d[..., 1:, :, :])
    return later + _multiply_steps(state.unsqueeze(-3), d[..., :1, :, :])


# ------------------------------------------------------------------ where it is used


def _find_precision(*tensors: Tensor) -> Precision | None:
    """Return the precision of the library that computes with tensors; None for PyTorch."""
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors):
        return None
    precision: Precision = "fp32"
    if torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return None
        precision = "bf16"
    return precision if _has_library(precision) else None


def _has_library(precision: Precision) -> bool:
    """Return whether there is a library, and it computes what the cells define."""
    if precision not in _has_passed:
        _has_passed[precision] = True  # so that the comparison uses it
        # In a thread of its own, where no transformation of torch.func is active.
        with ThreadPoolExecutor(1) as pool:
            _has_passed[precision] = pool.submit(_computes_correctly, precision).result()
    return _has_passed[precision]


_has_passed: dict[Precision, bool] = {}


def _computes_correctly(precision: Precision) -> bool:
    """Compare sequence forms in C with the steps of the cells."""
    from rnn.cells import GatedCell, GRUCell, LSTMCell
    from rnn.native.library import load_library

    if load_library(precision) is None:
        return False
    n = 20
    options: dict[str, Any] = dict(GatedOptions.of_largest("candidate").network(1, n).options)
    with torch.device("meta"):
        cells = [GRUCell(n, n), LSTMCell(n, n), GatedCell(n, n, **options)]
    cell: Any
    for cell in cells:
        weights = {
            name: torch.arange(tensor.numel()).sin().view(tensor.shape) / 4
            for name, tensor in cell.state_dict().items()
        }
        cell.load_state_dict(weights, assign=True)
        x = torch.arange(3 * 19 * n).sin().view(3, 19, n).requires_grad_()
        h = torch.arange(19 * n).cos().view(19, n)
        first: Any = (h, h) if isinstance(cell, LSTMCell) else h
        state = first
        stepwise = []
        for step in x:
            y, state = cell(step, state)
            stepwise.append(y)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            ys, _ = cell.forward_sequence(x, first)
        leaves = [x, *cell.parameters()]
        wanted = torch.stack(stepwise)
        expected = wanted, *torch.autograd.grad(wanted.sum(), leaves)
        actual = ys, *torch.autograd.grad(ys.sum(), leaves)
        tolerance = 1e-4 if precision == "fp32" else 3e-2
        for tensor, other in zip(actual, expected, strict=True):
            if not (tensor - other).norm() <= tolerance * other.norm():
                return False
    return True
