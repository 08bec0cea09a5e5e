"""The same network and data in PyTorch and in JAX, for benchmarks.gpu. Needs the package that it measures, nothing else.

    python -m benchmarks.gpu_peers torch|jax --batch 32 --precision bfloat16 [--images N] [--size S] [--rounds R]

All images are on the device, and every epoch has a new order, as in the job. Prints one JSON object: images a second of each way to
run a step, one value a round.

    torch   eager; CUDA graph (the whole step captured once, then replayed); compile + CUDA graph (the same
            after torch.compile of everything from the rows to the loss)
    jax     the epoch as one jitted lax.scan over the steps; fit: keras.Model.fit, which jits one step

Shapes: N images, B images of a batch, s steps, S pixels of an image's side.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

WARM_UP = 3
"""Steps before a CUDA graph is captured."""


def data(images: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels uint8 [N, S, S, 3] and labels int64 [N]."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), np.uint8)
    return pixels, np.arange(images, dtype=np.int64) % 2


def speeds(epoch: Callable[[np.ndarray], None], images: int, batch: int, rounds: int) -> list[float]:
    """Images a second of `epoch`, which takes the order int64 [s, B] and returns when it is trained; after one untimed call."""
    found, generator, steps = [], np.random.default_rng(1), images // batch
    for _ in range(rounds + 1):
        order = generator.permutation(images)[: steps * batch].reshape(steps, batch)
        began = time.perf_counter()
        epoch(order)
        found.append(steps * batch / (time.perf_counter() - began))
    return found[1:]


def torch_peer(images: int, size: int, batch: int, precision: str, rounds: int) -> dict[str, Any]:
    """Images a second in PyTorch, by way of running a step; the message of the error where one fails."""
    torch: Any = importlib.import_module("torch")  # no dependency of the project: it is measured where it happens to be
    nn = torch.nn
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    numbers, classes = data(images, size)
    pixels, labels = torch.from_numpy(numbers).to(device), torch.from_numpy(classes).to(device)

    def convolve(inputs: int, outputs: int, kernel: int) -> list[Any]:
        return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU(), nn.BatchNorm2d(outputs, 1e-3, 0.01)]

    def build() -> tuple[Any, Any]:
        dense = [nn.Linear(32 * (size // 4) ** 2, 64), nn.ReLU(), nn.BatchNorm1d(64, 1e-3, 0.01)]
        network = nn.Sequential(
            *(*convolve(3, 16, 3), *convolve(16, 16, 1), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(*convolve(16, 32, 1), *convolve(32, 32, 1), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), *dense, nn.Dropout(0.5), nn.Linear(64, 2)),
        ).to(device, memory_format=torch.channels_last)
        fused = {"fused": True, "capturable": True} if device.type == "cuda" else {}
        return network, torch.optim.Adam(network.parameters(), 1e-4, **fused)

    def variant(*, compiled: bool, graph: bool) -> list[float]:
        network, optimizer = build()
        rows = torch.zeros(batch, dtype=torch.long, device=device)

        def forward(rows: Any) -> Any:
            x = pixels[rows].permute(0, 3, 1, 2).float() / 255  # stays channels last
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
                return nn.functional.cross_entropy(network(x), labels[rows])

        loss = torch.compile(forward) if compiled else forward

        def step() -> None:
            loss(rows).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # a captured backward pass then writes gradients instead of adding to zeros

        run = step
        if graph:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()
            run = captured.replay

        def epoch(order: np.ndarray) -> None:
            for each in torch.from_numpy(order).to(device):
                rows.copy_(each)
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return speeds(epoch, images, batch, rounds)

    ways = {"eager": {"compiled": False, "graph": False}}
    if device.type == "cuda":
        ways |= {"CUDA graph": {"compiled": False, "graph": True}, "compile + CUDA graph": {"compiled": True, "graph": True}}
    return {"version": torch.__version__} | {name: _tried(partial(variant, **way)) for name, way in ways.items()}


def jax_peer(images: int, size: int, batch: int, precision: str, rounds: int) -> dict[str, Any]:
    """Images a second in JAX, by way of running a step; the message of the error where one fails."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    from trainer.model import question

    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    numbers, classes = data(images, size)

    def scan() -> list[float]:
        model, optimizer = question.build((size, size, 3), 2), keras.optimizers.Adam(1e-4)
        optimizer.build(model.trainable_variables)
        pixels, labels = jax.device_put(numbers), jax.device_put(classes)

        def loss(trainable: Any, others: Any, x: Any, y: Any) -> Any:
            outputs, others = model.stateless_call(trainable, others, x, training=True)
            return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, outputs)), others

        def step(state: Any, rows: Any, pixels: Any, labels: Any) -> Any:
            trainable, others, moments = state
            (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, others, pixels[rows], labels[rows])
            trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
            return (trainable, others, moments), value

        @jax.jit
        def train(state: Any, order: Any, pixels: Any, labels: Any) -> Any:
            return jax.lax.scan(lambda state, rows: step(state, rows, pixels, labels), state, order)

        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        state: Any = tuple([variable.value for variable in each] for each in variables)

        def epoch(order: np.ndarray) -> None:
            nonlocal state
            state, losses = train(state, order, pixels, labels)
            losses.block_until_ready()

        return speeds(epoch, images, batch, rounds)

    def fit() -> list[float]:
        model = question.build((size, size, 3), 2)
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=True)
        steps = images // batch

        def epoch(order: np.ndarray) -> None:
            model.fit(numbers[: order.size], classes[: steps * batch], batch_size=batch, epochs=1, verbose=0)

        return speeds(epoch, images, batch, rounds)

    return {"version": jax.__version__, "device": str(jax.devices()[0]), "scan": _tried(scan), "fit": _tried(fit)}


def _tried(run: Callable[[], list[float]]) -> list[float] | str:
    """What `run` returns, or the message of its error: one way that fails must not cost the others."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_peers", description="Time the same training elsewhere.")
    parser.add_argument("name", choices=("torch", "jax"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    if importlib.util.find_spec(a.name) is None:
        print(json.dumps({"absent": f"{a.name} is not installed"}))
        return 0
    peer = {"torch": torch_peer, "jax": jax_peer}[a.name]
    print(json.dumps(peer(a.images, a.size, a.batch, a.precision, a.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
