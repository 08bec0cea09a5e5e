"""The job: trains an image classifier on Ray Train from the images of a bucket, and explains every jump of its validation loss.

The rooms, from bottom to top. A module imports from rooms below its own, never from above; each vendor's package has one door.

    config, epoch, formatting   the run's configuration (TOML); the summary of an epoch; numbers as text
    storage/                    stores (a folder, an S3 bucket), checkpoints, the lease on a run's name, results
    data/                       a listing of images -> a split, packed shards, and the batches of each worker
    model/                      the model, its layers for several workers, its export as a plain Keras model
    engine/                     the workers as a group, one training step, exact evaluation, devices
    metrics                     Prometheus metrics
    report/                     the report of a run: HTML, JSON, PNG
    run/                        the driver and the workers

In run/, `driver` is the story of a run and `worker` the story of an epoch. The other modules are their parts:

    driver   preparation                   images -> packed, split and checked
             ray_cluster, ray_train        the cluster, and the worker group with its restarts
             status, console, monitoring   follow the events: what is known, what is printed, the metrics
             signals                       SIGTERM and Ctrl-C as a request to stop
    both     task, events, mailbox         what the driver sends to the workers, and what they report
    worker   resume                        what a checkpoint holds, and how a run resumes from it
             recording, finish             what is stored for the report, and the model at the end
    neither  plan                          what a run would do, for --dry-run

`import trainer` loads nothing heavy.
"""

from spikewise import __version__
from spikewise.errors import UserError

__all__ = ["UserError", "__version__"]
