"""Why the validation loss jumped: detect (pure), probe (counterfactuals on the network), attribute (pure).

records    the values: Spike, Probe, Cause, Diagnosis
detect     per-example losses of each epoch in, spikes out
"""
