"""Checkpoints: from a name to a model that is ready to run.

Main path: hub (a name -> a folder) -> model.load_model -> config (json -> our schema), checkpoint
(safetensors -> parameters), names (older tensor names -> ours), or for what convert has packed,
packed. Everything in a checkpoint is data
from a stranger: each file is checked before it is used, and nothing in it is ever run.
"""
