"""Wrong requests: each is named in a sentence, says what to do, ends with 2, and writes nothing."""

from __future__ import annotations

import pytest

from tests.e2e.kit import PROJECT, write

SOURCES = {
    "fac.py": """
        import torch

        def number():
            return 3

        def boom():
            weights = {}
            return weights["missing"]

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Linear(4, 2)

            def forward(self, x):
                return self.head(x)

        def build():
            return Net(), {"x": torch.zeros(1, 5)}

        def bare():
            return Net()
        """,
    "broken.py": "def build(:\n    pass\n",
    "needs.py": "import nothing_of_that_name\n",
    "notes.txt": "not a model\n",
}


@pytest.fixture
def sources(person):
    return write(person.cwd, SOURCES)


def unwritten(person) -> bool:
    """Whether a command left nothing of what it would have made."""
    made = [path for kind in ("artifacts", "models", "outputs") for path in (person.cache / kind).glob("*")]
    return not (person.cwd / "build").exists() and not made and not person.leftovers()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compile", "--target", "linux-x86"), ["no edgekit.yaml", "no source was given", "edgekit init"]),
        (("compile", "fac.py:build"), ["No target was given", "--target linux-x86"]),
        (("compile", "fac.py:build", "-t", "linux-x68"), ["no target 'linux-x68'", "Did you mean 'linux-x86'?"]),
        (("compile", "fac.py:build", "-t", "linux-x86", "-b", "litter"), ["no backend 'litter'", "'litert'"]),
        (("compile", "fac.py:build", "-t", "rpi4", "-b", "coreml"), ["'rpi4' does not run coreml", "litert"]),
        (("deploy", "fac.py:build", "-t", "iphone15"), ["No device of target 'iphone15'", "transport: ssh"]),
        (
            ("deploy", "fac.py:build", "-t", "pixel8"),
            ["No device of target 'pixel8'", "transport: adb, address: SERIAL"],
        ),
        (
            ("compile", "notes.txt", "-t", "linux-x86"),
            ["notes.txt' is not a source", "*.onnx", "*.pt2", "FILE.py:NAME"],
        ),
        (("compile", "absent.py:build", "-t", "linux-x86"), ["There is no file", "absent.py"]),
        (("compile", "absent.onnx", "-t", "linux-x86"), ["There is no file", "absent.onnx"]),
        (("compile", "fac.py:build", "-t", "linux-x86", "-r", "absent.yaml"), ["There is no file", "absent.yaml"]),
        (("deploy", "fac.py:build", "-t", "linux-x86", "-d", "my-pi"), ["no device 'my-pi'", "edgekit devices list"]),
        (("deploy", "fac.py:build", "-t", "rpi4"), ["No device of target 'rpi4'", "devices.yaml", "devices trust"]),
        (("deploy", "fac.py:build", "-t", "rpi4", "-d", "local"), ["cannot stand in for a rpi4", "devices.yaml"]),
        (("bench", "nowhere"), ["nowhere"]),
        (("verify", "nowhere"), ["nowhere"]),
        (("verify", "notes.txt"), ["notes.txt"]),
        (("report",), ["No result is stored here yet", "edgekit deploy"]),
        (("devices", "show", "locl"), ["no device 'locl'", "Did you mean 'local'?"]),
        (("devices", "trust", "local"), ["'local' has no keys to trust"]),
        (("compress", "fac.py:build"), ["no pass to run", "--recipe recipe.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_missing_or_unknown_is_named(person, sources, arguments, said):
    error = person.run(*arguments).check(2).err
    assert [part for part in said if part not in error] == [], error
    assert unwritten(person)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("fac.py:number", ["fac.py:number", "int", "not an nn.Module"]),
        ("fac.py:boom", ["fac.py:8", "KeyError: 'missing'"]),
        ("fac.py:bild", ["'bild'", "Did you mean 'build'?"]),
        ("fac.py:build", ["x [1, 5]", "cannot be run with its example inputs"]),
        ("fac.py:bare", ["gives no example inputs", "inputs: [{name: image, shape:"]),
        ("broken.py:build", ["broken.py:1", "SyntaxError"]),
        ("needs.py:build", ["needs.py:1", "'nothing_of_that_name' is not installed", "pip install"]),
    ],
)
def test_a_source_that_is_no_model_is_told_in_the_persons_terms(person, sources, source, said):
    error = person.run("compile", source, "--target", "linux-x86").check(2).err
    assert [part for part in said if part not in error] == [], error
    assert unwritten(person)


def test_an_onnx_file_cut_in_half_is_called_that(person, sources):
    import torch

    from edgekit.core.extras import require

    onnx = require("onnx", "onnx", "this test")
    weights = onnx.numpy_helper.from_array(torch.randn(4, 3).numpy(), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [value("x", 1, [1, 4])],
        [value("y", 1, [1, 3])],
        [weights],
    )
    whole = onnx.helper.make_model(graph).SerializeToString()
    (person.cwd / "net.onnx").write_bytes(whole[: len(whole) // 2])
    error = person.run("compile", "net.onnx", "--target", "intel-cpu").check(2).err
    assert "net.onnx" in error
    assert unwritten(person)


YAML = {
    "edgekit.yaml": ("sorce: model.py:build", "sorce", "source"),
    "recipe.yaml": ("lowring: {}", "lowring", "lowering"),
    "devices.yaml": ("devces: {}", "devces", "devices"),
}


@pytest.mark.parametrize("file", YAML)
def test_an_unknown_key_is_named_with_file_line_and_the_nearest(person, file):
    line, wrong, right = YAML[file]
    write(person.cwd, {**PROJECT, "devices.yaml": "schema_version: 1\ndevices: {}\n"})
    path = person.cwd / file
    text = f"schema_version: 1\n{line}\n" if file != "edgekit.yaml" else path.read_text() + f"{line}\n"
    path.write_text(text)
    number = text.splitlines().index(line) + 1
    error = person.run("deploy").check(2).err
    assert f"{file}:{number}: unknown key '{wrong}'. Did you mean '{right}'?" in error
    assert unwritten(person)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("{target: rpi4, transport: ssh, adress: pi@there}", ["devices.yaml:3", "'adress'", "'address'"]),
        ("{target: rpi4, transport: shh, address: pi@there}", ["'shh'", "'ssh'"]),
        ("{target: rpi4, transport: ssh, address: pi@there, options: {kee: x}}", ["'kee'", "'key'"]),
        ("{target: rpi4}", ["devices.yaml:3", "transport"]),
    ],
)
def test_a_wrong_device_is_named_before_anything_is_built(person, device, said):
    write(person.cwd, {**PROJECT, "devices.yaml": f"schema_version: 1\ndevices:\n  pi: {device}\n"})
    error = person.run("deploy", "--target", "rpi4").check(2).err
    assert [part for part in said if part not in error] == [], error
    assert unwritten(person)


def test_a_target_of_the_project_with_an_unknown_key_is_named(person):
    write(person.cwd, {**PROJECT, "targets/mine.yaml": "schema_version: 1\nname: mine\nsumary: x\n"})
    error = person.run("targets", "mine").check(2).err
    assert "mine.yaml:3: unknown key 'sumary'. Did you mean 'summary'?" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "pip"),
    [
        ("torch", ("compile", "fac.py:build", "-t", "intel-cpu"), "pip install 'edgekit[torch]'"),
        ("openvino", ("compile", "fac.py:bare", "-t", "intel-cpu"), "pip install 'edgekit[openvino]'"),
        ("litert_torch", ("compile", "fac.py:bare", "-t", "rpi4"), "pip install 'edgekit[litert-convert]'"),
        ("paramiko", ("devices", "probe", "pi"), "pip install 'edgekit[ssh]'"),
        ("paramiko", ("deploy", "-t", "rpi4"), "pip install 'edgekit[ssh]'"),
        ("onnx", ("compile", "net.onnx", "-t", "intel-cpu"), "pip install 'edgekit[onnx]'"),
    ],
)
def test_a_missing_extra_is_told_with_the_line_that_installs_it(person, sources, module, arguments, pip):
    write(
        person.cwd,
        {
            "edgekit.yaml": "schema_version: 1\nsource: fac.py:bare\ninputs: [{name: x, shape: [1, 4]}]\n",
            "devices.yaml": "schema_version: 1\ndevices:\n  pi: {target: rpi4, transport: ssh, address: a@127.0.0.1}\n",
        },
    )
    (person.cwd / "net.onnx").write_bytes(b"whatever")
    done = person.run(*arguments, "--json", **person.without(module)).check(2)
    assert done.json["error"]["type"] == "MissingExtraError"
    assert pip in done.err
    assert unwritten(person)


def test_the_doctor_names_what_is_missing_and_its_remedy(person):
    found = person.run("doctor", "--json", **person.without("openvino", "paramiko", "plotly")).check().json["checks"]
    mends = {check["name"]: check["mend"] for check in found if not check["ok"]}
    assert mends == {
        "coreml: run here": "Linux cannot; devices can",
        "openvino: convert": "pip install 'edgekit[openvino]'",
        "openvino: run here": "pip install 'edgekit[openvino]'",
        "ssh": "pip install 'edgekit[ssh]'",
        "HTML report": "pip install 'edgekit[report]'",
    }
