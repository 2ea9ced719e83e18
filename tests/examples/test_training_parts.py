"""The parts of the tiny world's training that can be checked without training it."""

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="drawing the world needs the extra 'tinyworld'")

import models
import pool
import train_unet
from optim import MuonAdamW, orthogonalize


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (48, 48)])
def test_orthogonalize_evens_out_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=8).float())
    assert values.max() < 1.4
    assert values.min() > 0.5


def small_model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def steps(model, optimizer, first, last):
    for i in range(first, last):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(32, 8, generator=generator)
        loss = (model(x) - x[:, :4]).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_the_optimizer_learns():
    model = small_model(0)
    optimizer = MuonAdamW(list(model.parameters()), lr=0.02)
    before = steps(model, optimizer, 0, 1)
    assert steps(model, optimizer, 1, 200) < 0.2 * before


def test_resuming_the_optimizer_changes_nothing():
    straight = small_model(0)
    optimizer = MuonAdamW(list(straight.parameters()), lr=0.01)
    steps(straight, optimizer, 0, 20)

    paused = small_model(0)
    first = MuonAdamW(list(paused.parameters()), lr=0.01)
    steps(paused, first, 0, 10)
    resumed = small_model(1)
    resumed.load_state_dict(paused.state_dict())
    second = MuonAdamW(list(resumed.parameters()), lr=0.01)
    second.load_state({k: t.clone() for k, t in first.state().items()})
    steps(resumed, second, 10, 20)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_loss_of_a_perfect_prediction_is_zero_and_masks_weigh_what_is_seen(monkeypatch):
    alphas = models.noise_schedule().alphas_cumprod
    latents, masks = torch.randn(4, 16, 12, 12), torch.zeros(4, 1, 12, 12)

    class Oracle:
        """Knows the clean latents: v follows from them and the noisy ones."""

        def __call__(self, noisy, t, states):
            a = alphas[t].sqrt()[:, None, None, None]
            s = (1 - alphas[t]).sqrt()[:, None, None, None]
            noise = (noisy - a * latents) / s
            return type("Output", (), {"sample": a * noise - s * latents + self.error})

    oracle = Oracle()
    oracle.error = 0.0
    assert train_unet.diffusion_loss(oracle, None, latents, masks, alphas) < 1e-3
    oracle.error = torch.zeros(4, 1, 12, 12)
    oracle.error[..., :6] = 1.0
    plain = train_unet.diffusion_loss(oracle, None, latents, masks, alphas)
    assert plain == pytest.approx(0.5, abs=0.01)
    masks[..., :6] = 1.0
    for timestep, weighed in ((0, 0.8), (999, 0.5)):  # 4 of 5 parts of the weight, or 1 of 2
        monkeypatch.setattr(
            train_unet, "random_timesteps", lambda n, t=timestep: torch.tensor([t] * n)
        )
        found = train_unet.diffusion_loss(oracle, None, latents, masks, alphas)
        assert found == pytest.approx(weighed, abs=0.01)


def test_terminal_noise_hides_the_image():
    assert models.noise_schedule().alphas_cumprod[-1] == 0


def test_a_chunk_of_the_pool_is_always_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "CHUNK", 4)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pool.render_chunk(tmp_path / name, "details", 3)
    assert pool.chunks(tmp_path / "a") == [3]
    first, second = (pool.load_images(tmp_path / name, [3]) for name in ("a", "b"))
    np.testing.assert_array_equal(first, second)
    assert not any(spec.held_out for spec in pool.load_specs(tmp_path / "a", [3]))
    assert pool.load_masks(tmp_path / "a", [3]).shape == (4, 12, 12)
