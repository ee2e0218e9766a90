"""What the pass low_rank is made of: factorizations of one layer, and how their ranks are chosen."""
