"""Parts of the runner that goes through a Mac."""
