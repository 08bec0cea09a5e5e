"""`explain` with the losses alone, and what it refuses. With a model: keras/test_probing.py."""

import subprocess
import sys

import numpy as np
import pytest

from spikewise import UserError, explain

BEFORE = np.random.default_rng(0).gamma(1, 0.3, 400)


def test_the_losses_alone_distinguish_single_images_from_chance():
    """Otherwise a user who has nothing but two sets of losses would get no answer."""
    few, chance = BEFORE.copy(), BEFORE + np.random.default_rng(1).normal(0, 1, 400) * (np.arange(400) % 2)
    few[[3, 5]] += 40
    chance += BEFORE.mean() + 0.02 - chance.mean()
    found = explain(BEFORE, few, keys=[f"image-{i}" for i in range(400)], epoch=7)
    assert found.verdict.name == "few_examples"
    assert found.spike.epoch == 7
    assert "image-3" in found.verdict.remedy
    assert explain(BEFORE, chance).verdict.name == "sampling_noise"


def test_examples_of_one_source_count_as_one():
    """Otherwise a rise in the crops of one photograph would be called certain."""
    change = np.repeat([1.5, *[0.0] * 19], 20)
    assert explain(BEFORE, BEFORE + change).verdict.name != "sampling_noise"
    names = [f"photo {i // 20}" for i in range(400)]
    for groups in (names, np.array(names)):
        found = explain(BEFORE, BEFORE + change, groups=groups)
        assert (found.spike.group, found.spike.groups) == ("photo 0", 20)
    assert found.verdict.name == "sampling_noise"


@pytest.mark.parametrize(
    ("before", "now", "options", "message"),
    [
        (np.ones(3), np.ones(4), {}, r"before has shape \(3,\) and now has shape \(4,\)\. Fix: "),
        (np.ones((3, 2)), np.ones((3, 2)), {}, "Fix: pass one loss for each"),
        (np.ones(0), np.ones(0), {}, "Fix: pass one loss for each"),
        (np.ones(3), np.ones(3), {}, "did not rise: 1 before, 1 now"),
        (np.ones(3), np.full(3, np.nan), {}, "not finite"),
        (np.ones(3), np.full(3, 2.0), {"keys": ["a"]}, "keys has 1 entries for 3"),
        (np.ones(3), np.full(3, 2.0), {"groups": ["a"] * 4}, "groups has 4 entries for 3"),
        (np.ones(3), np.full(3, 2.0), {"earlier": [np.ones(2)]}, "but no model"),
    ],
)
def test_mistakes_are_explained_in_one_line(before, now, options, message):
    """Otherwise a user would get a traceback, or an explanation of losses that mean nothing."""
    with pytest.raises(UserError, match=message) as caught:
        explain(before, now, **options)
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)


def test_the_losses_alone_need_numpy_only():
    """Otherwise a user without Keras would have to install it for a comparison of two arrays."""
    script = (
        "import sys\n"
        "sys.modules['keras'] = sys.modules['tensorflow'] = None\n"
        "import numpy, spikewise\n"
        "print(spikewise.explain(numpy.ones(300), numpy.linspace(1, 2, 300)).verdict.name)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout == "unexplained\n", run.stderr
