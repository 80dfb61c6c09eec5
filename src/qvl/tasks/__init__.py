"""What to ask and how to read the answer: every job of the product, defined once."""

from qvl.tasks.ask import Ask
from qvl.tasks.classify import Classify
from qvl.tasks.compare import Compare
from qvl.tasks.describe import Describe
from qvl.tasks.extract import Extract
from qvl.tasks.ground import Ground
from qvl.tasks.moderate import Moderate
from qvl.tasks.ocr import Ocr
from qvl.tasks.service import Serve
from qvl.tasks.solve import Solve
from qvl.tasks.video import Watch

TASKS = {
    task.name: task
    for task in (
        Describe,
        Ask,
        Ocr,
        Ground,
        Compare,
        Extract,
        Classify,
        Moderate,
        Solve,
        Serve,
        Watch,
    )
}
