"""The Qwen-VL family in plain PyTorch: tensors in, tensors out; no text, no files, no requests."""
