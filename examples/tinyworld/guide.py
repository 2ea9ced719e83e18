"""Semantic guidance for the UNet while it trains: "representation alignment".

A small projector reads the UNet's middle features and has to say what the reader (a classifier of
the world's images, see `judges`) sees in the clean image, cell by cell. It makes the UNet
decide early what stands where (REPA, Yu et al. 2024, arXiv 2410.06940). Nothing of it is left in
the shipped model.
"""

from __future__ import annotations

from typing import Any

CHANNELS = 160  # of the reader's third stage, 6 x 6 cells like the UNet's middle


def reader_features(reader: Any, images: Any) -> Any:
    """What the reader sees in images (n, 3, 96, 96): float (n, 160, 6, 6), each cell centred."""
    import torch.nn.functional as F

    states = reader.tower(images, output_hidden_states=True).hidden_states
    features = next(s for s in states if s.shape[1] == CHANNELS)
    cells = features.float().permute(0, 2, 3, 1)
    return F.layer_norm(cells, (CHANNELS,)).permute(0, 3, 1, 2)


class Guide:
    """The projector, its own optimizer, and the hook that catches the UNet's middle features."""

    def __init__(self, unet: Any, lr: float = 1e-3) -> None:
        import torch
        from torch import nn

        width = unet.config.block_out_channels[-1]
        self.projector = nn.Sequential(
            nn.Conv2d(width, 256, 1), nn.SiLU(), nn.Conv2d(256, CHANNELS, 1)
        ).to(unet.device)
        self.optimizer = torch.optim.AdamW(self.projector.parameters(), lr=lr)
        self._caught: Any = None

        def catch(_module: Any, _inputs: Any, output: Any) -> None:
            self._caught = output

        unet.mid_block.register_forward_hook(catch)

    def loss(self, features: Any, masks: Any) -> Any:
        """1 - cosine between projected and true features, the subject's cells counting up to 4x.

        Args:
            features: From `reader_features`, (n, 160, 6, 6).
            masks: Share of each latent cell that the subject covers, (n, 1, 12, 12).
        """
        import torch.nn.functional as F

        guess = self.projector(self._caught.float())
        cosine = F.cosine_similarity(guess, features, dim=1)
        weight = 1 + 3 * F.avg_pool2d(masks, 2)[:, 0]
        return (weight * (1 - cosine)).sum() / weight.sum()

    def step(self) -> None:
        """Update the projector."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
