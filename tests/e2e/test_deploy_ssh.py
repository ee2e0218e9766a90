"""`edgekit deploy` over SSH: a real sshd, real runtimes from the package index, no root, no network on the device."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess

import numpy as np
import pytest

from tests.devices.sshd import eventually, make_key
from tests.e2e.kit import QUICK, write, write_devices

pytestmark = [pytest.mark.slow, pytest.mark.network]


def only(document):
    """The one result of a report."""
    (result,) = document["results"]
    return result


def artifact_times(person):
    return {path: path.stat().st_mtime_ns for path in (person.cache / "artifacts").rglob("*") if path.is_file()}


def test_the_result_has_the_agreed_fields(shared_site):
    result = only(shared_site.first.json)
    latency = result["latency_ms"]
    assert latency.keys() >= {"min", "mean", "p50", "p90", "p95", "p99", "max", "std", "cv"}
    assert latency["p50"] == pytest.approx(statistics.median(result["samples_ms"]))
    numbers = ["first_inference_ms", "load_ms", "init_ms", "throughput_ips", "peak_rss_mib", "peak_pss_mib"]
    numbers += ["runtime_baseline_mib", "model_delta_mib", "artifact_bytes", "download_bytes", "bytes_sent"]
    assert [name for name in numbers if not result[name] > 0] == []
    assert len(result["warmup_ms"]) > 0
    conditions = {"cpu_model", "cores", "governor", "freq_mhz_before", "freq_mhz_after", "temp_c_before"}
    conditions |= {"temp_c_after", "throttled", "battery_pct", "os", "kernel", "runtime", "runtime_version", "threads"}
    assert result["conditions"].keys() >= conditions | {"delegate", "xnnpack_applied", "emulated"}
    assert result["conditions"]["runtime"] == "openvino"
    assert result["conditions"]["emulated"] is False
    assert (result["transport"], result["device"], result["target"]) == ("ssh", "pi", "loop-x86")
    assert result["released"] is True


def test_accuracy_stands_side_by_side(shared_site):
    accuracy = only(shared_site.first.json)["accuracy"]
    assert accuracy["split"] == "test"
    assert accuracy["examples"] == 60
    source = accuracy["source"]["top1"]
    assert 0.5 < source < 1
    assert accuracy["host"]["top1"] == accuracy["device"]["top1"] == source
    assert accuracy["agreement"] == {"scores": 1.0}


def test_everything_on_the_device_is_in_one_folder_of_our_own(shared_site):
    assert [path.name for path in shared_site.sshd.home.iterdir()] == [".edgekit"]
    (runtime,) = (shared_site.root / "runtimes").iterdir()
    assert (runtime / "openvino").is_dir()


def test_programs_find_the_model_at_a_stable_path(shared_site):
    folder = shared_site.root / "models" / "corners" / "current"
    record = json.loads((folder / "release.json").read_text())
    assert (folder / record["main"]).is_file()
    for entry in record["files"]:
        assert hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
    assert record["name"] == "corners"


def test_a_second_deploy_converts_nothing_and_sends_nothing(shared_site, record_property, capsys):
    person = shared_site.person
    person.run("deploy", "--target", "loop-x86", "--quiet", *QUICK).check()
    before = artifact_times(person)
    shared_site.commands()
    result = only(person.run("deploy", "--target", "loop-x86", "--json", *QUICK).check().json)
    assert result["bytes_sent"] == 0
    assert result["conversion"]["cached"] is True
    assert artifact_times(person) == before
    asked = shared_site.commands()
    assert len(asked) <= 3, asked
    inference = (sum(result["samples_ms"]) + sum(result["warmup_ms"])) / 1000
    visit = sum(result["seconds"].values())
    record_property("visit_seconds", visit)
    with capsys.disabled():
        print(f"\n  second deploy: {visit:.2f} s at the device, of which {inference:.2f} s inference;", end=" ")
        print(", ".join(f"{step} {seconds:.2f}" for step, seconds in result["seconds"].items()))


def test_another_recipe_is_switched_to_and_the_release_before_is_kept(shared_site):
    person = shared_site.person
    write(person.cwd, {"plain.yaml": "schema_version: 1\npasses: []\n"})
    was = shared_site.current()
    done = person.run("deploy", "--target", "loop-x86", "--recipe", "plain.yaml", "--json", *QUICK).check()
    result = only(done.json)
    assert shared_site.current() == result["artifact_digest"] != was
    assert was in shared_site.releases()
    person.run("deploy", "--target", "loop-x86", "--quiet", *QUICK).check()
    assert shared_site.current() == was


def test_an_artifact_whose_outputs_differ_on_the_device_is_not_switched_to(shared_site, artifacts, tmp_path):
    person = shared_site.person
    bad = shutil.copytree(artifacts["plain"], tmp_path / "bad")
    expected = bad / "golden" / "expected" / "scores.npy"
    np.save(expected, -np.load(expected))
    was = shared_site.current()
    done = person.run("deploy", bad, "--device", "pi", "--json", *QUICK).check(1)
    assert done.json["error"]["type"] == "VerificationError"
    assert "health check on 'pi' failed" in done.err
    assert "the release before is still in force" in done.err
    assert shared_site.current() == was


def test_an_artifact_that_was_changed_is_not_even_sent(shared_site, artifacts, tmp_path):
    bad = shutil.copytree(artifacts["plain"], tmp_path / "bad")
    weights = next(bad.glob("*.bin"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    shared_site.commands()
    error = shared_site.person.run("deploy", bad, "--device", "pi", *QUICK).check(2).err
    assert weights.name in error
    assert shared_site.commands() == []


def test_bench_measures_and_changes_nothing_there(shared_site, artifacts):
    was, kept = shared_site.current(), shared_site.releases()
    done = shared_site.person.run("bench", artifacts["folded"], artifacts["plain"], "-d", "pi", "--json", *QUICK)
    results = done.check().json["results"]
    assert len(results) == 2
    assert not any(result["released"] for result in results)
    assert (shared_site.current(), shared_site.releases()) == (was, kept)


def test_the_stored_run_can_be_reported_again(shared_site):
    (run,) = shared_site.first.json["runs"]
    again = shared_site.person.run("report", run, "--json").check().json
    assert again["results"] == shared_site.first.json["results"]


def test_a_litert_artifact_goes_the_same_way(shared_site):
    done = shared_site.person.run("deploy", "-t", "loop-x86", "-b", "litert", "--name", "lite", "--json", *QUICK)
    result = only(done.check().json)
    assert result["backend"] == "litert"
    assert result["conditions"]["runtime"].startswith("ai-edge-litert")
    assert result["accuracy"]["device"] == result["accuracy"]["host"]
    assert shared_site.current("lite") == result["artifact_digest"]


def test_a_device_that_is_not_what_its_target_says_gets_nothing(site):
    write_devices(site.person.cwd, board=site.device("rpi4"))
    done = site.person.run("deploy", "--target", "rpi4", "--backend", "openvino", "--json", *QUICK).check(3)
    assert "'board' is x86_64, but its target 'rpi4' is aarch64: nothing was sent." in done.json["error"]["message"]
    assert "devices.yaml" in done.json["error"]["hint"]
    assert site.content() == []


def test_two_deploys_at_once_both_succeed(site):
    both = [site.person.start("deploy", "--target", "loop-x86", "--json", *QUICK) for _ in range(2)]
    results = [only(running.done().check().json) for running in both]
    assert {result["artifact_digest"] for result in results} == {site.current()}
    assert len(list((site.person.cache / "artifacts").iterdir())) == 1
    assert sorted(result["conversion"]["cached"] for result in results) in ([False, False], [False, True])
    assert site.person.leftovers() == []


def test_a_key_that_is_not_let_in_is_said(site, artifacts, tmp_path):
    stranger = make_key(tmp_path / "stranger")
    write_devices(site.person.cwd, pi=site.device(key=str(stranger.private)))
    error = site.person.run("deploy", artifacts["plain"], *QUICK).check(3).err
    assert "login" in error
    assert "refused" in error
    assert str(stranger.private) in error
    assert not site.root.exists()


def test_an_unknown_host_key_is_refused_until_it_is_trusted(site, artifacts):
    person = site.person
    write_devices(person.cwd, pi=site.device(trusted=False))
    error = person.run("deploy", artifacts["plain"], *QUICK).check(3).err
    assert site.sshd.fingerprint() in error
    assert "edgekit devices trust pi" in error
    assert not site.root.exists()
    assert "--yes" in person.run("devices", "trust", "pi").check(2).err
    trusted = person.run("devices", "trust", "pi", "--yes").check().out
    assert site.sshd.fingerprint() in trusted
    assert person.run("devices", "probe", "pi", "--json").check().json["facts"]["arch"] == "x86_64"


def test_a_changed_host_key_is_refused(site, artifacts):
    was = site.sshd.fingerprint()
    site.sshd.rotate_host_key()
    error = site.person.run("deploy", artifacts["plain"], *QUICK).check(3).err
    assert was in error
    assert site.sshd.fingerprint() in error
    assert not site.root.exists()


def test_a_device_that_refuses_the_connection_is_tried_again_and_named(site, artifacts):
    site.sshd.stop()
    error = site.person.run("deploy", artifacts["plain"], *QUICK).check(3).err
    assert error.count("Trying again") == 2
    assert f"127.0.0.1:{site.sshd.port}" in error or "pi" in error
    assert "refused" in error


@pytest.fixture
def small_disk(site, tmp_path):
    """The device keeps edgekit's folder on a file system of 8 MB, in a name space of its own: that needs no root."""
    site.root.mkdir()
    ready = tmp_path / "mounted"
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f"mount -t tmpfs -o size=8m tmpfs {site.root} && touch {ready} && exec sleep 600"
    with subprocess.Popen(["unshare", "--mount", *user, "sh", "-c", mount]) as holder:
        try:
            assert eventually(ready.exists), "no name space can be made here"
            enter = f"nsenter --target {holder.pid} --mount {'--user --preserve-credentials' if user else ''}"
            site.sshd.wrap(f'[ -n "$SMALL" ] || SMALL=1 exec {enter} "$0"')
            yield site
        finally:
            holder.kill()


def test_a_full_disk_on_the_device_is_said_before_anything_is_sent(small_disk, artifacts):
    error = small_disk.person.run("deploy", artifacts["plain"], *QUICK).check(3).err
    assert "'pi' has " in error
    assert "free below .edgekit; this needs" in error
    assert "devices.yaml" in error
