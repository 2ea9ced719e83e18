"""Whether it helped: images drawn with a trained model, and what is measured on them.

    from regforge.evaluation import evaluate
    evaluation = evaluate(["runs/teapot-lora", "runs/teapot-naive"], out="evaluations/teapot")

Draws the same prompts with the same seeds from each model, measures the images, and writes
`evaluation.json`, `report.html` and the images themselves. Knows nothing about how a model was
trained beyond what its run's folder says.
"""

from regforge.evaluation.models import PersonalizedModel, open_model
from regforge.evaluation.results import Evaluation
from regforge.evaluation.running import evaluate
from regforge.evaluation.sampling import Samples, sample

__all__ = ["Evaluation", "PersonalizedModel", "Samples", "evaluate", "open_model", "sample"]
