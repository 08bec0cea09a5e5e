"""The benchmark of natural spikes: its scores cannot be fooled, and it trains again what it says."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.natural_spikes import scoring
from benchmarks.natural_spikes.remedies import DRAW, ORDER, own, parsed
from benchmarks.natural_spikes.tasks import PLANS, tasks
from spikewise import causes
from spikewise.records import Case, Spike


def _cause(name: str, *settings: str, fraction: float = 0.9) -> dict:
    about = {"low": fraction, "high": fraction, "evidence": "", "remedy": "", "event": None, "short_remedy": None}
    return {"name": name, "fraction": fraction, "settings": list(settings), **about}


def _spike(*named: dict, proofs: dict[str, tuple[str, float]] | None = None, training_rise: float = 0.0, **values) -> dict:
    found = [{"settings": line, "verdict": verdict, "fraction": part} for line, (verdict, part) in (proofs or {}).items()]
    spike = Spike(9, 2.0, 1.0, 0.1, 0.5, rise=1.0, low=0.8, high=1.2, error=0.1, images=100, outcome="recovered", outcome_epoch=10)
    return {
        "diagnosis": {
            "spike": spike.as_dict(),
            "causes": list(named),
            "probes": [],
            "training": {"usual_batch_loss": 1.0},
        },
        "case": Case(spike).as_dict(),
        "control_equal": True,
        "proofs": found,
        "validation_rise": 1.0,
        "training_rise": training_rise,
        "training_error": 0.01,
        "batches": [0.9],
        **values,
    }


def _score(*spikes: dict) -> dict:
    run = {"data": "x", "seed": 1, "epochs": 60, "losses": [1.0], "guess": 1.6, "standing": [], "spikes": list(spikes)}
    return scoring.score([run])


HIGHER, LOWER, PRECISE = "model.momentum=0.999", "model.momentum=0.9", "model.statistics=precise"
LAG = {LOWER: ("proven", 0.9), HIGHER: ("does not help", -2.0)}


def test_a_verdict_is_confirmed_only_by_its_own_experiment():
    """A verdict would count as right because some other change removed the rise, or because the diagnosis measured 100 % itself."""
    lag = _cause("batchnorm_lag", LOWER, fraction=1.0)
    wrong = _spike(lag, proofs={LOWER: ("does not help", -0.5), HIGHER: ("proven", 1.0), ORDER: ("proven", 1.0)})
    shock = _cause("batchnorm_shock", HIGHER, PRECISE)
    right = _spike(shock, proofs={LOWER: ("does not help", -0.5), HIGHER: ("proven", 1.0)})
    partly = _spike(shock, proofs={LOWER: ("does not help", -0.5), HIGHER: ("helps in part", 0.45)})
    reverse = _spike(shock, proofs={LOWER: ("proven", 0.65), HIGHER: ("does not help", 0.1), PRECISE: ("proven", 1.6)})
    found = _score(wrong, right, partly, reverse)["first_verdict_confirmed"]["of_explained_spikes"]
    assert (found["count"], found["of"]) == (1, 4)


def test_a_verdict_without_an_experiment_is_not_confirmed():
    """A cause that advises nothing that can be tried would lift the published number."""
    score = _score(_spike(_cause("distribution_shift")), _spike(_cause("overshoot", "optimizer.clip_norm=0.7")))
    assert score["first_verdict_confirmed"]["of_explained_spikes"]["count"] == 0
    assert score["first_remedy"] == {"nothing to try": 1, "not tried": 1}


def test_unexplained_spikes_count_against_explained_and_against_nothing_else():
    """A diagnosis that says little would look as right as one that explains everything."""
    score = _score(_spike(_cause("unexplained")), _spike(_cause("batchnorm_lag", LOWER), proofs=LAG))
    assert score["explained"]["count"] == 1
    assert score["first_verdict_confirmed"]["of_all_spikes"]["of"] == 2
    assert score["first_verdict_confirmed"]["of_explained_spikes"]["of"] == 1


def test_a_second_cause_that_did_better_is_counted():
    """The report would name a cause first although its own list held a better one."""
    named = [_cause("gradient_noise", "optimizer.ema=0.96"), _cause("batchnorm_shock", HIGHER)]
    better = _spike(*named, proofs={"optimizer.ema=0.96": ("proven", 0.6), HIGHER: ("proven", 1.0)})
    alike = _spike(*named, proofs={"optimizer.ema=0.96": ("proven", 0.95), HIGHER: ("proven", 1.0)})
    assert _score(better, alike)["another_cause_did_better"]["count"] == 1


def test_weights_are_not_blamed_in_silence_for_what_their_statistics_did():
    """Averaged weights are evaluated with precise statistics: they would confirm gradient noise where the statistics did it all."""
    noise = _cause("gradient_noise", "optimizer.ema=0.96")
    both = _spike(noise, proofs={"optimizer.ema=0.96": ("proven", 1.4), PRECISE: ("proven", 1.4)})
    weights = _spike(noise, proofs={"optimizer.ema=0.96": ("proven", 1.4), PRECISE: ("does not help", 0.0)})
    assert _score(both, weights)["blames_the_weights_but_statistics_alone_remove_the_rise"]["count"] == 1


def test_verdicts_against_evidence_are_counted():
    """Chance could be blamed for a rise that training images share, and a divergence for a run that trains well."""
    chance = _cause("sampling_noise")
    shared = _spike(chance, training_rise=0.6)
    own_rise = _spike(chance, training_rise=0.01)
    diverged = _spike(_cause("divergence", "optimizer.learning_rate=0.0001"))
    found = _score(shared, own_rise, diverged)["against_evidence"]
    assert found["all"]["count"] == 2
    assert found["what"] == {
        "sampling_noise, although training images share the rise": 1,
        "divergence, although the loss in training mode did not rise": 1,
    }


def test_a_standing_cause_must_be_large_in_the_exact_measurement():
    """A part that a small sample of images made look large would count as found."""
    exact = {"loss": 1.0, "statistics": 0.05, "wandering": 0.0, "generalization": 0.6, "fit": 0.35}
    values = {"guess": 1.6, "exact": exact}
    assert not scoring.agrees({"name": "statistics", **values})
    assert scoring.agrees({"name": "generalization", **values})
    assert not scoring.agrees({"name": "preparation", **values})  # both sides are prepared alike


def test_every_remedy_that_a_cause_names_is_an_experiment():
    """A new remedy would silently never be tried, and its cause would never be confirmed."""
    assert parsed("training.keep=best training.early_stopping=10") is None
    assert parsed("optimizer.learning_rate=1e-4 optimizer.warmup_epochs=3") is not None
    with pytest.raises(ValueError, match=r"model\.magic: unknown remedy"):
        parsed("model.magic=1")
    assert own(_cause("sampling_noise", "data.validation_fraction=0.3"), bad_batches=False) == [DRAW]


def test_changed_rules_judge_the_stored_cases():
    """--rules would repeat the old verdicts."""
    stored = {"data": "x", "seed": 1, "spikes": [_spike(_cause("batchnorm_lag", LOWER))]}
    again = scoring.judge_again(stored)["spikes"][0]
    assert scoring.verdict(again) == causes.attribute(Case(Spike(**again["diagnosis"]["spike"])))[0].name == "unexplained"


def test_tuning_and_reporting_share_no_seed():
    """The published numbers would come from the runs that rules were tuned on."""
    assert len(PLANS["report"].data) >= 3
    assert not set(PLANS["tune"].seeds) & set(PLANS["report"].seeds)
    assert not set(PLANS["quick"].seeds) & set(PLANS["report"].seeds)
    names = [task.name for task in tasks(PLANS["report"])]
    assert len(set(names)) == len(names)


SMALL = {"training": 96, "validation": 40, "spare": 60}
EXPERIMENT = """
import json
import keras
import numpy as np
from benchmarks.natural_spikes.experiments import Change
from benchmarks.natural_spikes.runs import NaturalRun
from benchmarks.natural_spikes.spikes import investigate
from spikewise.records import Cause, Diagnosis, Spike

run = NaturalRun("sparse marks", 3, training=96, validation=40, spare=60)
for _ in range(3):
    run.train_epoch()
before = run.save()
run.train_epoch()
loss = float(run.history[-1].mean())
spike = Spike(4, loss, loss - 0.5, 0.1, 0.2, rise=0.5, low=0.4, high=0.6, error=0.05, images=40, outcome="recovered",
    outcome_epoch=4)
settings = ("model.dropout=0.1", "optimizer.learning_rate=1e-4 optimizer.warmup_epochs=6", "optimizer.clip_norm=0.1",
    "optimizer.ema=0.5", "training.batch_size=48", "training.label_smoothing=0.1", "augmentation.shift=2",
    "optimizer.weight_decay=0.01", "optimizer.arguments.beta_2=0.9", "optimizer.arguments.epsilon=1e-3")
diagnosis = Diagnosis(spike, (Cause("overshoot", 1, 1, 1, "", "", settings=settings),))
found = investigate(run, before, diagnosis, list(run.history))
exact = run.parts(1.0)

# The momentum that is followed is that of a run which was trained with it.
run.load(before)
followed = run.followed.now[0]
other = NaturalRun("sparse marks", 3, training=96, validation=40, spare=60)
for layer in other.norms:
    layer.momentum = 0.9
for _ in range(3):
    other.advance()
    other.diagnostician.discard_epoch()
trained = other.network.select(np.asarray(other.network.norm_values()))
same = all(np.array_equal(a, b) for a, b in zip(other.model.get_weights(), run.model.get_weights()) if a.ndim > 1)
print(json.dumps({**found, "same": same, "off": float(np.abs(followed - trained).max()), "sum": exact.statistics
    + exact.wandering + exact.generalization + exact.fit - exact.loss}))
"""


@pytest.mark.integration
def test_a_control_repeats_to_the_last_bit_and_each_change_changes_something():
    """The experiments would prove nothing: a control that differs, or a remedy that was never applied."""
    answer = subprocess.run([sys.executable, "-c", EXPERIMENT], capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["control_equal"]
    losses = {proof["settings"]: proof["losses"][0] for proof in found["proofs"]}
    assert len(losses) == 3 + 2 + 3 + 10
    trained = [loss for line, loss in losses.items() if line != DRAW]
    assert len(set(np.round(trained, 7))) == len(trained)
    assert found["same"]  # the momentum changes no weight,
    assert found["off"] < 1e-3  # and its statistics are those of a run with it
    assert abs(found["sum"]) < 1e-6


@pytest.mark.integration
def test_the_benchmark_resumes_and_prints_its_scores(tmp_path):
    """A person could not repeat the published numbers."""
    command = [sys.executable, "-m", "benchmarks.natural_spikes", "--quick", "--spikes", "--cache", str(tmp_path)]
    first = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert first["runs"] == 1
    assert first["spikes"] == len(first["each_spike"])
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0 tasks to do, 1 results known" in again.stderr
    assert json.loads(again.stdout)["verdicts"] == first["verdicts"]
