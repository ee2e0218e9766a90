"""Layer 1: backends turn a Model into an Artifact. One file each; the base is in `base`."""
