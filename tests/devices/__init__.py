"""Devices for tests: real servers on the loopback interface."""
