"""Why the validation loss jumped: detect (pure), probe (counterfactuals on the network), attribute (pure).

records        the values: Spike, Probe, Cause, Diagnosis
detect         per-example losses of each epoch in, spikes out
steps          what was unusual in how an epoch was trained
probes         the validation set evaluated again with one thing changed
attribute      what the probes found -> ranked causes, each with evidence and a remedy
diagnostician  the one door: fed once an epoch
suspects       single images that made a rise, and what each looks like
words          diagnoses in plain words

For Keras users, without Ray, a cluster or storage (docs/diagnosis.md):

callback       SpikeDiagnosis, for a plain model.fit
offline        explain, for two sets of per-example losses and a model
keras_network  a plain Keras model as the probes see it
keras_data     their examples and loss, checked

Importing this package imports nothing heavy; `callback` and `offline` import Keras and TensorFlow, nothing else imports them.
"""

__version__ = "0.1.0"
