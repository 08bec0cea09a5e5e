"""The commands: train, report and demo on this machine; submit, cluster and cluster_data for a Kubernetes cluster."""
