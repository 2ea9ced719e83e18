import contextlib

import torch
from small_training import SmallFamily, make_image, photo, small_batch

from regforge.training.batches import Batch
from regforge.training.loop import Objective


def expected_errors(family: SmallFamily, batch: Batch) -> list[float]:
    """Mean squared errors, one example and one element after the other."""
    weight = family.denoiser.weight.detach()[:, :, 0, 0]
    bias = family.denoiser.bias.detach()
    errors = []
    for n in range(len(batch)):
        latent = batch.moments[n, 0] + batch.moments[n, 1] * batch.sampling_noise[n]
        time = int(batch.uniform[n] * 10)
        noisy = latent + batch.noise[n] * time / 10
        total = 0.0
        for y in range(4):
            for x in range(4):
                predicted = weight @ noisy[:, y, x] + bias + 0.01 * len(batch.captions[n])
                wanted = batch.noise[n, :, y, x] - latent[:, y, x]
                total += float(((predicted - wanted) ** 2).sum())
        errors.append(total / (2 * 4 * 4))
    return errors


def test_losses_and_their_parts_are_what_a_hand_calculation_says() -> None:
    family = SmallFamily()
    batch = small_batch([photo(0), photo(1), make_image(0), make_image(1), make_image(2)])
    objective = Objective(prior_weight=0.5)
    losses = objective.example_losses(family, batch)
    errors = expected_errors(family, batch)
    assert torch.allclose(losses, torch.tensor(errors), rtol=1e-5)
    parts = objective.parts(losses, batch.instances, of_instances=2, of_regularization=3)
    instance, prior = sum(errors[:2]) / 2, sum(errors[2:]) / 3
    assert torch.allclose(parts, torch.tensor([instance, prior]), rtol=1e-5)
    assert abs(float(objective.total(parts).detach()) - (instance + 0.5 * prior)) < 1e-5
    assert family.forwards == [5]  # instance and regularization images in one forward pass
    alone = objective.parts(losses.detach()[:2], 2, of_instances=2, of_regularization=0)
    assert (float(alone[1]), float(objective.total(alone))) == (0.0, float(parts[0]))


def test_min_snr_weights_every_example_by_its_own_time() -> None:
    family = SmallFamily()
    batch = small_batch([photo(0), photo(1), make_image(0), make_image(1)])
    plain = Objective().example_losses(family, batch)
    weighted = Objective(min_snr_gamma=5.0).example_losses(family, batch)
    times = (batch.uniform * 10).long()
    assert len(set(times.tolist())) > 2
    assert torch.allclose(weighted, plain * 5.0 / (1.0 + times))


def gradient(draws_of_batches: list[list]) -> torch.Tensor:
    """Of one optimizer step over 2 photos and 2 regularization images."""
    torch.manual_seed(0)
    family, objective = SmallFamily(), Objective(prior_weight=0.7, min_snr_gamma=3.0)
    for draws in draws_of_batches:
        batch = small_batch(draws)
        losses = objective.example_losses(family, batch)
        objective.total(objective.parts(losses, batch.instances, 2, 2)).backward()
    return family.denoiser.weight.grad.flatten()


def test_a_batch_of_two_is_the_mean_of_two_batches_of_one() -> None:
    together = gradient([[photo(0), photo(1), make_image(0), make_image(1)]])
    apart = gradient([[photo(0), make_image(0)], [photo(1), make_image(1)]])
    uneven = gradient([[photo(0), photo(1), make_image(1)], [make_image(0)]])
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-7)
    assert torch.allclose(together, uneven, rtol=1e-5, atol=1e-7)


def test_the_teacher_teaches_regularization_images_only() -> None:
    family = SmallFamily()
    batch = small_batch([photo(0), make_image(0), make_image(1)])
    plain = Objective().example_losses(family, batch)
    family.forwards.clear()
    taught = Objective(teacher=family.teacher).example_losses(family, batch)
    assert family.forwards == [3, 2]
    assert torch.equal(taught[0], plain[0])
    latents = family.latents(batch.moments, batch.sampling_noise)
    times = family.times(batch.uniform)
    predicted = family.predict(
        family.noisy(latents, batch.noise, times), times, batch.embeddings, batch.geometry
    )
    assert torch.allclose(taught[1:], (predicted[1:] - 7.0).square().flatten(1).mean(1))
    student = Objective(teacher=contextlib.nullcontext)  # teaches itself nothing
    losses = student.example_losses(family, small_batch([make_image(0), make_image(1)]))
    assert losses.tolist() == [0.0, 0.0]


def test_captions_are_encoded_in_the_step_while_a_text_encoder_is_trained() -> None:
    family = SmallFamily()
    draws = [photo(0), make_image(12)]
    live = Objective(teacher=family.teacher).example_losses(
        family, small_batch(draws, embedded=False)
    )
    # The teacher has its own text encoder: the regularization caption is encoded again for it.
    assert family.encoded == ["instance 0", "class 12", "class 12"]
    cached = Objective(teacher=family.teacher).example_losses(family, small_batch(draws))
    assert torch.equal(live, cached)
