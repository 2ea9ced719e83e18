"""Whether it helped: images drawn with a trained model, and what is measured on them.

    from regforge.evaluation import evaluate
    evaluation = evaluate(["runs/teapot-lora"], samples=1)

Knows nothing about how a model was trained beyond what its run's folder says.
"""

from regforge.evaluation.evaluation_run import evaluate
from regforge.evaluation.models import open_model
from regforge.evaluation.planning import EvaluationSettings
from regforge.evaluation.results import Evaluation
from regforge.evaluation.sampling import Samples, sample
from regforge.evaluation.suites import PersonalizedModel

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "PersonalizedModel",
    "Samples",
    "evaluate",
    "open_model",
    "sample",
]
