"""What a newcomer types first: the project that `init` writes, from there to numbers."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.e2e.kit import QUICK, Person

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """Somebody who has typed `edgekit init mymodel && cd mymodel && edgekit deploy` once."""
    person = Person(tmp_path_factory.mktemp("newcomer"))
    quick = " ".join(QUICK)
    line = f"edgekit init mymodel && cd mymodel && edgekit deploy --target linux-x86 --backend openvino {quick}"
    done = person.shell(f"{line} --html report.html").check()
    person.cwd = person.cwd / "mymodel"
    person.said = done
    return person


def test_the_first_deploy_ends_with_a_table_and_a_page_that_needs_nothing(newcomer):
    assert "mymodel on local" in newcomer.said.out
    assert "top1" in newcomer.said.out
    page = (newcomer.cwd / "report.html").read_text()
    # The charts' own script mentions addresses; nothing is fetched by a tag.
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert "mymodel" in page
    assert "plotly" in page.lower()


def test_the_second_deploy_does_not_import_torch(newcomer):
    done = newcomer.run(
        "deploy", "-t", "linux-x86", "-b", "openvino", "--json", *QUICK, **newcomer.without("torch")
    ).check()
    assert done.json["results"][0]["bytes_sent"] == 0
    assert done.json["results"][0]["conversion"]["cached"] is True


def test_a_dry_run_says_what_would_be_done_and_does_nothing(newcomer):
    runs = len(newcomer.run("report", "--list", "--json").check().json)
    done = newcomer.run("deploy", "-t", "linux-x86", "-b", "openvino", "--dry-run", "--json").check()
    (action,) = done.json["actions"]
    assert action["device"] == "local"
    assert action["artifact_bytes"] > 0
    assert len(newcomer.run("report", "--list", "--json").check().json) == runs


def test_an_exported_artifact_is_verified_and_measured(newcomer, tmp_path):
    newcomer.run("compile", "-t", "linux-x86", "-b", "openvino", "--out", tmp_path / "a").check()
    folder = tmp_path / "a" / "linux-x86-openvino-float32"
    found = newcomer.run("verify", folder, "--json").check().json
    assert found["ok"] is True
    assert found["failures"] == []
    assert found["now"]["parity"]["golden"][0]["max_abs"] == pytest.approx(0, abs=1e-4)
    result = newcomer.run("bench", folder, "--json", *QUICK).check().json["results"][0]
    assert result["released"] is False
    assert result["latency_ms"]["p50"] > 0


def test_an_artifact_that_computes_something_else_fails_its_verification(newcomer, tmp_path):
    import numpy as np

    newcomer.run("compile", "-t", "linux-x86", "-b", "openvino", "--out", tmp_path / "a").check()
    folder = tmp_path / "a" / "linux-x86-openvino-float32"
    expected = folder / "golden" / "expected" / "logits.npy"
    np.save(expected, np.load(expected)[:, ::-1])
    assert newcomer.run("verify", folder, "--json").check(1).json["ok"] is False
    weights = next(folder.glob("*.bin"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert weights.name in newcomer.run("verify", folder).check(2).err


def test_a_copy_of_the_project_compiles_to_the_same_artifact(newcomer):
    newcomer.run("compile", "-t", "linux-x86", "-b", "openvino").check()
    files = [path.name for path in newcomer.cwd.iterdir() if path.is_file()]
    second = newcomer.folder / "second"
    second.mkdir(exist_ok=True)
    for name in files:
        shutil.copyfile(newcomer.cwd / name, second / name)
    artifact = newcomer.run("compile", "-t", "linux-x86", "-b", "openvino", "--json", cwd=second).check().json
    assert artifact["artifacts"][0]["cached"] is True
    manifests = [
        json.loads((root / "build/mymodel/linux-x86-openvino-float32/manifest.json").read_text())
        for root in (newcomer.cwd, second)
    ]
    assert manifests[0] == manifests[1]


def test_one_changed_weight_makes_a_new_artifact(newcomer):
    changed = newcomer.folder / "changed"
    shutil.copytree(newcomer.cwd, changed, ignore=shutil.ignore_patterns("build", ".edgekit", "__pycache__"))
    model = changed / "model.py"
    model.write_text(
        model.read_text().replace(
            "    return module.eval()",
            "    with torch.no_grad():\n        module.head.bias[0] += 0.25\n    return module.eval()",
        )
    )
    arguments = ("compile", "-t", "linux-x86", "-b", "openvino", "--json")
    old = newcomer.run(*arguments).check().json["artifacts"][0]
    new = newcomer.run(*arguments, cwd=changed).check().json["artifacts"][0]
    assert new["cached"] is False
    assert new["digest"] != old["digest"]


def test_the_project_as_it_is_deploys_with_the_targets_own_backend(newcomer):
    done = newcomer.run("deploy", "--json", *QUICK).check()
    result = done.json["results"][0]
    assert (result["backend"], result["target"]) == ("litert", "linux-x86")
    assert result["accuracy"]["device"]["top1"] > 0.9


def test_compress_writes_a_checkpoint_that_compiles(newcomer, tmp_path):
    done = newcomer.run("compress", "--out", tmp_path / "checkpoint", "--json").check().json
    (record,) = done["history"]
    assert (record["name"], record["modified"]) == ("fold_batch_norm", True)
    assert record["metrics_before"]["top1"] == pytest.approx(record["metrics_after"]["top1"], abs=0.01)
    made = newcomer.run(
        "compile", tmp_path / "checkpoint", "-t", "linux-x86", "-b", "openvino", "--out", tmp_path / "o"
    )
    made.check()
    assert (tmp_path / "o" / "linux-x86-openvino-float32" / "manifest.json").is_file()
