"""The tests; a package, so that helpers in it are imported by one name wherever pytest is started."""
