"""Reading a run's results from its storage."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support import training
from tests.trainer.report.runs import demo
from trainer import UserError, config
from trainer.data.dataset import Pack, Quarantined, Split
from trainer.report.load import load, open_images
from trainer.storage import Store, open_store, results

SETTINGS = config.parse({"data": {"source": "x", "classes": {"a": "a/", "b": "b/"}}, "training": {"batch_size": 32}})
PACK = Pack("digest", ("a", "b"), (8, 8, 3), (), 200, (Quarantined("a/broken.jpg", "truncated"),))
SIDES = Split(tuple(range(40, 200)), tuple(range(40)), {"warnings": []})


@dataclass
class Rows:
    """Packed images in memory: the interface of PackedRows."""

    labels: np.ndarray
    keys: list[str]
    groups: list[str]
    images: "Pixels"


@dataclass
class Pixels:
    pixels: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


@pytest.fixture
def rows() -> Rows:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    return Rows((np.arange(200) % 2).astype(np.int32), [f"image-{row:03d}" for row in range(200)], [""] * 200, Pixels(pixels))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), config.S3())


def stored(store: Store, epochs: int, **facts: object) -> list[float]:
    """Stores a run with that many epochs; returns their validation losses."""
    results.put_run(store, "a-run", {"config": SETTINGS.as_dict(), "environment": {}, "manifest": "digest", **facts})
    history = demo(epochs=epochs, images=40).history
    for report in history:
        probabilities = np.full((40, 2), report.epoch / 100, np.float32)
        results.put_epoch(store, "a-run", report, {"losses": np.full(40, report.epoch, np.float32), "probabilities": probabilities})
    return [report.validation_loss for report in history]


def test_a_running_run_is_in_progress(store: Store, rows: Rows) -> None:
    """The report of a healthy run would say that it was interrupted."""
    stored(store, 2)
    assert load("a-run", store, PACK, rows, SIDES).outcome == "in progress"
    stored(store, 2, outcome="interrupted")
    assert load("a-run", store, PACK, rows, SIDES).outcome == "interrupted"


def test_a_run_without_an_epoch_has_nothing_to_report(store: Store, rows: Rows) -> None:
    """`python -m jobs.report` of a run that has just begun would end in a traceback."""
    results.put_run(store, "young", {"config": {}, "environment": {}, "manifest": "d"})
    with pytest.raises(UserError, match="has not finished an epoch"):
        load("young", store, PACK, rows, SIDES)


def test_results_read_back(store: Store, rows: Rows) -> None:
    """The report would show other losses, keys or images than those of the run."""
    stored(store, 3, outcome="completed")
    result = load("a-run", store, PACK, rows, SIDES)
    assert (result.outcome, result.epoch, result.classes) == ("completed", 3, ("a", "b"))
    assert result.keys == rows.keys[:40]
    assert result.losses.tolist() == [[epoch] * 40 for epoch in (1, 2, 3)]
    np.testing.assert_allclose(result.probabilities, 0.03)
    np.testing.assert_array_equal(result.thumbnail(7), rows.images.pixels[7])
    assert result.data["quarantined"] == [{"key": "a/broken.jpg", "reason": "truncated"}]
    assert result.findings is None


def test_the_epoch_shown_is_that_of_the_exported_model(store: Store, rows: Rows) -> None:
    """The report's accuracy would not be that of model.keras beside it."""
    stored(store, 4, epoch=2)
    assert load("a-run", store, PACK, rows, SIDES).epoch == 2


def test_without_an_exported_model_the_kept_epoch_is_shown(store: Store, rows: Rows) -> None:
    """While a run with keep = "best" goes on, its report would show the last epoch, which is not kept."""
    settings = SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update={"keep": "best"})})
    losses = stored(store, 12, config=settings.as_dict())
    assert load("a-run", store, PACK, rows, SIDES).epoch == 1 + int(np.argmin(losses))


def test_an_epoch_whose_arrays_were_lost_leaves_a_gap(store: Store, rows: Rows) -> None:
    """One failed upload would cost the run its report."""
    stored(store, 3)
    store.delete(["runs/a-run/epochs/0002.npz"])
    losses = load("a-run", store, PACK, rows, SIDES).losses
    assert np.isnan(losses[1]).all()
    assert np.isfinite(losses[[0, 2]]).all()


@pytest.mark.parametrize("shape", [(), (39,), (40, 1), (40, 3), (0, 2)])
def test_arrays_of_other_images_leave_a_gap(store: Store, rows: Rows, shape: tuple[int, ...]) -> None:
    """One epoch whose arrays are damaged, or stand for other images, would end every report of the run with a traceback."""
    stored(store, 3)
    history = results.get_history(store, "a-run")
    for report in history[1:]:
        wrong = np.ones(shape, np.float32)
        results.put_epoch(store, "a-run", report, {"losses": wrong, "probabilities": wrong})
    result = load("a-run", store, PACK, rows, SIDES)
    assert np.isfinite(result.losses[0]).all()
    assert np.isnan(result.losses[1:]).all()
    assert result.probabilities.shape == (40, 2)
    assert np.isnan(result.probabilities).all()


def test_a_run_of_another_version_is_reported(store: Store, rows: Rows) -> None:
    """A run whose version did not know training.keep, or called a setting otherwise, could not be reported after an update."""
    older = {"data": SETTINGS.as_dict()["data"], "training": {"learning_rate": 1e-3}}
    with pytest.raises(UserError, match=r"^The packed images of run a-run are no longer in"):  # as for any other run
        open_images(store, "a-run", {"config": older, "manifest": "m"}, SETTINGS.pipeline)
    settings = SETTINGS.as_dict()
    del settings["training"]["keep"], settings["training"]["batch_size"], settings["run"]
    stored(store, 2, config=settings)
    result = load("a-run", store, PACK, rows, SIDES)
    assert result.epoch == 2
    assert result.batch is not None
    assert len(result.batch(1, 0)) == 32


def test_the_images_of_a_batch_are_those_that_were_trained_on(store: Store, rows: Rows) -> None:
    """The report would show other images than the ones that did the harm."""
    stored(store, 1)
    result = load("a-run", store, PACK, rows, SIDES)
    fed = [batch.images.numpy() for batch in training.feed(SETTINGS, rows, np.arange(40, 200)).batches(6)]
    assert result.batch is not None
    shown = result.batch(6, 3)
    assert [image.key for image in shown] == [f"image-{row:03d}" for row in fed[3]]
    assert [image.label for image in shown] == rows.labels[fed[3]].tolist()
    np.testing.assert_array_equal([image.image for image in shown], rows.images.pixels[fed[3]])


def test_the_result_on_the_test_set_is_shown_with_its_epoch_only(store: Store, rows: Rows) -> None:
    """After a resume for more epochs the report would compare the test result of old weights with the validation of new ones."""
    stored(store, 3, epoch=3)
    sides = Split(SIDES.training[:100], SIDES.validation, SIDES.facts, tuple(range(140, 200)))
    assert load("a-run", store, PACK, rows, sides).test is None
    losses, probabilities = np.full(60, 0.25, np.float32), np.full((60, 2), 0.5, np.float32)
    results.put_test(store, "a-run", 2, losses, probabilities)
    assert load("a-run", store, PACK, rows, sides).test is None
    results.put_test(store, "a-run", 3, losses, probabilities)
    test = load("a-run", store, PACK, rows, sides).test
    assert test is not None
    assert test.labels.tolist() == rows.labels[140:].tolist()
    assert test.losses.tolist() == losses.tolist()
    for wrong in (
        {"losses": losses, "probabilities": probabilities},
        {"epoch": np.array([3, 3]), "losses": losses, "probabilities": probabilities},
        {"epoch": np.array(3), "losses": losses},
        {"epoch": np.array(3), "losses": losses, "probabilities": probabilities[:, :1]},
        {"epoch": np.array(3), "losses": losses[:9], "probabilities": probabilities[:9]},
    ):
        buffer = io.BytesIO()
        np.savez(buffer, **wrong)
        store.put("runs/a-run/test.npz", buffer.getvalue())
        assert load("a-run", store, PACK, rows, sides).test is None
    results.put_test(store, "a-run", 3, losses, probabilities)
    assert load("a-run", store, PACK, rows, SIDES).test is None
