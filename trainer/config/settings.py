"""All sections together: the resolved configuration of a run, and what its sections demand of each other."""

import json
from typing import Any, Self

from pydantic import model_validator

from trainer.config.sections import (
    S3,
    Augmentation,
    Checkpoint,
    Data,
    Diagnosis,
    Launch,
    Metrics,
    Model,
    Optimizer,
    Pipeline,
    Run,
    Section,
    Training,
)


class Settings(Section):
    """The resolved configuration of a run: every key has a value."""

    data: Data
    run: Run = Run()
    s3: S3 = S3()
    pipeline: Pipeline = Pipeline()
    augmentation: Augmentation = Augmentation()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    launch: Launch = Launch()
    checkpoint: Checkpoint = Checkpoint()
    diagnosis: Diagnosis = Diagnosis()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.training.batch_size % self.launch.workers:
            lower = self.training.batch_size - self.training.batch_size % self.launch.workers
            fits = f"{lower} or {lower + self.launch.workers}" if lower else str(self.launch.workers)
            raise ValueError(
                f"training.batch_size = {self.training.batch_size} is not divisible by launch.workers = {self.launch.workers}. "
                f"Fix: use {fits}"
            )
        epochs, optimizer = self.training.epochs, self.optimizer
        own = 'model.statistics = "precise"' if self.model.statistics == "precise" else "optimizer.ema" if optimizer.ema else ""
        if own and self.launch.workers > 1 and self.model.batch_normalization != "synchronized":
            raise ValueError(
                f"{own} needs the statistics of the global batch, but with model.batch_normalization = "
                f'"{self.model.batch_normalization}" each of several workers has its own. Fix: use "synchronized"'
            )
        if optimizer.warmup_epochs >= epochs:
            raise ValueError(
                f"optimizer.warmup_epochs = {optimizer.warmup_epochs:g} is not shorter than the run (training.epochs = {epochs}). "
                "Fix: lower it"
            )
        if optimizer.step_epochs and optimizer.step_epochs[-1] >= epochs:
            raise ValueError(
                f"optimizer.step_epochs = {optimizer.step_epochs} goes beyond the run (training.epochs = {epochs}). "
                f"Fix: list epochs below {epochs}"
            )
        if (self.model.precision, self.model.batch_normalization) == ("float64", "fused"):
            raise ValueError(
                'model.batch_normalization = "fused" has no kernel for model.precision = "float64". '
                'Fix: use "synchronized" or "keras"'
            )
        return self

    @property
    def local_folders(self) -> tuple[str, ...]:
        """The folders of its machine that a run writes to."""
        return self.run.output, self.pipeline.cache_dir

    def as_dict(self) -> dict[str, Any]:
        """All values as JSON types, the sections in a fixed order."""
        return json.loads(self.model_dump_json())
