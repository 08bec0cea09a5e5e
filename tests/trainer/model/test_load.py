"""Networks of users: what is built, and what is refused."""

import keras
import numpy as np
import pytest

from tests.support.training import settings
from trainer import config
from trainer.model import load
from trainer.model.module import NetworkError

OWN = "tests.support.networks:"


def _build(network="question", shape=(16, 16, 3), classes=2, **model):
    return load.build(settings(model={"network": network, **model}).model, shape, classes, seed=0)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("none", "returns NoneType, not a keras.Model. Fix: return the model."),
        ("without_arguments", "too many positional arguments. Fix: define it as build(image_shape, classes, **arguments)"),
        ("fails", "cannot be built for images of 16x16x3 and 2 classes: RuntimeError: two lines. Fix: "),
        ("two_inputs", "has 2 inputs and 1 outputs. Fix: "),
        ("two_outputs", "has 1 inputs and 2 outputs. Fix: "),
        ("segmentation", "returns outputs of shape 16x16x2 for each image, but 2 classes need 2 outputs (or 1). Fix: "),
        ("too_deep", "cannot be built for images of 16x16x3"),
        ("fixed_size", "expects images of 224x224x3, but they are 16x16x3. Fix: "),
        ("nothing_to_learn", "has no trainable weights. Fix: "),
        ("dictionary", "returns a dictionary of outputs. Fix: "),
        ("not_saved", "cannot be saved as model.keras: Object NotSaved was created"),
        ("missing", "tests.support.networks has no function missing. Fix: "),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(network, said):
    """A mistake in a user's network would end in a traceback from inside Keras, after the images were packed."""
    with pytest.raises(NetworkError) as caught:
        _build(OWN + network)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_module_that_does_not_import_is_refused(tmp_path, monkeypatch):
    """A typing error in a user's module would end in a traceback."""
    (tmp_path / "broken_network.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match=r"broken_network does not import: ModuleNotFoundError: .*nothing_of_that_name.* Fix"):
        _build("broken_network:build")


def test_arguments_reach_the_function():
    """model.arguments would be ignored, or a wrong one would end in a traceback."""
    assert _build(OWN + "residual", arguments={"width": 4}).count_params() < _build(OWN + "residual").count_params()
    with pytest.raises(NetworkError, match=r"unexpected keyword argument 'depth'.* model\.arguments \(now {'depth': 3}\)"):
        _build(OWN + "residual", arguments={"depth": 3})


def test_networks_of_keras():
    """A network of keras.applications would see images that are prepared otherwise than it expects."""
    network = _build("keras.applications:MobileNetV2", (32, 32, 3), 3, arguments={"alpha": 0.35})
    assert network.output_shape == (None, 3)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    features = network.get_layer("backbone")(images / 127.5 - 1)
    np.testing.assert_allclose(network(images), network.get_layer("classes")(features), rtol=1e-5)
    with pytest.raises(NetworkError, match=r"no such network\. Fix: use one of .*MobileNetV2"):
        _build("keras.applications:MobileNet9")
    with pytest.raises(NetworkError, match=r"model\.arguments has include_top, which the job sets itself"):
        _build("keras.applications:MobileNetV2", (32, 32, 3), arguments={"include_top": True})
    with pytest.raises(NetworkError, match="Input size must be at least 32x32"):
        _build("keras.applications:ResNet50", (16, 16, 3))


def test_settings_replace_what_layers_say():
    """model.momentum, epsilon or dropout would apply to the question's network only, or to its outer layers only."""
    network = _build(OWN + "residual", momentum=0.8, epsilon=0.01, dropout=0.4)
    inner = dict(load.layers(network))
    norms = [layer for layer in inner.values() if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 5
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.8, 0.01)}
    assert {layer.rate for layer in inner.values() if isinstance(layer, keras.layers.Dropout)} == {0.4}
    with pytest.raises(NetworkError, match=r"model\.momentum = 0\.9, but .* has no BatchNormalization layer\. Fix: remove"):
        _build(OWN + "depthwise", momentum=0.9)


def test_keras_defaults_stay_as_they_were():
    """A later model of the same process would be built in another precision or layout."""
    _build(precision="float64", data_format="channels_first")
    assert keras.config.dtype_policy().name == "float32"
    assert keras.config.image_data_format() == "channels_last"


def test_freezing_by_path():
    """model.trainable would leave layers learning that a user wants frozen, or freeze all of them unnoticed."""
    network = _build(OWN + "residual")
    load.freeze(network, "^head|block2/")
    learning = {path for path, layer in load.layers(network) if layer.weights and layer.trainable}
    assert "head" in learning
    assert not any(path.startswith("block1") for path in learning)
    assert any(path.startswith("block2/") for path in learning)
    assert 0 < len(network.trainable_weights) < len(network.weights)
    with pytest.raises(NetworkError, match=r"model\.trainable = 'hed' matches none of the \d+ layers .*block1/.* Fix: "):
        load.freeze(network, "hed")
    with pytest.raises(NetworkError, match=r"'flatten' matches none of the \d+ layers that can learn \(convolution1, "):
        load.freeze(_build(), "flatten")


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_to_start_from(tmp_path, monkeypatch, suffix):
    """Fine-tuning would start from random weights, or from those of other layers; or `~` would be no folder here alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / f"start{suffix}"
    saved = _build(OWN + "residual")
    saved.set_weights([np.random.default_rng(1).normal(size=weight.shape) for weight in saved.get_weights()])
    (saved.save if suffix == ".keras" else saved.save_weights)(path)
    model = {"network": OWN + "residual", "weights": f"~/start{suffix}"}
    network = _build(**model)
    load.start_from(network, settings(model=model).model, config.S3())
    for a, b in zip(network.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = {"network": "question", "weights": str(path)}
    with pytest.raises(NetworkError, match=r"model\.weights = .* does not fit model\.network = 'question': .* Fix: use"):
        load.start_from(_build(**other), settings(model=other).model, config.S3())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.keras", None, "does not exist. Fix: correct the path."),
        ("weights.pt", b"x", "is not a .keras or .weights.h5 file. Fix: "),
        ("text.keras", b"not a zip file", "does not fit"),
        ("text.weights.h5", b"not HDF5", "does not fit"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, said):
    """A wrong file would end in a traceback of h5py or zipfile."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    model = settings(model={"weights": str(tmp_path / name)}).model
    with pytest.raises(NetworkError) as caught:
        load.start_from(_build(), model, config.S3())
    assert said in str(caught.value)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    """A .keras file from the internet could run its author's code in the job."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Lambda(lambda x: 1 / 0 if x is None else x)(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    path = tmp_path / "lambda.keras"
    keras.Model(inputs, outputs).save(path)
    with pytest.raises(NetworkError, match="does not fit"):  # its weights are read, and are not those of the question's network
        load.start_from(_build(), settings(model={"weights": str(path)}).model, config.S3())
