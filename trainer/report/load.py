"""Reads what a run stored into a RunResult."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer import UserError, config
from trainer.data.dataset import Pack, Split
from trainer.data.order import epoch_generator, epoch_order
from trainer.data.pack import load_pack
from trainer.data.shards import PackedRows, open_rows
from trainer.data.split import split_rows
from trainer.epoch import best
from trainer.report.result import EvaluatedTest, RunResult, Trained
from trainer.storage import Store, results


def open_images(storage: Store, name: str, facts: Mapping[str, Any], pipeline: config.Pipeline) -> tuple[Pack, PackedRows, Split]:
    """The images of run `name`, whose run.json is `facts`, and how they are split. Raises UserError if they are no longer stored,
    StoreError."""
    data = config.parse({"data": facts["config"].get("data", {})}, f"run {name}").data
    packed = load_pack(storage, facts["manifest"], (*data.image_size, 3))
    if packed is None:
        raise UserError(
            f"The packed images of run {name} are no longer in {storage.url}/shards. "
            "Fix: start a run on the same data, which packs them again."
        )
    rows = open_rows(packed, storage, Path(pipeline.cache_dir), pipeline.cache_max_bytes)
    return packed, rows, split_rows(rows, packed.classes, data)


def load(name: str, storage: Store, packed: Pack, rows: PackedRows, sides: Split) -> RunResult:
    """Reads the results of run `name`, whose images are `rows`, split into `sides`.

    The result shows the epoch of the exported model; without one, the best epoch if `training.keep` is "best", else the last.
    Raises UserError if no epoch has finished, StoreError if storage fails and ResultsError if a stored record is damaged.
    """
    facts = results.get_run(storage, name)
    assert facts is not None, "a run stores its facts before it trains"
    history = results.get_history(storage, name)
    if not history:
        raise UserError(f"Run {name} has not finished an epoch: nothing to report. Fix: wait for its first epoch.")
    count, classes = len(sides.validation), len(packed.classes)
    arrays = [results.of_images(results.get_arrays(storage, name, report.epoch), count, classes) for report in history]
    findings = results.get_findings(storage, name)
    exported = next((report for report in history if report.epoch == facts.get("epoch")), None)
    kept = best(history) if facts["config"]["training"]["keep"] == "best" else None
    chosen = history.index(exported or kept or history[-1])
    validation = np.array(sides.validation)
    missing = np.full(count, np.nan, np.float32)
    return RunResult(
        run=name,
        outcome=facts.get("outcome", "in progress"),
        config=facts["config"],
        environment=facts["environment"],
        network=facts.get("network", {}),
        classes=packed.classes,
        data={
            **sides.facts,
            "quarantined": [{"key": image.key, "reason": image.reason} for image in packed.quarantined],
            "images": packed.images,
            "manifest": packed.digest,
        },
        history=history,
        epoch=history[chosen].epoch,
        keys=[rows.keys[row] for row in validation],
        groups=[rows.groups[row] for row in validation],
        labels=rows.labels[validation],
        probabilities=arrays[chosen].get("probabilities", np.full((count, classes), np.nan, np.float32)),
        losses=np.array([epoch.get("losses", missing) for epoch in arrays]),
        findings=findings,
        thumbnail=lambda index: rows.images.take(validation[index : index + 1])[0],
        experiments=results.get_experiments(storage, name),
        roll_backs=results.get_roll_backs(storage, name),
        test=_test(name, storage, rows, sides, classes, history[chosen].epoch),
        batch=lambda epoch, number: _batch(facts["config"], rows, sides, epoch, number),
    )


def _test(name: str, storage: Store, rows: PackedRows, sides: Split, classes: int, epoch: int) -> EvaluatedTest | None:
    """The results on the test set if they belong to `epoch`: a run that was resumed for more epochs has old ones until it ends."""
    arrays, test = results.get_test(storage, name) if sides.test else {}, np.array(sides.test, int)
    found = results.of_images(arrays, len(test), classes)
    if len(found) < 2 or not np.array_equal(arrays.get("epoch", 0), epoch):
        return None
    return EvaluatedTest([rows.groups[row] for row in test], rows.labels[test], found["probabilities"], found["losses"])


def _batch(settings: Mapping[str, Any], rows: PackedRows, sides: Split, epoch: int, number: int) -> list[Trained]:
    """The images of batch `number` (from 0) of an epoch, before augmentation."""
    generator = epoch_generator(settings["run"]["seed"], epoch)
    order = epoch_order(generator, len(sides.training), settings["training"]["batch_size"])
    chosen = np.array(sides.training)[order[number]]
    images = rows.images.take(chosen)
    return [Trained(rows.keys[row], int(rows.labels[row]), image) for row, image in zip(chosen, images, strict=True)]
