"""The sections of the configuration, key by key. Docstrings below the keys give units and bounds.

A section checks its own keys; `Settings` checks those that concern several sections.
"""

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]  # operating systems accept no longer timeouts
Bytes = Annotated[int, Field(ge=1)]
LocalFolder = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


def _regular_expression(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}. Fix: correct the pattern") from None
    return pattern


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$")] | None = None
    """Name of the run in storage and metrics: at most 52 lower-case letters, digits and dashes. Starting a run under an existing
    name resumes it. Default: the name of the configuration file and the time."""
    storage: Annotated[str, Field(min_length=1)] = "s3://spikewise/runs-and-shards"
    """Where shards, checkpoints and reports are stored: `s3://bucket/prefix` or a folder."""
    output: LocalFolder = "runs"
    """Local folder of the reports, one folder for each run. `~` is the home folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the weights, the order of images, augmentation and dropout."""


class Data(Section):
    source: Annotated[str, Field(min_length=1)]
    """Where the images are: `s3://bucket/prefix` or a folder. Required."""
    classes: dict[str, str] = {}
    """Class name -> key prefix below `source`, such as `authentic = "Au/"`. The order defines the label numbers, from 0."""
    class_pattern: str | None = None
    """Instead of `classes`: a regular expression, searched in the key below `source`. Its group `class` is the class name."""
    labels: str | None = None
    """Instead of `classes`: a CSV or Parquet file, or its `s3://` URL, with the columns `key` (below `source`) and `label`, and
    optionally `group` and `split` (training, validation, test or empty). Classes are numbered by name. See docs/data.md."""
    validation: str | None = None
    """A validation set of its own: `s3://bucket/prefix` or a folder, labelled like `source`. All of `source` is then training
    data, and `validation_fraction` is not used. Default: a part of `source`."""
    test: str | None = None
    """A test set: `s3://bucket/prefix` or a folder, labelled like `source`. Evaluated once, after training, with the weights of
    `model.keras`. Default: none."""
    group_by: str | None = None
    """A regular expression, searched in the key below `source`. Its first group names the source photograph. Images with the same
    name stay on one side of the split. A key that does not match has no group. Default: no groups."""
    image_size: tuple[Annotated[int, Field(ge=8, le=2048)], Annotated[int, Field(ge=8, le=2048)]] = (64, 64)
    """Height and width in pixels, each 8 to 2048, to which every image is resized."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the groups (without `group_by`: of the distinct images) used for validation, above 0 and below 1."""
    group_near_duplicates: bool = False
    """Keep near copies (re-encoded, resized or lightly edited images) on one side of the split. Near copies of images whose side is
    given (by `validation`, `test` or the column `split`) are left out of training instead. Either way they are reported."""
    min_validation: Positive = 20
    """Minimum number of validation images of each class; with fewer, no run starts."""
    max_quarantined: Fraction = 0.01
    """Maximum fraction of images that cannot be decoded, 0 to 1; with more, no run starts."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Maximum number of pixels of an image. Larger ones (decompression bombs) are quarantined without decoding."""

    @field_validator("class_pattern", "group_by")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _regular_expression(pattern)

    @model_validator(mode="after")
    def _classes_one_way(self) -> Self:
        if sum(map(bool, (self.classes, self.class_pattern, self.labels))) != 1:
            raise ValueError("exactly one of classes, class_pattern and labels is needed. Fix: set one of them")
        if self.class_pattern and "class" not in re.compile(self.class_pattern).groupindex:
            raise ValueError(f"class_pattern = {self.class_pattern!r} has no group `class`. Fix: add (?P<class>...)")
        if self.classes and len(self.classes) < 2:
            raise ValueError(f"classes has only {', '.join(self.classes)}, at least two are needed. Fix: add the other class")
        if self.group_by and re.compile(self.group_by).groups < 1:
            raise ValueError(f"group_by = {self.group_by!r} has no group. Fix: put the name of the source photograph into (...)")
        for a, left in self.classes.items():
            for b, right in self.classes.items():
                if a != b and left.startswith(right):
                    raise ValueError(f'prefix "{left}" of class {a} is inside "{right}" of class {b}. Fix: use separate prefixes')
        return self


class S3(Section):
    """How to reach S3. Credentials come from the usual sources of the AWS SDK, never from this file."""

    endpoint_url: str | None = None
    """Address of the server, such as http://host:8333. Default: AWS_ENDPOINT_URL, or AWS itself."""
    region: str | None = None
    """Region of the bucket. Default: that of the AWS SDK."""
    path_style: bool = False
    """Use `endpoint/bucket/key` instead of `bucket.endpoint/key`. Most servers other than AWS need it."""
    anonymous: list[str] = []
    """Names of public buckets, which are read without credentials."""
    requester_pays: bool = False
    """Agree to pay for requests to buckets whose owner demands it."""
    kms_key: str | None = None
    """ID or ARN of the KMS key that encrypts what is written. Default: the bucket's own encryption."""
    connect_timeout: Seconds = 10.0
    """Seconds to wait for a connection, up to 1e6."""
    read_timeout: Seconds = 60.0
    """Seconds without received data after which a request is retried, up to 1e6."""
    max_attempts: Positive = 5
    """Attempts of a request, including the first, with exponential backoff and jitter in between."""


class Pipeline(Section):
    memory_bytes: Bytes = 2_000_000_000
    """Largest data set, in bytes of pixels, that each worker keeps in memory (on the GPU if there is one). A larger one stays on
    the local disk and is read batch by batch."""
    cache_dir: LocalFolder = ".cache/shards"
    """Local folder of packed shards and compiled programs, shared by all workers of a machine. `~` is the home folder."""
    cache_max_bytes: Bytes = 100_000_000_000
    """Bytes of packed shards that `cache_dir` may hold. Beyond it, and after 30 days without use, the least recently used packs are
    deleted. The pack of the run itself always stays."""


class Augmentation(Section):
    """Random changes of the training images, drawn anew in every epoch and applied in this order. Default: none.
    docs/augmentation.md says which of them suit which task."""

    flip: bool = False
    """Mirror half of the images left-right."""
    flip_vertical: bool = False
    """Mirror half of the images top-bottom."""
    shift: Annotated[int, Field(ge=0, le=64)] = 0
    """Shift by up to this many pixels in each direction, 0 to 64. Edge pixels are repeated."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotate by up to this many degrees in either direction, 0 to 180. Edge pixels are repeated."""
    crop: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    """Crop to a random part and enlarge it to the full size. Smallest side of the part as a fraction of the image's side, 0.1 to 1;
    1 keeps the whole image."""
    brightness: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Multiply all pixel values by 1 plus or minus up to this fraction, 0 to 0.9."""
    contrast: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Multiply the distance of all pixel values from the image's mean by 1 plus or minus up to this fraction, 0 to 0.9."""
    noise: Annotated[float, Field(ge=0, le=64)] = 0.0
    """Add Gaussian noise, independent in each pixel and channel. Largest standard deviation in pixel values (of 0 to 255), 0 to 64;
    each image draws its own below that."""
    jpeg: Annotated[int, Field(ge=0, le=95)] = 0
    """Compress again as JPEG (4:2:0). Lowest quality, 1 to 95; each image draws its own from there to 95. 0 turns it off."""
    cutout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Cover a square with gray. Largest side as a fraction of the image's shorter side, 0 to 1; each image draws its own below
    that."""


class Model(Section):
    network: str = "question"
    """`question`: the network of the question. `my_module:build`: a function build(image_shape, classes, **arguments) of your own
    that returns a keras.Model; the module lies in the folder of the configuration file or in the current directory.
    `keras.applications:EfficientNetV2B0`: that network of Keras, or another one, with a new last layer."""
    arguments: dict[str, Any] = {}
    """Further arguments of that function. For keras.applications: `dropout` before the last layer, and the network's own arguments,
    such as `weights = "imagenet"`."""
    weights: str | None = None
    """Weights to start from: a `.keras` or `.weights.h5` file of the same network, local or `s3://bucket/key`."""
    trainable: str | None = None
    """A regular expression, searched in the path of each layer, such as `backbone/conv1`. Layers that do not match are frozen.
    Default: all layers learn."""
    data_format: Literal["channels_last", "channels_first"] = "channels_last"
    """Order of the axes inside the network."""
    batch_normalization: Literal["synchronized", "fused", "keras"] = "synchronized"
    """`synchronized`: fused kernels, statistics of the global batch, bit-identical for any number of workers. `fused`: fused
    kernels, each worker uses the statistics of its part. `keras`: Keras' own layer, each worker uses its part."""
    statistics: Literal["moving", "precise"] = "moving"
    """Statistics of BatchNormalization for evaluation and export. `moving`: the layers' moving averages. `precise`: estimated anew
    over the epoch's training images, without dropout, at the end of each epoch (Wu & Johnson 2021)."""
    momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    """BatchNormalization: fraction of the moving statistics that each step keeps, above 0 and below 1. Default: as the network
    says; 0.99 in the question's."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None
    """BatchNormalization: what is added to the variance, above 0 and below 1. Default: as the network says; 1e-3 in the
    question's."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """One rate for all Dropout layers, at least 0 and below 1. Default: as the network says; 0.25, 0.25 and 0.5 in the question's,
    which `arguments = { dropout = [0.25, 0.25, 0.5] }` sets one by one."""
    precision: Literal["float32", "mixed_bfloat16", "float64"] = "float32"
    """Arithmetic of the layers. `mixed_bfloat16`: weights, losses and statistics stay float32. `float64`: slow; for comparing
    runs on different numbers of workers, which differ in float32 by rounding."""

    @field_validator("trainable")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _regular_expression(pattern)


class Optimizer(Section):
    name: str = "Adam"
    """One of Keras' optimizers, such as `Adam`, `AdamW`, `SGD` or `Lion`."""
    arguments: dict[str, Any] = {}
    """Further arguments of that optimizer, such as `beta_2 = 0.99`."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """The learning rate after the warm-up."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """`cosine`: from learning_rate down to 0 at the end of training.epochs. `step`: times step_factor at the end of each of
    step_epochs."""
    warmup_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Epochs over which the learning rate rises linearly from 0 to learning_rate; may be a fraction."""
    step_epochs: list[Positive] = []
    """For schedule = "step": the epochs after which the learning rate changes, in order."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Decoupled weight decay: each step subtracts learning_rate times this from every weight. Default: the optimizer's own."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest L2 norm of the gradient of all weights together; a longer one is shortened to it. Default: no bound."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and export an exponential moving average of the weights, with precise BatchNormalization statistics. Each step keeps
    this fraction of the average, above 0 and below 1. Default: the weights themselves."""

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if (self.schedule == "step") != bool(self.step_epochs):
            raise ValueError('step_epochs and schedule = "step" belong together. Fix: set both or neither')
        if sorted(set(self.step_epochs)) != self.step_epochs:
            raise ValueError(f"step_epochs = {self.step_epochs} does not rise. Fix: list each epoch once, in order")
        return self


class Training(Section):
    epochs: Positive = 100
    batch_size: Positive = 32
    """Images of a global batch, over all workers. Must be divisible by launch.workers."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of each label that is spread evenly over all classes during training, at least 0 and below 1. Reported losses are
    without it."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """Weight of each class in training, such as `{ authentic = 1.0, fake = 2.0 }`. `balanced`: inversely proportional to the number
    of training images. Reported losses are without it. Default: every image counts the same."""
    train_sample: Positive = 1000
    """Size of the fixed sample of training images that is also evaluated in inference mode, for a training loss comparable with
    the validation loss."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Stop after this many epochs without a lower validation loss; 0: never."""
    keep: Literal["last", "best"] = "last"
    """The epoch whose weights go into `model.keras` and the per-image results of the report. `best`: that of the lowest validation
    loss."""


class Diagnosis(Section):
    """How the run explains its validation loss, and what it does about it (docs/diagnosis.md)."""

    sensitivity: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """How small a rise of the validation loss is an alarm, 0.1 to 10: every limit is divided by it. With 2, half the rise is an
    alarm; healthy runs then raise alarms more often."""
    budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Fraction of the training time, 0 to 1, that measuring what the validation loss is made of (60 %) and probes of smaller rises
    that turn out to be no spikes (30 %) may take. 0 turns both off; spikes are explained all the same."""
    prove: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Time for proving the remedies of the worst spikes after the last epoch, as a fraction of the time that the run has trained; 0
    proves none. A fraction costs a short and a long run alike, and nothing if there was no spike."""
    on_divergence: Literal["none", "stop", "roll_back"] = "none"
    """What to do when training diverges. `none`: go on while the loss is finite. `stop`: end the run. `roll_back`: go back to the
    checkpoint before, with the settings of the remedy (a lower learning rate)."""
    max_roll_backs: Positive = 2
    """Number of times that `roll_back` goes back, over all starts of the run. After that, a divergence ends the run."""


class Launch(Section):
    workers: Positive = 1
    """Number of workers."""
    gpu: bool = False
    """Whether each worker uses one GPU."""
    cpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """CPU cores of each worker; 0 divides the cores of the cluster evenly."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Number of times that all workers are restarted after one of them has died. After that, the job fails."""
    start_timeout: Seconds = 600.0
    """Seconds to wait until the network is built and checked, and then again until all workers are placed and have imported
    TensorFlow, up to 1e6."""
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = 500_000_000
    """Size of Ray's shared-memory object store, at least 80 MB. Applies if this job starts Ray itself."""


class Checkpoint(Section):
    keep_last: Positive = 2
    """Number of newest checkpoints to keep. The best one is always kept as well."""
    keep_spikes: Annotated[int, Field(ge=0)] = 3
    """Number of spikes, the newest and the worst ones, before which the checkpoint is kept as well: to train them again, or to go
    back."""
    lease_seconds: Seconds = 15.0
    """Seconds without a heartbeat after which a run's driver counts as dead and another job may take over, up to 1e6."""


class Metrics(Section):
    host: str = "0.0.0.0"
    """Address on which the driver serves its metrics to Prometheus. 0.0.0.0: all addresses, of IPv6 too."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9400
    """Port of that endpoint, 0 to 65535; 0 picks a free one."""
    linger: Annotated[float, Field(ge=0, le=1e6)] = 60.0
    """Maximum seconds to wait after the last epoch until Prometheus has scraped the final values, up to 1e6."""
