"""The one door to a model: requests in, completions out, whatever computes them."""
