"""What a run stores about itself besides its checkpoints, and how to read it.

runs/<run>/run.json           the resolved configuration, the data set's digest, the environment, and the digest of the user's own
                              network; at the end also the outcome and the epoch whose weights model.keras has
runs/<run>/starts             how often workers have started on the run
runs/<run>/started/0000.json  with which settings and on which machine they started for the first time, 0001.json the second time
runs/<run>/roll_backs.json    the divergences from which the run went back, the oldest first
runs/<run>/replays/0046/      of the spike in epoch 46: proof.json, an Experiment, and below control/ and treatment-1/ the records
                              of the epochs that were trained again, as in runs/<run>/
runs/<run>/spikes.json        what the diagnosis has found: Findings
runs/<run>/epochs/0001.json   the epoch's EpochReport
runs/<run>/epochs/0001.npz    of the n validation images, in the order of the split: losses [n] and probabilities [n, K];
                              of the fixed sample of m training images: sample [m], losses; of the s steps: steps/<field> [s]
runs/<run>/test.npz           of the test set, if there is one: epoch, whose weights were evaluated; losses and probabilities, in
                              the order of the split
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from spikewise.findings import Findings, findings_from
from spikewise.proof import Experiment, experiment_from
from trainer import UserError
from trainer.epoch import EpochReport
from trainer.storage import NotFound, Store
from trainer.storage.store import list_keys


class ResultsError(UserError):
    """A stored object of a run cannot be read; the one-line message names it."""


def put_run(store: Store, run: str, facts: Mapping[str, Any]) -> None:
    """Stores the description of the run. Raises StoreError."""
    store.put(f"runs/{run}/run.json", json.dumps(facts, indent=1).encode(), content_type="application/json")


def get_run(store: Store, run: str) -> dict[str, Any] | None:
    """What `put_run` stored; None for a run that never started. Raises ResultsError and StoreError."""
    key = f"runs/{run}/run.json"
    try:
        text = store.get(key)
    except NotFound:
        return None
    try:
        facts = json.loads(text)
        if missing := {"config", "manifest", "environment"} - set(facts):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return facts
    except (ValueError, TypeError) as error:
        raise ResultsError(
            f"{store.url}/{key} is damaged ({error}). "
            "Fix: delete it to resume from the run's checkpoints, or choose another run.name."
        ) from None


def count_start(store: Store, run: str) -> int:
    """Counts a start of the run's workers. Returns the number of earlier starts. Raises StoreError.

    Not part of a checkpoint, because a worker that dies before the next checkpoint has to count too.
    """
    key = f"runs/{run}/starts"
    try:
        before = int(store.get(key))
    except (NotFound, ValueError):
        before = 0
    store.put(key, str(before + 1).encode())
    return before


def put_start(store: Store, run: str, number: int, facts: Mapping[str, Any]) -> None:
    """Stores what a replay must know about start `number` of the workers: `settings` and `machine`. Raises StoreError."""
    store.put(f"runs/{run}/started/{number:04d}.json", json.dumps(facts, indent=1).encode(), content_type="application/json")


def get_start(store: Store, run: str, number: int) -> dict[str, Any] | None:
    """What `put_start` stored; None if nothing readable is. Raises StoreError."""
    try:
        facts = json.loads(store.get(f"runs/{run}/started/{number:04d}.json"))
        return {"settings": facts["settings"], "machine": facts["machine"]}
    except (NotFound, ValueError, TypeError, KeyError):
        return None


def replay_name(run: str, epoch: int, trial: str) -> str:
    """The name under which a replay of `run` stores its records. `trial`: control or treatment-<number>."""
    return f"{run}/replays/{epoch:04d}/{trial}"


def clear_replay(store: Store, name: str) -> None:
    """Deletes the records of an earlier replay of this `replay_name`. Raises StoreError."""
    store.delete(list_keys(store, f"runs/{name}/"))


def put_experiment(store: Store, run: str, experiment: Experiment) -> None:
    """Stores what replays of a spike found. Raises StoreError."""
    key = f"runs/{run}/replays/{experiment.epoch:04d}/proof.json"
    store.put(key, json.dumps(experiment.as_dict(), indent=1).encode(), content_type="application/json")


def get_experiments(store: Store, run: str) -> list[Experiment]:
    """What replays of the run found, in order of their epochs; without those that are damaged. Raises StoreError."""
    found = []
    for _, body in store.get_many(key for key in list_keys(store, f"runs/{run}/replays/") if key.endswith("/proof.json")):
        if isinstance(body, Exception):
            raise body
        with suppress(ValueError, TypeError, KeyError):
            found.append(experiment_from(json.loads(body)))
    return found


def put_roll_backs(store: Store, run: str, roll_backs: Sequence[Mapping[str, Any]]) -> None:
    """Stores the divergences from which the run went back. Raises StoreError."""
    body = json.dumps(list(roll_backs), indent=1).encode()
    store.put(f"runs/{run}/roll_backs.json", body, content_type="application/json")


def get_roll_backs(store: Store, run: str) -> list[dict[str, Any]]:
    """The divergences from which the run went back, the oldest first. Raises ResultsError and StoreError."""
    key = f"runs/{run}/roll_backs.json"
    try:
        return [dict(roll_back) for roll_back in json.loads(store.get(key))]
    except NotFound:
        return []
    except (ValueError, TypeError) as error:
        raise ResultsError(f"{store.url}/{key} is damaged ({error}). Fix: delete it to forget where the run went back.") from None


def put_epoch(store: Store, run: str, report: EpochReport, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores one epoch, its report last. Raises StoreError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    store.put(_key(run, report.epoch, "npz"), buffer.getvalue())
    _put_report(store, run, report)


def _put_report(store: Store, run: str, report: EpochReport) -> None:
    store.put(_key(run, report.epoch, "json"), json.dumps(report.as_dict()).encode(), content_type="application/json")


def get_arrays(store: Store, run: str, epoch: int) -> dict[str, np.ndarray]:
    """The arrays of one epoch; empty if they are missing or damaged. Raises StoreError."""
    return _arrays(store, _key(run, epoch, "npz"))


def put_test(store: Store, run: str, epoch: int, losses: np.ndarray, probabilities: np.ndarray) -> None:
    """Stores the results on the test set, evaluated with the weights of `epoch`. Raises StoreError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, epoch=np.array(epoch), losses=losses, probabilities=probabilities)
    store.put(f"runs/{run}/test.npz", buffer.getvalue())


def get_test(store: Store, run: str) -> dict[str, np.ndarray]:
    """What `put_test` stored: `epoch` [], `losses`, `probabilities`; empty if it is missing or damaged. Raises StoreError."""
    return _arrays(store, f"runs/{run}/test.npz")


def _arrays(store: Store, key: str) -> dict[str, np.ndarray]:
    try:
        content = store.get(key)
    except NotFound:
        return {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def get_history(store: Store, run: str) -> list[EpochReport]:
    """The reports of all stored epochs, in order. Raises ResultsError and StoreError."""
    keys = [key for key in list_keys(store, f"runs/{run}/epochs/") if key.endswith(".json")]
    reports = []
    for key, body in store.get_many(keys):
        if isinstance(body, Exception):
            raise body
        try:
            reports.append(report_from(json.loads(body)))
        except (ValueError, TypeError) as error:
            raise ResultsError(f"{store.url}/{key} is damaged ({error}). Fix: delete it to leave that epoch out.") from None
        assert key == _key(run, reports[-1].epoch, "json")
    return reports


def replace_history(store: Store, run: str, history: Sequence[EpochReport]) -> None:
    """Makes the stored epochs equal to `history`: stores missing reports and deletes later epochs. Raises StoreError."""
    stored = set(list_keys(store, f"runs/{run}/epochs/"))
    for report in history:
        if _key(run, report.epoch, "json") not in stored:
            _put_report(store, run, report)
    numbers = {key: key.rpartition("/")[2].partition(".")[0] for key in sorted(stored)}
    last = history[-1].epoch if history else 0
    store.delete(key for key, number in numbers.items() if number.isdecimal() and int(number) > last)


def put_findings(store: Store, run: str, findings: Findings) -> None:
    """Stores what the diagnosis has found so far. Raises StoreError."""
    store.put(f"runs/{run}/spikes.json", json.dumps(findings.as_dict()).encode(), content_type="application/json")


def get_findings(store: Store, run: str) -> Findings | None:
    """What `put_findings` stored; None if nothing ever was. Raises ResultsError and StoreError."""
    try:
        text = store.get(f"runs/{run}/spikes.json")
    except NotFound:
        return None
    try:
        return findings_from(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ResultsError(
            f"{store.url}/runs/{run}/spikes.json is damaged ({error}). Fix: delete it to leave the spikes out."
        ) from None


def report_from(values: Mapping[str, Any]) -> EpochReport:
    """Builds an EpochReport from its JSON. Fields that an older version did not store keep their defaults."""
    known = {name: values[name] for name in EpochReport.__dataclass_fields__ if name in values}
    return EpochReport(**known)


def _key(run: str, epoch: int, suffix: str) -> str:
    return f"runs/{run}/epochs/{epoch:04d}.{suffix}"
