"""A small mT5 that writes numbers in digits: built from its config, with weights that train.py has left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from numbers_data import DIGITS, END, PAD, SOURCE_LENGTH, START, VOCABULARY
from torch import Tensor, nn

from edgekit.core.errors import ConfigError

CACHE_VARIABLE = "EDGEKIT_EXAMPLES_CACHE"


def weights_file(seed: int) -> Path:
    """Where the weights of the base of a seed are."""
    import platformdirs

    folder = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("edgekit-examples")
    return Path(folder) / "mt5_lora" / f"base-{seed}.safetensors"


class NumberWriter(nn.Module):
    """An mT5 with its mask and its cache left inside: words (N, 10) and digits so far (N, 4) to logits (N, 4, 44)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import MT5Config, MT5ForConditionalGeneration

        self.mt5 = MT5ForConditionalGeneration(
            MT5Config(
                vocab_size=len(VOCABULARY),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=4,
                relative_attention_num_buckets=16,
                relative_attention_max_distance=32,
                dropout_rate=0.0,
                pad_token_id=PAD,
                eos_token_id=END,
                decoder_start_token_id=START,
                use_cache=False,
                # torch's fused attention leaves its result in an order of memory that the ONNX exporter cannot follow.
                attn_implementation="eager",
            )
        )
        # As it is built, its logits start eight times too large, and half of the training goes into making them smaller.
        with torch.no_grad():
            self.mt5.lm_head.weight.mul_(self.mt5.config.d_model**-0.5)

    def forward(self, words: Tensor, digits: Tensor) -> Tensor:
        """Logits of the digit at each place, given the digits before it."""
        found = self.mt5(
            input_ids=words, attention_mask=(words != PAD).long(), decoder_input_ids=digits, use_cache=False
        )
        return found.logits


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """The base of seed 0; see `base`."""
    return base(0)


def build_1() -> tuple[nn.Module, dict[str, Tensor]]:
    """The base of seed 1; see `base`."""
    return base(1)


def build_2() -> tuple[nn.Module, dict[str, Tensor]]:
    """The base of seed 2; see `base`."""
    return base(2)


def base(seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A base in evaluation mode, and an example of its inputs.

    Raises:
        ConfigError: It has not been trained yet, or the weights are not of this network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    path, command = weights_file(seed), f"python {Path(__file__).resolve().parent / 'train.py'} --seed {seed}"
    if not path.is_file():
        raise ConfigError(f"The base has no weights yet: there is no file '{path}'.", command)
    module = NumberWriter()
    try:
        load_model(module, path)
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(f"'{path}' does not hold the weights of this network: {error}", command) from error
    return module.eval(), example_inputs()


def example_inputs() -> dict[str, Tensor]:
    """ "one </s>" and the start of an answer."""
    words = torch.full((1, SOURCE_LENGTH), PAD)
    words[0, :2] = torch.tensor([VOCABULARY.index("one"), END])
    return {"words": words, "digits": torch.full((1, DIGITS), START)}


def parameters_of(module: Any) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
