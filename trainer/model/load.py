"""Builds the network that a configuration names, as a plain Keras model, and checks that the job can train it.

Separation of concerns: this module knows Keras and the configuration, not workers. distribute.py makes the network ready for them.

Shapes: H W C one image, K classes.
"""

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from trainer import UserError, config
from trainer.formatting import one_line
from trainer.model import question
from trainer.model.module import APPLICATIONS, QUESTION, NetworkError, import_function
from trainer.storage import NotFound, open_store


def build(
    settings: config.Model, shape: tuple[int, int, int], classes: int, *, seed: int, precision: str | None = None
) -> keras.Model:
    """The network of `settings` for images of `shape` (H W C) and `classes` (K): pixels 0..255 -> [b, K], or [b, 1] for K = 2.

    `seed` determines the initial weights. `precision`: that of the layers instead of settings.precision. Sets Keras' random seed
    and clears its session, so that equal settings give equal names. Raises NetworkError.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)  # the same initial weights on every worker
    channels_first = settings.data_format == "channels_first"
    image_shape = (shape[2], *shape[:2]) if channels_first else shape
    function = _function(settings.network)
    with _defaults(precision or settings.precision, settings.data_format):
        try:
            network = function(image_shape, classes, **settings.arguments)
        except UserError:
            raise
        except Exception as error:  # a user's function, or Keras in its name, raises errors of any type
            if isinstance(error, TypeError) and (wrong := _wrong_signature(function, settings)):
                raise NetworkError(wrong) from None
            if "URL fetch failure" in str(error):
                raise NetworkError(
                    f"{_name(settings)}: its weights cannot be downloaded: {one_line(error)}. Fix: name a local file of them in "
                    "model.arguments.weights, or allow the download."
                ) from None
            raise NetworkError(
                f"{_name(settings)} cannot be built for images of {_size(image_shape)} and {classes} classes: "
                f"{type(error).__name__}: {one_line(error)}. Fix: correct the function, model.arguments or data.image_size."
            ) from None
    _check(network, settings, image_shape, classes)
    _override(network, settings)
    return network


def start_from(network: keras.Model, settings: config.Model, s3: config.S3) -> None:
    """Loads `settings.weights`, if set, into `network`. Only numbers are read from the file, no code. Raises NetworkError, and
    StoreError for a bucket that cannot be read."""
    if settings.weights is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        load_weights(network, _local(settings.weights, s3, Path(folder)), settings)


def load_weights(network: keras.Model, path: Path, settings: config.Model) -> None:
    """Loads a file of any content. Raises NetworkError if it does not fit."""
    try:
        network.load_weights(path)
    except Exception as error:
        raise NetworkError(
            f"model.weights = {settings.weights!r} does not fit {_name(settings)}: {one_line(error)}. Fix: use the weights of "
            "the same network with the same number of classes and image size."
        ) from None


def freeze(network: keras.Model, pattern: str | None) -> None:
    """Freezes every layer whose path in the network does not match `pattern` (re.search). None freezes nothing.

    Raises NetworkError if no layer that can learn matches.
    """
    if pattern is None:
        return
    paths = []
    for path, layer in layers(network):
        layer.trainable = True
        if layer.trainable_weights:
            paths.append(path)
        layer.trainable = bool(re.search(pattern, path))
    if not network.trainable_weights:
        raise NetworkError(
            f"model.trainable = {pattern!r} matches none of the {len(paths)} layers that can learn ({_some(paths)}). "
            "Fix: correct the pattern."
        )


def layers(network: keras.Layer, path: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """All layers within `network` with their paths, such as `backbone/conv1`, each once; outer layers before inner ones."""
    seen: set[int] = set()

    def walk(outer: keras.Layer, path: str) -> Iterator[tuple[str, keras.Layer]]:
        for layer in outer._flatten_layers(include_self=False, recursive=False):
            if id(layer) not in seen:
                seen.add(id(layer))
                here = f"{path}{layer.name}"
                yield here, layer
                yield from walk(layer, f"{here}/")

    return walk(network, path)


def _function(network: str) -> Callable[..., Any]:
    """`model.network` -> build(image_shape, classes, **arguments)."""
    if network == QUESTION:
        return question.build
    if network.startswith(APPLICATIONS):
        return _application(network.removeprefix(APPLICATIONS))
    return import_function(network)


def _application(name: str) -> Callable[..., keras.Model]:
    """A network of keras.applications as a function like question.build; the images are prepared as it expects them."""
    known = [each for each in dir(keras.applications) if each[0].isupper()]
    if name not in known:
        raise NetworkError(f'model.network = "{APPLICATIONS}{name}": no such network. Fix: use one of {", ".join(known)}.')
    application = getattr(keras.applications, name)
    prepare = sys.modules[application.__module__].preprocess_input

    def build(image_shape: tuple[int, int, int], classes: int, *, dropout: float = 0.0, **arguments: Any) -> keras.Model:
        if own := sorted(arguments.keys() & {"include_top", "classes", "classifier_activation", "input_shape", "input_tensor"}):
            raise NetworkError(f"model.arguments has {own[0]}, which the job sets itself. Fix: remove it.")
        inputs = keras.Input(image_shape)
        options = {"include_top": False, "weights": None, "pooling": "avg"} | arguments
        backbone = application(input_shape=image_shape, **options)
        backbone.name = "backbone"  # as an argument, EfficientNetV2 refuses it
        x = backbone(prepare(inputs))
        x = keras.layers.Dropout(dropout, name="dropout")(x)
        return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", name="classes")(x), name=name.lower())

    return build


def _wrong_signature(function: Callable[..., Any], settings: config.Model) -> str | None:
    """Why a function cannot be called with (image_shape, classes, **arguments); None if it can."""
    try:
        inspect.signature(function).bind((0, 0, 0), 0, **settings.arguments)
    except TypeError as error:
        return (
            f"{_name(settings)}: {one_line(error)}. Fix: define it as build(image_shape, classes, **arguments) and correct "
            f"model.arguments (now {settings.arguments})."
        )
    return None


def _check(network: Any, settings: config.Model, image_shape: tuple[int, int, int], classes: int) -> None:
    name = _name(settings)
    if not isinstance(network, keras.Model):
        raise NetworkError(f"{name} returns {type(network).__name__}, not a keras.Model. Fix: return the model.")
    if not network.built or not getattr(network, "inputs", None):
        raise NetworkError(
            f"{name} returns a model whose input is unknown. Fix: begin with keras.Input(image_shape), as in "
            "keras.Sequential([...]) or keras.Model(inputs, outputs)."
        )
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise NetworkError(
            f"{name} has {len(network.inputs)} inputs and {len(network.outputs)} outputs. Fix: return a model with one input and "
            "one output."
        )
    if not isinstance(network, keras.Sequential) and isinstance(network.output, dict):
        raise NetworkError(f"{name} returns a dictionary of outputs. Fix: return a model whose output is a tensor.")
    if not _accepts(network.inputs[0].shape[1:], image_shape):
        raise NetworkError(
            f"{name} expects images of {_size(network.inputs[0].shape[1:])}, but they are {_size(image_shape)}. Fix: use "
            "keras.Input(image_shape), or change data.image_size."
        )
    outputs = tuple(network.outputs[0].shape[1:])
    if outputs != (classes,) and not (outputs == (1,) and classes == 2):
        wanted = f"{classes} outputs" + (" (or 1)" if classes == 2 else "")
        raise NetworkError(
            f"{name} returns outputs of shape {_size(outputs)} for each image, but {classes} classes need {wanted}. Fix: end with "
            "Dense(classes)."
        )
    if not network.trainable_weights:
        raise NetworkError(f"{name} has no trainable weights. Fix: add a layer that learns.")
    try:
        network.to_json()
    except Exception as error:  # a user's layer
        problem = one_line(error).partition(". ")[0]
        raise NetworkError(
            f"{name} cannot be saved as model.keras: {problem}. Fix: define get_config in the layer of your own."
        ) from None


def _accepts(expected: tuple[int | None, ...], image_shape: tuple[int, int, int]) -> bool:
    return len(expected) == 3 and all(want in (None, have) for want, have in zip(expected, image_shape, strict=True))


def _override(network: keras.Model, settings: config.Model) -> None:
    """Applies the settings that replace what the network's own layers say."""
    inner = [layer for _, layer in layers(network)]
    norms = [layer for layer in inner if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in inner if isinstance(layer, keras.layers.Dropout)]
    for key, value, found in (
        ("momentum", settings.momentum, norms),
        ("epsilon", settings.epsilon, norms),
        ("dropout", settings.dropout, dropouts),
    ):
        if value is not None and not found:
            kind = "Dropout" if key == "dropout" else "BatchNormalization"
            raise NetworkError(f"model.{key} = {value:g}, but {_name(settings)} has no {kind} layer. Fix: remove model.{key}.")
        for layer in found if value is not None else ():
            setattr(layer, "rate" if key == "dropout" else key, value)


def _local(url: str, s3: config.S3, folder: Path) -> Path:
    """A local path of the weights, downloaded into `folder` if they are in a bucket. Raises NetworkError and StoreError."""
    if not url.endswith((".keras", ".weights.h5")):
        raise NetworkError(f"model.weights = {url!r} is not a .keras or .weights.h5 file. Fix: use what Keras saves.")
    parent, _, name = url.rpartition("/")
    path = Path(os.path.expanduser(url))
    if url.startswith("s3://"):
        path = folder / name
        try:
            store = open_store(parent, s3)
            store.read_again(lambda: store.download(name, path), NotFound)
        except NotFound:
            path = folder / "missing"
    if not path.is_file():
        raise NetworkError(f"model.weights = {url!r} does not exist. Fix: correct the path.")
    return path


@contextmanager
def _defaults(precision: str, data_format: str) -> Iterator[None]:
    """Keras' defaults for new layers, restored at the end."""
    before = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy(precision)
    keras.config.set_image_data_format(data_format)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_image_data_format(before[1])


def _name(settings: config.Model) -> str:
    return f"model.network = {settings.network!r}"


def _size(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape) or "()"


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
