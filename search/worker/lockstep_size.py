"""Which networks can train in lockstep, and how many do if the user sets no number."""

import torch

from rnn.autograd import lockstep_obstacle
from rnn.config import BYTES, WHOLE_SEQUENCE, GatedConfig, Precision, TaskSpec, TrialConfig
from rnn.engines import has_fast_path
from rnn.native.network import pays_off
from rnn.network import estimate_memory
from rnn.training.devices import available_memory
from search.pruning.policy import ALWAYS_CONTINUE
from studies.space import REPLICATE, SWITCHES
from studies.training import OPTIMIZER_PARAMS

_MAX_CPU_LAYER_STATE = 256 * 48
"""Layer state of all streams, in numbers, up to which lockstep pays on a CPU: overhead other than
matrix products dominates such short steps."""

_MAX_CPU_LOCKSTEP = 32
"""Networks in lockstep on a CPU: more would gain little, and all of them would end at once."""

_MAX_NATIVE_LOCKSTEP = 8
"""The same where the library in C computes each network in turn, unless there are more threads:
weights and moments of more do not stay in the last cache."""

_MAX_CPU_BYTES = 256 * 2**20
"""Memory of networks in lockstep on a CPU: at most twice that of one large network."""

_MAX_AUTOGRAD_BYTES = 64 * 2**20
"""Memory of networks in lockstep on a CPU by the autograd engine: weights, moments and activations
of more do not stay in the caches, which one network after another uses better."""

_MIN_AUTOGRAD_LOCKSTEP = 8
"""Fewer networks train alone on a CPU by the autograd engine: ``torch.vmap`` adds overhead."""

_WINDOW_LOCKSTEP = 8
"""Networks in lockstep on a CPU where an update has several steps, if memory suffices: more were
not measured."""

_MEMORY_FRACTION = 0.8

_MIN_GPU_KEEP_PROBABILITY = 0.01


def auto_lockstep(
    trial_config: TrialConfig,
    streams: int,
    precision: Precision,
    device: torch.device,
    spec: TaskSpec = BYTES,
    sequence_steps: int = WHOLE_SEQUENCE,
) -> int:
    """Return how many networks of one shape are best trained together.

    Args:
        trial_config: one of the networks; 1 is returned if it cannot be stacked.
        streams: B.
        precision: precision of matrix products.
        device: device to train on; a GPU trains as many networks as fit into its memory.
        spec: what the networks read and predict.
        sequence_steps: steps of a training sequence.
    """
    if lockstep_obstacle(trial_config.architecture, precision, device) is not None:
        return 1
    architecture = trial_config.architecture
    is_cpu, is_fast = device.type == "cpu", has_fast_path(trial_config, spec)
    is_native = is_cpu and is_fast and pays_off(architecture.state_size, precision)
    is_large = streams * architecture.state_size > _MAX_CPU_LAYER_STATE
    if is_cpu and is_large and not is_native:
        return 1
    largest = architecture
    if is_fast:
        assert isinstance(architecture, GatedConfig)  # the other networks may have every option
        shape = architecture.layers, architecture.state_size, architecture.gate_inputs
        largest = GatedConfig.with_every_option(*shape)
    memory = available_memory(device) * _MEMORY_FRACTION
    has_windows = trial_config.update_every > 1
    if is_cpu and not has_windows:
        memory = min(memory, _MAX_CPU_BYTES if is_fast else _MAX_AUTOGRAD_BYTES)
    size = estimate_memory(
        trial_config._replace(architecture=largest), streams, precision, spec, sequence_steps
    )
    count = max(1, int(memory / size))
    if is_cpu and not is_fast and count < _MIN_AUTOGRAD_LOCKSTEP:
        return 1
    if not is_cpu:
        return count
    most = _WINDOW_LOCKSTEP if has_windows else _MAX_CPU_LOCKSTEP
    return min(count, _native_lockstep(is_large) if is_native else most)


def _native_lockstep(is_large: bool) -> int:
    threads = torch.get_num_threads()
    # The library divides a large network between two threads or more.
    best = (threads + 1) // 2 if is_large else max(_MAX_NATIVE_LOCKSTEP, threads)
    return min(best, _MAX_CPU_LOCKSTEP)


def differing_params(trial_config: TrialConfig, spec: TaskSpec = BYTES) -> set[str]:
    """Return the parameters in which networks in lockstep with this one may differ.

    On a fast path they are of one shape and read one text; in the autograd engine they are of one
    architecture and may read several. See :func:`rnn.engines.stack_key`.
    """
    if has_fast_path(trial_config, spec):
        return {*OPTIMIZER_PARAMS, *SWITCHES}
    return {*OPTIMIZER_PARAMS, REPLICATE} if spec.is_dense else {*OPTIMIZER_PARAMS}


def min_keep_probability(device: torch.device) -> float:
    """Return the keep probability from which a paused network resumes together with another.

    On a CPU each network costs training time. On a GPU, whose steps are bound by kernel launches,
    another network in lockstep costs next to nothing.
    """
    return ALWAYS_CONTINUE if device.type == "cpu" else _MIN_GPU_KEEP_PROBABILITY
