"""The job: trains an image classifier with Ray Train on the images in a bucket, and explains every jump of its validation loss.

The rooms, from bottom to top. A module imports only from its own room and the rooms below it, and a third-party package is used
only by the modules that are its doors; tests/test_layering.py checks both.

config, epoch, formatting   the run's configuration (TOML); the summary of an epoch; numbers as text
storage/                    stores (a folder or an S3 bucket), checkpoints, the lease on a run's name, results
data/                       a listing of images -> a split, packed shards, and the batches of each worker
model/                      the model, its layers for several workers, its export
engine/                     the workers as a group, a training step, exact evaluation
metrics                     Prometheus metrics
report/                     the report of a run: HTML, JSON, PNG
run/                        the driver and the workers

`import trainer` loads nothing heavy.
"""

from spikewise import __version__
from spikewise.errors import UserError

__all__ = ["UserError", "__version__"]
