"""The structs through which the step in C learns where weights, states and memory are."""

import ctypes

MAPS = ["input_gate", "candidate", "state_gate", "forget_gate", "read_out", "output_gate"]
"""Linear maps of a layer, in the order of struct Layer."""


class Map(ctypes.Structure):
    """Struct Map of layer.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("weight", "bias", "inputs", "outputs", "packed", "transposed")
    ]


class Layer(ctypes.Structure):
    """Struct Layer of layer.h."""

    _fields_ = [
        *((name, Map) for name in MAPS),
        ("output_has_grad", ctypes.c_int64),
        ("state_has_grad", ctypes.c_int64),
        ("previous_state_has_grad", ctypes.c_int64),
    ]


class Network(ctypes.Structure):
    """Struct Network of layer.h."""

    _fields_ = [
        ("embedding", Map),
        ("head", Map),
        ("reads_new_state", ctypes.c_int64),
        ("reads_previous_state", ctypes.c_int64),
        ("residual", ctypes.c_int64),
        ("gates_read_candidate", ctypes.c_int64),
        ("packed_size", ctypes.c_int64),
        ("layers", ctypes.c_void_p),
    ]


class Step(ctypes.Structure):
    """Struct Step of step.c."""

    _fields_ = [
        ("count", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("streams", ctypes.c_int64),
        ("networks", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("grads", ctypes.c_void_p),
        ("part_grads", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("states", ctypes.c_void_p),
        ("next_states", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("targets", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("losses", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("packed", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_size", ctypes.c_int64),
    ]
