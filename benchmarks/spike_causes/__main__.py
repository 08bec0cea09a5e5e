"""Measures how often the diagnosis names the right cause: injects known causes into small training runs. Prints JSON.

    python -m benchmarks.spike_causes                          the reporting set: an hour and a half on two cores
    python -m benchmarks.spike_causes --quick                  a small part of it: a few minutes
    python -m benchmarks.spike_causes --set tune               the set on which thresholds were tuned
    python -m benchmarks.spike_causes --injections my_file.py  your own injections instead (see README.md)
    python -m benchmarks.spike_causes --rules                  judges the finished tasks again, by changed rules: seconds

Each finished task is stored under --cache and is not repeated, so an interrupted benchmark resumes. After a change to the
detection or the probes, use a new --cache folder; after a change to the rules, --rules is enough. The tuning and reporting sets
differ in data, seeds and strengths.
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.spike_causes.tasks import PLANS, judge_again, perform, tasks
from benchmarks.support.resumable import circumstances, finished, perform_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("report", "tune"), default="report", help="the set of runs (default: report)")
    parser.add_argument("--quick", action="store_true", help="run a small part of the reporting set")
    parser.add_argument("--injections", metavar="FILE", help="a Python file that defines INJECTIONS")
    parser.add_argument("--only", metavar="NAME", help="only this injection, or only injections of this cause")
    parser.add_argument("--rules", action="store_true", help="train nothing: judge the stored cases by the present rules")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="worker processes (default: one per core)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/spike_causes"), help="folder of finished tasks")
    arguments = parser.parse_args()
    plan = PLANS["quick" if arguments.quick else arguments.set]
    results, waiting = finished(tasks(plan, arguments.injections, arguments.only), arguments.cache)
    if arguments.rules:
        results, waiting = [judge_again(result) for result in results], []
    results += perform_all(waiting, perform, arguments.cache, arguments.processes)
    from benchmarks.spike_causes import scoring

    print(json.dumps({**circumstances("benchmarks.spike_causes"), **scoring.score(results)}, indent=1))


if __name__ == "__main__":
    main()
