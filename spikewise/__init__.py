"""Explains why a validation loss jumped: detects the spike, probes the network, and names the cause with evidence and a remedy.

    from spikewise import SpikeDiagnosis

    spikes = SpikeDiagnosis((x_validation, y_validation))
    model.fit(x, y, epochs=100, callbacks=[spikes])
    print(spikes.summary)

`explain` does the same for two sets of losses, as does `python -m spikewise` on the command line. docs/diagnosis.md describes
causes and probes. Names are imported on first use: `import spikewise` needs and loads only NumPy; SpikeDiagnosis needs Keras on
TensorFlow.

The modules, from bottom to top:

errors     UserError
records    the values: Spike, Probe, Cause, Diagnosis, ...
forecast   what earlier epochs predict, and how far above it is a spike
detect     per-example losses of each epoch in, spikes out
steps      what was unusual about the training in an epoch
moments    BatchNormalization's statistics under another momentum
probes     counterfactuals: evaluate the validation set again with one condition changed; further ones in outputs and batches
examine    makes all probes of a spike
suspects   the individual images behind a rise
advice     what remedies suggest
causes     what probes and steps found -> ranked causes with evidence and remedy, one module per cause
curve      the validation loss as a sum of parts
standing   parts that stay high
measure    measures the parts within a budget
findings   everything that was found in a run
diagnose   the Diagnostician, which joins all of this for one run
describe   diagnoses as text; describe_curve does the same for the curve
proof      the verdict on a remedy that was tried
keras      the callback, and the adapters to Keras
compare    explain
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikewise.compare import explain
    from spikewise.diagnose import Diagnostician, News
    from spikewise.errors import UserError
    from spikewise.keras.callback import SpikeDiagnosis
    from spikewise.probes import Network
    from spikewise.records import STEP, Cause, Diagnosis, Event, Overfitting, Probe, Spike, Suspect, Training

__version__ = "0.1.0"

__all__ = [
    "STEP",
    "Cause",
    "Diagnosis",
    "Diagnostician",
    "Event",
    "Network",
    "News",
    "Overfitting",
    "Probe",
    "Spike",
    "SpikeDiagnosis",
    "Suspect",
    "Training",
    "UserError",
    "explain",
]

_HOMES = {
    "spikewise.compare": ("explain",),
    "spikewise.diagnose": ("Diagnostician", "News"),
    "spikewise.errors": ("UserError",),
    "spikewise.keras.callback": ("SpikeDiagnosis",),
    "spikewise.probes": ("Network",),
    "spikewise.records": ("STEP", "Cause", "Diagnosis", "Event", "Overfitting", "Probe", "Spike", "Suspect", "Training"),
}
"""The module that defines each public name."""


def __getattr__(name: str) -> Any:
    """Imports a public name on first use. Raises ImportError if it needs Keras or TensorFlow and they are not installed."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name not in ("keras", "tensorflow"):
            raise
        raise ImportError(
            f"spikewise.{name} needs Keras and TensorFlow, and {error.name} is not installed. "
            "Fix: run pip install keras tensorflow."
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
