"""The workers of a run, and sums over them. The only door to tf.distribute."""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


class Group:
    """The workers of a run and this worker's rank among them, as TF_CONFIG names them; one worker without TF_CONFIG.

    Build it before TensorFlow runs any operation.
    """

    def __init__(self) -> None:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        self.size: int = len(cluster.get("cluster", {}).get("worker", [0]))
        self.rank: int = cluster.get("task", {}).get("index", 0)
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy() if self.size > 1 else tf.distribute.get_strategy()
        # tf.identity: the all-reduce must know the device of its input, and a function's argument has none
        self._sum = tf.function(lambda value: self.run(lambda v: self.all_reduce(tf.identity(v)), value), reduce_retracing=True)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `function` in the replica context, where `all_reduce` works. Call it inside a tf.function."""
        return self._strategy.run(function, args=arguments) if self.size > 1 else function(*arguments)

    def all_reduce(self, tensors: Any) -> Any:
        """Sums a tensor, or each tensor of a list, over all workers."""
        if self.size == 1:
            return tensors
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums an array over all workers. All workers must call it together; all get the same result."""
        return self._sum(tf.constant(values)).numpy() if self.size > 1 else values

    def gather(self, *values: float) -> np.ndarray:
        """This worker's k values -> those of all workers, float64 [workers, k]. All workers must call it together."""
        rows = np.zeros((self.size, len(values)))
        rows[self.rank] = values
        return self.sum(rows)
