"""The store of long work: what is asked of whom, what came of it, what a person made of that."""
