"""Measures the diagnosis of natural spikes: trains the question's network, trains the epochs of each spike again with
one thing changed, and compares the verdict with what that did. Prints JSON.

    python -m benchmarks.natural_spikes              the reporting set: about an hour on two quiet cores
    python -m benchmarks.natural_spikes --quick      one short run: a few minutes
    python -m benchmarks.natural_spikes --set tune   the set on which rules were tuned: other seeds
    python -m benchmarks.natural_spikes --rules      judges the finished runs again, by changed rules: seconds
    python -m benchmarks.natural_spikes --spikes     adds what is known about each spike

Each finished run is stored under --cache and is not repeated, so an interrupted benchmark resumes. After a change to the detection
or the probes, use a new --cache folder; after a change to the rules, --rules is enough, but a remedy that was not tried counts as
not proven.
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.natural_spikes.tasks import PLANS, perform, tasks
from benchmarks.support.resumable import circumstances, finished, perform_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("report", "tune"), default="report", help="the set of runs (default: report)")
    parser.add_argument("--quick", action="store_true", help="one short run")
    parser.add_argument("--rules", action="store_true", help="train nothing: judge the stored runs by the present rules")
    parser.add_argument("--spikes", action="store_true", help="print a summary of each spike too")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="worker processes (default: one per core)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/natural_spikes"), help="folder of finished runs")
    arguments = parser.parse_args()
    planned = tasks(PLANS["quick" if arguments.quick else arguments.set])
    results, waiting = finished(planned, arguments.cache)
    results += perform_all([] if arguments.rules else waiting, perform, arguments.cache, arguments.processes)
    from benchmarks.natural_spikes import scoring

    if arguments.rules:
        results = [scoring.judge_again(result) for result in results]
    spikes = {"each_spike": [scoring.summary(run, spike) for run in results for spike in run["spikes"]]} if arguments.spikes else {}
    about = {**circumstances("benchmarks.natural_spikes"), "runs_planned": len(planned)}
    print(json.dumps({**about, **scoring.score(results), **spikes}, indent=1))


if __name__ == "__main__":
    main()
