"""What comes after a run: a file of each kind, made of `Finished` items; whole, or not there at all.

A module for each format, with `write(finished, target, ...)`. They read the items once, and hold no more
of them than the format makes them.
"""
