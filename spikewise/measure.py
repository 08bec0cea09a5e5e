"""Measures what the validation loss is made of, epoch by epoch, and keeps what was found: `Composition`.

The functions measure one epoch with the network as it is. Each leaves the network changed: call it inside `network.untouched()`.

Shapes: n validation images, v of them in the subset, t training images, s steps of the epoch, m moving statistics of all layers,
one layer after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spikewise import curve, looks, probes, standing
from spikewise.curve import Budget, Parts, Sizes, parts_from
from spikewise.looks import Look
from spikewise.moments import Counterfactuals, alternatives
from spikewise.probes import Network, ShowsInputs, Weights
from spikewise.records import Hyperparameters
from spikewise.standing import Matched, Standing, Tried, Unseen, standing_from

Path = Sequence[tuple[int, Weights]]
LOOKED = 128
"""Validation images, and training images, whose looks are compared."""
GREW = 1.25
"""What was said about a loss no longer explains one that is this many times as high."""
MOVED = 0.1
"""A loss that changed by more than this fraction since the epoch before has moved."""


class Composition:
    """What the validation loss of a run is made of, measured within a budget, and its standing causes."""

    def __init__(self, budget: float) -> None:
        """`budget`: fraction of the training time."""
        self.parts: list[Parts] = []
        """For each epoch in which they were measured."""
        self.standing: list[Standing] = []
        self._budget = Budget(budget)
        self._looked = False
        self._look: Look | None = None
        """Known once the images were looked at; the images of a run stay the same."""
        self._match: Callable[[np.ndarray], np.ndarray] | None = None
        """Makes validation images look like training images; None if they do anyway."""

    def measure(
        self,
        network: Network,
        counterfactuals: Counterfactuals,
        *,
        losses: np.ndarray,
        before: float | None,
        path: Path,
        steps: np.ndarray,
        epoch: int,
        guess: float,
        hyperparameters: Hyperparameters,
        always: bool,
        settled: bool,
    ) -> tuple[Parts | None, list[Standing]]:
        """The parts of an epoch, None if they are not measured in it, and the standing causes that are new.

        `losses` [n] of the epoch and the mean loss `before` it; `path`: its snapshots; `steps` [s], dtype records.STEP; `guess`:
        the loss of always predicting the class frequencies; `always`: whatever the budget; `settled`: False while a spike is
        open, which then explains what is new."""
        size, mean = hyperparameters.batch_size, float(np.mean(losses))
        images, moved = len(steps) * size, before is not None and abs(mean - before) > MOVED * before
        named = any(not one.over and one.name != "preparation" for one in self.standing)
        waiting = float(np.mean(steps["loss"])) > standing.LEARNED * guess and epoch < standing.EARLY  # may still learn
        urgent = mean > guess and not waiting and not (named and mean < GREW * self.parts[-1].loss)
        due = self._budget.due(images, moved=moved, urgent=urgent, always=always)
        if not due or not np.isfinite(losses).all() or not np.isfinite(steps["loss"]).all():
            return None, []
        chosen = curve.sizes(images)
        with network.untouched():
            found, tried = parts(network, epoch, losses, path, float(np.mean(steps["loss"])), size, chosen)
            self.parts.append(found)
            active = {one.name for one in self.standing if not one.over}
            names = standing.find(self.parts, guess, active)
            network.assign(path[-1][1])
            match = self._matched(network)
            self._budget.charge(2 * LOOKED if match else 0)
            if match and standing.costs(match, active="appearance" in active):
                names.add("appearance")
                if match.gain > found.generalization / 2:
                    names.discard("generalization")
            if not settled:
                names &= active
            if "statistics" in names:
                tried = replace(tried, momenta=momenta(network, path[-1][1], counterfactuals, chosen))
                self._budget.charge(len(tried.momenta) * chosen.losses)
            apart = unseen(network, path, size, chosen) if epoch == 1 else None
            self._budget.charge(chosen.statistics + 2 * chosen.losses if apart else 0)
        if apart and standing.differs(apart) and "appearance" not in names:
            names.add("preparation")
        if "preparation" in names | {one.name for one in self.standing}:
            names.discard("generalization")  # images of another kind do not tell whether the network would generalize
        self.standing, new = standing.update(
            self.standing, names, epoch, lambda name: standing.say(name, found, hyperparameters, guess, tried, apart, match)
        )
        return found, new

    def _matched(self, network: Network) -> Matched | None:
        """How the validation images look beside training images and, if that differs, what the difference costs with the weights as
        they are; None if the network does not show its inputs, or they cannot be compared."""
        if not isinstance(network, ShowsInputs):
            return None
        if not self._looked:
            self._looked = True
            validation, training = network.inputs(LOOKED)
            self._look = looks.compare(validation, training)
            if network.agreed(self._look.distance if self._look else 0.0) > looks.NOTICED:
                self._match = looks.matching(validation, training)
        if self._look is None or self._match is None:
            return None
        _, own = network.evaluate_part(LOOKED)
        changed = network.evaluate_changed(LOOKED, self._match)
        if not np.isfinite(changed).all():
            return None
        return Matched(self._look, float(own.mean()), float(changed.mean()), float((own - changed).std() / np.sqrt(len(own))))

    def state(self) -> dict[str, Any]:
        """The state as JSON types."""
        return {
            "parts": [one.as_dict() for one in self.parts],
            "standing": [one.as_dict() for one in self.standing],
            "saved": self._budget.saved,
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restores a `state`."""
        self.parts = [parts_from(one) for one in values["parts"]]
        self.standing = [standing_from(one) for one in values["standing"]]
        self._budget.saved = values["saved"]


def parts(
    network: Network, epoch: int, losses: np.ndarray, path: Path, training: float, batch_size: int, sizes: Sizes
) -> tuple[Parts, Tried]:
    """The parts of the epoch whose validation images have `losses` [n], and what clean statistics alone give. `path`: snapshots of
    the epoch, the last one with the weights now. `training`: mean loss of the epoch's batches. Three passes over the subsets."""
    steps, now = path[-1]
    batches = spread(0, steps, sizes.statistics // batch_size)
    network.assign(_clean(network, now, batches))
    positions, clean = network.evaluate_part(sizes.losses)
    averaged = clean
    if len(path) > 2:
        network.assign(_clean(network, probes.average(path[1:]), batches))
        _, averaged = network.evaluate_part(sizes.losses)
    sample = network.sample_part(sizes.losses)
    raw = np.asarray(losses, float)[positions]
    found = curve.parts(epoch, float(np.mean(losses)), raw, clean, averaged, sample, training)
    return found, Tried(float(raw.mean()), float(np.mean(clean)))


def momenta(network: Network, now: Weights, counterfactuals: Counterfactuals, sizes: Sizes) -> dict[float, float]:
    """Loss of the subset of validation images with each of the other momenta; empty if they are unknown, or the layers differ in
    theirs."""
    kept = np.asarray(network.kept, float)
    if counterfactuals.now is None or np.ptp(kept):
        return {}
    found = {}
    for values, momentum in zip(counterfactuals.now, alternatives(kept), strict=True):
        if not counterfactuals.settled(momentum):
            continue
        network.assign(probes.with_statistics(network, now, values))
        found[float(momentum[0])] = float(np.mean(network.evaluate_part(sizes.losses)[1]))
    return found


def unseen(network: Network, path: Path, batch_size: int, sizes: Sizes) -> Unseen | None:
    """Compares validation images with training images that the network has not seen: call it in the first epoch. None without a
    snapshot in it."""
    if len(path) < 2:
        return None
    (step, weights), (steps, _) = path[-2:]
    network.assign(_clean(network, weights, spread(0, step, sizes.statistics // batch_size)))
    _, validation = network.evaluate_part(sizes.losses)
    training = np.concatenate([probes.unweighted_losses(network, i) for i in spread(step, steps, sizes.losses // batch_size)])
    error = float(np.hypot(*(np.std(values) / np.sqrt(len(values)) for values in (validation, training))))
    return Unseen(step, float(np.mean(training)), float(np.mean(validation)), error, _ranks(validation, training))


def _ranks(a: np.ndarray, b: np.ndarray) -> float:
    """By how many standard errors values [n] of `a` rank above those [k] of `b` (Mann-Whitney, without correction for ties)."""
    wins = float(np.mean(np.sign(a[:, None] - b))) / 2  # fraction of pairs with a > b, minus a half
    return wins / float(np.sqrt((len(a) + len(b) + 1) / (12 * len(a) * len(b))))


def spread(first: int, last: int, count: int) -> list[int]:
    """At least one and at most `count` numbers from `first` to `last` - 1, evenly spread."""
    return sorted({int(i) for i in np.linspace(first, last - 1, max(min(count, last - first), 1))})


def _clean(network: Network, weights: Weights, batches: Sequence[int]) -> Weights:
    """These weights with statistics estimated anew, without dropout, as model.statistics = "precise" does."""
    return probes.reestimated(network, weights, batches, dropout=False)
