"""Layer 0: the words of edgekit, as types. Imports no vendor library and, of this package, only itself."""
