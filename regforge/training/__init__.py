"""Trains a model on photos of one subject, beside a regularization dataset.

    model = train(recipe, out="runs/teapot")
    model.weights       DIR/lora/pytorch_lora_weights.safetensors

order       which examples meet at which step          families   what differs between models
examples    their tensors                              weights    what of a model is trained
loss        what a batch costs                         loop       one optimizer step after another
checkpoints, validation, recording, saving             what is written down on the way and after
dataset_runs, launching                    the dataset's own recipe, and who trains together
opening     all of it put together             running    the order of all of these
plan        what it would do, for `check`
"""

from regforge.training.problems import TrainingFailed, TrainingSetup
from regforge.training.results import TrainedModel
from regforge.training.running import train

__all__ = ["TrainedModel", "TrainingFailed", "TrainingSetup", "train"]
