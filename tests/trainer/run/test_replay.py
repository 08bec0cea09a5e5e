"""Which epochs are trained again, from where, and with which settings."""

import numpy as np
import pytest

from spikewise.proof import Mismatch
from spikewise.records import Cause, Diagnosis
from tests.support import training
from tests.support.epochs import report
from tests.support.runs import diagnosis
from trainer import config
from trainer.run import replay
from trainer.run.replay import MOST_EPOCHS, ReplayError

HISTORY = [report(epoch) for epoch in range(1, 21)]
"""Twenty epochs of 10 steps."""


def test_the_newest_checkpoint_before_the_spike_is_taken():
    """A replay from a checkpoint inside or after the spike would start with the harm done; one from an older one than needed takes
    longer."""
    assert replay.start(HISTORY, [50, 70, 75, 80, 200], 9) == (8, 80)
    assert replay.start(HISTORY, [50, 70, 75, 200], 9) == (7, 70)  # 75 lies inside an epoch
    assert replay.start(HISTORY, [80, 90], 8) == (0, 0)  # the initial weights, which the seed gives again


@pytest.mark.parametrize(
    ("spike", "last"),
    [
        ({"epoch": 5, "outcome": "recovered", "outcome_epoch": 6}, 6),
        ({"epoch": 5, "outcome": "level shift", "outcome_epoch": 10}, 10),
        ({"epoch": 5, "outcome": "level shift", "outcome_epoch": 15}, 5 + MOST_EPOCHS - 1),
        ({"epoch": 19}, 20),  # open when the run ended
        ({"epoch": 8, "outcome": "divergence", "outcome_epoch": 8}, 8),
    ],
)
def test_a_spike_is_trained_again_for_as_long_as_it_lasted(spike, last):
    """A remedy that only delays a spike would be called proven; or a proof would take as long as the run."""
    assert replay.last_epoch(diagnosis(**spike).spike, HISTORY) == last


def test_the_checkpoints_before_the_newest_and_the_worst_spikes_are_kept():
    """The spike that matters most could not be trained again; or each of a hundred spikes would fill the bucket."""
    spikes = [diagnosis(epoch, rise=rise) for epoch, rise in ((3, 2.0), (6, 0.5), (9, 3.0), (12, 1.0), (15, 0.6))]
    assert replay.before_spikes(HISTORY, spikes, 3) == {140, 20, 80}
    assert replay.before_spikes(HISTORY, spikes[:1], 3) == {20}
    assert replay.before_spikes(HISTORY, spikes, 0) == set()
    assert replay.before_spikes(HISTORY, [diagnosis(1)], 3) == set()
    lost = diagnosis(4, loss=np.nan, rise=np.inf, threshold=np.nan)
    assert replay.worst_first([*spikes, lost])[0] is lost


def test_remedies_are_tried_in_their_order_and_once():
    """Time would be spent on the second-best advice first, or twice on the same."""
    causes = [
        ("precise", ("model.statistics=precise", "model.momentum=0.9")),
        ("noise", ("optimizer.ema=0.9", "model.momentum=0.9")),
    ]
    found = Diagnosis(diagnosis(5).spike, tuple(Cause(name, 1, 1, 1, "", "", settings=settings) for name, settings in causes))
    assert replay.remedies(found) == [["model.statistics=precise"], ["model.momentum=0.9"], ["optimizer.ema=0.9"]]
    together = Cause("steps", 1, 1, 1, "", "", settings=("optimizer.learning_rate=1e-4 optimizer.warmup_epochs=3",))
    both = replay.remedies(Diagnosis(found.spike, (together,)))
    assert both == [["optimizer.learning_rate=1e-4", "optimizer.warmup_epochs=3"]]
    after = replay.treated(training.settings(), both[0]).optimizer
    assert (after.learning_rate, after.warmup_epochs) == (1e-4, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.validation_fraction=0.4", "changes which images train or validate"),
        ("optimizer.name=SGD", "needs another state"),
        ("model.network=other:build", "needs another state"),
        ("run.name=other", "names another run"),
        ("model.statistics=moving", "was trained with model.statistics=moving already"),
    ],
)
def test_what_a_checkpoint_cannot_show_is_refused(change, words):
    """The same spike would be drawn twice and its remedy called useless, or the workers would fail after minutes."""
    with pytest.raises(ReplayError, match=rf"{words}.*\. Fix: [^\n]+$"):
        replay.treated(training.settings(), [change])


def test_a_wrong_value_is_refused_as_by_the_run():
    """A replay would end with a traceback."""
    with pytest.raises(config.ConfigError, match=r"--set model\.momentum=2: should be less than 1"):
        replay.treated(training.settings(), ["model.momentum=2"])


def test_where_to_train_is_no_change_of_what_is_learned():
    """A control on one worker would be compared with a treatment on two; or the folder of the report would be tried as a remedy."""
    places = ["launch.workers=1", "pipeline.memory_bytes=5", "run.output=here", "run.storage = s3://b/a", "s3.region=r"]
    changes = ["optimizer.clip_norm=1", "run.seed=1"]
    assert replay.elsewhere([*places[:2], *changes, *places[2:]]) == (places, changes)


def test_a_control_that_differs_says_where_and_why():
    """A user would not learn whether the machine, the number of threads or the data are at fault."""
    found, then = Mismatch(5, 30, 1.2e-7), {"processor": "A", "threads of a worker": "2", "gpu of a worker": "none"}
    text = replay.why_different(found, then, {**then, "threads of a worker": "1"}, 300)
    assert "epoch 5 has other losses than recorded (30 of 300 images, by up to 1.2e-07)" in text
    assert "threads of a worker: 2 then, 1 now. Fix: " in text
    assert "The machine is the same" in replay.why_different(found, then, then, 300)
    card = {**then, "gpu of a worker": "H100"}
    assert "TF_DETERMINISTIC_OPS=1" in replay.why_different(found, card, card, 300)
    set_already = {**card, "deterministic operations": "yes"}
    assert "TF_DETERMINISTIC_OPS=1" not in replay.why_different(found, set_already, set_already, 300)
    assert "did not record its machine" in replay.why_different(found, None, then, 300)
