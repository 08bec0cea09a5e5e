"""What a run does when its training diverges: end, or go back to the checkpoint before it with the settings of the remedy. Pure.

Shapes: s steps of an epoch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from spikewise.diagnose import News
from spikewise.records import Diagnosis
from trainer import config
from trainer.epoch import EpochReport
from trainer.run.events import Diverged
from trainer.run.replay import start


def find(news: News | None, report: EpochReport, finite: np.ndarray, learning_rate: float) -> Diverged | None:
    """Whether training has diverged, as far as an epoch shows it: its diagnosis `news`, its `report`, and whether loss and weights
    are `finite` after each of its steps, bool [s]. `learning_rate`: the configured one."""
    diagnoses = (news.diagnosis, *news.resolved) if news else ()
    diagnosis = next((one for one in diagnoses if one and one.spike.outcome == "divergence"), None)
    if diagnosis is None and finite.all():
        return None
    epoch, remedies = report.epoch, [f"optimizer.learning_rate={learning_rate / 10:.2g}"]
    if diagnosis:
        epoch, spike = diagnosis.spike.epoch, diagnosis.spike
        remedies = [one for one in diagnosis.verdict.settings if _may_change(one)] or remedies
        lost = f"is {spike.loss:.3f} where {spike.baseline:.3f} was expected" if np.isfinite(spike.loss) else "is not finite"
        later = f", and has not recovered by epoch {report.epoch}" if report.epoch > epoch else ""
        what = f"Training diverged in epoch {epoch}: the validation loss {lost}{later}."
    if not finite.all():
        first = report.step - len(finite) + int(np.argmin(finite)) + 1
        what = f"The loss or the weights are NaN or infinite in epoch {report.epoch} from step {first} on."
    return Diverged(epoch, report.epoch, what, remedies[0], bool(finite.all()))


def still(diagnoses: Sequence[Diagnosis], history: Sequence[EpochReport], learning_rate: float) -> Diverged | None:
    """The divergence that a resumed run has not recovered from, going by its last epoch; None if there is none."""
    for one in diagnoses:
        if one.spike.outcome == "divergence" and not history[-1].validation_loss - one.spike.baseline <= one.spike.threshold:
            return find(News(one, ()), history[-1], np.ones(1, bool), learning_rate)
    return None


def fix(diverged: Diverged, learning_rate: float) -> str:
    """The message of a run that ends because of it. `learning_rate`: the configured one."""
    if diverged.finite:
        return (
            f'{diverged.what} Fix: set diagnosis.on_divergence = "roll_back" and run again under this name, which goes back to '
            f"the checkpoint before with {diverged.settings}; or start another run with it."
        )
    return (
        f"{diverged.what} Fix: lower optimizer.learning_rate (now {learning_rate:g}) and run again under this name to resume from "
        "the last checkpoint."
    )


def roll_back(
    diverged: Diverged, history: Sequence[EpochReport], stored: Collection[int], settings: config.Settings
) -> dict[str, Any]:
    """The record of going back before `diverged`, in JSON types: its fields; `to_epoch` and `to_step`, after which training goes on
    (0: from the beginning); and `before`, the values that its settings replace. `stored`: the steps of all checkpoints."""
    epoch, step = start(history, stored, diverged.epoch)
    return {
        "epoch": diverged.epoch,
        "found": diverged.found,
        "what": diverged.what,
        "settings": diverged.settings,
        "before": {key: _value(settings, key) for key in _keys(diverged.settings)},
        "to_epoch": epoch,
        "to_step": step,
    }


def with_roll_backs(settings: config.Settings, roll_backs: Sequence[Mapping[str, Any]]) -> config.Settings:
    """The settings after these records of `roll_back`. A value that a person has changed since stays as it is."""
    for each in roll_backs:
        kept = [one for one in each["settings"].split() if _value(settings, _key(one)) == each["before"][_key(one)]]
        settings = config.changed(settings, kept)
    return settings


def line(roll_back: Mapping[str, Any], number: int, most: int) -> str:
    """What happened, for people. `number`: of this roll-back, from 1, of `most`."""
    where = f"to the end of epoch {roll_back['to_epoch']}" if roll_back["to_epoch"] else "to the beginning"
    return f"{roll_back['what']} Went back {where} with {roll_back['settings']} ({number} of at most {most} times)."


def _key(setting: str) -> str:
    return setting.partition("=")[0]


def _keys(settings: str) -> list[str]:
    return [_key(setting) for setting in settings.split()]


def _may_change(settings: str) -> bool:
    """Whether a resumed run may change these."""
    return all(tuple(key.split(".")) in config.KEYS_FREE_TO_CHANGE for key in _keys(settings))


def _value(settings: config.Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return settings.as_dict().get(section, {}).get(name)  # of a record by another version, which may name keys otherwise
