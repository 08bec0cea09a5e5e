"""What the diagnosis of a run says: plain, immutable values, JSON-able with `as_dict`. No behaviour lives here.

Losses are mean cross-entropy in nats per image. A share is a part of a spike's rise: 1 means that nothing of it is left.
Shapes: n validation images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["open", "recovered", "level shift", "divergence"]
Look = Literal["mislabelled", "damaged"]
"""What a single image appears to be: the network is sure of another class; or it is not what it was an epoch before."""

CAUSES = (
    "divergence",
    "nondeterministic_evaluation",
    "few_examples",
    "sampling_noise",
    "run_event",
    "bad_batch",
    "batchnorm_statistics",
    "variance_shift",
    "overshoot",
    "gradient_noise",
    "distribution_shift",
    "overfitting",
    "unexplained",
)
"""All causes; their order of precedence is attribute.py's."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A validation loss above what the epochs before it led to expect."""

    epoch: int
    """From 1."""
    loss: float
    baseline: float
    """The loss that the trend of the epochs before led to expect; this and the next two are NaN if there were none."""
    scale: float
    """The run's own noise_scale from epoch to epoch, as a standard deviation."""
    threshold: float
    """The rise beyond which this epoch is a spike."""
    rise: float
    """loss - baseline; infinite if the loss is not finite."""
    low: float
    high: float
    """95 % interval of the rise over other draws of the validation images (paired bootstrap; by group where groups are known)."""
    error: float
    """Standard error of the rise, from the same bootstrap."""
    images: int
    """n."""
    outcome: Outcome = "open"
    outcome_epoch: int | None = None
    groups: int | None = None
    """Of images that are drawn together; n where each is drawn for itself. None: not known."""
    group: str | None = None
    """The group whose images' losses rose most, in sum; None where images are drawn for themselves."""
    group_fraction: float = 0.0
    """Its part of the rise of all images; above 1 where others fell."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Overfitting:
    """A trend, not a spike: since `epoch` the validation loss climbs while training images, in inference mode, get better."""

    epoch: int
    """The best one."""
    loss: float
    """There."""
    climb: float
    """Nats per epoch since."""
    gap: float
    """Validation minus training loss now, both in inference mode."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the run, as its caller knows it."""

    kind: Literal["restart", "optimizer_reset", "learning_rate", "world_size", "batch_size", "data"]
    epoch: int
    step: int = 0
    """Step of that epoch before which it happened, from 0."""
    before: float | None = None
    after: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Probe:
    """What one counterfactual found."""

    name: str
    fraction: float
    """Part of the rise that the changed condition removes."""
    low: float
    high: float
    """95 % interval of the share: validation images resampled, and the probe's own noise."""
    noise: float = 0.0
    """Standard deviation of the share from the probe's own randomness."""
    passes: int = 0
    """Evaluations of the whole validation set that it took."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What its sentence of evidence needs; JSON types."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Training:
    """What was unusual in how the epoch was trained; found by steps.py."""

    length: float = 1.0
    """Largest step, in multiples of what is usual given the gradients."""
    length_at: int = 0
    length_after: tuple[float, ...] = ()
    """For each event: the same, over the steps after it."""
    jumps: tuple[float, ...] = ()
    """For each event: how far the moving statistics went where it happened, in multiples of the farthest elsewhere."""
    astray: float = 0.0
    """Loss of the last batches, as they were trained on, above the usual, in standard deviations."""
    gradient: float = 1.0
    """Gradient norms (root mean square) in the first half of the epoch, in multiples of the usual."""
    straightness: float = 0.0
    """How far the weights came over the epoch, as a part of the way they went."""
    foreign: tuple[int, int, float] | None = None
    """Between these steps the weights moved so much farther than the steps did."""
    train_rise: float = 0.0
    """Of the sampled training images in inference mode since the reference epoch, nats."""
    train_loss: float = float("nan")
    """Theirs at the reference epoch."""
    validation_rise: float | None = None
    """Of the validation images since the same epoch; None: it is the spike's."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cause:
    name: str
    fraction: float
    low: float
    high: float
    evidence: str
    """One sentence."""
    remedy: str
    """One concrete thing to do."""
    event: str | None = None
    """Kind of the event that it blames."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A validation image that is among the few whose loss rose most."""

    image: int
    """Its place among the validation images."""
    before: float
    now: float
    label: str | None = None
    prediction: str | None = None
    """Now."""
    probability: float | None = None
    """Of the prediction."""
    looks: Look | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Of the run, at the spike: what remedies are stated in."""

    learning_rate: float = float("nan")
    batch_size: int = 0
    steps: int = 0
    """Of an epoch."""
    momentum: float = float("nan")
    """BatchNormalization's."""


@dataclass(frozen=True, slots=True)
class Case:
    """All that attribution knows of a spike."""

    spike: Spike
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """By name."""
    training: Training = field(default_factory=Training)
    settings: Hyperparameters = field(default_factory=Hyperparameters)
    events: Sequence[Event] = ()
    overfitting: Overfitting | None = None
    keys: Sequence[str] | None = None
    """Names of the validation images."""
    predicted: Mapping[int, tuple[str, str, float]] = field(default_factory=dict)
    """For single validation images: label, prediction, its probability."""

    def fraction(self, name: str) -> float:
        """Of a probe; 0 if it was not made."""
        return self.probes[name].fraction if name in self.probes else 0.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A spike and its causes, the verdict first."""

    spike: Spike
    causes: tuple[Cause, ...]
    probes: tuple[Probe, ...] = ()
    training: Training = field(default_factory=Training)
    seconds: float = 0.0
    """That the probes took."""
    suspects: tuple[Suspect, ...] = ()
    """The images without which most of what single images can explain is gone, whatever the verdict."""

    @property
    def verdict(self) -> Cause:
        return self.causes[0]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
