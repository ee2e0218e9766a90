"""One file a revision, named `v<revision>_<what>.py`. A released one is never changed."""
