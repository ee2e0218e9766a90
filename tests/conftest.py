pytest_plugins = ["tests.devices.fixtures", "tests.skips"]
