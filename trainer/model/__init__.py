"""The model that is trained.

question  the network of the question that README.md opens with
layers    BatchNormalization and Dropout that behave on several workers as on one
export    the trained model as a plain Keras model
"""
