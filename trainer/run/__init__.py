"""A run of the job: the driver, which runs once, and the workers.

driver        the story of a run                        worker     the story of an epoch
preparation   images -> packed, split and checked       resume     what a checkpoint holds, and how a run resumes from it
ray_cluster   the Ray cluster                           recording  what is stored for the report
ray_train     the worker group and its restarts         finish     the model that a run leaves behind
signals       a request to stop                         divergence what a run does when training diverges
replay        which epochs to train again, and how      proving    trains them again, and judges the remedies
status, console, monitoring   what follows from the events: the run's status, printed lines, metrics

task, events, mailbox         what the driver sends to the workers, and what they report
plan                          what a run would do, for --dry-run
"""
