"""Users' own cells: their source files, the classes that these define, and their options."""
