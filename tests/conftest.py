import signal

pytest_plugins = ["tests.devices.fixtures", "tests.skips"]

# A shell that starts the tests in the background has Ctrl-C ignored, and children inherit that: the tests that
# interrupt a command would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
