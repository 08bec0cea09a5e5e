"""What the commands for a Kubernetes cluster share, and the program of its pods.

kubectl     the only door to kubectl
manifests   the objects of a run
runs        finds, creates and removes them
pods        what they say about the run
watch       follows a run until it ends
entrypoint  the program of every pod
"""
