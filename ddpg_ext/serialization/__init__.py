"""Reading and writing files, independent of models."""
