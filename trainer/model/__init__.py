"""The model that is trained.

question  the network of the question that README.md opens with
module    the source of a network of the user's own, on its way to the workers
layers    BatchNormalization and Dropout that behave on several workers as on one
export    the trained model as a plain Keras model
"""
