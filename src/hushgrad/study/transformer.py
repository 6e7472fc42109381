"""A small transformer that reads sentences of word numbers, made to be trained from scratch with noise.

- Each block starts by adding zero, and word vectors start small. So the network starts as the sum of its words'
  vectors, and their random start does not drown what the first steps learn about a word.
- Word vectors are summed and divided by the root of their number. A normalisation would make noise as large as what
  was learned; without one, a rare word keeps a short vector and says little.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 16
HEADS = 2
LAYERS = 1
WORD_STD = 0.05
POSITION_STD = 0.02


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after layer normalisation and added to its input; zero at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        narrowing = nn.Linear(2 * width, width)
        self.perceptron = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), narrowing)
        for added in (self.joined, narrowing):
            nn.init.zeros_(added.weight)
            nn.init.zeros_(added.bias)

    def forward(self, words_BTd: Tensor, present_BT: Tensor) -> Tensor:
        """Return [B, T, width]; positions that are not present are attended to by nobody."""
        parts = self.query_key_value(self.before_attention(words_BTd)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        allowed = present_BT[:, None, None, :]
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        words_BTd = words_BTd + self.joined(seen.transpose(1, 2).flatten(2))
        changed: Tensor = words_BTd + self.perceptron(words_BTd)
        return changed


class Transformer(nn.Module):
    """Word and position embeddings, blocks, logits from the sum of all words over the root of their number."""

    def __init__(self, vocabulary_size: int, length: int, num_classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, WIDTH)
        self.positions = nn.Embedding(length, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))
        self.logits = nn.Linear(WIDTH, num_classes)
        nn.init.normal_(self.words.weight, std=WORD_STD)
        nn.init.normal_(self.positions.weight, std=POSITION_STD)

    def forward(self, numbers_BT: Tensor) -> Tensor:
        """Return logits [B, K] for word numbers [B, T]; 0 is padding. A sentence without words reads its padding."""
        present_BT = numbers_BT != 0
        present_BT = present_BT | ~present_BT.any(dim=1, keepdim=True)
        hidden_BTd = self.words(numbers_BT) + self.positions(self.places(numbers_BT))
        for block in self.blocks:
            hidden_BTd = block(hidden_BTd, present_BT)
        weight_BT1 = (present_BT / present_BT.sum(dim=1, keepdim=True).sqrt()).unsqueeze(-1)
        logits: Tensor = self.logits((hidden_BTd * weight_BT1).sum(dim=1))
        return logits

    def places(self, numbers_BT: Tensor) -> Tensor:
        """Return the numbers of the positions, [T]: the same for every example, so they are looked up once."""
        return torch.arange(numbers_BT.shape[1], device=numbers_BT.device)
