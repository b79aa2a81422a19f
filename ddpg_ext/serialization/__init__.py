"""Reading and writing files; knows no model."""
