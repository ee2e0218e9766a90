"""The training loop that every pass which trains shares, and what quantization-aware training adds to it."""
