"""What the pass prune_channels is made of: groups of channels that go together, how dear each is, and the cut."""
