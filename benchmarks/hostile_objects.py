"""Mutates every object that a run reads from its bucket, and reads it the way the run does.

Labels files and weights to start from are among them. What it reads of run.json, epochs, test results, findings, proofs, roll-backs
and checkpoints it also uses the way the run does: to resume, to report, to show its status.

Allowed are a sound result, and an error of one line that names the object. Anything else is a failure: another exception, or a file
written outside the cache. Mutations: flipped bits, cut and spliced bytes, other web pages, and for JSON other values, types and
paths at any place, and for arrays other shapes, types and names.

    python -m benchmarks.hostile_objects --rounds 100000
"""

import argparse
import hashlib
import io
import json
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import cluster
from spikewise.diagnose import Diagnostician
from spikewise.findings import Findings
from spikewise.proof import Experiment, Proof
from spikewise.records import Cause, Diagnosis, Spike
from trainer import UserError, config
from trainer.data.dataset import Pack
from trainer.data.labels import read_labels
from trainer.data.pack import load_pack
from trainer.data.pack_file import folder_name
from trainer.data.shards import ShardWriter, open_rows
from trainer.epoch import EpochReport
from trainer.model.load import load_weights
from trainer.model.module import Module
from trainer.report.load import load, open_images
from trainer.report.write import write
from trainer.run import divergence
from trainer.run.preparation import check_resumable, complete
from trainer.run.resume import Position, changes, resume, to_checkpoint
from trainer.storage import results
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease
from trainer.storage.parsing import sealed, unsealed
from trainer.storage.results import report_from

SHAPE, DIGEST, CLASSES = (8, 10, 3), "0123456789abcdef" * 4, ("authentic", "fake")
RUN = "runs/a-run/"
SETTINGS = config.parse(
    {
        "data": {"source": "images", "class_pattern": "(?P<class>.)", "image_size": SHAPE[:2], "min_validation": 1},
        "training": {"batch_size": 4, "epochs": 2},
    }
)
MODULE = Module("nets", {"nets.py": ""})
SIDES = {"training": 6, "validation": 4, "test": 4}
"""Images on each side of the split."""
WEIGHTS = ("start.keras", "start.weights.h5")
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, float("nan"), "", "x", [], {}, [[]], {"key": 1}),
    *(
        "../../../outside",
        "/outside",
        "a/../../outside",
        "shards/x/../../outside",
        "\x1b[31m",
        "a\nb",
        "\0",
        "0" * 64,
        "x" * 10_000,
    ),
]
"""Values to put into JSON."""


class Weights:
    """What `resume` needs of a learner: building one takes TensorFlow seconds."""

    def state(self) -> dict[str, np.ndarray]:
        return {"w": np.ones(4, np.float32)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Accepts everything: tests of the learner cover arrays that do not fit."""


@dataclass
class Bucket:
    """A sound bucket beside a cache, and a file that no one may touch."""

    root: Path

    def __post_init__(self) -> None:
        self.store = FolderStore(self.root / "bucket")
        self.cache = self.root / "job/cache"
        self.outside = self.root / "precious"
        self.outside.write_bytes(b"not the job's")
        self.network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
        self._fill()
        self.sound = {entry.key: self.store.get(entry.key) for entry in self.store.list()}

    def _fill(self) -> None:
        store = self.store
        sides = [side for side, count in SIDES.items() for _ in range(count)]
        count = len(sides)
        columns = {
            "image": pa.array([bytes([i]) * 240 for i in range(count)], pa.binary(240)),
            "label": pa.array([i % 2 for i in range(count)], pa.int32()),
            "key": [f"Au/{i}.jpg" for i in range(count)],
            "group": [f"g{i}" for i in range(count)],
            "content": [f"{i:032x}" for i in range(count)],
            "side": sides,
        }
        with ShardWriter(store, f"shards/{folder_name(DIGEST, SHAPE)}", SHAPE, CLASSES) as writer:
            writer.add(pa.table(columns))
            shards = tuple(writer.finish())
        made = Pack(DIGEST, CLASSES, SHAPE, shards, count)
        store.put(f"shards/{folder_name(DIGEST, SHAPE)}/pack.json", json.dumps(asdict(made)).encode())
        network = {"name": "nets:build", "parameters": 4, "trainable": 4}
        facts = {"config": SETTINGS.as_dict(), "manifest": DIGEST, "environment": {"python": "3"}, "network": network}
        results.put_run(store, "a-run", facts | {"module": MODULE.facts, "outcome": "completed", "epoch": 2})
        results.count_start(store, "a-run")
        for epoch in (1, 2):
            losses = dict.fromkeys([name for name, each in EpochReport.__dataclass_fields__.items() if each.type is float], 0.5)
            report = report_from({"epoch": epoch, "step": 10 * epoch, **losses})
            results.put_epoch(
                store, "a-run", report, {"losses": np.ones(4, np.float32), "probabilities": np.ones((4, 2), np.float32)}
            )
        spike = Spike(2, 1.0, 0.6, 0.05, 0.2, 0.4, 0.3, 0.5, 0.05, 80)
        found = Diagnosis(spike, (Cause("unexplained", 0.0, 0.0, 1.0, "seen.", "do."),))
        results.put_findings(store, "a-run", Findings((found,)))
        proof = Proof("optimizer.clip_norm=1", "proven", (0.6,), 0.4, 0.3, 0.5, 1.0, 0.0)
        results.put_start(store, "a-run", 0, {"settings": {}, "machine": {}})
        results.put_experiment(store, "a-run", Experiment(2, 1.0, 1, (2,), (1.0,), None, (proof,)))
        back = {"epoch": 2, "found": 2, "what": "it", "settings": "", "before": {}, "to_epoch": 1, "to_step": 10}
        results.put_roll_backs(store, "a-run", [back])
        results.put_test(store, "a-run", 2, np.ones(4, np.float32), np.ones((4, 2), np.float32))
        checkpoints = Checkpoints(store, "a-run", 2, lease=1)
        learner: Any = Weights()
        for step in (10, 20):
            checkpoints.save(step, *to_checkpoint(learner, Position(), self._diagnostician(), SETTINGS.as_dict(), 0.5))
        checkpoints.close()
        labels = {"key": [f"{i}.jpg" for i in range(4)], "label": ["authentic", "fake"] * 2, "split": ["training"] * 4}
        store.put("labels.csv", "\n".join(",".join(row) for row in (labels, *zip(*labels.values(), strict=True))).encode())
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(labels), sink)
        store.put("labels.parquet", sink.getvalue().to_pybytes())
        for name in WEIGHTS:
            saved = self.root / name
            (self.network.save if name.endswith(".keras") else self.network.save_weights)(saved)
            store.put(name, saved.read_bytes())
            saved.unlink()
        with Lease(store, "a-run", 0.01):
            pass

    def read(self, key: str) -> None:
        """Reads the object as a run does. Raises UserError for a damaged one."""
        self._reader(key)()

    def _reader(self, key: str) -> Callable[[], object]:
        store = self.store
        if key.startswith("shards/"):
            return self._open
        if "/checkpoints/" in key:
            return self._resume
        if "/lease-" in key:
            return self._take
        if key.startswith("labels."):
            return lambda: read_labels(store, key)
        if key in WEIGHTS:
            return lambda: self._load(key)
        return {
            "starts": lambda: results.count_start(store, "a-run"),
            "0000.json": lambda: results.get_start(store, "a-run", 0),
        }.get(key.rpartition("/")[2], self._use_records)

    def _open(self) -> None:
        if found := load_pack(self.store, DIGEST, SHAPE):
            rows = open_rows(found, self.store, self.cache, 10**9)
            rows.images.take(np.arange(len(rows.images)))
            assert set(rows.labels.tolist()) <= set(range(len(found.classes)))
            assert all(isinstance(text, str) for text in (*rows.keys, *rows.groups, *rows.contents, *rows.sides))

    def _use_records(self) -> None:
        """Everything that reads records of the run. Raises the last UserError, since one of them may hide the rest."""
        refused = None
        for use in (self._continue, self._roll_back, self._show, self._report):
            try:
                use()
            except UserError as error:
                refused = error
        if refused:
            raise refused

    def _continue(self) -> None:
        facts = results.get_run(self.store, "a-run")
        check_resumable(facts, SETTINGS, MODULE, "a-run")
        complete(facts, self.store, SETTINGS, "a-run")

    def _roll_back(self) -> None:
        divergence.with_roll_backs(SETTINGS, results.get_roll_backs(self.store, "a-run"))

    def _show(self) -> None:
        cluster.stored("a-run", self.store.url, config.S3())

    def _report(self) -> None:
        facts = results.get_run(self.store, "a-run")
        assert facts is not None
        pipeline = config.Pipeline(cache_dir=str(self.cache))
        images = open_images(self.store, "a-run", facts, pipeline)
        with mock.patch("trainer.report.write.loss_png", return_value=b""):  # half of the time, and of the same document
            write(load("a-run", self.store, *images), self.cache / "report")

    def _diagnostician(self) -> Diagnostician:
        return Diagnostician(None, batch_size=4)  # type: ignore[arg-type] # asked only at the end of an epoch

    def _resume(self) -> None:
        checkpoints = Checkpoints(self.store, "a-run", 2)
        checkpoints.best()
        newest = checkpoints.latest()
        learner: Any = Weights()
        step = newest and newest.step
        resumed = resume(checkpoints, learner, self._diagnostician(), chief=True, broadcast=lambda step: step, step=step)
        if resumed:
            changes(resumed, SETTINGS, workers=1)

    def _load(self, key: str) -> None:
        self.store.download(key, self.cache / key)
        load_weights(self.network, self.cache / key, SETTINGS.model)

    def _take(self) -> None:
        with Lease(self.store, "a-run", 0.01):
            pass

    def is_safe(self) -> bool:
        """Whether nothing was written outside of the bucket and the cache."""
        places = {path.relative_to(self.root).parts[:2] for path in self.root.rglob("*") if path.is_file()}
        allowed = all(place[0] == "bucket" or place in (("precious",), ("job", "cache")) for place in places)
        return allowed and self.outside.read_bytes() == b"not the job's"


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One mutation of the content of an object."""
    kind = chance.randrange(8)
    if kind < 4 and content.startswith(b"PK") and b".npy" in content:
        return _other_arrays(content, chance)
    if kind < 4:
        try:
            document = json.loads(content)
        except ValueError:
            kind = 5
        else:
            return json.dumps(_changed(document, chance)).encode()
    at = chance.randrange(len(content) + 1)
    if kind == 4:
        return chance.choice([b"", b"<html>busy</html>", b"null", b"[" * 100_000, b"{}", b"\xff\xfe", b"PK\x03\x04"])
    if kind == 5 and content:
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 3, 20])):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    if kind == 6:
        return content[:at]
    return content[:at] + chance.randbytes(chance.choice([1, 8, 200])) + content[chance.randrange(len(content) + 1) :]


def _changed(value: Any, chance: random.Random) -> Any:
    """JSON with one value changed, added or removed at some place."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {name: kept for name, kept in value.items() if name != key}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance), *value[at + chance.choice([0, 1, 1]) :]]
    return chance.choice(HOSTILE)


def _other_arrays(content: bytes, chance: random.Random) -> bytes:
    """A sound npz file with one array changed or missing."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = chance.choice(list(arrays))
    array = arrays.pop(name)
    changed = [
        array[..., None],
        array.ravel()[:1],
        np.tile(array, 2),
        array.astype(bool),
        array.astype("U"),
        array * np.nan,
        -array,
    ]
    if chance.random() < 0.8:
        arrays[name] = chance.choice([*changed, np.array(5), np.zeros((0, 2), np.float32)])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def fuzz(rounds: int, seed: int = 0) -> Counter[str]:
    """Raises AssertionError, with the object and the seed of the round, for what is not allowed. Returns what was counted."""
    counts: Counter[str] = Counter()
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bucket = Bucket(Path(folder))
            keys = sorted(bucket.sound)
            for number in range(rounds):
                _round(bucket, keys[number % len(keys)], random.Random(f"{seed}-{number}"), f"{seed}-{number}", counts)
            assert bucket.is_safe(), "a file was written outside of the cache"
    finally:
        logging.disable(logging.NOTSET)
    return counts


def _round(bucket: Bucket, key: str, chance: random.Random, name: str, counts: Counter[str]) -> None:
    content = mutated(bucket.sound[key], chance)
    bucket.store.put(key, content)
    kind = key.rpartition("/")[2].partition("-")[0]
    pack_json = f"shards/{folder_name(DIGEST, SHAPE)}/pack.json"
    committed = [key]
    if chance.random() < 0.7:  # an attacker who can write an object can also write its digest
        digest = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if key.endswith(".arrow"):
            document = json.loads(bucket.sound[pack_json])
            document["shards"][0] |= digest
            committed.append(pack_json)
            bucket.store.put(pack_json, json.dumps(document).encode())
        if key.endswith("meta.json"):
            commit = key.replace("meta.json", "commit.json")
            document = unsealed(bucket.sound[commit])
            document["files"]["meta.json"] = digest
            committed.append(commit)
            bucket.store.put(commit, sealed(document))
    try:
        bucket.read(key)
        counts[f"{kind}: read"] += 1
    except UserError as error:
        if not all(line.isprintable() for line in str(error).split("\n")):  # a configuration's has a line for each problem
            raise AssertionError(f"round {name}, {key}: the message {str(error)!r:.300} is not one plain line") from error
        counts[f"{kind}: refused"] += 1
    except Exception as error:
        raise AssertionError(f"round {name}, {key}: {error!r:.300} for {content[:200]!r}") from error
    for restored in committed:
        bucket.store.put(restored, bucket.sound[restored])
    for lease in [entry.key for entry in bucket.store.list(f"{RUN}lease-") if entry.key not in bucket.sound]:
        bucket.store.delete([lease])
        bucket.store.put(key, bucket.sound[key])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile_objects", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments, began = parser.parse_args(), time.monotonic()
    counts = fuzz(arguments.rounds, arguments.seed)
    print(f"{sum(counts.values())} rounds in {time.monotonic() - began:.0f} s, no failure: {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
