"""Layer 1: passes turn a Model into a Model. One file each; the base is in `base`."""
