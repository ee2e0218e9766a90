"""Layer 1: runners execute run plans on devices. One file each; the base is in `base`."""
