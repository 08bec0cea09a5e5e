"""The order of an epoch: a function of seed and epoch alone, so that it is the same on any number of workers. Pure NumPy.

Shapes: n training images, B images of a global batch.
"""

import numpy as np


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The epoch's random numbers: first its order is drawn from them, then its augmentation."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))


def epoch_order(generator: np.random.Generator, images: int, batch_size: int) -> np.ndarray:
    """Positions of the training images in the epoch's global batches, int64 [steps, B]; the last incomplete batch is dropped."""
    steps = images // batch_size
    return generator.permutation(images)[: steps * batch_size].reshape(steps, batch_size)
