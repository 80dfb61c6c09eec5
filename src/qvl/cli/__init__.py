"""The `qvl` command: flags and terminals; what it does lives in the layers below."""
