"""Many processes: a chapter under papermill, the same once per rank by any launcher, and how fast ranks talk.

Here lives the starting and ending of ranks; what one rank finds about itself lives in `machine`.
Not here: what the ranks compute. No scheduler of our own.
"""
