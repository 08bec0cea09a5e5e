"""loss.png: the losses of a run as a picture."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.trainer.report.runs import broken, demo, diagnosed
from trainer.report.figures import losses
from trainer.report.picture import SPIKE, loss_png
from trainer.report.result import RunResult
from trainer.report.summary import summarize


def pixels(result: RunResult) -> np.ndarray:
    """The picture, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(loss_png(summarize(result)))) as picture:
        return np.asarray(picture.convert("RGB"))


def count(picture: np.ndarray, colour: str) -> int:
    """Pixels of exactly this colour (#rrggbb)."""
    return int((picture == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(-1).sum())


def test_spikes_are_marked() -> None:
    """A picture in a chat would show a jump without its cause."""
    plain, marked = pixels(demo()), pixels(diagnosed(demo(), epochs=(5, 13)))
    assert plain.shape == marked.shape == (800, 1600, 3)
    assert count(plain, SPIKE) == 0
    assert count(marked, SPIKE) > 500


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("which", ["one epoch", "no epoch", "diverged", "no image"])
def test_every_run_gets_a_picture(which: str) -> None:
    """The report is needed most for a run that went wrong; it would be missing."""
    assert pixels(broken(which)).shape == (800, 1600, 3)


def test_a_dollar_in_a_name_is_no_formula() -> None:
    """A run called "a$b$" would have no report: matplotlib reads dollars as the bounds of a formula."""
    assert (pixels(replace(demo(epochs=3), run=r"a$\frac$")) != 255).any()


def test_the_picture_and_the_page_draw_the_same_curves() -> None:
    """The curve of loss.png would contradict that of report.html."""
    document = summarize(demo(epochs=5))
    validation, inference, training = losses(document["history"])
    assert validation.values.tolist() == [row["validation_loss"] for row in document["history"]]
    assert inference.values.tolist() == [row["train_loss_inference"] for row in document["history"]]
    assert training.values.tolist() == [row["train_loss"] for row in document["history"]]
