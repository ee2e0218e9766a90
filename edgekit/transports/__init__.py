"""Layer 1: transports carry bytes and commands to a device. One file each; the base is in `base`."""
