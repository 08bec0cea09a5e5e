"""Plans replays: which checkpoint to begin from, how far to train, what to change, and why a control differs. Pure.

A replay trains epochs of a run again. The control changes nothing and must give the recorded losses to the last bit; a treatment
changes what a remedy says. `spikewise.proof` judges the losses, `proving` runs the workers.

Shapes: n validation images.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spikewise.detect import PATIENCE
from spikewise.proof import Mismatch
from spikewise.records import Diagnosis, Spike
from trainer import UserError, config
from trainer.epoch import EpochReport

MOST_EPOCHS = PATIENCE + 1
"""Most epochs from the spike on that are trained again. A spike that lasts longer is a level shift or a divergence."""
ELSEWHERE = {"launch", "s3", "pipeline", "metrics", "checkpoint", "diagnosis"}
"""Sections that say where and how to train, not what is learned: they apply to the control too."""
PLACES = {"run.storage", "run.output"}
"""Keys of another section that do the same."""
OTHER_STATE = {"model.network", "model.weights", "model.trainable", "optimizer.name"}
"""Keys whose change a checkpoint cannot show, because it holds the state of another network or optimizer."""


class ReplayError(UserError):
    """The replay cannot be made; the one-line message says why."""


@dataclass(frozen=True)
class Plan:
    """What to train again."""

    epoch: int
    """The spike's, or the one to diagnose."""
    last: int
    """The last epoch to train."""
    start: int
    """The epoch after which training begins again; 0: with the initial weights."""
    step: int
    """The checkpoint's step at the end of `start`."""
    settings: config.Settings
    """With which the run trained the epoch."""
    machine: Mapping[str, str] | None
    """On which it did; None if that was not recorded."""
    recorded: Mapping[int, np.ndarray]
    """Epoch -> losses [n] of the run, of the epochs to train again; without those that are not stored."""

    @property
    def epochs(self) -> range:
        """The epochs that are judged."""
        return range(self.epoch, self.last + 1)

    @property
    def trained(self) -> str:
        """The epochs to train, for people."""
        first = self.start + 1
        return f"epochs {first} to {self.last}" if first < self.last else f"epoch {first}"

    @property
    def length(self) -> int:
        """Number of epochs to train."""
        return self.last - self.start


def last_epoch(spike: Spike, history: Sequence[EpochReport]) -> int:
    """The last epoch to train again: that in which the outcome was known, as far as the run came."""
    return min(spike.outcome_epoch or history[-1].epoch, spike.epoch + MOST_EPOCHS - 1, history[-1].epoch)


def start(history: Sequence[EpochReport], stored: Collection[int], epoch: int) -> tuple[int, int]:
    """Epoch and step of the newest checkpoint at the end of an epoch before `epoch`; (0, 0) without one. `stored`: the steps of all
    checkpoints."""
    ends = [(report.epoch, report.step) for report in history if report.epoch < epoch and report.step in stored]
    return max(ends, default=(0, 0))


def worst_first(diagnoses: Sequence[Diagnosis]) -> list[Diagnosis]:
    """The spikes ordered by their rise as a multiple of what would have been an alarm, a loss that is not finite first."""
    return sorted(diagnoses, key=lambda one: -_severity(one.spike))


def _severity(spike: Spike) -> float:
    return spike.rise / spike.threshold if np.isfinite(spike.rise) and spike.threshold > 0 else np.inf


def before_spikes(history: Sequence[EpochReport], diagnoses: Sequence[Diagnosis], most: int) -> set[int]:
    """The steps at the end of the epochs before the newest and the worst spikes, at most `most`: their checkpoints are kept."""
    chosen = [*diagnoses[-1:], *worst_first(diagnoses[:-1])][:most]
    ends = {report.epoch: report.step for report in history}
    return {ends[one.spike.epoch - 1] for one in chosen if one.spike.epoch - 1 in ends}


def remedies(diagnosis: Diagnosis) -> list[list[str]]:
    """The remedies of all its causes, each as `section.key=value` overrides, in the order in which to try them: the verdict's
    alternatives first."""
    return [one.split() for one in dict.fromkeys(settings for cause in diagnosis.causes for settings in cause.settings)]


def elsewhere(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides `section.key=value` overrides into those that say where to train, and those that change what is learned."""
    where = [one for one in overrides if one.partition(".")[0].strip() in ELSEWHERE or _key(one) in PLACES]
    return where, [one for one in overrides if one not in where]


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def treated(settings: config.Settings, change: Sequence[str]) -> config.Settings:
    """The settings with a change: `section.key=value` overrides.

    Raises ConfigError for a wrong value, and ReplayError for what a checkpoint cannot show or what changes nothing.
    """
    for one in change:
        key = _key(one)
        if key == "run.name":
            raise ReplayError(
                f"{one} names another run, and changes nothing that is learned. Fix: name the run to replay with --run."
            )
        if key.startswith("data."):
            raise ReplayError(
                f"{one} changes which images train or validate, so no checkpoint can show it. Fix: start another run."
            )
        if key in OTHER_STATE:
            raise ReplayError(f"{one} needs another state than the checkpoint holds. Fix: start another run with it.")
    after = config.changed(settings, change)
    if after == settings:
        raise ReplayError(f"The run was trained with {' '.join(change)} already. Fix: change something else.")
    return after


def why_different(found: Mismatch, then: Mapping[str, str] | None, now: Mapping[str, str] | None, images: int) -> str:
    """Why nothing can be proven: a sentence on where the control differs from the record, and what else differs. `then`, `now`: the
    machines. `images`: n."""
    size = f"by up to {found.largest:.2g}" if np.isfinite(found.largest) else "and one of the two is not finite"
    text = (
        f"Nothing can be proven here: trained again with nothing changed, epoch {found.epoch} has other losses than recorded "
        f"({found.images:,} of {images:,} images, {size})."
    )
    if not then or not now:
        return f"{text} The run did not record its machine."
    others = [f"{name}: {then[name]} then, {now[name]} now" for name in then if name in now and then[name] != now[name]]
    if others:
        return f"{text} {'; '.join(others)}. Fix: replay it where and how the run was trained."
    if now.get("gpu of a worker", "none") != "none" and now.get("deterministic operations") != "yes":
        return (
            f"{text} Kernels of a GPU do not repeat their rounding. Fix: set TF_DETERMINISTIC_OPS=1 for the run and for the replay."
        )
    return f"{text} The machine is the same, but its kernels, or the stored data, are not."


def state_error(problem: str) -> str:
    """The message for a change of settings that the checkpoint's state does not fit."""
    return f"The change needs another state than the checkpoint holds. Fix: start another run with it. Cause: {problem}"
