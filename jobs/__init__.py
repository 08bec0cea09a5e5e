"""What a person runs: train, pack, submit, report, demo data, a local object store."""
