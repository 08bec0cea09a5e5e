"""What the driver must know about a network: its size, and whether the job can train it.

Separation of concerns: a process of its own builds the network, so that the driver does not load TensorFlow (10 s, 600 MB) and a
user's module cannot end it. This module starts that process and is what runs in it.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from trainer import UserError, config
from trainer.formatting import one_line
from trainer.model.module import Module

IMPORT_SECONDS = 60.0
"""What the new process may take to import TensorFlow (5 to 30 s on a busy machine), which is no part of the network's own time."""


class NetworkRefusedError(UserError):
    """The job cannot train the network; the one-line message says why."""


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """A network as the job trains it."""

    parameters: int
    """All weights, moving statistics included."""
    trainable: int
    optimizer: int
    """Numbers that the optimizer keeps."""
    activations: int
    """Outputs of all layers for one image, about what a training step must keep in memory."""
    layers: int
    batch_normalization: int
    """BatchNormalization layers whose statistics training moves."""
    dropout: int
    """Dropout layers with a rate above 0."""
    ending: str
    """What the network returns: logits, softmax, sigmoid or probabilities."""
    warnings: tuple[str, ...] = ()
    """What depends on the number of workers."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(settings: config.Settings, classes: int, module: Module | None = None) -> NetworkFacts:
    """Builds the network and the optimizer of `settings` in another process. Raises UserError as a worker would."""
    request = {
        "settings": settings.as_dict(),
        "classes": classes,
        "module": module and {"name": module.name, "files": module.files},
    }
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command, limit = [sys.executable, "-m", "trainer.engine.facts"], settings.launch.start_timeout
    try:
        process = subprocess.run(
            command, input=json.dumps(request), env=environment, capture_output=True, text=True, timeout=IMPORT_SECONDS + limit
        )
    except subprocess.TimeoutExpired:
        raise NetworkRefusedError(
            f"model.network = {settings.model.network!r} is not built after launch.start_timeout = {limit:g} s. Fix: find what "
            "delays it, such as a download, or raise the timeout."
        ) from None
    try:
        answer = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        *_, last = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise NetworkRefusedError(
            f"model.network = {settings.model.network!r} ends the process that builds it: {last.strip()}. Fix: correct it."
        ) from None
    if "error" in answer:
        raise NetworkRefusedError(answer["error"], transient=answer["transient"])
    return NetworkFacts(**answer | {"warnings": tuple(answer["warnings"])})


def _main() -> None:
    request = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr  # a user's module may print
    try:
        if request["module"]:
            Module(**request["module"]).install()
        answer = _inspect(config.parse(request["settings"]), request["classes"]).as_dict()
    except UserError as error:
        answer = {"error": str(error), "transient": error.transient}
    except Exception as error:  # a user's layer
        name, problem = request["settings"]["model"]["network"], f"{type(error).__name__}: {one_line(error)}"
        answer = {"error": f"model.network = {name!r} cannot be trained: {problem}. Fix: correct it.", "transient": False}
    print(json.dumps(answer), file=output)


def _inspect(settings: config.Settings, classes: int) -> NetworkFacts:
    import keras
    import numpy as np

    from trainer.engine.group import Group
    from trainer.engine.step import Learner
    from trainer.model.load import layers

    learner = Learner(Group(), settings, (*settings.data.image_size, 3), classes, steps=1)
    network, model = learner.network, learner.model
    leaves = [layer for _, layer in layers(model) if not isinstance(layer, keras.Model)]
    return NetworkFacts(
        parameters=model.count_params(),
        trainable=sum(int(np.prod(variable.shape)) for variable in model.trainable_variables),
        optimizer=sum(int(np.prod(variable.shape)) for variable in learner.optimizer.variables),
        activations=sum(map(_size, leaves)),
        layers=sum(
            bool(layer.weights) for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)
        ),
        batch_normalization=len(learner.moving) // 2,
        dropout=sum(layer.rate > 0 for layer in network.dropouts),
        ending=network.ending,
        warnings=tuple(network.warnings()),
    )


def _size(layer: Any) -> int:
    """Elements of the layer's output for one image; 0 where that is unknown."""
    try:
        return int(sum(_product(output.shape[1:]) for output in layer._inbound_nodes[0].outputs))
    except (AttributeError, IndexError, TypeError):
        return 0


def _product(shape: tuple[int | None, ...]) -> int:
    total = 1
    for size in shape:
        total *= size or 1
    return total


if __name__ == "__main__":
    _main()
