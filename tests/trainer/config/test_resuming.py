"""trainer.config.resuming: which keys a resumed run may change."""

from contextlib import nullcontext

import pytest

from tests.trainer.config.files import MINIMAL, load
from trainer import config


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("run.seed=1", "run.seed = 0, now it is 1"),
        ("model.momentum=0.9", "model.momentum = None, now it is 0.9"),
        ("data.image_size=[32, 32]", r"data.image_size = \[64, 64\], now it is \[32, 32\]"),
        ("optimizer.learning_rate=0.01", None),
        ("launch.workers=2", None),
        ("run.output=elsewhere", None),
        ("s3.region=elsewhere", None),
    ],
)
def test_what_a_resumed_run_may_change(tmp_path, override, refused):
    """One curve would show two runs, or a diverging run could not be resumed with a lower learning rate."""
    before = load(tmp_path, MINIMAL).as_dict()
    now = load(tmp_path, MINIMAL, override)
    with pytest.raises(config.ConfigError, match=f"first was started with {refused}") if refused else nullcontext():
        config.check_resumable(now, before, "first")
