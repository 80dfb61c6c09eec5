"""How fast a model answers here, beside other engines and beside what the machine itself allows."""
