"""Ours beside the seed's and other people's ways, both sides measured in one run.

Here lives what runs a peer and times it; its figures go into chapters as ratios.
Not here: anything that the rest of the package needs.
"""
