"""Training on several workers as if on one.

group                the workers, and sums over them
step                 one training step, and inference
chunk                the steps of an epoch: a call a step, or many compiled steps a call
evaluate             exact evaluation on all workers
distributed_network  the model as the diagnosis' probes see it
devices              threads and GPUs
"""
