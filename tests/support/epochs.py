"""Reports of made-up epochs."""

from dataclasses import replace

from trainer.epoch import EpochReport


def report(epoch: int, validation_loss: float = 0.5, **changes: float) -> EpochReport:
    made = EpochReport(
        epoch=epoch,
        step=10 * epoch,
        train_loss=0.7 / epoch,
        train_accuracy=0.5,
        train_loss_inference=0.6 / epoch,
        validation_loss=validation_loss,
        validation_accuracy=0.75,
        learning_rate=1e-4,
        gradient_norm=1.5,
        update_norm=0.01,
        images_per_second=100.0,
        input_wait=0.25,
        step_seconds=0.3,
        seconds=4.0,
        restarts=1,
    )
    return replace(made, **changes)
