from __future__ import annotations

import pytest

from edgekit.core.errors import ConfigError
from edgekit.flow import baselines
from tests.unit.report import samples


def test_a_baseline_comes_back_whole_with_its_artifacts(tmp_path):
    results = samples.before_and_after()
    path = baselines.save(tmp_path, "main", results)
    assert path == tmp_path / ".edgekit" / "baselines" / "main.json"
    kept = baselines.load(tmp_path, "main")
    assert list(kept.results) == results
    assert kept.artifacts == tuple(result.artifact_digest for result in results)
    assert [file.name for file in path.parent.iterdir()] == ["main.json"]


def test_a_baseline_that_somebody_edited_is_refused(tmp_path):
    path = baselines.save(tmp_path, "main", [samples.result()])
    path.write_text(path.read_text().replace('"artifact_bytes": 18612344', '"artifact_bytes": 17612344'))
    with pytest.raises(ConfigError, match="is not what was saved"):
        baselines.load(tmp_path, "main")


def test_a_baseline_that_was_cut_off_is_refused(tmp_path):
    path = baselines.save(tmp_path, "main", [samples.result()])
    path.write_text(path.read_text()[:4000])
    with pytest.raises(ConfigError, match="not valid JSON"):
        baselines.load(tmp_path, "main")


def test_an_unknown_baseline_names_those_that_are_there(tmp_path):
    baselines.save(tmp_path, "main", [samples.result()])
    with pytest.raises(ConfigError, match="no baseline 'mian'. Did you mean 'main'"):
        baselines.load(tmp_path, "mian")


@pytest.mark.parametrize("name", ["", "../main", "a/b", "-x", "x" * 65])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a baseline"):
        baselines.save(tmp_path, name, [samples.result()])


def test_nothing_is_no_baseline(tmp_path):
    with pytest.raises(ConfigError, match="no result to keep"):
        baselines.save(tmp_path, "main", [])
