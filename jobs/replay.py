"""Trains a spike again, with nothing changed and with its remedies: `python -m jobs.replay --run first --storage URL --spike 46`.

`--epoch 46` diagnoses any epoch instead, whether it raised an alarm or not. docs/diagnosis.md says what a replay proves.

Exit codes: 0 the replay was made, 1 nothing can be proven here, 2 an error that the user can correct, 143 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.command_line import add_overrides, find_module, print_warnings, report_error
from spikewise import describe
from spikewise.records import Diagnosis
from trainer import UserError, config
from trainer.model import module
from trainer.run.console import Console, RunLog
from trainer.storage import Store, open_store, results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.replay", description="Trains epochs of a run again, to prove the remedy of a spike."
    )
    parser.add_argument("--run", required=True, metavar="NAME", help="name of the run")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--config", metavar="FILE", help="a configuration with the run's [s3] section and run.storage")
    place.add_argument("--storage", metavar="URL", help="run.storage of the run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--spike", type=int, metavar="EPOCH", help="the spike to train again")
    which.add_argument("--epoch", type=int, metavar="EPOCH", help="any epoch, to train again and to diagnose")
    add_overrides(
        parser,
        "what to change, all together (default: the remedies of the diagnosis, one after the other); keys of [launch], [pipeline] "
        "and [s3], run.storage and run.output say where to train: one value",
    )
    arguments = parser.parse_args(argv)
    print_warnings()
    try:
        return _replay(arguments)
    except (UserError, OSError) as error:
        report_error(error)
        return 2


def _replay(arguments: argparse.Namespace) -> int:
    from trainer.report.load import load, open_images
    from trainer.report.write import write
    from trainer.run import ray_cluster, replay
    from trainer.run.preparation import check_output
    from trainer.run.proving import Interrupted, Prover
    from trainer.run.signals import stop_signals
    from trainer.storage.lease import Lease, WaitStopped

    run, epoch = arguments.run, arguments.epoch if arguments.spike is None else arguments.spike
    where, changes = replay.elsewhere(arguments.set)
    storage, place = _storage(arguments, where)
    facts = results.get_run(storage, run)
    if facts is None:
        raise UserError(f"No run {run} in {storage.url}. Fix: correct --run or --{'config' if arguments.config else 'storage'}.")
    diagnosis = None if arguments.spike is None else _spike(storage, run, epoch)
    settings = config.changed(config.parse(facts["config"], f"run {run}"), [*place, *where])
    found = find_module(settings, arguments.config or ".")
    module.check_unchanged(found, facts.get("module"), run)
    remedies = [changes] if changes else replay.remedies(diagnosis) if diagnosis else []
    check_output(settings.run.output)
    with Console() as console:
        log = RunLog(console, run, settings.training.epochs)
        log.phase("reading the packed images")
        pack, rows, split = open_images(storage, run, facts, settings.pipeline)
        groups, output = [rows.groups[row] for row in split.validation], Path(settings.run.output)
        with stop_signals() as stop:
            lease = Lease(storage, f"{run}/replays/{epoch:04d}", settings.checkpoint.lease_seconds, stop)
            prover = Prover(
                run, storage, pack, split, groups, found, output / ".ray", lease, log, where=[*place, *where], stop=stop
            )
            plan = prover.plan(epoch, diagnosis.spike if diagnosis else None)
            if changes:
                replay.treated(plan.settings, remedies[0])  # refuses it before anything is trained
            begin = f"the checkpoint of step {plan.step}" if plan.step else "the initial weights"
            log.say(f"run {run}: training {plan.trained} again from {begin}")
            log.phase("waiting for the lease")
            try:
                with lease:
                    log.phase("starting Ray")
                    with ray_cluster.connect(plan.settings.launch):
                        experiment, diagnosis = prover.experiment(plan, diagnosis, remedies, asked=arguments.spike is None)
            except (WaitStopped, Interrupted):
                return 143
        log.phase("writing the report")
        if arguments.spike is None:
            log.say(describe.requested(diagnosis, epoch))
        elif not remedies and experiment.problem is None:
            log.say("No setting remedies this cause, so only the control was trained. Fix: name what to change with --set.")
        write(load(run, storage, pack, rows, split), output / run)
        for name in ("report.html", "report.json", "loss.png"):
            storage.upload(f"runs/{run}/{name}", output / run / name)
        log.report_written(output / run / "report.html")
    return 0 if experiment.problem is None else 1


def _storage(arguments: argparse.Namespace, where: Sequence[str]) -> tuple[Store, list[str]]:
    """The store of the run, and the overrides that lead the workers to it. `where`: overrides that say where to train.

    Raises ConfigError, StoreError.
    """
    overrides = [one for one in where if one.partition(".")[0].strip() in ("run", "s3")]
    if arguments.config:
        settings = config.load(arguments.config, overrides)
        keys: dict[str, Any] = {key: value for key, value in settings.s3.model_dump().items() if value is not None}
    else:
        # Most S3 servers other than AWS need the bucket's name in the path. A configuration needs images, a store does not.
        s3 = {"path_style": "AWS_ENDPOINT_URL" in os.environ}
        images = {"source": ".", "class_pattern": "(?P<class>.)"}
        values = {"data": images, "run": {"storage": arguments.storage}, "s3": s3}
        settings, keys = config.changed(config.parse(values, "--storage"), overrides), {}
    return open_store(settings.run.storage, settings.s3), [
        f"run.storage={json.dumps(settings.run.storage)}",
        *(f"s3.{key}={json.dumps(value)}" for key, value in keys.items()),
    ]


def _spike(storage: Store, run: str, epoch: int) -> Diagnosis:
    """The run's spike in that epoch. Raises UserError if there is none, StoreError, ResultsError."""
    findings = results.get_findings(storage, run)
    known = {diagnosis.spike.epoch: diagnosis for diagnosis in (findings.diagnoses if findings else ())}
    if epoch not in known:
        epochs, fix = (", ".join(map(str, known)), "name one, or use") if known else ("none", "use")
        raise UserError(f"Run {run} has no spike in epoch {epoch} (spikes: {epochs}). Fix: {fix} --epoch {epoch}.")
    return known[epoch]


if __name__ == "__main__":
    sys.exit(main())
