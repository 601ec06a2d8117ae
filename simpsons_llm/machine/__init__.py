"""The machine room: settings of a job, run folders and locks, devices, groups of ranks, the command line.

Everyone may import it; it knows nothing of scripts or models.
One exception stands above all: `cli`, which imports everyone and is imported by no one.
"""
