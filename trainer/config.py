"""The run's configuration: one strict TOML file, typed, with units in the docstrings.

Separation of concerns: this module says what may be configured and what is impossible in itself. What can only be known
with the data or the cluster at hand (a class without images, more workers than cores) is checked where it is known.
"""

import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainer import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]  # longer ones, infinity among them, the operating system does not take
Bytes = Annotated[int, Field(ge=1)]


FREE_TO_CHANGE = {"s3", "launch", "checkpoint", "metrics"}
"""Sections that a resumed run may change, besides the keys below: nothing there changes what is learned."""
KEYS_FREE_TO_CHANGE = {
    ("run", "name"),
    ("run", "storage"),
    ("run", "output"),
    ("pipeline", "memory_bytes"),
    ("pipeline", "cache_dir"),
    ("training", "epochs"),
    ("training", "learning_rate"),
    ("training", "early_stopping"),
    ("training", "keep"),
    ("data", "min_validation"),
    ("data", "max_quarantined"),
}


class ConfigError(UserError):
    """The configuration is wrong; the message has one line for each problem, naming key, value and bound."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$")] | None = None
    """Names the run in storage and metrics. Running again under a name resumes it. Unset: config's name and the time."""
    storage: str = "s3://spikewise/runs-and-shards"
    """Where shards, checkpoints and reports go: `s3://bucket/prefix`, or a folder."""
    output: str = "runs"
    """Local folder for the report of each run."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Data(Section):
    source: str
    """Where the images are: `s3://bucket/prefix`, or a folder."""
    classes: dict[str, str] = {}
    """Class name -> key prefix below `source`, such as `authentic = "Au/"`. The order gives the label numbers."""
    class_pattern: str | None = None
    """Instead of `classes`: a regular expression searched in the key (below `source`); its group `class` is the class name."""
    group_by: str | None = None
    """A regular expression searched in the key (below `source`); its first group names the image's source. Images of one
    source stay on one side of the split. Keys that it does not match are groups of their own."""
    image_size: tuple[Annotated[int, Field(ge=8, le=2048)], Annotated[int, Field(ge=8, le=2048)]] = (64, 64)
    """Height and width in pixels to which every image is resized."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sources (of the distinct images, without `group_by`) in the validation set."""
    min_validation: Positive = 20
    """Fewest validation images of each class with which a run starts."""
    max_quarantined: Fraction = 0.01
    """Largest share of images that cannot be decoded with which the job still goes on."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """An image with more pixels than this is quarantined unread (decompression bombs)."""

    @field_validator("class_pattern", "group_by")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _classes_one_way(self) -> Self:
        if bool(self.classes) == bool(self.class_pattern):
            raise ValueError("set exactly one of `classes` (name = prefix) and `class_pattern`")
        if self.class_pattern and "class" not in re.compile(self.class_pattern).groupindex:
            raise ValueError("class_pattern needs a group named `class`: (?P<class>...)")
        if self.classes and len(self.classes) < 2:
            raise ValueError(f"classes names only {', '.join(self.classes)}: at least two are needed")
        if self.group_by and re.compile(self.group_by).groups < 1:
            raise ValueError("group_by needs a group that captures the source: (...)")
        for a, left in self.classes.items():
            for b, right in self.classes.items():
                if a != b and left.startswith(right):
                    raise ValueError(f'prefix "{left}" of class {a} lies inside "{right}" of class {b}')
        return self


class S3(Section):
    """How S3 is reached. Credentials come from the environment's usual chain and never from this file."""

    endpoint_url: str | None = None
    """Unset: AWS, or AWS_ENDPOINT_URL."""
    region: str | None = None
    path_style: bool = False
    """`endpoint/bucket/key` instead of `bucket.endpoint/key`; most servers other than AWS want it."""
    connect_timeout: Seconds = 10.0
    read_timeout: Seconds = 60.0
    """Seconds without a byte after which a request is given up and retried."""
    max_attempts: Positive = 5
    """Tries of one request, the first included, with exponential backoff and jitter between them."""


class Pipeline(Section):
    memory_bytes: Bytes = 2_000_000_000
    """Largest data set that each worker keeps in memory (on the GPU where there is one); a larger one stays on the local disk
    and is read row by row."""
    cache_dir: str = ".cache/shards"
    """Local folder for packed shards, shared by all workers of a machine."""
    flip: bool = False
    """Augmentation: mirror left-right at random."""
    shift: Annotated[int, Field(ge=0, le=64)] = 0
    """Augmentation: shift by up to so many pixels each way, edges repeated."""


class Model(Section):
    data_format: Literal["channels_last", "channels_first"] = "channels_last"
    batch_normalization: Literal["synchronized", "fused", "keras"] = "synchronized"
    """`synchronized`: fused kernels, statistics over the whole batch, the same bits for any number of workers. `fused`: each
    worker has statistics of its own part. `keras`: Keras' own layer, each worker for itself."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """BatchNormalization: share of the moving statistics kept at each step."""
    dropout: tuple[
        Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]
    ] = (
        0.25,
        0.25,
        0.5,
    )
    """After the first pooling, the second pooling and the dense layer."""
    precision: Literal["float32", "mixed_bfloat16", "float64"] = "float32"
    """Of the layers' arithmetic. `mixed_bfloat16`: weights, losses and statistics stay float32. `float64`: slow, for comparing
    runs on different numbers of workers, which float32 rounds apart."""


class Training(Section):
    epochs: Positive = 100
    batch_size: Positive = 32
    """Images in one update, over all workers together."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Of Adam, in units of weight per step."""
    train_sample: Positive = 1000
    """Training images, always the same, whose loss is also measured in inference mode: the one comparable with validation."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Stop after so many epochs without a lower validation loss; 0 never stops early."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights `model.keras` and the report's per-image results are of; best: lowest validation loss."""


class Launch(Section):
    workers: Positive = 1
    gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """Cores for each worker; 0 divides the cores of the cluster evenly."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the worker group after a worker died, before the job gives up."""
    start_timeout: Seconds = 600.0
    """Seconds to wait for all workers to be placed and to have imported TensorFlow."""
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = 500_000_000
    """Ray's shared-memory object store on a machine where this job starts Ray itself."""


class Checkpoint(Section):
    keep_last: Positive = 2
    """Newest checkpoints kept; the best one is kept as well."""
    lease_seconds: Seconds = 15.0
    """A run whose driver has shown no life for so long counts as dead, and its name may be taken over."""


class Metrics(Section):
    host: str = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535)] = 9400
    """Of the Prometheus endpoint on the head; 0 picks a free one."""
    linger: Annotated[float, Field(ge=0, le=1e6)] = 60.0
    """Seconds that the endpoint stays at most after the last epoch until the final values were scraped."""


class Settings(Section):
    """A run, resolved: every key has a value."""

    data: Data
    run: Run = Run()
    s3: S3 = S3()
    pipeline: Pipeline = Pipeline()
    model: Model = Model()
    training: Training = Training()
    launch: Launch = Launch()
    checkpoint: Checkpoint = Checkpoint()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.training.batch_size % self.launch.workers:
            lower = self.training.batch_size - self.training.batch_size % self.launch.workers
            fits = f"{lower} or {lower + self.launch.workers}" if lower else str(self.launch.workers)
            raise ValueError(
                f"training.batch_size = {self.training.batch_size} cannot be divided evenly among launch.workers = "
                f"{self.launch.workers}: {fits} would fit"
            )
        if (self.model.precision, self.model.batch_normalization) == ("float64", "fused"):
            raise ValueError(
                'model.batch_normalization = "fused" has no kernel for model.precision = "float64": take "synchronized" or "keras"'
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """All values as JSON types, sections in a fixed order."""
        return json.loads(self.model_dump_json())


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Reads a TOML file and applies `section.key=value` overrides, values written as in TOML (bare words are strings).

    Raises ConfigError when the file is missing or no TOML, or when a key is unknown, of the wrong type or impossible.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    return parse(values, str(path))


def run_name(settings: Settings, path: str | Path) -> str:
    """`run.name`, or one made of the file's name and the time; 43 characters at most, as a RayJob takes them."""
    stem = re.sub("[^a-z0-9]+", "-", Path(path).stem.lower())[:27].strip("-") or "run"
    return settings.run.name or f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def parse(values: dict[str, Any], origin: str = "configuration") -> Settings:
    """Builds a Config from nested dicts of JSON types. Raises ConfigError naming `origin`, key, value and bound."""
    try:
        return Settings.model_validate_json(json.dumps(values, default=str))  # str: of TOML's dates
    except ValidationError as error:
        lines = [f"{origin}: {_line(dict(problem))}" for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def check_resumable(now: Settings, before: dict[str, Any], name: str) -> None:
    """Raises ConfigError when run `name`, started with `before` (`digestible`), cannot go on with `now`."""
    for section, values in now.as_dict().items():
        for key, value in values.items():
            was = before.get(section, {}).get(key, value)
            if was != value and section not in FREE_TO_CHANGE and (section, key) not in KEYS_FREE_TO_CHANGE:
                raise ConfigError(
                    f"run {name} was started with {section}.{key} = {was!r}, now it is {value!r}: keep it to resume that run, "
                    "or choose another run.name"
                )


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not section or not name:
        raise ConfigError(f"--set {override}: write section.key=value, such as training.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = values.setdefault(section, {})
    *inner, name = name.split(".")
    for part in inner:
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    table[name] = value


def _line(problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: {_unknown(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{key}: is required"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    if problem["type"] == "string_type":
        message += ", written in quotes"
    elif problem["type"] == "string_pattern_mismatch":  # of run.name
        message += ": small letters, digits and dashes, at most 52"
    if isinstance(problem["input"], dict):  # said by a section's own check, which names the values itself
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r}: {message}"


def _unknown(loc: tuple[Any, ...]) -> str:
    section: Any = Settings
    for part in loc[:-1]:
        section = section.model_fields[part].annotation
    return f"unknown key; known here: {', '.join(section.model_fields)}"
