"""trainer.report.load: what a run stored becomes a RunResult."""

import numpy as np
import pytest

from tests.trainer.engine.test_golden import _Rows
from trainer import UserError, config
from trainer.data.dataset import Pack, Split
from trainer.data.loader import Feed
from trainer.report.load import _batch, load
from trainer.storage import open_store, results


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path), config.S3())


def test_a_run_without_an_epoch_has_nothing_to_report(store):
    """jobs.report of a run that has just begun would end in a traceback."""
    results.put_run(store, "young", {"config": {}, "environment": {}, "manifest": "d"})
    with pytest.raises(UserError, match="has not finished an epoch"):
        load("young", store, Pack("d", ("a", "b"), (8, 8, 3), (), 0), None, Split((), ()))


def test_the_images_of_a_batch_are_those_that_were_trained_on():
    """The report would show other images than those of the harmful batch."""
    rows, training = _Rows(), np.arange(40, 200)
    rows.keys = [f"image-{row:03d}" for row in range(200)]
    settings = config.parse({"data": {"source": "x", "classes": {"a": "a/", "b": "b/"}}, "training": {"batch_size": 32}})
    fed = [batch.images.numpy() for batch in Feed(rows, training, settings, rank=0, size=1).batches(6)]
    shown = _batch(settings.as_dict(), rows, Split(tuple(training), ()), 6, 3)
    assert [image.key for image in shown] == [f"image-{row:03d}" for row in fed[3]]
    assert [image.label for image in shown] == rows.labels[fed[3]].tolist()
    np.testing.assert_array_equal([image.image for image in shown], rows.pixels[fed[3]])
