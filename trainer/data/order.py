"""The order of an epoch: a function of seed and epoch alone, hence the same for any number of workers. Pure NumPy.

Shapes: n training images, B images of a global batch.
"""

import numpy as np


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The epoch's random generator. Draw the order first, then the augmentation."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))


def epoch_order(generator: np.random.Generator, images: int, batch_size: int) -> np.ndarray:
    """The positions of the training images in each global batch, int64 [steps, B]. Drops the last incomplete batch."""
    steps = images // batch_size
    return generator.permutation(images)[: steps * batch_size].reshape(steps, batch_size)
