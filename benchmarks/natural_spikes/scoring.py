"""Turns the results of all runs into the published numbers, each with its count and interval. Pure functions.

A result is one run: data, seed, epochs, losses, guess, standing causes and spikes (see tasks.perform and spikes.investigate). A
spike has the diagnosis, the control, and `proofs`: what each change did when its epochs were trained again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.natural_spikes.remedies import DRAW, FALLBACK, ORDER, STANDARD, own
from benchmarks.spike_causes.scoring import Result, by, fraction
from spikewise import standing
from spikewise.causes import attribute, kind_of
from spikewise.causes.kind import SHARED
from spikewise.proof import NOTABLE
from spikewise.records import case_from
from spikewise.suspects import HALF

VALIDATION_ONLY = {"sampling_noise": SHARED, "few_examples": HALF, "distribution_shift": HALF, "overfitting": HALF}
"""Verdicts that blame the validation images alone, and the fraction of the rise above which training images contradict them."""
MOMENTUM = {"batchnorm_lag": STANDARD[:2], "batchnorm_shock": STANDARD[1::-1]}
"""The momentum that a verdict says would help, and the other one."""
ALWAYS = (*STANDARD, *FALLBACK, ORDER, DRAW)
"""Changes that are tried for every spike."""
CERTAIN = 1.64
"""Standard errors by which a rise must exceed a limit."""


def score(results: Iterable[Result]) -> dict[str, Any]:
    """The scores that the benchmark prints."""
    runs = list(results)
    spikes = [{**spike, "data": run["data"], "verdict": verdict(spike)} for run in runs for spike in run["spikes"]]
    explained = [spike for spike in spikes if spike["verdict"] != "unexplained"]
    named = [{**one, "data": run["data"], "guess": run["guess"]} for run in runs for one in run["standing"]]
    everywhere = [proof for spike in spikes for proof in spike["proofs"] if proof["settings"] in ALWAYS]
    return {
        "runs": len(runs),
        "epochs": sum(run["epochs"] for run in runs),
        "runs_by_data": dict(Counter(run["data"] for run in runs)),
        "seeds": sorted({run["seed"] for run in runs}),
        "spikes": len(spikes),
        "spikes_by_data": dict(Counter(spike["data"] for spike in spikes)),
        "control_equal_to_the_last_bit": fraction(spikes, lambda spike: spike["control_equal"]),
        "explained": fraction(spikes, lambda spike: spike["verdict"] != "unexplained"),
        "first_verdict_confirmed": {
            "of_all_spikes": fraction(spikes, confirmed),
            "of_explained_spikes": fraction(explained, confirmed),
            "by_verdict": by(explained, "verdict", confirmed),
            "by_data": by(explained, "data", confirmed),
        },
        "first_remedy_proven": fraction(explained, lambda spike: first_remedy(spike) == "proven"),
        "first_remedy": dict(Counter(first_remedy(spike) for spike in explained)),
        "another_cause_did_better": fraction(explained, another_did_better),
        "blames_the_weights_but_statistics_alone_remove_the_rise": fraction(explained, blames_the_weights),
        "against_evidence": {
            "all": fraction(spikes, lambda spike: bool(against(spike))),
            "what": dict(Counter(what for spike in spikes for what in against(spike))),
        },
        "verdicts": dict(Counter(spike["verdict"] for spike in spikes)),
        "what_removes_the_rise": by(everywhere, "settings", lambda proof: proof["verdict"] == "proven"),
        "unexplained_and_removed_by_nothing": fraction(
            [spike for spike in spikes if spike["verdict"] == "unexplained"],
            lambda spike: not any(_proven(spike, line) for line in _proofs(spike) if line != ORDER),
        ),
        "standing": {
            "runs_with_one": fraction(runs, lambda run: bool(run["standing"])),
            "exact_measurement_agrees": fraction(named, agrees),
            "by_name": by(named, "name", agrees),
        },
    }


def judge_again(run: Result) -> Result:
    """The run with its spikes judged by the present rules. A remedy that was not tried then counts as not proven. A verdict of
    divergence stays: it was given later, when the spike's outcome was known."""
    spikes = []
    for spike in run["spikes"]:
        diagnosis = spike["diagnosis"]
        if diagnosis["spike"]["outcome"] != "divergence":
            ranked = [cause.as_dict() for cause in attribute(case_from(spike["case"]))]
            diagnosis = {**diagnosis, "causes": ranked}
        spikes.append({**spike, "diagnosis": diagnosis})
    return {**run, "spikes": spikes}


def summary(run: Result, spike: Mapping[str, Any]) -> dict[str, Any]:
    """One spike: where it was, what was said, and which part of the rise each change removed."""
    diagnosis = spike["diagnosis"]
    return {
        "run": f"{run['data']}, seed {run['seed']}",
        "epoch": diagnosis["spike"]["epoch"],
        "loss": [round(diagnosis["spike"]["baseline"], 3), round(diagnosis["spike"]["loss"], 3)],
        "causes": {cause["name"]: round(cause["fraction"], 2) for cause in diagnosis["causes"]},
        "confirmed": confirmed(spike),
        "first_remedy": [*own_lines(spike, 0)[:1], first_remedy(spike)],
        "training_images_share": round(spike["training_rise"] / spike["validation_rise"], 2) if spike["validation_rise"] else None,
        "removed": {line: [round(proof["fraction"], 2), proof["verdict"]] for line, proof in _proofs(spike).items()},
    }


def verdict(spike: Mapping[str, Any]) -> str:
    """The name of the first cause."""
    return str(spike["diagnosis"]["causes"][0]["name"])


def own_lines(spike: Mapping[str, Any], number: int) -> list[str]:
    """The experiments that would confirm the cause with this number."""
    bad = any(probe["name"] == "bad_batches" for probe in spike["diagnosis"]["probes"])
    return own(spike["diagnosis"]["causes"][number], bad_batches=bad)


def confirmed(spike: Mapping[str, Any]) -> bool:
    """Whether one of the first cause's own experiments is proven, and, if it names a momentum that is too high or too low, that
    direction helps and the other does not help as much. Precise statistics remove both. A cause without experiments is not
    confirmed."""
    named = MOMENTUM.get(verdict(spike))
    if named is not None:
        helps, other = (_proofs(spike)[line]["fraction"] for line in named)
        if helps < HALF or helps <= other:
            return False
    return any(_proven(spike, line) for line in own_lines(spike, 0))


def first_remedy(spike: Mapping[str, Any]) -> str:
    """The verdict on the first cause's first experiment, or why there is none."""
    lines = own_lines(spike, 0)
    if not lines:
        return "nothing to try"
    proof = _proofs(spike).get(lines[0])
    return str(proof["verdict"]) if proof else "not tried"


def another_did_better(spike: Mapping[str, Any]) -> bool:
    """Whether a cause behind the first has an experiment that is proven and removes more of the rise than all of the first's, by
    more than proof.NOTABLE of it."""
    proofs, count = _proofs(spike), len(spike["diagnosis"]["causes"])
    first = max((proofs[line]["fraction"] for line in own_lines(spike, 0) if line in proofs), default=0.0)
    others = {line for number in range(1, count) for line in own_lines(spike, number) if _proven(spike, line)}
    return any(proofs[line]["fraction"] > first + NOTABLE for line in others - set(own_lines(spike, 0)))


def blames_the_weights(spike: Mapping[str, Any]) -> bool:
    """Whether the first verdict says that the weights were harmed, although the same weights with other statistics do not show the
    rise. What changed the weights may still be why the statistics no longer fit."""
    kind = kind_of(verdict(spike))
    return kind is not None and kind.harms_training and any(_proven(spike, line) for line in STANDARD)


def against(spike: Mapping[str, Any]) -> list[str]:
    """The measured facts that contradict the first verdict."""
    name, found = verdict(spike), []
    limit, rise = VALIDATION_ONLY.get(name), spike["validation_rise"]
    if limit is not None and rise and spike["training_rise"] - CERTAIN * spike["training_error"] > limit * rise:
        found.append(f"{name}, although training images share the rise")
    if name == "divergence" and spike["batches"][-1] <= spike["diagnosis"]["training"]["usual_batch_loss"]:
        found.append("divergence, although the loss in training mode did not rise")
    return found


def agrees(one: Mapping[str, Any]) -> bool:
    """Whether the part that a standing cause blames is as large in the exact measurement, on all images and batches. Both sides of
    every data set have the same preparation."""
    exact, name = one["exact"], one["name"]
    if name == "preparation":
        return False
    if name == "fit":
        return bool(exact["fit"] > standing.LEARNED * one["guess"])
    least = standing.MOST if name == "generalization" else standing.NOTABLE
    return bool(exact[name] > max(least * exact["loss"], standing.SMALLEST))


def _proofs(spike: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {proof["settings"]: proof for proof in spike["proofs"]}


def _proven(spike: Mapping[str, Any], line: str) -> bool:
    proof = _proofs(spike).get(line)
    return proof is not None and proof["verdict"] == "proven"
