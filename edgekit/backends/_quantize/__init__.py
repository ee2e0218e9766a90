"""What the backends' quantizations share: ranges, rounding, and which layer of the torch program a weight is of."""
