"""Why the validation loss jumped: detect (pure), probe (counterfactuals on the network), attribute (pure).

records        the values: Spike, Probe, Cause, Diagnosis
detect         per-example losses of each epoch in, spikes out
steps          what was unusual in how an epoch was trained
probes         the validation set evaluated again with one thing changed
attribute      what the probes found -> ranked causes, each with evidence and a remedy
diagnostician  the one door: fed once an epoch
keras_network  a plain Keras model as the probes see it
words          diagnoses in plain words
"""
