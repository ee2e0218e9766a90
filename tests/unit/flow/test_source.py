from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.flow.cache import Cache
from edgekit.flow.project import load_project
from edgekit.flow.source import load_source
from tests.unit.flow import kit

LOADING = """
    import numpy as np, torch
    from torch import nn

    def build():
        net = nn.Linear(4, 2)
        {how}
        return net, (torch.zeros(1, 4),)
    """
HOWS = {
    "torch.save": "net.load_state_dict(torch.load('{weights}'))",
    "torch.save, mapped": "net.load_state_dict(torch.load('{weights}', mmap=True))",
    "safetensors": "from safetensors.torch import load_file; net.load_state_dict(load_file('{weights}'))",
    "safetensors, opened": (
        "from safetensors import safe_open; f = safe_open('{weights}', 'pt').__enter__();"
        " net.load_state_dict(dict((k, f.get_tensor(k)) for k in f.keys()))"
    ),
    "npz": "w = np.load('{weights}'); net.load_state_dict(dict((k, torch.from_numpy(w[k])) for k in w.files))",
}


def save_weights(path, kind, value):
    import torch
    from safetensors.torch import save_file

    state = {"weight": torch.full((2, 4), value), "bias": torch.zeros(2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("torch"):
        torch.save(state, path)
    elif kind.startswith("safetensors"):
        save_file(state, path)
    else:
        with path.open("wb") as stream:
            np.savez(stream, **{key: tensor.numpy() for key, tensor in state.items()})


def load(folder, heard=None):
    return load_source(load_project(folder), Cache(), heard or kit.Heard())


def loads(folder):
    """Digest of the source, and whether its code had to run for it."""
    heard = kit.Heard()
    state = load(folder, heard)
    return state.info.digest, heard.count("loading") == 1


def test_an_unchanged_source_answers_without_torch(plain):
    code = """
        import sys
        from pathlib import Path
        from tests.unit.flow import kit
        from edgekit.flow.cache import Cache
        from edgekit.flow.project import load_project
        from edgekit.flow.source import load_source
        heard = kit.Heard()
        state = load_source(load_project(Path(sys.argv[1])), Cache(), heard)
        print(state.info.digest, heard.steps, "torch" in sys.modules)
        state.live()
        print("torch" in sys.modules)
    """
    # Both in processes of their own, as a person's are: this one has imported what all the other tests did.
    first = kit.python(code, str(plain))
    digest = first.stdout.split()[0]
    assert "loading" in first.stdout
    done = kit.python(code, str(plain))
    assert done.stdout.splitlines() == [f"{digest} [] False", "True"], done.stderr


def test_a_source_is_described(plain):
    info = load(plain).info
    assert [(spec.name, spec.shape, spec.dtype) for spec in info.inputs] == [("input", (1, 1, 8, 8), "float32")]
    assert [(spec.name, spec.shape) for spec in info.outputs] == [("output", (1, 3))]
    assert (info.format, info.parameters, info.deterministic) == ("pt2", 36 + 8 + 4 * 36 * 3 + 3, True)


@pytest.mark.parametrize(
    "kind, place", [*((kind, "outside") for kind in HOWS), ("torch.save, mapped", "beside"), ("safetensors", "below")]
)
def test_a_changed_weight_file_is_seen(tmp_path, kind, place):
    project = tmp_path / "project"
    weights = {"beside": project, "below": project / "weights", "outside": tmp_path / "elsewhere"}[
        place
    ] / "net.weights"
    save_weights(weights, kind, 1.0)
    model = LOADING.format(how=HOWS[kind].format(weights=weights))
    kit.write(project, {"edgekit.yaml": kit.project_yaml(), "model.py": model})
    first, ran = loads(project)
    assert ran
    assert loads(project) == (first, False)
    save_weights(weights, kind, 2.0)
    second, ran = loads(project)
    assert ran
    assert second != first
    assert loads(project) == (second, False)


def test_weights_read_while_the_file_is_imported_are_seen(tmp_path):
    weights = tmp_path / "elsewhere" / "w.npz"
    save_weights(weights, "npz", 1.0)
    model = f"""
        import numpy as np, torch
        from torch import nn
        STATE = {{k: torch.from_numpy(v) for k, v in np.load('{weights}').items()}}

        def build():
            net = nn.Linear(4, 2)
            net.load_state_dict(STATE)
            return net, (torch.zeros(1, 4),)
        """
    project = kit.write(tmp_path / "project", {"edgekit.yaml": kit.project_yaml(), "model.py": model})
    first, _ = loads(project)
    assert loads(project) == (first, False)
    save_weights(weights, "npz", 2.0)
    assert loads(project)[0] != first


def test_a_weight_file_that_no_reader_tells_of_counts_where_it_lies_beside_the_source(plain):
    (plain / "native.bin").write_bytes(b"one")
    first, _ = loads(plain)
    assert loads(plain) == (first, False)
    (plain / "native.bin").write_bytes(b"two")
    assert loads(plain) == (first, True)


@pytest.mark.parametrize("name", ["best.pt", "weights/best.pt"])
def test_a_weight_file_that_appears_later_is_seen(tmp_path, name):
    how = f"""
        import pathlib
        if pathlib.Path(__file__).with_name('{name.partition("/")[0]}').exists():
            net.load_state_dict(torch.load(pathlib.Path(__file__).parent / '{name}'))
        else:
            torch.manual_seed(0); net.reset_parameters()"""
    files = {"edgekit.yaml": kit.project_yaml(), "model.py": LOADING.format(how=how)}
    project = kit.write(tmp_path, files)
    first, _ = loads(project)
    assert loads(project) == (first, False)
    save_weights(project / name, "torch.save", 2.0)
    assert loads(project)[0] != first


def test_an_edited_source_and_an_edited_helper_are_seen_in_the_same_process(tmp_path):
    model = "from helper import SCALE\nfrom lib.deep import SHIFT\n" + kit.write(
        tmp_path / "x", {"m.py": kit.MODEL}
    ).joinpath("m.py").read_text().replace("return net", "net[4].weight.data *= SCALE + SHIFT; return net")
    files = {
        "edgekit.yaml": kit.project_yaml(),
        "model.py": model,
        "helper.py": "SCALE = 1.0",
        "lib/deep.py": "SHIFT = 0",
    }
    project = kit.write(tmp_path / "project", files)
    seen = [loads(project)[0]]
    assert loads(project) == (seen[0], False)
    for name, old, new in [
        ("helper.py", "1.0", "2.00"),
        ("lib/deep.py", "0", "11"),
        ("model.py", "manual_seed(0)", "manual_seed(12)"),
    ]:
        path = project / name
        path.write_text(path.read_text().replace(old, new))
        digest, ran = loads(project)
        assert ran
        seen.append(digest)
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    "model",
    [
        "import torch\ndef build():\n    return torch.nn.Linear(4, 2), (torch.zeros(1, 4),)\n",
        "import torch\nNET = torch.nn.Linear(4, 2)\ndef build():\n    return NET, (torch.zeros(1, 4),)\n",
        (
            "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.scale = torch.rand(4)\n    def forward(self, x):\n        return x * self.scale\n"
            "def build():\n    return Net(), (torch.zeros(1, 4),)\n"
        ),
    ],
    ids=["in the factory", "at import", "in a plain attribute"],
)
def test_random_weights_are_said_and_never_remembered(tmp_path, model, heard):
    project = kit.write(tmp_path, {"edgekit.yaml": kit.project_yaml(), "model.py": model})
    info = load(project, heard).info
    assert info.deterministic is False
    assert len(heard.warnings) == 1
    assert "other weights each time" in heard.warnings[0]
    assert "model.py:build" in heard.warnings[0]
    again, ran = loads(project)
    assert ran
    assert again != info.digest


def test_a_factory_that_works_only_once_is_not_remembered(tmp_path, heard):
    how = """
        import pathlib
        mark = pathlib.Path(__file__).with_name('mark'); assert not mark.exists(); mark.touch()
        torch.manual_seed(0); net.reset_parameters()"""
    project = kit.write(tmp_path, {"edgekit.yaml": kit.project_yaml(), "model.py": LOADING.format(how=how)})
    assert load(project, heard).info.deterministic is False
    assert len(heard.warnings) == 1


def test_a_source_that_depends_on_what_no_trace_shows_is_not_taken_for_another(tmp_path, monkeypatch):
    how = "import os; torch.manual_seed(int(os.environ['SEED'])); net.reset_parameters()"
    project = kit.write(tmp_path, {"edgekit.yaml": kit.project_yaml(), "model.py": LOADING.format(how=how)})
    monkeypatch.setenv("SEED", "1")
    load(project)
    monkeypatch.setenv("SEED", "2")
    state = load(project)
    with pytest.raises(ConfigError, match="gives another model") as caught:
        state.live()
    assert "--no-cache" in caught.value.hint


def test_two_projects_with_helpers_of_the_same_name_keep_apart(tmp_path):
    model = LOADING.format(how="import helper; net.weight.data.fill_(helper.VALUE); net.bias.data.fill_(0)")
    made = []
    for value in ("1.0", "2.0"):
        files = {"edgekit.yaml": kit.project_yaml(), "model.py": model, "helper.py": f"VALUE = {value}"}
        made.append(load(kit.write(tmp_path / value, files)).live())
    weights = [float(next(model.program.module.parameters()).detach()[0, 0]) for model in made]
    assert weights == [1.0, 2.0]


def test_what_edgekit_writes_into_the_project_is_no_input(plain):
    first, _ = loads(plain)
    kit.write(plain, {".edgekit/results.pt": "x", "build/model.bin": "x", "notes.md": "x", ".git/index.bin": "x"})
    assert loads(plain) == (first, False)


def test_an_unreadable_kind_of_source_is_refused_before_torch_is_imported(tmp_path):
    kit.write(tmp_path, {"edgekit.yaml": "schema_version: 1\nsource: net.xyz\n", "net.xyz": "x"})
    code = """
        import sys
        from pathlib import Path
        from tests.unit.flow.test_source import load
        try:
            load(Path(sys.argv[1]))
        except Exception as error:
            print(type(error).__name__, "torch" in sys.modules)
    """
    done = kit.python(code, str(tmp_path))
    assert done.stdout.split() == ["ConfigError", "False"], done.stderr


def test_an_error_of_the_persons_code_is_told_at_its_line(tmp_path):
    model = "import torch\n\ndef build():\n    return torch.load('gone.pt')\n"
    project = kit.write(tmp_path, {"edgekit.yaml": kit.project_yaml(), "model.py": model})
    with pytest.raises(ConfigError, match=r"model\.py:4: FileNotFoundError"):
        load(project)


def test_tracing_leaves_nothing_behind_when_the_code_fails(tmp_path, plain):
    import safetensors

    before, threads = safetensors.safe_open, threading.active_count()
    test_an_error_of_the_persons_code_is_told_at_its_line(tmp_path / "failing")
    assert safetensors.safe_open is before
    assert threading.active_count() == threads


def test_the_persons_modules_stay_importable_afterwards(plain):
    state = load(plain)
    name = type(state.live().program.module).__module__
    assert name in sys.modules
    assert os.fspath(plain) in sys.path
