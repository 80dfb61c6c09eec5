"""What to ask and how to read the answer: every job of the product, defined once."""
