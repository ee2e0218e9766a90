"""Files that run on a Mac, beside the agent's own: what a Mac knows of itself and of the phones attached to it."""
