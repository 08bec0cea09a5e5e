"""The sentences about the parts of the loss and the standing causes."""

import math
from dataclasses import replace

from spikewise.curve import Parts
from spikewise.describe_curve import answers, block, explained, jumps, made_of
from spikewise.findings import Findings
from spikewise.records import Cause, Diagnosis, Spike
from spikewise.standing import Standing

PARTS = Parts(9, 1.0, 0.5, -0.12, 0.22, 0.4)
STANDING = Standing(
    *("statistics", "BatchNorm statistics that do not fit the weights", 1, 9),
    *("In epoch 9 they add 0.500 to the validation loss of 1.000.", "Measured.", "set BatchNormalization's momentum to 0.9."),
    ("model.momentum=0.9", "model.statistics=precise"),
)


def test_a_loss_is_divided_into_its_largest_parts():
    """The user would read four numbers, two of them irrelevant."""
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


def test_the_amounts_add_up_to_the_loss():
    """A reader who adds the numbers up would find that a part of the loss is missing."""
    (found,) = made_of([replace(PARTS, statistics=0.3, wandering=0.05, generalization=0.25, errors=(0.2, 0.0, 0.0, 0.0))])
    assert found == (
        "Of the validation loss of 1.000 in epoch 9, 0.400 is what the network has not learned, 0.300 (±0.400) is what "
        "BatchNorm's moving statistics add, 0.250 is what does not carry over to unseen images and 0.050 the rest."
    )


def test_standing_causes_come_first_and_what_is_over_is_called_so():
    """The first line of the report would describe what is over; or a curve that was wrong for a while would be "No spike"."""
    over = replace(STANDING, name="wandering", title="the last steps' to and fro", over=True)
    found = explained(Findings(parts=(PARTS,), standing=(over, STANDING)), 9)
    assert found[0] == (
        "BatchNorm statistics that do not fit the weights (since epoch 1): in epoch 9 they add 0.500 to the validation loss of "
        "1.000. Fix: set BatchNormalization's momentum to 0.9."
    )
    alone = explained(Findings(standing=(over,)), 9)
    assert alone[0] == "No spike in 9 epochs."
    assert alone[1].startswith("The last steps' to and fro (epochs 1 to 9, over since): in epoch 9")


def test_the_answers_are_in_the_order_of_the_questions():
    """The report would advise without saying why, repeat one advice in two words, or not tell that it was tried."""
    spike = Spike(5, 2.0, 1.0, 0.02, 0.16, 1.0, 0.7, 1.3, 0.05, 100, "recovered", 6)
    cause = Cause("batchnorm_lag", 1.0, 0.9, 1.0, "Measured.", "lower the momentum.", settings=("model.momentum=0.9",))
    found = Findings((Diagnosis(spike, (cause,)),), parts=(PARTS,), standing=(STANDING,))
    found = answers(found, 9, proofs=["Proven: it helps."])
    assert found.made_of == made_of([PARTS])
    assert found.why[0].startswith("BatchNorm statistics that do not fit the weights (since epoch 1)")
    assert found.why[1] == "1 spike in 9 epochs: lagging BatchNorm statistics (epoch 5)."
    assert found.change == ["The spike did the model no harm; lower the momentum."]
    assert found.settings == STANDING.settings
    assert found.tried == ["Proven: it helps.", "Measured."]
    standing = answers(Findings(standing=(STANDING,)), 9)
    assert (standing.change, standing.why[-1]) == (["Set BatchNormalization's momentum to 0.9."], "No spike in 9 epochs.")
    nothing = answers(Findings(), 9)
    assert nothing == ([], ["No spike in 9 epochs."], [], (), [])


def test_the_log_shows_a_standing_cause_with_its_options():
    """The remedy could not be copied."""
    lines = block(STANDING, options=True).splitlines()
    assert lines[0] == "STANDING CAUSE in epoch 9: BatchNorm statistics that do not fit the weights"
    assert lines[-2:] == ["        --set model.momentum=0.9", "     or --set model.statistics=precise"]
    assert "--set" not in block(STANDING)
    assert block(replace(STANDING, settings=()), options=True).endswith("No setting does this.")
