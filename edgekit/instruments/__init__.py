"""Layer 1: instruments that tell how much energy a device takes."""
