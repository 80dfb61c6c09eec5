"""Many items: out of folders and tables, through a task, into files."""
