from __future__ import annotations

import sqlite3
import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.core.artifact import Parity
from edgekit.core.errors import ConfigError, MissingExtraError
from edgekit.core.measurement import Better, Kind, Measurement
from edgekit.core.model import PassRecord
from edgekit.core.result import Accuracy, Conversion, Result
from edgekit.flow import database
from edgekit.flow.store import Store
from tests.unit.report import samples

TEXT = st.text(max_size=12)
FLOATS = st.floats()
METRICS = st.dictionaries(TEXT, FLOATS, max_size=3)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FACTS = st.dictionaries(TEXT, PLAIN, max_size=3)
VALUES = st.lists(FLOATS, max_size=20).map(tuple)
COUNTS = st.integers(0, 2**40)
MEASUREMENTS = st.builds(
    Measurement,
    metric=TEXT,
    unit=TEXT,
    better=st.sampled_from(get_args(Better)),
    kind=st.sampled_from(get_args(Kind)),
    values=VALUES,
    warmups=VALUES,
    processes=st.lists(COUNTS, max_size=3).map(tuple),
    conditions_before=FACTS,
    conditions_after=FACTS,
    metadata=FACTS,
)
RECORDS = st.builds(
    PassRecord,
    name=TEXT,
    options=FACTS,
    modified=st.booleans(),
    notes=st.lists(TEXT, max_size=2).map(tuple),
    structure=FACTS,
    metrics_before=METRICS,
    metrics_after=METRICS,
    parameters_before=COUNTS,
    parameters_after=COUNTS,
)
RESULTS = st.builds(
    Result,
    schema_version=st.just(1),
    id=st.just(""),
    run=TEXT,
    created=st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat()),
    model=TEXT,
    source=TEXT,
    backend=TEXT,
    precision=TEXT,
    target=TEXT,
    device=TEXT,
    transport=TEXT,
    runner=TEXT,
    emulated=st.booleans(),
    artifact_digest=TEXT,
    artifact_bytes=COUNTS,
    download_bytes=COUNTS,
    conversion=st.none() | st.builds(Conversion, seconds=FLOATS, peak_rss_mib=FLOATS, cached=st.booleans()),
    history=st.lists(RECORDS, max_size=2).map(tuple),
    parity=st.lists(
        st.builds(
            Parity,
            output=TEXT,
            examples=COUNTS,
            max_abs=FLOATS,
            max_rel=FLOATS,
            cosine=FLOATS,
            snr_db=FLOATS,
            agreement=st.none() | FLOATS,
        ),
        max_size=2,
    ).map(tuple),
    accuracy=st.none()
    | st.builds(
        Accuracy,
        metric=TEXT,
        direction=st.sampled_from(["larger", "smaller"]),
        split=TEXT,
        examples=COUNTS,
        source=METRICS,
        host=METRICS,
        device=METRICS,
        agreement=METRICS,
        standard_error=st.none() | FLOATS,
    ),
    measurements=st.lists(MEASUREMENTS, max_size=3).map(tuple),
    released=st.booleans(),
    bytes_sent=COUNTS,
    seconds=METRICS,
    tags=st.lists(TEXT, max_size=2).map(tuple),
    command=TEXT,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.db"


@pytest.fixture
def store(path):
    with Store.open(path) as opened:
        yield opened


def numbered(index: int, **changes) -> Result:
    return replace(samples.result(), id=f"{index:04x}", created=f"2026-11-24T10:00:{index:02d}+00:00", **changes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(result=RESULTS)
def test_a_result_comes_back_as_it_was_put_in_to_the_last_bit(store, result):
    # One store serves all examples, and Hypothesis gives the same one again.
    result = replace(result, id=uuid.uuid4().hex)
    assert store.add(result)
    # repr, because NaN is not equal to itself.
    assert repr(store.get(result.id)) == repr(result)


def test_adding_an_id_again_changes_nothing(store):
    first = numbered(1)
    assert store.add(first)
    assert not store.add(replace(first, model="another", measurements=()))
    assert store.results() == [first]


def test_results_come_newest_first_and_can_be_filtered_and_limited(store):
    made = [
        numbered(1),
        numbered(2, device="local", target="linux-x86"),
        numbered(3, run="another"),
        numbered(4, model="faces"),
    ]
    for result in (made[2], made[0], made[3], made[1]):
        store.add(result)
    assert store.results() == made[::-1]
    assert store.results(oldest_first=True) == made
    assert store.results(limit=2) == [made[3], made[2]]
    assert store.results(limit=2, oldest_first=True) == [made[2], made[3]]
    assert store.results(device="local") == store.results(target="linux-x86") == [made[1]]
    assert store.results(run="another") == [made[2]]
    assert store.results(model="faces", device="kitchen-pi") == [made[3]]
    assert store.results(model="nothing") == []


def test_the_order_is_that_of_time_whatever_the_spelling(store):
    early = replace(numbered(1), created="2026-11-24T12:00:00.5+02:00")
    late = replace(numbered(2), created="2026-11-24T10:00:01Z")
    for result in (late, early):
        store.add(result)
    assert store.results() == [late, early]
    assert store.results()[1].created == "2026-11-24T12:00:00.5+02:00"


def test_more_results_than_one_query_may_name_are_read_whole(store):
    for index in range(520):
        store.add(replace(samples.result(), id=f"{index:05d}", measurements=samples.result().measurements[1:2]))
    found = store.results()
    assert len(found) == 520
    assert all(len(result.measurements) == 1 for result in found)


def test_a_time_that_is_none_is_refused_by_name(store):
    with pytest.raises(ConfigError, match="'0001' has `created` 'yesterday'"):
        store.add(replace(numbered(1), created="yesterday"))


def test_runs_are_summed_up_newest_first(store):
    assert store.latest_run() is None
    for result in (numbered(1), numbered(2, device="local", precision="float16"), numbered(3, run="later")):
        store.add(result)
    latest, first = store.runs()
    assert store.latest_run() == latest
    assert store.runs(limit=1) == [latest]
    assert (latest.run, latest.results) == ("later", 1)
    assert first.devices == ("kitchen-pi", "local")
    assert first.precisions == ("float32", "float16")
    assert (first.first, first.last) == ("2026-11-24T10:00:01.000000+00:00", "2026-11-24T10:00:02.000000+00:00")


def test_a_result_and_a_run_are_found_by_the_beginning_of_their_names(store):
    for identity in ("abc1", "abd2", "ABD3", "a%"):
        store.add(replace(samples.result(), id=identity, run=f"run-{identity}"))
    assert store.get("abc").id == "abc1"
    assert store.get("abd").id == "abd2"
    assert store.get("a%").id == "a%"
    assert store.run("run-abc").run == "run-abc1"
    with pytest.raises(ConfigError, match=r"'ab' could be any of 2 results: .*abd2"):
        store.get("ab")
    with pytest.raises(ConfigError, match="no result 'zz'"):
        store.get("zz")
    with pytest.raises(ConfigError, match="no result ''"):
        store.get("")
    with pytest.raises(ConfigError, match="no run 'run-abx'. Did you mean 'run-"):
        store.run("run-abx")


def test_a_whole_id_wins_over_a_longer_one_that_starts_so(store):
    for identity in ("ab", "abc"):
        store.add(replace(samples.result(), id=identity))
    assert store.get("ab").id == "ab"


WRITER = """
import sys
from dataclasses import replace
from edgekit.flow.store import Store
from tests.unit.report import samples
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store.open(path) as store:
    for index in range(count):
        store.add(replace(samples.result(), id=f"{name}-{index:03d}"))
        store.add(replace(samples.result(), id=f"shared-{index:03d}"))
"""


def test_processes_that_make_and_write_one_store_at_once_lose_nothing(path):
    root = Path(__file__).parents[3]
    writers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(path), name, "30"], cwd=root)
        for name in ("a", "b", "c")
    ]
    assert [writer.wait(timeout=240) for writer in writers] == [0, 0, 0]
    with Store.open(path) as store:
        found = store.results()
    assert sorted(result.id for result in found) == sorted(
        f"{name}-{index:03d}" for name in ("a", "b", "c", "shared") for index in range(30)
    )
    assert all(len(result.measurements) == len(samples.result().measurements) for result in found)


def test_the_file_is_in_wal_mode_and_nothing_stays_open(path):
    with Store.open(path) as store:
        store.add(samples.result())
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_folders_are_made_and_odd_names_work(tmp_path):
    odd = tmp_path / "a folder" / "50% % ü" / "results.db"
    with Store.open(odd) as store:
        store.add(samples.result())
    with Store.open(f"sqlite:///{odd}") as store:
        assert store.results() == [samples.result()]


def test_migrations_from_an_empty_file_give_the_tables_that_the_code_uses(path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    path.touch()
    Store.open(path).close()
    engine, name = database.open_engine(path)
    with database.transaction(engine, name) as connection:
        assert compare_metadata(MigrationContext.configure(connection), database.tables().metadata) == []
    engine.dispose()


def test_the_revision_that_the_code_expects_is_the_newest_there_is():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == database.HEAD == database.known_revisions()[-1]
    assert {revision.revision for revision in script.walk_revisions()} == set(database.known_revisions())


def test_alembic_is_not_imported_for_a_store_that_is_up_to_date(path):
    Store.open(path).close()
    program = "import sys; from edgekit.flow.store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_a_store_of_a_newer_edgekit_is_refused_with_the_way_out(path):
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    connection.close()
    with pytest.raises(ConfigError, match="of version 0999; this edgekit knows up to") as caught:
        Store.open(path)
    assert "--upgrade edgekit" in caught.value.hint


def test_a_file_that_is_no_database_is_named_and_left_alone(path):
    path.write_bytes(b"not a database at all, but long enough for a header" * 40)
    with pytest.raises(ConfigError, match=f"'{path}' is damaged, or is not an SQLite file"):
        Store.open(path)
    assert path.read_bytes().startswith(b"not a database")


def test_pages_that_were_overwritten_are_told_as_damage(path):
    with Store.open(path) as store:
        for index in range(20):
            store.add(numbered(index))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"), Store.open(path) as store:
        store.results()


def test_a_payload_that_is_no_json_is_told_as_damage(store, path):
    store.add(numbered(1))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE results SET payload = '{'")
    connection.close()
    with pytest.raises(ConfigError, match="is damaged"):
        store.results()


def test_the_database_of_another_program_is_not_written_to(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    with pytest.raises(ConfigError, match="not a results store"):
        Store.open(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("nonsense://host/db", "knows no database 'nonsense'"),
        ("://", "URL"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused(url, message):
    with pytest.raises(ConfigError, match=message):
        Store.open(url)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"'{tmp_path}' cannot be used"):
        Store.open(tmp_path)


def test_a_password_in_a_url_is_never_shown():
    with pytest.raises((MissingExtraError, ConfigError)) as caught:
        Store.open("postgresql+asyncpg://someone:hunter2@127.0.0.1:1/results")
    assert "hunter2" not in str(caught.value)
