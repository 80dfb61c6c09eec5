"""The form of an answer: a JSON schema, choice, pattern or grammar, as masks over a vocabulary."""
