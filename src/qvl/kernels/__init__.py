"""What PyTorch alone does too slowly: linear layers packed for a CPU in C, attention on a GPU in Triton."""
