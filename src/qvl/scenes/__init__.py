"""Drawn scenes with known truth, for every task of the product: what `sprout` is trained and scored on."""
