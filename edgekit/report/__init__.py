"""Layer 3: what was measured, shown: one renderer a file."""
