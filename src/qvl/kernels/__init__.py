"""Linear layers whose weights are packed for a CPU, in C where a compiler is at hand."""
