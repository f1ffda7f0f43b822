"""The precision of a study that leaves it open: a rule over its networks, without PyTorch.

The rule states measurements of ``python -m benchmarks precision``, in docs/benchmarks.md.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from rnn.config import TrainingPrecision

Bf16Hardware = Literal["amx", "avx512", "gpu"]
"""What multiplies bfloat16 numbers: AMX or AVX-512 instructions of a processor, or a GPU."""

EngineName = Literal["native", "stacked", "autograd"]

_LEAST_SIZES: dict[tuple[Bf16Hardware, EngineName], int] = {
    ("amx", "native"): 1,
    ("avx512", "native"): 1,
    ("amx", "stacked"): 256,
    ("avx512", "stacked"): 256,
    ("gpu", "stacked"): 1,  # not measured: a GPU multiplies bfloat16 numbers many times as fast
    ("amx", "autograd"): 512,
}
"""State size from which networks train faster in bfloat16; never where there is none."""

_LEAST_STEP_SIZES = {"gated": 256, "gru": 256, "lstm": 256}
"""The same by autograd with AMX, of cells whose products are larger."""

_LEAST_SEQUENCE_SIZE = 128
"""The same where a built-in cell reads several steps at once."""


class EngineShape(NamedTuple):
    """What decides in which precision a network trains faster.

    Attributes:
        engine: the engine that trains it.
        cell, state_size: as in :class:`rnn.config.NetworkConfig`.
        reads_sequences: whether it has a built-in cell, and an update reads several steps.
    """

    engine: EngineName
    cell: str
    state_size: int
    reads_sequences: bool = False


def is_faster_in_bf16(shape: EngineShape, hardware: Bf16Hardware) -> bool:
    """Return whether a network trains faster in bfloat16 than in float32."""
    least = _LEAST_SIZES.get((hardware, shape.engine))
    if least is not None and shape.engine == "autograd":
        least = _LEAST_STEP_SIZES.get(shape.cell, least)
        if shape.reads_sequences:
            least = _LEAST_SEQUENCE_SIZE
    return least is not None and shape.state_size >= least


def choose_precision(
    shapes: Iterable[EngineShape], hardware: Bf16Hardware | None
) -> tuple[TrainingPrecision, str]:
    """Return the precision of a study of some networks, and why in a few words.

    It is bfloat16 only if every network trains faster in it.
    """
    if hardware is None:
        return "fp32", "it does not multiply bfloat16 numbers"
    for shape in shapes:
        if not is_faster_in_bf16(shape, hardware):
            return "fp32", f"{shape.cell} of {shape.state_size} states trains faster in it"
    return "bf16", "every network trains faster in it"
