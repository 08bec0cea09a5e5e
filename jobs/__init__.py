"""The commands: train, report, replay and demo on this machine; submit, cluster and cluster_data for a Kubernetes cluster.

Owns command lines and exit codes; kubernetes/ owns what happens on a cluster, and trainer/ what happens in a run.
"""
