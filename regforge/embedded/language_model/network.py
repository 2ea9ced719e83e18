"""SmolLM2's forward pass: the Llama architecture for one sequence, in float32.

Knows nothing about text, schemas or caches on disk. Written out rather than imported because
importing transformers takes longer than a whole scoring run here, and because scoring wants its
own attention mask (see `log_probabilities` in `smollm.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from regforge.embedded.language_model.weights import Weights


@dataclass
class KeyValues:
    """Keys and values of the tokens read so far, per layer: [heads, tokens, head size]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values, and return all of them."""
        if layer in self.keys:
            key = torch.cat([self.keys[layer], key], dim=1)
            value = torch.cat([self.values[layer], value], dim=1)
        self.keys[layer], self.values[layer] = key, value
        return key, value


class Network:
    """A Llama network over dequantised GGUF tensors.

    Args:
        weights: as `load_weights` returns them; the tensors are widened to float32 here.
    """

    def __init__(self, weights: Weights) -> None:
        self.shape = weights.shape
        self.tensors = {name: tensor.float() for name, tensor in weights.tensors.items()}
        self.embedding = self.tensors["token_embd.weight"]  # [vocabulary, width], also the head
        width = self.embedding.shape[1]
        self.head_size = width // self.shape.heads
        exponents = torch.arange(0, self.head_size, 2, dtype=torch.float32) / self.head_size
        self.frequencies = self.shape.rope_theta**-exponents  # [head size / 2]

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        past: KeyValues | None = None,
    ) -> Tensor:
        """Final hidden states.

        Args:
            tokens: token ids, int64 [T].
            positions: place of each token in its text, int64 [T].
            mask: which tokens each token sees, bool [T, past + T].
            past: earlier tokens' keys and values; extended in place.

        Returns:
            float32 [T, width], normalised, ready for `log_probabilities`.
        """
        past = past if past is not None else KeyValues()
        epsilon = self.shape.norm_epsilon
        angles = positions[:, None].float() * self.frequencies
        rotation = torch.polar(torch.ones_like(angles), angles)[None]  # complex [1, T, half]
        x = self.embedding[tokens]
        for layer in range(self.shape.layers):
            block = f"blk.{layer}"
            y = self._norm(x, f"{block}.attn_norm.weight", epsilon)
            q = _rotate(self._heads(y, f"{block}.attn_q.weight"), rotation)
            k = _rotate(self._heads(y, f"{block}.attn_k.weight"), rotation)
            k, v = past.extend(layer, k, self._heads(y, f"{block}.attn_v.weight"))
            groups = self.shape.heads // self.shape.key_value_heads
            y = F.scaled_dot_product_attention(
                q[None],
                k.repeat_interleave(groups, dim=0)[None],
                v.repeat_interleave(groups, dim=0)[None],
                attn_mask=mask,
            )[0]
            x = x + self._linear(y.transpose(0, 1).flatten(1), f"{block}.attn_output.weight")
            y = self._norm(x, f"{block}.ffn_norm.weight", epsilon)
            gate = F.silu(self._linear(y, f"{block}.ffn_gate.weight"))
            up = self._linear(y, f"{block}.ffn_up.weight")
            x = x + self._linear(gate * up, f"{block}.ffn_down.weight")
        return self._norm(x, "output_norm.weight", epsilon)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the next token: float32 [T, width] -> [T, vocabulary]."""
        return F.linear(hidden, self.embedding).log_softmax(-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.tensors[name])

    def _norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.tensors[name], epsilon)

    def _heads(self, x: Tensor, name: str) -> Tensor:
        """Project and split: [T, width] -> [heads, T, head size]."""
        projected = self._linear(x, name)
        return projected.view(len(x), -1, self.head_size).transpose(0, 1)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs, the layout llama.cpp stores (not Hugging Face's)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)
