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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from spikewise.findings import Findings
from spikewise.proof import Experiment
from trainer import UserError, config
from trainer.epoch import EpochReport
from trainer.formatting import plain
from trainer.storage import NotFound, Store, StoreError
from trainer.storage.parsing import Damaged, json_value, parsed
from trainer.storage.store import list_keys

LARGEST = 2**31
"""Bytes of the arrays in one file, unpacked. A file that claims more is damaged."""

FACTS: dict[str, type] = {"manifest": str, "environment": dict, "outcome": str, "epoch": int, "network": dict, "module": dict}
FIELDS: dict[str, dict[str, type]] = {
    "network": {"name": str, "parameters": int, "trainable": int},
    "module": {"name": str, "digest": str},
}
"""What is read of run.json, and of its objects, with the types."""


class ResultsError(UserError):
    """A stored object of a run cannot be read; the one-line message names it."""


def put_run(store: Store, run: str, facts: Mapping[str, Any]) -> None:
    """Stores the description of the run. Raises StoreError."""
    store.put(f"runs/{run}/run.json", json.dumps(facts, indent=1).encode(), content_type="application/json")


def get_run(store: Store, run: str) -> dict[str, Any] | None:
    """What `put_run` stored, with config as `config.stored` returns it; None for a run that never started. Raises ResultsError and
    StoreError."""
    key = f"runs/{run}/run.json"

    try:
        return store.read_again(lambda: parsed(store.get(key), _checked_facts), NotFound, Damaged)
    except NotFound:
        return None
    except Damaged as error:
        raise ResultsError(
            f"{store.url}/{key} is damaged ({plain(error)}). "
            "Fix: delete it to resume from the run's checkpoints, or choose another run.name."
        ) from None


def _checked_facts(facts: dict[str, Any]) -> dict[str, Any]:
    if missing := {"config", "manifest", "environment"} - set(facts):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    for name, kind in FACTS.items():
        if name in facts and not isinstance(facts[name], kind):
            raise ValueError(f"{name} is something else")
    for name, fields in FIELDS.items():
        if facts.get(name) and not all(isinstance(facts[name].get(field), kind) for field, kind in fields.items()):
            raise ValueError(f"{name} lacks one of {', '.join(fields)}, or it is something else")
    return facts | {"config": config.stored(facts["config"])}


def count_start(store: Store, run: str) -> int:
    """Counts a start of the run's workers. Returns the number of earlier starts. Raises StoreError.

    Not part of a checkpoint, because a worker that dies before the next checkpoint has to count too.
    """
    key = f"runs/{run}/starts"
    try:
        before = store.read_again(lambda: _number(store.get(key)), NotFound, Damaged)
    except (NotFound, Damaged):
        before = 0
    store.put(key, str(before + 1).encode())
    return before


def _number(content: bytes) -> int:
    if not (content.isdigit() and len(content) < 10):
        raise Damaged("no count")
    return int(content)


def put_start(store: Store, run: str, number: int, facts: Mapping[str, Any]) -> None:
    """Stores what a replay must know about start `number` of the workers: `settings` and `machine`. Raises StoreError."""
    store.put(_start_key(run, number), json.dumps(facts, indent=1).encode(), content_type="application/json")


def get_start(store: Store, run: str, number: int) -> dict[str, Any] | None:
    """What `put_start` stored; None if nothing readable is. Raises StoreError."""
    try:
        return store.read_again(lambda: parsed(store.get(_start_key(run, number)), _checked_start), NotFound, Damaged)
    except (NotFound, Damaged):
        return None


def _start_key(run: str, number: int) -> str:
    return f"runs/{run}/started/{number:04d}.json"


def _checked_start(facts: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(facts["settings"], dict) or not isinstance(facts["machine"], dict):
        raise ValueError("settings or machine is something else")
    int(facts["machine"].get("threads of a worker", 0))
    return {"settings": facts["settings"], "machine": facts["machine"]}


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
    for key in list_keys(store, f"runs/{run}/replays/"):
        if key.endswith("/proof.json"):
            with suppress(NotFound, Damaged):
                found.append(store.read_again(partial(_read_experiment, store, key), NotFound, Damaged))
    return found


def _read_experiment(store: Store, key: str) -> Experiment:
    return parsed(store.get(key), config.builder(Experiment))


def put_roll_backs(store: Store, run: str, roll_backs: Sequence[Mapping[str, Any]]) -> None:
    """Stores the divergences from which the run went back. Raises StoreError."""
    body = json.dumps(list(roll_backs), indent=1).encode()
    store.put(f"runs/{run}/roll_backs.json", body, content_type="application/json")


def get_roll_backs(store: Store, run: str) -> list[dict[str, Any]]:
    """The divergences from which the run went back, the oldest first. Raises ResultsError and StoreError."""
    key = f"runs/{run}/roll_backs.json"
    try:
        return store.read_again(lambda: _roll_backs_from(store.get(key)), NotFound, Damaged)
    except NotFound:
        return []
    except Damaged as error:
        raise ResultsError(
            f"{store.url}/{key} is damaged ({plain(error)}). Fix: delete it to forget where the run went back."
        ) from None


def _roll_backs_from(content: bytes) -> list[dict[str, Any]]:
    found = json_value(content)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Damaged("it is not a list of JSON objects")
    for each in found:
        if missing := {"epoch", "found", "what", "settings", "before", "to_epoch", "to_step"} - set(each):
            raise Damaged(f"it lacks {', '.join(sorted(missing))}")
        if not isinstance(each["settings"], str) or not isinstance(each["before"], dict):
            raise Damaged("settings or before is something else")
        if not all(one.partition("=")[0] in each["before"] for one in each["settings"].split()):
            raise Damaged("before lacks a key of settings")
    return found


def put_epoch(store: Store, run: str, report: EpochReport, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores one epoch, its report last. Raises StoreError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    store.put(_key(run, report.epoch, "npz"), buffer.getvalue())
    _put_report(store, run, report)


def _put_report(store: Store, run: str, report: EpochReport) -> None:
    store.put(_key(run, report.epoch, "json"), _report_json(report), content_type="application/json")


def _report_json(report: EpochReport) -> bytes:
    return json.dumps(report.as_dict()).encode()


def get_arrays(store: Store, run: str, epoch: int) -> dict[str, np.ndarray]:
    """The arrays of one epoch; empty if they are missing or damaged. Raises StoreError."""
    return _arrays(store, _key(run, epoch, "npz"))


def of_images(arrays: Mapping[str, np.ndarray], images: int, classes: int = 0) -> dict[str, np.ndarray]:
    """`losses` [images] and `probabilities` [images, classes] of `arrays`, as far as they are stored and have that shape; arrays of
    another shape are damaged, or belong to other images."""
    shapes = {"losses": (images,), "probabilities": (images, classes)}
    found = {name: arrays[name] for name in shapes if name in arrays}
    return {name: array for name, array in found.items() if array.shape == shapes[name] and array.dtype.kind == "f"}


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
        return store.read_again(lambda: _read_arrays(store.get(key)), NotFound, Damaged)
    except (NotFound, Damaged):
        return {}


def _read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file, all of numbers. Raises Damaged for everything else, before it takes much memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > LARGEST:
                raise ValueError(f"its arrays have {size} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = dict(arrays)
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged files
        raise Damaged(f"{type(error).__name__}: {error}") from None
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in found.values()):
        raise Damaged("it holds something else than numbers")
    return found


def get_history(store: Store, run: str) -> list[EpochReport]:
    """The reports of all stored epochs, in order. Raises ResultsError and StoreError."""
    keys = [key for key in list_keys(store, f"runs/{run}/epochs/") if key.endswith(".json")]
    reports = []
    for key, body in store.get_many(keys):
        if isinstance(body, StoreError) and not isinstance(body, NotFound):
            raise body
        try:
            reports.append(_first_or_again(store, run, key, body))
        except (Damaged, NotFound) as error:
            raise ResultsError(f"{store.url}/{key} is damaged ({plain(error)}). Fix: delete it to leave that epoch out.") from None
    return reports


def _first_or_again(store: Store, run: str, key: str, body: bytes | StoreError) -> EpochReport:
    """The report in `body`; if that is missing or damaged, in what further reads find. Raises Damaged and StoreError."""
    answers = iter([body])

    def checked(values: dict[str, Any]) -> EpochReport:
        report = report_from(values)
        if key != _key(run, report.epoch, "json"):
            raise ValueError(f"it is the report of epoch {report.epoch}")
        return report

    def read() -> EpochReport:
        content = next(answers, None)
        if isinstance(content, StoreError):
            raise content
        return parsed(store.get(key) if content is None else content, checked)

    return store.read_again(read, Damaged, NotFound)


def replace_history(store: Store, run: str, history: Sequence[EpochReport]) -> None:
    """Makes the stored epochs equal to `history`: stores reports that are missing or differ, since an earlier owner of the run may
    have written them, and deletes later epochs. Raises StoreError."""
    stored = set(list_keys(store, f"runs/{run}/epochs/"))
    wanted = {_key(run, report.epoch, "json"): report for report in history}
    there = dict(store.get_many(key for key in wanted if key in stored))
    for key, report in wanted.items():
        if there.get(key) != _report_json(report):
            _put_report(store, run, report)
    numbers = {key: key.rpartition("/")[2].partition(".")[0] for key in sorted(stored)}
    last = history[-1].epoch if history else 0
    store.delete(key for key, number in numbers.items() if number.isdecimal() and int(number) > last)


def put_findings(store: Store, run: str, findings: Findings) -> None:
    """Stores what the diagnosis has found so far. Raises StoreError."""
    store.put(f"runs/{run}/spikes.json", json.dumps(findings.as_dict()).encode(), content_type="application/json")


def get_findings(store: Store, run: str) -> Findings | None:
    """What `put_findings` stored; None if nothing ever was. Raises ResultsError and StoreError."""
    key = f"runs/{run}/spikes.json"
    try:
        return store.read_again(lambda: parsed(store.get(key), _findings_from), NotFound, Damaged)
    except NotFound:
        return None
    except Damaged as error:
        raise ResultsError(f"{store.url}/{key} is damaged ({plain(error)}). Fix: delete it to leave the spikes out.") from None


def _findings_from(values: dict[str, Any]) -> Findings:
    return config.builder(Findings)({**values, "diagnoses": values["spikes"]})


def report_from(values: Mapping[str, Any]) -> EpochReport:
    """Builds an EpochReport from its JSON. Fields that an older version did not store keep their defaults. Raises ValueError for a
    value of another type, TypeError for a missing one."""
    known = {name: values[name] for name in EpochReport.__dataclass_fields__ if name in values}
    for name, value in known.items():
        whole = EpochReport.__dataclass_fields__[name].type is int
        wrong = isinstance(value, bool) or not isinstance(value, int if whole else int | float) or (whole and value < 0)
        if wrong or (isinstance(value, int) and abs(value) >= 2**53):
            raise ValueError(f"{name} = {value!r:.40} is not a number that it could have")
    return EpochReport(**known)


def _key(run: str, epoch: int, suffix: str) -> str:
    return f"runs/{run}/epochs/{epoch:04d}.{suffix}"
