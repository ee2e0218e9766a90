"""Compress, convert, verify, deploy and measure neural networks on phones, boards and PCs."""
