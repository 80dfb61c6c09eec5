"""What to ask and how to read the answer: every job of the product, defined once."""

from qvl.tasks.ask import Ask
from qvl.tasks.describe import Describe
from qvl.tasks.service import Serve
from qvl.tasks.solve import Solve

TASKS = {task.name: task for task in (Describe, Ask, Solve, Serve)}
