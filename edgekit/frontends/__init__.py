"""Layer 1: frontends read a source into a Model. One file each; the base is in `base`."""
