"""Pictures of what the model attends to, and the gallery that a run keeps."""
