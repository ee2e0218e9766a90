from __future__ import annotations

import pytest

from tests.devices.sshd import Sshd
from tests.e2e.kit import PROJECT, QUICK, Person, write
from tests.e2e.site import LOOP_TARGET, Site


@pytest.fixture(scope="session")
def wheel_cache(tmp_path_factory):
    """Runtime wheels are fetched once for all tests."""
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """Exported artifacts of the small project, for the target loop-x86, by recipe: `folded` and `plain`."""
    person = Person(tmp_path_factory.mktemp("builder"))
    write(
        person.cwd, {**PROJECT, "targets/loop-x86.yaml": LOOP_TARGET, "plain.yaml": "schema_version: 1\npasses: []\n"}
    )
    for name, recipe in (("folded", "recipe.yaml"), ("plain", "plain.yaml")):
        person.run("compile", "-t", "loop-x86", "-b", "openvino", "-r", recipe, "--out", person.folder / name).check()
    return {name: person.folder / name / "loop-x86-openvino-float32" for name in ("folded", "plain")}


@pytest.fixture
def person(tmp_path, wheel_cache):
    person = Person(tmp_path / "person")
    (person.cache / "wheels").symlink_to(wheel_cache)
    yield person
    person.leave()


@pytest.fixture
def site(person, make_sshd):
    """A project with the target loop-x86, and an empty device of that target, `pi`, behind a real sshd."""
    return Site(person, make_sshd())


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory, wheel_cache, login_key):
    """The same, where one deploy was done already; what each test leaves there is a working release."""
    person = Person(tmp_path_factory.mktemp("shared"))
    (person.cache / "wheels").symlink_to(wheel_cache)
    with Sshd(person.folder / "sshd", login_key) as sshd:
        site = Site(person, sshd)
        site.first = person.run("deploy", "--target", "loop-x86", "--json", *QUICK).check()
        yield site
