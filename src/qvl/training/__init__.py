"""`sprout`, the embedded model: the scenes it learns from, its vocabulary, its training, its scores."""
