"""Spikewise: train an image classifier on Ray Train and explain every jump of its validation loss.

The map, in the order of a run (an arrow never points back up):

    config       typed, strict run configuration (TOML)
    records      the values that cross module borders
    store        what every store can do, and the store that is a folder
    objectstore  the store that is an S3 bucket                     (the only door to boto3)
    index        a listing -> Manifest, and its split into training and validation
    decode       one image file -> the pixels trained on
    shards       packed images: the files and the local cache
    pack         Manifest -> shards in object storage, decoded once, in parallel
    pipeline     shards -> the batches of one worker
    layers       BatchNormalization and Dropout for several workers
    model        the network, and its export as a plain Keras model
    step         one synchronous update over all workers            (the only door to tf.distribute)
    checkpoint   save, commit, find the newest valid one; the lease on a run's name
    exporter     epoch reports -> Prometheus                        (the only door to prometheus_client)
    scores, charts, page, report    HTML, JSON and PNG of a run
    results      what a run stores about itself, and how it is read again
    loop         what one worker does, top to bottom
    cluster      Ray: a cluster, its room, a mailbox, the backend   (with launch and loop, the only door to ray.train)
    launch       the driver: lease, data, workers, metrics, report
    console      what a person sees while it runs;  plan  what a run would do

Importing `trainer` imports nothing heavy.
"""

from spikewise import __version__
from spikewise.errors import UserError

__all__ = ["UserError", "__version__"]
