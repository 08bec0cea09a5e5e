"""The demo: real photographs and forgeries of them, in a local S3 server, and a training run on them."""

SOURCE = "s3://spikewise/photographs"
GROUPS = "^[^/]+/([^/]+)/"
"""`data.group_by` for the demo's keys: all crops of one photograph stay on one side of the split."""
