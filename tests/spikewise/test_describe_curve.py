"""The sentences about the parts of the loss and the standing causes."""

import math
from dataclasses import replace

from spikewise.curve import Parts
from spikewise.describe_curve import block, jumps, made_of, sentences
from spikewise.standing import Standing

PARTS = Parts(9, 1.0, 0.5, -0.12, 0.22, 0.4)
STANDING = Standing(
    *("statistics", "BatchNorm statistics that do not fit the weights", 1, 9),
    *("In epoch 9 they add 0.500 to the validation loss of 1.000.", "Measured.", "set BatchNormalization's momentum to 0.9."),
    ("model.momentum=0.9", "model.statistics=precise"),
)


def test_a_loss_is_divided_into_its_largest_parts():
    """The user would read four numbers of which two do not matter."""
    assert made_of([PARTS]) == [
        "Of the validation loss of 1.000 in epoch 9, 0.500 is what BatchNorm's moving statistics add, 0.400 is what the network "
        "has not learned, 0.220 is what does not carry over to unseen images and -0.120 is what the last steps' to and fro adds."
    ]
    assert made_of([]) == []
    assert made_of([replace(PARTS, loss=math.nan)]) == []


def test_what_makes_the_curve_jump_is_named():
    """A restless curve without a single spike would end with "No spike"."""
    restless = [replace(PARTS, epoch=e, loss=1 + 0.5 * (e % 2), statistics=0.5 * (e % 2)) for e in range(1, 9)]
    assert jumps(restless) == ["Of its changes between epochs 1 and 8, 100% is what BatchNorm's moving statistics add."]
    calm = [replace(one, loss=1 + 0.001 * one.epoch) for one in restless]
    assert jumps(calm) == []
    assert jumps(restless[:3]) == []


def test_standing_causes_come_first_and_those_that_are_over_do_not():
    """The first line of the report would describe what is over, or hide what is not."""
    found = sentences([PARTS], [STANDING, replace(STANDING, title="overfitting", over=True)])
    assert found[0] == (
        "BatchNorm statistics that do not fit the weights (since epoch 1): in epoch 9 they add 0.500 to the validation loss of "
        "1.000. Fix: set BatchNormalization's momentum to 0.9."
    )
    assert not [one for one in found if "verfitting" in one]


def test_the_log_shows_a_standing_cause_with_its_options():
    """The remedy could not be copied."""
    lines = block(STANDING, options=True).splitlines()
    assert lines[0] == "STANDING CAUSE in epoch 9: BatchNorm statistics that do not fit the weights"
    assert lines[-2:] == ["        --set model.momentum=0.9", "     or --set model.statistics=precise"]
    assert "--set" not in block(STANDING)
    assert block(replace(STANDING, settings=()), options=True).endswith("No setting does this.")
