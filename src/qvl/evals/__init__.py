"""How right answers are: figures of a model over things whose truth is known."""
