"""From token ids and picture patches to tokens: scheduling, key/value cache, sampling, text.

Main path: `Engine.add(EngineRequest)`, then `Engine.step()` until `Engine.idle`; each step returns
events. The engine knows token ids, picture patches and sampling; no templates and no files.
"""
