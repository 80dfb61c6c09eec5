"""A conversation about pictures: turns that stream, tools in between, a history that stays."""
