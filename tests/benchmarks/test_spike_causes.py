"""The benchmark of the diagnosis: its scores are right, and it runs."""

import json
import subprocess
import sys

import pytest

from benchmarks.spike_causes import scoring
from benchmarks.spike_causes.tasks import PLANS, load, tasks
from spikewise import causes


def _injected(cause: str, verdict: str | None, strength: int = 0) -> dict:
    found = {"detected": verdict is not None, "verdict": verdict, "causes": [verdict, "unexplained"]}
    about = {"kind": "injection", "name": f"some {cause}", "cause": cause, "strength": strength, "data": "x", "architecture": "y"}
    about |= {"losses": [0.5] * 7 + [0.6]} if verdict is None else {"diagnosis": {"spike": {"rise": 0.2, "baseline": 0.5}}}
    return {**about, **found, "seconds": 2.0, "epoch_seconds": 1.0}


def _healthy(alarms: int) -> dict:
    alarm = {"epoch": 5, "rise": 0.5, "verdict": "unexplained", "fraction": 0.0}
    return {
        "kind": "healthy",
        "seed": alarms,
        "epochs": 100,
        "alarms": [alarm] * alarms,
        "seconds": {"diagnosis": 1.0, "rest": 50.0},
    }


def test_each_fraction_has_its_count_and_its_interval():
    """A reader could not tell 95 % of 20 runs from 95 % of 2,000."""
    results = [_injected("overshoot", "overshoot")] * 19 + [_injected("overshoot", "bad_batch")]
    right = scoring.score(results)["verdict_right"]["all"]
    assert (right["count"], right["of"], right["fraction"]) == (19, 20, 0.95)
    assert right["interval_95"] == [0.7639, 0.9911]  # Wilson's


def test_an_undetected_spike_counts_as_missed_not_as_wrong():
    """One number would mix up detection and attribution."""
    results = [_injected("overshoot", "overshoot", 2), _injected("overshoot", None, 2)]
    scores = scoring.score(results)
    assert scores["verdict_right"]["all"]["of"] == 1
    assert scores["detected"]["strong"]["fraction"] == 0.5
    by_rise = scores["detected"]["rise_of_at_least"]  # 20 % and missed, 40 % and detected
    assert [by_rise[least] and by_rise[least]["of"] for least in ("10%", "25%", "50%")] == [2, 1, None]
    assert scores["confusion"] == {"overshoot": {"overshoot": 1}}


def test_alarms_are_counted_by_run_and_by_epoch():
    """The published rate of false alarms would be wrong, and the extra time would include diagnoses."""
    healthy = scoring.score([_healthy(0)] * 18 + [_healthy(2)])["healthy"]
    assert (healthy["runs_with_alarm"]["count"], healthy["runs_with_alarm"]["of"]) == (1, 19)
    assert healthy["epochs"] == 1900
    assert healthy["alarms_per_100_epochs"]["rate"] == pytest.approx(2 / 19, abs=1e-3)
    low, high = healthy["alarms_per_100_epochs"]["interval_95"]
    assert low < 2 / 19 < high
    assert healthy["extra_time"]["runs"] == 18


ELSEWHERE = {
    "overfitting",  # a kind of run, not an injection
    "batchnorm_lag",  # natural_spikes: its truth is the sign of the momentum's effect, which no injection decides
    "batchnorm_shock",
    "overconfidence",  # no injection made a spike of it without longer steps or other weights, which are causes of their own
}


def test_every_cause_is_injected_and_tuning_shares_nothing_with_the_report():
    """The results would cover a cause that was never injected, or come from the data that thresholds were tuned on."""
    kinds = load(None)
    assert {kind.cause for kind in kinds} == set(causes.NAMES) - ELSEWHERE
    assert len(kinds) >= 10
    tune, report = PLANS["tune"], PLANS["report"]
    assert not set(tune.data) & set(report.data)
    assert not {*tune.seeds, *tune.healthy} & {*report.seeds, *report.healthy}
    assert len({task.name for task in tasks(report, None, None)}) == len(tasks(report, None, None))


def test_a_file_without_injections_is_refused_in_one_line(tmp_path):
    """A user with a typo in their own file would get a traceback."""
    (tmp_path / "mine.py").write_text("INJECTION = []")
    with pytest.raises(SystemExit, match="defines no INJECTIONS"):
        load(str(tmp_path / "mine.py"))
    with pytest.raises(SystemExit, match="no such Python file"):
        load(str(tmp_path / "nowhere.py"))


OWN = """
from benchmarks.spike_causes.injections import GiantStep, Injection, SilentlyLostStatistics

class Inverted(Injection):
    name, cause, report = "negatives", "distribution_shift", (1,)

    def begin(self, run):
        pixels, labels = run.validation
        run.validation = 255 - pixels, labels

class Step(GiantStep):
    report = (2500,)

class Lost(SilentlyLostStatistics):
    report = (3,)

INJECTIONS = [Inverted, Step, Lost]
"""


@pytest.mark.integration
def test_the_users_own_injections_are_run_and_scored(tmp_path):
    """Users could not check the claims with faults of their own."""
    (tmp_path / "mine.py").write_text(OWN)
    command = [sys.executable, "-m", "benchmarks.spike_causes", "--quick", "--injections", str(tmp_path / "mine.py")]
    command += ["--cache", str(tmp_path / "cache")]
    first = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert first["confusion"] == {
        "batchnorm_statistics": {"batchnorm_statistics": 2},
        "distribution_shift": {"distribution_shift": 2},
        "overshoot": {"overshoot": 2},
    }
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0 tasks to do, 6 results known" in again.stderr  # an interrupted benchmark resumes
    assert json.loads(again.stdout)["verdict_right"] == first["verdict_right"]
