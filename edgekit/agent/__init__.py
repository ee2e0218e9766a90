"""Layer 1: the files that run on a device. Nothing in edgekit imports them; they are pushed as they are."""
