"""Handwritten digits and a small network for them."""

import keras
from sklearn.datasets import load_digits

IMAGES, LABELS = load_digits().images / 16, load_digits().target
TRAINING = IMAGES[:1200], LABELS[:1200]
VALIDATION = IMAGES[1200:], LABELS[1200:]
DAMAGED = 30
"""The batch that Damaged damages."""


class Damaged(keras.utils.PyDataset):
    """The digits in batches of 32. In the sixth epoch one batch is not scaled."""

    def __init__(self, epoch=0):
        """`epoch`: number of the last epoch before the first one that is read."""
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self):
        self.epoch += 1

    def __len__(self):
        return 37

    def __getitem__(self, number):
        rows = slice(32 * number, 32 * number + 32)
        return IMAGES[rows] * (255 if self.epoch == 6 and number == DAMAGED else 1), LABELS[rows]


def network(momentum=0.9, optimizer=None, **options):
    """A compiled network with BatchNormalization and dropout, the same each time."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.BatchNormalization(momentum=momentum),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer or keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", **options)
    return model
