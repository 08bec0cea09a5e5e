"""The values that make up a diagnosis: plain, immutable records. `as_dict` turns each into JSON types.

Losses are mean cross-entropies in nats per image. A `fraction` is a fraction of a spike's rise: a condition with fraction 1
removes the whole rise.
Shapes: n validation images, s steps of an epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Outcome = Literal["open", "recovered", "level shift", "divergence"]
Look = Literal["mislabelled", "damaged"]
"""What a single image appears to be. "mislabelled": the network is sure of another class; "damaged": the image is no longer what
it was an epoch before."""

RAISED = 1.2
"""A learning rate counts as raised above this multiple of the earlier one."""
STEP = np.dtype([(name, np.float64) for name in ("loss", "gradient_norm", "update_norm", "learning_rate")])
"""One training step: the batch's mean loss in training mode before the update, the L2 norm of its gradient, the L2 norm of the
change of the trainable weights, and the optimizer's learning rate at that step (1 in all steps if it is unknown). Functions that
take `steps` [s] accept any structured array with these fields."""


@dataclass(frozen=True, slots=True)
class Spike:
    """An epoch whose validation loss lies above what the epochs before it led to expect."""

    epoch: int
    """Counted from 1."""
    loss: float
    baseline: float
    """The loss expected from the trend of the earlier epochs. NaN without earlier epochs, as are `scale` and `threshold`."""
    scale: float
    """The run's own noise from epoch to epoch, as a standard deviation."""
    threshold: float
    """The rise above which this epoch counts as a spike."""
    rise: float
    """loss - baseline; infinite if the loss is not finite."""
    low: float
    high: float
    """`low` to `high`: 95 % interval of the rise over other draws of the validation images (paired bootstrap, by group where
    groups are known)."""
    error: float
    """Standard error of the rise, from the same bootstrap."""
    images: int
    """n."""
    outcome: Outcome = "open"
    outcome_epoch: int | None = None
    groups: int | None = None
    """Number of groups of images that are drawn together; n if every image is drawn on its own; None if unknown."""
    group: str | None = None
    """The group with the largest summed rise; None if images are drawn on their own."""
    group_fraction: float = 0.0
    """Fraction of the total rise that this group contributes; above 1 if other groups fell."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rise:
    """A rise of the validation loss that raised no alarm."""

    epoch: int
    rise: float
    expected: float
    """The loss expected in that epoch."""
    limit: float
    """The rise that would have raised an alarm."""


@dataclass(frozen=True, slots=True)
class Restless:
    """A stretch of epochs in which the validation loss kept jumping."""

    first: int
    last: int
    """Epochs of the first and the last jump."""
    jumps: int
    """Number of epochs in which it rose by more than detect.JUMP."""
    largest: float
    """The largest of these rises, in nats."""


@dataclass(frozen=True, slots=True)
class Course:
    """What there is to say about the validation loss of a run besides its spikes."""

    lowest: float = float("nan")
    """NaN if it was never finite."""
    guess: float = float("nan")
    """The loss of always predicting the class frequencies; NaN if they are unknown."""
    largest: Rise | None = None
    """The largest rise that raised no alarm."""
    restless: tuple[Restless, ...] = ()


@dataclass(frozen=True, slots=True)
class Overfitting:
    """A trend rather than a spike: since `epoch` the validation loss climbs while the loss on training images, in inference mode,
    falls."""

    epoch: int
    """The best epoch."""
    loss: float
    """Validation loss at the best epoch."""
    climb: float
    """Nats per epoch since then."""
    gap: float
    """Generalization gap now: validation loss minus training loss, both in inference mode."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Event:
    """A change to the run that its caller knows about."""

    kind: Literal[
        "restart",
        "optimizer_reset",
        "learning_rate",
        "world_size",
        "batch_size",
        "data",
        "frozen_layers",
        "loss",
        "optimizer",
    ]
    """`optimizer_reset`: its state was lost. `frozen_layers`: the number of variables that train changed. `loss`, `optimizer`:
    another one is used from there on. A schedule of the learning rate is no event."""
    epoch: int
    step: int = 0
    """Step of that epoch, from 0, before which it happened."""
    before: float | None = None
    after: float | None = None
    detail: str | None = None
    """What exactly changed, as a phrase: "8 more variables train, BatchNormalization among them"."""

    @property
    def raises_rate(self) -> bool:
        """Whether it certainly raised the learning rate."""
        return bool(self.kind == "learning_rate" and self.before and self.after and self.after > RAISED * self.before)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of one counterfactual evaluation."""

    name: str
    fraction: float
    """Fraction of the rise that the changed condition removes."""
    low: float
    high: float
    """`low` to `high`: 95 % interval of the fraction, from resampled validation images and the probe's own noise."""
    noise: float = 0.0
    """Standard deviation of the fraction due to the probe's own randomness."""
    passes: int = 0
    """Evaluations of the whole validation set that the probe took."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers that the sentence of evidence needs; JSON types."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Training:
    """What was unusual about the training in the epoch; computed by steps.py."""

    length: float = 1.0
    """Largest step length per unit of learning rate, as a multiple of what is usual for its gradient. A learning rate that rose
    abruptly counts as a longer step, one that follows a smooth schedule does not."""
    length_at: int = 0
    """Step with that length, from 0."""
    raised: float = 1.0
    """How many times the learning rate at that step lay above where a smooth schedule would have been."""
    length_after: tuple[float, ...] = ()
    """The same maximum over the steps after each event; NaN without earlier epochs to compare with."""
    jumps: tuple[float, ...] = ()
    """For each event: how far the moving statistics moved where it happened, as a multiple of the farthest move elsewhere."""
    astray: float = 0.0
    """How far the training loss of the last batches lies above the usual one, in standard deviations."""
    gradient: float = 1.0
    """Root mean square of the gradient norms in the first half of the epoch, as a multiple of the usual one."""
    ordinary_gradient: float = float("nan")
    """Norm below which 95 % of the gradients of the earlier epochs stayed; NaN if unknown."""
    straightness: float = 0.0
    """Distance between the weights at the start and the end of the epoch, as a fraction of the length of their path."""
    foreign: tuple[int, int, float] | None = None
    """First step, last step and excess of a stretch in which the weights moved farther than the steps account for."""
    train_rise: float = 0.0
    """Rise of the loss on the sampled training images, in inference mode, since the reference epoch; nats."""
    train_loss: float = float("nan")
    """Their loss at the reference epoch."""
    train_error: float = float("nan")
    """Standard error of `train_rise` over other draws of the sampled training images; NaN if it is unknown."""
    validation_rise: float | None = None
    """Rise of the validation loss since the reference epoch; None if it equals the spike's rise."""
    batch_loss: float = float("nan")
    """Median loss of the last tenth of the epoch's batches, in training mode."""
    usual_batch_loss: float = float("nan")
    """Median loss of the batches of earlier epochs, in training mode."""
    lost: bool | None = None
    """Whether the network has lost its training images in training mode as well: `batch_loss` is not finite, or lies more than half
    of the way from the usual loss to guessing. None if it is unknown."""
    stride: float = float("nan")
    """Of the longest step: by how many learning rates it moved each weight (root mean square). NaN unless the optimizer is Adam or
    one of its relatives."""
    usual_stride: float = float("nan")
    """The same for the median step of earlier epochs."""
    stride_at: int = 0
    """Step with that length, from 0."""
    loss_scale: tuple[float, float] | None = None
    """Factor of the loss in float16 training at the reference epoch and now; None without one."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause of one spike. The causes that can occur are defined in `spikewise.causes`."""

    name: str
    fraction: float
    low: float
    high: float
    evidence: str
    """One sentence."""
    remedy: str
    """One concrete action, as a sentence in lower case."""
    event: str | None = None
    """Kind of the event that caused it."""
    short_remedy: str | None = None
    """The remedy without its explanation, for a summary; None if `remedy` is short already."""
    settings: tuple[str, ...] = ()
    """The remedy as settings of the training job: its alternatives, each one or more `section.key=value` separated by spaces. Empty
    if no setting does it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Suspect:
    """One of the validation images whose loss rose most."""

    image: int
    """Its position among the validation images."""
    before: float
    now: float
    """Its losses at the reference epoch and at the spike."""
    label: str | None = None
    prediction: str | None = None
    """The predicted class at the spike."""
    probability: float | None = None
    """Probability of the predicted class."""
    looks: Look | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The run's hyperparameters at the spike; remedies are expressed in them. NaN or 0 where they are unknown."""

    learning_rate: float = float("nan")
    """The configured one: with a schedule, the one that its factors multiply."""
    batch_size: int = 0
    steps: int = 0
    """Steps per epoch."""
    momentum: float = float("nan")
    """Momentum of BatchNormalization; NaN also if its layers differ or there are none."""
    dropout: float = float("nan")
    """The highest dropout rate."""
    validation_fraction: float = float("nan")
    """Fraction of the images, or of their groups, that validate."""
    beta_2: float = float("nan")
    """Adam's decay of the second moments; NaN unless the optimizer is Adam or one of its relatives."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the training job as `section.key` -> value, so that no remedy asks for what is set; empty outside of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that is known about a spike before a cause is named."""

    spike: Spike
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """By name."""
    training: Training = field(default_factory=Training)
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    events: Sequence[Event] = ()
    overfitting: Overfitting | None = None
    keys: Sequence[str] | None = None
    """Names of the validation images."""
    predicted: Mapping[int, tuple[str, str, float]] = field(default_factory=dict)
    """For single validation images: label, predicted class, and its probability."""

    def fraction(self, name: str) -> float:
        """The fraction of the rise that a probe removes; 0 if the probe was not made."""
        return self.probes[name].fraction if name in self.probes else 0.0

    @property
    def rise(self) -> float:
        """Rise of the validation loss over the same epochs as `training.train_rise`."""
        rise = self.training.validation_rise
        return self.spike.rise if rise is None else rise

    def as_dict(self) -> dict[str, Any]:
        """JSON types, for `case_from`."""
        return {
            "spike": self.spike.as_dict(),
            "probes": [probe.as_dict() for probe in self.probes.values()],
            "training": self.training.as_dict(),
            "hyperparameters": asdict(self.hyperparameters),
            "events": [event.as_dict() for event in self.events],
            "overfitting": self.overfitting and self.overfitting.as_dict(),
            "keys": self.keys and list(self.keys),
            "predicted": [[image, *values] for image, values in self.predicted.items()],
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A spike and its causes, the verdict first."""

    spike: Spike
    causes: tuple[Cause, ...]
    probes: tuple[Probe, ...] = ()
    training: Training = field(default_factory=Training)
    seconds: float = 0.0
    """Time that the probes took."""
    suspects: tuple[Suspect, ...] = ()
    """The images that explain most of what single images can explain, whatever the verdict."""

    def __post_init__(self) -> None:
        """Raises ValueError without a cause, as a damaged record may be."""
        if not self.causes:
            raise ValueError("a diagnosis has at least one cause")

    @property
    def verdict(self) -> Cause:
        """The first cause."""
        return self.causes[0]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnosis_from(values: Mapping[str, Any]) -> Diagnosis:
    """The inverse of `Diagnosis.as_dict`, also after a round trip through JSON."""
    return Diagnosis(
        spike=Spike(**values["spike"]),
        causes=tuple(Cause(**{**cause, "settings": tuple(cause.get("settings", ()))}) for cause in values["causes"]),
        probes=tuple(Probe(**probe) for probe in values["probes"]),
        training=_training_from(values["training"]),
        seconds=values["seconds"],
        suspects=tuple(Suspect(**suspect) for suspect in values.get("suspects", ())),
    )


def case_from(values: Mapping[str, Any]) -> Case:
    """The inverse of `Case.as_dict`, also after a round trip through JSON."""
    overfitting, keys = values["overfitting"], values["keys"]
    return Case(
        Spike(**values["spike"]),
        probes={probe["name"]: Probe(**probe) for probe in values["probes"]},
        training=_training_from(values["training"]),
        hyperparameters=Hyperparameters(**values["hyperparameters"]),
        events=tuple(Event(**event) for event in values["events"]),
        overfitting=Overfitting(**overfitting) if overfitting else None,
        keys=keys,
        predicted={image: (label, prediction, probability) for image, label, prediction, probability in values["predicted"]},
    )


def _training_from(values: Mapping[str, Any]) -> Training:
    training = dict(values)
    for name in ("length_after", "jumps", "foreign", "loss_scale"):
        if training.get(name) is not None:
            training[name] = tuple(training[name])
    return Training(**training)
