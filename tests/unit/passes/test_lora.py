"""Adapters merged, and trained and merged."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.core.schema import parse_yaml
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._graph import distance
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.lora import Lora, LoraOptions
from tests.unit.passes.training_kit import Corners, Heard, accuracy, assert_same_bits, cnn, model_of, state_of

ROOT = Path(__file__).resolve().parents[3]
NOISE = {"image": np.random.default_rng(5).normal(0, 1, (7, 1, 6, 6)).astype(np.float32)}


def options_of(**options):
    training = Training(**{"epochs": 3, "learning_rate": 0.02, **options.pop("finetune", {})})
    return LoraOptions(**{"r": 2, "alpha": 8.0, **options}, finetune=training)


def tuned(folder, *, task=None, model=None, seed=0, progress=None, **options):
    step = Lora(options_of(**options))
    model = model or model_of()
    result = step.apply(model, task or Corners(), PassContext(folder, seed, progress or Heard()))
    step.ensures(model, result.model)
    return result


def merged(model, adapter, folder, task=None):
    step = Lora(LoraOptions(adapter=str(adapter)))
    result = step.apply(model, task, PassContext(folder))
    step.ensures(model, result.model)
    return result


def written(folder, module, seed=1, **config):
    """A peft adapter of a module with weights that are not zero, on disk, and the adapted module."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(copy.deepcopy(module), LoraConfig(**{"r": 2, "lora_alpha": 6, **config})).eval()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.3)
        adapted.save_pretrained(str(folder))
    return adapted


def test_adapters_are_learned_merged_and_leave_a_module_as_it_was_built(tmp_path):
    model = model_of()
    before = copy.deepcopy(state_of(model))
    result = tuned(tmp_path, model=model, targets=("3", "7"))
    assert accuracy(result.model) > accuracy(model) + 0.2
    assert_same_bits(state_of(model), before)
    assert result.model.digest != model.digest
    module = result.model.program.module
    assert [type(layer) for layer in module.modules()] == [type(layer) for layer in cnn().modules()]
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in module.parameters())
    assert not any(layer.training for layer in module.modules())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_nothing_but_the_named_layers_changes_not_even_counts_of_batch_norms(tmp_path):
    model = model_of()
    result = tuned(tmp_path, model=model, targets=("7",))
    before, after = state_of(model), state_of(result.model)
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == ["7.weight"]
    change = after["7.weight"] - before["7.weight"]
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2


def test_the_notes_tell_the_share_of_trained_parameters(tmp_path):
    model = model_of()
    result = tuned(tmp_path, model=model, targets=("7",), dropout=0.1)
    trained = 2 * 32 + 4 * 2
    total = model.program.parameter_count() + trained
    assert result.notes[0] == "1 layers adapted with rank 2, alpha 8, dropout 0.1"
    assert result.notes[1] == f"trainable parameters: {trained} of {total} ({trained / total:.2%})"


def test_all_linear_layers_are_adapted_where_none_are_named(tmp_path):
    result = tuned(tmp_path)
    assert result.notes[0].startswith("1 layers adapted")


def test_the_same_seed_gives_the_same_bits(tmp_path):
    first, again = (tuned(tmp_path / name, dropout=0.2) for name in "ab")
    assert_same_bits(state_of(first.model), state_of(again.model))
    other = tuned(tmp_path / "c", dropout=0.2, seed=1)
    assert state_of(other.model)["7.weight"].tobytes() != state_of(first.model)["7.weight"].tobytes()


class Interrupted(Corners):
    """Is stopped in its third epoch."""

    def set_epoch(self, epoch):
        if epoch == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    whole = tuned(tmp_path / "whole", dropout=0.2, targets=("3", "7"))
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "killed", task=Interrupted(), dropout=0.2, targets=("3", "7"))
    heard = Heard()
    resumed = tuned(tmp_path / "killed", dropout=0.2, targets=("3", "7"), progress=heard)
    assert heard.notes == ["lora goes on after epoch 2 of 3"]
    assert_same_bits(state_of(resumed.model), state_of(whole.model))


def test_where_no_epoch_is_better_nothing_changes_and_the_notes_say_so(tmp_path):
    class Hopeless(Corners):
        def score(self, outputs, split):
            return {"top1": 0.5}

    model = model_of()
    result = tuned(tmp_path, model=model, task=Hopeless())
    assert not result.modified
    assert result.model is model
    assert "the weights of before training are kept: no epoch was better" in result.notes


def test_replaying_gives_weights_their_place_in_a_fresh_module(tmp_path):
    result = tuned(tmp_path, targets=("3", "7"))
    rebuilt = Lora(options_of()).replay(cnn(), result.structure)
    rebuilt.load_state_dict(result.model.program.module.state_dict(), strict=True)
    assert result.model.program.with_module(rebuilt.eval()).digest() == result.model.digest


class Attending(nn.Module):
    """Queries over a memory: two inputs, taken by name, and layers that must not be adapted."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.q, self.v = nn.Linear(16, 16), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.unused = nn.Linear(16, 16)
        self.head = nn.Linear(16, 12)
        self.head.weight = self.embed.weight

    def forward(self, source, target):
        memory, asked = self.embed(source), self.embed(target)
        found, _ = self.attention(self.q(asked), memory, self.v(memory), need_weights=False)
        return {"logits": self.head(self.block(found + asked))}


class Copying:
    """Says the source again, one further: the target is given, as a decoder has it."""

    metric = "accuracy"
    direction = "larger"

    def pairs(self, split):
        generator = np.random.default_rng(len(split))
        return generator.integers(2, 12, (128, 5)), generator

    def examples(self, split):
        source, _ = self.pairs(split)
        yield {"source": source, "target": np.roll(source, 1, axis=1)}

    def score(self, outputs, split):
        source, _ = self.pairs(split)
        return {"accuracy": float((outputs[0]["logits"].argmax(-1) == source).mean())}

    def batches(self, split):
        source, _ = self.pairs(split)
        for start in range(0, 128, 32):
            rows = source[start : start + 32]
            yield {"source": rows, "target": np.roll(rows, 1, axis=1)}, rows

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), torch.as_tensor(batch[1]).flatten())


def attending(seed=0):
    torch.manual_seed(seed)
    module = Attending().eval()
    inputs = {"source": np.zeros((1, 5), np.int64), "target": np.zeros((1, 5), np.int64)}
    program = TorchProgram(module, ("source", "target"), ("logits",), True, inputs)
    specs = tuple(TensorSpec(name, (1, 5), "int64") for name in inputs), (TensorSpec("logits", (1, 5, 12)),)
    return Model("attending", program, *specs, inputs, program.digest(), "model.py:build")


def test_a_model_of_two_inputs_is_tuned_and_attention_does_not_pass_the_adapters_by(tmp_path):
    model = attending()
    result = tuned(tmp_path, model=model, task=Copying(), targets=("block", "q", "v"), finetune={"learning_rate": 0.01})
    before, after = state_of(model), state_of(result.model)
    changed = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert changed == ["q.weight", "v.weight", "block.linear1.weight", "block.linear2.weight"]
    assert "'block.self_attn.out_proj' stays" in " ".join(result.notes)
    # What was scored while it trained is what the merged model scores.
    task = Copying()
    scored = task.score([result.model.program.run(next(task.examples("validation")))], "validation")["accuracy"]
    assert scored > task.score([model.program.run(next(task.examples("validation")))], "validation")["accuracy"]
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("head", "shares its weights with another layer"),
        ("embed", "shares its weights with another layer"),
        ("unused", "forward does not call it"),
        ("attention", "it is a MultiheadAttention"),
        ("block.norm1", "it is a LayerNorm"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused_with_the_reason(target, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        tuned(tmp_path, model=attending(), task=Copying(), targets=(target,))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "of 2 groups"),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "with dilation"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "pads with other than zeros"),
    ],
)
def test_a_convolution_that_peft_would_get_wrong_is_refused(layer, said, tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 1), layer, nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(ConfigError, match=said):
        tuned(tmp_path, model=model_of(module), targets=("1",))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(4, 6, (3, 1), padding="same"),
    ],
)
def test_a_convolution_is_merged_exactly(layer, tmp_path):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(1, 4, 1), layer, nn.Flatten(), nn.LazyLinear(4))
    module(torch.zeros(1, 1, 6, 6))
    result = tuned(tmp_path, model=model_of(module), targets=("1",))
    assert result.modified
    assert np.linalg.matrix_rank(
        (result.model.program.module[1].weight - module[1].weight).detach().flatten(1).numpy(), tol=1e-5
    ) == 2  # fmt: skip


def test_a_model_that_is_one_layer_is_tuned(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))

    class Flat(nn.Linear):
        pass

    assert tuned(tmp_path / "a", model=model_of(module)).modified
    with pytest.raises(ConfigError, match="no linear layer"):
        tuned(tmp_path / "b", model=model_of(nn.Sequential(nn.Flatten(), Flat(36, 4))))


def test_an_unknown_target_is_told_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="'8' fits no layer") as error:
        tuned(tmp_path, targets=("8",))
    assert "Layers: 0, 3, 7" in error.value.hint
    with pytest.raises(ConfigError, match="Did you mean 'block.linear1'"):
        tuned(tmp_path, model=attending(), task=Copying(), targets=("block.linaer1",))


def test_a_rank_larger_than_a_layer_is_refused_where_it_was_named_and_left_out_where_not(tmp_path):
    with pytest.raises(ConfigError, match="r is 5, but the weight of '7' has at most the rank 4"):
        tuned(tmp_path, r=5, targets=("7",))
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 4))
    result = tuned(tmp_path, r=5, model=model_of(module))
    assert "'3' stays: it has at most the rank 4" in result.notes


def test_a_task_that_cannot_train_is_told_before_any_work(tmp_path):
    step = Lora(options_of())
    with pytest.raises(ConfigError, match="there is no task to train it for"):
        step.apply(model_of(), None, PassContext(tmp_path))

    class Unlabelled(Corners):
        batches = None

    with pytest.raises(ConfigError, match="lacks: batches"):
        step.apply(model_of(), Unlabelled(), PassContext(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{}", "given neither"),
        ("{r: 8, adapter: a}", "given both"),
        ("{adapter: a, targets: [x]}", "targets says how an adapter is trained"),
        ("{r: 0}", "r has to be at least 1"),
        ("{r: 4, alpha: 0}", "alpha has to be above 0"),
        ("{r: 4, dropout: 1.0}", "dropout has to be"),
        ("{r: 4, rank: 1}", "rank"),
    ],
)
def test_a_recipe_with_options_that_cannot_be_names_the_line(options, said):
    text = f"schema_version: 1\npasses:\n  - lora: {options}\n"
    with pytest.raises(ConfigError, match=said) as error:
        parse_recipe(parse_yaml(text, "recipe.yaml"))
    assert "recipe.yaml:3" in str(error.value)


def test_zeros_of_pruning_would_be_filled_so_that_the_order_is_checked():
    text = "schema_version: 1\npasses:\n  - prune_magnitude: {sparsity: 0.5}\n  - lora: {r: 2}\n"
    with pytest.raises(ConfigError, match="'lora' has to come before 'prune_magnitude'"):
        parse_recipe(parse_yaml(text, "recipe.yaml"))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["3", "7"]},
        {"target_modules": ["7"], "use_dora": True},
        {"target_modules": ["3", "7"], "rank_pattern": {"3": 4}, "use_rslora": True},
        {"target_modules": ["3"], "modules_to_save": ["7"]},
    ],
)
def test_an_adapter_is_merged_to_what_peft_computes(config, tmp_path):
    model = model_of()
    before = copy.deepcopy(state_of(model))
    adapted = written(tmp_path / "adapter", model.program.module, **config)
    result = merged(model, tmp_path / "adapter", tmp_path)
    assert_same_bits(state_of(model), before)
    _, apart = distance(model.program.with_module(adapted), result.model.program, NOISE)
    assert apart < 1e-5
    assert distance(model.program, result.model.program, NOISE)[1] > 1e-2
    assert "of rank 2 and alpha 6 merged into" in result.notes[0]
    assert [type(layer) for layer in result.model.program.module.modules()] == [type(m) for m in cnn().modules()]


def test_an_adapter_of_what_the_model_is_a_wrapper_around_finds_its_place(tmp_path):
    inner = cnn().eval()
    adapted = written(tmp_path / "adapter", inner, target_modules=["7"])
    model = model_of(nn.Sequential(nn.Identity(), inner))
    result = merged(model, tmp_path / "adapter", tmp_path)
    assert result.notes[0].endswith("merged into 1 layers, into '1'")
    assert distance(model.program.with_module(adapted), result.model.program, NOISE)[1] < 1e-5


def test_an_adapter_that_fits_two_parts_is_refused(tmp_path):
    inner = cnn().eval()
    written(tmp_path / "adapter", inner, target_modules=["7"])

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = cnn(), cnn()

        def forward(self, image):
            return self.left(image) + self.right(image)

    with pytest.raises(ConfigError, match="fits 'left', 'right' of this model alike"):
        merged(model_of(Two()), tmp_path / "adapter", tmp_path)


def test_an_adapter_of_another_model_names_the_layers(tmp_path):
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    model = model_of(other)
    written(tmp_path / "names", cnn(), target_modules=["7"])
    with pytest.raises(ConfigError, match="made for another model: this one has no '7'"):
        merged(model, tmp_path / "names", tmp_path)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 4))
    written(tmp_path / "sizes", wide, target_modules=["1", "3"])
    with pytest.raises(ConfigError, match=r"of other sizes: '1' \(36 → 9; here 36 → 8\), '3' \(9 → 4; here 8 → 4\)"):
        merged(model, tmp_path / "sizes", tmp_path)


def test_an_adapter_of_a_smaller_model_names_the_layers_it_has_nothing_for(tmp_path):
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4)))
    written(tmp_path / "adapter", model.program.module, target_modules=["1"])
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    config["target_modules"] = ["1", "3"]
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no weights for '3'"):
        merged(model, tmp_path / "adapter", tmp_path)


def test_an_adapter_on_a_tied_weight_is_refused(tmp_path):
    model = attending()
    written(tmp_path / "adapter", model.program.module, target_modules=["head"])
    with pytest.raises(ConfigError, match="'head', which shares its weight with another layer"):
        merged(model, tmp_path / "adapter", tmp_path)


def test_an_adapter_that_adds_nothing_is_told_so(tmp_path):
    model = model_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(cnn(), LoraConfig(r=2, target_modules=["7"])).save_pretrained(str(tmp_path / "adapter"))
    result = merged(model, tmp_path / "adapter", tmp_path)
    assert not result.modified
    assert "the adapter adds nothing" in result.notes[-1]


def damaged(folder, what):
    written(folder, cnn(), target_modules=["7"])
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if what == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:40])
    elif what == "no config":
        config.unlink()
    elif what == "no json":
        config.write_text("{")
    elif what == "another kind":
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "IA3"}))
    elif what == "no weights":
        weights.unlink()
    elif what == "not finite":
        save_file({"base_model.model.7.lora_A.weight": torch.full((2, 32), torch.nan),
                   "base_model.model.7.lora_B.weight": torch.ones(4, 2)}, weights)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pickle", "is a pickle: reading it can run anything"),
        ("truncated", "adapter_model.safetensors' cannot be read"),
        ("no config", "there is no adapter_config.json"),
        ("no json", "is no JSON of an adapter"),
        ("another kind", "an adapter of the kind 'IA3'"),
        ("no weights", "there is no adapter_model.safetensors"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(what, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        merged(model_of(), damaged(tmp_path / "adapter", what), tmp_path)


def test_weights_that_are_no_numbers_are_not_merged(tmp_path):
    with pytest.raises(PassError, match="The adapter 'adapter' cannot be merged"):
        merged(model_of(), damaged(tmp_path / "adapter", "not finite"), tmp_path)


def test_a_folder_that_is_nowhere_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder 'nowhere'"):
        merged(model_of(), "nowhere", tmp_path)


def test_the_adapter_is_found_beside_the_task_and_decides_what_is_cached(tmp_path, monkeypatch):
    written(tmp_path / "adapter", cnn(), target_modules=["7"])
    (tmp_path / "task.py").write_text("class Nothing:\n    def examples(self, split):\n        return []\n")
    import importlib.util

    spec = importlib.util.spec_from_file_location("task_beside_an_adapter", tmp_path / "task.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    task = module.Nothing()
    assert merged(model_of(), "adapter", tmp_path, task).modified
    files = Lora(LoraOptions(adapter="adapter")).own_files(task)
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]


def test_examples_that_lack_an_input_are_told(tmp_path):
    class Wrong(Corners):
        def examples(self, split):
            yield {"picture": np.zeros((1, 1, 6, 6), np.float32)}

    written(tmp_path / "adapter", cnn(), target_modules=["7"])
    with pytest.raises(ConfigError, match="lacks the input 'image' of the model; it has: picture"):
        merged(model_of(), tmp_path / "adapter", tmp_path, Wrong())


def test_nothing_is_asked_of_a_hub_and_nothing_is_printed(tmp_path, monkeypatch, capfd):
    written(tmp_path / "adapter", cnn(), target_modules=["7"], base_model_name_or_path="someone/some-model")

    def refused(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    capfd.readouterr()
    assert merged(model_of(), tmp_path / "adapter", tmp_path).modified
    tuned(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_the_library_is_loaded_without_a_word_and_logs_are_as_they_were_afterwards():
    code = (
        "import logging, os, sys\nfrom edgekit.passes._lora.library import peft\n"
        "with peft() as library:\n    from huggingface_hub.constants import is_offline_mode\n"
        "    assert is_offline_mode()\n"
        "assert not is_offline_mode()\nassert logging.getLogger('anything').isEnabledFor(logging.WARNING)"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
