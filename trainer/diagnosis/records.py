"""What the diagnosis of a run says: plain, immutable values, JSON-able with `as_dict`. No behaviour lives here.

Losses are mean cross-entropy in nats per image. A share is a part of a spike's rise: 1 means that nothing of it is left.
Shapes: n validation images.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["open", "recovered", "level shift", "divergence"]

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
"""All causes, in the order of precedence that attribute.py documents."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A validation loss above what the epochs before it led to expect."""

    epoch: int
    """From 1."""
    loss: float
    baseline: float
    """The loss that the trend of the epochs before led to expect."""
    scale: float
    """The run's own wiggle from epoch to epoch, as a standard deviation."""
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
    share: float
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
class Cause:
    name: str
    share: float
    low: float
    high: float
    evidence: str
    """One sentence."""
    remedy: str
    """One concrete thing to do."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A spike and its causes, the verdict first."""

    spike: Spike
    causes: tuple[Cause, ...]
    probes: tuple[Probe, ...] = ()
    seconds: float = 0.0
    """That the probes took."""

    @property
    def verdict(self) -> Cause:
        return self.causes[0]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
