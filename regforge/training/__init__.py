"""Trains a model on photos of one subject, beside a regularization dataset.

    model = train(recipe, out="runs/teapot")
    model.weights       DIR/lora/pytorch_lora_weights.safetensors

batches     what is trained on at which step      families   what differs between models
data        the images and captions               weights    what of a model is trained
examples    the tensors of any draw               loop       one optimizer step after another
running     all of these in their order           plan       what it would do, for `check`
checkpoints, recording, saving, card                         what is written on the way and after
"""

from regforge.training.batches import TrainingFailed, TrainingSetup
from regforge.training.recording import TrainedModel
from regforge.training.running import train

__all__ = ["TrainedModel", "TrainingFailed", "TrainingSetup", "train"]
