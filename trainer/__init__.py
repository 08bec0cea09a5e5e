"""Spikewise: train an image classifier on Ray Train and explain every jump of its validation loss.

The map, in the order of a run (an arrow never points back up):

    config       typed, strict run configuration (TOML)
    records      the values that cross module borders
    objectstore  S3 buckets and local folders behind one interface  (the only door to boto3)
    index        a listing -> Manifest, and its split into training and validation
    pack         Manifest -> uint8 shards in object storage, decoded once, in parallel
    pipeline     shards -> the batches of one worker
    layers       BatchNormalization (fused, synchronized) and Dropout for several workers
    model        the network, and its export as a plain Keras model
    step         one synchronous update over all workers            (the only door to tf.distribute)
    checkpoint   save, commit, find the newest valid one; the lease on a run's name
    exporter     epoch reports -> Prometheus                        (the only door to prometheus_client)
    report       HTML, JSON and PNG of a run
    loop         what one worker does, top to bottom
    launch       Ray Train: scaling, failures, the head's services  (with loop, the only door to ray.train)

Importing `trainer` imports nothing heavy.
"""

__version__ = "0.1.0"


class UserError(ValueError):
    """Something that a user can mend. The message is for them: what was wrong, the value, the bound, the way out."""
