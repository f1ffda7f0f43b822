"""Predict from a file, as in ``python run.py inputs.npy outputs.npy``, or continue a text."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def predict(run: Callable[[Tensor], Tensor], values: Any, task: Mapping[str, Any]) -> Any:
    """Predict from N sequences of T steps, or from one, in the units of the data.

    Args:
        run: maps tokens (T, N), or standardized numbers (T, N, d), to the outputs (T, N, k) of a
            network that reads each sequence from its initial states.
        values: tokens (T,) or (N, T); or numbers (T, d) or (N, T, d).
        task: content of ``task.json``.

    Returns:
        Array (T, k) or (N, T, k): numbers, or the probabilities of classes. Where the task has its
        own loss, what that reads.

    Raises:
        ValueError: if the values have another shape or dtype, or are out of range.
    """
    values = np.asarray(values)
    size = task["inputs"]
    reads_tokens = task["reads_tokens"]
    expected = f"finite numbers (T, {size}) or (N, T, {size})"
    if reads_tokens:
        expected = f"integers (T,) or (N, T) from 0 to {size - 1}"
    axes = values.ndim if reads_tokens else values.ndim - 1
    is_valid = values.dtype.kind in ("iub" if reads_tokens else "iubf") and axes in (1, 2)
    if is_valid and reads_tokens:
        is_valid = ((values >= 0) & (values < size)).all()
    elif is_valid:
        is_valid = values.shape[-1] == size and np.isfinite(values).all()
    if not is_valid or not values.size:
        given = f"shape {values.shape} and dtype {values.dtype}"
        raise ValueError(f"the inputs have {given}: expected {expected}")

    inputs = values.astype(np.int64 if reads_tokens else np.float32)
    if task["input_scaling"]:
        mean, std = np.array(task["input_scaling"], np.float32).T
        inputs = (inputs - mean) / std
    batch = inputs if axes == 2 else inputs[None]
    outputs = run(torch.from_numpy(np.ascontiguousarray(batch.swapaxes(0, 1))))  # (T, N, k)
    if task["predicts_classes"] and not task["has_own_loss"]:
        outputs = outputs.softmax(2)
    predicted = outputs.transpose(0, 1).numpy()  # (N, T, k)
    if task["target_scaling"]:
        mean, std = np.array(task["target_scaling"], np.float32).T
        predicted = predicted * std + mean
    return predicted if axes == 2 else predicted[0]


def continue_text(network: Any, prompt: bytes, merges: Any, length: int = 500) -> bytes:
    """Return a text with ``length`` more tokens, sampled from what a network predicts.

    Args:
        network: instance of the class in ``network.py``.
        prompt: text to read first.
        merges: merges of the tokenizer.
        length: number of tokens.
    """
    from bpe import BPE  # type: ignore[import-not-found]  # of an export

    tokenizer = BPE(merges)
    tokens = list(tokenizer.encode(prompt))
    states = None
    read = tokens
    for _ in range(length):
        logits, states = network(torch.tensor(read)[:, None], states)  # (T, 1, V)
        read = [int(torch.softmax(logits[-1, 0] / 0.8, 0).multinomial(1))]
        tokens += read
    text: bytes = tokenizer.decode(tokens)
    return text


@torch.inference_mode()
def main(network: Any, folder: Path, arguments: Sequence[str]) -> None:
    """Predict from a file; write what is predicted at each step, or print that of the last.

    The network of a text continues one and prints it.

    Args:
        network: instance of the class in ``network.py``.
        folder: folder of its files.
        arguments: paths of the file of inputs and, unless they are printed, that of the outputs; or
            a text.
    """
    task = json.loads((folder / "task.json").read_text("utf-8"))
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    if task["merges"] is not None:
        prompt = os.fsencode("".join(arguments[:1])) or b"\n"
        print(continue_text(network, prompt, task["merges"]).decode(errors="replace"))
        return

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs)[0]
        return outputs

    try:
        if len(arguments) not in (1, 2):
            raise ValueError("expected python run.py INPUTS.npy [OUTPUTS.npy]")
        predicted = predict(run, np.load(arguments[0], allow_pickle=False), task)
        if len(arguments) == 2:
            np.save(arguments[1], predicted)
            return
    except (OSError, EOFError, ValueError) as error:
        sys.exit(str(error))
    last = predicted[..., -1, :].reshape(-1, task["outputs"])  # of each sequence
    names = task["output_names"] or [*map(str, range(task["outputs"]))]
    if task["predicts_classes"]:
        print("class", *(names[number] for number in last.argmax(1)), sep="\n")
    else:
        print(*names, sep="\t")
        np.savetxt(sys.stdout, last, "%.6g", "\t")


if __name__ == "__main__":
    from network import Network  # type: ignore[import-not-found]  # of an export

    main(Network(), Path(__file__).parent, sys.argv[1:])
