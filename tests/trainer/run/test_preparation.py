"""Checks before a run trains; the data set itself is tested in tests/trainer/data."""

import pytest

from trainer.data.dataset import DataError
from trainer.run.preparation import OutputError, check_batch_size, check_output


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    """A run would train for hours and then be unable to write its report."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"run\.output = '.*/file/runs' cannot be written \(Not a directory\)\. Fix: set it to"):
        check_output(str(tmp_path / "file" / "runs"))
    check_output(str(tmp_path / "new" / "runs"))
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_a_batch_larger_than_the_training_set_is_refused():
    """The run would have epochs of 0 steps."""
    check_batch_size(32, 32)
    with pytest.raises(DataError, match=r"batch_size = 33 is larger than .* of about 32 images\. Fix: lower it or add"):
        check_batch_size(33, 32, about="about ")
